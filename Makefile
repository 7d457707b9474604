# Two commands for a bare checkout: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3
BIN := .venv/bin
DATA := $(abspath $(CURDIR)/../shared/data)
export FEATHERLIGHT_DATA ?= $(wildcard $(DATA))

DEMO := --model minilm --train stdlib-docs --trainable last:2 --minutes 1

.PHONY: setup demo test lint bench-zo bench-sst2 clean

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
	$(BIN)/python -m pytest -n 2 --cov --cov-report=term

bench-zo: setup
	$(BIN)/python -m benchmarks.zeroth_order

bench-sst2: setup
	$(BIN)/python -m benchmarks.sst2

clean:
	rm -rf .venv runs
