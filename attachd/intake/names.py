"""Judges a name: may a file called this be taken at all?

The first and cheapest question of every look, asked before anything is known of the file but its name. Pure.
"""

import re
from collections.abc import Sequence
from enum import StrEnum
from fnmatch import translate


class Ignored(StrEnum):
    """The closed set of reasons why something in an inbox is left alone. Stable: it is logged and counted."""

    TEMPORARY_NAME = "temporary_name"
    """A producer is still at work under this name, by the usual conventions."""
    HIDDEN = "hidden"
    SYSTEM_JUNK = "system_junk"
    """Left behind by a desktop, a NAS or a synchronizer for its own use."""
    NOT_INCLUDED = "not_included"
    EXCLUDED = "excluded"
    FOLDER = "folder"
    """A sub-folder, and the inbox is not recursive."""
    TOO_DEEP = "too_deep"
    OTHER_FILESYSTEM = "other_filesystem"
    """Something is mounted on this sub-folder: a file could not be moved out of it in one step."""
    LINK = "link"
    NOT_A_FILE = "not_a_file"
    """A FIFO, a socket or a device."""
    HARD_LINKS = "hard_links"
    """The file has another name too, under which it could be changed or was meant for somebody else."""
    UNREADABLE = "unreadable"
    NEVER_SETTLES = "never_settles"
    """Written to, or held open, for ten minutes on end. Taken as soon as it comes to rest."""


# Compared in lower case: the names come from producers on Windows and macOS as well.
_TEMPORARY_ENDS = (".part", ".partial", ".tmp", ".crdownload", ".download", ".filepart", ".swp", "~")
_TEMPORARY_STARTS = ("~", ".~", ".syncthing.", ".goutputstream-")
_JUNK = frozenset(
    {
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "$recycle.bin",
        "system volume information",
        ".ds_store",
        ".appledouble",
        ".localized",
        ".spotlight-v100",
        ".fseventsd",
        ".directory",
        "icon\r",
        "lost+found",
        "@eadir",
        "@recycle",
        "@recently-snapshot",
        "#recycle",
        "#snapshot",
        ".snapshot",
        ".stfolder",
        ".stversions",
        ".stignore",
    }
)
_JUNK_STARTS = ("._", ".nfs", ".fuse_hidden", ".smbdelete", ".trash")


class NameRules:
    """What an inbox says of names: the globs of its config, and above them the names that are never taken.

    Globs match the whole base name, and case counts, as in a POSIX shell.
    """

    def __init__(self, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()) -> None:
        self._include = None if "*" in include else _any_of(include)
        self._exclude = _any_of(exclude) if exclude else None

    def judge(self, name: str) -> Ignored | None:
        """The reason to leave a file with this base name alone; None when it may be taken."""
        never = never_taken(name)
        if never is not None:
            return never
        if self._include is not None and self._include.match(name) is None:
            return Ignored.NOT_INCLUDED
        if self._exclude is not None and self._exclude.match(name) is not None:
            return Ignored.EXCLUDED
        return None


def never_taken(name: str) -> Ignored | None:
    """The reason why no inbox takes a file, or enters a folder, with this base name; None when there is none."""
    low = name.lower()
    if low.startswith(_TEMPORARY_STARTS) or low.endswith(_TEMPORARY_ENDS):
        return Ignored.TEMPORARY_NAME
    if low in _JUNK or low.startswith(_JUNK_STARTS):
        return Ignored.SYSTEM_JUNK
    if low.startswith("."):
        return Ignored.HIDDEN
    return None


def _any_of(globs: Sequence[str]) -> re.Pattern[str]:
    # No glob at all includes nothing: `(?!)` never matches.
    return re.compile("|".join(translate(glob) for glob in globs) or "(?!)")
