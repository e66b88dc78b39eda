"""Sessions: who a token is, which sockets it has, what it uploaded and what was said.

The token is the identity and the only credential. A session is over `session_life_s` seconds after its last message;
its token then opens another one.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from attachd.sandbox.clock import Clock
from attachd.sandbox.ids import new_id
from attachd.sandbox.ledger import Guest, Ledger, Upload
from attachd.sandbox.quota import Window
from attachd.sandbox.settings import SandboxSettings
from attachd.sandbox.webmessaging import frames
from attachd.sandbox.webmessaging.frames import Declined, Frame
from attachd.sandbox.webmessaging.limits import ConnectionLimits
from attachd.sandbox.webmessaging.outlet import Outlet

# With a ledger that only counts: sessions before the oldest is forgotten. Our figure, as the ledger's own.
_OPEN_SESSIONS = 20_000


@dataclass(slots=True, eq=False)
class Attached:
    """A file of the session. `uploaded_at_s` (wall time): None until the platform has taken it."""

    upload: Upload
    uploaded_at_s: float | None = None
    failed: bool = False
    sent: bool = False


@dataclass(frozen=True, slots=True)
class Said:
    """One entry of the history."""

    wall_s: float
    body: Mapping[str, object]


@dataclass(slots=True, eq=False)
class Session:
    guest: Guest
    expires_at_s: float
    read_only: bool = False
    expired: bool = False
    spoken: bool = False  # at least one message came from the guest
    outlets: list[Outlet] = field(default_factory=list)
    attachments: dict[str, Attached] = field(default_factory=dict)
    said: list[Said] = field(default_factory=list)
    undelivered: list[Frame] = field(default_factory=list)
    messages: Window = field(default_factory=lambda: Window(1.0))
    configures: Window = field(default_factory=lambda: Window(60.0))
    readings: Window = field(default_factory=lambda: Window(60.0))

    def push(self, frame: Frame, besides: Outlet | None = None) -> None:
        """Say it on every socket of the session but one."""
        for outlet in self.outlets:
            if outlet is not besides:
                outlet.push(frame)

    def say(self, body: Mapping[str, object], wall_s: float) -> None:
        self.said.append(Said(wall_s, body))


@dataclass(slots=True, eq=False)
class Peer:
    """A client at the other end of one socket, as far as the dialogue needs to know it."""

    outlet: Outlet
    deployment_id: str
    limits: ConnectionLimits
    session: Session | None = None  # since it was configured


class Sessions:
    def __init__(self, settings: Callable[[], SandboxSettings], ledger: Ledger, clock: Clock) -> None:
        self._settings = settings
        self._ledger = ledger
        self._clock = clock
        self._by_token: OrderedDict[str, Session] = OrderedDict()
        self._by_guest: dict[str, Session] = {}

    def open(self, token: str, deployment_id: str, *, may_attach: bool) -> Session:
        now_s = self._clock.wall_s()
        guest = Guest(
            guest_id=new_id(),
            conversation_id=new_id(),
            queue_id=deployment_id,
            skills=(),
            metadata={},
            may_attach=may_attach,
            wall_s=now_s,
            token=token,
        )
        session = Session(guest, now_s + self._settings().session_life_s)
        self._ledger.open(guest)
        self._forget(self._by_token.get(token))
        self._by_token[token] = session
        self._by_guest[guest.guest_id] = session
        if self._settings().ledger == "counts" and len(self._by_token) > _OPEN_SESSIONS:
            self._forget(next(iter(self._by_token.values())))
        return session

    def find(self, token: str) -> Session | None:
        """The session of a token, also one that is over."""
        session = self._by_token.get(token)
        if session is not None and self._clock.wall_s() >= session.expires_at_s:
            session.expired = True
        return session

    def of_guest(self, guest_id: str) -> Session | None:
        return self._by_guest.get(guest_id)

    def own(self, token: str, outlet: Outlet) -> Session:
        """The live session of a token, which this socket must have configured. Raises Declined."""
        session = self.find(token)
        if session is None or outlet not in session.outlets:
            raise Declined(frames.SESSION_UNKNOWN, "Session not found.")
        if session.expired:
            error_class = frames.EXPIRED_CLASS if self._settings().expired_as == "event" else None
            raise Declined(frames.SESSION_EXPIRED, "Session expired.", error_class=error_class)
        return session

    def writable(self, token: str, outlet: Outlet) -> Session:
        """As `own`; a session that is read-only is declined too."""
        session = self.own(token, outlet)
        if self.read_only(session):
            raise Declined(409, "The session is read-only.")
        return session

    def read_only(self, session: Session) -> bool:
        return session.read_only or self._settings().read_only

    def prolong(self, session: Session) -> None:
        session.spoken = True
        session.expires_at_s = self._clock.wall_s() + self._settings().session_life_s

    def leave(self, outlet: Outlet, session: Session | None) -> None:
        if session is not None and outlet in session.outlets:
            session.outlets.remove(outlet)

    def expire(self) -> None:
        """End all sessions now, and tell those that listen."""
        for session in self._by_token.values():
            session.expired = True
            session.push(frames.session_expired(self._settings()))

    def disconnect(self) -> None:
        """The agents end all conversations: the sessions become read-only, and hear of it."""
        now_s = self._clock.wall_s()
        for session in self._by_token.values():
            session.read_only = True
            event = {"eventType": "Presence", "presence": {"type": "Disconnect"}}
            body = frames.structured({"type": "Event", "direction": "Outbound", "events": [event]}, now_s)
            session.say(body, now_s)
            session.push(Frame("StructuredMessage", body, kind="message"))

    def clear(self) -> None:
        self._by_token.clear()
        self._by_guest.clear()

    def _forget(self, session: Session | None) -> None:
        if session is not None and session.guest.token is not None:
            self._by_token.pop(session.guest.token, None)
            # Its sockets must be configured again, and a JWT of it opens nothing any more.
            self._by_guest.pop(session.guest.guest_id, None)
