"""The calls of the two guest protocols, and which of them do the same thing.

`put` belongs to both: the storage is one. `event` is no request: it is what the platform pushes after a PUT.
"""

from enum import StrEnum
from typing import Final, Literal, TypeAlias

Gateway: TypeAlias = Literal["webchat", "webmessaging"]


class Step(StrEnum):
    # The REST guest API, in the order in which a client must make them.
    TOKEN = "token"  # noqa: S105 - the name of a call, not a secret
    GUEST = "guest"
    UPLOAD = "upload"
    PUT = "put"
    CONVERSATION = "conversation"
    # The Web Messaging guest protocol: over HTTP ...
    DEPLOYMENT = "deployment"
    CONNECT = "connect"
    HISTORY = "history"
    # ... in frames of the client, by their action ...
    CONFIGURE = "configure"
    JOIN = "join"  # an onMessage that carries a Join event and no message
    ATTACHMENT = "attachment"
    MESSAGE = "message"
    JWT = "jwt"
    ECHO = "echo"
    GET_CONFIGURATION = "get_configuration"
    GET_ATTACHMENT = "get_attachment"
    DELETE_ATTACHMENT = "delete_attachment"
    CLOSE_SESSION = "close_session"
    UNKNOWN = "unknown"  # what is no frame of this protocol
    # ... and in a frame of the platform.
    EVENT = "event"


WEBCHAT_STEPS: Final = (Step.TOKEN, Step.GUEST, Step.UPLOAD, Step.PUT, Step.CONVERSATION)

FRAME_STEPS: Final = frozenset(
    {
        Step.CONFIGURE,
        Step.JOIN,
        Step.ATTACHMENT,
        Step.MESSAGE,
        Step.JWT,
        Step.ECHO,
        Step.GET_CONFIGURATION,
        Step.GET_ATTACHMENT,
        Step.DELETE_ATTACHMENT,
        Step.CLOSE_SESSION,
        Step.UNKNOWN,
    }
)


class Stage(StrEnum):
    """What a client wants, whichever protocol it speaks."""

    SESSION = "session"
    UPLOAD = "upload"
    PUT = "put"
    CONVERSATION = "conversation"


_STEPS: Final[dict[Stage, dict[Gateway, Step]]] = {
    Stage.SESSION: {"webchat": Step.GUEST, "webmessaging": Step.CONFIGURE},
    Stage.UPLOAD: {"webchat": Step.UPLOAD, "webmessaging": Step.ATTACHMENT},
    Stage.PUT: {"webchat": Step.PUT, "webmessaging": Step.PUT},
    Stage.CONVERSATION: {"webchat": Step.CONVERSATION, "webmessaging": Step.MESSAGE},
}


def step_of(stage: Stage | str, gateway: Gateway) -> Step:
    """The call with which a protocol reaches this stage, so that one test can be run over both."""
    return _STEPS[Stage(stage)][gateway]
