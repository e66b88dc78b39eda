"""Secrets never appear: not in a log line at level debug, an error text, a reason file, the journal, or on standard
error.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from attachd.sandbox import Fault, FaultKind, Sandbox, oauth, refuse
from attachd.sandbox.webmessaging import connection, history

from .running import RunningDaemon, drop
from .waiting import until


async def test_no_artefact_of_a_faulted_run_holds_a_secret(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step fails with an answer that quotes secrets, at level debug; then all that attachd wrote is searched."""
    tokens = _record_tokens(monkeypatch)
    echo = f"no access for {platform.client_secret} to https://storage.example/x?X-Amz-Signature=abc123&token=xyz"
    for step in ("token", "guest", "upload", "put", "conversation"):
        platform.on(step, Fault(FaultKind.STATUS, status=500, body=echo, times=1))
    platform.on("put", Fault(FaultKind.RESET, times=1))
    platform.on("guest", Fault(FaultKind.HTML, times=1))
    platform.on("upload", Fault(FaultKind.EXPIRED_URL, times=1))
    platform.on("upload", refuse(400, file_name="refused.txt"))
    daemon.configure(log={"level": "debug"})
    await daemon.start()
    for name in ("one.txt", "two.txt", "three.txt", "refused.txt"):
        drop(inbox, name)
    await daemon.all_filed(4, patience_s=100)
    platform.revoke_tokens()
    drop(inbox, "four.txt")
    await daemon.all_filed(5)
    platform.change(client_secret="another secret")
    platform.revoke_tokens()
    drop(inbox, "five.txt")
    await until(lambda: _mentions(daemon, "credentials_refused"), "the wrong secret is noticed")
    await daemon.kill()
    assert len(tokens) >= 2
    for where, text in _artefacts(daemon):
        for secret in (platform.client_secret, daemon_secret(daemon), *tokens):
            assert secret not in text, where
        _demand_no_place(where, text)


@pytest.mark.parametrize("gateway", ["webmessaging"])
async def test_no_artefact_of_a_faulted_run_holds_a_guests_secret(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every frame is refused with words that quote the guest's token, messages are lost and asked for, at level
    debug; then all that attachd wrote is searched for tokens, rights to read and places in the storage.
    """
    rights = _record_rights(monkeypatch)
    _quote_tokens(monkeypatch)
    daemon.configure(log={"level": "debug"}, delivery={"max_attempts": 3})
    await daemon.start_and_greet()
    echo = "no access to https://storage.example/x?X-Amz-Signature=abc123&token=xyz"
    for step in ("deployment", "connect", "configure", "attachment", "put", "event", "message", "history"):
        platform.on(step, Fault(FaultKind.STATUS, status=500, body=echo, after_processing=step == "message"))
    for step in ("configure", "attachment", "event", "message", "jwt"):
        platform.on(step, Fault(FaultKind.LOST_ANSWER))
    platform.on("attachment", Fault(FaultKind.EXPIRED_URL))
    platform.on("attachment", Fault(FaultKind.STATUS, status=4001, body=echo, file_name="refused.txt"))
    for name in ("one.txt", "two.txt", "three.txt", "refused.txt"):
        drop(inbox, name)
    await daemon.all_filed(4, patience_s=100)
    assert daemon.failed() == ["refused.txt"]
    platform.on("message", Fault(FaultKind.HANG, after_processing=True))
    drop(inbox, "four.txt")
    await until(lambda: platform.messages_for("four.txt"), "a message is in doubt")
    await daemon.kill()
    guests = {guest.token for guest in platform.ledger.guests.values() if guest.token}
    assert len(guests) >= 5
    assert rights
    for where, text in _artefacts(daemon):
        for secret in (*guests, *rights):
            assert secret not in text, where
        _demand_no_place(where, text)


def _artefacts(daemon: RunningDaemon) -> Iterator[tuple[str, str]]:
    """All that attachd wrote: where, and what."""
    yield "log", str(daemon.log)
    yield "stderr", "".join(daemon.noise)
    for root in (daemon.state_dir, daemon.inbox):
        for path in root.rglob("*"):
            if path.is_file():
                yield str(path), path.read_bytes().decode("latin-1")


def _demand_no_place(where: str, text: str) -> None:
    assert not re.search(r"X-Amz-(Signature|Credential)=", text), where
    assert "token=" not in text, where


def daemon_secret(daemon: RunningDaemon) -> str:
    match = re.search(r"client_secret: (\S+)", daemon.config_file.read_text())
    assert match
    return match[1]


def _mentions(daemon: RunningDaemon, word: str) -> bool:
    return any(record.get("reason") == word for record in daemon.log)


def _record_tokens(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    tokens: list[str] = []
    issue = oauth.Login._issued

    def recording(login: oauth.Login, life_s: float) -> str:
        tokens.append(issue(login, life_s))
        return tokens[-1]

    monkeypatch.setattr(oauth.Login, "_issued", recording)
    return tokens


def _record_rights(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    rights: list[str] = []
    issue = history.History.issue

    def recording(self: history.History, *given: Any) -> tuple[str, float]:
        issued = issue(self, *given)
        rights.append(issued[0])
        return issued

    monkeypatch.setattr(history.History, "issue", recording)
    return rights


def _quote_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    demanded = connection._demanded

    def quoting(fault: Fault, content: Any, *given: Any) -> Any:
        declined = demanded(fault, content, *given)
        declined.message += f" for {content['token']}"
        return declined

    monkeypatch.setattr(connection, "_demanded", quoting)
