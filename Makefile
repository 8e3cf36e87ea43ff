# make distill   install, fetch teacher and text, then train, evaluate, bench and report the default recipe
# make best      the same with the best student of that teacher: more text, longer training
# make test      install, then the tests; test-long and test-gpu have the others
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
RUN := runs/minilm-3
BEST := runs/minilm-long

.PHONY: install distill best test test-long test-gpu lint fix clean

distill: $(VENV)/installed
	$(PY) -m distillation.prepare
	$(PY) train.py
	$(PY) bench.py $(RUN)/model
	$(PY) -m distillation.report $(RUN)

best: $(VENV)/installed
	$(PY) -m distillation.prepare --text long
	$(PY) train.py recipes/minilm-long.toml
	$(PY) bench.py $(BEST)/model
	$(PY) -m distillation.report $(BEST)

test: $(VENV)/installed-test
	$(PY) -m pytest --cov --cov-config=setup.cfg

test-long: $(VENV)/installed-test
	HYPOTHESIS_PROFILE=long $(PY) -m pytest -m "not gpu"

# needs a GPU; prints a table and writes gpu.json
test-gpu: $(VENV)/installed-test
	TEST_GPU=1 $(PY) -m pytest -m gpu tests/gpu

lint: $(VENV)/installed-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	mkdir -p build/types && ln -sfn $(CURDIR) build/types/shortstack
	MYPYPATH=build/types $(VENV)/bin/mypy

fix: $(VENV)/installed-test
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

install: $(VENV)/installed

# A torch of 2.11 or newer that is there already (with CUDA, say) is kept: the environment sees it, and the pin on torch
# is left out.
$(VENV)/installed: setup.cfg constraints.txt
	@if $(PYTHON) -c "import torch" 2>/dev/null; then \
		test -x $(PY) || $(PYTHON) -m venv --system-site-packages $(VENV); \
		grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt; \
	else \
		test -x $(PY) || $(PYTHON) -m venv $(VENV); \
		cp constraints.txt $(VENV)/constraints.txt; \
	fi
	$(PY) -m pip install --quiet -c $(VENV)/constraints.txt -e '.[train]'
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(PY) -m pip install --quiet -c $(VENV)/constraints.txt -e '.[train,test]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage
