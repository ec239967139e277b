import assert from 'node:assert/strict';
import http from 'node:http';
import { before } from 'node:test';
import { Client, ServiceError, UnreachableError } from '@statussync/client';
import { clientOf, container, sleep, startService, target, test, unprobed, until } from './harness.mjs';

let s, c, health, healthy;
const token = (name) => `${name}-token-1`;

before(async () => {
  health = await target();
  healthy = await target();
  s = await startService({
    auth: {
      tokens: [
        { name: 'ada', role: 'admin', token: token('ada') },
        { name: 'vera', role: 'viewer', token: token('vera'), expires_at: '2037-01-31T00:00:00Z' },
      ],
    },
    environments: [{ id: 'box', agent_token: 'agent-token-1' }, { id: 'empty' }],
    servers: [
      { id: 'weather', environment: 'box', labels: { team: 'core', 'a,b': 'x=y,z' }, probe: { kind: 'http', url: `${health.url}/health` }, transport: 'http' },
      { id: 'maps', environment: 'box', probe: { kind: 'http', url: `${healthy.url}/health` }, transport: 'http' },
      unprobed('files'), unprobed('odd:id@1'),
    ],
  });
  c = clientOf(s, { token: token('ada') });
  await s.heartbeat('agent-token-1', container('weather'), container('maps'), container('files'), container('odd:id@1'), container('stray'));
  await until(async () => (await c.get('files')).status.health === 'healthy');
});

test('servers: list, filters, pages, one', async () => {
  assert.deepEqual((await c.list().all()).map((x) => x.id), ['files', 'maps', 'odd:id@1', 'weather']);
  assert.deepEqual((await c.list({ labels: { 'a,b': 'x=y,z', team: 'core' } }).all()).map((x) => x.id), ['weather']);
  assert.deepEqual((await c.list({ states: [] }).all()).length, 0, 'an empty list matches nothing');
  assert.deepEqual((await c.list({ q: 'MAP' }).all()).map((x) => x.id), ['maps']);
  const first = await c.list().page({ limit: 3 });
  assert.equal(first.items.length, 3);
  assert.match(first.cursor, /^e\w+:\d+$/);
  assert.deepEqual((await c.list().page({ limit: 3, cursor: first.next_cursor })).items.map((x) => x.id), ['weather']);
  const odd = await c.get('odd:id@1');
  assert.equal(odd.environment_id, 'box');
  assert.equal(odd.status.availability, 'available');
  assert.ok(odd.status.version >= 1);
});

test('status and explain', async () => {
  assert.equal((await c.status('files')).state, 'running');
  const x = await c.explain('files');
  assert.equal(x.state, 'running');
  assert.ok(x.explain.evidence.some((e) => e.kind === 'container' && e.fresh));
  assert.ok(x.explain.rules.some((r) => r.won));
});

test('override set and clear, with the actor', async () => {
  const set = await c.setOverride('files', { state: 'stopped', note: 'moving <b>', expires_in: '2h' });
  assert.equal(set.state, 'stopped');
  assert.equal(set.override.actor, 'ada');
  assert.equal(set.override.note, 'moving <b>');
  assert.ok(set.marks.includes('override'));
  const now = await c.clearOverride('files');
  assert.equal(now.state, 'running');
  assert.equal(now.override, undefined);
});

test('history and updates', async () => {
  const history = await c.history('files', { hours: 1 }).all();
  assert.ok(history.length >= 3);
  assert.ok(history[0].seq > history.at(-1).seq, 'newest first');
  const all = await c.updates().all();
  assert.ok(all.every((u, i) => i === 0 || u.seq > all[i - 1].seq), 'oldest first');
  const later = await c.updates({ after: `${all[2].epoch}:${all[2].seq}` }).all();
  assert.deepEqual(later.map((u) => u.seq), all.slice(3).map((u) => u.seq));
  assert.ok((await c.updates({ server_ids: ['files'], kinds: ['status'] }).all()).every((u) => u.server_id === 'files'));
  const pageOf2 = await c.updates().page({ limit: 2 });
  assert.equal(pageOf2.items.length, 2);
});

