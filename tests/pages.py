"""A check of written pages: well nested, nothing fetched, nothing wider than a phone unless it scrolls in its box."""

import html.parser
import re

VOID = {"meta", "link", "br", "img", "input", "hr"}
READABLE = 460
"""Widest drawing, in its own pixels, whose letters can still be read when it is scaled to a phone's 358."""


class Page(html.parser.HTMLParser):
    """Checks nesting; collects what a page would fetch, its text and its classes, and what a phone could not show.

    `loose` are tables outside a box that scrolls, and drawings too wide for narrow screens that are drawn only once.
    """

    def __init__(self, source):
        super().__init__()
        self.open, self.fetched, self.text, self.classes, self.links = [], [], [], [], []
        self.inside, self.loose = [], []
        self.feed(source)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.fetched += [value for name, value in attrs if name in ("src", "data", "srcset", "xlink:href")]
        inside = ("#", "data:")
        addresses = [value or "" for name, value in attrs if name == "href" and not (value or "").startswith(inside)]
        (self.links if tag == "a" else self.fetched).extend(addresses)
        self.fetched += [tag] if tag in ("script", "iframe", "object", "embed") else []
        found = dict(attrs)
        names = (found.get("class") or "").split()
        self.classes += names
        around = {name for outer in self.inside for name in outer}
        if tag == "table" and "scroll" not in around:
            self.loose.append(found)
        if tag == "svg" and float((found["viewbox"] or "").split()[2]) > READABLE and "at-wide" not in around:
            self.loose.append(found)
        if tag not in VOID:
            self.open.append(tag)
            self.inside.append(names)

    def handle_startendtag(self, tag, attrs):
        self.classes += [name for key, value in attrs if key == "class" for name in (value or "").split()]

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()
        self.inside.pop()

    def handle_data(self, data):
        self.text.append(data)


def assert_self_contained(source):
    page = Page(source)
    assert not page.fetched
    assert not page.loose
    assert page.classes.count("at-wide") == page.classes.count("at-narrow")
    assert not re.search(r"url\(|@import|https?:", source)
    return page
