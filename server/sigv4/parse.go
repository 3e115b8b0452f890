package sigv4

import (
	"encoding/hex"
	"net/http"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	algorithm       = "AWS4-HMAC-SHA256"
	unsignedPayload = "UNSIGNED-PAYLOAD"

	dayLayout  = "20060102"
	dateLayout = "20060102T150405Z" // ISO 8601, basic format, UTC

	maxAccessKeyIDBytes   = 128 // AWS's own limit
	maxScopePartBytes     = 64
	maxSessionTokenBytes  = 8192
	maxAuthorizationBytes = 6144 // credential, list of signed headers, signature
	maxExpiresSeconds     = 604800
)

// Headers and parameters that this package reads itself.
const (
	headerDate    = "X-Amz-Date"
	headerToken   = "X-Amz-Security-Token" //nolint:gosec // G101: a header's name
	headerPayload = "X-Amz-Content-Sha256"

	queryAlgorithm     = "X-Amz-Algorithm"
	queryCredential    = "X-Amz-Credential" //nolint:gosec // G101: a parameter's name
	queryDate          = "X-Amz-Date"
	queryExpires       = "X-Amz-Expires"
	querySignedHeaders = "X-Amz-SignedHeaders"
	querySignature     = "X-Amz-Signature"
	queryToken         = "X-Amz-Security-Token" //nolint:gosec // G101: a parameter's name
	queryPayload       = "X-Amz-Content-Sha256"
)

// params is what a request says about its signature. Nothing in it is
// authenticated yet.
type params struct {
	presigned     bool
	accessKeyID   string
	scope         Scope
	scopeEnd      string // must be the terminator
	signedList    string
	signedHeaders []string
	signature     [32]byte
	badSignature  bool // not 64 lower-case hexadecimal digits
	token         string

	date    string // as in the string to sign
	at      time.Time
	expires time.Duration // presigned; 0: it does not say

	payload         string // the declared hash of the body; empty: none
	unsignedPayload bool

	queryParams []queryParam
}

// parse reads what the request says about its signature, in either form.
func (v *Verifier) parse(r *http.Request, rawQuery string) (*params, *Error) {
	p := &params{}
	var refusal *Error
	if p.queryParams, refusal = parseQuery(rawQuery); refusal != nil {
		return nil, refusal
	}
	authorization := r.Header["Authorization"]
	inQuery := slices.ContainsFunc(p.queryParams, func(q queryParam) bool { return isAuthParam(q.name) })
	switch {
	case len(authorization) > 1:
		return nil, incomplete("The request has more than one Authorization header.")
	case len(authorization) == 1 && inQuery:
		return nil, incomplete("Only one auth mechanism allowed: either the X-Amz-Algorithm query parameters or the Authorization header should be specified.")
	case len(authorization) == 1:
		refusal = p.readHeaders(r, authorization[0])
	case !inQuery:
		return nil, refuse(MissingAuthenticationToken, messageMissingToken)
	case !v.allowQuery:
		return nil, incomplete("Authentication with query-string parameters is not accepted here; use the Authorization header.")
	default:
		refusal = p.readQuery(r)
	}
	if refusal != nil {
		return nil, refusal
	}
	if refusal = p.checkHeaders(r); refusal != nil {
		return nil, refusal
	}
	return p, nil
}

// isAuthParam reports whether a parameter belongs to the presigned form. Names
// are compared after decoding: these have no byte that stays encoded.
func isAuthParam(name string) bool {
	switch name {
	case queryAlgorithm, queryCredential, queryDate, queryExpires, querySignedHeaders, querySignature, queryToken:
		return true
	}
	return false
}

