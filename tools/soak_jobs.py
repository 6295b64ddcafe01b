"""What the soak asks of an engine, and what must come back: random jobs over texts that share
beginnings, each row's result, the same row alone, and whether the two are equal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from preread.backend import Ragged
from preread.kernels.sample import draw, uniform
from preread.models.decoder import PackedDecoder
from preread.models.interface import Attend, Decoder
from preread.testing.models import forward
from preread.tokens.batch import (
    FINISHES,
    ChooseSpec,
    GenerateSpec,
    LikelihoodSpec,
    News,
    Spec,
    TokenBatch,
)
from preread.tokens.labels import label_trie
from preread.tokens.share import share
from preread.types import Finish, Sampling

if TYPE_CHECKING:
    from numpy.typing import NDArray

VOCAB = 320
LETTERS = 4  # prompts are written with the first ids, so that beginnings coincide
POISON = VOCAB - 1
ENDS = (*range(0, VOCAB, 9), POISON)
LONGEST = 300  # tokens of a shared beginning
OWN = 50  # and of a row's own part
PRIVATE = 64  # own tokens from which a row's prompt lies in the arena
DRAWS = 256  # ways in which rounding might have moved the logits
LABELS = ([[1, 2], [3], [1, 1, 0]], [[7], [8]], [[5, 6, 7], [5, 6, 8], [9]])


class Faulty:
    """A decoder that runs out of memory with more than `most` tokens (0: never) and, if poisoned,
    fails whenever it reads one token."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self.most, self.poisoned = 0, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decoder, name)

    def hidden(self, tokens: torch.Tensor, positions: torch.Tensor, attend: Attend) -> torch.Tensor:
        if 0 < self.most < len(tokens):
            raise torch.OutOfMemoryError("injected")
        recorded = tokens.is_cuda and torch.cuda.is_current_stream_capturing()
        if self.poisoned and not recorded and bool((tokens == POISON).any()):
            raise RuntimeError("poisoned")
        return self._decoder.hidden(tokens, positions, attend)


