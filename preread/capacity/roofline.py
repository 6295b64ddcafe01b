"""How fast a machine could answer at most: the roofline (Williams, Waterman, Patterson 2009).

A step runs three operations after one another; each takes as long as its products at the matrix
rate F or its bytes at the memory rate B, whichever is longer. For T new tokens of S sequences that
share a context of P tokens and have o own tokens behind them on average:

                 products                                        bytes
    weights      2 · active · T + 2 · head · (rows in need)      all matrices and the head, once
    context      4 · width · T · P                               KV of P tokens, each context once
    own          4 · width · T · o                               KV of S · o + T tokens

width = layers · query heads · head size; a token's KV = 2 · layers · KV heads · head size · bytes.
S requests of q own tokens and K output tokens are ceil(S · q / batch_tokens) steps that read all
questions and give the first tokens (o = q / 2), then K - 1 steps of one token each (o = q + K / 2):

    requests/s = S / (sum of the steps' seconds)        tokens/s = K · requests/s

Left out are the norms, the sampler, the tokenizer and whatever else is not one of the three.
"""

from __future__ import annotations

from dataclasses import dataclass

from preread.capacity.shape import Shape, weight_bytes

# Of products with weights, by precision, against bfloat16. fp8: the makers' figure; w8a8: twice as
# fast, but for a third of them (the MLP's way down).
SPEED = {"fp8": 2.0, "w8a8": 1.5}


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked: sequences share `contexts` contexts of `context` tokens each; a request brings
    `question` tokens and takes `output` tokens (at least 1) away."""

    context: int = 2000
    contexts: int = 1
    question: int = 50
    output: int = 128


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds, by what they were spent on."""

    products: float = 0.0
    bytes: float = 0.0

    @property
    def seconds(self) -> float:
        return self.products + self.bytes

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.products + other.products, self.bytes + other.bytes)

    def __mul__(self, times: float) -> Spent:
        return Spent(self.products * times, self.bytes * times)


@dataclass(frozen=True, slots=True)
class Rate:
    """What `sequences` at once could reach. spent: on all of them, from question to last token."""

    sequences: int
    output: int
    first: Spent
    spent: Spent

    @property
    def requests_per_s(self) -> float:
        return self.sequences / self.spent.seconds

    @property
    def tokens_per_s(self) -> float:
        return self.output * self.requests_per_s

    @property
    def bound(self) -> str:
        return "compute" if self.spent.products >= self.spent.bytes else "bandwidth"


@dataclass(frozen=True, slots=True)
class Roofline:
    """flops: floating-point operations a second; bandwidth: bytes a second; batch_tokens: most
    tokens of one step; precision: of the weights in products, see `shape.WEIGHT_BYTES`;
    kv_precision: of the KV in memory."""

    shape: Shape
    dtype: str
    flops: float
    bandwidth: float
    batch_tokens: int
    precision: str = "full"
    kv_precision: str = "full"

    def rate(self, load: Load, sequences: int) -> Rate:
        """See the formula above."""
        steps = -(-sequences * load.question // self.batch_tokens)
        tokens = sequences * load.question / steps
        rows = sequences / steps
        first = self.step(load, tokens, rows, load.question / 2) * steps
        later = self.step(load, sequences, sequences, load.question + load.output / 2)
        return Rate(sequences, load.output, first, first + later * (load.output - 1))

    def step(self, load: Load, tokens: float, rows: float, own: float) -> Spent:
        """One step of `tokens` new tokens of `rows` sequences, all of which need logits."""
        shape, width = self.shape, self.shape.attention_width
        kv = shape.kv_token_bytes(self.dtype, self.kv_precision)
        weights = (shape.matrices + shape.head) * weight_bytes(self.dtype, self.precision)
        contexts = min(load.contexts, rows) * load.context
        return (
            self._spent(2 * (shape.active * tokens + shape.head * rows) / self._speed, weights)
            + self._spent(4 * width * tokens * load.context, contexts * kv)
            + self._spent(4 * width * tokens * own, (rows * own + tokens) * kv)
        )

    def reading(self, tokens: int) -> Spent:
        """Reading a context once, without a head, in steps of `batch_tokens`."""
        shape, steps = self.shape, -(-tokens // self.batch_tokens)
        kv = shape.kv_token_bytes(self.dtype, self.kv_precision)
        weights = steps * shape.matrices * weight_bytes(self.dtype, self.precision)
        return self._spent(2 * shape.active * tokens / self._speed, weights) + self._spent(
            2 * shape.attention_width * tokens**2, tokens * kv * (steps + 1) / 2
        )

    @property
    def _speed(self) -> float:
        """Of products with weights, against those in dtype."""
        return SPEED.get(self.precision, 1.0)

    def _spent(self, products: float, nbytes: float) -> Spent:
        computing, moving = products / self.flops, nbytes / self.bandwidth
        return Spent(products=computing) if computing >= moving else Spent(bytes=moving)
