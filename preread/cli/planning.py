"""`preread plan`: from a model's config.json to a table, without weights and, once the machine's
rates are known, without torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from preread.capacity.machine import (
    Machine,
    computed_dtype,
    named,
    rate_of,
    size_bytes,
    this_machine,
)
from preread.capacity.plan import ENOUGH, Plan, make_plan
from preread.capacity.remembered import Remembered
from preread.capacity.shape import read_shape
from preread.cli.breakeven import break_even, print_break_even
from preread.cli.output import FAILURES, emit, note, size, table
from preread.cli.plots import text_bars
from preread.config import load_config, local_model
from preread.errors import RequestError

if TYPE_CHECKING:
    from preread.capacity.roofline import Load
    from preread.config import Config


@dataclass(frozen=True, slots=True)
class MachineOptions:
    """As given on the command line; empty: not given."""

    machine: str = ""
    memory: str = ""
    flops: str = ""
    bandwidth: str = ""
    measure: bool = False


def plan_command(
    model: str, options: MachineOptions, load: Load, *, dtype: str, tiers: bool, json: bool
) -> None:
    """See `preread plan --help`. Exit code 3 when not even one sequence fits."""
    from preread.models.folder import read_json, resolve

    if options.measure and (options.machine or (options.flops and options.bandwidth)):
        raise RequestError(
            "--measure measures this machine, and other rates were given.",
            hint="Leave out --machine, --flops or --bandwidth.",
        )
    if tiers and options.machine:
        raise RequestError(
            "--tiers goes by what was measured on this machine, and --machine names another.",
            hint="Leave out one.",
        )
    config = load_config()
    name = local_model(model or config.model.model)
    machine = _given(options, named(options.machine) if options.machine else _here(config))
    path = resolve(name, weights=False) / "config.json"
    shape = read_shape(read_json(path), path)
    computed = computed_dtype(dtype, shape.dtype, machine)
    if not options.machine:
        machine = _with_rates(machine, computed, options, config)
    precisions = config.model.weights_precision, config.model.kv_precision
    plan = make_plan(shape, machine, computed, load, config.engine, *precisions)
    found = break_even(name, plan, config, dtype) if tiers else None
    if json:
        emit({"model": name, **plan.to_json(), **({"tiers": found.to_json()} if found else {})})
    else:
        _print(name, plan)
        if found:
            print_break_even(found)
    if not plan.sequences:
        raise SystemExit(FAILURES)


def _here(config: Config) -> Machine:
    return this_machine(config.model.device)


def _given(options: MachineOptions, machine: Machine) -> Machine:
    """The machine with what was given in its place."""
    if options.memory:
        machine = replace(machine, memory=size_bytes(options.memory))
    if options.flops:
        rate = rate_of(options.flops, "--flops", "794T")
        machine = replace(machine, flops=dict.fromkeys(("float32", "bfloat16"), rate))
    if options.bandwidth:
        rate = rate_of(options.bandwidth, "--bandwidth", "3TB/s")
        machine = replace(machine, bandwidth=rate)
    if options.flops and options.bandwidth:
        machine = replace(machine, source="as given")
    return machine


def _with_rates(machine: Machine, dtype: str, options: MachineOptions, config: Config) -> Machine:
    """This machine's rates: as given, else as measured here before, else of the table, else
    measured now and kept."""
    if options.flops and options.bandwidth:
        return machine
    remembered = Remembered(config.home)
    rates = None if options.measure else remembered.rates(machine.name, dtype)
    if rates is None and not options.measure and machine.rate(dtype) and machine.bandwidth:
        return machine
    if rates is None:
        from preread.app.measuring import measured_rates

        note(f"measuring the rates of this machine in {dtype} (once)")
        rates = measured_rates(dtype, config.model.device)
        remembered.keep_rates(machine.name, dtype, *rates)
    given = options.flops or options.bandwidth
    return replace(
        machine,
        flops=machine.flops if options.flops else {dtype: rates[0]},
        bandwidth=machine.bandwidth if options.bandwidth else rates[1],
        source="as given, the other measured here" if given else "measured here",
    )


def _print(name: str, plan: Plan) -> None:
    kv = plan.shape.kv_token_bytes(plan.dtype, plan.kv_precision)
    flops, reads = plan.machine.rate(plan.dtype) / 1e12, plan.machine.bandwidth / 1e9
    weights = "" if plan.precision == "full" else f", weights in {plan.precision}"
    form = "" if plan.kv_precision == "full" else f" in {plan.kv_precision}"
    print(
        f"{name}: {plan.shape.parameters / 1e6:,.0f} M parameters, {plan.dtype}{weights}, {kv:,} "
        f"bytes of KV{form} a token"
    )
    print(
        f"{plan.machine.name}: {size(plan.memory.total)}, {flops:,.3g} TFLOP/s, {reads:,.4g} GB/s "
        f"({plan.machine.source})"
    )
    for text in plan.shape.notes:
        note(f"note: {text}")
    print()
    table(("memory", ""), _memory_rows(plan))
    print()
    for line in sentences(plan):
        print(line)
    if not plan.rates:
        return
    print()
    rows = [
        (f"{r.sequences:,}", r.requests_per_s, f"{_short(r.requests_per_s)} requests/s ({r.bound})")
        for r in plan.rates
        if r.sequences <= 4 * plan.enough or r is plan.rates[-1]
    ]
    for line in text_bars(rows):
        print(line)
    print("\n[engine]")
    for key, value in plan.settings.items():
        print(f"{key} = {value}")


def _memory_rows(plan: Plan) -> list[tuple[str, str]]:
    memory, load = plan.memory, plan.load
    own = f"{load.question:,} + {load.output:,} tokens" if memory.sequence else "keeps no KV"
    return [
        ("all", size(memory.total)),
        ("reserve", size(memory.reserve)),
        ("weights", size(memory.weights)),
        ("workspace of a step", size(memory.workspace)),
        (f"contexts, {load.contexts:,} x {load.context:,} tokens", size(memory.contexts)),
        ("left for sequences", size(max(memory.left, 0))),
        (f"one sequence ({own})", size(memory.sequence + memory.logits)),
    ]


def sentences(plan: Plan) -> list[str]:
    """What it means, for people."""
    if not plan.rates:
        need = plan.memory.total - plan.memory.left + plan.memory.sequence + plan.memory.logits
        return [f"0 sequences fit: one needs {size(need)}, there are {size(plan.memory.total)}."]
    full = plan.rates[-1]
    enough = next(rate for rate in plan.rates if rate.sequences == plan.enough)
    more = {
        "memory": "more would be faster, but do not fit",
        "compute": "more would wait for the matrix units",
        "bandwidth": "more would wait for the memory's bandwidth",
    }[plan.limited_by]
    fit = "fit into one step" if not plan.memory.sequence else "fit"
    return [
        f"{plan.sequences:,} sequences {fit}, limited by {plan.limited_by}: {more}.",
        f"At most {_short(full.requests_per_s)} requests/s, {_short(full.tokens_per_s)} tokens/s; "
        f"the first token after {_short(full.first.seconds)} s, the last after "
        f"{_short(full.spent.seconds)} s.",
        f"{plan.enough:,} reach {ENOUGH:.0%} of that, with the last token after "
        f"{_short(enough.spent.seconds)} s. Reading a context takes {_short(plan.reading_s)} s, "
        "once.",
    ]


def _short(value: float) -> str:
    """Four digits that count: 31543.2 -> '31,540', 0.00012345 -> '0.0001234'."""
    rounded = float(f"{value:.4g}")
    return f"{rounded:,.0f}" if rounded >= 1000 else f"{rounded:.10f}".rstrip("0").rstrip(".")
