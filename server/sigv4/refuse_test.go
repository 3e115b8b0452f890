package sigv4

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"
)

// edit changes one string within a signed request's Authorization header.
func edit(old, replacement string) func(*http.Request) {
	return func(r *http.Request) {
		a := r.Header.Get("Authorization")
		changed := strings.Replace(a, old, replacement, 1)
		if changed == a {
			panic("nothing to replace: " + old)
		}
		r.Header.Set("Authorization", changed)
	}
}

func setHeader(name, value string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set(name, value) }
}

// TestHeaderRefused changes one thing of a valid request in the header form.
func TestHeaderRefused(t *testing.T) {
	t.Parallel()
	const signedList = "SignedHeaders=content-type;host;x-amz-date;x-amz-target"
	for _, c := range []struct {
		name   string
		change func(*http.Request)
		reason Reason
		part   string
	}{
		{"not signed", func(r *http.Request) { r.Header.Del("Authorization") }, MissingAuthenticationToken, "Missing Authentication Token"},
		{"two Authorization headers", func(r *http.Request) { r.Header.Add("Authorization", r.Header.Get("Authorization")) }, IncompleteSignature, "more than one Authorization"},
		{"empty Authorization", setHeader("Authorization", ""), IncompleteSignature, "Unsupported AWS 'algorithm': ''"},
		{"bearer token", setHeader("Authorization", "Bearer abc"), IncompleteSignature, "Unsupported AWS 'algorithm': 'Bearer'"},
		{"other hash", edit("SHA256", "SHA512"), IncompleteSignature, "Unsupported AWS 'algorithm': 'AWS4-HMAC-SHA512'"},
		{"4A", edit("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256"), IncompleteSignature, "Unsupported"},
		{"only the algorithm", setHeader("Authorization", "AWS4-HMAC-SHA256"), IncompleteSignature, "missing equal-sign"},
		{"no equal-sign", setHeader("Authorization", "AWS4-HMAC-SHA256 FooBar, BazBurp"), IncompleteSignature, "'FooBar' not a valid key=value pair (missing equal-sign) in Authorization header"},
		{"no credential", edit("Credential=", "Credentials="), IncompleteSignature, "unknown parameter 'Credentials'"},
		{
			"nothing but empty", setHeader("Authorization", "AWS4-HMAC-SHA256 Credential="), IncompleteSignature,
			"Authorization header requires 'Credential' parameter. Authorization header requires 'Signature' parameter. Authorization header requires 'SignedHeaders' parameter.",
		},
		{"two signatures", edit("Signature=", "Signature=1, Signature="), IncompleteSignature, "more than one 'Signature'"},
		{"empty, then a signature", edit("Signature=", "Signature=, Signature="), IncompleteSignature, "requires 'Signature'"},
		{"two credentials", edit("Credential=", "Credential=a/b/c/d/e,Credential="), IncompleteSignature, "more than one 'Credential'"},
		{"long", edit("Signature=", "Signature="+strings.Repeat("0", maxAuthorizationBytes)), IncompleteSignature, "longer than"},
		{"upper-case signature", func(r *http.Request) {
			a := r.Header.Get("Authorization")
			r.Header.Set("Authorization", a[:len(a)-64]+strings.ToUpper(a[len(a)-64:]))
		}, SignatureMismatch, "does not match"},
		{"short signature", func(r *http.Request) {
			a := r.Header.Get("Authorization")
			r.Header.Set("Authorization", a[:len(a)-2])
		}, SignatureMismatch, "does not match"},
		{"signature of zeros", func(r *http.Request) {
			a := r.Header.Get("Authorization")
			r.Header.Set("Authorization", a[:len(a)-64]+strings.Repeat("0", 64))
		}, SignatureMismatch, "does not match"},
		{"signature that is not hexadecimal", func(r *http.Request) {
			a := r.Header.Get("Authorization")
			r.Header.Set("Authorization", a[:len(a)-64]+strings.Repeat("g", 64))
		}, SignatureMismatch, "does not match"},

		{"four elements", edit("/aws4_request", ""), IncompleteSignature, "exactly 5 slash-delimited elements, e.g. keyid/date/region/service/term, got 'AKIDEXAMPLE/20260115/us-east-1/kms"},
		{"six elements", edit("/aws4_request", "/aws4_request/x"), IncompleteSignature, "exactly 5"},
		{"no key id", edit("AKIDEXAMPLE", ""), IncompleteSignature, "exactly 5"},
		{"long key id", edit("AKIDEXAMPLE", strings.Repeat("A", maxAccessKeyIDBytes+1)), IncompleteSignature, "longer than 128 bytes"},
		{"longest key id", edit("AKIDEXAMPLE", strings.Repeat("A", maxAccessKeyIDBytes)), UnknownAccessKey, "token included in the request is invalid"},
		{"key id with a control character", edit("AKIDEXAMPLE", "A\x01"), IncompleteSignature, "not allowed, got 'A?/"},
		{"key id with a space", edit("AKIDEXAMPLE", "A B"), IncompleteSignature, "not allowed"},
		{"another key", edit("AKIDEXAMPLE", "AKIDEXAMPLF"), UnknownAccessKey, "The security token included in the request is invalid."},
		{"key of other case", edit("AKIDEXAMPLE", "akidexample"), UnknownAccessKey, "invalid"},
		{
			"all of the scope is wrong", edit("20260115/us-east-1/kms/aws4_request", "20260116/us-north-9/s3/aws5_request"), InvalidScope,
			"Credential should be scoped to a valid region, not 'us-north-9'. Credential should be scoped to correct service: 'kms'. " +
				"Credential should be scoped with a valid terminator: 'aws4_request', not 'aws5_request'. " +
				"Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '20260116' != '20260115', from '20260115T101112Z'.",
		},
		{
			"the scope is wrong at length", edit("20260115/us-east-1/kms/aws4_request", strings.Repeat(strings.Repeat("x", maxScopePartBytes)+"/", 3)+strings.Repeat("x", maxScopePartBytes)),
			InvalidScope, "not 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx...'",
		},
		{"the scope is too long", edit("us-east-1", strings.Repeat("x", maxScopePartBytes+1)), IncompleteSignature, "longer than 64 bytes"},
		{"another region that is allowed", edit("us-east-1", "eu-west-1"), SignatureMismatch, "does not match"},

		{"host not signed", edit(signedList, "SignedHeaders=content-type;x-amz-date;x-amz-target"), SignatureMismatch, "'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization."},
		{"date not signed", edit(signedList, "SignedHeaders=content-type;host;x-amz-target"), SignatureMismatch, "'X-Amz-Date' must be a 'SignedHeader' in the AWS Authorization."},
		{"target not signed", edit(signedList, "SignedHeaders=content-type;host;x-amz-date"), SignatureMismatch, "'X-Amz-Target' must be a 'SignedHeader'"},
		{"new X-Amz- header", setHeader("X-Amz-New", "1"), SignatureMismatch, "'X-Amz-New' must be a 'SignedHeader'"},
		{"less signed than there was", edit(signedList, "SignedHeaders=host;x-amz-date;x-amz-target"), SignatureMismatch, "does not match"},
		{"unsorted", edit(signedList, "SignedHeaders=host;content-type;x-amz-date;x-amz-target"), IncompleteSignature, "must be sorted"},
		{"twice", edit(signedList, "SignedHeaders=content-type;host;host;x-amz-date;x-amz-target"), IncompleteSignature, "must be sorted"},
		{"upper case", edit(signedList, "SignedHeaders=content-type;Host;x-amz-date;x-amz-target"), IncompleteSignature, "lower case: 'Host'"},
		{"empty name", edit(signedList, "SignedHeaders=;"+signedList[14:]), IncompleteSignature, "lower case: ''"},
		{"name with a colon", edit(signedList, "SignedHeaders=content-type;host;x-amz-date:x;x-amz-target"), IncompleteSignature, "lower case"},
		{"missing header", edit(signedList, "SignedHeaders=accept;"+signedList[14:]), IncompleteSignature, "'accept' is named as a SignedHeader, but it does not exist in the HTTP request."},
		{"too many names", edit(signedList, "SignedHeaders="+strings.Repeat("a;", maxSignedHeaders)+"host"), IncompleteSignature, "more than 64 names"},
		{"long list", edit(signedList, "SignedHeaders="+strings.Repeat("a", maxSignedHeadersBytes+1)), IncompleteSignature, "longer than 4096"},

		{"no date", func(r *http.Request) { r.Header.Del(headerDate) }, IncompleteSignature, "requires existence of either a 'X-Amz-Date' or a 'Date' header."},
		{"two dates", func(r *http.Request) { r.Header.Add(headerDate, r.Header.Get(headerDate)) }, IncompleteSignature, "more than one 'X-Amz-Date'"},
		{"extended format", setHeader(headerDate, "2026-01-15T10:11:12Z"), IncompleteSignature, "Date must be in ISO-8601 'basic format'. Got '2026-01-15T10:11:12Z'. See http://en.wikipedia.org/wiki/ISO_8601"},
		{"fraction", setHeader(headerDate, "20260115T101112.5Z"), IncompleteSignature, "basic format"},
		{"fraction of the same length", setHeader(headerDate, "20260115T10111.2Z"), IncompleteSignature, "basic format"},
		{"no such second", setHeader(headerDate, "20260115T101160Z"), IncompleteSignature, "basic format"},
		{"no such day", setHeader(headerDate, "20260230T101112Z"), IncompleteSignature, "basic format"},
		{"another zone", setHeader(headerDate, "20260115T101112A"), IncompleteSignature, "basic format"},
		{"sign for a digit", setHeader(headerDate, "2026+115T101112Z"), IncompleteSignature, "basic format"},
		{"another second", setHeader(headerDate, "20260115T101113Z"), SignatureMismatch, "does not match"},

		{"two tokens", func(r *http.Request) { r.Header[headerToken] = []string{"a", "b"} }, IncompleteSignature, "more than one 'X-Amz-Security-Token'"},
		{"token for a long-term key", func(r *http.Request) {
			setHeader(headerToken, "abc")(r)
			edit("x-amz-target", "x-amz-security-token;x-amz-target")(r)
		}, InvalidSessionToken, "The security token included in the request is invalid."},
		{"long token", func(r *http.Request) {
			setHeader(headerToken, strings.Repeat("a", maxSessionTokenBytes+1))(r)
			edit("x-amz-target", "x-amz-security-token;x-amz-target")(r)
		}, InvalidSessionToken, "invalid"},
		{"token that is not ASCII", setHeader(headerToken, "é"), InvalidSessionToken, "invalid"},

		{"presigned as well", func(r *http.Request) { r.RequestURI = "/?X-Amz-Signature=00" }, IncompleteSignature, "Only one auth mechanism allowed"},
		{"presigned as well, escaped", func(r *http.Request) { r.RequestURI = "/?%58-Amz-%41lgorithm=AWS4-HMAC-SHA256" }, IncompleteSignature, "Only one auth mechanism allowed"},
		{"token in the query", func(r *http.Request) { r.RequestURI = "/?X-Amz-Security-Token=abc" }, IncompleteSignature, "Only one auth mechanism allowed"},
		{"lower-case parameter", func(r *http.Request) { r.RequestURI = "/?x-amz-signature=00" }, SignatureMismatch, "does not match"},

		{"hash of another body", setHashHeader("0000000000000000000000000000000000000000000000000000000000000000"), PayloadMismatch, "The provided 'x-amz-content-sha256' header does not match what was computed."},
		{"hash in upper case", setHashHeader("230D8358DC8E8890B4C58DEEB62912EE2F20357AE92A5CC861B98E68FE31ACB5"), PayloadMismatch, "does not match"},
		{"unsigned payload", setHashHeader("UNSIGNED-PAYLOAD"), PayloadMismatch, "does not accept 'UNSIGNED-PAYLOAD'"},
		{"streaming", setHashHeader("STREAMING-AWS4-HMAC-SHA256-PAYLOAD"), PayloadMismatch, "does not accept 'STREAMING-"},
		{"hash not signed", setHeader(headerPayload, "230d8358dc8e8890b4c58deeb62912ee2f20357ae92a5cc861b98e68fe31acb5"), SignatureMismatch, "'X-Amz-Content-Sha256' must be a 'SignedHeader'"},

		{"another method", func(r *http.Request) { r.Method = "PUT" }, SignatureMismatch, "does not match"},
		{"method with a line feed", func(r *http.Request) { r.Method = "POST\n" }, IncompleteSignature, "method"},
		{"no method", func(r *http.Request) { r.Method = "" }, IncompleteSignature, "method"},
		{"another host", func(r *http.Request) { r.Host = "localhost:8081" }, SignatureMismatch, "does not match"},
		{"host without its port", func(r *http.Request) { r.Host = "localhost" }, SignatureMismatch, "does not match"},
		{"host in upper case", func(r *http.Request) { r.Host = "LOCALHOST:8080" }, SignatureMismatch, "does not match"},
		{"no host", func(r *http.Request) { r.Host = "" }, IncompleteSignature, "Host"},
		{"host with a line feed", func(r *http.Request) { r.Host = "localhost:8080\nx-amz-date:1" }, IncompleteSignature, "Host"},
		{"two hosts", func(r *http.Request) { r.Host = "localhost:8080,localhost:8080" }, IncompleteSignature, "Host"},
		{"long host", func(r *http.Request) { r.Host = strings.Repeat("h", maxHostBytes+1) }, IncompleteSignature, "Host"},
		{"host beside :authority", setHeader("Host", "other"), IncompleteSignature, "ambiguous header 'Host'"},
		{"another path", func(r *http.Request) { r.RequestURI = "/x" }, SignatureMismatch, "does not match"},
		{"dot segments", func(r *http.Request) { r.RequestURI = "/x/.." }, IncompleteSignature, "empty or dot segments"},
		{"two slashes", func(r *http.Request) { r.RequestURI = "//" }, IncompleteSignature, "empty or dot segments"},
		{"escaped slash", func(r *http.Request) { r.RequestURI = "/%2F" }, SignatureMismatch, "does not match"},
		{"escaped dots are no dots", func(r *http.Request) { r.RequestURI = "/x/%2e%2e" }, SignatureMismatch, "does not match"},
		{"absolute form", func(r *http.Request) { r.RequestURI = "http://localhost:8080/" }, IncompleteSignature, "begins with '/'"},
		{"asterisk form", func(r *http.Request) { r.RequestURI = "*" }, IncompleteSignature, "begins with '/'"},
		{"long path", func(r *http.Request) { r.RequestURI = "/" + strings.Repeat("a", maxPathBytes) }, IncompleteSignature, "path is longer"},
		{"longest path", func(r *http.Request) { r.RequestURI = "/" + strings.Repeat("a", maxPathBytes-1) }, SignatureMismatch, "does not match"},
		{"new query", func(r *http.Request) { r.RequestURI = "/?a" }, SignatureMismatch, "does not match"},
		{"long query", func(r *http.Request) { r.RequestURI = "/?" + strings.Repeat("a", maxQueryBytes+1) }, IncompleteSignature, "query string is longer"},
		{"many parameters", func(r *http.Request) { r.RequestURI = "/?" + strings.Repeat("a&", maxQueryParams+1) }, IncompleteSignature, "more than 256 parameters"},
		{"most parameters", func(r *http.Request) { r.RequestURI = "/?" + strings.Repeat("a&", maxQueryParams) }, SignatureMismatch, "does not match"},
		{"half an escape", func(r *http.Request) { r.RequestURI = "/?a=%4" }, IncompleteSignature, "Illegal hex character in escape % pattern"},
		{"no escape", func(r *http.Request) { r.RequestURI = "/?%zz=1" }, IncompleteSignature, "Illegal hex character"},

		{"header name that readers miss", func(r *http.Request) { r.Header["x-amz-target"] = []string{"TrentService.ScheduleKeyDeletion"} }, IncompleteSignature, "ambiguous header 'x-amz-target'"},
		{"repeated target", func(r *http.Request) { r.Header.Add("X-Amz-Target", "TrentService.ScheduleKeyDeletion") }, IncompleteSignature, "more than one 'X-Amz-Target'"},
		{"repeated content-type", func(r *http.Request) { r.Header.Add("Content-Type", "x") }, SignatureMismatch, "does not match"},
		{"line feed in a value", setHeader("Content-Type", "a\nhost:b"), IncompleteSignature, "'content-type' has a control character"},
		{"long value", setHeader("Content-Type", strings.Repeat("a", maxSignedValueBytes+maxSignedHeadersBytes)), IncompleteSignature, "signed headers are longer"},
		{"many headers", func(r *http.Request) {
			for i := range maxHeaders {
				r.Header.Set("H"+strconv.Itoa(i), "")
			}
		}, IncompleteSignature, "more than 256 headers"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, body := signed(t, "POST", "/", "body", "Content-Type", "application/x-amz-json-1.1", "X-Amz-Target", "TrentService.Encrypt")
			v := newVerifier(t, testConfig())
			if _, err := v.Verify(r, "kms", Body(body)); err != nil {
				t.Fatalf("before the change: %v", err)
			}
			c.change(r)
			_, err := v.Verify(r, "kms", Body(body))
			wantRefusal(t, err, c.reason, c.part)
			// What the header alone tells, CheckHeader tells.
			early := v.CheckHeader(r, "kms")
			if early != nil {
				wantRefusal(t, early, c.reason, c.part)
			} else if c.reason != SignatureMismatch && c.reason != PayloadMismatch && c.reason != IncompleteSignature {
				t.Errorf("CheckHeader lets %s pass", c.reason)
			}
		})
	}
}

