"""The frames of the platform: the envelope, the bodies and the errors in their several shapes. Pure."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from attachd.sandbox.clock import timestamp
from attachd.sandbox.ids import new_id
from attachd.sandbox.webmessaging.settings import MessagingSettings

Kind = Literal["response", "message"]

SESSION_EXPIRED = 4006
SESSION_UNKNOWN = 4007
ATTACHMENT_EXPIRED = 4008
ATTACHMENT_UNKNOWN = 4009
ATTACHMENT_NOT_UPLOADED = 4010
TEXT_TOO_LONG = 4011
CUSTOM_DATA_TOO_LARGE = 4013
TOO_MANY = (4029, 429)

TOO_MANY_CLASS = "TooManyRequestsErrorMessage"
URL_ERROR_CLASS = "GenerateUrlError"
EXPIRED_CLASS = "SessionExpiredEvent"


@dataclass(frozen=True, slots=True)
class Frame:
    """`status` is for the ledger: the code of an error wherever it stands in the frame.

    `ties`: whether the answer repeats the tracingId of its request; the examples of some classes do not.
    """

    class_name: str
    body: object
    code: int = 200
    kind: Kind = "response"
    tracing_id: str | None = None
    status: int = 200
    ties: bool = True

    def text(self) -> str:
        envelope: dict[str, object] = {"type": self.kind, "class": self.class_name, "code": self.code}
        if self.tracing_id is not None:
            envelope["tracingId"] = self.tracing_id
        return json.dumps({**envelope, "body": self.body})

    def traced(self, tracing_id: str | None) -> "Frame":
        return replace(self, tracing_id=tracing_id) if self.ties else self


class Declined(Exception):  # noqa: N818 - a decision of the platform, not a defect
    """The frame is answered with an error of this code. `error_class` None: a plain `string` frame."""

    def __init__(
        self,
        code: int,
        message: str,
        *,
        error_class: str | None = None,
        attachment_id: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.error_class = error_class
        self.attachment_id = attachment_id
        self.retry_after_s = retry_after_s


def error_frame(declined: Declined, tracing_id: str | None, settings: MessagingSettings) -> Frame:
    traced = tracing_id if settings.error_tracing else None
    name = declined.error_class
    if name is None or name == "string":
        return Frame("string", declined.message, declined.code, "response", traced, declined.code)
    if name == EXPIRED_CLASS:
        return Frame(EXPIRED_CLASS, {}, 200, settings.error_shape, traced, declined.code)
    body: dict[str, object] = {"errorCode": declined.code, "errorMessage": declined.message}
    if settings.error_schema:
        body |= {"name": name, "message": declined.message}
    if declined.attachment_id is not None and settings.error_attachment_id:
        body["attachmentId"] = declined.attachment_id
    http_like = declined.code if declined.code < 1000 else 400
    if declined.retry_after_s is not None:
        body["retryAfter"] = declined.retry_after_s
        http_like, traced = 429, None  # as it was captured: without a tracingId
    code = http_like if settings.error_shape == "response" else 200
    return Frame(name, body, code, settings.error_shape, traced, declined.code)


def utf8_bytes(text: str) -> int:
    return len(text.encode(errors="surrogatepass"))


def message_id() -> str:
    """The form in which the platform names a message: 32 hexadecimal digits."""
    return new_id().replace("-", "")


def structured(body: Mapping[str, object], wall_s: float) -> dict[str, object]:
    """A message with the ids and the time the platform gives it."""
    channel = {"time": timestamp(wall_s), "messageId": new_id()}
    return {"id": message_id(), "channel": channel, **body}


def connection_closed(reason: str, settings: MessagingSettings) -> Frame:
    return Frame("ConnectionClosedEvent", {settings.reason_field: reason}, kind="message")


def session_expired(settings: MessagingSettings) -> Frame:
    return Frame(EXPIRED_CLASS, {}, kind=settings.error_shape, status=SESSION_EXPIRED)


def number(value: float, settings: MessagingSettings) -> float:
    """A figure as the session tells it: whole, or as a JSON double."""
    return float(value) if settings.doubles else int(value)
