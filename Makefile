# make demo   every notebook on the bundled model, answers with boxes, one HTML page in reports/
# make lab    JupyterLab on the notebooks
# make test   all tests          make check   format, lint, types, notebooks' style and outputs
# make ui     every notebook and panel in a browser, screenshots in reports/ui/
# make docs   the documentation site in reports/docs/, offline
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.vlkit-ready
WORKERS ?= 3
SERIAL = $(shell grep -rl --include='test_*.py' pytest.mark.serial tests)

.PHONY: demo lab test ui check docs lock clean

demo: $(READY)
	$(BIN)/python scripts/demo.py

lab: $(READY)
	$(BIN)/vlkit lab

# first what can run side by side, one worker more than cores, for a test often waits; then what
# measures time; both, whatever the first says
test: $(READY)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal \
		-m "not gpu and not notebook and not serial" $(PYTEST_ARGS); first=$$?; \
	$(BIN)/python -m pytest -m serial $(SERIAL) $(PYTEST_ARGS) && exit $$first

ui: $(READY)
	$(BIN)/python -m pytest tests/ui $(PYTEST_ARGS)

docs: $(READY)
	$(BIN)/python docs/build.py

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/nbstripout --verify notebooks/*.ipynb
	$(BIN)/python scripts/write_index.py --check
	$(BIN)/python -m pytest -q tests/notebooks/test_style.py

# the lock holds names and versions for all platforms; needs `pip install uv`
lock:
	echo "# Every package by name and version, for all platforms; made by \`make lock\`." > requirements.lock
	uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
		--no-header --no-annotate --quiet >> requirements.lock

$(READY): requirements.lock pyproject.toml
	@echo "Installing into .venv: a few minutes, up to 7 GB (docs/install.md: 5 GB less without a GPU)"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps -e .
	touch $(READY)

clean:
	rm -rf .venv reports
