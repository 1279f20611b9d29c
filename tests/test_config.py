"""Configs: strict overrides, complete dumps, clear errors."""

import dataclasses
import json
import math
import pathlib
import re
import subprocess
import sys
from typing import get_args, get_type_hints

import pytest
from helpers import tiny_config

from jaxtune import config
from jaxtune.errors import UserError
from jaxtune.mixture.settings import Budget, MixtureConfig, Strategy
from jaxtune.model.lora import LoraConfig, Variant
from jaxtune.storage.documents import dotted

CONFIGS = sorted((pathlib.Path(__file__).parent.parent / "configs").glob("*.py"))


def test_an_override_changes_one_field(tmp_path):
    base = tiny_config(tmp_path)
    changed = config.override(base, ["--optim.peak-lr", "3e-5", "--mixture.temperature", "inf", "--seed", "4"])
    assert changed.optim.peak_lr == 3e-5 and changed.mixture.temperature == math.inf and changed.seed == 4
    assert set(config.diff(base, changed)) == {"optim.peak_lr", "mixture.temperature", "seed"}
    assert changed.tasks is base.tasks


def test_variables_of_a_template_have_a_form_on_the_command_line(tmp_path):
    options = ["--model.template-variables", "enable_thinking", "False", "effort", "low", "k", "3"]
    changed = config.override(tiny_config(tmp_path), options)
    assert changed.model.template_variables == {"enable_thinking": False, "effort": "low", "k": 3}
    with pytest.raises(UserError, match="model.template_date is 'today'; write it as YYYY-MM-DD"):
        config.override(tiny_config(tmp_path), ["--model.template-date", "today"])


def test_underscores_and_dashes_both_work(tmp_path):
    assert config.override(tiny_config(tmp_path), ["--optim.peak_lr", "3e-5"]).optim.peak_lr == 3e-5


def test_an_unknown_override_names_the_nearest(tmp_path):
    with pytest.raises(UserError, match=r"(?s)peak-lrr.*peak-lr"):
        config.override(tiny_config(tmp_path), ["--optim.peak-lrr", "1"])


def test_adapters_are_turned_on_and_off_by_options(tmp_path):
    base = tiny_config(tmp_path)
    adapted = config.override(base, ["--lora.rank", "4", "--lora.variant", "dora"])
    assert base.lora is None and adapted.lora is not None
    assert (adapted.lora.rank, adapted.lora.variant) == (4, Variant.DORA)
    assert config.override(base, ["--lora"]).lora == LoraConfig()
    assert config.override(adapted, ["--lora.alpha=8"]).lora == dataclasses.replace(adapted.lora, alpha=8)
    assert config.override(adapted, ["--no-lora"]) == base
    with pytest.raises(UserError, match="--lora.rank"):
        config.override(base, ["--lora.rank", "0.5"])


def test_every_option_is_described_with_its_value(tmp_path):
    described = config.describe(tiny_config(tmp_path))
    names = {f"--{name.replace('_', '-')}" for name in dotted(config.to_json(tiny_config(tmp_path)))}
    absent = {name for name in names - {"--lora"} if name not in described}
    assert absent == {"--tasks", "--mixture.groups", "--on-validation"}  # these are written in the config file
    assert "--lora.rank" in described and "Adapters are off here" in described


def test_an_error_of_an_option_is_plain_text(tmp_path):
    with pytest.raises(UserError) as error:
        config.override(tiny_config(tmp_path), ["--optim.peak-lr", "fast"])
    assert str(error.value).splitlines() == [
        "options after the config:",
        "  Error parsing --optim.peak-lr: could not convert string to float: 'fast'",
        "  Argument helptext:",
        "  --optim.peak-lr FLOAT",
        "  Learning rate at the end of the warmup; above 0. (default: 0.01)",
        "`jaxtune options CONFIG` lists them all",
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--optim.peak-lr", "fast"],
        ["--optim.peak-lr", "-1"],
        ["--data.seq-len", "2"],
        ["--data.prompt-loss-weight", "1.5"],
        ["--batch.micro-rows", "3"],
        ["--early-stopping.patience", "0"],
        ["--eval.rows", "0"],
        ["--mixture.temperature", "0"],
        ["--health.profile-steps", "3", "2"],
        ["--health.profile-steps", "0", "2"],
        ["--loss.normalization", "response", "--data.prompt-loss-weight", "1"],
    ],
)
def test_impossible_values_are_refused(tmp_path, arguments):
    with pytest.raises(UserError):
        config.override(tiny_config(tmp_path), arguments)


def test_a_dump_is_complete_and_plain_json(tmp_path):
    dumped = json.loads(config.dump(tiny_config(tmp_path)))
    assert set(dumped) == {field.name for field in dataclasses.fields(config.ExperimentConfig)}
    assert dumped["optim"]["peak_lr"] == 1e-2 and dumped["tasks"][0]["name"] == "large"


