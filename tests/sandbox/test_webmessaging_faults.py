"""Each fault of the guest protocol does the damage it is named after, and the ledger says so."""

import asyncio
import json
from contextlib import suppress

import aiohttp
import pytest

from attachd.sandbox import Answer, Fault, FaultKind, Step, hang_up, refuse

from ..waiting import until
from .messenger import Line, dial, message_of, opened

ASKED = [Step.CONFIGURE, Step.ATTACHMENT, Step.MESSAGE, Step.JWT, Step.ECHO]
asked = pytest.mark.parametrize("step", ASKED)


@pytest.fixture
async def line(client) -> Line:
    return await opened(client)


async def say(line: Line, step: Step) -> str:
    """One frame of this step."""
    match step:
        case Step.CONFIGURE:
            return await line.say("configureSession", deploymentId=line.sandbox.deployment_id)
        case Step.ATTACHMENT:
            told = {"fileName": "a.pdf", "fileType": "application/pdf", "fileSize": 5, "errorsAsJson": True}
            return await line.say("onAttachment", attachmentId="c1d6c0a4-97a5-4f0a-8a39-94f6f0a2d703", **told)
        case Step.MESSAGE:
            return await line.say("onMessage", message=message_of(None))
        case Step.JWT:
            return await line.say("getJwt")
        case _:
            return await line.say("echo", message={"type": "Text", "text": "ping"})


def last(line: Line, step: Step):
    return line.sandbox.requests(step)[-1]


async def ended(line: Line, step: Step) -> None:
    """The ledger has closed the line of the last frame."""
    await until(lambda: last(line, step).answer is not Answer.NONE)


