// Package e2e looks at the real binary from outside: it starts it as a process on a real configuration and a real data
// folder, and speaks to it as agents, browsers, command lines and existing clients do. It holds tests only.
//
// Its clients and shapes are its own, written from docs/protocols.md, so that a mistake that the service and its own
// client share can't hide. Where the tests themselves run under the race detector the binary is built with it too, and a
// race in its log is a failure.
//
// The environment variable E2E_FULL=1 makes the long forms run: the loads of the full length, and the demo until every
// kind of fault was seen. -short makes the shortest. The tests need Linux: they look into /proc, and break file systems.
package e2e
