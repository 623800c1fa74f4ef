"""The space-adaptive learning rate on noisy quadratics, against every schedule of a grid.

The rule h = 2 (f(x) − f*)/E|g|² takes its learning rate from where the iterate is and not from how long it has run.
Here f(x) = ½ x'Ax, x* = 0, and an example is a quadratic ½ (x − a)'A(x − a) with a minimiser a of its own, so that
the minibatch gradient is Ax + e with isotropic Gaussian e of E|e|² = σ². (Were the minibatch loss f(x) + e'x, it would
be f* at x* for every minibatch, and tell a Polyak step where x* is.) The rule is given the exact f(x) − f* and E|g|²;
nothing of it is tuned. The others see the same noise, path by path: a constant rate, c/(k + k₀), Adam with both kinds
of rate and the stochastic Polyak step SPS+ of optax with f*, each at its best of a grid by the mean over the
checkpoints of the log error of these very paths, which is in their favour; and the certainty-equivalent rule, which
knows μ, L and |x₀ − x*|², measures the noise and has nothing to tune. Each step of each method costs one minibatch
gradient. The ratios drawn are stricter still: they are to the schedule that is best for this very k.

What to see: the rule stays below the proved bound, and on the isotropic quadratic above the one claimed in the talk,
from the first step on. There it ends at d/(d + 2) of the best schedule, since k E|x_k − x*|² μ²/σ² tends to that
number, and to 1 for the best schedule; at k = 1 the two are the same. With condition number 10 it is ahead from about
thirty steps on; before, some schedules of the grid are up to a quarter better, and Adam is for the first five steps.
SPS+, which puts minibatch losses into the same formula, stalls where the constant rate does: the 1/k is a property of
exact quantities. The certainty-equivalent rule, which needs none, ends within a hundredth of the best schedule, but
with condition number 10 it is up to 2.3 times as high on the way.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxopt_pde
from experiments import _run
from jaxopt_pde import problems

COLOURS = {  # Okabe & Ito
    "space-adaptive": "#d55e00",
    "tuned c/(k + k₀)": "#0072b2",
    "certainty-equivalent": "#009e73",
    "Adam": "#cc79a7",
    "constant rate": "#e69f00",
    "SPS+ of optax": "#56b4e9",
}
RULE, TUNED, CERTAIN, ADAM, CONSTANT, SPS = COLOURS


@dataclasses.dataclass(frozen=True)
class Config:
    """The quadratics, the paths and the grids."""

    seed: int = 0
    """Seeds the noise."""
    num_paths: int = 400
    """Paths of every method at every setting, with common noise."""
    num_steps: int = 5000
    """Steps of the comparison."""
    num_checkpoints: int = 40
    """Steps k at which errors are kept, from 1 to the last, equally far apart in log k."""
    dimension: int = 5
    """Dimension d of the comparison."""
    condition_numbers: tuple[float, ...] = (1.0, 10.0)
    """L/μ of the two quadratics, with eigenvalues equally far apart in log; μ = 1."""
    noise_variance: float = 4.0
    """σ² = E|e|² of the minibatch gradient, in [loss²/param²]."""
    initial_sq_distance: float = 4.0
    """|x₀ − x*|², in [param²]; x₀ has equal coordinates."""
    rates: tuple[float, ...] = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    """Grid of the constant rates, of Adam's, and of the largest step of SPS+, in [param²/loss]."""
    numerators: tuple[float, ...] = (0.5, 0.75, 1.0, 1.5, 2.0)
    """Grid of c, for plain steps and for Adam's; 1/μ is best for large k."""
    offsets: tuple[float, ...] = (2.0, 5.0, 10.0, 20.0, 50.0)
    """Grid of k₀, likewise; c = 1, k₀ = 2 is the best schedule of all on the isotropic quadratic."""
    dimensions: tuple[int, ...] = (1, 2, 5, 10)
    """Dimensions of the limits d/(d + 2)."""
    limit_paths: int = 2000
    """Paths for the limits."""
    limit_steps: int = 20000
    """Steps for the limits."""


SMOKE = Config(
    num_paths=100, num_steps=300, num_checkpoints=12, rates=(0.01, 0.1), numerators=(1.0, 1.5), offsets=(2.0, 10.0),
    dimensions=(1, 5), limit_paths=200, limit_steps=1000,
)  # fmt: skip


