"""The bake-off is fair: equal minibatches, test data unseen in tuning, nothing dropped, statistics as in the books."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import pytest
from scipy import stats

from experiments import _bakeoff_methods as methods
from experiments import _bakeoff_presets, _bakeoff_report, _bakeoff_summary, _published, _run, bakeoff
from experiments import _bakeoff_statistics as statistics
from experiments import _bakeoff_training as training
from experiments.__main__ import draw
from experiments._bakeoff_spaces import Choice, candidates
from experiments._bakeoff_tasks import Spec, Task


class Lines:
    """A task without a network: fit w to points, so that cells compile in a moment."""

    def __init__(self):
        self.measured = []

    def task(self, diverging=False):
        inputs = jnp.asarray(np.random.default_rng(0).normal(size=(24, 3)), jnp.float32)
        parts = [(inputs + n, jnp.full(24, n)) for n in range(3)]

        def loss(params, batch, key):
            del key
            return jnp.mean((params["w"][None] - batch[0]) ** 2) * (1e30 if diverging else 1.0)

        def evaluate(params, data):
            jax.debug.callback(lambda which: self.measured.append(set(np.ravel(which).tolist())), data[0][1])
            losses = jnp.stack([loss(params, part, None) for part in data])
            return losses, losses

        spec = Spec("lines", "digits", None, (24, 24, 24), 4, 80, 0.0)
        init = lambda key: {"w": jax.random.normal(key, (3,))}
        return Task("lines", spec, *parts, init, loss, evaluate, (1.0, "nats"), 5.0, 0.0, "none")


@pytest.fixture
def lines(monkeypatch):
    """The bake-off of one such task in place of the presets."""
    made = Lines()
    preset = _bakeoff_presets.Preset({"lines": made.task().spec}, ("SGD, cosine", "SAM"), 3, 2, 2)
    monkeypatch.setitem(bakeoff.PRESETS, "smoke", preset)
    monkeypatch.setattr(bakeoff, "make_task", lambda name, spec, **_: made.task())
    return made


class Interrupted(Exception):  # noqa: N818
    """Stands for Ctrl-C."""


@pytest.mark.parametrize("method", methods.KNOWN.values(), ids=lambda m: m.name)
def test_every_gradient_is_counted_and_has_its_own_index(method):
    """Two updates ask for the gradients 0 … 2·gradients_per_update − 1 of the training, each once."""
    seen = []

    def value_and_gradient(params, n):
        jax.debug.callback(lambda index: seen.append(int(index)), n)
        return jnp.sum((params["w"] - 1) ** 2) / 2, {"w": params["w"] - 1}

    hyper = {name: jnp.float32(v[0]) for name, v in candidates(method.name, method.space, 1, seed=0).items()}
    key, params = jax.random.key(0), {"w": jnp.zeros(3)}

    @jax.jit
    def train(hyper, key, params):
        state = training.start(method, 4, hyper, key, params)
        step = lambda state, _: (training.update(method, 4, value_and_gradient, state, hyper, key), None)
        state, _ = jax.lax.scan(step, state, length=2)
        evaluated = (
            state.average if state.average is not None else method.evaluated(state.moved, state.opt_state)
        )
        return evaluated, method.visible(state.moved)

    evaluated, visible = train(hyper, key, params)
    jax.effects_barrier()
    assert sorted(seen) == list(range(2 * method.gradients_per_update))
    assert evaluated["w"].shape == (3,)
    # Slow weights may not have begun to move yet, and where a gradient is taken may lie behind.
    assert np.all(np.maximum(evaluated["w"], visible["w"]) > 0), "two updates go towards the minimum at 1"


def test_minibatches_are_epochs_without_replacement_and_know_no_method(lines):
    order = training.minibatches(jax.random.key(3), 24, 4, 10)
    assert sorted(order[:6].ravel()) == list(range(24))
    assert order.shape == (10, 4)
    again = training.minibatches(jax.random.key(3), 24, 4, 12)[:10]
    np.testing.assert_array_equal(order, again)
    trainers = [training.Trainer(lines.task(), 80, 2, 2, seed=0) for _ in range(2)]
    draws = [jax.tree.leaves(t.draw("test", [0, 1])[1:]) for t in trainers]
    for one, other in zip(*draws, strict=True):
        np.testing.assert_array_equal(one, other)
        assert not np.array_equal(one[0], one[1]), "seeds differ"
    tuned = jax.tree.leaves(trainers[0].draw("tuning", [0, 1])[1:])
    assert not any(np.array_equal(a, b) for a, b in zip(tuned, draws[0], strict=True))


def test_an_update_of_sgd_is_the_one_by_hand():
    """Two steps of Nesterov's momentum on the minibatches in order, rate falling as a cosine."""
    method, gradients = methods.KNOWN["SGD, cosine"], jnp.array([1.0, -2.0])
    hyper, key = {"rate": jnp.float32(0.1), "momentum": jnp.float32(0.5)}, jax.random.key(0)
    state = training.start(method, 4, hyper, key, jnp.zeros(()))
    for _ in range(2):
        state = training.update(method, 4, lambda p, n: (0.0, gradients[n]), state, hyper, key)
    rates = 0.1 * (1 + np.cos(np.pi * np.arange(2) / 4)) / 2
    trace = [1.0, -2.0 + 0.5]
    expected = -rates[0] * (1.0 + 0.5 * trace[0]) - rates[1] * (-2.0 + 0.5 * trace[1])
    np.testing.assert_allclose(state.moved, expected, rtol=1e-5)


