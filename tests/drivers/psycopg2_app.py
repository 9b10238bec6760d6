"""psycopg2: the simple protocol, transactions that begin by themselves, named cursors, COPY."""

import io

import psycopg2
import psycopg2.extras
from app import ROUNDS, in_threads, own


def client(tenant, url, number):
    conn = psycopg2.connect(url)
    try:
        for n in range(ROUNDS):
            with conn, conn.cursor() as cursor:
                cursor.execute("SELECT name FROM clients WHERE id <= %s", [3 + n % 2])
                own(tenant, (name for (name,) in cursor))
                psycopg2.extras.execute_values(
                    cursor,
                    "INSERT INTO leads (first_name, last_name) VALUES %s",
                    [(f"{tenant} {number}", str(i)) for i in range(20)],
                )
            with conn, conn.cursor("by_few") as cursor:
                cursor.itersize = 7
                cursor.execute("SELECT first_name FROM leads")
                own(tenant, (name for (name,) in cursor))
            with conn, conn.cursor() as cursor:
                copied = "".join(f"{tenant} copied\t{i}\n" for i in range(50))
                cursor.copy_expert("COPY scratch.imports (first_name, last_name) FROM STDIN", io.StringIO(copied))
                out = io.StringIO()
                cursor.copy_expert("COPY (SELECT first_name FROM leads) TO STDOUT", out)
                own(tenant, out.getvalue().splitlines())
            try:
                with conn, conn.cursor() as cursor:
                    cursor.execute("DELETE FROM leads")
                    cursor.execute("SELECT 1 / 0")
                raise AssertionError("no error")
            except psycopg2.errors.DivisionByZero:
                pass
            with conn, conn.cursor() as cursor:
                cursor.execute("SELECT first_name FROM leads")
                own(tenant, (name for (name,) in cursor))
        conn.autocommit = True
        with conn.cursor() as cursor:
            cursor.execute("SELECT tenant_id || ' ' FROM leads")
            own(tenant, (name for (name,) in cursor))
    finally:
        conn.close()


in_threads(client)
