"""A run from its input to its output, apart from where its backend comes from."""

from __future__ import annotations

import json
import os
import time
from dataclasses import astuple

from preread.backend import Backend
from preread.batch import slate
from preread.batch.intake import compare, take_in
from preread.batch.journal import Journal
from preread.batch.keys import model_digest, prefix_of
from preread.batch.schema import SPENT
from preread.batch.table import Table
from preread.batch.tally import Tally
from preread.errors import RequestError
from preread.prices import Prices
from preread.types import Prefix

MOST = 0.9  # of a prefix that was computed when reading it is measured


def begin(
    journal: Journal,
    table: Table,
    *,
    resume: bool = False,
    retry: bool = False,
    fresh: bool = False,
) -> dict[str, int]:
    """Make a journal ready to run: read the input into it, or (resume) compare it with what is
    there; retry: failed rows run again; fresh: forget what is there. Returns notes of what was left
    out of the input. Raises RequestError for faults in the input, for another input than before,
    and when results that nobody asked to drop are there."""
    if fresh and (resume or retry):
        raise RequestError(
            "--fresh forgets what --resume and --retry-failed go on with.", hint="Give one of them."
        )
    if journal.planned and not fresh:
        if resume or retry:
            compare(journal, table)
            if retry:
                journal.retry()
            return {}
        _may_drop(journal)
    notes = take_in(journal, table)
    journal.put("began", os.environ.get("SOURCE_DATE_EPOCH") or str(int(time.time())))
    journal.commit()
    return notes


def _may_drop(journal: Journal) -> None:
    done, failed = journal.count("results"), journal.count("results", "finish = 'error'")
    left = journal.count("line") - done
    unwritten = not journal.get("output written")
    if done and (left or failed or unwritten):
        more = "; they are in no output yet" if unwritten and not left else ""
        raise RequestError(
            f"{journal.path} holds {done:,} results of a run that has {left:,} requests to do and "
            f"{failed:,} failed{more}.",
            hint="Go on with --resume, run failed rows again with --retry-failed, or drop it with "
            "--fresh.",
        )


def models(journal: Journal) -> list[tuple[str, int]]:
    """Models of the requests that still have no result, and how many each has, in the order of
    the line."""
    return [
        (str(name), int(n))
        for name, n in journal.read(
            "SELECT models.name, count(*) FROM line JOIN models ON models.key = line.model "
            "LEFT JOIN results USING (idx) WHERE results.idx IS NULL "
            "GROUP BY line.model ORDER BY min(line.no)"
        )
    ]


def tallied(journal: Journal) -> Tally:
    """What earlier sessions have done, and may have been billed."""
    slate.recover(journal)
    ((done, failed, responses),) = journal.read(
        "SELECT count(*), coalesce(sum(finish = 'error'), 0), "
        "coalesce(sum(response != ''), 0) FROM results"
    )
    ((computed, cached, output, written),) = journal.read(SPENT, None)
    warmed = int(journal.get("warmed") or 0)
    tally = Tally(
        total=journal.count("line"), done=done, failed=failed, cached=cached,
        computed=computed + warmed, output=output, written=written, warmed=warmed,
        responses=responses,
    )  # fmt: skip
    tally.unsure = slate.unsure_in_all(journal)
    left = {model for model, _ in models(journal)}
    for (model,) in journal.read("SELECT name FROM models"):
        if model not in left and (told := journal.get(f"prices {model}")):
            priced(journal, tally, model, Prices(*json.loads(told)))
    return tally


def priced(journal: Journal, tally: Tally, model: str, prices: Prices | None) -> None:
    """What is done now is paid at these prices; so is what earlier sessions did with this model.
    They are kept: a model that is done must stay on the bill of a run that goes on."""
    tally.prices = prices
    if prices is not None:
        journal.put(f"prices {model}", json.dumps(astuple(prices)))
    ((computed, cached, output, written),) = journal.read(SPENT, model_digest(model))
    tally.pay(computed, cached, output, written)
    tally.doubt_money(*slate.unsure(journal, model_digest(model)))


def same_model(journal: Journal, model: str, fingerprint: str) -> None:
    """Answers of one run come from one model. Raises RequestError when it is another one."""
    key = f"fingerprint {model}"
    before = journal.get(key)
    if before and before != fingerprint:
        raise RequestError(
            f"{model} is not the model that began this run: its weights or settings are others.",
            hint="Use that one, or begin anew with --fresh.",
        )
    journal.put(key, fingerprint)


async def warm(journal: Journal, backend: Backend, model: str, tally: Tally) -> float:
    """Read the beginning that most requests share, count it, and return the tokens a second at
    which that went: 0 where there is none, or much of it was not read but found. Not for backends
    that are paid."""
    found = journal.read(
        "SELECT prefix_key FROM line JOIN requests USING (idx) WHERE line.model = ? "
        "GROUP BY prefix_key ORDER BY count(*) DESC LIMIT 1",
        model_digest(model),
    )
    prefix = prefix_of(journal.body("prefixes", found[0][0]))
    if backend.info.prices is not None or prefix == Prefix(""):
        return 0.0
    built = await backend.build(prefix)
    tally.computed += built.computed_tokens
    tally.warmed += built.computed_tokens
    journal.put("warmed", str(tally.warmed))
    read = built.computed_tokens > MOST * built.tokens  # a rate of what is left says nothing
    return built.computed_tokens / built.seconds if read and built.seconds else 0.0
