"""What a batch will cost and has cost, for people and for programs."""

from __future__ import annotations

import json as json_module
from collections.abc import Sequence
from pathlib import Path

from preread.batch.forecast import Forecast
from preread.batch.journal import Journal
from preread.batch.misses import Miss
from preread.batch.report import Report
from preread.cli.output import ago, emit, note, table


def show_forecast(
    journal: Journal, forecasts: Sequence[Forecast], misses: Sequence[Miss], *, json: bool
) -> None:
    """Of a dry run: on stdout, it is the result."""
    requests, twins = journal.count("requests"), journal.count("twins")
    if json:
        made = [forecast.to_json() for forecast in forecasts]
        told = [miss._asdict() for miss in misses]
        emit({"requests": requests, "twins": twins, "models": made, "misses": told})
        return
    print(f"{requests:,} requests; {twins:,} are equal to others and run with them")
    for forecast in forecasts:
        print(
            f"\n{forecast.model or 'the model'}: {forecast.requests:,} requests, "
            f"{forecast.group_count:,} groups"
        )
        rows = [(f"{g.rows:,}", f"{g.tokens:,}", g.begins or "(nothing)") for g in forecast.groups]
        table(("rows", "tokens", "begin with"), rows)
        print(_tokens(forecast))
        if forecast.money is not None and forecast.whole is not None and forecast.prices:
            prices = forecast.prices
            print(
                f"at most {forecast.money:,.4f} {prices.currency} "
                f"({forecast.whole:,.4f} without reuse; prices of {prices.as_of or 'unknown date'})"
            )
        if forecast.seconds is not None:
            print(
                f"at most {ago(forecast.seconds)}, at the speed of the last run of this model here"
            )
        for text in forecast.notes:
            note(f"note: {text}")
    for miss in misses:
        note(f"note: {_miss(miss)}")


def _tokens(forecast: Forecast) -> str:
    share = forecast.cached / max(forecast.prompt, 1)
    return (
        f"about {forecast.prompt:,} prompt tokens: {forecast.cached:,} cached + "
        f"{forecast.computed:,} computed ({share:.1%} cached); output at most {forecast.output:,}"
    )


def show_report(report: Report, output: Path, left: int, stopped: str, *, json: bool) -> None:
    """left: requests without a result."""
    if json:
        emit(report.to_json() | {"left": left, "stopped": stopped, "output": str(output)})
        return
    tally = report.tally
    if left:
        note(
            f"stopped{f' ({stopped})' if stopped else ''}: {tally.done:,} of {tally.total:,} are "
            "done and kept; the same command with --resume goes on"
        )
    else:
        print(f"{output}: {report.requests:,} requests, {tally.failed:,} failed")
    twins = f", {report.twins:,} answered by equal ones" if report.twins else ""
    note(
        f"  {tally.done:,} run{twins}, {report.seconds:,.1f} s, "
        f"{tally.now / max(tally.seconds, 1e-9):,.1f} requests/s"
    )
    note(
        f"  prompt {tally.prompt:,} tokens: {tally.reused:,} cached + "
        f"{tally.computed:,} computed ({tally.cached_share:.1%} cached), {tally.output:,} out"
    )
    if tally.responses:
        note(f"  {tally.responses:,} answered from the response cache: no token of any kind")
    _compared(report)
    if tally.prices is not None:
        saved = tally.whole - tally.money
        note(f"  {tally.money:,.4f} {tally.prices.currency}, {saved:,.4f} saved")
    if tally.unsure:
        money = f", {tally.unsure_money:,.4f} {tally.prices.currency}" if tally.prices else ""
        note(f"  in doubt: at most {tally.unsure:,} tokens{money} more, of requests not answered")
    if report.saved_s:
        note(f"  reading the cached tokens would have taken {ago(report.saved_s)} more")
    if report.cut_off:
        note(f"  {report.cut_off:,} answers were cut off by max_tokens")
    for miss in report.misses:
        note(f"  {_miss(miss)}")


def _compared(report: Report) -> None:
    """Predicted against actual."""
    made = report.forecasts
    if not made or report.tally.done < report.tally.total:
        return
    cached, computed = sum(one.cached for one in made), sum(one.computed for one in made)
    output = sum(one.output for one in made)
    parts = [f"{cached:,} cached + {computed:,} computed"]
    parts += [f"at most {output:,} out"] if output else []
    seconds, money = ([getattr(one, what) for one in made] for what in ("seconds", "money"))
    if None not in seconds:
        parts.append(ago(sum(seconds)))
    if report.tally.prices is not None and None not in money:
        parts.append(f"{sum(money):,.4f} {report.tally.prices.currency}")
    note(f"  foreseen were {', '.join(parts)}")


def _miss(miss: Miss) -> str:
    here, there = (json_module.dumps(text, ensure_ascii=False) for text in (miss.here, miss.there))
    return (
        f"not shared: {miss.file}:{miss.line} and {miss.other_file}:{miss.other_line} begin alike "
        f"and differ from character {miss.at:,} (about token {miss.token:,}) on: {here} and {there}"
    )
