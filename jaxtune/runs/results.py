"""Results of a run: losses and scores before and after tuning, with intervals; its status."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxtune.runs.history import Run
from jaxtune.science.intervals import Estimate, independent_proportions, mean_in_clusters, paired_proportions
from jaxtune.storage.documents import Json, number


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
    """A metric before and after tuning; NaN where it was not measured."""

    before: float
    after: float
    difference: Estimate | None = None
    """After minus before, by question; None where answers of one side were not kept."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskResult:
    """A task before and after tuning; NaN where it was not measured."""

    task: str
    loss_before: float
    loss_after: float
    seen_before: float
    """Loss of training examples before tuning: of the first that the run meets, as many as validation has."""
    seen_after: float
    """Loss of training examples that the run had met, after tuning."""
    prompt_before: float
    """Validation loss of the prompts, where the run trains on them; it decides nothing."""
    prompt_after: float
    score_before: float
    score_after: float
    difference: Estimate | None
    """Change in exact match; None without scores on both sides."""
    others: Mapping[str, "Change"]
    """Further metrics."""

    @property
    def gap_before(self) -> float:
        """The train-validation gap before tuning: how much harder the validation examples are, whoever answers."""
        return self.loss_before - self.seen_before

    @property
    def gap_after(self) -> float:
        """Validation loss minus loss of trained examples, nats per token; NaN if not measured.

        These are two samples, so only what it grew by since `gap_before` can come of training.
        """
        return self.loss_after - self.seen_after


def measured(run: Run, when: str) -> Json:
    """Losses and scores `before` or `after` tuning: the summary's, or for an unfinished run its first or last rows."""
    recorded = run.summary.get(when)
    if recorded:
        return recorded
    at = 0 if when == "before" else -1
    evals = [row for row in run.evals if when == "after" or row.step == 0]
    scores = [row for row in run.scores if (row.step > 0) == (when == "after")]
    found: Json = {}
    if evals:
        found |= {"loss": evals[at].loss, "macro_loss": evals[at].macro_loss, "task_loss": evals[at].task_loss}
        found |= {name: evals[at].extra.get(name, {}) for name in ("seen_task_loss", "task_prompt_loss")}
    if scores:
        found |= {"task_score": scores[at].task_score, "macro_exact_match": scores[at].macro_exact_match}
        found |= {name: scores[at].extra.get(name, {}) for name in ("task_interval", "lm_eval")}
    return found


def task_results(run: Run) -> list[TaskResult]:
    """Every task that was evaluated, in the run's order."""
    before, after = measured(run, "before"), measured(run, "after")
    results = []
    for task in run.task_names:
        old, new = (side.get("task_score", {}).get(task, {}) for side in (before, after))
        others = {
            metric: Change(
                before=number(old.get(metric)), after=number(new.get(metric)),
                difference=metric_difference(run, task, metric),
            )
            for metric in {**old, **new}
            if metric not in ("exact_match", "n")
        }  # fmt: skip
        results.append(
            TaskResult(
                task=task,
                loss_before=number(before.get("task_loss", {}).get(task)),
                loss_after=number(after.get("task_loss", {}).get(task)),
                seen_before=number(before.get("seen_task_loss", {}).get(task)),
                seen_after=number(after.get("seen_task_loss", {}).get(task)),
                prompt_before=number(before.get("task_prompt_loss", {}).get(task)),
                prompt_after=number(after.get("task_prompt_loss", {}).get(task)),
                score_before=number(old.get("exact_match")),
                score_after=number(new.get("exact_match")),
                difference=score_difference(run, task, old, new),
                others=others,
            )
        )
    return results


