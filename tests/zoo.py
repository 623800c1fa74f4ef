"""The optimisers that tests/contract runs over: one row for each exported factory and form.

A new optimiser joins the contract by adding a row here; nothing else.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxopt_pde


class Entry(NamedTuple):
    """One optimiser of the zoo.

    Attributes:
        make: ``make(**changes)`` builds it; ``changes`` override the factory's keyword arguments.
        factory: the exported factory, for `injectable`, with `arguments` its full keyword arguments.
        arguments: what `make()` passes to the factory.
        multi_gradient: takes ``grad_fn`` (else one gradient an update).
        relaxed: descends a relaxed loss, with a smoothing time (else it is a rule for the step or the batch).
        extra: the extra arguments of ``update``, from the gradient, where the loss is half its square.
        scheduled: an argument to inject.
        outer: wraps the factory's result, for factories that emit a gradient.
        rosenbrock: whether it claims to reach Rosenbrock's minimiser, with these arguments.
        loop: the argument that counts the gradients of one update (of one chain).
        replicas: copies of the model that the visible params hold on a leading axis, 0 for none; ``make`` then gives
            :func:`replicated`, so that every row of the contract reads as for one model.
    """

    factory: Callable[..., optax.GradientTransformation]
    arguments: dict[str, Any]
    multi_gradient: bool
    outer: Callable[[optax.GradientTransformation], optax.GradientTransformation] = lambda tx: tx
    rosenbrock: dict[str, Any] | None = None
    loop: str = "num_steps"
    relaxed: bool = True
    extra: Callable[[Any], dict[str, Any]] = lambda gradient: {}
    scheduled: str = "smoothing_time"
    replicas: int = 0

    def make(self, **changes) -> optax.GradientTransformationExtraArgs:
        return self.outer(self.factory(**{**self.arguments, **changes}))

    @property
    def chains(self) -> int:
        """Chains of one update, each told its number as ``InnerStep.chain``."""
        return self.replicas or self.arguments.get("num_chains", 1)

    @property
    def gradients(self) -> int:
        """Gradients of one update (of one chain)."""
        return self.arguments[self.loop]

    def count(self, number: int) -> dict[str, int]:
        """``number`` as the argument that counts gradients; twice that where they come in pairs."""
        return {self.loop: 2 * number if self.arguments.get("antithetic") else number}

    def heated(self, temperature: float) -> dict[str, float]:
        """The temperature as an argument, or nothing for a method without noise of its own."""
        return {"temperature": temperature} if "temperature" in self.factory.__annotations__ else {}


class ReplicatedState(NamedTuple):
    """State of :func:`replicated`; it shows what the rows of the contract look for in a state."""

    inner: Any
    copies: Any

    notfinite_count = property(lambda self: self.inner.notfinite_count)
    outer_count = property(lambda self: self.inner.outer_count)
    outer = property(lambda self: self.inner.outer)


REPLICAS = 2


def replicated(tx):
    """An optimiser of replicas as one of a single model, whose update is the mean of theirs.

    They start a quarter below and above, so that there is something to couple. One-gradient forms get the gradient of
    each from the extra argument ``gradient_of_each`` that :func:`call` passes.
    """
    factors = (0.75, 1.25)

    def spread(leaf):
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jnp.zeros((REPLICAS, *leaf.shape), leaf.dtype)
        scale = jnp.asarray(factors).reshape(-1, *[1] * leaf.ndim)
        return (scale * leaf[None]).astype(leaf.dtype)

    def init(params):
        copies = jax.tree.map(spread, params)
        return ReplicatedState(tx.init(copies), copies)

    def update(updates, state, params=None, *, gradient_of_each=None, **extra):
        copies = None if params is None else state.copies
        gradients = copies if gradient_of_each is None else jax.vmap(gradient_of_each)(copies)
        steps, inner = tx.update(gradients, state.inner, copies, **extra)
        mean = jax.tree.map(lambda s: jnp.mean(s.astype(jnp.float32), axis=0).astype(s.dtype), steps)
        return mean, ReplicatedState(inner, optax.apply_updates(copies, steps))

    return optax.GradientTransformationExtraArgs(init, update)


_INNER = {"smoothing_time": 1.0, "inner_learning_rate": 0.1, "temperature": 1e-8, "num_steps": 10}
_FINE = {"smoothing_time": 0.02, "inner_learning_rate": 1e-3}


def _half_square(gradient):
    """The loss ½|x − x*|², whose gradient is x − x*."""
    return {"value": sum(jnp.sum(jnp.square(g.astype(jnp.float32))) for g in jax.tree.leaves(gradient)) / 2}


def _parts(gradient):
    """The loss, and two equal parts of a batch."""
    return _half_square(gradient) | {
        "microbatch_gradients": jax.tree.map(lambda g: jnp.stack([g, g]), gradient)
    }


def _clipped(tx):
    """A momentum and a clip around a scale, the sign last, as in any chain of optax."""
    return optax.chain(optax.clip_by_global_norm(10.0), tx, optax.trace(0.3), optax.scale(-1.0))


def _rule(factory, arguments, extra, scheduled, outer=lambda tx: tx) -> Entry:
    return Entry(factory, arguments, False, outer, relaxed=False, extra=extra, scheduled=scheduled)


_SALR = {"max_learning_rate": 0.5}
RULES = {
    "scale_by_space_adaptive": _rule(
        jaxopt_pde.scale_by_space_adaptive, _SALR, _half_square, "max_learning_rate", _clipped
    ),
    "scale_by_space_adaptive-microbatch": _rule(
        jaxopt_pde.scale_by_space_adaptive,
        {**_SALR, "f_min": 0.0, "estimator": "microbatch", "decay": 0.5},
        _parts,
        "f_min",
        lambda tx: optax.chain(tx, optax.scale(-1.0)),
    ),
    "space_adaptive_sgd": _rule(
        jaxopt_pde.space_adaptive_sgd, {**_SALR, "estimator": "ema"}, _half_square, "max_learning_rate"
    ),
    "space_adaptive_sgd-window": _rule(
        jaxopt_pde.space_adaptive_sgd,
        {**_SALR, "momentum": 0.5, "nesterov": True, "estimator": "window", "window": 5},
        _half_square,
        "max_learning_rate",
    ),
    "scale_by_certainty_equivalent": _rule(
        jaxopt_pde.scale_by_certainty_equivalent,
        {"strong_convexity": 1.0, "smoothness": 2.0, "initial_sq_distance": 4.0},
        _parts,
        "smoothness",
        _clipped,
    ),
    "scale_by_signal_to_noise": _rule(
        jaxopt_pde.scale_by_signal_to_noise, {"smoothness": 2.0}, _parts, "smoothness", _clipped
    ),
    "target_level": _rule(
        jaxopt_pde.target_level,
        {"inner": jaxopt_pde.space_adaptive_sgd(max_learning_rate=0.5), "initial_gap": 1.0, "decay": 0.0},
        _half_square,
        "initial_gap",
    ),
    "adaptive_batch": _rule(
        jaxopt_pde.adaptive_batch,
        {"inner": optax.sgd(0.5), "learning_rate": 0.5, "max_microbatches": 4},
        _half_square,
        "learning_rate",
    ),
    "accelerated_sgd": _rule(
        jaxopt_pde.accelerated_sgd,
        {"learning_rate": 0.5, "long_step_ratio": 16.0, "statistical_advantage": 2.0},
        lambda gradient: {},
        "learning_rate",
    ),
}

ZOO = RULES | {
    # A push away from the minimiser that ends at the horizon, and noise below the contract's tolerances.
    "controlled_sgd": _rule(
        jaxopt_pde.controlled_sgd,
        {
            "learning_rate": 0.5,
            "control": lambda params, time, key: jax.tree.map(lambda p: p / 2, params),
            "horizon": 2.0,
            "temperature": 1e-8,
        },
        lambda gradient: {},
        "learning_rate",
    ),
    "two_time_scale": _rule(
        jaxopt_pde.two_time_scale,
        {"inner": optax.sgd(0.1, 0.5), "smoothing_time": 1.0, "averaging": 0.9},
        lambda gradient: {},
        "averaging",
    ),
    "two_time_scale-particles": Entry(
        jaxopt_pde.two_time_scale,
        {"inner": optax.adam(0.01), "smoothing_time": 0.1, "averaging": 0.9, "num_particles": REPLICAS},
        False,
        replicated,
        relaxed=False,
        replicas=REPLICAS,
    ),
    "lasry_lions": _rule(
        jaxopt_pde.lasry_lions,
        {"inner": optax.sgd(0.1, 0.5), "ascent_radius": 1e-5, "pull": 0.05, "averaging": 0.9},
        lambda gradient: {},
        "ascent_radius",
    ),
    "elastic_coupling": Entry(
        jaxopt_pde.elastic_coupling,
        {"coupling_time": 1.0},
        False,
        lambda tx: replicated(optax.chain(tx, optax.sgd(0.3, 0.5))),
        relaxed=False,
        scheduled="coupling_time",
        replicas=REPLICAS,
    ),
    "parle": Entry(
        jaxopt_pde.parle,
        {"learning_rate": 0.3, **_INNER, "coupling_time": 2.0, "momentum": 0.3},
        True,
        replicated,
        replicas=REPLICAS,
    ),
    "entropy_sgd": Entry(
        jaxopt_pde.entropy_sgd,
        {"learning_rate": 0.5, **_INNER},
        True,
        rosenbrock={**_FINE, "learning_rate": 0.01, "momentum": 0.9},
    ),
    "entropy_sgd-chains": Entry(
        jaxopt_pde.entropy_sgd,
        {
            "learning_rate": 0.3,
            **_INNER,
            "num_chains": 3,
            "momentum": 0.5,
            "nesterov": True,
            "noise": "gaussian",
        },
        True,
    ),
    "entropy_sgd-control_variate": Entry(
        jaxopt_pde.entropy_sgd,
        {
            "learning_rate": 0.3,
            **_INNER,
            "num_chains": 2,
            "estimator": "control_variate",
            "inner_momentum": 0.3,
        },
        True,
        rosenbrock={**_FINE, "learning_rate": 0.002, "momentum": 0.9, "inner_momentum": 0.0},
    ),
    "entropy_sgd-papers": Entry(
        jaxopt_pde.entropy_sgd,
        {"learning_rate": 0.5, **_INNER, "averaging": 0.25, "noise": "gaussian", "estimator": "displacement"},
        True,
    ),
    "local_entropy_gradient": Entry(
        jaxopt_pde.local_entropy_gradient, _INNER, True, lambda tx: optax.chain(tx, optax.sgd(0.5))
    ),
    "local_entropy_gradient-adam": Entry(
        jaxopt_pde.local_entropy_gradient,
        {**_INNER, "estimator": "gradient"},
        True,
        lambda tx: optax.chain(tx, optax.adam(0.05)),
        rosenbrock={**_FINE, "estimator": "gradient"},
    ),
    "entropy_sgd_stepwise": Entry(
        jaxopt_pde.entropy_sgd_stepwise,
        {"outer": optax.sgd(0.5), **_INNER},
        False,
        rosenbrock={**_FINE, "outer": optax.sgd(0.01, momentum=0.9)},
    ),
    "entropy_sgd_stepwise-momentum": Entry(
        jaxopt_pde.entropy_sgd_stepwise,
        {"outer": optax.adam(0.05), **_INNER, "inner_momentum": 0.3, "averaging": 0.25},
        False,
    ),
    "heat_sgd": Entry(
        jaxopt_pde.heat_sgd,
        {
            "learning_rate": 0.5,
            "smoothing_time": 1.0,
            "temperature": 1e-8,
            "num_samples": 10,
            "antithetic": True,
        },
        True,
        rosenbrock={"learning_rate": 1e-3, "momentum": 0.9},
        loop="num_samples",
    ),
    "hopf_lax_sgd": Entry(
        jaxopt_pde.hopf_lax_sgd,
        {"learning_rate": 0.2, "smoothing_time": 0.2, "num_steps": 10},
        True,
    ),
    "hopf_lax_sgd-proximal": Entry(
        jaxopt_pde.hopf_lax_sgd,
        {
            "learning_rate": 0.5,
            "smoothing_time": 1.0,
            "inner_learning_rate": 0.1,
            "num_steps": 10,
            "inner_momentum": 0.3,
            "inner_nesterov": True,
            "momentum": 0.5,
            "nesterov": True,
        },
        True,
        rosenbrock={**_FINE, "learning_rate": 0.01, "momentum": 0.9, "inner_momentum": 0.0},
    ),
}


def names(*, multi_gradient: bool | None = None, relaxed: bool = True) -> list[str]:
    """The zoo's names, of one kind."""
    chosen = {n: e for n, e in ZOO.items() if e.relaxed == relaxed}
    return [n for n, e in chosen.items() if multi_gradient is None or e.multi_gradient == multi_gradient]


