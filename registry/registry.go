// Package registry is the managed registry: the servers and environments that people define while the service runs, and
// the tokens of these environments' agents.
//
// Guarantees:
//
//   - Durability and order. A change is durable in the store first, then handed to the hub; a call that returns nil
//     means both, and readers of the hub see it. Changes happen one after the other, in the order of the turn.
//   - Failure. Where the store fails nothing was changed as far as anybody was told; where the hub cannot take what is
//     stored already, the error says so and Run (or the next change) hands it over as soon as it can. What the hub
//     refuses for good, because another registry defines the same id, is taken out of the store again.
//   - Trust. Everything here has statussync.OriginManaged: addresses are untrusted, and the guard lets probes reach
//     public addresses only, unless allow_networks holds them.
//   - Secrets. Probe headers go to the store and the hub, and nowhere else. Of a token only the hash is kept.
//   - Bounds. There are at most MaxServers servers and MaxEnvironments environments, each of bounded size.
package registry

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"iter"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/agentopia/statussync"
)

// Bounds of the registry.
const (
	MaxServers      = 50_000
	MaxEnvironments = 10_000
)

const (
	// commitTimeout bounds the part of a change that is not given up when its caller goes away.
	commitTimeout = 20 * time.Second
	// retryFirst and retryMost are the waits between attempts to hand over what the hub could not take.
	retryFirst = time.Second
	retryMost  = 30 * time.Second
)

// Store keeps the registry. Its methods are safe for concurrent use.
type Store interface {
	// Managed returns everything, as of one moment, tokens in the order in which they were made.
	Managed(ctx context.Context) (*statussync.Managed, error)
	// ChangeManaged makes a change durable, whole or not at all. After an error it may yet be found later, whole.
	ChangeManaged(ctx context.Context, c *statussync.ManagedChange) error
}

// Hub is what the registry needs of the running service.
type Hub interface {
	Submit(ctx context.Context, obs ...statussync.Observation) ([]*statussync.Entry, error)
	Server(id string) (statussync.ServerView, error)
	Servers(q statussync.ServerQuery) ([]statussync.ServerView, bool, statussync.Cursor)
	Environment(id string) (statussync.EnvironmentView, error)
}

// Options of a Manager.
type Options struct {
	Store Store // required
	Hub   Hub   // required
	// Agents is told of all agents' tokens, by hash, whenever they change; the map is the receiver's. Nil: nobody is.
	Agents func(environments map[[sha256.Size]byte]string)
	// ProbeKinds are the kinds of probe that a server may ask for. Default http, mcp, none.
	ProbeKinds []statussync.ProbeKind
	Logger     *slog.Logger // nil: discards
}

// Manager is the managed registry. Its methods are safe for concurrent use. They block while another change is under
// way, until their context ends, and then for the store and the hub.
type Manager struct {
	o   Options
	log *slog.Logger

	// turn holds one token while somebody changes or reads what follows.
	turn    chan struct{}
	servers map[string]*statussync.Server
	inEnv   map[string]map[string]*statussync.Server // the same by environment
	envs    map[string]*environment
	unsure  bool // memory, store and hub may differ: reconcileLocked is due
	partly  bool // the hub has refused some of it for good
	wake    chan struct{}
}

type environment struct {
	def    statussync.Environment
	tokens []statussync.AgentToken // in the order in which they were made
}

