# The two commands that matter: `make run` (a live demo) and `make test` (everything that CI runs).
GO      ?= go
BIN     := bin/statussync
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)
FUZZ    ?= 60s
# The race detector needs a C compiler; without one the tests still run, and CI refuses to.
RACE    := $(shell command -v cc >/dev/null 2>&1 && echo -race)

.DEFAULT_GOAL := help
.PHONY: help run build page screenshots test test-setup helm-test fuzz bench microbench lint fmt clean

help: ## show this help
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: build ## build, then run the live demo: the real service and a simulated fleet (Ctrl-C stops it)
	@exec ./$(BIN) demo

page: ## build the dashboard's page with npm, where it is older than its sources
	@./dashboard/build.sh

build: page ## build bin/statussync, with the page where there is Node.js
	@mkdir -p bin
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN) ./cmd/statussync

test-setup:
	@./.ci/setup

# Two packages at a time: the tests from outside, which mostly wait for their processes, and one of the others.
# A test that fails is run again, at most twice and loudly: on a shared machine one of a thousand with real processes and
# sockets may starve. What fails each time fails, and a data race fails at once.
test: test-setup lint ## install what the tests need, then lint and run all tests with the race detector
	$(GO) tool gotestsum --format pkgname-and-test-fails --hide-summary skipped --rerun-fails=2 --rerun-fails-max-failures 6 --rerun-fails-run-root-test \
		--rerun-fails-abort-on-data-race --packages "./e2e $$($(GO) list ./... | grep -v /e2e$$ | tr '\n' ' ')" -- $(RACE) -p 2 -timeout 14m

helm-test: ## test the Helm chart; builds Helm first, which takes minutes
	HELM_TESTS=1 $(GO) test -run Helm ./deploy

lint: ## gofmt, go vet, staticcheck
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$unformatted" ]; then echo "gofmt would change: $$unformatted"; exit 1; fi
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

fuzz: ## fuzz every decoder, FUZZ (60s) each
	@./.ci/fuzz $(FUZZ)

bench: ## measure the service against raw limits and peers, some 6 minutes; RUN=fanout: one part, FULL=1: more rounds
	@./.ci/bench-setup
	cd bench && $(GO) run . -out . -run '$(RUN)' $(if $(FULL),-full)

microbench: ## run the benchmarks that stand beside the code
	$(GO) test -run '^$$' -bench . -benchmem ./...

screenshots: page ## make docs/screenshots anew; needs chromium
	SCREENSHOTS=$(CURDIR)/docs/screenshots $(GO) test -count 1 -v -timeout 10m -run '^TestScreenshots$$' ./e2e

fmt: ## format all Go files
	gofmt -w $$(git ls-files '*.go')

clean: ## remove what the build made
	rm -rf bin dashboard/dist
