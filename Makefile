# Every target sets itself up: `.venv` with what it needs, quick the second time.
PYTHON ?= python3.11
EXTRAS ?= dev,render,serve
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(EXTRAS)
# Tests run two at a time: BLAS threads of both on two cores wait for each other for minutes.
PYTEST := OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# The versions to install; `make LOCK= ...` takes what pip finds instead.
LOCK ?= uv.lock
VERSIONS := export --frozen --all-extras --no-emit-project --no-hashes

.PHONY: demo miniature pretrained test parity lowest newest slow lint format lock docs bench gpu-smoke viewer viewer-if-node
.DEFAULT_GOAL := test

# uv only says the versions; pip installs, so that a machine's own wheels (a torch without CUDA, say) are found.
$(STAMP): pyproject.toml $(LOCK)
	@test -x $(BIN)/python || $$(command -v $(PYTHON) || command -v python3) -m venv $(VENV)
	@: > $(VENV)/constraints.txt
	$(if $(LOCK),$(PIP) uv && $(BIN)/uv $(VERSIONS) --quiet --no-header --no-annotate --output-file $(VENV)/constraints.txt)
	$(PIP) --constraint $(VENV)/constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

lock: $(STAMP)  ## uv.lock anew, after a change of the dependencies in pyproject.toml
	$(BIN)/uv lock --no-config

demo: $(STAMP) viewer-if-node  ## make data, train the four stages, prove that they learnt, decode, render: under 8 minutes
	$(BIN)/unils demo --out runs/demo

miniature: $(STAMP)  ## the paper's comparison on synthetic conversations, with intervals: within an hour; run again it goes on
	$(BIN)/unils miniature --out runs/miniature

# The demo models: that of `unils decode`, and that of `unils serve`, windows of 0.4 s. More steps than the smoke
# configs say, on more conversations than the demo makes.
P := runs/pretrained
# One thread a training: two go on at a time, and the same machine kind makes the same bytes.
TRAIN = NPROC=1 $(BIN)/unils train --config.data.store=$(P)/data
PACKAGED := unils_jax/checkpoints/pretrained
SHIPPED := --float16 --license "Apache-2.0, as the code: it has seen synthetic conversations only"
pretrained: $(STAMP)  ## the models that `unils decode` and `unils serve` take where none is given, in float16: within an hour
	$(BIN)/unils data synth --out $(P)/data --conversations 600 --minutes 0.6 --voices bank
	$(BIN)/unils data synth --out $(P)/unseen --conversations 120 --minutes 0.6 --voices bank --seed 11
	$(TRAIN) --config smoke/ear --workdir $(P)/ear --config.num_steps=2000
	$(MAKE) --no-print-directory -j 2 pretrained-model pretrained-live

.PHONY: pretrained-model pretrained-live
pretrained-model:
	$(TRAIN) --config smoke/codec --workdir $(P)/codec
	$(TRAIN) --config smoke/prior --workdir $(P)/prior --parent $(P)/codec --config.num_steps=2400
	$(TRAIN) --config smoke/dialogue --workdir $(P)/dialogue --parent $(P)/prior --config.audio_encoder=$(P)/ear --config.num_steps=3000
	$(call shipped,dialogue,model)

pretrained-live:
	$(TRAIN) --config live/smoke/codec_04s --workdir $(P)/live_codec
	$(TRAIN) --config live/smoke/prior_04s --workdir $(P)/live_prior --parent $(P)/live_codec --config.num_steps=2400
	$(TRAIN) --config live/smoke/dialogue_04s --workdir $(P)/live_dialogue --parent $(P)/live_prior --config.audio_encoder=$(P)/ear \
	  --config.num_steps=2400
	$(call shipped,live_dialogue,live)

define shipped
$(BIN)/unils evaluate --checkpoint $(P)/$(1) --data $(P)/unseen --protocol unils-clean --own_sampling --out $(P)/$(1).json
$(BIN)/unils export --checkpoint $(P)/$(1) --out $(PACKAGED)/$(2).safetensors $(SHIPPED) --scores $(P)/$(1).json
endef