def call(entry: Entry, tx, state, params, grad_fn, *, minibatch_noise=False, **extra):
    """One update in the entry's own protocol; ``grad_fn(params)`` is a plain gradient.

    ``minibatch_noise`` gives methods whose own noise is absent, or cancels on quadratics (pairs), a standard normal on
    every gradient, drawn from ``InnerStep.key``.
    """
    if entry.multi_gradient:
        noisy = minibatch_noise and (entry.arguments.get("antithetic") or not entry.heated(1.0))

        def step_grad_fn(p, step):
            return grad_fn(p) + jax.random.normal(step.key, p.shape, p.dtype) if noisy else grad_fn(p)

        return tx.update(params, state, params, grad_fn=step_grad_fn, **extra)
    if entry.replicas:
        return tx.update(params, state, params, gradient_of_each=grad_fn, **extra)
    gradient = grad_fn(params)
    return tx.update(gradient, state, params, **{**entry.extra(gradient), **extra})


def train(entry: Entry, tx, params, grad_fn, num_updates: int, **extra):
    """``num_updates`` updates in one compiled scan; returns the evaluated params and (params, state)."""

    @jax.jit
    def run(params):
        def body(carry, _):
            params, state = carry
            updates, state = call(entry, tx, state, params, grad_fn, **extra)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(body, (params, tx.init(params)), length=num_updates)[0]

    params, state = run(params)
    visible = state.copies if entry.replicas else params
    return jaxopt_pde.eval_params(state, visible), (params, state)


def parabola(dtype=jnp.float32):
    """A start and the gradient of ½|x|²-like loss with minimiser (1, −1, 0.5)."""
    target = jnp.array([1.0, -1.0, 0.5], dtype)
    return jnp.array([-1.0, 0.5, 2.0], dtype), lambda p: p - target.astype(p.dtype), target
