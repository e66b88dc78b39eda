"""Addresses: what is on this machine, and which URL goes through the proxy. Pure; no name is looked up."""

from collections.abc import Iterable
from ipaddress import IPv6Address, ip_address, ip_network
from urllib.parse import SplitResult, urlsplit


def is_loopback(host: str) -> bool:
    """Whether a host, as it stands in a URL, can only be this machine."""
    host = host.strip("[]").rstrip(".").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def split_url(url: str) -> SplitResult:
    """`urlsplit` that also looks at host and port, so that whatever is wrong with a URL raises ValueError here."""
    parts = urlsplit(url)
    if not parts.hostname or any(character.isspace() or ord(character) < 0x20 for character in url):
        raise ValueError("is not a URL")
    _ = parts.port
    return parts


def bypasses_proxy(url: str, no_proxy: Iterable[str]) -> bool:
    """Whether a URL is reached directly: this machine always is, others as the entries of $NO_PROXY say.

    An entry is `*`, a domain (with its subdomains, leading dot or not), an address, or a network like 10.0.0.0/8; a
    domain or address may carry a port.
    """
    parts = split_url(url)
    host = (parts.hostname or "").rstrip(".").lower()
    if is_loopback(host):
        return True
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return any(_covers(entry.strip().lower(), host, port) for entry in no_proxy)


def _covers(entry: str, host: str, port: int) -> bool:
    if entry == "*":
        return True
    try:
        return ip_address(host) in ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        pass  # one of the two is a name, or the entry carries a port
    name, colon, entry_port = entry.rpartition(":")
    if colon and entry_port.isdigit():
        if int(entry_port) != port:
            return False
        entry = name
    entry = entry.strip("[]").lstrip("*").strip(".")
    return bool(entry) and (host == entry or host.endswith(f".{entry}"))
