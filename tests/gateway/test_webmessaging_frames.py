"""The words of the guest protocol, held against the field lists of its contract."""

import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attachd.errors import AccountError, DeliveryError, FileError, InboxError, TransientError, UnknownOutcome
from attachd.gateway import frames
from attachd.gateway.deployment import profile
from attachd.gateway.frames import Arrived, Configured, Echo, Jwt, Place, Refusal
from attachd.model import AttachmentId, Document, Reason, Receipt, Step

TOKEN, TRACING, ours, other = (str(UUID(int=number << 96 | 4 << 76 | 8 << 60)) for number in (1, 2, 3, 4))
OURS, OTHER = AttachmentId(ours), AttachmentId(other)
DOCUMENT = Document("scan-0001.pdf", "application/pdf", 245890)


def sent(request: frames.Request) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(request.text(TOKEN))
    return content


def heard(name: str, body: Any, *, kind: str = "response", code: Any = 200, tracing: str | None = TRACING) -> Any:
    frame = {"type": kind, "class": name, "code": code, "body": body}
    return frames.read(json.dumps(frame | ({"tracingId": tracing} if tracing else {})))


# --- what is sent


def test_every_frame_names_action_token_and_tracing_id():
    """The envelope is the same for all; the token appears there and nowhere else."""
    for request in (
        frames.configure_session(TRACING, "d"),
        frames.close_session(TRACING),
        frames.join(TRACING),
        frames.on_attachment(TRACING, OURS, DOCUMENT),
        frames.on_message(TRACING, OURS, "text", {}),
        frames.get_attachment(TRACING, OURS),
        frames.get_jwt(TRACING),
    ):
        content = sent(request)
        assert (content["action"], content["token"], content["tracingId"]) == (request.action, TOKEN, TRACING)
        assert TOKEN not in repr(request)


def test_configuring_a_session():
    """`startNew` is said either way, as the vendor's client does."""
    assert sent(frames.configure_session(TRACING, "d-1")) == {
        "action": "configureSession",
        "token": TOKEN,
        "tracingId": TRACING,
        "deploymentId": "d-1",
        "startNew": False,
    }
    assert sent(frames.configure_session(TRACING, "d-1", start_new=True))["startNew"] is True
    assert sent(frames.close_session(TRACING))["closeAllConnections"] is True


def test_asking_for_a_place():
    """Our own id, the type without parameters, errors as JSON; no checksum, whose form nobody knows."""
    document = Document("a.txt", "text/plain; charset=utf-8", 3)
    assert sent(frames.on_attachment(TRACING, OURS, document)) == {
        "action": "onAttachment",
        "token": TOKEN,
        "tracingId": TRACING,
        "attachmentId": OURS,
        "fileName": "a.txt",
        "fileType": "text/plain",
        "fileSize": 3,
        "errorsAsJson": True,
    }
    assert sent(frames.on_attachment(TRACING, OURS, Document("a.opus", "audio/opus", 3)))["fileType"] == "audio/ogg"


def test_the_message_carries_one_attachment_and_the_attributes_where_the_platform_reads_them():
    """Only the id goes with the attachment; without metadata there is no channel at all."""
    assert sent(frames.on_message(TRACING, OURS, "Document ☃", {"jobId": "42"}))["message"] == {
        "type": "Text",
        "text": "Document ☃",
        "metadata": {"id": TRACING},
        "content": [{"contentType": "Attachment", "attachment": {"id": OURS}}],
        "channel": {"metadata": {"customAttributes": {"jobId": "42"}}},
    }
    assert "channel" not in sent(frames.on_message(TRACING, OURS, "t", {}))["message"]
    assert sent(frames.join(TRACING))["message"] == {
        "type": "Event",
        "events": [{"eventType": "Presence", "presence": {"type": "Join"}}],
    }


@given(st.text(max_size=6000))
def test_a_text_is_never_longer_than_the_platform_takes(text):
    """It is cut between characters, and only if it must be; a repetition is cut alike."""
    short = frames.shortened(text)
    assert len(short.encode()) <= 4096
    if len(text.encode("utf-8", "replace")) <= 4096:
        assert short == text.encode("utf-8", "replace").decode()
    else:
        assert short.endswith("…")
        assert text.startswith(short[:-1]) or "?" in short


