package recur

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/agentopia/statussync"
)

const local = "2006-01-02 15:04"

// window is a template in local times.
func window(t testing.TB, zone, from, to, rule string, exact time.Duration) *statussync.Maintenance {
	t.Helper()
	loc, err := time.LoadLocation(zone)
	if err != nil {
		t.Fatal(err)
	}
	at := func(s string) time.Time {
		if s == "" {
			return time.Time{}
		}
		x, err := time.ParseInLocation(local, s, loc)
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
	m := &statussync.Maintenance{ServerIDs: []string{"a"}, StartsAt: at(from), EndsAt: at(to), RRule: rule, TimeZone: zone, Duration: exact}
	if err := m.Complete(m.StartsAt); err != nil {
		t.Fatal(err)
	}
	return m
}

// TestClockChanges pins what is promised about the nights on which clocks change (docs/domain.md, step 6).
func TestClockChanges(t *testing.T) {
	for _, c := range []struct {
		name, zone, from, to string
		exact                time.Duration
		rule                 string
		after                string   // UTC
		want                 []string // UTC, begin/end
	}{
		{name: "Berlin in spring: 01:00 to 05:00 takes three hours", zone: "Europe/Berlin", from: "2026-03-22 01:00", to: "2026-03-22 05:00", rule: "FREQ=WEEKLY;BYDAY=SU", after: "2026-03-28 00:00",
			want: []string{"2026-03-29 00:00/2026-03-29 03:00", "2026-04-04 23:00/2026-04-05 03:00"}},
		{name: "Berlin in autumn: five hours", zone: "Europe/Berlin", from: "2026-10-18 01:00", to: "2026-10-18 05:00", rule: "FREQ=WEEKLY;BYDAY=SU", after: "2026-10-24 00:00",
			want: []string{"2026-10-24 23:00/2026-10-25 04:00", "2026-11-01 00:00/2026-11-01 04:00"}},
		{name: "New York in spring", zone: "America/New_York", from: "2026-03-01 01:00", to: "2026-03-01 05:00", rule: "FREQ=WEEKLY", after: "2026-03-07 00:00",
			want: []string{"2026-03-08 06:00/2026-03-08 09:00", "2026-03-15 05:00/2026-03-15 09:00"}},
		{name: "New York in autumn", zone: "America/New_York", from: "2026-10-25 01:00", to: "2026-10-25 05:00", rule: "FREQ=WEEKLY", after: "2026-10-31 00:00",
			want: []string{"2026-11-01 05:00/2026-11-01 10:00", "2026-11-08 06:00/2026-11-08 10:00"}},
		{name: "exactly four hours in spring: until 06:00", zone: "Europe/Berlin", from: "2026-03-22 01:00", exact: 4 * time.Hour, rule: "FREQ=WEEKLY;BYDAY=SU", after: "2026-03-28 00:00",
			want: []string{"2026-03-29 00:00/2026-03-29 04:00", "2026-04-04 23:00/2026-04-05 03:00"}},
		{name: "exactly four hours in autumn: until 04:00", zone: "Europe/Berlin", from: "2026-10-18 01:00", exact: 4 * time.Hour, rule: "FREQ=WEEKLY;BYDAY=SU", after: "2026-10-24 00:00",
			want: []string{"2026-10-24 23:00/2026-10-25 03:00", "2026-11-01 00:00/2026-11-01 04:00"}},
		{name: "a begin that does not exist: 02:30 is 03:30", zone: "Europe/Berlin", from: "2026-03-28 02:30", to: "2026-03-28 04:00", rule: "FREQ=DAILY", after: "2026-03-28 12:00",
			want: []string{"2026-03-29 01:30/2026-03-29 02:00", "2026-03-30 00:30/2026-03-30 02:00"}},
		{name: "begin and end that don't exist", zone: "Europe/Berlin", from: "2026-03-28 02:15", to: "2026-03-28 02:45", rule: "FREQ=DAILY", after: "2026-03-28 12:00",
			want: []string{"2026-03-29 01:15/2026-03-29 01:45", "2026-03-30 00:15/2026-03-30 00:45"}},
		{name: "an end that the begin was moved beyond: its length counts", zone: "Europe/Berlin", from: "2026-03-28 02:30", to: "2026-03-28 03:00", rule: "FREQ=DAILY", after: "2026-03-28 12:00",
			want: []string{"2026-03-29 01:30/2026-03-29 02:00", "2026-03-30 00:30/2026-03-30 01:00"}},
		{name: "doubled times: the first of both", zone: "Europe/Berlin", from: "2026-10-24 02:15", to: "2026-10-24 02:45", rule: "FREQ=DAILY", after: "2026-10-24 12:00",
			want: []string{"2026-10-25 00:15/2026-10-25 00:45", "2026-10-26 01:15/2026-10-26 01:45"}},
		{name: "doubled times and an exact length", zone: "America/New_York", from: "2026-10-31 01:30", exact: 90 * time.Minute, rule: "FREQ=DAILY", after: "2026-10-31 12:00",
			want: []string{"2026-11-01 05:30/2026-11-01 07:00", "2026-11-02 06:30/2026-11-02 08:00"}},
		{name: "over midnight and the change", zone: "Europe/Berlin", from: "2026-03-21 22:00", to: "2026-03-22 06:00", rule: "FREQ=WEEKLY;BYDAY=SA", after: "2026-03-28 00:00",
			want: []string{"2026-03-28 21:00/2026-03-29 04:00", "2026-04-04 20:00/2026-04-05 04:00"}},
		{name: "whole days that touch each other", zone: "Europe/Berlin", from: "2026-03-27 01:00", to: "2026-03-28 01:00", rule: "FREQ=DAILY", after: "2026-03-28 12:00",
			want: []string{"2026-03-28 00:00/2026-03-29 00:00", "2026-03-29 00:00/2026-03-29 23:00", "2026-03-29 23:00/2026-03-30 23:00"}},
		{name: "24 hours in a day of 23: the next one begins in time", zone: "Europe/Berlin", from: "2026-03-27 01:00", exact: 24 * time.Hour, rule: "FREQ=DAILY", after: "2026-03-28 12:00",
			want: []string{"2026-03-28 00:00/2026-03-29 00:00", "2026-03-29 00:00/2026-03-29 23:00", "2026-03-29 23:00/2026-03-30 23:00"}},
		{name: "a day that was left out", zone: "Pacific/Apia", from: "2011-12-28 01:00", to: "2011-12-28 02:00", rule: "FREQ=DAILY", after: "2011-12-29 00:00",
			want: []string{"2011-12-29 11:00/2011-12-29 12:00", "2011-12-30 11:00/2011-12-30 12:00", "2011-12-31 11:00/2011-12-31 12:00"}},
		{name: "half an hour of summer time", zone: "Australia/Lord_Howe", from: "2026-10-03 01:00", to: "2026-10-03 03:00", rule: "FREQ=DAILY", after: "2026-10-03 00:00",
			want: []string{"2026-10-03 14:30/2026-10-03 16:00", "2026-10-04 14:00/2026-10-04 16:00"}},
		{name: "until a day, which counts", zone: "Europe/Berlin", from: "2026-03-27 23:30", to: "2026-03-27 23:45", rule: "FREQ=DAILY;UNTIL=20260328", after: "2026-03-27 00:00",
			want: []string{"2026-03-27 22:30/2026-03-27 22:45", "2026-03-28 22:30/2026-03-28 22:45", "none"}},
		{name: "until an instant", zone: "Europe/Berlin", from: "2026-03-27 23:30", to: "2026-03-27 23:45", rule: "FREQ=DAILY;UNTIL=20260328T222959Z", after: "2026-03-27 00:00",
			want: []string{"2026-03-27 22:30/2026-03-27 22:45", "none"}},
		{name: "until a local time", zone: "Europe/Berlin", from: "2026-03-27 23:30", to: "2026-03-27 23:45", rule: "FREQ=DAILY;UNTIL=20260328T233000", after: "2026-03-27 23:00",
			want: []string{"2026-03-28 22:30/2026-03-28 22:45", "none"}},
		{name: "twice", zone: "UTC", from: "2026-01-31 10:00", to: "2026-01-31 11:00", rule: "rrule:freq=monthly;count=2;", after: "2026-01-01 00:00",
			want: []string{"2026-01-31 10:00/2026-01-31 11:00", "2026-03-31 10:00/2026-03-31 11:00", "none"}},
		{name: "the last working day of a month", zone: "UTC", from: "2026-01-30 10:00", to: "2026-01-30 11:00", rule: "FREQ=MONTHLY;BYDAY=MO,TU,WE,TH,FR;BYSETPOS=-1", after: "2026-01-31 00:00",
			want: []string{"2026-02-27 10:00/2026-02-27 11:00", "2026-03-31 10:00/2026-03-31 11:00"}},
		{name: "a week each quarter", zone: "UTC", from: "2026-01-05 10:00", to: "2026-01-12 10:00", rule: "FREQ=MONTHLY;INTERVAL=3;BYDAY=1MO", after: "2026-01-06 00:00",
			want: []string{"2026-01-05 10:00/2026-01-12 10:00", "2026-04-06 10:00/2026-04-13 10:00"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := window(t, c.zone, c.from, c.to, c.rule, c.exact)
			r, err := Parse(m)
			if err != nil {
				t.Fatal(err)
			}
			after, err := time.Parse(local, c.after)
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range c.want {
				start, end, ok := r.Next(after)
				got := "none"
				if ok {
					got = start.Format(local) + "/" + end.Format(local)
				}
				if got != want {
					t.Fatalf("after %s: %s, want %s", after.Format(local), got, want)
				}
				after = end
			}
		})
	}
}

func TestRefused(t *testing.T) {
	for _, c := range []struct{ rule, zone, from, to, field, says string }{
		{rule: "FREQ=HOURLY", field: "rrule", says: "DAILY, WEEKLY"},
		{rule: "WEEKLY", field: "rrule", says: "NAME=VALUE"},
		{rule: "BYDAY=SU", field: "rrule", says: "no FREQ"},
		{rule: "FREQ=WEEKLY;BYHOUR=2", field: "rrule", says: "BYHOUR"},
		{rule: "FREQ=WEEKLY;DTSTART=20260101", field: "rrule", says: "DTSTART"},
		{rule: "FREQ=WEEKLY;FREQ=DAILY", field: "rrule", says: "twice"},
		{rule: "FREQ=WEEKLY;BYDAY=XX", field: "rrule", says: "XX"},
		{rule: "FREQ=WEEKLY;BYDAY=2MO", field: "rrule", says: "2MO"},
		{rule: "FREQ=MONTHLY;BYDAY=0MO", field: "rrule", says: "0MO"},
		{rule: "FREQ=MONTHLY;BYMONTHDAY=32", field: "rrule", says: "bymonthday"},
		{rule: "FREQ=MONTHLY;BYMONTHDAY=x", field: "rrule", says: "x"},
		{rule: "FREQ=DAILY;INTERVAL=0", field: "rrule", says: "INTERVAL=0"},
		{rule: "FREQ=DAILY;INTERVAL=99999999999999999999", field: "rrule", says: "INTERVAL"},
		{rule: "FREQ=DAILY;COUNT=-1", field: "rrule", says: "COUNT"},
		{rule: "FREQ=DAILY;COUNT=2;UNTIL=20300101", field: "rrule", says: "at most one"},
		{rule: "FREQ=DAILY;UNTIL=soon", field: "rrule", says: "UNTIL=SOON"},
		{rule: "FREQ=DAILY;UNTIL=20260101", field: "rrule", says: "before starts_at"},
		{rule: "FREQ=DAILY;BYSETPOS=1", field: "rrule", says: "BYSETPOS"},
		{rule: "FREQ=WEEKLY;WKST=XX", field: "rrule", says: "WKST"},
		{rule: "FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30", field: "rrule", says: "no day at all"},
		{rule: "FREQ=DAILY;BYMONTH=2;BYMONTHDAY=30", field: "rrule", says: "no day at all"},
		{rule: "FREQ=WEEKLY;BYDAY=SA", field: "starts_at", says: "Saturday 2026-03-28"},
		{rule: "FREQ=DAILY", zone: "Europe/Berlni", field: "time_zone", says: "Europe/Berlni"},
		{rule: "FREQ=DAILY", zone: "Local", field: "time_zone", says: "Local"},
		{rule: "FREQ=DAILY", zone: "../../etc/passwd", field: "time_zone", says: "no time zone"},
		{rule: "FREQ=DAILY", to: "2026-03-23 01:01", field: "ends_at", says: "24h1m0s"},
		{rule: "FREQ=WEEKLY;BYDAY=SU,FR", to: "2026-03-28 01:00", field: "ends_at", says: "would last 6 days"},
	} {
		t.Run(c.rule+c.zone, func(t *testing.T) {
			if c.to == "" {
				c.to = "2026-03-22 05:00"
			}
			m := window(t, "UTC", "2026-03-22 01:00", c.to, c.rule, 0)
			if c.zone != "" {
				m.TimeZone = c.zone
			}
			r, err := Parse(m)
			e, ok := err.(*statussync.Error)
			if !ok || e.Code != statussync.CodeInvalid || e.Location != c.field || !strings.Contains(e.Detail, c.says) {
				t.Errorf("%v, %v; want an error at %s that says %q", r, err, c.field, c.says)
			}
		})
	}
	m := window(t, "Europe/Berlin", "2026-03-22 01:00", "2026-03-22 05:00", "FREQ=DAILY", 0)
	m.StartsAt = time.Date(2026, 10, 25, 0, 45, 0, 0, time.UTC) // 02:45, before the clock is put back
	m.EndsAt = time.Date(2026, 10, 25, 1, 15, 0, 0, time.UTC)   // 02:15, after it
	if _, err := Parse(m); err == nil || !strings.Contains(err.Error(), "put back") {
		t.Errorf("a template that ends before its begin on the wall clock: %v", err)
	}
	m.EndsAt, m.Duration = m.StartsAt.Add(30*time.Minute), 30*time.Minute
	if _, err := Parse(m); err != nil {
		t.Errorf("with a duration it is well: %v", err)
	}
}

// TestHostile: rules that name next to nothing cost little, and end.
func TestHostile(t *testing.T) {
	for _, rule := range []string{
		"FREQ=DAILY;BYMONTH=2;BYMONTHDAY=29;BYDAY=SU", "FREQ=DAILY;INTERVAL=997;BYMONTH=2;BYMONTHDAY=29", "FREQ=YEARLY;INTERVAL=1000",
		"FREQ=YEARLY;INTERVAL=100;BYMONTH=2;BYMONTHDAY=29", "FREQ=MONTHLY;INTERVAL=999;BYMONTHDAY=29", "FREQ=YEARLY;BYSETPOS=60;BYMONTH=1,2;BYMONTHDAY=" + list(1, 31),
	} {
		m := window(t, "Europe/Berlin", "2032-02-29 01:00", "2032-02-29 05:00", rule, 0)
		r, err := Parse(m)
		if err != nil {
			t.Fatal(rule, err)
		}
		at, n := m.StartsAt, 0
		for ; n < 1000; n++ {
			start, end, ok := r.Next(at)
			if !ok {
				break
			}
			if !end.After(at) || !end.After(start) {
				t.Fatalf("%s: after %v comes %v to %v", rule, at, start, end)
			}
			at = end
		}
		if n == 0 {
			t.Errorf("%s: not even the first", rule)
		}
	}
}

func list(from, to int) string {
	var s []string
	for i := from; i <= to; i++ {
		s = append(s, fmt.Sprint(i))
	}
	return strings.Join(s, ",")
}

var weekdays = []string{"SU", "MO", "TU", "WE", "TH", "FR", "SA"}

// spec is a rule as the twin reads it.
type spec struct {
	freq                      string
	interval, count, wkst     int
	months, monthDays, setPos []int
	days                      []nth
	untilDay                  time.Time
	untilAt                   time.Time
	first                     time.Time // day
	begin, end                time.Duration
	across                    int
	exact                     time.Duration
	loc                       *time.Location
	limit                     time.Time // day beyond which nothing is looked at
}

type nth struct {
	n  int
	wd time.Weekday
}

func (s *spec) text() string {
	t := []string{"FREQ=" + s.freq}
	ints := func(name string, l []int) {
		if len(l) > 0 {
			t = append(t, name+"="+strings.ReplaceAll(strings.Trim(fmt.Sprint(l), "[]"), " ", ","))
		}
	}
	if s.interval > 1 {
		ints("INTERVAL", []int{s.interval})
	}
	if s.count > 0 {
		ints("COUNT", []int{s.count})
	}
	if !s.untilDay.IsZero() {
		t = append(t, "UNTIL="+s.untilDay.Format("20060102"))
	}
	if !s.untilAt.IsZero() {
		t = append(t, "UNTIL="+s.untilAt.UTC().Format("20060102T150405Z"))
	}
	if s.wkst != 1 {
		t = append(t, "WKST="+weekdays[s.wkst])
	}
	ints("BYMONTH", s.months)
	ints("BYMONTHDAY", s.monthDays)
	if len(s.days) > 0 {
		var l []string
		for _, d := range s.days {
			n := ""
			if d.n != 0 {
				n = fmt.Sprint(d.n)
			}
			l = append(l, n+weekdays[d.wd])
		}
		t = append(t, "BYDAY="+strings.Join(l, ","))
	}
	ints("BYSETPOS", s.setPos)
	return strings.Join(t, ";")
}

func monthsOf(t time.Time) int { return t.Year()*12 + int(t.Month()) }

// named says whether the rule names a day, by looking at that day alone: RFC 5545 §3.3.10, without COUNT, UNTIL, BYSETPOS.
func (s *spec) named(d time.Time) bool {
	apart := 0
	switch s.freq {
	case "DAILY":
		apart = int(d.Sub(s.first) / day)
	case "WEEKLY":
		week := func(t time.Time) time.Time { return t.AddDate(0, 0, -((int(t.Weekday()) - s.wkst + 7) % 7)) }
		apart = int(week(d).Sub(week(s.first)) / (7 * day))
	case "MONTHLY":
		apart = monthsOf(d) - monthsOf(s.first)
	case "YEARLY":
		apart = d.Year() - s.first.Year()
	}
	if apart%s.interval != 0 {
		return false
	}
	if len(s.months) > 0 && !slices.Contains(s.months, int(d.Month())) {
		return false
	}
	last := time.Date(d.Year(), d.Month()+1, 0, 0, 0, 0, 0, time.UTC).Day()
	if len(s.monthDays) > 0 && !slices.Contains(s.monthDays, d.Day()) && !slices.Contains(s.monthDays, d.Day()-last-1) {
		return false
	}
	if len(s.days) > 0 {
		hit := false
		for _, w := range s.days {
			if w.wd != d.Weekday() {
				continue
			}
			from, to := d.Day(), last // place in the month, or in the year
			if s.freq == "YEARLY" && len(s.months) == 0 {
				from, to = d.YearDay(), time.Date(d.Year(), 12, 31, 0, 0, 0, 0, time.UTC).YearDay()
			}
			hit = hit || w.n == 0 || w.n == (from-1)/7+1 || w.n == -((to-from)/7+1)
		}
		if !hit {
			return false
		}
	}
	if len(s.monthDays) == 0 && len(s.days) == 0 { // what is not said is as the first
		switch s.freq {
		case "WEEKLY":
			return d.Weekday() == s.first.Weekday()
		case "MONTHLY":
			return d.Day() == s.first.Day()
		case "YEARLY":
			return d.Day() == s.first.Day() && (len(s.months) > 0 || d.Month() == s.first.Month())
		}
	}
	return true
}

// dates are the days of the rule, one look at each day of the calendar.
func (s *spec) dates() []time.Time {
	var out, period []time.Time
	same := func(a, b time.Time) bool {
		if s.freq == "YEARLY" {
			return a.Year() == b.Year()
		}
		return monthsOf(a) == monthsOf(b)
	}
	flush := func() {
		for i, d := range period {
			if len(s.setPos) == 0 || slices.Contains(s.setPos, i+1) || slices.Contains(s.setPos, i-len(period)) {
				if !d.Before(s.first) {
					out = append(out, d)
				}
			}
		}
		period = period[:0]
	}
	for d := time.Date(s.first.Year(), 1, 1, 0, 0, 0, 0, time.UTC); d.Before(s.limit); d = d.AddDate(0, 0, 1) {
		if len(period) > 0 && !same(period[0], d) {
			flush()
		}
		if d.Before(s.first) && (s.freq == "DAILY" || s.freq == "WEEKLY") {
			continue
		}
		if s.named(d) {
			period = append(period, d)
		}
	}
	flush()
	if s.count > 0 && len(out) > s.count {
		out = out[:s.count]
	}
	return out
}

// clockAt looks for the minute at which the wall shows a day and a time of day: the first; where none does, the minute
// that would have been it had the clock not been put forward.
func (s *spec) clockAt(d time.Time, tod time.Duration) time.Time {
	want := d.Add(tod)
	shows := func(t time.Time) time.Time {
		_, off := t.In(s.loc).Zone()
		return t.Add(time.Duration(off) * time.Second)
	}
	for t := want.Add(-16 * time.Hour); ; t = t.Add(time.Minute) {
		switch now := shows(t); {
		case now.Equal(want):
			return t
		case now.After(want):
			if t.Equal(want.Add(-16 * time.Hour)) {
				panic("an offset that is too large")
			}
			before := shows(t.Add(-time.Minute)).Sub(t.Add(-time.Minute)) // the offset until now
			return want.Add(-before)
		}
	}
}

type span struct{ start, end time.Time }

// looked is how many occurrences of a rule are compared.
const looked = 30

// spans are the first occurrences, at least looked of them.
func (s *spec) spans() []span {
	var all []span
	list := s.dates()
	for _, d := range list[:min(len(list), looked+1)] {
		sp := span{start: s.clockAt(d, s.begin)}
		if (!s.untilDay.IsZero() && d.After(s.untilDay)) || (!s.untilAt.IsZero() && sp.start.After(s.untilAt)) {
			sp.end = sp.start // only there to cut the one before
		} else if s.exact > 0 {
			sp.end = sp.start.Add(s.exact)
		} else if sp.end = s.clockAt(d.AddDate(0, 0, s.across), s.end); !sp.end.After(sp.start) {
			sp.end = sp.start.Add(time.Duration(s.across)*day + s.end - s.begin)
		}
		all = append(all, sp)
	}
	var out []span
	for i, sp := range all {
		if i+1 < len(all) && all[i+1].start.Before(sp.end) {
			sp.end = all[i+1].start
		}
		if sp.end.After(sp.start) {
			out = append(out, sp)
		}
	}
	return out
}

var zones = []string{
	"UTC", "Europe/Berlin", "Europe/London", "America/New_York", "America/Sao_Paulo", "America/St_Johns", "Australia/Lord_Howe", "Pacific/Apia",
	"Africa/Casablanca", "Asia/Tehran", "Antarctica/Troll", "Pacific/Chatham", "Asia/Kathmandu", "Africa/Cairo", "America/Havana",
}

func draw(t *rapid.T) (*spec, *statussync.Maintenance) {
	some := func(name string, low, high, most int) []int {
		return rapid.SliceOfNDistinct(rapid.IntRange(low, high).Filter(func(n int) bool { return n != 0 }), 0, most, rapid.ID[int]).Draw(t, name)
	}
	s := &spec{
		freq:     rapid.SampledFrom([]string{"DAILY", "WEEKLY", "MONTHLY", "YEARLY"}).Draw(t, "freq"),
		interval: rapid.SampledFrom([]int{1, 1, 1, 2, 3, 5}).Draw(t, "interval"), wkst: rapid.IntRange(0, 6).Draw(t, "wkst"),
		months: some("months", 1, 12, 3),
	}
	s.loc, _ = time.LoadLocation(rapid.SampledFrom(zones).Draw(t, "zone"))
	long := s.freq == "MONTHLY" || s.freq == "YEARLY"
	if s.freq != "WEEKLY" {
		s.monthDays = some("month days", -31, 31, 4)
	}
	for range rapid.IntRange(0, 3).Draw(t, "days") {
		d := nth{wd: time.Weekday(rapid.IntRange(0, 6).Draw(t, "weekday"))}
		if long && rapid.Bool().Draw(t, "numbered") {
			d.n = rapid.SampledFrom([]int{1, 2, 4, 5, -1, -2}).Draw(t, "number")
		}
		s.days = append(s.days, d)
	}
	if long && len(s.days)+len(s.monthDays) > 0 && rapid.Bool().Draw(t, "by place") {
		s.setPos = some("places", -4, 4, 2)
	}
	s.first = time.Date(rapid.IntRange(2007, 2035).Draw(t, "year"), 1, rapid.IntRange(1, 366).Draw(t, "day of year"), 0, 0, 0, 0, time.UTC)
	s.limit = time.Date(s.first.Year()+13, 1, 1, 0, 0, 0, 0, time.UTC) // whole years, for places in them
	switch rapid.IntRange(0, 3).Draw(t, "bound") {
	case 1:
		s.count = rapid.IntRange(1, 30).Draw(t, "count")
	case 2:
		s.untilDay = s.first.AddDate(0, 0, rapid.IntRange(0, 400).Draw(t, "until"))
	case 3:
		s.untilAt = s.first.AddDate(0, 0, rapid.IntRange(1, 400).Draw(t, "until")).Add(time.Duration(rapid.IntRange(0, 1439).Draw(t, "until minute")) * time.Minute)
	}
	count := s.count
	s.count = 0
	list := s.dates()
	if s.count = count; len(list) == 0 {
		t.Skip("the rule names nothing")
	}
	s.first = list[0] // the template is the first occurrence; that may change what the rest are
	if l := s.dates(); len(l) == 0 || !l[0].Equal(s.first) {
		t.Skip("the rule names nothing")
	}
	s.begin = time.Duration(rapid.SampledFrom([]int{0, 15, 59, 60, 90, 119, 120, 150, 179, 180, 210, 720, 1439}).Draw(t, "begin")) * time.Minute
	length := time.Duration(rapid.SampledFrom([]int{1, 15, 30, 60, 90, 180, 600, 1380, 1440, 2000, 4320}).Draw(t, "length")) * time.Minute
	m := &statussync.Maintenance{ServerIDs: []string{"a"}, TimeZone: s.loc.String(), StartsAt: s.clockAt(s.first, s.begin)}
	if rapid.Bool().Draw(t, "exact") {
		s.exact, m.Duration = length, length
	} else {
		s.across, s.end = int((s.begin+length)/day), (s.begin+length)%day
		m.EndsAt = s.clockAt(s.first.AddDate(0, 0, s.across), s.end)
		// A template between two clocks means what it shows.
		if wallTime(m.StartsAt.In(s.loc)) != s.first.Add(s.begin) || wallTime(m.EndsAt.In(s.loc)) != s.first.AddDate(0, 0, s.across).Add(s.end) {
			t.Skip("a template that does not exist")
		}
	}
	if wallTime(m.StartsAt.In(s.loc)) != s.first.Add(s.begin) {
		t.Skip("a template that does not exist")
	}
	m.RRule = s.text()
	if err := m.Complete(m.StartsAt); err != nil {
		t.Skip(err)
	}
	return s, m
}

// TestTwin holds the rules against a twin that looks at every day of the calendar and every minute of the clock.
func TestTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, m := draw(t)
		want := s.spans()
		r, err := Parse(m)
		if err != nil {
			e := err.(*statussync.Error)
			switch e.Location {
			case "ends_at", "duration": // too long for its spacing
				list := s.dates()
				for i := range list[1:] {
					if list[i+1].Sub(list[i]) < max(s.exact, time.Duration(s.across)*day+s.end-s.begin) {
						return
					}
				}
			case "rrule":
				if strings.Contains(e.Detail, "before starts_at") && len(want) == 0 {
					return
				}
			}
			t.Fatalf("%s: %v", m.RRule, err)
		}
		if len(want) > looked {
			want = want[:looked]
		}
		at := m.StartsAt.Add(-time.Hour)
		for i, w := range want {
			start, end, ok := r.Next(at)
			if !ok || !start.Equal(w.start) || !end.Equal(w.end) {
				t.Fatalf("%s %s, %v to %v (exactly %v): occurrence %d is\n %v to %v (%v), want\n %v to %v", m.RRule, m.TimeZone, m.StartsAt.In(s.loc), m.EndsAt.In(s.loc), m.Duration, i, start.In(s.loc), end.In(s.loc), ok, w.start.In(s.loc), w.end.In(s.loc))
			}
			if s2, e2, ok := r.Next(end.Add(-time.Nanosecond)); !ok || !s2.Equal(start) || !e2.Equal(end) {
				t.Fatalf("%s: just before its end it is not there any more", m.RRule)
			}
			at = end
		}
		if start, _, ok := r.Next(at); ok && len(want) < looked && start.Before(s.limit.AddDate(0, 0, -400)) {
			t.Fatalf("%s: one more at %v", m.RRule, start)
		}
	})
}

