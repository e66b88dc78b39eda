"""Says where a file is and why, and puts failed ones back: what a running and a resting attachd do alike.

Below `live` and `resting`, which know how things stand in the inboxes and with what is not finished; what is filed,
and who was told what, is read here from the journal and the folders. The folders say where a file is, the journal
what the platform was told.
"""

import asyncio
import contextlib
import os
import re
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from attachd import config
from attachd.delivery.filing import OWN_FOLDER, Filing
from attachd.errors import ADVICE, InboxError
from attachd.intake.names import Ignored, NameRules
from attachd.model import (
    Delivery,
    DeliveryId,
    Explanation,
    Failed,
    Failure,
    InboxName,
    PauseStatus,
    Posting,
    Reason,
    Retried,
    Sent,
    StateName,
    Step,
)
from attachd.ports import Entry, Journal

PERHAPS_WITH_AN_AGENT = frozenset({Reason.UNKNOWN_OUTCOME, Reason.JOURNAL_LOST, Reason.CHANGED_AFTER_SEND})
"""Who retries one of these could give an agent a document twice: only a person who names the file may."""

IGNORED_BECAUSE: dict[Ignored, str] = {
    Ignored.TEMPORARY_NAME: "its name says that a program is still writing it; it is taken once it is renamed",
    Ignored.HIDDEN: "its name, or that of a folder it is in, begins with a dot",
    Ignored.SYSTEM_JUNK: "desktops, NAS devices and synchronizers leave files and folders of this name for themselves",
    Ignored.NOT_INCLUDED: "no pattern under `include` of this inbox matches its name",
    Ignored.EXCLUDED: "a pattern under `exclude` of this inbox matches its name",
    Ignored.FOLDER: "it is a folder, or lies in one, and this inbox does not have `recursive: true`",
    Ignored.TOO_DEEP: "it lies too many folders deep",
    Ignored.OTHER_FILESYSTEM: "another filesystem is mounted there, and files could not be moved out of it in one step",
    Ignored.LINK: "it is a symbolic link, and links are never followed; put the file itself there",
    Ignored.NOT_A_FILE: "it is a device, a pipe or a socket, or was not a plain file when it was to be taken",
    Ignored.HARD_LINKS: "it has another name too (a hard link), under which it could be changed; remove that one",
    Ignored.UNREADABLE: "attachd's user may not read or move it; give it the right to",
    Ignored.NEVER_SETTLES: "it has been written to, or held open, for more than ten minutes; "
    "it is taken as soon as it comes to rest",
}
"""Why something in an inbox is left alone, as the end of a sentence."""

_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_NUMBERED = re.compile(r" \([0-9]+\)(?=(\.[^./]*)?$)")
_REASON_LINE = re.compile(r"^Reason: +(\w+)", re.MULTILINE)
_REASON_END = ".reason.txt"
_SAME_NAME = 200
_RECORDS = 20_000
"""How many failed deliveries of an inbox are looked through. Ours; what is beyond needs its name."""


@dataclass(frozen=True, slots=True)
class Place:
    """An inbox: what the config says of it, and its folders."""

    settings: config.Inbox
    filing: Filing

    @property
    def name(self) -> InboxName:
        """What it is called."""
        return self.settings.name

    def path_of(self, name: str) -> str:
        """The absolute path of something in it."""
        return os.path.join(self.settings.path, name)

    @property
    def own(self) -> frozenset[str]:
        """The folders at its root that are attachd's."""
        return frozenset({self.settings.sent.split("/")[0], self.settings.failed.split("/")[0], OWN_FOLDER})

    @property
    def names(self) -> NameRules:
        """What it says of names."""
        return NameRules(self.settings.include, self.settings.exclude)


class Here(Protocol):
    """How things stand just now: where attachd runs, and where it rests."""

    async def lying(self, place: Place, name: str) -> Explanation | None:
        """What there is to say of what lies in the inbox under this name; None when nothing does."""

    def unfinished(self, place: Place | None, delivery: Delivery) -> Explanation | None:
        """What there is to say of a delivery that is claimed and not filed; None when nobody is at it."""


