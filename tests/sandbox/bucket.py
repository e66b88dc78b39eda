"""The least of an S3 server: one bucket in memory, signatures judged, and answers a test can replace."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import unquote

from aiohttp import web

from attachd.sandbox import S3Endpoint, sigv4

KEY, SECRET = "AKIATESTS", "only-for-tests"


@dataclass
class Bucket:
    """Objects by their path, with type and bytes. `answer`: a status for every GET from now on."""

    made: bool = False
    objects: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)
    answer: int | None = None
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    url: str = ""

    def endpoint(self, **changes: str) -> S3Endpoint:
        return S3Endpoint(**{"url": self.url, "access_key": KEY, "secret_key": SECRET, "bucket": "files", **changes})

    async def serve(self, request: web.Request) -> web.Response:
        path, _, query = request.raw_path.partition("?")
        body = await request.read()
        self.seen.append(f"{request.method} {unquote(path)}")
        credential = sigv4.Credential(KEY, SECRET, "us-east-1")
        try:
            sigv4.judge(request.method, path, query, request.headers.items(), credential, self.now())
        except sigv4.Rejected as rejected:
            return web.Response(status=rejected.status, text=f"<Error><Code>{rejected.code}</Code></Error>")
        name = unquote(path)
        if name == "/files":
            self.made = self.made or request.method == "PUT"
            return web.Response(status=200 if self.made else 404)
        if request.method == "PUT":
            self.objects[name] = (request.headers["Content-Type"], body)
            return web.Response()
        if self.answer is not None:
            return web.Response(status=self.answer)
        if name not in self.objects:
            return web.Response(status=404)
        kind, content = self.objects[name]
        return web.Response(body=content, headers={"Content-Type": kind})


@asynccontextmanager
async def serving() -> AsyncIterator[Bucket]:
    bucket = Bucket()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", bucket.serve)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        bucket.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield bucket
    finally:
        await runner.cleanup()
