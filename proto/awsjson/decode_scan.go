package awsjson

import (
	"bytes"
	"unicode/utf16"
	"unicode/utf8"
)

// The scanner: RFC 8259, strictly.

// peek returns the next byte, 0 at the end.
func (s *decoding) peek() byte {
	if s.pos < len(s.body) {
		return s.body[s.pos]
	}
	return 0
}

func (s *decoding) space() {
	for s.pos < len(s.body) {
		switch s.body[s.pos] {
		case ' ', '\t', '\n', '\r':
			s.pos++
		default:
			return
		}
	}
}

func (s *decoding) syntax() *SerializationError {
	if s.pos >= len(s.body) {
		return s.fail("Unexpected end of the request.")
	}
	return s.fail("The request is not valid JSON.")
}

// object reads an object: value is called for each member, with pos at its
// value. name is valid until then only. pos is at the brace.
func (s *decoding) object(value func(name []byte) error) error {
	return s.collection('}', func() error {
		if s.peek() != '"' {
			return s.syntax()
		}
		name, err := s.text()
		if err != nil {
			return err
		}
		s.space()
		if s.peek() != ':' {
			return s.syntax()
		}
		s.pos++
		s.space()
		return value(name)
	})
}

// array reads a list in the same way. pos is at the bracket.
func (s *decoding) array(value func() error) error { return s.collection(']', value) }

func (s *decoding) collection(end byte, element func() error) error {
	if err := s.enter(); err != nil {
		return err
	}
	s.pos++
	s.space()
	if s.peek() == end {
		s.pos++
		s.depth--
		return nil
	}
	for {
		if err := element(); err != nil {
			return err
		}
		s.space()
		switch s.peek() {
		case ',':
			s.pos++
			s.space()
		case end:
			s.pos++
			s.depth--
			return nil
		default:
			return s.syntax()
		}
	}
}

// names are those of an object's members that nobody knows.
type names map[string]struct{}

// skipMember reads a member that nobody knows, which has a name of its own.
func (s *decoding) skipMember(seen *names, name []byte) error {
	if err := s.count(); err != nil {
		return err
	}
	if *seen == nil {
		*seen = make(names)
	}
	if _, ok := (*seen)[string(name)]; ok {
		return s.twice()
	}
	(*seen)[string(name)] = struct{}{}
	return s.skip()
}

// skip reads a value that nobody wants.
func (s *decoding) skip() error {
	switch s.peek() {
	case '{':
		var seen names
		return s.object(func(name []byte) error { return s.skipMember(&seen, name) })
	case '[':
		return s.array(s.skip)
	case '"':
		_, err := s.text()
		return err
	case 't':
		return s.literal("true")
	case 'f':
		return s.literal("false")
	case 'n':
		return s.literal("null")
	default:
		_, err := s.number()
		return err
	}
}

func (s *decoding) literal(word string) error {
	if !bytes.HasPrefix(s.body[s.pos:], []byte(word)) {
		return s.syntax()
	}
	s.pos += len(word)
	return nil
}

// number reads a number's text: a part of the body.
func (s *decoding) number() ([]byte, error) {
	start := s.pos
	digits := func() bool {
		from := s.pos
		for '0' <= s.peek() && s.peek() <= '9' {
			s.pos++
		}
		return s.pos > from
	}
	if s.peek() == '-' {
		s.pos++
	}
	zero := s.peek() == '0'
	from := s.pos
	if !digits() || zero && s.pos > from+1 {
		return nil, s.syntax()
	}
	if s.peek() == '.' {
		if s.pos++; !digits() {
			return nil, s.syntax()
		}
	}
	if c := s.peek(); c == 'e' || c == 'E' {
		s.pos++
		if c := s.peek(); c == '+' || c == '-' {
			s.pos++
		}
		if !digits() {
			return nil, s.syntax()
		}
	}
	return s.body[start:s.pos], nil
}

// text reads a string: a part of the body, or where it has escapes a slice of
// its own. pos is at the quote.
func (s *decoding) text() ([]byte, error) {
	s.pos++
	start, high := s.pos, false
	for s.pos < len(s.body) {
		switch c := s.body[s.pos]; {
		case c == '"':
			t := s.body[start:s.pos]
			if high && !utf8.Valid(t) {
				return nil, s.fail("The request is not valid UTF-8.")
			}
			s.pos++
			return t, nil
		case c == '\\':
			return s.escaped(start)
		case c < 0x20:
			return nil, s.syntax()
		case c >= utf8.RuneSelf:
			high = true
		}
		s.pos++
	}
	return nil, s.syntax()
}

// plain reads a string without escapes, for values that are base64: what it does
// not look at, no base64 holds.
func (s *decoding) plain() ([]byte, bool) {
	n := bytes.IndexByte(s.body[s.pos+1:], '"')
	if n < 0 {
		return nil, false
	}
	t := s.body[s.pos+1 : s.pos+1+n]
	if bytes.IndexByte(t, '\\') >= 0 {
		return nil, false
	}
	s.pos += n + 2
	return t, true
}

// escaped goes on with a string in which an escape was found.
func (s *decoding) escaped(start int) ([]byte, error) {
	end := bytes.IndexByte(s.body[s.pos:], '"') // at least so far
	if end < 0 {
		s.pos = len(s.body)
		return nil, s.syntax()
	}
	t := append(make([]byte, 0, s.pos-start+end), s.body[start:s.pos]...)
	for s.pos < len(s.body) {
		c := s.body[s.pos]
		s.pos++
		switch {
		case c == '"':
			if !utf8.Valid(t) {
				return nil, s.fail("The request is not valid UTF-8.")
			}
			return t, nil
		case c < 0x20:
			return nil, s.syntax()
		case c != '\\':
			t = append(t, c)
			continue
		}
		r, ok := s.escape()
		if !ok {
			return nil, s.syntax()
		}
		t = utf8.AppendRune(t, r)
	}
	return nil, s.syntax()
}

// escape reads what follows a backslash. Half a surrogate pair is no
// character, and is refused.
func (s *decoding) escape() (rune, bool) {
	c := s.peek()
	s.pos++
	switch c {
	case '"', '\\', '/':
		return rune(c), true
	case 'b':
		return '\b', true
	case 'f':
		return '\f', true
	case 'n':
		return '\n', true
	case 'r':
		return '\r', true
	case 't':
		return '\t', true
	case 'u':
		r, ok := s.hex4()
		if !ok || !utf16.IsSurrogate(r) {
			return r, ok
		}
		if !bytes.HasPrefix(s.body[s.pos:], []byte(`\u`)) {
			return 0, false
		}
		s.pos += 2
		low, ok := s.hex4()
		pair := utf16.DecodeRune(r, low)
		return pair, ok && pair != utf8.RuneError
	}
	return 0, false
}

func (s *decoding) hex4() (rune, bool) {
	if len(s.body)-s.pos < 4 {
		s.pos = len(s.body)
		return 0, false
	}
	var r rune
	for _, c := range s.body[s.pos : s.pos+4] {
		switch {
		case '0' <= c && c <= '9':
			r = r<<4 | rune(c-'0')
		case 'a' <= c && c <= 'f':
			r = r<<4 | rune(c-'a'+10)
		case 'A' <= c && c <= 'F':
			r = r<<4 | rune(c-'A'+10)
		default:
			return 0, false
		}
	}
	s.pos += 4
	return r, true
}
