package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/agentopia/statussync/postgres"
)

func TestRightsShowWhatIsMissingInFull(t *testing.T) {
	publish := func(table string) string {
		return "the table " + table + " in the publication supabase_realtime: alter publication supabase_realtime add table public." + table + ";"
	}
	var out bytes.Buffer
	c := &cli{}
	c.stdout = &out
	err := c.rights(&postgres.CheckReport{Role: "r", Features: []postgres.CheckedResult{
		{Feature: postgres.FeatureRegistry, OK: true},
		{Feature: postgres.FeatureStatusLog, Grants: []string{"grant insert (id) on public.mcp_server_status_logs to r"}},
		{Feature: postgres.FeatureRealtime, Missing: []string{publish("account_tool_instances"), publish("account_tool_environments")}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{publish("account_tool_instances"), publish("account_tool_environments"), "rights, below", "grant insert (id) on public.mcp_server_status_logs to r"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, &out)
		}
	}
}
