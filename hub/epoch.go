package hub

import (
	"crypto/rand"
	"strconv"

	"github.com/agentopia/statussync"
)

// nextEpoch names the log after prev: the next counter and six random characters, so that a store restored from a
// backup never gives a name again that was given before. The first of them is a letter, which ends the counter.
func nextEpoch(prev statussync.Epoch) statussync.Epoch {
	n := uint64(0)
	if len(prev) > 0 && prev[0] == 'e' {
		end := 1
		for end < len(prev) && prev[end] >= '0' && prev[end] <= '9' {
			end++
		}
		// A counter that is none, or absurdly long, starts again: only the whole name means anything.
		if v, err := strconv.ParseUint(string(prev[1:end]), 10, 31); err == nil {
			n = v
		}
	}
	const letters, all = "abcdefghijklmnopqrstuvwxyz", "abcdefghijklmnopqrstuvwxyz0123456789"
	var r [6]byte
	_, _ = rand.Read(r[:]) // never fails, as crypto/rand documents
	name := append([]byte{'e'}, strconv.FormatUint(n+1, 10)...)
	for i, b := range r {
		set := all
		if i == 0 {
			set = letters
		}
		name = append(name, set[int(b)%len(set)])
	}
	return statussync.Epoch(name)
}
