"""The sandbox as a service inside the box: its secret stays the same when the power was cut."""

import asyncio
from pathlib import Path

from attachd.sandbox import SandboxSettings, serve

secret = Path("/root/platform-secret").read_text().strip()
settings = SandboxSettings(client_secret=secret, requests_per_second=0)
asyncio.run(serve(settings, 8700, lambda _: None, asyncio.Event()))
