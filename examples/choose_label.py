"""One rubric, many items: a label and its probability for each, without writing a token."""

from pathlib import Path
from tempfile import TemporaryDirectory

import preread

RUBRIC = """Rubric for parcels.
heavy: the parcel weighs 10 kg or more.
light: the parcel weighs less than 10 kg.
"""

with TemporaryDirectory() as folder, preread.open() as engine:
    path = Path(folder) / "rubric.md"
    path.write_text(RUBRIC)
    rubric = engine.context("example-rubric", path, system="Answer with the label alone.")
    items = ["A parcel of 14 kg.", "A parcel of 2 kg.", "A parcel of 31 kg."]
    for item, choice in zip(items, rubric.choose(items, ["heavy", "light"]), strict=True):
        print(f"{item:20} {choice.label:6} p={choice.probabilities[choice.label]:.2f}")
        print(f"{'':20} mass of both labels: {choice.mass:.2f}")
