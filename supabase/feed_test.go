package supabase_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/supabase"
	"github.com/agentopia/statussync/supabase/realtimetest"
)

// TestLiveOnlyWhenFollowed: the answer to the join is not the word that changes are told.
func TestLiveOnlyWhenFollowed(t *testing.T) {
	bubble(t, func(r *rig) {
		r.server.SubscribeDelay = 8 * time.Second
		r.client.Tables = []string{table, "account_tool_environments"}
	}, func(r *rig) {
		r.sleep(7 * time.Second)
		if st := r.feed.Status(); st.State != supabase.StateJoining || st.Joins != 1 {
			t.Errorf("after the answer to the join: %+v", st)
		}
		if r.rec.isLive() {
			t.Fatal("live before the server follows the database")
		}
		r.srv.Change(row("lost"))
		r.sleep(2 * time.Second)
		if !r.rec.isLive() || r.feed.Status().State != supabase.StateLive {
			t.Fatalf("not live: %+v", r.feed.Status())
		}
		r.srv.Change(row("a"))
		r.srv.Change(realtimetest.Change{Schema: "public", Table: "account_tool_environments", Type: "INSERT", Record: map[string]any{"id": 7}})
		r.srv.Change(realtimetest.Change{Schema: "public", Table: table, Type: "DELETE", OldRecord: map[string]any{"id": "b"}})
		r.srv.Change(realtimetest.Change{Schema: "other", Table: table, Type: "DELETE", OldRecord: map[string]any{"id": "c"}})
		r.sleep(time.Second)
		_, _, got := r.rec.sum()
		want := []statussync.RowChange{{Table: table, ID: "a"}, {Table: "account_tool_environments", ID: "7"}, {Table: table, ID: "b", Deleted: true}}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("told %v, want %v", got, want)
		}
		if st := r.feed.Status(); st.Changes != 3 || st.Messages < 5 || st.LastError != "" {
			t.Errorf("status %+v", st)
		}
		if n := len(r.srv.Joins()); n != 1 {
			t.Errorf("%d joins for two tables", n)
		}
	})
}

// TestLeaves: a feed that stops says so.
func TestLeaves(t *testing.T) {
	bubble(t, nil, func(r *rig) {
		r.untilLive(time.Minute)
		if err := r.feed.Run(context.Background(), r.rec); statussync.CodeOf(err) != statussync.CodeConflict {
			t.Errorf("a second Run: %v", err)
		}
		t.Cleanup(func() {
			if _, leaves, open := r.srv.Counts(); leaves != 1 || open != 0 {
				t.Errorf("%d leaves, %d connections open", leaves, open)
			}
		})
	})
}

// TestHeartbeats are sent every 25 s, for ever, on one connection.
func TestHeartbeats(t *testing.T) {
	bubble(t, nil, func(r *rig) {
		r.sleep(time.Hour + time.Second)
		if beats, _, _ := r.srv.Counts(); beats != 144 {
			t.Errorf("%d heartbeats in an hour", beats)
		}
		st := r.feed.Status()
		if st.Connects != 1 || st.Joins != 1 || st.Reconnects != 0 || st.State != supabase.StateLive {
			t.Errorf("%+v", st)
		}
		if time.Since(st.LastHeartbeat) > 26*time.Second {
			t.Errorf("last heartbeat %s ago", time.Since(st.LastHeartbeat))
		}
		if r.rec.lives() != 1 {
			t.Errorf("told %v", r.rec.calls())
		}
	})
}

