# Two commands for a bare checkout: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3
BIN := .venv/bin
DATA := $(abspath $(CURDIR)/../shared/data)
export FEATHERLIGHT_DATA ?= $(wildcard $(DATA))

DEMO := --model minilm --train stdlib-docs --trainable last:2 --minutes 1

.PHONY: setup demo test coverage test-wheel lint docs bench-zo bench-methods bench-sst2 bench-loop faults clean

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,minilm,lora,digits,tensorboard,search]'
	touch $@

demo: setup
	rm -rf runs/demo
	$(BIN)/featherlight finetune $(DEMO) --method zo --out runs/demo/zo
	$(BIN)/featherlight finetune $(DEMO) --method adamw --out runs/demo/adamw
	$(BIN)/featherlight report runs/demo/zo runs/demo/adamw --out runs/demo/report.html

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# The same tests with the lines that they reach counted, which takes a third more time.
coverage: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --cov --cov-report=term

# The package as a user installs it: a wheel in an environment of its own, away from the checkout.
test-wheel: setup
	rm -rf build/wheel
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir build/wheel .
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	build/wheel/venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		"$$(ls build/wheel/*.whl)[digits]"
	cd build/wheel && venv/bin/featherlight recipes && venv/bin/featherlight run classify/digits --set epochs=2

docs: setup
	$(BIN)/sphinx-build -W --keep-going -q docs docs/_build

bench-zo: setup
	$(BIN)/python -m benchmarks.zeroth_order

bench-methods: setup
	$(BIN)/python -m benchmarks.zeroth_order_methods

bench-sst2: setup
	$(BIN)/python -m benchmarks.sst2

bench-loop: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks.loop

# What can go wrong with a run, done to it thousands of times; hours. Goes on where it stopped.
faults: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults

clean:
	rm -rf .venv build runs docs/_build docs/api
