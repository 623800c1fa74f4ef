"""Stochastic problems: minima, constants and minibatch moments against enumeration, autodiff and the eigenvalues."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_pde import problems
from jaxopt_pde.problems import StochasticProblem

TILTED = np.array([[3.0, 1.0], [1.0, 2.0]])
COVARIANCE = np.array([[0.5, 0.2], [0.2, 1.0]])
FEATURES = np.array([0.0, 1.0]) + np.random.default_rng(3).normal(size=(6, 2))
OFFSETS = np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]])[[0, 1, 2, 0, 1, 1]]
DATA = OFFSETS + 0.5 * np.random.default_rng(4).normal(size=(6, 2))
SPLIT = [[-0.3, 0.2], [3.4, 0.5], [0.2, 3.1]]

SAMPLED = {
    "one mean": lambda: problems.kmeans(DATA),
    "three means": lambda: problems.kmeans(DATA, 3, initial=SPLIT),
    "two classes": lambda: problems.logistic(FEATURES, [0, 1, 1, 0, 1, 0], regularisation=0.1),
    "three classes": lambda: problems.logistic(FEATURES, list("abcabc"), regularisation=0.1),
}
LAWS = ("gaussian", "rademacher", "radial", "tangential")
QUADRATICS = {
    "covariance": lambda: problems.noisy_quadratic(
        TILTED, noise_covariance=COVARIANCE, minimiser=[1.0, 2.0], minimum=0.7
    ),
    **{
        law: lambda law=law: problems.noisy_quadratic([1.0, 4.0], noise_variance=3.0, law=law) for law in LAWS
    },
}
PROBLEMS = {**SAMPLED, **QUADRATICS}


def points_near(problem, count, scale=0.3):
    return problem.minimiser + scale * np.random.default_rng(0).normal(size=(count, problem.dimension))


def every_minibatch(count, size, replace):
    return (
        itertools.product(range(count), repeat=size)
        if replace
        else itertools.combinations(range(count), size)
    )


@pytest.mark.parametrize("replace", [True, False])
@pytest.mark.parametrize("name", SAMPLED)
def test_minibatch_moments_are_those_of_all_minibatches(name, replace, x64):
    """The gradients of every possible minibatch: their mean, variance and mean square, to 1e-12."""
    problem = dataclasses.replace(SAMPLED[name](), replace=replace)
    n, size = problem.num_examples, 2 if replace else 4
    batches = jnp.array(list(every_minibatch(n, size, replace)))

    @jax.jit
    @jax.vmap
    def moments(x):
        gradients = jax.vmap(lambda batch: jax.grad(problem.batch_loss)(x, batch))(batches)
        mean = jnp.mean(gradients, axis=0)
        spread = jnp.mean(jnp.sum((gradients - mean[None]) ** 2, axis=1))
        exact = (
            problem.gradient(x),
            problem.gradient_variance(x, size),
            problem.expected_grad_sq_norm(x, size),
        )
        return exact, (mean, spread, jnp.mean(jnp.sum(gradients**2, axis=1)))

    exact, enumerated = moments(points_near(problem, 5, scale=1.0))
    for one, other in zip(exact, enumerated, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-13)
    assert problem.variance_factor(n) == (1 / n if replace else 0.0)


@pytest.mark.parametrize("replace", [True, False])
def test_cluster_moments_are_those_of_all_minibatches(replace, x64):
    """Centre by centre, as defined and averaged over the active examples, where there are any."""
    problem = dataclasses.replace(problems.kmeans(DATA, 3, initial=SPLIT), replace=replace)
    n, size = problem.num_examples, 3
    batches = jnp.array(list(every_minibatch(n, size, replace)))
    x = points_near(problem, 1)[0]
    moments = problems.cluster_moments(DATA, x.reshape(3, 2))
    f = 0.5 * np.sum(moments.sizes / n * (moments.variances + moments.sq_distances))
    np.testing.assert_allclose(problem.loss(x), f, rtol=1e-14)

    @jax.jit
    @jax.vmap
    def both(batch):
        return jax.grad(problem.batch_loss)(x, batch), *problems.active_gradient(x, jnp.asarray(DATA)[batch])

    blocks, active_blocks, counts = (np.asarray(value) for value in both(batches))
    blocks, active_blocks = blocks.reshape(-1, 3, 2), active_blocks.reshape(-1, 3, 2)
    spread = np.mean(np.sum((blocks - np.mean(blocks, axis=0)) ** 2, axis=2), axis=0)
    by_cluster = problems.cluster_gradient_variance(moments, size, replace=replace)
    np.testing.assert_allclose(by_cluster, spread, rtol=1e-12)
    np.testing.assert_allclose(by_cluster.sum(), problem.gradient_variance(x, size), rtol=1e-12)

    active = problems.active_gradient_variance(moments, size, replace=replace)
    for j in range(3):
        block = active_blocks[counts[:, j] > 0, j]
        np.testing.assert_allclose(
            np.sum(block.mean(axis=0) ** 2), moments.sq_distances[j], rtol=1e-12, atol=1e-20
        )
        spread = np.mean(np.sum((block - block.mean(axis=0)) ** 2, axis=1))
        np.testing.assert_allclose(spread, active[j], rtol=1e-12, atol=1e-20)
        present = counts[:, j][counts[:, j] > 0]
        inverse = problems.inverse_active_count(int(moments.sizes[j]), n, size, replace=replace)
        np.testing.assert_allclose(inverse, np.mean(1.0 / present), rtol=1e-12)
    assert np.all(active[active > 0] > by_cluster[active > 0] / (moments.sizes / n)[active > 0])


def test_the_approximation_of_the_talk_is_the_large_batch_limit():
    """s/(pb) for the active examples: 3 where the truth is 1 at p = 1/3, b = 1; within 1 % from pb = 100 on."""
    assert problems.inverse_active_count(100, 300, 1) == 1.0
    assert problems.inverse_active_count(1000, 3000, 300) == pytest.approx(3 / 300, rel=1e-2)


@pytest.mark.parametrize("law", LAWS)
def test_the_noise_has_mean_zero_the_stated_covariance_and_direction(law, x64):
    """E|e|² = σ²/b, within 4.5 standard errors over 20,000 minibatches of 3; exactly σ² for one sign or tangent."""
    problem = QUADRATICS[law]()
    x = jnp.array([0.6, -0.8])
    keys = jax.random.split(jax.random.key(0), 20_000)
    draw = lambda size: jax.jit(
        jax.vmap(lambda key: problem.minibatch_gradient(x, key, size) - problem.gradient(x))
    )(keys)
    noise = np.asarray(draw(3))
    squares = np.sum(noise**2, axis=1)
    errors = noise.std(axis=0) / np.sqrt(len(keys))
    assert np.all(np.abs(noise.mean(axis=0)) < 4.5 * errors)
    assert abs(squares.mean() - problem.gradient_variance(x, 3)) < 4.5 * squares.std() / np.sqrt(len(keys))
    single = np.asarray(draw(1))
    along = single @ x
    if law != "gaussian":
        np.testing.assert_allclose(np.sum(single**2, axis=1), 3.0, rtol=1e-12)
    if law == "tangential":
        assert np.abs(along).max() < 1e-12
    if law == "radial":
        np.testing.assert_allclose(along**2, 3.0, rtol=1e-12)
    at_minimiser = jax.vmap(lambda key: problem.minibatch_gradient(jnp.zeros(2), key))(keys[:100])
    assert np.all(np.isfinite(at_minimiser))


def test_a_covariance_shapes_the_noise(x64):
    """Rademacher's signs enumerated: E ee' = C exactly. Gaussian: within 4.5 standard errors."""
    signs = jnp.array(list(itertools.product([-1.0, 1.0], repeat=2)))
    rademacher = problems.noisy_quadratic(TILTED, noise_covariance=COVARIANCE, law="rademacher")
    x = jnp.array([0.3, 0.4])
    noise = jax.vmap(lambda z: jax.grad(rademacher.batch_loss)(x, z[None]) - rademacher.gradient(x))(signs)
    np.testing.assert_allclose(noise.T @ noise / 4, COVARIANCE, rtol=1e-12)
    gaussian = QUADRATICS["covariance"]()
    keys = jax.random.split(jax.random.key(1), 20_000)
    noise = jax.jit(jax.vmap(lambda key: gaussian.minibatch_gradient(x, key) - gaussian.gradient(x)))(keys)
    variances = np.outer(np.diag(COVARIANCE), np.diag(COVARIANCE)) + COVARIANCE**2
    assert np.all(np.abs(noise.T @ noise / 20_000 - COVARIANCE) < 4.5 * np.sqrt(variances / 20_000))


@pytest.mark.parametrize("name", PROBLEMS)
def test_minimum_minimiser_and_constants(name, x64):
    """∇f(x*) = 0 and f(x*) = f*; every Hessian lies between μ and L; F, E|e|² and the draws are what they claim."""
    problem = PROBLEMS[name]()
    np.testing.assert_allclose(problem.loss(problem.minimiser), problem.minimum, rtol=1e-14)
    assert np.abs(problem.gradient(jnp.asarray(problem.minimiser))).max() < 1e-14 * max(
        1.0, problem.smoothness
    )
    # Three means: near enough that no example changes its cluster.
    points = points_near(problem, 50, scale=0.1 if not problem.convex else 2.0)
    values = jax.jit(
        jax.vmap(
            lambda x: (
                problem.excess_loss(x),
                problem.loss(x),
                problem.example_variance(x),
                jax.hessian(problem.loss)(x),
            )
        )
    )
    excess, losses, variances, hessians = (np.asarray(v) for v in values(points))
    np.testing.assert_allclose(excess, losses - problem.minimum, rtol=1e-12, atol=1e-13)
    eigenvalues = np.linalg.eigvalsh(hessians)
    assert eigenvalues.min() >= problem.strong_convexity * (1 - 1e-12)
    assert eigenvalues.max() <= problem.smoothness * (1 + 1e-12)
    bounds = problem.example_noise_variance + 2 * problem.example_noise_growth * excess
    assert np.all(variances <= bounds * (1 + 1e-12))
    if name not in ("two classes", "three classes"):
        np.testing.assert_allclose(eigenvalues.min(), problem.strong_convexity, rtol=1e-12)
        np.testing.assert_allclose(eigenvalues.max(), problem.smoothness, rtol=1e-12)
    if problem.example_noise_growth == 0:
        np.testing.assert_allclose(variances, problem.example_noise_variance, rtol=1e-13)


def test_the_constants_of_logistic_regression_are_attained(x64):
    """L at 0 for two classes and far out for more, μ far out."""
    two, features = SAMPLED["two classes"](), np.column_stack([np.ones(6), FEATURES])
    top = lambda problem, x: np.linalg.eigvalsh(jax.jit(jax.hessian(problem.loss))(jnp.asarray(x, float)))
    assert top(two, np.zeros(2))[-1] == pytest.approx(two.smoothness, rel=1e-12)
    assert top(two, [300.0, 500.0])[0] == pytest.approx(0.1, rel=1e-9)
    three = problems.logistic(features, list("abcabc"), regularisation=0.1)
    weights = np.zeros((3, 3))
    weights[2, 0] = -60.0  # the third class never: the other two at odds
    assert top(three, weights.ravel())[-1] == pytest.approx(three.smoothness, rel=1e-9)


def certificate(problem):
    """|∇f|²/(2λ), which bounds f − f*, by autodiff at x*; and f there."""
    value, gradient = jax.jit(jax.value_and_grad(problem.loss))(jnp.asarray(problem.minimiser))
    np.testing.assert_allclose(value, problem.minimum, rtol=1e-14)
    return float(jnp.sum(gradient**2)) / (2 * problem.strong_convexity)


def test_logistic_regression_is_that_of_scikit_learn(x64):
    """Breast cancer: f − f* < 1e-20 by the certificate, and another solver comes as near as its tolerance."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    from sklearn.datasets import load_breast_cancer

    features, labels = load_breast_cancer(return_X_y=True)
    features = (features - features.mean(0)) / features.std(0)
    problem = problems.logistic(features, labels, regularisation=1e-2)
    assert certificate(problem) < 1e-20
    theirs = linear_model.LogisticRegression(C=1 / (1e-2 * len(labels)), fit_intercept=False, tol=1e-8)
    theirs = jnp.asarray(theirs.fit(features, labels).coef_.ravel())
    assert -1e-14 < float(problem.loss(theirs)) - problem.minimum < 1e-8


