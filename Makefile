# make distill   install, fetch teacher and text, then train, evaluate, bench and report the default recipe
# make best      the same with more text and longer training; BEST=minilm-narrow for another recipe
# make test      install, then the tests; test-long and test-gpu have the others
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
RUN := runs/minilm-3
BEST := minilm-long

.PHONY: install lock distill best test test-long test-gpu lint fix site clean

distill: $(VENV)/installed
	$(PY) -m distillation.prepare
	$(PY) train.py
	$(PY) bench.py $(RUN)/model
	$(PY) -m distillation.report $(RUN)

best: $(VENV)/installed
	$(PY) -m distillation.prepare --text long
	$(PY) train.py recipes/$(BEST).toml
	$(PY) bench.py runs/$(BEST)/model
	$(PY) -m distillation.report runs/$(BEST)

# two processes, a file of tests in one of them; a crash then ends its own test, not all
test: $(VENV)/installed-test
	$(PY) -m pytest -n 2 --dist loadfile --cov --cov-config=setup.cfg

test-long: $(VENV)/installed-test
	HYPOTHESIS_PROFILE=long $(PY) -m pytest -n 2 --dist loadfile -m "not gpu"

# needs a GPU; prints a table and writes gpu.json
test-gpu: $(VENV)/installed-test
	TEST_GPU=1 $(PY) -m pytest -m gpu tests/gpu
	$(PY) -m pytest tests/test_kernels.py

lint: $(VENV)/installed-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	mkdir -p build/types && ln -sfn $(CURDIR) build/types/shortstack
	MYPYPATH=build/types $(VENV)/bin/mypy

fix: $(VENV)/installed-test
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# the pages of docs/ as a site in build/site
site: $(VENV)/installed
	$(PY) -m pip install --quiet -c $(VENV)/constraints.txt -e '.[train,docs]'
	$(PY) -m mkdocs build --strict --quiet

install: $(VENV)/installed

# A torch of 2.11 or newer that is there already (with CUDA, say) is kept: the environment sees it, and the pin on torch
# is left out. All other packages are taken only with the SHA-256 of the lock files. torch, whose builds differ from index
# to index, is the exception: its version is pinned, its bytes are not.
$(VENV)/installed: setup.cfg constraints.txt requirements-train.lock
	@if $(PYTHON) -c "import torch" 2>/dev/null; then \
		test -x $(PY) || $(PYTHON) -m venv --system-site-packages $(VENV); \
		grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt; \
	else \
		test -x $(PY) || $(PYTHON) -m venv $(VENV); \
		cp constraints.txt $(VENV)/constraints.txt; \
	fi
	$(PY) -m pip install --quiet --no-deps --require-hashes -r requirements-train.lock
	$(PY) -m pip install --quiet -c $(VENV)/constraints.txt --no-build-isolation -e '.[train]'
	@touch $@

$(VENV)/installed-test: $(VENV)/installed requirements-test.lock
	$(PY) -m pip install --quiet --no-deps --require-hashes -r requirements-test.lock
	$(PY) -m pip install --quiet -c $(VENV)/constraints.txt --no-build-isolation -e '.[train,test]'
	@touch $@

# after a change of setup.cfg or constraints.txt: what they ask for, with the SHA-256 of every file that PyPI has of it,
# for all systems and Pythons from 3.11; needs uv (pip install uv)
COMPILE := uv pip compile setup.cfg -c constraints.txt --no-config --universal --python-version 3.11 --generate-hashes \
	--no-annotate --no-header --default-index https://pypi.org/simple
WITHOUT_TORCH := awk '/^[a-z]/ {skip = /^(torch|triton|nvidia-.*|cuda-.*)==/} !skip'

lock:
	mkdir -p build
	$(COMPILE) --extra train --quiet -o build/train && $(WITHOUT_TORCH) build/train > requirements-train.lock
	$(COMPILE) --extra train --extra test --quiet -o build/test && $(WITHOUT_TORCH) build/test > requirements-test.lock

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage
