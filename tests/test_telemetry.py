"""What a reader of the log sees, and what nobody may see."""

import asyncio
import gc
import io
import json
import logging
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from attachd import telemetry

log = structlog.get_logger()


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    telemetry.release()
    telemetry._secrets.clear()
    structlog.reset_defaults()


class Stream(io.StringIO):
    """A place to log to."""

    def events(self) -> list[dict[str, Any]]:
        assert self.getvalue().isascii()
        return [json.loads(line) for line in self.getvalue().splitlines()]


class Terminal(Stream):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def stream() -> Stream:
    stream = Stream()
    telemetry.configure(level="info", json=True, stream=stream)
    return stream


def test_an_event_is_one_json_object_with_time_level_and_name_first(stream):
    """The order is for people who read the raw lines; the time is UTC in milliseconds."""
    log.info("file.sent", size=3, ok=True, reason=None)
    (event,) = stream.events()
    assert list(event) == ["timestamp", "level", "event", "size", "ok", "reason"]
    assert (event["level"], event["event"], event["size"]) == ("info", "file.sent", 3)
    assert len(event["timestamp"]) == len("2026-05-01T12:00:00.000Z")
    assert event["timestamp"].endswith("Z")


def test_bound_fields_are_in_every_event(stream):
    """What is bound around a delivery shows in all that happens within."""
    with structlog.contextvars.bound_contextvars(inbox="claims"):
        log.warning("file.deferred")
    assert stream.events()[0]["inbox"] == "claims"


def test_less_important_events_are_left_out(stream):
    """Level info shows no debug events."""
    log.debug("upload.progressed")
    log.error("file.failed")
    assert [event["event"] for event in stream.events()] == ["file.failed"]


def test_a_second_configure_reaches_loggers_that_exist(stream):
    """After a reload an old logger writes to the new stream, at the new level."""
    log.info("first")
    second = Stream()
    telemetry.configure(level="debug", json=True, stream=second)
    log.debug("second")
    assert [event["event"] for event in stream.events()] == ["first"]
    assert [event["event"] for event in second.events()] == ["second"]


def test_a_field_cannot_pass_for_one_of_ours(stream):
    """A caller's `level` or `timestamp` gets another name."""
    log.info("x", level="error", timestamp="1970")
    (event,) = stream.events()
    assert (event["level"], event["level_"], event["timestamp_"]) == ("info", "error", "1970")


# --- secrets


@pytest.mark.parametrize("as_json", [True, False])
def test_a_secret_shows_nowhere(as_json):
    """Not in text, nested values, keys, exceptions and their causes, nor in library messages and warnings."""
    stream = Stream()
    telemetry.configure(level="info", json=as_json, stream=stream)
    telemetry.redact("client_secret", 'pa$$ "w0rd/+')
    secret = 'pa$$ "w0rd/+'
    log.info(secret, a=[secret, {"b": (secret,), secret: 1}], c=Path(secret), d={secret})
    log.info("x", url="q=pa%24%24%20%22w0rd%2F%2B")
    logging.getLogger("aiohttp").error("sent %s", secret)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(secret, stacklevel=1)
    try:
        try:
            raise KeyError(secret)
        except KeyError as error:
            raise ValueError(f"with {secret}") from error
    except ValueError:
        log.exception("x")
    assert "w0rd" not in stream.getvalue()
    assert stream.getvalue().count("\n") >= 5


