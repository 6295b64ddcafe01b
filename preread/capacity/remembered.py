"""What was measured on a machine, kept in `<home>/capacity.json`: its rates, and the limit of
running sequences of each model. It is only a memory: absent or damaged, it says nothing."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

MOST = 1024  # entries of each kind; the oldest are forgotten
RATES, LIMITS, MEASURED = "rates", "limits", "measured"
KINDS = (RATES, LIMITS, MEASURED)

LOCK_S = 5.0  # another process may take to write: requests wait for it

log = logging.getLogger("preread")


@dataclass(frozen=True, slots=True)
class Remembered:
    """Of one home. Two processes may write at once; none loses the other's."""

    home: Path

    def rates(self, machine: str, dtype: str) -> tuple[float, float] | None:
        """(floating-point operations, bytes) a second, as measured on a machine of this name."""
        found: Any = self._read()[RATES].get(f"{machine} | {dtype}")
        try:
            flops, bandwidth = float(found["flops"]), float(found["bandwidth"])
        except (TypeError, KeyError, ValueError):
            return None
        return (flops, bandwidth) if flops > 0 and bandwidth > 0 else None

    def keep_rates(self, machine: str, dtype: str, flops: float, bandwidth: float) -> None:
        self._keep(RATES, f"{machine} | {dtype}", {"flops": flops, "bandwidth": bandwidth})

    def limit(self, machine: str, fingerprint: str) -> int:
        """Sequences at once that were found best for a model on a machine; 0: never tuned."""
        found = self._read()[LIMITS].get(f"{machine} | {fingerprint}")
        value = found.get("sequences") if isinstance(found, dict) else None
        return value if type(value) is int and value > 0 else 0

    def keep_limit(
        self, machine: str, fingerprint: str, sequences: int, about: dict[str, Any]
    ) -> None:
        """about: how it was found, for people."""
        self._keep(LIMITS, f"{machine} | {fingerprint}", {"sequences": sequences, **about})

    def measured(self, what: str) -> list[list[float]]:
        """Measurements as they were kept; [] if there are none or they are damaged."""
        found: Any = self._read()[MEASURED].get(what)
        try:
            return [[float(value) for value in row] for row in found["rows"]]
        except (TypeError, KeyError, ValueError):
            return []

    def keep_measured(self, what: str, rows: list[list[float]]) -> None:
        self._keep(MEASURED, what, {"rows": rows})

    @property
    def path(self) -> Path:
        return self.home / "capacity.json"

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            read = json.loads(self.path.read_text(encoding="utf-8"))
            return {kind: dict(read.get(kind, {})) for kind in KINDS}
        except (OSError, ValueError, TypeError, AttributeError):
            return {kind: {} for kind in KINDS}

    def _keep(self, kind: str, key: str, value: dict[str, Any]) -> None:
        """Merge under a lock and replace the file whole. A home that cannot be written costs the
        memory, not the work."""
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            with self.path.with_suffix(".lock").open("a") as lock:
                if not _locked(lock):
                    log.warning("not remembered in %s: another process holds it", self.path)
                    return
                known = self._read()
                known[kind].pop(key, None)
                known[kind] = dict([*known[kind].items(), (key, value)][-MOST:])
                fd, temporary = tempfile.mkstemp(dir=self.home, prefix=".capacity-")
                with os.fdopen(fd, "w", encoding="utf-8") as handle:
                    json.dump({"version": 1, **known}, handle, indent=1)
                os.replace(temporary, self.path)
        except OSError as exc:
            log.warning("not remembered in %s: %s", self.path, exc)


def _locked(file: IO[str]) -> bool:
    """Whether it was to be had; one that was stopped with it, or a network's, may never be."""
    import fcntl

    until = time.monotonic() + LOCK_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(0.01)