// setHashHeader sets X-Amz-Content-Sha256 and names it as signed.
func setHashHeader(value string) func(*http.Request) {
	return func(r *http.Request) {
		r.Header.Set(headerPayload, value)
		edit("host;", "host;x-amz-content-sha256;")(r)
	}
}

// TestQueryRefused changes one thing of a valid request in the query form.
func TestQueryRefused(t *testing.T) {
	t.Parallel()
	set := func(name, value string) func(*http.Request) {
		return func(r *http.Request) {
			path, query, _ := strings.Cut(r.RequestURI, "?")
			q, err := url.ParseQuery(query)
			if err != nil {
				panic(err)
			}
			q.Set(name, value)
			r.RequestURI = path + "?" + q.Encode()
		}
	}
	add := func(more string) func(*http.Request) { return func(r *http.Request) { r.RequestURI += more } }
	remove := func(name string) func(*http.Request) {
		return func(r *http.Request) {
			set(name, "REMOVE")(r)
			r.RequestURI = strings.Replace(r.RequestURI, name+"=REMOVE", "", 1)
		}
	}
	for _, c := range []struct {
		name   string
		change func(*http.Request)
		reason Reason
		part   string
	}{
		{"no algorithm", remove(queryAlgorithm), IncompleteSignature, "must include 'X-Amz-Algorithm'"},
		{"no signature", remove(querySignature), IncompleteSignature, "must include 'X-Amz-Signature'"},
		{"no credential", remove(queryCredential), IncompleteSignature, "must include 'X-Amz-Credential'"},
		{"no date", remove(queryDate), IncompleteSignature, "must include 'X-Amz-Date'"},
		{"no list", remove(querySignedHeaders), IncompleteSignature, "must include 'X-Amz-SignedHeaders'. Re-examine the query-string parameters."},
		{"lifetime removed", remove(queryExpires), SignatureMismatch, "does not match"},
		{"empty token", set(queryToken, ""), IncompleteSignature, "'X-Amz-Security-Token'"},
		{"a token", set(queryToken, "abc"), InvalidSessionToken, "invalid"},
		{"other algorithm", set(queryAlgorithm, "AWS4-HMAC-SHA1"), IncompleteSignature, "Unsupported AWS 'algorithm': 'AWS4-HMAC-SHA1'"},
		{"two signatures", add("&X-Amz-Signature=00"), IncompleteSignature, "more than one 'X-Amz-Signature'"},
		{"two signatures, escaped", add("&X%2dAmz-Signature=00"), IncompleteSignature, "more than one 'X-Amz-Signature'"},
		{"two dates", add("&X-Amz-Date=20260115T101112Z"), IncompleteSignature, "more than one 'X-Amz-Date'"},
		{"two lifetimes", add("&X-Amz-Expires=604800"), IncompleteSignature, "more than one 'X-Amz-Expires'"},
		{"second signature in lower case", add("&x-amz-signature=00"), SignatureMismatch, "does not match"},
		{"longer life", set(queryExpires, "604800"), SignatureMismatch, "does not match"},
		{"too long a life", set(queryExpires, "604801"), IncompleteSignature, "from 1 to 604800"},
		{"no life", set(queryExpires, "0"), IncompleteSignature, "from 1 to 604800"},
		{"negative life", set(queryExpires, "-1"), IncompleteSignature, "from 1 to 604800"},
		{"signed life", set(queryExpires, "+1"), IncompleteSignature, "from 1 to 604800"},
		{"life beyond numbers", set(queryExpires, "99999999999999999999"), IncompleteSignature, "from 1 to 604800"},
		{"life in words", set(queryExpires, "1e3"), IncompleteSignature, "from 1 to 604800"},
		{"extended date", set(queryDate, "2026-01-15T10:11:12Z"), IncompleteSignature, "basic format"},
		{"host not signed", set(querySignedHeaders, "x-amz-target"), SignatureMismatch, "'Host' or ':authority'"},
		{"target not signed", set(querySignedHeaders, "host"), SignatureMismatch, "'X-Amz-Target' must be"},
		{"date in a header as well", setHeader(headerDate, "20260115T101112Z"), IncompleteSignature, "must not have the header 'X-Amz-Date'"},
		{"token in a header", setHeader(headerToken, "abc"), IncompleteSignature, "must not have the header 'X-Amz-Security-Token'"},
		{"authorization as well", setHeader("Authorization", "AWS4-HMAC-SHA256 Credential=a/b/c/d/e, SignedHeaders=host, Signature=00"), IncompleteSignature, "Only one auth mechanism"},
		{"basic authorization as well", setHeader("Authorization", "Basic YTpi"), IncompleteSignature, "Only one auth mechanism"},
		{"unsigned payload", add("&X-Amz-Content-Sha256=UNSIGNED-PAYLOAD"), PayloadMismatch, "does not accept"},
		{"another parameter", add("&a=b"), SignatureMismatch, "does not match"},
		{"another service", set(queryCredential, "AKIDEXAMPLE/20260115/us-east-1/sts/aws4_request"), InvalidScope, "correct service: 'kms'"},
		{"stranger", set(queryCredential, "AKIDSTRANGER/20260115/us-east-1/kms/aws4_request"), UnknownAccessKey, "invalid"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, body := presigned(t, "POST", "/", "body", "X-Amz-Target", "TrentService.Encrypt")
			v := newVerifier(t, testConfig())
			if _, err := v.Verify(r, "kms", Body(body)); err != nil {
				t.Fatalf("before the change: %v", err)
			}
			c.change(r)
			_, err := v.Verify(r, "kms", Body(body))
			wantRefusal(t, err, c.reason, c.part)
		})
	}
}

