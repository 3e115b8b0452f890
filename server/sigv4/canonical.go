package sigv4

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
)

// Limits of what is made canonical. AWS's own limit for all headers is 16 KiB;
// a request of KMS or XKS needs a tenth of that.
const (
	maxPathBytes          = 2048
	maxQueryBytes         = 16 << 10
	maxQueryParams        = 256
	maxHeaders            = 256 // field lines of a request, signed or not
	maxSignedHeaders      = 64
	maxSignedHeadersBytes = 4096     // the list itself
	maxSignedValueBytes   = 16 << 10 // the values of all signed headers
	maxHostBytes          = 512
)

const upperHex = "0123456789ABCDEF"

// unreserved reports whether c is never percent-encoded ("Create a signed
// request", UriEncode; RFC 3986, 2.3).
func unreserved(c byte) bool {
	return 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z' || '0' <= c && c <= '9' ||
		c == '-' || c == '.' || c == '_' || c == '~'
}

// canonicalPath makes the canonical URI of a path as it was sent, still encoded:
// the path in normal form, each byte of its segments encoded. Services other
// than S3 encode what is encoded already once more.
//
// normal is the path in normal form, without the second encoding: what the
// signature is for. Unless normalize is set, it is the path as it was sent.
func canonicalPath(path string, normalize bool) (canonical, normal string, refusal *Error) {
	if path == "" {
		return "/", "/", nil
	}
	if len(path) > maxPathBytes {
		return "", "", incomplete("The path is longer than " + strconv.Itoa(maxPathBytes) + " bytes.")
	}
	if path[0] != '/' {
		return "", "", incomplete("The request target must be a path that begins with '/'.")
	}
	normal = normalPath(path)
	if normal != path && !normalize {
		return "", "", incomplete("The path must not have empty or dot segments.")
	}
	return encodePath(normal), normal, nil
}

// normalPath removes empty and dot segments (RFC 3986, 5.2.4, and repeated
// slashes). A slash at the end stays.
func normalPath(path string) string {
	if !strings.Contains(path, "//") && !strings.Contains(path, "/.") {
		return path
	}
	var kept []string
	segments := strings.Split(path, "/")
	for _, s := range segments {
		switch s {
		case "", ".":
		case "..":
			kept = kept[:max(0, len(kept)-1)]
		default:
			kept = append(kept, s)
		}
	}
	normal := "/" + strings.Join(kept, "/")
	// "/a/.." and "/a/." are folders.
	if last := segments[len(segments)-1]; len(kept) > 0 && (last == "" || last == "." || last == "..") {
		normal += "/"
	}
	return normal
}

func encodePath(path string) string {
	extra := 0
	for _, c := range []byte(path) {
		if c != '/' && !unreserved(c) {
			extra += 2
		}
	}
	if extra == 0 {
		return path
	}
	b := make([]byte, 0, len(path)+extra)
	for _, c := range []byte(path) {
		if c == '/' || unreserved(c) {
			b = append(b, c)
		} else {
			b = append(b, '%', upperHex[c>>4], upperHex[c&15])
		}
	}
	return string(b)
}

// queryParam is a parameter in canonical encoding: two that are equal so are the
// same parameter, however they were sent.
type queryParam struct{ name, value string }

// parseQuery reads the query as it was sent. `+` is a space, as every reader of
// forms has it, so what is signed is what the door will read. Not like Go's
// url.ParseQuery, nothing is lost: `;` is a byte like others, and what is not
// percent-encoding is refused. Empty parts ("a=1&&b=2") are no parameters.
func parseQuery(raw string) ([]queryParam, *Error) {
	if raw == "" {
		return nil, nil
	}
	if len(raw) > maxQueryBytes {
		return nil, incomplete("The query string is longer than " + strconv.Itoa(maxQueryBytes) + " bytes.")
	}
	var params []queryParam
	for raw != "" {
		var part string
		part, raw, _ = strings.Cut(raw, "&")
		if part == "" {
			continue
		}
		if len(params) == maxQueryParams {
			return nil, incomplete("The query string has more than " + strconv.Itoa(maxQueryParams) + " parameters.")
		}
		name, value, _ := strings.Cut(part, "=")
		n, ok1 := reencode(name)
		v, ok2 := reencode(value)
		if !ok1 || !ok2 {
			return nil, incomplete("Illegal hex character in escape % pattern in the query string.")
		}
		params = append(params, queryParam{n, v})
	}
	return params, nil
}

// reencode turns a name or value of a query into its canonical encoding.
func reencode(s string) (string, bool) {
	i := 0
	for i < len(s) && unreserved(s[i]) {
		i++
	}
	if i == len(s) {
		return s, true
	}
	b := make([]byte, i, len(s)+16)
	copy(b, s)
	for ; i < len(s); i++ {
		c := s[i]
		switch c {
		case '+':
			c = ' '
		case '%':
			if i+2 >= len(s) {
				return "", false
			}
			hi, ok1 := unhex(s[i+1])
			lo, ok2 := unhex(s[i+2])
			if !ok1 || !ok2 {
				return "", false
			}
			c = hi<<4 | lo
			i += 2
		}
		if unreserved(c) {
			b = append(b, c)
		} else {
			b = append(b, '%', upperHex[c>>4], upperHex[c&15])
		}
	}
	return string(b), true
}

