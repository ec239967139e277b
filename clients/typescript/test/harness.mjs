// The real service for the tests: the binary that STATUSSYNC_BIN names, or one that is built here.
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import http from 'node:http';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test as nodeTest } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { WebSocket, WebSocketServer } from 'ws';
import { Client } from '@statussync/client';

export { WebSocket, sleep };

/** A test that hangs fails, and what it started is ended. */
export const test = (name, ...rest) => nodeTest(name, { timeout: 180_000, ...(rest.length > 1 ? rest[0] : {}) }, rest.at(-1));

const root = mkdtempSync(join(tmpdir(), 'statussync-ts-'));
const ends = [];
after(async () => {
  for (const end of ends.reverse()) await end();
  rmSync(root, { recursive: true, force: true });
});

let bin = process.env.STATUSSYNC_BIN;
function theBinary() {
  if (!bin) {
    bin = join(root, 'statussync');
    execFileSync('go', ['build', '-o', bin, './cmd/statussync'], { cwd: new URL('../../..', import.meta.url).pathname });
  }
  return bin;
}

// A port below the ephemeral range: a client that dials a closed port of that range again and again can meet itself.
async function freePort() {
  for (let i = 0; i < 200; i++) {
    const port = 18000 + Math.floor(Math.random() * 14000);
    const s = net.createServer();
    const ok = await new Promise((resolve) => s.once('error', () => resolve(false)).listen(port, '127.0.0.1', () => resolve(true)));
    if (ok) {
      await new Promise((resolve) => s.close(resolve));
      return port;
    }
  }
  throw new Error('no free port');
}

export const unprobed = (id, environment = 'box', more = {}) => ({ id, environment, desired: 'running', probe: { kind: 'none' }, ...more });
export const container = (name, state = 'running', text = state === 'running' ? 'Up 2 hours' : '') => ({ id: `c-${name}`, names: [name], image: 'i', state, status: text, ports: [] });

let count = 0;

/** A service with its own data; conf is put over short intervals. */
export async function startService(conf = {}) {
  const dir = join(root, String(++count));
  execFileSync('mkdir', [dir]);
  const port = await freePort();
  const url = `http://127.0.0.1:${port}`;
  const file = join(dir, 'statussync.yaml');
  const log = join(dir, 'log');
  const s = {
    url, dir, log, data: join(dir, 'data'), proc: undefined,
    configure(c) {
      writeFileSync(file, JSON.stringify({
        listen: `127.0.0.1:${port}`, data: join(dir, 'data'), log: { level: 'info', format: 'json' },
        probe: { kind: 'http', path: '/health', interval: '1h', timeout: '2s', max_retries: 0, rise: 1, start_grace: '1s' },
        heartbeat: { late_after: '5m', lost_after: '10m' }, flapping: { changes: 1000000 }, ...c,
      }), { mode: 0o600 });
    },
    async start() {
      const out = openSync(log, 'a');
      s.proc = spawn(theBinary(), ['serve', '--config', file], { stdio: ['ignore', out, out], env: { ...process.env, GORACE: 'atexit_sleep_ms=0' } });
      s.gone = once(s.proc, 'exit');
      await until(async () => {
        if (s.proc.exitCode !== null) throw new Error(`the service ended:\n${readFileSync(log)}`);
        return (await fetch(`${url}/readyz`).catch(() => undefined))?.ok;
      }, 'readyz');
    },
    async kill9() {
      s.proc.kill('SIGKILL');
      await s.gone;
    },
    /** What an agent posts. */
    async heartbeat(token, ...containers) {
      const r = await fetch(`${url}/heartbeat`, {
        method: 'POST', headers: { authorization: `Bearer ${token}` },
        body: JSON.stringify({ dtma_version: '0.1.0', system_status: { cpu_load_percent: 12.5, memory: { total_bytes: 8, active_bytes: 4, free_bytes: 4, used_bytes: 4 }, disk: { mount: '/', total_bytes: 8, used_bytes: 4, free_bytes: 4 } }, tool_statuses: containers }),
      });
      if (r.status !== 204) throw new Error(`heartbeat: ${r.status} ${await r.text()}`);
    },
  };
  s.configure(conf);
  ends.push(async () => {
    if (s.proc && s.proc.exitCode === null && s.proc.signalCode === null) await s.kill9();
    const text = readFileSync(log, 'utf8');
    for (const bad of ['WARNING: DATA RACE', 'panic: ']) if (text.includes(bad)) throw new Error(`the service's log has ${bad}:\n${text.slice(text.indexOf(bad), text.indexOf(bad) + 3000)}`);
  });
  await s.start();
  return s;
}

