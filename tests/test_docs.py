"""The pages people read say what the code does: generated pages are current, lists are complete."""

import ast
import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest

from attachd.errors import ADVICE
from attachd.intake.names import Ignored
from attachd.model import Reason

from .systemd.readme import service_commands

PROJECT = Path(__file__).resolve().parents[1]
DOCS = PROJECT / "docs"
EVENT = re.compile(r"[a-z]+\.[a-z_]+")
LEVELS = {"debug", "info", "warning", "error", "critical", "exception", "tell"}
NOT_THE_DAEMON = {"demo", "sandbox"}


def section(title: str) -> dict[str, str]:
    """The entries of a section of the operating guide: the word, and what is said of it, in one line."""
    text = (DOCS / "operating.md").read_text(encoding="utf-8").partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    entries = re.findall(r"^- \*\*`([^`]+)`\*\* (.*(?:\n  .*)*)", text, re.MULTILINE)
    assert len(entries) == len(dict(entries)), "a word stands there twice"
    return {word: " ".join(said.split()) for word, said in entries}


def events_in_the_code() -> set[str]:
    """Every event name: what a log call says first, what is kept in `event`, what stands under the key "event"."""
    found = set()
    for path in (PROJECT / "attachd").rglob("*.py"):
        if path.relative_to(PROJECT / "attachd").parts[0] not in NOT_THE_DAEMON:
            found |= set(_events(ast.parse(path.read_text(encoding="utf-8"))))
    return found


def _events(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name), args=[said, *_]) if name in LEVELS:
                yield from _texts(said)
            case ast.Assign(targets=[ast.Name(id="event")], value=said):
                yield from _texts(said)
            case ast.Dict(keys=keys, values=values):
                for key, value in zip(keys, values, strict=True):
                    if isinstance(key, ast.Constant) and key.value == "event":
                        yield from _texts(value)
            case _:
                pass


def _texts(said: ast.expr) -> Iterator[str]:
    for node in ast.walk(said):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and EVENT.fullmatch(node.value):
            yield node.value


@pytest.mark.parametrize(
    ("script", "page"), [("make-configuration", "configuration.md"), ("make-man", "attachd.1")], ids=["keys", "man"]
)
def test_a_generated_page_is_current(script, page):
    """The page is what its script prints now; if not, run the script."""
    made = runpy.run_path(str(DOCS / script))["page"]()
    assert (DOCS / page).read_text(encoding="utf-8") == made, f"run: docs/{script} > docs/{page}"


def test_every_reason_is_explained_with_its_advice():
    """The operating guide has each reason once, and gives the advice that attachd itself gives."""
    said = section("Reasons")
    assert said.keys() == {reason.value for reason in Reason}
    for reason in Reason:
        assert said[reason.value].endswith(f"*Now:* {' '.join(ADVICE[reason].split())}"), reason


def test_every_kind_of_ignored_file_is_explained():
    """The same for what is left alone."""
    assert section("What is left alone").keys() == {ignored.value for ignored in Ignored}


def test_every_event_is_explained():
    """Every event the code can log is in the operating guide, and none that it cannot."""
    assert section("Events").keys() == events_in_the_code()


def test_the_guide_to_install_has_all_that_the_readme_has():
    """Both are typed by people: the longer one may say more, never something else."""
    text = (DOCS / "install.md").read_text(encoding="utf-8")
    assert [command for command in service_commands() if command not in text] == []


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    """Every file and heading that a page links to is there."""
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text(encoding="utf-8")):
        linked = (page.parent / target) if target else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}, (
                anchor
            )
