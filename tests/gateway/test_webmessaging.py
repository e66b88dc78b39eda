"""The WebSocket guest protocol on real sockets: the order of the steps, what counts as an answer, what a loss means."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from attachd import __version__
from attachd.errors import AccountError, DeliveryError, FileError, InboxError, TransientError, UnknownOutcome
from attachd.gateway import webmessaging
from attachd.gateway.guard import Window
from attachd.gateway.guests import token_of
from attachd.gateway.webmessaging import WebMessaging, open_webmessaging
from attachd.model import AttachmentId, DeliveryId, Document, GuestId, Reason, Receipt, Routing, Step, Upload
from attachd.ports import CannotAsk, Found, GuestGateway, GuestSession, NotThere

from .messenger import JWT, Connection, Frame, Messenger
from .support import no_proxy, reading

KEY = b"k" * 32
DOCUMENT = Document("scan 1.pdf", "application/pdf", 3)
ROUTING = Routing(None, (), {"source": "claims-share"})
MESSAGE_ID = "9d1e6f0c2b7a4c3d8e5f60718293a4b5"
T, X, F, I, A = TransientError, UnknownOutcome, FileError, InboxError, AccountError  # noqa: E741


@pytest.fixture
async def platform() -> AsyncIterator[Messenger]:
    messenger = Messenger()
    runner = web.AppRunner(await messenger.app(), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    messenger.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield messenger
    await runner.cleanup()


def opened(platform: Messenger, **changes: Any) -> AbstractAsyncContextManager[WebMessaging]:
    return open_webmessaging(
        **{
            "deployment_id": "d-1",
            "guest_key": KEY,
            "messaging_url": platform.url.replace("http", "ws", 1),
            "config_url": platform.url,
            "api_url": platform.url,
            "origin": "https://www.example.com",
            "ca_file": None,
            "proxy_for": no_proxy,
            "clock": time.monotonic,
            "jitter": lambda low, high: low,
            "sleep": _no_time,
        }
        | changes
    )


async def _no_time(seconds: float) -> None:
    """The second look comes at once."""


@pytest.fixture
async def messaging(platform: Messenger) -> AsyncIterator[WebMessaging]:
    async with opened(platform) as messaging:
        yield messaging


async def bring(messaging: WebMessaging, document: Document = DOCUMENT, routing: Routing = ROUTING) -> Receipt:
    """One document, all the way."""
    async with messaging.gateway.session(DeliveryId("d"), routing) as session:
        attachment = await session.upload(document, reading(b"x" * document.size))
        return await session.post(attachment, document, "Here it is.")


async def refused(messaging: WebMessaging, document: Document = DOCUMENT, **changes: Any) -> DeliveryError:
    with pytest.raises(DeliveryError) as caught:
        await bring(messaging, document, **changes)
    assert "HUSH" not in str(caught.value) + repr(caught.value.failure)
    return caught.value


def verdict(error: DeliveryError) -> tuple[type[DeliveryError], Reason, Step]:
    return type(error), error.reason, error.step


# --- the way of a file


async def test_the_way_of_a_file(messaging, platform):
    """Configure, ask for a place, PUT, post, close: each as the contract has it, and nothing else."""
    gateway: GuestGateway = messaging.gateway
    async with gateway.session(DeliveryId("d"), ROUTING) as opened_session:
        session: GuestSession = opened_session
        attachment = await session.upload(DOCUMENT, reading(b"a", b"bc"))
        receipt = await session.post(attachment, DOCUMENT, "Ünïcode ☃")
    assert receipt == Receipt(None, MESSAGE_ID)
    configure, place, message = platform.heard
    token = token_of(session.guest, KEY)
    assert {frame["token"] for frame in platform.heard} == {token}
    assert (configure["action"], configure["deploymentId"], configure["startNew"]) == ("configureSession", "d-1", False)
    assert (place["attachmentId"], place["fileName"], place["fileSize"]) == (attachment, "scan 1.pdf", 3)
    assert message["message"]["text"] == "Ünïcode ☃"
    assert message["message"]["channel"]["metadata"]["customAttributes"] == {"source": "claims-share"}
    assert platform.stored == {attachment: b"abc"}
    (put,) = platform.asked("/store")
    assert put.headers["Content-Type"] == "application/pdf"
    assert put.headers["x-amz-tagging"] == "k=v&k2=v2"
    assert not {name.lower() for name in put.headers} & {"authorization", "x-amz-meta-genesys-attachment-id", "origin"}
    (socket,) = platform.asked("/v1")
    assert dict(socket.query) == {"deploymentId": "d-1", "application": f"attachd-{__version__}"}
    assert socket.headers["Origin"] == "https://www.example.com"
    assert socket.headers["User-Agent"] == f"attachd/{__version__}"
    assert platform.closed_with == [1000]


async def test_the_configuration_is_asked_for_once(messaging, platform):
    """However many deliveries need it at the same time."""
    await asyncio.gather(*(bring(messaging) for _ in range(5)))
    assert len(platform.asked("/webdeployments/v1/deployments/d-1/config.json")) == 1
    assert len(platform.history) == 5


async def test_noise_in_between_is_ignored(messaging, platform):
    """The agent's words, events, unknown classes, other people's errors, binary and broken frames, in any order."""

    async def noise(connection: Connection) -> None:
        await connection.says("StructuredMessage", {"type": "Text", "direction": "Outbound", "text": "Hello"})
        await connection.says("StructuredMessage", {"type": "Event", "direction": "Inbound"}, kind="message")
        await connection.says("NeverHeardOf", {"errorCode": 4001})
        await connection.says("string", "no", code=4001, tracing="another")
        await connection.says("UploadFailureEvent", {"attachmentId": "another", "errorCode": 4001})
        await connection.ws.send_bytes(b'{"class":"SessionExpiredEvent"}')
        await connection.ws.send_str("{")
        await connection.ws.ping()

    def noisy(name: str) -> Callable[[Connection, Frame], Any]:
        async def reply(connection: Connection, frame: Frame) -> None:
            await noise(connection)
            await getattr(platform, name)(connection, frame)
            await noise(connection)

        return reply

    platform.on = {name: noisy(name) for name in ("configureSession", "onAttachment", "onMessage")}
    assert (await bring(messaging)).message == MESSAGE_ID


async def test_the_event_may_overtake_the_storages_answer(messaging, platform):
    """It is looked out for before the first byte goes."""

    async def storage(request: web.Request) -> web.Response:
        await platform.arrived(request.match_info["id"])
        await asyncio.sleep(0.05)
        return web.Response()

    platform.storage = storage
    await bring(messaging)


async def test_an_answer_in_fragments_and_a_large_one(messaging, platform):
    """A frame in pieces is one frame; one that is too large ends the connection, and nothing was sent."""

    async def large(connection: Connection, frame: Frame) -> None:
        await connection.says("SessionResponse", {"connected": True, "x": "y" * 300_000}, tracing=frame["tracingId"])

    async def in_pieces(connection: Connection, frame: Frame) -> None:
        body = {"connected": True, "newSession": True, **platform.profile}
        whole = {"type": "response", "class": "SessionResponse", "body": body, "tracingId": frame["tracingId"]}
        text = json.dumps(whole | {"unheardOf": "ü" * 40}, ensure_ascii=False).encode()
        pieces = [text[at : at + 101] for at in range(0, len(text), 101)]
        transport = connection.ws._req.transport  # type: ignore[union-attr]
        assert transport is not None
        for number, piece in enumerate(pieces):
            opcode = (number == 0) | (0x80 if number == len(pieces) - 1 else 0)
            transport.write(bytes([opcode, len(piece)]) + piece)
        platform.history[frame["token"]] = []

    platform.on["configureSession"] = in_pieces
    await bring(messaging)
    platform.on["configureSession"] = large
    assert verdict(await refused(messaging)) == (T, Reason.CONNECTION_LOST, Step.SESSION)


async def test_a_guest_joins_just_before_the_message_where_the_deployment_wants_it(messaging, platform):
    """Only a new session, and only once its file is there: an upload that fails opens no empty conversation."""
    platform.config["messenger"]["apps"]["conversations"]["autoStart"]["enabled"] = True
    await bring(messaging)
    assert platform.actions() == ["configureSession", "onAttachment", "onMessage", "onMessage"]
    assert [frame["message"]["type"] for frame in platform.heard[2:]] == ["Event", "Text"]
    platform.storage = lambda request: _answer(403)
    await refused(messaging)
    assert platform.actions()[4:] == ["configureSession", "onAttachment"]


async def _answer(status: int) -> web.Response:
    return web.Response(status=status)


# --- who may come in


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"status": "Inactive"}, (A, Reason.DEPLOYMENT_REFUSED)),
        ({"messenger": {"fileUpload": {"enableAttachments": False}}}, (I, Reason.ATTACHMENTS_NOT_GRANTED)),
    ],
)
async def test_a_deployment_that_takes_nothing(messaging, platform, changes, expected):
    """It is known before anything is connected, and asked for anew each time."""
    platform.config |= changes
    for _ in range(2):
        assert verdict(await refused(messaging)) == (*expected, Step.SESSION)
    assert len(platform.asked("/webdeployments")) == 2
    assert platform.asked("/v1") == []


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (404, (A, Reason.DEPLOYMENT_REFUSED)),
        (403, (A, Reason.DEPLOYMENT_REFUSED)),
        (302, (A, Reason.NOT_THE_PLATFORM)),
        (503, (T, Reason.SERVER_ERROR)),
        (429, (T, Reason.RATE_LIMITED)),
    ],
)
async def test_a_configuration_that_cannot_be_had(messaging, platform, status, expected):
    """Missing is a wrong setting, trouble is trouble."""
    platform.config_status = status
    assert verdict(await refused(messaging)) == (*expected, Step.SESSION)


async def test_a_known_configuration_outlasts_trouble(platform):
    """After ten minutes it is asked for again; while that fails the old one counts."""
    later = 0.0
    async with opened(platform, clock=lambda: time.monotonic() + later) as messaging:
        await bring(messaging)
        platform.config_status = 503
        later += 601
        await bring(messaging)
        await bring(messaging)
        assert len(platform.asked("/webdeployments")) == 2
        platform.config_status = 200
        later += 61
        await bring(messaging)
    assert len(platform.asked("/webdeployments")) == 3


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (403, (A, Reason.DEPLOYMENT_REFUSED)),
        (401, (A, Reason.DEPLOYMENT_REFUSED)),
        (404, (A, Reason.NOT_THE_PLATFORM)),
        (200, (A, Reason.NOT_THE_PLATFORM)),
        (400, (T, Reason.SERVER_ERROR)),
        (500, (T, Reason.SERVER_ERROR)),
        (503, (T, Reason.SERVER_ERROR)),
    ],
)
async def test_whose_fault_a_refused_connection_is(messaging, platform, status, expected):
    """Only at the door; the status is told."""
    platform.door = status
    error = await refused(messaging)
    assert verdict(error) == (*expected, Step.SESSION)
    assert error.failure.http_status == status


async def test_a_redirected_connection_is_not_followed(messaging, platform):
    """Nobody may lead us elsewhere with the token."""
    platform.door, platform.door_headers = 302, {"Location": f"{platform.url}/v1?elsewhere"}
    assert verdict(await refused(messaging)) == (A, Reason.NOT_THE_PLATFORM, Step.SESSION)
    assert len(platform.asked("/v1")) == 1


async def test_too_many_connections_silence_all(platform):
    """The limit is the deployment's: nobody connects until the time is over, and it is told to whoever keeps it."""
    heard: list[float] = []
    async with opened(platform, on_hold=lambda seconds, why: heard.append(seconds)) as messaging:
        platform.door, platform.door_headers = 429, {"Retry-After": "7"}
        error = await refused(messaging)
        assert verdict(error) == (T, Reason.RATE_LIMITED, Step.SESSION)
        assert isinstance(error, TransientError)
        assert error.retry_after_s == 7
        assert heard == [7.0]
        assert messaging.gate.held_for_s() > 6


