package postgres

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/agentopia/statussync"
)

func TestParseNotification(t *testing.T) {
	for _, c := range []struct {
		payload string
		want    Notification
		changes []statussync.RowChange
	}{
		{`{"t":"a","o":"U","ids":["1","2"]}`, Notification{"a", OperationUpdate, []string{"1", "2"}},
			[]statussync.RowChange{{Table: "a", ID: "1"}, {Table: "a", ID: "2"}}},
		{`{"t":"a","o":"D","ids":["x\"y"],"later":1}`, Notification{"a", OperationDelete, []string{`x"y`}},
			[]statussync.RowChange{{Table: "a", ID: `x"y`, Deleted: true}}},
		{`{"t":"a","o":"I","ids":["1"]}`, Notification{"a", OperationInsert, []string{"1"}}, []statussync.RowChange{{Table: "a", ID: "1"}}},
		{`{"t":"a","o":"*"}`, Notification{Table: "a", Operation: OperationAll}, []statussync.RowChange{{Table: "a"}}},
		{`{"t":"a","o":"*","ids":["1"]}`, Notification{Table: "a", Operation: OperationAll}, []statussync.RowChange{{Table: "a"}}},
	} {
		got, err := ParseNotification(c.payload)
		if d := cmp.Diff(c.want, got); d != "" || err != nil {
			t.Errorf("%s: %v %s", c.payload, err, d)
		}
		if d := cmp.Diff(c.changes, got.Changes()); d != "" {
			t.Errorf("%s: %s", c.payload, d)
		}
	}
	for _, payload := range []string{
		``, `null`, `x`, `[]`, `{}`, `{"t":"a","o":"*"} x`, `{"t":"a"}`, `{"t":"a","o":"X","ids":["1"]}`, `{"o":"U","ids":["1"]}`, `{"t":"a","o":"U"}`, `{"t":"a","o":"U","ids":[]}`,
		`{"t":"a","o":"U","ids":[1]}`, `{"t":"a","o":"U","ids":[""]}`, `{"t":"a","o":"*","x":"` + strings.Repeat("x", MaxNotification) + `"}`,
	} {
		if _, err := ParseNotification(payload); statussync.CodeOf(err) != statussync.CodeInvalid {
			t.Errorf("%.60q: %v", payload, err)
		}
	}
}

func FuzzParseNotification(f *testing.F) {
	f.Add(`{"t":"account_tool_instances","o":"U","ids":["0b7c9b0e-6f38-4f0c-8f0e-2f1d2a3b4c5d"]}`)
	f.Add(`{"t":"account_tool_instances","o":"*"}`)
	f.Fuzz(func(t *testing.T, payload string) {
		n, err := ParseNotification(payload)
		if err != nil {
			if statussync.CodeOf(err) != statussync.CodeInvalid {
				t.Fatal(err)
			}
			return
		}
		if len(n.Changes()) == 0 || n.Table == "" {
			t.Fatalf("%q tells of nothing: %+v", payload, n)
		}
		b, err := json.Marshal(map[string]any{"t": n.Table, "o": n.Operation, "ids": n.IDs})
		if err != nil {
			t.Fatal(err)
		}
		if len(b) > MaxNotification { // escapes may have made it longer
			return
		}
		again, err := ParseNotification(string(b))
		if d := cmp.Diff(n, again); d != "" || err != nil {
			t.Fatal(err, d)
		}
	})
}
