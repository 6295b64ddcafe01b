"""Every knob, once. Frozen sections; resolved from defaults, `$PREREAD_HOME/config.toml` and
environment variables (`PREREAD_<SECTION>_<KEY>`), in that order. Unknown keys are errors.

Imports only the standard library, so that `preread --help` can print defaults without torch.
"""

from __future__ import annotations

import math
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from preread.errors import ConfigError

# By kind of device, where nobody said or measured better: running at once, and tokens of a step.
SEQUENCES = {"cpu": 256, "cuda": 1024}
BATCH_TOKENS = {"cpu": 8192, "cuda": 32768}


@dataclass(frozen=True, slots=True)
class ModelConfigSection:
    """Which model, where and how it is computed."""

    model: str = "reader"  # "reader" (bundled), a local folder or a hub id
    dtype: str = "auto"  # auto | float32 | bfloat16 | float16; auto: as published (CPU: see docs)
    device: str = "auto"  # auto | cpu | cuda
    weights_precision: str = "full"  # full | int8, w8a8 (CPU) | fp8 (CUDA): not quite the same
    kv_precision: str = "full"  # full | int8 | fp8: of KV in memory; not quite the same model
    gpus: int = 1  # of this host, that share one model (tensor parallel); see docs/engine.md
    threads: int = 0  # CPU threads of torch, 0: leave as it is
    backend: str = "auto"  # auto | native | transformers | NAME[:URL] of docs/backends.md


@dataclass(frozen=True, slots=True)
class EngineSection:
    """Memory and step sizes of the local engine. Tokens unless said otherwise."""

    prefix_memory_mb: int = 0  # arena for prefixes, MiB; 0: a quarter of what is free
    suffix_memory_mb: int = (
        0  # of running sequences, MiB; 0: an eighth of what is free (CUDA: half)
    )
    extent_tokens: int = 256  # unit of the prefix arena
    page_tokens: int = 16  # unit of a sequence's own KV
    max_sequences: int = 0  # running at once; 0: what `preread tune` found, else 256 (CUDA: 1024)
    batch_tokens: int = 0  # most in one step; 0: 8192, on CUDA 32768 (docs/capacity.md)
    prefill_chunk: int = 2048  # tokens of one prefix computed per step
    shared_min_rows: int = 0  # sequences from which a segment gets a pass of its own; 0: by cost
    private_tokens: int = 512  # a prompt's own part from this length on lies in the prefix arena
    save_every_s: float = 10.0  # a long reading is saved this often, and taken up when killed
    lease_s: float = 600.0  # a prefix stays resident this long after its last use
    kernels: str = "auto"  # auto | stock: on CUDA, our own kernels or torch's calls alone
    graphs: bool = True  # CUDA graphs for decoding steps
    truth_check: bool = False  # run the arena's check() after every step (slow; tests)

    def limited(self, device: str, remembered: int = 0) -> EngineSection:
        """With a limit of running sequences and of the tokens of a step: as configured, else as
        remembered, else what suits the kind of device ("cpu" or "cuda")."""
        return replace(
            self,
            max_sequences=self.max_sequences or remembered or SEQUENCES[device],
            batch_tokens=self.batch_tokens or BATCH_TOKENS[device],
        )


@dataclass(frozen=True, slots=True)
class StoreSection:
    """Chunks and tiers."""

    chunk_tokens: int = 248  # most tokens in one chunk
    chunk_bytes: int = 2 * 1024 * 1024 - 64  # most bytes of one chunk, header included
    tiers: str = field(default="disk", repr=False)  # or PREREAD_TIERS: nearest first, store.md
    load: str = "auto"  # auto | always: what is quicker than computing it, or all that is kept
    behind_mb: int = 256  # MiB that may wait to be written to servers and buckets; more: slower
    drain_s: float = 30.0  # the end waits so long for that; what is then not written is said
    disk_budget_mb: int = 10_240  # MiB; of a disk tier whose URL says nothing else
    fsync: bool = True
    codec: str = "raw"  # raw | fp8 | int8: half the bytes, not quite the same KV (docs/store.md)
    tenant: str = "default"
    shared: str = ""  # a namespace instead: all tenants that name it share their chunks
    constant_time: bool = False  # there, a hit takes as long as a miss, and is told as one
    key: str = field(default="", repr=False)  # or PREREAD_KEY: seals chunks; docs/security.md
    key_file: str = ""  # a file of such keys instead, newest first
    catalog: str = field(default="", repr=False)  # URL of shared names (docs/store.md); "": home's


