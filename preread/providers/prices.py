"""What a model costs and how it caches, from a small dated table; a model that is not in it has no
price, and that is said rather than guessed."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from preread.errors import ConfigError
from preread.prices import Prices

NUMBERS = ("computed", "cached", "written", "written_1h", "output", "limit", "min_prefix")


@dataclass(frozen=True, slots=True)
class Listed:
    """What the table says of a model. limit: tokens, 0: nothing; min_prefix: -1: nothing."""

    prices: Prices | None = None
    limit: int = 0
    min_prefix: int = -1


def listed(
    provider: str, model: str, file: str = "", *, own: bool = True, hour: bool = False
) -> Listed:
    """The entry whose name is the longest beginning of the model's, in `file` if it has one there,
    else (own) in our table. hour: a cache write that lasts an hour. Raises ConfigError for a bad
    file."""
    for table, where in _tables(file, own):
        models = table.get(provider, {})
        if not isinstance(models, dict):
            raise ConfigError(f"{where}: [{provider}] is no table.", hint="See docs/backends.md.")
        names = [name for name in models if model == name or model.startswith(name)]
        if names:
            name = max(names, key=len)
            return _entry(table, models[name], f"{where}: [{provider}.{name}]", hour)
    return Listed()


def _tables(file: str, own: bool) -> list[tuple[dict[str, Any], str]]:
    text = files("preread.providers").joinpath("prices.toml").read_text(encoding="utf-8")
    tables = [(tomllib.loads(text), "prices.toml")] if own else []
    if file:
        try:
            text = Path(file).expanduser().read_text(encoding="utf-8")
            tables.insert(0, (tomllib.loads(text), file))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
            raise ConfigError(f"{file}: {exc}.", hint="Mend providers.prices.") from exc
    return tables


def _entry(table: dict[str, Any], entry: Any, where: str, hour: bool) -> Listed:
    if not isinstance(entry, dict):
        raise ConfigError(f"{where} is no table.", hint="See docs/backends.md.")
    for key, value in entry.items():
        good = isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
        if key not in NUMBERS or not good:
            raise ConfigError(
                f"{where}: {key} = {value!r}.", hint=f"Keys: {', '.join(NUMBERS)}; numbers >= 0."
            )
    prices = None
    if {"computed", "cached", "output"} <= entry.keys():
        computed = float(entry["computed"])
        written = float(entry.get("written", computed))
        prices = Prices(
            computed,
            float(entry["cached"]),
            float(entry.get("written_1h", written)) if hour else written,
            float(entry["output"]),
            str(table.get("currency", "USD")),
            str(table.get("as_of", "")),
        )
    return Listed(prices, int(entry.get("limit", 0)), int(entry.get("min_prefix", -1)))
