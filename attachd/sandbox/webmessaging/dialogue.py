"""What the platform says to each frame of a client. Everything it declines is in the contract.

Order of the checks: rate of the connection, session, rate of the session, then the content.
"""

from collections.abc import Callable
from typing import Final

from attachd.sandbox.clock import Clock
from attachd.sandbox.exchange import Exchange
from attachd.sandbox.faults import FaultKind
from attachd.sandbox.fields import Fields, glimpsed
from attachd.sandbox.ledger import Ledger
from attachd.sandbox.settings import SandboxSettings
from attachd.sandbox.step import Step
from attachd.sandbox.webmessaging import frames
from attachd.sandbox.webmessaging.files import Files
from attachd.sandbox.webmessaging.frames import Declined, Frame
from attachd.sandbox.webmessaging.history import History
from attachd.sandbox.webmessaging.limits import too_many
from attachd.sandbox.webmessaging.posts import Posts
from attachd.sandbox.webmessaging.profile import Profile
from attachd.sandbox.webmessaging.session import Peer, Session, Sessions

_ACTIONS: Final = {
    "configureSession": Step.CONFIGURE,
    "onAttachment": Step.ATTACHMENT,
    "onMessage": Step.MESSAGE,
    "getJwt": Step.JWT,
    "echo": Step.ECHO,
    "getConfiguration": Step.GET_CONFIGURATION,
    "getAttachment": Step.GET_ATTACHMENT,
    "deleteAttachment": Step.DELETE_ATTACHMENT,
    "closeSession": Step.CLOSE_SESSION,
}


def step_in(content: object) -> Step:
    """Which call a frame is; UNKNOWN for what is none."""
    step = _ACTIONS.get(glimpsed(content, "action") or "", Step.UNKNOWN)
    is_event = step is Step.MESSAGE and glimpsed(content, "message", "type") == "Event"
    return Step.JOIN if is_event else step


