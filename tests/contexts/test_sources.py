"""Documents in, or one error that says which and where."""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.config import ContextSection
from preread.contexts import sources
from preread.contexts.sources import SUFFIXES, Sources, decode, in_order_of, read_sources
from preread.errors import SourceError
from tests.contexts.made import folder, source

LIMITS = ContextSection()


def read(*patterns: object, stdin: bytes | None = None, limits: ContextSection = LIMITS) -> Sources:
    return read_sources([str(p) for p in patterns], limits, stdin)


def paths(*patterns: object) -> list[str]:
    return [r.path for r in read(*patterns).records]


def test_a_folder_is_read_whole_and_sorted(tmp_path: Path) -> None:
    docs = folder(tmp_path, b__md="bee", a__txt="ay")
    (docs / "more").mkdir()
    (docs / "more" / "c.rst").write_text("see")
    found = read(docs)
    assert [r.path for r in found.records] == ["docs/a.txt", "docs/b.md", "docs/more/c.rst"]
    assert found.records[0].origin == str(docs / "a.txt")
    assert found.records[0].digest == sha256(b"ay").hexdigest()
    assert found.patterns == (str(docs),) and found.notes == ()


def test_folder_file_and_glob_name_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docs = folder(tmp_path, a__md="a", b__md="b", c__txt="c")
    assert paths(docs / "a.md") == ["docs/a.md"]
    assert paths(docs / "*.md") == ["docs/a.md", "docs/b.md"]
    monkeypatch.chdir(docs)
    assert paths("*.md", "c.txt") == ["docs/a.md", "docs/b.md", "docs/c.txt"]
    assert paths(".") == ["docs/a.md", "docs/b.md", "docs/c.txt"]
    assert read(".").patterns == (str(docs),)


def test_documents_that_change_while_they_are_read_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = folder(tmp_path, a__md="a 1", b__md="b 1", c__md="c 1")
    really = sources._read

    def read_then_change(path: Path, limits: ContextSection) -> bytes:
        data = really(path, limits)
        if data == b"b 1":  # everything moves on to 2 while "b" is read
            (docs / "c.md").unlink()
            for name in ("a", "b", "d"):
                (docs / f"{name}.md").write_text(f"{name} 2, longer")
        return data

    monkeypatch.setattr(sources, "_read", read_then_change)
    found = read(docs)
    assert [r.text[:3] for r in found.records] == ["a 2", "b 2", "d 2"] and found.notes == ()


def test_documents_that_never_stand_still_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = folder(tmp_path, a__md="a", log__txt="x")
    really = sources._read

    def read_and_grow(path: Path, limits: ContextSection) -> bytes:
        data = really(path, limits)
        if path.name == "log.txt":
            path.write_bytes(data + b"x")
        return data

    monkeypatch.setattr(sources, "_read", read_and_grow)
    found = read(docs)
    assert [r.text for r in found.records] == ["a", "xxx"]
    assert found.notes == (f"changed while being read: {docs / 'log.txt'}",)


def test_a_glob_crosses_folders(tmp_path: Path) -> None:
    docs = folder(tmp_path, a__md="a", x__png="no document")
    (docs / "deep" / "er").mkdir(parents=True)
    (docs / "deep" / "er" / "b.md").write_text("b")
    assert paths(docs / "**" / "*.md") == ["docs/a.md", "docs/deep/er/b.md"]


def test_a_file_reached_twice_is_read_once(tmp_path: Path) -> None:
    docs = folder(tmp_path, a__md="a", b__md="b")
    (docs / "again.md").symlink_to(docs / "b.md")
    assert paths(docs / "b.md", docs, docs / "*.md") == ["docs/b.md", "docs/a.md"]


def test_names_that_clash_show_more_of_the_path(tmp_path: Path) -> None:
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        folder(tmp_path / place, a__md=place)
    folder(tmp_path / "two", b__md="b")
    assert paths(tmp_path / "one" / "docs", tmp_path / "two" / "docs") == [
        "one/docs/a.md",
        "two/docs/a.md",
        "docs/b.md",
    ]


def test_hidden_and_backup_files_are_skipped_and_said(tmp_path: Path) -> None:
    docs = folder(tmp_path, a__md="a", __hidden="x")
    for name in ("b.md~", "#c.md#", ".d.md.swp", "e.md.bak"):
        (docs / name).write_text("x")
    (docs / ".git").mkdir()
    (docs / ".git" / "config.txt").write_text("x")
    found = read(docs)
    assert [r.path for r in found.records] == ["docs/a.md"]
    assert "and 1 more" in found.notes[0] and ".git" in found.notes[0]


def test_a_link_in_a_circle_is_left(tmp_path: Path) -> None:
    docs = folder(tmp_path, a__md="a")
    (docs / "again").symlink_to(docs)
    found = read(docs)
    assert [r.path for r in found.records] == ["docs/a.md"]
    assert "again" in found.notes[0]


def test_a_link_to_itself_cannot_be_read(tmp_path: Path) -> None:
    docs = folder(tmp_path, a__md="a")
    (docs / "loop.md").symlink_to(docs / "loop.md")
    with pytest.raises(SourceError, match=r"loop\.md"):
        read(docs)


