# `make demo` shows the project at work, `make test` checks it, `make bench` measures it.
# An active virtual environment is used as it is, with what it lacks installed into it;
# otherwise one is made in .venv.
ENV    := $(or $(VIRTUAL_ENV),.venv)
PYTHON := $(ENV)/bin/python
READY  := $(ENV)/.anchoropt-$(shell cksum pyproject.toml | cut -d' ' -f1)

.PHONY: help demo compare ablate test lint bench chaos matrix load clean

help:
	@echo "make demo     zero-shot CLIP, CoOp and CoOp_AnchorOPT on real digits, with a report"
	@echo "make compare  every host with and without AnchorOPT on the embedded data, with a report"
	@echo "make ablate   AnchorOPT part by part, on the embedded digits"
	@echo "make test     linters, type checker, tests and doctests, with coverage"
	@echo "make lint     linters and type checker alone"
	@echo "make bench    the plain way and ours side by side: time, memory, equality (nine minutes)"
	@echo "make chaos    kill runs at random places and go on: what they leave is compared (minutes)"
	@echo "make matrix   the tests on each Python of this machine, with the oldest and the newest torch"
	@echo "make load     very many classes, pictures, runs, descriptions: time and memory (half an hour)"
	@echo "make clean    remove .venv, output/ and caches"

$(PYTHON):
	python3 -m venv $(ENV)

$(READY): $(PYTHON) pyproject.toml
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -e '.[report,slurm,describe,dev]'
	touch $@

demo: $(READY)
	$(PYTHON) scripts/demo.py

compare: $(READY)
	$(PYTHON) scripts/compare.py --preset embedded

ablate: $(READY)
	$(PYTHON) scripts/ablate.py --preset embedded

lint: $(READY)
	$(PYTHON) -m pip check
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

test: lint
	$(PYTHON) -m pytest -q -n 2 --cov --cov-report=term

# Each fails where the two ways differ; docs/performance.md says what is measured.
bench: export TORCH_CPP_LOG_LEVEL := ERROR
bench: $(READY)
	$(PYTHON) benchmarks/text_branch.py --json output/bench/text_branch.json
	$(PYTHON) benchmarks/train_step.py --json output/bench/train_step.json
	$(PYTHON) benchmarks/stage1.py --json output/bench/stage1.json
	$(PYTHON) benchmarks/image_tower.py --json output/bench/image_tower.json
	$(PYTHON) benchmarks/evaluate.py --json output/bench/evaluate.json

# Fails where a run that was killed leaves anything else than one that was not; docs/reliability.md.
chaos: $(READY)
	OMP_NUM_THREADS=1 $(PYTHON) scripts/chaos.py

# Installs gigabytes into .nox; noxfile.py says what is run, docs/reliability.md what came out. Of
# pyenv's Pythons all are looked at, not the chosen one alone.
matrix: export PYENV_VERSION := $(shell pyenv versions --bare 2>/dev/null | paste -sd:)
matrix: $(READY)
	$(PYTHON) -m nox

# Fails where time grows faster than what there is to do, or memory beyond bounds; the same page.
load: $(READY)
	$(PYTHON) benchmarks/load.py

clean:
	rm -rf .venv .nox output .pytest_cache .ruff_cache .mypy_cache .coverage
