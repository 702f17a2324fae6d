# `make demo` and `make test` do all their own set-up in .venv/ of this checkout.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
# What starts a Ray cluster, beside nothing else.
CLUSTER := $(PYTEST) -m cluster

.PHONY: help install demo test again fuzz lint docs bench wheel clean
help:
	@echo "make demo   fit and compare the families on bundled data, and a language model on Python's own source"
	@echo "make test   the tests, with the conformance suite over every family"
	@echo "make again  the long tests and a third of the quick ones, in another order under another hash seed; and that all names stay the same"
	@echo "make fuzz   thousands of damaged files of every format, and run folders (an hour)"
	@echo "make lint   ruff and mypy"
	@echo "make docs   the documentation into build/docs/ (every example of it runs in make test)"
	@echo "make bench  the quick benchmarks (see benchmarks/README.md for the long ones)"
	@echo "make wheel  build the wheel, install it in an empty environment and use it"

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

install: $(STAMP)

demo: $(STAMP)
	$(BIN)/pofx compare digits --seconds 10 --out runs/demo --overwrite
	$(BIN)/pofx fit python-source gpt --seconds 40 --out runs/demo-text --overwrite --options.block 128
	$(BIN)/pofx sample runs/demo-text 1 --prompt "def " --length 400
	@echo "Open runs/demo/report.html in a browser."

test: $(STAMP)
	$(PYTEST) -n 2 --dist worksteal -m "not cluster and not long"
	$(CLUSTER)

# Another order, and another third of the tests that ``make test`` has run, for each commit; the same for one commit.
ORDER ?= $(shell git rev-parse HEAD 2>/dev/null || echo 1)
# Modules are shuffled, and tests in them: what a module makes once is then not made again for every test of it.
SHUFFLED := --random-order --random-order-bucket=module --random-order-seed=$(ORDER)
again: $(STAMP)
	mkdir -p build
	PYTHONHASHSEED=1 $(BIN)/python -m pytest --collect-only -q --override-ini addopts= | grep :: > build/names-1
	sleep 2
	PYTHONHASHSEED=2 $(BIN)/python -m pytest --collect-only -q --override-ini addopts= | grep :: > build/names-2
	cmp build/names-1 build/names-2
	PYTHONHASHSEED=3 $(PYTEST) -n 2 --dist worksteal -m "not cluster" $(SHUFFLED) --quick-share 3

fuzz: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/fuzz.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(STAMP)
	$(BIN)/python -m sphinx -q -E -W --keep-going -d build/doctrees docs build/docs
	@echo "Open build/docs/index.html in a browser."

bench: $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[bench]'
	for script in gmm vae flows diffusion gpt; do $(BIN)/python benchmarks/$$script.py --quick || exit 1; done

wheel: $(STAMP)
	rm -rf dist build/wheel-check
	$(BIN)/python -m build --wheel --outdir dist
	$(PYTHON) -m venv build/wheel-check
	build/wheel-check/bin/python -m pip install --quiet -c constraints.txt dist/*.whl
	cd build && wheel-check/bin/pofx families

clean:
	rm -rf $(VENV) dist build runs
