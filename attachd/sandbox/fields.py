"""A JSON body read field by field: what is missing or of the wrong type is refused with its path in the body."""

import json
from dataclasses import dataclass

from attachd.sandbox.reply import Refused, bad_request


@dataclass(frozen=True, slots=True)
class NotJson:
    problem: str


class Fields:
    """One JSON object. Every reader raises `Refused` (400) with a message that names the field."""

    __slots__ = ("_content", "_path")

    def __init__(self, content: object, path: str = "") -> None:
        if isinstance(content, NotJson):
            raise bad_request(f"body: is not JSON: {content.problem}")
        if not isinstance(content, dict):
            raise bad_request(f"{path.rstrip('.') or 'body'}: must be a JSON object")
        self._content: dict[str, object] = content
        self._path = path

    def text(self, name: str) -> str:
        value = self._required(name)
        if not isinstance(value, str):
            raise self.wrong(name, "must be a string")
        if not value:
            raise self.wrong(name, "must not be empty")
        return value

    def whole(self, name: str) -> int:
        value = self._required(name)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.wrong(name, "must be a whole number")
        return value

    def optional_text(self, name: str) -> str | None:
        """None when the field is missing; may be empty."""
        value = self._content.get(name)
        if value is not None and not isinstance(value, str):
            raise self.wrong(name, "must be a string")
        return value

    def flag(self, name: str) -> bool:
        """False when the field is missing."""
        value = self._content.get(name, False)
        if not isinstance(value, bool):
            raise self.wrong(name, "must be true or false")
        return value

    def section(self, name: str) -> "Fields":
        return Fields(self._required(name), f"{self._path}{name}.")

    def optional_section(self, name: str) -> dict[str, object]:
        value = self._content.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.wrong(name, "must be a JSON object")
        return value

    def words(self, name: str) -> dict[str, str]:
        """An object of strings; an empty one when the field is missing."""
        words: dict[str, str] = {}
        for key, value in self.optional_section(name).items():
            if not isinstance(value, str):
                raise self.wrong(f"{name}.{key}", "must be a string")
            words[key] = value
        return words

    def sections(self, name: str) -> list["Fields"]:
        """The objects of a list; an empty list when the field is missing."""
        value = self._content.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.wrong(name, "must be a list")
        return [Fields(one, f"{self._path}{name}[{index}].") for index, one in enumerate(value)]

    def wrong(self, name: str, problem: str) -> Refused:
        return bad_request(f"{self._path}{name}: {problem}")

    def _required(self, name: str) -> object:
        value = self._content.get(name)
        if value is None:
            raise self.wrong(name, "is missing")
        return value


def parsed(raw: bytes) -> object:
    """The JSON value in a body or, when it is none, `NotJson`: it is refused later, after authentication."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        return NotJson(str(error))


def glimpsed(content: object, *path: str | int) -> str | None:
    """The string at a path of a body nobody has validated yet, for matching a fault; None when there is none."""
    for part in path:
        if isinstance(part, str) and isinstance(content, dict):
            content = content.get(part)
        elif isinstance(part, int) and isinstance(content, list) and part < len(content):
            content = content[part]
        else:
            return None
    return content if isinstance(content, str) else None
