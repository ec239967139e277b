package postgres

import (
	"cmp"
	"slices"
	"time"

	"github.com/agentopia/statussync"
)

// earlyReports are agents' reports that came before the rows were read for the first time, as they do where the service
// starts while the database is away: which rows they are about is not known yet. Of each environment the newest heartbeat
// is kept, and the events after it. The zero value is empty.
type earlyReports struct {
	envs  map[string][]earlyReport
	bytes int
}

type earlyReport struct {
	report *statussync.AgentReport
	at     time.Time
}

// Bounds of earlyReports; what is beyond is dropped. The agent's next heartbeat tells the same.
const (
	maxEarlyBytes  = 64 << 20
	maxEarlyEvents = 16 // of one environment
)

func sizeOf(r *statussync.AgentReport) int { return len(r.Raw) + 1000 + 500*len(r.Containers) }

func (e *earlyReports) keep(r *statussync.AgentReport, at time.Time) {
	if e.envs == nil {
		e.envs = map[string][]earlyReport{}
	}
	list := e.envs[r.EnvironmentID]
	drop := 0
	switch {
	case r.List == statussync.ListComplete: // it says everything anew
		drop = len(list)
	case len(list) > maxEarlyEvents:
		drop = 1
	}
	for _, old := range list[:drop] {
		e.bytes -= sizeOf(old.report)
	}
	list = list[drop:]
	if n := sizeOf(r); e.bytes+n <= maxEarlyBytes {
		e.bytes += n
		list = append(list, earlyReport{r, at})
	}
	if len(list) == 0 {
		delete(e.envs, r.EnvironmentID)
		return
	}
	e.envs[r.EnvironmentID] = list
}

// take returns all, oldest first, and forgets them.
func (e *earlyReports) take() []earlyReport {
	var out []earlyReport
	for _, list := range e.envs {
		out = append(out, list...)
	}
	*e = earlyReports{}
	slices.SortFunc(out, func(a, b earlyReport) int {
		return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.report.EnvironmentID, b.report.EnvironmentID))
	})
	return out
}
