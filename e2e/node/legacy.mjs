// An existing client of the original design, as it is in the field: node legacy.mjs ws://host:port/ws/mcp-status
// It prints one JSON line for everything that happens, pings when it is told "ping" on its standard input, publishes
// when it is told "publish", and ends when its input ends.
import WebSocket from 'ws';
import { createInterface } from 'node:readline';

const say = (what) => process.stdout.write(JSON.stringify(what) + '\n');
const ws = new WebSocket(process.argv[2]);

ws.on('open', () => {
  say({ event: 'open' });
  ws.send(JSON.stringify({
    type: 'subscribe',
    channel: 'mcp_server_status',
    filters: { table: 'account_tool_instances', filter: 'mcp_server_type=not.is.null' },
  }));
});
ws.on('message', (data, isBinary) => {
  const message = JSON.parse(data.toString());
  if (message.type === 'status_update') {
    // Exactly what the original's screens read.
    const { server_id, old_status, new_status, timestamp, source, details } = message.data;
    say({
      event: 'update', isBinary, server_id, timestamp, source, details,
      old: `${old_status.state}/${old_status.health}`, new: `${new_status.state}/${new_status.health}`,
      uptime: new_status.uptime, lastError: new_status.lastError, when: Date.parse(timestamp),
    });
    return;
  }
  say({ event: 'message', message });
});
ws.on('close', (code) => { say({ event: 'close', code }); process.exit(0); });
ws.on('error', (err) => say({ event: 'error', error: String(err) }));

createInterface({ input: process.stdin }).on('line', (line) => {
  switch (line) {
    case 'ping':
      ws.send(JSON.stringify({ type: 'ping' }));
      break;
    case 'publish':
      ws.send(JSON.stringify({ type: 'publish', channel: 'mcp_server_status', data: { server_id: 'weather', status: 'error' } }));
      break;
  }
}).on('close', () => ws.close(1000));