def score_difference(run: Run, task: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Estimate | None:
    """Change in exact match: paired by question where every answer of both sides was kept, else as two samples.

    Questions that share a source count as one observation of it.
    """
    if "exact_match" not in before or "exact_match" not in after:
        return None
    n = int(after.get("n", 0))
    old, new = (
        {row["id"]: bool(row["correct"]) for row in run.generations.get(side, {}).get(task, [])}
        for side in ("before", "after")
    )
    if n and old.keys() == new.keys() and len(old) == n:
        if any("source" in row for row in run.generations["after"][task]):
            return metric_difference(run, task, "exact_match")
        return paired_proportions(list(old.values()), [new[key] for key in old])
    if n and n == int(before.get("n", 0)):
        return independent_proportions(float(before["exact_match"]), float(after["exact_match"]), n)
    return Estimate(mean=float(after["exact_match"]) - float(before["exact_match"]), n=n)


def metric_difference(run: Run, task: str, metric: str) -> Estimate | None:
    """Change in a metric of a task by question, sources in place of questions where some share one.

    None unless both sides have the same questions with that metric.
    """
    old, new = (
        {row["id"]: row for row in run.generations.get(side, {}).get(task, []) if metric in row.get("scores", {})}
        for side in ("before", "after")
    )
    if not old or old.keys() != new.keys():
        return None
    differences = [number(new[key]["scores"][metric]) - number(old[key]["scores"][metric]) for key in old]
    return mean_in_clusters(differences, [new[key].get("source", ("alone", key)) for key in old])


def macro_mean(values: Sequence[float]) -> float:
    """Mean over tasks of what was measured."""
    kept = [value for value in values if math.isfinite(value)]
    return math.fsum(kept) / len(kept) if kept else math.nan


def when_and_where(runs: Sequence[Run]) -> list[str]:
    """The time at which the runs began, and the devices of the first; empty where nothing was recorded."""
    found = runs[0].environment.get("devices", {})
    kind = runs[0].environment.get("cpu") if found.get("platform") == "cpu" else found.get("kind")
    count = runs[0].environment.get("cpus") if found.get("platform") == "cpu" else found.get("count")
    where = f"{count:,} × {kind}" if kind and isinstance(count, int) else ""
    times = [str(run.environment.get("started", ""))[:16].replace("T", " ") for run in runs]
    known = [time for time in times if time]
    when = f"{' to '.join(dict.fromkeys((min(known), max(known))))} UTC" if known else ""
    return [text for text in (when, where) if text]


def status(run: Run) -> str:
    """End of the run, in words."""
    words = {
        "finished": "finished",
        "early_stopped": "stopped early: validation no longer improved",
        "stopped": "stopped before its end",
        "paused": "waits at a rung for the other settings of its sweep",
        "halved": "went no further than a rung: other settings of its sweep did better there",
        "failed": "failed",
    }
    step = run.train[-1].step if run.train else 0
    recorded = run.summary.get("status")
    return words.get(str(recorded), str(recorded)) if recorded else f"not finished, at step {step:,}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """Results of a run: macro means over trained tasks and the tasks' own numbers; NaN where not measured."""

    loss: float
    """Validation loss, mean over trained tasks, nats per token."""
    exact_match: float
    """Exact match on the test questions, mean over trained tasks."""
    task_loss: Mapping[str, float]
    task_exact_match: Mapping[str, float]
    task_scores: Mapping[str, Mapping[str, float]]
    """Task -> {metric: score} of the other metrics."""

    def flat(self, tasks: Iterable[str]) -> Json:
        """Losses and scores by task as columns of a table; tasks without a number have NaN."""
        row = {f"loss/{task}": self.task_loss.get(task, math.nan) for task in tasks}
        row |= {f"exact_match/{task}": self.task_exact_match.get(task, math.nan) for task in tasks}
        return row | {
            f"{metric}/{task}": value for task, scores in self.task_scores.items() for metric, value in scores.items()
        }


def reached(run: Run, when: str = "after") -> Outcome:
    """Losses and scores of a run, `before` or `after` tuning."""
    numbers = measured(run, when)
    task_loss = {task: number(value) for task, value in numbers.get("task_loss", {}).items()}
    scores = {
        task: number(score.get("exact_match"))
        for task, score in numbers.get("task_score", {}).items()
        if "exact_match" in score
    }
    held = set(run.mixture.get("held_out", []))
    return Outcome(
        loss=macro_mean([value for task, value in task_loss.items() if task not in held]),
        exact_match=macro_mean([value for task, value in scores.items() if task not in held]),
        task_loss=task_loss,
        task_exact_match=scores,
        task_scores={
            task: {name: number(value) for name, value in score.items() if name not in ("exact_match", "n")}
            for task, score in numbers.get("task_score", {}).items()
        },
    )


def overfitting(run: Run, by: float = 0.02) -> list[tuple[str, int, float, float]]:
    """Tasks whose last validation loss is more than the share `by` above their lowest: task, step, lowest, last."""
    found = []
    for task in run.task_names:
        curve = [(row.task_loss[task], row.step) for row in run.evals if task in row.task_loss]
        if len(curve) > 1:
            low, step = min(curve)
            if curve[-1][0] > (1 + by) * low:
                found.append((task, step, low, curve[-1][0]))
    return found


def fixed_answers(run: Run) -> dict[int, dict[tuple[str, str], Json]]:
    """Step of a validation -> (task, id of a fixed question) -> the answer given then."""
    return {
        row["step"]: {(task, one["id"]): one for task, rows in row["answers"].items() for one in rows}
        for row in run.answers
    }


def exact_over_steps(run: Run) -> list[tuple[int, float]]:
    """Share of the fixed questions that were answered exactly, by step, from the base model to the tuned one."""
    asked = fixed_answers(run)
    if not asked:
        return []
    keys = set(next(iter(asked.values())))
    by_step = dict(asked)
    for when, step in (("before", 0), ("after", run.summary.get("exported_step"))):
        rows = {(t, one["id"]): one for t, many in run.generations.get(when, {}).items() for one in many}
        if step is not None and keys <= set(rows):
            by_step[step] = {key: rows[key] for key in keys}
    return [(step, sum(one["correct"] for one in by_step[step].values()) / len(keys)) for step in sorted(by_step)]
