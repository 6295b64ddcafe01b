"""A Backend without a model: deterministic, instant, honest about what it would have computed.

Words are tokens; the answer comes from a function; caching is real (longest common prefix of what
it has read). Use it to test code that asks, stores and routes. Times are simulated: 1 ms a token.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, NamedTuple

import numpy as np

from preread.backend import (
    BackendInfo,
    Choose,
    Generate,
    LogLikelihood,
    Progress,
    Ragged,
    RequestBatch,
    ResultBatch,
)
from preread.errors import ContextTooLong, EngineError
from preread.testing.replies import Answer, Reply, check, example, find_line
from preread.testing.trie import Trie
from preread.types import Built, Finish, Prefix

SYSTEM, USER, ASSISTANT, END = range(4)  # the template's own tokens; no text can produce them
CHUNK = 64  # tokens
KV_BYTES = 64  # per token


class Call(NamedTuple):
    """kind: count, build, forget or submit; what: the prefixes, the prefix or the batch."""

    kind: str
    what: Any


@dataclass(slots=True)
class _Row:
    """A request as it runs."""

    index: int
    tokens: list[int]  # still to come
    pieces: list[str]
    usage: tuple[int, int, int, int]
    times: tuple[float, float, float]
    finish: Finish = Finish.STOP
    logprob: float = -0.1
    error: str = ""
    probs: list[float] = field(default_factory=list)
    mass: float = 0.0
    greedy: bool = False


class FakeBackend:
    """See preread.backend.Backend. answer: (prefix, question) -> text or Reply; an exception in it
    is that row's error. `calls` records every call; `restart()` forgets the memory and keeps the
    tier, as a new process would."""

    def __init__(
        self,
        answer: Answer = find_line,
        *,
        limit: int = 4096,
        effective_limit: int | None = None,
        fingerprint: str = "fa" * 32,
        stored: bool = True,
    ) -> None:
        self.calls: list[Call] = []
        self._answer = answer
        self._stored = stored
        self._words: dict[str, int] = {}
        self._memory = Trie()
        self._tier = Trie()
        self._lock = asyncio.Lock()
        self._closed = False
        self._info = BackendInfo(
            name="fake",
            model="fake",
            fingerprint=fingerprint,
            limit=limit,
            effective_limit=effective_limit or limit,
            effective_known=effective_limit is not None,
            kv_bytes_per_token=KV_BYTES,
            device="none",
            dtype="none",
        )

    @property
    def info(self) -> BackendInfo:
        return self._info

    def restart(self) -> None:
        """What a new process with the same tier knows."""
        self._memory = Trie()

    async def count(self, prefixes: Sequence[Prefix], questions: Sequence[str] = ()) -> list[int]:
        self.calls.append(Call("count", tuple(prefixes)))
        turns = [self._turn(q) for q in questions] or [[]] * len(prefixes)
        return [len(self._prefix(p)) + len(turn) for p, turn in zip(prefixes, turns, strict=True)]

    async def build(
        self, prefix: Prefix, *, lease_s: float = 0.0, progress: Progress | None = None
    ) -> Built:
        self.calls.append(Call("build", prefix))
        tokens, blend = self._prefix(prefix), prefix.blend is not None
        if len(tokens) > self._info.limit:
            raise ContextTooLong(
                f"{len(tokens):,} tokens, limit {self._info.limit:,}.", hint="Split the documents."
            )
        async with self._lock:
            held, reused = self._memory.known(tokens), self._reusable(tokens)
            for ready in [*range(reused, len(tokens), CHUNK), len(tokens)]:
                await asyncio.sleep(0)
                if progress:
                    progress(ready, len(tokens))
            self._memory.learn(tokens)
            if self._stored and not blend:
                self._tier.learn(tokens)
        return Built(
            tokens=len(tokens),
            reused_tokens=reused,
            loaded_tokens=reused - held,
            computed_tokens=len(tokens) - reused,
            kv_bytes=len(tokens) * KV_BYTES,
            load_ms=0.0,
            seconds=(len(tokens) - reused) / 1000,
            chunk_keys=tuple(self._chunk_keys(tokens)) if self._stored and not blend else (),
            stored=self._stored,
        )

    async def forget(self, prefixes: Sequence[Prefix]) -> None:
        self.calls.append(Call("forget", tuple(prefixes)))
        for prefix in prefixes:
            self._memory.forget(self._prefix(prefix))

    def submit(self, batch: RequestBatch) -> AsyncGenerator[ResultBatch, None]:
        self.calls.append(Call("submit", batch))
        if self._closed:
            raise EngineError("The backend is closed.", hint="Open another one.")
        prefix_of = check(batch)
        return self._run(batch, prefix_of)

    async def close(self) -> None:
        self._closed = True

    async def _run(
        self, batch: RequestBatch, prefix_of: list[int]
    ) -> AsyncGenerator[ResultBatch, None]:
        rows = [self._start(batch, i, prefix_of[i]) for i in range(len(batch))]
        while rows:
            await asyncio.sleep(0)
            if self._closed:
                for row in rows:
                    row.finish, row.tokens, row.pieces = Finish.CANCELLED, [], []
            yield _news(batch.work, rows)
            rows = [row for row in rows if row.tokens]

    def _start(self, batch: RequestBatch, i: int, which: int) -> _Row:
        prefix = batch.prefixes[which] if which >= 0 else Prefix("")
        if isinstance(batch.prompts, Ragged):
            prompt: list[int] = batch.prompts.row(i).tolist()
            text = self._text(prompt)
        else:
            text = batch.prompts[i]
            prompt = self._encode(text) if batch.raw else self._turn(text)
        head = self._prefix(prefix)
        row = _Row(i, [], [], (len(head), 0, 0, 0), (0.0, 0.0, 0.0))
        tokens = head + prompt
        room = self._info.limit - len(tokens)
        if room <= 0:
            row.finish = Finish.ERROR
            row.error = f"The prompt has {len(tokens):,} tokens, limit {self._info.limit:,}."
            return row
        try:
            reply = self._answer(prefix, text)
        except Exception as exc:  # a test's own function: the row fails, not the batch
            reply = Reply("", error=f"{type(exc).__name__}: {exc}")
        reply = reply if isinstance(reply, Reply) else Reply(reply)
        if reply.error:
            row.finish, row.error = Finish.ERROR, reply.error
            return row
        cached = min(self._reusable(tokens), len(tokens) - 1) if batch.reuse else 0
        self._work(row, batch.work, reply, room)
        computed = len(tokens) - cached
        row.usage = (len(head), cached, computed, len(row.tokens))
        row.times = (0.0, float(computed), float(computed + len(row.tokens)))
        if batch.reuse:
            self._memory.learn(tokens + row.tokens + [END] if batch.keep else head)
        return row

    def _work(
        self, row: _Row, work: Generate | Choose | LogLikelihood, reply: Reply, room: int
    ) -> None:
        row.logprob = reply.logprob
        if isinstance(work, Generate):
            self._write(row, work, reply.text, room)
        elif isinstance(work, Choose):
            named = [label in reply.text for label in work.labels]
            weights = [9.0 if n else 1.0 for n in named]
            row.probs = [w / sum(weights) for w in weights]
            row.mass = 0.9 if any(named) else 0.1
        else:
            wanted = work.continuations
            if isinstance(wanted, Ragged):
                text = self._text(wanted.row(row.index).tolist())
            else:
                text = wanted[row.index]
            row.greedy = reply.text.startswith(text.strip())
            row.logprob = reply.logprob if row.greedy else -5.0
            row.tokens = self._encode(text)
            row.pieces = [""] * len(row.tokens)

    def _write(self, row: _Row, work: Generate, text: str, room: int) -> None:
        if work.schema is not None:
            text = json.dumps(example(work.schema))
        if work.ignore_eos:
            text += " more" * work.max_tokens
        for stop in work.stop:
            text = text.partition(stop)[0]
        row.pieces = re.findall(r"\s*\S+|\s+$", text)
        longest = min(work.max_tokens, room)
        if len(row.pieces) > longest:
            row.pieces, row.finish = row.pieces[:longest], Finish.LENGTH
        row.tokens = [self._token(piece) for piece in row.pieces]

    def _prefix(self, prefix: Prefix) -> list[int]:
        tokens = [SYSTEM, *self._encode(prefix.system), END] if prefix.system else []
        if prefix.blend is not None:  # no exact reader finds it
            tokens[0] = self._token(f"\0{prefix.blend}")
        for message in prefix.history:
            role = USER if message.role == "user" else ASSISTANT
            tokens += [role, *self._encode(message.content), END]
        return tokens

    def _turn(self, question: str) -> list[int]:
        return [USER, *self._encode(question), END, ASSISTANT]

    def _encode(self, text: str) -> list[int]:
        return [self._token(piece) for piece in re.findall(r"\s*\S+|\s+$", text)]

    def _token(self, piece: str) -> int:
        return self._words.setdefault(piece, len(self._words) + END + 1)

    def _text(self, tokens: Iterable[int]) -> str:
        pieces = {token: piece for piece, token in self._words.items()}
        return "".join(pieces.get(token, f" <{token}>") for token in tokens)

    def _reusable(self, tokens: list[int]) -> int:
        return max(self._memory.known(tokens), self._tier.known(tokens))

    def _chunk_keys(self, tokens: list[int]) -> Iterator[str]:
        pieces = {token: piece for piece, token in self._words.items()}
        chain = sha256(self._info.fingerprint.encode())
        for i, token in enumerate(tokens, 1):
            chain.update(pieces.get(token, str(token)).encode() + b"\0")
            if i % CHUNK == 0 or i == len(tokens):
                yield chain.hexdigest()


def _news(work: Generate | Choose | LogLikelihood, rows: list[_Row]) -> ResultBatch:
    """One step: a token for every generating row; the other kinds end at once."""
    taken = []
    for row in rows:
        n = 1 if isinstance(work, Generate) else len(row.tokens)
        taken.append((row.tokens[:n], "".join(row.pieces[:n])))
        row.tokens, row.pieces = row.tokens[n:], row.pieces[n:]
    values = [token for tokens, _ in taken for token in tokens]
    logprobs = [r.logprob for r, (tokens, _) in zip(rows, taken, strict=True) for _ in tokens]
    asked = isinstance(work, LogLikelihood) or (isinstance(work, Generate) and work.logprobs)
    choosing = isinstance(work, Choose)
    labels = len(work.labels) if isinstance(work, Choose) else 0
    return ResultBatch(
        rows=np.array([row.index for row in rows], np.int32),
        texts=[text for _, text in taken],
        tokens=Ragged(
            np.array(values, np.int32), np.cumsum([0, *(len(t) for t, _ in taken)], dtype=np.int64)
        ),
        finish=[None if row.tokens else row.finish for row in rows],
        usage=np.array([row.usage for row in rows], np.int32).reshape(-1, 4),
        times=np.array([row.times for row in rows], np.float32).reshape(-1, 3),
        logprobs=np.array(logprobs, np.float32) if asked else None,
        label_probs=np.array([r.probs or [0.0] * labels for r in rows], np.float32)
        if choosing
        else None,
        mass=np.array([row.mass for row in rows], np.float32) if choosing else None,
        is_greedy=[row.greedy for row in rows] if isinstance(work, LogLikelihood) else None,
        errors={row.index: row.error for row in rows if row.error},
    )
