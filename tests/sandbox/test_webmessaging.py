"""What the guest protocol accepts and says: deployment, handshake, session, file, message, history."""

import hashlib
import re
from uuid import uuid4

import aiohttp
import pytest
import yaml

from attachd.sandbox import Answer, Stage, Step, step_of

from ..waiting import until
from .client import PDF
from .messenger import Line, dial, message_of, opened

UUID = re.compile(r"[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}")


@pytest.fixture
async def line(client) -> Line:
    """A socket with a configured session."""
    return await opened(client)


def declined(frame, code, error_class="string"):
    """An error frame with this code, wherever its class carries it."""
    assert frame["class"] == error_class, frame
    assert (frame["code"] if error_class == "string" else frame["body"]["errorCode"]) == code
    return frame


async def test_a_file_becomes_a_message(line):
    """Configure, upload, event, message: the echo carries our attachment, the ledger what was stored."""
    slot = await line.attach("claim.pdf")
    attachment_id = slot["body"]["attachmentId"]
    assert (await line.put(slot)).status == 200
    event = await line.hear()
    assert (event["type"], event["class"], event["code"]) == ("message", "UploadSuccessEvent", 200)
    assert set(event["body"]) == {"attachmentId", "downloadUrl", "timestamp"}
    attributes = {"channel": {"metadata": {"customAttributes": {"jobId": "42"}}}, "metadata": {"id": "own"}}
    tracing_id = await line.say("onMessage", message=message_of(attachment_id, **attributes))
    echo = await line.hear()
    assert (echo["type"], echo["class"], echo["tracingId"]) == ("message", "StructuredMessage", tracing_id)
    body = echo["body"]
    assert (body["type"], body["direction"], body["text"]) == ("Text", "Inbound", "Document attached.")
    assert re.fullmatch("[0-9a-f]{32}", body["id"])
    assert UUID.fullmatch(body["channel"]["messageId"])
    assert body["metadata"]["id"] == "own"
    assert body["metadata"]["correlationId"]
    (item,) = body["content"]
    told = item["attachment"]
    assert (told["id"], told["filename"], told["fileSize"]) == (attachment_id, "claim.pdf", 5)
    assert (told["mime"], told["mediaType"]) == (PDF, "File")
    (message,) = line.sandbox.messages_for("claim.pdf")
    assert (message.message_id, message.queue_id) == (body["id"], line.sandbox.deployment_id)
    assert (message.text, message.metadata, message.skills) == ("Document attached.", {"jobId": "42"}, ())
    assert message.attachments[0].sha256 == hashlib.sha256(b"bytes").hexdigest()
    assert line.sandbox.ledger.guests[message.guest_id].token == line.token
    await until(lambda: not message.answer_lost)


async def test_every_step_is_in_the_ledger(line):
    """Requests over HTTP, frames and the event stand in the order in which they happened."""
    await line.deliver()
    await line.history(await line.jwt())
    steps = [one.step for one in line.sandbox.ledger.received if one.step is not Step.TOKEN]
    assert steps == ["connect", "configure", "attachment", "put", "event", "message", "jwt", "history"]
    assert [one.status for one in line.sandbox.requests("connect")] == [101]
    assert {one.file_name for one in line.sandbox.requests("event")} == {"claim.pdf"}
    assert [one.code for one in line.sandbox.requests("message")] == ["StructuredMessage"]
    assert {one.answer for one in line.sandbox.ledger.received} == {Answer.WHOLE}


async def test_the_same_attachment_twice_is_two_messages(line):
    """Nothing is de-duplicated, so that a duplicate can be counted."""
    attachment_id = await line.stored()
    await line.send(attachment_id)
    await line.send(attachment_id)
    assert len(line.sandbox.messages_for("claim.pdf")) == 2


def test_each_stage_has_a_step_in_both_protocols():
    """One test can be written over both gateways by naming the stage."""
    both = {stage: (step_of(stage, "webchat"), step_of(stage, "webmessaging")) for stage in Stage}
    assert both == {
        "session": (Step.GUEST, Step.CONFIGURE),
        "upload": (Step.UPLOAD, Step.ATTACHMENT),
        "put": (Step.PUT, Step.PUT),
        "conversation": (Step.CONVERSATION, Step.MESSAGE),
    }


async def test_the_config_points_here(client):
    """The printed configuration has exactly what this gateway needs, and no credentials."""
    config = yaml.safe_load(client.sandbox.config_yaml("/srv/a", "/var/lib/x", gateway="webmessaging"))
    assert config == {
        "platform": {
            "environment": "sandbox.invalid",
            "gateway": "webmessaging",
            "deployment_id": client.sandbox.deployment_id,
            "messaging_url": client.sandbox.messaging_url,
            "api_url": client.sandbox.api_url,
            "config_url": client.sandbox.config_url,
        },
        "inboxes": [{"path": "/srv/a"}],
        "state_dir": "/var/lib/x",
    }


