.PHONY: test test-all lint quickstart benchmarks
test:        ## what CI runs
	python -m pytest
test-all:    ## also the slow checks
	python -m pytest --run-slow
lint:
	ruff check . && ruff format --check . && lint-imports
quickstart:
	python -m experiments run quickstart
benchmarks:  ## needs `pip install -e ".[benchmarks]"`, the last two MNIST through JAXOPT_PDE_DATA
	python benchmarks/optimizer_overhead.py
	python benchmarks/step_rules.py
	python benchmarks/models.py
	python benchmarks/pde.py
	python benchmarks/penalties.py
	python benchmarks/control.py
	python benchmarks/attacks.py
	python benchmarks/landscape.py