def test_standard_input(tmp_path: Path) -> None:
    docs = folder(tmp_path, a__md="a")
    found = read("-", docs, stdin=b"piped\r\ntext\n")
    assert [(r.path, r.origin, r.text) for r in found.records] == [
        ("stdin", "", "piped\ntext"),
        ("docs/a.md", str(docs / "a.md"), "a"),
    ]
    assert found.patterns == ("-", str(docs))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_supported_format(tmp_path: Path, suffix: str) -> None:
    body = "00:01.000 --> 00:02.000\nHello" if suffix in (".vtt", ".srt") else "Hello"
    path = tmp_path / f"x{suffix.upper()}"
    path.write_text(body)
    (record,) = read(path).records
    assert record.text == "Hello"
    assert record.line_map == {".html": (1,), ".vtt": (2,), ".srt": (2,)}.get(suffix, ())


def test_json_and_csv_are_left_as_they_are(tmp_path: Path) -> None:
    for name, text in (("a.json", '{\n  "a": [1,  2]\n}'), ("b.csv", 'x,"y, z"\n1,2')):
        (tmp_path / name).write_text(text)
        assert read(tmp_path / name).records[0].text == text


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.md", b"", "empty"),
        ("a.md", b" \n\n", "empty"),
        ("a.html", b"<script>x</script>", "no text"),
        ("a.md", b"fine\nbad \xff byte", r"line 2: not UTF-8 \(byte 0xff at offset 9\)"),
        ("a.md", b"\xef\xbb\xbfok\n\xe4", r"line 2: not UTF-8 \(byte 0xe4 at offset 6\)"),
        ("a.md", "text".encode("utf-16"), "iconv -f UTF-16"),
        ("a.md", b"GIF\n8\0\0", r"line 2: a binary file"),
        ("a.pdf", b"%PDF", r"a\.pdf: not a supported format.*\.txt \.md"),
        ("noext", b"text", "not a supported format"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, data: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SourceError, match=says) as caught:
        read(tmp_path / name)
    assert name in str(caught.value)


def test_a_folder_with_other_files_is_refused_with_a_way_out(tmp_path: Path) -> None:
    docs = folder(tmp_path, a__md="a", b__txt="b", logo__png="x", LICENSE="x")
    with pytest.raises(SourceError) as caught:
        read(docs)
    assert "LICENSE, logo.png" in caught.value.message
    assert f"'{docs}/**/*.md' '{docs}/**/*.txt'" in caught.value.hint


@pytest.mark.parametrize(
    ("pattern", "says"),
    [("docs", "no documents in"), ("nothing.md", "no such file"), ("*.md", "no file matches")],
)
def test_nothing_to_read(tmp_path: Path, pattern: str, says: str) -> None:
    (tmp_path / "docs").mkdir()
    with pytest.raises(SourceError, match=says):
        read(tmp_path / pattern)


@pytest.mark.parametrize("name", [b"caf\xe9.md", b"a\nb.md", "a\u2028b.md".encode()])
def test_a_name_that_no_header_can_show(tmp_path: Path, name: bytes) -> None:
    place = os.fsencode(folder(tmp_path)) + b"/" + name
    Path(os.fsdecode(place)).write_text("text")
    with pytest.raises(SourceError, match="Rename the file") as caught:
        read(tmp_path / "docs")
    assert str(caught.value).isascii()


def test_an_empty_pattern_is_not_the_current_folder() -> None:
    with pytest.raises(SourceError, match="empty PATH"):
        read("")


def test_no_pattern_at_all() -> None:
    with pytest.raises(SourceError, match="preread build NAME PATH"):
        read()


def test_a_long_line_is_located(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"short\n" + b"x" * (10 << 20))
    with pytest.raises(SourceError, match=r"a\.json, line 2: 10,240 KiB .*max_line_kb = 1024"):
        read(path)


def test_a_large_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.touch()
    os.truncate(path, 3 << 20)  # a hole: takes no space
    with pytest.raises(SourceError, match=r"3\.0 MiB, more than context\.max_file_mb = 2"):
        read(path, limits=ContextSection(max_file_mb=2))
    with pytest.raises(SourceError, match="stdin: 3"):
        read("-", stdin=b"x" * (3 << 20), limits=ContextSection(max_file_mb=2))


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(SourceError, match="not a regular file"):
        read(tmp_path / "pipe.txt")


def test_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.md"
    path.write_text("a")

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)  # root reads everything
    with pytest.raises(SourceError, match=r"a\.md: cannot be read: Permission denied"):
        read(path)


def test_a_rebuild_keeps_the_order() -> None:
    before = [source("b", "1"), source("a", "2")]
    now = Sources(tuple(source(p, "x") for p in ("a", "b", "c")), ())
    assert [r.path for r in in_order_of(now, before).records] == ["b", "a", "c"]


@given(st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0")))
def test_text_comes_back_with_line_feeds_only(text: str) -> None:
    expected = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    assert decode(text.encode(), "a.md") == expected


@given(st.binary())
def test_any_bytes_are_text_or_a_located_error(data: bytes) -> None:
    try:
        assert "\r" not in decode(data, "a.md")
    except SourceError as exc:
        assert "a.md, line" in exc.message and exc.hint
