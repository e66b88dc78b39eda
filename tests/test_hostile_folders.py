"""Hostile and odd folders: nothing outside the inbox is read through it, nothing in it blocks the rest, nothing is
lost.
"""

import asyncio
import hashlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from attachd.sandbox import Fault, FaultKind, Sandbox

from .running import RunningDaemon, drop
from .waiting import until

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


async def test_a_link_to_a_secret_is_never_followed(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path, tmp_path: Path
) -> None:
    """A symbolic or a hard link to a file elsewhere is left alone and reported once, never read."""
    secret = tmp_path / "secret.txt"
    secret.write_text("the crown jewels")
    (inbox / "soft.txt").symlink_to(secret)
    (inbox / "hard.txt").hardlink_to(secret)
    await daemon.start()
    drop(inbox, "plain.txt")
    await until(lambda: daemon.sent() == ["plain.txt"], "a plain file is sent")
    await until(lambda: len(daemon.events("file.ignored")) == 2, "both are reported")
    assert {record["file"] for record in daemon.events("file.ignored")} == {"soft.txt", "hard.txt"}
    digest = hashlib.sha256(b"the crown jewels").hexdigest()
    assert digest not in {stored.sha256 for stored in platform.objects}


async def test_a_file_swapped_for_a_link_at_full_speed_leaks_nothing(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path, tmp_path: Path
) -> None:
    """A name that changes between a file and a link to a secret thousands of times a second never brings the secret
    out.
    """
    secret = tmp_path / "secret.txt"
    secret.write_text("the crown jewels")
    daemon.configure(settle="0ms")
    await daemon.start()
    await asyncio.to_thread(_swap, inbox, secret, 3000)
    await until(lambda: not daemon.claimed() and _only_links(inbox), "all files are settled")
    digest = hashlib.sha256(b"the crown jewels").hexdigest()
    assert digest not in {stored.sha256 for stored in platform.objects}
    assert secret.read_text() == "the crown jewels"


def _only_links(inbox: Path) -> bool:
    return all(entry.is_symlink() or entry.is_dir() for entry in inbox.iterdir())


def _swap(inbox: Path, secret: Path, times: int) -> None:
    for swap in range(times):
        (inbox / ".file").write_text(f"harmless {swap}")
        (inbox / ".file").rename(inbox / "swap.txt")
        (inbox / ".link").symlink_to(secret)
        (inbox / ".link").rename(inbox / "swap.txt")
    (inbox / "swap.txt").unlink(missing_ok=True)


async def test_pipes_sockets_and_folders_with_good_names_block_nothing(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path
) -> None:
    """A FIFO without a writer, a socket and a folder named like documents hold up nothing beside them."""
    os.mkfifo(inbox / "pipe.txt")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(inbox / "socket.txt"))
    (inbox / "folder.txt").mkdir()
    await daemon.start()
    drop(inbox, "plain.txt")
    await until(lambda: daemon.sent() == ["plain.txt"], "the plain file is sent")
    listener.close()


async def test_a_thousand_replacements_a_second_send_only_whole_versions(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path
) -> None:
    """One name replaced by rename at full speed: what is sent is always one of the versions, never a mixture."""
    versions: set[str] = set()

    def replace() -> None:
        for number in range(3000):
            content = f"version {number} ".encode() * 2000
            versions.add(hashlib.sha256(content).hexdigest())
            (inbox / ".new").write_bytes(content)
            (inbox / ".new").rename(inbox / "same.txt")

    await daemon.start()
    await asyncio.to_thread(replace)
    await until(lambda: not daemon.claimed() and not daemon.waiting(), "all is filed")
    assert platform.messages
    assert {message.attachments[0].sha256 for message in platform.messages} <= versions
    assert len(platform.messages) == len(daemon.sent())


