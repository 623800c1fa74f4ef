"""What a control gains: both sides of the expected-improvement identity of controlled SGD, in 1 to 100 dimensions.

Controlled SGD adds −α ds to dx = −∇f ds + √T dW, with α = ∇u the control of least cost E[V(x(S)) + ½∫|α|² ds]. The
identity says what that gains: E V(sgd) − E V(csgd) = ½E∫|α(csgd)|² ds + ½E∫|α(sgd)|² ds, the energy spent and as much
again as the same control would have spent along plain SGD. The known inequality has the first half alone. Both sides
are measured here with paths made by controlled_sgd itself, for all four ways to a control: a grid, Riccati's closed
form, path integrals estimated anew at every step, and a trained network.

Both processes have the same noise, and from V(x(S)) on each path the martingale √T ∫α·dW is taken, whose mean is zero
whatever α is. Little chance is left then, so that the bias of the Euler step shows; two steps h and h/2 extrapolate it
away. A rollout of a path integral has as many Euler steps as the descent in all, and a network is trained with as many,
so that their bias goes too. The energy of an estimated control is counted less the variance of the estimate.

What to see: the two halves fill the improvement to a percent or better, also in 100 dimensions. Half the control and
twice the control satisfy the inequality too (twice only just, in double wells), and fail the identity by a quarter of
the improvement or more. The reason is in the panel on scales: the slack of the inequality is the gain in total cost
over no control at all, which is highest at the optimal control and positive for every control better than none. E V
alone goes on falling for controls too strong.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments import _controlled_paths, _run
from experiments._controlled_paths import HORIZON

COLOURS = {"grid": "#0072b2", "Riccati": "#009e73", "path integral": "#d55e00", "learned": "#cc79a7"}
GREY, SKY = "#808080", "#56b4e9"
SCALES = (0.5, 2.0, -1.0)
LIMIT = 1.96


@dataclasses.dataclass(frozen=True)
class Config:
    """The problems, all with horizon 1, and the sizes of the samples."""

    seed: int = 0
    """Seeds everything."""
    temperature: float = 0.5
    """T, in [loss]."""
    grid_dimensions: tuple[int, ...] = (1, 2)
    """Dimensions of the losses solved on a grid, 1 or 2."""
    grid_points: tuple[int, ...] = (301, 97)
    """Points along an axis, for each."""
    riccati_dimensions: tuple[int, ...] = (2, 10, 30, 100)
    """Dimensions of the quadratic losses; the first is also shown for a range of scales."""
    sampled_dimensions: tuple[int, ...] = (1, 10, 100)
    """Dimensions of the chains of wells steered by path integrals."""
    rollouts: tuple[int, ...] = (64, 64, 32)
    """Rollouts of an estimate, for each."""
    value_rollouts: int = 65_536
    """Rollouts for the value at the start."""
    guided_dimensions: tuple[int, ...] = (100,)
    """Dimensions with a terminal cost too large for free rollouts, guided by a quadratic model."""
    guided_rollouts: int = 32
    """Rollouts of a guided estimate."""
    guided_paths: int = 96
    """Paths where guided."""
    learned_dimensions: tuple[int, ...] = (10,)
    """Dimensions of the chains of wells with a trained value function."""
    updates: int = 1000
    """Adam's updates of the network, each with 64 paths."""
    steps: tuple[int, int] = (50, 100)
    """Euler steps to the horizon; the second is twice the first."""
    grid_steps: tuple[int, int] = (100, 200)
    """The same on grids, where the losses are steeper."""
    sampled_steps: tuple[int, int] = (20, 40)
    """The same for path integrals, and the steps of a rollout; and for the networks, and the steps they train on."""
    paths: int = 10_000
    """Paths on grids, with the network, and by Riccati in ten dimensions or fewer; a fifth in more, and four times as
    many for the double well on the line, which gains least."""
    sampled_paths: tuple[int, ...] = (1000, 240, 48)
    """Paths under path integrals in each of their dimensions."""
    curve: tuple[float, ...] = (-1.0, -0.5, 0.0, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5)
    """Scales of the control that are measured in the first of ``riccati_dimensions``."""


SMOKE = Config(
    grid_dimensions=(),
    grid_points=(),
    riccati_dimensions=(2,),
    sampled_dimensions=(),
    rollouts=(),
    guided_dimensions=(),
    learned_dimensions=(),
    steps=(20, 40),
    grid_steps=(20, 40),
    sampled_steps=(5, 10),
    paths=1000,
    sampled_paths=(),
    curve=(-1.0, 0.0, 0.5, 1.0, 2.0),
)


