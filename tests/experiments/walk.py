"""A random walk, told with <b>care</b>.

It steps ``config.stages`` times.
"""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments._run import NULL_SESSION, Session, key_for


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the walk."""

    stages: int = 4
    """Number of stages, and of iterations of the scan."""
    rates: tuple[float, ...] = (0.5, -1e-3)
    """Step sizes."""
    note: str = "<script>alert(1)</script>"
    """Anything."""
    drift: bool = True
    """Whether it drifts."""
    bound: float | None = None
    """Largest position, if any."""
    seed: int = 0
    """Of the noise."""
    pause: float = dataclasses.field(default=0.0, metadata={"hash": False})
    """Seconds to sleep in every stage and iteration."""
    log: str = dataclasses.field(default="", metadata={"hash": False})
    """File that gets a line for every stage and iteration computed."""


SMOKE = Config(stages=2)


def _computed(config, line):
    time.sleep(config.pause)
    if config.log:
        with open(config.log, "a") as file:
            file.write(line + "\n")


def run(config: Config, session: Session = NULL_SESSION) -> dict[str, np.ndarray]:
    results = {}

    def stage(index):
        _computed(config, f"stage {index}")
        return {"noise": jax.random.normal(key_for(config.seed, "stage", index), (50,))}

    @jax.jit
    def walk(carry):
        key, position, weight = carry
        key, this = jax.random.split(key)
        position = position + config.rates[0] * jax.random.normal(this, (8,))
        return key, position, weight * jnp.asarray(0.9, weight.dtype) + 1

    def body(carry, index):
        _computed(config, f"scan {index}")
        carry = walk(carry)
        return carry, {"mean": carry[1].mean(), "weight": carry[2].astype("float32")}

    with session.progress("walk", total=2 * config.stages) as meter:
        for index in range(config.stages):
            results[f"noise {index}"] = session.stage(f"noise/{index}", lambda i=index: stage(i))["noise"]
            meter.advance(index=index)
        start = (key_for(config.seed, "scan"), jnp.zeros(8), jnp.ones((), jnp.bfloat16))
        _, path = session.scan("walk", body, start, config.stages)
        meter.advance(config.stages)
    return {**results, **path}


def figure(results):
    drawing = Figure()
    drawing.subplots().plot(results["mean"])
    return drawing


def table(results):
    return ["array", "mean <i>[b]"], [[name, f"{array.mean():.3g}"] for name, array in results.items()]
