"""The interactive page in headless Chromium: its numbers are the library's and its claims are true.

Needs Playwright's Python package and a Chromium on the path (conftest.py).
"""

import importlib.util
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_pde import control, pde, problems, smoothing

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[2] / "docs" / "interactive"
TOLERANCE, PUSH_TOLERANCE = 1e-3, 1e-2  # what the page promises
PROBLEMS = {
    "rugged": problems.rugged,
    "sharp": lambda: problems.sharp_and_wide(1),
    "well": problems.double_well,
    "rastrigin": lambda: problems.rastrigin(1),
    "absolute": problems.absolute_value,
}
# Grid cells beyond the page's range, where f has risen so far above what is in it that exp(−f/T) is nothing.
MARGINS = {"rugged": 300, "sharp": 400, "well": 600, "rastrigin": 150}


@pytest.fixture(scope="module")
def show(page, read):
    """show(f=..., t=..., T=...): the curves of the page at that setting, and the setting it took."""

    def show(**state):
        page.evaluate("some => relaxation.set(some)", state)
        return read(page, "({...relaxation.state, ...relaxation.curves})")

    return show


def library_grid(name, x):
    """A grid with the page's points, those halfway between them, and a margin: and where the page's points are."""
    dx, margin = (x[-1] - x[0]) / (len(x) - 1), MARGINS[name]
    points = 2 * (len(x) - 1 + 2 * margin) + 1
    grid = pde.Grid.uniform(x[0] - margin * dx, x[-1] + margin * dx, points, boundary="neumann")
    return grid, slice(2 * margin, points - 2 * margin)


def extrema(x, u, sign=1):
    """Minima of a grid function on the parabola through three points."""
    u = sign * np.asarray(u)
    here = np.flatnonzero((u[1:-1] < u[:-2]) & (u[1:-1] <= u[2:])) + 1
    offset = 0.5 * (u[here - 1] - u[here + 1]) / (u[here - 1] - 2 * u[here] + u[here + 1])
    return np.asarray(x)[here] + offset * (x[1] - x[0])


# ---- the numbers ----


def test_constants_are_those_of_the_problems():
    """problems.js is what make_data.py writes: run `python docs/interactive/make_data.py` if this fails."""
    spec = importlib.util.spec_from_file_location("make_data", FOLDER / "make_data.py")
    make_data = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_data)
    text = (FOLDER / "problems.js").read_text(encoding="utf-8")
    written = json.loads(re.search(r"relaxationProblems = (\{.*\});", text, re.DOTALL)[1])
    assert jax.tree.structure(written) == jax.tree.structure(make_data.constants())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), written, make_data.constants())


@pytest.mark.parametrize("name", MARGINS)
@pytest.mark.parametrize("temperature", [0.0, 0.0302, 0.302, 1.0])
def test_relaxed_loss_is_the_librarys(show, x64, name, temperature):
    """u and f at every point of the page, ∂u/∂x by differences of the library's u, and the minima, found anew."""
    problem, times = PROBLEMS[name](), (0.004, 0.1, 2.0)
    shown = [show(f=name, t=t, T=temperature) for t in times]
    x = np.asarray(shown[0]["x"])
    grid, inner = library_grid(name, x)
    initial = grid.evaluate(problem.loss)
    np.testing.assert_allclose(shown[0]["f"], initial[inner][::2], atol=1e-6)
    reached = jnp.asarray([part["t"] for part in shown])
    T = shown[0]["T"]
    assert (T == 0) == (temperature == 0)
    values = pde.solve_hamilton_jacobi(initial, grid, reached, temperature=T).check().values
    fine = np.asarray(grid.axes[0])[inner]
    for part, u in zip(shown, np.asarray(values)[:, inner], strict=True):
        np.testing.assert_allclose(part["u"], u[::2], atol=TOLERANCE)
        found, expected = np.asarray(part["minima"]), extrema(fine, u)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=2e-3)
        if T > 0:
            slope = np.gradient(u, fine)[::2][1:-1]
            bend = np.abs(np.diff(u, 3)).max() / (
                fine[1] - fine[0]
            )  # h²|u‴|: what a difference errs by, times 6
            np.testing.assert_allclose(part["slope"][1:-1], slope, atol=TOLERANCE + bend)


@pytest.mark.parametrize("temperature", [0.0, 0.0302, 3.02])
def test_relaxed_absolute_value_is_the_closed_form(show, x64, temperature):
    exact = problems.absolute_value().exact
    for t in (0.002, 0.1, 5.0):
        part = show(f="absolute", t=t, T=temperature)
        points = jnp.asarray(part["x"])[:, None]
        value, slope = jax.vmap(jax.value_and_grad(lambda x, part=part: exact(x, part["t"], part["T"])))(
            points
        )
        np.testing.assert_allclose(part["u"], value, atol=TOLERANCE)
        np.testing.assert_allclose(part["slope"], slope[:, 0], atol=TOLERANCE)
        np.testing.assert_allclose(part["minima"], [0.0], atol=1e-6)