// faults are ways to lose the channel. Each ends in a live channel again; what is changed meanwhile is covered by the
// re-read that Live asks for, what is changed after it is told.
var faults = []struct {
	name  string
	setup func(*rig)
	// fault breaks what is live, and heals it again where that does not happen by itself.
	fault  func(*rig)
	within time.Duration
	code   statussync.Code
	says   string
	same   bool // on the same connection
}{
	{name: "phx_error", fault: func(r *rig) { r.srv.Crash() }, within: 5 * time.Second, code: statussync.CodeUnavailable, says: "phx_error", same: true},
	{name: "phx_close", fault: func(r *rig) { r.srv.CloseChannels() }, within: 5 * time.Second, code: statussync.CodeUnavailable, says: "phx_close", same: true},
	{name: "connection closed", fault: func(r *rig) { r.srv.Disconnect() }, within: 5 * time.Second, code: statussync.CodeUnavailable, says: "connection"},
	{name: "server drains", fault: func(r *rig) { r.srv.Drain() }, within: 5 * time.Second, code: statussync.CodeUnavailable, says: "connection"},
	{name: "restart", fault: func(r *rig) { r.srv.SetDown(true); r.sleep(60 * time.Second); r.srv.SetDown(false) }, within: 30 * time.Second, code: statussync.CodeUnavailable, says: "503"},
	{name: "nobody listens", fault: func(r *rig) {
		r.pipes.mu.Lock()
		r.pipes.refuse = true
		r.pipes.mu.Unlock()
		r.srv.Disconnect()
		r.sleep(60 * time.Second)
		r.pipes.mu.Lock()
		r.pipes.refuse = false
		r.pipes.mu.Unlock()
	}, within: 30 * time.Second, code: statussync.CodeUnavailable, says: "cannot connect to realtime.test"},
	{name: "half-open", fault: func(r *rig) { r.srv.SetFrozen(true); r.sleep(51 * time.Second); r.srv.SetFrozen(false) }, within: 40 * time.Second, code: statussync.CodeUnavailable, says: "heartbeat"},
	{name: "too many messages", fault: func(r *rig) { r.srv.Shutdown("Too many messages per second") }, within: 15 * time.Second, code: statussync.CodeRateLimited, says: "Too many messages per second", same: true},
	{name: "the database is lost, and the server finds it again", fault: func(r *rig) {
		r.srv.LoseDatabase("UnableToSubscribeToPostgres: down", 7*time.Second)
		r.sleep(time.Second)
	},
		within: 8 * time.Second, code: statussync.CodeUnavailable, says: "cannot follow the database", same: true},
	{name: "the database is lost, and the server does not try again", fault: func(r *rig) { r.srv.LoseDatabase("subscription insert failed", 0); r.sleep(time.Second) },
		within: 20 * time.Second, code: statussync.CodeUnavailable, says: "subscription insert failed", same: true},
	{name: "nonsense", fault: func(r *rig) { r.srv.Raw([]byte(`{"hello"`)) }, within: 15 * time.Second, code: statussync.CodeUnavailable, says: "not JSON"},
	{name: "an object", fault: func(r *rig) { r.srv.Raw([]byte(`{"topic":"realtime:statussync","event":"x"}`)) }, within: 15 * time.Second, code: statussync.CodeUnavailable, says: "join_ref"},
	{name: "a frame of 6 MiB", fault: func(r *rig) { r.srv.Raw([]byte(`"` + strings.Repeat("x", 6<<20) + `"`)) }, within: 15 * time.Second, code: statussync.CodeTooLarge, says: "5 MiB"},
}

func TestEveryLossEndsLive(t *testing.T) {
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			bubble(t, f.setup, func(r *rig) {
				r.untilLive(time.Minute)
				r.sleep(time.Minute)
				before := r.feed.Status()
				f.fault(r)
				r.sleep(time.Millisecond)
				if r.rec.isLive() {
					t.Error("the loss was not told")
				}
				r.srv.Change(row("meanwhile"))
				if took := r.untilLive(f.within); took > 0 {
					t.Logf("live again after %s", took)
				}
				if n := r.rec.lives(); n != 2 {
					t.Errorf("told live %d times", n)
				}
				found := false
				for _, err := range r.rec.losses() {
					found = found || strings.Contains(err.Error(), f.says) && statussync.CodeOf(err) == f.code
				}
				if !found {
					t.Errorf("losses %v, none is %s and says %q", r.rec.losses(), f.code, f.says)
				}
				st := r.feed.Status()
				if same := st.Connects == before.Connects; same != f.same {
					t.Errorf("%d connections, before %d", st.Connects, before.Connects)
				}
				if st.LastError == "" || st.LastErrorAt.IsZero() {
					t.Errorf("status %+v", st)
				}
				r.srv.Change(row("after"))
				r.sleep(time.Second)
				_, _, got := r.rec.sum()
				if len(got) == 0 || got[len(got)-1].ID != "after" {
					t.Errorf("told %v", got)
				}
				if strings.Contains(r.logs.String(), apiKey) {
					t.Errorf("the log holds the key:\n%s", r.logs)
				}
			})
		})
	}
}

