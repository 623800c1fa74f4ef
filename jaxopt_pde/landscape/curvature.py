"""Curvature of a mean loss times a vector: the Hessian, or its positive part, the Gauss-Newton matrix."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key

from .. import _validate
from .._arithmetic import cast_up
from .._noise import draw_noise
from .._typing import Params
from ._batches import Batches, Loader, each_batch, make_batches, mean_over_batches

__all__ = ["Curvature", "GaussNewton", "hessian_vector_product"]


@dataclasses.dataclass(frozen=True)
class GaussNewton:
    """A loss ℓ(f(x)) whose curvature is taken as Jᵀ ∇²ℓ J, the Hessian without the curvature of f.

    It stands wherever a ``loss_fn(params, batch)`` does, and is one; the spectra then are those of the generalised
    Gauss-Newton matrix, which is positive semi-definite for a convex ℓ. For cross-entropy it is the Fisher matrix.
    Hashable, so that two of the same functions share what was compiled.

    Attributes:
        outputs_fn: f, ``(params, batch) -> outputs``, a tree of floating arrays.
        loss_of_outputs: ℓ, ``(outputs, batch) -> scalar``, a mean over the batch's examples.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxopt_pde import landscape
        >>> loss_fn = landscape.GaussNewton(lambda w, x: jnp.sin(w * x), lambda y, x: 0.5 * jnp.mean(y**2))
        >>> w, x = jnp.array(2.0), jnp.array([1.0])
        >>> product = landscape.hessian_vector_product(loss_fn, w, x, jnp.array(1.0))
        >>> print(f"{product:.4f}, of the Hessian {jax.hessian(loss_fn)(w, x):.4f}")
        0.1732, of the Hessian -0.6536

    References:
        Schraudolph 2002, Fast curvature matrix-vector products for second-order gradient descent, section 3.
    """

    outputs_fn: Callable[[Params, Any], Any]
    loss_of_outputs: Callable[[Any, Any], Float[Array, ""]]

    def __call__(self, params: Params, batch: Any) -> Float[Array, ""]:
        """The loss."""
        return self.loss_of_outputs(self.outputs_fn(params, batch), batch)


def hessian_vector_product(
    loss_fn: Callable[[Params, Any], Float[Array, ""]],
    params: Params,
    data: Any,
    vector: Params,
    *,
    batch_size: int | None = None,
) -> Params:
    """∇²f(x) v of a mean loss f over all of the data, without the matrix.

    Forward over reverse, about the cost of two gradients, in the memory of one batch. Compiled once for one
    ``loss_fn``; weights and data are arguments of what is compiled.

    Args:
        loss_fn: f, ``(params, batch) -> scalar``, the mean over the batch's examples. A :class:`GaussNewton` gives
            products with the Gauss-Newton matrix.
        params: x, a tree of floating arrays. Those of fewer than 32 bits are raised to float32, and so is all that
            ``loss_fn`` computes from them.
        data: a tree of arrays with a leading example axis, or a function that returns a fresh iterator over batches,
            the same ones each time it is called; then the loop over batches runs on the host.
        vector: v, a tree like ``params``.
        batch_size: examples at a time (static); None for all. It changes memory and rounding, not the result.

    Returns:
        A tree like ``params`` in [loss/param² · v], at least float32.

    Raises:
        ValueError, TypeError: another tree, integer or complex leaves, a loss that is no scalar, no data.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxopt_pde import landscape
        >>> loss_fn = lambda w, x: 0.5 * jnp.mean((x @ w) ** 2)
        >>> x = jnp.array([[1.0, 0.0], [0.0, 2.0]])
        >>> print(landscape.hessian_vector_product(loss_fn, jnp.ones(2), x, jnp.ones(2), batch_size=1))
        [0.5 2. ]

    References:
        Pearlmutter 1994, Fast exact multiplication by the Hessian.
    """
    _validate.check_float_tree("params", params)
    _validate.check_float_tree("vector", vector)
    _validate.check_same_tree("vector", vector, params)
    batches = make_batches(data, batch_size)
    run = _tree_product if isinstance(batches, Batches) else _tree_product.__wrapped__
    return run(loss_fn, params, batches, vector)


@functools.partial(jax.jit, static_argnames="loss_fn")
def _tree_product(loss_fn: Callable, params: Params, batches: Batches | Loader, vector: Params) -> Params:
    params = cast_up(jax.tree.map(jnp.asarray, params))
    vector = jax.tree.map(lambda leaf, other: jnp.asarray(leaf, other.dtype), vector, params)
    return mean_over_batches(_Product(loss_fn), batches, params, vector)


class Curvature:
    """The curvature matrix of a mean loss, on flat vectors, [P] in at least float32.

    Args:
        loss_fn: see :func:`hessian_vector_product`.
        params: as there.
        batches: of the data.

    Attributes:
        size: number of parameters P.
        dtype: of the vectors.
        on_host: whether the batches come from a loader, so that no product can be traced.
        in_batches: whether there may be more than one.
    """

    def __init__(self, loss_fn: Callable, params: Params, batches: Batches | Loader) -> None:
        self._loss_fn, self._batches = loss_fn, batches
        self.params: Params = cast_up(jax.tree.map(jnp.asarray, params))
        flat, unravel = ravel_pytree(self.params)
        self.unravel: Callable[[Float[Array, " P"]], Params] = unravel
        self.size: int = flat.size
        self.dtype: jnp.dtype = flat.dtype
        self.on_host: bool = not isinstance(batches, Batches)
        self.in_batches: bool = (
            self.on_host or batches.rest is not None or len(jax.tree.leaves(batches.equal)[0]) > 1
        )

    def product(self, vector: Float[Array, " P"]) -> Float[Array, " P"]:
        """H v."""
        product = mean_over_batches(_Product(self._loss_fn), self._batches, self.params, self.unravel(vector))
        return ravel_pytree(product)[0]

    def dense(self) -> Float[Array, "P P"]:
        """H, by products with the unit vectors in one pass over the data; symmetric to the last bit."""
        eye = jnp.eye(self.size, dtype=self.dtype)
        matrix = mean_over_batches(_Products(self._loss_fn), self._batches, self.params, eye)
        return (matrix + matrix.T) / 2

    def each_form(
        self, vectors: Float[Array, "n P"]
    ) -> tuple[Float[Array, "batches n"], Float[Array, " batches"]]:
        """vᵢᵀ H_b vᵢ of every batch b, and the batches' shares of the examples."""
        return each_batch(_Forms(self._loss_fn), self._batches, self.params, vectors)

    def each_probe(
        self, keys: Key[Array, " n"]
    ) -> tuple[Float[Array, "batches n"], Float[Array, " batches"]]:
        """The same for vectors of random signs, drawn when they are needed."""
        return each_batch(_Probes(self._loss_fn), self._batches, self.params, keys)

    def each_image(
        self, basis: Float[Array, "m P"], vector: Float[Array, " P"]
    ) -> tuple[Float[Array, "batches m"], Float[Array, " batches"]]:
        """Q H_b v of every batch b, for the rows of Q, and the batches' shares of the examples."""
        return each_batch(_Image(self._loss_fn), self._batches, self.params, basis, vector)


