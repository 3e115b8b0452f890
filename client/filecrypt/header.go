package filecrypt

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"unicode/utf8"
)

// magic is the first line of a file. The digit is the format's version.
const magic = "keyhold-file v1\n"

// Limits of a header, in bytes. They are the service's.
const (
	maxDataKeyBytes = 6144 // of the encrypted data key
	maxContextBytes = 8192 // of all names and values
)

// Errors of a header. They carry no secret: the header has none.
var (
	// ErrFormat means that this is no file of this package, or of a version
	// that it does not know.
	ErrFormat = errors.New("not a file that Keyhold encrypted")

	errHeader = fmt.Errorf("%w: its header is damaged", ErrFormat)
)

// header is what stands in front of the stream.
type header struct {
	dataKey []byte // encrypted by the service
	context map[string]string
}

// marshal returns the header's one form: pairs in the order of their names'
// bytes.
func (h *header) marshal() ([]byte, error) {
	if n := len(h.dataKey); n == 0 || n > maxDataKeyBytes {
		return nil, fmt.Errorf("the encrypted data key has %d bytes; 1 to %d fit into a header", n, maxDataKeyBytes)
	}
	b := appendPart([]byte(magic), h.dataKey)
	total := 0
	for name, value := range h.context {
		total += len(name) + len(value)
		if !utf8.ValidString(name) || !utf8.ValidString(value) {
			return nil, errors.New("the encryption context is not UTF-8")
		}
	}
	if total > maxContextBytes {
		return nil, fmt.Errorf("the encryption context has %d bytes; the limit is %d", total, maxContextBytes)
	}
	// Names differ and one at most is empty: there are at most 8,193 pairs.
	b = binary.BigEndian.AppendUint16(b, uint16(len(h.context)))
	for _, name := range slices.Sorted(maps.Keys(h.context)) {
		b = appendPart(b, []byte(name))
		b = appendPart(b, []byte(h.context[name]))
	}
	return b, nil
}

// appendPart appends part behind its length.
func appendPart(b, part []byte) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(part))), part...)
}

// readHeader reads a header, and not a byte behind it. It accepts what marshal
// makes and nothing else. raw is what it read. r is a source, or another reader
// that ends in io.EOF only.
func readHeader(r io.Reader) (h *header, raw []byte, err error) {
	in := headerReader{r: r}
	line := in.take(len(magic))
	switch {
	case in.err != nil && !isEnd(in.err):
		return nil, nil, in.err
	case string(line) == magic:
	case len(line) == len(magic) && string(line[:len(magic)-2]) == magic[:len(magic)-2]:
		return nil, nil, fmt.Errorf("%w by this version of the tool: the file's version is %q", ErrFormat, line[len(magic)-2:len(magic)-1])
	default:
		return nil, nil, ErrFormat
	}
	h = &header{dataKey: in.part(1, maxDataKeyBytes)}
	last, left := "", maxContextBytes
	for i := range in.number() {
		name := string(in.part(0, left))
		left -= len(name)
		value := string(in.part(0, left))
		left -= len(value)
		if in.err == nil && (i > 0 && name <= last || !utf8.ValidString(name) || !utf8.ValidString(value)) {
			in.err = errHeader
		}
		if in.err != nil {
			break
		}
		if h.context == nil {
			h.context = map[string]string{}
		}
		h.context[name] = value
		last = name
	}
	if isEnd(in.err) {
		in.err = errHeader
	}
	if in.err != nil {
		return nil, nil, in.err
	}
	return h, in.raw, nil
}

// isEnd tells whether err, which io.ReadFull returned, says that the input ended.
// An error that wraps one of the two is a failure of the input.
func isEnd(err error) bool {
	return err == io.EOF || err == io.ErrUnexpectedEOF //nolint:errorlint // see above
}

// headerReader collects what it reads. After an error it returns nothing.
type headerReader struct {
	r   io.Reader
	raw []byte
	err error
}

// take reads n bytes. Before an error it returns what there was.
func (in *headerReader) take(n int) []byte {
	if in.err != nil {
		return nil
	}
	start := len(in.raw)
	in.raw = append(in.raw, make([]byte, n)...)
	n, in.err = io.ReadFull(in.r, in.raw[start:])
	return in.raw[start : start+n]
}

// number reads a number of two bytes.
func (in *headerReader) number() int {
	b := in.take(2)
	if in.err != nil {
		return 0
	}
	return int(binary.BigEndian.Uint16(b))
}

// part reads what stands behind its length, which must be from least to most.
func (in *headerReader) part(least, most int) []byte {
	n := in.number()
	if in.err == nil && (n < least || n > most) {
		in.err = errHeader
	}
	return in.take(n)
}
