"""What the platform says: an answer, or a refusal in the dialect of the step.

A part raises `Refused` with what is wrong; only here is known how OAuth, the API and S3 each write that down.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from xml.sax.saxutils import escape

from attachd.sandbox.step import Step


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    body: bytes
    headers: Mapping[str, str]
    code: str | None = None  # the error code inside the body, for the ledger


def json_reply(content: object, status: int = 200) -> Reply:
    return Reply(status, json.dumps(content).encode(), {"Content-Type": "application/json; charset=utf-8"})


class Refused(Exception):  # noqa: N818 - a decision of the platform, not a defect
    """The request is answered with `status`; `extra` holds further elements of an S3 error."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers or {}
        self.extra = extra or {}


def bad_request(message: str) -> Refused:
    return Refused(400, "bad.request", message)


@dataclass(frozen=True, slots=True)
class _Dialect:
    content_type: str
    code_of: Mapping[int, str] = field(default_factory=dict)


_OAUTH = _Dialect(
    "application/json; charset=utf-8",
    {400: "invalid_request", 401: "invalid_client", 403: "unauthorized_client", 503: "temporarily_unavailable"},
)
_API = _Dialect(
    "application/json; charset=utf-8",
    {
        400: "bad.request",
        401: "authentication.required",
        403: "missing.permissions",
        404: "not.found",
        408: "request.timeout",
        409: "conflict",
        413: "request.entity.too.large",
        429: "too.many.requests",
        500: "internal.server.error",
        502: "bad.gateway",
        503: "service.unavailable",
        504: "gateway.timeout",
    },
)
_S3 = _Dialect(
    "application/xml",
    {
        400: "InvalidRequest",
        403: "AccessDenied",
        404: "NoSuchBucket",
        408: "RequestTimeout",
        411: "MissingContentLength",
        429: "SlowDown",
        500: "InternalError",
        503: "SlowDown",
    },
)


def refusal(step: Step, status: int, code: str | None = None, message: str | None = None) -> Refused:
    """A refusal of which only the status matters: code and message are what this step's server would say."""
    dialect = {Step.TOKEN: _OAUTH, Step.PUT: _S3}.get(step, _API)
    phrase = HTTPStatus(status).phrase
    return Refused(status, code or dialect.code_of.get(status) or phrase.lower().replace(" ", "."), message or phrase)


def rendered(refused: Refused, step: Step, correlation_id: str) -> Reply:
    match step:
        case Step.TOKEN:
            dialect, body = _OAUTH, _oauth_error(refused)
        case Step.PUT:
            dialect, body = _S3, _s3_error(refused, correlation_id)
        case _:
            dialect, body = _API, _api_error(refused, correlation_id)
    return Reply(
        refused.status, body.encode(), {"Content-Type": dialect.content_type, **refused.headers}, code=refused.code
    )


def _oauth_error(refused: Refused) -> str:
    # The platform says it twice: under its own name and under the one of RFC 6749.
    return json.dumps({"error": refused.code, "description": refused.message, "error_description": refused.message})


def _api_error(refused: Refused, correlation_id: str) -> str:
    return json.dumps(
        {
            "message": refused.message,
            "code": refused.code,
            "status": refused.status,
            "contextId": correlation_id,
            "details": [],
            "errors": [],
        }
    )


def _s3_error(refused: Refused, correlation_id: str) -> str:
    elements = {"Code": refused.code, "Message": refused.message, **refused.extra, "RequestId": correlation_id}
    inside = "".join(f"<{name}>{escape(text)}</{name}>" for name, text in elements.items())
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<Error>{inside}</Error>'
