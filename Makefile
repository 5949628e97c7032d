# make run and make test do everything on a fresh machine with Python 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SCENARIO ?= demo
# Tests that need more than Python.
OTHERS := bench cluster dcgm gpu image kit monitoring neighbours nodes nvml

# The tests start the agent a hundred times, and would compile it each time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test lint plain incidents program-tests monitoring-tests screenshots chart package cluster-tests image-tests e2e gpu-tests \
	neighbours-tests launcher-tests \
	cluster explore bench bench-fleet bench-flood bench-nodes kit-bench kit-torch kit-kills score-policy score-year drill clean

run: $(STAMP)
ifneq ($(REAL_KUBECONFIG)$(NODE),)
	$(if $(and $(REAL_KUBECONFIG),$(NODE)),,$(error REAL_KUBECONFIG and NODE go together))
	$(BIN)/gpu-health-agent simulate $(SCENARIO) --kubeconfig "$(REAL_KUBECONFIG)" --node "$(NODE)"
else
	$(BIN)/gpu-health-agent simulate $(SCENARIO)
endif

test: lint plain program-tests monitoring-tests cluster-tests

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

plain: $(STAMP)
	$(BIN)/pytest -n 5 --dist worksteal $(OTHERS:%=--ignore=tests/%)

incidents: $(STAMP)
	$(BIN)/python -m tests.incident

# The kit's programs on loopback, NVML's and DCGM's bindings over libraries of ours in C: they wait more than they compute.
program-tests: $(STAMP)
	$(BIN)/pytest -n 4 --dist worksteal tests/dcgm tests/kit tests/nvml --ignore=tests/kit/ranks --ignore=tests/kit/test_in_place.py

monitoring-tests: $(STAMP)
	$(BIN)/pytest -n 3 --dist loadfile tests/monitoring

screenshots: $(STAMP)
	command -v chromium || apt-get install --yes --no-install-recommends chromium
	command -v npm || apt-get install --yes --no-install-recommends npm
	$(BIN)/python -m tests.screenshots

# The copies in the chart, and the schema of its values.
chart: $(STAMP)
	$(BIN)/python -m tests.chart

# What a release is made of, in build/package; the image needs root on Debian 12.
package: $(STAMP)
	$(BIN)/python -m tests.artifacts

cluster-tests: $(STAMP)
	$(BIN)/python -m tests.cluster.build
	$(BIN)/python -m tests.cluster.helm
	$(BIN)/pytest -n 3 --dist loadfile tests/cluster  # three control planes, which wait more than they compute

# These two need root on Debian 12: they install what they need, and leave nothing running.
image-tests: $(STAMP)
	$(BIN)/pytest -rP tests/image  # with its figures

e2e: $(STAMP)
	$(BIN)/python -m tests.cluster.build
	$(BIN)/python -m tests.image.build
	$(BIN)/pytest --durations=10 tests/nodes

# Four nodes with the agent and the kit on them, and a report in build/drill.html: real ones as root, else simulated.
drill: $(STAMP)
	$(BIN)/python -m tests.nodes.drill

gpu-tests: $(STAMP)
	$(BIN)/pytest tests/gpu

# The controllers of other projects, which it builds the first time, each beside the agent on a control plane of its own.
neighbours-tests: $(STAMP)
	$(BIN)/python -m tests.cluster.build
	$(BIN)/python -m tests.neighbours.programs
	$(BIN)/pytest -n 3 --dist loadfile tests/neighbours --ignore=tests/neighbours/given --ignore=tests/neighbours/launcher

# NVIDIA's ft_launcher as PyPI has it, with kit-torch's PyTorch: 20 starts on a healthy node, 20 on a bad one.
launcher-tests: $(STAMP)
	$(BIN)/python -m tests.cluster.build
	$(BIN)/pytest tests/neighbours/launcher

cluster: $(STAMP)
	$(BIN)/python -m tests.cluster

# Many agents and hostile neighbours, from one seed: MINUTES of schedules, or COUNT of them, from SEED on.
explore: $(STAMP)
	$(BIN)/python -m tests.exploration $(if $(SEED),--seed $(SEED)) $(if $(COUNT),--count $(COUNT),--minutes $(or $(MINUTES),10))

bench: $(STAMP)
	$(BIN)/python -m tests.bench

# What a fleet that waits for permits costs the API server; three quarters of an hour, or with other NODES, AGENTS, WAITS_S.
bench-fleet: $(STAMP)
	$(BIN)/python -m tests.bench.waiting_fleet $(if $(NODES),--nodes $(NODES)) $(if $(AGENTS),--agents $(AGENTS)) \
	  $(if $(WAITS_S),--waits-s $(WAITS_S))

# What others wait at an API server that a whole fleet asks at once.
bench-flood: $(STAMP)
	$(BIN)/python -m tests.bench.flood

# What the table of a large fleet takes.
bench-nodes: $(STAMP)
	$(BIN)/python -m tests.bench.fleet_table $(if $(NODES),--nodes $(NODES))

# What the policy for what breaks again is worth, fitted on the first half of a TRACE of faults and told of the second.
score-policy: $(STAMP)
	$(BIN)/python -m tests.score "$(TRACE)"

# A year of 400 nodes through the one cycle and the cluster in memory: what was so beside the ledgers and the metrics.
score-year: $(STAMP)
	$(BIN)/python -m tests.score.year

kit-bench: $(STAMP)
	PYTHONPATH=daemonset/kit $(BIN)/python -m tests.bench.kit

# The kit's training and inference with PyTorch: 3 GB from PyPI once, 5.7 GB on the disk, kept outside the tree.
kit-torch: $(STAMP)
	$(BIN)/python -m tests.kit.with_torch

# kill -9 in the midst of saving, KILLS times over one rank, and with PyTorch over four.
kit-kills: $(STAMP)
	$(BIN)/python -m tests.kit.kills --kills $(or $(KILLS),500)
	$(BIN)/python -m tests.kit.with_torch kills --kills $(or $(KILLS),500) --ranks 4

clean:
	rm -rf $(VENV) build *.egg-info

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@
