"""Approximate prefixes: against their slow twin, beside exact ones, and under pressure."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from preread.backend import Choose, Generate, Ragged, RequestBatch
from preread.blends import Blend
from preread.config import EngineSection
from preread.contexts.rows import collect
from preread.engine.agreeing import logits_after
from preread.engine.arena import clip
from preread.engine.blend import Blending, chosen
from preread.engine.caller import Caller
from preread.engine.local import LocalBackend
from preread.engine.marks import Marks
from preread.engine.recipe import Recipe
from preread.engine.stretches import Stretch, stretches, stretches_slow
from preread.errors import RequestError
from preread.kernels.rope import moved_slow
from preread.models.load import LoadedModel, load_model
from preread.store.tiers.memory import MemoryTier
from preread.testing.models import NaiveAttend, forward, load_decoder, write_tiny_model
from preread.types import Message, Prefix
from tests.engine.test_local import store_of

CONFIG = EngineSection(
    prefix_memory_mb=16,
    suffix_memory_mb=4,
    extent_tokens=64,
    max_sequences=16,
    prefill_chunk=100,
    truth_check=True,
)
WORDS = "oak elm ash fir yew box hop ivy rye sloe plum pear fig lime".split()
HEAD = "Answer from the documents below."
SHORT = Generate(max_tokens=8, ignore_eos=True, logprobs=True)
ASKED = ["Which tree?", "How many plums are there?"]


def document(name: str, seed: int, words: int = 60) -> str:
    pick = np.random.default_rng(seed)
    return f"[{name}.md]\n" + " ".join(pick.choice(WORDS, words))


DOCUMENTS = [document("trees", 1), document("fruit", 2), document("herbs", 3)]


def parts(documents: list[str]) -> tuple[str, ...]:
    return tuple(f"{HEAD}\n\n{text}" for text in documents)


def blended(share: float, by: str = "first", documents: list[str] = DOCUMENTS) -> Prefix:
    whole = "\n\n".join([HEAD, *documents])
    return Prefix(whole, (), Blend(parts(documents), share, by))  # type: ignore[arg-type]


def exact(prefix: Prefix) -> Prefix:
    return replace(prefix, blend=None)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = write_tiny_model(tmp_path_factory.mktemp("blend") / "tiny", "qwen3", layers=3)
    return load_model(str(folder), dtype="float32", device="cpu")


@pytest.fixture
async def backend(model):
    backend = LocalBackend(model, None, CONFIG)
    yield backend
    await backend.close()


async def ask(backend: LocalBackend, prefix: Prefix, work=SHORT, **options):
    return await collect(backend, RequestBatch(work, ASKED, (prefix,), **options))


def recipe_of(backend: LocalBackend, prefix: Prefix) -> Recipe:
    return backend._blends.recipes.of(prefix)


async def kv_of(backend: LocalBackend, prefix: Prefix, upto: int) -> torch.Tensor:
    """[layers, 2, G, upto, D] as it lies in memory."""
    if prefix.blend is None:
        tokens = backend._model.chat.prefix(prefix)
        ready = await asyncio.to_thread(backend._builder.prepare, tokens, Caller())
    else:
        ready = await asyncio.to_thread(backend._blends.prepare, prefix, Caller())
    kv = backend._arena_read(clip(ready.reading.runs, 0, upto))  # type: ignore[attr-defined]
    backend._builder.release(ready, 60.0)
    return kv


@pytest.fixture(autouse=True)
def _read(monkeypatch) -> None:
    monkeypatch.setattr(
        LocalBackend, "_arena_read", lambda self, runs: self._builder._arena.read(runs),
        raising=False,
    )  # fmt: skip


# --- the slow twin ---------------------------------------------------------------------------


@torch.inference_mode()
def blended_slow(model: LoadedModel, recipe: Recipe, again: list[int]) -> torch.Tensor:
    """KV [layers, 2, G, end, D] by the definition, in float64 where it matters: every part read by
    itself with textbook attention, every key moved by itself, every token in `again` computed by
    itself, in order, over all that lies before it."""
    decoder, end = model.decoder, recipe.end
    shape = (decoder.layers, 2, decoder.kv_heads, end, decoder.head_dim)
    kv = torch.zeros(shape, dtype=torch.float32)
    read = []
    for tokens in recipe.parts:
        attend = NaiveAttend(decoder.layers, 1)
        forward(decoder, [tokens.tolist()], attend)
        alone = [torch.stack(attend.kv(layer, 0)).transpose(1, 2) for layer in range(shape[0])]
        read.append(torch.stack(alone))
    kv[:, :, :, : recipe.head] = read[0][:, :, :, : recipe.head]
    for s in recipe.found:
        for i in range(s.tokens):
            k, v = read[s.part][:, :, :, s.start + i].unbind(1)
            old, new = (decoder.angles(torch.tensor([p])) for p in (s.start + i, s.at + i))
            kv[:, 0, :, s.at + i] = moved_slow(k, old, new).float()
            kv[:, 1, :, s.at + i] = v
    for place in again:

        def attend_one(layer, q, k, v, place=place):
            kv[layer, :, :, place] = torch.stack((k[0], v[0]))
            keys, values = kv[layer, :, :, : place + 1].double()
            fold = q.shape[1] // keys.shape[0]
            keys, values = (x.repeat_interleave(fold, 0) for x in (keys, values))
            scores = (q[0].double()[:, None] * keys).sum(-1) * decoder.head_dim**-0.5
            return (scores.softmax(-1)[..., None] * values).sum(1)[None].to(q.dtype)

        token = torch.tensor([int(recipe.real[place])])
        decoder.hidden(token, torch.tensor([place]), attend_one)
    return kv


def recomputed(recipe: Recipe, share: float) -> list[int]:
    """By "first": what no part has, and the first of every stretch."""
    reused = {s.at + i for s in recipe.found for i in range(s.tokens)}
    firsts = {s.at + i for s in recipe.found for i in range(int(np.ceil(share * s.tokens)))}
    return [p for p in range(recipe.head, recipe.end) if p not in reused or p in firsts]


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
async def test_it_is_what_the_slow_twin_makes(backend, model, share):
    prefix = blended(share)
    recipe = recipe_of(backend, prefix)
    assert {s.part for s in recipe.found} == {1, 2}
    got = await kv_of(backend, prefix, recipe.end)
    want = blended_slow(model, recipe, recomputed(recipe, share))
    torch.testing.assert_close(got, want, atol=2e-4, rtol=2e-4)


async def test_the_ones_that_deviate_are_those_the_definition_names(backend, model):
    prefix = blended(0.3, "deviation")
    recipe = recipe_of(backend, prefix)
    got = await kv_of(backend, prefix, recipe.end)
    full = await kv_of(backend, exact(prefix), recipe.end)
    bare = blended_slow(model, recipe, recomputed(recipe, 0.0))
    (away, size) = (x[1].double().square().sum((1, 3)) for x in (bare - full, full))
    off = (away / size).sum(0)  # by place
    reused = np.concatenate([np.arange(s.at, s.at + s.tokens) for s in recipe.found])
    most = int(np.ceil(0.3 * len(reused)))
    top = reused[np.argsort(-off[reused].numpy(), kind="stable")[:most]]
    again = sorted({*top.tolist(), *recomputed(recipe, 0.0)})
    want = blended_slow(model, recipe, again)
    different = ((got - want).abs().amax((0, 1, 2, 4)) > 1e-3).sum()
    assert different == 0, f"{different} of {recipe.end} tokens"


@pytest.mark.parametrize("by", ["first", "deviation"])
async def test_all_computed_again_is_the_exact_composition(backend, by):
    prefix = blended(1.0, by)
    want = await ask(backend, exact(prefix), reuse=False)
    got = await ask(backend, prefix)
    assert [row.tokens for row in got] == [row.tokens for row in want]
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)
    recipe = recipe_of(backend, prefix)
    mine, true = [await kv_of(backend, p, recipe.end) for p in (prefix, exact(prefix))]
    torch.testing.assert_close(mine, true, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize(("dtype", "wider"), [("float32", "float64"), ("bfloat16", "float32")])
async def test_all_computed_again_keeps_law_1(model, dtype, wider):
    """What follows is as near to the model in the next wider type as without any cache; and what
    follows a blend of less is not: the bound can tell."""
    loaded = load_model(str(model.folder), dtype=dtype, device="cpu")
    reference = load_decoder(model.folder, wider)
    backend = LocalBackend(loaded, None, CONFIG)
    tokens = recipe_of(backend, blended(1.0)).real
    text = np.random.default_rng(5).integers(0, 250, 40).astype(np.int32)
    prompt = [*tokens.tolist(), *text.tolist()]
    true, plain = (forward(d, [prompt])[0][-40:] for d in (reference, loaded.decoder))
    off = {"plain": (plain - true).square().mean().sqrt()}
    for share in (1.0, 0.2):
        kv = await kv_of(backend, blended(share), len(tokens))
        got = logits_after(loaded.decoder, backend._builder._arena.kv, kv, text)
        off[share] = (got - true).square().mean().sqrt()
    assert off[1.0] <= 1.25 * off["plain"] < off[0.2], off
    await backend.close()


async def test_less_is_further_from_it(backend):
    full = await kv_of(backend, exact(blended(0)), 400)
    off = []
    for share in (0.0, 0.3, 0.7, 1.0):
        kv = await kv_of(backend, blended(share), 400)
        off.append(float((kv - full).square().mean()))
    assert off == sorted(off, reverse=True) and off[0] > 1e-3 > off[-1]


@pytest.mark.parametrize("precision", ["full", "int8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
async def test_in_every_type_of_kv(model, dtype, precision):
    loaded = load_model(str(model.folder), dtype=dtype, device="cpu", kv_precision=precision)
    backend = LocalBackend(loaded, None, CONFIG)
    bound = 0.02 if (dtype, precision) != ("float32", "full") else 1e-8
    for share, low, high in ((1.0, 0, bound), (0.0, bound, 2)):
        recipe = recipe_of(backend, blended(share))
        mine, true = [
            (await kv_of(backend, p, recipe.end)).float()
            for p in (blended(share), exact(blended(share)))
        ]
        off = float((mine - true).square().sum() / true.square().sum())
        assert low <= off <= high, (share, off)
    await backend.close()


# --- beside exact ones -----------------------------------------------------------------------


async def test_one_part_is_exact(backend):
    prefix = blended(0.1, documents=DOCUMENTS[:1])
    assert recipe_of(backend, prefix).found == ()
    want = await ask(backend, exact(prefix))
    got = await ask(backend, prefix)
    assert [row.tokens for row in got] == [row.tokens for row in want]
    assert all(row.usage.cached_tokens >= row.usage.context_tokens for row in got)


@pytest.mark.parametrize("first", ["exact", "blend"])
async def test_no_exact_reader_meets_it(backend, first):
    """Whoever came first, and what continues the same tokens as well."""
    prefix = blended(0.0)
    want = await ask(backend, exact(prefix), reuse=False)
    if first == "blend":
        await ask(backend, prefix)
        await ask(backend, prefix, keep=True)
    recipe = recipe_of(backend, prefix)
    got = await ask(backend, exact(prefix))
    assert [row.tokens for row in got] == [row.tokens for row in want]
    if first == "blend":  # of all that, the first part's beginning alone was of use
        assert got[0].usage.cached_tokens == recipe.head
    mine = await ask(backend, prefix)
    np.testing.assert_allclose(got[0].logprobs, want[0].logprobs, atol=1e-4)
    assert any(
        one.tokens != other.tokens or abs(one.logprobs[0] - other.logprobs[0]) > 1e-3
        for one, other in zip(mine, want, strict=True)
    ), "the blend is told apart from the exact composition"


async def test_another_share_is_another_prefix(backend):
    a, b = [await ask(backend, blended(share)) for share in (0.0, 0.5)]
    assert b[0].usage.computed_tokens > 100
    assert a[0].logprobs != b[0].logprobs
    again = await ask(backend, blended(0.0))
    assert again[0].logprobs == pytest.approx(a[0].logprobs, abs=1e-5)
    assert again[0].usage.computed_tokens < 60


async def test_parts_are_stored_and_the_whole_is_not(model):
    tier = MemoryTier()
    first = LocalBackend(model, store_of(model, tier), CONFIG)
    kept = [(await first.build(Prefix(text))).chunk_keys for text in parts(DOCUMENTS)]
    before = {entry.key.hex() for entry in tier.scan()}
    built = await first.build(blended(0.2))
    assert built.chunk_keys == () and 0 < built.computed_tokens < built.tokens / 2
    assert built.reused_tokens + built.computed_tokens == built.tokens
    await ask(first, blended(0.2))
    assert (
        {entry.key.hex() for entry in tier.scan()} == before == {k for keys in kept for k in keys}
    )
    want = await ask(first, blended(0.2))
    await first.close()
    second = LocalBackend(model, store_of(model, tier, always=True), CONFIG)
    got = await ask(second, blended(0.2))
    assert [row.tokens for row in got] == [row.tokens for row in want]
    brought = got[0].timing.brought
    assert brought is not None and brought.tokens > 0.7 * built.tokens
    assert second.metrics.snapshot()["engine.blended_tokens"] > 0
    third = LocalBackend(model, store_of(model), CONFIG)  # nothing is kept anywhere: read, saved
    cold = await third.build(blended(0.2))
    assert cold.computed_tokens == cold.tokens
    assert [r.tokens for r in await ask(third, blended(0.2))] == [r.tokens for r in want]
    await second.close()
    await third.close()


async def test_a_conversation_goes_on_in_its_own_name(backend):
    prefix = blended(0.2)
    first = (await ask(backend, prefix, keep=True))[0]
    text = backend._model.tokenizer.decode(first.tokens)
    turns = (Message("user", ASKED[0]), Message("assistant", text))
    (row,) = await collect(
        backend, RequestBatch(SHORT, ["And then?"], (replace(prefix, history=turns),))
    )
    assert row.usage.cached_tokens > recipe_of(backend, prefix).end
    longer = recipe_of(backend, replace(prefix, history=turns))
    assert longer.tokens[longer.head] == recipe_of(backend, prefix).tokens[longer.head] < 0
    true = replace(exact(prefix), history=turns)
    (row,) = await collect(backend, RequestBatch(SHORT, ["And then?"], (true,)))
    assert row.usage.cached_tokens <= longer.head


async def test_other_kinds_of_work_and_many_rows(backend):
    prefix = blended(0.1)
    rows = await ask(backend, prefix, Choose(("oak", "elm")))
    assert all(abs(sum(row.label_probs) - 1) < 1e-5 for row in rows)
    many = [f"{word} {i}?" for i in range(10) for word in WORDS]
    rows = await collect(backend, RequestBatch(SHORT, many, (prefix,)))
    alone = await collect(backend, RequestBatch(SHORT, many[7:8], (prefix,)))
    assert rows[7].tokens == alone[0].tokens and not any(row.error for row in rows)


async def test_a_forgotten_one_is_put_together_again(backend):
    prefix = blended(0.2)
    await backend.build(prefix)
    want = await ask(backend, prefix)
    await backend.forget([prefix])
    again = await ask(backend, prefix)
    recipe = recipe_of(backend, prefix)
    more = again[0].usage.computed_tokens - want[0].usage.computed_tokens
    assert len(recomputed(recipe, 0.2)) <= more < recipe.end - recipe.head
    assert [row.tokens for row in again] == [row.tokens for row in want]


async def test_what_memory_lost_meanwhile_the_engine_computes(backend):
    """A row whose beginning went before it ran: exact then, and still nobody else's."""
    prefix = blended(0.2)
    recipe = recipe_of(backend, prefix)
    ready = await asyncio.to_thread(backend._unstored.prepare, recipe.tokens, Caller())
    kv = backend._arena_read(ready.reading.runs)
    backend._unstored.release(ready, 60.0)
    assert ready.computed == len(recipe.tokens)
    true = await kv_of(backend, exact(prefix), len(recipe.tokens))
    torch.testing.assert_close(kv, true, atol=2e-4, rtol=2e-4)
    rows = await ask(backend, prefix)
    assert rows[0].usage.cached_tokens >= len(recipe.tokens)


async def test_many_at_once_in_little_memory(model):
    """Compositions of parts in different orders, exact ones beside them, room for three: nobody
    waits for ever. An exact answer is the exact one; one on a blend is that of the blend or, where
    that was lost before its turn, the exact one."""
    backend = LocalBackend(model, None, replace(CONFIG, prefix_memory_mb=2))
    orders = [[0, 1], [1, 0], [2, 0], [0, 2, 1], [2, 1, 0]]
    prefixes = [blended(0.2, documents=[DOCUMENTS[i] for i in order]) for order in orders]
    longest = max(len(recipe_of(backend, p).tokens) for p in prefixes)
    assert backend._builder._arena.capacity < 4 * longest
    both = [*prefixes, *map(exact, prefixes)]
    want = {p: [row.tokens for row in await ask(backend, p)] for p in both}
    async with asyncio.timeout(120):
        got = await asyncio.gather(*(ask(backend, p) for p in both * 2))
    for prefix, rows in zip(both * 2, got, strict=True):
        assert not any(row.error for row in rows)
        told = [row.tokens for row in rows]
        assert told in (want[prefix], want[exact(prefix)])
    await asyncio.to_thread(backend._thread.call, lambda engine: engine.check())
    await backend.close()


async def test_who_leaves_holds_nothing(backend):
    task = asyncio.create_task(backend.build(blended(0.3)))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    rows = await ask(backend, blended(0.3))
    assert not any(row.error for row in rows)

    def held(engine) -> int:
        engine.check()
        return sum(s.pins for s in engine.tree.segments)

    for _ in range(200):
        if not (pins := await asyncio.to_thread(backend._thread.call, held)):
            break
        await asyncio.sleep(0.01)
    assert pins == 0


