#!/usr/bin/env python3
"""Compares direct PostgreSQL, PgBouncer and Switchyard in one run on one machine. See README.md."""

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
import time

import idle
import neighbours
import report
import seal
import workers
import workloads
from load import TooShort, measure
from saturated import NearlyFree
from servers import DATABASE, PgBouncer, Postgres, Switchyard, find_pgbouncer, version_of
from syscalls import per_transaction
from system import cpu_model, first_line

EXTRAS = ("idle", "workers", "seal", "neighbours")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--router", default="target/release/switchyard router --config {config}",
                        help="command that starts the router (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a short run that shows whether it works, in under two minutes")
    parser.add_argument("--only", action="append", default=[], metavar="WORKLOAD",
                        help="only workloads of this group or whose name begins so; may be repeated")
    parser.add_argument("--rounds", type=int, help="rounds, of which medians are taken (3)")
    parser.add_argument("--seconds", type=int, help="length of a run (2)")
    parser.add_argument("--json", metavar="FILE", help="write all figures to FILE")
    parser.add_argument("--no-trace", action="store_true", help="do not count system calls")
    parser.add_argument("--list", action="store_true", help="list the workloads")
    return parser.parse_args()


def version_of_router(program):
    return first_line([program, "--version"]) if os.path.basename(program) == "switchyard" else program


def cores():
    """The proxy's core and everybody else's."""
    every = sorted(os.sched_getaffinity(0))
    return (set(every), set(every)) if len(every) == 1 else ({every[0]}, set(every[1:]))


def progress(text):
    print(text, file=sys.stderr, flush=True)


class Bench:
    """One run of the benchmark: what was asked for, what is running, and what was found."""

    def __init__(self, args, directory):
        self.args, self.directory = args, directory
        self.command = shlex.split(args.router)
        self.rounds = args.rounds or (1 if args.quick else 3)
        self.seconds = args.seconds or 2
        self.every_core = os.sched_getaffinity(0)
        self.proxy_cores, self.other_cores = cores()
        self.running = []
        self.out = {"results": {}, "syscalls": {}}

    def start(self, server):
        self.running.append(server)
        server.start()
        return server

    def stop(self):
        for server in reversed(self.running):
            server.stop()

    def postgres(self):
        directory = os.path.join(self.directory, "postgres")
        postgres = Postgres(directory, self.other_cores)
        os.makedirs(directory, 0o700)
        if postgres.user:
            os.chown(directory, postgres.user.pw_uid, postgres.user.pw_gid)
        return self.start(postgres)

    def proxies(self, name, server):
        """A pair of proxies that have served nobody yet."""
        base = f"{self.directory}/{name}"
        return [self.start(PgBouncer(f"{base}-pgbouncer", server, self.proxy_cores)),
                self.start(Switchyard(f"{base}-switchyard", server, self.proxy_cores, self.command))]

    def describe(self, postgres, pgbouncer_version):
        self.out.update({
            "machine": {"cores": os.cpu_count(), "cpu": cpu_model(), "kernel": os.uname().release,
                        "proxy_cores": sorted(self.proxy_cores), "other_cores": sorted(self.other_cores),
                        "load_average": os.getloadavg()[0]},
            "versions": {"postgresql": first_line([f"{postgres.bin}/postgres", "--version"]),
                         "pgbouncer": pgbouncer_version,
                         "switchyard": version_of_router(self.command[0])},
            "rounds": self.rounds, "seconds": self.seconds,
        })

    def compare(self, server, systems, chosen):
        """Measures each workload on each system, which take turns, and counts system calls."""
        for workload in chosen:
            runs = self.out["results"].setdefault(workload.name, {s.name: [] for s in systems})
            for number in range(self.rounds):
                for system in systems:
                    self.attempt(f"{workload.name} {number + 1}/{self.rounds} {system.name}",
                                 self.measure, runs, server, system, workload)
            if not self.traced(workload):
                continue
            for system in systems[1:]:
                self.attempt(f"{workload.name}: {system.name}", self.count, server, system, workload)

    def traced(self, workload):
        if self.args.no_trace or not workload.trace:
            return False
        return not self.args.quick or bool(self.args.only) or workload.name in workloads.QUICK_TRACES

    def attempt(self, name, function, *arguments):
        """What fails is missing from the table; the rest goes on."""
        try:
            said = function(*arguments)
        except (RuntimeError, OSError) as error:
            said = f"failed: {error}"
        if said:
            progress(f"{name}: {said}")

    def measure(self, runs, server, system, workload):
        load, directory = workload.make(system.name), f"{self.directory}/run"
        try:
            result = measure(directory, server, system, load, self.seconds)
        except TooShort:
            # Many clients log in, and the machine has other work: they need more of the time for that.
            result = measure(directory, server, system, load, self.seconds * 3)
        runs[system.name].append(vars(result))
        latency = f", p99 {result.p99:.0f} µs" if result.p99 else ""
        return f"{result.tps:.0f}/s{latency}" + (f", {result.cpu:.1f} µs of CPU" if result.cpu else "")

    def count(self, server, system, workload):
        found = per_transaction(f"{self.directory}/run", server, system, workload.make(system.name), 1)
        if found:
            self.out["syscalls"].setdefault(workload.name, {})[system.name] = found

    def idle(self, postgres):
        limit = idle.raise_file_limit()
        count = min(500 if self.args.quick else idle.CLIENTS, limit - idle.SPARE_FILES)
        self.out["idle"] = {}
        for proxy in self.proxies("idle", postgres):
            self.attempt(f"idle: {proxy.name}", self.measure_idle, proxy, count)
            proxy.stop()

    def measure_idle(self, proxy, count):
        found = self.out["idle"][proxy.name] = idle.measure(proxy, count, 1 if self.args.quick else 3)
        return f"{found['kib_per_client']:.2f} KiB per client"

    def workers(self, server):
        os.sched_setaffinity(0, self.every_core)
        found = workers.compare(
            self.directory, server, self.command, self.rounds, self.seconds, not self.args.no_trace, progress)
        self.out["syscalls"].update(found.pop("syscalls"))
        self.out["workers"] = found

    def seal(self, postgres):
        program = shlex.split(self.args.router)[0]
        self.out["seal"] = seal.compare(
            postgres, DATABASE, program, self.directory, self.rounds, self.seconds, progress)
        seal.show(self.out["seal"])


    def neighbours(self, postgres):
        proxies = self.proxies("neighbours", postgres)
        try:
            self.out["neighbours"] = neighbours.compare(
                self.directory, postgres, proxies, min(self.rounds, 3), max(self.seconds, 4), progress)
        finally:
            for proxy in proxies:
                proxy.stop()
        neighbours.show(self.out["neighbours"])


