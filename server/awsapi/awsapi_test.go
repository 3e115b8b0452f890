package awsapi_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/keyhold/keyhold/proto/awsjson"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/awsapi"
	"github.com/keyhold/keyhold/server/identity"
	"github.com/keyhold/keyhold/server/kms"
)

// sample fills a message with values that JSON can bring back.
func sample(m protoreflect.Message, depth int) {
	for i := range m.Descriptor().Fields().Len() {
		fd := m.Descriptor().Fields().Get(i)
		switch {
		case fd.IsMap():
			m.Mutable(fd).Map().Set(protoreflect.ValueOfString("k").MapKey(), protoreflect.ValueOfString("v"))
		case fd.IsList() && fd.Message() == nil:
			m.Mutable(fd).List().Append(sampleValue(fd))
		case fd.Message() != nil && fd.Message().FullName() == "google.protobuf.Timestamp":
			ts := m.Mutable(fd).Message()
			ts.Set(ts.Descriptor().Fields().ByName("seconds"), protoreflect.ValueOfInt64(1_900_000_000))
		case fd.Message() != nil && depth > 0:
			if fd.IsList() {
				sample(m.Mutable(fd).List().AppendMutable().Message(), depth-1)
			} else {
				sample(m.Mutable(fd).Message(), depth-1)
			}
		case fd.Message() == nil:
			m.Set(fd, sampleValue(fd))
		}
	}
}

func sampleValue(fd protoreflect.FieldDescriptor) protoreflect.Value {
	switch fd.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString("text \u00fc \"")
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte{0, 1, 254, 255})
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(7)
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(7)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(fd.Enum().Values().Get(1).Number())
	}
	return fd.Default()
}

// TestEveryOperationIsServed calls each operation by its target and wants the core
// to see it with the request, and the caller to see the answer; extensions are of
// other doors.
func TestEveryOperationIsServed(t *testing.T) {
	t.Parallel()
	var want, answered proto.Message
	c := &core{do: func(_ context.Context, caller *identity.Caller, operation string, req proto.Message) (proto.Message, error) {
		if caller.Principal.ARN != aliceARN || caller.Subject != "AKIAALICE" || caller.AccessKeyID != "AKIAALICE" || caller.Door != "aws" ||
			caller.Region != region || caller.SourceIP != "127.0.0.1" || len(caller.RequestID) != 36 || caller.UserAgent != "door-test" ||
			caller.TLSVersion != "" || caller.Host != "" {
			return nil, fmt.Errorf("caller is %+v", caller)
		}
		if !proto.Equal(req, want) {
			return nil, fmt.Errorf("%s was given %v, want %v", operation, req, want)
		}
		return proto.Clone(answered), nil
	}}
	s := open(t, c)
	enc, dec := awsjson.NewEncoder(awsjson.Options{EpochTimes: true}), awsjson.NewDecoder(awsjson.Limits{})
	operations, extensions := 0, 0
	for _, sd := range kms.Services() {
		for i := range sd.Methods().Len() {
			md := sd.Methods().Get(i)
			in, err := protoregistry.GlobalTypes.FindMessageByName(md.Input().FullName())
			if err != nil {
				t.Fatal(err)
			}
			out, err := protoregistry.GlobalTypes.FindMessageByName(md.Output().FullName())
			if err != nil {
				t.Fatal(err)
			}
			name := string(md.Name())
			spec, _ := proto.GetExtension(md.Options(), keyholdv1.E_Operation).(*keyholdv1.Operation)
			if spec.GetExtension() {
				extensions++
				a := s.call(name, "{}")
				if code, _ := a.exception(t); a.status != http.StatusBadRequest || code != "UnknownOperationException" {
					t.Errorf("%s, an extension: %d %s", name, a.status, a.body)
				}
				continue
			}
			operations++
			req, resp := in.New(), out.New()
			sample(req, 3)
			sample(resp, 3)
			// A name may be there for two members, and old names are answered only.
			if _, err := dec.Decode(enc.AppendMessage(nil, req.Interface()), req.Interface()); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			body := string(enc.AppendMessage(nil, req.Interface()))
			want, answered = req.Interface(), resp.Interface()
			a := s.call(name, body)
			if wantBody := string(enc.AppendAnswer(nil, md, answered)); a.status != http.StatusOK || string(a.body) != wantBody {
				t.Errorf("%s: %d %s\nwant %s", name, a.status, a.body, wantBody)
			}
			if a.header.Get("Content-Type") != jsonType || a.length != int64(len(a.body)) || len(a.header.Get("X-Amzn-Requestid")) != 36 ||
				!strings.Contains(a.header.Get("Cache-Control"), "no-store") {
				t.Errorf("%s: headers %v, length %d", name, a.header, a.length)
			}
		}
	}
	if operations != 54 || extensions == 0 || len(c.seen()) != operations {
		t.Errorf("%d operations, %d extensions, %d calls", operations, extensions, len(c.seen()))
	}
	for _, target := range []string{"", "Encrypt", "TrentService.", "TrentService.encrypt", "TrentService.Nothing", "DynamoDB_20120810.Encrypt", "TrentService.GetCallerIdentity"} {
		r := s.request("", "{}")
		r.Header.Set("X-Amz-Target", target)
		s.signer.Sign(r, []byte("{}"), time.Now())
		if a := s.send(r); a.status != http.StatusBadRequest || string(a.body) != `{"__type":"UnknownOperationException"}` {
			t.Errorf("target %q: %d %s", target, a.status, a.body)
		}
	}
	if len(c.seen()) != operations {
		t.Error("a wrong target reached the core")
	}
}

