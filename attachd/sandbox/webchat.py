"""The REST guest API: a session, a place for the file, the message. Everything it refuses is in the contract.

Order of the checks, as a gateway in front of an API has it: token, scopes, quota, then the content.
"""

import math
from collections.abc import Callable
from email.utils import formatdate
from fnmatch import fnmatchcase
from typing import Final

from aiohttp import web

from attachd.sandbox.clock import Clock, timestamp
from attachd.sandbox.exchange import Exchange
from attachd.sandbox.faults import FaultKind
from attachd.sandbox.fields import Fields, glimpsed, parsed
from attachd.sandbox.ids import new_id
from attachd.sandbox.ledger import Attachment, Guest, Ledger, Message, Skill, Upload
from attachd.sandbox.oauth import Login
from attachd.sandbox.places import Places
from attachd.sandbox.quota import Quota
from attachd.sandbox.reply import Refused, Reply, bad_request, json_reply
from attachd.sandbox.settings import SandboxSettings

GUEST_PATH: Final = "/api/v2/webchat/guest"
UPLOAD_PATH: Final = "/api/v2/webchat/guest/{guest_id}/attachments/upload"
CONVERSATION_PATH: Final = "/api/v2/webchat/conversations"

_GUEST_SCOPES = frozenset({"webchat:guest", "webchat:guest:write"})
_CONVERSATION_SCOPES = frozenset({"webchat:conversation", "webchat:conversation:write"})


