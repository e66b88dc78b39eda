"""A box with attachd installed in it as README says, and a platform beside it."""

import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from .box import PROJECT, WHEELS, Box, missing
from .readme import service_commands

SOURCE = "/root/attachd"
SECRET = secrets.token_urlsafe(24)
_NOT_SOURCE = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "tests", "benchmarks")
_PLATFORM_UNIT = """[Service]
ExecStart=/opt/attachd/bin/python -I /root/platform_service.py
Restart=always
RestartSec=1
[Install]
WantedBy=multi-user.target
"""
_CONFIG = """platform:
  environment: sandbox.invalid
  login_url: http://127.0.0.1:8700
  api_url: http://127.0.0.1:8700
  client_id: 5a4d0b0c-6e0f-4b57-9d0a-2f6c1e7b8a90
  queue_id: 0f2b7c1e-93d4-4c5e-8a3b-6d1f0e9c7a52
delivery:
  shutdown_grace: 4s
inboxes:
  - path: {inbox}
    settle: 500ms
admin:
  listen: {admin}
"""


def config_for(inbox: str, admin: str = "127.0.0.1:8722") -> str:
    """A config that leads to the platform in the box, and has no secret in it."""
    return _CONFIG.format(inbox=inbox, admin=admin)


class Machine(Box):
    """A box with attachd as a service and a platform; the words in which the tests speak of it."""

    def install(self) -> None:
        """Type what README says, in a clone of the repository; edit the config where it says so."""
        shutil.copytree(PROJECT, self.root / SOURCE[1:], ignore=_NOT_SOURCE)
        offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(WHEELS), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        for command in service_commands():
            if command.startswith("journalctl"):
                continue  # for people: it follows the log until Ctrl-C
            if command.startswith("systemctl enable"):
                self.write("/etc/attachd/config.yaml", config_for("/srv/attachd/claims"))
                self._start_platform()
            self.sh(command, folder=SOURCE, stdin=f"{SECRET}\n" if "/dev/stdin" in command else "", env=offline)
        self.sh("useradd -M clerk && usermod -aG attachd clerk && useradd -M stranger")

    def _start_platform(self) -> None:
        self.write("/root/platform_service.py", Path(__file__).with_name("platform_service.py").read_text())
        self.write("/root/platform-secret", SECRET, mode=0o600)
        self.write("/etc/systemd/system/platform.service", _PLATFORM_UNIT)
        self.sh("systemctl daemon-reload; systemctl enable --now platform")
        self.until(lambda: self.platform("GET", "/_sandbox/ledger?only=counts", check=False), "the platform is up")

    def platform(self, method: str, path: str, body: Mapping[str, object] | None = None, *, check: bool = True) -> str:
        """Say something to the platform's control, or ask it; empty when it does not answer and need not."""
        script = (
            "import sys, urllib.request as r;"
            "q = r.Request('http://127.0.0.1:8700' + sys.argv[2], sys.stdin.buffer.read() or None, method=sys.argv[1]);"
            "q.add_header('Content-Type', 'application/json'); print(r.urlopen(q, timeout=10).read().decode())"
        )
        text = json.dumps(body) if body is not None else ""
        return self.run("python3", "-I", "-c", script, method, path, stdin=text, check=check).strip()

    def holding(self, step: str) -> None:
        """From now on the platform never answers this step, until `answering`."""
        self.platform("POST", "/_sandbox/faults", {"step": step, "kind": "hang", "times": None})

    def answering(self) -> None:
        """It answers again."""
        self.platform("DELETE", "/_sandbox/faults")

    def messages(self) -> int:
        """How many messages the platform has taken since it was started."""
        return len(json.loads(self.platform("GET", "/_sandbox/ledger?only=messages"))["messages"])

    def drop(self, name: str, inbox: str = "/srv/attachd/claims") -> None:
        """A colleague puts a document into the inbox, as one who may."""
        self.sh(
            f'umask 002; cat > "{inbox}/.{name}"; mv "{inbox}/.{name}" "{inbox}/{name}"',
            stdin=f"%PDF-1.4 {name} {secrets.token_hex(8)}",
        )

    def sent(self, name: str, inbox: str = "/srv/attachd/claims", within_s: float = 40) -> None:
        """Wait until a file lies in sent/."""
        self.until(lambda: name in self.names(f"{inbox}/sent"), f"{name} is sent", within_s)

    def unit(self, key: str, unit: str = "attachd") -> str:
        """A property of the service."""
        return self.run("systemctl", "show", unit, "-p", key, "--value").strip()

    def pid(self, unit: str = "attachd") -> int:
        """The daemon's process id."""
        return int(self.unit("MainPID", unit))

    def ready(self, unit: str = "attachd", within_s: float = 40) -> None:
        """Wait until systemd has heard READY."""
        self.until(lambda: self.unit("ActiveState", unit) == "active", f"{unit} is up", within_s)

    def events(self, event: str, unit: str = "attachd") -> list[dict[str, Any]]:
        """What attachd logged under a name since the box was switched on, as journald gives it back."""
        lines = self.run("journalctl", "-b", "-u", unit, "_TRANSPORT=stdout", "-o", "cat").splitlines()
        records = [json.loads(line) for line in lines if line.startswith("{")]
        return [record for record in records if record.get("event") == event]

    def until(self, holds: Callable[[], object], what: str, within_s: float = 40) -> None:
        """Wait for something; if it does not come, say what and show the log."""
        deadline = time.monotonic() + within_s
        while not holds():
            if time.monotonic() > deadline:
                log = self.run("journalctl", "-b", "-n", "40", "--no-pager", "-o", "short-precise")
                raise AssertionError(f"not within {within_s:g} s: {what}\n{log}")
            time.sleep(0.1)


@pytest.fixture(scope="package")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """The box, with attachd running in it."""
    if not os.environ.get("ATTACHD_TEST_SYSTEMD"):
        pytest.skip("takes minutes; `make test-systemd` runs it")
    if reason := missing():
        pytest.skip(reason)
    machine = Machine(tmp_path_factory.mktemp("box") / "machine")
    try:
        machine.boot()
        machine.install()
        yield machine
    finally:
        machine.destroy()
