// Package probe decides when servers are probed. It knows nothing of protocols: a statussync.Prober per kind does the
// asking, the engine's plans say what and how often.
//
// Guarantees:
//
//   - A server never has two probes in flight, also when its plan is replaced or it is removed and added again.
//   - First probes are spread evenly over the interval; later ones come at the interval ± 10 %. A shorter interval
//     applies at once.
//   - At most Concurrency probes are in flight, at most PerEnvironment of one environment. A server without an
//     environment counts under the host of its URL. Whoever has to wait does so in its environment's own queue, without
//     holding a place elsewhere; environments take turns.
//   - Servers whose last probe took a second or longer get at most half of the places, overall and of their
//     environment. However many hang, the others are probed on time. A question with a shorter timeout than the plan's
//     is exempt: it is put to many servers at once and wants all the answers soon.
//   - An answer to a ProbeNow always began after it was asked for. One for at once with a shorter timeout than that of
//     the probe in flight replaces it, which then gives no result; any other waits for its end.
//   - Results reach the Observer in the order in which they ended, many at a time where many are ready. A server's next
//     probe starts only after its last result was taken. A probe that was given up (plan replaced, server removed,
//     shutdown) gives no result: it says nothing about the server.
//   - While the Observer takes nothing, no more than Concurrency results wait: then probing pauses.
//
// Do, Check's bookkeeping, SetEnabled and Stats hold one mutex for a short time and never while they call or wait.
// There is one timer, for the nearest due time.
package probe
