"""The REST guest API: what is asked, what counts as an answer, and whose fault each refusal is."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from yarl import URL

from attachd.errors import (
    AccountError,
    DeliveryError,
    FileError,
    InboxError,
    TransientError,
    UnknownOutcome,
)
from attachd.gateway.upload import METADATA_HEADER
from attachd.gateway.webchat import Webchat, is_id, open_webchat
from attachd.model import (
    AttachmentId,
    ConversationId,
    DeliveryId,
    Document,
    GuestId,
    Reason,
    Receipt,
    Routing,
    Skill,
    Step,
    Upload,
)
from attachd.ports import CannotAsk, GuestGateway, GuestSession

from .support import Exchange, Seen, Wire, drips, hangs_up, in_turn, no_proxy, reading, resets, says

API, LOGIN = "https://api.example", "https://login.example"
STEPS = {
    Step.SESSION: f"{API}/api/v2/webchat/guest",
    Step.UPLOAD: f"{API}/api/v2/webchat/guest/g-1/attachments/upload",
    Step.MESSAGE: f"{API}/api/v2/webchat/conversations",
}
DOCUMENT = Document("scan 1.pdf", "application/pdf", 3)
ROUTING = Routing("queue-1", (Skill("review", 2),), {"source": "claims-share", "version": "1"})
GUEST: dict[str, Any] = {"guestId": "g-1", "conversationId": None, "capabilities": {"attachments": True}}
PLACE: dict[str, Any] = {
    "uploadUrl": "https://s3.example/k?X-Amz-Signature=HUSH",
    "uploadMethod": "PUT",
    "attachmentId": "att-1",
    "contentType": "application/pdf",
    "expiresIn": 300,
}
STANDS: dict[str, Any] = {
    "conversationId": "conv-1",
    "guestId": "g-1",
    "messages": [{"id": "msg-1"}],
    "attachments": [{"id": "att-1", "downloadUrl": "https://d.example/x?token=HUSH"}],
    "status": "active",
}


def opened(api_url: str = API, login_url: str = LOGIN, **changes: Any) -> Any:
    return open_webchat(
        **{
            "api_url": api_url,
            "login_url": login_url,
            "client_id": "our-client",
            "client_secret": lambda: "our-secret",
            "requests_per_second": 1e6,
            "ca_file": None,
            "proxy_for": no_proxy,
            "clock": time.monotonic,
            "jitter": lambda low, high: low,
        }
        | changes
    )


@pytest.fixture
async def webchat(canned: Any) -> AsyncIterator[Webchat]:
    canned.post(f"{LOGIN}/oauth/token", payload={"access_token": "T-HUSH", "expires_in": 3600}, repeat=True)
    async with opened() as webchat:
        yield webchat


async def go(webchat: Webchat, step: Step) -> Any:
    """Do just this step."""
    resume = None if step is Step.SESSION else GuestId("g-1")
    async with webchat.gateway.session(DeliveryId("d"), ROUTING, resume) as session:
        if step is Step.UPLOAD:
            return await session.upload(DOCUMENT, reading(b"abc"))
        if step is Step.MESSAGE:
            return await session.post(AttachmentId("att-1"), DOCUMENT, "Here it is.")
        return session.guest


async def refused(webchat: Webchat, step: Step) -> DeliveryError:
    with pytest.raises(DeliveryError) as caught:
        await go(webchat, step)
    return caught.value


S, U, M = Step.SESSION, Step.UPLOAD, Step.MESSAGE
T, X, F, I, A = TransientError, UnknownOutcome, FileError, InboxError, AccountError  # noqa: E741

TABLE: Mapping[tuple[int, ...], tuple[tuple[type[DeliveryError], Reason], ...]] = {
    (300, 304): ((A, Reason.NOT_THE_PLATFORM), (A, Reason.NOT_THE_PLATFORM), (X, Reason.UNKNOWN_OUTCOME)),
    (301, 302, 303): ((A, Reason.NOT_THE_PLATFORM), (A, Reason.NOT_THE_PLATFORM), (X, Reason.UNKNOWN_OUTCOME)),
    (307, 308): ((A, Reason.NOT_THE_PLATFORM),) * 3,
    (400,): ((I, Reason.QUEUE_REFUSED), (F, Reason.REFUSED), (T, Reason.NOT_READY)),
    (401,): ((A, Reason.CREDENTIALS_REFUSED),) * 3,
    (402, 403): ((A, Reason.FORBIDDEN),) * 3,
    (404, 410): ((A, Reason.NOT_THE_PLATFORM), (T, Reason.NOT_READY), (T, Reason.NOT_READY)),
    (405, 406, 407, 411, 426): ((A, Reason.NOT_THE_PLATFORM),) * 3,
    (408,): ((T, Reason.TIMEOUT), (T, Reason.TIMEOUT), (X, Reason.TIMEOUT)),
    (409,): ((T, Reason.SERVER_ERROR), (T, Reason.NOT_READY), (X, Reason.UNKNOWN_OUTCOME)),
    (413,): ((I, Reason.QUEUE_REFUSED), (F, Reason.TOO_LARGE), (F, Reason.TOO_LARGE)),
    (415, 422, 451, 418): ((I, Reason.QUEUE_REFUSED), (F, Reason.REFUSED), (F, Reason.REFUSED)),
    (425,): ((T, Reason.SERVER_ERROR),) * 3,
    (429,): ((T, Reason.RATE_LIMITED),) * 3,
    (500, 502, 503, 504, 501, 599): (
        (T, Reason.SERVER_ERROR),
        (T, Reason.SERVER_ERROR),
        (X, Reason.SERVER_ERROR),
    ),
}
ROWS = [
    (step, status, *verdicts[column])
    for statuses, verdicts in TABLE.items()
    for status in statuses
    for column, step in enumerate((S, U, M))
]


@pytest.mark.parametrize(("step", "status", "family", "reason"), ROWS)
async def test_whose_fault_a_status_is(
    webchat: Webchat, canned: Any, step: Step, status: int, family: type[DeliveryError], reason: Reason
) -> None:
    """Each step reads each status in its own way; the error carries status and the vendor's id, and no secret."""
    canned.post(
        STEPS[step],
        status=status,
        body="<html>no T-HUSH https://x/?a=HUSH",
        headers={"ININ-Correlation-Id": "corr-1", "Location": "https://elsewhere.example/?x=HUSH"},
        repeat=True,
    )
    error = await refused(webchat, step)
    assert type(error) is family
    assert (error.reason, error.step) == (reason, step)
    assert (error.failure.http_status, error.failure.correlation_id) == (status, "corr-1")
    assert f"{URL(STEPS[step]).path} answered {status}" in str(error)
    assert "HUSH" not in str(error) + repr(error) + repr(error.failure)
    calls = canned.requests[("POST", URL(STEPS[step]))]
    assert len(calls) == (2 if status == 401 else 1)


