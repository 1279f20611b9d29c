"""Copies of objects of a store on this disk: brought once, whole, and again where either side has changed."""

import os
import pathlib
import subprocess
import sys

import pytest

from jaxtune.errors import UserError
from jaxtune.storage import fetching
from jaxtune.storage.fetching import fetched_file, fetched_folder
from jaxtune.storage.stores import Store, StoreError, refuse_unserved

KINDS = ("*.json", "*.safetensors")


@pytest.fixture(params=["memory", "file"])
def url(request, tmp_path):
    return f"{request.param}://{tmp_path.as_posix()}/bucket/model"


@pytest.fixture
def store(url):
    store = Store(url)
    for name, content in {"config.json": b"{}", "a.safetensors": b"weights", "pytorch_model.bin": b"no"}.items():
        store.write(name, content)
    store.write("original/b.safetensors", b"of another library")
    return store


def gets(monkeypatch) -> list[str]:
    """Names of all objects that are brought from now on."""
    brought, ask = [], Store.ask

    def listen(self, method, *arguments, **settings):
        if method == "get":
            brought.extend(os.path.basename(path) for path in arguments[0])
        return ask(self, method, *arguments, **settings)

    monkeypatch.setattr(Store, "ask", listen)
    return brought


def test_a_file_is_brought_once_and_again_when_it_was_changed_there(tmp_path, url, store, monkeypatch):
    brought = gets(monkeypatch)
    copy = fetched_file(f"{url}/config.json", tmp_path / "cache")
    assert copy.read_bytes() == b"{}" and copy.name == "config.json"
    assert fetched_file(f"{url}/config.json", tmp_path / "cache") == copy and brought == ["config.json"]
    store.write("config.json", b'{"a": 1}')
    again = fetched_file(f"{url}/config.json", tmp_path / "cache")
    assert again.read_bytes() == b'{"a": 1}' and brought == ["config.json"] * 2
    assert copy.read_bytes() == b"{}"  # a process that reads the old one is not disturbed


def test_a_copy_that_was_touched_is_read_and_one_that_was_changed_is_brought_again(tmp_path, url, store, monkeypatch):
    brought = gets(monkeypatch)
    copy = fetched_file(f"{url}/config.json", tmp_path / "cache")
    os.utime(copy, ns=(1, 1))
    assert fetched_file(f"{url}/config.json", tmp_path / "cache") == copy and len(brought) == 1
    copy.write_bytes(b"[]")  # of the same size
    assert fetched_file(f"{url}/config.json", tmp_path / "cache").read_bytes() == b"{}" and len(brought) == 2
    copy.unlink()
    assert fetched_file(f"{url}/config.json", tmp_path / "cache").read_bytes() == b"{}" and len(brought) == 3


def test_of_a_model_folder_only_its_own_files_are_brought(tmp_path, url, store, monkeypatch):
    brought = gets(monkeypatch)
    folder = fetched_folder(f"{url}/", tmp_path / "cache", KINDS)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "config.json": b"{}", "a.safetensors": b"weights",
    }  # fmt: skip
    assert folder.name == "model" and sorted(brought) == ["a.safetensors", "config.json"]
    store.write("pytorch_model.bin", b"changed")
    assert fetched_folder(url, tmp_path / "cache", KINDS) == folder and len(brought) == 2
    store.write("a.safetensors", b"tuned")
    assert (fetched_folder(url, tmp_path / "cache", KINDS) / "a.safetensors").read_bytes() == b"tuned"