// TestHoisted: what a signed parameter says, a header may repeat; nothing else.
func TestHoisted(t *testing.T) {
	t.Parallel()
	v := newVerifier(t, testConfig())
	for _, c := range []struct {
		name, query, header string
		ok                  bool
	}{
		{"the same", "/?X-Amz-Target=TrentService.Encrypt", "TrentService.Encrypt", true},
		{"the same, escaped", "/?X-Amz-Target=TrentService%2eEncrypt", "TrentService.Encrypt", true},
		{"another value", "/?X-Amz-Target=TrentService.Encrypt", "TrentService.Decrypt", false},
		{"no value", "/?X-Amz-Target=", "TrentService.Decrypt", false},
		{"a prefix", "/?X-Amz-Target=TrentService.Encrypt", "TrentService", false},
		{"another case", "/?x-amz-target=TrentService.Encrypt", "TrentService.Encrypt", false},
		{"another name", "/?X-Amz-Targets=TrentService.Encrypt", "TrentService.Encrypt", false},
		{"there twice", "/?X-Amz-Target=TrentService.Decrypt&X-Amz-Target=TrentService.Encrypt", "TrentService.Encrypt", false},
		{"there twice, equal", "/?X-Amz-Target=TrentService.Encrypt&X-Amz-Target=TrentService.Encrypt", "TrentService.Encrypt", false},
	} {
		r, body := presigned(t, "POST", c.query, "body")
		r.Header.Set("X-Amz-Target", c.header)
		_, err := v.Verify(r, "kms", Body(body))
		if c.ok && err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if !c.ok {
			wantRefusal(t, err, SignatureMismatch, "'X-Amz-Target' must be a 'SignedHeader'")
		}
	}
	r, body := presigned(t, "POST", "/?X-Amz-Target=TrentService.Encrypt", "body")
	r.RequestURI = strings.Replace(r.RequestURI, "TrentService.Encrypt", "TrentService.Decrypt", 1)
	r.Header.Set("X-Amz-Target", "TrentService.Decrypt")
	_, err := v.Verify(r, "kms", Body(body))
	wantRefusal(t, err, SignatureMismatch, "does not match")
	// The signature is the one parameter that is not signed.
	r, body = presigned(t, "POST", "/", "body")
	signature := r.URL.Query().Get(querySignature)
	if signature == "" {
		t.Fatalf("no signature in %s", r.URL)
	}
	r.Header.Set(querySignature, signature)
	_, err = v.Verify(r, "kms", Body(body))
	wantRefusal(t, err, SignatureMismatch, "'X-Amz-Signature' must be a 'SignedHeader'")
	// In the header form the list alone counts.
	r, body = signed(t, "POST", "/?X-Amz-Target=TrentService.Encrypt", "body")
	r.Header.Set("X-Amz-Target", "TrentService.Encrypt")
	_, err = v.Verify(r, "kms", Body(body))
	wantRefusal(t, err, SignatureMismatch, "'X-Amz-Target' must be a 'SignedHeader'")
}

