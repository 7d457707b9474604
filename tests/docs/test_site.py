"""The pages as a whole: the strict build passes, nothing comes from the network, and no miss is kept quiet."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import griffe
import public_names
import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "object": "data"}
RESULTS = [path for path in sorted((ROOT / "benchmarks/results").glob("*.json")) if not path.stem.endswith("_short")]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built pages."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(DOCS, folder / "docs", ignore=shutil.ignore_patterns("_build", "api", "__pycache__"))
    shutil.copy(ROOT / "CHANGELOG.md", folder)
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(folder / "docs"), str(folder / "site")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "site"


class Loads(HTMLParser):
    """Collects what a page makes a browser load, and its inline styles."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        address = dict(attrs).get(LOADED.get(tag, ""))
        if address is not None:
            self.found.append(address)


def test_pages_load_nothing_from_the_network(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 10
    for page in pages:
        loads = Loads()
        loads.feed(page.read_text())
        assert [address for address in loads.found if re.match(r"(\w+:)?//", address)] == [], page
    for style in site.rglob("*.css"):
        assert not re.search(r"@import|url\(\s*[\"']?(https?:)?//", style.read_text()), style


def test_every_room_has_a_page(site: Path) -> None:
    rooms = {path.stem for path in (ROOT / "src/featherlight").iterdir() if not path.stem.startswith("_")} - {"cli"}
    rooms -= {"py"}  # py.typed
    assert {page.stem for page in (site / "api").glob("*.html")} == rooms | {"index"}


def test_every_protocol_that_is_public_stands_on_the_page_of_seams() -> None:
    package = public_names.load("featherlight", ROOT / "src")
    seams = {
        name
        for room in public_names.rooms(package, ["cli"])
        for module in public_names.public_modules(room)
        for name, one in public_names.public_names(module).items()
        if isinstance(one, griffe.Class) and any(str(base).split(".")[-1] == "Protocol" for base in one.bases)
    }
    assert {"Objective", "Journal", "Callback"} <= seams
    page = (DOCS / "extending.md").read_text()
    assert [name for name in sorted(seams) if f"`{name}`" not in page] == []


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_every_target_that_was_missed_stands_in_the_log(path: Path) -> None:
    log = (DOCS / "log.md").read_text()
    for one in json.loads(path.read_text())["targets"]:
        met = one["value"] <= one["target"] if one["comparison"] == "<=" else one["value"] >= one["target"]
        name, value = re.escape(one["name"]), f"{one['value']:.3g}"
        row = rf"^\| {name} \| [<>]= \S+ \| {re.escape(value)} "
        assert met or re.search(row, log, re.MULTILINE), f"{path.name}: {one['name']} missed, {value}"
