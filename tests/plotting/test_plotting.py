"""Figures carry the numbers they were given: levels, curves, bands, insets, files; nothing global changes."""

import io

import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from jaxopt_pde import landscape, plotting

A, B = np.linspace(-2.0, 2.0, 21), np.linspace(-1.0, 1.0, 13)
BOWL = A[:, None] ** 2 + B[None] ** 2
X = np.linspace(0.5, 2.0, 16)
ESTIMATE = landscape.Estimate(jnp.asarray(X**2), jnp.asarray(0.1 * X))


@pytest.fixture
def ax():
    return Figure(figsize=(4, 3), layout="constrained").subplots()


def vertices(collection):
    return [path.vertices for path in collection.get_paths()]


def test_contours_lie_where_the_values_are_the_levels_and_say_so(ax):
    """On an axially symmetric slice that is no square: radius √level in [a, b], to the error of linear interpolation.

    In a cell of side h the secant of a² is off by at most h²/4 = 0.01, a transposed slice by far more.
    """
    values = A[:, None] ** 2 + 4.0 * B[None] ** 2
    lines = plotting.contour(ax, (A, jnp.asarray(B)), jnp.asarray(values), levels=[0.5, 1.0, 2.25])
    np.testing.assert_array_equal(lines.levels, [0.5, 1.0, 2.25])
    for level, path in zip(lines.levels, lines.get_paths(), strict=True):
        a, b = path.vertices.T
        np.testing.assert_allclose(a**2 + 4.0 * b**2, level, atol=0.01 + 4 * (1 / 6) ** 2 / 4)
    assert {text.get_text() for text in ax.texts} == {"0.5", "1", "2.25"}
    assert ax.get_aspect() == 1
    assert all(text.get_fontsize() >= 9 for text in ax.texts)


def test_points_are_marked_and_named(ax):
    plotting.contour(
        ax, (A, B), BOWL, labels=False, points={"SGD": (0.5, 0.25), "SAM": jnp.array([-1.0, 0.0])}
    )
    named = {text.get_text(): text.xy for text in ax.texts}
    np.testing.assert_array_equal(named["SGD"], [0.5, 0.25])
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    np.testing.assert_array_equal([dot.get_xydata()[0] for dot in dots], [[0.5, 0.25], [-1.0, 0.0]])
    assert dots[0].get_color() != dots[1].get_color()


def test_contours_leave_holes(ax):
    values = BOWL.copy()
    values[:5, :5], values[-1, -1] = np.nan, np.inf
    lines = plotting.contour(ax, (A, B), values, levels=[0.5, 1.0, 3.0])
    points = np.concatenate(vertices(lines))
    assert np.all(np.isfinite(points))
    assert not np.any((points[:, 0] < A[4]) & (points[:, 1] < B[4]))
    assert any(patch.get_hatch() for patch in ax.patches)


def test_levels():
    """Log: equal ratios; quantile: equal shares; each moved by no more than a fifth of its gap."""
    values = np.geomspace(1e-3, 1e3, 4_001)
    np.testing.assert_array_equal(plotting.contour_levels(values, num=5), [0.01, 0.1, 1.0, 10.0, 100.0])
    exact = np.quantile(BOWL, np.arange(1, 6) / 6)
    levels = plotting.contour_levels(BOWL - 3.0, num=5) + 3.0
    assert np.all(np.abs(levels - exact) <= 0.2 * np.max(np.diff(exact)))
    np.testing.assert_allclose(
        plotting.contour_levels(np.arange(11.0), num=4, spacing="linear"), [2, 4, 6, 8]
    )
    far = plotting.contour_levels(1e6 + 1e-3 * BOWL, num=6)
    assert len(far) == 6
    both = plotting.contour_levels(BOWL + 1.0, np.array([1e4, np.nan]), num=3)
    np.testing.assert_array_equal(both, [10.0, 100.0, 1000.0])
    np.testing.assert_array_equal(plotting.contour_levels(ESTIMATE), plotting.contour_levels(X**2))


