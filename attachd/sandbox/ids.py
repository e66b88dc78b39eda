"""Ids as the platform makes them: random UUIDs, from a generator that costs no system call each.

They name things and guard nothing, so they need to be unique and need not be unpredictable.
"""

import random
from collections.abc import Callable

_bits: Callable[[int], int] = random.Random().getrandbits  # noqa: S311 - see above


def new_id() -> str:
    digits = f"{_bits(128):032x}"
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"
