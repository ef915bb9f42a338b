# Every target does the whole set-up by itself on a machine with Python >= 3.11 and pip.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: help install demo test lint test-system clean

help:
	@echo "make demo         train a small classifier on real images, in a minute"
	@echo "make test         ruff, pyright and pytest"
	@echo "make lint         ruff and pyright alone"
	@echo "make test-system  install the Debian packages of the tests on Slurm, containers, ssh"
	@echo "make clean        remove .venv and what tools left behind"

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "graftwerk needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "this Python makes no virtual environments: install its venv module" \
		"(Debian and Ubuntu: apt-get install python3-venv)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	$(BIN)/uv pip install --compile-bytecode --python $(BIN)/python -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(INSTALLED)
	$(BIN)/graftwerk run digits
	@echo
	@echo "Three commands worth trying next:"
	@echo "  $(BIN)/graftwerk show digits                          every key, and what follows from it"
	@echo "  $(BIN)/graftwerk run digits optim.lr=0.01 name=faster  any key=value starts another run"
	@echo "  $(BIN)/graftwerk recipes                              what else can be trained"

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

# Tests start worker processes of their own: one thread for each. They wait for these half of the
# time, so that there are more tests at once than cores.
test: export OMP_NUM_THREADS = 1
test: CORES = $(shell getconf _NPROCESSORS_ONLN)
test: lint
	$(BIN)/pytest -n $$(($(CORES) < 6 ? ($(CORES) * 3 + 1) / 2 : 8)) --dist worksteal

test-system:
	@command -v apt-get >/dev/null || { echo "only Debian and Ubuntu are known here:" \
		"install Slurm (slurmctld, slurmd, srun), munge, iproute2," \
		"Charliecloud, Podman with runc, OpenSSH and rsync by hand"; exit 1; }
	@root=$$(test "$$(id -u)" = 0 || echo sudo); set -ex; \
		$$root apt-get update -qq; \
		$$root env DEBIAN_FRONTEND=noninteractive \
			apt-get install -qq --yes --no-install-recommends slurm-wlm munge \
			iproute2 charliecloud podman runc openssh-server openssh-client rsync

clean:
	rm -rf .venv .pytest_cache .ruff_cache build dist
