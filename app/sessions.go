package app

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/agentopia/statussync/httpapi"
)

// sessionsFileName is where a data directory keeps who is signed in: hashes that let nobody in. It is no part of a backup:
// what is restored has nobody signed in.
const sessionsFileName = "sessions.json"

// maxSessionsFile bounds what is read of it; 1,000 sessions have a quarter of that.
const maxSessionsFile = 1 << 20

// sessionsFile implements httpapi.SessionStore. The data directory's lock sees to it that one process uses it.
type sessionsFile struct{ dir string }

type storedSessions struct {
	V        int             `json:"v"`
	Sessions []storedSession `json:"sessions"`
}

type storedSession struct {
	ID    string    `json:"id"`
	Bound string    `json:"bound"`
	Began time.Time `json:"began"`
	Used  time.Time `json:"used"`
}

const sessionsVersion = 1

func (f sessionsFile) Sessions() ([]httpapi.SessionRecord, error) {
	path := filepath.Join(f.dir, sessionsFileName)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil && info.Size() > maxSessionsFile {
		err = fmt.Errorf("%s is larger than %d bytes", path, maxSessionsFile)
	}
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var in storedSessions
	if err := json.Unmarshal(b, &in); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if in.V != sessionsVersion {
		return nil, fmt.Errorf("%s has the version %d; this program knows %d", path, in.V, sessionsVersion)
	}
	out := make([]httpapi.SessionRecord, len(in.Sessions))
	for i, s := range in.Sessions {
		r := &out[i]
		r.Began, r.Used = s.Began, s.Used
		if hexInto(r.ID[:], s.ID) != nil || hexInto(r.Bound[:], s.Bound) != nil {
			return nil, fmt.Errorf("%s: sessions[%d] has a hash that is none", path, i)
		}
	}
	return out, nil
}

func hexInto(to []byte, s string) error {
	b, err := hex.DecodeString(s)
	if err == nil && len(b) != len(to) {
		err = errors.New("wrong length")
	}
	copy(to, b)
	return err
}

// SaveSessions writes beside the file and renames, so that a crash leaves the old or the new one.
func (f sessionsFile) SaveSessions(list []httpapi.SessionRecord) error {
	out := storedSessions{V: sessionsVersion, Sessions: make([]storedSession, len(list))}
	for i, r := range list {
		out.Sessions[i] = storedSession{hex.EncodeToString(r.ID[:]), hex.EncodeToString(r.Bound[:]), r.Began.UTC(), r.Used.UTC()}
	}
	b, err := json.Marshal(out)
	if err != nil {
		return err
	}
	path := filepath.Join(f.dir, sessionsFileName)
	next, err := os.OpenFile(path+".next", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = next.Write(append(b, '\n'))
	if err = errors.Join(err, next.Sync(), next.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".next", path); err != nil {
		return err
	}
	return syncDir(f.dir)
}
