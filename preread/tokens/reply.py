"""News in tokens -> results in text. Each row's text grows by complete characters only; a stop
string is found across tokens and never shown, not even in part."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from preread.backend import Choose, Generate, LogLikelihood, Ragged, RequestBatch, ResultBatch
from preread.errors import Cancelled
from preread.models.detokenizer import Detokenizer
from preread.models.tokenizer import Tokenizer
from preread.tokens.batch import FINISHES, GOES_ON, STOP, LikelihoodSpec, News
from preread.tokens.ragged import lengths, picked
from preread.tokens.requests import Part
from preread.tokens.texts import Texts
from preread.types import Brought, Finish

if TYPE_CHECKING:
    from preread.types import Float32Array, Int32Array, Int64Array


Said = News | Exception | dict[int, str]  # of rows; dict: row -> why it failed


class StopText:
    """Text of one row, cut before the first stop string. What might be the beginning of one is held
    back until it is not."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self._stream = Detokenizer(tokenizer)
        self._stops = stops
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that is certain now."""
        return self._cut(self._stream.push([token]))

    def finish(self) -> str:
        """What was held back when the row ended by itself."""
        text = self._cut(self._stream.finish())
        rest, self._held = self._held, ""
        return text if self.stopped else text + rest

    def _cut(self, new: str) -> str:
        text = self._held + new
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


class Replies:
    """Turns the news of one request batch into result batches. `stopped` collects rows that met a
    stop string, for the caller to end in the engine."""

    def __init__(
        self, batch: RequestBatch, tokenizer: Tokenizer, texts: Texts, started: float
    ) -> None:
        """texts: of the same tokenizer; started: time.perf_counter() of the submission."""
        n = len(batch)
        self._work = batch.work
        self._tokenizer = tokenizer
        self._whole = texts
        self._started = started
        self._texts: dict[int, StopText] = {}
        self._left = n
        self._done = np.zeros(n, bool)
        self._written = np.zeros(n, np.int32)
        self._ttft = np.zeros(n, np.float32)
        self._load = np.zeros(n, np.float32)
        self._brought: dict[int, Brought] = {}
        self.stopped: list[int] = []

    @property
    def finished(self) -> bool:
        return not self._left

    @property
    def ended(self) -> int:
        """How many rows have."""
        return len(self._done) - self._left

    @property
    def running(self) -> Int64Array:
        return np.flatnonzero(~self._done)

    def loaded(self, rows: Int64Array, brought: Brought) -> None:
        """These rows' prefix was not in memory; what came from the tiers."""
        self._load[rows] = brought.ms
        self._brought.update(dict.fromkeys(rows.tolist(), brought))

    def failed(self, errors: dict[int, str]) -> ResultBatch:
        """Rows that end with an error before the engine saw them."""
        rows = np.array(sorted(errors), np.int32)
        return self._ended(rows, Finish.ERROR, errors)

    def cancelled(self) -> ResultBatch:
        """All rows that still run."""
        return self._ended(self.running.astype(np.int32), Finish.CANCELLED, {})

    def take(self, part: Part | None, news: Said) -> ResultBatch | None:
        """News of a part (None: of the whole batch), or why there will be none: results for the
        reader, if any."""
        if isinstance(news, dict):
            return self.failed(news)
        if isinstance(news, Cancelled):
            return self.cancelled()
        if isinstance(news, News):
            assert part is not None
            return self.results(news, part)
        rows = self.running if part is None else part.rows[~self._done[part.rows]]
        return self.failed(dict.fromkeys(rows.tolist(), str(news)))

    def results(self, news: News, part: Part) -> ResultBatch | None:
        """News of one part of the batch. None when nothing of it is new to the reader."""
        picked = np.flatnonzero(~self._done[part.rows[news.rows]])
        if not len(picked):
            return None
        news = news.only(picked)
        rows = part.rows[news.rows]
        now = (time.perf_counter() - self._started) * 1e3
        first = self._ttft[rows] == 0
        self._ttft[rows[first]] = np.maximum(now - news.age[first] * 1e3, 1e-3)
        finish = [FINISHES[code] for code in news.finish.tolist()]
        texts = self._read(rows, news, finish)
        self._written[rows] += lengths(news.tokens).astype(np.int32)
        self._end(rows[[f is not None for f in finish]])
        usage = news.usage
        usage[:, 3] = self._written[rows]
        scored = isinstance(self._work, LogLikelihood)
        asked = scored or (isinstance(self._work, Generate) and self._work.logprobs)
        tokens, logprobs = _scored(news, part) if scored else (news.tokens, news.logprobs)
        probs, mass = self._labels(news.scores)
        return ResultBatch(
            rows=rows.astype(np.int32),
            texts=texts,
            tokens=tokens,
            finish=finish,
            usage=usage,
            times=self._times(rows, now),
            logprobs=logprobs if asked else None,
            label_probs=probs,
            mass=mass,
            is_greedy=news.agree.tolist() if scored else None,
            errors={int(part.rows[row]): text for row, text in news.errors.items()},
            brought=self._brought_of(rows[[f is not None for f in finish]]),
        )

    def _brought_of(self, rows: Int64Array) -> dict[int, Brought]:
        if not self._brought:
            return {}
        return {row: self._brought[row] for row in rows.tolist() if row in self._brought}

    def _end(self, rows: Int64Array) -> None:
        self._done[rows] = True
        self._left -= len(rows)

    def _read(self, rows: Int64Array, news: News, finish: list[Finish | None]) -> list[str]:
        """New text per row. Where a row meets a stop string, `finish` says so from here on."""
        if not isinstance(self._work, Generate):
            return [""] * len(rows)
        whole = (news.finish != GOES_ON) & (self._written[rows] == 0) & (not self._work.stop)
        texts, at_once = [""] * len(rows), np.flatnonzero(whole)
        done = self._whole(picked(news.tokens, at_once))
        for i, text in zip(at_once.tolist(), done, strict=True):
            texts[i] = text
        for i in np.flatnonzero(~whole).tolist():
            row = int(rows[i])
            if (stream := self._texts.get(row)) is None:
                stream = self._texts[row] = StopText(self._tokenizer, self._work.stop)
            for token in news.tokens.row(i).tolist():
                texts[i] += stream.push(token)
            if finish[i] is not None and not stream.stopped:
                texts[i] += stream.finish()
            if stream.stopped:
                if finish[i] is None:
                    self.stopped.append(row)
                finish[i] = Finish.STOP
            if finish[i] is not None:
                del self._texts[row]
        return texts

    def _labels(self, scores: Float32Array) -> tuple[Float32Array | None, Float32Array | None]:
        """Probabilities over the labels, and what they hold together. Rows that failed: zeros."""
        if not isinstance(self._work, Choose):
            return None, None
        if not scores.shape[1]:
            scores = np.full((len(scores), len(self._work.labels)), -np.inf, np.float32)
        wide = scores.astype(np.float64)
        top = np.nan_to_num(wide.max(1), neginf=0.0)  # long labels: exp would underflow
        values = np.exp(wide - top[:, None])
        total = values.sum(1)
        probs = values / np.where(total > 0, total, 1.0)[:, None]
        return probs.astype(np.float32), (total * np.exp(top)).astype(np.float32)

    def _times(self, rows: Int64Array, now: float) -> Float32Array:
        columns = (self._load[rows], self._ttft[rows], np.full(len(rows), now, np.float32))
        return np.stack(columns, axis=1)

    def _ended(self, rows: Int32Array, finish: Finish, errors: dict[int, str]) -> ResultBatch:
        self._end(rows.astype(np.int64))
        n = len(rows)
        usage = np.zeros((n, 4), np.int32)
        usage[:, 3] = self._written[rows]
        asked = isinstance(self._work, LogLikelihood) or (
            isinstance(self._work, Generate) and self._work.logprobs
        )
        probs, mass = self._labels(np.zeros((n, 0), np.float32))
        return ResultBatch(
            rows=rows,
            texts=[""] * n,
            tokens=Ragged(np.empty(0, np.int32), np.zeros(n + 1, np.int64)),
            finish=[finish] * n,
            usage=usage,
            times=self._times(rows.astype(np.int64), (time.perf_counter() - self._started) * 1e3),
            logprobs=np.empty(0, np.float32) if asked else None,
            label_probs=probs,
            mass=mass,
            is_greedy=[False] * n if isinstance(self._work, LogLikelihood) else None,
            errors=errors,
        )


def _scored(news: News, part: Part) -> tuple[Ragged, Float32Array]:
    """Continuations and their log-probabilities; nothing of rows that did not end well."""
    spec, own = part.batch.spec, part.batch.own
    assert isinstance(spec, LikelihoodSpec)
    counts = np.where(news.finish == STOP, spec.counts[news.rows], 0).astype(np.int64)
    tokens = picked(own, news.rows.astype(np.int64), lengths(own)[news.rows] - counts)
    return tokens, news.scores[np.arange(news.scores.shape[1]) < counts[:, None]]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if stop.startswith(text[-n:])), 0)
