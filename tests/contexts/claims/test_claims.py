"""Claims on every medium."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from preread.contexts.claims.files import FileClaims
from preread.contexts.claims.object import ObjectClaims
from preread.contexts.claims.opening import open_claims_at
from preread.contexts.claims.redis import RedisClaims
from preread.errors import HomeError, TierError
from preread.store.claims import Claims
from preread.store.tiers.bucket import open_bucket
from preread.store.tiers.urls import parse_tiers
from preread.testing.conformance_claims import ClaimsConformance
from tests.servers import s3_server
from tests.store.valkey import Valkey, running


class TestFiles(ClaimsConformance):
    def open(self, place: Path) -> Claims:
        return FileClaims(place / "claims")

    def later(self, seconds: float) -> bool:
        return False

    def test_a_process_that_is_killed_has_nothing(self, tmp_path: Path) -> None:
        code = (
            "import sys, time\nfrom pathlib import Path\n"
            "from preread.contexts.claims.files import FileClaims\n"
            "claims = FileClaims(Path(sys.argv[1]) / 'claims')\n"
            "print(claims.take('a', 1), flush=True)\ntime.sleep(60)\n"
        )
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None and child.stdout.readline() == "True\n"
        mine = self.open(tmp_path)
        assert not mine.take("a", 1)
        child.kill()
        child.wait()
        child.stdout.close()
        assert mine.take("a", 1)
        mine.drop("a")
        assert not list((tmp_path / "claims").iterdir())

    def test_a_file_that_cannot_be_removed_is_given_back(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def denied(path: Path, missing_ok: bool = False) -> None:
            raise PermissionError

        mine = self.open(tmp_path)
        assert mine.take("a", 1)
        monkeypatch.setattr(Path, "unlink", denied)
        mine.drop("a")
        assert self.open(tmp_path).take("a", 1)

    def test_a_folder_that_cannot_be_written_is_said(self, tmp_path: Path) -> None:
        (tmp_path / "claims").write_text("a file")
        with pytest.raises(HomeError, match="cannot be claimed"):
            self.open(tmp_path).take("a", 1)


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with running(tmp_path_factory.mktemp("valkey")) as server:
        yield server


class TestRedis(ClaimsConformance):
    @pytest.fixture(autouse=True)
    def use(self, valkey: Valkey) -> None:
        valkey.command("FLUSHALL")
        self.url = valkey.url

    def open(self, place: Path) -> Claims:
        claims = open_claims_at(self.url, place)
        assert isinstance(claims, RedisClaims)
        return claims

    def later(self, seconds: float) -> bool:
        time.sleep(seconds)  # the server's own clock
        return True


def test_a_server_that_is_gone_is_said() -> None:
    with pytest.raises(HomeError, match="cannot be reached"):
        open_claims_at("redis://127.0.0.1:1/0?deadline=0.2s", Path()).take("a", 1)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server("claims") as endpoint:
        yield endpoint


class TestObject(ClaimsConformance):
    @pytest.fixture(autouse=True)
    def use(self, endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
        self.url = f"s3://claims/{tmp_path.name}?endpoint={endpoint}&region=us-east-1"
        self.now = 1_760_000_000.0

    def open(self, place: Path) -> Claims:
        (url,) = parse_tiers(self.url)
        return ObjectClaims(open_bucket(url, 5.0, folder="claims"), lambda: self.now)

    def later(self, seconds: float) -> bool:
        self.now += seconds
        return True

    def test_a_claim_by_a_clock_that_was_ahead_is_free(self, tmp_path: Path) -> None:
        self.now += 1e8
        assert self.open(tmp_path).take("a", 30)
        self.now -= 1e8
        mine = self.open(tmp_path)
        assert mine.take("a", 30) and not self.open(tmp_path).take("a", 30)

    def test_what_is_not_legible_is_free(self, tmp_path: Path) -> None:
        (url,) = parse_tiers(self.url)
        open_bucket(url, 5.0, folder="claims").put("a", [b"{not json"])
        assert self.open(tmp_path).take("a", 1)

    def test_a_store_that_is_gone_is_said(self, tmp_path: Path) -> None:
        self.url = "s3://claims/x?endpoint=http://127.0.0.1:1&region=us-east-1"
        with pytest.raises(TierError):
            self.open(tmp_path).take("a", 1)


def test_without_a_shared_catalog_they_are_files(tmp_path: Path) -> None:
    assert isinstance(open_claims_at("", tmp_path), FileClaims)
