// Package recur computes when a recurring maintenance window is open: an RFC 5545 rule on the wall clock of a time zone.
//
// The calendar (which days a rule names) is a library's. The wall clock is our own: which instant a time of day is on a
// given day, also where clocks are put forward or back, is not left to time.Date, which does not say which of two it takes
// (docs/domain.md, step 6, has the rules). Time zones are part of the program, so that a machine without them, or with old
// ones under another name, behaves alike.
//
// Work is bounded whatever the rule: a rule is followed for 100 to 500 years, and only rules by day or longer are taken.
// Everything is pure and safe for concurrent use.
package recur

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	_ "time/tzdata" // zones must not depend on the machine

	"github.com/teambition/rrule-go"

	"github.com/agentopia/statussync"
)

// Rule is when one recurring window is open. It implements statussync.Recurrence.
type Rule struct {
	days   rrule.RRule // at midnight UTC, shift years later
	shift  int         // years; a multiple of 400, after which the calendar repeats itself, days of the week included
	loc    *time.Location
	begin  clock // of the template
	end    clock
	across int           // days from a begin's date to its end's
	exact  time.Duration // not zero: instead of end
	wall   time.Duration // the template's length by the wall clock
	until  func(day civil, start time.Time) bool
}

// clock is a time of day.
type clock struct{ h, m, s int }

// civil is a day of the calendar, as midnight UTC.
type civil = time.Time

const day = 24 * time.Hour

// maxInterval bounds INTERVAL: a rule that comes once in a thousand years is a mistake.
const maxInterval = 1000

// checkedDays is how many occurrences are looked at for overlaps before a window is taken. Rules that overlap only later
// are cut: an occurrence ends at the latest when the next begins.
const checkedDays = 1000

// horizon is how many years of a rule are followed at least.
const horizon = 100

// Parse reads the rule of m, which is complete (Maintenance.Complete). It implements statussync.RecurrenceParser.
func Parse(m *statussync.Maintenance) (statussync.Recurrence, error) {
	r, err := parse(m)
	if err != nil {
		return nil, err
	}
	return r, nil
}

func parse(m *statussync.Maintenance) (*Rule, error) {
	loc, err := zone(m.TimeZone)
	if err != nil {
		return nil, err
	}
	text, until, err := split(m.RRule)
	if err != nil {
		return nil, err
	}
	opt, err := rrule.StrToROption(text)
	if err != nil {
		return nil, invalid(err.Error())
	}
	from, to := m.StartsAt.In(loc), m.EndsAt.In(loc)
	first := date(from)
	r := &Rule{loc: loc, begin: clockOf(from), end: clockOf(to), across: int(date(to).Sub(first) / day), exact: m.Duration}
	r.wall = wallTime(to).Sub(wallTime(from))
	if r.exact == 0 && r.wall <= 0 {
		return nil, statussync.Invalid("ends_at", "is not after starts_at on the wall clock of "+m.TimeZone+", which is put back between them; give a duration instead")
	}
	if r.until, err = bound(until, r.begin); err != nil {
		return nil, err
	}
	r.shift = (rrule.MAXYEAR - horizon - first.Year()) / 400 * 400
	opt.Dtstart = first.AddDate(r.shift, 0, 0)
	opt.Interval = max(opt.Interval, 1)
	days, err := rrule.NewRRule(*opt)
	if err != nil {
		return nil, invalid(err.Error())
	}
	r.days = *days
	return r, r.check(first)
}

// check holds the rule against the template.
func (r *Rule) check(first civil) error {
	next := r.dates()
	d, ok := next()
	switch {
	case !ok:
		return invalid("names no day at all from starts_at on")
	case !d.Equal(first):
		return statussync.Invalid("starts_at", first.Format("Monday 2006-01-02")+" is no day that rrule names; the first from then on is "+d.Format("Monday 2006-01-02"))
	case r.until(d, r.at(d, r.begin)):
		return invalid("its UNTIL lies before starts_at")
	}
	field, length := "ends_at", r.wall
	if r.exact > 0 {
		field, length = "duration", r.exact
	}
	if length <= day {
		return nil // there is at most one occurrence a day
	}
	for range checkedDays {
		after, ok := next()
		if !ok {
			return nil
		}
		if after.Sub(d) < length {
			return statussync.Invalid(field, fmt.Sprintf("an occurrence would last %s, and the one of %s begins %s after the one before it", days(length), after.Format(time.DateOnly), days(after.Sub(d))))
		}
		d = after
	}
	return nil
}

func days(d time.Duration) string {
	if d%day == 0 {
		if d == day {
			return "1 day"
		}
		return strconv.Itoa(int(d/day)) + " days"
	}
	return d.String()
}

