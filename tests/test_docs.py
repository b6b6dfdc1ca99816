"""What the documentation names is there: reasons, commands and their options, metrics, files, anchors."""

from __future__ import annotations

import argparse
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tproxy.cli import parser
from tproxy.control.config import Control
from tproxy.core.config import Config
from tproxy.core.reason import ADVICE, Reason

HERE = Path(__file__).parents[1]
PAGE = HERE / "docs/troubleshooting.md"
ROOMS = ("tproxy", "tests", "manifests", "images", "pods", "bpf", "guest")
README = HERE / "README.md"
PAGES = (README, *sorted((HERE / "docs").glob("*.md")))
SOURCE = "\n".join(path.read_text() for path in (HERE / "tproxy").rglob("*.py"))


def row(reason: Reason) -> str:
    return f"| `{reason.value}` | {ADVICE[reason]} |"


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_is_explained_on_the_page(reason: Reason) -> None:
    assert row(reason) in PAGE.read_text().splitlines(), f"{PAGE.name}, 'all reasons', lacks:\n{row(reason)}"


def test_the_page_explains_no_reason_that_there_is_not() -> None:
    table = PAGE.read_text().partition("## all reasons")[2]
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == {reason.value for reason in Reason}
    said = re.findall(r"\breason=(\w+)", PAGE.read_text())
    assert set(said) <= {reason.value for reason in Reason}


def verbs(top: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    found = [action for action in top._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(found[0].choices) if found else {}


def commands(text: str) -> Iterator[list[str]]:
    """Each ``tproxy VERB ...`` in code, as words; what stands behind a pipe or a comment is another program's."""
    code = re.findall(r"```.*?```", text, re.DOTALL) + re.findall(r"`([^`\n]+)`", text)
    for piece in code:
        for found in re.findall(r"(?:^|[\s\"])tproxy (?!path:)([a-z][^\n|#]*)", piece):
            yield found.split("  ")[0].split(";")[0].split()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_is_named_exists_with_its_options(page: Path) -> None:
    known = verbs(parser())
    for words in commands(page.read_text()):
        verb = words[0].rstrip(":,.")
        assert verb in known, f"{page.name}: tproxy {' '.join(words)}"
        inner = known[verb]
        for word in words[1:2]:
            inner = verbs(inner).get(word, inner)
        options = {option for action in inner._actions for option in action.option_strings}
        options |= {option for action in known[verb]._actions for option in action.option_strings}
        for word in words[1:]:
            if word.startswith("-") and word != "-":
                assert word.partition("=")[0] in options, f"{page.name}: tproxy {' '.join(words)}: {word}"


def test_commands_are_found_on_the_pages() -> None:
    assert sum(len(list(commands(page.read_text()))) for page in PAGES) > 50


@pytest.mark.parametrize(("heading", "parse"), [("sidecar.yaml", Config.parse), ("control.yaml", Control.parse)])
def test_the_files_that_are_shown_can_be_read(heading: str, parse: Callable[..., object]) -> None:
    section = (HERE / "docs/configuration.md").read_text().partition(f"## {heading}\n")[2]
    parse(yaml.safe_load(section.partition("```yaml\n")[2].partition("```")[0]), heading)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_metric_file_and_heading_that_is_named_is_there(page: Path) -> None:
    text = page.read_text()
    for metric in set(re.findall(r"\btproxy_[a-z_]+", text)) - {"tproxy_capture"}:
        stem = re.sub(r"_(total|bucket|sum|count)$", "", metric)
        parts = [stem, *(stem.replace(f"tproxy_{room}_", "") for room in ("directory", "cluster", "policies"))]
        assert any(part in SOURCE for part in parts), metric
    for name in re.findall(r"\b(?:manifests|docs|images|tests|pods)/[\w/.-]+\w", text):
        assert (HERE / name).exists() or name.endswith(("...", "/")) or "/overlays/" in name, name
    for where, anchor in re.findall(r"\]\(([\w/.]*)(?:#([\w-]+))?\)", text):
        target = page.parent / where if where else page
        assert target.is_file(), where
        assert not anchor or anchor in _anchors(target), anchor


def test_the_readme_leads_to_every_page() -> None:
    linked = set(re.findall(r"\]\((docs/[\w.]+)", README.read_text()))
    assert linked == {f"docs/{page.name}" for page in PAGES if page != README}


def test_figures_of_the_readme_are_rows_of_the_benchmark_page() -> None:
    rows = re.findall(r"^\|.*x \(.*\|$", README.read_text(), re.MULTILINE)
    assert rows and set(rows) <= set((HERE / "docs/benchmarks.md").read_text().splitlines())


def test_the_readme_stays_short() -> None:
    assert len(README.read_text().splitlines()) <= 250


def _anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", ["ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_every_source_file_that_is_named_is_there(name: str) -> None:
    """By the end of its path: tables name files relative to their room."""
    there = {f"/{path.relative_to(HERE)}" for room in ROOMS for path in (HERE / room).rglob("*") if path.is_file()}
    there |= {f"/{path.name}" for path in HERE.iterdir() if path.is_file()}
    for named in set(re.findall(r"`([\w./-]+\.(?:pyx?|c|nft|proto|yaml))`", (HERE / name).read_text())):
        assert any(path.endswith(f"/{named}") for path in there), named


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]
    names = [*project["dependencies"], *(name for group in project["optional-dependencies"].values() for name in group)]
    table = (HERE / "ARCHITECTURE.md").read_text().partition("## Dependencies\n")[2].partition("\n## ")[0]
    for name in {re.split(r"[<>=\[]", each)[0] for each in names} - {"tproxy"}:
        assert name.startswith("types-") or re.search(rf"\b{re.escape(name)}\b", table), name


def test_every_room_is_in_the_table_of_rooms() -> None:
    section = (HERE / "ARCHITECTURE.md").read_text().partition("## Rooms and arrows\n")[2].partition("\n## ")[0]
    for path in (HERE / "tproxy").rglob("__init__.py"):
        room = path.parent.relative_to(HERE / "tproxy").as_posix()
        assert room == "." or f"`{room}`" in section, room
