package client

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/wire"
)

// Erase asks again through the time in which the service is away, and says how it ended.
func TestErase(t *testing.T) {
	running := wire.Erasure{ID: "x1", Status: wire.ErasureRunning}
	for name, tc := range map[string]struct {
		last wire.Erasure // after a try that fails
		code statussync.Code
		say  string
	}{
		"done":    {last: wire.Erasure{ID: "x1", Status: wire.ErasureDone, Report: &wire.EraseReport{Entries: 7}}},
		"failed":  {wire.Erasure{ID: "x1", Status: wire.ErasureFailed, Error: &wire.ErasureError{Code: "unavailable", Detail: "the disk has no room"}}, statussync.CodeUnavailable, "no room"},
		"nothing": {wire.Erasure{ID: "x1", Status: wire.ErasureDone}, statussync.CodeInternal, "has a report or an error"},
		"unknown": {wire.Erasure{}, statussync.CodeUnavailable, "started anew"},
	} {
		t.Run(name, func(t *testing.T) {
			var asked atomic.Int32
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				answer := func(status int, ctype string, v any) {
					w.Header().Set("Content-Type", ctype)
					w.WriteHeader(status)
					_ = json.NewEncoder(w).Encode(v)
				}
				switch {
				case r.Method == http.MethodPost && r.URL.Path == wire.PathErase:
					answer(202, "application/json", running)
				case r.Method != http.MethodGet || r.URL.Path != wire.PathErase+"/x1":
					t.Errorf("%s %s", r.Method, r.URL)
				case asked.Add(1) == 1:
					panic(http.ErrAbortHandler) // the service goes away
				case tc.last.ID == "":
					answer(404, "application/problem+json", wire.Problem{Status: 404, Code: statussync.CodeNotFound})
				default:
					answer(200, "application/json", tc.last)
				}
			}))
			defer s.Close()
			c, err := New(Options{BaseURL: s.URL})
			if err != nil {
				t.Fatal(err)
			}
			defer c.CloseIdle()
			rep, err := c.Erase(t.Context(), wire.EraseRequest{Owner: "u1"})
			if tc.say == "" {
				if err != nil || rep.Entries != 7 {
					t.Errorf("%+v, %v", rep, err)
				}
			} else if err == nil || statussync.CodeOf(err) != tc.code || !strings.Contains(err.Error(), tc.say) {
				t.Errorf("%v", err)
			}
			if asked.Load() < 2 {
				t.Error("it did not ask again")
			}
		})
	}
}