def wanted(args, chosen):
    if args.only:
        return [w for w in chosen if any(w.group == o or w.name.startswith(o) for o in args.only)]
    return [w for w in chosen if w.name in workloads.QUICK] if args.quick else chosen


def run(bench, chosen, saturated, extras, pgbouncer_version):
    os.sched_setaffinity(0, bench.other_cores)
    postgres = bench.postgres()
    bench.describe(postgres, pgbouncer_version)
    report.heading(bench.out)
    if chosen:
        proxies = bench.proxies("pooled", postgres)
        bench.compare(postgres, [postgres, *proxies], chosen)
        for proxy in proxies:
            proxy.stop()
    if "idle" in extras:
        bench.idle(postgres)
    if "seal" in extras:
        bench.attempt("seal", bench.seal, postgres)
    if "neighbours" in extras:
        bench.attempt("neighbours", bench.neighbours, postgres)
    if not saturated and "workers" not in extras:
        return
    postgres.stop()
    try:
        server = bench.start(NearlyFree(f"{bench.directory}/peers", postgres, bench.other_cores))
    except RuntimeError as error:
        progress(str(error))
        return
    if saturated:
        bench.compare(server, [server, *bench.proxies("saturated", server)], saturated)
    if "workers" in extras:
        bench.attempt("workers", bench.workers, server)


def main():
    args = arguments()
    pgbouncer_version = first_line([find_pgbouncer(), "--version"])
    chosen = workloads.build(version_of(pgbouncer_version))
    saturated = workloads.build_saturated(version_of(pgbouncer_version))
    if args.list:
        print(*(w.name for w in chosen + saturated), *EXTRAS, sep="\n")
        return
    chosen, saturated = wanted(args, chosen), wanted(args, saturated)
    extras = [name for name in EXTRAS if name in args.only or (not args.only and not (args.quick and name in ("workers", "seal", "neighbours")))]
    if not chosen and not saturated and not extras:
        raise SystemExit("no such workload; see --list")
    # However we are ended, we stop what we started.
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit("interrupted"))
    began = time.monotonic()
    directory = tempfile.mkdtemp(prefix="switchyard-bench-")
    os.chmod(directory, 0o755)
    bench = Bench(args, directory)
    try:
        run(bench, chosen, saturated, extras, pgbouncer_version)
        bench.out["elapsed_seconds"] = round(time.monotonic() - began)
        report.print_all(bench.out, chosen, saturated)
        if args.json:
            with open(args.json, "w") as f:
                json.dump(bench.out, f, indent=1)
                f.write("\n")
    finally:
        bench.stop()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
