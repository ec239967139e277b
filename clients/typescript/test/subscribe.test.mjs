import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { rmSync } from 'node:fs';
import { before } from 'node:test';
import { ServiceError, UnreachableError, reconnects } from '@statussync/client';
import { clientOf, container, proxy, record, sleep, startService, test, unprobed, until, WebSocket } from './harness.mjs';

const conf = { environments: [{ id: 'box', agent_token: 'agent-token-1' }], servers: ['a', 'b', 'c'].map((id) => unprobed(id)) };
let s, c, n = 0;

/** Makes each server's state flip to the one that it has not; each is one entry. */
async function flip(...ids) {
  n++;
  const list = ['a', 'b', 'c'].map((id) => (words[id] = ids.includes(id) ? (words[id] === 'running' ? 'dead' : 'running') : words[id], container(id, words[id])));
  await s.heartbeat('agent-token-1', ...list);
}
const words = { a: 'running', b: 'running', c: 'running' };

/** Checks that nothing is missing and nothing twice: versions of each server rise by one. */
function inOrder(entries) {
  const last = {};
  for (const e of entries) {
    if (last[e.server_id] !== undefined) assert.equal(e.version, last[e.server_id] + 1, `of ${e.server_id}`);
    last[e.server_id] = e.version;
  }
}

before(async () => {
  s = await startService(conf);
  c = clientOf(s);
  await flip();
  await until(async () => (await c.list({ healths: ['healthy'] }).all()).length === 3);
});

test('callbacks: a snapshot, then what happens, then the end', async () => {
  const r = record(c, [], { snapshot: true });
  await r.live();
  assert.deepEqual(r.events.map((e) => e.type), ['subscribed', 'snapshot', 'snapshot_end']);
  assert.deepEqual(r.events[1].items.map((x) => x.id).sort(), ['a', 'b', 'c']);
  await flip('a');
  const ev = await r.saw((e) => e.type === 'entry');
  assert.equal(ev.entry.current_status.state, 'error');
  assert.equal(ev.cursor, `${ev.entry.epoch}:${ev.entry.seq}`);
  assert.equal(r.sub.cursor, ev.cursor);
  assert.ok(r.sub.state.asOf <= new Date());
  r.sub.close();
  assert.equal(await r.sub.closed, undefined);
  assert.deepEqual(r.states.map((x) => x.phase), ['connecting', 'catching_up', 'live', 'closed']);
  const told = r.events.length;
  await flip('a');
  await sleep(50);
  assert.equal(r.events.length, told, 'a closed subscription is told nothing');
});

test('the iterator: filters, resume by cursor, break', async () => {
  const sub = c.subscribe([{ server_ids: ['b'], kinds: ['status'] }]);
  let cursor;
  for await (const ev of sub) {
    if (ev.type === 'subscribed') {
      cursor = ev.cursor;
      await flip('a', 'b');
    }
    if (ev.type === 'entry') {
      assert.equal(ev.entry.server_id, 'b');
      break;
    }
  }
  assert.equal(sub.state.phase, 'closed');
  await flip('b');
  const seen = [];
  for await (const ev of c.subscribe([{ server_ids: ['b'] }], { cursor })) {
    if (ev.type === 'subscribed') assert.equal(ev.recovered, true);
    if (ev.type === 'entry') seen.push(ev.entry);
    if (seen.length === 2) break;
  }
  inOrder(seen);
  assert.throws(() => sub[Symbol.asyncIterator](), { code: 'invalid' });
  await flip('a');
});

test('leave, and mode latest', async () => {
  const bad = record(c, [{ healths: ['unhealthy'] }], { snapshot: true });
  const latest = record(c, [], { mode: 'latest', snapshot: true });
  await Promise.all([bad.live(), latest.live()]);
  await flip('c');
  await flip('c');
  await bad.saw((e) => e.type === 'entry' && e.entry.current_status.health === 'healthy');
  const v = (await c.status('c')).version;
  await latest.saw((e) => e.type === 'entry' && e.entry.server_id === 'c' && e.entry.version === v);
  const versions = latest.entries().map((e) => e.version);
  assert.deepEqual(versions, [...new Set(versions)].sort((x, y) => x - y), 'versions rise, none comes twice');
  bad.sub.close();
  latest.sub.close();
});

