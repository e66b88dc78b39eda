"""The WebSocket guest protocol: a guest of a web messaging deployment brings one document.

What is said and what the answers mean stands in `frames`, what a deployment allows in `deployment`, how a socket is
used in `channel`; here is their order. No official client sets a deadline on any step: all of them are ours.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from urllib.parse import quote
from uuid import uuid4

import structlog
from yarl import URL

from attachd import __version__
from attachd.errors import AccountError, DeliveryError, FileError, InboxError, TransientError
from attachd.gateway import deployment as deployments
from attachd.gateway import frames
from attachd.gateway.channel import Channel, open_channel
from attachd.gateway.deployment import Deployment, Profile
from attachd.gateway.frames import DEPLOYMENT_ADVICE, Configured
from attachd.gateway.guard import Gate, Observer, Window
from attachd.gateway.guests import new_guest, token_of
from attachd.gateway.http import Answer, Http, open_http
from attachd.gateway.upload import Slot, Storage
from attachd.model import AttachmentId, DeliveryId, Document, GuestId, Reason, Receipt, Routing, Step, Upload
from attachd.ports import CannotAsk, Found, NotThere, ReadContent

CONFIG_S = 15.0
CONFIGURE_S = 15.0
PLACE_S = 15.0
HISTORY_S = 15.0
"""Ours, total: a platform that takes longer for so little is as good as down."""

ARRIVED_S = 60.0
"""Ours, from the storage's answer on: the platform may look into the file before it says that it has it."""

ECHO_S = 30.0
"""Ours: longer than the rest, for giving up on a message that stands costs two looks into the history."""

CONFIG_LASTS_S = 600.0
"""Ours: how long a deployment's configuration counts as known; a refusal ends it earlier."""

SECOND_LOOK_S = 30.0
"""Ours: how much later a message that the history does not show is looked for again; it may appear there late."""

DROPPED_LASTS_S = 3600.0
"""Ours: how long files of a type are not tried after the platform dropped one from its message. Each try costs the
agents a message without a file."""

CONNECTIONS_PER_S = 1000 / 60
"""New connections of one deployment. Source: the vendor's limits."""

PAGE_SIZE = 100
MOST_PAGES = 4
"""Ours: a session that has more than 400 messages is no longer one that only brought a document."""

HISTORY_PER_MINUTE = 10
"""Source: the vendor's limits, for one session."""

_CONFIG_LIMIT_BYTES = 1024 * 1024
_HISTORY_LIMIT_BYTES = 2 * 1024 * 1024
_MOST_REMEMBERED = 4096  # guests and dropped types; ours, far more than are ever under way

_log = structlog.get_logger(__name__)


class Deployments:
    """The deployment's public configuration: asked for once, however many need it, and again after a while."""

    def __init__(
        self, http: Http, gate: Gate, *, config_url: str, deployment_id: str, clock: Callable[[], float]
    ) -> None:
        path = f"/webdeployments/v1/deployments/{quote(deployment_id, safe='')}/config.json"
        self._url = URL(config_url.rstrip("/") + path, encoded=True)
        self._http = http
        self._gate = gate
        self._clock = clock
        self._known: Deployment | None = None
        self._good_until = float("-inf")
        self._asking = asyncio.Lock()

    def forget(self) -> None:
        """Something was refused: ask anew before the next session."""
        self._good_until = float("-inf")
        self._known = None

    async def get(self) -> Deployment:
        """The configuration. While it cannot be had, what was known of it still counts.

        Raises AccountError (no such deployment), TransientError.
        """
        async with self._asking:
            if self._known is None or self._clock() >= self._good_until:
                try:
                    self._known = await self._ask()
                except TransientError:
                    if self._known is None:
                        raise
                    self._good_until = self._clock() + CONFIG_LASTS_S / 10
                else:
                    self._good_until = self._clock() + CONFIG_LASTS_S
            return self._known

    async def _ask(self) -> Deployment:
        await self._gate.admit_uncounted()
        answer = await self._http.request(
            Step.SESSION,
            "GET",
            self._url,
            deadline_s=CONFIG_S,
            headers={"Accept": "application/json"},
            limit_bytes=_CONFIG_LIMIT_BYTES,
        )
        if answer.status in (401, 403, 404, 410):
            detail = f"{answer.told()}: there is no such deployment; {DEPLOYMENT_ADVICE}"
            raise AccountError(Reason.DEPLOYMENT_REFUSED, detail, Step.SESSION, http_status=answer.status)
        if answer.status in (408, 425, 429) or answer.status >= 500:
            raise _busy(answer, Step.SESSION)
        content = answer.json()
        if not answer.ok or content is None:
            detail = f"{answer.where} answered {answer.status}, which is no deployment; look at platform.config_url"
            raise AccountError(Reason.NOT_THE_PLATFORM, detail, Step.SESSION, http_status=answer.status)
        return deployments.deployment(content)