@dataclass(frozen=True, slots=True)
class ContextSection:
    """Fitting, splitting and routing."""

    answer_room: int = 512  # tokens kept free for the question
    max_tokens: int = 256  # default longest answer
    route_shards: int = 3  # shards asked when a context is split
    blend_share: float = 0.15  # of joined contexts, approximately: share that is computed again
    blend_by: str = "first"  # first | deviation: which tokens those are (docs/contexts.md)
    max_file_mb: int = 64  # one source file, MiB
    max_line_kb: int = 1024  # one line of a source, KiB
    busy_timeout_s: float = 30.0  # wait for another process's catalog transaction
    versions_kept: int = 3  # older versions of a name are dropped by gc


@dataclass(frozen=True, slots=True)
class ResidentSection:
    """`preread up`."""

    idle_s: float = 1800.0  # leaves after this long without a request
    connect_timeout_s: float = 0.25


@dataclass(frozen=True, slots=True)
class ProvidersSection:
    """Backends that are others' servers (docs/backends.md). Limits hold per organisation."""

    max_inflight: int = 256  # requests under way at once; fewer while the server says it is much
    timeout_s: float = 300.0  # of one request
    attempts: int = 6  # of one request, retries included
    rpm: int = 0  # requests per period; 0: as the response headers say
    tpm: int = 0  # tokens per period, input and output together; 0: as the headers say
    input_tpm: int = 0  # input tokens per period; 0: as the headers say
    output_tpm: int = 0  # output tokens per period; 0: as the headers say
    period_s: float = 60.0  # what these limits are per
    cache_ttl: str = "5m"  # 5m | 1h: how long Anthropic keeps what is marked; 1h costs more
    num_ctx: int = 0  # tokens of Ollama's context; 0: as its model's file says, else 8192
    explicit_cache: bool = False  # Gemini: cachedContents that are paid for by the hour
    keys_file: str = ""  # API keys, one a line, `key` or `organisation:key`; else the environment
    prices: str = ""  # a TOML table that is read before ours


@dataclass(frozen=True, slots=True)
class ResponsesSection:
    """The response cache: kept answers to the same requests, and to similar ones (docs/caches.md).
    Not the KV cache."""

    keep: bool = False  # answer the same request from what was answered before
    max_mb: int = 256  # MiB of answers; those not used for longest go first
    max_age_h: float = 720.0  # hours; older answers are not given
    embeddings: str = ""  # URL of an OpenAI-compatible server: similar questions too; "": off
    embedding_model: str = ""  # its model
    threshold: float = 0.95  # least cosine of a similar question; see its traps


@dataclass(frozen=True, slots=True)
class ServerSection:
    """`preread serve` (docs/server.md)."""

    host: str = "127.0.0.1"  # address to listen at; another than this machine's own needs a key
    port: int = 8000  # 0: any free one
    name: str = ""  # what requests call the model itself; "": the model's name, or its folder's
    key: str = field(default="", repr=False)  # of those who may ask, as this process's tenant
    keys_file: str = ""  # such keys instead, one a line: tenant:key
    max_requests: int = 512  # of a tenant, under way at once; more are refused (429)
    max_body_mb: int = 8  # MiB of one request
    read_s: float = 30.0  # a client may take so long to send its request
    write_s: float = 60.0  # and so long to take a piece of the answer
    refresh_s: float = 60.0  # sources of a context in use are compared this often; 0: when opened
    drain_s: float = 30.0  # at the end requests under way have so long


@dataclass(frozen=True, slots=True)
class Config:
    """All sections and the home folder."""

    home: Path
    model: ModelConfigSection = field(default_factory=ModelConfigSection)
    engine: EngineSection = field(default_factory=EngineSection)
    store: StoreSection = field(default_factory=StoreSection)
    context: ContextSection = field(default_factory=ContextSection)
    resident: ResidentSection = field(default_factory=ResidentSection)
    providers: ProvidersSection = field(default_factory=ProvidersSection)
    responses: ResponsesSection = field(default_factory=ResponsesSection)
    server: ServerSection = field(default_factory=ServerSection)


