"""One self-contained HTML page: styles inside, no script, nothing fetched. Text is escaped unless it is `Html`."""

import dataclasses
import html
import json
import math
import urllib.parse
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtune.errors import printable
from jaxtune.terminal.numbers import Number, signed

STYLE_SHEET = Path(__file__).parent.parent / "assets" / "page.css"
PALETTE = 8
"""Number of task colours in the style sheet; further tasks start over and are told apart by their labels."""
WIDE, NARROW = 1040, 380
"""Widths in pixels of a drawing across the page, and of the same one on a screen of at most 720."""
TASKS_DRAWN = 24
"""Tasks that get a panel or a card of their own; tables hold them all."""


class Html(str):
    """Markup that goes onto the page as it is."""


def escape(value: object) -> Html:
    """The value as markup: `Html` unchanged, anything else as escaped text."""
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def join(parts: Iterable[object], separator: str = "") -> Html:
    """Escaped parts, one after the other."""
    return Html(separator.join(escape(part) for part in parts))


def tag(name: str, *content: object, **attributes: object) -> Html:
    """`<name attributes>content</name>`; a trailing underscore in an attribute's name is dropped (`class_`)."""
    listed = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{listed}>{join(content)}</{name}>")


def colour(index: int) -> str:
    """The style that gives an element the colour of the task with this index."""
    return f"--c:var(--task-{index % PALETTE})"


def swatch(index: int, name: str) -> Html:
    """A task's name behind a square of its colour."""
    return join([tag("span", class_="swatch", style=colour(index)), name])


ICON = "data:image/svg+xml," + urllib.parse.quote(
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><rect width="16" height="16" rx="3" fill="#1f6fc4"/>'
    '<path d="M3 4c2 7 5 8 10 8" fill="none" stroke="#fff" stroke-width="2" stroke-linecap="round"/></svg>'
)
"""The picture in a browser's tab: a falling curve."""

LINE_BREAK = join([tag("span", "↵", class_="nl"), "\n"])


def page(
    title: str, *, kicker: str, lead: object, top: object, sections: Sequence["Section"], foot: str,
    refresh: int | None = None,
) -> str:  # fmt: skip
    """The whole document. `top` stands under the heading, before the first section.

    `refresh`: seconds after which a browser reads the file again.
    """
    links = [tag("a", section.heading, href=f"#{section.anchor}") for section in sections]
    head = [
        tag("p", kicker, class_="kicker"),
        tag("h1", title),
        tag("p", lead, class_="lead"),
        top,
    ]
    body = [
        tag("header", tag("div", *head), tag("nav", tag("div", *links))),
        tag("main", *(section.html() for section in sections), tag("footer", foot)),
    ]
    return document(title, join(body), refresh=refresh)