class Method(NamedTuple):
    """A method in the comparison.

    Attributes:
        make: setting [2] -> optax transformation.
        settings: [setting, 2]: learning rates are first/(k + second), constant where second is 0.
    """

    make: Callable
    settings: np.ndarray


def methods(config: Config, smoothness, example_minimum) -> dict[str, Method]:
    """The methods by name; ``example_minimum`` is f* of the loss whose minibatch values SPS+ sees."""
    one = np.zeros((1, 2))
    constant = np.stack([config.rates, np.zeros(len(config.rates))], axis=1)
    falling = np.array([(c, offset) for c in config.numerators for offset in config.offsets])

    def schedule(setting):
        return lambda count: jnp.where(setting[1] > 0, setting[0] / (count + setting[1]), setting[0])

    def certain(_):
        known = jaxopt_pde.scale_by_certainty_equivalent(1.0, smoothness, config.initial_sq_distance)
        return optax.chain(known, optax.scale(-1.0))

    def polyak(setting):
        return optax.polyak_sgd(setting[0], f_min=example_minimum, variant="sps+")

    return {
        RULE: Method(lambda _: jaxopt_pde.space_adaptive_sgd(max_learning_rate=1e6), one),
        TUNED: Method(lambda setting: optax.sgd(schedule(setting)), falling),
        CERTAIN: Method(certain, one),
        ADAM: Method(lambda setting: optax.adam(schedule(setting)), np.concatenate([constant, falling])),
        CONSTANT: Method(lambda setting: optax.sgd(setting[0]), constant),
        SPS: Method(polyak, constant),
    }


def checkpoints(num_steps: int, number: int) -> np.ndarray:
    """Step counts from 1 to ``num_steps``, equally far apart in log as far as whole numbers are."""
    return np.unique(np.geomspace(1, num_steps, number).round().astype(int))


def update(name: str, tx, eigenvalues, variance: float, carry, halves):
    """One step of one path; ``halves`` is the noise of the two examples of the minibatch [2, d]."""
    x, state = carry
    exact = eigenvalues * x
    parts = exact[None] + halves
    extra = {"microbatch_gradients": parts}
    if name == RULE:
        extra = {"value": 0.5 * x @ exact, "grad_sq_norm": jnp.sum(exact**2) + variance}
    elif name == SPS:
        own = x[None] + halves / eigenvalues[None]  # x − a
        extra = {"value": 0.5 * jnp.mean(jnp.sum(own * own * eigenvalues[None], axis=1))}
    tx = optax.with_extra_args_support(tx)
    updates, state = tx.update(parts.mean(axis=0), state, x, **extra)
    return optax.apply_updates(x, updates), state


def all_paths(config: Config, spectra: np.ndarray) -> dict[str, np.ndarray]:
    """|x_k − x*|² of every method, [problem, checkpoint, setting, path], by common noise."""
    d, variance, key = config.dimension, config.noise_variance, _run.key_for(config.seed, "comparison")
    start = jnp.full((config.num_paths, d), np.sqrt(config.initial_sq_distance / d), jnp.float32)
    steps = checkpoints(config.num_steps, config.num_checkpoints)
    begins = jnp.asarray(np.concatenate([[0], steps[:-1]])), jnp.asarray(steps)

    @jax.jit
    @jax.vmap
    def on_problem(eigenvalues):
        example_minimum = jnp.sum(variance / d / eigenvalues)  # ½ E e'A⁻¹e of one example
        compared = methods(config, eigenvalues[-1], example_minimum)
        settings = {name: jnp.asarray(method.settings, jnp.float32) for name, method in compared.items()}

        def begin(name):
            init = lambda setting: (start, jax.vmap(compared[name].make(setting).init)(start))
            return jax.vmap(init)(settings[name])

        def advance(index, carries):
            halves = jax.random.normal(jax.random.fold_in(key, index), (config.num_paths, 2, d))
            halves = np.sqrt(2 * variance / d) * halves

            def follow(name):
                one = lambda setting, carry, halves: update(
                    name, compared[name].make(setting), eigenvalues, variance, carry, halves
                )
                over_paths = jax.vmap(one, (None, 0, 0))
                return jax.vmap(over_paths, (0, 0, None))(settings[name], carries[name], halves)

            return {name: follow(name) for name in compared}

        def to_checkpoint(carries, bounds):
            carries = jax.lax.fori_loop(*bounds, advance, carries)
            return carries, {name: jnp.sum(x * x, axis=-1) for name, (x, _) in carries.items()}

        return jax.lax.scan(to_checkpoint, {name: begin(name) for name in compared}, begins)[1]

    return {name: np.asarray(array) for name, array in on_problem(jnp.asarray(spectra, jnp.float32)).items()}


def compare(config: Config) -> _run.Arrays:
    """Squared distances of every method at its best setting, [problem, method, checkpoint, path]."""
    spectra = np.array([np.geomspace(1, number, config.dimension) for number in config.condition_numbers])
    distances = all_paths(config, spectra)
    compared = methods(config, 1.0, 0.0)
    steps, found = checkpoints(config.num_steps, config.num_checkpoints), []
    for p, spectrum in enumerate(spectra):
        initial = np.full(config.dimension, np.sqrt(config.initial_sq_distance / config.dimension))
        problem = problems.noisy_quadratic(spectrum, noise_variance=config.noise_variance, initial=initial)
        means = {name: array[p].mean(axis=-1) for name, array in distances.items()}
        means = {name: np.where(np.isfinite(mean), mean, np.inf) for name, mean in means.items()}
        best = {name: np.log(mean).mean(axis=0).argmin() for name, mean in means.items()}
        envelope = means[TUNED].argmin(axis=1)
        found.append({
            "sq_distance": np.stack([distances[name][p, :, best[name]] for name in compared]),
            "setting": np.stack([compared[name].settings[best[name]] for name in compared]),
            "envelope_sq_distance": distances[TUNED][p, np.arange(len(steps)), envelope],
            "provable": np.asarray(problems.space_adaptive_bound(steps, **problem.rate_constants)),
            "claimed": np.asarray(problems.refuted_talk_bound(steps, **problem.rate_constants)),
        })  # fmt: skip
    return {name: np.stack([stage[name] for stage in found]) for name in found[0]}


def limits(config: Config) -> _run.Arrays:
    """The rule's k |x_k − x*|² μ²/σ² on isotropic quadratics [dimension, checkpoint, path], by common noise."""
    steps = checkpoints(config.limit_steps, config.num_checkpoints)
    dims, most = np.array(config.dimensions), max(config.dimensions)
    variance, key = config.noise_variance, _run.key_for(config.seed, "limits")
    size = (np.arange(most)[None] < dims[:, None]) * np.sqrt(variance / dims)[:, None]
    size = jnp.asarray(size, jnp.float32)[:, None]

    def advance(index, x):
        noise = jax.random.normal(jax.random.fold_in(key, index), (1, config.limit_paths, most)) * size
        squared = jnp.sum(x * x, axis=-1, keepdims=True)
        return x - problems.space_adaptive_rate(0.5 * squared, squared + variance) * (x + noise)

    @jax.jit
    def paths():
        def to_checkpoint(x, bounds):
            x = jax.lax.fori_loop(*bounds, advance, x)
            return x, jnp.sum(x * x, axis=-1)

        start = size * np.sqrt(config.initial_sq_distance / variance)
        start = jnp.broadcast_to(start, (len(dims), config.limit_paths, most))
        begins = np.concatenate([[0], steps[:-1]])
        return jax.lax.scan(to_checkpoint, start, (jnp.asarray(begins), jnp.asarray(steps)))[1]

    scaled = np.moveaxis(np.asarray(paths()), 0, 1) * steps[:, None] / variance
    return {
        "limit_steps": steps,
        "dimension": dims,
        "limit": np.array([problems.gaussian_noise_limit(d) for d in config.dimensions]),
        "scaled_mean": scaled.mean(axis=-1),
        "scaled_error": scaled.std(axis=-1, ddof=1) / np.sqrt(config.limit_paths),
    }


def run(config: Config, session: _run.Session = _run.NULL_SESSION) -> _run.Arrays:
    """The comparison on every quadratic [problem, method, checkpoint, path], and the limits."""
    with session.progress("space-adaptive rate", 2) as meter:
        compared = session.stage("comparison", lambda: compare(config))
        meter.advance()
        constants = session.stage("limits", lambda: limits(config))
        meter.advance()
    return {
        "method": np.array(list(COLOURS)),
        "steps": checkpoints(config.num_steps, config.num_checkpoints),
        "condition_number": np.array(config.condition_numbers),
        "comparison_dimension": np.array(config.dimension),
        **compared,
        **constants,
    }


