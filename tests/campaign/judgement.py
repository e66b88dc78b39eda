"""What must hold when a world has come to rest, whatever struck it.

Pure but for reading the world's own folders. Each rule is a function that yields what broke it.
"""

import base64
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from attachd.sandbox import Message, Stage, step_of
from tests.campaign.platform import Platform
from tests.campaign.report import FAILED, LOST, OTHER, REPEATED, Tally, Violation
from tests.campaign.world import Drop, Found, World

_AGENT_SAW_IT = frozenset({"unknown_outcome", "changed_after_send", "attachment_dropped"})
"""Reasons in `failed/` that say themselves that a message may stand, or stands."""
_MOST_POSTS = 3
_SECRET = re.compile(rb"[0-9a-f]{64}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|eyJ[\w-]+\.[\w-]+\.[\w-]+", re.ASCII)
"""What signatures, a guest's token and a right to read look like: to look for each of thousands would take too long."""
_DOWNLOAD = re.compile(rb"/downloads/[^\s\"]*[?]token=[0-9A-Za-z]")


def judge(world: World, tally: Tally, seed: str) -> bool:
    """Check every rule on a world whose daemon has ended, count it in, and keep the folder if anything is wrong."""
    found = defaultdict(list)
    for file in world.files():
        found[file.sha256].append(file)
    violations = []
    for rule in (_in_one_place, _messages, _failures, _journal, _secrets, _processes):
        for kind, what, drop in rule(world, found):
            violations.append((kind, what, drop))
    kept = world.folder if violations else None
    for kind, what, drop in violations:
        tally.violations.append(Violation(tally.part, kind, what, _evidence(world, found, drop, seed), kept))
    _count(world, found, tally)
    if not violations:
        world.remove()
    return not violations


def only_what_was_dropped(platform: Platform, tally: Tally, seed: str) -> None:
    """No message and no object of anything that nobody dropped: empty, cut or mixed files."""
    strange = [m for m in platform.sandbox.messages for a in m.attachments if a.sha256 not in platform.dropped]
    for message in strange:
        tally.violations.append(
            Violation(
                tally.part, LOST, "a message carries content that nobody dropped", f"seed {seed}\n{_said(message)}"
            )
        )
    if platform.sandbox.ledger.leaks:
        leaks = str(platform.sandbox.ledger.leaks[:5])
        tally.violations.append(
            Violation(tally.part, OTHER, "a credential reached the storage", f"seed {seed}\n{leaks}")
        )


_Broken = Iterator[tuple[str, str, Drop | None]]
_Files = dict[str, list[Found]]


def _in_one_place(world: World, found: _Files) -> _Broken:
    """I1: each dropped file lies in exactly one place, and at rest that is `sent/` or `failed/`."""
    restless = [f for files in found.values() for f in files if f.place in ("inbox", "claimed")]
    if restless:
        names = ", ".join(str(f.path.relative_to(world.root)) for f in restless[:10])
        yield OTHER, f"{len(restless)} files did not come to rest: {names}", world.drops.get(restless[0].sha256)
    for drop in world.drops.values():
        places = found.get(drop.sha256, [])
        if not places and drop.sha256 not in world.excused:
            yield LOST, "a dropped file is nowhere", drop
        if len(places) > 1:
            yield LOST, f"a dropped file lies in {len(places)} places: {[str(f.path) for f in places]}", drop
    for digest, files in found.items():
        if digest not in world.drops:
            yield LOST, f"{files[0].path} has content that nobody dropped ({files[0].path.stat().st_size} bytes)", None


def _messages(world: World, found: _Files) -> _Broken:
    """I2, I3: every file in `sent/` was told with its own bytes, once, or again for a reason that was written down."""
    stored = world.platform.sandbox.ledger.stored
    for drop in world.drops.values():
        messages = world.platform.messages_of(drop.sha256)
        for message in messages:
            for attachment in message.attachments:
                if stored[attachment.attachment_id].sha256 != drop.sha256 or attachment.size_bytes != drop.size:
                    yield LOST, "the stored object differs from the file", drop
            if len(message.attachments) != 1:
                yield OTHER, f"a message with {len(message.attachments)} attachments", drop
        places = {file.place for file in found.get(drop.sha256, [])}
        if "sent" in places and not messages:
            yield LOST, "a file lies in sent/ and no agent got it", drop
        if world.policy == "hold" and len(messages) > 1:
            yield REPEATED, f"{len(messages)} messages under policy hold", drop
        for earlier, later in pairwise(messages):
            if world.can_ask or not _explained(world, drop, earlier, later):
                yield REPEATED, "a second message though the first was answered and no death fell in between", drop
        yield from _forgotten(world, drop, messages)


