package statussync

import (
	"strconv"
	"strings"
)

// Epoch names one log. It is "e", a counter, and, since a restored backup must never reuse a name, a few random
// letters. Only equality means anything.
type Epoch string

// Cursor is a position in the journal: everything up to and including Seq of Epoch. The zero Cursor means "none".
type Cursor struct {
	Epoch Epoch
	Seq   uint64
}

// IsZero reports whether c is no position at all.
func (c Cursor) IsZero() bool { return c.Epoch == "" && c.Seq == 0 }

// String returns the cursor as "e7:41", or "" for the zero Cursor.
func (c Cursor) String() string {
	if c.IsZero() {
		return ""
	}
	return string(c.Epoch) + ":" + strconv.FormatUint(c.Seq, 10)
}

// MarshalText implements encoding.TextMarshaler.
func (c Cursor) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler; it takes what ParseCursor takes, and "" as the zero Cursor.
func (c *Cursor) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*c = Cursor{}
		return nil
	}
	p, err := ParseCursor(string(b))
	if err != nil {
		return err
	}
	*c = p
	return nil
}

// maxEpochLen bounds what a client can make us carry; our own names are under 16 bytes.
const maxEpochLen = 40

// ParseCursor reads "e7:41". The error has code CodeInvalid.
func ParseCursor(s string) (Cursor, error) {
	bad := func() (Cursor, error) {
		return Cursor{}, Invalid("cursor", quote(s)+" is not a cursor; one looks like e7:41 and comes from an earlier answer")
	}
	ep, num, ok := strings.Cut(s, ":")
	if !ok || len(ep) < 2 || len(ep) > maxEpochLen || ep[0] != 'e' || num == "" || (len(num) > 1 && num[0] == '0') {
		return bad()
	}
	for i := 1; i < len(ep); i++ {
		if c := ep[i]; (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return bad()
		}
	}
	for i := 0; i < len(num); i++ {
		if num[i] < '0' || num[i] > '9' {
			return bad()
		}
	}
	n, err := strconv.ParseUint(num, 10, 63)
	if err != nil {
		return bad()
	}
	return Cursor{Epoch: Epoch(ep), Seq: n}, nil
}
