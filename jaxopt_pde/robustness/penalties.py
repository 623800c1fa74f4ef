"""Penalties on the gradient of the loss in its input: training that is robust to small perturbations of the data."""

import functools
import math
from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from .. import _validate
from .._typing import ArrayTree
from ._checks import check_norm

__all__ = [
    "ExampleLoss",
    "Penalty",
    "gradient_penalty",
    "j1",
    "j2",
    "largest_gradient",
    "lipschitz_excess",
    "two_lip",
]

ExampleLoss = Callable[[Array, ArrayTree], Float[Array, ""]]
"""``loss_fn(x, y)``: the loss of one example, the parameters closed over."""

Penalty = Callable[[Array, ArrayTree], Float[Array, ""]]
"""``penalty(xs, ys)``: one number for a batch, differentiable in what the loss closes over."""

Reduction = Literal["mean", "max"]
Method = Literal["exact", "finite_difference"]
Difference = Literal["forward", "central"]


def gradient_penalty(
    loss_fn: ExampleLoss,
    *,
    norm: float | str = 2,
    reduce: Reduction = "mean",
    method: Method = "exact",
    step: float | Float[Array, ""] = 1e-3,
    difference: Difference = "forward",
    batched: bool = False,
) -> Penalty:
    r"""The mean or the largest norm of the input gradient over a batch: E‖∇ₓℓ‖_q or max‖∇ₓℓ‖_q.

    To first order it is what the best attack of radius ε gains, and q is dual to the attack's norm p, 1/p + 1/q = 1:

        max_{‖a‖_p ≤ ε} ℓ(x + a) = ℓ(x) + ε ‖∇ₓℓ(x)‖_q + O(ε²),    attained at a = ε v,  v·∇ₓℓ = ‖∇ₓℓ‖_q.

    ===================  ==================  =====================================  ================================
    attack norm p        ``norm`` q          direction v, ‖v‖_p = 1                 name
    ===================  ==================  =====================================  ================================
    ∞                    1                   sign(g)                                :func:`j1`; one-step FGSM training
    2                    2                   g/‖g‖₂                                 :func:`j2`, :func:`two_lip`
    1                    ∞                   sign(gᵢ) eᵢ, i = arg max|gᵢ|           (one pixel at a time)
    ===================  ==================  =====================================  ================================

    So E ℓ + ε·penalty is adversarial training without the attack. The expansion has no sign: for a convex loss it
    *under*-estimates what the attack gains (a tangent lies below), by O(ε²), or O(ε) past a kink of a ReLU network.

    Two routes, the same number up to O(h):

    * ``"exact"``: reverse mode over reverse mode. It costs the second derivatives of every layer, and is blind to
      kinks: for ReLU networks ∂‖∇ₓℓ‖/∂w is that of the linear piece around x.
    * ``"finite_difference"``: (ℓ(x + h v) − ℓ(x))/h with v held constant (or (ℓ(x + hv) − ℓ(x − hv))/(2h),
      ``"central"``). Because v maximises v·∇ₓℓ, its own derivative drops out (envelope theorem), so that the
      parameter derivative too is that of ‖∇ₓℓ‖_q up to O(h) (central: O(h²)), from first derivatives alone.

    Where ∇ₓℓ = 0 the penalty and its derivative are 0 (never NaN), and the 2-norm is rescaled by the largest
    component, so that the tiny gradients of confidently classified examples do not underflow when squared.

    Args:
        loss_fn: ``loss_fn(x, y) -> scalar``, the loss of *one* example, in [loss] (no statistics across the
            batch: BatchNorm on its running statistics).
        norm: q of the gradient norm: 1, 2 or inf (or "inf"). Not the attack's norm: see the table.
        reduce: ``"mean"`` over the batch, or ``"max"``, whose derivative is that of the first example that attains it
            (a subgradient), and which is differentiated at that example only.
        method: ``"exact"`` or ``"finite_difference"``.
        step: h > 0 in [input], the length ‖h v‖_p of the displacement; for ``"finite_difference"`` only. Rounding
            leaves an error of about eps·|ℓ|/h and truncation ½ h |vᵀ∇²ℓ v|: see Good values.
        difference: ``"forward"`` or ``"central"``; for ``"finite_difference"`` only.
        batched: whether ``loss_fn`` maps a batch, (xs [n, ...], ys) to its losses [n], each of its own example alone.
            Quicker for convolutions on a CPU than the ``vmap`` of a loss of one example.

    Returns:
        ``penalty(xs, ys)``: xs [n ≥ 1, ...], ys a tree with a leading axis n; one number in [loss/input]. The gradients
        of all examples are one batched pass.

    Raises:
        ValueError: an unknown ``norm``, ``reduce``, ``method`` or ``difference``, ``step`` ≤ 0; at the call a loss that
            is not scalar, no example, or axes n that differ.

    Good values:
        h about √(eps |ℓ|/|vᵀ∇²ℓ v|): in float32, with inputs in [0, 1] and losses of order 1, that is 1e-3 for ‖hv‖₂
        (relative error of the parameter gradient below 4e-3 for a small tanh network). ‖v‖_p = 1, so h is a length,
        not a relative change of x: scale it with the standard deviation of a pixel if the inputs are not in [0, 1].
        With p = ∞ the displacement has 2-norm h√d, so divide h by √d. In float64, 1e-6, or 1e-4 with ``"central"``.

    XLA shares the forward pass with the mean loss if that is written ``jax.vmap(loss_fn)(xs, ys).mean()``, but not the
    reverse pass: for a training step :func:`regularized_value_and_grad` computes the same numbers from fewer passes.

    Example:
        A linear loss w·x has ∇ₓℓ = w everywhere, and the derivative of ‖w‖₂ is w/‖w‖₂:

        >>> import jax, jax.numpy as jnp
        >>> def objective(w):
        ...     penalty = gradient_penalty(lambda x, y: y * (w @ x), norm=2)
        ...     return penalty(jnp.ones((4, 2)), jnp.ones(4))
        >>> value, gradient = jax.value_and_grad(objective)(jnp.array([3.0, 4.0]))
        >>> print(value, gradient)
        5.0 [0.6 0.8]

    References:
        Oberman, ICERM 2018; Finlay & Oberman, *Scaleable input gradient regularization for adversarial robustness*,
        arXiv:1905.11468 (finite differences); Goodfellow, Shlens & Szegedy, *Explaining and harnessing adversarial
        examples*, ICLR 2015 (FGSM). Their code penalises the squared norm; this is the norm itself.
    """
    norm = check_norm(norm)
    _validate.check_choice("reduce", reduce, get_args(Reduction))
    _validate.check_choice("method", method, get_args(Method))
    _validate.check_choice("difference", difference, get_args(Difference))
    _validate.check_positive("step", step)
    losses = _batch_losses(loss_fn, batched)
    if method == "exact":
        norms = functools.partial(_gradient_norms, losses, norm=norm)
    else:
        norms = functools.partial(
            _difference_quotients, losses, norm=norm, step=step, central=difference == "central"
        )

    def penalty(xs: Shaped[Array, "n ..."], ys: ArrayTree) -> Float[Array, ""]:
        xs = _check_batch(xs, ys)
        if reduce == "mean":
            return norms(xs, ys).mean()
        # Only the example that attains the maximum has a derivative, so only its norm is taken with one.
        steepest = jnp.argmax(jax.lax.stop_gradient(_gradient_norms(losses, xs, ys, norm=norm)))
        only = lambda leaf: jax.lax.dynamic_slice_in_dim(jnp.asarray(leaf), steepest, 1)
        return norms(only(xs), jax.tree.map(only, ys))[0]

    return penalty