def test_the_newest_secrets_of_a_kind_are_masked_and_others_stay(stream):
    """Hundreds of tokens do not pile up, and do not push out the client secret."""
    telemetry.redact("client_secret", "first-secret")
    for number in range(100):
        telemetry.redact("token", f"token-{number:03}")
    log.info("x", a="first-secret token-099 token-092", b="token-000")
    event = stream.events()[0]
    assert event["a"] == "… … …"
    assert event["b"] == "token-000"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("PUT https://s3.example/b/k?X-Amz-Signature=abc&x=1 failed", "PUT https://s3.example/b/k?… failed"),
        ("url='https://h/p?a=b'", "url='https://h/p?…'"),
        ("HTTPS://H/p?a", "HTTPS://H/p?…"),
        ("wss://h/p?deploymentId=1", "wss://h/p?…"),
        ("https://user:pass@proxy:3128/", "https://…@proxy:3128/"),
        ("https://user:p@ss@proxy:3128/", "https://…@proxy:3128/"),
        ("https://pass@proxy:3128/", "https://…@proxy:3128/"),
        ("Authorization: Bearer abc.def-ghi", "Authorization: Bearer …"),
        ("authorization: bearer x", "authorization: bearer …"),
        ("the bearer token was refused", "the bearer token was refused"),
        ("Basic dXNlcjpwYXNzd29yZA==", "Basic …"),
        ("/b/k?X-Amz-Credential=abc&other=1", "/b/k?X-Amz-Credential=…&other=1"),
        ("/b/k?Password=abc&other=1", "/b/k?Password=…&other=1"),
        ("next_token%3dabc was sent", "next_token%3d… was sent"),
        ("secret=Basic abc", "secret=Basic …"),
        ('{"id": "1", "access_token":"abc def"}', '{"id": "1", "access_token":"…"}'),
        ("{'password': 'abc', 'id': 1}", "{'password': '…', 'id': 1}"),
        ("what? no url", "what? no url"),
        ("page?id=3.html", "page?id=3.html"),
        ("platform.client_secret: missing", "platform.client_secret: missing"),
    ],
)
def test_urls_lose_their_queries_and_headers_their_credentials(stream, text, shown):
    """A presigned URL is a secret, and so is what authorises a request."""
    log.info("x", detail=text)
    assert stream.events()[0]["detail"] == shown
    assert telemetry.without_secrets(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no 4711, but 'own w0rds' or own%20w0rds", "no …, but '…' or …"),
        ("known-secret", "…"),
        ("half a \ud83d", "half a …"),
        ("see https://h/p?x and \\/p?a=b", "see https://h/p?… and \\/p?…"),
        ("Basic abc", "Basic …"),
        ("password: abc, id: 1", "password: …, id: 1"),
        ("<SessionToken> abc </SessionToken>", "<SessionToken> … </SessionToken>"),
    ],
)
def test_others_are_quoted_without_anything_like_a_secret(text, shown):
    """Nobody knows how they put what they were told, so more is masked than in our own words."""
    telemetry.redact("token", "known-secret")
    assert telemetry.quotable(text, "own w0rds", "4711", "", "\ud83d") == shown


@pytest.mark.parametrize("piece", ["token", "x-amz-", "token':", "token': '", "://", "@", "secret ", "token=basic "])
def test_hostile_texts_are_masked_in_no_time(piece):
    """No pattern is slow on a text made to make it slow."""
    began = time.perf_counter()
    for text in (piece * 10_000, f"://{piece * 10_000}='", piece + " " * 50_000 + "='"):
        telemetry.without_secrets(text)
        telemetry.quotable(text[:4096])
    assert time.perf_counter() - began < 0.5


def test_a_secret_at_the_cut_is_masked_first(stream):
    """Long text is cut after masking, so that half a secret is never left over."""
    telemetry.redact("token", "SECRET" * 3)
    log.info("x", detail="a" * 2040 + "SECRET" * 3)
    assert "SECRET" not in stream.getvalue()
    log.info("x", detail="b" * 10_000)
    assert len(stream.events()[1]["detail"]) == 2048


# --- names and lines


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("scan.pdf", "scan.pdf"),
        ("Schaden Müller 保険.pdf", "Schaden Müller 保険.pdf"),
        ("a\nb\x1b[31m", r"a\x0ab\x1b[31m"),
        ("caf\udce9.pdf", r"caf\xe9.pdf"),
        ("evil\u202efdp.exe", r"evil\u202efdp.exe"),
        ("a\u2028b\x85c", r"a\u2028b\u0085c"),
        ("\ud83d", r"\ud83d"),
        ("tag\U000e0041", r"tag\U000e0041"),
        ("می\u200cخواهم", "می\u200cخواهم"),
    ],
)
def test_a_name_is_shown_on_one_line_with_nothing_hidden(name, shown):
    """Letters of every script stay; what controls, hides or reorders text shows as its escape."""
    assert telemetry.printable(name) == shown


