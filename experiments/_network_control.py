"""The optimal control of a small network's descent, by guided or plain rollouts, and the noise it is made for."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from experiments import _run
from experiments.quickstart import loss
from experiments.salr_network import Network
from jaxopt_pde import control


class FlatNetwork(NamedTuple):
    """A network whose weights are one vector: one stream of noise, and programs that compile in a third of the time."""

    network: Network
    unravel: Callable[[jax.Array], Any]

    def init(self, key, images):
        """Initial weights [d]."""
        return ravel_pytree(self.network.init(key, images))[0]

    def apply(self, params, images):
        """Logits [batch, 10]."""
        return self.network.apply(self.unravel(params), images)


def make_network(width: int) -> FlatNetwork:
    """Digits of 8 × 8 pixels, one hidden layer."""
    network = Network(width)
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return FlatNetwork(network, ravel_pytree(zeros)[1])


class Rollouts(NamedTuple):
    """What an estimate of the control is made of, besides the time to the horizon."""

    temperature: Any
    num_rollouts: int
    num_steps: int
    passes: int = 0
    guidance: Any = 1.0
    """The guide times this: 0 for rollouts without it, of the same program."""


def open_loop(gradient, value, params, times, passes: int):
    """The best control of the descent without noise at each of the Euler ``times``, by ``passes`` sweeps.

    A sweep is a rollout and its reverse pass: the optimal control of step k is the gradient of V with respect to the
    point that the step leads to, −∂V/∂a_k over the step size.
    """
    step = times[1] - times[0]

    def end(steering):
        move = lambda x, inputs: (x - step * (gradient(x, inputs[0]) + inputs[1]), None)
        return value(jax.lax.scan(move, params, (jnp.arange(len(times)), steering))[0])

    sweep = lambda steering, _: ((steering - jax.grad(end)(steering) / step) / 2, None)
    return jax.lax.scan(sweep, jnp.zeros((len(times), *params.shape)), length=passes)[0]


def estimate(network, batches, params, now, horizon, key, rollouts: Rollouts) -> control.ControlEstimate:
    """The control at ``now`` from rollouts that share one minibatch for each Euler step, and another for V.

    Given these minibatches drift and V are functions of the weights alone, as the theory wants, and each of their
    gradients costs as much as one of SGD's.
    """
    steps = rollouts.num_steps
    gradient = lambda p, number: jax.grad(functools.partial(loss, network))(p, *batches(number))
    value = lambda p: loss(network, p, *batches(steps))
    guide, extra = None, 0
    if rollouts.passes:
        times = now + (horizon - now) / steps * jnp.arange(steps)
        plan = rollouts.guidance * open_loop(gradient, value, params, times, rollouts.passes)
        guide = lambda p, s, key: plan[jnp.argmin(jnp.abs(times - s))]
        extra = rollouts.passes * (3 * steps + 1)
    sampler = control.path_integral(
        None,
        value,
        horizon=horizon,
        temperature=rollouts.temperature,
        num_rollouts=rollouts.num_rollouts,
        num_steps=steps,
        grad_fn=lambda p, inner: gradient(p, inner.step),
        guide=guide,
    )
    found = sampler.estimate(params, now, key)
    return found._replace(num_gradients=found.num_gradients + extra)


def measure_noise(network, params, minibatches, train):
    """Variance of a minibatch gradient per parameter, tr(Σ)/d, in [loss²/param²]."""
    at = lambda chosen: jax.grad(functools.partial(loss, network))(params, train[0][chosen], train[1][chosen])
    return jax.vmap(at)(minibatches).var(axis=0, ddof=1).mean()


def probe(network, replicas, config) -> _run.Arrays:
    """The noise before and after some SGD, and the effective sample sizes [guided, n, T, seed] after it."""
    train, rate = replicas.train, config.probe_rate
    gradient = jax.grad(functools.partial(loss, network))

    def one(params, minibatches, key):
        step = lambda p, chosen: (p - rate * gradient(p, train[0][chosen], train[1][chosen]), None)
        later = jax.lax.scan(step, params, minibatches[: config.probe_updates])[0]
        others = draw(key, 0, config.probe_minibatches, config.batch_size, len(train[1]))
        noises = jnp.stack([measure_noise(network, p, others, train) for p in (params, later)])
        chosen = draw(key, 1, config.num_steps + 1, config.batch_size, len(train[1]))
        batches = lambda number: (train[0][chosen[number]], train[1][chosen[number]])

        def size(rollouts, setting):
            guidance, temperature = setting
            settings = Rollouts(temperature, rollouts, config.num_steps, config.passes, guidance)
            horizon = config.horizon * rate
            return estimate(network, batches, later, 0.0, horizon, key, settings).effective_sample_size

        temperatures = jnp.asarray(config.probe_temperatures)
        settings = (jnp.repeat(jnp.arange(2.0), len(temperatures)), jnp.tile(temperatures, 2))
        sizes = [jax.lax.map(functools.partial(size, n), settings) for n in config.probe_rollouts]
        sizes = jnp.stack(sizes).reshape(len(sizes), 2, -1).swapaxes(0, 1)
        return {"noise": noises, "probe_size": sizes}

    keys = jax.random.split(_run.key_for(config.seed, "probe"), config.num_seeds)
    found = jax.jit(jax.vmap(one, out_axes=-1))(replicas.params, replicas.minibatches, keys)
    return jax.device_get(found)


def draw(key, purpose, count: int, size: int, examples: int):
    """Indices of ``count`` minibatches, drawn with replacement."""
    return jax.random.randint(jax.random.fold_in(key, purpose), (count, size), 0, examples)