def test_relaxed_loss_is_that_of_quadrature_at_the_ends_of_the_sliders(show, x64):
    """Another route of the library, with f on the whole line and no grid, and ∂u/∂x and ∂²u/∂x² exactly."""
    problem = problems.rugged()

    @jax.jit
    def at(x, t, T):
        smoothed = smoothing.quadrature(problem.loss, x, smoothing_time=t, temperature=T, half_width=12.0)
        return smoothed.value, smoothed.gradient[0], smoothed.info["hessian"][0, 0]

    for t, T in ((0.002, 0.01), (0.002, 3.0), (5.0, 0.01), (5.0, 3.0)):
        part = show(f="rugged", t=t, T=T)
        for i in (0, 130, 333, 600):
            value, slope, bend = at(jnp.array([float(part["x"][i])]), float(part["t"]), float(part["T"]))
            np.testing.assert_allclose(part["u"][i], value, atol=TOLERANCE)
            np.testing.assert_allclose(part["slope"][i], slope, atol=TOLERANCE)
            np.testing.assert_allclose(part["bend"][i], bend, rtol=TOLERANCE, atol=TOLERANCE)


def test_minima_are_followed_to_where_they_merge(page, show, read, x64):
    """Tracks are the library's minima and maxima at their times, and no minimum is ever born (in 1-D, at any T)."""
    for temperature in (0.0, 0.302):
        start = show(f="rugged", T=temperature)
        page.evaluate("relaxation.ready")
        tracks = read(page, "relaxation.tracks")
        counts = [len(places) for places in tracks["minima"]]
        assert len(counts) == len(tracks["t"]) == 141
        assert counts[0] >= 7
        assert counts[-1] == 1
        assert all(np.diff(counts) <= 0)
        grid, inner = library_grid("rugged", start["x"])
        initial, chosen = grid.evaluate(problems.rugged().loss), [20, 60, 100]
        times = jnp.asarray(tracks["t"])[jnp.asarray(chosen)]
        values = pde.solve_hamilton_jacobi(initial, grid, times, temperature=start["T"]).check().values
        x = np.asarray(grid.axes[0])[inner]
        for i, u in zip(chosen, np.asarray(values)[:, inner], strict=True):
            np.testing.assert_allclose(tracks["minima"][i], extrema(x, u), atol=2e-3)
            if temperature > 0:  # else maxima are kinks
                np.testing.assert_allclose(tracks["barriers"][i], extrema(x, u, -1), atol=2e-3)
    np.testing.assert_allclose(start["minimaOfF"], np.sort(problems.rugged().minimisers[:, 0]), atol=1e-3)


@pytest.mark.parametrize(
    ("name", "t", "T", "better"),
    [
        ("rugged", 0.1, 0.3, True),
        ("rugged", 0.5, 0.0, True),
        ("rastrigin", 0.1, 0.3, True),
        ("well", 2.0, 2.0, False),
    ],
)
def test_descent_ends_where_the_page_says(page, show, read, x64, name, t, T, better):
    """Both descents again with the library's slopes; the sentence of the page says which one ends lower on f."""
    part = show(f=name, t=t, T=T, k=400)
    paths = read(page, "relaxation.paths")
    problem = PROBLEMS[name]()
    grid, _ = library_grid(name, part["x"])
    initial = grid.evaluate(problem.loss)
    relaxed = pde.solve_hamilton_jacobi(
        initial, grid, jnp.asarray([part["t"]]), temperature=part["T"]
    ).check()
    domain = jnp.linspace(problem.lower[0], problem.upper[0], 4001)[:, None]
    curvature = float(jax.vmap(jax.hessian(problem.loss))(domain).max())
    np.testing.assert_allclose(paths["stepF"], 1 / curvature, rtol=2e-3)
    np.testing.assert_allclose(paths["stepU"], 1 / curvature + part["t"], rtol=2e-3)
    loss, slope = jax.vmap(problem.loss), jax.vmap(jax.grad(problem.loss))
    descend = jax.jit(
        lambda slope, step, x: jax.lax.fori_loop(0, 400, lambda _, x: x - step * slope(x), x),
        static_argnums=0,
    )
    starts = jnp.asarray(paths["starts"])[:, None]
    on_f = descend(slope, paths["stepF"], starts)
    on_u = descend(lambda x: relaxed.gradient(x, part["t"]), paths["stepU"], starts)
    np.testing.assert_allclose([path[-1] for path in paths["onF"]], on_f[:, 0], atol=2e-3)
    np.testing.assert_allclose([path[-1] for path in paths["onU"]], on_u[:, 0], atol=5e-3)
    ends = [float(jnp.mean(loss(x))) for x in (on_f, on_u)]
    np.testing.assert_allclose([paths["endF"], paths["endU"]], ends, atol=5e-3)
    assert (ends[1] < ends[0]) == better
    said = page.text_content("#verdict-1")
    assert ("lower" if better else "higher") in said
    assert float(re.search(r"([\d.]+) loss", said)[1]) == pytest.approx(abs(ends[0] - ends[1]), abs=0.06)
    # No step goes up on its own loss.
    heights = [loss(jnp.asarray(path)[:, None]) for path in paths["onF"]]
    heights += [relaxed.value(jnp.asarray(path), part["t"]) for path in paths["onU"]]
    assert max(float(jnp.diff(height).max()) for height in heights) < 1e-4


