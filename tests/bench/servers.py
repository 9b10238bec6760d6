"""The three systems that are compared: a PostgreSQL cluster of our own, PgBouncer and Switchyard before it."""

import os
import re
import shutil
import signal
import subprocess
import time

from system import as_user, cpu_seconds, first_line, free_port, on_cores, stop, unprivileged, wait_for_port

POOL = 20
TENANTS = 8
PASSWORD = "benchmark"
DATABASE = "bench"
SESSION_DATABASE = "bench_session"
HERE = os.path.dirname(os.path.abspath(__file__))

# A megabyte in rows of 105 bytes on the wire, and one in a single row.
SCHEMA = f"""
CREATE ROLE app LOGIN PASSWORD '{PASSWORD}';
CREATE TABLE items (tenant_id text, id int, payload text, PRIMARY KEY (tenant_id, id));
INSERT INTO items SELECT 't' || t, i, repeat(chr(97 + t), 84)
  FROM generate_series(0, {TENANTS - 1}) t, generate_series(1, 10000) i;
ALTER TABLE items ENABLE ROW LEVEL SECURITY;
ALTER TABLE items FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON items USING (tenant_id = current_setting('app.tenant_id', true));
CREATE TABLE wide (payload text);
INSERT INTO wide SELECT repeat('w', 94) FROM generate_series(1, 10000);
CREATE TABLE single (payload text);
ALTER TABLE single ALTER payload SET STORAGE EXTERNAL;
INSERT INTO single VALUES (repeat('s', 1048576));
GRANT SELECT ON ALL TABLES IN SCHEMA public TO app;
"""


def programs():
    """Directory of PostgreSQL's server programs, found as the other scripts of the project find it."""
    script = os.path.join(HERE, "..", "..", "scripts", "pg-bin.sh")
    return subprocess.run(["sh", script], capture_output=True, text=True, check=True).stdout.strip()


def find_pgbouncer():
    """The program named in PGBOUNCER, else the system's."""
    found = shutil.which(os.environ.get("PGBOUNCER", "pgbouncer")) or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")
    if not found:
        raise SystemExit("pgbouncer is not installed: scripts/install-test-deps.sh installs it")
    return found


def version_of(text):
    found = re.search(r"(\d+)\.(\d+)", text or "")
    return (int(found[1]), int(found[2])) if found else (0, 0)


def is_old(version):
    """Whether PgBouncer of this version cannot prepare in transaction pooling."""
    return version < (1, 21)


class Postgres:
    """A cluster with fsync off, SCRAM for everybody over TCP, and the tables of all workloads."""

    name = "direct"
    database = DATABASE

    def __init__(self, directory, cores):
        self.directory, self.cores, self.user, self.port = directory, cores, unprivileged(), free_port()
        self.bin = programs()
        self.data = os.path.join(directory, "data")
        self.process = None

    def start(self):
        self._run("initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N")
        with open(os.path.join(self.data, "pg_hba.conf"), "w") as f:
            f.write("local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n")
        log = os.path.join(self.directory, "postgres.log")
        settings = {
            "port": self.port, "listen_addresses": "127.0.0.1", "unix_socket_directories": self.directory,
            "fsync": "off", "shared_buffers": "256MB", "max_connections": 400, "autovacuum": "off",
            "password_encryption": "scram-sha-256",
        }
        command = [os.path.join(self.bin, "postgres"), "-D", self.data]
        for key, value in settings.items():
            command += ["-c", f"{key}={value}"]
        with on_cores(self.cores), open(log, "w") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out, cwd="/", **as_user(self.user))
        wait_for_port(self.port, self.process, "PostgreSQL", log)
        deadline = time.monotonic() + 30
        while True:  # it listens before it lets anybody in
            try:
                self.sql("postgres", f"CREATE DATABASE {DATABASE}")
                break
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        self._run("pgbench", "-i", "-q", "-s", "10", "-h", self.directory, "-p", str(self.port), "-U", "postgres", DATABASE)
        self.sql(DATABASE, SCHEMA)
        self.sql(DATABASE, "VACUUM ANALYZE")
        self.verifier = self.sql(DATABASE, "SELECT rolpassword FROM pg_authid WHERE rolname = 'app'")
        return self

    def _run(self, program, *arguments):
        path = os.path.join(self.bin, program)
        path = path if os.path.exists(path) else program
        done = subprocess.run([path, *arguments], capture_output=True, text=True, cwd="/", check=False, **as_user(self.user))
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stderr.strip()}")
        return done.stdout.strip()

    def sql(self, database, text):
        return self._run("psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", self.directory,
                         "-p", str(self.port), "-U", "postgres", "-d", database, "-c", text)

    def login(self, tenant):
        """User name of an application of tenant number `tenant`."""
        del tenant
        return "app"

    def stop(self):
        stop(self.process, signal.SIGINT)


