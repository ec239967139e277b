// The official client: node follow.mjs URL KEY VSN TABLE. It prints what it is told as lines of JSON, and takes commands on
// standard input: "token JWT", "subscribe", "unsubscribe", "quit".
import { createInterface } from 'node:readline'
import { RealtimeClient } from '@supabase/realtime-js'
import WebSocket from 'ws'

const [url, apikey, vsn, table] = process.argv.slice(2)
const say = (what, more = {}) => console.log(JSON.stringify({ what, ...more }))
const client = new RealtimeClient(url, {
  params: { apikey }, vsn, transport: WebSocket, heartbeatIntervalMs: 500,
  reconnectAfterMs: () => 200,
  heartbeatCallback: (status) => say('heartbeat', { status }),
})

let channel
function subscribe() {
  channel = client.channel('mcp')
    .on('postgres_changes', { event: '*', schema: 'public', table }, (payload) => say('change', { payload }))
    .on('system', {}, (payload) => say('system', { payload }))
    .subscribe((status, err) => say('status', { status, error: err ? String(err.message ?? err) : '' }))
}

for await (const line of createInterface({ input: process.stdin })) {
  const [command, value] = line.trim().split(' ')
  switch (command) {
    case 'token': await client.setAuth(value); say('done', { command }); break
    case 'subscribe': subscribe(); break
    case 'unsubscribe': say('left', { result: await client.removeChannel(channel) }); break
    case 'quit': await client.disconnect(); process.exit(0)
    default: say('unknown', { command })
  }
}
process.exit(0)
