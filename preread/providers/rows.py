"""Between columns and requests: what each row of a batch asks, and what the answers say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from preread.backend import Choose, Generate, LogLikelihood, Ragged, RequestBatch, ResultBatch
from preread.errors import RequestError
from preread.providers.dialect import Ask, Flight, Said
from preread.types import Finish, Message, Prefix

if TYPE_CHECKING:
    from preread.types import Float32Array

LARGEST_ID = 2**31 - 1
ROUNDING = 0.01  # that a log-probability may be above 0
UNNAMED = -1  # the id of a token that the server does not name
SEE = "See preread.backend.RequestBatch."


def check(batch: RequestBatch) -> list[int]:
    """The prefix of every row (-1: none). Raises RequestError for a malformed batch."""
    n, prefixes, work = len(batch), len(batch.prefixes), batch.work
    given = batch.prefix_of
    prefix_of = [0 if prefixes else -1] * n if given is None else np.asarray(given).tolist()
    wrong = ""
    if len(prefix_of) != n:
        wrong = f"prefix_of has {len(prefix_of)} entries for {n} prompts"
    elif bad := [i for i, p in enumerate(prefix_of) if not -1 <= p < prefixes]:
        wrong = f"row {bad[0]}: prefix_of {prefix_of[bad[0]]} with {prefixes} prefixes"
    elif isinstance(batch.prompts, Ragged) and not batch.raw:
        wrong = "prompts: token ids need raw"
    elif batch.raw and any(p >= 0 for p in prefix_of):
        wrong = "raw prompts cannot follow a prefix here: only the server knows its chat template"
    elif isinstance(work, Generate) and work.max_tokens < 1:
        wrong = f"max_tokens is {work.max_tokens}"
    elif isinstance(work, Choose) and not all(work.labels or [""]):
        wrong = "labels: none, or an empty one"
    elif isinstance(work, Choose) and len(set(work.labels)) < len(work.labels):
        wrong = "labels: two are the same"
    elif isinstance(work, LogLikelihood) and len(work.continuations) != n:
        wrong = f"continuations: {len(work.continuations)} for {n} prompts"
    if wrong:
        raise RequestError(f"Malformed batch: {wrong}.", hint=SEE)
    return prefix_of


def lead(prefix: Prefix) -> tuple[Message, ...]:
    """A prefix as the messages that every request begins with."""
    system = (Message("system", prefix.system),) if prefix.system else ()
    return system + prefix.history


def group_of(messages: Sequence[Message]) -> str:
    """What requests with the same beginning have in common; "" for no beginning."""
    if not messages:
        return ""
    digest = sha256()
    for message in messages:
        digest.update(f"{message.role}\0{len(message.content)}\0{message.content}\0".encode())
    return digest.hexdigest()[:32]


class Asks:
    """The rows of a batch as they are asked, made one by one."""

    def __init__(self, batch: RequestBatch) -> None:
        """Raises RequestError."""
        self._batch = batch
        self.prefix_of = check(batch)
        self._leads = [lead(prefix) for prefix in batch.prefixes]
        self.groups = [group_of(messages) for messages in self._leads]

    def of(self, row: int) -> Ask:
        """What a row asks."""
        batch, which = self._batch, self.prefix_of[row]
        flight = Flight(batch.spending, row)
        prompts, work = batch.prompts, batch.work
        text = prompts.row(row).tolist() if isinstance(prompts, Ragged) else prompts[row]
        wanted: str | list[int] = ""
        if isinstance(work, LogLikelihood):
            rows = work.continuations
            wanted = rows.row(row).tolist() if isinstance(rows, Ragged) else rows[row]
        if batch.raw:
            return Ask(
                work, raw=text, continuation=wanted, reuse=batch.reuse, keep=batch.keep,
                flight=flight,
            )  # fmt: skip
        messages = self._leads[which] if which >= 0 else ()
        return Ask(
            work, (*messages, Message("user", str(text))), len(messages),
            self.groups[which] if which >= 0 else "", None, wanted, batch.reuse, batch.keep,
            flight,
        )  # fmt: skip


class Ended(NamedTuple):
    """A row and how it ended. context: its prefix in tokens; ms: from submission to the end."""

    row: int
    said: Said
    finish: Finish
    context: int
    ms: float


@dataclass(frozen=True, slots=True)
class Columns:
    """Ended rows as a result batch."""

    batch: RequestBatch

    def of(self, ended: Sequence[Ended]) -> ResultBatch:
        """Their columns. A token that the server does not name has the id UNNAMED."""
        work = self.batch.work
        scored = isinstance(work, LogLikelihood)
        asked = scored or (isinstance(work, Generate) and work.logprobs)
        ids = [self._ids(end) for end in ended]
        said = [end.said for end in ended]
        counts = [(e.context, *e.said.counts[:2], self._output(e)) for e in ended]
        logs = [pad(s.logprobs or [], len(i)) for s, i in zip(said, ids, strict=True)]
        written = [s.counts.written for s in said]
        return ResultBatch(
            rows=np.array([end.row for end in ended], np.int32),
            texts=[s.text if isinstance(work, Generate) else "" for s in said],
            tokens=Ragged(
                np.array([t for row in ids for t in row], np.int32),
                np.cumsum([0, *map(len, ids)], dtype=np.int64),
            ),
            finish=[end.finish for end in ended],
            usage=np.array(counts, np.int32).reshape(-1, 4),
            times=np.array([(0.0, e.ms, e.ms) for e in ended], np.float32).reshape(-1, 3),
            logprobs=np.array([x for row in logs for x in row], np.float32) if asked else None,
            label_probs=self._labels(said) if isinstance(work, Choose) else None,
            mass=self._mass(said) if isinstance(work, Choose) else None,
            is_greedy=[s.greedy for s in said] if scored else None,
            errors={e.row: e.said.error for e in ended if e.finish is Finish.ERROR},
            written=np.array(written, np.int32) if any(written) else None,
        )

    def _ids(self, end: Ended) -> list[int]:
        if end.finish is Finish.ERROR or isinstance(self.batch.work, Choose):
            return []
        if end.said.ids is not None:
            return end.said.ids
        count = len(end.said.logprobs or ()) or end.said.counts.output
        return [UNNAMED] * count

    def _output(self, end: Ended) -> int:
        """Nothing is written for a choice or a score, whatever the server had to produce for it."""
        return end.said.counts.output if isinstance(self.batch.work, Generate) else 0

    def _labels(self, said: Sequence[Said]) -> Float32Array:
        work = self.batch.work
        width = len(work.labels) if isinstance(work, Choose) else 0
        logs = [s.label_logs or [-math.inf] * width for s in said]
        whole = np.exp(np.array(logs, np.float64).reshape(-1, width))
        sums = whole.sum(1, keepdims=True)
        shares = np.divide(whole, sums, out=np.zeros_like(whole), where=sums > 0)
        out: Float32Array = shares.astype(np.float32)
        return out

    def _mass(self, said: Sequence[Said]) -> Float32Array:
        sums = [math.fsum(math.exp(x) for x in s.label_logs or ()) for s in said]
        return np.array(sums, np.float32)


def check_said(said: Said) -> Said:
    """The same, its error set where what a server sent is not what a row can hold: one such answer
    must not take the others of its batch with it."""
    if not isinstance(said.text, str):
        said.error = f"The answer is no text ({type(said.text).__name__})."
    elif any(not isinstance(t, int) or not UNNAMED <= t <= LARGEST_ID for t in said.ids or ()):
        said.error = "The answer's token ids are none."
    elif any(math.isnan(log) or log > ROUNDING for log in said.label_logs or ()):
        said.error = "The server's log-probabilities are none."
    if said.error:
        said.text, said.ids = "", None
    return said


def pad(values: list[float], n: int) -> list[float]:
    """One log-probability per token; a server that gave fewer said nothing of the others."""
    return (values + [math.nan] * n)[:n]
