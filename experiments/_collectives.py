"""What a compiled program says between devices: its collectives, their bytes, and how often each one runs.

XLA's text is the only place where this stands: the collectives appear when the program is partitioned, and the loops
around them carry their trip counts.
"""

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

__all__ = ["Collective", "collectives", "ring_bytes"]

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
BITS = {"pred": 8, "bf16": 16, "f8": 8, "token": 0}  # others: the number in their name

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_COLLECTIVE = re.compile(rf" = (?P<type>.*?) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CALLED = re.compile(r"(?:to_apply|calls|body|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


class Collective(NamedTuple):
    """One collective of a program.

    Attributes:
        kind: one of ``KINDS``.
        num_bytes: payload of one execution on one device: what goes into an all-reduce, a reduce-scatter, a permute
            or an all-to-all, what comes out of an all-gather.
        times: executions in one call of the program; both branches of a conditional are counted.
        group_size: devices that take part together (all of the program's for a permute).
    """

    kind: str
    num_bytes: int
    times: int
    group_size: int


def collectives(compiled: Any) -> tuple[Collective, ...]:
    """The collectives among two and more devices of a compiled program, in the order of its text.

    Args:
        compiled: what ``jax.jit(function).lower(...).compile()`` gives, or its text.

    Raises:
        ValueError: for a collective inside a loop whose trip count XLA does not know.
    """
    text = compiled if isinstance(compiled, str) else compiled.as_text()
    bodies, entry = _computations(text)
    partitions = re.search(r"num_partitions=(\d+)", text)
    replicas = re.search(r"replica_count=(\d+)", text)
    devices = math.prod(int(found[1]) for found in (partitions, replicas) if found)
    return tuple(found for found in _walk(entry, 1, bodies, devices) if found.group_size > 1)


def ring_bytes(collective: Collective) -> float:
    """Bytes that one device sends with the ring algorithm, over all executions.

    With n devices and B bytes, 2 (n − 1)/n B for an all-reduce, (n − 1)/n B for an all-gather, a reduce-scatter and
    an all-to-all, B for a permute.
    """
    kind, num_bytes, times, size = collective
    share = (size - 1) / size
    return times * num_bytes * {"all-reduce": 2 * share, "collective-permute": 1.0}.get(kind, share)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The instructions of every computation, and the name of the first one to run."""
    bodies, entry, current = {}, "", None
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = bodies.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif line == "}":
            current = None
        elif current is not None:
            current.append(line)
    return bodies, entry


def _walk(name: str, times: int | None, bodies: dict[str, list[str]], devices: int) -> Iterator[Collective]:
    for line in bodies.get(name, ()):
        if found := _COLLECTIVE.search(line):
            if times is None:
                msg = f"the trip count of the loop around this collective is not known: {line.strip()}"
                raise ValueError(msg)
            yield Collective(found["kind"], _payload(found), times, _group_size(line, devices))
            continue  # its to_apply adds two numbers
        inner = times
        if " while(" in line:
            trips = _TRIP_COUNT.search(line)
            inner = times * int(trips[1]) if trips and times is not None else None
        called = _CALLED.findall(line)
        for branches in _BRANCHES.findall(line):
            called += [branch.strip().lstrip("%") for branch in branches.split(",")]
        for computation in called:
            yield from _walk(computation, inner, bodies, devices)


def _payload(found: re.Match) -> int:
    sizes = [_size(*array) for array in _ARRAY.findall(found["type"])]
    if (
        found["start"] and found["kind"] != "all-reduce"
    ):  # operands and results together, and scalars of context
        sizes = [max(sizes)]
    return sum(sizes)


def _size(dtype: str, shape: str) -> int:
    bits = next((bits for name, bits in BITS.items() if dtype.startswith(name)), None)
    if bits is None:
        bits = int(re.search(r"\d+", dtype)[0])
    return bits * math.prod(int(n) for n in shape.split(",") if n) // 8


def _group_size(line: str, devices: int) -> int:
    """Of the four ways XLA writes groups: named axes of a mesh, an iota, a list, and nothing for all."""
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", line):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", found[1]))
        used = re.findall(
            r"'([^']+)'(?::\(\d+\)(\d+))?", found[2]
        )  # 'axis':(before)size is a part of an axis
        return math.prod(int(part or sizes[axis]) for axis, part in used)
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]<=", line):
        return int(found[1])
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return len(found[1].split(","))
    return devices
