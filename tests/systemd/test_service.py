"""attachd as a service: installed as README says, under a systemd that can be cut off from power."""

import json
import time
from pathlib import Path

import pytest

from .conftest import SECRET, SOURCE, Machine, config_for
from .probe import ALLOWED, FORBIDDEN

pytestmark = pytest.mark.timeout(240)
DROP_IN = "/etc/systemd/system/attachd.service.d/test.conf"


@pytest.fixture
def drop_in(machine):
    """Lines added to the unit for one test."""

    def add(lines: str) -> None:
        machine.write(DROP_IN, f"[Service]\n{lines}\n")
        machine.sh("systemctl daemon-reload; systemctl restart attachd")

    yield add
    machine.sh(f"rm -f {DROP_IN}; systemctl daemon-reload; systemctl restart attachd")


@pytest.fixture(autouse=True)
def healthy(machine: Machine):
    """Each test finds the service up and the platform answering."""
    machine.answering()
    machine.ready()


def test_installed_as_the_readme_says_it_starts_and_delivers(machine: Machine):
    """READY came after recovery; a member of the group drops a file, and it is sent."""
    assert machine.unit("Type") == "notify"
    assert machine.unit("StatusText").startswith("watching 1 inbox")
    assert machine.unit("User") == "attachd"
    assert [record["inboxes"] for record in machine.events("daemon.ready")] == [["claims"]]
    machine.run("runuser", "-u", "clerk", "--", "sh", "-c", "umask 007; echo %PDF-1.4 > /srv/attachd/claims/first.pdf")
    machine.sent("first.pdf")
    assert machine.messages() == 1
    assert machine.run("stat", "-c", "%U %a", "/srv/attachd/claims/sent").split()[0] == "attachd"


def test_only_the_service_can_read_the_secret(machine: Machine):
    """Not by file, not by credential, not in its environment, not in what systemd or the log tells."""
    for user in ("stranger", "clerk", "attachd"):
        for path in ("/etc/attachd/client_secret", "/run/credentials/attachd.service/client_secret"):
            found = machine.run("runuser", "-u", user, "--", "cat", path, check=False)
            assert (SECRET in found) == (user == "attachd" and path.startswith("/run")), (user, path)
    assert machine.run("stat", "-c", "%U %a", "/etc/attachd/client_secret").split() == ["root", "600"]
    assert int(machine.run("stat", "-c", "%a", "/run/credentials/attachd.service/client_secret"), 8) & 0o007 == 0
    environment = machine.run("cat", f"/proc/{machine.pid()}/environ")
    assert "CREDENTIALS_DIRECTORY=" in environment
    for place in (
        environment,
        machine.run("systemctl", "show", "attachd"),
        machine.run("journalctl", "-b", "-o", "json"),
    ):
        assert SECRET not in place
    assert SECRET not in machine.run("cat", f"/proc/{machine.pid()}/cmdline")


def test_the_journal_can_be_read_as_json(machine: Machine):
    """Every line of attachd is one JSON object in one journal entry; a name of a file cannot forge one."""
    machine.drop("journal.pdf")
    machine.sent("journal.pdf")
    machine.until(lambda: any(r["file"] == "journal.pdf" for r in machine.events("file.sent")), "file.sent is logged")
    lines = machine.run("journalctl", "-b", "-u", "attachd", "_TRANSPORT=stdout", "-o", "json").splitlines()
    assert lines
    for entry in map(json.loads, lines):
        assert entry["_SYSTEMD_UNIT"] == "attachd.service"
        assert entry["SYSLOG_IDENTIFIER"] == "attachd"
        record = json.loads(entry["MESSAGE"])
        assert {"timestamp", "level", "event"} <= record.keys()


def test_reload_takes_a_good_config_and_refuses_a_bad_one(machine: Machine):
    """`systemctl reload` never ends the process; a mistake in the file is said, and the old config goes on."""
    pid, good = machine.pid(), machine.read("/etc/attachd/config.yaml")
    try:
        machine.write("/etc/attachd/config.yaml", good.replace("settle: 500ms", "setle: 500ms"))
        machine.run("systemctl", "reload", "attachd")
        machine.until(lambda: machine.events("daemon.reload_refused"), "the mistake is said")
        assert "setle" in json.dumps(machine.events("daemon.reload_refused")[-1])
        machine.write("/etc/attachd/config.yaml", good.replace("settle: 500ms", "settle: 400ms"))
        machine.run("systemctl", "reload", "attachd")
        machine.until(lambda: machine.events("daemon.reloaded"), "the new config is taken")
    finally:
        machine.write("/etc/attachd/config.yaml", good)
    machine.drop("reloaded.pdf")
    machine.sent("reloaded.pdf")
    assert machine.pid() == pid


def test_a_rotated_secret_is_taken_by_a_restart(machine: Machine):
    """systemd copies the credential when the unit starts, so a new one needs a restart, which loses nothing."""
    rotated = f"{SECRET}-rotated"
    try:
        machine.write("/etc/attachd/client_secret", rotated)
        machine.platform("POST", "/_sandbox/settings", {"client_secret": rotated})
        machine.platform("POST", "/_sandbox/tokens/revoke", {})
        machine.run("systemctl", "restart", "attachd")
        machine.drop("rotated.pdf")
        machine.sent("rotated.pdf")
    finally:
        machine.write("/etc/attachd/client_secret", SECRET)
        machine.platform("POST", "/_sandbox/settings", {"client_secret": SECRET})
        machine.platform("POST", "/_sandbox/tokens/revoke", {})
        machine.run("systemctl", "restart", "attachd")


