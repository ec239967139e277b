package dtma

import (
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/agentopia/statussync"
)

// MaxContainers bounds the containers of one report. A host runs tens; a body of 1 MiB could name 50,000.
const MaxContainers = 20_000

// maxNames bounds the names of one container; more than one come from Docker's old links.
const maxNames = 16

// fields are the names under which a report's parts go.
type fields struct{ version, system, list, event string }

var (
	heartbeatFields = fields{"dtma_version", "system_status", "tool_statuses", "event"}
	statusFields    = fields{"version", "system_metrics", "tool_instances", ""} // an answer is no event
)

// Decode reads the body of a heartbeat, in every shape of docs/protocols.md §1, also mixed. The caller bounds the body's
// length and fills in EnvironmentID and Raw.
//
// Unknown fields are ignored. A part of the wrong type is left out and spoils no other part. An item of tool_statuses
// that names no container (shape C, or one that can't be read) makes the list partial: what it may have told of must not
// count as absent. Of two equal keys the last counts.
//
// Shape A's status_on_toolbox may be a container's or a record's word; the latter becomes the container word of its
// state, and the original stays in Text. Of its runtime_details exit_code and restart_count are taken. started_at is
// not: it is a time by the agent's clock, and the documented heartbeat has nothing to compare it with.
//
// With "event": true it is no heartbeat but told at once what changed: ViaEvent, and a list proves nothing of who is not
// on it. An event of any other type than true, false and null is refused, not left out: taken for a heartbeat, it would
// stop every container that it does not list.
//
// The error is a *statussync.Error: CodeInvalid where the body is not JSON, no object, nested deeper than 64 levels, or
// its tool_statuses is no list; CodeTooLarge beyond MaxContainers.
func Decode(body []byte) (*statussync.AgentReport, error) {
	return decode(body, &heartbeatFields, statussync.ViaPush)
}

// DecodeStatus reads an agent's answer to GET /status, by the rules of Decode: tool_instances, system_metrics and
// version stand for tool_statuses, system_status and dtma_version.
func DecodeStatus(body []byte) (*statussync.AgentReport, error) {
	return decode(body, &statusFields, statussync.ViaPull)
}

func decode(body []byte, names *fields, via statussync.ReportVia) (*statussync.AgentReport, error) {
	d := decoder{r: reader{b: body}, rep: &statussync.AgentReport{Via: via}}
	switch d.r.peek() {
	case '{':
	case 0:
		if len(d.r.b) == d.r.i {
			return nil, statussync.Invalid("body", "is empty")
		}
		fallthrough
	default:
		if err := d.r.skip(); err != nil {
			return nil, err
		}
		return nil, statussync.Invalid("body", "must be a JSON object")
	}
	err := d.r.object(func(key []byte) error {
		switch string(key) {
		case names.version:
			s, err := d.text(statussync.MaxWordText)
			d.rep.AgentVersion = s
			return err
		case "timestamp":
			return d.timestamp()
		case names.system:
			return d.system()
		case names.list:
			return d.containers(names.list)
		case names.event:
			if names.event != "" {
				return d.event()
			}
		}
		return d.r.skip()
	})
	if err != nil {
		return nil, err
	}
	if d.r.peek(); d.r.i != len(body) {
		return nil, d.r.syntax("something follows the object")
	}
	if d.isEvent {
		d.rep.Via = statussync.ViaEvent
		if d.rep.List == statussync.ListComplete {
			d.rep.List = statussync.ListPartial
		}
	}
	return d.rep, nil
}

type decoder struct {
	r       reader
	rep     *statussync.AgentReport
	isEvent bool
}

// event reads whether the report is one of something that just happened.
func (d *decoder) event() error {
	switch d.r.peek() {
	case 't':
		d.isEvent = true
		return d.r.literal("true")
	case 'f':
		d.isEvent = false
		return d.r.literal("false")
	case 'n':
		d.isEvent = false
		return d.r.literal("null")
	}
	if err := d.r.skip(); err != nil {
		return err
	}
	return statussync.Invalid("event", "must be true or false")
}

