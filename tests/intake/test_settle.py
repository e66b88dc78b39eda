"""When a file is complete. Pure: the tests say what time it is."""

from dataclasses import dataclass, replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from attachd.intake.names import Ignored
from attachd.intake.settle import Claiming, LeftAlone, Ready, SettleTable, Settling
from attachd.model import ClaimResult, Sighting, Version


def sighting(name: str = "a.pdf", *, size: int = 10, mtime: int = 1, inode: int = 1) -> Sighting:
    return Sighting(name, Version(1, inode, size, mtime, mtime))


@pytest.fixture
def table() -> SettleTable:
    return SettleTable(2.0, rescan_s=60.0)


def names(picked: list[Sighting]) -> list[str]:
    return [s.name for s in picked]


def test_a_file_is_ready_after_the_quiet_time(table: SettleTable) -> None:
    """Not a moment before `settle_s`, and the table says when that will be."""
    table.look(sighting(), 100.0)
    assert table.next_due(100.0) == 102.0
    assert table.pick(101.9, 9) == []
    assert table.standing("a.pdf", 101.0) == Settling(1.0, 2.0, 0.0)
    assert table.next_due(102.5) == 102.5
    assert table.standing("a.pdf", 102.5) == Ready(0.5)
    assert table.pick(102.5, 9) == [sighting()]
    assert table.standing("a.pdf", 102.5) == Claiming()
    assert table.pick(102.5, 9) == []


def test_a_change_begins_the_quiet_time_anew(table: SettleTable) -> None:
    """Each look that differs counts as writing, even if the file had been ready already."""
    table.look(sighting(size=10), 100.0)
    table.look(sighting(size=20), 101.5)
    assert table.pick(102.5, 9) == []
    table.next_due(103.5)
    table.look(sighting(size=30), 103.6)
    assert table.pick(104.0, 9) == []
    assert table.pick(105.6, 9) == [sighting(size=30)]


def test_a_rename_in_is_ready_at_once(table: SettleTable) -> None:
    """A producer that renames has finished."""
    table.begin_scan(100.0, {"a.pdf"})
    table.look(sighting(), 100.0)
    table.end_scan()
    assert names(table.pick(100.0, 9)) == ["a.pdf"]


def test_a_rename_over_a_settling_name_is_ready_at_once(table: SettleTable) -> None:
    """An editor saves by renaming over the old file: the new inode is complete."""
    table.look(sighting(inode=1), 100.0)
    table.begin_scan(100.5, {"a.pdf"})
    table.look(sighting(inode=2), 100.5)
    table.end_scan()
    assert table.pick(100.5, 9) == [sighting(inode=2)]


def test_a_rename_hint_holds_for_one_scan(table: SettleTable) -> None:
    """A hint for a file that left again says nothing of the next one of that name."""
    table.begin_scan(100.0, {"a.pdf"})
    table.end_scan()
    table.begin_scan(101.0)
    table.look(sighting(), 101.0)
    assert table.pick(101.0, 9) == []


def test_writing_after_the_rename_takes_the_privilege_back(table: SettleTable) -> None:
    """A file that was renamed in and then written to settles like any other."""
    table.look(sighting(size=1), 100.0, renamed=True)
    table.look(sighting(size=2), 100.1)
    assert table.pick(101.0, 9) == []
    assert names(table.pick(102.1, 9)) == ["a.pdf"]


@pytest.mark.parametrize("renamed", [True, False])
def test_an_empty_file_waits_a_minute(table: SettleTable, renamed: bool) -> None:
    """It may be a name that was reserved; if content comes, that settles as usual."""
    table.look(sighting(size=0), 100.0, renamed=renamed)
    assert table.pick(159.0, 9) == []
    assert names(table.pick(160.0, 9)) == ["a.pdf"]


def test_the_oldest_goes_first(table: SettleTable) -> None:
    """Among those that are ready; 1970 and 2099 are dates like others."""
    for name, mtime in (("new", 10**18), ("future", 4 * 10**18), ("old", 10**17), ("epoch", 0)):
        table.look(sighting(name, mtime=mtime), 100.0)
    assert names(table.pick(102.0, 2)) == ["epoch", "old"]
    assert names(table.pick(102.0, 9)) == ["new", "future"]


def test_changed_needs_a_fresh_look(table: SettleTable) -> None:
    """What a claim found changed is not offered again before somebody has looked, and `settle_s` after that."""
    table.look(sighting(size=1), 100.0)
    (picked,) = table.pick(102.0, 9)
    assert table.feed(picked, ClaimResult.CHANGED, 102.0) is None
    assert table.next_due(200.0) is None
    table.look(sighting(size=2), 200.0)
    assert table.pick(201.9, 9) == []
    assert table.pick(202.0, 9) == [sighting(size=2)]


def test_busy_begins_the_quiet_time_anew(table: SettleTable) -> None:
    """Somebody has it open: the same version is offered again, `settle_s` later."""
    table.look(sighting(), 100.0, renamed=True)
    (picked,) = table.pick(100.0, 9)
    table.feed(picked, ClaimResult.BUSY, 101.0)
    assert table.pick(102.9, 9) == []
    assert table.pick(103.0, 9) == [sighting()]


