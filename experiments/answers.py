"""Answers of the experiments of the chapter (16 to 23, 28): contrasts written down before, from their results.

Run:    python experiments/answers.py            prints them all
        python experiments/answers.py --readme   and writes the table of the repository's README

An experiment without a results.csv has not been run, and its rows say so. Intervals are Student's 95 % over seeds; p is
Holm's over the contrasts of the experiment.
"""

import argparse
import csv
import dataclasses
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxtune.science.contrasts import Contrast, family, over_seeds

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
START, END = "<!-- measured claims: python experiments/answers.py --readme -->\n", "<!-- end of measured claims -->"
Row = Mapping[str, str]
BySeed = dict[int, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """One contrast of an experiment, with what it is called."""

    what: str
    unit: str
    found: Contrast

    def text(self) -> str:
        """Estimate, interval and p in words."""
        one = self.found
        return f"{one.mean:+.3f} {self.unit} [{one.low:+.3f}, {one.high:+.3f}], p {one.adjusted:.2g}, {one.n} seeds"


def of(rows: Sequence[Row], column: str, **where: str) -> BySeed:
    """One column by seed, of the rows whose options have these values (`__` in a name stands for a dot)."""
    wanted = {name.replace("__", "."): value for name, value in where.items()}
    kept = [row for row in rows if all(same(row[name], value) for name, value in wanted.items())]
    found = {int(row["seed"]): float(row[column]) for row in kept if row["status"] == "finished"}
    if len(found) != len(kept):
        raise ValueError(f"{wanted}: {len(kept)} rows, {len(found)} finished seeds")
    return found


def same(text: str, value: str) -> bool:
    """Whether a cell is this value: as a number where both are."""
    try:
        return float(text) == float(value)
    except ValueError:
        return text == value


def mean_of(*parts: BySeed) -> BySeed:
    """Their mean inside each seed that all have."""
    seeds = set.intersection(*(set(part) for part in parts))
    return {seed: statistics.fmean(part[seed] for part in parts) for seed in sorted(seeds)}


def less(first: BySeed, second: BySeed) -> Contrast:
    """`first` minus `second` inside each seed that both have."""
    return over_seeds([first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())])


def rare_tasks(rows: Sequence[Row]) -> list[Answer]:
    at = lambda temperature, column="macro_loss": of(rows, column, mixture__temperature=temperature)
    rare = less(at("3", "loss/sum_stories"), at("1", "loss/sum_stories"))
    middle = less(mean_of(at("2"), at("3"), at("5")), mean_of(at("1"), at("inf")))
    return [
        Answer(what="loss of the rare task, T = 3 minus T = 1", unit="nats", found=rare),
        Answer(what="mean loss, T of 2, 3, 5 minus T of 1 and inf", unit="nats", found=middle),
    ]


def repeats(rows: Sequence[Row]) -> list[Answer]:
    at = lambda measure, times, cap: of(rows, f"{measure}/noisy.x{times}", mixture__max_repeats=cap)
    mem = lambda times, cap: less(at("loss", 0, cap), at("loss", times, cap))
    capped = [a - b for a, b in zip(mem(16, "1").by_seed, mem(1, "1").by_seed, strict=True)]
    extracted = less(at("exact_match", 16, "inf"), at("exact_match", 0, "inf"))
    return [
        Answer(what="memorised after 16 repeats (loss of the control minus loss)", unit="nats", found=mem(16, "inf")),
        Answer(what="memorised after 1 repeat", unit="nats", found=mem(1, "inf")),
        Answer(what="16 repeats capped to 1, minus 1 repeat", unit="nats", found=over_seeds(capped)),
        Answer(what="exact match after 16 repeats minus the control's", unit="of 1", found=extracted),
    ]


def prompt_loss(rows: Sequence[Row]) -> list[Answer]:
    at = lambda length, weight: {
        int(row["seed"]): float(row[f"loss/prefix_{length}"])
        for row in rows
        if row["tag"] == f"prefix_{length}-response-{weight}" and row["status"] == "finished"
    }
    effects = {length: less(at(length, "0.5"), at(length, "0")) for length in (0, 48, 144)}
    slope = [b - a for a, b in zip(effects[0].by_seed, effects[144].by_seed, strict=True)]
    return [
        *(
            Answer(
                what=f"loss at prompt weight 0.5 minus 0, {length} words before the question", unit="nats", found=one
            )
            for length, one in effects.items()
        ),
        Answer(what="the same, 144 words minus none", unit="nats", found=over_seeds(slope)),
    ]


