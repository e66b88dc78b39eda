"""What only the guest protocol has: a history that can be asked, a content profile, events, close codes, origins."""

from pathlib import Path

import pytest

from attachd.sandbox import Fault, FaultKind, Sandbox, hang_up, refuse

from .running import RunningDaemon, drop
from .waiting import until

pytestmark = pytest.mark.parametrize("gateway", ["webmessaging"])

HOLD = {"on_unknown_outcome": "hold"}


async def test_a_message_bears_the_metadata_as_custom_attributes_and_the_deployment_routes_it(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path
) -> None:
    """The flow can read where the file comes from; the log names guest and attachment, and no conversation, which a
    guest never learns.
    """
    daemon.configure(metadata={"source": "claims-share", "office": "Zürich"}, message="Here is $name.")
    await daemon.start()
    drop(inbox, "claim.txt")
    await daemon.all_filed(1)
    (message,) = platform.messages
    assert (message.text, message.queue_id) == ("Here is claim.txt.", platform.deployment_id)
    assert message.metadata == {"source": "claims-share", "office": "Zürich"}
    await until(lambda: daemon.events("file.sent"), "file.sent is logged")
    (sent,) = daemon.events("file.sent")
    assert sent["attachment_id"] == message.attachments[0].attachment_id
    assert sent["guest_id"]
    assert (sent["conversation_id"], sent["possible_duplicate"]) == (None, False)


# --- a message in doubt -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["resend", "hold"])
async def test_a_kill_while_the_echo_is_out_is_resolved_by_asking(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path, policy: str
) -> None:
    """The history shows the message: the file is sent, once, whatever the operator chose for what cannot be asked."""
    daemon.configure(delivery={"on_unknown_outcome": policy})
    platform.on("message", Fault(FaultKind.HANG, after_processing=True))
    await daemon.start()
    drop(inbox, "claim.txt")
    await until(lambda: platform.messages, "the message stands")
    await daemon.kill()
    await daemon.start()
    await daemon.all_filed(1)
    assert daemon.sent() == ["claim.txt"]
    assert len(platform.messages) == 1
    assert len(platform.requests("history")) == 1


@pytest.mark.parametrize(
    "fault",
    [
        Fault(FaultKind.LOST_ANSWER),
        Fault(FaultKind.RESET_MID_ANSWER),
        Fault(FaultKind.WRONG_ATTACHMENT_ID),
        Fault(FaultKind.STATUS, status=5000, after_processing=True),
        Fault(FaultKind.STATUS, status=408, after_processing=True),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.status}",
)
async def test_a_lost_or_doubtful_echo_is_resolved_by_asking(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path, fault: Fault
) -> None:
    """Neither silence nor an error says that the message is not there: the history does, and it is never repeated."""
    daemon.configure(delivery=HOLD)
    platform.on("message", fault)
    await daemon.start()
    drop(inbox, "claim.txt")
    await daemon.all_filed(1)
    assert daemon.sent() == ["claim.txt"]
    assert len(platform.messages) == 1


async def test_what_the_history_does_not_show_is_looked_for_again_before_it_is_posted_again(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path
) -> None:
    """Three files, each once: never accepted (two looks, then posted again), accepted and shown late (the second look
    finds it), accepted with an echo that never comes on a connection that stands.
    """
    daemon.configure(delivery=HOLD)
    platform.change(history_delay_s=15.0)
    platform.on("message", Fault(FaultKind.RESET, file_name="never.txt"))
    platform.on("message", Fault(FaultKind.LOST_ANSWER, file_name="late.txt"))
    platform.on("message", Fault(FaultKind.HANG, file_name="silent.txt", after_processing=True))
    await daemon.start()
    names = ["late.txt", "never.txt", "silent.txt"]
    for name in names:
        drop(inbox, name)
    await daemon.all_filed(3, patience_s=70)
    assert daemon.sent() == names
    assert sorted(message.attachments[0].file_name for message in platform.messages) == names
    assert daemon.failed() == []
    written = [asked.monotonic_s for asked in platform.requests("message") if asked.file_name == "never.txt"]
    assert len(written) == 2
    assert written[1] - written[0] >= 30


