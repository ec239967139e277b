package statussync

import "context"

// FeedState is how well the changes of a database are followed.
type FeedState string

// The states of a feed.
const (
	FeedLive       FeedState = "live"        // changes are told as they happen
	FeedCatchingUp FeedState = "catching_up" // connected, and everything is being read before changes are believed to be complete
	FeedPolling    FeedState = "polling"     // nothing tells of changes; everything is read again and again
	FeedDown       FeedState = "down"        // the database cannot be reached
)

// RowChange says that a row of a table was inserted, updated or deleted. It is a hint to read the row again, never its
// content: what feeds carry may be cut short, late or repeated.
type RowChange struct {
	Table   string // without its schema
	ID      string // the primary key as text; empty: some row of the table, so read them all
	Deleted bool
}

// ChangeFeed tells of rows that change. A feed may lose changes, repeat them and mix their order: whoever listens reads
// everything again when the feed says that it is live, and now and then.
type ChangeFeed interface {
	// Run connects, and connects again whenever the channel is lost, until ctx ends (it then returns nil) or the feed
	// cannot work here at all, which the error explains. It joins every goroutine that it started before it returns. All
	// calls to the receiver come from one goroutine at a time.
	Run(ctx context.Context, to FeedReceiver) error
}

// FeedReceiver is told what a ChangeFeed sees. Its methods don't block.
type FeedReceiver interface {
	// Live says that every change from now on will be told, as far as the feed can know. What changed before may have been
	// missed: the receiver reads everything again.
	Live()
	// Changed tells of changes. The slice is the feed's own after the call.
	Changed(changes []RowChange)
	// Lost says that changes are not told any more, until Live is called again. cause is for people and names no secret.
	Lost(cause error)
}
