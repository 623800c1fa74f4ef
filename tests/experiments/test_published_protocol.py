"""The paper's protocol: its step rules by hand, equal gradients for all, whitening, All-CNN from files, resuming."""

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest

from experiments import _datasets, _methods, _protocol, _run, published_protocol
from experiments._cifar import Cifar
from experiments._protocol import STEPS, TASKS
from experiments.published_protocol import SMOKE, Config, Program
from tests.experiments.tiny_data import batch, binary_batch, lay, md5


def entropy_sgd_by_hand(curvature, position, *, etas, scopes, rate, momentum=0.9, averaging=0.25):
    """Algorithm 1 of the paper with its scaling by γ, momentum in both loops, no noise, on f = curvature x²/2."""
    trace = 0.0
    for eta, scope in zip(etas, scopes, strict=True):
        particle = mean = position
        velocity = 0.0
        for _ in range(STEPS):
            force = curvature * particle + scope * (particle - position)
            velocity = momentum * velocity - rate * force
            particle += velocity
            mean = averaging * mean + (1 - averaging) * particle
        slope = scope * (position - mean)
        trace = slope + momentum * trace
        position -= eta / scope * (slope + momentum * trace)
    return position


def test_two_updates_of_the_papers_entropy_sgd_are_those_by_hand():
    """The second is after the drop of η, and γ has gone half of its way."""
    spec, curvature, updates = TASKS["lenet"]._replace(noise=0.0, scope=0.5), 0.3, 2
    protocol = _protocol.protocol(spec, "Entropy-SGD", updates * STEPS, 1.0, None)
    method = protocol.build(0)

    @jax.jit
    def train(position):
        state = _methods.start(method, protocol.rate, position)
        step = lambda state, _: (
            _methods.update(method, lambda p, _: curvature * p, state, protocol.rate, lambda n: n),
            None,
        )
        return jax.lax.scan(step, state, length=updates)[0].params

    scopes = 0.5 * 1.001 ** (spec.updates * np.arange(2) / 2)
    expected = entropy_sgd_by_hand(curvature, 2.0, etas=(1.0, 0.1), scopes=scopes, rate=0.1)
    np.testing.assert_allclose(train(jnp.float32(2.0)), expected, rtol=1e-4)


@pytest.mark.parametrize(("task", "name", "first"), [("lenet", "Adam", 1e-3), ("allcnn", "SGD", 0.1)])
def test_rates_of_the_baselines_fall_by_five_after_three_tenths(task, name, first):
    """Adam's step on a constant gradient is its rate; SGD's is ten rates at the end of each constant piece."""
    total = 1000
    protocol = _protocol.protocol(TASKS[task], name, total, 1.0, None)
    transformation = protocol.build(0).make(protocol.rate)

    @jax.jit
    def train():
        def step(state, _):
            update, state = transformation.update(jnp.ones(()), state, jnp.ones(()))
            return state, -update

        return jax.lax.scan(step, transformation.init(jnp.ones(())), length=total)[1]

    expected = first / 5.0 ** np.arange(4) * (10 if name == "SGD" else 1)
    np.testing.assert_allclose(np.asarray(train())[[299, 599, 899, 999]], expected, rtol=1e-3)


def test_dropout_rates_are_the_papers():
    rate = lambda name: _protocol.protocol(TASKS["lenet"], name, 1000, 1.0, None).network.dropout_rate
    assert [rate(name) for name in TASKS["lenet"].methods] == [0.25, 0.25, 0.25, 0.5]


@pytest.mark.parametrize("count", [15, 400])
def test_white_images_have_the_covariance_of_a_ridge(count, monkeypatch):
    """C (C + 0.1 I)^(-1) for fewer and for more images than numbers in one, after mean 0 and norm 55."""
    monkeypatch.setattr(_protocol, "BLOCK", 150)  # two whole parts and a rest
    images = np.random.default_rng(0).integers(0, 256, (count, 3, 4, 2), np.uint8)
    whitening = _protocol.fit_whitening(images)
    flat = images.reshape(count, -1) - images.reshape(count, -1).mean(1, keepdims=True)
    flat *= 55 / np.linalg.norm(flat, axis=1, keepdims=True)
    covariance = np.cov(flat.T, bias=True)
    white = np.asarray(_protocol.prepare(jnp.asarray(images), tuple(map(jnp.asarray, whitening))))
    assert white.shape == images.shape
    found = np.cov(white.reshape(count, -1).T, bias=True)
    expected = covariance @ np.linalg.inv(covariance + 0.1 * np.eye(24))
    np.testing.assert_allclose(found, expected, atol=2e-4)