// TestStatusOfEveryCode wants each exception in the form of the JSON protocol.
func TestStatusOfEveryCode(t *testing.T) {
	t.Parallel()
	var answer error
	s := open(t, &core{do: func(context.Context, *identity.Caller, string, proto.Message) (proto.Message, error) {
		return nil, answer
	}})
	faults := map[kms.Code]bool{kms.CodeInternal: true, kms.CodeKeyUnavailable: true, kms.CodeDependencyTimeout: true}
	for _, code := range append(kms.Codes(), kms.DeclaredCodes()...) {
		answer = &kms.Error{Code: code, Message: "what \"it\" says\u00fc"}
		want := http.StatusBadRequest
		if faults[code] {
			want = http.StatusInternalServerError
		}
		a := s.call("Encrypt", "{}")
		if got, message := a.exception(t); a.status != want || got != string(code) || message != "what \"it\" says\u00fc" || a.length != int64(len(a.body)) {
			t.Errorf("%s became %d %s", code, a.status, a.body)
		}
	}
	answer = &kms.Error{Code: kms.CodeInvalidCiphertext}
	if a := s.call("Decrypt", "{}"); string(a.body) != `{"__type":"InvalidCiphertextException"}` {
		t.Errorf("without a message: %s", a.body)
	}
	// What is no kms.Error is logged, and a fixed sentence is answered.
	answer = errors.New("a secret cause")
	a := s.call("Encrypt", "{}")
	if code, message := a.exception(t); a.status != http.StatusInternalServerError || code != "KMSInternalException" || message == "" || strings.Contains(string(a.body), "secret") {
		t.Errorf("an unknown error: %d %s", a.status, a.body)
	}
	if !strings.Contains(s.logs.String(), "a secret cause") || !strings.Contains(s.logs.String(), a.header.Get("X-Amzn-Requestid")) {
		t.Errorf("the log does not tell what went wrong:\n%s", s.logs)
	}
}

// TestPanics: one in the door is a 500 of that request, and no more.
func TestPanics(t *testing.T) {
	t.Parallel()
	c := &core{do: func(context.Context, *identity.Caller, string, proto.Message) (proto.Message, error) {
		panic("a secret")
	}}
	s := open(t, c)
	a := s.call("Encrypt", "{}")
	if code, _ := a.exception(t); a.status != http.StatusInternalServerError || code != "KMSInternalException" {
		t.Errorf("%d %s", a.status, a.body)
	}
	if log := s.logs.String(); !strings.Contains(log, "request panicked") || !strings.Contains(log, "TestPanics") || strings.Contains(log, "a secret") {
		t.Errorf("the log says %s", log)
	}
	s.logs.mu.Lock()
	s.logs.b.Reset() // it was meant
	s.logs.mu.Unlock()
}

// identified answers GetCallerIdentity.
func identified() *core {
	return &core{do: func(_ context.Context, caller *identity.Caller, operation string, _ proto.Message) (proto.Message, error) {
		if operation != "GetCallerIdentity" {
			return nil, errors.New("another operation")
		}
		return &keyholdv1.GetCallerIdentityResponse{Arn: caller.Principal.ARN, UserId: "a<b", Account: account}, nil
	}}
}

