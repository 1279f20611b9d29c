"""One run folder as one self-contained page, `report.html`; it reads only the files of the folder."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

from jaxtune.errors import UserError
from jaxtune.reports import page
from jaxtune.reports.answers import answers_section
from jaxtune.reports.bars import change_bar
from jaxtune.reports.forgetting import forgetting_section
from jaxtune.reports.harness import harness_section
from jaxtune.reports.memorisation import ladder_section
from jaxtune.reports.mixture import mixture_section
from jaxtune.reports.page import Column, Html, Section, Stat, change, from_to, join, pretty, tag, words
from jaxtune.reports.training import training_section
from jaxtune.runs import seal
from jaxtune.runs.history import Run, read_run
from jaxtune.runs.results import (
    Change,
    TaskResult,
    macro_mean,
    measured,
    overfitting,
    status,
    task_results,
    when_and_where,
)
from jaxtune.science.intervals import Estimate, mean_of_estimates
from jaxtune.storage.documents import Json, number, replace_file
from jaxtune.tasks.metrics import forgetting
from jaxtune.terminal.numbers import decimal, duration, percent, quantity, signed

REPORT = "report.html"
LIVE_SECONDS = 30
"""How often the page of a run that still trains is read again by a browser."""


def write_report(run_dir: Path | str, *, at_end: bool = True) -> Path:
    """Write `report.html` into the run folder; returns its path. `at_end`: as for `changed_files`."""
    run = read_run(run_dir)
    path = run.path / REPORT
    changed = changed_files(run.path, at_end=at_end)
    replace_file(path, render(run, changed).encode())
    if (run.path / seal.SEAL).exists() and not any(line.startswith(seal.SEAL) for line in changed):
        seal.rebind(run.path, REPORT)
    return path


def changed_files(run_dir: Path, *, at_end: bool = False) -> list[str]:
    """Files that are drawn from and are not as they were at the end of the run; empty for one that has not ended.

    `at_end`: the run may be about to get its seal, and one without is no fault.
    """
    if not (run_dir / seal.SEAL).exists():
        lost = seal.has_ended(run_dir) and not at_end
        return [f"{seal.SEAL}: missing, so that no file can be compared with what the run wrote"] if lost else []
    try:
        found = seal.differences(run_dir, leave_out=(REPORT,), skip=(f"{seal.MODEL}/", f"{seal.CHECKPOINTS}/"))
    except UserError as error:
        return [str(error).removeprefix(f"{run_dir}/")]
    return list(found.problems)


def render(run: Run, changed: Sequence[str] = ()) -> str:
    """The page of a run; `changed` are its files that are not as they were at its end."""
    sections = [
        changed_section(changed) if changed else None,
        results_section(run),
        training_section(run),
        ladder_section({run.name: [run]}),
        forgetting_section([run]),
        harness_section([run]),
        mixture_section(run.tasks, run.mixture, run.config.get("mixture", {})) if run.tasks else None,
        examples_section(run),
        answers_section(run),
        facts_section(run),
    ]
    return page.page(
        str(run.config.get("name", run.name)),
        kicker=" · ".join(["jaxtune run", run.name, status(run), *when_and_where([run])]),
        lead=headline(run),
        top=headline_stats(run),
        sections=[section for section in sections if section is not None],
        foot=f"Written by jaxtune from the files in {run.place}",
        refresh=None if run.summary else LIVE_SECONDS,
    )


# Head


def headline(run: Run) -> str:
    """Headline of a run in one sentence: the model, the data, the length."""
    model = run.config.get("model", {})
    path = str(model.get("path", "a model")) if isinstance(model, dict) else str(model)
    base = "The built-in base model" if path == "builtin" else Path(path).name
    mixed = run.mixture
    parts = [f"{base} tuned on {len(run.tasks)} task{'s' if len(run.tasks) != 1 else ''}" if run.tasks else base]
    if mixed.get("budget"):
        parts.append(f"{mixed['budget']:,} examples in {mixed.get('steps', run.summary.get('total_steps', 0)):,} steps")
    if mixed.get("strategy") == "temperature":
        parts.append(f"mixed at temperature {number(mixed.get('temperature')):g}")
    elif mixed.get("strategy"):
        parts.append(f"mixing strategy {mixed['strategy']}")
    capped = sum(one.capped for one in run.tasks)
    if capped:
        parts.append(f"{capped} task{'s' if capped > 1 else ''} at the repetition cap")
    return ", ".join(parts) + "."


def headline_stats(run: Run) -> Html:
    """The figures under the heading."""
    before, after = measured(run, "before"), measured(run, "after")
    results = task_results(run)
    items = []
    scored = [one.difference for one in results if one.difference is not None]
    if scored:
        old = macro_mean([one.score_before for one in results])
        new = macro_mean([one.score_after for one in results])
        under = (
            f"mean of {len(scored)} tasks, {scored[0].n} test questions each" if len({s.n for s in scored}) == 1 else ""
        )
        items.append(Stat("Exact match", from_to(old, new, percent), under or f"mean of {len(scored)} tasks"))
    if "loss" in after:
        loss = from_to(number(before.get("loss")), number(after["loss"]), decimal)
        items.append(Stat("Validation loss", loss, "nats per token, over all tasks"))
    if run.summary.get("best", {}).get("step", -1) >= 0:
        best = run.summary["best"]
        items.append(
            Stat(
                "Best checkpoint",
                f"step {best['step']:,}",
                f"of {run.summary.get('steps', 0):,}, by {words(best['metric'])}",
            )
        )
    if run.train:
        last = run.train[-1]
        trained = last.loss_tokens / last.tokens if last.tokens else math.nan
        items.append(Stat("Tokens", quantity(last.tokens), f"{percent(trained)} carry loss"))
    if run.summary.get("seconds"):
        memory = run.summary.get("peak_memory_mb")
        under = f"peak memory {memory / 1024:.1f} GiB" if memory else ""
        items.append(Stat("Time", duration(float(run.summary["seconds"])), under))
    return page.stats(items)


# Results


def results_section(run: Run) -> Section | None:
    """Before and after, task by task."""
    results = task_results(run)
    if not any(math.isfinite(one.loss_after) or math.isfinite(one.score_after) for one in results):
        return None
    shown = ResultColumns(
        prompts=any(math.isfinite(one.prompt_after) for one in results),
        gaps=any(math.isfinite(one.gap_after) for one in results),
        scored=any(one.difference is not None for one in results),
        others=sorted({name for one in results for name in one.others}),
    )
    columns = [
        Column("Task", number=False),
        Column("before"),
        Column("after"),
        Column("change", title="After minus before, nats per token; lower is better"),
    ]
    groups = [("", 1), ("Validation loss", 3)]
    if shown.prompts:
        columns += [
            Column("before", title="Of the prompts, which the run trains on; it decides nothing"),
            Column("after"),
        ]
        groups += [("Prompt loss", 2)]
    if shown.gaps:
        columns += [Column("gap before", title="Validation minus trained examples, before tuning: two samples differ")]
        columns += [Column("gap after", title="The same after tuning; what it grew by can come of training")]
        groups += [("Train-validation gap", 2)]
    if shown.scored:
        columns += [
            Column("before"),
            Column("after"),
            Column("change", title="Percentage points"),
            Column("95% interval"),
        ]
        columns += [Column("0 to 100%", number=False)]
        groups += [("Exact match on test questions", 5)]
    columns += [Column(words(name), title="Before → after, 95% interval of the change") for name in shown.others]
    groups += [("Other metrics", len(shown.others))] if shown.others else []
    held = {one.task for one in run.tasks}
    rows = [result_row(one, index, shown, held) for index, one in enumerate(results)]
    parts: list[object] = [page.table(columns, rows, total=total_row(results, shown), groups=groups)]
    parts += [tag("p", note, class_="note") for note in result_notes(run, results, held)]
    tuned = "the exported checkpoint" if run.summary.get("after") else "the unfinished run's latest parameters"
    lead = f"The base model and {tuned} on the same validation and test examples."
    return Section("results", "Before and after", lead, parts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResultColumns:
    """Groups of columns that the table of results has besides validation loss."""

    prompts: bool
    gaps: bool
    scored: bool
    others: Sequence[str]
    """Metrics beside exact match."""


def result_row(one: TaskResult, index: int, shown: ResultColumns, held: set[str]) -> list[object]:
    """A task's line in the table of results."""
    name = page.swatch(index, one.task)
    if held and one.task not in held:
        name = join([name, " ", tag("span", "not trained on", class_="tag")])
    row: list[object] = [name, decimal(one.loss_before), decimal(one.loss_after)]
    row.append(change(one.loss_after - one.loss_before, 3, better=-1))
    if shown.prompts:
        row += [decimal(one.prompt_before), decimal(one.prompt_after)]
    if shown.gaps:
        row += [signed(one.gap_before, 3), signed(one.gap_after, 3)]
    if shown.scored:
        row += score_cells(one.score_before, one.score_after, one.difference, page.colour(index))
    return row + [other_cell(one.others.get(name)) for name in shown.others]