async def test_who_leaves_midway_has_no_more_computed(backend, monkeypatch):
    passes, begun, left = [], asyncio.Event(), threading.Event()
    loop, real = asyncio.get_running_loop(), Blending.recompute

    def slow(self, at):
        passes.append(len(at))
        loop.call_soon_threadsafe(begun.set)
        assert left.wait(20)
        real(self, at)

    monkeypatch.setattr(Blending, "recompute", slow)
    task = asyncio.create_task(backend.build(blended(1.0)))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    left.set()
    rows = await ask(backend, exact(blended(1.0)))
    assert not any(row.error for row in rows)
    assert len(passes) == 1 and passes[0] == CONFIG.prefill_chunk
    await asyncio.to_thread(backend._thread.call, lambda engine: engine.check())


async def test_a_failure_leaves_an_exact_engine(backend, monkeypatch):
    def broken(self, at):
        raise RuntimeError("injected")

    monkeypatch.setattr(Blending, "recompute", broken)
    rows = await ask(backend, blended(0.2))
    assert all("injected" in row.error for row in rows)
    monkeypatch.undo()
    rows = await ask(backend, exact(blended(0.2)))
    assert not any(row.error for row in rows)
    await asyncio.to_thread(backend._thread.call, lambda engine: engine.check())


async def test_what_is_no_blend_is_refused(backend):
    for blend in (Blend((), 0.1), Blend(parts(DOCUMENTS), 1.5)):
        with pytest.raises(RequestError, match="at least one part"):
            await backend.build(Prefix(HEAD, (), blend))


