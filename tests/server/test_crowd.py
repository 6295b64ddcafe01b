"""Many clients that come, read a little and go: nothing is left behind, and who stays is answered
as if it were alone."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import aiohttp

import preread

from .conftest import Served

CHAT = "/chat/completions"


def body(rng: random.Random, i: int) -> dict[str, Any]:
    turns = [{"role": "user", "content": f"Question {i % 7}?"}]
    if rng.random() < 0.3:
        turns = [*turns, {"role": "assistant", "content": "Yes."}, *turns]
    if rng.random() < 0.3:
        turns.insert(0, {"role": "system", "content": f"Be kind {i % 3}."})
    sent = {"model": rng.choice(["tiny", "handbook"]), "messages": turns}
    if rng.random() < 0.2:
        return {**sent, "labels": ["yes", "no"]}
    return {**sent, "max_tokens": rng.choice([1, 5, 40]), "stream": rng.random() < 0.5}


async def test_clients_that_come_and_go(served: Served, handbook: preread.Context) -> None:
    rng = random.Random(7)
    bodies = [body(rng, i) for i in range(150)]
    patience = [rng.choice([0.0, 0.005, 0.05, 0.2, None]) for _ in bodies]
    said: dict[int, str] = {}

    async def ask(session: aiohttp.ClientSession, i: int) -> None:
        async with session.post(served.url + CHAT, json=bodies[i]) as response:
            text = await response.text()
            assert response.status == 200, text
            if not bodies[i].get("stream"):
                said[i] = (await response.json())["choices"][0]["message"]["content"]

    async def come(session: aiohttp.ClientSession, i: int) -> None:
        try:
            async with asyncio.timeout(patience[i]):
                await ask(session, i)
        except TimeoutError:
            pass

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(come(session, i) for i in range(len(bodies))))
        together, said = said, {}
        for i in together:
            await ask(session, i)
    assert together == said and len(said) > 10
    core = served.engine.backend._thread._engine  # type: ignore[attr-defined]
    async with asyncio.timeout(60):
        while (core._seqs.state != 0).any() or core.pages.free != core.pages.total:
            await asyncio.sleep(0.005)
    counted = served.engine.metrics
    ended = [
        counted.get(f"server.{how}", 0) for how in ("answered", "refused", "failed", "cancelled")
    ]
    assert sum(ended) == counted["server.requests"] and ended[1:3] == [0, 0]