def test_averages_are_the_plain_means_they_claim():
    hyper, key = {"rate": 0.1, "forgetting": 0.0, "start": 0.5}, jax.random.key(0)
    for name, first in (
        ("SGD, EMA", 1),
        ("SGD, SWA", 3),
    ):  # EMA forgets nothing at 0; SWA starts after update 3 of 6
        method, iterates = methods.KNOWN[name], []
        state = training.start(method, 6, hyper, key, jnp.ones(()))
        for _ in range(6):
            state = training.update(method, 6, lambda p, n: (0.0, p), state, hyper, key)
            iterates.append(float(state.moved))
        np.testing.assert_allclose(
            state.average, np.mean(iterates[first - 1 if first == 1 else first :]), rtol=1e-5
        )


def test_tuning_sees_validation_only_and_testing_fresh_seeds(lines):
    results = bakeoff.run(bakeoff.SMOKE)
    jax.effects_barrier()
    # Two methods; tuning has 3 candidates on 2 lanes, so 2 parts of 2 reports; testing 1 part of 2 reports.
    assert lines.measured == 2 * [{1}, {1}, {1}, {1}, {2}, {2}]
    best = np.argmin(results["validation_error"][0, :, :, -1], -1)
    np.testing.assert_array_equal(results["chosen"][0], best)
    np.testing.assert_array_equal(results["gradients"], [[40, 80]])


def test_choice_is_by_final_validation_error_then_loss_and_never_a_diverged_run():
    tuning = {
        "error": np.array([[0.0, 0.5, 0.5, 0.5], [0.3, 0.2, 0.2, 0.2]]),
        "loss": np.array([[1.0, 1.0, 1.0, 1.0], [0.1, 0.7, 0.6, np.nan]]),
        "diverged": np.array([[False] * 4, [False, False, False, True]]),
    }
    assert bakeoff.choose(tuning) == 2


def test_a_run_that_diverges_counts_as_chance_and_stays(lines):
    trainer = training.Trainer(lines.task(diverging=True), 80, 2, 2, seed=0)
    method = methods.KNOWN["SGD, EMA"]
    runs = [training.Run({"rate": rate, "forgetting": 0.1}, 0) for rate in (0.0, 1.0, 1.0)]
    result = training.Program(trainer, method).train(runs, "tuning", trainer.task.validation)
    np.testing.assert_array_equal(result["diverged"], [[False, True, True]] * 2)
    np.testing.assert_array_equal(result["error"][:, 1:], np.full((2, 2), 5.0, np.float32))
    assert np.all(result["error"][:, 0] > 5), "a finite error is reported as it is"


def test_an_interrupted_grid_goes_on_to_the_same_numbers(lines, tmp_path, monkeypatch):
    whole = bakeoff.run(bakeoff.SMOKE, _run.Session(tmp_path / "whole"))
    train, calls = training.Program.train, []

    def interrupted(self, runs, stage, data, session):
        calls.append((self.method.name, stage))
        if len(calls) == 3:
            raise Interrupted
        return train(self, runs, stage, data, session)

    monkeypatch.setattr(training.Program, "train", interrupted)
    with pytest.raises(Interrupted):
        bakeoff.run(bakeoff.SMOKE, _run.Session(tmp_path / "cut"))
    resumed = bakeoff.run(bakeoff.SMOKE, _run.Session(tmp_path / "cut"))
    assert calls[3:] == [("SAM", "tuning"), ("SAM", "test")], "finished cells are not trained again"
    for name in whole.keys() - set(bakeoff.NOT_REPRODUCIBLE):
        assert resumed[name].tobytes() == whole[name].tobytes(), name


