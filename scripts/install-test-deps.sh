#!/usr/bin/env bash
# Installs what the tests run besides PostgreSQL, if it is not there: PgBouncer, drivers for
# Python in tests/.venv and for Node.js in tests/node, a browser, cargo-nextest. With `lint`: what the lint
# needs instead.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
tests=$here/../tests
. "$here/packages.sh"

cargo_tool() {
    # Without optimisation, which takes longer than these tools ever run.
    cargo "${1#cargo-}" --version >/dev/null 2>&1 ||
        { echo "installing $1 $2" >&2; cargo install --quiet --locked --debug "$1" --version "$2"; }
}

if [ "${1:-}" = lint ]; then
    cargo fmt --version >/dev/null 2>&1 || rustup --quiet component add rustfmt
    cargo clippy --version >/dev/null 2>&1 || rustup --quiet component add clippy
    cargo_tool cargo-deny 0.20.2
    exit 0
fi

command -v pgbouncer >/dev/null || [ -x /usr/sbin/pgbouncer ] || install_packages pgbouncer
command -v check_postgres >/dev/null || install_packages check-postgres
command -v chromium >/dev/null || install_packages chromium
command -v chromedriver >/dev/null || install_packages chromium-driver
command -v node >/dev/null || install_packages nodejs
command -v npm >/dev/null || install_packages npm
command -v python3 >/dev/null || install_packages python3
if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
    install_packages python3-venv
fi

stamp=$tests/.venv/requirements
if ! cmp -s "$tests/drivers/requirements.txt" "$stamp"; then
    echo "installing Python drivers" >&2
    rm -rf "$tests/.venv"
    python3 -m venv "$tests/.venv"
    "$tests/.venv/bin/pip" install --quiet --disable-pip-version-check -r "$tests/drivers/requirements.txt"
    cp "$tests/drivers/requirements.txt" "$stamp"
fi

stamp=$tests/node/node_modules/.installed
if ! cmp -s "$tests/node/package-lock.json" "$stamp"; then
    echo "installing the driver for Node.js" >&2
    (cd "$tests/node" && npm ci --silent --no-audit --no-fund)
    cp "$tests/node/package-lock.json" "$stamp"
fi

cargo_tool cargo-nextest 0.9.143
