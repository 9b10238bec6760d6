"""Whether throughput grows with cores: two workers of Switchyard against one, load and server nearly free."""

import os
import resource

import saturated
from load import measure
from saturated import SaturatedLoad
from servers import Switchyard
from syscalls import per_transaction
from system import cpu_seconds

LOADS = {"simple": SaturatedLoad(saturated.simple, 128), "simple-8t": SaturatedLoad(saturated.simple, 128, 8)}


def placement():
    """Cores of the proxy and of everybody else.

    With four or more, the proxy has two for itself. With fewer, all share all: then the throughput of two workers
    is limited by what load and server take.
    """
    every = sorted(os.sched_getaffinity(0))
    return (set(every[:2]), set(every[2:])) if len(every) >= 4 else (set(every), set(every))


def others_cpu(server):
    """CPU seconds of the server, and of the load generators that have ended."""
    load = resource.getrusage(resource.RUSAGE_CHILDREN)
    return cpu_seconds(server.process.pid) + load.ru_utime + load.ru_stime


def compare(directory, server, command, rounds, seconds, traced, progress):
    """Throughput with one and with two workers, in turns; `server` runs on the others' cores. With `traced`, also
    system calls: what workers cost each other shows there."""
    proxy_cores, other_cores = placement()
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, other_cores)
    os.sched_setaffinity(server.process.pid, other_cores)
    proxies = []
    results = {name: {1: [], 2: []} for name in LOADS}
    calls = {}
    try:
        for number in (1, 2):
            proxy = Switchyard(f"{directory}/workers{number}", server, proxy_cores, command, workers=number)
            proxies.append((number, proxy))
            proxy.start()
        for name, load in LOADS.items():
            for _ in range(rounds):
                for number, proxy in proxies:
                    others = others_cpu(server)
                    result = vars(measure(f"{directory}/run", server, proxy, load, seconds))
                    result["others_cpu"] = (others_cpu(server) - others) * 1e6 / (result["tps"] * seconds)
                    results[name][number].append(result)
                    progress(f"workers-{name}: {number}: {result['tps']:.0f}/s, {result['cpu']:.1f} µs of CPU")
            for number, proxy in proxies if traced else []:
                found = per_transaction(f"{directory}/run", server, proxy, load, 1)
                if found:
                    calls.setdefault(f"workers-{name}", {})[f"switchyard, {number}"] = found
    finally:
        for _, proxy in proxies:
            proxy.stop()
        os.sched_setaffinity(0, before)
    return {"proxy_cores": sorted(proxy_cores), "other_cores": sorted(other_cores), "results": results,
            "syscalls": calls}