class TestAFrame:
    @asked
    @pytest.mark.parametrize("kind", [FaultKind.RESET_UNREAD, FaultKind.RESET])
    async def test_a_reset_before_processing(self, line, step, kind):
        """The connection is gone and nothing was done."""
        line.sandbox.on(step, Fault(kind))
        await say(line, step)
        assert await line.closed() == 1006
        received = last(line, step)
        assert (received.status, received.answer, received.fault) == (None, Answer.NONE, kind)
        assert line.sandbox.messages == []

    @asked
    async def test_a_lost_answer(self, line, step):
        """Processed, then the connection is gone: the client heard nothing and the message stands."""
        line.sandbox.on(step, Fault(FaultKind.LOST_ANSWER))
        await say(line, step)
        assert await line.closed() == 1006
        assert (last(line, step).status, last(line, step).answer) == (200, Answer.NONE)
        assert [message.answer_lost for message in line.sandbox.messages] == [True] * (step is Step.MESSAGE)

    @asked
    async def test_an_answer_cut_in_the_middle(self, line, step):
        """Half a frame, then a reset."""
        line.sandbox.on(step, Fault(FaultKind.RESET_MID_ANSWER))
        await say(line, step)
        assert await line.closed() == 1006
        assert (last(line, step).status, last(line, step).answer) == (200, Answer.CUT)

    @asked
    @pytest.mark.parametrize("code", [1000, 1001, 1008, 1011, 4000])
    async def test_a_close(self, line, step, code):
        """An orderly end with the code that was asked for, before anything was done."""
        line.sandbox.on(step, hang_up(code))
        await say(line, step)
        assert await line.closed() == code
        assert last(line, step).status is None
        assert line.sandbox.messages == []

    async def test_a_close_after_processing(self, line):
        """The message stands, the echo is replaced by a close."""
        line.sandbox.on("message", hang_up(1001, after_processing=True))
        await say(line, Step.MESSAGE)
        assert await line.closed() == 1001
        assert [message.answer_lost for message in line.sandbox.messages] == [True]

    @asked
    async def test_a_hang(self, line, step):
        """Nothing comes for this frame; the connection stands and answers the next."""
        line.sandbox.on(step, Fault(FaultKind.HANG))
        await say(line, step)
        tracing_id = await line.say("getJwt") if step is not Step.JWT else await say(line, Step.ECHO)
        frame = await line.hear()
        assert frame["class"] == ("JwtResponse" if step is not Step.JWT else "StructuredMessage")
        assert tracing_id
        assert line.sandbox.messages == []
        assert last(line, step).answer is Answer.NONE

    async def test_an_echo_that_never_comes(self, line):
        """The message stands although the socket stays silent."""
        line.sandbox.on("message", Fault(FaultKind.HANG, after_processing=True))
        await say(line, Step.MESSAGE)
        assert (await line.ask("getJwt"))["class"] == "JwtResponse"
        assert [message.answer_lost for message in line.sandbox.messages] == [True]

    async def test_a_hang_answers_pings(self, line):
        """A platform that does not answer may be alive all the same."""
        line.sandbox.on("message", Fault(FaultKind.HANG))
        await say(line, Step.MESSAGE)
        line.socket._autoping = False
        await line.socket.ping(b"?")
        assert (await line.raw()).type is aiohttp.WSMsgType.PONG

    @asked
    async def test_a_late_answer(self, line, step):
        """Processed at once, answered later; the true answer, and meanwhile others are served."""
        line.sandbox.on(step, Fault(FaultKind.DELAY, delay_s=0.05))
        tracing_id = await say(line, step)
        meanwhile = await line.say("getConfiguration", deploymentId=line.sandbox.deployment_id)
        assert (await line.hear())["tracingId"] == meanwhile
        frame = await line.hear()
        assert frame.get("tracingId", tracing_id) == tracing_id
        await ended(line, step)
        assert last(line, step).answer is Answer.WHOLE

    async def test_a_late_answer_to_a_client_that_has_gone(self, line):
        """Nothing is left of it but the ledger."""
        line.sandbox.on("message", Fault(FaultKind.DELAY, delay_s=30))
        await say(line, Step.MESSAGE)
        await until(lambda: line.sandbox.messages != [])
        await line.socket.close()
        assert line.sandbox.messages[0].answer_lost

    @asked
    @pytest.mark.parametrize("kind", [FaultKind.TRUNCATED_JSON, FaultKind.HTML, FaultKind.EMPTY])
    async def test_what_is_no_json(self, line, step, kind):
        """A whole frame with half of the JSON, a page, or nothing."""
        line.sandbox.on(step, Fault(kind))
        await say(line, step)
        with pytest.raises(json.JSONDecodeError):
            await line.hear()
        await ended(line, step)
        assert (last(line, step).status, last(line, step).answer) == (200, Answer.SPOILED)

    @asked
    async def test_another_shape(self, line, step):
        """Valid JSON of something else."""
        line.sandbox.on(step, Fault(FaultKind.WRONG_JSON))
        await say(line, step)
        assert await line.hear() == {"entities": [], "total": 0}

    @asked
    async def test_a_huge_frame(self, line, step):
        """White space first, the true answer far behind it, in one frame."""
        line.sandbox.on(step, Fault(FaultKind.HUGE, size_bytes=200_000))
        await say(line, step)
        text = (await line.raw()).data
        assert len(text) > 200_000
        assert json.loads(text)["code"] == 200

    async def test_a_frame_larger_than_any_bound(self, line):
        """A client that refuses to read it is let go."""
        line.sandbox.on("jwt", Fault(FaultKind.HUGE))
        await line.say("getJwt")
        assert await line.closed() in (1006, 1009)
        await line.socket.close()
        await ended(line, Step.JWT)
        assert last(line, Step.JWT).answer is Answer.CUT

    @asked
    async def test_a_dripping_frame(self, line, step):
        """The true answer, byte by byte."""
        line.sandbox.on(step, Fault(FaultKind.DRIP, delay_s=0.00001))
        await say(line, step)
        assert (await line.hear())["code"] == 200
        await ended(line, step)
        assert last(line, step).answer is Answer.WHOLE

    async def test_an_answer_that_is_overtaken(self, line):
        """It is held back until the next one has gone out."""
        line.sandbox.on("configure", Fault(FaultKind.OVERTAKEN))
        await say(line, Step.CONFIGURE)
        assert (await line.ask("getJwt"))["class"] == "JwtResponse"
        assert (await line.hear())["class"] == "SessionResponse"

    async def test_a_session_that_has_expired_meanwhile(self, line):
        """It is over before the frame is looked at."""
        line.sandbox.on("message", Fault(FaultKind.SESSION_EXPIRED))
        await say(line, Step.MESSAGE)
        assert (await line.hear())["code"] == 4006
        assert (await line.configure())["body"]["newSession"] is True