// FuzzParse: whatever the text, no panic, an error that names its field, and occurrences in order.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"FREQ=WEEKLY;BYDAY=SU", "FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30", "RRULE:FREQ=MONTHLY;BYDAY=-1FR;COUNT=3", "FREQ=DAILY;UNTIL=20261231T000000Z", "FREQ=DAILY;BYDAY=,;="} {
		f.Add(s, "Europe/Berlin", int64(3600))
	}
	f.Fuzz(func(t *testing.T, rule, zone string, seconds int64) {
		m := &statussync.Maintenance{ServerIDs: []string{"a"}, RRule: rule, TimeZone: zone, StartsAt: time.Date(2026, 3, 29, 0, 30, 0, 0, time.UTC), Duration: time.Duration(seconds) * time.Second}
		if m.RRule == "" || m.Complete(m.StartsAt) != nil {
			t.Skip()
		}
		r, err := Parse(m)
		if err != nil {
			if e, ok := err.(*statussync.Error); !ok || e.Code != statussync.CodeInvalid || e.Location == "" || len(e.Detail) > 1000 {
				t.Fatalf("%#v", err)
			}
			return
		}
		at := m.StartsAt.Add(-1)
		for range 3 {
			start, end, ok := r.Next(at)
			if !ok {
				break
			}
			if !end.After(start) || !end.After(at) {
				t.Fatalf("after %v: %v to %v", at, start, end)
			}
			at = end
		}
	})
}
