"""Every move of a file: claimed, sent, failed, given back; and the folders of an inbox that these moves need.

Below the dispatcher and the pipeline, which call it in threads: every method here blocks. Folders are held by
descriptor and every path is relative to one of them, so a folder that is swapped underneath is noticed and never
followed. A move is durable when the method returns (both folders are synced), and it never overwrites: a taken name
gets a number.

    <inbox>/.attachd/claimed/<delivery id>/<name>   0700: what was taken, under its exact name
    <inbox>/.attachd/journal                        which journal made these claims
    <inbox>/.attachd/ballast                        space given up first when the disk is full
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import signal
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self, TypeAlias, TypeVar

from attachd.delivery.content import digest_of
from attachd.errors import InboxError
from attachd.model import ClaimResult, DeliveryId, InboxName, Reason, Sighting, Step, Version
from attachd.ports import JournalIdentity

OWN_FOLDER = ".attachd"
BALLAST_BYTES = 1 << 20
"""Ours: room for a few hundred folder blocks, which is what renames on a full disk ask for."""

_NAME_MAX = 255  # bytes, of every filesystem attachd runs on
_RENAME_NOREPLACE = 1
_NO_FOLDER = -1
_F_SETSIG = 10
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_libc = ctypes.CDLL(None, use_errno=True)
_Result = TypeVar("_Result")


FolderIdentity: TypeAlias = tuple[int, int]
"""Device and inode."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """What a claim came to; `version` is of what was really claimed, and is set only then."""

    result: ClaimResult
    version: Version | None = None


@dataclass(frozen=True, slots=True)
class Sending:
    """A claimed file to be moved to `sent/` if its content still has this digest (hex SHA-256)."""

    delivery: DeliveryId
    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Leftover:
    """A folder below `claimed/`; `name` and `version` are None when it is empty: the file is elsewhere."""

    delivery: DeliveryId
    name: str | None
    version: Version | None


class Filing:
    """The folders of one inbox. `open()` before anything else; after a folder was swapped, `close()` and `open()`
    again.
    """

    def __init__(self, inbox: InboxName, path: Path, *, sent: str, failed: str) -> None:
        self._inbox = inbox
        self.path = path
        self._sent = sent
        self._failed = failed
        self._root = _NO_FOLDER
        self._own = _NO_FOLDER
        self._claimed = _NO_FOLDER
        self._identity: FolderIdentity = (0, 0)
        self._mount = ""
        self._on_this_mount: set[FolderIdentity] = set()
        self._explaining = threading.RLock()
        self.signed = False
        """Whether this process has signed the claims."""

    # --- the folders ---------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Hold the inbox and make attachd's own folders in it, durably.

        Raises InboxError: missing, not a folder, not ours to write, in use by another attachd, own folders that
        somebody else owns or that lie on another filesystem.
        """
        with self._trouble("open"):
            self._root = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self._identity, self._mount = _identity(os.fstat(self._root)), _mount_of(self._root)
                self._own = self._private_folder(self._root, OWN_FOLDER)
                try:
                    fcntl.flock(self._own, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    detail = f"another attachd works in {self.path}; an inbox belongs to one daemon"
                    raise InboxError(Reason.FOLDER_IN_USE, detail, Step.FILING) from error
                self._claimed = self._private_folder(self._own, "claimed")
                for folder in (self._sent, self._failed):
                    try:
                        os.close(self._shared_folder(folder))
                    except NotADirectoryError as error:
                        raise self._no_folder(folder) from error
                self._lay_ballast()
            except BaseException:
                self.close()
                raise

    def inspect(self) -> list[str]:
        """What would keep `open` from working, in words; makes and locks nothing."""
        try:
            root = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            return [f"{self.path}: {error.strerror}; make the folder, or correct the path"]
        try:
            problems = []
            if not os.access(self.path, os.R_OK | os.W_OK | os.X_OK):
                problems.append(f"{self.path} cannot be listed and written by this user; {_LOCKED[1]}")
            if os.fstatvfs(root).f_flag & os.ST_RDONLY:
                problems.append(f"{self.path} is mounted read-only")
            for folder in (OWN_FOLDER, self._sent, self._failed):
                problems.extend(self._inspect_folder(root, folder))
        finally:
            os.close(root)
        return problems

    def _inspect_folder(self, root: int, name: str) -> list[str]:
        try:
            found = os.stat(name, dir_fd=root, follow_symlinks=False)
        except FileNotFoundError:
            return []
        except OSError as error:
            return [f"{self.path / name}: {error.strerror}"]
        if not stat.S_ISDIR(found.st_mode):
            return [f"{self.path / name} is not a folder; attachd needs it to be one"]
        if found.st_dev != os.fstat(root).st_dev or _mount_of_name(root, name) != _mount_of(root):
            return [f"{self.path / name} {_OTHER_FILESYSTEM}"]
        if name == OWN_FOLDER and found.st_uid != os.geteuid():
            return [f"{self.path / name} belongs to user {found.st_uid}; only that user can run attachd here"]
        return []

    def identity(self) -> FolderIdentity:
        """Which folder this is, whatever path it has; (0, 0) while none is held."""
        return self._identity

    def is_current(self) -> bool:
        """Whether what is held is still what lies at the inbox's path. Raises InboxError when nothing does."""
        with self._trouble("look at"):
            return self._root != _NO_FOLDER and self._still_there() and self._own_still_there()

    def check(self) -> None:
        """Raise InboxError unless files could be claimed and filed now."""
        with self._trouble("write to"):
            self._lay_ballast()

    def close(self) -> None:
        """Let go of the folders; safe to call twice."""
        for descriptor in (self._claimed, self._own, self._root):
            if descriptor != _NO_FOLDER:
                os.close(descriptor)
        self._root = self._own = self._claimed = _NO_FOLDER
        self._identity, self._mount = (0, 0), ""
        self._on_this_mount.clear()

    def _private_folder(self, parent: int, name: str) -> int:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=parent)
            os.fsync(parent)
        try:
            folder = os.open(name, _OPEN_FOLDER, dir_fd=parent)
        except NotADirectoryError as error:
            raise self._no_folder(OWN_FOLDER) from error
        try:
            found = os.fstat(folder)
            if found.st_uid != os.geteuid():
                detail = f"{self.path / OWN_FOLDER} belongs to user {found.st_uid}, not to attachd; move it away"
                raise InboxError(Reason.FOLDER_NOT_WRITABLE, detail, Step.FILING)
            if stat.S_IMODE(found.st_mode) & 0o077:
                os.fchmod(folder, 0o700)
            self._same_filesystem(folder, name)
        except BaseException:
            os.close(folder)
            raise
        return folder

    def _shared_folder(self, relative: str) -> int:
        """Open a folder that people look into, making what is missing with the permissions of the inbox itself."""
        folder = self._root
        for name in relative.split("/"):
            try:
                try:
                    below = os.open(name, _OPEN_FOLDER, dir_fd=folder)
                except FileNotFoundError:
                    # Not the sticky bit and not writable for everybody: what is filed is nobody's to remove.
                    mode = stat.S_IMODE(os.fstat(self._root).st_mode) & 0o2775 | 0o700
                    with contextlib.suppress(FileExistsError):  # another file's thread was first
                        os.mkdir(name, mode & 0o777, dir_fd=folder)
                    below = os.open(name, _OPEN_FOLDER, dir_fd=folder)
                    _set_mode(below, mode)  # the umask took some of it away
                    os.fsync(folder)
            finally:
                if folder != self._root:
                    os.close(folder)
            folder = below
        try:
            self._same_filesystem(folder, relative)
        except BaseException:
            os.close(folder)
            raise
        return folder

    def _same_filesystem(self, folder: int, name: str) -> None:
        identity = _identity(os.fstat(folder))
        if identity in self._on_this_mount:
            return
        if identity[0] != self._identity[0] or _mount_of(folder) != self._mount:
            detail = f"{self.path / name} {_OTHER_FILESYSTEM}"
            raise InboxError(Reason.FOLDER_NOT_WRITABLE, detail, Step.FILING)
        self._on_this_mount.add(identity)

    def _no_folder(self, name: str) -> InboxError:
        detail = f"{self.path / name} is not a folder but a file or a link; attachd needs a folder there, move it away"
        return InboxError(Reason.FOLDER_NOT_WRITABLE, detail, Step.FILING)

    # --- which journal --------------------------------------------------------------------------------------------

    def journal_of_claims(self) -> JournalIdentity | None:
        """Which journal claimed what lies in `claimed/`; None when no journal ever did, or the note is unreadable."""
        with self._trouble("read"):
            try:
                note = os.open("journal", _OPEN, dir_fd=self._own)
            except FileNotFoundError:
                return None
            try:
                words = os.read(note, 200).decode("ascii", "replace").split()
            finally:
                os.close(note)
        return JournalIdentity(words[0], int(words[1])) if len(words) == 2 and words[1].isdigit() else None

    def sign_claims(self, journal: JournalIdentity) -> None:
        """Note durably which journal the claims from now on belong to."""
        note = f"{journal.id} {journal.generation}\n".encode()
        with self._trouble("write"):
            self._with_room(lambda: self._write(self._own, "journal", note, 0o600))
        self.signed = True

    # --- claiming -------------------------------------------------------------------------------------------------

    def claim(self, wanted: Sequence[tuple[DeliveryId, Sighting]]) -> list[Claimed]:
        """Take the sighted versions out of the inbox, durably; one answer for each, in order.

        The file is synced before it is renamed: a producer need not have done so, and a claim that survives a power cut
        without its bytes would be an empty document. Raises InboxError when the folder or the disk is in trouble; what
        was already claimed by then is found again by `leftovers()`.
        """
        with self._trouble("claim from"):
            self._lay_ballast()
            results = [Claimed(self._fit_to_claim(sighting)) for _, sighting in wanted]
            fit = [index for index, found in enumerate(results) if found.result is ClaimResult.CLAIMED]
            for index in fit:
                os.mkdir(wanted[index][0], 0o700, dir_fd=self._claimed)
            if fit:
                os.fsync(self._claimed)
            for index in fit:
                results[index] = self._take(*wanted[index])
            # After all renames, so that the disk can bring them down together.
            taken = [wanted[index] for index in fit if results[index].version is not None]
            for delivery, _ in taken:
                _sync_folder(delivery, self._claimed)
            for folder in {os.path.dirname(sighting.name) for _, sighting in taken}:
                # A sub-folder can be gone by now; then nothing can come back in it either.
                with contextlib.suppress(*_ONE_GONE if folder else ()), self._folder_of(folder) as parent:
                    os.fsync(parent)
        return results

    def _fit_to_claim(self, sighting: Sighting) -> ClaimResult:
        """Look at the file itself, without following links or waiting for a writer, and sync it."""
        try:
            with self._folder_of(os.path.dirname(sighting.name)) as parent:
                opened = os.open(os.path.basename(sighting.name), _OPEN, dir_fd=parent)
        except OSError as error:
            return _refusal(error)
        try:
            found = os.fstat(opened)
            if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
                return ClaimResult.NOT_A_FILE
            if version_of(found) != sighting.version:
                return ClaimResult.CHANGED
            os.fsync(opened)
            if _open_for_writing(opened):
                return ClaimResult.BUSY
        finally:
            os.close(opened)
        return ClaimResult.CLAIMED

    def _take(self, delivery: DeliveryId, sighting: Sighting) -> Claimed:
        """Rename into `claimed/<id>`, then look again: between the look and the rename somebody may have written to the
        file, or put another one under its name.
        """
        base = os.path.basename(sighting.name)
        claimed = os.path.join(delivery, base)
        try:
            with self._folder_of(os.path.dirname(sighting.name)) as parent:
                try:
                    os.rename(base, claimed, src_dir_fd=parent, dst_dir_fd=self._claimed)
                except PermissionError:
                    # An immutable file, or somebody else's in a sticky folder, is no reason to stop the others.
                    if not os.access(".", os.W_OK | os.X_OK, dir_fd=parent, effective_ids=True):
                        raise
                    os.rmdir(delivery, dir_fd=self._claimed)
                    return Claimed(ClaimResult.UNREADABLE)
        except _ONE_GONE:
            os.rmdir(delivery, dir_fd=self._claimed)
            return Claimed(ClaimResult.GONE)
        found = os.stat(claimed, dir_fd=self._claimed, follow_symlinks=False)
        result = self._fit_to_keep(claimed, found, sighting.version)
        if result is not ClaimResult.CLAIMED:
            self._put_back(claimed, sighting.name)
            os.rmdir(delivery, dir_fd=self._claimed)
            return Claimed(result)
        return Claimed(ClaimResult.CLAIMED, version_of(found))

    def _fit_to_keep(self, claimed: str, found: os.stat_result, sighted: Version) -> ClaimResult:
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            return ClaimResult.NOT_A_FILE
        if (found.st_dev, found.st_ino) == (sighted.device, sighted.inode):
            # Not the ctime: the rename changed it.
            same = (found.st_size, found.st_mtime_ns) == (sighted.size, sighted.mtime_ns)
            return ClaimResult.CLAIMED if same else ClaimResult.CHANGED
        # Another file was put there whole, as a producer that renames over its own does; or it is only begun.
        try:
            opened = os.open(claimed, _OPEN, dir_fd=self._claimed)
        except OSError as error:
            return _refusal(error)
        try:
            os.fsync(opened)
            if _open_for_writing(opened):
                return ClaimResult.BUSY
        finally:
            os.close(opened)
        return ClaimResult.CLAIMED

    def _put_back(self, claimed: str, name: str) -> None:
        with self._folder_of(os.path.dirname(name)) as parent:
            _rename_to_free_name(self._claimed, claimed, parent)
            os.fsync(parent)

    def leftovers(self) -> Iterator[Leftover]:
        """What lies in `claimed/`, in the order of the claims. More than one file in a claim is not ours and is left
        out.
        """
        with self._trouble("read"):
            names = sorted(os.listdir(self._claimed))
        for name in names:
            with self._trouble("read"):
                try:
                    folder = os.open(name, _OPEN_FOLDER, dir_fd=self._claimed)
                except OSError:
                    continue  # not a folder: nothing that attachd put there
                try:
                    inside = os.listdir(folder)
                    if len(inside) > 1:
                        continue
                    found = os.stat(inside[0], dir_fd=folder, follow_symlinks=False) if inside else None
                finally:
                    os.close(folder)
            if found is None:
                yield Leftover(DeliveryId(name), None, None)
            elif stat.S_ISREG(found.st_mode):
                yield Leftover(DeliveryId(name), inside[0], version_of(found))

    # --- a claimed file -------------------------------------------------------------------------------------------

    def open_claimed(self, delivery: DeliveryId, name: str) -> int:
        """A descriptor of the claimed file, for reading; the caller closes it.

        Raises FileNotFoundError when it is not there, OSError when it cannot be read, InboxError when the folder is
        gone.
        """
        self._demand_same_folder()
        return os.open(_claimed_as(delivery, name), _OPEN, dir_fd=self._claimed)

    def to_sent(self, wanted: Sequence[Sending]) -> list[str | Exception | None]:
        """Move claimed files to `sent/`, with each folder synced once for all of them; an answer for each, in order.

        It is the file's path relative to the inbox, or None when its content is another by now and it was left where
        it lies, or what `open_claimed` would raise for it, or InboxError.
        """
        return self._move_together([(one.delivery, partial(self._send, one)) for one in wanted])

    def to_failed(self, delivery: DeliveryId, name: str, reason: str) -> str:
        """Move a claimed file to `failed/`, the reason beside it before it comes; returns its path. Raises as
        `open_claimed`.
        """
        [filed_as] = self._move_together([(delivery, partial(self._move, delivery, name, self._failed, reason))])
        if not isinstance(filed_as, str):
            assert filed_as is not None
            raise filed_as
        return filed_as

    def explain_failure(self, filed_as: str, reason: str) -> None:
        """Write the reason beside a file in `failed/`. For people: a full disk must not keep the file from being
        filed.
        """
        with contextlib.suppress(OSError), self._folder_of(os.path.dirname(filed_as)) as folder:
            mode = stat.S_IMODE(os.fstat(self._root).st_mode) & 0o664 | 0o600
            self._write(
                folder, _reason_name(os.path.basename(filed_as)), reason.encode("utf-8", "backslashreplace"), mode
            )

    def find_filed(self, name: str, version: Version) -> str | None:
        """Where a file that was claimed as `version` lies, if it was filed before a crash could be recorded."""
        inside = os.path.dirname(name)
        for target in (self._sent, self._failed):
            relative = os.path.join(target, inside).rstrip("/")
            with (
                self._trouble("read"),
                contextlib.suppress(FileNotFoundError),
                self._folder_of(relative) as folder,
                os.scandir(folder) as entries,
            ):
                for entry in entries:
                    if entry.inode() == version.inode and entry.is_file(follow_symlinks=False):
                        return os.path.join(relative, entry.name)
        return None

    def moved_before(self, delivery: DeliveryId, name: str, version: Version) -> str:
        """Where a file lies that an earlier try moved, and could not make sure of: now it is made sure.

        Empty when it lies nowhere: somebody took it away. Raises InboxError.
        """
        filed_as = self.find_filed(name, version)
        if filed_as:
            with self._trouble("file into"), self._folder_of(os.path.dirname(filed_as)) as folder:
                os.fsync(folder)
        self.drop_claim(delivery)
        return filed_as or ""

    def was_sent(self, filed_as: str) -> bool:
        """Whether a path that `find_filed` gave lies in `sent/`."""
        return filed_as.startswith(self._sent + "/")

    def drop_claim(self, delivery: DeliveryId) -> None:
        """Remove the folder of a claim whose file is not in it any more."""
        with contextlib.suppress(OSError):
            os.rmdir(delivery, dir_fd=self._claimed)

    # --- the way back ---------------------------------------------------------------------------------------------

    def give_back(self, filed_as: str, name: str | None = None) -> str:
        """Put a file from `failed/` back into the inbox, into the sub-folder it had; returns its name there.

        `name` is what it is to be called, if not as it was filed: its original name, or that without the sub-folder.
        The reason stays in `failed/`, under that name, until the file is sent. Raises FileNotFoundError when no file
        lies there, InboxError.
        """
        wanted = name if name is not None else filed_as.removeprefix(self._failed + "/")
        # Names come from people here, and a folder can be opened by the name `..` as well.
        if not _is_below(filed_as, self._failed) or ".." in (*filed_as.split("/"), *wanted.split("/")):
            raise FileNotFoundError(errno.ENOENT, "it is no file below the folder for failed ones", filed_as)
        with self._folder_of(os.path.dirname(filed_as)) as source:
            filed = os.path.basename(filed_as)
            if not stat.S_ISREG(os.stat(filed, dir_fd=source, follow_symlinks=False).st_mode):
                raise FileNotFoundError(errno.ENOENT, "it is not a file", filed_as)
            inside, base = os.path.split(wanted)
            with self._trouble("put a file back into"):
                given = self._with_room(lambda: self._give_to(source, filed, inside, base))
                os.fsync(source)
            if os.path.join(inside, given) != filed_as.removeprefix(self._failed + "/"):
                with contextlib.suppress(OSError):
                    self._move_reason(source, filed, os.path.join(self._failed, inside), given)
        return os.path.join(inside, given)

    def _give_to(self, source: int, filed: str, inside: str, base: str) -> str:
        destination = self._shared_folder(inside) if inside else os.dup(self._root)
        try:
            while True:
                given = numbered(base, _free_number(destination, base, 1))
                with contextlib.suppress(FileExistsError):  # somebody else took it meanwhile
                    _rename_no_replace(source, filed, destination, given)
                    break
            os.fsync(destination)
        finally:
            os.close(destination)
        return given

    def _move_reason(self, source: int, filed: str, folder: str, given: str) -> None:
        """The reason goes with the name the file has now, for by that it is found when the file is sent; unless
        another file's lies there.
        """
        with self._folder_of(folder) as destination:
            try:
                _rename_no_replace(source, _reason_name(filed), destination, _reason_name(given))
            except FileExistsError:
                os.unlink(_reason_name(filed), dir_fd=source)

    def reason_beside(self, filed_as: str) -> str | None:
        """What the reason file of a file in `failed/` says; None when there is none."""
        folder, base = os.path.split(filed_as)
        try:
            with self._folder_of(folder) as parent:
                opened = os.open(_reason_name(base), _OPEN, dir_fd=parent)
            try:
                return os.read(opened, _LONGEST_REASON_BYTES).decode("utf-8", "replace")
            finally:
                os.close(opened)
        except OSError:
            return None

    def in_failed(self) -> list[str]:
        """The files in `failed/` and below it, without the reasons beside them, relative to the inbox."""
        found: list[str] = []
        folders = [self._failed]
        while folders:
            relative = folders.pop()
            with self._trouble("read"), contextlib.suppress(*_ONE_GONE), self._folder_of(relative) as folder:
                with os.scandir(folder) as entries:
                    listed = sorted(entries, key=lambda entry: entry.name)
                # A type that the folder did not tell is asked for through the descriptor, which is still open here.
                folders += [os.path.join(relative, e.name) for e in listed if e.is_dir(follow_symlinks=False)]
                # Nothing is filed under a name that ends as reasons do: a reason may lie there alone.
                files = [e.name for e in listed if e.is_file(follow_symlinks=False) and not e.name.endswith(_REASON)]
                found += [os.path.join(relative, name) for name in files]
        return found

    def _move_together(
        self, moves: Sequence[tuple[DeliveryId, Callable[["_Folders"], str | None]]]
    ) -> list[str | Exception | None]:
        answers: list[str | Exception | None] = []
        with _Folders(self._shared_folder) as folders:
            try:
                self._demand_same_folder()
            except InboxError as error:
                return [error] * len(moves)
            for _, move in moves:
                try:
                    answers.append(move(folders))
                except (OSError, InboxError) as error:
                    answers.append(error)
            moved = [delivery for (delivery, _), answer in zip(moves, answers, strict=True) if isinstance(answer, str)]
            try:
                with self._trouble("file into"):
                    self._with_room(folders.sync)
                    for delivery in moved:
                        self.drop_claim(delivery)
                    if moved:
                        os.fsync(self._claimed)  # which has each claim's folder no more, and so no file in it
            except InboxError as error:
                return [error if isinstance(answer, str) else answer for answer in answers]
        return answers

    def _send(self, one: Sending, folders: "_Folders") -> str | None:
        opened = os.open(_claimed_as(one.delivery, one.name), _OPEN, dir_fd=self._claimed)
        try:
            if digest_of(opened) != one.sha256:
                return None
        finally:
            os.close(opened)
        filed_as = self._move(one.delivery, one.name, self._sent, None, folders)
        self._forget_reason(one.name)
        return filed_as

    def _move(self, delivery: DeliveryId, name: str, target: str, reason: str | None, folders: "_Folders") -> str:
        inside = os.path.dirname(name)
        claimed = _claimed_as(delivery, name)
        relative = os.path.join(target, inside).rstrip("/")
        found = os.stat(claimed, dir_fd=self._claimed, follow_symlinks=False)  # not there: the caller's to explain
        with self._trouble("file into"):
            try:
                filed = self._with_room(lambda: self._move_to(claimed, found, relative, reason, folders))
            except NotADirectoryError:
                # A file was filed earlier under the name that is now a sub-folder's.
                relative = target
                filed = self._with_room(lambda: self._move_to(claimed, found, relative, reason, folders))
        return os.path.join(relative, filed)

    def _move_to(
        self, claimed: str, found: os.stat_result, relative: str, reason: str | None, folders: "_Folders"
    ) -> str:
        destination = folders.open(relative)
        if found.st_nlink > 1 and (filed := _second_link(found, destination)) is not None:
            os.unlink(claimed, dir_fd=self._claimed)
            return filed
        if reason is None:
            return _rename_to_free_name(self._claimed, claimed, destination)
        return self._move_after_reason(claimed, relative, reason, destination)

    def _move_after_reason(self, claimed: str, relative: str, reason: str, destination: int) -> str:
        """The reason lies there first: who finds a file in `failed/` finds why, a power cut in between or not."""
        base = os.path.basename(claimed)
        # A name that ends as reasons do could be taken for the reason of another file, and be replaced by it.
        first = 2 if base.endswith(_REASON) else 1
        while True:
            with self._explaining, contextlib.suppress(FileExistsError):  # somebody else took the name meanwhile
                name = numbered(base, _free_number(destination, base, first))
                self.explain_failure(os.path.join(relative, name), reason)
                try:
                    _rename_no_replace(self._claimed, claimed, destination, name)
                except OSError:
                    with contextlib.suppress(OSError):
                        os.unlink(_reason_name(name), dir_fd=destination)
                    raise
                return name

    def _forget_reason(self, name: str) -> None:
        """A file that was dropped in again after it had failed is sent now: the reason in `failed/` no longer holds."""
        inside, base = os.path.split(name)
        relative = os.path.join(self._failed, inside).rstrip("/")
        with contextlib.suppress(OSError), self._folder_of(relative) as folder:
            os.stat(_reason_name(base), dir_fd=folder, follow_symlinks=False)  # mostly there is none
            try:
                os.stat(base, dir_fd=folder, follow_symlinks=False)
            except FileNotFoundError:
                os.unlink(_reason_name(base), dir_fd=folder)

    # --- underneath -----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _folder_of(self, relative: str) -> Iterator[int]:
        """A folder below the inbox, every component opened without following a link."""
        folder = self._root
        try:
            for name in filter(None, relative.split("/")):
                below = os.open(name, _OPEN_FOLDER, dir_fd=folder)
                if folder != self._root:
                    os.close(folder)
                folder = below
            yield folder
        finally:
            if folder != self._root:
                os.close(folder)

    def _demand_same_folder(self) -> None:
        with self._trouble("read"):
            if not self._still_there():
                detail = f"{self.path} is not the folder it was; its claimed files wait until it is back"
                raise InboxError(Reason.FOLDER_REPLACED, detail, Step.FILING)

    def _still_there(self) -> bool:
        return self._identity == _identity(os.stat(self.path))

    def _own_still_there(self) -> bool:
        with contextlib.suppress(FileNotFoundError):
            for parent, name, held in ((self._root, OWN_FOLDER, self._own), (self._own, "claimed", self._claimed)):
                found = os.stat(name, dir_fd=parent, follow_symlinks=False)
                if not os.path.samestat(os.fstat(held), found):
                    return False
            return True
        return False

    def _write(self, folder: int, name: str, content: bytes, mode: int) -> None:
        """Write a small file of ours whole or not at all."""
        with self._explaining:  # files fail in several threads at once
            draft = os.open(".draft", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600, dir_fd=self._own)
            try:
                os.fchmod(draft, mode)
                if os.write(draft, content) < len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(draft)
            finally:
                os.close(draft)
            os.rename(".draft", name, src_dir_fd=self._own, dst_dir_fd=folder)
        os.fsync(folder)

    def _lay_ballast(self) -> None:
        """Set space aside for moves on a full disk; without it nothing more is claimed, for it could not be filed."""
        # For reading as well: where the filesystem cannot set space aside itself, the C library reads before it writes.
        ballast = os.open("ballast", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=self._own)
        try:
            if os.fstat(ballast).st_size < BALLAST_BYTES:
                os.posix_fallocate(ballast, 0, BALLAST_BYTES)
        except OSError:
            with contextlib.suppress(FileNotFoundError):
                os.unlink("ballast", dir_fd=self._own)
            raise
        finally:
            os.close(ballast)

    def _with_room(self, act: Callable[[], _Result]) -> _Result:
        """Act; if the disk has no room for it, give up the ballast and act once more."""
        try:
            return act()
        except OSError as error:
            if error.errno not in _NO_SPACE:
                raise
            with contextlib.suppress(FileNotFoundError):
                os.unlink("ballast", dir_fd=self._own)
                os.fsync(self._own)  # only then are its blocks free
        return act()

    @contextlib.contextmanager
    def _trouble(self, doing: str) -> Iterator[None]:
        """Say an operating system's error in the inbox's words."""
        try:
            yield
        except OSError as error:
            reason, advice = _TROUBLE.get(error.errno or 0, (Reason.FOLDER_NOT_WRITABLE, "see the error"))
            detail = f"cannot {doing} {self.path}: {error.strerror or error}; {advice}"
            raise InboxError(reason, detail, Step.FILING) from error


