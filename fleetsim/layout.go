package fleetsim

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"time"
)

// product is what a simulated server pretends to be.
type product struct {
	id, container string // container: "" is the id
	typ           string
	team, tier    string
	desired       string // "" is running
	image         string // "" is registry.example/mcp/<id>
}

// products fill the demo's fleet in this order. Two run under a container name that another environment has too, one
// under a name that differs from its id, and one is its owner's to start and stop.
var products = [...]product{
	{id: "weather", typ: "data", team: "core", tier: "1"},
	{id: "github", typ: "code", team: "dev", tier: "1"},
	{id: "postgres-tools", typ: "database", team: "data", tier: "1", image: "registry.example/mcp/pg"},
	{id: "search", typ: "search", team: "core", tier: "1"},
	{id: "calendar", typ: "productivity", team: "office", tier: "2"},
	{id: "slack", typ: "messaging", team: "office", tier: "1"},
	{id: "filesystem", typ: "files", team: "core", tier: "2"},
	{id: "jira", typ: "tracker", team: "dev", tier: "2"},
	{id: "vector-store", typ: "database", team: "data", tier: "1"},
	{id: "browser", typ: "automation", team: "core", tier: "2", container: "headless-chromium"},
	{id: "email", typ: "messaging", team: "office", tier: "2"},
	{id: "sentry", typ: "observability", team: "dev", tier: "2"},
	{id: "payments", typ: "commerce", team: "shop", tier: "1"},
	{id: "maps", typ: "data", team: "shop", tier: "2"},
	{id: "search-eu", container: "search", typ: "search", team: "core", tier: "1"},
	{id: "translate", typ: "language", team: "core", tier: "3"},
	{id: "notion", typ: "productivity", team: "office", tier: "3"},
	{id: "nightly-import", typ: "batch", team: "data", tier: "3", desired: "stopped"},
	{id: "inventory", typ: "commerce", team: "shop", tier: "1"},
	{id: "grafana", typ: "observability", team: "dev", tier: "2"},
	{id: "github-mirror", container: "github", typ: "code", team: "dev", tier: "3"},
	{id: "crm", typ: "commerce", team: "shop", tier: "2"},
	{id: "time", typ: "utility", team: "core", tier: "3"},
	{id: "memory", typ: "knowledge", team: "core", tier: "2"},
}

// productAt gives the i-th server's product; beyond the list the same come again, numbered.
func (o *Options) productAt(i int) product {
	if o.Plain {
		return product{
			id: fmt.Sprintf("s%05d", i), container: fmt.Sprintf("tool-%d", i/o.Environments),
			typ: "tool", team: fmt.Sprintf("team-%d", i%7), tier: fmt.Sprint(1 + i%3), image: "registry.example/mcp/tool",
		}
	}
	p := products[i%len(products)]
	if p.container == "" {
		p.container = p.id
	}
	if p.image == "" {
		p.image = "registry.example/mcp/" + p.id
	}
	if round := i / len(products); round > 0 {
		p.id = fmt.Sprintf("%s-%d", p.id, round+1)
		p.container = fmt.Sprintf("%s-%d", p.container, round+1)
	}
	return p
}

// kindAt makes every third server a real MCP server, of both eras in turn.
func (o *Options) kindAt(i int) Kind {
	switch {
	case o.Plain || i%3 != 0:
		return KindPlain
	case i%2 == 0:
		return KindModern
	}
	return KindLegacy
}

// hexID is a container id or image digest.
func hexID(r *rand.Rand) string {
	return fmt.Sprintf("%016x%016x%016x%016x", r.Uint64(), r.Uint64(), r.Uint64(), r.Uint64())
}

// replaceID gives the id of the container that comes after the one with this id.
func replaceID(id string) string { return id[8:] + id[:8] }

// build lays the fleet out and binds its sockets. What was bound before an error is in f.doors.
func (f *Fleet) build(r *rand.Rand) error {
	now := time.Now()
	for i := range f.opt.Environments {
		if err := f.addEnvironment(i, r, now); err != nil {
			return err
		}
	}
	for i := range f.opt.Servers {
		if err := f.addServer(i, r, now); err != nil {
			return err
		}
	}
	return nil
}

