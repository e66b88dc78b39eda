"""The REST guest API: a guest, an upload, a message.

Its three paths and what each refusal means stand here as data; how requests are made, admitted and paid for with a
token is the business of the modules below. Nothing in this API tells afterwards whether a message was accepted.
"""

import json
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeGuard

from yarl import URL

from attachd.errors import (
    AccountError,
    DeliveryError,
    FileError,
    InboxError,
    TransientError,
    UnknownOutcome,
)
from attachd.gateway.guard import Gate, Observer
from attachd.gateway.http import Answer, Http, open_http
from attachd.gateway.oauth import QUIET_S, Token, Tokens
from attachd.gateway.upload import METADATA_HEADER, Slot, Storage
from attachd.model import (
    AttachmentId,
    ConversationId,
    DeliveryId,
    Document,
    GuestId,
    Reason,
    Receipt,
    Routing,
    Step,
    Upload,
)
from attachd.ports import CannotAsk, ReadContent

_SESSION_PATH = "/api/v2/webchat/guest"
_UPLOAD_PATH = "/api/v2/webchat/guest/{guest}/attachments/upload"
_MESSAGE_PATH = "/api/v2/webchat/conversations"

SESSION_S = 15.0
UPLOAD_S = 15.0
MESSAGE_S = 30.0
"""Ours, total. A message gets longer than the rest: giving up on one that was accepted costs a second message."""

SCOPES = ("webchat:guest", "webchat:guest:write", "webchat:conversation", "webchat:conversation:write")
"""What the OAuth client must be allowed to do."""

_ID = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)
_DOTS = frozenset({".", ".."})


@dataclass(frozen=True, slots=True)
class _Says:
    """What a status means: a family, a reason, and what the platform's own words may leave open."""

    family: type[DeliveryError]
    reason: Reason
    note: str = ""


_PERHAPS = "the message may have been accepted"

_FORBIDDEN = _Says(AccountError, Reason.FORBIDDEN, f"the OAuth client needs the scopes {', '.join(SCOPES)}")
_NOT_THE_PLATFORM = _Says(AccountError, Reason.NOT_THE_PLATFORM, "that is no answer of this API")
_BUSY = _Says(TransientError, Reason.SERVER_ERROR)
_SLOW = _Says(TransientError, Reason.TIMEOUT)
_GUEST_GONE = _Says(TransientError, Reason.NOT_READY, "the guest session is gone")
_NOT_YET = _Says(TransientError, Reason.NOT_READY, "the platform may not know the upload yet")
_QUEUE = _Says(InboxError, Reason.QUEUE_REFUSED)
_NO_ATTACHMENTS = _Says(InboxError, Reason.ATTACHMENTS_NOT_GRANTED)
_REFUSED = _Says(FileError, Reason.REFUSED)
_TOO_LARGE = _Says(FileError, Reason.TOO_LARGE)
_UNKNOWN = _Says(UnknownOutcome, Reason.UNKNOWN_OUTCOME, _PERHAPS)

# For every step alike, unless its own table says otherwise.
_ALWAYS = {
    401: _Says(AccountError, Reason.CREDENTIALS_REFUSED, "a token the login host had just given was refused"),
    402: _FORBIDDEN,
    403: _FORBIDDEN,
    **dict.fromkeys((405, 406, 407, 411, 426), _NOT_THE_PLATFORM),
    408: _SLOW,
    425: _BUSY,
    429: _Says(TransientError, Reason.RATE_LIMITED),
}


@dataclass(frozen=True, slots=True)
class _Table:
    """What the statuses of a step mean; the last three are for those that are not listed."""

    listed: Mapping[int, _Says]
    redirect: _Says
    client: _Says
    server: _Says

    def read(self, status: int) -> _Says:
        says = self.listed.get(status) or _ALWAYS.get(status)
        if says is not None:
            return says
        if 400 <= status < 500:
            return self.client
        return self.server if status >= 500 else self.redirect


_TABLES = {
    Step.SESSION: _Table(
        {**dict.fromkeys((404, 410), _NOT_THE_PLATFORM), 409: _BUSY},
        redirect=_NOT_THE_PLATFORM,
        client=_QUEUE,
        server=_BUSY,
    ),
    Step.UPLOAD: _Table(
        {**dict.fromkeys((404, 409, 410), _GUEST_GONE), 413: _TOO_LARGE},
        redirect=_NOT_THE_PLATFORM,
        client=_REFUSED,
        server=_BUSY,
    ),
    Step.MESSAGE: _Table(
        {
            **dict.fromkeys((307, 308), _NOT_THE_PLATFORM),
            400: _NOT_YET,
            **dict.fromkeys((404, 410), _NOT_YET),
            408: _Says(UnknownOutcome, Reason.TIMEOUT, _PERHAPS),
            409: _UNKNOWN,
            413: _TOO_LARGE,
        },
        redirect=_UNKNOWN,
        client=_REFUSED,
        server=_Says(UnknownOutcome, Reason.SERVER_ERROR, _PERHAPS),
    ),
}