async def test_a_wrong_address_is_unreachable(platform):
    """Nobody listens there."""
    async with opened(platform, messaging_url="ws://127.0.0.1:9") as messaging:
        assert verdict(await refused(messaging)) == (T, Reason.UNREACHABLE, Step.SESSION)


async def test_check_opens_a_session_and_tells_what_is_allowed(messaging, platform):
    """Nothing is posted, nobody joins; what an inbox would be told is the account's matter here."""
    platform.config["messenger"]["apps"]["conversations"]["autoStart"]["enabled"] = True
    await messaging.check_credentials()
    allowed = await messaging.allowed()
    assert (allowed.types, allowed.max_bytes, allowed.blocked) == (frozenset({"*/*"}), 10_240_000, frozenset({".exe"}))
    assert platform.actions() == ["configureSession"] * 2
    platform.profile["allowedMedia"] = {}
    with pytest.raises(AccountError) as caught:
        await messaging.check_credentials()
    assert caught.value.reason is Reason.ATTACHMENTS_NOT_GRANTED


# --- the profile


@pytest.mark.parametrize(
    ("profile", "document", "reason"),
    [
        ({}, Document("a.exe", "application/pdf", 3), Reason.TYPE_NOT_ALLOWED),
        ({}, Document("a", "application/pdf", 3), Reason.REFUSED),
        ({}, Document("a.pdf", "application/pdf", 10_240_001), Reason.TOO_LARGE),
        (
            {"allowedMedia": {"inbound": {"fileTypes": [{"type": "image/*"}], "maxFileSizeKB": 9}}},
            DOCUMENT,
            Reason.TYPE_NOT_ALLOWED,
        ),
    ],
)
async def test_the_profile_is_kept_to_before_anything_of_the_file_goes(messaging, platform, profile, document, reason):
    """The platform itself would only drop the file from the message."""
    platform.profile |= profile
    assert verdict(await refused(messaging, document)) == (F, reason, Step.UPLOAD)
    assert platform.actions() == ["configureSession"]


