"""Total-variation denoising: scikit-image, closed forms, the gap as an honest bound, and the laws of the problem."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.restoration import denoise_tv_chambolle

from jaxopt_pde.pde.total_variation import (
    _divergence,
    _gradient,
    denoise_total_variation,
    total_variation,
)


@functools.partial(jax.jit, static_argnames=("channel_axis", "channels", "max_steps"))
def denoise(image, weight, **options):
    return denoise_total_variation(image, weight, **options)


def noisy_shapes(*shape, seed=0):
    """A disc of height 0.6 on a slope, with noise of deviation 0.1."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    disc = 0.6 * (sum(axis**2 for axis in axes) < 0.4)
    return disc + 0.2 * axes[0] + 0.1 * rng.normal(size=shape)


def test_the_divergence_is_minus_the_adjoint_of_the_gradient(x64):
    """Σ p·∇u = −Σ u div p for random u and p: in integers, where no rounding can hide a difference."""
    rng = np.random.default_rng(0)
    for shape in [(5, 1, 3), (3, 4, 5, 2)]:
        u = jnp.asarray(rng.integers(-50, 50, shape), jnp.float64)
        p = tuple(jnp.asarray(rng.integers(-50, 50, shape), jnp.float64) for _ in shape[:-1])
        left = sum(jnp.sum(field * slope) for field, slope in zip(p, _gradient(u), strict=True))
        assert left == -jnp.sum(u * _divergence(p))


@pytest.mark.parametrize(
    ("shape", "channel_axis"), [((32, 32), None), ((10, 11, 12), None), ((20, 20, 3), 2)]
)
def test_agrees_with_scikit_image_run_to_convergence(shape, channel_axis, x64):
    """rms ≤ 2e-4; their colours are separate."""
    image = noisy_shapes(*shape)
    expected = denoise_tv_chambolle(image, 0.12, eps=1e-12, max_num_iter=4000, channel_axis=channel_axis)
    denoised, info = denoise(image, 0.12, channel_axis=channel_axis, channels="separate", tolerance=1e-7)
    assert bool(info.converged)
    assert np.sqrt(np.mean((denoised - expected) ** 2)) <= 2e-4


@pytest.mark.parametrize(("low", "high", "weight"), [(50, 50, 5.0), (20, 80, 3.0), (20, 80, 30.0)])
@pytest.mark.parametrize("tolerance", [1e-3, 1e-8])
def test_a_step_is_solved_within_the_bound_of_its_gap(low, high, weight, tolerance, x64):
    """n₁ samples at 0 and n₂ at 1 move to λ/n₁ and 1 − λ/n₂ while they have not met, then to their mean."""
    step = np.repeat([0.0, 1.0], [low, high])
    exact = np.repeat([weight / low, 1 - weight / high], [low, high])
    if weight >= 1 / (1 / low + 1 / high):
        exact = np.full_like(step, step.mean())
    denoised, info = denoise(step, weight, tolerance=tolerance)
    assert bool(info.converged)
    error = np.linalg.norm(denoised - exact)
    assert error <= info.error_bound + 1e-12
    assert info.error_bound == pytest.approx(np.sqrt(2 * info.duality_gap))


@pytest.mark.parametrize("channels", ["coupled", "separate"])
def test_the_gap_bounds_the_error_at_every_stage(channels, x64):
    """gap ≥ J(u) − J(u*) and √(2 gap) ≥ |u − u*|₂ for ever smaller gaps, u* itself known to 1e-4."""
    image = noisy_shapes(10, 10, 2)
    solve = functools.partial(denoise, image, 0.2, channel_axis=2, channels=channels)
    best, final = solve(tolerance=1e-9)
    assert final.error_bound < 1e-4
    for tolerance in (0.3, 1e-2, 1e-4):
        u, info = solve(tolerance=tolerance)
        assert info.duality_gap <= tolerance * info.energy
        assert jnp.linalg.norm((u - best).ravel()) <= info.error_bound + final.error_bound
        assert info.energy - final.energy <= info.duality_gap
        variation = total_variation(u, channel_axis=2, channels=channels)
        energy = 0.5 * np.sum((u - image) ** 2) + 0.2 * variation
        np.testing.assert_allclose(info.energy, energy, rtol=1e-12)
    assert int(denoise(image, 0.2, channel_axis=2, tolerance=1e-12, max_steps=30)[1].num_steps) == 50


