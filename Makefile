# NYX. `make` alone lists what there is to do.

PYTHON ?= python3
VENV ?= .venv
LAB_FLAGS ?=
CHAPTER ?=
NB ?= nbs
PYTEST_FLAGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
NEWS := @jupyterlab/apputils-extension:announcements
ENV := $(VENV)/.requirements
PACKAGE := $(VENV)/.package

export JUPYTER_PLATFORM_DIRS := 1

.DEFAULT_GOAL := help
.PHONY: bench help doctor lab learn test test-browser test-nightly sync export run notebooks band ablations finetune race teaching lint format docs clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-12s %s\n", $$1, $$2}'

$(ENV): requirements.txt constraints.txt
	@$(PYTHON) -c "import sys; v = sys.version_info; v >= (3, 11) or sys.exit('NYX needs Python 3.11 to 3.13, and $(PYTHON) is %d.%d. Name another: make PYTHON=python3.12 ...' % v[:2])"
	@$(PYTHON) -c "import venv, ensurepip" || { echo "This Python cannot make environments: install its venv module (on Debian and Ubuntu: apt-get install python3-venv)."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --progress-bar off -r requirements.txt
	@$(BIN)/python -c "import nbdev.export, torch" || { echo "The environment is incomplete: run 'make clean', delete $(VENV) and try again."; exit 1; }
	$(BIN)/jupyter labextension disable --level=sys_prefix "$(NEWS)"
	@touch $@

$(PACKAGE): $(ENV) setup.py settings.ini pyproject.toml
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

doctor: ## say what works here, and what to do about the rest
	@if test -x $(BIN)/python; then $(BIN)/python tools/doctor.py; else $(PYTHON) tools/doctor.py; fi

lab: $(PACKAGE) ## open the course in JupyterLab, in your own copy of the notebooks (LAB_FLAGS="--no-browser --port 8899")
	@$(BIN)/python tools/make_learn.py
	@$(BIN)/jupyter trust learn/*.ipynb >/dev/null
	$(BIN)/jupyter lab --config=.jupyter/jupyter_server_config.py --LabApp.default_url=/lab/tree/learn/index.ipynb $(LAB_FLAGS)

learn: $(PACKAGE) ## refresh learn/ alone; CHAPTER=rotary starts one chapter afresh and keeps the old file
	@$(BIN)/python tools/make_learn.py $(if $(CHAPTER),--chapter $(CHAPTER))

test: $(PACKAGE) ## prove everything: nyx/ in sync, every cell of every notebook, then the tests of whole programs
	$(BIN)/python tools/check_sync.py
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --do_print
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests --ignore tests/browser $(PYTEST_FLAGS)

test-browser: docs ## see the docs site and JupyterLab in a real browser (needs chromium); pictures go to _browser/
	$(PIP) install --quiet --progress-bar off -r requirements.txt -r requirements-browser.txt
	$(BIN)/python -m pytest tests/browser $(PYTEST_FLAGS)

test-nightly: $(PACKAGE) ## the long tests that `make test` leaves out: many kills, many examples
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests --ignore tests/browser -m nightly $(PYTEST_FLAGS)

sync: $(PACKAGE) ## check that nyx/ is exactly what the notebooks export
	$(BIN)/python tools/check_sync.py

export: $(PACKAGE) ## write nyx/ from the notebooks, and clean them
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean

run: $(PACKAGE) ## execute one notebook and store its outputs: make run NB=nbs/rotary.ipynb
	$(BIN)/python tools/run_notebooks.py $(NB)

notebooks: $(PACKAGE) ## execute all notebooks and store their outputs, times measured first
	$(BIN)/python tools/run_notebooks.py --times nbs
	$(BIN)/python tools/run_notebooks.py nbs
	$(BIN)/python tools/write_teaching.py

band: $(PACKAGE) ## record the band of loss curves that training exercises are drawn over (a minute)
	$(BIN)/python tools/record_band.py

ablations: $(PACKAGE) ## record the runs of the ablations lesson; stopped, it goes on where it was (about 15 minutes of one core)
	$(BIN)/python tools/record_ablations.py

finetune: $(PACKAGE) ## record the runs of the fine-tuning lesson, and its adapter (about 8 minutes)
	$(BIN)/python tools/record_finetune.py

teaching: $(PACKAGE) ## fill in the tables of docs/teaching.md
	$(BIN)/python tools/write_teaching.py

lint: $(PACKAGE) ## ruff over code and notebooks
	$(BIN)/ruff check .

format: $(PACKAGE) ## let ruff put code in order
	$(BIN)/ruff check --fix tools tests setup.py $(wildcard train.py test.py assets/*.py benchmarks/*.py)
	$(BIN)/ruff format tools tests setup.py $(wildcard train.py test.py assets/*.py benchmarks/*.py)

bench: $(PACKAGE) ## measure speed beside other libraries, in turns; writes benchmarks/results.md (more than half an hour; stopped, it goes on)
	$(PIP) install --quiet --progress-bar off --no-deps -r benchmarks/requirements.txt
	$(BIN)/python benchmarks/bench.py $(SECTIONS)

race: $(PACKAGE) ## record the race on Tiny Shakespeare: the baseline and NYX in turn, five seeds each (half an hour of two cores)
	$(BIN)/python benchmarks/race.py

docs: $(PACKAGE) ## build the docs into _docs/html (needs npm for the scripts that show formulas and widgets)
	$(PIP) install --quiet --progress-bar off -r requirements.txt -r requirements-docs.txt
	cd docs && npm ci --silent --no-audit --no-fund
	rm -rf _docs && mkdir -p _docs && cp -R nbs _docs/source && cp -R assets _docs/assets
	$(BIN)/sphinx-build -q -W --keep-going -b html -c docs -d _docs/doctrees _docs/source _docs/html
	@echo "The docs are in _docs/html: open _docs/html/index.html"

clean: ## delete builds and caches; never the environment, learn/, data/ or weights/
	rm -rf build dist _docs _browser *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
