"""One rubric, many items: a label and its probability for each, without writing a token.

The bundled reader judges poorly (docs/reader.md); give open() a larger model for real work.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import preread

RUBRIC = "Rubric P1: TOP (a weight of 10 kg or above), LOW (otherwise)\n"
ITEMS = ("a weight of 14 kg", "a weight of 2 kg", "a weight of 31 kg")

with TemporaryDirectory() as folder, preread.open() as engine:
    path = Path(folder) / "rubric.md"
    path.write_text(RUBRIC)
    rubric = engine.context("example-rubric", path)
    asked = [f"Rubric P1. Choose TOP or LOW for this text: The parcel has {i}." for i in ITEMS]
    for item, choice in zip(ITEMS, rubric.choose(asked, ["TOP", "LOW"]), strict=True):
        print(f"{item:20} {choice.label:4} p={choice.probabilities[choice.label]:.2f}")
        print(f"{'':20} mass of both labels: {choice.mass:.2f}")
