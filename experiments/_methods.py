"""The optimisers that trainings compare at equal numbers of gradients, and one update of each."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxopt_pde
from jaxopt_pde import _validate

__all__ = ["METHODS", "Method", "State", "compared", "start", "update"]

METHODS = (
    "SGD, Nesterov",
    "Adam",
    "SAM",
    "SGD, averaged",
    "Entropy-SGD, K = 1",
    "Entropy-SGD, K = 4",
)


class Method(NamedTuple):
    """An optimiser in a comparison.

    Attributes:
        name: as in the tables.
        make: learning rate -> optax transformation.
        num_steps: gradients of one update that follow each other.
        num_chains: gradients taken side by side at each of these steps.
        average: decay per update of the averaged weights that are evaluated, or None for the last ones.
    """

    name: str
    make: Callable[[Any], optax.GradientTransformationExtraArgs]
    num_steps: int = 1
    num_chains: int = 1
    average: float | None = None

    @property
    def gradients_per_update(self) -> int:
        """Cost of an update."""
        return self.num_steps * self.num_chains


class State(NamedTuple):
    """Of one training.

    Attributes:
        params: the weights that move.
        opt_state: the optimiser's.
        average: the averaged weights, None where the method has none.
        count: updates so far.
    """

    params: Any
    opt_state: Any
    average: Any
    count: jax.Array

    @property
    def evaluated(self) -> Any:
        """The weights to evaluate."""
        return self.params if self.average is None else self.average


def compared(
    names: Sequence[str],
    *,
    num_gradients: int,
    temperature: float = 1e-6,
    inner_momentum: float = 0.9,
    time_per_rate: float = 50.0,
    num_steps: tuple[int, int] = (20, 10),
) -> list[Method]:
    """The methods named, with everything fixed but the learning rate.

    SGD with Nesterov momentum 0.9, its learning rate decayed by a cosine to 0; Adam with the same decay; SAM over
    that SGD with radius 0.05; SGD with a constant rate, evaluated at an exponential average of its weights;
    Entropy-SGD with one chain and with four, whose outer step h = t moves the weights to the mean of the particles.

    Args:
        names: of :data:`METHODS`.
        num_gradients: that each training spends, over which rates decay.
        temperature: T of Entropy-SGD, in units of the loss.
        inner_momentum: heavy ball m of its inner steps; the effective inner step is ε/(1 − m).
        time_per_rate: its smoothing time t over ε.
        num_steps: its inner steps L with one chain, and with four.

    Raises:
        ValueError: for an unknown name.
    """

    def decayed(rate, gradients_per_update=1):
        steps = num_gradients // gradients_per_update
        return lambda count: rate * optax.cosine_decay_schedule(1.0, steps)(count)

    def sam(rate):
        ascent = optax.chain(optax.contrib.normalize(), optax.sgd(0.05))
        descent = optax.sgd(decayed(rate, 2), momentum=0.9, nesterov=True)
        return optax.contrib.sam(descent, ascent, sync_period=2, opaque_mode=True)

    def entropy(steps, chains, rate):
        smoothing_time = time_per_rate * rate
        return jaxopt_pde.entropy_sgd(
            smoothing_time,
            smoothing_time,
            rate,
            temperature=temperature,
            num_steps=steps,
            num_chains=chains,
            inner_momentum=inner_momentum,
        )

    known = (
        Method(METHODS[0], lambda rate: optax.sgd(decayed(rate), momentum=0.9, nesterov=True)),
        Method(METHODS[1], lambda rate: optax.adam(decayed(rate))),
        Method(METHODS[2], sam, num_steps=2),
        Method(METHODS[3], lambda rate: optax.sgd(rate, momentum=0.9, nesterov=True), average=0.98),
        *(
            Method(name, functools.partial(entropy, steps, chains), steps, chains)
            for name, steps, chains in zip(METHODS[4:], num_steps, (1, 4), strict=True)
        ),
    )
    for name in names:
        _validate.check_choice("methods", name, METHODS)
    return [known[METHODS.index(name)] for name in names]


def start(method: Method, rate: Any, params: Any) -> State:
    """The state before the first update."""
    average = None if method.average is None else params
    return State(params, method.make(rate).init(params), average, jnp.zeros([], jnp.int32))


def update(
    method: Method,
    gradient: Callable[[Any, Any], Any],
    state: State,
    rate: Any,
    batch_of: Callable[[jax.Array], Any],
) -> State:
    """One update, which takes its gradients on the next minibatches in order.

    Args:
        method: whose.
        gradient: ``(params, batch) -> gradient``.
        state: before it.
        rate: the learning rate (traced).
        batch_of: index of a gradient in the whole training (traced) -> its minibatch.
    """
    params, opt_state, average, count = state
    tx = optax.with_extra_args_support(method.make(rate))

    def at(p, step, chain):
        return gradient(p, batch_of((count * method.num_steps + step) * method.num_chains + chain))

    extra = {}
    if method.name == "SAM":  # takes its first gradient as an argument and asks for the second
        updates, extra = at(params, 0, 0), {"grad_fn": lambda p, step: at(p, step + 1, 0)}
    elif method.gradients_per_update > 1:
        updates, extra = params, {"grad_fn": lambda p, s: at(p, s.step, s.chain)}
    else:
        updates = at(params, 0, 0)
    updates, opt_state = tx.update(updates, opt_state, params, **extra)
    params = optax.apply_updates(params, updates)
    if method.average is not None:  # starts as the plain mean of the weights so far
        average = optax.incremental_update(
            params, average, jnp.maximum(1 - method.average, 1 / (count + 1.0))
        )
    return State(params, opt_state, average, count + 1)
