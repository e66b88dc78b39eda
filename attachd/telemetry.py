"""What attachd says of itself: one event, one line, on one stream.

`configure` sets up structlog and catches everything else that would print: library loggers, warnings, uncaught errors
of any thread. All of it goes through one sink, which masks secrets, makes names harmless, cuts long text and writes
each line in one go. A reader that went away costs lines, never the daemon.

Loggers are cached on first use and read the state of this module at every event, so a second `configure` (on reload)
reaches those that exist already.
"""

import asyncio
import contextlib
import io
import itertools
import json as jsonlib
import logging
import math
import re
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import date
from types import TracebackType
from typing import Any, TextIO
from urllib.parse import quote


@contextlib.contextmanager
def _missing(module: str) -> Iterator[None]:
    known = sys.modules.get(module)
    sys.modules[module] = None  # type: ignore[assignment]  # the import system's sign for a module that is not there
    try:
        yield
    finally:
        del sys.modules[module]
        if known is not None:
            sys.modules[module] = known


# Where rich is there, structlog takes it along, for a console that is not used here: 3 MB, kept for months.
with _missing("rich"):
    import structlog
    from structlog.typing import EventDict, WrappedLogger

_MAX_TEXT = 2048  # ours: enough for any detail, and no answer of a server fills the disk through the log
_MAX_DEPTH = 6
_MAX_ENTRIES = 100
_MAX_FRAMES = 40
_MAX_CHAIN = 8
_MAX_PENDING = 10
_SHORTEST_SECRET = 4  # shorter ones protect nothing, and masking every "a" would destroy the log
_KEPT_PER_KIND = 8  # a token is replaced every day; requests with the one before may still fail and be logged

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
_METHODS = {"warn": "warning", "exception": "error", "fatal": "critical", "msg": "info", "log": "info"}
_NAMES = frozenset({"file", "moved_to"})
"""Fields that hold names of files, which anybody who can write to an inbox chooses."""

_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
"""Control characters, line separators, everything that reorders or hides text, and surrogates. The joiners U+200C and
U+200D stay: names in Persian and some emoji need them, and they move nothing."""

_SURROGATE = re.compile("[\ud800-\udfff]")

_QUERY = re.compile(r"\b((?:https?|wss?)://[^\s?#'\"<>]*)[?#][^\s'\"<>]*", re.IGNORECASE)
_USER = re.compile(r"(://)[^\s/'\"<>]*@")
_CREDENTIALS = re.compile(
    r"\b(?:(bearer)(?:\s+|%20)(?!token\b)[\w.~+/=-]+|(basic)\s+[A-Za-z0-9+/=]{16,})", re.IGNORECASE
)
_NAME = r"(?:token|secret|signature|password|credential)\w{0,64}"
# The look at one letter first halves the time of a search.
_PARAMETER = re.compile(
    rf"(?=[tscpx])((?:x-amz-[a-z-]{{1,64}}|{_NAME})(?:=|%3d)(?:basic\s+)?)[^\s&'\"<>]+", re.IGNORECASE
)
_MEMBER = re.compile(rf"(?=[tscp])({_NAME}['\"]:\s*['\"])[^'\"]+", re.IGNORECASE)

_FOREIGN = (
    (re.compile(r"\?[^\s'\"<>]*=[^\s'\"<>]*"), "?…"),
    (re.compile(r"\b((?:bearer|basic)\s+)[\w.~+/=-]+", re.IGNORECASE), r"\1…"),
    (re.compile(rf"({_NAME}['\"]?\s*[=:>]\s*['\"]?)[^\s'\"<>&,;]+", re.IGNORECASE), r"\1…"),
)
"""Too much for texts of ours, in which `client_secret: missing` names a setting and `page?id=3` a file."""


def printable(name: str) -> str:
    r"""A file name fit for a log field, a terminal or a text file: one line, nothing hidden or reordered.

    Bytes that are no UTF-8 show as `\xNN`, control and bidirectional characters as their escapes.
    """
    return name if name.isascii() and name.isprintable() else _UNPRINTABLE.sub(_escape, name)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # how os.fsdecode keeps a byte that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


