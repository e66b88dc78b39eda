"""What kind of platform this is: its client, its limits, how strict its storage is; the deployment comes from below."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

from attachd.sandbox.webmessaging.settings import MessagingSettings

STANDARD_LIMIT_BYTES = 10_485_760
ENHANCED_LIMIT_BYTES = 26_214_400

ALL_SCOPES = frozenset({"webchat:guest", "webchat:guest:write", "webchat:conversation", "webchat:conversation:write"})

# Bound when the sandbox starts: sockets, folders and the form of the ledger cannot change under a running platform.
_FIXED = frozenset({"host", "port", "storage_port", "keep", "ledger", "s3"})


@dataclass(frozen=True, slots=True)
class S3Endpoint:
    """An S3 server that others wrote, and the keys with which the sandbox hands out places there.

    `url` is scheme, host and port. The bucket is made when it is missing.
    """

    url: str
    access_key: str
    secret_key: str = field(repr=False)
    bucket: str = "attachd-sandbox"
    region: str = "us-east-1"

    def __post_init__(self) -> None:
        """Raises ValueError when `url` is not such a one."""
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            raise ValueError(f"{self.url!r} is not the URL of a server, such as http://127.0.0.1:9000")
        if parts.path not in ("", "/") or parts.query or parts.fragment:
            raise ValueError(f"{self.url!r} must end after the host and port: the bucket stands by itself")


@dataclass(frozen=True, slots=True)
class SandboxSettings(MessagingSettings):
    """Figures without a remark are the contract's; `port` 0 lets the system choose."""

    host: str = "127.0.0.1"
    port: int = 0
    storage_port: int = 0  # a port of its own: in reality the storage is another host, and must see no bearer token

    client_id: str = "5a4d0b0c-6e0f-4b57-9d0a-2f6c1e7b8a90"
    client_secret: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    token_life_s: float = 86_400.0  # the vendor's default; 300 to 172,800 in reality, anything above 0 here
    scopes: frozenset[str] = ALL_SCOPES

    queue_id: str = "0f2b7c1e-93d4-4c5e-8a3b-6d1f0e9c7a52"
    queues: frozenset[str] = frozenset()  # further queues that exist
    capability_refused_at: Literal["guest", "upload"] = "guest"  # the contract allows both

    max_file_bytes: int = STANDARD_LIMIT_BYTES
    too_large_status: Literal[400, 413] = 400
    accepted_types: tuple[str, ...] = ("*/*",)  # globs on the MIME type
    blocked_types: tuple[str, ...] = ()

    requests_per_second: int = 100  # 0: no quota
    retry_after: Literal["seconds", "date"] = "seconds"

    url_life_s: int = 300
    signed_headers: tuple[str, ...] = ("content-length", "content-type", "host")
    strict_storage: bool = (
        False  # True: an unsigned x-amz-* header is refused, as S3 does; False: as the tutorial hopes
    )
    object_limit_bytes: int = 5 * 1024**3  # S3's for a single PUT
    stalled_after_s: float = 20.0  # S3's patience with a body that stops coming

    s3: S3Endpoint | None = None  # who stores the files in place of the sandbox; no fault strikes a PUT then

    keep: Path | None = None  # a folder in which the stored bytes stay, by attachment id; else only their SHA-256 does
    ledger: Literal["full", "counts"] = "full"  # counts: for long benchmarks, bounded memory


def changed(settings: SandboxSettings, patch: Mapping[str, object]) -> SandboxSettings:
    """The settings with a patch from JSON applied; ValueError names every field that cannot be set so."""
    names = {known.name for known in fields(SandboxSettings)}
    values: dict[str, object] = {}
    problems: list[str] = []
    for name, value in patch.items():
        if name not in names:
            problems.append(f"{name}: no such setting")
        elif name in _FIXED:
            problems.append(f"{name}: fixed once the sandbox runs")
        else:
            try:
                values[name] = _fitted(name, value, getattr(settings, name))
            except ValueError as error:
                problems.append(f"{name}: {error}")
    if problems:
        raise ValueError("; ".join(problems))
    return replace(settings, **values)  # type: ignore[arg-type]  # _fitted compared each type with the present value's


_CHOICES: dict[str, tuple[object, ...]] = {
    name: get_args(hint) for name, hint in get_type_hints(SandboxSettings).items() if get_origin(hint) is Literal
}


def _fitted(name: str, value: object, present: object) -> object:
    if name in _CHOICES and value not in _CHOICES[name]:
        raise ValueError(f"must be one of {', '.join(map(str, _CHOICES[name]))}")
    match present:
        case tuple() | frozenset():
            if not isinstance(value, list | tuple | set | frozenset) or not all(isinstance(one, str) for one in value):
                raise ValueError("must be a list of strings")
            return type(present)(value)
        case float() if isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        case _ if type(value) is type(present):
            return value
    raise ValueError(f"must be of type {type(present).__name__}")
