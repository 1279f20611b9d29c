"""Run folders and sweep folders with plausible contents, made in a moment, for tests of what reads them."""

import math
import pathlib
from typing import Any

import numpy as np

from jaxtune.runs.tracker import JsonlTracker
from jaxtune.storage.documents import write_json

SIZES = {
    "qa": 4200,
    "summarization": 2800,
    "translation": 1900,
    "classification": 1400,
    "code": 900,
    "open_ended": 560,
    "math": 280,
}
EXAMPLES = {
    "qa": ("Passage: Mira Dahl keeps 14 geese near Osby.\nWho keeps the geese?", "Mira Dahl"),
    "summarization": ("Summarise: On Monday the mill closed. Rain had flooded it.", "The mill closed after a flood."),
    "translation": ("Translate into German: twenty-one", "einundzwanzig"),
    "classification": ("Is this review positive or negative?\n<b>I would buy it again</b>", "positive"),
    "code": ("What does this print?\n\nfor i in range(3):\n    print(i * i)", "0\n1\n4"),
    "open_ended": ("List three animals that lay eggs.", "- goose\n- trout\n- gecko"),
    "math": ("A box holds 12 jars. How many jars are in 7 boxes?", "84"),
}


def shares(sizes: dict[str, int], temperature: float) -> dict[str, float]:
    rates = {task: size ** (1 / temperature) for task, size in sizes.items()}
    total = sum(rates.values())
    return {task: rate / total for task, rate in rates.items()}


def mixture(sizes: dict[str, int], temperature: float, budget: int, steps: int) -> dict[str, Any]:
    nominal = shares(sizes, temperature)
    counts = {task: min(round(nominal[task] * budget), 3 * size) for task, size in sizes.items()}
    drawn = sum(counts.values())
    rows = []
    for index, (task, size) in enumerate(sizes.items()):
        prompt, response = 40 + 9 * (index % 4), 8 + 7 * (index % 3)
        rows.append(
            {
                "task": task,
                "size": size + size // 50,
                "usable": size,
                "probability": nominal[task],
                "realised": counts[task] / drawn,
                "count": counts[task],
                "epochs": counts[task] / size,
                "full_passes": counts[task] // size,
                "partial": counts[task] % size,
                "capped": counts[task] == 3 * size,
                "prompt_tokens": prompt * counts[task],
                "response_tokens": response * counts[task],
                "loss_tokens": response * counts[task],
            }
        )
    for share, total in (("token_share", ("prompt_tokens", "response_tokens")), ("loss_token_share", ("loss_tokens",))):
        whole = sum(row[name] for row in rows for name in total)
        for row in rows:
            row[share] = sum(row[name] for name in total) / whole
    entropy = -sum(row["realised"] * math.log(row["realised"]) for row in rows)
    return {
        "tasks": rows,
        "effective_tasks": math.exp(entropy),
        "total_variation": 0.5 * sum(abs(row["realised"] - row["probability"]) for row in rows),
        "budget": drawn,
        "temperature": temperature,
        "strategy": "temperature",
        "seq_len": 512,
        "rows_per_step": 16,
        "steps": steps,
        "fill": 0.987,
        "plan_hash": "b1946ac92492d2347c6235b4d2611184",
    }


def pieces(text: str) -> list[str]:
    words: list[str] = []
    for line in text.splitlines(keepends=True):
        start = 0
        for index, char in enumerate(line):
            if char in " \n":
                words += [line[start:index]] if index > start else []
                start = index
        words += [line[start:]] if start < len(line) else []
    return words


def sample(task: str, number: int) -> dict[str, Any]:
    question, answer = EXAMPLES.get(task, EXAMPLES["math"])
    before = ["<s>", "<|user|>", "\n", *pieces(question), "\n", "<|assistant|>", "\n"]
    after = [*pieces(answer), "<|end|>"]
    return {
        "id": f"{task}-{number:04d}",
        "tokens": before + after,
        "weights": [0.0] * len(before) + [1.0] * len(after),
    }