@given(st.text(st.characters(exclude_categories=()), max_size=40))
def test_a_printable_name_stays_so(name):
    """It can be encoded, is one line to everybody, carries no escape sequence; and again is the same."""
    shown = telemetry.printable(name)
    assert len(shown.encode().decode().splitlines()) <= 1
    assert "\x1b" not in shown
    assert telemetry.printable(shown) == shown


@given(st.binary(max_size=40))
def test_every_name_a_disk_can_hold_makes_one_line(name):
    """JSON and text alike: one event is one line, whatever the bytes of the name."""
    for as_json in (True, False):
        stream = Stream()
        telemetry.configure(level="info", json=as_json, stream=stream)
        log.info("file.sent", file=os.fsdecode(name), detail=os.fsdecode(name))
        assert len(stream.getvalue().splitlines()) == 1
        assert stream.getvalue().encode("utf-8")


def test_a_name_cannot_forge_a_line_for_people():
    """A line break in a name shows as an escape, in a traceback too, whose lines are indented."""
    stream = Stream()
    telemetry.configure(level="info", json=False, stream=stream)
    name = "a\n12:00:00 info     file.sent"
    try:
        raise ValueError(name)
    except ValueError:
        log.exception("file.failed", file=name, detail=name)
    first, *rest = stream.getvalue().splitlines()
    assert first.count("\\x0a") == 2
    assert rest
    assert all(line.startswith("    ") for line in rest)


def test_colours_are_for_terminals_only():
    """A pipe gets plain text."""
    plain, terminal = Stream(), Terminal()
    for stream in (plain, terminal):
        telemetry.configure(level="info", json=False, stream=stream)
        log.info("file.sent", size=3)
    assert plain.getvalue().split(" ", 1)[1] == "info     file.sent size=3\n"
    assert "\x1b[" in terminal.getvalue()


# --- values


def test_any_value_can_be_logged(stream):
    """Numbers JSON has no word for, cycles, deep and wide values, objects that cannot even be shown."""

    class Broken:
        def __str__(self) -> str:
            raise RuntimeError

    cycle: list[Any] = []
    cycle.append(cycle)
    log.info("x", a=float("nan"), b=float("inf"), c=cycle, d=list(range(1000)), e=Broken(), f=b"\xff", **{"odd key": 1})
    (event,) = stream.events()
    assert (event["a"], event["b"], event["e"], event["odd key"]) == ("nan", "inf", "<Broken>", 1)
    assert len(event["d"]) == 100


def test_a_value_that_logs_while_it_is_shown_does_not_recurse(stream):
    """Its message follows the line it came up in."""

    class Chatty:
        def __str__(self) -> str:
            logging.getLogger("chatty").warning("shown")
            return "me"

    log.info("x", value=Chatty())
    assert [event["event"] for event in stream.events()] == ["x", "library.logged"]


# --- everything else that would print


def test_an_exception_is_one_line_with_type_message_frames_and_cause(stream):
    """The latest error first, then what it came from; groups show what is in them."""
    try:
        try:
            raise KeyError("inner\nline")
        except KeyError as error:
            raise ExceptionGroup("outer", [ValueError("one")]) from error
    except ExceptionGroup:
        log.exception("x")
    (event,) = stream.events()
    outer, inner = event["exception"]
    assert outer["type"] == "ExceptionGroup"
    assert outer["exceptions"][0]["message"] == "one"
    assert inner["type"] == "KeyError"
    assert "test_telemetry.py" in inner["frames"][0]


def test_a_deep_recursion_is_cut_in_the_middle(stream):
    """The start and the end of a traceback tell the story."""

    def down(levels: int) -> None:
        if levels == 0:
            raise ValueError("bottom")
        down(levels - 1)

    try:
        down(200)
    except ValueError:
        log.exception("x")
    frames = stream.events()[0]["exception"][0]["frames"]
    assert len(frames) == 41
    assert "raise ValueError" in frames[-1]


def test_library_messages_and_warnings_are_events(stream):
    """Loggers of libraries from warning on, Python's warnings with their place."""
    logging.getLogger("aiohttp.access").info("GET /")
    logging.getLogger("watchdog").warning("lost %d", 3)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    first, second = stream.events()
    assert (first["level"], first["event"], first["logger"], first["detail"]) == (
        "warning",
        "library.logged",
        "watchdog",
        "lost 3",
    )
    assert (second["event"], second["category"]) == ("library.warned", "DeprecationWarning")
    assert "test_telemetry.py:" in second["source"]


