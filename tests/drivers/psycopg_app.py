"""psycopg 3: server-side prepared statements, pipelines, COPY, cursors, autocommit and not."""

import psycopg
from app import ROUNDS, in_threads, own


def client(tenant, url, number):
    with psycopg.connect(url, prepare_threshold=0, autocommit=True) as conn:
        for n in range(ROUNDS):
            rows = conn.execute("SELECT name FROM clients WHERE id <= %s ORDER BY id", [3 + n % 2]).fetchall()
            own(tenant, (name for (name,) in rows))
            with conn.transaction():
                conn.execute("SET LOCAL statement_timeout = '30s'")
                insert = "INSERT INTO leads (first_name, last_name) VALUES (%s, %s) RETURNING id, tenant_id"
                (lead, owner) = conn.execute(insert, [f"{tenant} {number}", f"round {n}"]).fetchone()
                assert owner == tenant, owner
                with conn.transaction(force_rollback=True):
                    conn.execute("DELETE FROM leads")
            with conn.pipeline():
                results = [conn.execute("SELECT first_name FROM leads WHERE id = %s", [lead]) for _ in range(10)]
                for result in results:
                    own(tenant, [result.fetchone()[0]])
            try:
                conn.execute("SELECT 1 / %s::int", [0])
                raise AssertionError("no error")
            except psycopg.errors.DivisionByZero:
                pass
            with conn.cursor() as cursor:
                cursor.executemany(
                    "INSERT INTO leads (first_name, email) VALUES (%s, %s)",
                    [(f"{tenant} {number}", f"{i}@example.com") for i in range(5)],
                )
            with conn.cursor() as cursor, cursor.copy("COPY scratch.imports (first_name, last_name) FROM STDIN") as copy:
                for i in range(50):
                    copy.write_row((f"{tenant} copied", str(i)))
            with conn.transaction(), conn.cursor("by_few") as cursor:
                cursor.itersize = 7
                cursor.execute("SELECT first_name FROM leads")
                own(tenant, (name for (name,) in cursor))
            with conn.cursor() as cursor, cursor.copy("COPY (SELECT first_name FROM leads) TO STDOUT") as copy:
                own(tenant, (name for (name,) in copy.rows()))
    # As most applications have it: a transaction begins by itself.
    with psycopg.connect(url) as conn:
        own(tenant, (name for (name,) in conn.execute("SELECT name FROM clients")))
        conn.rollback()
        own(tenant, (name for (name,) in conn.execute("SELECT name FROM clients", prepare=True)))
        conn.commit()


in_threads(client)