class Proxy:
    """What the two proxies have in common: a pinned process in its own directory with a log."""

    database = DATABASE

    def __init__(self, directory, postgres, cores):
        self.directory, self.postgres, self.cores = directory, postgres, cores
        self.port, self.process = free_port(), None
        os.makedirs(directory, exist_ok=True)
        if self.run_as:
            os.chown(directory, self.run_as.pw_uid, self.run_as.pw_gid)

    @property
    def pid(self):
        return self.process.pid

    def path(self, name):
        return os.path.join(self.directory, name)

    def write(self, name, text):
        with open(self.path(name), "w") as f:
            f.write(text)
        return self.path(name)

    def spawn(self, command):
        with on_cores(self.cores), open(self.path("log"), "w") as out:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, **as_user(self.run_as))
        wait_for_port(self.port, self.process, self.name, self.path("log"))
        time.sleep(0.3)
        return self

    def cpu(self):
        return cpu_seconds(self.pid)

    def stop(self):
        stop(self.process)


class PgBouncer(Proxy):
    """The system's PgBouncer: transaction pooling, SCRAM, everything else as it comes."""

    name = "pgbouncer"

    def __init__(self, directory, postgres, cores):
        self.run_as = postgres.user
        super().__init__(directory, postgres, cores)
        self.program = find_pgbouncer()

    def start(self):
        server = f"host=127.0.0.1 port={self.postgres.port} dbname={DATABASE}"
        # Both keep the verifier only, so neither repeats PBKDF2 in a login.
        users = self.write("users.txt", f'"app" "{self.postgres.verifier}"\n')
        # Known since 1.21, and not switched on by default in all versions since.
        prepared = "" if is_old(version_of(first_line([self.program, "--version"]))) else "max_prepared_statements = 200"
        config = self.write("pgbouncer.ini", f"""[databases]
{DATABASE} = {server}
{SESSION_DATABASE} = {server} pool_mode=session pool_size=64
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {self.port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {users}
pool_mode = transaction
default_pool_size = {POOL}
max_client_conn = 10000
{prepared}
""")
        return self.spawn([self.program, config])

    def login(self, tenant):
        del tenant
        return "app"


class Switchyard(Proxy):
    """A router with all that it does in earnest: tenant context, accounting, metrics."""

    name = "switchyard"
    run_as = None

    def __init__(self, directory, postgres, cores, command, workers=1):
        super().__init__(directory, postgres, cores)
        self.command, self.workers, self.http_port = command, workers, free_port()

    def start(self):
        tenants = "".join(f'[[tenants]]\nid = "t{i}"\n' for i in range(TENANTS))
        config = self.write("router.toml", f"""[router]
listen = ["127.0.0.1:{self.port}"]
http_listen = "127.0.0.1:{self.http_port}"
workers = {self.workers}
[context]
variables = {{ "app.tenant_id" = "{{tenant}}" }}
[pool]
size = {POOL}
[[shards]]
name = "s1"
url = "postgres://app:{PASSWORD}@127.0.0.1:{self.postgres.port}/{DATABASE}?sslmode=disable"
[[users]]
name = "app"
tenants = "*"
verifier = '{self.postgres.verifier}'
{tenants}""")
        return self.spawn([part.replace("{config}", config) for part in self.command])

    def login(self, tenant):
        return f"app.t{tenant}"
