package dtma

import (
	"fmt"
	"testing"
	"time"

	"github.com/agentopia/statussync"
	"pgregory.net/rapid"
)

func age(lo, hi time.Duration) statussync.AgeRange { return statussync.AgeRange{Min: lo, Max: hi} }

func code(n int) *int { return &n }

func same(a, b *int) bool { return (a == nil) == (b == nil) && (a == nil || *a == *b) }

func TestParseStatusText(t *testing.T) {
	const h = time.Hour
	for text, want := range map[string]StatusText{
		"Up 2 hours":                              {Word: "running", StartAge: age(90*time.Minute, 150*time.Minute)},
		"Up 2 hours (healthy)":                    {Word: "running", HealthCheck: "healthy", StartAge: age(90*time.Minute, 150*time.Minute)},
		"Up 3 minutes (unhealthy)":                {Word: "running", HealthCheck: "unhealthy", StartAge: age(3*time.Minute, 4*time.Minute)},
		"Up 5 seconds (health: starting)":         {Word: "running", HealthCheck: "starting", StartAge: age(5*time.Second, 6*time.Second)},
		"Up 3 minutes (Paused)":                   {Word: "paused", StartAge: age(3*time.Minute, 4*time.Minute)},
		"Up Less than a second":                   {Word: "running", StartAge: age(0, time.Second)},
		"Up 1 second":                             {Word: "running", StartAge: age(time.Second, 2*time.Second)},
		"Up About a minute":                       {Word: "running", StartAge: age(time.Minute, 2*time.Minute)},
		"Up About an hour":                        {Word: "running", StartAge: age(h, 90*time.Minute)},
		"Up 26 hours":                             {Word: "running", StartAge: age(25*h+h/2, 26*h+h/2)},
		"Up 2 days":                               {Word: "running", StartAge: age(48*h-h/2, 72*h-h/2)},
		"Up 8 weeks":                              {Word: "running", StartAge: age(1344*h-h/2, 1440*h-h/2)},
		"Up 2 months":                             {Word: "running", StartAge: age(1440*h-h/2, 2160*h-h/2)},
		"Up 3 years":                              {Word: "running", StartAge: age(3*8760*h, 4*8760*h)},
		"  up 2 HOURS (Healthy) ":                 {Word: "running", HealthCheck: "healthy", StartAge: age(90*time.Minute, 150*time.Minute)},
		"Exited (137) 5 minutes ago":              {Word: "exited", ExitCode: code(137), ExitAge: age(5*time.Minute, 6*time.Minute)},
		"Exited (0) Less than a second ago":       {Word: "exited", ExitCode: code(0), ExitAge: age(0, time.Second)},
		"Exited (0) About an hour ago":            {Word: "exited", ExitCode: code(0), ExitAge: age(h, 90*time.Minute)},
		"Exited (-1) 2 days ago":                  {Word: "exited", ExitCode: code(-1), ExitAge: age(48*h-h/2, 72*h-h/2)},
		"Exited (3221225786) 5 seconds ago":       {Word: "exited", ExitCode: code(3221225786), ExitAge: age(5*time.Second, 6*time.Second)},
		"Restarting (1) 3 seconds ago":            {Word: "restarting", ExitCode: code(1), ExitAge: age(3*time.Second, 4*time.Second)},
		"Created":                                 {Word: "created"},
		"Dead":                                    {Word: "dead"},
		"Removal In Progress":                     {Word: "removing"},
		"Exited":                                  {Word: "exited"},
		"Exited (x) 5 minutes ago":                {Word: "exited", ExitAge: age(5*time.Minute, 6*time.Minute)},
		"Exited (99999999999) 5 minutes":          {Word: "exited"},
		"Exited (1":                               {Word: "exited"},
		"Up":                                      {Word: "running"},
		"Up forever":                              {Word: "running"},
		"Up 99999999999999999999 hours (healthy)": {Word: "running", HealthCheck: "healthy"},
		"Up 2147483647 hours":                     {Word: "running"},
		"Up 2147483647 months":                    {Word: "running"},
		"Up 2147483647 minutes":                   {Word: "running"},
		"Up 9999 years":                           {Word: "running"},
		"Up -3 hours":                             {Word: "running"},
		"Up 2 fortnights":                         {Word: "running"},
		"Removal pending":                         {},
		"Upside down":                             {},
		"running":                                 {},
		"":                                        {},
	} {
		got := ParseStatusText(text)
		if got.Word != want.Word || got.HealthCheck != want.HealthCheck || !same(got.ExitCode, want.ExitCode) ||
			got.StartAge != want.StartAge || got.ExitAge != want.ExitAge {
			t.Errorf("%q: got %+v, want %+v", text, got, want)
		}
	}
}

