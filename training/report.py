"""The evaluation as Markdown."""

# Sentences are easier to compare in rows than in columns.
# ruff: noqa: E501
# fmt: off

from typing import Any

INTRODUCTION = """# The bundled reader

`preread-reader-14m` is a small reader for trying, testing and teaching. It has the shape of Qwen3 (14.6 M parameters, 8 layers
of width 384, 6 query and 2 KV heads of 64, vocabulary 5,120, tied embeddings, 16,384 positions) and was trained by
the scripts in `training/` on generated documents alone. It answers from the documents in the prompt, by short pieces copied out of them, and says
`not stated` when they do not say. It knows nothing else: it neither reasons nor chats. For real work take a real model with `--model`.

Several targets are not reached yet; the table says which, and `training/README.md` says why and what comes next.
Every number below is on names, values and phrasings that were held out of the training; the hand-written documents
were never trained on. Reproduce with `python -m training.evaluate preread/assets/reader --write docs/reader.md`.
"""

FORMATS = """
## Prompts it was trained for

Question answering (documents in the system message, question alone in the user message):

```
Answer the question from the documents below, in as few words as possible. If the documents do not say, answer: not stated

[handbook/leave.md]
...
```

A label by a rubric: the rubric in the documents (or before the case) and the case in the question, for example
`Rubric R1. Which label fits this candidate?\\nMira Holt: score 74 points.`
The answer is the label alone, so the probability of its first tokens can be read.

Extraction: `Extract the entities and relations from the conversation. Entity types: person, org. Relations: works_for. Answer in JSON.`
The answer is compact JSON: `{"entities":[{"name":..,"type":..}],"relations":[{"subject":..,"relation":..,"object":..}]}`,
in the order of appearance.
"""


def markdown(result: dict[str, Any]) -> str:
    """docs/reader.md."""
    lines = [INTRODUCTION, "## Held-out questions", "", "| skill | document tokens | exact | target | cases |", "|---|---:|---:|---:|---:|"]
    for row in result["rows"]:
        target = f"{row['target']:.0%}" if row["target"] else ""
        lines.append(f"| {row['name']} | {row['tokens']:,} | {row['right']:.1%} | {target} | {row['cases']} |")
    lines += ["", "Exact: equal after lower-casing and stripping final punctuation. Single fact is a mix of the four rows below it; notes and pages are whole passages and documents, with their questions, that were held out.", "",
              "## Hand-written documents", "", "An answer counts when it equals one of the accepted ones, leading articles and prepositions aside.", ""]
    for name, outcomes in result["hand_written"].items():
        right = sum(o["right"] for o in outcomes)
        lines += [f"### {name}: {right} of {len(outcomes)}", "", "| | question | expected | answered |", "|---|---|---|---|"]
        for o in outcomes:
            lines.append(f"| {'yes' if o['right'] else 'no'} | {o['question']} | {o['expected']} | {o['got'].replace('|', ' ').replace(chr(10), ' ')} |")
        lines.append("")
    return "\n".join(lines) + FORMATS
