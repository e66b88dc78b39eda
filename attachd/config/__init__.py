"""The settings: YAML and environment in, frozen objects out, or every mistake at once in words for the operator.

`load` is the way in; the rest are the shapes it returns.
"""

from attachd.config.loading import load
from attachd.config.models import (
    MESSAGE_PLACEHOLDERS,
    Admin,
    Config,
    DeliveryRules,
    Inbox,
    Log,
    Platform,
    json_schema,
)

__all__ = [
    "MESSAGE_PLACEHOLDERS",
    "Admin",
    "Config",
    "DeliveryRules",
    "Inbox",
    "Log",
    "Platform",
    "json_schema",
    "load",
]
