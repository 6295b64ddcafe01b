"""Choices and likelihoods over OpenAI's dialect: nothing is decoded but one token nobody wants.

vLLM gives the log-probability of any token by its id (`logprob_token_ids`): labels are exact, also
those of several tokens (a trie, one request per inner node). Others name the 20 most likely first
tokens, and a label is told by how it begins.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np

from preread.backend import Choose, LogLikelihood
from preread.errors import ProviderError
from preread.providers import own
from preread.providers.dialect import Ask, Said, Wire
from preread.providers.labels import by_first_token
from preread.providers.usage import Counts
from preread.tokens.labels import LabelTrie, label_trie
from preread.types import Finish

if TYPE_CHECKING:
    from preread.providers.openai import OpenAI
    from preread.types import Float32Array

MOST_TOPS = 20
TOPS_OF = {"llama-server": 200}  # it names as many as one likes
BY_ID = 128  # token ids that vLLM scores in one request


class Scoring:
    """Of one dialect; remembers the labels' tokens."""

    def __init__(self, api: OpenAI) -> None:
        self._api = api
        self._tries: dict[tuple[str, ...], LabelTrie] = {}

    async def answer(self, ask: Ask, wire: Wire) -> Said:
        """A Choose or LogLikelihood row."""
        if self._api.server == "preread":
            return await own.score(self._api, ask, wire)
        if isinstance(ask.work, LogLikelihood):
            return await self._likelihood(ask, wire)
        assert isinstance(ask.work, Choose)
        if self._api.server == "vllm":
            return await self._by_id(ask, ask.work.labels, wire)
        return await self._by_text(ask, ask.work.labels, wire)

    async def _by_text(self, ask: Ask, labels: tuple[str, ...], wire: Wire) -> Said:
        most = TOPS_OF.get(self._api.server, MOST_TOPS)
        body = await wire.ask(self._api.call(ask, self._one(ask, most)), ask, 1)
        choice, counts = body["choices"][0], self._api.counts(body)
        tops = first_tops(choice)
        if tops is None:
            return Said(error="The server gives no log-probabilities: it cannot choose.")
        found = by_first_token(labels, tops)
        if isinstance(found, str):
            return Said(error=found, counts=counts)
        return Said(label_logs=found, counts=counts)

    async def _by_id(self, ask: Ask, labels: tuple[str, ...], wire: Wire) -> Said:
        trie = self._tries.get(labels) or await self._trie(labels, wire)
        if (trie.edge_node == 0).all():  # one forward answers
            logs, counts = await self._edges(ask, trie, 0, wire)
            return Said(label_logs=trie.score(logs)[0].tolist(), counts=counts)
        head = await self._prompt_ids(ask, wire)
        rows = [Ask(ask.work, raw=head + path, reuse=ask.reuse, flight=ask.flight)
                for path in self._paths(trie)]  # fmt: skip
        # The first makes the prompt known to the server, the others read their last tokens.
        said = [await self._edges(rows[0], trie, 0, wire)]
        said += await asyncio.gather(
            *(self._edges(row, trie, n, wire) for n, row in enumerate(rows[1:], 1))
        )
        logs = np.max([logs for logs, _ in said], axis=0)
        counts = said[0][1]
        extra = sum(c.computed for _, c in said[1:])
        counts = counts._replace(computed=counts.computed + extra)
        return Said(label_logs=trie.score(logs)[0].tolist(), counts=counts)

    async def _edges(
        self, ask: Ask, trie: LabelTrie, node: int, wire: Wire
    ) -> tuple[Float32Array, Counts]:
        """[1, edges] log-probabilities of a node's edges, -inf elsewhere."""
        wanted = np.flatnonzero(trie.edge_node == node)
        ids = trie.edge_token[wanted].tolist()
        out, counts = np.full((1, len(trie.edge_token)), -np.inf, np.float32), Counts()
        for start in range(0, len(ids), BY_ID):
            part = ids[start : start + BY_ID]
            options = self._one(ask, min(len(part), MOST_TOPS))
            options |= {"logprob_token_ids": part, "return_tokens_as_token_ids": True}
            body = await wire.ask(self._api.call(ask, options), ask, 1)
            tops = dict(first_tops(body["choices"][0]) or ())
            missing = [token for token in part if f"token_id:{token}" not in tops]
            if missing:
                raise ProviderError(
                    f"The server did not score the tokens {missing[:5]} of the labels.",
                    hint="It needs a vLLM that knows logprob_token_ids.",
                )
            logs = [tops[f"token_id:{token}"] for token in part]
            out[0, wanted[start : start + BY_ID]] = logs
            counts = self._api.counts(body) if not start else counts
        return out, counts

    async def _likelihood(self, ask: Ask, wire: Wire) -> Said:
        """Echo the prompt with its log-probabilities and keep those of the continuation."""
        wanted = ask.continuation
        if isinstance(wanted, str) and not wanted:
            return Said(error="The continuation is empty.")
        if self._api.server != "vllm" and isinstance(ask.raw, str) and isinstance(wanted, str):
            return await self._echo(ask, ask.raw + wanted, len(ask.raw), wire)
        head = await self._prompt_ids(ask, wire)
        ids = wanted if isinstance(wanted, list) else await self._ids(wanted, wire)
        return await self._echo(ask, head + ids, len(head), wire)

    async def _echo(self, ask: Ask, whole: str | list[int], cut: int, wire: Wire) -> Said:
        """cut: where the continuation begins, in characters or tokens."""
        row = Ask(ask.work, raw=whole, reuse=ask.reuse, flight=ask.flight)
        options = {"max_tokens": 1, "temperature": 0.0, "echo": True, "logprobs": 1}
        body = await wire.ask(self._api.call(row, options), row, 1)
        given = body["choices"][0].get("logprobs") or {}
        logs, tops = given.get("token_logprobs"), given.get("top_logprobs")
        if not logs or not tops:
            return Said(error="The server does not echo log-probabilities of the prompt.")
        if isinstance(whole, list):
            first, last = cut, len(whole)
        else:
            offsets = given["text_offset"]
            if cut not in offsets:
                return Said(error="The prompt's last token and the continuation's first are one.")
            first, last = offsets.index(cut), sum(at < len(whole) for at in offsets)
        kept = [float(log) for log in logs[first:last]]
        greedy = all(
            log >= max(top.values()) - 1e-6 for log, top in zip(kept, tops[first:last], strict=True)
        )
        ids = whole[cut:] if isinstance(whole, list) else None
        return Said("", Finish.STOP, self._api.counts(body), ids, kept, greedy=greedy)

    async def _trie(self, labels: tuple[str, ...], wire: Wire) -> LabelTrie:
        ids = [await self._ids(label, wire) for label in labels]
        trie = self._tries[labels] = label_trie(ids)
        return trie

    @staticmethod
    def _paths(trie: LabelTrie) -> list[list[int]]:
        """The tokens from the prompt's end to each node, the root first."""
        seen = [np.flatnonzero(row) for row in trie.mask]
        return [[], *(trie.tokens[at].tolist() for at in seen)]

    async def _prompt_ids(self, ask: Ask, wire: Wire) -> list[int]:
        if isinstance(ask.raw, list):
            return ask.raw
        if ask.raw is None:
            ids = await self._api.tokens(ask.messages, wire)
        else:
            ids = await self._api.tokenize(ask.raw, wire)
        return _given(ids)

    async def _ids(self, text: str, wire: Wire) -> list[int]:
        return _given(await self._api.tokenize(text, wire))

    def _one(self, ask: Ask, tops: int) -> dict[str, Any]:
        """Options of a request whose first token's log-probabilities are wanted."""
        limit = "max_completion_tokens" if self._api.server == "openai" else "max_tokens"
        if ask.raw is not None:
            return {"max_tokens": 1, "temperature": 0.0, "logprobs": tops}
        wanted = {"logprobs": True, "top_logprobs": tops}
        return {limit: 1, "temperature": 0.0, **wanted}


def first_tops(choice: dict[str, Any]) -> list[tuple[str, float]] | None:
    """(token, log-probability) of the first written token's alternatives."""
    given = choice.get("logprobs") or {}
    if given.get("content"):
        return [(t["token"], float(t["logprob"])) for t in given["content"][0]["top_logprobs"]]
    if given.get("top_logprobs"):
        return [(token, float(log)) for token, log in given["top_logprobs"][0].items()]
    return None


def _given(ids: list[int] | None) -> list[int]:
    if ids is None:
        raise ProviderError("The server does not tokenize.", hint="See docs/backends.md.")
    return ids
