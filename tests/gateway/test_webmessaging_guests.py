"""Labels, secrets and the key between them."""

import os
import stat
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attachd.errors import ConfigError
from attachd.gateway.guests import KEY_BYTES, load_guest_key, new_guest, token_of
from attachd.model import GuestId


@given(st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES), st.text(min_size=1))
def test_the_secret_follows_from_label_and_key(key, label):
    """The same for a later process; shaped like a random UUID; it shows neither label nor key."""
    token = token_of(GuestId(label), key)
    assert token == token_of(GuestId(label), key)
    assert token != token_of(GuestId(label + "x"), key)
    assert token != token_of(GuestId(label), bytes(KEY_BYTES - 1) + b"\x01" if key[-1] != 1 else bytes(KEY_BYTES))
    assert UUID(token).version == 4
    assert str(UUID(token)) == token


def test_labels_do_not_repeat():
    """Each delivery has a guest of its own."""
    assert len({new_guest() for _ in range(1000)}) == 1000


def test_the_key_is_made_once(tmp_path):
    """Whole, for this user alone, and the same ever after."""
    key = load_guest_key(tmp_path)
    assert len(key) == KEY_BYTES
    assert load_guest_key(tmp_path) == key
    assert os.listdir(tmp_path) == ["guest.key"]
    assert stat.S_IMODE((tmp_path / "guest.key").stat().st_mode) == 0o600


def test_a_key_that_another_process_made_meanwhile_counts(tmp_path, monkeypatch):
    """Nobody overwrites it."""
    real = os.link

    def late(source, target):
        (tmp_path / "guest.key").write_bytes(b"k" * KEY_BYTES)
        (tmp_path / "guest.key").chmod(0o600)
        real(source, target)

    monkeypatch.setattr(os, "link", late)
    assert load_guest_key(tmp_path) == b"k" * KEY_BYTES
    assert os.listdir(tmp_path) == ["guest.key"]


@pytest.mark.parametrize("content", [b"", b"k" * 31, b"k" * 33])
def test_a_key_that_is_none_is_never_replaced(tmp_path, content):
    """Messages in doubt could not be asked about any more: a person has to decide."""
    (tmp_path / "guest.key").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_guest_key(tmp_path)
    assert "is no key of attachd" in caught.value.problems[0]
    assert (tmp_path / "guest.key").read_bytes() == content


def test_a_key_that_others_may_read_is_refused(tmp_path):
    """Whoever has it can speak as any guest."""
    load_guest_key(tmp_path)
    (tmp_path / "guest.key").chmod(0o640)
    with pytest.raises(ConfigError) as caught:
        load_guest_key(tmp_path)
    assert "chmod it to 600" in caught.value.problems[0]


def test_a_key_behind_a_link_or_in_no_folder_is_refused(tmp_path):
    """The problem names the path."""
    (tmp_path / "real").write_bytes(b"k" * KEY_BYTES)
    (tmp_path / "guest.key").symlink_to("real")
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(ConfigError) as caught:
            load_guest_key(folder)
        assert str(folder / "guest.key") in caught.value.problems[0]
