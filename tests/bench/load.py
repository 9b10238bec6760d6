"""Runs pgbench against one of the systems and measures a window of the run in which all clients are busy."""

import glob
import math
import os
import shutil
import subprocess
import time
from dataclasses import dataclass

from servers import PASSWORD
from system import as_user, cpu_seconds

# Left out at the start of a run: caches of plans fill, pools open their connections.
SETTLE = 0.3


@dataclass
class Load:
    """One shape of load by pgbench: a script per tenant, so many clients of so many tenants."""

    script: object  # function from tenant number to SQL
    clients: int = 16
    tenants: int = 1
    protocol: str = "simple"
    connect: bool = False  # a connection per transaction
    database: str | None = None
    first: int = 0  # number of the first tenant

    def start(self, directory, postgres, system, seconds):
        return Run(directory, postgres, system, self, seconds)


class TooShort(RuntimeError):
    """The run ended before all clients were busy for long enough."""


@dataclass
class Result:
    """Figures of one run. Times in microseconds."""

    tps: float
    p99: float | None
    cpu: float | None  # the proxy's CPU time per transaction


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(share * len(values)))]


class Run:
    """pgbench processes, one per tenant, in a directory of their own."""

    def __init__(self, directory, postgres, system, load, seconds):
        self.directory = directory
        shutil.rmtree(directory, ignore_errors=True)
        os.makedirs(directory)
        user = postgres.user
        if user:
            os.chown(directory, user.pw_uid, user.pw_gid)
        program = os.path.join(postgres.bin, "pgbench")
        program = program if os.path.exists(program) else "pgbench"
        environment = {**os.environ, "PGPASSWORD": PASSWORD, "PGSSLMODE": "disable", "PGGSSENCMODE": "disable"}
        self.load, self.processes, self.log = load, [], None
        for tenant in range(load.first, load.first + load.tenants):
            script = os.path.join(directory, f"script{tenant}.sql")
            with open(script, "w") as f:
                f.write(load.script(tenant))
            command = [
                program, "-n", "-f", script, "-c", str(load.clients // load.tenants), "-T", str(math.ceil(seconds)),
                "-M", load.protocol, "-l", f"--log-prefix={directory}/t{tenant}",
                "-h", "127.0.0.1", "-p", str(system.port), "-U", system.login(tenant),
            ]
            if load.connect:
                command.append("-C")
            command.append(load.database or system.database)
            errors = open(os.path.join(directory, f"errors{tenant}"), "w+")
            self.processes.append((subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=errors, cwd=directory, env=environment,
                **as_user(user)), errors))

    def busy(self):
        return any(p.poll() is None for p, _ in self.processes)

    def finish(self):
        for process, errors in self.processes:
            process.wait()
            errors.seek(0)
            text = errors.read().strip()
            errors.close()
            if process.returncode:
                raise RuntimeError(f"pgbench: {text[-500:]}")

    def kill(self):
        for process, errors in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()
            errors.close()

    def transactions(self):
        """Per process, the transactions as (time of completion, latency in µs)."""
        if self.log is None:
            self.log = [self._read(self.load.first + n) for n in range(self.load.tenants)]
        return self.log

    def _read(self, tenant):
        rows, last = [], {}
        for path in glob.glob(f"{self.directory}/t{tenant}.*"):
            with open(path) as f:
                for line in f:
                    client, _, took, _, seconds, micros = line.split()[:6]
                    at = int(seconds) + int(micros) / 1e6
                    if self.load.connect:
                        # pgbench's own latency leaves the connection out; from one end to the next it is in.
                        took, last[client] = (at - last[client]) * 1e6 if client in last else None, at
                    rows.append((at, took if took is None else float(took)))
        if not rows:
            raise TooShort("pgbench logged no transactions")
        rows.sort(key=lambda row: row[0])
        return rows

    def span(self):
        """From when all processes are under way until the first of them ends."""
        transactions = self.transactions()
        return max(rows[0][0] for rows in transactions) + SETTLE, min(rows[-1][0] for rows in transactions)

    def done(self, begin, end):
        """Number of transactions that were completed in that time."""
        return sum(begin < at <= end for rows in self.transactions() for at, _ in rows)

    def p99(self, begin, end):
        took = [t for rows in self.transactions() for at, t in rows if begin < at <= end and t is not None]
        return percentile(took, 0.99) if took else None


def measure(directory, postgres, system, load, seconds):
    """Throughput, latency and the proxy's CPU time per transaction."""
    pid = getattr(system, "pid", None)
    samples = []
    run = load.start(directory, postgres, system, seconds)
    try:
        while run.busy():
            samples.append((time.time(), cpu_seconds(pid) if pid else 0.0))
            time.sleep(0.05)
        run.finish()
    except BaseException:
        run.kill()
        raise
    begin, end = run.span()
    inside = [sample for sample in samples if begin <= sample[0] <= end]
    if len(inside) < 5:
        raise TooShort("the run was too short to measure")
    (begin, cpu_begin), (end, cpu_end) = inside[0], inside[-1]
    done = run.done(begin, end)
    if not done:
        raise TooShort("no transactions were completed")
    cpu = (cpu_end - cpu_begin) * 1e6 / done if pid else None
    return Result(done / (end - begin), run.p99(begin, end), cpu)
