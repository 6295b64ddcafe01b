"""Hints of a catalog that sends none: whoever waits looks for himself, at his own pace."""

from __future__ import annotations

import threading


class NoHints:
    """See base.Hints."""

    def __init__(self) -> None:
        self._closed = threading.Event()

    def wait(self, seconds: float) -> None:
        self._closed.wait(seconds)

    def close(self) -> None:
        self._closed.set()