def test_files_hold_every_report_of_every_run(lines):
    results = bakeoff.run(bakeoff.SMOKE)
    files = bakeoff.files(results)
    rows = files["runs.csv"].decode().splitlines()
    assert rows[0].split(",") == list(_bakeoff_report.COLUMNS)
    assert len(rows) - 1 == 2 * (3 + 2) * 2  # methods, candidates and seeds, reports
    columns = _bakeoff_report.tidy(results)
    picked = (columns["method"] == "SAM") & (columns["stage"] == "test") & (columns["run"] == 1)
    np.testing.assert_array_equal(columns["error"][picked], results["test_error"][0, 1, 1])
    manifest = json.loads(files["manifest.json"])
    assert manifest["seeds"] == {"all": 0, "tuning": [0], "test": [0, 1]}
    assert set(manifest["columns"]) == set(columns)
    assert manifest["versions"]["optax"] == optax.__version__


def test_the_summary_is_sorted_by_rank_and_marks_what_is_clear_of_zero():
    """Ours is first on both tasks: by 1 ± a little on one, by 0.01 ± much on the other."""
    spread = np.array([-0.01, 0.0, 0.01])
    ours = np.stack([0.10 + 1.1 * spread, 0.299 + 5 * spread])
    sgd = np.stack([0.11 + spread, 0.30 - 5 * spread])
    errors = np.stack([sgd, ours], axis=1)[..., None]  # [task, method, seed, report]
    results = {
        "test_error": errors, "method": np.array(["SGD, cosine", "Lasry-Lions, SGD"]),
        "title": np.array(["one", "two"]), "unit": np.array(["%", "%"]), "factor": np.array([100.0, 100.0]),
    }  # fmt: skip
    assert _bakeoff_summary.best_of_ours(results) == "Lasry-Lions, SGD"
    errors_table, differences = _bakeoff_summary.summary(results).strip().split("\n\n")
    first, second = errors_table.splitlines()[2:]
    assert first.startswith("| *Lasry-Lions, SGD* | 1.0 | **10.00 ± 2.73** | **29.90 ± ")
    assert second.startswith("| SGD, cosine | 2.0 | 11.00 ± 2.48 | 30.00 ± ")
    lines = differences.splitlines()
    assert lines[2] == "| one (%) | **-1.00 ± 0.25** |"
    assert lines[3].startswith("| two (%) | -0.10 ± ")
    assert lines[4] == "| clear of 0, of 2 | 1 better, 0 worse |"


def test_our_methods_are_known():
    assert set(_bakeoff_summary.OURS) < set(methods.KNOWN)


def test_candidates_fill_their_spaces():
    """Every candidate lies in its space, a logarithm's marginal is uniform, another method or seed has other points."""
    for method in methods.KNOWN.values():
        for name, values in candidates(method.name, method.space, 8, seed=0).items():
            law = method.space[name]
            if isinstance(law, Choice):
                assert set(values) <= set(np.float32(law.values))
            else:
                assert np.all((values >= 0.999 * law.low) & (values <= 1.001 * law.high))
    sam = methods.KNOWN["SAM"]
    law, values = sam.space["rate"], candidates("SAM", sam.space, 64, seed=0)["rate"]
    unit = np.log(values / law.low) / np.log(law.high / law.low)
    # Halton's first coordinate: of 64 points exactly one in each of 64 equal intervals, scrambled or not.
    assert sorted(np.floor(64 * unit).astype(int)) == list(range(64))
    assert not np.array_equal(values, candidates("SAM", sam.space, 64, seed=1)["rate"])


