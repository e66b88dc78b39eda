"""The sandbox's own storage behind the presigned URLs: signs them for the APIs, and takes a PUT as S3 would."""

import asyncio
import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self
from urllib.parse import unquote

from aiohttp import web

from attachd.sandbox import sigv4
from attachd.sandbox.clock import Clock, utc
from attachd.sandbox.exchange import Exchange
from attachd.sandbox.ids import new_id
from attachd.sandbox.ledger import Leak, Ledger, StoredObject, Upload
from attachd.sandbox.places import ATTACHMENT_ID_HEADER, Signer, Stored
from attachd.sandbox.reply import Refused, Reply
from attachd.sandbox.settings import SandboxSettings

BUCKET: Final = "sandbox-webchat-uploads"


class Storage:
    def __init__(
        self,
        settings: Callable[[], SandboxSettings],
        host: str,
        ledger: Ledger,
        clock: Clock,
        stored: Stored,
    ) -> None:
        """`host` is the Host header under which the storage is reached, with its port."""
        self._settings = settings
        self._host = host
        self._ledger = ledger
        self._clock = clock
        self._stored = stored
        self._credential = sigv4.Credential(
            access_key_id=f"AKIA{secrets.token_hex(8).upper()}",
            secret_key=secrets.token_urlsafe(30),
            region="us-east-1",
        )
        self._signer = Signer(settings, self.base_url, host, self._credential, clock)

    @property
    def base_url(self) -> str:
        return f"http://{self._host}"

    def url_for(self, upload: Upload, *, expired: bool = False) -> str:
        path = f"/{BUCKET}/{upload.guest_id}/{upload.attachment_id}/{upload.file_name}"
        return self._signer.to_put(upload, path, expired=expired)

    def download_url(self, attachment_id: str) -> str:
        return f"{self.base_url}/downloads/{attachment_id}?token={new_id()}"  # nothing serves it

    def expect(self, upload: Upload) -> None:
        """Every PUT comes through here: who waits is told."""

    async def look(self, attachment_id: str) -> None:
        """Every PUT comes through here: the ledger knows."""

    async def put(self, request: web.Request, exchange: Exchange) -> Reply:
        raw_path, _, raw_query = request.raw_path.partition("?")
        upload = self._upload_at(raw_path)
        exchange.concerns(upload.file_name if upload else None, upload.queue_id if upload else None)
        self._judge_authorization(request)
        length = request.content_length
        if length is None or "Transfer-Encoding" in request.headers:
            raise Refused(411, "MissingContentLength", "You must provide the Content-Length HTTP header.")
        self._judge_signature(request, raw_path, raw_query, upload)
        if upload is None:
            raise Refused(404, "NoSuchUpload", "Nothing was declared for this key.")
        self._judge_declaration(request, upload, length)
        stored = await self._taken(request, exchange, upload, length)
        self._ledger.store(stored)
        exchange.afterwards = await self._stored(upload, self.download_url(upload.attachment_id))
        # Not in the form of an MD5, which a client could rightly compare: encrypted objects have such tags too.
        return Reply(200, b"", {"ETag": f'"{stored.sha256[:32]}-1"'})

    def _upload_at(self, raw_path: str) -> Upload | None:
        parts = raw_path.split("/", 4)
        return self._ledger.uploads.get(unquote(parts[3])) if len(parts) == 5 else None

    def _judge_authorization(self, request: web.Request) -> None:
        given = request.headers.get("Authorization")
        if given is None:
            return
        self._ledger.note_leak(Leak("Authorization", given.partition(" ")[0], self._clock.wall_s()))
        raise Refused(
            400,
            "InvalidArgument",
            "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, Signature query string "
            "parameter or the Authorization header should be specified",
            extra={"ArgumentName": "Authorization"},
        )

    def _judge_signature(self, request: web.Request, raw_path: str, raw_query: str, upload: Upload | None) -> None:
        # Who was told the headers to send has no reason to send another.
        told = upload is not None and upload.headers
        lenient = frozenset() if told or self._settings().strict_storage else frozenset({ATTACHMENT_ID_HEADER})
        try:
            sigv4.judge(
                request.method,
                raw_path,
                raw_query,
                request.headers.items(),
                self._credential,
                utc(self._clock.wall_s()),
                unsigned_allowed=lenient,
            )
        except sigv4.Rejected as rejected:
            raise Refused(rejected.status, rejected.code, rejected.message, extra=rejected.extra) from None

    def _judge_declaration(self, request: web.Request, upload: Upload, length: int) -> None:
        # What the URL signs has been compared already; this is for settings that sign less.
        if length != upload.size_bytes:
            raise Refused(403, "AccessDenied", f"Content-Length is {length}, declared were {upload.size_bytes} bytes")
        if request.headers.get("Content-Type") != upload.content_type:
            raise Refused(403, "AccessDenied", f"Content-Type differs from the declared {upload.content_type}")
        if request.headers.get(ATTACHMENT_ID_HEADER, upload.attachment_id) != upload.attachment_id:
            raise Refused(403, "AccessDenied", f"{ATTACHMENT_ID_HEADER} names another attachment")
        limit = self._settings().object_limit_bytes
        if length > limit:
            raise Refused(
                400,
                "EntityTooLarge",
                "Your proposed upload exceeds the maximum allowed size",
                extra={"ProposedSize": str(length), "MaxSizeAllowed": str(limit)},
            )

    async def _taken(self, request: web.Request, exchange: Exchange, upload: Upload, length: int) -> StoredObject:
        settings = self._settings()
        incomplete = Refused(
            400, "IncompleteBody", "You did not provide the number of bytes specified by the Content-Length HTTP header"
        )
        loop = asyncio.get_running_loop()
        with Incoming(settings.keep, upload.attachment_id) as incoming:
            try:
                async with asyncio.timeout(settings.stalled_after_s) as patience:
                    while chunk := await request.content.readany():
                        incoming.take(chunk)
                        patience.reschedule(loop.time() + settings.stalled_after_s)
            except TimeoutError:
                raise Refused(
                    400,
                    "RequestTimeout",
                    "Your socket connection to the server was not read from or written to within the timeout period. "
                    "Idle connections will be closed.",
                    headers={"Connection": "close"},
                ) from None
            except ConnectionError:
                raise incomplete from None
            except asyncio.CancelledError:
                # The client has gone in the middle: nobody is left to hear it, the ledger still shows why.
                exchange.received.status, exchange.received.code = incomplete.status, incomplete.code
                raise
            if incoming.size_bytes != length:
                raise incomplete
            path = incoming.complete()
        return StoredObject(
            attachment_id=upload.attachment_id,
            file_name=upload.file_name,
            content_type=upload.content_type,
            size_bytes=incoming.size_bytes,
            sha256=incoming.sha256,
            path=path,
            wall_s=self._clock.wall_s(),
        )


class Incoming:
    """Bytes on their way: hashed, and written to a file of another name until they are complete."""

    def __init__(self, keep: Path | None, attachment_id: str) -> None:
        self._digest = hashlib.sha256()
        self._target = keep / attachment_id if keep else None
        self._partial = keep / f"{attachment_id}.{secrets.token_hex(4)}.partial" if keep else None
        self._file: BinaryIO | None = None
        self.size_bytes = 0

    def __enter__(self) -> Self:
        if self._partial:
            self._file = self._partial.open("xb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file and self._partial:
            self._file.close()
            self._partial.unlink(missing_ok=True)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def take(self, chunk: bytes) -> None:
        self._digest.update(chunk)
        self.size_bytes += len(chunk)
        if self._file:
            self._file.write(chunk)

    def complete(self) -> Path | None:
        if self._file and self._partial and self._target:
            self._file.close()
            os.replace(self._partial, self._target)
        return self._target