class TestAnError:
    @pytest.mark.parametrize(
        ("step", "code", "name"),
        [
            (Step.CONFIGURE, 400, "string"),
            (Step.ATTACHMENT, 4001, "GenerateUrlError"),
            (Step.ATTACHMENT, 503, "string"),
            (Step.MESSAGE, 4011, "string"),
            (Step.MESSAGE, 5000, "string"),
            (Step.JWT, 4029, "TooManyRequestsErrorMessage"),
        ],
    )
    async def test_of_the_class_the_platform_would_choose(self, line, step, code, name):
        """Only the code need be said; nothing was done, and the next try passes."""
        line.sandbox.on(step, refuse(code))
        tracing_id = await say(line, step)
        frame = await line.hear()
        assert frame["class"] == name
        assert (frame["code"] if name == "string" else frame["body"]["errorCode"]) == code
        assert frame.get("tracingId", tracing_id) == tracing_id
        await ended(line, step)
        assert (last(line, step).status, last(line, step).answer) == (code, Answer.WHOLE)
        assert line.sandbox.messages == []
        await say(line, step)
        assert (await line.hear())["code"] == 200

    @pytest.mark.parametrize("name", ["string", "GenerateUrlError", "ErrorMessage", "Error"])
    async def test_of_the_class_that_is_asked_for(self, line, name):
        """Any class can carry any code, with any text."""
        line.sandbox.on("message", Fault(FaultKind.STATUS, status=4014, error_class=name, body="no such luck"))
        await say(line, Step.MESSAGE)
        frame = await line.hear()
        assert frame["class"] == name
        assert "no such luck" in (frame["body"], isinstance(frame["body"], dict) and frame["body"]["errorMessage"])

    async def test_that_names_the_attachment(self, line):
        """An error about a slot says whose."""
        line.sandbox.on("attachment", refuse(4005))
        await say(line, Step.ATTACHMENT)
        assert (await line.hear())["body"]["attachmentId"] == "c1d6c0a4-97a5-4f0a-8a39-94f6f0a2d703"

    async def test_that_asks_to_wait(self, line):
        """Retry-After becomes retryAfter."""
        line.sandbox.on("message", refuse(429, retry_after=7))
        await say(line, Step.MESSAGE)
        body = (await line.hear())["body"]
        assert (body["retryAfter"], body["errorCode"]) == (7, 429)

    async def test_after_processing(self, line):
        """The message stands although an error came."""
        line.sandbox.on("message", Fault(FaultKind.STATUS, status=5000, after_processing=True))
        await say(line, Step.MESSAGE)
        assert (await line.hear())["code"] == 5000
        assert [message.answer_lost for message in line.sandbox.messages] == [True]


class TestTheFile:
    async def test_an_expired_url(self, line):
        """The slot hands out a URL that is over already."""
        line.sandbox.on("attachment", Fault(FaultKind.EXPIRED_URL))
        answered = await line.put(await line.attach())
        assert (answered.status, "Request has expired" in answered.text) == (403, True)
        assert (await line.deliver())["class"] == "StructuredMessage"

    async def test_a_session_without_attachments(self, client):
        """The session opens with an empty profile."""
        client.sandbox.on("configure", Fault(FaultKind.CAPABILITY_DENIED))
        line = await dial(client)
        assert (await line.configure())["body"]["allowedMedia"]["inbound"]["fileTypes"] == []
        assert (await line.attach())["body"]["errorCode"] == 4000
        line = await opened(client)
        assert (await line.deliver())["class"] == "StructuredMessage"

    async def test_a_dropped_attachment(self, line):
        """One message loses its attachment without a word."""
        line.sandbox.on("message", Fault(FaultKind.DROPPED_ATTACHMENT))
        assert "content" not in (await line.deliver())["body"]
        assert "content" in (await line.deliver())["body"]
        assert [len(message.attachments) for message in line.sandbox.messages] == [0, 1]

    async def test_a_wrong_attachment_id(self, line):
        """The message stands with its attachment, the echo names another, the history the true one."""
        line.sandbox.on("message", Fault(FaultKind.WRONG_ATTACHMENT_ID))
        attachment_id = await line.stored()
        echo = await line.send(attachment_id)
        assert echo["body"]["content"][0]["attachment"]["id"] != attachment_id
        (message,) = line.sandbox.messages
        assert message.attachments[0].attachment_id == attachment_id
        await until(lambda: message.received.answer is Answer.SPOILED)
        (entity,) = (await line.history(await line.jwt())).json["entities"]
        assert entity["content"][0]["attachment"]["id"] == attachment_id

    @pytest.mark.parametrize("step", [Step.ATTACHMENT, Step.PUT, Step.EVENT, Step.MESSAGE])
    async def test_one_file(self, line, step):
        """A poison file is struck wherever its name is known, the others pass."""
        status = 500 if step is Step.PUT else 4003
        line.sandbox.on(step, refuse(status, times=None, file_name="poison*"))
        assert (await line.deliver("healthy.pdf"))["class"] == "StructuredMessage"
        with suppress(AssertionError):  # where the step comes before the message
            await line.deliver("poison 1.pdf")
        assert [message.attachments[0].file_name for message in line.sandbox.messages] == ["healthy.pdf"]
        assert last(line, step).file_name == "poison 1.pdf"

    async def test_one_deployment(self, client):
        """A fault can belong to a deployment, as it can to a queue."""
        client.sandbox.change(deployments=["broken"])
        client.sandbox.on("configure", Fault(FaultKind.STATUS, status=5000, queue_id="broken"))
        await opened(client)
        line = await dial(client, deployment_id="broken")
        assert (await line.configure(deploymentId="broken"))["code"] == 5000


