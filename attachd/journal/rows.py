"""Rows of the journal to deliveries and back, in one place and without loss.

Pure. A row carries every field of every state; which of them count is told by its state.
"""

import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias, assert_never

from attachd.model import (
    AttachmentId,
    Claimed,
    ConversationId,
    Delivery,
    DeliveryId,
    DeliveryState,
    Document,
    Failed,
    Failure,
    GuestId,
    InboxName,
    Posted,
    Posting,
    Reason,
    Receipt,
    Sent,
    StateName,
    Step,
    Upload,
    Uploaded,
    Version,
    state_name,
)
from attachd.ports import Entry

COLUMNS = (
    "id", "inbox", "name", "state", "size", "version", "claimed_at", "updated_at", "tries", "strikes", "next_try_at",
    "last_reason", "last_detail", "last_step", "last_http_status", "last_correlation_id",
    "guest_id", "attachment_id", "file_name", "content_type", "document_size", "sha256", "text", "posts",
    "has_receipt", "conversation_id", "message_id",
    "reason", "detail", "step", "http_status", "correlation_id", "filed_as",
)  # fmt: skip

Value: TypeAlias = str | bytes | int | None
Row: TypeAlias = Mapping[str, Value]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def from_time(at: datetime) -> int:
    """Microseconds since 1970; the time must be aware."""
    return (at - _EPOCH) // _MICROSECOND


def to_time(microseconds: int) -> datetime:
    """The time in UTC."""
    return _EPOCH + microseconds * _MICROSECOND


def from_text(text: str) -> str | bytes:
    """The text itself, or bytes where it holds lone surrogates, which UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="surrogatepass")
    return text


def to_text(value: str | bytes) -> str:
    """What `from_text` was given."""
    return value if isinstance(value, str) else value.decode(errors="surrogatepass")


def to_row(delivery: Delivery, now: datetime) -> dict[str, Value]:
    """All columns in their order; those that do not belong to the state are None."""
    version, state = delivery.version, delivery.state
    row: dict[str, Value] = {
        **dict.fromkeys(COLUMNS),
        "id": from_text(delivery.id),
        "inbox": from_text(delivery.inbox),
        "name": os.fsencode(delivery.name),
        "state": state_name(state).value,
        "size": version.size,
        # Inode numbers use all 64 bits and file times may lie beyond 2262: more than SQLite's integers hold.
        "version": f"{version.device} {version.inode} {version.mtime_ns} {version.ctime_ns}",
        "claimed_at": from_time(delivery.claimed_at),
        "updated_at": from_time(now),
        "tries": delivery.tries,
        "strikes": delivery.strikes,
        "next_try_at": None if delivery.next_try_at is None else from_time(delivery.next_try_at),
        **_from_failure(delivery.last_failure, "last_"),
        "has_receipt": False,
    }
    match state:
        case Claimed():
            pass
        case Uploaded():
            row |= _from_upload(state.upload)
        case Posting():
            row |= _from_upload(state.upload)
            row |= {"text": from_text(state.text), "posts": state.posts}
        case Posted():
            row |= _from_upload(state.upload)
            row |= _from_receipt(state.receipt)
            row["posts"] = state.posts
        case Sent():
            row |= _from_upload(state.upload)
            row |= _from_receipt(state.receipt)
            row |= {"filed_as": os.fsencode(state.filed_as), "posts": state.posts}
        case Failed():
            row |= _from_upload(state.upload)
            row |= _from_receipt(state.receipt)
            row |= _from_failure(state.failure, "")
            row["filed_as"] = os.fsencode(state.filed_as)
        case _:
            assert_never(state)
    return row


def to_entry(row: Mapping[str, Any]) -> Entry:
    """The delivery of a row. Raises ValueError, KeyError or TypeError for a row that `to_row` cannot have made."""
    device, inode, mtime_ns, ctime_ns = map(int, row["version"].split())
    delivery = Delivery(
        id=DeliveryId(to_text(row["id"])),
        inbox=InboxName(to_text(row["inbox"])),
        name=os.fsdecode(row["name"]),
        version=Version(device, inode, row["size"], mtime_ns, ctime_ns),
        claimed_at=to_time(row["claimed_at"]),
        state=_to_state(row),
        tries=row["tries"],
        strikes=row["strikes"],
        next_try_at=None if row["next_try_at"] is None else to_time(row["next_try_at"]),
        last_failure=None if row["last_reason"] is None else _to_failure(row, "last_"),
    )
    return Entry(delivery, to_time(row["updated_at"]))


def _to_state(row: Mapping[str, Any]) -> DeliveryState:
    name = StateName(row["state"])
    match name:
        case StateName.CLAIMED:
            return Claimed()
        case StateName.UPLOADED:
            return Uploaded(_to_upload(row))
        case StateName.POSTING:
            return Posting(_to_upload(row), to_text(row["text"]), row["posts"])
        case StateName.POSTED:
            return Posted(_to_upload(row), _to_receipt(row), row["posts"])
        case StateName.SENT:
            return Sent(_to_upload(row), _to_receipt(row), os.fsdecode(row["filed_as"]), row["posts"])
        case StateName.FAILED:
            return Failed(
                _to_failure(row, ""),
                os.fsdecode(row["filed_as"]),
                None if row["guest_id"] is None else _to_upload(row),
                _to_receipt(row) if row["has_receipt"] else None,
            )
        case _:
            assert_never(name)


def _from_upload(upload: Upload | None) -> dict[str, Value]:
    if upload is None:
        return {}
    return {
        "guest_id": from_text(upload.guest),
        "attachment_id": from_text(upload.attachment),
        "file_name": from_text(upload.document.file_name),
        "content_type": from_text(upload.document.content_type),
        "document_size": upload.document.size,
        "sha256": from_text(upload.sha256),
    }


def _to_upload(row: Mapping[str, Any]) -> Upload:
    return Upload(
        guest=GuestId(to_text(row["guest_id"])),
        attachment=AttachmentId(to_text(row["attachment_id"])),
        document=Document(to_text(row["file_name"]), to_text(row["content_type"]), row["document_size"]),
        sha256=to_text(row["sha256"]),
    )


def _from_receipt(receipt: Receipt | None) -> dict[str, Value]:
    if receipt is None:
        return {}
    return {
        "has_receipt": True,
        "conversation_id": None if receipt.conversation is None else from_text(receipt.conversation),
        "message_id": None if receipt.message is None else from_text(receipt.message),
    }


def _to_receipt(row: Mapping[str, Any]) -> Receipt:
    conversation, message = row["conversation_id"], row["message_id"]
    return Receipt(
        None if conversation is None else ConversationId(to_text(conversation)),
        None if message is None else to_text(message),
    )


def _from_failure(failure: Failure | None, prefix: str) -> dict[str, Value]:
    if failure is None:
        return {}
    return {
        prefix + "reason": failure.reason.value,
        prefix + "detail": from_text(failure.detail),
        prefix + "step": failure.step.value,
        prefix + "http_status": failure.http_status,
        prefix + "correlation_id": None if failure.correlation_id is None else from_text(failure.correlation_id),
    }


def _to_failure(row: Mapping[str, Any], prefix: str) -> Failure:
    correlation = row[prefix + "correlation_id"]
    return Failure(
        reason=Reason(row[prefix + "reason"]),
        detail=to_text(row[prefix + "detail"]),
        step=Step(row[prefix + "step"]),
        http_status=row[prefix + "http_status"],
        correlation_id=None if correlation is None else to_text(correlation),
    )
