"""Small real tokenizers, trained in process: a byte-level BPE `tokenizer.json` and a SentencePiece `.model`."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

LINES = [
    "The quick brown fox jumps over the lazy dog.",
    "user\nassistant\nsystem\nWhat is 12 + 30?\n\nIt is 42.",
    "def f(x):\n    return x  # two  spaces\n",
    "Grüße aus Köln, 你好, привет\n\n\nEnd",
] * 20

CONTROLS = ("<pad>", "<bos>", "<eos>", "<|im_start|>", "<|im_end|>")


def write_hf(
    folder: Path,
    *,
    controls: Sequence[str] = CONTROLS,
    bos: str | None = "<bos>",
    eos: str | None = "<eos>",
    pad: str | None = "<pad>",
    change: Any = None,
) -> Path:
    """A byte-level BPE tokenizer folder; `change` may edit the tokenizer.json object before it is written."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=256 + len(controls) + 120,
        special_tokens=list(controls),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(LINES, trainer)
    spec = json.loads(backend.to_str())
    if change is not None:
        change(spec)
    named = {"bos_token": bos, "eos_token": eos, "pad_token": pad}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **{k: v for k, v in named.items() if v is not None}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def write_sentencepiece(folder: Path, *, dummy_prefix: bool = False, user_defined: Sequence[str] = ("\n",)) -> Path:
    """A SentencePiece BPE model with byte fallback; BOS and EOS are its own control pieces."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
        model_writer=model,
        model_type="bpe",
        vocab_size=420,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=dummy_prefix,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        control_symbols=["<|im_start|>", "<|im_end|>"],
        user_defined_symbols=list(user_defined),
        pad_id=3,
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return folder
