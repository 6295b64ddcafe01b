"""Text as it grows: complete characters, stop strings across tokens, nothing shown too early."""

from __future__ import annotations

import pytest

from preread.models.tokenizer import Tokenizer
from preread.testing.models import write_byte_tokenizer
from preread.tokens.reply import StopText


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("bytes")
    write_byte_tokenizer(folder)
    return Tokenizer(folder)


def stream(tokenizer, text: str, stops: tuple[str, ...]) -> tuple[list[str], bool]:
    row, out = StopText(tokenizer, stops), []
    for byte in text.encode():
        out.append(row.push(byte))
        if row.stopped:
            return out, True
    return [*out, row.finish()], row.stopped


@pytest.mark.parametrize(
    ("text", "stops", "shown", "stopped"),
    [
        ("one two", (), "one two", False),
        ("one\n\ntwo", ("\n\n",), "one", True),
        ("one\ntwo", ("\n\n",), "one\ntwo", False),
        ("aab", ("ab",), "a", True),
        ("ababac", ("abac",), "ab", True),
        ("END of", ("END",), "", True),
        ("the EN", ("END",), "the EN", False),
        ("x;y,z", (",", ";"), "x", True),
        ("grün rot", ("ün",), "gr", True),
        ("日本語", ("本",), "日", True),
    ],
)
def test_stop_strings(tokenizer, text, stops, shown, stopped):
    pieces, did = stream(tokenizer, text, stops)
    assert ("".join(pieces), did) == (shown, stopped)


def test_nothing_is_shown_before_it_is_certain(tokenizer):
    pieces, _ = stream(tokenizer, "a<e<end>", ("<end>",))
    assert pieces == ["a", "", "", "<e", "", "", "", ""][: len(pieces)]
    assert "".join(pieces) == "a<e"


def test_two_stops_in_one_token_cut_at_the_first(tokenizer):
    row = StopText(tokenizer, ("b", "a"))
    row._stream.push = lambda tokens: "xxaab"  # type: ignore[method-assign]
    assert row.push(0) == "xx" and row.stopped


def test_an_unfinished_character_ends_as_a_replacement(tokenizer):
    row = StopText(tokenizer, ())
    assert row.push("é".encode()[0]) == ""
    assert row.finish() == "\ufffd"
