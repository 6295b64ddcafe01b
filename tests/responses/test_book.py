"""Answers in a file: bounded, shared, and never another one's."""

from __future__ import annotations

import multiprocessing
import sqlite3
from pathlib import Path

import pytest

from preread.errors import StateError
from preread.responses.book import Book, Vector

KEYS = [bytes([i]) * 32 for i in range(200)]


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def opened(path: Path, clock: Clock | None = None, most: int = 1 << 20) -> Book:
    return Book.open(path / "r.sqlite", most=most, age_s=100.0, clock=clock or Clock())


def test_what_is_put_is_found_also_by_the_next(tmp_path: Path) -> None:
    book = opened(tmp_path)
    book.put({KEYS[0]: b"a", KEYS[1]: b""})
    assert book.get(KEYS) == {KEYS[0]: b"a", KEYS[1]: b""}
    book.close()
    again = opened(tmp_path)
    assert again.get(KEYS[:1]) == {KEYS[0]: b"a"}
    again.put({KEYS[0]: b"b"})
    assert again.get(KEYS[:1]) == {KEYS[0]: b"b"} and again.nbytes() == 1


def test_what_is_too_old_is_not_given(tmp_path: Path) -> None:
    clock = Clock()
    book = opened(tmp_path, clock)
    book.put({KEYS[0]: b"a"})
    clock.now += 60
    assert book.get(KEYS[:1])  # a hit does not make it younger
    clock.now += 60
    assert book.get(KEYS[:1]) == {}
    book.put({KEYS[1]: b"b"})
    assert book.nbytes() == 1


def test_the_bytes_are_bounded_and_what_is_used_stays(tmp_path: Path) -> None:
    clock = Clock()
    book = opened(tmp_path, clock, most=1000)
    for key in KEYS:
        clock.now += 0.01
        book.get(KEYS[:1])
        book.put({key: b"x" * 100}, [(b"s", Vector(key, "q", b"v"))])
        assert book.nbytes() <= 1000
    left = book.get(KEYS)
    assert KEYS[0] in left and KEYS[-1] in left and len(left) <= 10
    assert {vector.key for vector in book.vectors(b"s")} == left.keys()


def test_a_damaged_row_is_a_miss_and_goes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    book = opened(tmp_path)
    book.put({KEYS[0]: b"right", KEYS[1]: b"other"}, [(b"s", Vector(KEYS[0], "q", b"v"))])
    with sqlite3.connect(tmp_path / "r.sqlite") as db:
        db.execute("UPDATE answers SET body = ? WHERE key = ?", (b"wrong", KEYS[0]))
        db.execute("UPDATE vectors SET question = 'p'")
    assert book.get(KEYS[:2]) == {KEYS[1]: b"other"} and "damaged" in caplog.text
    assert book.vectors(b"s") == []
    with sqlite3.connect(tmp_path / "r.sqlite") as db:  # another request's answer, with its sum
        db.execute("UPDATE answers SET key = ? WHERE key = ?", (KEYS[2], KEYS[1]))
    assert book.get(KEYS[:3]) == {}


@pytest.mark.parametrize("where", [0, 40, 4096, 5000])
def test_a_damaged_file_is_an_error_or_empty_but_never_wrong(tmp_path: Path, where: int) -> None:
    path = tmp_path / "r.sqlite"
    bodies = {key: bytes([key[0]]) * 400 for key in KEYS}
    book = opened(tmp_path)
    book.put(bodies)
    book.close()
    data = bytearray(path.read_bytes())
    data[where : where + 3000] = b"\xa5" * 3000
    path.write_bytes(bytes(data))
    try:
        found = opened(tmp_path).get(KEYS)
    except StateError as exc:
        assert "rm " in str(exc)
    else:
        assert all(bodies[key] == body for key, body in found.items())


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.sqlite").write_text("not a database at all, but longer than a header " * 99)
    with pytest.raises(StateError, match="Remove it"):
        opened(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    with sqlite3.connect(other / "r.sqlite") as db:
        db.execute("CREATE TABLE mine (x)")
    with pytest.raises(StateError, match="none of this release"):
        opened(other)


def test_a_file_that_fails_in_use_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    book = opened(tmp_path)
    book.put({KEYS[0]: b"a"})
    with sqlite3.connect(tmp_path / "r.sqlite") as db:
        db.execute("DROP TABLE answers")
    assert book.get(KEYS) == {} and book.get(KEYS) == {}
    book.put({KEYS[1]: b"b"})
    assert caplog.text.count("left alone") == 1


def _write(path: Path, first: int) -> None:
    book = opened(path)
    for key in KEYS[first::2]:
        book.put({key: key * 3})
        assert book.get([key]) == {key: key * 3}
    book.close()


def test_processes_share_it(tmp_path: Path) -> None:
    opened(tmp_path).close()
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=_write, args=(tmp_path, first)) for first in (0, 1)]
    for process in both:
        process.start()
    for process in both:
        process.join()
        assert process.exitcode == 0
    assert opened(tmp_path).get(KEYS) == {key: key * 3 for key in KEYS}
