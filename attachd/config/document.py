"""Reads YAML into plain mappings, lists and text, with the path of everything that is wrong on the way.

Every plain scalar stays the text it was written as until a key asks for a number or a boolean: `client_id: 0123` keeps
its zero, `listen: off` is no boolean, `version: 1.10` no 1.1. Only nothing, `~` and `null` are None. Then `${VAR}` is
expanded in values, never in keys.
"""

import re
from collections.abc import Mapping
from typing import TypeAlias

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from attachd.errors import ConfigError

Raw: TypeAlias = "str | list[Raw] | dict[str, Raw] | None"
Location: TypeAlias = tuple[str | int, ...]

_MAX_BYTES = 1 << 20
"""Ours: a thousand inboxes fit in a third of it, and a wrong file named by mistake is not read to its end."""

_MAX_VALUES = 200_000
"""Ours: more than 1 MiB of plain text can hold; only anchors that multiply each other get there."""

_SHORTEST_SECRET = 4
"""Ours: shorter ones protect nothing, and hiding every "a" would make the lines unreadable."""

_VARIABLE = re.compile(r"\$\$\{|\$\{(?:(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\})?")

_SYNTAX_ADVICE = (
    ("alias", "a value that starts with * or & needs quotes"),
    ("anchor", "a value that starts with * or & needs quotes"),
    ("tag", "a value that starts with ! needs quotes"),
    ("\\t", "a tab; indent with spaces"),
    ("cannot start any token", "a value that starts with this character needs quotes"),
    (
        "mapping values are not allowed",
        "a second ':' on the line or a wrong indentation; put values with ': ' in quotes",
    ),
    ("expected <block end>", "the indentation does not fit the lines above"),
    ("single document", "a second document begins; keep everything in one"),
    ("end of stream", "a quote or bracket is not closed"),
    ("escape", "a backslash that YAML does not understand; use single quotes"),
)
"""Parts of the parser's messages and what we say instead: the originals may quote the text, and the text may be a
secret."""


class Problems:
    """Collects lines for the operator; the secrets it is told of stay out of them."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._found: list[tuple[Location, str]] = []
        self._secrets: set[str] = set()

    def add(self, where: Location, text: str) -> None:
        """Note what is wrong at a place and what to do about it."""
        self._found.append((where, text))

    def hide(self, secret: str) -> None:
        """From now on this value shows in no line."""
        self._secrets.update(part for part in (secret, secret.strip()) if len(part) >= _SHORTEST_SECRET)

    def at(self, where: Location) -> bool:
        """Whether something is wrong there, or below, already."""
        return any(found[: len(where)] == where for found, _ in self._found)

    def raise_if_any(self, order: tuple[str, ...] = ()) -> None:
        """Raise ConfigError with all lines, sorted by section; lines of a section stay in the order they came."""
        if not self._found:
            return
        ranked = sorted(self._found, key=lambda found: _rank(found[0], order))
        lines = dict.fromkeys(self._line(where, text) for where, text in ranked)
        raise ConfigError(self._source, list(lines))

    def _line(self, where: Location, text: str) -> str:
        line = f"{spoken(where)}: {text}" if where else text
        for secret in sorted(self._secrets, key=len, reverse=True):
            line = line.replace(secret, "…")
        # A key or a value with line breaks in it must not make two lines of one.
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def _rank(where: Location, order: tuple[str, ...]) -> tuple[int, int]:
    section = order.index(where[0]) if where and where[0] in order else -1
    entry = where[1] if len(where) > 1 and isinstance(where[1], int) else -1
    return section, entry


def spoken(where: Location) -> str:
    """`inboxes[0].path`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where).removeprefix(".")


def read(content: bytes, env: Mapping[str, str], problems: Problems) -> dict[str, Raw]:
    """The document as a mapping. Raises ConfigError where there is none to go on with; notes all other problems."""
    root = _composed(content, problems)
    problems.raise_if_any()
    if root is None or (isinstance(root, ScalarNode) and _scalar(root) is None):
        problems.add((), "the file is empty; config.example.yaml shows what belongs in it")
    elif not isinstance(root, MappingNode):
        problems.add((), "the file is not a mapping; it starts with keys such as 'platform:' and 'inboxes:'")
    problems.raise_if_any()
    built = _Builder(env, problems).build(root, ()) if root is not None else {}
    assert isinstance(built, dict)
    return built


