# The two main commands are `make demo` and `make test`. Both first install what they need into this checkout; a second time that takes no time.
export PATH := $(CURDIR)/tools/node_modules/.bin:$(CURDIR)/node_modules/.bin:$(CURDIR)/.venv/bin:$(PATH)
# Python keeps what it compiles, also where the environment forbids it, as in many containers: each start of the trainer or of vLLM would compile
# their sources again, for 14 seconds. To compile all packages when they are installed takes three quarters of a minute; most are never imported.
export PYTHONDONTWRITEBYTECODE :=
REPORTS := .cache/reports
CLUSTER_BIN := $(or $(LORALINE_CLUSTER_BIN),$(HOME)/.cache/loraline/cluster-bin)
VITEST = vitest run --reporter=default --reporter=junit --outputFile.junit=$(REPORTS)/$@.xml

.PHONY: help setup installed demo demo-preferences up test test-quick test-all bench bench-cluster bench-trl bench-warm bench-memory test-gpu soak check fmt generate clean test-unit test-integration test-engine test-families test-pictures \
  test-python test-e2e test-e2e-quick test-faults test-images test-cluster test-api-server test-cluster-e2e test-cluster-attempts test-cluster-more cluster-bin cluster-up cluster-down chart manifests release
help:
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

setup: ## install Node, packages, the Python environment and the base model into this checkout
	@$(MAKE) --no-print-directory -j2 installed

demo: setup ## a real dataset becomes a proven, answering adapter
	@./loraline demo

demo-preferences: setup ## pairs of answers become an adapter that prefers the plain ones
	@./loraline demo --preferences

up: setup ## run everything in the foreground on one port
	@./loraline up

bench: setup .cache/bench-litellm/.stamp ## measure; figures in docs/benchmarks.md
	@node --conditions=@loraline/source tests/bench/main.ts

bench-trl: setup .cache/bench-trl/.stamp .cache/bench-llama-factory/.stamp ## the trainer beside TRL, transformers' Trainer and LLaMA-Factory: the same losses step by step, and the time of each on a real base
	.venv/bin/python tests/bench/beside_trl.py
	.venv/bin/python tests/bench/beside_trl.py --base .loraline/bases/smollm2-135m-instruct --method supervised
	.venv/bin/python tests/bench/beside_trl.py --base .loraline/bases/smollm2-135m-instruct --method dpo
	.venv/bin/python tests/bench/beside_trl.py --base .loraline/bases/smollm2-135m-instruct --method seq2seq --rows persona --steps 50 --turns 2
	.venv/bin/python tests/bench/beside_trl.py --base .loraline/bases/smollm2-135m-instruct --method llama-factory --rows persona --steps 50 --turns 2

bench-warm: setup ## eight short runs, each in a process of its own and in one that stays warm
	.venv/bin/python tests/bench/warm.py --base .loraline/bases/smollm2-135m-instruct

bench-memory: setup ## 200,000 tokens in one batch: the trainer's memory does not grow with the logits
	.venv/bin/python tests/bench/tokens_in_memory.py

test-gpu: setup ## the trainer on a GPU: parity, tokens per second and memory on bases of 7B and 1.5B with random weights (eight minutes on an H200)
	.venv/bin/python tests/bench/gpu.py

soak: setup ## kills, faults and load at random for SOAK_MINUTES (10), then a check of all that was answered; docs/contributing.md
	@node --conditions=@loraline/source tests/soak/main.ts

bench-cluster: setup cluster-up ## measure on a real cluster, and what serving a thousand adapters on a hundred replicas takes
	@node --conditions=@loraline/source tests/bench/main.ts cluster three-replicas reconcile

# tests/legs.py runs targets of this file side by side where they do not compete, and says where the time went.
test: setup ## everything but Kubernetes: lint, types, unit, integration, Python, end to end, faults
	@python3 tests/legs.py check test-python test-unit test-engine test-integration test-e2e test-faults

test-quick: setup ## for everyday work: lint, types, unit, and one dataset's whole path to an answer
	@python3 tests/legs.py test-e2e-quick check test-unit

test-all: setup ## `test` and `test-cluster`
	@python3 tests/legs.py all

cluster-up: setup ## a real one-node Kubernetes on this machine with the images of this checkout; or kind: LORALINE_CLUSTER=kind
	@conf=$$(bash infra/cluster/cluster-up.sh) && bash infra/cluster/next-steps.sh "$$conf"

cluster-down: ## stop it, and take back all that it changed on this machine
	@bash infra/cluster/down.sh .cache/cluster

# The first leg needs no node. The second uses a running cluster, or starts and stops one: see infra/cluster/cluster-up.sh.
test-cluster: setup ## what needs Kubernetes: an API server first, then the chart on a whole node
	@python3 tests/legs.py cluster-bin test-api-server test-cluster-e2e test-cluster-attempts test-cluster-more