class TestDeployment:
    async def config(self, client, deployment_id=None):
        wanted = deployment_id or client.sandbox.deployment_id
        return await client.call(
            "GET", f"{client.sandbox.config_url}/webdeployments/v1/deployments/{wanted}/config.json"
        )

    async def test_it_tells_where_and_what(self, client):
        """The public configuration names the endpoints, the apps, the upload and the sign-in."""
        config = (await self.config(client)).json
        assert config["status"] == "Active"
        assert config["apiEndpoint"] == client.sandbox.api_url
        conversations = config["messenger"]["apps"]["conversations"]
        assert conversations == {
            "messagingEndpoint": client.sandbox.messaging_url,
            "autoStart": {"enabled": False},
            "conversationDisconnect": {"enabled": False},
            "conversationClear": {"enabled": False},
        }
        assert config["messenger"]["fileUpload"] == {
            "enableAttachments": True,
            "modes": [{"fileTypes": ["*/*"], "maxFileSizeKB": 10240}],
        }
        assert config["auth"] == {"enabled": False, "allowSessionUpgrade": False}

    async def test_its_variants(self, start):
        """Inactive, old, starting by itself, ending read-only: each can be chosen."""
        client = await start(
            deployment_status="Inactive",
            enable_attachments="absent",
            auto_start=True,
            conversation_disconnect="ReadOnly",
            conversation_clear=True,
        )
        config = (await self.config(client)).json
        conversations = config["messenger"]["apps"]["conversations"]
        assert config["status"] == "Inactive"
        assert "enableAttachments" not in config["messenger"]["fileUpload"]
        assert conversations["autoStart"] == conversations["conversationClear"] == {"enabled": True}
        assert conversations["conversationDisconnect"] == {"enabled": True, "type": "ReadOnly"}

    async def test_an_unknown_one(self, client):
        """A deployment that does not exist is 404."""
        assert (await self.config(client, "nowhere")).status == 404
        client.sandbox.change(deployments=["elsewhere"])
        assert (await self.config(client, "elsewhere")).json["id"] == "elsewhere"


class TestHandshake:
    async def refused(self, client, **options):
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await dial(client, **options)
        return caught.value.status

    async def test_an_unknown_deployment(self, client):
        """Without a deployment that exists the door stays shut."""
        assert await self.refused(client, deployment_id="nowhere") == 403
        assert await self.refused(client, deployment_id="") == 403
        assert [one.status for one in client.sandbox.requests("connect")] == [403, 403]

    async def test_an_inactive_deployment(self, start):
        """An inactive deployment takes nobody."""
        assert await self.refused(await start(deployment_status="Inactive")) == 403

    async def test_origins(self, start):
        """With a list of domains only these come in, written with a scheme or without."""
        client = await start(allowed_origins={"files.example", "https://other.example"})
        assert await self.refused(client) == 403
        assert await self.refused(client, origin="https://evil.example") == 403
        for origin in ("https://files.example", "files.example", "https://other.example"):
            assert not (await dial(client, origin=origin)).socket.closed

    async def test_no_websocket(self, client):
        """A plain request is a mistake."""
        url = f"{client.sandbox.api_url}/v1?deploymentId={client.sandbox.deployment_id}"
        assert (await client.call("GET", url)).status == 400

    async def test_too_many_connections(self, start, manual):
        """New connections have a rate for the whole deployment."""
        client = await start(manual.clock(), connections_per_minute=2)
        for _ in range(2):
            await dial(client)
        assert await self.refused(client) == 429
        manual.now_s += 60
        await dial(client)


class TestFraming:
    async def test_a_ping_is_answered(self, line):
        """The other side lives as long as its pongs come."""
        line.socket._autoping = False
        await line.socket.ping(b"alive?")
        message = await line.raw()
        assert (message.type, bytes(message.data)) == (aiohttp.WSMsgType.PONG, b"alive?")

    async def test_a_frame_that_is_too_large(self, start):
        """A frame above the bound ends the connection with 1009."""
        line = await opened(await start(frame_limit_bytes=1000))
        await line.say("echo", message={"type": "Text", "text": "x" * 1000})
        assert await line.closed() == 1009

    async def test_a_binary_frame(self, line):
        """Only text is spoken here."""
        await line.socket.send_bytes(b"{}")
        assert await line.closed() == 1003

    @pytest.mark.parametrize("text", ["{", "[]", "{}", '{"action": 1}', '{"action": "fly"}', "[" * 5000])
    async def test_what_is_no_frame(self, line, text):
        """Nonsense is answered with 400, and the connection stands."""
        await line.socket.send_str(text)
        declined(await line.hear(), 400)
        assert line.sandbox.requests("unknown")[-1].status == 400
        assert (await line.ask("getJwt"))["class"] == "JwtResponse"

    async def test_the_client_hangs_up(self, line):
        """An orderly end from the client leaves the session as it is."""
        await line.socket.close()
        again = await dial(line.client, line.token)
        assert (await again.configure())["body"]["newSession"] is False

    async def test_clients_that_vanish_leave_nothing_behind(self, client):
        """A socket that is gone is gone from its session too."""
        for _ in range(5):
            line = await opened(client, "one token")
            line.socket._response.connection.transport.abort()
        line = await opened(client, "one token")
        (session,) = client.sandbox._sessions._by_token.values()
        await until(lambda: len(session.outlets) == 1)


