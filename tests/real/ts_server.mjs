// A server of the official TypeScript SDK over stdio: `node ts_server.mjs NODE_MODULES v1|v2`.
// v1 knows the legacy eras alone; v2 is held to the modern one.
import { pathToFileURL } from 'node:url';

const [modules, version] = process.argv.slice(2);
const from = file => import(pathToFileURL(`${modules}/@modelcontextprotocol/${file}`).href);
const z = await import(pathToFileURL(`${modules}/zod/index.js`).href);
const text = value => ({ content: [{ type: 'text', text: value }] });
const form = { type: 'object', properties: { name: { type: 'string' } }, required: ['name'] };

// What is the same in both: `shape` makes of a raw shape what this version takes.
function fill(server, shape, notify) {
    server.registerTool('echo', { description: 'Gives it back.', inputSchema: shape({ text: z.string() }) }, async ({ text: given }) => text(given));
    server.registerTool('steps', { description: 'Tells of steps.', inputSchema: shape({ many: z.number() }) }, async ({ many }, context) => {
        await notify(many, context);
        return text(`${many} steps`);
    });
    server.registerTool('fail', { description: 'Fails.', inputSchema: shape({}) }, async () => ({ ...text('bad luck'), isError: true }));
    server.registerPrompt('greet', { description: 'Greets.', argsSchema: shape({ name: z.string() }) }, async ({ name }) => (
        { messages: [{ role: 'user', content: { type: 'text', text: `Greet ${name}` } }] }
    ));
    server.registerResource('note', 'note://one', { mimeType: 'text/plain' }, async uri => ({ contents: [{ uri: uri.href, text: 'a note' }] }));
}

async function legacy() {
    const { McpServer } = await from('sdk/dist/esm/server/mcp.js');
    const { StdioServerTransport } = await from('sdk/dist/esm/server/stdio.js');
    const server = new McpServer({ name: 'ts1', version: '1' });
    fill(server, each => each, async (many, context) => {
        const progressToken = context._meta?.progressToken;
        for (let progress = 1; progressToken !== undefined && progress <= many; progress++)
            await context.sendNotification({ method: 'notifications/progress', params: { progressToken, progress } });
    });
    server.registerTool('ask', { description: 'Asks for a name.', inputSchema: {} }, async () => {
        const answer = await server.server.elicitInput({ message: 'Name?', requestedSchema: form });
        return text(`${answer.action} ${answer.content?.name}`);
    });
    await server.connect(new StdioServerTransport());
}

async function modern() {
    const { McpServer, inputRequired } = await from('server/dist/index.mjs');
    const { serveStdio } = await from('server/dist/stdio.mjs');
    serveStdio(() => {
        const server = new McpServer({ name: 'ts2', version: '1' });
        fill(server, each => z.object(each), async (many, context) => {
            const progressToken = context.mcpReq._meta?.progressToken;
            for (let progress = 1; progressToken !== undefined && progress <= many; progress++)
                await context.mcpReq.notify({ method: 'notifications/progress', params: { progressToken, progress } });
        });
        server.registerTool('ask', { description: 'Asks for a name.', inputSchema: z.object({}) }, async (_given, context) => {
            const answer = context.mcpReq.inputResponses?.name;
            if (answer) return text(`${answer.action} ${answer.content?.name}`);
            const name = inputRequired.elicit({ message: 'Name?', requestedSchema: form });
            return inputRequired({ inputRequests: { name } });
        });
        return server;
    }, { legacy: 'reject' });
}

await { v1: legacy, v2: modern }[version]();
