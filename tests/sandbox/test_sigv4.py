"""The signature is AWS's, not merely one that our own two halves agree on."""

from datetime import UTC, datetime, timedelta
from urllib.parse import unquote

import pytest

from attachd.sandbox.sigv4 import Credential, Rejected, judge, presigned

# The example of the S3 API reference, "Authenticating Requests: Using Query Parameters".
EXAMPLE = Credential("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "us-east-1")
SIGNED_AT = datetime(2013, 5, 24, tzinfo=UTC)
HOST = {"host": "examplebucket.s3.amazonaws.com"}


def verdict(url: str, *, method: str = "GET", headers: dict[str, str] = HOST, now: datetime = SIGNED_AT) -> str:
    """The code of the rejection, or "ok"."""
    path, _, query = url.partition("?")
    try:
        judge(method, path, query, headers.items(), EXAMPLE, now)
    except Rejected as rejected:
        return f"{rejected.code}: {rejected.message}"
    return "ok"


def test_the_published_example_is_reproduced():
    """AWS's own presigned URL comes out, signature and all."""
    url = presigned("GET", "/test.txt", HOST, EXAMPLE, SIGNED_AT, 86_400)
    assert url == (
        "/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256"
        "&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request"
        "&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host"
        "&X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
    )
    assert verdict(url) == "ok"


def test_a_url_holds_until_its_last_second():
    """The lifetime counts from the signature; at its end the URL is over."""
    url = presigned("GET", "/test.txt", HOST, EXAMPLE, SIGNED_AT, 300)
    assert verdict(url, now=SIGNED_AT + timedelta(seconds=299)) == "ok"
    assert verdict(url, now=SIGNED_AT + timedelta(seconds=300)) == "AccessDenied: Request has expired"


def test_a_url_from_the_future_is_not_valid_yet():
    """A quarter of an hour of clock skew is forgiven, more is not."""
    url = presigned("GET", "/test.txt", HOST, EXAMPLE, SIGNED_AT, 300)
    assert verdict(url, now=SIGNED_AT - timedelta(minutes=15)) == "ok"
    assert verdict(url, now=SIGNED_AT - timedelta(minutes=16)) == "AccessDenied: Request is not valid yet"


@pytest.mark.parametrize(
    "name",
    [
        "a b.pdf",
        "ä+ö.pdf",
        "100%.pdf",
        "%41.pdf",
        "a%2Fb.pdf",
        "日本 語.pdf",
        "q?x=1&y=2#z.pdf",
        "~'()*!;=:@$,.pdf",
        "☃\n.pdf",
    ],
)
def test_odd_names_survive_any_way_of_escaping_them(name):
    """The same object is meant whether a client escapes more or less than the signer did."""
    url = presigned("GET", f"/bucket/{name}", HOST, EXAMPLE, SIGNED_AT, 300)
    path, query = url.split("?")
    assert unquote(path) == f"/bucket/{name}"
    assert verdict(url) == "ok"
    assert verdict(f"{path.replace('%28', '(').replace('%40', '@')}?{query.replace('%2F', '/')}") == "ok"


def test_repeated_spaces_in_a_header_do_not_count():
    """Header values are trimmed and their inner white space collapsed before they are compared."""
    signed = {**HOST, "content-type": "text/plain; charset=utf-8"}
    url = presigned("GET", "/t", signed, EXAMPLE, SIGNED_AT, 300)
    sent = {"Host": HOST["host"], "Content-Type": "  text/plain;   charset=utf-8 "}
    assert verdict(url, headers=sent) == "ok"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("X-Amz-Expires=300", "X-Amz-Expires=900", "SignatureDoesNotMatch"),
        ("/test.txt", "/other.txt", "SignatureDoesNotMatch"),
        ("X-Amz-Signature=", "X-Amz-Signature=0", "SignatureDoesNotMatch"),
        ("X-Amz-Signature=", "extra=1&X-Amz-Signature=", "SignatureDoesNotMatch"),
        ("AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7OTHERS", "InvalidAccessKeyId"),
        ("us-east-1", "eu-west-1", "AuthorizationQueryParametersError"),
        ("HMAC-SHA256", "HMAC-SHA1", "AuthorizationQueryParametersError"),
        ("X-Amz-Expires=300", "X-Amz-Expires=604801", "AuthorizationQueryParametersError"),
        ("X-Amz-Expires=300", "X-Amz-Expires=soon", "AuthorizationQueryParametersError"),
        ("X-Amz-Expires=300", "X-Amz-Expires=300&X-Amz-Expires=300", "AuthorizationQueryParametersError"),
        ("20130524T000000Z", "yesterday", "AuthorizationQueryParametersError"),
        ("&X-Amz-SignedHeaders=host", "", "AuthorizationQueryParametersError"),
    ],
)
def test_whatever_is_changed_in_a_url_is_noticed(old, new, expected):
    """Each part of the URL is covered, and the refusal says which kind of wrong it is."""
    url = presigned("GET", "/test.txt", HOST, EXAMPLE, SIGNED_AT, 300)
    assert old in url
    assert verdict(url.replace(old, new)).startswith(expected)


def test_another_method_or_host_is_noticed():
    """A URL for reading does not write, and none can be moved to another host."""
    url = presigned("GET", "/test.txt", HOST, EXAMPLE, SIGNED_AT, 300)
    assert verdict(url, method="PUT").startswith("SignatureDoesNotMatch")
    assert verdict(url, headers={"host": "elsewhere"}).startswith("SignatureDoesNotMatch")


def test_a_signed_header_that_is_missing_is_noticed():
    """What the URL signs must be there."""
    url = presigned("GET", "/t", {**HOST, "content-type": "text/plain"}, EXAMPLE, SIGNED_AT, 300)
    assert verdict(url).startswith("SignatureDoesNotMatch")
