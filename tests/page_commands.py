"""Commands and code that stand in Markdown, for the tests that run what the pages say."""

import itertools
import re
import shlex

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"^    (jaxtune .*)$", re.MULTILINE)
IN_LINE = re.compile(r"`(jaxtune [a-z][^`]*)`")


def blocks(text: str, language: str) -> list[str]:
    """Fenced blocks of a language."""
    return [body for kind, body in BLOCK.findall(text) if kind == language]


def prose(text: str) -> str:
    """The text without its fenced blocks."""
    return BLOCK.sub("", text)


def commands(text: str) -> list[list[str]]:
    """All `jaxtune ...` commands of shell blocks, indented lines and code spans; words after `jaxtune`."""
    lines = [line for block in blocks(text, "bash") for line in block.splitlines()]
    lines += [*INDENTED.findall(text), *IN_LINE.findall(" ".join(prose(text).split()))]
    found = []
    for line in lines:
        words = shlex.split(line, comments=True)
        cuts = [-1, *(i for i, word in enumerate(words) if word == "&&"), len(words)]
        for left, right in itertools.pairwise(cuts):
            part = words[left + 1 : right]
            if "jaxtune" in part:  # also behind a launcher: srun jaxtune train ...
                found.append(part[part.index("jaxtune") + 1 :])
    return found
