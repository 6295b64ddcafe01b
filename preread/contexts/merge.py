"""Answers of several shards become one. The others stay visible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

from preread.contexts.cite import grounded
from preread.contexts.layout import is_not_stated
from preread.types import Brought, Completion, Finish, Timing, Usage


def merge(answers: Sequence[Completion], unread: Sequence[str]) -> Completion:
    """The best answer: one that says something before "not stated", one whose words stand in the
    sources before one whose do not, then the model's own mean token log-probability. answers: of
    the asked shards, best routed first, with log-probabilities and citations. unread: documents
    that none of them contained. Tokens are added up; the time to the first token is the winner's,
    the end is the last one's."""
    if len(answers) == 1:
        return replace(answers[0], unread=tuple(unread)) if unread else answers[0]
    ranked = sorted(answers, key=_rank, reverse=True)
    best = ranked[0]
    loads = [a.timing.brought for a in answers if a.timing.brought is not None]
    timing = Timing(
        load_ms=max(a.timing.load_ms for a in answers),
        ttft_ms=best.timing.ttft_ms,
        total_ms=max(a.timing.total_ms for a in answers),
        saved_ms=sum(a.timing.saved_ms for a in answers),
        brought=reduce(Brought.plus, loads) if loads else None,
    )
    return replace(
        best,
        usage=sum((a.usage for a in answers), Usage()),
        timing=timing,
        unread=tuple(unread),
        alternatives=tuple(ranked[1:]),
    )


def _rank(answer: Completion) -> tuple[bool, bool, int, float]:
    finished = answer.finish_reason in (Finish.STOP, Finish.LENGTH)
    stated = bool(answer.text.strip()) and not is_not_stated(answer.text)
    return finished, stated, grounded(answer.citations), mean_logprob(answer)


def mean_logprob(answer: Completion) -> float:
    """Mean natural log-probability of the answer's tokens; 0.0 when they are not known."""
    return sum(answer.logprobs) / len(answer.logprobs) if answer.logprobs else 0.0