def j1(loss_fn: ExampleLoss) -> Penalty:
    """E‖∇ₓℓ‖₁, the talk's J¹ term: ε times it is, to first order in ε, what FGSM (an attack of ℓ∞ radius ε) gains.

    Args:
        loss_fn: as in :func:`gradient_penalty`, which has the other routes and norms.

    Returns:
        ``penalty(xs, ys)``, in [loss/input].

    Example:
        >>> import jax.numpy as jnp
        >>> w = jnp.array([3.0, -4.0])
        >>> float(j1(lambda x, y: w @ x)(jnp.ones((5, 2)), jnp.zeros(5)))
        7.0

    References:
        Oberman, ICERM 2018.
    """
    return gradient_penalty(loss_fn, norm=1)


def j2(loss_fn: ExampleLoss) -> Penalty:
    """E‖∇ₓℓ‖₂, the talk's J² term: ε times it is, to first order in ε, what an attack of ℓ2 radius ε gains.

    Args:
        loss_fn: as in :func:`gradient_penalty`, which has the other routes and norms.

    Returns:
        ``penalty(xs, ys)``, in [loss/input].

    Example:
        >>> import jax.numpy as jnp
        >>> w = jnp.array([3.0, -4.0])
        >>> float(j2(lambda x, y: w @ x)(jnp.ones((5, 2)), jnp.zeros(5)))
        5.0

    References:
        Oberman, ICERM 2018.
    """
    return gradient_penalty(loss_fn, norm=2)