// New returns a Manager with what the store holds. Nothing of it is in force before Start.
func New(ctx context.Context, o Options) (*Manager, error) {
	if o.Store == nil {
		return nil, statussync.Invalid("Store", "is required")
	}
	if o.Hub == nil {
		return nil, statussync.Invalid("Hub", "is required")
	}
	if o.ProbeKinds == nil {
		o.ProbeKinds = []statussync.ProbeKind{statussync.ProbeHTTP, statussync.ProbeMCP, statussync.ProbeNone}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	m := &Manager{o: o, log: o.Logger.With("component", "registry"), turn: make(chan struct{}, 1), wake: make(chan struct{}, 1)}
	if err := m.readLocked(ctx); err != nil {
		return nil, err
	}
	return m, nil
}

// Start hands everything to the hub and puts the tokens in force. It is called once, after the other registries were
// handed over and before anything is served.
func (m *Manager) Start(ctx context.Context) error {
	if err := m.take(ctx); err != nil {
		return err
	}
	defer m.give()
	return m.submitAllLocked(ctx)
}

// Run hands over what the hub could not take at once. It blocks until ctx ends and then returns nil.
func (m *Manager) Run(ctx context.Context) error {
	wait := retryFirst
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.wake:
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
		err := m.settle(ctx)
		if err == nil {
			wait = retryFirst
			continue
		}
		wait = min(2*wait, retryMost)
		m.log.Warn("the managed registry is not in force as it is stored; trying again", "in", wait, "error", err)
		m.wakeUp()
	}
}

func (m *Manager) settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	if err := m.take(ctx); err != nil {
		return err
	}
	defer m.give()
	return m.reconcileLocked(ctx)
}

// Conflicts names what another registry is about to define although it is managed here; the error joins one Error with
// CodeConflict for each, located by its id.
func (m *Manager) Conflicts(ctx context.Context, u *statussync.RegistryUpdate) error {
	if err := m.take(ctx); err != nil {
		return err
	}
	defer m.give()
	return m.conflictsLocked(u)
}

func (m *Manager) conflictsLocked(u *statussync.RegistryUpdate) error {
	var errs []error
	add := func(kind, id string) {
		errs = append(errs, &statussync.Error{
			Code: statussync.CodeConflict, Location: id,
			Detail: "the " + kind + " " + shown(id) + " is managed by API already; take it out here, or remove it there first: statussync " + kind + " remove " + id,
		})
	}
	for i := range u.Environments {
		if m.envs[u.Environments[i].ID] != nil {
			add("environment", u.Environments[i].ID)
		}
	}
	for i := range u.Servers {
		if m.servers[u.Servers[i].ID] != nil {
			add("server", u.Servers[i].ID)
		}
	}
	return errors.Join(errs...)
}

// AddServer defines a new server. CodeConflict: the id is taken, or its container is; CodeInvalid names the fields.
func (m *Manager) AddServer(ctx context.Context, s statussync.Server) (statussync.ServerView, error) {
	if err := m.begin(ctx); err != nil {
		return statussync.ServerView{}, err
	}
	defer m.give()
	return m.addServerLocked(ctx, s)
}

func (m *Manager) addServerLocked(ctx context.Context, s statussync.Server) (statussync.ServerView, error) {
	if m.servers[s.ID] != nil {
		return statussync.ServerView{}, taken("server", s.ID, statussync.OriginManaged)
	}
	if v, err := m.o.Hub.Server(s.ID); err == nil {
		return statussync.ServerView{}, taken("server", s.ID, v.Server.Origin)
	}
	if len(m.servers) >= MaxServers {
		return statussync.ServerView{}, statussync.NewError(statussync.CodeConflict, "there are "+strconv.Itoa(MaxServers)+" managed servers already, which is the most that there can be", nil)
	}
	return m.putServerLocked(ctx, s)
}

// SetServer replaces the whole definition of a managed server. CodeNotFound; CodeConflict where another registry
// defines it, or its container is taken; CodeInvalid names the fields.
func (m *Manager) SetServer(ctx context.Context, s statussync.Server) (statussync.ServerView, error) {
	if err := m.begin(ctx); err != nil {
		return statussync.ServerView{}, err
	}
	defer m.give()
	if m.servers[s.ID] == nil {
		return statussync.ServerView{}, m.notOurServer(s.ID)
	}
	return m.putServerLocked(ctx, s)
}

