"""Fixtures: canned answers, a real session, a server that shows every byte."""

import asyncio
import time
from collections.abc import AsyncIterator
from functools import partialmethod
from typing import Any
from unittest.mock import Mock

import pytest
from aiohttp import ClientResponse
from aioresponses import aioresponses

from attachd.gateway.http import Http, open_http

from .support import Wire, no_proxy


@pytest.fixture
def canned(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Answers without a network. aioresponses 0.7.9 does not yet give ClientResponse the stream_writer it now wants."""
    real = ClientResponse.__init__
    monkeypatch.setattr(ClientResponse, "__init__", partialmethod(real, stream_writer=Mock(output_size=0)))
    with aioresponses() as answers:
        yield answers


@pytest.fixture
async def http() -> AsyncIterator[Http]:
    async with open_http(None, no_proxy, time.monotonic) as opened:
        yield opened


@pytest.fixture
async def wire() -> AsyncIterator[Wire]:
    server = Wire()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    yield server
    listening.close()
