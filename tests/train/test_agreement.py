"""Processes of a job that disagree: each ends with exit code 1 and one line that names process and thing."""

import dataclasses
import pathlib
import textwrap

import numpy as np
import pytest
from helpers import tiny_config, tiny_model
from hypothesis import given
from hypothesis import strategies as st
from local_job import finish, spawn

from jaxtune import config as configs
from jaxtune.train import agreement


def identity_of(config):
    parts = {part: {"of": part} for part in agreement.PARTS}
    return {**parts, "config": configs.to_json(config), "code": {"sha256": "c"}, "environment": {"packages": {}}}


def test_every_option_is_compared_or_a_process_own(tmp_path):
    names = agreement.compared(identity_of(tiny_config(tmp_path)), {"--resume": False})
    assert len({f"--{name.replace('_', '-')}" for name in configs.leaves()} - set(names)) == len(agreement.OWN)
    assert {"--optim.peak-lr", "--eval.every", "--checkpoint.save-every", "data", "plan", "--resume"} <= set(names)


@given(st.lists(st.sampled_from([None, "optim.peak_lr", "seed", "eval.every", "checkpoint.save_every"]), max_size=4))
def test_each_process_that_differs_is_named_with_what_differs(changes):
    base = tiny_config(pathlib.Path("nowhere"))
    gathered, expected, things = [], [], {}
    for process, name in enumerate([None, *changes]):
        config = base
        if name is not None:
            head, _, rest = name.partition(".")
            part = getattr(base, head)
            other = dataclasses.replace(part, **{rest: type(getattr(part, rest))(77)}) if rest else 77
            config = dataclasses.replace(base, **{head: other})
            expected.append((process, f"--{name.replace('_', '-')}"))
        things = agreement.compared(identity_of(config), {})
        gathered.append(agreement.digests(things))
    assert agreement.disagreements(np.stack(gathered), list(things)) == expected


def test_another_part_of_the_identity_is_named(tmp_path):
    ours = identity_of(tiny_config(tmp_path))
    for part in agreement.PARTS:
        pair = [agreement.compared(one, {}) for one in (ours, {**ours, part: {"of": "another"}})]
        gathered = np.stack([agreement.digests(things) for things in pair])
        assert agreement.disagreements(gathered, list(pair[0])) == [(1, part.replace("_", " "))]


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
def test_two_processes_with_another_rate_both_end_with_one_line(tmp_path):
    tiny_model(tmp_path / "base")
    (tmp_path / "config.py").write_text(
        textwrap.dedent(f"""
        import dataclasses, os, pathlib
        from helpers import tiny_config
        from jaxtune.config import MeshConfig, OptimConfig

        def config():
            rate = 1e-2 if os.environ["JAXTUNE_PROCESS"] == "0" else 2e-2
            return tiny_config(
                pathlib.Path({str(tmp_path)!r}), mesh=MeshConfig(data=2, devices=2), optim=OptimConfig(peak_lr=rate)
            )
        """)
    )
    job = spawn(["-m", "jaxtune.cli", "train", tmp_path / "config.py", "--run-dir", tmp_path / "run"], 2)
    logs = finish(job)
    assert [child.returncode for child in job] == [1, 1], logs
    for process, log in enumerate(logs):
        assert "process 1 differs from process 0 in --optim.peak-lr" in log and "Traceback" not in log, logs
        assert f"here, on process {process}: " in log
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