// Next implements statussync.Recurrence. Its work grows with the days between the template and after.
func (r *Rule) Next(after time.Time) (start, end time.Time, ok bool) {
	// Nothing that begins so long before it can end after it, whatever the clocks do: zones are at most 26 h apart.
	from := date(after.In(r.loc)).Add(-max(r.wall, r.exact) - 3*day)
	next := r.dates()
	d, ok := next()
	for ok && d.Before(from) {
		d, ok = next()
	}
	for ok {
		start = r.at(d, r.begin)
		if r.until(d, start) {
			break
		}
		end = r.ends(d, start)
		if d, ok = next(); ok {
			// Only the clocks can bring two occurrences together; the later one begins in time.
			if b := r.at(d, r.begin); b.Before(end) {
				end = b
			}
		}
		if end.After(start) && end.After(after) {
			return start.UTC(), end.UTC(), true
		}
	}
	return time.Time{}, time.Time{}, false
}

// ends is when the occurrence of day d, which begins at start, ends.
func (r *Rule) ends(d civil, start time.Time) time.Time {
	if r.exact > 0 {
		return start.Add(r.exact)
	}
	if end := r.at(d.AddDate(0, 0, r.across), r.end); end.After(start) {
		return end
	}
	return start.Add(r.wall) // the clock was put forward over its begin, beyond its end
}

// dates returns an iterator over the days that the rule names.
func (r *Rule) dates() func() (civil, bool) {
	days := r.days // the library writes to it
	next := days.Iterator()
	return func() (civil, bool) {
		t, ok := next()
		return t.AddDate(-r.shift, 0, 0), ok
	}
}

// at returns the instant of a time of day. Of two it is the first; one that does not exist, because the clock is put
// forward over it, is taken with the offset from before (RFC 5545 §3.3.5).
func (r *Rule) at(d civil, c clock) time.Time { return wall(r.loc, d, c) }

func wall(loc *time.Location, d civil, c clock) time.Time {
	want := time.Date(d.Year(), d.Month(), d.Day(), c.h, c.m, c.s, 0, time.UTC) // as if the offset were zero
	offset := func(t time.Time) time.Duration {
		_, seconds := t.In(loc).Zone()
		return time.Duration(seconds) * time.Second
	}
	// No offset is larger than 15 h, and no zone changes its twice within two days. (Time.ZoneBounds would tell the change
	// itself, but is wrong on the last day of leap years that lie beyond a zone's table.)
	before, after := offset(want.Add(-day)), offset(want.Add(day))
	if at := want.Add(-before); offset(at) == before {
		return at
	}
	if at := want.Add(-after); offset(at) == after {
		return at
	}
	return want.Add(-before)
}

func date(t time.Time) civil {
	y, m, d := t.Date()
	return time.Date(y, m, d, 0, 0, 0, 0, time.UTC)
}

func clockOf(t time.Time) clock {
	h, m, s := t.Clock()
	return clock{h, m, s}
}

// wallTime is what the clock on the wall shows, as if in UTC.
func wallTime(t time.Time) time.Time {
	_, offset := t.Zone()
	return t.UTC().Add(time.Duration(offset) * time.Second)
}

func zone(name string) (*time.Location, error) {
	if name == "" {
		return time.UTC, nil
	}
	loc, err := time.LoadLocation(name)
	if err != nil || name == "Local" {
		return nil, statussync.Invalid("time_zone", strconv.Quote(statussync.CleanText(name, statussync.MaxTimeZoneLen))+" is no time zone that is known; one looks like Europe/Berlin")
	}
	return loc, nil
}

func invalid(detail string) *statussync.Error {
	return statussync.Invalid("rrule", statussync.CleanText(detail, statussync.MaxErrorText))
}

// parts are what a rule may consist of, in the order in which they are told. BYHOUR and smaller would make more than one
// occurrence a day, and the template says the time of day already.
var parts = []string{"FREQ", "INTERVAL", "COUNT", "UNTIL", "WKST", "BYMONTH", "BYMONTHDAY", "BYDAY", "BYSETPOS"}

