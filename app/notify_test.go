package app

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestNotifier: signs of life come at half of the watchdog's time, none while the hub does not answer, and they come
// again when it does.
func TestNotifier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type said struct {
			After time.Duration
			What  string
		}
		var got []said
		began := time.Now()
		var stuck atomic.Bool
		n := &notifier{
			send: func(s string) error {
				got = append(got, said{time.Since(began), s})
				return errors.New("nobody listens")
			},
			watchdog: 20 * time.Second,
			ping: func(ctx context.Context) error {
				if stuck.Load() {
					<-ctx.Done()
				}
				return ctx.Err()
			},
			status: func() string { return "well" },
			log:    quiet(),
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- n.Run(ctx) }()
		time.Sleep(25 * time.Second)
		synctest.Wait()
		stuck.Store(true)
		time.Sleep(20 * time.Second) // t=45
		synctest.Wait()
		stuck.Store(false)
		time.Sleep(10 * time.Second)
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		n.restarting() // which may take longer than the watchdog waits; READY=1 sets its time again
		n.stopping()
		want := []said{
			{0, "READY=1\nSTATUS=well\nWATCHDOG_USEC=20000000"},
			{10 * time.Second, "WATCHDOG=1"}, {20 * time.Second, "WATCHDOG=1"},
			{39 * time.Second, "STATUS=the hub does not answer"},
			{50 * time.Second, "WATCHDOG=1"}, {50 * time.Second, "STATUS=well"},
			{55 * time.Second, "STATUS=restarting\nWATCHDOG_USEC=120000000"},
			{55 * time.Second, "STOPPING=1\nSTATUS=stopping"},
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
	})
}

// TestNotifierWithoutWatchdog tells no signs of life, but how it is, when that changes.
func TestNotifierWithoutWatchdog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got []string
		var status atomic.Value
		status.Store("1 server")
		n := &notifier{
			send: func(s string) error { got = append(got, s); return nil },
			ping: func(context.Context) error { return nil }, status: func() string { return status.Load().(string) }, log: quiet(),
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- n.Run(ctx) }()
		time.Sleep(2 * time.Minute)
		status.Store("2 servers")
		time.Sleep(2 * time.Minute)
		cancel()
		<-ended
		if d := cmp.Diff([]string{"READY=1\nSTATUS=1 server", "STATUS=2 servers"}, got); d != "" {
			t.Error(d)
		}
		n.restarting()
		if last := got[len(got)-1]; last != "STATUS=restarting" {
			t.Errorf("%q", last)
		}
		(*notifier)(nil).stopping()
		(*notifier)(nil).restarting()
	})
}

// TestNoServiceManager: without one nobody is told, and a watchdog that can't be read is told at the start.
func TestNoServiceManager(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if n, err := newNotifier(Options{Notify: true}, quiet()); n != nil || err != nil {
		t.Error(n, err)
	}
	t.Setenv("NOTIFY_SOCKET", "/nowhere")
	t.Setenv("WATCHDOG_USEC", "often")
	if _, err := newNotifier(Options{Notify: true}, quiet()); err == nil {
		t.Error("a watchdog time that is no number was taken")
	}
}
