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

# What is compiled is made anew when a source has changed; what is out of date is never taken (tproxy/native.py).
NATIVE := tproxy/_native/built_from
READY := $(VENV)/ready $(NATIVE)

.PHONY: demo demo-gateway test check native bench bench-gateway soak kills torture guest image pod-demo kind-demo bpf wire clean

demo: $(READY)
	$(BIN)/tproxy demo

demo-gateway: $(READY)
	$(BIN)/tproxy demo --gateway --report build/demo-gateway.json

test: check
	$(BIN)/pytest $(PYTEST)
	TPROXY_PURE=1 $(BIN)/pytest -q $(TWINS)

# what runs compiled, once more as it stands in the sources
TWINS := tests/test_h1_client.py tests/test_h1_server.py tests/test_http_plan.py tests/test_wheel.py \
         tests/test_gateway_h2.py tests/test_gateway_h2_sections.py tests/test_gateway_pool.py tests/test_gateway_exchange.py

native: $(READY)

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/tproxy bench --rounds 6

bench-gateway: $(READY)
	$(BIN)/python -m tproxy.bench.front_run

torture: $(READY)
	$(BIN)/python -m tests.torture.run --seconds $(or $(FOR),1800) --seed $(or $(SEED),1)

soak: $(READY)
	TPROXY_SOAK=100000 $(BIN)/pytest tests/test_soak.py --timeout 900

kills: $(READY)
	TPROXY_KILLS=200 $(BIN)/pytest tests/test_control_kill.py -s
	TPROXY_RESTARTS=50 $(BIN)/pytest tests/test_directory_pods.py -s

guest: $(READY)
	$(BIN)/python -m guest

# Containers need more of Debian; without a registry the images' base comes from debootstrap, once, under build/.
PODS := podman buildah runc catatonit netavark aardvark-dns iptables debootstrap tcpdump util-linux
image: $(READY)
	$(call install,$(PODS))
	$(BIN)/python -m images.build

pod-demo: $(READY)
	$(call install,$(PODS))
	$(BIN)/python -m pods

kind-demo: $(READY)
	$(BIN)/python -m pods --kind

# The object is committed, so that nobody needs clang to run it.
BPF_OUT := tproxy/kernel/sockmap.bpf.o
bpf:
	clang -O2 -g -Wall -Werror -target bpf -I/usr/include/$$(uname -m)-linux-gnu -c bpf/sockmap.bpf.c -o $(BPF_OUT)
	llvm-strip -g $(BPF_OUT) 2>/dev/null || $$(ls /usr/bin/llvm-strip-* | tail -1) -g $(BPF_OUT)

# What protoc makes is committed, too.
wire: $(READY)
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. $(wildcard tproxy/wire/*.proto)

$(VENV)/ready: pyproject.toml setup.py tproxy/proxy/_compiled.pyx
	@echo "setting up: Debian packages, then a virtual environment in $(VENV)"
	$(call install,$(PACKAGES))
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version) if sys.version_info < (3, 11) else None'
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@echo "installing tproxy and its tools, and compiling (a minute or two)"
	@$(BIN)/pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $@

$(NATIVE): tproxy/native.txt $(shell cat tproxy/native.txt) | $(VENV)/ready
	@mkdir -p build
	@echo "compiling what has changed (about a minute)"
	@$(BIN)/python setup.py -q build_ext --inplace >build/native.log 2>&1 || { cat build/native.log; exit 1; }
	@grep -E "error: |^warning: " build/native.log || true

clean:
	rm -rf $(VENV) build tproxy/_native *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
