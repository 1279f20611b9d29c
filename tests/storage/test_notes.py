"""Notes of fingerprints: a file is read once, and again whenever it may have changed."""

import hashlib
import os
import time

import pytest

from jaxtune.storage import notes
from jaxtune.storage.notes import noted_fingerprint, reading_anew

OLD = 3600.0


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A file that was last changed long ago by the clock that notes are made with."""
    monkeypatch.setenv("JAXTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(notes, "SMALLEST", 4)
    now = time.time
    monkeypatch.setattr(notes.time, "time", lambda: now() + OLD)
    path = tmp_path / "weights.bin"
    path.write_bytes(b"first content")
    return path


@pytest.fixture
def reads(monkeypatch):
    """Files that were read to the end."""
    seen = []
    honest = notes.file_fingerprint
    monkeypatch.setattr(notes, "file_fingerprint", lambda path: seen.append(path) or honest(path))
    return seen


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_file_is_read_once(file, reads):
    assert [noted_fingerprint(file) for _ in range(3)] == [digest(b"first content")] * 3
    assert len(reads) == 1
    with reading_anew():
        assert noted_fingerprint(file) == digest(b"first content")
    assert len(reads) == 2


def test_a_file_of_the_same_size_and_time_with_other_bytes_is_read_again(file, reads):
    before = file.stat()
    noted_fingerprint(file)
    time.sleep(0.02)
    file.write_bytes(b"other content")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_mtime_ns == before.st_mtime_ns and file.stat().st_size == before.st_size
    assert noted_fingerprint(file) == digest(b"other content") and len(reads) == 2


def test_a_file_that_was_just_changed_when_it_was_read_is_read_again(file, reads, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("JAXTUNE_CACHE", str(file.parent / "cache"))
    monkeypatch.setattr(notes, "SMALLEST", 4)
    seen = []
    honest = notes.file_fingerprint
    monkeypatch.setattr(notes, "file_fingerprint", lambda path: seen.append(path) or honest(path))
    assert noted_fingerprint(file) == noted_fingerprint(file) == digest(b"first content")
    assert len(seen) == 2, "within the grain of the clock its time says nothing"


@pytest.mark.parametrize("note", [b"", b"[]", b'{"sha256": "00"}', b"not json"])
def test_a_damaged_note_is_none(file, reads, note):
    noted_fingerprint(file)
    [path] = (file.parent / "cache" / "digests").iterdir()
    path.write_bytes(note)
    assert noted_fingerprint(file) == digest(b"first content") and len(reads) == 2


def test_a_cache_that_cannot_be_written_costs_a_second_reading(file, reads, monkeypatch):
    monkeypatch.setenv("JAXTUNE_CACHE", "/dev/null/cache")
    assert [noted_fingerprint(file), noted_fingerprint(file)] == [digest(b"first content")] * 2
    assert reads == [file, file]
