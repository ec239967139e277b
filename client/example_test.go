package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/client"
)

// A program that must hear of every server that becomes unhealthy, and of every one that no longer is, whatever happens
// to the connection. It keeps the cursor, so that it can go on there after a restart of its own.
func ExampleClient_Subscribe() {
	c, err := client.New(client.Options{BaseURL: "https://status.example.org", Token: "secret"})
	if err != nil {
		log.Fatal(err)
	}
	var cursor statussync.Cursor // as it was stored by an earlier run
	sick := map[string]bool{}
	for ev, err := range c.Subscribe(context.Background(), client.SubscribeOptions{
		Filter: statussync.Filter{Clauses: []statussync.Clause{{Healths: []statussync.Health{statussync.HealthUnhealthy}}}, Leave: true},
		Cursor: cursor,
	}) {
		if err != nil {
			log.Fatal(err) // the context ended, or the service refuses for good
		}
		switch ev.Type {
		case statussync.EventResync: // what follows is a snapshot: begin anew
			clear(sick)
		case statussync.EventSnapshot:
			for _, s := range ev.Items {
				sick[s.ID] = true
			}
		case statussync.EventEntry:
			if e := ev.Entry; e.Current != nil && e.Current.Health == statussync.HealthUnhealthy {
				sick[e.ServerID] = true
			} else {
				delete(sick, e.ServerID)
			}
		}
		if !ev.Cursor.IsZero() && ev.Type != statussync.EventSubscribed {
			cursor = ev.Cursor // store it
		}
	}
}

// A refusal of the service is told apart from a service that can't be reached.
func ExampleClient_Status() {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"status":404,"code":"not_found","detail":"no server has the id \"weather\""}`)
	}))
	c, err := client.New(client.Options{BaseURL: srv.URL})
	if err != nil {
		log.Fatal(err)
	}
	defer c.CloseIdle()

	_, err = c.Status(context.Background(), "weather")
	fmt.Println(statussync.CodeOf(err), errors.Is(err, client.ErrUnreachable))

	srv.Close()
	_, err = c.Status(context.Background(), "weather")
	fmt.Println(errors.Is(err, client.ErrUnreachable))
	// Output:
	// not_found false
	// true
}
