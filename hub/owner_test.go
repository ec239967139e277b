package hub

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/engine"
)

func TestSetPolicy(t *testing.T) {
	r := start(t, nil, Options{})
	r.define(3)
	p := engine.DefaultPolicy()
	p.Probe.Interval, p.Probe.Kind, p.Probe.Path = 77*time.Second, statussync.ProbeHTTP, "/up"
	p.LateAfter, p.LostAfter = time.Minute, time.Hour
	if _, err := r.SetPolicy(r.ctx(), p); err != nil {
		t.Fatal(err)
	}
	v, err := r.Server("s000")
	if err != nil || v.Probing.Interval != 77*time.Second || !strings.HasSuffix(v.Probing.URL, "/up") {
		t.Errorf("readers see %+v %v", v.Probing, err)
	}
	if e, err := r.Environment("box-0"); err != nil || e.LateAfter != time.Minute || e.LostAfter != time.Hour {
		t.Errorf("readers see %+v %v", e, err)
	}
	bad := p
	bad.FlapWindow = 0
	_, err = r.SetPolicy(r.ctx(), bad)
	var e *statussync.Error
	if !errors.As(err, &e) || e.Location != "FlapWindow" {
		t.Errorf("an invalid policy: %v", err)
	}
}

// A change of the policy and of the registry is told in one step, and what follows is returned.
func TestReconfigure(t *testing.T) {
	r := start(t, nil, Options{})
	u := registry(2)
	u.Full = true
	if _, err := r.Reconfigure(r.ctx(), nil, u); err != nil {
		t.Fatal(err)
	}
	p := engine.DefaultPolicy()
	p.Probe.Interval = time.Hour
	head := r.head()
	u = registry(3)
	u.Full, u.Servers = true, u.Servers[1:]
	updates, err := r.Reconfigure(r.ctx(), &p, u)
	if err != nil || len(updates) != 1 || updates[0].ServerID != "s002" {
		t.Fatalf("%v %v", updates, err)
	}
	if got := r.head().Seq - head.Seq; got != 3 { // removed, added, and its first status
		t.Errorf("%d entries", got)
	}
}

// A note is found again after a stop and after a crash, and does not disturb the hub's own.
func TestRemember(t *testing.T) {
	r := start(t, nil, Options{})
	r.define(1)
	if r.Remembered("x") != nil {
		t.Error("a note that nobody made")
	}
	for _, n := range []string{"one", "two"} {
		if err := r.Remember(r.ctx(), "x", []byte(n)); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Remember(r.ctx(), noteID, []byte("not the hub's")); err != nil {
		t.Fatal(err)
	}
	epoch := r.head().Epoch
	r = start(t, r.crash(), Options{})
	if got := string(r.Remembered("x")); got != "two" || r.head().Epoch != epoch {
		t.Errorf("after a crash %q, epoch %s and before %s", got, r.head().Epoch, epoch)
	}
	if err := r.Remember(r.ctx(), "x", nil); err != nil || r.Remembered("x") != nil {
		t.Errorf("deleted, and there: %v", err)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	r = start(t, r.j.Reopen(), Options{})
	if r.Remembered("x") != nil || string(r.Remembered(noteID)) != "not the hub's" {
		t.Error("a deleted note came back, or another one went")
	}
	for _, id := range []string{"", strings.Repeat("x", 65)} {
		wantCode(t, r.Remember(r.ctx(), id, nil), statussync.CodeInvalid)
	}
	wantCode(t, r.Remember(r.ctx(), "x", make([]byte, 5000)), statussync.CodeInvalid)
}

// A note that is made while the store fails is stored when it is back.
func TestRememberWithoutAStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, nil, Options{})
		r.define(1)
		r.j.Fail(errDisk)
		if err := r.Remember(r.ctx(), "x", []byte("one")); err != nil {
			t.Fatal(err)
		}
		if err := r.Remember(r.ctx(), "x", []byte("two")); err != nil {
			t.Fatal(err)
		}
		r.j.Fail(nil)
		time.Sleep(2 * retryMax)
		if !r.Ready().Durable {
			t.Fatal("the store is not back")
		}
		r = start(t, r.crash(), Options{})
		if got := string(r.Remembered("x")); got != "two" {
			t.Errorf("remembered %q", got)
		}
	})
}

// Of two notes that are made while the store fails the later one is stored, also where an append with the first was under
// way when the second was made, and failed.
func TestRememberTwiceWithoutAStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, nil, Options{})
		r.define(1)
		r.j.Fail(errDisk)
		if err := r.Remember(r.ctx(), "x", []byte("one")); err != nil {
			t.Fatal(err)
		}
		entered, release := r.j.Hang()
		<-entered
		if err := r.Remember(r.ctx(), "x", []byte("two")); err != nil {
			t.Fatal(err)
		}
		release(false)
		time.Sleep(2 * retryMax)
		if !r.Ready().Durable {
			t.Fatal("the store is not back")
		}
		r = start(t, r.crash(), Options{})
		if got := string(r.Remembered("x")); got != "two" {
			t.Errorf("remembered %q", got)
		}
	})
}
