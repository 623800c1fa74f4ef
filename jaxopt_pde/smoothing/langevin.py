"""∇u(x, t) of the viscous relaxation by Langevin chains: the estimator behind Entropy-SGD."""

import functools
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int, Key

from .. import _noise, _validate
from .._arithmetic import cast_up
from .._sharding import check_axis_sharding, free_all_but_the_mapped_axis, vmap_over_axis
from .._typing import GradFn, Params, Smoothed
from . import _estimators, _kernel

__all__ = ["ESTIMATORS", "Estimator", "LangevinSettings", "langevin"]

Estimator = Literal["displacement", "gradient", "control_variate"]
ESTIMATORS: tuple[str, ...] = get_args(Estimator)


class LangevinSettings(NamedTuple):
    """What fixes the compiled chain: checked once, static under ``jit``."""

    num_steps: int = 20
    num_chains: int = 1
    averaging: float | None = None
    burn_in: int | None = None
    estimator: str = "control_variate"
    noise: str = "gaussian"
    accumulator_dtype: jax.typing.DTypeLike | None = None
    chain_batch_size: int | None = None
    chain_sharding: NamedSharding | None = None

    def check(self) -> "LangevinSettings":
        """Raises on bad values; returns self with ``burn_in`` resolved."""
        _validate.check_count("num_steps", self.num_steps)
        _validate.check_count("num_chains", self.num_chains)
        if self.averaging is not None:
            _validate.check_fraction("averaging", self.averaging)
        burn_in = self.burn_in
        if burn_in is None:
            burn_in = self.num_steps // 2 if self.averaging is None else 0
        elif self.averaging is not None:
            msg = (
                f"burn_in={burn_in!r} needs averaging=None (uniform mean), got averaging={self.averaging!r}."
            )
            raise ValueError(msg)
        _validate.check_count("burn_in", burn_in, minimum=0)
        if burn_in >= self.num_steps:
            msg = f"burn_in must be less than num_steps={self.num_steps}, got {burn_in!r}."
            raise ValueError(msg)
        _validate.check_choice("estimator", self.estimator, ESTIMATORS)
        _validate.check_choice("noise", self.noise, _noise.NOISE_LAWS)
        _validate.check_float_dtype("accumulator_dtype", self.accumulator_dtype)
        if self.chain_batch_size is not None:
            _validate.check_count("chain_batch_size", self.chain_batch_size)
            if self.chain_sharding is not None:
                msg = "chain_batch_size and chain_sharding exclude each other: one runs chains in turn, one at once."
                raise ValueError(msg)
        check_axis_sharding("chain_sharding", self.chain_sharding, "num_chains", self.num_chains)
        return self._replace(burn_in=burn_in)


