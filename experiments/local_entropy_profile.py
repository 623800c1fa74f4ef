"""How far the relaxed loss u(x, t) rises above the loss at the solutions of SGD, SAM and Entropy-SGD.

u(x*, t) − f(x*) is the local entropy of a solution x* but for its sign and a constant: what f rises by, softly, within
√(tT). It is drawn over T, against t, where all parameters are perturbed alike (left) and where every filter is in
proportion to its weights (right), as thick lines by thermodynamic integration, with 95 % bands over 5 seeds. Thin
dashes are the quadratic approximation ½ Σ log(1 + tλ) from all eigenvalues λ of the exact Hessian. Dotted is the
Gaussian average at σ = √(tT), an upper bound by Jensen's inequality. Dots are Cole-Hopf, crosses Cole-Hopf with fewer
than 50 effective samples in some seed.

Cole-Hopf agrees with the integral as long as it can be trusted, and then comes out too high: by factors of 1.4 to 2.7
at the end on the right, with one effective sample of 600. The quadratic is within 20 % for SAM and for SGD at its
larger rate. It leaves out the slope at x*, which lowers u by up to t|∇f|²/2: at the solutions of Entropy-SGD, and of
SGD at its small rate, that is of the order of u − f itself, and the dashes lie up to 30 and 40 % above the lines. At
long times and small losses u is above the quadratic, since the loss bends more away from x* than at it.

Entropy-SGD is not the flattest. At the rates of least validation error SAM has 0.30 [0.26, 0.35] of SGD's u − f at t =
25.6 and Entropy-SGD 0.41 [0.35, 0.48] (paired by seeds), but SGD's training loss is then more than ten times as large.
At the rates of nearest training loss, still 2.6 times SAM's for SGD, they are 0.50 [0.43, 0.57] and 0.67 [0.60, 0.75].
In units of the filters the two are level with each other, 0.74 [0.63, 0.86] and 0.77 [0.74, 0.80] of SGD's. Test errors
are 4.9 ± 1.1 % for SAM, 4.6 ± 0.9 % for Entropy-SGD and 4.9 ± 0.8 % for that SGD: not resolved.
"""

import dataclasses
import functools

import jax
import jax.flatten_util
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D
from scipy import stats

from experiments import _run, _solutions
from experiments.quickstart import interval
from jaxopt_pde import landscape, plotting
from jaxopt_pde.landscape._perturbations import scale_tree


@dataclasses.dataclass(frozen=True)
class Config(_solutions.Training):
    """What to run; the defaults give the figure of the gallery."""

    widths: tuple[int, ...] = (16,)
    """Hidden layers; small, for the exact spectra."""
    num_train: int = 600
    """Training images: those of f."""
    profile_temperature: float = 1e-4
    """T of the relaxed loss that is measured, in units of the loss (the training has its own)."""
    times: tuple[float, ...] = (0.1, 0.4, 1.6, 6.4, 25.6)
    """t [param²/loss], where all parameters are perturbed alike."""
    filter_times: tuple[float, ...] = (1.0, 4.0, 16.0, 64.0, 256.0)
    """t [1/loss], as many, where every filter is perturbed in proportion to its weights."""
    num_nodes: int = 8
    """Nodes of the thermodynamic integral."""
    num_chains: int = 4
    """Chains of it."""
    num_steps: int = 20
    """Counted steps of a chain at a node."""
    num_burn_in: int = 15
    """Steps before them."""
    num_samples: int = 600
    """Losses of Cole-Hopf and of the Gaussian average; even."""
    trusted: float = 50.0
    """Least effective sample size with which Cole-Hopf counts as an estimate."""


SMOKE = Config(
    methods=("SGD, Nesterov",), widths=(2,), num_train=60, num_validation=20, num_test=20, num_seeds=2,
    num_gradients=40, learning_rates=(0.1,), times=(0.1, 1.0, 10.0), filter_times=(1.0, 10.0, 100.0), num_nodes=4,
    num_chains=2, num_steps=10, num_burn_in=10, num_samples=100, profile_temperature=0.03,
)  # fmt: skip

NOT_FINITE = ("quadratic",)

CHOICES = ("least validation error", "nearest training loss")
SCALES = ("equal noise on all parameters", "noise in proportion to each filter")
COLOURS = tuple(
    plotting.COLOURS[name] for name in ("blue", "vermillion", "green", "purple", "orange", "black")
)