// text reads a string, cleaned and cut; any other value gives "".
func (d *decoder) text(limit int) (string, error) {
	if d.r.peek() != '"' {
		return "", d.r.skip()
	}
	b, err := d.r.str()
	if err != nil {
		return "", err
	}
	return clean(b, limit), nil
}

// frequent are texts that most containers have; sharing them saves an allocation each.
var frequent = [...]string{"running", "exited", "created", "restarting", "stopped"}

func clean(b []byte, limit int) string {
	for _, w := range frequent {
		if string(b) == w {
			return w
		}
	}
	// What is far too long is cut before it is copied; a character costs up to four bytes, and dropped ones don't count.
	if len(b) > 8*limit {
		b = b[:8*limit]
	}
	return statussync.CleanText(string(b), limit)
}

// integer reads a whole number within [lo, hi]; ok is false for any other value.
func (d *decoder) integer(lo, hi int64) (n int64, ok bool, err error) {
	if c := d.r.peek(); c != '-' && (c < '0' || c > '9') {
		return 0, false, d.r.skip()
	}
	b, err := d.r.number()
	if err != nil {
		return 0, false, err
	}
	if n, err := strconv.ParseInt(string(b), 10, 64); err == nil {
		return n, n >= lo && n <= hi, nil
	}
	f, err := strconv.ParseFloat(string(b), 64)
	if err != nil || f != math.Trunc(f) || math.Abs(f) > 1<<53 {
		return 0, false, nil
	}
	return int64(f), int64(f) >= lo && int64(f) <= hi, nil
}

// timestamp reads the agent's own clock: RFC 3339, or seconds or milliseconds since 1970.
func (d *decoder) timestamp() error {
	if d.r.peek() == '"' {
		s, err := d.text(statussync.MaxWordText)
		if t, perr := time.Parse(time.RFC3339Nano, s); perr == nil {
			d.rep.AgentTime = t
		}
		return err
	}
	n, ok, err := d.integer(1, 1<<53)
	switch {
	case !ok:
	case n > 100_000_000_000: // as seconds that would be the year 5138
		d.rep.AgentTime = time.UnixMilli(n)
	default:
		d.rep.AgentTime = time.Unix(n, 0)
	}
	return err
}

func (d *decoder) system() error {
	d.rep.System = nil
	if d.r.peek() == 'n' {
		return d.r.skip()
	}
	sys := &statussync.SystemStatus{}
	d.rep.System = sys
	return d.part(sys, "system", func(key []byte) error {
		switch string(key) {
		case "cpu_load_percent":
			return d.cpu(sys)
		case "memory":
			var m statussync.MemoryStatus
			known := false
			err := d.part(sys, "memory", func(key []byte) error {
				switch string(key) {
				case "total_bytes":
					return d.bytes(&m.TotalBytes, &known)
				case "active_bytes":
					return d.bytes(&m.ActiveBytes, &known)
				case "free_bytes":
					return d.bytes(&m.FreeBytes, &known)
				case "used_bytes":
					return d.bytes(&m.UsedBytes, &known)
				}
				return d.r.skip()
			})
			if known {
				sys.Memory = &m
			}
			return err
		case "disk":
			var k statussync.DiskStatus
			known := false
			err := d.part(sys, "disk", func(key []byte) (err error) {
				switch string(key) {
				case "mount":
					k.Mount, err = d.text(statussync.MaxNameText)
					return err
				case "total_bytes":
					return d.bytes(&k.TotalBytes, &known)
				case "used_bytes":
					return d.bytes(&k.UsedBytes, &known)
				case "free_bytes":
					return d.bytes(&k.FreeBytes, &known)
				}
				return d.r.skip()
			})
			if known {
				sys.Disk = &k
			}
			return err
		}
		return d.r.skip()
	})
}

// part reads one part of the system status: an object, of which {"error": …} is kept under the part's name, null, or
// something of the wrong type, which is kept as an error too.
func (d *decoder) part(sys *statussync.SystemStatus, name string, field func(key []byte) error) error {
	switch d.r.peek() {
	case 'n':
		return d.r.skip()
	case '{':
		return d.r.object(func(key []byte) error {
			if string(key) != "error" {
				return field(key)
			}
			s, err := d.text(statussync.MaxErrorText)
			if s != "" {
				fail(sys, name, s)
			}
			return err
		})
	}
	fail(sys, name, "has the wrong type")
	return d.r.skip()
}