class Teller:
    """Answers for one file, and puts failed ones back. `places` are the inboxes as they are now."""

    def __init__(self, journal: Journal, places: Callable[[], Sequence[Place]], here: Here) -> None:
        self._journal = journal
        self._places = places
        self._here = here

    # --- explain --------------------------------------------------------------------------------------------------

    async def explain(self, what: str) -> Explanation | None:
        """Where the file at this path, or with this delivery id, is and why; None when nothing is known of it."""
        if _ID.fullmatch(what):
            return await self._delivery(what)
        if not what.startswith("/") or "\0" in what or (located := self._locate(what)) is None:
            return None
        place, name = located
        settings = place.settings
        own, _, rest = name.partition("/")
        if name == "":
            return _own(place, what, f"It is the inbox {place.name} itself: what is dropped here is delivered.")
        if own == OWN_FOLDER:
            claimed, _, inside = rest.partition("/")
            if claimed == "claimed" and (told := await self._delivery(inside.split("/")[0], what)):
                return told
            return _own(place, what, "It belongs to attachd, which keeps what it has claimed here; leave it alone.")
        for folder, state in ((settings.sent, StateName.SENT), (settings.failed, StateName.FAILED)):
            if name == folder or name.startswith(folder + "/"):
                return await self._filed(place, name, folder, state, what)
        told = await self._here.lying(place, name)
        earlier = await self._journal.newest(inbox=place.name, name=name, limit=_SAME_NAME)
        if told is not None:
            return _with(told, *(_earlier(earlier[:1]) if told.place != "paused" else ()))
        if not earlier:
            return None
        told = await self._told(earlier[0], what)
        return _with(told, *_earlier(earlier[1:2]))

    async def _delivery(self, delivery: str, asked: str | None = None) -> Explanation | None:
        entry = await self._journal.find(DeliveryId(delivery.lower()))
        return None if entry is None else await self._told(entry, asked or delivery)

    async def _told(self, entry: Entry, asked: str) -> Explanation:
        delivery = entry.delivery
        place = next((place for place in self._places() if place.name == delivery.inbox), None)
        if not delivery.finished:
            if told := self._here.unfinished(place, delivery):
                return _with(_asked(told, asked), *_in_doubt(told.delivery or delivery, told.step))
            # It ended since it was read, or nobody is at it.
            entry = await self._journal.find(delivery.id) or entry
            delivery = entry.delivery
            if not delivery.finished:
                stuck = "It is claimed, and its inbox cannot be worked with just now; it goes on when that is back."
                return Explanation(
                    asked, "claimed", (stuck, *_in_doubt(delivery, None)), delivery.inbox, None, delivery
                )
        lies = await self._where(place, delivery)
        if isinstance(delivery.state, Sent):
            return _sent(delivery, entry.updated_at, lies, asked)
        return _failed(delivery, entry.updated_at, lies, asked)

    async def _where(self, place: Place | None, delivery: Delivery) -> str:
        assert isinstance(delivery.state, Sent | Failed)
        filed_as = delivery.state.filed_as
        if not filed_as:
            return "It was not moved: somebody had taken it away before."
        if place is None:
            return f"It was moved to {filed_as} in its inbox, which is not in the config any more."
        path = place.path_of(filed_as)
        if await asyncio.to_thread(os.path.lexists, path):
            beside = f"{path}{_REASON_END}"
            noted = isinstance(delivery.state, Failed) and await asyncio.to_thread(os.path.lexists, beside)
            return f"It lies at {path}{', the reason beside it' if noted else ''}."
        return f"It was moved to {path} and is not there any more: somebody took it away, or put it back."

    async def _filed(self, place: Place, name: str, folder: str, state: StateName, asked: str) -> Explanation | None:
        exists = await asyncio.to_thread(os.path.lexists, place.path_of(name))
        if name == folder or await asyncio.to_thread(os.path.isdir, place.path_of(name)):
            return _own(place, asked, "It is a folder of attachd's, for files that are done with.") if exists else None
        if entry := await self._record_of(place, name, folder, state):
            return await self._told(entry, asked)
        about = name.removesuffix(_REASON_END)
        if state is StateName.FAILED and about != name:
            entry = await self._record_of(place, about, folder, state)
            of_it = f"This is the text that says why {place.path_of(about)} failed."
            if entry is not None:
                return _with(await self._told(entry, asked), of_it)
            if await asyncio.to_thread(os.path.lexists, place.path_of(about)):
                return _own(place, asked, of_it)
        if not exists:
            return None
        by_hand = "attachd has no record of it: it was put there by hand, or the record is too old to be kept."
        if state is StateName.FAILED and await asyncio.to_thread(os.path.lexists, place.path_of(name + _REASON_END)):
            return _own(place, asked, f"It lies in {folder}/; {by_hand}", "The reason file beside it says more.")
        return _own(place, asked, f"It lies in {folder}/ and is not sent from there; {by_hand}")

    async def _record_of(self, place: Place, filed_as: str, folder: str, state: StateName) -> Entry | None:
        """The delivery that was filed under this name last."""
        inside = filed_as.removeprefix(folder + "/")
        for name in dict.fromkeys((inside, _NUMBERED.sub("", inside), _NUMBERED.sub("", os.path.basename(inside)))):
            for entry in await self._journal.newest(state=state, inbox=place.name, name=name, limit=_SAME_NAME):
                if _filed_as(entry) == filed_as:
                    return entry
        return (await self._records(place, state)).get(filed_as)

    async def _records(self, place: Place, state: StateName) -> dict[str, Entry]:
        newest = await self._journal.newest(state=state, inbox=place.name, limit=_RECORDS)
        return {_filed_as(entry): entry for entry in reversed(newest)}

    def _locate(self, path: str) -> tuple[Place, str] | None:
        """The inbox a path lies in, and the name there; links on the way to the inbox do not matter."""
        above, base = os.path.split(os.path.normpath(path))
        forms = (os.path.normpath(path), os.path.join(os.path.realpath(above), base))
        for place in self._places():
            for root in (os.path.normpath(place.settings.path), os.path.realpath(place.settings.path)):
                for form in forms:
                    if form == root:
                        return place, ""
                    if form.startswith(root + "/"):
                        return place, form[len(root) + 1 :]
        return None

    # --- retry ----------------------------------------------------------------------------------------------------

    async def retry(self, what: str | None, inbox: InboxName | None) -> list[Retried]:
        """Put failed files back: one by its delivery id, its name or its path in `failed/`, or all (None)."""
        places = [place for place in self._places() if inbox in (None, place.name)]
        if what is None:
            return [told for place in places for told in await self._retry_all(place)]
        if _ID.fullmatch(what) and (entry := await self._journal.find(DeliveryId(what.lower()))):
            return [await self._retry_delivery(entry, places)]
        found = await self._named(what, places)
        if len({place.name for place, _ in found}) > 1:
            problem = "files of this name failed in several inboxes; say which is meant with --inbox"
            return [Retried(None, place.name, filed_as, None, problem) for place, filed_as in found]
        results = []
        for place, filed_as in found:
            if not _is_below(filed_as, place.settings.failed):
                results.append(Retried(None, place.name, filed_as, None, "it does not lie among the failed files"))
                continue
            entry = await self._record_of(place, filed_as, place.settings.failed, StateName.FAILED)
            results.append(await self._give_back(place, filed_as, entry))
        return results

    async def _retry_all(self, place: Place) -> list[Retried]:
        try:
            waiting = await asyncio.to_thread(place.filing.in_failed)
        except InboxError as error:
            return [Retried(None, place.name, "", None, str(error))]
        records = await self._records(place, StateName.FAILED) if waiting else {}
        results = []
        for filed_as in waiting:
            entry = records.get(filed_as)
            if problem := await self._too_risky(place, filed_as, entry):
                delivery = entry.delivery.id if entry else None
                results.append(Retried(delivery, place.name, filed_as, None, problem))
            else:
                results.append(await self._give_back(place, filed_as, entry))
        return results

    async def _too_risky(self, place: Place, filed_as: str, entry: Entry | None) -> str | None:
        """Why this one goes only when somebody names it."""
        word = None
        if entry is not None:
            assert isinstance(entry.delivery.state, Failed)
            word = entry.delivery.state.failure.reason.value
        elif text := await asyncio.to_thread(place.filing.reason_beside, filed_as):
            noted = _REASON_LINE.search(text)
            word = noted[1] if noted else None
        if word is None:
            return "attachd does not know why it lies there, so not with --all; retry it by its name if it is to go"
        if word in PERHAPS_WITH_AN_AGENT:
            return f"an agent may have it already ({word}), so not with --all; ask them, then retry it by its name"
        return None

    async def _retry_delivery(self, entry: Entry, places: Sequence[Place]) -> Retried:
        delivery = entry.delivery
        filed_as = _filed_as(entry)
        place = next((place for place in places if place.name == delivery.inbox), None)
        if place is None:
            problem = f"it belongs to the inbox {delivery.inbox}, which was not meant or is not in the config"
        elif isinstance(delivery.state, Sent):
            problem = "it was sent; there is nothing to retry"
        elif not isinstance(delivery.state, Failed):
            problem = "it has not failed; attachd is still at it"
        elif not filed_as:
            problem = "its file was taken away before it could be filed"
        else:
            return await self._give_back(place, filed_as, entry)
        return Retried(delivery.id, delivery.inbox, filed_as, None, problem)

    async def _named(self, what: str, places: Sequence[Place]) -> list[tuple[Place, str]]:
        if what.startswith("/"):
            located = self._locate(what)
            if located is None or located[0] not in places:
                return []
            what = located[1]
            places = [located[0]]
            if not _is_below(what, places[0].settings.failed):
                return [(places[0], what)]
        if "\0" in what or not {"", ".", ".."}.isdisjoint(what.split("/")):
            return []  # no name of a file, or a way out of the folder
        found = []
        for place in places:
            failed = place.settings.failed
            forms = [what] if _is_below(what, failed) else []
            forms.append(f"{failed}/{what}")
            forms += [form.removesuffix(_REASON_END) for form in forms if form.endswith(_REASON_END)]
            # The file a reason is about goes before the reason itself.
            hit = await asyncio.to_thread(_first_file, place, forms[::-1])
            if hit is None:
                same = await self._journal.newest(state=StateName.FAILED, inbox=place.name, name=what, limit=_SAME_NAME)
                hit = await asyncio.to_thread(_first_file, place, [_filed_as(entry) for entry in same])
            if hit is not None:
                found.append((place, hit))
        return found

    async def _give_back(self, place: Place, filed_as: str, entry: Entry | None) -> Retried:
        delivery = entry.delivery.id if entry else None
        name = entry.delivery.name if entry else filed_as.removeprefix(place.settings.failed + "/")
        if not place.settings.recursive:
            name = os.path.basename(name)
        if refused := place.names.judge(os.path.basename(name)):
            problem = f"the inbox would leave it alone: {IGNORED_BECAUSE[refused]}"
            return Retried(delivery, place.name, filed_as, None, problem)
        try:
            given = await asyncio.to_thread(place.filing.give_back, filed_as, name)
        except FileNotFoundError:
            return Retried(delivery, place.name, filed_as, None, "it does not lie there any more")
        except (InboxError, OSError) as error:
            return Retried(delivery, place.name, filed_as, None, str(error))
        return Retried(delivery, place.name, filed_as, given)


