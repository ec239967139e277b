package engine

import (
	"slices"
	"time"

	"github.com/agentopia/statussync"
)

// Policy holds every number of the rules. DefaultPolicy gives those of docs/domain.md; a Policy is valid only whole, so
// start from it.
type Policy struct {
	// Heartbeats. LateAfter and LostAfter, where not zero, replace the learned limits.
	LateAfter          time.Duration
	LostAfter          time.Duration
	DefaultInterval    time.Duration // 60 s, until three gaps are known
	MinInterval        time.Duration // 10 s
	MaxLastGap         time.Duration // 60 s: the last gap counts up to this
	LateFactor         float64       // 2.5
	LostFactor         float64       // 4
	AskFactor          float64       // 2: past this many intervals a silent agent is asked
	AskEvery           time.Duration // 10 s
	AskFailures        int           // 3 failed questions past late make an agent lost, if it ever answered one
	StuckAfter         time.Duration // 10 min
	StuckForgivenAfter time.Duration // 2 min of running end a transition for good

	// Probes. These are the defaults of every server's ProbeSpec.
	Probe           statussync.ProbeSpec // kind (none: by transport), path, interval 30 s, timeout 10 s, 3 retries, ×2, rise 2, grace 30 s, slow 2 s
	BaseInterval    time.Duration        // 30 s: the interval for which the cadences below are given; they scale with a server's
	RetryAfter      time.Duration        // 1 s: the first confirmation, and the second non-failure of a rise
	CadenceBad      time.Duration        // 10 s: error or unhealthy, for the first BadFor
	BadFor          time.Duration        // 10 min
	CadenceBadLong  time.Duration        // 60 s: afterwards
	CadenceStopped  time.Duration        // 5 min
	CadenceChanging time.Duration        // 10 s: starting, stopping, unknown, no verdict
	AlternateFactor float64              // 2: alternating outcomes become a verdict after this many times StartGrace
	SampleTimeout   time.Duration        // 2 s: each probe of a sample
	SampleServes    time.Duration        // 10 s: one sample serves everybody
	GatherFalls     time.Duration        // 2 s: falls of one host are gathered
	HoldFalls       time.Duration        // 30 s: in self-doubt
	DoubtShare      float64              // 0.55
	DoubtServers    int                  // 10: sampled at most
	DoubtHosts      int                  // 3 other environments at least
	DoubtAgents     int                  // 5 environments at least, for the heartbeat form
	DoubtFactor     float64              // 1.5 intervals
	StopWait        time.Duration        // 10 s: a clean stop of a healthy, wanted server waits for a sign of life
	StopAsks        []time.Duration      // 0, 1, 3, 7 s

	CrashLoopWindow time.Duration // 10 min
	CrashLoopCount  int           // 3
	RestartingGap   time.Duration // 30 s between sightings of "restarting"

	FlapChanges int           // 6: more than this many
	FlapWindow  time.Duration // 30 min
	FlapQuiet   time.Duration // 15 min
}

// DefaultPolicy returns the numbers of docs/domain.md.
func DefaultPolicy() Policy {
	retries := 3
	return Policy{
		DefaultInterval: 60 * time.Second, MinInterval: 10 * time.Second, MaxLastGap: 60 * time.Second,
		LateFactor: 2.5, LostFactor: 4, AskFactor: 2, AskEvery: 10 * time.Second, AskFailures: 3,
		StuckAfter: 10 * time.Minute, StuckForgivenAfter: 2 * time.Minute,
		Probe: statussync.ProbeSpec{
			Path: "/health", Interval: 30 * time.Second, Timeout: 10 * time.Second,
			MaxRetries: &retries, BackoffMultiplier: 2, Rise: 2, StartGrace: 30 * time.Second, SlowAfter: 2 * time.Second,
		},
		BaseInterval: 30 * time.Second, RetryAfter: time.Second, CadenceBad: 10 * time.Second, BadFor: 10 * time.Minute, CadenceBadLong: 60 * time.Second,
		CadenceStopped: 5 * time.Minute, CadenceChanging: 10 * time.Second, AlternateFactor: 2,
		SampleTimeout: 2 * time.Second, SampleServes: 10 * time.Second, GatherFalls: 2 * time.Second,
		HoldFalls: 30 * time.Second, DoubtShare: 0.55, DoubtServers: 10, DoubtHosts: 3, DoubtAgents: 5, DoubtFactor: 1.5,
		StopWait: 10 * time.Second, StopAsks: []time.Duration{0, time.Second, 3 * time.Second, 7 * time.Second},
		CrashLoopWindow: 10 * time.Minute, CrashLoopCount: 3, RestartingGap: 30 * time.Second,
		FlapChanges: 6, FlapWindow: 30 * time.Minute, FlapQuiet: 15 * time.Minute,
	}
}

