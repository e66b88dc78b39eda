"""The config as frozen objects, and what each key means.

The docstrings below the fields are what editors show: they become the descriptions in the JSON Schema. A field whose
key is spelled differently in the file (`settle` is `settle_s` here, with its unit) carries the key as its alias.
Validators say what is wrong in words that follow the key's path; they never quote a value that may be a secret.
"""

import os
import re
import string
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    SecretStr,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import CoreSchema, core_schema

from attachd.config.network import bypasses_proxy, is_loopback, split_url
from attachd.config.units import duration_from, size_from
from attachd.model import InboxName, Routing, Skill

MESSAGE_PLACEHOLDERS = ("name", "inbox", "size", "received", "id")
"""What an inbox's message may name with a `$`; attachd fills in each one for every file."""

_MAX_MESSAGE = 4096  # the room a web messaging text has at the platform
_MAX_NAME = 100  # ours: an inbox's name is a column in `status` and a label of every metric
_MAX_SOCKET_PATH = 107  # sun_path has 108 bytes, one of them for the terminating zero

MAX_ATTRIBUTES_BYTES = 2048  # what a web messaging deployment takes along with a message
_SPECIFIC_HOSTS = ("login.", "api.", "api-cdn.", "apps.", "webmessaging.")
_URL_DEFAULTS = {
    "login_url": "https://login.",
    "api_url": "https://api.",
    "messaging_url": "wss://webmessaging.",
    "config_url": "https://api-cdn.",
}
_MIME_GLOB = re.compile(r"[A-Za-z0-9!#$&^_.+*-]+/[A-Za-z0-9!#$&^_.+*-]+")
_DOMAIN = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})*")


def _absolute(path: Path) -> Path:
    if str(path).startswith("~"):
        raise ValueError("starts with ~, which is not expanded; write the path in full")
    if not path.is_absolute():
        raise ValueError(f"{str(path)!r} is not absolute; start it with /")
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in str(path)):
        raise ValueError("contains control characters; is a backslash sequence in double quotes meant?")
    return path


def _single_word(text: str) -> str:
    if not text or not text.isprintable() or any(character.isspace() for character in text):
        raise ValueError("must be one word without spaces")
    return text


def _glob(pattern: str) -> str:
    if not pattern:
        raise ValueError('is empty; "*" stands for every name')
    if "/" in pattern:
        raise ValueError("contains a /; patterns are matched against the name alone")
    if pattern.startswith("!"):
        raise ValueError("starts with !; list what is not wanted under exclude")
    if re.search(r"\{[^}]*,[^}]*\}", pattern):
        raise ValueError("contains {…,…}, which is not understood; write one pattern for each")
    return pattern


def _mime_glob(pattern: str) -> str:
    if not _MIME_GLOB.fullmatch(pattern):
        raise ValueError('is not a type; write it like "application/pdf", "image/*" or "*/*"')
    return pattern.lower()


def _host_name(name: str) -> str:
    if not _DOMAIN.fullmatch(name.removeprefix(".")):
        raise ValueError("is not a host name; write it like amazonaws.com, without https:// or a path")
    return name.removeprefix(".").lower()


AbsolutePath: TypeAlias = Annotated[Path, AfterValidator(_absolute)]
Word: TypeAlias = Annotated[str, AfterValidator(_single_word)]
Glob: TypeAlias = Annotated[str, AfterValidator(_glob)]
MimeGlob: TypeAlias = Annotated[str, AfterValidator(_mime_glob)]
HostName: TypeAlias = Annotated[str, AfterValidator(_host_name)]

_DURATION_SCHEMA: dict[str, Any] = {
    "anyOf": [{"type": "number", "minimum": 0}, {"type": "string"}],
    "examples": ["500ms", "20s", "1h30m"],
}
_SIZE_SCHEMA: dict[str, Any] = {
    "anyOf": [{"type": "integer", "minimum": 1}, {"type": "string"}],
    "examples": ["10MiB", "25MiB"],
}
Seconds: TypeAlias = Annotated[float, BeforeValidator(duration_from), WithJsonSchema(_DURATION_SCHEMA)]
Bytes: TypeAlias = Annotated[int, BeforeValidator(size_from), WithJsonSchema(_SIZE_SCHEMA)]

