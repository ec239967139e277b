package mcpprobe

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/agentopia/statussync"
)

// challenge says in words what login an answer asks for: the schemes of its WWW-Authenticate headers and, of the first
// that has them, RFC 9728's resource_metadata, the scope and the error of RFC 6750. Empty where it asks for none.
func challenge(h http.Header) string {
	var schemes []string
	var metadata, scope, fault string
	for i, v := range h.Values("WWW-Authenticate") {
		if i == 4 {
			break
		}
		for len(v) > 0 && len(schemes) < 4 {
			v = strings.TrimLeft(v, ", \t")
			end := strings.IndexAny(v, " ,\t")
			if end < 0 {
				end = len(v)
			}
			if s := clean(v[:end], 32); s != "" && !strings.Contains(s, "=") {
				schemes = append(schemes, s)
			}
			var params map[string]string
			params, v = authParams(v[end:])
			set := func(to *string, name string) {
				if *to == "" {
					*to = params[name]
				}
			}
			set(&metadata, "resource_metadata")
			set(&scope, "scope")
			set(&fault, "error")
		}
	}
	var b strings.Builder
	if len(schemes) > 0 {
		b.WriteString("wants " + strings.Join(schemes, " or "))
	}
	part := func(label, value string) {
		if value = clean(value, 160); value != "" {
			if b.Len() > 0 {
				b.WriteString("; ")
			}
			b.WriteString(label + value)
		}
	}
	part("resource metadata at ", shownURL(metadata))
	part("scope ", scope)
	part("it says ", fault)
	return b.String()
}

// shownURL is a URL without what may be secret in it, "" where it is none.
func shownURL(s string) string {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http") {
		return ""
	}
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
}

// authParams reads the parameters of one challenge (RFC 9110 §11.2) and returns what is left: the next challenge.
func authParams(s string) (params map[string]string, rest string) {
	params = make(map[string]string)
	for len(params) < 16 {
		s = strings.TrimLeft(s, ", \t")
		eq := strings.IndexByte(s, '=')
		if eq < 0 || strings.ContainsAny(s[:eq], " ,\t\"") {
			// No parameter: the next scheme, or a token68, which nobody needs.
			return params, s
		}
		name := strings.ToLower(s[:eq])
		s = s[eq+1:]
		if strings.HasPrefix(s, `"`) {
			var b strings.Builder
			i := 1
			for ; i < len(s) && s[i] != '"'; i++ {
				if s[i] == '\\' && i+1 < len(s) {
					i++
				}
				b.WriteByte(s[i])
			}
			params[name], s = b.String(), s[min(i+1, len(s)):]
			continue
		}
		end := strings.IndexAny(s, ", \t")
		if end < 0 {
			end = len(s)
		}
		params[name], s = s[:end], s[end:]
	}
	return params, ""
}

func clean(s string, limit int) string { return statussync.CleanText(s, limit) }
