"""The main job: a file dropped into an inbox is a conversation in the right queue, and lies in `sent/`."""

import hashlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

from attachd.sandbox import ENHANCED_LIMIT_BYTES, Fault, FaultKind, Sandbox, SandboxSettings, Step, refuse

from .running import RunningDaemon, drop, over_both
from .waiting import until

SAMPLES = Path(__file__).parent.parent / "attachd" / "demo" / "samples"


async def test_a_dropped_file_becomes_one_conversation_with_its_bytes_and_lies_in_sent(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path
) -> None:
    """The agent's queue gets one message with exactly the bytes that were dropped; the log tells all about it."""
    daemon.configure(
        skills=[{"id": "support-document-review", "level": 3}],
        metadata={"source": "claims-share"},
        message="Document $name attached for review.",
    )
    await daemon.start()
    content = (SAMPLES / "claim-form.pdf").read_bytes()
    drop(inbox, "claim-form.pdf", content)
    await daemon.all_filed(1)
    assert daemon.sent() == ["claim-form.pdf"]
    assert (inbox / "sent" / "claim-form.pdf").read_bytes() == content
    (message,) = platform.messages
    (attachment,) = message.attachments
    assert (message.text, message.queue_id) == ("Document claim-form.pdf attached for review.", platform.queue_id)
    assert [(skill.skill_id, skill.level) for skill in message.skills] == [("support-document-review", 3)]
    assert message.metadata["source"] == "claims-share"
    digest = hashlib.sha256(content).hexdigest()
    assert (attachment.sha256, attachment.content_type) == (digest, "application/pdf")
    await until(lambda: daemon.events("file.sent"), "file.sent is logged")
    (claimed,) = daemon.events("file.claimed")
    (sent,) = daemon.events("file.sent")
    assert claimed["size"] == len(content)
    expected = {
        "inbox": "claims",
        "file": "claim-form.pdf",
        "size": len(content),
        "sha256": digest,
        "content_type": "application/pdf",
        "guest_id": message.guest_id,
        "attachment_id": attachment.attachment_id,
        "conversation_id": message.conversation_id,
        "attempts": 1,
        "moved_to": "sent/claim-form.pdf",
        "delivery_id": claimed["delivery_id"],
    }
    assert expected.items() <= sent.items()
    assert sent["duration_ms"] >= 0


@over_both
async def test_every_sample_document_is_sent_with_the_type_of_its_content(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path
) -> None:
    """Real documents of real programs arrive with the MIME type that an agent's desktop can open."""
    types = {
        ".pdf": "application/pdf",
        ".docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
        ".png": "image/png",
        ".jpg": "image/jpeg",
        ".csv": "text/csv",
        ".txt": "text/plain",
    }
    await daemon.start()
    samples = list(SAMPLES.iterdir())
    for sample in samples:
        (inbox / sample.name).write_bytes(sample.read_bytes())
    await daemon.all_filed(len(samples))
    arrived = {attached.file_name: attached.content_type for one in platform.messages for attached in one.attachments}
    assert arrived == {sample.name: types[sample.suffix] for sample in samples}


async def test_a_slow_writer_is_waited_for(daemon: RunningDaemon, platform: Sandbox, inbox: Path) -> None:
    """A file that is still open for writing is not taken, however quiet it is; what is sent is the whole of it."""
    await daemon.start()
    with (inbox / "slow.txt").open("wb") as writer:
        writer.write(b"first half, ")
        writer.flush()
        drop(inbox, "other.txt")
        await until(lambda: daemon.sent() == ["other.txt"], "another file was sent meanwhile")
        assert daemon.waiting() == ["slow.txt"]
        writer.write(b"second half")
    await daemon.all_filed(2)
    (message,) = platform.messages_for("slow.txt")
    assert message.attachments[0].sha256 == hashlib.sha256(b"first half, second half").hexdigest()


