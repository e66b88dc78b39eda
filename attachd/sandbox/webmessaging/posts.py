"""What a guest says: messages that reach an agent, the event that joins, and the echo that is neither."""

from collections.abc import Callable, Mapping
from typing import Final

from attachd.sandbox.clock import Clock, timestamp
from attachd.sandbox.exchange import Exchange
from attachd.sandbox.faults import FaultKind
from attachd.sandbox.fields import Fields
from attachd.sandbox.ids import new_id
from attachd.sandbox.ledger import Attachment, Ledger, Message
from attachd.sandbox.places import Places
from attachd.sandbox.settings import SandboxSettings
from attachd.sandbox.webmessaging import frames
from attachd.sandbox.webmessaging.files import Files
from attachd.sandbox.webmessaging.frames import Declined, Frame
from attachd.sandbox.webmessaging.limits import too_many
from attachd.sandbox.webmessaging.profile import media_kind
from attachd.sandbox.webmessaging.session import Peer, Sessions

_TEXT_LIMIT_BYTES: Final = 4096


class Posts:
    def __init__(
        self,
        settings: Callable[[], SandboxSettings],
        sessions: Sessions,
        files: Files,
        places: Places,
        ledger: Ledger,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._sessions = sessions
        self._files = files
        self._places = places
        self._ledger = ledger
        self._clock = clock

    def message(self, body: Fields, peer: Peer, exchange: Exchange) -> Frame:
        session = self._sessions.writable(body.text("token"), peer.outlet)
        settings = self._settings()
        too_many(session.messages, settings.messages_per_second, settings, self._clock, "OnMessage")
        tracing_id = body.optional_text("tracingId")
        said = body.section("message")
        if said.optional_text("type") not in (None, "Text"):
            raise said.wrong("type", "must be Text or Event")
        text = _text(said)
        attributes = _custom_attributes(said, settings.max_custom_data_bytes)
        metadata = said.words("metadata")
        attached = [self._files.usable(session, attachment_id) for attachment_id in _attachment_ids(said)]
        if not attached and not text:
            raise said.wrong("text", "is missing")
        for one in attached:
            one.sent = True
        kept, dropped = self._files.sifted(attached, session, exchange)
        message = Message(
            message_id=frames.message_id(),
            conversation_id=session.guest.conversation_id,
            guest_id=session.guest.guest_id,
            queue_id=session.guest.queue_id,
            skills=(),
            metadata=attributes,
            text=text,
            attachments=kept,
            wall_s=self._clock.wall_s(),
            received=exchange.received,
            dropped=dropped,
        )
        # Never de-duplicated: the same attachment posted again is a second message for the agent.
        self._ledger.accept(message)
        self._sessions.prolong(session)
        shown = self._shown(message, metadata)
        session.say(shown, message.wall_s)
        if exchange.suffers(FaultKind.WRONG_ATTACHMENT_ID):
            shown = {**shown, "content": [self._content(one, new_id()) for one in message.attachments]}
        echo = Frame("StructuredMessage", shown, kind="message")
        session.push(echo.traced(tracing_id), besides=peer.outlet)
        return echo

    def _shown(self, message: Message, metadata: Mapping[str, str]) -> dict[str, object]:
        channel: dict[str, object] = {"time": timestamp(message.wall_s), "messageId": new_id()}
        if self._settings().echo_custom_attributes and message.metadata:
            channel["metadata"] = {"customAttributes": dict(message.metadata)}
        shown: dict[str, object] = {
            "id": message.message_id,
            "type": "Text",
            "direction": "Inbound",
            "channel": channel,
            "metadata": {**metadata, "correlationId": new_id()},
        }
        if message.text:
            shown["text"] = message.text
        if message.attachments:
            shown["content"] = [self._content(one, one.attachment_id) for one in message.attachments]
        return shown

    def _content(self, attachment: Attachment, shown_id: str) -> dict[str, object]:
        told = {
            "id": shown_id,
            "filename": attachment.file_name,
            "fileSize": attachment.size_bytes,
            "mediaType": media_kind(attachment.content_type),
            "mime": attachment.content_type,
            "url": self._places.download_url(attachment.attachment_id),
        }
        return {"contentType": "Attachment", "attachment": told}

    def join(self, body: Fields, peer: Peer, _: Exchange) -> Frame:
        session = self._sessions.writable(body.text("token"), peer.outlet)
        settings = self._settings()
        too_many(session.messages, settings.messages_per_second, settings, self._clock, "OnMessage")
        if not settings.auto_start:
            raise Declined(400, "This deployment does not start conversations by themselves.")
        said = body.section("message")
        events = said.sections("events")
        if len(events) != 1 or events[0].text("eventType") != "Presence":
            raise said.wrong("events", "exactly one Presence event is expected")
        if events[0].section("presence").text("type") != "Join":
            raise said.wrong("events", "only Join may come from a guest")
        now_s = self._clock.wall_s()
        event = {"eventType": "Presence", "presence": {"type": "Join"}}
        joined = frames.structured({"type": "Event", "direction": "Inbound", "events": [event]}, now_s)
        session.say(joined, now_s)
        return Frame("StructuredMessage", joined, kind="message")

    def echo(self, body: Fields, peer: Peer, _: Exchange) -> Frame:
        session = self._sessions.own(body.text("token"), peer.outlet)
        settings = self._settings()
        peer.limits.count_echo(settings)
        text = body.section("message").optional_text("text") or ""
        # Values as strings, and inbound like an accepted message: only `response` tells it from one.
        metadata = {
            "durationSeconds": str(int(settings.session_life_s)),
            "expirationDate": str(int(session.expires_at_s)),
        }
        told = {"type": "Text", "text": text, "direction": "Inbound", "id": new_id(), "metadata": metadata}
        return Frame("StructuredMessage", told)


def _text(said: Fields) -> str:
    text = said.optional_text("text") or ""
    if frames.utf8_bytes(text) > _TEXT_LIMIT_BYTES:
        raise Declined(frames.TEXT_TOO_LONG, f"The text is longer than {_TEXT_LIMIT_BYTES} bytes.")
    return text


def _custom_attributes(said: Fields, limit_bytes: int) -> Mapping[str, str]:
    if not said.optional_section("channel") or not said.section("channel").optional_section("metadata"):
        return {}
    attributes = said.section("channel").section("metadata").words("customAttributes")
    if sum(frames.utf8_bytes(key) + frames.utf8_bytes(value) for key, value in attributes.items()) > limit_bytes:
        raise Declined(frames.CUSTOM_DATA_TOO_LARGE, f"The custom attributes are larger than {limit_bytes} bytes.")
    return attributes


def _attachment_ids(said: Fields) -> list[str]:
    items = said.sections("content")
    if len(items) > 1:
        raise said.wrong("content", "only one attachment is possible")
    for item in items:
        if item.text("contentType") != "Attachment":
            raise item.wrong("contentType", "must be Attachment")
    return [item.section("attachment").text("id") for item in items]