# Built in a copy, so that nothing of npm gets among the sources.
VIEWER := unils_jax/outputs/viewer
viewer: $(VIEWER)/dist/viewer.js  ## the script of `unils view` from its TypeScript: Node 20.19 or newer

$(VIEWER)/dist/viewer.js: $(wildcard $(VIEWER)/src/* $(VIEWER)/src/live/* $(VIEWER)/src/study/*) $(addprefix $(VIEWER)/,package.json package-lock.json tsconfig.json vite.config.ts)
	@command -v npm >/dev/null || { echo "make viewer needs Node 20.19 or newer with npm: https://nodejs.org" >&2; exit 1; }
	rm -rf build/viewer/src && mkdir -p build/viewer $(@D)
	cp -R $(VIEWER)/src $(addprefix $(VIEWER)/,package.json package-lock.json tsconfig.json vite.config.ts .npmrc) build/viewer
	cd build/viewer && npm ci --no-audit --no-fund && npm run build
	cp build/viewer/dist/* $(@D)

viewer-if-node:
	@if command -v npm >/dev/null; then $(MAKE) --no-print-directory viewer || echo "no script, so no pages" >&2; fi

# Most of the fast tests' time is compiling: slower programs do, and a file's tests share theirs in one process.
test: $(STAMP)  ## the fast tests without parity: under 7 minutes on two cores
	JAX_DISABLE_MOST_OPTIMIZATIONS=1 $(PYTEST) --dist loadfile --ignore=tests/parity

# As users' programs compile; UNILS_GOLDENS names another folder of the authors' results.
parity: $(STAMP)  ## all comparisons with the authors' code, fast and slow: under 6 minutes on two cores
	$(PYTEST) --dist loadfile -m "slow or not slow" $(COMPARED)

COMPARED := tests/parity
# What a version can break: numbers, files of checkpoints, meshes.
OF_VERSIONS := tests/parity tests/training/test_resume.py tests/training/test_sharding.py
lowest:  ## parity, resume and sharding on the lowest versions that pyproject.toml allows, in .venv-lowest
	@$(MAKE) --no-print-directory parity VENV=.venv-lowest EXTRAS=dev COMPARED="$(OF_VERSIONS)" \
	  VERSIONS="pip compile pyproject.toml --extra dev --resolution lowest-direct --python .venv-lowest/bin/python"

NEWEST := python3.13
newest:  ## the same on the newest versions that pip finds for Python 3.13, in .venv-newest; NEWEST= names another Python
	@command -v $(NEWEST) >/dev/null || { echo "make newest needs $(NEWEST); NEWEST=/path/to/python is another" >&2; exit 1; }
	@$(MAKE) --no-print-directory parity VENV=.venv-newest EXTRAS=dev COMPARED="$(OF_VERSIONS)" PYTHON=$(NEWEST) LOCK=

slow: $(STAMP)  ## the other tests that take minutes: under 22 minutes
	$(PYTEST) -m slow --ignore=tests/parity

docs:  ## the site, into build/site: nothing is fetched, a broken link fails
	@$(MAKE) --no-print-directory EXTRAS=docs $(VENV)/.installed-docs
	$(BIN)/python docs/stage.py
	$(BIN)/zensical build --strict --clean

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench:  ## decode and training next to PyTorch, into runs/bench: a quarter of an hour on two cores
	@$(MAKE) --no-print-directory EXTRAS=dev,torch $(VENV)/.installed-dev,torch
	$(BIN)/unils bench decode --against torch --batch 1 --json runs/bench/decode.json
	$(BIN)/unils bench train --config codec prior dialogue --batch_size 4 4 1 --config.head=standin \
	  --config.expression_basis=standin --against torch --json runs/bench/train.json

gpu-smoke:  ## on a GPU machine: every stage three steps, one decode, one checkpoint; under 5 minutes
	@test -e /dev/nvidiactl || { echo "make gpu-smoke: no NVIDIA GPU here (/dev/nvidiactl is missing); run it on a" \
	  "machine with one, or try the same on this CPU: unils bench gpu-smoke --allow_cpu" >&2; exit 1; }
	@$(MAKE) --no-print-directory EXTRAS=dev,cuda $(VENV)/.installed-dev,cuda
	$(BIN)/unils bench gpu-smoke
