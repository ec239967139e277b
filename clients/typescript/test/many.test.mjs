import assert from 'node:assert/strict';
import { clientOf, container, startService, test, unprobed, until } from './harness.mjs';

test('10,000 entries are replayed in order, whole, and bounded', async () => {
  const ids = Array.from({ length: 500 }, (_, i) => `s${i}`);
  const s = await startService({ environments: [{ id: 'box', agent_token: 'agent-token-1' }], servers: ids.map((id) => unprobed(id)) });
  const c = clientOf(s);
  await s.heartbeat('agent-token-1', ...ids.map((id) => container(id)));
  await until(async () => (await c.list({ healths: ['healthy'] }).page({ limit: 500 })).items.length === 500);
  const start = (await c.list().page({ limit: 1 })).cursor;
  for (let round = 0; round < 20; round++) {
    const word = round % 2 ? 'running' : 'dead';
    await s.heartbeat('agent-token-1', ...ids.map((id) => container(id, word)));
    const state = round % 2 ? 'running' : 'error';
    await until(async () => (await c.list({ states: [state] }).page({ limit: 500 })).items.length === 500);
  }
  const states = [];
  const sub = c.subscribe([], { cursor: start, maxBuffer: 2_000, onState: (x) => states.push(x.phase) });
  let count = 0;
  let seq = Number(start.split(':')[1]);
  const versions = new Map();
  for await (const ev of sub) {
    if (ev.type !== 'entry') continue;
    count++;
    assert.ok(ev.entry.seq > seq);
    seq = ev.entry.seq;
    const v = versions.get(ev.entry.server_id);
    if (v !== undefined) assert.equal(ev.entry.version, v + 1);
    versions.set(ev.entry.server_id, ev.entry.version);
    if (count === 10_000) break;
  }
  assert.equal(versions.size, 500);
  assert.ok(states.indexOf('live') < 0 || states.indexOf('catching_up') < states.indexOf('live'), 'not live before it has caught up');

  // In mode latest only the newest of each server is told.
  const latest = new Map();
  for await (const ev of c.subscribe([], { cursor: start, mode: 'latest' })) {
    if (ev.type === 'entry') {
      assert.ok(!(latest.get(ev.entry.server_id) >= ev.entry.version));
      latest.set(ev.entry.server_id, ev.entry.version);
    }
    if (latest.size === 500 && [...latest.values()].every((v, i) => v === versions.get([...latest.keys()][i]))) break;
  }

  // The smallest buffer and a slow reader: a snapshot is not begun again and again.
  let listed = 0;
  let made = 0;
  for await (const ev of c.subscribe([], { snapshot: true, maxBuffer: 1 })) {
    await new Promise((resolve) => setTimeout(resolve, 20));
    if (ev.type === 'subscribed') made++;
    if (ev.type === 'snapshot') listed += ev.items.length;
    if (ev.type === 'snapshot_end') break;
  }
  assert.deepEqual([made, listed], [1, 500]);

  const m = c.mirror();
  await m.ready();
  assert.deepEqual([m.size, m.get('s499').status.version], [500, versions.get('s499')]);
  m.close();
});
