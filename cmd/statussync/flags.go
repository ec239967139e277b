package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/wire"
)

// enum is a flag with one of a few words.
type enum struct {
	value   string
	allowed []string
}

func (e *enum) String() string { return e.value }
func (e *enum) Type() string   { return strings.Join(e.allowed, "|") }
func (e *enum) Set(s string) error {
	if !slices.Contains(e.allowed, s) {
		return errors.New("must be one of " + joinWords(e.allowed))
	}
	e.value = s
	return nil
}

// words is a flag that may be repeated and takes lists with commas; allowed nil takes any word.
type words struct {
	values  []string
	allowed []string
}

func (w *words) String() string { return strings.Join(w.values, ",") }
func (w *words) Type() string   { return "list" }
func (w *words) Set(s string) error {
	for _, v := range strings.Split(s, ",") {
		v = strings.TrimSpace(v)
		if v == "" {
			return errors.New("holds an empty word")
		}
		if w.allowed != nil && !slices.Contains(w.allowed, v) {
			return fmt.Errorf("%q is not one of %s", statussync.CleanText(v, statussync.MaxWordText), joinWords(w.allowed))
		}
		w.values = append(w.values, v)
	}
	return nil
}

// serverIDs is a list of servers' ids in a flag --server, which elsewhere is the address of the service. An address is
// refused here: taken for an id, it would leave the command to talk to another service, and find nothing there.
type serverIDs struct{ words }

func (s *serverIDs) Set(v string) error {
	if strings.Contains(v, "://") {
		return errors.New("holds ids of servers here; the address of the service is what STATUSSYNC_SERVER says")
	}
	return s.words.Set(v)
}

func typed[T ~string](list []string) []T {
	var out []T
	for _, s := range list {
		out = append(out, T(s))
	}
	return out
}

func untyped[T ~string](list []T) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = string(s)
	}
	return out
}

// labels is a repeatable flag key=value.
type labels struct{ values map[string]string }

func (l *labels) String() string {
	var out []string
	for k, v := range l.values {
		out = append(out, k+"="+v)
	}
	slices.Sort(out)
	return strings.Join(out, ",")
}
func (l *labels) Type() string { return "key=value" }
func (l *labels) Set(s string) error {
	k, v, ok := strings.Cut(s, "=")
	if !ok || k == "" {
		return errors.New("must look like key=value")
	}
	if old, ok := l.values[k]; ok && old != v {
		return fmt.Errorf("asks for two values of %q; no server has both", statussync.CleanText(k, statussync.MaxWordText))
	}
	if l.values == nil {
		l.values = make(map[string]string)
	}
	l.values[k] = v
	return nil
}

// cursor is a flag with a position in the journal.
type cursor struct{ statussync.Cursor }

func (c *cursor) Type() string { return "cursor" }
func (c *cursor) Set(s string) error {
	p, err := statussync.ParseCursor(s)
	if err != nil {
		return errors.New("is not a cursor; one looks like e7:41 and comes from an earlier answer")
	}
	c.Cursor = p
	return nil
}

// duration is a flag with Go's durations plus d; the text is kept as it was given, for it is sent so.
type duration struct{ text string }

func (d *duration) String() string { return d.text }
func (d *duration) Type() string   { return "duration" }
func (d *duration) Set(s string) error {
	v, err := wire.ParseDuration(s)
	if err != nil {
		return errors.New("is not a duration; one looks like 90s, 15m, 1h or 2d")
	}
	if v <= 0 {
		return errors.New("must be greater than zero")
	}
	d.text = s
	return nil
}

// completeEnums makes the shell complete the words of enum and words flags.
func completeEnums(cmd *cobra.Command) {
	cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
		var allowed []string
		switch v := f.Value.(type) {
		case *enum:
			allowed = v.allowed
		case *words:
			allowed = v.allowed
		}
		if allowed != nil {
			// The only error is a flag that is registered twice: inherited ones are visited once for each command.
			_ = cmd.RegisterFlagCompletionFunc(f.Name, cobra.FixedCompletions(allowed, cobra.ShellCompDirectiveNoFileComp))
		}
	})
}