func unhex(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}

// decode is the inverse of the canonical encoding.
func decode(s string) string {
	if !strings.Contains(s, "%") {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c == '%' {
			hi, _ := unhex(s[i+1])
			lo, _ := unhex(s[i+2])
			c = hi<<4 | lo
			i += 2
		}
		b = append(b, c)
	}
	return string(b)
}

// appendQuery appends the canonical query: sorted by encoded name, then encoded
// value, without the signature itself. It sorts params.
func appendQuery(b []byte, params []queryParam) []byte {
	slices.SortFunc(params, func(x, y queryParam) int {
		if c := strings.Compare(x.name, y.name); c != 0 {
			return c
		}
		return strings.Compare(x.value, y.value)
	})
	first := true
	for _, p := range params {
		if p.name == querySignature {
			continue
		}
		if !first {
			b = append(b, '&')
		}
		first = false
		b = append(b, p.name...)
		b = append(b, '=')
		b = append(b, p.value...)
	}
	return b
}

// appendHeaders appends the canonical headers of the signed list, each with its
// line feed.
func appendHeaders(b []byte, r *http.Request, signed []string, body *Payload) ([]byte, *Error) {
	start := len(b)
	for _, name := range signed {
		b = append(b, name...)
		b = append(b, ':')
		values, refusal := headerValues(r, name, body)
		if refusal != nil {
			return nil, refusal
		}
		for i, v := range values {
			if i > 0 {
				b = append(b, ',')
			}
			var ok bool
			if b, ok = appendTrimmed(b, v); !ok {
				return nil, incomplete("The value of header " + quote(name) + " has a control character.")
			}
			if len(b)-start > maxSignedValueBytes+maxSignedHeadersBytes {
				return nil, incomplete("The signed headers are longer than " + strconv.Itoa(maxSignedValueBytes) + " bytes.")
			}
		}
		b = append(b, '\n')
	}
	return b, nil
}

// headerValues returns the values of a signed header as they were sent, also of
// those that net/http takes out of the header map.
func headerValues(r *http.Request, name string, body *Payload) ([]string, *Error) {
	switch name {
	case "host", ":authority":
		return []string{r.Host}, nil
	case "transfer-encoding":
		if len(r.TransferEncoding) > 0 {
			return r.TransferEncoding, nil
		}
	}
	values := r.Header[textproto.CanonicalMIMEHeaderKey(name)]
	if len(values) > 0 {
		return values, nil
	}
	if name == "content-length" && body.size >= 0 {
		// Dropped on the way, by a proxy that sends chunks. The length is that of
		// the body, which is signed by its hash in any case.
		return []string{strconv.FormatInt(body.size, 10)}, nil
	}
	return nil, incomplete(quote(name) + " is named as a SignedHeader, but it does not exist in the HTTP request.")
}

// appendTrimmed appends a header's value without white space at its ends, with
// one space for each run of it within. It refuses control characters: a line
// feed would make one header look like two.
func appendTrimmed(b []byte, v string) ([]byte, bool) {
	start, space := len(b), false
	for _, c := range []byte(v) {
		switch {
		case c == ' ' || c == '\t':
			space = true
			continue
		case c < ' ' || c == 0x7f:
			return b, false
		}
		if space && len(b) > start {
			b = append(b, ' ')
		}
		space = false
		b = append(b, c)
	}
	return b, true
}

// canonicalRequest makes the canonical request ("Create a signed request", step
// 1). refusal is nil, or why there is none.
func canonicalRequest(r *http.Request, p *params, path string, body *Payload) ([]byte, *Error) {
	b := make([]byte, 0, 1024)
	b = append(b, r.Method...)
	b = append(b, '\n')
	b = append(b, path...)
	b = append(b, '\n')
	b = appendQuery(b, p.queryParams)
	b = append(b, '\n')
	b, refusal := appendHeaders(b, r, p.signedHeaders, body)
	if refusal != nil {
		return nil, refusal
	}
	b = append(b, '\n')
	b = append(b, p.signedList...)
	b = append(b, '\n')
	if p.unsignedPayload {
		return append(b, unsignedPayload...), nil
	}
	return hex.AppendEncode(b, body.sum[:]), nil
}

// stringToSign makes the string to sign (steps 2 and 3).
func stringToSign(p *params, canonical []byte) []byte {
	b := make([]byte, 0, 192)
	b = append(b, algorithm...)
	b = append(b, '\n')
	b = append(b, p.date...)
	b = append(b, '\n')
	b = append(b, p.scope.Day...)
	b = append(b, '/')
	b = append(b, p.scope.Region...)
	b = append(b, '/')
	b = append(b, p.scope.Service...)
	b = append(b, '/')
	b = append(b, terminator...)
	b = append(b, '\n')
	sum := sha256.Sum256(canonical)
	return hex.AppendEncode(b, sum[:])
}