def answers(sizes: dict[str, int], right: dict[str, float], n: int, rng: np.random.Generator) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for task in sizes:
        question, answer = EXAMPLES.get(task, EXAMPLES["math"])
        correct = np.arange(n) < round(right[task] * n)
        rng.shuffle(correct)
        rows[task] = [
            {
                "id": f"{task}-test-{index}",
                "prompt": question,
                "prediction": answer if ok else answer[: len(answer) // 2] + " the of the and of",
                "reference": answer,
                "correct": bool(ok),
            }
            for index, ok in enumerate(correct)
        ]
    return rows


def write_toy_run(
    folder: pathlib.Path,
    *,
    seed: int = 0,
    steps: int = 240,
    temperature: float = 2.0,
    peak_lr: float = 1e-3,
    sizes: dict[str, int] | None = None,
    trained: tuple[str, ...] | None = None,
    finished: bool = True,
    questions: int = 60,
) -> pathlib.Path:
    """A run over `sizes`; `trained` restricts the mixture to some of them, all are evaluated."""
    rng = np.random.default_rng(seed)
    sizes = SIZES if sizes is None else sizes
    used = {task: size for task, size in sizes.items() if trained is None or task in trained}
    share = shares(used, temperature)
    quality = 1 - 0.08 * abs(math.log10(peak_lr / 1e-3)) - 0.02 * abs(math.log2(min(temperature, 16)) - 1)
    floor = {task: 0.35 + 0.12 * (index % 4) for index, task in enumerate(sizes)}
    rate = {task: quality * (2.0 + 12 * share[task]) if task in used else 0.4 for task in sizes}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(
        folder / "config.json",
        {
            "name": "quickstart",
            "seed": seed,
            "model": {"path": "builtin", "compute_dtype": "float32"},
            "mixture": {"strategy": "temperature", "temperature": temperature, "max_repeats": 3.0},
            "optim": {"peak_lr": peak_lr, "warmup_frac": 0.05, "weight_decay": 0.1},
            "batch": {"rows": 16, "micro_rows": None},
            "data": {"seq_len": 512},
        },
    )
    write_json(
        folder / "environment.json",
        {
            "jaxtune": "0.1.0",
            "commit": "3f1c0b9",
            "dirty": False,
            "python": "3.11.7",
            "packages": {"jax": "0.10.2", "flax": "0.12.8", "optax": "0.2.8"},
            "devices": {"platform": "cpu", "kind": "cpu", "count": 1, "processes": 1},
            "cpu": "AMD EPYC",
            "cpus": 2,
        },
    )
    planned = mixture(used, temperature, 8000, steps)
    write_json(folder / "mixture.json", planned)
    write_json(folder / "samples.json", {task: [sample(task, number) for number in range(3)] for task in used})
    loss = {task: lambda x, task=task: floor[task] + (3.4 - floor[task]) * math.exp(-rate[task] * x) for task in sizes}
    tracker = JsonlTracker(folder)
    done = steps if finished else steps * 2 // 3
    tokens = loss_tokens = 0

    def validation(step: int) -> dict[str, Any]:
        rise = 0.25 * max(0.0, step / steps - 0.8)
        task_loss = {task: loss[task](step / steps) + rise + 0.01 * rng.normal() for task in sizes}
        mean = sum(task_loss.values()) / len(task_loss)
        row = {"kind": "eval", "step": step, "split": "validation", "loss": mean - 0.05, "macro_loss": mean}
        return {**row, "task_loss": task_loss, "task_tokens": dict.fromkeys(sizes, 2000)}

    def scores(step: int, right: dict[str, float]) -> dict[str, Any]:
        exact = {
            task: {"exact_match": round(value * questions) / questions, "n": questions} for task, value in right.items()
        }
        macro = sum(score["exact_match"] for score in exact.values()) / len(exact)
        return {"kind": "score", "step": step, "split": "test", "task_score": exact, "macro_exact_match": macro}

    first = dict.fromkeys(sizes, 0.02)
    last = {
        task: min(0.99, max(0.05, quality * (1 - 0.9 * loss[task](1.0)) + 0.02 * rng.normal() + 0.25)) for task in sizes
    }
    evals = [validation(0)]
    tracker.log(evals[0])
    tracker.log(scores(0, first))
    for step in range(1, done + 1):
        x = step / steps
        task_loss = {task: max(0.02, loss[task](x) + 0.16 * rng.normal()) for task in used if rng.random() < 0.9}
        tokens += 8030 + int(rng.integers(-80, 80))
        loss_tokens += 2400 + int(rng.integers(-90, 90))
        warm = min(1.0, x / 0.05)
        tracker.log(
            {
                "kind": "train",
                "step": step,
                "loss": sum(loss[task](x) * share[task] for task in used) + 0.08 * rng.normal(),
                "learning_rate": peak_lr * warm * 0.5 * (1 + math.cos(math.pi * x)),
                "grad_norm": 0.6 + 2.0 * math.exp(-5 * x) + 0.1 * abs(rng.normal()),
                "tokens": tokens,
                "loss_tokens": loss_tokens,
                "tokens_per_s": 21000 + 900 * rng.normal(),
                "loss_tokens_per_s": 6300 + 300 * rng.normal(),
                "padding": max(0.0, 0.013 + 0.004 * rng.normal()),
                "task_loss": task_loss,
                "task_tokens": {task: round(2400 * share[task]) for task in task_loss},
                "skipped": False,
                "data_wait": abs(0.004 + 0.002 * rng.normal()),
                "memory_mb": 900 + 4 * min(step, 40),
            }
        )
        if step % (steps // 6) == 0 or step == done:
            evals.append(validation(step))
            tracker.log(evals[-1])
    if finished:
        final = scores(done, last)
        tracker.log(final)
        best = min(evals, key=lambda row: row["macro_loss"])
        keys = ("loss", "macro_loss", "task_loss")
        write_json(
            folder / "summary.json",
            {
                "status": "finished",
                "steps": done,
                "total_steps": steps,
                "before": {key: evals[0][key] for key in keys}
                | {"seen_task_loss": {task: 0.9 * loss for task, loss in evals[0]["task_loss"].items()}}
                | {key: scores(0, first)[key] for key in ("task_score", "macro_exact_match")},
                "after": {key: best[key] for key in keys}
                | {"seen_task_loss": {task: 0.75 * loss for task, loss in best["task_loss"].items()}}
                | {key: final[key] for key in ("task_score", "macro_exact_match")},
                "best": {"step": best["step"], "metric": "macro_mean", "value": best["macro_loss"]},
                "exported_step": best["step"],
                "tokens": tokens,
                "loss_tokens": loss_tokens,
                "skipped_steps": 0,
                "empty_steps": 0,
                "ledger": {"examples": {row["task"]: row["count"] for row in planned["tasks"]}},
                "seconds": 214.6,
                "peak_memory_mb": 1830,
            },
        )
        questions_of = {task: value["exact_match"] for task, value in final["task_score"].items()}
        write_json(
            folder / "generations.json",
            {"before": answers(sizes, first, questions, rng), "after": answers(sizes, questions_of, questions, rng)},
        )
    tracker.close()
    return folder


def write_toy_sweep(
    folder: pathlib.Path,
    *,
    temperatures: tuple[str, ...] = ("1", "2", "4", "inf"),
    rates: tuple[str, ...] = ("3e-4", "1e-3", "3e-3"),
    seeds: tuple[int, ...] = (0, 1),
    steps: int = 24,
) -> pathlib.Path:
    """A finished sweep over temperature and learning rate."""
    runs = []
    for temperature in temperatures:
        for rate in rates:
            for seed in seeds:
                name = f"temperature={temperature}_peak_lr={rate}_seed={seed}"
                where = folder / "runs" / name
                write_toy_run(where, seed=seed, steps=steps, temperature=float(temperature), peak_lr=float(rate))
                overrides = {"mixture.temperature": temperature, "optim.peak-lr": rate}
                runs.append({"name": name, "overrides": overrides, "seed": seed, "dir": f"runs/{name}"})
    axes = {"mixture.temperature": list(temperatures), "optim.peak-lr": list(rates)}
    write_json(folder / "sweep.json", {"config": {"name": "toy"}, "axes": axes, "seeds": list(seeds), "runs": runs})
    return folder