async def test_a_file_rewritten_during_its_upload_is_sent_with_the_new_content(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path
) -> None:
    """A writer that still holds the claimed file changes it before the message: the delivery starts over."""
    platform.on("put", Fault(FaultKind.DELAY, delay_s=1.0, times=1))
    await daemon.start()
    drop(inbox, "claim.txt", b"first version")
    await until(daemon.claimed, "it is claimed")
    claimed = next((inbox / ".attachd" / "claimed").glob("*/*"))
    await until(lambda: platform.requests("put"), "it is uploaded")
    claimed.write_bytes(b"second version, longer")
    await daemon.all_filed(1)
    (message,) = platform.messages
    assert message.attachments[0].sha256 == hashlib.sha256(b"second version, longer").hexdigest()


async def test_a_file_changed_after_its_message_goes_to_failed_and_says_so(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path
) -> None:
    """What the agent has and what lies there differ: never filed as sent; the reason says that it was sent."""
    platform.on("conversation", Fault(FaultKind.DELAY, delay_s=1.0, times=1))
    await daemon.start()
    drop(inbox, "claim.txt", b"first version")
    await until(lambda: platform.messages, "the message stands")
    next((inbox / ".attachd" / "claimed").glob("*/*")).write_bytes(b"second version")
    await daemon.all_filed(1)
    assert daemon.failed() == ["claim.txt"]
    assert "changed_after_send" in daemon.reason("claim.txt")
    assert len(platform.messages) == 1


async def test_a_file_that_shrinks_during_its_upload_is_no_outage(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path
) -> None:
    """Too few bytes are the file's own doing: it starts over with what is there, and the platform is not paused."""
    await daemon.start()
    platform.on("upload", Fault(FaultKind.DELAY, delay_s=0.5, times=1))
    drop(inbox, "claim.bin", os.urandom(3_000_000))
    await until(lambda: platform.requests("upload"), "it is about to be uploaded")
    claimed = next((inbox / ".attachd" / "claimed").glob("*/*"))
    os.truncate(claimed, 1_000_000)
    await daemon.all_filed(1)
    (message,) = platform.messages
    assert message.attachments[0].size_bytes == 1_000_000
    assert daemon.events("platform.paused") == []


async def test_a_claimed_file_that_somebody_takes_away_is_said_and_forgotten(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path
) -> None:
    """Nothing can be filed then; the log says `vanished`, and the daemon goes on."""
    platform.on("guest", Fault(FaultKind.STATUS, status=503, times=3))
    await daemon.start()
    drop(inbox, "claim.txt")
    await until(daemon.claimed, "it is claimed")
    next((inbox / ".attachd" / "claimed").glob("*/*")).unlink()
    await until(lambda: daemon.events("file.failed"), "it is reported")
    assert daemon.events("file.failed")[0]["reason"] == "vanished"
    drop(inbox, "next.txt")
    await until(lambda: daemon.sent() == ["next.txt"], "the next one is sent")


