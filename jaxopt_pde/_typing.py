"""The vocabulary shared by all floors."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Key, PyTree

__all__ = ["ArrayTree", "GradFn", "InnerStep", "Params", "ScalarOrSchedule", "Smoothed", "ValueFn"]

if TYPE_CHECKING:  # type checkers have no word for a pytree
    Params: TypeAlias = Any
    ArrayTree: TypeAlias = Any
else:
    Params = PyTree[Float[Array, "..."]]
    """Any pytree of real floating arrays."""

    ArrayTree = PyTree[Array]
    """Any pytree of arrays, such as a minibatch."""

ScalarOrSchedule = float | jax.Array | Callable[[Any], Any]
"""A number, or a function of the optimiser's step count (an int32 scalar that starts at 0)."""

ValueFn = Callable[[Params], Float[Array, ""]]
"""A loss of the parameters alone."""


class InnerStep(NamedTuple):
    """What the optimiser tells ``grad_fn`` at every inner gradient.

    Attributes:
        step: inner step, 0 … ``num_steps - 1`` (traced int32).
        chain: chain, 0 … ``num_chains - 1`` (traced int32).
        key: a typed PRNG key used nowhere else, for dropout, augmentation or the choice of a minibatch.
    """

    step: Int[Array, ""]
    chain: Int[Array, ""]
    key: Key[Array, ""]

    def batch(self, batches: ArrayTree) -> ArrayTree:
        """The minibatch of this step and chain, ``batches[step, chain]`` on every leaf.

        Written as two subscripts, the lookup is a gather, for which devices that hold the batches of their own chains
        ask one another at every step. This one knows that all chains together want all rows in order: with axis 1
        of ``batches`` spread over the chains' mesh axis nothing is communicated.

        Args:
            batches: a pytree whose leaves have leading axes [num_steps, num_chains].

        Returns:
            The tree without those two axes.

        Raises:
            ValueError: for a leaf with fewer than two axes.

        Example:
            >>> import jax, jax.numpy as jnp, jaxopt_pde
            >>> loss = lambda p, batch: jnp.mean((batch @ p - 1.0) ** 2)
            >>> batches = jax.random.normal(jax.random.key(0), (5, 2, 8, 3))  # 5 steps of 2 chains, 8 rows each
            >>> grad_fn = lambda p, s: jax.grad(loss)(p, s.batch(batches))
            >>> jaxopt_pde.smoothing.langevin(grad_fn, jnp.zeros(3), jax.random.key(1), smoothing_time=1.0,
            ...     temperature=0.0, step_size=0.1, num_steps=5, num_chains=2).gradient.shape
            (3,)
        """

        def pick(leaf):
            leaf = jnp.asarray(leaf)
            if leaf.ndim < 2:
                msg = f"every leaf of batches needs leading axes [num_steps, num_chains], got shape {leaf.shape}."
                raise ValueError(msg)
            return _row_of_chain(leaf[self.step], self.chain)

        return jax.tree.map(pick, batches)


@jax.custom_batching.custom_vmap
def _row_of_chain(rows: Array, chain: Int[Array, ""]) -> Array:
    sharding = jax.typeof(rows).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return rows[chain]
    row = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    return jax.sharding.auto_axes(lambda rows, chain: rows[chain], out_sharding=row)(rows, chain)


@_row_of_chain.def_vmap
def _rows_of_chains(axis_size: int, in_batched: list[bool], rows: Array, chain: Array) -> tuple[Array, bool]:
    rows_batched, chain_batched = in_batched
    if not rows_batched and chain_batched and rows.shape[0] == axis_size:
        # The chains of InnerStep are numbered 0, 1, … along the axis they are mapped over.
        mesh, (axis, *others) = jax.typeof(rows).sharding.mesh, jax.typeof(rows).sharding.spec
        if (
            axis is None and AxisType.Explicit in mesh.axis_types
        ):  # each device takes its own of the rows it has
            rows = jax.sharding.reshard(rows, PartitionSpec(*jax.typeof(chain).sharding.spec, *others))
        return rows, True
    axes = (0 if rows_batched else None, 0 if chain_batched else None)
    return jax.vmap(lambda rows, chain: rows[chain], axes)(rows, chain), True


GradFn = Callable[[Params, InnerStep], Params]
"""``(params, InnerStep) -> gradient``, a tree like ``params``; may be stochastic."""


class Smoothed(NamedTuple):
    """An estimate of the relaxed loss u(x, t) and of its gradient.

    Attributes:
        gradient: estimate of ∇u(x, t); tree, shapes and dtypes of ``params``. Unit [loss/param].
        value: estimate of u(x, t) where the method gives one, else None. Unit [loss].
        positions: the last particles with a leading axis ``num_chains`` on every leaf, to warm-start the
            next call; None where the method has no particles.
        num_gradients: gradient evaluations spent (int32).
        info: diagnostics, a dict of arrays; each method documents its own.
    """

    gradient: Params
    value: Float[Array, ""] | None
    positions: Params | None
    num_gradients: Int[Array, ""]
    info: dict[str, Array]
