"""Read a folder once, ask it several things at once, and see what that saved."""

from pathlib import Path

import preread

HANDBOOK = Path(__file__).parent / "handbook"

with preread.open() as engine:
    handbook = engine.context("example-handbook", HANDBOOK)
    answers = handbook.ask_many(
        [
            "Who started the workshop?",
            "How big a deposit do we need before work on an order begins?",
            "How long does it take to charge the electric van?",
        ]
    )
    for answer in answers:
        where = answer.citations[0] if answer.citations else None
        print(answer.text, f"[{where.source}:{where.start_line}]" if where else "")
        print(f"  {answer.usage.cached_tokens} cached, {answer.usage.computed_tokens} computed")