// TestGetCallerIdentity in the forms that tools use.
func TestGetCallerIdentity(t *testing.T) {
	t.Parallel()
	c := identified()
	s := open(t, c)
	posted := s.form(stsForm)
	s.sts().Sign(posted, []byte(stsForm), time.Now())
	presigned, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url+"?"+stsForm, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	s.sts().Presign(presigned, nil, time.Now(), time.Minute)
	for name, r := range map[string]*http.Request{"POST": posted, "presigned GET": presigned} {
		a := s.send(r)
		want := `<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult><Arn>` + aliceARN +
			`</Arn><UserId>a&lt;b</UserId><Account>` + account + `</Account></GetCallerIdentityResult><ResponseMetadata><RequestId>` +
			a.header.Get("X-Amzn-Requestid") + `</RequestId></ResponseMetadata></GetCallerIdentityResponse>`
		if a.status != http.StatusOK || string(a.body) != want || a.header.Get("Content-Type") != "text/xml" {
			t.Errorf("%s: %d %s %s", name, a.status, a.header.Get("Content-Type"), a.body)
		}
	}
	for _, tt := range []struct{ form, code string }{
		{"Action=AssumeRole&Version=2011-06-15", "InvalidAction"},
		{"Action=GetCallerIdentity", "InvalidAction"},
		{"Action=GetCallerIdentity&Version=2011-06-16", "InvalidAction"},
		{stsForm + "&Action=AssumeRole", "InvalidAction"},
		{"", "InvalidAction"},
		{"Action=%zz", "MalformedQueryString"},
	} {
		r := s.form(tt.form)
		s.sts().Sign(r, []byte(tt.form), time.Now())
		a := s.send(r)
		kind, code, _, id := a.queryError(t)
		if a.status != http.StatusBadRequest || kind != "Sender" || code != tt.code || id != a.header.Get("X-Amzn-Requestid") {
			t.Errorf("%q: %d %s", tt.form, a.status, a.body)
		}
	}
	c.do = func(context.Context, *identity.Caller, string, proto.Message) (proto.Message, error) { return nil, nil }
	for _, tt := range []struct {
		err        error
		status     int
		kind, code string
	}{
		{&kms.Error{Code: kms.CodeThrottling, Message: "m"}, 400, "Sender", "Throttling"},
		{&kms.Error{Code: kms.CodeAccessDenied, Message: "m"}, 403, "Sender", "AccessDenied"},
		{&kms.Error{Code: kms.CodeInternal, Message: "m"}, 500, "Receiver", "InternalFailure"},
		{&kms.Error{Code: kms.CodeValidation, Message: "m"}, 500, "Receiver", "InternalFailure"},
		{nil, 500, "Receiver", "InternalFailure"}, // the core's answer is of another operation
	} {
		c.do = func(context.Context, *identity.Caller, string, proto.Message) (proto.Message, error) {
			return nil, tt.err
		}
		r := s.form(stsForm)
		s.sts().Sign(r, []byte(stsForm), time.Now())
		a := s.send(r)
		if kind, code, _, _ := a.queryError(t); a.status != tt.status || kind != tt.kind || code != tt.code {
			t.Errorf("%v: %d %s", tt.err, a.status, a.body)
		}
	}
}

// TestProtocols: over TLS both versions of HTTP, and what the record is told of the
// connection.
func TestProtocols(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ protocol, want string }{{"h2", "HTTP/2.0"}, {"http/1.1", "HTTP/1.1"}} {
		var caller identity.Caller
		c := &core{do: func(_ context.Context, who *identity.Caller, _ string, _ proto.Message) (proto.Message, error) {
			caller = *who
			return &keyholdv1.DecryptResponse{Plaintext: make([]byte, 6000)}, nil
		}}
		s := open(t, c, overTLS(tt.protocol))
		a := s.call("Decrypt", "{}")
		var body struct{ Plaintext []byte }
		if err := json.Unmarshal(a.body, &body); err != nil || a.status != http.StatusOK || a.proto != tt.want || len(body.Plaintext) != 6000 || a.length != int64(len(a.body)) {
			t.Errorf("%s: %d %s, %d bytes, length %d, %v", tt.protocol, a.status, a.proto, len(body.Plaintext), a.length, err)
		}
		if caller.TLSVersion != "TLSv1.3" || caller.CipherSuite == "" || caller.Host != s.address {
			t.Errorf("%s: caller is %+v", tt.protocol, caller)
		}
	}
}

