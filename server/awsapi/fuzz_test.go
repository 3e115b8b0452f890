package awsapi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/keyhold/keyhold/server/identity"
	"github.com/keyhold/keyhold/server/kms"
)

// FuzzRequest: whatever an authenticated caller sends, and whatever a stranger
// does, is a request or is refused as the caller's fault, in the form of the JSON
// protocol.
func FuzzRequest(f *testing.F) {
	for _, body := range []string{"", "{}", "{}x", `{"KeyId":"k","Plaintext":"YQ=="}`, `{"Tags":[{"TagKey":"a"}],"EncryptionContext":{"a":"b"}}`, "{\"KeyId\":\"\xff\"}", `{"KeySpec":"X"}`, "[[[["} {
		for _, target := range []string{"TrentService.Encrypt", "TrentService.CreateKey", "TrentService.Batch", "", "x\ty"} {
			f.Add(target, "application/x-amz-json-1.1", []byte(body), true)
		}
		f.Add("TrentService.Encrypt", "text/plain", []byte(body), false)
	}
	c := &core{do: func(context.Context, *identity.Caller, string, proto.Message) (proto.Message, error) {
		return nil, &kms.Error{Code: kms.CodeValidation, Message: "no"}
	}}
	s := open(f, c)
	f.Fuzz(func(t *testing.T, target, kind string, body []byte, signed bool) {
		r := httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(body))
		r.Host = s.address
		r.Header = http.Header{"X-Amz-Target": {target}, "Content-Type": {kind}}
		if target == "" {
			r.Header["X-Amz-Target"] = []string{"TrentService."}
		}
		if signed {
			s.signer.Sign(r, body, time.Now())
			r.RequestURI = r.URL.RequestURI()
		}
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		resp := w.Result()
		text, err := io.ReadAll(resp.Body)
		var e map[string]string
		if err = errors.Join(err, json.Unmarshal(text, &e)); err != nil || e["__type"] == "" {
			t.Fatalf("%d %q: %v", resp.StatusCode, text, err)
		}
		if resp.StatusCode != http.StatusBadRequest && resp.StatusCode != http.StatusRequestEntityTooLarge {
			t.Fatalf("%d %q", resp.StatusCode, text)
		}
	})
}