@pytest.mark.parametrize("classes", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_the_minimum_on_the_digits_is_certified(classes, x64):
    features, labels = pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)
    for regularisation in (1e-1, 1e-4):
        problem = problems.logistic(features / 16, labels % classes, regularisation=regularisation)
        assert certificate(problem) < 1e-18


def test_draws_are_minibatches_of_the_kind_promised():
    problem = problems.kmeans(np.arange(10.0)[:, None], batch_size=4)
    keys = jax.random.split(jax.random.key(0), 1000)
    for replace in (True, False):
        indices = np.asarray(jax.jit(jax.vmap(dataclasses.replace(problem, replace=replace).draw))(keys))
        assert indices.shape == (1000, 4)
        distinct = np.all(np.diff(np.sort(indices, axis=1), axis=1) > 0, axis=1)
        expected = 0.504 if replace else 1.0  # 10·9·8·7/10⁴
        assert distinct.mean() == pytest.approx(expected, abs=4.5 * np.sqrt(0.25 / 1000) * replace)
        shares = np.bincount(indices.ravel(), minlength=10) / 4000
        np.testing.assert_allclose(shares, 0.1, atol=4.5 * 0.3 / np.sqrt(4000))
    # The gradient is that of the loss on the minibatch of the same key; halves of a minibatch are minibatches.
    x, key = jnp.array([2.0]), keys[0]
    batch = problem.draw(key)
    np.testing.assert_allclose(
        problem.minibatch_gradient(x, key), jax.grad(problem.batch_loss)(x, batch), rtol=1e-6
    )
    halves = 0.5 * (problem.batch_loss(x, batch[:2]) + problem.batch_loss(x, batch[2:]))
    np.testing.assert_allclose(problem.minibatch_loss(x, key), halves, rtol=1e-6)


