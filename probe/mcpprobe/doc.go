// Package mcpprobe asks MCP servers as an MCP client would: a success means that the server would serve one.
//
// The protocol has two eras on the wire. A modern server (2026-07-28) is asked server/discover, which is stateless. A
// legacy one (2025-11-25 and before) is held in one long-lived session, opened once and asked to ping; over HTTP+SSE
// (2024-11-05) that session is one held stream. The table of docs/protocols.md §6 is the function judge.
//
// Guarantees:
//
//   - A server that Do was told of has at most one session or held stream, however many probes, inventories and canaries
//     ask it. A session that the server lost is opened anew once in a probe; a server that loses each one at once is
//     not given more than one in ten minutes in the end.
//   - A session is ended (DELETE) when its server's plan is removed, of another kind, or has another URL, transport or
//     headers, and by Close. So is one that a server opens without being asked. A server that Do was not told of is
//     probed without memory: its session is ended before Probe returns.
//   - Every answer is bounded: 64 KiB of header (guard), MaxBody of body or of events, 4 MiB for a list; between two
//     questions a held stream may send 8 MiB. Deadlines hold for connecting, header and body together.
//   - Tool lists are never cached. No token is ever fetched, no redirect followed, no command started.
//   - There is no goroutine for a server, but one for each held HTTP+SSE stream, which Close waits for.
package mcpprobe
