"""Measure a reader on held-out names, values and phrasings and on hand-written documents.

    python -m training.evaluate preread/assets/reader --write docs/reader.md

Prints the table; `--write` also writes it as Markdown with the raw numbers beside it as JSON.
"""

import argparse
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from training import handbooks
from training.answerer import Answerer, PrereadAnswerer, TransformersAnswerer
from training.bank import Bank
from training.documents import Message, Plan, make_conversation
from training.make_tokenizer import open_bank
from training.report import markdown

READER = Path(__file__).parent.parent / "preread" / "assets" / "reader"
CHARS = 3.1
"""Characters of a token, to hit a wanted length."""


class Case(NamedTuple):
    """A chat that ends with a question, and the right answer."""

    chat: tuple[Message, ...]
    answer: str


class Row(NamedTuple):
    """One line of the table."""

    name: str
    tokens: int
    right: float
    cases: int
    target: float


SUITE: tuple[tuple[str, str, int, float], ...] = (
    ("single fact", "single", 500, 0.95),
    ("single fact", "single", 1000, 0.95),
    ("single fact", "single", 2000, 0.95),
    ("single fact", "single", 4000, 0.95),
    ("single fact", "single", 12_000, 0.85),
    ("bank policies", "policy", 1500, 0.0),
    ("bank facts", "fact", 1500, 0.0),
    ("schemas", "schema", 1500, 0.0),
    ("events", "event", 1500, 0.0),
    ("notes", "note", 1500, 0.0),
    ("pages", "page", 1500, 0.0),
    ("two hops", "two-hop", 1500, 0.85),
    ("comparison", "comparison", 1500, 0.0),
    ("list", "list", 1500, 0.0),
    ("unanswerable", "unanswerable", 1500, 0.9),
    ("follow-up", "follow-up", 1500, 0.0),
    ("label", "label", 800, 0.95),
)


def cases(bank: Bank, skill: str, tokens: int, count: int, seed: int) -> list[Case]:
    """Held-out cases of a skill with documents of about so many tokens, in the product's layout."""
    rng = random.Random(f"{skill} {tokens} {seed}")
    out: list[Case] = []
    follow = skill == "follow-up"
    while len(out) < count:
        plan = Plan(int(tokens * CHARS), 8 if follow else 1, "single" if follow else skill, True)
        made = make_conversation(rng, bank, plan, held_out=True)
        if made is None or (follow and "follow-up" not in made.skills):
            continue
        place = made.skills.index("follow-up") if follow else 0
        end = 2 * place + 2
        out.append(Case(made.messages[:end], made.messages[end].content))
    return out


def pairs(answer: str) -> set[tuple[str, ...]]:
    """The entities and relations of an extraction as a set; empty when it is no such JSON."""
    try:
        found: dict[str, Any] = json.loads(answer)
        entities = {("entity", e["name"], e["type"]) for e in found["entities"]}
        return entities | {
            ("relation", r["subject"], r["relation"], r["object"]) for r in found["relations"]
        }
    except (ValueError, KeyError, TypeError):
        return set()


def extraction(answerer: Answerer, bank: Bank, count: int, seed: int) -> Row:
    """Micro F1 over entities and relations."""
    made = cases(bank, "extraction", 500, count, seed)
    hit = expected = returned = 0
    for case, got in zip(made, answerer.answer([c.chat for c in made], 700), strict=True):
        want, have = pairs(case.answer), pairs(got)
        hit, expected, returned = hit + len(want & have), expected + len(want), returned + len(have)
    return Row("extraction (F1)", 500, 2 * hit / max(1, expected + returned), count, 0.9)


def synthetic(
    answerer: Answerer, bank: Bank, count: int, seed: int
) -> tuple[list[Row], list[dict[str, str]]]:
    """Every skill of the suite; the rows and the mistakes."""
    rows, mistakes = [], []
    for name, skill, tokens, target in SUITE:
        made = cases(bank, skill, tokens, count, seed)
        right = 0
        for case, got in zip(made, answerer.answer([c.chat for c in made], 60), strict=True):
            good = handbooks.normal(got) == handbooks.normal(case.answer)
            right += good
            if not good:
                mistakes.append(
                    {
                        "skill": name,
                        "tokens": str(tokens),
                        "question": case.chat[-1].content,
                        "expected": case.answer,
                        "got": got,
                    }
                )
        rows.append(Row(name, tokens, right / count, count, target))
        print(f"{name:16} {tokens:6} {right / count:.3f}", flush=True)
    rows.append(extraction(answerer, bank, max(1, count // 2), seed))
    print(f"{rows[-1].name:16} {rows[-1].tokens:6} {rows[-1].right:.3f}", flush=True)
    return rows, mistakes


def hand_written(
    answerer: Answerer, texts: Sequence[tuple[Path, Path]]
) -> dict[str, list[handbooks.Outcome]]:
    """Every hand-written document that exists here."""
    out = {}
    for folder, questions in texts:
        if questions.exists():
            out[folder.name] = handbooks.run(answerer, folder, questions)
            right = sum(outcome.right for outcome in out[folder.name])
            print(f"{folder.name:16} {right} of {len(out[folder.name])}", flush=True)
    return out


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=READER)
    parser.add_argument("--count", type=int, default=200, help="cases of each row")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--by", choices=("preread", "transformers"), default="preread")
    options = parser.parse_args()
    dev, examples = (
        Path(__file__).parent / "dev_handbook",
        Path(__file__).parent.parent / "examples",
    )
    texts = [(examples / "handbook", examples / "handbook_questions.jsonl")]
    texts += [(dev / name, dev / name / "questions.jsonl") for name in ("seedbank", "brewer")]
    answerers = {"preread": PrereadAnswerer, "transformers": TransformersAnswerer}
    answerer: Answerer = answerers[options.by](options.folder)
    started = time.monotonic()
    written = hand_written(answerer, texts)
    rows, mistakes = synthetic(answerer, open_bank(), options.count, options.seed)
    result = {
        "seed": options.seed,
        "seconds": round(time.monotonic() - started, 1),
        "rows": [row._asdict() for row in rows],
        "hand_written": {
            name: [o._asdict() for o in outcomes] for name, outcomes in written.items()
        },
        "mistakes": mistakes,
    }
    if options.write:
        options.write.parent.mkdir(parents=True, exist_ok=True)
        options.write.write_text(markdown(result), encoding="utf-8")
        options.write.with_suffix(".json").write_text(
            json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
