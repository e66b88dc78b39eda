"""A machine with a systemd of its own: a container that is booted, cut off from power, and booted again.

Needs root, systemd-nspawn and mmdebstrap, and no systemd on the host. Everything is mounted in a mount namespace that
a process of ours holds open. When the tests are killed, that process goes, the machine shuts down, and nothing is left
on the host but the cache and an empty cgroup.
"""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "attachd-box"
PACKAGES = ("systemd", "systemd-sysv", "dbus", "python3", "python3-venv", "ca-certificates", "procps")
WHEELS = Path("/wheels")
_SUITE, _PYTHON = "bookworm", "3.11"
_NEEDED = {"systemd-nspawn": "systemd-container", "mmdebstrap": "mmdebstrap", "unshare": "util-linux"}
_UNWANTED = ("apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer", "dpkg-db-backup.timer")


def missing() -> str:
    """Why there can be no box here, in words; empty when there can."""
    if os.geteuid() != 0:
        return "needs root, for a container with a systemd of its own"
    lacking = [f"{program} (Debian package {package})" for program, package in _NEEDED.items() if not which(program)]
    return f"needs {' and '.join(lacking)}" if lacking else ""


def which(program: str) -> str | None:
    """Where a program of the host is, /usr/sbin included."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def base() -> Path:
    """The tree every box starts from, made once: a minimal Debian with systemd and Python."""
    key = hashlib.sha256(" ".join((_SUITE, *PACKAGES)).encode()).hexdigest()[:12]
    tree = CACHE / f"{_SUITE}-{key}"
    if tree.is_dir():
        return tree
    unfinished = CACHE / f"{tree.name}.{os.getpid()}"
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
    command += [f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("doc", "man", "locale")]
    try:
        subprocess.run([*command, _SUITE, str(unfinished)], check=True, stdin=subprocess.DEVNULL)
        (unfinished / "etc/machine-id").write_text("")
        (unfinished / "etc/hostname").write_text("box\n")
        (unfinished / "var/log/journal").mkdir(exist_ok=True)
        for unit in _UNWANTED:
            (unfinished / "etc/systemd/system" / unit).symlink_to("/dev/null")
        unfinished.rename(tree)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return tree


def wheels() -> Path:
    """All that `pip install .` needs, fetched once: the box has no network."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    folder = CACHE / f"wheels-{hashlib.sha256(' '.join((_PYTHON, *wanted)).encode()).hexdigest()[:12]}"
    if folder.is_dir():
        return folder
    unfinished = CACHE / f"{folder.name}.{os.getpid()}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "-d", str(unfinished)]
    try:
        subprocess.run([*command, f"--python-version={_PYTHON}", "--only-binary=:all:", *wanted], check=True)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


