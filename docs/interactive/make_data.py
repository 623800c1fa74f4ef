"""Writes problems.js, the constants of the losses that the page shows, from jaxopt_pde.problems.

Run it from the repository's root after a change to those problems:

    python docs/interactive/make_data.py

The page has the formulas, this file the numbers in them, so that nothing is stated twice. The waves of the rugged loss
are read off by a Fourier transform of f(x) − x² over its period of four half-widths, which is exact.
"""

import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_pde import problems

__all__ = ["HORIZON", "PATH", "SPREAD", "constants", "main"]

PATH = Path(__file__).with_name("problems.js")
HORIZON, SPREAD = 4.0, 0.15  # of panel 2, in [param²/loss] and [param]


def waves(problem: problems.Problem, half_width: float, samples: int = 512) -> dict[str, list[float]]:
    """Wavenumbers and amplitudes of f(x) − x² as a Fourier series of period 4 half-widths."""
    x = 4 * half_width * np.arange(samples) / samples - 2 * half_width
    values = np.asarray(jax.vmap(problem.loss)(jnp.asarray(x)[:, None])) - x**2
    # Sampling began half a period before 0: (−1)^k undoes that.
    spectrum = np.fft.rfft(values) / samples * 2 * (-1.0) ** np.arange(samples // 2 + 1)
    kept = np.flatnonzero(np.abs(spectrum) > 1e-9)
    return {
        "wavenumbers": (2 * math.pi * kept / (4 * half_width)).round(12).tolist(),
        "cosines": spectrum[kept].real.round(12).tolist(),
        "sines": (-spectrum[kept].imag).round(12).tolist(),
    }


def constants() -> dict[str, Any]:
    """What problems.js holds: for each loss its domain, its minimisers and the constants of its formula."""
    with jax.enable_x64(True):
        losses = {
            "rugged": (problems.rugged(), {}),
            "sharp": (
                problems.sharp_and_wide(1),
                {"centres": [-1.0, 1.0], "curvatures": [100.0, 1.0], "heights": [-0.1, 0.0], "softness": 0.1},
            ),
            "well": (problems.double_well(), {"halfDistance": 1.0, "barrier": 1.0, "tilt": 0.2}),
            "rastrigin": (problems.rastrigin(1), {"amplitude": 10.0}),
            "absolute": (problems.absolute_value(), {"slope": 1.0}),
            "controlled": (
                problems.double_well(barrier=0.5, tilt=0.4),
                {"halfDistance": 1.0, "barrier": 0.5, "tilt": 0.4, "horizon": HORIZON, "spread": SPREAD},
            ),
        }
        losses["rugged"][1].update(waves(losses["rugged"][0], half_width=3.0))
        return {
            name: {
                "lower": float(problem.lower[0]),
                "upper": float(problem.upper[0]),
                "minimisers": problem.minimisers[:, 0].round(9).tolist(),
                "saddles": [] if problem.saddles is None else problem.saddles[:, 0].round(9).tolist(),
                **numbers,
            }
            for name, (problem, numbers) in losses.items()
        }


def main(path: Path = PATH) -> None:
    """Writes the file, the same on every run."""
    text = ",\n".join(f"  {json.dumps(name)}: {json.dumps(part)}" for name, part in constants().items())
    head = "// Written by make_data.py from jaxopt_pde.problems; do not edit.\n"
    path.write_text(f'{head}"use strict";\nconst relaxationProblems = {{\n{text}\n}};\n', encoding="utf-8")


if __name__ == "__main__":
    main()