class WebMessagingSession:
    """One guest of a deployment; a `ports.GuestSession`."""

    def __init__(
        self,
        channel: Channel,
        storage: Storage,
        guest: GuestId,
        profile: Profile,
        routing: Routing,
        drops: "Drops",
        *,
        forgotten: bool,
        joins: bool,
        clock: Callable[[], float],
    ) -> None:
        self._channel = channel
        self._storage = storage
        self._guest = guest
        self._profile = profile
        self._attributes = dict(routing.metadata)
        self._drops = drops
        self._forgotten = forgotten
        self._join_due = joins
        self._clock = clock
        self._arrived: set[AttachmentId] = set()

    @property
    def guest(self) -> GuestId:
        """The label; the secret follows from it."""
        return self._guest

    async def upload(self, document: Document, read: ReadContent) -> AttachmentId:
        """Hold the document against the profile, ask for a place, bring the bytes there, wait for the event."""
        if (objection := self._profile.objection(document)) is not None:
            raise FileError(*objection, Step.UPLOAD)
        self._drops.demand(self._profile, document)
        tracing, attachment = str(uuid4()), AttachmentId(str(uuid4()))
        request = frames.on_attachment(tracing, attachment, document)
        asked_at = self._clock()
        reads = partial(frames.read_place, tracing=tracing, attachment=attachment)
        place = await self._channel.ask(request, reads, Step.UPLOAD, PLACE_S)
        attachment = place.attachment
        # The event may overtake the storage's own answer.
        with self._channel.watch(partial(frames.read_arrived, attachment=attachment)) as arrival:
            await self._storage.put(_slot(place, document, asked_at), document.size, read)
            await self._channel.wait(arrival, Step.PUT, ARRIVED_S, "the upload")
        self._arrived.add(attachment)
        return attachment

    async def post(self, attachment: AttachmentId, document: Document, text: str) -> Receipt:
        """Post the message; afterwards an agent sees it."""
        self._drops.demand(self._profile, document)
        if self._forgotten and attachment not in self._arrived:
            await self._demand_kept(attachment)
        if self._join_due:
            # Not earlier: a guest who joins opens a conversation, and an upload that fails must not leave an empty one.
            self._join_due = False
            await self._channel.tell(frames.join(str(uuid4())), Step.MESSAGE)
        tracing = str(uuid4())
        request = frames.on_message(tracing, attachment, text, self._attributes)
        reads = partial(frames.read_echo, tracing=tracing, attachment=attachment)
        echo = await self._channel.ask(request, reads, Step.MESSAGE, ECHO_S)
        if not echo.carries:
            raise self._drops.note(self._profile, document)
        return Receipt(None, echo.message)

    async def _demand_kept(self, attachment: AttachmentId) -> None:
        """See that the platform still has an upload of a guest it calls new: a message without it would be worse.

        Raises TransientError (`not_ready`) when it has not.
        """
        tracing = str(uuid4())
        reads = partial(frames.read_kept, tracing=tracing, attachment=attachment)
        await self._channel.ask(frames.get_attachment(tracing, attachment), reads, Step.UPLOAD, PLACE_S)


