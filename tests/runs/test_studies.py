"""Sweep folders with planted numbers: left-out clusters, mixture laws, proxies."""

import numpy as np
import pytest
from pages import assert_self_contained

from jaxtune import cli
from jaxtune.errors import UserError
from jaxtune.reports.sweep import write_sweep_report
from jaxtune.runs.leaving import read_leaving
from jaxtune.runs.mixture_law import law_of
from jaxtune.runs.proxy import proxy_of
from jaxtune.runs.sweeps import LOSS, read_sweep
from jaxtune.science.mixture_law import MixtureLaw
from jaxtune.storage.documents import read_json, write_json

CLUSTERS = {"qa": "reading", "news": "reading/short", "sums": "numbers", "code": "python"}


def write(sweep_dir, arms) -> None:
    """A sweep folder of (tag, overrides, seed, counts, losses before, losses after)."""
    entries = []
    for tag, overrides, seed, counts, before, after in arms:
        name = f"{tag}_seed={seed}".replace(" ", "+")
        folder = sweep_dir / "runs" / name
        folder.mkdir(parents=True)
        tasks = [{"name": task, "cluster": CLUSTERS.get(task)} for task in after]
        write_json(folder / "config.json", {"name": "toy", "tasks": tasks, "mixture": {"max_repeats": 2.0}})
        (folder / "metrics.jsonl").touch()
        rows = [{"task": task, "size": 1000, "usable": 1000, "count": n} for task, n in counts.items()]
        write_json(folder / "mixture.json", {"tasks": rows})
        sides = {"before": {"task_loss": before}, "after": {"task_loss": after}}
        write_json(folder / "summary.json", {"status": "finished", **sides})
        entries.append({"name": name, "tag": tag, "overrides": overrides, "seed": seed, "dir": f"runs/{name}"})
    write_json(sweep_dir / "sweep.json", {"config": {}, "runs": entries})


def leaving_arms():
    """The others bring half of what `reading` gains, nothing to `numbers`, and harm `python`."""
    rng, arms = np.random.default_rng(0), []
    brought = {"reading": 0.5, "numbers": 0.0, "python": -0.2}
    base = dict.fromkeys(CLUSTERS, 4.0)
    for seed in range(5):
        noise = lambda: rng.normal(0, 0.02)
        arms.append(
            ("all clusters", {}, seed, dict.fromkeys(CLUSTERS, 10), base, {task: 2.0 + noise() for task in CLUSTERS})
        )
        for cluster, share in brought.items():
            after = {task: 4 - 2 * (share if CLUSTERS[task].startswith(cluster) else 1) + noise() for task in CLUSTERS}
            arms.append((f"without {cluster}", {"held-out": cluster}, seed, dict.fromkeys(CLUSTERS, 10), base, after))
        after = {task: 3.5 + noise() for task in CLUSTERS}
        arms.append(
            ("1 others without reading", {"held-out": "reading python"}, seed, dict.fromkeys(CLUSTERS, 10), base, after)
        )
    return arms


def test_what_others_bring_to_a_left_out_cluster(tmp_path):
    write(tmp_path / "s", leaving_arms())
    found = {one.cluster: one for one in read_leaving(read_sweep(tmp_path / "s"))}
    assert {name: one.retained.mean for name, one in found.items()} == pytest.approx(
        {"reading": 0.5, "numbers": 0.0, "python": -0.2}, abs=0.03
    )
    assert found["reading"].tasks == ["qa", "news"] and found["reading"].retained.n == 5
    assert found["reading"].retained.low < 0.5 < found["reading"].retained.high
    assert found["reading"].curve == pytest.approx({1: 3.5, 2: 3.0}, abs=0.05) and found["reading"].base == 4.0
    page = assert_self_contained(write_sweep_report(read_sweep(tmp_path / "s")).read_text())
    assert "Leave one cluster out" in page.text and "50%" in "".join(page.text).replace(" ", "")


def mixture_arms(count: int):
    rng = np.random.default_rng(1)
    rates = np.diag([-4.0, -3.0, -3.5]) + rng.uniform(-0.3, 0.1, (3, 3))
    law = MixtureLaw(floor=np.array([0.5, 0.7, 0.9]), rates=rates, r2=np.ones(3), rank=1.0)
    shares, arms = rng.dirichlet(np.ones(3), count), []
    for number, row in enumerate(shares):
        counts = dict(zip(("qa", "sums", "code"), map(int, np.round(row * 4000)), strict=True))
        for seed in range(2):
            losses = law.losses(row[None])[0] + rng.normal(0, 0.005, 3)
            after = dict(zip(counts, map(float, losses), strict=True))
            arms.append((f"m{number}", {"mixture.weights": f"{row}"}, seed, counts, {}, after))
    return law, arms


def test_a_law_is_fitted_and_its_best_shares_keep_to_the_caps(tmp_path, capsys):
    law, arms = mixture_arms(12)
    write(tmp_path / "s", arms)
    found = law_of(read_sweep(tmp_path / "s"))
    assert found["mixtures"] == 12 and found["rank_left_out"] > 0.8
    assert all(value == pytest.approx(0.5, abs=0.01) for value in found["best"]["caps"].values())  # 2 * 1000 / 4000
    assert sum(found["best"]["shares"].values()) == pytest.approx(1, abs=1e-3)
    assert max(found["best"]["shares"].values()) <= 0.51
    assert found["best"]["expected_loss"] <= found["best_trained"]["loss"] + 0.02
    for number, target in enumerate(("qa", "sums", "code")):
        rates = list(found["targets"][target]["rates_centred"].values())
        assert np.argmin(rates) == number == np.argmin(law.centred[number])
    assert cli.main(["recommend", str(tmp_path / "s"), "--law"]) == 0
    assert "--mixture.weights qa" in capsys.readouterr().out and read_json(tmp_path / "s" / "mixture_law.json") == found


def test_too_few_mixtures_for_a_law_say_how_many_are_needed(tmp_path, capsys):
    write(tmp_path / "s", mixture_arms(8)[1])
    assert cli.main(["recommend", str(tmp_path / "s"), "--law"]) == 1
    assert "--mixtures 9" in capsys.readouterr().err


def test_a_proxy_is_judged_on_shared_settings(tmp_path, capsys):
    rng, level = np.random.default_rng(2), {"1": 1.0, "2": 1.1, "4": 1.3, "inf": 1.25}
    for name, scale in (("small", 2.0), ("large", 1.0)):
        arms = [
            (
                f"{name}{value}",
                {"mixture.temperature": value},
                seed,
                {},
                {},
                {"qa": scale * loss + rng.normal(0, 0.005)},
            )
            for value, loss in level.items()
            for seed in range(5)
        ]
        write(tmp_path / name, arms)
    found = proxy_of(read_sweep(tmp_path / "small"), read_sweep(tmp_path / "large"), LOSS)
    assert found["settings"] == 4 and found["pairs"] == 6 and found["accuracy"] == 1.0 and found["tau"] == 1.0
    assert found["warning"] == ""
    assert cli.main(["proxy", str(tmp_path / "small"), str(tmp_path / "large")]) == 0
    assert "6 pairs of 4 settings" in capsys.readouterr().out
    write(tmp_path / "other", [("x", {"optim.peak-lr": "1e-3"}, 0, {}, {}, {"qa": 1.0})])
    with pytest.raises(UserError, match="share 0 settings"):
        proxy_of(read_sweep(tmp_path / "small"), read_sweep(tmp_path / "other"), LOSS)
