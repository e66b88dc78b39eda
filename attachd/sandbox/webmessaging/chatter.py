"""What bot and agent say and do meanwhile: frames nobody asked for, at random, from a seed that repeats."""

import random
from collections.abc import Callable
from typing import Final

from attachd.sandbox.clock import Clock
from attachd.sandbox.settings import SandboxSettings
from attachd.sandbox.webmessaging import frames
from attachd.sandbox.webmessaging.frames import Frame
from attachd.sandbox.webmessaging.session import Session

_SEED: Final = 4


class Chatter:
    def __init__(self, settings: Callable[[], SandboxSettings], clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._chance = random.Random(_SEED)  # noqa: S311 - must repeat, not surprise

    def around(self, session: Session | None) -> tuple[list[Frame], list[Frame]]:
        """What is said before and after the next answer; nothing before a session is configured."""
        probability = self._settings().chatter
        if session is None or not probability:
            return [], []
        return self._some(session, probability), self._some(session, probability)

    def _some(self, session: Session, probability: float) -> list[Frame]:
        if self._chance.random() >= probability:
            return []
        now_s = self._clock.wall_s()
        content: dict[str, object] = {"type": "Text", "text": "One moment, please."}
        if self._chance.random() < 0.5:
            content = {"type": "Event", "events": [{"eventType": "Presence", "presence": {"type": "Join"}}]}
        body = frames.structured({**content, "direction": "Outbound"}, now_s)
        session.say(body, now_s)
        return [Frame("StructuredMessage", body, kind="message")]
