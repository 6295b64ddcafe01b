"""What a dialect is: how one API is asked, answered, counted and warmed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from preread.backend import Attempt, Billed, RequestBatch, Spending, Work
from preread.providers.usage import Counts
from preread.types import Finish, Message


@dataclass(frozen=True, slots=True)
class Traits:
    """How an API reuses what it has read. min_prefix: tokens, shorter beginnings never; firsts: how
    many requests of a group go alone before the rest can hit; ttl_s: how long it remembers after
    the last use, 0: for ever; cached_limited: tokens from the cache count against token limits;
    burst: the share of a minute's limit that it takes at once; refills: its documentation says that
    limits refill evenly (else headers may show it)."""

    min_prefix: int = 0
    firsts: int = 1
    ttl_s: float = 0.0
    cached_limited: bool = True
    burst: float = 1.0
    refills: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """What a server said about itself and its model when it was first asked. limit: tokens, 0: not
    known; counts: it counts tokens for nothing; exact: to the token; slots: requests that it runs
    at once while others wait there, 0: not known; notes: what the user should know."""

    model: str
    limit: int = 0
    counts: bool = False
    exact: bool = False
    server: str = ""
    slots: int = 0
    notes: tuple[str, ...] = ()


class Unbilled:
    """An attempt that nobody counts. See preread.backend.Attempt."""

    def sent(self) -> bool:
        return True

    def free(self) -> None:
        return

    def billed(self, counts: Billed) -> None:
        return

    def over(self) -> None:
        return


UNBILLED = Unbilled()


@dataclass(slots=True)
class Flight:
    """A row's requests: how many are under way, whether no more are sent, and who pays."""

    spending: Spending | None = None
    row: int = 0
    under_way: int = 0
    grounded: bool = False

    async def attempt(self, most: tuple[int, int]) -> Attempt | None:
        """See preread.backend.Spending."""
        return UNBILLED if self.spending is None else await self.spending.attempt(self.row, most)


@dataclass(frozen=True, slots=True)
class Ask:
    """One row as a dialect is asked it.

    messages: the conversation, () where `raw` is a whole prompt (text or token ids); shared: how
    many of the messages other rows have too; group: digest of those, "" if there are none; labels:
    of Choose, in order; continuation: of LogLikelihood; reuse, keep: see RequestBatch.
    """

    work: Work
    messages: tuple[Message, ...] = ()
    shared: int = 0
    group: str = ""
    raw: str | list[int] | None = None
    continuation: str | list[int] = ""
    reuse: bool = True
    keep: bool = False
    flight: Flight = field(default_factory=Flight, compare=False)


class Call(NamedTuple):
    """One HTTP request: a path below the base URL and a JSON body."""

    path: str
    body: dict[str, Any]


@dataclass(slots=True)
class Said:
    """An answered row. ids: token ids where the server names them; logprobs: natural, of each token
    written (or scored); label_logs: of Choose, log P(label); greedy: every scored token was the
    most likely one; error: why there is no answer after all."""

    text: str = ""
    finish: Finish = Finish.STOP
    counts: Counts = field(default_factory=Counts)
    ids: list[int] | None = None
    logprobs: list[float] | None = None
    label_logs: list[float] | None = None
    greedy: bool = False
    error: str = ""


class Teller(Protocol):
    """How a dialect speaks to its server about anything but the model's answers."""

    async def tell(self, method: str, path: str, body: Any = None) -> tuple[int, dict[str, Any]]:
        """Counting, describing and the like: status and object. Raises ProviderError if the server
        cannot be reached."""
        ...


class Wire(Teller, Protocol):
    """How a dialect reaches its server."""

    async def ask(self, call: Call, ask: Ask, output: int) -> dict[str, Any]:
        """A model request, within the limits and retried. output: most tokens it may write. Raises
        Refused."""
        ...


class Dialect(Protocol):
    """One API. Stateless but for what the server said about itself."""

    traits: Traits

    @property
    def name(self) -> str: ...

    def headers(self, key: str) -> dict[str, str]:
        """Of every request; key "" where none is needed."""
        ...

    async def start(self, wire: Teller) -> Facts:
        """Ask the server what it is. Raises ProviderError, ModelNotFound."""
        ...

    def refuses(self, batch: RequestBatch) -> str:
        """Why a batch cannot be asked here; "" if it can. Never by leaving something out."""
        ...

    async def answer(self, ask: Ask, wire: Wire) -> Said:
        """Ask one row. Raises Refused."""
        ...

    def counts(self, body: dict[str, Any]) -> Counts:
        """Of one response."""
        ...

    async def count(self, rows: Sequence[tuple[Message, ...]], wire: Teller) -> list[int] | None:
        """Prompt tokens of conversations, a last user turn with what starts the answer; None where
        only an estimate is possible."""
        ...

    async def close(self, wire: Teller) -> None:
        """Give back what costs money to keep."""
        ...
