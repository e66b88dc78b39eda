"""Looks at an inbox: the scan that goes through all names, and the look at a few of them.

What events only hint at, this finds out. Names come first; the type comes with the name from the folder; only
candidates, names already known and as many new ones as there is room for, cost a `stat`. Memory does not grow with
the folder. Everything here blocks, and is called off the event loop, a slice at a time.

All of it is relative to a descriptor of the inbox, and no link is followed: what happens to the path above the inbox,
or to a component below it, leads nowhere else.
"""

import os
import stat
import time
from collections.abc import Iterator, Set
from dataclasses import dataclass, field

from attachd.intake.names import Ignored, NameRules, never_taken
from attachd.model import Sighting, Version

MAX_DEPTH = 32
"""Folders below folders. Ours: two descriptors are held for each level."""
SLICE_NAMES = 2048
SLICE_S = 0.05
"""A slice ends after so many names or seconds, whichever comes first, so that stopping never waits long for one."""


@dataclass(slots=True)
class Slice:
    """A part of a scan: what was seen, what was left alone and why, how many candidates there was no room for."""

    sightings: list[Sighting] = field(default_factory=list)
    ignored: list[tuple[str, Ignored]] = field(default_factory=list)
    new: int = 0
    beyond: int = 0
    last: bool = False


class Scan:
    """One walk through an inbox, in slices.

    `own` are the folders at its root that are ours. The first `skip` new names are passed over, as if there were no
    room for them: so a scan can begin where another left off.
    """

    def __init__(
        self, root: int, rules: NameRules, *, recursive: bool = False, own: Set[str] = frozenset(), skip: int = 0
    ) -> None:
        self._root = root
        self._rules = rules
        self._recursive = recursive
        self._own = own
        self._skip = skip
        self._levels: list[tuple[str, int, Iterator[os.DirEntry[str]]]] = []
        self._device = 0

    def advance(self, known: Set[str], room: int) -> Slice:
        """The next slice. Raises OSError when the inbox itself cannot be read."""
        seen = Slice()
        if not self._levels:
            # Our own open file description: the one of `root` has a position that others share.
            top = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._root)
            self._device = os.fstat(top).st_dev
            self._enter("", top)
        deadline = time.monotonic() + SLICE_S
        for count in range(SLICE_NAMES):
            if count % 64 == 63 and time.monotonic() >= deadline:
                break
            entry = self._next()
            if entry is None:
                seen.last = True
                break
            self._judge(entry, known, room, seen)
        return seen

    def close(self) -> None:
        """Give the descriptors back; not while a slice is under way."""
        while self._levels:
            self._leave()

    def _enter(self, prefix: str, folder: int) -> None:
        try:
            entries = os.scandir(folder)
        except BaseException:
            os.close(folder)
            raise
        self._levels.append((prefix, folder, entries))

    def _leave(self) -> None:
        _, folder, entries = self._levels.pop()
        entries.close()  # type: ignore[attr-defined]  # os.scandir's iterator has it
        os.close(folder)

    def _next(self) -> os.DirEntry[str] | None:
        while self._levels:
            try:
                return next(self._levels[-1][2])
            except StopIteration:
                pass
            except OSError:
                if len(self._levels) == 1:
                    raise  # the inbox itself; a sub-folder that went away is just no more
            if len(self._levels) == 1:
                return None
            self._leave()
        return None

    def _judge(self, entry: os.DirEntry[str], known: Set[str], room: int, seen: Slice) -> None:
        prefix, _, _ = self._levels[-1]
        base = entry.name
        if not prefix and base in self._own:
            return
        name = prefix + base
        never = never_taken(base)
        if never is not None:
            seen.ignored.append((name, never))
            return
        try:
            if entry.is_symlink():
                seen.ignored.append((name, Ignored.LINK))
            elif entry.is_dir(follow_symlinks=False):
                self._descend(name, base, seen)
            elif not entry.is_file(follow_symlinks=False):
                seen.ignored.append((name, Ignored.NOT_A_FILE))
            elif (refused := self._rules.judge(base)) is not None:
                seen.ignored.append((name, refused))
            elif name in known or self._admits(room, seen):
                _note(name, entry.stat(follow_symlinks=False), seen)
            else:
                seen.beyond += 1
        except FileNotFoundError:
            pass
        except OSError:
            seen.ignored.append((name, Ignored.UNREADABLE))

    def _admits(self, room: int, seen: Slice) -> bool:
        if self._skip > 0:
            self._skip -= 1
            return False
        if seen.new >= room:
            return False
        seen.new += 1
        return True

    def _descend(self, name: str, base: str, seen: Slice) -> None:
        if not self._recursive:
            seen.ignored.append((name, Ignored.FOLDER))
        elif len(self._levels) > MAX_DEPTH:
            seen.ignored.append((name, Ignored.TOO_DEEP))
        else:
            folder = _open_folder(base, self._levels[-1][1])
            if os.fstat(folder).st_dev != self._device:
                os.close(folder)
                seen.ignored.append((name, Ignored.OTHER_FILESYSTEM))
            else:
                self._enter(name + "/", folder)


def glance(root: int, name: str) -> Sighting | Ignored | None:
    """Look at one name, relative to the inbox. None: there is nothing of that name."""
    *folders, base = name.split("/")
    opened: list[int] = []
    try:
        for folder in folders:
            opened.append(_open_folder(folder, opened[-1] if opened else root))
        look = os.stat(base, dir_fd=opened[-1] if opened else root, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        return Ignored.UNREADABLE
    finally:
        for descriptor in opened:
            os.close(descriptor)
    return _sighting(name, look)


def _open_folder(name: str, parent: int) -> int:
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)


def _note(name: str, look: os.stat_result, seen: Slice) -> None:
    noted = _sighting(name, look)
    if isinstance(noted, Sighting):
        seen.sightings.append(noted)
    else:
        seen.ignored.append((name, noted))


def _sighting(name: str, look: os.stat_result) -> Sighting | Ignored:
    # Asked again although the folder gave the type: another file may have taken the name in between.
    if stat.S_ISLNK(look.st_mode):
        return Ignored.LINK
    if stat.S_ISDIR(look.st_mode):
        return Ignored.FOLDER
    if not stat.S_ISREG(look.st_mode):
        return Ignored.NOT_A_FILE
    if look.st_nlink > 1:
        return Ignored.HARD_LINKS
    return Sighting(name, Version(look.st_dev, look.st_ino, look.st_size, look.st_mtime_ns, look.st_ctime_ns))
