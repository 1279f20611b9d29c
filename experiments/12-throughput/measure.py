"""Training speed and memory: padded against packed rows, share of the machine's matmul rate, time to the first step.

python experiments/12-throughput/measure.py --out experiments/12-throughput/results.jsonl
"""

import argparse
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune import config as configs
from jaxtune.batch import Batch
from jaxtune.chat import load_template, load_tokenizer
from jaxtune.config import ExperimentConfig
from jaxtune.hf import folder as hf
from jaxtune.hf.text_files import TextFiles
from jaxtune.model import transformer as model
from jaxtune.parallel import compilation as compiling
from jaxtune.parallel import mesh
from jaxtune.plan.packing import PackPolicy
from jaxtune.step.programs import Programs
from jaxtune.train import resolution
from jaxtune.train.resolution import Inputs
from jaxtune.train.session import open_session

HERE = pathlib.Path(__file__).parent
CASES = {"10M": HERE / "ten_million.py", "SmolLM2-135M": HERE.parent / "08-smollm2-compact" / "config.py"}
PACKINGS = (PackPolicy.PADDED, PackPolicy.BEST_FIT)


def matmul_rate(size: int = 2048, repeats: int = 5) -> float:
    """Best float32 FLOP/s of a square matrix product in this process."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((size, size)), jnp.float32)
    product = compiling.jit(lambda x: x @ x, platform="cpu", dtype="float32")
    jax.block_until_ready(product(x))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(product(x))
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


def work(inputs: Inputs, batch: Batch) -> dict[str, float]:
    """FLOPs that the batch's real tokens need: forward and backward, nothing for padding.

    Layers: 6 x weights x tokens. Attention inside an example, causal: 6 x layers x heads x head_dim x length^2.
    Head: 6 x d x vocabulary, for every real token (the usual convention) or for trained positions only (what is done).
    """
    shape = inputs.model
    leaves = jax.tree_util.tree_leaves_with_path(model.abstract_params(shape)[1]["layers"])
    weights = sum(leaf.size for _, leaf in leaves)
    segments = np.asarray(batch.segment_ids).reshape(-1, inputs.config.data.seq_len)
    lengths = [n for row in segments for n in np.bincount(row)[1:]]
    tokens, trained = int(sum(lengths)), int((np.asarray(batch.loss_weights) > 0).sum())
    body = 6.0 * weights * tokens
    body += 6.0 * shape.num_layers * shape.num_heads * shape.head_dim * float(np.square(lengths).sum())
    head = 6.0 * shape.d_model * shape.vocab_size
    return {"tokens": tokens, "trained": trained, "done": body + head * trained, "usual": body + head * tokens}


class Steps:
    """One packing's compiled step, called again and again on the run's own batches."""

    def __init__(self, config: ExperimentConfig, packing: PackPolicy, programs: Programs):
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, packing=packing))
        self.inputs = resolution.resolve(config, questions=False, show_progress=False)
        self.session = open_session(self.inputs, programs)
        self.state = self.session.initial_state()
        self.batches: Iterator[Batch] = self.session.train_batches(0)

    def run(self, steps: int) -> dict[str, float]:
        """Seconds and work of some steps."""
        sums: dict[str, float] = dict.fromkeys(("tokens", "trained", "done", "usual", "seconds"), 0.0)
        for _ in range(steps):
            batch = next(self.batches)
            need = work(self.inputs, batch)
            start = time.perf_counter()
            self.state, metrics = self.session.program.train_step(
                self.state, self.session.base.frozen, self.session.put(batch), self.session.numbers
            )
            jax.block_until_ready(metrics.loss)
            for name, value in (need | {"seconds": time.perf_counter() - start}).items():
                sums[name] += value
        return sums


def throughput(case: str, steps: int, rounds: int) -> Iterator[dict]:
    """Padded and packed by turns in one process, with the matmul rate measured before each."""
    config = configs.load(CASES[case])
    programs = Programs()
    with jax.set_mesh(mesh.make_mesh(config.mesh)):
        runners = {packing: Steps(config, packing, programs) for packing in PACKINGS}
        for runner in runners.values():
            runner.run(1)  # compiles
        found: dict[PackPolicy, list[dict]] = {packing: [] for packing in PACKINGS}
        for _ in range(rounds):
            for packing, runner in runners.items():
                rate = matmul_rate()
                found[packing].append(runner.run(steps) | {"matmul": rate})
    for packing, rows in found.items():
        middle = lambda f, rows=rows: statistics.median(f(row) for row in rows)
        yield {
            "case": case, "packing": packing.value, "fill": runners[packing].inputs.plan.fill,
            "tokens_per_s": middle(lambda r: r["tokens"] / r["seconds"]),
            "trained_share": middle(lambda r: r["trained"] / r["tokens"]),
            "matmul_gflops": middle(lambda r: r["matmul"] / 1e9),
            "share_done": middle(lambda r: r["done"] / r["seconds"] / r["matmul"]),
            "share_usual": middle(lambda r: r["usual"] / r["seconds"] / r["matmul"]),
        }  # fmt: skip


def first_step(case: str, packing: PackPolicy, folder: pathlib.Path, name: str) -> dict:
    """A whole `jaxtune train` of two steps in a process of its own: when its first step is logged, and its peak."""
    run = folder / f"run-{name}"
    command = [
        *(sys.executable, "-m", "jaxtune.cli", "train", str(CASES[case]), "--run-dir", str(run), "--overwrite"),
        *("--duration.steps", "2", "--eval.max-examples", "4", "--data.packing", packing.value),
        *("--compilation-cache", str(folder / "programs")),
    ]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    log, seconds = run / "metrics.jsonl", None
    while process.poll() is None:
        if seconds is None and log.exists() and b'"train"' in log.read_bytes():
            seconds = time.perf_counter() - start
        time.sleep(0.05)
    if process.returncode:
        raise RuntimeError(process.stderr.read().decode())
    if seconds is None:
        raise RuntimeError(f"{log} has no training step")
    summary = json.loads((run / "summary.json").read_text())
    return {
        "case": case, "packing": packing.value, "start": name, "first_step_s": seconds,
        "peak_memory_mb": summary["peak_memory_mb"],
    }  # fmt: skip


def write_ten_million(folder: pathlib.Path) -> None:
    """A model of ten million parameters with the built-in tokenizer; its weights are random."""
    base = resolution.model_folder(configs.load(HERE.parent.parent / "configs" / "quickstart.py").model)
    shape = dataclasses.replace(
        hf.load_config(base), d_model=320, num_layers=8, num_heads=5, num_kv_heads=5, head_dim=64, d_ff=864
    )
    params = model.init_params(shape, 0)[1]
    words = load_tokenizer(base)
    text = TextFiles(
        eos_token_id=words.eos_id, bos_token_id=words.bos_id, pad_token_id=words.pad_id, files=tuple(words.files),
        chat_template=load_template(base).source,
    )  # fmt: skip
    hf.export_model(folder, shape, params, text)


def shown(rows: Iterable[dict]) -> list[dict]:
    """The rows, printed as they come."""
    kept = []
    for row in rows:
        print(json.dumps(row), flush=True)
        kept.append(row)
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--out", type=pathlib.Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        write_ten_million(folder / "model")
        os.environ["JAXTUNE_TEN_MILLION"] = str(folder / "model")
        rows = [{"jax": jax.__version__, "cores": os.cpu_count(), "device": str(jax.devices()[0])}]
        for case in arguments.cases:
            rows += shown(throughput(case, arguments.steps, arguments.rounds))
            for number, packing in enumerate(PACKINGS):
                names = [f"cold {packing.value}", f"warm {packing.value}"]
                rows += shown(first_step(case, packing, folder / f"{case}-{number}", name) for name in names)
    if arguments.out:
        arguments.out.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
