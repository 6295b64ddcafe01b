"""`preread demo`: the main job, offline. A real folder is read once by the bundled model, asked in
this process and in a new one, and applicants are scored by a rubric; the bills say what was
computed, what was reused, what it saved."""

from __future__ import annotations

import json as json_module
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preread.cli.asking import result_json, summary_line
from preread.cli.demo_scores import APPLICANTS, score_applicants
from preread.cli.output import FAILURES, emit, note, progress_bar, size
from preread.errors import PrereadError, SourceError
from preread.types import Completion, Usage

if TYPE_CHECKING:
    from preread.app import Engine

NAME = "demo"
QUESTIONS = (
    "Who started the workshop?",
    "How big a deposit do we need before work on an order begins?",
    "Where do we gather when the fire alarm rings?",
    "How long does it take to charge the electric van?",
    "What does a second sketch cost?",
    "How much do apprentices earn?",
)


def demo_folder() -> Path:
    """The example handbook: in the package of a wheel, beside it in a checkout."""
    package = Path(__file__).parents[1]
    for folder in (package / "assets" / "handbook", package.parent / "examples" / "handbook"):
        if folder.is_dir():
            return folder
    raise SourceError(
        "The example handbook is missing from this installation.",
        hint='Ask a folder of yours: preread ask PATH "question"',
    )


def demo_command(*, json: bool) -> None:
    from preread.app import open as open_engine

    folder = demo_folder()
    say = (lambda text: None) if json else print
    say(f"1. Read {folder.name}/ once with the bundled model and keep what it made of it.")
    with open_engine("reader") as engine:
        built = _build(engine, folder, json=json)
        say(f"   {built['words']}")
        say("\n2. Ask. Only the question is computed; the handbook comes from the cache.")
        answers, once = _ask_here(engine, say)
        afresh = _ask_afresh(engine)
        say(f"\n3. Score {APPLICANTS:,} applicants by a rubric: it is read once for all of them.")
        scores = score_applicants(engine, engine.config.home / "demo")
        say(scores.lines())
    say("\n4. A new process finds the handbook on disk; nothing is read again.")
    other = _ask_elsewhere(QUESTIONS[1])
    say(f"   $ preread ask {NAME} {json_module.dumps(QUESTIONS[1])}\n   {other['answer']}")
    say(f"   {summary_line(other)}")
    bill = _bill(built, answers, once, afresh, other)
    say(f"\n5. The bill of the questions\n{_bill_lines(bill)}")
    if json:
        told = [result_json(a) for a in answers]
        emit({"built": built, "answers": told, "scores": scores.to_json(), "bill": bill})
    else:
        say(_next_steps(folder))
    if other["usage"]["cached_tokens"] == 0 or any(a.error for a in answers):
        note("preread: the new process reused nothing. Try: preread doctor")
        raise SystemExit(FAILURES)


def _build(engine: Engine, folder: Path, *, json: bool) -> dict[str, Any]:
    with progress_bar("reading", quiet=json) as bar:
        outcome = engine.build(NAME, folder, progress=bar)
    what = "built before: " if outcome.unchanged else ""
    words = (
        f"{what}{len(outcome.record.sources)} files, {outcome.tokens:,} tokens: "
        f"{outcome.computed_tokens:,} computed, {outcome.reused_tokens:,} reused; "
        f"{size(outcome.kv_bytes)} of KV on disk, {outcome.seconds:.2f} s"
    )
    return outcome.to_json() | {"words": words}


def _ask_here(engine: Engine, say: Any) -> tuple[list[Completion], float]:
    """All questions one by one; the answers and the seconds they took."""
    context = engine.context(NAME)
    started = time.perf_counter()
    answers = []
    for question in QUESTIONS:
        answer = context.ask(question)
        answers.append(answer)
        say(f"   {question}\n     {answer.text}{_where(answer)}")
    return answers, time.perf_counter() - started


def _where(answer: Completion) -> str:
    cited = [c for c in answer.citations if c.match != "none"]
    return f"   [{cited[0].source}:{cited[0].start_line} {cited[0].match}]" if cited else ""


def _ask_afresh(engine: Engine) -> float:
    """Seconds of one question with the whole prompt computed again: what it costs without."""
    from preread.backend import Generate, RequestBatch
    from preread.contexts.rows import collect
    from preread.types import Prefix

    opened = engine.context(NAME).opened
    prefixes = (Prefix(opened.record.shards[0].system),)
    work = Generate(max_tokens=engine.config.context.max_tokens)
    batch = RequestBatch(work, [QUESTIONS[0]], prefixes=prefixes, reuse=False)
    started = time.perf_counter()
    engine.run(collect(engine.backend, batch))
    return time.perf_counter() - started


def _ask_elsewhere(question: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "preread", "ask", NAME, question, "--json", "--no-resident"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise PrereadError(f"the new process failed: {done.stderr.strip()}", hint="preread doctor")
    result: dict[str, Any] = json_module.loads(done.stdout)
    return result


def _bill(
    built: dict[str, Any],
    answers: list[Completion],
    once: float,
    afresh: float,
    other: dict[str, Any],
) -> dict[str, Any]:
    total = sum((a.usage for a in answers), Usage())
    prompt = total.cached_tokens + total.computed_tokens
    return {
        "questions": len(answers),
        "prompt_tokens": prompt,
        "cached_tokens": total.cached_tokens,
        "computed_tokens": total.computed_tokens,
        "output_tokens": total.output_tokens,
        "seconds_per_question": round(once / len(answers), 3),
        "seconds_per_question_recomputed": round(afresh, 3),
        "build_seconds": built["seconds"],
        "new_process_load_ms": other["timing"]["load_ms"],
    }


def _bill_lines(bill: dict[str, Any]) -> str:
    faster = bill["seconds_per_question_recomputed"] / bill["seconds_per_question"]
    share = bill["cached_tokens"] / bill["prompt_tokens"]
    return (
        f"   {bill['questions']} questions, {bill['prompt_tokens']:,} prompt tokens: "
        f"{bill['cached_tokens']:,} reused ({share:.0%}), {bill['computed_tokens']:,} computed, "
        f"{bill['output_tokens']:,} written\n"
        f"   {bill['seconds_per_question']:.3f} s a question; "
        f"{bill['seconds_per_question_recomputed']:.3f} s with the handbook read each time: "
        f"{faster:.1f} x"
    )


def _next_steps(folder: Path) -> str:
    me = _command()
    return f"""
Next:
   {me} ask {NAME} "What does a second sketch cost?"
   {me} chat {NAME}
   {me} score YOUR.csv --rubric RULES.md --labels A,B,C -o scores.csv
   {me} ask YOUR/FOLDER "your question"        builds it, then answers
   {me} up                                     keeps the model loaded: answers at once
   {me} compare {NAME} {os.path.relpath(folder.parent)}/handbook_questions.jsonl
A larger model is one flag away: --model Qwen/Qwen3-0.6B"""


def _command() -> str:
    """How this command was called, so that the next one can be typed the same way."""
    if shutil.which("preread"):
        return "preread"
    called = Path(sys.argv[0])
    return str(called) if called.name == "preread" else f"{Path(sys.executable).name} -m preread"
