"""The words of the guest protocol: what is sent, what comes back, and whose fault a refusal is. Pure.

One JSON object a frame. What comes is told apart by its `class` alone, then by the codes inside: `type` and the outer
code are not dependable. A `read_…` function looks for the answer to one question: it returns the answer, a `Refusal`,
or None for a frame that has nothing to do with it.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from attachd.errors import AccountError, DeliveryError, FileError, InboxError, TransientError, UnknownOutcome
from attachd.gateway.deployment import Profile, file_type, number, profile
from attachd.gateway.http import RETRY_AFTER_CAP_S, decoded, excerpt
from attachd.model import AttachmentId, Document, Reason, Receipt, Step

TEXT_LIMIT_BYTES = 4096
"""The room a text has at the platform."""

SESSION_EXPIRED = "SessionExpiredEvent"

ENDINGS: Mapping[str, str] = {
    SESSION_EXPIRED: "the session has expired",
    "SessionClearedEvent": "the conversation was cleared",
    "LogoutEvent": "the session was logged out",
    "ConnectionClosedEvent": "the platform gave the connection up",
}
"""Classes that end a connection, whatever was under way."""


_T = TypeVar("_T")
_ID = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)


# --- what is sent -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Request:
    """A question. `tracing` comes back with most answers."""

    action: str
    tracing: str
    fields: Mapping[str, object] = field(default_factory=dict)

    def text(self, token: str) -> str:
        """The frame. `token` is the session's identity and its only credential."""
        content = {"action": self.action, "token": token, "tracingId": self.tracing, **self.fields}
        return json.dumps(content, separators=(",", ":"))


def configure_session(tracing: str, deployment_id: str, *, start_new: bool = False) -> Request:
    """Begin, or go on with, the session that the token names."""
    return Request("configureSession", tracing, {"deploymentId": deployment_id, "startNew": start_new})


def close_session(tracing: str) -> Request:
    """Let go of the token's connections, which the platform wants before a session that is over starts anew."""
    return Request("closeSession", tracing, {"closeAllConnections": True})


def join(tracing: str) -> Request:
    """Say that the guest is there, where a deployment starts conversations by that."""
    event = {"eventType": "Presence", "presence": {"type": "Join"}}
    return Request("onMessage", tracing, {"message": {"type": "Event", "events": [event]}})


def on_attachment(tracing: str, attachment: AttachmentId, document: Document) -> Request:
    """Ask for a place for a document, under an id of ours."""
    fields = {
        "attachmentId": attachment,
        "fileName": document.file_name,
        "fileType": file_type(document),
        "fileSize": document.size,
        "errorsAsJson": True,
    }
    return Request("onAttachment", tracing, fields)


def on_message(tracing: str, attachment: AttachmentId, text: str, attributes: Mapping[str, str]) -> Request:
    """Post the message that carries one attachment."""
    message: dict[str, object] = {
        "type": "Text",
        "text": shortened(text),
        "metadata": {"id": tracing},
        "content": [{"contentType": "Attachment", "attachment": {"id": attachment}}],
    }
    if attributes:
        message["channel"] = {"metadata": {"customAttributes": dict(attributes)}}
    return Request("onMessage", tracing, {"message": message})


def get_attachment(tracing: str, attachment: AttachmentId) -> Request:
    """Ask for a place to read an upload from: shows whether the platform still has it."""
    return Request("getAttachment", tracing, {"attachmentId": attachment})


def get_jwt(tracing: str) -> Request:
    """Ask for the right to read the session's history."""
    return Request("getJwt", tracing)


def shortened(text: str) -> str:
    """At most as much of the text as the platform takes; a long file name must not keep the file from going."""
    whole = text.encode("utf-8", "replace")
    if len(whole) <= TEXT_LIMIT_BYTES:
        return whole.decode()
    return whole[: TEXT_LIMIT_BYTES - len("…".encode())].decode("utf-8", "ignore") + "…"


# --- what comes -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame as it came; `kind` is its `type`, `name` its `class`."""

    kind: str
    name: str
    code: int | None
    tracing: str | None
    body: object = field(repr=False)

    @property
    def fields(self) -> Mapping[str, object]:
        """The body, where it is an object."""
        return self.body if isinstance(self.body, dict) else {}


