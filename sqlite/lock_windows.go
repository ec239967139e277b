package sqlite

import (
	"errors"
	"os"

	"golang.org/x/sys/windows"
)

// lockByte lies far behind the text of the lock file, which others may read while it is locked.
const lockByte = 1 << 30

// flock takes the lock of an open file, or reports that somebody else has it. It ends with the process, or when f is
// closed.
func flock(f *os.File) (taken bool, err error) {
	err = windows.LockFileEx(windows.Handle(f.Fd()), windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY,
		0, 1, 0, &windows.Overlapped{Offset: lockByte})
	if errors.Is(err, windows.ERROR_LOCK_VIOLATION) {
		return false, nil
	}
	return err == nil, err
}

// unwritable says why path cannot be written; Windows tells it in the error itself.
func unwritable(string) string { return "" }
