package statussync

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// CleanText makes untrusted text fit to be stored and shown: invalid UTF-8, control, bidirectional and other invisible
// formatting characters are dropped, line breaks and tabs become spaces, and what is longer than limit bytes is cut at
// a character and ends in "…". It does not escape for any output format; who shows it does.
func CleanText(s string, limit int) string {
	clean := true
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < 0x20 || c >= 0x7f {
			clean = false
			break
		}
	}
	if !clean {
		s = strings.Map(func(r rune) rune {
			switch {
			case r == '\n' || r == '\r' || r == '\t':
				return ' '
			case r == utf8.RuneError, unicode.IsControl(r), unicode.Is(unicode.Cf, r), unicode.Is(unicode.Co, r),
				r == '\u2028', r == '\u2029':
				return -1
			}
			return r
		}, s)
		s = strings.TrimSpace(s)
	}
	if len(s) <= limit {
		return s
	}
	const ellipsis = "…"
	if limit <= len(ellipsis) {
		return ""
	}
	cut := limit - len(ellipsis)
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + ellipsis
}

// Lengths to which untrusted text is cut where it enters, in bytes.
const (
	MaxErrorText = 500 // last_error, details
	MaxWordText  = 64  // container and record words, causes, versions
	MaxNameText  = 256 // names, images
)
