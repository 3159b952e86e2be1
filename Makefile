# - make demo: train a plain and a DCN detector on generated shapes, evaluate and compare them
# - make study: measure the gain of DCN: five networks, three seeds, with and without deformation (SIZE=gpu: larger)
# - make cards: train a plain and a DCN detector on photographs of playing cards
# - make test: run the tests, 8 minutes on two cores (PYTEST_ARGS="-k fcos": more arguments); make test-all: all tests
# - make test-lowest: run some tests with the lowest versions that requirements.txt allows
# - make lint: run ruff and import-linter
# - make docs: update docs/reference/{config,renamed}.md and configs/schema.json after a change of the options
# - make site: build the documentation site in site/; a broken link is an error
# - make board: start TensorBoard for all runs, for this machine only
# Each target installs the requirements into .venv first. PYTHON=python3.12 selects a Python, CPU=1 the CPU-only torch.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --disable-pip-version-check
CPU_INDEX := https://download.pytorch.org/whl/cpu
# exact versions, as in PIP_ARGS="-c constraints.txt"
PIP_ARGS ?=
SIZE ?= cpu
PYTEST_ARGS ?=

.PHONY: demo study cards test test-all test-lowest lint docs site board clean
.DELETE_ON_ERROR:

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "needs Python >= 3.11; name one: make PYTHON=python3.12"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "no venv: on Debian and Ubuntu run apt-get install python3-venv, then again"; exit 2; }

$(VENV)/.ready: requirements.txt | $(PY)
	$(if $(CPU),$(PIP) torch torchvision --index-url $(CPU_INDEX))
	$(PIP) -r requirements.txt $(PIP_ARGS)
	@touch $@

$(VENV)/.ready-dev: requirements-dev.txt requirements-export.txt $(VENV)/.ready
	$(PIP) -r requirements-dev.txt $(PIP_ARGS)
	@touch $@

datasets/shapes/annotations/val.json: | $(VENV)/.ready
	rm -rf datasets/shapes
	$(PY) tools/make_shapes.py --out datasets/shapes

demo: $(VENV)/.ready datasets/shapes/annotations/val.json
	$(PY) tools/train.py --config demo.yaml --resume auto
	$(PY) tools/train.py --config demo_dcn.yaml --resume auto
	$(PY) tools/eval.py runs/demo --json runs/demo/figures.json
	$(PY) tools/eval.py runs/demo_dcn --json runs/demo_dcn/figures.json
	$(PY) tools/visualize.py runs/demo_dcn --baseline runs/demo
	$(PY) tools/compare.py runs/demo runs/demo_dcn --html runs/demo.html
	@echo "curves and images: make board"

study: $(VENV)/.ready
	$(PY) tools/study.py --size $(SIZE)

cards: $(VENV)/.ready
	$(PY) tools/train.py --config cards.yaml --resume auto
	$(PY) tools/train.py --config cards_dcn.yaml --resume auto
	$(PY) tools/visualize.py runs/cards_dcn --baseline runs/cards
	$(PY) tools/compare.py runs/cards runs/cards_dcn --html runs/cards.html

test: $(VENV)/.ready-dev
	$(PY) -m pytest -n 2 --dist worksteal -m "not slow" $(PYTEST_ARGS)

test-all: $(VENV)/.ready-dev
	$(PY) -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

# The packages are in a folder that comes first on the path; torch is that of .venv. Python 3.13 has no wheels of them.
LOWEST_TESTS = tests/data/test_pixels.py tests/engine/config/test_options.py tests/engine/evaluation/test_coco_eval.py \
	tests/engine/training/test_metrics_logger.py tests/engine/comparison/test_report.py
test-lowest: $(VENV)/.ready-dev
	rm -rf $(VENV)/lowest
	$(PIP) --no-deps --target $(VENV)/lowest -r constraints-lowest.txt
	PYTHONPATH=$(CURDIR)/$(VENV)/lowest $(PY) -m pytest -n 2 --dist worksteal -m "not slow" $(LOWEST_TESTS)

lint: $(VENV)/.ready-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/lint-imports --no-logo --no-cache

docs: $(VENV)/.ready
	$(PY) tools/make_docs.py

site: $(VENV)/.ready-dev
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

board: $(VENV)/.ready
	$(PY) -m tensorboard.main --logdir runs --host 127.0.0.1

clean:
	rm -rf runs datasets/shapes