func fail(sys *statussync.SystemStatus, name, text string) {
	if sys.Errors == nil {
		sys.Errors = make(map[string]string, 1)
	}
	sys.Errors[name] = text
}

func (d *decoder) cpu(sys *statussync.SystemStatus) error {
	if c := d.r.peek(); c != '-' && (c < '0' || c > '9') {
		return d.part(sys, "cpu", func([]byte) error { return d.r.skip() })
	}
	b, err := d.r.number()
	if err != nil {
		return err
	}
	if f, err := strconv.ParseFloat(string(b), 64); err == nil {
		sys.CPULoadPercent = &f
	} else {
		fail(sys, "cpu", "is out of range")
	}
	return nil
}

func (d *decoder) bytes(to *int64, known *bool) error {
	n, ok, err := d.integer(0, math.MaxInt64)
	if ok {
		*to, *known = n, true
	}
	return err
}

// containers reads the list.
func (d *decoder) containers(name string) error {
	d.rep.List, d.rep.Containers = statussync.ListNone, nil
	switch d.r.peek() {
	case 'n':
		return d.r.skip()
	case '[':
	case '{':
		// One that reports its engine's failure without a list around it.
		var i item
		if err := d.item(&i); err != nil {
			return err
		}
		if !i.failed {
			return statussync.Invalid(name, "must be a list")
		}
		d.rep.List = statussync.ListPartial
		return nil
	default:
		if err := d.r.skip(); err != nil {
			return err
		}
		return statussync.Invalid(name, "must be a list")
	}
	d.rep.List = statussync.ListComplete
	var i item // reused, so that it is allocated once
	return d.r.list(func() error {
		if d.r.peek() != '{' {
			d.rep.List = statussync.ListPartial
			return d.r.skip()
		}
		if err := d.item(&i); err != nil {
			return err
		}
		c, ok := i.container()
		if !ok {
			d.rep.List = statussync.ListPartial
			return nil
		}
		if len(d.rep.Containers) == MaxContainers {
			return &statussync.Error{Code: statussync.CodeTooLarge, Location: name,
				Detail: "lists more than " + strconv.Itoa(MaxContainers) + " containers"}
		}
		if d.rep.Containers == nil {
			d.rep.Containers = make([]statussync.ContainerReport, 0, 16)
		}
		d.rep.Containers = append(d.rep.Containers, c)
		return nil
	})
}

// item is one element of the list as it came.
type item struct {
	documented bool // has a key of shape A
	failed     bool // has an error
	serverID   string
	name       string // instance_name_on_toolbox
	record     string // status_on_toolbox
	exitCode   *int
	restarts   *int
	names      []string
	id         string
	image      string
	state      string
	status     string
	port       int
}

func (d *decoder) item(i *item) error {
	*i = item{}
	return d.r.object(func(key []byte) (err error) {
		switch string(key) {
		case "account_tool_instance_id":
			i.documented = true
			i.serverID, err = d.text(statussync.MaxNameText)
		case "instance_name_on_toolbox":
			i.documented = true
			i.name, err = d.name()
		case "status_on_toolbox":
			i.documented = true
			i.record, err = d.text(statussync.MaxWordText)
		case "runtime_details":
			err = d.details(i)
		case "id", "container_id":
			i.id, err = d.text(statussync.MaxWordText)
		case "names":
			err = d.names(i)
		case "image":
			i.image, err = d.text(statussync.MaxNameText)
		case "state":
			i.state, err = d.text(statussync.MaxWordText)
		case "status":
			i.status, err = d.text(statussync.MaxNameText)
		case "ports":
			err = d.ports(i)
		case "error":
			i.failed = d.r.peek() != 'n'
			err = d.r.skip()
		default:
			err = d.r.skip()
		}
		return err
	})
}

func (d *decoder) name() (string, error) {
	s, err := d.text(statussync.MaxNameText)
	return strings.TrimPrefix(s, "/"), err
}

