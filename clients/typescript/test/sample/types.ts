// What must, and what must not, be accepted by the types. Compiled by the tests, never run.
import { Client, ServiceError, StatusSyncService, type Server, type SubscriptionEvent, type Update } from '@statussync/client';
import { StatusSyncService as Alone } from '@statussync/client/StatusSyncService';

const client = new Client({ baseURL: 'https://status.example.com', token: async () => 'secret-token' });
new Client();
new StatusSyncService(client);
new StatusSyncService({ baseURL: 'https://status.example.com', token: 'secret-token' });
new Alone();
new Client({ WebSocket: globalThis.WebSocket, fetch: globalThis.fetch });

export async function uses(signal: AbortSignal): Promise<void> {
  for await (const s of client.list({ states: ['running'], labels: { team: 'core' } }, { signal })) {
    const one: Server = s;
    one.status.reason.length;
    // @ts-expect-error a server always has a status, whose state is one of six words
    one.status.state === 'asleep';
  }
  // @ts-expect-error a word that no server can have
  client.list({ healths: ['fine'] });
  // @ts-expect-error an override needs a state
  await client.setOverride('a', { note: 'x' });
  await client.setOverride('a', { state: 'stopped', expires_in: '1h' }, { signal, timeoutMs: 1000 });
  // @ts-expect-error a misspelt filter
  client.subscribe([{ serverIds: ['a'] }]);
  const sub = client.subscribe([{ kinds: ['status', 'a_newer_kind'] }], { snapshot: true, cursor: 'e7:41', mode: 'latest', leave: true, signal });
  for await (const ev of sub) told(ev);
  const { explain } = await client.explain('a');
  explain.rules.find((r) => r.won)?.why?.length;
  const total = (await client.uptime({ window: '7d' }).page()).total;
  total?.availability_percent?.toFixed(2);
  try {
    await client.get('a');
  } catch (e) {
    if (e instanceof ServiceError && e.code === 'not_found') e.faults.map((f) => f.message);
  }
}

function told(ev: SubscriptionEvent): Update | undefined {
  switch (ev.type) {
    case 'entry':
      return ev.entry;
    case 'snapshot':
      ev.items.map((s) => s.id);
      return undefined;
    case 'resync':
      ev.reason === 'gap';
      return undefined;
    case 'subscribed':
      // @ts-expect-error where a snapshot follows there is no position yet
      ev.cursor.length;
      return undefined;
    case 'snapshot_end':
    case 'bookmark':
      ev.cursor.length;
      return undefined;
  }
}