def test_laws_of_the_minimiser(x64):
    """u(c + f) = c + u(f), u(cf, cλ) = c u(f, λ), mean u = mean f, symmetric, nonexpansive; TV(u) falls with λ."""
    image = noisy_shapes(16, 16)
    options = {"tolerance": 1e-7}
    u, info = denoise(image, 0.1, **options)
    shifted, _ = denoise(image + 5.0, 0.1, **options)
    np.testing.assert_allclose(shifted, u + 5.0, atol=1e-12)
    scaled, scaled_info = denoise(4.0 * image, 0.4, **options)
    np.testing.assert_array_equal(scaled, 4.0 * u)  # every operation commutes with a power of two
    assert scaled_info.duality_gap == 16 * info.duality_gap
    assert jnp.mean(u) == pytest.approx(image.mean(), abs=1e-14)
    transposed, _ = denoise(image.T, 0.1, **options)
    np.testing.assert_allclose(transposed, u.T, atol=1e-12)

    other = noisy_shapes(16, 16, seed=1)
    moved, moved_info = denoise(other, 0.1, **options)
    slack = info.error_bound + moved_info.error_bound
    assert np.linalg.norm(moved - u) <= np.linalg.norm(other - image) + slack

    weights = jnp.array([0.0, 0.03, 0.1, 0.3, 1.0, 100.0])
    family, _ = jax.jit(jax.vmap(lambda w: denoise_total_variation(image, w)))(weights)
    assert np.all(np.diff(jax.vmap(total_variation)(family)) < 0)
    assert np.all(np.diff(np.linalg.norm(family - image[None], axis=(1, 2))) > 0)
    np.testing.assert_array_equal(family[0], image)
    np.testing.assert_allclose(family[-1], image.mean(), atol=1e-2)


def test_weight_zero_and_flat_images_come_back_untouched():
    image = jnp.asarray(noisy_shapes(8, 9), jnp.float32)
    for untouched, weight in [(image, 0.0), (jnp.full((8, 9), 0.3), 0.7), (jnp.ones(1), 0.5)]:
        denoised, info = denoise(untouched, weight)
        np.testing.assert_array_equal(denoised, untouched)
        assert bool(info.converged)
        assert int(info.num_steps) == 0


def test_vmap_gives_each_image_what_it_gets_alone(x64):
    """Answers and step counts: an image that is done waits for the others unchanged."""
    images = np.stack([noisy_shapes(12, 10, seed=seed) * size for seed, size in enumerate([1.0, 0.1, 3.0])])
    weights = np.array([0.1, 0.2, 0.05])
    together, infos = jax.jit(jax.vmap(denoise_total_variation))(images, weights)
    assert len(set(infos.num_steps.tolist())) == 3
    for index in range(3):
        alone, info = denoise(images[index], weights[index])
        np.testing.assert_allclose(together[index], alone, atol=1e-12)
        assert infos.num_steps[index] == info.num_steps


def test_coupled_channels_commute_with_a_change_of_colour_axes(x64):
    """R u(f) = u(R f) for an orthogonal R; separate channels are the channels alone; one channel is a grey image."""
    image = noisy_shapes(10, 10, 3)
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0]
    u, _ = denoise(image, 0.2, channel_axis=-1)
    turned, _ = denoise(image @ rotation, 0.2, channel_axis=-1)
    np.testing.assert_allclose(turned, u @ rotation, atol=1e-10)
    first, _ = denoise(np.moveaxis(image, -1, 0), 0.2, channel_axis=0)
    np.testing.assert_allclose(first, jnp.moveaxis(u, -1, 0), atol=1e-14)

    separate, info = denoise(image, 0.2, channel_axis=-1, channels="separate", tolerance=1e-7)
    assert np.abs(separate - u).max() > 1e-2
    alone = [denoise(image[..., channel], 0.2, tolerance=1e-7) for channel in range(3)]
    slack = info.error_bound + sum(one.error_bound for _, one in alone)
    assert np.linalg.norm(separate - np.stack([one for one, _ in alone], axis=-1)) <= slack
    single, _ = denoise(image[..., :1], 0.2, channel_axis=2, tolerance=1e-7)
    np.testing.assert_allclose(single[..., 0], alone[0][0], atol=1e-14)