@pytest.mark.parametrize(
    ("step", "body", "family", "reason"),
    [
        *[
            (step, body, X if step is M else A, Reason.UNKNOWN_OUTCOME if step is M else Reason.NOT_THE_PLATFORM)
            for step in (S, U, M)
            for body in (b"", b"<html>", b"[]", b"null", b'{"guestId": "g', b"{" + b" " * 70000 + b"}")
        ],
        *[
            (S, json.dumps(GUEST | {"guestId": guest}).encode(), A, Reason.NOT_THE_PLATFORM)
            for guest in (None, 7, "", "../../x?y", "..", "a b", "a" * 129, "é", ["g"])
        ],
        *[
            (S, json.dumps(GUEST | {"capabilities": granted}).encode(), I, Reason.ATTACHMENTS_NOT_GRANTED)
            for granted in (None, {}, {"attachments": False}, {"attachments": "true"}, {"attachments": 1}, [])
        ],
        *[
            (U, json.dumps(PLACE | change).encode(), A, Reason.NOT_THE_PLATFORM)
            for change in (
                {"uploadMethod": "POST"},
                {"uploadMethod": None},
                {"uploadUrl": None},
                {"uploadUrl": "http://169.254.169.254/"},
                {"attachmentId": "../x"},
                {"attachmentId": None},
                {"contentType": None},
                {"contentType": "a/b\r\nX-Y: z"},
                {"expiresIn": None},
                {"expiresIn": "300"},
                {"expiresIn": 0},
                {"expiresIn": True},
            )
        ],
        *[
            (M, json.dumps(STANDS | change).encode(), X, Reason.UNKNOWN_OUTCOME)
            for change in ({"conversationId": None}, {"conversationId": "../x"}, {"attachments": "att-1"})
        ],
        *[
            (M, json.dumps(STANDS | {"attachments": attached}).encode(), F, Reason.ATTACHMENT_DROPPED)
            for attached in (None, [], [{"id": "other"}], ["att-1"], [{}])
        ],
    ],
)
async def test_a_2xx_that_does_not_say_enough(
    webchat: Webchat, canned: Any, step: Step, body: bytes, family: type[DeliveryError], reason: Reason
) -> None:
    """A status alone is no success: an answer counts only with everything in it that the next step builds on."""
    canned.post(STEPS[step], body=body)
    error = await refused(webchat, step)
    assert type(error) is family
    assert error.reason is reason
    assert "HUSH" not in str(error)
    if reason is Reason.ATTACHMENT_DROPPED:
        assert "conv-1" in str(error)