def score_cells(before: float, after: float, difference: Estimate | None, colour: str) -> list[object]:
    clear = difference is not None and (difference.clear or not math.isfinite(difference.low))
    bar = Html(change_bar(before, after, colour=colour))
    step = change(after - before, 1, better=1, scale=100, clear=clear)
    return [percent(before), percent(after), step, points_interval(difference), bar]


def points_interval(estimate: Estimate | None) -> str:
    """An interval of a share, in percentage points."""
    if estimate is None or not math.isfinite(estimate.low):
        return "–"
    return f"{signed(estimate.low, 1, 100)} to {signed(estimate.high, 1, 100)}"


def other_cell(found: Change | None) -> object:
    """A metric before and after, and below it the interval of its change."""
    if found is None:
        return ""
    text = f"{decimal(found.before)} → {decimal(found.after)}"
    if found.difference is None or not math.isfinite(found.difference.low):
        return text
    interval = f"{signed(found.difference.low, 3)} to {signed(found.difference.high, 3)}"
    return tag("div", text, tag("div", interval, class_="dim", title="95% interval of the change, by question"))


def total_row(results: Sequence[TaskResult], shown: ResultColumns) -> list[object]:
    """The means over tasks below the table of results."""
    old, new = macro_mean([one.loss_before for one in results]), macro_mean([one.loss_after for one in results])
    row: list[object] = ["Mean of tasks", decimal(old), decimal(new), change(new - old, 3, better=-1)]
    if shown.prompts:
        row += [decimal(macro_mean([one.prompt_before for one in results]))]
        row += [decimal(macro_mean([one.prompt_after for one in results]))]
    if shown.gaps:
        row += [signed(macro_mean([one.gap_before for one in results]), 3)]
        row += [signed(macro_mean([one.gap_after for one in results]), 3)]
    if shown.scored:
        both = [one for one in results if one.difference is not None]
        estimate = mean_of_estimates([one.difference for one in both if one.difference is not None])
        before, after = macro_mean([one.score_before for one in both]), macro_mean([one.score_after for one in both])
        row += score_cells(before, after, estimate, "--c:var(--soft)")
    return row + [""] * len(shown.others)


