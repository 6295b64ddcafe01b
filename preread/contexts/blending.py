"""Several contexts in one prompt, approximately: nothing is read but what they have read already.

What is asked is laid out as the exact composition would be; its KV is put together from that of the
parts (preread/blends.py). It is published nowhere: nobody finds it by a name.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import NamedTuple, get_args

from preread.backend import Backend
from preread.blends import Agreed, Approximate, Blend, BlendBy
from preread.capacity.remembered import Remembered
from preread.config import Config, ContextSection
from preread.contexts.catalog.base import ContextRecord, ShardRecord
from preread.contexts.opened import Blended
from preread.contexts.shard import Plan, plan_shards
from preread.contexts.sources import Sources
from preread.errors import ConfigError


class Joined(NamedTuple):
    """What contexts are together. notes: what the user should know; expires_at: when the first of
    them does, None: never."""

    sources: Sources
    instructions: str
    notes: list[str]
    expires_at: float | None


def join(parts: Sequence[ContextRecord], instructions: str) -> Joined:
    """The documents of all of them in their order, each once; given instructions, else those of the
    first."""
    chosen = instructions or parts[0].instructions
    notes = []
    if any(part.instructions != chosen for part in parts):
        notes.append(f"answering by the instructions of {parts[0].name!r}")
    sources = Sources(
        tuple(dict.fromkeys(source for part in parts for source in part.sources)),
        tuple(dict.fromkeys(pattern for part in parts for pattern in part.patterns)),
    )
    ends = [part.expires_at for part in parts if part.expires_at is not None]
    return Joined(sources, chosen, notes, min(ends, default=None))


async def blend_contexts(
    backend: Backend, target: str, parts: Sequence[ContextRecord], joined: Joined, config: Config
) -> tuple[ContextRecord, Blended, Plan]:
    """A record of what is asked, not in any catalog (version 0), and how its KV is made. Raises
    ConfigError for a share or a choice that there is not, and what plan_shards raises."""
    plan = await plan_shards(backend, joined.sources.records, joined.instructions, config.context)
    info = backend.info
    rates = [part.prefill_tok_s for part in parts if part.prefill_tok_s]
    record = ContextRecord(
        name=target,
        version=0,
        model=info.model,
        fingerprint=info.fingerprint,
        instructions=joined.instructions,
        sources=joined.sources.records,
        shards=tuple(
            ShardRecord(
                system=layout.text,
                sources=tuple(dict.fromkeys(part.source for part in layout.parts)),
                tokens=tokens,
                kv_bytes=tokens * info.kv_bytes_per_token,
                chunk_keys=(),
                parts=layout.parts,
            )
            for layout, tokens in zip(plan.shards, plan.tokens, strict=True)
        ),
        created_at=max(part.created_at for part in parts),
        expires_at=joined.expires_at,
        patterns=joined.sources.patterns,
        dtype=info.dtype,
        prefill_tok_s=min(rates, default=0.0),
        codec=parts[0].codec,
    )
    texts = dict.fromkeys(shard.system for part in parts for shard in part.shards)
    blend = blend_of(tuple(texts), config.context)
    agreed = remembered(config, record, blend)
    return record, Blended(Approximate(target, blend, agreed), tuple(parts)), plan


def blend_of(texts: tuple[str, ...], config: ContextSection) -> Blend:
    """As configured. Raises ConfigError."""
    share = config.blend_share
    if share > 1:
        raise ConfigError(f"context.blend_share = {share}.", hint="Give a share from 0 to 1.")
    choices: tuple[BlendBy, ...] = get_args(BlendBy)
    for by in choices:
        if by == config.blend_by:
            return Blend(texts, share, by)
    raise ConfigError(
        f"context.blend_by = {config.blend_by!r}.", hint=f"Give one of {', '.join(choices)}."
    )


def remembered(config: Config, record: ContextRecord, blend: Blend) -> Agreed | None:
    """What was measured for just these texts, this model and this blend."""
    rows = Remembered(config.home).measured(_key(record, blend))
    if len(rows) != 1 or len(rows[0]) != len(Agreed._fields):
        return None
    tokens, equal, divergence, *counts = rows[0]
    return Agreed(int(tokens), equal, divergence, *map(int, counts))


def remember(config: Config, record: ContextRecord, blend: Blend, agreed: Agreed) -> None:
    """For every answer from now on."""
    rows = [[float(value) for value in agreed]]
    Remembered(config.home).keep_measured(_key(record, blend), rows)


def _key(record: ContextRecord, blend: Blend) -> str:
    said = (record.fingerprint, [shard.system for shard in record.shards], blend)
    return f"approximate | {sha256(repr(said).encode()).hexdigest()}"
