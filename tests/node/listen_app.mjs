// node-postgres: a listener for each tenant, on one channel, while all tenants notify it.
import pg from 'pg';

const { urls, clients, rounds } = JSON.parse(process.argv[2]);
const expected = clients * rounds;
const heard = {};
const listeners = {};
let rows = 0;

for (const [tenant, url] of Object.entries(urls)) {
  heard[tenant] = [];
  listeners[tenant] = new pg.Client({ connectionString: url });
  await listeners[tenant].connect();
  listeners[tenant].on('notification', (note) => heard[tenant].push(note.payload));
  await listeners[tenant].query('LISTEN news');
}

async function notify(tenant, number) {
  const client = new pg.Client({ connectionString: urls[tenant] });
  await client.connect();
  for (let n = 0; n < rounds; n++) {
    await client.query('BEGIN');
    await client.query('INSERT INTO leads (first_name, last_name) VALUES ($1, $2)', [`${tenant} x`, `${n}`]);
    await client.query("SELECT pg_notify('news', $1)", [`${tenant} ${number} ${n}`]);
    await client.query('COMMIT');
  }
  await client.end();
}

const work = Object.keys(urls).flatMap((tenant) =>
  Array.from({ length: clients }, (_, number) => notify(tenant, number)),
);
await Promise.all(work);
const until = Date.now() + 60_000;
while (Object.values(heard).some((payloads) => payloads.length < expected)) {
  if (Date.now() > until) throw new Error(`heard ${JSON.stringify(heard)}`);
  await new Promise((wake) => setTimeout(wake, 5));
}
for (const [tenant, payloads] of Object.entries(heard)) {
  const foreign = payloads.filter((payload) => !payload.startsWith(`${tenant} `));
  if (foreign.length > 0) throw new Error(`${tenant} heard ${foreign}`);
  for (let number = 0; number < clients; number++) {
    const own = payloads.filter((payload) => payload.startsWith(`${tenant} ${number} `));
    const all = Array.from({ length: rounds }, (_, n) => `${tenant} ${number} ${n}`);
    if (JSON.stringify(own) !== JSON.stringify(all)) throw new Error(`${tenant} heard ${payloads}`);
  }
  rows += payloads.length;
  await listeners[tenant].query('UNLISTEN *');
  await listeners[tenant].end();
}
console.log(JSON.stringify({ rows }));
