package hub

import (
	"sync/atomic"
	"time"
)

// clockStep is how far the wall clock may run ahead of engine time, or behind it, before that is taken for a suspend or
// a step and not for the slewing of a time daemon.
const clockStep = 5 * time.Second

// clock gives engine time: the wall clock at its beginning plus what the monotonic clock has counted since, plus the
// gaps that were noticed. It never goes back. now and at are safe for concurrent use.
type clock struct {
	start  time.Time                     // the machine's clock at the beginning, with its monotonic reading
	base   time.Time                     // engine time at start
	jumped atomic.Int64                  // nanoseconds of gaps, only ever added to
	read   func() (mono, wall time.Time) // one look at the machine's clocks
}

// machineClocks reads both clocks at once. In a synctest bubble they are the same one.
func machineClocks() (mono, wall time.Time) {
	t := time.Now()
	return t, t.Round(0)
}

func newClock(read func() (mono, wall time.Time)) *clock {
	mono, wall := read()
	return &clock{start: mono, base: wall.UTC(), read: read}
}

func (c *clock) engine(mono time.Time) time.Time {
	return c.base.Add(mono.Sub(c.start) + time.Duration(c.jumped.Load()))
}

// now returns engine time.
func (c *clock) now() time.Time {
	mono, _ := c.read()
	return c.engine(mono)
}

// look returns engine time and how far the wall clock is ahead of it.
func (c *clock) look() (now time.Time, lag time.Duration) {
	mono, wall := c.read()
	now = c.engine(mono)
	return now, wall.Sub(now)
}

// jump moves engine time forward.
func (c *clock) jump(d time.Duration) {
	if d > 0 {
		c.jumped.Add(int64(d))
	}
}

// at translates a time.Now() value of this process into engine time: it is never later than now, and the zero time
// stays zero.
func (c *clock) at(t, now time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	if e := c.engine(t); e.Before(now) {
		return e
	}
	return now
}
