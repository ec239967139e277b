package postgres

import (
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/agentopia/statussync"
)

// pooled runs PgBouncer in a mode before a database, and returns the DSN that leads through it.
func pooled(t *testing.T, dsn, mode string) string {
	t.Helper()
	bin, err := exec.LookPath("pgbouncer")
	if err != nil {
		bin = "/usr/sbin/pgbouncer"
		_, err = os.Stat(bin)
	}
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("pgbouncer is not installed")
		}
		t.Skip("pgbouncer is not installed")
	}
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := ln.Addr().(*net.TCPAddr).Port
	ln.Close()
	dir, err := os.MkdirTemp("", "pgbouncer") // readable for the user that it runs as
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	file := filepath.Join(dir, "pgbouncer.ini")
	if err := os.WriteFile(file, fmt.Appendf(nil, "[databases]\n* = host=127.0.0.1 port=%s user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = %d\nunix_socket_dir =\nauth_type = any\npool_mode = %s\n", u.Port(), port, mode), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bin, "-q", file)
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if os.Getuid() == 0 { // it refuses to run as root
		who, err := user.Lookup("postgres")
		if err != nil {
			t.Fatal(err)
		}
		uid, _ := strconv.ParseUint(who.Uid, 10, 32)
		gid, _ := strconv.ParseUint(who.Gid, 10, 32)
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	u.Host = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if c, err := net.Dial("tcp", u.Host); err == nil {
			c.Close()
			return u.String()
		} else if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// TestPoolers works through PgBouncer in both modes; notifications get through one of them only, and it says so.
func TestPoolers(t *testing.T) {
	t.Parallel()
	for mode, feed := range map[string]statussync.FeedState{"transaction": statussync.FeedPolling, "session": statussync.FeedLive} {
		t.Run(mode, func(t *testing.T) {
			direct := migrated(t, shared.Get(t), 2, 2)
			r := startRegistry(t, pooled(t, direct, mode), func(o *Options) { o.Resync = time.Second })
			r.dsn = direct
			r.until("all is read", func() bool { return len(r.servers()) == 4 && r.Status().LastSync.After(time.Time{}) })
			if feed == statussync.FeedPolling {
				r.until("it says why nothing is told", func() bool { return strings.Contains(r.Status().FeedCause, "transaction mode") })
			}
			r.until("the feed's state", func() bool { return r.Status().Feed == feed })
			r.beat(1, `{"tool_statuses":[{"names":["s1"],"state":"exited"}]}`)
			r.written()
			if got := r.row("select status_on_toolbox from account_tool_instances where id = $1", instID(1)); got != "exited" {
				t.Error(got)
			}
			r.exec("update account_tool_instances set status_on_toolbox = 'error' where id = $1", instID(3))
			r.until("a change is seen", func() bool { return r.state(instID(3)) == "error/unhealthy" })
			if e := r.Status().LastError; e != "" {
				t.Error(e)
			}
		})
	}
}