def result_notes(run: Run, results: Sequence[TaskResult], held: set[str]) -> list[str]:
    """Notes under the table of results: the origin of its numbers, and signs of overfitting."""
    notes = []
    if any(one.difference is not None for one in results):
        notes.append(
            "Intervals are paired by question where all answers were kept (Agresti and Min 2005). Changes are coloured "
            "when the interval leaves out zero. Ring: before; disc: after."
        )
    rising = overfitting(run)
    if rising:
        listed = ", ".join(
            f"{task} (lowest {low:.3f} at step {step:,}, last {last:.3f})" for task, step, low, last in rising
        )
        notes.append(f"Validation loss rose again before the end: {listed}.")
    if held and any(one.task not in held for one in results):
        notes.append(forgetting_note(results, held))
    return notes


def forgetting_note(results: Sequence[TaskResult], trained: set[str]) -> str:
    """Note on the mean loss change of tasks that were not trained on."""
    kept = [one for one in results if one.task not in trained]
    words = [f"their validation loss changed by {signed(macro_mean([o.loss_after - o.loss_before for o in kept]), 3)}"]
    scored = {one.task: (one.score_before, one.score_after) for one in kept if one.difference is not None}
    if scored:
        lost = forgetting({t: s[0] for t, s in scored.items()}, {t: s[1] for t, s in scored.items()}, trained)
        words.append(f"their exact match by {signed(-macro_mean(list(lost.values())), 1, 100)} points")
    return f"Forgetting, {len(kept)} task{'s' * (len(kept) != 1)} not trained on: {', '.join(words)} (means)."