@pytest.mark.parametrize(("policy", "messages"), [("resend", 2), ("hold", 1)])
async def test_where_the_history_may_not_be_read_the_operator_has_chosen(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path, policy: str, messages: int
) -> None:
    """`resend` posts the same again; `hold` leaves the file in `failed/` with the doubt in words."""
    daemon.configure(delivery={"on_unknown_outcome": policy})
    platform.on("message", Fault(FaultKind.LOST_ANSWER))
    platform.on("history", refuse(403, times=None))
    await daemon.start()
    drop(inbox, "claim.txt")
    await daemon.all_filed(1)
    assert len(platform.messages) == messages
    assert len({message.attachments for message in platform.messages}) == 1
    if policy == "hold":
        assert "may or may not have been sent" in daemon.reason("claim.txt")
    else:
        assert daemon.sent() == ["claim.txt"]


@pytest.mark.parametrize("policy", ["resend", "hold"])
@pytest.mark.parametrize("lost", ["session", "key"])
async def test_a_guest_who_is_forgotten_is_no_proof_of_anything(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path, policy: str, lost: str
) -> None:
    """Expired sessions, or a lost key: an empty history proves nothing, and the upload went with the guest. No empty
    message is sent, none twice; the file lies in `failed/` and the reason says that it may have been sent.
    """
    daemon.configure(delivery={"on_unknown_outcome": policy})
    platform.on("message", Fault(FaultKind.HANG, after_processing=True))
    await daemon.start()
    drop(inbox, "claim.txt")
    await until(lambda: platform.messages, "the message stands")
    await daemon.kill()
    if lost == "session":
        platform.expire_sessions()
    else:
        (daemon.state_dir / "guest.key").unlink()
    await daemon.start()
    await daemon.all_filed(1)
    assert len(platform.messages) == 1
    assert daemon.failed() == ["claim.txt"]
    assert "may or may not have been sent" in daemon.reason("claim.txt")
    drop(inbox, "next.txt")
    await until(lambda: daemon.sent() == ["next.txt"], "new files are sent")


async def test_an_outage_while_asking_is_waited_out(daemon: RunningDaemon, platform: Sandbox, inbox: Path) -> None:
    """The history answers 503, its page is cut, its right to read has ended: asked again, found, never posted again."""
    daemon.configure(delivery=HOLD)
    platform.on("message", Fault(FaultKind.LOST_ANSWER))
    platform.on("history", refuse(503))
    platform.on("history", Fault(FaultKind.RESET_MID_ANSWER))
    platform.on("history", refuse(401))
    await daemon.start()
    drop(inbox, "claim.txt")
    await daemon.all_filed(1)
    assert daemon.sent() == ["claim.txt"]
    assert len(platform.messages) == 1


# --- the connection ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [1000, 1001, 1011])
async def test_a_close_at_any_frame_costs_a_try_and_no_file(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path, code: int
) -> None:
    """The platform hangs up after the handshake, at each frame and instead of the echo: each file is sent, once."""
    await daemon.start_and_greet()
    for step in ("connect", "configure", "jwt"):
        platform.on(step, hang_up(code))
    for step in ("attachment", "event"):
        platform.on(step, hang_up(code, file_name=f"{step}.txt"))
    platform.on("message", hang_up(code, file_name="message.txt", after_processing=True))
    names = ["attachment.txt", "event.txt", "message.txt"]
    for name in names:
        drop(inbox, name)
    await daemon.all_filed(3)
    assert daemon.sent() == names
    assert sorted(message.attachments[0].file_name for message in platform.messages) == names
    struck = {asked.step for asked in platform.ledger.received if asked.fault}
    assert struck == {"connect", "configure", "jwt", "attachment", "event", "message"}


async def test_events_may_come_early_late_out_of_order_and_among_others(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path
) -> None:
    """The upload's event before the storage's own answer or a second after it, chatter around each answer, figures as
    doubles: each file goes at the first try.
    """
    platform.change(chatter=1.0, doubles=True, echo_custom_attributes=True, error_shape="message")
    platform.on("event", Fault(FaultKind.EARLY, file_name="early.txt"))
    platform.on("event", Fault(FaultKind.DELAY, file_name="late.txt", delay_s=1.0))
    platform.on("message", Fault(FaultKind.OVERTAKEN, file_name="overtaken.txt"))
    daemon.configure(metadata={"source": "claims-share"})
    await daemon.start()
    names = ["early.txt", "late.txt", "overtaken.txt", "plain.txt"]
    for name in names:
        drop(inbox, name)
    await daemon.all_filed(4)
    assert daemon.sent() == names
    assert len(platform.messages) == 4
    await until(lambda: len(daemon.events("file.sent")) == 4, "all are logged")
    assert {record["attempts"] for record in daemon.events("file.sent")} == {1}


