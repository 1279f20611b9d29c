"""Checkpoints in an object store that Orbax cannot write to: copies are whole, current and enough to go on from."""

import pathlib
import shutil

import fsspec
import pytest
from toy_states import make_state, same

from jaxtune.errors import UserError
from jaxtune.runs.bucket import Bucket
from jaxtune.runs.checkpoints import Checkpoints, abstract
from jaxtune.runs.retention import DOCUMENT, CheckpointConfig


@pytest.fixture
def url(tmp_path):
    return f"memory://bucket{tmp_path.as_posix()}"


@pytest.fixture
def store():
    return fsspec.filesystem("memory")


def config_of(url: str, **settings) -> CheckpointConfig:
    return CheckpointConfig(directory=url, **settings)


def files_of(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def save_steps(folder: pathlib.Path, config: CheckpointConfig, steps) -> None:
    with Checkpoints(folder, config) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step), {"step": step}, {"loss": abs(step - 20.0)})


def test_the_copies_are_the_files_of_the_checkpoints_that_stay(tmp_path, url, store):
    config = config_of(url, keep_latest=1, keep_best=1)
    assert config.folder(tmp_path) == str(tmp_path / "checkpoints")
    save_steps(tmp_path / "checkpoints", config, (10, 20, 30, 40))
    here = files_of(tmp_path / "checkpoints")
    assert {name.split("/")[0] for name in here} == {"00000020", "00000040"}
    root = store.find(url)[0].split("/00000020/")[0]
    there = {path.removeprefix(f"{root}/"): store.cat_file(path) for path in store.find(url)}
    assert len(there) > 20
    assert there == here, "also what Orbax wrote at the commit, after the copy had been sent"


def test_a_run_whose_folder_is_lost_goes_on_from_the_copies(tmp_path, url, capfd):
    config = config_of(url)
    save_steps(tmp_path / "checkpoints", config, (10, 20, 30))
    shutil.rmtree(tmp_path / "checkpoints")
    assert config.can_resume(tmp_path)
    with Checkpoints(tmp_path / "checkpoints", config) as checkpoints:
        assert Bucket(url, DOCUMENT).steps() == ["00000020", "00000030"]
        checkpoints.fetch()
        assert (checkpoints.steps(), checkpoints.best(), checkpoints.extra(30)) == ([20, 30], 20, {"step": 30})
        assert same(checkpoints.restore(30, abstract(make_state())), make_state(30))
        checkpoints.save(40, make_state(40), {}, {"loss": -1.0})
    assert f"fetching checkpoint 00000030 from {url}" in capfd.readouterr().err
    assert Bucket(url, DOCUMENT).steps() == ["00000030", "00000040"]
    with Checkpoints(tmp_path / "checkpoints", config, read_only=True) as checkpoints:
        assert [(step, checkpoints.problems(step)) for step in checkpoints.steps()] == [(30, []), (40, [])]


def test_a_copy_that_was_cut_off_is_no_checkpoint_and_is_sent_again(tmp_path, url, store):
    config = config_of(url)
    save_steps(tmp_path / "checkpoints", config, (10, 20))
    store.rm_file(f"{url}/00000020/{DOCUMENT}")
    store.pipe_file(f"{url}/00000020/stale", b"of the attempt before")
    with Checkpoints(tmp_path / "elsewhere", config) as checkpoints:
        assert Bucket(url, DOCUMENT).steps() == ["00000010"]
        checkpoints.fetch()
        assert checkpoints.steps() == [10]
    with Checkpoints(tmp_path / "checkpoints", config) as checkpoints:
        assert checkpoints.steps() == [10, 20]
    assert Bucket(url, DOCUMENT).steps() == ["00000010", "00000020"]
    assert not store.exists(f"{url}/00000020/stale")


def test_metrics_that_come_later_reach_the_copy_without_its_arrays_being_sent_again(tmp_path, url, store, monkeypatch):
    config = config_of(url)
    save_steps(tmp_path / "checkpoints", config, (10,))
    sent = []
    monkeypatch.setattr(type(store), "put_file", lambda self, here, there: sent.append(there))
    with Checkpoints(tmp_path / "checkpoints", config) as checkpoints:
        checkpoints.set_metrics(10, {"loss": 0.25})
    assert b'"loss": 0.25' in store.cat_file(f"{url}/00000010/{DOCUMENT}")
    assert sent == []
    with Checkpoints(tmp_path / "checkpoints", config):
        monkeypatch.setattr(type(store), "pipe_file", lambda self, there, content: sent.append(there))
    assert sent == []