def test_gone_and_claimed_are_forgotten(table: SettleTable) -> None:
    """Nothing of them is kept."""
    for result in (ClaimResult.GONE, ClaimResult.CLAIMED):
        table.look(sighting(), 100.0)
        (picked,) = table.pick(102.0, 9)
        table.feed(picked, result, 102.0)
        assert len(table) == 0
        assert table.next_due(1000.0) is None


@pytest.mark.parametrize(
    ("result", "reason"),
    [(ClaimResult.NOT_A_FILE, Ignored.NOT_A_FILE), (ClaimResult.UNREADABLE, Ignored.UNREADABLE)],
)
def test_what_cannot_be_claimed_is_tried_again_once_per_rescan(
    table: SettleTable, result: ClaimResult, reason: Ignored
) -> None:
    """It is left alone with the reason, however often it is looked at, until the rescan or a change."""
    table.look(sighting(), 100.0)
    (picked,) = table.pick(102.0, 9)
    assert table.feed(picked, result, 102.0) is reason
    table.look(sighting(), 110.0)
    assert table.pick(161.9, 9) == []
    assert table.standing("a.pdf", 120.0) == LeftAlone(reason)
    assert list(table.left_alone(120.0)) == [("a.pdf", reason)]
    assert list(table.waiting_since(120.0)) == []
    (again,) = table.pick(162.0, 9)
    table.feed(again, result, 162.0)
    table.look(replace(sighting(), version=replace(sighting().version, ctime_ns=9)), 170.0)
    assert names(table.pick(172.0, 9)) == ["a.pdf"]


def test_a_successor_is_not_lost(table: SettleTable) -> None:
    """The same name dropped again while the first file is being claimed has been settling since it was seen."""
    table.look(sighting(inode=1), 100.0)
    (first,) = table.pick(102.0, 9)
    table.look(sighting(inode=2), 102.5)
    table.feed(first, ClaimResult.CLAIMED, 103.0)
    assert table.pick(104.5, 9) == [sighting(inode=2)]


def test_a_claim_during_a_scan_leaves_no_ghost(table: SettleTable) -> None:
    """A look from before the claim, told after it, does not bring the file back; a new file of that name counts."""
    table.look(sighting(inode=1), 100.0)
    (first,) = table.pick(102.0, 9)
    table.begin_scan(102.0)
    table.feed(first, ClaimResult.CLAIMED, 102.1)
    table.look(sighting(inode=1), 102.2)
    assert len(table) == 0
    table.look(sighting(inode=2), 102.3)
    table.end_scan()
    assert "a.pdf" in table


def test_what_a_scan_did_not_meet_is_forgotten(table: SettleTable) -> None:
    """Except for what is being claimed: its result is still to come."""
    table.look(sighting("gone"), 100.0)
    table.look(sighting("out"), 90.0)
    assert names(table.pick(92.0, 9)) == ["out"]
    table.begin_scan(101.0)
    table.look(sighting("here"), 101.0)
    table.end_scan()
    assert table.known() == {"out", "here"}


def test_put_back_is_as_ready_as_before(table: SettleTable) -> None:
    """A turn that ended before the claim costs the file nothing."""
    table.look(sighting(), 100.0)
    (picked,) = table.pick(102.0, 9)
    table.put_back(picked)
    assert table.pick(102.0, 9) == [picked]


def test_never_settling_is_told_once(table: SettleTable) -> None:
    """After ten minutes of change, and it may still come to rest."""
    told = []
    for step in range(1200):
        table.look(sighting(size=step + 1), 100.0 + step)
        told += table.never_settled()
    assert told == ["a.pdf"]
    assert list(table.left_alone(1299.0)) == [("a.pdf", Ignored.NEVER_SETTLES)]
    assert isinstance(table.standing("a.pdf", 1299.5), Settling)
    assert names(table.pick(1301.0, 9)) == ["a.pdf"]


def test_a_late_change_is_no_unrest(table: SettleTable) -> None:
    """A file that waited an hour for a slot and is then written to once has not been restless for an hour."""
    table.look(sighting(size=1), 0.0)
    table.look(sighting(size=2), 3600.0)
    assert table.never_settled() == []


def test_the_table_is_bounded() -> None:
    """A million files cost as much as a full table; stale items of the queues are no way around it."""
    table = SettleTable(2.0, capacity=16)
    for number in range(1000):
        assert table.look(sighting(f"f{number}"), 100.0) is (number < 16)
    for step in range(1000):
        for number in range(16):
            table.look(sighting(f"f{number}", size=step + 1), 101.0 + step)
    assert len(table) == 16
    assert len(table._due) + len(table._ready) < 300


