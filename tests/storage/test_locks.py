"""One writer a folder: a second is refused by name, a dead one holds nothing, readers and leftovers do not matter."""

import multiprocessing
import os
import pathlib
import signal
import socket
import subprocess
import sys

import pytest

from jaxtune.errors import UserError
from jaxtune.storage import locks
from jaxtune.storage.locks import FolderInUse, only_writer

HOLDER = """
import sys, pathlib, time
from jaxtune.storage.locks import only_writer
with only_writer(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(100)
"""


def hold(folder: pathlib.Path) -> subprocess.Popen:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, folder], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    return holder


def test_a_second_writer_is_told_who_writes_and_a_killed_one_frees_the_folder(tmp_path):
    folder = tmp_path / "runs" / "x"
    holder = hold(folder)
    before = sorted(folder.iterdir())
    told = rf"written by process {holder.pid} on {socket.gethostname()}, since 2"
    with pytest.raises(FolderInUse, match=told), only_writer(folder):
        raise AssertionError("two writers")
    assert sorted(folder.iterdir()) == before
    writer = locks.writer_of(folder)
    assert writer is not None and writer.process == holder.pid
    os.kill(holder.pid, signal.SIGKILL)
    holder.communicate()
    assert (folder / locks.NAME).exists(), "the dead cannot clean up"
    with only_writer(folder):
        pass


def test_the_same_process_is_a_second_writer_too(tmp_path):
    with only_writer(tmp_path), pytest.raises(FolderInUse, match=f"process {os.getpid()}"), only_writer(tmp_path):
        raise AssertionError("two writers")
    with only_writer(tmp_path):
        assert (tmp_path / locks.NAME).exists()


def test_a_folder_that_stays_empty_is_not_left_behind(tmp_path):
    with only_writer(tmp_path / "a" / "b"):
        pass
    assert list(tmp_path.iterdir()) == []
    with only_writer(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "x").write_text("")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["x"]


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"host": 1}', b'{"process": [], "host": "a", "since": "b"}', b"\xff"]
)
def test_an_unreadable_note_is_still_a_lock(tmp_path, content):
    with only_writer(tmp_path):
        (tmp_path / locks.NAME).write_bytes(content)
        with pytest.raises(FolderInUse, match="another process"), only_writer(tmp_path):
            raise AssertionError("two writers")


@pytest.mark.parametrize("kind", ["link", "loop", "folder", "pipe", "socket"])
def test_a_lock_file_that_is_no_file_is_refused_and_what_it_leads_to_stays(tmp_path, kind, monkeypatch):
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.write_text("kept")
    lock = folder / locks.NAME
    monkeypatch.chdir(folder)  # names of sockets are short
    with socket.socket(socket.AF_UNIX) as listening:
        make = {
            "link": lambda: lock.symlink_to(elsewhere), "loop": lambda: lock.symlink_to(lock), "folder": lock.mkdir,
            "pipe": lambda: os.mkfifo(lock), "socket": lambda: listening.bind(locks.NAME),
        }  # fmt: skip
        make[kind]()
        with pytest.raises(UserError, match=r"\.writer is no plain file; remove it"), only_writer(folder):
            raise AssertionError("it was locked")
    assert elsewhere.read_text() == "kept"


def _count(folder: pathlib.Path, rounds: int) -> None:
    for _ in range(rounds):
        try:
            with only_writer(folder):
                number = int((folder / "n").read_text())
                (folder / "n").write_text(str(number + 1))
                (folder / "done").open("a").write("x")
        except FolderInUse:
            pass


def test_many_that_come_and_go_are_never_inside_together(tmp_path):
    (tmp_path / "n").write_text("0")
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_count, args=(tmp_path, 200)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert int((tmp_path / "n").read_text()) == len((tmp_path / "done").read_text()) > 0


@pytest.mark.parametrize("name", ["file/run", "/proc/1/run", "a\0b"])
def test_a_folder_that_cannot_be_is_refused_with_its_name(name, tmp_path):
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(UserError, match=r"cannot be made \(.*\); give a folder on a disk"),
        only_writer(tmp_path / name),
    ):
        raise AssertionError("it was made")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
