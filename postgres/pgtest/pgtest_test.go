package pgtest

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

func TestCluster(t *testing.T) {
	c := Start(t)
	dsn := c.Database(t)
	count := func(limit time.Duration) (n int, err error) {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		conn, err := pgx.Connect(ctx, dsn)
		if err != nil {
			return 0, err
		}
		defer conn.Close(context.Background())
		return n, conn.QueryRow(ctx, "select count(*) from account_tool_instances").Scan(&n)
	}
	if n, err := count(time.Minute); n != 0 || err != nil {
		t.Fatal(n, err)
	}
	c.Freeze()
	if _, err := count(300 * time.Millisecond); err == nil {
		t.Error("a frozen cluster answered")
	}
	c.Thaw()
	for _, end := range []func(){c.Kill, c.Down} {
		end()
		if _, err := count(time.Minute); err == nil {
			t.Error("a cluster that is down answered")
		}
		if err := c.Up(); err != nil {
			t.Fatal(err)
		}
		if n, err := count(time.Minute); n != 0 || err != nil {
			t.Error(n, err)
		}
	}
}