@dataclass(frozen=True, slots=True)
class Refusal:
    """No, for a reason with a number. `tagged` says that it certainly answers our question and no other."""

    code: int
    text: str = field(repr=False)
    tagged: bool
    retry_after_s: float | None = None

    @property
    def names_connections(self) -> bool:
        """The limit that was met is the one on new connections, which all sessions of the deployment share."""
        return self.code in _TOO_MANY and "connection" in self.text.lower()

    def alone(self, action: str) -> "Refusal":
        """The refusal, where `action` is all that was asked on this connection and has no answer yet.

        Of a limit that was met the platform says no tracing id, only in words what was too much. Unless they name
        something else it was this, and what comes too fast is not processed. Source: a frame that a user of the
        vendor's mobile SDK captured (its issue 347); that SDK, too, takes a message refused like this for not sent.
        """
        said = self.text.lower()
        others = any(other.lower() in said for other in _ACTIONS if other != action)
        if self.code not in _TOO_MANY or self.names_connections or others:
            return self
        return replace(self, tagged=True)


@dataclass(frozen=True, slots=True)
class Configured:
    """The session stands. `is_new`: the platform did not know it before; `max_custom_bytes` is None where untold."""

    connected: bool
    is_new: bool
    read_only: bool
    profile: Profile
    max_custom_bytes: int | None


@dataclass(frozen=True, slots=True)
class Place:
    """Where the bytes go. Whoever has the URL may write there."""

    attachment: AttachmentId
    url: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Arrived:
    """The platform has the bytes."""


@dataclass(frozen=True, slots=True)
class Echo:
    """Our message stands; `carries` says whether with its attachment."""

    message: str | None
    carries: bool


@dataclass(frozen=True, slots=True)
class Jwt:
    """The right to read the session's history."""

    value: str = field(repr=False)


def read(text: str) -> Frame | None:
    """A frame, or None for what is none."""
    content = decoded(text)
    if content is None or not isinstance(name := content.get("class"), str):
        return None
    kind, tracing = content.get("type"), content.get("tracingId")
    return Frame(
        kind if isinstance(kind, str) else "",
        name,
        _whole(content.get("code")),
        tracing if isinstance(tracing, str) and tracing else None,
        content.get("body"),
    )


def read_configured(frame: Frame, tracing: str) -> Configured | Refusal | None:
    """The answer to `configure_session`, and to `close_session`."""
    if frame.name == SESSION_EXPIRED:
        return Refusal(4006, ENDINGS[SESSION_EXPIRED], tagged=frame.tracing == tracing)
    if frame.name != "SessionResponse" or frame.tracing not in (None, tracing):
        return refusal(frame, tracing)
    body = frame.fields
    media = body.get("allowedMedia")
    inbound = media.get("inbound") if isinstance(media, dict) else None
    allowed = inbound if isinstance(inbound, dict) else {}
    return Configured(
        connected=body.get("connected") is True,
        is_new=body.get("newSession") is True,
        read_only=body.get("readOnly") is True,
        profile=profile(allowed.get("fileTypes"), allowed.get("maxFileSizeKB"), body.get("blockedExtensions")),
        max_custom_bytes=_whole(body.get("maxCustomDataBytes")),
    )


def read_place(frame: Frame, tracing: str, attachment: AttachmentId) -> Place | Refusal | None:
    """The answer to `on_attachment`. The same class without headers is a place to read from, and none for us."""
    if frame.name != "PresignedUrlResponse":
        return refusal(frame, tracing, attachment)
    body = frame.fields
    told, url, headers = body.get("attachmentId"), body.get("url"), body.get("headers")
    if not (told == attachment or frame.tracing == tracing) or not headers:
        return None
    if not is_id(told) or not isinstance(url, str) or not _are_headers(headers):
        return Refusal(_ODD, "it names no place for the file", tagged=True)
    assert isinstance(headers, dict)
    return Place(AttachmentId(str(told)), url, headers)


def read_kept(frame: Frame, tracing: str, attachment: AttachmentId) -> Arrived | Refusal | None:
    """The answer to `get_attachment`: the platform has the bytes."""
    if frame.name != "PresignedUrlResponse":
        return refusal(frame, tracing, attachment)
    ours = frame.fields.get("attachmentId") == attachment or frame.tracing == tracing
    return Arrived() if ours and not frame.fields.get("headers") else None


