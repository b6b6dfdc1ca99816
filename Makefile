# Two commands: make demo, make test. Each sets up what it needs; root is needed for network namespaces.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := nginx-light curl openssl tcpdump util-linux iproute2 libnftables1 redis-server wrk iperf3 nghttp2-client haproxy \
            libnginx-mod-stream systemd python3-venv gcc libc6-dev python3-dev libbpf1

define install
@missing=; for p in $(1); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; done; \
if [ -n "$$missing" ]; then \
  if command -v apt-get >/dev/null; then apt-get update -qq && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; \
  else echo "please install:$$missing"; exit 3; fi; fi
endef

.PHONY: demo demo-gateway test check bench bench-gateway soak kills torture guest image pod-demo kind-demo bpf wire clean

demo: $(VENV)/ready
	$(BIN)/tproxy demo

demo-gateway: $(VENV)/ready
	$(BIN)/tproxy demo --gateway --report build/demo-gateway.json

test: check
	$(BIN)/pytest $(PYTEST)

check: $(VENV)/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/ready
	$(BIN)/tproxy bench --rounds 6

bench-gateway: $(VENV)/ready
	$(BIN)/python -m tproxy.bench.front_run

torture: $(VENV)/ready
	$(BIN)/python -m tests.torture.run --seconds $(or $(FOR),1800) --seed $(or $(SEED),1)

soak: $(VENV)/ready
	TPROXY_SOAK=100000 $(BIN)/pytest tests/test_soak.py --timeout 900

kills: $(VENV)/ready
	TPROXY_KILLS=200 $(BIN)/pytest tests/test_control_kill.py -s
	TPROXY_RESTARTS=50 $(BIN)/pytest tests/test_directory_pods.py -s

guest: $(VENV)/ready
	$(BIN)/python -m guest

# Containers need more of Debian; without a registry the images' base comes from debootstrap, once, under build/.
PODS := podman buildah runc catatonit netavark aardvark-dns iptables debootstrap tcpdump util-linux
image: $(VENV)/ready
	$(call install,$(PODS))
	$(BIN)/python -m images.build

pod-demo: $(VENV)/ready
	$(call install,$(PODS))
	$(BIN)/python -m pods

kind-demo: $(VENV)/ready
	$(BIN)/python -m pods --kind

# The object is committed, so that nobody needs clang to run it.
BPF_OUT := tproxy/kernel/sockmap.bpf.o
bpf:
	clang -O2 -g -Wall -Werror -target bpf -I/usr/include/$$(uname -m)-linux-gnu -c bpf/sockmap.bpf.c -o $(BPF_OUT)
	llvm-strip -g $(BPF_OUT) 2>/dev/null || $$(ls /usr/bin/llvm-strip-* | tail -1) -g $(BPF_OUT)

# What protoc makes is committed, too.
wire: $(VENV)/ready
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. $(wildcard tproxy/wire/*.proto)

$(VENV)/ready: pyproject.toml setup.py tproxy/proxy/_compiled.pyx
	@echo "setting up: Debian packages, then a virtual environment in $(VENV)"
	$(call install,$(PACKAGES))
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version) if sys.version_info < (3, 11) else None'
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
