"""Products with the Hessian, extreme eigenvalues and traces, against dense matrices and known spectra."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_pde import landscape
from jaxopt_pde.landscape import _krylov

SIZE = 60


def quadratic(params, batch):
    """½ mean (xᵢᵀ w)², whose Hessian is mean xᵢ xᵢᵀ.""" ""
    return 0.5 * jnp.mean((batch @ params) ** 2)


def data_for(eigenvalues, key=0):
    """Examples xᵢ = √(N λᵢ) qᵢ with mean x xᵀ = Q diag(λ) Qᵀ exactly, in a random basis Q."""
    eigenvalues = np.asarray(eigenvalues, np.float64)
    basis, _ = np.linalg.qr(np.random.default_rng(key).normal(size=(len(eigenvalues),) * 2))
    return jnp.asarray(np.sqrt(len(eigenvalues) * eigenvalues)[:, None] * basis.T)


BULK = np.linspace(0.0, 1.0, SIZE - 6)
SPECTRA = {
    "apart": np.append(BULK, [3.0, 5.0, 8.0, 12.0, 17.0, 20.0]),
    "clustered": np.append(BULK, [9.8, 9.9, 9.96, 9.98, 9.99, 10.0]),
    "repeated": np.append(BULK, [4.0, 4.0, 7.0, 10.0, 10.0, 10.0]),
    "low rank": np.append(np.zeros(SIZE - 2), [2.0, 5.0]),
    "identity": np.ones(SIZE),
    "zero": np.zeros(SIZE),
}


def net_outputs(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["first"] + params["bias"][None])
    return hidden @ params["second"]


def net_loss_of_outputs(outputs, batch):
    return jnp.mean(jax.nn.logsumexp(outputs, axis=1) - jnp.sum(outputs * batch["y"], axis=1))


def net_loss(params, batch):
    return net_loss_of_outputs(net_outputs(params, batch), batch)


@pytest.fixture(scope="module")
def net():
    """A tanh network of 56 parameters with 37 examples: batches of 10 leave a rest."""
    random = np.random.default_rng(1)
    params = {"first": random.normal(size=(4, 7)), "bias": random.normal(size=7)}
    params["second"] = random.normal(size=(7, 3)) * 2
    labels = np.eye(3)[random.integers(3, size=37)]
    data = {"x": random.normal(size=(37, 4)), "y": labels}
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), (params, data))


def dense_hessian(loss_fn, params, data):
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    return np.asarray(jax.jit(jax.hessian(lambda flat: loss_fn(unravel(flat), data)))(flat))


def loader_of(data, size):
    number = jax.tree.leaves(data)[0].shape[0]
    cut = [jax.tree.map(lambda leaf, s=s: leaf[s : s + size], data) for s in range(0, number, size)]
    return lambda: iter(cut)


@pytest.mark.parametrize("name", SPECTRA)
def test_five_eigenvalues_of_known_spectra(name, x64):
    """To 1e-4 of each, in their multiplicity; an eigenvalue lies within the error given, which is small."""
    run = functools.partial(landscape.top_eigenvalues, quadratic, jnp.zeros(SIZE), data_for(SPECTRA[name]))
    got = run(jax.random.key(2), k=5)
    expected = np.sort(SPECTRA[name])[::-1][:5]
    np.testing.assert_allclose(got.mean, expected, rtol=1e-4, atol=1e-12)
    assert np.all(np.abs(got.mean - expected) <= got.probe_error + 1e-12)
    assert np.all(got.probe_error <= 1e-4 * expected[0] + 1e-12)
    assert got.batch_error is None


def test_the_second_copy_of_an_eigenvalue(x64):
    """10, 10, 10, 7: a Krylov space holds 10 once and 7, which both converge in the first round; k = 2 is 10 and 10."""
    run = functools.partial(landscape.top_eigenvalues, quadratic, jnp.zeros(SIZE), k=2, num_matvecs=12)
    np.testing.assert_allclose(run(data_for(SPECTRA["repeated"]), 0).mean, 10.0, rtol=1e-4)


def test_the_products_after_a_breakdown_are_cut_off(x64):
    """On the identity and on rank 2, T has the matrix's eigenvalues only, and weights that add up to 1."""
    start = jax.random.normal(jax.random.key(0), (SIZE,))
    for name, number in (("identity", 1), ("low rank", 3), ("zero", 1)):
        examples = data_for(SPECTRA[name])
        product = lambda v, examples=examples: examples.T @ (examples @ v) / SIZE
        for on_host in (False, True):
            krylov = _krylov.lanczos(product, start, 10, on_host=on_host)
            ritz = _krylov.ritz_pairs(krylov)
            assert int(jnp.sum(ritz.exist)) == number
            rows = krylov.basis[:number]
            np.testing.assert_allclose(rows @ rows.T, np.eye(number), atol=1e-9)
            expected = np.unique(SPECTRA[name])
            np.testing.assert_allclose(ritz.values[:number], expected, atol=1e-9)
            np.testing.assert_allclose(jnp.sum(ritz.vectors[0] ** 2), 1.0, rtol=1e-9)
            assert np.all(np.asarray(ritz.residuals) < 1e-9)


