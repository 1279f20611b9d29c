import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from jaxtune.batch import Example, assemble, utilisation
from jaxtune.errors import UserError
from jaxtune.plan.packing import best_fit


def example(length, first=1):
    return Example(tokens=np.arange(first, first + length, dtype=np.int32), loss_weights=np.ones(length, np.float32))


def best_fit_one_by_one(lengths, seq_len):
    """Best-fit-decreasing, from its definition."""
    room, rows = [], np.empty(len(lengths), int)
    for i in np.argsort(-lengths, kind="stable"):
        fitting = [(left, row) for row, left in enumerate(room) if left >= lengths[i]]
        row = min(fitting)[1] if fitting else len(room)
        if not fitting:
            room.append(seq_len)
        room[row] -= lengths[i]
        rows[i] = row
    return rows


@hypothesis.given(st.integers(1, 70), st.data())
def test_best_fit_fills_rows_as_the_textbook_does(seq_len, data):
    lengths = np.array(data.draw(st.lists(st.integers(1, seq_len), min_size=1, max_size=150)))
    fast = np.bincount(best_fit(lengths, seq_len), weights=lengths)
    slow = np.bincount(best_fit_one_by_one(lengths, seq_len), weights=lengths)
    assert fast.max() <= seq_len
    assert sorted(fast) == sorted(slow)


def test_best_fit_reaches_985_thousandths_at_512_tokens_on_lognormal_lengths():
    rng = np.random.default_rng(0)
    for mean, sigma in ((4.0, 1.0), (4.7, 0.8), (5.2, 0.6)):
        lengths = np.clip(rng.lognormal(mean, sigma, 4096), 4, 512).astype(int)
        rows = best_fit(lengths, 512)
        assert lengths.sum() / ((rows.max() + 1) * 512) > 0.985


def test_an_example_longer_than_the_row_is_refused_with_its_length():
    with pytest.raises(UserError, match="513 tokens does not fit rows of 512"):
        best_fit(np.array([10, 513]), 512)


def test_no_examples_need_no_rows():
    assert best_fit(np.array([], int), 8).tolist() == []


def test_a_row_shows_each_example_with_its_own_segment_positions_and_task():
    batch = assemble([[(example(3), 2), (example(2, first=7), 1)], []], 8, num_rows=3)
    assert batch.tokens[0].tolist() == [1, 2, 3, 7, 8, 0, 0, 0]
    assert batch.segment_ids[0].tolist() == [1, 1, 1, 2, 2, 0, 0, 0]
    assert batch.positions[0].tolist() == [0, 1, 2, 0, 1, 0, 0, 0]
    assert batch.task_ids[0].tolist() == [2, 2, 2, 1, 1, 0, 0, 0]
    assert batch.loss_weights[0].tolist() == [0, 1, 1, 0, 1, 0, 0, 0]
    assert not batch.segment_ids[1:].any()
    assert utilisation(batch) == 5 / 24


@hypothesis.given(st.lists(st.integers(1, 20), min_size=1, max_size=40), st.integers(20, 50))
def test_tokens_in_are_tokens_out(lengths, seq_len):
    rows_of = best_fit(np.array(lengths), seq_len)
    examples = [example(n, first=1000 * (i + 1)) for i, n in enumerate(lengths)]
    rows = [[(examples[i], 0) for i in np.flatnonzero(rows_of == row)] for row in range(rows_of.max() + 1)]
    batch = assemble(rows, seq_len)
    real = np.asarray(batch.segment_ids) > 0
    assert sorted(np.asarray(batch.tokens)[real]) == sorted(np.concatenate([e.tokens for e in examples]))


def test_an_overflowing_row_is_a_bug_and_says_so():
    with pytest.raises(ValueError, match="row 0 holds 9 tokens"):
        assemble([[(example(5), 0), (example(4), 0)]], 8)