# Numbers and booleans may stand there unquoted: they are read as the text they are.
MetadataValue: TypeAlias = Annotated[str, WithJsonSchema({"type": ["string", "number", "boolean"]})]


class _Section(BaseModel):
    """A part of the config. By name or by key: code says `settle_s=0`, the file says `settle: 0s`."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        populate_by_name=True,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
    )


class Platform(_Section):
    """The Genesys Cloud organisation and how it is reached."""

    gateway: Literal["webchat", "webmessaging"] = "webchat"
    """How the organisation takes documents: webmessaging is the WebSocket guest protocol of a web messaging deployment,
    webchat a REST guest API. Default: webchat."""

    environment: str = ""
    """Domain of the organisation's region, such as mypurecloud.com or mypurecloud.de; gives login.<environment> and
    api.<environment>. Default: $GENESYS_ENVIRONMENT."""

    client_id: str = ""
    """Id of the OAuth client (grant type Client Credentials). Default: $GENESYS_CLIENT_ID."""

    client_secret: SecretStr = SecretStr("")
    """Secret of the OAuth client. Better kept out of this file. Default: client_secret_file, else the systemd
    credential client_secret, else $GENESYS_CLIENT_SECRET."""

    client_secret_file: AbsolutePath | None = None
    """File that holds the client secret and nothing else. Default: none."""

    queue_id: Word | None = None
    """Queue for inboxes that name none of their own. Default: $GENESYS_QUEUE_ID."""

    deployment_id: Word | None = None
    """Web messaging deployment; needed by gateway webmessaging, and for it only. Default: none."""

    login_url: str = ""
    """Where tokens come from. Default: https://login.<environment>. http:// is accepted for loopback addresses only."""

    api_url: str = ""
    """Where the guest API is. Default: https://api.<environment>. http:// is accepted for loopback addresses only."""

    messaging_url: str = ""
    """Where the WebSocket of gateway webmessaging is. Default: wss://webmessaging.<environment>. ws:// is accepted for
    loopback addresses only."""

    config_url: str = ""
    """Where the public configurations of deployments are. Default: https://api-cdn.<environment>. http:// is accepted
    for loopback addresses only."""

    origin: str = ""
    """Whom gateway webmessaging says it comes from: one of the domains the deployment allows, where it restricts them.
    Default: https:// and the host of messaging_url."""

    ca_file: AbsolutePath | None = None
    """PEM file with certificates to trust besides the system's; verification cannot be turned off. Default: none."""

    proxy: str | None = Field(default=None, repr=False)
    """HTTP proxy for everything that is not on this machine or in $NO_PROXY. Default: $HTTPS_PROXY."""

    no_proxy: SkipJsonSchema[tuple[str, ...]] = ()
    """The entries of $NO_PROXY; not a key of the file."""

    upload_hosts: tuple[HostName, ...] = ()
    """Hosts, or ends of host names, that files may be uploaded to. Default: any that the platform names."""

    requests_per_second: float = Field(default=100, gt=0, le=10_000)
    """Calls with a token in one second, over all inboxes. Default: 100, what the platform allows one client."""

    max_file_size: Bytes = Field(default=10 * 1024 * 1024, ge=1)
    """Largest file the organisation accepts, as 10MiB or in bytes. Default: 10MiB; enhanced organisations
    take 25MiB."""

    @field_validator("environment")
    @classmethod
    def _environment(cls, value: str) -> str:
        value = value.strip().rstrip(".").lower()
        if not value:
            return value
        if "://" in value or not _DOMAIN.fullmatch(value):
            raise ValueError("is not a domain; write it like mypurecloud.com, without https:// and without a path")
        for prefix in _SPECIFIC_HOSTS:
            if value.startswith(prefix):
                raise ValueError(f"starts with {prefix}; leave that away, attachd puts it in front itself")
        return value

    @field_validator("client_id")
    @classmethod
    def _client_id(cls, value: str) -> str:
        if value:
            _single_word(value)
        if ":" in value:
            raise ValueError("contains a colon, which no client id does; is the secret with it?")
        return value

    @field_validator("client_secret")
    @classmethod
    def _client_secret(cls, value: SecretStr) -> SecretStr:
        if value.get_secret_value() and not value.get_secret_value().isprintable():
            raise ValueError("contains line breaks or control characters; it must be the secret and nothing else")
        return value

    @field_validator(*_URL_DEFAULTS)
    @classmethod
    def _url(cls, value: str, info: ValidationInfo) -> str:
        default = _URL_DEFAULTS[str(info.field_name)]
        if not value:
            environment = info.data.get("environment")
            return f"{default}{environment}" if environment else ""
        safe = default.partition(":")[0]
        plain = safe.removesuffix("s")
        try:
            parts = split_url(value)
        except ValueError:
            raise ValueError(f"is not a URL; write it like {default}mypurecloud.com") from None
        if parts.scheme not in (safe, plain):
            raise ValueError(f"must start with {safe}://")
        if parts.scheme == plain and not is_loopback(parts.hostname or ""):
            raise ValueError(
                f"must start with {safe}://; {plain}:// is accepted for this machine only (127.0.0.1, localhost)"
            )
        if "@" in parts.netloc or "?" in value or "#" in value:
            raise ValueError("must be a plain address, without user, password, ? and #")
        return value.rstrip("/")

    @field_validator("origin")
    @classmethod
    def _origin(cls, value: str, info: ValidationInfo) -> str:
        if not value:
            messaging_url = info.data.get("messaging_url")
            return f"https://{urlsplit(messaging_url).netloc}" if messaging_url else ""
        # A bare host is no origin by the book, but the vendor's own mobile client sends one.
        scheme, _, host = value.rpartition("://")
        if not re.fullmatch(r"[A-Za-z0-9.\[\]:-]+", host) or scheme not in ("https", "http", ""):
            raise ValueError("is not an origin; write it like https://www.example.com, without a path")
        return value

    @field_validator("proxy")
    @classmethod
    def _proxy(cls, value: str | None) -> str | None:
        if not value:
            return None
        url = value if "://" in value else f"http://{value}"
        try:
            parts = split_url(url)
        except ValueError:
            raise ValueError("is not a URL; write it like http://proxy.example.com:3128") from None
        if parts.scheme not in ("http", "https"):
            raise ValueError("must be an HTTP proxy, like http://proxy.example.com:3128")
        return url

    def proxy_for(self, url: str) -> str | None:
        """The proxy a request to this URL goes through; None means directly, as always on this machine."""
        return None if self.proxy is None or bypasses_proxy(url, self.no_proxy) else self.proxy