func (f *Fleet) addEnvironment(i int, r *rand.Rand, now time.Time) error {
	id := fmt.Sprintf("box-%d", i+1)
	e := &environment{index: i, Environment: Environment{
		ID: id, Name: id, Owner: fmt.Sprintf("u%d", 1+i/2), Address: "127.0.0.1", AgentToken: newToken(), Shape: ShapeDocker,
	}}
	if i > 0 && i == f.opt.Environments-1 {
		e.Shape = ShapeDocumented
	}
	if i == 0 { // a container that belongs to no server
		e.extra = []*container{{
			name: "somebody-elses-redis", id: hexID(r), image: "redis:7", imageID: "sha256:" + hexID(r), command: "redis-server",
			ports: []port{{private: 6379}}, created: now.Add(-50 * time.Hour), startedAt: now.Add(-26 * time.Hour),
			state: StateRunning, listening: true,
		}}
	}
	e.agent = &agent{f: f, env: e, kick: make(chan struct{}, 1)}
	if n := f.opt.EventAgents; n < 0 || i < n {
		e.agent.notice, e.agent.told = make(chan struct{}, 1), make(map[*server]containerState)
	}
	d, err := f.addDoor(e.agent)
	if err != nil {
		return fmt.Errorf("fleetsim: a port for the agent of %s: %w", id, err)
	}
	e.agent.door, e.AgentURL = d, "http://"+d.addr
	if f.opt.Plain {
		if e.door, err = f.addDoor(http.NewServeMux()); err != nil {
			return fmt.Errorf("fleetsim: a port for the servers of %s: %w", id, err)
		}
	}
	f.envs = append(f.envs, e)
	f.byEnv[id] = e
	return nil
}

func (f *Fleet) addServer(i int, r *rand.Rand, now time.Time) error {
	p, kind := f.opt.productAt(i), f.opt.kindAt(i)
	e := f.envs[i%len(f.envs)]
	for _, other := range e.servers {
		if other.c.name == p.container { // names are unique within an environment
			p.container = p.id
		}
	}
	s := &server{env: e, Server: Server{
		ID: p.id, Name: p.id, EnvironmentID: e.ID, Container: p.container, Transport: "streamable-http", Type: p.typ, Kind: kind,
		Desired: "running", Labels: map[string]string{"team": p.team, "tier": p.tier},
	}}
	if p.desired != "" {
		s.Desired = p.desired
	}
	var endpoint http.Handler = plainMCP{p.id}
	if kind == KindPlain {
		s.Transport = "http"
	} else {
		s.mcp, endpoint = newSDKServer(p.id, kind, 2+i%2)
	}
	prefix := ""
	if f.opt.Plain {
		prefix = "/" + p.id
	}
	s.overlay = newOverlay(serverMux(prefix, p.id, endpoint))

	d := e.door
	if f.opt.Plain {
		d.next.(*http.ServeMux).Handle(prefix+"/", s.overlay)
	} else {
		var err error
		if d, err = f.addDoor(s.overlay); err != nil {
			return fmt.Errorf("fleetsim: a port for %s: %w", p.id, err)
		}
		s.door = d
	}
	s.PublicPort = d.port()
	s.Endpoint = "http://" + d.addr + prefix + "/mcp"
	s.ProbeURL = "http://" + d.addr + prefix + "/health"

	// Ages from minutes to weeks, evenly on a logarithmic scale.
	age := time.Duration(float64(3*time.Minute) * math.Pow(7000, r.Float64()))
	s.c = &container{
		name: p.container, id: hexID(r), image: fmt.Sprintf("%s:1.%d.%d", p.image, r.IntN(9), r.IntN(9)), imageID: "sha256:" + hexID(r),
		command: "/app/server", created: now.Add(-age - 20*time.Second), state: StateRunning, startedAt: now.Add(-age), listening: true,
		checked: i%2 == 0, settle: f.scaled(10 * time.Second), ports: []port{{"0.0.0.0", 8080, s.PublicPort}},
	}
	if i%4 == 1 {
		s.c.command = "node dist/index.js"
		s.c.ports = append(s.c.ports, port{"::", 8080, s.PublicPort})
	}
	e.servers = append(e.servers, s)
	f.servers = append(f.servers, s)
	f.byID[s.ID] = s
	return nil
}

func (f *Fleet) addDoor(h http.Handler) (*door, error) {
	d, err := newDoor(h, f.log)
	if err == nil {
		f.doors = append(f.doors, d)
	}
	return d, err
}
