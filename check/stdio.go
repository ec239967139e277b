package check

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/mcpconfig"
)

const (
	maxMessage = 8 << 20                // one message of a server, in bytes
	maxOutput  = 32 << 20               // all that is read of one server
	maxNoise   = 256                    // lines that are not MCP; some servers greet people on standard output
	maxPages   = 50                     // of one list
	maxErrTail = 4 << 10                // of standard error, its end
	leaveTime  = 300 * time.Millisecond // for a server to end by itself once its input is closed (the protocol's way of stopping it)
	goneTime   = 2 * time.Second        // for the guard to end everything
)

// protocolVersion is what we offer first: the newest with the handshake that nearly all servers on stdio speak.
const protocolVersion = "2025-11-25"

// modernVersion is that of servers without a handshake.
const modernVersion = "2026-07-28"

// stdio starts a server, asks it what a client would, and stops it.
func stdio(ctx context.Context, e *mcpconfig.Entry, o *Options) Result {
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	environ := environment(o.Environ, e.Env)
	path, err := lookPath(e.Command, e.Dir, environ)
	if err != nil {
		return Result{Outcome: Failure, Cause: CauseCommandNotFound, Detail: err.Error()}
	}
	if e.Dir != "" {
		if st, err := os.Stat(e.Dir); err != nil || !st.IsDir() {
			return Result{Outcome: Failure, Cause: "bad_config", Detail: "its working folder " + e.Dir + " is not there"}
		}
	}
	p, err := start(path, e.Args, environ, e.Dir, o.GuardCommand)
	if err != nil {
		return Result{Outcome: Failure, Cause: CauseCommandNotFound, Detail: "cannot be started: " + err.Error()}
	}
	begun := time.Now()
	c := newConn(p.out, p.in)
	r := c.ask(ctx, begun)
	patience := leaveTime
	if r.Cause == "ended" {
		patience = goneTime // it is ending by itself; its code says why
	}
	code, known := p.stop(patience)
	c.wait()
	if r.Outcome == Failure && (r.Cause == "ended" || r.Cause == CauseNotMCP) {
		// It ended before it had answered; why is best said by itself.
		if r.Cause == "ended" && known {
			r.Cause = CauseExit + "_" + strconv.Itoa(code)
		} else if r.Cause == "ended" {
			r.Cause = CauseNotMCP
		}
		r.Detail = strings.TrimSpace(r.Detail)
	}
	if r.Outcome == Failure {
		if tail := p.said(); tail != "" {
			if r.Detail != "" {
				r.Detail += "; "
			}
			r.Detail += "it said: " + tail
		}
	}
	return r
}

// environment is base with more set.
func environment(base []string, more map[string]string) []string {
	out := make([]string, 0, len(base)+len(more))
	for _, kv := range base {
		k, _, _ := strings.Cut(kv, "=")
		if _, replaced := more[k]; !replaced {
			out = append(out, kv)
		}
	}
	for k, v := range more {
		out = append(out, k+"="+v)
	}
	return out
}

// lookPath finds a command as the started process would, in the PATH that it gets.
func lookPath(command, dir string, environ []string) (string, error) {
	if strings.ContainsRune(command, filepath.Separator) || strings.Contains(command, "/") {
		if dir != "" && !filepath.IsAbs(command) {
			command = filepath.Join(dir, command)
		}
		p, err := exec.LookPath(command)
		if err != nil {
			return "", reason(err)
		}
		return filepath.Abs(p)
	}
	path, own := "", false
	for _, kv := range environ {
		if k, v, _ := strings.Cut(kv, "="); k == "PATH" || runtime.GOOS == "windows" && strings.EqualFold(k, "PATH") {
			path, own = v, true
		}
	}
	if !own || path == os.Getenv("PATH") {
		p, err := exec.LookPath(command)
		if err != nil {
			return "", reason(err)
		}
		return filepath.Abs(p)
	}
	for _, d := range filepath.SplitList(path) {
		if p, err := exec.LookPath(filepath.Join(d, command)); err == nil && filepath.IsAbs(p) {
			return p, nil
		}
	}
	return "", errors.New("it is in no folder of the PATH that it would get")
}

