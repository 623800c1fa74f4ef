"""The optimisers of the bake-off, each with the space that its hyper-parameters are searched in."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxopt_pde
from experiments._bakeoff_spaces import Choice, LogUniform
from jaxopt_pde import _validate

__all__ = ["ABLATIONS", "KNOWN", "PRESET_METHODS", "Method", "named"]

Hyper = dict[str, Any]


class Method(NamedTuple):
    """An optimiser in the comparison.

    Attributes:
        name: as in tables and on the command line.
        space: its hyper-parameters, all traced numbers: one program serves every candidate.
        make: (hyper-parameters, number of updates, key) -> optax transformation.
        num_steps: gradients of an update that follow each other.
        num_chains: gradients taken side by side at each of those.
        asks: how an update gets its gradients: one is given to it (``"gradient"``), one with the loss (``"value"``),
            the first is given and the others asked for (``"sam"``), all are asked for (``"grad_fn"``), one is given to
            each of the replicas on the leading axis (``"replicas"``).
        wrap: weights -> what the optimiser moves.
        visible: what it moves -> where a gradient is taken.
        evaluated: (what it moves, state) -> weights to evaluate.
        average_weight: (hyper-parameters, update, number of updates) -> weight of the newest weights in the average
            that is evaluated; None evaluates ``evaluated``.
    """

    name: str
    space: dict[str, LogUniform | Choice]
    make: Callable[[Hyper, int, Any], optax.GradientTransformation]
    num_steps: int = 1
    num_chains: int = 1
    asks: str = "gradient"
    wrap: Callable[[Any], Any] = lambda params: params
    visible: Callable[[Any], Any] = lambda moved: moved
    evaluated: Callable[[Any, Any], Any] = lambda moved, state: jaxopt_pde.eval_params(state, moved)
    average_weight: Callable[[Hyper, Any, int], Any] | None = None

    @property
    def gradients_per_update(self) -> int:
        """Cost of an update."""
        return self.num_steps * self.num_chains


def named(names: Sequence[str]) -> list[Method]:
    """The methods of these names.

    Raises:
        ValueError: for an unknown name; it lists those there are.
    """
    for name in names:
        _validate.check_choice("methods", name, tuple(KNOWN))
    return [KNOWN[name] for name in names]


def _cosine(rate, updates: int):
    return lambda count: rate * optax.cosine_decay_schedule(1.0, updates)(count)


def _nesterov(hyper: Hyper, updates: int, key=None):
    del key
    return optax.sgd(_cosine(hyper["rate"], updates), momentum=hyper["momentum"], nesterov=True)


def _nesterov_at(rate):
    return optax.sgd(rate, momentum=0.9, nesterov=True)


def _constant(hyper: Hyper, updates: int, key):
    del updates, key
    return optax.sgd(hyper["rate"], momentum=0.9, nesterov=True)


def _steps(hyper: Hyper, updates: int, key):
    del key
    falling = optax.piecewise_constant_schedule(1.0, {updates // 2: 0.1, (3 * updates) // 4: 0.1})
    return optax.sgd(lambda count: hyper["rate"] * falling(count), momentum=hyper["momentum"], nesterov=True)


def _adaptive(factory, hyper: Hyper, updates: int, key):
    del key
    decay = {"weight_decay": hyper["weight_decay"]} if "weight_decay" in hyper else {}
    return factory(_cosine(hyper["rate"], updates), **decay)


def _sam(hyper: Hyper, updates: int, key):
    del key
    ascent = optax.chain(optax.contrib.normalize(), optax.sgd(hyper["radius"]))
    descent = optax.sgd(_cosine(hyper["rate"], updates), momentum=0.9, nesterov=True)
    return optax.contrib.sam(descent, ascent, sync_period=2, opaque_mode=True)


def _lookahead(hyper: Hyper, updates: int, key):
    fast = _nesterov({"rate": hyper["rate"], "momentum": 0.9}, updates, key)
    return optax.lookahead(fast, sync_period=5, slow_step_size=hyper["slow_step"])


def _salr(hyper: Hyper, updates: int, key):
    del updates, key
    return jaxopt_pde.space_adaptive_sgd(
        max_learning_rate=hyper["max_rate"], momentum=hyper["momentum"], nesterov=True, estimator="ema"
    )


def _accelerated(hyper: Hyper, updates: int, key):
    del key
    return jaxopt_pde.accelerated_sgd(
        _cosine(hyper["rate"], updates),
        long_step_ratio=hyper["long_step_ratio"],
        statistical_advantage=jnp.sqrt(hyper["long_step_ratio"]) / 3,
    )


def _local_entropy(build, steps: int, chains: int, hyper: Hyper, updates: int, key):
    """``build(smoothing time, inner rate, **settings)``: the time t in units of the inner rate, both on a cosine."""
    settings = {"num_steps": steps, "num_chains": chains, "inner_momentum": 0.9, "temperature": 1e-8}
    rate = _cosine(hyper["inner_rate"], updates)
    return build(lambda count: hyper["time_per_rate"] * rate(count), rate, key=key, **settings)


def _entropy_sgd(steps: int, chains: int, hyper: Hyper, updates: int, key):
    """The outer step h = t moves the weights to the mean of the particles."""
    build = lambda time, inner_rate, **settings: jaxopt_pde.entropy_sgd(time, time, inner_rate, **settings)
    return _local_entropy(build, steps, chains, hyper, updates, key)


def _entropy_adam(hyper: Hyper, updates: int, key):
    local_entropy = _local_entropy(jaxopt_pde.local_entropy_gradient, 5, 1, hyper, updates, key)
    return optax.chain(local_entropy, optax.adam(_cosine(hyper["rate"], updates), b1=0.5))


def _heat(hyper: Hyper, updates: int, key):
    return jaxopt_pde.heat_sgd(
        _cosine(hyper["rate"], updates),
        1.0,
        temperature=hyper["deviation"] ** 2,
        num_samples=2,
        momentum=0.9,
        nesterov=True,
        key=key,
    )


def _hopf_lax(hyper: Hyper, updates: int, key):
    rate = _cosine(hyper["inner_rate"], updates)
    time = lambda count: hyper["time_per_rate"] * rate(count)
    inner = {"num_steps": 20, "inner_learning_rate": rate, "inner_momentum": 0.9}
    return jaxopt_pde.hopf_lax_sgd(time, time, key=key, **inner)


def _two_time_scale(particles: int | None, hyper: Hyper, updates: int, key):
    inner = _nesterov({**hyper, "momentum": 0.9}, updates, key)
    settings = {"averaging": 1 - hyper["slowness"], "num_particles": particles}
    return jaxopt_pde.two_time_scale(inner, hyper["time_per_rate"] * hyper["rate"], **settings)


def _lasry_lions(factory, hyper: Hyper, updates: int, key, **changed):
    del key
    return jaxopt_pde.lasry_lions(
        factory(_cosine(hyper["rate"], updates)), hyper.get("radius", 0.0), **changed
    )


def _elastic(hyper: Hyper, updates: int, key):
    coupling = jaxopt_pde.elastic_coupling(hyper["coupling_per_rate"] * hyper["rate"])
    return optax.chain(coupling, _nesterov({"rate": hyper["rate"], "momentum": 0.9}, updates, key))


def _parle(hyper: Hyper, updates: int, key):
    def build(time, inner_rate, num_chains, **settings):
        del num_chains  # each of the replicas has one
        coupling_time = lambda count: hyper["coupling_per_time"] * time(count)
        return jaxopt_pde.parle(time, time, inner_rate, coupling_time=coupling_time, **settings)

    return _local_entropy(build, 10, 1, hyper, updates, key)


def _replicated(params):
    """REPLICAS copies on a leading axis; what parts them is their minibatches."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (REPLICAS, *leaf.shape)), params)


