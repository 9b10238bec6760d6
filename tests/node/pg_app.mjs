// node-postgres: pools, named and unnamed statements, transactions, errors, many queries at once.
import pg from 'pg';

const { urls, clients, rounds } = JSON.parse(process.argv[2]);
let rows = 0;

function own(tenant, names) {
  if (names.length === 0 || names.some((name) => !name.startsWith(`${tenant} `))) {
    throw new Error(`${tenant} saw ${JSON.stringify(names)}`);
  }
  rows += names.length;
}

async function client(tenant, pool, number) {
  for (let n = 0; n < rounds; n++) {
    const simple = await pool.query('SELECT name FROM clients ORDER BY id');
    own(tenant, simple.rows.map((row) => row.name));
    const several = await Promise.all(
      [1, 2, 3].map((id) => pool.query('SELECT name FROM clients WHERE id = $1', [id])),
    );
    several.forEach((result) => own(tenant, result.rows.map((row) => row.name)));
    const conn = await pool.connect();
    try {
      const named = { name: 'by-id', text: 'SELECT name FROM clients WHERE id = $1' };
      own(tenant, (await conn.query({ ...named, values: [1 + (n % 3)] })).rows.map((row) => row.name));
      await conn.query('BEGIN');
      const insert = 'INSERT INTO leads (first_name, last_name) VALUES ($1, $2) RETURNING id, tenant_id';
      const lead = (await conn.query(insert, [`${tenant} ${number}`, `${n}`])).rows[0];
      if (lead.tenant_id !== tenant) throw new Error(`a lead of ${lead.tenant_id}`);
      await conn.query('SAVEPOINT s');
      const error = await conn.query('SELECT 1 / $1::int', [0]).catch((e) => e);
      if (error.code !== '22012') throw new Error(`no error: ${error}`);
      await conn.query('ROLLBACK TO s');
      await conn.query('COMMIT');
      own(tenant, (await conn.query({ ...named, values: [2] })).rows.map((row) => row.name));
      const back = await conn.query('SELECT first_name FROM leads WHERE id = $1', [lead.id]);
      own(tenant, back.rows.map((row) => row.first_name));
    } finally {
      conn.release();
    }
  }
}

const pools = Object.entries(urls).map(([tenant, connectionString]) => {
  return [tenant, new pg.Pool({ connectionString, max: 2 })];
});
try {
  await Promise.all(
    pools.flatMap(([tenant, pool]) => Array.from({ length: clients }, (_, n) => client(tenant, pool, n))),
  );
} finally {
  await Promise.all(pools.map(([, pool]) => pool.end()));
}
console.log(JSON.stringify({ rows }));
