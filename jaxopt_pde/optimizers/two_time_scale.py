"""Entropy-SGD in homogenised form: fast particles held to their slow running mean, one gradient an update."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from .. import _validate
from .._arithmetic import cast_up
from .._typing import Params, ScalarOrSchedule
from ..smoothing._kernel import scalar_dtype
from ._relaxed import all_finite, evaluate, skip_where

__all__ = ["TwoTimeScaleState", "two_time_scale"]


class TwoTimeScaleState(NamedTuple):
    """State of :func:`two_time_scale`; at ``count`` 0 the slow variable is not set yet and not read.

    Attributes:
        count: updates so far (int32); schedules read it.
        notfinite_count: updates without a step because gradient or step was not finite (int32).
        slow: x, like params (without the axis of the particles), in the accumulator dtype.
        inner: state of the inner optimiser.
    """

    count: Int[Array, ""]
    notfinite_count: Int[Array, ""]
    slow: Params
    inner: optax.OptState


def two_time_scale(
    inner: optax.GradientTransformation,
    smoothing_time: ScalarOrSchedule,
    *,
    averaging: ScalarOrSchedule = 0.98,
    num_particles: int | None = None,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Descends ∇u(x, t) on a slow variable x while particles y take plain steps of any optimiser around it.

    The params that the training loop holds are the particle y (or K of them). One update, with g ≈ ∇f(y):

        y ← y + inner(g + (y − x)/t),      x ← a x + (1 − a) ⟨y⟩,

    ⟨y⟩ the mean over the particles. Nothing is ever restarted. As a → 1 the particles equilibrate around a
    standing x, with the density ρ(y) ∝ exp(−(f(y) + |x − y|²/(2t))/T) at the temperature T of their noise, and since
    x − E_ρ[y] = t ∇u, an update moves x by

        x ← x − (1 − a) t ∇u(x, t):

    gradient descent on the relaxed loss, by steps of h = (1 − a) t. Where f is quadratic E_ρ[y] is the same at every
    T. Evaluate and save :func:`jaxopt_pde.eval_params`, which gives x.

    Limits: t = ∞ is ``inner`` alone, with x the exponential mean of its iterates (``optax.ema`` of params);
    a = 0 makes x = ⟨y⟩, so one particle then feels no pull.
    With ``num_particles=K``, this is Elastic-SGD (EASGD) with its centre variable x: their elasticity ρ is 1/t here,
    their moving rate β is 1 − a, and our x takes the particles after their step where theirs takes them before.

    Args:
        inner: any optax optimiser of y, with its learning rate; ``optax.sgd(0.1, momentum=0.9)`` for the published
            forms. It sees the gradient with the pull added. Its weight decay acts on y.
        smoothing_time: t > 0 in [param²/loss]; ``math.inf``, also as the value of a schedule, for no pull.
        averaging: a in [0, 1), the weight that x keeps at an update: x remembers about 1/(1 − a) updates.
        num_particles: None for one particle, params as they are. K ≥ 1 for a leading axis K on every leaf of params
            and gradients, and one x without it that all share (static). Shard that axis over a mesh and ⟨y⟩ is the
            only thing that travels.
        accumulator_dtype: dtype of x; None means that of params but at least float32. Increments (1 − a)(y − x)
            are small: keep bfloat16 out of it.

    Returns:
        A ``GradientTransformationExtraArgs`` with state :class:`~jaxopt_pde.optimizers.TwoTimeScaleState`: one model
        beside the inner state. It stands last in a chain: x takes the y that follow from what is emitted here. If
        gradient or step is not finite, neither y, x nor the inner state move and ``notfinite_count`` grows; the
        schedules go on.

    Raises:
        ValueError, TypeError: for a number out of range, an ``inner`` that is no optax optimiser, missing params,
            leaves without the axis of the particles, or params not real and floating; the message names it.

    Good values:
        The learning rate and momentum of plain SGD; t from five to ten times learning rate/(1 − momentum); 1 − a from
        0.01 to 0.05. In flat directions the particles forget in t (1 − momentum)/learning rate updates: x should take
        longer, 1/(1 − a). Where plain SGD generalises already a pull only slows learning: start from t = ∞, or let
        a schedule end there.

    Example:
        >>> import jax.numpy as jnp, optax, jaxopt_pde
        >>> tx = jaxopt_pde.two_time_scale(optax.sgd(0.1), 1.0, averaging=0.9, num_particles=2)
        >>> params = jnp.array([[1.0, -2.0], [3.0, 0.0]])  # two particles in the plane
        >>> state = tx.init(params)
        >>> for _ in range(200):  # f = ½|p|², gradient p
        ...     updates, state = tx.update(params, state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> x = jaxopt_pde.eval_params(state, params)
        >>> print(x.shape, jnp.abs(x).max() < 1e-3)
        (2,) True

    References:
        Chaudhari, Oberman, Osher, Soatto and Carlier 2018, Deep Relaxation, arXiv:1704.04932 (homogenisation of two
        time scales). Zhang, Choromanska and LeCun 2015, Deep learning with Elastic Averaging SGD, arXiv:1412.6651.
    """
    if not (hasattr(inner, "init") and hasattr(inner, "update")):
        msg = f"inner must be an optax optimiser such as optax.sgd(0.1), got {inner!r}."
        raise TypeError(msg)
    _validate.check_positive("smoothing_time", smoothing_time, or_infinite=True)
    _validate.check_fraction("averaging", averaging)
    if num_particles is not None:
        _validate.check_count("num_particles", num_particles)
    _validate.check_float_dtype("accumulator_dtype", accumulator_dtype)
    inner = optax.with_extra_args_support(inner)

    def center(params: Params) -> Params:
        """⟨y⟩ in the accumulator dtype."""
        wide = cast_up(params, accumulator_dtype)
        return wide if num_particles is None else jax.tree.map(lambda y: jnp.mean(y, axis=0), wide)

    def spread(slow: Params) -> Params:
        return slow if num_particles is None else jax.tree.map(lambda x: x[None], slow)

    def init(params: Params) -> TwoTimeScaleState:
        _check_particles(params, num_particles)
        zero = [jnp.zeros([], jnp.int32) for _ in range(2)]
        return TwoTimeScaleState(*zero, center(optax.tree.zeros_like(params)), inner.init(params))

    def update(updates, state, params=None, **extra_args):
        if params is None:
            msg = "two_time_scale needs params: call tx.update(grads, state, params)."
            raise ValueError(msg)
        _check_particles(params, num_particles)
        _validate.check_same_tree("updates", updates, params)
        fresh = state.count == 0
        slow = jax.tree.map(lambda x, y: jnp.where(fresh, y, x), state.slow, center(params))
        dtype = scalar_dtype(slow)
        rate = 1 / jnp.asarray(evaluate(smoothing_time, state.count), dtype)
        pulled = jax.tree.map(
            lambda g, y, x: (g.astype(x.dtype) + (y.astype(x.dtype) - x) * rate.astype(x.dtype)).astype(
                g.dtype
            ),
            updates,
            params,
            spread(slow),
        )
        step, inner_state = inner.update(pulled, state.inner, params, **extra_args)
        moved = jax.tree.map(lambda y, s: (y + s).astype(y.dtype), params, step)
        # The gradient itself is looked at because a clip or a sign inside might hide that it is not finite.
        finite = all_finite(pulled) & all_finite(moved)
        step, inner_state = skip_where(~finite, step, inner_state, state.inner)
        weight = 1 - jnp.asarray(evaluate(averaging, state.count), dtype)
        slow = jax.tree.map(
            lambda x, y: jnp.where(finite, x + weight.astype(x.dtype) * (y - x), x), slow, center(moved)
        )
        return step, TwoTimeScaleState(
            optax.safe_increment(state.count),
            state.notfinite_count + (~finite).astype(jnp.int32),
            slow,
            inner_state,
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _check_particles(params: Params, num_particles: int | None) -> None:
    """Raises unless params are real and floating, with the axis of the particles if there is one."""
    _validate.check_float_tree("params", params, allow_masked=True)
    if num_particles is None:
        return
    for path, leaf in jax.tree.leaves_with_path(params):
        if jnp.shape(leaf)[:1] != (num_particles,):
            msg = (
                f"params{jax.tree_util.keystr(path)} must have num_particles={num_particles} as its first axis, "
                f"got shape {jnp.shape(leaf)}."
            )
            raise ValueError(msg)
