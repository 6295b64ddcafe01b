"""A limit of money or tokens that a run keeps to: what may still come is reserved before it is
sent, and given back when what came is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

from preread.backend import Billed
from preread.batch.order import Order
from preread.batch.schema import Waiting
from preread.batch.tally import Tally
from preread.prices import Prices

MARGIN = 1.25  # on estimated tokens of a row's own text
KEPT = 1 << 16  # prefixes remembered
ROOM = 16  # tokens on top, for a template


class Reserved(NamedTuple):
    """tokens: computed and output."""

    money: float
    tokens: int

    def plus(self, more: Reserved) -> Reserved:
        return Reserved(self.money + more.money, self.tokens + more.tokens)

    def minus(self, less: Reserved) -> Reserved:
        return Reserved(self.money - less.money, self.tokens - less.tokens)


NONE = Reserved(0.0, 0)


@dataclass(slots=True)
class Budget:
    """money: in the backend's currency; tokens: computed + output; None is no limit. The money and
    tokens that a tally shows never exceed them, as far as requests take what they are estimated to
    take at most: all of their prompt computed, and the longest answer.

    Backends that bill each request have it reserved before it is sent (`hold`), at its most, and
    until it is known what it was, or counts in the tally as in doubt. Rows are reserved for by
    block (`admit`), so that no more are begun than there is money for, and because other backends
    do not ask: a beginning that was read in this run counts as cached from then on, at what it has
    cost on average since. per_char, per_row: see Forecast."""

    money: float | None = None
    tokens: int | None = None
    per_char: float = 0.5
    per_row: float = 16.0
    _held: Reserved = NONE  # for blocks
    _sent: Reserved = NONE  # for requests of theirs
    _seen: dict[bytes, list[int]] = field(default_factory=dict)  # prefix -> rows, computed tokens

    @property
    def limited(self) -> bool:
        return self.money is not None or self.tokens is not None

    def admit(
        self, rows: Sequence[Waiting], order: Order, head: int, tally: Tally
    ) -> tuple[int, Reserved]:
        """How many of the rows, all on a prefix of `head` tokens, may be sent, and what that
        reserves until `release`."""
        one, other = self._held, self._sent
        held = Reserved(max(one.money, other.money), max(one.tokens, other.tokens))
        left_money, left_tokens = self._left(tally, held)
        money, tokens, n = 0.0, 0, 0
        for row in rows:
            at_most = self._at_most(row, order, head, tally.prices)
            if money + at_most.money > left_money or tokens + at_most.tokens > left_tokens:
                break
            money, tokens, n = money + at_most.money, tokens + at_most.tokens, n + 1
        taken = Reserved(money, tokens)
        self._held = self._held.plus(taken)
        return n, taken

    def release(self, taken: Reserved) -> None:
        """A block is over."""
        self._held = self._held.minus(taken)

    def hold(self, most: tuple[int, int], tally: Tally) -> Reserved | None:
        """Reserve until `let_go` for one request of (input, output) tokens at most; None: there is
        no room."""
        if not self.limited:
            return NONE
        taken = self.at_most(most, tally.prices)
        left_money, left_tokens = self._left(tally, self._sent)
        if taken.money > left_money or taken.tokens > left_tokens:
            return None
        self._sent = self._sent.plus(taken)
        return taken

    def let_go(self, taken: Reserved) -> None:
        self._sent = self._sent.minus(taken)

    def at_most(self, most: tuple[int, int], prices: Prices | None) -> Reserved:
        """What so many tokens cost at most."""
        return Reserved(prices.most(*most) if prices else 0.0, sum(most))

    def price(self, counts: Billed, prices: Prices | None) -> Reserved:
        """What was billed; nothing where nothing is limited."""
        if not self.limited:
            return NONE
        cached, computed, output, written = counts
        money = prices.of(computed, cached, output, written) if prices else 0.0
        return Reserved(money, computed + output)

    def _left(self, tally: Tally, held: Reserved) -> tuple[float, float]:
        """Money and tokens that are neither spent, nor in doubt, nor held."""
        spent = tally.computed + tally.output + tally.unsure + held.tokens
        paid = tally.money + tally.unsure_money + held.money
        money = inf if self.money is None else self.money - paid
        return money, inf if self.tokens is None else self.tokens - spent

    def saw(self, prefix: bytes, computed: int) -> None:
        """A row on a prefix has ended well."""
        if len(self._seen) >= KEPT:
            self._seen.clear()
        seen = self._seen.setdefault(prefix, [0, 0])
        seen[0] += 1
        seen[1] += computed

    def _at_most(self, row: Waiting, order: Order, head: int, prices: Prices | None) -> Reserved:
        own = round((self.per_row + self.per_char * row.chars) * MARGIN) + ROOM
        seen = self._seen.get(row.prefix)
        computed = head + own
        if seen is not None:
            computed = min(computed, max(own, round(seen[1] / seen[0] * MARGIN)))
        cached = head + own - computed
        tokens = computed + order.most_output
        if prices is None:
            return Reserved(0.0, tokens)
        dear = max(prices.computed, prices.written)
        money = computed * dear + cached * prices.cached + order.most_output * prices.output
        return Reserved(money / 1e6, tokens)
