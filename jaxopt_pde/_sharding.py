"""One mesh axis for chains or rollouts: the check of its sharding, and the constraint that keeps them on it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from ._typing import Params

__all__ = ["check_axis_sharding", "free_all_but_the_mapped_axis", "indices_along", "vmap_over_axis"]


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
    if _is_explicit(sharding) and jax.__version_info__ < (0, 10):
        msg = f"{name} has an explicit mesh axis, which needs JAX 0.10, got {jax.__version__}: make it AxisType.Auto."
        raise ValueError(msg)
    size = sharding.mesh.shape[sharding.spec[0]]
    if count % size:
        axis = sharding.spec[0]
        msg = f"{counted}={count} must be a multiple of {size}, the size of mesh axis {axis!r} in {name}."
        raise ValueError(msg)


def vmap_over_axis(
    function: Callable[..., Params], sharding: NamedSharding | None, in_axes
) -> Callable[..., Params]:
    """``jax.vmap(function, in_axes)(indices, *rest)`` with the mapped axis on that of ``sharding``.

    Args:
        function: its first argument is an index 0 … n − 1.
        sharding: None for a plain vmap.
        in_axes: as of ``jax.vmap``.
    """
    if sharding is None:
        return jax.vmap(function, in_axes)
    if not _is_explicit(sharding):
        return jax.vmap(function, in_axes, spmd_axis_name=sharding.spec[0])

    def mapped(indices: Int[Array, " n"], *rest):  # the types of arrays say where they are: vmap follows them
        return jax.vmap(function, in_axes)(jax.sharding.reshard(indices, sharding), *rest)

    return mapped


def indices_along(leaf: Array) -> Int[Array, " n"]:
    """0 … n − 1 along the first axis of ``leaf``: on its devices, where types of arrays say where they are."""
    indices, sharding = jnp.arange(leaf.shape[0], dtype=jnp.int32), jax.typeof(leaf).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return indices
    return jax.sharding.reshard(indices, NamedSharding(sharding.mesh, PartitionSpec(sharding.spec[0])))


def free_all_but_the_mapped_axis(tree: Params, sharding: NamedSharding | None) -> Params:
    """Under ``vmap(spmd_axis_name=…)`` a constraint that leaves every axis free still pins the mapped one."""
    if sharding is None or _is_explicit(sharding):
        return tree
    free = PartitionSpec.UNCONSTRAINED
    return jax.tree.map(
        lambda leaf: jax.lax.with_sharding_constraint(
            leaf, NamedSharding(sharding.mesh, PartitionSpec(*[free] * leaf.ndim))
        ),
        tree,
    )


def _is_explicit(sharding: NamedSharding) -> bool:
    mesh = sharding.mesh
    return dict(zip(mesh.axis_names, mesh.axis_types, strict=True))[sharding.spec[0]] == AxisType.Explicit
