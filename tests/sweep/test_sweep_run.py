"""Ablations: the grid, pairing, resuming run by run."""

import csv
import json

import pytest
from helpers import tiny_config, tiny_model

from jaxtune import config as configs
from jaxtune.errors import UserError
from jaxtune.sweep import run as sweep
from jaxtune.sweep.language import crossed
from jaxtune.sweep.record import trials_of
from jaxtune.train import resolution
from jaxtune.train.decisions import Status
from jaxtune.train.run import TrainResult


def test_arms_of_one_seed_meet_each_task_in_the_same_order(tmp_path):
    tiny_model(tmp_path / "base")
    met = []
    for temperature in ("1", "inf"):
        config = configs.override(tiny_config(tmp_path), ["--mixture.temperature", temperature])
        plan = resolution.resolve(config, show_progress=False).plan
        placed = [p for step in range(plan.num_steps) for row in plan.rows(step) for p in row]
        met.append(
            {task: [p.example for p in sorted(placed, key=lambda p: p.use) if p.task == task] for task in plan.tasks}
        )
    for task in met[0]:
        shared = min(len(met[0][task]), len(met[1][task]))
        assert shared > 3 and met[0][task][:shared] == met[1][task][:shared]


def test_a_sweep_runs_continues_and_reports(tmp_path, capsys):
    tiny_model(tmp_path / "base")
    config = configs.override(tiny_config(tmp_path), ["--duration.steps", "3", "--eval.every", "0"])
    trials = trials_of(crossed({"mixture.temperature": ["1", "inf"]}), [0])
    folder = tmp_path / "sweep"
    assert sweep.sweep(config, folder, trials) is Status.FINISHED
    rows = list(csv.DictReader((folder / "results.csv").read_text().splitlines()))
    assert [row["mixture.temperature"] for row in rows] == ["1", "inf"]
    assert (folder / "report.html").stat().st_size > 10_000 and (folder / "heatmap.png").exists()
    capsys.readouterr()
    first = (folder / "runs" / "temperature=1_seed=0" / "metrics.jsonl").read_bytes()
    assert sweep.sweep(config, folder, trials) is Status.FINISHED
    assert capsys.readouterr().out.count("finished before") == 2
    assert (folder / "runs" / "temperature=1_seed=0" / "metrics.jsonl").read_bytes() == first
    other = configs.override(config, ["--optim.b1", "0.5"])
    with pytest.raises(UserError, match="another config"):
        sweep.sweep(other, folder, trials)
    assert len(json.loads((folder / "sweep.json").read_text())["runs"]) == 2


def test_a_run_that_is_not_finite_does_not_end_the_sweep(tmp_path, monkeypatch, capsys):
    tiny_model(tmp_path / "base")
    ran = []
    trials = trials_of(crossed({"optim.peak_lr": ["2", "1e-3"]}), [0])

    def train_together(runs, _):
        [run] = runs
        run.run_dir.mkdir(parents=True, exist_ok=True)
        (run.run_dir / "summary.json").write_text(json.dumps({"status": "failed" if len(ran) == 0 else "finished"}))
        ran.append(run.name)
        broken = run.inputs.config.optim.peak_lr == 2.0
        return [
            TrainResult(
                status=Status.FAILED if broken else Status.FINISHED, exit_code=0, run_dir=run.run_dir,
                summary={"status": "finished", "steps": 6, "seconds": 1.0},
                failure="step 3: not finite: loss nan" if broken else None,
            )
        ]  # fmt: skip

    monkeypatch.setattr(sweep, "train_together", train_together)
    monkeypatch.setattr(sweep, "write_results", lambda folder: ran.append("results"))
    with pytest.raises(UserError, match=r"(?s)1 of 2 runs.*peak_lr=2_seed=0: step 3: not finite"):
        sweep.sweep(tiny_config(tmp_path), tmp_path / "sweep", trials)
    assert ran == ["peak_lr=2_seed=0", "peak_lr=1e-3_seed=0", "results"]
    printed = capsys.readouterr().out
    assert "the others go on" in printed
    assert "peak_lr=1e-3_seed=0: finished after 6 steps, 0:01" in printed
