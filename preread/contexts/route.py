"""Which shards of a split context hold the answer? BM25 over sections, in SQLite's FTS5; with an
embedder also the nearest vectors, the two rankings joined by reciprocal rank fusion (Cormack,
Clarke and Büttcher, SIGIR 2009, k = 60)."""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from preread.contexts.catalog.base import ContextRecord, EmbeddingRecord, Part, SourceRecord
from preread.contexts.layout import file_line
from preread.contexts.sections import sections
from preread.contexts.words import content
from preread.errors import RequestError, StateError

if TYPE_CHECKING:
    from preread.types import Float32Array

FUSION = 60
DEPTH = 1000  # sections of each ranking that count
CJK = re.compile(  # kana, ideographs, hangul
    "[\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff"
    "\uff66-\uff9f\U00020000-\U000323af]+"
)


@runtime_checkable
class Embedder(Protocol):
    """Optional: texts to vectors of one length, by whatever model the user likes. `name` is kept
    with the vectors, which are computed once at build; another name means other vectors."""

    @property
    def name(self) -> str: ...

    def __call__(self, texts: Sequence[str]) -> Sequence[Sequence[float]]: ...


@dataclass(frozen=True, slots=True)
class Hit:
    """A section and what speaks for it; `words`: those of the question that stand in it."""

    part: Part
    score: float
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Route:
    """shards, best first, and for each why it was chosen; note: what the user should know."""

    shards: tuple[int, ...]
    reasons: tuple[str, ...]
    note: str = ""


class SectionIndex:
    """BM25 over sections of documents. Thread-safe; lives in memory."""

    def __init__(self, sources: Sequence[SourceRecord], parts: Sequence[Part]) -> None:
        self.sources = sources
        self.sections = sections(sources, parts)
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None

    def search(self, question: str, limit: int = DEPTH) -> list[Hit]:
        """Sections with a word of the question that carries meaning (same stem), best first."""
        query = " OR ".join(dict.fromkeys(_terms(question)))
        if not query:
            return []
        with self._lock:
            db = self._db = self._db or self._fill()
            rows = db.execute(
                "SELECT rowid, -bm25(sections, 0.5, 1.0) AS score, "
                "highlight(sections, 1, char(1), char(2)) FROM sections "
                "WHERE sections MATCH ? ORDER BY score DESC, rowid LIMIT ?",
                (query, limit),
            ).fetchall()
        return [
            Hit(self.sections[row], score, tuple(dict.fromkeys(re.findall("\1(.*?)\2", marked))))
            for row, score, marked in rows
        ]

    def _fill(self) -> sqlite3.Connection:
        db = sqlite3.connect(":memory:", check_same_thread=False)
        try:
            db.execute(
                "CREATE VIRTUAL TABLE sections USING "
                "fts5(path, text, tokenize = 'porter unicode61')"
            )
        except sqlite3.OperationalError as exc:
            db.close()
            raise StateError(
                f"This Python's SQLite cannot search text ({exc}).",
                hint="Use a Python whose sqlite3 has FTS5 (python.org's has).",
            ) from exc
        db.executemany(
            "INSERT INTO sections (rowid, path, text) VALUES (?, ?, ?)",
            (
                (i, paired(self.sources[p.source].path), paired(self.text(p)))
                for i, p in enumerate(self.sections)
            ),
        )
        return db

    def text(self, part: Part) -> str:
        """What a section says."""
        return self.sources[part.source].text[part.start : part.end]

    def close(self) -> None:
        """Free the index; a later search fills it again."""
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None


def paired(text: str, *, ends: bool = True) -> str:
    """Text in which Chinese, Japanese and Korean runs, which spaces do not part into words, are
    overlapping pairs: "東京都" is "東京 京都 都" (ends=False: without the lone last character)."""

    def pairs(run: re.Match[str]) -> str:
        stop = len(run[0]) - (not ends and len(run[0]) > 1)
        return f" {' '.join(run[0][i : i + 2] for i in range(stop))} "

    return CJK.sub(pairs, text)


def _terms(question: str) -> list[str]:
    """The question's words as FTS5 terms. A lone character means every pair that begins with it."""
    words = (w for c in content(paired(question, ends=False)) for w in re.findall(r"\w+", c))
    return [f'"{w}"*' if len(w) == 1 and CJK.match(w) else f'"{w}"' for w in words]


class Router:
    """Chooses shards of one record. embedder: the one the context was built with, if any."""

    def __init__(self, record: ContextRecord, embedder: Embedder | None = None) -> None:
        self._record = record
        self._embedder = embedder
        if embedder and record.embedding and embedder.name != record.embedding.embedder:
            raise RequestError(
                f"Context {record.name!r} keeps vectors of {record.embedding.embedder!r}, not of "
                f"{embedder.name!r}.",
                hint="Build it again with this embedder, or open it with the other one.",
            )

    def route(self, question: str, count: int) -> Route:
        """The best `count` shards, at least one. A question that matches nothing gets the first
        ones, and the reason says so."""
        everything, count = range(len(self._record.shards)), max(1, count)
        if len(everything) <= count:
            return Route(tuple(everything), ("all shards are asked",) * len(everything))
        scores: dict[int, float] = {}
        reasons: dict[int, str] = {}
        for reason, ranking in self._rankings(question):
            shards = dict.fromkeys(self._shard_of(hit.part) for hit in ranking)
            best = {self._shard_of(hit.part): hit for hit in reversed(ranking)}
            for rank, shard in enumerate(shards, 1):
                scores[shard] = scores.get(shard, 0.0) + 1 / (FUSION + rank)
                reasons.setdefault(shard, self._reason(reason, best[shard]))
        ranked = sorted(everything, key=lambda shard: (-scores.get(shard, 0.0), shard))[:count]
        unmatched = "no shard matches better"
        note = (
            ""
            if scores
            else (
                f"no document has a word of the question: asked the first {count} of "
                f"{len(everything)} shards"
            )
        )
        return Route(tuple(ranked), tuple(reasons.get(s, unmatched) for s in ranked), note)

    @cached_property
    def _index(self) -> SectionIndex:
        parts = [part for shard in self._record.shards for part in shard.parts]
        return SectionIndex(self._record.sources, parts)

    def close(self) -> None:
        """Free the index, if it was made."""
        if "_index" in self.__dict__:
            self._index.close()

    def _rankings(self, question: str) -> list[tuple[str, list[Hit]]]:
        rankings = [("has it in its name", self._index.search(question))]
        if self._embedder and self._record.embedding:
            found = nearest(self._record.embedding, self._embedder, question)
            rankings.append(("is near in meaning", found))
        return rankings

    def _shard_of(self, part: Part) -> int:
        return next(
            i
            for i, shard in enumerate(self._record.shards)
            for held in shard.parts
            if held.source == part.source and held.start <= part.start < held.end
        )

    def _reason(self, kind: str, hit: Hit) -> str:
        source = self._record.sources[hit.part.source]
        place = f"{source.path}:{file_line(source, hit.part.start)}"
        return f"{place} has: {', '.join(hit.words)}" if hit.words else f"{place} {kind}"


def embed_sections(
    embedder: Embedder, sources: Sequence[SourceRecord], parts: Sequence[Part]
) -> EmbeddingRecord:
    """Vectors of all sections, computed once. Raises RequestError when the embedder's answer is not
    one vector of equal length per text."""
    found = sections(sources, parts)
    vectors = _vectors(embedder, [sources[p.source].text[p.start : p.end] for p in found])
    return EmbeddingRecord(embedder.name, vectors.shape[1], found, vectors.astype("<f4").tobytes())


def nearest(record: EmbeddingRecord, embedder: Embedder, question: str) -> list[Hit]:
    """Sections by cosine with the question, best first."""
    import numpy as np

    stored = np.frombuffer(record.vectors, "<f4").reshape(len(record.sections), record.dim)
    asked = _vectors(embedder, [question])
    if asked.shape[1] != record.dim:
        raise _bad_vectors(embedder)
    cosine = stored @ asked[0]
    order = np.argsort(-cosine, kind="stable")[:DEPTH]
    return [Hit(record.sections[i], float(cosine[i]), ()) for i in order]


def _vectors(embedder: Embedder, texts: Sequence[str]) -> Float32Array:
    import numpy as np

    try:
        vectors = np.asarray(embedder(texts), dtype=np.float32)
    except ValueError as exc:
        raise _bad_vectors(embedder) from exc
    if vectors.ndim != 2 or len(vectors) != len(texts) or not np.isfinite(vectors).all():
        raise _bad_vectors(embedder)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12), dtype=np.float32)


def _bad_vectors(embedder: Embedder) -> RequestError:
    return RequestError(
        f"Embedder {embedder.name!r} did not return one vector of equal length per text.",
        hint="It maps a list of texts to a list of lists of finite numbers.",
    )
