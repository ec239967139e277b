package engine_test

import (
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/engine"
)

// durations visits every duration of a policy, those of its probe defaults included.
func durations(p *engine.Policy, visit func(name string, d *time.Duration)) {
	var walk func(prefix string, v reflect.Value)
	walk = func(prefix string, v reflect.Value) {
		for i := range v.NumField() {
			f, name := v.Field(i), prefix+v.Type().Field(i).Name
			switch x := f.Addr().Interface().(type) {
			case *time.Duration:
				visit(name, x)
			case *[]time.Duration:
				for j := range *x {
					visit(name, &(*x)[j])
				}
			case *statussync.ProbeSpec:
				walk(name+".", f)
			}
		}
	}
	walk("", reflect.ValueOf(p).Elem())
}

// TestPolicyScaled: compressed time compresses every duration, and leaves the policy that it was made from alone.
func TestPolicyScaled(t *testing.T) {
	p := engine.DefaultPolicy()
	p.LateAfter, p.LostAfter = 5*time.Minute, 15*time.Minute
	var before, after []time.Duration
	names := []string{}
	durations(&p, func(name string, d *time.Duration) { names, before = append(names, name), append(before, *d) })
	s := p.Scaled(1. / 30)
	durations(&s, func(_ string, d *time.Duration) { after = append(after, *d) })
	if len(before) < 30 || len(before) != len(after) {
		t.Fatalf("%d durations became %d", len(before), len(after))
	}
	for i, n := range names {
		if want := time.Duration(float64(before[i]) / 30); after[i]-want > 1 || want-after[i] > 1 {
			t.Errorf("%s: %s became %s, want %s", n, before[i], after[i], want)
		}
	}
	i := 0
	durations(&p, func(name string, d *time.Duration) {
		if *d != before[i] {
			t.Errorf("%s of the policy itself changed from %s to %s", name, before[i], *d)
		}
		i++
	})
	if err := s.Validate(); err != nil {
		t.Error(err)
	}
}

// TestPolicyValidate: every bad number is refused by its name.
func TestPolicyValidate(t *testing.T) {
	bad := map[string]func(*engine.Policy){
		"LateAfter":               func(p *engine.Policy) { p.LateAfter = time.Minute }, // without LostAfter
		"LostAfter":               func(p *engine.Policy) { p.LateAfter, p.LostAfter = time.Hour, time.Minute },
		"LateFactor":              func(p *engine.Policy) { p.LateFactor = 0 },
		"LostFactor":              func(p *engine.Policy) { p.LostFactor = 2 },
		"AskFactor":               func(p *engine.Policy) { p.AskFactor = -1 },
		"AskFailures":             func(p *engine.Policy) { p.AskFailures = 0 },
		"Probe.Kind":              func(p *engine.Policy) { p.Probe.Kind = "ftp" },
		"Probe.MaxRetries":        func(p *engine.Policy) { p.Probe.MaxRetries = nil },
		"Probe.BackoffMultiplier": func(p *engine.Policy) { p.Probe.BackoffMultiplier = 0.5 },
		"Probe.Rise":              func(p *engine.Policy) { p.Probe.Rise = 0 },
		"Probe.StartGrace":        func(p *engine.Policy) { p.Probe.StartGrace = -1 },
		"AlternateFactor":         func(p *engine.Policy) { p.AlternateFactor = 0 },
		"DoubtShare":              func(p *engine.Policy) { p.DoubtShare = 1.1 },
		"DoubtServers":            func(p *engine.Policy) { p.DoubtServers = 0 },
		"DoubtHosts":              func(p *engine.Policy) { p.DoubtHosts = 0 },
		"DoubtAgents":             func(p *engine.Policy) { p.DoubtAgents = 0 },
		"DoubtFactor":             func(p *engine.Policy) { p.DoubtFactor = 0 },
		"CrashLoopCount":          func(p *engine.Policy) { p.CrashLoopCount = 0 },
		"FlapChanges":             func(p *engine.Policy) { p.FlapChanges = 0 },
	}
	p := engine.DefaultPolicy()
	durations(&p, func(name string, _ *time.Duration) {
		switch name {
		case "LateAfter", "LostAfter", "Probe.StartGrace", "StopAsks": // zero means something there
			return
		}
		bad[name] = func(p *engine.Policy) {
			durations(p, func(n string, d *time.Duration) {
				if n == name {
					*d = 0
				}
			})
		}
	})
	for name, spoil := range bad {
		p := engine.DefaultPolicy()
		spoil(&p)
		_, err := engine.New(p)
		var e *statussync.Error
		if !errors.As(err, &e) || e.Code != statussync.CodeInvalid || e.Location != name {
			t.Errorf("%s: %v, want an invalid error at %s", name, err, name)
		}
	}
	if _, err := engine.New(engine.DefaultPolicy()); err != nil {
		t.Error(err)
	}
}
