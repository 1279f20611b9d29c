"""Preview of a config's training data: mixture, lengths, masks. In the terminal, as JSON, or as a page."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from rich.console import Console
from rich.text import Text

from jaxtune.batch import Example
from jaxtune.chat import Reasoning
from jaxtune.chat import mask_view as masks
from jaxtune.config import ExperimentConfig, to_json
from jaxtune.data.subset import length_table
from jaxtune.errors import UserError
from jaxtune.mixture import Alternative, alternatives, parse_alternatives
from jaxtune.mixture.settings import Budget
from jaxtune.plan import order
from jaxtune.reports.preview import render
from jaxtune.storage.documents import Json, check_writable, plain, replace_file
from jaxtune.terminal import tables as terminal
from jaxtune.terminal.display import Phase
from jaxtune.terminal.foreign import print_json
from jaxtune.train import documents, plans, resolution
from jaxtune.train.resolution import TRAIN, Inputs

BINS = 24
TASKS_SHOWN = 24
"""Tasks whose examples and histograms are printed; the tables hold them all."""
BLOCKS = " ▁▂▃▄▅▆▇█"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShownExamples:
    """Training examples that a preview shows: the first of the order, or those that are asked for."""

    examples: int = 2
    """At most so many of each task."""
    task: str | None = None
    """Those of this task only."""
    id: str | None = None
    """The one whose record has this id, or stands at this FILE:LINE."""
    index: int | None = None
    """The one of this record, counted from 0 in the task's training split."""
    search: str | None = None
    """Those whose text holds this, whatever the case."""

    def __post_init__(self):
        if self.examples < 0:
            raise UserError(f"--examples must be at least 0, got {self.examples}")
        asked = [name for name in ("id", "index", "search") if getattr(self, name) is not None]
        if len(asked) > 1:
            raise UserError(f"give one of --{' and --'.join(asked)}")

    @property
    def asks(self) -> str:
        """The request in words; empty where any example will do."""
        asked = [(name, getattr(self, name)) for name in ("id", "index", "search")]
        return " ".join(f"--{name} {value}" for name, value in asked if value is not None)


def run(
    config: ExperimentConfig,
    shown: ShownExamples | None = None,
    *,
    html: Path | None = None,
    compare: str | None = None,
    as_json: bool = False,
) -> None:
    """Print the preview of a config, or its JSON; with `html`, write the page too."""
    shown = shown or ShownExamples()
    compared = parse_alternatives(compare) if compare is not None else None
    if html is not None:
        check_writable(html)
    with Phase("preparing"):
        inputs = resolution.resolve(config, questions=False, show_progress=not as_json)
    if shown.task is not None and shown.task not in inputs.tasks:
        raise UserError(f"no task {shown.task!r} in the mixture; it has {', '.join(inputs.tasks)}")
    numbers = chosen(inputs, shown)
    data = gather(inputs, numbers)
    other = (compared[0], compare_values(inputs, *compared)) if compared is not None else None
    if html is not None:
        replace_file(html, render(data, other).encode())
    if as_json:
        if other is not None:
            data["compare"] = {"option": other[0], "values": [one.to_json() for one in other[1]]}
        print_json(data)
        return
    out = terminal.console()
    if not shown.asks:
        print_plan(out, data)
    print_chosen(out, inputs, numbers)
    if other is not None:
        print_alternatives(out, *other)
    if html is not None:
        out.print(f"\n{html}", markup=False)


def chosen(inputs: Inputs, shown: ShownExamples) -> dict[str, list[int]]:
    """Numbers of the examples to show, by task; raises UserError where an example is asked for that is not there."""
    names = [name for name in inputs.tasks if shown.task in (None, name)]
    found = {name: list(itertools.islice(matching(inputs, name, shown), shown.examples)) for name in names}
    if shown.asks and not any(found.values()):
        raise UserError(
            f"no training example of {', '.join(names)} fits {shown.asks}; an example that was dropped is not there: "
            "`jaxtune validate` names those, and the preview without this option counts them"
        )
    return {name: numbers for name, numbers in found.items() if numbers or not shown.asks}


def matching(inputs: Inputs, task: str, shown: ShownExamples) -> Iterator[int]:
    """Numbers of a task's examples that fit the request, in the order of the first epoch."""
    store, source = inputs.train[task], inputs.tasks[task].source(TRAIN)
    for number in map(int, order.permutation(inputs.config.seed, task, 0, len(store))):
        record = store.record(number) if shown.asks else 0
        if shown.index is not None and record != shown.index:
            continue
        if shown.id is not None and shown.id not in (str(source[record].get("id")), source.where(record)):
            continue
        if shown.search is not None:
            text = inputs.tokenizer.decode(store.example(number).tokens.tolist())
            if shown.search.casefold() not in text.casefold():
                continue
        yield number