def _explained(world: World, drop: Drop, earlier: Message, later: Message) -> bool:
    """The answer was lost, or a death fell between the platform's acceptance and the journal's commit."""
    if earlier.answer_lost:
        return True
    first, last = world.run_of(earlier.wall_s), world.run_of(later.wall_s)
    return any(
        run.death is not None and run.death.memory.unfinished.get(drop.sha256) == "posting"
        for run in world.runs[first:last]
    )


def _forgotten(world: World, drop: Drop, messages: list[Message]) -> _Broken:
    """What the journal had as posted or sent when the daemon died is never posted again."""
    for run in world.runs:
        if run.death is None:
            continue
        memory = run.death.memory
        state = memory.unfinished.get(drop.sha256) or memory.finished.get(drop.sha256)
        if state in ("posted", "sent") and any(world.run_of(message.wall_s) > run.number for message in messages):
            yield REPEATED, f"posted again although the journal had it as {state} when run {run.number} ended", drop
            return


def _failures(world: World, found: _Files) -> _Broken:
    """I4, I5: what lies in `failed/` lies there for a reason of its own, and says so."""
    for digest, files in found.items():
        drop = world.drops.get(digest)
        if drop is None or files[0].place != "failed":
            continue
        reason, messages = files[0].reason, world.platform.messages_of(digest)
        if not reason and not world.reasons_may_be_missing:
            yield OTHER, "a file lies in failed/ without a reason beside it", drop
        if messages and reason not in _AGENT_SAW_IT:
            yield OTHER, f"failed as {reason}, and yet an agent got it", drop
        asks = world.platform.gateway == "webmessaging"
        if reason == "unknown_outcome":
            wanted = 1 if world.policy == "hold" or asks else _MOST_POSTS
            if _doubts(world, drop) < wanted:
                yield FAILED, f"failed as unknown_outcome with {_doubts(world, drop)} answers in doubt", drop
        # Where one can ask, a doubt that stays has to be what the strike demands.
        if (reason != "unknown_outcome" or asks) and not world.may_fail(drop, reason):
            yield FAILED, f"failed as {reason or 'nothing said'} through no fault of its own", drop


def _doubts(world: World, drop: Drop) -> int:
    """How often the outcome of a message of this file was left open: by a death, or by the answer."""
    deaths = sum(
        run.death is not None and run.death.memory.unfinished.get(drop.sha256) == "posting" for run in world.runs
    )
    asked = world.platform.sandbox.requests(step_of(Stage.CONVERSATION, world.platform.gateway))
    # Of a request that was reset before it was read nobody knows whose it was.
    open_answers = sum(r.file_name in (drop.name, None) and r.fault is not None for r in asked)
    return deaths + open_answers


def _journal(world: World, found: _Files) -> _Broken:
    """I11: the journal is sound after every death, and in the end has nothing unfinished and knows what was sent."""
    for run in world.runs:
        if run.death is not None and run.death.memory.integrity != "ok":
            yield OTHER, f"journal after run {run.number} ({run.death.how}): {run.death.memory.integrity}", None
    last = world.runs[-1].death if world.runs else None
    if last is None:
        return
    if last.memory.unfinished:
        yield OTHER, f"the journal ends with unfinished deliveries: {last.memory.unfinished}", None
    for digest, files in found.items():
        state = last.memory.finished.get(digest)
        if files[0].place == "sent" and state != "sent":
            yield OTHER, f"it lies in sent/ and the journal has it as {state}", world.drops.get(digest)
    for inbox in world.inboxes:
        for leftover in (inbox / ".attachd" / "claimed").glob("*"):
            yield OTHER, f"claimed/ is left with {leftover.name}", None


def _secrets(world: World, found: _Files) -> _Broken:
    """I9: no secret in a log, on standard error, in a reason, in the journal."""
    platform = world.platform
    secret = platform.sandbox.client_secret
    plain = {word for word in platform.secrets if not _SECRET.fullmatch(word.encode())}
    plain.add(base64.b64encode(f"{platform.sandbox.client_id}:{secret}".encode()).decode())
    for path in artefacts(world):
        content = path.read_bytes()
        hits = [word for word in plain if word.encode() in content]
        hits += [word for match in set(_SECRET.findall(content)) if (word := match.decode()) in platform.secrets]
        if hits:
            yield OTHER, f"{path} holds a secret: {hits[0][:6]}…", None
        if _DOWNLOAD.search(content):
            yield OTHER, f"{path} holds a download URL with its token", None


