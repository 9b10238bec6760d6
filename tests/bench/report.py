"""Medians, ratios to PgBouncer and the targets beside them."""

from statistics import median


def heading(out):
    machine, versions = out["machine"], out["versions"]
    print(f"{machine['cores']} cores ({machine['cpu']}, Linux {machine['kernel']}), "
          f"load average {machine['load_average']:.1f} at the start")
    print(f"proxy on core {listed(machine['proxy_cores'])}, everything else on {listed(machine['other_cores'])}")
    print("; ".join(f"{name}: {text or 'unknown'}" for name, text in versions.items()))
    print(f"{out['rounds']} rounds of {out['seconds']} s, taking turns; medians\n", flush=True)


def listed(numbers):
    return ",".join(str(n) for n in numbers)


def middle(runs, key):
    values = [run[key] for run in runs if run[key] is not None]
    return median(values) if values else None


def number(value, form):
    return "–" if value is None else format(value, form)


def ratio(a, b):
    return a / b if a is not None and b else None


def judged(value, target, at_most):
    """A ratio with its target, and a mark where it is missed."""
    if value is None:
        return "–"
    if target is None:
        return f"{value:.2f}"
    reached = value <= target if at_most else value >= target
    return f"{value:.2f} ({'≤' if at_most else '≥'}{target:g}{'' if reached else ' missed'})"


def print_rows(rows):
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for n, row in enumerate(rows):
        cells = (cell.rjust(w) if cell[:1].isdigit() and ", " not in cell else cell.ljust(w) for cell, w in zip(row, widths, strict=True))
        print("| " + " | ".join(cells) + " |")
        if n == 0:
            print("|" + "|".join("-" * (w + 2) for w in widths) + "|")
    print()


def print_all(out, chosen, saturated):
    notes = []
    if chosen:
        print("Load by pgbench, PostgreSQL behind; the proxy is woken for nearly every event\n")
        table(out, chosen, notes, "direct")
    if saturated:
        print("Load and server nearly free; the proxy is busy all the time\n")
        table(out, saturated, notes, "load and server alone")
    for n, note in enumerate(notes, 1):
        print(f"[{n}] {note}")
    print()
    traces(out["syscalls"])
    if out.get("idle"):
        idle(out["idle"])
    if out.get("workers"):
        workers(out["workers"], out["machine"]["cores"])
    print(f"{out['elapsed_seconds']} s in all")


def table(out, chosen, notes, direct_name):
    rows = [["workload", "cpu µs/tx: pgbouncer", "switchyard", "ratio (target)",
             f"tps: {direct_name}", "pgbouncer", "switchyard", "ratio (target)",
             "p99 µs: direct", "pgbouncer", "switchyard"]]
    for workload in chosen:
        runs = out["results"][workload.name]
        figures = {s: {k: middle(runs[s], k) for k in ("cpu", "tps", "p99")} for s in runs}
        direct, bouncer, ours = figures["direct"], figures["pgbouncer"], figures["switchyard"]
        mark = ""
        for note in workload.notes:
            if note not in notes:
                notes.append(note)
            mark += f" [{notes.index(note) + 1}]"
        rows.append([
            workload.name + mark, number(bouncer["cpu"], ".1f"), number(ours["cpu"], ".1f"),
            judged(ratio(ours["cpu"], bouncer["cpu"]), workload.cpu_target, True),
            *(number(f["tps"], ".0f") for f in (direct, bouncer, ours)),
            judged(ratio(ours["tps"], bouncer["tps"]), workload.tps_target, False),
            *(number(f["p99"], ".0f") for f in (direct, bouncer, ours)),
        ])
    if all(cell == "–" for row in rows[1:] for cell in row[8:]):
        rows = [row[:8] for row in rows]
    print_rows(rows)


def idle(found):
    rows = [["idle clients", "clients", "KiB each", "KiB each after a query", "CPU ms per second"]]
    for name, figures in found.items():
        rows.append([name, str(figures["clients"]), f"{figures['kib_per_client']:.2f}",
                     f"{figures['kib_per_client_after_query']:.2f}", f"{figures['idle_cpu_ms_per_second']:.1f}"])
    print_rows(rows)
    if {"pgbouncer", "switchyard"} <= found.keys():
        more = found["switchyard"]["kib_per_client"] - found["pgbouncer"]["kib_per_client"]
        print(f"Switchyard takes {more:.2f} KiB per idle client more than PgBouncer "
              f"(target: at most 2{'' if more <= 2 else ', missed'})\n")


def possible(one, two, cores):
    """Growth if two workers kept either themselves or the machine busy all the time, whichever comes first."""
    proxy, others, before = (middle(two, "cpu"), middle(two, "others_cpu"), middle(one, "tps"))
    if not proxy or not before:
        return None
    return min(2e6 / proxy, cores * 1e6 / (proxy + others)) / before


def workers(found, cores):
    rows = [["workers", "tps: one", "tps: two", "growth", "cpu µs/tx: one", "two", "load and server", "growth possible"]]
    for name, by in found["results"].items():
        one, two = (by[n] for n in (1, 2))
        rows.append([name, number(middle(one, "tps"), ".0f"), number(middle(two, "tps"), ".0f"),
                     number(ratio(middle(two, "tps"), middle(one, "tps")), ".2f"),
                     number(middle(one, "cpu"), ".1f"), number(middle(two, "cpu"), ".1f"),
                     number(middle(two, "others_cpu"), ".1f"), number(possible(one, two, cores), ".2f")])
    print_rows(rows)
    if cores < 4:
        print(f"With {cores} cores, load and server share them with both workers: growth is limited by what they take.\n")


def traces(counted):
    if not counted:
        return
    rows = [["system calls per transaction", "system", "all", "by name", "counted by"]]
    for workload, systems in counted.items():
        for system, found in systems.items():
            names = sorted(found["calls"].items(), key=lambda item: -item[1])
            rows.append([
                workload, system, number(found["calls"].get("all"), ".1f"),
                ", ".join(f"{value:.2f} {name}" for name, value in names if name != "all" and value >= 0.05),
                found["by"],
            ])
    print_rows(rows)
