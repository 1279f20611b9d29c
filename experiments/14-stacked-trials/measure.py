"""Four arms, one after the other and as one program: time, memory, and whether the bits are the same.

    python experiments/14-stacked-trials/measure.py step     # time of a step of an arm, by how the arms are computed
    python experiments/14-stacked-trials/measure.py sweep    # whole sweeps, each in a process of its own

Prints one JSON object a line. `quickstart` is configs/quickstart.py (1.9 million parameters, 16 rows of 128 tokens);
`adapters` is the same with LoRA of rank 16; `toy` is a model of 0.03 million parameters with 4 rows of 64 tokens, where
most of a step is not arithmetic. Steps are taken 30 times, whole sweeps have arms of 100 (`--steps`).
"""

import argparse
import contextlib
import hashlib
import json
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune import config as configs
from jaxtune.hf import folder as hf
from jaxtune.hf.text_files import TextFiles
from jaxtune.model import transformer as model
from jaxtune.model.settings import ModelConfig
from jaxtune.step import trials
from jaxtune.step.programs import Programs
from jaxtune.sweep import run as sweep
from jaxtune.sweep.groups import in_shared_room, rooms_needed
from jaxtune.sweep.language import crossed
from jaxtune.sweep.record import trials_of
from jaxtune.train import lanes, resolution
from jaxtune.train.rows import peak_memory_mb
from jaxtune.train.session import Session, open_sessions

ROOT = pathlib.Path(__file__).parent.parent.parent
AXES = {"optim.peak_lr": ["1e-3", "3e-3"], "mixture.temperature": ["1", "4"]}
STEPS, SWEEP_STEPS = 30, 100
MODES = {"separate": trials.StackMode.ORDER, "stacked": trials.StackMode.ORDER, "batched": trials.StackMode.BATCHED}
"""Ways to train the arms of a sweep; `separate` reads no mode."""
TOY = ModelConfig(
    vocab_size=1536, d_model=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, d_ff=32, max_seq_len=128
)


def settings(size: str, folder: pathlib.Path, steps: int = STEPS) -> configs.ExperimentConfig:
    """The quickstart's config, cut short and without generation; the toy is a smaller model in smaller batches."""
    options = ["--duration.steps", str(steps), "--eval.every", "0", "--eval.no-generate", "--mesh.devices", "1"]
    options += ["--data.cache-dir", str(folder / "tokens"), "--compilation-cache", str(folder / "programs")]
    if size == "toy":
        options += ["--model.path", str(toy_model(folder / "toy")), "--batch.rows", "4", "--data.seq-len", "64"]
    if size == "adapters":
        options += ["--lora.rank", "16"]
    return configs.override(configs.load(ROOT / "configs" / "quickstart.py"), options)


def toy_model(folder: pathlib.Path) -> pathlib.Path:
    """A random model with the built-in tokenizer."""
    if not folder.exists():
        base = pathlib.Path(hf.__file__).parent.parent / "assets" / "base"
        files = [base / "tokenizer.model", base / "tokenizer_config.json"]
        params = model.init_params(TOY, 0)[1]
        hf.export_model(
            folder, TOY, params, TextFiles(eos_token_id=5, bos_token_id=1, pad_token_id=3, files=tuple(files))
        )
    return folder


def arms(config: configs.ExperimentConfig, programs: Programs) -> list[Session]:
    """The arms on the device, all with one program."""
    resolved = [configs.override(config, trial.arguments()) for trial in trials_of(crossed(AXES), [0])]
    inputs = [resolution.resolve(one, show_progress=False) for one in resolved]
    rooms = rooms_needed(inputs)
    return open_sessions([in_shared_room(one, rooms) for one in inputs], programs)


def batches(placed: Session) -> list:
    """Host batches of all steps."""
    with contextlib.closing(placed.train_batches(0)) as stream:
        return [next(stream) for _ in range(STEPS)]


def alone(placed: list[Session], feeds: list[list]) -> tuple[list, list[float]]:
    """Each arm after the other; the final parameters, and for every arm the median seconds of a step."""
    ends, seconds = [], []
    for one, feed in zip(placed, feeds, strict=True):
        state, laps = one.initial_state(), []
        for number, batch in enumerate(feed):
            began = time.perf_counter()
            numbers = one.numbers_at(number)
            state, metrics = one.program.train_step(state, one.base.frozen, one.put(batch), numbers)
            jax.block_until_ready(metrics)
            laps.append(time.perf_counter() - began)
        ends.append(jax.device_get(state.params))
        seconds.append(statistics.median(laps[5:]))
    return ends, seconds


def together(placed: list[Session], feeds: list[list], *, by_vmap: bool) -> tuple[list, list[float]]:
    """All arms in one program: one after the other inside it as jaxtune does, or by `jax.vmap`."""
    first, count = placed[0], len(placed)
    mode = trials.StackMode.BATCHED if by_vmap else trials.StackMode.ORDER
    compiled = trials.build(first.program, first.base.trainable, first.mesh, count, mode)
    state = compiled.blank()
    for k, one in enumerate(placed):
        state = compiled.put(state, k, one.initial_state())
    laps = []
    for number, own in enumerate(zip(*feeds, strict=True)):
        numbers = lanes.stacked_numbers([one.numbers_at(number) for one in placed], count)
        began = time.perf_counter()
        batch = jax.tree.map(jnp.asarray, lanes.stacked_batch(dict(enumerate(own)), count))
        state, metrics = compiled.train_step(state, first.base.frozen, batch, numbers, range(count))
        jax.block_until_ready(metrics)
        laps.append(time.perf_counter() - began)
    each = [jax.device_get(compiled.take(state, k).params) for k in range(count)]
    return each, [statistics.median(laps[5:]) / count] * count


def measure_steps(size: str, folder: pathlib.Path) -> None:
    """Median time of a step of one arm, and the largest difference from the arm alone."""
    placed = arms(settings(size, folder), Programs())
    feeds = [batches(one) for one in placed]
    with jax.set_mesh(placed[0].mesh):
        ends, seconds = alone(placed, feeds)
        report = {"alone": (ends, seconds)}
        report["in order"] = together(placed, feeds, by_vmap=False)
        report["vmap"] = together(placed, feeds, by_vmap=True)
    for how, (found, laps) in report.items():
        pairs = zip(jax.tree.leaves(found), jax.tree.leaves(ends), strict=True)
        off = max(float(np.max(np.abs(a - b))) for a, b in pairs)
        line = {"size": size, "how": how, "ms per arm and step": round(1e3 * statistics.mean(laps), 2)}
        print(json.dumps(line | {"largest difference of a parameter": off}), flush=True)


def run_sweep(size: str, steps: int, folder: pathlib.Path, out: pathlib.Path, how: str) -> None:
    """A whole sweep in this process; prints its time and peak memory."""
    wall, cpu = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(sys.stderr):
        stacking = sweep.Stacking(stacked=how != "separate", mode=MODES[how])
        sweep.sweep(settings(size, folder, steps), out, trials_of(crossed(AXES), [0]), stacking=stacking)
    line = {"wall_s": round(time.perf_counter() - wall, 1), "cpu_s": round(time.process_time() - cpu, 1)}
    print(json.dumps(line | {"peak_mb": round(peak_memory_mb())}))


def measure_sweeps(size: str, folder: pathlib.Path, steps: int) -> None:
    """Sweeps with cold and warm compilation caches, the ways in turn; exported models are compared, too."""
    resolution.resolve(settings(size, folder, steps), show_progress=False)  # tokenised once, before any clock runs
    exported = {}
    for cache in ("cold", "warm"):
        for how in MODES if size == "adapters" else ("separate", "stacked"):
            if cache == "cold":
                shutil.rmtree(folder / f"programs-{how}", ignore_errors=True)
            (folder / "programs").unlink(missing_ok=True)
            (folder / f"programs-{how}").mkdir(exist_ok=True)
            (folder / "programs").symlink_to(folder / f"programs-{how}")
            out = folder / f"{size}-{how}-{cache}"
            command = [sys.executable, __file__, "one", "--size", size, "--how", how, "--steps", str(steps)]
            done = subprocess.run([*command, "--folder", folder, "--out", out], capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(done.stderr)
            models = sorted((out / "runs").glob("*/model/model.safetensors"))
            exported[how, cache] = [hashlib.sha256(path.read_bytes()).hexdigest() for path in models]
            if len(models) != 4:
                raise SystemExit(f"{out} has {len(models)} exported models, not 4")
            same = exported[how, cache] == exported["separate", "cold"]
            line = {"size": size, "steps": steps, "how": how, "cache": cache} | json.loads(done.stdout)
            print(json.dumps(line | {"models as those of the first sweep, bit for bit": same}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["step", "sweep", "one"])
    parser.add_argument("--size", choices=["quickstart", "adapters", "toy"])
    parser.add_argument("--how", choices=list(MODES))
    parser.add_argument("--steps", type=int, default=SWEEP_STEPS, help="steps of an arm of a sweep")
    parser.add_argument("--folder", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path)
    arguments = parser.parse_args()
    if arguments.what == "one":
        run_sweep(arguments.size, arguments.steps, arguments.folder, arguments.out, arguments.how)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or pathlib.Path(temporary)
        for size in [arguments.size] if arguments.size else ["toy", "quickstart", "adapters"]:
            if arguments.what == "step":
                measure_steps(size, folder)
            else:
                measure_sweeps(size, folder, arguments.steps)


if __name__ == "__main__":
    main()
