"""The guest protocol as a whole: builds its parts around the storage and the ledger it shares with `webchat`."""

from collections.abc import Callable

from attachd.sandbox.clock import Clock
from attachd.sandbox.faults import Faults
from attachd.sandbox.ledger import Ledger
from attachd.sandbox.places import Places
from attachd.sandbox.settings import SandboxSettings
from attachd.sandbox.webmessaging.chatter import Chatter
from attachd.sandbox.webmessaging.connection import Connection
from attachd.sandbox.webmessaging.deployment import Deployments
from attachd.sandbox.webmessaging.dialogue import Dialogue
from attachd.sandbox.webmessaging.files import Files
from attachd.sandbox.webmessaging.gate import Gate
from attachd.sandbox.webmessaging.history import History
from attachd.sandbox.webmessaging.posts import Posts
from attachd.sandbox.webmessaging.session import Sessions


class WebMessaging:
    def __init__(
        self,
        settings: Callable[[], SandboxSettings],
        authority: str,
        sessions: Sessions,
        places: Places,
        faults: Faults,
        ledger: Ledger,
        clock: Clock,
    ) -> None:
        """`authority`: host and port under which the platform itself is reached."""
        self.deployments = Deployments(settings, authority)
        self.history = History(settings, sessions, clock)
        files = Files(settings, sessions, places, ledger, clock)
        posts = Posts(settings, sessions, files, places, ledger, clock)
        dialogue = Dialogue(settings, sessions, files, posts, self.history, ledger, clock)
        connection = Connection(settings, dialogue, Chatter(settings, clock), faults, ledger)
        self.gate = Gate(settings, self.deployments, sessions, connection, faults, ledger, clock)
