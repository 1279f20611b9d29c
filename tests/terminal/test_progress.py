import io
import math
import time

import pytest
from rich.console import Console

from jaxtune.terminal.display import Phase
from jaxtune.terminal.numbers import duration, quantity
from jaxtune.terminal.pace import Pace
from jaxtune.terminal.progress import GroupProgress, ItemProgress, TrainProgress


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def plain_console():
    return Console(file=io.StringIO(), force_terminal=False, width=200)


def text_of(console):
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"), [(7.2, "0:07"), (754, "12:34"), (11109, "3:05:09"), (math.nan, "--:--"), (59.6, "1:00")]
)
def test_durations_read_as_a_clock(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.5, "0.5"),
        (87.4, "87"),
        (940, "940"),
        (12345, "12.3k"),
        (999_700, "1M"),
        (4.56e6, "4.56M"),
        (math.nan, "-"),
    ],
)
def test_quantities_are_short(value, text):
    assert quantity(value) == text


def test_pace_leaves_out_what_happened_before_the_first_report():
    clock = Clock()
    pace = Pace(100, clock)
    clock.now = 50.0
    pace.report(1)
    assert math.isnan(pace.seconds_left)
    for step in range(2, 12):
        clock.now += 2.0
        pace.report(step)
    assert pace.rate == pytest.approx(0.5)
    assert pace.seconds_left == pytest.approx(89 / 0.5)


def test_pace_forgets_what_is_older_than_its_window():
    clock = Clock()
    pace = Pace(1000, clock)
    for step in range(100):
        clock.now += 10.0 if step < 10 else 1.0
        pace.report(step)
    assert pace.rate == pytest.approx(1.0)


def test_pace_outlives_a_pause():
    clock = Clock()
    pace = Pace(60, clock)
    for step in range(1, 32):
        clock.now += 100.0 if step == 31 else 8.0  # a validation before the last of them
        pace.report(step)
    assert 29 * 8.0 <= pace.seconds_left < 2 * 29 * 8.0


def test_without_a_terminal_training_prints_one_line_per_interval_and_the_last_step():
    console, clock = plain_console(), Clock()
    with TrainProgress(100, console=console, interval=10.0, clock=clock) as progress:
        for step in range(1, 101):
            clock.now += 1.0
            progress.update(
                step, loss=1.25, tokens_per_s=3210.0, loss_tokens_per_s=1950.0, padding=0.018, data_wait=0.004
            )
    lines = text_of(console).splitlines()
    assert len(lines) == 11
    assert lines[1].split("  ") == [
        "train",
        " 11/100",
        "loss 1.250",
        "3.21k tok/s",
        "1.95k trained",
        "padding 1.8%",
        "data wait 0.4%",
        "1:29 left",
    ]
    assert "100/100" in lines[-1]


def test_what_is_unknown_is_left_out_but_a_loss_that_is_nan_is_shown():
    console = plain_console()
    with TrainProgress(3, console=console) as progress:
        progress.update(1, loss=math.nan)
    assert text_of(console).count("\n") == 1
    assert "loss nan" in text_of(console) and "padding" not in text_of(console)


def test_a_job_that_stops_early_still_prints_its_last_state():
    console, clock = plain_console(), Clock()
    with ItemProgress("tokenise", 1000, console=console, clock=clock) as progress:
        progress.advance(10)
        clock.now += 2.0
        progress.advance(90)
    assert text_of(console).splitlines()[-1] == "tokenise  100/1,000 examples  50 examples/s  0:18 left"


def test_in_a_terminal_there_is_a_bar_and_lasting_lines():
    console = Console(file=io.StringIO(), force_terminal=True, width=160)
    with TrainProgress(10, console=console) as progress:
        progress.update(4, loss=2.0, tokens_per_s=1000.0, loss_tokens_per_s=500.0)
        progress.write("step 4: validation loss 1.9 [kept]")
        progress.update(5, loss=1.9, tokens_per_s=1000.0, loss_tokens_per_s=500.0)
    assert "━" in text_of(console) and "5/10" in text_of(console)
    assert "validation loss 1.9 [kept]" in text_of(console)


def test_runs_that_train_together_share_a_line():
    console, clock = plain_console(), Clock()
    with GroupProgress({"a": 10, "b": 10}, console=console, interval=0.0, clock=clock) as group:
        for step in (1, 2):
            clock.now += 1.0
            for name, loss in (("a", 1.5), ("b", 2.25)):
                group.of(name).update(step, loss=loss, tokens_per_s=1000.0, loss_tokens_per_s=200.0, padding=0.1)
            group.show(["a", "b"])
        group.of("b").write("ends here")
        clock.now += 1.0
        group.of("a").update(3, loss=1.0, tokens_per_s=1000.0, loss_tokens_per_s=200.0)
        group.show(["a"])
    lines = text_of(console).splitlines()
    assert lines[1] == "train 2 runs   2/10  2 running  loss 1.500 2.250  2k tok/s  400 trained  0:08 left"
    assert lines[2] == "b: ends here"
    assert " 3/10  1 running  loss 1.000  1k tok/s" in lines[3]


def test_many_runs_show_the_range_of_their_losses():
    console = plain_console()
    names = [f"run{i}" for i in range(9)]
    with GroupProgress(dict.fromkeys(names, 10), console=console, interval=0.0) as group:
        for i, name in enumerate(names):
            group.of(name).update(1, loss=1.0 + i)
        group.show(names)
    assert "9 running  loss 1.000 to 9.000" in text_of(console)


def test_a_phase_says_that_it_goes_on_and_how_far_it_is_only_when_it_is_slow(capfd):
    with Phase("reading", first=60.0):
        pass
    assert capfd.readouterr().err == ""
    with Phase("validation", 3, unit="batches", first=0.01, interval=0.01) as phase:
        for item in phase.count(range(3)):
            if item == 2:
                deadline = time.monotonic() + 30
                while "validation: 2 of 3 batches" not in (seen := capfd.readouterr().err):
                    assert time.monotonic() < deadline, seen
    assert "validation: done, 0:0" in capfd.readouterr().err


def test_lines_of_a_phase_stand_above_the_bar_of_the_display_that_is_shown():
    shown = io.StringIO()
    console = Console(file=shown)
    with TrainProgress(3, console=console), pytest.raises(KeyError), Phase("saving", first=0.0) as phase:
        while "saving: ..." not in shown.getvalue():
            time.sleep(0.01)
        raise KeyError(phase)
    assert "saving: done" not in shown.getvalue()
