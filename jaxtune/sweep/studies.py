"""Commands that answer one question by several runs: from parsed arguments to what is printed; the exit code.

Everything heavy is imported where it is used, as in `jaxtune.commands`.
"""

import argparse
from collections.abc import Callable
from typing import Any

from jaxtune.errors import say
from jaxtune.storage.documents import Json
from jaxtune.terminal.foreign import print_json


def transfer(config: Any, arguments: argparse.Namespace) -> int:
    """`jaxtune transfer`: a sweep over sets of tasks, and what each does to each."""
    from jaxtune import config as configs
    from jaxtune.sweep import run as sweep
    from jaxtune.sweep import transfer as study
    from jaxtune.sweep.record import grow
    from jaxtune.sweep.request import dry_run, dry_run_text
    from jaxtune.train.decisions import Status

    request = study.TransferRequest(
        tasks=arguments.tasks, design=arguments.design, modes=tuple(dict.fromkeys(arguments.mode)),
        baseline=arguments.baseline, examples=arguments.examples, subsets=arguments.subsets, seeds=arguments.seeds,
    )  # fmt: skip
    planned = study.plan(request, config)
    if arguments.dry_run:
        runs = dry_run(planned.config, arguments.sweep_dir, planned.trials)
        print_json(runs) if arguments.json else say(dry_run_text(runs))
        return 0
    stored = configs.to_json(planned.config)
    grow(arguments.sweep_dir, stored, planned.trials, overwrite=arguments.overwrite)
    study.begin(arguments.sweep_dir, planned.design)
    ends = sweep.Ends()
    status = sweep.sweep(
        planned.config, arguments.sweep_dir, planned.trials,
        command=sweep.Command(config=arguments.config, overrides=[*arguments.rest, *planned.options]),
        stacking=sweep.Stacking(stacked=arguments.stacked, size=arguments.stack_size), ends=ends,
    )  # fmt: skip
    if status is not Status.FINISHED:
        return ends.exit_code
    found = study.conclude(arguments.sweep_dir)
    print_json(found) if arguments.json else say(transfer_text(found))
    return 0


def transfer_text(found: Json) -> str:
    """The effects of a transfer sweep in lines."""
    lines = []
    for form, matrix in found["forms"].items():
        lines.append(f"{form}: nats of validation loss, positive where the first helps the second")
        for cell in matrix["cells"]:
            lines.append(f"  {cell['source']} -> {cell['target']}: {estimate_text(cell)}")
        lines += [f"  {task} by its own examples: {estimate_text(cell)}" for task, cell in matrix["own"].items()]
    return "\n".join(lines)


def estimate_text(cell: Json) -> str:
    """An estimate with its interval; two seeds give none."""
    text = f"{cell['estimate']:+.4f}"
    if cell["n"] < 3:
        return f"{text} ({cell['n']} seeds: no interval)"
    mark = ", clear" if cell["clear"] else ""
    return f"{text} [{cell['low']:+.4f}, {cell['high']:+.4f}], adjusted p {cell['p_adjusted']:.2g}{mark}"


def conflict(arguments: argparse.Namespace, load_config: Callable[[argparse.Namespace], Any]) -> int:
    """`jaxtune conflict`: do the gradients of tasks agree, at a config's base model or along a run?"""
    import pathlib

    from jaxtune.errors import UserError
    from jaxtune.storage.documents import write_json
    from jaxtune.train.conflict import ConflictRequest, conflict_of, conflict_of_run

    request = ConflictRequest(batches=arguments.batches, tokens=arguments.tokens)
    dear = None if arguments.transfer is None else co_training_of(arguments.transfer)
    place = pathlib.Path(arguments.place)
    if place.is_dir():
        if arguments.rest:
            raise UserError(f"{arguments.rest[0]!r}: a run is looked at as it was trained; options go with a config")
        found = conflict_of_run(place, request)
    else:
        arguments.config = arguments.place
        found = conflict_of(load_config(arguments), request)
    if dear is not None:
        found["agreement"] = [{"step": point["step"], **agreement(point, dear)} for point in found["points"]]
    if arguments.out is not None:
        write_json(arguments.out, found)
    print_json(found) if arguments.json else say(conflict_text(found))
    return 0


def co_training_of(sweep_dir: Any) -> dict[tuple[str, str], float]:
    """The co-training effects of a transfer sweep by (source, target)."""
    from jaxtune.errors import UserError
    from jaxtune.runs.transfer import RECORD
    from jaxtune.storage.documents import read_object

    path = sweep_dir / RECORD
    forms = read_object(path).get("forms", {}) if path.is_file() else {}
    form = next((name for name in ("added", "replaced") if name in forms), None)
    if form is None:
        raise UserError(f"{sweep_dir} holds no finished pairs of tasks; `jaxtune transfer --design pairs` makes them")
    return {(cell["source"], cell["target"]): cell["estimate"] for cell in forms[form]["cells"]}


