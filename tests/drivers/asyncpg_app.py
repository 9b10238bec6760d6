"""asyncpg: pools that reset their connections, cached prepared statements, binary COPY, cursors."""

import asyncio

import asyncpg
from app import CLIENTS, ROUNDS, URLS, done, own


async def client(tenant, pool, number):
    for n in range(ROUNDS):
        # Each time another connection of the pool, which says RESET ALL when it is given back.
        async with pool.acquire() as conn:
            own(tenant, (r["name"] for r in await conn.fetch("SELECT name FROM clients WHERE id <= $1", 3 + n % 2)))
            async with conn.transaction():
                row = await conn.fetchrow(
                    "INSERT INTO leads (first_name, last_name) VALUES ($1, $2) RETURNING id, tenant_id",
                    f"{tenant} {number}",
                    str(n),
                )
                assert row["tenant_id"] == tenant, row
                try:
                    async with conn.transaction():
                        await conn.fetchval("SELECT 1 / $1::int", 0)
                    raise AssertionError("no error")
                except asyncpg.DivisionByZeroError:
                    pass
                async for record in conn.cursor("SELECT first_name FROM leads", prefetch=5):
                    own(tenant, [record["first_name"]])
            statement = await conn.prepare("SELECT first_name FROM leads WHERE id = $1")
            own(tenant, [await statement.fetchval(row["id"])])
            await conn.executemany(
                "INSERT INTO leads (first_name, email) VALUES ($1, $2)",
                [(f"{tenant} {number}", f"{i}@example.com") for i in range(20)],
            )
            records = [(f"{tenant} copied", str(i)) for i in range(50)]
            columns = ["first_name", "last_name"]
            await conn.copy_records_to_table("imports", schema_name="scratch", records=records, columns=columns)
        own(tenant, (r["first_name"] for r in await pool.fetch("SELECT first_name FROM leads")))


async def main():
    pools = {}
    for tenant, url in URLS.items():
        pools[tenant] = await asyncpg.create_pool(url, min_size=1, max_size=2)
    try:
        await asyncio.gather(
            *(client(tenant, pool, number) for tenant, pool in pools.items() for number in range(CLIENTS))
        )
    finally:
        for pool in pools.values():
            await asyncio.wait_for(pool.close(), 30)
    done()


asyncio.run(main())
