"""The socket the admin server listens on: a loopback port, or a Unix socket that only this user can open."""

import errno
import os
import socket
import stat

_SOCKET_MODE = 0o600
_BACKLOG = 64


class CannotListen(Exception):  # noqa: N818  says what is the matter
    """The place is taken or cannot be used; `str()` says which, for the operator."""


def unix_path(listen: str) -> str | None:
    """The path of a `unix:/path` setting, None for host:port."""
    return listen.removeprefix("unix:") if listen.startswith("unix:") else None


def open_listener(listen: str) -> socket.socket:
    """A listening socket for `host:port` or `unix:/path`; blocking, but only on this machine. Raises CannotListen."""
    path = unix_path(listen)
    try:
        return _on_port(listen) if path is None else _on_path(path)
    except OSError as error:
        taken = " by another program" if error.errno == errno.EADDRINUSE else ""
        raise CannotListen(f"cannot listen on {listen}{taken}: {error.strerror or error}") from error


def _on_port(listen: str) -> socket.socket:
    host, _, port = listen.rpartition(":")
    family, kind, proto, _, address = socket.getaddrinfo(
        host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _on_path(path: str) -> socket.socket:
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # The mode is set before anybody can connect: a socket that does not listen yet refuses all.
    try:
        listener.bind(path)
        os.chmod(path, _SOCKET_MODE)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _remove_stale(path: str) -> None:
    """Take away what a killed attachd left behind: a socket, and nobody listens on it. Anything else stays."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise OSError(errno.EEXIST, "something that is no socket is there")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knock:
        knock.settimeout(1.0)
        try:
            knock.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except FileNotFoundError:
            return
    raise OSError(errno.EADDRINUSE, "somebody listens there")


def close_listener(listener: socket.socket, listen: str, identity: tuple[int, int] | None) -> None:
    """Stop listening and take the socket's file away, if it still is ours."""
    listener.close()
    path = unix_path(listen)
    if path is None or identity is None:
        return
    try:
        found = os.lstat(path)
        if (found.st_dev, found.st_ino) == identity:
            os.unlink(path)
    except FileNotFoundError:
        pass


def identity_of(listen: str) -> tuple[int, int] | None:
    """Device and inode of a Unix socket's file."""
    path = unix_path(listen)
    if path is None:
        return None
    found = os.lstat(path)
    return found.st_dev, found.st_ino