async def test_several_devices_refuse_it(backend):
    backend._blender = None
    with pytest.raises(RequestError, match="exact composition"):
        await backend.build(blended(0.2))
    with pytest.raises(RequestError, match="exact composition"):
        await ask(backend, blended(0.2))


async def test_nobody_names_it_by_accident_or_on_purpose(backend):
    """Token ids that a caller gives are tokens."""
    recipe = recipe_of(backend, blended(0.2))
    await backend.build(blended(0.2))
    for first in (recipe.tokens[recipe.head], -1):
        tokens = recipe.tokens.copy()
        tokens[recipe.head] = first
        rows = np.stack((np.append(tokens, 65), np.append(tokens, 66)))
        prompts = Ragged(rows.ravel().astype(np.int32), np.arange(3) * rows.shape[1])
        got = await collect(backend, RequestBatch(SHORT, prompts, raw=True))
        assert all("not below the vocabulary" in row.error for row in got)


# --- its parts -------------------------------------------------------------------------------

TOKENS = st.lists(st.integers(0, 3), min_size=0, max_size=120)


@settings(max_examples=60, deadline=None)
@given(TOKENS, TOKENS, st.data())
def test_stretches_are_those_of_the_twin(whole, part, data):
    """Also where the same runs stand in a part many times."""
    if part and whole:
        lo = data.draw(st.integers(0, len(part) - 1))
        at = data.draw(st.integers(0, len(whole)))
        whole = whole[:at] + part[lo:] + whole[at:]
    array, other = (np.array(x, np.int32) for x in (whole, part))
    begin = data.draw(st.integers(0, len(whole)))
    found = stretches(array, [other], begin)
    assert found == stretches_slow(array, other, begin)
    for s in found:
        assert (array[s.at : s.at + s.tokens] == other[s.start : s.start + s.tokens]).all()