def read_arrived(frame: Frame, attachment: AttachmentId) -> Arrived | Refusal | None:
    """What became of the bytes of an attachment."""
    if frame.fields.get("attachmentId") != attachment:
        return None
    if frame.name == "UploadSuccessEvent":
        return Arrived()
    if frame.name == "UploadFailureEvent":
        return _refused(frame, tagged=True)
    return None


def read_echo(frame: Frame, tracing: str, attachment: AttachmentId) -> Echo | Refusal | None:
    """The platform's word that our message stands.

    The answer to a health check looks alike, hence the kind; another guest's or an agent's words never bear our id. An
    echo of another attachment says neither that ours is there nor that it was dropped. That the session was over is an
    answer only where it names our question: it may be over because of what follows the message.
    """
    if frame.name == SESSION_EXPIRED and frame.tracing == tracing:
        return Refusal(4006, ENDINGS[SESSION_EXPIRED], tagged=True)
    if frame.name != "StructuredMessage":
        return refusal(frame, tracing)
    body = frame.fields
    if (frame.kind, body.get("direction"), frame.tracing) != ("message", "Inbound", tracing):
        return None
    attached = _attachments(body)
    if attached and attachment not in attached:
        return Refusal(_ODD, "its echo names another attachment", tagged=False)
    return Echo(_message_id(body), carries=attachment in attached)


def read_jwt(frame: Frame, tracing: str) -> Jwt | Refusal | None:
    """The answer to `get_jwt`."""
    if frame.name != "JwtResponse" or frame.tracing not in (None, tracing):
        return refusal(frame, tracing)
    jwt = frame.fields.get("jwt")
    # It becomes a header: what could not be one is no such right.
    if isinstance(jwt, str) and re.fullmatch(r"[!-~]{1,8192}", jwt):
        return Jwt(jwt)
    return Refusal(_ODD, "it names no right to read", tagged=True)


def refusal(frame: Frame, tracing: str, attachment: AttachmentId | None = None) -> Refusal | None:
    """The frame, if it refuses the question with this `tracing` or does not say which question it refuses."""
    ours = frame.tracing == tracing
    if not ours and attachment is not None:
        told = frame.fields.get("attachmentId")
        ours = told == attachment
        if told is not None and not ours:
            return None
    if frame.tracing is not None and not ours:
        return None
    if frame.name in _REFUSALS or (frame.name == "string" and frame.code is not None and frame.code >= 300):
        return _refused(frame, tagged=ours)
    return None


def _refused(frame: Frame, *, tagged: bool) -> Refusal:
    body = frame.fields
    code = _whole(body.get("errorCode")) or frame.code or _ODD
    text = frame.body if isinstance(frame.body, str) else body.get("errorMessage") or body.get("message")
    retry_after_s = number(body.get("retryAfter"))
    if frame.name == _LIMIT_MET:
        code = code if code in _TOO_MANY else 429
        retry_after_s = QUIET_S if retry_after_s is None else min(max(retry_after_s, 1.0), RETRY_AFTER_CAP_S)
    return Refusal(
        code,
        text if isinstance(text, str) else "",
        tagged,
        None if retry_after_s is None else float(retry_after_s),
    )


# --- the history ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a session's messages: the receipt of the one that was looked for, and whether others follow."""

    receipt: Receipt | None
    is_last: bool


def read_page(content: Mapping[str, object], attachment: AttachmentId, *, number_of: int, size: int) -> Page | None:
    """Look for our message on page `number_of`, counted from 1, of `size` messages; None for what is no page."""
    entities = content.get("entities")
    if not isinstance(entities, list):
        return None
    for entity in entities:
        if isinstance(entity, dict) and entity.get("direction") == "Inbound" and attachment in _attachments(entity):
            return Page(Receipt(None, _message_id(entity)), is_last=True)
    pages = _whole(content.get("pageCount"))
    return Page(None, is_last=len(entities) < size if pages is None else number_of >= pages)


# --- whose fault a refusal is -----------------------------------------------------------------------------------------

QUIET_S = 5.0
"""Ours: the silence after a limit was met that names none."""

