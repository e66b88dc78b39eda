"""Faults on demand: which request is struck, and by what.

Pure: draws the fault for a request and says no more; `exchange` does the damage to an HTTP answer, the Web Messaging
socket to a frame. Faults of one step are asked in the order in which they were armed, the first that fires wins.
"""

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from fnmatch import fnmatchcase

from attachd.sandbox.step import FRAME_STEPS, Step


class FaultKind(StrEnum):
    # The request is not processed.
    STATUS = "status"  # answered with `status`, `headers` and `body` (or the error this step's server would write)
    RESET_UNREAD = "reset_unread"  # connection reset before the body is read, or knowing of a frame but its action
    RESET = "reset"  # the body is read, then the connection is reset
    HANG = "hang"  # read, never answered; an event is never sent; the socket of a frame stays open
    CLOSE = "close"  # the socket is closed in an orderly way, with the close code `status`
    # The request is processed, the answer is damaged.
    DELAY = "delay"  # only late, by `delay_s`
    LOST_ANSWER = "lost_answer"  # connection reset without an answer
    RESET_MID_ANSWER = "reset_mid_answer"  # the headers and half of the body, then a reset
    TRUNCATED_JSON = "truncated_json"  # a complete HTTP answer with half of the JSON
    WRONG_JSON = "wrong_json"  # valid JSON of another shape
    HTML = "html"  # 200 with a page, as a captive portal answers
    EMPTY = "empty"  # 200 without a body
    HUGE = "huge"  # `size_bytes` of white space before the true answer
    DRIP = "drip"  # the true answer, a byte every `delay_s`
    OVERTAKEN = "overtaken"  # the true frame, held back until the next one has gone out on this socket
    # The request is processed in another way.
    EXPIRED_URL = "expired_url"  # upload, attachment: the URL was over before it was handed out
    WRONG_ATTACHMENT_ID = "wrong_attachment_id"  # conversation, message: the answer names an attachment nobody sent
    CAPABILITY_DENIED = "capability_denied"  # guest, configure: the session is opened without attachments
    DROPPED_ATTACHMENT = "dropped_attachment"  # message: accepted, its attachment silently taken out
    EARLY = "early"  # event: sent before the PUT is answered
    SESSION_EXPIRED = "session_expired"  # a frame: its session is over before the frame is looked at


_UNPROCESSED = frozenset({FaultKind.STATUS, FaultKind.RESET_UNREAD, FaultKind.RESET, FaultKind.HANG, FaultKind.CLOSE})
_TWO_FOLD = frozenset({FaultKind.STATUS, FaultKind.HANG, FaultKind.CLOSE})  # may strike after processing too
_JSON_ONLY = frozenset({FaultKind.TRUNCATED_JSON, FaultKind.WRONG_JSON})
_PUSHED = FRAME_STEPS | {Step.EVENT}
_ONLY_AT = {
    FaultKind.EXPIRED_URL: frozenset({Step.UPLOAD, Step.ATTACHMENT}),
    FaultKind.WRONG_ATTACHMENT_ID: frozenset({Step.CONVERSATION, Step.MESSAGE}),
    FaultKind.CAPABILITY_DENIED: frozenset({Step.GUEST, Step.CONFIGURE}),
    FaultKind.DROPPED_ATTACHMENT: frozenset({Step.MESSAGE}),
    FaultKind.EARLY: frozenset({Step.EVENT}),
    FaultKind.SESSION_EXPIRED: FRAME_STEPS - {Step.UNKNOWN},
    FaultKind.CLOSE: _PUSHED | {Step.CONNECT},
    FaultKind.OVERTAKEN: _PUSHED,
}
# A handshake is answered with a status line, not with content.
_AT_A_HANDSHAKE = frozenset(
    {
        FaultKind.STATUS,
        FaultKind.RESET_UNREAD,
        FaultKind.RESET,
        FaultKind.HANG,
        FaultKind.CLOSE,
        FaultKind.DELAY,
        FaultKind.HTML,
        FaultKind.EMPTY,
    }
)
_WITH_A_FILE = frozenset(
    {
        Step.UPLOAD,
        Step.PUT,
        Step.CONVERSATION,
        Step.ATTACHMENT,
        Step.EVENT,
        Step.MESSAGE,
        Step.GET_ATTACHMENT,
        Step.DELETE_ATTACHMENT,
    }
)
_CLOSE_CODES = range(1000, 5000)
_HTTP_STATUSES = range(200, 600)