@pytest.mark.parametrize("name", [*SAMPLED, "covariance", "tangential"])
def test_it_composes_and_keeps_the_dtype(name):
    """Keys vmapped, steps scanned; bfloat16 and float32 in, the same out."""
    problem = PROBLEMS[name]()

    def path(key):
        def step(x, key):
            rate = 2 * problem.excess_loss(x) / problem.expected_grad_sq_norm(x)
            return x - rate * problem.minibatch_gradient(x, key), problem.loss(x)

        return jax.lax.scan(step, problem.initial_point(), jax.random.split(key, 5))

    last, losses = jax.jit(jax.vmap(path))(jax.random.split(jax.random.key(0), 3))
    assert last.shape == (3, problem.dimension)
    assert np.all(np.isfinite(losses))
    assert len(np.unique(np.asarray(last)[:, 0])) == 3
    for dtype in (jnp.float32, jnp.bfloat16):
        x, key = problem.initial_point(dtype), jax.random.key(0)
        functions = (
            problem.loss,
            problem.excess_loss,
            problem.example_variance,
            problem.expected_grad_sq_norm,
        )
        for function in functions:
            assert jax.eval_shape(function, x).dtype == dtype, function
        assert jax.eval_shape(problem.minibatch_gradient, x, key).dtype == dtype