def mixture_of(config: ExperimentConfig, budget: int | None = None) -> list[Json]:
    """The mixture's rows for a config, from its tokenised data; `budget` replaces its duration, in examples."""
    if budget is not None:
        config = dataclasses.replace(config, duration=Budget(examples=budget))
    inputs = resolution.resolve(config, questions=False)
    return inputs.plan.to_json()["tasks"]


def gather(inputs: Inputs, numbers: Mapping[str, Sequence[int]]) -> Json:
    """Everything that the preview shows, as plain data; `numbers` are the examples by task."""
    return {
        "config": plain(to_json(inputs.config)),
        "facts": facts(inputs),
        "mixture": plain(documents.mixture_json(inputs)),
        "lengths": lengths(inputs),
        "sources": sources(inputs),
        "samples": {name: [documents.sample(inputs, name, i) for i in each] for name, each in numbers.items()},
    }


REASONING = {
    Reasoning.LAST: "as the template shows it; turns shown without theirs carry no weight",
    Reasoning.KEEP: "every turn's",
    Reasoning.DROP: "taken out",
}
"""In words, what is trained of the assistant's reasoning."""


def facts(inputs: Inputs) -> dict[str, str]:
    """Facts about tokenizer, template, lengths and plan, for the preview's list."""
    data, plan = inputs.config.data, inputs.plan
    return {
        "Model": "the built-in base model"
        if inputs.config.model.path == resolution.BUILTIN
        else inputs.config.model.path,
        "Tokenizer": f"{inputs.tokenizer.vocab_size:,} tokens",
        "Chat template": inputs.template.described,
        "Reasoning": REASONING[inputs.template.reasoning],
        "Trained": f"{data.mask_policy.value.replace('_', ' ')}, prompt loss weight {data.prompt_loss_weight:g}",
        "Too long": data.length_policy.value.replace("_", " "),
        "Size": documents.size_in_words(inputs),
        "Rows": f"{plan.rows_per_step:,} of {plan.seq_len:,} tokens a step, {plan.packing.value.replace('_', ' ')}",
        "Held out": ", ".join(inputs.held) or "nothing",
        "Without validation": ", ".join(inputs.unwatched) or "no task",
        "Plan hash": plan.hash,
    }


def sources(inputs: Inputs) -> list[Json]:
    """Source and detected shape of each task's training records."""
    return [
        {
            "task": name,
            "source": source.name,
            "shape": task.shape_in(TRAIN).value,
            "records": len(source),
            "wordings": task.num_templates,
        }
        for name, task in inputs.tasks.items()
        for source in [task.source(TRAIN)]
    ]


def lengths(inputs: Inputs) -> Json:
    """Quantiles and histograms of tokens and trained tokens per example, all tasks on the same bins."""
    every = {
        "tokens": {name: np.asarray(store.lengths).ravel() for name, store in inputs.train.items()},
        "loss_tokens": {name: np.asarray(store.loss_lengths).ravel() for name, store in inputs.train.items()},
    }
    edges = {key: bin_edges(max(int(a.max(initial=1)) for a in arrays.values())) for key, arrays in every.items()}
    return {
        "seq_len": inputs.config.data.seq_len,
        "edges": {key: bins.tolist() for key, bins in edges.items()},
        "tasks": {name: {key: spread(every[key][name], edges[key]) for key in every} for name in inputs.train},
    }