def test_the_relaxed_pair_shares_levels_and_shades():
    axes = Figure().subplots(1, 2)
    of_f, of_u = plotting.relaxed_pair(axes, (A, B), BOWL, landscape.Estimate(BOWL / 2 + 0.3, 0 * BOWL))
    np.testing.assert_array_equal(of_f.levels, of_u.levels)
    assert len(of_f.levels) > 4
    fills = [ax.collections[0] for ax in axes]
    np.testing.assert_array_equal(fills[0].get_facecolor(), fills[1].get_facecolor())
    # The level 1 of u = r²/2 + 0.3 is the circle r² = 1.4.
    _, of_u = plotting.relaxed_pair(axes, (A, B), BOWL, BOWL / 2 + 0.3, levels=[1.0])
    np.testing.assert_allclose(np.sum(vertices(of_u)[0] ** 2, axis=1), 1.4, atol=0.02)
    # Levels far above both panels: one shade, no warning.
    plotting.relaxed_pair(axes, (A, B), BOWL, BOWL, levels=[100.0, 200.0])


def test_overlay_and_profile_carry_curve_and_band(ax):
    below, line, band = plotting.overlay(ax, X, X**3, ESTIMATE, names=("f", "u"))
    np.testing.assert_array_equal(below.get_ydata(), X**3)
    np.testing.assert_allclose(line.get_ydata(), X**2, rtol=1e-6)
    (outline,) = vertices(band)
    for sign in (-1, 1):
        limit = X**2 + sign * 1.959964 * 0.1 * X
        for x, y in zip(X, limit, strict=True):
            assert np.min(np.hypot(*(outline - [x, y]).T)) < 1e-5
    assert len(outline) <= 2 * len(X) + 3
    named = {text.get_text(): text.xy for text in ax.texts}
    np.testing.assert_allclose(named["u"], (2.0, 4.0))
    np.testing.assert_allclose(named["f"], (2.0, 8.0))


def test_names_of_curves_that_meet_are_pushed_apart(ax):
    plotting.overlay(ax, X, X, 1.001 * X)
    ax.figure.canvas.draw()
    boxes = [text.get_window_extent() for text in ax.texts]
    assert not boxes[0].overlaps(boxes[1])


def test_profiles_without_errors_have_no_band_and_break_at_holes(ax):
    values = np.where(X[3] == X, np.nan, X)
    line, band = plotting.profile(ax, X, landscape.Estimate(jnp.asarray(values), jnp.full(16, jnp.nan)))
    assert band is None
    assert np.isnan(line.get_ydata()[3])
    assert plotting.profile(ax, X, X)[1] is None


@pytest.fixture(scope="module")
def spectrum():
    """A bulk on [−1, 1] with one outlier on either side."""
    grid = np.linspace(-2.0, 3.0, 501)
    density = np.sqrt(np.clip(1 - grid**2, 0, None)) + 1e-3 * np.exp(-2_000 * (grid - 2.5) ** 2)
    return grid, landscape.Estimate(jnp.asarray(density), jnp.asarray(0.1 * density)), [2.5, -1.5]


def test_spectral_density_has_a_band_ticks_and_insets_over_the_outliers(ax, spectrum):
    grid, density, outliers = spectrum
    drawn = plotting.spectral_density(ax, grid, density, eigenvalues=outliers, floor=1e-5)
    np.testing.assert_allclose(drawn.line.get_ydata(), np.maximum(density.mean, 1e-5), rtol=1e-6)
    assert ax.get_yscale() == "log"
    assert ax.get_ylim()[0] == 1e-5
    (outline,) = vertices(drawn.band)
    assert outline[:, 1].max() == pytest.approx(1 + 1.959964 * 0.1, rel=1e-5)
    assert outline[:, 1].min() == pytest.approx(1e-5)
    np.testing.assert_array_equal(
        sorted(segment[0, 0] for segment in drawn.ticks.get_segments()), sorted(outliers)
    )
    left, right = drawn.insets
    assert left.get_xlim()[0] <= -2.0 < -1.5 < left.get_xlim()[1] < -0.8
    assert 0.8 < right.get_xlim()[0] < 2.5 < 3.0 <= right.get_xlim()[1]
    for inset in drawn.insets:
        np.testing.assert_array_equal(inset.lines[0].get_ydata(), drawn.line.get_ydata())
        assert inset.get_ylim()[0] == 1e-5
    assert right.get_ylim()[1] > 1e-3


def test_insets_do_not_hide_the_curve(ax, spectrum):
    grid, density, outliers = spectrum
    drawn = plotting.spectral_density(ax, grid, density, eigenvalues=outliers)
    ax.figure.canvas.draw()
    curve = ax.transData.transform(drawn.line.get_xydata())
    for inset in drawn.insets:
        box = inset.get_tightbbox()
        inside = (curve[:, 0] > box.x0) & (curve[:, 0] < box.x1) & (curve[:, 1] > box.y0)
        assert not np.any(inside)