@dataclass(frozen=True, slots=True)
class Fault:
    """What strikes, and whom.

    `delay_s` passes before the damage of any kind; for `drip` it is the time between two bytes. Only requests whose
    file name matches the glob `file_name` and whose session's queue (webmessaging: deployment) is `queue_id` are
    candidates; of these the first `skip` are spared, each other is struck with `probability` (drawn from `seed`), until
    it has struck `times` times (None: for ever).

    Where the answer is a frame, `status` is the error code in it, such as 4011, and `error_class` its class if not the
    one the platform would choose: string, GenerateUrlError, ErrorMessage, Error, TooManyRequestsErrorMessage. At
    `event` it is the code of an UploadFailureEvent.
    """

    kind: FaultKind
    times: int | None = 1
    skip: int = 0
    probability: float = 1.0
    seed: int = 0
    file_name: str | None = None
    queue_id: str | None = None
    delay_s: float = 0.0
    status: int = 503
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str | None = None
    error_class: str | None = None
    size_bytes: int = 1024**3
    after_processing: bool = False  # for status, hang and close: the request is processed all the same

    def __post_init__(self) -> None:
        if self.after_processing and self.kind not in _TWO_FOLD:
            raise ValueError("after_processing goes with status, hang and close; the other kinds say it themselves")
        if self.kind is FaultKind.CLOSE and self.status not in _CLOSE_CODES:
            raise ValueError("close needs a close code as status: 1000 to 4999")
        if self.kind is FaultKind.DELAY and self.delay_s <= 0:
            raise ValueError("delay needs delay_s")
        if not 0 <= self.probability <= 1:
            raise ValueError("probability lies between 0 and 1")

    @property
    def stops_processing(self) -> bool:
        return self.kind in _UNPROCESSED and not self.after_processing

    def fits(self, step: Step) -> None:
        """Raise ValueError when the fault cannot happen at this step."""
        places = _ONLY_AT.get(self.kind)
        if places is not None and step not in places:
            raise ValueError(f"{self.kind} can only happen at {', '.join(sorted(places))}")
        if step is Step.CONNECT and self.kind not in _AT_A_HANDSHAKE:
            raise ValueError(f"{self.kind}: a handshake has no content; possible are {', '.join(_AT_A_HANDSHAKE)}")
        if self.kind is FaultKind.STATUS and step not in _PUSHED and self.status not in _HTTP_STATUSES:
            raise ValueError(f"{step} is answered with an HTTP status, 200 to 599")
        if self.kind in _JSON_ONLY and step is Step.PUT:
            raise ValueError(f"{self.kind}: the storage answers no JSON")
        if self.file_name is not None and step not in _WITH_A_FILE:
            raise ValueError(f"{step} knows no file name")
        if self.queue_id is not None and step is Step.TOKEN:
            raise ValueError(f"{step} knows no queue")
        if self.kind is FaultKind.RESET_UNREAD and step is Step.EVENT:
            raise ValueError(f"{self.kind}: nothing is read at {step}")
        if self.kind is FaultKind.RESET_UNREAD and step is not Step.PUT and (self.file_name or self.queue_id):
            raise ValueError(f"{self.kind} at {step} cannot be matched: name and queue are in the body")


def refuse(
    status: int,
    code: str | None = None,
    *,
    times: int | None = 1,
    retry_after: int | str | None = None,
    file_name: str | None = None,
) -> Fault:
    """The most frequent fault: an error answer, with `Retry-After` in seconds or as an HTTP date."""
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return Fault(FaultKind.STATUS, times=times, status=status, code=code, headers=headers, file_name=file_name)


