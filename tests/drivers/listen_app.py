"""psycopg and asyncpg: a listener for each tenant, on one channel, while all tenants notify it."""

import asyncio
import threading

import asyncpg
import psycopg
from app import CLIENTS, INPUT, ROUNDS, URLS, done, own

EXPECTED = CLIENTS * ROUNDS


def notify(tenant, url, number):
    with psycopg.connect(url, autocommit=True) as conn:
        for n in range(ROUNDS):
            with conn.transaction():
                conn.execute("INSERT INTO leads (first_name, last_name) VALUES (%s, %s)", (f"{tenant} x", str(n)))
                conn.execute("SELECT pg_notify('news', %s)", (f"{tenant} {number} {n}",))


def everybody_notifies():
    errors = []

    def run(tenant, number):
        try:
            notify(tenant, URLS[tenant], number)
        except BaseException as error:  # noqa: BLE001
            errors.append(repr(error))

    threads = [threading.Thread(target=run, args=(t, n)) for t in URLS for n in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def check(tenant, payloads):
    own(tenant, payloads)
    for number in range(CLIENTS):
        in_order = [p for p in payloads if p.startswith(f"{tenant} {number} ")]
        assert in_order == [f"{tenant} {number} {n}" for n in range(ROUNDS)], payloads


def with_psycopg():
    listeners = {}
    for tenant, url in URLS.items():
        listeners[tenant] = psycopg.connect(url, autocommit=True)
        listeners[tenant].execute("LISTEN news")
    errors = everybody_notifies()
    for tenant, conn in listeners.items():
        payloads = []
        for note in conn.notifies():
            payloads.append(note.payload)
            if len(payloads) == EXPECTED:
                break
        check(tenant, payloads)
        conn.execute("UNLISTEN news")
        conn.close()
    done(errors)


async def with_asyncpg():
    heard = {tenant: [] for tenant in URLS}
    all_there = asyncio.Event()
    listeners = {}

    def listener(tenant):
        def called(_connection, _pid, _channel, payload):
            heard[tenant].append(payload)
            if all(len(payloads) >= EXPECTED for payloads in heard.values()):
                all_there.set()

        return called

    for tenant, url in URLS.items():
        conn = await asyncpg.connect(url)
        called = listener(tenant)
        await conn.add_listener("news", called)
        listeners[tenant] = (conn, called)
    errors = await asyncio.to_thread(everybody_notifies)
    await asyncio.wait_for(all_there.wait(), 60)
    for tenant, (conn, called) in listeners.items():
        check(tenant, heard[tenant])
        # The session works like any other meanwhile.
        own(tenant, (r["name"] for r in await conn.fetch("SELECT name FROM clients")))
        await conn.remove_listener("news", called)
        await conn.close()
    done(errors)


if INPUT["driver"] == "psycopg":
    with_psycopg()
else:
    asyncio.run(with_asyncpg())