class Dialogue:
    def __init__(
        self,
        settings: Callable[[], SandboxSettings],
        sessions: Sessions,
        files: Files,
        posts: Posts,
        history: History,
        ledger: Ledger,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._sessions = sessions
        self._history = history
        self._ledger = ledger
        self._clock = clock
        self._answers: dict[Step, Callable[[Fields, Peer, Exchange], Frame]] = {
            Step.CONFIGURE: self._configure,
            Step.JOIN: posts.join,
            Step.ATTACHMENT: files.announce,
            Step.MESSAGE: posts.message,
            Step.JWT: self._jwt,
            Step.ECHO: posts.echo,
            Step.GET_CONFIGURATION: self._get_configuration,
            Step.GET_ATTACHMENT: files.locate,
            Step.DELETE_ATTACHMENT: files.withdraw,
            Step.CLOSE_SESSION: self._close_session,
            Step.UNKNOWN: self._unknown,
        }

    def answer(self, content: object, peer: Peer, exchange: Exchange) -> Frame:
        """Raises Declined or, for what is malformed, Refused; Struck when a fault ends the matter."""
        exchange.concerns(self._file_name(content, exchange.received.step), peer.deployment_id)
        peer.limits.count_request(self._settings())
        if exchange.suffers(FaultKind.SESSION_EXPIRED):
            self._expire(glimpsed(content, "token"))
        return self._answers[exchange.received.step](Fields(content), peer, exchange)

    def _file_name(self, content: object, step: Step) -> str | None:
        match step:
            case Step.ATTACHMENT:
                return glimpsed(content, "fileName")
            case Step.MESSAGE:
                attachment_id = glimpsed(content, "message", "content", 0, "attachment", "id")
            case Step.GET_ATTACHMENT | Step.DELETE_ATTACHMENT:
                attachment_id = glimpsed(content, "attachmentId")
            case _:
                return None
        upload = self._ledger.uploads.get(attachment_id or "")
        return upload.file_name if upload else None

    def _configure(self, body: Fields, peer: Peer, exchange: Exchange) -> Frame:
        settings = self._settings()
        token = body.text("token")
        if body.text("deploymentId") != peer.deployment_id:
            raise Declined(400, "Deployment not found")
        session = self._sessions.find(token)
        if session is not None:
            too_many(session.configures, settings.configures_per_minute, settings, self._clock, "ConfigureSession")
        over = session is None or session.expired or (body.flag("startNew") and session.read_only)
        if session is None or over:
            may_attach = not exchange.suffers(FaultKind.CAPABILITY_DENIED)
            session = self._sessions.open(token, peer.deployment_id, may_attach=may_attach)
            session.configures.wait_s(self._clock.monotonic_s(), settings.configures_per_minute)
        self._take_in(peer, session)
        exchange.afterwards = lambda: self._catch_up(session)
        answer: dict[str, object] = {
            "connected": True,
            "newSession": over or (settings.session_known_from == "message" and not session.spoken),
            "readOnly": self._sessions.read_only(session),
            **self._told_profile(session),
            "durationSeconds": frames.number(settings.session_life_s, settings),
            "expirationDate": frames.number(session.expires_at_s, settings),
        }
        return Frame("SessionResponse", answer)

    def _take_in(self, peer: Peer, session: Session) -> None:
        """Give the session this socket; one too many pushes out the oldest."""
        settings = self._settings()
        if peer.session is not session:
            self._sessions.leave(peer.outlet, peer.session)
            peer.session = session
        if peer.outlet not in session.outlets:
            session.outlets.append(peer.outlet)
        while settings.sockets_per_session and len(session.outlets) > settings.sockets_per_session:
            session.outlets.pop(0).push(frames.connection_closed("connectionLimit", settings))

    def _catch_up(self, session: Session) -> None:
        waiting, session.undelivered = session.undelivered, []
        for frame in waiting:
            session.push(frame)

    def _get_configuration(self, body: Fields, peer: Peer, _: Exchange) -> Frame:
        settings = self._settings()
        if body.text("deploymentId") != peer.deployment_id:
            raise Declined(400, "Deployment not found")
        told = {
            **self._told_profile(peer.session),
            "messageRoutingEnabled": True,
            "sessionDurationSeconds": frames.number(settings.session_life_s, settings),
        }
        return Frame("GetConfigurationResponse", told)

    def _told_profile(self, session: Session | None) -> dict[str, object]:
        settings = self._settings()
        profile = Profile.of(settings, may_attach=session is None or session.guest.may_attach)
        allowed = profile.told()
        inbound = allowed["inbound"]
        if settings.doubles and isinstance(inbound, dict) and profile.max_size_kb:
            inbound["maxFileSizeKB"] = float(profile.max_size_kb)
        return {
            "allowedMedia": allowed,
            "blockedExtensions": list(profile.blocked_extensions),
            "maxCustomDataBytes": frames.number(settings.max_custom_data_bytes, settings),
        }

    def _close_session(self, body: Fields, peer: Peer, _: Exchange) -> Frame:
        session = self._sessions.own(body.text("token"), peer.outlet)
        session.push(frames.connection_closed("closeSession", self._settings()), besides=peer.outlet)
        session.outlets.clear()
        peer.session = None
        return Frame("SessionResponse", {"connected": False})

    def _expire(self, token: str | None) -> None:
        session = self._sessions.find(token or "")
        if session is not None:
            session.expired = True

    def _jwt(self, body: Fields, peer: Peer, _: Exchange) -> Frame:
        session = self._sessions.own(body.text("token"), peer.outlet)
        jwt, expires_at_s = self._history.issue(session)
        return Frame("JwtResponse", {"jwt": jwt, "exp": frames.number(expires_at_s, self._settings())}, ties=False)

    def _unknown(self, body: Fields, _peer: Peer, _exchange: Exchange) -> Frame:
        raise body.wrong("action", f"{body.text('action')} is not offered here")
