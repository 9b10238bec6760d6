"""What authenticated clients cost that do nothing: memory, and the proxy's CPU time while they do it."""

import resource
import time

from client import Client
from servers import TENANTS
from system import cpu_seconds, resident_bytes

CLIENTS = 5000
# Besides clients: server connections, logs, and what else a process opens.
SPARE_FILES = 200


def raise_file_limit():
    """Each client is a file in this process and one in the proxy, which inherits the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def measure(system, count, seconds):
    """KiB of resident memory per client once logged in, and once each has run a query; and idle CPU."""
    clients = []
    try:
        # One first, so that pools and tables that are made for the first client are not counted.
        clients.append(Client(system, 0))
        clients[0].query("SELECT 1")
        time.sleep(0.5)
        before = resident_bytes(system.pid)
        for number in range(count):
            clients.append(Client(system, number % TENANTS))
        time.sleep(1)
        idle = resident_bytes(system.pid)
        cpu, began = cpu_seconds(system.pid), time.monotonic()
        time.sleep(seconds)
        cpu, took = cpu_seconds(system.pid) - cpu, time.monotonic() - began
        for client in clients:
            client.query("SELECT 1")
        time.sleep(1)
        queried = resident_bytes(system.pid)
    finally:
        for client in clients:
            client.close()
    return {
        "clients": count,
        "kib_per_client": (idle - before) / count / 1024,
        "kib_per_client_after_query": (queried - before) / count / 1024,
        "idle_cpu_ms_per_second": cpu * 1000 / took,
    }