def forgetting(rows: Sequence[Row]) -> list[Answer]:
    tagged = lambda tag: {
        int(row["seed"]): (float(row["macro_loss"]), float(row["forgotten/builtin"]))
        for row in rows
        if row["tag"] == tag and row["status"] == "finished"
    }
    forgot = lambda tag: {seed: values[1] for seed, values in tagged(tag).items()}
    full = [tagged(f"full-{rate}") for rate in ("3e-4", "1e-3", "3e-3", "1e-2")]
    adapters = [tagged(f"lora-{rate}") for rate in ("1e-3", "3e-3", "1e-2", "3e-2")]
    seeds = sorted(set.intersection(*(set(part) for part in (*full, *adapters))))
    at_equal = [equal_loss([part[s] for part in adapters], [part[s] for part in full]) for s in seeds]
    rates = less(forgot("full-1e-2"), forgot("full-1e-3"))
    return [
        Answer(what="forgotten at rate 1e-2 minus 1e-3", unit="nats", found=rates),
        Answer(
            what="forgotten by adapters minus all parameters, at equal task loss", unit="nats",
            found=over_seeds([value for value in at_equal if math.isfinite(value)]),
        ),
    ]  # fmt: skip


def replayed(rows: Sequence[Row]) -> list[Answer]:
    less_than_without = lambda column: less(of(rows, column, tag="tenth"), of(rows, column, tag="without"))
    return [
        Answer(
            what="forgotten with a tenth of replay minus none",
            unit="nats",
            found=less_than_without("forgotten/builtin"),
        ),
        Answer(what="mean loss of the tasks, the same", unit="nats", found=less_than_without("macro_loss")),
    ]


def real_tasks(rows: Sequence[Row]) -> list[Answer]:
    effect = lambda column, tag, than: less(of(rows, column, tag=tag), of(rows, column, tag=than))
    return [
        Answer(what="SmolLM2, loss of the rarest task, T = 3 minus 1", unit="nats",
               found=effect("loss/open_ended", "T3", "T1")),
        Answer(what="mean loss, the same", unit="nats", found=effect("macro_loss", "T3", "T1")),
        Answer(what="mean loss at prompt weight 0.5 minus 0", unit="nats",
               found=effect("macro_loss", "T3-prompt", "T3")),
    ]  # fmt: skip


def equal_loss(first: Sequence[tuple[float, float]], second: Sequence[tuple[float, float]]) -> float:
    """Mean difference of two curves (task loss, forgotten), interpolated where both have losses; NaN where none."""
    curves = [tuple(np.array(sorted(points)).T) for points in (first, second)]
    low, high = max(curve[0][0] for curve in curves), min(curve[0][-1] for curve in curves)
    if low >= high:
        return math.nan
    at = np.linspace(low, high, 21)
    return float(np.mean(np.interp(at, *curves[0]) - np.interp(at, *curves[1])))


def warmup(rows: Sequence[Row]) -> list[Answer]:
    at = lambda optimizer, rate, share: of(
        rows, "macro_loss", optim__optimizer=optimizer, optim__peak_lr=rate, optim__warmup_frac=share
    )
    effect = lambda optimizer, rate: less(at(optimizer, rate, "0.05"), at(optimizer, rate, "0"))
    high, low = effect("adamw", "1e-2"), effect("adamw", "1e-3")
    both = [a - b for a, b in zip(high.by_seed, low.by_seed, strict=True)]
    return [
        Answer(what="loss with warmup minus without, AdamW at 1e-2", unit="nats", found=high),
        Answer(what="the same, Muon at 1e-3", unit="nats", found=effect("muon", "1e-3")),
        Answer(what="AdamW, effect at 1e-2 minus at 1e-3", unit="nats", found=over_seeds(both)),
    ]


def epochs(rows: Sequence[Row]) -> list[Answer]:
    tasks = ("six_classes", "sums", "prefix_0")
    at = lambda count: mean_of(*(of(rows, f"loss/{task}", duration__epochs=count) for task in tasks))
    return [
        Answer(what="loss after 16 epochs minus 3", unit="nats", found=less(at("16"), at("3"))),
        Answer(what="loss after 3 epochs minus 1", unit="nats", found=less(at("3"), at("1"))),
    ]