def test_float32_is_as_good_as_its_gap_says():
    """At the default tolerance, on values far from 0, where the gap as a difference of sums would be rounding."""
    image = noisy_shapes(24, 24)
    u, info = denoise(jnp.asarray(image, jnp.float32) + 8.0, 0.12)
    assert u.dtype == info.duality_gap.dtype == jnp.float32
    assert bool(info.converged)
    assert info.duality_gap >= 0
    with jax.enable_x64(True):
        exact, exact_info = denoise(image, 0.12, tolerance=1e-8)
    rounding = 24 * 8 * np.finfo(np.float32).eps
    error = np.linalg.norm(np.asarray(u, np.float64) - 8.0 - np.asarray(exact))
    assert error <= float(info.error_bound) + float(exact_info.error_bound) + rounding
    half, _ = denoise(jnp.asarray(image, jnp.bfloat16), 0.12)
    assert half.dtype == jnp.bfloat16


def test_the_envelope_has_gradient_image_minus_u(x64):
    """e(f) = min J satisfies ∇e = f − u: by central differences of the energy; forward mode agrees with differences."""
    signal, direction = noisy_shapes(20), np.random.default_rng(3).normal(size=20)
    u, _ = denoise(signal, 0.2, tolerance=1e-10)
    energy = lambda h: denoise(signal + h * direction, 0.2, tolerance=1e-10)[1].energy
    slope = (energy(1e-4) - energy(-1e-4)) / 2e-4
    assert slope == pytest.approx(float(direction @ (signal - u)), rel=1e-4)
    moved = lambda h: denoise(signal + h * direction, 0.2, tolerance=1e-10)[0]
    _, tangent = jax.jvp(moved, (0.0,), (1.0,))
    np.testing.assert_allclose(tangent, (moved(1e-5) - moved(-1e-5)) / 2e-5, atol=1e-4)
    with pytest.raises(ValueError, match="Reverse-mode differentiation does not work"):
        jax.grad(lambda f: denoise_total_variation(f, 0.2)[0].sum())(signal)


def test_what_is_traced_and_bad_is_reported():
    image = jnp.ones((4, 4)).at[1, 2].set(jnp.nan)
    for bad, weight in [(image, 0.1), (jnp.ones((4, 4)), -1.0), (jnp.full((4, 4), jnp.inf), 0.1)]:
        _, info = denoise(bad, weight)
        assert not bool(info.converged)
        assert not np.isfinite(info.duality_gap)


@pytest.mark.parametrize(
    ("image", "options", "error", "message"),
    [
        ([1.0, np.nan], {}, ValueError, "image must be finite, got 1 entries that are not"),
        ([1, 2], {}, TypeError, "image has dtype int64, expected a floating dtype"),
        (1.0, {}, ValueError, "image must have at least one axis besides its channels"),
        ([1.0], {"channel_axis": 0}, ValueError, "image must have at least one axis besides its channels"),
        ([[1.0]], {"channel_axis": 2}, ValueError, "channel_axis must be an axis of shape"),
        ([1.0], {"weight": -0.1}, ValueError, "weight must be finite and at least 0, got -0.1"),
        (
            [1.0],
            {"channels": "both"},
            ValueError,
            "channels must be one of 'coupled', 'separate', got 'both'",
        ),
        ([1.0], {"tolerance": 1e-6}, ValueError, "tolerance must be at least 1e-05 in float32"),
        ([1.0], {"tolerance": 0.0}, ValueError, "tolerance must be positive and finite"),
        ([1.0], {"max_steps": 0}, ValueError, "max_steps must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_named(image, options, error, message):
    with pytest.raises(error, match=message):
        denoise_total_variation(np.asarray(image), **({"weight": 0.1} | options))
