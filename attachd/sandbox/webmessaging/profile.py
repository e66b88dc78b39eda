"""The content profile: which files a session may send, as told to the client and as judged. Pure."""

from dataclasses import dataclass
from typing import Final, Self

from attachd.sandbox.webmessaging.settings import MessagingSettings

FEATURE_OFF: Final = 4000
TYPE_REFUSED: Final = 4001
SIZE_REFUSED: Final = 4002
NAME_INVALID: Final = 4004
NAME_TOO_LONG: Final = 4005
EMPTY: Final = 4102

_NAME_LIMIT: Final = 1024  # names must be shorter than this


@dataclass(frozen=True, slots=True)
class Profile:
    """`blocked_extensions` have a leading dot and win over the types."""

    media_types: tuple[str, ...]
    max_size_kb: int
    kilobyte_bytes: int
    blocked_extensions: tuple[str, ...]

    @classmethod
    def of(cls, settings: MessagingSettings, *, may_attach: bool) -> Self:
        allowed = settings.media_types if may_attach and settings.enable_attachments != "no" else ()
        return cls(allowed, settings.max_file_size_kb, settings.kilobyte_bytes, settings.blocked_extensions)

    @property
    def off(self) -> bool:
        return not self.media_types or not self.max_size_kb

    def told(self) -> dict[str, object]:
        """`allowedMedia` as the client sees it."""
        inbound: dict[str, object] = {"fileTypes": [{"type": one} for one in self.media_types]}
        if self.max_size_kb:
            inbound["maxFileSizeKB"] = self.max_size_kb
        return {"inbound": inbound}

    def allows(self, file_name: str, file_type: str) -> bool:
        extension = "." + file_name.rpartition(".")[2].lower()
        if extension in {one.lower() for one in self.blocked_extensions}:
            return False
        return any(in_range(file_type, one) for one in self.media_types)

    def objection(self, file_name: str, file_type: str, size_bytes: int, *, judge_type: bool) -> tuple[int, str] | None:
        """Code and text of what is wrong with a file; None when it may come."""
        stem, dot, extension = file_name.rpartition(".")
        if self.off:
            return FEATURE_OFF, "Attachments are not available."
        if len(file_name) >= _NAME_LIMIT:
            return NAME_TOO_LONG, f"fileName must be shorter than {_NAME_LIMIT} characters."
        if not (stem and dot and extension) or not _is_plain(file_name):
            return NAME_INVALID, "fileName must be a plain name with an extension."
        if size_bytes < 1:
            return EMPTY, "The file is empty."
        if size_bytes // self.kilobyte_bytes > self.max_size_kb:
            return SIZE_REFUSED, f"The file is larger than {self.max_size_kb} KB."
        if judge_type and not self.allows(file_name, file_type):
            return TYPE_REFUSED, f"Files of type {file_type} with this extension are not allowed."
        return None


def in_range(file_type: str, media_range: str) -> bool:
    """Whether a type is the one that is named, or within image/* or */*; upper and lower case are the same."""
    main, _, sub = file_type.lower().partition("/")
    wanted_main, _, wanted_sub = media_range.lower().partition("/")
    return wanted_main in ("*", main) and wanted_sub in ("*", sub) and bool(main and sub)


def _is_plain(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # half a character
        return False
    return "/" not in name and not any(sign < " " for sign in name)


def media_kind(file_type: str) -> str:
    main = file_type.partition("/")[0].lower()
    return {"image": "Image", "video": "Video", "audio": "Audio"}.get(main, "File")