async def test_a_temporary_name_is_left_alone_until_it_is_renamed(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path
) -> None:
    """An editor or a browser writes under a temporary name; only the final name is taken, and at once."""
    await daemon.start()
    (inbox / "letter.txt.part").write_bytes(b"Dear Sir or Madam")
    await until(lambda: daemon.events("file.ignored"), "the temporary name is reported as ignored")
    assert platform.messages == []
    (inbox / "letter.txt.part").rename(inbox / "letter.txt")
    await daemon.all_filed(1)
    assert daemon.sent() == ["letter.txt"]


@over_both
async def test_the_same_name_again_is_another_delivery_and_overwrites_nothing(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path
) -> None:
    """Three drops of one name are three conversations and three files in `sent/`."""
    await daemon.start()
    for number in range(3):
        drop(inbox, "scan.pdf", b"%%PDF-1.4 number %d" % number)
        await daemon.all_filed(number + 1)
    assert daemon.sent() == ["scan (2).pdf", "scan (3).pdf", "scan.pdf"]
    assert len(platform.messages) == 3
    assert (inbox / "sent" / "scan (3).pdf").read_bytes() == b"%PDF-1.4 number 2"


@over_both
async def test_odd_names_are_sent_and_keep_their_bytes(daemon: RunningDaemon, platform: Sandbox, inbox: Path) -> None:
    """Whatever bytes a name has, the file goes, the log stays one JSON object a line, the name in `sent/` is the
    same.
    """
    await daemon.start()
    names = [b"line\nbreak.txt", b"r\xe9sum\xe9.txt", "حساب \U0001f4c4.txt".encode(), b"'\"<b>&.txt"]
    for name in names:
        with open(os.path.join(os.fsencode(inbox), name), "wb") as file:
            file.write(b"odd")
    await until(lambda: len(daemon.events("file.sent")) == len(names), "file.sent is logged")
    assert sorted(os.listdir(os.path.join(os.fsencode(inbox), b"sent"))) == sorted(names)
    assert len(platform.messages) == len(names)
    assert all(message.attachments[0].file_name.isprintable() for message in platform.messages)


@over_both
async def test_a_file_that_is_too_large_fails_before_the_first_request(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path, at: Callable[[str], Step]
) -> None:
    """The limit is known, so nobody is asked: `failed/`, with the reason in words beside it."""
    await daemon.start()
    with (inbox / "huge.pdf").open("wb") as file:
        file.truncate(10 * 1024 * 1024 + 1)
    await daemon.all_filed(1)
    assert daemon.failed() == ["huge.pdf"]
    assert "10,485,761 bytes" in daemon.reason("huge.pdf")
    assert platform.requests(at("upload")) == []
    await until(lambda: daemon.events("file.failed"), "file.failed is logged")
    (failed,) = daemon.events("file.failed")
    assert (failed["reason"], failed["step"], failed["moved_to"]) == ("too_large", "check", "failed/huge.pdf")


async def test_an_executable_in_a_pdf_name_is_seen_for_what_it_is(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path
) -> None:
    """The content decides the type, not the name; a type the inbox does not take goes to `failed/`."""
    daemon.configure(allow_types=["application/pdf", "image/*"])
    await daemon.start()
    drop(inbox, "invoice.pdf", Path("/bin/true").read_bytes())
    await daemon.all_filed(1)
    assert daemon.failed() == ["invoice.pdf"]
    assert "application/x-executable" in daemon.reason("invoice.pdf")
    assert platform.messages == []


@over_both
async def test_what_the_platform_refuses_of_one_file_fails_that_file_at_once(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path, at: Callable[[str], Step]
) -> None:
    """A refused type is the file's own fault: one attempt, no retry, the platform's words beside it."""
    platform.on(at("upload"), refuse(400, times=None, file_name="table.csv"))
    await daemon.start()
    drop(inbox, "table.csv", b"a,b\n1,2\n")
    drop(inbox, "letter.txt")
    await daemon.all_filed(2)
    assert (daemon.failed(), daemon.sent()) == (["table.csv"], ["letter.txt"])
    assert len([request for request in platform.requests(at("upload")) if request.file_name == "table.csv"]) == 1
    assert " 400" in daemon.reason("table.csv")


