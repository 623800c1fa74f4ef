"""Rows of the contract about bad input: every mistake is named, with a remedy, before anything runs."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_pde
from tests.zoo import ZOO, names, parabola

every = pytest.mark.parametrize("name", ZOO)
multi = pytest.mark.parametrize("name", names(multi_gradient=True))


@every
def test_complex_params_are_refused_with_a_remedy(name):
    with pytest.raises(TypeError, match=r"params\['z'\] is complex.*real and\s+imaginary parts"):
        ZOO[name].make().init({"z": jnp.ones(2, jnp.complex64)})


@multi
def test_missing_arguments_are_named(name):
    entry, (params, _, _) = ZOO[name], parabola()
    tx = entry.make()
    with pytest.raises(ValueError, match="needs params"):
        tx.update(params, tx.init(params), grad_fn=lambda p, step: p)
    with pytest.raises(ValueError, match=r"grad_fn=lambda p, step: jax.grad\(loss\)\(p, batch\)"):
        tx.update(params, tx.init(params), params)


@pytest.mark.parametrize("name", names(multi_gradient=False))
def test_missing_params_are_named(name):
    entry, (params, _, _) = ZOO[name], parabola()
    tx = entry.make()
    with pytest.raises(ValueError, match="needs params"):
        tx.update(params, tx.init(params))


BAD = {
    "smoothing_time": [0.0, -1.0, float("inf"), float("nan"), np.float32(-1)],
    "inner_learning_rate": [0.0, -0.1, float("inf")],
    "temperature": [-1e-3, float("nan")],
    "num_steps": [0, -2],
    "num_chains": [0],
    "averaging": [1.0, -0.1],
    "burn_in": [10, -1],
    "inner_momentum": [1.0, -0.5],
    "learning_rate": [-1.0, float("nan")],
    "momentum": [1.0, -0.5],
    "weight_decay": [-1.0],
    "estimator": ["best"],
    "noise": ["uniform"],
    "chain_batch_size": [0],
    "num_samples": [0, -2, 7],
    "sample_batch_size": [0, 3],
    "f_min": [float("nan"), -float("inf")],
    "max_learning_rate": [-1.0, float("inf")],
    "decay": [1.0, -0.1],
    "window": [0],
    "strong_convexity": [0.0],
    "smoothness": [0.0, float("inf")],
    "initial_sq_distance": [0.0],
    "initial_gap": [0.0],
    "patience": [0],
    "max_microbatches": [0],
    "min_microbatches": [0, 5],
    "long_step_ratio": [0.5],
    "statistical_advantage": [0.0, 4.5],
    "small_constant": [0.0, 1.5],
    "horizon": [0.0, -1.0, float("inf")],
    "coupling_time": [0.0, -1.0, float("nan")],
    "num_particles": [0],
    "ascent_radius": [-0.1, float("inf")],
    "ascent_decay": [1.0, -0.1],
    "pull": [1.0, -0.1, float("nan")],
}
LIMITS = {("two_time_scale", "smoothing_time"): [float("inf")]}  # values in BAD that stand for a limit there


@pytest.mark.parametrize(
    ("factory", "argument", "value"),
    [
        (factory, argument, value)
        for factory in dict.fromkeys(entry.factory for entry in ZOO.values())
        for argument, values in BAD.items()
        for value in values
        if argument in factory.__annotations__ and value not in LIMITS.get((factory.__name__, argument), [])
    ],
)
def test_bad_numbers_raise_at_construction(factory, argument, value):
    arguments = next(e.arguments for n, e in ZOO.items() if n == factory.__name__)
    with pytest.raises(ValueError, match=f"{argument}.*{value!r}".replace("(", r"\(").replace(")", r"\)")):
        factory(**{**arguments, argument: value})


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("value", [2.5, "3", None, True, jnp.array(3)])
def test_the_number_of_gradients_must_be_a_python_integer(name, value):
    entry = ZOO[name]
    with pytest.raises(TypeError, match=f"{entry.loop} must be a Python integer"):
        entry.make(**{entry.loop: value})


@every
def test_integer_params_are_refused(name):
    with pytest.raises(TypeError, match=r"params\['n'\] has dtype int32"):
        ZOO[name].make().init({"n": jnp.arange(3)})


@multi
def test_a_masked_node_is_refused_with_a_remedy(name):
    tx = optax.masked(ZOO[name].make(), {"a": True, "b": False})
    with pytest.raises(TypeError, match=r"params\['b'\] is an optax.MaskedNode.*Put the mask"):
        tx.init({"a": jnp.ones(2), "b": jnp.ones(2)})


@pytest.mark.parametrize("name", names(multi_gradient=False))
def test_one_gradient_forms_stand_inside_masked_and_partition(name):
    entry = ZOO[name]
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    tx = optax.partition({"smooth": entry.make(), "plain": optax.sgd(0.1)}, {"a": "smooth", "b": "plain"})
    state = tx.init(params)
    for _ in range(4):
        updates, state = tx.update(params, state, params)
        params = optax.apply_updates(params, updates)
    evaluated = jaxopt_pde.eval_params(state, params)
    np.testing.assert_array_equal(evaluated["a"], 1.0)  # the anchor, still where it was
    np.testing.assert_array_equal(evaluated["b"], params["b"])
    assert bool(jnp.all(params["a"] != 1.0))


@multi
def test_a_gradient_of_another_shape_is_refused(name):
    tx, params = ZOO[name].make(), {"a": jnp.ones(2)}
    with pytest.raises(ValueError, match="grad_fn must give a tree like params"):
        tx.update(params, tx.init(params), params, grad_fn=lambda p, step: (1.0, p))
    with pytest.raises(ValueError, match=r"grad_fn gave a leaf of shape \(\) at \['a'\]"):
        tx.update(params, tx.init(params), params, grad_fn=lambda p, step: {"a": p["a"].sum()})