@functools.cache
def gradients_seen(name):
    """(index, first label, dropout key) of every gradient of two reports of a training, in the order of its run."""
    spec, seen, statistics = TASKS["lenet"], [], {}
    protocol = _protocol.protocol(spec, name, 2 * STEPS, 1.0, (1, 1))
    program = Program(spec, protocol, statistics, STEPS)

    def note(labels, key):
        seen.append((*labels.tolist(), *key.tolist()))

    def record(params, batch, whitening):
        del whitening
        jax.debug.callback(note, batch[1], jax.random.key_data(batch[2]), ordered=True)
        return jnp.sum(params**2)

    program._loss = record
    state = program.start(jax.random.key(0), jnp.ones(()))
    order = np.random.RandomState(0).permutation(4 * STEPS).reshape(2, STEPS, 2)
    data = jnp.zeros((4 * STEPS, 1)), jnp.arange(4 * STEPS)
    advance = jax.jit(program._advance)
    for report in range(2):
        first = jnp.asarray(report * STEPS)
        state = advance(state, jax.random.key(1), jnp.asarray(order[report]), first, data, None)
    jax.effects_barrier()
    return seen, order


@pytest.mark.parametrize("name", ["Entropy-SGD", "Adam"])
def test_every_gradient_has_its_minibatch_and_its_dropout(name):
    """In order, each once, no mask twice, and both the same for every method."""
    seen, order = gradients_seen(name)
    assert [row[:2] for row in seen] == [tuple(pair) for pair in order.reshape(-1, 2)]
    assert len({row[2:] for row in seen}) == 2 * STEPS
    assert seen == gradients_seen("Adam")[0]


class Interrupted(Exception):  # noqa: N818
    """Stands for Ctrl-C."""


@pytest.mark.slow
def test_a_killed_training_goes_on_to_the_same_bits_whatever_else_is_trained(smoke, always, tmp_path):
    """Interrupted in its second report, resumed; beside that the SMOKE run, which trains another method before."""
    whole, config = smoke("published_protocol").results, dataclasses.replace(SMOKE, methods=("Adam",))
    calls = []

    @contextlib.contextmanager
    def display(description, total):
        def advance(steps=1, **metrics):
            calls.append(metrics)
            if len(calls) == 2:
                raise Interrupted

        yield _run.Meter(advance)

    with pytest.raises(Interrupted):
        published_protocol.run(config, _run.Session(tmp_path, display))
    resumed = published_protocol.run(config, _run.Session(tmp_path, display))
    assert len(calls) == 2 + 3, "of four reports one was kept, one was lost when it was done"
    for name in ("test_error", "test_loss", "train_loss"):
        np.testing.assert_array_equal(resumed[name][0], whole[name][1])
        assert not np.array_equal(whole[name][:, 0], whole[name][:, 1]), "seeds differ"


@pytest.fixture
def tiny_cifar(tmp_path, monkeypatch):
    """A folder with CIFAR-10's binary batches of ten images each."""
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    files = {name: binary_batch(*batch(i)) for i, name in enumerate(names)}
    sums = {name: md5(data) for name, data in files.items()}
    monkeypatch.setattr(_datasets, "_CIFAR10", Cifar(sums, train=5, test=1))
    return lay(tmp_path / "cifar-10-batches-bin", files).parent


@pytest.mark.slow
def test_all_cnn_trains_from_files_in_the_layout_of_cifar10(tiny_cifar):
    config = Config(
        task="allcnn", methods=("SGD",), num_seeds=2, effective_epochs=2.0, reports=1, num_train=40,
        batch_size=4, widths=(2, 3), data_dir=str(tiny_cifar),
    )  # fmt: skip
    results = published_protocol.run(config)
    assert str(results["note"]) == "CIFAR-10"
    assert results["gradients"].tolist() == [20]
    assert results["epochs"].tolist() == [2.0]
    assert np.isfinite(results["train_loss"]).all()
    assert set(np.unique(np.rint(1000 * results["test_error"]) % 100)) == {0}, "tenths: of ten test images"
    rows = published_protocol.table(results)[1]
    assert [row[:4] for row in rows[1:]] == [
        ["All-CNN, the paper", "Entropy-SGD", "160", "7.81 ± 0.09"],
        ["All-CNN, the paper", "SGD", "180", "7.71 ± 0.19"],
    ]


def test_gradients_are_whole_outer_steps_nearest_to_the_epochs():
    count = functools.partial(published_protocol.gradients_per_report, num_train=60_000)
    assert count(Config(effective_epochs=10.0, reports=10)) == 460  # 468.75 a report
    assert count(Config(effective_epochs=100.0, reports=10)) == 4680  # 4687.5
    assert count(Config(effective_epochs=0.001, reports=1)) == STEPS


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "mnist"}, "task must be one of 'lenet', 'allcnn', 'digits', got 'mnist'"),
        ({"methods": ("SGD",)}, "methods must be one of 'Entropy-SGD'"),
        ({"num_seeds": 1}, "num_seeds must be"),
        ({"effective_epochs": 0.0}, "effective_epochs must be"),
        ({"num_train": 100}, "num_train must be"),
        ({"num_train": 10_000}, "num_train must be at most 125., the training images of digits"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        published_protocol.run(Config(**({"task": "digits"} | settings)))


def test_printed_levels_stand_in_the_figure(smoke):
    results = smoke("published_protocol").results | {"published": np.array("LeNet")}
    fig = published_protocol.figure(results)
    texts = [text.get_text() for text in fig.axes[0].texts]
    plt.close(fig)
    assert texts == ["Entropy-SGD, the paper: 0.50 ± 0.01 %", "Adam, the paper: 0.51 ± 0.01 %"]
