"""The main job, shown live: a local platform, the real daemon, real documents, and a verdict at the end.

`show` puts it together; around it `drops` (what goes into the inbox, and how), `process` (the daemon as a process of
its own), `track` (where each file is, from the daemon's log), `screen` (what people see) and `verdict` (whether it
all went as it should, asked of the folders and the platform). The picture in the README is drawn by

    python -c 'import asyncio; from attachd.demo import show; asyncio.run(show(svg="docs/demo.svg"))'
"""

from attachd.demo.stage import show

__all__ = ["show"]
