package app

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/agentopia/statussync"
)

func TestRegistriesConfig(t *testing.T) {
	t.Setenv("DATABASE_URL", "postgres://app:hushhush@db.example.com:6543/platform?sslmode=require")
	dir := t.TempDir()
	for name, text := range map[string]string{"dsn": "host=db user=reader password=hushhush dbname=x\n", "key": "service-role-key\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err := ParseConfig(filepath.Join(dir, "s.yaml"), []byte(`
registries:
  - postgres: {dsn: "${DATABASE_URL}"}
  - supabase: {url: "https://ref.supabase.co", api_key_file: key, dsn_file: dsn, resync: 5m, status_log: {retention: 90d}, heartbeat_write_back: false, schema: app}
  - name: shelf
    sql: {driver: postgres, dsn: "${DATABASE_URL}", query: "select id from x"}
  - name: quiet
    postgres: {dsn: "${DATABASE_URL}", status_log: false, feed: poll}
`))
	if err != nil {
		t.Fatal(err)
	}
	pg, sb := c.Registries[0].Postgres, c.Registries[1].Supabase
	if pg.Feed != "auto" || pg.Schema != "public" || time.Duration(pg.Resync) != time.Minute || pg.Log.Off || pg.Log.Retention != 0 || !*pg.WriteBack {
		t.Errorf("%+v", pg)
	}
	if sb.Feed != "realtime" || sb.APIKey != "service-role-key" || time.Duration(sb.Log.Retention) != 90*24*time.Hour || *sb.WriteBack || !strings.HasPrefix(string(sb.DSN), "host=db") {
		t.Errorf("%+v", sb)
	}
	if !c.Registries[3].Postgres.Log.Off {
		t.Error("status_log: false does not switch it off")
	}
	want := []statussync.Origin{"postgres", "postgres:supabase", "postgres:shelf", "postgres:quiet"}
	if d := cmp.Diff(want, c.registryOrigins()); d != "" {
		t.Error(d)
	}
	shown, err := c.Effective()
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"hushhush", "service-role-key"} {
		if strings.Contains(string(shown), secret) || strings.Contains(fmt.Sprintf("%v %+v %#v", c.Registries[0].Postgres, *pg, *sb), secret) {
			t.Errorf("%s is shown:\n%s", secret, shown)
		}
	}
	for _, say := range []string{"postgres://app:***@db.example.com:6543/platform", "name: shelf", "status_log: true", "retention: 90d", "status_log: false"} {
		if !strings.Contains(string(shown), say) {
			t.Errorf("%q is not shown:\n%s", say, shown)
		}
	}
}

func TestRegistriesConfigFaults(t *testing.T) {
	const dsn = "postgres://u:hushhush@h/d"
	for _, c := range []struct{ yaml, want string }{
		{"- {}", "registries[0]: must be one of postgres, supabase, sql"},
		{"- postgres: {dsn: '" + dsn + "'}\n  sql: {dsn: '" + dsn + "', query: select}", "is one of postgres, supabase, sql"},
		{"- mysql: {}", "mysql: is no key that is known here"},
		{"- postgres: {}", "registries[0].postgres.dsn: is missing; give dsn or dsn_file"},
		{"- postgres: {dsn: 'postgres://u:hushhush@h:port/d'}", "registries[0].postgres.dsn: is no address"},
		{"- postgres: {dsn: '" + dsn + "', feed: realtime}", "realtime is Supabase's"},
		{"- postgres: {dsn: '" + dsn + "', feed: pull}", "must be one of auto, notify, poll"},
		{"- postgres: {dsn: '" + dsn + "', resync: 1ms}", "resync: must be at least 1s"},
		{"- postgres: {dsn: '" + dsn + "', schema: 'a; drop'}", "is no name of a schema"},
		{"- postgres: {dsn: '" + dsn + "', status_log: maybe}", "must be true or false"},
		{"- postgres: {dsn: '" + dsn + "', status_log: {retention: 1h}}", "retention: must be at least 1d"},
		{"- postgres: {dsn: '" + dsn + "', status_log: {keep: 1h}}", "keep: is no key that is known here"},
		{"- postgres: {dsn: '" + dsn + "', url: 'https://x'}", "url: is a key of supabase only"},
		{"- postgres: {dsn: '" + dsn + "', dsn_file: x}", "is given beside registries[0].postgres.dsn"},
		{"- postgres: {dsn_file: nowhere}", "nowhere cannot be read"},
		{"- supabase: {dsn: '" + dsn + "', url: 'ftp://x', api_key: hushhush}", "url: must be the project's address"},
		{"- supabase: {dsn: '" + dsn + "', url: 'https://x'}", "api_key: is missing"},
		{"- sql: {dsn: '" + dsn + "'}", "query: is missing"},
		{"- sql: {dsn: '" + dsn + "', driver: mysql, query: select}", "driver: must be postgres"},
		{"- postgres: {dsn: '" + dsn + "'}\n- postgres: {dsn: '" + dsn + "'}", "is the name of another registry"},
		{"- {name: 'a b', postgres: {dsn: '" + dsn + "'}}", "registries[0].name"},
	} {
		_, err := ParseConfig("s.yaml", []byte("registries:\n"+c.yaml))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s\n gives %v\nwant %s", c.yaml, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "hushhush") {
			t.Errorf("%s: the error has the password: %v", c.yaml, err)
		}
	}
}

// TestRegistriesNeedRestart: what a reload can't do is named.
func TestRegistriesNeedRestart(t *testing.T) {
	old, err := ParseConfig("s.yaml", []byte("{}"))
	if err != nil {
		t.Fatal(err)
	}
	next, err := ParseConfig("s.yaml", []byte("registries: [{postgres: {dsn: 'postgres://u:p@h/d'}}]"))
	if err != nil {
		t.Fatal(err)
	}
	merged, r := reloaded(old, next, isLive)
	if d := cmp.Diff([]string{"registries"}, r.NeedsRestart); d != "" || len(merged.Registries) != 0 {
		t.Errorf("%s, %+v", d, merged.Registries)
	}
}
