"""The house rules: floors, file lengths, documented public names, a light import, a README whose code runs."""

import dataclasses
import functools
import inspect
import re
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_pde

ROOT = Path(__file__).parents[1]
CODE = sorted(
    p for top in ("jaxopt_pde", "experiments", "benchmarks", "tests") for p in (ROOT / top).rglob("*.py")
)


def test_imports_point_down():
    """The contracts of pyproject.toml, by import-linter."""
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command; lint_imports_command()",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", CODE, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_have_one_idea(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
    assert path.stem not in ("utils", "util", "helpers", "misc", "common")


def public_callables():
    modules = ("smoothing", "pde", "problems", "control", "robustness", "landscape", "plotting")
    for module in (jaxopt_pde, *(getattr(jaxopt_pde, name) for name in modules)):
        for name in module.__all__:
            value = getattr(module, name)
            if callable(value) and not inspect.ismodule(value):
                yield pytest.param(value, id=f"{module.__name__}.{name}")


@pytest.mark.parametrize("value", list(public_callables()))
def test_public_names_are_documented(value):
    """What it is, every argument, and for functions what is returned and an example."""
    text = inspect.getdoc(value)
    assert text
    if inspect.isclass(value):
        fields = getattr(value, "_fields", None) or [field.name for field in dataclasses.fields(value)]
        for field in fields:
            assert re.search(rf"^\s+{field}: ", text, re.MULTILINE), field
        return
    for argument in inspect.signature(value).parameters:
        assert re.search(rf"^\s+{argument}: ", text, re.MULTILINE), argument
    for section in ("Returns:", "Example:"):
        assert section in text


def test_the_package_needs_neither_flax_nor_matplotlib_to_import():
    """Beyond jax and optax, which import flax nowhere; what takes long to import comes with its first use."""
    program = (
        "import sys, jax, optax; before = set(sys.modules); import jaxopt_pde;"
        "new = {m.partition('.')[0] for m in set(sys.modules) - before};"
        "sys.exit(', '.join(new & {'flax', 'matplotlib', 'scipy', 'sklearn', 'chex', 'orbax'}) or 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
    subprocess.run([sys.executable, "-c", "import jaxopt_pde; jaxopt_pde.models.LeNet"], check=True, cwd=ROOT)
    with pytest.raises(AttributeError, match="'jaxopt_pde' has no attribute 'nothing'"):
        jaxopt_pde.nothing  # noqa: B018


def blocks(document, language):
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def test_the_readmes_example_trains():
    """The block runs as printed, on a problem it leaves to the reader, and forty steps lower the loss."""
    block, _ = blocks("README.md", "python")
    key = jax.random.key(0)
    loss = lambda p, batch: jnp.mean((batch @ p - 1.0) ** 2)
    names = {"loss": loss, "params": jnp.zeros(3), "batches": jax.random.normal(key, (20, 4, 32, 3)) + 1.0}
    everything = names["batches"].reshape(-1, 3)
    before = float(loss(names["params"], everything))
    exec(block, names)
    for _ in range(40):
        names["params"], names["opt_state"] = names["train_step"](
            names["params"], names["opt_state"], names["batches"]
        )
    assert float(loss(names["params"], everything)) < 0.7 * before


def test_the_readmes_grid_example_runs():
    """The second block as printed: three times on the grid, three slopes, and u(·, t) is flatter than f."""
    _, block = blocks("README.md", "python")
    names = {}
    exec(block, names)
    assert names["u"].values.shape == (3, 401)
    assert names["slope"].shape == (3,)
    spread = jnp.ptp(jnp.diff(names["u"].values[1]))
    assert float(spread) < float(jnp.ptp(jnp.diff(names["f"])))


def test_the_theory_pages_examples_run():
    for page in sorted((ROOT / "docs" / "theory").glob("*.md")):
        for block in blocks(page.relative_to(ROOT), "python"):
            exec(block, {})


@pytest.mark.slow
def test_the_batch_norm_guide_runs_in_both_forms():
    """The guide's blocks as printed, with LeNet: the loss falls, the anchor's statistics are those of the anchor."""
    from jaxopt_pde import models

    grad_fn_block, stepwise_block = blocks("docs/guides/batch_norm.md", "python")
    model = models.LeNet(channels=(4, 4), hidden=8)
    images = jax.random.uniform(
        jax.random.key(0), (2, 1, 16, 28, 28, 1)
    )  # [num_steps, num_chains, batch, ...]
    batches = {"image": images, "label": jnp.tile(jnp.arange(16) % 10, (2, 1, 1))}
    variables = jax.jit(model.init, static_argnames="train")(jax.random.key(1), images[0, 0], train=False)
    tx = jaxopt_pde.entropy_sgd(0.2, 0.2, 0.05, num_steps=2)
    names = {
        "functools": functools,
        "jax": jax,
        "optax": optax,
        "jaxopt_pde": jaxopt_pde,
        "model": model,
        "tx": tx,
    }
    names["recompute_batch_stats"] = models.recompute_batch_stats
    exec(grad_fn_block, names)
    state = (variables["params"], variables["batch_stats"], tx.init(variables["params"]))
    losses = []
    for update in range(8):
        batch = jax.tree.map(lambda b: b[0, 0], batches)
        losses.append(float(names["loss"](state[0], state[1], batch, jax.random.key(7))[0]))
        state = names["train_step"](*state, batches, jax.random.key(update))
    assert losses[-1] < losses[0]

    stepwise = jaxopt_pde.entropy_sgd_stepwise(optax.sgd(0.2), 0.2, 0.05, num_steps=3)
    opt_state = stepwise.init(state[0])
    updates, opt_state = stepwise.update(jax.tree.map(jnp.ones_like, state[0]), opt_state, state[0])
    names |= {
        "params": optax.apply_updates(state[0], updates),
        "opt_state": opt_state,
        "batch_stats": state[1],
    }
    names["images"] = images[:, 0]
    exec(stepwise_block, names)
    chex.assert_trees_all_equal(names["anchor"], state[0])
    again = models.recompute_batch_stats(model, {"params": state[0], "batch_stats": state[1]}, images[:, 0])
    chex.assert_trees_all_equal(names["batch_stats"], again)


def test_the_landscape_guide_runs_as_printed(tmp_path, monkeypatch):
    """Linen, nnx and a plain function: centre of the slice, eigenvalues, relaxed minimum as computed directly."""
    import flax.linen
    import matplotlib.pyplot as plt
    from flax import nnx

    linen_block, nnx_block, function_block, drawing_block = blocks("docs/guides/landscapes.md", "python")
    images = jax.random.normal(jax.random.key(0), (200, 2))
    names = {"images": images, "labels": jnp.int32(images.sum(1) > 0), "model": flax.linen.Dense(3)}
    exec(linen_block, names)
    whole = (names["images"], names["labels"])
    centre = names["plane"].mean[5, 5]
    np.testing.assert_allclose(centre, names["loss"](names["params"], whole), rtol=1e-5)
    assert names["plane"].batch_error.shape == (11, 11)

    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    names["model"] = model
    exec(nnx_block, names)
    kernel, bias = model.kernel.get_value(), model.bias.get_value()

    def loss(flat):
        logits = images @ flat[:6].reshape(2, 3) + flat[None, 6:]
        return optax.softmax_cross_entropy_with_integer_labels(logits, names["labels"]).mean()

    hessian = jax.hessian(loss)(jnp.concatenate([kernel.ravel(), bias]))
    np.testing.assert_allclose(names["largest"].mean, jnp.linalg.eigvalsh(hessian)[:-4:-1], rtol=1e-4)

    exec(function_block, names)
    assert float(names["f"].min()) < float(names["u"].min()) < float(names["f"].min()) + 0.2
    monkeypatch.chdir(tmp_path)
    exec(drawing_block, names)
    plt.close(names["figure"])
    assert all((tmp_path / f"landscape.{kind}").stat().st_size > 1000 for kind in ("pdf", "png"))


def test_ci_runs_the_readmes_commands():
    commands = [line for block in blocks("README.md", "sh") for line in block.splitlines()]
    assert commands[:2] == [
        'pip install -e ".[experiments]" && python -m experiments run quickstart',
        'pip install -e ".[test]" && python -m pytest',
    ]
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for command in commands[:2]:
        assert command in script


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_no_large_files_are_tracked():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    sizes = {name: (ROOT / name).stat().st_size for name in listed.stdout.split("\0") if name}
    assert {name: size for name, size in sizes.items() if size > 2 * 2**20} == {}


def test_version_is_that_of_the_metadata():
    from importlib.metadata import version

    assert version("jaxopt_pde") == jaxopt_pde.__version__
    assert np.all([part.isdigit() for part in jaxopt_pde.__version__.split(".")])
