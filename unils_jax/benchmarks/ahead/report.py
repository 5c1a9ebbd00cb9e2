"""What a program needs on a machine that is not there: a compilation's figures and table."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from unils_jax.benchmarks.ahead.hlo import Program
from unils_jax.benchmarks.ahead.machines import Machine
from unils_jax.benchmarks.timing import markdown, program_bytes

NOTE = "Compilations, not runs: nothing was executed, and times are bounds or the compiler's estimates."


def compiled_for(machine: Machine, program: jax.stages.Compiled, flops: int, useful: int) -> dict[str, Any]:
    """Returns the figures of a program compiled for a machine.

    The roofline time is the longest of three: products at the data sheet's bfloat16 peak, every
    intermediate result written to memory and read once, and the bytes of collectives over the
    links. The utilisation that it bounds counts the useful products alone.

    Args:
        machine: What it was compiled for.
        program: The compiled program.
        flops: FLOP of all its products, over all devices.
        useful: The same without what rematerialisation repeats.
    """
    chip, hlo = machine.chip, Program(program.as_text())
    memory = program_bytes(program)
    memory["code"] = program.memory_analysis().generated_code_size_in_bytes
    collectives, (padding, padded) = hlo.collectives(), hlo.padding()
    least_s = {
        "products": flops / machine.num_devices / chip.flops,
        "memory": (hlo.traffic() + memory["arguments"]) / chip.bandwidth,
        "links": sum(one.sent() for one in collectives) / chip.link if chip.link else 0.0,
    }
    roofline_s = max(least_s.values())
    peak = chip.flops * machine.num_devices
    estimate_s = hlo.cycles() / chip.clock if chip.clock else 0.0
    return {
        "topology": machine.name,
        "num_devices": machine.num_devices,
        "chip": chip.kind,
        "memory_bytes": memory,
        "program_bytes": sum(memory.values()),
        "chip_bytes": chip.memory,
        "memory_share": sum(memory.values()) / chip.memory,
        "compiler_flops": compiler_flops(program),
        "collectives": [vars(one) for one in collectives],
        "padding_share": padding,
        "padded": padded,
        "copies": [
            {"result": ", ".join(map(str, one.buffers)), "bytes": one.size * one.times, "scope": one.scope}
            for one in hlo.copies()
        ],
        "least_s": least_s,
        "roofline_s": roofline_s,
        "roofline_utilisation": useful / roofline_s / peak,
        "estimate_s": estimate_s or None,
        "estimated_utilisation": useful / estimate_s / peak if estimate_s else None,
    }


def compiler_flops(program: jax.stages.Compiled) -> float | None:
    """Returns the compiler's count for one device, loops' bodies once; None where it has none."""
    analysis = program.cost_analysis()
    analysis = analysis[0] if isinstance(analysis, list) and analysis else analysis
    return analysis.get("flops") if isinstance(analysis, Mapping) else None


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the table of compilations, a line for each, then copies and padding."""
    cells = [
        {
            "program": row["program"],
            "for": row["topology"],
            "mesh": "-" if row["mesh"] is None else " x ".join(map(str, row["mesh"].values())),
            "batch": row["batch_size"],
            "settings": row["settings"] or "-",
            "GB a chip": row["program_bytes"] / 1e9,
            "of its memory": f"{row['memory_share']:.0%}",
            "GFLOP": row["step_flops"] / 1e9,
            "compiler's, a chip": None if row["compiler_flops"] is None else row["compiler_flops"] / 1e9,
            "collectives a step": _collectives(row["collectives"]),
            "padding": f"{row['padding_share']:.0%}",
            "roofline ms": 1e3 * row["roofline_s"],
            "bounds utilisation": f"{row['roofline_utilisation']:.0%}",
            "compiler's ms": None if row["estimate_s"] is None else 1e3 * row["estimate_s"],
            "compile s": row["compile_s"],
        }
        for row in rows
    ]
    return "\n\n".join([markdown(cells), NOTE, *map(_details, rows)])


def _collectives(found: Sequence[Mapping[str, Any]]) -> str:
    parts = [
        f"{one['kind']} {one['size'] / 1e6:,.3g} MB in {one['count']} ({one['overlapping']} overlap)" for one in found
    ]
    return ", ".join(parts) or "none"


def _details(row: Mapping[str, Any]) -> str:
    copies = [f"{one['result']} {one['bytes'] / 1e6:,.1f} MB ({one['scope'][-60:]})" for one in row["copies"]]
    lines = [f"{row['program']} on {row['topology']}: longest copies: {'; '.join(copies) or 'none'}"]
    if row["padded"]:
        lines.append(f"most padded: {', '.join(row['padded'])}")
    return "; ".join(lines)
