# What instructors and authors type besides; a release does not have it. Included by the Makefile.
.PHONY: test check build release grade formgrader class bench-client bench-llama-cpp bench-gateway bench-chaos peers lock
.PHONY: grade-names form-names screenshots

# Two worker processes share these tests. Those of tests/unit/benchmark compare real clocks with bounds of 30 ms, so
# they run alone, and so do the suites that start engines.
IN_PARALLEL := tests/unit tests/gpu_paths tests/integration --ignore=tests/unit/benchmark -n 2 --dist worksteal
# Two machines of the rehearsal share the labs. They mostly wait, so two cores are enough.
REHEARSAL := tests/rehearsal -n 2 --dist worksteal

test: setup site-env check  ## run all that is checked: style, types, units, grading, engines, learners' notebooks (COURSE_LOAD=full: solved ones too)
	@$(RUN) -m benchmarks.peers clients evaluators $(if $(shell command -v npm),openai-js)
	@trap "exit 130" INT; failed=0; \
	$(RUN) -m pytest $(IN_PARALLEL) --durations=25 || failed=1; \
	$(RUN) -m pytest $(addprefix tests/,unit/benchmark oracles browser grading docker engines notebooks) --durations=25 || failed=1; \
	exit $$failed

check: setup hosted  ## the quick part of test: style, types, notebooks fresh, documents, exercise checks
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy
	@$(RUN) -m tools.authoring build --check
	@$(RUN) -m pytest tests/docs tests/unit/test_device_branches.py -q
	@$(RUN) -m tools.authoring.compose --check
	@$(RUN) -m tools.authoring checks

.PHONY: hosted unit notebooks
hosted: course-env  ## check the files that GitHub reads against their published schemas; needs no network
	@$(RUN) -m check_jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	@$(RUN) -m check_jsonschema --builtin-schema custom.github-workflows-require-timeout .github/workflows/*.yml
	@$(RUN) -m check_jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	@$(RUN) -m check_jsonschema --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	@$(RUN) -m check_jsonschema --builtin-schema vendor.github-issue-forms $(filter-out %/config.yml,$(wildcard .github/ISSUE_TEMPLATE/*.yml))

# llama-cpp-python is left out, because set-up compiles it on every processor.
.PHONY: aarch64
aarch64: course-env  ## ask the package index whether every pinned package has a wheel for aarch64
	@for python in 3.11 3.12 3.13; do \
	  for file in $(filter-out %/llama-cpp.hash.txt,$(wildcard requirements/*.txt)); do \
	    $(RUN) -m uv pip compile --quiet --no-deps --only-binary :all: --python-platform aarch64-manylinux_2_34 \
	      --python-version $$python $$file >/dev/null || exit 1; \
	  done; \
	done

unit: setup  ## run the unit tests and those that start processes, but no engine
	@$(RUN) -m benchmarks.peers clients $(if $(shell command -v npm),openai-js)
	@$(RUN) -m pytest $(IN_PARALLEL) --durations=25
	@$(RUN) -m pytest tests/unit/benchmark --durations=25

notebooks: setup site-env  ## execute every learner's notebook under a small load (COURSE_LOAD=full: solved ones too)
	@$(RUN) -m pytest tests/notebooks --durations=25

.PHONY: rehearse test-gpu
rehearse: course-env  ## run the labs on the GPU profiles with stand-ins for engines; needs root and dockerd, but no GPU (REHEARSE_ALL=1: also 3.3.4 and 3.3.5)
	@$(RUN) -m pytest $(REHEARSAL) --durations=25

test-gpu: course-env  ## run the labs' GPU code on an NVIDIA GPU, with docker or without; skipped where there is none
	@$(RUN) -m pytest tests/gpu --durations=25

build:  ## make the notebooks from solutions/*.py, the documents' tables, and the engines' part of docker/compose.yaml
	@$(RUN) -m tools.authoring build
	@$(RUN) -m tools.authoring tables
	@$(RUN) -m tools.authoring.compose

release: course-env  ## write what learners get, and nothing else, to TO=release
	@$(RUN) -m tools.authoring release "$(or $(TO),release)"

grade: grade-names course-env  ## grade SUBMISSIONS=dir into OUT=dir (SEED=name of the class, SANDBOX=none, JOBS=2)
	@$(RUN) -m tools.grading grade "$(SUBMISSIONS)" "$(OUT)" $(if $(SEED),--seed "$(SEED)") \
	  $(if $(SANDBOX),--sandbox $(SANDBOX)) $(if $(JOBS),--jobs $(JOBS))

grade-names:
	@$(if $(and $(SUBMISSIONS),$(OUT)),,echo "Name both folders: make grade SUBMISSIONS=dir OUT=dir"; exit 2)

formgrader: form-names course-env  ## open nbgrader's formgrader on OUT=dir, for points by hand; HEADLESS=1 prints the URL
	@$(RUN) -m tools.grading formgrader "$(OUT)" $(if $(HEADLESS),--headless)

form-names:
	@$(if $(OUT),,echo "Name the folder that was graded into: make formgrader OUT=dir"; exit 2)

class: course-env  ## write a class of submissions to practise on to TO=class (ONLY="good partial" for some)
	@$(RUN) -m tools.grading sample-class "$(or $(TO),class)" $(if $(ONLY),--only $(ONLY))

.PHONY: site site-env
site: $(if $(filter no,$(SOLUTIONS)),$(if $(filter yes,$(EXECUTE)),setup,course-env),setup) site-env  ## write the course as a static site to TO=site, solutions executed if their code changed (LAB=3: only that one; SOLUTIONS=no: what learners get; EXECUTE=yes: their labs executed)
	@COURSE_PROFILE=$(or $(COURSE_PROFILE),cpu) $(RUN) -m tools.authoring.site "$(or $(TO),site)" $(if $(filter no,$(SOLUTIONS)),--no-solutions) $(if $(filter yes,$(EXECUTE)),--execute) $(if $(filter command environment,$(firstword $(origin LAB))),--lab $(LAB))

site-env: course-env
	@$(PYTHON) -m tools.setup --only site

screenshots: setup  ## make the documents' pictures of JupyterLab anew, docs/images (needs Chromium)
	@COURSE_BROWSER=all COURSE_SCREENSHOTS=docs/images $(RUN) -m pytest tests/browser/test_jupyterlab.py -k "interrupted or 3.3.7"

bench-client: setup  ## the benchmark client's own overhead, compared with vllm bench serve and guidellm
	@$(RUN) -m benchmarks.peers evaluators
	@$(RUN) -m benchmarks.client_overhead

bench-llama-cpp: setup  ## llama.cpp's wheel compared with the compiled build (make setup STEP=llama_cpp NATIVE=1; ROUNDS=6)
	@$(RUN) -m benchmarks.llama_cpp_builds --rounds $(or $(ROUNDS),6)

peers: course-env  ## install the software that ours is compared with: LiteLLM's proxy, guidellm, lm-evaluation-harness, clients for tests
	@$(RUN) -m benchmarks.peers

bench-gateway: setup  ## what the gateway costs, beside going direct, LiteLLM, nginx and a router (ENGINE=vllm, paced)
	@$(RUN) -m benchmarks.peers litellm
	@$(RUN) -m benchmarks.gateway_peers --engine $(or $(ENGINE),vllm)

bench-chaos: course-env  ## 10,000 requests while backends are killed and frozen
	@$(RUN) -m benchmarks.gateway_chaos --requests 10000

lock:  ## pin the course environment anew, from pyproject.toml
	@$(RUN) -m tools.authoring.lock
