"""A local stand-in for the platform, on real sockets: OAuth, guest API, presigned storage, faults on demand.

It checks the daemon, so it shares no code with it and imports nothing else of attachd. What a request meets, in order:

    exchange (fault drawn, ledger line) ─▶ oauth | webchat | storage (decide) ─▶ exchange (answer or damage)

The second guest protocol, `webmessaging`, stands beside `webchat` on the same ledger, faults and storage. An S3 server
that others wrote can take the storage's place (`remote`); what it knows is found out by asking it.
"""

from attachd.sandbox.clock import Clock
from attachd.sandbox.faults import Fault, FaultKind, hang_up, refuse
from attachd.sandbox.ledger import Answer, Ledger, Message, Received, StoredObject
from attachd.sandbox.platform import Sandbox, serve
from attachd.sandbox.remote import S3Unusable
from attachd.sandbox.settings import ENHANCED_LIMIT_BYTES, STANDARD_LIMIT_BYTES, S3Endpoint, SandboxSettings
from attachd.sandbox.step import WEBCHAT_STEPS, Gateway, Stage, Step, step_of

__all__ = [
    "ENHANCED_LIMIT_BYTES",
    "STANDARD_LIMIT_BYTES",
    "WEBCHAT_STEPS",
    "Answer",
    "Clock",
    "Fault",
    "FaultKind",
    "Gateway",
    "Ledger",
    "Message",
    "Received",
    "S3Endpoint",
    "S3Unusable",
    "Sandbox",
    "SandboxSettings",
    "Stage",
    "Step",
    "StoredObject",
    "hang_up",
    "refuse",
    "serve",
    "step_of",
]