class Box:
    """One machine. `boot` and `cut_power` may alternate; `destroy` leaves nothing."""

    def __init__(self, folder: Path) -> None:
        self._name = f"attachd-box-{os.getpid()}"
        self._mounts = folder
        self._console = folder.with_suffix(".console")
        self._machine: subprocess.Popen[bytes] | None = None
        self._leader = 0
        folder.mkdir(parents=True)
        made = folder / "made"
        layers = f"lowerdir={base()},upperdir={made}/upper,workdir={made}/work"
        script = (
            f"mkdir {made} && mount -t tmpfs -o mode=755 box {made} && mkdir {made}/upper {made}/work {made}/root"
            f" && mount -t overlay box -o {layers} {made}/root"
            # As a host with systemd has it, whatever this host has.
            " && { umount -R /sys/fs/cgroup 2>/dev/null || true; } && mount -t cgroup2 cgroup2 /sys/fs/cgroup"
            " && mkdir -p /run/systemd/nspawn && mount -t tmpfs box /run/systemd/nspawn"
            " && echo mounted && exec sleep inf"
        )
        self._keeper = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private", "sh", "-c", script],
            stdout=subprocess.PIPE,
        )
        assert self._keeper.stdout is not None
        if self._keeper.stdout.readline() != b"mounted\n":
            self.destroy()
            raise RuntimeError("the box's root could not be mounted")
        self.root = Path(f"/proc/{self._keeper.pid}/root{made}/root")
        """The machine's root, as seen from here; there while it is off, too."""

    def boot(self) -> None:
        """Switch it on and wait until its systemd has started all it has."""
        inner = f"{self._mounts}/made/root"
        # All capabilities and the system calls nspawn would filter, so that units meet a kernel as on a bare machine.
        machine = ["systemd-nspawn", "--directory", inner, "--boot", "--register=no", "--keep-unit", "--console=pipe"]
        machine += [
            f"--machine={self._name}",
            "--private-network",
            "--resolv-conf=off",
            "--timezone=off",
            "--capability=all",
        ]
        machine += ["--link-journal=no", "--system-call-filter=bpf keyctl add_key request_key @memlock"]
        machine += [f"--bind-ro={wheels()}:{WHEELS}", "systemd.log_target=journal"]
        cgroup = f"/sys/fs/cgroup/{self._name}"
        # TERM, which shuts the machine down: a killed nspawn would leave it running without anybody.
        enter = ["setpriv", "--pdeathsig", "TERM", "nsenter", f"--mount=/proc/{self._keeper.pid}/ns/mnt"]
        script = f'mkdir -p {cgroup} && echo $$ > {cgroup}/cgroup.procs && exec "$@"'
        with self._console.open("ab") as console:
            self._machine = subprocess.Popen(
                [*enter, "sh", "-c", script, "boot", *machine],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self._machine.poll() is None:
            if leader := self._find_leader():
                self._leader = leader
                state = self.run("systemctl", "is-system-running", check=False).strip()
                if state in ("running", "degraded"):
                    return
            time.sleep(0.1)
        raise RuntimeError(f"the box did not come up:\n{self._console.read_text(errors='replace')}")

    def cut_power(self) -> None:
        """Every process ends at once; what lies in files stays as it is."""
        if self._machine is None:
            return
        for pid in (self._leader, self._machine.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        self._machine.wait(10)
        self._machine = None
        self._remove_cgroup()

    def destroy(self) -> None:
        """Switch it off and forget it."""
        self.cut_power()
        self._keeper.kill()
        self._keeper.wait(10)
        if self._keeper.stdout is not None:
            self._keeper.stdout.close()
        shutil.rmtree(self._mounts, ignore_errors=True)

    def run(self, *command: str, check: bool = True, stdin: str = "", env: Mapping[str, str] | None = None) -> str:
        """Run a command as root inside and return what it printed; both streams are in the error if it fails."""
        plain = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8", "SYSTEMD_PAGER": ""}
        done = subprocess.run(
            ["nsenter", "-t", str(self._leader), "--all", "--", *command],
            input=stdin,
            capture_output=True,
            text=True,
            env=plain | dict(env or {}),
            timeout=110,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(command)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def sh(self, script: str, *, stdin: str = "", env: Mapping[str, str] | None = None, folder: str = "/") -> str:
        """Run lines of shell inside; the first that fails ends them."""
        return self.run("bash", "-euo", "pipefail", "-c", f"cd {folder}\n{script}", stdin=stdin, env=env)

    def write(self, path: str, text: str, mode: int | None = None) -> None:
        """Write a file inside; an existing one keeps owner and mode."""
        target = self.root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        if mode is not None:
            target.chmod(mode)

    def read(self, path: str) -> str:
        """What a file inside holds."""
        return (self.root / path.lstrip("/")).read_text()

    def names(self, path: str) -> Sequence[str]:
        """The names in a folder inside; none if there is no such folder."""
        folder = self.root / path.lstrip("/")
        return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []

    def _find_leader(self) -> int:
        assert self._machine is not None
        with contextlib.suppress(OSError):
            for child in Path(f"/proc/{self._machine.pid}/task/{self._machine.pid}/children").read_text().split():
                if os.path.basename(os.readlink(f"/proc/{child}/exe")) == "systemd":
                    return int(child)
        return 0

    def _remove_cgroup(self) -> None:
        top = Path(f"/proc/{self._keeper.pid}/root/sys/fs/cgroup/{self._name}")
        for _ in range(50):
            for folder, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)
            if not top.exists():
                return
            time.sleep(0.1)
