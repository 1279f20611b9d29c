"""Run folders in an object store: the working copy, its lease, and what reaches the store when."""

import json
import os
import pathlib
import shutil
import threading
import time

import fsspec
import pytest

from jaxtune.errors import UserError
from jaxtune.runs import remote
from jaxtune.runs.remote import RemoteFolder, read_places
from jaxtune.storage import lease, locks, stores
from jaxtune.storage.lease import Lease, holder_of
from jaxtune.storage.locks import FolderInUse
from jaxtune.storage.stores import Store, StoreError


@pytest.fixture(params=["memory", "file"])
def url(request, tmp_path):
    return f"{request.param}://{tmp_path.as_posix()}/bucket/runs/x"


@pytest.fixture
def store(url):
    return Store(url)


def names(store: Store) -> set[str]:
    return set(store.names()) - {locks.NAME}


def write(folder: pathlib.Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_json", ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_files_go_to_the_store_and_come_back_on_an_empty_disk(tmp_path, url, store):
    remote = RemoteFolder(url, tmp_path / "one")
    with remote.writing():
        write(remote.folder, config_json="{}", metrics="1\n", model__weights="w", checkpoints__x="orbax", seal_json="s")
        (remote.folder / ".aside").write_text("in the making")
        remote.send()
        assert names(store) == {"config.json", "metrics", "model/weights", "seal.json"}
        write(remote.folder, metrics="1\n2\n")
        (remote.folder / "seal.json").unlink()
    assert names(store) == {"config.json", "metrics", "model/weights"}
    assert store.read("metrics") == b"1\n2\n"
    other = RemoteFolder(url, tmp_path / "two")
    with other.writing():
        assert (other.folder / "metrics").read_text() == "1\n2\n"
        assert not (other.folder / "model").exists()  # nothing of a run that goes on needs it
    assert names(store) == {"config.json", "metrics", "model/weights"}
    reader = RemoteFolder(url, tmp_path / "two", reading=True)
    reader.fetch(lambda name: True)
    assert (reader.folder / "model" / "weights").read_text() == "w"


def test_a_stale_disk_becomes_what_the_store_has(tmp_path, url, store):
    remote = RemoteFolder(url, tmp_path / "one")
    with remote.writing():
        write(remote.folder, config_json="{}", metrics="1\n", mixture="m")
    store.ask("pipe_file", store.path("metrics"), b"1\n2\n3\n")
    write(remote.folder, mixture="changed here", stranger="of another time")
    with remote.writing():
        assert (remote.folder / "metrics").read_text() == "1\n2\n3\n"
        assert (remote.folder / "mixture").read_text() == "m"
        assert not (remote.folder / "stranger").exists()


def test_a_model_of_unknown_origin_on_the_disk_does_not_replace_that_of_the_store(tmp_path, url, store):
    remote = RemoteFolder(url, tmp_path / "one")
    with remote.writing():
        write(remote.folder, config_json="{}", model__weights="good")
    write(remote.folder, model__weights="of another time")
    (remote.folder.parent / "copies.json").unlink()
    with remote.writing():
        assert not (remote.folder / "model" / "weights").exists()
    assert store.read("model/weights") == b"good"


def test_nothing_is_sent_or_brought_twice(tmp_path, url, store, monkeypatch):
    remote = RemoteFolder(url, tmp_path / "one")
    moved = []
    kind = type(store._store)
    put, get = Store.put, kind.get
    monkeypatch.setattr(Store, "put", lambda self, files: (moved.extend(files), put(self, files)))
    monkeypatch.setattr(kind, "get", lambda self, there, here, **k: (moved.extend(there), get(self, there, here, **k)))
    with remote.writing():
        write(remote.folder, config_json="{}", metrics="1\n")
        remote.send()
        assert [os.path.basename(path) for path in moved] == ["metrics"]
        moved.clear()
        write(remote.folder, metrics="1\n2\n")
        remote.send()
        assert [os.path.basename(path) for path in moved] == ["metrics"]
    with remote.writing():
        assert [os.path.basename(path) for path in moved] == ["metrics"]


def test_what_was_written_before_a_failure_is_sent_and_the_failure_stays(tmp_path, url, store):
    remote = RemoteFolder(url, tmp_path / "one")
    with pytest.raises(ValueError, match="of the run"), remote.writing():
        write(remote.folder, config_json="{}", metrics="1\n")
        raise ValueError("of the run")
    assert names(store) == {"config.json", "metrics"} and holder_of(store) is None


def test_an_end_that_cannot_be_sent_says_where_the_run_is(tmp_path, url, store, monkeypatch):
    def down(*_, **__):
        raise ConnectionError("the store is down")

    remote = RemoteFolder(url, tmp_path / "one")
    with pytest.raises(UserError, match="the store is down") as caught, remote.writing():
        write(remote.folder, config_json="{}", metrics="1\n")
        monkeypatch.setattr(type(store._store), "put", down)
        monkeypatch.setattr(stores, "replacing", down)  # the way to a disk
    assert f"It is whole in {remote.folder}" in str(caught.value)


def test_the_file_that_makes_it_a_run_is_sent_first_and_the_end_last(tmp_path, url, store, monkeypatch):
    remote, order, removed = RemoteFolder(url, tmp_path / "one"), [], []
    ask, put, one = Store.ask, Store.put, Store.write

    def listen(self, method, *arguments, **settings):
        removed.extend(os.path.basename(path) for path in arguments if method == "rm_file")
        return ask(self, method, *arguments, **settings)

    monkeypatch.setattr(Store, "ask", listen)
    monkeypatch.setattr(Store, "put", lambda self, files: (order.extend(files), put(self, files)))
    monkeypatch.setattr(Store, "write", lambda self, name, content: (order.append(name), one(self, name, content)))
    with remote.writing():
        order.clear()
        write(remote.folder, seal_json="s", summary_json="{}", config_json="{}", a="1", z="2")
        remote.send()
        assert order == ["config.json", "a", "z", "summary.json", "seal.json"]
        removed.clear()
        remote.clear()
        assert set(removed) == {"config.json", "a", "z", "summary.json", "seal.json"} and removed[-1] == "config.json"


def test_a_folder_of_other_things_is_neither_taken_nor_read(tmp_path, url, store, monkeypatch):
    monkeypatch.setenv("JAXTUNE_CACHE", str(tmp_path / "cache"))
    store.ask("pipe_file", store.path("x", "config.json"), b"{}")
    with pytest.raises(UserError, match="holds files but no run"), RemoteFolder(url, tmp_path / "one").writing():
        raise AssertionError("it was taken")
    with pytest.raises(UserError, match="holds files but no run"), read_places([url]):
        raise AssertionError("it was read")
    assert names(store) == {"x/config.json"}


def test_a_cleared_run_leaves_nothing_but_the_lease(tmp_path, url, store):
    remote = RemoteFolder(url, tmp_path / "one")
    with remote.writing():
        write(remote.folder, config_json="{}", metrics="1\n")
        remote.send()
        store.ask("pipe_file", store.path("checkpoints", "00000001", "checkpoint.json"), b"{}")
        remote.clear()
        assert names(store) == set()
        for path in list(remote.folder.iterdir()):
            path.unlink()


def test_a_url_that_names_no_folder_or_whose_package_is_missing_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for url in ("gs://", "memory://x/..", "file:///"):
        with pytest.raises(UserError, match="names no folder"):
            RemoteFolder(url, tmp_path)
    with pytest.raises(UserError, match="cannot be kept at nosuch://x/y"):
        RemoteFolder("nosuch://x/y", tmp_path)
    with (
        pytest.raises(UserError, match="cannot be kept at http"),
        RemoteFolder("http://localhost:9/x", tmp_path).writing(),
    ):
        raise AssertionError("nothing can be written there")
    assert list(tmp_path.iterdir()) == []


def test_a_working_copy_that_another_process_writes_is_called_by_its_url(tmp_path):
    place = f"file://{tmp_path}/bucket/run"
    first, second = (RemoteFolder(place, tmp_path / "cache") for _ in range(2))
    with first.writing(), pytest.raises(FolderInUse, match=f"^{place} is being written by"), second.writing():
        raise AssertionError("two writers")


# ------------------------------------------------------------------------------------------------------- the lease


def test_a_lease_has_one_holder_and_goes_at_its_end(url, store, monkeypatch):
    monkeypatch.setattr(lease, "STALE", 1.0)
    monkeypatch.setattr(lease, "BEAT", 0.05)
    with Lease(store) as held:
        assert holder_of(store) == held.holder
        with pytest.raises(FolderInUse, match=f"is being written by process {os.getpid()}"), Lease(Store(url)):
            raise AssertionError("two writers")
        held.confirm()
    assert holder_of(store) is None
    with Lease(store):
        pass


@pytest.mark.parametrize("by", ["write", "put"])
def test_a_reader_sees_an_object_whole_while_it_is_written_anew(store, url, tmp_path, by):
    if by == "put" and url.startswith("memory"):
        store = Store(f"file://{tmp_path}/store")  # fsspec's store in memory shows halves; real ones do not
    contents = [bytes([65 + i]) * 1_000_000 for i in range(2)]
    files = [tmp_path / f"file {i}" for i in range(2)]
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content)
    store.write("x", contents[0])
    seen, end = set(), threading.Event()

    def look():
        while not end.is_set():
            seen.add(store.read("x"))

    reader = threading.Thread(target=look)
    reader.start()
    for i in range(100):
        store.write("x", contents[i % 2]) if by == "write" else store.put({"x": files[i % 2]})
    end.set()
    reader.join()
    assert seen <= set(contents)
    assert names(store) == {"x"}


