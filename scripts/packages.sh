# Sourced by the other scripts: installs packages by whatever the system has for it.

# Runs a command as root, by sudo where we are not.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        echo "needs root, and there is no sudo: $*" >&2
        return 1
    fi
}

# Prints apt, dnf, brew, or nothing.
package_manager() {
    for manager in apt-get dnf brew; do
        if command -v "$manager" >/dev/null; then
            echo "${manager%-get}"
            return
        fi
    done
}

# Services of packages that are installed only for their programs must not start: PgBouncer's
# would take the router's port.
without_services() {
    if [ -d /usr/sbin ] && [ ! -e /usr/sbin/policy-rc.d ]; then
        printf '#!/bin/sh\nexit 101\n' | as_root tee /usr/sbin/policy-rc.d >/dev/null
        as_root chmod +x /usr/sbin/policy-rc.d
        "$@" || { as_root rm -f /usr/sbin/policy-rc.d; return 1; }
        as_root rm -f /usr/sbin/policy-rc.d
    else
        "$@"
    fi
}

apt_updated=
# Installs packages of the system; quiet unless it fails.
install_packages() {
    local log
    log=$(mktemp)
    echo "installing $*" >&2
    case $(package_manager) in
        apt)
            if [ -z "$apt_updated" ]; then
                as_root apt-get update -qq >"$log" 2>&1 || { cat "$log" >&2; return 1; }
                apt_updated=yes
            fi
            without_services as_root env DEBIAN_FRONTEND=noninteractive \
                apt-get install -y -qq --no-install-recommends "$@" >"$log" 2>&1 </dev/null
            ;;
        dnf) as_root dnf install -y -q "$@" >"$log" 2>&1 </dev/null ;;
        brew) brew install -q "$@" >"$log" 2>&1 </dev/null ;;
        *) echo "no apt, dnf or brew here; please install: $*" >"$log" && false ;;
    esac || { cat "$log" >&2; rm -f "$log"; return 1; }
    rm -f "$log"
}
