package hub

import "context"

// Ping asks the hub a question that needs no answer but one: it waits for the append under way and goes through writer and
// reader, like everything that is told. It returns nil when the hub has answered, else when ctx ends (its error) or the hub
// stops (CodeUnavailable). A hub that is stuck anywhere on that way does not answer. It changes and stores nothing.
func (h *Hub) Ping(ctx context.Context) error {
	return h.ask(ctx, func(*writer) func() { return func() {} })
}