@pytest.mark.parametrize(("T", "c"), [(0.1585, 0.794), (0.5, 10.0)])
def test_densities_are_the_librarys(page, read, x64, T, c):
    """Value function and densities of solve_bellman and solve_fokker_planck, on a grid twice as fine."""
    page.evaluate("some => relaxation.set(some)", {"T2": T, "c": c})
    shown, state = read(page, "relaxation.control"), read(page, "relaxation.state")
    problem = problems.double_well(barrier=0.5, tilt=0.4)
    points = len(shown["x"])
    grid = pde.Grid.uniform(-2.0, 2.0, 2 * points - 1, boundary="extrapolate")
    x = np.asarray(grid.axes[0])
    np.testing.assert_allclose(shown["x"], x[::2], atol=1e-12)
    frames, drift = np.array([0, 10, 40, 70, 80]), lambda x: -jax.grad(problem.loss)(x)
    np.testing.assert_allclose(shown["s"], np.linspace(0, 4, 81), atol=1e-12)
    f = grid.evaluate(problem.loss)
    numbers = {"drift": drift, "temperature": state["T2"]}
    value = pde.solve_bellman(
        f, grid, jnp.linspace(0.0, 4.0, 1601), control_cost=state["c"], **numbers
    ).check()
    weights = np.full(2 * points - 1, grid.spacing[0])
    weights[[0, -1]] /= 2
    bell = np.exp(-((x - problem.minimisers[1, 0]) ** 2) / (2 * 0.15**2))
    bell = jnp.asarray(bell / (weights @ bell))
    middle = np.abs(x[::2]) < 1.3  # where paths go; at the edge of the box the boundary counts
    for name, steering in (("Sgd", None), ("Csgd", control.feedback(value, control_cost=state["c"]))):
        times = jnp.linspace(0.0, 4.0, 81)[frames]
        flow = pde.solve_fokker_planck(
            bell, grid, times, control=steering, max_steps=10**6, **numbers
        ).check()
        density = np.asarray(flow.values)
        page_density = np.asarray(shown[name.lower()])
        np.testing.assert_allclose(page_density[frames], density[:, ::2], atol=TOLERANCE)
        page_weights = np.full(points, 2 * grid.spacing[0])
        page_weights[[0, -1]] /= 2
        np.testing.assert_allclose(page_density @ page_weights, 1.0, atol=1e-9)  # no mass is lost
        assert page_density.min() >= 0
        loss = (density * weights) @ np.asarray(f)
        np.testing.assert_allclose(np.asarray(shown[f"loss{name}"])[frames], loss, atol=TOLERANCE)
    every = np.asarray(value.values)[::20][frames]
    np.testing.assert_allclose(
        np.asarray(shown["value"])[frames][:, middle], every[:, ::2][:, middle], atol=TOLERANCE
    )
    slope = np.gradient(every, x, axis=1)[:, ::2] / state["c"]
    np.testing.assert_allclose(
        np.asarray(shown["alpha"])[frames][:, middle], slope[:, middle], atol=PUSH_TOLERANCE
    )
    expected = float((weights * bell) @ np.asarray(value.values[0]))
    assert shown["cost"] == pytest.approx(expected, abs=TOLERANCE)
    gain = shown["lossSgd"][-1] - shown["lossCsgd"][-1]
    paid = shown["cost"] - shown["lossCsgd"][-1]
    assert 0 < paid < gain
    said = [float(number) for number in re.findall(r"([\d.]+) loss", page.text_content("#verdict-2"))]
    np.testing.assert_allclose(said, [gain, paid], rtol=5e-3)