async def test_a_session_without_attachments_is_the_inboxs_trouble(messaging, platform):
    """No file fails for it."""
    platform.profile["allowedMedia"] = {"inbound": {"fileTypes": [], "maxFileSizeKB": 9}}
    assert verdict(await refused(messaging)) == (I, Reason.ATTACHMENTS_NOT_GRANTED, Step.SESSION)


async def test_metadata_that_does_not_fit_into_this_session(messaging, platform):
    """The session's own limit counts, in bytes."""
    platform.profile["maxCustomDataBytes"] = 9.0
    error = await refused(messaging, routing=Routing(None, (), {"ab": "éééé"}))
    assert verdict(error) == (I, Reason.MESSAGE_REFUSED, Step.SESSION)
    assert "10 bytes" in str(error)


async def test_a_dropped_attachment_stops_its_type_and_sends_no_second_message(platform):
    """The message stands without its file: the inbox's fault, and tried again only after an hour or a change."""
    later = 0.0
    async with opened(platform, clock=lambda: time.monotonic() + later) as messaging:

        async def drops(connection: Connection, frame: Frame) -> None:
            await platform.echoes(connection, frame, content=[])

        platform.on["onMessage"] = drops
        dropped = (I, Reason.ATTACHMENT_DROPPED, Step.MESSAGE)
        assert verdict(await refused(messaging)) == dropped
        assert platform.actions().count("onMessage") == 1
        async with messaging.gateway.session(DeliveryId("d"), ROUTING) as session:
            with pytest.raises(InboxError):
                await session.upload(DOCUMENT, reading(b"abc"))
            with pytest.raises(InboxError):
                await session.post(AttachmentId("a-1"), DOCUMENT, "text")
        assert verdict(await refused(messaging)) == dropped
        assert (platform.actions().count("onMessage"), platform.actions().count("onAttachment")) == (1, 1)
        later += 3601
        assert verdict(await refused(messaging)) == dropped
        assert platform.actions().count("onMessage") == 2
        del platform.on["onMessage"]
        await bring(messaging, Document("a.png", "image/png", 3))
        platform.profile["blockedExtensions"] = [".exe", ".bat"]
        await bring(messaging)