func (m *Manager) putServerLocked(ctx context.Context, s statussync.Server) (statussync.ServerView, error) {
	complete(&s)
	f := m.checkServer(&s)
	if len(f) == 0 {
		m.checkPlace(&f, &s)
	}
	if err := f.err(); err != nil {
		return statussync.ServerView{}, err
	}
	c := statussync.ManagedChange{PutServers: []statussync.Server{s}}
	undo := statussync.ManagedChange{RemoveServers: []string{s.ID}}
	if old := m.servers[s.ID]; old != nil {
		undo = statussync.ManagedChange{PutServers: []statussync.Server{*old}}
	}
	err := m.changeLocked(ctx, &c, &statussync.RegistryUpdate{Origin: statussync.OriginManaged, Servers: c.PutServers}, &undo)
	if err != nil {
		return statussync.ServerView{}, err
	}
	return m.o.Hub.Server(s.ID)
}

// RemoveServer removes a managed server. CodeNotFound; CodeConflict where another registry defines it.
func (m *Manager) RemoveServer(ctx context.Context, id string) error {
	if err := m.begin(ctx); err != nil {
		return err
	}
	defer m.give()
	if m.servers[id] == nil {
		return m.notOurServer(id)
	}
	return m.changeLocked(ctx, &statussync.ManagedChange{RemoveServers: []string{id}},
		&statussync.RegistryUpdate{Origin: statussync.OriginManaged, RemovedServers: []string{id}}, nil)
}

// Adopt defines a server for a container that an agent listed and no server claims. The environment and the container
// of s are set; its id is the container's name where it has none. CodeNotFound: no such container is discovered;
// otherwise as AddServer.
func (m *Manager) Adopt(ctx context.Context, environmentID, container string, s statussync.Server) (statussync.ServerView, error) {
	if err := m.begin(ctx); err != nil {
		return statussync.ServerView{}, err
	}
	defer m.give()
	env, err := m.o.Hub.Environment(environmentID)
	if err != nil {
		return statussync.ServerView{}, err
	}
	if !slices.ContainsFunc(env.Discovered, func(d statussync.Discovered) bool { return d.Container == container }) {
		return statussync.ServerView{}, statussync.NewError(statussync.CodeNotFound, "the agent of "+shown(environmentID)+" lists no unclaimed container "+shown(container), nil)
	}
	switch {
	case s.EnvironmentID != "" && s.EnvironmentID != environmentID:
		return statussync.ServerView{}, statussync.Invalid("environment_id", "is not the environment of the container")
	case s.Container != "" && s.Container != container:
		return statussync.ServerView{}, statussync.Invalid("container", "is not the container that is adopted")
	}
	s.EnvironmentID, s.Container = environmentID, container
	if s.ID == "" {
		if s.ID = container; IDFault(s.ID) != "" {
			return statussync.ServerView{}, statussync.Invalid("id", "is missing, and the container's name is no id")
		}
	}
	return m.addServerLocked(ctx, s)
}

// AddEnvironment defines a new environment, without an agent's token. CodeConflict: the id is taken; CodeInvalid names
// the fields.
func (m *Manager) AddEnvironment(ctx context.Context, e statussync.Environment) (statussync.EnvironmentView, error) {
	if err := m.begin(ctx); err != nil {
		return statussync.EnvironmentView{}, err
	}
	defer m.give()
	if m.envs[e.ID] != nil {
		return statussync.EnvironmentView{}, taken("environment", e.ID, statussync.OriginManaged)
	}
	// One that the hub knows as managed and we don't exists only because servers still name it: it may be defined.
	if v, err := m.o.Hub.Environment(e.ID); err == nil && v.Environment.Origin != statussync.OriginManaged {
		return statussync.EnvironmentView{}, taken("environment", e.ID, v.Environment.Origin)
	}
	if len(m.envs) >= MaxEnvironments {
		return statussync.EnvironmentView{}, statussync.NewError(statussync.CodeConflict, "there are "+strconv.Itoa(MaxEnvironments)+" managed environments already, which is the most that there can be", nil)
	}
	return m.putEnvironmentLocked(ctx, e)
}