def measure(
    config: Config, case: _controlled_paths.Case, curve: tuple[float, ...] = ()
) -> dict[str, np.ndarray]:
    """Both sides at both steps, [level, 2]; the scaled controls at the first, [scale, 2]; the curve at the second."""
    run = jax.jit(functools.partial(_controlled_paths.simulate, case), static_argnums=0)
    results, found = {}, []
    one = case.controls[0] is case.controls[1]  # and one program for both
    for level, steps in enumerate(case.steps):
        scales = (1.0, *SCALES, *curve) if level == 0 or one else (1.0,)
        keys = jax.random.split(_run.key_for(config.seed, case.label, steps), case.paths)
        paths = run(0 if one else level, jnp.array([0.0, *scales]), HORIZON / steps, steps, keys)
        found.append(_controlled_paths.both_sides(paths, scales))
    for name in found[0]:
        results[name] = np.stack([side[name][:, 0] for side in found])
    for name in ("residual", "slack", "improvement"):
        results[f"scaled_{name}"] = found[0][name][:, 1 : 1 + len(SCALES)].T
        if curve:
            results[f"curve_{name}"] = found[1][name][:, 1 + len(SCALES) :]
    return results | {
        "value": case.value,
        "steps": np.array(case.steps),
        "gradients": np.array(case.gradients),
        "paths": np.array(case.paths),
        "method": np.array(case.method),
        "label": np.array(case.label),
    }


def exact_curve(config: Config) -> dict[str, np.ndarray]:
    """The Riccati control of the first dimension times a range of scales, from exact moments, over the identity's."""
    scale = np.linspace(min(config.curve), max(config.curve), 71)
    energy = _controlled_paths.squared_controls(
        config, config.riccati_dimensions[0], np.concatenate([[0.0], scale])
    )
    plain, energy = energy[0], energy[1:]
    return {
        "exact_scale": scale,
        "exact_improvement": plain / 2 + (scale - 0.5) * energy,
        "exact_slack": plain / 2 - (1 - scale) ** 2 * energy / 2,
        "exact_residual": (1 - scale**2) * plain / 2 - (1 - scale) ** 2 * energy / 2,
    }


def run(config: Config, session: _run.Session = _run.NULL_SESSION) -> _run.Arrays:
    """All cases [case, ...], and the curve over scales."""
    makers = {f"grid {d}": functools.partial(_controlled_paths.on_grid, config, d, n)
              for d, n in zip(config.grid_dimensions, config.grid_points, strict=True)}  # fmt: skip
    for d in config.riccati_dimensions:
        makers[f"Riccati {d}"] = functools.partial(_controlled_paths.by_riccati, config, d)
    sampled = (config.sampled_dimensions, config.rollouts, config.sampled_paths)
    by_path_integral = _controlled_paths.by_path_integral
    for sizes in zip(*sampled, strict=True):
        makers[f"path integral {sizes[0]}"] = functools.partial(by_path_integral, config, *sizes, False)
    for d in config.guided_dimensions:
        sizes = (d, config.guided_rollouts, config.guided_paths)
        makers[f"guided {d}"] = functools.partial(by_path_integral, config, *sizes, True)
    for d in config.learned_dimensions:
        makers[f"learned {d}"] = functools.partial(_controlled_paths.by_training, config, d)
    found, shown = [], f"Riccati {config.riccati_dimensions[0]}"
    with session.progress("improvement", len(makers) + 1) as meter:
        for name, make in makers.items():
            scales = config.curve if name == shown else ()
            found.append(session.stage(name, lambda: measure(config, make(), scales)))  # noqa: B023
            meter.advance()
        curve = session.stage("curve", lambda: exact_curve(config))
        meter.advance()
    names = [name for name in found[0] if not name.startswith("curve_")]
    results = {name: np.stack([stage[name] for stage in found]) for name in names} | curve
    (measured,) = (stage for stage in found if "curve_slack" in stage)
    curves = {name: array for name, array in measured.items() if name.startswith("curve_")}
    return results | curves | {"curve_scale": np.array(config.curve)}


def extrapolated(coarse: np.ndarray, fine: np.ndarray) -> np.ndarray:
    """2·fine − coarse for means [..., 2] from independent paths, with its standard error."""
    mean = 2 * fine[..., 0] - coarse[..., 0]
    return np.stack([mean, np.hypot(2 * fine[..., 1], coarse[..., 1])], axis=-1)


