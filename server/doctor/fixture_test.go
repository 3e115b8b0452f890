package doctor

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/keyhold/keyhold/hsm"
	"github.com/keyhold/keyhold/hsm/hsmtest"
	"github.com/keyhold/keyhold/hsm/hsmtest/fault"
	"github.com/keyhold/keyhold/hsm/witness"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server"
	"github.com/keyhold/keyhold/server/audit"
	"github.com/keyhold/keyhold/server/kms"
	"github.com/keyhold/keyhold/server/store/sqlite"
)

// TestMain lets the test's program be the witness's child.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "witness" {
		if err := witness.Main(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// installation is a whole one, as `keyholdd init` leaves it, on a SoftHSM of
// the test's own.
type installation struct {
	t       *testing.T
	dir     string
	file    string // the configuration
	cfg     server.Config
	fixture *hsmtest.Fixture
	fault   *fault.Module // nil where the library does not misbehave
	now     time.Time
}

// install makes an installation. With faults its library can be told to
// misbehave.
func install(t *testing.T, faults bool) *installation {
	t.Helper()
	i := &installation{t: t, now: time.Now()}
	if faults {
		i.fault = fault.New(t, hsmtest.Library(t))
		i.fixture = hsmtest.NewAt(t, t.TempDir(), i.fault.Path)
	} else {
		i.fixture = hsmtest.New(t)
	}
	i.dir = i.fixture.Dir
	i.plan(server.TokenConfig{
		Name: "home", Module: i.fixture.Module, Label: i.fixture.Label, PINSource: "file:" + i.fixture.PINFile,
		Environment: map[string]string{"SOFTHSM2_CONF": i.fixture.Conf},
	})
	cfg, err := server.LoadConfig(i.file)
	must(t, err)
	if _, err := server.Initialise(t.Context(), cfg, server.Options{Logger: discard(), Version: "test"}); err != nil {
		t.Fatal(err)
	}
	return i
}

// withoutToken makes an installation whose token cannot be looked at, for
// tests of the rest.
func withoutToken(t *testing.T) *installation {
	t.Helper()
	i := &installation{t: t, now: time.Now(), dir: t.TempDir()}
	i.plan(server.TokenConfig{Name: "home", Module: "/nonexistent/lib.so", Label: "none", PINSource: "file:/nonexistent/pin"})
	s, err := sqlite.Create(t.Context(), i.cfg.DataDir, sqlite.Options{})
	must(t, err)
	must(t, s.Close())
	j, err := audit.Open(i.auditDir(), audit.Options{Create: true, SegmentBytes: i.cfg.Audit.SegmentBytes})
	must(t, err)
	must(t, j.Close(t.Context()))
	return i
}

// plan writes certificates and a configuration.
func (i *installation) plan(token server.TokenConfig) {
	i.t.Helper()
	pki := makePKI(i.t, i.dir, i.now)
	i.cfg = server.Config{
		DataDir:    filepath.Join(i.dir, "data"),
		Tokens:     []server.TokenConfig{token},
		Regions:    []server.RegionConfig{{Name: "us-east-1", Token: "home"}},
		Principals: []server.PrincipalConfig{{ARN: "arn:aws:iam::111122223333:root", Subjects: []string{"cn:root"}}},
		GRPC:       server.GRPCConfig{Listen: "127.0.0.1:9443", Cert: pki.cert, Key: pki.key, ClientCA: pki.ca},
		Audit:      server.AuditConfig{SegmentBytes: 1 << 20},
	}
	i.configure(nil)
}

// configure writes the configuration, changed.
func (i *installation) configure(change func(*server.Config)) {
	i.t.Helper()
	if change != nil {
		change(&i.cfg)
	}
	b, err := yaml.Marshal(i.cfg)
	must(i.t, err)
	i.file = filepath.Join(i.dir, "keyholdd.yaml")
	must(i.t, os.WriteFile(i.file, b, 0o600))
}

// run examines the installation, without the witness.
func (i *installation) run() *Report {
	return i.examine(witness.Child{})
}

func (i *installation) examine(w witness.Child) *Report {
	i.t.Helper()
	ctx, cancel := context.WithTimeout(i.t.Context(), time.Minute)
	defer cancel()
	return Run(ctx, Options{ConfigFile: i.file, Version: "test", Witness: w, Now: func() time.Time { return i.now }})
}

// addKey makes a key as the service would: object and record.
func (i *installation) addKey(spec hsm.KeySpec, purpose hsm.Purpose, keySpec keyholdv1.KeySpec, usage keyholdv1.KeyUsageType) *kms.KeyRecord {
	i.t.Helper()
	s, err := sqlite.Open(i.t.Context(), i.cfg.DataDir, sqlite.Options{})
	must(i.t, err)
	defer s.Close()
	r := record(s.Instance(), keySpec, usage)
	i.generate(spec, purpose, r.Versions[0].Locator.ID, r.Versions[0].Locator.Label)
	must(i.t, s.InsertKey(i.t.Context(), r))
	return r
}

// record is a key that is not stored.
func record(instance string, spec keyholdv1.KeySpec, usage keyholdv1.KeyUsageType) *kms.KeyRecord {
	var ref kms.Ref
	rand.Read(ref[:])
	id := kms.KeyID(fmt.Sprintf("00000000-0000-4000-8000-%x", ref[:6]))
	now := time.Now().Add(-time.Hour)
	return &kms.KeyRecord{
		ID: id, Account: "111122223333", Region: "us-east-1", Spec: spec, Usage: usage, State: keyholdv1.KeyState_KEY_STATE_ENABLED, Created: now,
		Versions: []kms.KeyVersion{{
			MaterialID: kms.KeyMaterialID(strings.Repeat(ref.String(), 2)), Ref: ref, Created: now,
			Custody: keyholdv1.KeyCustodyType_KEY_CUSTODY_TYPE_GENERATED,
			Locator: kms.Locator{ID: ref[:], Label: "keyhold:" + instance + ":" + string(id), Spec: spec, Usage: usage},
		}},
	}
}

// generate makes an object.
func (i *installation) generate(spec hsm.KeySpec, purpose hsm.Purpose, id []byte, label string) {
	i.t.Helper()
	token := i.open()
	defer hsmtest.Close(i.t, token)
	_, err := token.Generate(i.t.Context(), hsm.GenerateRequest{Spec: spec, Purpose: purpose, ID: id, Label: label})
	must(i.t, err)
}

func (i *installation) open() *hsm.Token {
	i.t.Helper()
	must(i.t, i.fixture.Use())
	token, err := hsm.OpenOnce(i.t.Context(), i.fixture.Config(), hsm.Options{})
	must(i.t, err)
	return token
}

// appendAudit writes n records.
func (i *installation) appendAudit(n int) {
	i.t.Helper()
	j, err := audit.Open(i.auditDir(), audit.Options{SegmentBytes: 1 << 20})
	must(i.t, err)
	for k := range n {
		_, err := j.Append(i.t.Context(), audit.Normal, audit.Synced, fmt.Appendf(nil, `{"n":%d}`, k))
		must(i.t, err)
	}
	must(i.t, j.Close(i.t.Context()))
}

func (i *installation) auditDir() string { return filepath.Join(i.cfg.DataDir, "audit") }

// segment returns the path of the first segment.
func (i *installation) segment() string {
	i.t.Helper()
	entries, err := os.ReadDir(i.auditDir())
	must(i.t, err)
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.Size() >= 1<<20 {
			return filepath.Join(i.auditDir(), e.Name())
		}
	}
	i.t.Fatal("there is no segment")
	return ""
}

