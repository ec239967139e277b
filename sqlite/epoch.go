package sqlite

import (
	"crypto/rand"
	"os"
	"strconv"
	"strings"

	"github.com/agentopia/statussync"
)

// bootIDFile changes with every boot of a Linux kernel.
const bootIDFile = "/proc/sys/kernel/random/boot_id"

// readBootID returns which boot this is; "" where that can't be known.
func readBootID(path string) string {
	b, err := os.ReadFile(path)
	if err != nil || len(b) > 128 {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// mayHaveLost reports whether what was told before may be missing from the file: it was not closed, did not wait for
// the disk, and the machine is not known to be in the same boot.
func mayHaveLost(clean bool, sync, storedBoot, boot string) bool {
	return !clean && sync != SyncFull && (boot == "" || boot != storedBoot)
}

// nextEpoch names the log after prev: the next counter and six random characters, so that a store restored from a
// backup never gives a name again that was given before. The first of them is a letter, which ends the counter.
func nextEpoch(prev statussync.Epoch) statussync.Epoch {
	digits := strings.TrimPrefix(string(prev), "e")
	end := 0
	for end < len(digits) && digits[end] >= '0' && digits[end] <= '9' {
		end++
	}
	n, err := strconv.ParseUint(digits[:end], 10, 31)
	if err != nil {
		n = 0 // no counter, or an absurd one: only the whole name means anything
	}
	const all = "abcdefghijklmnopqrstuvwxyz0123456789"
	var r [6]byte
	_, _ = rand.Read(r[:]) // never fails, as crypto/rand documents
	r[0] = all[r[0]%26]
	for i := 1; i < len(r); i++ {
		r[i] = all[int(r[i])%len(all)]
	}
	return statussync.Epoch("e" + strconv.FormatUint(n+1, 10) + string(r[:]))
}