def test_what_a_killed_process_left_of_a_write_is_no_object(tmp_path):
    store = Store(f"file://{tmp_path}")
    store.write("x", b"1")
    (tmp_path / ".x.0123456789ab").write_bytes(b"half of")
    assert names(store) == {"x"}


def test_a_file_that_cannot_be_put_leaves_the_object_of_before(tmp_path):
    store = Store(f"file://{tmp_path}/store")
    store.write("deep/x", b"before")
    with pytest.raises(StoreError, match="IsADirectoryError"):
        store.put({"deep/x": tmp_path})
    assert store.read("deep/x") == b"before"
    assert [path.name for path in (tmp_path / "store" / "deep").iterdir()] == ["x"]


def leave(store: Store, **changes) -> None:
    """The lease of a process that was killed."""
    with Lease(store) as held:
        content = json.loads(store.read(locks.NAME) or b"") | changes
        assert held.holder.machine
    store.ask("pipe_file", store.path(locks.NAME), json.dumps(content).encode())


@pytest.mark.parametrize("changes", [{"process": 2**22 + 1}, {"machine": "another", "time": time.time() - 7 * 3600.0}])
def test_the_lease_of_a_process_that_is_known_to_be_gone_is_taken_at_once(store, monkeypatch, changes):
    monkeypatch.setattr(lease, "SETTLE", 0.0)
    leave(store, **changes)
    started = time.monotonic()
    with Lease(store) as held:
        assert holder_of(store) == held.holder
    assert time.monotonic() - started < lease.STALE / 2


