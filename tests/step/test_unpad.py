"""Rows laid end to end: every token once, in order, in a segment of its own example."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxtune.step import unpad

SEGMENTS = jnp.array([[1, 1, 2, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 2, 2, 3, 0]])
TOKENS = jnp.arange(20).reshape(4, 5)


def test_tokens_lie_in_order_and_no_two_examples_share_an_id():
    laid = unpad.lay(SEGMENTS, tokens=15, shards=1)
    np.testing.assert_array_equal(laid.take(TOKENS), [[0, 1, 2, 5, 6, 7, 8, 9, 15, 16, 17, 18, 0, 0, 0]])
    np.testing.assert_array_equal(laid.segment_ids, [[1, 1, 2, 3, 3, 3, 3, 3, 4, 5, 5, 6, 0, 0, 0]])
    assert laid.left_out == 0


def test_every_shard_lays_its_own_rows():
    laid = unpad.lay(SEGMENTS, tokens=9, shards=2)
    np.testing.assert_array_equal(laid.take(TOKENS), [[0, 1, 2, 5, 6, 7, 8, 9, 0], [15, 16, 17, 18, 0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(laid.segment_ids, [[1, 1, 2, 3, 3, 3, 3, 3, 0], [1, 2, 2, 3, 0, 0, 0, 0, 0]])


def test_a_row_filled_to_its_last_slot_does_not_share_its_segment_with_the_next_row():
    rows = jnp.array([[1, 1, 1, 1, 1], [1, 1, 2, 0, 0]])
    laid = unpad.lay(rows, tokens=9, shards=1)
    np.testing.assert_array_equal(laid.segment_ids, [[1, 1, 1, 1, 1, 2, 2, 3, 0]])
    np.testing.assert_array_equal(laid.places, [[0, 1, 2, 3, 4, 5, 6, 7, 10]])


def test_more_room_than_slots_is_not_taken():
    assert unpad.lay(SEGMENTS, tokens=1000, shards=2).segment_ids.shape == (2, 10)


def test_tokens_that_do_not_fit_are_counted():
    assert unpad.lay(SEGMENTS, tokens=10, shards=1).left_out == 2
    assert unpad.lay(SEGMENTS, tokens=3, shards=2).left_out == 5 + 1


def test_rows_must_divide():
    with pytest.raises(ValueError, match="4 rows cannot be split over 3 shards"):
        unpad.lay(SEGMENTS, tokens=9, shards=3)


@st.composite
def packed_rows(draw):
    """Rows of 6 slots, each packed with examples 1, 2, ... and padding at its end; often full to the last slot."""
    rows = np.zeros((4, 6), np.int32)
    for row in rows:
        used = 0
        for segment in (1, 2, 3):
            length = draw(st.integers(0, 6 - used))
            row[used : used + length] = segment if length else 0
            used += length
        row[:] = renumbered(row)
    return rows


def renumbered(row):
    """Segments without gaps in their numbers."""
    order = {segment: number for number, segment in enumerate(dict.fromkeys(row[row > 0].tolist()), start=1)}
    return [order.get(int(segment), 0) for segment in row]


@given(packed_rows(), st.sampled_from([1, 2]))
def test_two_tokens_share_a_segment_exactly_where_they_are_of_one_example(rows, shards):
    laid = unpad.lay(jnp.asarray(rows), tokens=24, shards=shards)
    example = np.where(rows > 0, 10 * np.arange(1, 5)[:, None] + rows, 0)  # which row and segment a slot is of
    owner, segment = np.asarray(laid.take(jnp.asarray(example))), np.asarray(laid.segment_ids)
    for owners, segments in zip(owner, segment, strict=True):
        real = owners > 0
        assert (segments[real] > 0).all() and not segments[~real].any()
        same = owners[real][:, None] == owners[real][None, :]
        np.testing.assert_array_equal(segments[real][:, None] == segments[real][None, :], same)
