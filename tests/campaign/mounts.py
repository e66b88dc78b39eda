"""Disks of the campaign: tmpfs and loop-mounted ext4, small ones, full ones, ones that lose their power."""

import contextlib
import errno
import fcntl
import os
import subprocess
import time
from pathlib import Path

_EXT4_SHUTDOWN = 0x8004587D
_NO_LOG_FLUSH = (2).to_bytes(4, "little")


def available() -> bool:
    """Whether this process may mount."""
    return os.geteuid() == 0 and Path("/dev/loop-control").exists()


class Disk:
    """A filesystem of its own at `path`. `with Disk.ext4(...) as disk`."""

    def __init__(self, path: Path, mount: list[str], image: Path | None = None) -> None:
        self.path = path
        self._mount = mount
        self._image = image
        self._filler = path / ".filler"
        path.mkdir(parents=True, exist_ok=True)

    @classmethod
    def tmpfs(cls, path: Path, mib: int, *, inodes: int | None = None) -> "Disk":
        """In memory; renames succeed there even when it is full."""
        options = f"size={mib}m" + (f",nr_inodes={inodes}" if inodes else "")
        return cls(path, ["-t", "tmpfs", "-o", options, "none"])

    @classmethod
    def ext4(cls, path: Path, mib: int, *, inodes: int | None = None) -> "Disk":
        """On a loop device, with a long commit interval: what was not synced stays in memory."""
        image = path.with_suffix(".img")
        image.parent.mkdir(parents=True, exist_ok=True)
        with image.open("wb") as file:
            file.truncate(mib << 20)
        more = ["-N", str(inodes)] if inodes else []
        _run("mkfs.ext4", "-q", "-F", "-m", "0", *more, str(image))
        return cls(path, ["-o", "loop,commit=600", str(image)], image)

    def __enter__(self) -> "Disk":
        self.mount()
        return self

    def __exit__(self, *_: object) -> None:
        self.unmount()
        if self._image:
            self._image.unlink()

    def mount(self) -> None:
        _run("mount", *self._mount, str(self.path))

    def unmount(self) -> None:
        """At once, or as soon as nobody has anything open there.

        A mount namespace that somebody else made meanwhile has a copy of the mount. As long as it is there, the same
        image would give the same filesystem again, as dead as the power cut left it: then a copy of the image is next.
        """
        deadline = time.monotonic() + 10.0
        while subprocess.run(["umount", str(self.path)], capture_output=True).returncode != 0:
            if not os.path.ismount(self.path):
                return
            if time.monotonic() > deadline:
                _run("umount", "-l", str(self.path))
                raise RuntimeError(f"{self.path} stayed busy")
            time.sleep(0.02)
        deadline = time.monotonic() + 0.5
        while self._image and self._attached():
            if time.monotonic() > deadline:
                copy = self._image.with_name(self._image.name + "+")
                _run("cp", "--sparse=always", str(self._image), str(copy))
                self._image.unlink()
                self._mount[-1], self._image = str(copy), copy
            time.sleep(0.005)

    def _attached(self) -> bool:
        """Whether a loop device still has the image."""
        for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
            with contextlib.suppress(OSError):
                if backing.read_text().strip() == str(self._image):
                    return True
        return False

    def sync(self) -> None:
        _run("sync", "-f", str(self.path))

    def remount(self, how: str) -> bool:
        """Read-only (`ro`) or not (`rw`); False while something keeps it from happening."""
        return subprocess.run(["mount", "-o", f"remount,{how}", str(self.path)], capture_output=True).returncode == 0

    def fill(self) -> None:
        """Until there is not a single block left."""
        opened = os.open(self._filler, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            for size in (1 << 20, 1 << 16, 1 << 12, 1 << 9, 1):
                with contextlib.suppress(OSError):
                    while os.write(opened, bytes(size)):
                        pass
                with contextlib.suppress(OSError):
                    os.fsync(opened)
        finally:
            os.close(opened)

    def use_up_inodes(self) -> None:
        """Until no file can be made."""
        folder = self.path / ".many"
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
        for number in range(100_000):
            try:
                os.close(os.open(folder / str(number), os.O_WRONLY | os.O_CREAT, 0o600))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                return

    def make_room(self) -> None:
        """Undo `fill` and `use_up_inodes`."""
        self._filler.unlink(missing_ok=True)
        folder = self.path / ".many"
        if folder.exists():
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()

    def open_for_cut(self) -> int:
        """A descriptor for `cut`, opened beforehand so that cuts of several disks follow each other at once."""
        return os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)


def cut(disks: list[int]) -> None:
    """The power goes: nothing more reaches these disks, and what was not synced never will."""
    for opened in disks:
        fcntl.ioctl(opened, _EXT4_SHUTDOWN, _NO_LOG_FLUSH)
    for opened in disks:
        os.close(opened)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