def test_planted_clusters_are_found(x64):
    data, labels, centres = problems.planted_clusters(
        0, 500, 4, 3, separation=8.0, deviation=0.5, fractions=[1, 2, 3, 4]
    )
    np.testing.assert_array_equal(np.bincount(labels), [50, 100, 150, 200])
    gaps = np.linalg.norm(centres[:, None] - centres, axis=-1)[~np.eye(4, dtype=bool)]
    assert gaps.min() == pytest.approx(4.0)
    problem = problems.kmeans(data, 4, batch_size=20)
    found = problem.minimiser.reshape(4, 3)
    order = np.argmin(np.linalg.norm(found[None] - centres[:, None], axis=-1), axis=1)
    means = np.stack([data[labels == j].mean(axis=0) for j in range(4)])
    assert sorted(order) == [0, 1, 2, 3]
    assert np.abs(found[order] - means).max() < 0.02
    assert (problem.strong_convexity, problem.smoothness) == pytest.approx((0.1, 0.4), abs=0.004)
    assert problem.noise_variance == pytest.approx(3 * 0.25 / 20, rel=0.1)
    with jax.enable_x64(False):
        np.testing.assert_array_equal(
            problems.planted_clusters(0, 500, 4, 3)[0], problems.planted_clusters(0, 500, 4, 3)[0]
        )
    assert not problem.convex
    one = problems.kmeans(problems.planted_clusters(1, 50, 1, 3)[0])
    assert one.convex
    assert (one.strong_convexity, one.smoothness, one.noise_growth) == (1.0, 1.0, 0.0)


def make(**changes):
    keywords = {
        "name": "p",
        "loss": jnp.sum,
        "batch_loss": lambda x, batch: jnp.sum(x),
        "example_variance": jnp.sum,
        "minimum": 0.0,
        "minimiser": [0.0],
        "initial": [1.0],
        "strong_convexity": 1.0,
        "smoothness": 2.0,
        "example_noise_variance": 1.0,
        "num_examples": 5,
    }
    return StochasticProblem(**{**keywords, **changes})


