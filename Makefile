# make demo  trains on the embedded corpus, shows one table, predicts from the saved model
# make test  runs the tests
# make stress  feeds every bad input, each in a process of its own, and shows one table
# make checkpoints  copies the Hub files into every folder of checkpoints/, after one has changed
# make sizes  shows how large the source is; COMMITS="OLD NEW" compares two commits
# All but sizes and checkpoints make the virtual environment in .venv first, once; set PYTHON to choose the interpreter.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test stress lint sizes checkpoints clean

demo: $(READY)
	$(BIN)/mtmm demo out/demo

test: $(READY)
	$(BIN)/python -m pytest -n auto --dist loadfile --durations=10

stress: $(READY)
	PYTHONPATH=tests $(BIN)/python -m bad_inputs.stress

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

checkpoints:
	for folder in checkpoints/*/; do rm -f $$folder*_mtmm.py && cp *_mtmm.py $$folder; done

sizes:
	$(PYTHON) benchmarks/sizes.py $(COMMITS)

# torch first and by its exact version: other ranges may pull another build of several gigabytes.
$(READY): pyproject.toml .ci/constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "MTMM needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c .ci/constraints.txt $$(grep '^torch==' .ci/constraints.txt)
	$(BIN)/python -m pip install --quiet -c .ci/constraints.txt -e '.[train,onnx,demo,serve,media,dev]'
	touch $(READY)

clean:
	rm -rf .venv out build *.egg-info
