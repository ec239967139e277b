package main

import (
	"crypto/tls"
	"errors"
	"os"

	"github.com/agentopia/statussync/client"
)

// maxCA bounds a file of authorities, in bytes: a whole system's is some 200 KiB.
const maxCA = 4 << 20

// tlsConfig is what --ca asks for; nil: the machine's own authorities.
func (c *cli) tlsConfig() (*tls.Config, error) {
	if c.ca == "" {
		return nil, nil
	}
	st, err := os.Stat(c.ca)
	if err == nil && st.Size() > maxCA {
		return nil, usagef("--ca %s is larger than 4 MiB", text(c.ca))
	}
	pem, err := os.ReadFile(c.ca)
	if err != nil {
		var pe *os.PathError
		if errors.As(err, &pe) {
			err = pe.Err
		}
		return nil, usagef("--ca %s cannot be read: %v", text(c.ca), err)
	}
	conf, err := client.TrustCA(pem)
	if err != nil {
		return nil, usagef("--ca %s holds no certificate in PEM form", text(c.ca))
	}
	return conf, nil
}
