// Package sqlite is the embedded default store: a statussync.Journal in one SQLite file (write-ahead log, pure Go), with
// nothing to install beside the service.
//
// # Durability
//
// Append returns nil once the batch has been handed to the operating system as one committed transaction. From then on
//
//   - the death of the process (kill -9, out of memory, a panic) loses nothing, reorders nothing and tears nothing;
//   - the death of the machine (power loss, kernel crash) with Sync "full" loses nothing either, as far as the disk keeps
//     what it has acknowledged: every Append waits for fsync;
//   - the death of the machine with Sync "normal" may lose the newest batches, never a part of one and never one from the
//     middle: the file is consistent, but older than what was told. The store knows it by the boot id of the kernel, which
//     changed without a clean Close, and then begins a new epoch at Open, so that no subscriber resumes wrongly. Where no
//     boot id can be read, every unclean end counts as the machine's.
//
// A store that is closed cleanly is complete on disk with either setting. A file that was copied back by hand, without
// a restore that knows of epochs, keeps the epoch that it was copied with.
//
// # Order, visibility, failure
//
// One Append runs at a time; others wait their turn. A batch is stored whole or not at all, also after an error: the
// connection is rolled back or thrown away. When ctx ends while the disk hangs, Append returns at once and the write goes
// on without it. Such a batch, and one whose commit failed, is never visible in Head, Read or History while the store is
// open, even if it went through after all: the next Append removes its entries, whether it says Replace or not. (Its
// records stay until they are written again.) Only after a crash in between may it be found, whole, at the next Open:
// durable, and never told.
//
// Reads see one consistent state each, never wait for a writer, and never make one wait. What Read returns has no hole:
// if retention deletes what it was about to read, it says CodeExpired.
//
// Errors have CodeUnavailable, and their text for logs names the file and what to do: the disk is full, the file is
// read-only, damaged, locked or gone. After all of these but damage the same store goes on working as soon as the cause is
// removed; no restart is needed.
//
// # Bounds
//
// Run deletes entries that are older than Options.Retention, and the oldest ones while the file and its log together are
// larger than Options.MaxBytes, in transactions of a few hundred rows with pauses at least as long as they took, so that
// an Append never waits for more than one of them. The newest entries are never deleted for size. Freed space is used
// again; the file itself shrinks only while it is larger than MaxBytes. The head never goes back by it. Without Run
// nothing is ever deleted, and the write-ahead log is emptied by the appends themselves, which makes one of them slow
// now and then.
//
// A directory belongs to one process at a time, by a lock that the operating system drops when the process dies. It must
// be on a local file system: SQLite's log does not work over a network one.
package sqlite
