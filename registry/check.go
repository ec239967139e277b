package registry

import (
	"encoding/json"
	"errors"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/agentopia/statussync"
)

// Bounds of one definition. Those of numbers that the configuration has too are the same there.
const (
	maxURL           = 2048 // bytes
	maxLabels        = 64
	maxHeaders       = 32
	maxHeaderBytes   = 8 << 10 // names and values together
	maxCapabilities  = 16 << 10
	minProbeInterval = 100 * time.Millisecond
	maxDuration      = 30 * 24 * time.Hour
	maxRetries       = 20
	maxRise          = 100
	maxBackoff       = 10
)

// faults gathers everything that is wrong with a definition, so that all of it is told at once.
type faults []error

// add notes a fault, unless what is empty.
func (f *faults) add(field, what string) {
	if what != "" {
		*f = append(*f, statussync.Invalid(field, what))
	}
}

func (f faults) err() error { return errors.Join(f...) }

// complete fills in what a definition of a server leaves out, as the configuration does.
func complete(s *statussync.Server) {
	s.Origin = statussync.OriginManaged
	if s.Name == "" {
		s.Name = s.ID
	}
	if s.Desired == "" {
		s.Desired = statussync.DesiredRunning
	}
	if s.Transport == "" {
		s.Transport = statussync.TransportStreamableHTTP
	}
}

// checkServer judges a completed definition by itself: what needs no knowledge of others.
func (m *Manager) checkServer(s *statussync.Server) faults {
	var f faults
	f.add("id", IDFault(s.ID))
	for _, t := range []struct{ field, text string }{{"name", s.Name}, {"owner", s.Owner}, {"container", s.Container}, {"type", s.Type}} {
		f.add(t.field, TextFault(t.text))
	}
	if s.EnvironmentID != "" {
		f.add("environment_id", IDFault(s.EnvironmentID))
	}
	if !s.Transport.Valid() {
		f.add("transport", "must be one of streamable-http, sse, http, stdio, not "+shown(string(s.Transport)))
	}
	if s.Desired != statussync.DesiredRunning && s.Desired != statussync.DesiredStopped {
		f.add("desired", "must be one of running, stopped, not "+shown(string(s.Desired)))
	}
	f.add("endpoint", addressFault(s.Endpoint))
	f.labels(s.Labels)
	if len(s.Capabilities) > 0 {
		if b, err := json.Marshal(s.Capabilities); err != nil || len(b) > maxCapabilities {
			f.add("capabilities", "are larger than "+strconv.Itoa(maxCapabilities)+" bytes of JSON")
		}
	}
	m.checkProbe(&f, &s.Probe)
	return f
}

// addressFault judges an address that may be absent.
func addressFault(s string) string {
	switch {
	case s == "":
		return ""
	case len(s) > maxURL:
		return "is longer than " + strconv.Itoa(maxURL) + " bytes"
	}
	return URLFault(s)
}

func (f *faults) labels(labels map[string]string) {
	if len(labels) > maxLabels {
		f.add("labels", "are more than "+strconv.Itoa(maxLabels))
		return
	}
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		if k == "" {
			f.add("labels", "holds an empty name")
		} else if TextFault(k) != "" || strings.Contains(k, "=") { // filters are written key=value
			f.add("labels", shown(k)+" is not a name: it holds = or characters that cannot be shown, or is longer than "+strconv.Itoa(statussync.MaxNameText)+" bytes")
		} else {
			f.add("labels."+k, TextFault(labels[k]))
		}
	}
}

