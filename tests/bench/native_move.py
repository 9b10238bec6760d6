"""One tenant moved with what PostgreSQL has itself: a publication with a row filter, and a subscription.

Two clusters of our own, a shared table with two tenants, a writer for each. What is told: which statements fail on the way,
how long neighbours wait for the locks that it takes, and the pause of the tenant, from the last write that it may do at the source
to its first at the target. See docs/moves.md.

    tests/.venv/bin/python tests/bench/native_move.py
"""

import os
import shutil
import subprocess
import tempfile
import threading
import time

import psycopg

from servers import programs
from system import as_user, free_port, unprivileged

ROWS = 200_000

TABLE = """
CREATE TABLE items (tenant_id text NOT NULL, id bigint, n int DEFAULT 0, body text, PRIMARY KEY (id));
CREATE ROLE app LOGIN;
GRANT SELECT, INSERT, UPDATE, DELETE ON items TO app;
"""


class Cluster:
    def __init__(self, directory):
        self.port, self.user = free_port(), unprivileged()
        self.directory, self.bin = directory, programs()
        os.makedirs(directory)
        if self.user:
            os.chown(directory, self.user.pw_uid, self.user.pw_gid)
        data = os.path.join(directory, "data")
        run = lambda *command: subprocess.run(command, check=True, capture_output=True, cwd="/", **as_user(self.user))
        run(os.path.join(self.bin, "initdb"), "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N")
        settings = [f"port={self.port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={directory}",
                    "fsync=off", "wal_level=logical"]
        command = [os.path.join(self.bin, "postgres"), "-D", data]
        for setting in settings:
            command += ["-c", setting]
        log = open(os.path.join(directory, "log"), "w")
        self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/", **as_user(self.user))
        for _ in range(300):
            try:
                self.connect().close()
                return
            except psycopg.OperationalError:
                time.sleep(0.1)
        raise SystemExit("PostgreSQL does not start")

    def connect(self, user="postgres"):
        return psycopg.connect(host="127.0.0.1", port=self.port, user=user, dbname="postgres", autocommit=True)

    def stop(self):
        self.process.terminate()
        self.process.wait()


class Writer(threading.Thread):
    """Updates a row of its tenant a few hundred times a second; keeps what it saw."""

    def __init__(self, cluster, tenant):
        super().__init__()
        self.cluster, self.tenant, self.stopping = cluster, tenant, False
        self.took, self.failed, self.last = [], [], None

    def run(self):
        client = self.cluster.connect("app")
        first = 1 if self.tenant == "acme" else ROWS + 1
        number = 0
        while not self.stopping:
            number += 1
            began = time.perf_counter()
            try:
                client.execute("UPDATE items SET n = n + 1 WHERE id = %s", (first + number % 1000,))
                self.last = time.perf_counter()
                self.took.append((began, self.last - began))
            except psycopg.Error as error:
                self.failed.append((began, error.diag.message_primary or str(error)))
                if client.closed:
                    return
            time.sleep(0.002)

    def longest(self, since):
        return max((took for began, took in self.took if began >= since), default=0) * 1000

    def p99(self, since):
        seen = sorted(took for began, took in self.took if began >= since)
        return seen[int((len(seen) - 1) * 0.99)] * 1000 if seen else 0


