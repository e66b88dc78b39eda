"""The page, one HTML document with its script and style inside, and the policy that lets nothing else run in it."""

from base64 import b64encode
from dataclasses import dataclass
from hashlib import sha256
from importlib import resources


@dataclass(frozen=True, slots=True)
class Page:
    """The document as it is served, and its Content-Security-Policy."""

    html: bytes
    policy: str


def load() -> Page:
    """Read the page's files and put them into one document. Blocking: three small files of the package."""
    files = resources.files("attachd.admin") / "page"
    script = (files / "page.js").read_text(encoding="utf-8")
    style = (files / "page.css").read_text(encoding="utf-8")
    html = (files / "page.html").read_text(encoding="utf-8")
    html = html.replace("/* style */", style).replace("/* script */", script)
    return Page(html.encode(), _policy(script, style))


def _policy(script: str, style: str) -> str:
    # Trusted types: even a mistake of ours in the script could not turn a file's name into markup.
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {_source(script)}",
            f"style-src {_source(style)}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )


def _source(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode('ascii')}'"
