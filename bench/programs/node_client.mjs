// The npm SDK's client, measured as client.py measures the others: `node node_client.mjs FOLDER JOB`, FOLDER the one whose
// node_modules has the SDK, JOB as for client.py; prints one line of JSON.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [folder, text] = process.argv.slice(2);
const job = JSON.parse(text);
const require = createRequire(pathToFileURL(`${folder}/`));
const load = (name) => import(pathToFileURL(require.resolve(`@modelcontextprotocol/sdk/${name}`)));
const { Client } = await load("client/index.js");
const { StdioClientTransport } = await load("client/stdio.js");
const { StreamableHTTPClientTransport } = await load("client/streamableHttp.js");

const RATE = 320, AGENTS = 16; // as in client.py
const now = () => performance.now() / 1e3;
const cpu = () => { const used = process.cpuUsage(); return (used.user + used.system) / 1e6; };
const rss = () => process.memoryUsage.rss() / 1e6;
const percentile = (seconds, share) => seconds.sort((a, b) => a - b)[Math.floor((seconds.length - 1) * share)] * 1e6;
const pick = (clients) => clients[Math.floor(Math.random() * clients.length)];

async function open(source) {
  const client = new Client({ name: "bench", version: "1" }, { capabilities: {} });
  const transport = source.url
    ? new StreamableHTTPClientTransport(new URL(source.url))
    : new StdioClientTransport({ command: source.command[0], args: source.command.slice(1) });
  await client.connect(transport);
  await client.listTools();
  const call = async (name, args) => (await client.callTool({ name, arguments: args })).content[0].text;
  return { client, echo: (msg) => call("echo", { msg }), stats: async () => JSON.parse(await call("stats", {})) };
}

let wrong = 0;
async function keepCalling(clients, until, seconds, one) {
  let number = 0;
  for (let started; (started = now()) < until; ) {
    const msg = `hello ${++number}`;
    const answer = await (one ?? pick(clients)).echo(msg);
    seconds.push(now() - started);
    if (answer !== msg) wrong++;
  }
}

async function measure(client, seconds, workers) {
  const samples = [], used = cpu(), started = now();
  await Promise.all(Array.from({ length: workers }, () => keepCalling(null, started + seconds, samples, client)));
  const wall = now() - started, spent = cpu() - used;
  return {
    calls: samples.length, calls_s: samples.length / wall, p50_us: percentile(samples, 0.5),
    p99_us: percentile(samples, 0.99), cpu_us: (spent / samples.length) * 1e6,
  };
}

async function keepPace(clients, until) {
  const samples = [], open = [];
  let number = 0, due = now();
  const call = async (msg, due) => {
    if ((await pick(clients).echo(msg)) !== msg) wrong++;
    samples.push(now() - due);
  };
  while (due < until) {
    const pause = due - now();
    if (pause > 0) await new Promise((resolve) => setTimeout(resolve, pause * 1e3));
    open.push(call(`hello ${++number}`, due));
    due += 1 / RATE;
  }
  await Promise.all(open);
  return samples;
}

async function counters(clients) {
  const total = { sent: 0, blocked: 0 };
  for (const client of clients) {
    const one = await client.stats();
    total.sent += one.sent;
    total.blocked += one.blocked;
  }
  return total;
}

const kinds = {
  async calls([client]) {
    await measure(client, job.warm, 1);
    const one = await measure(client, job.seconds, 1);
    await measure(client, job.warm, job.in_flight);
    const many = await measure(client, job.seconds, job.in_flight);
    const named = (name, figures) => Object.fromEntries(Object.entries(figures).map(([key, value]) => [`${name}_${key}`, value]));
    return { ...named("one", one), ...named("many", many), rss_mb: rss() };
  },
  async connect(clients, opened) {
    for (const [index, client] of clients.entries()) if ((await client.echo(`hello ${index}`)) !== `hello ${index}`) wrong++;
    return { ...opened, rss_mb: rss() };
  },
  async logs(clients) {
    await keepPace(clients, now() + job.warm);
    const before = await counters(clients), used = cpu(), started = now();
    const paced = await keepPace(clients, started + job.seconds);
    const wall = now() - started, spent = cpu() - used, after = await counters(clients);
    const closed = [], began = now();
    await Promise.all(Array.from({ length: AGENTS }, () => keepCalling(clients, began + job.seconds, closed)));
    const closedWall = now() - began;
    return {
      p50_us: percentile(paced, 0.5), p99_us: percentile(paced, 0.99), core: spent / wall,
      logs_s: (after.sent - before.sent) / wall, blocked: after.blocked, closed_s: closed.length / closedWall,
      closed_p99_us: percentile(closed, 0.99), rss_mb: rss(),
    };
  },
  async flood(clients) {
    const samples = [], before = await counters(clients), began = now();
    for (let number = 1, started; (started = now()) < began + job.seconds; number++) {
      if ((await clients[number % clients.length].echo(`hello ${number}`)) !== `hello ${number}`) wrong++;
      samples.push(now() - started);
    }
    const after = await counters(clients), wall = now() - began;
    return {
      flood_s: (after.sent - before.sent) / wall, flood_calls_s: samples.length / wall,
      flood_p50_us: percentile(samples, 0.5),
    };
  },
};

const used = cpu(), started = now();
const clients = await Promise.all(job.sources.map(open));
const opened = { connect_s: now() - started, connect_cpu_s: cpu() - used };
const figures = await kinds[job.kind](clients, opened);
await Promise.all(clients.map(({ client }) => client.close()));
const version = JSON.parse(readFileSync(`${folder}/node_modules/@modelcontextprotocol/sdk/package.json`)).version;
console.log(JSON.stringify({ ...figures, wrong, versions: { "npm SDK": version } }));
process.exit(0);