export function clientOf(s, o = {}) {
  return new Client({ baseURL: s.url, WebSocket, ...o });
}

/** A server with a health URL whose answer can be set. */
export async function target() {
  const t = { status: 200 };
  const server = http.createServer((req, res) => res.writeHead(t.status).end('ok'));
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.url = `http://127.0.0.1:${server.address().port}`;
  ends.push(() => {
    server.closeAllConnections();
    server.close();
  });
  return t;
}

/**
 * A WebSocket proxy before a service; HTTP calls get through, too. to(frame) sees each frame for the client and returns the
 * frames to pass on; clients are its open connections.
 */
export async function proxy(s, to = (f) => [f]) {
  const p = { to, clients: new Set(), frozen: false, handshakes: 0, from: [] };
  const server = http.createServer((req, res) => {
    const out = http.request(s.url + req.url, { method: req.method, headers: req.headers }, (r) => {
      res.writeHead(r.statusCode, r.headers);
      r.pipe(res);
    });
    out.on('error', () => res.destroy());
    req.pipe(out);
  });
  const wss = new WebSocketServer({ server });
  wss.on('connection', (down, req) => {
    p.handshakes++;
    const up = new WebSocket(s.url.replace('http', 'ws') + req.url);
    const waiting = [];
    p.clients.add(down);
    up.on('open', () => waiting.splice(0).forEach((d) => up.send(d)));
    down.on('message', (d) => {
      if (p.frozen) return;
      p.from.push(JSON.parse(String(d)));
      if (up.readyState === WebSocket.OPEN) up.send(String(d));
      else waiting.push(String(d));
    });
    up.on('message', (d) => {
      if (p.frozen) return;
      for (const f of p.to(JSON.parse(String(d)), down)) down.send(JSON.stringify(f));
    });
    up.on('close', (code) => down.close(code === 1006 || code === 1005 ? 1001 : code));
    down.on('close', () => {
      p.clients.delete(down);
      up.terminate();
    });
    up.on('error', () => down.terminate());
    down.on('error', () => {});
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  p.url = `http://127.0.0.1:${server.address().port}`;
  ends.push(() => {
    for (const c of wss.clients) c.terminate();
    wss.close();
    server.closeAllConnections();
    server.close();
  });
  return p;
}

/** Waits until holds() gives something, and returns it. */
export async function until(holds, what = holds, ms = 60_000) {
  const deadline = Date.now() + ms;
  for (;;) {
    const v = await holds();
    if (v) return v;
    if (Date.now() > deadline) throw new Error(`not within ${ms / 1000} s: ${typeof what === 'function' && what !== holds ? what() : what}`);
    await sleep(10);
  }
}

/** A subscription in callbacks that keeps what it was told. */
export function record(client, filters = [], o = {}) {
  const events = [];
  const states = [];
  const sub = client.subscribe(filters, { backoffMinMs: 20, backoffMaxMs: 500, onEvent: (e) => events.push(e), onState: (s) => states.push(s), ...o });
  ends.push(() => sub.close());
  return {
    sub, events, states,
    entries: () => events.filter((e) => e.type === 'entry').map((e) => e.entry),
    live: () => until(() => sub.state.phase === 'live', () => `live; it is ${sub.state.phase} ${sub.state.error ?? ''}`),
    saw: (f, what) => until(() => events.find(f), what ?? (() => `an event with ${f}; there are ${JSON.stringify(events).slice(-2000)}; it is ${sub.state.phase} ${sub.state.error ?? ''}`)),
  };
}
