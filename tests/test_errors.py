"""Errors are one line, of one family, and survive the way between processes."""

import pickle

import pytest

from vlkit.errors import GroundingParseError, MediaError, ModelError, RemoteError, VlkitError


@pytest.mark.parametrize("kind", [MediaError, ModelError, GroundingParseError, RemoteError])
def test_all_are_vlkit_errors(kind):
    assert issubclass(kind, VlkitError)
    assert str(kind("what; remedy")) == "what; remedy"


@pytest.mark.parametrize("text", ["a\nb", "a\r\nb", "a\x1b[31mb", "a\u2028b", "a\0b"])
def test_one_line(text):
    message = str(VlkitError(text))
    assert message.isprintable() and message[0] == "a" and message[-1] == "b"


def test_chinese_stays():
    assert str(MediaError("图片 “坏”…")) == "图片 “坏”…"


def test_pickle_keeps_the_text():
    error = pickle.loads(pickle.dumps(GroundingParseError("no box", "<box>(1")))
    assert (type(error), str(error), error.text) == (GroundingParseError, "no box", "<box>(1")
