"""The console by drivers: what monitoring tools in Python do."""

import asyncio
import json
import sys

import asyncpg
import psycopg
import psycopg2

URL = json.loads(sys.argv[1])["url"]


def told(config, pools, stats):
    """From rows that are sequences: what the test compares."""
    (value,) = (row[1] for row in config if row[0] == "max_client_conn")
    xacts = sum(int(row[2]) for row in stats if row[0] == "crm@s0")
    return {"max_client_conn": value, "pools": len(pools), "xacts": xacts}


def by_psycopg():
    with psycopg.connect(URL, autocommit=True) as conn:
        answer = told(*(conn.execute(f"SHOW {what}").fetchall() for what in ("CONFIG", "POOLS", "STATS")))
        conn.execute("PAUSE s0")
        conn.execute("RESUME s0")
        # Prepared on the server, with a parameter.
        for _ in range(3):
            rows = conn.execute("SHOW TENANTS LIKE %s", ["a%"], prepare=True, binary=True).fetchall()
            assert [row[0] for row in rows] == ["acme"], rows
        try:
            conn.execute("SHOW NOTHING")
            raise AssertionError("no error")
        except psycopg.errors.SyntaxError:
            pass
    # Not autocommit: it says BEGIN before, and COMMIT at the end.
    with psycopg.connect(URL) as conn:
        assert conn.execute("SHOW VERSION").fetchone()[0].startswith("PgBouncer 1.25.2")
    return answer


def by_psycopg2():
    conn = psycopg2.connect(URL)
    conn.set_session(autocommit=True)
    with conn.cursor() as cursor:
        tables = []
        for what in ("CONFIG", "POOLS", "STATS"):
            cursor.execute(f"SHOW {what}")
            tables.append(cursor.fetchall())
    conn.close()
    return told(*tables)


async def by_asyncpg():
    conn = await asyncpg.connect(URL)
    answer = told(*[await conn.fetch(f"SHOW {what}") for what in ("CONFIG", "POOLS", "STATS")])
    lists = await conn.fetch("SHOW LISTS")
    assert all(isinstance(row["items"], int) for row in lists), lists
    assert await conn.fetchval("SELECT 1") == 1
    rows = await conn.fetch("SHOW TENANTS LIKE $1 LIMIT 1", "g%")
    assert [row["tenant"] for row in rows] == ["globex"], rows
    await conn.execute("RELOAD")
    await conn.close()
    return answer


print(json.dumps({"psycopg": by_psycopg(), "psycopg2": by_psycopg2(), "asyncpg": asyncio.run(by_asyncpg())}))
