package mcpprobe

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"sync/atomic"
)

// event is one server-sent event that has data.
type event struct {
	name string // "" is "message"
	data []byte
}

var (
	errTooMuch   = errors.New("sent more than it may")
	errEventSize = errors.New("sent an event that is longer than it may be")
)

// budget lets a body be read until its bytes are used up; who grants more may do so at any time.
type budget struct {
	r    io.Reader
	left *atomic.Int64
}

// Read fails with errTooMuch where the budget is used up before the end.
func (b budget) Read(p []byte) (int, error) {
	left := b.left.Load()
	if left <= 0 {
		return 0, errTooMuch
	}
	if int64(len(p)) > left {
		p = p[:left]
	}
	n, err := b.r.Read(p)
	b.left.Add(int64(-n))
	return n, err
}

// eventReader reads a stream of server-sent events (WHATWG HTML §9.2): lines end in LF, CRLF or CR, a blank line ends an
// event, one without data is none.
type eventReader struct {
	r     *bufio.Reader
	limit func() int // of an event's data and of a line, in bytes; asked at the beginning of each line
	skip  bool       // a longer one is passed over; otherwise it is an error

	began, afterCR bool
	line           []byte
}

// next returns the next event; its data is the caller's. At the end of the stream it returns io.EOF, and drops an event
// that is not complete, as the standard says.
func (e *eventReader) next() (event, error) {
	var ev event
	limit, hasData, tooLong := 0, false, false
	e.line = e.line[:0]
	asked := false
	for {
		c, err := e.r.ReadByte()
		if err != nil {
			return event{}, err
		}
		if e.afterCR {
			if e.afterCR = false; c == '\n' {
				continue
			}
		}
		if !asked { // not earlier: whoever waits for the next line may have come while we waited for it
			limit, asked = e.limit(), true
		}
		if c != '\n' && c != '\r' {
			if len(e.line) >= limit+16 { // "data: " and the like
				if !e.skip {
					return event{}, errEventSize
				}
				tooLong = true
				continue
			}
			e.line = append(e.line, c)
			continue
		}
		e.afterCR, asked = c == '\r', false
		line := e.line
		if !e.began {
			e.began = true
			line = bytes.TrimPrefix(line, []byte("\xef\xbb\xbf"))
		}
		if len(line) == 0 {
			if hasData && !tooLong {
				return ev, nil
			}
			ev, hasData, tooLong = event{}, false, false
			continue
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(name) {
		case "event":
			ev.name = string(value[:min(len(value), 64)])
		case "data":
			if len(ev.data)+len(value) > limit {
				if !e.skip {
					return event{}, errEventSize
				}
				tooLong, ev.data = true, nil
				break
			}
			if hasData {
				ev.data = append(ev.data, '\n')
			}
			ev.data, hasData = append(ev.data, value...), true
		}
		e.line = e.line[:0]
		if cap(e.line) > 4096 && limit <= 64<<10 {
			e.line = nil // a large one is not kept for a stream that is held for long
		}
	}
}
