"""From a file and an environment to a `Config`, or to all that is wrong with them at once.

Sections are validated one by one: what one of them gets wrong hides nothing in the others. A section with mistakes is
looked at once more without the keys that have them, so that the rules between keys and sections still get their say.
"""

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from attachd.config.document import Location, Problems, Raw, read
from attachd.config.models import (
    MAX_ATTRIBUTES_BYTES,
    AbsolutePath,
    Admin,
    Config,
    DeliveryRules,
    Inbox,
    Log,
    Platform,
    SkillForm,
    keys_of,
)

_Part = TypeVar("_Part", bound=BaseModel)

_FROM_ENVIRONMENT = {
    "environment": ("GENESYS_ENVIRONMENT",),
    "client_id": ("GENESYS_CLIENT_ID",),
    "queue_id": ("GENESYS_QUEUE_ID",),
    # Where both are set the lower-case name wins, as in curl.
    "proxy": ("https_proxy", "HTTPS_PROXY"),
}

_MAX_SECRET_BYTES = 4096  # ours: a secret is some dozens; a larger file is the wrong one
_WHERE_QUEUES_ARE = "its id is in the address of the queue's page, under Admin > Contact Center > Queues"
_WHERE_DEPLOYMENTS_ARE = "its id is under Admin > Message > Messenger Deployments"
_THE_FLOW_ROUTES = "has no effect with gateway webmessaging, where the deployment's inbound message flow routes"


def load(path: Path, env: Mapping[str, str]) -> Config:
    """The config in a file, completed from an environment.

    A function of these two and of the file that holds the secret; only symbolic links are followed besides, to tell
    inboxes apart. Raises ConfigError with every problem, one line each, none of them showing a secret.
    """
    problems = Problems(str(path))
    for name in ("GENESYS_CLIENT_SECRET", "https_proxy", "HTTPS_PROXY"):
        problems.hide(env.get(name, ""))
    content = b""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        problems.add((), "there is no such file; copy config.example.yaml there, or name another one with -c")
    except OSError as error:
        problems.add((), f"cannot be read: {error.strerror or type(error).__name__}")
    problems.raise_if_any()
    document = read(content, env, problems)

    sections = {key: value for key, value in document.items() if value is not None}
    _note_unknown(sections, keys_of(Config), (), problems)
    _hide_secrets(sections.get("platform"), problems)
    written = sections.get("platform", {})
    added = _added_to_platform(written, env, problems)
    platform = _checked(Platform, written, ("platform",), problems, added)
    delivery = _checked(DeliveryRules, sections.get("delivery", {}), ("delivery",), problems)
    inboxes = _checked_inboxes(sections.get("inboxes"), problems)
    log = _checked(Log, sections.get("log", {}), ("log",), problems)
    admin = _checked(Admin, sections.get("admin", {}), ("admin",), problems)
    state_dir = _state_dir(sections.get("state_dir"), env, problems)

    if platform is not None:
        _check_platform(platform, problems)
        if platform.gateway == "webmessaging":
            _check_for_webmessaging(written, inboxes, problems)
        else:
            inboxes = [(index, _with_queue(inbox, platform)) for index, inbox in inboxes]
            _check_queues(inboxes, problems)
    _check_names(inboxes, problems)
    _check_folders(inboxes, state_dir, problems)
    problems.raise_if_any(keys_of(Config))
    assert platform is not None
    assert delivery is not None
    assert log is not None
    assert admin is not None
    assert state_dir is not None
    return Config(
        platform=platform,
        delivery=delivery,
        inboxes=tuple(inbox for _, inbox in inboxes),
        state_dir=state_dir,
        log=log,
        admin=admin,
    )


