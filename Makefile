# make demo: the main job on a real model.  make test: everything that CI checks.  make check: under two minutes.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
STAMP   = $(VENV)/.installed

.PHONY: demo tiny test test-long test-matrix test-extras audit check lint types bench bench-quick bench-whole notebooks docs setup-browser format clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hooklearn needs python >= 3.11")'
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,notebook,docs]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/hooklearn fetch smollm2-135m-instruct
	$(BIN)/hooklearn run threats

tiny: $(STAMP)
	$(BIN)/hooklearn run tiny

lint: $(STAMP)
	$(BIN)/ruff check hooklearn analysis tests examples
	$(BIN)/ruff format --check hooklearn analysis tests examples

types: $(STAMP)
	$(BIN)/pyright

# every test file is imported, so that a name that moved is missed at once
check: lint types
	$(BIN)/pytest --collect-only -qq
	OMP_WAIT_POLICY=passive OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m 'not slow' -x tests/test_imports.py tests/test_linalg.py tests/test_budget.py tests/test_data.py tests/test_verdict.py

# a process a core with a thread each: two processes with all threads each are ten times slower
test: lint types
	OMP_WAIT_POLICY=passive OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

# the long versions of the tests of faults (docs/reliability.md); HOOKLEARN_KILLS and HOOKLEARN_FUZZ say how long.
# In pieces: each says what it counted as it ends, and PIECE="-k piece07" runs one
test-long: $(STAMP)
	OMP_WAIT_POLICY=passive OMP_NUM_THREADS=1 $(BIN)/pytest -vv -s -m long tests/test_killed.py tests/test_fuzz.py tests/test_sharded.py $(PIECE)

# the wheel in empty environments: every Python that is here, lowest and newest releases (docs/how-to/install.md)
test-matrix: $(STAMP)
	OMP_WAIT_POLICY=passive OMP_NUM_THREADS=1 $(BIN)/python tests/matrix.py

# the wheel with each extra in an environment of its own, and its tests, of which none may be skipped
test-extras: $(STAMP)
	OMP_WAIT_POLICY=passive OMP_NUM_THREADS=1 $(BIN)/python tests/matrix.py --work build/extras \
		--python $(PYTHON) --releases newest --extra evals scale track peft notebook

# known vulnerabilities in what all extras bring along; a package that the advisory service does not know is an error
audit: $(STAMP)
	mkdir -p build
	$(BIN)/uv pip compile --quiet --no-header --no-annotate --all-extras --python $(BIN)/python \
		--constraints constraints.txt --output-file build/audit.txt pyproject.toml
	$(BIN)/uv tool run pip-audit --strict --disable-pip --no-deps --requirement build/audit.txt

# measured beside its peers, and the table of goals; on a machine that does nothing else. results: benchmarks/results
bench: $(STAMP)
	$(BIN)/python -m benchmarks

bench-quick: $(STAMP)
	$(BIN)/python -m benchmarks --quick --out runs/bench-quick

# whole runs, minutes each: make demo, and what --dry-run says of it and of others
bench-whole: $(STAMP)
	$(BIN)/python -m benchmarks --only demo dry_run

# Debian's Chromium, JupyterLab and marimo, for the tests of the explorer; without them they are skipped
setup-browser: $(STAMP)
	command -v chromium > /dev/null || { apt-get update -qq && apt-get install -qq --yes --no-install-recommends chromium; }
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[frontends]'

format: $(STAMP)
	$(BIN)/ruff check --fix hooklearn analysis tests examples
	$(BIN)/ruff format hooklearn analysis tests examples

clean:
	rm -rf $(VENV) build dist site .pytest_cache .ruff_cache .hypothesis

# the site, in site/; any warning stops it
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# executes the notebooks on the real model and keeps their outputs
notebooks: $(STAMP)
	$(BIN)/jupytext --to ipynb notebooks/[0-9]*.py
	$(BIN)/jupyter execute --inplace --timeout=1200 notebooks/[0-9]*.ipynb
