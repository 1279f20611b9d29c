"""What a run decides: laws over every sequence of validations, stops and kills."""

import dataclasses
import json
import math

import pytest
from helpers import tiny_config
from hypothesis import given
from hypothesis import strategies as st

from jaxtune.config import EarlyStoppingConfig
from jaxtune.runs.retention import WATCHED, CheckpointConfig, kept_steps, ranked
from jaxtune.train.decisions import Counters, Decision, Health, Rules, Status, decide, ended, judge, rules

LOSSES = st.one_of(st.floats(0, 10), st.sampled_from([math.nan, math.inf, 1.0, 2.0]))


@st.composite
def rule_sets(draw):
    return Rules(
        total=draw(st.integers(1, 12)),
        validate_every=draw(st.one_of(st.none(), st.integers(0, 4))),
        save_every=draw(st.integers(1, 13)),
        patience=draw(st.one_of(st.none(), st.integers(1, 3))),
        min_change=draw(st.sampled_from([0.0, 0.5])),
    )


@dataclasses.dataclass
class Life:
    """A run by its decisions: its losses are given by step; at `stops` it is stopped and resumed."""

    rules: Rules
    losses: dict[int, float]
    stops: frozenset[int] = frozenset()

    def __post_init__(self):
        self.validated: list[int] = []
        self.saved: list[int] = []
        self.counters, self.status = Counters(), None
        done = 0
        while self.status is None:
            done += 1
            stopping = done in self.stops
            self.counters, decision = decide(self.counters, done, self.rules, stopping=stopping)
            if decision.validate:
                assert decision == Decision(validate=True)
                self.counters, decision = self.validate(done)
            if decision.save:
                self.saved.append(done)
            self.status = decision.end
            if stopping:  # the process ends, and another goes on from what the checkpoint holds
                assert self.status is Status.STOPPED and decision.save
                self.counters = Counters.from_json(json.loads(json.dumps(self.counters.to_json())))
                if self.counters.unvalidated:
                    self.counters, _ = self.validate(done)
                self.status = ended(self.counters, done, self.rules)
        self.steps = done

    def validate(self, done):
        self.validated.append(done)
        return decide(self.counters, done, self.rules, watched=self.losses[done])


@given(rule_sets(), st.lists(LOSSES, min_size=12, max_size=12), st.frozensets(st.integers(1, 12), max_size=3))
def test_stops_change_neither_validations_nor_counters_nor_the_end(rules, values, stops):
    losses = dict(enumerate(values, start=1))
    whole, stopped = Life(rules, losses), Life(rules, losses, stops)
    assert whole.validated == stopped.validated
    assert whole.steps == stopped.steps and whole.status is stopped.status
    assert repr(whole.counters) == repr(stopped.counters)
    assert set(whole.saved) <= set(stopped.saved)


@given(rule_sets(), st.lists(LOSSES, min_size=12, max_size=12))
def test_the_best_step_is_the_first_with_the_lowest_finite_loss_and_was_saved(rules, values):
    life = Life(rules, dict(enumerate(values, start=1)))
    seen = [(life.losses[step], step) for step in life.validated if math.isfinite(life.losses[step])]
    best = min(seen) if seen else (math.inf, -1)
    assert (life.counters.best_value, life.counters.best_step) == best
    assert not seen or best[1] in life.saved
    assert life.steps in life.saved or life.status is Status.EARLY_STOPPED


@dataclasses.dataclass
class Stored:
    """A run with its folder of checkpoints, killed and resumed from the newest or from the oldest one that is left."""

    rules: Rules
    losses: dict[int, float]
    keep: CheckpointConfig
    kills: dict[int, bool]
    """Step at which the process dies -> whether the run goes on from the oldest checkpoint."""

    def __post_init__(self):
        self.folder: dict[int, tuple[str, dict[str, float]]] = {}
        kills = dict(self.kills)
        self.counters, self.done, status = Counters(), 0, None
        while status is None:
            self.done += 1
            if self.done in kills and self.folder:
                self.resume(oldest=kills.pop(self.done))
                status = ended(self.counters, self.done, self.rules)
                continue
            self.counters, decision = decide(self.counters, self.done, self.rules)
            watched = None
            if decision.validate:
                watched = self.losses[self.done]
                self.counters, decision = decide(self.counters, self.done, self.rules, watched=watched)
            if decision.save:
                self.save(watched)
            status = decision.end

    def save(self, watched):
        self.folder[self.done] = json.dumps(self.counters.to_json()), {} if watched is None else {WATCHED: watched}
        kept = kept_steps(self.keep, {step: held for step, (_, held) in self.folder.items()})
        self.folder = {step: entry for step, entry in self.folder.items() if step in kept}

    def resume(self, *, oldest):
        self.done = min(self.folder) if oldest else max(self.folder)
        self.folder = {step: entry for step, entry in self.folder.items() if step <= self.done}
        self.counters = Counters.from_json(json.loads(self.folder[self.done][0]))
        if self.counters.best_step not in (-1, *self.folder):
            losses = {step: held.get(WATCHED, math.nan) for step, (_, held) in self.folder.items()}
            self.counters = self.counters.without_best(losses)


@given(
    rule_sets(), st.lists(LOSSES, min_size=12, max_size=12), st.integers(1, 3), st.integers(0, 3),
    st.dictionaries(st.integers(1, 12), st.booleans(), max_size=3),
)  # fmt: skip
def test_what_is_called_best_is_what_the_folder_holds_and_ranks_first(rules, values, latest, best, kills):
    keep = CheckpointConfig(keep_latest=latest, keep_best=best)
    run = Stored(rules, dict(enumerate(values, start=1)), keep, kills)
    first = ranked({step: held for step, (_, held) in run.folder.items()})[:1]
    assert first == ([run.counters.best_step] if run.counters.best_step >= 0 else [])
    assert not first or run.counters.best_value == run.losses[first[0]]


@given(rule_sets(), st.lists(LOSSES, min_size=12, max_size=12))
def test_validations_come_when_the_rules_say(rules, values):
    life = Life(rules, dict(enumerate(values, start=1)))
    every, total = rules.validate_every, rules.total
    due = [n for n in range(1, total + 1) if every is not None and (n == total or (every and n % every == 0))]
    assert life.validated == [step for step in due if step <= life.steps]


@given(st.lists(LOSSES, min_size=1, max_size=12), st.integers(1, 4), st.sampled_from([0.0, 0.5]))
def test_patience_counts_validations_since_the_last_sufficient_decrease(values, patience, change):
    rules = Rules(total=12, validate_every=1, save_every=100, patience=patience, min_change=change)
    life = Life(rules, dict(enumerate(values + [0.0] * 12, start=1)))
    reference, since = math.inf, 0
    for step in life.validated:
        if life.losses[step] < reference - change:
            reference, since = life.losses[step], 0
        else:
            since += 1
        assert (since >= patience) == (step == life.steps and life.status is Status.EARLY_STOPPED)


def test_rules_come_from_the_config(tmp_path):
    config = tiny_config(tmp_path, early_stopping=EarlyStoppingConfig(patience=2, min_change=0.5))
    expected = Rules(total=6, validate_every=3, save_every=2, patience=2, min_change=0.5)
    assert rules(config, 6, validated=True) == expected
    assert rules(config, 6, validated=False) == dataclasses.replace(expected, validate_every=None)


def test_an_update_is_judged_by_its_numbers_and_the_recent_ones():
    counters = Counters()
    for _ in range(60):
        counters, health = judge(counters, 1.0, applied=True, finite=True, spike_factor=3.0)
        assert health is Health.GOOD
    assert counters.recent == (1.0,) * 50
    spiked, health = judge(counters, 3.1, applied=True, finite=True, spike_factor=3.0)
    assert health is Health.SPIKE and spiked.recent[-1] == 3.1 and len(spiked.recent) == 50
    broken, health = judge(counters, math.nan, applied=False, finite=False, spike_factor=3.0)
    assert health is Health.NOT_FINITE and broken == dataclasses.replace(counters, skipped=1)
    empty, health = judge(counters, 0.0, applied=False, finite=True, spike_factor=3.0)
    assert health is Health.EMPTY and empty == dataclasses.replace(counters, empty=1)


@pytest.mark.parametrize("count", [0, 5, 9])
def test_few_losses_make_no_spike(count):
    counters = Counters(recent=(1.0,) * count)
    assert judge(counters, 100.0, applied=True, finite=True, spike_factor=3.0)[1] is Health.GOOD


def test_counts_add_up():
    counters = Counters().counted(tokens=10, task_examples={"a": 2}, task_tokens={"a": 3, "b": 0})
    counters = counters.counted(tokens=5, task_examples={"b": 1}, task_tokens={"a": 1, "b": 2})
    assert (counters.tokens, counters.loss_tokens) == (15, 6)
    assert counters.task_examples == {"a": 2, "b": 1} and counters.task_tokens == {"a": 4, "b": 2}


def test_a_run_of_a_sweep_waits_at_its_rung_validated_and_saved():
    rules = Rules(total=9, validate_every=3, save_every=100, until=3)
    counters, decision = decide(Counters(), 2, rules)
    assert not decision.waits
    counters, decision = decide(counters, 3, rules)
    assert decision == Decision(validate=True), "it is compared by this validation"
    counters, decision = decide(counters, 3, rules, watched=1.0)
    assert decision == Decision(save=True, end=Status.PAUSED) and not counters.unvalidated
    assert ended(counters, 9, rules) is Status.FINISHED
    worse = decide(counters, 6, Rules(total=9, validate_every=3, save_every=100, until=6), watched=2.0)[1]
    assert worse.save, "also where another step was better, the run goes on from here"