def paired_ratio(above: np.ndarray, below: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ratio of the means over the last axis of paired samples, and the half-width of its 95 % interval."""
    mean = below.mean(axis=-1)
    ratio = above.mean(axis=-1) / mean
    residual = above - ratio[..., None] * below
    return ratio, 1.96 * residual.std(axis=-1, ddof=1) / mean / np.sqrt(below.shape[-1])


def ratios(results: _run.Arrays, problem: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """E|x_k − x*|² of a method over that of the best schedule of the grid for this very k, and its interval."""
    errors = results["sq_distance"][problem, list(results["method"]).index(name)]
    return paired_ratio(errors, results["envelope_sq_distance"][problem])


def _setting(pair) -> str:
    return f"{pair[0]:g}/(k + {pair[1]:g})" if pair[1] else f"{pair[0]:g}" if pair[0] else "none"


def table(results: _run.Arrays) -> tuple[list[str], list[list[str]]]:
    """Errors at the checkpoints, over those of the best schedule for each, with paired 95 % intervals; the limits."""
    headers = ["problem", "k", "best c/(k + k₀) for this k", "provable", "claimed"]
    headers += [*(f"{name}, ratio" for name in results["method"]), "space-adaptive over tuned"]
    rows, d = [], results["comparison_dimension"]
    wanted = np.unique(np.abs(np.log(results["steps"][:, None] / 10 ** np.arange(0, 5, 0.5))).argmin(axis=0))
    for p, number in enumerate(results["condition_number"]):
        compared = [ratios(results, p, name) for name in results["method"]]
        compared.append(paired_ratio(*results["sq_distance"][p, :2]))
        mean = results["envelope_sq_distance"][p].mean(axis=-1)
        what = f"d = {d}, L/μ = {number:g}"
        rows += [
            [what, f"{results['steps'][j]}"]
            + [f"{values[j]:.3g}" for values in (mean, results["provable"][p], results["claimed"][p])]
            + [f"{ratio[j]:.3g} ± {half[j]:.2g}" for ratio, half in compared]
            for j in wanted
        ]
        rows.append([what, "setting", "", "", "", *map(_setting, results["setting"][p]), ""])
    names = ("dimension", "limit", "scaled_mean", "scaled_error")
    for dimension, limit, mean, error in zip(*(results[name] for name in names), strict=True):
        distance = f"{(mean[-1] - limit) / error[-1]:+.1f} standard errors from d/(d + 2) = {limit:.3f}"
        found = f"{mean[-1]:.3f} ± {1.96 * error[-1]:.3f}, {distance}"
        what = f"k E|x_k − x*|² μ²/σ², d = {dimension}"
        rows.append([what, f"{results['limit_steps'][-1]}", "1", "1", "0.5", found, *[""] * 6])
    return headers, rows


def figure(results: _run.Arrays) -> plt.Figure:
    """Errors on both quadratics, ratios to the tuned schedule, and the limits."""
    fig, axes = plt.subplots(2, 2, figsize=(12.4, 9.0), layout="constrained")
    for problem, axis in enumerate(axes[0]):
        _errors(axis, results, problem)
    _ratios(axes[1, 0], results)
    _limits(axes[1, 1], results)
    for letter, axis in zip("abcd", axes.flat, strict=True):
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_title(rf"$\bf{{{letter}}}$   {axis.get_title()}", loc="left", fontsize=11)
        axis.set_title("")
    return fig


def _label(axis, places, x, fontsize=9.5) -> None:
    """Writes (y, text, colour) to the right of a log axis, moved apart where they would overlap."""
    low, high = np.log(axis.get_ylim()) if axis.get_yscale() == "log" else axis.get_ylim()
    gap = 0.047 * (high - low)
    ordered = sorted(places, key=lambda place: place[0])
    heights = np.array([np.log(y) if axis.get_yscale() == "log" else y for y, _, _ in ordered])
    for _ in range(200):
        for i in range(len(heights) - 1):
            short = gap - (heights[i + 1] - heights[i])
            if short > 0:
                heights[i] -= short / 2
                heights[i + 1] += short / 2
    for height, (_, text, colour) in zip(heights, ordered, strict=True):
        y = np.exp(height) if axis.get_yscale() == "log" else height
        axis.text(x, y, text, color=colour, va="center", fontsize=fontsize, clip_on=False)


def _errors(axis, results, problem) -> None:
    k, errors = results["steps"], results["sq_distance"][problem]
    places = []
    for name, colour, values in zip(results["method"], COLOURS.values(), errors, strict=True):
        mean, half = values.mean(axis=-1), 1.96 * values.std(axis=-1, ddof=1) / np.sqrt(values.shape[-1])
        axis.plot(k, mean, color=colour, lw=2.4 if name == RULE else 1.6, zorder=4 if name == RULE else 3)
        axis.fill_between(k, np.maximum(mean - half, mean / 5), mean + half, color=colour, alpha=0.2, lw=0)
        places.append((mean[-1], name, colour))
    axis.plot(k, errors[0, :, 0], color=COLOURS[RULE], lw=0.8, alpha=0.6)
    axis.plot(k, results["provable"][problem], color="black", lw=1.3, ls="--", zorder=5)
    axis.plot(k, results["claimed"][problem], color="#808080", lw=1.3, ls=(0, (2, 2)), zorder=5)
    places += [
        (results["provable"][problem][-1], "provable bound", "black"),
        (results["claimed"][problem][-1], "claimed bound", "#808080"),
    ]
    axis.set(xscale="log", yscale="log", xlim=(1, k[-1]), xlabel="steps $k$, one minibatch gradient each")
    axis.set(ylabel=r"$\mathrm{E}\,|x_k - x^*|^2$  [param²]")
    mean = errors.mean(axis=-1)
    axis.set_ylim(0.25 * mean.min(), 1.5 * mean.max())
    _label(axis, places, k[-1] * 1.06)
    kind = "isotropic" if results["condition_number"][problem] == 1 else "ill-conditioned"
    number = f"$L/μ = {results['condition_number'][problem]:g}$"
    axis.set_title(f"{kind}, {number}, $d = {results['comparison_dimension']}$ (thin: one path)")


def _ratios(axis, results) -> None:
    k, places = results["steps"], [(1.0, "best schedule", COLOURS[TUNED])]
    axis.axhline(1, color=COLOURS[TUNED], lw=1.6)
    for problem, number in enumerate(results["condition_number"]):
        for name in (RULE, CERTAIN, ADAM):
            ratio, half = ratios(results, problem, name)
            style = "-" if number == 1 else (0, (4, 1.5))
            axis.plot(k, ratio, color=COLOURS[name], lw=2, ls=style)
            axis.fill_between(k, ratio - half, ratio + half, color=COLOURS[name], alpha=0.15, lw=0)
            places.append((min(ratio[-1], 1.9), f"{name}, $L/μ = {number:g}$", COLOURS[name]))
    d = results["comparison_dimension"]
    axis.axhline(d / (d + 2), color="black", lw=1, ls=":")
    places.append((d / (d + 2), "$d/(d + 2)$", "black"))
    axis.set(xscale="log", xlim=(1, k[-1]), ylim=(0.5, 2), xlabel="steps $k$")
    axis.set(ylabel="error over that of the best schedule for this $k$")
    _label(axis, places, k[-1] * 1.06)
    axis.set_title("paired ratios with 95 % bands")


def _limits(axis, results) -> None:
    k, places = results["limit_steps"], []
    shades = plt.cm.viridis(np.linspace(0, 0.8, len(results["dimension"])))
    for d, limit, mean, error, colour in zip(
        results["dimension"], results["limit"], results["scaled_mean"], results["scaled_error"], shades,
        strict=True,
    ):  # fmt: skip
        axis.plot(k, mean, color=colour, lw=2)
        axis.fill_between(k, mean - 1.96 * error, mean + 1.96 * error, color=colour, alpha=0.25, lw=0)
        axis.axhline(limit, color=colour, lw=1, ls="--")
        places.append((limit, f"$d = {d}$: ${limit:.3f}$", colour))
    axis.axhline(1, color="black", lw=1.3, ls="--")
    axis.axhline(0.5, color="#808080", lw=1.3, ls=(0, (2, 2)))
    axis.set(xscale="log", xlim=(1, k[-1]), ylim=(0, 1.05), xlabel="steps $k$")
    axis.set(ylabel=r"$k\,\mathrm{E}\,|x_k - x^*|^2\,μ^2/σ^2$")
    places += [(1.0, "provable", "black"), (0.499, "claimed", "#808080")]
    _label(axis, places, k[-1] * 1.06)
    axis.set_title("limits on isotropic quadratics: $d/(d + 2)$")
