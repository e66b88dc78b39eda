"""`python -m benchmarks.stub`: a platform with next to no cost of its own, where the sandbox would be the bottleneck.

The three calls of the REST guest API, the token and the storage's PUT, on one port, with no state but counts and times.
It checks nothing: that what attachd says is right is proven with the sandbox. On request it enforces a quota, answers
late, or reads uploads slowly. The first line it prints is the port.
"""

import argparse
import asyncio
import json
import socket
import time
from collections import deque
from dataclasses import asdict, dataclass
from typing import cast

import uvloop

QUOTA_WINDOW_S = 1.0
_SLOW_BUFFER_BYTES = 1 << 16
"""Where uploads are read slowly: what the kernel takes off the sender's hands would count as read. Ours."""
_END_OF_HEAD = b"\r\n\r\n"
_STATS = b"/stats"


@dataclass(slots=True)
class Counts:
    """What was asked so far; times are monotonic seconds, which all processes of a machine share."""

    calls: int = 0
    """Calls that bear a token: the ones a quota is about."""
    refused: int = 0
    """How many of them were answered 429."""
    puts: int = 0
    bytes_put: int = 0
    first_at: float | None = None
    last_at: float = 0.0
    posted: int = 0
    """Conversation requests."""


@dataclass(frozen=True, slots=True)
class Manner:
    """How the platform behaves: its quota, how much later it answers, how fast it reads an upload."""

    quota: int | None = None
    latency_s: float = 0.0
    bytes_per_s: float | None = None


class Platform:
    """What all connections share."""

    def __init__(self, manner: Manner) -> None:
        self.manner = manner
        self.counts = Counts()
        self._conversations: list[tuple[str, float]] = []
        self._accepted_at: list[float] = []
        self.port = 0
        self._window: deque[float] = deque()

    def answer(self, method: bytes, path: bytes, body: bytes) -> bytes:
        if method == b"PUT":
            self.counts.puts += 1
            return _response(b"", kind=b"text/plain")
        if path == b"/oauth/token":
            return _json(access_token="t" * 64, token_type="bearer", expires_in=86400)
        if path.startswith(_STATS):
            return self._stats(path)
        now = time.monotonic()
        counts = self.counts
        counts.first_at = counts.first_at or now
        counts.last_at = now
        counts.calls += 1
        if self._over_quota(now):
            counts.refused += 1
            return _response(b'{"message":"rate"}', status=b"429 Too Many Requests", extra=b"Retry-After: 1\r\n")
        self._accepted_at.append(now)
        if path.endswith(b"/upload"):
            return _json(
                attachmentId=f"a-{counts.calls}",
                uploadUrl=f"http://127.0.0.1:{self.port}/put?X-Amz-Signature=0",
                uploadMethod="PUT",
                contentType=json.loads(body)["contentType"],
                expiresIn=3600,
            )
        if path.endswith(b"/conversations"):
            attachments = json.loads(body)["attachments"]
            counts.posted += 1
            self._conversations.append((attachments[0]["fileName"], now))
            return _json(conversationId=f"c-{counts.calls}", attachments=attachments, messages=[{"id": "m"}])
        return _json(guestId=f"g-{counts.calls}", capabilities={"attachments": True})

    def _stats(self, path: bytes) -> bytes:
        """The counts alone, since they are asked for often; the file name in each conversation request and when its
        last byte had come; when each call came that was not refused.
        """
        told: dict[bytes, object] = {
            b"/stats": asdict(self.counts),
            b"/stats/conversations": self._conversations,
            b"/stats/accepted": self._accepted_at,
        }
        return _response(json.dumps(told[path]).encode())

    def _over_quota(self, now: float) -> bool:
        if self.manner.quota is None:
            return False
        while self._window and now - self._window[0] >= QUOTA_WINDOW_S:
            self._window.popleft()
        if len(self._window) >= self.manner.quota:
            return True
        self._window.append(now)
        return False


class Connection(asyncio.Protocol):
    """Reads whole requests, one after the other, as a client that waits for each answer sends them."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._head = b""
        self._body = bytearray()
        self._missing = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not asked with isinstance: uvloop's transports are of no class of asyncio's.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._missing == 0:
            self._head += data
            head, found, rest = self._head.partition(_END_OF_HEAD)
            if not found:
                return
            self._head, self._body, self._missing = head, bytearray(), _length(head)
            data = rest
        self._missing -= len(data)
        if self._head.startswith(b"PUT"):
            self._platform.counts.bytes_put += len(data)
            self._read_slowly(len(data))
        else:
            self._body += data
        if self._missing <= 0:
            method, path, _ = self._head.split(b" ", 2)
            answer = self._platform.answer(method, path, bytes(self._body))
            self._head, self._missing = b"", 0
            self._reply(answer, at_once=path.startswith(_STATS))

    def _reply(self, answer: bytes, *, at_once: bool) -> None:
        latency_s = self._platform.manner.latency_s
        if latency_s and not at_once:
            asyncio.get_running_loop().call_later(latency_s, self._transport.write, answer)
        else:
            self._transport.write(answer)

    def _read_slowly(self, size: int) -> None:
        if (speed := self._platform.manner.bytes_per_s) and self._missing > 0:
            self._transport.pause_reading()
            asyncio.get_running_loop().call_later(size / speed, self._transport.resume_reading)


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


def _json(**content: object) -> bytes:
    return _response(json.dumps(content, separators=(",", ":")).encode())


def _response(
    body: bytes, *, status: bytes = b"200 OK", kind: bytes = b"application/json", extra: bytes = b""
) -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Type: %b\r\n%bContent-Length: %d\r\n\r\n%b" % (status, kind, extra, len(body), body)


async def serve(manner: Manner) -> None:
    """Serve until killed."""
    platform = Platform(manner)
    listening = socket.socket()
    if manner.bytes_per_s is not None:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SLOW_BUFFER_BYTES)
    listening.bind(("127.0.0.1", 0))
    server = await asyncio.get_running_loop().create_server(lambda: Connection(platform), sock=listening, backlog=512)
    platform.port = listening.getsockname()[1]
    print(platform.port, flush=True)
    async with server:
        await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stub", description=__doc__)
    parser.add_argument("--quota", type=int, help="token-bearing calls within any second")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--bytes-per-s", type=float, help="how fast one upload is read")
    given = parser.parse_args()
    uvloop.run(serve(Manner(given.quota, given.latency, given.bytes_per_s)))


if __name__ == "__main__":
    main()