class TestSession:
    async def test_the_answer(self, client):
        """A new token opens a session and hears what it may send and how long it lives."""
        line = await dial(client)
        tracing_id = await line.say("configureSession", deploymentId=client.sandbox.deployment_id, startNew=False)
        answer = await line.hear()
        assert (answer["type"], answer["class"], answer["code"]) == ("response", "SessionResponse", 200)
        assert answer["tracingId"] == tracing_id
        body = answer["body"]
        assert 259_190 < body.pop("expirationDate") - client.sandbox.requests("configure")[0].wall_s < 259_210
        assert body == {
            "connected": True,
            "newSession": True,
            "readOnly": False,
            "allowedMedia": {"inbound": {"fileTypes": [{"type": "*/*"}], "maxFileSizeKB": 10240}},
            "blockedExtensions": [".exe", ".bat"],
            "maxCustomDataBytes": 2048,
            "durationSeconds": 259200,
        }

    async def test_the_same_token_is_the_same_session(self, line):
        """Who comes again with its token goes on where it was."""
        first = await line.deliver()
        again = await dial(line.client, line.token)
        assert (await again.configure())["body"]["newSession"] is False
        again_id = await again.stored("second.pdf")
        await again.send(again_id)
        one, other = line.sandbox.messages
        assert (one.guest_id, one.conversation_id) == (other.guest_id, other.conversation_id)
        assert first["class"] == "StructuredMessage"

    async def test_known_from_the_first_message_on(self, start):
        """A platform may forget sessions in which nothing was said."""
        client = await start(session_known_from="message")
        line = await opened(client)
        assert (await line.configure())["body"]["newSession"] is True
        await line.send()
        assert (await line.configure())["body"]["newSession"] is False

    async def test_another_deployment_than_that_of_the_socket(self, client):
        """The frame must name the deployment of the connection."""
        line = await dial(client)
        frame = declined(await line.configure(deploymentId="nowhere"), 400)
        assert frame["body"] == "Deployment not found"

    async def test_nothing_goes_before_it(self, client):
        """A socket without a configured session is told that there is none."""
        line = await dial(client)
        declined(await line.attach(), 4007)
        declined(await line.send(), 4007)

    async def test_the_profile_alone(self, line):
        """getConfiguration tells what configureSession told."""
        answer = await line.ask("getConfiguration", deploymentId=line.sandbox.deployment_id)
        assert answer["class"] == "GetConfigurationResponse"
        assert answer["body"]["allowedMedia"]["inbound"]["maxFileSizeKB"] == 10240
        assert answer["body"]["sessionDurationSeconds"] == 259200
        declined(await line.ask("getConfiguration", deploymentId="nowhere"), 400)

    async def test_numbers_as_doubles(self, start):
        """The schema calls them numbers, so they may come with a point."""
        client = await start(doubles=True)
        line = await dial(client)
        await line.say("configureSession", deploymentId=client.sandbox.deployment_id)
        text = (await line.raw()).data
        for figure in ('"maxCustomDataBytes": 2048.0', '"durationSeconds": 259200.0', '"maxFileSizeKB": 10240.0'):
            assert figure in text

    async def test_a_fourth_socket_pushes_out_the_first(self, client):
        """Three sockets may share a token; the oldest hears that it is out, and is."""
        first, *_ = lines = [await opened(client, "one token") for _ in range(4)]
        frame = await first.hear()
        assert (frame["class"], frame["body"]) == ("ConnectionClosedEvent", {"reason": "connectionLimit"})
        declined(await first.send(), 4007)
        assert (await lines[1].send())["class"] == "StructuredMessage"

    async def test_the_reason_under_its_other_name(self, start):
        """Client and schema disagree on how the field is called."""
        client = await start(reason_field="reasonCode", sockets_per_session=1)
        first, _ = [await opened(client, "one token") for _ in range(2)]
        assert (await first.hear())["body"] == {"reasonCode": "connectionLimit"}

    async def test_every_socket_of_a_session_hears_a_message(self, client):
        """The echo reaches the other sockets too."""
        one, other = [await opened(client, "one token") for _ in range(2)]
        echo = await one.send()
        assert await other.hear() == echo

    async def test_closing_it(self, client):
        """closeSession drops all sockets of the token: the others are told, the caller gets an answer."""
        one, other = [await opened(client, "one token") for _ in range(2)]
        answer = await one.ask("closeSession", closeAllConnections=True)
        assert (answer["class"], answer["body"]) == ("SessionResponse", {"connected": False})
        assert (await other.hear())["class"] == "ConnectionClosedEvent"
        declined(await one.send(), 4007)

    async def test_it_expires(self, start, manual):
        """After its life, counted from the last message, the token is worth nothing until it opens another session."""
        line = await opened(await start(manual.clock(), session_life_s=100))
        manual.now_s += 99
        assert (await line.send())["class"] == "StructuredMessage"
        manual.now_s += 99
        assert (await line.send())["class"] == "StructuredMessage"
        manual.now_s += 100
        declined(await line.send(), 4006)
        assert (await line.configure())["body"]["newSession"] is True
        await line.send()
        first, second, third = (message.guest_id for message in line.sandbox.messages)
        assert first == second != third

    @pytest.mark.parametrize("kind", ["response", "message"])
    async def test_its_end_may_be_an_event(self, start, manual, kind):
        """An expired session can be answered with SessionExpiredEvent, in either envelope."""
        client = await start(manual.clock(), session_life_s=100, expired_as="event", error_shape=kind)
        line = await opened(client)
        manual.now_s += 100
        frame = await line.ask("echo", message={"type": "Text", "text": "ping"})
        assert (frame["class"], frame["type"], frame["code"], frame["body"]) == ("SessionExpiredEvent", kind, 200, {})

    async def test_its_end_is_told_to_who_listens(self, line):
        """When the platform ends sessions, their sockets hear of it at once."""
        line.sandbox.expire_sessions()
        assert (await line.hear())["class"] == "SessionExpiredEvent"
        declined(await line.attach(), 4006)

    async def test_read_only(self, start):
        """A read-only session says so and takes nothing."""
        line = await dial(await start(read_only=True))
        assert (await line.configure())["body"]["readOnly"] is True
        declined(await line.send(), 409)
        declined(await line.attach(), 409)

    async def test_an_agent_ends_the_conversation(self, line):
        """The session hears of it, becomes read-only, and startNew begins another one."""
        await line.send()
        line.sandbox.disconnect_sessions()
        event = (await line.hear())["body"]["events"][0]
        assert event["presence"] == {"type": "Disconnect"}
        declined(await line.send(), 409)
        assert (await line.configure())["body"]["readOnly"] is True
        body = (await line.configure(startNew=True))["body"]
        assert (body["newSession"], body["readOnly"]) == (True, False)
        await line.send()
        one, other = line.sandbox.messages
        assert one.guest_id != other.guest_id

    async def test_start_new_changes_nothing_while_it_can_be_written(self, line):
        """Only a read-only session is replaced."""
        assert (await line.configure(startNew=True))["body"]["newSession"] is False

    async def test_clearing_forgets_it(self, line):
        """After clear() no token is known."""
        line.sandbox.clear()
        declined(await line.send(), 4007)
        assert (await line.configure())["body"]["newSession"] is True


