# Keyhold's build. Needs Go, git and make; softhsm-config/install.sh installs
# SoftHSM2 and a C compiler where they are missing, and says so.
# `make help` lists the targets.

SHELL = /bin/sh
.DEFAULT_GOAL = help

GO ?= go
BIN = bin

# How long each fuzz target runs in `make fuzz`.
FUZZTIME ?= 30s

# How often `make bench` measures each operation, a second each time.
BENCHTIME ?= 8

# How long `make soak` lasts, and how often it breaks something.
SOAK ?= 10m
SOAK_EVERY ?= 20s

# Extra flags of the daemon in `make dev`: make dev DEVFLAGS='--dir /srv/kh'.
DEVFLAGS ?=

# Packages that `make test` and `make check` cover.
PKGS ?= ./...

# A build from a tarball has no git: it says "unknown", never nothing.
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS = -X main.version=$(VERSION)

# The tools, pinned. The Go checksum database vouches for their contents.
# The two code generators are pinned in buf.gen.yaml.
GOFUMPT = $(GO) run mvdan.cc/gofumpt@v0.12.0
GOLANGCI_LINT = $(GO) run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
BUF = $(GO) run github.com/bufbuild/buf/cmd/buf@v1.75.0

# What `buf breaking` compares with: the last release, else main upstream.
# BREAKING_BASE=<revision> overrides it.
BREAKING_BASE ?= $(shell git describe --tags --abbrev=0 --match 'v[0-9]*' 2>/dev/null || git rev-parse --verify --quiet origin/main 2>/dev/null)

.PHONY: help dev test interop check build generate fmt lint fuzz bench bench-keys bench-records soak clean \
	tools-installed check-format check-vet check-lint check-proto \
	check-breaking check-generated check-modules check-race

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-13s %s\n", $$1, $$2 }' Makefile

tools-installed:
	@softhsm-config/install.sh

dev: tools-installed build ## start everything on loopback, with a SoftHSM token in .keyhold
	$(BIN)/keyholdd dev $(DEVFLAGS)

test: tools-installed ## run all tests
	CGO_ENABLED=1 $(GO) test $(PKGS)

# A module of its own: its dependencies, the clients, are not Keyhold's.
interop: tools-installed build ## run the tests against other people's clients, which interop/install.sh installs
	@interop/install.sh
	cd interop && KEYHOLDD=$(CURDIR)/$(BIN)/keyholdd $(GO) test -count=1 ./...

build: ## build bin/keyholdd (needs cgo) and bin/keyhold (pure Go)
	CGO_ENABLED=1 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/keyholdd ./cmd/keyholdd
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/keyhold ./cmd/keyhold

generate: ## write the Go code of proto/ again
	cd tools && $(GO) run ./validateproto ../.gen/proto
	$(BUF) format -w proto
	$(BUF) generate proto

fmt: ## format Go and proto
	$(GOFUMPT) -w .
	cd tools && $(GOFUMPT) -w .
	cd interop && $(GOFUMPT) -w .
	$(BUF) format -w proto

lint: tools-installed check-vet check-lint ## vet and lint the Go code

fuzz: tools-installed ## run each fuzz target for FUZZTIME (30s)
	@find . -name '*_test.go' -exec grep -H -o -E '^func Fuzz[A-Za-z0-9_]+' {} + | sort | \
	while IFS=: read -r file func; do \
		name=$${func#func }; \
		echo "== $${file%/*} $$name"; \
		$(GO) test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) "$${file%/*}" </dev/null || exit 1; \
	done

bench: tools-installed build ## measure on a quiet machine, and write docs/performance.md (5 minutes)
	$(GO) run ./internal/benchrun -part ops -turns $(BENCHTIME)

bench-keys: tools-installed build ## the same for 10,000 keys, start-up and memory (10 minutes)
	$(GO) run ./internal/benchrun -part keys -turns $(BENCHTIME)

bench-records: tools-installed build ## the same for 100,000 key records (7 minutes)
	$(GO) run ./internal/benchrun -part records -turns $(BENCHTIME)

soak: tools-installed ## break a daemon under load at random for SOAK (10m), check everything, report
	CGO_ENABLED=1 SOAK=$(SOAK) SOAK_EVERY=$(SOAK_EVERY) $(GO) test -tags soak -count=1 -timeout 0 -run '^TestSoak$$' -v ./server/servertest

clean: ## remove built files (not .keyhold: it holds keys)
	rm -rf $(BIN) .gen

# Everything that a change must pass, cheapest first. One at a time: the
# generator writes files that the others read.
.NOTPARALLEL:
check: tools-installed check-format check-modules check-generated check-proto check-breaking check-vet check-lint check-race ## all that a change must pass
	@echo "check: all passed"

check-format:
	@echo "== gofumpt"
	@out=$$($(GOFUMPT) -l . && cd tools && $(GOFUMPT) -l . && cd ../interop && $(GOFUMPT) -l .) || exit 1; \
	if [ -n "$$out" ]; then echo "not formatted (make fmt):"; echo "$$out"; exit 1; fi

check-modules:
	@echo "== go.mod and go.sum"
	@$(GO) mod tidy -diff
	@cd tools && $(GO) mod tidy -diff
	@cd interop && $(GO) mod tidy -diff
	@cd interop/sops && $(GO) mod tidy -diff
	@$(GO) mod verify

check-generated: generate
	@echo "== generated code is what is committed"
	@git diff --exit-code -- proto || { echo "proto/ is not as generated: commit what 'make generate' wrote"; exit 1; }
	@new=$$(git ls-files --others --exclude-standard -- proto); \
	if [ -n "$$new" ]; then echo "generated, but not in git:"; echo "$$new"; exit 1; fi

check-proto:
	@echo "== buf lint"
	@$(BUF) lint

# A git reference will not do as the input: it lacks .gen/proto, which is not
# committed. So the base is unpacked, and today's .gen/proto put beside it.
check-breaking:
	@echo "== buf breaking"
	@base='$(BREAKING_BASE)'; \
	if [ -z "$$base" ]; then \
		echo "no release tag and no origin/main yet: there is nothing to compare the API with"; exit 0; \
	fi; \
	if ! git cat-file -e "$$base:proto" 2>/dev/null; then \
		echo "$$base has no proto/ yet: there is nothing to compare the API with"; exit 0; \
	fi; \
	rm -rf .gen/base && mkdir -p .gen/base/.gen && \
	GIT_INDEX_FILE=$$PWD/.gen/base/index && export GIT_INDEX_FILE && git read-tree "$$base" && \
	git ls-files -- buf.yaml ':(glob)proto/**/*.proto' | git checkout-index --prefix=.gen/base/ --stdin && \
	cp -R .gen/proto .gen/base/.gen/proto && \
	$(BUF) breaking --against .gen/base && echo "compatible with $$base"; \
	status=$$?; rm -rf .gen/base; exit $$status

check-vet:
	@echo "== go vet"
	@CGO_ENABLED=1 $(GO) vet $(PKGS)
	@cd tools && $(GO) vet ./...
	@cd interop && $(GO) vet ./...

check-lint:
	@echo "== golangci-lint"
	@CGO_ENABLED=1 $(GOLANGCI_LINT) run $(PKGS)

check-race:
	@echo "== go test -race"
	CGO_ENABLED=1 $(GO) test -race $(PKGS)