def hang_up(
    close_code: int, *, times: int | None = 1, after_processing: bool = False, file_name: str | None = None
) -> Fault:
    """The socket is closed in an orderly way, as by a platform that restarts (1001) or objects (1008)."""
    return Fault(
        FaultKind.CLOSE, times=times, status=close_code, after_processing=after_processing, file_name=file_name
    )


def fault_from(content: Mapping[str, object]) -> Fault:
    """A fault from JSON, its fields by their names; ValueError says what is wrong with it."""
    wanted = {known.name: known.type for known in fields(Fault)}
    unknown = content.keys() - wanted.keys()
    if unknown:
        raise ValueError(f"no such field of a fault: {', '.join(sorted(unknown))}")
    if "kind" not in content:
        raise ValueError("kind: is missing")
    try:
        kind = FaultKind(str(content["kind"]))
    except ValueError:
        raise ValueError(f"kind: must be one of {', '.join(FaultKind)}") from None
    rest = {name: _fitted(name, value) for name, value in content.items() if name != "kind"}
    return Fault(kind, **rest)  # type: ignore[arg-type]  # _fitted compared each type with the default's


_SAMPLE = Fault(FaultKind.STATUS, file_name="", queue_id="", code="", body="", error_class="")
_NULLABLE = frozenset({"times", "file_name", "queue_id", "code", "body", "error_class"})


def _fitted(name: str, value: object) -> object:
    sample = getattr(_SAMPLE, name)
    if value is None and name in _NULLABLE:
        return None
    if isinstance(sample, dict):
        if not isinstance(value, dict) or not all(isinstance(one, str) for one in value.values()):
            raise ValueError(f"{name}: must be an object of strings")
        return value
    if isinstance(sample, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(sample):
        raise ValueError(f"{name}: must be of type {type(sample).__name__}")
    return value


class _Armed:
    """A fault with what is left of it."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self._to_spare = fault.skip
        self._left = fault.times
        self._chance = random.Random(fault.seed)  # noqa: S311 - must repeat, not surprise

    @property
    def spent(self) -> bool:
        return self._left == 0

    def fires(self, file_name: str | None, queue_id: str | None) -> bool:
        fault = self.fault
        if fault.queue_id is not None and fault.queue_id != queue_id:
            return False
        if fault.file_name is not None and (file_name is None or not fnmatchcase(file_name, fault.file_name)):
            return False
        if self._to_spare:
            self._to_spare -= 1
            return False
        if fault.probability < 1 and self._chance.random() >= fault.probability:
            return False
        if self._left is not None:
            self._left -= 1
        return True


class Faults:
    def __init__(self) -> None:
        self._armed: defaultdict[Step, list[_Armed]] = defaultdict(list)

    def arm(self, step: Step, fault: Fault) -> None:
        """Raise ValueError when the fault cannot happen at this step."""
        fault.fits(step)
        self._armed[step].append(_Armed(fault))

    def clear(self, steps: Iterable[Step] = Step) -> None:
        for step in steps:
            self._armed.pop(step, None)

    def armed(self) -> list[tuple[Step, Fault]]:
        return [(step, one.fault) for step, several in self._armed.items() for one in several]

    def draw_unread(self, step: Step) -> Fault | None:
        """The fault for a request of which nothing but the step is known yet."""
        return self._draw(step, None, None, unread=True)

    def draw(self, step: Step, file_name: str | None, queue_id: str | None) -> Fault | None:
        return self._draw(step, file_name, queue_id, unread=False)

    def _draw(self, step: Step, file_name: str | None, queue_id: str | None, *, unread: bool) -> Fault | None:
        armed = self._armed.get(step)
        if not armed:
            return None
        for one in armed:
            # At the storage the URL says whose file it is, so there even this kind is drawn knowing the name.
            strikes_unread = one.fault.kind is FaultKind.RESET_UNREAD and step is not Step.PUT
            if strikes_unread == unread and one.fires(file_name, queue_id):
                if one.spent:
                    armed.remove(one)
                return one.fault
        return None