class _Secrets:
    """The values that must not show, the newest few of each kind."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kinds: dict[str, list[str]] = {}
        self._masked: tuple[str, ...] = ()

    def add(self, kind: str, values: Sequence[str]) -> None:
        with self._lock:
            known = self._kinds.setdefault(kind, [])
            known += [value for value in values if len(value) >= _SHORTEST_SECRET and value not in known]
            del known[:-_KEPT_PER_KIND]
            self._masked = _forms(value for kept in self._kinds.values() for value in kept)

    def clear(self) -> None:
        with self._lock:
            self._kinds, self._masked = {}, ()

    def mask(self, text: str) -> str:
        for secret in self._masked:
            if secret in text:
                text = text.replace(secret, "…")
        if "://" in text:
            text = _USER.sub(r"\1…@", _QUERY.sub(r"\1?…", text))
        if " " in text or "%" in text:
            text = _CREDENTIALS.sub(r"\1\2 …", text)
        if "=" in text or "%3" in text:
            text = _PARAMETER.sub(r"\1…", text)
        if '":' in text or "':" in text:
            text = _MEMBER.sub(r"\1…", text)
        return text


def _forms(secrets: Iterable[str]) -> tuple[str, ...]:
    """How secrets may look in a message: as they are, in a URL, inside quotes."""
    forms = {
        form
        for secret in secrets
        if secret
        for form in (secret, quote(secret, safe="", errors="replace"), repr(secret)[1:-1], jsonlib.dumps(secret)[1:-1])
    }
    # The longest first: where one secret contains another, nothing of the longer may be left standing.
    return tuple(sorted(forms, key=len, reverse=True))


_secrets = _Secrets()


def redact(kind: str, *secrets: str) -> None:
    """Mask these values in everything that is logged from now on; the last eight of a kind are remembered.

    Values of fewer than four characters are not masked.
    """
    _secrets.add(kind, secrets)


def without_secrets(text: str) -> str:
    """The text as the log would show it: secrets, credentials and the queries of URLs replaced by `…`."""
    return _secrets.mask(text)


def quotable(text: str, *secrets: str) -> str:
    """Somebody else's words, of some KiB at the most, as they may be shown; `secrets` are what was said to them.

    Masks all that `without_secrets` does, and more that looks like a secret: nobody knows how others put theirs.
    """
    text = _secrets.mask(text)
    for form in _forms(secrets):
        text = text.replace(form, "…")
    for pattern, mask in _FOREIGN:
        text = pattern.sub(mask, text)
    return text


class _Output:
    """Writes lines whole, and gives up on none but the one that fails."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        # Past the buffer, if there is one: a line that cannot be written must not be tried again at exit.
        buffer = getattr(stream, "buffer", None)
        raw = getattr(buffer, "raw", buffer)
        self._raw = raw if isinstance(raw, io.RawIOBase) else None
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self._torn = False
        # Re-entrant: a finalizer that runs during the write may warn.
        self._lock = threading.RLock()
        with contextlib.suppress(OSError, ValueError):
            stream.flush()

    def line(self, text: str) -> None:
        with self._lock, contextlib.suppress(OSError, ValueError):  # a closed pipe, a closed stream
            line = f"{text}\n".encode(self._encoding, "backslashreplace")
            if self._raw is None:
                self._stream.write(line.decode(self._encoding))
                self._stream.flush()
                return
            left = memoryview(b"\n" + line if self._torn else line)
            self._torn = True
            while left:
                written = self._raw.write(left)
                if written is None:
                    return  # a reader that lags behind a pipe which must not block
                left = left[written:]
            self._torn = False


class _State:
    """What `configure` was told; one object, so that cached loggers see the change."""

    threshold = _LEVELS["info"]
    render: Callable[[dict[str, Any]], str]
    output: _Output | None = None
    undo: contextlib.ExitStack | None = None