# Runs with a low priority: without a cache it takes some 17 minutes of a core, more than half an hour beside two legs on a slow processor.
cluster-bin:
	@nice -n 19 bash infra/cluster/build.sh $(if $(LORALINE_KUBECONFIG),--api-server)
	@$(if $(LORALINE_KUBECONFIG),:,nice -n 19 bash infra/cluster/images.sh --layers)

test-api-server:
	@bash infra/cluster/build.sh --api-server
	$(VITEST) --project cluster

test-cluster-e2e: ; $(VITEST) --project cluster-e2e
test-cluster-attempts: ; $(VITEST) --project cluster-attempts
test-cluster-more: ; $(VITEST) --project cluster-more

chart: ## Helm's lint, and the chart's own suites
	@bash infra/cluster/build.sh --api-server
	$(CLUSTER_BIN)/helm lint --strict helm/loraline
	$(CLUSTER_BIN)/untt helm/loraline

manifests: ## helm/loraline-plain.yaml, from the chart
	@bash infra/cluster/build.sh --api-server
	bash helm/plain-manifests.sh >helm/loraline-plain.yaml

check: ## lint, format and types
	pnpm -s lint
	pnpm -s lint:openapi
	pnpm -s fmt:check
	pnpm -s typecheck
	ruff check --quiet .
	ruff format --check --quiet .
	ty check --quiet

test-unit: ; $(VITEST) --project unit
test-integration: ; $(VITEST) --project integration
test-engine: ; $(VITEST) --project engine
test-images: setup ## every Dockerfile is built by the Docker engine, and what comes of it runs
	$(VITEST) --project docker
test-families: setup ## a tiny base of every family of multimodal bases and mixtures of experts, each on its own vLLM (some ten minutes)
	LORALINE_FAMILIES=$${LORALINE_FAMILIES:-all} $(VITEST) --project engine services/serve/src/engines/vllm/families.integration.test.ts
test-pictures: setup ## an adapter that names what pictures show, trained on sixty of them and proven on vLLM
	$(VITEST) --project engine services/serve/src/engines/vllm/pictures.integration.test.ts
test-python: .cache/bench-trl/.stamp ; python -m pytest -q --junitxml=$(REPORTS)/$@.xml services/train/trainer
test-e2e: ; $(VITEST) --project e2e
test-e2e-quick: ; $(VITEST) --project e2e tests/e2e/whole-path.test.ts
test-faults: ; $(VITEST) --project faults

release: setup ## images, chart and CLI for a registry: make release REGISTRY=registry.example.com/loraline (infra/release/release.sh)
	@bash infra/release/release.sh "$(REGISTRY)" $(FLAGS)

fmt: ## format the sources
	pnpm -s fmt
	ruff format --quiet .

generate: ## AsyncAPI, OpenAPI, JSON Schema, CRDs, the chart's schema, NATS permissions and docs/errors.md from the contracts; the chart's values.md
	pnpm --filter @loraline/contracts run generate
	node --conditions=@loraline/source infra/chart/write-values-page-main.ts

clean: ## remove all that was installed or made here
	rm -rf node_modules packages/console/dist packages/*/node_modules services/*/node_modules tools/node_modules tools/uv .venv .cache .loraline

.cache/bench-litellm/.stamp: tests/bench/litellm.lock | .venv/.stamp
	sh tests/bench/litellm-env.sh
	@touch $@

.cache/bench-trl/.stamp: tests/bench/trl.lock | .venv/.stamp
	sh tests/bench/trl-env.sh
	@touch $@

.cache/bench-llama-factory/.stamp: tests/bench/llama-factory.lock | .venv/.stamp
	sh tests/bench/llama-factory-env.sh
	@touch $@

# --- the parts of `setup`: each folder has a stamp that says it is complete ---
installed: node_modules/.stamp .loraline/bases/.stamp packages/console/dist/.stamp
	@:

tools/node_modules/.stamp: tools/package.json
	@sh tools/require.sh node npm
	npm install --prefix tools --no-package-lock --no-audit --no-fund --loglevel=error
	@touch $@

node_modules/.stamp: tools/node_modules/.stamp pnpm-lock.yaml pnpm-workspace.yaml package.json $(wildcard packages/*/package.json services/*/package.json)
	pnpm install --frozen-lockfile --reporter=append-only --loglevel=warn
	@touch $@

# The console's pages, of its own sources and of what it shares with the gateway.
packages/console/dist/.stamp: node_modules/.stamp $(shell find packages/console packages/client/src packages/contracts/src -type f \
  -not -path '*/node_modules/*' -not -path '*/dist/*' -not -name '*.test.ts' 2>/dev/null)
	pnpm --filter @loraline/console run --silent build
	@touch $@

.venv/.stamp: services/train/trainer/requirements.lock tools/python-env.sh
	@sh tools/require.sh python
	sh tools/python-env.sh $<
	@touch $@

.loraline/bases/.stamp: packages/local/prepare-base.py | .venv/.stamp
	.venv/bin/python $<
	@touch $@
