#!/usr/bin/env bash
# Installs PostgreSQL's server programs, version 15 or later, and psql, if they are not there.
# Says nothing if they are. Starts no server.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/packages.sh"

present() {
    sh "$here/pg-bin.sh" >/dev/null 2>&1 && command -v psql >/dev/null
}

if present; then
    exit 0
fi

case $(package_manager) in
    apt)
        # The newest that the system has; `postgresql` alone may be older than 15.
        as_root apt-get update -qq >/dev/null || true
        apt_updated=yes
        for version in 18 17 16 15; do
            if [ -n "$(apt-cache search --names-only "^postgresql-$version\$")" ]; then
                install_packages "postgresql-$version" "postgresql-client-$version" && break
            fi
        done
        ;;
    dnf)
        # Where versions are streams of a module, ask for one that is new enough.
        if dnf -q module list postgresql >/dev/null 2>&1; then
            as_root dnf -q -y module reset postgresql >/dev/null 2>&1 || true
            for version in 16 15; do
                as_root dnf -q -y module enable "postgresql:$version" >/dev/null 2>&1 && break
            done
        fi
        install_packages postgresql-server postgresql
        ;;
    brew) install_packages postgresql@17 && brew link -q --overwrite postgresql@17 >/dev/null 2>&1 || true ;;
    *) ;;
esac

if ! present; then
    cat >&2 <<'END'
PostgreSQL's server programs (initdb, postgres) of version 15 or later are needed, with psql, and
could not be installed by the system's package manager. Install them, from the PostgreSQL
project's own packages if your system's are older, and set PG_BIN to their directory if they are
in an unusual place.
END
    exit 1
fi
