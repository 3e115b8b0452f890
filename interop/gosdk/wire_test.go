package gosdk_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/keyhold/keyhold/interop/daemon"
)

// TestCallerIdentity: what tools call first, sent and presigned.
func TestCallerIdentity(t *testing.T) {
	client := sts.NewFromConfig(awsConfig(t))
	who, err := client.GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{})
	if err != nil {
		t.Fatal(err)
	}
	if *who.Account != daemon.Account || *who.Arn != "arn:aws:iam::"+daemon.Account+":root" || *who.UserId == "" {
		t.Errorf("%+v", who)
	}
	signed, err := sts.NewPresignClient(client).PresignGetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{})
	if err != nil {
		t.Fatal(err)
	}
	status, answer := send(t, signed.Method, signed.URL, signed.SignedHeader, "")
	if status != http.StatusOK || !strings.Contains(answer, "<Account>"+daemon.Account+"</Account>") {
		t.Errorf("%d %s", status, answer)
	}
	status, answer = send(t, signed.Method, strings.Replace(signed.URL, "X-Amz-Signature=", "X-Amz-Signature=0", 1), signed.SignedHeader, "")
	if status != http.StatusForbidden || !strings.Contains(answer, "SignatureDoesNotMatch") {
		t.Errorf("forged: %d %s", status, answer)
	}
}

// TestPresigned: a request for another to send, with all of it in the URL but the
// body and the target. The SDK's signer moves the target into the URL, unless told
// otherwise; it must be a header too, with AWS as here.
func TestPresigned(t *testing.T) {
	cfg := awsConfig(t)
	credentials, err := cfg.Credentials.Retrieve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	body := `{"NumberOfBytes":8}`
	sign := func(at time.Time, expires string, hoist bool) (string, http.Header) {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, running.Endpoint+"/?X-Amz-Expires="+expires, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-Amz-Target", "TrentService.GenerateRandom")
		r.Header.Set("Content-Type", "application/x-amz-json-1.1")
		digest := sha256.Sum256([]byte(body))
		url, headers, err := v4.NewSigner().PresignHTTP(t.Context(), credentials, r, hex.EncodeToString(digest[:]), "kms", cfg.Region, at, func(o *v4.SignerOptions) {
			o.DisableHeaderHoisting = !hoist
		})
		if err != nil {
			t.Fatal(err)
		}
		return url, headers
	}
	for _, hoist := range []bool{false, true} {
		url, headers := sign(time.Now(), "60", hoist)
		if in := strings.Contains(url, "X-Amz-Target="); in != hoist || in == (headers.Get("X-Amz-Target") != "") {
			t.Errorf("hoisted %t: %s, %v", hoist, url, headers)
		}
		headers.Set("X-Amz-Target", "TrentService.GenerateRandom")
		if status, answer := send(t, http.MethodPost, url, headers, body); status != http.StatusOK || !strings.Contains(answer, `"Plaintext":`) {
			t.Errorf("hoisted %t: %d %s", hoist, status, answer)
		}
		if status, answer := send(t, http.MethodPost, url, headers, `{"NumberOfBytes":9}`); status != http.StatusBadRequest || !strings.Contains(answer, "InvalidSignatureException") {
			t.Errorf("hoisted %t, another body: %d %s", hoist, status, answer)
		}
		headers.Set("X-Amz-Target", "TrentService.CreateKey")
		if status, answer := send(t, http.MethodPost, url, headers, body); status != http.StatusBadRequest || !strings.Contains(answer, "InvalidSignatureException") {
			t.Errorf("hoisted %t, another target: %d %s", hoist, status, answer)
		}
		url, headers = sign(time.Now().Add(-time.Hour), "60", hoist)
		headers.Set("X-Amz-Target", "TrentService.GenerateRandom")
		if status, answer := send(t, http.MethodPost, url, headers, body); status != http.StatusBadRequest || !strings.Contains(answer, "InvalidSignatureException") {
			t.Errorf("hoisted %t, expired: %d %s", hoist, status, answer)
		}
	}
}

