"""What a deployment allows: the profile's rules, the public configuration, where the socket is."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attachd.gateway import deployment as deployments
from attachd.gateway.deployment import Profile, profile
from attachd.model import Document, Reason

WORD = st.text("abcdefghijklmnopqrstuvwxyz0123456789-.+", min_size=1, max_size=12)
EXTENSION = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=8)
TYPE = st.builds("{}/{}".format, WORD, WORD)
CASE = st.sampled_from([str.lower, str.upper, str.title])


def document(name: str = "a.pdf", content_type: str = "application/pdf", size: int = 1) -> Document:
    return Document(name, content_type, size)


def reason(rules: Profile, of: Document) -> Reason | None:
    objection = rules.objection(of)
    return objection[0] if objection else None


@given(TYPE, CASE, CASE)
def test_a_type_is_matched_exactly_by_its_half_or_by_everything(content_type, ours, theirs):
    """In any spelling of upper and lower case."""
    whole, half = theirs(content_type), theirs(content_type.partition("/")[0] + "/*")
    for allowed in (whole, half, "*/*"):
        for shape in (allowed, {"type": allowed}):
            assert reason(profile([shape], 1, []), document(content_type=ours(content_type))) is None


@given(TYPE, TYPE)
def test_another_type_is_refused(allowed, content_type):
    """A wildcard stands for a whole half only, never for a part of a word."""
    rules = profile([allowed, f"{allowed}*"], 1, [])
    expected = None if content_type in (allowed, allowed + "*") else Reason.TYPE_NOT_ALLOWED
    assert reason(rules, document(content_type=content_type)) is expected


@given(st.integers(1, 10**6), st.integers(-3, 3), st.booleans())
def test_a_kilobyte_has_a_thousand_bytes(kilobytes, more, doubles):
    """The smaller of the two readings of the vendor, to the byte."""
    rules = profile(["*/*"], float(kilobytes) if doubles else kilobytes, None)
    expected = Reason.TOO_LARGE if more > 0 else None
    assert reason(rules, document(size=kilobytes * 1000 + more)) is expected


@given(EXTENSION, CASE, CASE, st.sampled_from(["", "."]))
def test_a_blocked_extension_wins_over_everything(extension, ours, theirs, dot):
    """With or without the dot, in any spelling, whatever the types allow."""
    rules = profile(["*/*"], 10, [theirs(dot + extension)])
    assert reason(rules, document(f"My scan.{ours(extension)}")) is Reason.TYPE_NOT_ALLOWED
    assert reason(rules, document(f"a.pdf.{ours(extension)} ")) is Reason.TYPE_NOT_ALLOWED
    assert reason(rules, document(f"a{ours(extension)}.other")) in (None, Reason.TYPE_NOT_ALLOWED)
    assert reason(rules, document(f"a{ours(extension)}.z-z")) is None


def test_a_name_without_an_extension():
    """It could be anything, so it goes only where nothing is blocked."""
    for name in ("scan", "scan.", "scan. "):
        assert reason(profile(["*/*"], 1, [".exe"]), document(name)) is Reason.REFUSED
        assert reason(profile(["*/*"], 1, []), document(name)) is None


def test_an_empty_file_is_refused():
    """The platform would refuse it too."""
    assert reason(profile(["*/*"], 1, []), document(size=0)) is Reason.EMPTY


@pytest.mark.parametrize(
    ("types", "kilobytes"),
    [
        ([], 10),
        (None, 10),
        (["*/*"], None),
        (["*/*"], 0),
        (["*/*"], "10"),
        (["*/*"], True),
        ("*/*", 10),
        ([7], 10),
        (["*/*"], 1e400),
    ],
)
def test_without_types_or_a_size_attachments_are_off(types, kilobytes):
    """As the vendor's client reads it."""
    assert not profile(types, kilobytes, []).takes_files
    assert profile(["*/*"], 1, []).takes_files


@given(
    st.recursive(
        st.none() | st.floats() | st.text() | st.integers(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_no_configuration_breaks_anything(value: Any) -> None:
    """Shapes nobody expected are read as saying nothing."""
    profile(value, value, value)
    known = deployments.deployment({"status": value, "messenger": value})
    assert known.auto_start is False
    deployments.deployment({"messenger": {"fileUpload": {"modes": [value, {"fileTypes": value}]}, "apps": value}})


def test_a_configuration_as_the_vendor_writes_it():
    """What the gateway goes by, and nothing else of it."""
    known = deployments.deployment(
        {
            "id": "d-1",
            "status": "Active",
            "apiEndpoint": "https://api.x.example",
            "messenger": {
                "enabled": True,
                "apps": {
                    "conversations": {
                        "messagingEndpoint": "wss://webmessaging.x.example",
                        "autoStart": {"enabled": True},
                    }
                },
                "fileUpload": {"enableAttachments": True, "modes": [{"fileTypes": ["image/png"], "maxFileSizeKB": 5}]},
            },
        }
    )
    assert known.active
    assert (known.attachments, known.auto_start, known.endpoint) == (True, True, "wss://webmessaging.x.example")
    told = profile(["*/*"], 10, [".exe"])
    assert known.profile_with(told) == told
    assert not deployments.deployment({"status": "Inactive"}).active
    assert deployments.deployment({}).active


def test_an_old_deployment_tells_its_profile_itself():
    """Only where it does not say whether attachments are enabled; the session's block list stays."""
    modes = [{"fileTypes": ["image/png"], "maxFileSizeKB": 5}, {"fileTypes": ["a/b"], "maxFileSizeKB": 9}]
    known = deployments.deployment({"messenger": {"fileUpload": {"modes": modes}}})
    assert known.profile_with(profile(["*/*"], 10, [".exe"])) == profile(["image/png", "a/b"], 5, [".exe"])
    told = profile(["*/*"], 10, [])
    assert deployments.deployment({"messenger": {"fileUpload": {"modes": []}}}).profile_with(told) == told


OURS = "wss://webmessaging.x.example"


@pytest.mark.parametrize(
    ("told", "configured", "used"),
    [
        ("wss://webmessaging2.x.example/", OURS, "wss://webmessaging2.x.example"),
        ("wss://webmessaging.x.example:8443", OURS, "wss://webmessaging.x.example:8443"),
        (None, OURS, OURS),
        ("", OURS, OURS),
        ("ws://webmessaging.x.example", OURS, OURS),
        ("https://webmessaging.x.example", OURS, OURS),
        ("wss://evil.example", OURS, OURS),
        ("wss://webmessaging.x.example.evil.example", OURS, OURS),
        ("wss://evilx.example", OURS, OURS),
        ("wss://user@webmessaging.x.example", OURS, OURS),
        ("wss://webmessaging.x.example?a=b", OURS, OURS),
        ("wss://webmessaging.x.example:port", OURS, OURS),
        ("wss://[", OURS, OURS),
        ("wss://webmessaging.x.example", "wss://relay.y.example", "wss://relay.y.example"),
        ("wss://other.y.example", "wss://relay.y.example", "wss://relay.y.example"),
        ("ws://127.0.0.1:1", "ws://127.0.0.1:2", "ws://127.0.0.1:2"),
        ("wss://webmessaging.x.example", "ws://127.0.0.1:2", "ws://127.0.0.1:2"),
    ],
)
def test_where_the_socket_is(told, configured, used):
    """A deployment may move it within the organisation's domain, over TLS; nothing else it says leads us away."""
    assert deployments.endpoint(told, configured) == used
