"""Text -> tokens, with trust: control tokens are read only in text that a template wrote.

Two views of `tokenizer.json` share one vocabulary: the added tokens, which only cut trusted text,
and a stripped tokenizer (no added tokens, no post-processor), which encodes the runs between them.
So nothing in a document or a question can become a control token, and no token is added twice.
For text without look-alikes the result is that of the published tokenizer, token for token.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from preread.errors import BadCheckpoint, ModelNotFound, RequestError, UnsupportedModel
from preread.models.detokenizer import Detokenizer, TokenDecoder
from preread.models.folder import AGAIN
from preread.models.stripped import Stripped

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Published

# Whether an added token that is not marked special is control (`<think>`, `[TOOL]`) or vocabulary.
# What the Rust library takes for white space (Unicode White_Space): Python's strip() also takes the
# separators U+001C to U+001F.
_WHITE_SPACE = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009"
    "\u200a\u2028\u2029\u202f\u205f\u3000"
)
_MARKUP = re.compile(r"[<>\[\]{}|]")


class Span(NamedTuple):
    """A stretch of text. trusted: written by a template, so control tokens in it are meant."""

    text: str
    trusted: bool = False


class At(Enum):
    """Where a run of text begins; some tokenizers put a space before runs, but not everywhere."""

    START = "start"  # the very beginning
    INNER = "inner"  # after an added token
    MIDDLE = "middle"  # inside a run whose earlier part was encoded before


class Piece(NamedTuple):
    """Characters [start, end) of the joined spans: one added token, or a run of text (None)."""

    start: int
    end: int
    token: int | None


def clip(spans: Sequence[Span], start: int, end: int) -> list[Span]:
    """The characters [start, end) of the joined spans, with their trust."""
    clipped, at = [], 0
    for span in spans:
        if part := span.text[max(0, start - at) : max(0, end - at)]:
            clipped.append(Span(part, span.trusted))
        at += len(span.text)
    return clipped


class Tokenizer:
    """A published tokenizer. Thread-safe: nothing changes after construction."""

    def __init__(self, folder: Path) -> None:
        """Reads `tokenizer.json`. Raises ModelNotFound, BadCheckpoint, UnsupportedModel."""
        self.path = folder / "tokenizer.json"
        published = _read(self.path)
        self._published = published
        self._added: dict[int, AddedToken] = published.get_added_tokens_decoder()
        self._ids = {token.content: i for i, token in self._added.items()}
        self.special_ids = frozenset(i for i, token in self._added.items() if token.special)
        self._stripped = Stripped(published, self.special_ids, self.path)
        self._decoder = TokenDecoder(published, self.path)
        self._passes = [self._patterns(normalized=False), self._patterns(normalized=True)]
        probe = published.encode("a", add_special_tokens=False).ids
        whole = published.encode("a").ids
        at = next((i for i in range(len(whole)) if whole[i : i + len(probe)] == probe), 0)
        self.bos_ids: tuple[int, ...] = tuple(whole[:at])

    @property
    def vocab_size(self) -> int:
        """Ids with a text; the model's own vocabulary may be padded beyond it."""
        return int(self._published.get_vocab_size(with_added_tokens=True))

    def token_id(self, text: str) -> int | None:
        """Id of one token by its text, None if there is none."""
        found: int | None = self._published.token_to_id(text)
        return found

    def token_text(self, token: int) -> str:
        """The published text of a token; empty for ids without one."""
        return str(self._published.id_to_token(token) or "")

    def token_bytes(self, token: int) -> bytes:
        """The bytes a token stands for; empty for ids without a text."""
        return self._decoder(token)

    def leading_spaces(self, token: int) -> int:
        """How many of these bytes are dropped where the token begins a text."""
        return self._decoder.leading_spaces(token)

    def encode(self, spans: Sequence[Span], at: At = At.START) -> list[int]:
        """Token ids of the joined spans; `at` says where the first of them begins. Added tokens
        are recognised only inside trusted spans, each run between them is encoded once. Raises
        RequestError for text that is not valid Unicode."""
        text = "".join(span.text for span in spans)
        ids: list[int] = []
        for piece in self.split(spans):
            if piece.token is not None:
                ids.append(piece.token)
            else:
                where = at if piece.start == 0 else At.INNER
                ids += self._run(text[piece.start : piece.end], where)
        return ids

    def encode_text(self, text: str, at: At = At.START) -> list[int]:
        """Token ids of foreign text."""
        return self.encode([Span(text)], at)

    def prompt_tokens(self, text: str) -> list[int]:
        """A raw prompt: the beginning-of-sequence token once if the model wants one, then foreign
        text, whatever tokens it seems to name."""
        return [*self.bos_ids, *self.encode_text(text)]

    def decode(self, tokens: Iterable[int], skip_special: bool = True) -> str:
        """Text of tokens; bytes that are no UTF-8 become U+FFFD."""
        stream = Detokenizer(self, skip_special)
        return stream.push(tokens) + stream.finish()

    def split(self, spans: Sequence[Span]) -> list[Piece]:
        """Cut the joined spans at added tokens, in the order of the `tokenizers` library: first
        those sought in the raw text, then in what is left those sought in normalised text."""
        text = "".join(span.text for span in spans)
        pieces = [Piece(0, len(text), None)] if text else []
        for control, vocabulary in self._passes:
            cut: list[Piece] = []
            for piece in pieces:
                if piece.token is None:
                    cut += self._cut(text, piece, spans, (vocabulary, control))
                else:
                    cut.append(piece)
            pieces = cut
        return pieces

    def _cut(
        self,
        text: str,
        run: Piece,
        spans: Sequence[Span],
        patterns: tuple[re.Pattern[str] | None, re.Pattern[str] | None],
    ) -> Iterator[Piece]:
        done = run.start
        for start, end, trusted in _stretches(spans):
            pattern = patterns[trusted]
            if pattern is None or end <= run.start or start >= run.end:
                continue
            for match in pattern.finditer(text, max(start, run.start), min(end, run.end)):
                found = self._extend(text, run, done, match)
                if found is None:
                    continue
                if done < found.start:
                    yield Piece(done, found.start, None)
                yield found
                done = found.end
        if done < run.end:
            yield Piece(done, run.end, None)

    def _extend(self, text: str, run: Piece, done: int, match: re.Match[str]) -> Piece | None:
        """Apply the flags of an added token: single_word refuses a match inside a word, lstrip and
        rstrip let it swallow white space."""
        start, end = match.span()
        token = self._ids[match.group()]
        flags = self._added[token]
        if token in self._odd:
            raise UnsupportedModel(
                f"{self.path}: the chat template uses {flags.content!r}, which this tokenizer "
                "seeks in normalised text.",
                hint='Set "normalized": false for it, as newer releases of the model do.',
            )
        if flags.single_word and (
            _is_word(text[start - 1 : start] if start > run.start else "")
            or _is_word(text[end : min(end + 1, run.end)])
        ):
            return None
        if flags.lstrip:
            start = max(len(text[run.start : start].rstrip(_WHITE_SPACE)) + run.start, done)
        if flags.rstrip:
            end = run.end - len(text[end : run.end].lstrip(_WHITE_SPACE))
        return Piece(start, end, token)

    @cached_property
    def _odd(self) -> frozenset[int]:
        """Added tokens whose text the normalizer would change before it is sought."""
        return frozenset(
            i
            for i, token in self._added.items()
            if token.normalized and not (self._stripped.transparent and token.content.isascii())
        )

    def _patterns(self, normalized: bool) -> tuple[re.Pattern[str] | None, re.Pattern[str] | None]:
        """(for trusted text: all added tokens, for foreign text: those that are vocabulary)."""
        tokens = [token for token in self._added.values() if token.normalized is normalized]
        plain = [t for t in tokens if not t.special and not _MARKUP.search(t.content)]
        return _any_of(tokens), _any_of(plain)

    @cached_property
    def _has_seams(self) -> bool:
        """Whether letter | space is a boundary that no token and no rule ever crosses."""
        return all(vocabulary is None for _, vocabulary in self._passes) and self._stripped.seams

    def seam(self, text: str, low: int, high: int) -> int | None:
        """The last position p, low < p < high, at which a run can be cut for good:
        encode(text[:p]) + encode(text[p:] + any text, MIDDLE) == encode(text + any text). None if
        there is none or the tokenizer has no such places."""
        return self._stripped.last_seam(text, low, high) if self._has_seams else None

    @cached_property
    def cuts_alone(self) -> bool:
        """Whether added tokens are cut out of trusted text alone and whatever stands beside it."""
        looks = any(t.lstrip or t.rstrip or t.single_word for t in self._added.values())
        return not looks and all(vocabulary is None for _, vocabulary in self._passes)

    def encode_runs(self, texts: Sequence[str], at: At) -> list[list[int]] | None:
        """Token ids of each run of text, in parallel. None if one of them is not valid Unicode."""
        try:
            return self._stripped.encode_many(texts, at.value)
        except (TypeError, UnicodeEncodeError):
            return None

    def _run(self, text: str, at: At) -> list[int]:
        try:
            return self._stripped.encode(text, at.value)
        except (TypeError, UnicodeEncodeError):  # the library's word for a lone surrogate
            at_fault = re.search(r"[\ud800-\udfff]", text)
            if at_fault is None:
                raise
            raise RequestError(
                f"Character {at_fault.start()} of a text is a lone surrogate "
                f"({at_fault.group()!r}).",
                hint="Decode the text as UTF-8 first.",
            ) from None


