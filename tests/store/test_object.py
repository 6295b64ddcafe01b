"""The object-store tier: the common suite on obstore's memory, a folder and S3 over HTTP, and what
a store far away can do wrong."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from obstore.store import MemoryStore

from preread.errors import ConfigError, TierError
from preread.store.tiers.base import ChunkUnreadable, Tier
from preread.store.tiers.book import MOST, Book
from preread.store.tiers.bucket import Bucket, Changed, Listed, open_bucket
from preread.store.tiers.object import ObjectTier, open_object
from preread.store.tiers.shelves import BucketShelf
from preread.store.tiers.urls import TierUrl, parse_tiers
from preread.testing.conformance_tier import Clock, TierConformance, get, key, put
from tests.servers import bad_server, s3_server


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server("bucket") as endpoint:
        yield endpoint


def url(text: str) -> TierUrl:
    (parsed,) = parse_tiers(text)
    return parsed


class TestObjectTierInMemory(TierConformance):
    durable = True

    @pytest.fixture(autouse=True)
    def store(self) -> None:
        self.bucket = Bucket(MemoryStore(), "memory")

    def open(self, place: Path, budget: int, clock: Clock) -> Tier:
        return ObjectTier(self.bucket, budget=budget, clock=clock)


class TestObjectTierInAFolder(TierConformance):
    durable = True

    def open(self, place: Path, budget: int, clock: Clock) -> Tier:
        return ObjectTier(open_bucket(url(f"file://{place}/kv"), 5.0), budget=budget, clock=clock)


@pytest.mark.parametrize("text", ["file:///{}/a b/kv", "file:there/kv", "file:~/kv"])
def test_a_folder_is_where_its_path_says(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    tier = open_object(url(text.format(str(tmp_path).lstrip("/"))))
    put(tier, 1, b"x")
    (kept,) = tmp_path.rglob(key(1).hex())
    folders = {"a b/kv", "there/kv", "me/kv"}
    assert kept.relative_to(tmp_path).parent.parent.parent.as_posix() in folders


class TestObjectTierOnS3(TierConformance):
    durable = True

    @pytest.fixture(autouse=True)
    def server(self, endpoint: str) -> None:
        self.endpoint, self.prefix = endpoint, uuid4().hex

    def open(self, place: Path, budget: int, clock: Clock) -> Tier:
        place_url = url(
            f"s3://id:secret@bucket/{self.prefix}?endpoint={self.endpoint}&region=us-east-1"
        )
        return ObjectTier(open_bucket(place_url, 5.0), budget=budget, clock=clock)


@pytest.fixture
def bucket() -> Bucket:
    return Bucket(MemoryStore(), "memory")


def tier_at(endpoint: str, deadline: str = "5s") -> ObjectTier:
    text = f"s3://AKIDEXAMPLE:s3cr3t@bucket/kv?endpoint={endpoint}&deadline={deadline}"
    return open_object(url(text))


OPERATIONS = {
    "find": lambda tier: tier.find([key(1), key(2)]),
    "read": lambda tier: list(tier.read([key(1), key(2)])),
    "write": lambda tier: tier.write(key(1), [b"x"]),
    "remove": lambda tier: tier.remove([key(1)]),
    "scan": lambda tier: list(tier.scan()),
    "usage": lambda tier: tier.usage(),
    "tidy": lambda tier: tier.tidy(0.0),
}
DENIED = (
    b"<Error><Code>SignatureDoesNotMatch</Code><AWSAccessKeyId>AKIDEXAMPLE</AWSAccessKeyId>"
    b"<StringToSign>AWS4 s3cr3t</StringToSign></Error>"
)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (None, "within the deadline"),
        (b"", "it failed or is gone"),
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\n\r\n" % len(DENIED) + DENIED, "denied"),
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 6\r\n\r\ns3cr3t", "it failed or is gone"),
        (b"HTTP/1.1 409 Busy\r\nContent-Length: 6\r\n\r\ns3cr3t", "it failed or is gone"),
        (b"HTTP/1.1 412 Leased\r\nContent-Length: 6\r\n\r\ns3cr3t", "it failed or is gone"),
    ],
    ids=["hangs", "closes", "denies", "fails", "is busy", "is leased"],
)
def test_a_bad_server_is_a_tier_error_without_secrets(
    operation: str, reply: bytes | None, says: str
) -> None:
    with bad_server(reply) as endpoint, pytest.raises(TierError, match=says) as caught:
        OPERATIONS[operation](tier_at(endpoint, "0.3s"))
    assert "s3://bucket/kv" in str(caught.value) and caught.value.hint
    told = "".join(traceback.format_exception(caught.value))
    assert "s3cr3t" not in told.replace("s3cr3t@bucket", "") and "AKIDEXAMPLE" not in told


def test_no_server_is_a_tier_error() -> None:
    with bad_server(b"") as endpoint:
        pass
    with pytest.raises(TierError, match="gone"):
        tier_at(endpoint).find([key(1)])


@pytest.mark.parametrize("sent", [b"", b"half of it"])
def test_a_reply_that_ends_in_the_middle_is_no_value(sent: bytes) -> None:
    head = (
        b'HTTP/1.1 200 OK\r\nContent-Length: 20\r\nETag: "1"\r\n'
        b"Last-Modified: Sun, 22 Nov 2026 11:00:00 GMT\r\n\r\n"
    )
    with bad_server(head + sent) as endpoint, pytest.raises(TierError):
        list(tier_at(endpoint).read([key(1)]))


def test_a_bucket_that_is_not_there(endpoint: str) -> None:
    tier = open_object(url(f"s3://id:secret@nobody/kv?endpoint={endpoint}"))
    with pytest.raises(TierError, match=r"no such bucket\. Create it"):
        tier.write(key(1), [b"x"])


def test_a_value_that_is_too_large_is_not_fetched(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = ObjectTier(bucket)
    put(tier, 1, b"x" * 100)
    put(tier, 2, b"small")
    monkeypatch.setattr("preread.store.tiers.object.MAX_VALUE_BYTES", 99)
    with pytest.raises(ChunkUnreadable, match="100 bytes"):
        get(tier, 1)
    assert get(tier, 2) == b"small"
    assert tier.remove([key(1)], quarantine=True) == 1


def test_another_process_knows_what_was_used(bucket: Bucket) -> None:
    clock = Clock()
    one, two = (ObjectTier(bucket, budget=1000, clock=clock) for _ in range(2))
    for n in range(10):
        put(one, n, b"x" * 90)
        clock.tick()
    assert get(two, 0) is not None
    clock.tick()
    assert one.find([key(1)], touch=True) == [True]
    assert put(ObjectTier(bucket, budget=1000, clock=clock), 10, b"x" * 150)
    assert one.find([key(n) for n in range(4)]) == [True, True, False, False]


def test_uses_are_folded_and_none_is_lost(bucket: Bucket) -> None:
    clock, tier = Clock(), ObjectTier(bucket)
    for n in range(3):
        put(tier, n, b"x")
    seen = {}
    for n in range(2 * MOST):
        clock.tick()
        seen[key(n % 4)] = clock()  # one of them is not held
        Book(clock, BucketShelf(bucket)).mark([key(n % 4)])
    assert (pages := len(list(bucket.list("book")))) > MOST
    tier.tidy(0.0)
    (left,) = bucket.list("book")
    # Also what is held no more: it was used lately. And which pages it holds.
    assert left.nbytes == (4 + pages) * 72
    used = {entry.key: entry.last_used for entry in ObjectTier(bucket, clock=clock).scan()}
    assert used.keys() == {key(0), key(1), key(2)}
    assert all(used[k] >= when for k, when in seen.items() if k in used)


def test_a_torn_or_foreign_list_of_uses_does_no_harm(bucket: Bucket) -> None:
    tier = ObjectTier(bucket, clock=Clock())
    put(tier, 1, b"x")
    bucket.put("book/torn", [b"\xff" * 57])
    assert {entry.key for entry in tier.scan()} == {key(1)}


def test_uses_are_written_once_a_minute(bucket: Bucket) -> None:
    clock = Clock()
    tier = ObjectTier(bucket, clock=clock)
    for n in range(50):
        put(tier, n, b"x")
        get(tier, n)
    assert len(list(bucket.list("book"))) == 1
    clock.tick(61)
    get(tier, 0)
    assert len(list(bucket.list("book"))) == 2


def test_counting_lists_once(bucket: Bucket) -> None:
    """What others do shows after a while; what this process does, at once."""
    clock = Clock()
    one, two = (ObjectTier(bucket, clock=clock) for _ in range(2))
    assert one.usage().chunks == 0
    put(two, 1, b"theirs")
    put(one, 2, b"ours")
    assert (one.usage().chunks, one.usage().nbytes) == (1, 4)
    clock.tick(301)
    assert (one.usage().chunks, one.usage().nbytes) == (2, 10)
    one.remove([key(1)])
    assert (one.usage().chunks, one.usage().nbytes) == (1, 4)


def test_a_new_process_begins_with_what_another_has_counted(bucket: Bucket) -> None:
    class Blind(Bucket):
        def list(self, folder: str) -> Iterator[Listed]:
            raise AssertionError("a listing for nothing")

    clock = Clock()
    one = ObjectTier(bucket, clock=clock)
    put(one, 1, b"x" * 100)
    assert one.usage().nbytes == 100
    two = ObjectTier(Blind(bucket.store, "memory"), clock=clock)
    put(two, 2, b"x" * 50)
    assert (two.usage().chunks, two.usage().nbytes) == (1, 100)  # its own was before the count
    put(two, 3, b"x" * 7)
    assert (two.usage().chunks, two.usage().nbytes) == (2, 107)
    clock.tick(3700)
    assert ObjectTier(bucket, clock=clock).usage().nbytes == 157
    bucket.put("count", [b"torn"])
    assert ObjectTier(bucket, clock=clock).usage().nbytes == 157


def test_a_budget_is_kept_whatever_others_have_counted(bucket: Bucket) -> None:
    clock = Clock()
    one, two = (ObjectTier(bucket, budget=1000, clock=clock) for _ in range(2))
    assert one.usage().nbytes == 0
    for n in range(5):
        put(one, n, b"x" * 180)
        clock.tick(100)
    assert two.usage().chunks == 0
    assert put(two, 9, b"x" * 180)
    held = sum(entry.nbytes for entry in one.scan())
    assert held <= 1000 and two.find([key(0), key(4), key(9)]) == [False, True, True]


def test_quarantine_is_kept_apart_counted_and_short(bucket: Bucket) -> None:
    clock = Clock()
    tier = ObjectTier(bucket, budget=1000, clock=clock)
    for n in range(20):
        put(tier, n, b"x" * 20)
        assert tier.remove([key(n)], quarantine=True) == 1
        clock.tick()
    assert len(list(bucket.list("quarantine"))) == 16
    assert (tier.usage().chunks, tier.usage().nbytes) == (0, 320)
    assert tier.tidy(10_500.0) == 6
    for n in range(10):
        put(tier, n, b"x" * 90)
    assert list(bucket.list("quarantine")) == []  # first to go when room is short
    assert tier.find([key(n) for n in range(10)]) == [True] * 10


def test_what_was_not_used_for_its_time_goes(tmp_path: Path) -> None:
    clock = Clock()
    tier = ObjectTier(Bucket(MemoryStore(), "memory"), ttl_s=5000, clock=clock)
    put(tier, 1, b"old")
    put(tier, 2, b"used")
    clock.tick(4000)
    get(tier, 2)
    clock.tick(2000)
    assert tier.tidy(0.0) == 1
    assert tier.find([key(1), key(2)]) == [False, True]


def test_what_cannot_be_opened_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(ConfigError, match=r"az://container/kv.*docs/store\.md"):
        open_object(url("az://container/kv"))


@pytest.mark.parametrize("text", ["gs://bucket/kv?anonymous", "az://me:c2VjcmV0@container/kv?http"])
def test_other_clouds_are_opened_without_a_word_to_them(text: str) -> None:
    assert isinstance(open_object(url(text)), Tier)


def test_a_swap_is_one_writers(bucket: Bucket) -> None:
    bucket.swap("x", b"one", None)
    bucket.swap("x", b"one", None)  # the reply was lost, and it was tried again
    with pytest.raises(Changed):
        bucket.swap("x", b"other", None)
    first = bucket.get("x")
    assert first is not None
    bucket.swap("x", b"two", first.tag)
    bucket.swap("x", b"two", first.tag)
    with pytest.raises(Changed):
        bucket.swap("x", b"three", first.tag)
    last = bucket.get("x")
    assert last is not None and last.data == b"two"


def test_a_clock_that_was_ahead_pins_nothing(bucket: Bucket) -> None:
    clock = Clock()
    clock.now = time.time()  # as the store's own
    tier = ObjectTier(bucket, budget=1000, clock=clock, touch_s=0)
    clock.tick(1e8)
    for n in range(10):
        put(tier, n, b"x" * 90)
    clock.tick(-1e8)
    for n in range(10, 20):
        clock.tick()
        put(tier, n, b"x" * 90)
    assert tier.find([key(n) for n in range(12, 20)]) == [True] * 8


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("endpoint", ["http://h:99999999", "http://[::1", "https://ho%25st"])
def test_an_endpoint_that_can_be_none_is_a_tier_error(operation: str, endpoint: str) -> None:
    """At which the client panics, and that is no Exception."""
    with pytest.raises(TierError, match="endpoint"):
        OPERATIONS[operation](tier_at(endpoint))


def test_an_endpoint_that_is_no_url_is_said_at_once() -> None:
    with pytest.raises(ConfigError, match="no URL"):
        tier_at("::bad")