BAD = {
    "batch_size must be at least 1": lambda: problems.kmeans(DATA, batch_size=0),
    "at most the number of examples, 6, got 7": lambda: problems.kmeans(DATA, batch_size=7),
    "at most the number of examples, 5, got 6": lambda: make().gradient_variance(jnp.ones(1), 6),
    "batch_size must be at least 1, got 0": lambda: QUADRATICS["gaussian"]().draw(jax.random.key(0), 0),
    r"must leave no cluster empty: no example is nearest to centre \[2\]": lambda: problems.kmeans(
        DATA, 3, initial=[*SPLIT[:2], [99.0, 99.0]]
    ),
    "num_clusters must be at most the number of distinct examples, 2": lambda: problems.kmeans(
        [[0.0], [1.0], [1.0]], 3
    ),
    "num_clusters must be at least 1": lambda: problems.kmeans(DATA, 0),
    r"data must be finite, of shape \[n, m\]": lambda: problems.kmeans([1.0, 2.0]),
    r"initial must have shape \[2, 2\]": lambda: problems.kmeans(DATA, 2, initial=[[1.0, 2.0]]),
    "fractions must leave no cluster empty": lambda: problems.planted_clusters(
        0, 10, 2, 1, fractions=[1.0, 1e-3]
    ),
    "fractions must be positive": lambda: problems.planted_clusters(0, 10, 2, 1, fractions=[1.0, 0.0]),
    "num_examples must be at least 3, got 2": lambda: problems.planted_clusters(0, 2, 3, 1),
    "separation must be positive": lambda: problems.planted_clusters(0, 10, 2, 1, separation=0.0),
    "hessian must be positive definite": lambda: problems.noisy_quadratic([1.0, 0.0]),
    "hessian must be symmetric": lambda: problems.noisy_quadratic([[1.0, 2.0], [0.0, 1.0]]),
    "noise_covariance must be positive semidefinite": lambda: problems.noisy_quadratic(
        [1.0, 1.0], noise_covariance=[1.0, -1.0]
    ),
    r"noise_covariance must be finite, of shape \[2, 2\]": lambda: problems.noisy_quadratic(
        [1.0, 1.0], noise_covariance=[1.0]
    ),
    "noise_covariance must be None beside noise_variance": lambda: problems.noisy_quadratic(
        [1.0], noise_variance=1.0, noise_covariance=[1.0]
    ),
    "for law 'radial'": lambda: problems.noisy_quadratic([1.0], noise_covariance=[1.0], law="radial"),
    "noise_variance must be finite and at least 0": lambda: problems.noisy_quadratic(
        [1.0], noise_variance=-1.0
    ),
    "law must be one of": lambda: problems.noisy_quadratic([1.0], law="cauchy"),
    "law must not be 'tangential' in one dimension": lambda: problems.noisy_quadratic(
        [1.0], law="tangential"
    ),
    r"minimiser must be finite, of shape \[1\]": lambda: problems.noisy_quadratic(
        [1.0], minimiser=[1.0, 2.0]
    ),
    "labels must be of at least two classes": lambda: problems.logistic(FEATURES, np.ones(6)),
    r"labels must have shape \[6\]": lambda: problems.logistic(FEATURES, np.ones(5)),
    "regularisation must be positive": lambda: problems.logistic(FEATURES, range(6), regularisation=0.0),
    "features must be finite": lambda: problems.logistic(FEATURES * np.nan, range(6)),
    r"initial must have shape \[12\]": lambda: problems.logistic(FEATURES, range(6), initial=np.zeros(2)),
    "smoothness must be at least strong_convexity = 1.0, got 0.5": lambda: make(smoothness=0.5),
    "minimiser and initial must both have shape": lambda: make(initial=[1.0, 2.0]),
    "num_examples must be given": lambda: make(num_examples=None),
    "initial must be finite": lambda: make(initial=[np.nan]),
    r"centres \[k, m\] must have the same m": lambda: problems.cluster_moments(DATA, [[1.0]]),
    r"point \[k·m\] and examples \[b, m\] must fit": lambda: problems.active_gradient(
        jnp.ones(3), jnp.ones((2, 2))
    ),
    "size must be at most num_examples = 3, got 4": lambda: problems.inverse_active_count(4, 3, 1),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments_are_named(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()


def test_counts_must_be_integers_and_keys_concrete():
    with pytest.raises(TypeError, match=r"batch_size must be a Python integer, got 2\.5"):
        problems.kmeans(DATA, batch_size=2.5)
    with pytest.raises(TypeError, match="key must be concrete"):
        jax.jit(lambda seed: problems.planted_clusters(seed, 4, 2, 1)[0])(0)
