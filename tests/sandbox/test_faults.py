"""Each fault does the damage it is named after, to the requests it is meant for, and says so in the ledger."""

import asyncio
import json

import aiohttp
import pytest

from attachd.sandbox import WEBCHAT_STEPS, Answer, Fault, FaultKind, Step, refuse

from ..waiting import until

LOST = (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError)
UNREAD = pytest.mark.parametrize("kind", [FaultKind.RESET_UNREAD, FaultKind.RESET])


async def call(client, step: Step):
    """One request of this step, with everything it needs done before."""
    match step:
        case Step.TOKEN:
            return await client.ask_token()
        case Step.GUEST:
            return await client.guest()
        case Step.UPLOAD:
            return await client.ask_upload((await client.guest()).json["guestId"])
        case Step.PUT:
            return await client.put(await client.ticket())
        case Step.CONVERSATION:
            return await client.converse(await client.stored())


def last(client, step: Step):
    return client.sandbox.requests(step)[-1]


@pytest.mark.parametrize("step", WEBCHAT_STEPS)
class TestAtEveryStep:
    async def test_a_status_is_answered_in_the_form_of_the_step(self, client, step):
        """The request is not processed; status, headers and an error of the right form come back."""
        client.sandbox.on(step, refuse(503, retry_after=7))
        answered = await call(client, step)
        assert (answered.status, answered.headers["Retry-After"]) == (503, "7")
        expected = {Step.TOKEN: '"error": "temporarily_unavailable"', Step.PUT: "<Code>SlowDown</Code>"}
        assert expected.get(step, '"code": "service.unavailable"') in answered.text
        assert client.sandbox.messages == []
        assert (last(client, step).status, last(client, step).answer) == (503, Answer.WHOLE)
        assert (await call(client, step)).status == 200

    async def test_a_body_can_be_given(self, client, step):
        """Any text may stand where the error stands."""
        headers = {"Content-Type": "text/plain"}
        client.sandbox.on(step, Fault(FaultKind.STATUS, status=418, headers=headers, body="teapot"))
        answered = await call(client, step)
        assert (answered.status, answered.headers["Content-Type"], answered.text) == (418, "text/plain", "teapot")

    @UNREAD
    async def test_a_reset_before_the_answer(self, client, step, kind):
        """The connection is reset and nothing was processed."""
        client.sandbox.on(step, Fault(kind))
        with pytest.raises(LOST):
            await call(client, step)
        received = last(client, step)
        assert (received.status, received.answer, received.fault) == (None, Answer.NONE, kind)
        assert client.sandbox.messages == []
        assert client.sandbox.objects == [] or step is Step.CONVERSATION

    async def test_a_lost_answer(self, client, step):
        """The request is processed, the client hears nothing."""
        client.sandbox.on(step, Fault(FaultKind.LOST_ANSWER))
        with pytest.raises(LOST):
            await call(client, step)
        assert (last(client, step).status, last(client, step).answer) == (200, Answer.NONE)
        assert [message.answer_lost for message in client.sandbox.messages] == [True] * (step is Step.CONVERSATION)
        assert len(client.sandbox.objects) == (step in (Step.PUT, Step.CONVERSATION))

    async def test_a_reset_in_the_middle_of_the_answer(self, client, step):
        """The status arrives, the body does not."""
        client.sandbox.on(step, Fault(FaultKind.RESET_MID_ANSWER))
        with pytest.raises(aiohttp.ClientError):
            await call(client, step)
        assert (last(client, step).status, last(client, step).answer) == (200, Answer.CUT)

    async def test_a_page_instead(self, client, step):
        """A captive portal says 200 and shows a page."""
        client.sandbox.on(step, Fault(FaultKind.HTML))
        answered = await call(client, step)
        assert (answered.status, answered.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        assert last(client, step).answer is Answer.SPOILED

    async def test_an_empty_answer(self, client, step):
        """200 and nothing."""
        client.sandbox.on(step, Fault(FaultKind.EMPTY))
        answered = await call(client, step)
        assert (answered.status, answered.raw) == (200, b"")
        assert last(client, step).answer is Answer.SPOILED

    async def test_a_hang_ends_with_its_client(self, client, step):
        """Nothing comes, and when the client gives up nothing stays behind."""
        client.sandbox.on(step, Fault(FaultKind.HANG))
        waiting = asyncio.create_task(call(client, step))
        await until(lambda: any(received.fault for received in client.sandbox.requests(step)))
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await until(lambda: client.sandbox.ledger.answers[step, None] == 1)
        assert last(client, step).answer is Answer.NONE

    async def test_a_huge_answer(self, client, step):
        """White space first, the true answer far behind it."""
        client.sandbox.on(step, Fault(FaultKind.HUGE, size_bytes=200_000))
        answered = await call(client, step)
        assert answered.status == 200
        assert len(answered.raw) >= 200_000
        assert answered.raw[:200_000].isspace()


@pytest.mark.parametrize("step", [step for step in WEBCHAT_STEPS if step is not Step.PUT])
class TestWhereJsonIsAnswered:
    async def test_truncated_json(self, client, step):
        """HTTP says complete, the JSON is not."""
        client.sandbox.on(step, Fault(FaultKind.TRUNCATED_JSON))
        with pytest.raises(json.JSONDecodeError):
            await call(client, step)
        assert (last(client, step).status, last(client, step).answer) == (200, Answer.SPOILED)

    async def test_wrong_json(self, client, step):
        """Valid JSON of something else."""
        client.sandbox.on(step, Fault(FaultKind.WRONG_JSON))
        assert (await call(client, step)).json == {"entities": [], "total": 0}

    async def test_a_dripping_answer(self, client, step):
        """The true answer, byte by byte."""
        client.sandbox.on(step, Fault(FaultKind.DRIP, delay_s=0.00001))
        assert (await call(client, step)).json
        assert last(client, step).answer is Answer.WHOLE


async def test_a_client_that_does_not_read_the_huge_answer_is_let_go(client):
    """The answer is larger than any bound; it ends when the client has had enough."""
    client.sandbox.on("guest", Fault(FaultKind.HUGE))
    headers = {"Authorization": f"Bearer {client.token}"}
    async with client.session.post(
        f"{client.sandbox.api_url}/api/v2/webchat/guest", headers=headers, json={}
    ) as answer:
        assert answer.content_length > 1024**3
        answer.close()
    await until(lambda: sum(client.sandbox.ledger.answers.values()) == 2)
    assert last(client, Step.GUEST).answer is Answer.CUT


async def test_a_late_answer_is_the_true_one(client):
    """The request is processed at once, only the answer is late."""
    client.sandbox.on("conversation", Fault(FaultKind.DELAY, delay_s=0.05))
    waiting = asyncio.create_task(client.deliver())
    await until(lambda: client.sandbox.messages != [])
    assert not waiting.done()
    assert (await waiting).status == 200
    assert not client.sandbox.messages[0].answer_lost


async def test_a_client_that_does_not_wait_for_a_late_answer_has_lost_it(client):
    """A timeout is a lost answer: the message stands."""
    client.sandbox.on("conversation", Fault(FaultKind.DELAY, delay_s=30))
    waiting = asyncio.create_task(client.deliver())
    await until(lambda: client.sandbox.messages != [])
    waiting.cancel()
    await until(lambda: client.sandbox.ledger.answers[Step.CONVERSATION, 200] == 1)
    assert client.sandbox.messages[0].answer_lost


async def test_an_error_after_processing(client):
    """A gateway may say 502 although the message stands."""
    client.sandbox.on("conversation", Fault(FaultKind.STATUS, status=502, after_processing=True))
    assert (await client.deliver()).status == 502
    assert client.sandbox.messages[0].answer_lost


async def test_an_expired_url(client):
    """The upload request hands out a URL that is over already."""
    client.sandbox.on("upload", Fault(FaultKind.EXPIRED_URL))
    answered = await client.put(await client.ticket())
    assert (answered.status, "Request has expired" in answered.text) == (403, True)
    assert (await client.deliver()).status == 200


async def test_a_wrong_attachment_id(client):
    """The message stands, but its answer speaks of another attachment."""
    client.sandbox.on("conversation", Fault(FaultKind.WRONG_ATTACHMENT_ID))
    body = (await client.deliver()).json
    (message,) = client.sandbox.messages
    assert body["attachments"][0]["id"] != message.attachments[0].attachment_id
    assert message.answer_lost


async def test_a_capability_that_is_not_granted(client):
    """The session opens without attachments, and the upload request is refused accordingly."""
    client.sandbox.on("guest", Fault(FaultKind.CAPABILITY_DENIED))
    body = (await client.guest()).json
    assert body["capabilities"]["attachments"] is False
    assert (await client.ask_upload(body["guestId"])).status == 400


class TestWhoIsStruck:
    async def statuses(self, client, count):
        return [(await client.guest()).status for _ in range(count)]

    async def test_so_many_times(self, client):
        """A fault strikes `times` times, then it is spent."""
        client.sandbox.on("guest", refuse(500, times=2))
        assert await self.statuses(client, 3) == [500, 500, 200]
        assert client.sandbox.faults.armed() == []

    async def test_for_ever(self, client):
        """Until it is cleared."""
        client.sandbox.on("guest", refuse(500, times=None))
        assert await self.statuses(client, 3) == [500, 500, 500]
        client.sandbox.faults.clear()
        assert await self.statuses(client, 1) == [200]

    async def test_not_the_first(self, client):
        """The first `skip` requests are spared."""
        client.sandbox.on("guest", Fault(FaultKind.STATUS, skip=2))
        assert await self.statuses(client, 4) == [200, 200, 503, 200]

    async def test_by_chance_that_repeats(self, client):
        """The same seed strikes the same requests."""
        runs = []
        for _ in range(2):
            client.sandbox.faults.clear()
            client.sandbox.on("guest", Fault(FaultKind.STATUS, times=None, probability=0.5, seed=7))
            runs.append(await self.statuses(client, 20))
        assert runs[0] == runs[1]
        assert set(runs[0]) == {200, 503}

    async def test_one_after_the_other(self, client):
        """The fault armed first strikes first."""
        client.sandbox.on("guest", refuse(500))
        client.sandbox.on("guest", refuse(502))
        assert await self.statuses(client, 3) == [500, 502, 200]

    @pytest.mark.parametrize("step", [Step.UPLOAD, Step.PUT, Step.CONVERSATION])
    async def test_one_file(self, client, step):
        """A poison file is struck wherever its name is known, the others pass."""
        client.sandbox.on(step, refuse(500, times=None, file_name="poison*"))
        assert (await client.deliver("healthy.pdf")).status == 200
        with pytest.raises(AssertionError):
            assert (await client.deliver("poison 1.pdf")).status == 200
        assert [message.attachments[0].file_name for message in client.sandbox.messages] == ["healthy.pdf"]
        assert last(client, step).file_name == "poison 1.pdf"

    async def test_one_queue(self, client):
        """A fault can belong to a queue, from the session on."""
        client.sandbox.change(queues=["broken"])
        for step in (Step.GUEST, Step.UPLOAD):
            client.sandbox.on(step, Fault(FaultKind.STATUS, queue_id="broken", times=1))
        assert (await client.deliver()).status == 200
        assert (await client.guest("broken")).status == 503
        guest_id = (await client.guest("broken")).json["guestId"]
        assert (await client.ask_upload(guest_id)).status == 503

    @pytest.mark.parametrize(
        ("step", "fault"),
        [
            ("put", {"kind": FaultKind.WRONG_JSON}),
            ("guest", {"kind": FaultKind.EXPIRED_URL}),
            ("upload", {"kind": FaultKind.WRONG_ATTACHMENT_ID}),
            ("put", {"kind": FaultKind.CAPABILITY_DENIED}),
            ("guest", {"kind": FaultKind.STATUS, "file_name": "*"}),
            ("token", {"kind": FaultKind.STATUS, "queue_id": "q"}),
            ("upload", {"kind": FaultKind.RESET_UNREAD, "file_name": "*"}),
            ("guest", {"kind": FaultKind.DELAY}),
            ("guest", {"kind": FaultKind.LOST_ANSWER, "after_processing": True}),
            ("guest", {"kind": FaultKind.STATUS, "probability": 2}),
        ],
    )
    async def test_what_cannot_be_is_refused_at_once(self, client, step, fault):
        """A fault that could never strike is a mistake of the test, and told when it is armed."""
        with pytest.raises(ValueError):
            client.sandbox.on(step, Fault(**fault))