func (d *decoder) names(i *item) error {
	i.names = nil
	add := func() error {
		s, err := d.name()
		if s != "" && len(i.names) < maxNames {
			i.names = append(i.names, s)
		}
		return err
	}
	if d.r.peek() == '[' {
		return d.r.list(add)
	}
	return add()
}

func (d *decoder) details(i *item) error {
	i.exitCode, i.restarts = nil, nil
	if d.r.peek() != '{' {
		return d.r.skip()
	}
	return d.r.object(func(key []byte) error {
		switch string(key) {
		case "exit_code":
			return d.optional(&i.exitCode, math.MinInt32, math.MaxUint32)
		case "restart_count":
			return d.optional(&i.restarts, 0, math.MaxInt32)
		}
		return d.r.skip()
	})
}

func (d *decoder) optional(to **int, lo, hi int64) error {
	n, ok, err := d.integer(lo, hi)
	if ok {
		v := int(n)
		*to = &v
	}
	return err
}

// ports finds the first published TCP port.
func (d *decoder) ports(i *item) error {
	i.port = 0
	if d.r.peek() != '[' {
		return d.r.skip()
	}
	return d.r.list(func() error {
		if i.port != 0 || d.r.peek() != '{' {
			return d.r.skip()
		}
		port, tcp := 0, true
		err := d.r.object(func(key []byte) error {
			switch string(key) {
			case "public_port", "PublicPort":
				n, ok, err := d.integer(1, math.MaxUint16)
				if ok {
					port = int(n)
				}
				return err
			case "type", "Type":
				if d.r.peek() != '"' {
					return d.r.skip()
				}
				b, err := d.r.str()
				tcp = strings.EqualFold(string(b), "tcp")
				return err
			}
			return d.r.skip()
		})
		if tcp {
			i.port = port
		}
		return err
	})
}

// container makes the report of an item; ok is false where it names no container.
func (i *item) container() (c statussync.ContainerReport, ok bool) {
	c = statussync.ContainerReport{
		Names: i.names, ContainerID: i.id, Image: i.image, ExitCode: i.exitCode, Restarts: i.restarts, PublicPort: i.port,
		Text: i.status,
	}
	if i.name != "" && !slices.Contains(c.Names, i.name) {
		c.Names = append(c.Names, i.name)
	}
	word := i.state
	if i.documented {
		c.Shape, c.ServerID = statussync.ShapeDocumented, i.serverID
		if i.record != "" {
			word = i.record
			if c.Text == "" || recordOnly(word) {
				c.Text = i.record
			}
		}
	}
	if len(c.Names) == 0 && c.ServerID == "" {
		return c, false
	}
	t := ParseStatusText(i.status)
	if word == "" && t.Word == "" && i.status != "" {
		word = i.status // an agent that gives a bare word as status
	}
	if i.documented && word != "" {
		if w := ParseStatusText(word); w.Word != "" && i.status == "" {
			t = w
		}
	}
	c.HealthCheck, c.StartAge, c.ExitAge = t.HealthCheck, t.StartAge, t.ExitAge
	if t.ExitCode != nil {
		c.ExitCode = t.ExitCode
	}
	c.Word = containerWord(word, t.Word)
	return c, true
}

// recordOnly reports whether word is one of the database's and none of a container's.
func recordOnly(word string) bool {
	_, container := statussync.ContainerState(word, false, false)
	_, record := statussync.RecordState(word)
	return record && !container
}

// containerWord returns the container word for what was said: word itself where it is one; the word of its state where
// it is a record's; what Docker's text says where word is empty or a text itself; else word as it is, which no table
// knows and nobody concludes from.
func containerWord(word, fromText string) string {
	w := strings.ToLower(strings.TrimSpace(word))
	if w == "" {
		if fromText == "" {
			return "unknown"
		}
		return fromText
	}
	if _, known := statussync.ContainerState(w, false, false); known {
		return w
	}
	if s, known := statussync.RecordState(w); known {
		return string(s) // the words of states are container words too
	}
	if fromText != "" && ParseStatusText(word).Word != "" {
		return fromText
	}
	return w
}
