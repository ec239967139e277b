// The types: against a sample that uses them, against the description that the service serves, and the README's examples run.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before } from 'node:test';
import { pathToFileURL } from 'node:url';
import ts from 'typescript';
import { clientOf, container, startService, target, test, unprobed, until } from './harness.mjs';

const here = new URL('..', import.meta.url).pathname;
// Inside the package, so that its own name and "ws" are found as an installed one is.
const out = mkdtempSync(join(here, 'test', '.compiled-'));
after(() => rmSync(out, { recursive: true, force: true }));
const options = {
  target: ts.ScriptTarget.ES2022, module: ts.ModuleKind.NodeNext, moduleResolution: ts.ModuleResolutionKind.NodeNext, strict: true,
  noUncheckedIndexedAccess: true, exactOptionalPropertyTypes: true, lib: ['lib.es2023.d.ts', 'lib.dom.d.ts'], types: [], outDir: out, rootDir: join(here, 'test'), skipLibCheck: true,
};
const readme = readFileSync(join(here, 'README.md'), 'utf8');
const examples = [...readme.matchAll(/^```ts\n([\s\S]*?)^```/gm)].map((m) => m[1]);

let program;
before(() => {
  examples.forEach((text, i) => writeFileSync(join(here, 'test', `.readme-${i}.mts`), text));
  after(() => examples.forEach((_, i) => rmSync(join(here, 'test', `.readme-${i}.mts`), { force: true })));
  writeFileSync(join(out, 'ws.d.mts'), `declare module 'ws' { export const WebSocket: { new (url: string): import('@statussync/client').WebSocketLike } }\ndeclare const process: { env: Record<string, string | undefined> };\n`);
  const files = ['test/sample/original-usage.ts', 'test/sample/types.ts', ...examples.map((_, i) => `test/.readme-${i}.mts`)].map((f) => join(here, f));
  program = ts.createProgram([...files, join(out, 'ws.d.mts')], options);
});

test('the samples and the examples compile', () => {
  const found = ts.getPreEmitDiagnostics(program);
  assert.equal(found.length, 0, ts.formatDiagnostics(found, { getCurrentDirectory: () => here, getCanonicalFileName: (f) => f, getNewLine: () => '\n' }));
  program.emit();
});

test('a sample of the original\'s usage runs', async () => {
  const health = await target();
  const s = await startService({
    environments: [{ id: 'box', name: 'The box', agent_token: 'agent-token-1' }],
    servers: [unprobed('weather'), unprobed('maps'), { id: 'probed', environment: 'box', transport: 'http', endpoint: `${health.url}/mcp`, probe: { kind: 'http', url: `${health.url}/health` } }],
  });
  await s.heartbeat('agent-token-1', container('weather'), container('maps'), container('probed'));
  await until(async () => (await clientOf(s).list({ healths: ['healthy'] }).all()).length === 3);
  const { WebSocket } = await import('ws');
  globalThis.WebSocket ??= WebSocket; // as in a browser
  process.env.STATUSSYNC_SERVER = s.url;
  const { StatusBoard } = await import(pathToFileURL(join(out, 'sample', 'original-usage.js')));
  const board = new StatusBoard({ from: () => assert.fail('the database is not asked') });
  assert.equal(board.connection(), 'disconnected');
  await board.open('weather');
  try {
    assert.equal(board.connection(), 'connected');
    assert.deepEqual(Object.keys(board.statuses).sort(), ['maps', 'probed', 'weather']);
    assert.equal(board.statuses.weather.state, 'running');
    assert.equal(board.lines.length, 0);

    await s.heartbeat('agent-token-1', container('weather'), container('maps', 'dead'), container('probed'));
    await until(() => board.lines.length === 1);
    assert.match(board.lines[0], /^\d{4}-.*Z maps: running\/healthy -> error\/unhealthy \(dtma\) ./);
    const o = await board.overview();
    assert.deepEqual(o.running.sort(), ['probed@The box', 'weather@The box']);
    assert.match(o.broken[0], /^maps /);
    assert.deepEqual([o.metrics.totalServers, o.metrics.activeServers, o.metrics.errorServers, o.metrics.subscriptions], [3, 2, 1, 3]);
    assert.ok(o.metrics.lastSyncTime instanceof Date);
    assert.match(await board.describe('weather'), /^running, healthy, up (119|12\d) min, since \d{4}-/);
    await s.heartbeat('agent-token-1', container('weather'), container('maps'), container('probed'));
    await until(() => board.recoveries.includes('maps'));

    // The server's own subscription hears changes of state, not those of health alone.
    await board.markAsBroken('weather', 'the disk is full');
    assert.equal(board.statuses.weather.state, 'error', 'subscribers are told before it resolves');
    assert.match(board.lines.at(-1), /weather: running\/healthy -> error\/unhealthy \(manual\)/);
    assert.equal(board.stateChangesOfFirst.length, 1);
    const c = clientOf(s);
    assert.equal((await c.get('weather')).status.override.note, 'the disk is full');
    await c.setOverride('weather', { state: 'error', health: 'unknown' });
    await until(() => board.statuses.weather.health === 'unknown');
    assert.equal(board.stateChangesOfFirst.length, 1);
    await c.clearOverride('weather');
    await until(() => board.stateChangesOfFirst.length === 2);

    assert.equal(await board.checkNow('probed'), true);
    health.status = 500;
    await until(async () => !(await board.checkNow('probed'))); // a check that is under way is shared
    health.status = 200;
    await until(async () => (await board.checkNow('probed')) && (await c.status('probed')).state === 'running');
    assert.equal(await board.checkAll(), 1);
    await board.refresh();
    assert.deepEqual((await board.history('maps')).slice(0, 2), ['error>running', 'running>error']);
    await board.monitoring(false);
    assert.equal((await c.probing()).enabled, false);
    await board.monitoring(true);
    assert.equal((await c.probing()).enabled, true);

    // What happens while the service can't be heard is told afterwards.
    const told = board.lines.length;
    await s.kill9();
    await until(() => board.connection() === 'connecting');
    rmSync(s.data, { recursive: true });
    await s.start();
    await until(() => board.connection() === 'connected');
    await until(() => board.lines.slice(told).some((l) => l.includes('weather: running/healthy -> unknown/unknown (system)')));
    await board.reopen();
    assert.equal(board.connection(), 'connected');
  } finally {
    await board.close();
  }
  assert.equal(board.connection(), 'disconnected');
});

