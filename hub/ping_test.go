package hub

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/agentopia/statussync"
)

func TestPing(t *testing.T) {
	r := start(t, nil, Options{})
	before := r.Stats()
	if err := r.Ping(r.ctx()); err != nil {
		t.Fatal(err)
	}
	if after := r.Stats(); after.Entries != before.Entries || after.Batches != before.Batches {
		t.Errorf("a ping was stored: %+v, before %+v", after, before)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if err := r.Ping(r.ctx()); statussync.CodeOf(err) != statussync.CodeUnavailable {
		t.Errorf("after the stop: %v", err)
	}
}

// stuckRequester holds the writer until it is let go.
type stuckRequester struct{ let chan struct{} }

func (s stuckRequester) Do([]statussync.Request) { <-s.let }

// TestPingOfAStuckHub: whatever holds the hub up, a ping gets no answer until it is over.
func TestPingOfAStuckHub(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stuck := stuckRequester{make(chan struct{})}
		r := start(t, nil, Options{Requester: stuck})
		u := registry(1)
		u.Servers[0].Probe = statussync.ProbeSpec{Kind: statussync.ProbeHTTP}
		submitted := make(chan error, 1)
		go func() {
			_, err := r.Submit(r.ctx(), u)
			submitted <- err
		}()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(r.ctx(), 10*time.Second)
		defer cancel()
		if err := r.Ping(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a hub that is stuck answered %v", err)
		}
		close(stuck.let)
		if err := <-submitted; err != nil {
			t.Fatal(err)
		}
		if err := r.Ping(r.ctx()); err != nil {
			t.Errorf("a hub that goes on: %v", err)
		}
		if err := r.stop(); err != nil {
			t.Error(err)
		}
	})
}
