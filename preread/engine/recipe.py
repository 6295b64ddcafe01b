"""How a prefix is put together from parts that were read alone: which tokens come from where, and
under which name the tree knows it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING

from preread.blends import Blend
from preread.engine.marks import Marks
from preread.engine.prefix import common
from preread.engine.stretches import Stretch, stretches
from preread.errors import RequestError
from preread.models.chat import ChatTemplate
from preread.tokens.requests import Part
from preread.types import Prefix

if TYPE_CHECKING:
    from preread.types import Int32Array

REMEMBERED = 32  # recipes


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a prefix is put together. tokens: its own, the first approximate one replaced by a name;
    real: without that; head: how many it begins with of the first part; end: of documents and
    template: what follows, a history, is computed as ever. parts: tokens of each."""

    tokens: Int32Array
    real: Int32Array
    parts: tuple[Int32Array, ...]
    found: tuple[Stretch, ...]
    head: int
    end: int
    blend: Blend


class Recipes:
    """Of one model. Thread-safe."""

    def __init__(self, chat: ChatTemplate, marks: Marks) -> None:
        self._chat = chat
        self._marks = marks
        self._guard = threading.Lock()
        self._recipes: OrderedDict[Prefix, Recipe] = OrderedDict()

    def of(self, prefix: Prefix) -> Recipe:
        """Raises RequestError when the prefix names no parts."""
        with self._guard:
            if prefix in self._recipes:
                self._recipes.move_to_end(prefix)
                return self._recipes[prefix]
        recipe = self._made(prefix)
        with self._guard:
            self._recipes[prefix] = recipe
            while len(self._recipes) > REMEMBERED:
                self._recipes.popitem(last=False)
        return recipe

    def _made(self, prefix: Prefix) -> Recipe:
        blend = prefix.blend
        if blend is None or not blend.parts or not 0 <= blend.share <= 1:
            raise RequestError(
                "A blend has at least one part and a share between 0 and 1.",
                hint="See preread.types.Blend.",
            )
        whole = self._chat.prefix(Prefix(prefix.system))
        real = self._chat.prefix(replace(prefix, blend=None))
        parts = [self._chat.prefix(Prefix(text)) for text in blend.parts]
        parts.sort(key=lambda part: -common(whole, part))  # the first one is its beginning
        # The template's own text between documents and question is nobody's document.
        tail = min(common(whole[::-1], part[::-1]) for part in parts)
        end = common(whole, real)
        body = whole[: min(len(whole) - tail, end)]
        head = common(body, parts[0])
        later = [part[: len(part) - tail] for part in parts[1:]]
        found = tuple(s._replace(part=s.part + 1) for s in stretches(body, later, head))
        tokens = real
        if found:
            last = found[-1].at + found[-1].tokens
            identity = sha256(repr((blend.share, blend.by, head, found)).encode())
            for array in (body[:last], *parts):
                identity.update(len(array).to_bytes(8, "little") + array.tobytes())
            tokens = real.copy()
            tokens[head] = self._marks.name(identity.digest(), int(real[head]))
        return Recipe(tokens, real, tuple(parts), found, head, end, blend)

    def suffix(self, prefix: Prefix, question: str) -> tuple[int, Int32Array]:
        """See ChatTemplate.suffix."""
        return self._chat.suffix(prefix, question)

    def marked(self, part: Part) -> Part:
        """The rows of a request, under the name if their prefix is a blend. Without reuse they are
        exact, and stay as they are."""
        if part.prefix is None or part.asked is None or part.asked.blend is None:
            return part
        recipe = self.of(part.asked)
        groups = [_under(recipe, group) for group in part.batch.groups]
        batch = replace(part.batch, groups=groups, named=True)
        return replace(part, prefix=recipe.tokens, batch=batch)


def _under(recipe: Recipe, group: Int32Array) -> Int32Array:
    """A beginning of rows, under the name where it reaches so far."""
    if not recipe.found or len(group) <= recipe.head:
        return group
    named = group.copy()
    named[recipe.head] = recipe.tokens[recipe.head]
    return named