def test_holm_ranks_and_paired_tests_are_those_of_the_books():
    np.testing.assert_allclose(statistics.holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_array_equal(statistics.ranks(np.array([[0.3, 0.1, 0.3]])), [[2.5, 1, 2.5]])
    np.testing.assert_array_equal(statistics.mean_ranks(np.array([[3.0, 1, 2], [1.0, 2, 3]])), [2, 1.5, 2.5])
    errors = np.random.default_rng(0).normal([[0], [1], [0]], size=(3, 8))
    found = statistics.paired(errors, 0)
    for name, adjusted in (("ttest_rel", found.t_test), ("wilcoxon", found.wilcoxon)):
        p = [getattr(stats, name)(row, errors[0]).pvalue for row in errors[1:]]
        low, high = np.argsort(p)
        np.testing.assert_allclose(adjusted[1 + low], min(1, 2 * p[low]))
        np.testing.assert_allclose(adjusted[1 + high], min(1, max(2 * p[low], p[high])))
    expected = stats.ttest_rel(errors[1], errors[0]).confidence_interval(0.95)
    np.testing.assert_allclose(found.difference[1] - found.half_width[1], expected.low)
    np.testing.assert_allclose(found.difference[1] + found.half_width[1], expected.high)
    assert np.isnan(found.t_test[0])
    same = statistics.paired(np.ones((2, 4)), 0)
    assert (same.t_test[1], same.wilcoxon[1], same.difference[1]) == (1, 1, 0)


def test_cost_of_a_target():
    curves = np.array([[3.0, 2.0, 1.0], [3.0, 2.5, 2.4]])
    np.testing.assert_array_equal(statistics.first_reached(curves, np.array([10, 20, 30]), 2.0), [20, np.nan])


def test_unknown_names_and_uneven_budgets_are_refused():
    with pytest.raises(ValueError, match="preset must be one of 'smoke', 'cpu', 'full', got 'fast'"):
        bakeoff.run(bakeoff.Config(preset="fast"))
    with pytest.raises(ValueError, match="methods must be one of 'SGD, step'"):
        bakeoff.resolve(bakeoff.Config(methods=("sgd",)))
    with pytest.raises(ValueError, match="tasks must be one of 'digits-cnn'"):
        bakeoff.resolve(bakeoff.Config(tasks=("imagenet",)))
    with pytest.raises(
        ValueError, match="gradients=50 of task mnist-1d must be a multiple of reports=2 times the 2"
    ):
        bakeoff.resolve(dataclasses.replace(bakeoff.SMOKE, gradients=50))
    with pytest.raises(ValueError, match="seeds must be at least 2"):
        bakeoff.resolve(dataclasses.replace(bakeoff.SMOKE, seeds=1))


@pytest.mark.parametrize("name", bakeoff.PRESETS)
def test_every_preset_resolves_and_states_its_cost(name):
    """Trainings times gradients, of all tasks."""
    config = bakeoff.Config(preset=name)
    preset, chosen = bakeoff.resolve(config)
    trainings = len(chosen) * (preset.candidates + preset.seeds)
    total = trainings * sum(spec.gradients for spec in preset.tasks.values())
    assert f" {total:,} minibatch gradients" in bakeoff.cost(config)


def test_missing_data_name_the_folder_and_the_way_out(tmp_path, monkeypatch):
    monkeypatch.delenv("JAXOPT_PDE_DATA", raising=False)
    config = bakeoff.Config(tasks=("mnist-mlp",), data_dir=str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=r"(?s)MNIST was not found.*JAXOPT_PDE_DATA.*leave the task out: --tasks"
    ):
        bakeoff.run(config)


@pytest.mark.parametrize("name", _published.NAMES)
def test_published_tables_are_whole(name):
    """A source, doubts, and rows as long as the columns; errors are percentages, of a published accuracy."""
    table = _published.published(name)
    assert table.source
    assert table.status
    assert table.rows
    assert all(len(row) == len(table.columns) for row in table.rows)
    for row in table.where():
        if row.get("test error %") is not None:
            assert 0 < row["test error %"] < 30


def test_published_numbers_stand_beside_ours(lines):
    results = bakeoff.run(bakeoff.SMOKE) | {"published": np.array(["LeNet"])}
    headers, rows = bakeoff.table(results)
    assert all(len(row) == len(headers) for row in rows)
    printed = [row for row in rows if row[0].startswith("LeNet, Entropy-SGD paper")]
    assert [row[1:4] for row in printed] == [
        ["Entropy-SGD", "–", "0.5 ± 0.01 %"],
        ["Adam", "–", "0.51 ± 0.01 %"],
    ]
    with pytest.raises(ValueError, match="name must be one of 'adversarial_table'"):
        _published.published("imagenet")


def test_files_are_written_beside_the_results(tmp_path):
    module = types.SimpleNamespace(
        figure=lambda results: plt.figure(), files=lambda results: {"a.csv": results["a"]}
    )
    draw(module, _run.Record("made", tmp_path, {}, {}, {"a": b"1,2\n"}))
    assert (tmp_path / "a.csv").read_bytes() == b"1,2\n"