async def test_an_upload_that_fails_leaves_no_empty_conversation_where_guests_must_join(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path
) -> None:
    """`autoStart`: the guest joins once, after the upload, immediately before the message."""
    platform.change(auto_start=True)
    platform.on("put", refuse(503))
    await daemon.start()
    drop(inbox, "claim.txt")
    await daemon.all_filed(1)
    assert daemon.sent() == ["claim.txt"]
    (join,), (message,), (event,) = (platform.requests(step) for step in ("join", "message", "event"))
    assert event.monotonic_s <= join.monotonic_s <= message.monotonic_s


@pytest.mark.parametrize(("step", "quiet_s"), [("configure", 8), ("attachment", 2)])
async def test_what_the_platform_says_of_rates_is_kept(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path, step: str, quiet_s: int
) -> None:
    """TooManyRequests at the greeting, or at an upload: nothing more is said for as long as it asks."""
    platform.on(step, refuse(4029, retry_after=quiet_s))
    await daemon.start_and_greet()
    if step == "configure":
        await until(lambda: daemon.events("platform.paused"), "the greeting was refused")
    drop(inbox, "claim.txt")
    await daemon.all_filed(1)
    assert daemon.sent() == ["claim.txt"]
    assert len(platform.messages) == 1
    (refused,) = (request.monotonic_s for request in platform.requests(step) if request.fault)
    later = [request.monotonic_s for request in platform.ledger.received if request.monotonic_s > refused]
    assert min(later) - refused >= quiet_s


async def test_limits_that_are_enforced_are_never_met(daemon: RunningDaemon, platform: Sandbox, inbox: Path) -> None:
    """New connections are the one limit all deliveries share: forty files at once, not one refusal."""
    await daemon.start()
    for number in range(40):
        drop(inbox, f"{number}.txt")
    await daemon.all_filed(40)
    assert len(platform.messages) == 40
    assert [request for request in platform.ledger.received if request.code == "TooManyRequestsErrorMessage"] == []
    assert [request for request in platform.requests("connect") if request.status != 101] == []


# --- what the deployment allows ---------------------------------------------------------------------------------------


async def test_what_the_profile_does_not_let_in_fails_before_a_byte_goes(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path
) -> None:
    """A blocked extension, a type and a size outside the profile: `failed/` with the reason, nothing announced."""
    platform.change(media_types=["text/*", "image/*"], max_file_size_kb=1)
    await daemon.start()
    drop(inbox, "letter.txt")
    drop(inbox, "setup.EXE", b"plain text all the same\n")
    drop(inbox, "claim.pdf", b"%PDF-1.4\n%%EOF\n")
    drop(inbox, "long.txt", b"x" * 1001)
    await daemon.all_filed(4)
    assert (daemon.sent(), daemon.failed()) == (["letter.txt"], ["claim.pdf", "long.txt", "setup.EXE"])
    assert "blocks files that end in .exe" in daemon.reason("setup.EXE")
    assert "does not take application/pdf" in daemon.reason("claim.pdf")
    assert "at most 1000 bytes" in daemon.reason("long.txt")
    assert {request.file_name for request in platform.requests("attachment")} == {"letter.txt"}


@pytest.mark.parametrize(
    ("step", "code", "reason"),
    [
        ("attachment", 4001, "type_not_allowed"),
        ("attachment", 4002, "too_large"),
        ("event", 4003, "refused"),
    ],
)
async def test_what_the_platform_finds_wrong_with_one_file_fails_that_file_alone(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path, step: str, code: int, reason: str
) -> None:
    """GenerateUrlError and UploadFailureEvent blame the file: one try, the platform's words beside it."""
    platform.on(step, Fault(FaultKind.STATUS, status=code, body="we do not like it", file_name="bad.txt"))
    await daemon.start()
    drop(inbox, "bad.txt")
    drop(inbox, "good.txt")
    await daemon.all_filed(2)
    assert (daemon.failed(), daemon.sent()) == (["bad.txt"], ["good.txt"])
    assert "we do not like it" in daemon.reason("bad.txt")
    await until(lambda: daemon.events("file.failed"), "file.failed is logged")
    assert daemon.events("file.failed")[0]["reason"] == reason


