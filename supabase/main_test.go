package supabase_test

import (
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/agentopia/statussync/postgres/pgtest"
)

var shared pgtest.Shared

func TestMain(m *testing.M) {
	code := m.Run()
	shared.Close()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			println(err.Error())
			code = 1
		}
	}
	os.Exit(code)
}
