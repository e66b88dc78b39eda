"""What kind of deployment this is. Where the sources of the contract disagree, both sides can be chosen."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class MessagingSettings:
    """Figures without a remark are the contract's. A limit of 0 is none."""

    deployment_id: str = "8d2f6a3c-51b7-4e0d-9c46-7a1e0b5f9d24"
    deployments: frozenset[str] = frozenset()  # further deployments that exist
    deployment_status: Literal["Active", "Inactive"] = "Active"
    allowed_origins: frozenset[str] = frozenset()  # with or without scheme; empty: all
    auto_start: bool = False
    conversation_disconnect: Literal["off", "ReadOnly", "Send"] = "off"
    conversation_clear: bool = False
    enable_attachments: Literal["yes", "no", "absent"] = "yes"  # absent: as in the config of an old deployment

    session_life_s: float = 259_200.0  # after the last message
    session_known_from: Literal["configure", "message"] = "configure"  # when newSession turns false
    expired_as: Literal["error", "event"] = "error"  # what a frame of an expired session hears: 4006 or the event
    read_only: bool = False  # every session is, also a new one
    sockets_per_session: int = 3

    media_types: tuple[str, ...] = ("*/*",)  # "image/*" and "*/*" are ranges; empty: no attachments
    max_file_size_kb: int = 10_240  # 0: left out of the profile, which means no attachments
    kilobyte_bytes: Literal[1000, 1024] = 1000
    blocked_extensions: tuple[str, ...] = (".exe", ".bat")
    max_custom_data_bytes: int = 2048
    outside_profile: Literal["refused", "dropped"] = "refused"  # at onAttachment, or silently out of the message
    dropped_types: tuple[str, ...] = ()  # dropped from the message although the profile that is told allows them

    upload_tagging: str = "purpose=attachment&origin=guest"  # value of the x-amz-tagging the PUT must carry
    upload_event_delay_s: float = 0.0
    upload_events_kept: bool = False  # an event for a session without a socket waits for its next one
    attachment_life_s: float = 1_296_000.0  # 15 days
    echo_custom_attributes: bool = False

    jwt_life_s: float = 600.0  # ours
    history_delay_s: float = 0.0
    history_order: Literal["newest_first", "oldest_first"] = "newest_first"
    history_metadata: bool = True  # whether the client's own keys are in it

    connections_per_minute: int = 1000  # of a deployment
    requests_per_minute: int = 60  # of a connection
    messages_per_second: int = 2  # of a session, as the two below
    configures_per_minute: int = 60
    history_per_minute: int = 10
    echoes_per_minute: int = 2  # of a connection
    too_many_code: Literal[4029, 429] = 4029

    error_shape: Literal["response", "message"] = "response"  # response with 400, or message with 200
    error_tracing: bool = True  # whether an error carries the tracingId
    error_attachment_id: bool = True  # whether an error about a slot says whose
    error_schema: bool = False  # True: an error of its own class also has name and message, as the schema wants
    reason_field: Literal["reason", "reasonCode"] = "reason"
    doubles: bool = False  # numbers of session and token as 2048.0
    chatter: float = 0.0  # probability that bot or agent say something around an answer
    frame_limit_bytes: int = 131_072  # ours
