"""Reads what XLA compiled: collectives, copies, padding and estimated cycles of optimised HLO text.

A loop's body counts as often as it runs, where the compiler knows how often that is.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2, "s64": 8, "u64": 8, "f64": 8}
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")
_INSTRUCTION = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*)$")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLED = re.compile(r"(?:body|calls|to_apply|branch_computations)=\{?((?:%?[\w.\-]+(?:, )?)+)\}?")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_CYCLES = re.compile(r'estimated_cycles":"(\d+)"')
_SCOPE = re.compile(r'op_name="([^"]*)"')
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# These move nothing: they name, regroup or end what another instruction made.
_NO_TRAFFIC = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call"}


@dataclass(frozen=True)
class Buffer:
    """One array that an instruction leaves."""

    dtype: str
    dims: tuple[int, ...]
    minor: tuple[int, ...]  # axes from the fastest to the slowest
    layout: str  # "T(8,128)(2,1)S(1)": tiles and memory space

    @property
    def size(self) -> int:
        """Its values in bytes."""
        return math.prod(self.dims) * _BYTES.get(self.dtype, 4)

    @property
    def padded(self) -> int:
        """What it takes with the tiles filled up, in bytes."""
        tile = re.match(r"T\(([\d,]+)\)", self.layout)
        if not tile or not self.dims or len(self.minor) != len(self.dims):
            return self.size
        sizes = [self.dims[axis] for axis in self.minor]
        for place, width in enumerate(reversed([int(width) for width in tile[1].split(",")])):
            if place < len(sizes):
                sizes[place] = -(-sizes[place] // width) * width
        return math.prod(sizes) * _BYTES.get(self.dtype, 4)

    @property
    def on_chip(self) -> bool:
        """Whether it lies in a TPU's vector memory, so that it is never read from HBM."""
        return "S(1)" in self.layout

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


@dataclass(frozen=True)
class Instruction:
    """A line of HLO outside of fusions, and how often it runs."""

    name: str
    operation: str
    buffers: tuple[Buffer, ...]
    rest: str  # of the line, from the operands on
    times: int

    @property
    def size(self) -> int:
        """Bytes of its results; of a copy that has started, those of the copy."""
        return sum(buffer.size for buffer in (self.buffers[:1] if self.operation == "copy-start" else self.buffers))

    @property
    def scope(self) -> str:
        """The named scopes that it came from."""
        found = _SCOPE.search(self.rest)
        return found[1] if found else ""

    @property
    def cycles(self) -> int:
        """The TPU compiler's estimate of all its runs, collectives left out."""
        found = _CYCLES.search(self.rest)
        return self.times * int(found[1]) if found else 0


@dataclass(frozen=True)
class Collective:
    """All collectives of one kind."""

    kind: str
    count: int  # as often as they run
    size: int  # bytes of their results on one device
    overlapping: int  # of the count, started and ended apart

    def sent(self) -> int:
        """Returns the bytes that a device sends: an all-reduce passes its data around twice."""
        return self.size * (2 if self.kind == "all-reduce" else 1)


def buffers(text: str) -> tuple[Buffer, ...]:
    """Reads the arrays of a result, a tuple's one after another."""
    return tuple(
        Buffer(
            dtype,
            tuple(int(size) for size in dims.split(",") if size),
            tuple(int(axis) for axis in minor.split(",") if axis),
            layout,
        )
        for dtype, dims, minor, layout in _SHAPE.findall(text)
        if dtype not in ("token", "opaque")
    )