def two_lip(loss_fn: ExampleLoss) -> Penalty:
    """max‖∇ₓℓ‖₂ over the batch, the talk's 2-Lip term: a lower bound on the Lipschitz constant of the loss.

    The talk's full objective is E ℓ + ε·``j2`` + λ·``two_lip``. The largest gradient over a batch grows with the batch,
    so λ belongs to a batch size; on a shared batch the two terms share the gradient passes under ``jit``.

    Args:
        loss_fn: as in :func:`gradient_penalty`, which has the other routes and norms.

    Returns:
        ``penalty(xs, ys)``, in [loss/input].

    Example:
        >>> import jax.numpy as jnp
        >>> penalty = two_lip(lambda x, y: y * jnp.array([3.0, -4.0]) @ x)
        >>> float(penalty(jnp.ones((2, 2)), jnp.array([1.0, 2.0])))
        10.0

    References:
        Oberman, ICERM 2018.
    """
    return gradient_penalty(loss_fn, norm=2, reduce="max")


def lipschitz_excess(
    loss_fn: ExampleLoss, lipschitz_bound: float | Float[Array, ""], *, norm: float | str = 2
) -> Penalty:
    """max(Lip − L₀, 0), where Lip is the largest gradient norm over the batch: the penalty of the clean-label theorem.

    The theorem's objective is E ℓ + λ max(Lip(f) − L₀, 0): as long as f is L₀-Lipschitz it is not penalised at all,
    so that minimisers fit clean labels exactly. λ stays outside: ``loss + weight * lipschitz_excess(...)(xs, ys)``.
    Lip(f) is estimated from below by the batch; a penalty of 0 does not prove f to be L₀-Lipschitz. For that bound see
    :func:`lipschitz_upper_bound`, which is differentiable too.

    Args:
        loss_fn: ``(x, y) -> scalar``; the model itself, ignoring y, or the loss of it.
        lipschitz_bound: L₀ ≥ 0 in [loss/input], e.g. the :func:`lipschitz_constant` of the labelled data.
        norm: of the gradient, as in :func:`gradient_penalty`.

    Returns:
        ``penalty(xs, ys)``, in [loss/input]; its derivative is 0 wherever Lip ≤ L₀.

    Raises:
        ValueError: a negative ``lipschitz_bound`` or an unknown norm.

    Example:
        >>> import jax.numpy as jnp
        >>> model = lambda x, y: jnp.array([3.0, 4.0]) @ x
        >>> [float(lipschitz_excess(model, bound)(jnp.ones((2, 2)), jnp.zeros(2))) for bound in (4.0, 6.0)]
        [1.0, 0.0]

    References:
        Oberman & Calder, *Lipschitz regularized deep neural networks generalize and are adversarially robust*,
        arXiv:1808.09540.
    """
    _validate.check_nonnegative("lipschitz_bound", lipschitz_bound)
    largest = gradient_penalty(loss_fn, norm=norm, reduce="max")
    return lambda xs, ys: jax.nn.relu(largest(xs, ys) - lipschitz_bound)


def largest_gradient(
    loss_fn: ExampleLoss,
    xs: Shaped[Array, "n ..."],
    ys: ArrayTree,
    *,
    norm: float | str = 2,
    chunk_size: int | None = None,
) -> Float[Array, ""]:
    """maxᵢ‖∇ₓℓ(xᵢ, yᵢ)‖ over data: a LOWER bound on the Lipschitz constant.

    Between the data, and in saturated regions beside them, the gradient may be much larger. So this number must never
    stand for L in :func:`certified_radius`: that makes false certificates. Use :func:`lipschitz_upper_bound` there.

    Args:
        loss_fn: ``(x, y) -> scalar``, as in :func:`gradient_penalty`.
        xs: inputs [n ≥ 1, ...].
        ys: labels, a tree with a leading axis n.
        norm: of the gradient: 1, 2 or inf.
        chunk_size: examples in one pass; None for all.

    Returns:
        A number in [loss/input].

    Raises:
        ValueError: an unknown norm, no example, ``chunk_size`` < 1.

    Example:
        >>> import jax.numpy as jnp
        >>> print(largest_gradient(lambda x, y: jnp.sin(x[0]), jnp.array([[1.5], [3.0]]), jnp.zeros(2)) < 0.991)
        True

    References:
        Finlay & Oberman, arXiv:1905.11468, whose ``Lbound`` is this estimate on the test set.
    """
    norm = check_norm(norm)
    if chunk_size is not None:
        _validate.check_count("chunk_size", chunk_size)
    xs, losses = _check_batch(xs, ys), _batch_losses(loss_fn, batched=False)
    if chunk_size is None:
        return _gradient_norms(losses, xs, ys, norm=norm).max()
    one = lambda pair: _gradient_norms(losses, *jax.tree.map(lambda leaf: leaf[None], pair), norm=norm)[0]
    return jax.lax.map(one, (xs, jax.tree.map(jnp.asarray, ys)), batch_size=chunk_size).max()