class TestTheEvent:
    async def test_late(self, line):
        """It comes in its time, and until then the file does not count as uploaded."""
        line.sandbox.on("event", Fault(FaultKind.DELAY, delay_s=0.05))
        slot = await line.attach()
        assert (await line.put(slot)).status == 200
        assert (await line.send(slot["body"]["attachmentId"]))["code"] == 4010
        assert (await line.hear())["class"] == "UploadSuccessEvent"

    async def test_before_the_answer_of_the_put(self, line):
        """It overtakes the answer of the PUT, which has to wait for it."""
        line.sandbox.on("event", Fault(FaultKind.EARLY))
        line.sandbox.on("put", Fault(FaultKind.HANG, after_processing=True))
        slot = await line.attach()
        putting = asyncio.create_task(line.put(slot))
        assert (await line.hear())["class"] == "UploadSuccessEvent"
        assert not putting.done()
        putting.cancel()

    async def test_of_a_put_whose_answer_is_lost(self, line):
        """What was stored has its event, whatever became of the answer."""
        line.sandbox.on("put", Fault(FaultKind.LOST_ANSWER))
        with pytest.raises(aiohttp.ClientError):
            await line.put(await line.attach())
        assert (await line.hear())["class"] == "UploadSuccessEvent"

    async def test_of_a_put_that_is_answered_late(self, line):
        """The event does not wait for an answer that is late."""
        line.sandbox.on("put", Fault(FaultKind.DELAY, delay_s=30))
        slot = await line.attach()
        putting = asyncio.create_task(line.put(slot))
        assert (await line.hear())["class"] == "UploadSuccessEvent"
        putting.cancel()

    async def test_out_of_order(self, line):
        """It is held back until another frame has gone out."""
        line.sandbox.on("event", Fault(FaultKind.OVERTAKEN))
        slot = await line.attach()
        await line.put(slot)
        assert (await line.send(slot["body"]["attachmentId"]))["body"]["content"]
        assert (await line.hear())["class"] == "UploadSuccessEvent"

    async def test_lost(self, line):
        """Nobody hears it, the file is there."""
        line.sandbox.on("event", Fault(FaultKind.HANG))
        slot = await line.attach()
        await line.put(slot)
        answer = await line.ask("getAttachment", attachmentId=slot["body"]["attachmentId"])
        assert answer["body"]["fileSize"] == 5
        assert last(line, Step.EVENT).answer is Answer.NONE

    @pytest.mark.parametrize("code", [4001, 4003])
    async def test_of_a_failure(self, line, code):
        """The file was not taken, and no message can carry it."""
        line.sandbox.on("event", refuse(code))
        slot = await line.attach()
        assert (await line.put(slot)).status == 200
        event = await line.hear()
        assert (event["type"], event["class"], event["code"]) == ("message", "UploadFailureEvent", 200)
        assert event["body"]["errorCode"] == code
        assert event["body"]["errorMessage"]
        assert (await line.send(slot["body"]["attachmentId"]))["code"] == 4009

    @pytest.mark.parametrize(("fault", "code"), [(Fault(FaultKind.RESET), 1006), (hang_up(1011), 1011)])
    async def test_an_end_instead(self, line, fault, code):
        """The connection ends where the event was due; the file is there for the next one."""
        line.sandbox.on("event", fault)
        slot = await line.attach()
        await line.put(slot)
        assert await line.closed() == code
        again = await opened(line.client, line.token)
        assert (await again.send(slot["body"]["attachmentId"]))["body"]["content"]


