# make run    serves the metrics of this machine on :10042, as root
# make test   runs the tests, as root: they load real programs and make real traffic
# Both install what they need: Debian packages by apt-get, Python packages into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OBJECT := exporter/sockledger/kernel/sockledger.bpf.o
OBJECTS := $(OBJECT) exporter/sockledger/kernel/move.bpf.o

RUN_PACKAGES := clang llvm libbpf-dev libbpf1 linux-libc-dev libc6-dev make python3 python3-venv
TEST_PACKAGES := clang-format nftables iproute2 systemd ethtool iputils-ping bpftool prometheus strace
CLUSTER_PACKAGES := etcd-server containerd runc containernetworking-plugins busybox-static openssl curl procps docker.io podman
KERNELS_PACKAGES := qemu-system-x86 kmod busybox-static file python3-venv

.PHONY: run test test-half-kernel test-half-daemon test-full test-kernels test-cluster bench soak lint format docs build wheel clean packages-run packages-test packages-cluster packages-kernels

run: build
	$(BIN)/sockledger run --no-pin $(ARGS)

# Two halves at once, which do not meet: one attaches at the cgroup root, the other below it.
test: packages-test lint
ifdef ARGS
	$(BIN)/pytest $(ARGS)
else
	$(MAKE) --no-print-directory --jobs=2 --output-sync=target test-half-kernel test-half-daemon
endif

test-half-kernel: ; $(BIN)/pytest tests/kernel
test-half-daemon: ; $(BIN)/pytest tests/unit tests/daemon

test-full: packages-test build
	SOCKLEDGER_TEST_FULL=1 $(BIN)/pytest $(ARGS)

# The kernel tests again under Debian's 6.1 and 6.12, in virtual machines, with a twentieth of the traffic: half
# of them on each; all with SOCKLEDGER_TEST_FULL=1.
test-kernels: packages-kernels packages-test build
	tests/kernels/run

# Pods of every kind in a real Kubernetes of one node, which Go builds from source; Docker and Podman.
test-cluster: packages-cluster packages-test build
	tests/cluster/cluster build
	$(BIN)/pytest tests/cluster $(ARGS)

bench: packages-test build
	$(BIN)/python -m tests.bench $(ARGS)

# Ten minutes of connections and cgroups that come and go: nothing may be missing, and nothing may grow.
soak: packages-test build
	$(BIN)/python -m tests.soak

lint: packages-test build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python docs/generate_metrics.py --check
	find bpf tests -name '*.[ch]' -print0 | xargs -0 clang-format --dry-run -Werror

format: packages-test build
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	find bpf tests -name '*.[ch]' -print0 | xargs -0 clang-format -i

docs: build
	$(BIN)/python docs/generate_metrics.py

# Installs the package in place, with its development tools; the build step compiles the BPF objects.
build: $(VENV)/installed $(OBJECTS)

$(OBJECTS) &: $(wildcard bpf/*.h bpf/*.c bpf/Makefile) | packages-run
	$(MAKE) --no-print-directory -C bpf OBJECT=$(CURDIR)/$(OBJECT)

$(VENV)/installed: pyproject.toml bpf/hatch_build.py | packages-run $(OBJECTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/pip install --quiet --editable . --group dev
	touch $@

wheel: build
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .

packages-run: ; @./install-packages $(RUN_PACKAGES)
packages-test: ; @./install-packages $(TEST_PACKAGES)
packages-cluster: ; @./install-packages $(CLUSTER_PACKAGES)
packages-kernels: ; @./install-packages $(KERNELS_PACKAGES)

clean:
	rm -rf $(VENV) build dist $(OBJECTS)
