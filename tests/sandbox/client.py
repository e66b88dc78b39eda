"""A client that takes a file to the sandbox step by step and shows every answer raw."""

import io
from dataclasses import dataclass

import aiohttp
from yarl import URL

from attachd.sandbox import Sandbox

PDF = "application/pdf"


@dataclass
class Answered:
    status: int
    headers: dict[str, str]
    raw: bytes
    json: object = None

    @property
    def text(self) -> str:
        return self.raw.decode()


@dataclass
class Ticket:
    """What the upload request handed out, with the session it belongs to."""

    guest_id: str
    attachment_id: str
    url: str
    file_name: str
    content_type: str
    size: int

    def attachment(self, **changes: object) -> dict[str, object]:
        told = {
            "id": self.attachment_id,
            "fileName": self.file_name,
            "contentType": self.content_type,
            "fileSize": self.size,
        }
        return {**told, **changes}


class Client:
    """The five calls, with the raw answers."""

    def __init__(self, sandbox: Sandbox, session: aiohttp.ClientSession) -> None:
        self.sandbox = sandbox
        self.session = session
        self.token = ""
        self.sockets: list[aiohttp.ClientWebSocketResponse] = []  # closed with the test

    async def call(self, method: str, url: str, **options: object) -> Answered:
        async with self.session.request(method, URL(url, encoded=True), **options) as response:
            raw = await response.read()
            content = await response.json() if "json" in response.content_type and raw else None
            return Answered(response.status, dict(response.headers), raw, content)

    async def ask_token(self, secret: str | None = None, grant: str | None = "client_credentials") -> Answered:
        form = {} if grant is None else {"grant_type": grant}
        headers = {
            "Authorization": aiohttp.encode_basic_auth(self.sandbox.client_id, secret or self.sandbox.client_secret)
        }
        return await self.call("POST", f"{self.sandbox.login_url}/oauth/token", data=form, headers=headers)

    async def log_in(self) -> None:
        answered = await self.ask_token()
        assert answered.status == 200, answered.text
        self.token = answered.json["access_token"]

    async def post(self, path: str, body: object) -> Answered:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        options = {"data": io.BytesIO(body)} if isinstance(body, bytes) else {"json": body}
        return await self.call("POST", f"{self.sandbox.api_url}/api/v2/webchat/{path}", headers=headers, **options)

    async def guest(self, queue_id: str | None = None, **changes: object) -> Answered:
        body = {
            "capabilities": {"attachments": True, "typing": True},
            "routing": {"queueId": queue_id or self.sandbox.queue_id, "skills": [{"id": "review", "level": 1}]},
            "metadata": {"source": "tests"},
        }
        return await self.post("guest", {**body, **changes})

    async def ask_upload(
        self, guest_id: str, name: str = "claim.pdf", kind: object = PDF, size: object = 5
    ) -> Answered:
        body = {"fileName": name, "contentType": kind, "fileSize": size}
        return await self.post(f"guest/{guest_id}/attachments/upload", body)

    async def ticket(self, name: str = "claim.pdf", kind: str = PDF, size: int = 5) -> Ticket:
        guest_id = (await self.guest()).json["guestId"]
        answered = await self.ask_upload(guest_id, name, kind, size)
        assert answered.status == 200, answered.text
        told = answered.json
        return Ticket(guest_id, told["attachmentId"], told["uploadUrl"], name, told["contentType"], size)

    async def put(self, ticket: Ticket, body: object = b"bytes", **headers: str) -> Answered:
        told = {"Content-Type": ticket.content_type}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.call("PUT", ticket.url, data=body, headers={**told, **named})

    async def converse(self, ticket: Ticket, **changes: object) -> Answered:
        body = {
            "guestId": ticket.guest_id,
            "messages": [{"type": "text", "text": "Please review."}],
            "attachments": [ticket.attachment()],
        }
        return await self.post("conversations", {**body, **changes})

    async def stored(self, name: str = "claim.pdf") -> Ticket:
        ticket = await self.ticket(name)
        assert (await self.put(ticket)).status == 200
        return ticket

    async def deliver(self, name: str = "claim.pdf") -> Answered:
        return await self.converse(await self.stored(name))
