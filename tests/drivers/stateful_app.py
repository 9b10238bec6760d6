"""Applications that keep state in their session (temporary tables, LISTEN, server-side cursors, prepared statements, SET,
advisory locks), while the clients of other tenants keep the same few server connections busy."""

import asyncio
import os
import sys
import threading

from app import INPUT, ROUNDS, URLS, done, own

TENANT = INPUT["tenant"]
URL = URLS[TENANT]
CALM = threading.Event()


def expect(found, wanted):
    assert found == wanted, f"{found!r}, and not {wanted!r}"


def busy(tenant, url, errors):
    """Short transactions with settings, locks and statements of their own, one after the other."""
    import psycopg

    try:
        with psycopg.connect(url, autocommit=True, prepare_threshold=0) as conn:
            conn.execute(f"SET application_name = 'busy {tenant}'")
            conn.execute("SET work_mem = '5MB'")
            while not CALM.is_set():
                own(tenant, (n for (n,) in conn.execute("SELECT name FROM clients WHERE id <= %s", [3])))
                with conn.transaction():
                    conn.execute("SET LOCAL search_path = scratch, public")
                    conn.execute("SELECT pg_advisory_xact_lock(7)")
                    conn.execute("INSERT INTO leads (first_name) VALUES (%s)", [f"{tenant} busy"])
                    conn.execute("NOTIFY news, 'foreign'")
                expect(conn.execute("SHOW work_mem").fetchone()[0], "5MB")
                expect(conn.execute("SHOW application_name").fetchone()[0], f"busy {tenant}")
    except BaseException as error:  # noqa: BLE001
        import traceback

        errors.append(f"busy {tenant}: {error!r}\n{traceback.format_exc()}")


def by_psycopg():
    import psycopg

    with psycopg.connect(URL, autocommit=True, prepare_threshold=0) as conn, psycopg.connect(URL, autocommit=True) as other:
        conn.execute("SET work_mem = '7MB'")
        conn.execute("SET app.note = 'mine'")
        conn.execute("LISTEN news")
        for n in range(ROUNDS):
            conn.execute("CREATE TEMP TABLE kept (x int)")
            conn.execute("INSERT INTO kept SELECT generate_series(1, 50)")
            expect(conn.execute("SELECT count(*) FROM kept WHERE x > %s", [n]).fetchone()[0], 50 - n)
            assert conn.execute("SELECT pg_try_advisory_lock(11)").fetchone()[0]
            own(TENANT, (name for (name,) in conn.execute("SELECT name FROM clients", prepare=True)))
            assert conn.execute("SELECT pg_advisory_unlock(11)").fetchone()[0]
            conn.execute("DROP TABLE kept")
            with conn.transaction(), conn.cursor("few", withhold=True) as cursor:
                cursor.execute("SELECT first_name FROM leads UNION ALL SELECT name FROM clients")
                own(TENANT, (name for (name,) in cursor))
            other.execute("SELECT pg_notify('news', %s)", [f"{TENANT} {n}"])
            heard = next(conn.notifies(timeout=30, stop_after=1))
            own(TENANT, [heard.payload])
            expect(conn.execute("SHOW work_mem").fetchone()[0], "7MB")
            expect(conn.execute("SELECT current_setting('app.note')").fetchone()[0], "mine")


def by_asyncpg():
    import asyncpg

    async def run():
        # It sends LISTEN, UNLISTEN and its resets itself when a connection goes back to its pool.
        async with asyncpg.create_pool(URL, min_size=1, max_size=2) as pool:
            for n in range(ROUNDS):
                heard = asyncio.Queue()
                async with pool.acquire() as conn:
                    await conn.add_listener("news", lambda c, pid, channel, payload: heard.put_nowait(payload))
                    await conn.execute("SET work_mem = '8MB'")
                    await conn.execute("CREATE TEMP TABLE kept (x int)")
                    await conn.copy_records_to_table("kept", records=[(i,) for i in range(30)])
                    expect(await conn.fetchval("SELECT count(*) FROM kept WHERE x >= $1", n), 30 - n)
                    assert await conn.fetchval("SELECT pg_try_advisory_lock(12)")
                    statement = await conn.prepare("SELECT name FROM clients WHERE id <= $1")
                    own(TENANT, [row["name"] for row in await statement.fetch(3)])
                    async with conn.transaction():
                        names = [row["name"] async for row in conn.cursor("SELECT name FROM clients", prefetch=1)]
                        own(TENANT, names)
                    await conn.execute("DROP TABLE kept")
                    await conn.fetchval("SELECT pg_advisory_unlock(12)")
                    async with pool.acquire() as other:
                        await other.execute("SELECT pg_notify('news', $1)", f"{TENANT} {n}")
                    own(TENANT, [await asyncio.wait_for(heard.get(), 30)])
                    expect(await conn.fetchval("SHOW work_mem"), "8MB")
                    await conn.reset_listeners() if hasattr(conn, "reset_listeners") else None
                async with pool.acquire() as conn:
                    # Reset when it went back.
                    assert await conn.fetchval("SHOW work_mem") != "8MB"

    asyncio.run(run())


