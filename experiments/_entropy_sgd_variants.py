"""The settings of Entropy-SGD that are compared: one base, and variants that change one thing each."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

import jaxopt_pde
from experiments._bakeoff_methods import KNOWN, Hyper, Method
from experiments._bakeoff_spaces import Choice
from jaxopt_pde import _validate

__all__ = ["BASE", "REFERENCES", "VARIANTS", "Variant", "named", "schedules"]

BASE = "base"
REFERENCES = "references"

FIXED = {
    "rate_factor": 1.0,  # inner rate over the searched number
    "time_factor": 100.0,  # t over the searched number
    "rate_decay": 1.0,  # 1 for the cosine, 0 for a constant inner rate
    "time_decay": 1.0,  # the same for t
    "scoping": 1.0,  # what t falls by besides, from the first update to the last
    "inner_momentum": 0.9,
    "temperature": 1e-8,
    "outer_step": 1.0,  # h (1 − outer momentum)⁻¹ over t
    "outer_momentum": 0.0,
}
"""The base, in numbers that are traced: variants that change only these share a program."""

STEPS = 20


class Variant(NamedTuple):
    """A row of the comparison.

    Attributes:
        name: in tables and figures.
        group: what it changes.
        method: how it trains; variants with the same ``method.name`` share a compiled program.
        fixed: all its hyper-parameters but ``rate``, the one that is searched.
    """

    name: str
    group: str
    method: Method
    fixed: dict[str, float]


def schedules(hyper: Hyper, updates: int) -> tuple[Any, Any, Any]:
    """Inner rate, smoothing time and outer step as functions of the update: h = t unless ``outer_step`` says else.

    Args:
        hyper: ``rate`` and the numbers of ``FIXED``.
        updates: of the whole training; :func:`jaxopt_pde.entropy_sgd` counts outer updates, so that rate and time stand
            still within one.
    """
    cosine = optax.cosine_decay_schedule(1.0, updates)

    def decayed(share, count):
        return 1 - share * (1 - cosine(count))

    def inner_rate(count):
        return hyper["rate"] * hyper["rate_factor"] * decayed(hyper["rate_decay"], count)

    def time(count):
        fallen = hyper["scoping"] ** (-count / max(updates - 1, 1))
        return hyper["rate"] * hyper["time_factor"] * decayed(hyper["time_decay"], count) * fallen

    def outer_step(count):
        return hyper["outer_step"] * (1 - hyper["outer_momentum"]) * time(count)

    return inner_rate, time, outer_step


def _entropy_sgd(settings: dict[str, Any], hyper: Hyper, updates: int, key):
    inner_rate, time, outer_step = schedules(hyper, updates)
    return jaxopt_pde.entropy_sgd(
        outer_step,
        time,
        inner_rate,
        momentum=hyper["outer_momentum"],
        nesterov=True,
        temperature=hyper["temperature"],
        inner_momentum=hyper["inner_momentum"],
        key=key,
        **settings,
    )


def _nesterov(hyper: Hyper, updates: int, key=None):
    del key
    falling = lambda count: hyper["rate"] * optax.cosine_decay_schedule(1.0, updates)(count)
    return optax.sgd(falling, momentum=hyper["momentum"], nesterov=True)


def _two_time_scale(hyper: Hyper, updates: int, key):
    falling = lambda count: (
        hyper["time_factor"] * hyper["rate"] * optax.cosine_decay_schedule(1.0, updates)(count)
    )
    return jaxopt_pde.two_time_scale(_nesterov(hyper, updates, key), falling, averaging=hyper["averaging"])


def _method(name: str, fixed: dict[str, float], make, **options) -> Method:
    """A method whose space names what it is told; only ``rate`` is searched, and that on the grid of the config."""
    return Method(
        name, {key: Choice((value,)) for key, value in {"rate": 0.1, **fixed}.items()}, make, **options
    )


def _variant(name: str, group: str, settings: dict[str, Any] | None = None, /, **changed: float) -> Variant:
    """The base with some static settings of ``entropy_sgd``, or some numbers, changed."""
    settings = {"num_steps": STEPS, "num_chains": 1, **(settings or {})}
    program = ", ".join(f"{key}={value}" for key, value in settings.items())
    make = functools.partial(_entropy_sgd, settings)
    counts = {key: settings[key] for key in ("num_steps", "num_chains")}
    fixed = {**FIXED, **changed}
    return Variant(name, group, _method(program, fixed, make, **counts, asks="grad_fn"), fixed)


def _other(name: str, group: str, make, fixed: dict[str, float], **options) -> Variant:
    return Variant(name, group, _method(name, fixed, make, **options), fixed)


def _exponential_mean(hyper: Hyper, count, updates: int):
    """Weight of the newest iterate, 1 − 0.99, larger at first so that the mean begins as the plain one."""
    del updates
    return jnp.maximum(1 - hyper["averaging"], 1 / (count + 1.0))


_MOMENTUM = {"momentum": 0.9}

VARIANTS = {
    variant.name: variant
    for variant in (
        _variant(BASE, BASE),
        _variant("L = 5", "steps L", {"num_steps": 5}),
        _variant("L = 10", "steps L", {"num_steps": 10}),
        _variant("L = 40", "steps L", {"num_steps": 40}),
        _variant("K = 4, L = 5", "chains K", {"num_steps": 5, "num_chains": 4}),
        _variant("K = 4, L = 20", "chains K", {"num_chains": 4}),
        _variant("t = 20 ε", "time t", time_factor=20.0),
        _variant("t = 500 ε", "time t", time_factor=500.0),
        _variant("ε and t constant", "schedule", rate_decay=0.0, time_decay=0.0),
        _variant("t constant, ε cosine", "schedule", time_decay=0.0),
        _variant("t / ε falls tenfold", "schedule", scoping=10.0),
        _variant("ε constant, t falls tenfold", "schedule", rate_decay=0.0, time_decay=0.0, scoping=10.0),
        _variant("m = 0", "inner momentum", inner_momentum=0.0),
        _variant("m = 0, ε × 10", "inner momentum", inner_momentum=0.0, rate_factor=10.0),
        _variant("T = 1e-4, Rademacher", "noise", temperature=1e-4),
        _variant("T = 1e-4, Gaussian", "noise", {"noise": "gaussian"}, temperature=1e-4),
        _variant("gradient form G", "estimator", {"estimator": "gradient"}),
        _variant("control variate C", "estimator", {"estimator": "control_variate"}),
        _variant("mean of all steps", "averaging", {"burn_in": 0}),
        _variant("exponential mean 0.75", "averaging", {"averaging": 0.75}),
        _variant("last step only", "averaging", {"averaging": 0.0}),
        _variant("h = t/2", "outer step", outer_step=0.5),
        _variant("momentum 0.5", "outer step", outer_momentum=0.5),
        _variant("momentum 0.9", "outer step", outer_momentum=0.9),
        _other(
            "two time scales, a = 0.98",
            "warm start",
            _two_time_scale,
            {**_MOMENTUM, "time_factor": 100.0, "averaging": 0.98},
        ),
        _other("SGD", REFERENCES, _nesterov, _MOMENTUM),
        _other(
            "SGD, mean 0.99",
            REFERENCES,
            _nesterov,
            {**_MOMENTUM, "averaging": 0.99},
            average_weight=_exponential_mean,
        ),
        _other("SAM", REFERENCES, KNOWN["SAM"].make, {"radius": 0.05}, num_steps=2, asks="sam"),
    )
}
"""All rows by name, the base first."""


def named(names: Sequence[str]) -> list[Variant]:
    """The base, and the variants of these names.

    Raises:
        ValueError: for an unknown name; it lists those there are.
    """
    for name in names:
        _validate.check_choice("variants", name, tuple(VARIANTS))
    return [VARIANTS[BASE], *(VARIANTS[name] for name in names if name != BASE)]