test('a service killed with -9 is come back to: nothing is missing, nothing twice', async () => {
  const r = record(c, []);
  await r.live();
  await flip('a', 'b');
  await r.saw((e) => e.type === 'entry' && e.entry.server_id === 'b');
  const asOf = r.sub.state.asOf;
  await s.kill9();
  await until(() => r.states.some((x) => x.phase === 'reconnecting' && x.attempt >= 2), 'two failed attempts');
  const down = r.sub.state;
  assert.ok(down.phase === 'reconnecting' || down.phase === 'connecting', down.phase);
  assert.ok(down.asOf >= asOf && down.asOf <= new Date() && down.error instanceof UnreachableError);
  const losses = r.states.filter((x) => x.phase === 'reconnecting');
  assert.ok(losses.every((x) => x.since.getTime() === losses[0].since.getTime()), 'since when it is lost stays');
  await s.start();
  await flip('a', 'b', 'c');
  await r.saw((e) => e.type === 'entry' && e.entry.server_id === 'c');
  await r.live();
  assert.equal(r.sub.state.error, undefined);
  assert.equal(r.events.filter((e) => e.type === 'resync').length, 0);
  assert.ok(r.events.some((e) => e.type === 'subscribed' && e.recovered));
  const journal = await c.updates({ after: r.events[0].cursor }).all();
  await until(() => r.entries().length >= journal.length);
  assert.deepEqual(r.entries().map((e) => e.seq), journal.map((e) => e.seq));
  inOrder(r.entries());
  r.sub.close();
});

test('a new epoch leads to a resync and a snapshot', async () => {
  const r = record(c, []);
  await r.live();
  const old = r.events[0].cursor.split(':')[0];
  await s.kill9();
  rmSync(s.data, { recursive: true });
  await s.start();
  await r.saw((e) => e.type === 'snapshot_end');
  assert.deepEqual(r.events.map((e) => e.type), ['subscribed', 'subscribed', 'resync', 'snapshot', 'snapshot_end']);
  assert.equal(r.events[1].recovered, false);
  assert.equal(r.events[2].reason, 'epoch');
  assert.notEqual(r.events.at(-1).cursor.split(':')[0], old);
  await flip('a');
  await r.saw((e) => e.type === 'entry');
  r.sub.close();
});

test('an entry that got lost is noticed by its version', async () => {
  const p = await proxy(s);
  let drop = 0;
  p.to = (f) => (f.type === 'status_update' && f.data.server_id === 'a' && drop-- > 0 ? [] : [f]);
  const r = record(clientOf(p));
  await r.live();
  await flip('a');
  await r.saw((e) => e.type === 'entry' && e.entry.server_id === 'a');
  drop = 1;
  await flip('a');
  await flip('a');
  const gap = await r.saw((e) => e.type === 'resync');
  assert.equal(gap.reason, 'gap');
  await r.saw((e) => e.type === 'snapshot_end');
  const snapshot = r.events.findLast((e) => e.type === 'snapshot');
  assert.equal(snapshot.items.find((x) => x.id === 'a').status.version, (await c.status('a')).version);
  assert.match(r.states.find((x) => x.phase === 'reconnecting').error.message, /version \d+ of server "a" came after version \d+/);
  r.sub.close();
});

test('with a filter, a lost entry is noticed by the count of a bookmark; a repeated one is dropped', async () => {
  const p = await proxy(s);
  let drop = 0, twice = false, sent = 0, last;
  p.to = (f, down) => {
    if (f.type !== 'status_update') return [f];
    sent++;
    last = f.cursor;
    return drop-- > 0 ? [] : twice ? [f, f] : [f];
  };
  // Bookmarks come every 25 s; the proxy tells one with the service's own count when it is asked to.
  const mark = () => p.clients.forEach((d) => d.send(JSON.stringify({ type: 'bookmark', cursor: last, sent })));
  const r = record(clientOf(p), [{ server_ids: ['a', 'b'] }]);
  await r.live();
  twice = true;
  await flip('a', 'b');
  await until(() => r.entries().length >= 2);
  mark();
  await r.saw((e) => e.type === 'bookmark');
  assert.equal(r.entries().length, 2);
  assert.equal(r.sub.cursor, last);
  assert.equal(r.events.some((e) => e.type === 'resync'), false);
  twice = false;
  drop = 1;
  await flip('a');
  await until(() => sent === 3);
  mark();
  await r.saw((e) => e.type === 'resync' && e.reason === 'gap');
  await r.saw((e) => e.type === 'snapshot_end');
  assert.match(r.states.find((x) => x.phase === 'reconnecting').error.message, /sent 3 entries, 2 came/);
  r.sub.close();
});

