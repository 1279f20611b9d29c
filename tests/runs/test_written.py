"""Digests of a checkpoint's files by the processes that wrote them."""

import hashlib
import threading

import pytest
from etils import epath

from jaxtune.runs.written import Barrier, all_digests, note_own, own_files
from jaxtune.storage.documents import UnreadableDocument

FILES = (
    "params/ocdbt.process_0/d/a", "params/ocdbt.process_1/d/b", "params/ocdbt.process_1/manifest.ocdbt",
    "params/ocdbt.process_11/d/c", "params/manifest.ocdbt", "params/array_metadatas/process_1",
    "rest/ocdbt.process_1/d/d", "_CHECKPOINT_METADATA",
)  # fmt: skip
OWN = ["params/ocdbt.process_1/d/b", "params/ocdbt.process_1/manifest.ocdbt", "rest/ocdbt.process_1/d/d"]


@pytest.fixture
def folder(tmp_path) -> epath.Path:
    for name in FILES:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return epath.Path(tmp_path)


def digest(text: str) -> dict:
    return {"bytes": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}


def test_a_process_answers_for_its_share_of_the_arrays(folder):
    (folder / "rest").rename(folder / "rest.orbax-checkpoint-tmp")
    now = own_files(folder, 1)
    assert list(now) == OWN and now[OWN[2]] == "rest.orbax-checkpoint-tmp/ocdbt.process_1/d/d"
    assert own_files(folder, 2) == {}


def test_what_processes_noted_is_taken_and_the_rest_is_read(folder):
    note_own(folder, 1)
    note_own(folder, 11)
    (folder / OWN[0]).write_text("changed after it was written")
    found = all_digests(folder, ("_CHECKPOINT_METADATA",))
    assert found == {name: digest(name) for name in sorted(FILES) if name != "_CHECKPOINT_METADATA"}
    assert not list(folder.glob("digests*")), "the notes are no part of the checkpoint"


def test_a_file_that_was_written_and_is_gone_fails_the_save(folder):
    note_own(folder, 1)
    (folder / OWN[2]).unlink()
    with pytest.raises(FileNotFoundError, match="rest/ocdbt.process_1/d/d was written"):
        all_digests(folder, ())


def test_a_damaged_note_fails_the_save(folder):
    note_own(folder, 1)
    note = folder / "digests.1.json"
    note.write_text(note.read_text().replace(digest(OWN[0])["sha256"], "0" * 64))
    with pytest.raises(UnreadableDocument, match="content changed"):
        all_digests(folder, ())


def in_background(call, **at) -> None:
    """As the threads of Orbax do it."""
    thread = threading.Thread(target=lambda: call(timeout_ms=5, **at))
    thread.start()
    thread.join()


def test_digests_are_noted_before_the_barrier_that_follows_the_arrays_and_no_other():
    told = []
    barrier = Barrier(lambda *, key, timeout_ms: told.append(key), lambda: told.append("noted"))
    barrier(key="set_value_start", timeout_ms=5)
    barrier.begin()
    for key in ("async_write_complete.7", "async_commit_complete.7", "set_value_start", "set_value_end"):
        in_background(barrier, key=key)
    assert told == [
        "set_value_start", "noted", "async_write_complete.7", "async_commit_complete.7", "set_value_start",
        "set_value_end",
    ]  # fmt: skip


def test_a_process_whose_save_failed_waits_for_nobody_at_its_end():
    told = []
    barrier = Barrier(lambda *, key, timeout_ms: told.append(key), lambda: None)
    barrier.begin()
    barrier(key="set_value_start", timeout_ms=5)  # a save begins in the main thread, for all
    in_background(barrier, key="async_write_complete.7")
    in_background(barrier, key="set_value_start")
    assert told == ["set_value_start", "async_write_complete.7"]
