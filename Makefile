# Every command sets up what it needs in .venv: Python 3.11 or later, make and a package registry are enough.
#
#   make demo            train one_conv on scikit-learn's digits, one weight at a time (results in runs/demo)
#   make test            the test suite
#   make test-all        the test suite and what is exhaustive: every crossing of options, the notebooks in nbval too
#   make lab             JupyterLab, opened at the first notebook
#   make voila           a page that lists the notebooks with sliders, without code and exercises; NB=FILE: one notebook
#   make classroom       the notebooks for students and for instructors (in classroom/)
#   make slides          slides of the notebooks, which need no network (in classroom/slides)
#   make book            the series as pages with a search, which need no network (in classroom/book)
#   make wheelhouse      all packages as files in wheelhouse/, for a room without internet: make WHEELS=wheelhouse demo
#   make lint            ruff and mypy
#   make gpu             on a CUDA machine: tests, benchmarks, and the paper's runs for some minutes (results in runs/gpu)
#   make bench-live      how soon sliders and buttons answer in the browser (figures/bench_live.json)
#
#   make CONSTRAINTS=constraints.txt demo    the same with the versions that are known to work together
#   make PYTHON=python3.13 demo              the same with another Python (remove .venv first)

PYTHON ?= python3
CONSTRAINTS ?=
WHEELS ?=
NB ?= classroom/demos
export RSO_DATA ?= $(CURDIR)/data
# Threads that wait do not spin: other processes use the cores, too.
export OMP_WAIT_POLICY ?= passive

BIN := .venv/bin/python
# A file's tests stay together, in one of two processes: what they share is made once.
PYTEST := $(BIN) -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder
STAMP := .venv/.installed$(if $(CONSTRAINTS),-$(notdir $(CONSTRAINTS)))
AS_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)

.PHONY: demo test test-all lab voila lint bench-live gpu classroom slides book wheelhouse

demo: $(STAMP)
	$(BIN) -m rso_lib demo

test: $(STAMP)
	$(PYTEST) -m "not exhaustive"

test-all: $(STAMP)
	$(PYTEST)

lab: $(STAMP)
	$(BIN) -m jupyterlab $(AS_ROOT) --LabApp.news_url=None --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb

voila: $(STAMP)
	@$(BIN) -m rso_lib classroom classroom
	JUPYTER_PATH=$(CURDIR)/notebooks:$(CURDIR)/teach $(BIN) -m voila --template=demos $(NB)

classroom: $(STAMP)
	$(BIN) -m rso_lib classroom classroom

slides book: $(STAMP)
	$(BIN) -m rso_lib $@ classroom/$@

wheelhouse: $(STAMP)
	$(BIN) -m pip download --dest wheelhouse 'setuptools>=77' $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) '.[dev]'

lint: $(STAMP)
	$(BIN) -m ruff check .
	$(BIN) -m mypy

bench-live: $(STAMP)
	$(BIN) tests/bench_live.py

gpu: $(STAMP)
	PYTHON=$(BIN) bash tests/gpu.sh

$(STAMP): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed, and $(PYTHON) is not; name another one: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
	  { echo "$(PYTHON) cannot make environments; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@echo "Setting up .venv: 2 to 10 minutes and about 6 GB, once"
	$(PYTHON) -m venv .venv
	$(BIN) -m pip install $(if $(WHEELS),--no-index --find-links $(WHEELS)) \
	  $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) --editable '.[dev]'
	@rm -f .venv/.installed*
	@touch $@