func (m *Manager) checkProbe(f *faults, p *statussync.ProbeSpec) {
	if p.Kind != "" && !slices.Contains(m.o.ProbeKinds, p.Kind) {
		words := make([]string, len(m.o.ProbeKinds))
		for i, k := range m.o.ProbeKinds {
			words[i] = string(k)
		}
		f.add("probe.kind", "must be one of "+strings.Join(words, ", ")+", not "+shown(string(p.Kind)))
	}
	f.add("probe.url", addressFault(p.URL))
	switch {
	case p.Path == "":
	case !strings.HasPrefix(p.Path, "/"):
		f.add("probe.path", "must begin with /")
	case len(p.Path) > maxURL || p.Path != statussync.CleanText(p.Path, maxURL):
		f.add("probe.path", "holds characters that cannot be shown, or is longer than "+strconv.Itoa(maxURL)+" bytes")
	}
	if p.Interval != 0 && p.Interval < minProbeInterval {
		f.add("probe.interval", "must be at least "+minProbeInterval.String())
	}
	for _, d := range []struct {
		field string
		d     time.Duration
	}{{"probe.interval", p.Interval}, {"probe.timeout", p.Timeout}, {"probe.start_grace", p.StartGrace}, {"probe.slow_after", p.SlowAfter}} {
		if d.d < 0 || d.d > maxDuration {
			f.add(d.field, "must be between 0 and 30d")
		}
	}
	if p.MaxRetries != nil && (*p.MaxRetries < 0 || *p.MaxRetries > maxRetries) {
		f.add("probe.max_retries", "must be between 0 and "+strconv.Itoa(maxRetries))
	}
	if p.BackoffMultiplier != 0 && !(p.BackoffMultiplier >= 1 && p.BackoffMultiplier <= maxBackoff) || math.IsNaN(p.BackoffMultiplier) {
		f.add("probe.backoff_multiplier", "must be between 1 and "+strconv.Itoa(maxBackoff))
	}
	if p.Rise < 0 || p.Rise > maxRise {
		f.add("probe.rise", "must be between 1 and "+strconv.Itoa(maxRise))
	}
	if p.Expect != "" && p.Expect != "open" {
		f.add("probe.expect", "must be open or absent, not "+shown(p.Expect))
	}
	if p.Canary != (statussync.Canary{}) {
		switch field, fault := CanaryFault(p.Canary); {
		case fault != "":
			f.add("probe.canary."+field, fault)
		case p.Kind == statussync.ProbeHTTP || p.Kind == statussync.ProbeNone:
			f.add("probe.canary", "needs a server that is probed as MCP")
		}
	}
	f.headers(p.Headers)
}

// headers judges headers and never shows a value: they are credentials.
func (f *faults) headers(headers map[string]string) {
	if len(headers) > maxHeaders {
		f.add("probe.headers", "are more than "+strconv.Itoa(maxHeaders))
		return
	}
	size := 0
	for _, k := range slices.Sorted(maps.Keys(headers)) {
		size += len(k) + len(headers[k])
		if k == "" || strings.ContainsFunc(k, func(r rune) bool { return !headerNameRune(r) }) {
			f.add("probe.headers", shown(k)+" is not the name of a header")
		} else if strings.ContainsFunc(headers[k], func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
			f.add("probe.headers", "the value of "+shown(k)+" holds control characters")
		}
	}
	if size > maxHeaderBytes {
		f.add("probe.headers", "are larger than "+strconv.Itoa(maxHeaderBytes)+" bytes")
	}
}

// headerNameRune reports whether r may stand in a header's name (RFC 9110, token).
func headerNameRune(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r < 0x80 && strings.ContainsRune("!#$%&'*+-.^_`|~", r)
}

// checkPlace judges a server among the others: its environment must exist, no other server there may have its
// container, and it must not be probed at its environment's agent. The caller has the turn.
func (m *Manager) checkPlace(f *faults, s *statussync.Server) {
	if s.EnvironmentID == "" {
		return
	}
	env, ok := m.environmentLocked(s.EnvironmentID)
	if !ok {
		f.add("environment_id", "no environment has the id "+shown(s.EnvironmentID))
		return
	}
	name := s.ContainerName()
	for o := range m.othersLocked(s.EnvironmentID) {
		if o.ID != s.ID && o.ContainerName() == name {
			*f = append(*f, &statussync.Error{
				Code: statussync.CodeConflict, Location: "container",
				Detail: shown(name) + " is the container of the server " + shown(o.ID) + " already",
			})
			break
		}
	}
	if field, same := probesAgent(s, &env); same {
		f.add(field, "is the address of the agent of "+shown(s.EnvironmentID)+", not of the server: a probe there would only prove that the agent lives")
	}
}

// probesAgent reports whether a server's probes would reach the agent of an environment, and which field says so.
func probesAgent(s *statussync.Server, env *statussync.Environment) (field string, same bool) {
	field, target := "probe.url", s.Probe.URL
	if target == "" {
		field, target = "endpoint", s.Endpoint
	}
	return field, s.Probe.Kind != statussync.ProbeNone && env.AgentAnswersAt(target)
}

// checkEnvironment judges a definition by itself.
func checkEnvironment(e *statussync.Environment) faults {
	var f faults
	f.add("id", IDFault(e.ID))
	f.add("name", TextFault(e.Name))
	f.add("owner", TextFault(e.Owner))
	if e.Address != "" && !ValidHost(e.Address) {
		f.add("address", shown(e.Address)+" is not a host name or an IP address (without a port)")
	}
	f.add("agent_url", addressFault(e.AgentURL))
	return f
}