// SetEnvironment replaces the whole definition of a managed environment; its tokens stay. CodeNotFound; CodeConflict
// where another registry defines it; CodeInvalid names the fields.
func (m *Manager) SetEnvironment(ctx context.Context, e statussync.Environment) (statussync.EnvironmentView, error) {
	if err := m.begin(ctx); err != nil {
		return statussync.EnvironmentView{}, err
	}
	defer m.give()
	if m.envs[e.ID] == nil {
		return statussync.EnvironmentView{}, m.notOurEnvironment(e.ID)
	}
	return m.putEnvironmentLocked(ctx, e)
}

func (m *Manager) putEnvironmentLocked(ctx context.Context, e statussync.Environment) (statussync.EnvironmentView, error) {
	f := checkEnvironment(&e)
	if len(f) == 0 && e.AgentURL != "" {
		for s := range m.othersLocked(e.ID) {
			if _, same := probesAgent(s, &e); !same {
				continue
			}
			field, what := "agent_url", "is where the server "
			if _, same := probesAgent(s, &statussync.Environment{AgentURL: e.AgentURL}); !same {
				field, what = "address", "with the port of agent_url is where the server "
			}
			f.add(field, what+shown(s.ID)+" is probed: a probe there would only prove that the agent lives")
			break
		}
	}
	if err := f.err(); err != nil {
		return statussync.EnvironmentView{}, err
	}
	e.Origin, e.Name = statussync.OriginManaged, cmp.Or(e.Name, e.ID)
	undo := statussync.ManagedChange{RemoveEnvironments: []string{e.ID}}
	e.HasToken = false
	if old := m.envs[e.ID]; old != nil {
		e.HasToken = len(old.tokens) > 0
		undo = statussync.ManagedChange{PutEnvironments: []statussync.Environment{old.def}}
	}
	c := statussync.ManagedChange{PutEnvironments: []statussync.Environment{e}}
	err := m.changeLocked(ctx, &c, &statussync.RegistryUpdate{Origin: statussync.OriginManaged, Environments: c.PutEnvironments}, &undo)
	if err != nil {
		return statussync.EnvironmentView{}, err
	}
	return m.o.Hub.Environment(e.ID)
}

// RemoveEnvironment removes a managed environment and its tokens. CodeNotFound; CodeConflict where another registry
// defines it, or servers are in it.
func (m *Manager) RemoveEnvironment(ctx context.Context, id string) error {
	if err := m.begin(ctx); err != nil {
		return err
	}
	defer m.give()
	if m.envs[id] == nil {
		return m.notOurEnvironment(id)
	}
	for s := range m.othersLocked(id) {
		return statussync.NewError(statussync.CodeConflict, "the environment "+shown(id)+" still has servers, such as "+shown(s.ID)+"; remove them or move them first", nil)
	}
	return m.changeLocked(ctx, &statussync.ManagedChange{RemoveEnvironments: []string{id}},
		&statussync.RegistryUpdate{Origin: statussync.OriginManaged, RemovedEnvironments: []string{id}}, nil)
}

// AgentTokens returns the tokens of a managed environment, the newest first. CodeNotFound; CodeConflict where another
// registry defines it.
func (m *Manager) AgentTokens(ctx context.Context, id string) ([]statussync.AgentToken, error) {
	if err := m.begin(ctx); err != nil {
		return nil, err
	}
	defer m.give()
	env := m.envs[id]
	if env == nil {
		return nil, m.notOurEnvironment(id)
	}
	return newestFirst(env.tokens), nil
}

func newestFirst(list []statussync.AgentToken) []statussync.AgentToken {
	out := slices.Clone(list)
	slices.Reverse(out)
	return out
}