// TestSilentRepair: the server may lose the database without a word and say only that it follows it again.
func TestSilentRepair(t *testing.T) {
	bubble(t, nil, func(r *rig) {
		r.untilLive(time.Minute)
		r.srv.LoseDatabase("", 2*time.Second)
		r.sleep(3 * time.Second)
		if n := r.rec.lives(); n != 2 {
			t.Errorf("told live %d times: what was missed in between would stay missed", n)
		}
	})
}

// TestRefusedHandshakes: each refusal is told in its own words, and healed when the server changes its mind.
func TestRefusedHandshakes(t *testing.T) {
	for _, c := range []struct {
		refusal realtimetest.Refusal
		code    statussync.Code
		most    time.Duration // between attempts, from the fourth on
	}{
		{realtimetest.Refusal{Status: 401, Message: "Failed to validate JWT signature"}, statussync.CodeUnauthorized, 5 * time.Minute},
		{realtimetest.Refusal{Status: 403, Message: "Realtime was disabled for this tenant"}, statussync.CodeForbidden, 5 * time.Minute},
		{realtimetest.Refusal{Status: 404, Message: "Tenant not found"}, statussync.CodeNotFound, 5 * time.Minute},
		{realtimetest.Refusal{Status: 429, Message: "Too many connected users"}, statussync.CodeRateLimited, time.Minute},
		{realtimetest.Refusal{Status: 500, Message: "Error connecting to Realtime"}, statussync.CodeUnavailable, 10 * time.Second},
		{realtimetest.Refusal{Status: 502, Message: "Bad gateway for apikey=" + apiKey}, statussync.CodeUnavailable, 10 * time.Second},
		{realtimetest.Refusal{Status: 200, Message: "a page"}, statussync.CodeInvalid, 5 * time.Minute},
		{realtimetest.Refusal{Status: 307, Message: "elsewhere"}, statussync.CodeInvalid, 5 * time.Minute},
	} {
		t.Run(fmt.Sprint(c.refusal.Status), func(t *testing.T) {
			var healed atomic.Bool
			bubble(t, func(r *rig) {
				r.srv.OnHandshake = func(int) *realtimetest.Refusal {
					if healed.Load() {
						return nil
					}
					return &c.refusal
				}
			}, func(r *rig) {
				r.sleep(20 * time.Minute)
				losses := r.rec.losses()
				if len(losses) != 1 {
					t.Fatalf("told %d losses: the same one is told once", len(losses))
				}
				text := losses[0].Error()
				said, _, _ := strings.Cut(c.refusal.Message, " for apikey=")
				if statussync.CodeOf(losses[0]) != c.code || !strings.Contains(text, said) || !strings.Contains(text, fmt.Sprint(c.refusal.Status)) {
					t.Errorf("%s: %s", statussync.CodeOf(losses[0]), text)
				}
				if strings.Contains(text+r.logs.String()+r.feed.Status().LastError, apiKey) {
					t.Error("the key is shown")
				}
				if st := r.feed.Status(); st.State != supabase.StateWaiting && st.State != supabase.StateConnecting || st.LastErrorCode != c.code {
					t.Errorf("status %+v", st)
				}
				if st := r.feed.Status(); st.State == supabase.StateWaiting && (st.RetryAt.Before(time.Now()) || time.Until(st.RetryAt) > c.most) {
					t.Errorf("tried again at %s", st.RetryAt)
				}
				healed.Store(true)
				r.untilLive(c.most + 10*time.Second)
			})
		})
	}
}

// TestRetryAfter is waited, where it is sane.
func TestRetryAfter(t *testing.T) {
	bubble(t, func(r *rig) {
		r.srv.OnHandshake = func(n int) *realtimetest.Refusal {
			if n > 1 {
				return nil
			}
			return &realtimetest.Refusal{Status: 429, Message: "Too many connected users", RetryAfter: "120"}
		}
	}, func(r *rig) {
		r.untilLive(5 * time.Minute)
		h := r.srv.Handshakes()
		if len(h) != 2 || h[1].Sub(h[0]) < 2*time.Minute {
			t.Errorf("tried at %v", h)
		}
	})
}

