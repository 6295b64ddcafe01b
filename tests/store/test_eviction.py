"""What goes when room is short, against a twin that counts everything anew each time."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from obstore.store import MemoryStore

from preread.metrics import Metrics
from preread.store.rates import Pace, Prefill, Rates
from preread.store.saving import Manner
from preread.store.store import Store
from preread.store.tiers.base import ChunkKey, Gone, Recalls, Tier, Weighs
from preread.store.tiers.book import HALF_S, KEPT, MOST, Book, Note
from preread.store.tiers.bucket import Bucket
from preread.store.tiers.disk import DiskTier
from preread.store.tiers.eviction import Standing, victims
from preread.store.tiers.memory import MemoryTier
from preread.store.tiers.object import ObjectTier
from preread.store.tiers.pages import Record
from preread.store.tiers.shelves import BucketShelf, FolderShelf
from preread.store.worth import LEAST, NEW, saved, use
from preread.testing.conformance_tier import Clock, key, put
from tests.attacks.tools import FINGERPRINT, GEOMETRY, Den, Truth

KINDS = ("memory", "disk", "object")
Opened = Callable[[Clock, int, int], Tier]


@pytest.fixture(params=KINDS)
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opened:
    """opened(clock, budget, share), always the same place."""
    bucket = Bucket(MemoryStore(), "memory")

    def open_one(clock: Clock, budget: int, share: int = 0) -> Tier:
        if request.param == "memory":
            return MemoryTier(budget=budget, share=share, clock=clock)
        if request.param == "disk":
            return DiskTier(tmp_path, budget=budget, share=share, fsync=False, clock=clock)
        return ObjectTier(bucket, budget=budget, share=share, clock=clock)

    return open_one


# --- the choice ---

OWNERS = (b"", b"a" * 16, b"b" * 16)
chunks = st.lists(
    st.tuples(st.integers(1, 50), st.sampled_from(OWNERS), st.integers(0, 4), st.integers(0, 4)),
    max_size=12,
).map(
    lambda rows: [
        Standing(key(n), size, o, float(w), float(t)) for n, (size, o, w, t) in enumerate(rows)
    ]
)


def twin(
    held: list[Standing], new: Standing, need: int, more: int, share: int
) -> list[Standing] | None:
    """One after the other, everything counted anew each time."""
    left, stopped = list(held), set[bytes]()

    def size(owner: bytes) -> int:
        return sum(one.nbytes for one in left if one.owner == owner)

    entitled = new.owner != b"" and size(new.owner) + new.nbytes <= share

    def may_go(one: Standing) -> bool:
        if one.owner == new.owner:
            return one.worth <= new.worth
        if one.owner and size(one.owner) - one.nbytes < share:
            return False
        return entitled or one.worth <= new.worth

    while sum(one.nbytes for one in held) - sum(one.nbytes for one in left) < need + more:
        rest = [one for one in left if one.owner not in stopped]
        if not rest:
            break
        least = min(rest, key=lambda one: (one.worth, one.last_used))
        left.remove(least) if may_go(least) else stopped.add(least.owner)
    gone = [one for one in held if one not in left]
    return gone if sum(one.nbytes for one in gone) >= need else None


@settings(max_examples=500)
@given(chunks, st.integers(1, 50), st.sampled_from(OWNERS), st.integers(0, 5), st.data())
def test_the_choice_is_that_of_the_twin(
    held: list[Standing], nbytes: int, owner: bytes, worth: int, data: st.DataObject
) -> None:
    new = Standing(key(99), nbytes, owner, float(worth), 9.0)
    need, more, share = (data.draw(st.integers(0, most)) for most in (200, 60, 120))
    found, wanted = (f(held, new, need, more, share) for f in (victims, twin))
    assert (found is None) == (wanted is None)
    assert found is None or set(found) == set(wanted or ())


@given(chunks, st.integers(1, 200), st.integers(1, 120))
def test_nobody_is_taken_below_a_share_by_another(
    held: list[Standing], need: int, share: int
) -> None:
    new = Standing(key(99), 10, OWNERS[1], 9.0, 9.0)
    theirs = [one for one in held if one.owner == OWNERS[2]]
    before = sum(one.nbytes for one in theirs)
    gone = victims(held, new, need, 10, share) or []
    left = before - sum(one.nbytes for one in gone if one.owner == OWNERS[2])
    assert left >= min(before, share)


# --- the book ---


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.floats(0, 10), st.floats(0, 3 * HALF_S), st.booleans()),
        max_size=30,
    ),
    st.randoms(use_true_random=False),
)
def test_a_note_is_the_sum_of_its_uses_in_any_order(
    events: list[tuple[int, float, float, bool]], draw: random.Random
) -> None:
    records = [
        Record(key(n), b"", when, 0.0 if went else seconds, Gone.EVICTED if went else 0)
        for n, seconds, when, went in events
    ]
    now = 4 * HALF_S
    for n in range(4):
        mine = [one for one in records if one.key == key(n)]
        mixed = draw.sample(mine, len(mine))
        note = Note()
        for one in mixed:
            note = note.plus(one)
        uses = [one for one in mine if not one.what]
        worth = sum(one.saved * 0.5 ** ((now - one.when) / HALF_S) for one in uses)
        assert note.worth(now) == pytest.approx(worth)
        used = max((one.when for one in uses), default=float("-inf"))
        left = max((one.when for one in mine if one.what), default=float("-inf"))
        assert (note.used, note.left) == (used, left)
        assert note.why == (Gone.EVICTED if left >= used and note.gone else None)


@pytest.mark.parametrize("kind", ["folder", "bucket"])
def test_processes_add_up_and_folding_loses_nothing(kind: str, tmp_path: Path) -> None:
    clock, bucket = Clock(), Bucket(MemoryStore(), "memory")

    def opened() -> Book:
        folder = FolderShelf(tmp_path / "book", tmp_path / "tmp")
        return Book(clock, folder if kind == "folder" else BucketShelf(bucket))

    for n in range(MOST + 6):
        clock.tick()
        book = opened()
        book.used({key(n % 3): 1.0, key(100 + n): 1.0})
        book.left([key(100 + n)], Gone.EVICTED)
        book.flush()
    before = opened().look()
    book = opened()
    assert book.long() and book.fold({key(0), key(1), key(2)}).keys() == before.keys()
    assert not opened().long()
    after = opened().look()
    assert after.keys() == before.keys()
    for name, note in before.items():
        assert after[name].worth(clock()) == pytest.approx(note.worth(clock()))
        assert (after[name].why, after[name].used) == (note.why, note.used)
    assert {after[key(100 + n)].why for n in range(MOST + 6)} == {Gone.EVICTED}


def test_two_who_fold_the_same_pages_write_the_same_one(tmp_path: Path) -> None:
    clock = Clock()

    class Slow(FolderShelf):
        def drop(self, names: object) -> None:
            """It has died before that."""

    shelf = Slow(tmp_path / "book", tmp_path / "tmp")
    for _ in range(MOST + 1):
        Book(clock, shelf).used({key(1): 1.0})
    pages = shelf.names()
    Book(clock, shelf).fold({key(1)})
    (folded,) = set(shelf.names()) - set(pages)
    FolderShelf.drop(shelf, [folded])
    Book(clock, shelf).fold({key(1)})
    assert set(shelf.names()) - set(pages) == {folded}


def test_who_comes_while_another_folds_does_not_write_less_over_it(tmp_path: Path) -> None:
    clock = Clock()

    class Overtaken(FolderShelf):
        def get(self, names: Sequence[str]) -> Mapping[str, bytes]:
            """Another has folded them, and dropped all but one."""
            if len(names) > MOST:
                Book(clock, FolderShelf(self.root, self.temp)).fold(held)
            return super().get(names)

    held = [key(n) for n in range(MOST + 1)]
    shelf = FolderShelf(tmp_path / "book", tmp_path / "tmp")
    for one in held:
        Book(clock, shelf).used({one: 1.0})
    Book(clock, Overtaken(shelf.root, shelf.temp)).fold(held)
    assert Book(clock, shelf).look().keys() == {*held}


class Interrupted(FolderShelf):
    """Something happens once, at one moment of a fold."""

    when: ClassVar[str] = ""
    then: ClassVar[Callable[[], object] | None] = None

    @classmethod
    def at(cls, when: str, then: Callable[[], object]) -> None:
        cls.when, cls.then = when, then

    def now(self, moment: str) -> None:
        if moment == self.when and (then := type(self).then) is not None:
            Interrupted.then = None
            then()

    def names(self) -> list[str]:
        names = super().names()
        self.now("listed")
        return names

    def get(self, names: Sequence[str]) -> Mapping[str, bytes]:
        pages = super().get(names)
        self.now("read")
        return pages

    def put(self, name: str, page: bytes) -> None:
        super().put(name, page)
        self.now("written")

    def drop(self, names: Sequence[str]) -> None:
        for n, name in enumerate(names):
            super().drop([name])
            if n == 5:
                self.now("dropping")
        self.now("dropped")


def worth_of(shelf: FolderShelf, one: ChunkKey, clock: Clock) -> float:
    """What anybody who looks now makes of all its uses."""
    return Book(clock, shelf).look()[one].worth(clock())


@pytest.mark.parametrize("more", [0, 1, 5])
@pytest.mark.parametrize("when", ["listed", "read", "written", "dropping", "dropped"])
def test_two_that_fold_at_once_count_no_use_twice(tmp_path: Path, when: str, more: int) -> None:
    """Whenever the second begins, also with pages that the first has not seen."""
    clock, plain = Clock(), FolderShelf(tmp_path / "book", tmp_path / "tmp")
    uses = 0

    def use(count: int) -> None:
        nonlocal uses
        uses += count
        for _ in range(count):
            Book(clock, plain).used({key(1): 1.0})

    def second() -> None:
        use(more)
        assert worth_of(plain, key(1), clock) == pytest.approx(uses)
        Book(clock, plain).fold({key(1)})

    use(MOST + 1)
    Interrupted.at(when, second)
    Book(clock, Interrupted(plain.root, plain.temp)).fold({key(1)})
    assert Interrupted.then is None, "it happened"
    assert worth_of(plain, key(1), clock) == pytest.approx(uses)
    use(MOST)  # and again, of whatever they have left
    Book(clock, plain).fold({key(1)})
    assert worth_of(plain, key(1), clock) == pytest.approx(uses) and len(plain.names()) == 1


@pytest.mark.parametrize("when", ["written", "dropping"])
def test_who_dies_while_folding_counts_nothing_twice(tmp_path: Path, when: str) -> None:
    clock, plain = Clock(), FolderShelf(tmp_path / "book", tmp_path / "tmp")
    for _ in range(MOST + 1):
        Book(clock, plain).used({key(1): 1.0})

    def die() -> None:
        raise KeyboardInterrupt

    Interrupted.at(when, die)
    with pytest.raises(KeyboardInterrupt):
        Book(clock, Interrupted(plain.root, plain.temp)).fold({key(1)})
    assert worth_of(plain, key(1), clock) == pytest.approx(MOST + 1)
    for _ in range(MOST):
        Book(clock, plain).used({key(1): 1.0})
    Book(clock, plain).fold({key(1)})
    assert worth_of(plain, key(1), clock) == pytest.approx(2 * MOST + 1)


def test_what_else_lies_beside_the_pages_is_left_alone(tmp_path: Path) -> None:
    clock = Clock()
    (tmp_path / "book" / "lost+found").mkdir(parents=True)
    (tmp_path / "book" / "mine.txt").write_text("mine")
    shelf = FolderShelf(tmp_path / "book", tmp_path / "tmp")
    for n in range(MOST + 1):
        Book(clock, shelf).used({key(n): 1.0})
    assert len(Book(clock, shelf).fold({key(0)})) == MOST + 1
    assert len(shelf.names()) == 1
    assert (tmp_path / "book" / "mine.txt").read_text() == "mine"


def test_a_book_in_memory_forgets_what_is_not_held() -> None:
    tier = MemoryTier()
    for start in range(0, 8 * KEPT, 64):
        names = [ChunkKey(n.to_bytes(32, "big")) for n in range(start, start + 64)]
        tier.used(dict.fromkeys(names, 1.0))
        for one in names[:2]:
            tier.write(one, [b"a value"])
        tier.remove(names[1:2])
    held = 8 * KEPT // 64
    notes = tier._book.look()
    assert len(notes) <= 2 * (held + 2 * KEPT) + 64
    assert all(entry.key in notes for entry in tier.scan())


def test_what_is_held_no_more_is_remembered_within_bounds(tmp_path: Path) -> None:
    clock = Clock()
    book = Book(clock, FolderShelf(tmp_path / "book", tmp_path / "tmp"))
    names = [ChunkKey(n.to_bytes(32, "big")) for n in range(KEPT + 100)]
    for start in range(0, len(names), 50):
        clock.tick()
        book.left(names[start : start + 50], Gone.EVICTED)
    notes = book.fold({names[0]})
    assert notes.keys() == {names[0], *names[100:]}


# --- tiers, by worth ---


def test_what_saves_least_for_its_bytes_goes_first(opened: Opened) -> None:
    clock = Clock()
    tier = opened(clock, 1000, 0)
    assert isinstance(tier, Weighs) and isinstance(tier, Recalls)
    for n in range(10):
        tier.used({key(n): 1.0 + (n * 3) % 10})  # 1 4 7 10 3 6 9 2 5 8
        put(tier, n, b"x" * 90)
        clock.tick()
    tier.used({key(10): 2.5})
    assert put(tier, 10, b"x" * 150)
    # A sixteenth more than needed.
    assert tier.find([key(n) for n in range(11)]) == [n not in (0, 7) for n in range(11)]
    tier.used({key(11): 2.0})
    assert put(tier, 11, b"x" * 200) is False  # what is held saves more
    tier.used({key(11): 1.5})  # the second time it is worth it
    assert put(tier, 11, b"x" * 200) is True
    assert tier.find([key(10), key(4), key(11)]) == [False, True, True]
    assert tier.left([key(n) for n in range(12)]) == dict.fromkeys(
        map(key, (0, 7, 10)), Gone.EVICTED
    )


def test_what_is_refused_is_not_looked_for_again_and_again(opened: Opened) -> None:
    clock = Clock()
    tier = opened(clock, 1000, 0)
    assert isinstance(tier, Weighs)
    tier.used({key(1): 9.0})
    put(tier, 1, b"x" * 900)
    looks: list[int] = []
    budget = getattr(tier, "_folder", tier)._budget
    whole = budget._medium.look
    budget._medium.look = lambda: looks.append(1) or whole()
    for n in range(2, 12):
        tier.used({key(n): 8.0})
        assert put(tier, n, b"x" * 200) is False
    assert len(looks) == 1
    clock.tick(61)  # others may have made room
    assert put(tier, 2, b"x" * 200) is False and len(looks) == 2
    tier.used({key(3): 4.0})
    assert put(tier, 3, b"x" * 200) is True and len(looks) == 3  # now it is worth it


def test_what_was_refused_is_taken_when_there_is_room(opened: Opened) -> None:
    tier = opened(Clock(), 1000, 0)
    assert isinstance(tier, Weighs)
    tier.used({key(0): 1.0})
    assert put(tier, 0, bytes(900)) and not put(tier, 1, bytes(900))
    assert tier.remove([key(0)]) == 1
    assert put(tier, 1, bytes(900))


def test_what_was_used_long_ago_counts_less(opened: Opened) -> None:
    clock = Clock()
    tier = opened(clock, 1000, 0)
    assert isinstance(tier, Weighs)
    tier.used({key(1): 8.0})
    put(tier, 1, b"x" * 500)
    clock.tick(2 * HALF_S)
    tier.used({key(2): 3.0})
    put(tier, 2, b"x" * 400)
    tier.used({key(3): 1.9})
    assert put(tier, 3, b"x" * 400) is False
    clock.tick(HALF_S / 8)
    tier.used({key(3): 0.4})
    assert put(tier, 3, b"x" * 400) is True
    assert tier.find([key(1), key(2), key(3)]) == [False, True, True]


def test_another_process_knows_what_is_worth_keeping(opened: Opened, tmp_path: Path) -> None:
    clock = Clock()
    one = opened(clock, 1000, 0)
    if isinstance(one, MemoryTier):
        pytest.skip("one process alone")
    assert isinstance(one, Weighs)
    for n in range(2):
        one.used({key(n): 5.0 - n})
        clock.tick(61)
        put(one, n, b"x" * 450)
    one.used({key(0): 1.0})
    two = opened(clock, 1000, 0)
    assert isinstance(two, Weighs) and isinstance(two, Recalls)
    two.used({key(5): 4.5})
    clock.tick(61)
    assert put(two, 5, b"x" * 450)
    three = opened(clock, 1000, 0)
    assert three.find([key(0), key(1), key(5)]) == [True, False, True]
    assert isinstance(three, Recalls)
    far = isinstance(three, ObjectTier)  # which asks nobody without need
    assert three.left([key(1)]) == ({} if far else {key(1): Gone.EVICTED})
    assert three.left([key(1), key(0)], look=True) == {key(1): Gone.EVICTED}


def test_what_was_removed_says_so(opened: Opened) -> None:
    tier = opened(Clock(), 0, 0)
    assert isinstance(tier, Recalls)
    put(tier, 1, b"x")
    assert tier.left([key(1), key(2)]) == {}
    tier.remove([key(1), key(2)])
    assert tier.left([key(1), key(2)]) == {key(1): Gone.REMOVED}


# --- prefixes, through the store ---

PREFILL, PACE = Prefill(0.001, 1e-4, 1e-7), Pace(0.0, 1e-9)


class Known(Rates):
    def prefill(self) -> Prefill:
        return PREFILL

    def pace(self, tier: str) -> Pace:
        return PACE


def document(n: int) -> tuple[int, ...]:
    """A tree of documents: those of a family begin alike, and are of different lengths."""
    family, member = divmod(n, 4)
    head = [10 * family + i for i in range(8 * (1 + family % 3))]
    return (*head, *(1000 + 100 * n + i for i in range(3 + 7 * member)))


def unbroken(tier: Tier, store: Store, n: int) -> int:
    """How many chunks of it are held; those before are, too."""
    keys = [ChunkKey(bytes.fromhex(text)) for text in store.keys(document(n))]
    held = tier.find(keys)
    assert held == sorted(held, reverse=True), (n, held)
    return sum(held)


@pytest.mark.parametrize("seed", range(2))
def test_no_prefix_ever_loses_its_head_before_its_tail(opened: Opened, seed: int) -> None:
    clock, draw = Clock(), random.Random(seed)
    tier = opened(clock, 12_000, 0)
    store = Store([tier], GEOMETRY, FINGERPRINT, rates=Known())
    refused, whole = 0, Truth.of(GEOMETRY, 64)
    for _ in range(120 if isinstance(tier, MemoryTier) else 40):
        clock.tick(draw.choice((1, 1000, 40_000)))
        n = min(int(draw.expovariate(0.3)), 15)
        tokens = document(n)
        truth = Truth(GEOMETRY, whole.kv[..., : len(tokens), :])
        assert store.load(tokens, len(tokens), truth.sink).tokens == store.match(tokens)
        refused += not store.save(tokens, 0, truth.source).stored
        counts = [unbroken(tier, store, n) for n in range(16)]
        assert tier.usage().nbytes <= 12_000
    assert refused < 60 and max(counts) > 4  # there was too little room, and it was used


def test_a_tier_keeps_what_is_used_most_and_saves_most() -> None:
    """Against recency alone, on the same requests: more seconds saved."""

    def seconds(weighs: bool) -> float:
        clock, draw = Clock(), random.Random(5)
        tier = MemoryTier(budget=12_000, clock=clock)
        tiers: list[Tier] = [tier]
        store = Store(tiers, GEOMETRY, FINGERPRINT, rates=Known())
        if not weighs:
            tier._budget._together = lambda key: ()
        total = 0.0
        for _ in range(600):
            clock.tick(100)
            # A few documents all the time, and many that are asked once.
            n = draw.choice((1, 2, 6)) if draw.random() < 0.3 else draw.randrange(8, 400)
            tokens = document(n)
            found = store.match(tokens)
            total += PREFILL.seconds(0, found) - PACE.seconds(found * GEOMETRY.bytes_per_token, 1)
            truth = Truth.of(GEOMETRY, len(tokens))
            store.save(tokens, 0, truth.source)
        return total

    assert seconds(weighs=True) > 1.1 * seconds(weighs=False)


def test_worth_by_hand() -> None:
    assert saved(10, 1000, 1, PREFILL, PACE) == pytest.approx(
        (0.001 + 10 * 1e-4 + 50e-7 - 1e-6) / 1000
    )
    assert saved(10, 1000, 1, None, PACE) == saved(0, 0, 0, PREFILL, None) == LEAST
    assert saved(10, 1000, 1, PREFILL, Pace(9.0, 0.0)) == LEAST
    again = use([(key(1), 100), (key(2), 300)], 0, 2.0)
    new = use([(key(1), 100), (key(2), 300)], 400, 2.0)
    half = use([(key(1), 200), (key(2), 200)], 200, 2.0)
    assert list(again.values()) == pytest.approx([2.0, 2.0], rel=1e-5)
    assert list(new.values()) == pytest.approx([2 * NEW] * 2, rel=1e-5)
    assert list(half.values()) == pytest.approx([1 + NEW] * 2, rel=1e-5)
    for worths in (again, new, half):
        assert worths[key(1)] > worths[key(2)]


# --- what falls out of memory ---


def fallen_into(den: Den, far: Tier, manner: Manner, *, read: bool) -> Metrics:
    """Two prefixes, one after the other, in memory for one."""
    metrics = Metrics()
    near = MemoryTier(name="near", budget=9000)
    store = Store(
        [near, far], GEOMETRY, FINGERPRINT, metrics=metrics, manners={"far": manner}, drain_s=60
    )
    first = Den.tokens
    store.save(first, 0, den.truth.source)
    store.close()  # all is written
    far.remove([ChunkKey(bytes.fromhex(k)) for k in store.keys(first)])
    if read:
        den.load(store)
    near._book = Book(near._clock, most=0)
    near._budget._book = near._book  # what is worth something would stay
    other = tuple(range(500, 529))
    store.save(other, 0, den.truth.source)
    store.close()
    return metrics


@pytest.mark.parametrize("manner", [Manner(), Manner(behind=True)])
def test_what_was_used_again_goes_to_the_next_tier_when_it_falls(
    tmp_path: Path, manner: Manner
) -> None:
    den, far = Den(tmp_path), MemoryTier(name="far")
    metrics = fallen_into(den, far, manner, read=True)
    demoted = metrics.snapshot()["store.demoted.far"]
    assert 1 <= demoted and sum(far.find(ours(den))) == demoted
    elsewhere = MemoryTier(name="far")
    silent = fallen_into(den, elsewhere, manner, read=False)
    assert "store.demoted.far" not in silent.snapshot() and not any(elsewhere.find(ours(den)))


def ours(den: Den) -> list[ChunkKey]:
    return [ChunkKey(hashlib.sha256(b"").digest()), *(ChunkKey(bytes.fromhex(k)) for k in den.keys)]


def test_a_full_tier_is_not_said_to_be_full_at_every_save(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    den = Den(tmp_path)

    class Full(MemoryTier):
        def write(self, key: ChunkKey, value: Sequence[bytes | memoryview]) -> bool:
            return False

    store = den.open([Full()])
    for _ in range(3):
        assert not store.save(Den.tokens, 0, den.truth.source).stored
    assert den.metrics.snapshot()["store.refused.memory"] == 3
    assert caplog.text.count("does not keep everything") == 1
