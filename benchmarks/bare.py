"""`python -m benchmarks.bare`: what attachd is compared with, a loop that makes the same four calls and nothing else.

No journal, no fsync, no move, no settling, no retry, no log: each worker takes the next file, reads it, asks for a
guest and for a place, puts the bytes there, and opens the conversation. Same library, same kind of event loop, same
number of workers. Prints one JSON object.
"""

import argparse
import asyncio
import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import uvloop


async def deliver(session: aiohttp.ClientSession, api: str, file: Path) -> None:
    """The four calls for one file."""
    content = file.read_bytes()
    async with session.post(f"{api}/api/v2/webchat/guest", json={"routing": {"queueId": "q"}}) as response:
        guest = (await response.json())["guestId"]
    described = {"fileName": file.name, "contentType": "application/pdf", "fileSize": len(content)}
    async with session.post(f"{api}/api/v2/webchat/guest/{guest}/attachments/upload", json=described) as response:
        place = await response.json()
    async with session.put(place["uploadUrl"], data=content, headers={"Content-Type": "application/pdf"}) as response:
        await response.read()
    message = {
        "guestId": guest,
        "messages": [{"type": "text", "text": f"Document {file.name} attached for review."}],
        "attachments": [{"id": place["attachmentId"], **described}],
    }
    async with session.post(f"{api}/api/v2/webchat/conversations", json=message) as response:
        await response.json()


async def worker(session: aiohttp.ClientSession, api: str, files: Iterator[Path]) -> None:
    for file in files:
        await deliver(session, api, file)


async def run(api: str, folder: Path, concurrency: int) -> float:
    """All files of the folder; returns the seconds it took."""
    files = iter(sorted(folder.iterdir()))
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, headers={"Authorization": "Bearer t"}) as session:
        began = time.monotonic()
        await asyncio.gather(*(worker(session, api, files) for _ in range(concurrency)))
        return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bare", description=__doc__)
    parser.add_argument("api")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--loop", choices=("uvloop", "asyncio"), default="uvloop")
    given = parser.parse_args()
    factory = uvloop.new_event_loop if given.loop == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        seconds = runner.run(run(given.api, given.folder, given.concurrency))
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({"seconds": seconds, "cpu_s": used.ru_utime + used.ru_stime, "peak_kb": used.ru_maxrss}))


if __name__ == "__main__":
    main()
