// node-postgres: one pool for all tenants, and `set_config` in each transaction.
import pg from 'pg';

const { url, tenants, clients, rounds } = JSON.parse(process.argv[2]);
let rows = 0;

function own(tenant, names) {
  if (names.length === 0 || names.some((name) => !name.startsWith(`${tenant} `))) {
    throw new Error(`${tenant} saw ${JSON.stringify(names)}`);
  }
  rows += names.length;
}

const pool = new pg.Pool({ connectionString: url, max: 4 });

// As such applications have it: a transaction for a tenant, whatever is done in it.
async function withTenant(tenant, work) {
  const client = await pool.connect();
  try {
    await client.query('BEGIN');
    await client.query("SELECT set_config('app.tenant_id', $1, true)", [tenant]);
    const result = await work(client);
    await client.query('COMMIT');
    return result;
  } catch (error) {
    await client.query('ROLLBACK');
    throw error;
  } finally {
    client.release();
  }
}

async function request(tenant, number, n) {
  await withTenant(tenant, async (client) => {
    own(tenant, (await client.query('SELECT name FROM clients ORDER BY id')).rows.map((row) => row.name));
    const named = { name: 'by-id', text: 'SELECT name FROM clients WHERE id = $1' };
    own(tenant, (await client.query({ ...named, values: [1 + (n % 3)] })).rows.map((row) => row.name));
    const insert = 'INSERT INTO leads (first_name, last_name) VALUES ($1, $2) RETURNING id, tenant_id';
    const lead = (await client.query(insert, [`${tenant} ${number}`, `${n}`])).rows[0];
    if (lead.tenant_id !== tenant) throw new Error(`a lead of ${lead.tenant_id}`);
    await client.query('SAVEPOINT s');
    const error = await client.query('SELECT 1 / $1::int', [0]).catch((e) => e);
    if (error.code !== '22012') throw new Error(`no error: ${error}`);
    await client.query('ROLLBACK TO s');
    own(tenant, (await client.query('SELECT first_name FROM leads')).rows.map((row) => row.first_name));
  });
  const failed = await withTenant(tenant, async (client) => {
    await client.query('INSERT INTO leads (first_name) VALUES ($1)', ['never']);
    await client.query('SELECT 1 / $1::int', [0]);
  }).catch((error) => error);
  if (failed.code !== '22012') throw new Error(`no error: ${failed}`);
  const without = await pool.query('SELECT name FROM clients').catch((error) => error);
  if (without.code !== '55000') throw new Error(`no tenant, and no error: ${JSON.stringify(without.rows)}`);
}

async function client(number) {
  for (let n = 0; n < rounds * tenants.length; n++) {
    await request(tenants[(n * 7 + number) % tenants.length], number, n);
  }
}

try {
  await Promise.all(Array.from({ length: clients * tenants.length }, (_, n) => client(n)));
} finally {
  await pool.end();
}
console.log(JSON.stringify({ rows }));
