"""Whose fault an error is: four families, and what each makes the daemon do.

    DeliveryError
    ├── TransientError      nobody's: tried again later
    │   └── UnknownOutcome  the message may have been accepted; only the posting step raises it
    ├── FileError           this file can never go: to failed/ with the reason
    ├── InboxError          this inbox is set up wrong or its folder is in trouble: the inbox pauses, no file fails
    └── AccountError        the account or the platform as a whole: everything pauses, no file fails

An error that is in none of them is a bug or a broken disk: it ends the daemon, and the journal knows where it was.
Two more are not about deliveries: `ConfigError`, a mistake of the operator found before anything starts, and
`JournalError`, a journal that can no longer be trusted to remember.
"""

from collections.abc import Mapping
from types import MappingProxyType

from attachd.model import Failure, Reason, Step

_DROP_AGAIN = "then drop it into the inbox again"
_BY_ITSELF = "Nothing: attachd goes on by itself when it works again."

ADVICE: Mapping[Reason, str] = MappingProxyType(
    {
        Reason.EMPTY: f"Look why it is empty (was the scan or copy broken off?), {_DROP_AGAIN}.",
        Reason.TOO_LARGE: f"Make it smaller or split it, {_DROP_AGAIN}.",
        Reason.TYPE_NOT_ALLOWED: f"Save it as a type this inbox takes, {_DROP_AGAIN}.",
        Reason.REFUSED: f"Look at what the platform said above, mend the file, {_DROP_AGAIN}.",
        Reason.ATTACHMENT_DROPPED: "An agent got a message without its document. Let the organisation's content "
        "profile take files of this type; a file in failed/ can then be dropped into the inbox again.",
        Reason.UNREADABLE: f"Give attachd's user the right to read it, or look at the disk, {_DROP_AGAIN}.",
        Reason.CHANGED: "Write under a name that begins with a dot and rename when done; "
        "it is sent once it is left alone.",
        Reason.CHANGED_AFTER_SEND: "Compare it with what the agent has; if this content is to go as well, "
        "drop it into the inbox again.",
        Reason.UNKNOWN_OUTCOME: "Ask the agents whether they have it. If they do, remove it; "
        "if not, drop it into the inbox again.",
        Reason.JOURNAL_LOST: "Ask the agents whether they have it. If they do, remove it; "
        "if not, drop it into the inbox again.",
        Reason.GAVE_UP: f"Look at the last error above; if the file itself is sound, {_DROP_AGAIN[5:]}.",
        Reason.VANISHED: "If it was not meant to go, nothing; otherwise drop it into the inbox again.",
        Reason.QUEUE_REFUSED: "Correct queue_id or skills of this inbox; the queue must take web messages.",
        Reason.MESSAGE_REFUSED: "Correct message and metadata of this inbox.",
        Reason.ATTACHMENTS_NOT_GRANTED: "Have attachments enabled for web messaging in the organisation.",
        Reason.FOLDER_MISSING: "Bring the folder back, or mount the share; attachd goes on by itself.",
        Reason.FOLDER_REPLACED: "Nothing, if the new folder is meant; attachd goes on with it by itself.",
        Reason.FOLDER_NOT_WRITABLE: "Let attachd's user list, write and rename in the folder and all below it.",
        Reason.FOLDER_IN_USE: "Stop the other attachd, or give each its own folders.",
        Reason.DISK_FULL: "Make room; attachd goes on by itself.",
        Reason.TOO_MANY_FAILURES: "Look at what the last files were refused for and mend it; then attachd goes on.",
        Reason.PAUSED_BY_OPERATOR: "Resume it on the page; a restart of attachd does so too.",
        Reason.CREDENTIALS_REFUSED: "Correct client_id and client_secret; `attachd check` tries them.",
        Reason.FORBIDDEN: "Give the OAuth client the scopes the README lists.",
        Reason.DEPLOYMENT_REFUSED: "Look at deployment_id and environment, and whether the deployment is active, takes "
        "attachments and lets `origin` in; `attachd check` asks it.",
        Reason.TLS_FAILED: "Look who answers there; if it is a proxy of your own, name its certificate in ca_file.",
        Reason.NOT_THE_PLATFORM: "Look at environment, api_url and login_url, and at proxies in between.",
        Reason.STORAGE_REFUSED: "Look at proxies between here and the storage; attachd asks for a new place by itself.",
        Reason.RATE_LIMITED: _BY_ITSELF,
        Reason.PLATFORM_FAILING: _BY_ITSELF,
        Reason.UNREACHABLE: "If the network here is sound, nothing: attachd goes on by itself.",
        Reason.CONNECTION_LOST: _BY_ITSELF,
        Reason.TIMEOUT: _BY_ITSELF,
        Reason.SERVER_ERROR: _BY_ITSELF,
        Reason.URL_EXPIRED: _BY_ITSELF,
        Reason.NOT_READY: _BY_ITSELF,
    }
)
"""What a person can do about each reason."""


class DeliveryError(Exception):
    """What went wrong at a step, in words without secrets; `str()` is the detail."""

    def __init__(
        self,
        reason: Reason,
        detail: str,
        step: Step,
        *,
        http_status: int | None = None,
        correlation_id: str | None = None,
    ) -> None:
        super().__init__(detail)
        self.failure = Failure(reason, detail, step, http_status, correlation_id)

    @property
    def reason(self) -> Reason:
        """The stable word."""
        return self.failure.reason

    @property
    def step(self) -> Step:
        """Where it happened."""
        return self.failure.step


class TransientError(DeliveryError):
    """Nobody's fault: silence, a reset, 429, 5xx. `retry_after_s` is how long the platform asked us to stay away."""

    def __init__(
        self,
        reason: Reason,
        detail: str,
        step: Step,
        *,
        http_status: int | None = None,
        correlation_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(reason, detail, step, http_status=http_status, correlation_id=correlation_id)
        self.retry_after_s = retry_after_s


class UnknownOutcome(TransientError):  # noqa: N818  an outcome, and one of the transient family, before it is an error
    """The message may or may not have been accepted: its answer was lost or could not be read."""


class FileError(DeliveryError):
    """This file can never go."""


class InboxError(DeliveryError):
    """The inbox is set up wrong, or its folder is in trouble; its files wait."""


class AccountError(DeliveryError):
    """The account is refused, or nothing can be said to the platform at all; everything waits."""


class ConfigError(Exception):
    """The config cannot be used; `problems` holds all of them, each a line that starts with its path in the file."""

    def __init__(self, source: str, problems: list[str]) -> None:
        super().__init__(f"{source}: {len(problems)} problem{'s' if len(problems) != 1 else ''}")
        self.source = source
        self.problems = problems


class JournalError(Exception):
    """The journal cannot be opened, read or written; the process must end, or it would act without memory."""


class JournalBusy(JournalError):  # noqa: N818  says what is the matter
    """Another attachd holds the state folder."""
