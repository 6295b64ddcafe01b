"""What every command shares: one JSON object or plain lines on stdout, notes on stderr, exit codes.

Exit codes: 0 ok, 1 unexpected, 2 usage, 3 finished with failures, 4 stopped but resumable, 130.
"""

from __future__ import annotations

import json as json_module
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from preread.errors import PrereadError

if TYPE_CHECKING:
    from preread.backend import Progress

OK, UNEXPECTED, USAGE, FAILURES, RESUMABLE, INTERRUPTED = 0, 1, 2, 3, 4, 130


def emit(value: dict[str, Any]) -> None:
    """The one JSON object of `--json`."""
    print(json_module.dumps(value, ensure_ascii=False))


def note(text: str) -> None:
    """Something worth knowing that is not the result."""
    print(text, file=sys.stderr, flush=True)


def fail(exc: BaseException, *, json: bool) -> int:
    """Print an exception the way a user can act on it; returns the exit code."""
    import typer

    click_error = typer.BadParameter.mro()[2]  # ClickException, wherever typer keeps its click
    if isinstance(exc, typer.Exit):
        return exc.exit_code
    if isinstance(exc, SystemExit):
        return exc.code if isinstance(exc.code, int) else int(exc.code is not None)
    if isinstance(exc, KeyboardInterrupt | typer.Abort):
        code, kind, text = (
            INTERRUPTED,
            "Interrupted",
            "stopped by Ctrl-C. The same command goes on.",
        )
    elif isinstance(exc, click_error):
        code, kind, text = USAGE, "Usage", _usage_text(exc)
    elif isinstance(exc, PrereadError):
        code, kind, text = exc.exit_code, type(exc).__name__, str(exc)
    elif isinstance(exc, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNEXPECTED
    else:
        code, kind, text = UNEXPECTED, type(exc).__name__, f"unexpected {type(exc).__name__}: {exc}"
        if os.environ.get("PREREAD_TRACEBACK"):
            traceback.print_exception(exc)
        else:
            text += " Set PREREAD_TRACEBACK=1 and run it again for the whole story."
    note(f"preread: {text}")
    if json:
        with suppress(OSError):  # the output may be what failed
            emit({"error": {"type": kind, "message": text, "exit_code": code}})
    return code


def _usage_text(exc: BaseException) -> str:
    """What click says about a wrong call, and where to read more: the help of that command."""
    said: str = exc.format_message()  # type: ignore[attr-defined]
    context = getattr(exc, "ctx", None)
    return f"{said.rstrip('.')}. See: {context.command_path if context else 'preread'} --help"


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A plain aligned table on stdout; numbers to the right."""
    widths = [max(len(r[i]) for r in (headers, *rows)) for i in range(len(headers))]
    for row in (headers, *rows):
        cells = (
            cell.rjust(w) if cell[:1].isdigit() and row is not headers else cell.ljust(w)
            for cell, w in zip(row, widths, strict=True)
        )
        print("  ".join(cells).rstrip())


@contextmanager
def progress_bar(label: str, *, quiet: bool) -> Iterator[Progress]:
    """A bar with tokens, tok/s and time left on a terminal; silence elsewhere."""
    if quiet or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} tokens"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None, rate="")

        def advance(done: int, total: int) -> None:
            speed = bar.tasks[0].speed
            bar.update(
                task, completed=done, total=total, rate=f"{speed:,.0f} tok/s" if speed else ""
            )

        yield advance


class ReadingBar:
    """A progress bar that appears at its first news and goes when it is closed."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._open = ExitStack()
        self._advance: Progress | None = None

    def advance(self, done: int, total: int) -> None:
        if self._advance is None:
            bar = progress_bar("reading", quiet=self._quiet)
            self._advance = self._open.enter_context(bar)
        self._advance(done, total)

    def close(self) -> None:
        self._open.close()
        self._advance = None


def size(nbytes: float) -> str:
    """1536 -> '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1024 or unit == "GiB":
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    raise AssertionError


def ago(seconds: float) -> str:
    """Rough duration for people: '0.4 s', '3 min', '2 h', '5 d'."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 9.5 or seconds <= 0 else f"{seconds:.1f} s"