class Program:
    """The instructions of a compiled program that run, outside of fusions."""

    def __init__(self, text: str):
        self._lines: dict[str, list[re.Match]] = {}
        self._entry, current = "", None
        for line in text.splitlines():
            header = _HEADER.match(line)
            if header:
                current = self._lines.setdefault(header[2], [])
                self._entry = header[2] if header[1] else self._entry
            elif current is not None and (found := _INSTRUCTION.match(line)):
                current.append(found)

    @cached_property
    def instructions(self) -> list[Instruction]:
        """All of them, in no order that matters."""
        return list(self._within(self._entry, 1))

    def _within(self, computation: str, times: int) -> Iterator[Instruction]:
        for line in self._lines.get(computation, ()):
            _, name, shapes, operation, rest = line.groups()
            yield Instruction(name, operation, buffers(shapes), rest, times)
            if operation in ("while", "conditional", "call", "async-start"):
                inner = times * (self._trips(rest) if operation == "while" else 1)
                for called in _CALLED.findall(rest):
                    for one in called.split(", "):
                        yield from self._within(one.lstrip("%"), inner)

    def _trips(self, loop: str) -> int:
        """Returns how often a loop runs, 1 where that is not known.

        GPU's compiler says it. TPU's does not: there it is the one bound of the condition, because
        the counters of `jax.lax.scan` and `fori_loop` rise from 0 by 1.
        """
        known, condition = _TRIPS.search(loop), _CONDITION.search(loop)
        if known:
            return int(known[1])
        lines = self._lines.get(condition[1], []) if condition else []
        bounds = [int(line[5].split(")")[0]) for line in lines if line[4] == "constant" and line[3].startswith("s32[]")]
        return bounds[0] if len(bounds) == 1 and any("direction=LT" in line[5] for line in lines) else 1

    def collectives(self) -> list[Collective]:
        """Returns the collectives by kind, the largest first."""
        found = {kind: [0, 0, 0] for kind in COLLECTIVES}
        for one in self.instructions:
            kind = one.operation.removesuffix("-start")
            if kind not in found:
                continue
            apart = one.operation.endswith("-start") and '"is_sync":true' not in one.rest
            # Of these the result holds the operands, too.
            doubled = one.operation in ("all-gather-start", "collective-permute-start") and len(one.buffers) > 1
            half = one.buffers[len(one.buffers) // 2 :] if doubled else one.buffers
            for place, value in enumerate((1, sum(buffer.size for buffer in half), int(apart))):
                found[kind][place] += one.times * value
        all_kinds = [Collective(kind, *values) for kind, values in found.items() if values[0]]
        return sorted(all_kinds, key=lambda one: -one.size)

    def copies(self, most: int = 5) -> list[Instruction]:
        """Returns the copies that move most bytes over all their runs."""
        found = [one for one in self.instructions if one.operation in ("copy", "copy-start", "transpose")]
        return sorted(found, key=lambda one: -one.size * one.times)[:most]

    def padding(self) -> tuple[float, list[str]]:
        """Returns the share of bytes that only fill tiles, and the shapes that waste most."""
        wasted: dict[str, int] = {}
        total = 0
        for one in self._moving():
            for buffer in one.buffers:
                total += one.times * buffer.padded
                wasted[str(buffer)] = wasted.get(str(buffer), 0) + one.times * (buffer.padded - buffer.size)
        worst = sorted((name for name in wasted if wasted[name]), key=lambda name: -wasted[name])
        return sum(wasted.values()) / max(total, 1), worst[:5]

    def traffic(self) -> int:
        """Returns the least bytes that pass the memory: every result is written and read once."""
        total = 0
        for one in self._moving():
            # A library's workspace is a result of its call and seldom used as a whole.
            scratch = ("s8", "u8") if one.operation == "custom-call" else ()
            kept = [buffer.padded for buffer in one.buffers if not buffer.on_chip and buffer.dtype not in scratch]
            total += 2 * self._written(one) * sum(kept)
        return total

    def cycles(self) -> int:
        """Returns the TPU compiler's estimate; 0 where there is none."""
        return sum(one.cycles for one in self.instructions)

    def _moving(self) -> Iterator[Instruction]:
        return (
            one for one in self.instructions if one.operation not in _NO_TRAFFIC and not one.operation.endswith("-done")
        )

    def _written(self, one: Instruction) -> int:
        """Returns how often its whole result is written: an update in place writes a part a run."""
        called = re.search(r"calls=%?([\w.\-]+)", one.rest)
        inside = self._lines.get(called[1], ()) if called else ()
        updates = one.operation == "dynamic-update-slice" or any(line[4] == "dynamic-update-slice" for line in inside)
        return 1 if updates else one.times
