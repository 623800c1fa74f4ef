"""Value and gradient of the loss with penalties on its input gradient, from as few passes as it takes."""

from collections.abc import Callable
from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from .. import _arithmetic, _validate
from .._typing import ArrayTree, Params
from ._checks import check_norm
from .penalties import Method, _batch_losses, _check_batch, _dual_direction, _norm

__all__ = ["RegularizedParts", "regularized_value_and_grad"]


class RegularizedParts(NamedTuple):
    """The terms of the objective on a batch, without their weights.

    Attributes:
        loss: the mean loss E ℓ.
        mean_norm: E‖∇ₓℓ‖, in [loss/input].
        max_norm: max‖∇ₓℓ‖ over the batch, in [loss/input].
    """

    loss: Float[Array, ""]
    mean_norm: Float[Array, ""]
    max_norm: Float[Array, ""]


def regularized_value_and_grad(
    loss_fn: Callable[[Params, Array, ArrayTree], Array],
    *,
    mean_weight: float | Float[Array, ""] = 0.0,
    max_weight: float | Float[Array, ""] = 0.0,
    norm: float | str = 2,
    method: Method = "exact",
    step: float | Float[Array, ""] = 1e-3,
    batched: bool = False,
) -> Callable[
    [Params, Shaped[Array, "n ..."], ArrayTree], tuple[tuple[Float[Array, ""], RegularizedParts], Params]
]:
    r"""The talk's objective J and its gradient in the parameters, all terms from the same passes.

        J[w] = E ℓ + ε E‖∇ₓℓ‖_q + λ max‖∇ₓℓ‖_q,    ε = ``mean_weight``, λ = ``max_weight``.

    The numbers are those of ``jax.value_and_grad`` of ``loss + ε·gradient_penalty(...) + λ·gradient_penalty(...)``, for
    less: written as separate terms, each brings its own reverse pass, which XLA does not merge. Both routes start
    from ∇ₓℓ and the v of :func:`gradient_penalty`, ‖∇ₓℓ‖ = v·∇ₓℓ; v is held constant, because its own derivative drops
    out of that of the norm (envelope theorem).

    * ``"exact"``: the map w ↦ (ℓᵢ, ∇ₓℓᵢ) is run once and pulled back once, along (1/n, uᵢ), uᵢ = ε vᵢ/n, plus λ v at
      the steepest example. Passes, in units of a product with every weight matrix: forward and backward, their two
      tangents, and two for the gradient: 6 against the 3 of a plain step (5 against 2 in a first layer, where a
      plain step needs no ∇ₓℓ).
    * ``"finite_difference"``: one reverse pass at x gives ∇_w and ∇ₓ together, a second gives ∇_w at x + hv,

          ∇_w J ≈ g(x) + (ε/h) (g(x + hv) − g(x)) + (λ/h) (g*(x + hv) − g*(x)),    g = ∇_w E ℓ, g* of one example,

      off by O(h). The count is the same, of first derivatives alone: no layer is differentiated twice. The differences
      are taken before they are divided by h, and the value is the exact J (‖∇ₓℓ‖ is known), not E ℓ(x + hv) over h,
      whose rounding would be eps·|ℓ|/h.

    On one CPU core a LeNet step takes 2.1 plain steps exactly and 2.15 by differences (2.7 and 3.1 as separate terms);
    an MLP, nearly all of it first layer, 3.5 and 3.7 (3.6 and 3.9; ``benchmarks/penalties.py``). So differences are
    for losses whose second derivatives do not exist or do not fit into memory.

    The maximum is differentiated at the first example that attains it (a batch of 1), as in :func:`gradient_penalty`;
    likewise where ∇ₓℓ = 0 its terms are 0, NaN comes out as NaN, and at the kinks of a ReLU network "exact" takes the
    linear piece around x while differences see what lies within h.

    Args:
        loss_fn: ``loss_fn(params, x, y) -> scalar``, the loss of *one* example, in [loss] (BatchNorm on its running
            statistics); if ``batched``, ``(params, xs, ys) -> [n]``.
        mean_weight: ε ≥ 0 in [input], the radius against which to be robust. A number or an array, also a traced one:
            a schedule's value at the step. A Python 0.0 leaves its work out of the program.
        max_weight: λ ≥ 0 in [input], likewise; it belongs to a batch size (see :func:`two_lip`).
        norm: q of the gradient norm: 1, 2 or inf, dual to the attack's (table of :func:`gradient_penalty`).
        method: ``"exact"`` or ``"finite_difference"``.
        step: h > 0 in [input], ‖hv‖_p of the displacement; for ``"finite_difference"`` only. Good values: see
            :func:`gradient_penalty`.
        batched: whether ``loss_fn`` maps a batch to its losses, each of its own example alone. Quicker for
            convolutions on a CPU.

    Returns:
        ``fn(params, xs, ys) -> ((J, parts), ∇_w J)``, as ``jax.value_and_grad`` with ``has_aux=True``:
        xs [n ≥ 1, ...], ys a tree with a leading axis n, :class:`RegularizedParts` to log. The gradient is the promise:
        it is computed, not implied, so differentiate J's separate form for anything beyond it.

    Raises:
        ValueError: a negative weight, an unknown ``norm`` or ``method``, ``step`` ≤ 0; at the call a loss that is not
            scalar, no example, or axes n that differ.
        TypeError: a weight or a step that is neither a number nor an array (hand over the value of a schedule, not the
            schedule); at the call inputs or parameters that are not floating.

    Example:
        A training step whose ε grows over 100 steps; the linear loss y w·x has ‖∇ₓℓ‖₂ = |y| ‖w‖₂:

        >>> import jax, jax.numpy as jnp, optax
        >>> schedule, tx = optax.linear_schedule(0.0, 0.5, 100), optax.sgd(0.1)
        >>> @jax.jit
        ... def train_step(w, state, count, xs, ys):
        ...     objective = regularized_value_and_grad(lambda w, x, y: y * (w @ x), mean_weight=schedule(count))
        ...     (value, parts), gradient = objective(w, xs, ys)
        ...     updates, state = tx.update(gradient, state, w)
        ...     return optax.apply_updates(w, updates), state, value, parts
        >>> w = jnp.array([3.0, 4.0])
        >>> w, state, value, parts = train_step(w, tx.init(w), 100, jnp.zeros((4, 2)), jnp.ones(4))
        >>> print(value, parts.loss, parts.mean_norm, w)
        2.5 0.0 5.0 [2.97 3.96]

    References:
        Oberman, ICERM 2018 (J); Finlay & Oberman, arXiv:1905.11468 (differences). The pass counts are our own.
    """
    norm = check_norm(norm)
    _validate.check_choice("method", method, get_args(Method))
    for name, weight in (("mean_weight", mean_weight), ("max_weight", max_weight), ("step", step)):
        if callable(weight) and not isinstance(weight, jax.Array):
            msg = (
                f"{name} must be a number or an array, got a function: call the schedule at the step's count."
            )
            raise TypeError(msg)
    _validate.check_nonnegative("mean_weight", mean_weight)
    _validate.check_nonnegative("max_weight", max_weight)
    _validate.check_positive("step", step)
    no_mean, no_max = _validate.is_static_zero(mean_weight), _validate.is_static_zero(max_weight)

    def value_and_grad(
        params: Params, xs: Array, ys: ArrayTree
    ) -> tuple[tuple[Array, RegularizedParts], Params]:
        xs = _check_batch(xs, ys)
        _validate.check_float_tree("params", params)
        share = 1 / xs.shape[0]

        def losses(params: Params, xs: Array, ys: ArrayTree) -> Float[Array, " n"]:
            return _batch_losses(lambda x, y: loss_fn(params, x, y), batched)(xs, ys)

        if no_mean or method == "finite_difference":
            values, gradient, input_gradients = _reverse(losses, params, xs, ys)
        else:
            (values, input_gradients), pull_back = jax.vjp(
                lambda p: _with_input_gradients(losses, p, xs, ys), params
            )
        norms, directions = jax.vmap(lambda g: (_norm(g, norm), _dual_direction(g, norm)))(input_gradients)
        steepest = jnp.argmax(norms)
        only = lambda leaf: jax.lax.dynamic_slice_in_dim(jnp.asarray(leaf), steepest, 1)
        parts = RegularizedParts(values.mean(), norms.mean(), norms[steepest])
        value = parts.loss
        for absent, weight, term in (
            (no_mean, mean_weight, parts.mean_norm),
            (no_max, max_weight, parts.max_norm),
        ):
            value = value if absent else value + jnp.asarray(weight, term.dtype) * term

        terms = []
        if method == "finite_difference":
            shift = jnp.asarray(step, xs.dtype) * directions
            if not no_mean:
                shifted = jax.grad(lambda p: losses(p, xs + shift, ys).mean())(params)
                terms.append((mean_weight / step, jax.tree.map(jnp.subtract, shifted, gradient)))
            if not no_max:
                rise = _rise_at_one(losses, params, only(xs), only(shift), jax.tree.map(only, ys))
                terms.append((max_weight / step, rise))
        elif not no_mean:
            along = jnp.asarray(mean_weight * share, xs.dtype) * directions
            if not no_max:
                along = along.at[steepest].add(jnp.asarray(max_weight, xs.dtype) * directions[steepest])
            (gradient,) = pull_back((jnp.full_like(values, share), along))
        elif not no_max:
            one = lambda p: _with_input_gradients(losses, p, only(xs), jax.tree.map(only, ys))[1]
            terms.append((max_weight, jax.vjp(one, params)[1](only(directions))[0]))
        for weight, term in terms:
            gradient = _arithmetic.add_scaled(gradient, jnp.asarray(weight), term)
        return (value, parts), gradient

    return value_and_grad