def test_what_a_killed_process_left_is_neither_used_nor_kept(tmp_path, url, store, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fetching, "file_digests", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        fetched_folder(url, tmp_path / "cache", KINDS)
    assert any(path.name.startswith(".") for path in (tmp_path / "cache" / "fetched").iterdir())
    folder = fetched_folder(url, tmp_path / "cache", KINDS)
    assert (folder / "a.safetensors").read_bytes() == b"weights"
    assert not any(path.name.startswith(".") for path in (tmp_path / "cache" / "fetched").iterdir())


def test_an_object_that_changes_while_it_is_read_is_refused(tmp_path, url, store, monkeypatch):
    ask = Store.ask

    def change(self, method, *arguments, **settings):
        result = ask(self, method, *arguments, **settings)
        if method == "get":
            store.write("config.json", b'{"changed": true}')
        return result

    with monkeypatch.context() as patch, pytest.raises(StoreError, match="changed while it was read"):
        patch.setattr(Store, "ask", change)
        fetched_file(f"{url}/config.json", tmp_path / "cache")
    assert fetched_file(f"{url}/config.json", tmp_path / "cache").read_bytes() == b'{"changed": true}'


def test_what_is_not_there_or_no_file_is_said(tmp_path, url, store):
    with pytest.raises(StoreError, match=rf"{url}/none.json cannot be read: no such object\nIt must exist"):
        fetched_file(f"{url}/none.json", tmp_path / "cache")
    with pytest.raises(StoreError, match="is a folder, not a file"):
        fetched_file(f"{url}/original", tmp_path / "cache")
    with pytest.raises(StoreError, match=r"no files \*.txt; it holds a.safetensors, config.json, pytorch_model.bin"):
        fetched_folder(url, tmp_path / "cache", ("*.txt",))
    with pytest.raises(StoreError, match="nothing is there"):
        fetched_folder(f"{url}-none", tmp_path / "cache", KINDS)
    for no_file in ("memory://", "memory://bucket", "file:///", f"{url}/", f"{url}/.."):
        with pytest.raises(UserError, match="names no file"):
            fetched_file(no_file, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_errors_of_credentials_name_what_must_be_given(tmp_path, url, store, monkeypatch):
    def forbidden(*_, **__):
        raise PermissionError("Anonymous caller does not have storage.objects.get access")

    monkeypatch.setattr(type(store._store), "info", forbidden)
    monkeypatch.setitem(fetching.CREDENTIALS, url.partition(":")[0], "`gcloud auth application-default login`")
    with pytest.raises(StoreError) as caught:
        fetched_file(f"{url}/config.json", tmp_path / "cache")
    assert "PermissionError: Anonymous caller" in str(caught.value)
    assert "the credentials (`gcloud auth application-default login`) must allow reading it" in str(caught.value)


def test_a_full_cache_is_said_with_what_to_set(tmp_path, url, store, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(store._store), "get", full)
    with pytest.raises(UserError, match="does not fit into the cache .*set JAXTUNE_CACHE"):
        fetched_file(f"{url}/config.json", tmp_path / "cache")


def test_a_scheme_that_nothing_reaches_is_refused_without_asking_anything(monkeypatch):
    with pytest.raises(UserError, match="data cannot be read from nosuch://x/y: .*nosuch"):
        refuse_unserved("nosuch://x/y", "data")
    import fsspec

    def missing(_):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(UserError, match="Please install gcsfs to access Google Storage; pip install gcsfs"):
        refuse_unserved("gs://x/y", "data")


FETCH = """
import pathlib, sys
from jaxtune.storage.fetching import fetched_file
print(fetched_file(sys.argv[1], pathlib.Path(sys.argv[2])))
"""


def test_processes_of_one_machine_bring_one_copy(tmp_path):
    store = Store(f"file://{tmp_path}/bucket")
    store.write("x.json", b"1" * 1_000_000)
    command = [sys.executable, "-c", FETCH, f"{store.url}/x.json", str(tmp_path / "cache")]
    started = [subprocess.Popen(command, stdout=-1, stderr=-1, text=True) for _ in range(3)]
    outputs = [process.communicate(timeout=60) for process in started]
    assert len({out for out, _ in outputs}) == 1 and pathlib.Path(outputs[0][0].strip()).stat().st_size == 1_000_000
    assert sum(said.count("fetching") for _, said in outputs) == 1
