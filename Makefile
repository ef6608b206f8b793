# make quick   set up, measure the quick scenario on whatever this machine has, print the report's path
# make test    set up, run all tests, two files at a time, the dearest first (tests/conftest.py)
#              (those of the report's page where a chromium is in PATH; EPBENCH_REQUIRE_BROWSER=1: fail without one)
# make perf    set up, time the parts of a layer, two ranks' exchanges and the parent's work; see docs/perf.md
# make lint    set up, check format, lint, types and the layers between packages
#
# PYTHON=... chooses the interpreter that .venv is made with; pip's own settings choose where packages come from.

PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip install -qq -c constraints.txt
# .ready is what a run needs, .ready-dev what tests and checks need on top.
READY := $(VENV)/.ready
DEV_READY := $(VENV)/.ready-dev
EPBENCH := $(VENV)/bin/epbench
COUNT_GPUS := $(VENV)/bin/python -c "from epbench.provenance import find_gpus; print(len(find_gpus()))"

.DEFAULT_GOAL := quick
.PHONY: quick test perf lint install clean

install: $(DEV_READY)

$(READY): pyproject.toml constraints.txt
	@echo "setting up $(VENV)" >&2
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	@touch $@

$(DEV_READY): $(READY)
	$(PIP) -e ".[dev]"
	@touch $@

quick: $(READY)
	@gpus=$$($(COUNT_GPUS)) || exit 1; \
	case $$gpus in \
	0) $(EPBENCH) run scenarios/quick.toml ;; \
	1) echo "one GPU: dp1 is measured on it, and every other layout on 4 CPU ranks" >&2; \
	   $(EPBENCH) run scenarios/quick-1gpu.toml && $(EPBENCH) run scenarios/quick.toml --device cpu ;; \
	2|3) $(EPBENCH) run scenarios/quick-2gpu.toml ;; \
	*) $(EPBENCH) run scenarios/quick.toml ;; \
	esac

test: $(DEV_READY)
	$(VENV)/bin/pytest -n 2 --dist loadfile --no-loadscope-reorder --benchmark-disable

perf: $(DEV_READY)
	@mkdir -p .benchmarks
	EPBENCH_TRACE_MB=10 $(VENV)/bin/pytest tests/perf --benchmark-only --benchmark-autosave --benchmark-json .benchmarks/perf.json \
	  --benchmark-columns median,iqr,rounds,iterations --benchmark-sort name -q

lint: $(DEV_READY)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