def checks(results: _run.Arrays) -> dict[str, np.ndarray]:
    """Means and errors over the improvement, [case, 2]: residuals at both steps and extrapolated; cost − u."""
    unit = results["improvement"][:, 1, :1]
    excess = results["cost"] - results["value"] * np.array([1, 0])
    excess[..., 1] = np.hypot(results["cost"][..., 1], results["value"][..., 1])
    return {
        "coarse": results["residual"][:, 0] / unit,
        "fine": results["residual"][:, 1] / unit,
        "extrapolated": extrapolated(results["residual"][:, 0], results["residual"][:, 1]) / unit,
        "cost": extrapolated(excess[:, 0], excess[:, 1]) / unit,
    }


def _interval(pair, percent: bool = False) -> str:
    mean, half = pair[0], LIMIT * pair[1]
    if percent:
        return f"{100 * mean:+.2f} ± {100 * half:.2f} %"
    digits = max(0, 1 - int(np.floor(np.log10(max(half, 1e-12)))))
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def table(results: _run.Arrays) -> tuple[list[str], list[list[str]]]:
    """All means with 95 % intervals; residuals and slacks in percent of E V(sgd) − E V(csgd)."""
    headers = ["control", "paths", "steps", "gradients a path"]
    headers += ["E V(sgd) − E V(csgd)", "½E∫|α(csgd)|²", "½E∫|α(sgd)|²"]
    headers += ["residual, h", "residual, h/2", "residual, extrapolated", "cost − u, extrapolated"]
    headers += [f"{what}, {scale:g}α" for what in ("residual", "slack of the inequality") for scale in SCALES]
    headers += ["effective sample size", "without the martingale: residual, h/2"]
    rows, found = [], checks(results)
    for i, label in enumerate(results["label"]):
        unit, fine = results["improvement"][i, 1, 0], lambda name, i=i: results[name][i, 1]
        size = results["sample_size"][i, 1, 0]
        rows.append(
            [str(label), str(results["paths"][i]), "{} and {}".format(*results["steps"][i])]
            + [f"{results['gradients'][i, 1]:,}"]
            + [_interval(fine(name)) for name in ("improvement", "spent", "shadow")]
            + [_interval(found[name][i], percent=True) for name in found]
            + [_interval(pair / unit, percent=True) for pair in results["scaled_residual"][i]]
            + [_interval(pair / unit, percent=True) for pair in results["scaled_slack"][i]]
            + [f"{size:.0f}" if size else "", _interval(fine("plain_residual") / unit, percent=True)]
        )
    return headers, rows


def figure(results: _run.Arrays) -> plt.Figure:
    """The two halves of the improvement, what is left of the identity, scaled controls, and the cost against u."""
    fig, axes = plt.subplots(2, 2, figsize=(12.6, 8.6), layout="constrained", width_ratios=(1.15, 1))
    _halves(axes[0, 0], results)
    _residuals(axes[0, 1], results)
    _scales(axes[1, 0], results)
    _costs(axes[1, 1], results)
    for letter, axis in zip("abcd", axes.flat, strict=True):
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_title(rf"$\bf{{{letter}}}$   {axis.get_title()}", loc="left", fontsize=11)
        axis.set_title("")
    return fig


def _rows(axis, results, named: bool) -> np.ndarray:
    """Places of the cases from the top, their names as ticks."""
    places = np.arange(len(results["label"]))[::-1]
    axis.set(yticks=places, ylim=(-0.7, len(places) - 0.3))
    axis.set_yticklabels(results["label"] if named else [], fontsize=9.5)
    axis.tick_params(axis="y", length=0)
    for tick, method in zip(axis.get_yticklabels(), results["method"], strict=True):
        tick.set_color(COLOURS[str(method)])
    return places


