"""preread: give the model its pre-read once; ask it anything, any number of times.

import preread
engine = preread.open()
handbook = engine.context("handbook", "docs/")
print(handbook.ask("When does the warranty end?").text)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from preread.app import (
        AnswerOptions,
        Answers,
        AsyncContext,
        AsyncEngine,
        Context,
        Engine,
        Session,
        open,
    )
    from preread.app.serving import serve
    from preread.contexts.choices import Choices
    from preread.errors import PrereadError
    from preread.types import (
        Choice,
        Citation,
        Completion,
        Finish,
        Likelihood,
        Message,
        Prefix,
        Sampling,
        Timing,
        Usage,
    )

__version__ = "0.1.0"
__all__ = [
    "AnswerOptions",
    "Answers",
    "AsyncContext",
    "AsyncEngine",
    "Choice",
    "Choices",
    "Citation",
    "Completion",
    "Context",
    "Engine",
    "Finish",
    "Likelihood",
    "Message",
    "Prefix",
    "PrereadError",
    "Sampling",
    "Session",
    "Timing",
    "Usage",
    "open",
    "serve",
]
_HOME = {
    **dict.fromkeys(
        (
            "AnswerOptions",
            "Answers",
            "AsyncContext",
            "AsyncEngine",
            "Context",
            "Engine",
            "Session",
            "open",
        ),
        "preread.app",
    ),
    "Choices": "preread.contexts.choices",
    "PrereadError": "preread.errors",
    "serve": "preread.app.serving",
}


def __getattr__(name: str) -> Any:
    """Import lazily: `import preread` costs nothing, the first use imports what it needs."""
    if name not in __all__:
        raise AttributeError(f"module 'preread' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME.get(name, "preread.types")), name)