async def test_a_failed_file_that_is_dropped_in_again_is_sent_and_its_reason_goes(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path
) -> None:
    """Who mended the cause moves the file back into the inbox, and that is all there is to do."""
    platform.change(blocked_types=["text/csv"])
    await daemon.start()
    drop(inbox, "table.csv", b"a,b\n1,2\n")
    await daemon.all_filed(1)
    platform.change(blocked_types=[])
    (inbox / "failed" / "table.csv").rename(inbox / "table.csv")
    await until(lambda: daemon.sent() == ["table.csv"], "it is sent")
    await until(lambda: not list((inbox / "failed").iterdir()), "the reason file is gone")


@over_both
async def test_stopping_lets_what_is_under_way_end(daemon: RunningDaemon, platform: Sandbox, inbox: Path) -> None:
    """SIGTERM in the middle of an upload: the file is sent, nothing new begins, the exit code is 0."""
    platform.on("put", Fault(FaultKind.DELAY, delay_s=1.0))
    await daemon.start()
    drop(inbox, "one.txt")
    await until(lambda: platform.requests("put"), "the upload is under way")
    daemon.signal(signal.SIGTERM)
    drop(inbox, "two.txt")
    assert await daemon.ended() == 0
    assert (daemon.sent(), daemon.waiting()) == (["one.txt"], ["two.txt"])
    assert [record["event"] for record in daemon.log][-2:] == ["file.sent", "daemon.stopped"]


@over_both
async def test_a_hundred_files_at_once_all_go_once(daemon: RunningDaemon, platform: Sandbox, inbox: Path) -> None:
    """Many files, more than may be claimed at a time: each in `sent/`, each one message."""
    await daemon.start()
    for number in range(100):
        drop(inbox, f"{number:03}.txt", b"document %d" % number)
    await daemon.all_filed(100)
    assert len(daemon.sent()) == 100
    assert sorted(message.attachments[0].file_name for message in platform.messages) == daemon.sent()


async def test_each_inbox_has_its_own_queue_and_folders(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path, tmp_path: Path
) -> None:
    """Two inboxes: a file in one never shows up in the other's queue or folders."""
    other = tmp_path / "reports"
    other.mkdir()
    platform.change(queues=["queue-of-reports"])
    daemon.configure(more_inboxes=({"path": str(other), "settle": "100ms", "queue_id": "queue-of-reports"},))
    await daemon.start()
    drop(inbox, "a.txt")
    drop(other, "b.txt")
    await until(lambda: (other / "sent" / "b.txt").exists() and daemon.sent() == ["a.txt"], "both are sent")
    queues = {message.attachments[0].file_name: message.queue_id for message in platform.messages}
    assert queues == {"a.txt": platform.queue_id, "b.txt": "queue-of-reports"}


async def test_sub_folders_are_taken_only_when_asked_and_mirrored_in_sent(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path
) -> None:
    """`recursive: true` takes files below the inbox, and they keep their place below `sent/`."""
    daemon.configure(recursive=True)
    await daemon.start()
    (inbox / "2026" / "11").mkdir(parents=True)
    (inbox / "2026" / "11" / "scan.txt").write_bytes(b"deep")
    await until((inbox / "sent" / "2026" / "11" / "scan.txt").exists, "it is sent")
    assert len(platform.messages) == 1


async def test_sub_folders_are_left_alone_by_default(daemon: RunningDaemon, platform: Sandbox, inbox: Path) -> None:
    """Without `recursive` a folder in the inbox is none of our business."""
    await daemon.start()
    (inbox / "private").mkdir()
    (inbox / "private" / "diary.txt").write_bytes(b"dear diary")
    drop(inbox, "scan.txt")
    await until(lambda: daemon.sent() == ["scan.txt"], "the other file is sent")
    assert len(platform.messages) == 1


