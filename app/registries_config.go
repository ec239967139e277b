package app

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"go.yaml.in/yaml/v4"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/registry"
)

// RegistryConfig is one database that defines servers. Exactly one of the pointers is set.
type RegistryConfig struct {
	// Name tells registries of one kind apart; empty: the kind's own, such as postgres. It stands in the origin of what the
	// registry defines.
	Name     string          `yaml:"name,omitempty"`
	Postgres *PlatformConfig `yaml:"postgres,omitempty"`
	Supabase *PlatformConfig `yaml:"supabase,omitempty"`
	SQL      *SQLConfig      `yaml:"sql,omitempty"`
}

// PlatformConfig is a platform's own database, read and written (docs/protocols.md §5).
type PlatformConfig struct {
	// URL and APIKey are Supabase's alone: where Realtime is, and the key that it is asked with.
	URL        string `yaml:"url,omitempty"`
	APIKey     Secret `yaml:"api_key,omitempty"`
	APIKeyFile string `yaml:"api_key_file,omitempty"`

	DSN     DSN       `yaml:"dsn"`
	DSNFile string    `yaml:"dsn_file,omitempty"`
	Schema  string    `yaml:"schema"`
	Feed    string    `yaml:"feed"`   // auto, notify, poll; of Supabase realtime
	Resync  Duration  `yaml:"resync"` // between full reads
	Log     StatusLog `yaml:"status_log"`
	// WriteBack says whether agents' reports are written into the rows; nil: they are.
	WriteBack *bool `yaml:"heartbeat_write_back"`
}

// SQLConfig is any table that one query can read.
type SQLConfig struct {
	Driver  string   `yaml:"driver"` // postgres
	DSN     DSN      `yaml:"dsn"`
	DSNFile string   `yaml:"dsn_file,omitempty"`
	Query   string   `yaml:"query"`
	Resync  Duration `yaml:"resync"`
}

// StatusLog says whether updates are written to mcp_server_status_logs, and how long they are kept there. In a file it is
// true, false or a mapping.
type StatusLog struct {
	Off       bool     `yaml:"-"`
	Retention Duration `yaml:"retention,omitempty"` // 0: nothing is ever deleted
}

// MarshalYAML writes it as a file has it.
func (l StatusLog) MarshalYAML() (any, error) {
	if l.Retention == 0 {
		return !l.Off, nil
	}
	return map[string]Duration{"retention": l.Retention}, nil
}

var typeStatusLog = reflect.TypeFor[StatusLog]()

// decodeStatusLog reads the short form of a StatusLog; false: it is the long one.
func (d *decoder) decodeStatusLog(n *yaml.Node, path string, v reflect.Value) bool {
	if n.Kind != yaml.ScalarNode {
		return false
	}
	var on bool
	d.decodeScalar(n, path, reflect.ValueOf(&on).Elem())
	v.Set(reflect.ValueOf(StatusLog{Off: !on}))
	return true
}

// DSN is the address of a database as PostgreSQL's own tools take it, a URL or key=value pairs. It is a secret: formatted
// or encoded it shows only where it leads.
type DSN string

// String shows user, host, port and database.
func (s DSN) String() string {
	if s == "" {
		return ""
	}
	c, err := pgconn.ParseConfig(string(s))
	if err != nil {
		return hidden
	}
	user := c.User
	if c.Password != "" {
		user += ":" + hidden
	}
	return "postgres://" + user + "@" + c.Host + ":" + strconv.Itoa(int(c.Port)) + "/" + c.Database
}

// GoString masks like String.
func (s DSN) GoString() string { return s.String() }

// MarshalText masks like String.
func (s DSN) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// MarshalYAML masks like String.
func (s DSN) MarshalYAML() (any, error) { return s.String(), nil }