@dataclasses.dataclass(frozen=True)
class _Product:
    """H_b v of a batch. Equal for equal losses, so that a loader's loop finds what it compiled before."""

    loss_fn: Callable

    def __call__(self, batch: Any, params: Params, vector: Params) -> Params:
        _validate.check_scalar_output("loss_fn", jax.eval_shape(self.loss_fn, params, batch))
        if not isinstance(self.loss_fn, GaussNewton):
            # Not jax.linearize: what it keeps of the forward pass costs more to read than to compute again.
            return jax.jvp(jax.grad(lambda p: self.loss_fn(p, batch)), (params,), (vector,))[1]
        outputs_fn = lambda p: self.loss_fn.outputs_fn(p, batch)
        outputs, pull_back = jax.vjp(outputs_fn, params)
        _, moved = jax.jvp(outputs_fn, (params,), (vector,))
        slope = jax.grad(lambda outputs: self.loss_fn.loss_of_outputs(outputs, batch))
        return pull_back(jax.jvp(slope, (outputs,), (moved,))[1])[0]

    def flat(self, batch: Any, params: Params, vector: Float[Array, " P"]) -> Float[Array, " P"]:
        return ravel_pytree(self(batch, params, ravel_pytree(params)[1](vector)))[0]


class _Products(_Product):
    """H_b V for the rows of V, 16 at once."""

    def __call__(self, batch: Any, params: Params, vectors: Float[Array, "n P"]) -> Float[Array, "n P"]:
        product = _Product(self.loss_fn).flat
        return jax.lax.map(lambda vector: product(batch, params, vector), vectors, batch_size=16)


class _Forms(_Product):
    """vᵢᵀ H_b vᵢ, one after another."""

    def __call__(self, batch: Any, params: Params, vectors: Float[Array, "n P"]) -> Float[Array, " n"]:
        product = _Product(self.loss_fn).flat
        return jax.lax.map(lambda vector: vector @ product(batch, params, vector), vectors)


class _Probes(_Product):
    """vᵀ H_b v of random signs v, one after another."""

    def __call__(self, batch: Any, params: Params, keys: Key[Array, " n"]) -> Float[Array, " n"]:
        flat, product = ravel_pytree(params)[0], _Product(self.loss_fn).flat

        def form(key: Key[Array, ""]) -> Float[Array, ""]:
            vector = draw_noise(key, flat, "rademacher")
            return vector @ product(batch, params, vector)

        return jax.lax.map(form, keys)


class _Image(_Product):
    """Q H_b v."""

    def __call__(self, batch: Any, params: Params, basis: Array, vector: Array) -> Float[Array, " m"]:
        return basis @ _Product(self.loss_fn).flat(batch, params, vector)
