package supabase

import (
	"encoding/json"
	"strconv"
	"time"

	"github.com/agentopia/statussync"
)

// Times of the protocol.
const (
	// HeartbeatEvery is the time between heartbeats. One that is unanswered when the next is due ends the connection, so
	// that a dead one is noticed within twice this.
	HeartbeatEvery = 25 * time.Second
	// JoinTimeout is how long the answer to a join may take; the official client's limit. The server delays refusals by 5 s.
	JoinTimeout = 10 * time.Second
	// SubscribeTimeout is how long it may take from that answer to the word that the database is followed. The server's
	// own tests allow 8 s, and it tries again every 1 to 3 s while it starts to follow a project.
	SubscribeTimeout = 20 * time.Second
	// repairTimeout is how long the server may try to follow the database again, after it said that it could not; it does
	// so every 5 to 10 s, where it does at all.
	repairTimeout = 12 * time.Second
	// maxJoins is how many joins may fail on one connection before another is made, maybe to another node.
	maxJoins = 3
)

// phase is where a channel stands.
type phase int

const (
	phaseToken   phase = iota // a token was asked for; the join follows
	phaseJoining              // joined, or about to be, but the database is not followed yet
	phaseLive
	phaseWaiting // until the next join
)

// effects are what follows from an event; whoever holds the channel carries them out in the order of the fields.
type effects struct {
	changes []statussync.RowChange
	lost    *loss // changes are not told any more
	drop    bool  // give the connection up, because of lost
	live    bool
	joined  bool     // a join is in send
	ask     bool     // for a token
	send    [][]byte // frames
	note    string   // for the log
}

// channel is the one channel of one connection: a pure state machine. Time and randomness are arguments.
type channel struct {
	topic      string
	join       func(token string) any // payload of phx_join
	needToken  bool
	wait       func(now time.Time, l *loss) time.Duration // until the next join
	clean      func(string) string
	phase      phase
	until      time.Time // when the phase ends by itself; zero: never
	answered   bool      // the join was
	trouble    *loss     // what the server said meanwhile
	ref        uint64
	joinRef    string
	last       *loss // the newest of the channel
	asking     bool
	token      token
	joins      int // failed ones since it was live
	beatAt     time.Time
	beatRef    string // of an unanswered heartbeat
	beatSentAt time.Time
	heardAt    time.Time     // when a heartbeat was last answered
	roundTrip  time.Duration // of it
}

func (c *channel) nextRef() string {
	c.ref++
	return strconv.FormatUint(c.ref, 10)
}

func (c *channel) push(e *effects, joinRef, ref, topic, event string, payload any) {
	frame, err := encodeFrame(joinRef, ref, topic, event, payload)
	if err != nil { // strings, numbers and booleans always encode
		panic("supabase: " + err.Error())
	}
	e.send = append(e.send, frame)
}

// start begins on a fresh connection.
func (c *channel) start(now time.Time) (e effects) {
	c.beatAt = now.Add(HeartbeatEvery)
	c.begin(now, &e)
	return e
}

func (c *channel) begin(now time.Time, e *effects) {
	c.trouble = nil
	if !c.needToken {
		c.sendJoin(now, e)
		return
	}
	c.phase, c.until = phaseToken, time.Time{} // whoever asks for it has a limit
	if !c.asking {
		c.asking, e.ask = true, true
	}
}

func (c *channel) sendJoin(now time.Time, e *effects) {
	c.phase, c.until, c.answered = phaseJoining, now.Add(JoinTimeout), false
	c.joinRef = c.nextRef()
	c.push(e, c.joinRef, c.joinRef, c.topic, eventJoin, c.join(c.token.text))
	e.joined = true
}

// leave returns the farewell, nil where there is nothing to leave.
func (c *channel) leave() []byte {
	if c.phase != phaseJoining && c.phase != phaseLive {
		return nil
	}
	var e effects
	c.push(&e, c.joinRef, c.nextRef(), c.topic, eventLeave, struct{}{})
	return e.send[0]
}

// fail loses the channel: it is joined again later, or the connection is given up.
func (c *channel) fail(now time.Time, e *effects, l *loss) {
	e.lost, c.last = l, l
	c.joins++
	if c.joins >= maxJoins {
		e.drop = true
		return
	}
	c.phase, c.until = phaseWaiting, now.Add(c.wait(now, l))
}

// cut says what it means that the connection ended because of l: nothing new where the channel was lost before. A server
// that refuses a join may close the connection with it, and must not be asked again any sooner for that.
func (c *channel) cut(l *loss) *loss {
	if c.phase != phaseWaiting {
		return l
	}
	waiting := *c.last
	waiting.at = c.until
	return &waiting
}

