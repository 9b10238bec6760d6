// The control plane's page. Everything it shows is put in as text, never as markup: ids are what
// strangers choose. It asks the API for everything, with the token that was typed in.
"use strict";

const REFRESH_MS = 5000;
// Where something is under way.
const LIVE_MS = 1000;
const PAGES = ["overview", "tenants", "shards", "moves", "operations", "routers", "audit"];
const $ = (id) => document.getElementById(id);
let timer = null;
let shownAt = 0;
let refused = "";

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") node.className = value;
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== false && value !== null) node.setAttribute(key, value === true ? "" : value);
  }
  for (const child of children.flat()) {
    node.append(child instanceof Node ? child : document.createTextNode(child ?? ""));
  }
  return node;
}

const token = () => sessionStorage.getItem("token");

async function api(path, method = "GET", body = undefined) {
  const used = token();
  const headers = { authorization: `Bearer ${used}` };
  if (method !== "GET") headers["if-match"] = "*";
  if (method === "POST") headers["idempotency-key"] = crypto.randomUUID();
  if (body !== undefined) headers["content-type"] = "application/json";
  const answer = await fetch(path, { method, headers, body: body && JSON.stringify(body), cache: "no-store" });
  const value = answer.status === 204 ? null : await answer.json().catch(() => null);
  // Another may have been typed in since.
  if (answer.status === 401 && used !== null && token() === used) {
    refused = "The control plane does not take this token: it is wrong, or has expired.";
    sessionStorage.removeItem("token");
    render();
  }
  if (!answer.ok) throw new Error(value?.detail ?? `${answer.status} ${answer.statusText}`);
  return value;
}