@pytest.mark.parametrize("which", ["largest", "smallest", "magnitude"])
def test_which_eigenvalues(which, net, x64):
    """Of an indefinite Hessian, in order; the vectors are orthonormal and eigenvectors to their residual."""
    params, data = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), net)
    matrix = dense_hessian(net_loss, params, data)
    values = np.linalg.eigvalsh(matrix)
    order = {"largest": -values, "smallest": values, "magnitude": -np.abs(values)}[which]
    got, vectors = landscape.top_eigenvectors(
        net_loss, params, data, 3, k=3, which=which, num_matvecs=12, tolerance=1e-6, max_rounds=60
    )
    np.testing.assert_allclose(got.mean, values[np.argsort(order)[:3]], rtol=1e-6)
    rows = jax.vmap(lambda tree: jax.flatten_util.ravel_pytree(tree)[0])(vectors)
    np.testing.assert_allclose(rows @ rows.T, np.eye(3), atol=1e-9)
    residuals = np.linalg.norm(rows @ matrix - got.mean[:, None] * rows, axis=1)
    np.testing.assert_allclose(residuals, got.probe_error, rtol=0.2, atol=1e-9)


def test_rounds_that_do_not_suffice_say_so():
    """One round for a crowded top: the residual is large, and an eigenvalue does lie within it."""
    spectrum = np.linspace(0.0, 1.0, 200)
    got = landscape.top_eigenvalues(
        quadratic, jnp.zeros(200), data_for(spectrum), 0, num_matvecs=6, max_rounds=1
    )
    assert got.probe_error[0] > 1e-3
    assert np.min(np.abs(spectrum - got.mean[0])) <= got.probe_error[0]
    more = landscape.top_eigenvalues(
        quadratic, jnp.zeros(200), data_for(spectrum), 0, num_matvecs=6, max_rounds=60
    )
    assert more.probe_error[0] <= 1e-4
    np.testing.assert_allclose(more.mean, 1.0, rtol=1e-4)


def test_products_and_spectrum_of_a_network(net):
    """hessian_vector_product and exact_spectrum against jax.hessian; the cut and a loader change rounding only."""
    params, data = net
    matrix = dense_hessian(net_loss, params, data)
    vector = jax.tree.map(jnp.cos, params)
    flat, unravel = jax.flatten_util.ravel_pytree(vector)
    scale = np.max(np.abs(matrix))
    for batch_size, source in ((None, data), (10, data), (None, loader_of(data, 10))):
        got = landscape.hessian_vector_product(net_loss, params, source, vector, batch_size=batch_size)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale), got, unravel(matrix @ flat)
        )
        spectrum = landscape.exact_spectrum(net_loss, params, source, batch_size=batch_size)
        np.testing.assert_allclose(spectrum, np.linalg.eigvalsh(matrix)[::-1], atol=2e-6 * SIZE * scale)