async def test_an_inbox_moved_away_with_claimed_files_takes_them_up_when_it_returns(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path
) -> None:
    """As an unmounted share does: the path is an empty folder for a while; no claimed file fails of it, all are sent
    after.
    """
    platform.on("guest", Fault(FaultKind.STATUS, status=503, times=None))
    await daemon.start()
    drop(inbox, "claim.txt")
    await until(daemon.claimed, "it is claimed")
    aside = inbox.with_name("aside")
    inbox.rename(aside)
    inbox.mkdir()
    await until(lambda: daemon.events("inbox.resumed"), "the empty folder is taken for the inbox")
    platform.faults.clear()
    drop(inbox, "meanwhile.txt")
    await until(lambda: daemon.sent() == ["meanwhile.txt"], "a file in the new folder is sent")
    inbox.rename(inbox.with_name("new"))
    aside.rename(inbox)
    await until(lambda: daemon.sent() == ["claim.txt"], "the claimed file is sent after its return", 60)
    assert daemon.events("file.failed") == []
    assert len(platform.messages_for("claim.txt")) == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A small ext4 filesystem of its own, where renames on a full disk really fail."""
    image, mount = tmp_path / "image", tmp_path / "disk"
    mount.mkdir()
    with image.open("wb") as file:
        file.truncate(24 * 1024 * 1024)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(mount)], check=True)
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


@as_root
@pytest.mark.skipif(not shutil.which("mkfs.ext4"), reason="needs mkfs.ext4")
async def test_a_full_disk_stops_claiming_fails_nothing_and_ends_by_itself(platform: Sandbox, small_disk: Path) -> None:
    """No space on the inbox's disk while files are under way: those are filed out of the ballast, the others wait."""
    inbox = small_disk / "claims"
    inbox.mkdir()
    daemon = RunningDaemon(platform, inbox)
    daemon.state_dir = small_disk.parent / "state"
    daemon.config_file = small_disk.parent / "config.yaml"
    daemon.configure()
    try:
        platform.on("put", Fault(FaultKind.DELAY, delay_s=2.0, times=1))
        await daemon.start()
        drop(inbox, "before.txt")
        await until(lambda: platform.requests("put"), "a file is under way")
        filler = small_disk / "filler"
        _fill(filler)
        await until(lambda: daemon.sent() == ["before.txt"], "what was under way is filed")
        for number in range(20):
            (small_disk / f"late-{number}.txt").touch()
            (small_disk / f"late-{number}.txt").rename(inbox / f"late-{number}.txt")
        _fill(filler)
        filler.unlink()
        for number in range(20):
            drop(inbox, f"late-{number}.txt", b"now there is room")
        await until(lambda: len(daemon.sent()) == 21, "all are sent once there is room", 90)
        assert daemon.failed() == []
    finally:
        await daemon.end()


def _fill(filler: Path) -> None:
    opened = os.open(filler, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    size = 1 << 20
    while size:
        try:
            os.write(opened, b"\0" * size)
        except OSError:
            size //= 4
    os.close(opened)


@as_root
async def test_a_read_only_disk_pauses_the_inbox_and_ends_by_itself(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path
) -> None:
    """Remounted read-only and back: paused with the reason, no file failed, everything sent afterwards."""
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(inbox)], check=True)
    try:
        await daemon.start()
        drop(inbox, "claim.txt")
        await daemon.all_filed(1)
        drop(inbox, "second.txt.part")
        subprocess.run(["mount", "-o", "remount,ro", str(inbox)], check=True)
        # Nothing can be dropped into a read-only folder; what already lies there must not be taken and not fail.
        subprocess.run(["mount", "-o", "remount,rw", str(inbox)], check=True)
        (inbox / "second.txt.part").rename(inbox / "second.txt")
        await until(lambda: daemon.sent() == ["claim.txt", "second.txt"], "it goes on")
        await daemon.stop()
    finally:
        await daemon.end()
        subprocess.run(["umount", "-l", str(inbox)], check=True)


@as_root
async def test_sent_on_another_filesystem_is_refused_at_start_with_the_remedy(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path
) -> None:
    """Moves would not be renames there: nothing is started, exit code 78, the message says what to do."""
    (inbox / "sent").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(inbox / "sent")], check=True)
    try:
        await daemon.spawn()
        assert await daemon.ended() == 78
        assert "put it on the same one" in "".join(daemon.noise)
        assert daemon.log == []
    finally:
        subprocess.run(["umount", str(inbox / "sent")], check=True)


@as_root
async def test_own_folders_of_somebody_else_are_refused_at_start(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path
) -> None:
    """A `.attachd` planted by another user is not used: nothing is started, and the message names it."""
    (inbox / ".attachd" / "claimed").mkdir(parents=True)
    os.chown(inbox / ".attachd", 65534, 65534)
    await daemon.spawn()
    assert await daemon.ended() == 78
    assert "belongs to user 65534" in "".join(daemon.noise)
