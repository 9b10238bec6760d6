"""What the small applications share: their input, threads, and the check of whose a row is."""

import json
import sys
import threading

INPUT = json.loads(sys.argv[1])
# Of each tenant, where each has one.
URLS = INPUT.get("urls", {})
CLIENTS = INPUT["clients"]
ROUNDS = INPUT["rounds"]

_lock = threading.Lock()
_seen = {"rows": 0}


def own(tenant, names):
    """Checks that every name is one of the tenant's own."""
    names = list(names)
    foreign = [name for name in names if not name.startswith(tenant + " ")]
    if foreign or not names:
        raise AssertionError(f"{tenant} saw {names}")
    with _lock:
        _seen["rows"] += len(names)


def in_threads(client):
    """Runs `client(tenant, url, number)` for all tenants at once, several times each."""
    errors = []

    def run(tenant, number):
        try:
            client(tenant, URLS[tenant], number)
        except BaseException as error:  # noqa: BLE001
            import traceback

            errors.append(f"{tenant} {number}: {error!r}\n{traceback.format_exc()}")

    threads = [
        threading.Thread(target=run, args=(tenant, number)) for tenant in URLS for number in range(CLIENTS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done(errors)


def done(errors=()):
    """Says how it went."""
    if errors:
        sys.exit("\n".join(errors))
    print(json.dumps(_seen))
