"""Does flatness predict the test error? Many solutions of one network, every measure, rank correlations with intervals.

A network of 3,466 parameters on 500 of scikit-learn's digits, a tenth of their labels redrawn at random, so that
memorising costs test error and solutions differ. Five optimisers, five learning rates, two sizes of minibatches, four
seeds: 200 trainings of 4,000 gradients. The 118 that fit to a training loss of 0.05 or less count, since curvature
goes with the loss: towards zero as the fit gets perfect. Each has every flatness measure of the landscape package
taken on the training data, and Kendall's rank correlation τ of each with the error on 997 test images is given with a
95 % interval: a bootstrap that draws configurations and seeds anew, since solutions of one configuration are alike,
and all configurations share the initial weights of a seed. One τ is over all pairs; one over pairs of the same
method; one is partial, given the training loss; and one is for copies whose layers were rescaled at random so that
they compute the same function (Dinh et al. 2017), by factors between 1/5 and 5.

What predicts: measures in units of the weights. Expected sharpness under noise in proportion to the filters has τ =
0.54 (0.33 to 0.71), 0.50 (0.21 to 0.73) within methods and 0.54 (0.34 to 0.70) given the training loss; local entropy
in the same units 0.37 (0.14 to 0.57), SAM's sharpness by weights (as in ASAM) 0.30 (0.06 to 0.51), both also given
the training loss. None of them changes when layers are rescaled. What does not: the largest eigenvalue, 0.19 (−0.02
to 0.40), the trace, 0.18 (−0.03 to 0.40), expected sharpness, 0.18 (−0.03 to 0.39) and SAM's sharpness, 0.17 (−0.07
to 0.41), in the parameters' own units, are hardly above zero, and local entropy u − f, at t = 0.4 and T = 0.001, is
at 0.01 (−0.21 to 0.25). The norm of the weights alone is at 0.13 (−0.13 to 0.36), so here it is not what the first
ones owe their success to. The gap between test and training error gives the same picture, in the table. So do true
labels alone (``--random-labels 0``, 180 solutions): 0.58 (0.43 to 0.74) by filters and 0.52 (0.37 to 0.67) given the
training loss, where eigenvalue, trace and expected sharpness come to 0.31, 0.27 and 0.27, of which the loss leaves
0.10, 0.02 and 0.03, none apart from 0; but there the norm given the loss has 0.44 (0.27 to 0.56).

Three things to keep in mind. The largest eigenvalue spans more than two decades, much of it with the training loss (τ
= 0.63), and of its sharpest quarter a fifth are in the best quarter by test error, not far from the quarter of mere
chance: sharp minima generalise too. Entropy-SGD's eleven solutions that fit are among the sharpest by every measure
but its own local entropy, which is negative for eight of them: they have not come to rest at a minimum of the
training loss. And a correlation over these configurations is no cause (Jiang et al. 2020), nor does it promise
anything for other families of solutions (Dziugaite et al. 2020); the intervals hold for configurations and seeds like
these, on one split of one data set, and for the one size of noise, radius and time that each measure was given.

References: Dinh, Pascanu, Bengio & Bengio 2017, Sharp minima can generalize for deep nets, arXiv:1703.04933. Jiang,
Neyshabur, Mobahi, Krishnan & Bengio 2020, Fantastic generalization measures and where to find them, arXiv:1912.02178.
Dziugaite et al. 2020, In search of robust measures of generalization, arXiv:2010.11924.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.lines import Line2D

from experiments import _run, _solutions
from experiments._rank_correlation import kendall, partial, percentiles, pigeonhole, spearman
from jaxopt_pde import landscape, plotting


@dataclasses.dataclass(frozen=True)
class Config(_solutions.Training):
    """What to run; the defaults give the figure of the gallery. ``batch_size`` is not used."""

    methods: tuple[str, ...] = ("SGD, Nesterov", "Adam", "SAM", "SGD, averaged", "Entropy-SGD, K = 1")
    """Which optimisers."""
    num_train: int = 500
    """Training images; few, so that solutions differ."""
    num_test: int = 997
    """Test images, the rest."""
    random_labels: float = 0.1
    """Share of the training labels that are drawn anew: memorising them costs test error."""
    num_seeds: int = 4
    """Replicas of each configuration."""
    num_gradients: int = 4000
    """Of each training."""
    learning_rates: tuple[float, ...] = (0.01, 0.02, 0.04, 0.08, 0.16)
    """The grid."""
    batch_sizes: tuple[int, ...] = (20, 80)
    """Examples in a minibatch, by configuration."""
    fit_loss: float = 0.05
    """Solutions of a greater training loss do not count."""
    noise: float = 0.02
    """Standard deviation σ of the expected sharpness [param]."""
    relative_noise: float = 0.1
    """σ where it is in units of the root mean square of each filter."""
    radius: float = 0.05
    """Of SAM's ball [param]."""
    relative_radius: float = 0.5
    """Of the ball in units of each weight."""
    num_samples: int = 32
    """Perturbations of an expected sharpness, and probes of a trace."""
    smoothing_time: float = 0.4
    """t of the local entropy [param²/loss]."""
    relative_time: float = 10.0
    """t where it is in units of the root mean square of each filter [1/loss]."""
    temperature: float = 1e-3
    """T of the local entropies [loss]; √(tT) is the noise of the expected sharpness, 0.02 and 0.1."""
    entropy_nodes: int = 4
    """Quadrature nodes of a local entropy."""
    entropy_steps: int = 12
    """Steps counted at each node, after two thirds as many that are not; four chains."""
    num_bootstrap: int = 2000
    """Bootstrap samples."""