class TestTheHandshake:
    @pytest.mark.parametrize("status", [403, 429, 500, 503])
    async def test_refused(self, client, status):
        """An HTTP status instead of a socket."""
        client.sandbox.on("connect", refuse(status, retry_after=3))
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await dial(client)
        assert (caught.value.status, caught.value.headers["Retry-After"]) == (status, "3")
        assert client.sandbox.requests("connect")[0].status == status
        await opened(client)

    @pytest.mark.parametrize("kind", [FaultKind.RESET_UNREAD, FaultKind.RESET])
    async def test_reset(self, client, kind):
        """The connection is gone before there is a socket."""
        client.sandbox.on("connect", Fault(kind))
        with pytest.raises(aiohttp.ClientError):
            await dial(client)
        assert client.sandbox.requests("connect")[0].answer is Answer.NONE

    @pytest.mark.parametrize("kind", [FaultKind.HTML, FaultKind.EMPTY])
    async def test_a_portal(self, client, kind):
        """200 is no handshake."""
        client.sandbox.on("connect", Fault(kind))
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await dial(client)
        assert caught.value.status == 200

    async def test_a_hang(self, client):
        """Nothing comes, and when the client gives up nothing stays behind."""
        client.sandbox.on("connect", Fault(FaultKind.HANG))
        waiting = asyncio.create_task(dial(client))
        await until(lambda: any(received.fault for received in client.sandbox.requests("connect")))
        waiting.cancel()
        await until(lambda: client.sandbox.ledger.answers[Step.CONNECT, None] == 1)

    async def test_late(self, client):
        """The socket opens later."""
        client.sandbox.on("connect", Fault(FaultKind.DELAY, delay_s=0.01))
        await opened(client)

    async def test_closed_at_once(self, client):
        """The socket opens and is closed."""
        client.sandbox.on("connect", hang_up(1013))
        line = await dial(client)
        assert await line.closed() == 1013


class TestOverHttp:
    async def test_the_deployment(self, client):
        """The configuration is an HTTP answer as any other."""
        url = f"{client.sandbox.config_url}/webdeployments/v1/deployments/{client.sandbox.deployment_id}/config.json"
        client.sandbox.on("deployment", refuse(503))
        client.sandbox.on("deployment", Fault(FaultKind.TRUNCATED_JSON))
        assert (await client.call("GET", url)).status == 503
        with pytest.raises(json.JSONDecodeError):
            await client.call("GET", url)
        assert (await client.call("GET", url)).status == 200

    async def test_the_history(self, line):
        """So is the history."""
        line.sandbox.on("history", refuse(401))
        line.sandbox.on("history", Fault(FaultKind.LOST_ANSWER))
        jwt = await line.jwt()
        assert (await line.history(jwt)).status == 401
        with pytest.raises(aiohttp.ClientError):
            await line.history(jwt)
        assert (await line.history(jwt)).status == 200


class TestAnOutage:
    async def test_sockets_are_reset_and_sessions_stay(self, line):
        """After the outage the same token finds its session and what it had uploaded."""
        attachment_id = await line.stored()
        await line.sandbox.go_down()
        assert await line.closed() == 1006
        with pytest.raises(aiohttp.ClientConnectorError):
            await dial(line.client)
        await line.sandbox.come_up()
        again = await opened(line.client, line.token)
        assert (await again.send(attachment_id))["body"]["content"]
        assert len(line.sandbox.messages_for("claim.pdf")) == 1

    async def test_an_event_under_way_is_forgotten_at_the_end(self, start):
        """A sandbox that ends leaves no timer behind."""
        line = await opened(await start(upload_event_delay_s=30))
        assert (await line.put(await line.attach())).status == 200
        assert len(line.sandbox._uploads._timers) == 1
        await line.sandbox._close()
        assert len(line.sandbox._uploads._timers) == 0


@pytest.mark.parametrize(
    ("step", "fault"),
    [
        ("guest", {"kind": FaultKind.CLOSE, "status": 1001}),
        ("put", {"kind": FaultKind.OVERTAKEN}),
        ("message", {"kind": FaultKind.EARLY}),
        ("attachment", {"kind": FaultKind.DROPPED_ATTACHMENT}),
        ("event", {"kind": FaultKind.SESSION_EXPIRED}),
        ("event", {"kind": FaultKind.RESET_UNREAD}),
        ("connect", {"kind": FaultKind.DRIP}),
        ("connect", {"kind": FaultKind.STATUS, "status": 4001}),
        ("history", {"kind": FaultKind.STATUS, "status": 4001}),
        ("configure", {"kind": FaultKind.STATUS, "file_name": "*"}),
        ("message", {"kind": FaultKind.RESET_UNREAD, "file_name": "*"}),
        ("message", {"kind": FaultKind.CLOSE}),
        ("message", {"kind": FaultKind.DELAY, "delay_s": 1, "after_processing": True}),
    ],
)
async def test_what_cannot_be_is_refused_at_once(client, step, fault):
    """A fault that could never strike is a mistake of the test, and told when it is armed."""
    with pytest.raises(ValueError):
        client.sandbox.on(step, Fault(**fault))
