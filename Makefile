# Every target works on a fresh clone with python3 (3.11 or newer) and make.
PYTHON ?= python3
BIN := .venv/bin
DURATION ?= 0
# What `make million` may be told: DEVICES HOLD PERIOD TLS STORM P99 WORKERS SINK JSON
million_options = $(if $(DEVICES),--devices $(DEVICES)) $(if $(HOLD),--hold $(HOLD)) $(if $(PERIOD),--period $(PERIOD)) \
    $(if $(TLS),--tls) $(if $(STORM),--storm) $(if $(P99),--p99-ms $(P99)) $(if $(WORKERS),--workers $(WORKERS)) \
    $(if $(SINK),--sink $(SINK)) $(if $(JSON),--json)
# What `make campaign` and `make campaigns` may be told: NAME DEVICES DURATION PERIOD P99 PROCESSES WEB JSON
campaign_options = $(if $(DEVICES),--devices $(DEVICES)) $(if $(filter-out 0,$(DURATION)),--duration $(DURATION)) \
    $(if $(PERIOD),--period $(PERIOD)) $(if $(P99),--p99-ms $(P99)) $(if $(PROCESSES),--processes $(PROCESSES)) \
    $(if $(WEB),--web) $(if $(JSON),--json)
# What `make side-by-side` may be told: WITH=pure ONLY ROUNDS SECONDS JSON SVG
side_by_side_options = $(WITH) $(addprefix --only ,$(ONLY)) $(if $(ROUNDS),--rounds $(ROUNDS)) \
    $(if $(SECONDS),--seconds $(SECONDS)) $(if $(JSON),--json) $(if $(SVG),--svg $(SVG))
export PATH := $(CURDIR)/$(BIN):$(PATH)

SOURCES := $(shell find commands ingest protocols routing runtime services -name '*.py')
AS_COMPILED := PYTHONSAFEPATH=1 PYTHONPATH=$(CURDIR)/build/compiled HEADWORKS_COMPILED=1

.PHONY: help run test test-compiled setup compiled format lint types imports fuzz bench side-by-side proxies large-mesh backlog million \
    campaign campaigns crash docs check lock clean

help:            ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

run: setup       ## Start a node with 200 simulated devices over mutual TLS (DURATION=20 stops by itself)
	@$(BIN)/headworks dev --devices $(or $(DEVICES),200) --duration $(DURATION)

setup: .setup-stamp  ## Install everything into .venv and node_modules

.setup-stamp: requirements.lock package-lock.json pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	npm ci --silent --no-progress || echo "npm packages are missing: tests with mqtt.js and kinesis-local will be skipped"
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! { command -v mosquitto_pub && command -v nginx && command -v wrk && command -v redis-server && \
	    command -v cc && command -v iptables && command -v ip && ls /usr/include/openssl/ssl.h; } >/dev/null; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
	        mosquitto mosquitto-clients nginx-light wrk redis-server iptables iproute2 gcc libc6-dev libssl-dev python3-dev >/dev/null; fi
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! command -v prometheus >/dev/null; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends prometheus >/dev/null && \
	    { service prometheus stop; update-rc.d prometheus disable; } >/dev/null 2>&1; true; fi
	@command -v mosquitto_pub >/dev/null || echo "mosquitto-clients is missing: its tests will be skipped"
	@command -v redis-server >/dev/null || echo "redis-server is missing: tests of limits over nodes will be skipped"
	@command -v prometheus >/dev/null || echo "prometheus is missing: tests of canaries that it watches will be skipped"
	@command -v iptables >/dev/null || echo "iptables is missing: tests of pods in the mesh will be skipped"
	touch $@

test: setup      ## Run all tests
	$(BIN)/python -m pytest

compiled: setup build/compiled/.stamp  ## Build the package with its hot modules compiled, in build/compiled