SMOKE = Config(
    methods=("SGD, Nesterov",), widths=(3,), num_train=60, num_validation=20, num_test=60, num_seeds=3,
    num_gradients=60, learning_rates=(0.02, 0.1), batch_sizes=(20,), fit_loss=10.0, num_samples=4, entropy_nodes=2,
    entropy_steps=2, num_bootstrap=50,
)  # fmt: skip

MEASURES = {
    "loss": "training loss",
    "top": "largest eigenvalue",
    "trace": "trace",
    "expected": "expected sharpness",
    "expected_filter": "expected sharpness, by filters",
    "sam": "SAM sharpness",
    "sam_elementwise": "SAM sharpness, by weights",
    "entropy": "local entropy u − f",
    "entropy_filter": "local entropy, by filters",
    "norm": "norm of the weights",
}
"""Names in figure and table; the first and the last are no flatness, but what it might stand for."""

NOT_FINITE = ("tau", "rho")


def run(config: Config, session: _run.Session = _run.NULL_SESSION) -> _run.Arrays:
    """Trains, keeps what fits, measures it and a rescaled copy; arrays [solution], measures [copy, solution].

    Raises:
        ValueError: fewer than three solutions fit.
    """
    task = _solutions.make_task(config)
    columns = {name: [] for name in ("weights", "train_loss", "train_error", "test_error", "where")}
    for batch_size in config.batch_sizes:
        training = dataclasses.replace(config, batch_size=batch_size)
        name = f"batches of {batch_size}"
        solve = functools.partial(_solutions.train, training, task, session.within(name))
        stage = session.stage(name, lambda solve=solve: solve()._asdict())
        shape = stage["train_loss"].shape
        place = np.stack(np.broadcast_arrays(*np.ogrid[tuple(map(slice, shape))], batch_size), -1)
        for name in columns:
            value = place if name == "where" else stage[name]
            columns[name].append(value.reshape(np.prod(shape), *value.shape[3:]))
    solutions = {name: np.concatenate(parts) for name, parts in columns.items()}
    total = len(solutions["train_loss"])
    fits = solutions["train_loss"] <= config.fit_loss  # False for NaN
    if fits.sum() < 3:
        msg = f"fit_loss={config.fit_loss} leaves {fits.sum()} of {total} solutions, at least 3 are needed."
        raise ValueError(msg)
    solutions = {name: value[fits] for name, value in solutions.items()}
    weights, where = solutions.pop("weights"), solutions.pop("where")
    measures = session.stage("measures", lambda: measure(config, task, weights))
    method, rate, seed, batch = where.T
    found = solutions | {
        "note": np.array(task.note),
        "size": np.array(weights.shape[-1]),
        "fit_loss": np.array(config.fit_loss),
        "methods": np.array(config.methods),
        "method": method,
        "rate": np.array(config.learning_rates)[rate],
        "batch": batch,
        "seed": seed,
        "total": np.array(total),
        **measures,
    }
    return found | correlations(config, found)