// TestPlainHTTPOnLoopbackOnly: signatures hide nothing.
func TestPlainHTTPOnLoopbackOnly(t *testing.T) {
	t.Parallel()
	s := open(t, &core{})
	for _, address := range []string{"0.0.0.0:0", "[::]:0"} {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Logf("%s: %v", address, err)
			continue
		}
		if err := s.Serve(l); err == nil || !strings.Contains(err.Error(), "not a loopback address") {
			t.Errorf("%s: %v", address, err)
		}
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: the listener is not closed: %v", address, err)
		}
	}
	if _, err := awsapi.New(awsapi.Config{}); err == nil {
		t.Error("a door without a bound on connections was made")
	}
}

// TestWhatIsNoRequest: other methods and paths, with and without a signature.
func TestWhatIsNoRequest(t *testing.T) {
	t.Parallel()
	c := &core{do: func(context.Context, *identity.Caller, string, proto.Message) (proto.Message, error) {
		return &keyholdv1.EncryptResponse{}, nil
	}}
	s := open(t, c)
	for _, tt := range []struct{ method, path string }{
		{http.MethodGet, ""},
		{http.MethodHead, ""},
		{http.MethodOptions, ""},
		{http.MethodPut, ""},
		{http.MethodDelete, ""},
		{"BREW", ""},
		{http.MethodPost, "kms"},
		{http.MethodPost, "%2f"},
		{http.MethodGet, "metrics?Action=GetCallerIdentity"},
	} {
		for _, signed := range []bool{false, true} {
			r := s.request("Encrypt", "{}")
			u, err := url.Parse(s.url + tt.path)
			if err != nil {
				t.Fatal(err)
			}
			r.Method, r.URL = tt.method, u
			if signed {
				s.signer.Sign(r, []byte("{}"), time.Now())
			}
			a := s.send(r)
			want := `{"__type":"UnknownOperationException"}`
			if tt.method == http.MethodHead {
				want = ""
			}
			if a.status != http.StatusNotFound || string(a.body) != want {
				t.Errorf("%s /%s: %d %q", tt.method, tt.path, a.status, a.body)
			}
		}
	}
	// A target in the query is none, and a signature does not make it one.
	r := s.request("", "{}")
	r.Header.Del("X-Amz-Target")
	r.URL.RawQuery = "X-Amz-Target=TrentService.Encrypt"
	s.signer.Presign(r, []byte("{}"), time.Now(), time.Minute)
	if a := s.send(r); string(a.body) != `{"__type":"UnknownOperationException"}` {
		t.Errorf("a target in the query: %d %s", a.status, a.body)
	}
	if seen := c.seen(); len(seen) > 0 {
		t.Errorf("the core saw %v", seen)
	}
	// A presigned request with the target where it belongs is one.
	r = s.request("Encrypt", "{}")
	s.signer.Presign(r, []byte("{}"), time.Now(), time.Minute)
	if a := s.send(r); a.status != http.StatusOK {
		t.Errorf("presigned: %d %s", a.status, a.body)
	}
}

// TestContentType: the target says which protocol it is.
func TestContentType(t *testing.T) {
	t.Parallel()
	s := open(t, &core{do: func(context.Context, *identity.Caller, string, proto.Message) (proto.Message, error) {
		return &keyholdv1.EncryptResponse{}, nil
	}})
	for _, kind := range []string{"", jsonType, "application/x-amz-json-1.0", "application/json; charset=utf-8", "application/x-www-form-urlencoded"} {
		r := s.request("Encrypt", "{}")
		r.Header.Del("Content-Type")
		if kind != "" {
			r.Header.Set("Content-Type", kind)
		}
		unsigned := r.Clone(t.Context())
		unsigned.Body, _ = r.GetBody()
		if code, _ := s.send(unsigned).exception(t); code != "MissingAuthenticationTokenException" {
			t.Errorf("%q unsigned: %s", kind, code)
		}
		s.signer.Sign(r, []byte("{}"), time.Now())
		if a := s.send(r); a.status != http.StatusOK {
			t.Errorf("%q: %d %s", kind, a.status, a.body)
		}
	}
}
