"""Total-variation denoising against Gaussian smoothing, on a photograph.

The Rudin-Osher-Fatemi problem, min over u of ½|u − image|² + λ·TV(u), is one implicit step of length λ of the
total-variation flow: the Hopf-Lax formula with images for points. Gaussian smoothing is the heat flow of the same
image. The photograph is scikit-learn's Summer Palace (nothing is downloaded), with white Gaussian noise added in
each colour channel. Every weight λ and every width of the Gaussian is tried, so both methods are seen at their best
against the clean image, which a user would not have.

What to see: the heat flow trades noise against edges, total variation keeps the edges and pays with
flat patches. The best weight is of the order of the noise's standard deviation. The table says how far each answer
is from the exact minimiser at most, by its duality gap.
"""

import dataclasses

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_sample_image

from experiments import _run
from jaxopt_pde import pde


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run; the defaults give the gallery's figure."""

    seed: int = 0
    """Seed of the noise."""
    corner: tuple[int, int] = (150, 200)
    """Row and column of the upper left pixel of the crop."""
    size: int = 192
    """Side of the square crop, in pixels."""
    noise: tuple[float, ...] = (0.05, 0.1, 0.2)
    """Standard deviations of the noise; the range of the image is [0, 1]."""
    weights: tuple[float, ...] = (0.01, 0.02, 0.03, 0.045, 0.06, 0.08, 0.1, 0.13, 0.17, 0.22, 0.3, 0.4)
    """Weights λ of the total variation."""
    widths: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0)
    """Standard deviations of the Gaussian, in pixels."""
    shown: int = 1
    """Which noise level the pictures show."""
    tolerance: float = 1e-4
    """Duality gap, relative to the energy, at which a solve stops."""


SMOKE = Config(
    size=32, noise=(0.1,), weights=(0.03, 0.1, 0.3), widths=(0.5, 1.0, 2.0), shown=0, tolerance=1e-3
)


def photograph(config: Config) -> np.ndarray:
    """The clean crop, [size, size, 3] in [0, 1].

    Raises:
        ValueError: if the crop does not lie inside the photograph.
    """
    whole = load_sample_image("china.jpg")
    row, column = config.corner
    crop = whole[row : row + config.size, column : column + config.size]
    if min(row, column) < 0 or crop.shape[:2] != (config.size, config.size):
        msg = f"corner={config.corner} and size={config.size} must lie inside the photograph, {whole.shape[:2]}."
        raise ValueError(msg)
    return crop.astype(np.float32) / 255


def signal_to_noise(image, clean):
    """Peak signal-to-noise ratio in decibels of [rows, columns, colours] for the range [0, 1]."""
    return -10 * jnp.log10(jnp.mean((image - clean) ** 2))


def smooth(image, width):
    """Each colour under the heat flow, with no flux through the border."""
    side = image.shape[0] - 1.0
    grid = pde.Grid.uniform((0.0, 0.0), (side, side), image.shape[:2], boundary="neumann")
    colours = jnp.moveaxis(image, -1, 0)
    smoothed = jax.vmap(lambda colour: pde.gaussian_convolution(colour, grid, width**2))(colours)
    return jnp.moveaxis(smoothed, 0, -1)


def run(config: Config, session: _run.Session = _run.NULL_SESSION) -> _run.Arrays:
    """Denoises at every noise level, weight and width; ratios are [noise, weight] and [noise, width]."""
    clean = jnp.asarray(photograph(config))
    weights, widths = jnp.asarray(config.weights), jnp.asarray(config.widths)

    @jax.jit
    def denoise(noisy):
        solve = lambda weight: pde.denoise_total_variation(
            noisy, weight, channel_axis=-1, tolerance=config.tolerance
        )
        denoised, info = jax.lax.map(solve, weights)
        blurred = jax.lax.map(lambda width: smooth(noisy, width), widths)
        variation, heat = (
            jax.vmap(lambda image: signal_to_noise(image, clean))(stack) for stack in (denoised, blurred)
        )
        return {
            "noisy": noisy,
            "denoised": denoised[jnp.argmax(variation)],
            "smoothed": blurred[jnp.argmax(heat)],
            "ratio_noisy": signal_to_noise(noisy, clean),
            "ratio_variation": variation,
            "ratio_heat": heat,
            "error_bound": info.error_bound / jnp.sqrt(clean.size),
            "steps": info.num_steps,
            "converged": info.converged,
        }

    levels = []
    with session.progress("denoising", len(config.noise)) as meter:
        for level in config.noise:
            key = _run.key_for(config.seed, "noise", f"{level:g}")
            noisy = clean + level * jax.random.normal(key, clean.shape)
            levels.append(jax.device_get(denoise(noisy)))
            meter.advance(decibels=float(levels[-1]["ratio_variation"].max()))
    return {
        "clean": np.asarray(clean),
        "noise": np.array(config.noise),
        "weights": np.array(config.weights),
        "widths": np.array(config.widths),
        "shown": np.array(config.shown),
        **{name: np.stack([level[name] for level in levels]) for name in levels[0]},
    }


