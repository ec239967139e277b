package app

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/agentopia/statussync/httpapi"
)

func TestSessionsFile(t *testing.T) {
	f := sessionsFile{t.TempDir()}
	if list, err := f.Sessions(); err != nil || len(list) != 0 {
		t.Fatalf("%v %v", list, err)
	}
	want := make([]httpapi.SessionRecord, 1000)
	for i := range want {
		want[i] = httpapi.SessionRecord{ID: [32]byte{byte(i), byte(i >> 8)}, Bound: [32]byte{1}, Began: time.Unix(int64(i), 5).UTC(), Used: time.Unix(int64(i), 7).UTC()}
	}
	for _, list := range [][]httpapi.SessionRecord{want, want[:1], {}, want} {
		if err := f.SaveSessions(list); err != nil {
			t.Fatal(err)
		}
		got, err := f.Sessions()
		if d := cmp.Diff(list, got); err != nil || d != "" {
			t.Fatalf("%v %s", err, d)
		}
	}
	path := filepath.Join(f.dir, sessionsFileName)
	if info, err := os.Stat(path); err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
	for _, bad := range []string{"", "{", `{"v":2}`, `{"v":1,"sessions":[{"id":"00","bound":"00"}]}`, `{"v":1,"sessions":[{"id":"x"}]}`, strings.Repeat(" ", maxSessionsFile+1)} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Sessions(); err == nil || !strings.Contains(err.Error(), sessionsFileName) {
			t.Errorf("%.40q: %v", bad, err)
		}
		if err := f.SaveSessions(nil); err != nil {
			t.Errorf("what can't be read is not replaced: %v", err)
		}
	}
}