def test_tails_that_are_given_or_not_wanted(ax, spectrum):
    grid, density, outliers = spectrum
    assert plotting.spectral_density(ax, grid, density, tails=False).insets == ()
    (left, right) = plotting.spectral_density(
        ax, grid, density, eigenvalues=outliers, tails=(-1.4, 2.0)
    ).insets
    assert left.get_xlim()[0] < -1.5 < left.get_xlim()[1] < -1.35
    assert 1.9 < right.get_xlim()[0] < 2.0
    # Nothing beyond −1.2 without the eigenvalue: no inset.
    assert len(plotting.spectral_density(ax, grid, density, tails=(-1.2, 2.0)).insets) == 1


def test_trajectory_starts_and_ends_where_the_path_does(ax):
    path = np.cumsum(np.random.default_rng(0).normal(size=(10, 2)), axis=0)
    drawn = plotting.trajectory(ax, jnp.asarray(path), label="SGD", every=4, colour="#009e73")
    np.testing.assert_allclose(drawn.path.get_xydata(), path, rtol=1e-6)
    np.testing.assert_allclose(drawn.steps.get_xydata(), path[[0, 4, 8]], rtol=1e-6)
    np.testing.assert_allclose(drawn.start.get_xydata(), path[:1], rtol=1e-6)
    np.testing.assert_allclose(drawn.end.get_xydata(), path[-1:], rtol=1e-6)
    assert ax.texts[0].get_text() == "SGD"
    assert drawn.start.get_color() == "white"


def test_surface_ends_at_its_ceiling_and_has_the_levels_on_its_floor(monkeypatch):
    ax = Figure().add_subplot(projection="3d")
    values = BOWL.copy()
    values[10, 6] = np.nan
    drawn, draw = [], ax.plot_surface
    monkeypatch.setattr(
        ax, "plot_surface", lambda *args, **settings: drawn.append(args) or draw(*args, **settings)
    )
    plotting.surface(ax, (A, B), values, ceiling=2.0, levels=[0.5, 1.5])
    across, up, heights = drawn[0]
    kept = np.isfinite(heights)
    np.testing.assert_allclose(heights[kept], np.minimum(across**2 + up**2, 2.0)[kept], rtol=1e-12)
    square = across**2 + up**2
    assert np.all(kept[(square < 2.0) & (square > 0.0)])
    assert not np.any(kept[square == 0.0])
    assert not np.any(kept[square > 3.0])
    assert np.nanmax(heights) == 2.0
    floor, top = ax.get_zlim()
    assert floor < np.nanmin(heights)
    assert top == pytest.approx(2.0)
    np.testing.assert_array_equal(ax.collections[-1].levels, [0.5, 1.5])
    ax.figure.savefig(io.BytesIO(), format="png", dpi=30)


def test_flat_surfaces_and_shared_limits():
    ax = Figure().add_subplot(projection="3d")
    plotting.surface(ax, (A, B), 0 * BOWL + 2.0)
    plotting.surface(ax, (A, B), BOWL, limits=(0.0, 10.0), levels=[])
    assert ax.get_zlim()[1] == 10.0
    plotting.surface(ax, (A, B), BOWL, limits=(0.0, 3.0), levels=[4.0, 5.0])
    assert ax.get_zlim()[1] == 3.0


def test_style_holds_inside_and_leaves_nothing_behind():
    before = dict(matplotlib.rcParams)
    with plotting.style(font_size=14, axes_grid=True):
        assert matplotlib.rcParams["font.size"] == 14
        assert matplotlib.rcParams["axes.grid"]
        figure = Figure()
        ax = figure.subplots()
        lines = [ax.plot([0, 1])[0] for _ in range(3)]
        assert figure.get_layout_engine() is not None
        assert not ax.spines["top"].get_visible()
    assert dict(matplotlib.rcParams) == before
    assert [line.get_color() for line in lines] == [
        plotting.COLOURS[c] for c in ("blue", "vermillion", "green")
    ]
    with pytest.raises(RuntimeError), plotting.style():
        raise RuntimeError
    assert dict(matplotlib.rcParams) == before
    with pytest.raises(ValueError, match=r"such as font_size, got font_sise\."), plotting.style(font_sise=3):
        pass


