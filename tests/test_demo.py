"""The demo as people run it, and its verdict: that it can say no."""

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from attachd.demo.drops import PROGRAMME, Drop, Trouble, Way
from attachd.demo.track import Journeys
from attachd.demo.verdict import problems
from attachd.model import Reason
from attachd.sandbox import Clock, Ledger, Message, Received, Step, StoredObject
from attachd.sandbox.ledger import Attachment, Leak

DEMO = (sys.executable, "-m", "attachd", "demo")


def without_terminal(temporary: Path) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(temporary), "FORCE_COLOR": "1"}


@pytest.mark.timeout(150)
def test_the_demo_ends_by_itself_all_went_well_and_nothing_is_left(tmp_path: Path) -> None:
    """Without a terminal it prints plain lines, even where colours are asked for."""
    ended = subprocess.run(
        DEMO, env=without_terminal(tmp_path), capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stdout
    sent = sum(1 for drop in PROGRAMME if drop.failure is None)
    assert f"{sent} files in sent/" in ended.stdout
    assert f"{len(PROGRAMME) - sent} files in failed/" in ended.stdout
    assert all(f"failed    {drop.shown}: {drop.failure}" in ended.stdout for drop in PROGRAMME if drop.failure)
    assert all(f"deferred  {drop.shown}: {drop.trouble.reason}" in ended.stdout for drop in PROGRAMME if drop.trouble)
    assert "[2K" not in ended.stdout, "a line is erased, so something was drawn over"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("wanted", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 1), (signal.SIGHUP, 1)])