# Examples


def examples_section(run: Run) -> Section | None:
    """Examples of each task with the trained tokens marked."""
    order = {task: index for index, task in enumerate(run.task_names)}
    return page.examples_section(run.samples, order) if run.samples else None


# Facts


def changed_section(changed: Sequence[str]) -> Section:
    """A warning that what is drawn is not what the run wrote."""
    lead = (
        "These files are not as they were when the run ended: the page draws what they say now, not what was measured."
    )
    return Section("changed", "Changed after the run", lead, [tag("ul", *(tag("li", line) for line in changed))])


def facts_section(run: Run) -> Section:
    """Section of the facts that name the run and repeat it."""
    environment, summary = run.environment, run.summary
    packages = environment.get("packages", {})
    pairs: list[tuple[str, object]] = [("Run folder", run.place), ("Status", status(run))]
    pairs += [("Seed", run.config["seed"])] if "seed" in run.config else []
    pairs += [("Plan hash", tag("code", run.mixture["plan_hash"]))] if run.mixture.get("plan_hash") else []
    pairs += ledger_facts(run)
    pairs += [
        (f"Changed after step {entry['after_step']}", f"{name}: {value['then']} → {value['now']} ({entry['date']})")
        for entry in run.manifest.get("changes", [])
        for name, value in entry["options"].items()
    ]
    if environment.get("commit"):
        pairs.append(
            ("Code", tag("code", f"{environment['commit']}{', with local changes' * bool(environment.get('dirty'))}"))
        )
    pairs += [("Python", environment["python"])] if environment.get("python") else []
    if packages:
        pairs.append(("Packages", ", ".join(f"{name} {version}" for name, version in sorted(packages.items()))))
    pairs += [("Devices", devices(environment))] if environment.get("devices") else []
    for name, key in (("Skipped updates", "skipped_steps"), ("Updates without a trained token", "empty_steps")):
        pairs += [(name, f"{summary[key]:,}")] if summary.get(key) else []
    files = {"Configuration": run.config, "Environment": environment, "Manifest": run.manifest, "Summary": summary}
    parts = [page.facts(pairs)]
    parts += [page.details(name, tag("pre", pretty(value))) for name, value in files.items() if value]
    return Section("facts", "Run facts", "", parts)


def ledger_facts(run: Run) -> list[tuple[str, object]]:
    """Examples that were in the batches against those that the plan holds."""
    counted = run.summary.get("ledger", {}).get("examples")
    if not counted or not run.tasks:
        return []
    drawn, planned = sum(counted.values()), sum(one.count for one in run.tasks)
    text = f"{drawn:,} of {planned:,} planned"
    if run.summary.get("status") != "finished":
        return [("Examples trained on", text)]
    other = [one.task for one in run.tasks if counted.get(one.task, 0) != one.count]
    verdict = f"; not as planned: {', '.join(other)}" if other else "; every task as planned"
    return [("Examples trained on", tag("span", text, verdict, class_="bad" if other else None))]


def devices(environment: Json) -> str:
    """Number and kind of devices, and the processor."""
    found = environment["devices"]
    processes = found.get("processes", 1)
    text = f"{found.get('count', 1):,} × {found.get('kind', '?')} ({found.get('platform', '?')})"
    text += f" in {processes:,} processes" if processes > 1 else ""
    return (
        f"{text}; {environment['cpus']:,} cores of {environment.get('cpu', '?')}" if environment.get("cpus") else text
    )