const where = () => {
  const [page, ...rest] = location.hash.replace(/^#\/?/, "").split("/");
  return { page: PAGES.includes(page) ? page : "overview", id: rest.length ? decodeURIComponent(rest.join("/")) : null };
};

const mayChange = () => $("changes").checked;

function cell(value) {
  if (value === null || value === undefined || value === "") return el("td", { class: "empty" }, "–");
  if (value instanceof Node) return el("td", {}, value);
  if (typeof value === "object") return el("td", {}, el("code", {}, JSON.stringify(value)));
  const text = String(value);
  return el("td", { class: /^[a-z-]{2,12}$/.test(text) ? text : "" }, text);
}

let order = { column: null, down: false };

function table(columns, rows, empty) {
  if (!rows.length) return el("p", { class: "empty" }, empty);
  const of = (row, column) => (typeof column.value === "function" ? column.value(row) : row[column.value]);
  const by = columns.find((c) => c.title === order.column);
  const sorted = [...rows];
  if (by) {
    sorted.sort((a, b) => {
      const [x, y] = [of(a, by), of(b, by)].map((v) => (v instanceof Node ? v.textContent : v ?? ""));
      const compared = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
      return order.down ? -compared : compared;
    });
  }
  const head = columns.map((c) => el("th", { scope: "col",
    "aria-sort": c.title === order.column ? (order.down ? "descending" : "ascending") : false },
    el("button", { type: "button", onclick: () => {
      order = { column: c.title, down: order.column === c.title && !order.down };
      render(true);
    } }, c.title)));
  return el("div", { class: "scroll" }, el("table", {},
    el("thead", {}, el("tr", {}, head)),
    el("tbody", {}, sorted.map((row) => el("tr", {}, columns.map((c) => cell(of(row, c))))))));
}

const card = (title, value, note) => el("div", { class: "card" }, title, el("b", {}, value), el("span", { class: "hint" }, note ?? ""));
const link = (page, id) => el("a", { href: `#/${page}/${encodeURIComponent(id)}` }, id);

async function change(path, method, question) {
  if (!confirm(question)) return;
  try { await api(path, method, method === "POST" ? {} : undefined); } catch (error) { alert(error.message); }
  render();
}

const pages = {
  async overview() {
    const [counts, top, routers, alerts] = await Promise.all([
      api("v1/topology"), api("v1/usage/top?limit=10"), api("v1/routers"), api("v1/alerts?open=true")]);
    const alive = routers.items.filter((r) => r.alive);
    return [
      el("div", { class: "cards" },
        card("Tenants", counts.tenants, `${counts.suspended} suspended`), card("Shards", counts.shards),
        card("Users", counts.users), card("Topology", counts.version, "version"),
        card("Routers", alive.length, `${alive.filter((r) => r.behind > 0).length} behind the catalog`),
        card("Clients", alive.reduce((sum, r) => sum + r.clients, 0)), card("Open alerts", alerts.items.length)),
      el("h2", {}, `Busiest tenants of the last ${top.seconds} seconds`),
      table([{ title: "Tenant", value: (u) => link("tenants", u.tenant) }, { title: "Transactions", value: "transactions" },
        { title: "Errors", value: "errors" }, { title: "Server ms", value: (u) => Math.round(u.server_us / 1000) },
        { title: "Wait ms", value: (u) => Math.round(u.wait_us / 1000) }, { title: "Connections", value: "connections" }],
        top.items, "Nobody has done anything."),
      el("h2", {}, "Open alerts"),
      table([{ title: "Kind", value: "kind" }, { title: "Tenant", value: "tenant" }, { title: "Subject", value: "subject" },
        { title: "Since", value: "raised_at" }, { title: "Detail", value: "detail" }], alerts.items, "None."),
    ];
  },

  async tenants(id) {
    return id === null ? tenantList() : tenantPage(id);
  },

  async shards() {
    const shards = (await api("v1/shards")).items;
    return [table([{ title: "Name", value: "name" }, { title: "Host", value: "host" }, { title: "Port", value: "port" },
      { title: "Database", value: "database" }, { title: "Buckets", value: "buckets" },
      { title: "Placements", value: "placements" }, { title: "Weight", value: "weight" },
      { title: "Cordoned", value: "cordoned" }], shards, "No shards yet: switchyard shard add NAME --url URL")];
  },

  async moves(id) {
    return id === null ? [moveTable((await api("v1/moves?limit=200")).items)] : movePage(id);
  },

  async operations() {
    const operations = (await api("v1/operations?limit=200")).items;
    const progress = (o) => o.progress && `${o.progress.done}${o.progress.total ? ` of ${o.progress.total}` : ""} ${o.progress.unit ?? ""}`;
    return [table([{ title: "Id", value: "id" }, { title: "Kind", value: "kind" }, { title: "Target", value: "target" },
      { title: "State", value: "state" }, { title: "Phase", value: "phase" }, { title: "Progress", value: progress },
      { title: "By", value: "created_by" }, { title: "Begins", value: "not_before" }, { title: "Ended", value: "finished_at" },
      { title: "Next", value: (o) => o.next_steps.join("; ") }], operations, "None yet.")];
  },

  async routers() {
    const routers = (await api("v1/routers")).items;
    return [table([{ title: "Name", value: "name" }, { title: "Address", value: "address" }, { title: "Version", value: "version" },
      { title: "Alive", value: "alive" }, { title: "Clients", value: "clients" }, { title: "Topology", value: "topology" },
      { title: "Behind", value: "behind" }, { title: "Started", value: "started_at" }, { title: "Seen", value: "seen_at" }],
      routers, "No router has reported within a day.")];
  },

  async audit() {
    const deeds = (await api("v1/audit?limit=200")).items;
    return [el("p", { class: "hint" }, "To check the chain: ", el("code", {}, "switchyard audit verify")),
      table([{ title: "Id", value: "id" }, { title: "At", value: "at" }, { title: "Actor", value: "actor" },
        { title: "From", value: "source" }, { title: "Action", value: "action" }, { title: "Kind", value: "kind" },
        { title: "Target", value: "target" }, { title: "Outcome", value: "outcome" }], deeds, "Nothing yet.")];
  },
};

let search = "";

async function tenantList() {
  const query = search ? `&search=${encodeURIComponent(search)}` : "";
  const { items, next } = await api(`v1/tenants?limit=200${query}`);
  const box = el("input", { type: "search", value: search, placeholder: "id or name", "aria-label": "Search tenants",
    onchange: (event) => { search = event.target.value; render(true); } });
  return [el("div", { class: "tools" }, box, el("span", { class: "hint" }, next ? "the first 200" : `${items.length} tenants`)),
    table([{ title: "Id", value: (t) => link("tenants", t.id) }, { title: "Name", value: "name" }, { title: "State", value: "state" },
      { title: "Shard", value: "shard" }, { title: "Plan", value: "plan" }, { title: "Epoch", value: "epoch" },
      { title: "Made", value: "created_at" }], items, "None: switchyard tenant create ID")];
}

const moveState = (m) => m.outcome ?? (m.wish === "pause" ? `${m.phase}, paused` : m.phase);

function moveProgress(m) {
  const { tables, tables_copied: copied, bytes } = m.progress ?? {};
  return tables === undefined ? null : `${copied} of ${tables} tables, ${bytes} bytes`;
}

function moveTable(moves) {
  return table([{ title: "Move", value: (m) => link("moves", m.id) }, { title: "Tenant", value: (m) => link("tenants", m.tenant) },
    { title: "From", value: "source" }, { title: "To", value: "target" }, { title: "Kind", value: "kind" },
    { title: "State", value: moveState }, { title: "Copied", value: moveProgress }, { title: "Made", value: "created_at" },
    { title: "Error", value: "error" }], moves, "No tenant has been moved yet.");
}

async function movePage(id) {
  const path = `v1/moves/${encodeURIComponent(id)}`;
  const [move, events] = await Promise.all([api(path), api(`${path}/events`)]);
  const act = (title, name, question) => el("button", { type: "button", disabled: !mayChange(),
    onclick: () => change(`${path}/${name}`, "POST", question) }, title);
  const open = move.outcome === null;
  const moved = move.phase === "moved";
  const acts = [
    open && !moved && move.wish !== "pause" ? act("Pause", "pause", "Pause this move?") : "",
    open && move.wish === "pause" ? act("Resume", "resume", "Go on with this move?") : "",
    open && !moved ? act("Abort", "abort", `Leave ${move.tenant} on ${move.source}?`) : "",
    moved ? act("Complete", "complete", `Delete what ${move.tenant} has left on ${move.source}? There is no way back then.`) : "",
    moved ? act("Roll back", "rollback", `Take ${move.tenant} back to ${move.source}?`) : "",
  ];
  const fields = { ...move, copied: moveProgress(move), progress: null, plan: null, receipt: null };
  return [
    el("h2", { "data-live": open && !moved }, `Move ${move.id}: ${move.tenant} from ${move.source} to ${move.target}`),
    el("div", { class: "tools" }, acts, open ? changesHint() : ""),
    el("p", { class: "hint" }, "The same on the command line: ", el("code", {}, `switchyard move watch ${move.id}`)),
    table([{ title: "Field", value: 0 }, { title: "Value", value: 1 }], Object.entries(fields).filter(([, v]) => v !== null), ""),
    el("h2", {}, "What has happened"),
    table([{ title: "At", value: "at" }, { title: "Phase", value: "phase" }, { title: "What", value: "what" }], events.items, "Nothing yet."),
  ];
}

const changesHint = () => (mayChange() ? "" : el("span", { class: "hint" }, "read-only: tick “allow changes” above"));

/** The choice of a shard to move a tenant to. */
function mover(tenant, shards) {
  const others = shards.filter((s) => s.name !== tenant.shard && !s.cordoned);
  if (!others.length) return "";
  const to = el("select", { "aria-label": "Shard to move to", disabled: !mayChange() },
    others.map((s) => el("option", { value: s.name }, s.name)));
  const start = async () => {
    if (!confirm(`Move ${tenant.id} to ${to.value}? Its applications go on meanwhile.`)) return;
    try {
      const move = await api("v1/moves", "POST", { tenant: tenant.id, to: to.value });
      location.hash = `#/moves/${move.id}`;
    } catch (error) { alert(error.message); }
  };
  return [to, el("button", { type: "button", disabled: !mayChange(), onclick: start }, "Move")];
}

async function tenantPage(id) {
  const path = `v1/tenants/${encodeURIComponent(id)}`;
  const [tenant, limits, health, usage, moves, shards] = await Promise.all([
    api(path), api(`${path}/limits`), api(`${path}/health`), api(`${path}/usage?span=day&limit=31`),
    api(`v1/moves?tenant=${encodeURIComponent(id)}&limit=10`), api("v1/shards")]);
  const act = (title, name, question) => el("button", { type: "button", disabled: !mayChange(),
    onclick: () => change(`${path}/${name}`, "POST", question) }, title);
  const fields = { ...tenant, health: health.status, reasons: health.reasons.length ? health.reasons : null };
  return [
    el("h2", {}, id),
    el("div", { class: "tools" }, act("Suspend", "suspend", `Serve ${id} no more?`), act("Read-only", "read-only", `Let ${id} read only?`),
      act("Resume", "resume", `Serve ${id} again?`), tenant.state === "deleting" ? act("Undelete", "undelete", `Keep ${id}?`) : "",
      mover(tenant, shards.items), changesHint()),
    el("p", { class: "hint" }, "The same on the command line: ", el("code", {}, `switchyard tenant show '${id.replaceAll("'", "'\\''")}'`)),
    table([{ title: "Field", value: 0 }, { title: "Value", value: 1 }], Object.entries(fields).filter(([, v]) => v !== null), ""),
    moves.items.length ? [el("h2", {}, "Moves"), moveTable(moves.items)] : [],
    el("h2", {}, "Limits that hold"),
    table([{ title: "Limit", value: 0 }, { title: "Value", value: 1 }], Object.entries(limits.effective), "None."),
    el("h2", {}, "Usage by day"),
    table([{ title: "Day", value: (u) => u.at.slice(0, 10) }, { title: "Transactions", value: "transactions" },
      { title: "Errors", value: "errors" }, { title: "Bytes in", value: "bytes_in" }, { title: "Bytes out", value: "bytes_out" },
      { title: "Server ms", value: (u) => Math.round(u.server_us / 1000) }, { title: "Storage", value: "storage" }],
      usage.items, "Nothing was reported yet."),
  ].flat();
}

function login() {
  const form = $("login").content.cloneNode(true);
  form.querySelector("form").addEventListener("submit", (event) => {
    event.preventDefault();
    refused = "";
    sessionStorage.setItem("token", new FormData(event.target).get("token").trim());
    render(true);
  });
  const said = form.querySelector("[role=alert]");
  said.textContent = refused;
  said.hidden = !refused;
  $("status").textContent = "";
  $("page").replaceChildren(form);
}

let rendering = 0;

/** Shows the page anew; `whole` says that nothing is being typed or chosen that has to stay. */
async function render(whole = false) {
  clearTimeout(timer);
  const known = token() !== null;
  $("leave").hidden = $("changes-label").hidden = !known;
  const { page, id } = where();
  $("tabs").replaceChildren(...(known ? PAGES : []).map((p) =>
    el("a", { href: `#/${p}`, "aria-current": p === page ? "page" : false }, p[0].toUpperCase() + p.slice(1))));
  const mine = ++rendering;
  if (!known) return login();
  try {
    const content = await pages[page](id);
    if (mine !== rendering) return;
    const active = document.activeElement;
    const busy = $("page").contains(active) && ["INPUT", "SELECT"].includes(active.tagName);
    if (whole || !busy) {
      const searching = busy && active.type === "search";
      $("page").replaceChildren(...content);
      if (searching) $("page").querySelector("input[type=search]")?.focus();
    }
    shownAt = Date.now();
    $("status").textContent = "";
  } catch (error) {
    if (mine !== rendering || token() === null) return;
    const seconds = Math.round((Date.now() - shownAt) / 1000);
    $("status").className = "stale";
    $("status").textContent = shownAt ? `as of ${seconds} s ago: ${error.message}` : error.message;
    if (!shownAt) $("page").replaceChildren(el("p", { class: "error" }, error.message));
  }
  timer = setTimeout(render, $("page").querySelector("[data-live]") ? LIVE_MS : REFRESH_MS);
}

addEventListener("hashchange", () => { shownAt = 0; order = { column: null, down: false }; render(true); $("page").focus(); });
$("leave").addEventListener("click", () => { sessionStorage.removeItem("token"); refused = ""; render(); });
$("changes").addEventListener("change", () => render(true));
addEventListener("keydown", (event) => {
  if (event.key === "/" && document.activeElement.tagName !== "INPUT") {
    event.preventDefault();
    $("page").querySelector("input[type=search]")?.focus();
  }
});
render();