build/compiled/.stamp: setup.py pyproject.toml $(SOURCES)
	@command -v cc >/dev/null || { echo "make compiled needs a C compiler: install gcc and python3-dev"; exit 1; }
	rm -rf build
	HEADWORKS_COMPILE=1 $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
	    --no-build-isolation --target build/compiled .
	touch $@

test-compiled: compiled  ## Run the tests of what is compiled on the compiled modules
	$(AS_COMPILED) $(BIN)/pytest -o pythonpath="build/compiled ." tests/test_compiled.py tests/protocols tests/ingest \
	    tests/routing/limits tests/end_to_end/test_clients.py tests/end_to_end/test_crash.py

format: setup    ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: setup      ## Check style, formatting and dependencies
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/deptry .

types: setup     ## Check types
	$(BIN)/mypy

imports: setup   ## Check the direction of imports
	$(BIN)/lint-imports

fuzz: setup      ## Fuzz the MQTT parser for a minute
	$(BIN)/python -m tests.fuzz.fuzz_mqtt -max_total_time=60

bench: setup     ## Run the micro-benchmarks and compare with the last saved run (AGAINST=0003: with that one)
	@saved=.benchmarks/$$($(BIN)/python -c "from pytest_benchmark.utils import get_machine_id; print(get_machine_id())"); \
	if ls $$saved/*.json >/dev/null 2>&1; then \
	    compare="--benchmark-compare$(if $(AGAINST),=$(AGAINST)) --benchmark-compare-fail=min:75%"; fi; \
	$(BIN)/python -m pytest bench -q -p no:randomly --benchmark-autosave $$compare \
	    --benchmark-max-time=1 --benchmark-min-time=0.0001 \
	    --benchmark-sort=name --benchmark-columns=min,median,mean,stddev --benchmark-time-unit=us

side-by-side: compiled  ## Compare with Mosquitto on one core, in turns (ONLY=tls ROUNDS=5 WITH=pure JSON=1 SVG=file)
	@$(BIN)/python -m bench.side_by_side.run $(side_by_side_options)

proxies: setup   ## Compare the API gateway with nginx and Envoy as a proxy, in turns (ROUNDS=3 SECONDS=5 JSON=1)
	@$(BIN)/python -m bench.proxies $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SECONDS),--seconds $(SECONDS)) $(if $(JSON),--json)

large-mesh: setup ## Measure a change of one endpoint in a mesh of 1,000 nodes with 10 each, all connected (JSON=1)
	@$(BIN)/python -m bench.mesh $(if $(JSON),--json)

backlog: compiled ## Drain a backlog of MESSAGES (5000000) while ingest goes on, and judge memory and pace (JSON=1)
	@$(BIN)/python -m bench.backlog $(if $(MESSAGES),--messages $(MESSAGES)) $(if $(JSON),--json)

million: compiled ## Connect a million devices to one node and judge it (DEVICES=50000 HOLD=300 PERIOD=30 TLS=1 STORM=1)
	@$(BIN)/python -m loadtests.million --compiled build/compiled $(million_options)

campaign: setup  ## Run a load campaign with Locust and judge it (NAME=steady DEVICES=10000 DURATION=60 WEB=1 JSON=1)
	@$(BIN)/python -m loadtests.campaign $(NAME) $(campaign_options)

campaigns: setup ## Run all load campaigns, and sum up
	@$(BIN)/python -m loadtests.campaign all $(campaign_options)

crash: setup     ## Twenty rounds of kill -9 against the ledger
	$(BIN)/python -m pytest tests/end_to_end/test_crash.py

docs: setup      ## Check that the docs name every setting, metric and refusal
	$(BIN)/python -m pytest -q tests/test_house_rules.py

check: lint types imports test-compiled test  ## What CI runs

lock: setup      ## Pin the dependencies anew
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --universal --generate-hashes --no-emit-index-url --no-emit-find-links --no-header \
	    --python-version 3.11 pyproject.toml --group dev -o requirements.lock

clean:           ## Remove what run, setup and test made
	rm -rf .venv node_modules var .setup-stamp build *.egg-info
