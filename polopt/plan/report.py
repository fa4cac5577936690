"""A plan in words and tables, and as JSON."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from polopt.plan.compile import Program
from polopt.plan.memory import beside
from polopt.plan.planner import Plan
from polopt.train.parallel.mesh import row_parts

GIB, MIB = 2**30, 2**20
_WIDTH = 80  # columns, for sentences


def parts_of(plan: Plan) -> dict[str, dict[str, int]]:
    """Bytes on a device by what they are, while each program runs: {step: {part: bytes}}.

    Without a compiler they are of an update and of decoding, and what is not held is estimated.
    """
    resident = _resident(plan)
    if not plan.programs:
        return {
            "update": {**resident, **_between(plan, "update", plan.estimated)},
            "decode": {**resident, "batch and cache": plan.cache},
        }
    return {
        program.name: {**resident, **_own(plan, program)}
        for program in plan.programs
        if program.bytes is not None
    }


def _resident(plan: Plan) -> dict[str, int]:
    """What lies there from step to step."""
    return {
        "parameters": plan.held.parameters,
        "optimiser": plan.held.optimiser,
        "frozen models": plan.held.frozen,
    }


def _own(plan: Plan, program: Program) -> dict[str, int]:
    """What a program takes besides what the run holds."""
    size = program.bytes
    assert size is not None
    taken = plan.held.total - beside(plan.job, plan.sizes, program.name)
    return {
        "batch and cache": size.arguments - taken + size.outputs - size.reused,
        **_between(plan, program.name, size.temporary),
        "code": size.code,
    }


def _between(plan: Plan, step: str, temporary: int) -> dict[str, int]:
    """What comes and goes while a program runs; what layers keep of it is counted."""
    kept = min(plan.activations, temporary) if step == "update" else 0
    return {"activations": kept, "temporary": temporary - kept}


def text(plan: Plan) -> str:
    """What a terminal shows."""
    blocks = [
        _title(plan),
        _verdict(plan),
        _memory(plan),
        _micro_batches(plan),
        _collectives(plan),
        _work(plan),
        _advice(plan),
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def _title(plan: Plan) -> list[str]:
    job, where, config = plan.job, plan.where, plan.config
    devices = f"{where.chips} {'chips' if where.chip else 'CPU devices'}"
    mesh = " x ".join(f"{name}={size}" for name, size in plan.sizes.items() if size > 1)
    spread = "a copy on each" if config.parallel == "pmap" else f"mesh {mesh or 'of one device'}"
    update = job.alg.update
    _, rows = job.split(plan.micro_batch, row_parts(plan.sizes))
    return [
        f"{config.model}, {job.alg.name or config.algorithm}, on {where.name}: {devices}, {spread}",
        f"a rollout: {job.prompts} prompts of {job.prompt} tokens, {job.group_size} completions of "
        f"{job.completion} each",
        f"its update: {update.epochs} x {update.minibatches} optimiser steps of {rows} rows, "
        f"{plan.micro_batch} per device and pass",
        f"polopt train --algorithm {config.algorithm} --compute-dtype {config.compute_dtype} "
        f"--max-new-tokens {config.max_new_tokens}",
        f"  {config.flags()}",
    ]


def _verdict(plan: Plan) -> list[str]:
    if not plan.programs:
        word = "fits" if plan.fits else "does not fit"
        return [f"{word}, by an estimate: no compiler was asked"]
    lines = ["fits" if plan.fits else "does not fit"]
    for program in plan.programs:
        if program.refusal is not None:
            lines.append(f"the {program.name} is refused by the compiler: {program.refusal}")
        elif not plan.has_room(program):
            beside_it = _gib(beside(plan.job, plan.sizes, program.name))
            lines.append(
                f"the {program.name} would fit alone, but not beside the {beside_it} GiB that lie "
                "there"
            )
    if not plan.fits and plan.where.chip and plan.config.effort == "quick":
        lines.append("asked with quick effort; with --effort full less may be needed")
    first, *reasons = lines
    wrapped = (
        textwrap.fill(reason, _WIDTH, initial_indent="  ", subsequent_indent="    ")
        for reason in reasons
    )
    return [first, *wrapped]


def _memory(plan: Plan) -> list[str]:
    """The table of bytes."""
    found = parts_of(plan) or {"held": _resident(plan)}
    parts = dict.fromkeys(part for column in found.values() for part in column)
    names = [name for name in parts if any(column.get(name) for column in found.values())]
    most = max(sum(column.values()) for column in found.values())
    unit, size = ("GiB", GIB) if most >= GIB else ("MiB", MIB)

    def said(bytes_: float) -> str:
        return f"{bytes_ / size:,.2f}"

    rows = [[name, *(said(column.get(name, 0)) for column in found.values())] for name in names]
    rows.append(["total", *(said(sum(column.values())) for column in found.values())])
    head = [f"{unit} on a device (of {said(plan.where.memory)})", *found]
    return _table(head, rows)


def _micro_batches(plan: Plan) -> list[str]:
    if not plan.tried:
        return []
    tried = ", ".join(f"{f.micro_batch} {'fits' if f.fits else 'does not'}" for f in plan.tried)
    largest = plan.largest
    known = f"largest micro-batch known to fit: {largest}" if largest else "no micro-batch fits"
    return [f"{known} (rows of a device and pass: {tried})"]


def _collectives(plan: Plan) -> list[str]:
    links = plan.where.links
    rows = [
        [
            program.name + (", a token" if program.name == "decode" else ""),
            sent.kind,
            f"{sent.count:,}",
            _short(sent.bytes / 1e6),
            _short(sent.bytes / links / 1e6) if links else "-",
        ]
        for program in plan.programs
        for sent in program.collectives
    ]
    per_link = f"MB a link (of {links})" if links else "a link"
    head = ["sent by a device", "", "number", "MB", per_link]
    return _table(head, rows) if rows else []


def _work(plan: Plan) -> list[str]:
    rows = []
    for part in ("prefill", "decode", "scoring", "update"):
        flops = getattr(plan.flops, part)
        if flops:
            time = plan.times.get(part)
            least = [_short(time.least), time.bound] if time else ["-", ""]
            rows.append([part, _short(flops / 1e12), *least])
    total = sum(time.least for time in plan.times.values())
    rows.append(["total", _short(plan.flops.total / 1e12), _short(total) if total else "-", ""])
    note = "estimate: no step is faster; activations, latencies and the host come on top"
    table = _table(["a training step", "TFLOP", "seconds, at least", "bound by"], rows)
    return [*table, *([note] if plan.times else [])]


def _advice(plan: Plan) -> list[str]:
    if plan.fits:
        return []
    if not plan.advice:
        return ["nothing that was looked at would fit: take a larger slice, or a smaller model"]
    lines = ["would fit:"]
    for advice in plan.advice:
        how = "compiled" if advice is plan.confirmed else "estimate"
        lines.append(f"  {advice.config.flags()}  ({_gib(advice.bytes)} GiB, {how})")
    return lines


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns side by side: words to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = (
            cell.ljust(width) if i == 0 or not _numeric(i, rows) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join(cells).rstrip()

    return [line(head), *map(line, rows)]


def _numeric(column: int, rows: Sequence[Sequence[str]]) -> bool:
    return all(row[column][:1].isdigit() or row[column] in ("-", "") for row in rows)


def _short(x: float) -> str:
    """Three digits, and all that stand before the point."""
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def _gib(size: float) -> str:
    return f"{size / GIB:,.2f}"


def as_json(plan: Plan) -> dict[str, Any]:
    """Everything that is known, as plain values; sizes are bytes of a device, times seconds."""
    return {
        "config": dataclasses.asdict(plan.config),
        "slice": {
            "name": plan.where.name,
            "chips": plan.where.chips,
            "memory": plan.where.memory,
            "links": plan.where.links,
        },
        "mesh": dict(plan.sizes),
        "micro_batch": plan.micro_batch,
        "fits": plan.fits,
        "compiled": bool(plan.programs),
        "held": dataclasses.asdict(plan.held),
        "activations": plan.activations,
        "estimated_update": plan.estimated,
        "cache": plan.cache,
        "programs": {program.name: _program(plan, program) for program in plan.programs},
        "tried": [dataclasses.asdict(found) for found in plan.tried],
        "largest_micro_batch": plan.largest,
        "flops": {**dataclasses.asdict(plan.flops), "total": plan.flops.total},
        "seconds_at_least": {
            part: {**dataclasses.asdict(time), "least": time.least, "bound": time.bound}
            for part, time in plan.times.items()
        },
        "advice": list(_advice_values(plan)),
    }


def _program(plan: Plan, program: Program) -> dict[str, Any]:
    return {
        "seconds_to_compile": program.seconds,
        "refusal": program.refusal,
        "bytes": None if program.bytes is None else dataclasses.asdict(program.bytes),
        "needed": plan.needed(program),
        "collectives": [dataclasses.asdict(sent) for sent in program.collectives],
    }


def _advice_values(plan: Plan) -> Iterator[dict[str, Any]]:
    for advice in plan.advice:
        yield {
            "flags": advice.config.flags(),
            "estimated_bytes": advice.bytes,
            "compiled": advice is plan.confirmed,
        }
