"""The benchmarks run, and the page about them says what they found. Nothing here looks at how fast anything was."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import table
from benchmarks.__main__ import PARTS

PROJECT = Path(__file__).resolve().parents[1]


@pytest.mark.timeout(300)
def test_every_part_brings_its_figures(tmp_path):
    """A run of tiny sizes ends well, and every part stands in the JSON file and, with its rows, in the table."""
    out = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--base", str(tmp_path), "--out", str(out)]
    said = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert said.returncode == 0, said.stdout + said.stderr

    results = json.loads(out.read_text())
    assert results["size"] == "quick"
    assert results["machine"]["cores"] >= 1
    assert results["parts"].keys() == PARTS.keys()
    rows = table.rows(results["parts"])
    assert list(dict.fromkeys(row.part for row in rows)) == list(PARTS)
    assert said.stdout == table.text(rows) + "\n"
    assert list(tmp_path.iterdir()) == [out], "a benchmark left something behind"


def test_a_part_that_breaks_is_told_in_the_table():
    """Its row says why; the other parts keep theirs."""
    told = table.rows({"growth": {"broke": "Stuck: no files", "took_s": 1.0}, "latency": {"broke": "why", "took_s": 0}})
    assert [(row.part, row.measured) for row in told] == [("latency", "why"), ("growth", "Stuck: no files")]


def test_the_page_is_what_was_measured():
    """docs/performance.md is current: its script makes the same page of benchmarks/results.json; if not, run it."""
    made = runpy.run_path(str(PROJECT / "docs" / "make-performance"))["page"]()
    page = PROJECT / "docs" / "performance.md"
    assert page.read_text(encoding="utf-8") == made, "run: docs/make-performance > docs/performance.md"


def test_the_page_is_about_a_whole_run():
    """What is published was measured at full size, all parts together, and none of them broke."""
    results = json.loads((PROJECT / "benchmarks" / "results.json").read_text(encoding="utf-8"))
    assert results["size"] in ("default", "full")
    assert results["parts"].keys() == PARTS.keys()
    assert not [part for part, told in results["parts"].items() if "broke" in told]
