"""Starts daemons quickly: a process that has imported attachd and does nothing but fork, once for each start.

Only the imports are saved: the child closes all it inherited, makes its own standard streams and runs attachd's own
command entry point with a config file, as the console script does. Both sides of the channel stand here.
"""

import asyncio
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import attachd.cli
import attachd.daemon.service  # the command would import it at every start
from tests.campaign import intercept

REPOSITORY = Path(__file__).parents[2]
_CHANNEL = 200  # out of the way of everything a child opens
_PR_SET_PDEATHSIG = 1


@dataclass(eq=False)
class Child:
    """A daemon that was started. `exit_code` is negative for a signal, None while it runs."""

    pid: int
    ended: "asyncio.Future[int]"
    listener: int | None = None
    """Where its intercepted system calls arrive: a descriptor number in the child."""

    @property
    def running(self) -> bool:
        return not self.ended.done()

    @property
    def exit_code(self) -> int | None:
        return self.ended.result() if self.ended.done() else None

    def signal(self, which: signal.Signals) -> None:
        if self.running:
            with suppress(ProcessLookupError):  # it has just ended, and nobody has told us yet
                os.kill(self.pid, which)


class Nursery:
    """`async with Nursery() as nursery`: children that still run at the end are killed."""

    async def __aenter__(self) -> Self:
        self._children: dict[int, Child] = {}
        self._asked: dict[int, asyncio.Future[Child]] = {}
        self._orders = 0
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        here.setblocking(False)
        self._channel = here
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.campaign.nursery", str(there.fileno())],
            cwd=REPOSITORY,
            pass_fds=[there.fileno()],
            stdin=subprocess.DEVNULL,
        )
        there.close()
        self._reader = asyncio.create_task(self._read(), name="nursery")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for child in self._children.values():
            child.signal(signal.SIGKILL)
        self._reader.cancel()
        self._channel.close()  # it ends when nobody is left to ask it
        await asyncio.to_thread(self._process.wait)

    async def start(self, config: Path, log: Path, noise: Path, *, intercepted: bool = False) -> Child:
        """Fork a daemon; its standard output and error are appended to the two files."""
        self._orders += 1
        order = {"order": self._orders, "config": str(config), "log": str(log), "noise": str(noise)}
        born = self._asked[self._orders] = asyncio.get_running_loop().create_future()
        await asyncio.get_running_loop().sock_sendall(
            self._channel, json.dumps(order | {"intercepted": intercepted}).encode()
        )
        return await born

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            told = await loop.sock_recv(self._channel, 4096)
            if not told:
                return
            said: dict[str, Any] = json.loads(told)
            pid = said["pid"]
            if "code" in said:
                child = self._children.pop(pid, None)
                if child is not None:
                    child.ended.set_result(said["code"])
                continue
            child = self._children[pid] = Child(pid, loop.create_future(), said.get("listener"))
            self._asked.pop(said["order"]).set_result(child)


# --- the other side ---------------------------------------------------------------------------------------------------


def serve(channel: socket.socket) -> None:
    """Fork for every order, tell of every end; return when the campaign is gone."""
    assert threading.active_count() == 1, "a fork would leave threads behind"
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready, _, _ = select.select([channel, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
        if channel in ready:
            told = channel.recv(4096)
            if not told:
                return
            _fork(channel, json.loads(told))
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            channel.send(json.dumps({"pid": pid, "code": os.waitstatus_to_exitcode(status)}).encode())


def _fork(channel: socket.socket, order: dict[str, Any]) -> None:
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            _be_a_daemon(channel, order, parent)
        except BaseException:  # noqa: BLE001  nothing of the nursery may go on in a child
            traceback.print_exc()
        finally:
            os._exit(70)
    if not order["intercepted"]:  # else the child says it itself, with its listener
        channel.send(json.dumps({"order": order["order"], "pid": pid}).encode())


def _be_a_daemon(channel: socket.socket, order: dict[str, Any], parent: int) -> NoReturn:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(70)
    os.setsid()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(channel.fileno(), _CHANNEL)
    os.closerange(3, _CHANNEL)
    for place, path in ((1, order["log"]), (2, order["noise"])):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(opened, place)
        os.close(opened)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    os.chdir("/")
    if order["intercepted"]:
        listener = os.dup(0)  # the number that the next descriptor will have
        os.close(listener)
        os.write(_CHANNEL, json.dumps({"order": order["order"], "pid": os.getpid(), "listener": listener}).encode())
    os.close(_CHANNEL)
    if order["intercepted"]:
        assert intercept.install() == listener
    sys.argv = ["attachd", "run", "-c", order["config"]]
    code: object = 1
    try:
        attachd.cli.main()
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001  as the interpreter does at its end
        sys.excepthook(*sys.exc_info())
    threading._shutdown()  # type: ignore[attr-defined]  # the interpreter joins threads at its end, too
    sys.stdout.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
