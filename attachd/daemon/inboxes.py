"""The inboxes of a running daemon: their folders, the plans by which they are delivered, the tasks that see their
files.

Beside the service, which owns it. A reload adds, drops and changes inboxes here; what is claimed already goes its way
by the plan it was claimed under.
"""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from attachd.config import Inbox
from attachd.daemon.live import LiveInbox
from attachd.daemon.parts import folders_of
from attachd.daemon.reload import Changes
from attachd.delivery.dispatcher import Dispatcher
from attachd.delivery.filing import OWN_FOLDER, Filing
from attachd.delivery.pauses import Pauses
from attachd.delivery.pipeline import InboxPlan
from attachd.errors import ConfigError, InboxError, JournalBusy
from attachd.intake.inbox import InboxIntake, IntakeRules
from attachd.intake.watch import WatchMode
from attachd.model import InboxName, Reason


class Inboxes:
    """The folders are held from `open` until the block around it ends, or until a dropped inbox has nothing claimed."""

    def __init__(self, source: Path) -> None:
        self._source = source
        self._plans: dict[InboxName, InboxPlan] = {}
        self._seen: dict[InboxName, tuple[Inbox, InboxIntake, asyncio.Task[None]]] = {}
        self._held: list[Filing] = []
        self._lost: dict[InboxName, InboxError] = {}
        self._dropping: dict[Path, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for filing in self._held:
            filing.close()

    @property
    def plans(self) -> Mapping[InboxName, InboxPlan]:
        """How the files of each inbox are delivered."""
        return self._plans

    @property
    def intakes(self) -> Sequence[InboxIntake]:
        """Who sees the files of each inbox."""
        return [intake for _, intake, _ in self._seen.values()]

    @property
    def live(self) -> Sequence[LiveInbox]:
        """What there is to tell of."""
        return [
            LiveInbox(settings, intake, self._plans[name].filing)
            for name, (settings, intake, _) in self._seen.items()
            if name in self._plans
        ]

    async def open(self, inboxes: Iterable[tuple[int, Inbox]]) -> None:
        """Hold the folders of new inboxes: of all, or, when one cannot be used, of none. Each has its place in the
        file.

        Raises ConfigError with a problem for each that cannot, JournalBusy when another attachd works in one.
        """
        opened, problems = list[tuple[Inbox, Filing]](), list[str]()
        for index, inbox in inboxes:
            if inbox.path in self._dropping:
                problems.append(f"inboxes[{index}].path: {inbox.path} {_STILL_DROPPED}")
                continue
            filing = folders_of(inbox)
            try:
                await asyncio.to_thread(filing.open)
            except InboxError as error:
                if error.reason is Reason.DISK_FULL:  # that mends itself: it is looked for again, like a lost one
                    opened.append((inbox, filing))
                    continue
                problems.append(f"inboxes[{index}].path: {error}")
                if error.reason is Reason.FOLDER_IN_USE:
                    _close(opened)
                    raise JournalBusy(str(error)) from error
            else:
                opened.append((inbox, filing))
        if problems:
            _close(opened)
            raise ConfigError(str(self._source), problems)
        self._held += [filing for _, filing in opened]
        self._plans |= {inbox.name: _plan(inbox, filing) for inbox, filing in opened}

    async def recover(self, dispatcher: Dispatcher, pauses: Pauses, names: Iterable[InboxName]) -> int:
        """Go on with what was claimed in these inboxes; how many files that are."""
        recovered = 0
        for name in names:
            try:
                recovered += await dispatcher.recover(name)
            except InboxError as error:
                self._lost[name] = error  # its intake finds it again
                pauses.folder_lost(name, error)
        return recovered

    def see(self, inbox: Inbox, dispatcher: Dispatcher, pauses: Pauses, tasks: asyncio.TaskGroup) -> None:
        """Begin to see the files of an inbox."""
        rules = IntakeRules(
            path=str(inbox.path),
            include=inbox.include,
            exclude=inbox.exclude,
            recursive=inbox.recursive,
            settle_s=inbox.settle_s,
            rescan_s=inbox.rescan_s,
            watch=WatchMode(inbox.watch),
            own=frozenset({inbox.sent.split("/")[0], inbox.failed.split("/")[0], OWN_FOLDER}),
        )
        intake = InboxIntake(
            inbox.name,
            rules,
            dispatcher.offer,
            lost=pauses.folder_lost,
            found=dispatcher.found,
            clock=time.monotonic,
            trouble=self._lost.pop(inbox.name, None),
        )
        self._seen[inbox.name] = (inbox, intake, tasks.create_task(intake.run(), name=f"intake {inbox.name}"))

    async def look_away(self, names: Iterable[InboxName]) -> None:
        """See no more files of these inboxes."""
        ending = [self._seen.pop(name)[2] for name in names if name in self._seen]
        for task in ending:
            task.cancel()
        if ending:
            await asyncio.wait(ending)

    async def adopt(self, changes: Changes, dispatcher: Dispatcher, pauses: Pauses, tasks: asyncio.TaskGroup) -> None:
        """Take on what a reload changed; the folders of added inboxes are open already, so nothing here can fail."""
        await self.look_away((*changes.removed, *(inbox.name for inbox in changes.changed)))
        dropped = {name: self._plans.pop(name).filing for name in changes.removed}
        for inbox in changes.changed:
            self._plans[inbox.name] = _plan(inbox, self._plans[inbox.name].filing)
        dispatcher.adopt(self._plans)
        for name, filing in dropped.items():
            pauses.resume(name)
            pauses.folder_found(name)  # a folder in trouble must not hold up what is claimed: it tries for itself
            self._dropping[filing.path] = tasks.create_task(self._drop(name, filing, dispatcher), name=f"drop {name}")
        await self.recover(dispatcher, pauses, (inbox.name for inbox in changes.added))
        for inbox in (*changes.changed, *changes.added):
            self.see(inbox, dispatcher, pauses, tasks)

    def forget_dropped(self) -> None:
        """Wait no longer for what is still claimed in inboxes that a reload dropped."""
        for task in self._dropping.values():
            task.cancel()

    async def _drop(self, name: InboxName, filing: Filing, dispatcher: Dispatcher) -> None:
        await dispatcher.cleared(name)
        del self._dropping[filing.path]
        self._held.remove(filing)
        filing.close()


_STILL_DROPPED = (
    "was removed by an earlier reload, and what was claimed there is still being delivered; "
    "reload again when that is done, or restart attachd"
)


def _plan(inbox: Inbox, filing: Filing) -> InboxPlan:
    return InboxPlan(inbox.name, inbox.routing, inbox.message, inbox.allow_types, filing)


def _close(opened: Iterable[tuple[Inbox, Filing]]) -> None:
    for _, filing in opened:
        filing.close()
