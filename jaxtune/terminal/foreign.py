"""Output on which text of data, files and models cannot act: control characters appear as their escapes.

Lines go through `jaxtune.errors.say`, tables and bars through `TextConsole`, JSON through `print_json`.
"""

import json
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions
from rich.segment import Segment

from jaxtune.errors import printable
from jaxtune.storage.documents import json_bytes


class TextConsole(Console):
    """A rich console that prints text only; what rich itself draws with (colours, cursor of a bar) still works."""

    def render(self, renderable: Any, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Segments that rich renders, with every control character in a text as its escape."""
        for segment in super().render(renderable, options):
            text = segment.text if segment.control else printable(segment.text)
            yield segment if text == segment.text else Segment(text, segment.style)


def print_json(value: Any) -> None:
    """JSON on stdout; what a terminal would act on is written as JSON's own escapes, which readers undo."""
    text = json_bytes(value).decode()
    if printable(text) != text:
        text = "".join(c if printable(c) == c else json.dumps(c)[1:-1] for c in text)
    sys.stdout.write(text)
