//go:build linux

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pulse is a load of changes: a heartbeat every few milliseconds that flips all servers of its environment.
type pulse struct {
	s      *service
	ids    []string
	stop   context.CancelFunc
	wg     sync.WaitGroup
	paused sync.Mutex // held by who wants silence
}

const pulseServers = 10

// pulseConfig is the fleet of a pulse. Its ids are long so that the journal grows fast.
func pulseConfig() (conf obj, ids []string) {
	var servers list
	for i := range pulseServers {
		id := fmt.Sprintf("p%d-%s", i, strings.Repeat("x", 110))
		ids = append(ids, id)
		servers = append(servers, obj{"id": id, "container": fmt.Sprintf("p%d", i), "environment": "box", "desired": "stopped", "probe": obj{"kind": "none"}})
	}
	return obj{"environments": list{envOf("box", "token-box")}, "servers": servers}, ids
}

func (s *service) pulse(ids []string) *pulse {
	ctx, cancel := context.WithCancel(context.Background())
	p := &pulse{s: s, ids: ids, stop: cancel}
	p.wg.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			beat := make([]obj, len(ids))
			for i := range beat {
				beat[i] = container(fmt.Sprintf("p%d", i), "running", "Up 2 hours")
				if (n+i)%2 == 0 {
					beat[i] = container(fmt.Sprintf("p%d", i), "exited", "Exited (0) 2 hours ago")
				}
			}
			p.paused.Lock()
			s.tryRequest("POST", "/heartbeat", heartbeat(beat...), "Authorization", "Bearer token-box")
			p.paused.Unlock()
			pause(ctx, 20*time.Millisecond)
		}
	})
	s.t.Cleanup(p.end)
	return p
}

func (p *pulse) end() { p.stop(); p.wg.Wait() }

// waitDurable waits until /readyz says whether the store works.
func (s *service) waitDurable(limit time.Duration, want bool) {
	s.t.Helper()
	waitFor(s.t, limit, fmt.Sprintf("durable %v in /readyz", want), func() (bool, string) {
		_, r := s.readyz()
		return r.Durable == want, fmt.Sprintf("%+v", r)
	})
}

// subscribedNow subscribes with a cursor ("" for none) and returns what the service says of it, and the reason of the
// resync that follows where it is not recovered.
func (s *service) subscribedNow(cursor string) (sub frame, resync string) {
	s.t.Helper()
	c := s.ws("/api/v1/ws")
	defer c.Close()
	m := obj{"type": "subscribe", "channel": "mcp_server_status"}
	if cursor != "" {
		m["cursor"] = cursor
	}
	send(s.t, c, m)
	sub = expect(s.t, c, "subscribed")
	if cursor != "" && !sub.Recovered {
		resync = expect(s.t, c, "resync").Reason
		expect(s.t, c, "snapshot_end")
	}
	return sub, resync
}

// position returns how far a follower is, and how many resyncs it had.
func (f *follower) position() (told, resyncs int, cursor string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.told), len(f.resyncs), f.cursor
}

// waitMore waits until the follower was told something new: the live path goes on.
func (f *follower) waitMore(t testing.TB, limit time.Duration) {
	t.Helper()
	_, _, from := f.position()
	waitFor(t, limit, f.name+" is told more", func() (bool, string) {
		n, _, cursor := f.position()
		return cursor != from && n > 0, "still at " + cursor
	})
}