async def test_a_profile_that_drops_files_pauses_the_inbox_until_it_is_mended(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path
) -> None:
    """The agent got one message without its file, and gets no second one; no file fails; all go once the profile
    changes.
    """
    platform.change(dropped_types=["text/plain"])
    await daemon.start()
    drop(inbox, "one.txt")
    await until(lambda: daemon.events("inbox.paused"), "the inbox is paused")
    assert daemon.events("inbox.paused")[0]["reason"] == "attachment_dropped"
    drop(inbox, "two.txt")
    await until(lambda: len(platform.requests("configure")) >= 3, "a probe has looked at the profile again")
    assert [len(message.dropped) for message in platform.messages] == [1]
    assert daemon.failed() == []
    platform.change(dropped_types=[], media_types=["text/plain", "application/pdf"])
    await daemon.all_filed(2, patience_s=60)
    assert daemon.sent() == ["one.txt", "two.txt"]
    assert [len(message.attachments) for message in platform.messages] == [0, 1, 1]
    assert daemon.events("inbox.resumed")


@pytest.mark.parametrize("patch", [{"enable_attachments": "no"}, {"media_types": []}], ids=["switched off", "profile"])
async def test_a_deployment_that_takes_no_attachments_costs_no_file(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path, patch: dict[str, object]
) -> None:
    """Said before the first file, no message opened; it goes on by itself once attachments are enabled."""
    healthy = {name: getattr(platform.settings, name) for name in patch}
    platform.change(**patch)
    await daemon.start()
    await until(lambda: daemon.events("platform.paused"), "the pause is logged")
    assert daemon.events("platform.paused")[0]["reason"] == "attachments_not_granted"
    drop(inbox, "claim.txt")
    platform.change(**healthy)
    await daemon.all_filed(1)
    assert daemon.sent() == ["claim.txt"]


async def test_an_inactive_deployment_pauses_everything_and_fails_nothing(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path
) -> None:
    """The reason is said before the first file; once the deployment is active again everything is sent."""
    platform.change(deployment_status="Inactive")
    await daemon.start()
    drop(inbox, "claim.txt")
    await until(lambda: daemon.events("platform.paused"), "the pause is logged")
    paused = daemon.events("platform.paused")[0]
    assert paused["reason"] == "deployment_refused"
    assert "Inactive" in paused["detail"]
    platform.change(deployment_status="Active")
    await daemon.all_filed(1)
    assert daemon.sent() == ["claim.txt"]
    assert daemon.events("platform.resumed")


async def test_a_refused_handshake_pauses_everything_and_fails_nothing(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path
) -> None:
    """Domains are restricted in the middle of the work: paused with the advice, and it goes on once ours is one."""
    await daemon.start_and_greet()
    platform.change(allowed_origins=["https://elsewhere.example"])
    for number in range(5):
        drop(inbox, f"{number}.txt")
    await until(lambda: daemon.events("platform.paused"), "the pause is logged")
    paused = daemon.events("platform.paused")[0]
    assert paused["reason"] == "deployment_refused"
    assert "platform.origin" in paused["detail"]
    platform.change(allowed_origins=[platform.messaging_url.replace("ws://", "https://")])
    await daemon.all_filed(5)
    assert len(daemon.sent()) == 5


async def test_the_configured_origin_is_the_one_that_is_said(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path
) -> None:
    """A deployment that lets only one domain in takes the file."""
    platform.change(allowed_origins=["https://www.example.com"])
    daemon.configure(platform={"origin": "https://www.example.com"})
    await daemon.start()
    drop(inbox, "claim.txt")
    await daemon.all_filed(1)
    assert daemon.sent() == ["claim.txt"]
    assert daemon.events("platform.paused") == []


async def test_sessions_that_end_under_way_are_begun_anew(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path
) -> None:
    """Expired at the upload, disconnected by an agent before the message: tried again as another guest, one message."""
    platform.on("attachment", Fault(FaultKind.SESSION_EXPIRED))
    platform.on("event", Fault(FaultKind.DELAY, delay_s=1.0))
    await daemon.start()
    drop(inbox, "claim.txt")
    await until(lambda: platform.requests("put"), "the upload is under way")
    platform.disconnect_sessions()
    await daemon.all_filed(1)
    assert daemon.sent() == ["claim.txt"]
    assert len(platform.messages) == 1
