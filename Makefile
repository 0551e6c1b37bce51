# Two commands do everything on a fresh machine: make demo, make test.
VENV ?= .venv
PY := $(VENV)/bin/python

.PHONY: setup demo test test-faults lint

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@./deploy/install.sh $(VENV)

demo: setup
	@echo "hip demo: about 4 minutes on 2 cores, 4 GiB of memory"
	@PATH="$(abspath $(VENV))/bin:$$PATH" hip demo

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

test: lint
	@echo "make test: about 20 minutes on 2 cores"
	PATH="$(abspath $(VENV))/bin:$$PATH" OMP_NUM_THREADS=1 $(PY) -m pytest -q --durations=15

test-faults: setup
	PATH="$(abspath $(VENV))/bin:$$PATH" OMP_NUM_THREADS=1 $(PY) -m pytest -q -m fault tests
