"""The stripped tokenizer: the published vocabulary without added tokens and post-processor."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preread.errors import UnsupportedModel

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Published

# A letter that no Unicode normal form changes, followed by white space.
_LETTER = r"[A-Za-z\u4e00-\u9fff]"
_SEAM = re.compile(rf"{_LETTER}(?=[ \n])")
_CROSSED = re.compile(rf"{_LETTER}[ \n▁ĠĊ]")
_NORMAL_FORMS = {"NFC", "NFD", "NFKC", "NFKD"}
# Splitting rules of Llama 3, Qwen2, GPT-4o and Mistral's Tekken. None of their alternatives matches
# a letter followed by white space or looks behind, so every such place ends a word, whatever stands
# around it. (GPT-2's rule, built into ByteLevel, is of the same kind.)
_WORD_RULES = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}


class Stripped:
    """Encodes runs of plain text; see tokenizer.At for where a run may begin."""

    def __init__(self, published: Published, special: frozenset[int], path: Path) -> None:
        """Raises UnsupportedModel for tokenizers that are not plain BPE."""
        from tokenizers import models

        model = published.model
        if not isinstance(model, models.BPE) or model.dropout:
            raise UnsupportedModel(
                f"{path}: a tokenizer of kind {type(model).__name__} is not read exactly.",
                hint="Choose a model with a BPE tokenizer.",
            )
        self._normalizer = _state(published.normalizer)
        self._splitter = _state(published.pre_tokenizer)
        self._model = _without(published, _reachable(published, special))
        self._views = {
            "start": self._view(self._normalizer, self._splitter),
            "inner": self._view(self._normalizer, _continued(self._splitter, after_token=True)),
            "middle": self._view(_continued(self._normalizer), _continued(self._splitter)),
        }

    def encode(self, text: str, at: str) -> list[int]:
        ids: list[int] = self._views[at].encode(text, add_special_tokens=False).ids
        return ids

    def encode_many(self, texts: Sequence[str], at: str) -> list[list[int]]:
        """`encode` of each, on as many cores as the library takes."""
        found = self._views[at].encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in found]

    @property
    def transparent(self) -> bool:
        """The normalizer leaves ASCII text as it is."""
        return all(part["type"] in _NORMAL_FORMS for part in _parts(self._normalizer))

    def _view(self, normalizer: Any, splitter: Any) -> Published:
        """A tokenizer around the shared model, with other rules before it."""
        from tokenizers import Tokenizer as Published

        rules = Published.from_str(
            json.dumps(
                {
                    "version": "1.0",
                    "added_tokens": [],
                    "normalizer": normalizer,
                    "pre_tokenizer": splitter,
                    "model": {"type": "BPE", "vocab": {}, "merges": []},
                }
            )
        )
        view = Published(self._model)
        if rules.normalizer is not None:
            view.normalizer = rules.normalizer
        if rules.pre_tokenizer is not None:
            view.pre_tokenizer = rules.pre_tokenizer
        return view

    def last_seam(self, text: str, low: int, high: int) -> int | None:
        """The last position between a letter and white space, low < position < high."""
        for width in (4096, high - low):
            found = [m.end() for m in _SEAM.finditer(text, max(low, high - width), high)]
            if found and found[-1] < high:
                return found[-1]
        return None

    @cached_property
    def seams(self) -> bool:
        """Whether no rule and no token ever crosses letter | white space (see _WORD_RULES)."""
        for part in _parts(self._normalizer):
            spaces = part["type"] == "Replace" and part.get("pattern") == {"String": " "}
            if part["type"] not in _NORMAL_FORMS | {"Prepend"} and not spaces:
                return False
        by_words = False
        for part in _parts(self._splitter):
            if part["type"] == "Split":
                if part["pattern"].get("Regex") not in _WORD_RULES:
                    return False
                by_words = True
            elif part["type"] == "ByteLevel":
                by_words = by_words or part.get("use_regex", True)
            elif part["type"] not in ("Metaspace", "Digits"):
                return False
        return by_words or self._never_merged

    @property
    def _never_merged(self) -> bool:
        """Without a rule that splits words the vocabulary decides: BPE cannot join two characters
        that stand side by side in no token."""
        model = self._model
        if model.continuing_subword_prefix or model.end_of_word_suffix:
            return False
        if model.fuse_unk and not model.byte_fallback:
            return False
        vocabulary = self._views["start"].get_vocab(with_added_tokens=False)
        return not any(_CROSSED.search(token) for token in vocabulary)


def _state(part: Any) -> Any:
    """A component of a tokenizer as JSON, without serialising the vocabulary."""
    return None if part is None else json.loads(part.__getstate__())


def _parts(state: Any) -> Iterator[dict[str, Any]]:
    """The leaves of a component."""
    if state is None:
        return
    if state["type"] == "Sequence":
        for part in state.get("normalizers") or state.get("pretokenizers") or ():
            yield from _parts(part)
    else:
        yield state


def _continued(state: Any, after_token: bool = False) -> Any:
    """A component for text that goes on: what it puts before the beginning of a text (START ->
    INNER, after_token) or of every run (-> MIDDLE) is left out."""
    if state is None:
        return None
    if state["type"] == "Sequence":
        key = "normalizers" if "normalizers" in state else "pretokenizers"
        parts = [_continued(part, after_token) for part in state[key]]
        return state | {key: [part for part in parts if part is not None]}
    if state["type"] == "Metaspace" and (not after_token or state.get("prepend_scheme") == "first"):
        return state | {"prepend_scheme": "never"}
    if state["type"] == "ByteLevel" and not after_token:
        return state | {"add_prefix_space": False}
    if state["type"] == "Prepend" and not after_token:
        return None
    return state


def _reachable(published: Published, special: frozenset[int]) -> set[str]:
    """Special tokens that the bare BPE model would write for their own text."""
    model = published.model
    texts = ((i, model.id_to_token(i)) for i in special)
    return {
        text
        for i, text in texts
        if text is not None
        and text != model.unk_token
        and [token.id for token in model.tokenize(text)] == [i]
    }


def _without(published: Published, unwanted: set[str]) -> Any:
    """The model, without tokens that foreign text must never become."""
    if not unwanted:
        return published.model
    from tokenizers import Tokenizer as Published

    spec = json.loads(published.to_str())
    model = spec["model"]
    model["vocab"] = {t: i for t, i in model["vocab"].items() if t not in unwanted}
    pairs = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    model["merges"] = [
        list(pair) for pair in pairs if "".join(pair) not in unwanted and not unwanted & {*pair}
    ]
    spec |= {"added_tokens": [], "post_processor": None}
    return Published.from_str(json.dumps(spec)).model
