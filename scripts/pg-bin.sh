#!/bin/sh
# Prints the directory of PostgreSQL's server programs (initdb, postgres), version 15 or later:
# $PG_BIN if it is set, else the newest that is installed in a place where systems put them.
set -eu

version() {
    "$1/postgres" --version 2>/dev/null | sed -n 's/^postgres (PostgreSQL) \([0-9]*\).*/\1/p'
}

best=
best_version=14
for dir in "${PG_BIN:-}" "$(pg_config --bindir 2>/dev/null || true)" \
    /usr/lib/postgresql/*/bin /usr/pgsql-*/bin /usr/libexec/postgresql* /usr/bin /usr/local/bin \
    /opt/homebrew/opt/postgresql@*/bin /usr/local/opt/postgresql@*/bin /usr/local/pgsql/bin; do
    [ -n "$dir" ] && [ -x "$dir/initdb" ] && [ -x "$dir/postgres" ] || continue
    found=$(version "$dir")
    if [ -n "$found" ] && [ "$found" -gt "$best_version" ]; then
        best=$dir
        best_version=$found
        [ "$dir" = "${PG_BIN:-}" ] && break
    fi
done

if [ -z "$best" ]; then
    echo "no PostgreSQL server programs of version 15 or later found; run scripts/install-postgres.sh" >&2
    exit 1
fi
echo "$best"
