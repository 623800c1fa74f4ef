"""Certificates: radii in which no attack changes the class, from margins and a Lipschitz constant."""

import math
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .. import _validate
from ._checks import check_labels, warn_if_probabilities

__all__ = ["certified_radius", "certified_radius_from_loss"]

Rule = Literal["max_norm", "spectral", "pairwise"]


def certified_radius(
    logits: Float[Array, "n classes"],
    y: Int[Array, " n"],
    *,
    lipschitz: float | Float[Array, "..."],
    rule: Rule = "max_norm",
) -> Float[Array, " n"]:
    r"""A radius δ in which no perturbation changes the class.

    By the margin m = f_y − max_{j≠y} f_j and one of three rules:

    ==============  ======================  ======================================================================
    rule            δ                       L bounds
    ==============  ======================  ======================================================================
    ``"max_norm"``  m/(2 L)                 Lip_{p→∞}(f) = sup_x maxᵢ ‖∇fᵢ(x)‖_q: each logit moves by at most L δ
    ``"spectral"``  m/(√2 L)                Lip_{2→2}(f) = sup_x ‖Df(x)‖₂: f_y − f_j has gradient (e_y − e_j)ᵀDf
    ``"pairwise"``  min_j (f_y − f_j)/L_yj  L_ij: Lip_p(f_i − f_j) for each pair; exact for linear f
    ==============  ======================  ======================================================================

    δ is measured in the p norm of the inputs, 1/p + 1/q = 1. It is 0 where the label is not the largest logit, and
    where a logit is not finite, or where L, traced and so not checked, is negative or NaN.

    **Sound only if L is a true upper bound**, over the whole input space or at least over the ball of radius δ around
    the input. :func:`lipschitz_upper_bound` is one. These are not, and make false certificates:

    * the largest gradient over data (:func:`largest_gradient`), a lower bound on L;
    * the gradient at the input itself: f may be steeper a little further;
    * anything with softmax probabilities in place of logits together with a gradient over data: they saturate, so that
      the gradient vanishes at exactly the confident examples (a row that sums to 1 raises a warning);
    * m/L without the 2: both logits move.

    The bound holds in exact arithmetic; a margin of the size of the rounding of the logits certifies nothing.

    Args:
        logits: f(x) [n, classes ≥ 2], before any softmax.
        y: labels [n] in [0, classes).
        lipschitz: L > 0 in [logit/input], a number; for ``"pairwise"`` a matrix [classes, classes], whose diagonal is
            not looked at.
        rule: see the table.

    Returns:
        δ ≥ 0 [n], in [input], at least float32.

    Raises:
        ValueError: ``lipschitz`` ≤ 0 or not finite, of another shape, labels out of range (all if concrete), an unknown
            rule, or logits that are not a matrix of at least two columns.
        TypeError: labels that are not integers.

    Example:
        For the logits ±x the decision boundary is at distance |x|, L = 1 and the rule is exact:

        >>> import jax.numpy as jnp
        >>> x = jnp.array([0.5, -2.0])
        >>> print(certified_radius(jnp.stack([x, -x], axis=1), jnp.array([0, 0]), lipschitz=1.0))
        [0.5 0. ]

    References:
        Oberman & Calder, arXiv:1808.09540; Hein & Andriushchenko, *Formal guarantees on the robustness of a
        classifier*, NeurIPS 2017; Tsuzuku, Sato & Sugiyama, *Lipschitz-margin training*, NeurIPS 2018 (the √2).
    """
    logits = jnp.asarray(logits)
    if logits.ndim != 2 or logits.shape[1] < 2:
        msg = f"logits must have shape [n, classes ≥ 2], got {logits.shape}."
        raise ValueError(msg)
    _validate.check_choice("rule", rule, get_args(Rule))
    num_classes = logits.shape[1]
    check_labels(y, logits.shape[0], num_classes)
    lipschitz = _check_lipschitz(lipschitz, (num_classes, num_classes) if rule == "pairwise" else ())
    warn_if_probabilities(logits)
    y, logits = jnp.asarray(y), _at_least_float32(logits)
    own = jnp.take_along_axis(logits, y[:, None], axis=1)
    slope = jnp.asarray(lipschitz, logits.dtype)
    if rule == "pairwise":
        slope = slope[y]
    else:
        slope = jnp.full_like(logits, (2 if rule == "max_norm" else math.sqrt(2)) * slope)
    is_label = jax.nn.one_hot(y, num_classes, dtype=bool)
    # A linear combination constant in x (L_yj = 0) never changes sign: its radius is ±inf, not 0/0.
    gaps = own - logits
    constant = jnp.where(slope == 0, jnp.inf * jnp.sign(gaps), -jnp.inf)  # a slope < 0 or NaN bounds nothing
    radii = jnp.where(slope > 0, gaps / jnp.where(slope > 0, slope, 1), constant)
    smallest = jnp.where(is_label, jnp.inf, radii).min(1)
    return jnp.where((smallest > 0) & jnp.isfinite(logits).all(1), smallest, 0)