// storeFails runs the course of a store that fails under way and comes back, as subscribers see it (promise 2). fails
// makes the store fail and heals undoes it; both return when they are done.
func storeFails(t *testing.T, s *service, ids []string, fails, heals func()) {
	s.start()
	s.ready()
	p := s.pulse(ids)
	_, start := s.servers("")
	if sub, _ := s.subscribedNow(""); !sub.Durable {
		t.Fatal("not durable at the beginning")
	}
	followers := []*follower{{name: "ws"}, {name: "sse", sse: true}, {name: "impish", impish: true}}
	for _, f := range followers {
		s.follow(f, start)
		f.waitMore(t, 10*time.Second)
	}
	first := epochOf(start)
	_, _, healthy := followers[0].position() // a cursor of the healthy time

	fails()
	s.waitDurable(60*time.Second, false)
	for _, f := range followers {
		waitFor(t, 10*time.Second, f.name+" is resynced", func() (bool, string) {
			_, n, c := f.position()
			return n > 0 && epochOf(c) != first, c
		})
		f.waitMore(t, 5*time.Second) // the live path goes on
	}
	if code, r := s.readyz(); r.Status == "ready" || (code != 200 && code != 503) {
		t.Errorf("/readyz is %d %+v while the store fails", code, r)
	}
	sub, reason := s.subscribedNow(healthy)
	if sub.Durable || sub.Recovered || reason != "epoch" {
		t.Errorf("a subscription from %s while the store fails: %+v, resync %q", healthy, sub, reason)
	}
	_, _, volatile := followers[0].position()
	if sub, _ := s.subscribedNow(volatile); !sub.Recovered || sub.Durable {
		t.Errorf("within the volatile epoch %s is not continued: %+v", volatile, sub)
	}
	if len(s.updates(volatile, "")) == 0 {
		followers[0].waitMore(t, 5*time.Second)
		if len(s.updates(volatile, "")) == 0 {
			t.Error("GET /updates does not answer from the volatile epoch")
		}
	}

	heals()
	s.waitDurable(60*time.Second, true)
	for _, f := range followers {
		f.waitMore(t, 10*time.Second)
	}
	if sub, _ := s.subscribedNow(""); !sub.Durable {
		t.Error("not durable after the store came back")
	}
	// The cursor of the volatile time is either continued, exactly, or not: the followers find out.
	if sub, reason := s.subscribedNow(healthy); sub.Recovered || reason != "epoch" {
		t.Errorf("a cursor of the first epoch: %+v, resync %q", sub, reason)
	}

	// Killed now, everything that was told since is there.
	for range 3 {
		for _, f := range followers {
			f.waitMore(t, 10*time.Second)
		}
		s.kill()
		s.start()
		s.ready()
	}
	for _, f := range followers {
		f.waitMore(t, 10*time.Second)
	}
	p.end()
	settle(t, s, followers)

	// Fails again, and is killed while it does: what was told then is gone, and nobody may resume from it.
	p = s.pulse(ids)
	fails()
	s.waitDurable(60*time.Second, false)
	for _, f := range followers {
		f.waitMore(t, 5*time.Second)
	}
	_, _, lost := followers[0].position()
	s.kill()
	heals()
	s.start()
	s.ready()
	if sub, reason := s.subscribedNow(lost); sub.Recovered || reason != "epoch" || epochOf(sub.Cursor) == epochOf(lost) {
		t.Errorf("%s was told while nothing was stored, and is continued after a kill: %+v, resync %q", lost, sub, reason)
	}
	for _, f := range followers {
		waitFor(t, 10*time.Second, f.name+" leaves the lost epoch", func() (bool, string) {
			_, _, c := f.position()
			return epochOf(c) != epochOf(lost), c
		})
		f.waitMore(t, 10*time.Second)
	}
	p.end()
	settle(t, s, followers)
	s.stop()
}

// settle checks, with no load, that every follower has the true state, that what it was told since its last resync is
// what the journal holds, and that in each of its stretches the versions rise by one.
func settle(t testing.TB, s *service, followers []*follower) {
	t.Helper()
	var any string
	m, _ := s.servers("")
	for id := range m {
		any = id
	}
	s.settled(any)
	for _, f := range followers {
		waitFor(t, 15*time.Second, f.name+" has the true state", func() (bool, string) {
			want, _ := s.servers("")
			f.mu.Lock()
			defer f.mu.Unlock()
			for id, v := range want {
				if got := f.view[id]; got.key() != v.Status.key() || got.Version != v.Status.Version {
					return false, fmt.Sprintf("%s: %s v%d, true is %s v%d; at %s", id[:2], got.key(), got.Version, v.Status.key(), v.Status.Version, f.cursor)
				}
			}
			return true, ""
		})
		f.mu.Lock()
		told := slices.Clone(f.told)
		stretches := [][]*entryJSON{told}
		for _, e := range f.before { // earlier stretches end where the epoch changes
			if n := len(stretches); n == 1 || stretches[n-1][len(stretches[n-1])-1].Epoch != e.Epoch {
				stretches = append(stretches, nil)
			}
			stretches[len(stretches)-1] = append(stretches[len(stretches)-1], e)
		}
		for _, fault := range f.faults {
			t.Error(fault)
		}
		f.faults = nil
		f.mu.Unlock()
		for _, st := range stretches {
			if _, err := versionsRise(st); err != nil {
				t.Errorf("%s: %v", f.name, err)
			}
		}
		if len(told) > 0 {
			before := fmt.Sprintf("%s:%d", told[0].Epoch, told[0].Seq-1)
			journal := s.updates(before, "")
			f.waitLast(t, 10*time.Second, journal[len(journal)-1])
			f.mu.Lock()
			told = slices.Clone(f.told)
			f.mu.Unlock()
			if err := sameEntries(told, journal); err != nil {
				t.Errorf("%s, since its last resync: %v", f.name, err)
			}
		}
	}
}

