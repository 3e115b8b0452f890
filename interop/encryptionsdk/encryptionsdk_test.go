// Package encryptionsdk_test runs the AWS Encryption SDKs for Go and for
// JavaScript against a real daemon: what one encrypts the other decrypts.
package encryptionsdk_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"maps"
	"os"
	"strings"
	"testing"

	mpl "github.com/aws/aws-cryptographic-material-providers-library/releases/go/mpl/awscryptographymaterialproviderssmithygenerated"
	mpltypes "github.com/aws/aws-cryptographic-material-providers-library/releases/go/mpl/awscryptographymaterialproviderssmithygeneratedtypes"
	esdk "github.com/aws/aws-encryption-sdk/releases/go/encryption-sdk/awscryptographyencryptionsdksmithygenerated"
	esdktypes "github.com/aws/aws-encryption-sdk/releases/go/encryption-sdk/awscryptographyencryptionsdksmithygeneratedtypes"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/keyhold/keyhold/interop/daemon"
)

var running *daemon.Daemon

func TestMain(m *testing.M) {
	os.Exit(daemon.Main(m, func(d *daemon.Daemon) error {
		running = d
		return nil
	}))
}

// bound is the encryption context of every message; the SDKs add their own.
var bound = map[string]string{"purpose": "größe ☃", "empty": "-"}

// both are the two SDKs.
type both struct {
	kms    *kms.Client
	mpl    *mpl.Client
	esdk   *esdk.Client
	first  string // keys, ARNs
	second string
	script string
}

