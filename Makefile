# `make demo` on a fresh clone trains a model; `make test` is what to run before a change is sent.
PYTHON ?= python3
BIN := .venv/bin
RUN_TESTS := $(BIN)/python -m pytest
# Three files at a time, in an order that keeps both cores busy: see tests/conftest.py.
SIDE_BY_SIDE := -n 3 --dist loadfile --no-loadscope-reorder

.PHONY: install demo demo-lm lint test-unit quick test test-changed test-all soak bench bench-scheduling clean

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@echo "installing torch, transformers, deepspeed, ray and the tools for tests into .venv: a few minutes"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@ .venv/.train-installed

.venv/.train-installed: pyproject.toml constraints.txt
	@echo "installing torch, transformers, deepspeed and ray into .venv: once, a few minutes"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[train]"
	touch $@

# Fetch a small encoder and real reviews, fine-tune every parameter, classify three sentences with the result.
demo: .venv/.train-installed
	$(BIN)/python examples/fetch.py demo
	$(BIN)/fleetune run examples/reviews.yaml
	@model=$$(ls -td demo/runs/reviews-*/model | head -1) && \
	$(BIN)/python examples/classify.py $$model \
		"A warm, funny and beautifully acted film." \
		"A tedious mess that wastes a good cast." \
		"The plot is thin, but the two leads are a joy to watch." && \
	echo "model: $$model" && echo "run:   $$(dirname $$model)   ($(BIN)/fleetune show $$(dirname $$model))"

.venv/.gguf-installed: .venv/.train-installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt gguf
	touch $@

# The same with a language model (135M) and small talk: one question, which no dialogue has, answered before and after.
demo-lm: QUESTION := Do you sleep at night?
demo-lm: .venv/.gguf-installed
	$(BIN)/python examples/fetch.py demo --lm
	@before=$$($(BIN)/python examples/answer.py demo/smollm2 "$(QUESTION)") && \
	echo "question: $(QUESTION)" && echo "before:   $$before" && \
	$(BIN)/fleetune run examples/dialogues.yaml && \
	model=$$(ls -td demo/runs/dialogues-*/model | head -1) && \
	after=$$($(BIN)/python examples/answer.py $$model "$(QUESTION)") && \
	echo "question: $(QUESTION)" && echo "before:   $$before" && echo "after:    $$after" && \
	echo "model: $$model" && echo "run:   $$(dirname $$model)   ($(BIN)/fleetune show $$(dirname $$model))"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-unit: install
	$(RUN_TESTS) -q -n 2 --durations=3 tests/unit

# mypy has one thread, so both cores have work only beside the unit tests.
quick: install
	$(MAKE) --no-print-directory -j 2 lint test-unit

test: quick
	$(RUN_TESTS) $(SIDE_BY_SIDE) -m "not slow" --ignore=tests/unit

# The tests near what differs from SINCE: minutes, while one works.
test-changed: lint
	$(RUN_TESTS) -q -m "not slow" $$($(BIN)/python -m tests.changed --since $(or $(SINCE),origin/main))

test-all: quick
	$(RUN_TESTS) $(SIDE_BY_SIDE) --durations=25 --junitxml=build/tests.xml --ignore=tests/unit

# Random faults over a queue of real jobs on three hosts of this machine; needs root. SEED=N does the same again.
soak: install
	$(BIN)/python -m tests.soak --minutes $(or $(MINUTES),10) $(if $(SEED),--seed $(SEED))

bench: install
	$(BIN)/python -m bench.train

bench-scheduling: install
	$(BIN)/python -m bench.schedule
	$(BIN)/python -m bench.simulate $(or $(TRACE),$(error name a trace: make $@ TRACE=FILE.csv))

clean:
	rm -rf demo build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
