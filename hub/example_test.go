package hub_test

import (
	"context"
	"fmt"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/hub"
	"github.com/agentopia/statussync/statussynctest"
)

// A program of your own: a hub, one server, one heartbeat of its host's agent, and somebody who is told.
func Example_embedded() {
	ctx, cancel := context.WithCancel(context.Background())
	h, err := hub.New(hub.Options{
		Journal: statussynctest.NewJournal(), // sqlite.Open for one that lasts
	})
	if err != nil {
		panic(err)
	}
	ended := make(chan error)
	go func() { ended <- h.Run(ctx) }()

	_, err = h.Submit(ctx, &statussync.RegistryUpdate{
		Origin:       statussync.OriginConfig,
		Environments: []statussync.Environment{{ID: "box-7", Name: "box-7"}},
		Servers:      []statussync.Server{{ID: "weather", Name: "weather", EnvironmentID: "box-7", Desired: statussync.DesiredRunning}},
	})
	if err != nil {
		panic(err)
	}

	sub, err := h.Subscribe(ctx, statussync.SubscribeRequest{Snapshot: true})
	if err != nil {
		panic(err)
	}
	defer sub.Close()
	events := make([]statussync.Event, 0, 16)
	tell := func() {
		if events, err = sub.Next(ctx, events[:0]); err != nil {
			panic(err)
		}
		for _, ev := range events {
			switch ev.Type {
			case statussync.EventSnapshot:
				for _, it := range ev.Items {
					fmt.Printf("%s is %s, %s\n", it.Server.ID, it.Status.State, it.Status.Reason)
				}
			case statussync.EventEntry:
				fmt.Printf("%s is now %s, %s\n", ev.Entry.ServerID, ev.Entry.Current.State, ev.Entry.Current.Health)
			}
		}
	}
	tell()

	_, err = h.Submit(ctx, &statussync.AgentReport{
		EnvironmentID: "box-7", Via: statussync.ViaPush, List: statussync.ListComplete,
		Containers: []statussync.ContainerReport{{Names: []string{"weather"}, Word: "running", Text: "Up 2 hours"}},
	})
	if err != nil {
		panic(err)
	}
	tell()

	cancel()
	fmt.Println(<-ended)
	// Output:
	// weather is unknown, never_seen
	// weather is now running, healthy
	// <nil>
}

// A person's word replaces the conclusion until it expires.
func ExampleHub_SetOverride() {
	ctx, cancel := context.WithCancel(context.Background())
	h, err := hub.New(hub.Options{Journal: statussynctest.NewJournal()})
	if err != nil {
		panic(err)
	}
	ended := make(chan error)
	go func() { ended <- h.Run(ctx) }()
	_, err = h.Submit(ctx, &statussync.RegistryUpdate{Origin: statussync.OriginConfig, Servers: []statussync.Server{{ID: "weather", Name: "weather"}}})
	if err != nil {
		panic(err)
	}
	v, err := h.SetOverride(ctx, "weather", statussync.Override{State: statussync.StateStopped, Actor: "ann", Note: "being moved"})
	if err != nil {
		panic(err)
	}
	o := v.Status.Override
	fmt.Println(v.Status.State, v.Status.Reason, v.Status.Marks.Strings(), o.ExpiresAt.Sub(o.SetAt).Round(time.Minute))
	_, err = h.SetOverride(ctx, "wether", statussync.Override{State: statussync.StateStopped})
	fmt.Println(err)
	cancel()
	<-ended
	// Output:
	// stopped override [override] 1h0m0s
	// no server has the id "wether"
}

// Nobody waits for a result here: the newest position is enough to go on later.
func ExampleHub_Updates() {
	ctx, cancel := context.WithCancel(context.Background())
	h, err := hub.New(hub.Options{Journal: statussynctest.NewJournal()})
	if err != nil {
		panic(err)
	}
	ended := make(chan error)
	go func() { ended <- h.Run(ctx) }()
	_, err = h.Submit(ctx, &statussync.RegistryUpdate{Origin: statussync.OriginConfig, Servers: []statussync.Server{{ID: "a", Name: "a"}, {ID: "b", Name: "b"}}})
	if err != nil {
		panic(err)
	}
	var at statussync.Cursor // the oldest
	for {
		items, next, err := h.Updates(ctx, at, 100, nil)
		if err != nil {
			panic(err)
		}
		for _, e := range items {
			fmt.Println(e.ServerID, e.Version, e.Current.Reason)
		}
		if next == at {
			break
		}
		at = next
	}
	cancel()
	<-ended
	// Output:
	// a 1 never_seen
	// b 1 never_seen
}