# --- sentences --------------------------------------------------------------------------------------------------------


def _sent(delivery: Delivery, at: datetime, lies: str, asked: str) -> Explanation:
    assert isinstance(delivery.state, Sent)
    conversation = delivery.state.receipt.conversation
    became = f"as conversation {conversation}" if conversation else "; the platform does not tell its conversation here"
    sentences = [f"It was sent on {at_time(at)} {became}.".replace(" ;", ";"), lies]
    if delivery.state.posts > 1:
        times = delivery.state.posts
        sentences.append(f"Its message was posted {times} times, since an answer was lost: an agent may see it twice.")
    return Explanation(asked, "sent", tuple(sentences), delivery.inbox, None, delivery)


def _failed(delivery: Delivery, at: datetime, lies: str, asked: str) -> Explanation:
    assert isinstance(delivery.state, Failed)
    failure = delivery.state.failure
    tries = f" after {delivery.tries} attempts" if delivery.tries > 1 else ""
    sentences = [f"It failed on {at_time(at)}{tries}: {because(failure)}", lies]
    if failure.reason in PERHAPS_WITH_AN_AGENT:
        sentences.append("An agent may have it already: sent again, it may be there twice.")
    sentences.append(f"What now: {ADVICE[failure.reason]}")
    return Explanation(asked, "failed", tuple(sentences), delivery.inbox, failure.reason.value, delivery)


