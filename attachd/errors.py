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

from attachd.model import Failure, Reason, Step


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