// TestRefusedJoins: as above, for what the server says to a join.
func TestRefusedJoins(t *testing.T) {
	for _, c := range []struct {
		name string
		join realtimetest.Join
		code statussync.Code
		says string
		heal time.Duration // at most, after the server changed its mind
		most int           // joins in 10 minutes
	}{
		{"channel limit", realtimetest.Join{Reason: "ChannelRateLimitReached: Too many channels"}, statussync.CodeRateLimited, "Too many channels", 65 * time.Second, 50},
		{"connection limit", realtimetest.Join{Reason: "ConnectionRateLimitReached: Too many connected users"}, statussync.CodeRateLimited, "Too many connected users", 65 * time.Second, 50},
		{"join limit", realtimetest.Join{Reason: "ClientJoinRateLimitReached: Too many joins per second"}, statussync.CodeRateLimited, "Too many joins", 65 * time.Second, 50},
		{"project starts", realtimetest.Join{Reason: "InitializingProjectConnection: Realtime is initializing the project connection"}, statussync.CodeUnavailable, "initializing", 30 * time.Second, 110},
		{"restarting", realtimetest.Join{Reason: "RealtimeRestarting: Realtime is restarting, please standby", Disconnect: true}, statussync.CodeUnavailable, "restarting", 30 * time.Second, 110},
		{"unknown tenant", realtimetest.Join{Reason: "TenantNotFound: Tenant with the given ID does not exist"}, statussync.CodeNotFound, "TenantNotFound", 5*time.Minute + 20*time.Second, 20},
		{"key has ended", realtimetest.Join{Reason: "InvalidJWTToken: Token has expired 9 seconds ago"}, statussync.CodeUnauthorized, "expired 9 seconds ago", 5*time.Minute + 20*time.Second, 20},
		{"not allowed", realtimetest.Join{Reason: "Unauthorized: You do not have permissions to read from this Channel topic"}, statussync.CodeForbidden, "permissions", 5*time.Minute + 20*time.Second, 20},
		{"no answer", realtimetest.Join{Silent: true}, statussync.CodeUnavailable, "did not answer the join", 40 * time.Second, 110},
		{"never followed", realtimetest.Join{NoSystem: true}, statussync.CodeUnavailable, "follows the database", 60 * time.Second, 110},
		{"table is not published", realtimetest.Join{SystemError: "Unable to subscribe to changes with given parameters. Please check Realtime is enabled for the given connect parameters: [schema: public, table: x]"},
			statussync.CodeInvalid, "publication supabase_realtime", 5*time.Minute + 40*time.Second, 20},
	} {
		t.Run(c.name, func(t *testing.T) {
			var healed atomic.Bool
			bubble(t, func(r *rig) {
				r.srv.OnJoin = func(int) realtimetest.Join {
					if healed.Load() {
						return realtimetest.Join{}
					}
					return c.join
				}
			}, func(r *rig) {
				r.sleep(10 * time.Minute)
				losses := r.rec.losses()
				found := false
				for _, err := range losses {
					found = found || statussync.CodeOf(err) == c.code && strings.Contains(err.Error(), c.says)
				}
				if !found {
					t.Fatalf("told %v", losses)
				}
				joins := len(r.srv.Joins())
				healed.Store(true)
				r.untilLive(c.heal)
				t.Logf("%d joins in 10 minutes", joins)
				if joins < 2 || joins > c.most {
					t.Errorf("%d joins in 10 minutes", joins)
				}
			})
		})
	}
}

