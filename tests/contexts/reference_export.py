"""A reader of preread exports written from docs/format.md alone: the standard library, and the
reader of chunks beside it.

python -m tests.contexts.reference_export FILE      prints what the file holds, or why it is none
"""

from __future__ import annotations

import hashlib
import json
import sys
import tarfile
from typing import Any

from tests.store import reference_reader


def read(path: str) -> tuple[dict[str, Any], dict[str, str], dict[str, bytes]]:
    """(record, texts by digest, plain payloads by key). Raises ValueError."""
    sums: list[str] = []
    texts: dict[str, str] = {}
    payloads: dict[str, bytes] = {}
    manifest: dict[str, Any] | None = None
    ended = False
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                stream = tar.extractfile(info)
                if ended or not info.isreg() or stream is None:
                    raise ValueError(f"{info.name}: does not belong there")
                data = stream.read()
                folder, _, rest = info.name.partition("/")
                if info.name == "SHA256SUMS":
                    if data.decode() != "".join(sums):
                        raise ValueError("digests are not right")
                    ended = True
                    continue
                digest = hashlib.sha256(data).hexdigest()
                sums.append(f"{digest}  {info.name}\n")
                if manifest is None:
                    if info.name != "preread.json":
                        raise ValueError("does not begin with preread.json")
                    manifest = json.loads(data)
                elif folder == "texts" and rest == f"{digest}.txt":
                    texts[digest] = data.decode("utf-8", "surrogatepass")
                elif folder == "chunks":
                    header, payload = reference_reader.read(data)
                    if rest != header["key"].hex() + ".kv":
                        raise ValueError(f"{info.name}: another chunk")
                    payloads[header["key"].hex()] = payload
                else:
                    raise ValueError(f"{info.name}: does not belong there")
    except tarfile.TarError as exc:
        raise ValueError(str(exc)) from exc
    if manifest is None or not ended:
        raise ValueError("cut short")
    if manifest["format"] != 1:
        raise ValueError(f"format {manifest['format']}")
    return manifest["record"], texts, payloads


if __name__ == "__main__":
    found, words, chunks = read(sys.argv[1])
    print(found["name"], len(found["sources"]), "sources,", len(words), "texts,", len(chunks))
