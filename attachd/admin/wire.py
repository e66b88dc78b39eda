"""The JSON forms of what attachd tells, both ways: the server writes them, the commands read them back.

Pure. Reading back gives equal values, names that are no UTF-8 included: JSON cannot carry those everywhere, so the
name is sent as a person can see it and, only where that is not the name itself, once more in base64 beside it
(`file`, `file_base64`). Times are RFC 3339 in UTC. Texts for people are masked and made one harmless line on the way
out; names and ids are not masked, since whoever asks for a file by its name needs all of it.
"""

from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, ParamSpec, TypeAlias, TypeVar

from attachd.errors import ADVICE
from attachd.model import (
    AttachmentId,
    Claimed,
    ConversationId,
    Delivery,
    DeliveryId,
    DeliveryState,
    Document,
    Explanation,
    Failed,
    Failure,
    GuestId,
    InboxName,
    InboxStatus,
    Journey,
    PauseStatus,
    Posted,
    Posting,
    Reason,
    Receipt,
    Retried,
    Sent,
    StateName,
    Status,
    Step,
    UnderWay,
    Upload,
    Uploaded,
    Version,
    state_name,
)
from attachd.ports import Entry
from attachd.telemetry import printable, without_secrets

Json: TypeAlias = dict[str, Any]

TOKEN_HEADER = "X-Attachd-Token"  # noqa: S105  a header's name, not a secret
"""Shows that whoever asks for a change may have it; the page's script spells it once more."""

_P = ParamSpec("_P")
_T = TypeVar("_T")


class WireError(ValueError):
    """What was read is not what an attachd of this version writes."""