// reason is an error without the command, which the verdict names.
func reason(err error) error {
	var ee *exec.Error
	if errors.As(err, &ee) {
		err = ee.Err
	}
	if errors.Is(err, exec.ErrNotFound) {
		return errors.New("it is in no folder of PATH")
	}
	if errors.Is(err, os.ErrPermission) {
		return errors.New("it may not be executed")
	}
	return err
}

// process is a started server behind its guard.
type process struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    io.ReadCloser
	life   io.Closer // the guard ends everything when this is closed
	end    func()    // what there is to do beside that; never nil
	tail   *tail
	exited chan struct{}
}

// tail keeps the end of what is written to it.
type tail struct {
	mu sync.Mutex
	b  []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if len(t.b) > maxErrTail {
		t.b = append(t.b[:0], t.b[len(t.b)-maxErrTail:]...)
	}
	return len(p), nil
}

// said is the last line that tells something.
func (p *process) said() string {
	p.tail.mu.Lock()
	defer p.tail.mu.Unlock()
	lines := bytes.Split(p.tail.b, []byte("\n"))
	best := ""
	for i := len(lines) - 1; i >= 0; i-- {
		s := statussync.CleanText(string(bytes.TrimSpace(lines[i])), 200)
		if s == "" || strings.Contains(s, "complete log of this run") || strings.HasPrefix(s, "at ") || strings.HasPrefix(s, "Node.js v") || s == "}" {
			continue
		}
		if best == "" {
			best = s
		}
		if strings.Contains(s, "rror") { // Error:, error:, TypeError
			return s
		}
	}
	return best
}

func start(path string, args, environ []string, dir string, guard []string) (*process, error) {
	p := &process{tail: &tail{}, exited: make(chan struct{})}
	lifeRead, lifeWrite, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer lifeRead.Close()
	argv := append(guarded(guard, path), args...)
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.Env, p.cmd.Dir = environ, dir
	p.cmd.Stderr = p.tail
	p.cmd.WaitDelay = goneTime
	tie(p.cmd, lifeRead)
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		lifeWrite.Close()
		return nil, err
	}
	out, w, err := os.Pipe()
	if err != nil {
		lifeWrite.Close()
		return nil, err
	}
	p.cmd.Stdout = w
	err = p.cmd.Start()
	w.Close()
	if err != nil {
		out.Close()
		lifeWrite.Close()
		return nil, err
	}
	p.out, p.life, p.end = out, lifeWrite, ending(p.cmd.Process)
	go func() {
		_ = p.cmd.Wait() // its code is asked below
		close(p.exited)
	}()
	return p, nil
}

// stop ends the server as the protocol says, by closing its input, and after patience whatever is left of it. It returns
// the code with which the server ended; known is false where it had to be ended.
func (p *process) stop(patience time.Duration) (code int, known bool) {
	_ = p.in.Close()
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case <-p.exited:
		known = true
	case <-t.C:
	}
	_ = p.life.Close()
	p.end()
	hard := time.NewTimer(goneTime)
	defer hard.Stop()
	select {
	case <-p.exited:
	case <-hard.C:
		_ = p.cmd.Process.Kill()
		<-p.exited
	}
	_ = p.out.Close() // a reader that still waits for a stray writer is released
	return p.cmd.ProcessState.ExitCode(), known
}

// message is any JSON-RPC message.
type message struct {
	ID     json.RawMessage `json:"id"`
	Method string          `json:"method"`
	Result json.RawMessage `json:"result"`
	Error  *rpcError       `json:"error"`
}

type rpcError struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

// conn is the conversation with one server. One goroutine reads; the questions are asked one after the other.
type conn struct {
	w       io.Writer
	answers chan message
	failed  chan error // one error: why there will be no more answers
	quit    chan struct{}
	done    chan struct{}
	next    int
	modern  bool
	wmu     sync.Mutex
	writes  sync.WaitGroup
}

