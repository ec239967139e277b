package fleetsim_test

import (
	"context"
	"fmt"
	"net/http"

	"github.com/agentopia/statussync/fleetsim"
)

func Example() {
	fleet, err := fleetsim.New(fleetsim.Options{Environments: 2, Servers: 4})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- fleet.Run(ctx) }()

	weather := fleet.Servers()[0]
	ask := func() {
		c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		res, err := c.Get(weather.ProbeURL)
		if err != nil {
			fmt.Println("nobody answers")
			return
		}
		res.Body.Close()
		fmt.Println(res.Status)
	}
	ask()
	fleet.Status(weather.ID, 503)
	ask()
	fleet.Heal(weather.ID)
	fleet.Crash(weather.ID, 137)
	ask()
	truth, _ := fleet.Truth(weather.ID)
	fmt.Println(truth.State, truth.ExitCode)

	stop()
	fmt.Println("stopped:", <-done)
	// Output:
	// 200 OK
	// 503 Service Unavailable
	// nobody answers
	// exited 137
	// stopped: <nil>
}
