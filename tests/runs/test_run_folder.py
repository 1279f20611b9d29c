"""A run folder's life: what is refused before anything is touched, what an overwrite removes."""

import argparse
import pathlib

import fsspec
import pytest

from jaxtune import cli
from jaxtune.errors import UserError
from jaxtune.runs import folder
from jaxtune.storage import locks


def listing(path: pathlib.Path) -> list[str]:
    return sorted(str(entry.relative_to(path)) for entry in path.rglob("*"))


def test_an_overwrite_keeps_the_lock_of_who_overwrites(tmp_path):
    (tmp_path / "checkpoints" / "00000001").mkdir(parents=True)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "checkpoints")
    with folder.only_writer(tmp_path):
        folder.prepare(tmp_path, overwrite=True)
        assert listing(tmp_path) == [locks.NAME]


def test_a_lock_alone_is_no_content(tmp_path):
    (tmp_path / locks.NAME).write_text("left by a killed process")
    folder.check(tmp_path, resume=False, overwrite=False)
    with pytest.raises(UserError, match="is empty or missing"):
        folder.check(tmp_path, resume=True, overwrite=False)


def test_a_file_is_no_run_folder(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(UserError, match="is a file; a folder is needed"), folder.only_writer(tmp_path / "x"):
        pass


@pytest.mark.parametrize("option", [[], ["--resume"], ["--overwrite"], ["--restartable"]])
def test_train_beside_a_live_run_says_who_writes_and_touches_nothing(tmp_path, capsys, option):
    run_dir = tmp_path / "run"
    with folder.only_writer(run_dir):
        (run_dir / "config.json").write_text("{}")
        before = listing(run_dir)
        assert cli.main(["train", "quickstart", "--run-dir", str(run_dir), *option]) == 1
        assert "is being written by process" in capsys.readouterr().err
        assert listing(run_dir) == before


def test_a_sweep_beside_a_live_sweep_says_who_writes(tmp_path, capsys):
    with folder.only_writer(tmp_path / "sweep"):
        (tmp_path / "sweep" / "sweep.json").write_text("{}")
        arguments = ["--sweep-dir", str(tmp_path / "sweep"), "--grid", "optim.peak-lr=1e-3,1e-2", "--overwrite"]
        assert cli.main(["sweep", "quickstart", *arguments]) == 1
        assert "is being written by process" in capsys.readouterr().err
        assert (tmp_path / "sweep" / "sweep.json").exists()


def path_arguments() -> list[tuple[str, argparse.Action]]:
    """(command, argument) of everything on the command line that takes a path."""
    (commands,) = [a for a in cli.build_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return [(name, a) for name, parser in commands.choices.items() for a in parser._actions if a.type is cli.local_path]


def test_every_argument_that_takes_a_path_has_the_one_parser_of_paths():
    (commands,) = [a for a in cli.build_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    kinds = {a.type for parser in commands.choices.values() for a in parser._actions}
    assert pathlib.Path not in kinds and len(path_arguments()) >= 5


@pytest.mark.parametrize("url", ["gs://bucket/x", "s3://bucket/x", "memory://x", "hdfs://host:9/x", "gs:/bucket/x"])
def test_a_url_is_refused_as_a_path_before_anything_is_done(tmp_path, monkeypatch, url):
    monkeypatch.chdir(tmp_path)
    for _, argument in path_arguments():
        with pytest.raises(argparse.ArgumentTypeError, match="is a URL; a local path is needed"):
            argument.type(url)  # pyright: ignore[reportCallIssue, reportOptionalCall]
    with pytest.raises(UserError, match="comes of a URL"), folder.only_writer(pathlib.Path(url)):
        raise AssertionError("a folder was made")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["gs:/bucket/x", "hdfs://host:9/x", "memory://x/.."])
def test_a_sweep_folder_at_a_url_that_cannot_be_served_is_refused_before_anything_is_done(
    tmp_path, monkeypatch, capsys, url
):
    monkeypatch.chdir(tmp_path)
    try:
        code = cli.main(["sweep", "quickstart", "--sweep-dir", url, "--grid", "optim.peak-lr=1e-3", "--seeds", "0"])
    except SystemExit as ended:  # argparse already knows that it is none
        code = ended.code
    assert code in (1, 2) and url.partition(":")[0] in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["gs:/bucket/x", "hdfs2://host/x", "gs://", "memory://x/.."])
def test_a_run_folder_at_a_url_that_cannot_be_served_is_refused_before_anything_is_done(
    tmp_path, monkeypatch, capsys, url
):
    monkeypatch.chdir(tmp_path)
    for command in (
        ["train", "quickstart", "--run-dir"],
        ["report"],
        ["verify"],
        ["generate"],
        ["evaluate", "--run-dir"],
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main([*command, url])
        assert ended.value.code == 2 and url in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("scheme", "package"), [("gs", "gcsfs"), ("s3", "s3fs"), ("az", "adlfs")])
def test_a_store_whose_package_is_missing_says_what_to_install(tmp_path, monkeypatch, capsys, scheme, package):
    def missing(*_, **__):
        raise ImportError("the package is not installed")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(SystemExit):
        cli.main(["train", "quickstart", "--run-dir", f"{scheme}://bucket/runs/x"])
    assert f"pip install {package}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["runs/x", "/tmp/x", "C:", "a:b/c", "./gs:/x", "x.y:z"])
def test_paths_with_colons_stay_paths(path):
    assert cli.local_path(path) == pathlib.Path(path)
