"""Entropy-SGD as an optax optimiser: descend ∇u, estimated by Langevin chains inside ``update``."""

from typing import Any

import jax
import optax

from .. import _validate
from .._noise import NoiseLaw
from .._typing import ScalarOrSchedule
from ..smoothing.langevin import Estimator, LangevinSettings, langevin
from ._relaxed import evaluate, outer_sgd, relaxed_descent

__all__ = ["check_settings", "descent", "entropy_sgd", "local_entropy_gradient"]


def local_entropy_gradient(
    smoothing_time: ScalarOrSchedule,
    inner_learning_rate: ScalarOrSchedule,
    *,
    temperature: ScalarOrSchedule = 1e-8,
    num_steps: int = 20,
    num_chains: int = 1,
    averaging: float | None = None,
    burn_in: int | None = None,
    estimator: Estimator = "displacement",
    inner_momentum: float = 0.0,
    noise: NoiseLaw = "rademacher",
    accumulator_dtype: jax.typing.DTypeLike | None = None,
    chain_batch_size: int | None = None,
    chain_sharding: jax.sharding.NamedSharding | None = None,
    key: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Emits ∇u(x, t), the gradient of the relaxed loss, as a gradient: first in an ``optax.chain``.

    u solves u_t + ½|∇u|² = (T/2) Δu with u(x, 0) = f(x); −u/T is, up to a constant, the *local entropy* of
    Chaudhari et al. One update runs :func:`jaxopt_pde.smoothing.langevin` from the present params, which costs
    ``num_steps·num_chains`` gradients. Any optax optimiser can follow, so Entropy-Adam is
    ``optax.chain(local_entropy_gradient(...), optax.adam(...))``.

    Args:
        smoothing_time: t > 0 in [param²/loss] ("scope"; a growing or shrinking schedule is "scoping").
        inner_learning_rate: Langevin step ε > 0 in [param²/loss].
        temperature: T ≥ 0 in [loss]. The Python number 0 leaves the noise out of the program.
        num_steps: L, inner steps (static).
        num_chains: K, chains (static).
        averaging: None for the uniform mean of the steps after ``burn_in``; a in [0, 1) for the papers' rule
            mean ← a·mean + (1 − a)·y.
        burn_in: steps left out of the uniform mean; None means L // 2.
        estimator: ``"displacement"`` (the papers'; one mean, the cheapest; its step h ≤ t is safe whatever the
            chains do), ``"gradient"`` or ``"control_variate"`` (least error once the chains equilibrate).
        inner_momentum: heavy ball within an update, in [0, 1) (static).
        noise: ``"rademacher"``, ±1 increments of the same weak order, or ``"gaussian"``, which costs about as much
            as a gradient of a small network on a CPU.
        accumulator_dtype: dtype of the inner loop; None means that of params but at least float32.
        chain_batch_size: chains run together under ``vmap``; None means all, 1 runs them one after another, which
            needs the memory of one and on a CPU is faster where every chain has its own minibatch (static).
        chain_sharding: spreads the chains over a mesh axis, as in :func:`~jaxopt_pde.smoothing.langevin`.
        key: integer seed or typed key. For independent copies ``vmap`` over the key given *here*.

    Extra args of ``update``:
        grad_fn: ``(params, InnerStep) -> gradient``, called L times, batched over the chains.
        value_fn: ``params -> loss``, used when ``grad_fn`` is missing.
        The ``updates`` passed in are ignored (pass the gradient you have, or params).

    Returns:
        A ``GradientTransformationExtraArgs`` with state :class:`RelaxedState`: three scalars, no tree. An estimate
        that is not finite becomes zeros and is counted in ``notfinite_count``; what follows in a chain
        then sees a zero gradient.

    Raises:
        ValueError, TypeError: at construction for a number out of range, in ``update`` for missing ``params`` or
            ``grad_fn``, and for params that are not real and floating or are masked; the message names it.

    Good values:
        ε the learning rate that suits plain SGD, inner momentum m = 0.9, t about ½ L ε/(1 − m), the other defaults,
        and an outer step h = t without momentum, which moves x to the mean of the particles; ε, t and h falling to 0
        together. More chains at a longer chain's cost, a smaller t or h, m = 0, outer momentum and a higher T all lost
        (``docs/theory/estimators.md``). In flat directions the particles spread by √(T·t) in every coordinate: keep
        that well below the size of a weight; the default is the temperature of the published code.
        ``optax.MultiSteps`` around it would run all gradients at every mini-step: accumulate inside ``grad_fn``
        instead.

    Example:
        >>> import jax, jax.numpy as jnp, optax, jaxopt_pde
        >>> tx = optax.chain(jaxopt_pde.local_entropy_gradient(1.0, 0.1, temperature=0.0), optax.sgd(1.0))
        >>> params = jnp.array([1.0, -2.0])
        >>> state = tx.init(params)
        >>> updates, state = tx.update(params, state, params, grad_fn=lambda p, step: p)  # f = ½|p|²
        >>> print(optax.apply_updates(params, updates).round(1))
        [ 0.5 -1. ]

    References:
        Chaudhari et al. 2017, Entropy-SGD: Biasing Gradient Descent Into Wide Valleys, arXiv:1611.01838.
        Chaudhari et al. 2018, Deep Relaxation, arXiv:1704.04932.
    """
    settings = LangevinSettings(
        num_steps,
        num_chains,
        averaging,
        burn_in,
        estimator,
        noise,
        accumulator_dtype,
        chain_batch_size,
        chain_sharding,
    )
    check_settings(smoothing_time, inner_learning_rate, temperature, inner_momentum, settings)
    return descent(
        "local_entropy_gradient",
        optax.identity(),
        (smoothing_time, inner_learning_rate, temperature, inner_momentum),
        settings,
        key,
    )


def entropy_sgd(
    learning_rate: ScalarOrSchedule,
    smoothing_time: ScalarOrSchedule,
    inner_learning_rate: ScalarOrSchedule,
    *,
    momentum: float | None = None,
    nesterov: bool = False,
    weight_decay: ScalarOrSchedule = 0.0,
    temperature: ScalarOrSchedule = 1e-8,
    num_steps: int = 20,
    num_chains: int = 1,
    averaging: float | None = None,
    burn_in: int | None = None,
    estimator: Estimator = "displacement",
    inner_momentum: float = 0.0,
    noise: NoiseLaw = "rademacher",
    accumulator_dtype: jax.typing.DTypeLike | None = None,
    chain_batch_size: int | None = None,
    chain_sharding: jax.sharding.NamedSharding | None = None,
    key: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Entropy-SGD: gradient descent on the relaxed loss u(x, t).

        x ← x − h ∇̂u(x, t),      ∇̂u from ``num_chains`` Langevin chains of ``num_steps`` steps around x.

    Since ∇²u ≤ I/t for every loss f, an exact step with h ≤ 2t never increases u, and h = t with the
    displacement estimator moves x to the mean of the particles: x ← ⟨y⟩.

    ======================  =========================  ====================  ======================
    here                    Entropy-SGD (ICLR'17)      its published code    Deep Relaxation (2018)
    ======================  =========================  ====================  ======================
    smoothing_time t        1/γ                        1/g                   γ
    temperature T           ε²/2                       ε²                    β⁻¹
    inner_learning_rate     η'                         0.1                   its inner step
    averaging a             1 − α (α = 0.75)           0.75                  None, burn_in=0
    learning_rate h         η, or η/γ (see below)      lr/g                  η
    estimator               "displacement"             "displacement"        "displacement"
    ======================  =========================  ====================  ======================

    Algorithm 1 of ICLR'17 adds the noise √η' ε N(0, I) where ours is √(2 η' T) N(0, I), whence T = ε²/2, and steps
    x ← x − η γ (x − μ) = x − h (x − μ)/t with h = η. Its experiments (section 4.3) scale that by 1/γ to
    x ← x − η (x − μ), which is h = η/γ = η t. The published code adds √(2 η') ε N(0, I), drops γ in the same
    way, and runs the inner loop with Nesterov momentum 0.9 that multiplies the loss's force by 10 and the pull to x
    not at all: in effect a time 10 times longer. Set ``noise="gaussian"`` for the papers' law of increments.

    Args:
        learning_rate: outer step h ≥ 0 in [param²/loss].
        smoothing_time: t, see :func:`local_entropy_gradient`, as are all arguments not listed here.
        inner_learning_rate: ε, the Langevin step.
        momentum: decay of the outer momentum, None for none.
        nesterov: Nesterov's form of the outer momentum.
        weight_decay: λ ≥ 0 in [loss/param²]; adds λ x to ∇̂u, so it decays the anchor and is not smoothed.
        temperature: T ≥ 0, in [loss].
        num_steps: L, steps of each chain.
        num_chains: K, chains.
        averaging: rule of the running mean.
        burn_in: steps left out of the uniform mean.
        estimator: which estimate of ∇u.
        inner_momentum: heavy ball within an update.
        noise: law of the increments.
        accumulator_dtype: dtype of the inner loop and of the outer momentum.
        chain_batch_size: chains run together.
        chain_sharding: spreads the chains over a mesh axis.
        key: integer seed or typed key.

    Extra args of ``update``:
        grad_fn, value_fn: as in :func:`local_entropy_gradient`.

    Returns:
        A ``GradientTransformationExtraArgs`` with state :class:`RelaxedState`. If the estimate is not finite the update
        is zero and the outer optimiser's state stays as it was.

    Raises:
        ValueError, TypeError: as :func:`local_entropy_gradient`.

    Example:
        >>> import functools, jax, jax.numpy as jnp, optax, jaxopt_pde
        >>> loss = lambda p, batch: jnp.mean((batch @ p - 1.0) ** 2)  # least squares: p = (0.3, 0, 0)
        >>> tx = jaxopt_pde.entropy_sgd(
        ...     1.0, smoothing_time=1.0, inner_learning_rate=0.05, temperature=1e-5, num_chains=2)
        >>> @functools.partial(jax.jit, donate_argnums=(0, 1))
        ... def train_step(params, opt_state, batches):  # leading axes [num_steps, num_chains]
        ...     grad_fn = lambda p, s: jax.grad(loss)(p, s.batch(batches))
        ...     updates, opt_state = tx.update(params, opt_state, params, grad_fn=grad_fn)
        ...     return optax.apply_updates(params, updates), opt_state
        >>> params = jnp.zeros(3)
        >>> opt_state = tx.init(params)
        >>> for i in range(5):
        ...     batches = jax.random.normal(jax.random.key(i), (20, 2, 8, 3)).at[..., 0].add(3.0)
        ...     params, opt_state = train_step(params, opt_state, batches)
        >>> print(jnp.abs(params - jnp.array([0.3, 0.0, 0.0])).max() < 0.05)
        True

    References:
        Chaudhari et al. 2017, arXiv:1611.01838, algorithm 1. Chaudhari et al. 2018, arXiv:1704.04932.
    """
    settings = LangevinSettings(
        num_steps,
        num_chains,
        averaging,
        burn_in,
        estimator,
        noise,
        accumulator_dtype,
        chain_batch_size,
        chain_sharding,
    )
    check_settings(smoothing_time, inner_learning_rate, temperature, inner_momentum, settings)
    return descent(
        "entropy_sgd",
        outer_sgd(learning_rate, momentum, nesterov, weight_decay, accumulator_dtype),
        (smoothing_time, inner_learning_rate, temperature, inner_momentum),
        settings,
        key,
    )


def check_settings(
    smoothing_time: ScalarOrSchedule,
    inner_learning_rate: ScalarOrSchedule,
    temperature: ScalarOrSchedule,
    inner_momentum: float,
    settings: LangevinSettings,
) -> LangevinSettings:
    """Raises on settings out of range, naming them as the optimisers do; returns them resolved."""
    _validate.check_positive("smoothing_time", smoothing_time)
    _validate.check_positive("inner_learning_rate", inner_learning_rate)
    _validate.check_nonnegative("temperature", temperature)
    _validate.check_fraction("inner_momentum", inner_momentum)
    return settings.check()


def descent(
    name: str,
    outer: optax.GradientTransformation,
    scalars: tuple[ScalarOrSchedule, ScalarOrSchedule, ScalarOrSchedule, ScalarOrSchedule],
    settings: LangevinSettings,
    key: Any,
) -> optax.GradientTransformationExtraArgs:
    """:func:`~._relaxed.relaxed_descent` with :func:`langevin` as the estimate, schedules read at each update."""

    def estimate(grad_fn, params, key, count):
        smoothing_time, step_size, temperature, momentum = (evaluate(value, count) for value in scalars)
        return langevin(
            grad_fn,
            params,
            key,
            smoothing_time=smoothing_time,
            step_size=step_size,
            temperature=temperature,
            momentum=momentum,
            **settings._asdict(),
        )

    return relaxed_descent(name, estimate, outer, key)
