"""What every part gets: where to work, who starts daemons, and chance from the seed."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.campaign.nursery import Nursery


@dataclass(frozen=True, slots=True)
class Scene:
    base: Path
    nursery: Nursery
    seed: str
    tell: Callable[[str], None] = lambda _line: None

    def chance(self, *what: object) -> random.Random:
        """Choices of one matter, the same whatever else is going on."""
        return random.Random("/".join(map(str, (self.seed, *what))))
