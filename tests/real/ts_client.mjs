// Clients of the official TypeScript SDK: `node ts_client.mjs NODE_MODULES URL`; prints JSON.
// One of v1, which is legacy, and one of v2, which is modern, use all of two sources; one of v1 sends an array.
import { pathToFileURL } from 'node:url';

const [modules, url] = process.argv.slice(2);
const from = file => import(pathToFileURL(`${modules}/@modelcontextprotocol/${file}`).href);
const info = { name: 'ts', version: '1' };
const capabilities = { elicitation: { form: {} } };
const answer = async () => ({ action: 'accept', content: { name: 'Ada' } });

async function v1() {
    const { Client } = await from('sdk/dist/esm/client/index.js');
    const { StreamableHTTPClientTransport } = await from('sdk/dist/esm/client/streamableHttp.js');
    const { ElicitRequestSchema } = await from('sdk/dist/esm/types.js');
    const client = new Client(info, { capabilities });
    client.setRequestHandler(ElicitRequestSchema, answer);
    await client.connect(new StreamableHTTPClientTransport(new URL(url)));
    return [client, (params, options) => client.callTool(params, undefined, options)];
}

async function v2() {
    const { Client, StreamableHTTPClientTransport } = await from('client/dist/index.mjs');
    const client = new Client(info, { capabilities, versionNegotiation: { mode: { pin: '2026-07-28' } } });
    client.setRequestHandler('elicitation/create', answer);
    await client.connect(new StreamableHTTPClientTransport(new URL(url)));
    return [client, (params, options) => client.callTool(params, options)];
}

async function use() {
    const found = {};
    for (const [era, open] of Object.entries({ legacy: v1, modern: v2 })) {
        const [client, call] = await open();
        const names = (await client.listTools()).tools.map(tool => tool.name);
        for (const source of ['legacy', 'modern']) {
            const steps = [];
            const said = async (tool, given, options) => (await call({ name: `${source}__${tool}`, arguments: given }, options)).content[0].text;
            const uri = `cord://${source}/note://one`;
            found[`${era} ${source}`] = {
                tools: names.filter(name => name.startsWith(source)).length,
                echo: await said('echo', { text: 'ä' }),
                steps: [await said('steps', { many: 3 }, { onprogress: each => steps.push(each.progress) }), steps],
                fail: (await call({ name: `${source}__fail`, arguments: {} })).isError,
                ask: await said('ask', {}),
                prompt: (await client.getPrompt({ name: `${source}__greet`, arguments: { name: 'Ada' } })).messages[0].content.text,
                read: (await client.readResource({ uri })).contents[0].text,
            };
        }
        await client.close();
    }
    return found;
}

async function batch() {
    const { StreamableHTTPClientTransport } = await from('sdk/dist/esm/client/streamableHttp.js');
    const transport = new StreamableHTTPClientTransport(new URL(url));
    const answers = new Map();
    let wake = () => {};
    transport.onmessage = message => { answers.set(message.id, message); wake(); };
    const until = async ids => { while (!ids.every(id => answers.has(id))) await new Promise(resolve => { wake = resolve; }); };
    const request = (id, method, params) => ({ jsonrpc: '2.0', id, method, params });
    await transport.start();
    await transport.send(request(1, 'initialize', { protocolVersion: '2025-03-26', capabilities: {}, clientInfo: info }));
    await until([1]);
    transport.setProtocolVersion(answers.get(1).result.protocolVersion);
    await transport.send({ jsonrpc: '2.0', method: 'notifications/initialized' });
    const call = (id, source) => request(id, 'tools/call', { name: `${source}__echo`, arguments: { text: source } });
    await transport.send([call(2, 'legacy'), request(3, 'ping'), call(4, 'modern')]);
    await until([2, 3, 4]);
    await transport.close();
    return { revision: answers.get(1).result.protocolVersion, texts: [2, 4].map(id => answers.get(id).result.content[0].text), ping: answers.get(3).result };
}

process.stdout.write(JSON.stringify({ use: await use(), batch: await batch() }) + '\n');
process.exit(0);
