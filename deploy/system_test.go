package deploy

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"
)

const unit = "systemd/statussync.service"

// TestUnit: systemd takes the unit and finds little that the service could do beside its work.
func TestUnit(t *testing.T) {
	analyze := need(t, "systemd-analyze")
	// verify wants the program where the unit says it is.
	file := filepath.Join(t.TempDir(), "statussync.service")
	text := strings.ReplaceAll(read(t, unit), "/usr/bin/statussync", program(t))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, ok := run(t, ".", analyze, "verify", "--man=no", file); !ok || strings.TrimSpace(out) != "" {
		t.Errorf("verify:\n%s", out)
	}
	out, ok := run(t, ".", analyze, "security", "--offline=true", "--no-pager", file)
	m := regexp.MustCompile(`Overall exposure level for [^:]*: ([0-9.]+)`).FindStringSubmatch(out)
	if !ok || m == nil {
		t.Fatalf("security:\n%s", out)
	}
	// 0 is a service without a network; 1.2 when this was written.
	if level, err := strconv.ParseFloat(m[1], 64); err != nil || level > 1.5 {
		t.Errorf("the exposure level is %s\n%s", m[1], out)
	}
}

// TestUnitRunsTheProgram: its command line is one that the program takes, with the configuration that is shipped beside it.
func TestUnitRunsTheProgram(t *testing.T) {
	m := regexp.MustCompile(`(?m)^ExecStart=/usr/bin/statussync (.*)$`).FindStringSubmatch(read(t, unit))
	if m == nil {
		t.Fatal("no ExecStart")
	}
	takes(t, strings.Fields(m[1]))
	if out, ok := run(t, ".", program(t), "config", "check", "systemd/statussync.yaml"); !ok || !strings.Contains(out, "data: /var/lib/statussync") {
		t.Errorf("%s", out)
	}
	if !strings.Contains(read(t, unit), "StateDirectory=statussync\n") {
		t.Error("the data directory of the configuration is not the unit's StateDirectory")
	}
}

// takes checks that the program knows a command line. --help is the last word of it, so nothing runs; what comes before
// it is still parsed.
func takes(t *testing.T, args []string) {
	t.Helper()
	if out, ok := run(t, ".", program(t), append(args, "--help")...); !ok || !strings.Contains(out, "statussync "+args[0]) {
		t.Errorf("%v: %s", args, out)
	}
	for _, a := range args[1:] {
		if name, is := strings.CutPrefix(a, "--"); is {
			if out, _ := run(t, ".", program(t), args[0], "--help"); !strings.Contains(out, "--"+name) {
				t.Errorf("%s has no flag --%s", args[0], name)
			}
		}
	}
}

// instruction returns the JSON list of a Dockerfile's last instruction of that name.
func instruction(t *testing.T, dockerfile, name string) []string {
	t.Helper()
	all := regexp.MustCompile(`(?m)^`+name+`\b[^\[\n]*(\[.*\])$`).FindAllStringSubmatch(dockerfile, -1)
	if all == nil {
		return nil
	}
	// A JSON list is a YAML list.
	var out []string
	if err := yaml.Unmarshal([]byte(all[len(all)-1][1]), &out); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return out
}

// TestImages: both Dockerfiles start a command that exists from where the binary was put, as nobody in particular, with
// the data on a volume, and ask a health check that exists.
func TestImages(t *testing.T) {
	for _, file := range []string{"../Dockerfile", "docker/Dockerfile.release"} {
		d := read(t, file)
		const bin = "/usr/local/bin/statussync"
		entry, cmd, health := instruction(t, d, "ENTRYPOINT"), instruction(t, d, "CMD"), instruction(t, d, "HEALTHCHECK")
		if len(entry) != 1 || entry[0] != bin || !regexp.MustCompile(`(?m)^COPY .*statussync `+bin+`$`).MatchString(d) {
			t.Errorf("%s: the entry point is %v", file, entry)
		}
		takes(t, cmd)
		if len(health) < 2 || health[0] != bin {
			t.Fatalf("%s: the health check is %v", file, health)
		}
		takes(t, health[1:])
		for _, want := range []string{"\nUSER 65532:65532\n", "\nVOLUME [\"/data\"]\n", "--chown=65532:65532", "distroless/static", ":nonroot\n"} {
			if !strings.Contains(d, want) {
				t.Errorf("%s lacks %q", file, want)
			}
		}
	}
	if d := read(t, "../Dockerfile"); !strings.Contains(d, "COPY --from=page /src/dashboard/dist dashboard/dist\n") || strings.Index(d, "COPY --from=page") > strings.Index(d, "go build") {
		t.Error("the image's program is built without the dashboard")
	}
	if hooks := fmt.Sprint(documents(t, read(t, "../.goreleaser.yaml"))[0]["before"]); !strings.Contains(hooks, "./dashboard/build.sh") {
		t.Error("the releases' programs are built without the dashboard")
	}
	goVersion := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindStringSubmatch(read(t, "../go.mod"))
	if !strings.Contains(read(t, "../Dockerfile"), "golang:"+goVersion[1]+"-") {
		t.Errorf("the image is not built with go.mod's Go %s", goVersion[1])
	}
}

