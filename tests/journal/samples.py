"""Deliveries to keep: made by hand, and by Hypothesis for every state."""

import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

from hypothesis import strategies as st

from attachd.model import (
    AttachmentId,
    Claimed,
    ConversationId,
    Delivery,
    DeliveryId,
    DeliveryState,
    Document,
    Failed,
    Failure,
    GuestId,
    InboxName,
    Posted,
    Posting,
    Reason,
    Receipt,
    Sent,
    Step,
    Upload,
    Uploaded,
    Version,
)

NOW = datetime(2025, 3, 4, 5, 6, 7, 89, tzinfo=UTC)
UPLOAD = Upload(GuestId("g"), AttachmentId("a"), Document("scan.pdf", "application/pdf", 7), "0" * 64)
RECEIPT = Receipt(ConversationId("c"), "m")
FAILURE = Failure(Reason.REFUSED, "the platform refused it", Step.UPLOAD, 400, "corr")

CLAIMED = Claimed()
UPLOADED = Uploaded(UPLOAD)
POSTING = Posting(UPLOAD, "Document attached", 1)
POSTED = Posted(UPLOAD, RECEIPT)
SENT = Sent(UPLOAD, RECEIPT, "sent/scan.pdf")
FAILED = Failed(FAILURE, "failed/scan.pdf")


def after(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def delivery(
    number: int, state: DeliveryState = CLAIMED, *, inbox: str = "claims", name: str = "scan.pdf", claimed: float = 0
) -> Delivery:
    return Delivery(DeliveryId(f"d{number:06}"), InboxName(inbox), name, Version(1, 2, 3, 4, 5), after(claimed), state)


def become(before: Delivery, state: DeliveryState) -> Delivery:
    return replace(before, state=state)


_texts = st.text(st.characters(exclude_categories=()), max_size=30)  # lone surrogates included
_names = st.binary(min_size=1, max_size=60).map(os.fsdecode)
_small = st.integers(0, 2**31)
_times = st.builds(
    lambda microseconds, zone: (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)).astimezone(
        zone
    ),
    st.integers(0, 2**52),
    st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30))]),
)
_documents = st.builds(Document, _texts, _texts, st.integers(0, 2**62))
_uploads = st.builds(Upload, _texts.map(GuestId), _texts.map(AttachmentId), _documents, _texts)
_receipts = st.builds(Receipt, st.none() | _texts.map(ConversationId), st.none() | _texts)
_failures = st.builds(
    Failure,
    st.sampled_from(Reason),
    _texts,
    st.sampled_from(Step),
    st.none() | st.integers(100, 599),
    st.none() | _texts,
)
STATES: dict[str, st.SearchStrategy[DeliveryState]] = {
    "claimed": st.just(CLAIMED),
    "uploaded": st.builds(Uploaded, _uploads),
    "posting": st.builds(Posting, _uploads, _texts, _small),
    "posted": st.builds(Posted, _uploads, _receipts),
    "sent": st.builds(Sent, _uploads, _receipts, _names),
    "failed": st.builds(Failed, _failures, _names, st.none() | _uploads, st.none() | _receipts),
}


def deliveries(state: st.SearchStrategy[DeliveryState]) -> st.SearchStrategy[Delivery]:
    """Any delivery in that state."""
    whole = st.integers(0, 2**64 - 1)
    versions = st.builds(
        Version, whole, whole, st.integers(0, 2**62), st.integers(-(2**63), 2**65), st.integers(0, 2**65)
    )
    return st.builds(
        Delivery,
        _texts.map(DeliveryId),
        _texts.map(InboxName),
        _names,
        versions,
        _times,
        state,
        _small,
        _small,
        st.none() | _times,
        st.none() | _failures,
    )
