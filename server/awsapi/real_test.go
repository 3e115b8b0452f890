package awsapi_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyhold/keyhold/hsm"
	"github.com/keyhold/keyhold/hsm/hsmtest"
	"github.com/keyhold/keyhold/server/audit"
	"github.com/keyhold/keyhold/server/awsapi"
	"github.com/keyhold/keyhold/server/door"
	"github.com/keyhold/keyhold/server/identity"
	"github.com/keyhold/keyhold/server/identity/credentials"
	"github.com/keyhold/keyhold/server/kms"
	"github.com/keyhold/keyhold/server/kms/tokenstore"
	"github.com/keyhold/keyhold/server/sigv4"
	"github.com/keyhold/keyhold/server/store/sqlite"
	softhsmconfig "github.com/keyhold/keyhold/softhsm-config"
)

// token is a SoftHSM token that may be said to be away.
type token struct {
	*tokenstore.Store
	away atomic.Bool
}

func (k *token) fault() error {
	if k.away.Load() {
		return fmt.Errorf("the test took it away: %w", kms.ErrStoreUnavailable)
	}
	return nil
}

func (k *token) Seal(ctx context.Context, l kms.Locator, aad, plaintext []byte) (kms.Sealed, error) {
	if err := k.fault(); err != nil {
		return kms.Sealed{}, err
	}
	return k.Store.Seal(ctx, l, aad, plaintext)
}

func (k *token) Open(ctx context.Context, l kms.Locator, aad []byte, s kms.Sealed) ([]byte, error) {
	if err := k.fault(); err != nil {
		return nil, err
	}
	return k.Store.Open(ctx, l, aad, s)
}

// installation is the core with all that it stands on, behind the door.
type installation struct {
	*served
	token    *token
	verifier *sigv4.Verifier
	journal  string
}