def agreement(point: Json, dear: dict[tuple[str, str], float]) -> Json:
    """Spearman's correlation of cosines and of gains one step ahead with what training together does."""
    import numpy as np

    from jaxtune.science.conflict import rank_agreement

    pairs = [(p["first"], p["second"], p["value"]) for p in point["pairs"]]
    both = [(value, (dear[a, b] + dear[b, a]) / 2) for a, b, value in pairs if (a, b) in dear and (b, a) in dear]
    ahead = [
        (one["gain"], dear[one["source"], one["target"]])
        for one in point["ahead"]
        if (one["source"], one["target"]) in dear
    ]
    rank = lambda rows: rank_agreement(*np.array(rows, float).reshape(-1, 2).T)
    return {"cosine": rank(both), "ahead": rank(ahead), "pairs": len(both)}


def conflict_text(found: Json) -> str:
    """The cosines in lines, the most opposed first."""
    lines = []
    for point in found["points"]:
        lines.append(f"step {point['step']}: cosine of gradients, {found['batches']} batches a task")
        for pair in sorted(point["pairs"], key=lambda one: one["value"] if one["value"] == one["value"] else 9):
            sure = "" if pair["reliable"] else "; unreliable: a gradient is lost in its noise"
            interval = f"[{pair['low']:+.3f}, {pair['high']:+.3f}], raw {pair['raw']:+.3f}"
            lines.append(f"  {pair['first']} and {pair['second']}: {pair['value']:+.3f} {interval}{sure}")
        lines += [
            f"  one step on {one['source']}: loss of {one['target']} {-one['gain']:+.4f}"
            for one in point["ahead"]
            if one["source"] != one["target"]
        ]
    for one in found.get("agreement", []):
        lines.append(
            f"step {one['step']}: Spearman with training together over {one['pairs']} pairs: cosine "
            f"{one['cosine']:+.2f}, one step ahead {one['ahead']:+.2f}"
        )
    return "\n".join(lines)


def surface(arguments: argparse.Namespace) -> None:
    """`jaxtune recommend`: the minimum of a surface over the numeric options of a sweep."""
    from jaxtune.reports.recommendation import facts
    from jaxtune.reports.sweep import write_sweep_report
    from jaxtune.runs.recommendation import recommend
    from jaxtune.runs.remote import read_places, send_pages
    from jaxtune.runs.sweeps import MEASURES, read_sweep
    from jaxtune.storage.documents import write_json
    from jaxtune.terminal.display import Phase

    with read_places([arguments.sweep_dir]) as (folder,):
        sweep = read_sweep(folder)
        with Phase("fitting the surface"):
            found = recommend(sweep, MEASURES[arguments.measure])
        write_json(sweep.path / "recommendation.json", found.to_json())
        page: Any = write_sweep_report(sweep)
    if isinstance(arguments.sweep_dir, str):
        page = send_pages(arguments.sweep_dir)
    if arguments.json:
        print_json(found.to_json())
    else:
        say("\n".join(f"{name}: {value}" for name, value in facts(found)))
        say(f"report: {page}")


def law(arguments: argparse.Namespace) -> None:
    """`jaxtune recommend --law`: the mixture law of a sweep of mixtures."""
    from jaxtune.runs.mixture_law import RECORD, law_of
    from jaxtune.runs.remote import read_places, send_pages
    from jaxtune.runs.sweeps import read_sweep
    from jaxtune.storage.documents import write_json

    with read_places([arguments.sweep_dir]) as (folder,):
        sweep = read_sweep(folder)
        found = law_of(sweep)
        write_json(sweep.path / RECORD, found)
    if isinstance(arguments.sweep_dir, str):
        send_pages(arguments.sweep_dir)
    if arguments.json:
        print_json(found)
        return
    shares = found["best"]["shares"]
    say(f"law of {found['mixtures']} mixtures; left-out arms: Spearman {found['rank_left_out']:.2f}")
    for target, one in found["targets"].items():
        rates = ", ".join(f"{task} {rate:+.2f}" for task, rate in one["rates_centred"].items())
        say(f"  {target}: R2 of left-out arms {one['r2_left_out']:.2f}; effect of shares, centred: {rates}")
    trained = found["best_trained"]
    say(f"best trained: {trained['loss']:.4f} at {trained['name']}")
    say(f"expected at the best shares: {found['best']['expected_loss']:.4f}")
    say(
        "  --mixture.strategy weights --mixture.weights "
        + " ".join(f"{task} {value}" for task, value in shares.items())
    )


def proxy(arguments: argparse.Namespace) -> None:
    """`jaxtune proxy`: decision accuracy of a small model's sweep for a large one's."""
    from jaxtune.runs.proxy import proxy_of
    from jaxtune.runs.sweeps import MEASURES, read_sweep

    found = proxy_of(read_sweep(arguments.small), read_sweep(arguments.large), MEASURES[arguments.measure])
    if arguments.json:
        print_json(found)
        return
    told = f"{found['pairs']} pairs of {found['settings']} settings are told apart on the large model"
    accuracy = (
        "" if found["accuracy"] is None else f"; the small one orders {100 * found['accuracy']:.0f} % of them alike"
    )
    say(told + accuracy + (" (80 % is the usual bar)" if accuracy else ""))
    say(f"Kendall's tau {found['tau']:+.2f} [{found['low']:+.2f}, {found['high']:+.2f}]")
    if found["warning"]:
        say(found["warning"])