def move(source, target):
    here, there = source.connect(), target.connect()
    here.execute(TABLE)
    there.execute(TABLE)
    here.execute(f"INSERT INTO items SELECT 'acme', n, 0, repeat('x', 100) FROM generate_series(1, {ROWS}) n")
    here.execute(f"INSERT INTO items SELECT 'other', {ROWS} + n, 0, repeat('y', 100) FROM generate_series(1, {ROWS}) n")
    here.execute("VACUUM ANALYZE items")
    tenant, neighbour = Writer(source, "acme"), Writer(source, "other")
    tenant.start()
    neighbour.start()
    time.sleep(2)
    print(f"before: a statement of the neighbour p99 {neighbour.p99(0):.1f} ms, longest {neighbour.longest(0):.1f} ms")

    # The publication that one would write first.
    here.execute("CREATE PUBLICATION acme FOR TABLE items WHERE (tenant_id = 'acme')")
    time.sleep(0.5)
    here.execute("DROP PUBLICATION acme")
    print(f"with PRIMARY KEY (id): {len(neighbour.failed)} writes of the neighbour and {len(tenant.failed)} of the tenant "
          f"failed in 0.5 s: {neighbour.failed[0][1] if neighbour.failed else '-'}")

    # What it needs instead: the tenant in the replica identity, by a unique index. Somebody reads meanwhile, for a second.
    here.execute("CREATE UNIQUE INDEX CONCURRENTLY items_tenant ON items (tenant_id, id)")
    reader = source.connect()
    reader.autocommit = False
    reader.execute("SELECT count(*) FROM items")
    threading.Timer(1.0, reader.commit).start()
    began = time.perf_counter()
    here.execute("ALTER TABLE items REPLICA IDENTITY USING INDEX items_tenant")
    took = (time.perf_counter() - began) * 1000
    time.sleep(0.3)  # what waited with it ends, and is counted
    print(f"REPLICA IDENTITY USING INDEX behind a reader of 1 s: took {took:.0f} ms; longest "
          f"statement of the neighbour {neighbour.longest(began):.0f} ms")
    here.execute("CREATE PUBLICATION acme FOR TABLE items WHERE (tenant_id = 'acme')")
    failed = len(neighbour.failed)

    began = time.perf_counter()
    there.execute(f"CREATE SUBSCRIPTION acme CONNECTION 'host=127.0.0.1 port={source.port} user=postgres dbname=postgres' "
                  "PUBLICATION acme")
    while there.execute("SELECT bool_and(srsubstate = 'r') FROM pg_subscription_rel").fetchone()[0] is not True:
        time.sleep(0.02)
    print(f"copy and catching up of {ROWS} rows: {time.perf_counter() - began:.1f} s; meanwhile a statement of the neighbour "
          f"p99 {neighbour.p99(began):.1f} ms; {here.execute('SELECT count(*) FROM pg_replication_slots').fetchone()[0]} slot for "
          "this tenant alone")

    # The cutover by hand. Nothing in PostgreSQL holds the tenant: its right to write is taken, with everybody else's who
    # has the same role, and its transactions are waited for.
    time.sleep(1)
    began = time.perf_counter()
    here.execute("REVOKE INSERT, UPDATE, DELETE ON items FROM app")
    end = here.execute("SELECT pg_current_wal_lsn()").fetchone()[0]
    while not here.execute("SELECT replay_lsn >= %s::pg_lsn FROM pg_stat_replication WHERE application_name = 'acme'",
                           (end,)).fetchone()[0]:
        time.sleep(0.001)
    there.execute("ALTER SUBSCRIPTION acme DISABLE")
    client = target.connect("app")
    client.execute("UPDATE items SET n = n + 1 WHERE id = 1")
    pause = time.perf_counter()
    here.execute("GRANT INSERT, UPDATE, DELETE ON items TO app")
    there.execute("DROP SUBSCRIPTION acme")
    here.execute("DROP PUBLICATION acme")
    late = [f for f in tenant.failed if f[0] >= began]
    others = [f for f in neighbour.failed if f[0] >= began]
    print(f"pause from taking the right away to the first write at the target: {(pause - began) * 1000:.1f} ms; in it "
          f"{len(late)} writes of the tenant and {len(others)} of the neighbour failed: {late[0][1] if late else '-'}")
    # Nobody has told the tenant's application that it lives elsewhere: given back its right, it writes at the source.
    time.sleep(0.5)
    stray = [took for began_at, took in tenant.took if began_at > pause]
    print(f"writes of the tenant at the source after it had moved: {len(stray)}, acknowledged and at the target never")
    tenant.stopping = neighbour.stopping = True
    tenant.join()
    neighbour.join()
    assert failed == len([f for f in neighbour.failed if f[0] < began])


def main():
    directory = tempfile.mkdtemp(prefix="native-move-")
    os.chmod(directory, 0o755)
    clusters = []
    try:
        clusters = [Cluster(os.path.join(directory, name)) for name in ("source", "target")]
        move(*clusters)
    finally:
        for cluster in clusters:
            cluster.stop()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