@pytest.mark.parametrize("changes", [{"process": "x"}, {"process": 2**70}, {"process": -1}, {"machine": 5}])
def test_a_lease_of_odd_types_names_nobody_and_is_taken_once_it_is_silent(store, monkeypatch, changes):
    monkeypatch.setattr(lease, "STALE", 0.3)
    monkeypatch.setattr(lease, "SETTLE", 0.0)
    leave(store, **changes)
    assert holder_of(store) is None
    with Lease(store) as held:
        assert holder_of(store) == held.holder


def test_a_lease_without_a_sign_of_life_is_taken_over_and_its_holder_sends_no_more(store, url, monkeypatch, capfd):
    monkeypatch.setattr(lease, "STALE", 0.3)
    monkeypatch.setattr(lease, "SETTLE", 0.0)
    with Lease(store) as old, Lease(Store(url)) as new:  # BEAT is 15 s: the old one shows no life for 0.3 s
        assert holder_of(store) == new.holder
        with pytest.raises(FolderInUse, match="was taken over by process"):
            old.confirm()
        new.confirm()
    assert "waiting 0 s for a sign of life" in capfd.readouterr().err


def test_of_two_that_come_at_once_one_writes(store, url, monkeypatch):
    monkeypatch.setattr(lease, "STALE", 2.0)
    monkeypatch.setattr(lease, "BEAT", 0.05)
    ends, told, start, done = [], [], threading.Barrier(4), threading.Barrier(4)

    def come() -> None:
        start.wait()
        try:
            with Lease(Store(url)):
                ends.append("wrote")
                done.wait()
        except FolderInUse as error:
            told.append(str(error))
            done.wait()

    threads = [threading.Thread(target=come) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(ends), len(told)) == (1, 3)