class Drops:
    """Which types the platform dropped from a message although its profile lets them in.

    Such a message stands, without its file. It says nothing against the file, but to try again and again would send
    the agents one empty message after the other: so nothing of the type goes until the profile changes or an hour is
    over.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._until: dict[tuple[Profile, str], float] = {}

    def note(self, profile: Profile, document: Document) -> InboxError:
        """It has happened; the error to raise."""
        if len(self._until) >= _MOST_REMEMBERED:
            del self._until[next(iter(self._until))]
        self._until[profile, document.content_type] = self._clock() + DROPPED_LASTS_S
        return self._error(document, DROPPED_LASTS_S)

    def demand(self, profile: Profile, document: Document) -> None:
        """Raise InboxError if it happened lately."""
        left_s = self._until.get((profile, document.content_type), 0.0) - self._clock()
        if left_s > 0:
            raise self._error(document, left_s)

    def _error(self, document: Document, left_s: float) -> InboxError:
        said = (
            f"the platform took a message and dropped its {document.content_type} file; an agent has the text alone. "
            "Look at the content profile of the organisation. The next try, which may send one more such message, "
            f"comes in {left_s / 60:.0f} minutes, at a changed profile, or at a restart"
        )
        # At the message's step: only a message that goes through shows that it is over.
        return InboxError(Reason.ATTACHMENT_DROPPED, said, Step.MESSAGE)


class WebMessagingGateway:
    """Takes documents from guests of a web messaging deployment; a `ports.GuestGateway`."""

    def __init__(
        self,
        http: Http,
        gate: Gate,
        storage: Storage,
        known: Deployments,
        *,
        deployment_id: str,
        guest_key: bytes,
        messaging_url: str,
        api_url: str,
        origin: str,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[object]],
    ) -> None:
        self._http = http
        self._gate = gate
        self._storage = storage
        self._deployments = known
        self._deployment_id = deployment_id
        self._guest_key = guest_key
        self._messaging_url = messaging_url
        self._history_url = URL(api_url.rstrip("/") + "/api/v2/webmessaging/messages", encoded=True)
        self._origin = origin
        self._clock = clock
        self._sleep = sleep
        self._drops = Drops(clock)
        self._forgotten: dict[GuestId, None] = {}

    @asynccontextmanager
    async def session(
        self,
        delivery: DeliveryId,  # noqa: ARG002  the guest is what the journal keeps
        routing: Routing,
        resume: GuestId | None = None,
    ) -> AsyncIterator[WebMessagingSession]:
        """Connect as a guest for one document."""
        guest = resume if resume is not None else new_guest()
        try:
            known = _usable(await self._deployments.get())
            async with self._connected(guest, known) as channel:
                configured = await self._configured(channel, known, renew=True)
                if configured.is_new and resume is not None:
                    self._forget(guest)
                _demand_fit(configured, routing)
                yield WebMessagingSession(
                    channel,
                    self._storage,
                    guest,
                    configured.profile,
                    routing,
                    self._drops,
                    forgotten=guest in self._forgotten,
                    joins=configured.is_new and known.auto_start,
                    clock=self._clock,
                )
        except (AccountError, InboxError):
            self._deployments.forget()
            raise

    async def allowed(self) -> Profile:
        """What files the deployment takes: connects and configures a session, as any delivery does.

        Raises AccountError, also where every inbox alike is refused; TransientError.
        """
        self._deployments.forget()
        try:
            known = _usable(await self._deployments.get())
            async with self._connected(new_guest(), known) as channel:
                configured = await self._configured(channel, known, renew=False)
                _demand_fit(configured, Routing(None))
                return configured.profile
        except InboxError as error:
            raise AccountError(error.reason, str(error), error.step) from error

    async def find(self, upload: Upload) -> Found | NotThere | CannotAsk:
        """Look into the guest's history, twice before saying that the message is not there.

        The history shows messages late, so the second look comes `SECOND_LOOK_S` after the first. A guest whom the
        platform has forgotten, and one who was talked to more than we read, cannot be asked for.
        """
        jwt = await self._jwt(upload.guest)
        if jwt is None:
            return CannotAsk()
        history = _History(self._http, self._gate, self._history_url, self._origin, upload, self._clock, self._sleep)
        for look in (1, 2):
            if look == 2:
                await self._sleep(SECOND_LOOK_S)
            answer = await history.look(jwt)
            if answer is None and (jwt := await self._jwt(upload.guest) or ""):
                answer = await history.look(jwt)
            if not isinstance(answer, NotThere):
                return answer or CannotAsk()
        return NotThere()

    async def _jwt(self, guest: GuestId) -> str | None:
        """The right to read the guest's history; None when the platform does not know the guest any more."""
        if guest in self._forgotten:
            return None
        known = await self._deployments.get()
        async with self._connected(guest, known) as channel:
            try:
                if not (await self._configured(channel, known, renew=False)).is_new:
                    tracing = str(uuid4())
                    reads = partial(frames.read_jwt, tracing=tracing)
                    return (await channel.ask(frames.get_jwt(tracing), reads, Step.SESSION, CONFIGURE_S)).value
            except TransientError as error:
                if error.reason is not Reason.NOT_READY:
                    raise
        self._forget(guest)
        return None

    def _forget(self, guest: GuestId) -> None:
        """Asking for a forgotten guest makes the platform know him anew, with an empty history that proves nothing."""
        if len(self._forgotten) >= _MOST_REMEMBERED:
            del self._forgotten[next(iter(self._forgotten))]
        self._forgotten[guest] = None

    @asynccontextmanager
    async def _connected(self, guest: GuestId, known: Deployment) -> AsyncIterator[Channel]:
        base = deployments.endpoint(known.endpoint, self._messaging_url).rstrip("/")
        url = URL(f"{base}/v1").with_query(deploymentId=self._deployment_id, application=f"attachd-{__version__}")
        token = token_of(guest, self._guest_key)
        async with open_channel(
            self._http, self._gate, url, origin=self._origin, token=token, clock=self._clock
        ) as channel:
            yield channel

    async def _configured(self, channel: Channel, known: Deployment, *, renew: bool) -> Configured:
        """Configure the session; with `renew` one that is over, or can only be read, is begun anew, once."""
        try:
            configured = await self._configure(channel, known, start_new=False)
        except TransientError as error:
            if not renew or error.reason is not Reason.NOT_READY:
                raise
        else:
            if not (renew and configured.read_only):
                return configured
            tracing = str(uuid4())
            reads = partial(frames.read_configured, tracing=tracing)
            await channel.ask(frames.close_session(tracing), reads, Step.SESSION, CONFIGURE_S)
        configured = await self._configure(channel, known, start_new=True)
        if configured.read_only:
            said = "the session can only be read, and the platform begins no new one"
            raise TransientError(Reason.NOT_READY, said, Step.SESSION)
        return replace(configured, is_new=True)

    async def _configure(self, channel: Channel, known: Deployment, *, start_new: bool) -> Configured:
        tracing = str(uuid4())
        request = frames.configure_session(tracing, self._deployment_id, start_new=start_new)
        reads = partial(frames.read_configured, tracing=tracing)
        configured = await channel.ask(request, reads, Step.SESSION, CONFIGURE_S)
        if not configured.connected:
            said = "the platform answered configureSession without connecting the session"
            raise TransientError(Reason.NOT_READY, said, Step.SESSION)
        return replace(configured, profile=known.profile_with(configured.profile))


