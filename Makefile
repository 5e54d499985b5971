# `make demo` shows the project at work, `make test` checks it, `make bench` measures it.
# An active virtual or conda environment is used, and missing packages are installed into it;
# without one, .venv is created. The environment base is conda's own, and one without Python cannot
# be used.
CONDA  := $(if $(filter-out base,$(CONDA_DEFAULT_ENV)),$(wildcard $(CONDA_PREFIX)/bin/python))
ENV    := $(or $(VIRTUAL_ENV),$(CONDA:/bin/python=),.venv)
PYTHON := $(ENV)/bin/python
READY  := $(ENV)/.anchoropt-$(shell cksum pyproject.toml | cut -d' ' -f1)

.PHONY: help demo compare ablate results test lint docs bench gpu chaos matrix load clean

help:
	@echo "make demo     compare CoOp with and without AnchorOPT on shapes and on real digits"
	@echo "make compare  train every host with and without AnchorOPT on the embedded data"
	@echo "make ablate   change the parts of AnchorOPT one by one, on the embedded shapes"
	@echo "make results  make the pages of docs/results again"
	@echo "make test     linters, types, documentation, tests and doctests, with coverage"
	@echo "make lint     linters, types and the floors of the code"
	@echo "make docs     build the documentation into output/docs"
	@echo "make bench    measure time, memory and equality against plain code (9 to 16 minutes)"
	@echo "make gpu      measure all of it on a GPU (no part starts after eight minutes)"
	@echo "make chaos    kill runs at random places, resume them, compare the results (minutes)"
	@echo "make matrix   test each Python of this machine, with the oldest and the newest torch"
	@echo "make load     measure very many classes, images, runs and descriptions (half an hour)"
	@echo "make clean    remove .venv, output/ and caches"

$(PYTHON):
	python3 -m venv $(ENV)

$(READY): $(PYTHON) pyproject.toml
	@echo "Installing into $(ENV): torch and its CUDA libraries are the largest part, of several gigabytes."
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -e '.[data,report,slurm,describe,export,docs,dev]'
	touch $@

demo: $(READY)
	$(PYTHON) scripts/demo.py

compare: $(READY)
	$(PYTHON) scripts/compare.py --preset embedded

ablate: $(READY)
	$(PYTHON) scripts/ablate.py --preset embedded

# The pages name their commands. Runs that are finished are not run again.
results: $(READY)
	$(PYTHON) scripts/demo.py --seeds 1 2 3 4 5 6 7 8 9 10 --markdown docs/results/demo.md
	$(PYTHON) scripts/compare.py --preset splits --markdown docs/results/splits.md
	$(PYTHON) scripts/ablate.py --preset embedded --markdown docs/results/ablation.md
	$(PYTHON) scripts/compare.py --preset embedded --datasets digits \
		--markdown docs/results/hosts.md

lint: $(READY)
	$(PYTHON) -m pip check
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(ENV)/bin/lint-imports

# A broken link, an undocumented public name or an undocumented setting fails.
docs: $(READY)
	$(PYTHON) -m sphinx -E -W --keep-going -q docs output/docs

test: lint docs
	$(PYTHON) -m pytest -q -n 2 --cov --cov-report=term

# A benchmark fails if plain code and ours differ; docs/performance.md explains the measurements.
bench: export TORCH_CPP_LOG_LEVEL := ERROR
bench: $(READY)
	$(PYTHON) benchmarks/text_branch.py --json output/bench/text_branch.json
	$(PYTHON) benchmarks/train_step.py --json output/bench/train_step.json
	$(PYTHON) benchmarks/stage1.py --json output/bench/stage1.json
	$(PYTHON) benchmarks/image_tower.py --json output/bench/image_tower.json
	$(PYTHON) benchmarks/evaluate.py --json output/bench/evaluate.json
	$(PYTHON) benchmarks/launches.py --json output/launches.json
	$(PYTHON) benchmarks/loader.py

# For a machine with a GPU: equality, time, memory, launches and waits; docs/launches.md.
gpu: $(READY)
	$(PYTHON) benchmarks/gpu.py

# Fails if a killed and resumed run differs from an undisturbed one; see docs/reliability.md.
chaos: $(READY)
	OMP_NUM_THREADS=1 $(PYTHON) scripts/chaos.py

# Installs gigabytes into .nox. noxfile.py lists the tests, docs/reliability.md the results. All of
# pyenv's Pythons are used, not only the selected one.
matrix: export PYENV_VERSION := $(shell pyenv versions --bare 2>/dev/null | paste -sd:)
matrix: $(READY)
	$(PYTHON) -m nox

# Fails if time grows faster than the work, or memory beyond its bound; see docs/reliability.md.
load: $(READY)
	$(PYTHON) benchmarks/load.py

clean:
	rm -rf .venv .nox output .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .coverage