test('probe, probe all, probes, uptime, incidents', async () => {
  await until(async () => (await c.probe('weather')).status.health === 'healthy');
  health.status = 503;
  const bad = await until(async () => {
    const p = await c.probe('weather');
    return p.status.health === 'unhealthy' && p;
  });
  assert.equal(bad.outcome, 'failure');
  assert.equal(bad.cause, 'http_503');
  assert.equal(bad.http_status, 503);
  await until(async () => (await c.incidents({ server_id: 'weather', window: '1h' }).all()).some((i) => i.end === undefined && i.cause === 'http_503'));
  assert.ok((await c.incidents().all()).length >= 1);
  health.status = 200;
  await until(async () => (await c.probeAll()).items.some((p) => p.server_id === 'weather' && p.outcome === 'success')); // a check that is under way is shared
  assert.equal((await until(async () => {
    const p = await c.probes('weather', { window: '1h', step: '5m' });
    return p.total.count >= 2 && p;
  })).step_seconds, 300);
  const up = await c.serverUptime('weather', { window: '1h' });
  assert.equal(up.window_seconds, 3600);
  assert.ok(up.incidents >= 1);
  const line = await c.timeline('weather', { window: '1h' });
  assert.ok(line.items.some((x) => x.class === 'unavailable' && x.cause === 'http_503'));
  assert.equal((await c.resources('box', { window: '1h' })).environment_id, 'box');
  const fleet = await c.uptime({ window: '1h' }).page();
  assert.equal(fleet.total.servers, 4);
  assert.equal((await c.uptime({ q: 'files' }).all()).length, 1);
});

test('environments, discovered, adoption, the managed registry', async () => {
  const envs = await c.environments().all();
  assert.deepEqual(envs.map((e) => e.id), ['box', 'empty']);
  const box = await c.environment('box');
  assert.equal(box.agent, 'ok');
  assert.equal(box.system.cpu_load_percent, 12.5);
  assert.equal(box.system.memory.used_bytes, 4);
  assert.deepEqual((await c.discovered().all()).map((d) => d.container), ['stray']);
  assert.equal((await c.adopt('box', 'stray', { labels: { by: 'hand' } })).id, 'stray');
  assert.deepEqual((await c.get('stray')).labels, { by: 'hand' });
  await c.setServer('stray', { environment_id: 'box', labels: { by: 'change' } });
  assert.equal((await c.get('stray')).origin, 'managed');
  await c.removeServer('stray');
  await assert.rejects(c.get('stray'), (e) => e instanceof ServiceError && e.code === 'not_found' && e.status === 404);
  await c.addServer({ id: 'extra', environment_id: 'box', probe: { kind: 'none' } });
  await c.removeServer('extra');
  await c.addEnvironment({ id: 'new', owner: 'u1' });
  await c.setEnvironment('new', { owner: 'u2' });
  assert.equal((await c.environment('new')).owner, 'u2');
  const made = await c.rotateAgentToken('new');
  assert.ok(made.token.length > 8);
  assert.deepEqual((await c.agentTokens('new')).map((x) => x.id), [made.id]);
  await c.dropAgentToken('new', made.id);
  assert.deepEqual(await c.agentTokens('new'), []);
  assert.equal(await c.removeEnvironment('new'), undefined);
});

test('maintenance', async () => {
  const w = await c.addMaintenance({ server_ids: ['files'], duration: '1h', note: 'disk' });
  assert.equal(w.actor, 'ada');
  assert.equal(w.open, true);
  assert.deepEqual((await c.maintenance().all()).map((x) => x.id), [w.id]);
  assert.ok((await c.status('files')).marks.includes('maintenance'));
  assert.equal((await c.maintenanceWindow(w.id)).note, 'disk');
  await c.endMaintenance(w.id);
  await assert.rejects(c.maintenanceWindow(w.id), { code: 'not_found' });
});

test('tools, sync, probing, metrics, readiness, reload, whoami', async () => {
  const tools = await c.tools('files');
  assert.deepEqual([tools.tools, tools.count, tools.drifted], [[], 0, false]);
  await assert.rejects(c.pinTools('files'), { code: 'conflict' });
  await assert.rejects(c.readTools('files'), ServiceError);
  await assert.rejects(c.unpinTools('files'), { code: 'not_found' });
  assert.deepEqual(await c.drift('files').all(), []);
  assert.equal((await c.syncAll()).failed_count, 0);
  assert.equal((await c.sync('files')).failed_count, 0);
  assert.equal((await c.setProbing(false)).changed_by, 'ada');
  assert.equal((await c.probing()).enabled, false);
  assert.equal((await c.metrics()).probing_enabled, false);
  await c.setProbing(true);
  const m = await c.metrics();
  assert.equal(m.total_servers, 4);
  assert.ok(m.status_changes > 0);
  assert.equal((await c.ready()).status, 'ready');
  assert.equal((await c.reload()).servers.unchanged, 4);
  const me = await c.whoami();
  assert.deepEqual([me.name, me.role, me.expires_at], ['ada', 'admin', undefined]);
  assert.ok(me.limits.filter_ids > 0);
  assert.equal((await clientOf(s, { token: token('vera') }).whoami()).expires_at, '2037-01-31T00:00:00.000Z');
});