class Webchat:
    def __init__(
        self, settings: Callable[[], SandboxSettings], login: Login, places: Places, ledger: Ledger, clock: Clock
    ) -> None:
        self._settings = settings
        self._login = login
        self._places = places
        self._ledger = ledger
        self._clock = clock
        self._quota = Quota()

    async def guest(self, request: web.Request, exchange: Exchange) -> Reply:
        content = parsed(await request.read())
        exchange.concerns(queue_id=glimpsed(content, "routing", "queueId"))
        self._admit(request, _GUEST_SCOPES)
        settings = self._settings()
        body = Fields(content)
        capabilities = body.section("capabilities")
        may_attach = capabilities.flag("attachments")
        if not may_attach and settings.capability_refused_at == "guest":
            raise capabilities.wrong("attachments", "must be true for a session that carries attachments")
        routing = body.section("routing")
        queue_id = routing.text("queueId")
        if queue_id != settings.queue_id and queue_id not in settings.queues:
            raise routing.wrong("queueId", "no queue with this id is enabled for web messaging")
        skills = tuple(Skill(skill.text("id"), skill.whole("level")) for skill in routing.sections("skills"))
        guest = Guest(
            guest_id=new_id(),
            conversation_id=new_id(),
            queue_id=queue_id,
            skills=skills,
            metadata=body.optional_section("metadata"),
            may_attach=may_attach and not exchange.suffers(FaultKind.CAPABILITY_DENIED),
            wall_s=self._clock.wall_s(),
        )
        typing = capabilities.flag("typing")
        self._ledger.open(guest)
        return json_reply(
            {
                "guestId": guest.guest_id,
                "conversationId": None,
                "capabilities": {"attachments": guest.may_attach, "typing": typing},
                "routing": {"queueId": queue_id, "skills": _skills(guest)},
                "createdTimestamp": timestamp(guest.wall_s),
                "modifiedTimestamp": timestamp(guest.wall_s),
            }
        )

    async def upload(self, request: web.Request, exchange: Exchange) -> Reply:
        content = parsed(await request.read())
        guest = self._ledger.guests.get(request.match_info["guest_id"])
        exchange.concerns(glimpsed(content, "fileName"), guest.queue_id if guest else None)
        self._admit(request, _GUEST_SCOPES)
        if guest is None:
            raise Refused(404, "not.found", "No guest session with this id.")
        if not guest.may_attach:
            raise bad_request("capabilities.attachments: this session was opened without attachments")
        body = Fields(content)
        upload = Upload(
            attachment_id=new_id(),
            guest_id=guest.guest_id,
            queue_id=guest.queue_id,
            file_name=_file_name(body),
            content_type=_content_type(body),
            size_bytes=body.whole("fileSize"),
            wall_s=self._clock.wall_s(),
        )
        self._judge(upload, body)
        self._ledger.declare(upload)
        expired = exchange.suffers(FaultKind.EXPIRED_URL)
        return json_reply(
            {
                "uploadUrl": self._places.url_for(upload, expired=expired),
                "uploadMethod": "PUT",
                "attachmentId": upload.attachment_id,
                "contentType": upload.content_type,
                "expiresIn": self._settings().url_life_s,
            }
        )

    async def conversation(self, request: web.Request, exchange: Exchange) -> Reply:
        content = parsed(await request.read())
        guest = self._ledger.guests.get(glimpsed(content, "guestId") or "")
        exchange.concerns(glimpsed(content, "attachments", 0, "fileName"), guest.queue_id if guest else None)
        self._admit(request, _CONVERSATION_SCOPES)
        body = Fields(content)
        guest_id = body.text("guestId")
        if guest is None:
            raise body.wrong("guestId", f"no guest session {guest_id}")
        texts = [_text(message) for message in body.sections("messages")]
        if not texts:
            raise body.wrong("messages", "at least one message is needed")
        named = body.sections("attachments")
        for one in named:
            await self._places.look(one.text("id"))
        attachments = tuple(self._attached(one, guest) for one in named)
        message = Message(
            message_id=new_id(),
            conversation_id=guest.conversation_id,
            guest_id=guest.guest_id,
            queue_id=guest.queue_id,
            skills=guest.skills,
            metadata=guest.metadata,
            text="\n".join(texts),
            attachments=attachments,
            wall_s=self._clock.wall_s(),
            received=exchange.received,
        )
        # Never de-duplicated: the same guest and attachment posted again are a second message for the agent.
        self._ledger.accept(message)
        return json_reply(self._conversation(message, texts, exchange))

    def clear(self) -> None:
        self._quota.clear()

    def _admit(self, request: web.Request, scopes: frozenset[str]) -> None:
        client_id = self._login.authenticate(request)
        settings = self._settings()
        missing = scopes - settings.scopes
        if missing:
            raise Refused(403, "missing.permissions", f"Missing scopes: {', '.join(sorted(missing))}")
        if not settings.requests_per_second:
            return
        wait_s = self._quota.wait_s(client_id, self._clock.monotonic_s(), settings.requests_per_second)
        if wait_s:
            raise Refused(
                429,
                "too.many.requests",
                f"Rate limit of {settings.requests_per_second} requests a second exceeded.",
                headers=self._retry_after(wait_s, settings),
            )

    def _retry_after(self, wait_s: float, settings: SandboxSettings) -> dict[str, str]:
        if settings.retry_after == "seconds":
            return {"Retry-After": str(max(1, math.ceil(wait_s)))}
        now = self._clock.wall_s()
        # With its own Date, so that a client that subtracts the two gets the wait whatever its clock says.
        return {"Retry-After": formatdate(math.ceil(now + wait_s), usegmt=True), "Date": formatdate(now, usegmt=True)}

    def _judge(self, upload: Upload, body: Fields) -> None:
        settings = self._settings()
        if upload.size_bytes < 1:
            raise body.wrong("fileSize", "must be at least 1")
        if upload.size_bytes > settings.max_file_bytes:
            message = f"fileSize: {upload.size_bytes} exceeds the limit of {settings.max_file_bytes} bytes"
            code = "bad.request" if settings.too_large_status == 400 else "request.entity.too.large"
            raise Refused(settings.too_large_status, code, message)
        media_type = upload.content_type.partition(";")[0].strip().lower()
        accepted = any(fnmatchcase(media_type, glob) for glob in settings.accepted_types)
        if not accepted or any(fnmatchcase(media_type, glob) for glob in settings.blocked_types):
            raise body.wrong("contentType", f"{media_type} is not an accepted type")

    def _attached(self, body: Fields, guest: Guest) -> Attachment:
        attachment_id = body.text("id")
        upload = self._ledger.uploads.get(attachment_id)
        if upload is None:
            raise body.wrong("id", f"no attachment {attachment_id}")
        if upload.guest_id != guest.guest_id:
            raise body.wrong("id", f"attachment {attachment_id} belongs to another guest")
        stored = self._ledger.stored.get(attachment_id)
        if stored is None:
            raise body.wrong("id", f"attachment {attachment_id} has not been uploaded")
        for name, given, declared in (
            ("fileName", body.text("fileName"), upload.file_name),
            ("contentType", body.text("contentType"), upload.content_type),
            ("fileSize", body.whole("fileSize"), upload.size_bytes),
        ):
            if given != declared:
                raise body.wrong(name, "differs from what was declared for the upload")
        return Attachment(attachment_id, upload.file_name, upload.content_type, upload.size_bytes, stored.sha256)

    def _conversation(self, message: Message, texts: list[str], exchange: Exchange) -> dict[str, object]:
        now = timestamp(message.wall_s)
        wrong_id = new_id() if exchange.suffers(FaultKind.WRONG_ATTACHMENT_ID) else None
        return {
            "conversationId": message.conversation_id,
            "guestId": message.guest_id,
            "messages": [
                {
                    "id": message.message_id if index == 0 else new_id(),
                    "type": "text",
                    "text": text,
                    "from": {"id": message.guest_id, "name": "Guest"},
                    "timestamp": now,
                }
                for index, text in enumerate(texts)
            ],
            "attachments": [
                {
                    "id": wrong_id or attachment.attachment_id,
                    "fileName": attachment.file_name,
                    "contentType": attachment.content_type,
                    "fileSize": attachment.size_bytes,
                    "downloadUrl": self._places.download_url(attachment.attachment_id),
                }
                for attachment in message.attachments
            ],
            "status": "active",
            "createdTimestamp": now,
        }


def _file_name(body: Fields) -> str:
    name = body.text("fileName")
    if "/" in name or "\0" in name or name in (".", ".."):
        raise body.wrong("fileName", "must be a plain name without a path")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise body.wrong("fileName", "is not valid Unicode") from None
    return name


def _content_type(body: Fields) -> str:
    content_type = body.text("contentType")
    kind, slash, subtype = content_type.partition(";")[0].strip().partition("/")
    if not (kind and slash and subtype) or not content_type.isascii() or not content_type.isprintable():
        raise body.wrong("contentType", "must be a MIME type such as application/pdf")
    return content_type


def _text(body: Fields) -> str:
    if body.text("type") != "text":
        raise body.wrong("type", 'must be "text"')
    return body.text("text")


def _skills(guest: Guest) -> list[dict[str, object]]:
    return [{"id": skill.skill_id, "level": skill.level} for skill in guest.skills]