// filterFlags are the conditions that reads of servers share.
type filterFlags struct {
	states, healths, availability, environments words
	labels                                      labels
}

func (f *filterFlags) register(cmd *cobra.Command) {
	f.states.allowed = untyped(statussync.States)
	f.healths.allowed = untyped(statussync.Healths)
	f.availability.allowed = untyped(availabilities())
	fl := cmd.Flags()
	fl.Var(&f.states, "state", "only these states: "+joinWords(f.states.allowed))
	fl.Var(&f.healths, "health", "only these healths: "+joinWords(f.healths.allowed))
	fl.Var(&f.availability, "availability", "only these: "+joinWords(f.availability.allowed))
	fl.Var(&f.environments, "environment", "only servers of these environments")
	fl.Var(&f.labels, "label", "only servers with this label; repeated: with all of them")
}

func availabilities() []statussync.Availability {
	return []statussync.Availability{
		statussync.Available, statussync.Limited, statussync.Unavailable, statussync.Changing, statussync.Off,
		statussync.AvailabilityUnknown,
	}
}

// clauses says in a subscription's words what the flags say. Availability is no field of a clause, so each is spelt out
// as the states and healths that it stands for (docs/domain.md, layer 4).
func (f *filterFlags) clauses(ids []string, kinds []statussync.Kind) []statussync.Clause {
	if len(ids) == 0 {
		ids = nil // an empty list would match nothing
	}
	base := statussync.Clause{Kinds: kinds, ServerIDs: ids, EnvironmentIDs: f.environments.values, Labels: f.labels.values}
	states, healths := typed[statussync.State](f.states.values), typed[statussync.Health](f.healths.values)
	if len(f.availability.values) == 0 {
		base.States, base.Healths = states, healths
		if ids == nil && kinds == nil && base.EnvironmentIDs == nil && base.Labels == nil && states == nil && healths == nil {
			return nil
		}
		return []statussync.Clause{base}
	}
	var out []statussync.Clause
	add := func(s []statussync.State, h []statussync.Health) {
		c := base
		c.States, c.Healths = both(s, states), both(h, healths)
		if (c.States == nil || len(c.States) > 0) && (c.Healths == nil || len(c.Healths) > 0) {
			out = append(out, c)
		}
	}
	const (
		healthy, degraded, unhealthy, unknown = statussync.HealthHealthy, statussync.HealthDegraded, statussync.HealthUnhealthy, statussync.HealthUnknown
	)
	notBad := []statussync.Health{healthy, degraded, unknown}
	for _, a := range f.availability.values {
		switch statussync.Availability(a) {
		case statussync.Unavailable:
			add(nil, []statussync.Health{unhealthy})
			add([]statussync.State{statussync.StateError}, nil)
		case statussync.Available:
			add([]statussync.State{statussync.StateRunning}, []statussync.Health{healthy})
		case statussync.Limited:
			add([]statussync.State{statussync.StateRunning}, []statussync.Health{degraded})
		case statussync.Changing:
			add([]statussync.State{statussync.StateStarting, statussync.StateStopping}, notBad)
		case statussync.Off:
			add([]statussync.State{statussync.StateStopped}, notBad)
		case statussync.AvailabilityUnknown:
			add([]statussync.State{statussync.StateUnknown}, notBad)
			add([]statussync.State{statussync.StateRunning}, []statussync.Health{unknown})
		}
	}
	if out == nil { // the conditions exclude each other
		base.States = []statussync.State{}
		out = append(out, base)
	}
	return out
}

// both is what is in both lists; nil lists are absent and restrict nothing.
func both[T comparable](a, b []T) []T {
	switch {
	case a == nil:
		return b
	case b == nil:
		return a
	}
	out := []T{}
	for _, v := range a {
		if slices.Contains(b, v) {
			out = append(out, v)
		}
	}
	return out
}
