# Every target sets the project up first if need be; a second call finds it done. PYTHON=python3.12 picks another Python.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

export UV_PYTHON_DOWNLOADS := never

# Unlike pip, uv leaves compiling to the first import, and where Python may not write (many images forbid it) every process
# would compile torch and Ray anew, for 7 s.
$(READY): export UV_COMPILE_BYTECODE := 1

# Here always a Ray of this machine's own, even where the shell names a cluster; the tests' one goes without tokens.
unexport RAY_ADDRESS
test test-all: export RAY_AUTH_MODE := disabled
test test-all: export RAY_worker_niceness := 0
test test-all: export PYTHONDONTWRITEBYTECODE :=

# What starts Ray takes longest, so it goes first and beside it, on what it leaves, three parts of the rest. One of them is seen
# as it goes, the output of the others comes at the end. Ray would lower its workers' priority, and gives its own processes half
# a minute to start. Tests that fork need a process in which few libraries have threads yet: unit tests come before others.
PYTEST := $(BIN)/python -m pytest -p no:cacheprovider
define parts
	@logs=$$(mktemp -d); trap 'kill $$begun 2>/dev/null; rm -rf "$$logs"' EXIT INT TERM; \
	begin() { log=$$logs/$$1; shift; "$$@" > "$$log" 2>&1 & begun="$$begun $$!"; }; begun=; \
	begin ray $(PYTEST) -m "($(1)) and ray"; \
	begin first nice -n 19 $(PYTEST) -m "($(1)) and not ray" tests/end_to_end tests/integration/test_a*; \
	begin middle nice -n 19 $(PYTEST) -m "($(1)) and not ray" tests/integration/test_[b-r]*; \
	nice -n 19 $(PYTEST) -m "($(1)) and not ray" tests/unit tests/gpu tests/integration --ignore-glob='tests/integration/test_[a-r]*'; code=$$?; \
	for part in $$begun; do wait $$part || code=$$?; done; \
	cat "$$logs"/*; exit $$code
endef

.PHONY: setup demo test test-all lint type docs clean help

help:
	@echo "make demo      set up, make a small data set, train a detector on it, evaluate it, write a report"
	@echo "make test      set up and run the tests; test-all adds the long ones"
	@echo "make setup lint type docs clean"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "there is no $(PYTHON); install Python 3.11 or newer, or name one: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "hai needs Python 3.11 or newer, this is $$($(PYTHON) --version); name another: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "this Python cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "setup 1/3: making .venv with $$($(PYTHON) --version)"; $(PYTHON) -m venv .venv; }
	@echo "setup 2/3: installing the installer (uv)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	@echo "setup 3/3: installing hai and what it needs, some 7 GB with torch: a minute or more"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[dev]'
	@$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt --no-deps facenet-pytorch  # only its weight files are used; its pins would undo torch
	@touch $@
	@echo "setup done: .venv/bin/hai is the command"

demo: setup
	@test -f demo/data/labels.csv || { echo "demo 1/3: making a small data set"; $(BIN)/hai data demo --task detector --output demo/data; }
	@echo "demo 2/3: training on demo/data through Ray Train; stop it with Ctrl-C and run make demo again: it goes on"
	@$(BIN)/hai train --config configs/detector/demo.yaml --name demo --storage demo/runs
	@echo "demo 3/3: evaluating the best checkpoint on the test split"
	@$(BIN)/hai evaluate --checkpoint demo/runs/demo --data demo/data

test: setup
	$(call parts,not slow)

test-all: setup
	$(call parts,slow or not slow)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: setup
	$(BIN)/mypy

docs: setup
	$(BIN)/hai config schema --markdown > docs/config.md
	$(BIN)/python -m pytest -q --durations=0 tests/unit/test_house.py -k docs

clean:
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage
	find hai tests ray_jobs benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "kept: .venv, runs/, data/, demo/"