// TestSpacing: many clients that lose the same server come back spread out and never together; each tries on without limit.
func TestSpacing(t *testing.T) {
	const clients = 60
	type attempt struct{ first time.Duration }
	var firsts [clients]attempt
	perSecond := map[int64]int{}
	for i := range clients {
		bubble(t, nil, func(r *rig) {
			r.untilLive(time.Minute)
			r.sleep(time.Minute)
			r.pipes.mu.Lock()
			r.pipes.refuse, r.pipes.dialled = true, nil
			r.pipes.mu.Unlock()
			lostAt := time.Now()
			r.srv.Disconnect()
			r.sleep(10 * time.Minute)
			r.pipes.mu.Lock()
			dialled := r.pipes.dialled
			r.pipes.mu.Unlock()
			// Waits are at most 1, 2, 4, 8 and from then on 10 s, 5 s on average: 120 in 10 minutes.
			if n := len(dialled); n < 90 || n > 170 {
				t.Errorf("%d attempts in 10 minutes", n)
			}
			prev := lostAt
			for k, at := range dialled {
				most := min(time.Second<<min(k, 10), 10*time.Second)
				if wait := at.Sub(prev); wait < 0 || wait > most+time.Millisecond {
					t.Errorf("attempt %d came after %s, more than %s", k, wait, most)
				}
				prev = at
				perSecond[int64(at.Sub(lostAt)/time.Second)]++
			}
			firsts[i] = attempt{first: dialled[0].Sub(lostAt)}
		})
	}
	var early int
	for _, a := range firsts {
		if a.first < 500*time.Millisecond {
			early++
		}
	}
	if early < clients/5 || early > clients*4/5 { // a chance of one in a hundred thousand, were they even
		t.Errorf("%d of %d first attempts in the first half of the first second", early, clients)
	}
	for s := int64(12); s < 600; s++ { // 60 clients every 5 s: 12 a second
		if perSecond[s] > 40 {
			t.Errorf("%d attempts in second %d", perSecond[s], s)
		}
	}
	t.Logf("attempts of %d clients per second: %d %d %d %d, then %d %d %d … %d", clients,
		perSecond[0], perSecond[1], perSecond[2], perSecond[3], perSecond[20], perSecond[21], perSecond[22], perSecond[599])
}

// TestFlappingServerIsNotStormed: a channel that is lost as soon as it is live is no success.
func TestFlappingServerIsNotStormed(t *testing.T) {
	bubble(t, func(r *rig) {
		r.server.SubscribeDelay = 0
	}, func(r *rig) {
		for range 600 {
			r.srv.Shutdown("Too many messages per second")
			r.sleep(time.Second)
		}
		if n := len(r.srv.Joins()); n < 10 || n > 60 {
			t.Errorf("%d joins in 10 minutes at a server that ends each", n)
		}
	})
}

// TestTokens: fresh ones are sent before the old one ends; what the provider does wrong is told and healed.
func TestTokens(t *testing.T) {
	var asked atomic.Int64
	var failing atomic.Bool
	bubble(t, func(r *rig) {
		srv := realtimetest.New(r.server)
		r.client.Token = func(ctx context.Context) (string, error) {
			asked.Add(1)
			if failing.Load() {
				return "", errors.New("the token service is away")
			}
			return srv.Token("statussync", time.Now().Add(10*time.Minute)), nil
		}
	}, func(r *rig) {
		r.untilLive(time.Minute)
		r.sleep(2 * time.Hour)
		if r.rec.losses() != nil {
			t.Errorf("lost: %v", r.rec.losses())
		}
		if n := len(r.srv.Tokens()); n < 14 || n > 16 { // 8 of each 10 minutes pass
			t.Errorf("%d fresh tokens in 2 hours", n)
		}
		if st := r.feed.Status(); st.Connects != 1 || st.Joins != 1 {
			t.Errorf("%+v", st)
		}
		var first struct {
			Token string `json:"access_token"`
		}
		if json.Unmarshal(r.srv.Joins()[0].Payload, &first) != nil || strings.Count(first.Token, ".") != 2 {
			t.Errorf("joined with %s", r.srv.Joins()[0].Payload)
		}

		failing.Store(true)
		r.sleep(30 * time.Minute) // the token ends, the server says so and closes the channel
		losses := r.rec.losses()
		if len(losses) < 2 || !strings.Contains(losses[0].Error(), "expired") || !strings.Contains(losses[1].Error(), "the token service is away") {
			t.Fatalf("told %v", losses)
		}
		failing.Store(false)
		r.untilLive(30 * time.Second)
		all := r.logs.String() + fmt.Sprint(losses) + r.feed.Status().LastError
		for _, token := range append(r.srv.Tokens(), apiKey) {
			if strings.Contains(all, token) {
				t.Error("a token is shown")
			}
		}
	})
}

