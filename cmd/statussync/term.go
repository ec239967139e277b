package main

import (
	"encoding/json"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/agentopia/statussync"
)

// style is an ANSI "select graphic rendition" parameter; empty: plain.
type style string

const (
	plain  style = ""
	bold   style = "1"
	dim    style = "2"
	red    style = "31"
	green  style = "32"
	yellow style = "33"
	blue   style = "34"
	grey   style = "90"
	hatch  style = "2;90" // a terminal's nearest to hatched grey
)

// availabilityStyle is the colour of the user's layer (docs/domain.md).
func availabilityStyle(a statussync.Availability) style {
	switch a {
	case statussync.Unavailable:
		return red
	case statussync.Available:
		return green
	case statussync.Limited:
		return yellow
	case statussync.Changing:
		return blue
	case statussync.Off:
		return grey
	}
	return hatch
}

// printer writes text; styles only where colour is on.
type printer struct {
	w      io.Writer
	colour bool
}

func (p printer) paint(s string, st style) string {
	if !p.colour || st == plain || s == "" {
		return s
	}
	return "\x1b[" + string(st) + "m" + s + "\x1b[0m"
}

func (p printer) line(parts ...string) error {
	_, err := io.WriteString(p.w, strings.Join(parts, "")+"\n")
	return err
}

// json writes v indented, as the API has it.
func (p printer) json(v any) error {
	e := json.NewEncoder(p.w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// clean makes untrusted text fit for one cell of a terminal; "" becomes "-".
func clean(s string) string {
	if s = statussync.CleanText(s, statussync.MaxNameText); s == "" {
		return "-"
	}
	return s
}

// text is clean for longer text; "" stays "".
func text(s string) string { return statussync.CleanText(s, 2*statussync.MaxErrorText) }

// cell is one field of a table.
type cell struct {
	text  string
	style style
	right bool // aligned to the right: numbers
}

func txt(s string) cell          { return cell{text: s} }
func num(s string) cell          { return cell{text: s, right: true} }
func in(s string, st style) cell { return cell{text: s, style: st} }

// table writes rows under headings, columns aligned by display width and two spaces apart. The last column is not
// padded.
func (p printer) table(head []string, rows [][]cell) error {
	widths := make([]int, len(head))
	for i, h := range head {
		widths[i] = width(h)
	}
	for _, r := range rows {
		for i := range r {
			widths[i] = max(widths[i], width(r[i].text))
		}
	}
	first := make([]cell, len(head))
	for i, h := range head {
		first[i] = cell{text: h, style: bold, right: len(rows) > 0 && rows[0][i].right}
	}
	var b strings.Builder
	for _, r := range append([][]cell{first}, rows...) {
		for i, c := range r {
			pad := strings.Repeat(" ", widths[i]-width(c.text))
			if c.right {
				b.WriteString(pad)
			}
			b.WriteString(p.paint(c.text, c.style))
			if i == len(r)-1 {
				break
			}
			if !c.right {
				b.WriteString(pad)
			}
			b.WriteString("  ")
		}
		b.WriteByte('\n')
	}
	_, err := io.WriteString(p.w, b.String())
	return err
}

// facts writes names and values in two columns, indented; pairs with an empty value are left out.
func (p printer) facts(pairs ...string) error {
	w := 0
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			w = max(w, width(pairs[i]))
		}
	}
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] == "" {
			continue
		}
		if err := p.line("  ", p.paint(pairs[i], dim), strings.Repeat(" ", w-width(pairs[i])+2), pairs[i+1]); err != nil {
			return err
		}
	}
	return nil
}

// width is how many columns of a terminal s takes: none for combining marks, two for East Asian wide characters and
// emoji (Unicode Standard Annex #11), one for the rest. s must have been cleaned: no control or formatting characters.
func width(s string) int {
	n := 0
	for _, r := range s {
		switch {
		case r < 0x300:
			n++
		case unicode.In(r, unicode.Mn, unicode.Me):
		case wide(r):
			n += 2
		default:
			n++
		}
	}
	return n
}