test('the README\'s examples run', async () => {
  const s = await startService({
    auth: { tokens: [{ name: 'ops', role: 'operator', token: 'ops-token-1' }] },
    environments: [{ id: 'box', agent_token: 'agent-token-1' }], servers: [unprobed('weather'), unprobed('maps')],
  });
  await s.heartbeat('agent-token-1', container('weather'), container('maps', 'dead'));
  await until(async () => (await clientOf(s, { token: 'ops-token-1' }).list({ healths: ['unhealthy'] }).all()).length === 1);
  assert.ok(examples.length >= 4);
  await Promise.all(examples.map((_, i) => new Promise((resolve, reject) => {
    const p = spawn(process.execPath, [join(out, `.readme-${i}.mjs`)], { env: { ...process.env, STATUSSYNC_SERVER: s.url, STATUSSYNC_TOKEN: 'ops-token-1' }, stdio: ['ignore', 'pipe', 'pipe'], timeout: 60_000 });
    let text = '';
    p.stdout.on('data', (d) => (text += d));
    p.stderr.on('data', (d) => (text += d));
    p.on('exit', (code, signal) => (code === 0 && text !== '' ? resolve() : reject(new Error(`example ${i} ended with ${code ?? signal}:\n${text}\n${examples[i]}`))));
  })));
});

test('the wire\'s types are those of the service\'s own description', async (t) => {
  const s = await startService({});
  const { components } = await (await fetch(`${s.url}/openapi.json`)).json();
  const checker = program.getTypeChecker();
  const source = program.getSourceFiles().find((f) => f.fileName.endsWith('/dist/types.d.ts'));
  const declared = new Map(checker.getExportsOfModule(checker.getSymbolAtLocation(source)).map((x) => [x.name, checker.getDeclaredTypeOfSymbol(x)]));
  const faults = [];
  let compared = 0;
  for (const [name, schema] of Object.entries(components.schemas)) {
    if (!schema.properties || name === 'Healthz' || name === 'ProbingRequest') continue; // no shapes of this client's surface
    // Parts of lists are called after what they hold.
    const type = declared.get(/^Page[A-Z]/.test(name) ? 'Page' : name === 'SyncResult' ? 'Sync' : name);
    if (!type) {
      t.diagnostic(`not in types.ts: ${name}`);
      continue;
    }
    compared++;
    const theirs = Object.keys(schema.properties).filter((k) => k !== '$schema');
    const ours = new Map(type.getProperties().map((p) => [p.name, p]));
    for (const k of theirs) {
      const p = ours.get(k);
      if (!p) {
        faults.push(`${name} lacks ${k}`);
        continue;
      }
      const optional = Boolean(p.flags & ts.SymbolFlags.Optional);
      const required = (schema.required ?? []).includes(k);
      if (optional === required) faults.push(`${name}.${k} is ${optional ? 'optional' : 'required'} here and ${required ? 'required' : 'optional'} there`);
      const words = schema.properties[k].enum ?? schema.properties[k].items?.enum;
      const text = checker.typeToString(checker.getNonNullableType(checker.getTypeOfSymbol(p)), undefined, ts.TypeFormatFlags.NoTruncation | ts.TypeFormatFlags.InTypeAlias);
      const base = { string: /string|"/, integer: /number/, number: /number/, boolean: /boolean|true|false/ }[[].concat(schema.properties[k].type).find((x) => x !== 'null')];
      if (base && !base.test(text) && !/^[A-Z]\w*$/.test(text)) faults.push(`${name}.${k} is ${text} here and ${schema.properties[k].type} there`);
      const all = wordsOf(checker, checker.getTypeOfSymbol(p));
      for (const w of words ?? []) if (all.size && !all.has(w)) faults.push(`${name}.${k} lacks the word ${w}`);
    }
    for (const k of ours.keys()) if (!theirs.includes(k)) faults.push(`${name} has ${k}, which the service does not`);
  }
  assert.deepEqual(faults, []);
  assert.ok(compared > 40, `only ${compared} of ${Object.keys(components.schemas).length} were compared`);
});

/** The words of a union of words, or of a list of them. */
function wordsOf(checker, type) {
  const out = new Set();
  const walk = (x) => {
    if (x.isUnion()) x.types.forEach(walk);
    else if (x.isStringLiteral()) out.add(x.value);
    else if (checker.isArrayType(x)) checker.getTypeArguments(x).forEach(walk);
  };
  walk(type);
  return out;
}
