"""The error tree. Every message ends with the next thing to do.

PrereadError
├── UsageError                 the call was wrong; nothing was spent           (exit 2)
│   ├── ConfigError            a knob: key, value and expected type are named
│   ├── UnknownName            no context, session, model or label of that name
│   ├── SourceError            a document: file and line are named
│   ├── ContextTooLong         tokens, limit and the shard plan are named
│   └── RequestError           a request: row and field are named
├── ModelError                 a model folder that cannot be used              (exit 2)
│   ├── ModelNotFound
│   ├── UnsupportedModel       the decoder would not compute it exactly
│   └── BadCheckpoint          missing, half-written or unsafe files
├── StateError                 the home folder, the catalog or a tier          (exit 1)
│   ├── HomeError              not writable, not readable, foreign
│   ├── CatalogConflict        another writer was first; retryable
│   ├── TierError              a tier failed; the engine recomputes instead
│   └── Resumable              stopped before the end; what was done is kept      (exit 4)
└── EngineError                                                               (exit 1)
    ├── OutOfMemory            what was asked does not fit, with the plan
    ├── GroupLost              one of several GPUs is gone; the engine has ended
    ├── ProviderError          somebody else's server refused, or cannot be reached
    └── Cancelled
"""

from __future__ import annotations


class PrereadError(Exception):
    """Root of everything preread raises on purpose.

    message: what is wrong, naming file, line, field or key. hint: the next command or edit; it is
    appended to the text. retryable: the same call may succeed later without a change.
    """

    exit_code: int = 1
    retryable: bool = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        self.message = message
        self.hint = hint
        super().__init__(f"{message} {hint}".rstrip())


class UsageError(PrereadError):
    """The call was wrong; nothing was computed and nothing was written."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration key is unknown or its value has the wrong type or range."""


class UnknownName(UsageError):
    """No context, session, model or version of that name."""


class SourceError(UsageError):
    """A document cannot be read: the message names file, line and what was expected."""


class ContextTooLong(UsageError):
    """The prompt does not fit the model; the message names tokens and limit."""


class RequestError(UsageError):
    """A request is malformed: the message names the row and the field."""


class ModelError(PrereadError):
    """A model cannot be used."""

    exit_code = 2


class ModelNotFound(ModelError):
    """Neither a folder with a config.json nor a hub id that can be reached."""


class UnsupportedModel(ModelError):
    """The decoder would not compute this architecture exactly, so it refuses."""


class BadCheckpoint(ModelError):
    """Weight or config files are missing, damaged, half-written or of an unsafe kind."""


class StateError(PrereadError):
    """Something on disk or in a tier is not as it must be."""


class HomeError(StateError):
    """The home folder cannot be used."""


class CatalogConflict(StateError):
    """Another writer changed the name first."""

    retryable = True


class TierError(StateError):
    """A tier failed or was too slow. Never fatal to a request: the tokens are recomputed."""

    retryable = True


class Resumable(StateError):
    """A run stopped before its end and lost nothing: the same command with --resume goes on."""

    exit_code = 4
    retryable = True


class EngineError(PrereadError):
    """The engine could not finish a request."""


class OutOfMemory(EngineError):
    """The request cannot fit even alone; the message names need and budget."""


class GroupLost(EngineError):
    """A device of a group is gone, or no longer in step with the others."""


class ProviderError(EngineError):
    """Somebody else's server refused a request or cannot be reached; no key is ever shown."""


class Cancelled(EngineError):
    """The request was cancelled by its caller."""
