# odam_d2: `make demo` and `make test` on a fresh clone. `make help` lists all targets.
#
# PYTHON    the Python to start from. If it has torch and detectron2, it is used as it is, and
#           only what is missing is added; otherwise .venv is made, with pinned versions.
# USE_ENV   1: use the environment of PYTHON, or fail; 0: use .venv even if PYTHON has Detectron2.
# DETECTRON2  what pip installs into .venv as Detectron2, a requirement or a path, instead of the
#           reviewed wheel: make env DETECTRON2=../detectron2

PYTHON ?= python3
export USE_ENV
export DETECTRON2
export ODAM_DATASETS ?= $(CURDIR)/output/datasets

INSTALL = $(PYTHON) tools/install
# The Python of the environment. Only asked for in recipes, when the environment exists.
RUN = "$$($(INSTALL) --print-python)"
# A Python that was asked for by name is taken at its word: .venv is made again with it.
EXACT = $(if $(filter file default,$(origin PYTHON)),,--exact-python)
# In an environment that is not ours, tests, linter and site are installed only for who wants them.
DEV = $(if $(filter test attack lint docs mutate,$(MAKECMDGOALS)),--dev)

SOURCES = odam_d2 benchmarks experiments tools tests configs docs setup.py

DEMO_CONFIG = configs/CrowdShapes/faster_rcnn_R_50_FPN_slim.yaml
DEMO_SPLIT = crowdshapes_scattered_val
DEMO_IMAGES = 00000[0-5].png
DEMO_PAGE = output/demo/index.html
DEMO_MADE_FROM = $(shell find odam_d2 configs tools -type f \
	-not -path '*/__pycache__/*' -not -path 'tools/install/*' 2>/dev/null)

.DELETE_ON_ERROR:
.PHONY: help env demo test attack lint docs mutate clean python

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*  ## /  make \1: /p' Makefile

python:
	@command -v "$(PYTHON)" >/dev/null || { \
	echo "error: there is no command $(PYTHON): install Python 3.10 to 3.13, or name it with PYTHON=" >&2; \
	exit 1; }

env: python  ## make or find the environment: Detectron2, and odam_d2 installed from here
	@$(INSTALL) $(EXACT) $(DEV)

demo: $(DEMO_PAGE)  ## explain detections on a few pictures of the embedded data set
	@echo "heat maps are ready: open $(DEMO_PAGE) in a browser"

$(DEMO_PAGE): $(DEMO_MADE_FROM) | env
	@folder=$$($(RUN) -m odam_d2.data.crowdshapes --split $(DEMO_SPLIT)) && \
	$(RUN) tools/demo.py --config-file $(DEMO_CONFIG) --input "$$folder"/images/$(DEMO_IMAGES) \
	--output $(@D) --confidence-threshold 0.5 --compare gradient

# As many at a time as there are cores, a file of tests in one process: what it shares is made once.
WORKERS ?= auto
test: env  ## run the tests; PYTEST_ARGS are handed on, WORKERS=n is how many run at a time
	$(RUN) -m pytest -n $(WORKERS) --maxprocesses 8 --dist loadfile --durations=15 $(PYTEST_ARGS)

attack: env  ## give the project generated inputs, kills and full disks; SEED=n for others
	$(RUN) -m tests.attack --seed $(or $(SEED),0) $(ATTACK_ARGS)

lint: env  ## check style, formatting and types
	$(RUN) -m ruff check $(SOURCES)
	$(RUN) -m ruff format --check $(SOURCES)
	$(RUN) -m mypy

# Without the network. Warnings, such as a link that leads nowhere, are errors.
docs: env  ## make the documentation, output/docs/index.html
	@$(RUN) -m mkdocs build --strict
	@echo "the documentation is ready: open output/docs/index.html in a browser"

# An hour with one job: changes are many, and each asks its tests.
MUTATION = output/mutation
mutate: env  ## change the code in 150 places, one by one, and see which the tests notice; MUTATE_ARGS are handed on
	@test -x $(MUTATION)/venv/bin/python || $(RUN) -m venv $(MUTATION)/venv
	@$(MUTATION)/venv/bin/python -m pip install -q -r requirements/mutate.txt
	$(MUTATION)/venv/bin/python tests/mutation/run.py --python $(RUN) $(MUTATE_ARGS)

clean:  ## remove caches, build products and the demo; training output and .venv stay
	rm -rf build dist odam_d2.egg-info output/demo output/docs .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find odam_d2 benchmarks experiments tools tests -name __pycache__ -type d -prune -exec rm -rf {} +
