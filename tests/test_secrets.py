"""Secrets never appear: not in a log line at level debug, an error text, a reason file, the journal, or on standard
error.
"""

import re
from pathlib import Path

import pytest

from attachd.sandbox import Fault, FaultKind, Sandbox, oauth, refuse

from .running import RunningDaemon, drop, until


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
    artefacts = {"log": str(daemon.log), "stderr": "".join(daemon.noise)}
    for root in (daemon.state_dir, inbox):
        artefacts |= {str(path): path.read_bytes().decode("latin-1") for path in root.rglob("*") if path.is_file()}
    assert len(tokens) >= 2
    for where, text in artefacts.items():
        for secret in (platform.client_secret, daemon_secret(daemon), *tokens):
            assert secret not in text, where
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
