"""Stores of tokens: two to four bytes a token, with the content, and the fingerprints, of eight."""

import dataclasses
import hashlib

import numpy as np
import pytest

from jaxtune.data.store import DamagedStore, Part, TaskTokens, merge, open_store, runs_of, token_type
from jaxtune.storage.documents import read_object, write_sealed

FACTS = {"data": "these"}


def part(seed: int, limit: int, examples: int = 40) -> Part:
    """Examples of two wordings with all kinds of weights; the highest token is there."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 90, (examples, 2)).astype(np.int32)
    total = int(lengths.sum())
    tokens = random.integers(0, limit, total).astype(np.int32)
    tokens[0], tokens[-1] = limit - 1, 0
    weights = np.repeat(random.choice([0.0, 1.0, 0.3], total // 20 + 1), 20)[:total].astype(np.float32)
    weights[:30] = random.random(30)
    loss = (lengths // 2).astype(np.int32)
    return Part(
        tokens=tokens, weights=weights, lengths=lengths, loss_lengths=loss, response_lengths=loss,
        records=np.arange(examples), outcomes={"kept": examples},
    )  # fmt: skip


def stored(folder, parts, limit: int) -> TaskTokens:
    files = [folder / f"{number}.npz" for number in range(len(parts))]
    for file, each in zip(files, parts, strict=True):
        each.write(file, limit)
    merge(files, folder / "store", task="t", split="train", facts=FACTS)
    return open_store(folder / "store", FACTS)


@pytest.mark.parametrize(("limit", "token_bytes"), [(300, 2), (65_535, 2), (65_536, 2), (65_537, 4), (262_144, 4)])
def test_what_was_written_is_read_again_in_as_few_bytes_as_hold_it(tmp_path, limit, token_bytes):
    parts = [part(1, limit), part(2, limit, examples=1), part(3, limit)]
    store = stored(tmp_path, parts, limit)
    assert store.all_tokens.dtype.itemsize == token_bytes
    k = 0
    for each in parts:
        ends = np.cumsum(each.lengths.reshape(-1))[:-1]
        for tokens, weights in zip(np.split(each.tokens, ends), np.split(each.weights, ends), strict=True):
            found = store.example(k // 2, k % 2)
            assert found.tokens.dtype == np.int32 and found.loss_weights.dtype == np.float32
            assert found.tokens.tolist() == tokens.tolist()
            assert found.loss_weights.tobytes() == weights.tobytes(), "to the bit"
            k += 1
    assert k == 2 * len(store)
    read = Part.read(tmp_path / "0.npz")
    assert read.weights.tobytes() == parts[0].weights.tobytes() and read.tokens.tolist() == parts[0].tokens.tolist()


def test_fingerprints_are_those_of_eight_bytes_a_token(tmp_path):
    """Runs made with earlier versions recorded them."""
    parts = [part(1, 500), part(2, 500)]
    store = stored(tmp_path, parts, 500)
    joined = {
        name: np.concatenate([getattr(each, name) for each in parts])
        for name in ("lengths", "loss_lengths", "response_lengths", "records", "tokens", "weights")
    }
    arrays = [np.cumsum(joined["lengths"].reshape(-1)).astype("<i8"), joined["records"].astype("<i8")]
    arrays += [joined[name].astype("<i4") for name in ("lengths", "loss_lengths", "response_lengths", "tokens")]
    expected = hashlib.sha256(b"".join(array.tobytes() for array in [*arrays, joined["weights"].astype("<f4")]))
    assert store.fingerprint == expected.hexdigest()
    ends, blocks = np.cumsum(joined["lengths"].reshape(-1)), []
    for low, high in ((0, 26), (26, 53), (53, 80)):  # three blocks of 80 examples in two wordings
        span = slice(int(ends[2 * low - 1]) if low else 0, int(ends[2 * high - 1]))
        content = joined["lengths"][low:high].tobytes() + joined["tokens"][span].tobytes()
        blocks.append(hashlib.sha256(content + joined["weights"][span].tobytes()).hexdigest()[:16])
    assert store.block_fingerprints(3) == blocks


def test_a_conversation_takes_little_more_than_its_tokens(tmp_path):
    one = part(1, 60_000)
    even = dataclasses.replace(one, weights=np.ones_like(one.weights))
    tokens = len(stored(tmp_path, [even], 60_000).all_tokens)
    others = 40 * 8 + 80 * (8 + 8 + 3 * 4 + 8)  # numbers of the records; ends, lengths, one run of each wording
    assert (tmp_path / "store" / "data").stat().st_size == 2 * tokens + others


@pytest.mark.parametrize("token", [-1, 65_536, 70_000])
def test_a_token_that_does_not_fit_is_not_written_as_another(tmp_path, token):
    wrong = part(1, 65_536)
    wrong.tokens[5] = token
    with pytest.raises(ValueError, match="token ids"):
        wrong.write(tmp_path / "part.npz", 65_536)
    assert not list(tmp_path.iterdir())


def test_types_of_tokens_begin_at_their_limits():
    assert [token_type(limit).name for limit in (1, 65_536, 65_537, 2**32)] == ["uint16", "uint16", "uint32", "uint32"]
    for limit in (0, 2**32 + 1):
        with pytest.raises(ValueError, match="between 1 and"):
            token_type(limit)


def test_runs_end_with_their_example_and_keep_every_bit():
    weights = np.array([0, 0, 1, 1, 1, -0.0, 0, np.nan, np.nan], np.float32)
    each, lengths, kept = runs_of(weights, np.array([3, 0, 1, 5]))
    assert each.tolist() == [2, 0, 1, 4] and lengths.tolist() == [2, 1, 1, 1, 1, 1, 2]
    assert np.repeat(kept, lengths).tobytes() == weights.tobytes()


def test_a_store_of_another_format_is_made_again_and_not_read(tmp_path):
    store = stored(tmp_path, [part(1, 500)], 500)
    meta = read_object(store.folder / "meta.json")
    del meta["digest"]
    write_sealed(store.folder / "meta.json", {**meta, "format": "jaxtune tokens 2"})
    with pytest.raises(DamagedStore, match="its format is 'jaxtune tokens 2'"):
        open_store(store.folder, FACTS)
