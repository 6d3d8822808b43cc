# Each target does its own set-up: the first one creates .venv. Needs a Python of 3.11 or newer, nothing else.
# PYTHON=/usr/bin/python3.12 make test      chooses the interpreter

SHELL := /bin/bash
VENV := .venv
RUN := $(VENV)/bin/python
RUNNABLE := $(VENV)/usbvfiod.run
PREFIX ?= $(if $(filter 0,$(shell id -u)),/usr/local,$(HOME)/.local)
STAMP := $(VENV)/usbvfiod.stamp
# One more than processors, of which tests in VMs leave half idle while they wait for kernels and devices; at most 4.
PROCESSES ?= $(shell echo $$(( $$(nproc) < 4 ? $$(nproc) + 1 : 4 )))
SOURCES := pyproject.toml $(wildcard plugins/*/pyproject.toml) .ci/environment

.PHONY: help demo install uninstall deb release test test-long test-compiled fuzz coverage vm bench bench-against docs recording lint clean

help:
	@echo "make demo       serve a virtual flash drive and drive it with the built-in guest driver"
	@echo "make install    install usbvfiod and its plugins into PREFIX, $(PREFIX)"
	@echo "make deb        Debian packages of them, in dist"
	@echo "make release    wheels, source distributions, checksums and a bill of materials, in dist"
	@echo "make test       every test; those that need a VM are skipped, with the reason, where none can run"
	@echo "make test-long  the long loops as well"
	@echo "make test-compiled   tests of the controller, the protocol and virtual devices, with compiled modules"
	@echo "make fuzz       what may be hostile does anything, each target for EACH=60 seconds; TARGETS="client control" chooses"
	@echo "make coverage   branches of the controller and the vfio-user server that tests and corpora reach"
	@echo "make vm         prepare the Debian tree, the guest and the lab of the VM tests (once, outside the checkout)"
	@echo "make bench      budgets of time and memory; then measure, beside QEMU's own controller where a VM can run"
	@echo "make bench-against REV=COMMIT  ratios to another commit beside their targets; ARGS=--json for programs"
	@echo "make docs       write docs/xhci-coverage.md anew from the controller's tables, and pages of the API into build/api"
	@echo "make recording  record docs/session.svg anew, in a VM, and docs/top.svg"
	@echo "make lint       format check, lint, types, spelling, phrases"

$(RUNNABLE): $(SOURCES)
	@.ci/environment $(VENV) run

$(STAMP): $(SOURCES)
	@.ci/environment $(VENV) all

demo: $(RUNNABLE)
	$(VENV)/bin/usbvfiod demo

install:
	@.ci/environment $(PREFIX)/lib/usbvfiod install
	install -d $(PREFIX)/bin
	ln -sf ../lib/usbvfiod/bin/usbvfiod ../lib/usbvfiod/bin/usbvfiod-opener $(PREFIX)/bin
	contrib/install-files $(PREFIX)/bin/usbvfiod / $(PREFIX)
	@echo "installed: $(PREFIX)/bin/usbvfiod"

uninstall:
	contrib/install-files remove / $(PREFIX)
	rm -rf $(PREFIX)/bin/usbvfiod $(PREFIX)/bin/usbvfiod-opener $(PREFIX)/lib/usbvfiod

deb:
	rm -rf build/deb
	mkdir -p build/deb/usbvfiod dist
	tar -c --exclude-vcs --exclude=./.venv --exclude=./build --exclude=./dist . | tar -x -C build/deb/usbvfiod
	cd build/deb/usbvfiod && PATH=/usr/sbin:/usr/bin:/sbin:/bin dpkg-buildpackage --build=binary --no-sign
	mv build/deb/*.deb dist/

release: $(STAMP)
	$(RUN) -m pip --quiet --disable-pip-version-check install --no-build-isolation --editable '.[release]'
	contrib/release $(RUN) $(if $(USBVFIOD_COMPILE),compiled)

test: $(STAMP)
	@echo "test: everything but long loops; in a few minutes, in $(PROCESSES) processes. Tests with a VM need: make vm"
	$(RUN) -m pytest -n $(PROCESSES) -rs -m "not long"

test-long: $(STAMP)
	@! command -v cargo >/dev/null || $(RUN) -m tests.crate.client
	$(RUN) -m pytest -rs

test-compiled: $(STAMP)
	$(RUN) -m tests.compiled

fuzz: $(STAMP)
	$(RUN) -m pip --quiet --disable-pip-version-check install --no-build-isolation --editable '.[fuzz]'
	$(RUN) -m tests.fuzz --seconds $(or $(EACH),60) $(TARGETS)

coverage: $(STAMP)
	$(RUN) -m coverage run --branch --source=usbvfiod_core/xhci,usbvfiod_core/vfio_user --data-file=build/coverage \
		-m pytest -q -p no:cacheprovider -m "not long" tests/unit/xhci tests/protocol tests/stateful tests/fuzz \
		tests/unit/daemon/test_peers.py tests/unit/daemon/test_witness.py tests/unit/test_state.py
	$(RUN) -m coverage report --data-file=build/coverage --show-missing --skip-covered --fail-under=95

vm: $(STAMP)
	$(RUN) tests/vm/prepare.py

bench: $(STAMP)
	$(RUN) -m pytest tests/bench/budgets.py
	$(RUN) tests/bench/run.py

bench-against: $(STAMP)
	@$(RUN) -m tests.bench.against $(or $(REV),$(error which commit? make bench-against REV=...)) $(ARGS)

docs: $(STAMP)
	$(RUN) -m tests.coverage_document
	$(RUN) -m tests.command_pages
	$(RUN) -m tests.api_pages
	$(RUN) -m tests.state_page

recording: $(STAMP)
	$(RUN) -m tests.recording
	$(RUN) -m tests.picture
	$(RUN) -m tests.wireshark_picture
	PYTHONPATH=. $(RUN) plugins/usbvfiod_web/tests/page_picture.py

lint: $(STAMP)
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy
	$(RUN) -m codespell_lib
	$(RUN) -m tests.prose

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
