package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// roles are what this binary is when it is started again: another process of a part.
var roles = map[string]func(args []string) error{}

func init() {
	// Filled here because the roles start parts of their own, which would be a cycle of initialization.
	roles["as-service"] = asService
	roles["as-centrifuge"] = asCentrifuge
	roles["as-subscribers"] = asSubscribers
	roles["as-target"] = asTarget
	roles["as-prober"] = asProber
}

// command is one line to a child, its answer one line back.
type command struct {
	Op      string  `json:"op"`
	N       int     `json:"n,omitempty"`
	Servers int     `json:"servers,omitempty"`
	Rate    float64 `json:"rate,omitempty"` // a second; 0: as fast as it goes
	Total   int64   `json:"total,omitempty"`
	Text    string  `json:"text,omitempty"`
	Seconds float64 `json:"seconds,omitempty"`
}

type answer struct {
	Error   string  `json:"error,omitempty"`
	Ready   string  `json:"ready,omitempty"` // an address
	Text    string  `json:"text,omitempty"`
	Seconds float64 `json:"seconds,omitempty"`
	Count   int64   `json:"count,omitempty"`
	Bytes   int64   `json:"bytes,omitempty"`
	Heap    int64   `json:"heap,omitempty"`
	P50     float64 `json:"p50,omitempty"` // ms
	P99     float64 `json:"p99,omitempty"`
	Max     float64 `json:"max,omitempty"`
	Samples int     `json:"samples,omitempty"`
}

// child is a process that this one started.
type child struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
	log string
	// Address is where it listens, if it does.
	Address string
}

// spawn starts a role and waits until it is ready.
func (b *bench) spawn(ctx context.Context, role string, args ...string) (*child, error) {
	c := &child{log: filepath.Join(b.dir, role+strconv.FormatInt(time.Now().UnixNano(), 36)+".log")}
	c.cmd = exec.CommandContext(ctx, os.Args[0], append([]string{role}, args...)...)
	log, err := os.Create(c.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	c.cmd.Stderr = log
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.out = bufio.NewReader(out)
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	a, err := c.read()
	if err != nil {
		c.stop()
		text, _ := os.ReadFile(c.log)
		return nil, fmt.Errorf("%s did not start: %w: %s", role, err, tail(string(text)))
	}
	c.Address = a.Ready
	return c, nil
}

func tail(s string) string { return strings.TrimSpace(s[max(0, len(s)-2000):]) }

func (c *child) read() (answer, error) {
	var a answer
	line, err := c.out.ReadBytes('\n')
	if err != nil {
		text, _ := os.ReadFile(c.log)
		return a, fmt.Errorf("%w: %s", err, tail(string(text)))
	}
	if err := json.Unmarshal(line, &a); err != nil {
		return a, err
	}
	if a.Error != "" {
		return a, errors.New(a.Error)
	}
	return a, nil
}

// send starts a command without waiting for its answer, which receive returns.
func (c *child) send(q command) error { return json.NewEncoder(c.in).Encode(q) }

func (c *child) receive() (answer, error) { return c.read() }

func (c *child) do(q command) (answer, error) {
	if err := c.send(q); err != nil {
		return answer{}, err
	}
	return c.receive()
}

// cpu is the CPU time that the child has used so far, in µs.
func (c *child) cpu() float64 { return processCPU(c.cmd.Process.Pid) }

func (c *child) stop() {
	c.in.Close()
	done := make(chan struct{})
	go func() { _ = c.cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		_ = c.cmd.Process.Kill()
		<-done
	}
}

// processCPU reads the CPU time of a process from the scheduler, in µs; clock ticks of a hundredth would be too coarse only
// for parts of less than a second.
func processCPU(pid int) float64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, rest, ok := strings.Cut(string(b), ") ")
	f := strings.Fields(rest)
	if !ok || len(f) < 13 {
		return 0
	}
	u, _ := strconv.ParseFloat(f[11], 64)
	s, _ := strconv.ParseFloat(f[12], 64)
	return (u + s) * 1e4 // USER_HZ is 100
}

// serveCommands answers commands from the standard input until it ends. The common ones are answered here.
func serveCommands(ready string, do func(q command) (answer, error)) error {
	out := json.NewEncoder(os.Stdout)
	if err := out.Encode(answer{Ready: ready}); err != nil {
		return err
	}
	in := json.NewDecoder(os.Stdin)
	for {
		var q command
		if err := in.Decode(&q); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		var a answer
		var err error
		switch q.Op {
		case "memory":
			a = memory()
		case "profile":
			var stop func() error
			if stop, err = startProfile(q.Text); err == nil {
				stopProfile = stop
			}
		case "profiled":
			if stopProfile != nil {
				err = stopProfile()
				stopProfile = nil
			}
		default:
			a, err = do(q)
		}
		if err != nil {
			a.Error = err.Error()
		}
		if err := out.Encode(a); err != nil {
			return err
		}
	}
}

// stopProfile belongs to the one goroutine of serveCommands.
var stopProfile func() error

// memory collects garbage and tells what is left.
func memory() answer {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return answer{Heap: int64(m.HeapAlloc), Bytes: int64(m.HeapInuse + m.StackInuse)}
}

type profileKey struct{}

// profiling is where the profiles of a part go.
type profiling struct{ dir, part string }

// startProfile begins a CPU profile at prefix.cpu; the returned function ends it and writes prefix.heap, too.
func startProfile(prefix string) (stop func() error, err error) {
	if err := os.MkdirAll(filepath.Dir(prefix), 0o755); err != nil {
		return nil, err
	}
	f, err := os.Create(prefix + ".cpu")
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		f.Close()
		return nil, err
	}
	return func() error {
		pprof.StopCPUProfile()
		return errors.Join(f.Close(), writeHeap(prefix))
	}, nil
}

func writeHeap(prefix string) error {
	if err := os.MkdirAll(filepath.Dir(prefix), 0o755); err != nil {
		return err
	}
	h, err := os.Create(prefix + ".heap")
	if err != nil {
		return err
	}
	return errors.Join(pprof.Lookup("heap").WriteTo(h, 0), h.Close())
}

// profilePrefix is where a part's profiles go.
func profilePrefix(ctx context.Context, suffix string) string {
	p := ctx.Value(profileKey{}).(*profiling)
	dir, err := filepath.Abs(p.dir)
	if err != nil {
		dir = p.dir
	}
	return filepath.Join(dir, p.part+suffix)
}

// profiled runs f while the child is profiled.
func (c *child) profiled(ctx context.Context, suffix string, f func() error) error {
	if _, err := c.do(command{Op: "profile", Text: profilePrefix(ctx, suffix)}); err != nil {
		return err
	}
	err := f()
	_, err2 := c.do(command{Op: "profiled"})
	return errors.Join(err, err2)
}

// profiledHere runs f while this process is profiled.
func profiledHere(ctx context.Context, suffix string, f func() error) error {
	stop, err := startProfile(profilePrefix(ctx, suffix))
	if err != nil {
		return err
	}
	return errors.Join(f(), stop())
}

// tool returns the path of a program, or an error that says how to get it.
func tool(name, debian string) (string, error) {
	p, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%s is not installed (Debian: apt-get install %s)", name, debian)
	}
	return p, nil
}
