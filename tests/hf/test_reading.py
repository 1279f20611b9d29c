"""A model folder read by two processes of a job: each reads its share, both have the model of one process alone."""

import json

import jax
import numpy as np
import pytest
from local_job import finish, spawn

from jaxtune.hf import folder as hf
from jaxtune.hf.text_files import TextFiles
from jaxtune.model import transformer as model
from jaxtune.model.settings import ModelConfig
from jaxtune.storage.fingerprints import array_fingerprint

pytestmark = [pytest.mark.xdist_group("processes"), pytest.mark.slow]

CONFIG = ModelConfig(
    vocab_size=512, d_model=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16, d_ff=128, max_seq_len=64,
    tie_embeddings=False,
)  # fmt: skip
WORKER = """
import json, os, pathlib, sys
import jax
from jaxtune.hf import folder as hf
from jaxtune.hf import safetensors
from jaxtune.parallel import job, sharding
from jaxtune.parallel.mesh import MeshConfig, make_mesh
from test_reading import CONFIG, digests, rule

job.start(job.detect(os.environ))
honest, read = safetensors.read_tensor, []

def counting(*given):
    values = honest(*given)
    read.append(values.nbytes)
    return values

safetensors.read_tensor = counting
with job.Guard():
    for axes in (dict(fsdp=4), dict(data=2, fsdp=2), dict(data=4)):
        read.clear()
        mesh = make_mesh(MeshConfig(**axes, devices=4))
        _, params = hf.import_model(pathlib.Path(sys.argv[1]), sharding=rule(mesh))
        kept = sum(s.data.nbytes for leaf in jax.tree.leaves(params) for s in leaf.addressable_shards)
        whole = jax.jit(lambda tree: tree, out_shardings=sharding.replicated(mesh))(params)
        print("DONE", json.dumps([sum(read), kept, digests(whole)]))
"""


def rule(mesh):
    """The sharding of a run, by path."""
    from jaxtune.parallel import sharding

    placed = sharding.shardings(mesh, model.abstract_params(CONFIG)[1])
    return {sharding.path_name(p): where for p, where in jax.tree_util.tree_leaves_with_path(placed)}.__getitem__


def digests(params) -> list[str]:
    """Of all parameters, to the bit."""
    return [array_fingerprint(np.asarray(leaf.addressable_data(0))) for leaf in jax.tree.leaves(params)]


def test_each_of_two_processes_reads_half_of_the_bytes_whatever_its_devices_keep(tmp_path):
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape, dtype=np.float32), model.abstract_params(CONFIG)[1]
    )
    hf.export_model(tmp_path / "model", CONFIG, params, TextFiles(eos_token_id=2))
    stored = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    (tmp_path / "worker.py").write_text(WORKER)
    job = spawn([tmp_path / "worker.py", tmp_path / "model"], 2, devices=2, folders=["hf"])
    logs = finish(job)
    assert [child.returncode for child in job] == [0, 0], logs
    expected = digests(hf.import_model(tmp_path / "model")[1])
    found = [[json.loads(line[5:]) for line in log.splitlines() if line.startswith("DONE ")] for log in logs]
    assert [len(records) for records in found] == [3, 3]
    for mine, others in zip(*found, strict=True):
        assert mine[2] == others[2] == expected
        for read, *_ in (mine, others):
            assert stored / 2 <= read < stored / 2 * 1.02, "half of the matrices, and the few vectors"
    kept = [record[1] for record in found[0]]
    assert kept[0] < kept[1] < kept[2], "whether they keep a quarter, a half or all of it"
