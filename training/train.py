"""Train the reader.

    python -m training.train --seconds 840 --out training/runs/one --folder preread/assets/reader

The schedule follows the clock: the learning rate falls to nothing at the end of `--seconds`,
whatever the speed, and the last part of the time (`--long`) reads documents of up to 14,500
tokens.
"""

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from training.batches import Batch
from training.branches import Blocks, dense
from training.export import write
from training.model import Reader, Shape
from training.optimizer import Optimizer
from training.stream import Stream


@dataclass(frozen=True, slots=True)
class Options:
    """One run."""

    folder: Path
    out: Path
    seconds: float
    rate: float
    long: float
    tokens: int
    workers: int
    seed: int
    muon: bool
    decay: float
    dropout: float
    resume: bool
    init: Path | None
    leave: float
    warm_up: int = 100


def learning_rate(step: int, share: float, options: Options) -> float:
    """Warm-up in steps, then a cosine in the share of the time that is over."""
    warm = min(1.0, (step + 1) / options.warm_up)
    return options.rate * warm * (0.5 + 0.5 * math.cos(math.pi * min(1.0, share)))


def to_device(batch: Batch, device: torch.device) -> tuple[Tensor, ...]:
    """tokens, positions, places and weights of a batch as tensors."""
    arrays = (batch.tokens, batch.layout.position, batch.places, batch.weights)
    made = (torch.from_numpy(array) for array in arrays)
    if device.type == "cuda":
        return tuple(array.pin_memory().to(device, non_blocking=True) for array in made)
    return tuple(made)


class Trainer:
    """Model, optimizer and stream of one run."""

    def __init__(self, options: Options) -> None:
        self.options = options
        saved = self._saved()
        self.step, self.spent = (int(saved["step"]), float(saved["spent"])) if saved else (0, 0.0)
        self.stream = Stream(
            options.folder, options.workers, options.seed + self.step, options.tokens
        )
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(options.seed)
        torch.set_float32_matmul_precision("high")
        cuda = self.device.type == "cuda"
        self.blocks = Blocks.on(self.device, options.tokens) if cuda else None
        self.model = Reader(Shape(), options.dropout).to(self.device)
        self.optimizer = Optimizer(self.model, options.muon, options.decay)
        self.loss: Any = torch.compile(self.model.loss, dynamic=False) if cuda else self.model.loss
        if options.init:
            state = load_file(options.init)
            self.model.load_state_dict(
                {name.removeprefix("model."): value for name, value in state.items()}
            )
        self.curve: list[dict[str, float]] = []
        if saved:
            self._resume(saved)

    def _saved(self) -> dict[str, Any]:
        path = self.options.out / "checkpoint.pt"
        saved: dict[str, Any] = {}
        if self.options.resume:
            saved = torch.load(path, map_location="cpu", weights_only=True)
        return saved

    def _resume(self, saved: dict[str, Any]) -> None:
        self.curve = json.loads((self.options.out / "curve.json").read_text(encoding="utf-8"))
        self.model.load_state_dict(saved["model"])
        self.optimizer.adam.load_state_dict(saved["adam"])
        self.optimizer.momentum = {
            tuple(shape): value.to(self.device) for shape, value in saved["momentum"]
        }

    def save(self) -> None:
        """Checkpoint and curve."""
        self.options.out.mkdir(parents=True, exist_ok=True)
        state = {
            "model": self.model.state_dict(),
            "adam": self.optimizer.adam.state_dict(),
            "momentum": [(list(shape), value) for shape, value in self.optimizer.momentum.items()],
            "shape": asdict(self.model.shape),
            "step": self.step,
            "spent": self.spent,
        }
        torch.save(state, self.options.out / "checkpoint.tmp")
        (self.options.out / "checkpoint.tmp").rename(self.options.out / "checkpoint.pt")
        (self.options.out / "curve.json").write_text(json.dumps(self.curve), encoding="utf-8")

    def run(self) -> None:
        """Train until the time is over, or until it is time to leave."""
        options, saved = self.options, time.monotonic()
        started, first = saved - self.spent, self.step
        waiting = self.stream.batch()
        born, spent = time.monotonic(), self.spent
        while self.spent < options.seconds and time.monotonic() - born < options.leave:
            share = self.spent / options.seconds
            self.stream.phase.value = int(share > 1 - options.long - 0.01)
            rate = learning_rate(self.step, share, options)
            losses = self._update(waiting, rate)
            waiting = self.stream.batch()
            self.step += 1
            if self.step <= 3 or self.step % 50 == 0:
                self._note(losses, rate, started)
            if self.step == first + 3:  # the steps before were compiling
                started = time.monotonic() - spent
            self.spent = time.monotonic() - started
            if time.monotonic() - saved > 120:
                self.save()
                saved = time.monotonic()
        self.save()
        self.stream.close()

    def _update(self, batch: Batch, rate: float) -> Tensor:
        arrays = to_device(batch, self.device)
        layout = batch.layout
        mask = self.blocks.load(layout, batch.lists) if self.blocks else dense(layout)
        with torch.autocast(self.device.type, torch.bfloat16):
            losses: Tensor = self.loss(*arrays, mask)
        losses[0].backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step(rate)
        self.optimizer.zero(self.model.parameters())
        return losses.detach()

    def _note(self, losses: Tensor, rate: float, started: float) -> None:
        total, answers = losses.tolist()
        seconds = time.monotonic() - started
        row = {
            "step": self.step,
            "seconds": round(seconds, 1),
            "loss": round(total, 4),
            "answers": round(answers, 4),
            "rate": rate,
            "shown": self.stream.shown,
            "waited": round(self.stream.waited, 1),
            "phase": self.stream.phase.value,
            "queue": self.stream.queue.qsize(),
        }
        self.curve.append(row)
        print(json.dumps(row), flush=True)


def parse() -> Options:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--folder", type=Path, default=Path("preread/assets/reader"), help="holds tokenizer.json"
    )
    parser.add_argument("--out", type=Path, default=Path("training/runs/one"))
    parser.add_argument("--seconds", type=float, default=840)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument(
        "--long", type=float, default=0.25, help="share of the time with long documents"
    )
    parser.add_argument("--tokens", type=int, default=65_536, help="tokens of one batch")
    parser.add_argument("--workers", type=int, default=15)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--muon", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--decay", type=float, default=0.1, help="weight decay of the matrices")
    parser.add_argument("--dropout", type=float, default=0.1, help="of every layer's additions")
    parser.add_argument("--init", type=Path, help="start from the weights of a model.safetensors")
    parser.add_argument("--resume", action="store_true", help="go on from OUT/checkpoint.pt")
    parser.add_argument(
        "--leave",
        type=float,
        default=math.inf,
        help="save and leave after so many seconds of this process, to be resumed",
    )
    return Options(**vars(parser.parse_args()))


def main() -> None:
    """Train and write the hub folder into `--out`/reader."""
    options = parse()
    trainer = Trainer(options)
    trainer.run()
    write(trainer.model, options.out / "reader")
    print(
        json.dumps(
            {
                "steps": trainer.step,
                "seconds": trainer.spent,
                "tokens": trainer.stream.shown,
            }
        )
    )


if __name__ == "__main__":
    main()
