"""A training that may be killed: ``python killed_training.py DIRECTORY ITERATIONS``, checkpoints after every iteration.

Appends to DIRECTORY/log what it does, and leaves DIRECTORY/result.npz.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

import jaxopt_pde
from experiments import _run, _unfinished


def main(directory: Path, iterations: int) -> None:
    """Entropy-SGD on logistic regression with minibatches and dropout of the inputs."""
    data_key, train_key = jax.random.split(_run.key_for(0, "training"))
    x = jax.random.normal(data_key, (64, 5))
    y = (x @ jnp.arange(5.0) > 0).astype(jnp.float32)
    tx = jaxopt_pde.entropy_sgd(1.0, 0.5, 0.1, temperature=1e-3, num_steps=4)

    def loss(w, key):
        rows, mask = jax.random.split(key)
        chosen = jax.random.randint(rows, (8,), 0, len(x))
        inputs = x[chosen] * jax.random.bernoulli(mask, 0.9, (8, 5))
        return optax.sigmoid_binary_cross_entropy(inputs @ w, y[chosen]).mean()

    @jax.jit
    def step(carry):
        key, w, state = carry
        key, this = jax.random.split(key)
        grad_fn = lambda p, s: jax.grad(loss)(p, jax.random.fold_in(this, s.step))
        updates, state = tx.update(w, state, w, grad_fn=grad_fn)
        return key, optax.apply_updates(w, updates), state

    def say(line):
        with (directory / "log").open("a") as log:
            log.write(f"{line}\n")

    def body(carry, index):
        say(index)
        carry = step(carry)
        return carry, {"w": carry[1]}

    session = _run.Session(directory / "kept", tell=say)
    w = jnp.zeros(5)
    say("begin")
    (key, w, _), path = session.scan("training", body, (train_key, w, tx.init(w)), iterations)
    _run.write_arrays(directory / "result.npz", {"key": jax.random.key_data(key), "end": w, **path})


if __name__ == "__main__":
    _unfinished.SECONDS, _unfinished.COST = 0.0, float("inf")
    main(Path(sys.argv[1]), int(sys.argv[2]))
