# make run     the daemons on this machine, with real VMs (embedded libvirt)
# make test    every test
# The first of either sets the machine up; `make` alone lists the others.

PYTHON := .venv/bin/python
# Where make run keeps its images and VMs, and what else it tells vmstackd, and globald:
# make run ARGS="--http-port 8199 --tcp-port 0" CLUSTER_ARGS="--http-port 8200"
STATE_DIR ?= /var/tmp/vmstack
ARGS ?=
CLUSTER_ARGS ?=
TRACES ?=
# Stories of make simulate: how many, or the one to tell, and what is planted into the code for it.
SEEDS ?= 1000
SEED ?=
MISTAKE ?=
# How long make soak runs.
MINUTES ?= 30
# Deployments and removals of make faults.
OPERATIONS ?= 200
# What make trace writes.
TRACE ?= results/monitoring.csv

.DEFAULT_GOAL := help
.PHONY: help setup build run purge test test-fast check format demo trace bench sizing simulate faults soak fuzz conformance topologies introspection deb clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

# Nothing is downloaded when only the core has changed.
.venv/packages: pyproject.toml constraints.txt tools/setup
	@tools/setup

.venv/ready: .venv/packages setup.py $(shell find core -name '*.py' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.h')
	@$(PYTHON) setup.py -q build_ext --inplace
	@touch $@

setup: .venv/ready  ## system packages, virtual environment, compiled core

build: .venv/ready  ## the compiled core

run: .venv/ready  ## vmstackd with real VMs, HTTP on 127.0.0.1:8099, and globald with this host, on 8100
	@$(PYTHON) -m tools.run $(STATE_DIR) --cluster-args="$(CLUSTER_ARGS)" $(ARGS)

purge: .venv/ready  ## end the VMs of make run and delete their state
	@$(PYTHON) -m tools.purge $(STATE_DIR)

# Those that only compute share the cores; the others start programs and wait for them, and want the machine alone.
test: .venv/ready  ## every test; what this machine cannot run is skipped by name
	$(PYTHON) -m pytest -m 'not real and not slow' -n auto
	$(PYTHON) -m pytest -m 'real or slow'

test-fast: .venv/ready  ## the tests that neither need real VMs nor start many programs, in under a minute
	$(PYTHON) -m pytest -q -m 'not real and not slow' -n auto

check: .venv/ready  ## format, lint, types
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

format: .venv/ready  ## rewrite the sources as make check wants them
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

demo: .venv/ready  ## a simulated cluster with three levels, drawn
	@$(PYTHON) -m benchmarks.demo

trace: .venv/ready  ## an example of a recording, half a day of a simulated host: make trace TRACE=FILE
	@$(PYTHON) -m benchmarks.example_trace $(TRACE)

bench: .venv/ready  ## decision times, transports, clusters, memory, start-up, overhead over libvirt
	$(PYTHON) -m benchmarks

sizing: .venv/ready  ## servers that each host policy needs, for many workloads: make sizing ARGS="--seeds 11-13"
	@$(PYTHON) -m benchmarks.sizing $(ARGS)

simulate: .venv/ready  ## a cluster under faults on a virtual clock: make simulate SEEDS=10000, or SEED=N for one story
	@$(PYTHON) -m tests.simulation $(if $(SEED),--seed $(SEED),--seeds $(SEEDS)) --mistake "$(MISTAKE)"

soak: .venv/ready  ## a cluster under churn for a long time; memory, descriptors, times, logs stay flat: make soak MINUTES=30
	@$(PYTHON) -m tests.soak --minutes $(MINUTES)

fuzz: .venv/ready  ## hostile input for all that decodes, a million and more: make fuzz RUNS=20000 for so many of each
	@$(PYTHON) -m tests.fuzz $(if $(RUNS),--runs $(RUNS))

faults: .venv/ready  ## real VMs while real daemons, disks and networks fail, in containers: make faults SEED=N OPERATIONS=200
	@$(PYTHON) -m tests.system.faults $(if $(SEED),--seed $(SEED)) --operations $(OPERATIONS)

conformance: .venv/ready  ## replay recorded decisions: make conformance TRACES="FILES"
	@$(PYTHON) -m tests.conformance $(TRACES)

topologies: .venv/ready  ## rewrite topologies/*.json from facts
	tools/topologies

introspection: .venv/ready  ## rewrite the description of the D-Bus interface
	@$(PYTHON) -m tools.introspection

deb: .venv/ready  ## the Debian package, in dist/
	@tools/deb

clean:  ## remove everything that was built
	rm -rf .venv build dist *.egg-info core/*.so core/policy/*.so core/host_policy/*.so core/host_policy/*.so
