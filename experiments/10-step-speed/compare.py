"""Runs jaxtune's step and the peers' scripts in turn on the same token set, and prints the medians.

BENCH=<folder of the peers' scripts> PEERS=<folder of their venvs and data> \\
    python experiments/10-step-speed/compare.py run --config A B --mode packed padded --repeats 2
python experiments/10-step-speed/compare.py table --peak 91.5
"""

import argparse
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
RESULTS = HERE / "results.jsonl"
PEERS = {
    "jaxtune": (None, "jaxtune_step.py", ()),
    "jaxtune, rows one by one": (None, "jaxtune_step.py", ("--batch1",)),
    "jaxtune, bfloat16": (None, "jaxtune_step.py", ("--dtype", "bfloat16")),
    "torch": ("v-torch", "hf_torch.py", ()),
    "torch, autocast": ("v-torch", "torch_autocast.py", ()),
    "torch, compiled": ("v-torch", "hf_torch.py", ("--compile",)),
    "trl": ("v-torch", "trl_sft.py", ()),
    "trl, rows one by one": ("v-torch", "trl_sft.py", ("--batch1",)),
    "tunix": ("v-tunix", "tunix_sft.py", ()),
    "torchtune": ("v-torchtune", "torchtune_sft.py", ()),
}
"""Name -> venv in $PEERS, script here or in $BENCH, arguments of its own."""
STEPS = {"A": (6, 3), "B": (2, 1)}
"""By config: steps of a run, and distinct batches; the first round of batches is left out of the medians."""


def one(name: str, config: str, mode: str, threads: int, timeout: float) -> dict:
    """The JSON line of a run, or what went wrong."""
    venv, script, own = PEERS[name]
    folder = HERE if (HERE / script).exists() else pathlib.Path(os.environ["BENCH"])
    python = sys.executable if venv is None else str(pathlib.Path(os.environ["PEERS"]) / venv / "bin" / "python")
    steps, cycle = STEPS[config]
    given = {"config": config, "mode": mode, "threads": threads, "steps": steps, "cycle": cycle, "warmup": cycle}
    options = itertools.chain.from_iterable((f"--{key}", str(value)) for key, value in given.items())
    threaded = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    environment = {**os.environ, **threaded, "TOKENIZERS_PARALLELISM": "false"}
    facts = {"name": name, "config": config, "mode": mode, "threads": threads}
    try:
        done = subprocess.run(
            [python, str(folder / script), *options, *own], env=environment, capture_output=True, text=True,
            timeout=timeout, cwd=folder,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {**facts, "error": f"over {timeout:.0f} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"peer"')]
    if not lines:
        return {**facts, "error": done.stderr[-400:]}
    kept = ("tokens_per_cpu_s", "step_cpu_s_median", "first_step_s", "peak_rss_mb", "pad_fraction", "useful_gflops",
            "tokens_per_s", "others_cpus", "measured_steps", "loss_first", "loss_last", "params", "jax", "torch",
            "transformers", "trl", "tunix", "torchtune")  # fmt: skip
    found = json.loads(lines[-1])
    return facts | {key: found[key] for key in kept if key in found}


def run(arguments: argparse.Namespace) -> None:
    cases = list(itertools.product(arguments.config, arguments.mode, arguments.peer))
    for repeat in range(arguments.repeats):
        for config, mode, name in cases if repeat % 2 == 0 else reversed(cases):
            result = one(name, config, mode, arguments.threads, arguments.timeout)
            with RESULTS.open("a") as out:
                out.write(json.dumps(result) + "\n")
            print(name, config, mode, result.get("tokens_per_cpu_s"), result.get("error", "")[-120:], flush=True)


def table(arguments: argparse.Namespace) -> None:
    runs: dict[tuple, list[dict]] = {}
    for line in RESULTS.read_text().splitlines():
        result = json.loads(line)
        if "error" not in result:
            runs.setdefault((result["config"], result["mode"], result["name"]), []).append(result)
    print("| config | rows | | runs | tokens / CPU-s | share of matmul rate | peak MB | first step s | padding |")
    print("|---|---|---|---|---|---|---|---|---|")
    for (config, mode, name), results in sorted(runs.items(), key=lambda item: (*item[0][:2], -middle(item[1]))):
        of = lambda key, results=results: statistics.median(result[key] for result in results)
        flops_per_token = of("useful_gflops") / of("tokens_per_s")
        share = flops_per_token * of("tokens_per_cpu_s") / arguments.peak
        print(
            f"| {config} | {mode} | {name} | {len(results)} | {of('tokens_per_cpu_s'):.0f} | {share:.0%} | "
            f"{of('peak_rss_mb'):.0f} | {of('first_step_s'):.1f} | {of('pad_fraction'):.0%} |"
        )


def middle(results: list[dict]) -> float:
    return statistics.median(result["tokens_per_cpu_s"] for result in results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    running = commands.add_parser("run")
    running.set_defaults(call=run)
    running.add_argument("--config", nargs="+", choices=list(STEPS), default=["A"])
    running.add_argument("--mode", nargs="+", choices=["packed", "padded"], default=["packed", "padded"])
    running.add_argument("--peer", nargs="+", choices=list(PEERS), default=["jaxtune", "torch", "trl", "tunix"])
    running.add_argument("--repeats", type=int, default=2)
    running.add_argument("--threads", type=int, default=1)
    running.add_argument("--timeout", type=float, default=400)
    tabulating = commands.add_parser("table")
    tabulating.set_defaults(call=table)
    tabulating.add_argument("--peak", type=float, required=True, help="float32 GFLOP/s of matmul_rate.py")
    arguments = parser.parse_args()
    arguments.call(arguments)


if __name__ == "__main__":
    main()