// human is how Docker writes an age; the rule that parseAge inverts, stated the other way round.
func human(d time.Duration) string {
	sec, minutes, hours := int(d.Seconds()), int(d.Minutes()), int(d.Hours()+0.5)
	switch {
	case sec < 1:
		return "Less than a second"
	case sec == 1:
		return "1 second"
	case sec < 60:
		return fmt.Sprint(sec, " seconds")
	case minutes == 1:
		return "About a minute"
	case minutes < 60:
		return fmt.Sprint(minutes, " minutes")
	case hours == 1:
		return "About an hour"
	case hours < 48:
		return fmt.Sprint(hours, " hours")
	case hours < 24*7*2:
		return fmt.Sprint(hours/24, " days")
	case hours < 24*30*2:
		return fmt.Sprint(hours/24/7, " weeks")
	case hours < 24*365*2:
		return fmt.Sprint(hours/24/30, " months")
	}
	return fmt.Sprint(int(d.Hours())/24/365, " years")
}

// The range of a text holds exactly the ages that are written so.
func TestAgeRangesAreExact(t *testing.T) {
	check := func(t interface{ Errorf(string, ...any) }, d time.Duration) {
		text := human(d)
		r := parseAge(text)
		if !r.Known() || d < r.Min || d >= r.Max {
			t.Errorf("%s is written %q, which is read as [%s, %s)", d, text, r.Min, r.Max)
			return
		}
		// A millisecond, because hours are floating-point numbers there.
		const ms = time.Millisecond
		if human(r.Min) != text || human(r.Max-ms) != text || human(r.Max) == text || (r.Min > 0 && human(r.Min-ms) == text) {
			t.Errorf("%q is read as [%s, %s), which is not exact", text, r.Min, r.Max)
		}
	}
	for h := range 3 * 8760 {
		check(t, time.Duration(h)*time.Hour+30*time.Minute)
	}
	for s := range 2 * 3600 {
		check(t, time.Duration(s)*time.Second)
	}
	rapid.Check(t, func(rt *rapid.T) {
		check(rt, time.Duration(rapid.Int64Range(0, int64(150*8760*time.Hour)).Draw(rt, "age")))
	})
}

func FuzzParseStatusText(f *testing.F) {
	for _, s := range []string{"Up 2 hours (healthy)", "Exited (137) 5 minutes ago", "Restarting (1) 3 seconds ago", "Up 3 minutes (Paused)",
		"Up About a minute", "Removal In Progress", "Up 8 weeks", "Up 1 years", "Exited (-1) About an hour ago", "Up (("} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := ParseStatusText(s)
		for _, r := range []statussync.AgeRange{got.StartAge, got.ExitAge} {
			if r.Min < 0 || r.Max < 0 || (r.Known() && r.Min >= r.Max) || (!r.Known() && r.Min != 0) {
				t.Errorf("%q: range %+v", s, r)
			}
		}
		if got.Word != "" {
			if _, known := statussync.ContainerState(got.Word, false, false); !known {
				t.Errorf("%q: word %q", s, got.Word)
			}
		}
	})
}