def _own(place: Place, asked: str, *sentences: str) -> Explanation:
    return Explanation(asked, "own_folder", sentences, place.name)


def _in_doubt(delivery: Delivery, step: Step | None) -> list[str]:
    """What nobody can know of a message; of one that is just being posted for the first time there is no doubt yet."""
    if not isinstance(delivery.state, Posting) or (step is Step.MESSAGE and delivery.state.posts == 1):
        return []
    times = "once" if delivery.state.posts == 1 else f"{delivery.state.posts} times"
    return [f"Its message was given to the network {times}, and no answer has come: an agent may have it already."]


def _earlier(entries: Sequence[Entry]) -> list[str]:
    """What became of a file that had the name before."""
    told = []
    for entry in entries:
        at, delivery = at_time(entry.updated_at), entry.delivery
        match delivery.state:
            case Sent(receipt=receipt):
                told.append(f"A file of this name was sent before, on {at}, as conversation {receipt.conversation}.")
            case Failed(failure=failure):
                told.append(f"A file of this name failed before, on {at}: {because(failure)}")
            case _:
                told.append(f"A file of this name was claimed before, on {at_time(delivery.claimed_at)}.")
    return told


def _with(told: Explanation, *sentences: str) -> Explanation:
    return Explanation(
        told.path,
        told.place,
        (*told.sentences, *sentences),
        told.inbox,
        told.reason,
        told.delivery,
        told.step,
        told.next_try_in_s,
    )