class _History:
    """One guest's messages as the platform keeps them."""

    def __init__(
        self,
        http: Http,
        gate: Gate,
        url: URL,
        origin: str,
        upload: Upload,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[object]],
    ) -> None:
        self._http = http
        self._gate = gate
        self._url = url
        self._origin = origin
        self._attachment = upload.attachment
        self._clock = clock
        self._sleep = sleep
        self._limit = Window(HISTORY_PER_MINUTE, 60.0)

    async def look(self, jwt: str) -> Found | NotThere | CannotAsk | None:
        """Read all pages, newest first as far as is known; None when the right to read has ended.

        Raises AccountError, TransientError.
        """
        for number in range(1, MOST_PAGES + 1):
            answer = await self._ask(jwt, number)
            if answer.status == 401:
                return None
            if answer.status in (402, 403, 404, 410):
                _log.warning("history.refused", status=answer.status, attachment_id=self._attachment)
                return CannotAsk()
            if answer.status in (408, 425, 429) or answer.status >= 500:
                raise _busy(answer, Step.MESSAGE, jwt)
            content = answer.json() if answer.ok else None
            page = content and frames.read_page(content, self._attachment, number_of=number, size=PAGE_SIZE)
            if not page:
                said = f"{answer.where} answered {answer.status}, which is no history; look at platform.api_url"
                raise AccountError(Reason.NOT_THE_PLATFORM, said, Step.MESSAGE, http_status=answer.status)
            if page.receipt is not None:
                return Found(page.receipt)
            if page.is_last:
                return NotThere()
        _log.warning("history.too_long", pages=MOST_PAGES, attachment_id=self._attachment)
        return CannotAsk()

    async def _ask(self, jwt: str, number: int) -> Answer:
        if (wait_s := self._limit.wait_s(self._clock())) > 0:
            await self._sleep(wait_s)
        await self._gate.admit_uncounted()
        self._limit.take(self._clock())
        return await self._http.request(
            Step.MESSAGE,
            "GET",
            self._url.with_query(pageSize=PAGE_SIZE, pageNumber=number),
            deadline_s=HISTORY_S,
            headers={"Authorization": f"bearer {jwt}", "Origin": self._origin, "Accept": "application/json"},
            limit_bytes=_HISTORY_LIMIT_BYTES,
        )