def bin_edges(longest: int) -> Int[np.ndarray, " edges"]:
    """At most `BINS` bins of one width, a whole number of tokens, from 0 to beyond the longest."""
    width = -(-(longest + 1) // BINS)
    return np.arange(0, longest + 1 + width, width)


def spread(values: Int[np.ndarray, " n"], edges: Int[np.ndarray, " edges"]) -> Json:
    """Mean, median, 95th percentile, maximum and counts per bin."""
    if not len(values):
        return {"mean": 0.0, "p50": 0.0, "p95": 0.0, "max": 0, "counts": [0] * (len(edges) - 1)}
    counts, _ = np.histogram(values, edges)
    middle, high = np.quantile(values, (0.5, 0.95))
    return {
        "mean": float(values.mean()),
        "p50": float(middle),
        "p95": float(high),
        "max": int(values.max()),
        "counts": counts.tolist(),
    }


def compare_values(inputs: Inputs, option: str, values: Sequence[str]) -> list[Alternative]:
    """The mixture of a run for each value of one of its options."""
    table, config = length_table(inputs.train), inputs.config.mixture
    return alternatives(
        table.sizes,
        plans.task_mixture(config, list(inputs.tasks.values())),
        inputs.plan.num_examples,
        option,
        values,
        unit_totals=table.unit_totals(config.unit),
    )


# In the terminal


def print_plan(out: Console, data: Json) -> None:
    """Facts, mixture, lengths."""
    terminal.print_facts(data["facts"])
    out.print()
    terminal.print_mixture(data["mixture"]["tasks"])
    mixed = data["mixture"]
    out.print(
        f"{mixed['steps']:,} steps, rows {mixed['fill']:.1%} full, {mixed['effective_tasks']:.2f} effective tasks, "
        f"caps and rounding moved {mixed['total_variation']:.1%}"
    )
    print_left_out(out, mixed["tasks"])
    out.print()
    out.print(sources_table(data["sources"]))
    out.print()
    out.print(lengths_table(data["lengths"]))


def print_chosen(out: Console, inputs: Inputs, numbers: Mapping[str, Sequence[int]]) -> None:
    """The examples, of the first tasks where there are many."""
    for name in list(numbers)[:TASKS_SHOWN]:
        print_examples(out, inputs, name, numbers[name])
    if any(numbers.values()) and len(numbers) > TASKS_SHOWN:
        out.print(f"\n{len(numbers) - TASKS_SHOWN:,} more tasks; --task NAME shows one")


def print_left_out(out: Console, rows: Sequence[Json]) -> None:
    """Print the records that were dropped or cut, by reason."""
    for row in rows:
        for reason, count in row.get("outcomes", {}).items():
            if reason != "kept" and count:
                out.print(f"{row['task']}: {count:,} {reason}", markup=False, style="yellow")


def sources_table(rows: Sequence[Json]) -> Any:
    """Source, record shape, records and wordings of each task."""
    columns = ["task", "source", "record shape", "records", "wordings"]
    cells = [[one["task"], one["source"], one["shape"], f"{one['records']:,}", one["wordings"]] for one in rows]
    return terminal.table("", columns, cells, text_columns=3)


def lengths_table(data: Json) -> Any:
    """Quantiles and a histogram in block characters, for tokens and trained tokens."""
    columns = ["task", "tokens", "trained tokens", "median", "95%", "longest", "median", "95%", "longest"]
    rows: list[list[object]] = []
    for name, spread in data["tasks"].items():
        numbers = [f"{spread[key][q]:,.0f}" for key in ("tokens", "loss_tokens") for q in ("p50", "p95", "max")]
        rows.append([name, blocks(spread["tokens"]["counts"]), blocks(spread["loss_tokens"]["counts"]), *numbers])
    ends = [Text(f"0 to {data['edges'][key][-1]:,}", style="dim") for key in ("tokens", "loss_tokens")]
    return terminal.table("", columns, [*rows, ["", *ends, *([""] * 6)]], text_columns=3)


def blocks(counts: Sequence[int]) -> str:
    """A histogram of one line; a bin that holds anything shows at least the lowest block."""
    high = max([*counts, 1])
    return "".join(BLOCKS[-(-count * (len(BLOCKS) - 1) // high)] for count in counts)


def print_examples(out: Console, inputs: Inputs, name: str, numbers: Sequence[int]) -> None:
    """Some examples of a task with trained tokens on colour."""
    for number in numbers:
        example = inputs.train[name].example(number)
        trained = example.loss_weights[example.loss_weights > 0]
        weights = ", ".join(f"{weight:g}" for weight in np.unique(trained)) or "none"
        out.print()
        out.print(Text(inputs.describe(name, number), style="bold"))
        out.print(Text(f"{len(trained):,} of {len(example.tokens):,} tokens trained, weights {weights}", style="dim"))
        out.print(
            masks.mask_text(example, inputs.tokenizer) if out.color_system else bracketed(inputs, example),
            soft_wrap=True,
        )


def bracketed(inputs: Inputs, example: Example) -> Text:
    """An example for where there are no colours: what trains stands in double angle quotes."""
    parts, inside = [], False
    for piece in masks.shown_tokens(example, inputs.tokenizer):
        if (piece.weight > 0) != inside:
            inside = not inside
            parts.append("«" if inside else "»")
        parts.append(piece.text)
    return Text("".join(parts) + ("»" if inside else ""))


def print_alternatives(out: Console, option: str, found: Sequence[Alternative]) -> None:
    """Share and epochs of each task under each value, side by side."""
    kept = [(one, one.allocation) for one in found if one.allocation is not None]
    out.print()
    if kept:
        columns = ["task"]
        for one, _ in kept:
            columns += [f"{option} {one.value}", "epochs"]
        rows: list[list[object]] = []
        for name in kept[0][1].sizes:
            row: list[object] = [name]
            for _, allocation in kept:
                cap = " cap" if allocation.capped[name] else ""
                row += [terminal.percent(allocation.realised[name], 2), f"{allocation.epochs[name]:.2f}{cap}"]
            rows.append(row)
        total: list[object] = [Text("effective tasks", style="dim")]
        for _, allocation in kept:
            total += [f"{allocation.effective_tasks:.2f}", ""]
        out.print(terminal.table("", columns, [*rows, total]))
    for one in found:
        if one.problem:
            out.print(f"{option} {one.value}: {one.problem}", style="yellow", markup=False)
