"""Names and lengths of time."""

from __future__ import annotations

import pytest

from preread.contexts.names import check_name, derived_name, parse_ttl, stdin_name, unknown_name
from preread.errors import UsageError


@pytest.mark.parametrize("name", ["a", "handbook", "HR-2026_v1.2", "9lives", "x" * 64])
def test_good_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "x" * 65, "-x", ".x", "../x", "a b", "a/b", "größe", "a\n"])
def test_bad_names_come_with_a_good_one(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_name(name)
    check_name(caught.value.hint.removeprefix("Try: "))


def test_every_path_has_a_name_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    assert (
        derived_name("tmp/my docs")
        == derived_name("/tmp/my docs/")
        == check_name(derived_name("/tmp/my docs"))
    )
    assert derived_name("/a/docs") != derived_name("/b/docs")
    assert derived_name("/a/docs").startswith("docs-")
    assert len(derived_name("/a/docs").removeprefix("docs-")) == 16
    assert check_name(derived_name("/srv/" + "x" * 99)) and check_name(
        derived_name("/x" * 46 + "-y")
    )
    assert check_name(derived_name("/")) and check_name(derived_name("/srv/*.md"))
    assert stdin_name(b"a") != stdin_name(b"b")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("90m", 5400), ("12h", 43_200), ("7d", 604_800), ("2w", 1_209_600)],
)
def test_lengths_of_time(text: str, seconds: float) -> None:
    assert parse_ttl(text) == seconds


@pytest.mark.parametrize("text", ["", "7", "d", "-7d", "0s", "7 years", "1e3s", "nan h"])
def test_what_is_no_length_of_time(text: str) -> None:
    with pytest.raises(UsageError, match="7d"):
        parse_ttl(text)


def test_an_unknown_name_shows_what_is_close() -> None:
    assert "handbook" in str(unknown_name("handbok", ["handbook", "rubric"]))
    assert "preread build" in str(unknown_name("x", []))
