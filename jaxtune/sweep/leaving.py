"""Settings that leave clusters of tasks out of training, to see what the others bring to them."""

import shlex

import numpy as np

from jaxtune.config import ExperimentConfig
from jaxtune.errors import UserError
from jaxtune.runs.leaving import EVERYTHING, OPTION
from jaxtune.storage.fingerprints import hash64
from jaxtune.sweep.language import Setting
from jaxtune.tasks import hold_out
from jaxtune.tasks.splits import VALIDATION


def leaving_settings(config: ExperimentConfig, *, curve: bool = False, seed: int = 0) -> list[Setting]:
    """All clusters, and each of them left out; with `curve`, also beside 1, 2, ... others drawn at random.

    Raises `UserError` for fewer than two clusters and for one without validation data.
    """
    kept = hold_out(config.tasks, config.held_out).kept
    clusters: dict[str, list[str]] = {}
    for name, task in kept.items():
        if task.cluster is not None:
            clusters.setdefault(task.cluster.split("/")[0], []).append(name)
    if len(clusters) < 2:
        raise UserError(
            f"--leave-out takes tasks in two or more clusters; the tasks that are trained on are in "
            f"{', '.join(clusters) or 'none'}: set `cluster=` of the Task objects"
        )
    silent = [name for names in clusters.values() for name in names if VALIDATION not in kept[name].splits]
    if silent:
        raise UserError(f"--leave-out measures every task of a cluster; without validation data: {', '.join(silent)}")
    settings = [Setting(overrides=dict(setting_of(config, []).overrides), tag=EVERYTHING)]
    for cluster in clusters:
        others = [other for other in clusters if other != cluster]
        rng = np.random.default_rng([seed, hash64(cluster.encode()) % 2**32])
        drawn = [others[i] for i in rng.permutation(len(others))]
        for count in range(1, len(others)) if curve else ():
            out = [cluster, *drawn[count:]]
            settings.append(
                Setting(overrides=setting_of(config, out).overrides, tag=f"{count} others without {cluster}")
            )
        settings.append(Setting(overrides=setting_of(config, [cluster]).overrides, tag=f"without {cluster}"))
    return settings


def setting_of(config: ExperimentConfig, clusters: list[str]) -> Setting:
    """The setting that leaves clusters out, the first of them the one that is looked at."""
    names = [*clusters, *config.held_out]
    return Setting(overrides={OPTION: " ".join(map(shlex.quote, names))} if clusters else {})