// TestOptionsAreOff: what must be allowed by name is refused without.
func TestOptionsAreOff(t *testing.T) {
	t.Parallel()
	c := testConfig()
	c.AllowQuery = false
	v := newVerifier(t, c)
	r, _ := presigned(t, "GET", "/", "")
	_, err := v.Verify(r, "kms", Body(nil))
	wantRefusal(t, err, IncompleteSignature, "not accepted here")
	r, body := signed(t, "POST", "/", "body")
	_, err = v.Verify(r, "", Body(body))
	wantRefusal(t, err, InvalidScope, "correct service")
	_, err = v.Verify(r, "sts", Body(body))
	wantRefusal(t, err, InvalidScope, "correct service: 'sts'")
}

// TestUnsignedPayload: where it is allowed, the door is told.
func TestUnsignedPayload(t *testing.T) {
	t.Parallel()
	c := testConfig()
	c.AllowUnsignedPayload = true
	v := newVerifier(t, c)
	r, body := signed(t, "POST", "/", "body")
	setHashHeader("UNSIGNED-PAYLOAD")(r)
	_, err := v.Verify(r, "kms", Body(body))
	wantRefusal(t, err, SignatureMismatch, "does not match")
	// The explanation says what to sign: sign that.
	explained := mustRefusal(t, err).stringToSign
	if !strings.HasSuffix(mustRefusal(t, err).canonicalRequest, "\nUNSIGNED-PAYLOAD") {
		t.Fatalf("the canonical request is %q", mustRefusal(t, err).canonicalRequest)
	}
	a := r.Header.Get("Authorization")
	r.Header.Set("Authorization", a[:len(a)-64]+macOf(t, explained))
	got, err := v.Verify(r, "kms", Body([]byte("any body")))
	if err != nil || !got.PayloadUnsigned {
		t.Errorf("got %+v, %v", got, err)
	}
	r, body = signed(t, "POST", "/", "body")
	if got, err = v.Verify(r, "kms", Body(body)); err != nil || got.PayloadUnsigned {
		t.Errorf("a signed body: got %+v, %v", got, err)
	}
	setHashHeader("STREAMING-UNSIGNED-PAYLOAD-TRAILER")(r)
	_, err = v.Verify(r, "kms", Body(body))
	wantRefusal(t, err, PayloadMismatch, "does not accept")
}

