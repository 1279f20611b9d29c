"""Export of a run from what its folder records, without its config file."""

import json

import pytest

from jaxtune import config as configs
from jaxtune.chat.template import Bos, Reasoning
from jaxtune.config import CheckpointConfig, DataConfig, LoraConfig, ModelSource
from jaxtune.errors import UserError
from jaxtune.train.export import part


@pytest.mark.parametrize(
    "given",
    [
        ModelSource(path="a", bos=Bos.ADD, template_variables={"enable_thinking": False}),
        LoraConfig(rank=4, targets=("mlp",), alpha=8.0),
        DataConfig(reasoning=Reasoning.DROP, prompt_loss_weight=0.5),
        CheckpointConfig(directory="elsewhere", keep_best=0),
    ],
    ids=lambda given: type(given).__name__,
)
def test_a_part_of_a_config_comes_back_from_json_with_its_types(tmp_path, given):
    found = part(tmp_path, type(given), json.loads(json.dumps(configs.to_json(given))))
    assert found == given and repr(found) == repr(given)  # an enum equals its value, but is not shown alike


def test_an_option_of_another_version_is_named(tmp_path):
    with pytest.raises(UserError, match="ModelSource has colour, which this version of jaxtune does not know"):
        part(tmp_path, ModelSource, {"path": "a", "colour": "red"})
