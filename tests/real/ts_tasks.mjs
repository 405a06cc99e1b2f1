// A client of the official TypeScript SDK v2 with the official tasks extension: `node ts_tasks.mjs NODE_MODULES URL`.
// Prints JSON: what became of three tools that a server runs only as tasks.
import { pathToFileURL } from 'node:url';

const [modules, url] = process.argv.slice(2);
const from = file => import(pathToFileURL(`${modules}/@modelcontextprotocol/${file}`).href);
const { Client, StreamableHTTPClientTransport } = await from('client/dist/index.mjs');
const { createTaskSessionFromClient, resultFromTaskOutcome } = await from('ext-tasks/dist/client/index.js');

const protocolVersion = '2026-07-28';
const clientInfo = { name: 'ts', version: '1' };
const clientCapabilities = { elicitation: { form: {} } };
const client = new Client(clientInfo, { capabilities: clientCapabilities, versionNegotiation: { mode: { pin: protocolVersion } } });
await client.connect(new StreamableHTTPClientTransport(new URL(url)));

// What a host brings, since the SDK itself lets no task through: the request as it is, and its answer.
let requests = 0;
const ids = new Set();
async function rawDispatch(request, { signal } = {}) {
    const { method, params } = request;
    if (params.taskId) ids.add(params.taskId);
    const headers = {
        'Content-Type': 'application/json', Accept: 'application/json, text/event-stream',
        'MCP-Protocol-Version': protocolVersion, 'Mcp-Method': method, 'Mcp-Name': params.name ?? params.taskId,
    };
    const body = JSON.stringify({ jsonrpc: '2.0', id: `t${++requests}`, ...request });
    const text = await (await fetch(url, { method: 'POST', headers, body, signal })).text();
    const lines = text.startsWith('{') ? [text] : text.split('\n').filter(line => line.startsWith('data: {')).map(line => line.slice(6));
    const { result, error } = JSON.parse(lines.at(-1));
    return error ? { kind: 'error', error } : { kind: 'result', result };
}

const asked = [];
const session = createTaskSessionFromClient(client, {
    endpointId: 'gateway', rawDispatch, v2RequestFraming: { protocolVersion, clientInfo, clientCapabilities },
    onInputRequest: async request => {
        asked.push(request.kind);
        return { action: 'accept', content: { name: 'Ada' } };
    },
});
const found = { kinds: [] };
for (const [tool, given] of [['far__slow', { text: 'ä' }], ['far__greet', {}]]) {
    const execution = await session.callTool(tool, given);
    found.kinds.push(execution.kind);
    const { outcome } = await execution.settle();
    found[tool] = resultFromTaskOutcome(outcome).content[0].text;
}
const execution = await session.callTool('far__stay', {});
await execution.cancel();
found.stay = (await execution.settle()).outcome.status;
found.asked = asked;
found.sealed = [...ids].every(id => id.length > 60);
process.stdout.write(JSON.stringify(found) + '\n');
process.exit(0);