def test_what_else_lies_there_is_neither_fetched_nor_removed(tmp_path, url, store):
    config = config_of(url)
    save_steps(tmp_path / "checkpoints", config, (10,))
    store.pipe_file(f"{url}/notes/{DOCUMENT}", b"of someone else")
    for folder in ("checkpoints", "elsewhere"):
        with Checkpoints(tmp_path / folder, config):
            assert Bucket(url, DOCUMENT).steps() == ["00000010"]
    assert Bucket(url, DOCUMENT).steps() == ["00000010"]
    assert store.cat_file(f"{url}/notes/{DOCUMENT}") == b"of someone else"


def test_a_store_that_fails_for_a_while_stops_nothing_and_gets_what_it_missed(tmp_path, url, store, monkeypatch):
    def down(*_, **__):
        raise ConnectionError("the store is down")

    with Checkpoints(tmp_path / "checkpoints", config_of(url)) as checkpoints:
        with monkeypatch.context() as outage, pytest.warns(RuntimeWarning, match="ConnectionError: the store is down"):
            outage.setattr(type(store), "put_file", down)
            checkpoints.save(10, make_state(10))
            checkpoints.wait()
        assert (checkpoints.steps(), Bucket(url, DOCUMENT).steps()) == ([10], [])
        checkpoints.save(20, make_state(20))
        checkpoints.wait()
        assert Bucket(url, DOCUMENT).steps() == ["00000010", "00000020"]


def test_a_store_that_still_fails_at_the_end_is_an_error_that_says_where_the_checkpoints_are(
    tmp_path, url, store, monkeypatch
):
    def down(*_, **__):
        raise ConnectionError("the store is down")

    checkpoints = Checkpoints(tmp_path / "checkpoints", config_of(url))
    monkeypatch.setattr(type(store), "put_file", down)
    with pytest.warns(RuntimeWarning, match="tried again"):
        checkpoints.save(10, make_state(10))
        checkpoints.wait()
    with pytest.raises(UserError, match=f"not all checkpoints could be copied.*(?s:.*)They are whole in {tmp_path}"):
        checkpoints.close()
    with Checkpoints(tmp_path / "checkpoints", read_only=True) as left:
        assert left.problems(10) == []


def test_a_fault_of_the_program_is_not_taken_for_an_outage(tmp_path, url, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "checkpoints", config_of(url))
    with monkeypatch.context() as faulty:
        faulty.setattr(Bucket, "send", lambda self, folder: None)  # called with more arguments
        checkpoints.save(10, make_state(10))
        with pytest.raises(TypeError):
            checkpoints.wait()
    checkpoints.close()


def test_a_damaged_checkpoint_does_not_replace_its_good_copy(tmp_path, url, store):
    config = config_of(url)
    save_steps(tmp_path / "checkpoints", config, (10,))
    good = {path: store.cat_file(path) for path in store.find(url)}
    for path in (tmp_path / "checkpoints" / "00000010").rglob("*"):
        if path.is_file():
            path.write_bytes(b"damaged") if path.name != DOCUMENT else path.unlink()
    with Checkpoints(tmp_path / "checkpoints", config) as checkpoints:
        [problem] = checkpoints.problems(10)
        assert problem.endswith(f"{DOCUMENT}: no such file")
    assert {path: store.cat_file(path) for path in store.find(url)} == good


def test_places_that_cannot_be_used_are_refused_with_the_reason(tmp_path, url, store, monkeypatch):
    with pytest.raises(UserError, match="(?i)checkpoints cannot be kept at nowhere://bucket.*protocol"):
        config_of("nowhere://bucket/run")
    with pytest.raises(UserError, match="no checkpoints here.*--resume` brings them from memory://"):
        Checkpoints(tmp_path / "none", config_of(url), read_only=True)
    with pytest.raises(UserError, match="Orbax cannot write to memory://.*with checkpoint.directory it gets copies"):
        Checkpoints(url)

    def forbidden(*_, **__):
        raise PermissionError("Access Denied")

    monkeypatch.setattr(type(store), "pipe_file", forbidden)
    with pytest.raises(UserError, match="PermissionError: Access Denied\nThe bucket must exist"):
        Checkpoints(tmp_path / "checkpoints", config_of(url))
    assert not (tmp_path / "checkpoints").exists()
