// node-postgres with state in its session: temporary tables, LISTEN, SET, named statements, cursors, advisory locks.
import pg from 'pg';

const { url, tenant, rounds } = JSON.parse(process.argv[2]);

function own(names) {
  if (names.length === 0 || names.some((name) => !name.startsWith(`${tenant} `))) {
    throw new Error(`${tenant} saw ${JSON.stringify(names)}`);
  }
}

function expect(found, wanted) {
  if (found !== wanted) throw new Error(`${found}, and not ${wanted}`);
}

const client = new pg.Client({ connectionString: url });
const other = new pg.Client({ connectionString: url });
await Promise.all([client.connect(), other.connect()]);
await client.query("SET work_mem = '11MB'");
await client.query('LISTEN news');
for (let n = 0; n < rounds; n++) {
  const heard = new Promise((resolve) => client.once('notification', (message) => resolve(message.payload)));
  await client.query('CREATE TEMP TABLE kept AS SELECT generate_series(1, 40) AS x');
  const count = await client.query('SELECT count(*)::int AS n FROM kept WHERE x > $1', [n]);
  expect(count.rows[0].n, 40 - n);
  expect((await client.query('SELECT pg_try_advisory_lock(15) AS got')).rows[0].got, true);
  const named = await client.query({ name: 'by-id', text: 'SELECT name FROM clients WHERE id <= $1', values: [3] });
  own(named.rows.map((row) => row.name));
  await client.query('BEGIN');
  await client.query('DECLARE few CURSOR FOR SELECT name FROM clients');
  own((await client.query('FETCH 2 FROM few')).rows.map((row) => row.name));
  await client.query('COMMIT');
  await client.query('SELECT pg_advisory_unlock(15)');
  await client.query('DROP TABLE kept');
  await other.query("SELECT pg_notify('news', $1)", [`${tenant} ${n}`]);
  own([await heard]);
  expect((await client.query('SHOW work_mem')).rows[0].work_mem, '11MB');
}
await Promise.all([client.end(), other.end()]);