# --- what comes

INBOUND: Mapping[str, Any] = {
    "id": "9d1e6f0c2b7a4c3d8e5f60718293a4b5",
    "type": "Text",
    "direction": "Inbound",
    "content": [{"contentType": "Attachment", "attachment": {"id": OURS, "mediaType": "File"}}],
}


def test_a_session_response_with_everything():
    """Doubles are as good as whole numbers, and the profile comes with it."""
    body = {
        "connected": True,
        "newSession": True,
        "readOnly": False,
        "maxCustomDataBytes": 2048.0,
        "allowedMedia": {"inbound": {"fileTypes": [{"type": "Image/*"}], "maxFileSizeKB": 10240.0}},
        "blockedExtensions": [".EXE"],
        "durationSeconds": 259200.0,
        "unheardOf": {},
    }
    assert frames.read_configured(heard("SessionResponse", body), TRACING) == Configured(
        True, True, False, profile(["image/*"], 10240, [".exe"]), 2048
    )


@pytest.mark.parametrize("tracing", [TRACING, None])
def test_a_session_response_with_nothing_but_connected(tracing):
    """Everything else may be absent: then no file may come in."""
    found = frames.read_configured(heard("SessionResponse", {"connected": True}, tracing=tracing), TRACING)
    assert isinstance(found, Configured)
    assert (found.connected, found.is_new, found.read_only, found.max_custom_bytes) == (True, False, False, None)
    assert not found.profile.takes_files


def test_an_expired_session_answers_in_its_own_way():
    """The event comes as a response or a message, and means that the session is over."""
    for kind in ("response", "message"):
        found = frames.read_configured(heard("SessionExpiredEvent", {}, kind=kind, tracing=None), TRACING)
        assert isinstance(found, Refusal)
        assert found.code == 4006


PLACE: Mapping[str, Any] = {"attachmentId": OURS, "url": "https://u.example/o?sig=HUSH", "headers": {"x-amz-a": "b"}}


@pytest.mark.parametrize(
    ("change", "tracing", "expected"),
    [
        ({}, TRACING, Place(OURS, PLACE["url"], PLACE["headers"])),
        ({}, None, Place(OURS, PLACE["url"], PLACE["headers"])),
        ({}, "another", Place(OURS, PLACE["url"], PLACE["headers"])),
        ({"attachmentId": OTHER}, TRACING, Place(OTHER, PLACE["url"], PLACE["headers"])),
        ({"attachmentId": OTHER}, None, None),
        ({"attachmentId": OTHER}, "another", None),
        ({"headers": {}, "fileSize": 3}, TRACING, None),
        ({"headers": None}, TRACING, None),
        ({"headers": {"a": 1}}, TRACING, Refusal(-1, "it names no place for the file", True)),
        ({"url": None}, TRACING, Refusal(-1, "it names no place for the file", True)),
        ({"attachmentId": "../x"}, TRACING, Refusal(-1, "it names no place for the file", True)),
    ],
)
def test_a_place_for_the_bytes(change, tracing, expected):
    """Ours by our attachment id, else by the tracing id; without headers it is a place to read from."""
    frame = heard("PresignedUrlResponse", dict(PLACE) | change, tracing=tracing)
    found = frames.read_place(frame, TRACING, OURS)
    assert found == expected
    assert "HUSH" not in repr(found) + repr(frame)


def test_whether_the_platform_still_has_an_upload():
    """A place to read from says so; one to write to is an answer to something else."""
    assert sent(frames.get_attachment(TRACING, OURS))["attachmentId"] == OURS
    kept = {"attachmentId": OURS, "url": "https://d.example", "headers": {}, "fileSize": 3.0}
    assert frames.read_kept(heard("PresignedUrlResponse", kept, tracing=None), TRACING, OURS) == Arrived()
    assert frames.read_kept(heard("PresignedUrlResponse", PLACE, tracing=None), TRACING, OURS) is None
    assert frames.read_kept(heard("string", "gone", code=4009), TRACING, OURS) == Refusal(4009, "gone", True)