func send(t *testing.T, method, url string, headers http.Header, body string) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header = headers.Clone()
	r.Header.Del("Host")
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(answer)
}

// lossy loses the first answers, after the daemon gave them.
type lossy struct {
	lose, sent atomic.Int32
}

func (l *lossy) Do(r *http.Request) (*http.Response, error) {
	l.sent.Add(1)
	resp, err := http.DefaultClient.Do(r)
	if err == nil && l.lose.Add(-1) >= 0 {
		return nil, errors.Join(io.ErrUnexpectedEOF, resp.Body.Close())
	}
	return resp, err
}

// TestRetries: the SDK sends again what got no answer, signed anew, and does not
// send again what was refused.
func TestRetries(t *testing.T) {
	wire := &lossy{}
	client := kms.NewFromConfig(awsConfig(t), func(o *kms.Options) { o.HTTPClient = wire })
	wire.lose.Store(2)
	out, err := client.GenerateRandom(t.Context(), &kms.GenerateRandomInput{NumberOfBytes: aws.Int32(8)})
	if err != nil || len(out.Plaintext) != 8 || wire.sent.Load() != 3 {
		t.Errorf("%d sent: %v", wire.sent.Load(), err)
	}
	wire.sent.Store(0)
	_, err = client.DescribeKey(t.Context(), &kms.DescribeKeyInput{KeyId: aws.String("alias/no-such-key")})
	if codeOf(err) != "NotFoundException" || wire.sent.Load() != 1 {
		t.Errorf("%d sent: %v", wire.sent.Load(), err)
	}
}

// TestRefused: the codes of the common errors, as the SDK reads them.
func TestRefused(t *testing.T) {
	cfg := awsConfig(t)
	for name, c := range map[string]struct {
		id, secret, token, region, want string
	}{
		"secret":  {running.AccessKeyID, "wrong", "", cfg.Region, "InvalidSignatureException"},
		"key":     {"AKIAIOSFODNN7EXAMPLE", "wrong", "", cfg.Region, "UnrecognizedClientException"},
		"region":  {running.AccessKeyID, running.SecretAccessKey, "", "us-east-1", "InvalidSignatureException"},
		"session": {running.AccessKeyID, running.SecretAccessKey, "no session of ours", cfg.Region, "UnrecognizedClientException"},
	} {
		client := kms.NewFromConfig(cfg, func(o *kms.Options) {
			o.Region = c.region
			o.Retryer = aws.NopRetryer{}
			o.Credentials = aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
				return aws.Credentials{AccessKeyID: c.id, SecretAccessKey: c.secret, SessionToken: c.token}, nil
			})
		})
		_, err := client.ListKeys(t.Context(), &kms.ListKeysInput{})
		if got := codeOf(err); got != c.want {
			t.Errorf("%s: %v; want %s", name, err, c.want)
		}
	}
	anonymous := kms.NewFromConfig(cfg, func(o *kms.Options) { o.Credentials, o.Retryer = aws.AnonymousCredentials{}, aws.NopRetryer{} })
	if _, err := anonymous.ListKeys(t.Context(), &kms.ListKeysInput{}); codeOf(err) != "MissingAuthenticationTokenException" {
		t.Errorf("anonymous: %v", err)
	}
}

// TestRequestID: an answer's request id is in its metadata, where support asks
// for it.
func TestRequestID(t *testing.T) {
	client := kms.NewFromConfig(awsConfig(t))
	out, err := client.ListKeys(t.Context(), &kms.ListKeysInput{})
	if err != nil {
		t.Fatal(err)
	}
	if id, ok := awsmiddleware.GetRequestIDMetadata(out.ResultMetadata); !ok || len(id) != 36 {
		t.Errorf("request id %q", id)
	}
}
