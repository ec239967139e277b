package mcpconfig

import (
	"cmp"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/agentopia/statussync"
)

// Hide cleans text that a server wrote, or that was made of the entry, and replaces in it what must not be shown by "***";
// at most limit bytes are returned. A value that the text was cut in is replaced, too.
func (e *Entry) Hide(s string, limit int) string {
	// Cleaned first: a character that is not shown could stand within a value.
	s = statussync.CleanText(s, max(limit, len(s)))
	for _, v := range e.Unshown { // the longest first: one value may begin with another
		s = strings.ReplaceAll(s, v, "***")
	}
	if cut, was := strings.CutSuffix(s, "…"); was {
		for _, v := range e.Unshown {
			for n := min(len(v)-1, len(cut)); n >= minSecret; n-- {
				if strings.HasSuffix(cut, v[:n]) {
					return statussync.CleanText(cut[:len(cut)-n]+"***…", limit)
				}
			}
		}
	}
	return statussync.CleanText(s, limit)
}

// telling are names whose values are secrets wherever they stand: options, variables, parameters of a URL.
var telling = regexp.MustCompile(`(?i)(token|secret|passw|passphrase|pwd|api.?key|access.?key|private.?key|auth|credential|bearer|signature|cookie|^-*(key|sig|pat)$)`)

// hideAll notes what of an entry must not be shown, beside what variables were replaced by.
func (x *expander) hideAll(e *Entry) {
	for _, v := range e.Env {
		x.hide(v)
		x.hideURL(v) // such as that of a database, with a password in it
	}
	for _, v := range e.Headers {
		x.hideHeader(v)
	}
	x.hideURL(e.URL)
	next := false // the argument before says that this one is a secret
	for _, a := range e.Args {
		if next {
			x.hideHeader(a)
		}
		next = false
		x.hideURL(a)
		// --token=value, GITHUB_TOKEN=value (docker -e), Authorization: value (mcp-remote --header)
		if i := strings.IndexAny(a, "=:"); i > 0 && !strings.Contains(a[:i], "/") {
			if telling.MatchString(a[:i]) {
				x.hideHeader(strings.TrimSpace(a[i+1:]))
			}
		} else if strings.HasPrefix(a, "-") {
			next = telling.MatchString(a)
		}
	}
	slices.SortStableFunc(x.secrets, func(a, b string) int { return cmp.Compare(len(b), len(a)) })
}

// hideHeader hides a header's value, and what stands in it behind a scheme ("Bearer …") or a cookie's name.
func (x *expander) hideHeader(v string) {
	x.hide(v)
	fields := strings.Fields(v)
	for i, f := range fields {
		f = strings.TrimRight(f, ";,")
		if i > 0 || len(fields) == 1 {
			x.hide(f)
		}
		if _, after, ok := strings.Cut(f, "="); ok {
			x.hide(strings.Trim(after, `"`))
		}
	}
}

// hideURL hides the password, and the values of the query, of what is a URL.
func (x *expander) hideURL(s string) {
	if !strings.Contains(s, "://") {
		return
	}
	u, err := url.Parse(s)
	if err != nil {
		return
	}
	if pass, ok := u.User.Password(); ok {
		x.hide(pass)
	} else if u.User != nil {
		x.hide(u.User.Username())
	}
	for name, values := range u.Query() {
		for _, v := range values {
			// What is no name of a secret may be a word that tells nothing, and would be missed in messages.
			if telling.MatchString(name) || len(v) >= 16 {
				x.hide(v)
			}
		}
	}
}

// RemoteEntry is the entry of one address that was given without a file. The address may hold a secret in its query.
func RemoteEntry(name, source, address string, t statussync.Transport) Entry {
	e := Entry{Name: name, Source: source, Transport: t, URL: address}
	x := &expander{o: &Options{}}
	x.hideAll(&e)
	e.Unshown = x.secrets
	return e
}