def artefacts(world: World) -> Iterator[Path]:
    """Everything attachd writes that is not a document."""
    yield from (path for path in world.logs.iterdir() if path.is_file())
    if world.state_dir.exists():
        yield from (path for path in world.state_dir.iterdir() if path.is_file() and path.name != "ballast")
    for inbox in world.inboxes:
        yield from (path for path in (inbox / "failed").glob("*.reason.txt"))
        yield from (path for path in (inbox / ".attachd").glob("*") if path.is_file() and path.name != "ballast")


def _processes(world: World, found: _Files) -> _Broken:
    """The log is JSON, no bug came through, standard error is silent, and who is asked to stop ends with 0."""
    for note in world.notes:
        yield OTHER, note, None
    for run in world.runs:
        noise = run.noise.read_text(errors="replace") if run.noise.exists() else ""
        if noise and not run.noise_expected:
            yield OTHER, f"run {run.number} said on standard error: {noise[:600]}", None
        if run.death is not None and run.death.how == "stop" and run.death.exit_code != 0:
            yield OTHER, f"run {run.number} ended with {run.death.exit_code} when asked to stop", None
        lines = run.log.read_bytes().split(b"\n") if run.log.exists() else []
        for line in lines[:-1]:  # the last one may be torn by a kill
            try:
                record = json.loads(line)
            except ValueError:
                yield OTHER, f"run {run.number} logged a line that is no JSON: {line[:200]!r}", None
                continue
            if record["event"] == "file.sent" and not record["moved_to"]:
                yield OTHER, f"run {run.number} does not know where it filed {record['file']}", None
            if record.get("level") == "critical" or record["event"] in ("error.uncaught", "log.failed"):
                yield OTHER, f"run {run.number}: {json.dumps(record)[:2500]}", None


# --- figures and evidence ---------------------------------------------------------------------------------------------


def _count(world: World, found: _Files, tally: Tally) -> None:
    counts = tally.counts
    counts["starts"] += len(world.runs)
    counts["files"] += len(world.drops) - len(world.excused)
    for drop in world.drops.values():
        messages = len(world.platform.messages_of(drop.sha256))
        counts["messages"] += messages
        counts["explained"] += max(0, messages - 1)
        for file in found.get(drop.sha256, [])[:1]:
            if file.place == "failed":
                counts["in doubt" if file.reason == "unknown_outcome" else "refused"] += 1
            elif file.place == "sent":
                counts["sent"] += 1


def _evidence(world: World, found: _Files, drop: Drop | None, seed: str) -> str:
    lines = [f"seed {seed}, policy {world.policy}, {len(world.runs)} runs"]
    words = ["daemon.stop", "error"]
    if drop is not None:
        messages = world.platform.messages_of(drop.sha256)
        lines.append(
            f"{drop.name!r} {drop.size} bytes, sha256 {drop.sha256}, dropped {drop.at:.3f}, durable {drop.durable}"
        )
        lines += [f"now: {file.place} {file.path} {file.reason}" for file in found.get(drop.sha256, [])]
        lines += [f"{_said(message)}, run {world.run_of(message.wall_s)}" for message in messages]
        words = [drop.sha256, *(message.text.rpartition(" ")[2] for message in messages)]
        for run in world.runs:
            memory = run.death.memory if run.death else None
            state = (memory.unfinished.get(drop.sha256) or memory.finished.get(drop.sha256)) if memory else None
            if state and run.death and memory:
                row = {
                    k: v for k, v in memory.rows[drop.sha256].items() if v is not None and k not in ("text", "version")
                }
                lines.append(
                    f"run {run.number} from {run.started_at:.3f} ended {run.death.at:.3f} by {run.death.how}: {row}"
                )
    for run in world.runs[-3:]:
        if run.death:
            code, how = run.death.exit_code, run.death.how
            lines.append(f"run {run.number} from {run.started_at:.3f} ended {run.death.at:.3f} by {how} ({code})")
        if run.calls and run.calls.struck:
            lines.append(f"run {run.number} was struck at {run.calls.struck[:3]}")
    lines += world.log_lines(*words, most=12) or world.log_lines("event", most=12)
    return "\n".join(lines)


def _said(message: Message) -> str:
    received = message.received
    return f"message {message.wall_s:.3f} {message.text!r} answer {received.answer} fault {received.fault}"


def world_folder(base: Path, part: str, number: int) -> Path:
    return base / f"{part}-{number:04}"
