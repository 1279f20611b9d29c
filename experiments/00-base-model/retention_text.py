"""Write the retention texts of the base model: held-out documents of its own kind, and beginnings with one right end.

Run:    python experiments/00-base-model/retention_text.py jaxtune/assets/retention
Takes:  a second.

`documents.jsonl` holds 200 documents of window 0, which `train_base.py` keeps out of training. `completions.jsonl`
holds 30 beginnings of each of the seven skills in the forms that the base has read, each with the one right
continuation; their problem groups are in the training split, as is all of the base's text.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

from base_text import HEADINGS, _training_item, documents

from jaxtune.tasks.builtin import (
    arithmetic,
    classification,
    open_ended,
    python_expressions,
    qa,
    summarization,
    translation,
)
from jaxtune.tasks.builtin.stream import Stream

DOCUMENTS, COMPLETIONS = 200, 30
Pair = tuple[str, str]
"""Beginning and end."""


def _qa(stream: Stream) -> tuple[str, Pair]:
    facts = qa.draw_facts(stream)
    text, fact = qa.passage(facts, stream), stream.pick(facts)
    return text, (f"{text}\n{fact.fill(HEADINGS[fact.relation][0])}\n", fact.value)


def _summarization(stream: Stream) -> tuple[str, Pair]:
    report = summarization.draw_report(stream)
    return report.text, (f"{report.text}\nIn short\n", report.summary)


def _translation(stream: Stream) -> tuple[str, Pair]:
    pair = translation.draw_parallel(stream)
    return pair.source, (f"{pair.source} in French\n", pair.french)


def _classification(stream: Stream) -> tuple[str, Pair]:
    item = classification.draw_labelled(stream)
    return item.text, (f"{item.text}\nThe {item.kind}\n", item.label)


def _code(stream: Stream) -> tuple[str, Pair]:
    expression = python_expressions.draw_expression(stream)
    return expression, (f">>> {expression}\n", python_expressions.value_of(expression))


def _math(stream: Stream) -> tuple[str, Pair]:
    term = arithmetic.draw_term(stream)
    return term.group, (f"{term}\n", str(term.value))


def _open_ended(stream: Stream) -> tuple[str, Pair]:
    piece = open_ended.draw_piece(stream)
    return piece.group, (f"{piece.title}\n", piece.text)


SKILLS: dict[str, Callable[[Stream], tuple[str, Pair]]] = {
    "qa": _qa, "summarization": _summarization, "translation": _translation, "classification": _classification,
    "code": _code, "math": _math, "open_ended": _open_ended,
}  # fmt: skip


def completions(skill: str) -> list[Pair]:
    """Different beginnings of one skill, each with its end."""
    found: dict[str, str] = {}
    number = 0
    while len(found) < COMPLETIONS:
        stream = Stream("retention", skill, number)
        number += 1
        kept: list[Pair] = []

        def text_of(inner: Stream, kept: list[Pair] = kept) -> tuple[str, str]:
            group, pair = SKILLS[skill](inner)
            kept.append(pair)
            return group, "".join(pair)

        _training_item(skill, text_of, stream)
        found.setdefault(*kept[-1])
    return list(found.items())


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"id": f"document-{i}", "text": text} for i, text in enumerate(documents(0, DOCUMENTS))]
    (folder / "documents.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    rows = [
        {"id": f"{skill}-{i}", "skill": skill, "prompt": prompt, "completion": end}
        for skill in SKILLS
        for i, (prompt, end) in enumerate(completions(skill))
    ]
    (folder / "completions.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