def _check_platform(platform: Platform, problems: Problems) -> None:
    if platform.gateway == "webmessaging":
        addresses = [platform.api_url, platform.messaging_url, platform.config_url]
        if platform.deployment_id is None:
            remedy = f"webmessaging needs the id of a web messaging deployment; {_WHERE_DEPLOYMENTS_ARE}"
            _missing(("platform", "deployment_id"), remedy, problems)
    else:
        addresses = [platform.api_url, platform.login_url]
    if not platform.environment and not all(addresses):
        remedy = "set it, or $GENESYS_ENVIRONMENT, to the organisation's domain, such as mypurecloud.com"
        _missing(("platform", "environment"), remedy, problems)
    if platform.gateway == "webchat":
        if not platform.client_id:
            remedy = "set it, or $GENESYS_CLIENT_ID, to the id of an OAuth client (Admin > Integrations > OAuth)"
            _missing(("platform", "client_id"), remedy, problems)
        if not platform.client_secret.get_secret_value() and not problems.at(("platform", "client_secret_file")):
            remedy = "set client_secret_file, or the systemd credential client_secret, or $GENESYS_CLIENT_SECRET"
            _missing(("platform", "client_secret"), remedy, problems)


def _check_for_webmessaging(written: Raw, inboxes: Sequence[tuple[int, Inbox]], problems: Problems) -> None:
    """What would silently do nothing there. A queue in the environment may be meant for somebody else."""
    if isinstance(written, dict) and written.get("queue_id"):
        problems.add(("platform", "queue_id"), f"{_THE_FLOW_ROUTES}; remove it")
    for index, inbox in inboxes:
        if inbox.queue_id is not None:
            remedy = "remove it, and let the flow choose the queue, by metadata for example"
            problems.add(("inboxes", index, "queue_id"), f"{_THE_FLOW_ROUTES}; {remedy}")
        if inbox.skills:
            remedy = "remove them, and let the flow ask for skills"
            problems.add(("inboxes", index, "skills"), f"{_THE_FLOW_ROUTES}; {remedy}")
        if inbox.metadata_bytes > MAX_ATTRIBUTES_BYTES:
            said = f"has {inbox.metadata_bytes} bytes, names and values together; webmessaging takes"
            problems.add(("inboxes", index, "metadata"), f"{said} at most {MAX_ATTRIBUTES_BYTES}")


def _check_queues(inboxes: Sequence[tuple[int, Inbox]], problems: Problems) -> None:
    if problems.at(("platform", "queue_id")):
        return
    for index, inbox in inboxes:
        if inbox.queue_id is None:
            remedy = f"set it, or platform.queue_id, or $GENESYS_QUEUE_ID; {_WHERE_QUEUES_ARE}"
            _missing(("inboxes", index, "queue_id"), remedy, problems)


def _check_names(inboxes: Sequence[tuple[int, Inbox]], problems: Problems) -> None:
    first: dict[str, int] = {}
    for index, inbox in inboxes:
        earlier = first.setdefault(inbox.name, index)
        where = ("inboxes", index, "name")
        if earlier != index and not problems.at(where):
            problems.add(
                where, f"{inbox.name!r} is the name of inboxes[{earlier}] already; give one of them another name"
            )


def _check_folders(inboxes: Sequence[tuple[int, Inbox]], state_dir: Path | None, problems: Problems) -> None:
    real = {index: os.path.realpath(inbox.path) for index, inbox in inboxes}
    for index, inbox in inboxes:
        where = ("inboxes", index, "path")
        for other, folder in real.items():
            if other < index and folder == real[index]:
                problems.add(where, f"is the folder of inboxes[{other}] already; remove one of them")
            elif folder != real[index] and _inside(real[index], folder):
                problems.add(where, f"lies inside inboxes[{other}]; inboxes must not be nested")
        if state_dir is not None and _inside(os.path.realpath(state_dir), real[index]):
            problems.add(where, "contains state_dir; keep attachd's own files out of the inbox")
        if problems.at(("inboxes", index, "sent")) or problems.at(("inboxes", index, "failed")):
            continue
        if _inside(inbox.failed, inbox.sent) or _inside(inbox.sent, inbox.failed):
            problems.add(("inboxes", index, "failed"), "must be another folder than sent, neither inside the other")


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _with_queue(inbox: Inbox, platform: Platform) -> Inbox:
    return inbox.model_copy(update={"queue_id": inbox.queue_id or platform.queue_id})