// dsnFault says what is wrong with a DSN, "" where nothing is. It quotes nothing of it.
func dsnFault(s DSN) string {
	_, err := pgconn.ParseConfig(string(s))
	if err == nil {
		return ""
	}
	why := ""
	if inner := errors.Unwrap(err); inner != nil && !strings.Contains(string(s), inner.Error()) {
		why = statussync.CleanText(inner.Error(), 200)
	}
	// The cause may repeat a part of the address, whichever way it is broken: only what names no value is told.
	for _, known := range []string{"invalid port", "sslmode is invalid", "unable to read CA file", "unable to read sslcert", "cannot parse", "failed to configure TLS"} {
		if strings.Contains(why, known) {
			return "is no address of a PostgreSQL database: " + known
		}
	}
	return "is no address of a PostgreSQL database, such as postgres://user:password@host:5432/database"
}

// Defaults of a registry, and bounds.
const (
	defaultResync    = time.Minute
	defaultSQLResync = time.Minute
	minResync        = time.Second
	maxRegistries    = 8
	minLogRetention  = 24 * time.Hour
	maxQuery         = 64 << 10
)

// identifier is what a schema's name may be: it stands, quoted, in statements.
var identifier = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_$]{0,62}$`)

// kind returns which pointer is set, and how many are.
func (r *RegistryConfig) kind() (name string, n int) {
	for _, k := range []struct {
		name string
		set  bool
	}{{"postgres", r.Postgres != nil}, {"supabase", r.Supabase != nil}, {"sql", r.SQL != nil}} {
		if k.set {
			name = k.name
			n++
		}
	}
	return name, n
}

// platform returns what both kinds of platform have in common; nil for a sql one.
func (r *RegistryConfig) platform() *PlatformConfig {
	if r.Postgres != nil {
		return r.Postgres
	}
	return r.Supabase
}

// checkRegistries fills in defaults and checks registries.
func (c *Config) checkRegistries(d *decoder) {
	if len(c.Registries) > maxRegistries {
		d.failAt("registries", "lists %d databases; at most %d are read", len(c.Registries), maxRegistries)
		return
	}
	names := map[string]string{}
	for i := range c.Registries {
		r := &c.Registries[i]
		p := fmt.Sprintf("registries[%d]", i)
		kind, n := r.kind()
		switch {
		case d.broken(p):
			continue
		case n == 0 && d.absent(p+".postgres") && d.absent(p+".supabase") && d.absent(p+".sql"):
			d.failAt(p, "must be one of postgres, supabase, sql")
			continue
		case n > 1:
			d.failAt(p, "is one of postgres, supabase, sql; begin another item for another database")
			continue
		case n == 0:
			continue
		}
		if r.Name == "" && d.absent(p+".name") {
			r.Name = kind
		}
		failIf(d, p+".name", registry.IDFault(r.Name))
		if first := names[r.Name]; first != "" {
			d.failAt(p, "%q is the name of another registry, at %s; give one of them another one with name: NAME", r.Name, d.at(first))
		} else {
			names[r.Name] = p
		}
		if s := r.SQL; s != nil {
			c.checkSQL(d, p+".sql", s)
			continue
		}
		c.checkPlatform(d, p+"."+kind, kind, r.platform())
	}
}

func (c *Config) checkPlatform(d *decoder, p, kind string, r *PlatformConfig) {
	c.dsnOf(d, p, &r.DSN, r.DSNFile)
	if r.Schema == "" && !d.given(p+".schema") && d.absent(p+".schema") {
		r.Schema = "public"
	}
	if !identifier.MatchString(r.Schema) {
		d.failAt(p+".schema", "%q is no name of a schema", r.Schema)
	}
	if r.Resync == 0 && !d.given(p+".resync") && d.absent(p+".resync") {
		r.Resync = Duration(defaultResync)
	}
	if r.Resync < Duration(minResync) {
		d.failAt(p+".resync", "must be at least %s", formatDuration(minResync))
	}
	if d.given(p+".status_log.retention") && r.Log.Retention < Duration(minLogRetention) {
		d.failAt(p+".status_log.retention", "must be at least %s", formatDuration(minLogRetention))
	}
	if r.WriteBack == nil && d.absent(p+".heartbeat_write_back") {
		yes := true
		r.WriteBack = &yes
	}
	feeds := []string{"auto", "notify", "poll"}
	if kind == "supabase" {
		feeds = []string{"realtime", "notify", "poll"}
	}
	if r.Feed == "" && d.absent(p+".feed") {
		r.Feed = feeds[0]
	}
	known := false
	for _, f := range feeds {
		known = known || r.Feed == f
	}
	switch {
	case known:
	case r.Feed == "realtime":
		d.failAt(p+".feed", "realtime is Supabase's: say supabase: {url, api_key, dsn} in place of postgres")
	default:
		d.failAt(p+".feed", "must be one of %s, not %q", strings.Join(feeds, ", "), r.Feed)
	}
	if kind != "supabase" {
		for key, set := range map[string]bool{"url": r.URL != "", "api_key": r.APIKey != "", "api_key_file": r.APIKeyFile != ""} {
			if set {
				d.failAt(p+"."+key, "is a key of supabase only")
			}
		}
		return
	}
	if r.URL != "" || d.absent(p+".url") {
		u, err := url.Parse(r.URL)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			d.failAt(p+".url", "must be the project's address, such as https://ref.supabase.co")
		}
	}
	if c.fileSecret(d, p+".api_key", (*string)(&r.APIKey), r.APIKeyFile) && r.APIKey == "" {
		d.failAt(p+".api_key", "is missing; give api_key or api_key_file")
	}
}

func (c *Config) checkSQL(d *decoder, p string, r *SQLConfig) {
	if r.Driver == "" && d.absent(p+".driver") {
		r.Driver = "postgres"
	}
	if r.Driver != "postgres" {
		d.failAt(p+".driver", "must be postgres, not %q", r.Driver)
	}
	c.dsnOf(d, p, &r.DSN, r.DSNFile)
	if r.Resync == 0 && !d.given(p+".resync") && d.absent(p+".resync") {
		r.Resync = Duration(defaultSQLResync)
	}
	if r.Resync < Duration(minResync) {
		d.failAt(p+".resync", "must be at least %s", formatDuration(minResync))
	}
	switch {
	case strings.TrimSpace(r.Query) == "" && d.absent(p+".query"):
		d.failAt(p+".query", "is missing: a select of at least the column id")
	case len(r.Query) > maxQuery:
		d.failAt(p+".query", "is longer than %d bytes", maxQuery)
	}
}

// dsnOf reads and judges a DSN.
func (c *Config) dsnOf(d *decoder, p string, dsn *DSN, file string) {
	if !c.fileSecret(d, p+".dsn", (*string)(dsn), file) {
		return
	}
	if *dsn == "" {
		d.failAt(p+".dsn", "is missing; give dsn or dsn_file")
		return
	}
	failIf(d, p+".dsn", dsnFault(*dsn))
}

// fileSecret reads a secret that may stand in a file beside it; false: whether there is one cannot be said, and why was
// told.
func (c *Config) fileSecret(d *decoder, path string, v *string, file string) bool {
	if d.broken(path + "_file") {
		return false
	}
	if file == "" {
		return *v != "" || d.absent(path)
	}
	if *v != "" {
		d.failAt(path+"_file", "is given beside %s; one of them is enough", path)
		return false
	}
	p := file
	if !filepath.IsAbs(p) {
		p = filepath.Join(c.dir, p)
	}
	b, err := os.ReadFile(p)
	if err != nil {
		d.failAt(path+"_file", "%s cannot be read: %v", file, unwrapPath(err))
		return false
	}
	if *v = strings.TrimSpace(string(b)); *v == "" {
		d.failAt(path+"_file", "%s is empty", file)
		return false
	}
	return true
}

// DSNFault says what is wrong with the address of a database, "" where nothing is. It quotes nothing of it.
func DSNFault(dsn string) string { return dsnFault(DSN(dsn)) }
