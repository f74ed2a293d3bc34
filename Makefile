# Two commands: `make demo` sets up all it needs and runs the main job; `make test` sets up and passes the tests.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test coverage test-integrations soak check docs benchmark clean

demo: $(INSTALLED)
	$(BIN)/armijo finetune

test: $(INSTALLED)
	$(BIN)/pytest -n 2 --dist worksteal

# The tests once more, with the share of branches that they reach; half as long again.
coverage: $(INSTALLED)
	$(BIN)/pytest -n 2 --dist worksteal --cov --cov-report=term

# Trainers that others wrote, every example, and the wheel in a clean environment; a few minutes.
test-integrations: $(INSTALLED)
	$(BIN)/pytest -n 2 --dist worksteal -m heavy

# The long part of the tests: kills, generated files, 20,000 steps, 200 runs of two ranks; more than half an hour.
soak: $(INSTALLED)
	$(BIN)/pytest -n 2 --dist worksteal -m soak

check: $(INSTALLED)
	$(BIN)/pre-commit run --all-files

docs: $(INSTALLED)
	$(BIN)/mkdocs build --strict

benchmark: $(INSTALLED)
	$(BIN)/python benchmarks/overhead.py

# The stamp is renewed only when what is to be installed has changed: a second call installs nothing.
# constraints.txt pins every version that was exercised.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv site dist
