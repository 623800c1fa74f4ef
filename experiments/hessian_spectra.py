"""Hessian spectra at the solutions of SGD, SAM and Entropy-SGD, and what they say of flatness.

A network of 3,466 parameters on scikit-learn's digits, five seeds, each method at its learning rate of least
validation error. The densities of the eigenvalues of the training loss's Hessian come from stochastic Lanczos
quadrature, with 95 % bands from probes and batches; the network is small enough to have the exact spectrum drawn on
top, first seed. Beside it the Gauss-Newton matrix, which drops the curvature of the network. Insets: the negative
tail at the initial weights, and the exact eigenvalues by size at the solutions, those of at most 0.01 below the
dotted line. Where a band reaches the axis, the probes disagree whether a single eigenvalue is there: quadrature finds
its place, but its weight of 1/P only to a factor.

What to see. Training turns a spectrum with many negative eigenvalues (least −0.44 ± 0.06; 76.9 ± 4.0 % of all are
within 0.01 of 0) into some ten positive outliers, about as many as classes, over a bulk at 0: 99.7 to 99.8 % of |λ| ≤
0.01, where the Entropy-SGD paper reports about 90 % for its small-mnistfc. At the solutions Gauss-Newton and Hessian
agree; at the initial weights they have little in common. The paper's own network, 50,890 parameters, on 1,000 images
of MNIST (``--dataset mnist --widths 64 --num-seeds 3 --num-probes 4 --learning-rates 0.03 0.1 0.3``) has 97.0 ± 1.3 %
at the initial weights and more than 99.9 % at all solutions.

And flatness? Largest eigenvalue and trace are 0.061 ± 0.018 and 0.28 ± 0.10 for SGD, 0.089 ± 0.014 and 0.55 ± 0.16
for SAM, 0.094 ± 0.007 and 0.49 ± 0.07 for Entropy-SGD: the flattest is SGD's, not Entropy-SGD's. That says more of
the training loss than of the method: with cross-entropy the curvature goes to 0 with the loss, and SGD at its
validated rate got to half of the others' loss. Over the loss, the largest eigenvalue is 336 ± 67, 214 ± 16 and 281 ±
48. So the table also has the solutions whose losses are nearest to a common one on the grid of rates: 0.24 ± 0.03 for
SGD at a loss of 0.00056, against 0.09 for SAM at 0.00042 and for Entropy-SGD at 0.00034, which the difference in loss
does not explain. The order of the methods thus hangs on how far each was trained. The test errors, 2.0 ± 0.4, 1.9 ±
0.7 and 2.1 ± 0.7 %, tell none of them apart.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from experiments import _run, _solutions
from experiments.quickstart import interval
from jaxopt_pde import landscape, plotting
from jaxopt_pde.models import MLP


@dataclasses.dataclass(frozen=True)
class Config(_solutions.Training):
    """What to run; the defaults give the figure of the gallery."""

    learning_rates: tuple[float, ...] = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3)
    """The grid, fine enough for solutions of almost equal loss."""
    curvature_batch: int = 100
    """Training images in a batch of the curvature estimates; the spread of batches gives their batch errors."""
    num_matvecs: int = 60
    """Lanczos steps of a probe of the density."""
    num_probes: int = 8
    """Probes of the density, the trace and the share near zero."""
    threshold: float = 1e-2
    """Eigenvalues of at most this size count as near zero, as in the Entropy-SGD paper [loss/param²]."""
    exact_up_to: int = 4000
    """Networks of more parameters go without the exact spectrum (the library takes 5,000)."""


SMOKE = Config(
    methods=("SGD, Nesterov",), widths=(2,), num_train=60, num_validation=20, num_test=20, num_seeds=2,
    num_gradients=40, learning_rates=(0.1,), curvature_batch=30, num_matvecs=8, num_probes=2,
)  # fmt: skip

START = "initial weights"


def run(config: Config, session: _run.Session = _run.NULL_SESSION) -> _run.Arrays:
    """Trains, then measures: scalars of errors [point, seed], densities [place, points] of the first seed.

    The points are the initial weights, each method at the rate of its validation error, and each at the rate that
    brings its training loss nearest to the common one; the places are the points of the first two kinds.
    """
    task = _solutions.make_task(config)
    solutions = _solutions.train(config, task, session)
    rates = pick_rates(config, solutions)
    method = np.tile(np.arange(len(config.methods)), 2)
    at = lambda field: field[method, rates.reshape(-1)]
    weights = np.concatenate([solutions.start[None], at(solutions.weights)])  # [point, seed, P]
    points, seeds, size = weights.shape
    places = 1 + len(config.methods)
    scalars = session.stage("scalars", lambda: measure(config, task, weights.reshape(-1, size)))
    scalars = {name: value.reshape(points, seeds) for name, value in scalars.items()}
    first = weights[:places, 0]
    spectra = session.stage("densities", lambda: densities(config, task, first, scalars, places))
    exact = np.zeros((places, 0), np.float32)
    if size <= config.exact_up_to:
        exact = []
        with session.progress("exact spectra", places) as meter:
            for place in range(places):
                compute = functools.partial(exact_spectrum, config, task, first[place])
                exact.append(session.stage(f"exact spectrum {place}", compute)["exact"])
                meter.advance()
        exact = np.stack(exact)
    start_loss = np.array([task.loss(task.unravel(w), task.train) for w in solutions.start])
    start_error = np.array([task.error(task.unravel(w), task.test) for w in solutions.start])
    return {
        "note": np.array(task.note),
        "size": np.array(size),
        "threshold": np.array(config.threshold),
        "point": np.array([START, *(config.methods[m] for m in method)]),
        "rate": np.array([0.0, *np.array(config.learning_rates)[rates.reshape(-1)]]),
        "train_loss": np.concatenate([start_loss[None], at(solutions.train_loss)]),
        "test_error": np.concatenate([start_error[None], at(solutions.test_error)]),
        **scalars,
        **spectra,
        "exact": exact,
    }


def pick_rates(config: Config, solutions: _solutions.Solutions) -> np.ndarray:
    """Indices [2, method]: of least validation error; of the loss nearest to the least that all reach."""
    best = solutions.validation_error.mean(-1).argmin(-1)
    loss = np.log(solutions.train_loss.mean(-1))
    common = loss.min(-1).max()
    return np.stack([best, np.abs(loss - common).argmin(-1)])


def measure(config: Config, task: _solutions.Task, weights: np.ndarray) -> _run.Arrays:
    """Extreme eigenvalues, traces and shares near zero at all weights [point, P]; ``*_error`` with each."""
    size = weights.shape[-1]

    @jax.jit
    def extremes(weights, data, key):
        def one(weight, sign):  # the least eigenvalue is minus the largest of −f: one program for both
            loss_fn = lambda params, batch: sign * task.loss(params, batch)
            found = landscape.top_eigenvalues(
                loss_fn, task.unravel(weight), data, key, batch_size=config.curvature_batch
            )
            return sign * found.mean[0], found.standard_error[0]

        both = lambda weight: jax.lax.map(lambda sign: one(weight, sign), jnp.array([1.0, -1.0]))
        return jax.lax.map(both, weights)

    @jax.jit
    def averages(weights, data, key):
        def one(weight):
            density = landscape.spectral_density(
                task.loss, task.unravel(weight), data, key, num_matvecs=config.num_matvecs,
                num_probes=config.num_probes, batch_size=config.curvature_batch,
            )  # fmt: skip
            return tuple(density.moment(1)), tuple(density.share_within(config.threshold))

        return jax.lax.map(one, weights)

    values, errors = jax.device_get(extremes(weights, task.train, _run.key_for(config.seed, "extremes")))
    mean, share = jax.device_get(averages(weights, task.train, _run.key_for(config.seed, "averages")))
    found = {"top": (values[:, 0], errors[:, 0]), "bottom": (values[:, 1], errors[:, 1])}
    found |= {"trace": (size * mean[0], size * mean[1]), "share": share}
    return {n: pair[0] for n, pair in found.items()} | {f"{n}_error": pair[1] for n, pair in found.items()}


def densities(
    config: Config, task: _solutions.Task, weights, scalars: _run.Arrays, places: int
) -> _run.Arrays:
    """Densities [place, points] of Hessian and Gauss-Newton matrix, each place on its grid, and their errors."""
    network = MLP(config.widths)
    outputs = lambda params, batch: network.apply({"params": params}, batch[0], train=False)
    cross_entropy = lambda logits, batch: optax.softmax_cross_entropy_with_integer_labels(
        logits, batch[1]
    ).mean()
    high, low = scalars["top"][:places, 0], scalars["bottom"][:places, 0]
    width = (high - low) / 150
    grid = np.linspace(low - 6 * width, high + 6 * width, 1000, axis=-1)
    losses = {"hessian": task.loss, "gauss_newton": landscape.GaussNewton(outputs, cross_entropy)}
    found = {"grid": grid, "bandwidth": width}
    for name, loss_fn in losses.items():

        @jax.jit
        def all_places(weights, width, grid, data, key, loss_fn=loss_fn):
            def one(place):
                weight, width, grid = place
                density = landscape.spectral_density(
                    loss_fn, task.unravel(weight), data, key, num_matvecs=config.num_matvecs,
                    num_probes=config.num_probes, batch_size=config.curvature_batch, bandwidth=width, grid=grid,
                )  # fmt: skip
                return tuple(density.density)

            return jax.lax.map(one, (weights, width, grid))

        key = _run.key_for(config.seed, "density")
        found[name], found[f"{name}_error"] = jax.device_get(
            all_places(weights, width, grid, task.train, key)
        )
    return found


def exact_spectrum(config: Config, task: _solutions.Task, weight: np.ndarray) -> _run.Arrays:
    """All eigenvalues, in descending order."""
    params = task.unravel(weight)
    return {"exact": landscape.exact_spectrum(task.loss, params, task.train)}


def table(results: _run.Arrays) -> tuple[list[str], list[list[str]]]:
    """Means over the seeds ± 95 % (Student's t); in brackets the mean standard error over batches and probes."""
    threshold = f"{results['threshold']:g}"
    headers = [
        "weights", "rate", "training loss", "test error %", "largest eigenvalue (batch s.e.)",
        "the same over training loss", "trace (probe and batch s.e.)",
        f"% of |λ| ≤ {threshold} (probe s.e.)", "the same, exact, first seed", "least eigenvalue (batch s.e.)",
    ]  # fmt: skip
    places, rows = len(results["hessian"]), []
    show = lambda values, scale=1: f"{scale * values.mean():.3g} ± {scale * interval(values):.2g}"
    with_error = lambda name, p, scale=1: (
        f"{show(results[name][p], scale)} ({scale * results[f'{name}_error'][p].mean():.2g})"
    )
    for p, name in enumerate(map(str, results["point"])):
        exact = "–"
        if p < places and results["exact"].size:
            exact = f"{100 * np.mean(np.abs(results['exact'][p]) <= results['threshold']):.2f}"
        rows.append(
            [
                name + (", equal loss" if p >= places else ""),
                f"{results['rate'][p]:g}" if p else "–",
                show(results["train_loss"][p]),
                show(results["test_error"][p], 100),
                with_error("top", p),
                show(results["top"][p] / results["train_loss"][p]),
                with_error("trace", p),
                with_error("share", p, 100),
                exact,
                with_error("bottom", p),
            ]
        )
    return headers, rows


def smoothed(eigenvalues: np.ndarray, grid: np.ndarray, width: float) -> np.ndarray:
    """Density on the grid of the eigenvalues plus a Gaussian of this standard deviation."""
    bells = np.exp(-(((grid[:, None] - eigenvalues[None]) / width) ** 2) / 2)
    return bells.mean(1) / (width * np.sqrt(2 * np.pi))


def rounded(values: np.ndarray) -> str:
    """Mean and 95 % interval over the seeds, to the first digit of the interval."""
    half = float(interval(values))
    digits = max(0, -int(np.floor(np.log10(half)))) if half > 0 else 3
    return f"{values.mean():.{digits}f} ± {half:.{digits}f}"


def figure(results: _run.Arrays) -> plt.Figure:
    """A density for each place on common axes, the exact spectrum on top, Gauss-Newton beside it."""
    places = len(results["hessian"])
    with plotting.style():
        fig, axes = plt.subplots(-(-places // 2), 2, figsize=(12.6, 7.8), squeeze=False)
        for place, axis in enumerate(axes.flat[:places]):
            draw(axis, results, place)
        for axis in axes.flat[places:]:
            axis.set_visible(False)
        fig.legend(
            *axes[0, 0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=5,
            fontsize=10,
            handlelength=2.4,
        )
    return fig


def draw(axis, results: _run.Arrays, place: int) -> None:
    """One place: the density with its band, the exact one and Gauss-Newton's, the tails or all sizes as an inset."""
    grid, width = results["grid"][place], float(results["bandwidth"][place])
    floor = 0.05 / (results["size"] * width)  # a twentieth of what one eigenvalue gives at its place
    density = landscape.Estimate(results["hessian"][place], results["hessian_error"][place])
    exact = results["exact"][place]
    single = exact[:10] if exact.size else results["top"][place, :1]
    trained = place > 0 and exact.size > 0
    drawn = plotting.spectral_density(axis, grid, density, floor=floor, eigenvalues=single, tails=not trained)
    drawn.line.set_label("Hessian, by Lanczos")
    drawn.band.set_label("95 %, probes and batches")
    drawn.ticks.set_label("largest eigenvalues")
    for where in (axis, *drawn.insets):
        newton = np.maximum(results["gauss_newton"][place], floor)
        where.plot(
            grid,
            newton,
            "--",
            color=plotting.COLOURS["orange"],
            linewidth=1.3,
            label="Gauss-Newton",
            zorder=3.5,
        )
        if exact.size:
            curve = np.maximum(smoothed(exact, grid, width), floor)
            where.plot(grid, curve, color="black", linewidth=0.9, label="Hessian, exact", zorder=5)
    axis.set_title(
        f"{results['point'][place]}, training loss {rounded(results['train_loss'][place])}\n"
        f"λ₁ = {rounded(results['top'][place])},   |λ| ≤ {results['threshold']:g}: "
        f"{rounded(100 * results['share'][place])} %",
        loc="left",
    )
    if trained:
        draw_sizes(axis.inset_axes((0.5, 0.56, 0.48, 0.38)), exact, float(results["threshold"]))


def draw_sizes(axis, exact: np.ndarray, threshold: float) -> None:
    """Sizes of the exact eigenvalues by rank, positive and negative ones, above what rounding leaves."""
    rounding = 1e-6 * np.abs(exact).max()
    for sign, colour, name in ((1, "black", "λ > 0"), (-1, plotting.COLOURS["purple"], "λ < 0")):
        sizes = np.sort(sign * exact[sign * exact > rounding])[::-1]
        axis.plot(np.arange(1, len(sizes) + 1), sizes, color=colour, linewidth=1.5)
        place = len(sizes) // 8 if sign > 0 else 0
        if len(sizes):
            axis.annotate(
                name, (1 + place, sizes[place]), xytext=(4, 4), textcoords="offset points", color=colour, fontsize=9,
            )  # fmt: skip
    axis.axhline(threshold, color=plotting.COLOURS["vermillion"], linewidth=1, linestyle=":")
    axis.set(xscale="log", yscale="log", ylim=(rounding, None), xlim=(0.9, None))
    axis.set_xlabel("rank", labelpad=0, fontsize=9)
    axis.set_ylabel("exact |λ|", labelpad=1, fontsize=9)
    axis.tick_params(labelsize=9, length=2.5)
