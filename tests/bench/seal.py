"""What the seal costs a statement, as a ratio to plain row-level security; and what entering costs.

Directly on PostgreSQL, as the cost is there: the router does nothing more for a tenant that stays. Each kind of
policy has a table and a role of its own with the same rows; a superuser has made the tenant the role's default, so that pgbench
needs no token. The kinds take turns; medians over the rounds. What is measured is the server process's time on the
processor, so that other work on the machine matters little.
"""

import os
import re
import statistics
import subprocess
import time

from system import as_user

ROWS = 100_000
TENANTS = 100
KINDS = {
    "none": None,
    "plain": "tenant_id = current_setting('app.tenant_id', true)",
    "plain, in a sub-select": "tenant_id = (SELECT current_setting('app.tenant_id', true))",
    "sealed": "tenant_id = (SELECT switchyard.tenant_id())",
}
POINT = "\\set n random(1, 1000)\nSELECT filler FROM {table} WHERE {where}id = :n;\n"
RANGE = "SELECT count(filler) FROM {table}{where};\n"
# A token as a router makes it, by SQL that only this benchmark has.
MINT = """
CREATE FUNCTION bench_mint() RETURNS text LANGUAGE plpgsql AS $$
DECLARE c text; k record; b record;
BEGIN
    SELECT * INTO k FROM switchyard.seal_key LIMIT 1;
    SELECT * INTO b FROM switchyard.backend WHERE pid = pg_backend_pid();
    IF NOT FOUND THEN PERFORM switchyard.hello(); SELECT * INTO b FROM switchyard.backend WHERE pid = pg_backend_pid(); END IF;
    c := concat_ws('.', k.kid, b.pid, b.slot, b.nonce, coalesce(pg_sequence_last_value(b.counter), 0) + 1, 1, 9999999999, '7431');
    RETURN encode(sha256(k.k_out || sha256(k.k_in || convert_to(c, 'UTF8'))), 'hex') || '.' || c;
END $$;
"""


def prepare(postgres, database, program, directory):
    """The schema, and for each kind a table and a role."""
    url = f"bench=postgres://postgres@/{database}?host={postgres.directory}&port={postgres.port}"
    done = subprocess.run(
        [program, "schema", "install", "--shard", url, "--key-file", os.path.join(directory, "seal.keys")],
        capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"schema install failed: {done.stderr.strip()}")
    for number, expression in enumerate(KINDS.values()):
        sql = f"""
            CREATE TABLE seal_{number} (tenant_id text, id int, filler text, PRIMARY KEY (tenant_id, id));
            INSERT INTO seal_{number} SELECT 't' || n % {TENANTS}, n / {TENANTS}, repeat('x', 60) FROM generate_series(0, {ROWS} - 1) n;
            CREATE ROLE seal_{number} LOGIN;
            GRANT SELECT ON seal_{number} TO seal_{number};
            ALTER ROLE seal_{number} SET app.tenant_id = 't1';
            ALTER ROLE seal_{number} SET backtrace_functions = 'sc_1_t1';
        """
        if expression:
            sql += f"""
                ALTER TABLE seal_{number} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
                CREATE POLICY p ON seal_{number} USING ({expression});
            """
        postgres.sql(database, sql)
    postgres.sql(database, MINT)
    postgres.sql(database, "VACUUM ANALYZE")


def cpu_of_ended(pid):
    """Seconds on the processor of a process's children that have ended."""
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


def cost(postgres, database, directory, role, script, mode, seconds):
    """Microseconds of the server's time per transaction of one client."""
    path = os.path.join(directory, "seal.sql")
    with open(path, "w") as f:
        f.write(script)
    command = [os.path.join(postgres.bin, "pgbench"), "-n", "-h", postgres.directory, "-p", str(postgres.port), "-U", role,
               "-M", mode, "-T", str(seconds), "-c", "1", "-f", path, database]
    before = cpu_of_ended(postgres.process.pid)
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", **as_user(postgres.user))
    found = re.search(r"transactions actually processed: (\d+)", done.stdout)
    if done.returncode or not found:
        raise RuntimeError(f"pgbench failed: {done.stderr.strip()}")
    time.sleep(0.2)  # until the postmaster has waited for it
    return (cpu_of_ended(postgres.process.pid) - before) * 1e6 / int(found[1])


def plans(postgres, database):
    """How a point and a whole table are read, for the plain and the sealed kind."""
    out = {}
    for number, name in enumerate(KINDS):
        if KINDS[name] and name != "plain, in a sub-select":
            sql = f"""SET ROLE seal_{number}; SET app.tenant_id = 't1'; EXPLAIN (COSTS OFF) SELECT filler FROM seal_{number} WHERE id = 5;
                      SET min_parallel_table_scan_size = 0; SET parallel_setup_cost = 0; SET enable_indexscan = off; SET enable_bitmapscan = off;
                      EXPLAIN (COSTS OFF) SELECT count(filler) FROM seal_{number}"""
            out[name] = postgres.sql(database, sql)
    return out


def compare(postgres, database, program, directory, rounds, seconds, progress):
    """Medians by kind, and what entering costs."""
    prepare(postgres, database, program, directory)
    found = {}
    for _ in range(rounds):
        for number, name in enumerate(KINDS):
            role = f"seal_{number}"
            where = {"point": "tenant_id = 't1' AND ", "range": " WHERE tenant_id = 't1'"} if name == "none" else {"point": "", "range": ""}
            for mode in ("prepared", "simple"):
                progress(f"seal: {name}, {mode}")
                scripts = {f"point, {mode}": POINT.format(table=role, where=where["point"])}
                if mode == "prepared":
                    scripts["1000 rows, prepared"] = RANGE.format(table=role, where=where["range"])
                for label, script in scripts.items():
                    took = cost(postgres, database, directory, role, script, mode, seconds)
                    found.setdefault(label, {}).setdefault(name, []).append(took)
        for label, script in (("token made", "SELECT bench_mint();\n"), ("token made and used", "SELECT switchyard.enter(bench_mint());\n")):
            took = cost(postgres, database, directory, "postgres", script, "prepared", seconds)
            found.setdefault("entering", {}).setdefault(label, []).append(took)
    medians = {label: {name: statistics.median(all) for name, all in kinds.items()} for label, kinds in found.items()}
    return {"us": medians, "plans": plans(postgres, database)}


def show(found):
    """A table for people."""
    print("\nThe seal: microseconds of the server per statement, and the ratio to plain row-level security\n")
    print(f"| {'statement':22} | " + " | ".join(KINDS) + " |")
    print("|---|" + "---|" * len(KINDS))
    for label, kinds in found["us"].items():
        if label != "entering":
            cells = (f"{kinds[name]:.1f} ({kinds[name] / kinds['plain']:.2f})" for name in KINDS)
            print(f"| {label:22} | " + " | ".join(cells) + " |")
    entering = found["us"]["entering"]
    print(f"\nEntering: {entering['token made and used'] - entering['token made']:.0f} us, once per hand-over to another tenant")
    for name, plan in found["plans"].items():
        print(f"\nPlans, {name}:\n{plan}")
