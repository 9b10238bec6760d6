#!/usr/bin/env bash
# Installs what the benchmark runs besides PostgreSQL, if it is not there: PgBouncer and Python.
set -euo pipefail
. "$(dirname "$0")/../../scripts/packages.sh"

command -v pgbouncer >/dev/null || [ -x /usr/sbin/pgbouncer ] || install_packages pgbouncer
command -v python3 >/dev/null || install_packages python3
