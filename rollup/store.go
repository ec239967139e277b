package rollup

import (
	"context"
	"time"

	"github.com/agentopia/statussync"
)

// Store keeps rows of probes and spans. Its methods are safe for concurrent use; errors are *statussync.Error where a
// client may see them. One process writes.
type Store interface {
	// Marks returns how far the rows of probes reach.
	Marks(ctx context.Context) (statussync.ProbeMarks, error)
	// Minutes yields the rows of all servers with from ≤ Start < to, by Start.
	Minutes(ctx context.Context, from, to time.Time, yield func(statussync.ProbeRow) error) error
	// PutMinutes stores rows in place of those that are there, as a numbered batch of a run, whole or not at all; the
	// newest stored batch given again changes nothing. HoursTo goes back to the hour of the first row.
	PutMinutes(ctx context.Context, run string, batch uint64, rows []statussync.ProbeRow) error
	// PutHour stores all rows of an hour in place of what is there of it, and moves HoursTo behind it.
	PutHour(ctx context.Context, hour time.Time, rows []statussync.ProbeRow) error
	// ServerProbes returns rows of one server with from ≤ Start < to, and the marks of the same moment: minutes; or,
	// where hours are asked for, hours up to HoursTo and minutes from there.
	ServerProbes(ctx context.Context, id string, hours bool, from, to time.Time) (rows []statussync.ProbeRow, m statussync.ProbeMarks, known bool, err error)
	// Tracks returns the last span of every server that is not removed, and the checkpoint.
	Tracks(ctx context.Context) ([]statussync.SpanTrack, statussync.SpanCheckpoint, error)
	// PutSpans stores spans and, where it is not zero, the checkpoint, whole or not at all. A span replaces one of its
	// server that begins at the same time. With reset all spans and the checkpoint are deleted first.
	PutSpans(ctx context.Context, spans []statussync.Span, at statussync.SpanCheckpoint, reset bool) error
	// Spans yields each server's spans before to, by time, from the last one at or before from that ends an incident.
	// ids nil: of all servers. The slice is reused after yield returns.
	Spans(ctx context.Context, ids []string, from, to time.Time, yield func(id string, spans []statussync.Span) error) error
}

// Hub is what is needed of the running service: it has started before Service.Run is called.
type Hub interface {
	// Servers returns all servers that match, at most q.Limit of them, as of one position.
	Servers(q statussync.ServerQuery) (items []statussync.ServerView, more bool, at statussync.Cursor)
	// Updates returns up to limit updates and removals after a position (zero: the oldest that are kept), oldest first,
	// and the position up to which entries were considered; CodeExpired.
	Updates(ctx context.Context, after statussync.Cursor, limit int, m *statussync.Matcher) ([]statussync.Encoded, statussync.Cursor, error)
	// Server returns one server as it is now; CodeNotFound.
	Server(id string) (statussync.ServerView, error)
	// Now is engine time.
	Now() time.Time
}
