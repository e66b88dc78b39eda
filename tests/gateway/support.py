"""What the gateway's tests share: time that is asserted instead of slept, and small servers on real sockets."""

import asyncio
import selectors
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from attachd.gateway.guard import Gate


class _SkippingSelector(selectors.DefaultSelector):  # type: ignore[misc, valid-type]
    """Where others would sleep, the time is simply later."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is not None and timeout > 0:
            self.now += timeout
        return super().select(0)


class SimulatedLoop(asyncio.SelectorEventLoop):
    """A loop whose time passes only while nothing else is to be done."""

    def __init__(self) -> None:
        self._skipping = _SkippingSelector()
        super().__init__(self._skipping)

    def time(self) -> float:
        return self._skipping.now

    def spend(self, seconds: float) -> None:
        """Let a callback be as slow as that."""
        self._skipping.now += seconds


def simulated(main: Callable[[SimulatedLoop], Coroutine[Any, Any, None]]) -> None:
    """Run a test in simulated time."""
    loop = SimulatedLoop()
    try:
        loop.run_until_complete(main(loop))
    finally:
        loop.close()


def open_gate(**changes: Any) -> Gate:
    """A gate that hardly ever makes anybody wait."""
    return Gate(1e6, **{"clock": time.monotonic, "jitter": lambda low, high: low} | changes)


def no_proxy(origin: str) -> None:
    """Direct."""


@dataclass
class Seen:
    """One request as it came over the wire."""

    line: str
    headers: dict[str, str]
    body: bytes = b""

    @property
    def head(self) -> str:
        return self.line + "".join(f"\n{name}: {value}" for name, value in self.headers.items())


Exchange = Callable[[Seen, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Wire:
    """A server that shows every byte and answers as the test says."""

    port: int = 0
    seen: list[Seen] = field(default_factory=list)
    answer: Exchange | None = None
    connections: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while line := (await reader.readline()).decode("latin-1").rstrip("\r\n"):
                headers = {}
                while head := (await reader.readline()).decode("latin-1").rstrip("\r\n"):
                    name, _, value = head.partition(":")
                    headers[name.lower()] = value.strip()
                request = Seen(line, headers)
                self.seen.append(request)
                assert self.answer is not None
                await self.answer(request, reader, writer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


def says(status: int, body: bytes = b"", *headers: str, read_body: bool = True) -> Exchange:
    """Take the whole request, then answer."""

    async def exchange(request: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if read_body:
            request.body = await reader.readexactly(int(request.headers.get("content-length", 0)))
        lines = [f"HTTP/1.1 {status} Said", f"Content-Length: {len(body)}", *headers, "", ""]
        writer.write("\r\n".join(lines).encode("latin-1") + body)

    return exchange


def in_turn(*exchanges: Exchange) -> Exchange:
    """One after the other; the last stays."""
    left = list(exchanges)

    async def exchange(request: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await (left.pop(0) if len(left) > 1 else left[0])(request, reader, writer)

    return exchange


async def hangs_up(request: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take the request and close without a word."""
    request.body = await reader.readexactly(int(request.headers.get("content-length", 0)))
    writer.close()


async def resets(request: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Drop the connection hard."""
    writer.transport.abort()


async def drips(request: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer so slowly that every single read succeeds and the whole never ends."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(1000):
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.02)


async def never(request: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say nothing at all."""
    await asyncio.sleep(30)


def reading(*pieces: bytes) -> Callable[[], AsyncIterator[bytes]]:
    """A document in pieces."""

    async def read() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    return read