def langevin(
    grad_fn: GradFn,
    params: Params,
    key: Key[Array, ""],
    *,
    smoothing_time: float | Float[Array, ""],
    temperature: float | Float[Array, ""],
    step_size: float | Float[Array, ""],
    num_steps: int = 20,
    num_chains: int = 1,
    averaging: float | None = None,
    burn_in: int | None = None,
    estimator: Estimator = "control_variate",
    momentum: float | Float[Array, ""] = 0.0,
    noise: _noise.NoiseLaw = "gaussian",
    curvature: float | Float[Array, ""] | None = None,
    start: Params | None = None,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
    chain_batch_size: int | None = None,
    chain_sharding: NamedSharding | None = None,
) -> Smoothed:
    r"""Estimates ∇u(x, t) of the viscous relaxation from Langevin chains around x.

    u solves u_t + ½|∇u|² = (T/2) Δu, u(x, 0) = f(x). With the local Gibbs density
    ρ(y) ∝ exp(−(f(y) + |x − y|²/(2t))/T),

        ∇u(x, t) = E_ρ[(x − y)/t] = E_ρ[∇f(y)],

    and ρ is the invariant density of dy = −(∇f(y) + (y − x)/t) ds + √(2T) dW, discretised as

        y ← y − ε (g + (y − x)/t) + √(2 ε T) ξ,      g ≈ ∇f(y),  y₀ = x.

    At T = 0 the chain is gradient descent on f(y) + |x − y|²/(2t) and ∇u is the gradient of the Moreau envelope;
    no random number is then drawn for the steps (decided at trace time, if ``temperature`` is a Python number).

    Args:
        grad_fn: ``(params, InnerStep) -> gradient``; called ``num_steps`` times, batched over the chains by
            ``vmap``. It may be stochastic: choose the minibatch by ``step.batch(batches)`` or ``step.key``.
        params: x, any pytree of real floating arrays. Unit [param].
        key: typed key (or integer seed). Step l of chain k uses ``fold_in(fold_in(key, l), k)`` only.
        smoothing_time: t > 0, in [param²/loss].
        temperature: T ≥ 0, in [loss]; the viscosity is T/2.
        step_size: ε > 0, in [param²/loss]. Stable in the mean if ε (λ + 1/t) < 2 for the Hessian's
            eigenvalues λ; the chain's stationary bias is O(ε).
        num_steps: L ≥ 1, steps of each chain (static).
        num_chains: K ≥ 1, chains (static). The cost is L·K gradients.
        averaging: None for the uniform mean over the steps after ``burn_in``; a in [0, 1) for the papers' rule
            mean ← a·mean + (1 − a)·y from mean = x, which keeps a weight aᴸ on its start.
        burn_in: steps left out of the uniform mean; None means L // 2.
        estimator: ``"displacement"`` D = (x − ⟨y⟩)/t; ``"gradient"`` G = ⟨g⟩; or ``"control_variate"``
            C = D + c (G − D). G − D averages ∇f(y) + (y − x)/t, whose expectation under ρ is 0, so every c is
            unbiased at stationarity; the best one is estimated from the chains (see ``curvature``).
        momentum: m in [0, 1), heavy ball within the call; noise is scaled by √(1 − m), which keeps T.
        noise: ``"gaussian"``, or ``"rademacher"``: ±1 increments, same weak order, 32 times fewer random bits.
        curvature: mean curvature tr(E_ρ[∇²f])/d in [loss/param²] if known, which sets c = 1/(1 + t·curvature), the
            coefficient of least variance per sample. None estimates the c of least error for the average:
            see the theory of estimators in the documentation (docs/theory/estimators.md).
        start: particles to start from, a leading axis K on every leaf (``Smoothed.positions`` of the last call);
            None starts every chain at x.
        accumulator_dtype: dtype of particles and means; None means that of ``params`` but at least float32.
            ``grad_fn`` always sees the dtype of ``params``.
        chain_batch_size: chains run together under ``vmap`` (static). None means all. With 1 they run one after
            another: the memory of one chain, and on a CPU the faster form where every chain has its own
            minibatch; chains that share a minibatch are faster together.
        chain_sharding: ``NamedSharding(mesh, PartitionSpec("axis"))`` spreads the chains over a mesh axis, whose
            size must divide K. Leaves keep their own sharding on other axes. The estimate is then one all-reduce: of
            one model, or of three for the control variate. Reading ``standard_error`` costs another one of a number
            a leaf. Explicit axes need JAX 0.10.

    Returns:
        :class:`Smoothed` with ``value`` None, ``positions`` [K, …], ``num_gradients`` L·K and ``info``:
        ``control_coefficient`` c, and ``standard_error``, the norm of the standard error of ``gradient`` over chains,
        √(Σᵢ varᵢ/K) in [loss/param] (NaN for K = 1). It does not see the bias of short chains.

    Raises:
        ValueError, TypeError: a setting out of range, a leaf of ``params`` that is not real and floating, or a
            gradient whose tree or shapes differ from those of ``params``; the message names it.

    Good values:
        ε about half of 1/(λ_max + 1/t); L from 2 t/ε to 4 t/ε (flat directions relax at rate 1/t) and the rest
        of the budget in chains. t < 1/|λ_min|: beyond that ρ has several modes and every local chain is biased.

    Example:
        On f = ½ x² with t = 1 the relaxed gradient is x/(1 + t) = 1 at x = 2:

        >>> import jax, jaxopt_pde
        >>> smoothed = jaxopt_pde.smoothing.langevin(
        ...     lambda x, step: x, jax.numpy.array(2.0), jax.random.key(0),
        ...     smoothing_time=1.0, temperature=0.01, step_size=0.1, num_steps=60, num_chains=8)
        >>> print(f"{smoothed.gradient:.2f} from {smoothed.num_gradients} gradients")
        1.00 from 480 gradients

    References:
        Chaudhari et al. 2017, Entropy-SGD, arXiv:1611.01838. Chaudhari, Oberman, Osher, Soatto & Carlier 2018,
        Deep Relaxation, arXiv:1704.04932. The control variate is our own derivation.
    """
    _validate.check_positive("smoothing_time", smoothing_time)
    _validate.check_nonnegative("temperature", temperature)
    _validate.check_positive("step_size", step_size)
    _validate.check_fraction("momentum", momentum)
    if curvature is not None:
        _validate.check_nonnegative("curvature", curvature)
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
    ).check()
    _validate.check_float_tree("params", params)
    params = jax.tree.map(jnp.asarray, params)
    anchor = cast_up(params, accumulator_dtype)
    if start is not None:
        expected = jax.tree.map(lambda x: jax.ShapeDtypeStruct((num_chains, *x.shape), x.dtype), params)
        _validate.check_same_tree("start", start, expected)
    scalars = _kernel.step_scalars(
        smoothing_time=smoothing_time,
        temperature=temperature,
        step_size=step_size,
        momentum=momentum,
        dtype=_kernel.scalar_dtype(anchor),
    )
    run_chain = functools.partial(
        _run_chain,
        grad_fn,
        params,
        anchor,
        _validate.as_key(key),
        scalars,
        settings,
        heated=not _validate.is_static_zero(temperature),
        heavy=not _validate.is_static_zero(momentum),
    )
    chains = _over_chains(run_chain, start, settings)
    gradient, info = _estimators.estimate(
        chains, anchor, scalars.inverse_time, estimator=estimator, curvature=curvature, num_chains=num_chains
    )
    return Smoothed(
        gradient=jax.tree.map(lambda g, x: g.astype(x.dtype), gradient, params),
        value=None,
        positions=jax.tree.map(lambda y, x: y.astype(x.dtype), chains.position, params),
        num_gradients=jnp.asarray(num_steps * num_chains, jnp.int32),
        info=info,
    )


