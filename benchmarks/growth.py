"""Whether files a second and memory stay what they are while more and more files go through one run."""

import threading
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import Attachd, Stub, fill, scratch

FILES = 20_000
FILES_FULL = 100_000
POINTS = (1_000, 2_000, 5_000, 10_000, 20_000, 30_000, 50_000, 70_000, 100_000)
FILE_BYTES = 10 * 1024
_SAMPLE_S = 0.25
_LONGEST_S = 1800.0


def measure(base: Path | None, *, files: int = FILES, points: Sequence[int] = POINTS) -> dict[str, Any]:
    """Without a quota, as fast as it goes; at each of `points` the rate over the files since the one before it."""
    with scratch(base) as folder, Stub() as stub:
        inbox = folder / "inbox"
        fill(inbox, files, FILE_BYTES)
        with Attachd(folder, stub, [inbox]) as daemon:
            daemon.ready()
            with _Sampling(daemon, stub) as samples:
                daemon.deliver(files, _LONGEST_S)
        at = [stub.counts()["first_at"], *(at for _, at in stub.conversations())]
    rows = []
    before = 0
    for point in (point for point in points if point <= files):
        rate = (point - before) / (at[point] - at[before])
        rows.append({"files": point, "files_per_s": rate, "rss_mb": samples.rss_mb(point)})
        before = point
    return {
        "files": files,
        "file_bytes": FILE_BYTES,
        "points": rows,
        "kept_share": rows[-1]["files_per_s"] / rows[0]["files_per_s"],
        "increase_mb": rows[-1]["rss_mb"] - rows[0]["rss_mb"],
    }


class _Sampling:
    """A thread that looks now and then how many files are through and how much memory that took."""

    def __init__(self, daemon: Attachd, stub: Stub) -> None:
        self._daemon = daemon
        self._stub = stub
        self._done = threading.Event()
        self._samples: list[tuple[int, float]] = []
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> "_Sampling":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def rss_mb(self, files: int) -> float:
        """At the first look when so many were through, or the last look there is."""
        index = bisect_left(self._samples, (files, 0.0))
        return self._samples[min(index, len(self._samples) - 1)][1]

    def _sample(self) -> None:
        last = False
        while not last:
            last = self._done.wait(_SAMPLE_S)
            self._samples.append((self._stub.counts()["posted"], self._daemon.usage().rss_kb / 1024))
