"""Trainings of one method on one task, batched over hyper-parameters and seeds, every gradient counted."""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import _run
from experiments._bakeoff_methods import Hyper, Method
from experiments._bakeoff_tasks import Batch, Task

__all__ = ["Program", "Run", "State", "Trainer", "minibatches", "update"]

TRAIN_EXAMPLES_EVALUATED = 500


class State(NamedTuple):
    """Of one training.

    Attributes:
        moved: what the optimiser moves.
        opt_state: its state.
        average: averaged weights, None where the method has none.
        count: updates so far.
    """

    moved: Any
    opt_state: Any
    average: Any
    count: jax.Array


class Run(NamedTuple):
    """One training to do: its hyper-parameters, and which seed (initial weights, minibatches, the method's noise)."""

    hyper: dict[str, float]
    seed: int


def start(method: Method, updates: int, hyper: Hyper, key: jax.Array, params: Any) -> State:
    """The state before the first update."""
    moved = method.wrap(params)
    average = None if method.average_weight is None else params
    return State(moved, method.make(hyper, updates, key).init(moved), average, jnp.zeros([], jnp.int32))


def update(
    method: Method,
    updates: int,
    value_and_gradient: Callable[[Any, jax.Array], tuple[jax.Array, Any]],
    state: State,
    hyper: Hyper,
    key: jax.Array,
) -> State:
    """One update, which asks for the gradients that follow in the order of the whole training.

    Args:
        method: whose.
        updates: of the whole training, for schedules.
        value_and_gradient: ``(weights, index of the gradient in the training) -> loss, gradient``; nothing else
            gives a method a gradient, so the index counts what it spends.
        state: before it.
        hyper: the hyper-parameters (traced).
        key: of the method's own noise, the same at every update.
    """
    moved, opt_state, average, count = state
    tx = optax.with_extra_args_support(method.make(hyper, updates, key))

    def at(params, step, chain):
        return value_and_gradient(params, (count * method.num_steps + step) * method.num_chains + chain)

    asked, extra = method.visible(moved), {}
    if method.asks == "grad_fn":
        gradient, extra = asked, {"grad_fn": lambda p, s: at(p, s.step, s.chain)[1]}
    elif method.asks == "replicas":
        _, gradient = jax.vmap(lambda p, chain: at(p, 0, chain))(asked, jnp.arange(method.num_chains))
    else:
        value, gradient = at(asked, 0, 0)
        if method.asks == "value":
            extra = {"value": value}
        if method.asks == "sam":
            extra = {"grad_fn": lambda p, step: at(p, step + 1, 0)[1]}
    step, opt_state = tx.update(gradient, opt_state, moved, **extra)
    moved = optax.apply_updates(moved, step)
    if method.average_weight is not None:
        weight = method.average_weight(hyper, count, updates)
        average = optax.incremental_update(method.visible(moved), average, weight)
    return State(moved, opt_state, average, count + 1)


