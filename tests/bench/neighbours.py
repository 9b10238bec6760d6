"""What one tenant's crowd does to another tenant: a victim alone, and beside an aggressor, through PgBouncer and Switchyard.

Both tenants use the same database by the same role, as tenants of shared tables do, and so the same pool. The victim has fewer
clients than half of the pool has connections, so its fair share is a connection for each: all that it does alone, as long as the
pool is what is short (`wait`). Where the machine is (`select`), which shares itself between all connections, it is their part of
what both do together, and transactions take longer because more run at once: aims are for `wait`.
"""

import time

from load import Load, Run, percentile
from servers import POOL

VICTIM, AGGRESSOR = 1, 0
VICTIM_CLIENTS = POOL * 2 // 5
AGGRESSOR_CLIENTS = 500

# Aims of the design: the share of its fair share that the victim keeps, and how much longer its slowest transactions take.
SHARE, P99 = 0.9, 2.0

SCRIPTS = {
    # The connection is busy and the machine is not.
    "wait": lambda _tenant: "SELECT pg_sleep(0.01);\n",
    "select": lambda _tenant: "SELECT abalance FROM pgbench_accounts WHERE aid = 271828;\n",
}


class Crowd:
    """pgbench for the victim, and for the aggressor if there is one; both begin before the victim is measured."""

    def __init__(self, directory, postgres, system, script, seconds, aggressor):
        self.runs = []
        try:
            if aggressor:
                load = Load(script, AGGRESSOR_CLIENTS, first=AGGRESSOR)
                # It is there before and after the victim.
                self.runs.append(Run(f"{directory}/aggressor", postgres, system, load, seconds + 6))
                time.sleep(4)
            load = Load(script, VICTIM_CLIENTS, first=VICTIM)
            self.runs.append(Run(f"{directory}/victim", postgres, system, load, seconds))
            self.runs[-1].finish()
            for run in self.runs[:-1]:
                run.finish()
        finally:
            for run in self.runs:
                run.kill()

    def measured(self):
        begin, end = self.runs[-1].span()
        victim = [(at, took) for at, took in self.runs[-1].transactions()[0] if begin < at <= end]
        beside = [at for run in self.runs[:-1] for at, _ in run.transactions()[0] if begin < at <= end]
        took = [t for _, t in victim]
        return {"tps": len(victim) / (end - begin), "p50": percentile(took, 0.5), "p99": percentile(took, 0.99),
                "aggressor_tps": len(beside) / (end - begin)}


def compare(directory, postgres, proxies, rounds, seconds, progress):
    """The victim's throughput and p99 for each script and proxy, alone and beside the aggressor, in turns."""
    found = {}
    for name, script in SCRIPTS.items():
        runs = found[name] = {p.name: {"alone": [], "beside": []} for p in proxies}
        for number in range(rounds):
            for proxy in proxies:
                for how in ("alone", "beside"):
                    crowd = Crowd(f"{directory}/neighbours", postgres, proxy, script, seconds, how == "beside")
                    result = crowd.measured()
                    runs[proxy.name][how].append(result)
                    progress(f"neighbours-{name} {number + 1}/{rounds} {proxy.name} {how}: {result['tps']:.0f}/s, "
                             f"p99 {result['p99']:.0f} µs")
    return {name: {proxy: judged(name, runs) for proxy, runs in by_proxy.items()} for name, by_proxy in found.items()}


def middle(runs, key):
    values = sorted(run[key] for run in runs)
    return values[len(values) // 2]


def judged(name, runs):
    alone = {key: middle(runs["alone"], key) for key in ("tps", "p50", "p99")}
    beside = {key: middle(runs["beside"], key) for key in ("tps", "p50", "p99", "aggressor_tps")}
    both = beside["tps"] + beside["aggressor_tps"]
    fair = alone["tps"] if name == "wait" else min(alone["tps"], both * VICTIM_CLIENTS / POOL)
    return {"alone": alone, "beside": beside, "fair_tps": fair, "share": beside["tps"] / fair,
            "p99_ratio": beside["p99"] / alone["p99"]}


def show(found):
    print(f"\nneighbours: a victim of {VICTIM_CLIENTS} clients beside an aggressor of {AGGRESSOR_CLIENTS}, pool of {POOL}; "
          f"aims: at least {SHARE:.0%} of the fair share, p99 at most {P99:.0f}x alone")
    print(f"  {'':8} {'':11} {'alone/s':>8} {'beside/s':>9} {'fair/s':>7} {'share':>6} "
          f"{'p99 alone':>10} {'p99 beside':>11} {'ratio':>6} {'aggressor/s':>12}")
    for name, by_proxy in found.items():
        for proxy, r in by_proxy.items():
            aims = "" if (name, proxy) != ("wait", "switchyard") else (
                "  ok" if r["share"] >= SHARE and r["p99_ratio"] <= P99 else "  MISSED")
            print(f"  {name:8} {proxy:11} {r['alone']['tps']:8.0f} {r['beside']['tps']:9.0f} {r['fair_tps']:7.0f} "
                  f"{r['share']:6.0%} {r['alone']['p99'] / 1000:7.1f} ms {r['beside']['p99'] / 1000:8.1f} ms "
                  f"{r['p99_ratio']:6.1f} {r['beside']['aggressor_tps']:12.0f}{aims}")
