"""The five calls that bring one file to an agent, in the order in which a client must make them."""

from enum import StrEnum


class Step(StrEnum):
    TOKEN = "token"  # noqa: S105 - the name of a call, not a secret
    GUEST = "guest"
    UPLOAD = "upload"
    PUT = "put"
    CONVERSATION = "conversation"
