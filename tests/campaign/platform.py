"""The sandbox of a campaign: it writes down every secret it gives out, and says of each request when it comes."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from attachd.sandbox import Gateway, Message, Sandbox, SandboxSettings, Step, sigv4


class Platform:
    """A running sandbox, `secrets` that must never appear anywhere, and who wants to hear of requests."""

    def __init__(self, sandbox: Sandbox, gateway: Gateway) -> None:
        self.sandbox = sandbox
        self.gateway = gateway
        self.secrets = {sandbox.client_secret}
        self.dropped: set[str] = set()
        """The SHA-256 of all content that was ever dropped: nothing else may arrive."""
        self.arrivals: list[Callable[[Step], None]] = []
        self._by_content: dict[str, list[Message]] = {}
        self._indexed = 0
        login, ledger = sandbox._login, sandbox.ledger
        issued, receive = login._issued, ledger.receive

        def issue(*given: Any) -> str:
            token: str = issued(*given)
            self.secrets.add(token)
            return token

        def arrive(step: Step, *given: Any) -> Any:
            received = receive(step, *given)
            for tell in list(self.arrivals):
                tell(step)
            return received

        login._issued, ledger.receive = issue, arrive  # type: ignore[method-assign]
        if gateway == "webmessaging":
            self._hear_guests()

    def _hear_guests(self) -> None:
        """Note a guest's token, which is all that a session asks for, and each right to read its history."""
        messaging = self.sandbox._messaging
        assert messaging is not None, "the sandbox has been started"
        sessions, history = self.sandbox._sessions, messaging.history
        opened, granted = sessions.open, history.issue

        def open_session(token: str, *given: Any, **more: Any) -> Any:
            self.secrets.add(token)
            return opened(token, *given, **more)

        def grant(session: Any) -> tuple[str, float]:
            jwt, expires_at_s = granted(session)
            self.secrets.add(jwt)
            return jwt, expires_at_s

        sessions.open, history.issue = open_session, grant  # type: ignore[method-assign]

    def messages_of(self, sha256: str) -> list[Message]:
        """What agents got of one content, in order."""
        messages = self.sandbox.messages
        for message in messages[self._indexed :]:
            for attachment in message.attachments:
                self._by_content.setdefault(attachment.sha256, []).append(message)
        self._indexed = len(messages)
        return self._by_content.get(sha256, [])


@asynccontextmanager
async def open_platform(gateway: Gateway = "webchat", **settings: Any) -> AsyncIterator[Platform]:
    """A platform without a quota: it would only slow the campaign down."""
    limits = dict.fromkeys(("requests_per_second", "connections_per_minute", "configures_per_minute"), 0)
    async with Sandbox(SandboxSettings(**(limits | settings))) as sandbox:
        platform = Platform(sandbox, gateway)
        _open.append(platform)
        try:
            yield platform
        finally:
            _open.remove(platform)


_open: list[Platform] = []
_presigned = sigv4.presigned


def _noting(*given: Any, **more: Any) -> str:
    url = _presigned(*given, **more)
    _, _, signed = url.rpartition("X-Amz-Signature=")
    assert signed, "a presigned URL without its signature"
    keys = {part.secret_key for part in (*given, *more.values()) if isinstance(part, sigv4.Credential)}
    for platform in _open:
        platform.secrets |= {signed.partition("&")[0], *keys}
    return url


sigv4.presigned = _noting