// gotToken takes what a question for a token brought.
func (c *channel) gotToken(now time.Time, t token, err error) (e effects) {
	c.asking = false
	switch {
	case c.phase == phaseWaiting: // asked too early: the next join asks again
	case c.phase == phaseToken && err != nil:
		c.fail(now, &e, lossOf(statussync.CodeUnavailable, quick, "no token to join with: "+err.Error()))
	case c.phase == phaseToken:
		c.token = t
		c.token.planRefresh(now)
		c.sendJoin(now, &e)
	case err != nil:
		c.token.refreshAt = now.Add(tokenRetry)
		e.note = "no fresh token: " + err.Error()
	case t.text == c.token.text:
		c.token.refreshAt = now.Add(tokenRetry)
		e.note = "the fresh token is the old one"
	default:
		c.token = t
		c.token.planRefresh(now)
		c.push(&e, c.joinRef, c.nextRef(), c.topic, eventAccessToken, map[string]string{"access_token": t.text})
	}
	return e
}

// take takes a frame.
func (c *channel) take(now time.Time, m message) (e effects) {
	if m.topic == topicPhoenix {
		if m.event == eventReply && m.ref != "" && m.ref == c.beatRef {
			c.beatRef, c.heardAt, c.roundTrip = "", now, now.Sub(c.beatSentAt)
		}
		return e
	}
	if m.topic != c.topic {
		return e
	}
	if m.event == eventChanges {
		e.changes = m.changes // also before the database is said to be followed: a hint is never wrong
		return e
	}
	if m.joinRef != "" && m.joinRef != c.joinRef { // about an earlier join: one that takes another's place closes it
		return e
	}
	if c.phase != phaseJoining && c.phase != phaseLive {
		return e
	}
	switch m.event {
	case eventReply:
		var r reply
		if json.Unmarshal(m.payload, &r) != nil {
			r.Status = "unreadable"
		}
		switch {
		case r.Status != statusOK && m.ref == c.joinRef:
			c.fail(now, &e, judge("the server refused the channel", c.clean(r.failure()), c.needToken))
		case r.Status != statusOK:
			c.fail(now, &e, judge("the server refused what was sent", c.clean(r.failure()), c.needToken))
		case m.ref == c.joinRef && c.phase == phaseJoining && !c.answered:
			c.answered = true
			c.until = now.Add(SubscribeTimeout)
		}
	case eventSystem:
		c.system(now, &e, m.payload)
	case eventError:
		c.fail(now, &e, lossOf(statussync.CodeUnavailable, quick, "the channel crashed on the server (phx_error)"))
	case eventClose:
		c.fail(now, &e, lossOf(statussync.CodeUnavailable, quick, "the server closed the channel (phx_close)"))
	}
	return e
}

func (c *channel) system(now time.Time, e *effects, payload json.RawMessage) {
	var s system
	if json.Unmarshal(payload, &s) != nil {
		return
	}
	ofChanges := s.Extension == extensionChanges
	if s.Status == statusOK {
		if ofChanges {
			// Said again when the server took a fresh token, or had lost the database without a word: what changed in
			// between may be missing, so it is live anew.
			c.phase, c.until, c.trouble, c.joins = phaseLive, time.Time{}, nil, 0
			e.live = true
		}
		return
	}
	reason := c.clean(text(s.Message))
	if !ofChanges { // followed by phx_close, which is then about an earlier join or comes while it is waited
		c.fail(now, e, judge("the server ended the channel", reason, c.needToken))
		return
	}
	// The channel stays open, and the server may try again by itself.
	l := judge("the server cannot follow the database", reason, c.needToken)
	if c.phase == phaseLive || c.trouble == nil {
		c.until = now.Add(repairTimeout)
	}
	c.phase, c.answered, c.trouble = phaseJoining, true, l
	e.lost = l
}

// tick does what is due.
func (c *channel) tick(now time.Time) (e effects) {
	if !now.Before(c.beatAt) {
		if c.beatRef != "" {
			e.lost, e.drop = lossOf(statussync.CodeUnavailable, quick, "the server left a heartbeat unanswered for "+HeartbeatEvery.String()), true
			return e
		}
		c.beatRef, c.beatSentAt, c.beatAt = c.nextRef(), now, now.Add(HeartbeatEvery)
		c.push(&e, "", c.beatRef, topicPhoenix, eventHeartbeat, struct{}{})
	}
	if !c.until.IsZero() && !now.Before(c.until) {
		switch {
		case c.phase == phaseWaiting:
			c.begin(now, &e)
		case c.phase == phaseJoining && !c.answered:
			e.lost, e.drop = lossOf(statussync.CodeUnavailable, quick, "the server did not answer the join within "+JoinTimeout.String()), true
			return e
		case c.phase == phaseJoining && c.trouble != nil:
			c.fail(now, &e, c.trouble)
		case c.phase == phaseJoining:
			c.fail(now, &e, lossOf(statussync.CodeUnavailable, quick, "the server did not say within "+SubscribeTimeout.String()+" that it follows the database"))
		}
	}
	if c.phase == phaseLive && !c.token.refreshAt.IsZero() && !now.Before(c.token.refreshAt) {
		c.token.refreshAt = time.Time{} // planned anew by the answer
		if !c.asking {
			c.asking, e.ask = true, true
		}
	}
	return e
}

// deadline is when tick has something to do.
func (c *channel) deadline() time.Time {
	d := c.beatAt
	earlier := func(t time.Time) {
		if !t.IsZero() && t.Before(d) {
			d = t
		}
	}
	earlier(c.until)
	if c.phase == phaseLive {
		earlier(c.token.refreshAt)
	}
	return d
}
