# A few commands. The work is done by the small programs in tools/; this file only names them.
# Only relative paths here: the folder's own path may contain a space.

# Set on the command line:  make test PYTHON=3.12 ON=postgres ARGS="-k lease"
PYTHON =
ON =
ARGS =

# Any Python from 3.8 on can run tools/; they look for the right ones themselves. Each candidate is started,
# because a name on PATH may be a shim without a Python behind it.
FINDER := $(shell for name in python3 python3.14 python3.13 python3.12 python3.11 /usr/bin/python3 python; do \
	"$$name" -c 'import sys; sys.exit(sys.version_info < (3, 8))' >/dev/null 2>&1 && echo "$$name" && break; done)
TOOL = @$(if $(FINDER),"$(FINDER)",echo "Holdfast needs Python 3.11 or newer; no python3 was found on PATH." >&2; exit 1;)

.DEFAULT_GOAL := help
.PHONY: help demo test servers browser bench storm failover fuzz-http check clean

help:
	@echo "make demo     install into .venv and watch a run survive a kill -9"
	@echo "make test     all tests on every installed Python   (PYTHON=3.12  ON=postgres  ARGS=\"-k name\")"
	@echo "make servers  PostgreSQL and MariaDB for the tests: install what is missing, try both   (ARGS=--stay)"
	@echo "make browser  Chromium and the React client for the tests: install what is missing"
	@echo "make bench    Holdfast beside DBOS and a bare loop, on this machine   (ARGS=--quick  ARGS=\"--on postgres\")"
	@echo "make storm    kill and stop real processes, ten minutes on each of two databases, and check   (ARGS=\"--seed 7 --minutes 2\")"
	@echo "make failover kill a PostgreSQL primary under load and promote its standby, five times   (ARGS=\"--promotions 2\")"
	@echo "make fuzz-http thousands of requests made of /openapi.json, each time others   (ARGS=--hypothesis-seed=7)"
	@echo "make check    format, lint, strict types"
	@echo "make clean    remove virtual environments, caches and build results"

demo:
	$(TOOL) tools/environment.py demo holdfast demo $(ARGS)

test:
	$(TOOL) tools/test.py $(if $(PYTHON),--python "$(PYTHON)") $(if $(ON),--on "$(ON)") -- $(ARGS)

servers:
	$(TOOL) tools/servers.py $(ARGS)

browser:
	$(TOOL) tools/browser.py

bench:
	$(TOOL) tools/environment.py dev python benchmarks/run.py $(ARGS)

storm:
	@echo "Storm: processes are killed and stopped while they work, and then all that happened is checked."
	$(TOOL) tools/environment.py dev python tests/storm/storm.py $(if $(ARGS),$(ARGS),--seed 1 --minutes 10)
	@echo "The same on PostgreSQL, whose server is restarted meanwhile."
	$(TOOL) tools/environment.py dev python tests/storm/storm.py --on postgres $(if $(ARGS),$(ARGS),--seed 1 --minutes 10)
	@echo "Crash campaign: a process dies at every point that the crash tests enumerate."
	$(TOOL) tools/environment.py dev env HOLDFAST_CRASH=all python -m pytest tests/crash -q
	@echo "Mutants: each guard is taken out once; somebody has to notice."
	$(TOOL) tools/environment.py dev python tests/mutants/hunt.py

failover:
	@echo "Failover: primaries die under load, standbys are promoted, and then all acknowledged runs must be there."
	$(TOOL) tools/environment.py dev python tests/failover/failover.py $(ARGS)

fuzz-http:
	@echo "Requests over HTTP: none is a fault of ours, and each answer is one that /openapi.json promises."
	$(TOOL) tools/environment.py dev env HOLDFAST_FUZZ=60 python -m pytest tests/wire/test_openapi_examples.py -q $(ARGS)

check:
	$(TOOL) tools/check.py

clean:
	$(TOOL) tools/clean.py