class WebchatApi:
    """Makes the calls of this API for one account."""

    def __init__(self, http: Http, gate: Gate, tokens: Tokens, api_url: str) -> None:
        self._http = http
        self._gate = gate
        self._tokens = tokens
        self._api_url = api_url.rstrip("/")

    async def ask(self, step: Step, path: str, question: Mapping[str, object], deadline_s: float) -> Answer:
        """Make one call; a token that is refused is replaced once. What comes back says that it was done.

        Raises whatever else the platform says, as the step's table has it.
        """
        url = URL(self._api_url + path, encoded=True)
        body = json.dumps(question, separators=(",", ":")).encode()
        token = await self._tokens.get()
        answer = await self._once(step, url, token, body, deadline_s)
        if answer.status == 401:
            token = await self._tokens.get(rejected=token)
            answer = await self._once(step, url, token, body, deadline_s)
        if answer.ok:
            return answer
        error = _error(_TABLES[step].read(answer.status), step, answer, answer.told(token.value))
        retry_after_s = answer.retry_after_s()
        if answer.status == 429 or (answer.status == 503 and retry_after_s is not None):
            self._gate.hold(retry_after_s or QUIET_S, str(error))
        raise error

    async def _once(self, step: Step, url: URL, token: Token, body: bytes, deadline_s: float) -> Answer:
        departure = await self._gate.admit()
        try:
            answer = await self._http.request(
                step,
                "POST",
                url,
                deadline_s=deadline_s,
                headers={
                    "Authorization": token.authorization,
                    "Content-Type": "application/json",
                    "Accept": "application/json",
                },
                body=body,
            )
        except TransientError as error:
            if step is Step.MESSAGE and error.reason is not Reason.UNREACHABLE:
                raise UnknownOutcome(error.reason, f"{error}; {_PERHAPS}", step) from error
            raise
        self._gate.answered(departure, step)
        return answer


class WebchatSession:
    """One guest of the REST API; a `ports.GuestSession`."""

    def __init__(self, api: WebchatApi, storage: Storage, guest: GuestId) -> None:
        self._api = api
        self._storage = storage
        self._guest = guest

    @property
    def guest(self) -> GuestId:
        """The id the platform gave."""
        return self._guest

    async def upload(self, document: Document, read: ReadContent) -> AttachmentId:
        """Ask for a place and bring the bytes there."""
        answer = await self._api.ask(
            Step.UPLOAD,
            _UPLOAD_PATH.format(guest=self._guest),
            {"fileName": document.file_name, "contentType": document.content_type, "fileSize": document.size},
            UPLOAD_S,
        )
        slot = _slot(answer)
        await self._storage.put(slot, document.size, read)
        return slot.attachment

    async def post(self, attachment: AttachmentId, document: Document, text: str) -> Receipt:
        """Post the message; afterwards an agent sees it."""
        answer = await self._api.ask(
            Step.MESSAGE,
            _MESSAGE_PATH,
            {
                "guestId": self._guest,
                "messages": [{"type": "text", "text": text}],
                "attachments": [
                    {
                        "id": attachment,
                        "fileName": document.file_name,
                        "contentType": document.content_type,
                        "fileSize": document.size,
                    }
                ],
            },
            MESSAGE_S,
        )
        return _receipt(answer, attachment)


class WebchatGateway:
    """Takes documents from guests of the REST API; a `ports.GuestGateway`."""

    def __init__(self, api: WebchatApi, storage: Storage) -> None:
        self._api = api
        self._storage = storage

    @asynccontextmanager
    async def session(
        self,
        delivery: DeliveryId,  # noqa: ARG002  here the platform chooses all ids
        routing: Routing,
        resume: GuestId | None = None,
    ) -> AsyncIterator[WebchatSession]:
        """A guest for one document. Going on as a known guest asks nothing of the platform; leaving never does."""
        guest = resume if resume is not None else await self._new_guest(routing)
        yield WebchatSession(self._api, self._storage, guest)

    async def find(self, upload: Upload) -> CannotAsk:  # noqa: ARG002  there is nobody to ask
        """This API shows a guest nothing of what was posted."""
        return CannotAsk()

    async def _new_guest(self, routing: Routing) -> GuestId:
        if routing.queue_id is None:
            raise InboxError(Reason.QUEUE_REFUSED, "no queue_id is set for this inbox", Step.SESSION)
        where_to: dict[str, object] = {"queueId": routing.queue_id}
        if routing.skills:
            where_to["skills"] = [{"id": skill.id, "level": skill.level} for skill in routing.skills]
        question: dict[str, object] = {"capabilities": {"attachments": True, "typing": True}, "routing": where_to}
        if routing.metadata:
            question["metadata"] = dict(routing.metadata)
        return _guest(await self._api.ask(Step.SESSION, _SESSION_PATH, question, SESSION_S))