BatchLosses = Callable[[Params, Array, ArrayTree], Float[Array, " n"]]


def _reverse(losses: BatchLosses, params: Params, xs: Array, ys: ArrayTree) -> tuple[Array, Params, Array]:
    """ℓ, ∇_w E ℓ and every ∇ₓℓ by one reverse pass: each loss sees its own x alone, so ∇ₓ of the mean is ∇ₓℓ/n."""

    def mean(params: Params, xs: Array) -> tuple[Array, Array]:
        values = losses(params, xs, ys)
        return values.mean(), values

    (_, values), (gradient, input_gradients) = jax.value_and_grad(mean, (0, 1), has_aux=True)(params, xs)
    return values, gradient, xs.shape[0] * input_gradients


def _with_input_gradients(
    losses: BatchLosses, params: Params, xs: Array, ys: ArrayTree
) -> tuple[Array, Array]:
    def total(inputs: Array) -> tuple[Array, Array]:
        values = losses(params, inputs, ys)
        return values.sum(), values

    input_gradients, values = jax.grad(total, has_aux=True)(xs)
    return values, input_gradients


def _rise_at_one(losses: BatchLosses, params: Params, x: Array, shift: Array, y: ArrayTree) -> Params:
    """∇_w ℓ(x + shift) − ∇_w ℓ(x) of one example [1, ...], as one pass over two."""
    twice = lambda leaf: jnp.concatenate([leaf, leaf])

    def rise(params: Params) -> Array:
        after, before = losses(params, jnp.concatenate([x + shift, x]), jax.tree.map(twice, y))
        return after - before

    return jax.grad(rise)(params)