class TestJoin:
    EVENT = {"type": "Event", "events": [{"eventType": "Presence", "presence": {"type": "Join"}}]}  # noqa: RUF012

    async def test_where_conversations_start_by_themselves(self, start):
        """With autoStart the Join event is accepted and echoed, and is no message."""
        line = await opened(await start(auto_start=True))
        tracing_id = await line.say("onMessage", message=self.EVENT)
        frame = await line.hear()
        assert (frame["tracingId"], frame["body"]["type"], frame["body"]["direction"]) == (
            tracing_id,
            "Event",
            "Inbound",
        )
        assert line.sandbox.messages == []
        assert [one.step for one in line.sandbox.ledger.received][-1] is Step.JOIN

    async def test_where_they_do_not(self, line):
        """Without autoStart nobody joins."""
        declined(await line.ask("onMessage", message=self.EVENT), 400)

    async def test_another_event(self, start):
        """A guest may only join."""
        line = await opened(await start(auto_start=True))
        declined(await line.ask("onMessage", message={"type": "Event", "events": []}), 400)
        leave = {"type": "Event", "events": [{"eventType": "Presence", "presence": {"type": "Leave"}}]}
        declined(await line.ask("onMessage", message=leave), 400)


class TestUpload:
    async def test_the_slot(self, line):
        """The answer repeats our id, and names the URL and the headers the PUT must carry."""
        attachment_id = str(uuid4())
        tracing_id = await line.say(
            "onAttachment", attachmentId=attachment_id, fileName="a.pdf", fileType=PDF, fileSize=5
        )
        slot = await line.hear()
        assert (slot["type"], slot["class"], slot["tracingId"]) == ("response", "PresignedUrlResponse", tracing_id)
        assert slot["body"]["attachmentId"] == attachment_id
        assert slot["body"]["headers"] == {"x-amz-tagging": "purpose=attachment&origin=guest"}
        assert "x-amz-tagging" in slot["body"]["url"]

    async def test_without_an_id_the_platform_chooses_one(self, line):
        """The id is optional."""
        slot = await line.attach(attachmentId=None)
        assert UUID.fullmatch(slot["body"]["attachmentId"])

    @pytest.mark.parametrize("attachment_id", ["../../etc/passwd", "x", ""])
    async def test_an_id_that_is_none(self, line, attachment_id):
        """An id is a UUID and never a path."""
        frame = await line.attach(attachmentId=attachment_id)
        assert frame["class"] == ("PresignedUrlResponse" if not attachment_id else "string")

    async def test_an_id_of_another_session(self, client):
        """Nobody can take over what another guest declared."""
        one, other = await opened(client), await opened(client)
        attachment_id = (await one.attach())["body"]["attachmentId"]
        declined(await other.attach(attachmentId=attachment_id), 400)

    async def test_an_id_that_comes_again_is_declared_anew(self, line):
        """The same id with another file replaces what was declared; nothing is uploaded any more."""
        attachment_id = await line.stored("one.pdf")
        await line.attach("other.pdf", attachmentId=attachment_id)
        declined(await line.send(attachment_id), 4010)

    @pytest.mark.parametrize(
        ("headers", "code"),
        [
            ({}, "SignatureDoesNotMatch"),
            ({"x-amz-tagging": "purpose=other"}, "SignatureDoesNotMatch"),
            ({"x-amz-tagging": "purpose=attachment&origin=guest", "x-amz-acl": "public-read"}, "AccessDenied"),
            (
                {
                    "x-amz-tagging": "purpose=attachment&origin=guest",
                    "x-amz-meta-genesys-attachment-id": "00000000-0000-4000-8000-000000000000",
                },
                "AccessDenied",
            ),
        ],
    )
    async def test_the_put_carries_exactly_the_headers_that_were_told(self, line, headers, code):
        """A header too few, another value, or one too many is refused."""
        answered = await line.put(await line.attach(), headers=headers)
        assert (answered.status, f"<Code>{code}</Code>" in answered.text) == (403, True)
        assert line.sandbox.objects == []
        assert line.sandbox.requests("event") == []

    async def test_the_put_carries_the_announced_type(self, line):
        """A charset parameter is another type."""
        answered = await line.put(await line.attach("a.txt", "text/plain"), kind="text/plain; charset=utf-8")
        assert answered.status == 403

    async def test_a_put_may_be_repeated(self, line):
        """Each PUT replaces the object and has its own event."""
        slot = await line.attach()
        for _ in range(2):
            await line.put(slot)
            assert (await line.hear())["class"] == "UploadSuccessEvent"

    async def test_the_event_finds_the_socket_of_the_moment(self, line):
        """Who reconnects between slot and PUT hears the event on the new socket."""
        slot = await line.attach()
        again = await opened(line.client, line.token)
        await line.socket.close()
        await line.put(slot)
        assert (await again.hear())["class"] == "UploadSuccessEvent"

    @pytest.mark.parametrize("kept", [False, True])
    async def test_an_event_nobody_was_there_to_hear(self, start, kept):
        """It is lost, unless the platform is one that keeps it; the file is there all the same."""
        line = await opened(await start(upload_events_kept=kept))
        slot = await line.attach()
        await line.socket.close()
        (session,) = line.sandbox._sessions._by_token.values()
        await until(lambda: session.outlets == [])
        await line.put(slot)
        await until(lambda: line.sandbox.requests("event") != [])
        assert line.sandbox.requests("event")[0].answer is Answer.NONE
        again = await opened(line.client, line.token)
        if kept:
            assert (await again.hear())["class"] == "UploadSuccessEvent"
        assert (await again.send(slot["body"]["attachmentId"]))["body"]["content"]

    async def test_a_late_event(self, start):
        """Until the event is due, the file does not count as uploaded."""
        line = await opened(await start(upload_event_delay_s=0.05))
        slot = await line.attach()
        assert (await line.put(slot)).status == 200
        declined(await line.send(slot["body"]["attachmentId"]), 4010)
        assert (await line.hear())["class"] == "UploadSuccessEvent"
        assert (await line.send(slot["body"]["attachmentId"]))["class"] == "StructuredMessage"

    async def test_a_fresh_download_url(self, line):
        """getAttachment answers in the class of a slot, but without headers: nothing is to be put there."""
        attachment_id = await line.stored()
        answer = await line.ask("getAttachment", attachmentId=attachment_id)
        assert answer["class"] == "PresignedUrlResponse"
        assert (answer["body"]["headers"], answer["body"]["fileSize"]) == ({}, 5)
        waiting = (await line.attach())["body"]["attachmentId"]
        declined(await line.ask("getAttachment", attachmentId=waiting), 4010, "GenerateUrlError")
        declined(await line.ask("getAttachment", attachmentId=str(uuid4())), 4009, "GenerateUrlError")

    async def test_taking_one_back(self, line):
        """What has not been sent can be deleted, and is then unknown; what was sent stays."""
        attachment_id = await line.stored()
        answer = await line.ask("deleteAttachment", attachmentId=attachment_id)
        assert (answer["type"], answer["class"]) == ("message", "AttachmentDeletedResponse")
        assert answer["body"] == {"attachmentId": attachment_id}
        declined(await line.send(attachment_id), 4009)
        sent = await line.stored()
        await line.send(sent)
        declined(await line.ask("deleteAttachment", attachmentId=sent), 4009)