# --- refusals on the way


@pytest.mark.parametrize(
    ("action", "code", "expected"),
    [
        ("configureSession", 400, (A, Reason.DEPLOYMENT_REFUSED, Step.SESSION)),
        ("configureSession", 5000, (T, Reason.SERVER_ERROR, Step.SESSION)),
        ("onAttachment", 4001, (F, Reason.TYPE_NOT_ALLOWED, Step.UPLOAD)),
        ("onAttachment", 4000, (I, Reason.ATTACHMENTS_NOT_GRANTED, Step.UPLOAD)),
        ("onAttachment", 4006, (T, Reason.NOT_READY, Step.UPLOAD)),
        ("onMessage", 4010, (T, Reason.NOT_READY, Step.MESSAGE)),
        ("onMessage", 4013, (I, Reason.MESSAGE_REFUSED, Step.MESSAGE)),
        ("onMessage", 4029, (T, Reason.RATE_LIMITED, Step.MESSAGE)),
        ("onMessage", 5000, (X, Reason.SERVER_ERROR, Step.MESSAGE)),
    ],
)
async def test_a_refusal_on_the_way(messaging, platform, action, code, expected):
    """A plain text with a code and our tracing id."""

    async def refuses(connection: Connection, frame: Frame) -> None:
        await connection.refuses(frame, code)

    platform.on[action] = refuses
    assert verdict(await refused(messaging)) == expected


@pytest.mark.parametrize("tagged", [True, False])
async def test_a_refused_place(messaging, platform, tagged):
    """By our attachment id, even when no tracing id comes with it."""

    async def refuses(connection: Connection, frame: Frame) -> None:
        body = {"attachmentId": frame["attachmentId"], "errorCode": 4005, "errorMessage": "too long"}
        await connection.says("GenerateUrlError", body, tracing=frame["tracingId"] if tagged else None, kind="message")

    platform.on["onAttachment"] = refuses
    assert verdict(await refused(messaging)) == (F, Reason.REFUSED, Step.UPLOAD)


async def test_bytes_that_the_platform_does_not_like(messaging, platform):
    """The storage took them, the event says no: by its code."""

    async def storage(request: web.Request) -> web.Response:
        body = {"attachmentId": request.match_info["id"], "errorCode": 4003, "errorMessage": "odd"}
        await platform.connections[-1].says("UploadFailureEvent", body, kind="message")
        return web.Response()

    platform.storage = storage
    assert verdict(await refused(messaging)) == (F, Reason.REFUSED, Step.PUT)
    assert "onMessage" not in platform.actions()


@pytest.mark.parametrize("status", [403, 500])
async def test_a_storage_that_refuses(messaging, platform, status):
    """The storage's own answers mean what they mean with the other gateway."""
    platform.storage = lambda request: _answer(status)
    error = await refused(messaging)
    assert type(error) is TransientError
    assert (error.step, error.failure.http_status) == (Step.PUT, status)


@pytest.mark.parametrize(
    "changes",
    [
        {"url": "http://storage.example/x?HUSH"},
        {"url": "https://10.0.0.1/x?HUSH"},
        {"headers": {"Transfer-Encoding": "chunked"}},
        {"headers": {"a": "b\r\nc: HUSH"}},
    ],
)
async def test_a_place_that_is_not_fit_to_be_used(messaging, platform, changes):
    """Where the bytes go and what goes with them is looked at before any of them leaves."""

    async def odd(connection: Connection, frame: Frame) -> None:
        await platform.onAttachment(connection, frame, **changes)

    platform.on["onAttachment"] = odd
    assert verdict(await refused(messaging)) == (A, Reason.NOT_THE_PLATFORM, Step.PUT)
    assert platform.stored == {}


async def test_headers_that_are_said_anyway_are_not_said_twice(messaging, platform):
    """A content type the platform names itself is the one to send; host and length follow from URL and file."""

    async def more(connection: Connection, frame: Frame) -> None:
        headers = {"content-type": "text/x-signed", "host": "elsewhere", "Content-Length": "7", "X-Amz-Acl": "p"}
        await platform.onAttachment(connection, frame, headers=headers)

    platform.on["onAttachment"] = more
    await bring(messaging)
    (put,) = platform.asked("/store")
    assert put.headers.getall("Content-Type") == ["text/x-signed"]
    assert put.headers.getall("Host") == [platform.url.removeprefix("http://")]
    assert (put.headers.getall("Content-Length"), put.headers["X-Amz-Acl"]) == (["3"], "p")


async def test_a_sessions_own_limit_is_no_silence_for_others(messaging, platform):
    """Only a limit on connections closes the gate; the wait is told either way."""

    def limited(text: str) -> Callable[[Connection, Frame], Any]:
        async def reply(connection: Connection, frame: Frame) -> None:
            body = {"retryAfter": 3, "errorCode": 429, "errorMessage": text}
            await connection.says("TooManyRequestsErrorMessage", body, code=429)

        return reply

    for text, silent in (("ConfigureSession rate too high for this session", False), ("Too many connections", True)):
        platform.on["configureSession"] = limited(text)
        error = await refused(messaging)
        assert verdict(error) == (T, Reason.RATE_LIMITED, Step.SESSION)
        assert isinstance(error, TransientError)
        assert error.retry_after_s == 3.0
        assert (messaging.gate.held_for_s() > 0) is silent