def _read(path: Path) -> Published:
    from tokenizers import Tokenizer as Published

    if not path.is_file():
        raise ModelNotFound(
            f"{path.parent} has no {path.name}.",
            hint="Convert its tokenizer (transformers: AutoTokenizer…save_pretrained).",
        )
    try:
        published = Published.from_file(str(path))
    except Exception as exc:  # the library raises bare Exception
        raise BadCheckpoint(f"{path}: damaged or half-written: {exc}.", hint=AGAIN) from exc
    published.no_truncation()
    published.no_padding()
    return published


def _any_of(tokens: Sequence[AddedToken]) -> re.Pattern[str] | None:
    """Leftmost, then longest."""
    texts = sorted((t.content for t in tokens if t.content), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, texts))) if texts else None


def _stretches(spans: Sequence[Span]) -> Iterator[tuple[int, int, bool]]:
    """(start, end, trusted) of neighbouring spans of equal trust, joined."""
    at = start = 0
    trusted = False
    for span in spans:
        if span.trusted is not trusted:
            if start < at:
                yield start, at, trusted
            start, trusted = at, span.trusted
        at += len(span.text)
    if start < at:
        yield start, at, trusted


def _is_word(char: str) -> bool:
    """`\\w` of the library's regular expressions, which also counts marks and joiners."""
    kind = unicodedata.category(char) if char else ""
    return kind[:1] in ("L", "M") or kind in ("Nd", "Nl", "Pc") or char in ("\u200c", "\u200d")
