"""The constant in the rate of the space-adaptive rule: proved, claimed, and measured.

For a μ-strongly convex, L-smooth loss and gradient noise of variance σ², SGD with h = 2 (f(x) − f*)/E|g|² has
E|x_k − x*|² ≤ 1/(αk + 1/q₀), q₀ = |x₀ − x*|². The talk that proposed the rule claims this with
α = μ/(σ²/(2μ) + (L − μ) q₀). What can be proved is α = μ/(σ²/μ + (L − μ) q₀), without the 2, and on isotropic
quadratics there is no better one: a single step there gives 1/q₁ = 1/q₀ + μ²/σ² exactly, and no other learning rate
gives more. Here both are held against quadratics over a grid of μ, L, σ, q₀ and the dimension, with three laws of the
noise and two directions of x₀. E|x_k − x*|² is the mean over paths less a control variate, the sum over the steps of
|x⁺|² minus its conditional expectation, which is known; so the first step is exact. The measured α is the largest for
which the bound holds at all steps, min_k (1/q_k − 1/q₀)/k. Within a dimension all configurations share their noise, so
their z-scores are not independent.

What to see: no configuration is below the proved constant by more than the error of the Monte Carlo estimate, and at
L = μ all measured constants are the proved one. There the claim fails at the first step in every configuration, and
with tangential noise, or Gaussian noise from dimension 3 on, still at the last. Otherwise it fails where σ²/μ² is
many times (L/μ − 1) q₀, from L/μ = 3 on only if x₀ lies along the least curvature. Where the term with L − μ dominates,
both constants are nearly the same and the rule is far better than either.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments import _run
from jaxopt_pde import problems

LAWS = ("gaussian", "radial", "tangential")
BLUE, RED = "#0072b2", "#d55e00"  # Okabe & Ito


@dataclasses.dataclass(frozen=True)
class Config:
    """The grid, and how many paths and steps."""

    seed: int = 0
    """Seeds the noise."""
    strong_convexities: tuple[float, ...] = (0.5, 2.0)
    """μ, in [loss/param²]."""
    condition_numbers: tuple[float, ...] = (1.0, 1.2, 3.0, 10.0)
    """L/μ; eigenvalues are equally far apart in log from μ to L. Only 1 in one dimension."""
    noises: tuple[float, ...] = (0.5, 2.0, 8.0)
    """σ, the root of E|e|², in [loss/param]."""
    initial_sq_distances: tuple[float, ...] = (0.25, 4.0)
    """q₀ = |x₀ − x*|², in [param²]."""
    dimensions: tuple[int, ...] = (1, 2, 5, 20)
    """Dimension d."""
    num_paths: int = 500
    """Paths of every configuration."""
    num_steps: int = 300
    """Steps k of every path."""
    critical: float = 4.0
    """Standard errors beyond which a bound counts as violated."""


SMOKE = Config(
    strong_convexities=(0.5,),
    condition_numbers=(1.0, 3.0),
    noises=(0.5, 2.0),
    dimensions=(2, 5),
    num_paths=200,
    num_steps=60,
)


def configurations(config: Config, dimension: int) -> dict[str, np.ndarray]:
    """The grid in one dimension as columns; "flat" says that x₀ is along the least curvature, not the diagonal."""
    rows = [
        (mu, number * mu, sigma, q, law, flat)
        for mu, number, sigma, q, law, flat in itertools.product(
            config.strong_convexities,
            config.condition_numbers if dimension > 1 else (1.0,),
            config.noises,
            config.initial_sq_distances,
            range(len(LAWS)) if dimension > 1 else range(1),
            (False, True),
        )
        if not (flat and number == 1)  # no direction is special
    ]
    names = ("strong_convexity", "smoothness", "noise", "initial_sq_distance", "law", "flat")
    columns = dict(zip(names, map(np.array, zip(*rows, strict=True)), strict=True))
    return columns | {"dimension": np.full(len(rows), dimension)}


def controlled(values, control):
    """Mean over the paths and its standard error, by a control variate of mean 0, [configuration, path]."""
    centred = control - jnp.mean(control, axis=1, keepdims=True)
    power = jnp.sum(centred**2, axis=1, keepdims=True)
    slope = jnp.sum(centred * values, axis=1, keepdims=True) / jnp.where(power > 0, power, 1.0)
    left = values - slope * control
    return jnp.mean(left, axis=1), jnp.std(left, axis=1, ddof=2) / np.sqrt(values.shape[1])


def measure(config: Config, dimension: int) -> _run.Arrays:
    """Means and standard errors of |x_k − x*|² in one dimension, [configuration, step]."""
    columns = configurations(config, dimension)
    shares = np.linspace(0, 1, dimension)[None]
    number = (columns["smoothness"] / columns["strong_convexity"])[:, None]
    spectra = columns["strong_convexity"][:, None] * number**shares
    direction = np.where(columns["flat"][:, None], np.eye(dimension)[:1], dimension**-0.5)
    start = np.sqrt(columns["initial_sq_distance"])[:, None] * direction
    law = columns["law"][:, None, None]
    key = _run.key_for(config.seed, "noise", dimension)

    @jax.jit
    def paths():
        eigenvalues, sigma = jnp.asarray(spectra)[:, None], jnp.asarray(columns["noise"])[:, None, None]

        def step(carry, index):
            x, surprise = carry
            drawn = jax.random.normal(
                jax.random.fold_in(key, index), (1, config.num_paths, dimension), jnp.float32
            )
            drawn = drawn.astype(x.dtype)
            noise = drawn / np.sqrt(dimension)
            if dimension > 1:
                squared = jnp.sum(x * x, axis=-1, keepdims=True)
                u = x / jnp.sqrt(jnp.where(squared > 0, squared, 1.0))
                across = drawn - jnp.sum(drawn * u, axis=-1, keepdims=True) * u
                across = across / jnp.linalg.norm(across, axis=-1, keepdims=True)
                noise = jnp.where(law == 1, jnp.sign(drawn[..., :1]) * u, jnp.where(law == 2, across, noise))
            gradient = eigenvalues * x
            excess = 0.5 * jnp.sum(gradient * x, axis=-1, keepdims=True)
            expected = jnp.sum(gradient**2, axis=-1, keepdims=True) + sigma**2
            h = problems.space_adaptive_rate(excess, expected)
            following = x - h * (gradient + sigma * noise)
            squared = jnp.sum(following**2, axis=-1)
            foreseen = jnp.sum(x * x, axis=-1) - (2 * h * excess)[..., 0]  # E of |x⁺|², exactly, as g·x = 2F
            surprise = surprise + squared - foreseen
            return (following, surprise), controlled(squared, surprise)

        begin = jnp.broadcast_to(jnp.asarray(start)[:, None], (len(start), config.num_paths, dimension))
        return jax.lax.scan(step, (begin, jnp.zeros(begin.shape[:2])), jnp.arange(config.num_steps))[1]

    mean, error = (np.asarray(array).T for array in paths())
    k = np.arange(1, config.num_steps + 1)
    bounds = {"provable": problems.space_adaptive_constant, "claimed": problems.refuted_talk_constant}
    constants = {
        name: np.array([float(rule(**rate_constants(columns, i))) for i in range(len(start))])
        for name, rule in bounds.items()
    }
    # The first step is known exactly, and all steps under tangential noise; what is left there is rounding
    rounded = np.sqrt(error**2 + (1e-10 * mean) ** 2)
    first = 1 / columns["initial_sq_distance"]
    inverses = {name: constant[:, None] * k[None] + first[:, None] for name, constant in constants.items()}
    found = {
        "measured": ((1 / mean - first[:, None]) / k[None]).min(axis=1),
        "over_claim": (mean * inverses["claimed"]).max(axis=1),
        **{
            f"{name}_sure": (mean - config.critical * rounded) * inverse for name, inverse in inverses.items()
        },
        **{f"{name}_score": (mean - 1 / inverse) / rounded for name, inverse in inverses.items()},
    }
    return columns | constants | found


def rate_constants(columns: _run.Arrays, index: int) -> dict[str, float]:
    """The arguments of the bounds for one configuration."""
    names = ("strong_convexity", "smoothness", "initial_sq_distance")
    variance = float(columns["noise"][index] ** 2)
    return {name: float(columns[name][index]) for name in names} | {"noise_variance": variance}


def one_step(config: Config) -> _run.Arrays:
    """The exact E|x₁ − x*|² against h on f = ½μ|x|² with μ = 1, σ² = q₀ = 4, and what is proved and claimed of it."""
    known = {
        "strong_convexity": 1.0, "smoothness": 1.0, "noise_variance": 4.0, "initial_sq_distance": 4.0,
    }  # fmt: skip
    h = np.linspace(0, 1, 201)
    return {
        "rate": h,
        "one_step": (1 - h) ** 2 * 4.0 + h**2 * 4.0,
        "rule_rate": np.asarray(problems.space_adaptive_rate(0.5 * 4.0, 4.0 + 4.0)),
        "one_step_provable": np.asarray(problems.space_adaptive_bound(1, **known)),
        "one_step_claimed": np.asarray(problems.refuted_talk_bound(1, **known)),
    }


def run(config: Config, session: _run.Session = _run.NULL_SESSION) -> _run.Arrays:
    """Constants and z-scores of all configurations, and the counterexample, in float64."""
    found = []
    with jax.enable_x64(True), session.progress("rate constants", len(config.dimensions)) as meter:
        for dimension in config.dimensions:
            stage = session.stage(f"dimension {dimension}", lambda d=dimension: measure(config, d))
            found.append(stage)
            meter.advance()
        example = one_step(config)
    joined = {name: np.concatenate([stage[name] for stage in found]) for name in found[0]}
    settings = {"num_paths": np.array(config.num_paths), "critical": np.array(config.critical)}
    return joined | example | settings


def violated(results: _run.Arrays) -> np.ndarray:
    """Which configurations violate the claim at some step."""
    return results["claimed_score"].max(axis=1) > results["critical"]


def _row(name: str, results: _run.Arrays, chosen: np.ndarray) -> list[str]:
    over = results["measured"][chosen] / results["provable"][chosen]
    claim = results["claimed"][chosen] / results["provable"][chosen]
    early = results["claimed_score"][chosen][:, 0] > results["critical"]
    late = results["claimed_score"][chosen][:, -1] > results["critical"]
    bad = violated(results)[chosen]
    share = lambda mask: f"{mask.sum()} ({100 * mask.mean():.0f} %)"
    return [
        name, f"{chosen.sum()}", f"{over.min():.3f} to {over.max():.3g}", f"{claim.min():.3f} to {claim.max():.3f}",
        f"{results['provable_score'][chosen].max():+.2f}", share(bad), share(early), share(late),
        f"{results['over_claim'][chosen & violated(results)].max(initial=0):.3f}",
    ]  # fmt: skip


def table(results: _run.Arrays) -> tuple[list[str], list[list[str]]]:
    """Constants and violations by part of the grid, and the exact counterexample."""
    limit = f"{results['critical']:g} s.e."
    headers = ["configurations", "number", "measured α / proved", "claimed α / proved", "largest z, proved"]
    headers += [f"claim violated by > {limit}", "at k = 1", "at the last k", "largest q_k / claimed bound"]
    number = results["smoothness"] / results["strong_convexity"]
    parts = {"all": np.ones(len(number), bool)}
    parts |= {f"L/μ = {value:g}": np.isclose(number, value) for value in np.unique(number.round(6))}
    parts |= {f"d = {value}": results["dimension"] == value for value in np.unique(results["dimension"])}
    parts |= {f"{law} noise": results["law"] == i for i, law in enumerate(LAWS)}
    rows = [_row(name, results, chosen) for name, chosen in parts.items() if chosen.any()]
    least, claimed = results["one_step"].min(), float(results["one_step_claimed"])
    rows.append([
        "one exact step, L = μ = 1, σ² = q₀ = 4", f"h = {results['rule_rate']:g}", f"q₁ = {least:g}",
        f"claimed q₁ ≤ {claimed:.4f}", f"proved q₁ ≤ {results['one_step_provable']:g}", "", "", "",
        f"{least / claimed:.3f}",
    ])  # fmt: skip
    return headers, rows


def figure(results: _run.Arrays) -> plt.Figure:
    """The counterexample, measured against proved and claimed constants, and the worst violations at each step."""
    fig, axes = plt.subplots(1, 3, figsize=(14.4, 4.9), layout="constrained", width_ratios=(1, 1.25, 1))
    _example(axes[0], results)
    _constants(axes[1], results)
    _over_steps(axes[2], results)
    titles = (
        "one step, exactly: $f = ½|x|^2$, $σ^2 = q_0 = 4$",
        "the constant of the rate",
        "the worst configuration at each step",
    )
    for letter, axis, title in zip("abc", axes, titles, strict=True):
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_title(rf"$\bf{{{letter}}}$   {title}", loc="left", fontsize=11)
    return fig


def _example(axis, results) -> None:
    h, least = results["rate"], results["one_step"].min()
    claimed = float(results["one_step_claimed"])
    axis.fill_between(h, 0, claimed, color=RED, alpha=0.12, lw=0)
    axis.plot(h, results["one_step"], color=BLUE, lw=2.4)
    axis.axhline(least, color="black", ls="--", lw=1.2)
    axis.axhline(claimed, color=RED, ls="--", lw=1.2)
    axis.plot(results["rule_rate"], least, "o", color=BLUE, ms=8, zorder=4)
    axis.text(0.5, least + 0.35, "the rule's $h$,\nbest of all", color=BLUE, ha="center")
    axis.text(0.02, least - 0.08, "proved", color="black", va="top")
    axis.text(0.02, claimed - 0.08, "claimed", color=RED, va="top")
    axis.text(0.5, 0.45 * claimed, "no learning rate gets here", color=RED, ha="center")
    axis.set(xlabel="learning rate $h$  [param²/loss]", ylabel=r"$q_1 = \mathrm{E}\,|x_1 - x^*|^2$  [param²]")
    axis.set(xlim=(0, 1), ylim=(0, 4))


def _constants(axis, results) -> None:
    claim = results["claimed"] / results["provable"]
    measured = results["measured"] / results["provable"]
    bad = violated(results)
    for chosen, colour in ((~bad, BLUE), (bad, RED)):
        axis.scatter(claim[chosen], measured[chosen], s=22, color=colour, alpha=0.45, lw=0, zorder=3)
    line = np.linspace(1, 2, 50)
    axis.plot(line, line, color=RED, ls="--", lw=1.3)
    axis.axhline(1, color="black", ls="--", lw=1.3)
    axis.set(xlim=(0.97, 2.03), xlabel="claimed α / proved α", ylabel="measured α / proved α")
    axis.set(yscale="log", ylim=(0.6, 2 * measured.max()))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.text(1.0, 0.94, "proved", va="top")
    axis.text(1.2, 1.3, "claimed", color=RED, ha="center", va="bottom")
    beyond = (results["provable_score"].max(axis=1) > results["critical"]).sum()
    lines = (f"of {len(bad)} configurations", "black"), (f"below the claim: {bad.sum()}", RED)
    for i, (text, colour) in enumerate((*lines, (f"below the proved constant: {beyond}", "black"))):
        axis.text(0.98, 0.94 - 0.06 * i, text, transform=axis.transAxes, color=colour, ha="right")


def _over_steps(axis, results) -> None:
    number = (results["smoothness"] / results["strong_convexity"]).round(6)
    k, values = np.arange(1, results["claimed_sure"].shape[1] + 1), np.unique(number)
    for value, strength in zip(values, np.linspace(1, 0.4, len(values)), strict=True):
        for name, colour in (("provable", "black"), ("claimed", RED)):
            largest = results[f"{name}_sure"][number == value].max(axis=0)
            axis.plot(k, largest, color=colour, lw=2, alpha=strength)
            if name == "claimed":
                axis.text(k[-1] * 1.05, largest[-1], f"$L/μ = {value:g}$", color=RED, va="center")
    axis.axhline(1, color="black", lw=1, ls="--")
    axis.set(xscale="log", xlim=(1, k[-1]), ylim=(0.6, 2.1), xlabel="steps $k$")
    axis.set_ylabel(f"largest $(q_k - {results['critical']:g}$ standard errors$)$ / bound")
    axis.text(0.05, 0.87, "over the claimed bound", color=RED, transform=axis.transAxes)
    axis.text(0.05, 0.12, "over the proved bound, darkest at $L = μ$", transform=axis.transAxes)
