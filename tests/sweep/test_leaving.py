import dataclasses
import pathlib

import pytest
from helpers import letters, tiny_config

from jaxtune.errors import UserError
from jaxtune.sweep.leaving import leaving_settings
from jaxtune.tasks import Task


def config_of(**clusters: str | None):
    tasks = tuple(dataclasses.replace(letters(name, 10), cluster=cluster) for name, cluster in clusters.items())
    return tiny_config(pathlib.Path("nowhere"), tasks=tasks)


def test_every_cluster_is_left_out_once_beside_all_of_them():
    found = leaving_settings(config_of(a="x", b="x/inner", c="y", d="z", e=None))
    assert [(one.tag, dict(one.overrides)) for one in found] == [
        ("all clusters", {}), ("without x", {"held-out": "x"}), ("without y", {"held-out": "y"}),
        ("without z", {"held-out": "z"}),
    ]  # fmt: skip


def test_a_curve_adds_fewer_and_fewer_others_and_what_the_config_holds_out_stays_out():
    config = dataclasses.replace(config_of(a="w", b="x", c="y", d="z", e="v"), held_out=("e",))
    found = leaving_settings(config, curve=True)
    words = {one.tag: one.overrides.get("held-out", "").split() for one in found}
    assert len(found) == 1 + 4 * 3
    for cluster in "wxyz":
        one, two = words[f"1 others without {cluster}"], words[f"2 others without {cluster}"]
        assert one[0] == two[0] == cluster and one[-1] == two[-1] == "e"
        assert len(one) == 4 and len(two) == 3 and set(two) < set(one)
        assert words[f"without {cluster}"] == [cluster, "e"]
    assert found == leaving_settings(config, curve=True)


def test_one_cluster_and_tasks_that_are_not_measured_are_refused():
    with pytest.raises(UserError, match="two or more clusters.*in x:"):
        leaving_settings(config_of(a="x", b=None))
    silent = Task(name="silent", splits={"train": letters("silent", 8).splits["train"]}, cluster="y")
    config = config_of(a="x")
    with pytest.raises(UserError, match="without validation data: silent"):
        leaving_settings(dataclasses.replace(config, tasks=(*config.tasks, silent)))