// TestStoreFull fills the file system under the store.
func TestStoreFull(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64m"); err != nil {
		t.Skipf("a tmpfs cannot be mounted here: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	conf, ids := pulseConfig()
	conf["data"] = filepath.Join(dir, "data")
	s := newService(t, conf)
	filler := filepath.Join(dir, "filler")
	fill := func() {
		f, err := os.OpenFile(filler, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for size := 1 << 20; size >= 512; size /= 2 {
			for err == nil {
				_, err = f.Write(make([]byte, size))
			}
			if !errors.Is(err, unix.ENOSPC) {
				t.Fatal(err)
			}
			err = nil
		}
	}
	free := func() {
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
	}
	storeFails(t, s, ids, fill, free)
	if !strings.Contains(readAll(t, s.logFile), "full") {
		t.Errorf("the log does not say that the disk is full\n%s", s.tail())
	}

	// On a disk that is full from the beginning it either serves and says what is wrong, or ends with a clear error.
	fill()
	s.start()
	waitFor(t, 20*time.Second, "a start on a full disk", func() (bool, string) {
		select {
		case <-s.done:
			if tail := s.tail(); !strings.Contains(tail, "full") {
				t.Errorf("the start on a full disk ended without saying so\n%s", tail)
			}
			return true, ""
		default:
		}
		code, b, err := s.tryRequest("GET", "/readyz", nil)
		return err == nil && code == 200, fmt.Sprint(code, string(b), err)
	})
	s.kill()
	free()
	s.start()
	s.ready()
	s.stop()
}

// TestStoreReadOnly takes the right to write away from the store's files under way, from root too.
func TestStoreReadOnly(t *testing.T) {
	conf, ids := pulseConfig()
	s := newService(t, conf)
	if err := immutableWorks(t.TempDir()); err != nil {
		t.Skipf("files cannot be made immutable here: %v", err)
	}
	set := func(on bool) {
		files, err := filepath.Glob(filepath.Join(s.data, "*"))
		if err != nil || len(files) == 0 {
			t.Fatalf("no files of the store: %v", err)
		}
		all := append(files, s.data)
		for _, f := range all {
			// SQLite writes this file through memory. That the fault is survived is a feat of its driver, which the race
			// detector breaks: it ends the process where it meets the fault itself.
			if raceEnabled && strings.HasSuffix(f, "-shm") {
				continue
			}
			if err := setImmutable(f, on); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
		}
	}
	t.Cleanup(func() { set(false) }) // the folder could not be removed otherwise
	storeFails(t, s, ids, func() { set(true) }, func() { set(false) })
	if log := readAll(t, s.logFile); !strings.Contains(log, "read-only") {
		t.Errorf("the log does not say that the store is read-only\n%s", s.tail())
	}
	// A store that is read-only from the beginning: a clear error, or a service that says what is wrong.
	set(true)
	s.start()
	waitFor(t, 20*time.Second, "a start on a read-only store", func() (bool, string) {
		select {
		case <-s.done:
			if tail := s.tail(); !strings.Contains(tail, "read-only") {
				t.Errorf("the start on a read-only store ended without saying so\n%s", tail)
			}
			return true, ""
		default:
		}
		code, b, err := s.tryRequest("GET", "/readyz", nil)
		return err == nil && code == 200, fmt.Sprint(code, string(b), err)
	})
	s.kill()
	set(false)
}

// TestStoreTaken starts a second service on the same data: it ends at once and says why, and the first goes on.
func TestStoreTaken(t *testing.T) {
	conf, _ := pulseConfig()
	s := startService(t, conf)
	conf["data"] = s.data
	second := newService(t, conf)
	second.start()
	if code := second.waitExit(20 * time.Second); code == 0 {
		t.Error("the second service on the same data ended with success")
	}
	if tail := second.tail(); !strings.Contains(tail, "another process") && !strings.Contains(tail, "in use") && !strings.Contains(tail, "locked") {
		t.Errorf("the second service does not say that the data is in use\n%s", tail)
	}
	s.ready()
	s.stop()

	// Garbage instead of a store: a clear error, and the file is not touched.
	files, _ := filepath.Glob(filepath.Join(s.data, "statussync.db"))
	if len(files) == 0 {
		files, _ = filepath.Glob(filepath.Join(s.data, "*.sqlite*"))
	}
	if len(files) == 0 {
		t.Fatalf("no store in %s", s.data)
	}
	garbage := []byte(strings.Repeat("this is no database. ", 1000))
	if err := os.WriteFile(files[0], garbage, 0o600); err != nil {
		t.Fatal(err)
	}
	s.start()
	if code := s.waitExit(20 * time.Second); code == 0 {
		t.Error("a service on a damaged store ended with success")
	}
	if tail := s.tail(); !strings.Contains(tail, "damaged") && !strings.Contains(tail, "corrupt") {
		t.Errorf("the service does not say that the store is damaged\n%s", tail)
	}
	if b, _ := os.ReadFile(files[0]); string(b) != string(garbage) {
		t.Error("the damaged file was changed")
	}
}

func readAll(t testing.TB, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// setImmutable sets or clears the attribute that makes a file unchangeable, also for who has it open already.
func setImmutable(path string, on bool) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil {
		return err
	}
	const immutable = 0x10 // FS_IMMUTABLE_FL
	flags &^= immutable
	if on {
		flags |= immutable
	}
	return unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags)
}

// immutableWorks tries whether the attribute is there, and binds who has the file open: on some file systems it is
// only looked at when a file is opened.
func immutableWorks(dir string) error {
	path := filepath.Join(dir, "try")
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := setImmutable(path, true); err != nil {
		return err
	}
	_, err = io.WriteString(f, "x")
	if uerr := setImmutable(path, false); uerr != nil {
		return uerr
	}
	if err == nil {
		return errors.New("an open file can still be written")
	}
	return nil
}
