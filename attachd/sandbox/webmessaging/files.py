"""The files of a session: where to put one, where to find it again, and whether it may go with a message."""

import re
from collections.abc import Callable, Sequence
from typing import Final

from attachd.sandbox.clock import Clock
from attachd.sandbox.exchange import Exchange
from attachd.sandbox.faults import FaultKind
from attachd.sandbox.fields import Fields
from attachd.sandbox.ids import new_id
from attachd.sandbox.ledger import Attachment, Ledger, Upload
from attachd.sandbox.places import Places
from attachd.sandbox.settings import SandboxSettings
from attachd.sandbox.webmessaging import frames
from attachd.sandbox.webmessaging.frames import Declined, Frame
from attachd.sandbox.webmessaging.profile import Profile, in_range
from attachd.sandbox.webmessaging.session import Attached, Peer, Session, Sessions

# Also what keeps a client-chosen id from being a path.
_ATTACHMENT_ID: Final = re.compile(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")


class Files:
    def __init__(
        self,
        settings: Callable[[], SandboxSettings],
        sessions: Sessions,
        places: Places,
        ledger: Ledger,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._sessions = sessions
        self._places = places
        self._ledger = ledger
        self._clock = clock

    def announce(self, body: Fields, peer: Peer, exchange: Exchange) -> Frame:
        session = self._sessions.writable(body.text("token"), peer.outlet)
        settings = self._settings()
        attachment_id = body.optional_text("attachmentId") or new_id()
        if not _ATTACHMENT_ID.fullmatch(attachment_id):
            raise body.wrong("attachmentId", "must be a UUID")
        upload = Upload(
            attachment_id=attachment_id,
            guest_id=session.guest.guest_id,
            queue_id=session.guest.queue_id,
            file_name=body.text("fileName"),
            content_type=body.text("fileType"),
            size_bytes=body.whole("fileSize"),
            wall_s=self._clock.wall_s(),
            headers={"x-amz-tagging": settings.upload_tagging} if settings.upload_tagging else {},
        )
        taken = self._ledger.uploads.get(attachment_id)
        if taken is not None and taken.guest_id != upload.guest_id:
            raise body.wrong("attachmentId", "is taken by another session")
        objection = _profile(session, settings).objection(
            upload.file_name,
            upload.content_type,
            upload.size_bytes,
            judge_type=settings.outside_profile == "refused",
        )
        if objection is not None:
            code, message = objection
            error_class = frames.URL_ERROR_CLASS if body.flag("errorsAsJson") else None
            raise Declined(code, message, error_class=error_class, attachment_id=attachment_id)
        self._ledger.withdraw(attachment_id)  # the same id again is another declaration
        self._ledger.declare(upload)
        session.attachments[attachment_id] = Attached(upload)
        self._places.expect(upload)
        url = self._places.url_for(upload, expired=exchange.suffers(FaultKind.EXPIRED_URL))
        return Frame(
            "PresignedUrlResponse",
            {
                "attachmentId": attachment_id,
                "url": url,
                "headers": dict(upload.headers),
                "fileName": upload.file_name,
                "fileSize": upload.size_bytes,
                "fileType": upload.content_type,
            },
        )

    def locate(self, body: Fields, peer: Peer, _: Exchange) -> Frame:
        session = self._sessions.own(body.text("token"), peer.outlet)
        attached = self.usable(session, body.text("attachmentId"), frames.URL_ERROR_CLASS)
        told = {
            "attachmentId": attached.upload.attachment_id,
            "url": self._places.download_url(attached.upload.attachment_id),
            "headers": {},
            "fileName": attached.upload.file_name,
            "fileSize": attached.upload.size_bytes,
            "fileType": attached.upload.content_type,
        }
        return Frame("PresignedUrlResponse", told)

    def withdraw(self, body: Fields, peer: Peer, _: Exchange) -> Frame:
        session = self._sessions.own(body.text("token"), peer.outlet)
        attachment_id = body.text("attachmentId")
        attached = session.attachments.get(attachment_id)
        if attached is None or attached.sent:
            raise Declined(frames.ATTACHMENT_UNKNOWN, "No attachment of this id waits to be sent.")
        del session.attachments[attachment_id]
        self._ledger.withdraw(attachment_id)
        return Frame("AttachmentDeletedResponse", {"attachmentId": attachment_id}, kind="message", ties=False)

    def usable(self, session: Session, attachment_id: str, error_class: str | None = None) -> Attached:
        attached = session.attachments.get(attachment_id)
        if attached is None or attached.failed or self._lost(attached):
            code, problem = frames.ATTACHMENT_UNKNOWN, "Attachment not found."
        elif attached.uploaded_at_s is None:
            code, problem = frames.ATTACHMENT_NOT_UPLOADED, "Attachment has not been uploaded yet."
        elif self._clock.wall_s() >= attached.uploaded_at_s + self._settings().attachment_life_s:
            code, problem = frames.ATTACHMENT_EXPIRED, "Attachment has expired."
        else:
            return attached
        raise Declined(code, problem, error_class=error_class, attachment_id=attachment_id)

    def _lost(self, attached: Attached) -> bool:
        # A ledger that only counts forgets what is old.
        return attached.uploaded_at_s is not None and attached.upload.attachment_id not in self._ledger.stored

    def sifted(
        self, attached: Sequence[Attached], session: Session, exchange: Exchange
    ) -> tuple[tuple[Attachment, ...], tuple[Attachment, ...]]:
        """What of a message's files an agent gets to see, and what is taken out of it without a word."""
        dropped = [one for one in attached if self._drops(one.upload, session, exchange)]
        kept = [one for one in attached if one not in dropped]
        return tuple(map(self._as_stored, kept)), tuple(map(self._as_stored, dropped))

    def _drops(self, upload: Upload, session: Session, exchange: Exchange) -> bool:
        settings = self._settings()
        outside = not _profile(session, settings).allows(upload.file_name, upload.content_type)
        return (
            exchange.suffers(FaultKind.DROPPED_ATTACHMENT)
            or (settings.outside_profile == "dropped" and outside)
            or any(in_range(upload.content_type, one) for one in settings.dropped_types)
        )

    def _as_stored(self, attached: Attached) -> Attachment:
        upload = attached.upload
        stored = self._ledger.stored[upload.attachment_id]
        return Attachment(upload.attachment_id, upload.file_name, upload.content_type, upload.size_bytes, stored.sha256)


def _profile(session: Session, settings: SandboxSettings) -> Profile:
    return Profile.of(settings, may_attach=session.guest.may_attach)