// readHeaders reads the header form.
func (p *params) readHeaders(r *http.Request, authorization string) *Error {
	if len(authorization) > maxAuthorizationBytes {
		return incomplete("The Authorization header is longer than " + strconv.Itoa(maxAuthorizationBytes) + " bytes.")
	}
	credential, signature, refusal := p.readAuthorization(authorization)
	if refusal != nil {
		return refusal
	}
	date, refusal := single(r, headerDate)
	if refusal != nil {
		return refusal
	}
	signedDate := "x-amz-date"
	if date != "" {
		refusal = p.setDate(date)
	} else {
		signedDate = "date"
		refusal = p.setHTTPDate(r)
	}
	if refusal != nil {
		return refusal
	}
	if p.token, refusal = single(r, headerToken); refusal != nil {
		return refusal
	}
	if p.payload, refusal = single(r, headerPayload); refusal != nil {
		return refusal
	}
	if refusal = p.setSignature(credential, signature); refusal != nil {
		return refusal
	}
	if !slices.Contains(p.signedHeaders, signedDate) {
		return refuse(SignatureMismatch, quote(textproto.CanonicalMIMEHeaderKey(signedDate))+" must be a 'SignedHeader' in the AWS Authorization.")
	}
	return nil
}

// readAuthorization splits the Authorization header. The value is not repeated
// in errors, as AWS does: it holds a signature that may be valid.
func (p *params) readAuthorization(authorization string) (credential, signature string, refusal *Error) {
	scheme, rest, _ := strings.Cut(authorization, " ")
	if scheme != algorithm {
		return "", "", incomplete("Unsupported AWS 'algorithm': " + quote(scheme) + ".")
	}
	for part := range strings.SplitSeq(rest, ",") {
		name, value, ok := strings.Cut(strings.Trim(part, " "), "=")
		if !ok {
			return "", "", incomplete(quote(name) + " not a valid key=value pair (missing equal-sign) in Authorization header.")
		}
		var to *string
		switch name {
		case "Credential":
			to = &credential
		case "SignedHeaders":
			to = &p.signedList
		case "Signature":
			to = &signature
		default:
			return "", "", incomplete("Authorization header has an unknown parameter " + quote(name) + ".")
		}
		if *to != "" {
			return "", "", incomplete("Authorization header has more than one " + quote(name) + " parameter.")
		}
		if *to = value; value == "" {
			break // it is missing
		}
	}
	var missing []string
	for _, m := range []struct{ name, value string }{
		{"Credential", credential}, {"Signature", signature}, {"SignedHeaders", p.signedList},
	} {
		if m.value == "" {
			missing = append(missing, "Authorization header requires "+quote(m.name)+" parameter.")
		}
	}
	if missing != nil {
		return "", "", incomplete(strings.Join(missing, " "))
	}
	return credential, signature, nil
}

// readQuery reads the presigned form.
func (p *params) readQuery(r *http.Request) *Error {
	p.presigned = true
	var algorithmName, credential, signature, date, expires string
	refusal := readFields(p.queryParams, []queryField{
		{name: queryAlgorithm, to: &algorithmName, required: true},
		{name: queryCredential, to: &credential, required: true},
		{name: querySignature, to: &signature, required: true},
		{name: querySignedHeaders, to: &p.signedList, required: true},
		{name: queryDate, to: &date, required: true},
		{name: queryExpires, to: &expires},
		{name: queryToken, to: &p.token},
		{name: queryPayload, to: &p.payload},
	})
	if refusal != nil {
		return refusal
	}
	if algorithmName != algorithm {
		return incomplete("Unsupported AWS 'algorithm': " + quote(algorithmName) + ".")
	}
	// The parameters count; a header beside them could only confuse.
	for _, h := range []string{headerDate, headerToken} {
		if len(r.Header[h]) > 0 {
			return incomplete("A presigned request must not have the header " + quote(h) + ".")
		}
	}
	if h, refusal := single(r, headerPayload); refusal != nil {
		return refusal
	} else if h != "" {
		if p.payload != "" && p.payload != h {
			return refuse(PayloadMismatch, messagePayload)
		}
		p.payload = h
	}
	if refusal := p.setDate(date); refusal != nil {
		return refusal
	}
	// Without it the window of the header form holds: AWS's STS takes such
	// requests, and aws-sdk-go-v2 presigns so unless it is told otherwise.
	if expires != "" {
		n, err := strconv.ParseUint(expires, 10, 32)
		if err != nil || n < 1 || n > maxExpiresSeconds {
			return incomplete("X-Amz-Expires must be a number of seconds from 1 to " + strconv.Itoa(maxExpiresSeconds) + ".")
		}
		p.expires = time.Duration(n) * time.Second
	}
	return p.setSignature(credential, signature)
}

