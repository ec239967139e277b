package httpapi

import (
	"context"
	"io"
	"mime"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/agentopia/statussync/wire"
)

// Backuper takes backups of the running service. It is safe for concurrent use.
type Backuper interface {
	// Backup returns a backup of this moment. It blocks while a snapshot is taken. CodeConflict: another one is not closed
	// yet; CodeUnavailable: there is no room for it. The caller closes it, which another one waits for.
	Backup(ctx context.Context) (Backup, error)
}

// Backup is a backup that was taken. Nothing of the store waits for its reader.
type Backup interface {
	// Name is a good name for a file that holds it.
	Name() string
	// Size is how many bytes WriteTo writes.
	Size() int64
	// WriteTo writes it. It blocks as w does.
	WriteTo(w io.Writer) (int64, error)
	// Close forgets it.
	Close() error
}

// backupChunk and backupPace bound how long a backup's reader may keep it: each 256 KiB may take a minute.
const (
	backupChunk = 256 << 10
	backupPace  = time.Minute
)

// backupRoutes mounts GET /api/v1/backup.
func (a *API) backupRoutes() {
	a.raw(huma.Operation{
		Method: http.MethodGet, Path: wire.PathBackup, OperationID: "backup", Tags: []string{"service"},
		Summary:     "A backup of the store as it is now",
		Description: "A tar archive (docs/operations.md). It holds managed servers' secret headers and the hashes of agents' tokens. One at a time.",
		Responses: map[string]*huma.Response{"200": {
			Description: "A backup", Content: map[string]*huma.MediaType{"application/x-tar": {Schema: &huma.Schema{Type: "string", Format: "binary"}}},
		}},
	}, accessAdmin, a.backup)
}

func (a *API) backup(w http.ResponseWriter, r *http.Request) {
	if err := knownParams(r.URL.Query()); err != nil {
		a.fail(w, r, err)
		return
	}
	if r.Method == http.MethodHead { // who only asks whether there is one does not get one made
		w.Header().Set("Content-Type", "application/x-tar")
		return
	}
	cred := requestOf(r).cred
	if err := a.limits.command(cred.Name, a.limitsOf(cred).CommandsPerSecond); err != nil {
		a.fail(w, r, err)
		return
	}
	rc := http.NewResponseController(w)
	// Taking the snapshot of a large store takes longer than requests may. Errors: a writer without deadlines, in tests.
	_ = rc.SetReadDeadline(time.Time{})
	_ = rc.SetWriteDeadline(time.Time{})
	b, err := a.opts.Backup.Backup(r.Context())
	if err != nil {
		_ = rc.SetWriteDeadline(time.Now().Add(answerTimeout))
		a.fail(w, r, err)
		return
	}
	defer b.Close()
	h := w.Header()
	h.Set("Content-Type", "application/x-tar")
	h.Set("Content-Length", strconv.FormatInt(b.Size(), 10))
	h.Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": b.Name()}))
	n, err := b.WriteTo(&paced{w: w, rc: rc})
	log := a.log.With("by", cred.Name, "request_id", requestOf(r).id, "bytes", n)
	if err != nil {
		log.Warn("a backup was not read to its end", "error", err)
		// The answer must not end as if it were whole.
		panic(http.ErrAbortHandler)
	}
	log.Info("a backup was read")
}

// paced gives each part of what is written its time.
type paced struct {
	w    io.Writer
	rc   *http.ResponseController
	left int // of the part, in bytes
}

func (p *paced) Write(b []byte) (int, error) {
	if p.left -= len(b); p.left <= 0 {
		p.left = backupChunk
		_ = p.rc.SetWriteDeadline(time.Now().Add(backupPace)) // no deadlines: nothing to extend
	}
	return p.w.Write(b)
}
