#!/usr/bin/env bash
# Fuzzes every decoder of the wire protocol for this many seconds each. Needs a nightly toolchain;
# says so and does nothing where there is none.
set -euo pipefail
cd "$(dirname "$0")/../router/wire"
seconds=${1:?seconds for each target}

if ! cargo +nightly --version >/dev/null 2>&1; then
    echo "no nightly toolchain (rustup toolchain install nightly): only the property tests are run" >&2
    exit 0
fi
cargo fuzz --version >/dev/null 2>&1 || cargo install --quiet --locked cargo-fuzz
for target in fuzz/fuzz_targets/*.rs; do
    target=$(basename "$target" .rs)
    echo "fuzzing $target for $seconds s" >&2
    cargo +nightly fuzz run "$target" -- -max_total_time="$seconds"
done
