"""`preread verify --codec`: what a codec that loses something does to a model's answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from preread.cli.demo import demo_folder
from preread.cli.output import emit, note
from preread.errors import UsageError
from preread.store.keys import CODECS

if TYPE_CHECKING:
    from preread.app.lossy import CodecReport


def codec_command(codec: str, *, model: str, json: bool) -> None:
    """On the example handbook and its questions."""
    from preread.app.lossy import check_codec

    lossy = [name for name in CODECS if name != "raw"]
    if codec not in lossy:
        raise UsageError(
            f"--codec {codec}: nothing to measure.", hint=f"Give {' or '.join(lossy)}."
        )
    folder = demo_folder()
    note(f"reading {folder.name}/ and asking its questions with exact KV and with {codec}")
    report = check_codec(model, codec, folder, folder.parent / "handbook_questions.jsonl")
    if json:
        emit(report.to_json())
    else:
        print("\n".join(lines(report)))


def lines(report: CodecReport) -> tuple[str, ...]:
    """For people."""
    loss, codec = report.loss, report.codec
    agreement = loss.agreement
    clear = agreement.clear_equal / max(1, agreement.clear)
    return (
        f"{codec} with {report.model}: {report.size:.0%} of the bytes; keys are off by "
        f"{loss.keys:.2%}, values by {loss.values:.2%} (root mean square)",
        f"logits of {agreement.tokens} tokens after {loss.prefix:,} kept ones: off by "
        f"{loss.logits:.3f} (root mean square), {loss.worst:.2f} at most",
        f"greedy token equal at {agreement.equal / agreement.tokens:.1%}, at {clear:.1%} of the "
        f"{agreement.clear / agreement.tokens:.0%} where the lead exceeds the error; mean KL "
        f"{agreement.divergence:.2e} nats",
        f"{report.questions} questions on {report.tokens:,} kept tokens: {report.same} answers the "
        f"same, token by token; right: {report.right_exact} of {report.graded} with exact KV, "
        f"{report.right} with {codec}",
    )
