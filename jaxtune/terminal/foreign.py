"""Consoles on which text of data, files and models cannot act: control characters appear as their escapes."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions
from rich.segment import Segment

from jaxtune.errors import printable


class TextConsole(Console):
    """A rich console that prints text only; what rich itself draws with (colours, cursor of a bar) still works."""

    def render(self, renderable: Any, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Segments that rich renders, with every control character in a text as its escape."""
        for segment in super().render(renderable, options):
            text = segment.text if segment.control else printable(segment.text)
            yield segment if text == segment.text else Segment(text, segment.style)
