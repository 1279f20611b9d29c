"""Train the tokenizer of the base model: SentencePiece BPE on base text and training prompts.

Run:    python experiments/00-base-model/train_tokenizer.py jaxtune/assets/base
"""

import io
import sys
from pathlib import Path

import sentencepiece as spm
from base_text import documents

from jaxtune.tasks.builtin.collection import FAMILIES, GeneratedSource
from jaxtune.tasks.builtin.exercise import Split
from jaxtune.tasks.builtin.words import (
    CITIES,
    COLOUR_NAMES,
    DAYS,
    FOODS,
    FRUIT,
    JOBS,
    MONTHS,
    NAMES,
    NOUNS,
    PETS,
    THINGS,
    french_number,
)

VOCAB_SIZE = 1536
CONTROL_SYMBOLS = ["<|im_start|>", "<|im_end|>"]
WORDS = [*NAMES, *CITIES, *JOBS, *PETS, *FOODS, *DAYS, *MONTHS, *FRUIT, *THINGS, *COLOUR_NAMES]
WORDS += ["positive", "negative", "mixed", "sport", "music", "food", "weather", "True", "False"]
WORDS += [word for n in range(101) for word in french_number(n).replace("-", " ").split()]
WORDS += [noun.french for noun in NOUNS] + [noun.german for noun in NOUNS]


def training_lines() -> list[str]:
    """Lines of 20,000 base documents, every training prompt in each of its phrasings, and words alone.

    The lone words get one piece at the start of a line, where most answers stand, and one after a space.
    """
    lines = [line for text in documents(0, 20_000) for line in text.split("\n")]
    for task in FAMILIES:
        for record in GeneratedSource(task, FAMILIES[task], Split.TRAIN):
            lines += [
                line
                for text in [*record["prompts"], record["system"] or "", record["answer"]]
                for line in text.split("\n")
            ]
    return lines + ["system", "user", "assistant"] * 2000 + [*WORDS, *(f" {word}" for word in WORDS)] * 1000


def train(lines: list[str]) -> bytes:
    """A SentencePiece model: identity normalisation, byte fallback, digits apart, the line break a piece of its own."""
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCAB_SIZE,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        character_coverage=1.0,
        required_chars="".join(map(chr, range(33, 127))) + "àâçèéêëîïôùûäöüßÄÖÜ",
        user_defined_symbols=["\n"],
        control_symbols=CONTROL_SYMBOLS,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=3,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(train(training_lines()))
