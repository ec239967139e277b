// Package rollup counts what probes gave, follows the journal into spans of uptime, and answers questions about both.
//
// Rules are pure: Report makes an Uptime and its incidents of spans, Sketch holds latencies, tracker makes spans of
// entries. Around them stands one Service with two loops.
//
// # Probes
//
// Observer stands between the probing scheduler and the hub. A result that the hub has taken is counted in memory for
// its server and the minute in which it ended, by the wall clock: count, failures, and the latency of what was no
// failure (a failure's latency is that of a timeout or a refusal, and says nothing about the server's speed). This takes
// a mutex for a moment and never waits for the store. A minute that has ended is stored in one batch, 2 s later; the one
// that runs is stored when Run ends. Reads also see what is not stored yet. When an hour has ended its minutes are
// merged into hourly rows, from what is stored, so that it can be done again at any time; hours during which the service
// was down are caught up with.
//
// A crash loses the minute that runs. Nothing is counted twice: a batch has a number, which is stored with it, and a row
// that is there already (a restart within the minute) is merged with.
//
// Latencies are kept in DDSketches (Masson, Rim, Lee: DDSketch, VLDB 2019) of 1 % relative accuracy: a quantile is
// within 1 % of the exact one, also after any merging. One or two samples take 6 to 9 bytes.
//
// # Uptime
//
// The follower reads status updates and removals from its stored checkpoint on, every second, and stores a span whenever
// the class of a server's time changes, in one transaction with the checkpoint. So nothing is lost or repeated by a
// crash. While the store takes nothing the follower stops reading: it is only a position in the journal. A position that
// can't be continued is followed by a comparison with the present statuses: what kept its class and has been so since
// before the gap goes on, everything else is unknown for the time of the gap.
//
// # Resources
//
// Resources is told of every agent report, and counts what it says of the host per environment and minute, like probes:
// samples, sum, maximum and newest size. A batch is added to its minutes and to their hours in one transaction, with its
// number, so hours need no merging, and nothing is counted twice.
//
// # Failure and bounds
//
// A store that fails never hurts anybody else. It is logged once, counted, and tried again. Probes wait in memory for
// it, up to maxCells counts of a server and minute, then the oldest minutes are dropped, and counted.
package rollup