def document(title: str, body: Html, *, refresh: int | None = None) -> str:
    """A whole HTML file around `body`, styles inside; see `page` for `refresh`."""
    again = "" if refresh is None else f'<meta http-equiv="refresh" content="{refresh}">\n'
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="{ICON}">\n'
        f"{again}<title>{html.escape(title)}</title>\n<style>\n{STYLE_SHEET.read_text(encoding='utf-8')}</style>\n"
        f"</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def framed(*content: object, height: int) -> Html:
    """Content in a frame of its own, `height` pixels high, so that a notebook keeps its own style."""
    inside = document("", tag("main", *content))
    return tag("div", tag("iframe", srcdoc=inside, style=f"width:100%;height:{height}px;border:0"))


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page with an entry in the navigation."""

    anchor: str
    heading: str
    lead: object
    parts: Sequence[object]

    def html(self) -> Html:
        lead = tag("p", self.lead, class_="lead") if self.lead else ""
        return tag("section", tag("h2", self.heading), lead, *self.parts, id=self.anchor)


@dataclasses.dataclass(frozen=True)
class Stat:
    """A headline figure."""

    label: str
    value: object
    under: object = ""


def stats(items: Sequence[Stat]) -> Html:
    """Headline figures in a row."""
    boxes = [
        tag("div", tag("dt", item.label), tag("dd", item.value), tag("div", item.under, class_="under"))
        for item in items
    ]
    return tag("dl", *boxes, class_="stats")


@dataclasses.dataclass(frozen=True)
class Column:
    """A table column; numbers are set right-aligned with digits of equal width."""

    label: str
    number: bool = True
    title: str | None = None
    """What the column means, shown on hover."""


def table(
    columns: Sequence[Column],
    rows: Sequence[Sequence[object]],
    *,
    total: Sequence[object] | None = None,
    groups: Sequence[tuple[str, int]] = (),
    class_: str | None = None,
) -> Html:
    """A table; `groups` are (label, columns spanned) above the header row, `total` a last row set off from the rest."""
    over = [tag("th", label, class_="group" if label else "group empty", colspan=span) for label, span in groups]
    head = [tag("th", column.label, class_="n" if column.number else None, title=column.title) for column in columns]
    body = [tag("tr", *_cells(columns, row)) for row in rows]
    if total is not None:
        body.append(tag("tr", *_cells(columns, total), class_="total"))
    header = [tag("tr", *over), tag("tr", *head)] if over else [tag("tr", *head)]
    return tag("div", tag("table", tag("thead", *header), tag("tbody", *body), class_=class_), class_="scroll")


def _cells(columns: Sequence[Column], row: Sequence[object]) -> list[Html]:
    return [
        tag("td", cell, class_="n" if column.number else None, data_label=None if column.number else column.label)
        for column, cell in zip(columns, row, strict=True)
    ]


def figure(drawing: Html, *, caption: object = "", note: object = "") -> Html:
    """A drawing under its caption."""
    title = tag("figcaption", tag("span", caption), tag("span", note, class_="dim")) if caption or note else ""
    return tag("figure", title, drawing)


def wide_figure(draw: Callable[[int], str], *, caption: object = "", note: object = "") -> Html:
    """A drawing as wide as the page. `draw` takes the width in pixels.

    It is drawn a second time for narrow screens, where the first one's letters would be too small to read; the style
    sheet shows one of them.
    """
    widths = (("at-wide", WIDE), ("at-narrow", NARROW))
    drawings = [tag("div", Html(draw(width)), class_=kind) for kind, width in widths]
    return figure(join(drawings), caption=caption, note=note)


def legend(entries: Sequence[tuple[str, str, str]]) -> Html:
    """(shape, style, label) entries; shapes are `fill`, `stroke`, `ring`, `disc`."""
    return tag(
        "div",
        *(tag("span", tag("i", class_=shape, style=style), label) for shape, style, label in entries),
        class_="legend",
    )


def details(summary: object, *content: object, opened: bool = False) -> Html:
    """Content behind a line that opens it."""
    inner = join([tag("summary", summary), *content])
    return Html(f"<details{' open' if opened else ''}>{inner}</details>")


def facts(pairs: Iterable[tuple[str, object]]) -> Html:
    """A list of names and values."""
    return tag("dl", *(join([tag("dt", name), tag("dd", value)]) for name, value in pairs), class_="facts")


def tokens(
    pieces: Sequence[str], weights: Sequence[Number], controls: Sequence[bool] | None = None, *, shown: int = 1200
) -> Html:
    """Token pieces with those that carry loss marked; the weight of each is its hover title.

    Line breaks are drawn and kept; after `shown` pieces the rest is counted instead of printed. Without `controls`,
    pieces in angle brackets count as control tokens.
    """
    if controls is None:
        controls = [piece.startswith("<") and piece.endswith(">") for piece in pieces]
    parts = [_token(*one) for one in zip(pieces[:shown], weights[:shown], controls[:shown], strict=True)]
    if len(pieces) > shown:
        parts.append(tag("span", f" … {len(pieces) - shown:,} more tokens", class_="cut"))
    return tag("div", *parts, class_="tokens")


def _token(piece: str, weight: Number, control: bool) -> Html:
    names = (["w"] if weight > 0 else []) + (["control"] if control else [])
    shown = join(LINE_BREAK if char == "\n" else printable(char) for char in piece)
    if not names:
        return shown
    style = f"--a:{100 * min(weight, 1):.0f}%" if 0 < weight < 1 else None
    return tag("span", shown, class_=" ".join(names), style=style, title=f"weight {weight:g}")


def example_card(name: Html, sample: Mapping[str, Any]) -> Html:
    """One example (`tokens`, `weights`, `id`) in a frame that says how many of its tokens are trained."""
    trained = sample.get("trained", sum(weight > 0 for weight in sample["weights"]))
    head = tag(
        "div",
        tag("b", name),
        tag("span", sample.get("id", ""), class_="id"),
        tag("span", f"{trained:,} of {sample.get('length', len(sample['tokens'])):,} tokens trained", class_="right"),
        class_="head",
    )
    return tag("div", head, tokens(sample["tokens"], sample["weights"], sample.get("controls")), class_="example")


def examples_section(samples: Mapping[str, Sequence[Mapping[str, Any]]], order: Mapping[str, int]) -> Section:
    """A card for each task with its first example, the others behind a line that opens them."""
    parts = []
    for task, rows in list(samples.items())[:TASKS_DRAWN]:
        cards = [example_card(swatch(order.get(task, 0), task), row) for row in rows]
        more = [details(f"{len(cards) - 1} more of {task}", *cards[1:])] if len(cards) > 1 else []
        parts.append(tag("div", *cards[:1], *more))
    lead = "As the model sees them. Marked tokens carry loss (hover for the weight); all others are context only."
    return Section("examples", "What is trained", lead, [tag("div", *parts, class_="grid2")])


# Numbers as text


def change(value: Number, digits: int, *, better: int, scale: Number = 1.0, clear: bool = True) -> Html:
    """A signed difference, coloured when it is an improvement or a loss (`better` is the good direction, +1 or -1)."""
    text = signed(value, digits, scale)
    zero = float(f"{scale * value:.{digits}f}") == 0 if math.isfinite(value) else True
    if zero or not clear:
        return tag("span", text)
    return tag("span", text, class_="good" if value * better > 0 else "bad")


def from_to(before: Number, after: Number, form: Callable[[Number], str]) -> Html:
    """`before → after` for a headline figure."""
    if not math.isfinite(before):
        return tag("span", form(after))
    return join([tag("span", f"{form(before)} → ", class_="from"), form(after)])


def words(name: object) -> str:
    """An option's name in words."""
    return str(name).replace("_", " ")


def plain_text(value: Any) -> str:
    """A JSON value on one line."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else str(value)


def pretty(value: Any, limit: int = 40_000) -> str:
    """A JSON value as indented text; an enormous one is cut, and says so."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return text if len(text) <= limit else f"{text[:limit]}\n… {len(text) - limit:,} more characters in the run folder"