// queryField is a parameter of the presigned form and where its value goes.
type queryField struct {
	name     string
	to       *string
	required bool
	seen     bool
}

// readFields fills fields; each may be there once, and not be empty.
func readFields(params []queryParam, fields []queryField) *Error {
	for _, q := range params {
		for i := range fields {
			f := &fields[i]
			if f.name != q.name {
				continue
			}
			if f.seen {
				return incomplete("The query string has more than one " + quote(f.name) + " parameter.")
			}
			f.seen = true
			*f.to = decode(q.value)
		}
	}
	var missing []string
	for _, f := range fields {
		if *f.to == "" && (f.required || f.seen) {
			missing = append(missing, "AWS query-string parameters must include "+quote(f.name)+".")
		}
	}
	if missing != nil {
		return incomplete(strings.Join(missing, " ") + " Re-examine the query-string parameters.")
	}
	return nil
}

// setSignature reads what both forms have.
func (p *params) setSignature(credential, signature string) *Error {
	if len(p.token) > maxSessionTokenBytes {
		return refuse(InvalidSessionToken, messageInvalidToken)
	}
	for _, c := range []byte(p.token) {
		if c < '!' || c > '~' {
			return refuse(InvalidSessionToken, messageInvalidToken)
		}
	}
	// hex.Decode takes upper-case digits too; AWS does not make them, and one
	// signature needs one spelling.
	if len(signature) != hex.EncodedLen(len(p.signature)) || strings.ToLower(signature) != signature {
		p.badSignature = true
	} else if _, err := hex.Decode(p.signature[:], []byte(signature)); err != nil {
		p.badSignature = true
	}
	if refusal := p.setCredential(credential); refusal != nil {
		return refusal
	}
	return p.setSignedHeaders()
}

func (p *params) setCredential(credential string) *Error {
	var parts [5]string
	n := 0
	for part := range strings.SplitSeq(credential, "/") {
		if n < len(parts) {
			parts[n] = part
		}
		n++
	}
	if n != len(parts) || parts[0] == "" {
		return incomplete("Credential must have exactly 5 slash-delimited elements, e.g. keyid/date/region/service/term, got " + quote(credential))
	}
	for i, part := range parts {
		limit := maxScopePartBytes
		if i == 0 {
			limit = maxAccessKeyIDBytes
		}
		if len(part) > limit {
			return incomplete("An element of Credential is longer than " + strconv.Itoa(limit) + " bytes.")
		}
		for _, c := range []byte(part) {
			if c <= ' ' || c > '~' {
				return incomplete("Credential has a character that is not allowed, got " + quote(credential))
			}
		}
	}
	p.accessKeyID, p.scopeEnd = parts[0], parts[4]
	p.scope = Scope{Day: parts[1], Region: parts[2], Service: parts[3]}
	return nil
}

// setSignedHeaders reads the list of names: lower case, in order, each once.
func (p *params) setSignedHeaders() *Error {
	if len(p.signedList) > maxSignedHeadersBytes {
		return incomplete("SignedHeaders is longer than " + strconv.Itoa(maxSignedHeadersBytes) + " bytes.")
	}
	if strings.Count(p.signedList, ";") >= maxSignedHeaders {
		return incomplete("SignedHeaders has more than " + strconv.Itoa(maxSignedHeaders) + " names.")
	}
	p.signedHeaders = strings.Split(p.signedList, ";")
	host := false
	for i, name := range p.signedHeaders {
		if !headerName(name) {
			return incomplete("SignedHeaders has a name that is not one of a header in lower case: " + quote(name) + ".")
		}
		if i > 0 && p.signedHeaders[i-1] >= name {
			return incomplete("SignedHeaders must be sorted, with each name once; see " + quote(name) + ".")
		}
		host = host || name == "host" || name == ":authority"
	}
	if !host {
		return refuse(SignatureMismatch, "'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization.")
	}
	return nil
}

// headerName reports whether s is a token in lower case (RFC 9110, 5.6.2), or
// HTTP/2's name for the host.
func headerName(s string) bool {
	if s == ":authority" {
		return true
	}
	for _, c := range []byte(s) {
		if !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0) {
			return false
		}
	}
	return s != ""
}

// setDate reads a date in ISO 8601 basic format, and nothing that is only like
// it: time.Parse alone would take a fraction of a second.
func (p *params) setDate(date string) *Error {
	at, err := time.Parse(dateLayout, date)
	if err != nil || len(date) != len(dateLayout) {
		return incomplete("Date must be in ISO-8601 'basic format'. Got " + quote(date) + ". See http://en.wikipedia.org/wiki/ISO_8601")
	}
	p.date, p.at = date, at
	return nil
}

// setHTTPDate reads the Date header, which counts where there is no X-Amz-Date:
// RFC 1123 or ISO 8601 basic format. The string to sign has the latter.
func (p *params) setHTTPDate(r *http.Request) *Error {
	date, refusal := single(r, "Date")
	if refusal != nil {
		return refusal
	}
	if date == "" {
		return incomplete("Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header.")
	}
	if at, err := time.Parse(http.TimeFormat, date); err == nil && len(date) == len(http.TimeFormat) {
		p.at, p.date = at, at.Format(dateLayout)
		return nil
	}
	return p.setDate(date)
}

// single returns the value of a header that may be there once; empty if it is
// not there. name is in canonical form. An empty header is as good as none here,
// and still must be signed.
func single(r *http.Request, name string) (string, *Error) {
	switch values := r.Header[name]; len(values) {
	case 0:
		return "", nil
	case 1:
		return strings.Trim(values[0], " \t"), nil
	}
	return "", incomplete("The request has more than one " + quote(name) + " header.")
}

// checkHeaders looks at all headers of the request: how many there are, that
// none is spelt so that a reader might miss it, and that each X-Amz-* header is
// there once and signed, or says what a signed parameter says.
func (p *params) checkHeaders(r *http.Request) *Error {
	lines := 0
	for key, values := range r.Header {
		if lines += len(values); lines > maxHeaders {
			return incomplete("The request has more than " + strconv.Itoa(maxHeaders) + " headers.")
		}
		// net/http makes names canonical and moves Host away. HTTP/2 lets a
		// client send host beside :authority, which alone counts.
		if textproto.CanonicalMIMEHeaderKey(key) != key ||
			key == "Host" && (len(values) != 1 || values[0] != r.Host) {
			return incomplete("The request has an ambiguous header " + quote(key) + ".")
		}
		if !strings.HasPrefix(key, "X-Amz-") {
			continue
		}
		if len(values) > 1 {
			return incomplete("The request has more than one " + quote(key) + " header.")
		}
		if !slices.Contains(p.signedHeaders, strings.ToLower(key)) && !p.hoisted(key, values[0]) {
			return refuse(SignatureMismatch, quote(key)+" must be a 'SignedHeader' in the AWS Authorization.")
		}
	}
	return nil
}

// hoisted tells whether the query of a presigned request has a header's name and
// value, once. The presigners of the SDKs for Go move X-Amz-* headers there, and
// who sends the request must still send some of them as headers: X-Amz-Target, which
// no service looks for anywhere else. The query is signed, but for the signature, and so
// is what the header repeats.
func (p *params) hoisted(key, value string) bool {
	n, same := 0, false
	for _, q := range p.queryParams {
		if q.name == key && key != querySignature {
			n, same = n+1, decode(q.value) == value
		}
	}
	return p.presigned && n == 1 && same
}