def _composed(content: bytes, problems: Problems) -> Node | None:
    if len(content) > _MAX_BYTES:
        problems.add((), "the file is larger than 1 MiB; is it the right one?")
        return None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        problems.add((), f"line {line}: is not UTF-8 text; save the file as UTF-8")
        return None
    try:
        node: Node | None = yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.MarkedYAMLError as error:
        said = f"{error.context} {error.problem}"
        advice = next((advice for part, advice in _SYNTAX_ADVICE if part in said), None)
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problems.add(
            (), f"{place}{advice or 'not valid YAML; look for a missing quote, bracket or space after a colon'}"
        )
    except yaml.YAMLError:
        problems.add((), "contains control characters; save the file as plain text")
    except RecursionError:
        problems.add((), "is nested too deeply; is it the right file?")
    else:
        return node
    return None


def _scalar(node: ScalarNode) -> str | None:
    plain = node.style is None
    value: str = node.value
    return None if plain and value in ("", "~", "null", "Null", "NULL") else value


class _Builder:
    def __init__(self, env: Mapping[str, str], problems: Problems) -> None:
        self._env = env
        self._problems = problems
        self._open: set[int] = set()
        self._built = 0

    def build(self, node: Node, where: Location) -> Raw:
        """The value of a node; what cannot be understood is noted and None."""
        self._built += 1
        if self._built > _MAX_VALUES:
            self._problems.add((), "anchors multiply to more than 200,000 values; write them out")
            return None
        if node.tag.startswith("!") or id(node) in self._open:
            advice = "a value that starts with ! needs quotes" if node.tag.startswith("!") else "refers to itself"
            self._problems.add(where, advice)
            return None
        if isinstance(node, ScalarNode):
            value = _scalar(node)
            return value if value is None else self._expanded(value, where)
        self._open.add(id(node))
        try:
            if isinstance(node, SequenceNode):
                return [self.build(item, (*where, index)) for index, item in enumerate(node.value)]
            assert isinstance(node, MappingNode)
            return self._mapping(node, where)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: MappingNode, where: Location) -> dict[str, Raw]:
        built: dict[str, Raw] = {}
        merged: dict[str, Raw] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            line: int = key_node.start_mark.line + 1
            if not isinstance(key_node, ScalarNode):
                self._problems.add(where, f"line {line}: a key must be plain text")
            elif key_node.value == "<<" and key_node.style is None:
                for base in self._bases(value_node, where, line):
                    merged = base | merged
            elif key_node.value in lines:
                key = key_node.value
                self._problems.add((*where, key), f"stands twice, on lines {lines[key]} and {line}; keep one of them")
            else:
                lines[key_node.value] = line
                built[key_node.value] = self.build(value_node, (*where, key_node.value))
        return merged | built

    def _bases(self, node: Node, where: Location, line: int) -> list[dict[str, Raw]]:
        built = self.build(node, where)
        bases = built if isinstance(built, list) else [built]
        mappings = [base for base in bases if isinstance(base, dict)]
        if len(mappings) != len(bases):
            self._problems.add(where, f"line {line}: << takes over another mapping, named by its anchor")
        return mappings

    def _expanded(self, value: str, where: Location) -> str:
        def replaced(match: re.Match[str]) -> str:
            if match[0] == "$${":
                return "${"
            name, default = match["name"], match["default"]
            if name is None:
                self._problems.add(where, "has a ${ that names no variable; write ${NAME}, or $${ for a literal ${")
                return ""
            found = self._env.get(name) or default
            if found is None:
                self._problems.add(
                    where, f"the environment variable {name} is not set; set it, or give a default: ${{{name}:-…}}"
                )
                return ""
            return found

        return _VARIABLE.sub(replaced, value)
