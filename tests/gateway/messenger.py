"""A web messaging platform on a real socket that does the ordinary thing until a test says otherwise."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Frame = dict[str, Any]
Reply = Callable[["Connection", Frame], Awaitable[None]]
JWT = "JWT-HUSH"


@dataclass
class Connection:
    """One socket, and what was heard on it."""

    ws: web.WebSocketResponse
    platform: "Messenger"
    heard: list[Frame] = field(default_factory=list)

    async def says(
        self, name: str, body: Any, *, kind: str = "response", code: float = 200, tracing: str | None = None
    ) -> None:
        frame: Frame = {"type": kind, "class": name, "code": code, "body": body}
        if tracing is not None:
            frame["tracingId"] = tracing
        await self.ws.send_str(json.dumps(frame))

    async def refuses(self, frame: Frame, code: int, text: str = "no", *, tagged: bool = True) -> None:
        await self.says("string", text, code=code, tracing=frame["tracingId"] if tagged else None)


@dataclass
class Messenger:
    """The platform. `on` has what a test wants done for an action; `history` what each token's session holds."""

    url: str = ""
    config: Any = field(
        default_factory=lambda: {
            "status": "Active",
            "messenger": {
                "fileUpload": {"enableAttachments": True},
                "apps": {"conversations": {"autoStart": {"enabled": False}}},
            },
        }
    )
    profile: dict[str, Any] = field(
        default_factory=lambda: {
            "allowedMedia": {"inbound": {"fileTypes": [{"type": "*/*"}], "maxFileSizeKB": 10240.0}},
            "blockedExtensions": [".exe"],
            "maxCustomDataBytes": 2048.0,
        }
    )
    on: dict[str, Reply] = field(default_factory=dict)
    door: int = 101
    door_headers: dict[str, str] = field(default_factory=dict)
    config_status: int = 200
    storage: Callable[[web.Request], Awaitable[web.Response]] | None = None
    reads: Callable[[web.Request], web.Response | None] = lambda request: None
    answers_history: bool = True
    history: dict[str, list[Any]] = field(default_factory=dict)
    connections: list[Connection] = field(default_factory=list)
    requests: list[web.Request] = field(default_factory=list)
    stored: dict[str, bytes] = field(default_factory=dict)
    owners: dict[str, Connection] = field(default_factory=dict)
    """Who asked for the place of an attachment, by its id."""
    closed_with: list[int | None] = field(default_factory=list)

    @property
    def heard(self) -> list[Frame]:
        """All frames, in the order they came."""
        return [frame for connection in self.connections for frame in connection.heard]

    def actions(self) -> list[str]:
        return [frame["action"] for frame in self.heard]

    def asked(self, path: str) -> list[web.Request]:
        return [request for request in self.requests if request.path.startswith(path)]

    async def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/webdeployments/v1/deployments/{id}/config.json", self._config)
        app.router.add_get("/v1", self._socket)
        app.router.add_put("/store/{id}", self._put)
        app.router.add_get("/api/v2/webmessaging/messages", self._messages)
        return app

    async def _config(self, request: web.Request) -> web.Response:
        self.requests.append(request)
        return web.json_response(self.config, status=self.config_status)

    async def _put(self, request: web.Request) -> web.Response:
        self.requests.append(request)
        content = await request.read()
        self.stored[request.match_info["id"]] = content
        if self.storage is not None:
            return await self.storage(request)
        await self.arrived(request.match_info["id"])
        return web.Response()

    async def arrived(self, attachment: str, connection: Connection | None = None) -> None:
        body = {"attachmentId": attachment, "downloadUrl": "https://d.example/?HUSH", "timestamp": "2026-01-05"}
        connection = connection or self.owners.get(attachment, self.connections[-1])
        await connection.says("UploadSuccessEvent", body, kind="message")

    async def _messages(self, request: web.Request) -> web.Response:
        self.requests.append(request)
        if (answer := self.reads(request)) is not None:
            return answer
        token = request.headers["Authorization"].removeprefix(f"bearer {JWT}-")
        entities = self.history.get(token, [])
        return web.json_response({"entities": entities, "pageCount": 1, "total": len(entities), "pageNumber": 1})

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        if self.door != 101:
            return web.Response(status=self.door, headers=self.door_headers)
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        connection = Connection(ws, self)
        self.connections.append(connection)
        async for message in ws:
            frame = json.loads(message.data)
            connection.heard.append(frame)
            await self.on.get(frame["action"], getattr(self, frame["action"]))(connection, frame)
        self.closed_with.append(ws.close_code)
        return ws

    # --- the ordinary answers

    async def configureSession(self, connection: Connection, frame: Frame, **changes: Any) -> None:  # noqa: N802
        new = frame["token"] not in self.history or frame["startNew"]
        if new:
            self.history[frame["token"]] = []
        body = {"connected": True, "newSession": new, "readOnly": False, **self.profile, **changes}
        await connection.says("SessionResponse", body, tracing=frame["tracingId"])

    async def closeSession(self, connection: Connection, frame: Frame) -> None:  # noqa: N802
        await connection.says("SessionResponse", {"connected": False}, tracing=frame["tracingId"])

    async def onAttachment(self, connection: Connection, frame: Frame, **changes: Any) -> None:  # noqa: N802
        attachment = frame["attachmentId"]
        self.owners[attachment] = connection
        body = {
            "attachmentId": attachment,
            "url": f"{self.url}/store/{attachment}?X-Amz-Signature=HUSH",
            "headers": {"x-amz-tagging": "k=v&k2=v2"},
        }
        await connection.says("PresignedUrlResponse", body | changes, tracing=frame["tracingId"])

    async def getAttachment(self, connection: Connection, frame: Frame) -> None:  # noqa: N802
        if frame["attachmentId"] not in self.stored:
            await connection.refuses(frame, 4009)
            return
        body = {"attachmentId": frame["attachmentId"], "url": "https://d.example/?HUSH", "headers": {}, "fileSize": 3.0}
        await connection.says("PresignedUrlResponse", body, tracing=frame["tracingId"])

    async def onMessage(self, connection: Connection, frame: Frame) -> None:  # noqa: N802
        if frame["message"]["type"] == "Event":
            return
        self.history[frame["token"]].append(self.entity(frame))
        await self.echoes(connection, frame)

    async def getJwt(self, connection: Connection, frame: Frame) -> None:  # noqa: N802
        body = {"jwt": f"{JWT}-{frame['token']}", "exp": 1790000000.0}
        await connection.says("JwtResponse", body, tracing=frame["tracingId"])

    def entity(self, frame: Frame) -> Frame:
        content = [{"contentType": "Attachment", "attachment": dict(one["attachment"])} for one in _content(frame)]
        return {
            "id": "9d1e6f0c2b7a4c3d8e5f60718293a4b5",
            "type": "Text",
            "direction": "Inbound",
            "text": frame["message"]["text"],
            "content": content,
        }

    async def echoes(
        self, connection: Connection, frame: Frame, *, kind: str = "message", tracing: str | None = None, **changes: Any
    ) -> None:
        body = self.entity(frame) | changes
        await connection.says("StructuredMessage", body, kind=kind, tracing=tracing or frame["tracingId"])


def _content(frame: Frame) -> list[Frame]:
    content: list[Frame] = frame["message"]["content"]
    return content
