"""A real checkpoint, SmolLM2-135M-Instruct, against transformers: logits on chats, packed rows, and its way out again.

JAXTUNE_SMOLLM2 names the model folder. Chats of real tasks come from JAXTUNE_EXTRA_DATA where it is set; a few own
are always used. Thirty layers of float32 leave an error of about 1e-4 in logits of up to 40, here and in torch, so both
are compared with transformers in float64.
"""

import dataclasses
import functools
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune.hf import folder as hf
from jaxtune.hf.text_files import TextFiles, tokenizer_files
from jaxtune.model import transformer as model
from jaxtune.model.attention.core import Backend
from jaxtune.parallel import compilation as compiling

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif("JAXTUNE_SMOLLM2" not in os.environ, reason="JAXTUNE_SMOLLM2 names no model folder"),
]

CLOSE = 1e-4
"""Difference from transformers in float32 as a share of 1 + |logit|; .96 of it was measured (reference: 1.04)."""
OWN_ERRORS = 3
"""How many times the float32 error of transformers itself our logits may be off."""
CHATS = [
    [
        {"role": "user", "content": "Name three rivers that cross more than two countries."},
        {"role": "assistant", "content": "The Danube, the Nile and the Mekong."},
        {"role": "user", "content": "Which of them is the longest, and where does it end?"},
        {"role": "assistant", "content": "The Nile. It ends in the Mediterranean Sea, north of Cairo."},
    ],
    [
        {"role": "system", "content": "Answer with code only."},
        {"role": "user", "content": "A Python function that says whether a year is a leap year."},
        {"role": "assistant", "content": "def leap(y):\n    return y % 4 == 0 and (y % 100 or y % 400 == 0)"},
    ],
    [
        {"role": "user", "content": "Übersetze ins Englische: Der Zug fährt um Viertel nach acht ab."},
        {"role": "assistant", "content": "The train leaves at a quarter past eight."},
    ],
]


def real_chats(limit: int = 400) -> list[list[dict]]:
    """The first conversation of each task of the compact mixture, where that data is at hand."""
    folder = pathlib.Path(os.environ.get("JAXTUNE_EXTRA_DATA", "/nonexistent")) / "mixture_compact"
    chats = []
    for file in sorted(folder.glob("*/train*.jsonl")):
        with file.open(encoding="utf-8") as lines:
            messages = json.loads(lines.readline()).get("messages")
        if messages and sum(len(m["content"]) for m in messages) < 4 * limit:
            chats.append(messages)
    return chats


@pytest.fixture(scope="module")
def folder() -> pathlib.Path:
    return pathlib.Path(os.environ["JAXTUNE_SMOLLM2"])


@pytest.fixture(scope="module")
def network(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def imported(folder):
    return hf.import_model(folder)


@pytest.fixture(scope="module")
def sequences(folder) -> list[np.ndarray]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in CHATS + real_chats()]
    return [np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]


@dataclasses.dataclass(frozen=True)
class Judged:
    """Logits of each sequence in float64 and in float32, and how far these are from one another."""

    exact: list[np.ndarray]
    single: list[np.ndarray]
    own_error: float


@pytest.fixture(scope="module")
def expected(folder, network, sequences) -> Judged:
    double = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    exact = [torch_logits(double, s) for s in sequences]
    single = [torch_logits(network, s) for s in sequences]
    return Judged(exact, single, max(np.abs(s - e).max() for s, e in zip(single, exact, strict=True)))


def torch_logits(network, sequence: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return network(torch.tensor(sequence)[None]).logits[0].numpy()


def padded(sequences: list[np.ndarray]):
    length = max(map(len, sequences))
    tokens = np.stack([np.pad(s, (0, length - len(s))) for s in sequences])
    segments = np.stack([(np.arange(length) < len(s)).astype(np.int32) for s in sequences])
    return tokens, np.tile(np.arange(length), (len(sequences), 1)), segments


def packed(sequences: list[np.ndarray]):
    """All sequences in one row."""
    ids = np.repeat(np.arange(1, len(sequences) + 1), [len(s) for s in sequences])
    return np.concatenate(sequences)[None], np.concatenate([np.arange(len(s)) for s in sequences])[None], ids[None]


def logits(imported, tokens, positions, segment_ids, backend: Backend) -> np.ndarray:
    config, params = imported
    graphdef, _ = model.abstract_params(dataclasses.replace(config, attention=backend))

    @functools.partial(compiling.jit, platform=jax.default_backend(), dtype="float32")
    def compute(params, *batch):
        return model.apply_logits(graphdef, params, model.apply(graphdef, params, *batch))

    return np.asarray(compute(params, *map(jnp.asarray, (tokens, positions, segment_ids))))


def share(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference as a share of 1 + |logit|: what `assert_allclose` calls atol = rtol."""
    return float((np.abs(ours - theirs) / (1 + np.abs(theirs))).max())


def test_padded_logits_equal_transformers(imported, sequences, expected):
    ours = logits(imported, *padded(sequences), Backend.REFERENCE)
    off = max(np.abs(row[: len(exact)] - exact).max() for row, exact in zip(ours, expected.exact, strict=True))
    print(f"padded: logits off {off:.1e} over {sum(map(len, sequences))} tokens, transformers {expected.own_error:.1e}")
    assert off < OWN_ERRORS * expected.own_error < 1e-3


@pytest.mark.parametrize("backend", [Backend.REFERENCE, Backend.BLOCKWISE])
def test_packed_logits_equal_those_of_single_sequences(imported, sequences, expected, backend):
    ours = logits(imported, *packed(sequences), backend)[0]
    off = np.abs(ours - np.concatenate(expected.exact)).max()
    print(f"packed, {backend.value}: logits off {off:.1e}, transformers {expected.own_error:.1e}")
    assert off < OWN_ERRORS * expected.own_error
    beyond = share(ours, np.concatenate(expected.single))
    print(f"packed, {backend.value}: from transformers in float32 {beyond:.2e} of 1 + |logit|")
    assert beyond < 1.5 * CLOSE


def test_export_is_loaded_by_transformers_which_agrees_and_generates(imported, folder, sequences, expected, tmp_path):
    config, params = imported
    files = tokenizer_files(folder)
    out = tmp_path / "out"
    hf.export_model(out, config, params, TextFiles(eos_token_id=2, bos_token_id=1, pad_token_id=2, files=tuple(files)))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    off = max(np.abs(torch_logits(loaded, s) - e).max() for s, e in zip(sequences, expected.exact, strict=True))
    assert off < 1.01 * expected.own_error, "the exported weights are not those of the checkpoint"

    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    text = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(text, return_tensors="pt")
    answer = loaded.generate(**prompt, max_new_tokens=32, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] == loaded.generation_config.eos_token_id == 2
