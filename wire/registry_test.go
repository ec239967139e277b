package wire

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/agentopia/statussync"
)

// TestServerSpec: every member of a definition arrives, and none is forgotten here.
func TestServerSpec(t *testing.T) {
	const body = `{"id":"i","name":"n","environment_id":"e","owner":"o","endpoint":"https://x/mcp","transport":"sse","type":"t","container":"c",
		"desired":"stopped","labels":{"a":"b"},"capabilities":{"x":1},"disabled":true,
		"probe":{"kind":"http","url":"https://x/h","path":"/p","interval":"1d","timeout":"2s","max_retries":0,"backoff_multiplier":1.5,"rise":3,
		"start_grace":"4s","slow_after":"5s","expect":"open","canary":{"tool":"sing","arguments":{"a":1},"expect":"la"},"headers":{"H":"v"}}}`
	var spec ServerSpec
	d := json.NewDecoder(strings.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(&spec); err != nil {
		t.Fatal(err)
	}
	for _, v := range []reflect.Value{reflect.ValueOf(spec), reflect.ValueOf(*spec.Probe)} {
		for i := range v.NumField() {
			if v.Field(i).IsZero() {
				t.Errorf("this test forgets %s.%s", v.Type(), v.Type().Field(i).Name)
			}
		}
	}
	got, err := spec.Server()
	if err != nil {
		t.Fatal(err)
	}
	none := 0
	want := statussync.Server{
		ID: "i", Name: "n", EnvironmentID: "e", Owner: "o", Endpoint: "https://x/mcp", Transport: "sse", Type: "t", Container: "c",
		Desired: "stopped", Labels: map[string]string{"a": "b"}, Capabilities: map[string]any{"x": 1.0}, Disabled: true,
		Probe: statussync.ProbeSpec{
			Kind: "http", URL: "https://x/h", Path: "/p", Interval: 24 * time.Hour, Timeout: 2 * time.Second, MaxRetries: &none,
			BackoffMultiplier: 1.5, Rise: 3, StartGrace: 4 * time.Second, SlowAfter: 5 * time.Second, Expect: "open", Canary: statussync.Canary{Tool: "sing", Arguments: `{"a":1}`, Expect: "la"}, Headers: map[string]string{"H": "v"},
		},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	for field, p := range map[string]ProbeSpec{
		"probe.interval": {Interval: "soon"}, "probe.timeout": {Timeout: "1"}, "probe.start_grace": {StartGrace: "x"}, "probe.slow_after": {SlowAfter: "5 s"},
		"probe.canary.tool": {Canary: &CanarySpec{}},
	} {
		_, err := (&ServerSpec{Probe: &p}).Server()
		if e, ok := err.(*statussync.Error); !ok || e.Location != field || e.Code != statussync.CodeInvalid {
			t.Errorf("%s: %v", field, err)
		}
	}
}
