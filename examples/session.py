"""A session remembers its own turns and nobody else's; a fork continues from where it was cut."""

from pathlib import Path

import preread

with preread.open() as engine:
    handbook = engine.context("example-handbook", Path(__file__).parent / "handbook")
    first = handbook.session("morning")
    print(first.ask("Who keeps the complaints book?").text)
    other = first.fork("afternoon")
    print(first.ask("And to whom does a complaint go next?").text)
    print(other.ask("Are dogs allowed in the showroom?").text)