def _over_chains(run_chain, start: Params | None, settings: LangevinSettings) -> _estimators.Chains:
    """Runs the chains batched, with a leading axis K on every result."""
    if settings.num_chains == 1:  # no vmap: a batch axis of one slows convolutions down
        only = None if start is None else jax.tree.map(lambda y: y[0], start)
        return jax.tree.map(lambda leaf: leaf[None], run_chain(jnp.zeros([], jnp.int32), only))
    chains = jnp.arange(settings.num_chains, dtype=jnp.int32)
    if settings.chain_batch_size is not None:
        size = None if settings.chain_batch_size == 1 else settings.chain_batch_size
        return jax.lax.map(lambda pair: run_chain(*pair), (chains, start), batch_size=size)
    return vmap_over_axis(run_chain, settings.chain_sharding, in_axes=0)(chains, start)


def _run_chain(
    grad_fn: GradFn,
    params: Params,
    anchor: Params,
    key: Key[Array, ""],
    scalars: _kernel.StepScalars,
    settings: LangevinSettings,
    chain: Int[Array, ""],
    start: Params | None,
    *,
    heated: bool,
    heavy: bool,
) -> _estimators.Chains:
    """One chain: a scan over the steps, so that one gradient is compiled whatever L is."""
    wants_gradient = settings.estimator != "displacement"
    controlled = settings.estimator == "control_variate"
    origin = anchor if start is None else jax.tree.map(lambda y, x: y.astype(x.dtype), start, anchor)
    zeros = jax.tree.map(jnp.zeros_like, anchor)
    initial = _estimators.Chains(
        position=free_all_but_the_mapped_axis(origin, settings.chain_sharding),
        start=origin if controlled and start is not None else None,
        mean_position=None if settings.estimator == "gradient" else anchor,
        mean_gradient=zeros if wants_gradient else None,
        first_gradient=zeros if controlled else None,
        noise_sum=zeros if controlled and heated else None,
    )

    def step(carry, index):
        chain_state, velocity = carry
        noise_key, inner = _kernel.inner_keys(key, index, chain)
        gradient = grad_fn(jax.tree.map(lambda y, x: y.astype(x.dtype), chain_state.position, params), inner)
        _validate.check_same_tree("grad_fn", gradient, params)
        gradient = jax.tree.map(lambda g, y: g.astype(y.dtype), gradient, anchor)
        noise = _noise.draw_noise(noise_key, anchor, settings.noise) if heated else None
        position, velocity = _kernel.langevin_step(
            chain_state.position, velocity, gradient, anchor, noise, scalars
        )
        position = free_all_but_the_mapped_axis(position, settings.chain_sharding)
        weight = _kernel.averaging_weight(
            index, settings.averaging, settings.burn_in, scalars.step_size.dtype
        )
        first, last = index == 0, index == settings.num_steps - 1
        updated = chain_state._replace(position=position)
        if chain_state.mean_position is not None:
            # The control variate pairs g with the y at which it was taken; the papers average the new y.
            visited = chain_state.position if controlled else position
            updated = updated._replace(
                mean_position=_kernel.update_mean(chain_state.mean_position, visited, weight)
            )
        if wants_gradient:  # the exponential mean starts from the first gradient, as the position's from x
            weight = jnp.where(first, jnp.ones_like(weight), weight)
            updated = updated._replace(
                mean_gradient=_kernel.update_mean(chain_state.mean_gradient, gradient, weight)
            )
        if controlled:
            updated = updated._replace(
                first_gradient=jax.tree.map(
                    lambda g, g0: jnp.where(first, g, g0), gradient, chain_state.first_gradient
                )
            )
        if chain_state.noise_sum is not None:  # the last increment reaches no average
            kept = jnp.where(last, 0.0, 1.0)
            updated = updated._replace(
                noise_sum=jax.tree.map(
                    lambda total, xi: total + kept.astype(xi.dtype) * xi, chain_state.noise_sum, noise
                )
            )
        return (updated, velocity), None

    steps = jnp.arange(settings.num_steps, dtype=jnp.int32)
    (final, _), _ = jax.lax.scan(step, (initial, zeros if heavy else None), steps)
    return final
