"""Kill a training run with SIGKILL at random moments, resume it, and compare its end with a run that was never killed.

    python experiments/06-kill-and-resume/kill.py --kills 30 --log experiments/06-kill-and-resume/kills.jsonl

A tiny model trains on three small tasks for more than two epochs, saving and validating every few steps. A run is
killed again and again until it ends; then the next one begins, until there were enough kills. Every line of the log is
a kill or a comparison. The script ends with code 1 if a single bit of parameters, optimizer state, metrics or ledger
differs.
"""

import argparse
import hashlib
import importlib
import json
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time
from typing import Any

CONFIG = """
import pathlib

from jaxtune.runs.retention import CheckpointConfig
from jaxtune.config import BatchConfig, DataConfig, EarlyStoppingConfig, ExperimentConfig, ModelSource
from jaxtune.evaluate import EvalConfig
from jaxtune.mixture import Budget, MixtureConfig
from jaxtune.optim import OptimConfig
from jaxtune.parallel.mesh import MeshConfig
from jaxtune.tasks import Task, from_jsonl

HERE = pathlib.Path(__file__).parent


def config():
    tasks = tuple(
        Task(name=name, splits={split: from_jsonl(HERE / f"{name}-{split}.jsonl") for split in ("train", "validation")})
        for name in ("large", "middle", "small")
    )
    return ExperimentConfig(
        name="killed",
        model=ModelSource(path=str(HERE / "base")),
        tasks=tasks,
        duration=Budget(epochs=2.5),
        mixture=MixtureConfig(temperature=2),
        data=DataConfig(seq_len=64, cache_dir=str(HERE / "cache")),
        batch=BatchConfig(rows=4, micro_rows=2),
        optim=OptimConfig(peak_lr=1e-2, warmup_frac=0.2),
        eval=EvalConfig(every=4, rows=4, generate=False),
        early_stopping=EarlyStoppingConfig(patience=50),
        checkpoint=CheckpointConfig(save_every=3, keep_latest=2, keep_best=1),
        mesh=MeshConfig(devices=1),
        compilation_cache=str(HERE / "programs"),
    )
"""
CLOCK = {"tokens_per_s", "loss_tokens_per_s", "data_wait", "memory_mb", "mfu"}
"""Fields of a metrics row that a clock or the process decides."""


def write_project(folder: pathlib.Path) -> pathlib.Path:
    """A config with three JSONL tasks of unequal size and a random two-layer model; returns the config file."""
    from jaxtune.hf import folder as hf
    from jaxtune.hf.text_files import TextFiles
    from jaxtune.model import transformer as model
    from jaxtune.model.settings import ModelConfig

    assets = pathlib.Path(hf.__file__).parent.parent / "assets" / "base"
    shipped = json.loads((assets / "config.json").read_text())
    shape = ModelConfig(
        vocab_size=shipped["vocab_size"], d_model=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, d_ff=32,
        max_seq_len=128,
    )  # fmt: skip
    special = {name: shipped[name] for name in ("eos_token_id", "bos_token_id", "pad_token_id")}
    files = [assets / "tokenizer.model", assets / "tokenizer_config.json"]
    hf.export_model(folder / "base", shape, model.init_params(shape, 0)[1], TextFiles(files=tuple(files), **special))
    for name, count in (("large", 120), ("middle", 40), ("small", 12)):
        for split, number in (("train", count), ("validation", 8)):
            lines = [json.dumps(conversation(name, split, i)) for i in range(number)]
            (folder / f"{name}-{split}.jsonl").write_text("\n".join(lines) + "\n")
    config = folder / "config.py"
    config.write_text(CONFIG)
    return config


def conversation(task: str, split: str, number: int) -> dict[str, Any]:
    word = "".join(chr(97 + (number * k + len(task)) % 26) for k in (1, 3, 7, 11)[: 2 + number % 3])
    turns = [("user", f"{task} {split}: spell {word} {number}"), ("assistant", " ".join(word))]
    return {"id": f"{task}-{split}-{number}", "messages": [{"role": role, "content": text} for role, text in turns]}


