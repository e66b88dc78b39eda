"""Durations and sizes as people write them: `1h30m`, `500ms`, `10MiB`. Pure text to number."""

import math
import re
from decimal import Decimal

_DURATION_UNITS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
"""In milliseconds, and in the order in which they may follow each other."""

_SIZE_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmg", start=1):
    _SIZE_UNITS[f"{_letter}b"] = 1000**_power
    _SIZE_UNITS[f"{_letter}ib"] = 1024**_power

_NUMBER = r"[0-9]{1,15}(?:\.[0-9]{1,9})?"  # longer ones are typing errors, and would lose digits as a float
_PLAIN = re.compile(_NUMBER)
_DURATION = re.compile(rf"(?:{_NUMBER} *(?:ms|[dhms]) *)+")
_DURATION_PART = re.compile(rf"({_NUMBER}) *(ms|[dhms])")
_SIZE = re.compile(rf"({_NUMBER}) *([A-Za-z]*)")


def duration_s(written: str) -> float:
    """Seconds; a bare number is seconds already. Raises ValueError with the remedy in words."""
    text = written.strip().lower()
    if _PLAIN.fullmatch(text):
        return float(text)
    parts = _DURATION_PART.findall(text)
    order = [list(_DURATION_UNITS).index(unit) for _, unit in parts]
    if not _DURATION.fullmatch(text) or order != sorted(set(order)):
        raise ValueError("is not a duration; write it like 500ms, 20s, 5m or 1h30m")
    return float(sum(Decimal(number) * _DURATION_UNITS[unit] for number, unit in parts) / 1000)


def duration_from(value: object) -> object:
    """`duration_s` for text; finite numbers pass as the seconds they are, and anything else for pydantic to refuse."""
    if isinstance(value, str):
        return duration_s(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("is not a duration; write it like 500ms, 20s, 5m or 1h30m")
    return value


def size_bytes(written: str) -> int:
    """Bytes; kB is 1000, KiB is 1024. Raises ValueError with the remedy in words."""
    match = _SIZE.fullmatch(written.strip())
    if match is None:
        raise ValueError("is not a size; write it like 10MiB, 500kB or a number of bytes")
    number, unit = match.groups()
    if unit.lower() in ("k", "m", "g"):
        raise ValueError(f"{unit} may mean two things; write {unit}iB (by 1024) or {unit}B (by 1000)")
    factor = _SIZE_UNITS.get(unit.lower())
    if factor is None:
        raise ValueError("is not a size; the units are B, kB, KiB, MB, MiB, GB and GiB")
    size = Decimal(number) * factor
    if size != int(size):
        raise ValueError("is not a whole number of bytes")
    return int(size)


def size_from(value: object) -> object:
    """`size_bytes` for text; numbers pass as the bytes they are."""
    return size_bytes(value) if isinstance(value, str) else value
