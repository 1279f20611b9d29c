"""Shared toys: a tiny model folder, arithmetic-free tasks, and a config that trains in seconds."""

import dataclasses
import pathlib
import shutil

import jaxtune
from jaxtune.config import BatchConfig, DataConfig, ExperimentConfig, ModelSource
from jaxtune.evaluate.loss import EvalConfig
from jaxtune.hf import folder as hf
from jaxtune.hf.text_files import TextFiles
from jaxtune.mixture.settings import Budget, MixtureConfig
from jaxtune.model import transformer as model
from jaxtune.model.settings import ModelConfig
from jaxtune.optim import OptimConfig
from jaxtune.parallel.mesh import MeshConfig
from jaxtune.runs.retention import CheckpointConfig
from jaxtune.tasks import Task, from_list

ASSETS = pathlib.Path(jaxtune.__file__).parent / "assets" / "base"
TINY = ModelConfig(
    vocab_size=1536, d_model=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, d_ff=32, max_seq_len=128
)


def tiny_model(folder: pathlib.Path, shape: ModelConfig = TINY) -> pathlib.Path:
    """A random model, by default of two layers, with the built-in tokenizer and template."""
    params = model.init_params(shape, 0)[1]
    files = [ASSETS / "tokenizer.model", ASSETS / "tokenizer_config.json"]
    hf.export_model(
        folder, shape, params, TextFiles(eos_token_id=5, bos_token_id=1, pad_token_id=3, files=tuple(files))
    )
    return folder


def tiny_config_file(folder: pathlib.Path, place: pathlib.Path) -> pathlib.Path:
    """`config.py` in a folder, for command lines: `tiny_config` of the tiny model in `place`."""
    file = folder / "config.py"
    file.write_text(
        "import pathlib\n\nfrom helpers import tiny_config\n\n\ndef config():\n"
        f"    return tiny_config(pathlib.Path({str(place)!r}))\n"
    )
    return file


def chat_record(number: int, question: str, answer: str) -> dict:
    """A conversation of one exchange."""
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"id": f"r{number}", "messages": messages}


def letters(name: str, count: int) -> Task:
    """Spell-the-letter questions; train, validation and test share none."""
    word = lambda i: "".join(chr(97 + (i * k) % 26) for k in (1, 3, 7))
    records = [chat_record(i, f"{name}: say {word(i)} {i}", word(i)) for i in range(count + 16)]
    split = lambda part, label: from_list(part, name=f"{name}-{label}")
    return Task(
        name=name,
        splits={
            "train": split(records[:count], "train"),
            "validation": split(records[count : count + 8], "validation"),
            "test": split(records[count + 8 :], "test"),
        },
    )


def tiny_config(folder: pathlib.Path, **changes) -> ExperimentConfig:
    """Two tasks of 40 and 10 examples, 6 steps of 4 rows."""
    config = ExperimentConfig(
        name="tiny",
        model=ModelSource(path=str(folder / "base")),
        tasks=(letters("large", 40), letters("small", 10)),
        duration=Budget(steps=6),
        mixture=MixtureConfig(temperature=2),
        data=DataConfig(seq_len=64, cache_dir=str(folder / "cache")),
        batch=BatchConfig(rows=4, micro_rows=2),
        optim=OptimConfig(peak_lr=1e-2, warmup_frac=0.2),
        eval=EvalConfig(every=3, rows=4, generate_examples=4, max_new_tokens=4, generate_rows=8, answers=0),
        checkpoint=CheckpointConfig(save_every=2),
        mesh=MeshConfig(devices=1),
        compilation_cache=None,
    )
    return dataclasses.replace(config, **changes)


def fresh(folder: pathlib.Path) -> pathlib.Path:
    """The folder, empty."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder
