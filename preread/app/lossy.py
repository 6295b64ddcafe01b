"""Whether a codec that loses something may be trusted: measured on this model before anybody does.

A context is read once, exactly, and kept through the codec in memory; a second engine finds it
there and answers the same questions. And one text goes through the model twice (engine/lossy.py).
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preread.backend import Backend, Generate
from preread.config import Config, load_config, local_model
from preread.contexts.ask import AskOptions, ask_many
from preread.contexts.build import BuildRequest, build_context
from preread.contexts.catalog.base import ContextRecord
from preread.contexts.catalog.sqlite import SqliteCatalog
from preread.contexts.opened import Opened
from preread.contexts.questions import Question, read_questions
from preread.errors import EngineError
from preread.store.codec import Codec, RawCodec, codec_of
from preread.store.keys import Geometry, fingerprint
from preread.store.store import Store
from preread.store.tiers.memory import MemoryTier
from preread.types import Completion, Prefix

if TYPE_CHECKING:
    from preread.engine.local import LocalBackend
    from preread.engine.lossy import Loss
    from preread.models.load import LoadedModel

PREFIX, AFTER = 4096, 256  # tokens at most: kept ones, and those whose logits are compared


@dataclass(frozen=True, slots=True)
class CodecReport:
    """size: bytes of a chunk as a share of raw ones; loss: on the text; same: answers equal token
    by token, of `questions`; right_exact, right: answers that are right, of the graded; tokens:
    kept, of the context that was asked."""

    codec: str
    model: str
    size: float
    loss: Loss
    tokens: int
    questions: int
    same: int
    graded: int
    right_exact: int
    right: int

    def to_json(self) -> dict[str, Any]:
        loss, agreement = self.loss, self.loss.agreement
        return {
            "codec": self.codec,
            "model": self.model,
            "size": self.size,
            "key_error": loss.keys,
            "value_error": loss.values,
            "logit_error": loss.logits,
            "logit_error_worst": loss.worst,
            "greedy_equal": agreement.equal / agreement.tokens,
            "greedy_equal_clear": agreement.clear_equal / max(1, agreement.clear),
            "divergence": agreement.divergence,
            "context_tokens": self.tokens,
            "questions": self.questions,
            "answers_same": self.same,
            "answers_graded": self.graded,
            "answers_right_exact": self.right_exact,
            "answers_right": self.right,
        }


def check_codec(model: str, name: str, folder: Path, questions: Path) -> CodecReport:
    """Measure codec `name` on a folder of documents and a file of questions (see `compare`). Raises
    ConfigError for an unknown codec, EngineError if a question fails, and what loading raises."""
    from preread.app.storing import geometry_of
    from preread.models.load import load_model

    codec, config = codec_of(name), load_config()
    chosen = replace(config.model, model=local_model(model or config.model.model))
    loaded = load_model(
        chosen.model,
        dtype=chosen.dtype,
        device=chosen.device,
        weights_precision=chosen.weights_precision,
        home=config.home,
    )
    geometry = geometry_of(loaded, config.store)
    asked = read_questions(questions)
    arms = _Arms(loaded, config, geometry, codec, asked)
    with tempfile.TemporaryDirectory() as scratch:
        record, exact, lossy = asyncio.run(arms.run(folder, Path(scratch) / "catalog.sqlite"))
    graded = [q for q in asked if q.references]
    return CodecReport(
        codec=name,
        model=chosen.model,
        size=_nbytes(codec, geometry) / _nbytes(RawCodec(), geometry),
        loss=_loss(loaded, geometry, codec, record),
        tokens=record.tokens,
        questions=len(asked),
        same=sum(a.tokens == b.tokens for a, b in zip(exact, lossy, strict=True)),
        graded=len(graded),
        right_exact=_right(asked, exact),
        right=_right(asked, lossy),
    )


@dataclass(frozen=True, slots=True)
class _Arms:
    loaded: LoadedModel
    config: Config
    geometry: Geometry
    codec: Codec
    questions: Sequence[Question]

    async def run(
        self, folder: Path, place: Path
    ) -> tuple[ContextRecord, list[Completion], list[Completion]]:
        """The context, and the answers from exact and from lossy KV. One tier serves both engines:
        the first one computes and writes, the second one reads."""
        tier, catalog = MemoryTier(), SqliteCatalog(place)
        async with self._backend(tier) as first:
            request = BuildRequest("codec", (str(folder),))
            record = (await build_context(first, catalog, request, self.config)).record
            exact = await self._answers(first, record)
        async with self._backend(tier) as second:
            built = [await second.build(Prefix(shard.system)) for shard in record.shards]
            if any(one.computed_tokens for one in built):
                raise EngineError(
                    "What was kept through the codec was not found again.",
                    hint="This is a bug in preread: please report it.",
                )
            return record, exact, await self._answers(second, record)

    @asynccontextmanager
    async def _backend(self, tier: MemoryTier) -> AsyncIterator[LocalBackend]:
        from preread.engine.local import LocalBackend

        identity = fingerprint(self.loaded.fingerprint_parts)
        store = Store([tier], self.geometry, identity, codec=self.codec, always=True)
        engine = self.config.engine.limited(self.loaded.decoder.device.type)
        backend = LocalBackend(self.loaded, store, engine)
        try:
            yield backend
        finally:
            await backend.close()

    async def _answers(self, backend: Backend, record: ContextRecord) -> list[Completion]:
        work = Generate(max_tokens=self.config.context.max_tokens)
        texts = [question.text for question in self.questions]
        options = AskOptions(cite=False)
        answers = list(await ask_many(backend, Opened(record), texts, work, options))
        if failed := [answer.error for answer in answers if answer.error]:
            raise EngineError(f"A question failed: {failed[0]}", hint="preread doctor")
        return answers


def _loss(loaded: LoadedModel, geometry: Geometry, codec: Codec, record: ContextRecord) -> Loss:
    from preread.engine.lossy import measure

    tokens = loaded.chat.prefix(Prefix(record.shards[0].system))[: PREFIX + AFTER]
    split = len(tokens) - min(AFTER, len(tokens) // 2)
    return measure(loaded.decoder, geometry, codec, tokens, split)


def _right(questions: Sequence[Question], answers: Sequence[Completion]) -> int:
    return sum(bool(q.grade(a.text)) for q, a in zip(questions, answers, strict=True))


def _nbytes(codec: Codec, geometry: Geometry) -> int:
    boxes = geometry.boxes(0, geometry.chunk_tokens)
    return sum(codec.nbytes(box.shape(geometry.head_dim), geometry.dtype) for box in boxes)
