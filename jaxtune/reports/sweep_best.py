"""The best settings of a sweep on a page: those not told apart, their probabilities, the winner on fresh seeds."""

import math

import numpy as np

from jaxtune.reports import page
from jaxtune.reports.page import Column, Html, Section, Stat, join, tag
from jaxtune.runs.sweep_contrasts import differs
from jaxtune.runs.sweeps import Measure, Sweep
from jaxtune.science.best import Best, compare_with_best
from jaxtune.science.contrasts import over_seeds
from jaxtune.terminal.numbers import percent, signed

SHOWN = 40
"""Settings listed; the rest are counted."""


def best_of(sweep: Sweep, measure: Measure) -> Best:
    """The settings compared with the best of them by a measure."""
    return compare_with_best(sweep.matrix(measure.pick), higher_is_better=measure.higher_is_better)


def headline(sweep: Sweep, measure: Measure) -> Stat:
    """The winner's number: from fresh seeds where there are any, else marked as chosen from the same runs."""
    winner = sweep.settings[best_of(sweep, measure).winner]
    name = sweep.name(winner)
    title = f"{measure.title[0].lower()}{measure.title[1:]}"
    fresh = [measure.pick(arm) for arm in sweep.confirmations if arm.setting == winner]
    if not fresh:
        mean = float(np.nanmean([measure.pick(arm) for arm in sweep.arms if arm.setting == winner]))
        chosen, command = f"at {name}; chosen from these runs, so on average too good: ", tag("code", "--confirm N")
        under = join([chosen, command, " measures it on fresh seeds"])
        return Stat(f"Best of {len(sweep.settings)}: {title}", measure.form(mean), under)
    estimate = over_seeds(fresh)
    half = (estimate.high - estimate.low) / 2
    unit = f" ± {measure.form(half)}" if math.isfinite(half) else ""
    under = f"at {name}; {estimate.n} fresh seed{'s' if estimate.n > 1 else ''}{gain_text(sweep, measure, name)}"
    return Stat(f"Winner on fresh seeds: {title}", join([measure.form(estimate.mean), tag("span", unit)]), under)


def gain_text(sweep: Sweep, measure: Measure, winner: str) -> str:
    """The confirmed gain of the winner over the config's own setting; empty where that was not run or is the winner.

    The config's runs have the winner's seeds; earlier winners, confirmed on other seeds, do not.
    """
    seeds = {arm.seed for arm in sweep.confirmations if sweep.name(arm.setting) == winner}
    others = {sweep.name(arm.setting): arm.setting for arm in sweep.confirmations if arm.seed in seeds}
    chosen = others.get(winner)
    rest = [setting for name, setting in others.items() if name != winner]
    if chosen is None or len(rest) != 1:
        return ""
    gain = differs(sweep, chosen, rest[0], measure)
    text = f"; {signed(gain.mean, measure.digits, measure.scale)} {measure.unit} against {sweep.name(rest[0])}"
    if not math.isfinite(gain.low):
        return text
    low, high = (signed(bound, measure.digits, measure.scale) for bound in (gain.low, gain.high))
    return f"{text} [{low}, {high}]"


def best_section(sweep: Sweep) -> Section | None:
    """Section of the settings that may be the best, by every measure; None with one setting."""
    if len(sweep.settings) < 2:
        return None
    parts: list[object] = []
    for measure in sweep.measures:
        best = best_of(sweep, measure)
        parts += [tag("h3", measure.title), tag("p", verdict(sweep, best), class_="note"), table(sweep, measure, best)]
    lead = (
        "Settings that cannot be told from the best one (Hsu's comparisons with the best: the set holds the truly best "
        "setting 95 times in 100), and the probability of each to be it. A setting and a seed are taken to add up; "
        "what is left is noise."
    )
    return Section("best", "Which setting is best", lead, parts)


def verdict(sweep: Sweep, best: Best) -> str:
    """The set in a sentence."""
    count, number = len(sweep.settings), int(best.contenders.sum())
    if not best.tested:
        return "Nothing can be tested: settings need two seeds in common."
    if number == 1:
        return f"{sweep.name(sweep.settings[best.winner])} is the best of {count} settings."
    return f"{number} of {count} settings cannot be told from the best with {len(sweep.seeds)} seeds."


def table(sweep: Sweep, measure: Measure, best: Best) -> Html:
    """Settings from the best mean to the worst."""
    order = np.argsort(-best.means if measure.higher_is_better else best.means)
    order = [int(index) for index in order if math.isfinite(best.means[index])]
    values = sweep.matrix(measure.pick)
    columns = [Column("setting", number=False), Column("mean"), Column("by seed", number=False)]
    columns += [Column("may be the best", number=False), Column("P(best)")]
    rows = [
        [
            sweep.name(sweep.settings[index]),
            measure.form(float(best.means[index])),
            " · ".join(measure.form(float(value)) for value in values[index]),
            "yes" if best.contenders[index] else "no",
            percent(float(best.probability[index]), 0),
        ]
        for index in order[:SHOWN]
    ]
    drawn = page.table(columns, rows)
    more = len(order) - SHOWN
    return join([drawn, tag("p", f"and {more} more settings, all below.", class_="note")]) if more > 0 else drawn
