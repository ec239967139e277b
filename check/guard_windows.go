package check

import (
	"os"
	"os/exec"
	"unsafe"

	"golang.org/x/sys/windows"
)

// tie has nothing to do: on Windows a job of the operating system is the guard.
func tie(*exec.Cmd, *os.File) {}

// guarded is the command itself.
func guarded(_ []string, path string) []string { return []string{path} }

// ending puts a started process into a job that ends everything in it when its last handle is closed: by what is
// returned, or by our own end, however it comes. A child that the process starts in the moment before escapes it.
func ending(p *os.Process) func() {
	job, err := windows.CreateJobObject(nil, nil)
	if err != nil {
		return func() { _ = p.Kill() }
	}
	info := windows.JOBOBJECT_EXTENDED_LIMIT_INFORMATION{BasicLimitInformation: windows.JOBOBJECT_BASIC_LIMIT_INFORMATION{
		LimitFlags: windows.JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE,
	}}
	_, err = windows.SetInformationJobObject(job, windows.JobObjectExtendedLimitInformation, uintptr(unsafe.Pointer(&info)), uint32(unsafe.Sizeof(info)))
	if err == nil {
		var h windows.Handle
		if h, err = windows.OpenProcess(windows.PROCESS_SET_QUOTA|windows.PROCESS_TERMINATE, false, uint32(p.Pid)); err == nil {
			err = windows.AssignProcessToJobObject(job, h)
			_ = windows.CloseHandle(h)
		}
	}
	return func() {
		if err != nil {
			_ = p.Kill()
		}
		_ = windows.CloseHandle(job)
	}
}

// Guard is not used on Windows.
func Guard([]string) int { return 127 }