def _asked(told: Explanation, asked: str) -> Explanation:
    return Explanation(
        asked, told.place, told.sentences, told.inbox, told.reason, told.delivery, told.step, told.next_try_in_s
    )


def because(failure: Failure) -> str:
    """Why, with the stable word, as the end of a sentence."""
    return f"{failure.detail.rstrip('.')} ({failure.reason}, at step {failure.step})."


def paused_because(what: str, pause: PauseStatus) -> list[str]:
    """A pause in sentences."""
    since = f"{what} is paused since {duration(pause.paused_s)}: {pause.detail.rstrip('.')} ({pause.reason})."
    if pause.reason is Reason.PAUSED_BY_OPERATOR or pause.retry_in_s is None:
        return [since, f"What now: {ADVICE[pause.reason]}"]
    tries = f"in {duration(pause.retry_in_s)}" if pause.retry_in_s >= 1 else "now"
    return [
        since,
        f"attachd tries again {tries}, and goes on by itself when that works.",
        f"What now: {ADVICE[pause.reason]}",
    ]


def at_time(moment: datetime) -> str:
    """A moment for people."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def duration(seconds: float) -> str:
    """Seconds for people: 4 s, 3 min, 2.5 h, 12 days."""
    if seconds < 10:
        return f"{seconds:.1f} s".replace(".0 ", " ")
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} days"


def _filed_as(entry: Entry) -> str:
    state = entry.delivery.state
    return state.filed_as if isinstance(state, Sent | Failed) else ""


def _is_below(name: str, folder: str) -> bool:
    return name.startswith(folder + "/")


def _first_file(place: Place, names: Sequence[str]) -> str | None:
    """The first of these names in the inbox that is a file's."""
    for name in filter(None, names):
        with contextlib.suppress(OSError, ValueError):
            if stat.S_ISREG(os.lstat(place.path_of(name)).st_mode):
                return name
    return None
