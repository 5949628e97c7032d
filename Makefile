# make run and make test do everything on a fresh machine with Python 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SCENARIO ?= demo

.PHONY: run test lint plain incidents cluster-tests image-tests e2e gpu-tests cluster bench clean

run: $(STAMP)
ifneq ($(REAL_KUBECONFIG)$(NODE),)
	$(if $(and $(REAL_KUBECONFIG),$(NODE)),,$(error REAL_KUBECONFIG and NODE go together))
	$(BIN)/gpu-health-agent simulate $(SCENARIO) --kubeconfig "$(REAL_KUBECONFIG)" --node "$(NODE)"
else
	$(BIN)/gpu-health-agent simulate $(SCENARIO)
endif

test: lint plain cluster-tests

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

plain: $(STAMP)
	$(BIN)/pytest -n 4 --dist worksteal --ignore=tests/cluster --ignore=tests/gpu --ignore=tests/bench --ignore=tests/image --ignore=tests/nodes

incidents: $(STAMP)
	$(BIN)/python -m tests.incident

cluster-tests: $(STAMP)
	$(BIN)/python -m tests.cluster.build
	$(BIN)/pytest tests/cluster

# These two need root on Debian 12: they install what they need, and leave nothing running.
image-tests: $(STAMP)
	$(BIN)/pytest tests/image

e2e: $(STAMP)
	$(BIN)/python -m tests.cluster.build
	$(BIN)/python -m tests.image.build
	$(BIN)/pytest tests/nodes

gpu-tests: $(STAMP)
	$(BIN)/pytest tests/gpu

cluster: $(STAMP)
	$(BIN)/python -m tests.cluster

bench: $(STAMP)
	$(BIN)/python -m tests.bench

clean:
	rm -rf $(VENV) build *.egg-info

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@
