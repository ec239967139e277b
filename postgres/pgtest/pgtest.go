// Package pgtest runs a real PostgreSQL for tests: a cluster of its own in a temporary folder, listening on a loopback port,
// which can be killed, stopped, started again and frozen.
//
// PostgreSQL refuses to run as root: as root, it runs as the user postgres that Debian's package makes.
package pgtest

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Platform makes the platform's tables in an empty database.
//
//go:embed platform.sql
var Platform string

// Cluster is a running PostgreSQL. Its methods are safe for concurrent use but for those that start and stop it.
type Cluster struct {
	Port int

	dir  string // the data folder
	bin  string
	who  *syscall.Credential
	log  *os.File
	next atomic.Int64 // for names of databases

	mu  sync.Mutex
	cmd *exec.Cmd
	// exited is closed when cmd has ended
	exited chan struct{}
}

// Start makes a cluster and runs it until the test ends; in a TestMain, Run does it for a whole package. settings are
// further lines of postgresql.conf. Where PostgreSQL is not installed the test is skipped, with CI=true it fails.
func Start(tb testing.TB, settings ...string) *Cluster {
	tb.Helper()
	c, err := start(settings)
	if err != nil {
		missing(tb, err)
	}
	tb.Cleanup(c.remove)
	return c
}

func missing(tb testing.TB, err error) {
	tb.Helper()
	if os.Getenv("CI") == "true" {
		tb.Fatalf("PostgreSQL: %v", err)
	}
	tb.Skipf("PostgreSQL: %v", err)
}

// Shared is one cluster for all tests of a package, made when the first of them asks. The zero value is ready.
type Shared struct {
	once sync.Once
	c    *Cluster
	err  error
}

// Get returns the cluster. Skips or fails as Start does.
func (s *Shared) Get(tb testing.TB) *Cluster {
	tb.Helper()
	s.once.Do(func() { s.c, s.err = start(nil) })
	if s.err != nil {
		missing(tb, s.err)
	}
	return s.c
}

// Close stops the cluster if there is one; TestMain calls it before it exits.
func (s *Shared) Close() {
	if s.c != nil {
		s.c.remove()
	}
}

func binaries() (string, error) {
	if p, err := exec.LookPath("initdb"); err == nil {
		return filepath.Dir(p), nil
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb") // where Debian has them, outside PATH
	if len(found) == 0 {
		return "", fmt.Errorf("initdb is not installed")
	}
	slices.Sort(found)
	return filepath.Dir(found[len(found)-1]), nil
}

func credential() (*syscall.Credential, error) {
	if os.Getuid() != 0 {
		return nil, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, err
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		return nil, err
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}

func start(settings []string) (c *Cluster, err error) {
	c = &Cluster{}
	if c.bin, err = binaries(); err != nil {
		return nil, err
	}
	if c.who, err = credential(); err != nil {
		return nil, err
	}
	root, err := os.MkdirTemp("", "pgtest")
	if err != nil {
		return nil, err
	}
	c.dir = filepath.Join(root, "data")
	defer func() {
		if err != nil {
			c.remove()
		}
	}()
	if err = os.Mkdir(c.dir, 0o700); err != nil {
		return nil, err
	}
	if c.who != nil {
		for _, p := range []string{root, c.dir} {
			if err = os.Chown(p, int(c.who.Uid), int(c.who.Gid)); err != nil {
				return nil, err
			}
		}
	}
	initdb := exec.Command(filepath.Join(c.bin, "initdb"), "-D", c.dir, "-U", "postgres", "--auth=trust", "-E", "UTF8", "--no-locale", "--no-sync", "--no-instructions")
	initdb.Dir = root
	initdb.SysProcAttr = &syscall.SysProcAttr{Credential: c.who}
	if out, err := initdb.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w: %s", err, bytes.TrimSpace(out))
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	c.Port = ln.Addr().(*net.TCPAddr).Port
	ln.Close()
	conf := []string{
		"listen_addresses = '127.0.0.1'", "port = " + strconv.Itoa(c.Port), "unix_socket_directories = ''",
		"fsync = off", "synchronous_commit = off", "full_page_writes = off", // its data need not outlive the machine
		"max_connections = 100", "shared_preload_libraries = 'pg_stat_statements'", "log_min_messages = error",
	}
	f, err := os.OpenFile(filepath.Join(c.dir, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	_, err = f.WriteString("\n" + strings.Join(append(conf, settings...), "\n") + "\n")
	if err2 := f.Close(); err == nil {
		err = err2
	}
	if err != nil {
		return nil, err
	}
	if c.log, err = os.Create(filepath.Join(root, "log")); err != nil {
		return nil, err
	}
	return c, c.Up()
}

// Up starts a cluster that is down, and returns when it takes connections.
func (c *Cluster) Up() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	cmd := exec.Command(filepath.Join(c.bin, "postgres"), "-D", c.dir)
	cmd.Dir, cmd.Stdout, cmd.Stderr = c.dir, c.log, c.log
	// An immediate shutdown when the test's process dies.
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: c.who, Setpgid: true, Pdeathsig: syscall.SIGQUIT}
	started, exited := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(exited)
		runtime.LockOSThread() // Pdeathsig is sent when the thread ends that started the process
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	c.cmd, c.exited = cmd, exited
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	for {
		conn, err := pgx.Connect(ctx, c.DSN("postgres"))
		if err == nil {
			return conn.Close(ctx)
		}
		select {
		case <-exited:
			text, _ := os.ReadFile(c.log.Name())
			return fmt.Errorf("postgres ended at once: %s", bytes.TrimSpace(text))
		case <-ctx.Done():
			return fmt.Errorf("postgres does not answer: %w", err)
		case <-time.After(30 * time.Millisecond):
		}
	}
}

// Down stops the cluster as an administrator does who doesn't wait for clients.
func (c *Cluster) Down() { c.end(syscall.SIGINT) }

// Kill ends the cluster as a crash does; the next Up recovers.
func (c *Cluster) Kill() { c.end(syscall.SIGQUIT) }

func (c *Cluster) end(sig syscall.Signal) {
	c.mu.Lock()
	cmd, exited := c.cmd, c.exited
	c.cmd = nil
	c.mu.Unlock()
	if cmd == nil {
		return
	}
	_ = cmd.Process.Signal(sig)
	select {
	case <-exited:
	case <-time.After(20 * time.Second):
		_ = cmd.Process.Kill()
		<-exited
	}
}

// Freeze stops every process of the cluster where it stands: connections stay open and nothing answers.
func (c *Cluster) Freeze() { c.signalAll(syscall.SIGSTOP) }

// Thaw lets a frozen cluster go on.
func (c *Cluster) Thaw() { c.signalAll(syscall.SIGCONT) }

func (c *Cluster) signalAll(sig syscall.Signal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cmd == nil {
		return
	}
	// The postmaster first, so that it makes no more children.
	parent := c.cmd.Process.Pid
	_ = syscall.Kill(parent, sig)
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, p := range stats {
		b, err := os.ReadFile(p)
		if err != nil {
			continue // it has ended
		}
		_, rest, ok := strings.Cut(string(b), ") ") // the name may hold spaces
		f := strings.Fields(rest)
		if !ok || len(f) < 2 || f[1] != strconv.Itoa(parent) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(p))); err == nil {
			_ = syscall.Kill(pid, sig)
		}
	}
}

func (c *Cluster) remove() {
	c.Thaw()
	c.Kill()
	if c.log != nil {
		c.log.Close()
	}
	os.RemoveAll(filepath.Dir(c.dir))
}

// DSN returns the address of a database, as the superuser.
func (c *Cluster) DSN(database string) string { return c.DSNAs("postgres", database) }

// DSNAs returns the address of a database for a role; the cluster trusts every local role.
func (c *Cluster) DSNAs(role, database string) string {
	u := url.URL{Scheme: "postgres", User: url.User(role), Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(c.Port)), Path: database, RawQuery: "sslmode=disable"}
	return u.String()
}

// Database makes a database of its own with the platform's tables in it, and returns its DSN.
func (c *Cluster) Database(tb testing.TB) string {
	tb.Helper()
	dsn := c.Empty(tb)
	Exec(tb, dsn, Platform)
	return dsn
}

// Empty makes an empty database of its own, and returns its DSN.
func (c *Cluster) Empty(tb testing.TB) string {
	tb.Helper()
	name := "t" + strconv.FormatInt(c.next.Add(1), 10)
	Exec(tb, c.DSN("postgres"), "create database "+name)
	return c.DSN(name)
}

// Exec runs statements on a connection of their own.
func Exec(tb testing.TB, dsn, sql string, args ...any) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		tb.Fatal(err)
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, sql, args...); err != nil {
		tb.Fatalf("%s: %v", sql, err)
	}
}
