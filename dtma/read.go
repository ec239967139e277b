package dtma

import (
	"strconv"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/agentopia/statussync"
)

// maxDepth is how deep objects and lists may be nested. Real reports have four levels; runtime_details is free.
const maxDepth = 64

// reader reads JSON (RFC 8259) from a slice, strictly and without building a tree. After an error it must not be used
// any more. It accepts what encoding/json's Valid accepts, except for nesting deeper than maxDepth.
type reader struct {
	b     []byte
	i     int
	depth int
}

func (r *reader) syntax(what string) error {
	return statussync.Invalid("body", "is not JSON: "+what+" at byte "+strconv.Itoa(r.i))
}

// peek skips space and returns the byte that begins the next token, 0 at the end.
func (r *reader) peek() byte {
	for r.i < len(r.b) {
		switch c := r.b[r.i]; c {
		case ' ', '\t', '\n', '\r':
			r.i++
		default:
			return c
		}
	}
	return 0
}

func (r *reader) enter() error {
	if r.depth++; r.depth > maxDepth {
		return statussync.Invalid("body", "is nested deeper than "+strconv.Itoa(maxDepth)+" levels at byte "+strconv.Itoa(r.i))
	}
	r.i++
	return nil
}

// object reads an object whose "{" is next, and calls field for every key with the reader at its value, which field must
// read. The key is only valid until field reads.
func (r *reader) object(field func(key []byte) error) error {
	if err := r.enter(); err != nil {
		return err
	}
	if r.peek() == '}' {
		r.i++
		r.depth--
		return nil
	}
	for {
		if r.peek() != '"' {
			return r.syntax("expected a key")
		}
		key, err := r.str()
		if err != nil {
			return err
		}
		if r.peek() != ':' {
			return r.syntax(`expected ":"`)
		}
		r.i++
		if err := field(key); err != nil {
			return err
		}
		switch r.peek() {
		case ',':
			r.i++
		case '}':
			r.i++
			r.depth--
			return nil
		default:
			return r.syntax(`expected "," or "}"`)
		}
	}
}

// list reads a list whose "[" is next, and calls item for every element with the reader at it, which item must read.
func (r *reader) list(item func() error) error {
	if err := r.enter(); err != nil {
		return err
	}
	if r.peek() == ']' {
		r.i++
		r.depth--
		return nil
	}
	for {
		if err := item(); err != nil {
			return err
		}
		switch r.peek() {
		case ',':
			r.i++
		case ']':
			r.i++
			r.depth--
			return nil
		default:
			return r.syntax(`expected "," or "]"`)
		}
	}
}

// skip reads any value.
func (r *reader) skip() error {
	switch c := r.peek(); c {
	case '{':
		return r.object(func([]byte) error { return r.skip() })
	case '[':
		return r.list(r.skip)
	case '"':
		_, _, err := r.raw()
		return err
	case 't':
		return r.literal("true")
	case 'f':
		return r.literal("false")
	case 'n':
		return r.literal("null")
	case 0:
		if r.i >= len(r.b) {
			return r.syntax("it ends too early")
		}
	default:
		if c == '-' || (c >= '0' && c <= '9') {
			_, err := r.number()
			return err
		}
	}
	return r.syntax("unexpected character")
}

func (r *reader) literal(word string) error {
	if len(r.b)-r.i < len(word) || string(r.b[r.i:r.i+len(word)]) != word {
		return r.syntax("unexpected character")
	}
	r.i += len(word)
	return nil
}

// number reads a number and returns its text.
func (r *reader) number() ([]byte, error) {
	start := r.i
	digits := func() bool {
		from := r.i
		for r.i < len(r.b) && r.b[r.i] >= '0' && r.b[r.i] <= '9' {
			r.i++
		}
		return r.i > from
	}
	if r.b[r.i] == '-' {
		r.i++
	}
	if r.i < len(r.b) && r.b[r.i] == '0' {
		r.i++
	} else if !digits() {
		return nil, r.syntax("bad number")
	}
	if r.i < len(r.b) && r.b[r.i] == '.' {
		r.i++
		if !digits() {
			return nil, r.syntax("bad number")
		}
	}
	if r.i < len(r.b) && (r.b[r.i] == 'e' || r.b[r.i] == 'E') {
		r.i++
		if r.i < len(r.b) && (r.b[r.i] == '+' || r.b[r.i] == '-') {
			r.i++
		}
		if !digits() {
			return nil, r.syntax("bad number")
		}
	}
	return r.b[start:r.i], nil
}

// raw reads a string and returns what stands between its quotes, escapes and all, and whether there are any.
func (r *reader) raw() (s []byte, escaped bool, err error) {
	r.i++
	start := r.i
	for r.i < len(r.b) {
		switch c := r.b[r.i]; {
		case c == '"':
			r.i++
			return r.b[start : r.i-1], escaped, nil
		case c < 0x20:
			return nil, false, r.syntax("control character in a string")
		case c == '\\':
			escaped = true
			if r.i++; r.i >= len(r.b) {
				return nil, false, r.syntax("it ends too early")
			}
			switch r.b[r.i] {
			case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
			case 'u':
				if hex4(r.b[r.i+1:]) < 0 {
					return nil, false, r.syntax("bad escape")
				}
				r.i += 4
			default:
				return nil, false, r.syntax("bad escape")
			}
		}
		r.i++
	}
	return nil, false, r.syntax("it ends too early")
}

// str reads a string. Without escapes, which is the rule, the result is part of the input; it must be copied to be kept.
func (r *reader) str() ([]byte, error) {
	s, escaped, err := r.raw()
	if escaped && err == nil {
		s = unescape(s)
	}
	return s, err
}

// unescape resolves the escapes of a string that raw has checked. A lone surrogate becomes U+FFFD.
func unescape(s []byte) []byte {
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			out = append(out, s[i])
			continue
		}
		i++
		switch s[i] {
		case 'b':
			out = append(out, '\b')
		case 'f':
			out = append(out, '\f')
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		case 'u':
			c := hex4(s[i+1:])
			i += 4
			if utf16.IsSurrogate(c) {
				low := rune(-1)
				if i+2 < len(s) && s[i+1] == '\\' && s[i+2] == 'u' {
					low = hex4(s[i+3:])
				}
				if c = utf16.DecodeRune(c, low); c != utf8.RuneError {
					i += 6
				}
			}
			out = utf8.AppendRune(out, c)
		default:
			out = append(out, s[i])
		}
	}
	return out
}

// hex4 returns the value of the four hexadecimal digits that s begins with, or -1.
func hex4(s []byte) rune {
	if len(s) < 4 {
		return -1
	}
	v := rune(0)
	for _, c := range s[:4] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return -1
		}
		v = v<<4 | rune(c)
	}
	return v
}
