"""AWS Signature Version 4 in the query string: making presigned URLs and judging requests that carry one.

Pure: no clock, no socket. Source: Amazon S3 API reference, "Authenticating Requests: Using Query Parameters (AWS
Signature Version 4)"; its published example is among the tests.
"""

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from urllib.parse import parse_qsl, quote, unquote_to_bytes

ALGORITHM = "AWS4-HMAC-SHA256"
MAX_EXPIRES_S = 604_800  # seven days, S3's own bound
MAX_SKEW = timedelta(minutes=15)  # how far in the future a URL may be dated

_PARAMETERS = ("X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Date", "X-Amz-Expires", "X-Amz-SignedHeaders")


@dataclass(frozen=True, slots=True)
class Credential:
    access_key_id: str
    secret_key: str
    region: str
    service: str = "s3"


class Rejected(Exception):  # noqa: N818 - a verdict, not a defect
    """The request is not what was signed; `code` is S3's word for it, `extra` further elements of its answer."""

    def __init__(self, status: int, code: str, message: str, extra: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.extra = extra or {}


def presigned(
    method: str,
    path: str,
    headers: Mapping[str, str],
    credential: Credential,
    signed_at: datetime,
    expires_s: int,
) -> str:
    """The path and query of a URL that allows this one request.

    Args:
        path: as the object is called, not escaped; "/" separates.
        headers: what the request must carry, names in lower case, "host" among them.
        signed_at: aware; the URL holds from then on for `expires_s` seconds.
    """
    stamp = _stamp(signed_at)
    query = [
        ("X-Amz-Algorithm", ALGORITHM),
        ("X-Amz-Credential", f"{credential.access_key_id}/{_scope(credential, stamp)}"),
        ("X-Amz-Date", stamp),
        ("X-Amz-Expires", str(expires_s)),
        ("X-Amz-SignedHeaders", ";".join(sorted(headers))),
    ]
    escaped_path = _escaped(path.encode(), keep="/")
    signature = _signature(method, escaped_path, query, headers, credential, stamp)
    return f"{escaped_path}?{_canonical_query(query)}&X-Amz-Signature={signature}"


def judge(
    method: str,
    raw_path: str,
    raw_query: str,
    headers: Iterable[tuple[str, str]],
    credential: Credential,
    now: datetime,
    unsigned_allowed: frozenset[str] = frozenset(),
) -> None:
    """Return when the request may pass, raise `Rejected` when not.

    A client may escape path and query in its own way: both are taken apart and written anew before comparing.

    Args:
        raw_path, raw_query: as they stood in the request line.
        unsigned_allowed: x-amz-* headers that are let through although the URL does not sign them.
    """
    query = parse_qsl(raw_query, keep_blank_values=True)
    given = dict(query)
    signature = given.get("X-Amz-Signature", "")
    missing = [name for name in _PARAMETERS if name not in given]
    if missing or not signature or len(given) != len(query):
        raise _malformed("Query-string authentication requires each of the X-Amz-* parameters exactly once.")
    if given["X-Amz-Algorithm"] != ALGORITHM:
        raise _malformed(f'X-Amz-Algorithm only supports "{ALGORITHM}"')
    stamp = given["X-Amz-Date"]
    signed_at = _signed_at(stamp)
    lifetime = _lifetime(given["X-Amz-Expires"])
    _judge_scope(given["X-Amz-Credential"], credential, stamp)
    present = _gathered(headers)
    signed_names = given["X-Amz-SignedHeaders"].split(";")
    _judge_headers(present, frozenset(signed_names), unsigned_allowed)
    unsigned_query = [(name, value) for name, value in query if name != "X-Amz-Signature"]
    expected = _signature(
        method,
        _escaped(unquote_to_bytes(raw_path), keep="/"),
        unsigned_query,
        {name: present.get(name, "") for name in signed_names},
        credential,
        stamp,
    )
    if not hmac.compare_digest(expected.encode(), signature.encode()):
        raise Rejected(
            403,
            "SignatureDoesNotMatch",
            "The request signature we calculated does not match the signature you provided.",
        )
    # Time comes last: only a genuine URL deserves to hear that it is too late.
    if signed_at > now + MAX_SKEW:
        raise Rejected(403, "AccessDenied", "Request is not valid yet")
    if now >= signed_at + lifetime:
        raise Rejected(403, "AccessDenied", "Request has expired")


def _signature(
    method: str,
    escaped_path: str,
    query: list[tuple[str, str]],
    headers: Mapping[str, str],
    credential: Credential,
    stamp: str,
) -> str:
    names = sorted(headers)
    canonical_request = "\n".join(
        (
            method,
            escaped_path,
            _canonical_query(query),
            *(f"{name}:{' '.join(headers[name].split())}" for name in names),
            "",
            ";".join(names),
            "UNSIGNED-PAYLOAD",  # a presigned URL is made before anybody has seen the bytes
        )
    )
    digest = hashlib.sha256(canonical_request.encode()).hexdigest()
    to_sign = "\n".join((ALGORITHM, stamp, _scope(credential, stamp), digest))
    return hmac.new(_signing_key(credential, stamp[:8]), to_sign.encode(), hashlib.sha256).hexdigest()


@lru_cache(maxsize=8)
def _signing_key(credential: Credential, day: str) -> bytes:
    key = f"AWS4{credential.secret_key}".encode()
    for part in (day, credential.region, credential.service, "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return key


def _canonical_query(query: list[tuple[str, str]]) -> str:
    escaped = sorted((_escaped(name.encode()), _escaped(value.encode())) for name, value in query)
    return "&".join(f"{name}={value}" for name, value in escaped)


def _escaped(raw: bytes, keep: str = "") -> str:
    # RFC 3986: everything but the unreserved characters, in upper case hexadecimal; S3 escapes a path once only.
    return quote(raw, safe=f"-_.~{keep}")


def _scope(credential: Credential, stamp: str) -> str:
    return f"{stamp[:8]}/{credential.region}/{credential.service}/aws4_request"


def _stamp(signed_at: datetime) -> str:
    return signed_at.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")


def _signed_at(stamp: str) -> datetime:
    try:
        return datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError:
        raise _malformed("X-Amz-Date must be in the ISO8601 Long Format \"yyyyMMdd'T'HHmmss'Z'\"") from None


def _lifetime(expires: str) -> timedelta:
    if not (expires.isascii() and expires.isdigit()):
        raise _malformed("X-Amz-Expires should be a number")
    if not 1 <= int(expires) <= MAX_EXPIRES_S:
        raise _malformed(f"X-Amz-Expires must be between 1 and {MAX_EXPIRES_S} seconds")
    return timedelta(seconds=int(expires))


def _judge_scope(given: str, credential: Credential, stamp: str) -> None:
    access_key_id, _, scope = given.partition("/")
    if access_key_id != credential.access_key_id:
        raise Rejected(403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records.")
    if scope != _scope(credential, stamp):
        raise _malformed("Error parsing the X-Amz-Credential parameter; date, region or service do not fit.")


def _judge_headers(present: Mapping[str, str], signed: frozenset[str], unsigned_allowed: frozenset[str]) -> None:
    unsigned = [
        name
        for name in present
        if (name == "host" or name.startswith("x-amz-")) and name not in signed and name not in unsigned_allowed
    ]
    if unsigned:
        raise Rejected(
            403,
            "AccessDenied",
            "There were headers present in the request which were not signed",
            {"HeadersNotSigned": ", ".join(sorted(unsigned))},
        )


def _gathered(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    gathered: dict[str, str] = {}
    for name, value in headers:
        lower = name.lower()
        gathered[lower] = f"{gathered[lower]},{value}" if lower in gathered else value
    return gathered


def _malformed(message: str) -> Rejected:
    return Rejected(400, "AuthorizationQueryParametersError", message)