# Variables with a name of their own, and knobs whose value no message shows.
SHORT = {"PREREAD_KEY": ("store", "key"), "PREREAD_TIERS": ("store", "tiers")}
SECRET = ("store.key", "store.catalog", "server.key")
SECTIONS = ("model", "engine", "store", "context", "resident", "providers", "responses", "server")


def default_home(env: Mapping[str, str] | None = None) -> Path:
    """`$PREREAD_HOME`, else `$XDG_DATA_HOME/preread`, else `~/.local/share/preread`."""
    env = os.environ if env is None else env
    if home := env.get("PREREAD_HOME"):
        return Path(home).expanduser().absolute()
    base = env.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(base).expanduser().absolute() / "preread"


def local_model(model: str) -> str:
    """A model folder as an absolute path, so that two processes mean the same; "reader" and hub ids
    as they are."""
    folder = os.path.abspath(os.path.expanduser(model))
    return folder if model not in ("", "reader") and os.path.isdir(folder) else model


def load_config(home: Path | None = None, env: Mapping[str, str] | None = None) -> Config:
    """Resolve the configuration. Raises ConfigError naming key, value and expected type."""
    env = os.environ if env is None else env
    config = Config(home=home or default_home(env))
    path = config.home / "config.toml"
    if path.is_file():
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
            raise ConfigError(f"{path}: not valid TOML: {exc}.", hint="Mend or remove it.") from exc
        except OSError as exc:
            raise ConfigError(
                f"{path}: cannot be read: {exc.strerror or exc}.", hint="Mend its permissions."
            ) from exc
        config = _apply(config, table, str(path))
    return _apply_env(config, env)


def _apply(config: Config, table: Mapping[str, Any], where: str) -> Config:
    for name, values in table.items():
        if name not in SECTIONS or not isinstance(values, dict):
            raise ConfigError(
                f"{where}: unknown section [{name}].", hint=f"Sections: {', '.join(SECTIONS)}."
            )
        for key, value in values.items():
            config = _set(config, name, key, value, where)
    return config


def _apply_env(config: Config, env: Mapping[str, str]) -> Config:
    for variable, (section, key) in SHORT.items():
        if variable in env:
            config = _set(config, section, key, env[variable], f"${variable}")
    for section in SECTIONS:
        prefix = f"PREREAD_{section.upper()}_"
        for variable, value in env.items():
            if variable.startswith(prefix):
                key = variable.removeprefix(prefix).lower()
                config = _set(config, section, key, value, f"${variable}")
    return config


def _set(config: Config, section: str, key: str, value: Any, where: str) -> Config:
    current = getattr(config, section)
    types = get_type_hints(type(current))
    if key not in types:
        known = ", ".join(f.name for f in fields(current))
        raise ConfigError(f"{where}: unknown key {section}.{key}.", hint=f"Keys: {known}.")
    changed = replace(current, **{key: _typed(value, types[key], f"{section}.{key}", where)})
    return replace(config, **{section: changed})


def _typed(value: Any, kind: type, key: str, where: str) -> Any:
    try:
        if kind is bool:
            if isinstance(value, bool):
                return value
            return {"1": True, "true": True, "0": False, "false": False}[str(value).lower()]
        if kind is str and not isinstance(value, str):
            raise ValueError
        if kind in (int, float) and isinstance(value, bool):
            raise ValueError
        result = kind(value)
        if kind is int and isinstance(value, float) and result != value:
            raise ValueError  # 2.7 is not 2
        if kind in (int, float) and not 0 <= result < math.inf:  # nor is NaN a time
            raise ValueError
        return result
    except (ValueError, KeyError, TypeError, OverflowError):
        shown = "…" if key in SECRET else repr(value)
        raise ConfigError(
            f"{where}: {key} = {shown}, expected a non-negative {kind.__name__}."
            if kind in (int, float)
            else f"{where}: {key} = {shown}, expected {kind.__name__}.",
            hint="See docs/config.md.",
        ) from None
