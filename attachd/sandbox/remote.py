"""A storage that others wrote: hands out places at an S3 server and finds out there what has come.

The client's PUT goes past the sandbox, so no fault strikes it and the ledger has no line of it; an object gets into
the ledger once it was fetched and hashed here. Path style, and every request is a presigned URL, the own ones too.
"""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Final

import aiohttp
from yarl import URL

from attachd.sandbox import sigv4
from attachd.sandbox.clock import Clock
from attachd.sandbox.ledger import Ledger, StoredObject, Upload
from attachd.sandbox.places import Signer, Stored
from attachd.sandbox.reply import Refused
from attachd.sandbox.settings import S3Endpoint, SandboxSettings
from attachd.sandbox.storage import Incoming

# All ours. How long an own request may take, and its URL holds:
_OWN_REQUEST_S: Final = 60
# how long a download URL holds:
_DOWNLOAD_S: Final = 3600
# how long after the end of a URL its file is still looked out for, as a transfer begun in time may end later:
_TRANSFER_S: Final = 60.0
# and how often, seldomer each time.
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 0.5


class S3Unusable(Exception):  # noqa: N818 - what is wrong with somebody else's server
    """The S3 endpoint cannot be used, said in words."""


class RemoteStorage:
    def __init__(
        self,
        settings: Callable[[], SandboxSettings],
        endpoint: S3Endpoint,
        ledger: Ledger,
        clock: Clock,
        stored: Stored,
    ) -> None:
        url = URL(endpoint.url)
        credential = sigv4.Credential(endpoint.access_key, endpoint.secret_key, endpoint.region)
        self._settings = settings
        self._endpoint = endpoint
        self._ledger = ledger
        self._clock = clock
        self._stored = stored
        self._signer = Signer(settings, str(url.origin()), url.host_port_subcomponent or "", credential, clock)
        self._session: aiohttp.ClientSession | None = None
        self._watches: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """See that the bucket is there, or make it. Raises S3Unusable."""
        self._session = aiohttp.ClientSession(
            auto_decompress=False,  # what was stored is what is hashed
            timeout=aiohttp.ClientTimeout(total=_OWN_REQUEST_S),
        )
        try:
            status = await self._status("HEAD")
            if status == 404:
                status = await self._status("PUT")
        except (aiohttp.ClientError, TimeoutError) as error:
            raise S3Unusable(f"the S3 endpoint {self._endpoint.url} does not answer: {error}") from error
        if status != 200:
            raise S3Unusable(
                f"the S3 endpoint {self._endpoint.url} answered {status} when asked for bucket "
                f"{self._endpoint.bucket}; look at its keys, region and bucket"
            )

    async def close(self) -> None:
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    def url_for(self, upload: Upload, *, expired: bool = False) -> str:
        return self._signer.to_put(upload, self._path(upload), expired=expired)

    def download_url(self, attachment_id: str) -> str:
        return self._signer.to("GET", self._path(self._ledger.uploads[attachment_id]), _DOWNLOAD_S)

    def expect(self, upload: Upload) -> None:
        watch = asyncio.get_running_loop().create_task(self._watch(upload), name="S3 watch")
        self._watches.add(watch)
        watch.add_done_callback(self._watches.discard)

    async def look(self, attachment_id: str) -> None:
        upload = self._ledger.uploads.get(attachment_id)
        if upload is not None:
            await self._found(upload)

    async def _watch(self, upload: Upload) -> None:
        loop = asyncio.get_running_loop()
        until_s = loop.time() + self._settings().url_life_s + _TRANSFER_S
        pause_s = _FIRST_PAUSE_S
        while self._is_expected(upload) and loop.time() < until_s:
            await asyncio.sleep(pause_s)
            pause_s = min(1.5 * pause_s, _LONGEST_PAUSE_S)
            try:
                found = await self._found(upload)
            except Refused:
                continue
            if found:
                due = await self._stored(upload, self.download_url(upload.attachment_id))
                if due is not None:
                    due()
                return

    async def _found(self, upload: Upload) -> bool:
        """Whether the object is there complete; the ledger knows it then."""
        try:
            stored = await self._fetched(upload)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Refused(503, "service.unavailable", f"The storage does not answer: {type(error).__name__}") from error
        if stored is None or not self._is_expected(upload):
            return False
        known = self._ledger.stored.get(upload.attachment_id)
        if known is None or known.sha256 != stored.sha256:
            self._ledger.store(stored)
        return True

    async def _fetched(self, upload: Upload) -> StoredObject | None:
        """The object as it lies there; None for none, and for one that is not of the declared size."""
        async with self._asked("GET", self._path(upload)) as response:
            if response.status == 404:
                return None
            if response.status != 200:
                raise Refused(503, "service.unavailable", f"The storage answered {response.status} to the platform.")
            if response.content_length != upload.size_bytes:
                return None
            with Incoming(self._settings().keep, upload.attachment_id) as incoming:
                async for chunk in response.content.iter_any():
                    incoming.take(chunk)
                path = incoming.complete()
            return StoredObject(
                attachment_id=upload.attachment_id,
                file_name=upload.file_name,
                content_type=response.headers.get("Content-Type", ""),
                size_bytes=incoming.size_bytes,
                sha256=incoming.sha256,
                path=path,
                wall_s=self._clock.wall_s(),
            )

    def _is_expected(self, upload: Upload) -> bool:
        return self._ledger.uploads.get(upload.attachment_id) is upload

    def _path(self, upload: Upload) -> str:
        # With the time: the same id may be declared again, and must not find the object of the first declaration.
        declared = f"{upload.wall_s:.6f}"
        bucket, guest_id = self._endpoint.bucket, upload.guest_id
        return f"/{bucket}/{guest_id}/{upload.attachment_id}/{declared}/{upload.file_name}"

    async def _status(self, method: str) -> int:
        async with self._asked(method, f"/{self._endpoint.bucket}") as response:
            return response.status

    def _asked(self, method: str, path: str) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        assert self._session is not None, "the storage has not been opened"
        url = URL(self._signer.to(method, path, _OWN_REQUEST_S), encoded=True)
        return self._session.request(method, url, allow_redirects=False)
