package app

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/agentopia/statussync/sqlite"
)

// TestDamagedHistory: a history that can't be opened takes uptime away, and nothing else.
func TestDamagedHistory(t *testing.T) {
	c := testConfig(t, "servers: [{id: weather, probe: {kind: none}}]\n")
	if err := os.MkdirAll(c.Data, 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(c.Data, sqlite.HistoryFileName)
	if err := os.WriteFile(file, []byte(strings.Repeat("no database", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	base, stop := runService(t, c)
	defer stop()
	var st struct{ State string }
	get(t, base+"/api/v1/servers/weather/status", &st)
	if st.State != "unknown" {
		t.Errorf("%+v", st)
	}
	resp, err := http.Get(base + "/api/v1/uptime")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != 503 || !strings.Contains(string(b), "the store is damaged") || strings.Contains(string(b), c.Data) {
		t.Errorf("%d %s", resp.StatusCode, b)
	}
	var ready struct {
		Status string
		Checks map[string]struct{ OK bool }
	}
	get(t, base+"/readyz", &ready)
	if ready.Status != "degraded" || ready.Checks["history"].OK || !ready.Checks["store"].OK {
		t.Errorf("%+v", ready)
	}
}

func TestRollupsConfig(t *testing.T) {
	if c := testConfig(t, "rollups: {max_bytes: 20MiB}\n"); c.Rollups.MaxBytes != 20<<20 {
		t.Errorf("%+v", c.Rollups)
	}
	_, err := ParseConfig("test.yaml", []byte("rollups: {max_bytes: 1MiB}\n"))
	if err == nil || !strings.Contains(err.Error(), "rollups.max_bytes") || !strings.Contains(err.Error(), "test.yaml:1") {
		t.Error(err)
	}
}
