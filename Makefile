# `make help` lists the targets. Python 3.10 or newer and make are all that must be there.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LAB_FLAGS ?=
STUDIO_FLAGS ?=
TORCH ?=
ROOT_FLAG := $(if $(filter 0,$(shell id -u)),--allow-root)

# torch's threads spin while they wait, and starve every other process on a small machine
export OMP_WAIT_POLICY := passive
# tests, and visitors, run side by side: one thread each, since two that wait for each other beside a busy core take ten times as long
test test-browser test-slow studio: export OMP_NUM_THREADS := 1

.DEFAULT_GOAL := help
.PHONY: help env lab studio site test test-browser test-slow chromium prepare clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: $(READY) ## the environment alone: .venv with the package and its tools (TORCH=cpu: without CUDA's 4 GB)

# the link: a JupyterLab that is started in another way than by `make lab` knows the course's settings as well
$(READY): settings.ini setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=python3.11 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): minutes the first time, because torch is large; seconds afterwards."
	$(BIN)/python -m pip install --quiet --no-compile $(if $(filter cpu,$(TORCH)),--extra-index-url https://download.pytorch.org/whl/cpu) -e ".[dev]"
	@mkdir -p $(VENV)/etc/jupyter && ln -sf "$(CURDIR)/tools/jupyter_lab_config.py" $(VENV)/etc/jupyter/jupyter_lab_config.py
	@touch $@

lab: $(READY) ## environment, package, then JupyterLab at the front door, nbs/index.ipynb (LAB_FLAGS="--no-browser --port=8888")
	$(BIN)/jupyter lab --config=tools/jupyter_lab_config.py --LabApp.default_url=/lab/tree/nbs/index.ipynb $(ROOT_FLAG) $(LAB_FLAGS)

studio: $(READY) ## the studio as a web page of this machine alone, a kernel for each visitor (STUDIO_FLAGS="--no-browser --port=8866")
	$(BIN)/python tools/studio_server.py tools/studio.ipynb --Voila.config_file_paths=tools $(STUDIO_FLAGS)

site: $(READY) ## build the web site in site/_build/html: no network is needed, here or for its readers
	$(BIN)/python site/build.py
	@echo "Built: site/_build/html/index.html"

test: $(READY) ## run every notebook as a test, then every check that needs no browser
	$(BIN)/nbdev_test --timing
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not browser and not slow"

test-slow: $(READY) chromium ## kills, full disks, hypotheses by the hundred, every notebook run in a browser: once before a release
	$(BIN)/pytest -m slow

test-browser: $(READY) chromium ## open every notebook in JupyterLab, in a real browser, and run those that are alive there
	$(BIN)/pytest -n 2 -m "browser and not slow" tests/test_browser.py
	$(BIN)/pytest -m "browser and not slow" --ignore=tests/test_browser.py # clocks run here: nothing beside

chromium:
	@sh tools/chromium.sh

prepare: $(READY) ## after an edit: export the notebooks, clean them, render README.md, and see what ruff says
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/python tools/readme.py
	$(BIN)/ruff check --quiet ebgan_nb tests benchmarks tools site

clean: ## remove what building and testing leave behind (keeps .venv and data)
	rm -rf build dist *.egg-info .pytest_cache site/_build
	find nbs ebgan_nb tests tools -name __pycache__ -prune -exec rm -rf {} +
	find nbs -name .ipynb_checkpoints -prune -exec rm -rf {} +
