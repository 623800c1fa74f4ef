"""Entropy-SGD for loops that hand the optimiser one gradient at a time: the params are the particle."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from .. import _noise, _validate
from .._typing import Params, ScalarOrSchedule
from ..smoothing import _kernel
from ..smoothing.langevin import LangevinSettings
from ._relaxed import all_finite, evaluate
from .local_entropy import check_settings

__all__ = ["StepwiseState", "entropy_sgd_stepwise"]


class StepwiseState(NamedTuple):
    """State of :func:`entropy_sgd_stepwise`; at ``inner_count`` 0 anchor and mean are stale and not read.

    Attributes:
        outer_count: outer steps so far (int32); schedules read it.
        inner_count: inner steps since the last outer one, 0 … num_steps − 1 (int32).
        key: the constant key.
        notfinite_count: gradients refused because they were not finite (int32).
        anchor: x, like params.
        mean: running mean of the particle, like params, in the accumulator dtype.
        velocity: inner momentum, like params, or None without it.
        outer: state of the outer optimiser.
    """

    outer_count: Int[Array, ""]
    inner_count: Int[Array, ""]
    key: Key[Array, ""]
    notfinite_count: Int[Array, ""]
    anchor: Params
    mean: Params
    velocity: Params | None
    outer: optax.OptState


def entropy_sgd_stepwise(
    outer: optax.GradientTransformation,
    smoothing_time: ScalarOrSchedule,
    inner_learning_rate: ScalarOrSchedule,
    *,
    temperature: ScalarOrSchedule = 1e-8,
    num_steps: int = 20,
    averaging: float | None = None,
    burn_in: int | None = None,
    inner_momentum: float = 0.0,
    noise: _noise.NoiseLaw = "rademacher",
    accumulator_dtype: jax.typing.DTypeLike | None = None,
    key: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Entropy-SGD with one gradient an update, for loops we do not control.

    The params that the loop sees are the Langevin particle y; every update takes the gradient at y and moves
    it one step. On the last of ``num_steps`` the outer optimiser runs on ∇̂u = (x − ⟨y⟩)/t at the anchor x,
    and the params become the new anchor. Evaluate and save :func:`jaxopt_pde.eval_params`, not the particle.

    With the same settings and key it gives the iterates of :func:`entropy_sgd` with ``num_chains=1`` and
    ``estimator="displacement"`` (the only estimator that needs no more than two trees of state).

    Args:
        outer: any optax optimiser, with its learning rate h; ``optax.sgd(h)`` gives Entropy-SGD. It runs, and its
            schedules tick, once every ``num_steps`` updates. Weight decay of the anchor belongs here.
        smoothing_time: t > 0 in [param²/loss]; a schedule of outer steps, as are the next two.
        inner_learning_rate: Langevin step ε > 0 in [param²/loss].
        temperature: T ≥ 0 in [loss]. The Python number 0 leaves the noise out of the program.
        num_steps: L, gradients per outer step (static).
        averaging: None for the uniform mean of the steps after ``burn_in``; a in [0, 1) for the papers' rule.
        burn_in: steps left out of the uniform mean; None means L // 2.
        inner_momentum: heavy ball between outer steps, in [0, 1) (static); costs one more tree of state.
        noise: ``"rademacher"`` or ``"gaussian"``.
        accumulator_dtype: dtype of the running mean; None means that of params but at least float32. The
            iterates live in the dtype of params: keep float32 master weights when training in bfloat16.
        key: integer seed or typed key. For independent copies ``vmap`` over the key given *here*.

    Returns:
        A ``GradientTransformationExtraArgs`` with state :class:`StepwiseState`: anchor, mean and outer state.
        It stands last in a chain (a scale after it would scale the jump back to the anchor); a clip before it clips
        every inner gradient. A gradient that is not finite moves nothing and is counted in ``notfinite_count``.

    Raises:
        ValueError, TypeError: for a setting out of range, an ``outer`` that is no optax transformation, missing params,
            or params that are not real and floating; the message names it.

    Example:
        >>> import jax.numpy as jnp, optax, jaxopt_pde
        >>> tx = jaxopt_pde.entropy_sgd_stepwise(optax.sgd(1.0), 1.0, 0.1, temperature=0.0, num_steps=10)
        >>> params = jnp.array([1.0, -2.0])
        >>> state = tx.init(params)
        >>> for _ in range(50):  # f = ½|p|², gradient p
        ...     updates, state = tx.update(params, state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> print(jnp.abs(jaxopt_pde.eval_params(state, params)).max() < 0.2)
        True

    References:
        Chaudhari et al. 2017, arXiv:1611.01838, algorithm 1.
    """
    if not (hasattr(outer, "init") and hasattr(outer, "update")):
        msg = f"outer must be an optax optimiser such as optax.sgd(0.1), got {outer!r}."
        raise TypeError(msg)
    settings = LangevinSettings(
        num_steps,
        averaging=averaging,
        burn_in=burn_in,
        estimator="displacement",
        noise=noise,
        accumulator_dtype=accumulator_dtype,
    )
    settings = check_settings(smoothing_time, inner_learning_rate, temperature, inner_momentum, settings)
    outer = optax.with_extra_args_support(outer)
    base_key = _validate.as_key(key)
    heated = not _validate.is_static_zero(temperature)
    heavy = not _validate.is_static_zero(inner_momentum)
    mean_dtype = lambda p: accumulator_dtype or jnp.promote_types(p.dtype, jnp.float32)

    def init(params: Params) -> StepwiseState:
        _validate.check_float_tree("params", params, allow_masked=True)
        zero = [jnp.zeros([], jnp.int32) for _ in range(3)]
        mean = lambda: jax.tree.map(lambda p: optax.tree.zeros_like(p, dtype=mean_dtype(p)), params)
        return StepwiseState(
            zero[0],
            zero[1],
            jnp.copy(base_key),
            zero[2],
            anchor=optax.tree.zeros_like(params),
            mean=mean(),
            velocity=mean() if heavy else None,
            outer=outer.init(params),
        )

    def update(updates, state, params=None, **extra_args):
        if params is None:
            msg = "entropy_sgd_stepwise needs params: call tx.update(grads, state, params)."
            raise ValueError(msg)
        _validate.check_float_tree("params", params, allow_masked=True)
        _validate.check_same_tree("updates", updates, params)
        scalars = _kernel.step_scalars(
            smoothing_time=evaluate(smoothing_time, state.outer_count),
            temperature=evaluate(temperature, state.outer_count),
            step_size=evaluate(inner_learning_rate, state.outer_count),
            momentum=inner_momentum,
            dtype=_kernel.scalar_dtype(state.mean),
        )
        anchor, moved, mean, velocity, finite = _advance(
            updates, state, params, scalars, settings, heated=heated
        )

        def outer_step():
            gradient = jax.tree.map(
                lambda x, m: ((x.astype(m.dtype) - m) * scalars.inverse_time.astype(m.dtype)).astype(x.dtype),
                anchor,
                mean,
            )
            step, outer_state = outer.update(gradient, state.outer, anchor, **extra_args)
            return _difference(jax.tree.map(jnp.add, anchor, step), params), outer_state

        last = state.inner_count == num_steps - 1
        emitted, outer_state = jax.lax.cond(
            last, outer_step, lambda: (_difference(moved, params), state.outer)
        )
        return emitted, StepwiseState(
            jnp.where(last, optax.safe_increment(state.outer_count), state.outer_count),
            jnp.where(last, 0, state.inner_count + 1),
            state.key,
            state.notfinite_count + (~finite).astype(jnp.int32),
            anchor,
            mean,
            velocity,
            outer_state,
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _difference(new: Params, params: Params) -> Params:
    """The update that takes ``params`` to ``new``, in the dtype of ``params``."""
    return jax.tree.map(lambda n, p: (n - p.astype(n.dtype)).astype(p.dtype), new, params)


def _advance(
    gradient: Params,
    state: StepwiseState,
    params: Params,
    scalars: _kernel.StepScalars,
    settings: LangevinSettings,
    *,
    heated: bool,
) -> tuple[Params, Params, Params, Params | None, Array]:
    """Anchor, new particle, mean and velocity after one inner step, and whether the step was finite.

    All but the anchor are in the accumulator dtype. A step that is not finite leaves the particle where it was.
    """
    fresh = state.inner_count == 0

    def adopt(held, at_start):
        return jax.tree.map(lambda h, s: jnp.where(fresh, s.astype(h.dtype), h), held, at_start)

    anchor, mean = adopt(state.anchor, params), adopt(state.mean, params)
    velocity = state.velocity
    if velocity is not None:
        velocity = adopt(velocity, optax.tree.zeros_like(velocity))
    noise = None
    if heated:
        outer_key = jax.random.fold_in(state.key, state.outer_count)
        noise_key, _ = _kernel.inner_keys(outer_key, state.inner_count, jnp.zeros([], jnp.int32))
        noise = _noise.draw_noise(noise_key, mean, settings.noise)
    position, wide_anchor = (optax.tree.cast_like(tree, mean) for tree in (params, anchor))
    moved, new_velocity = _kernel.langevin_step(position, velocity, gradient, wide_anchor, noise, scalars)
    finite = all_finite(moved)  # not finite if the gradient is not, or if the step overflows

    def keep(new, old):  # a select, which lets no NaN through
        return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

    moved, velocity = keep(moved, position), keep(new_velocity, velocity)
    weight = _kernel.averaging_weight(
        state.inner_count, settings.averaging, settings.burn_in, scalars.step_size.dtype
    )
    return anchor, moved, _kernel.update_mean(mean, moved, weight), velocity, finite
