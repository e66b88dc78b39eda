"""What systemd hears."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from attachd.sdnotify import Notifier


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Callable[[], str]]]:
    name = str(tmp_path / "notify") if request.param == "path" else f"@attachd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(name.replace("@", "\0", 1) if request.param == "abstract" else name)
        listening.settimeout(5)
        yield name, lambda: listening.recv(4096).decode()


def test_systemd_hears_each_turn_of_the_daemons_life(systemd):
    """One datagram for each message, on sockets with a path and abstract ones alike."""
    address, heard = systemd
    with Notifier({"NOTIFY_SOCKET": address}) as notifier:
        assert notifier.listening
        notifier.ready("2 inboxes")
        assert heard() == "READY=1\nSTATUS=2 inboxes"
        notifier.watchdog()
        assert heard() == "WATCHDOG=1"
        notifier.stopping()
        assert heard() == "STOPPING=1"


def test_a_reload_carries_the_monotonic_time(systemd):
    """systemd tells this reload's end from an earlier one's by the clock both share."""
    address, heard = systemd
    before = time.monotonic_ns() // 1000
    with Notifier({"NOTIFY_SOCKET": address}) as notifier:
        notifier.reloading()
    kind, clock = heard().split("\n")
    assert kind == "RELOADING=1"
    assert before <= int(clock.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000


def test_a_status_cannot_smuggle_in_another_message(systemd):
    """A line break in a status is a space, and bytes that are no UTF-8 stay readable."""
    address, heard = systemd
    with Notifier({"NOTIFY_SOCKET": address}) as notifier:
        notifier.status("sending a\nREADY=1\udcff")
    assert heard() == "STATUS=sending a READY=1\\udcff"


@pytest.mark.parametrize("address", ["", "relative", "vsock:2:1"])
def test_without_systemd_nothing_is_said(address):
    """No socket, no message, no error."""
    with Notifier({"NOTIFY_SOCKET": address} if address else {}) as notifier:
        assert not notifier.listening
        notifier.ready()


def test_a_systemd_that_went_away_is_no_error(tmp_path):
    """Nobody listens at the address: the daemon goes on."""
    with Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}) as notifier:
        notifier.ready()
        notifier.watchdog()


def test_a_line_that_was_hung_up_opens_again(systemd):
    """Closing is no end: a last word after it still arrives."""
    address, heard = systemd
    notifier = Notifier({"NOTIFY_SOCKET": address})
    notifier.ready()
    notifier.close()
    notifier.stopping()
    notifier.close()
    assert (heard(), heard()) == ("READY=1", "STOPPING=1")


@pytest.mark.parametrize(
    ("env", "interval_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "60000000"}, 30.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_fed_twice_in_its_time(env, interval_s):
    """Half the allowed time, and only when it is this process that is watched."""
    assert Notifier(env).watchdog_interval_s == interval_s