test('close codes: who is told to come back does, who is refused ends', async () => {
  for (const code of [1001, 1006, 4001, 4008, 4011, 4029, 5000]) assert.equal(reconnects(code), true, String(code));
  for (const code of [4500, 4501, 4503, 4504, 4999]) assert.equal(reconnects(code), false, String(code));
  const p = await proxy(s);
  for (const [code, want] of [[4500, 'unauthorized'], [4501, 'invalid'], [4503, 'forbidden'], [4504, 'rate_limited'], [4777, 'forbidden']]) {
    const errors = [];
    const r = record(clientOf(p), [], { onError: (e) => errors.push(e) });
    await r.live();
    p.clients.forEach((d) => d.close(code, 'the reason'));
    const e = await r.sub.closed;
    assert.ok(e instanceof ServiceError);
    assert.deepEqual([e.code, e.closeCode, e.message], [want, code, 'the reason']);
    assert.deepEqual(errors, [e]);
    assert.equal(r.sub.state.phase, 'closed');
  }
  for (const code of [1001, 4008, 4011, 4029]) {
    const r = record(clientOf(p), []);
    await r.live();
    p.clients.forEach((d) => d.close(code));
    const lost = await until(() => r.states.find((x) => x.phase === 'reconnecting'));
    assert.match(lost.error.message, new RegExp(String(code)));
    await until(() => r.states.at(-1).phase === 'live' && r.states.length > 4);
    r.sub.close();
  }
});

test('the waits are random below a cap that doubles', async () => {
  const waits = [];
  const sub = clientOf({ url: 'http://127.0.0.1:9' }, { fetch: () => Promise.reject(new TypeError('down')) }).subscribe([], {
    backoffMinMs: 2, backoffMaxMs: 64, onEvent() {}, onState: (x) => x.phase === 'reconnecting' && waits.push(x.retryInMs),
  });
  await until(() => waits.length >= 40);
  sub.close();
  waits.forEach((w, i) => assert.ok(w >= 0 && w <= Math.min(64, 2 * 2 ** i), `wait ${i} is ${w}`));
  const late = waits.slice(6, 40);
  assert.ok(Math.max(...late) > 32 && Math.min(...late) < 32, `full jitter: ${late.map(Math.round)}`);
  assert.ok(new Set(late).size > 30, 'each wait is drawn anew');
});

test('a quiet service is asked for a sign of life, and gives one', async () => {
  const r = record(c, [], { pingAfterMs: 50, pongWithinMs: 60_000 });
  await r.live();
  const { asOf } = r.sub.state;
  await until(() => r.sub.state.asOf.getTime() > asOf.getTime() + 100, 'what is known is true as of its answers');
  assert.equal(r.states.some((x) => x.phase === 'reconnecting'), false);
  r.sub.close();
});

test('a network that says nothing any more is noticed, and so is one that comes back', async () => {
  // The defaults notice it within 40 s: 15 s of silence and 10 s for an answer.
  const p = await proxy(s);
  const r = record(clientOf(p), [], { pingAfterMs: 100, pongWithinMs: 500 });
  await r.live();
  p.frozen = true;
  const lost = await until(() => r.states.find((x) => x.phase === 'reconnecting'));
  assert.match(lost.error.message, /no sign of life/);
  p.frozen = false;
  p.clients.forEach((d) => d.terminate());
  await flip('b');
  await r.saw((e) => e.type === 'entry' && e.entry.server_id === 'b');
  r.sub.close();
});

test('check() asks at once, and ends a wait', async () => {
  const p = await proxy(s);
  const r = record(clientOf(p), [], { pingAfterMs: 60_000, pongWithinMs: 200, backoffMinMs: 1e6, backoffMaxMs: 1e6 });
  await r.live();
  p.frozen = true;
  r.sub.check();
  await until(() => r.sub.state.phase === 'reconnecting');
  assert.ok(r.sub.state.retryInMs > 1000, 'it would wait for long');
  p.frozen = false;
  r.sub.check();
  await r.live();
  r.sub.close();
});