// RotateAgentToken makes a new token for a managed environment's agent and returns it, this once, with all that are
// valid now, the newest first. The one before stays valid; one before that does not. CodeNotFound; CodeConflict where
// another registry defines the environment.
func (m *Manager) RotateAgentToken(ctx context.Context, id string) (token string, valid []statussync.AgentToken, err error) {
	if err := m.begin(ctx); err != nil {
		return "", nil, err
	}
	defer m.give()
	env := m.envs[id]
	if env == nil {
		return "", nil, m.notOurEnvironment(id)
	}
	token = "ssa_" + rand.Text() // the prefix lets scanners for leaked secrets know it
	t := statussync.AgentToken{EnvironmentID: id, Hash: sha256.Sum256([]byte(token)), CreatedAt: time.Now().UTC()}
	c := statussync.ManagedChange{PutTokens: []statussync.AgentToken{t}}
	if n := len(env.tokens); n > 0 {
		if last := env.tokens[n-1].CreatedAt; !t.CreatedAt.After(last) { // the clock was set back: the order must hold
			t.CreatedAt = last.Add(time.Nanosecond)
			c.PutTokens[0] = t
		}
		for i := 0; i <= n-statussync.MaxAgentTokens; i++ {
			c.RemoveTokens = append(c.RemoveTokens, env.tokens[i].Hash)
		}
	}
	if err := m.changeTokensLocked(ctx, env, &c); err != nil {
		return "", nil, err
	}
	return token, newestFirst(m.envs[id].tokens), nil
}

// DropAgentToken ends a token of a managed environment, by AgentToken.ID. CodeNotFound; CodeConflict where another
// registry defines the environment.
func (m *Manager) DropAgentToken(ctx context.Context, id, tokenID string) error {
	if err := m.begin(ctx); err != nil {
		return err
	}
	defer m.give()
	env := m.envs[id]
	if env == nil {
		return m.notOurEnvironment(id)
	}
	i := slices.IndexFunc(env.tokens, func(t statussync.AgentToken) bool { return t.ID() == tokenID })
	if i < 0 {
		return statussync.NotFound("token of the environment "+shown(id), tokenID)
	}
	return m.changeTokensLocked(ctx, env, &statussync.ManagedChange{RemoveTokens: [][32]byte{env.tokens[i].Hash}})
}

// changeTokensLocked changes an environment's tokens, and tells the hub where it has an agent from now on, or none.
func (m *Manager) changeTokensLocked(ctx context.Context, env *environment, c *statussync.ManagedChange) error {
	def := env.def
	def.HasToken = len(env.tokens)+len(c.PutTokens)-len(c.RemoveTokens) > 0
	var u *statussync.RegistryUpdate
	if def.HasToken != env.def.HasToken {
		c.PutEnvironments = []statussync.Environment{def}
		u = &statussync.RegistryUpdate{Origin: statussync.OriginManaged, Environments: c.PutEnvironments}
	}
	return m.changeLocked(ctx, c, u, nil)
}

// begin takes the turn for a change, and first settles what an earlier one left.
func (m *Manager) begin(ctx context.Context) error {
	if err := m.take(ctx); err != nil {
		return err
	}
	if err := m.reconcileLocked(ctx); err != nil {
		m.give()
		return err
	}
	return nil
}

func (m *Manager) take(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case m.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (m *Manager) give() { <-m.turn }

// changeLocked makes c durable and in force, then u known to the hub (nil: it need not know). Where the hub refuses u for
// good and undo is not nil, c is undone. A caller that goes away does not leave a change half done.
func (m *Manager) changeLocked(ctx context.Context, c *statussync.ManagedChange, u *statussync.RegistryUpdate, undo *statussync.ManagedChange) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	if err := m.storeLocked(ctx, c); err != nil {
		return err
	}
	if u == nil {
		return nil
	}
	_, err := m.o.Hub.Submit(ctx, u)
	switch {
	case err == nil:
		return nil
	case !refused(err):
		m.doubtLocked()
		return statussync.NewError(statussync.CodeUnavailable, "this is stored, but the service cannot take it now; it takes effect as soon as it can", err)
	case undo == nil:
		m.log.Warn("the hub did not know what was removed", "error", err)
		return nil // it is gone, or another registry's, which is what removing it was to bring about
	}
	if undoErr := m.storeLocked(ctx, undo); undoErr != nil {
		return errors.Join(err, undoErr)
	}
	return err
}

