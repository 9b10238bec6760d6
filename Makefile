# Two commands on a fresh machine: `make demo` and `make test`.

CARGO ?= cargo
# A build of the program and a build of the tests must agree in features, or everything is
# compiled twice: both are of the whole workspace.
BUILD = $(CARGO) build --locked --workspace

.PHONY: demo build test checklist lint fuzz fuzz-brief postgres test-deps bench bench-moves bench-copy faults-moves

# More for the demo, such as DEMO='--shards 3 --port 6432'.
DEMO =

demo: postgres
	$(CARGO) build --locked --release -p switchyard
	@target/release/switchyard demo $(DEMO)

build:
	$(BUILD)

postgres:
	@scripts/install-postgres.sh

test-deps: postgres
	@scripts/install-test-deps.sh

# Documentation examples first: the summary of the tests is the last that is seen.
test: test-deps
	$(BUILD)
	$(CARGO) test --locked --workspace --doc --quiet
	$(CARGO) nextest run --locked --workspace

# What is compared with PostgreSQL, line by line; see docs/protocol.md.
checklist: postgres
	$(BUILD)
	$(CARGO) nextest run --locked -p switchyard-tests --test router --no-capture -E 'test(checklist::)'

lint:
	@scripts/install-test-deps.sh lint
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(CARGO) deny --log-level error check bans licenses sources

# Everything that decodes what strangers send: property tests with more cases than in a test run, and
# the fuzz targets on inputs made from the kept corpus; a minute. Then the fuzzers proper, which need
# a nightly compiler; an hour.
FUZZED = -p switchyard-wire -p switchyard-config -p switchyard-router --lib

fuzz-brief:
	PROPTEST_CASES=2000 $(CARGO) test --locked --quiet $(FUZZED)
	SWITCHYARD_FUZZ_RUNS=200000 $(CARGO) test --locked --quiet -p switchyard-wire --test fuzz

fuzz:
	PROPTEST_CASES=200000 $(CARGO) test --locked --release $(FUZZED)
	SWITCHYARD_FUZZ_RUNS=50000000 $(CARGO) test --locked --release -p switchyard-wire --test fuzz
	@scripts/fuzz.sh 600

# Compares direct PostgreSQL, PgBouncer and Switchyard on this machine: see tests/bench/README.md.
bench: postgres
	@tests/bench/install.sh
	$(CARGO) build --locked --release -p switchyard
	python3 tests/bench/bench.py $(ARGS)

# Copies a large tenant beside `psql | psql`, with neighbours, and many small ones. See docs/moves.md. MANY is how many.
MANY = 200

bench-copy: postgres
	$(CARGO) build --locked --release -p switchyard
	SWITCHYARD_BIN=$(CURDIR)/target/release/switchyard SWITCHYARD_TESTS_MANY=$(MANY) \
		$(CARGO) test --locked -p switchyard-tests --test moves -- --test-threads 1 --nocapture \
		--include-ignored throughput:: many::

# Moves back and forth under load, at each isolation level: nothing lost, no client error, and the pause. See
# docs/moves.md. MOVES is for each level.
MOVES = 200

bench-moves: postgres
	$(CARGO) build --locked --release -p switchyard
	SWITCHYARD_BIN=$(CURDIR)/target/release/switchyard SWITCHYARD_TESTS_MOVES=$(MOVES) \
		$(CARGO) test --locked --release -p switchyard-tests --test moves -- --test-threads 1 --nocapture load::

# Everything that can break while a tenant moves: the mover at each named point in each model, each fault, and pairs of
# faults from a seed that a failure prints (SWITCHYARD_TESTS_SEED repeats it). Half an hour; `make test` has a selection.
faults-moves: postgres
	$(BUILD)
	$(CARGO) test --locked --workspace --test moves -- --test-threads 2 --nocapture --include-ignored \
		crash:: zombies:: chaos:: routers:: late:: disk:: stuck:: forsaken:: loss:: synchronous::