def _halves(axis, results) -> None:
    places = _rows(axis, results, named=True)
    both = [extrapolated(results[name][:, 0], results[name][:, 1])[:, 0] for name in ("spent", "shadow")]
    unit = extrapolated(results["improvement"][:, 0], results["improvement"][:, 1])
    spent, shadow = (half / unit[:, 0] for half in both)
    colours = [COLOURS[str(method)] for method in results["method"]]
    axis.barh(places, spent, height=0.66, color=colours)
    axis.barh(places, shadow, left=spent, height=0.66, color=colours, alpha=0.45)
    axis.axvline(1, color="black", lw=1.3)
    half = LIMIT * checks(results)["extrapolated"][:, 1]
    axis.errorbar(spent + shadow, places, xerr=half, fmt="none", ecolor="black", capsize=3, lw=1.4)
    for place, mean in zip(places, unit[:, 0], strict=True):
        axis.text(1.03, place, f"{mean:#.3g}", va="center", fontsize=9)
    top = places[0] + 0.52
    style = {"ha": "center", "va": "bottom", "fontsize": 9.5}
    axis.text(spent[0] / 2, top, r"$\frac{1}{2}\mathrm{E}\!\int|α(x_{\rm csgd})|^2$: the inequality", **style)
    axis.text(spent[0] + shadow[0] / 2, top, r"$\frac{1}{2}\mathrm{E}\!\int|α(x_{\rm sgd})|^2$", **style)
    axis.text(1.03, top, "[loss]", ha="left", va="bottom", fontsize=9)
    axis.set(xlim=(0, 1.15), ylim=(-0.7, top + 0.45))
    axis.set(xlabel=r"share of $\mathrm{E}\,V(x_{\rm sgd}) - \mathrm{E}\,V(x_{\rm csgd})$")
    axis.set_title("the two halves fill the improvement")


def _residuals(axis, results) -> None:
    places, found = _rows(axis, results, named=False), checks(results)
    axis.axvline(0, color="black", lw=1.3)
    for name, offset in (("coarse", 0.2), ("fine", 0.0), ("extrapolated", -0.2)):
        for place, pair, method in zip(places, 100 * found[name], results["method"], strict=True):
            colour = COLOURS[str(method)] if name != "extrapolated" else "black"
            axis.errorbar(
                pair[0], place + offset, xerr=LIMIT * pair[1], color=colour, capsize=2, lw=1.3, ms=5,
                fmt="D" if name == "extrapolated" else "o", mfc="white" if name == "coarse" else colour,
            )  # fmt: skip
    axis.set(xlabel="left side less right side  [% of the improvement]")
    axis.set_title("step $h$ (open), $h/2$ (filled), extrapolated (black)")


def _scales(axis, results) -> None:
    unit = np.interp(1.0, results["exact_scale"], results["exact_improvement"])
    named = {
        "improvement": (GREY, r"$\mathrm{E}\,V$: improvement"),
        "slack": (SKY, "total cost: gain\n= slack of the\ninequality"),
        "residual": (COLOURS["path integral"], "residual of\nthe identity"),
    }
    axis.axhline(0, color="black", lw=0.8)
    axis.axvline(1, color="black", lw=0.8, ls=":")
    scale, exact = results["curve_scale"], results["exact_scale"]
    low = -1.6
    passing = exact[results["exact_slack"] > 0]
    axis.axvspan(passing[0], passing[-1], color=SKY, alpha=0.12, lw=0)
    for name, (colour, text) in named.items():
        axis.plot(exact, results[f"exact_{name}"] / unit, color=colour, lw=2)
        mean, error = results[f"curve_{name}"] / unit
        axis.errorbar(scale, mean, yerr=LIMIT * error, fmt="o", ms=5, color=colour, capsize=2)
        last = results[f"exact_{name}"][-1] / unit
        place = (1.72, -1.05) if name == "residual" else (exact[-1] + 0.08, last)
        axis.text(*place, text, color=colour, va="center", fontsize=9.5, clip_on=False)
    style = {"color": "#2a7fb0", "ha": "right", "va": "top", "fontsize": 9.5}
    axis.text(passing[-1] - 0.05, 1.94, "shaded: the inequality holds", **style)
    axis.set(xlim=(exact[0], exact[-1]), ylim=(low, 2.0), xlabel=r"scale $κ$ of the control, $κ\,α$")
    axis.set(ylabel=r"over $\mathrm{E}\,V(x_{\rm sgd}) - \mathrm{E}\,V(x_{\rm csgd})$ at $κ = 1$")
    axis.set_title(
        f"too weak, too strong, wrong sign ({results['label'][list(results['method']).index('Riccati')]})"
    )


def _costs(axis, results) -> None:
    places, found = _rows(axis, results, named=False), checks(results)["cost"]
    axis.axvline(0, color="black", lw=1.3)
    for place, pair, method in zip(places, 100 * found, results["method"], strict=True):
        colour = COLOURS[str(method)]
        axis.errorbar(pair[0], place, xerr=LIMIT * pair[1], fmt="D", ms=5, color=colour, capsize=3, lw=1.4)
    axis.set(xlabel=r"$\mathrm{E}[V + \frac{1}{2}\int|α|^2] - u(x_0, 0)$  [% of the improvement]")
    axis.set_title("the cost is the value (rows as in a)")
