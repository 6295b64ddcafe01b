"""`preread ask`: one stream of events, rendered the same whether it comes from this process or from
the resident one. Events are dicts with one key: note, progress, delta, result, error."""

from __future__ import annotations

import json as json_module
import os
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preread.cli.events import Event, heard, opened
from preread.cli.output import FAILURES, emit, note
from preread.errors import RequestError

if TYPE_CHECKING:
    from preread.app import Context, Engine
    from preread.types import Completion


@dataclass(frozen=True, slots=True)
class AskRequest:
    """What `ask` was asked. target: a name, or a path as seen from the folder cwd; schema: a JSON
    schema or None; approximate: see Engine.open."""

    target: str
    question: str
    cwd: str
    session: str = ""
    model: str = ""
    max_tokens: int = 0
    schema: dict[str, Any] | None = None
    temperature: float = 0.0
    seed: int | None = None
    approximate: bool = False


def read_question(target: str, question: str) -> str:
    """The question itself; "-" reads it from standard input, unless that is the document."""
    if question != "-":
        return question
    if target == "-":
        raise RequestError(
            "Standard input cannot be both the document and the question.",
            hint='cat FILE | preread ask - "question"',
        )
    return sys.stdin.read()


def read_schema(path: Path | None) -> dict[str, Any] | None:
    """Raises RequestError naming file and position."""
    if path is None:
        return None
    try:
        schema = json_module.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise RequestError(f"{path}: {exc.strerror}.", hint="Give a file with --schema.") from exc
    except ValueError as exc:
        raise RequestError(f"{path}: not JSON: {exc}.", hint="Mend the schema file.") from exc
    if not isinstance(schema, dict):
        raise RequestError(f"{path}: expected a JSON object.", hint='Start with {"type": …}.')
    return schema


def ask_command(request: AskRequest, *, resident: bool, json: bool) -> None:
    """Ask, by the resident process when one runs with this model, else here."""
    from preread.cli.client import resident_events

    here = not resident or request.target == "-"  # its standard input is not ours
    events = None if here else resident_events(asdict(request))
    with closing(local_events(request) if events is None else events) as answered:
        if render(answered, json=json):
            raise SystemExit(FAILURES)


def local_events(request: AskRequest) -> Generator[Event]:
    """Open an engine in this process and ask it."""
    from preread.app import open as open_engine
    from preread.cli.target import meant

    target, model, codec = meant(request.target, request.model, request.cwd)
    with open_engine(model, codec=codec) as engine:
        yield from answer_events(engine, replace(request, target=target))


def answer_events(engine: Engine, request: AskRequest) -> Iterator[Event]:
    """The events of one question on an open engine. The target is a name or absolute."""
    for news in opened(engine, request.target, approximate=request.approximate):
        yield from [news] if isinstance(news, dict) else stream_events(news, request)


def stream_events(context: Context, request: AskRequest) -> Iterator[Event]:
    """Deltas, then the result."""
    from preread.types import Completion

    asked = context.session(request.session) if request.session else context
    stream = asked.stream(
        request.question,
        max_tokens=request.max_tokens,
        schema=request.schema,
        temperature=request.temperature,
        seed=request.seed,
    )
    for item in stream:
        if isinstance(item, Completion):
            yield {"result": result_json(item)}
        else:
            yield {"delta": item}


def result_json(completion: Completion) -> dict[str, Any]:
    """The documented object of `ask --json`."""
    timing = completion.timing
    value: dict[str, Any] = {
        "answer": completion.text,
        "finish_reason": str(completion.finish_reason),
        "citations": [asdict(c) for c in completion.citations],
        "usage": asdict(completion.usage),
        "timing": {
            name: round(getattr(timing, name), 3)
            for name in ("load_ms", "ttft_ms", "total_ms", "saved_ms")
        },
        "brought": timing.brought.to_json() if timing.brought else None,
        "context": asdict(completion.context) if completion.context else None,
        "unread": list(completion.unread),
        "notes": list(completion.notes),
        "approximate": completion.approximate.to_json() if completion.approximate else None,
    }
    if (how := completion.cached_response) is not None:
        value["cached_response"] = how._asdict()
    if completion.error:
        value["error"] = completion.error
    return value


def render(events: Iterator[Event], *, json: bool, began: float | None = None) -> bool:
    """Print events as they come; returns whether the request failed. began: time.monotonic() when
    it was asked, else the start of the process counts. The answer is streamed on
    stdout, everything else goes to stderr, so that `preread ask … > a.txt` holds the answer."""
    streamed = ""
    for event in heard(events, quiet=json, what="the answer"):
        if "delta" in event and not json:
            streamed += event["delta"]
            sys.stdout.write(event["delta"])
            sys.stdout.flush()
        elif "result" in event:
            result = event["result"]
            if json:
                emit(result)
            else:
                wall = wall_seconds() if began is None else time.monotonic() - began
                _finish(result, streamed, wall)
            return bool(result["finish_reason"] == "error")
    raise AssertionError("events end with a result or an error")


def _finish(result: dict[str, Any], streamed: str, wall: float) -> None:
    if result["answer"] != streamed:  # several shards were merged, or nothing was streamed
        print(result["answer"] if not streamed else f"\n{result['answer']}")
    elif not streamed.endswith("\n"):
        print()
    sys.stdout.flush()
    if result.get("error"):
        note(f"failed: {result['error']}")
    if result["finish_reason"] == "length":
        note("cut off by --max-tokens: the answer is incomplete")
    for c in result["citations"]:
        if c["match"] == "none":
            note("  [not found in the sources]")
            continue
        lines = (
            f"{c['start_line']}-{c['end_line']}"
            if c["end_line"] > c["start_line"]
            else c["start_line"]
        )
        note(f'  [{c["source"]}:{lines} "{c["quote"]}" {c["match"]}]')
    for text in result["notes"]:
        note(f"note: {text}")
    if result["unread"]:
        note(f"not read for this answer: {', '.join(result['unread'])}")
    note(f"{summary_line(result)} · wall {wall:.1f} s")


def summary_line(result: dict[str, Any]) -> str:
    """`TTFT 0.05 s · 2,410 cached + 31 computed + 18 out · saved 1.9 s`; begins with "approximate"
    where the answer is; ends with what came from which tier, and what that was foreseen to take."""
    usage, timing, brought = result["usage"], result["timing"], result["brought"]
    tiers = brought["tiers"] if brought else []
    loaded = "".join(
        f" · {row['tokens']:,} from {row['tier']} in {row['ms'] / 1e3:.2f} s" for row in tiers
    )
    if tiers and brought["predicted_ms"]:
        loaded += f" ({brought['predicted_ms'] / 1e3:.2f} s foreseen)"
    if brought and brought["by_layer"]:
        loaded += " (asked while the last layers came)"
    label = "approximate · " if result.get("approximate") else ""
    if how := result.get("cached_response"):
        like = f" to {how['question']!r} ({how['similarity']:.2f} alike)" if how["question"] else ""
        return f"{label}from the response cache: answered before{like}; nothing was computed"
    return (
        f"{label}TTFT {timing['ttft_ms'] / 1e3:.2f} s · {usage['cached_tokens']:,} cached + "
        f"{usage['computed_tokens']:,} computed + {usage['output_tokens']:,} out · "
        f"saved {timing['saved_ms'] / 1e3:.1f} s{loaded}"
    )


def wall_seconds() -> float:
    """Seconds since this process was started by the kernel: imports included."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started
    except (OSError, IndexError, ValueError, AttributeError):
        return time.process_time()