_NO_ATTACHMENTS = "the deployment takes no attachments; enable them in its configuration and its content profile"


def _usable(known: Deployment) -> Deployment:
    if not known.active:
        said = f"the deployment is {known.status}, not Active; activate it, or name another in deployment_id"
        raise AccountError(Reason.DEPLOYMENT_REFUSED, said, Step.SESSION)
    if known.attachments is False:
        raise InboxError(Reason.ATTACHMENTS_NOT_GRANTED, _NO_ATTACHMENTS, Step.SESSION)
    return known


def _demand_fit(configured: Configured, routing: Routing) -> None:
    if not configured.profile.takes_files:
        raise InboxError(Reason.ATTACHMENTS_NOT_GRANTED, _NO_ATTACHMENTS, Step.SESSION)
    size, most = attributes_size(routing), configured.max_custom_bytes
    if most and size > most:
        said = f"metadata of this inbox has {size} bytes, the deployment takes {most}; shorten it"
        raise InboxError(Reason.MESSAGE_REFUSED, said, Step.SESSION)


def attributes_size(routing: Routing) -> int:
    """The size of what goes along with a message: all keys and values as UTF-8."""
    return sum(len(part.encode("utf-8", "replace")) for pair in routing.metadata.items() for part in pair)


def _slot(place: frames.Place, document: Document, asked_at: float) -> Slot:
    """The place with the type that was announced, unless the platform itself names one to send."""
    headers = dict(place.headers)
    content_type = deployments.file_type(document)
    for name in place.headers:
        if name.lower() == "content-type":
            content_type = headers.pop(name)
        elif name.lower() in ("host", "content-length"):
            del headers[name]  # they are said anyway, as the URL and the document have them
    return Slot(place.attachment, place.url, content_type, asked_at, expires_in_s=None, headers=headers)


def _busy(answer: Answer, step: Step, *secrets: str) -> DeliveryError:
    reason = {408: Reason.TIMEOUT, 429: Reason.RATE_LIMITED}.get(answer.status, Reason.SERVER_ERROR)
    return TransientError(
        reason,
        answer.told(*secrets),
        step,
        http_status=answer.status,
        correlation_id=answer.correlation_id,
        retry_after_s=answer.retry_after_s(),
    )


@dataclass(frozen=True, slots=True)
class WebMessaging:
    """The assembled gateway, and the parts of it that somebody else has to do with."""

    gateway: WebMessagingGateway
    gate: Gate

    async def check_credentials(self) -> None:
        """See that the deployment lets us in and takes files. Raises AccountError, TransientError."""
        await self.gateway.allowed()

    async def allowed(self) -> Profile:
        """What files the deployment takes. Raises AccountError, TransientError."""
        return await self.gateway.allowed()


@asynccontextmanager
async def open_webmessaging(
    *,
    deployment_id: str,
    guest_key: bytes,
    messaging_url: str,
    config_url: str,
    api_url: str,
    origin: str,
    ca_file: str | None,
    proxy_for: Callable[[str], str | None],
    clock: Callable[[], float],
    jitter: Callable[[float, float], float],
    on_hold: Observer | None = None,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    upload_hosts: tuple[str, ...] = (),
) -> AsyncIterator[WebMessaging]:
    """Build the gateway of one deployment and close its connections at the end.

    `guest_key` is what `load_guest_key` gives: with another key no guest can be resumed. `clock` is monotonic,
    `jitter(low, high)` random; `proxy_for` gives the proxy for an origin, or None.

    Raises ConfigError when `ca_file` cannot be used.
    """
    async with open_http(ca_file, proxy_for, clock) as http:
        gate = Gate(CONNECTIONS_PER_S, clock=clock, jitter=jitter, on_hold=on_hold)
        storage = Storage(http, gate, api_url=messaging_url, hosts=upload_hosts, clock=clock)
        known = Deployments(http, gate, config_url=config_url, deployment_id=deployment_id, clock=clock)
        gateway = WebMessagingGateway(
            http,
            gate,
            storage,
            known,
            deployment_id=deployment_id,
            guest_key=guest_key,
            messaging_url=messaging_url,
            api_url=api_url,
            origin=origin,
            clock=clock,
            sleep=sleep,
        )
        yield WebMessaging(gateway, gate)
