"""Output that satisfies a JSON schema by construction, through llguidance.

A matcher says which tokens may come next; the sampler gives the others no chance. When the value is
complete nothing may follow and the row ends; when the token limit comes first, it is incomplete.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from preread.errors import RequestError

if TYPE_CHECKING:
    import llguidance
    import llguidance._lib
    from numpy.typing import NDArray

# One optional space where JSON allows white space: enough for both common styles, and nothing that
# a small model can repeat until its tokens run out.
WHITE_SPACE: llguidance._lib.JsonCompileOptions = {"whitespace_pattern": "\\x20?"}


class JsonGrammars:
    """Grammars over one vocabulary. Thread-safe: nothing changes but the cached tokenizer."""

    def __init__(self, tokenizer_json: Callable[[], str], vocab: int, eos: Sequence[int]) -> None:
        """tokenizer_json: the text of tokenizer.json, read at first use."""
        self._read = tokenizer_json
        self._vocab = vocab
        self._eos = sorted(eos)

    def compile(self, schema: Mapping[str, Any]) -> JsonGrammar:
        """Raises RequestError when it is no schema or asks for what cannot be guaranteed."""
        import llguidance

        try:
            grammar = llguidance.LLMatcher.grammar_from_json_schema(
                json.dumps(schema), overrides=WHITE_SPACE
            )
        except (ValueError, TypeError) as exc:
            raise RequestError(f"schema: {exc}.", hint="Give a JSON schema as a dict.") from exc
        matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            reason = matcher.get_error().strip().splitlines()[0]
            raise RequestError(f"schema: {reason}", hint="Leave that keyword out.")
        return JsonGrammar(matcher, self._vocab)

    @cached_property
    def _tokenizer(self) -> llguidance.LLTokenizer:
        import llguidance

        return llguidance.LLTokenizer(self._read(), n_vocab=self._vocab, eos_token=self._eos)


class JsonGrammar:
    """See jobs.Grammar."""

    def __init__(self, matcher: llguidance.LLMatcher, vocab: int) -> None:
        self._matcher = matcher
        self._vocab = vocab

    def start(self) -> JsonMatcher:
        return JsonMatcher(self._matcher.deep_copy(), self._vocab)


class JsonMatcher:
    """See jobs.Matcher. The mask is computed once per token."""

    def __init__(self, matcher: llguidance.LLMatcher, vocab: int) -> None:
        self._matcher = matcher
        self._vocab = vocab

    @property
    def error(self) -> str:
        return str(self._matcher.get_error())

    def mask(self) -> NDArray[np.bool_]:
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        return np.unpackbits(bits, count=self._vocab, bitorder="little").view(np.bool_)

    def accept(self, token: int) -> bool:
        self._matcher.consume_token(token)
        return bool(self._matcher.is_stopped())
