"""Running requests as columns: index = slot. No object per request, none per token.

A slot's own tokens (its part of the prompt, then its output) lie in `tokens[slot, :known]`; the KV
of the first `computed` of them lies in the pages `table[slot, :held[slot]]`. What comes before them
is the branch of the prefix tree that the row stands on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

from preread.engine.pages import Pages
from preread.tokens.batch import Kind, Matcher
from preread.tokens.ragged import ranges

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from preread.types import Float32Array, Int32Array, Int64Array

_T = TypeVar("_T", bound=np.generic)

# parked: preempted, holds no pages, will be computed again; ending: its last step was launched, but
# what it says is not here yet.
FREE, RUNNING, PARKED, ENDING = range(4)


class Sequences:
    """Integer columns, all [slots]: job, row; queue: its context, see turns.py; branch, base (its
    length); prompt: own tokens that came with the request; known: own tokens to compute; computed:
    of those, done (KV in pages); done: output tokens, also those still on the device; written: of
    those, known here; max_new: most of them; born: admission order;
    held: pages; paid: tokens of the branch that its usage counts as computed; context: its prefix
    length, for usage alone; extra: label nodes that its last token brings with it; told: output
    tokens that its reader knows. first: when the first one came. scores: log-probabilities of a
    label trie's edges, of a continuation, or of the output if asked for."""

    job: Int64Array
    row: Int64Array
    queue: Int64Array
    branch: Int64Array
    base: Int64Array
    prompt: Int64Array
    known: Int64Array
    computed: Int64Array
    done: Int64Array
    max_new: Int64Array
    born: Int64Array
    held: Int64Array
    paid: Int64Array
    context: Int64Array
    extra: Int64Array
    told: Int64Array
    written: Int64Array

    def __init__(self, slots: int, pages: Pages) -> None:
        self._pages = pages
        self.state = np.zeros(slots, np.int8)
        self.kind = np.zeros(slots, np.int8)
        self.keep = np.zeros(slots, bool)
        self.dirty = np.zeros(slots, bool)  # see `unseen`
        (
            self.job, self.row, self.queue, self.branch, self.base, self.prompt, self.known,
            self.computed, self.done, self.max_new, self.born, self.held, self.paid, self.context,
            self.extra, self.told, self.written,
        ) = np.zeros((17, slots), np.int64)  # fmt: skip
        self.first = np.zeros(slots, np.float64)
        self.temperature = np.zeros(slots, np.float32)
        self.top_p = np.ones(slots, np.float32)
        self.top_k = np.zeros(slots, np.int64)
        self.seed = np.zeros(slots, np.uint64)
        self.logprobs = np.zeros(slots, bool)
        self.agree = np.ones(slots, bool)  # likelihood: every target so far was the arg-max
        self.tokens = np.zeros((slots, 64), np.int32)
        self.table = np.zeros((slots, 8), np.int32)
        self.scores = np.zeros((slots, 8), np.float32)
        self.matchers: dict[int, Matcher] = {}
        self._births = 0

    def __len__(self) -> int:
        return len(self.state)

    @property
    def running(self) -> Int64Array:
        """Running slots, oldest first."""
        slots = np.flatnonzero(self.state == RUNNING)
        return slots[np.argsort(self.born[slots], kind="stable")]

    @property
    def parked(self) -> Int64Array:
        """Preempted slots, oldest first."""
        slots = np.flatnonzero(self.state == PARKED)
        return slots[np.argsort(self.born[slots], kind="stable")]

    def open(self, count: int, width: int, scores: int) -> Int64Array:
        """Take `count` free slots, with columns wide enough for `width` own tokens."""
        slots = np.flatnonzero(self.state == FREE)[:count]
        assert len(slots) == count, "more rows admitted than there are slots"
        self.tokens = _widened(self.tokens, width)
        self.scores = _widened(self.scores, scores)
        self.state[slots] = RUNNING
        for column in (
            self.computed, self.done, self.held, self.paid, self.told, self.written,
        ):  # fmt: skip
            column[slots] = 0
        self.agree[slots], self.dirty[slots] = True, False
        self.born[slots] = np.arange(self._births, self._births + count)
        self._births += count
        return slots

    def last_step(self, slots: Int64Array, counts: Int64Array) -> NDArray[np.bool_]:
        """Whether the next `counts` tokens are the last that these rows need."""
        whole = self.computed[slots] + counts == self.known[slots]
        once = (self.kind[slots] != Kind.GENERATE) | (self.done[slots] + 1 >= self.max_new[slots])
        last: NDArray[np.bool_] = whole & once & ~self.keep[slots]
        return last

    def stores(self, slots: Int64Array, counts: Int64Array) -> NDArray[np.bool_]:
        """Whether the next `counts` tokens' KV must go to pages: not that of a row's last step,
        unless it decodes (its attention reads the token from its page)."""
        decodes = (self.computed[slots] > 0) & (counts == 1)
        stores: NDArray[np.bool_] = ~self.last_step(slots, counts) | decodes
        return stores

    def pages_needed(self, slots: Int64Array, counts: Int64Array) -> Int64Array:
        """Pages to add for the next `counts` tokens of each slot."""
        total = -(-(self.computed[slots] + counts) // self._pages.page_tokens)
        need = np.maximum(total - self.held[slots], 0)
        return np.where(self.stores(slots, counts), need, 0)

    def grow(self, slots: Int64Array, need: Int64Array) -> None:
        """Take `need` pages for each slot; there must be enough."""
        if total := int(need.sum()):
            slots, need = slots[need > 0], need[need > 0]
            held = self.held[slots]
            self.table = _widened(self.table, int((held + need).max()))
            place = ranges(slots * self.table.shape[1] + held, need)
            self.table.reshape(-1)[place] = self._pages.take(total)
            self.held[slots] = held + need

    def pages_of(self, slot: int) -> Int32Array:
        return self.table[slot, : self.held[slot]]

    def drop_pages(self, slot: int, *, scrub: bool = False) -> None:
        self._pages.give(self.pages_of(slot), scrub=scrub)
        self.held[slot] = 0

    def park(self, slot: int) -> None:
        """Preempt: free the pages, keep the tokens; they are computed again later."""
        self.drop_pages(slot, scrub=True)
        self.computed[slot] = 0
        self.state[slot] = PARKED

    def close(self, slots: Int64Array, *, scrub: bool = False) -> None:
        """Free slots and their pages. scrub: see Pages.give."""
        held = self.held[slots]
        if most := int(held.max(initial=0)):
            used = np.arange(most) < held[:, None]
            self._pages.give(self.table[slots, :most][used], scrub=scrub)
            self.held[slots] = 0
        self.state[slots] = FREE
        for slot in slots.tolist() if self.matchers else ():
            self.matchers.pop(slot, None)

    def promise(self, slots: Int64Array) -> None:
        """One new output token per slot, which the device knows already: -1 - i stands for the
        i-th that the step before has chosen."""
        self.tokens[slots, self.known[slots]] = -1 - np.arange(len(slots))
        self.known[slots] += 1
        self.done[slots] += 1

    def write(
        self, slots: Int64Array, tokens: Int32Array, logprobs: Float32Array, now: float
    ) -> None:
        """The next promised token of each slot is here, at this time."""
        at = self.written[slots]
        self.tokens[slots, self.prompt[slots] + at] = tokens
        asked = self.logprobs[slots]
        if asked.any():
            self.scores[slots[asked], at[asked]] = logprobs[asked]
        self.first[slots[at == 0]] = now
        self.written[slots] = at + 1

    def unseen(self, slots: Int64Array) -> NDArray[np.bool_]:
        """Whether a step under way, or one whose outcome nobody looks at, wrote to their pages."""
        unseen: NDArray[np.bool_] = self.dirty[slots] | (self.done[slots] > self.written[slots])
        return unseen

    def retract(self, slots: Int64Array) -> None:
        """What was promised after the last written token does not come."""
        self.dirty[slots] = self.done[slots] > self.written[slots] + 1
        known = self.prompt[slots] + self.written[slots]
        self.done[slots], self.known[slots] = self.written[slots], known
        self.computed[slots] = np.minimum(self.computed[slots], known)

    def check(self) -> None:
        """Verify pages and counts. Raises AssertionError."""
        live = np.flatnonzero(self.state != FREE)
        self._pages.check(self.pages_of(slot) for slot in live.tolist())
        idle = (self.state == FREE) | (self.state == PARKED)
        assert (self.held[idle] == 0).all(), "a row that is not running has pages"
        assert (self.written[live] <= self.done[live]).all(), "a token nobody promised"
        assert (self.computed[live] <= self.known[live]).all()
        goes_on = np.flatnonzero(self.state == RUNNING)  # the last step's KV is kept by nobody
        room = self.held[goes_on] * self._pages.page_tokens
        assert (self.computed[goes_on] <= room).all(), "KV without a page"
        assert set(self.matchers) <= set(live.tolist()), "a matcher outlived its row"


def _widened(array: NDArray[_T], width: int) -> NDArray[_T]:
    """The same columns with room for `width`, doubling."""
    if width <= array.shape[1]:
        return array
    out = np.zeros((len(array), max(width, 2 * array.shape[1])), array.dtype)
    out[:, : array.shape[1]] = array
    return out
