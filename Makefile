# Every command a learner types. Needs Python 3.11 or newer (make lab PYTHON=python3.12 for another one).
# What the environments were made with, else python3: another one would make them anew.
PYTHON ?= $(or $(shell p=$$(cat .setup/python 2>/dev/null) && test -x "$$p" && echo "$$p"),python3)
RUN := .venv/bin/python
LAB ?= 1
# Where this is set, Python compiles what it imports anew in each process: an engine's start takes twice as long.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help doctor setup course-env lab lab-exists run fresh progress clean

help:  ## this list
	@awk -F ':.*## ' 'FNR == 1 && NR > 1 {print "\nFor instructors and authors:"} /^[a-z0-9-]+:.*##/ {printf "%-16s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

doctor:  ## what this machine can do for each lab, and what to fix; needs nothing but Python
	@$(PYTHON) -m tools.doctor

setup:  ## set up what the labs need (STEP="course vllm" for some steps, STEP=llama_cpp NATIVE=1 to compile llama.cpp)
	@$(PYTHON) -m tools.setup $(if $(STEP),--only $(STEP)) $(if $(NATIVE),--native)

lab: lab-exists setup  ## open JupyterLab on a lab: LAB=1, LAB=3; HEADLESS=1 prints the URL and opens no browser
	@$(RUN) -m tools.lab open $(LAB) $(if $(HEADLESS),--headless)

lab-exists:  # before set-up, which takes minutes
	@ls labs/lab-3.3.$(patsubst 3.3.%,%,$(LAB))-*.ipynb >/dev/null 2>&1 || \
	  { echo "There is no lab $(LAB). These are the labs:"; ls labs/*.ipynb; exit 2; }

run: lab-exists setup  ## execute a lab into a file, which a closed browser or a lost connection doesn't stop: LAB=3
	@$(RUN) -m tools.lab run $(LAB)

fresh: lab-exists course-env  ## put a fresh notebook in a lab's place, and keep yours next to it: LAB=3
	@$(RUN) -m tools.lab fresh $(LAB)

course-env:  # without the engines: minutes less
	@$(PYTHON) -m tools.setup --only course

progress: course-env  ## the course's milestones, and what you have done of them
	@$(RUN) -m tools.lab progress

clean:  ## remove what set-up, labs and the site made: .venv, .engines, .models, caches, logs (records/ stays)
	rm -rf .venv .engines .models .site-env .site .peers .setup .run

-include solutions/instructors.mk
