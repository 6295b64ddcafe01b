"""Many tasks, one context: each awaits its own answer, all run as one batch.

Answers come as they are ready; one that fails is an answer with an `error`, and cancelling a task
frees its place at once. Works from any event loop and any thread.
"""

import asyncio
from pathlib import Path

import preread

HANDBOOK = Path(__file__).parent / "handbook"
QUESTIONS = (
    "Who started the workshop?",
    "How big a deposit do we need before work on an order begins?",
    "How long does it take to charge the electric van?",
)


async def main(engine: preread.Engine) -> None:
    handbook = await engine.aio.context("example-handbook", HANDBOOK)

    async def ask(question: str) -> tuple[str, preread.Completion]:
        return question, await handbook.ask(question, max_tokens=40)

    for done in asyncio.as_completed([ask(question) for question in QUESTIONS]):
        question, answer = await done
        print(f"{question} -> {answer.text.strip() or answer.error}")
        print(f"{'':4}{answer.usage.cached_tokens} cached, {answer.usage.computed_tokens} computed")


with preread.open() as engine:
    asyncio.run(main(engine))
