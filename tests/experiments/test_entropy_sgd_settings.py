"""Settings of Entropy-SGD: equal gradients, schedules that keep h = t, tuning without test data, the table."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from experiments import _bakeoff_training as training
from experiments import _entropy_sgd_variants as variants
from experiments import _run
from experiments import entropy_sgd_settings as settings

BASE = variants.VARIANTS[variants.BASE]


def test_every_variant_spends_the_gradients_it_is_charged_for():
    """Two updates ask for the gradients 0 … 2·K·L − 1 of the training, each once: one program for all variants."""
    programs = {variant.method.name: variant for variant in variants.VARIANTS.values()}
    seen = {name: [] for name in programs}

    @jax.jit
    def two_updates(params, key):
        for name, (_, _, method, fixed) in programs.items():

            def value_and_gradient(params, n, name=name):
                jax.debug.callback(lambda index: seen[name].append(int(index)), n)
                return jnp.sum((params - 1) ** 2) / 2, params - 1

            hyper = {**fixed, "rate": jnp.float32(0.01)}
            state = training.start(method, 4, hyper, key, params)
            step = lambda state, _, m=method, h=hyper, f=value_and_gradient: (
                training.update(m, 4, f, state, h, key),
                None,
            )
            jax.lax.scan(step, state, length=2)

    jax.block_until_ready(two_updates(jnp.zeros(3), jax.random.key(0)))
    jax.effects_barrier()
    for name, variant in programs.items():
        assert sorted(seen[name]) == list(range(2 * variant.method.gradients_per_update)), name
    config = settings.Config()
    assert len(settings.check(config)) == len(config.variants) == len(variants.VARIANTS)


def test_the_base_keeps_h_equal_to_t_and_both_in_proportion_to_the_rate():
    for name, share in (("base", 1.0), ("t = 500 ε", 1.0), ("h = t/2", 0.5), ("momentum 0.9", 0.1)):
        hyper = {**variants.VARIANTS[name].fixed, "rate": 0.02}
        for count in range(7):
            rate, time, step = (schedule(count) for schedule in variants.schedules(hyper, 7))
            np.testing.assert_allclose(step, share * time, rtol=1e-6)
            np.testing.assert_allclose(time, hyper["time_factor"] * rate, rtol=1e-6)
            np.testing.assert_allclose(rate, 0.01 * (1 + np.cos(np.pi * count / 7)), rtol=1e-5)


def test_scoping_falls_tenfold_from_the_first_update_to_the_last():
    for name, reference in (
        ("t / ε falls tenfold", "base"),
        ("ε constant, t falls tenfold", "ε and t constant"),
    ):
        scoped, plain = (
            variants.schedules({**variants.VARIANTS[v].fixed, "rate": 0.02}, 7) for v in (name, reference)
        )
        np.testing.assert_allclose(
            [scoped[1](n) / plain[1](n) for n in (0, 3, 6)], [1, 10**-0.5, 0.1], rtol=1e-5
        )
        assert all(scoped[2](n) == scoped[1](n) for n in range(7)), "h = t"
        assert all(scoped[0](n) == plain[0](n) for n in range(7)), "the inner rate is left alone"


def test_an_update_of_the_base_moves_to_the_mean_of_the_particles():
    """By hand: heavy ball around the anchor on gradients 1 … 20, the mean of the particles after steps 11 … 20."""
    rate, start, expected = 0.02, 0.5, []
    gradient = lambda y, n: np.sin(n + 1.0) + 0.3 * y
    for step, momentum in ((1.0, 0.0), (0.5, 0.0), (0.1, 0.9)):
        y, velocity, particles = start, 0.0, []
        for n in range(20):
            velocity = 0.9 * velocity - rate * (gradient(y, n) + (y - start) / (100 * rate))
            y += velocity
            particles.append(y)
        # Nesterov's first step is 1 + momentum times as long.
        expected.append(start + step * (1 + momentum) * (np.mean(particles[10:]) - start))
    names = ("base", "h = t/2", "momentum 0.9")
    hypers = [{**variants.VARIANTS[name].fixed, "rate": rate, "temperature": 0.0} for name in names]
    hyper = {key: jnp.array([h[key] for h in hypers], jnp.float32) for key in hypers[0]}

    @jax.jit
    @jax.vmap
    def one_update(hyper):
        key, x = jax.random.key(0), jnp.float32(start)
        state = training.start(BASE.method, 5, hyper, key, x)
        value_and_gradient = lambda p, n: (0.0, jnp.sin(n + 1.0) + 0.3 * p)
        return training.update(BASE.method, 5, value_and_gradient, state, hyper, key).moved

    np.testing.assert_allclose(one_update(hyper), expected, rtol=1e-5)


class Recorded:
    """A program whose errors are given: it notes what it is asked for."""

    def __init__(self, validation, test):
        self.errors, self.asked, self.updates = {"tuning": validation, "test": test}, [], 3
        self.trainer = types.SimpleNamespace(task=types.SimpleNamespace(validation="validation", test="test"))

    def train(self, runs, stage, data, session):
        self.asked.append((stage, data, [run.hyper["rate"] for run in runs]))
        errors = np.array([self.errors[stage] for _ in runs] if stage == "test" else self.errors[stage])
        return {"error": errors[None], "loss": errors[None], "diverged": errors[None] > 0.9}


def test_rates_are_chosen_on_validation_alone():
    config = dataclasses.replace(settings.Config(), num_tuning_seeds=2, num_seeds=3)
    rates = np.array([0.1, 0.2, 0.4])
    for test in (0.0, 1.0):
        program = Recorded([0.5, 0.3, 0.25, 0.35, 0.1, 1.0], test)
        cell = settings.measure(program, BASE, rates, config, _run.NULL_SESSION)
        assert [asked[:2] for asked in program.asked] == [("tuning", "validation"), ("test", "test")]
        assert program.asked[0][2] == [0.1, 0.1, 0.2, 0.2, 0.4, 0.4]
        assert program.asked[1][2] == [0.2] * 3
        assert cell["chosen"] == 1
        assert cell["gradients"] == 3 * 20
    error = np.array([[0.3], [0.2], [0.2], [0.9]])
    assert settings.choose(error, np.array([[1.0], [0.6], [0.5], [np.nan]])) == 2


@pytest.fixture(scope="module")
def made():
    """Two tasks, one with a floor, three variants, four seeds: numbers from a table of normal deviates."""
    random = np.random.default_rng(0)
    names = ["base", "L = 5", "SAM"]
    return {
        "task": np.array(["a", "b"]),
        "title": np.array(["one", "two"]),
        "unit": np.array(["%", "nats"]),
        "factor": np.array([100.0, 1.0]),
        "floor": np.array([0.0, 1.5]),
        "variant": np.array(names),
        "group": np.array([variants.VARIANTS[name].group for name in names]),
        "rates": np.array([[0.1, 0.3, 1.0]] * 2),
        "chosen": np.array([[1, 0, 2], [1, 1, 1]]),
        "test_error": np.array([0.1, 1.7])[:, None, None] + 0.01 * random.normal(size=(2, 3, 4)),
        "diverged": np.zeros((2, 3, 4), bool),
        "gradients": np.full((2, 3), 80),
        "updates": np.array([[4, 16, 40]] * 2),
    }


def test_differences_are_paired_and_relative_to_the_excess_over_the_floor(made):
    found, errors = settings.compare(made), made["test_error"]
    relative = [100 * (e[1] - e[0]) / (e[0] - f).mean() for e, f in zip(errors, (0.0, 1.5), strict=True)]
    for pair, values in zip(
        [*found.by_task, found.average], [*relative, np.mean(relative, axis=0)], strict=True
    ):
        interval = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
        half = (interval.high - interval.low) / 2
        np.testing.assert_allclose([pair.difference[1], pair.half_width[1]], [values.mean(), half])
        assert np.isnan(pair.difference[0])


def test_the_table_says_what_was_measured(made):
    headers, rows = settings.table(made)
    cells = [dict(zip(headers, row, strict=True)) for row in rows]
    one = {row["variant"]: row for row in cells if row["task"] == "one"}
    mean = 100 * made["test_error"][0, 1].mean()
    assert one["L = 5"]["test error"].startswith(f"{mean:.2f} ± ")
    assert [one[name]["rate"] for name in one] == ["0.3", "0.1 (edge)", "1 (edge)"]
    assert {row["gradients"] for row in cells} == {"80", "–"}
    assert [row["task"] for row in cells].count("average") == 3
    assert any("1.50" in row["test error"] for row in cells if "below" in row["variant"])


def test_smoke_spends_the_same_on_the_base_and_the_variant(smoke):
    found = smoke("entropy_sgd_settings").results
    np.testing.assert_array_equal(found["gradients"], [[80, 80]])
    np.testing.assert_array_equal(found["updates"], [[4, 8]])
    assert not np.array_equal(found["test_error"][0, 0], found["test_error"][0, 1])


def test_bad_configs_are_refused():
    for change, match in (
        ({"gradients": (90,)}, "multiple of the 20 gradients"),
        ({"scales": (1.0, 2.0)}, "scales must have one number"),
        ({"tasks": ("mnist",)}, "tasks must be one of"),
        ({"variants": ("L = 3",)}, "variants must be one of"),
        ({"num_seeds": 1}, "num_seeds"),
    ):
        with pytest.raises(ValueError, match=match):
            settings.check(dataclasses.replace(settings.SMOKE, **change))
