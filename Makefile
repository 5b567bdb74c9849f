# Five commands. The work is done by the small programs in tools/; this file only names them.
# Only relative paths here: the folder's own path may contain a space.

# Set on the command line:  make test PYTHON=3.12 ARGS="-k lease"
PYTHON =
ARGS =

# Any Python from 3.8 on can run tools/; they look for the right ones themselves. Each candidate is started,
# because a name on PATH may be a shim without a Python behind it.
FINDER := $(shell for name in python3 python3.14 python3.13 python3.12 python3.11 /usr/bin/python3 python; do \
	"$$name" -c 'import sys; sys.exit(sys.version_info < (3, 8))' >/dev/null 2>&1 && echo "$$name" && break; done)
TOOL = @$(if $(FINDER),"$(FINDER)",echo "Holdfast needs Python 3.11 or newer; no python3 was found on PATH." >&2; exit 1;)

.DEFAULT_GOAL := help
.PHONY: help demo test bench storm check clean

help:
	@echo "make demo     install into .venv and watch a run survive a kill -9"
	@echo "make test     all tests on every installed Python   (PYTHON=3.12  ARGS=\"-k name\")"
	@echo "make bench    measure throughput and latency on this machine"
	@echo "make storm    only the tests that kill real processes, one line each"
	@echo "make check    format, lint, strict types"
	@echo "make clean    remove virtual environments, caches and build results"

demo:
	$(TOOL) tools/environment.py demo holdfast demo $(ARGS)

test:
	$(TOOL) tools/test.py $(if $(PYTHON),--python "$(PYTHON)") -- $(ARGS)

bench:
	$(TOOL) tools/environment.py dev python benchmarks/run.py $(ARGS)

storm:
	@echo "Crash campaign: real child processes are killed at every point that the crash tests enumerate."
	$(TOOL) tools/environment.py dev python -m pytest -m crash -v $(ARGS)

check:
	$(TOOL) tools/check.py

clean:
	$(TOOL) tools/clean.py
