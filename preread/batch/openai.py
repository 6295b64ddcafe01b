"""OpenAI's batch file: a line `{"custom_id", "method", "url", "body"}` per request.

Format: https://platform.openai.com/docs/api-reference/batch. Two urls are understood; fields that
would change an answer and that we cannot honour are refused by name, never left out in silence.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from preread.batch.bodies import (
    LABELS,
    Defaults,
    Wrong,
    conversation,
    generate,
    must,
    one_prompt,
    without_neutral,
)
from preread.batch.files import expand, lines, parsed
from preread.batch.order import Order
from preread.batch.table import BLOCK, Faults, Rows
from preread.types import Prefix

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
FORMS = {CHAT: "chat", COMPLETION: "completion"}
LINE = ("custom_id", "method", "url", "body")
KEPT = 4096  # different options and prefixes remembered while reading


class BatchFile:
    """See batch.table.Table."""

    fan = 1
    fixed = 0
    columns: Sequence[str] = ()

    def __init__(self, patterns: Sequence[str], defaults: Defaults) -> None:
        self._names = expand(patterns)
        self._defaults = defaults
        self._orders: dict[str, Order] = {}
        self._prefixes: dict[Prefix, Prefix] = {}

    @property
    def files(self) -> list[str]:
        return self._names

    def read(self, faults: Faults) -> Iterator[Rows]:
        rows = Rows()
        for number, name in enumerate(self._names):
            for at, text in lines(number, name, faults):
                if (value := parsed(text, name, at, faults)) is None:
                    continue
                try:
                    self._add(rows, (number, at), value, faults)
                except Wrong as exc:
                    faults.add(name, at, *exc.args)
                except RecursionError:
                    faults.add(name, at, "body", "is nested too deeply")
                if len(rows) >= BLOCK:
                    yield rows
                    rows = Rows()
        if len(rows):
            yield rows

    def _add(self, rows: Rows, at: tuple[int, int], line: dict[str, Any], faults: Faults) -> None:
        if unknown := [name for name in line if name not in LINE]:
            raise Wrong(unknown[0], f"unknown; a line has {', '.join(LINE)}")
        fields: list[Any] = [line.get(field) for field in LINE]
        name, method, url, body = fields
        must(isinstance(name, str) and name != "", "custom_id", name, "a text that is not empty")
        must(method == "POST", "method", method, '"POST"')
        must(url in FORMS, "url", url, " or ".join(FORMS))
        must(isinstance(body, dict), "body", body, "an object")
        given = {key: value for key, value in body.items() if value is not None}
        for label in LABELS:
            if given.pop(label, None) is not None:
                faults.note(f"body.{label} labels a request and was not passed on")
        try:
            if url == CHAT:
                prefix, text = conversation(given.pop("messages", None))
            else:
                prefix, text = Prefix(""), one_prompt(given.pop("prompt", None))
            order = self._order(url, given)
        except Wrong as exc:
            field, what = exc.args
            raise Wrong(f"body.{field}", what) from None
        prefix = self._prefixes.setdefault(prefix, prefix)
        if len(self._prefixes) > KEPT:
            self._prefixes.clear()
        rows.add(at, order, prefix, text, id=name)

    def _order(self, url: str, given: dict[str, Any]) -> Order:
        """Of what is left of a body; the same object for the same options."""
        key = url + json.dumps(given, sort_keys=True)
        found = self._orders.get(key)
        if found is None:
            if len(self._orders) > KEPT:
                self._orders.clear()
            found = self._orders[key] = self._read(url, given)
        return found

    def _read(self, url: str, given: dict[str, Any]) -> Order:
        without_neutral(given)
        model = given.pop("model", None)
        must(isinstance(model, str) and model != "", "model", model, "a text")
        work = generate(given, self._defaults)
        if given:
            raise Wrong(next(iter(given)), "is not supported; remove it")
        return Order(self._defaults.model or model, work, raw=url == COMPLETION, form=FORMS[url])