def test_a_missing_config_lists_what_is_there(tmp_path):
    (tmp_path / "other.py").write_text("")
    with pytest.raises(UserError, match=r"no config file.*other\.py"):
        config.load(tmp_path / "mine.py")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def config(:", "SyntaxError"),
        ("import nothing_of_that_name", "nothing_of_that_name"),
        ("x = 1", "no function"),
        ("def config(): return 3", "returned int"),
        (
            "from jaxtune.optim import OptimConfig\ndef config(): return OptimConfig(learning_rte=1.0, peak_l=1e-4)",
            "learning_rte|peak_lr",
        ),
    ],
)
def test_a_broken_config_says_what_is_wrong(tmp_path, text, message):
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        config.load(path)


def test_two_tasks_of_one_name_are_refused(tmp_path):
    base = tiny_config(tmp_path)
    with pytest.raises(UserError, match="more than once"):
        dataclasses.replace(base, tasks=(base.tasks[0], base.tasks[0]))


def test_an_option_replaces_its_alternatives(tmp_path):
    epochs = dataclasses.replace(tiny_config(tmp_path), duration=Budget(epochs=2))
    assert config.override(epochs, ["--duration.steps", "10"]).duration == Budget(steps=10)
    assert config.override(epochs, ["--duration.epochs=3"]).duration == Budget(epochs=3)
    with pytest.raises(UserError, match="exactly one"):
        config.override(epochs, ["--duration.steps", "10", "--duration.tokens", "99"])
    weighed = MixtureConfig(strategy=Strategy.WEIGHTS, weights={"large": 1, "small": 1})
    mixed = config.override(dataclasses.replace(epochs, mixture=weighed), ["--mixture.strategy", "equal"]).mixture
    assert (mixed.strategy, mixed.weights) == (Strategy.EQUAL, None)


def test_exactly_one_duration():
    with pytest.raises(UserError, match="exactly one"):
        Budget(steps=3, epochs=1.0)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_loads_and_says_how_to_run_it(path):
    loaded = config.load(path)
    assert loaded.tasks
    assert "Run:" in path.read_text(encoding="utf-8").split('"""')[1]


def plainly(check):
    """The result of `check` of tests/silly_values.py in a process of its own, without this suite's checks of types."""
    script = pathlib.Path(__file__).parent / "silly_values.py"
    done = subprocess.run([sys.executable, script, check], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_silly_values_are_taken_or_refused_by_the_name_of_the_option():
    found = plainly("numbers")
    assert len(found["options"]) > 50 and found["unclear"] == [] and found["taken"] == []
    assert found["slowest"] < 1


def test_choices_may_be_written_as_text_and_wrong_ones_name_those_there_are():
    found = plainly("choices")
    assert found["cosine"] == "Schedule.COSINE"
    assert found["cosin"].startswith("optim.schedule is 'cosin'; it must be one of cosine, linear")
    assert found["3"].startswith("data.packing is 3; it must be one of best_fit, padded")


def test_every_number_of_a_config_has_a_range():
    settings = dataclasses.replace(tiny_config(pathlib.Path()), lora=LoraConfig())
    for kind in {type(value) for value in vars(settings).values()}:
        if not dataclasses.is_dataclass(kind):
            continue
        for name, hint in get_type_hints(kind, include_extras=True).items():
            if re.search(r"\b(int|float)\b", str(hint)):
                assert "Range(" in str(hint), f"{kind.__name__}.{name} takes any number; give it a Range"


def test_every_class_and_choice_of_a_config_is_a_name_of_the_module():
    kinds = {part for hint in config.leaves().values() for part in (hint, *get_args(hint)) if isinstance(part, type)}
    kinds |= {type(value) for value in vars(tiny_config(pathlib.Path())).values() if dataclasses.is_dataclass(value)}
    ours = {kind.__name__ for kind in kinds if kind.__module__.startswith("jaxtune.")}
    assert {"Schedule", "MixtureConfig", "LoraConfig"} <= ours
    assert ours <= set(config.__all__) and all(hasattr(config, name) for name in config.__all__)


DEFAULTS = pathlib.Path(__file__).parent / "golden" / "option_defaults.json"
"""What each option is when nothing is said, as run and sweep folders have recorded it."""


def defaults() -> dict:
    """The value of every option in a config that states only what it must, and adapters."""
    stated = {"name": "x", "model": config.ModelSource(path="builtin"), "tasks": tiny_config(pathlib.Path()).tasks}
    tree = config.to_json(config.ExperimentConfig(**stated, lora=LoraConfig()))
    values = {}
    for name in config.leaves():
        value = tree
        for part in name.split("."):
            value = value[part]
        values[name] = value
    return {name: value for name, value in values.items() if name not in {*stated, "model.path"}}


def test_no_default_differs_from_what_folders_of_earlier_versions_recorded():
    """A default that changes makes such runs and sweeps those of other settings: find another way, or say so.

    New options join the record; the message has their lines.
    """
    recorded, now = json.loads(DEFAULTS.read_text()), defaults()
    changed = {name: (recorded[name], now.get(name)) for name in recorded if now.get(name) != recorded[name]}
    assert not changed
    new = {name: now[name] for name in now if name not in recorded}
    assert not new, f"add to {DEFAULTS.name}: {json.dumps(new, indent=2)}"
