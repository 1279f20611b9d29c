"""lm-eval's tasks before and after a short tuning, by jaxtune and by lm-eval's backend `hf` on the same folders.

Writes results.csv (every metric) and agreement.csv (differences question by question) beside this file; continues where
it was stopped. Call it from the root of the repository; it needs the extra `parity`.
"""

import argparse
import csv
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtune import config as configs
from jaxtune.evaluate.harness import BOOTSTRAP, LmEvalConfig, manager_of, row_of, scores_of
from jaxtune.runs.harness import error_name, metrics_of
from jaxtune.runs.history import read_run
from jaxtune.runs.results import measured

HERE = Path(__file__).parent
RATE = "1e-3"
RESULTS = ("model", "backend", "task", "metric", "value", "error", "questions")
AGREEMENT = ("model", "task", "questions", "what", "value")
Scores = Mapping[str, Mapping[str, Any]]
Rows = Mapping[str, Sequence[Mapping[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Found:
    """What one backend says of one model: metrics by task, questions by task."""

    scores: Scores
    rows: Rows


def ours(run: Path, when: str) -> Found:
    """What jaxtune measured in a run."""
    rows = json.loads((run / "lm_eval.json").read_text())[when]
    return Found(measured(read_run(run), when)["lm_eval"], rows)


def theirs(folder: str, settings: LmEvalConfig) -> Found:
    """What lm-eval's own backend says of a model folder, in float32 on CPUs."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=folder, device="cpu", dtype="float32", batch_size=8)
    found = simple_evaluate(
        model=model, tasks=list(settings.tasks), task_manager=manager_of(settings), apply_chat_template=settings.chat,
        fewshot_as_multiturn=settings.chat, bootstrap_iters=BOOTSTRAP,
    )  # fmt: skip
    assert found is not None
    rows = {
        task: [json.loads(json.dumps(row_of(one))) for one in samples] for task, samples in found["samples"].items()
    }
    return Found(scores_of(found), rows)


def lines(model: str, backend: str, found: Found) -> Iterator[list[Any]]:
    """Rows of results.csv."""
    for task, scores in found.scores.items():
        for metric in metrics_of(scores):
            error = scores.get(error_name(metric), "")
            yield [model, backend, task, metric, scores[metric], error, scores["n"]]


def numbers(value: Any) -> list[float]:
    """All numbers in nested lists."""
    return [one for part in value for one in numbers(part)] if isinstance(value, list) else [float(value)]


def differences(model: str, mine: Found, other: Found) -> Iterator[list[Any]]:
    """Rows of agreement.csv: of log-likelihoods the largest difference, of texts how many are equal."""
    for task, rows in mine.rows.items():
        pairs = [(a["answer"], b["answer"]) for a, b in zip(rows, other.rows[task], strict=True)]
        if isinstance(pairs[0][0][0], str):
            yield [model, task, len(pairs), "equal texts", sum(a == b for a, b in pairs)]
            continue
        gaps = [abs(x - y) for a, b in pairs for x, y in zip(numbers(a), numbers(b), strict=True)]
        yield [model, task, len(pairs), "largest difference of log p, nats", max(gaps)]


def write(name: str, heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    with open(HERE / name, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([heads, *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description="Experiment 27-lm-eval")
    parser.add_argument("--runs", type=Path, default=Path("runs/27-lm-eval"), help="sweep folder")
    parser.add_argument("--seeds", nargs="+", default=["0", "1", "2"])
    arguments = parser.parse_args()
    begun = time.monotonic()
    words = ["sweep", str(HERE / "config.py"), "--sweep-dir", str(arguments.runs)]
    words += ["--grid", f"optim.peak_lr={RATE}", "--seeds", *arguments.seeds]
    print("jaxtune", *words, flush=True)
    subprocess.run([sys.executable, "-m", "jaxtune", *words], check=True)
    print(f"tuned and measured: {time.monotonic() - begun:.0f} s", flush=True)
    runs = {seed: arguments.runs / "runs" / f"peak_lr={RATE}_seed={seed}" for seed in arguments.seeds}
    first = arguments.seeds[0]
    settings = configs.load(HERE / "config.py")
    by_model = {"base": ours(runs[first], "before")} | {
        f"tuned, seed {s}": ours(run, "after") for s, run in runs.items()
    }
    rows = [row for model, found in by_model.items() for row in lines(model, "jaxtune", found)]
    agreement: list[list[Any]] = []
    write("results.csv", RESULTS, rows)
    for model, folder in {"base": settings.model.path, f"tuned, seed {first}": str(runs[first] / "model")}.items():
        begun = time.monotonic()
        found = theirs(folder, settings.eval.lm_eval)
        print(f"hf on {model}: {time.monotonic() - begun:.0f} s", flush=True)
        rows += lines(model, "hf", found)
        agreement += differences(model, by_model[model], found)
        write("results.csv", RESULTS, rows)
        write("agreement.csv", AGREEMENT, agreement)
    for row in [*rows, *agreement]:
        print(*row)


if __name__ == "__main__":
    main()
