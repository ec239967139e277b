//go:build unix

package sqlite

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// flock takes the lock of an open file, or reports that somebody else has it. It ends with the process, or when f is
// closed.
func flock(f *os.File) (taken bool, err error) {
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return true, nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EWOULDBLOCK):
			return false, nil
		default:
			return false, err
		}
	}
}

// unwritable says why path cannot be written, as far as the operating system tells; "" where it does not.
func unwritable(path string) string {
	if err := unix.Access(path, unix.W_OK); err != nil {
		return err.Error()
	}
	return ""
}