def _check_batch(xs: Array, ys: ArrayTree) -> Array:
    xs = jnp.asarray(xs)
    _validate.check_float_tree("xs", xs)
    if xs.ndim == 0 or xs.shape[0] == 0:
        msg = f"xs must have shape [n ≥ 1, ...], got {xs.shape}."
        raise ValueError(msg)
    for leaf in jax.tree.leaves(ys):
        if jnp.ndim(leaf) == 0 or jnp.shape(leaf)[0] != xs.shape[0]:
            msg = f"ys must have as many examples as xs, {xs.shape[0]}, got shape {jnp.shape(leaf)}."
            raise ValueError(msg)
    return xs


def _batch_losses(loss_fn: Callable, batched: bool) -> Callable[[Array, ArrayTree], Float[Array, " n"]]:
    def losses(xs: Array, ys: ArrayTree) -> Float[Array, " n"]:
        if batched:
            values = loss_fn(xs, ys)
            if jnp.shape(values) != xs.shape[:1]:
                msg = f"loss_fn must return losses [{xs.shape[0]}] if batched, got shape {jnp.shape(values)}."
                raise ValueError(msg)
            return values

        def one(x: Array, y: ArrayTree) -> Array:
            value = loss_fn(x, y)
            _validate.check_scalar_output("loss_fn", value)
            return value

        return jax.vmap(one)(xs, ys)

    return losses


def _input_gradients(losses: Callable, xs: Array, ys: ArrayTree) -> Array:
    """∇ₓℓ of every example: the gradient of the sum, since each loss sees its own x alone."""
    return jax.grad(lambda inputs: losses(inputs, ys).sum())(xs)


def _gradient_norms(losses: Callable, xs: Array, ys: ArrayTree, *, norm: float) -> Float[Array, " n"]:
    return jax.vmap(lambda gradient: _norm(gradient, norm))(_input_gradients(losses, xs, ys))


def _norm(gradient: Array, norm: float) -> Float[Array, ""]:
    """‖gradient‖, of derivative 0 (a subgradient) at 0."""
    absolute = jnp.abs(gradient)
    if norm == 1:
        return absolute.sum()
    if math.isinf(norm):
        return absolute.max()
    # |g| = s |g/s| for any s > 0, so s may be held constant: with s = max|g| nothing under- or overflows. The inner
    # where keeps the infinite derivative of √ at 0 out of the branch not taken.
    scale = jax.lax.stop_gradient(absolute.max())
    zero = scale == 0  # not scale > 0: NaN must come out as NaN
    total = jnp.sum((gradient / jnp.where(zero, 1, scale)) ** 2)
    return jnp.where(zero, 0, scale * jnp.sqrt(jnp.where(zero, 1, total)))


def _dual_direction(gradient: Array, norm: float) -> Array:
    """The v of dual norm 1 with v·gradient = ‖gradient‖; 0 at 0."""
    if norm == 1:
        return jnp.sign(gradient)
    if math.isinf(norm):
        flat = gradient.ravel()
        largest = jnp.argmax(jnp.abs(flat))
        return jnp.zeros_like(flat).at[largest].set(jnp.sign(flat[largest])).reshape(gradient.shape)
    length = _norm(gradient, norm)
    return gradient / jnp.where(length == 0, 1, length)


def _difference_quotients(
    losses: Callable, xs: Array, ys: ArrayTree, *, norm: float, step: Array, central: bool
) -> Float[Array, " n"]:
    gradients = jax.lax.stop_gradient(_input_gradients(losses, xs, ys))
    directions = jax.vmap(lambda gradient: _dual_direction(gradient, norm))(gradients)
    shifts = jnp.asarray(step, xs.dtype) * directions
    if central:
        return (losses(xs + shifts, ys) - losses(xs - shifts, ys)) / (2 * step)
    return (losses(xs + shifts, ys) - losses(xs, ys)) / step
