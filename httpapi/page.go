package httpapi

import (
	"net/http"
	"strings"
)

// Page is what people see in a browser. It is asked for what no route serves, so it can't take a path from the API.
type Page interface {
	http.Handler
	// Has reports whether a path, below the base path, is the page's. It doesn't block.
	Has(path string) bool
}

// acceptsHTML reports whether who asks takes a web page: who says nothing does.
func acceptsHTML(r *http.Request) bool {
	values := r.Header.Values("Accept")
	for _, v := range values {
		for _, part := range strings.Split(v, ",") {
			kind, params, _ := strings.Cut(strings.TrimSpace(part), ";")
			switch strings.ToLower(strings.TrimSpace(kind)) {
			case "text/html", "text/*", "*/*":
				if q := strings.ReplaceAll(params, " ", ""); q != "q=0" && q != "q=0.0" {
					return true
				}
			}
		}
	}
	return len(values) == 0
}
