"""The increments: moments, independence, cost in random bits, shapes and dtypes."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxopt_pde._noise import NOISE_LAWS, draw_noise

SIZE = 400_000


@pytest.mark.parametrize("law", NOISE_LAWS)
def test_first_three_moments_are_those_weak_order_one_asks_for(law):
    """Mean 0, variance 1, third moment 0, each within 4.5 standard errors; the laws differ in the fourth."""
    draw = np.asarray(draw_noise(jax.random.key(0), jnp.zeros(SIZE), law), np.float64)
    fourth, sixth, eighth = {"gaussian": (3, 15, 105), "rademacher": (1, 1, 1)}[law]
    spread = 4.5 / np.sqrt(SIZE)
    assert abs(draw.mean()) < spread
    assert abs((draw**2).mean() - 1) <= spread * np.sqrt(fourth - 1)
    assert abs((draw**3).mean()) < spread * np.sqrt(sixth)
    assert abs((draw**4).mean() - fourth) <= spread * np.sqrt(eighth - fourth**2)


@pytest.mark.parametrize("law", NOISE_LAWS)
def test_entries_leaves_and_keys_are_independent(law):
    like = {"a": jnp.zeros((1000, 64)), "b": jnp.zeros((64, 1000))}
    first, second = (draw_noise(jax.random.key(k), like, law) for k in (0, 1))
    a, b, c = np.ravel(first["a"]), np.ravel(first["b"]), np.ravel(second["a"])
    bound = 4.5 / np.sqrt(a.size)
    for lag in (1, 2, 31, 32, 33, 64):  # 32 random bits share a word
        assert abs(np.mean(a[lag:] * a[:-lag])) < bound
    assert abs(np.mean(a * b)) < bound
    assert abs(np.mean(a * c)) < bound
    columns = np.corrcoef(first["a"], rowvar=False) - np.eye(64)
    assert np.abs(columns).max() < 5.5 / np.sqrt(1000)  # 2016 pairs


def test_rademacher_draws_one_bit_a_number():
    jaxpr = jax.make_jaxpr(
        lambda k: draw_noise(k, {"w": jnp.zeros((64, 10)), "b": jnp.zeros(33)}, "rademacher")
    )(jax.random.key(0))
    (bits,) = (eqn for eqn in jaxpr.eqns if eqn.primitive.name == "random_bits")
    assert bits.outvars[0].aval.shape == (640 // 32 + 2,)


@settings(max_examples=10, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 4), max_size=3), max_size=4), st.sampled_from(["float32", "bfloat16"])
)
def test_shapes_and_dtypes_are_those_of_the_tree(shapes, dtype):
    like = [jnp.zeros(shape, dtype) for shape in shapes]
    for law in NOISE_LAWS:  # traced alone: to compile for every shape takes seconds
        drawn = jax.eval_shape(lambda key, law=law: draw_noise(key, like, law), jax.random.key(0))
        chex.assert_trees_all_equal_shapes_and_dtypes(drawn, like)