def test_hosts_that_try_a_store_at_the_same_time_do_not_disturb_each_other(store, url, monkeypatch):
    ask = Store.ask

    def another_in_between(self, method, *arguments, **settings):
        result = ask(self, method, *arguments, **settings)
        if method == "pipe_file" and self is store:
            Store(url).check()
        return result

    monkeypatch.setattr(Store, "ask", another_in_between)
    store.check()
    assert names(store) == set()


def test_a_store_that_fails_is_told_as_such(tmp_path, monkeypatch):
    store = Store(f"memory://{tmp_path}/x")

    def down(*_, **__):
        raise ConnectionError("the store is down")

    monkeypatch.setattr(fsspec.filesystem("memory").__class__, "pipe_file", down)
    with pytest.raises(StoreError, match="ConnectionError: the store is down"), Lease(store):
        raise AssertionError("no lease could be written")


def test_what_is_written_beside_the_copy_may_come_and_go_while_it_is_sent(tmp_path):
    """A thread sends a committed checkpoint while the model is exported into a folder that is then renamed."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    stop = threading.Event()

    def export_again_and_again():
        while not stop.is_set():
            partial = tmp_path / "run" / ".model.partial-1" / "deep"
            partial.mkdir(parents=True)
            (partial / "weights").write_bytes(b"0")
            shutil.rmtree(partial.parent)

    exporting = threading.Thread(target=export_again_and_again)
    exporting.start()
    try:
        assert {tuple(remote._files_of(tmp_path / "run")) for _ in range(2000)} == {("config.json",)}
    finally:
        stop.set()
        exporting.join()


def test_a_file_that_another_host_removes_while_it_is_brought_is_none_of_the_copy(tmp_path, url, store, monkeypatch):
    for name in ("config.json", "metrics", "summary.json"):
        store.write(name, b"{}")
    ask = Store.ask

    def removed_in_between(self, method, *arguments, **settings):
        if method == "get" and store.version("summary.json"):
            ask(store, "rm_file", store.path("summary.json"))
        return ask(self, method, *arguments, **settings)

    monkeypatch.setattr(Store, "ask", removed_in_between)
    reader = RemoteFolder(url, tmp_path / "one", reading=True)
    reader.fetch(lambda name: True)
    assert {path.name for path in reader.folder.iterdir()} == {"config.json", "metrics"}
    assert not list(reader.folder.parent.glob("incoming-*"))


def test_a_lease_that_another_took_between_the_end_of_its_holder_and_a_look_stays(store, monkeypatch):
    monkeypatch.setattr(lease, "SETTLE", 0.0)
    quicker = Lease(store)

    def ends(self, before):
        store.ask("rm_file", store.path(locks.NAME))
        quicker.__enter__()

    store.write(locks.NAME, b"of a host that lives")
    monkeypatch.setattr(Lease, "_wait_for_silence", ends)
    with pytest.raises(FolderInUse, match="is being written by process"), Lease(store):
        pass
    quicker.confirm()
    quicker.__exit__()