async def test_an_inbox_without_a_queue_asks_nothing(webchat: Webchat, canned: Any) -> None:
    """Where should it go? The platform need not be asked."""
    with pytest.raises(InboxError):
        async with webchat.gateway.session(DeliveryId("d"), Routing(None)):
            pass
    assert not canned.requests


async def test_going_on_as_a_known_guest_asks_nothing(webchat: Webchat, canned: Any) -> None:
    """Resuming needs no request, and there is no way to look for a message."""
    async with webchat.gateway.session(DeliveryId("d"), ROUTING, GuestId("g-9")) as session:
        assert session.guest == "g-9"
    upload = Upload(GuestId("g-9"), AttachmentId("att-1"), DOCUMENT, "00")
    assert await webchat.gateway.find(upload) == CannotAsk()
    assert not canned.requests


async def test_a_message_without_an_id_still_stands(webchat: Webchat, canned: Any) -> None:
    """The id of the message is a nicety; conversation and attachment are what counts."""
    for messages in (None, [], [{}], [{"id": 7}], "x", [None]):
        canned.post(STEPS[M], payload=STANDS | {"messages": messages})
        assert await go(webchat, M) == Receipt(ConversationId("conv-1"), None)


@pytest.mark.parametrize(
    ("step", "status", "headers", "silence"),
    [
        *[(step, 429, {"Retry-After": "30"}, 30) for step in (S, U, M)],
        *[(step, 429, {}, 1) for step in (S, U, M)],
        *[(step, 503, {"Retry-After": "40"}, 40) for step in (S, U, M)],
        (S, 503, {}, 0),
        (U, 500, {"Retry-After": "40"}, 0),
    ],
)
async def test_silence_is_for_the_whole_account(
    webchat: Webchat, canned: Any, step: Step, status: int, headers: dict[str, str], silence: float
) -> None:
    """429, and 503 with a time, close the gate at once, and the error says how long."""
    canned.post(STEPS[step], status=status, headers=headers)
    error = await refused(webchat, step)
    assert isinstance(error, TransientError)
    assert error.retry_after_s == (float(headers["Retry-After"]) if headers else None)
    assert webchat.gate.held_for_s() == pytest.approx(silence, abs=0.5)


# From here on over real sockets.