def measure(config: Config, task: _solutions.Task, weights: np.ndarray) -> _run.Arrays:
    """All measures at the weights and at rescaled ones that compute the same, [2, solution]; probe errors relative."""
    key = _run.key_for(config.seed, "measures")
    names = list(MEASURES)[1:]

    @jax.jit
    def all_of(weights, factors, data, key):
        def one(weight_and_factors):
            weight, factors = weight_and_factors
            args = (task.loss, rescaled(task.unravel(weight), factors), data, key)
            draws = {"num_samples": config.num_samples, "samples_at_once": config.num_samples // 2}
            entropy = {
                "temperature": config.temperature,
                "num_nodes": config.entropy_nodes,
                "num_steps": config.entropy_steps,
                "num_burn_in": config.entropy_steps * 2 // 3,
                "num_chains": 4,
                "chains_at_once": 4,
            }
            found = (
                landscape.top_eigenvalues(*args, tolerance=1e-3),
                landscape.trace(*args, num_probes=config.num_samples),
                landscape.expected_sharpness(*args, sigma=config.noise, scale="none", **draws),
                landscape.expected_sharpness(*args, sigma=config.relative_noise, scale="filter", **draws),
                landscape.sharpness(*args, radius=config.radius),
                landscape.sharpness(*args, radius=config.relative_radius, scale="elementwise"),
                landscape.local_entropy(*args, smoothing_time=config.smoothing_time, **entropy),
                landscape.local_entropy(
                    *args, smoothing_time=config.relative_time, scale="filter", **entropy
                ),
            )
            zero = jnp.zeros(())
            means = [estimate.mean.reshape(()) for estimate in found]
            errors = [zero if e.probe_error is None else e.probe_error.reshape(()) for e in found]
            means, errors = jnp.stack([*means, optax.tree.norm(args[1])]), jnp.stack([*errors, zero])
            return means, errors / jnp.abs(means)

        return jax.lax.map(one, (weights, factors))

    layers = len(config.widths)
    spread = jax.random.uniform(jax.random.fold_in(key, 1), (len(weights), layers), minval=-1.0, maxval=1.0)
    factors = jnp.concatenate([jnp.ones((len(weights), layers)), 5.0**spread])
    means, errors = jax.device_get(all_of(np.concatenate([weights] * 2), factors, task.train, key))
    by_name = lambda values, suffix: {
        f"{name}{suffix}": column
        for name, column in zip(names, values.reshape(2, -1, len(names)).T, strict=True)
    }
    return {n: v.T for n, v in (by_name(means, "") | by_name(errors, "_error")).items()}


def rescaled(params, factors: jax.Array):
    """Weights of the same ReLU network: layer l's outputs times factors[l], undone in the next layer."""
    before, after = jnp.concatenate([jnp.ones(1), factors]), jnp.concatenate([factors, jnp.ones(1)])
    layers = sorted(params)
    return {
        name: {
            "kernel": params[name]["kernel"] * after[i] / before[i],
            "bias": params[name]["bias"] * after[i],
        }
        for i, name in enumerate(layers)
    }


KINDS = ("all", "method", "given_loss", "rescaled", "gap", "gap_given_loss")


def correlations(config: Config, found: _run.Arrays) -> _run.Arrays:
    """Kendall's τ [kind, measure, 3] (value, low, high) with test error or gap, and Spearman's ρ [measure, 3]."""
    configuration = np.unique(
        np.stack([found["method"], found["rate"], found["batch"]], -1), axis=0, return_inverse=True
    )
    generator = np.random.default_rng(np.random.SeedSequence([config.seed, 7]))
    weights = pigeonhole(generator, configuration[1].reshape(-1), found["seed"], config.num_bootstrap)
    error, loss = found["test_error"], found["train_loss"]
    gap = error - found["train_error"]
    tau, rho = np.full((len(KINDS), len(MEASURES), 3), np.nan), []
    error_loss, gap_loss = kendall(error, loss, weights), kendall(gap, loss, weights)
    for m, name in enumerate(MEASURES):
        value, other = (loss, loss) if name == "loss" else found[name]
        with_loss = kendall(value, loss, weights)
        samples = {
            "all": kendall(value, error, weights),
            "method": kendall(value, error, weights, found["method"]),
            "rescaled": kendall(other, error, weights),
            "gap": kendall(value, gap, weights),
        }
        if name != "loss":
            samples["given_loss"] = partial(samples["all"], with_loss, error_loss)
            samples["gap_given_loss"] = partial(samples["gap"], with_loss, gap_loss)
        for kind, drawn in samples.items():
            tau[KINDS.index(kind), m] = percentiles(drawn)
        rho.append(percentiles(spearman(value, error, weights)))
    return {"tau": tau, "rho": np.array(rho)}


def table(results: _run.Arrays) -> tuple[list[str], list[list[str]]]:
    """Every correlation with its 95 % interval, positive where sharper goes with worse."""
    number, total = len(results["method"]), int(results["total"])
    headers = [
        f"measure ({number} of {total} solutions)", "Kendall τ with test error", "Spearman ρ with test error",
        "τ, pairs of one method", "τ given training loss", "τ, layers rescaled", "τ with gap",
        "τ with gap given training loss", "median probe error %",
    ]  # fmt: skip
    show = lambda c: "–" if np.isnan(c[0]) else f"{c[0]:+.2f} [{c[1]:+.2f}, {c[2]:+.2f}]"
    tau, rows = results["tau"], []
    for m, (name, label) in enumerate(MEASURES.items()):
        cells = [tau[0, m], results["rho"][m], *tau[1:, m]]
        probe = "–" if name == "loss" else f"{100 * np.median(results[f'{name}_error'][0]):.2g}"
        rows.append([label, *map(show, cells), probe])
    return headers, rows


COLOURS = {
    "SGD, Nesterov": "blue", "Adam": "black", "SAM": "green", "SGD, averaged": "orange",
    "Entropy-SGD, K = 1": "vermillion", "Entropy-SGD, K = 4": "purple",
}  # fmt: skip
UNITS = dict.fromkeys(MEASURES, "loss") | {"top": "loss/param²", "trace": "loss/param²", "norm": "param"}
SHOWN = {
    "all": "all pairs", "method": "pairs of one method", "given_loss": "given the training loss",
    "rescaled": "layers rescaled at random",
}  # fmt: skip


def figure(results: _run.Arrays) -> plt.Figure:
    """Every measure against the test error, above the correlations with their intervals."""
    with plotting.style():
        fig = plt.figure(figsize=(15, 10.4))
        upper, lower = fig.subfigures(2, 1, height_ratios=(1.75, 1))
        axes = upper.subplots(2, -(-len(MEASURES) // 2), sharey=True)
        for axis, (name, label), tau in zip(axes.flat, MEASURES.items(), results["tau"][0], strict=True):
            scatter(axis, results, name, label, tau)
        axes[0, 0].set_ylabel("test error   [%]")
        axes[1, 0].set_ylabel("test error   [%]")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        sizes = np.unique(results["batch"])
        if len(sizes) > 1:
            handles.append(Line2D([], [], linestyle="", marker="o", color="#606060", markerfacecolor="none"))
            labels.append(f"hollow: minibatches above {sizes[0]}")
        upper.legend(
            handles, labels, loc="outside lower center", ncols=len(labels), fontsize=10, markerscale=1.4
        )
        for axis, (kind, title) in zip(
            lower.subplots(1, len(SHOWN), sharey=True, sharex=True), SHOWN.items(), strict=True
        ):
            forest(axis, results["tau"][KINDS.index(kind)], title)
    return fig


def scatter(axis, results: _run.Arrays, name: str, label: str, tau: np.ndarray) -> None:
    """One measure; hollow marks are the larger minibatches."""
    values = results["train_loss"] if name == "loss" else results[name][0]
    small = results["batch"] == results["batch"].min()
    for m, method in enumerate(map(str, results["methods"])):
        colour = plotting.COLOURS[COLOURS[method]]
        for batch, face in ((small, colour), (~small, "none")):
            own = (results["method"] == m) & batch
            axis.plot(
                values[own], 100 * results["test_error"][own], "o", markersize=4, color=colour, markerfacecolor=face,
                alpha=0.75, label=method if batch is small else None,
            )  # fmt: skip
    if values.min() > 0:
        axis.set_xscale("log")
    else:  # u < f where the training has not come to rest
        decade = 10.0 ** np.floor(np.log10(np.median(np.abs(values))))
        axis.set_xscale("symlog", linthresh=decade)
        ticks = decade * np.array([-10.0, 0.0, 10.0])
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.axvline(0, color="#b0b0b0", linewidth=1, zorder=0)
    if name == "norm":
        ticks = [tick for tick in (1, 2, 3, 5, 10, 20, 30, 50, 100) if values.min() <= tick <= values.max()]
        axis.set_xticks(ticks, map(str, ticks))
        axis.minorticks_off()
    axis.set(xlabel=f"{label}   [{UNITS[name]}]")
    axis.set_title(f"τ = {tau[0]:.2f}   [{tau[1]:.2f}, {tau[2]:.2f}]", loc="left", fontsize=10.5)


def forest(axis, tau: np.ndarray, title: str) -> None:
    """Correlations [measure, 3] with their intervals."""
    places = np.arange(len(tau))
    axis.axvline(0, color="#b0b0b0", linewidth=1, zorder=0)
    axis.hlines(places, tau[:, 1], tau[:, 2], color=plotting.COLOURS["blue"], linewidth=2)
    axis.plot(tau[:, 0], places, "o", color=plotting.COLOURS["blue"], markersize=6)
    axis.set_yticks(places, list(MEASURES.values()))
    axis.tick_params(axis="y", length=0)
    axis.set(xlim=(-1, 1), ylim=(len(tau) - 0.5, -0.5), xlabel="Kendall τ with the test error, 95 %")
    axis.set_title(title, loc="left")