class DeliveryRules(_Section):
    """How files are brought to the platform."""

    concurrency: int = Field(default=16, ge=1, le=256)
    """Files under way at the same time, over all inboxes. Default: 16, which uses up a quota of 100 requests a second
    where the platform answers within a tenth of a second; where it takes twice as long, set 32."""

    on_unknown_outcome: Literal["resend", "hold"] = "resend"
    """What to do when nobody can say whether a message was accepted: post it again under the same ids, or put the file
    into failed/ for a person to look. Default: resend."""

    max_attempts: int = Field(default=5, ge=1)
    """Attempts that may fail by the file's own fault before it goes to failed/; an outage uses none. Default: 5."""

    shutdown_grace_s: Seconds = Field(default=20.0, ge=0, le=3600, validation_alias="shutdown_grace")
    """How long files under way may still finish after the signal to stop, as 20s. Default: 20s; systemd's
    TimeoutStopSec must be at least 30 s longer."""


class SkillForm(BaseModel):
    """A routing skill as it is written in the file."""

    model_config = ConfigDict(
        extra="forbid", from_attributes=True, hide_input_in_errors=True, use_attribute_docstrings=True
    )

    id: str = Field(min_length=1)
    """The skill's id, as the platform names it."""

    level: int = Field(default=1, ge=0)
    """The level asked for. Default: 1."""


