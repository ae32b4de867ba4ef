# README's commands. Each target installs or names what it needs.

CARGO ?= cargo
# With the lab in it; what operators run is target/release/flowgate.
FLOWGATE := target/lab/flowgate
WITH_LAB := --features flowgate/lab
FUZZ_SECONDS ?= 60
SEEDS ?= 10000
SECONDS ?= 60
SEED ?= 1
PACKETS ?= 10000
KERNELS ?= 5.10 6.1 6.12 6.18 sid backports
DEVICE ?= igb
KERNEL ?= sid
QUEUES ?= 1

.PHONY: build lab kubernetes demo test lint gates dependencies bench bench-lab compare-kube-proxy compare-nft bench-control fuzz simulate mutants faults soak kernels vm vm-tests clean deps root

# What operators run: target/release/flowgate, and its symbols in flowgate.dwp beside it.
build: deps
	$(CARGO) build --release -p flowgate

# The same with the lab and the load generator: target/lab/flowgate.
lab: deps
	$(CARGO) build --profile lab -p flowgate $(WITH_LAB)

# The Kubernetes control plane of the lab, from its Go modules; built anew only when its sources changed.
kubernetes:
	@.ci/deps kubernetes
	@.ci/kubernetes

demo: root lab
	$(FLOWGATE) lab demo

# Gates, and then unit, property, golden and network tests and a replay of the fuzz corpora; the network tests need root. Each
# stage says how long it took, and the end repeats all of them.
STAGE := .ci/stage
test: root deps
	@rm -f target/stages
	@$(STAGE) gates $(MAKE) --no-print-directory gates
	@CARGO='$(CARGO)' $(STAGE) build .ci/build-tests
	@$(STAGE) tests .ci/tests
	@$(STAGE) interleave $(CARGO) test -p flowgate-flow --features interleave --test interleave
	@$(STAGE) --summary

# Who imports whom, how long files are, names that were given up, paths and tests that documents name, files of tests that no
# program has, and shell scripts: .ci/gates, one command each.
gates: deps
	@.ci/gates/imports
	@.ci/gates/sizes
	@.ci/gates/words
	@.ci/gates/paths
	@.ci/gates/requirements
	@.ci/gates/programs
	@.ci/gates/scripts

# Crates from outside: licences, duplicates, known vulnerabilities. The first time it builds cargo-deny, some minutes.
dependencies: deps
	@.ci/gates/dependencies

# Format, lints with and without the lab, and documentation without a warning. Beside `make test`, since it reads every crate
# in another way than the tests, which takes minutes from nothing.
lint: deps
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets $(WITH_LAB) -- -D warnings
	$(CARGO) clippy -p flowgate -- -D warnings
	@.ci/gates/docs

# Criterion benches of the pipeline and its parts; ends with one line of JSON.
bench: deps
	$(CARGO) bench -p flowgate-benches
	@$(CARGO) run -q --release -p flowgate-benches --bin bench-report

# Packets per second against a bare AF_XDP forwarder in the lab; ends with one line of JSON.
bench-lab: root lab
	$(FLOWGATE) lab bench

# The same objects and probes through flowgate and real kube-proxy; ends with one line of JSON.
compare-kube-proxy: root lab kubernetes
	$(FLOWGATE) lab compare

# The same random packets through flowgate and Linux with nft: PACKETS=10000 SEED=7 make compare-nft; ends with one line of JSON.
compare-nft: root lab
	$(FLOWGATE) lab compare-nft --packets $(PACKETS) --seed $(SEED)

# Milliseconds from API to forwarding at 5,000 Services, beside real kube-proxy; ends with one line of JSON.
bench-control: root lab kubernetes
	$(FLOWGATE) lab bench-control

# Ten targets share FUZZ_SECONDS, with overflow checks on; ends with one line of JSON. What panics is kept in the
# corpus of its target, which the tests replay.
FUZZ = FUZZ_SECONDS=$(FUZZ_SECONDS) FUZZ_REPORT=$(CURDIR)/target/fuzz.jsonl $(CARGO) test -q
fuzz: deps
	@mkdir -p target && rm -f target/fuzz.jsonl
	$(FUZZ) -p flowgate-flow -p flowgate-dataplane --test fuzz -- --test-threads=1 --nocapture
	$(FUZZ) -p flowgate-control --test control fuzz:: -- --test-threads=1 --nocapture
	$(FUZZ) -p flowgate-control --lib netlink::fuzz -- --nocapture
	$(FUZZ) -p flowgate --bin flowgate fuzz -- --test-threads=1 --nocapture
	HOSTILE_OBJECTS=100000 $(CARGO) test -q -p flowgate-control --test control hostile_objects::
	@awk -F'[:,]' '{ n++; inputs += $$4 } END { printf "{\"targets\":%d,\"inputs\":%d,\"failures\":0}\n", n, inputs }' target/fuzz.jsonl

# Whole conversations against an independent model, one run a seed; ends with one line of JSON.
simulate: deps
	SEEDS=$(SEEDS) $(CARGO) test -q --release -p flowgate-dataplane --test simulate

# Small changes made to the code, each of which a test should notice: SHARD=0/8 make mutants takes an eighth of them.
mutants: deps
	@.ci/mutants

# Everything that can break around a gateway, done to a real one under load; ends with one line of JSON.
faults: root lab
	$(FLOWGATE) lab faults

# The same all at once for a time: SECONDS=3600 SEED=7 make soak; ends with one line of JSON.
soak: root lab
	$(FLOWGATE) lab soak --seconds $(SECONDS) --seed $(SEED)

# Other kernels, in QEMU without KVM: tests of this workspace run in each; ends with one line of JSON. KERNELS names
# some of 5.10 6.1 6.12 6.18 sid backports, which .ci/vm fetches once; 5.10 is too old and has to be told so. SHORT=1
# leaves some tests out.
kernels: root deps
	@.ci/deps vm
	@.ci/vm $(KERNELS)
	@.ci/kernels $(KERNELS)

# The driver of an emulated NIC, with the real binary, in QEMU without KVM: DEVICE is igb, virtio-net, vmxnet3 or e1000e,
# QUEUES up to 4, each with a worker; ends with one line of JSON.
vm: root lab
	@.ci/deps vm
	@.ci/vm $(KERNEL)
	$(FLOWGATE) lab vm --device $(DEVICE) --kernel $(KERNEL) --queues $(QUEUES)

# Tests that need modules which this machine's kernel may lack, in QEMU without KVM: SCTP sockets, VLAN interfaces, bonds,
# netem; ends with one line of JSON.
vm-tests: root deps
	@.ci/deps vm
	@.ci/vm $(KERNEL)
	@.ci/vm-tests $(KERNEL)

clean:
	$(CARGO) clean

deps:
	@.ci/deps

root:
	@[ "$$(id -u)" = 0 ] || { echo "this needs root, for network namespaces and XDP: run it with sudo" >&2; exit 1; }
