package postgres

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
)

func TestStatusLogTellsAnOutageOnce(t *testing.T) {
	synctest.Test(t, testStatusLogTellsAnOutageOnce)
}

func testStatusLogTellsAnOutageOnce(t *testing.T) {
	var out bytes.Buffer
	s := &StatusLog{log: slog.New(slog.NewTextHandler(&out, nil))}
	told := func(msg string) int { return strings.Count(out.String(), msg) }
	for range 2 {
		out.Reset()
		for _, text := range []string{
			"failed to receive message: read tcp 127.0.0.1:40192->127.0.0.1:5432: read: connection reset by peer",
			"failed to receive message: read tcp 127.0.0.1:40208->127.0.0.1:5432: read: connection reset by peer",
			"failed to receive message: unexpected EOF",
			"the database system is starting up",
		} {
			s.failed(errors.New(text))
			if got := s.st.LastError; got != withoutLocalPort(text) || got == "" {
				t.Errorf("%q became %q", text, got)
			}
		}
		if n := told("can't be written"); n != 1 {
			t.Errorf("one outage was told %d times:\n%s", n, &out)
		}
		s.recovered()
		s.recovered()
		if got := s.st.LastError; got != "" || told("is written again") != 1 {
			t.Errorf("over, but still %q:\n%s", got, &out)
		}
	}

	s.failed(errors.New("away"))
	s.st.LastError = "a row was refused"
	s.recovered()
	if got := s.st.LastError; got != "a row was refused" {
		t.Errorf("the refused row is forgotten: %q", got)
	}
}

func TestErrorTextNamesNoLocalPort(t *testing.T) {
	for in, want := range map[string]string{
		"read tcp 10.0.0.1:40192->10.0.0.2:5432: read: connection reset by peer": "read tcp 10.0.0.2:5432: read: connection reset by peer",
		"write tcp [::1]:40192->[::1]:5432: broken pipe":                         "write tcp [::1]:5432: broken pipe",
		"dial tcp 10.0.0.2:5432: connect: connection refused":                    "dial tcp 10.0.0.2:5432: connect: connection refused",
		"column a->b": "column a->b",
	} {
		if got := errorText(errors.New(in)); got != want {
			t.Errorf("%q became %q", in, got)
		}
	}
}
