#!/usr/bin/env python3
"""Compares direct PostgreSQL, PgBouncer and Switchyard in one run on one machine. See README.md."""

import argparse
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
import time

import report
import workloads
from load import measure
from servers import PgBouncer, Postgres, Switchyard, find_pgbouncer
from syscalls import per_transaction
from system import cpu_model, first_line


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--router", default="target/release/switchyard router --config {config}",
                        help="command that starts the router (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a short run that shows whether it works, in two minutes")
    parser.add_argument("--only", action="append", default=[], metavar="WORKLOAD",
                        help="only workloads of this group or whose name begins so; may be repeated")
    parser.add_argument("--rounds", type=int, help="rounds, of which medians are taken (3)")
    parser.add_argument("--seconds", type=int, help="length of a run (3)")
    parser.add_argument("--json", metavar="FILE", help="write all figures to FILE")
    parser.add_argument("--no-trace", action="store_true", help="do not count system calls")
    parser.add_argument("--list", action="store_true", help="list the workloads")
    return parser.parse_args()


def version_of(text):
    found = re.search(r"(\d+)\.(\d+)", text or "")
    return (int(found[1]), int(found[2])) if found else (0, 0)


def version_of_router(program):
    return first_line([program, "--version"]) if os.path.basename(program) == "switchyard" else program


def cores():
    """The proxy's core and everybody else's."""
    every = sorted(os.sched_getaffinity(0))
    return (set(every), set(every)) if len(every) == 1 else ({every[0]}, set(every[1:]))


def progress(text):
    print(text, file=sys.stderr, flush=True)


def run_rounds(directory, postgres, systems, chosen, rounds, seconds):
    """Figures of each workload and system, a list of one per round; systems take turns."""
    results = {w.name: {s.name: [] for s in systems} for w in chosen}
    for workload in chosen:
        for number in range(rounds):
            for system in systems:
                try:
                    result = measure(f"{directory}/run", postgres, system, workload.make(system.name), seconds)
                except RuntimeError as error:
                    progress(f"{workload.name}: {system.name}: {error}")
                    continue
                results[workload.name][system.name].append(vars(result))
                cpu = f", {result.cpu:.1f} µs of CPU" if result.cpu else ""
                progress(f"{workload.name} {number + 1}/{rounds} {system.name}: {result.tps:.0f}/s, "
                         f"p99 {result.p99:.0f} µs{cpu}")
    return results


def run_traces(directory, postgres, systems, chosen, seconds):
    out = {}
    for workload in chosen:
        if not workload.trace:
            continue
        for system in systems[1:]:
            try:
                counted = per_transaction(f"{directory}/run", postgres, system, workload.make(system.name), seconds)
            except RuntimeError as error:
                progress(f"{workload.name}: {system.name}: {error}")
                continue
            if counted:
                out.setdefault(workload.name, {})[system.name] = counted
    return out


def main():
    args = arguments()
    pgbouncer_version = first_line([find_pgbouncer(), "--version"])
    chosen = workloads.build(version_of(pgbouncer_version))
    if args.list:
        for workload in chosen:
            print(workload.name)
        return
    if args.only:
        chosen = [w for w in chosen if any(w.group == o or w.name.startswith(o) for o in args.only)]
        if not chosen:
            raise SystemExit("no such workload; see --list")
    if args.quick:
        chosen = [w for w in chosen if args.only or w.name in workloads.QUICK]
    rounds = args.rounds or (1 if args.quick else 3)
    seconds = args.seconds or (2 if args.quick else 3)
    proxy_cores, other_cores = cores()
    os.sched_setaffinity(0, other_cores)
    began = time.monotonic()
    directory = tempfile.mkdtemp(prefix="switchyard-bench-")
    os.chmod(directory, 0o755)
    running = []
    try:
        data = os.path.join(directory, "postgres")
        postgres = Postgres(data, other_cores)
        os.makedirs(data, 0o700)
        if postgres.user:
            os.chown(data, postgres.user.pw_uid, postgres.user.pw_gid)
        running.append(postgres)
        postgres.start()
        systems = [
            postgres,
            PgBouncer(f"{directory}/pgbouncer", postgres, proxy_cores),
            Switchyard(f"{directory}/switchyard", postgres, proxy_cores, shlex.split(args.router)),
        ]
        for proxy in systems[1:]:
            running.append(proxy)
            proxy.start()
        out = {
            "machine": {"cores": os.cpu_count(), "cpu": cpu_model(), "kernel": os.uname().release,
                        "proxy_cores": sorted(proxy_cores), "other_cores": sorted(other_cores),
                        "load_average": os.getloadavg()[0]},
            "versions": {"postgresql": first_line([f"{postgres.bin}/postgres", "--version"]),
                         "pgbouncer": pgbouncer_version,
                         "switchyard": version_of_router(shlex.split(args.router)[0])},
            "rounds": rounds, "seconds": seconds,
        }
        report.heading(out)
        out["results"] = run_rounds(directory, postgres, systems, chosen, rounds, seconds)
        if not args.no_trace:
            out["syscalls"] = run_traces(directory, postgres, systems, chosen, 1 if args.quick else 1.5)
        out["elapsed_seconds"] = round(time.monotonic() - began)
        report.table(out, chosen)
        if args.json:
            with open(args.json, "w") as f:
                json.dump(out, f, indent=1)
                f.write("\n")
    finally:
        for system in reversed(running):
            system.stop()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