class Platform:
    """Token, guest, place, bytes, message: what came, and what is answered."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.fails: dict[str, Exchange] = {}
        self.tokens = 0
        self.valid = "T1"
        wire.answer = self.answer

    async def answer(self, request: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = request.line.split()[1].partition("?")[0]
        for end, exchange in self.fails.items():
            if path.endswith(end):
                return await exchange(request, reader, writer)
        if path.endswith("/token"):
            self.tokens += 1
            self.valid = f"T{self.tokens}"
            return await self.say({"access_token": self.valid, "expires_in": 3600}, request, reader, writer)
        if request.line.startswith("PUT"):
            return await says(200)(request, reader, writer)
        if request.headers["authorization"] != f"Bearer {self.valid}":
            return await says(401)(request, reader, writer)
        if path.endswith("/guest"):
            return await self.say(GUEST, request, reader, writer)
        if path.endswith("/upload"):
            return await self.say(PLACE | {"uploadUrl": f"{self.wire.url}/k?sig=HUSH"}, request, reader, writer)
        return await self.say(STANDS, request, reader, writer)

    async def say(
        self, content: object, request: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await says(200, json.dumps(content).encode())(request, reader, writer)

    def asked(self, end: str) -> list[Seen]:
        return [one for one in self.wire.seen if one.line.split()[1].partition("?")[0].endswith(end)]


@pytest.fixture
def platform(wire: Wire) -> Platform:
    return Platform(wire)


@pytest.fixture
async def real(platform: Platform) -> AsyncIterator[Webchat]:
    async with opened(platform.wire.url, platform.wire.url) as webchat:
        yield webchat


async def test_the_way_of_a_document(real: Webchat, platform: Platform) -> None:
    """Five requests in the contract's order, with the contract's words, and a receipt at the end."""
    gateway: GuestGateway = real.gateway
    async with gateway.session(DeliveryId("d"), ROUTING) as opened_session:
        session: GuestSession = opened_session
        attachment = await session.upload(DOCUMENT, reading(b"a", b"bc"))
        assert await session.post(attachment, DOCUMENT, "Ünïcode ☃") == Receipt(ConversationId("conv-1"), "msg-1")
    seen = platform.wire.seen
    assert [request.line for request in seen] == [
        "POST /oauth/token HTTP/1.1",
        "POST /api/v2/webchat/guest HTTP/1.1",
        "POST /api/v2/webchat/guest/g-1/attachments/upload HTTP/1.1",
        "PUT /k?sig=HUSH HTTP/1.1",
        "POST /api/v2/webchat/conversations HTTP/1.1",
    ]
    assert json.loads(seen[1].body) == {
        "capabilities": {"attachments": True, "typing": True},
        "routing": {"queueId": "queue-1", "skills": [{"id": "review", "level": 2}]},
        "metadata": {"source": "claims-share", "version": "1"},
    }
    assert json.loads(seen[2].body) == {"fileName": "scan 1.pdf", "contentType": "application/pdf", "fileSize": 3}
    assert seen[3].body == b"abc"
    assert seen[3].headers[METADATA_HEADER] == "att-1"
    assert json.loads(seen[4].body) == {
        "guestId": "g-1",
        "messages": [{"type": "text", "text": "Ünïcode ☃"}],
        "attachments": [{"id": "att-1", "fileName": "scan 1.pdf", "contentType": "application/pdf", "fileSize": 3}],
    }
    for call in (1, 2, 4):
        assert seen[call].headers["authorization"] == "Bearer T1"
        assert seen[call].headers["content-type"] == "application/json"
    assert "T1" not in seen[3].head
    assert platform.wire.connections == 1


async def test_a_plain_inbox_sends_no_empty_words(real: Webchat, platform: Platform) -> None:
    """Without skills and metadata neither is mentioned."""
    async with real.gateway.session(DeliveryId("d"), Routing("q")):
        pass
    assert json.loads(platform.asked("/guest")[0].body)["routing"] == {"queueId": "q"}
    assert "metadata" not in json.loads(platform.asked("/guest")[0].body)


async def test_a_revoked_token_is_replaced_once_for_all(real: Webchat, platform: Platform) -> None:
    """Fifty deliveries that all meet 401 cause exactly one token request and all go through."""
    await real.check_credentials()
    platform.valid = "something else"
    got = await asyncio.gather(*(go(real, M) for _ in range(50)))
    assert len(got) == 50
    assert platform.tokens == 2
    assert len(platform.asked("/conversations")) == 100


async def test_credentials_are_checked_by_asking_for_a_token(real: Webchat, platform: Platform) -> None:
    """One token request and nothing else; a refusal is an account error."""
    await real.check_credentials()
    assert [request.line for request in platform.wire.seen] == ["POST /oauth/token HTTP/1.1"]
    async with opened(platform.wire.url, platform.wire.url) as again:
        platform.fails["/token"] = says(401)
        with pytest.raises(AccountError):
            await again.check_credentials()


async def half(request: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    request.body = await reader.readexactly(int(request.headers["content-length"]))
    writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"conversationId"')
    await writer.drain()
    writer.close()


@pytest.mark.parametrize("exchange", [hangs_up, resets, half, drips])
@pytest.mark.parametrize(("step", "end"), [(S, "/guest"), (U, "/upload"), (M, "/conversations")])
async def test_a_lost_answer(
    real: Webchat,
    platform: Platform,
    monkeypatch: pytest.MonkeyPatch,
    exchange: Exchange,
    step: Step,
    end: str,
) -> None:
    """Only at the message does a lost answer matter: there the outcome is unknown, and it is asked only once."""
    for name in ("SESSION_S", "UPLOAD_S", "MESSAGE_S"):
        monkeypatch.setattr(f"attachd.gateway.webchat.{name}", 0.3)
    platform.fails[end] = exchange
    error = await refused(real, step)
    assert type(error) is (UnknownOutcome if step is M else TransientError)
    assert error.reason is (Reason.TIMEOUT if exchange is drips else Reason.CONNECTION_LOST)
    assert len(platform.asked(end)) == 1


async def test_a_message_that_could_not_leave_is_not_in_doubt(platform: Platform) -> None:
    """Without a connection nothing was posted: the message may be tried again freely."""
    async with opened("http://127.0.0.1:9", platform.wire.url) as webchat:
        error = await refused(webchat, M)
    assert type(error) is TransientError
    assert error.reason is Reason.UNREACHABLE


async def test_a_message_for_which_there_is_no_token_is_not_in_doubt(real: Webchat, platform: Platform) -> None:
    """When the login host fails the message has not been sent, whatever happened to the token request."""
    platform.fails["/token"] = hangs_up
    error = await refused(real, M)
    assert type(error) is TransientError
    assert error.step is Step.TOKEN
    assert platform.asked("/conversations") == []


async def test_a_silence_stops_all_deliveries(platform: Platform) -> None:
    """After one 429 nothing of the account arrives until the time is over; then everybody goes on."""
    heard: list[float] = []
    async with opened(platform.wire.url, platform.wire.url, on_hold=lambda s, why: heard.append(s)) as webchat:
        await webchat.check_credentials()
        platform.fails["/guest"] = in_turn(says(429, b"", "Retry-After: 1"), says(200, json.dumps(GUEST).encode()))
        await refused(webchat, S)
        began, before = time.monotonic(), len(platform.wire.seen)
        later = [asyncio.ensure_future(go(webchat, step)) for step in (S, U, M)]
        await asyncio.sleep(0.8)
        assert len(platform.wire.seen) == before
        await asyncio.gather(*later)
        assert time.monotonic() - began >= 0.95
    assert heard == [1.0]


async def test_a_cancelled_delivery_leaves_the_others_alone(real: Webchat, platform: Platform) -> None:
    """Stopping one in the middle of the token request lets the rest finish."""
    tasks = [asyncio.ensure_future(go(real, S)) for _ in range(10)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    got = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(got[0], asyncio.CancelledError)
    assert got[1:] == ["g-1"] * 9


async def test_a_wrong_address_that_follows_ids_is_impossible() -> None:
    """Ids that could lead a path elsewhere are no ids."""
    assert is_id("A-z_0.9")
    for value in ("", ".", "..", "a/b", "a%2fb", "a?b", "a#b", "a\n", " a", None, 1, b"a"):
        assert not is_id(value)
