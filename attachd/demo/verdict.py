"""Whether the demo went as it should: asked of the folders and of the platform's own books, not of the daemon alone.

Files are recognised by their SHA-256, so nothing depends on how a name was told to the platform. Blocks.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from attachd.demo.drops import Drop
from attachd.demo.track import Journey, Journeys, Place
from attachd.sandbox import Gateway, Ledger, Message
from attachd.telemetry import printable

_OWN = ".attachd"
_REASON = ".reason.txt"


def problems(
    journeys: Journeys, digests: Mapping[Drop, str], inbox: Path, ledger: Ledger, gateway: Gateway = "webchat"
) -> list[str]:
    """What is not as it should be, in words; empty when all is well."""
    found: list[str] = []
    for journey in journeys.all:
        drop = journey.drop
        messages = _messages_with(digests[drop], ledger)
        if journey.dropped_at is None:
            found.append(f"{drop.shown}: was not dropped")
            continue
        if drop.failure is None:
            found += _not_sent(journey, digests[drop], inbox, messages, ledger, gateway)
        else:
            found += _not_failed(journey, digests[drop], inbox, messages)
    found += _not_said_once(journeys.all)
    found += _left_over(journeys.all, inbox)
    found += _too_many(journeys.all, digests, ledger)
    return found + journeys.strange


def _not_sent(
    journey: Journey, digest: str, inbox: Path, messages: Sequence[Message], ledger: Ledger, gateway: Gateway
) -> list[str]:
    drop, found = journey.drop, []
    found += _not_there(drop, digest, inbox, "sent")
    if len(messages) != 1:
        found.append(f"{drop.shown}: the platform has {len(messages)} messages with it, not one")
    for message in messages:
        for attachment in message.attachments:
            stored = ledger.stored.get(attachment.attachment_id)
            if stored is None or stored.sha256 != digest:
                found.append(f"{drop.shown}: the storage does not hold the bytes that were dropped")
        # The guest protocol tells nobody the conversation's id.
        told = message.conversation_id if gateway == "webchat" else ""
        if journey.conversation != told:
            found.append(f"{drop.shown}: the log names another conversation than the platform")
    waited_for = {record.get("reason") for record in journey.records if record.get("event") == "file.deferred"}
    if waited_for != ({drop.trouble.reason} if drop.trouble else set()):
        met = ", ".join(sorted(map(str, waited_for))) or "nothing"
        found.append(
            f"{drop.shown}: on its way it was to meet {drop.trouble.reason if drop.trouble else 'nothing'}, "
            f"and it met {met}"
        )
    return found


def _not_failed(journey: Journey, digest: str, inbox: Path, messages: Sequence[Message]) -> list[str]:
    drop, found = journey.drop, []
    found += _not_there(drop, digest, inbox, "failed")
    reason = reason_file(drop, inbox)
    if not os.path.isfile(reason):
        found.append(f"{drop.shown}: no reason lies beside it in failed/")
    elif f"{drop.failure} " not in reason.read_text(encoding="utf-8", errors="replace"):
        found.append(f"{drop.shown}: the reason beside it is not {drop.failure}")
    if messages:
        found.append(f"{drop.shown}: was to be refused here, and the platform has it")
    return found


def _not_there(drop: Drop, digest: str, inbox: Path, folder: str) -> list[str]:
    try:
        content = (inbox / folder / drop.name).read_bytes()
    except OSError:
        return [f"{drop.shown}: does not lie in {folder}/"]
    if hashlib.sha256(content).hexdigest() != digest:
        return [f"{drop.shown}: what lies in {folder}/ is not what was dropped"]
    return []


def _not_said_once(journeys: Sequence[Journey]) -> list[str]:
    """Each file's end is in the log once, and is the one that was expected."""
    found = []
    for journey in journeys:
        ends = [record for record in journey.records if record.get("event") in ("file.sent", "file.failed")]
        wanted = ("file.sent", None) if journey.drop.failure is None else ("file.failed", journey.drop.failure)
        if journey.dropped_at is None:
            continue
        if len(ends) != 1:
            found.append(f"{journey.drop.shown}: the log tells its end {len(ends)} times, not once")
        elif (said := (ends[0].get("event"), ends[0].get("reason"))) != wanted:
            found.append(f"{journey.drop.shown}: the log says of its end: {' '.join(map(str, filter(None, said)))}")
    return found


def _left_over(journeys: Sequence[Journey], inbox: Path) -> list[str]:
    wanted = {"sent": set[str](), "failed": set[str]()}
    for journey in journeys:
        if journey.drop.failure is None:
            wanted["sent"].add(journey.drop.name)
        else:
            wanted["failed"] |= {journey.drop.name, journey.drop.name + _REASON}
    lying = {
        "": _names(inbox) - {_OWN, "sent", "failed"},
        f"{_OWN}/claimed": _names(inbox / _OWN / "claimed"),
        **{folder: _names(inbox / folder) - names for folder, names in wanted.items()},
    }
    return [
        f"{printable(os.path.join(inbox.name, folder, name))}: should not be there"
        for folder, names in lying.items()
        for name in sorted(names)
    ]


def _too_many(journeys: Sequence[Journey], digests: Mapping[Drop, str], ledger: Ledger) -> list[str]:
    ours = {digests[journey.drop] for journey in journeys}
    strange = Counter(
        attachment.file_name
        for message in ledger.messages
        for attachment in message.attachments
        if attachment.sha256 not in ours
    )
    found = [f"{printable(name)}: the platform has it, and nobody dropped it" for name in strange]
    found += [f"a message without a file: {printable(one.text)}" for one in ledger.messages if not one.attachments]
    if ledger.leaks:
        found.append("the storage was shown a credential that is not meant for it")
    return found


def _messages_with(digest: str, ledger: Ledger) -> list[Message]:
    return [message for message in ledger.messages if digest in {one.sha256 for one in message.attachments}]


def _names(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except FileNotFoundError:
        return set()


def reason_file(drop: Drop, inbox: Path) -> Path:
    """Where the reason of a failed file lies."""
    return inbox / "failed" / (drop.name + _REASON)


def in_words(journeys: Journeys) -> list[str]:
    """What `problems` has proven by finding none."""
    sent = [journey for journey in journeys.all if journey.place is Place.SENT]
    failed = [journey for journey in journeys.all if journey.place is Place.FAILED]
    again = sum(1 for journey in sent if journey.tries > 1)
    return [
        f"{len(sent)} files in sent/: same bytes at the platform (SHA-256), one message each",
        f"{len(failed)} files in failed/: none of them was sent, the reason lies beside each",
        f"{again} of the sent met an error of the platform first, and still went once",
        "nothing left in the inbox or claimed, no message that nobody asked for",
    ]