_state = _State()
_busy = threading.local()


class _Lines:
    """The logger at the bottom of structlog: the sink has written already, or the event was captured by a test."""

    def msg(self, *_args: object, **_fields: object) -> None:
        """Nothing is left to do."""

    debug = info = warning = warn = error = critical = fatal = exception = log = failure = err = msg


class _Bound(structlog.make_filtering_bound_logger("debug")):  # type: ignore[misc]
    """A logger whose level is looked up at each event."""

    def _proxy_to_logger(self, method_name: str, event: str | None = None, **fields: Any) -> Any:
        if _LEVELS[_METHODS.get(method_name, method_name)] < _state.threshold:
            return None
        return super()._proxy_to_logger(method_name, event, **fields)


def _sink(_logger: WrappedLogger, method: str, fields: EventDict) -> Any:
    _write(_METHODS.get(method, method), fields)
    raise structlog.DropEvent


_processors: list[Any] = [structlog.contextvars.merge_contextvars, _sink]


def configure(*, level: str, json: bool, stream: TextIO) -> None:
    """Send everything of `level` and above to `stream`: JSON lines, or text for people with colours on a terminal.

    Takes over standard library logging (warnings and errors; everything at level debug), `warnings` and the hooks for
    uncaught errors; `loop_exception_handler` is for the event loop, which does not exist yet. May be called again.
    """
    release()
    _state.threshold = _LEVELS[level]
    _state.render = _as_json if json else _ForPeople(colours=stream.isatty())
    _state.output = _Output(stream)
    structlog.configure(
        processors=_processors,
        wrapper_class=_Bound,
        context_class=dict,
        logger_factory=lambda *_names: _Lines(),
        cache_logger_on_first_use=True,
    )
    _state.undo = _take_over(logging.DEBUG if level == "debug" else max(logging.WARNING, _LEVELS[level]))


def release() -> None:
    """Give back the hooks and forget the stream; events are dropped until the next `configure`."""
    if _state.undo is not None:
        _state.undo.close()
    _state.undo = _state.output = None


def _take_over(library_level: int) -> contextlib.ExitStack:
    undo = contextlib.ExitStack()
    root, forward, before = logging.getLogger(), _Forward(), logging.getLogger().level
    root.addHandler(forward)
    root.setLevel(library_level)
    undo.callback(root.setLevel, before)
    undo.callback(root.removeHandler, forward)
    for owner, name, hook in (
        (sys, "excepthook", _uncaught),
        (sys, "unraisablehook", _unraisable),
        (threading, "excepthook", _uncaught_in_thread),
        (warnings, "showwarning", _warned),
    ):
        undo.callback(_restore, owner, name, hook, getattr(owner, name))
        setattr(owner, name, hook)
    return undo


def _restore(owner: object, name: str, ours: object, theirs: object) -> None:
    if getattr(owner, name) is ours:  # else somebody has taken it over from us since
        setattr(owner, name, theirs)


class _Forward(logging.Handler):
    """Brings the records of libraries to the sink."""

    def createLock(self) -> None:  # noqa: N802  the standard library's name
        """No lock: the output has one, and a finalizer that logs during a write would take the two in reverse."""
        self.lock = None

    def emit(self, record: logging.LogRecord) -> None:
        try:
            detail = record.getMessage()
        except Exception:  # noqa: BLE001  a library's wrong arguments are no reason to lose its message
            detail = str(record.msg)
        level = next((name for name in reversed(_LEVELS) if record.levelno >= _LEVELS[name]), "debug")
        fields: EventDict = {"event": "library.logged", "logger": record.name, "detail": detail}
        if record.exc_info and record.exc_info[1]:
            fields["exc_info"] = record.exc_info[1]
        _write(level, fields)


def _warned(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,  # noqa: ARG001  the signature is the standard library's
    line: str | None = None,  # noqa: ARG001  the same
) -> None:
    source = f"{filename}:{lineno}"
    _write(
        "warning",
        {"event": "library.warned", "category": category.__name__, "detail": str(message), "source": source},
    )


