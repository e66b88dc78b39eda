"""Where a declared file is put and found again: what the guest APIs ask of a storage, and the URLs that say it.

Two answer: `storage`, which the sandbox serves itself, and `remote`, an S3 server that others wrote.
"""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final, Protocol, TypeAlias

from attachd.sandbox import sigv4
from attachd.sandbox.clock import Clock, utc
from attachd.sandbox.ledger import Upload
from attachd.sandbox.settings import SandboxSettings

ATTACHMENT_ID_HEADER: Final = "x-amz-meta-genesys-attachment-id"

Stored: TypeAlias = Callable[[Upload, str], Awaitable[Callable[[], None] | None]]
"""Told of every object that has come complete, and where it can be fetched. What it gives back is due once the client
has the answer to its PUT."""


class Places(Protocol):
    def url_for(self, upload: Upload, *, expired: bool = False) -> str:
        """A URL that takes exactly the declared file, for `url_life_s` seconds from now."""

    def download_url(self, attachment_id: str) -> str:
        """For screens. It is a secret of its own, so it is here for clients to keep out of logs."""

    def expect(self, upload: Upload) -> None:
        """Somebody waits to hear that this file has come."""

    async def look(self, attachment_id: str) -> None:
        """See to it that the ledger knows whether this file has come. Raises Refused when that cannot be found out."""


class Signer:
    """Writes the URLs of one server's objects."""

    def __init__(
        self,
        settings: Callable[[], SandboxSettings],
        base_url: str,
        host: str,
        credential: sigv4.Credential,
        clock: Clock,
    ) -> None:
        """`host` is the Host header under which the server is reached, with its port."""
        self._settings = settings
        self._base_url = base_url
        self._host = host
        self._credential = credential
        self._clock = clock

    def to_put(self, upload: Upload, path: str, *, expired: bool) -> str:
        settings = self._settings()
        signed_at = utc(self._clock.wall_s())
        if expired:
            signed_at -= timedelta(seconds=settings.url_life_s + 1)
        possible = {
            "host": self._host,
            "content-type": upload.content_type,
            "content-length": str(upload.size_bytes),
            ATTACHMENT_ID_HEADER: upload.attachment_id,
        }
        headers = {name: possible[name] for name in settings.signed_headers} | dict(upload.headers)
        return self._base_url + sigv4.presigned("PUT", path, headers, self._credential, signed_at, settings.url_life_s)

    def to(self, method: str, path: str, life_s: int) -> str:
        """For a request without a body."""
        signed_at = utc(self._clock.wall_s())
        return self._base_url + sigv4.presigned(method, path, {"host": self._host}, self._credential, signed_at, life_s)