var probeKinds = []statussync.ProbeKind{statussync.ProbeHTTP, statussync.ProbeMCP, statussync.ProbeNone}

// Scaled returns p with every duration multiplied by f: the same rules in compressed time. Server ProbeSpecs are not
// part of a policy and are scaled by whoever makes them.
func (p Policy) Scaled(f float64) Policy {
	sc := func(d *time.Duration) { *d = time.Duration(float64(*d) * f) }
	for _, d := range []*time.Duration{
		&p.LateAfter, &p.LostAfter, &p.DefaultInterval, &p.MinInterval, &p.MaxLastGap, &p.AskEvery, &p.StuckAfter,
		&p.StuckForgivenAfter, &p.Probe.Interval, &p.Probe.Timeout, &p.Probe.StartGrace, &p.Probe.SlowAfter, &p.BaseInterval, &p.RetryAfter,
		&p.CadenceBad, &p.BadFor, &p.CadenceBadLong, &p.CadenceStopped, &p.CadenceChanging, &p.SampleTimeout,
		&p.SampleServes, &p.GatherFalls, &p.HoldFalls, &p.StopWait, &p.CrashLoopWindow, &p.RestartingGap, &p.FlapWindow,
		&p.FlapQuiet,
	} {
		sc(d)
	}
	asks := make([]time.Duration, len(p.StopAsks))
	for i, d := range p.StopAsks {
		asks[i] = time.Duration(float64(d) * f)
	}
	p.StopAsks = asks
	return p
}

// Validate checks a policy. The error is a *statussync.Error with CodeInvalid that names the field.
func (p *Policy) Validate() error {
	for _, d := range []struct {
		name string
		d    time.Duration
	}{
		{"DefaultInterval", p.DefaultInterval}, {"MinInterval", p.MinInterval}, {"MaxLastGap", p.MaxLastGap},
		{"AskEvery", p.AskEvery}, {"StuckAfter", p.StuckAfter}, {"StuckForgivenAfter", p.StuckForgivenAfter},
		{"Probe.Interval", p.Probe.Interval}, {"Probe.Timeout", p.Probe.Timeout}, {"Probe.SlowAfter", p.Probe.SlowAfter},
		{"BaseInterval", p.BaseInterval}, {"RetryAfter", p.RetryAfter}, {"CadenceBad", p.CadenceBad}, {"BadFor", p.BadFor},
		{"CadenceBadLong", p.CadenceBadLong}, {"CadenceStopped", p.CadenceStopped}, {"CadenceChanging", p.CadenceChanging},
		{"SampleTimeout", p.SampleTimeout}, {"SampleServes", p.SampleServes}, {"GatherFalls", p.GatherFalls},
		{"HoldFalls", p.HoldFalls}, {"StopWait", p.StopWait}, {"CrashLoopWindow", p.CrashLoopWindow},
		{"RestartingGap", p.RestartingGap}, {"FlapWindow", p.FlapWindow}, {"FlapQuiet", p.FlapQuiet},
	} {
		if d.d <= 0 {
			return statussync.Invalid(d.name, "must be greater than zero")
		}
	}
	for _, n := range []struct {
		name string
		ok   bool
	}{
		{"LateAfter", p.LateAfter >= 0 && (p.LateAfter > 0) == (p.LostAfter > 0)},
		{"LostAfter", p.LostAfter >= p.LateAfter},
		{"LateFactor", p.LateFactor > 0}, {"LostFactor", p.LostFactor >= p.LateFactor}, {"AskFactor", p.AskFactor > 0},
		{"AskFailures", p.AskFailures > 0}, {"Probe.Kind", p.Probe.Kind == "" || slices.Contains(probeKinds, p.Probe.Kind)}, {"Probe.MaxRetries", p.Probe.MaxRetries != nil && *p.Probe.MaxRetries >= 0},
		{"Probe.BackoffMultiplier", p.Probe.BackoffMultiplier >= 1}, {"Probe.Rise", p.Probe.Rise > 0},
		{"Probe.StartGrace", p.Probe.StartGrace >= 0}, {"AlternateFactor", p.AlternateFactor > 0},
		{"DoubtShare", p.DoubtShare > 0 && p.DoubtShare <= 1}, {"DoubtServers", p.DoubtServers > 0}, {"DoubtHosts", p.DoubtHosts > 0},
		{"DoubtAgents", p.DoubtAgents > 0}, {"DoubtFactor", p.DoubtFactor > 0}, {"CrashLoopCount", p.CrashLoopCount > 0},
		{"FlapChanges", p.FlapChanges > 0},
	} {
		if !n.ok {
			return statussync.Invalid(n.name, "is out of range")
		}
	}
	return nil
}
