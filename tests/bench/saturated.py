"""Load and a server that cost next to nothing (peers.c), so that the proxy between them is busy all the time.

pgbench and PostgreSQL take more time for a transaction than a proxy does. Before them the proxy sleeps between events, and
much of its time is the kernel's for waking it. Here it finds work whenever it looks.
"""

import bisect
import contextlib
import os
import shutil
import subprocess
from dataclasses import dataclass

from client import Client, message
from servers import DATABASE
from system import as_user, free_port, on_cores, stop, wait_for_port

HERE = os.path.dirname(os.path.abspath(__file__))
SETTLE = 0.4
SELECT = b"SELECT abalance FROM pgbench_accounts WHERE aid = "


def query(sql):
    return message(b"Q", sql + b"\0")


def simple(_tenant):
    return query(SELECT + b"271828")


def extended(_tenant):
    """As pgbench's extended protocol: unnamed statement, one parameter."""
    return message(b"P", b"\0" + SELECT + b"$1\0\0\0") + bound(b"")


def prepared(_tenant):
    return bound(b"P0")


def bound(name):
    value = b"\0\0\0\1\0\0\0\x06271828"
    return (message(b"B", b"\0" + name + b"\0\0\0" + value + b"\0\0") + message(b"D", b"P\0")
            + message(b"E", b"\0\0\0\0\0") + message(b"S", b""))


def prepare(client):
    client.socket.sendall(message(b"P", b"P0\0" + SELECT + b"$1\0\0\0") + message(b"S", b""))
    client.until_ready()


def tenant_by_hand(tenant):
    lines = (b"BEGIN", b"SET LOCAL app.tenant_id = 't%d'" % tenant, SELECT + b"271828", b"COMMIT")
    return b"".join(query(line) for line in lines)


def rows_many(_tenant):
    return query(b"SELECT payload FROM wide")


def row_single(_tenant):
    return query(b"SELECT payload FROM single")


class NearlyFree:
    """The server of peers.c in the place of PostgreSQL."""

    name = "direct"
    database = DATABASE

    def __init__(self, directory, postgres, cores):
        self.directory, self.user, self.verifier, self.cores = directory, postgres.user, postgres.verifier, cores
        self.port, self.process = free_port(), None
        os.makedirs(directory, exist_ok=True)
        self.program = os.path.join(directory, "peers")

    def start(self):
        compiler = next((c for c in ("cc", "gcc", "clang") if shutil.which(c)), None)
        if not compiler:
            raise RuntimeError("no C compiler: the saturated workloads are left out")
        subprocess.run([compiler, "-O2", "-o", self.program, os.path.join(HERE, "peers.c")], check=True)
        log = os.path.join(self.directory, "log")
        with on_cores(self.cores), open(log, "w") as out:
            self.process = subprocess.Popen(
                [self.program, "server", str(self.port)], stdout=out, stderr=out, **as_user(self.user))
        wait_for_port(self.port, self.process, "the nearly free server", log)
        return self

    def login(self, tenant):
        del tenant
        return "app"

    def stop(self):
        stop(self.process)


@dataclass
class SaturatedLoad:
    """Clients that send a script of messages over and over."""

    script: object  # function from tenant number to messages
    clients: int = 64
    tenants: int = 1
    prepare: bool = False
    database: str | None = None

    def start(self, directory, server, system, seconds):
        return SaturatedRun(directory, server, system, self, seconds)


class SaturatedRun:
    """The load generator of peers.c on sockets that are logged in here; one process per tenant."""

    def __init__(self, directory, server, system, load, seconds):
        shutil.rmtree(directory, ignore_errors=True)
        os.makedirs(directory)
        self.processes, self.clients, self.counts = [], [], []
        try:
            for tenant in range(load.tenants):
                mine = [Client(system, tenant, load.database) for _ in range(load.clients // load.tenants)]
                self.clients.append(mine)
                if load.prepare:
                    for client in mine:
                        prepare(client)
            for tenant, mine in enumerate(self.clients):
                path = os.path.join(directory, f"script{tenant}")
                with open(path, "wb") as f:
                    f.write(load.script(tenant))
                fds = [client.socket.fileno() for client in mine]
                self.processes.append(subprocess.Popen(
                    [server.program, "client", str(seconds), path, *map(str, fds)],
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, pass_fds=fds))
        except BaseException:
            self.kill()
            raise

    def busy(self):
        return any(process.poll() is None for process in self.processes)

    def finish(self):
        try:
            for process in self.processes:
                out, errors = process.communicate()
                if process.returncode:
                    raise RuntimeError(f"load generator: {errors.strip()}")
                lines = [line.split() for line in out.splitlines()]
                self.counts.append(([float(at) for at, _ in lines], [int(n) for _, n in lines]))
        finally:
            self._close()

    def kill(self):
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.communicate()
        self._close()

    def _close(self):
        for client in (client for mine in self.clients for client in mine):
            with contextlib.suppress(OSError):
                client.close()

    def span(self):
        return max(times[0] for times, _ in self.counts) + SETTLE, min(times[-1] for times, _ in self.counts)

    def done(self, begin, end):
        return round(sum(at(counts, end) - at(counts, begin) for counts in self.counts))

    def p99(self, begin, end):
        """With as many requests under way as there are clients, latency says nothing new."""
        del begin, end


def at(counts, moment):
    """How much was done at a moment between two lines of output."""
    times, numbers = counts
    i = min(max(bisect.bisect_left(times, moment), 1), len(times) - 1)
    share = (moment - times[i - 1]) / (times[i] - times[i - 1])
    return numbers[i - 1] + share * (numbers[i] - numbers[i - 1])