// TestWindow is each edge of the times that are accepted.
func TestWindow(t *testing.T) {
	t.Parallel()
	const week = 604800 * time.Second
	for _, c := range []struct {
		name   string
		age    time.Duration // of the request; negative: from the future
		valid  time.Duration // presigned; 0: header form
		skew   time.Duration // configured
		most   time.Duration // MaxExpires as configured
		reason Reason
		part   string
	}{
		{"oldest", 5 * time.Minute, 0, 0, 0, 0, ""},
		{"too old", 5*time.Minute + 1, 0, 0, 0, Expired, "Signature expired: 20260115T101112Z is now earlier than 20260115T101112Z (20260115T101612Z - 5 min.)"},
		{"much too old", 24 * time.Hour, 0, 0, 0, Expired, "Signature expired: 20260115T101112Z is now earlier than 20260116T100612Z (20260116T101112Z - 5 min.)"},
		{"newest", -5 * time.Minute, 0, 0, 0, 0, ""},
		{"too new", -5*time.Minute - 1, 0, 0, 0, NotYetCurrent, "Signature not yet current: 20260115T101112Z is still later than 20260115T101111Z (20260115T100611Z + 5 min.)"},
		{"narrow", 30 * time.Second, 0, 30 * time.Second, 0, 0, ""},
		{"narrow, too old", 31 * time.Second, 0, 30 * time.Second, 0, Expired, "- 30 sec.)"},
		{"presigned, last second", time.Second, time.Second, 0, 0, 0, ""},
		{"presigned, over", time.Second + 1, time.Second, 0, 0, Expired, "- 1 sec.)"},
		{"presigned for a week", week, week, 0, week, 0, ""},
		{"presigned for a week, over", week + 1, week, 0, week, Expired, "- 10080 min.)"},
		{"presigned, from the future", -5 * time.Minute, week, 0, 0, 0, ""},
		{"presigned, too far in the future", -5*time.Minute - 1, week, 0, 0, NotYetCurrent, "+ 5 min.)"},
		{"presigned, as long as it may be", 15 * time.Minute, 15 * time.Minute, 0, 0, 0, ""},
		{"presigned for longer than it may be", 15*time.Minute + 1, 15*time.Minute + time.Second, 0, 0, Expired, "- 15 min.)"},
		{"presigned for an hour, in time", 15 * time.Minute, time.Hour, 0, 0, 0, ""},
		{"presigned for a week, which is too long", 15*time.Minute + 1, week, 0, 0, Expired, "- 15 min.)"},
		{"presigned, less is configured", time.Minute + 1, week, 0, time.Minute, Expired, "- 1 min.)"},
		{"the header form is not longer for it", 5*time.Minute + 1, 0, 0, week, Expired, "- 5 min.)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := testConfig()
			config.MaxSkew, config.MaxExpires = c.skew, c.most
			config.Now = func() time.Time { return testTime.Add(c.age).In(time.FixedZone("elsewhere", 7*3600)) }
			r := newRequest(t, "POST", "/", "body")
			if c.valid > 0 {
				testSigner.Presign(r, []byte("body"), testTime, c.valid)
			} else {
				testSigner.Sign(r, []byte("body"), testTime)
			}
			got, body := mustReceive(t, raw(t, r))
			_, err := newVerifier(t, config).Verify(got, "kms", Body(body))
			if c.reason != 0 {
				wantRefusal(t, err, c.reason, c.part)
			} else if err != nil {
				t.Error(err)
			}
		})
	}
}