class _ReadAsSkillForm:
    @staticmethod
    def __get_pydantic_core_schema__(_source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(
            lambda form: Skill(form.id, form.level), handler.generate_schema(SkillForm)
        )


class Inbox(_Section):
    """One watched folder."""

    path: AbsolutePath
    """The folder, as an absolute path. The only key an inbox needs."""

    name: InboxName = InboxName("")
    """What the inbox is called in logs and commands; unique. Default: the folder's name."""

    queue_id: Word | None = None
    """Queue its conversations go to. Default: platform.queue_id."""

    skills: tuple[Annotated[Skill, _ReadAsSkillForm], ...] = ()
    """Skills an agent must have. Default: none."""

    metadata: Mapping[str, MetadataValue] = Field(default_factory=dict)
    """Names and values the platform keeps with the guest session. Default: none."""

    message: str = "Document $name attached for review. Please acknowledge."
    """Text that comes with the file, at most 4096 characters. $name, $inbox, $size, $received and $id stand for the
    file's name, the inbox's name, the size in words, the time it was taken and the delivery's id; $$ is a dollar.
    Default: Document $name attached for review. Please acknowledge."""

    include: tuple[Glob, ...] = Field(default=("*",), min_length=1)
    """Patterns for the names to take. Default: every name."""

    exclude: tuple[Glob, ...] = ()
    """Patterns for the names to leave alone, whatever include says. Default: none."""

    allow_types: tuple[MimeGlob, ...] = Field(default=("*/*",), min_length=1)
    """MIME types to deliver, checked against the content; other files go to failed/. Default: every type."""

    recursive: bool = False
    """Whether files in sub-folders are taken too. Default: false."""

    settle_s: Seconds = Field(default=2.0, ge=0, le=86_400, validation_alias="settle")
    """How long a file must stay unchanged before it counts as complete, as 2s. Default: 2s; longer where producers
    write with pauses over a network file system."""

    watch: Literal["auto", "native", "polling"] = "auto"
    """How new files are noticed: native asks the kernel, polling looks every rescan, auto polls where the kernel
    cannot know (NFS, SMB, FUSE). Default: auto."""

    rescan_s: Seconds = Field(default=60.0, gt=0, le=86_400, validation_alias="rescan")
    """How often the folder is looked through whatever was noticed, as 60s. Default: 60s."""

    sent: str = "sent"
    """Folder for delivered files, relative to the inbox. Default: sent."""

    failed: str = "failed"
    """Folder for files that were given up, relative to the inbox. Default: failed."""

    @field_validator("path")
    @classmethod
    def _path(cls, value: Path) -> Path:
        if os.path.normpath(value).strip("/") == "":
            raise ValueError("is the root folder, which cannot be an inbox")
        return value

    @field_validator("name")
    @classmethod
    def _name(cls, value: str, info: ValidationInfo) -> str:
        if value == "":
            path = info.data.get("path")
            value = os.path.basename(os.path.normpath(path)) if path else "inbox"
        if len(value) > _MAX_NAME or value != value.strip() or not value.isprintable() or "/" in value:
            raise ValueError("must be 1 to 100 printable characters without /, with no space at either end; set it")
        return value

    @field_validator("metadata")
    @classmethod
    def _metadata(cls, value: Mapping[str, str]) -> Mapping[str, str]:
        if "" in value:
            raise ValueError("has an empty name")
        return value

    @field_validator("message")
    @classmethod
    def _message(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("is empty; agents need some text with the file")
        template = string.Template(value)
        if not template.is_valid():
            raise ValueError("has a $ that starts no placeholder; write $$ for a dollar")
        unknown = sorted(set(template.get_identifiers()) - set(MESSAGE_PLACEHOLDERS))
        if unknown:
            known = ", ".join(f"${name}" for name in MESSAGE_PLACEHOLDERS)
            raise ValueError(f"has the unknown placeholder ${unknown[0]}; there are {known}, and $$ for a dollar")
        if len(template.substitute(dict.fromkeys(MESSAGE_PLACEHOLDERS, ""))) > _MAX_MESSAGE:
            raise ValueError(f"is longer than {_MAX_MESSAGE} characters")
        return value

    @field_validator("sent", "failed")
    @classmethod
    def _subfolder(cls, value: str) -> str:
        parts = value.rstrip("/").split("/")
        if value.startswith("/"):
            raise ValueError("must be relative to the inbox: files are moved there by one rename")
        if not value.isprintable() or any(part == "" or part.startswith(".") for part in parts):
            raise ValueError('must be a folder inside the inbox such as "sent", no part of it starting with a dot')
        return "/".join(parts)

    @property
    def metadata_bytes(self) -> int:
        """How large the metadata is as the platform counts: all names and values as UTF-8."""
        return sum(len(text.encode("utf-8", "replace")) for pair in self.metadata.items() for text in pair)

    @property
    def routing(self) -> Routing:
        """Where its conversations go."""
        return Routing(self.queue_id, self.skills, self.metadata)


class Log(_Section):
    """What is written about each file, and where."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least important kind of event to write. Default: info."""

    format: Literal["auto", "json", "console"] = "auto"
    """One JSON object a line, or text for people; auto is console on a terminal and json else. Default: auto."""

    file: AbsolutePath | None = None
    """Write to this file instead of standard output; after SIGHUP it is opened anew. Default: standard output."""


class Admin(_Section):
    """The local page for health, metrics and status."""

    listen: str = "127.0.0.1:8722"
    """Where it listens: host:port on this machine, unix:/path, or off. Default: 127.0.0.1:8722."""

    @field_validator("listen")
    @classmethod
    def _listen(cls, value: str) -> str:
        if value == "off":
            return value
        if value.startswith("unix:"):
            path = _absolute(Path(value.removeprefix("unix:")))
            if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
                raise ValueError(f"names a socket with more than {_MAX_SOCKET_PATH} bytes; choose a shorter path")
            return value
        host, colon, port = value.rpartition(":")
        if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
            raise ValueError("must be host:port, unix:/path or off")
        if (":" in host and not (host.startswith("[") and host.endswith("]"))) or not is_loopback(host):
            raise ValueError("must be on this machine: 127.0.0.1:8722, [::1]:8722, localhost:8722, unix:/path or off")
        return value


class Config(_Section):
    """The settings of attachd."""

    platform: Platform = Field(default_factory=Platform)
    delivery: DeliveryRules = Field(default_factory=DeliveryRules)
    inboxes: tuple[Inbox, ...] = Field(min_length=1)
    """The watched folders, at least one."""

    state_dir: AbsolutePath
    """Folder for the journal and the lock. Default: $STATE_DIRECTORY, else $XDG_STATE_HOME/attachd, else
    ~/.local/state/attachd."""

    log: Log = Field(default_factory=Log)
    admin: Admin = Field(default_factory=Admin)


def keys_of(section: type[BaseModel]) -> tuple[str, ...]:
    """The keys a section has in the file, in their order."""
    return tuple(_keys(section))


def _keys(section: type[BaseModel]) -> Iterable[str]:
    for name, field in section.model_fields.items():
        if name != "no_proxy":
            yield str(field.validation_alias or name)


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of the file, for editors. What the environment may give is not required."""
    schema = Config.model_json_schema(by_alias=True, mode="validation")
    schema["required"] = ["inboxes"]
    _tidy(schema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _tidy(part: object) -> None:
    if isinstance(part, dict):
        # The titles only repeat the Python names.
        if isinstance(part.get("title"), str):
            del part["title"]
        if part.get("default", 0) in (None, ""):
            del part["default"]  # it stands for the environment's value or a derived one; the description says which
        if isinstance(part.get("description"), str):
            part["description"] = " ".join(part["description"].split())
        for inner in part.values():
            _tidy(inner)
    elif isinstance(part, list):
        for inner in part:
            _tidy(inner)