@dataclass(slots=True)
class Row:
    """What an engine said of one row. finish None: it has not ended, or its reader left it."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: Finish | None = None
    scores: list[float] = field(default_factory=list)
    agree: bool = False
    usage: tuple[int, ...] = ()
    error: str = ""

    @property
    def whole(self) -> bool:
        """Whether it came to its own end."""
        return self.finish in (Finish.STOP, Finish.LENGTH)

    def hear(self, news: News, i: int) -> None:
        """Entry `i` of some news is about this row."""
        assert self.finish is None, "news of a row that has ended"
        lo, hi = news.tokens.offsets[i : i + 2]
        self.tokens += news.tokens.values[lo:hi].tolist()
        self.logprobs += news.logprobs[lo:hi].tolist()
        self.finish = FINISHES[news.finish[i]]
        if self.finish is not None:
            self.scores, self.agree = news.scores[i].tolist(), bool(news.agree[i])
            self.usage = tuple(news.usage[i].tolist())
            self.error = news.errors.get(int(news.rows[i]), "")


def ragged(rows: Sequence[Sequence[int]]) -> Ragged:
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    return Ragged(np.array([t for row in rows for t in row], np.int32), offsets)


def text(make: np.random.Generator, tokens: int) -> list[int]:
    made: list[int] = make.integers(0, LETTERS, tokens).tolist()
    return made


def job(make: np.random.Generator, books: Sequence[list[int]], *, poisoned: bool) -> TokenBatch:
    """One to five rows of one kind. Their beginnings are named, or for `share` to find, or nobody's
    business (reuse False). A few rows are not well: an unknown token or, if poisoned, that one."""
    n, way = int(make.integers(1, 6)), make.choice(["named", "found", "alone"], p=[0.5, 0.3, 0.2])
    heads = [_cut(make, books) for _ in range(int(make.integers(1, 4)))]
    which = make.integers(-1, len(heads), n)
    own = [text(make, int(k)) for k in make.integers(2, OWN, n)]
    spec = _spec(make, own)
    for row in own:
        if (chance := make.random()) < (0.03 if poisoned else 0.0):
            row[int(make.integers(len(row)))] = POISON
        elif chance > 0.995:
            row[0] = VOCAB
    if way != "named":
        own = [(heads[i] if i >= 0 else []) + row for i, row in zip(which, own, strict=True)]
        heads, which = [], np.full(n, -1)
    lengths = np.array([*map(len, heads), 0])[which].astype(np.int32)
    batch = TokenBatch(
        spec=spec,
        own=ragged(own),
        groups=[np.array(head, np.int32) for head in heads],
        group_of=which.astype(np.int32),
        base=lengths,
        context=lengths,
        seeds=make.integers(0, 2**63, n).astype(np.uint64),
        keep=isinstance(spec, GenerateSpec) and bool(make.integers(2)),
        reuse=way != "alone",
    )
    return share(batch, PRIVATE) if way != "named" or make.random() < 0.5 else batch


def _cut(make: np.random.Generator, books: Sequence[list[int]]) -> list[int]:
    """The beginning of a book, at times all of it."""
    book = books[int(make.integers(len(books)))]
    return book[: int(make.integers(1, LONGEST))]


def _spec(make: np.random.Generator, own: Sequence[list[int]]) -> Spec:
    kind = make.choice(["greedy", "sampled", "choose", "likelihood"], p=[0.4, 0.3, 0.15, 0.15])
    if kind == "choose":
        return ChooseSpec(label_trie(LABELS[int(make.integers(len(LABELS)))]))
    if kind == "likelihood":
        return LikelihoodSpec(np.array([make.integers(1, len(row)) for row in own], np.int32))
    heat, nucleus = float(make.uniform(0.3, 1.5)), float(make.uniform(0.5, 1.0))
    return GenerateSpec(
        int(make.integers(1, 25)),
        Sampling(heat, nucleus, int(make.integers(0, 50))) if kind == "sampled" else Sampling(),
        eos=ENDS if make.random() < 0.7 else (),
        logprobs=bool(make.integers(2)),
        stream=bool(make.integers(2)),
    )


def prompt(batch: TokenBatch, row: int) -> list[int]:
    tokens: list[int] = np.concatenate((batch.head(row), batch.own.row(row))).tolist()
    return tokens


def alone(batch: TokenBatch, row: int) -> TokenBatch:
    """One row as a batch that shares nothing with anybody."""
    spec, nothing = batch.spec, np.zeros(1, np.int32)
    if isinstance(spec, LikelihoodSpec):
        spec = LikelihoodSpec(spec.counts[row : row + 1])
    return replace(
        batch, spec=spec, own=ragged([prompt(batch, row)]), groups=[], group_of=nothing - 1,
        base=nothing, context=nothing, seeds=batch.seeds[row : row + 1], keep=False, reuse=False,
    )  # fmt: skip


@dataclass(slots=True)
class Judge:
    """Compares rows. wide: the same weights in a wider type, which recomputes everything where two
    rows differ; slack: how far rounding may move logits and log-probabilities. near: differences
    found that lie within it, where either token is right."""

    wide: PackedDecoder
    slack: float
    near: int = 0

    def wrong(self, batch: TokenBatch, row: int, got: Row, want: Row) -> str:
        """What is wrong with a row, "" if nothing. want: of the same row alone."""
        same = common(got.tokens, want.tokens)
        asked = len(prompt(batch, row))
        ended = got.whole or got.finish is Finish.ERROR
        unseen = self._unseen(got, want)
        if same < len(got.tokens) or (ended and (same < len(want.tokens))):
            if unseen:
                return ""
            if self._either(batch, row, got, want, same):
                self.near += 1
                return ""
            return f"wrote {got.tokens} {got.finish}, alone {want.tokens} {want.finish}"
        if ended and got.finish is not want.finish and not unseen:
            return f"ended as {got.finish} ({got.error}), alone as {want.finish} ({want.error})"
        scores = got.scores[: len(want.scores)]  # as wide as the batch's longest
        pairs = ((got.logprobs, want.logprobs[:same]), (scores, want.scores))
        for mine, its in pairs if got.whole else pairs[:1]:
            if len(mine) != len(its) or not np.allclose(mine, its, self.slack, self.slack):
                return f"log-probabilities {mine}, alone {its}"
        if got.whole and got.agree != want.agree:
            return f"agrees {got.agree}, alone {want.agree}"
        paid = (int(batch.context[row]), asked, len(got.tokens))
        if got.whole and (got.usage[0], sum(got.usage[1:3]), got.usage[3]) != paid:
            return f"usage {got.usage} of {asked} + {len(got.tokens)} tokens"
        return ""

    def _unseen(self, a: Row, b: Row) -> bool:
        """Whether one failed at the token at which the model raises and the other did not: a
        recorded step reads that token and goes on."""
        short = min(a, b, key=lambda r: (len(r.tokens), r.finish is not Finish.ERROR))
        long = b if short is a else a
        return (
            self.wide.device.type == "cuda"
            and short.finish is Finish.ERROR
            and POISON in long.tokens[: len(short.tokens) + 1]
            and long.tokens[: len(short.tokens)] == short.tokens
        )

    def _either(self, batch: TokenBatch, row: int, a: Row, b: Row, same: int) -> bool:
        """Whether rounding decides the token in which the two differ."""
        if not isinstance(batch.spec, GenerateSpec):
            return False
        able = self._able(batch.spec, batch.seeds[row : row + 1], prompt(batch, row), a, same)

        def chose(r: Row) -> set[int]:
            here = {r.tokens[same]} if same < len(r.tokens) else set(batch.spec.eos)  # type: ignore[union-attr]
            return here & able

        return len(able) > 1 and bool(chose(a)) and bool(chose(b))

    @torch.inference_mode()
    def _able(
        self, spec: GenerateSpec, seed: NDArray[np.uint64], asked: list[int], row: Row, at: int
    ) -> set[int]:
        """Tokens that may come after the first `at`, whichever way the logits were rounded."""
        logits = forward(self.wide, [asked + row.tokens[:at]])[0][-1].cpu()
        noise = torch.rand((DRAWS, len(logits)), generator=torch.Generator().manual_seed(0))
        number, s = float(uniform(seed, np.array([at]))[0]), spec.sampling
        columns = (torch.full((DRAWS,), x) for x in (s.temperature, s.top_k, s.top_p, number))
        return set(draw(logits + (2 * noise - 1) * self.slack, *columns).tolist())


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many first tokens are equal."""
    least = min(len(a), len(b))
    return next((i for i in range(least) if a[i] != b[i]), least)