async def test_the_quota_is_kept_and_used(inbox: Path) -> None:
    """With 30 requests a second allowed, 120 go with hardly a 429: a busy machine may bunch two of them up."""
    async with Sandbox(SandboxSettings(requests_per_second=30)) as platform:
        daemon = RunningDaemon(platform, inbox)
        daemon.configure(platform={"requests_per_second": 30})
        try:
            for number in range(40):
                drop(inbox, f"{number}.txt")
            await daemon.start()
            await daemon.all_filed(40)
        finally:
            await daemon.end()
        asked = [request for step in ("guest", "upload", "conversation") for request in platform.requests(step)]
        assert sum(request.status == 429 for request in asked) <= 3
        times = sorted(request.monotonic_s for request in asked)
        assert times[-1] - times[0] >= (len(asked) - 30) / 30 * 0.95
        assert len(platform.messages) == 40


@over_both
async def test_a_429_pauses_everything_and_costs_no_file(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path, at: Callable[[str], Step]
) -> None:
    """What one step is told to wait keeps the whole account silent, then everything goes on."""
    await daemon.start_and_greet()
    platform.on(at("session"), refuse(429, retry_after=2))
    drop(inbox, "one.txt")
    await until(lambda: daemon.events("platform.paused"), "the pause is logged")
    drop(inbox, "two.txt")
    await daemon.all_filed(2)
    assert len(daemon.sent()) == 2
    (refused,) = (asked.monotonic_s for asked in platform.requests(at("session")) if asked.fault)
    later = [asked.monotonic_s for asked in platform.ledger.received if asked.monotonic_s > refused]
    assert min(later) - refused >= 2.0
    assert daemon.events("platform.resumed")


async def test_a_storage_that_refuses_unsigned_headers_is_learned_once(inbox: Path) -> None:
    """The tutorial's own header breaks a strict storage: it is left out, and from then on for the whole account."""
    async with Sandbox(SandboxSettings(requests_per_second=0, strict_storage=True)) as platform:
        daemon = RunningDaemon(platform, inbox)
        daemon.configure(delivery={"concurrency": 1})
        try:
            for number in range(5):
                drop(inbox, f"{number}.txt")
            await daemon.start()
            await daemon.all_filed(5)
        finally:
            await daemon.end()
        assert len(daemon.sent()) == 5
        assert [request.status for request in platform.requests("put")].count(403) == 1
        assert platform.ledger.leaks == []


async def test_25_mebibytes_are_streamed(inbox: Path) -> None:
    """A large file never stands in memory: the daemon's peak stays far below the file's size above its idle one."""
    async with Sandbox(SandboxSettings(requests_per_second=0, max_file_bytes=ENHANCED_LIMIT_BYTES)) as platform:
        daemon = RunningDaemon(platform, inbox)
        daemon.configure(platform={"max_file_size": "25MiB"})
        try:
            await daemon.start()
            drop(inbox, "small.txt")
            await until(lambda: daemon.sent() == ["small.txt"], "a first file has warmed it up")
            before = _peak_kib(daemon.pid)
            drop(inbox, "large.bin", os.urandom(25 * 1024 * 1024))
            await daemon.all_filed(2)
            assert daemon.sent() == ["large.bin", "small.txt"]
            assert _peak_kib(daemon.pid) - before < 12 * 1024
        finally:
            await daemon.end()


def _peak_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


@over_both
async def test_what_is_printed_is_json_lines_and_nothing_else(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path, at: Callable[[str], Step]
) -> None:
    """Standard output is one JSON object a line (the fixture parses each), also under faults; standard error is
    empty.
    """
    await daemon.start_and_greet()
    platform.on(at("session"), Fault(FaultKind.RESET))
    platform.on("put", Fault(FaultKind.RESET))
    drop(inbox, "one.txt")
    await daemon.all_filed(1)
    await daemon.stop()
    assert daemon.noise == []
    assert all({"timestamp", "level", "event"} <= record.keys() for record in daemon.log)
