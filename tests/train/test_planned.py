import dataclasses

import pytest
from helpers import letters, tiny_config, tiny_model

from jaxtune.train.planned import plan_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("planned")
    tiny_model(root / "base")
    return root


def test_tasks_of_which_nothing_is_measured_are_said_once(folder, tmp_path, capsys):
    watched, lonely = letters("watched", 12), letters("lonely", 12)
    lonely = dataclasses.replace(lonely, splits={"train": lonely.source("train")})
    config = tiny_config(folder, tasks=(watched, lonely))
    for name in ("a", "b"):
        assert plan_run(config, tmp_path / name).inputs.unwatched == ["lonely"]
    said = capsys.readouterr().err
    assert said.count("no split named 'validation': nothing is measured of lonely while training") == 1
    assert plan_run(tiny_config(folder, tasks=(watched,)), tmp_path / "c").inputs.unwatched == []
    assert "no split named" not in capsys.readouterr().err
