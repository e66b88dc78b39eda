"""Where the log goes, and what it says once a day."""

import asyncio
import json
import signal
from datetime import date
from pathlib import Path
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from attachd.daemon import service
from attachd.intake.inbox import InboxIntake
from attachd.journal.sqlite import SqliteJournal
from attachd.model import InboxName, StateName

from .running import RunningDaemon, drop
from .waiting import until


async def test_a_log_file_is_opened_anew_after_it_was_renamed(daemon: RunningDaemon, inbox: Path) -> None:
    """As logrotate does it: rename, SIGHUP, and the next record is in a new file; nothing goes to standard output."""
    file = inbox.parent / "attachd.log"
    daemon.configure(log={"file": str(file), "format": "auto"})
    await daemon.spawn()
    await until(lambda: "daemon.ready" in _events(file), "it is ready")
    drop(inbox, "one.txt")
    await until(lambda: "file.sent" in _events(file), "a file is sent")
    old = file.rename(file.with_suffix(".1"))
    daemon.signal(signal.SIGHUP)
    await until(lambda: "daemon.reloaded" in _events(file), "the log goes on in a new file")
    assert "file.sent" in _events(old)
    assert "file.sent" not in _events(file)
    assert await daemon.stop() == 0
    assert daemon.log == []


async def test_a_log_file_that_cannot_be_written_is_a_mistake_in_the_config(daemon: RunningDaemon, inbox: Path) -> None:
    """Found before the first file: exit code 78, and the path in words."""
    daemon.configure(log={"file": str(inbox.parent / "nowhere" / "attachd.log")})
    await daemon.spawn()
    assert await daemon.ended() == 78
    assert "log.file: cannot write" in "".join(daemon.noise)


def _events(file: Path) -> list[str]:
    return [json.loads(line)["event"] for line in file.read_text().splitlines()] if file.exists() else []


class Counts:
    """A journal that knows nothing but how many deliveries ended."""

    def __init__(self, counts: list[dict[InboxName, dict[StateName, int]]]) -> None:
        self._counts = iter(counts)

    async def finished_counts(self) -> dict[InboxName, dict[StateName, int]]:
        return next(self._counts)


class Quiet:
    """An inbox where two files wait."""

    name = InboxName("claims")
    waiting = 2

    def oldest_waiting_s(self, now: float) -> float:
        return 7.5


@pytest.fixture
def days(monkeypatch: pytest.MonkeyPatch) -> list[date]:
    """The dates that the daemon will see, one at each look."""
    dates = [date(2026, 3, 1), date(2026, 3, 1), date(2026, 3, 2), date(2026, 3, 2)]
    monkeypatch.setattr(service, "_DAY_CHECK_S", 0.001)
    monkeypatch.setattr(service, "_today", lambda: dates.pop(0) if len(dates) > 1 else dates[0])
    return dates


async def test_each_day_ends_with_a_record_of_what_went_and_what_failed(days: list[date], tmp_path: Path) -> None:
    """One record for each inbox, with the figures of that day alone."""
    claims = InboxName("claims")
    journal = Counts(
        [{claims: {StateName.SENT: 100, StateName.FAILED: 5}}, {claims: {StateName.SENT: 142, StateName.FAILED: 6}}]
    )
    with capture_logs() as records:
        summing = asyncio.create_task(
            service.summarise(cast("SqliteJournal", journal), lambda: [cast("InboxIntake", Quiet())]), name="summaries"
        )
        await until(lambda: records, "the day is summed up")
        summing.cancel()
    (record,) = records
    expected: dict[str, Any] = {
        "event": "inbox.summary",
        "inbox": "claims",
        "day": "2026-03-01",
        "sent": 42,
        "failed": 1,
    }
    assert (expected | {"waiting": 2, "oldest_waiting_s": 7.5}).items() <= record.items()