def test_a_loader_gives_what_arrays_give(net):
    """Every estimate with its errors, to rounding; the same batches in the two."""
    params, data = net
    for function, settings in (
        (landscape.top_eigenvalues, {"k": 2, "num_matvecs": 10, "tolerance": 1e-3}),
        (landscape.trace, {"num_probes": 4}),
    ):
        arrays = function(net_loss, params, data, jax.random.key(5), batch_size=10, **settings)
        loader = function(net_loss, params, loader_of(data, 10), jax.random.key(5), **settings)
        np.testing.assert_allclose(loader.mean, arrays.mean, rtol=1e-4)
        np.testing.assert_allclose(loader.batch_error, arrays.batch_error, rtol=1e-2)
        whole = function(net_loss, params, data, jax.random.key(5), **settings)
        np.testing.assert_allclose(whole.mean, arrays.mean, rtol=1e-4)
        assert whole.batch_error is None


def test_gauss_newton(net):
    """JᵀH_ℓJ by hand: positive semi-definite, the Hessian where the outputs are linear, usable as a loss."""
    params, data = net
    loss_fn = landscape.GaussNewton(net_outputs, net_loss_of_outputs)
    assert loss_fn == landscape.GaussNewton(net_outputs, net_loss_of_outputs)
    np.testing.assert_allclose(loss_fn(params, data), net_loss(params, data))
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    outputs = net_outputs(params, data)
    jacobian = jax.jacobian(lambda flat: net_outputs(unravel(flat), data))(flat).reshape(-1, flat.size)
    curvature = jax.hessian(net_loss_of_outputs)(outputs, data).reshape(outputs.size, outputs.size)
    expected = np.linalg.eigvalsh(np.asarray(jacobian.T @ curvature @ jacobian, np.float64))[::-1]
    got = landscape.exact_spectrum(loss_fn, params, data, batch_size=10)
    np.testing.assert_allclose(got, expected, atol=1e-5 * expected[0])
    assert np.min(got) > -1e-5 * expected[0]
    assert landscape.exact_spectrum(net_loss, params, data)[-1] < -0.01  # the Hessian itself is indefinite
    linear = landscape.GaussNewton(lambda w, x: x @ w, lambda outputs, x: 0.5 * jnp.mean(outputs**2))
    x, v = data["x"], jnp.arange(1.0, 5.0)
    products = [landscape.hessian_vector_product(f, jnp.ones(4), x, v) for f in (linear, quadratic)]
    np.testing.assert_allclose(*products, rtol=1e-5)


def test_the_trace_and_its_intervals():
    """Over 300 sets of probes: unbiased, and 95 % intervals of 20 probes cover as often as Student's t says they do."""
    data = data_for(SPECTRA["apart"]).astype(jnp.float32)
    run = lambda key: landscape.trace(quadratic, jnp.zeros(SIZE), data, key, num_probes=20)
    got = jax.jit(lambda keys: jax.lax.map(run, keys))(jax.random.split(jax.random.key(1), 300))
    true = np.sum(SPECTRA["apart"])
    matrix = np.asarray(data).T @ np.asarray(data) / SIZE
    variance = 2 * (np.sum(matrix**2) - np.sum(np.diag(matrix) ** 2)) / 20
    assert abs(np.mean(got.mean) - true) < 4 * np.sqrt(variance / 300)
    # The square of a standard deviation has the relative error √(2/n) over n draws, near enough.
    np.testing.assert_allclose(np.var(got.mean, ddof=1), variance, rtol=4 * np.sqrt(2 / 300))
    low, high = got.interval()
    covered = np.mean((low <= true) & (true <= high))
    expected = 0.935  # P(|t₁₉| ≤ 1.96)
    assert abs(covered - expected) < 4 * np.sqrt(expected * (1 - expected) / 300)


