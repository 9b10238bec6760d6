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
        cells = (cell.rjust(w) if cell[:1].isdigit() else cell.ljust(w) for cell, w in zip(row, widths, strict=True))
        print("| " + " | ".join(cells) + " |")
        if n == 0:
            print("|" + "|".join("-" * (w + 2) for w in widths) + "|")
    print()


def table(out, chosen):
    rows = [["workload", "cpu µs/tx: pgbouncer", "switchyard", "ratio (target)",
             "tps: direct", "pgbouncer", "switchyard", "ratio (target)", "p99 µs: direct", "pgbouncer", "switchyard"]]
    notes = []
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
    print_rows(rows)
    for n, note in enumerate(notes, 1):
        print(f"[{n}] {note}")
    print()
    traces(out.get("syscalls") or {})


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