// storeLocked makes c durable and remembers it.
func (m *Manager) storeLocked(ctx context.Context, c *statussync.ManagedChange) error {
	if err := m.o.Store.ChangeManaged(ctx, c); err != nil {
		m.doubtLocked() // it may yet be found there
		return err
	}
	m.applyLocked(c)
	return nil
}

func (m *Manager) applyLocked(c *statussync.ManagedChange) {
	for _, id := range c.RemoveServers {
		m.forgetLocked(id)
	}
	tokens := len(c.RemoveTokens)+len(c.PutTokens) > 0
	for _, id := range c.RemoveEnvironments {
		tokens = true
		delete(m.envs, id)
	}
	for _, h := range c.RemoveTokens {
		for _, env := range m.envs {
			env.tokens = slices.DeleteFunc(env.tokens, func(t statussync.AgentToken) bool { return t.Hash == h })
		}
	}
	for i := range c.PutEnvironments {
		e := &c.PutEnvironments[i]
		if m.envs[e.ID] == nil {
			m.envs[e.ID] = &environment{}
		}
		m.envs[e.ID].def = *e
	}
	for i := range c.PutServers {
		s := c.PutServers[i]
		m.rememberLocked(&s)
	}
	for _, t := range c.PutTokens {
		if env := m.envs[t.EnvironmentID]; env != nil {
			env.tokens = append(env.tokens, t)
		}
	}
	if tokens {
		m.tellAgentsLocked()
	}
}

func (m *Manager) rememberLocked(s *statussync.Server) {
	m.forgetLocked(s.ID)
	m.servers[s.ID] = s
	if m.inEnv[s.EnvironmentID] == nil {
		m.inEnv[s.EnvironmentID] = map[string]*statussync.Server{}
	}
	m.inEnv[s.EnvironmentID][s.ID] = s
}

func (m *Manager) forgetLocked(id string) {
	s := m.servers[id]
	if s == nil {
		return
	}
	delete(m.servers, id)
	delete(m.inEnv[s.EnvironmentID], id)
	if len(m.inEnv[s.EnvironmentID]) == 0 {
		delete(m.inEnv, s.EnvironmentID)
	}
}

// tellAgentsLocked puts the tokens in force.
func (m *Manager) tellAgentsLocked() {
	if m.o.Agents == nil {
		return
	}
	all := make(map[[sha256.Size]byte]string)
	for id, env := range m.envs {
		for _, t := range env.tokens {
			all[t.Hash] = id
		}
	}
	m.o.Agents(all)
}

// doubtLocked notes that memory, store and hub may differ.
func (m *Manager) doubtLocked() {
	m.unsure = true
	m.wakeUp()
}

func (m *Manager) wakeUp() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// reconcileLocked brings memory and hub to what is stored, where they may differ.
func (m *Manager) reconcileLocked(ctx context.Context) error {
	if !m.unsure {
		return nil
	}
	if err := m.readLocked(ctx); err != nil {
		return err
	}
	return m.submitAllLocked(ctx)
}

// readLocked makes memory what the store holds.
func (m *Manager) readLocked(ctx context.Context) error {
	all, err := m.o.Store.Managed(ctx)
	if err != nil {
		return err
	}
	m.servers = make(map[string]*statussync.Server, len(all.Servers))
	m.inEnv = map[string]map[string]*statussync.Server{}
	m.envs = make(map[string]*environment, len(all.Environments))
	for i := range all.Environments {
		e := &all.Environments[i]
		m.envs[e.ID] = &environment{def: *e}
	}
	for i := range all.Servers {
		m.rememberLocked(&all.Servers[i])
	}
	for _, t := range all.Tokens {
		if env := m.envs[t.EnvironmentID]; env != nil {
			env.tokens = append(env.tokens, t)
		}
	}
	return nil
}

// submitAllLocked hands everything over, and notes that it is in force.
func (m *Manager) submitAllLocked(ctx context.Context) error {
	_, err := m.submitLocked(ctx)
	return err
}