func install(t *testing.T) *installation {
	t.Helper()
	library := hsmtest.Library(t)
	ctx, dir := t.Context(), t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	made, err := softhsmconfig.Init(ctx, softhsmconfig.Options{Dir: dir, Label: "aws-door", Module: library})
	must(err)
	must(made.Use())
	tok, err := hsm.Open(hsm.Config{Module: made.Module, TokenLabel: made.Label, PIN: hsm.PINFile(made.PINFile)}, hsm.Options{})
	must(err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := tok.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	_, err = tok.EnsureCanary(ctx)
	must(err)
	must(tok.WaitReady(ctx))
	i := &installation{token: &token{Store: tokenstore.New(tok)}, journal: filepath.Join(dir, "audit")}

	db, err := sqlite.Create(ctx, filepath.Join(dir, "data"), sqlite.Options{})
	must(err)
	t.Cleanup(func() { db.Close() })
	seal := kms.NewSealKey(i.token, db.Instance())
	_, err = seal.Ensure(ctx)
	must(err)
	principals, err := identity.NewDirectory([]identity.Binding{{Principal: aliceARN}})
	must(err)
	logs := &logBuffer{}
	log := slog.New(slog.NewTextHandler(logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	access, err := identity.NewAccessKeys(ctx, identity.AccessKeysConfig{
		Store: db, Sealer: seal.Column("access_keys", "sealed_secret"), Principals: func() *identity.Directory { return principals }, Logger: log,
	})
	must(err)
	alice, err := identity.ParsePrincipal(aliceARN)
	must(err)
	record, secret, err := access.Create(ctx, alice, identity.NewAccessKeyID(), 2)
	must(err)
	journal, err := audit.Open(i.journal, audit.Options{Create: true, SegmentBytes: 1 << 20, Logger: log})
	must(err)
	t.Cleanup(func() {
		if err := journal.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	core, err := kms.New(ctx, kms.Config{
		Store: db, Regions: map[kms.Region]kms.KeyStore{region: i.token, "eu-west-1": i.token}, Journal: journal, Logger: log, AccessKeys: access,
	})
	must(err)
	t.Cleanup(core.Close)
	creds := credentials.New(access)
	i.verifier, err = sigv4.New(sigv4.Config{Credentials: creds, Regions: []string{region, "eu-west-1"}, AllowQuery: true})
	must(err)
	creds.Forget(i.verifier)
	i.served = open(t, core, overTLS("http/1.1"), func(cfg *awsapi.Config, s *served) {
		cfg.Verifier, cfg.Keys, cfg.Logger, s.logs = i.verifier, creds, log, logs
		cfg.Failures = door.FailureLimits{Burst: 100, Now: stopped(s)}
	})
	i.signer.AccessKeyID, i.signer.Secret = record.ID, string(secret)
	return i
}

// event is what the tests read of a record.
type event struct {
	EventName, EventSource, AwsRegion, ErrorCode, ErrorMessage, RequestID string
	UserIdentity                                                          struct{ Arn, AccessKeyId string }
	TLSDetails                                                            struct{ TLSVersion, ClientProvidedHostHeader string }
	AdditionalEventData                                                   map[string]string
}

func (i *installation) events() []event {
	i.t.Helper()
	var all []event
	for r, err := range audit.Read(i.journal, 0) {
		if err != nil {
			i.t.Fatal(err)
		}
		var e event
		if err := json.Unmarshal(r.Payload, &e); err != nil {
			i.t.Fatal(err)
		}
		all = append(all, e)
	}
	return all
}

// bytesOnDisk is the size of the audit log.
func (i *installation) bytesOnDisk() (n int64) {
	i.t.Helper()
	entries, err := os.ReadDir(i.journal)
	if err != nil {
		i.t.Fatal(err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			n += info.Size()
		}
	}
	return n
}

// okay calls and wants it to succeed.
func (i *installation) okay(operation, body string) (a answer, out map[string]any) {
	i.t.Helper()
	a = i.call(operation, body)
	if a.status != http.StatusOK {
		i.t.Fatalf("%s: %d %s", operation, a.status, a.body)
	}
	if len(a.body) > 0 {
		if err := json.Unmarshal(a.body, &out); err != nil {
			i.t.Fatal(err)
		}
	}
	return a, out
}

// TestRealCore: the door over the core, SoftHSM, SQLite and the journal.
func TestRealCore(t *testing.T) {
	t.Parallel()
	i := install(t)
	_, made := i.okay("CreateKey", `{}`)
	meta, _ := made["KeyMetadata"].(map[string]any)
	arn, _ := meta["Arn"].(string)
	plaintext := base64.StdEncoding.EncodeToString([]byte("attack at dawn, and tell nobody"))

	a, sealed := i.okay("Encrypt", fmt.Sprintf(`{"KeyId":%q,"Plaintext":%q}`, arn, plaintext))
	events := i.events()
	e := events[len(events)-1]
	if e.RequestID != a.header.Get("X-Amzn-Requestid") || e.EventName != "Encrypt" || e.AwsRegion != region || e.UserIdentity.Arn != aliceARN ||
		e.UserIdentity.AccessKeyId != i.signer.AccessKeyID || e.TLSDetails.TLSVersion != "TLSv1.3" || e.TLSDetails.ClientProvidedHostHeader != i.address ||
		e.AdditionalEventData["door"] != "aws" || e.AdditionalEventData["subject"] != i.signer.AccessKeyID {
		t.Errorf("the record is %+v; request id %s, host %s", e, a.header.Get("X-Amzn-Requestid"), i.address)
	}
	blob, _ := sealed["CiphertextBlob"].(string)
	decrypt := fmt.Sprintf(`{"CiphertextBlob":%q}`, blob)
	if _, out := i.okay("Decrypt", decrypt); out["Plaintext"] != plaintext || out["KeyId"] != arn {
		t.Errorf("Decrypt answers %v", out)
	}

	t.Run("regions", func(t *testing.T) {
		other := i.signer
		other.Region = "eu-west-1"
		r := i.request("ListKeys", "{}")
		other.Sign(r, []byte("{}"), time.Now())
		if a := i.send(r); a.status != http.StatusOK || strings.Contains(string(a.body), arn) {
			t.Errorf("the keys of another region: %d %s", a.status, a.body)
		}
	})
	t.Run("constraints", func(t *testing.T) { i.constraints(t, arn) })
	t.Run("malformed requests are recorded", func(t *testing.T) {
		before := len(i.events())
		a := i.call("Encrypt", "{}x")
		if code, _ := a.exception(t); code != "SerializationException" {
			t.Errorf("%s", a.body)
		}
		got := i.events()[before:]
		if len(got) != 1 || got[0].EventName != "Encrypt" || got[0].ErrorCode != "ValidationException" || got[0].RequestID != a.header.Get("X-Amzn-Requestid") {
			t.Errorf("recorded: %+v", got)
		}
	})
	t.Run("strangers are not", func(t *testing.T) {
		records, size, refused := len(i.events()), i.bytesOnDisk(), i.refused.Load()
		for n := range 200 {
			r := i.request("Encrypt", "{}")
			if n%2 == 0 {
				wrong := i.signer
				wrong.Secret = "wrong"
				wrong.Sign(r, []byte("{}"), time.Now())
			}
			i.send(r)
		}
		if i.refused.Load()-refused != 200 || i.throttled.Load() != 100 || len(i.events()) != records || i.bytesOnDisk() != size {
			t.Errorf("%d refused, %d of them throttled, %d records more, %d bytes more",
				i.refused.Load()-refused, i.throttled.Load(), len(i.events())-records, i.bytesOnDisk()-size)
		}
		i.okay("DescribeKey", fmt.Sprintf(`{"KeyId":%q}`, arn))
	})
	t.Run("token away", func(t *testing.T) {
		i.token.away.Store(true)
		defer i.token.away.Store(false)
		a := i.call("Encrypt", fmt.Sprintf(`{"KeyId":%q,"Plaintext":"YQ=="}`, arn))
		if code, _ := a.exception(t); a.status != http.StatusInternalServerError || code != "KeyUnavailableException" {
			t.Errorf("Encrypt: %d %s", a.status, a.body)
		}
		i.okay("DescribeKey", fmt.Sprintf(`{"KeyId":%q}`, arn))
		i.verifier.ForgetAll() // as at midnight
		refused := i.refused.Load()
		a = i.call("DescribeKey", fmt.Sprintf(`{"KeyId":%q}`, arn))
		if code, message := a.exception(t); a.status != http.StatusInternalServerError || code != "KMSInternalException" || strings.Contains(message, "the test") || i.refused.Load() != refused {
			t.Errorf("when no signing key can be derived: %d %s", a.status, a.body)
		}
	})
	// A derivation that failed is not tried again for a second.
	back := time.Now().Add(30 * time.Second)
	for i.call("DescribeKey", fmt.Sprintf(`{"KeyId":%q}`, arn)).status != http.StatusOK {
		if time.Now().After(back) {
			t.Fatal("no request is served although the token is back")
		}
		time.Sleep(20 * time.Millisecond)
	}
	if _, out := i.okay("Decrypt", decrypt); out["Plaintext"] != plaintext {
		t.Errorf("when the token is back: %v", out)
	}
	for what, secret := range map[string]string{"plaintext": "attack at dawn", "base64": plaintext, "secret": i.signer.Secret, "ciphertext": blob} {
		if strings.Contains(i.logs.String(), secret) {
			t.Errorf("the log has the %s", what)
		}
	}
}

// constraints at their edges: n is taken, n+1 is refused in AWS's words, and both
// are recorded.
func (i *installation) constraints(t *testing.T, arn string) {
	text := func(n int) string { return strings.Repeat("a", n) }
	blob := func(n int) string { return base64.StdEncoding.EncodeToString(make([]byte, n)) }
	list := func(n int, element string) string {
		return "[" + strings.TrimSuffix(strings.Repeat(element+",", n), ",") + "]"
	}
	for _, tt := range []struct {
		operation, good, bad, words string
	}{
		{
			"Encrypt", fmt.Sprintf(`{"KeyId":%q,"Plaintext":%q}`, arn, blob(4096)), fmt.Sprintf(`{"KeyId":%q,"Plaintext":%q}`, arn, blob(4097)),
			"1 validation error detected: Value at 'plaintext' failed to satisfy constraint: Member must have length less than or equal to 4096",
		},
		{
			"Encrypt", fmt.Sprintf(`{"KeyId":%q,"Plaintext":%q}`, arn, blob(1)), fmt.Sprintf(`{"KeyId":%q,"Plaintext":""}`, arn),
			"1 validation error detected: Value at 'plaintext' failed to satisfy constraint: Member must have length greater than or equal to 1",
		},
		{
			"Encrypt", "", `{"KeyId":"","Plaintext":"YQ=="}`,
			"1 validation error detected: Value at 'keyId' failed to satisfy constraint: Member must have length greater than or equal to 1",
		},
		{
			"Encrypt", "", `{}`,
			"2 validation errors detected: Value at 'keyId' failed to satisfy constraint: Member must not be null; Value at 'plaintext' failed to satisfy constraint: Member must not be null",
		},
		{
			"DescribeKey", fmt.Sprintf(`{"KeyId":%q,"GrantTokens":%s}`, arn, list(10, `"t"`)), fmt.Sprintf(`{"KeyId":%q,"GrantTokens":%s}`, arn, list(11, `"t"`)),
			"1 validation error detected: Value at 'grantTokens' failed to satisfy constraint: Member must have length less than or equal to 10",
		},
		{
			"UpdateKeyDescription", fmt.Sprintf(`{"KeyId":%q,"Description":%q}`, arn, text(8192)), fmt.Sprintf(`{"KeyId":%q,"Description":%q}`, arn, text(8193)),
			"1 validation error detected: Value at 'description' failed to satisfy constraint: Member must have length less than or equal to 8192",
		},
		{
			"GenerateRandom", `{"NumberOfBytes":1024}`, `{"NumberOfBytes":1025}`,
			"1 validation error detected: Value at 'numberOfBytes' failed to satisfy constraint: Member must have value less than or equal to 1024",
		},
		{
			"GenerateRandom", `{"NumberOfBytes":1}`, `{"NumberOfBytes":0}`,
			"1 validation error detected: Value at 'numberOfBytes' failed to satisfy constraint: Member must have value greater than or equal to 1",
		},
		{
			"ListKeys", `{"Limit":1000}`, `{"Limit":1001}`,
			"1 validation error detected: Value at 'limit' failed to satisfy constraint: Member must have value less than or equal to 1000",
		},
		{
			"TagResource", fmt.Sprintf(`{"KeyId":%q,"Tags":[{"TagKey":"a","TagValue":%q}]}`, arn, text(256)), fmt.Sprintf(`{"KeyId":%q,"Tags":[{"TagKey":"a","TagValue":%q}]}`, arn, text(257)),
			"1 validation error detected: Value at 'tags.1.member.tagValue' failed to satisfy constraint: Member must have length less than or equal to 256",
		},
		{
			"CreateAlias", fmt.Sprintf(`{"AliasName":"alias/%s","TargetKeyId":%q}`, text(250), arn), fmt.Sprintf(`{"AliasName":"alias/%s","TargetKeyId":%q}`, text(251), arn),
			"1 validation error detected: Value at 'aliasName' failed to satisfy constraint: Member must have length less than or equal to 256",
		},
	} {
		if tt.good != "" {
			i.okay(tt.operation, tt.good)
		}
		before := len(i.events())
		a := i.call(tt.operation, tt.bad)
		code, message := a.exception(t)
		if a.status != http.StatusBadRequest || code != "ValidationException" || message != tt.words {
			t.Errorf("%s %.100s: %d %s\n%s, want\n%s", tt.operation, tt.bad, a.status, code, message, tt.words)
		}
		if got := i.events()[before:]; len(got) != 1 || got[0].ErrorCode != "ValidationException" || got[0].RequestID != a.header.Get("X-Amzn-Requestid") {
			t.Errorf("%s %.100s: recorded are %+v", tt.operation, tt.bad, got)
		}
	}
}