def is_id(value: object) -> TypeGuard[str]:
    """It may become part of a path: the platform's ids are, and a hostile answer must not choose our path."""
    return isinstance(value, str) and _ID.fullmatch(value) is not None and value not in _DOTS


def _guest(answer: Answer) -> GuestId:
    content = answer.json()
    if content is None or not is_id(guest := content.get("guestId")):
        raise _error(_NOT_THE_PLATFORM, Step.SESSION, answer, _odd(answer, "without a guest id"))
    capabilities = content.get("capabilities")
    if not isinstance(capabilities, dict) or capabilities.get("attachments") is not True:
        raise _error(_NO_ATTACHMENTS, Step.SESSION, answer, _odd(answer, "without the right to send attachments"))
    return GuestId(guest)


def _slot(answer: Answer) -> Slot:
    content = answer.json()
    if content is not None and content.get("uploadMethod") == "PUT":
        attachment, url = content.get("attachmentId"), content.get("uploadUrl")
        content_type, life_s = content.get("contentType"), content.get("expiresIn")
        if (
            is_id(attachment)
            and isinstance(url, str)
            and isinstance(content_type, str)
            and isinstance(life_s, int | float)
            and not isinstance(life_s, bool)
            and life_s > 0
        ):
            return Slot(
                AttachmentId(attachment),
                url,
                content_type,
                asked_at=answer.asked_at,
                expires_in_s=life_s,
                headers={METADATA_HEADER: attachment},
            )
    raise _error(_NOT_THE_PLATFORM, Step.UPLOAD, answer, _odd(answer, "that names no place for the file"))


def _receipt(answer: Answer, attachment: AttachmentId) -> Receipt:
    """The platform's word that the message stands with its attachment; anything less is none."""
    content = answer.json()
    if content is None:
        raise _error(_UNKNOWN, Step.MESSAGE, answer, _odd(answer, "that cannot be read"))
    conversation, attached, messages = (content.get(key) for key in ("conversationId", "attachments", "messages"))
    if not is_id(conversation) or not (attached is None or isinstance(attached, list)):
        raise _error(_UNKNOWN, Step.MESSAGE, answer, _odd(answer, "that names no conversation"))
    if not any(isinstance(one, dict) and one.get("id") == attachment for one in attached or ()):
        raise FileError(
            Reason.ATTACHMENT_DROPPED,
            f"conversation {conversation} was opened without the attachment: the platform took the message and "
            "dropped the file; an agent sees the text alone",
            Step.MESSAGE,
            http_status=answer.status,
            correlation_id=answer.correlation_id,
        )
    message = (
        messages[0].get("id") if isinstance(messages, list) and messages and isinstance(messages[0], dict) else None
    )
    return Receipt(ConversationId(conversation), message if is_id(message) else None)


def _odd(answer: Answer, how: str) -> str:
    # The body of a success is not quoted: it may hold upload and download URLs.
    return f"{answer.where} answered {answer.status} {how}"


def _error(says: _Says, step: Step, answer: Answer, told: str) -> DeliveryError:
    detail = f"{told}; {says.note}" if says.note else told
    if issubclass(says.family, TransientError):
        return says.family(
            says.reason,
            detail,
            step,
            http_status=answer.status,
            correlation_id=answer.correlation_id,
            retry_after_s=answer.retry_after_s(),
        )
    return says.family(says.reason, detail, step, http_status=answer.status, correlation_id=answer.correlation_id)


@dataclass(frozen=True, slots=True)
class Webchat:
    """The assembled gateway, and the parts of it that somebody else has to do with."""

    gateway: WebchatGateway
    gate: Gate
    tokens: Tokens

    async def check_credentials(self) -> None:
        """Ask for a token. Raises AccountError, TransientError."""
        await self.tokens.get()


@asynccontextmanager
async def open_webchat(
    *,
    api_url: str,
    login_url: str,
    client_id: str,
    client_secret: Callable[[], str],
    requests_per_second: float,
    ca_file: str | None,
    proxy_for: Callable[[str], str | None],
    clock: Callable[[], float],
    jitter: Callable[[float, float], float],
    on_hold: Observer | None = None,
    upload_hosts: tuple[str, ...] = (),
) -> AsyncIterator[Webchat]:
    """Build the gateway of one account and close its connections at the end.

    `clock` is monotonic, `jitter(low, high)` random; `proxy_for` gives the proxy for an origin, or None.

    Raises ConfigError when `ca_file` cannot be used.
    """
    async with open_http(ca_file, proxy_for, clock) as http:
        gate = Gate(requests_per_second, clock=clock, jitter=jitter, on_hold=on_hold)
        tokens = Tokens(http, gate, login_url=login_url, client_id=client_id, client_secret=client_secret, clock=clock)
        storage = Storage(http, gate, api_url=api_url, hosts=upload_hosts, clock=clock)
        yield Webchat(WebchatGateway(WebchatApi(http, gate, tokens, api_url), storage), gate, tokens)
