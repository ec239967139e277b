package postgres

import (
	"testing"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/postgres/pgtest"
)

func TestRemovedTriggersEndTheFeed(t *testing.T) {
	c := pgtest.Start(t)
	r := startRegistry(t, migrated(t, c, 1, 1), func(o *Options) { o.Resync = time.Second })
	r.until("it is live", func() bool { return r.Status().Feed == statussync.FeedLive })
	r.exec("drop schema statussync cascade")
	r.until("it says that it polls", func() bool { return r.Status().Feed == statussync.FeedPolling })
}
