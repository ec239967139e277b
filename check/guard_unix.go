//go:build unix

package check

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"time"
)

// lifeFD is where the guard finds the pipe whose end is the end of everything.
const lifeFD = 3

// tie gives the guard its pipe, and a process group of its own, so that a Ctrl-C reaches only the check.
func tie(cmd *exec.Cmd, life *os.File) {
	cmd.ExtraFiles = []*os.File{life}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
}

// guarded is the command that runs path behind a guard.
func guarded(guard []string, path string) []string { return append(append([]string{}, guard...), path) }

// ending has nothing to do: the guard sees the end of its pipe.
func ending(*os.Process) func() { return func() {} }

const graceTime = 300 * time.Millisecond // from SIGTERM to SIGKILL

// Guard runs argv as a child with our own standard streams, and ends it and everything that it started when file
// descriptor 3 reaches its end, which it does when the process that holds the other end closes it or dies in any way. It
// is to be called by a process that does nothing else, and returns the code to exit with: the child's, 128 and the
// signal's number where a signal ended it, 127 where it can't be started.
func Guard(argv []string) int {
	if len(argv) == 0 {
		fmt.Fprintln(os.Stderr, "a command is missing")
		return 127
	}
	// The kernel ties a child's death signal to the thread that started it.
	runtime.LockOSThread()
	adopt()
	// Handled, not ignored: a child would inherit that. Whoever wants us to end closes the pipe.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	life := os.NewFile(lifeFD, "life")
	syscall.CloseOnExec(lifeFD)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = childAttr()
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 127
	}
	// What is the child's is no longer ours: its end must be seen by the other sides.
	_ = os.Stdin.Close()
	_ = os.Stdout.Close()
	over := make(chan struct{})
	go func() {
		buf := make([]byte, 1)
		for {
			if _, err := life.Read(buf); err != nil && !errors.Is(err, syscall.EINTR) {
				close(over)
				return
			}
		}
	}()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	group := cmd.Process.Pid
	select {
	case <-ended:
	case <-over:
		_ = syscall.Kill(-group, syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(graceTime):
			_ = syscall.Kill(-group, syscall.SIGKILL)
			<-ended
		}
	}
	_ = syscall.Kill(-group, syscall.SIGKILL) // who stayed behind in the group
	sweep()
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return cmd.ProcessState.ExitCode()
}
