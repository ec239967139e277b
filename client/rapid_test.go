package client

import (
	"net/http"
	"net/http/httptest"

	"pgregory.net/rapid"
)

// newRapid is newTest for one draw.
func newRapid(t *rapid.T, h http.HandlerFunc) *Client {
	srv := httptest.NewServer(h)
	c, err := New(Options{BaseURL: srv.URL, Token: "secret-token"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.CloseIdle()
		srv.Close()
	})
	return c
}