def test_growing_files_do_not_starve_the_rest() -> None:
    """Files that change for ever lose their places in a full table to those that wait outside.

    The newcomers come in another order each time, as they do from a scan that does not always begin at the top.
    """
    table = SettleTable(2.0, capacity=16)
    folder = [f"growing{n}" for n in range(40)] + [f"calm{n}" for n in range(5)]
    for step in range(300):
        now = 100.0 + step
        table.begin_scan(now)
        turn = 16 * step % len(folder)
        for name in folder[turn:] + folder[:turn]:
            table.look(sighting(name, size=1 if name.startswith("calm") else step + 1), now)
        table.end_scan()
        for picked in table.pick(now, 9):
            calm = picked.name.startswith("calm")
            table.feed(picked, ClaimResult.CLAIMED if calm else ClaimResult.CHANGED, now)
            if calm:
                folder.remove(picked.name)
    assert not [name for name in folder if name.startswith("calm")]


def test_files_that_cannot_be_claimed_give_way() -> None:
    """A table full of unreadable files lets the others in."""
    table = SettleTable(2.0, capacity=4)
    for number in range(4):
        table.look(sighting(f"bad{number}"), 100.0)
    for picked in table.pick(102.0, 9):
        table.feed(picked, ClaimResult.UNREADABLE, 102.0)
    table.begin_scan(103.0)
    assert table.room == 4
    assert table.look(sighting("good"), 103.0)
    assert len(table) == 4


@dataclass
class File:
    inode: int
    size: int
    changed_at: float
    looked_at: float | None = None
    renamed: bool = False
    open: bool = False

    @property
    def version(self) -> Version:
        return Version(1, self.inode, self.size, self.inode, self.size)


class Folder(RuleBasedStateMachine):
    """Producers write, rename and remove; the table looks, picks and hears what the claims came to."""

    NAMES = tuple("abcdef")
    CAPACITY = 4

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.inode = 0
        self.files: dict[str, File] = {}
        self.hints: set[str] = set()
        self.table = SettleTable(2.0, rescan_s=10.0, capacity=self.CAPACITY)
        self.out: dict[str, Sighting] = {}

    @rule(name=st.sampled_from(NAMES))
    def write(self, name: str) -> None:
        self.hints.discard(name)
        file = self.files.get(name)
        if file is None:
            self.inode += 1
            self.files[name] = File(self.inode, 1, self.now)
        else:
            file.size += 1
            file.changed_at, file.renamed, file.looked_at = self.now, False, None

    @rule(name=st.sampled_from(NAMES))
    def rename_in(self, name: str) -> None:
        self.inode += 1
        self.files[name] = File(self.inode, 1, self.now, renamed=True)
        self.hints.add(name)

    @rule(name=st.sampled_from(NAMES), held=st.booleans())
    def hold(self, name: str, held: bool) -> None:
        if name in self.files:
            self.files[name].open = held

    @rule(name=st.sampled_from(NAMES))
    def remove(self, name: str) -> None:
        self.files.pop(name, None)

    @rule(seconds=st.sampled_from([0.5, 1.0, 2.0, 7.0, 70.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def scan(self) -> None:
        self.table.begin_scan(self.now, self.hints)
        self.hints = set()
        for name, file in self.files.items():
            if self.table.look(Sighting(name, file.version), self.now) and file.looked_at is None:
                file.looked_at = self.now
        self.table.end_scan()

    @rule(limit=st.integers(1, 3))
    def pick(self, limit: int) -> None:
        for picked in self.table.pick(self.now, limit):
            assert picked.name not in self.out, "handed out twice"
            self.out[picked.name] = picked
            file = self.files.get(picked.name)
            if file is not None and file.version == picked.version:
                assert file.looked_at is not None
                assert file.renamed or self.now - file.looked_at >= 2.0, "handed out before it had settled"

    @precondition(lambda self: self.out)
    @rule(data=st.data(), tried=st.booleans())
    def claim(self, data: st.DataObject, tried: bool) -> None:
        picked = self.out.pop(data.draw(st.sampled_from(sorted(self.out))))
        if not tried:
            self.table.put_back(picked)
        else:
            self.table.feed(picked, self.outcome(picked), self.now)

    def outcome(self, picked: Sighting) -> ClaimResult:
        file = self.files.get(picked.name)
        if file is None:
            return ClaimResult.GONE
        if file.version != picked.version:
            return ClaimResult.CHANGED
        if file.open:
            return ClaimResult.BUSY
        del self.files[picked.name]
        return ClaimResult.CLAIMED

    @invariant()
    def it_is_bounded(self) -> None:
        assert len(self.table) <= self.CAPACITY

    @invariant()
    def due_is_a_promise(self) -> None:
        due = self.table.next_due(self.now)
        if due is not None and due <= self.now:
            assert any(isinstance(self.table.standing(n, self.now), Ready | LeftAlone) for n in self.NAMES)

    def teardown(self) -> None:
        """When everybody stops writing, every file is claimed before long."""
        for picked in self.out.values():
            self.table.feed(picked, self.outcome(picked), self.now)
        for file in self.files.values():
            file.open = False
        for _ in range(10):
            self.scan()
            self.now += 2.0
            for picked in self.table.pick(self.now, 9):
                self.table.feed(picked, self.outcome(picked), self.now)
        assert not self.files


TestFolder = Folder.TestCase
TestFolder.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