class TestProfile:
    @pytest.mark.parametrize(
        ("file", "code"),
        [
            ({"kind": "text/html"}, 4001),
            ({"kind": "application/pdf; charset=utf-8"}, 4001),
            ({"name": "run.EXE"}, 4001),
            ({"size": 10_241_000}, 4002),
            ({"name": "no extension"}, 4004),
            ({"name": "a/b.pdf"}, 4004),
            ({"name": "\ud800.pdf"}, 4004),
            ({"name": "x" * 1020 + ".pdf"}, 4005),
            ({"size": 0}, 4102),
        ],
    )
    async def test_what_it_forbids(self, start, file, code):
        """Each rule has its code, in an object that names the attachment."""
        client = await start(media_types=["application/pdf", "image/*"])
        line = await opened(client)
        attachment_id = str(uuid4())
        frame = declined(await line.attach(**file, attachmentId=attachment_id), code, "GenerateUrlError")
        assert frame["body"]["attachmentId"] == attachment_id
        assert frame["body"]["errorMessage"]
        assert client.sandbox.requests("attachment")[0].status == code

    @pytest.mark.parametrize(
        ("kind", "name", "size"),
        [("APPLICATION/PDF", "a.pdf", 1), ("image/png", "a.PNG", 10_240_999), ("application/pdf", "exe.pdf", 1)],
    )
    async def test_what_it_allows(self, start, kind, name, size):
        """Ranges and upper case fit, and a size up to the last started kilobyte."""
        line = await opened(await start(media_types=["application/pdf", "image/*"]))
        assert (await line.attach(name, kind, size))["class"] == "PresignedUrlResponse"

    async def test_kilobytes_of_1024(self, start):
        """How large a kilobyte is, the sources do not agree on."""
        line = await opened(await start(kilobyte_bytes=1024))
        assert (await line.attach(size=10_485_760))["class"] == "PresignedUrlResponse"

    @pytest.mark.parametrize(
        ("settings", "inbound"),
        [
            ({"media_types": ()}, {"fileTypes": [], "maxFileSizeKB": 10240}),
            ({"max_file_size_kb": 0}, {"fileTypes": [{"type": "*/*"}]}),
            ({"enable_attachments": "no"}, {"fileTypes": [], "maxFileSizeKB": 10240}),
        ],
    )
    async def test_attachments_switched_off(self, start, settings, inbound):
        """No types or no size means no attachments, and asking for a slot is answered with 4000."""
        line = await dial(await start(**settings))
        assert (await line.configure())["body"]["allowedMedia"] == {"inbound": inbound}
        declined(await line.attach(), 4000, "GenerateUrlError")

    async def test_an_error_as_plain_text(self, line):
        """Without errorsAsJson the code stands in the envelope."""
        frame = declined(await line.attach(size=0, errorsAsJson=False), 4102)
        assert (frame["type"], isinstance(frame["body"], str)) == ("response", True)

    @pytest.mark.parametrize(("shape", "code"), [("response", 400), ("message", 200)])
    async def test_both_envelopes_of_an_error(self, start, shape, code):
        """The sources disagree on type and outer code."""
        line = await opened(await start(error_shape=shape))
        frame = await line.attach(size=0)
        assert (frame["type"], frame["code"], frame["body"]["errorCode"]) == (shape, code, 4102)

    async def test_errors_without_a_tracing_id(self, start):
        """An error may leave open which request it is about."""
        line = await opened(await start(error_tracing=False))
        assert "tracingId" not in await line.attach(size=0)
        assert "tracingId" not in await line.send("unknown")
        assert "tracingId" in await line.attach()

    async def test_what_else_the_schema_has_in_an_error(self, start):
        """Name and message may stand beside code and text, and the attachment may be left out."""
        line = await opened(await start(error_schema=True, error_attachment_id=False))
        body = (await line.attach(size=0))["body"]
        assert set(body) == {"errorCode", "errorMessage", "name", "message"}

    @pytest.mark.parametrize(
        "settings",
        [
            {"media_types": ("image/*",), "outside_profile": "dropped"},
            {"blocked_extensions": (".pdf",), "outside_profile": "dropped"},
            {"dropped_types": ("application/*",)},
        ],
    )
    async def test_what_is_dropped_in_silence(self, start, settings):
        """The message is accepted without its attachment: echo and history have none, the ledger knows."""
        line = await opened(await start(**settings))
        echo = await line.deliver()
        assert "content" not in echo["body"]
        (entity,) = (await line.history(await line.jwt())).json["entities"]
        assert "content" not in entity
        (message,) = line.sandbox.messages
        assert message.attachments == ()
        assert [one.file_name for one in message.dropped] == ["claim.pdf"]