// split takes UNTIL out of a rule, checks its form, and returns the rest as the library wants it.
func split(rule string) (rest, until string, err error) {
	if len(rule) > statussync.MaxRRuleLen {
		return "", "", invalid(fmt.Sprintf("is longer than %d bytes", statussync.MaxRRuleLen))
	}
	rule = strings.TrimPrefix(strings.ToUpper(strings.TrimSpace(rule)), "RRULE:")
	have := map[string]string{}
	var keep []string
	for _, part := range strings.Split(strings.TrimSuffix(rule, ";"), ";") {
		name, value, ok := strings.Cut(part, "=")
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		if !ok || value == "" {
			return "", "", invalid(strconv.Quote(part) + " is not NAME=VALUE; a rule looks like FREQ=WEEKLY;BYDAY=SU")
		}
		if !slices.Contains(parts, name) {
			return "", "", invalid(strconv.Quote(name) + " is not supported; the parts of a rule are " + strings.Join(parts, ", ") + ", and the time of day is that of starts_at")
		}
		if _, twice := have[name]; twice {
			return "", "", invalid(name + " stands there twice")
		}
		have[name] = value
		if name != "UNTIL" {
			keep = append(keep, name+"="+value)
		}
	}
	freq := have["FREQ"]
	switch freq {
	case "DAILY", "WEEKLY", "MONTHLY", "YEARLY":
	case "":
		return "", "", invalid("has no FREQ; a rule looks like FREQ=WEEKLY;BYDAY=SU")
	default:
		return "", "", invalid("FREQ=" + freq + " is not supported; it is one of DAILY, WEEKLY, MONTHLY, YEARLY")
	}
	for name, most := range map[string]int{"INTERVAL": maxInterval, "COUNT": 1_000_000} {
		if v, ok := have[name]; ok {
			if n, err := strconv.Atoi(v); err != nil || n < 1 || n > most {
				return "", "", invalid(name + "=" + v + " must be a number from 1 to " + strconv.Itoa(most))
			}
		}
	}
	byMonth := freq == "MONTHLY" || freq == "YEARLY"
	for _, w := range strings.FieldsFunc(have["BYDAY"], func(r rune) bool { return r == ',' }) {
		switch n := strings.TrimRight(w, "ADEFHMORSTUW"); {
		case len(w)-len(n) != 2:
			return "", "", invalid("BYDAY: " + strconv.Quote(w) + " is no day of the week; they are MO, TU, WE, TH, FR, SA, SU")
		case n == "":
		case !byMonth:
			return "", "", invalid("BYDAY=" + w + ": a number goes only with FREQ=MONTHLY and FREQ=YEARLY")
		default:
			if i, err := strconv.Atoi(n); err != nil || i == 0 {
				return "", "", invalid("BYDAY: " + strconv.Quote(w) + " is no numbered day of the week; one looks like 2MO or -1SU")
			}
		}
	}
	switch wkst := have["WKST"]; {
	case have["UNTIL"] != "" && have["COUNT"] != "":
		return "", "", invalid("has UNTIL and COUNT; at most one of them may stand there")
	case have["BYMONTHDAY"] != "" && freq == "WEEKLY":
		return "", "", invalid("BYMONTHDAY does not go with FREQ=WEEKLY")
	case have["BYSETPOS"] != "" && !byMonth:
		return "", "", invalid("BYSETPOS goes only with FREQ=MONTHLY and FREQ=YEARLY")
	case have["BYSETPOS"] != "" && have["BYDAY"] == "" && have["BYMONTHDAY"] == "" && have["BYMONTH"] == "":
		return "", "", invalid("BYSETPOS needs another BY… beside it")
	case wkst != "" && !slices.Contains([]string{"MO", "TU", "WE", "TH", "FR", "SA", "SU"}, wkst):
		return "", "", invalid("WKST=" + wkst + " is no day of the week")
	}
	if list, mixed := numbered(have["BYDAY"], freq == "YEARLY" && have["BYMONTH"] == ""); mixed && byMonth {
		for i, p := range keep {
			if strings.HasPrefix(p, "BYDAY=") {
				keep[i] = "BYDAY=" + list
			}
		}
	}
	return strings.Join(keep, ";"), have["UNTIL"], nil
}

// numbered gives each day of a BYDAY list its numbers, and reports whether some have one and others not: of such a list
// the library takes what is in both halves, and RFC 5545 what is in either.
func numbered(list string, ofYear bool) (out string, mixed bool) {
	most := 5
	if ofYear {
		most = 53
	}
	var all []string
	with, without := false, false
	for _, w := range strings.Split(list, ",") {
		if len(w) > 2 {
			with = true
			all = append(all, w)
			continue
		}
		without = true
		for n := range most {
			all = append(all, strconv.Itoa(n+1)+w)
		}
	}
	return strings.Join(all, ","), with && without
}

// bound returns what says of an occurrence whether it lies beyond UNTIL: a day, a local time or an instant.
func bound(until string, begin clock) (func(d civil, start time.Time) bool, error) {
	if until == "" {
		return func(civil, time.Time) bool { return false }, nil
	}
	if t, err := time.Parse("20060102T150405Z", until); err == nil {
		return func(_ civil, start time.Time) bool { return start.After(t) }, nil
	}
	if t, err := time.Parse("20060102", until); err == nil {
		return func(d civil, _ time.Time) bool { return d.After(t) }, nil
	}
	t, err := time.Parse("20060102T150405", until)
	if err != nil {
		return nil, invalid("UNTIL=" + until + " is no time; one looks like 20261231 or 20261231T235959Z")
	}
	return func(d civil, _ time.Time) bool {
		return d.Add(time.Duration(begin.h)*time.Hour + time.Duration(begin.m)*time.Minute + time.Duration(begin.s)*time.Second).After(t)
	}, nil
}
