// Package client talks to a running statussync service: typed calls for its HTTP operations, and a subscription that
// reconnects and resumes by itself.
//
// A [Client] is immutable after [New] and safe for concurrent use. Calls block until the answer is read whole or their
// context ends; a call whose context has no deadline ends after [DefaultTimeout] (checks on demand: [ProbeTimeout]), so
// none waits for ever. Nothing is retried: a caller that wants a second attempt makes one. Bodies are read up to a
// limit ([MaxBody]); a larger one is an error, never a truncated value.
//
// There are two families of errors. Where the service answered and refused, the error is a [*statussync.Error] with
// the answer's code; a [*Problem] in its chain holds the HTTP status and the request id. Where no answer of the service
// came at all (nobody listens, the name is unknown, TLS fails, time is up, something else answers at that address), the
// error matches [ErrUnreachable]. When the caller's own context ended, the error is that context's.
//
// [Client.Subscribe] is one goroutine's loop, the caller's: events come in the order of the service's journal, one
// after the other, and while the caller works on one no other is read. What it cannot take in time waits at the
// service. Between reconnects it resumes after the last event that the caller was given, so an entry is delivered once;
// where the service can't continue from there, the caller is told by an [statussync.EventResync] event and is given
// the current statuses anew. Nothing is lost silently: the order and number of entries are checked against what the
// service promises, and a breach is a resync as well ([ResyncGap]).
package client