// overwrite writes into the middle of a file.
func overwrite(t *testing.T, path string, at int64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt(b, at)
	must(t, err)
	must(t, f.Close())
}

// want fails unless the report has a check of that name, status and words.
func want(t *testing.T, r *Report, name string, status Status, words string) {
	t.Helper()
	for _, c := range r.Checks {
		if c.Name == name && c.Status == status && strings.Contains(c.Fact+" "+strings.Join(c.Details, " "), words) {
			if (status == Warn || status == Fail) && c.Remedy == "" {
				t.Errorf("%s %s (%s) has no remedy", status, name, c.Fact)
			}
			return
		}
	}
	var b bytes.Buffer
	_ = r.WriteTable(&b)
	t.Errorf("no check %s is %q with %q:\n%s", name, status, words, b.String())
}

// failed lists the names of failed checks.
func failed(r *Report) (names []string) {
	for _, c := range r.Checks {
		if c.Status == Fail {
			names = append(names, c.Name)
		}
	}
	return names
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// pki are the PEM files of a server whose clients have the same authority.
type pki struct{ cert, key, ca string }

// makePKI makes an authority and a server certificate, which change may alter
// before it is signed.
func makePKI(t *testing.T, dir string, now time.Time, change ...func(leaf *x509.Certificate)) pki {
	t.Helper()
	p := pki{filepath.Join(dir, "server.pem"), filepath.Join(dir, "server.key"), filepath.Join(dir, "ca.pem")}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(365 * 24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "test server"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(90 * 24 * time.Hour),
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, f := range change {
		f(leaf)
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	leafKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	must(t, err)
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, ca, leafKey.Public(), caKey)
	must(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(leafKey)
	must(t, err)
	writePEM(t, p.ca, "CERTIFICATE", caDER)
	writePEM(t, p.cert, "CERTIFICATE", leafDER)
	writePEM(t, p.key, "PRIVATE KEY", keyDER)
	return p
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	must(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
}