def _schedule_free_eval(moved, state):
    return optax.contrib.schedule_free_eval_params(state, moved)


REPLICAS = 4

_RATE = LogUniform(3e-3, 1.0)
_MOMENTUM = Choice((0.8, 0.9, 0.95))
_SMALL_RATE = LogUniform(2e-4, 3e-2)
_DECAY = LogUniform(1e-4, 1.0)
_BALL = {"radius": LogUniform(0.03, 0.5)}
_ENTROPY = {"inner_rate": _RATE, "time_per_rate": LogUniform(10.0, 300.0)}
_TWO_TIMES = {"rate": _RATE, "time_per_rate": LogUniform(10.0, 1000.0), "slowness": LogUniform(3e-3, 0.1)}

KNOWN = {
    method.name: method
    for method in (
        Method("SGD, step", {"rate": _RATE, "momentum": _MOMENTUM}, _steps),
        Method("SGD, cosine", {"rate": _RATE, "momentum": _MOMENTUM}, _nesterov),
        Method("Adam", {"rate": _SMALL_RATE}, functools.partial(_adaptive, optax.adam)),
        Method(
            "AdamW", {"rate": _SMALL_RATE, "weight_decay": _DECAY}, functools.partial(_adaptive, optax.adamw)
        ),
        Method("NAdam", {"rate": _SMALL_RATE}, functools.partial(_adaptive, optax.nadam)),
        Method("SAM", {"rate": _RATE, "radius": LogUniform(0.01, 0.5)}, _sam, num_steps=2, asks="sam"),
        Method(
            "SGD, EMA",
            {"rate": _RATE, "forgetting": LogUniform(3e-3, 0.1)},
            _constant,  # the average starts as the plain mean of the weights so far
            average_weight=lambda hyper, count, updates: jnp.maximum(hyper["forgetting"], 1 / (count + 1.0)),
        ),
        Method(
            "SGD, SWA",
            {"rate": _RATE, "start": Choice((0.25, 0.5, 0.75))},
            _constant,  # the last weights up to its start, from there the plain mean
            average_weight=lambda hyper, count, updates: (
                1 / (1 + jnp.maximum(count - hyper["start"] * updates, 0))
            ),
        ),
        Method(
            "schedule-free SGD",
            {"rate": LogUniform(3e-2, 10.0), "b1": Choice((0.9, 0.95, 0.98))},
            lambda hyper, updates, key: optax.contrib.schedule_free_sgd(hyper["rate"], b1=hyper["b1"]),
            evaluated=_schedule_free_eval,
        ),
        Method(
            "schedule-free AdamW",
            {"rate": _SMALL_RATE, "weight_decay": _DECAY},
            lambda hyper, updates, key: optax.contrib.schedule_free_adamw(
                hyper["rate"], weight_decay=hyper["weight_decay"]
            ),
            evaluated=_schedule_free_eval,
        ),
        Method(
            "Lookahead",
            {"rate": _RATE, "slow_step": Choice((0.5, 0.8))},
            _lookahead,
            wrap=optax.LookaheadParams.init_synced,
            visible=lambda moved: moved.fast,
            evaluated=lambda moved, state: moved.slow,
        ),
        Method("SALR", {"max_rate": _RATE, "momentum": Choice((0.0, 0.9))}, _salr, asks="value"),
        Method("accelerated SGD", {"rate": _RATE, "long_step_ratio": LogUniform(10, 1e4)}, _accelerated),
        Method("Entropy-SGD, K = 1", _ENTROPY, functools.partial(_entropy_sgd, 20, 1), 20, 1, "grad_fn"),
        Method("Entropy-SGD, K = 4", _ENTROPY, functools.partial(_entropy_sgd, 10, 4), 10, 4, "grad_fn"),
        Method("Entropy-Adam", {"rate": _SMALL_RATE, **_ENTROPY}, _entropy_adam, 5, 1, "grad_fn"),
        Method("heat", {"rate": _RATE, "deviation": LogUniform(1e-3, 0.1)}, _heat, 2, 1, "grad_fn"),
        Method("Hopf-Lax", _ENTROPY, _hopf_lax, 20, 1, "grad_fn"),
        Method("two time scales, K = 1", _TWO_TIMES, functools.partial(_two_time_scale, None)),
        Method(
            "two time scales, K = 4",
            _TWO_TIMES,
            functools.partial(_two_time_scale, REPLICAS),
            1,
            REPLICAS,
            "replicas",
            _replicated,
        ),
        Method(
            "Lasry-Lions, NAdam", {"rate": _SMALL_RATE, **_BALL}, functools.partial(_lasry_lions, optax.nadam)
        ),
        Method("Lasry-Lions, SGD", {"rate": _RATE, **_BALL}, functools.partial(_lasry_lions, _nesterov_at)),
        Method(
            "Elastic-SGD",
            {"rate": _RATE, "coupling_per_rate": LogUniform(10.0, 1000.0)},
            _elastic,
            1,
            REPLICAS,
            "replicas",
            _replicated,
        ),
        Method(
            "Parle",
            {**_ENTROPY, "coupling_per_time": LogUniform(1.0, 100.0)},
            _parle,
            10,
            REPLICAS,
            "grad_fn",
            _replicated,
        ),
    )
}

ABLATIONS = {
    name: Method(
        name,
        {"rate": _SMALL_RATE, **({} if name.endswith("no ascent") else _BALL)},
        functools.partial(_lasry_lions, optax.nadam, **changed),
    )
    for name, changed in (
        ("Lasry-Lions, no ascent", {}),
        ("Lasry-Lions, no pull", {"pull": 0.0}),
        ("Lasry-Lions, pull 0.03", {"pull": 0.03}),
        ("Lasry-Lions, memory 100", {"averaging": 0.99}),
    )
}
"""Around NAdam with one thing changed; in no preset, for ``--methods``."""

PRESET_METHODS = tuple(KNOWN)
KNOWN |= ABLATIONS
"""All methods, by name."""
