"""One self-contained HTML page: styles inside, no script, nothing fetched. Text is escaped unless it is `Html`."""

import dataclasses
import html
import importlib.resources
from collections.abc import Iterable, Sequence

PALETTE = 8
"""Number of task colours in the style sheet; further tasks start over and are told apart by their labels."""


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


LINE_BREAK = join([tag("span", "↵", class_="nl"), "\n"])


def page(title: str, *, kicker: str, lead: object, top: object, sections: Sequence["Section"], foot: str) -> str:
    """The whole document. `top` stands under the heading, before the first section."""
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
    style = importlib.resources.files("jaxtune").joinpath("assets", "page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n{join(body)}\n</body>\n</html>\n"
    )


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
    return [tag("td", cell, class_="n" if column.number else None) for column, cell in zip(columns, row, strict=True)]


def figure(drawing: Html, *, caption: object = "", note: object = "", wide: bool = False) -> Html:
    """A drawing under its caption; a wide one scrolls sideways on a narrow screen instead of shrinking."""
    title = tag("figcaption", tag("span", caption), tag("span", note, class_="dim")) if caption or note else ""
    return tag("figure", title, drawing, class_="wide" if wide else None)


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


def tokens(pieces: Sequence[str], weights: Sequence[float], *, shown: int = 1200) -> Html:
    """Token pieces with those that carry loss marked; the weight of each is its hover title.

    Line breaks are drawn and kept; after `shown` pieces the rest is counted instead of printed.
    """
    parts = [_token(piece, weight) for piece, weight in zip(pieces[:shown], weights[:shown], strict=True)]
    if len(pieces) > shown:
        parts.append(tag("span", f" … {len(pieces) - shown:,} more tokens", class_="cut"))
    return tag("div", *parts, class_="tokens")


def _token(piece: str, weight: float) -> Html:
    names = (["w"] if weight > 0 else []) + (["control"] if piece.startswith("<") and piece.endswith(">") else [])
    shown = join(LINE_BREAK if char == "\n" else char for char in piece)
    if not names:
        return shown
    style = f"--a:{100 * min(weight, 1):.0f}%" if 0 < weight < 1 else None
    return tag("span", shown, class_=" ".join(names), style=style, title=f"weight {weight:g}")


def example_card(name: Html, identity: str, pieces: Sequence[str], weights: Sequence[float]) -> Html:
    """One example: its tokens in a frame that says how many of them are trained."""
    trained = sum(weight > 0 for weight in weights)
    head = tag(
        "div",
        tag("b", name),
        tag("span", identity),
        tag("span", f"{trained:,} of {len(pieces):,} tokens trained", class_="right"),
        class_="head",
    )
    return tag("div", head, tokens(pieces, weights), class_="example")
