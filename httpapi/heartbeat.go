package httpapi

import (
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/dtma"
)

// Bounds of a heartbeat (docs/protocols.md §1).
const (
	maxHeartbeat         = 1 << 20 // bytes
	heartbeatReadTimeout = 10 * time.Second
	heartbeatRetryAfter  = 5 // seconds, when the inbox is full
)

// heartbeat takes one report of an environment's agent. The token says whose it is; what the body says of that is not
// asked, and neither is its Content-Type: that guard is against foreign web pages, and none can send the token. It is answered with 204 and no body: the reference agent logs every other answer as a failure.
func (a *API) heartbeat(w http.ResponseWriter, r *http.Request) {
	env, err := a.agentOf(r)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	if a.opts.AgentCert != nil {
		if err := a.opts.AgentCert(env, r.TLS); err != nil {
			a.fail(w, r, err)
			return
		}
	}
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(heartbeatReadTimeout)) // no deadlines: in tests only
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxHeartbeat))
	if err != nil {
		var large *http.MaxBytesError
		if errors.As(err, &large) {
			err = statussync.NewError(statussync.CodeTooLarge, "a heartbeat may have at most 1 MiB", nil)
		} else {
			err = statussync.NewError(statussync.CodeInvalid, "the body could not be read", err)
		}
		a.fail(w, r, err)
		return
	}
	report, err := dtma.Decode(raw)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	report.EnvironmentID = env
	if len(a.opts.Reports) > 0 {
		report.Raw = raw
	}
	if err := a.opts.Hub.TryObserve(report); err != nil {
		if statussync.CodeOf(err) == statussync.CodeUnavailable {
			a.streams.inboxFull.Add(1)
			err = withRetry{err, heartbeatRetryAfter}
		}
		a.fail(w, r, err)
		return
	}
	for _, sink := range a.opts.Reports {
		sink.Report(report)
	}
	a.streams.heartbeats.Add(1)
	w.WriteHeader(http.StatusNoContent)
}