func newBoth(t *testing.T) *both {
	t.Helper()
	running.Need(t, "node")
	for _, s := range running.Env() {
		name, value, _ := strings.Cut(s, "=")
		t.Setenv(name, value)
	}
	cfg, err := config.LoadDefaultConfig(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b := &both{kms: kms.NewFromConfig(cfg)}
	if b.mpl, err = mpl.NewClient(mpltypes.MaterialProvidersConfig{}); err != nil {
		t.Fatal(err)
	}
	if b.esdk, err = esdk.NewClient(esdktypes.AwsEncryptionSdkConfig{}); err != nil {
		t.Fatal(err)
	}
	for _, arn := range []*string{&b.first, &b.second} {
		key, err := b.kms.CreateKey(t.Context(), &kms.CreateKeyInput{})
		if err != nil {
			t.Fatal(err)
		}
		*arn = *key.KeyMetadata.Arn
	}
	text, err := os.ReadFile("testdata/encryptionsdk.js")
	if err != nil {
		t.Fatal(err)
	}
	b.script = string(text)
	return b
}

// job is what testdata/encryptionsdk.js does.
type job struct {
	Mode    string            `json:"mode"` // encrypt or decrypt
	KeyID   string            `json:"keyId"`
	More    []string          `json:"more,omitempty"` // keys, to encrypt for
	Cached  bool              `json:"cached,omitempty"`
	Context map[string]string `json:"context,omitempty"`
	// Inputs and what comes of them are base64 when they travel.
	Inputs [][]byte `json:"inputs"`
}

type result struct {
	Outputs  [][]byte            `json:"outputs"`
	Contexts []map[string]string `json:"contexts"`
	Calls    map[string]int      `json:"calls"` // of the service, by operation
	Error    string              `json:"error"`
}

func (b *both) js(t *testing.T, j job) result {
	t.Helper()
	in, err := json.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	var r result
	out := running.Script(t, b.script, "JOB="+base64.StdEncoding.EncodeToString(in), "node", "-")
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	return r
}

// goKeyring is that of the first key, and the second in addition.
func (b *both) goKeyring(t *testing.T) mpltypes.IKeyring {
	t.Helper()
	k, err := b.mpl.CreateAwsKmsMultiKeyring(t.Context(), mpltypes.CreateAwsKmsMultiKeyringInput{Generator: &b.first, KmsKeyIds: []string{b.second}})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (b *both) goOne(t *testing.T, arn string) mpltypes.IKeyring {
	t.Helper()
	keyring, err := b.mpl.CreateAwsKmsKeyring(t.Context(), mpltypes.CreateAwsKmsKeyringInput{KmsClient: b.kms, KmsKeyId: arn})
	if err != nil {
		t.Fatal(err)
	}
	return keyring
}

var plaintexts = [][]byte{[]byte("attack at dawn"), {}, bytes.Repeat([]byte{0, 1, 0xff}, 10_000)}

// TestGoToJS: encrypted by Go for two keys; JavaScript decrypts with either.
func TestGoToJS(t *testing.T) {
	b := newBoth(t)
	var messages [][]byte
	for _, p := range plaintexts {
		out, err := b.esdk.Encrypt(t.Context(), esdktypes.EncryptInput{Plaintext: p, Keyring: b.goKeyring(t), EncryptionContext: bound})
		if err != nil {
			t.Fatal(err)
		}
		messages = append(messages, out.Ciphertext)
	}
	for _, key := range []string{b.first, b.second} {
		got := b.js(t, job{Mode: "decrypt", KeyID: key, Inputs: messages})
		for i, p := range plaintexts {
			if got.Error != "" || !bytes.Equal(got.Outputs[i], p) || !contains(got.Contexts[i], bound) {
				t.Errorf("%s, message %d: %+v", key, i, got)
			}
		}
	}
}

// TestJSToGo: encrypted by JavaScript, with and without the caching materials
// manager; Go decrypts with either key.
func TestJSToGo(t *testing.T) {
	b := newBoth(t)
	for _, cached := range []bool{false, true} {
		made := b.js(t, job{Mode: "encrypt", KeyID: b.first, More: []string{b.second}, Cached: cached, Context: bound, Inputs: plaintexts})
		if made.Error != "" {
			t.Fatal(made.Error)
		}
		for _, key := range []string{b.first, b.second} {
			for i, m := range made.Outputs {
				got, err := b.esdk.Decrypt(t.Context(), esdktypes.DecryptInput{Ciphertext: m, Keyring: b.goOne(t, key), EncryptionContext: bound})
				if err != nil || !bytes.Equal(got.Plaintext, plaintexts[i]) || !contains(got.EncryptionContext, bound) {
					t.Errorf("cached %v, %s, message %d: %v", cached, key, i, err)
				}
			}
		}
		// What the cache is for: one data key for all messages.
		if want := map[bool]int{true: 1, false: len(plaintexts)}[cached]; made.Calls["GenerateDataKeyCommand"] != want {
			t.Errorf("cached %v: calls %v", cached, made.Calls)
		}
	}
}

// TestRefused: another key, another context, a changed message.
func TestRefused(t *testing.T) {
	b := newBoth(t)
	out, err := b.esdk.Encrypt(t.Context(), esdktypes.EncryptInput{Plaintext: []byte("x"), Keyring: b.goOne(t, b.first), EncryptionContext: bound})
	if err != nil {
		t.Fatal(err)
	}
	if got := b.js(t, job{Mode: "decrypt", KeyID: b.second, Inputs: [][]byte{out.Ciphertext}}); got.Error == "" {
		t.Errorf("JavaScript decrypted with another key: %+v", got)
	}
	if _, err := b.esdk.Decrypt(t.Context(), esdktypes.DecryptInput{Ciphertext: out.Ciphertext, Keyring: b.goOne(t, b.second)}); err == nil {
		t.Error("Go decrypted with another key")
	}
	if _, err := b.esdk.Decrypt(t.Context(), esdktypes.DecryptInput{
		Ciphertext: out.Ciphertext, Keyring: b.goOne(t, b.first), EncryptionContext: map[string]string{"purpose": "other"},
	}); err == nil {
		t.Error("Go decrypted with another context")
	}
	// The context is in the message's header, and bound by the service.
	changed := bytes.Replace(out.Ciphertext, []byte("größe"), []byte("grosse"), 1)
	if bytes.Equal(changed, out.Ciphertext) {
		t.Fatal("the header has no context")
	}
	if got := b.js(t, job{Mode: "decrypt", KeyID: b.first, Inputs: [][]byte{changed}}); got.Error == "" {
		t.Errorf("JavaScript decrypted with a changed context: %+v", got)
	}
}

// contains tells whether all has what part has.
func contains(all, part map[string]string) bool {
	rest := maps.Clone(part)
	maps.DeleteFunc(rest, func(k, v string) bool { return all[k] == v })
	return len(rest) == 0
}