# --- losses


async def drop(connection: Connection, frame: Frame) -> None:
    """The connection goes, without a word."""
    transport = connection.ws._req.transport  # type: ignore[union-attr]
    assert transport is not None
    transport.abort()


def closes(code: int) -> Callable[[Connection, Frame], Any]:
    async def reply(connection: Connection, frame: Frame) -> None:
        await connection.ws.close(code=code, message=b"for a reason")

    return reply


def event(name: str, body: Any = None) -> Callable[[Connection, Frame], Any]:
    async def reply(connection: Connection, frame: Frame) -> None:
        await connection.says(name, body if body is not None else {}, kind="message")

    return reply


async def silence(connection: Connection, frame: Frame) -> None:
    """Nothing comes."""


@pytest.fixture
def in_vain(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Shortens one wait that ends in nothing; those for answers that do come stay long, however busy the machine."""
    return lambda name: monkeypatch.setattr(webmessaging, name, 0.2)


LOSSES: list[tuple[Any, Reason]] = [
    (drop, Reason.CONNECTION_LOST),
    (closes(1000), Reason.CONNECTION_LOST),
    (closes(1001), Reason.CONNECTION_LOST),
    (closes(1011), Reason.CONNECTION_LOST),
    (event("ConnectionClosedEvent", {"reason": "signedIn"}), Reason.CONNECTION_LOST),
    (event("ConnectionClosedEvent", {"reasonCode": 7}), Reason.CONNECTION_LOST),
    (event("SessionClearedEvent"), Reason.CONNECTION_LOST),
    (event("LogoutEvent"), Reason.CONNECTION_LOST),
    (event("SessionExpiredEvent"), Reason.NOT_READY),
    (silence, Reason.TIMEOUT),
]


@pytest.mark.parametrize(("loss", "reason"), LOSSES)
@pytest.mark.parametrize("action", ["onAttachment", "onMessage"])
async def test_what_a_loss_means(messaging, platform, in_vain, action, loss, reason):
    """Until the message is written nothing was sent; from then on nobody knows, and it was written once."""
    if reason is Reason.TIMEOUT:
        in_vain("ECHO_S" if action == "onMessage" else "PLACE_S")
    platform.on[action] = loss
    error = await refused(messaging)
    family, step = (X, Step.MESSAGE) if action == "onMessage" else (T, Step.UPLOAD)
    assert verdict(error) == (family, reason, step)
    assert platform.actions().count(action) == 1


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (drop, (T, Reason.CONNECTION_LOST)),
        (closes(1000), (T, Reason.CONNECTION_LOST)),
        (closes(1008), (A, Reason.DEPLOYMENT_REFUSED)),
        (silence, (T, Reason.TIMEOUT)),
        (event("NeverHeardOf"), (T, Reason.TIMEOUT)),
    ],
)
async def test_a_loss_while_the_session_is_configured(messaging, platform, in_vain, loss, expected):
    """A close that blames us before anything was said of a file is a wrong setting."""
    if expected == (T, Reason.TIMEOUT):
        in_vain("CONFIGURE_S")
    platform.on["configureSession"] = loss
    assert verdict(await refused(messaging)) == (*expected, Step.SESSION)


@pytest.mark.parametrize("lost", [True, False])
async def test_the_word_on_the_upload_is_lost(messaging, platform, in_vain, lost):
    """Without the event nothing is posted: the bytes go again."""
    if not lost:
        in_vain("ARRIVED_S")

    async def storage(request: web.Request) -> web.Response:
        if lost:
            await drop(platform.connections[-1], {})
        return web.Response()

    platform.storage = storage
    reason = Reason.CONNECTION_LOST if lost else Reason.TIMEOUT
    assert verdict(await refused(messaging)) == (T, reason, Step.PUT)
    assert "onMessage" not in platform.actions()


async def test_a_connection_that_went_before_the_message_leaves_no_doubt(messaging, platform):
    """It was not written, so it may go again at once."""
    async with messaging.gateway.session(DeliveryId("d"), ROUTING) as session:
        attachment = await session.upload(DOCUMENT, reading(b"abc"))
        await drop(platform.connections[-1], {})
        while session._channel._end is None:
            await asyncio.sleep(0)
        with pytest.raises(TransientError) as caught:
            await session.post(attachment, DOCUMENT, "text")
    assert type(caught.value) is TransientError
    assert "onMessage" not in platform.actions()


@pytest.mark.parametrize(
    "reply",
    [
        lambda platform, connection, frame: platform.echoes(connection, frame, kind="response"),
        lambda platform, connection, frame: platform.echoes(connection, frame, direction="Outbound"),
        lambda platform, connection, frame: platform.echoes(connection, frame, tracing="another"),
        lambda platform, connection, frame: connection.refuses(frame, 4011, tagged=False),
        lambda platform, connection, frame: platform.echoes(connection, frame, content=[{"attachment": {"id": "x"}}]),
        lambda platform, connection, frame: connection.says("SessionExpiredEvent", {}, tracing="another"),
        lambda platform, connection, frame: limits(connection, "ConfigureSession rate too high for this session"),
        lambda platform, connection, frame: limits(connection, "Too many connections"),
    ],
)
async def test_what_is_no_word_that_the_message_stands(messaging, platform, in_vain, reply):
    """A look-alike leaves the outcome unknown, and so does an error that does not say whose it is."""
    in_vain("ECHO_S")

    async def on_message(connection: Connection, frame: Frame) -> None:
        await reply(platform, connection, frame)

    platform.on["onMessage"] = on_message
    assert type(await refused(messaging)) is UnknownOutcome


async def limits(connection: Connection, text: str) -> None:
    """Too much of something: as it was captured, without saying which request it refuses."""
    await connection.says("TooManyRequestsErrorMessage", {"retryAfter": 3, "errorMessage": text}, code=429)


@pytest.mark.parametrize(
    "reply",
    [
        lambda connection, frame: limits(connection, "OnMessage rate too high for this session"),
        lambda connection, frame: limits(connection, ""),
        lambda connection, frame: connection.refuses(frame, 4029, tagged=False),
        lambda connection, frame: connection.refuses(frame, 429),
    ],
)
async def test_a_message_that_came_too_fast_was_not_taken(messaging, platform, reply):
    """It is all that was asked and has no answer, so the refusal is its own: nothing is in doubt."""
    platform.on["onMessage"] = reply
    assert verdict(await refused(messaging)) == (T, Reason.RATE_LIMITED, Step.MESSAGE)


@pytest.mark.parametrize(("heard", "family"), [(True, T), (False, X)])
async def test_a_limit_that_the_joining_may_have_met_leaves_the_message_in_doubt(messaging, platform, heard, family):
    """To join is a request of the same kind: until it is answered nobody knows which of the two was too much."""
    platform.config["messenger"]["apps"]["conversations"]["autoStart"]["enabled"] = True

    async def on_message(connection: Connection, frame: Frame) -> None:
        if frame["message"]["type"] == "Text":
            await limits(connection, "OnMessage rate too high for this session")
        elif heard:
            body = {"type": "Event", "direction": "Inbound"}
            await connection.says("StructuredMessage", body, kind="message", tracing=frame["tracingId"])

    platform.on["onMessage"] = on_message
    assert verdict(await refused(messaging)) == (family, Reason.RATE_LIMITED, Step.MESSAGE)


async def test_a_session_that_was_over_before_the_message_took_none(messaging, platform):
    """The event that answers our message refuses it; without our tracing id it says only that the session is over."""

    async def expired(connection: Connection, frame: Frame) -> None:
        await connection.says("SessionExpiredEvent", {}, tracing=frame["tracingId"])

    platform.on["onMessage"] = expired
    assert verdict(await refused(messaging)) == (T, Reason.NOT_READY, Step.MESSAGE)


async def test_a_cancelled_delivery_leaves_nothing_behind(messaging, platform):
    """Its socket is closed, its tasks are gone, and the next delivery goes."""
    waiting = asyncio.Event()

    async def hold(connection: Connection, frame: Frame) -> None:
        waiting.set()

    platform.on["onMessage"] = hold
    task = asyncio.ensure_future(bring(messaging))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not [other for other in asyncio.all_tasks() if other.get_name().startswith("frames from")]
    del platform.on["onMessage"]
    await bring(messaging)


async def test_what_reading_the_file_raises_comes_out_as_it_is(messaging):
    """Neither wrapped by the connection's own task nor by the storage."""

    async def broken() -> AsyncIterator[bytes]:
        yield b"a"
        raise FileNotFoundError("it is gone")

    async with messaging.gateway.session(DeliveryId("d"), ROUTING) as session:
        with pytest.raises(FileNotFoundError):
            await session.upload(DOCUMENT, broken)
    with pytest.raises(FileNotFoundError):
        async with messaging.gateway.session(DeliveryId("d"), ROUTING):
            raise FileNotFoundError


# --- going on as the same guest


async def test_going_on_as_the_same_guest(messaging, platform):
    """The label gives the same token: an uploaded file is posted without its bytes."""
    async with messaging.gateway.session(DeliveryId("d"), ROUTING) as session:
        attachment = await session.upload(DOCUMENT, reading(b"abc"))
    async with messaging.gateway.session(DeliveryId("d"), ROUTING, resume=session.guest) as again:
        assert await again.post(attachment, DOCUMENT, "text") == Receipt(None, MESSAGE_ID)
        assert again.guest == session.guest
    assert len({frame["token"] for frame in platform.heard}) == 1
    assert len(platform.stored) == 1


async def test_a_guest_the_platform_has_forgotten_uploads_again(messaging, platform):
    """What he uploaded may be gone with him, and a message that names it would lack a file: so it is asked for."""
    async with messaging.gateway.session(DeliveryId("d"), ROUTING, resume=GuestId("old")) as session:
        with pytest.raises(TransientError) as caught:
            await session.post(AttachmentId("a-1"), DOCUMENT, "text")
        assert caught.value.reason is Reason.NOT_READY
        attachment = await session.upload(DOCUMENT, reading(b"abc"))
        await session.post(attachment, DOCUMENT, "text")
    assert platform.actions().count("onMessage") == 1
    platform.stored["a-1"] = b"abc"
    async with messaging.gateway.session(DeliveryId("d"), ROUTING, resume=GuestId("older")) as session:
        await session.post(AttachmentId("a-1"), DOCUMENT, "text")


async def test_a_session_that_can_only_be_read_begins_anew_once(messaging, platform):
    """Its connections are let go of first; if it stays so, that is for another try."""
    closed: list[Frame] = []

    async def configure(connection: Connection, frame: Frame) -> None:
        closed.append(frame)
        await platform.configureSession(connection, frame, readOnly=not frame["startNew"])

    platform.on["configureSession"] = configure
    await bring(messaging)
    assert platform.actions()[:3] == ["configureSession", "closeSession", "configureSession"]
    assert [frame["startNew"] for frame in closed] == [False, True]

    async def always(connection: Connection, frame: Frame) -> None:
        await platform.configureSession(connection, frame, readOnly=True)

    platform.on["configureSession"] = always
    assert verdict(await refused(messaging)) == (T, Reason.NOT_READY, Step.SESSION)


@pytest.mark.parametrize("code", [4006, 4007, 409])
async def test_a_session_that_is_over_begins_anew(messaging, platform, code):
    """Under the same label."""

    async def configure(connection: Connection, frame: Frame) -> None:
        if frame["startNew"]:
            await platform.configureSession(connection, frame)
        else:
            await connection.refuses(frame, code)

    platform.on["configureSession"] = configure
    async with messaging.gateway.session(DeliveryId("d"), ROUTING, resume=GuestId("old")) as session:
        assert session.guest == "old"


# --- asking


def upload(guest: str = "g-1", attachment: str = "a-1") -> Upload:
    return Upload(GuestId(guest), AttachmentId(attachment), DOCUMENT, "0" * 64)


def entity(attachment: str = "a-1", direction: str = "Inbound") -> Any:
    content = [{"contentType": "Attachment", "attachment": {"id": attachment}}]
    return {"id": MESSAGE_ID, "type": "Text", "direction": direction, "content": content}


def remembers(platform: Messenger, *entities: Any, guest: str = "g-1") -> None:
    platform.history[token_of(GuestId(guest), KEY)] = list(entities)


async def test_a_lost_echo_is_found_in_the_history(messaging, platform):
    """By the attachment: the message stands, with the id it got."""

    async def swallow(connection: Connection, frame: Frame) -> None:
        platform.history[frame["token"]].append(platform.entity(frame))
        await drop(connection, frame)

    platform.on["onMessage"] = swallow
    async with messaging.gateway.session(DeliveryId("d"), ROUTING) as session:
        attachment = await session.upload(DOCUMENT, reading(b"abc"))
        with pytest.raises(UnknownOutcome):
            await session.post(attachment, DOCUMENT, "text")
    found = await messaging.gateway.find(Upload(session.guest, attachment, DOCUMENT, "0" * 64))
    assert found == Found(Receipt(None, MESSAGE_ID))
    (request,) = platform.asked("/api/v2/webmessaging/messages")
    assert dict(request.query) == {"pageSize": "100", "pageNumber": "1"}
    assert request.headers["Origin"] == "https://www.example.com"
    assert request.headers["Authorization"].startswith(f"bearer {JWT}-")


async def test_a_message_is_missing_only_after_two_looks(platform):
    """Half a minute apart, for the history shows messages late."""
    slept: list[float] = []
    late = False

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if late:
            remembers(platform, entity())

    async with opened(platform, sleep=sleep) as messaging:
        remembers(platform, entity("another"), entity(direction="Outbound"))
        assert await messaging.gateway.find(upload()) == NotThere()
        late = True
        assert await messaging.gateway.find(upload()) == Found(Receipt(None, MESSAGE_ID))
    assert slept == [30.0, 30.0]
    assert "onMessage" not in platform.actions()


async def test_a_guest_nobody_knows_cannot_be_asked_for(messaging, platform):
    """Asking makes the platform know him, so a second time his empty history still proves nothing."""
    for _ in range(2):
        assert await messaging.gateway.find(upload()) == CannotAsk()
    assert platform.asked("/api") == []
    async with messaging.gateway.session(DeliveryId("d"), ROUTING, resume=GuestId("g-1")) as session:
        with pytest.raises(TransientError):
            await session.post(AttachmentId("a-1"), DOCUMENT, "text")


@pytest.mark.parametrize("action", ["configureSession", "getJwt"])
@pytest.mark.parametrize("code", [4006, 4007])
async def test_an_expired_session_cannot_be_asked_for(messaging, platform, code, action):
    """And none is begun for it."""
    remembers(platform)

    async def gone(connection: Connection, frame: Frame) -> None:
        await connection.refuses(frame, code)

    platform.on[action] = gone
    assert await messaging.gateway.find(upload()) == CannotAsk()
    assert [frame["startNew"] for frame in platform.heard if "startNew" in frame] == [False]


async def test_a_session_that_can_only_be_read_can_be_asked_for(messaging, platform):
    """Reading is all it takes."""

    async def configure(connection: Connection, frame: Frame) -> None:
        await platform.configureSession(connection, frame, readOnly=True)

    platform.on["configureSession"] = configure
    remembers(platform, entity())
    assert await messaging.gateway.find(upload()) == Found(Receipt(None, MESSAGE_ID))
    assert platform.actions() == ["configureSession", "getJwt"]


async def test_all_pages_are_read(messaging, platform):
    """And where there are more than we read, nobody can say that the message is not there."""
    remembers(platform)
    pages = 4

    def page(request: web.Request) -> web.Response:
        number = int(request.query["pageNumber"])
        entities = [entity()] if number == 4 and pages == 4 else [entity("another")]
        return web.json_response({"entities": entities, "pageCount": float(pages), "pageNumber": number})

    platform.reads = page
    assert await messaging.gateway.find(upload()) == Found(Receipt(None, MESSAGE_ID))
    assert len(platform.asked("/api")) == 4
    pages = 5
    assert await messaging.gateway.find(upload()) == CannotAsk()


async def test_the_history_is_not_asked_more_often_than_is_allowed(platform):
    """Ten times a minute for one session, over both looks."""
    later, waits = 0.0, []

    async def sleep(seconds: float) -> None:
        nonlocal later
        waits.append(round(seconds))
        later += min(seconds, 1.0) if seconds == 30.0 else seconds

    def page(request: web.Request) -> web.Response | None:
        if len(platform.asked("/api")) in (4, 9):
            return web.Response(status=401)
        last = int(request.query["pageNumber"]) == 4
        return web.json_response({"entities": [], "pageCount": 4 if last else 5})

    async with opened(platform, clock=lambda: time.monotonic() + later, sleep=sleep) as messaging:
        remembers(platform)
        platform.reads = page
        await messaging.gateway.find(upload())
    assert len(platform.asked("/api")) > 10
    assert waits[0] == 30
    assert waits[1] == 59


async def test_a_right_to_read_that_has_ended_is_renewed_once(messaging, platform):
    """A second refusal leaves nothing to ask with."""
    refusals = 1

    def page(request: web.Request) -> web.Response | None:
        return web.Response(status=401) if len(platform.asked("/api")) <= refusals else None

    platform.reads = page
    remembers(platform, entity())
    assert await messaging.gateway.find(upload()) == Found(Receipt(None, MESSAGE_ID))
    assert platform.actions().count("getJwt") == 2
    refusals = 99
    platform.requests.clear()
    assert await messaging.gateway.find(upload()) == CannotAsk()
    assert len(platform.asked("/api")) == 2


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (403, "{}", CannotAsk()),
        (404, "{}", CannotAsk()),
        (429, "{}", (T, Reason.RATE_LIMITED)),
        (503, "<html>", (T, Reason.SERVER_ERROR)),
        (302, "", (A, Reason.NOT_THE_PLATFORM)),
        (200, "<html>", (A, Reason.NOT_THE_PLATFORM)),
        (200, '{"entities": null}', (A, Reason.NOT_THE_PLATFORM)),
    ],
)
async def test_a_history_that_cannot_be_read(messaging, platform, status, body, expected):
    """Trouble is not an answer; a lasting refusal leaves the operator's choice."""
    platform.reads = lambda request: web.Response(status=status, text=body, headers={"Retry-After": "9"})
    remembers(platform)
    if isinstance(expected, CannotAsk):
        assert await messaging.gateway.find(upload()) == expected
        return
    with pytest.raises(DeliveryError) as caught:
        await messaging.gateway.find(upload())
    assert (type(caught.value), caught.value.reason) == expected
    assert JWT not in str(caught.value)