def test_whoever_has_seen_enough_leaves_no_folder_and_no_daemon(
    tmp_path: Path, wanted: signal.Signals, code: int
) -> None:
    with subprocess.Popen(DEMO, env=without_terminal(tmp_path), stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        while "dropped" not in demo.stdout.readline():
            assert demo.poll() is None
        assert len(processes_about(tmp_path)) == 1
        demo.send_signal(wanted)
        rest = demo.stdout.read()
    assert demo.returncode == code, rest
    assert os.listdir(tmp_path) == []
    assert processes_about(tmp_path) == []


def test_a_daemon_that_dies_is_a_demo_that_failed(tmp_path: Path) -> None:
    """It ends at once, says why, and keeps what there is to look at."""
    with subprocess.Popen(DEMO, env=without_terminal(tmp_path), stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        while "dropped" not in demo.stdout.readline():
            assert demo.poll() is None
        os.kill(processes_about(tmp_path)[0], signal.SIGKILL)
        rest = demo.stdout.read()
    assert demo.returncode == 1
    assert "the daemon ended by itself, with exit code -9" in rest
    assert "claim-form.pdf: was not dropped" in rest
    [kept] = tmp_path.iterdir()
    assert f"Everything is kept in {kept}" in rest
    assert (kept / "daemon.log").read_text().count("daemon.ready") == 1


def processes_about(folder: Path) -> list[int]:
    """The daemons that were given a config in this folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.fsencode(folder) in (process / "cmdline").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return found


# --- the verdict ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Played:
    """A demo of three files after which all is as it should be."""

    inbox: Path
    journeys: Journeys
    digests: dict[Drop, str]
    ledger: Ledger

    def verdict(self) -> list[str]:
        return problems(self.journeys, self.digests, self.inbox, self.ledger)


SENT = Drop("sent.txt", Way.COPIED, 0.0)
LATE = Drop("late.txt", Way.COPIED, 0.0, trouble=Trouble.OUTAGE)
REFUSED = Drop("refused.pdf", Way.COPIED, 0.0, failure=Reason.TYPE_NOT_ALLOWED)


@pytest.fixture
def played(tmp_path: Path) -> Played:
    inbox = tmp_path / "claims"
    for folder in ("sent", "failed", ".attachd/claimed"):
        (inbox / folder).mkdir(parents=True)
    ledger = Ledger(Clock())
    digests = {}
    journeys = Journeys((drop, len(drop.name)) for drop in (SENT, LATE, REFUSED))
    for drop in (SENT, LATE, REFUSED):
        content = drop.name.encode()
        digests[drop] = hashlib.sha256(content).hexdigest()
        journeys.dropped(drop, 0.0)
        (inbox / ("failed" if drop.failure else "sent") / drop.name).write_bytes(content)
    (inbox / "failed" / "refused.pdf.reason.txt").write_text("Reason:    type_not_allowed (at step: check)\n")
    journeys.take({"event": "file.failed", "file": "refused.pdf", "reason": "type_not_allowed"}, 0.0)
    journeys.take({"event": "file.deferred", "file": "late.txt", "reason": "server_error", "attempt": 1}, 0.0)
    for drop, attempts in ((SENT, 1), (LATE, 2)):
        ledger.store(stored(drop, digests[drop]))
        ledger.accept(message(drop, digests[drop]))
        end = {"event": "file.sent", "file": drop.name, "attempts": attempts, "conversation_id": f"of {drop.name}"}
        journeys.take(end, 0.0)
    return Played(inbox, journeys, digests, ledger)


def stored(drop: Drop, digest: str) -> StoredObject:
    return StoredObject(f"at {drop.name}", drop.name, "text/plain", len(drop.name), digest, None, 0.0)


def message(drop: Drop, digest: str) -> Message:
    attachment = Attachment(f"at {drop.name}", drop.name, "text/plain", len(drop.name), digest)
    received = Received(Step.CONVERSATION, "c", 0.0, 0.0)
    return Message("m", f"of {drop.name}", "g", "q", (), {}, "text", (attachment,), 0.0, received)


def test_the_verdict_is_good_when_all_is_as_it_should_be(played: Played) -> None:
    assert played.verdict() == []


def lose_a_message(played: Played) -> None:
    del played.ledger.messages[0]


def send_one_twice(played: Played) -> None:
    played.ledger.messages.append(played.ledger.messages[0])


def send_to_another_conversation(played: Played) -> None:
    played.ledger.messages[0] = replace(played.ledger.messages[0], conversation_id="another")


def send_what_was_to_be_refused(played: Played) -> None:
    played.ledger.messages.append(message(REFUSED, played.digests[REFUSED]))


def send_what_nobody_dropped(played: Played) -> None:
    played.ledger.messages.append(message(Drop(".late.txt.tmp", Way.SAVED, 0.0), "0" * 64))


def send_no_attachment(played: Played) -> None:
    played.ledger.messages.append(replace(played.ledger.messages[0], attachments=()))


def store_other_bytes(played: Played) -> None:
    played.ledger.store(stored(SENT, "0" * 64))


def leak_a_credential(played: Played) -> None:
    played.ledger.note_leak(Leak("Authorization", "Bearer", 0.0))


def leave_one_in_the_inbox(played: Played) -> None:
    (played.inbox / "sent.txt").touch()


def leave_one_claimed(played: Played) -> None:
    (played.inbox / ".attachd/claimed/0190").mkdir()


def file_it_twice(played: Played) -> None:
    (played.inbox / "sent/sent (2).txt").touch()


def lose_the_file(played: Played) -> None:
    (played.inbox / "sent/sent.txt").unlink()


def change_the_file(played: Played) -> None:
    (played.inbox / "sent/sent.txt").write_text("something else")


def lose_the_failed_file(played: Played) -> None:
    (played.inbox / "failed/refused.pdf").unlink()


def lose_the_reason(played: Played) -> None:
    (played.inbox / "failed/refused.pdf.reason.txt").unlink()


def give_another_reason(played: Played) -> None:
    (played.inbox / "failed/refused.pdf.reason.txt").write_text("Reason:    empty (at step: check)\n")


def say_it_twice(played: Played) -> None:
    played.journeys.take(played.journeys.of(REFUSED).records[-1], 0.0)


def say_nothing(played: Played) -> None:
    played.journeys.of(SENT).records.clear()


def meet_no_trouble(played: Played) -> None:
    del played.journeys.of(LATE).records[0]


def meet_unplanned_trouble(played: Played) -> None:
    deferred = {"event": "file.deferred", "file": "sent.txt", "reason": "timeout"}
    played.journeys.of(SENT).records.insert(0, deferred)


def log_an_error(played: Played) -> None:
    played.journeys.take({"event": "journal.replaced", "level": "error", "detail": "damaged"}, 0.0)


def claim_a_stranger(played: Played) -> None:
    played.journeys.take({"event": "file.claimed", "file": ".late.txt.tmp"}, 0.0)


def drop_nothing(played: Played) -> None:
    played.journeys.of(SENT).dropped_at = None


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lose_a_message, "sent.txt: the platform has 0 messages with it, not one"),
        (send_one_twice, "sent.txt: the platform has 2 messages with it, not one"),
        (send_to_another_conversation, "sent.txt: the log names another conversation than the platform"),
        (send_what_was_to_be_refused, "refused.pdf: was to be refused here, and the platform has it"),
        (send_what_nobody_dropped, ".late.txt.tmp: the platform has it, and nobody dropped it"),
        (send_no_attachment, "a message without a file: text"),
        (store_other_bytes, "sent.txt: the storage does not hold the bytes that were dropped"),
        (leak_a_credential, "the storage was shown a credential that is not meant for it"),
        (leave_one_in_the_inbox, "claims/sent.txt: should not be there"),
        (leave_one_claimed, "claims/.attachd/claimed/0190: should not be there"),
        (file_it_twice, "claims/sent/sent (2).txt: should not be there"),
        (lose_the_file, "sent.txt: does not lie in sent/"),
        (change_the_file, "sent.txt: what lies in sent/ is not what was dropped"),
        (lose_the_failed_file, "refused.pdf: does not lie in failed/"),
        (lose_the_reason, "refused.pdf: no reason lies beside it in failed/"),
        (give_another_reason, "refused.pdf: the reason beside it is not type_not_allowed"),
        (say_it_twice, "refused.pdf: the log tells its end 2 times, not once"),
        (say_nothing, "sent.txt: the log tells its end 0 times, not once"),
        (meet_no_trouble, "late.txt: on its way it was to meet server_error, and it met nothing"),
        (meet_unplanned_trouble, "sent.txt: on its way it was to meet nothing, and it met timeout"),
        (log_an_error, "journal.replaced: damaged"),
        (claim_a_stranger, "file.claimed: nobody dropped .late.txt.tmp"),
        (drop_nothing, "sent.txt: was not dropped"),
    ],
)
def test_the_verdict_says_what_is_not_as_it_should_be(
    played: Played, spoil: Callable[[Played], None], said: str
) -> None:
    spoil(played)
    assert said in played.verdict()
