# Every command a person types. Needs Python 3.11 or newer (make lab PYTHON=python3.12 for another one).
PYTHON ?= python3
RUN := .venv/bin/python
LAB ?= 1

.DEFAULT_GOAL := help
.PHONY: lab-exists help lab test setup check build bench-client lock clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup:  ## set up what the labs need (make setup STEP=vllm for one step)
	@$(PYTHON) -m utils.setup $(if $(STEP),--only $(STEP))

lab: lab-exists setup  ## open JupyterLab on a lab: LAB=1, LAB=3; HEADLESS=1 prints the URL and opens no browser
	@$(RUN) -m utils.course lab $(LAB) $(if $(HEADLESS),--headless)

lab-exists:  # before set-up, which takes minutes
	@ls labs/lab-3.3.$(patsubst 3.3.%,%,$(LAB))-*.ipynb >/dev/null 2>&1 || \
	  { echo "There is no lab $(LAB). These are the labs:"; ls labs/*.ipynb; exit 2; }

test: setup check  ## run everything that is checked: style, types, unit tests, engines, every notebook
	@$(RUN) -m pytest tests --durations=10

check: setup  ## the quick part of test: style, types, notebooks fresh, exercise checks
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy
	@$(RUN) -m utils.course build --check
	@$(RUN) -m utils.course checks

build:  ## make the notebooks from solutions/*.py
	@$(RUN) -m utils.course build

bench-client: setup  ## the benchmark client's own overhead, beside that of vllm bench serve
	@$(RUN) -m benchmarks.client_overhead

lock:  ## pin the course environment anew, from pyproject.toml
	@$(RUN) -m utils.setup.lock

clean:  ## remove what set-up made: .venv, .engines, logs (records/ stays)
	rm -rf .venv .engines .setup .run