def run(config: Config, session: _run.Session = _run.NULL_SESSION) -> _run.Arrays:
    """Trains, then measures; arrays are [choice of the rate, method, seed, scale, time]."""
    if len(config.times) != len(config.filter_times):
        msg = f"filter_times must be as many as times, {len(config.times)}, got {len(config.filter_times)}."
        raise ValueError(msg)
    task = _solutions.make_task(config)
    solutions = _solutions.train(config, task, session)
    rates = pick_rates(solutions)
    at = lambda field: np.stack([field[np.arange(len(one)), one] for one in rates])
    weights = at(solutions.weights)
    times = np.array([config.times, config.filter_times])
    measured = []
    with session.progress("profiles", len(CHOICES)) as meter:
        for choice, some in zip(CHOICES, weights, strict=True):
            stage = functools.partial(measure, config, task, some, times)
            measured.append(session.stage(f"profiles, {choice}", stage))
            meter.advance()
    return {
        "note": np.array(task.note),
        "method": np.array(config.methods),
        "rate": np.array(config.learning_rates)[rates],
        "time": times,
        "temperature": np.array(config.profile_temperature),
        "trusted": np.array(config.trusted),
        "size": np.array(weights.shape[-1]),
        "train_loss": at(solutions.train_loss),
        "test_error": at(solutions.test_error),
        **{name: np.stack([stage[name] for stage in measured]) for name in measured[0]},
    }


def pick_rates(solutions: _solutions.Solutions) -> np.ndarray:
    """Indices [2, method]: of least mean validation error; of the training loss nearest to one all methods reach."""
    loss = np.log(solutions.train_loss).mean(-1)
    common = loss.min(-1).max()
    return np.stack([solutions.validation_error.mean(-1).argmin(-1), np.abs(loss - common).argmin(-1)])