# --- secrets and limits


async def test_no_secret_shows_anywhere(messaging, platform, caplog, capsys):
    """Neither the token nor a URL or the right to read, whatever the platform repeats of them."""
    caplog.set_level(logging.DEBUG)

    async def parrot(connection: Connection, frame: Frame) -> None:
        await connection.refuses(frame, 4999, f"you said {json.dumps(frame)}")

    async def hang_up(connection: Connection, frame: Frame) -> None:
        await connection.ws.close(code=1011, message=frame["token"].encode())

    for action in ("configureSession", "onAttachment", "onMessage"):
        for reply in (parrot, hang_up):
            platform.on = {action: reply}
            error = await refused(messaging)
            shown = str(error) + repr(error.failure) + caplog.text + "".join(capsys.readouterr())
            assert not any(frame["token"] in shown for frame in platform.heard)


@given(st.lists(st.floats(0, 3), max_size=40), st.integers(1, 5), st.floats(0.1, 5))
def test_no_stretch_of_time_sees_more_than_is_allowed(pauses, most, seconds):
    """Wherever it begins; and nobody waits who need not."""
    window, now, passed = Window(most, seconds), 0.0, []
    for pause in pauses:
        now += pause
        wait_s = window.wait_s(now)
        assert (wait_s > 0) == (len(passed) >= most and passed[-most] + seconds > now)
        now += wait_s
        window.take(now)
        passed.append(now)
    for earlier, later in zip(passed, passed[most:], strict=False):
        assert later - earlier >= seconds - 1e-9


async def test_two_messages_a_second(platform):
    """A third one of the same session waits for its turn."""
    async with opened(platform) as messaging, messaging.gateway.session(DeliveryId("d"), ROUTING) as session:
        attachment = await session.upload(DOCUMENT, reading(b"abc"))
        began = time.monotonic()
        for _ in range(3):
            await session.post(attachment, DOCUMENT, "text")
        assert time.monotonic() - began >= 1.0
