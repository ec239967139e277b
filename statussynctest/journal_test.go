package statussynctest_test

import (
	"testing"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/statussynctest"
)

func TestMemoryJournal(t *testing.T) {
	statussynctest.Journal(t, func(t *testing.T) (statussync.Journal, func() statussync.Journal) {
		j := statussynctest.NewJournal()
		return j, func() statussync.Journal {
			j = j.Reopen()
			return j
		}
	})
}

func TestMemoryJournalRetention(t *testing.T) {
	statussynctest.JournalRetention(t, func(t *testing.T) (statussync.Journal, func(uint64), func() statussync.Journal) {
		j := statussynctest.NewJournal()
		return j, func(seq uint64) { j.Expire(seq) }, func() statussync.Journal {
			j = j.Reopen()
			return j
		}
	})
}