def by_sqlalchemy():
    from sqlalchemy import create_engine, text

    for driver in ["psycopg", "psycopg2"]:
        engine = create_engine(URL.replace("postgres://", f"postgresql+{driver}://", 1), pool_size=2)
        for n in range(ROUNDS):
            with engine.connect() as conn:
                conn.execute(text("SET work_mem = '9MB'"))
                conn.execute(text("CREATE TEMP TABLE kept AS SELECT generate_series(1, 20) AS x"))
                conn.commit()
                expect(conn.execute(text("SELECT count(*) FROM kept WHERE x > :n"), {"n": n}).scalar(), 20 - n)
                expect(conn.execute(text("SHOW work_mem")).scalar(), "9MB")
                assert conn.execute(text("SELECT pg_try_advisory_lock(13)")).scalar()
                conn.commit()
                streamed = text("SELECT name FROM clients").execution_options(stream_results=True, yield_per=2)
                own(TENANT, conn.execute(streamed).scalars())
                conn.execute(text("PREPARE mine AS SELECT name FROM clients"))
                conn.commit()
                own(TENANT, conn.execute(text("EXECUTE mine")).scalars())
                assert conn.execute(text("SELECT pg_advisory_unlock(13)")).scalar()
                conn.execute(text("DROP TABLE kept"))
                conn.execute(text("DEALLOCATE mine"))
                conn.execute(text("RESET work_mem"))
                conn.commit()
        engine.dispose()


def by_django():
    from urllib.parse import urlsplit

    import django
    from django.conf import settings

    url = urlsplit(URL)
    settings.configure(
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.postgresql",
                "NAME": url.path.lstrip("/"),
                "USER": url.username,
                "PASSWORD": url.password,
                "HOST": url.hostname,
                "PORT": url.port,
                "OPTIONS": {"server_side_binding": True, "sslmode": "disable"},
                "CONN_MAX_AGE": None,
            }
        },
        USE_TZ=True,
    )
    django.setup()
    from django.db import connection, models, transaction

    class Client(models.Model):
        name = models.TextField()

        class Meta:
            app_label = "app"
            managed = False
            db_table = "clients"

    class Lead(models.Model):
        first_name = models.TextField()

        class Meta:
            app_label = "app"
            managed = False
            db_table = "leads"

    for n in range(ROUNDS):
        # A server-side cursor, WITH HOLD as there is no transaction.
        own(TENANT, [client.name for client in Client.objects.order_by("id").iterator(chunk_size=2)])
        with transaction.atomic():
            lead = Lead.objects.create(first_name=f"{TENANT} {n}")
            own(TENANT, [Lead.objects.select_for_update().get(pk=lead.pk).first_name])
        with connection.cursor() as cursor:
            cursor.execute("SET work_mem = '6MB'")
            cursor.execute("CREATE TEMP TABLE kept AS SELECT generate_series(1, 10) AS x")
            cursor.execute("SELECT pg_try_advisory_lock(14)")
            assert cursor.fetchone()[0]
        own(TENANT, Client.objects.values_list("name", flat=True))
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM kept")
            expect(cursor.fetchone()[0], 10)
            cursor.execute("SHOW work_mem")
            expect(cursor.fetchone()[0], "6MB")
            cursor.execute("SELECT pg_advisory_unlock(14)")
            assert cursor.fetchone()[0]
            cursor.execute("DROP TABLE kept")
        if n % 2:
            connection.close()
    connection.close()


def by_node():
    import json
    import subprocess

    script = os.path.join(os.path.dirname(__file__), "..", "node", "stateful_app.mjs")
    asked = json.dumps({"url": URL, "tenant": TENANT, "rounds": ROUNDS})
    subprocess.run(["node", script, asked], check=True)


errors = []
others = [threading.Thread(target=busy, args=(t, u, errors)) for t, u in URLS.items() if t != TENANT]
for thread in others:
    thread.start()
try:
    for name in INPUT["drivers"]:
        print(name, file=sys.stderr, flush=True)
        globals()[f"by_{name}"]()
except BaseException as error:  # noqa: BLE001
    import traceback

    errors.append(f"{name}: {error!r}\n{traceback.format_exc()}")
finally:
    CALM.set()
    for thread in others:
        thread.join()
done(errors)
