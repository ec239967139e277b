package deploy

import (
	"encoding/base64"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.yaml.in/yaml/v4"
)

// helm runs Helm, built from deploy/tools. That takes minutes on a machine that has not built it yet, more than all other
// tests together may: so it is asked for by a target of its own, make helm-test.
func helm(t *testing.T, args ...string) (out string, ok bool) {
	t.Helper()
	if os.Getenv("HELM_TESTS") == "" {
		t.Skip("make helm-test runs what needs Helm")
	}
	helmTool.once.Do(func() {
		cmd := exec.Command("go", "tool", "-n", "helm")
		cmd.Dir = "tools"
		b, err := cmd.CombinedOutput()
		helmTool.bin, helmTool.err = strings.TrimSpace(string(b)), err
	})
	if helmTool.err != nil {
		t.Logf("%v: %s", helmTool.err, helmTool.bin)
		t.Fatal("Helm (go tool helm in deploy/tools) is missing")
	}
	cmd := exec.Command(helmTool.bin, args...)
	home := t.TempDir() // Helm must not read or write what its user has
	cmd.Env = append(os.Environ(), "HELM_CACHE_HOME="+home, "HELM_CONFIG_HOME="+home, "HELM_DATA_HOME="+home, "KUBECONFIG="+filepath.Join(home, "none"))
	b, err := cmd.CombinedOutput()
	return string(b), err == nil
}

var helmTool struct {
	once sync.Once
	bin  string
	err  error
}

// render renders the chart with values and returns the manifests by kind and name.
func render(t *testing.T, values string) map[string]obj {
	t.Helper()
	file := filepath.Join(t.TempDir(), "values.yaml")
	if err := os.WriteFile(file, []byte(values), 0o600); err != nil {
		t.Fatal(err)
	}
	out, ok := helm(t, "template", "prod", chart, "--namespace", "ops", "--values", file)
	if !ok {
		t.Fatalf("helm template:\n%s", out)
	}
	found := map[string]obj{}
	for _, d := range documents(t, out) {
		key := fmt.Sprintf("%v/%v", d["kind"], at(d, "metadata", "name"))
		if found[key] != nil {
			t.Errorf("%s is rendered twice", key)
		}
		if d["apiVersion"] == nil || at(d, "metadata", "labels") == nil || at(d, "metadata", "namespace") != "ops" {
			t.Errorf("%s lacks its apiVersion, namespace or labels", key)
		}
		found[key] = d
	}
	return found
}

const tokens = "auth: {tokens: [{name: ops, role: admin, value: ops-token-1}, {name: prometheus, role: viewer, value: scrape-token-1}]}\n"

func TestHelmLint(t *testing.T) {
	if out, ok := helm(t, "lint", "--strict", chart); !ok || strings.Contains(out, "[WARNING]") {
		t.Errorf("%s", out)
	}
}

// TestHelmDefaults: one writer on one volume, nothing that it does not need, probed where it answers, and a configuration
// that the program takes.
func TestHelmDefaults(t *testing.T) {
	m := render(t, tokens)
	if got := len(m); got != 7 { // ServiceAccount, Secret, ConfigMap, two Services, StatefulSet, the test's Pod
		t.Errorf("%d manifests: %v", got, slices.Collect(keys(m)))
	}
	set := m["StatefulSet/prod-statussync"]
	pod := at(set, "spec", "template", "spec")
	c := at(pod, "containers", 0)
	for _, check := range []struct {
		got  any
		want string
	}{
		{at(set, "spec", "replicas"), "1"},
		{at(set, "spec", "serviceName"), "prod-statussync-headless"},
		{at(set, "spec", "volumeClaimTemplates", 0, "spec", "accessModes"), "[ReadWriteOnce]"},
		{at(set, "spec", "volumeClaimTemplates", 0, "spec", "resources", "requests", "storage"), "12Gi"},
		{at(pod, "automountServiceAccountToken"), "false"},
		{at(pod, "securityContext", "runAsNonRoot"), "true"},
		{at(pod, "securityContext", "seccompProfile", "type"), "RuntimeDefault"},
		{at(c, "securityContext", "readOnlyRootFilesystem"), "true"},
		{at(c, "securityContext", "allowPrivilegeEscalation"), "false"},
		{at(c, "securityContext", "capabilities", "drop"), "[ALL]"},
		{at(c, "livenessProbe", "httpGet", "path"), "/healthz"},
		{at(c, "startupProbe", "httpGet", "path"), "/healthz"},
		{at(c, "readinessProbe", "httpGet", "path"), "/readyz"},
		{at(c, "args"), "[serve --config /etc/statussync/statussync.yaml]"},
		{at(m["Service/prod-statussync-headless"], "spec", "clusterIP"), "None"},
	} {
		if fmt.Sprint(check.got) != check.want {
			t.Errorf("%v, want %s", check.got, check.want)
		}
	}
	labels := at(set, "spec", "template", "metadata", "labels").(obj)
	for _, s := range []string{"Service/prod-statussync", "Service/prod-statussync-headless"} {
		for k, v := range at(m[s], "spec", "selector").(obj) {
			if labels[k] != v {
				t.Errorf("%s selects %s=%v, the pod has %v", s, k, v, labels[k])
			}
		}
	}
	for name, value := range map[string]string{"ops": "ops-token-1", "prometheus": "scrape-token-1"} {
		b, err := base64.StdEncoding.DecodeString(fmt.Sprint(at(m["Secret/prod-statussync"], "data", name)))
		if err != nil || string(b) != value {
			t.Errorf("the token of %s: %q %v", name, b, err)
		}
	}
	// Every mount has its volume.
	volumes := map[any]bool{"data": true}
	for _, v := range items(pod, "volumes") {
		volumes[at(v, "name")] = true
	}
	for _, v := range items(c, "volumeMounts") {
		if !volumes[at(v, "name")] {
			t.Errorf("%v is mounted and not defined", at(v, "name"))
		}
	}
}