def certified_radius_from_loss(
    losses: Float[Array, " n"], *, lipschitz: float | Float[Array, ""]
) -> Float[Array, " n"]:
    """A radius δ = (log 2 − ℓ)/L in which no perturbation changes the class, by the cross-entropy ℓ of each example.

    A misclassified input has a probability of at most ½ on its label, so a loss of at least log 2 = 0.693; to get there
    from ℓ at slope L takes δ. L is that of the *loss*, x ↦ ℓ(x, y), as a true upper bound for every label, not
    that of the logits (Lip(ℓ) ≤ 2 Lip_{p→∞}(f), since ‖∇_f ℓ‖₁ = 2 (1 − p_y) ≤ 2), and not the largest gradient over
    data.

    Args:
        losses: ℓ [n] ≥ 0, cross-entropy in nats with hard labels.
        lipschitz: L > 0, in [loss/input].

    Returns:
        δ ≥ 0 [n], in [input], at least float32; 0 where ℓ ≥ log 2 or NaN, or where a traced L is not positive.

    Raises:
        ValueError: ``lipschitz`` ≤ 0 or not finite (if concrete), or losses that are not one a row.

    Example:
        >>> import jax.numpy as jnp
        >>> print(certified_radius_from_loss(jnp.array([0.0, 1.0]), lipschitz=2.0).round(3))
        [0.347 0.   ]

    References:
        Oberman & Calder, arXiv:1808.09540.
    """
    losses = jnp.asarray(losses)
    if losses.ndim != 1:
        msg = f"losses must have shape [n], one an example, got {losses.shape}."
        raise ValueError(msg)
    lipschitz = _check_lipschitz(lipschitz, ())
    losses = _at_least_float32(losses)
    slope = jnp.asarray(lipschitz, losses.dtype)
    radius = (math.log(2) - losses) / jnp.where(slope > 0, slope, 1)
    return jnp.where((slope > 0) & (radius > 0), radius, 0)


def _at_least_float32(values: Array) -> Array:
    """In a dtype that holds L: an integer or bfloat16 one would round it down, and the certificate up."""
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def _check_lipschitz(lipschitz: Any, shape: tuple[int, ...]) -> Any:
    if isinstance(lipschitz, (bool, str)) or lipschitz is None or jnp.shape(lipschitz) != shape:
        got = (
            repr(lipschitz)
            if isinstance(lipschitz, (bool, str, type(None)))
            else f"shape {jnp.shape(lipschitz)}"
        )
        msg = f"lipschitz must have shape {shape}, got {got}."
        raise ValueError(msg)
    if isinstance(lipschitz, jax.core.Tracer):
        return lipschitz
    values = np.asarray(lipschitz, np.float64)
    # Off the diagonal 0 is right for two logits that differ by a constant.
    bad = ~np.isfinite(values) | (values < 0 if shape else values <= 0)
    if np.any(bad & ~np.eye(shape[0], dtype=bool) if shape else bad):
        msg = f"lipschitz must be positive and finite, got {lipschitz!r}."
        raise ValueError(msg)
    return lipschitz
