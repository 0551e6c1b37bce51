# Two commands do everything on a fresh machine: make demo, make test.
VENV ?= .venv
TEST := PATH="$(abspath $(VENV))/bin:$$PATH" OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q --durations=15

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

# Two tests at a time, but for those that share one Ray: they are many processes already.
test: lint
	@echo "make test: about 20 minutes on 2 cores"
	$(TEST) -m "not fault and not shared_ray" --numprocesses 2 --dist worksteal
	$(TEST) -m "not fault and shared_ray"

test-faults: setup
	$(TEST) -m fault