def _missing(where: Location, remedy: str, problems: Problems) -> None:
    if not problems.at(where):
        problems.add(where, f"missing; {remedy}")


def _checked_inboxes(value: Raw, problems: Problems) -> list[tuple[int, Inbox]]:
    if value is None or value == []:
        problems.add(("inboxes",), 'missing; list at least one folder: "- path: /srv/attachd/claims"')
        return []
    if not isinstance(value, list):
        problems.add(("inboxes",), 'must be a list; start each inbox with "- path: …"')
        return []
    checked = ((index, _checked(Inbox, item, ("inboxes", index), problems)) for index, item in enumerate(value))
    return [(index, inbox) for index, inbox in checked if inbox is not None]


def _state_dir(value: Raw, env: Mapping[str, str], problems: Problems) -> Path | None:
    written = value is not None
    if value is None:
        home, state_home = env.get("HOME", ""), env.get("XDG_STATE_HOME", "")
        if given := env.get("STATE_DIRECTORY"):
            value = given.split(":")[0]  # several, when a unit asks for several; ours comes first
        elif state_home.startswith("/"):
            value = f"{state_home}/attachd"  # its specification says to ignore a relative one
        elif home.startswith("/"):
            value = f"{home}/.local/state/attachd"
        else:
            problems.add(
                ("state_dir",), "missing; set it, since there is no $STATE_DIRECTORY and no $HOME to put it in"
            )
            return None
    try:
        path: Path = TypeAdapter[Path](AbsolutePath).validate_python(value)
    except ValidationError as error:
        _note_all(error, ("state_dir",), problems, {"": "" if written else " (from the environment)"})
        return None
    return path


def _added_to_platform(value: Raw, env: Mapping[str, str], problems: Problems) -> dict[str, Any]:
    """What the environment knows of the platform and the file does not say."""
    written = {key for key, item in value.items() if item not in (None, "")} if isinstance(value, dict) else set()
    added: dict[str, Any] = {}
    for key, names in _FROM_ENVIRONMENT.items():
        found = next((env[name] for name in names if env.get(name)), None)
        if key not in written and found is not None:
            added[key] = found
    if {"client_secret", "client_secret_file"} <= written:
        problems.add(("platform", "client_secret"), "is given, and client_secret_file too; keep one of them")
    elif "client_secret" not in written:
        file = value.get("client_secret_file") if isinstance(value, dict) else None
        added["client_secret"] = _secret(file, env, problems)
    no_proxy = env.get("no_proxy") or env.get("NO_PROXY") or ""
    added["no_proxy"] = no_proxy.replace(",", " ").split()
    return added


def _secret(file: Raw, env: Mapping[str, str], problems: Problems) -> str:
    where = ("platform", "client_secret_file")
    credential = os.path.join(env.get("CREDENTIALS_DIRECTORY") or os.devnull, "client_secret")
    if file:
        if not isinstance(file, str) or not file.startswith("/"):
            return ""  # the validation of the key says so
    elif _has_content(credential):  # the unit gives an empty one where there is no secret to give
        where, file = ("platform", "client_secret"), credential
    else:
        return env.get("GENESYS_CLIENT_SECRET", "")
    try:
        with open(file, "rb") as stream:
            content = stream.read(_MAX_SECRET_BYTES + 1)
        secret = content.decode().rstrip("\r\n")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        problems.add(where, f"{file!r} cannot be read: {reason}")
        return ""
    problems.hide(secret)
    if not secret.strip():
        problems.add(where, f"{file!r} is empty; put the client secret into it")
        return ""
    if len(content) > _MAX_SECRET_BYTES:
        problems.add(where, f"{file!r} is too large to be a client secret; is it the right file?")
    return secret


def _has_content(path: str) -> bool:
    try:
        return os.stat(path).st_size > 0
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True  # reading it will say what is the matter


