"""Descent on a loss whose narrow valleys are filled from above and whose bumps are smoothed from below."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from .. import _validate
from .._arithmetic import cast_like, cast_up
from .._typing import Params, ScalarOrSchedule
from ..smoothing._kernel import scalar_dtype
from ._relaxed import all_finite, evaluate, skip_where

__all__ = ["LasryLionsState", "lasry_lions"]


class LasryLionsState(NamedTuple):
    """State of :func:`lasry_lions`; two models beside the inner state.

    Attributes:
        count: updates so far (int32); schedules read it.
        notfinite_count: updates without a step because gradient or step was not finite (int32).
        radius: of the last ascent: the params stand at y + radius · ascent/|ascent|.
        ascent: m, the running sum of gradients, like params in the accumulator dtype.
        slow: x, likewise; at ``count`` 0 it is not set yet and not read.
        inner: state of the inner optimiser.
    """

    count: Int[Array, ""]
    notfinite_count: Int[Array, ""]
    radius: Float[Array, ""]
    ascent: Params
    slow: Params
    inner: optax.OptState


def lasry_lions(
    inner: optax.GradientTransformation,
    ascent_radius: ScalarOrSchedule = 0.1,
    *,
    pull: ScalarOrSchedule = 0.01,
    averaging: ScalarOrSchedule | None = None,
    ascent_decay: float = 0.9,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Any optimiser on the loss after a sup- and an inf-convolution, at one gradient an update.

    The params that the training loop holds are z, where the gradient is taken. One update, with g ≈ ∇f(z):

        m ← b m + g,      y ← y + inner(g) − κ (y − x),      x ← a x + (1 − a) y,      z ← y + ρ m/|m|.

    Upwards: the largest loss in a ball, f^ρ(y) = max { f(z) : |z − y| ≤ ρ }, is the solution at time ρ of the eikonal
    equation u_s = |∇u| that starts from f. Its gradient is that of f at the highest point, which the direction of the
    past gradients stands for. It fills valleys narrower than ρ; Sharpness-Aware Minimisation (SAM) descends it too, at
    two gradients an update.
    Downwards: y is held to x, its slow mean, as in :func:`jaxopt_pde.two_time_scale`. With an ``inner`` of learning
    rate h the elastic force is that of the Hamilton-Jacobi equation u_t = −½|∇u|² + (T/2)Δu at the time t = h/κ, T
    the temperature of the minibatch noise. Here it acts beside the inner optimiser, as decoupled weight decay does, so
    that κ has no unit and t is measured in the metric of a preconditioner such as Adam's. A sup- followed by
    an inf-convolution is the regularisation of Lasry and Lions, which touches little but kinks, bumps and
    narrow valleys. Evaluate and save :func:`jaxopt_pde.eval_params`, which gives x.

    Limits: ρ = 0 and an ``inner`` without memory give ``two_time_scale`` with t = h/κ; ρ = κ = 0 gives ``inner``
    alone with x the mean of its iterates.

    Args:
        inner: any optax optimiser of y with its learning rate, and a schedule that decays it. Its weight decay
            acts on y.
        ascent_radius: ρ ≥ 0 in [param], in the norm of the whole tree.
        pull: κ in [0, 1), the share of y − x that y loses at an update; a number or a schedule.
        averaging: a in [0, 1), the weight that x keeps; during the first 1/(1 − a) updates x is the plain mean of
            the y so far. None: a = k/(k + 9) at update k, so that x remembers a ninth of the training so far,
            whatever its length: the mean with weights that grow as k⁸.
        ascent_decay: b in [0, 1) of the running sum of gradients.
        accumulator_dtype: dtype of x and m; None means that of params but at least float32.

    Returns:
        A ``GradientTransformationExtraArgs`` with state :class:`~jaxopt_pde.optimizers.LasryLionsState`. It stands
        last in a chain: it takes params + update for the next z. If gradient or step is not finite, nothing moves and
        ``notfinite_count`` grows; the schedules go on.

    Raises:
        ValueError, TypeError: for a number out of range, an ``inner`` that is no optax optimiser, missing params, or
            params not real and floating; the message names it.

    Good values:
        ``optax.nadam`` with a cosine decay and ρ from 0.03 to 0.5, the larger the more there is to overfit, the other
        defaults (``python -m experiments run bakeoff``).

    Example:
        >>> import jax.numpy as jnp, optax, jaxopt_pde
        >>> tx = jaxopt_pde.lasry_lions(optax.sgd(optax.linear_schedule(0.2, 0.0, 200), momentum=0.9))
        >>> params = jnp.array([1.0, -2.0])
        >>> state = tx.init(params)
        >>> for _ in range(200):  # f = ½|p|², gradient p
        ...     updates, state = tx.update(params, state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> print(jnp.abs(jaxopt_pde.eval_params(state, params)).max() < 0.05)
        True

    References:
        Lasry & Lions 1986, A remark on regularization in Hilbert spaces, Israel J. Math. 55. Foret, Kleiner, Mobahi &
        Neyshabur 2021, Sharpness-Aware Minimization, arXiv:2010.01412. Becker, Altrock & Risse 2024,
        Momentum-SAM, arXiv:2401.12033 (the ascent along past gradients). Chaudhari et al. 2018, Deep Relaxation,
        arXiv:1704.04932 (the pull). Shamir & Zhang 2013, Stochastic gradient descent for non-smooth optimization
        (polynomial weights). Their combination, and the pull in the metric of the inner optimiser, are ours.
    """
    if not (hasattr(inner, "init") and hasattr(inner, "update")):
        msg = f"inner must be an optax optimiser such as optax.nadam(1e-3), got {inner!r}."
        raise TypeError(msg)
    _validate.check_nonnegative("ascent_radius", ascent_radius)
    for name, fraction in {"pull": pull, "averaging": averaging, "ascent_decay": ascent_decay}.items():
        if fraction is not None or name != "averaging":
            _validate.check_fraction(name, fraction)
    _validate.check_float_dtype("accumulator_dtype", accumulator_dtype)
    inner = optax.with_extra_args_support(inner)

    def init(params: Params) -> LasryLionsState:
        _validate.check_float_tree("params", params, allow_masked=True)
        counts = [jnp.zeros([], jnp.int32) for _ in range(2)]
        zero, other = (cast_up(optax.tree.zeros_like(params), accumulator_dtype) for _ in range(2))
        return LasryLionsState(*counts, jnp.zeros([], scalar_dtype(zero)), zero, other, inner.init(params))

    def update(updates, state, params=None, **extra_args):
        if params is None:
            msg = "lasry_lions needs params: call tx.update(grads, state, params)."
            raise ValueError(msg)
        _validate.check_float_tree("params", params, allow_masked=True)
        _validate.check_same_tree("updates", updates, params)
        dtype = scalar_dtype(state.slow)
        at = lambda setting: jnp.asarray(evaluate(setting, state.count), dtype)
        share, radius = at(pull), at(ascent_radius)
        wide = cast_up(params, accumulator_dtype)
        y = _along(wide, -state.radius, state.ascent)
        step, inner_state = inner.update(updates, state.inner, cast_like(y, params), **extra_args)
        ascent = jax.tree.map(lambda m, g: ascent_decay * m + g.astype(m.dtype), state.ascent, updates)
        slow = jax.tree.map(lambda x, now: jnp.where(state.count == 0, now, x), state.slow, y)
        moved = jax.tree.map(
            lambda now, s, x: now + s.astype(now.dtype) - share.astype(now.dtype) * (now - x),
            y,
            step,
            slow,
        )
        count = state.count.astype(dtype)
        weight = 9 / (count + 9) if averaging is None else jnp.maximum(1 - at(averaging), 1 / (count + 1))
        mean = jax.tree.map(lambda x, now: x + weight.astype(x.dtype) * (now - x), slow, moved)
        emitted = jax.tree.map(
            lambda new, old, p: (new - old).astype(p.dtype), _along(moved, radius, ascent), wide, params
        )
        state = state._replace(count=optax.safe_increment(state.count), slow=slow)
        new = state._replace(radius=radius, ascent=ascent, slow=mean, inner=inner_state)
        # The gradient itself is looked at because a clip or a sign inside might hide that it is not finite.
        finite = all_finite(updates) & all_finite(emitted)
        emitted, new = skip_where(~finite, emitted, new, state)
        return emitted, new._replace(notfinite_count=state.notfinite_count + (~finite).astype(jnp.int32))

    return optax.GradientTransformationExtraArgs(init, update)


def _along(params: Params, radius: Float[Array, ""], direction: Params) -> Params:
    """A step of length ``radius`` along the direction; none where that is 0."""
    norm = optax.tree.norm(direction)
    share = jnp.where(norm > 0, radius / jnp.where(norm > 0, norm, 1), 0)
    return jax.tree.map(lambda p, d: p + share.astype(p.dtype) * d, params, direction)