test('abort: before, while connecting, while iterating, with a reason', async () => {
  await assert.rejects(async () => {
    for await (const _ of c.subscribe([], { signal: AbortSignal.abort() })) assert.fail();
  }, { name: 'AbortError' });
  const stop = new AbortController();
  await assert.rejects(async () => {
    for await (const ev of c.subscribe([], { signal: stop.signal })) if (ev.type === 'subscribed') setTimeout(() => stop.abort(new Error('enough')), 20);
  }, { message: 'enough' });
  const errors = [];
  const third = new AbortController();
  const r = record(clientOf({ url: 'http://127.0.0.1:9' }), [], { signal: third.signal, onError: (e) => errors.push(e.message) });
  await until(() => r.sub.state.phase === 'reconnecting');
  third.abort(new Error('gave up'));
  assert.equal((await r.sub.closed).message, 'gave up');
  assert.deepEqual(errors, ['gave up']);
  await assert.rejects(async () => {
    for await (const _ of clientOf({ url: 'http://127.0.0.1:9' }).subscribe([], { mustConnect: true })) assert.fail();
  }, UnreachableError);
});

test('what the service refuses in a subscription ends it, with its words', async () => {
  for (const [filters, o, match] of [
    [[{ states: ['asleep'] }], {}, /asleep/], [[{ type: 'recovery' }], { mode: 'latest' }, /type/], [[{ nonsense: 1 }], {}, /nonsense/],
    [[], { cursor: 'x' }, /cursor/],
  ]) {
    const r = record(c, filters, o);
    const e = await r.sub.closed;
    assert.ok(e instanceof ServiceError, String(e));
    assert.equal(e.code, 'invalid');
    assert.match(e.message, match);
  }
  assert.throws(() => c.subscribe([{ server_ids: Array.from({ length: 1000 }, (_, i) => 'x'.repeat(100) + i) }]), { code: 'too_large' });
  assert.throws(() => c.subscribe([], { mode: 'some' }), { code: 'invalid' });
});

test('frames that make no sense are a lost connection, not a crash', async () => {
  const p = await proxy(s);
  for (const nonsense of ['{', '[]', 'null', '7', '{"type":"snapshot"}', '{"type":"snapshot","items":[null]}', '{"type":"bookmark"}', '{"type":"subscribed"}', '{"type":"status_update","cursor":"e1:1","data":{}}']) {
    const r = record(clientOf(p));
    await r.live();
    const live = r.states.length;
    p.clients.forEach((d) => d.send(nonsense));
    await until(() => r.states.slice(live).some((x) => x.phase === 'reconnecting'), nonsense);
    await until(() => r.sub.state.phase === 'live');
    r.sub.close();
  }
  const r = record(clientOf(p));
  await r.live();
  p.clients.forEach((d) => d.send('{"type":"a_newer_kind_of_frame","x":1}'));
  await flip('a');
  await r.saw((e) => e.type === 'entry');
  assert.equal(r.states.some((x) => x.phase === 'reconnecting'), false, 'what a newer service says is no fault');
  r.sub.close();
});

test('the position that is told is always one to go on from', async () => {
  const r = record(c, [], { snapshot: true });
  await r.live();
  assert.equal(r.events[0].cursor, undefined, 'not before the snapshot');
  const { cursor } = r.sub;
  assert.equal(cursor, r.events.at(-1).cursor);
  r.sub.close();
  await flip('a', 'b');
  for await (const ev of c.subscribe([], { cursor })) {
    assert.deepEqual([ev.type, ev.cursor], ['subscribed', cursor], 'not the service\'s own, up to which all is still to be told');
    break;
  }
});

test('what a callback throws is shown and stops nothing', async (t) => {
  const shown = t.mock.method(console, 'error', () => {});
  const sub = c.subscribe([], { snapshot: true, onEvent() { throw new Error('mine'); } });
  await until(() => sub.state.phase === 'live');
  assert.equal(shown.mock.calls[0].arguments[0].message, 'mine');
  assert.ok(shown.mock.callCount() >= 3);
  sub.close();
});