def _hide_secrets(platform: Raw, problems: Problems) -> None:
    if isinstance(platform, dict):
        for key in ("client_secret", "proxy"):
            value = platform.get(key)
            if isinstance(value, str):
                problems.hide(value)


def _checked(
    section: type[_Part], value: Raw, where: Location, problems: Problems, added: Mapping[str, Any] | None = None
) -> _Part | None:
    """The section, or what is left of it without its mistakes; None when nothing is.

    `added` is what the environment says; it comes on top. A key without a value is as good as no key, and in a section
    that the environment adds to, so is one with an empty text.
    """
    if not isinstance(value, dict):
        problems.add(where, "must be a mapping of keys and values")
        return None
    nothing = (None,) if added is None else (None, "")
    written = {key: item for key, item in value.items() if item not in nothing}
    _note_unknown(written, keys_of(section), where, problems)
    found = {**written, **(added or {})}
    try:
        return section.model_validate(found)
    except ValidationError as error:
        _note_all(error, where, problems, _origins(added or {}))
        for mistake in error.errors(include_input=False, include_url=False):
            found.pop(str(mistake["loc"][0]), None)
    try:
        return section.model_validate(found)
    except ValidationError:
        return None  # what is missing or wrong has been said


def _origins(added: Mapping[str, Any]) -> dict[str, str]:
    return {key: f" (from ${_FROM_ENVIRONMENT[key][-1]})" for key in added if key in _FROM_ENVIRONMENT}


def _note_unknown(value: dict[str, Any], keys: tuple[str, ...], where: Location, problems: Problems) -> None:
    """Say which keys do not exist, and take them out."""
    for key in [key for key in value if key not in keys]:
        del value[key]
        problems.add((*where, key), _unknown(key, keys))


def _unknown(key: str, keys: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(key, keys, n=1, cutoff=0.6)
    return f"unknown key; did you mean {close[0]!r}?" if close else f"unknown key; there are {', '.join(keys)}"


def _note_all(
    error: ValidationError, where: Location, problems: Problems, origins: Mapping[str, str] | None = None
) -> None:
    for mistake in error.errors(include_input=False, include_url=False):
        inner = tuple(part for part in mistake["loc"] if part != "[key]")
        text = _in_words(mistake["type"], mistake.get("ctx", {}), inner)
        if problems.at((*where, *inner)):
            continue  # an unset variable, say: its consequences are no news
        problems.add((*where, *inner), text + (origins or {}).get(str(inner[0]) if inner else "", ""))


def _in_words(kind: str, context: Mapping[str, Any], where: tuple[int | str, ...]) -> str:
    """What pydantic found, said for the person who wrote the file."""
    match kind:
        case "value_error":
            return str(context["error"])
        case "missing":
            return "missing; set it"
        case "extra_forbidden":
            return _unknown(str(where[-1]), keys_of(SkillForm))
        case "literal_error":
            return f"must be {context['expected']}"
        case "string_type" | "path_type" | "string_sub_type":
            return "must be text; a list or a mapping stands here, or nothing"
        case "string_too_short":
            return "is empty"
        case "bool_type" | "bool_parsing":
            return "must be true or false"
        case kind if kind.startswith("int_"):
            return "must be a whole number"
        case kind if kind.startswith(("float_", "finite_number")):
            return "must be a number"
        case "greater_than":
            return f"must be more than {_number(context['gt'])}"
        case "greater_than_equal":
            return f"must be at least {_number(context['ge'])}"
        case "less_than":
            return f"must be less than {_number(context['lt'])}"
        case "less_than_equal":
            return f"must be at most {_number(context['le'])}"
        case "too_short":
            return "must have at least one entry; remove the key for the default"
        case "tuple_type" | "list_type":
            return "must be a list, like [a, b]"
        case kind if kind.startswith(("model_", "dict_", "mapping_", "dataclass_")):
            return "must be a mapping of keys and values"
    return "is not valid here; see config.example.yaml"


def _number(value: float) -> str:
    return f"{value:g}" if value < 1e6 else f"{value:,.0f}"