def measure(config: Config, task: _solutions.Task, weights: np.ndarray, times: np.ndarray) -> _run.Arrays:
    """All numbers at weights [method, seed, P] for both scales, [method, seed, scale, time]."""
    flat = weights.reshape(-1, weights.shape[-1])
    scales = jax.vmap(functools.partial(filter_scale, task))(flat)
    scales = jnp.stack([jnp.ones_like(scales), scales], axis=1).reshape(-1, flat.shape[1])
    flat = jnp.repeat(flat, 2, axis=0)
    both = jnp.tile(times, (len(flat) // 2, 1))
    found = jax.device_get(_measure(config, task)(flat, scales, both, task.train))
    return {name: value.reshape(*weights.shape[:2], 2, *value.shape[1:]) for name, value in found.items()}


def filter_scale(task: _solutions.Task, weights: jax.Array) -> jax.Array:
    """The root mean square of the filter that every weight belongs to, [P], as of ``scale="filter"``."""
    params = task.unravel(weights)
    whole = jax.tree.map(
        lambda s, p: jnp.broadcast_to(s, p.shape), scale_tree(params, "filter", "rms"), params
    )
    return jax.flatten_util.ravel_pytree(whole)[0]


def _measure(config: Config, task: _solutions.Task):
    """One program for all solutions and both scales: the loss as a function of the relative perturbation z."""
    temperature = config.profile_temperature

    def one(inputs, data):
        weights, scale, times = inputs
        loss = lambda z, batch: task.loss(task.unravel(weights + scale * z), batch)
        args = loss, jnp.zeros_like(weights), data
        key = _run.key_for(config.seed, "profile")  # the same draws at every solution
        settings = {"smoothing_time": times, "temperature": temperature}
        entropy = landscape.local_entropy(
            *args, key, num_nodes=config.num_nodes, num_chains=config.num_chains, num_steps=config.num_steps,
            num_burn_in=config.num_burn_in, chains_at_once=config.num_chains, **settings,
        )  # fmt: skip
        weighted = landscape.local_entropy(
            *args, key, method="cole_hopf", num_samples=config.num_samples, chains_at_once=10, **settings
        )
        heat = landscape.expected_sharpness(
            *args, key, sigma=jnp.sqrt(times * temperature), num_samples=config.num_samples, scale="none",
            samples_at_once=10,
        )  # fmt: skip
        stretch = 1 + times[:, None] * landscape.exact_spectrum(*args)[None]
        logs = jnp.where(stretch > 0, jnp.log(jnp.where(stretch > 0, stretch, 1)), jnp.nan)
        gradient = jax.grad(loss)(*args[1:])
        return {
            "entropy": entropy.mean,
            "entropy_error": entropy.standard_error,
            "quadrature_error": entropy.info["quadrature_error"],
            "cole_hopf": weighted.mean,
            "effective": weighted.info["effective_sample_size"],
            "heat": heat.mean,
            "heat_error": heat.standard_error,
            "quadratic": temperature / 2 * logs.sum(-1),
            "slope_term": times / 2 * jnp.sum(gradient**2),
        }

    return jax.jit(
        lambda weights, scales, times, data: jax.lax.map(lambda i: one(i, data), (weights, scales, times))
    )


def over_seeds(values: np.ndarray) -> landscape.Estimate:
    """Mean over the seeds, [..., seed, scale, time] -> [..., scale, time], with its standard error."""
    values = np.moveaxis(np.asarray(values, np.float64), -3, 0)
    return landscape.Estimate(values.mean(0), values.std(0, ddof=1) / np.sqrt(len(values)))


def table(results: _run.Arrays) -> tuple[list[str], list[list[str]]]:
    """At three times, means over the seeds ± 95 % (Student's t), in units of T; in brackets the chains' own error."""
    temperature, last = results["temperature"], results["time"].shape[-1] - 1
    headers = [
        "rates of",
        "weights",
        "rate",
        "training loss",
        "test error %",
        "perturbed",
        "t",
        "(u − f)/T",
    ]
    headers += ["½ Σ log(1 + tλ)", "Cole-Hopf (effective sample size)", "Gaussian average"]
    rows = []
    show = lambda values, scale=1.0: f"{scale * values.mean():.3g} ± {scale * interval(values):.2g}"
    for c, choice in enumerate(CHOICES):
        for m, name in enumerate(map(str, results["method"])):
            for s, scale in enumerate(SCALES):
                for k in sorted({0, last // 2, last}):
                    at = lambda key, where=(c, m, slice(None), s, k): results[key][where]
                    chains = np.sqrt(np.mean(at("entropy_error") ** 2)) / temperature
                    rows.append(
                        [
                            choice,
                            name,
                            f"{results['rate'][c, m]:g}",
                            show(results["train_loss"][c, m]),
                            show(results["test_error"][c, m], 100),
                            scale,
                            f"{results['time'][s, k]:g}",
                            f"{show(at('entropy'), 1 / temperature)} ({chains:.2g})",
                            show(at("quadratic"), 1 / temperature),
                            f"{show(at('cole_hopf'), 1 / temperature)} ({at('effective').mean():.0f})",
                            show(at("heat"), 1 / temperature),
                        ]
                    )
    return headers, rows


def figure(results: _run.Arrays) -> plt.Figure:
    """The two perturbations side by side, the two choices of the rate below one another."""
    with plotting.style():
        fig, axes = plt.subplots(2, 2, figsize=(11.4, 8.4), sharex="col", sharey="col")
        for (c, s), axis in np.ndenumerate(axes):
            draw(axis, results, c, s)
        for axis, name, unit in zip(axes[1], SCALES, ("param²/loss", "1/loss"), strict=True):
            axis.set_xlabel(f"smoothing time t [{unit}], {name}")
        for axis in axes[:, 0]:
            axis.set_ylabel("(u(x*, t) − f(x*)) / T")
        for c, choice in enumerate(CHOICES):
            losses = zip(results["method"], results["train_loss"][c], strict=True)
            losses = ", ".join(f"{name}: {1e3 * loss.mean():.2g}" for name, loss in losses)
            axes[c, 0].set_title(f"Rates of {choice}\n10³ f(x*): {losses}", loc="left", fontsize=10)
        fig.legend(handles=legend(results), loc="outside lower center", ncols=5, columnspacing=1.4)
    return fig


def draw(axis: plt.Axes, results: _run.Arrays, choice: int, scale: int) -> None:
    """Curves over T at one choice of the rate, on logarithmic axes."""
    times, temperature = results["time"][scale], results["temperature"]
    quantile = stats.t.ppf(0.975, results["entropy"].shape[2] - 1)
    low, high = np.inf, 0.0
    for m in range(len(results["method"])):
        of = lambda name, m=m: jax.tree.map(
            lambda leaf: leaf[scale] / temperature, over_seeds(results[name][choice, m])
        )
        axis.plot(times, of("heat").mean, ":", color=COLOURS[m], linewidth=1.1, zorder=1)
        entropy = of("entropy")
        plotting.profile(axis, times, entropy, colour=COLOURS[m], quantile=quantile)
        axis.plot(times, of("quadratic").mean, color=COLOURS[m], linewidth=0.8, zorder=4, dashes=(5, 2))
        weighted = of("cole_hopf").mean
        trust = results["effective"][choice, m, :, scale].min(0) >= results["trusted"]
        axis.plot(times[trust], weighted[trust], "o", color=COLOURS[m], markersize=5, zorder=5)
        axis.plot(times[~trust], weighted[~trust], "x", color=COLOURS[m], markersize=6, zorder=5)
        low, high = min(low, entropy.mean.min()), max(high, entropy.mean.max())
    axis.set_xscale("log")
    if low > 0:  # not where the training is so short that the slope at x* lowers u below f(x*)
        axis.set_yscale("log")
        axis.set_ylim(0.6 * low, 4 * high)


def legend(results: _run.Arrays) -> list[Line2D]:
    """What is what: colours, then lines."""
    names = map(str, results["method"])
    lines = [Line2D([], [], color=colour, label=name) for colour, name in zip(COLOURS, names, strict=False)]
    grey = {"color": "#404040"}
    return [
        *lines,
        Line2D([], [], **grey, label="thermodynamic integral, 95 % over seeds"),
        Line2D([], [], **grey, linewidth=0.8, dashes=(5, 2), label="½ Σ log(1 + tλ), exact spectrum"),
        Line2D([], [], **grey, linestyle=":", linewidth=1.1, label="Gaussian average (upper bound)"),
        Line2D([], [], **grey, marker="o", linestyle="", label="Cole-Hopf"),
        Line2D(
            [],
            [],
            **grey,
            marker="x",
            linestyle="",
            label=f"Cole-Hopf, effective samples < {results['trusted']:g}",
        ),
    ]
