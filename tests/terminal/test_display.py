"""What a person sees: screens of a real run and of short jobs on pseudo-terminals of several widths."""

import io
import sys
import textwrap
import time

import pytest
from recorded_terminal import Recording, Screen, record
from rich.console import Console

from jaxtune.terminal.display import Part, Phase, fitting
from jaxtune.terminal.progress import ItemProgress, TrainProgress

JOB = """
    import time
    from jaxtune.terminal.display import Phase
    from jaxtune.terminal.progress import ItemProgress, TrainProgress

    with Phase("loading", first=0.1):
        time.sleep(0.5)
    with ItemProgress("sweep", 2, unit="runs") as sweep, TrainProgress(160) as train:
        for step in range(1, 13):
            time.sleep(0.1)
            train.update(step, loss=4.474, tokens_per_s=2290.0, loss_tokens_per_s=322.0, padding=0.04, data_wait=0.0)
        with Phase("validation", 40, unit="batches", first=0.1) as phase:
            for _ in phase.count(range(30)):
                time.sleep(0.03)
        train.write("validation at step 12: macro mean 1.2345, best 1.2345 at step 12")
        with Phase("step 13", 8, unit="micro-batches", first=0.1, expected=1.5):
            time.sleep(0.8)
        sweep.advance()
"""


def recorded(columns, folder):
    return record([sys.executable, "-c", textwrap.dedent(JOB)], columns=columns, folder=folder, seconds=60.0)


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_bars_stay_and_nothing_is_cut_whatever_the_width(columns, tmp_path):
    seen = recorded(columns, tmp_path)
    assert seen.code == 0
    train = [line for line in seen.bars if "train" in line and "/160" in line and " 0/160" not in line]
    assert train and all("loss 4.474" in line and "left" in line for line in train)
    assert all("…" not in line and len(line) <= columns for line in seen.bars)
    assert any("tok/s" in line for line in train) == (columns > 60)
    assert any("data wait" in line for line in train) == (columns == 120)  # what matters least goes first
    everything = "\n".join(text for _, text in seen.screens)
    assert "of 40 batches" in everything and "about 3 of 8 micro-batches" in everything


def test_what_is_over_leaves_the_screen_and_lines_stay(tmp_path):
    *_, (_, last) = recorded(100, tmp_path).screens
    assert "validation at step 12: macro mean 1.2345" in last
    assert "loading" not in last and "batches" not in last


OUTLIVED = """
    import time
    from jaxtune.terminal.display import Phase
    from jaxtune.terminal.progress import ItemProgress

    with Phase("preparing", first=0.3):
        with ItemProgress("tokenise", 2, unit="records") as inner:
            time.sleep(0.8)
            inner.advance(2)
        time.sleep(1.5)
        with ItemProgress("tokenise more", 1, unit="records"):
            time.sleep(1.5)
    print("over")
"""


def test_a_line_that_opened_later_outlives_the_one_that_opened_the_terminal(tmp_path):
    seen = record([sys.executable, "-c", textwrap.dedent(OUTLIVED)], columns=80, folder=tmp_path, seconds=60.0)
    assert seen.code == 0
    lines = [text.split("\n") for _, text in seen.screens]
    after = [one for one in lines if any("2/2 records" in line for line in one)]  # the finished bar stays
    assert any("preparing" in line for one in after for line in one)
    assert any("tokenise more" in line for one in after for line in one)
    assert "2/2 records" in seen.screens[-1][1] and "over" in seen.screens[-1][1]
    assert "preparing" not in seen.screens[-1][1] and "more" not in seen.screens[-1][1]


@pytest.mark.slow
@pytest.mark.parametrize("columns", [80, 120])
def test_the_quickstart_is_never_silent_for_five_seconds(columns, tmp_path):
    command = [sys.executable, "-m", "jaxtune", "train", "quickstart", "--run-dir", "run"]
    seen = record(command, columns=columns, folder=tmp_path, seconds=1500.0)
    assert seen.code == 0, seen.screens[-1][1]
    assert seen.longest_silence[0] < 5.0, seen.longest_silence
    assert all("…" not in line and len(line) <= columns for line in seen.bars)
    assert any("160/160" in line for line in seen.bars)
    for text in ("validation at step 40", "160 steps of 16 rows of 128 tokens"):
        assert text in seen.screens[-1][1].replace("\n", "")


def test_the_least_important_parts_go_first():
    parts = [Part("6/160"), Part("loss 4.4", 2), Part("padding 4%", 6), Part("0:12 left", 1)]
    assert fitting(parts, 80) == "6/160  loss 4.4  padding 4%  0:12 left"
    assert fitting(parts, 30) == "6/160  loss 4.4  0:12 left"
    assert fitting(parts, 16) == "6/160  0:12 left"
    assert fitting(parts, 3) == "6/160"


def test_time_left_counts_what_is_not_a_step_and_leaves_pauses_out_of_the_pace():
    class Clock:
        now = 0.0

        def __call__(self):
            return self.now

    clock = Clock()
    with TrainProgress(10, console=Console(file=io.StringIO()), clock=clock) as progress:
        for step in (1, 2, 3):
            clock.now += 2.0
            progress.update(step, loss=1.0)
        clock.now += 100.0
        progress.pause(100.0)
        progress.expect(50.0)
        clock.now += 2.0
        progress.update(4, loss=1.0)
    assert progress.seconds_a_step == pytest.approx(2.0)
    assert progress.seconds_left == pytest.approx(6 * 2.0 + 50.0)


def test_the_recorded_screen_knows_what_bars_do_to_a_terminal():
    screen = Screen(10)
    screen.feed("first\nsecond line wraps\n\x1b[1A\x1b[2Kwrites\rW")
    assert screen.text == "first\nsecond lin\nWrites\n"
    screens = [(0.0, ""), (1.0, "a"), (7.5, "b"), (8.0, "b\n")]
    assert Recording(screens=screens, code=0).longest_silence == (6.5, "a")


def test_a_line_can_be_written_before_the_bar_is_there(capfd):
    TrainProgress(3).write("validation at step 0")
    assert capfd.readouterr().err == "validation at step 0\n"


def test_outside_a_terminal_a_phase_is_quiet_while_a_job_inside_it_speaks(capfd):
    with Phase("preparing", first=0.01, interval=0.01):
        with ItemProgress("tokenise", 2, unit="records") as inside:
            time.sleep(0.1)
            inside.advance(2)
        said = capfd.readouterr().err
        time.sleep(0.1)
    assert "tokenise  2/2 records" in said and "preparing: ..." not in said
    assert "preparing: ..." in capfd.readouterr().err
