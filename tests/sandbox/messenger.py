"""A client that speaks the Web Messaging guest protocol to the sandbox frame by frame and shows every answer raw."""

import asyncio
import json
from uuid import uuid4

import aiohttp

from attachd.sandbox import Sandbox

from .client import PDF, Answered, Client

DEADLINE_S = 3.0
_CLOSING = aiohttp.ClientWSTimeout(ws_close=1.0)


class Line:
    """One socket."""

    def __init__(self, client: Client, socket: aiohttp.ClientWebSocketResponse, token: str) -> None:
        self.client = client
        self.sandbox: Sandbox = client.sandbox
        self.socket = socket
        self.token = token

    async def say(self, action: str, **fields: object) -> str:
        tracing_id = str(uuid4())
        await self.socket.send_json({"action": action, "token": self.token, "tracingId": tracing_id, **fields})
        return tracing_id

    async def raw(self) -> aiohttp.WSMessage:
        async with asyncio.timeout(DEADLINE_S):
            return await self.socket.receive()

    async def hear(self) -> dict[str, object]:
        """The next frame."""
        message = await self.raw()
        assert message.type is aiohttp.WSMsgType.TEXT, message
        return json.loads(message.data)

    async def ask(self, action: str, **fields: object) -> dict[str, object]:
        """Say something; the next frame is taken for the answer."""
        await self.say(action, **fields)
        return await self.hear()

    async def configure(self, **fields: object) -> dict[str, object]:
        return await self.ask("configureSession", **{"deploymentId": self.sandbox.deployment_id, **fields})

    async def attach(self, name: str = "claim.pdf", kind: str = PDF, size: int = 5, **fields: object):
        told = {"attachmentId": str(uuid4()), "fileName": name, "fileType": kind, "fileSize": size}
        return await self.ask("onAttachment", **{**told, "errorsAsJson": True, **fields})

    async def put(
        self, slot: dict[str, object], body: bytes = b"bytes", kind: str = PDF, headers: object = None
    ) -> Answered:
        told = slot["body"]["headers"] if headers is None else headers
        return await self.client.call("PUT", slot["body"]["url"], data=body, headers={"Content-Type": kind, **told})

    async def stored(self, name: str = "claim.pdf", kind: str = PDF) -> str:
        """The id of an uploaded attachment whose event was heard."""
        slot = await self.attach(name, kind)
        assert slot["class"] == "PresignedUrlResponse", slot
        assert (await self.put(slot, kind=kind)).status == 200
        event = await self.hear()
        assert event["class"] == "UploadSuccessEvent", event
        return slot["body"]["attachmentId"]

    async def send(self, attachment_id: str | None = None, **message: object) -> dict[str, object]:
        return await self.ask("onMessage", message=message_of(attachment_id, **message))

    async def deliver(self, name: str = "claim.pdf") -> dict[str, object]:
        return await self.send(await self.stored(name))

    async def jwt(self) -> str:
        return (await self.ask("getJwt"))["body"]["jwt"]

    async def history(self, jwt: str | None = None, query: str = "") -> Answered:
        bearer = {"Authorization": f"bearer {jwt}"} if jwt is not None else {}
        url = f"{self.sandbox.api_url}/api/v2/webmessaging/messages{query}"
        return await self.client.call("GET", url, headers=bearer)

    async def closed(self) -> int:
        """The close code with which the other side ended it; 1006 without a close frame."""
        message = await self.raw()
        assert message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR), message
        return self.socket.close_code or 1006


def message_of(attachment_id: str | None, **changes: object) -> dict[str, object]:
    content = [{"contentType": "Attachment", "attachment": {"id": attachment_id}}] if attachment_id else []
    return {"type": "Text", "text": "Document attached.", "content": content, **changes}


async def dial(client: Client, token: str | None = None, deployment_id: str | None = None, **options: object) -> Line:
    """A socket on which nothing has been said yet."""
    wanted = deployment_id if deployment_id is not None else client.sandbox.deployment_id
    url = f"{client.sandbox.messaging_url}/v1?deploymentId={wanted}"
    socket = await client.session.ws_connect(url, timeout=_CLOSING, **options)
    client.sockets.append(socket)
    return Line(client, socket, token or str(uuid4()))


async def opened(client: Client, token: str | None = None) -> Line:
    """A socket with a configured session."""
    line = await dial(client, token)
    answer = await line.configure()
    assert answer["class"] == "SessionResponse", answer
    return line
