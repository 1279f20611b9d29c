"""A run folder's life: what is refused before anything is touched, what an overwrite removes."""

import pathlib

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
