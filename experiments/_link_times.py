"""How long an all-reduce takes on links of published speed: a prediction, by the formulas of rings and trees."""

import math
from typing import NamedTuple

from experiments._published import published

__all__ = ["FABRICS", "Fabric", "Link", "all_reduce_seconds", "fabric", "ring_seconds", "tree_seconds"]

FABRICS = {
    "H100: NVLink 4, NDR InfiniBand": ("NVLink 4", "InfiniBand NDR, a port a GPU"),
    "PCIe 5 cards, 100 GbE a node": ("PCIe 5.0 x16", "100 GbE, a port a node of 8"),
    "TPU v5p": ("TPU v5p ICI", None),
    "TPU v5e": ("TPU v5e ICI", "TPU v5e data center network"),
}
"""The links inside a node (a pod of TPUs) and those between nodes, by their names in ``link_speeds.json``."""


class Link(NamedTuple):
    """What joins accelerators.

    Attributes:
        bytes_per_second: of one accelerator, in one direction.
        ring_step: seconds that each of a ring's steps waits, whatever it carries.
        tree_step: the same for a level of a tree.
    """

    bytes_per_second: float
    ring_step: float = 0.0
    tree_step: float = 0.0


class Fabric(NamedTuple):
    """Nodes of accelerators.

    Attributes:
        node_size: accelerators that the inner links join.
        inner: the links inside a node.
        outer: those between nodes, or None if there is one node only.
    """

    node_size: int
    inner: Link
    outer: Link | None


def fabric(name: str) -> Fabric:
    """One of :data:`FABRICS`, with the published speeds."""
    inner, outer = FABRICS[name]
    (row,) = published("link_speeds").where(link=inner)
    return Fabric(row["joins"], _link(inner), outer and _link(outer))


def _link(name: str) -> Link:
    (row,) = published("link_speeds").where(link=name)
    return Link(row["GB/s"] * 1e9, (row["ring step us"] or 0) * 1e-6, (row["tree step us"] or 0) * 1e-6)


def ring_seconds(num_bytes: float, devices: int, link: Link) -> float:
    """Of an all-reduce by a ring: 2 (n − 1)/n B/w + 2 (n − 1) a.

    Args:
        num_bytes: B, what every device has to sum.
        devices: n.
        link: w and a; a reduce-scatter and an all-gather of n − 1 steps each.
    """
    steps = 2 * (devices - 1)
    return steps * num_bytes / devices / link.bytes_per_second + steps * link.ring_step


def tree_seconds(num_bytes: float, devices: int, link: Link) -> float:
    """Of an all-reduce by two complementary binary trees, pipelined: 2 B/w + 2 ⌈log₂ n⌉ a, and 0 for n = 1."""
    if devices == 1:
        return 0.0
    return 2 * num_bytes / link.bytes_per_second + 2 * math.ceil(math.log2(devices)) * link.tree_step


def all_reduce_seconds(num_bytes: float, devices: int, fabric: Fabric) -> float:
    """Of an all-reduce in two levels: rings inside the nodes, and the better of ring and tree between them.

    With m devices a node, a reduce-scatter inside leaves B/m bytes on each device, which sums them with its n/m
    namesakes of the other nodes over its own share of the network; an all-gather inside ends it.

    Args:
        num_bytes: B.
        devices: n, at most one node or a multiple of it.
        fabric: m, and the links.

    Raises:
        ValueError: for devices that do not fill nodes, or for several nodes without links between them.
    """
    inside = min(devices, fabric.node_size)
    nodes = devices // inside
    if nodes * inside != devices or (nodes > 1 and fabric.outer is None):
        msg = f"devices must be one node of {fabric.node_size} or whole nodes with links between, got {devices!r}."
        raise ValueError(msg)
    seconds = ring_seconds(num_bytes, inside, fabric.inner)
    if nodes > 1:
        between = (ring_seconds, tree_seconds)
        seconds += min(formula(num_bytes / inside, nodes, fabric.outer) for formula in between)
    return seconds
