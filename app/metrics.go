package app

import (
	"strconv"
	"time"

	"github.com/agentopia/statussync/httpapi"
	"github.com/agentopia/statussync/prom"
)

// samples are the service's own numbers, gathered from the parts for one scrape. api is nil while it is being made.
func (s *service) samples(api *httpapi.API) []prom.Sample {
	var out []prom.Sample
	gauge := func(name, help string, v float64) { out = append(out, prom.Sample{Name: name, Help: help, Value: v}) }
	counter := func(name, help string, v uint64) {
		out = append(out, prom.Sample{Name: name, Help: help, Counter: true, Value: float64(v)})
	}
	labeled := func(name, help, label, value string, v uint64) {
		out = append(out, prom.Sample{Name: name, Help: help, Counter: true, Labels: map[string]string{label: value}, Value: float64(v)})
	}
	boolean := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}

	out = append(out, prom.Sample{Name: "build_info", Help: "The program; always 1.", Labels: map[string]string{"version": s.version}, Value: 1})
	h := s.hub.Stats()
	for kind, n := range h.Observations {
		labeled("observations_total", "Observations taken, by kind.", "kind", kind, n)
	}
	gauge("inbox_used_ratio", "Share of the hub's inbox that is full.", float64(h.InboxDepth)/float64(max(1, h.InboxCapacity)))
	counter("observations_rejected_total", "Observations that could not be taken.", h.Rejected)
	counter("observations_refused_total", "Observations that found no room in the inbox.", h.Refused)
	counter("foreign_containers_total", "Containers in agents' reports that named a server of another environment.", h.Foreign)
	counter("unknown_words_total", "Container and record words that no table knows.", h.UnknownWords)
	counter("journal_entries_total", "Entries published.", h.Entries)
	counter("status_updates_total", "Entries published that are updates of a status.", h.Updates)
	counter("self_doubts_total", "Times that falls were held because the service doubted itself, not the servers.", h.SelfDoubts)
	counter("journal_appends_total", "Batches appended to the journal.", h.Batches)
	counter("journal_append_failures_total", "Appends that failed or took too long.", h.AppendFailures)
	out = append(out, prom.Sample{Name: "journal_append_seconds_total", Help: "Time spent in appends.", Counter: true, Value: h.AppendTime.Seconds()})
	counter("evidence_records_total", "Records of evidence stored.", h.Records)
	counter("epoch_changes_total", "Epochs begun by this process.", h.EpochChanges)
	gauge("journal_durable", "1 while the store takes entries, 0 while a volatile epoch is open.", boolean(h.Durable))
	gauge("journal_backlog_entries", "Entries told in the volatile epoch and not stored yet.", float64(h.Backlog))
	gauge("journal_head_seq", "Position of the newest entry.", float64(h.Head.Seq))
	gauge("ring_entries", "Entries in the ring.", float64(h.RingLength))
	counter("ring_evictions_total", "Entries that left the ring for newer ones.", h.Evictions)
	counter("store_reads_total", "Pages read from the store for subscribers behind the ring.", h.StoreReads)
	gauge("subscriptions", "Open subscriptions.", float64(h.Subscriptions))
	counter("resyncs_total", "Subscribers that were told to start afresh.", h.Resyncs)
	counter("cache_hits_total", "Reads of a status that was fresh in memory.", h.CacheHits)
	counter("cache_misses_total", "Reads of a status that was not fresh and caused a probe.", h.CacheMisses)
	gauge("clock_lag_seconds", "Wall clock ahead of engine time; negative: behind.", h.ClockLag.Seconds())
	counter("clock_jumps_total", "Times that the wall clock went ahead.", h.ClockJumps)

	p := s.probes.Stats()
	gauge("probes_enabled", "1 while servers are probed.", boolean(p.Enabled))
	gauge("probe_targets", "Servers that are probed.", float64(p.Targets))
	gauge("probes_in_flight", "Probes under way.", float64(p.InFlight))
	gauge("probes_waiting", "Probes that are due but have no place.", float64(p.Waiting))
	labeled("probes_total", "Probes taken, by outcome.", "outcome", "success", p.Outcomes.Success)
	labeled("probes_total", "Probes taken, by outcome.", "outcome", "alive", p.Outcomes.Alive)
	labeled("probes_total", "Probes taken, by outcome.", "outcome", "failure", p.Outcomes.Failure)
	late := &prom.Histogram{Below: map[float64]uint64{}, Count: p.Lateness.Count, Sum: p.Lateness.Sum.Seconds()}
	below := uint64(0)
	for i, bound := range p.Lateness.Bounds {
		if i < len(p.Lateness.Counts) {
			below += p.Lateness.Counts[i]
		}
		late.Below[bound.Seconds()] = below
	}
	out = append(out, prom.Sample{Name: "probe_lateness_seconds", Help: "How late probes start, against the time they were due.", Histogram: late})

	s.driftSamples(gauge, counter)

	st := s.store.Stats()
	gauge("store_file_bytes", "Size of the embedded store's file.", float64(st.FileBytes))
	gauge("store_log_bytes", "Size of the write-ahead log beside it.", float64(st.LogBytes))
	gauge("store_max_bytes", "What the store's file and log may have together; the oldest entries go before that.", float64(s.config.Journal.MaxBytes))
	gauge("store_retention_seconds", "How long entries are kept where there is room.", time.Duration(s.config.Journal.Retention).Seconds())
	gauge("store_entries", "Entries stored.", float64(st.Entries))
	if !st.Oldest.IsZero() {
		gauge("store_oldest_timestamp_seconds", "Time of the oldest entry stored.", float64(st.Oldest.Unix()))
	}
	s.operationSamples(labeled, gauge, counter, boolean)
	out = append(out, s.mcpSamples()...)
	out = append(out, s.databases.samples()...)
	out = append(out, s.rollupSamples(h.Head.Seq)...)
	if s.certs != nil {
		gauge("tls_cert_not_after_seconds", "When the certificate in use expires, in seconds since 1970.", float64(s.certs.NotAfter().Unix()))
	}
	if api == nil {
		return out
	}
	a := api.Stats()
	gauge("ws_connections", "Open WebSocket connections.", float64(a.WebSockets))
	gauge("mcp_requests", "Requests to the service as an MCP server that are under way, streams among them.", float64(a.MCPRequests))
	gauge("sse_connections", "Open streams of server-sent events.", float64(a.SSEStreams))
	for code, n := range a.WSClosed {
		labeled("ws_closed_total", "Ended WebSocket connections, by close code.", "code", strconv.Itoa(code), n)
	}
	counter("sse_cut_total", "Streams cut because a write was blocked for too long.", a.SSECut)
	counter("entries_sent_total", "Entries written to all streams.", a.EntriesSent)
	counter("logins_failed_total", "Credentials refused.", a.LoginsFailed)
	counter("heartbeats_total", "Heartbeats accepted.", a.Heartbeats)
	counter("heartbeats_refused_total", "Heartbeats refused because the inbox was full.", a.InboxFull)
	return out
}