def test_what_became_of_the_bytes():
    """Told apart by the attachment alone: no tracing id is promised."""
    done = {"attachmentId": OURS, "downloadUrl": "https://d.example", "timestamp": "2026-01-05T10:00:02.120Z"}
    failed = {"attachmentId": OURS, "errorCode": 4003.0, "errorMessage": "odd", "timestamp": "2026-01-05T10:00:02Z"}
    assert frames.read_arrived(heard("UploadSuccessEvent", done, tracing=None), OURS) == Arrived()
    assert frames.read_arrived(heard("UploadFailureEvent", failed, tracing=None), OURS) == Refusal(4003, "odd", True)
    for name, body in (("UploadSuccessEvent", done), ("UploadFailureEvent", failed)):
        assert frames.read_arrived(heard(name, body | {"attachmentId": OTHER}), OURS) is None
    assert frames.read_arrived(heard("AttachmentDeletedResponse", done), OURS) is None


NOT_OURS = Refusal(-1, "its echo names another attachment", tagged=False)


@pytest.mark.parametrize(
    ("change", "kind", "tracing", "expected"),
    [
        ({}, "message", TRACING, Echo(INBOUND["id"], True)),
        ({"id": None}, "message", TRACING, Echo(None, True)),
        ({"id": "a b"}, "message", TRACING, Echo(None, True)),
        ({"content": []}, "message", TRACING, Echo(INBOUND["id"], False)),
        ({"content": None}, "message", TRACING, Echo(INBOUND["id"], False)),
        ({"content": [7, {"attachment": 7}, {"text": "x"}]}, "message", TRACING, Echo(INBOUND["id"], False)),
        (
            {"content": [{"attachment": {"id": OTHER}}, *INBOUND["content"]]},
            "message",
            TRACING,
            Echo(INBOUND["id"], True),
        ),
        ({"content": [{"attachment": {"mediaType": "File"}}]}, "message", TRACING, NOT_OURS),
        ({"content": [{"attachment": {"id": OTHER}}, 7, {"attachment": 7}]}, "message", TRACING, NOT_OURS),
        ({}, "response", TRACING, None),
        ({}, "message", None, None),
        ({}, "message", "another", None),
        ({"direction": "Outbound"}, "message", TRACING, None),
        ({"direction": None}, "message", TRACING, None),
    ],
)
def test_what_counts_as_the_word_that_the_message_stands(change, kind, tracing, expected):
    """Inbound, pushed, with our tracing id; a health check's answer, the agent's words and others' do not.

    Without any attachment ours was dropped; with another one nobody can say.
    """
    frame = heard("StructuredMessage", dict(INBOUND) | change, kind=kind, tracing=tracing)
    assert frames.read_echo(frame, TRACING, OURS) == expected


