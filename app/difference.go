package app

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/httpapi"
	"github.com/agentopia/statussync/wire"
)

// isLive reports whether a key of the configuration can change while the service runs. What is not named here is told to
// need a restart: a new key must not be ignored silently.
func isLive(key string) bool {
	switch key {
	case "log.level", "auth.legacy_viewer", "auth.login_failures_per_minute", "auth.commands_per_second",
		"allowed_hosts", "allowed_origins", "trusted_proxies", "allow_networks":
		return true
	}
	section, _, _ := strings.Cut(key, ".")
	return slices.Contains([]string{"limits", "mcp_config", "probe", "heartbeat", "transitions", "flapping"}, section)
}

// reloaded returns the configuration that is in force once file has been read while old is: file's, but with old's values
// of what needs a restart; and how the two differ. Neither is changed.
func reloaded(old, file *Config, live func(key string) bool) (*Config, wire.Reload) {
	merged := *file
	if merged.Auth != nil {
		auth := *merged.Auth
		merged.Auth = &auth
	}
	merged.scale = old.scale
	out := wire.Reload{Settings: []string{}, NeedsRestart: []string{}, Warnings: []string{}}
	eachSetting("", reflect.ValueOf(old).Elem(), reflect.ValueOf(&merged).Elem(), func(key string, was, is reflect.Value) {
		if sameSetting(was, is) {
			return
		}
		if live(key) {
			out.Settings = append(out.Settings, key)
			return
		}
		out.NeedsRestart = append(out.NeedsRestart, key)
		if is.CanSet() {
			is.Set(was)
		}
	})
	before, after := old.Registry(), merged.Registry()
	out.Servers = difference(before.Servers, after.Servers, func(s *statussync.Server) string { return s.ID })
	// An agent's token is part of its environment, though the registry only knows whether there is one.
	out.Environments = difference(old.Environments, merged.Environments, func(e *EnvironmentConfig) string { return e.ID })
	out.Tokens = difference(old.tokens(), merged.tokens(), func(t *TokenConfig) string { return t.Name })
	if n, all := out.Servers.RemovedCount, len(before.Servers); many(n, all) {
		out.Warnings = append(out.Warnings, fmt.Sprintf("%d of %d servers were removed", n, all))
	}
	return &merged, out
}

// many reports whether a registry that lost n of all its servers in one read is to be doubted: more than 20 % and more
// than 5 (docs/domain.md, Journal entries).
func many(n, all int) bool { return n > 5 && n*5 > all }

// settleTime is how long after a doubtful read of the configuration it is read again. Editors and copies write a file of
// 64 MiB in less.
const settleTime = time.Second

// loadSettled is load for those who ask for nothing in particular to be removed: where it has lost many of old's servers,
// as a file has while it is written, it is read once more, and what it says then counts. It blocks up to settleTime and
// two loads, or until ctx ends.
func loadSettled(ctx context.Context, old *Config, load func() (*Config, error)) (*Config, error) {
	file, err := load()
	if err != nil {
		return nil, err
	}
	d := difference(old.Registry().Servers, file.Registry().Servers, func(s *statussync.Server) string { return s.ID })
	if !many(d.RemovedCount, len(old.Servers)) {
		return file, nil
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(settleTime):
	}
	return load()
}

// tokens are the people's credentials, in the form in which they are compared: where a secret comes from does not count.
func (c *Config) tokens() []TokenConfig {
	if c.Auth == nil {
		return nil
	}
	out := slices.Clone(c.Auth.Tokens)
	for i := range out {
		out[i].TokenFile = ""
	}
	return out
}

// eachSetting calls f for every key of two configurations that is no definition of a server, an environment or a token,
// in the order of the struct. Where a section is missing, its keys have their zero values; those can't be set.
func eachSetting(path string, a, b reflect.Value, f func(key string, a, b reflect.Value)) {
	t := a.Type()
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("yaml"), ",")
		if name == "" || name == "-" {
			continue
		}
		key := strings.TrimPrefix(path+"."+name, ".")
		if key == "environments" || key == "servers" || key == "auth.tokens" {
			continue
		}
		fa, fb := a.Field(i), b.Field(i)
		// Certificate and key belong together: tls is one setting.
		if key != "tls" && fa.Kind() == reflect.Pointer && fa.Type().Elem().Kind() == reflect.Struct {
			fa, fb = pointed(fa), pointed(fb)
		}
		if fa.Kind() == reflect.Struct {
			eachSetting(key, fa, fb, f)
		} else {
			f(key, fa, fb)
		}
	}
}

func pointed(v reflect.Value) reflect.Value {
	if v.IsNil() {
		return reflect.Zero(v.Type().Elem())
	}
	return v.Elem()
}

func sameSetting(a, b reflect.Value) bool {
	if k := a.Kind(); (k == reflect.Slice || k == reflect.Map) && a.Len() == 0 && b.Len() == 0 {
		return true // an empty list is no list
	}
	return reflect.DeepEqual(a.Interface(), b.Interface())
}

// difference compares two lists by id.
func difference[T any](before, after []T, id func(*T) string) wire.Difference {
	old := make(map[string]*T, len(before))
	for i := range before {
		old[id(&before[i])] = &before[i]
	}
	out := wire.Difference{}
	for i := range after {
		x := &after[i]
		was := old[id(x)]
		delete(old, id(x))
		switch {
		case was == nil:
			out.Added = append(out.Added, id(x))
		case reflect.DeepEqual(was, x):
			out.Unchanged++
		default:
			out.Changed = append(out.Changed, id(x))
		}
	}
	for id := range old {
		out.Removed = append(out.Removed, id)
	}
	out.AddedCount, out.ChangedCount, out.RemovedCount = len(out.Added), len(out.Changed), len(out.Removed)
	out.Added, out.Changed, out.Removed = listed(out.Added), listed(out.Changed), listed(out.Removed)
	return out
}

// listed sorts ids and keeps as many as an answer holds.
func listed(ids []string) []string {
	slices.SortFunc(ids, cmp.Compare[string])
	return append([]string{}, ids[:min(len(ids), wire.MaxListed)]...)
}

// apiSettings returns what the API takes of a configuration.
func apiSettings(c *Config) (httpapi.Settings, error) {
	set := httpapi.Settings{Limits: c.Limits.api(), OpenLoopback: true, AllowedHosts: c.AllowedHosts, AllowedOrigins: c.AllowedOrigins}
	var err error
	if set.TrustedProxies, err = prefixes("trusted_proxies", c.TrustedProxies); err != nil {
		return set, err
	}
	if c.Auth != nil {
		set.OpenLoopback = len(c.Auth.Tokens) == 0
		set.LegacyViewer = c.Auth.LegacyViewer
		set.LoginFailuresPerMinute = c.Auth.LoginFailuresPerMinute
	}
	return set, nil
}

func prefixes(key string, list []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range list {
		p, err := parsePrefix(s)
		if err != nil {
			return nil, statussync.Invalid(key, err.Error())
		}
		out = append(out, p)
	}
	return out, nil
}

// askConcurrency is how many agents may be asked at once: agents that hang, however many, must not delay another's
// question.
func askConcurrency(c *Config) int { return max(32, len(c.Environments)) }
