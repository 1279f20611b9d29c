"""Rows laid end to end: every token once, in order, in a segment of its own example."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune.step import unpad as strip

SEGMENTS = jnp.array([[1, 1, 2, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 2, 2, 3, 0]])
TOKENS = jnp.arange(20).reshape(4, 5)


def test_tokens_lie_in_order_and_no_two_examples_share_an_id():
    laid = strip.lay(SEGMENTS, tokens=15, shards=1)
    np.testing.assert_array_equal(laid.take(TOKENS), [[0, 1, 2, 5, 6, 7, 8, 9, 15, 16, 17, 18, 0, 0, 0]])
    np.testing.assert_array_equal(laid.segment_ids, [[1, 1, 2, 3, 3, 3, 3, 3, 4, 5, 5, 6, 0, 0, 0]])
    assert laid.left_out == 0


def test_every_shard_lays_its_own_rows():
    laid = strip.lay(SEGMENTS, tokens=9, shards=2)
    np.testing.assert_array_equal(laid.take(TOKENS), [[0, 1, 2, 5, 6, 7, 8, 9, 0], [15, 16, 17, 18, 0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(laid.segment_ids, [[1, 1, 2, 3, 3, 3, 3, 3, 0], [1, 2, 2, 3, 0, 0, 0, 0, 0]])


def test_more_room_than_slots_is_not_taken():
    assert strip.lay(SEGMENTS, tokens=1000, shards=2).segment_ids.shape == (2, 10)


def test_tokens_that_do_not_fit_are_counted():
    assert strip.lay(SEGMENTS, tokens=10, shards=1).left_out == 2
    assert strip.lay(SEGMENTS, tokens=3, shards=2).left_out == 5 + 1


def test_rows_must_divide():
    with pytest.raises(ValueError, match="4 rows cannot be split over 3 shards"):
        strip.lay(SEGMENTS, tokens=9, shards=3)