def minibatches(key: jax.Array, num_examples: int, batch_size: int, gradients: int) -> np.ndarray:
    """Indices [gradient, batch] in epochs without replacement, each epoch in an order of its own."""
    epochs = -(-gradients * batch_size // num_examples)
    random = np.random.RandomState(np.asarray(jax.random.key_data(key)))  # on the host: nothing to compile
    orders = np.concatenate([random.permutation(num_examples) for _ in range(epochs)])
    return orders[: gradients * batch_size].reshape(gradients, batch_size).astype(np.int32)


class Trainer:
    """The functions that all methods share on a task, compiled once."""

    def __init__(self, task: Task, gradients: int, reports: int, lanes: int, seed: int):
        self.task, self.gradients, self.reports = task, gradients, reports
        self.lanes, self.seed = lanes, seed

        self.init = jax.jit(lambda keys: jax.lax.map(task.init, keys))  # compiles in half the time of a vmap
        self.evaluate = jax.jit(jax.vmap(task.evaluate, (0, None)))
        self.seen = jax.tree.map(lambda leaf: leaf[:TRAIN_EXAMPLES_EVALUATED], task.train)

    def draw(self, stage: str, seeds: list[int]) -> tuple[jax.Array, Any, jax.Array]:
        """Keys of noise and dropout, initial weights, minibatches: the same for all methods, others in tuning."""

        def keys(purpose):
            return [_run.key_for(self.seed, self.task.name, stage, seed, purpose) for seed in seeds]

        size, batch = len(self.task.train[1]), self.task.spec.batch_size
        orders = [minibatches(key, size, batch, self.gradients) for key in keys("minibatches")]
        return jnp.stack(keys("method")), self.init(jnp.stack(keys("weights"))), jnp.asarray(np.stack(orders))


class Program:
    """One method on one task: compiled at its first cell, if that is not stored already."""

    def __init__(self, trainer: Trainer, method: Method):
        self.trainer, self.method, self.compiled = trainer, method, None
        self.updates = trainer.gradients // method.gradients_per_update

    @functools.cached_property
    def start(self):
        """(hyper, key, weights) -> state, over lanes."""

        def one(hyper, key, params):
            return start(self.method, self.updates, hyper, jax.random.split(key)[0], params)

        return jax.jit(jax.vmap(one))

    @functools.cached_property
    def evaluated(self):
        """The weights to evaluate, over lanes."""

        def choose(state):
            if state.average is not None:
                return state.average
            return self.method.evaluated(state.moved, state.opt_state)

        return jax.jit(jax.vmap(choose))

    @functools.cached_property
    def advance(self):
        """The updates between two reports, over lanes."""
        task, trainer, method = self.trainer.task, self.trainer, self.method

        def one(state, hyper, key, order, train):
            noise, dropout = jax.random.split(key)

            def value_and_gradient(params, n):
                batch = jax.tree.map(lambda leaf: leaf[order[n]], train)
                return jax.value_and_grad(task.loss)(params, batch, jax.random.fold_in(dropout, n))

            step = lambda state, _: (
                update(method, self.updates, value_and_gradient, state, hyper, noise),
                None,
            )
            return jax.lax.scan(step, state, length=self.updates // trainer.reports)[0]

        return jax.jit(jax.vmap(one, (0, 0, 0, 0, None)), donate_argnums=0)

    def train(
        self, runs: list[Run], stage: str, data: Batch, session: _run.Session = _run.NULL_SESSION
    ) -> _run.Arrays:
        """Trains all runs, as many at a time as the task has lanes.

        Args:
            runs: hyper-parameters and seeds.
            stage: ``"tuning"`` or ``"test"``, which have different seeds.
            data: what is evaluated; the only data besides the training set that this sees.
            session: where it is kept from report to report.

        Returns:
            ``error``, ``loss``, ``train_loss``, ``diverged`` [report, run] and ``seconds`` [report], those of a run
            up to this report, without compiling and evaluating. A run has diverged once a loss is not finite: from
            there on its error is the one of chance.
        """
        lanes = self.trainer.lanes
        parts = [
            self._train_lanes(runs[a : a + lanes], stage, data, session, f"{stage}, runs from {a}")
            for a in range(0, len(runs), lanes)
        ]
        joined = {
            name: np.concatenate([part[name] for part in parts], 1)[:, : len(runs)]
            for name in ("error", "loss", "train_loss", "diverged")
        }
        joined["diverged"] = np.logical_or.accumulate(joined["diverged"], 0)
        joined["error"] = np.where(joined["diverged"], self.trainer.task.chance, joined["error"])
        seconds = sum(part["seconds"] for part in parts) / (lanes * len(parts))
        return joined | {"seconds": seconds}

    def _train_lanes(self, runs: list[Run], stage: str, data: Batch, session, name: str) -> _run.Arrays:
        runs = runs + runs[-1:] * (self.trainer.lanes - len(runs))  # one program for all parts
        hyper = {
            name: jnp.array([run.hyper[name] for run in runs], jnp.float32) for name in self.method.space
        }
        keys, params, order = self.trainer.draw(stage, [run.seed for run in runs])
        state = self.start(hyper, keys, params)
        arguments = (hyper, keys, order, self.trainer.task.train)
        if self.compiled is None:  # ahead, so that times are of training alone
            self.compiled = self.advance.lower(state, *arguments).compile()

        def body(state, _):
            begin = time.perf_counter()
            state = jax.block_until_ready(self.compiled(state, *arguments))
            seconds = time.perf_counter() - begin
            found = self.trainer.evaluate(self.evaluated(state), (data, self.trainer.seen))
            losses, errors = jax.device_get(found)
            return state, {
                "error": errors[:, 0],
                "loss": losses[:, 0],
                "train_loss": losses[:, 1],
                "diverged": ~np.isfinite(losses).all(1),
                "seconds": np.float64(seconds),
            }

        _, reports = session.scan(name, body, state, self.trainer.reports)
        return reports | {"seconds": reports["seconds"].cumsum()}
