"""One mesh axis for chains or rollouts: the check of its sharding, and the constraint that keeps them on it."""

import jax
from jax.sharding import NamedSharding, PartitionSpec

from ._typing import Params

__all__ = ["check_axis_sharding", "free_all_but_the_mapped_axis", "mapped_axis"]


def check_axis_sharding(name: str, sharding: NamedSharding | None, counted: str, count: int) -> None:
    """Raises unless ``sharding`` is None or spreads ``count`` copies evenly over one mesh axis.

    Args:
        name: the argument's name, for messages.
        sharding: what was given for it.
        counted: the name of the argument that holds ``count``.
        count: how many copies there are.
    """
    if sharding is None:
        return
    one_axis = isinstance(sharding, NamedSharding) and len(sharding.spec) == 1
    if not one_axis or not isinstance(sharding.spec[0], str):
        msg = f"{name} must be NamedSharding(mesh, PartitionSpec('axis')), got {sharding!r}."
        raise ValueError(msg)
    size = sharding.mesh.shape[sharding.spec[0]]
    if count % size:
        axis = sharding.spec[0]
        msg = f"{counted}={count} must be a multiple of {size}, the size of mesh axis {axis!r} in {name}."
        raise ValueError(msg)


def mapped_axis(sharding: NamedSharding | None) -> str | None:
    """The mesh axis for ``vmap(spmd_axis_name=…)``."""
    return None if sharding is None else sharding.spec[0]


def free_all_but_the_mapped_axis(tree: Params, sharding: NamedSharding | None) -> Params:
    """Under ``vmap(spmd_axis_name=…)`` a constraint that leaves every axis free still pins the mapped one."""
    if sharding is None:
        return tree
    free = PartitionSpec.UNCONSTRAINED
    return jax.tree.map(
        lambda leaf: jax.lax.with_sharding_constraint(
            leaf, NamedSharding(sharding.mesh, PartitionSpec(*[free] * leaf.ndim))
        ),
        tree,
    )
