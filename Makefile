.PHONY: test test-all lint docs quickstart benchmarks test-oldest
test:        ## what CI runs
	python -m pytest
test-all:    ## also the slow checks
	python -m pytest --run-slow
OLDEST = tests/contract tests/optimizers tests/pde tests/smoothing
test-oldest: ## with the lowest versions that pyproject.toml allows, in an environment of its own
	uv venv --quiet --clear .venv-oldest && uv pip install --quiet --python .venv-oldest --resolution lowest-direct -e ".[test]"
	.venv-oldest/bin/python -m pytest -W "ignore:jax.core:DeprecationWarning" $(OLDEST)
lint:
	ruff check . && ruff format --check . && lint-imports
docs:        ## the site, in docs/_build/html; needs `pip install -e ".[docs]"`, not the network
	python -m sphinx --fail-on-warning --keep-going --nitpicky -b html docs docs/_build/html
quickstart:
	python -m experiments run quickstart
benchmarks:  ## needs `pip install -e ".[benchmarks]"`, attacks and landscape MNIST through JAXOPT_PDE_DATA
	python benchmarks/optimizer_overhead.py
	python benchmarks/accelerator.py
	python benchmarks/step_rules.py
	python benchmarks/models.py
	python benchmarks/pde.py
	python benchmarks/penalties.py
	python benchmarks/control.py
	python benchmarks/attacks.py
	python benchmarks/landscape.py
	python benchmarks/import_time.py