// wide reports whether r is of East Asian width W or F. The ranges are whole blocks: the few unassigned or narrow
// characters in them are not worth a larger table.
func wide(r rune) bool {
	switch {
	case r < 0x1100:
		return false
	case r <= 0x115F, // Hangul Jamo
		r == 0x231A, r == 0x231B, r == 0x2329, r == 0x232A, r >= 0x23E9 && r <= 0x23EC, r == 0x23F0, r == 0x23F3,
		r == 0x25FD, r == 0x25FE, r == 0x2614, r == 0x2615, r >= 0x2648 && r <= 0x2653, r == 0x267F, r == 0x2693,
		r == 0x26A1, r == 0x26AA, r == 0x26AB, r == 0x26BD, r == 0x26BE, r == 0x26C4, r == 0x26C5, r == 0x26CE,
		r == 0x26D4, r == 0x26EA, r == 0x26F2, r == 0x26F3, r == 0x26F5, r == 0x26FA, r == 0x26FD, r == 0x2705,
		r == 0x270A, r == 0x270B, r == 0x2728, r == 0x274C, r == 0x274E, r >= 0x2753 && r <= 0x2755, r == 0x2757,
		r >= 0x2795 && r <= 0x2797, r == 0x27B0, r == 0x27BF, r == 0x2B1B, r == 0x2B1C, r == 0x2B50, r == 0x2B55,
		r >= 0x2E80 && r <= 0x303E,   // CJK radicals, symbols and punctuation
		r >= 0x3041 && r <= 0xA4CF,   // kana, CJK, Yi
		r >= 0xA960 && r <= 0xA97F,   // Hangul Jamo Extended-A
		r >= 0xAC00 && r <= 0xD7A3,   // Hangul syllables
		r >= 0xF900 && r <= 0xFAFF,   // CJK compatibility
		r >= 0xFE10 && r <= 0xFE19,   // vertical forms
		r >= 0xFE30 && r <= 0xFE6F,   // CJK compatibility forms
		r >= 0xFF00 && r <= 0xFF60,   // full-width forms
		r >= 0xFFE0 && r <= 0xFFE6,   //
		r >= 0x16FE0 && r <= 0x18DFF, // Tangut and others
		r >= 0x1B000 && r <= 0x1B2FF, // kana supplement
		r == 0x1F004, r == 0x1F0CF, r == 0x1F18E, r >= 0x1F191 && r <= 0x1F19A,
		r >= 0x1F1E6 && r <= 0x1F1FF, // regional indicators
		r >= 0x1F200 && r <= 0x1F64F, r >= 0x1F680 && r <= 0x1F6FF, r >= 0x1F7E0 && r <= 0x1F7F0,
		r >= 0x1F900 && r <= 0x1F9FF, r >= 0x1FA70 && r <= 0x1FAFF,
		r >= 0x20000 && r <= 0x3FFFD: // CJK extensions
		return true
	}
	return false
}

// ago is an age for people: two units at most.
func ago(d time.Duration) string {
	d = max(0, d)
	s := int64(d / time.Second)
	two := func(a int64, ua string, b int64, ub string) string {
		out := strconv.FormatInt(a, 10) + ua
		if b > 0 {
			out += strconv.FormatInt(b, 10) + ub
		}
		return out
	}
	switch {
	case s < 60:
		return two(s, "s", 0, "")
	case s < 3600:
		return two(s/60, "m", s%60, "s")
	case s < 86400:
		return two(s/3600, "h", s%3600/60, "m")
	}
	return two(s/86400, "d", s%86400/3600, "h")
}

// since is ago of a moment; "-" where there is none.
func since(t, now time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return ago(now.Sub(t))
}

// seconds is ago of a number of the wire.
func seconds(s float64) string { return ago(time.Duration(s * float64(time.Second))) }

// latency is a probe's latency for people; "-" where there is none.
func latency(ms float64) string {
	switch {
	case ms <= 0:
		return "-"
	case ms < 10:
		return strconv.FormatFloat(ms, 'f', 1, 64) + "ms"
	case ms < 1000:
		return strconv.FormatFloat(ms, 'f', 0, 64) + "ms"
	}
	return strconv.FormatFloat(ms/1000, 'f', 1, 64) + "s"
}

// size is a number of bytes for people.
func size(n int64) string {
	const unit = 1024
	f, i := float64(n), 0
	for f >= unit && i < 4 {
		f /= unit
		i++
	}
	prec := 1
	if i == 0 || f >= 100 {
		prec = 0
	}
	return strconv.FormatFloat(f, 'f', prec, 64) + [...]string{"B", "KiB", "MiB", "GiB", "TiB"}[i]
}