test('a reader that is behind: bounded, paused, and nothing is lost', async () => {
  const before = (await c.updates().all()).at(-1);
  for (let i = 0; i < 10; i++) await flip('a', 'b', 'c');
  await until(async () => (await c.updates({ after: `${before.epoch}:${before.seq}` }).all()).length >= 30);
  const states = [];
  const sub = c.subscribe([], { cursor: `${before.epoch}:${before.seq}`, maxBuffer: 5, backoffMinMs: 1, onState: (x) => states.push(x.phase) });
  const seen = [];
  for await (const ev of sub) {
    if (ev.type !== 'entry') continue;
    seen.push(ev.entry);
    await sleep(5);
    if (seen.length === 30) break;
  }
  assert.ok(states.includes('paused'), states.join());
  inOrder(seen);
  assert.deepEqual(seen.map((e) => e.seq), (await c.updates({ after: `${before.epoch}:${before.seq}` }).all()).slice(0, 30).map((e) => e.seq));
});

test('a mirror follows: statuses, overrides with their words, definitions, removals', async () => {
  const changes = [];
  const m = c.mirror({ onChange: (ids) => changes.push(ids && [...ids]) });
  await m.ready();
  assert.equal(m.size, 3);
  const was = m.get('a').status;
  await flip('a');
  await until(() => m.get('a').status.version > was.version);
  assert.equal(m.get('a').status.availability, m.get('a').status.state === 'running' ? 'available' : 'unavailable');
  await c.setOverride('a', { state: 'stopped', note: 'by hand' });
  await until(() => m.get('a').status.override?.note === 'by hand');
  assert.equal(m.get('a').status.availability, 'off');
  await c.clearOverride('a');
  await until(() => m.get('a').status.override === undefined && m.get('a').status.state !== 'stopped');
  await c.addServer({ id: 'new', environment_id: 'box', probe: { kind: 'none' }, labels: { k: 'v' } });
  await until(() => m.get('new')?.labels?.k === 'v');
  await c.setServer('new', { environment_id: 'box', probe: { kind: 'none' }, labels: { k: 'w' } });
  await until(() => m.get('new').labels.k === 'w');
  await c.removeServer('new');
  await until(() => m.get('new') === undefined);
  assert.deepEqual([...m.values()].map((x) => x.id).sort(), ['a', 'b', 'c']);
  assert.equal(changes[0], undefined);
  for (const x of await c.list().all()) assert.deepEqual([m.get(x.id).status.state, m.get(x.id).status.version], [x.status.state, x.status.version]);
  m.close();

  const labelled = c.mirror({ filter: { labels: { k: 'v' } } });
  await labelled.ready();
  assert.equal(labelled.size, 0);
  await c.addServer({ id: 'new', environment_id: 'box', probe: { kind: 'none' }, labels: { k: 'v' } });
  await until(() => labelled.get('new'));
  await c.setServer('new', { environment_id: 'box', probe: { kind: 'none' }, labels: { k: 'w' } });
  await until(() => labelled.size === 0, 'what is labelled otherwise leaves');
  await c.removeServer('new');
  labelled.close();

  const unhealthy = c.mirror({ filter: { healths: ['unhealthy'] } });
  await unhealthy.ready();
  const size = unhealthy.size;
  await flip('b');
  await until(() => unhealthy.size !== size);
  await flip('b');
  await until(() => unhealthy.size === size);
  unhealthy.close();
  await assert.rejects(clientOf({ url: 'http://127.0.0.1:9' }).mirror({ mustConnect: true }).ready(), UnreachableError);
});

test('the WebSocket that Node has itself does, and the program ends when the subscription does', async () => {
  const flags = Number(process.versions.node.split('.')[0]) < 22 ? ['--experimental-websocket', '--no-warnings'] : [];
  const p = spawn(process.execPath, [...flags, '--input-type=module', '-e', `
    import { Client } from '@statussync/client';
    for await (const e of new Client({ baseURL: '${s.url}' }).subscribe([], { snapshot: true })) {
      console.log(e.type);
      if (e.type === 'snapshot_end') break;
    }`], { cwd: new URL('..', import.meta.url).pathname, stdio: ['ignore', 'pipe', 'pipe'], timeout: 60_000 });
  let text = '';
  for (const out of [p.stdout, p.stderr]) out.on('data', (d) => (text += d));
  assert.equal(await new Promise((resolve) => p.on('close', resolve)), 0, text);
  assert.deepEqual(text.trim().split('\n'), ['subscribed', 'snapshot', 'snapshot_end']);
});
