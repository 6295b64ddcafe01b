"""Several answers, one best, none hidden."""

from __future__ import annotations

from preread.contexts.merge import mean_logprob, merge
from preread.types import Brought, Citation, Completion, Finish, Match, Served, Timing, Usage


def answer(
    text: str, match: Match | None = None, logprob: float = -1.0, *, error: str = ""
) -> Completion:
    citations = (Citation("a.md", 1, 1, text, match),) if match else ()
    return Completion(
        text=text,
        tokens=(1, 2),
        finish_reason=Finish.ERROR if error else Finish.STOP,
        usage=Usage(10, 10, 3, 2),
        timing=Timing(1.0, 5.0, 9.0, 4.0),
        logprobs=(logprob, logprob),
        citations=citations,
        error=error,
    )


def order(*answers: Completion) -> list[str]:
    merged = merge(answers, ())
    return [merged.text, *(other.text for other in merged.alternatives)]


def test_says_something_then_stands_somewhere_then_is_sure() -> None:
    silent = answer("not stated", None, -0.01)
    free = answer("made up", "none", -0.02)
    nearly = answer("nearly", "fuzzy", -3.0)
    unsure = answer("exact, unsure", "exact", -2.0)
    sure = answer("exact, sure", "exact", -0.5)
    failed = answer("", None, error="boom")
    expected = ["exact, sure", "exact, unsure", "nearly", "made up", "not stated", ""]
    assert order(failed, silent, free, nearly, unsure, sure) == expected


def test_equals_keep_the_order_of_the_route() -> None:
    assert order(answer("first", "exact"), answer("second", "exact")) == ["first", "second"]


def test_costs_add_up_and_the_unread_are_listed() -> None:
    merged = merge([answer("a", "exact"), answer("b", "exact")], ("late.md",))
    assert merged.usage == Usage(20, 20, 6, 4)
    assert merged.timing == Timing(1.0, 5.0, 9.0, 8.0)
    assert merged.unread == ("late.md",)


def test_unknown_probabilities_are_neutral() -> None:
    assert mean_logprob(answer("x", logprob=-2.0)) == -2.0
    assert mean_logprob(Completion("", (), Finish.STOP, Usage(), Timing())) == 0.0


def test_what_the_shards_took_from_tiers_is_added_up() -> None:
    disk, far = Served("disk", 2, 512, 100, 1.0), Served("redis", 1, 256, 50, 4.0)

    def timed(*load: Brought) -> Completion:
        timing = Timing(1.0, brought=next(iter(load), None))
        return Completion("a", (), Finish.STOP, Usage(), timing)

    one, two = timed(Brought(512, 1.0, 0.5, (disk,))), timed(Brought(256, 4.0, 3.0, (far,)))
    three = timed()
    assert merge([one, two, three], ()).timing.brought == Brought(768, 5.0, 3.5, (disk, far))
    assert merge([three, three], ()).timing.brought is None