def _set_mode(folder: int, mode: int) -> None:
    """Give a folder its mode, the set-group-id bit where that is allowed: a hardened service may be forbidden to set
    it.
    """
    try:
        os.fchmod(folder, mode)
    except PermissionError:
        os.fchmod(folder, mode & 0o777)


class _Folders:
    """The folders that files are moved into together: each opened once, and synced once."""

    def __init__(self, open_folder: Callable[[str], int]) -> None:
        self._open_folder = open_folder
        self._opened: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for folder in self._opened.values():
            os.close(folder)

    def open(self, relative: str) -> int:
        """Its descriptor, to be used while the block lasts."""
        if relative not in self._opened:
            self._opened[relative] = self._open_folder(relative)
        return self._opened[relative]

    def sync(self) -> None:
        """Have what was moved into them on disk."""
        for folder in self._opened.values():
            os.fsync(folder)


def _claimed_as(delivery: DeliveryId, name: str) -> str:
    """Where a claimed file lies in `claimed/`, which only we can write to, so that no link can be on the way."""
    return os.path.join(delivery, os.path.basename(name))


def _identity(found: os.stat_result) -> FolderIdentity:
    return found.st_dev, found.st_ino


def _sync_folder(name: str, parent: int) -> None:
    folder = os.open(name, _OPEN_FOLDER, dir_fd=parent)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def version_of(found: os.stat_result) -> Version:
    """The version an open file, or a name that was looked at, is."""
    return Version(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def numbered(base: str, number: int) -> str:
    """`scan.pdf`, `scan (2).pdf`, `scan (3).pdf`, each short enough for a folder entry."""
    if number == 1:
        return base
    stem, extension = os.path.splitext(base)
    tail = f" ({number}){_cut(extension, _NAME_MAX // 2)}"
    return _cut(stem, _NAME_MAX - len(os.fsencode(tail))) + tail


def _reason_name(filed: str) -> str:
    # Of a name too long for it the end is kept: it has the number.
    kept = _cut(filed, _NAME_MAX - len(_REASON))
    if kept != filed:
        end = filed[-_END_OF_NAME:]
        kept = _cut(filed, _NAME_MAX - len(_REASON) - len(os.fsencode(end))) + end
    return kept + _REASON


def _cut(name: str, most_bytes: int) -> str:
    """The beginning of a name, whole characters only: some filesystems refuse half ones."""
    while len(os.fsencode(name)) > most_bytes:
        name = name[:-1]
    return name


def _is_below(relative: str, folder: str) -> bool:
    return relative == folder or relative.startswith(folder + "/")


def _second_link(found: os.stat_result, target: int) -> str | None:
    """The name of a claimed file that a crash left in both folders, where moves are made by hard links."""
    with os.scandir(target) as entries:
        return next((entry.name for entry in entries if entry.inode() == found.st_ino), None)


def _rename_to_free_name(source: int, old: str, target: int) -> str:
    """Rename under the name it has, or the next free one with a number; returns that."""
    name = base = os.path.basename(old)
    while True:
        with contextlib.suppress(FileExistsError):
            _rename_no_replace(source, old, target, name)
            return name
        name = numbered(base, _free_number(target, base, 1))


def _free_number(folder: int, base: str, first: int) -> int:
    """A free number, found without asking for each one below it: a scanner may use one name for years."""

    def taken(number: int) -> bool:
        try:
            os.stat(numbered(base, number), dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    if not taken(first):
        return first
    low, high = first, first * 2
    while taken(high):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if taken(middle) else (low, middle)
    return high


def _rename_no_replace(source: int, old: str, target: int, new: str) -> None:
    """Rename, or raise FileExistsError. Filesystems without the kernel's flag get a hard link instead, or a look
    first.
    """
    if _libc.renameat2(source, os.fsencode(old), target, os.fsencode(new), _RENAME_NOREPLACE) == 0:
        return
    error = ctypes.get_errno()
    if error not in _NOT_SUPPORTED:
        raise OSError(error, os.strerror(error))
    try:
        os.link(old, new, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
    except OSError as refused:
        if refused.errno not in _NOT_SUPPORTED | {errno.EPERM}:
            raise
        with contextlib.suppress(FileNotFoundError):
            os.stat(new, dir_fd=target, follow_symlinks=False)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from refused
        os.rename(old, new, src_dir_fd=source, dst_dir_fd=target)
    else:
        # After a crash in between both names exist: the claim has two links, and the move is done again.
        os.unlink(old, dir_fd=source)


def _refusal(error: OSError) -> ClaimResult:
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            return ClaimResult.GONE
        case errno.ELOOP | errno.ENXIO | errno.ENODEV:
            return ClaimResult.NOT_A_FILE
        case errno.EACCES | errno.EPERM:
            return ClaimResult.UNREADABLE
        case errno.EAGAIN | errno.EBUSY | errno.ETXTBSY:
            return ClaimResult.BUSY  # under a lease of a file server, or locked by a program on another host
        case _:
            raise error


def _open_for_writing(opened: int) -> bool:
    """Whether anybody has the file open for writing, as far as the kernel tells: a read lease is refused then.

    It tells only the file's owner and only on local filesystems; where it does not tell, the quiet time has decided.
    The caller closes the descriptor next, and the lease ends with it. Source: fcntl(2), F_SETLEASE.
    """
    try:
        # Who opens the file for writing while we hold the lease would raise SIGIO, which ends a process; SIGURG does
        # not.
        fcntl.fcntl(opened, _F_SETSIG, signal.SIGURG)
        fcntl.fcntl(opened, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    return False


def _mount_of(folder: int) -> str:
    """Which mount a folder was opened through: between two mounts of one filesystem nothing can be renamed either."""
    with contextlib.suppress(OSError), open(f"/proc/self/fdinfo/{folder}", encoding="utf-8") as lines:
        return next((line for line in lines if line.startswith("mnt_id:")), "")
    return ""


def _mount_of_name(parent: int, name: str) -> str:
    folder = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        return _mount_of(folder)
    finally:
        os.close(folder)


_REASON = ".reason.txt"
_LONGEST_REASON_BYTES = 16 << 10
_END_OF_NAME = 40
_ONE_GONE = (FileNotFoundError, NotADirectoryError)
_OTHER_FILESYSTEM = (
    "lies on another filesystem or mount than the inbox, so files could not be moved there in one step; "
    "put it on the same one"
)
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
_NOT_SUPPORTED = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})
_GONE = (Reason.FOLDER_MISSING, "is the share mounted? Its files wait until the folder is back")
_FULL = (Reason.DISK_FULL, "make room; nothing fails meanwhile, and it goes on by itself")
_LOCKED = (Reason.FOLDER_NOT_WRITABLE, "attachd's user must be able to list, write and rename there")
_TROUBLE = {
    errno.ENOENT: _GONE,
    errno.ENOTDIR: _GONE,
    errno.ESTALE: _GONE,
    errno.ENOTCONN: _GONE,
    errno.EHOSTDOWN: _GONE,
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EACCES: _LOCKED,
    errno.EPERM: _LOCKED,
    errno.EROFS: (Reason.FOLDER_NOT_WRITABLE, "it is mounted read-only"),
    errno.EXDEV: (Reason.FOLDER_NOT_WRITABLE, "the inbox must be one filesystem and one mount"),
    errno.ELOOP: (Reason.FOLDER_NOT_WRITABLE, "a link stands where attachd's own folder belongs; remove it"),
}
