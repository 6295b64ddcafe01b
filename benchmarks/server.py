"""What does HTTP add to a request?

    .venv/bin/python benchmarks/server.py [--requests 2000] [--at-once 50] [--tokens 20]

The same conversations to a backend that answers at once: asked of the server's desk in this process
(the body is read, requests are joined, results taken apart), and over HTTP, whole and as a stream,
from a client process of its own. Side by side; CPU time of the serving process
(time.process_time) per request, and requests per second as the client saw them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import common

from preread.batch.bodies import Defaults
from preread.config import Config, ServerSection
from preread.contexts.catalog.sqlite import SqliteCatalog
from preread.contexts.crowd import Crowd
from preread.metrics import Metrics
from preread.server.asked import read_chat
from preread.server.desk import Desk
from preread.server.keys import Keys
from preread.server.replies import Reply
from preread.server.server import Server
from preread.server.shelf import Shelf
from preread.testing.instant import InstantBackend

SYSTEM = common.filler(500)


def body(i: int, tokens: int, stream: bool = False) -> dict[str, Any]:
    turns = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": f"Question {i}: who of them signs the invoices?"},
    ]
    return {"model": "instant", "messages": turns, "max_tokens": tokens, "stream": stream}


async def main(args: argparse.Namespace, home: Path) -> None:
    section = ServerSection(port=0, max_requests=args.at_once)
    config = replace(Config(home), server=section)
    backend = Crowd(InstantBackend(remember=False))
    shelf = Shelf(backend, SqliteCatalog(home / "catalog.sqlite"), config, lambda opened: opened)
    desk = Desk(backend, shelf, config, name="instant", words=None, metrics=Metrics())
    server = Server(Keys({}, "default"), {"default": desk}, config)
    url = await server.start()

    async def in_process(i: int) -> None:
        asked = read_chat(json.loads(json.dumps(body(i, args.tokens))), Defaults())
        json.dumps(Reply(asked, None).whole(await desk.answer(asked)))

    def over_http(*more: str) -> Callable[[], Awaitable[float]]:
        return lambda: client(args, url, *more)

    arms: dict[str, Callable[[], Awaitable[float]]] = {
        "in_process": lambda: at_once(args, in_process),
        "http": over_http(),
        "stream": over_http("--stream"),
    }
    cpu: dict[str, list[float]] = {name: [] for name in arms}
    rate: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(args.rounds + 1):
        for name, work in arms.items():
            began = time.process_time()
            seconds = await work()
            if number:  # the first is a warm-up
                cpu[name].append((time.process_time() - began) / args.requests)
                rate[name].append(args.requests / seconds)
    await server.stop()
    cpu_us = {name: round(common.median(of) * 1e6) for name, of in cpu.items()}
    added = {name: cpu_us[name] - cpu_us["in_process"] for name in ("http", "stream")}
    rates = {name: round(common.median(of)) for name, of in rate.items()}
    asked = {"requests": args.requests, "at_once": args.at_once, "tokens": args.tokens}
    figures = asked | {"cpu_us": cpu_us, "added_us": added, "requests_per_s": rates}
    common.finish("server", figures, keep=args.keep)


async def client(args: argparse.Namespace, url: str, *more: str) -> float:
    """Seconds that its requests took."""
    told = ["--requests", args.requests, "--at-once", args.at_once, "--tokens", args.tokens]
    command = [sys.executable, __file__, "--client", url, *map(str, told), *more]
    child = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    said, _ = await child.communicate()
    assert child.returncode == 0
    return float(said)


async def at_once(args: argparse.Namespace, one: Callable[[int], Awaitable[None]]) -> float:
    """Seconds of all requests, so many under way at once."""
    slots = asyncio.Semaphore(args.at_once)

    async def next_one(i: int) -> None:
        async with slots:
            await one(i)

    began = time.perf_counter()
    await asyncio.gather(*(next_one(i) for i in range(args.requests)))
    return time.perf_counter() - began


async def ask(args: argparse.Namespace) -> None:
    connections = aiohttp.TCPConnector(limit=args.at_once)
    async with aiohttp.ClientSession(connector=connections) as session:

        async def one(i: int) -> None:
            sent = body(i, args.tokens, args.stream)
            async with session.post(f"{args.client}/chat/completions", json=sent) as response:
                said = await response.text()
                assert response.status == 200, said
                assert said.rstrip().endswith("[DONE]") if args.stream else json.loads(said)

        print(await at_once(args, one))


if __name__ == "__main__":
    parser = common.parser(__doc__)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--at-once", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--client", default="", help=argparse.SUPPRESS)
    parser.add_argument("--stream", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    with nullcontext() if chosen.client else tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(chosen, Path(folder)) if folder else ask(chosen))
