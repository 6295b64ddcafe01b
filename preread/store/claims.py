"""Who computes a prefix that several processes want at once: the waist between builder and medium.

A claim is a hint about work, never about data: with a lost one the same KV is computed twice.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class Claims(Protocol):
    """Thread-safe; one owner per object. Raises HomeError or TierError when it cannot be asked,
    and then nobody should wait."""

    def take(self, key: str, ttl_s: float) -> bool:
        """Whether the work named `key` is this owner's for `ttl_s` from now: nobody has it, its
        owner's time is over, or it is this owner's already, whose time then begins anew."""
        ...

    def drop(self, key: str) -> None:
        """Done, or given up. What is another's stays."""
        ...
