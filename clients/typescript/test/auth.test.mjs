import assert from 'node:assert/strict';
import { before } from 'node:test';
import { ServiceError } from '@statussync/client';
import { clientOf, container, record, startService, test, unprobed, until } from './harness.mjs';

let s;
const conf = (...more) => ({
  auth: {
    login_failures_per_minute: 1000,
    tokens: [
      { name: 'ops', role: 'operator', token: 'ops-token-1' }, { name: 'admin', role: 'admin', token: 'admin-token-1' },
      ...more,
      { name: 'few', role: 'viewer', token: 'few-token-1', limits: { connections: 1 } },
    ],
  },
  environments: [{ id: 'box', agent_token: 'agent-token-1' }], servers: [unprobed('a')],
});

before(async () => {
  s = await startService(conf());
});

async function reload(...more) {
  s.configure(conf(...more));
  await clientOf(s, { token: 'admin-token-1' }).reload();
}

test('a token that is not valid any more: 4001, then the next one goes on where it was', async () => {
  await reload({ name: 'old', role: 'operator', token: 'old-token-1' });
  let given = 'old-token-1';
  const asked = [];
  const r = record(clientOf(s, { token: () => (asked.push(given), given) }));
  const alone = record(clientOf(s, { token: 'old-token-1' }));
  await Promise.all([r.live(), alone.live()]);
  given = 'ops-token-1';
  await s.heartbeat('agent-token-1', container('a'));
  await r.saw((e) => e.type === 'entry');
  await reload();
  // Nobody has a new one here: the refusal is for good.
  const e = await alone.sub.closed;
  assert.ok(e instanceof ServiceError && e.code === 'unauthorized', String(e));
  assert.match(alone.states.find((x) => x.phase === 'reconnecting').error.message, /4001/);
  const lost = await until(() => r.states.find((x) => x.phase === 'reconnecting'));
  assert.match(lost.error.message, /4001/);
  await s.heartbeat('agent-token-1', container('a', 'dead'));
  await r.saw((x) => x.type === 'entry' && x.entry.current_status.state === 'error');
  await r.live();
  const versions = r.entries().map((x) => x.version);
  assert.deepEqual(versions, versions.map((_, i) => versions[0] + i));
  assert.equal(r.events.some((x) => x.type === 'resync'), false);
  assert.deepEqual(asked, ['old-token-1', 'ops-token-1']);
  r.sub.close();
});

test('a token that expires closes with 4001', async () => {
  // A busy machine may need longer than the token lasts to get in at all.
  for (const seconds of [1, 5, 20, 60]) {
    await reload({ name: 'soon', role: 'viewer', token: `soon-token-${seconds}`, expires_at: new Date(Date.now() + 1000 * seconds).toISOString() });
    const r = record(clientOf(s, { token: `soon-token-${seconds}` }));
    const e = await r.sub.closed;
    assert.ok(e instanceof ServiceError && e.code === 'unauthorized', String(e));
    const lost = r.states.find((x) => x.phase === 'reconnecting');
    if (!lost) continue;
    assert.match(lost.error.message, /expired \(close code 4001/);
    return;
  }
  assert.fail('no connection became live');
});

test('bad, missing and wrong credentials end a subscription', async () => {
  for (const [token, code, closeCode] of [['wrong-token-1', 'unauthorized', 4500], ['agent-token-1', 'forbidden', 4503], [undefined, 'unauthorized', undefined]]) {
    const r = record(clientOf(s, { token }));
    const e = await r.sub.closed;
    assert.ok(e instanceof ServiceError, String(e));
    assert.deepEqual([e.code, e.closeCode], [code, closeCode]);
    assert.equal(r.states.some((x) => x.phase === 'reconnecting'), false);
  }
  const failing = record(clientOf(s, { token: () => Promise.reject(new Error('no vault')) }));
  await until(() => failing.states.some((x) => x.phase === 'reconnecting' && x.error.message === 'no vault'), 'a token that can not be had now is asked for again');
  failing.sub.close();
  const never = clientOf(s, { token: () => new Promise(() => {}) });
  await assert.rejects(never.whoami({ timeoutMs: 30 }), /no answer within 0.03 s/);
  const hung = record(never);
  hung.sub.close();
  assert.equal(await hung.sub.closed, undefined);
  assert.equal((await clientOf(s, { token: 'ops-token-1', timeoutMs: Infinity }).whoami()).name, 'ops');
});

test('a connection too many ends with 4504', async () => {
  const c = clientOf(s, { token: 'few-token-1' });
  const first = record(c);
  await first.live();
  const e = await record(c).sub.closed;
  assert.deepEqual([e.code, e.closeCode], ['rate_limited', 4504]);
  assert.equal(first.sub.state.phase, 'live');
  first.sub.close();
});

test('a handshake that is refused is asked about over HTTP', async () => {
  // Only the proxy's or browser's view is different: a WebSocket that never opens, as where a cookie is not valid any more.
  const { WebSocketServer } = await import('ws');
  const closed = new WebSocketServer({ port: 0, host: '127.0.0.1', verifyClient: () => false });
  await new Promise((resolve) => closed.once('listening', resolve));
  try {
    const there = `http://127.0.0.1:${closed.address().port}`;
    const c = clientOf({ url: there }, { fetch: (url, init) => fetch(String(url).replace(there, s.url), init) });
    const e = await record(c).sub.closed;
    assert.ok(e instanceof ServiceError && e.code === 'unauthorized' && e.status === 401, String(e));
  } finally {
    closed.close();
  }
});
