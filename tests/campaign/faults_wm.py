"""Every fault of the platform at every step of the web messaging protocol: the trials; `faults` runs them.

The history can be asked, so afterwards everything is in `sent/` with exactly one message each. What is refused for
itself, and what can no longer be asked about, stands in the tables, with the reason it is filed under.

attachd never says `echo`, `getConfiguration` or `deleteAttachment`: those steps have no trial.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from attachd.sandbox import Fault, FaultKind, Step, refuse
from tests.campaign import faults
from tests.campaign.faults import FILES, HTTP_STATUSES, NOTHING_ELSE, Around, Trial, faults_at, said
from tests.campaign.report import Tally
from tests.campaign.scene import Scene

# --- what a file may be filed under for what was said of it -----------------------------------------------------------

_OF_THE_FILE: Mapping[int, str] = {
    400: "refused",  # what is malformed stays so
    4001: "type_not_allowed",
    4002: "too_large",
    4003: "refused",
    4004: "refused",
    4005: "refused",
    4102: "empty",
    # Codes without a name in any source, and one that means a mistake of ours: for this file, no more is tried.
    **dict.fromkeys((4012, 4014, 4015, 4016, 4018, 4019, 4020), "refused"),
}
_SPEAKS_OF_THE_FILE = frozenset({Step.ATTACHMENT, Step.EVENT, Step.MESSAGE})

_CANNOT_ASK = frozenset(
    {
        # A history that may not be read says nothing: the operator's choice counts, as without a history.
        *((Step.HISTORY, status) for status in (401, 403, 404)),
        # Nor can one be asked whose right to read is refused for a session that is over.
        *((Step.JWT, code) for code in (409, 4006, 4007, 4017)),
    }
)

# --- the numbers in errors --------------------------------------------------------------------------------------------

_NAMED = tuple(range(4000, 4021))
_PLAIN = (400, 401, 403, 404, 408, 409, 429, 500, 503)
_CODES: Mapping[Step, Sequence[int]] = {
    Step.DEPLOYMENT: HTTP_STATUSES,
    Step.CONNECT: HTTP_STATUSES,
    Step.CONFIGURE: (*_PLAIN, 4000, 4006, 4007, 4017, 4029, 5000),
    Step.JOIN: (400, 429, 503, 4006),
    Step.ATTACHMENT: (*_PLAIN, *_NAMED, 4029, 4102, 5000),
    Step.PUT: HTTP_STATUSES,
    Step.EVENT: (*_PLAIN, *_NAMED, 4029, 4102, 5000),
    Step.MESSAGE: (*_PLAIN, *_NAMED, 4029, 4102, 5000),
    Step.JWT: (401, 403, 408, 409, 429, 500, 4006, 4007, 4017, 4029),
    Step.HISTORY: HTTP_STATUSES,
    Step.GET_ATTACHMENT: (403, 404, 408, 429, 500, 4006, 4008, 4009),
    Step.CLOSE_SESSION: (403, 408, 429, 500, 4006, 4007, 4029),
}
_CLOSES: Mapping[Step, Sequence[int]] = {
    Step.CONNECT: (1000, 1001, 1008, 1011, 1013),
    Step.CONFIGURE: (1001, 1000, 1003, 1007, 1008, 1009, 1011, 1012, 1013),
    Step.ATTACHMENT: (1001, 1000, 1008, 1009, 1011, 1012),
    Step.EVENT: (1001, 1000, 1008, 1011),
    Step.MESSAGE: (1001, 1000, 1008, 1011),
}
_ONCE = frozenset({(Step.HISTORY, FaultKind.WRONG_JSON)})
"""What is a history, and an empty one: a message that two looks do not show is not there, whoever says so."""
_NOT_TWICE = frozenset({Step.CONNECT, Step.EVENT})
"""Where there is nothing to process, or it has been: struck before or after is the same."""

# --- what else is so --------------------------------------------------------------------------------------------------

_PAUSES_ALL = frozenset({Step.DEPLOYMENT, Step.CLOSE_SESSION})
"""Where one strike is enough to make everything wait for a probe; another would only prolong that."""

_AT_THE_START: Mapping[Step, int] = {Step.CONNECT: 1, Step.CONFIGURE: 1}
"""So many requests of a step come before the first of a file: a daemon that starts looks whether it is let in."""

_LOST = Fault(FaultKind.LOST_ANSWER, times=2)
_ASKED = Around("asked about", besides=((Step.MESSAGE, _LOST),))
_TOO_FAST = refuse(4029, times=2, retry_after=1)
_AROUND: Mapping[Step, Around] = {
    # Some steps come only after something else has happened.
    Step.JOIN: Around("to be joined", {"auto_start": True}),
    Step.JWT: _ASKED,
    Step.HISTORY: _ASKED,
    Step.GET_ATTACHMENT: Around(
        "sessions known from their first message",
        {"session_known_from": "message"},
        ((Step.MESSAGE, _TOO_FAST),),
    ),
    Step.CLOSE_SESSION: Around("agents end all", at=(Step.MESSAGE, "disconnect_sessions")),
}

_UNHEARD = frozenset(
    {
        FaultKind.HANG,
        FaultKind.DRIP,
        FaultKind.OVERTAKEN,
        FaultKind.TRUNCATED_JSON,
        FaultKind.WRONG_JSON,
        FaultKind.HTML,
        FaultKind.EMPTY,
    }
)
"""What comes of them is no frame, or none in time: who waits for it waits as long as he ever does."""
_CUT = frozenset(
    {
        FaultKind.RESET_UNREAD,
        FaultKind.RESET,
        FaultKind.LOST_ANSWER,
        FaultKind.RESET_MID_ANSWER,
        FaultKind.HUGE,
        FaultKind.CLOSE,
    }
)
_OPEN_CODES = frozenset({408, 500, 503, 5000})
"""After these nobody knows whether the message stands."""


def trials() -> list[Trial]:
    """All of them."""
    return _together(_all())


async def run(scene: Scene, *, only: Sequence[str] = ()) -> Tally:
    """Run the part."""
    return await faults.run(scene, "faults-wm", trials(), only=only)


def _all() -> Iterator[Trial]:
    yield from _each_at_each()
    yield from _after_an_earlier_one()
    yield from _shapes()
    yield from _limits()
    yield from _order()
    yield from _endings()


def _together(trials: Iterable[Trial]) -> list[Trial]:
    """Those that wait longest, as many as there are files in one: each file then meets another fault."""
    alone, waiting = [], defaultdict(list)
    for trial in trials:
        if trial.reason is None and not trial.slow and _waits(trial):
            waiting[trial.step, trial.strict, trial.policy, trial.around.name].append(trial)
        else:
            alone.append(trial)
    merged = []
    for several in waiting.values():
        for start in range(0, len(several), FILES):
            first, *others = several[start : start + FILES]
            if others:
                faults = [replace(trial.fault, times=1) for trial in (first, *others)]
                first = replace(first, fault=faults[0], also=tuple(faults[1:]))
            merged.append(replace(first, slow=True))
    return merged + alone


def _waits(trial: Trial) -> bool:
    """Whether it takes a deadline of ours, or the half minute between two looks into the history."""
    step, fault = trial.step, trial.fault
    if step is Step.JOIN:  # nobody waits for its answer, but the message that follows is in doubt
        return fault.kind in _CUT or fault.kind is FaultKind.DRIP
    if step in (Step.DEPLOYMENT, Step.CONNECT, Step.PUT, Step.HISTORY):
        return False
    if step is Step.MESSAGE and fault.stops_processing:
        untied = trial.around.settings.get("error_tracing") is False and fault.status != 4029
        return fault.kind is not FaultKind.STATUS or fault.status in _OPEN_CODES or untied
    return fault.kind in _UNHEARD


def _trial(
    step: Step,
    fault: Fault,
    around: Around = NOTHING_ELSE,
    *,
    policy: str = "resend",
    reason: str | None = None,
) -> Trial:
    # Of a refusal that does not say what it refuses, a message is not to suffer: it is in doubt, and asked about.
    ties = around.settings.get("error_tracing", True) or step is not Step.MESSAGE
    if reason is None and step in _SPEAKS_OF_THE_FILE and fault.kind is FaultKind.STATUS and ties:
        reason = _OF_THE_FILE.get(fault.status)
    if reason is None and step is Step.PUT and said(fault) == 413:
        reason = "too_large"
    if (step, fault.kind) == (Step.JWT, FaultKind.SESSION_EXPIRED):
        reason = "unknown_outcome"  # the session took the upload with it: nothing is left to be repeated
    can_ask = (step, said(fault)) not in _CANNOT_ASK
    if not can_ask and policy == "hold":
        reason = "unknown_outcome"
    return Trial(step, fault, True, policy, "webmessaging", (), around, reason, can_ask)


def _each_at_each() -> Iterator[Trial]:
    """Every kind at every step. A lenient storage is tried with the REST gateway: the upload is the same."""
    for step, codes in _CODES.items():
        around = _AROUND.get(step, NOTHING_ELSE)
        for drawn in faults_at(step, codes, _CLOSES.get(step, ())):
            fault = replace(drawn, skip=_AT_THE_START.get(step, 0))
            if (step, fault.kind) in _ONCE or step in _PAUSES_ALL:
                fault = replace(fault, times=1)
            if fault.after_processing and step in _NOT_TWICE:
                continue
            if fault.kind is FaultKind.DROPPED_ATTACHMENT:
                yield replace(_trial(step, fault, around), stuck=True)
                continue
            yield _trial(step, fault, around)
            if (step, said(fault)) in _CANNOT_ASK:
                yield _trial(step, fault, around, policy="hold")
    for kind in (FaultKind.LOST_ANSWER, FaultKind.RESET):
        yield _trial(Step.MESSAGE, Fault(kind, times=2), policy="hold")
    at_the_start = Around("at the start")
    for step in _AT_THE_START:
        for fault in (Fault(FaultKind.RESET, times=2), refuse(403, times=2), refuse(503, times=2)):
            yield _trial(step, fault, at_the_start)
    # Once known the deployment's configuration is asked for anew only after a refusal.
    refused = Around("refused before", besides=((Step.CONFIGURE, replace(refuse(403), skip=1)),))
    for fault in (Fault(FaultKind.RESET, times=1), refuse(503, times=1), refuse(404, times=1)):
        yield _trial(Step.DEPLOYMENT, replace(fault, skip=1), refused)


def _after_an_earlier_one() -> Iterator[Trial]:
    """What happens while a message is asked about, and while one that was refused goes again."""
    again = Around("refused first", besides=((Step.MESSAGE, _TOO_FAST),))
    for around in (_ASKED, again):
        for step in (Step.CONNECT, Step.CONFIGURE):
            for fault in (
                Fault(FaultKind.RESET, times=2),
                Fault(FaultKind.CLOSE, times=2, status=1001),
                refuse(503, times=2),
                refuse(403, times=2),
                refuse(429, times=2, retry_after=1),
            ):
                yield _trial(step, replace(fault, skip=_AT_THE_START[step] + FILES), around)
    # The first two messages are refused, and of what then goes again the answer is lost.
    yield _trial(Step.MESSAGE, replace(_LOST, skip=FILES), again)


def _shapes() -> Iterator[Trial]:
    """Where the sources of the contract disagree: errors in each of their shapes, and what else a platform may do."""
    untied = Around("errors untied", {"error_tracing": False, "error_attachment_id": False})
    for code in (409, 4001, 4006, 4029, 500):
        yield _trial(Step.MESSAGE, refuse(code, times=2), untied)
        yield _trial(Step.ATTACHMENT, refuse(code, times=2), untied)
    for code in (400, 4006, 4029):
        yield _trial(Step.CONFIGURE, refuse(code, times=2), untied)
    # The message stands, and the refusal of the joining does not say that it is not the message's.
    joined = Around("to be joined, errors untied", {"auto_start": True, **untied.settings})
    for code in (4029, 400, 503):
        yield _trial(Step.JOIN, refuse(code, times=2), joined)
    for step, classes in (
        (Step.ATTACHMENT, ("string", "GenerateUrlError", "ErrorMessage", "Error", "TooManyRequestsErrorMessage")),
        (Step.MESSAGE, ("string", "ErrorMessage", "Error", "TooManyRequestsErrorMessage")),
    ):
        for name in classes:
            code = 429 if name == "TooManyRequestsErrorMessage" else 4009
            yield _trial(step, Fault(FaultKind.STATUS, status=code, times=2, error_class=name))
        yield _trial(step, Fault(FaultKind.STATUS, status=4029, times=2, error_class="string"))
    variants: Mapping[str, Mapping[str, object]] = {
        "errors pushed": {"error_shape": "message"},
        "errors by the schema": {"error_schema": True},
        "oldest first": {"history_order": "oldest_first", "chatter": 1.0},
        "no keys in the history": {"history_metadata": False},
        "doubles": {"doubles": True, "reason_field": "reasonCode"},
        "an old deployment": {"enable_attachments": "absent"},
        "known from the first message": {"session_known_from": "message"},
        "kept events": {"upload_events_kept": True},
        "chatter": {"chatter": 1.0},
    }
    for name, settings in variants.items():
        around = Around(name, settings)
        yield _trial(Step.MESSAGE, _LOST, around)
        yield _trial(Step.MESSAGE, refuse(4029, times=2), around)
        yield _trial(Step.ATTACHMENT, refuse(4002, times=2), around)
        yield _trial(Step.EVENT, Fault(FaultKind.RESET, times=2), around)
    late, brief = {"history_delay_s": 5.0}, {"history_delay_s": 5.0, "jwt_life_s": 5.0}
    for trial in (
        _trial(Step.MESSAGE, _LOST, Around("late history", late), policy="hold"),
        _trial(Step.MESSAGE, _LOST, Around("a brief right to read", brief)),
        _trial(Step.MESSAGE, Fault(FaultKind.RESET, times=2), Around("a brief right to read", brief)),
    ):
        yield replace(trial, slow=True)


def _limits() -> Iterator[Trial]:
    """Limits that the platform really keeps, below those that are kept on this side."""
    fast = Fault(FaultKind.DELAY, times=2, delay_s=0.1)
    joined = {"auto_start": True, "messages_per_second": 1}
    for code in (4029, 429):
        around = Around(f"one message a second, {code}", {**joined, "too_many_code": code})
        yield _trial(Step.EVENT, fast, around)
    minute = (
        (Step.EVENT, fast, Around("two requests a connection", {"requests_per_minute": 2})),
        (Step.MESSAGE, _TOO_FAST, Around("four connections", {"connections_per_minute": FILES})),
    )
    for step, fault, around in minute:
        yield replace(_trial(step, fault, around), slow=True)


def _order() -> Iterator[Trial]:
    """Late, early, and one after the other the wrong way round."""
    chatter = Around("chatter", {"chatter": 1.0})
    for step in (Step.CONFIGURE, Step.ATTACHMENT, Step.MESSAGE):
        yield _trial(step, Fault(FaultKind.OVERTAKEN, times=2), chatter)
    # An answer that comes when nobody waits for it any more.
    for step, late_s in ((Step.ATTACHMENT, 16.0), (Step.EVENT, 61.0), (Step.MESSAGE, 31.0)):
        yield replace(_trial(step, Fault(FaultKind.DELAY, times=2, delay_s=late_s)), slow=True)
    yield _trial(Step.EVENT, Fault(FaultKind.EARLY, times=None), Around("late events", {"upload_event_delay_s": 1.0}))


def _endings() -> Iterator[Trial]:
    """Sessions that are over, in each of the ways in which the platform says so."""
    over = Fault(FaultKind.SESSION_EXPIRED, times=2)
    event = Around("said by an event", {"expired_as": "event"})
    for step in (Step.ATTACHMENT, Step.MESSAGE):
        yield _trial(step, over, event)
    # Once there is no answer to the message, a session that is over takes the only witness with it.
    unsaid = Around("said by an event, untied", {"expired_as": "event", "error_tracing": False})
    pushed = Around("all expire", at=(Step.MESSAGE, "expire_sessions"))
    asked_too_late = replace(over, skip=_AT_THE_START[Step.CONFIGURE] + FILES)
    slowed = Fault(FaultKind.DELAY, times=FILES, delay_s=0.1)
    for policy in ("resend", "hold"):
        yield _trial(Step.MESSAGE, over, unsaid, policy=policy, reason="unknown_outcome")
        yield _trial(Step.MESSAGE, slowed, pushed, policy=policy, reason="unknown_outcome")
        yield _trial(Step.CONFIGURE, asked_too_late, _ASKED, policy=policy, reason="unknown_outcome")
    yield _trial(Step.JWT, over, _ASKED, policy="hold")
    # A session without a message is as one that never was: whether the message came nobody can say.
    forgetful = Around("known from the first message", {"session_known_from": "message"})
    unread = Fault(FaultKind.RESET, times=2)
    yield _trial(Step.MESSAGE, unread, forgetful)
    yield _trial(Step.MESSAGE, unread, forgetful, policy="hold", reason="unknown_outcome")
    for step in (Step.PUT, Step.EVENT):
        yield _trial(
            step,
            Fault(FaultKind.DELAY, times=2, delay_s=0.1),
            Around(f"all expire at {step}", at=(step, "expire_sessions")),
        )
        yield _trial(
            step,
            Fault(FaultKind.DELAY, times=2, delay_s=0.1),
            Around(f"agents end all at {step}", at=(step, "disconnect_sessions")),
        )