def _reads(read: Callable[_P, _T]) -> Callable[_P, _T]:
    def checked(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return read(*args, **kwargs)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise WireError("the answer is not one that this version of attachd understands") from error

    checked.__doc__ = read.__doc__
    return checked


# --- status ----------------------------------------------------------------------------------------------------------


def status(told: Status) -> Json:
    """Everything at a glance."""
    return {
        "running": told.running,
        "version": told.version,
        "platform": _pause(told.platform),
        "inboxes": [_inbox(inbox) for inbox in told.inboxes],
        "under_way": [_under_way(one) for one in told.under_way],
        "latest": [_journey(one) for one in told.latest],
    }


@_reads
def status_from(json: Json) -> Status:
    """What `status` wrote. Raises WireError."""
    return Status(
        running=json["running"],
        version=json["version"],
        platform=_pause_from(json["platform"]),
        inboxes=tuple(_inbox_from(one) for one in json["inboxes"]),
        under_way=tuple(_under_way_from(one) for one in json["under_way"]),
        latest=tuple(_journey_from(one) for one in json["latest"]),
    )


def _pause(pause: PauseStatus | None) -> Json:
    if pause is None:
        return {"state": "ok", "reason": None, "detail": None, "advice": None, "retry_in_s": None, "paused_s": None}
    return {
        "state": "paused",
        "reason": pause.reason.value,
        "detail": _words(pause.detail),
        "advice": ADVICE.get(pause.reason),
        "retry_in_s": pause.retry_in_s,
        "paused_s": pause.paused_s,
    }


def _pause_from(json: Json) -> PauseStatus | None:
    if json["state"] == "ok":
        return None
    return PauseStatus(Reason(json["reason"]), json["detail"], json["retry_in_s"], json["paused_s"])


def _inbox(inbox: InboxStatus) -> Json:
    return {
        **_name("name", inbox.name),
        **_name("path", inbox.path),
        **_pause(inbox.pause),
        "waiting": inbox.waiting,
        "under_way": inbox.under_way,
        "sent": inbox.sent,
        "failed": inbox.failed,
        "ignored": sum(inbox.ignored.values()),
        "ignored_by_reason": {printable(reason): count for reason, count in inbox.ignored.items()},
        "oldest_waiting_s": inbox.oldest_waiting_s,
    }


def _inbox_from(json: Json) -> InboxStatus:
    return InboxStatus(
        name=InboxName(_name_from("name", json)),
        path=_name_from("path", json),
        pause=_pause_from(json),
        waiting=json["waiting"],
        under_way=json["under_way"],
        sent=json["sent"],
        failed=json["failed"],
        ignored=json["ignored_by_reason"],
        oldest_waiting_s=json["oldest_waiting_s"],
    )


def _under_way(one: UnderWay) -> Json:
    return {
        **_delivery(one.delivery),
        "step": one.step,
        "bytes_sent": one.bytes_sent,
        "next_try_in_s": one.next_try_in_s,
    }


def _under_way_from(json: Json) -> UnderWay:
    return UnderWay(_delivery_from(json), _step_from(json["step"]), json["bytes_sent"], json["next_try_in_s"])


def _journey(journey: Journey) -> Json:
    return {
        **_delivery(journey.delivery),
        "ended_at": _time(journey.ended_at),
        "took_s": journey.took_s,
        "steps": [{"step": step.value, "took_s": took_s} for step, took_s in journey.steps],
    }


def _journey_from(json: Json) -> Journey:
    steps = tuple((Step(one["step"]), one["took_s"]) for one in json["steps"])
    return Journey(_delivery_from(json), _time_from(json["ended_at"]), json["took_s"], steps)


# --- deliveries ------------------------------------------------------------------------------------------------------


def entries(told: Iterable[Entry]) -> list[Json]:
    """Deliveries as the journal knows them."""
    return [{**_delivery(entry.delivery), "updated_at": _time(entry.updated_at)} for entry in told]


@_reads
def entries_from(json: Sequence[Json]) -> list[Entry]:
    """What `entries` wrote. Raises WireError."""
    return [Entry(_delivery_from(one), _time_from(one["updated_at"])) for one in json]


def _delivery(delivery: Delivery) -> Json:
    state = delivery.state
    failure = state.failure if isinstance(state, Failed) else delivery.last_failure
    told = None if isinstance(state, Sent | Posted) else failure
    receipt = state.receipt if isinstance(state, Posted | Sent | Failed) else None
    return {
        "delivery_id": delivery.id,
        **_name("inbox", delivery.inbox),
        **_name("file", delivery.name),
        "state": state_name(state).value,
        "size": delivery.version.size,
        "attempts": delivery.tries,
        "reason": told.reason.value if told else None,
        "detail": _words(told.detail) if told else None,
        "advice": ADVICE.get(told.reason) if told else None,
        "conversation_id": receipt.conversation if receipt else None,
        "claimed_at": _time(delivery.claimed_at),
        "next_try_at": _time(delivery.next_try_at) if delivery.next_try_at else None,
        "strikes": delivery.strikes,
        "version": {
            "device": delivery.version.device,
            "inode": delivery.version.inode,
            "mtime_ns": delivery.version.mtime_ns,
            "ctime_ns": delivery.version.ctime_ns,
        },
        "last_failure": _failure(delivery.last_failure) if delivery.last_failure else None,
        **_state(state),
    }


def _delivery_from(json: Json) -> Delivery:
    version = json["version"]
    return Delivery(
        id=DeliveryId(json["delivery_id"]),
        inbox=InboxName(_name_from("inbox", json)),
        name=_name_from("file", json),
        version=Version(version["device"], version["inode"], json["size"], version["mtime_ns"], version["ctime_ns"]),
        claimed_at=_time_from(json["claimed_at"]),
        state=_state_from(json),
        tries=json["attempts"],
        strikes=json["strikes"],
        next_try_at=_time_from(json["next_try_at"]) if json["next_try_at"] else None,
        last_failure=_failure_from(json["last_failure"]) if json["last_failure"] else None,
    )


def _state(state: DeliveryState) -> Json:
    match state:
        case Claimed():
            return {}
        case Uploaded(upload):
            return {"upload": _upload(upload)}
        case Posting(upload, text, posts):
            return {"upload": _upload(upload), **_name("text", text), "posts": posts}
        case Posted(upload, receipt, posts):
            return {"upload": _upload(upload), "receipt": _receipt(receipt), "posts": posts}
        case Sent(upload, receipt, filed_as, posts):
            filed = _name("filed_as", filed_as)
            return {"upload": _upload(upload), "receipt": _receipt(receipt), **filed, "posts": posts}
        case Failed(failure, filed_as, maybe_upload, maybe_receipt):
            return {
                "failure": _failure(failure),
                **_name("filed_as", filed_as),
                "upload": _upload(maybe_upload) if maybe_upload else None,
                "receipt": _receipt(maybe_receipt) if maybe_receipt else None,
            }


def _state_from(json: Json) -> DeliveryState:
    match StateName(json["state"]):
        case StateName.CLAIMED:
            return Claimed()
        case StateName.UPLOADED:
            return Uploaded(_upload_from(json["upload"]))
        case StateName.POSTING:
            return Posting(_upload_from(json["upload"]), _name_from("text", json), json["posts"])
        case StateName.POSTED:
            return Posted(_upload_from(json["upload"]), _receipt_from(json["receipt"]), json["posts"])
        case StateName.SENT:
            upload, receipt = _upload_from(json["upload"]), _receipt_from(json["receipt"])
            return Sent(upload, receipt, _name_from("filed_as", json), json["posts"])
        case StateName.FAILED:
            return Failed(
                _failure_from(json["failure"]),
                _name_from("filed_as", json),
                _upload_from(json["upload"]) if json["upload"] else None,
                _receipt_from(json["receipt"]) if json["receipt"] else None,
            )


def _upload(upload: Upload) -> Json:
    return {
        "guest_id": upload.guest,
        "attachment_id": upload.attachment,
        **_name("file_name", upload.document.file_name),
        "content_type": upload.document.content_type,
        "size": upload.document.size,
        "sha256": upload.sha256,
    }


def _upload_from(json: Json) -> Upload:
    document = Document(_name_from("file_name", json), json["content_type"], json["size"])
    return Upload(GuestId(json["guest_id"]), AttachmentId(json["attachment_id"]), document, json["sha256"])


def _receipt(receipt: Receipt) -> Json:
    return {"conversation_id": receipt.conversation, "message_id": receipt.message}


def _receipt_from(json: Json) -> Receipt:
    conversation = json["conversation_id"]
    return Receipt(None if conversation is None else ConversationId(conversation), json["message_id"])


def _failure(failure: Failure) -> Json:
    return {
        "reason": failure.reason.value,
        "detail": _words(failure.detail),
        "step": failure.step.value,
        "http_status": failure.http_status,
        "correlation_id": failure.correlation_id,
    }


def _failure_from(json: Json) -> Failure:
    return Failure(
        Reason(json["reason"]), json["detail"], Step(json["step"]), json["http_status"], json["correlation_id"]
    )


# --- one file --------------------------------------------------------------------------------------------------------


def explanation(told: Explanation) -> Json:
    """Where a file is and why."""
    return {
        **_name("path", told.path),
        "place": told.place,
        "sentences": [_words(sentence) for sentence in told.sentences],
        **(_name("inbox", told.inbox) if told.inbox is not None else {"inbox": None}),
        "reason": told.reason,
        "step": told.step,
        "next_try_in_s": told.next_try_in_s,
        "delivery": _delivery(told.delivery) if told.delivery else None,
    }


@_reads
def explanation_from(json: Json) -> Explanation:
    """What `explanation` wrote. Raises WireError."""
    return Explanation(
        path=_name_from("path", json),
        place=json["place"],
        sentences=tuple(json["sentences"]),
        inbox=None if json["inbox"] is None else InboxName(_name_from("inbox", json)),
        reason=json["reason"],
        delivery=_delivery_from(json["delivery"]) if json["delivery"] else None,
        step=_step_from(json["step"]),
        next_try_in_s=json["next_try_in_s"],
    )


def retried(told: Iterable[Retried]) -> list[Json]:
    """What became of each file that was to go back into its inbox."""
    return [
        {
            "delivery_id": one.delivery,
            **_name("inbox", one.inbox),
            **_name("filed_as", one.filed_as),
            **(_name("name", one.name) if one.name is not None else {"name": None}),
            "problem": None if one.problem is None else _words(one.problem),
        }
        for one in told
    ]


@_reads
def retried_from(json: Sequence[Json]) -> list[Retried]:
    """What `retried` wrote. Raises WireError."""
    return [
        Retried(
            delivery=None if one["delivery_id"] is None else DeliveryId(one["delivery_id"]),
            inbox=InboxName(_name_from("inbox", one)),
            filed_as=_name_from("filed_as", one),
            name=None if one["name"] is None else _name_from("name", one),
            problem=one["problem"],
        )
        for one in json
    ]


def name_pair(key: str, name: str) -> dict[str, str]:
    """A name in a request or an answer: `key` as a person sees it, `key_base64` where that is not the name itself."""
    return _name(key, name)


@_reads
def name_of(key: str, json: Mapping[str, Any]) -> str:
    """What `name_pair` wrote. Raises WireError."""
    return _name_from(key, json)


# --- single values ---------------------------------------------------------------------------------------------------


def _name(key: str, name: str) -> dict[str, str]:
    shown = printable(name)
    if shown == name:
        return {key: name}
    return {key: shown, f"{key}_base64": b64encode(name.encode("utf-8", "surrogateescape")).decode("ascii")}


def _name_from(key: str, json: Mapping[str, Any]) -> str:
    exact = json.get(f"{key}_base64")
    if exact is not None:
        return b64decode(exact, validate=True).decode("utf-8", "surrogateescape")
    name = json[key]
    if not isinstance(name, str):
        raise TypeError(key)
    return name


def _words(text: str) -> str:
    return printable(without_secrets(text))


def _time(at: datetime) -> str:
    return at.astimezone(UTC).isoformat().removesuffix("+00:00") + "Z"


def _time_from(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _step_from(word: str | None) -> Step | None:
    return None if word is None else Step(word)
