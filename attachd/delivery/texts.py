"""The texts attachd writes for people: the message an agent reads, and the reason beside a failed file."""

import string
import textwrap
from datetime import UTC, datetime

from attachd.delivery.content import platform_name
from attachd.errors import ADVICE
from attachd.model import Delivery, Document, Failure, InboxName

_TEXT_CHARACTERS = 4096  # the longest message the platform is known to take


def message_text(template: str, inbox: InboxName, delivery: Delivery, document: Document) -> str:
    """The inbox's message with $name $inbox $size $received $id filled in."""
    return string.Template(template).safe_substitute(
        name=document.file_name,
        inbox=inbox,
        size=readable_size(document.size),
        received=_readable_time(delivery.claimed_at),
        id=delivery.id,
    )[:_TEXT_CHARACTERS]


def reason_text(delivery: Delivery, failure: Failure, now: datetime) -> str:
    """What lies beside a file in `failed/`: what happened, what to do, and what support will ask for."""
    lines = [
        f"{platform_name(delivery.name)} {_VERDICTS.get(failure.reason, 'was not sent')}.",
        "",
        _folded(f"Why:       {failure.detail}"),
        _folded(f"What now:  {ADVICE[failure.reason]}"),
        "",
        f"Reason:    {failure.reason} (at step: {failure.step})",
        f"Inbox:     {delivery.inbox}",
        f"Delivery:  {delivery.id}",
        f"Attempts:  {delivery.tries}",
        f"Received:  {_readable_time(delivery.claimed_at)}",
        f"Given up:  {_readable_time(now)}",
    ]
    if failure.http_status is not None:
        lines.append(f"Answer:    HTTP {failure.http_status}")
    if failure.correlation_id:
        lines.append(f"Trace id:  {failure.correlation_id}")
    return "\n".join(lines) + "\n"


def _folded(line: str) -> str:
    return textwrap.fill(line, 80, subsequent_indent=" " * 11, break_long_words=False, break_on_hyphens=False)


_VERDICTS = {
    "unknown_outcome": "may or may not have been sent",
    "journal_lost": "may or may not have been sent",
    "changed_after_send": "was sent, and then changed",
    "attachment_dropped": "was not attached to its message",
}


def readable_size(size: int) -> str:
    """Bytes for people: 812 bytes, 48.3 KiB, 10.0 MiB."""
    if size < 1024:
        return f"{size} byte{'s' if size != 1 else ''}"
    return f"{size / 1024:.1f} KiB" if size < 1023.95 * 1024 else f"{size / 1024 / 1024:.1f} MiB"


def _readable_time(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