def start(config_file: pathlib.Path, run_dir: pathlib.Path) -> int:
    """A child process that trains, resuming if there is a checkpoint; the modules are imported already."""
    child = os.fork()
    if child:
        return child
    log = os.open(run_dir.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    from jaxtune import cli

    code = 1
    try:
        code = cli.main(["train", str(config_file), "--run-dir", str(run_dir), "--restartable"])
    finally:
        sys.stdout.flush()
        os._exit(code)


def last_step(run_dir: pathlib.Path) -> int:
    """The newest step in the metrics; a torn last line counts for nothing."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return max((json.loads(line)["step"] for line in lines), default=0)


def saving(run_dir: pathlib.Path) -> bool:
    """Whether a checkpoint is being written."""
    return any((run_dir / "checkpoints").glob("*.orbax-checkpoint-tmp"))


def ended(child: int) -> int | None:
    """Exit code of the child, or None while it runs."""
    found, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def run_until(child: int, run_dir: pathlib.Path, moment: str, epoch: int, draw: random.Random) -> int | None:
    """Let the child run up to the moment; its exit code if it ended before."""
    begun, grown = last_step(run_dir), draw.randint(1, 6)

    def reached() -> bool:
        match moment:
            case "at start":
                return True
            case "while saving":
                return last_step(run_dir) > begun and saving(run_dir)
            case "at an epoch boundary":
                step = last_step(run_dir)
                return step > begun and step % epoch in (0, epoch - 1)
            case _:
                return last_step(run_dir) >= begun + grown

    while (code := ended(child)) is None and not reached():
        time.sleep(0.0005)
    wait = {"at start": draw.uniform(0, 2.0), "while saving": draw.uniform(0, 0.05)}.get(moment, draw.uniform(0, 0.03))
    until = time.monotonic() + wait
    while code is None and time.monotonic() < until:
        code = ended(child)
        time.sleep(0.0005)
    return code


def checkpoints_of(run_dir: pathlib.Path) -> list[int]:
    return sorted(int(path.name) for path in (run_dir / "checkpoints").glob("[0-9]" * 8))


def end_of(config_file: pathlib.Path, run_dir: pathlib.Path) -> dict[str, Any]:
    """What must be equal: the final state leaf by leaf, every metrics row, the summary, the exported model."""
    child = os.fork()
    if not child:  # reading arrays starts JAX's threads, after which nothing may be forked
        (run_dir / "end.json").write_text(json.dumps(read_end(config_file, run_dir)))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "the end of the run cannot be read"
    return json.loads((run_dir / "end.json").read_text())


def read_end(config_file: pathlib.Path, run_dir: pathlib.Path) -> dict[str, Any]:
    import jax
    import numpy as np

    from jaxtune import config
    from jaxtune.runs.checkpoints import Checkpoints, abstract
    from jaxtune.step.programs import Programs
    from jaxtune.train import resolution
    from jaxtune.train.session import open_session

    inputs = resolution.resolve(config.load(config_file), show_progress=False)
    state = abstract(open_session(inputs, Programs()).initial_state())
    with Checkpoints(run_dir / "checkpoints", read_only=True) as checkpoints:
        step = checkpoints.latest()
        restored = checkpoints.restore(step, state)
        extra, best = checkpoints.extra(step), checkpoints.best()
    if extra.get("log"):
        extra["log"].pop("sha256")  # of rows with clocks in them; the rows themselves are compared below
    digest = lambda array: hashlib.sha256(np.asarray(array).tobytes()).hexdigest()
    leaves = jax.tree_util.tree_leaves_with_path(restored)
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((run_dir / "summary.json").read_text())
    return {
        "step": step,
        "best": best,
        "extra": extra,
        "state": {jax.tree_util.keystr(path, simple=True, separator="."): digest(leaf) for path, leaf in leaves},
        "metrics": [{key: value for key, value in row.items() if key not in CLOCK} for row in rows],
        "summary": {key: value for key, value in summary.items() if key not in ("seconds", "peak_memory_mb")},
        "model": hashlib.sha256((run_dir / "model" / "model.safetensors").read_bytes()).hexdigest(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=pathlib.Path, help="keep the runs here")
    parser.add_argument("--log", type=pathlib.Path, help="write the lines here as well")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        return campaign(options, options.folder or pathlib.Path(temporary))


def campaign(options: argparse.Namespace, folder: pathlib.Path) -> int:
    importlib.import_module("jaxtune.train")  # once, for all children

    lines: list[dict[str, Any]] = []

    def say(**line: Any) -> None:
        lines.append(line)
        print(json.dumps(line), flush=True)

    folder.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if not child:  # making arrays starts JAX's threads, after which nothing may be forked
        write_project(folder)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    config_file, whole = folder / "config.py", folder / "whole"
    code = os.waitstatus_to_exitcode(os.waitpid(start(config_file, whole), 0)[1])
    assert code == 0, whole.with_suffix(".log").read_text()
    expected = end_of(config_file, whole)
    total = expected["step"]
    epoch = round(total / 2.5)
    say(run="whole", steps=total, steps_per_epoch=epoch, leaves=len(expected["state"]))
    draw, kills, runs, failures = random.Random(options.seed), 0, 0, 0
    while kills < options.kills:
        run_dir, runs = folder / f"killed-{runs}", runs + 1
        code = None
        while code is None:
            moments = ["in a step", "in a step", "while saving", "at an epoch boundary", "at start"]
            moment = draw.choice(moments) if kills < options.kills else "never"
            before = checkpoints_of(run_dir)
            child = start(config_file, run_dir)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) if moment == "never" else run_until(
                child, run_dir, moment, epoch, draw
            )  # fmt: skip
            if code is None:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                kills += 1
                say(
                    kill=kills, run=run_dir.name, moment=moment, at_step=last_step(run_dir),
                    save_unfinished=saving(run_dir), resumed_from=max(before, default=None),
                    checkpoints=checkpoints_of(run_dir),
                )  # fmt: skip
        if code:
            say(run=run_dir.name, exit_code=code, log=run_dir.with_suffix(".log").read_text()[-2000:])
            return 1
        found = end_of(config_file, run_dir)
        different = [key for key in expected if found[key] != expected[key]]
        failures += bool(different)
        say(run=run_dir.name, equal=not different, different=different, step=found["step"], rows=len(found["metrics"]))
        if not options.folder:
            shutil.rmtree(run_dir)
    say(kills=kills, runs=runs, runs_that_differ=failures)
    if options.log:
        options.log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