var (
	errFlood  = errors.New("flood")
	errNotMCP = errors.New("not mcp")
)

func newConn(r io.Reader, w io.Writer) *conn {
	c := &conn{w: w, answers: make(chan message), failed: make(chan error, 1), quit: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(c.done)
		c.failed <- c.read(r)
	}()
	return c
}

// wait joins the reader and the writers; the server must have been stopped.
func (c *conn) wait() {
	close(c.quit)
	<-c.done
	c.writes.Wait()
}

func (c *conn) read(r io.Reader) error {
	sc := bufio.NewScanner(io.LimitReader(r, maxOutput))
	sc.Buffer(make([]byte, 0, 64<<10), maxMessage)
	noise, total := 0, 0
	for sc.Scan() {
		line := bytes.TrimSpace(sc.Bytes())
		total += len(sc.Bytes()) + 1
		if len(line) == 0 {
			continue
		}
		var m message
		if json.Unmarshal(line, &m) != nil || (m.Method == "" && m.Result == nil && m.Error == nil) {
			if noise++; noise > maxNoise {
				return errFlood
			}
			continue
		}
		switch {
		case m.Method != "" && len(m.ID) > 0: // a question of the server's; it may wait for the answer
			c.reply(&m)
		case m.Method != "":
		default:
			select {
			case c.answers <- m:
			case <-c.quit:
				return nil
			}
		}
	}
	switch {
	case errors.Is(sc.Err(), bufio.ErrTooLong), total >= maxOutput:
		return errFlood
	case noise > 0:
		return errNotMCP
	}
	return io.EOF
}

// reply answers a ping, and says of everything else that we can't do it.
func (c *conn) reply(m *message) {
	body := map[string]any{"jsonrpc": "2.0", "id": m.ID}
	if m.Method == "ping" {
		body["result"] = struct{}{}
	} else {
		body["error"] = map[string]any{"code": -32601, "message": "Method not found"}
	}
	_ = c.send(body)
}

func (c *conn) send(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	c.wmu.Lock()
	defer c.wmu.Unlock()
	_, err = c.w.Write(append(b, '\n'))
	return err
}

// call asks one question. Writing can block where the server does not read; its end is when the process is stopped.
func (c *conn) call(ctx context.Context, method string, params map[string]any) (message, error) {
	c.next++
	id := c.next
	if params == nil {
		params = map[string]any{}
	}
	if c.modern {
		params["_meta"] = map[string]any{
			"io.modelcontextprotocol/protocolVersion":    modernVersion,
			"io.modelcontextprotocol/clientInfo":         clientInfo(),
			"io.modelcontextprotocol/clientCapabilities": struct{}{},
		}
	}
	// A server that does not read must not keep us from seeing what it writes. A failed write shows as the end of its
	// output; one that blocks ends when the server is stopped.
	c.writes.Go(func() {
		_ = c.send(map[string]any{"jsonrpc": "2.0", "id": id, "method": method, "params": params})
	})
	for {
		select {
		case m := <-c.answers:
			if string(bytes.Trim(m.ID, `"`)) == strconv.Itoa(id) || (m.Error != nil && (len(m.ID) == 0 || string(m.ID) == "null")) {
				return m, nil
			}
		case err := <-c.failed:
			c.failed <- err
			return message{}, err
		case <-ctx.Done():
			return message{}, ctx.Err()
		}
	}
}

func clientInfo() map[string]any { return map[string]any{"name": "statussync", "version": "1"} }

type hello struct {
	ProtocolVersion   string   `json:"protocolVersion"`
	SupportedVersions []string `json:"supportedVersions"`
	ServerInfo        *Server  `json:"serverInfo"`
	Meta              struct {
		ServerInfo *Server `json:"io.modelcontextprotocol/serverInfo"`
	} `json:"_meta"`
	Capabilities map[string]json.RawMessage `json:"capabilities"`
}

