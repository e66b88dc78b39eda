"""What a web messaging deployment allows: its public configuration and the content profile. Pure.

The platform checks neither the type nor the size of a file when it is announced, and a profile that does not let a file
in can silently drop it from the message. So everything is held against the profile before the first byte goes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from attachd.model import Document, Reason

BYTES_PER_KB = 1000
"""The vendor's client divides by 1000, its documentation suggests 1024: the smaller reading is right with both."""

_ALL = "*/*"
_LARGEST = 2**53


@dataclass(frozen=True, slots=True)
class Profile:
    """What files may come in: types in lower case, with `*` for a half; endings in lower case, with their dot."""

    types: frozenset[str]
    max_bytes: int
    blocked: frozenset[str] = frozenset()

    @property
    def takes_files(self) -> bool:
        """Attachments are switched on at all."""
        return bool(self.types) and self.max_bytes > 0

    def objection(self, document: Document) -> tuple[Reason, str] | None:
        """Why the platform would not take the document, in words; None when it would. The block list wins."""
        name, content_type = document.file_name.strip().lower(), file_type(document).lower()
        if self.blocked and not ("." in name and name.rpartition(".")[2]):
            return Reason.REFUSED, "the deployment blocks some file name extensions, and this name has none"
        ending = next((ending for ending in sorted(self.blocked) if name.endswith(ending)), None)
        if ending is not None:
            return Reason.TYPE_NOT_ALLOWED, f"the deployment blocks files that end in {ending}"
        if not self.types & {content_type, content_type.partition("/")[0] + "/*", _ALL}:
            takes = ", ".join(sorted(self.types))
            return Reason.TYPE_NOT_ALLOWED, f"the deployment does not take {content_type}, only {takes}"
        if document.size == 0:
            return Reason.EMPTY, "the file is empty"
        if document.size > self.max_bytes:
            said = f"the deployment takes files of at most {self.max_bytes} bytes, this one has {document.size}"
            return Reason.TOO_LARGE, said
        return None


def profile(types: object, max_kb: object, blocked: object) -> Profile:
    """A profile from the platform's fields; what is no type, number or ending there allows nothing."""
    kb = number(max_kb)
    return Profile(
        frozenset(_word(entry) for entry in _list(types) if "/" in _word(entry)),
        int(kb * BYTES_PER_KB) if kb is not None and kb > 0 else 0,
        frozenset("." + _word(entry).lstrip(".") for entry in _list(blocked) if _word(entry).strip(".")),
    )


def file_type(document: Document) -> str:
    """The type as the platform wants it: without parameters, and Opus as the Ogg it comes in.

    Source: the vendor's mobile client, pull requests 317, 328 and 340.
    """
    plain = document.content_type.partition(";")[0].strip()
    return "audio/ogg" if plain.lower() in ("audio/opus", "audio/x-opus") else plain


@dataclass(frozen=True, slots=True)
class Deployment:
    """The public configuration of a deployment.

    `attachments` is None where an old deployment does not say; then `old_profile` counts, if there is one.
    """

    status: str
    attachments: bool | None
    auto_start: bool
    old_profile: Profile | None
    endpoint: str | None

    @property
    def active(self) -> bool:
        """It may be used; one that does not say so may, too."""
        return self.status.lower() in ("", "active")

    def profile_with(self, told: Profile) -> Profile:
        """The profile that counts in a session whose answer `told` one."""
        if self.attachments is None and self.old_profile is not None:
            return Profile(self.old_profile.types, self.old_profile.max_bytes, told.blocked)
        return told


def deployment(content: Mapping[str, object]) -> Deployment:
    """Read the configuration; what it does not say, or says in another shape, is left open."""
    messenger = _mapping(content.get("messenger"))
    conversations = _mapping(_mapping(messenger.get("apps")).get("conversations"))
    upload = _mapping(messenger.get("fileUpload"))
    modes = [_mapping(mode) for mode in _list(upload.get("modes"))]
    enabled, status, endpoint = upload.get("enableAttachments"), content.get("status"), None
    if isinstance(conversations.get("messagingEndpoint"), str):
        endpoint = str(conversations["messagingEndpoint"])
    return Deployment(
        status=status if isinstance(status, str) else "",
        attachments=enabled if isinstance(enabled, bool) else None,
        auto_start=_mapping(conversations.get("autoStart")).get("enabled") is True,
        old_profile=profile(
            [one for mode in modes for one in _list(mode.get("fileTypes"))], modes[0].get("maxFileSizeKB"), None
        )
        if modes
        else None,
        endpoint=endpoint,
    )


def endpoint(told: str | None, configured: str) -> str:
    """Where the WebSocket is: what the deployment says if it lies in the configured place, else `configured`.

    A deployment may move its socket within the organisation's domain and over TLS; a configuration that somebody else
    has written must not lead us anywhere else. On this host only the configured address itself is good enough.
    """
    try:
        found, ours = urlsplit((told or "").rstrip("/")), urlsplit(configured)
        _ = found.port
    except ValueError:
        return configured
    host, our_host = found.hostname or "", ours.hostname or ""
    domain = our_host.removeprefix("webmessaging.")
    inside = host == our_host or (domain != our_host and host.endswith("." + domain))
    plain = not (found.query or found.fragment or "@" in found.netloc)
    if found.scheme == "wss" and ours.scheme == "wss" and inside and plain:
        return found.geturl()
    return configured


def number(value: object) -> float | None:
    """A JSON number, whole or not; None for anything else, and for one too large to be written out."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _LARGEST:
        return None
    return value


def _word(entry: object) -> str:
    if isinstance(entry, Mapping):  # the session says {"type": "image/*"}, the configuration says "image/*"
        entry = entry.get("type")
    return entry.strip().lower() if isinstance(entry, str) else ""


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> Sequence[object]:
    return value if isinstance(value, list) else ()