def test_the_right_to_read():
    """It becomes a header, so it must be fit for one."""
    assert frames.read_jwt(heard("JwtResponse", {"jwt": "eyJ.a", "exp": 1.0}), TRACING) == Jwt("eyJ.a")
    for odd in (None, 7, "", "a\r\nb: c", "é"):
        found = frames.read_jwt(heard("JwtResponse", {"jwt": odd}), TRACING)
        assert isinstance(found, Refusal)
    assert "eyJ" not in repr(Jwt("eyJ.a"))


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (heard("string", "text", code=4011), Refusal(4011, "text", True)),
        (heard("string", "text", code=4011.0, tracing=None), Refusal(4011, "text", False)),
        (heard("string", "fine"), None),
        (heard("string", "text", code=None), None),
        (heard("string", "text", code=400, tracing="another"), None),
        (
            heard("GenerateUrlError", {"attachmentId": OURS, "errorCode": 4001, "errorMessage": "m"}, tracing=None),
            Refusal(4001, "m", True),
        ),
        (
            heard("GenerateUrlError", {"attachmentId": OURS, "errorCode": 4001}, tracing="another"),
            Refusal(4001, "", True),
        ),
        (heard("GenerateUrlError", {"errorCode": 4001, "message": "m", "name": "n"}), Refusal(4001, "m", True)),
        (heard("GenerateUrlError", {"errorCode": 4001}, tracing=None, kind="message"), Refusal(4001, "", False)),
        (heard("GenerateUrlError", {"attachmentId": OTHER, "errorCode": 4001}, tracing=None), None),
        (heard("ErrorMessage", {"errorCode": 5000}), Refusal(5000, "", True)),
        (heard("Error", {}, code=500), Refusal(500, "", True)),
        (heard("TooManyRequestsErrorMessage", {"retryAfter": 3, "errorCode": 4029}), Refusal(4029, "", True, 3.0)),
        (
            heard("TooManyRequestsErrorMessage", {"retryAfter": 3.5, "errorCode": 429}, tracing=None),
            Refusal(429, "", False, 3.5),
        ),
        (heard("TooManyRequestsErrorMessage", {"retryAfter": "3"}), Refusal(429, "", True, frames.QUIET_S)),
        (
            heard("TooManyRequestsErrorMessage", {"retryAfter": 1e300, "errorCode": 7}),
            Refusal(429, "", True, frames.QUIET_S),
        ),
        (heard("TooManyRequestsErrorMessage", {"retryAfter": -1}), Refusal(429, "", True, 1.0)),
        (heard("TooManyRequestsErrorMessage", {"retryAfter": 86400}), Refusal(429, "", True, 3600.0)),
        (heard("NeverHeardOf", {"errorCode": 4001}), None),
        (heard("GetConfigurationResponse", {}), None),
    ],
)
def test_what_refuses_our_question(frame, expected):
    """By our tracing id, our attachment, or without saying whose question it is."""
    assert frames.refusal(frame, TRACING, OURS) == expected


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "7", '{"class": 7}', '{"type": "message"}', '{"class": "string", "code": NaN}', "[" * 9999],
)
def test_what_is_no_frame_is_ignored(text):
    """No JSON, no object, no class."""
    assert frames.read(text) is None


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_no_body_breaks_anything(body):
    """Whatever stands in a frame of a class we know, reading it ends in an answer or in none."""
    for name in (
        "SessionResponse",
        "StructuredMessage",
        "PresignedUrlResponse",
        "UploadSuccessEvent",
        "UploadFailureEvent",
        "GenerateUrlError",
        "TooManyRequestsErrorMessage",
        "JwtResponse",
        "string",
        "SessionExpiredEvent",
    ):
        frame = frames.Frame("message", name, 400, TRACING, body)
        frames.read_configured(frame, TRACING)
        frames.read_place(frame, TRACING, OURS)
        frames.read_arrived(frame, OURS)
        frames.read_echo(frame, TRACING, OURS)
        frames.read_jwt(frame, TRACING)
    frames.read_page({"entities": body}, OURS, number_of=1, size=100)
    frames.read_page({"entities": [body], "pageCount": body}, OURS, number_of=1, size=100)


def test_a_page_of_the_history():
    """Our attachment in an inbound message is the message; whether more pages follow is told or counted."""
    agent = dict(INBOUND) | {"direction": "Outbound"}
    page = frames.read_page({"entities": [agent, INBOUND], "pageCount": 1}, OURS, number_of=1, size=100)
    assert page == frames.Page(Receipt(None, INBOUND["id"]), True)
    for content, number, last in (
        ({"entities": [agent], "pageCount": 2.0}, 1, False),
        ({"entities": [agent], "pageCount": 2}, 2, True),
        ({"entities": []}, 1, True),
        ({"entities": [agent] * 100}, 1, False),
        ({"entities": [agent] * 99}, 1, True),
    ):
        assert frames.read_page(content, OURS, number_of=number, size=100) == frames.Page(None, last)
    assert frames.read_page({"entities": None}, OURS, number_of=1, size=100) is None


# --- whose fault a refusal is

S, U, P, M = Step.SESSION, Step.UPLOAD, Step.PUT, Step.MESSAGE
T, X, F, I, A = TransientError, UnknownOutcome, FileError, InboxError, AccountError  # noqa: E741

