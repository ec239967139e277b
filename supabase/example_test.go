package supabase_test

import (
	"context"
	"fmt"
	"net/http/httptest"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/supabase"
	"github.com/agentopia/statussync/supabase/realtimetest"
)

// printer is a receiver that tells what it would do.
type printer struct{ told chan string }

func (p printer) Live()            { p.told <- "live: read everything" }
func (p printer) Lost(cause error) { p.told <- "lost: " + cause.Error() }
func (p printer) Changed(changes []statussync.RowChange) {
	for _, c := range changes {
		p.told <- fmt.Sprintf("read %s %s", c.Table, c.ID)
	}
}

func Example() {
	server := realtimetest.New(realtimetest.Options{APIKey: "sb_secret_example"})
	hs := httptest.NewServer(server)
	defer hs.Close()
	defer server.Close()

	feed, err := supabase.New(supabase.Options{
		URL:    hs.URL, // https://ref.supabase.co
		APIKey: "sb_secret_example",
		Tables: []string{"account_tool_instances", "account_tool_environments"},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	to := printer{make(chan string, 100)}
	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	ended := make(chan error, 1)
	go func() { ended <- feed.Run(ctx, to) }()

	fmt.Println(<-to.told)
	server.Change(realtimetest.Change{Schema: "public", Table: "account_tool_instances", Type: "UPDATE", Record: map[string]any{"id": "weather"}})
	fmt.Println(<-to.told)
	server.CloseChannels()
	fmt.Println(<-to.told)
	fmt.Println(<-to.told)

	stop()
	fmt.Println(<-ended, feed.Status().State)
	// Output:
	// live: read everything
	// read account_tool_instances weather
	// lost: the server closed the channel (phx_close)
	// live: read everything
	// <nil> stopped
}
