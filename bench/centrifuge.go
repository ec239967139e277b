package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/centrifugal/centrifuge"
)

// asCentrifuge is the peer of the fan-out: a server made with the centrifuge library as its documentation shows, which
// publishes messages of the same size to one channel. It keeps no history, as nobody resumes here.
func asCentrifuge([]string) error {
	node, err := centrifuge.New(centrifuge.Config{LogLevel: centrifuge.LogLevelNone})
	if err != nil {
		return err
	}
	node.OnConnecting(func(context.Context, centrifuge.ConnectEvent) (centrifuge.ConnectReply, error) {
		return centrifuge.ConnectReply{Credentials: &centrifuge.Credentials{UserID: "bench"}}, nil
	})
	node.OnConnect(func(c *centrifuge.Client) {
		c.OnSubscribe(func(_ centrifuge.SubscribeEvent, cb centrifuge.SubscribeCallback) {
			cb(centrifuge.SubscribeReply{}, nil)
		})
	})
	if err := node.Run(); err != nil {
		return err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("/connection/websocket", centrifuge.NewWebsocketHandler(node, centrifuge.WebsocketConfig{WriteTimeout: 20 * time.Second, CheckOrigin: func(*http.Request) bool { return true }}))
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = srv.Serve(ln) }()
	err = serveCommands(ln.Addr().String(), func(q command) (answer, error) {
		if q.Op != "updates" {
			return answer{}, fmt.Errorf("no such command: %q", q.Op)
		}
		began := time.Now()
		for i := range q.N {
			if q.Rate > 0 {
				if wait := time.Until(began.Add(time.Duration(float64(i) / q.Rate * 1e9))); wait > 0 {
					time.Sleep(wait)
				}
			}
			head := fmt.Sprintf(`{"ns":"ns=%d;","x":"`, time.Now().UnixNano())
			pad := max(0, int(q.Total)-len(head)-2)
			if _, err := node.Publish("updates", []byte(head+strings.Repeat("x", pad)+`"}`)); err != nil {
				return answer{}, err
			}
		}
		return answer{Seconds: time.Since(began).Seconds()}, nil
	})
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return errors.Join(err, srv.Close(), node.Shutdown(ctx))
}
