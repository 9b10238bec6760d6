"""The workloads: what is sent, by how many clients of how many tenants, and what is to be reached."""

from dataclasses import dataclass, field, replace
from functools import partial

import saturated
from load import Load
from saturated import SaturatedLoad
from servers import SESSION_DATABASE, is_old

ACCOUNTS = 1_000_000  # pgbench -s 10
ITEMS = 10_000  # of each tenant

OLD_PGBOUNCER = ("PgBouncer before 1.21 cannot prepare in transaction pooling: here it pools by session, "
                 "with a server connection per client")


def select(_tenant):
    """As pgbench's own `select-only`."""
    return f"\\set aid random(1, {ACCOUNTS})\nSELECT abalance FROM pgbench_accounts WHERE aid = :aid;\n"


def tenant_plain(_tenant):
    """What applications send through Switchyard: row-level security finds the tenant in the context."""
    return f"\\set id random(1, {ITEMS})\nSELECT payload FROM items WHERE id = :id;\n"


def tenant_by_hand(tenant):
    """What applications send today: four round trips."""
    return (f"\\set id random(1, {ITEMS})\nBEGIN;\nSET LOCAL app.tenant_id = 't{tenant}';\n"
            "SELECT payload FROM items WHERE id = :id;\nCOMMIT;\n")


def rows_many(_tenant):
    return "SELECT payload FROM wide;\n"


def row_single(_tenant):
    return "SELECT payload FROM single;\n"


@dataclass
class Workload:
    """A workload, its load for each system, and the issue's targets as ratios to PgBouncer."""

    name: str
    group: str
    make: object  # function from the name of a system to its Load
    cpu_target: float = 1.0
    tps_target: float | None = None
    trace: bool = False
    notes: list = field(default_factory=list)


def same(load, _system):
    return load


def by_system(direct_and_pgbouncer, switchyard, system):
    return switchyard if system == "switchyard" else direct_and_pgbouncer


def build(pgbouncer_version):
    """All workloads, in the order in which they are run."""
    out = []
    # PgBouncer prepares statements in transaction pooling since 1.21, with max_prepared_statements.
    old = is_old(pgbouncer_version)
    for protocol in ("simple", "extended", "prepared"):
        for clients in (16, 64):
            # Several tenants for all protocols at 16 clients, for one at 64: a run should end while one waits for it.
            for tenants in (1, 8) if clients == 16 or protocol == "simple" else (1,):
                load = Load(select, clients, tenants, protocol)
                make, notes = partial(same, load), []
                if protocol == "prepared" and old:
                    make = partial(pooled_by_session, load)
                    notes = [OLD_PGBOUNCER]
                name = f"select-{protocol}-{clients}c-{tenants}t"
                out.append(Workload(name, "select", make, trace=clients == 16 and tenants == 1, notes=notes))
    for clients in (16, 64):
        for tenants in (1, 8):
            make = partial(by_system, Load(tenant_by_hand, clients, tenants), Load(tenant_plain, clients, tenants))
            out.append(Workload(f"tenant-{clients}c-{tenants}t", "tenant", make, 0.40, 2.0, trace=clients == 16))
    for name, script in (("rows-10000", rows_many), ("rows-1", row_single)):
        out.append(Workload(name, "rows", partial(same, Load(script)), 0.7, trace=True))
    out.append(Workload("connect", "connect", partial(same, Load(select, connect=True)), trace=True))
    return out


def build_saturated(pgbouncer_version):
    """The workloads between load and server that are nearly free."""
    old = is_old(pgbouncer_version)
    loads = {
        "simple": SaturatedLoad(saturated.simple),
        "extended": SaturatedLoad(saturated.extended),
        "prepared": SaturatedLoad(saturated.prepared, prepare=True),
        "simple-8t": SaturatedLoad(saturated.simple, tenants=8),
    }
    out = []
    for name, load in loads.items():
        make, notes = partial(same, load), []
        if load.prepare and old:
            make, notes = partial(pooled_by_session, load), [OLD_PGBOUNCER]
        out.append(Workload(f"saturated-{name}", "saturated", make, trace="simple" in name, notes=notes))
    for tenants in (1, 8):
        by_hand = SaturatedLoad(saturated.tenant_by_hand, tenants=tenants)
        plain = SaturatedLoad(saturated.simple, tenants=tenants)
        out.append(Workload(f"saturated-tenant-{tenants}t", "saturated", partial(by_system, by_hand, plain), 0.40, 2.0))
    for name, script in (("rows-10000", saturated.rows_many), ("rows-1", saturated.row_single)):
        make = partial(same, SaturatedLoad(script, clients=16))
        out.append(Workload(f"saturated-{name}", "saturated", make, 0.7, trace=True))
    return out


def pooled_by_session(load, system):
    return replace(load, database=SESSION_DATABASE) if system == "pgbouncer" else load


# What a sanity run runs, and where it counts system calls.
QUICK = {
    "select-simple-16c-1t", "select-simple-16c-8t", "select-prepared-16c-1t", "tenant-16c-1t", "tenant-16c-8t",
    "rows-10000", "connect", "saturated-simple",
}
QUICK_TRACES = {"select-simple-16c-1t", "tenant-16c-1t", "saturated-simple"}
