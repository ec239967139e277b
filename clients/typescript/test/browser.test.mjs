// In a real browser: a page of the service's own origin, with its cookie, over a lost service.
import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import http from 'node:http';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { container, startService, test, unprobed, until } from './harness.mjs';

function chromium() {
  for (const name of ['chromium', 'chromium-browser', 'google-chrome']) {
    try {
      return execFileSync('which', [name], { encoding: 'utf8' }).trim();
    } catch {
      // the next one
    }
  }
  return undefined;
}
const browser = chromium();
const page = `<!doctype html><meta charset="utf-8"><script type="module">
  import { Client, StatusSyncService } from '/client/index.js';
  const say = (what) => fetch('/said', { method: 'POST', body: JSON.stringify(what) });
  window.onerror = (m) => say({ error: String(m) });
  window.onunhandledrejection = (e) => say({ error: 'unhandled: ' + e.reason });
  const client = new Client();
  const refused = client.subscribe([], { onEvent() {} });
  await say({ before: (await client.list().all().catch((e) => e)).code, refused: (await refused.closed).code });
  await say({ in: (await client.signIn('ops-token-1')).name });
  const sub = client.subscribe([], {
    snapshot: true,
    onState: (s) => say({ phase: s.phase, code: s.error?.code }),
    onEvent: (e) => e.type === 'entry' && say({ entry: e.entry.server_id, state: e.entry.current_status.state }),
  });
  const service = new StatusSyncService();
  await service.start();
  await say({ service: (await service.getServerStatus('a')).state });
  addEventListener('message', async () => { await client.signOut(); say({ out: true }); });
  new EventSource('/orders').onmessage = () => postMessage('sign out');
</script>`;

test('a page signs in by cookie, lives through a killed service, and is told when it is signed out', { skip: !browser && process.env.CI !== 'true' && 'no chromium' }, async () => {
  assert.ok(browser, 'chromium is missing; .ci/setup installs it');
  const s = await startService({
    auth: { tokens: [{ name: 'ops', role: 'operator', token: 'ops-token-1' }] }, environments: [{ id: 'box', agent_token: 'agent-token-1' }], servers: [unprobed('a')],
  });
  const said = [];
  let orders;
  const server = http.createServer((req, res) => {
    if (req.url === '/page') res.writeHead(200, { 'content-type': 'text/html' }).end(page);
    else if (req.url.startsWith('/client/')) res.writeHead(200, { 'content-type': 'text/javascript' }).end(readFileSync(new URL(`../dist/${req.url.slice(8)}`, import.meta.url)));
    else if (req.url === '/said') {
      let text = '';
      req.on('data', (d) => (text += d)).on('end', () => (said.push(JSON.parse(text)), res.end()));
    } else if (req.url === '/orders') orders = res.writeHead(200, { 'content-type': 'text/event-stream' }), res.flushHeaders();
    else if (!req.url.startsWith('/api/')) res.writeHead(404).end();
    else {
      const out = http.request(s.url + req.url, { method: req.method, headers: req.headers }, (r) => {
        res.writeHead(r.statusCode, r.headers);
        r.pipe(res);
      });
      out.on('error', () => res.destroy());
      req.pipe(out);
    }
  });
  server.on('upgrade', (req, socket) => {
    const to = new URL(s.url);
    const up = net.connect(Number(to.port), to.hostname, () => {
      up.write(`${req.method} ${req.url} HTTP/1.1\r\n${req.rawHeaders.map((h, i) => (i % 2 ? `${h}\r\n` : `${h}: `)).join('')}\r\n`);
      socket.pipe(up).pipe(socket);
    });
    for (const [one, other] of [[up, socket], [socket, up]]) one.on('error', () => other.destroy()).on('close', () => other.destroy());
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  const profile = mkdtempSync(join(tmpdir(), 'statussync-chromium-'));
  const proc = spawn(browser, [
    '--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--no-first-run', '--disable-extensions', '--disable-background-networking',
    `--user-data-dir=${profile}`, `http://127.0.0.1:${server.address().port}/page`,
  ], { stdio: 'ignore', detached: true });
  const gone = once(proc, 'exit');
  const saw = (what, from = 0) => until(() => said.findIndex((x, i) => i >= from && Object.entries(what).every(([k, v]) => x[k] === v)) + 1, () => `${JSON.stringify(what)} in ${JSON.stringify(said.slice(from))}`);
  try {
    await saw({ before: 'unauthorized', refused: 'unauthorized' });
    await saw({ in: 'ops' });
    await saw({ phase: 'live' });
    await saw({ service: 'unknown' });
    await s.heartbeat('agent-token-1', container('a'));
    await saw({ entry: 'a', state: 'running' });
    await s.kill9();
    const lost = await saw({ phase: 'reconnecting' });
    await s.start();
    await saw({ phase: 'live' }, lost);
    await s.heartbeat('agent-token-1', container('a', 'dead'));
    await saw({ entry: 'a', state: 'error' });
    await until(() => orders);
    orders.write('data: x\n\n');
    await saw({ out: true });
    await saw({ phase: 'closed', code: 'unauthorized' });
    assert.deepEqual(said.filter((x) => x.error), []);
  } finally {
    try {
      process.kill(-proc.pid, 'SIGKILL');
    } catch {
      // it has ended
    }
    await gone;
    server.closeAllConnections();
    server.close();
    rmSync(profile, { recursive: true, force: true, maxRetries: 20, retryDelay: 100 });
  }
});