def test_batch_errors_cover_other_data():
    """Trace and top eigenvalue of 300 data sets: the standard error is the spread from one set to the next."""
    scales = jnp.sqrt(jnp.append(jnp.linspace(0.1, 1.0, 9), 6.0))

    def one(key):
        data = jax.random.normal(key, (400, 10)) * scales[None]
        top = landscape.top_eigenvalues(quadratic, jnp.zeros(10), data, key, batch_size=20)
        trace = landscape.trace(quadratic, jnp.zeros(10), data, key, batch_size=20)
        return top, trace

    top, trace = jax.jit(lambda keys: jax.lax.map(one, keys))(jax.random.split(jax.random.key(4), 300))
    # The relative error of the spread of 300 numbers is 1/√600, that of a mean of 300 spreads of 20 batches is less.
    np.testing.assert_allclose(np.mean(top.batch_error), np.std(top.mean), rtol=4 / np.sqrt(600) + 0.02)
    assert abs(np.mean(top.mean) - 6) < 0.15  # bias of order (trace/gap) variance/400 is 0.02
    total = np.sqrt(np.mean(trace.standard_error**2))
    np.testing.assert_allclose(total, np.std(trace.mean), rtol=4 / np.sqrt(600) + 0.02)
    assert abs(np.mean(trace.mean) - float(jnp.sum(scales**2))) < 4 * total / np.sqrt(300)


def test_nothing_is_compiled_twice(net):
    """The second call, with other weights and key, does not trace the loss; nor does it for a loader."""
    params, data = net
    traces = []

    def counted(params, batch):
        traces.append(1)
        return net_loss(params, batch)

    def run(source, key, scale):
        moved = jax.tree.map(lambda leaf: scale * leaf, params)
        settings = {"k": 2, "num_matvecs": 6, "max_rounds": 2}
        landscape.top_eigenvalues(counted, moved, source, jax.random.key(key), **settings)
        landscape.trace(counted, moved, source, jax.random.key(key), num_probes=2)

    for source in (data, loader_of(data, 37)):
        run(source, 0, 1.0)
        before = len(traces)
        assert before
        run(source, 1, 1.1)
        assert len(traces) == before


def test_half_precision_is_raised(net):
    """bfloat16 weights: what their float32 copies give, in float32."""
    params, data = net
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    raised = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half)
    got, expected = (landscape.trace(net_loss, p, data, 0, num_probes=4) for p in (half, raised))
    assert got.mean.dtype == jnp.float32
    np.testing.assert_allclose(got.mean, expected.mean, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"k": 66}, ValueError, "k must be at most the number of parameters, 56, got 66"),
        ({"k": 0}, ValueError, "k must be at least 1"),
        ({"which": "middle"}, ValueError, "which must be one of"),
        ({"tolerance": 0.0}, ValueError, "tolerance must be positive"),
        ({"num_matvecs": 1}, ValueError, "num_matvecs must be at least 2"),
        ({"key": "seed"}, TypeError, "key must be an integer seed"),
        ({"params": {"w": jnp.arange(3)}}, TypeError, "params.* has dtype int32"),
        ({"loss_fn": lambda p, b: b["x"] @ p["first"]}, ValueError, "loss_fn must return a scalar loss"),
        ({"data": {"x": jnp.zeros((0, 4)), "y": jnp.zeros((0, 3))}}, ValueError, "at least one example"),
    ],
)
def test_bad_input(net, change, error, message):
    params, data = net
    arguments = {"loss_fn": net_loss, "params": params, "data": data, "key": 0} | change
    with pytest.raises(error, match=message):
        landscape.top_eigenvalues(**arguments)


def test_a_spent_iterator_and_a_large_dense_matrix(net):
    params, data = net
    spent = iter([data])
    with pytest.raises(ValueError, match="fresh iterator"):
        landscape.top_eigenvalues(net_loss, params, lambda: spent, 0, num_matvecs=4)
    with pytest.raises(ValueError, match="at most 5000 parameters, got 5001"):
        landscape.exact_spectrum(quadratic, jnp.zeros(5001), jnp.zeros((1, 5001)))
    with pytest.raises(ValueError, match="num_probes must be at least 2"):
        landscape.trace(net_loss, params, data, 0, num_probes=1)
