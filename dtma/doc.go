// Package dtma speaks the wire of DTMA, the Droplet Tool Management Agent, and of agents that do as it does: it decodes
// heartbeats and answers of GET /status (docs/protocols.md §1), and asks agents.
//
// Decoding is pure and safe for concurrent use. Nothing of what is decoded points into the input. All text is cleaned
// and cut (statussync.CleanText): it comes from strangers.
package dtma