def table(results: _run.Arrays) -> tuple[list[str], list[list[str]]]:
    """The best of both methods at each noise level."""
    headers = [
        "noise", "noisy, dB", "heat flow, dB", "at width (pixels)", "total variation, dB", "at weight λ",
        "|u − u*| at most (rms)", "steps",
    ]  # fmt: skip
    rows = []
    for k, level in enumerate(results["noise"]):
        i, j = results["ratio_variation"][k].argmax(), results["ratio_heat"][k].argmax()
        rows.append(
            [
                f"{level:g}",
                f"{results['ratio_noisy'][k]:.2f}",
                f"{results['ratio_heat'][k, j]:.2f}",
                f"{results['widths'][j]:g}",
                f"{results['ratio_variation'][k, i]:.2f}",
                f"{results['weights'][i]:g}",
                f"{results['error_bound'][k, i]:.1e}",
                f"{results['steps'][k, i]}",
            ]
        )
    return headers, rows


def figure(results: _run.Arrays) -> plt.Figure:
    """The photograph four times over, and the signal-to-noise ratio against both parameters."""
    fig = plt.figure(figsize=(10.4, 6.2), layout="constrained")
    pictures, curves = fig.subfigures(2, 1, height_ratios=(1.15, 1))
    k = int(results["shown"])
    ratio = lambda name: results[f"ratio_{name}"][k].max()
    shown = [
        ("original", results["clean"]),
        (f"noise {results['noise'][k]:g}: {ratio('noisy'):.1f} dB", results["noisy"][k]),
        (f"heat flow: {ratio('heat'):.1f} dB", results["smoothed"][k]),
        (f"total variation: {ratio('variation'):.1f} dB", results["denoised"][k]),
    ]
    for axis, (title, image) in zip(pictures.subplots(1, 4), shown, strict=True):
        axis.imshow(np.clip(image, 0, 1), interpolation="nearest")
        axis.set_title(title, fontsize=11)
        axis.set_axis_off()
    colours = ["#0072b2", "#e69f00", "#d55e00", "#009e73", "#cc79a7"]  # Okabe & Ito
    left, right = curves.subplots(1, 2, sharey=True)
    panels = [
        (left, "weights", "variation", "weight λ of the total variation"),
        (right, "widths", "heat", "width of the Gaussian (pixels)"),
    ]
    for axis, places, name, label in panels:
        for level, colour in enumerate(colours[: len(results["noise"])]):
            curve, place = results[f"ratio_{name}"][level], results[places]
            best = curve.argmax()
            axis.plot(place, curve, color=colour, linewidth=2)
            axis.plot(place[best], curve[best], "o", color=colour, markersize=7)
            axis.axhline(results["ratio_noisy"][level], color=colour, linewidth=1, linestyle=(0, (2, 3)))
            if axis is left:
                axis.annotate(
                    f"noise {results['noise'][level]:g}", (place[0], curve[0]), (0, 11), color=colour,
                    textcoords="offset points", fontsize=10,
                )  # fmt: skip
        axis.set(xlabel=label, xscale="log" if axis is left else "linear")
        axis.spines[["top", "right"]].set_visible(False)
    left.xaxis.set_major_formatter("{x:g}")
    left.set_ylabel("peak signal-to-noise ratio (dB)")
    right.annotate(
        "dotted: the noisy image", (1, 0.96), xycoords="axes fraction", ha="right", va="top", fontsize=10,
        color="#4d4d4d",
    )  # fmt: skip
    return fig
