"""Choices and likelihoods by our own server (docs/server.md): it has a field for each."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from preread.backend import Choose
from preread.providers import chat
from preread.providers.dialect import Ask, Said, Wire
from preread.types import Finish

if TYPE_CHECKING:
    from preread.providers.openai import OpenAI


async def score(api: OpenAI, ask: Ask, wire: Wire) -> Said:
    """A Choose or LogLikelihood row; one request, nothing is decoded."""
    work, options = ask.work, dict[str, Any]()
    if isinstance(work, Choose):
        options["labels"] = list(work.labels)
    elif not ask.continuation:
        return Said(error="The continuation is empty.")
    else:
        options |= {"continuation": ask.continuation, "return_token_ids": True}
    body = await wire.ask(api.call(ask, options), ask, 1)
    choice, counts, said = body["choices"][0], api.counts(body), body["preread"]
    if isinstance(work, Choose):
        mass, shares = float(said["mass"]), said["probabilities"]
        logs = [_log(float(shares[label]) * mass) for label in work.labels]
        return Said(counts=counts, label_logs=logs)
    scored = chat.logprobs(choice)
    return Said(
        "", Finish.STOP, counts, choice["token_ids"], scored, greedy=bool(said["is_greedy"])
    )


def _log(share: float) -> float:
    return math.log(share) if share > 0 else -math.inf
