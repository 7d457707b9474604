"""A page read back with the standard parser: its elements, text, tables and machine values."""

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

from featherlight.report import read_run, render_report

VOID = frozenset({"meta", "link", "br", "col", "path", "rect", "img"})


@dataclass
class Element:
    """An element with its attributes, children and text, in document order."""

    tag: str
    attributes: dict[str, str | None] = field(default_factory=dict)
    children: list["Element | str"] = field(default_factory=list)

    def all(self, tag: str) -> list["Element"]:
        """Return every element of a tag below this one."""
        found = []
        for child in self.children:
            if isinstance(child, Element):
                found.extend(([child] if child.tag == tag else []) + child.all(tag))
        return found

    @property
    def text(self) -> str:
        """The text below this element, with runs of white space as one space."""
        parts = [child if isinstance(child, str) else child.text for child in self.children]
        return " ".join(" ".join(parts).split())

    @property
    def css_class(self) -> str:
        """The class attribute, empty where there is none."""
        return self.attributes.get("class") or ""


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("document")
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs))
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].children.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open[-1].tag == tag, f"<{self.open[-1].tag}> is closed by </{tag}> at {self.getpos()}"
            self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def read_html(text: str) -> Element:
    """Parse a document, insisting that every element is closed in order."""
    reader = _Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == [reader.root], f"left open: {[element.tag for element in reader.open[1:]]}"
    return reader.root


def machine_values(page: Element) -> list[float]:
    """Return the exact values behind the figures of a page."""
    return [float(element.attributes["value"] or "nan") for element in page.all("data")]


def table_rows(table: Element) -> list[list[str]]:
    """Return the text of a table's cells, row by row."""
    return [
        [cell.text for cell in row.children if isinstance(cell, Element) and cell.tag in ("th", "td")]
        for row in table.all("tr")
    ]


def page_of(*paths: Path) -> Element:
    """Return the parsed page of some runs."""
    return read_html(render_report([read_run(path) for path in paths]))


def section(page: Element, name: str) -> Element:
    """Return the section with a heading."""
    return next(found for found in page.all("section") if any(name == heading.text for heading in found.all("h2")))