test('a page signs in and out; a person is forgotten', async () => {
  const me = await clientOf(s).signIn(token('vera'));
  assert.deepEqual([me.name, me.session], ['vera', true]);
  await assert.rejects(clientOf(s).signIn('wrong-token-1'), { code: 'unauthorized' });
  assert.equal(await clientOf(s).signOut(), undefined);
  const done = await c.erase({ owner: 'nobody', dry_run: true });
  assert.deepEqual([done.dry_run, done.status, done.report.servers], [true, 'done', []]);
  assert.equal((await c.erasure(done.id)).id, done.id);
});

test('refusals are typed and say where', async () => {
  await assert.rejects(clientOf(s).list().all(), (e) => e instanceof ServiceError && e.code === 'unauthorized' && e.status === 401);
  await assert.rejects(clientOf(s, { token: 'wrong-token-1' }).get('files'), { code: 'unauthorized' });
  await assert.rejects(clientOf(s, { token: token('vera') }).probe('files'), (e) => e.code === 'forbidden' && /operator/.test(e.message));
  await assert.rejects(c.setOverride('files', { state: 'stopped', health: 'healthy' }), (e) => {
    assert.equal(e.code, 'invalid');
    assert.match(e.message, /health/);
    return true;
  });
  await assert.rejects(c.list({ states: ['asleep'] }).all(), (e) => e.code === 'invalid' && /asleep|states/.test(e.message) && e.faults.length > 0);
  await assert.rejects(c.updates({ after: 'e99:1' }).all(), { code: 'expired', status: 410 });
  await assert.rejects(c.maintenanceWindow('none'), (e) => e.code === 'not_found' && typeof e.requestId === 'string');
  for (const id of ['', '..', '.']) assert.throws(() => c.get(id), { code: 'invalid' });
});

test('the options are checked', () => {
  for (const baseURL of ['ftp://x', 'x', 'http://u:p@x', 'http://x?a=1', 'http://x#a', '/relative']) {
    assert.throws(() => new Client({ baseURL }), (e) => e instanceof ServiceError && e.code === 'invalid' && e.location === 'baseURL' && !e.message.includes('u:p'));
  }
  assert.throws(() => new Client({ token: 'with space' }), { code: 'invalid', location: 'token' });
  assert.equal(new Client({ baseURL: 'https://h/status/' }).baseURL, 'https://h/status');
  if (typeof globalThis.WebSocket === 'undefined') assert.throws(() => new Client({ baseURL: s.url }).subscribe(), { location: 'WebSocket' });
});

test('the token goes in a header, from a function too, and never in an address', async () => {
  const seen = [];
  const spy = (url, init) => {
    seen.push([String(url), init.headers['Authorization']]);
    return fetch(url, init);
  };
  let n = 0;
  const fc = clientOf(s, { token: async () => (++n === 1 ? token('vera') : token('ada')), fetch: spy });
  assert.equal((await fc.whoami()).name, 'vera');
  assert.equal((await fc.whoami()).name, 'ada');
  assert.deepEqual(seen.map((x) => x[1]), [`Bearer ${token('vera')}`, `Bearer ${token('ada')}`]);
  assert.ok(seen.every(([url]) => !url.includes('token')));
});

test('nobody there, something else there, too slow, aborted', async () => {
  await assert.rejects(new Client({ baseURL: 'http://127.0.0.1:9' }).whoami(), (e) => e instanceof UnreachableError && /127\.0\.0\.1:9/.test(e.message) && /refused|bad port/i.test(e.message));
  let mode = 'html';
  const other = http.createServer((req, res) => {
    if (mode === 'html') res.writeHead(200, { 'content-type': 'text/html' }).end('<h1>hello</h1>');
    else if (mode === '502') res.writeHead(502, { 'content-type': 'text/html' }).end('bad gateway');
    else if (mode === 'redirect') res.writeHead(302, { location: '/elsewhere' }).end();
  });
  await new Promise((resolve) => other.listen(0, '127.0.0.1', resolve));
  const oc = new Client({ baseURL: `http://127.0.0.1:${other.address().port}`, token: 'secret-token-1' });
  try {
    await assert.rejects(oc.whoami(), (e) => e instanceof UnreachableError && /not the statussync service/.test(e.message));
    mode = '502';
    await assert.rejects(oc.whoami(), (e) => e instanceof UnreachableError && /HTTP 502/.test(e.message));
    mode = 'redirect';
    await assert.rejects(oc.whoami(), UnreachableError, 'a token follows no redirect');
    mode = 'silence';
    await assert.rejects(oc.whoami({ timeoutMs: 50 }), (e) => e instanceof UnreachableError && /0\.05 s/.test(e.message));
    const stop = new AbortController();
    const call = oc.whoami({ signal: stop.signal });
    await sleep(20);
    stop.abort(new Error('not any more'));
    await assert.rejects(call, { message: 'not any more' });
    await assert.rejects(oc.whoami({ signal: AbortSignal.abort() }), { name: 'AbortError' });
  } finally {
    other.closeAllConnections();
    other.close();
  }
});