// TestBadTokens: each is refused by the server in its words.
func TestBadTokens(t *testing.T) {
	other := realtimetest.New(realtimetest.Options{JWTSecret: "another project's"})
	for _, c := range []struct {
		name  string
		token func() string
		says  string
	}{
		{"empty", func() string { return "" }, "the token is empty"},
		{"not a JWT", func() string { return "nonsense" }, "not a JWT"},
		{"of another project", func() string { return other.Token("statussync", time.Now().Add(time.Hour)) }, "not of this project"},
		{"without a role", func() string { return other.Token("", time.Now().Add(time.Hour)) }, "not of this project"},
		{"expired", func() string {
			return realtimetest.New(realtimetest.Options{JWTSecret: "a secret of the project"}).Token("x", time.Now().Add(-time.Hour))
		}, "expired"},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(r *rig) {
				r.client.Token = func(context.Context) (string, error) { return c.token(), nil }
			}, func(r *rig) {
				r.sleep(time.Minute)
				if l := r.rec.losses(); len(l) == 0 || !strings.Contains(fmt.Sprint(l), c.says) {
					t.Errorf("told %v", l)
				}
			})
		})
	}
}

// TestSilentTokenProvider costs its time and no more: heartbeats go on.
func TestSilentTokenProvider(t *testing.T) {
	bubble(t, func(r *rig) {
		r.client.Token = func(ctx context.Context) (string, error) { <-ctx.Done(); return "", ctx.Err() }
	}, func(r *rig) {
		r.sleep(5 * time.Minute)
		if l := r.rec.losses(); len(l) != 1 || !strings.Contains(l[0].Error(), "no answer within 10s") {
			t.Errorf("told %v", l)
		}
	})
}

// TestBinaryFramesAndStrangers are no reason to lose a channel.
func TestBinaryFramesAndStrangers(t *testing.T) {
	bubble(t, nil, func(r *rig) {
		r.untilLive(time.Minute)
		r.srv.RawBinary([]byte{4, 1, 2, 3})
		for _, f := range []string{
			`[null,null,"realtime:statussync","presence_state",{}]`,
			`[null,null,"realtime:another","phx_close",{}]`,
			`["999","999","realtime:statussync","phx_close",{}]`,
			`["999",null,"realtime:statussync","system",{"extension":"postgres_changes","status":"error","message":"late"}]`,
			`[null,null,"realtime:statussync","system",{"extension":"system","status":"ok","message":"Replication connection established"}]`,
			`[null,"77","phoenix","phx_reply",{"status":"ok","response":{}}]`,
			`[null,null,"realtime:statussync","system",7]`,
		} {
			r.srv.Raw([]byte(f))
		}
		r.sleep(time.Second)
		if !r.rec.isLive() || r.rec.lives() != 1 || len(r.rec.losses()) != 0 {
			t.Errorf("told %v", r.rec.calls())
		}
		// What can't be understood of a change stands for everything.
		r.srv.Raw([]byte(`[null,null,"realtime:statussync","postgres_changes",{"data":7}]`))
		r.sleep(time.Second)
		if _, _, c := r.rec.sum(); !reflect.DeepEqual(c, []statussync.RowChange{{Table: table}}) {
			t.Errorf("told %v", c)
		}
	})
}

// TestBurst: changes that wait are told together.
func TestBurst(t *testing.T) {
	bubble(t, nil, func(r *rig) {
		r.untilLive(time.Minute)
		before := len(r.rec.calls())
		for i := range 3000 {
			r.srv.Change(row(fmt.Sprint(i)))
		}
		r.sleep(time.Second)
		_, _, c := r.rec.sum()
		if len(c) != 3000 || c[0].ID != "0" || c[2999].ID != "2999" {
			t.Fatalf("%d changes told", len(c))
		}
		t.Logf("3000 changes in %d calls", len(r.rec.calls())-before)
	})
}