def test_libraries_may_speak_at_level_debug():
    """Who asks for debug gets the libraries' too."""
    stream = Stream()
    telemetry.configure(level="debug", json=True, stream=stream)
    logging.getLogger("watchdog").debug("queued")
    assert stream.events()[0]["detail"] == "queued"


def test_an_uncaught_error_of_a_thread_is_an_event(stream):
    """With the thread's name."""
    thread = threading.Thread(target=lambda: 1 / 0, name="watch claims")
    thread.start()
    thread.join()
    (event,) = stream.events()
    assert (event["event"], event["where"]) == ("error.uncaught", "watch claims")
    assert event["exception"][0]["type"] == "ZeroDivisionError"


async def test_an_error_nobody_awaited_is_an_event(stream):
    """The event loop's own complaints come out as events, with the task's name."""

    async def fail() -> None:
        raise ValueError("unseen")

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(telemetry.loop_exception_handler)
    task = asyncio.create_task(fail(), name="scan claims")
    await asyncio.sleep(0)
    del task
    await asyncio.sleep(0)
    gc.collect()
    (event,) = stream.events()
    assert (event["where"], event["task"], event["exception"][0]["message"]) == ("event loop", "scan claims", "unseen")


def test_release_gives_everything_back():
    """The hooks are those from before, and the root logger has no handler of ours."""
    before = (sys.excepthook, sys.unraisablehook, threading.excepthook, warnings.showwarning, logging.root.handlers[:])
    telemetry.configure(level="info", json=True, stream=Stream())
    telemetry.configure(level="info", json=True, stream=Stream())
    assert sys.excepthook is not before[0]
    telemetry.release()
    assert before == (
        sys.excepthook,
        sys.unraisablehook,
        threading.excepthook,
        warnings.showwarning,
        logging.root.handlers,
    )


# --- processes of their own, since hooks and pipes belong to a process

_START = """
import sys, structlog, warnings
from attachd import telemetry
telemetry.configure(level="info", json={json}, stream=sys.stdout)
log = structlog.get_logger()
"""


def _run(code: str, *, json: bool = True, **options: Any) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", _START.format(json=json) + code]
    return subprocess.run(command, capture_output=True, timeout=30, **options)


def test_a_crash_is_one_json_line_on_standard_output():
    """Uncaught errors and errors in finalizers; standard error stays empty."""
    run = _run(
        "class F:\n def __del__(self): raise KeyError('late')\nF()\nwarnings.warn('old')\nraise ValueError('a\\nb')\n"
    )
    finalizer, warning, crash = map(json.loads, run.stdout.splitlines())
    assert finalizer["exception"][0]["message"] == "'late'"
    assert warning["detail"] == "old"
    assert (crash["level"], crash["event"], crash["exception"][0]["message"]) == ("critical", "error.uncaught", "a\nb")
    assert (run.stderr, run.returncode) == (b"", 1)


def test_a_message_with_the_wrong_arguments_is_not_lost():
    """A library's mistake in logging shows as the message without them, and as nothing on standard error."""
    run = _run("import logging; logging.getLogger('asyncio').error('wrong %d', 'arguments')")
    assert json.loads(run.stdout)["detail"] == "wrong %d"
    assert run.stderr == b""


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_goes_away_stops_nothing(unbuffered):
    """Standard output is a broken pipe: the process goes on to its end, exit code and all."""
    code = f"""
import os
reading, writing = os.pipe()
os.dup2(writing, 1); os.close(writing); os.close(reading)
for _ in range(1000): log.info("file.sent", detail="x" * 500)
{_START.format(json=True)}
sys.stdout.close()
log.info("after")
print("alive", file=sys.stderr)
"""
    run = _run(code, env={**os.environ, "PYTHONUNBUFFERED": unbuffered})
    assert (run.stderr, run.returncode) == (b"alive\n", 0)


def test_text_that_the_terminal_cannot_show_is_escaped():
    """An ASCII terminal shows a name with escapes instead of failing."""
    run = _run('log.info("file.sent", file="M\\xfcller")', json=False, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert rb"file=M\xfcller" in run.stdout
