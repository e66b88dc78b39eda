"""What differs between the config that runs and one that was read again, and what of it needs no restart.

Pure. An inbox is the same one as long as its name, its path and its folders are; everything else of it may change.
"""

from dataclasses import dataclass

from pydantic import BaseModel

from attachd.config import Config, DeliveryRules, Inbox
from attachd.model import InboxName


@dataclass(frozen=True, slots=True)
class Changes:
    """By name: inboxes that come, go, and stay with other settings; by key, what only a restart can change."""

    added: tuple[Inbox, ...]
    removed: tuple[InboxName, ...]
    changed: tuple[Inbox, ...]
    settings: tuple[str, ...]
    needs_restart: tuple[str, ...]


def compare(running: Config, found: Config) -> Changes:
    """The differences; an inbox that cannot be changed in place stays as it is and is named under `needs_restart`."""
    before = {inbox.name: inbox for inbox in running.inboxes}
    after = {inbox.name: inbox for inbox in found.inboxes}
    moved = [name for name in before.keys() & after.keys() if _place(before[name]) != _place(after[name])]
    # Two names for one folder: its lock is held, so the new one cannot begin before the old one has ended.
    places = {_place(inbox)[0] for inbox in running.inboxes}
    renamed = [name for name in after.keys() - before.keys() if _place(after[name])[0] in places]
    stuck = {*moved, *renamed, *(name for name in before.keys() - after.keys() if _is_renamed(before[name], found))}
    differing = _differing(running, found)
    return Changes(
        added=tuple(inbox for name, inbox in after.items() if name not in before and name not in stuck),
        removed=tuple(name for name in before if name not in after and name not in stuck),
        changed=tuple(
            inbox for name, inbox in after.items() if name in before and name not in stuck and inbox != before[name]
        ),
        settings=tuple(key for key in differing if key in _IN_PLACE),
        needs_restart=(
            *(key for key in differing if key not in _IN_PLACE),
            *(f"inboxes ({name})" for name in sorted(stuck)),
        ),
    )


def merged(running: Config, found: Config, changes: Changes) -> Config:
    """What runs once the changes are taken on."""
    gone = {*changes.removed, *(inbox.name for inbox in changes.changed)}
    stay = [inbox for inbox in running.inboxes if inbox.name not in gone]
    platform = running.platform.model_copy(update={"client_secret": found.platform.client_secret})
    inboxes = (*stay, *changes.changed, *changes.added)
    return running.model_copy(update={"platform": platform, "delivery": found.delivery, "inboxes": inboxes})


def _place(inbox: Inbox) -> tuple[str, str, str]:
    return str(inbox.path), inbox.sent, inbox.failed


def _is_renamed(inbox: Inbox, found: Config) -> bool:
    return any(other.path == inbox.path for other in found.inboxes)


_IN_PLACE = frozenset(
    {
        "platform.client_secret",
        "platform.client_secret_file",
        *(f"delivery.{key}" for key in DeliveryRules.model_fields),
    }
)


def _differing(running: Config, found: Config) -> list[str]:
    """The keys outside the inboxes whose values differ."""
    keys = []
    for name in Config.model_fields:
        before, after = getattr(running, name), getattr(found, name)
        if name == "inboxes" or before == after:
            continue
        if not isinstance(before, BaseModel):
            keys.append(name)
            continue
        fields = type(before).model_fields
        keys += [f"{name}.{key}" for key in fields if getattr(before, key) != getattr(after, key)]
    return keys
