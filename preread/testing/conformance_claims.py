"""The suite that every medium of claims passes. Subclass `ClaimsConformance` in a test file."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from preread.store.claims import Claims

LONG = 60.0


class ClaimsConformance:
    def open(self, place: Path) -> Claims:
        """Another owner at the same place."""
        raise NotImplementedError

    def later(self, seconds: float) -> bool:
        """Let time pass for all owners; False where claims do not run out."""
        raise NotImplementedError

    @pytest.fixture
    def two(self, tmp_path: Path) -> tuple[Claims, Claims]:
        return self.open(tmp_path), self.open(tmp_path)

    def test_are_claims(self, two: tuple[Claims, Claims]) -> None:
        assert isinstance(two[0], Claims)

    def test_one_has_it_until_it_is_dropped(self, two: tuple[Claims, Claims]) -> None:
        one, other = two
        assert one.take("a", LONG) and one.take("a", LONG)
        assert not other.take("a", LONG)
        assert other.take("b", LONG)
        other.drop("a")  # not its own
        assert not other.take("a", LONG)
        one.drop("a")
        assert other.take("a", LONG) and not one.take("a", LONG)
        one.drop("a")
        other.drop("a")
        other.drop("a")
        assert one.take("a", LONG)

    def test_it_runs_out_unless_it_is_taken_again(self, two: tuple[Claims, Claims]) -> None:
        one, other = two
        assert one.take("a", 2.0)
        if not self.later(1.5):
            return
        assert one.take("a", 2.0)
        self.later(1.5)
        assert not other.take("a", 2.0)
        self.later(1.0)
        assert other.take("a", 2.0) and not one.take("a", 2.0)

    def test_of_many_at_once_one_gets_it(self, tmp_path: Path) -> None:
        owners = [self.open(tmp_path) for _ in range(8)]
        for key in ("a", "b", "c"):
            got: list[Claims] = []
            ready = threading.Barrier(len(owners))

            def take(claims: Claims, key: str = key, got: list[Claims] = got) -> None:
                ready.wait(10)  # noqa: B023
                if claims.take(key, LONG):
                    got.append(claims)

            threads = [threading.Thread(target=take, args=(owner,)) for owner in owners]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(got) == 1
            got[0].drop(key)