// ask finds out what there is to know.
func (c *conn) ask(ctx context.Context, begun time.Time) Result {
	m, err := c.call(ctx, "initialize", map[string]any{
		"protocolVersion": protocolVersion, "capabilities": struct{}{}, "clientInfo": clientInfo(),
	})
	if err == nil && m.Error != nil { // one without a handshake says so
		c.modern = true
		var again message
		if again, err = c.call(ctx, "server/discover", nil); err == nil && again.Error == nil {
			m = again
		}
	}
	latency := time.Since(begun).Milliseconds()
	if err != nil {
		return failed(ctx, err)
	}
	if m.Error != nil {
		return Result{Outcome: Alive, Cause: CauseRPC, Detail: m.Error.Message, LatencyMS: &latency}
	}
	var h hello
	if json.Unmarshal(m.Result, &h) != nil || (h.ProtocolVersion == "" && len(h.SupportedVersions) == 0) {
		return Result{Outcome: Failure, Cause: CauseNotMCP, Detail: "its answer to the first question has no protocol version", LatencyMS: &latency}
	}
	r := Result{Outcome: Success, ProtocolVersion: h.ProtocolVersion, Server: h.ServerInfo, LatencyMS: &latency}
	if c.modern {
		r.ProtocolVersion = modernVersion
		if h.Meta.ServerInfo != nil {
			r.Server = h.Meta.ServerInfo
		}
	} else if err := c.send(map[string]any{"jsonrpc": "2.0", "method": "notifications/initialized"}); err != nil {
		return failed(ctx, io.EOF)
	}
	for _, l := range []struct {
		capability, method, key string
		to                      **int
	}{{"tools", "tools/list", "tools", &r.Tools}, {"resources", "resources/list", "resources", &r.Resources}, {"prompts", "prompts/list", "prompts", &r.Prompts}} {
		if _, offers := h.Capabilities[l.capability]; !offers {
			continue
		}
		n, err := c.count(ctx, l.method, l.key)
		if err != nil && l.capability == "tools" {
			f := failed(ctx, err)
			f.ProtocolVersion, f.Server, f.LatencyMS = r.ProtocolVersion, r.Server, r.LatencyMS
			f.Detail = strings.TrimSpace("it greets, but " + l.method + " fails: " + f.Detail)
			return f
		}
		if err == nil {
			*l.to = &n
		}
	}
	return r
}

// count asks for a whole list, page by page.
func (c *conn) count(ctx context.Context, method, key string) (n int, err error) {
	cursor := ""
	for range maxPages {
		params := map[string]any{}
		if cursor != "" {
			params["cursor"] = cursor
		}
		m, err := c.call(ctx, method, params)
		if err != nil {
			return n, err
		}
		if m.Error != nil {
			return n, errors.New(m.Error.Message)
		}
		var page map[string]json.RawMessage
		var items []json.RawMessage
		if json.Unmarshal(m.Result, &page) != nil || json.Unmarshal(page[key], &items) != nil {
			return n, errNotMCP
		}
		n += len(items)
		next := ""
		_ = json.Unmarshal(page["nextCursor"], &next) // absent: the end
		if next == "" || next == cursor {
			break
		}
		cursor = next
	}
	return n, nil
}

func failed(ctx context.Context, err error) Result {
	r := Result{Outcome: Failure}
	switch {
	case errors.Is(err, errFlood):
		r.Cause = CauseFlood
	case errors.Is(err, errNotMCP):
		r.Cause = CauseNotMCP
	case errors.Is(err, io.EOF), errors.Is(err, os.ErrClosed):
		r.Cause = "ended"
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		r.Cause = CauseTimeout
	case ctx.Err() != nil:
		r.Outcome, r.Cause = Skipped, CauseCanceled
	default:
		r.Outcome, r.Cause, r.Detail = Alive, CauseRPC, err.Error()
	}
	return r
}