def recommendation(rows: Sequence[Row]) -> list[Answer]:
    fresh = [row for row in rows if row["confirms"] == "True"]
    setting = lambda row: (float(row["mixture.temperature"]), float(row["optim.peak_lr"]))
    own = {int(row["seed"]): float(row["macro_loss"]) for row in fresh if setting(row) == (2.0, 1e-3)}
    won = {int(row["seed"]): float(row["macro_loss"]) for row in fresh if setting(row) != (2.0, 1e-3)}
    return [
        Answer(what="loss on fresh seeds, the sweep's winner minus the config's own", unit="nats", found=less(won, own))
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """A claim of the chapter, its folder, and what its rows are made into."""

    claim: str
    folder: str
    read: Callable[[Sequence[Row]], list[Answer]] | None
    results: str = "results.csv"


EXPERIMENTS = (
    Experiment(claim="proportional mixing starves rare tasks; T of 2 to 5 is best", folder="16-rare-tasks",
               read=rare_tasks),
    Experiment(claim="many repeats are memorised; a cap prevents it", folder="17-repeats", read=repeats),
    Experiment(claim="masking the prompt helps, more with long prompts", folder="18-prompt-loss", read=prompt_loss),
    Experiment(claim="a high learning rate forgets; adapters forget less", folder="19-forgetting", read=forgetting),
    Experiment(claim="replay of the base's text forgets less", folder="19-forgetting", read=replayed,
               results="replay.csv"),
    Experiment(claim="warmup matters", folder="20-warmup", read=warmup),
    Experiment(claim="one to three epochs are enough", folder="21-epochs", read=epochs),
    Experiment(claim="related tasks help, conflicts exist", folder="22-transfer", read=None),
    Experiment(claim="a recommended setting holds on fresh seeds", folder="23-recommendation", read=recommendation),
    Experiment(claim="temperature and mask on a real model and tasks", folder="28-real-tasks", read=real_tasks),
)  # fmt: skip
PAIRS = (("sums", "sum_stories"), ("terse", "verbose"), ("verbose", "terse"))
"""Cells of the transfer matrix that were written down; its own family is the whole matrix."""


def answers(experiment: Experiment, root: Path = HERE) -> list[Answer]:
    """The contrasts of an experiment, adjusted as one family; none where it was not run."""
    path = root / experiment.folder / experiment.results
    if not path.exists():
        return []
    if experiment.read is None:
        return transfer(json.loads((path.parent / "transfer.json").read_text()))
    with path.open(newline="") as file:
        found = experiment.read(list(csv.DictReader(file)))
    adjusted = family([one.found for one in found])
    return [dataclasses.replace(one, found=new) for one, new in zip(found, adjusted, strict=True)]


def transfer(record: Mapping) -> list[Answer]:
    """Cells of the matrix, with the p over all of it."""
    cells = {(cell["source"], cell["target"]): cell for cell in record["forms"]["added"]["cells"]}
    return [
        Answer(
            what=f"what {a} brings {b}", unit="nats",
            found=Contrast(
                mean=cell["estimate"], by_seed=(math.nan,) * cell["n"], low=cell["low"], high=cell["high"],
                adjusted=cell["p_adjusted"],
            ),
        )
        for a, b in PAIRS
        for cell in (cells[a, b],)
    ]  # fmt: skip


def table(root: Path = HERE) -> str:
    """The Markdown table: claim, what was measured, interval, command."""
    lines = ["| claim | measured | 95 % interval over seeds | command |", "|---|---|---|---|"]
    for one in EXPERIMENTS:
        command = f"`python experiments/{one.folder}/run.py`"
        found = answers(one, root)
        if not found:
            lines.append(f"| {one.claim} | not yet run | | {command} |")
        for number, answer in enumerate(found):
            contrast = answer.found
            mark = "" if contrast.clear else " (not clear)"
            interval = f"[{contrast.low:+.3f}, {contrast.high:+.3f}]{mark}"
            said = f"{answer.what}: {contrast.mean:+.3f} {answer.unit}"
            lines.append(
                f"| {one.claim if not number else ''} | {said} | {interval} | {command if not number else ''} |"
            )
    return "\n".join(lines) + "\n"


def with_table(text: str, root: Path = HERE) -> str:
    """A README with its table made anew."""
    before, rest = text.split(START)
    return f"{before}{START}{table(root)}{END}{rest.split(END)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--readme", action="store_true", help="write the table of the README")
    if parser.parse_args().readme:
        README.write_text(with_table(README.read_text()))
    for one in EXPERIMENTS:
        print(f"{one.folder}: {one.claim}")
        for answer in answers(one) or ["not yet run"]:
            print("  " + (answer if isinstance(answer, str) else f"{answer.what}: {answer.text()}"))


if __name__ == "__main__":
    main()