TABLE: Mapping[tuple[int, ...], tuple[tuple[type[DeliveryError], Reason], ...]] = {
    # session, upload and put, message
    (4000,): ((I, Reason.ATTACHMENTS_NOT_GRANTED),) * 3,
    (4001,): ((A, Reason.DEPLOYMENT_REFUSED), (F, Reason.TYPE_NOT_ALLOWED), (F, Reason.TYPE_NOT_ALLOWED)),
    (4002,): ((A, Reason.DEPLOYMENT_REFUSED), (F, Reason.TOO_LARGE), (F, Reason.TOO_LARGE)),
    (4003, 4004, 4005): ((A, Reason.DEPLOYMENT_REFUSED), (F, Reason.REFUSED), (F, Reason.REFUSED)),
    (4102,): ((A, Reason.DEPLOYMENT_REFUSED), (F, Reason.EMPTY), (F, Reason.EMPTY)),
    (4006, 4007, 4017, 409): ((T, Reason.NOT_READY),) * 3,
    (4008, 4009, 4010, 404): ((A, Reason.DEPLOYMENT_REFUSED), (T, Reason.NOT_READY), (T, Reason.NOT_READY)),
    (4011, 4013): ((A, Reason.DEPLOYMENT_REFUSED), (I, Reason.MESSAGE_REFUSED), (I, Reason.MESSAGE_REFUSED)),
    (4029, 429): ((T, Reason.RATE_LIMITED),) * 3,
    (401, 403): ((A, Reason.DEPLOYMENT_REFUSED),) * 3,
    (400, 4012, 4014, 4015, 4016, 4018, 4019, 4020, 4999): (
        (A, Reason.DEPLOYMENT_REFUSED),
        (F, Reason.REFUSED),
        (F, Reason.REFUSED),
    ),
    (408,): ((T, Reason.TIMEOUT), (T, Reason.TIMEOUT), (X, Reason.TIMEOUT)),
    (500, 502, 503, 504, 5000, 0, 200, 302): (
        (T, Reason.SERVER_ERROR),
        (T, Reason.SERVER_ERROR),
        (X, Reason.SERVER_ERROR),
    ),
    (-1,): ((A, Reason.NOT_THE_PLATFORM),) * 3,
}
ROWS = [
    (code, step, *verdicts[column])
    for codes, verdicts in TABLE.items()
    for code in codes
    for step, column in ((S, 0), (U, 1), (P, 1), (M, 2))
]


@pytest.mark.parametrize(("code", "step", "family", "reason"), ROWS)
def test_whose_fault_a_code_is(code, step, family, reason):
    """The contract's table of errors, by step; the platform's words are told, a secret in them is not."""
    refused = Refusal(code, f"so it is, for {TOKEN}, https://u.example/?sig=HUSH", True, retry_after_s=3.0)
    error = frames.error(refused, step, "onMessage", TOKEN)
    assert type(error) is family
    assert (error.reason, error.step) == (reason, step)
    assert "so it is" in str(error)
    assert TOKEN not in str(error)
    assert "HUSH" not in str(error)
    if isinstance(error, TransientError) and code in (429, 4029):
        assert error.retry_after_s == 3.0


@pytest.mark.parametrize("code", [code for codes in TABLE for code in codes])
def test_after_a_message_only_a_refusal_that_names_it_counts(code):
    """An error that does not say what it is about leaves the outcome open."""
    error = frames.error(Refusal(code, "", tagged=False), M, "onMessage")
    assert type(error) is UnknownOutcome
    assert "may have been accepted" in str(error)


def test_a_limit_on_connections_is_everybodys():
    """The words tell which limit was met; a session's own is nobody else's business."""
    assert Refusal(429, "New Connections rate too high for this deployment", True).names_connections
    assert not Refusal(429, "ConfigureSession rate too high for this session", True).names_connections
    assert not Refusal(400, "connection", True).names_connections


def test_ids_are_what_the_platform_calls_ids():
    """Nothing that would not survive in a line of a log."""
    assert frames.is_id(str(UUID(int=7)))
    for odd in (None, 7, "", "a b", "a\n", "x" * 129, "é"):
        assert not frames.is_id(odd)