@pytest.mark.parametrize("vector", ["pdf", "svg"])
def test_files_in_both_forms_are_readable_reproducible_and_whole(tmp_path, vector, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")  # the date that would be written, were there one
    figure = Figure(figsize=(3, 2))
    figure.subplots().plot([0, 1], label="u")
    stem = tmp_path / "new" / "slice v1.2"
    paths = plotting.save(figure, stem, vector=vector, dpi=60)
    assert [path.name for path in paths] == [f"slice v1.2.{vector}", "slice v1.2.png"]
    first = [path.read_bytes() for path in paths]
    assert first[0].startswith(b"%PDF" if vector == "pdf" else b"<?xml")
    with Image.open(paths[1]) as image:
        assert min(image.size) > 50
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1500000000")
    assert [path.read_bytes() for path in plotting.save(figure, str(stem), vector=vector, dpi=60)] == first
    assert sorted(path.name for path in stem.parent.iterdir()) == sorted(path.name for path in paths)


def test_a_figure_that_fails_leaves_the_old_files(tmp_path):
    figure = Figure(figsize=(3, 2))
    (tmp_path / "a.png").write_bytes(b"old")
    figure.text(0.5, 0.5, "$\\undefined$")
    with pytest.raises(ValueError, match="undefined"):
        plotting.save(figure, tmp_path / "a")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.png", b"old")]


def test_bad_input(ax):
    with pytest.raises(ValueError, match=r"values must have shape \(21, 13\)"):
        plotting.contour(ax, (A, B), BOWL.T)
    with pytest.raises(ValueError, match="coordinates must be two vectors"):
        plotting.contour(ax, A, BOWL)
    with pytest.raises(ValueError, match=r"coordinates\[1\] must increase"):
        plotting.contour(ax, (A, B[::-1]), BOWL)
    with pytest.raises(ValueError, match="values must hold at least one finite number"):
        plotting.contour(ax, (A, B), np.nan * BOWL)
    with pytest.raises(ValueError, match="at least two different finite numbers"):
        plotting.contour(ax, (A, B), 0 * BOWL)
    with pytest.raises(ValueError, match="levels must increase"):
        plotting.contour(ax, (A, B), BOWL, levels=[1.0, 0.5])
    with pytest.raises(ValueError, match=r"points\['w'\] must be two finite numbers"):
        plotting.contour(ax, (A, B), BOWL, points={"w": (0.0, np.nan)})
    with pytest.raises(ValueError, match="spacing 'log' needs positive values"):
        plotting.contour_levels(BOWL - 1.0, spacing="log")
    with pytest.raises(ValueError, match="axes must be two"):
        plotting.relaxed_pair([ax], (A, B), BOWL, BOWL)
    with pytest.raises(ValueError, match="u must have shape"):
        plotting.relaxed_pair([ax, ax], (A, B), BOWL, BOWL[1:])
    with pytest.raises(ValueError, match="values must have a value for every x"):
        plotting.profile(ax, X, X[1:])
    with pytest.raises(ValueError, match="f must have 1 axes"):
        plotting.overlay(ax, X, BOWL, X)
    with pytest.raises(TypeError, match="ax must be three-dimensional"):
        plotting.surface(ax, (A, B), BOWL)
    cube = Figure().add_subplot(projection="3d")
    with pytest.raises(ValueError, match="ceiling must be above the least value"):
        plotting.surface(cube, (A, B), BOWL + 1.0, ceiling=0.5)
    with pytest.raises(ValueError, match="limits must increase"):
        plotting.surface(cube, (A, B), BOWL, limits=(1.0, 0.0))
    with pytest.raises(ValueError, match="coordinates must be finite"):
        plotting.trajectory(ax, [[0.0, 1.0], [np.nan, 0.0]])
    with pytest.raises(ValueError, match=r"shape \[points, 2\]"):
        plotting.trajectory(ax, np.zeros((4, 3)))
    with pytest.raises(ValueError, match="density must be positive"):
        plotting.spectral_density(ax, X, -X)
    with pytest.raises(ValueError, match="floor must be positive"):
        plotting.spectral_density(ax, X, X, floor=0.0)
    with pytest.raises(ValueError, match="tails must increase"):
        plotting.spectral_density(ax, X, X, tails=(1.0, 1.0))
    with pytest.raises(ValueError, match="eigenvalues must be a vector"):
        plotting.spectral_density(ax, X, X, eigenvalues=[np.nan])
    with pytest.raises(ValueError, match="vector must be one of 'pdf', 'svg'"):
        plotting.save(ax.figure, "x", vector="eps")