_ODD = -1
_LIMIT_MET = "TooManyRequestsErrorMessage"
_REFUSALS = frozenset({"GenerateUrlError", _LIMIT_MET, "Error", "ErrorMessage"})
_TOO_MANY = frozenset({429, 4029})
_ACTIONS = ("configureSession", "onAttachment", "getAttachment", "onMessage", "getJwt", "closeSession", "echo")

_FILE = {
    4001: Reason.TYPE_NOT_ALLOWED,
    4002: Reason.TOO_LARGE,
    4003: Reason.REFUSED,
    4004: Reason.REFUSED,
    4005: Reason.REFUSED,
    4102: Reason.EMPTY,
}
_NO_ATTACHMENTS = frozenset({4000})
_SESSION_OVER = frozenset({409, 4006, 4007, 4017})
_ATTACHMENT_GONE = frozenset({404, 4008, 4009, 4010})
_MESSAGE_UNFIT = frozenset({4011, 4013})
_NOT_AUTHORISED = frozenset({401, 403})
_SLOW = 408

PERHAPS = "the message may have been accepted"


def error(refused: Refusal, step: Step, asked: str, *secrets: str) -> DeliveryError:
    """The family a refusal belongs to. `asked` is the action; `secrets` are left out of the words.

    After a message was written only a refusal that names it says that it was not accepted; "timed out" and "failed"
    never do.
    """
    code = refused.code
    said = excerpt(refused.text.encode("utf-8", "replace"), *secrets)
    detail = f"the platform refused {asked}" + (f" with {code}" if code != _ODD else "") + (f": {said}" if said else "")
    reason = _trouble(code)
    if step is Step.MESSAGE and (not refused.tagged or reason in (Reason.TIMEOUT, Reason.SERVER_ERROR)):
        return UnknownOutcome(
            reason or Reason.UNKNOWN_OUTCOME, f"{detail}; {PERHAPS}", step, retry_after_s=refused.retry_after_s
        )
    if reason is not None:
        return TransientError(reason, detail, step, retry_after_s=refused.retry_after_s)
    if code == _ODD:
        return AccountError(Reason.NOT_THE_PLATFORM, f"{detail}; that is no answer of this protocol", step)
    if code in _NO_ATTACHMENTS:
        return InboxError(Reason.ATTACHMENTS_NOT_GRANTED, detail, step)
    if code in _SESSION_OVER:
        return TransientError(Reason.NOT_READY, f"{detail}; the session is over", step)
    if code in _NOT_AUTHORISED or step is Step.SESSION:
        return AccountError(Reason.DEPLOYMENT_REFUSED, f"{detail}; {DEPLOYMENT_ADVICE}", step)
    if code in _ATTACHMENT_GONE:
        return TransientError(Reason.NOT_READY, f"{detail}; the platform does not know the upload", step)
    if code in _MESSAGE_UNFIT:
        return InboxError(Reason.MESSAGE_REFUSED, f"{detail}; look at message and metadata of this inbox", step)
    return FileError(_FILE.get(code, Reason.REFUSED), detail, step)


DEPLOYMENT_ADVICE = (
    "look whether platform.deployment_id belongs to this environment, whether the deployment is active, and, "
    "if it restricts domains, whether platform.origin is one of them"
)


def _trouble(code: int) -> Reason | None:
    """The reason of what is nobody's fault and passes."""
    if code in _TOO_MANY:
        return Reason.RATE_LIMITED
    if code == _SLOW:
        return Reason.TIMEOUT
    if 500 <= code < 600 or 5000 <= code < 6000 or 0 <= code < 400:
        return Reason.SERVER_ERROR
    return None


def is_id(value: object) -> bool:
    """An id of the platform, fit to be kept and shown."""
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def _message_id(body: Mapping[str, object]) -> str | None:
    return str(body["id"]) if is_id(body.get("id")) else None


def _attachments(body: Mapping[str, object]) -> set[str]:
    """The ids of what is attached; an attachment may come without one, which is then empty."""
    content = body.get("content")
    found = set()
    for item in content if isinstance(content, list) else ():
        attachment = item.get("attachment") if isinstance(item, dict) else None
        if isinstance(attachment, dict):
            told = attachment.get("id")
            found.add(told if isinstance(told, str) else "")
    return found


def _are_headers(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(one, str) for one in value.values())


def _whole(value: object) -> int | None:
    found = number(value)
    return int(found) if found is not None and found == int(found) else None
