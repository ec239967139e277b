package app

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/agentopia/statussync"
)

// statusEvery is how often the service manager's status line is looked at where no watchdog sets a rhythm.
const statusEvery = 30 * time.Second

// notifier tells the service manager that started this process how it is (sd_notify(3)): that it serves, that it stops,
// a status line, and, where a watchdog is set, a sign of life at half of its time as long as the hub answers.
type notifier struct {
	send     func(state string) error
	watchdog time.Duration // a sign of life is due this often; 0: no watchdog
	ping     func(context.Context) error
	status   func() string // one line for people
	log      *slog.Logger
}

// newNotifier returns what tells the service manager of the environment, or nil where there is none or nobody asked. A
// watchdog's time that can't be read is an error: the service would be killed soon.
func newNotifier(o Options, log *slog.Logger) (*notifier, error) {
	if !o.Notify || os.Getenv("NOTIFY_SOCKET") == "" {
		return nil, nil
	}
	watchdog, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return nil, &statussync.Error{Code: statussync.CodeInvalid, Location: "WATCHDOG_USEC", Detail: "is not a time in microseconds", Err: err}
	}
	return &notifier{
		send:     func(state string) error { _, err := daemon.SdNotify(false, state); return err },
		watchdog: watchdog, log: log.With("component", "notify"),
	}, nil
}

// of makes s what n tells of. It may be nil.
func (n *notifier) of(s *service) *notifier {
	if n != nil {
		n.ping, n.status = s.hub.Ping, s.statusLine
	}
	return n
}

// statusLine says in one line how the service is.
func (s *service) statusLine() string {
	m := s.hub.SyncMetrics()
	line := fmt.Sprintf("serving on %s: %d servers, %d running, %d in error", s.listener.Addr(), m.TotalServers, m.ActiveServers, m.ErrorServers)
	if r := s.hub.Ready(); r.Detail != "" {
		line += "; " + r.Detail
	}
	return line
}

// Run tells that the service serves, and goes on telling until ctx ends. It returns nil: a service manager that does not
// listen is no reason to stop.
func (n *notifier) Run(ctx context.Context) error {
	last := n.status()
	ready := daemon.SdNotifyReady + "\nSTATUS=" + last
	if n.watchdog > 0 { // a restart has set another time
		ready += watchdogTime(n.watchdog)
	}
	n.tell(ready)
	every := statusEvery
	if n.watchdog > 0 {
		every = n.watchdog / 2
	}
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		// A hub that answers just before the next sign is due is slow, not stuck.
		pctx, cancel := context.WithTimeout(ctx, every-every/10)
		err := n.ping(pctx)
		cancel()
		now := "the hub does not answer"
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			now = n.status()
			if n.watchdog > 0 {
				n.tell(daemon.SdNotifyWatchdog)
			}
		default:
			n.log.Error("the hub does not answer; the service manager gets no sign of life", "within", every-every/10, "error", err)
		}
		if now != last {
			last = now
			n.tell("STATUS=" + now)
		}
	}
}

// restartWithin is how long a restart may take before the service manager takes it for stuck: hub and store have 20 s each
// to stop, and opening a large store, or migrating it, takes its time. It is the unit's TimeoutStartSec.
const restartWithin = 2 * time.Minute

// watchdogTime is the line that makes d the watchdog's time from now on.
func watchdogTime(d time.Duration) string {
	return "\nWATCHDOG_USEC=" + strconv.FormatInt(d.Microseconds(), 10)
}

// restarting tells that no sign of life comes before the next service runs. A nil notifier has nobody to tell.
func (n *notifier) restarting() {
	if n == nil {
		return
	}
	state := "STATUS=restarting"
	if n.watchdog > 0 {
		state += watchdogTime(max(n.watchdog, restartWithin))
	}
	n.tell(state)
}

// stopping tells that the service stops. A nil notifier has nobody to tell.
func (n *notifier) stopping() {
	if n != nil {
		n.tell(daemon.SdNotifyStopping + "\nSTATUS=stopping")
	}
}

// during tells that the process lives although no service runs in it, until the function that it returns is called, which
// waits for that to end. Who calls it sees to that it ends. A nil notifier has nobody to tell.
func (n *notifier) during(what string) (end func()) {
	if n == nil {
		return func() {}
	}
	n.tell("STATUS=" + what)
	if n.watchdog <= 0 {
		return func() {}
	}
	n.tell(daemon.SdNotifyWatchdog)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		t := time.NewTicker(n.watchdog / 2)
		defer t.Stop()
		limit := time.NewTimer(eraseLimit)
		defer limit.Stop()
		for {
			select {
			case <-stop:
				return
			case <-limit.C: // it hangs: the service manager may do what it is there for
				return
			case <-t.C:
				n.tell(daemon.SdNotifyWatchdog)
			}
		}
	}()
	return func() { close(stop); <-done }
}

func (n *notifier) tell(state string) {
	if err := n.send(state); err != nil {
		n.log.Warn("the service manager cannot be told", "error", err)
	}
}