func keys(m map[string]obj) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// TestHelmConfiguration: what the chart makes of values is a configuration that the program takes, with the names by
// which the service is reached.
func TestHelmConfiguration(t *testing.T) {
	m := render(t, tokens+`
ingress: {enabled: true, hosts: [{host: status.example.com}]}
config:
  allowed_hosts: [other.example.com]
  auth: {login_failures_per_minute: 9}
  environments: [{id: box-7, address: 10.0.0.7, agent_token: "${BOX7_TOKEN}"}]
  servers: [{id: weather, environment: box-7, endpoint: "http://10.0.0.7:9101/mcp"}]
`)
	text := fmt.Sprint(at(m["ConfigMap/prod-statussync"], "data", "statussync.yaml"))
	var conf obj
	if err := yaml.Unmarshal([]byte(text), &conf); err != nil {
		t.Fatal(err)
	}
	hosts := fmt.Sprint(conf["allowed_hosts"])
	for _, want := range []string{"prod-statussync ", "prod-statussync.ops.svc.cluster.local", "status.example.com", "other.example.com"} {
		if !strings.Contains(hosts, want) {
			t.Errorf("allowed_hosts lacks %s: %s", want, hosts)
		}
	}
	// The files of the tokens are where the pod has them; here they lie elsewhere.
	dir := t.TempDir()
	for _, name := range []string{"ops", "prometheus"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("token-of-"+name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, v := range items(m["StatefulSet/prod-statussync"], "spec", "template", "spec", "containers", 0, "volumeMounts") {
		if at(v, "name") == "tokens" {
			text = strings.ReplaceAll(text, fmt.Sprint(at(v, "mountPath"))+"/", dir+"/")
		}
	}
	file := filepath.Join(dir, "statussync.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("BOX7_TOKEN", "token-of-box-7")
	if out, ok := run(t, dir, program(t), "config", "check", file); !ok || !strings.Contains(out, "login_failures_per_minute: 9") {
		t.Errorf("config check:\n%s\n%s", out, text)
	}
}

// TestHelmOptions renders what is off by default.
func TestHelmOptions(t *testing.T) {
	m := render(t, `
auth: {existingSecret: mine, tokens: [{name: root, role: admin}, {name: scraper, role: viewer}]}
image: {repository: example.com/statussync, digest: "sha256:`+strings.Repeat("a", 64)+`"}
persistence: {enabled: false}
networkPolicy: {enabled: true, from: [{namespaceSelector: {}}]}
ingress: {enabled: true, className: nginx, hosts: [{host: a.example.com, path: /, pathType: Prefix}], tls: [{secretName: t, hosts: [a.example.com]}]}
metrics: {serviceMonitor: {enabled: true, token: scraper, labels: {release: prom}}, prometheusRule: {enabled: true}, dashboard: {enabled: true}}
extraEnv: [{name: A, value: b}]
tolerations: [{operator: Exists}]
nodeSelector: {disk: ssd}
fullnameOverride: st
`)
	for _, kind := range []string{"NetworkPolicy/st", "Ingress/st", "ServiceMonitor/st", "PrometheusRule/st", "ConfigMap/st-dashboard", "StatefulSet/st", "ServiceAccount/st"} {
		if m[kind] == nil {
			t.Errorf("%s is missing", kind)
		}
	}
	for k := range m {
		if strings.HasPrefix(k, "Secret/") {
			t.Errorf("%s is made beside the existing one", k)
		}
	}
	pod := at(m["StatefulSet/st"], "spec", "template", "spec")
	if got := at(pod, "containers", 0, "image"); got != "example.com/statussync@sha256:"+strings.Repeat("a", 64) {
		t.Error(got)
	}
	if at(m["StatefulSet/st"], "spec", "volumeClaimTemplates") != nil {
		t.Error("a volume is claimed although nothing is kept")
	}
	for _, v := range items(pod, "volumes") {
		if at(v, "name") == "tokens" && at(v, "secret", "secretName") != "mine" {
			t.Errorf("%v", v)
		}
	}
	cred := at(m["ServiceMonitor/st"], "spec", "endpoints", 0, "authorization", "credentials")
	if at(cred, "name") != "mine" || at(cred, "key") != "scraper" {
		t.Errorf("%v", cred)
	}
	// The operator gets the very rules that are tested.
	want, _ := yaml.Marshal(documents(t, read(t, rulesFile))[0])
	got, _ := yaml.Marshal(m["PrometheusRule/st"]["spec"])
	if string(got) != string(want) {
		t.Errorf("the PrometheusRule's groups differ from %s:\n%s", rulesFile, got)
	}
	if got := fmt.Sprint(at(m["ConfigMap/st-dashboard"], "data", "statussync.json")); at(decodeJSON(t, got), "uid") != "statussync" {
		t.Error("the dashboard is damaged")
	}
}

// TestHelmRestartsForWhatItReads: another configuration or token makes other pods; the same values make the same.
func TestHelmRestartsForWhatItReads(t *testing.T) {
	sums := func(values string) string {
		return fmt.Sprint(at(render(t, values)["StatefulSet/prod-statussync"], "spec", "template", "metadata", "annotations"))
	}
	base := sums(tokens)
	if again := sums(tokens); again != base {
		t.Errorf("%s, then %s", base, again)
	}
	if other := sums(tokens + "config: {log: {level: debug}}"); other == base {
		t.Error("another configuration restarts nothing")
	}
	if other := sums(strings.ReplaceAll(tokens, "ops-token-1", "ops-token-2")); other == base {
		t.Error("another token restarts nothing")
	}
}

// TestHelmRefuses: wrong values are named.
func TestHelmRefuses(t *testing.T) {
	for values, want := range map[string]string{
		"replicas: 3":        "replicas",
		"auth: {tokens: []}": "tokens",
		"auth: {tokens: [{name: x, role: boss}]}":                   "role",
		"auth: {tokens: [{name: x, role: admin, value: short}]}":    "value",
		"config: {listen: 127.0.0.1:80}":                            "config.listen is set by the chart",
		"config: {auth: {tokens: [{name: x}]}}":                     "config.auth.tokens is set by the chart",
		"ingress: {enabled: true}":                                  "ingress.hosts",
		"persistence: {accessModes: [ReadWriteMany]}":               "accessModes",
		"metrics: {serviceMonitor: {enabled: true, token: nobody}}": "nobody",
		"service: {port: 0}":                                        "port",
	} {
		file := filepath.Join(t.TempDir(), "values.yaml")
		if err := os.WriteFile(file, []byte(values), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, ok := helm(t, "template", "prod", chart, "--values", file); ok || !strings.Contains(out, want) {
			t.Errorf("%s: it should name %q:\n%.600s", values, want, out)
		}
	}
}