def test_killed_it_comes_back_and_goes_on(machine: Machine):
    """kill -9 in the middle of an upload: systemd starts it again, and the file is sent once."""
    before, restarts = machine.messages(), int(machine.unit("NRestarts"))
    machine.holding("put")
    machine.drop("killed.pdf")
    machine.until(lambda: "killed.pdf" not in machine.names("/srv/attachd/claims"), "it is claimed")
    machine.run("systemctl", "kill", "--signal=KILL", "attachd")
    machine.answering()
    machine.sent("killed.pdf")
    assert int(machine.unit("NRestarts")) == restarts + 1
    assert machine.messages() == before + 1


def test_a_hung_process_is_killed_by_the_watchdog(machine: Machine, drop_in):
    """Nothing answers for WatchdogSec: systemd ends it and starts another, which works."""
    drop_in("WatchdogSec=3\nRestartSec=1")
    pid = machine.pid()
    time.sleep(5)
    assert machine.pid() == pid, "an idle daemon feeds its watchdog"
    machine.run("systemctl", "kill", "--signal=STOP", "--kill-whom=main", "attachd")
    machine.until(lambda: machine.pid() not in (0, pid), "another process")
    assert "Watchdog timeout" in machine.run("journalctl", "-b", "-u", "attachd", "-o", "cat")
    machine.ready()
    machine.drop("after-the-hang.pdf")
    machine.sent("after-the-hang.pdf")


def test_under_load_it_stops_within_the_grace(machine: Machine):
    """Uploads that never end are given the 4 s of shutdown_grace; then it goes, cleanly, and nothing is lost."""
    machine.holding("put")
    names = [f"load-{number:02}.pdf" for number in range(40)]
    machine.sh("".join(f"echo %PDF-1.4 {name} > /srv/attachd/claims/{name}\n" for name in names))
    machine.until(lambda: len([n for n in machine.names("/srv/attachd/claims") if n in names]) < 40, "some are claimed")
    time.sleep(1)
    begun = time.monotonic()
    machine.run("systemctl", "stop", "attachd")
    took_s = time.monotonic() - begun
    assert 3 < took_s < 15
    assert machine.unit("Result") == "success"
    assert machine.events("daemon.stopping")[-1]["in_flight"] > 0
    assert machine.events("daemon.stopped")
    machine.answering()
    before = machine.messages()
    machine.run("systemctl", "start", "attachd")
    for name in names:
        machine.sent(name, within_s=30)
    assert machine.messages() == before + 40


def test_writes_outside_its_tree_are_refused(machine: Machine, drop_in):
    """A probe started by the unit itself, so under all its restrictions, can do what attachd needs and no more."""
    machine.write("/opt/attachd/probe.py", Path(__file__).with_name("probe.py").read_text())
    drop_in("ExecStartPost=/opt/attachd/bin/python -I /opt/attachd/probe.py")
    machine.ready()
    lines = machine.run("journalctl", "-b", "-u", "attachd", "-o", "cat").splitlines()
    (outcome,) = [json.loads(line)["probe"] for line in lines if line.startswith('{"probe"')]
    assert {name: outcome[name] for name in ALLOWED} == dict.fromkeys(ALLOWED, "done")
    assert [name for name in FORBIDDEN if outcome[name] == "done"] == []


def test_the_power_is_cut_while_a_file_is_under_way(machine: Machine):
    """The whole machine goes at once; after the boot all is started by itself, and the file is sent."""
    machine.holding("put")
    machine.drop("power.pdf")
    machine.until(lambda: "power.pdf" not in machine.names("/srv/attachd/claims"), "it is claimed")
    time.sleep(0.5)
    machine.cut_power()
    assert machine.names("/srv/attachd/claims/.attachd/claimed"), "it lies where it was"
    machine.boot()
    machine.ready()
    machine.sent("power.pdf")
    assert machine.messages() == 1
    assert machine.events("daemon.started")[0]["recovered"] == 1


def test_several_instances_do_not_meet(machine: Machine):
    """attachd@NAME: each has a config, a secret, a state folder and inboxes of its own, beside attachd.service."""
    machine.sh("cp systemd/attachd@.service /etc/systemd/system/; systemctl daemon-reload", folder=SOURCE)
    for name in ("north", "south"):
        machine.sh(
            f"install -d -m 0750 -g attachd /etc/attachd/{name}\n"
            f"install -m 0600 /dev/stdin /etc/attachd/{name}/client_secret\n"
            f"install -d -o attachd -g attachd -m 0755 /srv/attachd/{name}\n"
            f"install -d -o attachd -g attachd -m 2770 /srv/attachd/{name}/claims",
            stdin=SECRET,
        )
        text = config_for(f"/srv/attachd/{name}/claims", f"unix:/run/attachd-{name}/admin.sock")
        machine.write(f"/etc/attachd/{name}/config.yaml", text)
        machine.run("systemctl", "enable", "--now", f"attachd@{name}")
        machine.drop(f"{name}.pdf", f"/srv/attachd/{name}/claims")
    for name in ("north", "south"):
        machine.sent(f"{name}.pdf", f"/srv/attachd/{name}/claims")
        assert machine.unit("ActiveState", f"attachd@{name}") == "active"
        assert "journal.db" in " ".join(machine.names(f"/var/lib/attachd-{name}"))
    machine.run("systemctl", "stop", "attachd@north")
    machine.drop("south-2.pdf", "/srv/attachd/south/claims")
    machine.sent("south-2.pdf", "/srv/attachd/south/claims")
    machine.run("systemctl", "disable", "--now", "attachd@south")


@pytest.mark.parametrize("unit", ["attachd.service", "attachd@north.service"])
def test_systemd_understands_the_unit_and_finds_it_hardened(machine: Machine, unit):
    """No key it does not know, and at most 1.5 of 10 for the unit as it is loaded."""
    machine.run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", unit)
    machine.run("systemd-analyze", "security", "--threshold=15", "--no-pager", unit)