// TestImageIgnoresNothingThatItNeeds: what go:embed and the build need must reach the image's build.
func TestImageIgnoresNothingThatItNeeds(t *testing.T) {
	ignored := strings.Fields(read(t, "../.dockerignore"))
	out, ok := run(t, "..", "go", "list", "-deps", "-f", `{{if and .Module .Module.Main}}{{.Dir}}{{end}}`, "./cmd/statussync")
	if !ok {
		t.Fatal(out)
	}
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	dirs := strings.Fields(out)
	if len(dirs) < 10 {
		t.Fatalf("only %d rooms: %s", len(dirs), out)
	}
	for _, dir := range dirs {
		rel, _ := filepath.Rel(root, dir)
		for _, i := range ignored {
			if rel == i || strings.HasPrefix(rel, i+"/") {
				t.Errorf(".dockerignore hides %s, which the program is made of", rel)
			}
		}
	}
}

// TestCompose: what the compose file mounts exists, its secrets are those that its configuration reads, and the
// container may do nothing but its work.
func TestCompose(t *testing.T) {
	c := documents(t, read(t, "compose.yaml"))[0]
	s := at(c, "services", "statussync")
	if at(s, "read_only") != true || fmt.Sprint(at(s, "cap_drop")) != "[ALL]" || fmt.Sprint(at(s, "security_opt")) != "[no-new-privileges:true]" || at(s, "user") != "65532:65532" {
		t.Errorf("it may do more than it needs: %v", s)
	}
	test := items(s, "healthcheck", "test")
	image := instruction(t, read(t, "../Dockerfile"), "HEALTHCHECK")
	if len(test) == 0 || test[0] != "CMD" || fmt.Sprint(test[1:]) != fmt.Sprint(image) {
		t.Errorf("the health check %v is not the image's %v", test, image)
	}
	if got := fmt.Sprint(at(s, "build", "context")); got != ".." {
		t.Errorf("it is built from %s", got)
	}
	if ports := fmt.Sprint(at(s, "ports")); !strings.Contains(ports, "127.0.0.1:") {
		t.Errorf("the port is open to everybody: %s", ports)
	}
	volumes := at(c, "volumes").(obj)
	config := ""
	for _, v := range items(s, "volumes") {
		from, to, _ := strings.Cut(fmt.Sprint(v), ":")
		if !strings.HasPrefix(from, ".") {
			if _, ok := volumes[from]; !ok {
				t.Errorf("the volume %s is not defined", from)
			}
			continue
		}
		config = from
		if !strings.HasPrefix(to, "/etc/statussync/statussync.yaml:ro") {
			t.Errorf("%s is mounted at %s", from, to)
		}
	}
	text := read(t, config)
	dir := t.TempDir()
	for _, name := range items(s, "secrets") {
		if at(c, "secrets", fmt.Sprint(name), "file") == nil {
			t.Errorf("the secret %v is not defined", name)
		}
		if !strings.Contains(text, "/run/secrets/"+fmt.Sprint(name)) {
			t.Errorf("nothing reads the secret %v", name)
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(name)), fmt.Appendf(nil, "token-%v", name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(dir, "statussync.yaml")
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(text, "/run/secrets/", dir+"/")), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, ok := run(t, dir, program(t), "config", "check", file); !ok || !strings.Contains(out, "data: /data") {
		t.Errorf("config check:\n%s", out)
	}
}

// TestRelease: what the releases' configuration takes from the tree is there, and the files that it makes first are those
// that it packs.
func TestRelease(t *testing.T) {
	r := documents(t, read(t, "../.goreleaser.yaml"))[0]
	made := filepath.Join(t.TempDir(), "extras")
	script, err := filepath.Abs("release/extras.sh")
	if err != nil {
		t.Fatal(err)
	}
	if out, ok := run(t, ".", script, made, program(t)); !ok {
		t.Fatalf("extras.sh: %s", out)
	}
	var sources []string
	for _, f := range items(r, "archives", 0, "files") {
		if s, ok := f.(string); ok {
			sources = append(sources, s)
		} else {
			sources = append(sources, fmt.Sprint(at(f, "src")))
		}
	}
	for _, f := range items(r, "nfpms", 0, "contents") {
		sources = append(sources, fmt.Sprint(at(f, "src")))
	}
	for _, kind := range []string{"postinstall", "preremove"} {
		sources = append(sources, fmt.Sprint(at(r, "nfpms", 0, "scripts", kind)))
	}
	sources = append(sources, fmt.Sprint(at(r, "dockers_v2", 0, "dockerfile")))
	if len(sources) < 15 {
		t.Fatalf("only %d sources: %v", len(sources), sources)
	}
	for _, s := range sources {
		path := filepath.Join("..", s)
		if rest, ok := strings.CutPrefix(s, "dist-extras/"); ok {
			path = filepath.Join(made, rest)
		}
		if found, err := filepath.Glob(path); err != nil || len(found) == 0 {
			t.Errorf("%s: nothing is there (%v)", s, err)
		}
	}
	if pages, _ := filepath.Glob(filepath.Join(made, "man", "statussync*.1.gz")); len(pages) < 20 {
		t.Errorf("only %d manual pages", len(pages))
	}
	if got := fmt.Sprint(at(r, "builds", 0, "goos"), at(r, "builds", 0, "goarch"), at(r, "builds", 0, "env")); got != "[linux darwin windows] [amd64 arm64] [CGO_ENABLED=0]" {
		t.Errorf("it is built for %s", got)
	}
}
