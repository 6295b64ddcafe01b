"""What a model's KV is made of: a digest of the weights, and the parts of the KV's identity.

The digest of a model is SHA-256 over the sorted SHA-256 digests of its safetensors files; a file
holds names, dtypes, shapes and bytes of its tensors, so all of them are covered, and file names are
not. Digests of files are remembered in `<home>/digests.json` by device, inode, size, mtime and
ctime, so that a large model is read once and a changed one is noticed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from preread.errors import BadCheckpoint
from preread.models.folder import stamp, weight_files

if TYPE_CHECKING:
    from preread.models.config import ModelConfig

_KEPT = 4096  # files remembered; the oldest are forgotten
# A file system's clock ticks in milliseconds: a file touched this recently could change once more
# without its stamp showing it, so its digest is not remembered yet.
_SETTLED_S = 2.0

log = logging.getLogger(__name__)


def weights_digest(folder: Path, home: Path | None) -> str:
    """64 hex digits. Raises BadCheckpoint if files are missing or change while they are read.

    A home that cannot be written, or None, costs the memory of the digest, not the digest.
    """
    files = weight_files(folder)
    store = None if home is None else home / "digests.json"
    known, fresh = _remembered(store) if store else {}, {}
    digests = []
    for file in files:
        mark = stamp(file)
        if mark not in known:
            known[mark] = _file_digest(file, mark)
            if time.time() - max(os.stat(file).st_ctime, os.stat(file).st_mtime) > _SETTLED_S:
                fresh[mark] = known[mark]
        digests.append(known[mark])
    if store and fresh:
        _remember(store, fresh)
    return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()


def _file_digest(file: Path, mark: str) -> str:
    with file.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    if stamp(file) != mark:
        raise BadCheckpoint(f"{file} changed while it was read.", hint="Try again.")
    return digest


def _remembered(store: Path) -> dict[str, str]:
    try:
        files = json.loads(store.read_text(encoding="utf-8"))["files"]
        return {str(mark): str(digest) for mark, digest in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # absent or damaged: it is only a memory


def _remember(store: Path, fresh: dict[str, str]) -> None:
    """Merge under a lock and replace the file whole, so that two processes lose nothing."""
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        with _locked(store.with_suffix(".lock")):
            merged = _remembered(store)
            merged = {m: d for m, d in merged.items() if m not in fresh} | fresh
            kept = dict(list(merged.items())[-_KEPT:])
            fd, temporary = tempfile.mkstemp(dir=store.parent, prefix=".digests-")
            with os.fdopen(fd, "w", encoding="utf-8") as handle:
                json.dump({"version": 1, "files": kept}, handle, indent=1)
            os.replace(temporary, store)
    except OSError as exc:
        log.warning("digest of the weights not remembered in %s: %s", store, exc)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    import fcntl

    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


# Text-side fields: they choose or end tokens, they do not change what KV a token gets.
_NOT_KV = {"vocab_size", "max_positions", "tied", "bos_id", "eos_ids", "dtype", "rope"}


def model_fingerprint_parts(
    config: ModelConfig, weights: str, dtype: str, precision: str = "full", kv: str = "full"
) -> dict[str, str | int]:
    """Everything that makes KV what it is, canonical and flat, for `store.keys.fingerprint`.

    weights: `weights_digest`, or a name of the recipe for random ones; dtype: of the computation;
    precision: of the weights in the products, see `load.PRECISIONS`; kv: of the KV once it is
    written, see `kernels.kv.PRECISIONS`.
    """
    parts: dict[str, str | int] = {
        "weights": weights,
        "dtype": dtype,
        "layout": "k after rope, half-split",
    }
    if precision != "full":  # absent otherwise: what is stored stays valid
        parts["weights precision"] = precision
    if kv != "full":
        parts["kv precision"] = kv
    for field in fields(config):
        if field.name not in _NOT_KV:
            parts[field.name] = _plain(getattr(config, field.name))
    for field in fields(config.rope):
        parts[f"rope.{field.name}"] = _plain(getattr(config.rope, field.name))
    return parts


def _plain(value: str | int | float | bool) -> str | int:
    return repr(value) if isinstance(value, float) else int(value) if value in (0, 1) else value