// submitLocked is submitAllLocked, and returns the updates that it caused.
func (m *Manager) submitLocked(ctx context.Context) ([]*statussync.Entry, error) {
	m.tellAgentsLocked()
	u := &statussync.RegistryUpdate{Origin: statussync.OriginManaged, Full: true}
	for _, env := range m.envs {
		u.Environments = append(u.Environments, env.def)
	}
	for _, s := range m.servers {
		u.Servers = append(u.Servers, *s)
	}
	slices.SortFunc(u.Environments, func(a, b statussync.Environment) int { return cmp.Compare(a.ID, b.ID) })
	slices.SortFunc(u.Servers, func(a, b statussync.Server) int { return cmp.Compare(a.ID, b.ID) })
	updates, err := m.o.Hub.Submit(ctx, u)
	m.partly = err != nil
	if err != nil {
		if !refused(err) {
			m.doubtLocked()
			return nil, err
		}
		m.log.Warn("part of the managed registry is not in force: another registry defines it", "error", err)
	}
	m.unsure = false
	return updates, nil
}

// refused reports whether the hub's answer would be the same again.
func refused(err error) bool {
	switch statussync.CodeOf(err) {
	case statussync.CodeConflict, statussync.CodeInvalid, statussync.CodeNotFound:
		return true
	}
	return false
}

// environmentLocked returns a defined environment; false: nobody defines it.
func (m *Manager) environmentLocked(id string) (env statussync.Environment, ok bool) {
	if env := m.envs[id]; env != nil {
		return env.def, true
	}
	v, err := m.o.Hub.Environment(id)
	if err != nil || v.Environment.Origin == statussync.OriginManaged { // then only servers name it
		return statussync.Environment{}, false
	}
	return *v.Environment, true
}

// othersLocked yields the servers of an environment, of whatever origin.
func (m *Manager) othersLocked(environmentID string) iter.Seq[*statussync.Server] {
	return func(yield func(*statussync.Server) bool) {
		ours := m.inEnv[environmentID]
		for _, s := range ours {
			if !yield(s) {
				return
			}
		}
		// Going through all servers takes long where there are many, and mostly there are no others.
		if v, err := m.o.Hub.Environment(environmentID); err == nil && v.Servers == len(ours) && !m.partly {
			return
		}
		views, _, _ := m.o.Hub.Servers(statussync.ServerQuery{EnvironmentIDs: []string{environmentID}, Limit: 1 << 30})
		for i := range views {
			if s := views[i].Server; s.Origin != statussync.OriginManaged && !yield(s) {
				return
			}
		}
	}
}

// notOurServer says why a server can't be changed here.
func (m *Manager) notOurServer(id string) error {
	if v, err := m.o.Hub.Server(id); err == nil && v.Server.Origin != statussync.OriginManaged {
		return readOnly("server", id, v.Server.Origin)
	}
	return statussync.NotFound("server", id)
}

func (m *Manager) notOurEnvironment(id string) error {
	if v, err := m.o.Hub.Environment(id); err == nil && v.Environment.Origin != statussync.OriginManaged {
		return readOnly("environment", id, v.Environment.Origin)
	}
	return statussync.NotFound("environment", id)
}

func taken(kind, id string, by statussync.Origin) error {
	return &statussync.Error{Code: statussync.CodeConflict, Location: "id", Detail: "the " + kind + " " + shown(id) + " exists already: it comes from " + place(by)}
}

func readOnly(kind, id string, by statussync.Origin) error {
	return statussync.NewError(statussync.CodeConflict, "the "+kind+" "+shown(id)+" comes from "+place(by)+" and can only be changed there", nil)
}

// place says where a definition comes from, for people.
func place(o statussync.Origin) string {
	switch o {
	case statussync.OriginConfig:
		return "the configuration file"
	case statussync.OriginManaged:
		return "the managed registry"
	case statussync.OriginPostgres:
		return "the platform's database"
	case statussync.OriginMCPConfig:
		return "an MCP configuration file"
	case statussync.OriginDiscovered:
		return "discovery"
	}
	if name, ok := strings.CutPrefix(string(o), string(statussync.OriginPostgres)+":"); ok {
		return "the database " + shown(name)
	}
	return shown(string(o))
}
