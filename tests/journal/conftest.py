"""The journals under contract: a second implementation is one more parameter of `open_journal`."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TypeAlias
from uuid import uuid4

import pytest

from attachd.journal.sqlite import SqliteJournal
from attachd.ports import Journal

from .samples import NOW

OpenJournal: TypeAlias = Callable[[], AbstractAsyncContextManager[Journal]]


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture(params=["sqlite"])
def open_journal(request: pytest.FixtureRequest, state_dir: Path) -> OpenJournal:
    """Opens the same journal again and again."""
    assert request.param == "sqlite"
    return lambda: SqliteJournal.open(state_dir, NOW, lambda: str(uuid4()))


@pytest.fixture
async def journal(open_journal: OpenJournal) -> AsyncIterator[Journal]:
    async with open_journal() as opened:
        yield opened
