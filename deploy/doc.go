// Package deploy holds what runs the service elsewhere than at a developer's: the systemd unit, container images, the Helm
// chart, Prometheus' rules and Grafana's dashboard, and how releases are made. Go code is only in its tests, which hold
// these files against the tools that will read them and against the program itself.
//
// deploy/tools is a module of its own: the tools that the tests build, so that the service's go.mod stays clean.
package deploy
