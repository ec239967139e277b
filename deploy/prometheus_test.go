package deploy

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"
)

const (
	rulesFile     = "prometheus/statussync.rules.yaml"
	dashboardFile = "grafana/statussync.json"
	chart         = "helm/statussync"
)

// TestRules: Prometheus takes the rules, and the recorded cases give the alerts that they say.
func TestRules(t *testing.T) {
	promtool := need(t, "promtool")
	if out, ok := run(t, ".", promtool, "check", "rules", "--lint=all", "--lint-fatal", rulesFile); !ok {
		t.Errorf("check rules:\n%s", out)
	}
	tests, err := filepath.Glob("prometheus/tests/*.test.yaml")
	if err != nil || len(tests) == 0 {
		t.Fatal(tests, err)
	}
	for _, f := range tests {
		if out, ok := run(t, ".", promtool, "test", "rules", f); !ok {
			t.Errorf("test rules %s:\n%s", f, out)
		}
	}
}

// TestEveryAlertFiresAndResolves: there is a recorded case for each alert in which it does both, in this order, and each
// recorded series has a case.
func TestEveryAlertFiresAndResolves(t *testing.T) {
	fires, resolves, asked := map[string]bool{}, map[string]bool{}, ""
	tests, _ := filepath.Glob("prometheus/tests/*.test.yaml")
	for _, f := range tests {
		text := read(t, f)
		asked += text
		for _, c := range items(documents(t, text)[0], "tests") {
			fired := map[string]bool{}
			for _, a := range items(c, "alert_rule_test") {
				name := fmt.Sprint(at(a, "alertname"))
				if len(items(a, "exp_alerts")) > 0 {
					fired[name], fires[name] = true, true
				} else if fired[name] {
					resolves[name] = true
				}
			}
		}
	}
	n := 0
	for _, g := range items(documents(t, read(t, rulesFile))[0], "groups") {
		for _, r := range items(g, "rules") {
			n++
			if record, ok := at(r, "record").(string); ok {
				if !strings.Contains(asked, record) && !strings.Contains(read(t, rulesFile), "expr: "+record+" ") && !strings.Contains(read(t, rulesFile), record+" >") {
					t.Errorf("no case asks for %s", record)
				}
				continue
			}
			name := fmt.Sprint(at(r, "alert"))
			if !fires[name] || !resolves[name] {
				t.Errorf("%s: a case in which it fires: %v, and resolves after that: %v", name, fires[name], resolves[name])
			}
			for _, want := range []string{"summary", "description"} {
				if at(r, "annotations", want) == nil {
					t.Errorf("%s has no %s", name, want)
				}
			}
			if s := at(r, "labels", "severity"); s != "critical" && s != "warning" && s != "info" {
				t.Errorf("%s has the severity %v", name, s)
			}
		}
	}
	if n < 20 {
		t.Errorf("only %d rules were found", n)
	}
}

// TestDashboard: the panels have each an id, a place of their own and queries that PromQL's parser takes.
func TestDashboard(t *testing.T) {
	d := decodeJSON(t, read(t, dashboardFile))
	if d["uid"] != "statussync" || d["title"] == "" || at(d, "schemaVersion") == nil {
		t.Errorf("%v %v", d["uid"], d["title"])
	}
	ids, place := map[any]string{}, map[[2]int]string{}
	var rules list
	for _, p := range items(d, "panels") {
		title := fmt.Sprint(at(p, "title"))
		if other, ok := ids[at(p, "id")]; ok {
			t.Errorf("%q and %q have one id", title, other)
		}
		ids[at(p, "id")] = title
		pos := func(k string) int { f, _ := at(p, "gridPos", k).(float64); return int(f) }
		if pos("w") < 1 || pos("h") < 1 || pos("x")+pos("w") > 24 {
			t.Errorf("%q is nowhere: %v", title, at(p, "gridPos"))
		}
		for x := pos("x"); x < pos("x")+pos("w"); x++ {
			for y := pos("y"); y < pos("y")+pos("h"); y++ {
				if other, ok := place[[2]int{x, y}]; ok {
					t.Fatalf("%q lies over %q", title, other)
				}
				place[[2]int{x, y}] = title
			}
		}
		if at(p, "type") == "row" {
			continue
		}
		if len(items(p, "targets")) == 0 || at(p, "datasource", "uid") != "${datasource}" {
			t.Errorf("%q asks nothing, or a data source of its own", title)
		}
		refs := map[any]bool{}
		for _, q := range items(p, "targets") {
			if refs[at(q, "refId")] || at(q, "refId") == nil {
				t.Errorf("%q: two queries are %v", title, at(q, "refId"))
			}
			refs[at(q, "refId")] = true
			expr := fmt.Sprint(at(q, "expr"))
			for from, to := range map[string]string{"$__rate_interval": "5m", "$job": "statussync", "$instance": ".*", "$environment": ".*"} {
				expr = strings.ReplaceAll(expr, from, to)
			}
			if strings.Contains(expr, "$") {
				t.Errorf("%q uses a variable that the dashboard does not have: %s", title, expr)
			}
			rules = append(rules, obj{"record": fmt.Sprintf("dashboard:query%d", len(rules)), "expr": expr})
		}
	}
	if len(rules) < 30 {
		t.Errorf("only %d queries were found", len(rules))
	}
	b, err := yaml.Marshal(obj{"groups": list{obj{"name": "dashboard", "rules": rules}}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "rules.yaml")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, ok := run(t, ".", need(t, "promtool"), "check", "rules", file); !ok {
		t.Errorf("the dashboard's queries:\n%s", out)
	}
}

// TestChartHasTheSameFiles: the chart can't reach outside of its folder, so it has copies.
func TestChartHasTheSameFiles(t *testing.T) {
	for copied, original := range map[string]string{
		"files/statussync.rules.yaml": rulesFile, "files/dashboard.json": dashboardFile,
	} {
		if read(t, filepath.Join(chart, copied)) != read(t, original) {
			t.Errorf("%s/%s differs from deploy/%s; copy it there", chart, copied, original)
		}
	}
}
