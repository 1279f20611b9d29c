"""Write the questions of three lm-eval tasks, `tasks/*.jsonl`, from the test splits of the built-in tasks."""

import json
from collections.abc import Iterator
from pathlib import Path

from jaxtune.chat import Conversation
from jaxtune.tasks.builtin import TASKS

HERE = Path(__file__).parent
CHOICES = (["sport", "music", "food", "weather"], ["positive", "negative", "mixed"])
COUNT = 24


def chats(name: str) -> Iterator[tuple[str, str]]:
    """Questions without a system message, with their answers."""
    task = TASKS[name]
    for i in range(len(task.source("test"))):
        chat = task.read("test", i)
        assert isinstance(chat, Conversation)
        if len(chat.messages) == 2:
            yield chat.messages[0].content or "", chat.messages[1].content or ""


def labels() -> Iterator[dict]:
    """Topics and tones of short texts: which of three or four words is right."""
    for question, answer in chats("classification"):
        [choices] = [one for one in CHOICES if answer in one]
        yield {"question": question, "choices": choices, "gold": choices.index(answer)}


def answers() -> Iterator[dict]:
    """Questions about a text of some sentences, with answers of a word or two."""
    for question, answer in chats("qa"):
        yield {"question": question, "answer": answer}


def texts() -> Iterator[dict]:
    """Short reports."""
    for question, _ in chats("summarization"):
        yield {"text": question.partition("\n")[2]}


if __name__ == "__main__":
    for make in (labels, answers, texts):
        rows = list(make())[:COUNT]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (HERE / "tasks" / f"{make.__name__}.jsonl").write_text(lines)
        print(f"{make.__name__}: {len(rows)} questions")
