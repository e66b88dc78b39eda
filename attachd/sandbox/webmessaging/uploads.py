"""The word on an upload: after a PUT the session hears, on its sockets, whether the file was taken."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial

from attachd.sandbox.clock import Clock, timestamp
from attachd.sandbox.exchange import Exchange, Struck
from attachd.sandbox.faults import Fault, FaultKind, Faults
from attachd.sandbox.ids import new_id
from attachd.sandbox.ledger import Ledger, Upload
from attachd.sandbox.settings import SandboxSettings
from attachd.sandbox.step import Step
from attachd.sandbox.webmessaging.frames import Frame
from attachd.sandbox.webmessaging.outlet import Parcel
from attachd.sandbox.webmessaging.session import Attached, Session, Sessions
from attachd.sandbox.webmessaging.timers import Timers


class UploadEvents:
    """A file counts as uploaded from when its event is due, whether or not anybody hears it."""

    def __init__(
        self,
        settings: Callable[[], SandboxSettings],
        sessions: Sessions,
        faults: Faults,
        ledger: Ledger,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._sessions = sessions
        self._faults = faults
        self._ledger = ledger
        self._clock = clock
        self._timers = Timers()

    async def stored(self, upload: Upload, download_url: str) -> Callable[[], None] | None:
        """To be called with every stored object, before its PUT is answered; gives what is due after the answer."""
        session = self._sessions.of_guest(upload.guest_id)
        attached = session.attachments.get(upload.attachment_id) if session else None
        if session is None or attached is None or attached.upload is not upload:
            return None
        exchange = Exchange(self._ledger.receive(Step.EVENT, new_id()), self._faults)
        with suppress(Struck):  # the event is damaged; the object lies where it lies
            exchange.concerns(upload.file_name, upload.queue_id)
        emit = partial(self._emit, session, attached, download_url, exchange)
        wait_s = self._settings().upload_event_delay_s
        if exchange.fault is not None and exchange.fault.kind is not FaultKind.DRIP:
            wait_s += exchange.fault.delay_s
        if exchange.suffers(FaultKind.EARLY):
            emit()
            for outlet in list(session.outlets):
                await outlet.flushed()
            return None
        return partial(self._timers.after, wait_s, emit) if wait_s else emit

    def close(self) -> None:
        self._timers.cancel()

    def _emit(self, session: Session, attached: Attached, download_url: str, exchange: Exchange) -> None:
        received, fault = exchange.received, exchange.fault
        now_s = self._clock.wall_s()
        frame = _frame(attached.upload, download_url, fault, now_s)
        attached.failed = fault is not None and fault.kind is FaultKind.STATUS and not fault.after_processing
        attached.uploaded_at_s = None if attached.failed else now_s
        received.status, received.code = frame.status, frame.class_name
        self._ledger.end(received)
        parcel = Parcel(frame.text(), fault, received)
        for outlet in session.outlets:
            outlet.send(parcel)
        if not session.outlets and self._settings().upload_events_kept:
            session.undelivered.append(frame)


def _frame(upload: Upload, download_url: str, fault: Fault | None, now_s: float) -> Frame:
    body: dict[str, object] = {"attachmentId": upload.attachment_id, "timestamp": timestamp(now_s)}
    if fault is not None and fault.kind is FaultKind.STATUS:
        message = fault.body if fault.body is not None else "The file was not taken."
        failure = {**body, "errorCode": fault.status, "errorMessage": message}
        return Frame("UploadFailureEvent", failure, kind="message", status=fault.status)
    return Frame("UploadSuccessEvent", {**body, "downloadUrl": download_url}, kind="message")