def test_stretches_of_several_parts_do_not_overlap():
    make = np.random.default_rng(0)
    one, two = (make.integers(0, 200, 90).astype(np.int32) for _ in range(2))
    whole = np.concatenate((one[10:50], two[:60], one[40:], two[60:]))
    found = stretches(whole, [one, two], 0)
    assert found == [
        Stretch(0, 0, 10, 40), Stretch(40, 1, 0, 60), Stretch(100, 0, 40, 50),
        Stretch(150, 1, 60, 30),
    ]  # fmt: skip
    assert stretches(whole, [one, two], 45)[0] == Stretch(45, 1, 5, 55)
    assert stretches(whole, [two[:10]], 0) == []


def test_the_share_is_of_every_stretch():
    found = [Stretch(5, 1, 0, 10), Stretch(20, 2, 3, 4)]
    assert chosen(found, 0.15, "first", None).tolist() == [5, 6, 20]
    off = np.arange(14, dtype=np.float32)
    assert chosen(found, 0.2, "deviation", off).tolist() == [21, 22, 23]
    assert len(chosen(found, 1.0, "first", None)) == 14 and not len(chosen(found, 0, "first", None))


def test_a_name_stands_for_its_token():
    marks = Marks()
    a, b, c = marks.name(b"x", 7), marks.name(b"x", 8), marks.name(b"y", 7)
    assert len({a, b, c}) == 3 and max(a, b, c) < 0 and marks.name(b"x", 7) == a
    tokens = np.array([3, a, b, -1, c, c - 1], np.int32)
    assert marks.real(tokens).tolist() == [3, 7, 8, -1, 7, c - 1]
    plain = tokens[:1]
    assert marks.real(plain) is plain
