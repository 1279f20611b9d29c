"""A check of written pages: well nested, nothing fetched."""

import html.parser
import re

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(html.parser.HTMLParser):
    """Checks nesting; collects what a page would fetch, its text and its classes."""

    def __init__(self, source):
        super().__init__()
        self.open, self.fetched, self.text, self.classes, self.links = [], [], [], [], []
        self.feed(source)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.fetched += [value for name, value in attrs if name in ("src", "data", "srcset", "xlink:href")]
        inside = ("#", "data:")
        addresses = [value or "" for name, value in attrs if name == "href" and not (value or "").startswith(inside)]
        (self.links if tag == "a" else self.fetched).extend(addresses)
        self.fetched += [tag] if tag in ("script", "iframe", "object", "embed") else []
        self.classes += [name for key, value in attrs if key == "class" for name in (value or "").split()]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.classes += [name for key, value in attrs if key == "class" for name in (value or "").split()]

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        self.text.append(data)


def assert_self_contained(source):
    page = Page(source)
    assert not page.fetched
    assert not re.search(r"url\(|@import|https?:", source)
    return page