def _uncaught(_kind: type[BaseException], error: BaseException, _trace: TracebackType | None) -> None:
    _write("critical", {"event": "error.uncaught", "where": "main", "exc_info": error})


def _uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is not SystemExit:
        name = args.thread.name if args.thread else "thread"
        _write("critical", {"event": "error.uncaught", "where": name, "exc_info": args.exc_value or args.exc_type})


def _unraisable(args: Any) -> None:
    where = args.err_msg or "Exception ignored in"
    subject = getattr(args.object, "__qualname__", None) or type(args.object).__name__
    error = args.exc_value or args.exc_type
    _write("error", {"event": "error.uncaught", "where": f"{where} {subject}", "exc_info": error})


def loop_exception_handler(_loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
    """For `loop.set_exception_handler`: what nobody awaited or caught becomes an event."""
    fields: EventDict = {"event": "error.uncaught", "where": "event loop", "detail": str(context.get("message", ""))}
    task = context.get("task") or context.get("future")
    if isinstance(task, asyncio.Task):
        fields["task"] = task.get_name()
    if context.get("exception") is not None:
        fields["exc_info"] = context["exception"]
    _write("error", fields)


def _write(level: str, fields: EventDict) -> None:
    output = _state.output
    if output is None or _LEVELS[level] < _state.threshold:
        return
    pending: list[tuple[str, EventDict]] | None = getattr(_busy, "pending", None)
    if pending is not None:
        # Rendering itself warned or logged, in a `__repr__` or a finalizer: that comes after the line at hand.
        pending.append((level, fields))
        return
    _busy.pending = pending = [(level, fields)]
    try:
        for one_level, one_fields in itertools.islice(pending, _MAX_PENDING):
            output.line(_line(one_level, one_fields))
    finally:
        del _busy.pending


def _line(level: str, fields: EventDict) -> str:
    try:
        return _state.render(_cleaned(level, fields))
    except Exception as error:  # noqa: BLE001  an event that cannot be rendered is a bug, but no reason to stop
        failed = {"timestamp": _now(), "level": "error", "event": "log.failed", "detail": type(error).__name__}
        return _state.render(failed)


def _cleaned(level: str, fields: EventDict) -> dict[str, Any]:
    cleaned: dict[str, Any] = {"timestamp": _now(), "level": level, "event": _text(str(fields.pop("event", "")))}
    error = _error_of(fields.pop("exc_info", None))
    fields.pop("stack_info", None)
    for key, value in fields.items():
        name = key if key.isidentifier() else _text(key)
        if name in cleaned or name == "exception":
            name += "_"
        cleaned[name] = _value(printable(value) if name in _NAMES and isinstance(value, str) else value, 0)
    if error is not None:
        cleaned["exception"] = _exception(error)
    return cleaned


def _text(text: str) -> str:
    if not text.isascii():
        # Half a character to a JSON parser, and many refuse the whole line.
        text = _SURROGATE.sub(_escape, text)
    text = _secrets.mask(text)
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"


def _value(value: Any, depth: int) -> Any:
    match value:
        case str():
            return _text(value if type(value) is str else str.__str__(value))
        case None | bool() | int():
            return value
        case float():
            return value if math.isfinite(value) else repr(value)
        case date():
            return value.isoformat()
        case _ if depth >= _MAX_DEPTH:
            return _text(_spoken(value))
        case Mapping():
            entries = list(value.items())[:_MAX_ENTRIES]
            return {_text(str(key)): _value(inner, depth + 1) for key, inner in entries}
        case list() | tuple() | AbstractSet():
            return [_value(inner, depth + 1) for inner in list(value)[:_MAX_ENTRIES]]
    return _text(_spoken(value))


def _spoken(value: object) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001  whatever a foreign object does, the event goes out
        return f"<{type(value).__name__}>"


def _error_of(given: Any) -> BaseException | None:
    if given is True:
        return sys.exc_info()[1]
    if isinstance(given, tuple):
        given = given[1]
    return given if isinstance(given, BaseException) else None


def _exception(error: BaseException) -> list[dict[str, Any]]:
    """The error and what it came from, the latest first; frames from the outermost call to the place it was raised."""
    chain: list[dict[str, Any]] = []
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen and len(chain) < _MAX_CHAIN:
        seen.add(id(current))
        chain.append(_one_exception(current, len(chain)))
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return chain


def _one_exception(error: BaseException, depth: int) -> dict[str, Any]:
    stack = traceback.extract_tb(error.__traceback__)
    frames = [
        _text(f"{frame.filename}:{frame.lineno} in {frame.name}: {frame.line or ''}".rstrip(": ")) for frame in stack
    ]
    if len(frames) > _MAX_FRAMES:
        frames = [*frames[: _MAX_FRAMES // 4], "…", *frames[-_MAX_FRAMES * 3 // 4 :]]
    told: dict[str, Any] = {
        "type": type(error).__qualname__,
        "message": _text(_spoken(error)),
        "frames": frames,
    }
    if isinstance(error, BaseExceptionGroup) and depth < _MAX_DEPTH:
        told["exceptions"] = [_one_exception(inner, depth + 1) for inner in error.exceptions[:_MAX_CHAIN]]
    return told


_second: tuple[int, str] = (0, "")


def _now() -> str:
    global _second  # noqa: PLW0603  one tuple, replaced whole: the date of this second, formatted once
    now = time.time()
    whole = int(now)
    if _second[0] != whole:
        _second = (whole, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)))
    return f"{_second[1]}.{int((now - whole) * 1000):03d}Z"


_encode = jsonlib.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode


def _as_json(cleaned: dict[str, Any]) -> str:
    return _encode(cleaned)


_COLOURS = {
    "debug": "\x1b[2m",
    "info": "\x1b[32m",
    "warning": "\x1b[33m",
    "error": "\x1b[31m",
    "critical": "\x1b[1;31m",
}
_BOLD, _DIM, _PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[0m"


class _ForPeople:
    """Local time, level, event, fields; the lines of a traceback are indented, so that no text in them passes for one
    of ours."""

    def __init__(self, *, colours: bool) -> None:
        self._colours = colours

    def __call__(self, cleaned: dict[str, Any]) -> str:
        level, event = cleaned["level"], printable(cleaned["event"])
        clock = time.strftime("%H:%M:%S")
        head = (
            f"{self._in(_DIM, clock)} {self._in(_COLOURS[level], f'{level:<8}')} {self._in(_BOLD, event)}"
            if self._colours
            else f"{clock} {level:<8} {event}"
        )
        told = [
            f"{self._in(_DIM, printable(key) + '=')}{_shown(value)}"
            for key, value in cleaned.items()
            if key not in ("timestamp", "level", "event", "exception")
        ]
        return "\n".join([" ".join([head, *told]), *_traceback(cleaned.get("exception", ()), "    ")])

    def _in(self, colour: str, text: str) -> str:
        return f"{colour}{text}{_PLAIN}" if self._colours else text


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return printable(jsonlib.dumps(value, ensure_ascii=False))
    text = printable("-" if value is None else str(value).lower() if isinstance(value, bool) else str(value))
    return (
        jsonlib.dumps(text, ensure_ascii=False).replace("\\\\", "\\")
        if " " in text or '"' in text or not text
        else text
    )


def _traceback(chain: Sequence[dict[str, Any]], indent: str) -> list[str]:
    lines: list[str] = []
    for position, told in enumerate(chain):
        cause = "caused by " if position else ""
        lines.append(f"{indent}{cause}{told['type']}: {printable(told['message'])}")
        lines += [f"{indent}  {printable(frame)}" for frame in told["frames"]]
        for inner in told.get("exceptions", ()):
            lines += _traceback([inner], indent + "  ")
    return lines
