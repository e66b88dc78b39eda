"""What a campaign counted, and what it found."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

STRIKES = "strikes"
LOST, REPEATED, FAILED, OTHER = "lost", "repeated", "failed", "other"
_COLUMNS = {
    "part": 9, STRIKES: 8, "under way": 9, "starts": 7, "files": 6, "sent": 6, "in doubt": 8, "refused": 7,
    "messages": 8, "explained": 9, LOST: 5, REPEATED: 8, FAILED: 6, OTHER: 5, "seconds": 7,
}  # fmt: skip
_LEGEND = """\
strikes    kills, system calls killed at or failed, disks filled, power cuts, faults of the platform
under way  strikes that found files claimed or a request open
in doubt   in failed/ as unknown_outcome: policy hold, three posts without an answer, or a session that is over
refused    in failed/ because of the fault itself: an answer that names a wrong attachment, 413, ...
explained  second messages after an answer was lost, or a death between the platform's yes and the journal's commit
lost, repeated, failed, other: violations. A file lost or mixed up; a second message that nothing explains; a file in
failed/ through an outage; everything else that must hold"""


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that must hold and did not; `evidence` is what is needed to look into it."""

    part: str
    kind: str
    rule: str
    evidence: str
    kept: Path | None = None

    def __str__(self) -> str:
        text = f"VIOLATION in {self.part}: {self.rule}\n" + "".join(
            f"    {line}\n" for line in self.evidence.splitlines()
        )
        return text + (f"    kept: {self.kept}\n" if self.kept else "")


@dataclass
class Tally:
    """The figures of one part."""

    part: str
    counts: Counter[str] = field(default_factory=Counter)
    points: Counter[str] = field(default_factory=Counter)
    """What was struck how often, for those who want to know where."""
    violations: list[Violation] = field(default_factory=list)
    seconds: float = 0.0

    def row(self) -> list[str]:
        found = Counter(violation.kind for violation in self.violations)
        values = {**self.counts, **{kind: found[kind] for kind in (LOST, REPEATED, FAILED, OTHER)}}
        values |= {"part": self.part, "seconds": round(self.seconds)}
        return [str(values.get(column, 0)) for column in _COLUMNS]


def table(tallies: Sequence[Tally]) -> str:
    """All parts and their sum."""
    total = Tally("all")
    for tally in tallies:
        total.counts.update(tally.counts)
        total.violations += tally.violations
        total.seconds += tally.seconds
    rows = [list(_COLUMNS), *(tally.row() for tally in tallies), total.row()]
    widths = list(_COLUMNS.values())
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1], "", _LEGEND])
