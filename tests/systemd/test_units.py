"""The units as text: they can be read, are hardened enough, and say the same."""

import re
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from .box import PROJECT, which

UNITS = (PROJECT / "systemd/attachd.service", PROJECT / "systemd/attachd@.service")
OF_THE_INSTANCE = {
    "Description",
    "Documentation",
    "RequiresMountsFor",
    "ExecStart",
    "LoadCredential",
    "NoExecPaths",
    "ReadOnlyPaths",
    "ConfigurationDirectory",
    "StateDirectory",
    "RuntimeDirectory",
    "ReadWritePaths",
    "SocketBindAllow",
    "SyslogIdentifier",
}
"""What an instance has of its own."""

with_systemd = pytest.mark.skipif(which("systemd-analyze") is None, reason="needs systemd-analyze (package systemd)")


def _directives(unit: Path) -> dict[str, list[str]]:
    found = defaultdict(list)
    for line in unit.read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"([A-Za-z]+)=(.*)", line):
            found[match[1]].append(match[2])
    return found


def test_the_template_says_what_the_unit_says():
    """What is mended in one unit is mended in the other; they differ only in what an instance has of its own."""
    one, many = map(_directives, UNITS)
    assert {key for key in one.keys() | many.keys() if one[key] != many[key]} == OF_THE_INSTANCE
    for key in OF_THE_INSTANCE - {"SocketBindAllow"}:
        assert all("%i" in value for value in many[key]), key


@with_systemd
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_no_unit_is_exposed_above_1_5(unit):
    """The score of systemd itself, at most 1.5 of 10."""
    judged = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=15", "--no-pager", str(unit)],
        capture_output=True,
        text=True,
    )
    assert judged.returncode == 0, judged.stdout[-300:] + judged.stderr
