"""What a request is, for a cache of answers: everything that its answer depends on, and nothing
else. Two requests with one key have one answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from hashlib import blake2b
from typing import TYPE_CHECKING

from preread.backend import BackendInfo, Generate, LogLikelihood, Ragged, RequestBatch, Work
from preread.types import Prefix

if TYPE_CHECKING:
    from preread.types import Int32Array

VERSION = 1  # raised when a request is laid out otherwise, or an answer stored otherwise
KEY = 32  # bytes


def kept(batch: RequestBatch) -> bool:
    """Whether answers to these rows may be kept: they are the same each time, and nothing but the
    answer is wanted. Approximate prefixes are left out: their KV depends on what else is there."""
    if batch.keep or not batch.reuse or any(prefix.blend for prefix in batch.prefixes):
        return False
    if not isinstance(batch.work, Generate):
        return True
    sampling = batch.work.sampling
    return sampling.temperature == 0 or sampling.seed is not None


def keys(
    info: BackendInfo, batch: RequestBatch, prefix_of: Int32Array, reads: str = ""
) -> list[bytes]:
    """A key per row. prefix_of: -1 for none; reads: see `scope`."""
    heads = [
        scope(info, batch.work, batch.raw, prefix, reads) for prefix in (*batch.prefixes, None)
    ]
    prompts, work = batch.prompts, batch.work
    made = []
    for row, which in enumerate(prefix_of.tolist()):
        ids = isinstance(prompts, Ragged)
        text = prompts.row(row).tobytes() if isinstance(prompts, Ragged) else _bytes(prompts[row])
        parts = [b"ids" if ids else b"text", text]
        if isinstance(work, LogLikelihood):
            tails = work.continuations
            parts += (
                [b"ids", tails.row(row).tobytes()]
                if isinstance(tails, Ragged)
                else [b"text", _bytes(tails[row])]
            )
        made.append(_digest([heads[which], *parts]))
    return made


def scope(
    info: BackendInfo, work: Work, raw: bool, prefix: Prefix | None, reads: str = ""
) -> bytes:
    """Of everything but the prompt. reads: how text becomes tokens and back (tokenizer, template,
    stop tokens), which a backend's fingerprint, an identity of KV, does not hold."""
    what = [] if isinstance(work, LogLikelihood) else asdict(work)
    model = [
        VERSION,
        info.name,
        info.model,
        info.fingerprint,
        info.dtype,
        reads,
        type(work).__name__,
    ]
    told = json.dumps([*model, what, raw], sort_keys=True)
    parts = [told.encode()]
    if prefix is not None:
        parts += [b"system", _bytes(prefix.system)]
        for turn in prefix.history:
            parts += [turn.role.encode(), _bytes(turn.content)]
    return _digest(parts)


def _bytes(text: str) -> bytes:
    """Also of a text that is no text: what is wrong with it, the backend says."""
    return text.encode("utf-8", "surrogatepass")


def _digest(parts: Sequence[bytes]) -> bytes:
    """Of parts that are told apart by their lengths."""
    made = blake2b(digest_size=KEY, person=b"preread answers")
    for part in parts:
        made.update(len(part).to_bytes(8, "little"))
        made.update(part)
    return made.digest()