class TestMessage:
    async def test_an_attachment_nobody_knows(self, client):
        """Neither made up nor of another session."""
        one, other = await opened(client), await opened(client)
        declined(await one.send(str(uuid4())), 4009)
        declined(await other.send(await one.stored()), 4009)

    async def test_an_attachment_that_was_not_uploaded(self, line):
        """A slot alone is no file."""
        declined(await line.send((await line.attach())["body"]["attachmentId"]), 4010)

    async def test_an_attachment_that_has_expired(self, start, manual):
        """Uploaded files do not stay for ever."""
        line = await opened(await start(manual.clock(), attachment_life_s=60))
        attachment_id = await line.stored()
        manual.now_s += 60
        declined(await line.send(attachment_id), 4008)

    async def test_a_text_that_is_too_long(self, line):
        """4096 bytes are the limit, not characters."""
        assert (await line.send(text="ä" * 2048))["class"] == "StructuredMessage"
        declined(await line.send(text="ä" * 2049), 4011)

    async def test_custom_attributes_that_are_too_large(self, line):
        """Keys and values are counted in bytes together."""

        async def send(length):
            attributes = {"key": "x" * (length - 3)}
            return await line.send(channel={"metadata": {"customAttributes": attributes}})

        assert (await send(2048))["class"] == "StructuredMessage"
        declined(await send(2049), 4013)

    async def test_custom_attributes_may_come_back(self, start):
        """Where they do, they stand in the channel of the echo and not in the history."""
        line = await opened(await start(echo_custom_attributes=True))
        echo = await line.send(channel={"metadata": {"customAttributes": {"a": "b"}}})
        assert echo["body"]["channel"]["metadata"] == {"customAttributes": {"a": "b"}}
        (entity,) = (await line.history(await line.jwt())).json["entities"]
        assert set(entity["channel"]) == {"time", "messageId", "from", "to"}

    async def test_without_text_and_type(self, line):
        """A message may be nothing but its attachment."""
        attachment_id = await line.stored()
        content = [{"contentType": "Attachment", "attachment": {"id": attachment_id}}]
        echo = await line.ask("onMessage", message={"content": content})
        assert (echo["body"]["type"], "text" in echo["body"]) == ("Text", False)

    @pytest.mark.parametrize(
        "message",
        [
            {"type": "Text"},
            {"type": "Structured", "text": "x"},
            {"text": 1},
            {"text": "x", "content": [{"contentType": "Image"}]},
            {"text": "x", "content": [{"contentType": "Attachment"}]},
            {"text": "x", "content": "claim.pdf"},
            {"text": "x", "channel": {"metadata": {"customAttributes": {"a": 1}}}},
            {"text": "x", "metadata": "own"},
            {"text": "x", "content": [{"contentType": "Attachment", "attachment": {"id": "a"}}] * 2},
            None,
        ],
    )
    async def test_what_is_malformed(self, line, message):
        """A wrong form is 400 and no message."""
        declined(await line.ask("onMessage", message=message), 400)
        assert line.sandbox.messages == []

    async def test_a_tracing_id_that_is_no_text(self, line):
        """Also what only ties an answer must have its form before anything is done."""
        declined(await line.ask("onMessage", message=message_of(None), tracingId=1), 400)
        assert line.sandbox.messages == []


