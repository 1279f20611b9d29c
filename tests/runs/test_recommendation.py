import json
import math

import numpy as np
import pytest
import toy_runs

from jaxtune.cli import main
from jaxtune.errors import UserError
from jaxtune.runs.recommendation import config_value, recommend
from jaxtune.runs.sweeps import LOSS, MATCH, read_sweep
from jaxtune.storage.documents import read_json, write_json

RATES = ("1e-4", "3e-4", "1e-3", "3e-3", "1e-2")
TEMPERATURES = ("1", "2", "4", "inf")
CONFIG = {"mixture": {"temperature": 1.0}, "optim": {"peak_lr": 0.003}}


def bowl(temperature, rate):
    """Lowest at temperature 2 and a rate of 5e-4."""
    return 0.3 + 0.2 * (1 / temperature - 0.5) ** 2 + 0.1 * (math.log10(rate) - math.log10(5e-4)) ** 2


@pytest.fixture(scope="module")
def sweep_dir(tmp_path_factory):
    """A sweep whose losses are a planted bowl with the noise of real runs."""
    folder = tmp_path_factory.mktemp("sweeps") / "bowl"
    toy_runs.write_toy_sweep(folder, temperatures=TEMPERATURES, rates=RATES, seeds=(0, 1), steps=6)
    rng = np.random.default_rng(1)
    record = read_json(folder / "sweep.json") | {"config": CONFIG}
    write_json(folder / "sweep.json", record)
    for entry in record["runs"]:
        value = bowl(float(entry["overrides"]["mixture.temperature"]), float(entry["overrides"]["optim.peak-lr"]))
        path = folder / entry["dir"] / "summary.json"
        summary = read_json(path)
        summary["after"]["task_loss"] = dict.fromkeys(toy_runs.SIZES, value + 0.016 * rng.standard_normal())
        write_json(path, summary)
    return folder


def test_the_planted_optimum_is_recommended_and_beats_the_configs_own_setting(sweep_dir):
    found = recommend(read_sweep(sweep_dir), LOSS)
    values = found.values_at(found.optimum.best)
    assert bowl(values["mixture.temperature"], values["optim.peak-lr"]) < 0.302
    data = found.to_json()
    assert data["recommended"] == values and data["advice"] == [] and data["surface"] == "quadratic"
    low, high = data["region_90"]["optim.peak-lr"]
    assert 1e-4 < low < 5e-4 < high < 3e-3
    gain = data["gain_over_config"]["macro_loss"]
    assert gain["low"] < bowl(1.0, 3e-3) - 0.3 < gain["high"] and data["probability_better_than_config"] > 0.99
    assert {"mean", "low", "high"} <= set(data["gain_over_config"]["macro_exact_match"])


def test_the_command_writes_a_file_and_a_section_of_the_page(sweep_dir, capsys):
    assert main(["recommend", str(sweep_dir), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == read_json(sweep_dir / "recommendation.json")
    page = (sweep_dir / "report.html").read_text()
    assert "Recommended setting" in page and "90 % region" in page and 'class="cross"' in page
    assert 'class="edge"' in page and all(f">{rate}</text>" in page for rate in ("0.0001", "0.0003", "0.001", "0.01"))
    assert main(["recommend", str(sweep_dir)]) == 0
    assert "recommended: temperature" in capsys.readouterr().out


def test_a_diverged_run_is_left_out_and_counted(sweep_dir, tmp_path):
    folder = tmp_path / "s"
    toy_runs.write_toy_sweep(folder, temperatures=("1", "2", "4"), rates=RATES[:3], seeds=(0, 1), steps=6)
    first = read_json(folder / "sweep.json")["runs"][0]
    path = folder / first["dir"] / "summary.json"
    write_json(path, read_json(path) | {"after": {"task_loss": {"qa": 99.0}}})
    assert recommend(read_sweep(folder), LOSS).left_out == [first["name"]]


def test_an_optimum_at_the_border_asks_for_more_range_in_place_of_a_recommendation(tmp_path):
    folder = tmp_path / "s"
    toy_runs.write_toy_sweep(
        folder, temperatures=("1", "2", "4"), rates=("1e-3", "3e-3", "1e-2"), seeds=(0, 1), steps=6
    )
    for entry in read_json(folder / "sweep.json")["runs"]:
        path = folder / entry["dir"] / "summary.json"
        summary = read_json(path)
        loss = bowl(2.0, float(entry["overrides"]["optim.peak-lr"])) + 0.001 * entry["seed"]
        write_json(path, summary | {"after": {"task_loss": {"qa": loss + 0.004 * np.random.default_rng(1).random()}}})
    data = recommend(read_sweep(folder), LOSS).to_json()
    assert data["recommended"] is None and "extend optim.peak-lr below 0.001" in data["advice"]


def test_exact_match_is_maximised(sweep_dir):
    found = recommend(read_sweep(sweep_dir), MATCH)
    assert found.to_json()["expected"] > 0


def edited(source, target, change):
    record = read_json(source / "sweep.json")
    target.mkdir()
    (target / "runs").symlink_to(source / "runs")
    write_json(target / "sweep.json", change(record))
    return target


def test_what_has_no_surface_is_refused_in_a_line(sweep_dir, tmp_path, capsys):
    def words(record):
        for entry in record["runs"]:
            entry["overrides"]["optim.kind"] = ("adamw", "muon")[entry["seed"]]
        return record

    def few(record):
        return record | {"runs": record["runs"][:4]}

    def one(record):
        return record | {"runs": record["runs"][:1]}

    for name, change, message in (
        ("words", words, "optim.kind is 'adamw', which is none"),
        ("few", few, "needs at least"),
        ("one", one, "no option has two values"),
    ):
        folder = edited(sweep_dir, tmp_path / name, change)
        with pytest.raises(UserError, match=message):
            recommend(read_sweep(folder), LOSS)
        assert main(["recommend", str(folder)]) == 1
        assert capsys.readouterr().err.startswith("error: ")


def test_the_config_of_a_sweep_over_words_has_no_number_there():
    config = {"optim": {"schedule": "cosine", "peak_lr": 1e-3}, "mixture": {"temperature": "inf", "weights": None}}
    read = {option: config_value(config, option) for option in ("optim.peak-lr", "mixture.temperature")}
    assert read == {"optim.peak-lr": 1e-3, "mixture.temperature": math.inf}
    for option in ("optim.schedule", "mixture.weights", "mixture.none"):
        assert math.isnan(config_value(config, option))
