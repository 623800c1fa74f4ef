"""Every experiment that exists runs its SMOKE, draws, and keeps the promises of the package docstring."""

import ast
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from experiments import _run
from experiments.__main__ import discover, draw, load

every_experiment = pytest.mark.parametrize("name", list(discover()))


@every_experiment
def test_smoke_gives_finite_arrays_and_a_figure(name, smoke):
    module, record = load(name), smoke(name)
    assert record.results
    for key, array in record.results.items():
        if np.issubdtype(array.dtype, np.number) and key not in getattr(module, "NOT_FINITE", ()):
            assert np.isfinite(array).all(), f"{key} is not finite"
    drawn = draw(module, record)
    assert (record.directory / "figure.png").stat().st_size > 1000
    assert (record.directory / "figure.svg").stat().st_size > 1000
    if drawn is not None:
        headers, rows = drawn
        assert rows
        assert all(len(row) == len(headers) and all(isinstance(cell, str) for cell in row) for row in rows)


@every_experiment
def test_config_is_frozen_storable_and_documented(name):
    module = load(name)
    assert isinstance(hash(module.SMOKE), int)
    assert _run.config_hash(name, module.SMOKE) != _run.config_hash(name, module.Config())
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(module.SMOKE, dataclasses.fields(module.Config)[0].name, None)
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    (config,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Config"]
    for field, after in zip(config.body, [*config.body[1:], None], strict=True):
        if isinstance(field, ast.AnnAssign):
            is_text = isinstance(after, ast.Expr) and isinstance(getattr(after.value, "value", None), str)
            assert is_text, f"{name}.Config.{field.target.id} has no docstring under it"


@pytest.mark.slow
@every_experiment
def test_run_is_a_pure_function_of_the_config(name, tmp_path):
    module = load(name)
    stored = _run.execute(name, module, module.SMOKE, results_dir=tmp_path).results
    alone = module.run(module.SMOKE)
    assert stored.keys() == alone.keys()
    measured = getattr(module, "NOT_REPRODUCIBLE", ())
    for key in set(stored) - set(measured):
        np.testing.assert_array_equal(stored[key], alone[key], err_msg=key)