async def test_the_echo_is_no_message(line):
    """The answer to echo looks like an accepted message but for its type and its metadata of strings."""
    tracing_id = await line.say("echo", message={"type": "Text", "text": "ping"})
    frame = await line.hear()
    assert (frame["type"], frame["class"], frame["tracingId"]) == ("response", "StructuredMessage", tracing_id)
    assert (frame["body"]["direction"], frame["body"]["text"]) == ("Inbound", "ping")
    assert frame["body"]["metadata"]["durationSeconds"] == "259200"
    assert line.sandbox.messages == []


class TestHistory:
    async def test_what_was_said(self, line):
        """The message is there with our attachment and our own key, and without what the REST form does not have."""
        attachment_id = await line.stored()
        echo = await line.send(attachment_id, metadata={"id": "own"}, text="")
        answered = await line.history(await line.jwt())
        assert answered.json["total"] == answered.json["pageCount"] == answered.json["pageNumber"] == 1
        assert answered.json["pageSize"] == 25
        (entity,) = answered.json["entities"]
        assert entity["id"] == echo["body"]["id"]
        assert entity["channel"]["messageId"] == echo["body"]["channel"]["messageId"]
        assert entity["content"][0]["attachment"]["id"] == attachment_id
        assert entity["metadata"]["id"] == "own"
        assert "tracingId" not in entity

    async def test_newest_first_in_pages(self, start):
        """Pages start at 1; one behind the last is empty."""
        line = await opened(await start(messages_per_second=0))
        for number in range(5):
            await line.send(text=str(number))
        jwt = await line.jwt()
        pages = [(await line.history(jwt, f"?pageSize=2&pageNumber={number}")).json for number in (1, 2, 3, 4)]
        assert [[one["text"] for one in page["entities"]] for page in pages] == [["4", "3"], ["2", "1"], ["0"], []]
        assert {(page["pageCount"], page["total"]) for page in pages} == {(3, 5)}
        line.sandbox.change(history_order="oldest_first")
        first = (await line.history(jwt, "?pageSize=1")).json
        assert first["entities"][0]["text"] == "0"

    @pytest.mark.parametrize("query", ["?pageSize=0", "?pageNumber=x", "?pageSize=-1", "?pageNumber=" + "9" * 5000])
    async def test_pages_that_cannot_be(self, line, query):
        """A page is a number above 0."""
        answered = await line.history(await line.jwt(), query)
        assert (answered.status, answered.json["code"]) == (400, "bad.request")

    async def test_it_takes_its_time(self, start, manual):
        """A message shows up in the history only after a while."""
        line = await opened(await start(manual.clock(), history_delay_s=20))
        await line.send()
        jwt = await line.jwt()
        assert (await line.history(jwt)).json["entities"] == []
        manual.now_s += 20
        assert (await line.history(jwt)).json["total"] == 1

    async def test_a_history_that_loses_the_keys_of_the_client(self, start):
        """Whether it keeps them is not known."""
        line = await opened(await start(history_metadata=False))
        await line.send(metadata={"id": "own"})
        (entity,) = (await line.history(await line.jwt())).json["entities"]
        assert set(entity["metadata"]) == {"correlationId"}

    @pytest.mark.parametrize("jwt", [None, "", "made.up.jwt", "é"])
    async def test_without_a_jwt(self, line, jwt):
        """Nobody reads without one."""
        answered = await line.history(jwt)
        assert (answered.status, answered.json["code"]) == (401, "authentication.required")

    async def test_a_jwt_that_was_tampered_with(self, line):
        """A changed claim breaks the signature."""
        head, claims, signature = (await line.jwt()).split(".")
        assert (await line.history(f"{head}.{claims[:-1]}.{signature}")).status == 401

    async def test_a_jwt_that_is_over(self, start, manual):
        """It says until when it holds, and holds until then."""
        line = await opened(await start(manual.clock(), jwt_life_s=60))
        answer = (await line.ask("getJwt"))["body"]
        assert answer["exp"] == manual.now_s + 60
        manual.now_s += 59
        assert (await line.history(answer["jwt"])).status == 200
        manual.now_s += 1
        assert (await line.history(answer["jwt"])).status == 401

    async def test_a_session_reads_only_its_own(self, client):
        """Another guest's messages are another guest's."""
        one, other = await opened(client), await opened(client)
        await one.send()
        assert (await other.history(await other.jwt())).json["total"] == 0


class TestChatter:
    async def test_others_talk_in_between(self, start):
        """Around each answer bot and agent may say something; the history has it too."""
        line = await opened(await start(chatter=1.0))
        answers = []
        for _ in range(3):
            tracing_id = await line.say("getJwt")
            answers += [await line.hear() for _ in range(3)]
        assert [frame["class"] for frame in answers] == ["StructuredMessage", "JwtResponse", "StructuredMessage"] * 3
        spoken = [frame["body"] for frame in answers if frame["class"] == "StructuredMessage"]
        assert {body["direction"] for body in spoken} == {"Outbound"}
        assert {body["type"] for body in spoken} == {"Text", "Event"}
        assert tracing_id
        total = (await line.history(answers[1]["body"]["jwt"])).json["total"]
        assert total == len(spoken)
