# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
DEMO := runs/demo

.PHONY: demo test test-handon screen lint smoke soak models venv benchmark-gpu

demo: venv
	$(PY) -m data_builders.build simulated/nanoparticles --data_dir=$(DEMO)/data --records=160 \
	    --patch=256 --contrast=clear
	$(PY) -m data_builders.export simulated/nanoparticles --data_dir=$(DEMO)/data --split=test \
	    --first=4 --out=$(DEMO)/micrographs
	@echo "Sizes by the model that comes with emjax, then those of the true masks:"
	$(PY) -m emjax.measure --min_size=40 --out=$(DEMO)/sizes $(DEMO)/micrographs/image
	$(PY) -m emjax.measure --masks --min_size=40 --out=$(DEMO)/true_sizes $(DEMO)/micrographs/mask
	$(PY) -m data_builders.build simulated/unlabelled --data_dir=$(DEMO)/data --records=600
	$(PY) -m emjax.main --config=configs/pretrain.py:demo --workdir=$(DEMO)/pretrain
	$(PY) -m emjax.main --config=configs/segment_au.py:demo --workdir=$(DEMO)/pretrained \
	    --config.initialise.workdir=$(DEMO)/pretrain
	$(PY) -m emjax.main --config=configs/segment_au.py:demo --workdir=$(DEMO)/random
	$(PY) -m emjax.predict --model=$(DEMO)/pretrained --out=$(DEMO)/predictions \
	    $(DEMO)/micrographs/image
	$(PY) -m emjax.report --runs=$(DEMO) --out=$(DEMO)

test: lint
	$(PY) -m pytest -n auto --maxprocesses=4 --dist=worksteal

lint: venv
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright --pythonpath $(PY)
	$(PY) -m pyright --pythonpath $(PY) --project pyrightconfig.strict.json

# Exports and engines, whose libraries are extras: one environment for them, and one for
# bioimageio.core, which holds bioimageio.spec back. A skipped test is a failure here.
HANDON := .venv-handon
BIOIMAGEIO := .venv-bioimageio
test-handon: $(HANDON)/installed $(BIOIMAGEIO)/installed screen
	BIOIMAGEIO_PYTHON=$(CURDIR)/$(BIOIMAGEIO)/bin/python PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 \
	    $(HANDON)/bin/python -m pytest --no-skips $(shell { $(SCREEN); } >/dev/null || echo "-m 'not screen'") \
	    tests/test_stablehlo.py tests/test_onnx.py tests/test_bioimageio.py tests/test_hub.py \
	    tests/test_serve.py $(shell $(QT) 2>/dev/null && echo tests/test_napari.py)
# The tests in a browser and in a window are left out where these are missing, those of napari where
# Qt cannot be loaded, and this user may install nothing.
QT := QT_QPA_PLATFORM=offscreen $(HANDON)/bin/python -c "import qtpy.QtWidgets"
SCREEN := command -v chromium && command -v chromedriver && command -v Xvfb
APT := test "$$(id -u)" = 0 && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq
screen: $(HANDON)/installed
	$(SCREEN) || { $(APT) chromium chromium-driver xvfb libxcb-cursor0 libxcb-icccm4 \
	    libxcb-keysyms1 libxcb-shape0 libxkbcommon-x11-0; } || \
	    echo "no Chromium, its driver and Xvfb: the tests in a browser and a window are left out"
	$(QT) || { $(APT) libegl1 libgl1 libxkbcommon0 libdbus-1-3 libfontconfig1 libglib2.0-0; } || \
	    echo "Qt cannot be loaded: the tests of napari are left out"
$(HANDON)/installed: requirements.txt tests/handon.txt pyproject.toml
	test -x $(HANDON)/bin/python || $(PYTHON) -m venv $(HANDON)
	$(HANDON)/bin/python -m pip install -q -r requirements.txt -r tests/handon.txt
	$(HANDON)/bin/python -m pip install -q --no-deps -e .
	touch $@
$(BIOIMAGEIO)/installed: tests/bioimageio.txt
	test -x $(BIOIMAGEIO)/bin/python || $(PYTHON) -m venv $(BIOIMAGEIO)
	$(BIOIMAGEIO)/bin/python -m pip install -q -r tests/bioimageio.txt
	touch $@

# On a machine with one GPU, in an environment with JAX and PyTorch for it: what matters most, meant
# to take less than ten minutes; what is finished is written after every case.
benchmark-gpu:
	$(PYTHON) -m benchmarks.run --device=gpu --out=runs/benchmarks --repeats=5 --minutes=5 \
	    --only='step/pix2pix/unet_4_424,step/segmentation/unet_4_424,predict/unet_4_424,step/segmentation/hrnet_w48'
	$(PYTHON) -m benchmarks.run --device=gpu --out=runs/benchmarks --repeats=5 --minutes=1 \
	    --host_cores=4 --compile= --only='end_to_end/pix2pix/unet_4_424'

# The commands of the README once, on tiny data.
smoke: venv
	$(PY) -m pytest tests/test_end_to_end.py -k pretrain_finetune_predict

venv: $(VENV)/installed
$(VENV)/installed: requirements.txt pyproject.toml
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q -r requirements.txt
	$(PY) -m pip install -q --no-deps -e .
	touch $@

# TORCH=1 adds PyTorch, the oracle of the parity tests, and timm, which is a second one.
ifdef TORCH
lint: $(VENV)/torch
$(VENV)/torch: $(VENV)/installed
	$(PY) -m pip install -q -e '.[torch]'
	$(PY) -m pip install -q --no-deps timm==1.0.31
	touch $@
endif

# 200 000 broken files of every format, 100 kills of training runs, an archive whose prediction is
# killed, finetunings that are, a run of four processes, 10 000 spellings of command lines:
# docs/background/reliability.md.
soak: venv
	$(PY) -m tests.soak_formats --inputs=200000
	$(PY) -m tests.soak_kills --kills=100
	$(PY) -m tests.soak_archive --files=2000
	$(PY) -m tests.soak_finetune --kills=20
	HOSTS=4 $(PY) -m pytest tests/test_processes.py
	SPELLINGS=10000 $(PY) -m pytest tests/test_command_lines.py

# The models that come with emjax, each in at most 2.5 hours on two cores. Stopped and started again,
# it goes on where it was: docs/background/models.md.
BOX := runs/models
models: venv
	for kind in particles:6000 noisy:3000 atoms:3000 unlabelled:4000; do \
	    $(PY) -m data_builders.build simulated/$${kind%:*} --records=$${kind#*:} --patch=256 \
	    --data_dir=$(BOX)/data || exit; done
	for name in particles denoise atoms pretrained; do $(PY) -m emjax.main \
	    --config=configs/models.py:$$name --workdir=$(BOX)/$$name || exit; done
	$(PY) launch/pack_models.py $(BOX)
