package doctor

import (
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keyhold/keyhold/hsm"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server"
	"github.com/keyhold/keyhold/server/kms"
	"github.com/keyhold/keyhold/server/store/sqlite"
)

const (
	symmetric = keyholdv1.KeySpec_KEY_SPEC_SYMMETRIC_DEFAULT
	encrypt   = keyholdv1.KeyUsageType_KEY_USAGE_TYPE_ENCRYPT_DECRYPT
)

// database is the file; where things are in it: sqlite.org/fileformat.html.
func (i *installation) database() string { return filepath.Join(i.cfg.DataDir, "keyhold.db") }

func TestStoreProblems(t *testing.T) {
	for _, c := range []struct {
		name   string
		do     func(t *testing.T, i *installation)
		status Status
		words  string
		remedy string
	}{
		{"newer schema", func(t *testing.T, i *installation) {
			overwrite(t, i.database(), 60, []byte{0, 0, 3, 231}) // user_version
		}, Fail, "schema 999", "start that version"},
		{"foreign", func(t *testing.T, i *installation) {
			overwrite(t, i.database(), 68, []byte{1, 2, 3, 4}) // application_id
		}, Fail, "not of Keyhold", ""},
		{"damaged", func(t *testing.T, i *installation) {
			info, err := os.Stat(i.database())
			must(t, err)
			junk := make([]byte, info.Size()/2)
			for k := range junk {
				junk[k] = 0x5a
			}
			overwrite(t, i.database(), info.Size()-int64(len(junk)), junk)
		}, Fail, "damaged", ""},
		{"missing", func(t *testing.T, i *installation) {
			must(t, os.Remove(i.database()))
		}, Fail, "keyhold.db", "keyholdd init"},
		{"readable by others", func(t *testing.T, i *installation) {
			must(t, os.Chmod(i.database(), 0o644))
		}, Fail, "accessible by other users", "chmod"},
		{"a restore was interrupted", func(t *testing.T, i *installation) {
			must(t, os.WriteFile(server.RestoreMark(&i.cfg), nil, 0o600))
		}, Fail, "not finished", "keyholdd restore"},
		{"folder readable by others", func(t *testing.T, i *installation) {
			must(t, os.Chmod(i.cfg.DataDir, 0o750))
		}, Fail, "accessible by other users", "chmod"},
	} {
		t.Run(c.name, func(t *testing.T) {
			i := withoutToken(t)
			c.do(t, i)
			r := i.run()
			want(t, r, "store", c.status, c.words)
			for _, check := range r.Checks {
				if check.Name == "store" && !strings.Contains(check.Remedy, c.remedy) {
					t.Errorf("remedy %q does not say %q", check.Remedy, c.remedy)
				}
			}
			want(t, r, "records-and-objects", Skipped, "")
		})
	}
}

func TestAuditProblems(t *testing.T) {
	for _, c := range []struct {
		name   string
		do     func(t *testing.T, i *installation)
		status Status
		words  string
	}{
		{"a record changed", func(t *testing.T, i *installation) {
			b, err := os.ReadFile(i.segment())
			must(t, err)
			at := strings.Index(string(b), `{"n":1}`)
			if at < 0 {
				t.Fatal("the record is not there")
			}
			overwrite(t, i.segment(), int64(at)+5, []byte("7"))
		}, Fail, "1 record in 1 segment before it are whole"},
		{"header damaged", func(t *testing.T, i *installation) {
			overwrite(t, i.segment(), 0, []byte("not ours"))
		}, Fail, "segment-header"},
		{"segment gone", func(t *testing.T, i *installation) {
			must(t, os.Remove(i.segment()))
		}, Fail, "missing-end"},
		{"all gone", func(t *testing.T, i *installation) {
			must(t, os.RemoveAll(i.auditDir()))
		}, Fail, "there is no audit log"},
		{"unfinished commit", func(t *testing.T, i *installation) {
			b, err := os.ReadFile(i.segment())
			must(t, err)
			// Well behind the last record, in what is allocated ahead.
			overwrite(t, i.segment(), int64(strings.LastIndex(string(b), `{"n":2}`)+512), []byte{1, 2, 3})
		}, Warn, "torn-tail"},
	} {
		t.Run(c.name, func(t *testing.T) {
			i := withoutToken(t)
			i.appendAudit(3)
			c.do(t, i)
			want(t, i.run(), "audit-log", c.status, c.words)
		})
	}
}

// TestOrphans leaves something behind on either side; doctor reports it and
// deletes nothing.
func TestOrphans(t *testing.T) {
	i := install(t, false)
	lost := i.addKey(hsm.AES256, hsm.PurposeSeal, symmetric, encrypt)
	whole := i.addKey(hsm.AES256, hsm.PurposeSeal, symmetric, encrypt)
	r := i.run()
	want(t, r, "records-and-objects", OK, "")

	s, err := sqlite.Open(t.Context(), i.cfg.DataDir, sqlite.Options{})
	must(t, err)
	unfinished := record(s.Instance(), symmetric, encrypt)
	unfinished.State = keyholdv1.KeyState_KEY_STATE_CREATING
	must(t, s.InsertKey(t.Context(), unfinished))
	underWay := record(s.Instance(), symmetric, encrypt)
	underWay.State, underWay.Created = keyholdv1.KeyState_KEY_STATE_CREATING, time.Now()
	must(t, s.InsertKey(t.Context(), underWay))
	must(t, s.Close())
	alone := record(s.Instance(), symmetric, encrypt).Versions[0].Locator
	i.generate(hsm.AES256, hsm.PurposeSeal, alone.ID, alone.Label)
	r = i.run()
	want(t, r, "records-and-objects", Warn, "2 orphans")
	want(t, r, "records-and-objects", Warn, string(kms.OrphanObject))
	want(t, r, "records-and-objects", Warn, string(kms.OrphanIntent)+": key "+string(unfinished.ID))

	token := i.open()
	must(t, token.Destroy(t.Context(), lost.Versions[0].Locator.ID, lost.Versions[0].Locator.Label))
	must(t, token.Close(t.Context()))
	r = i.run()
	want(t, r, "records-and-objects", Fail, string(kms.OrphanRecord)+": key "+string(lost.ID))
	for _, c := range r.Checks {
		if c.Name == "records-and-objects" && strings.Contains(strings.Join(c.Details, " "), string(whole.ID)) {
			t.Errorf("a whole key is reported: %v", c.Details)
		}
	}
	if again := i.run(); len(again.Tokens[0].Objects) != len(r.Tokens[0].Objects) {
		t.Error("doctor destroyed something")
	}
}

// TestExportableKeys: such a key is as it should be when its record says so,
// and not when the record says that it cannot leave.
func TestExportableKeys(t *testing.T) {
	i := install(t, false)
	s, err := sqlite.Open(t.Context(), i.cfg.DataDir, sqlite.Options{})
	must(t, err)
	token := i.open()
	for _, custody := range []keyholdv1.KeyCustodyType{keyholdv1.KeyCustodyType_KEY_CUSTODY_TYPE_EXPORTABLE, keyholdv1.KeyCustodyType_KEY_CUSTODY_TYPE_GENERATED} {
		r := record(s.Instance(), symmetric, encrypt)
		v := &r.Versions[0]
		v.Custody = custody
		_, err := token.Generate(t.Context(), hsm.GenerateRequest{Spec: hsm.AES256, Purpose: hsm.PurposeSeal, ID: v.Locator.ID, Label: v.Locator.Label, Exportable: true})
		must(t, err)
		must(t, s.InsertKey(t.Context(), r))
		report := i.run()
		if custody == keyholdv1.KeyCustodyType_KEY_CUSTODY_TYPE_EXPORTABLE {
			want(t, report, "custody", OK, "1 key that may leave wrapped")
			// Without records nobody knows how it was created.
			alone, err := i.cfg.Tokens[0].HSM()
			must(t, err)
			want(t, Run(t.Context(), Options{Token: alone}), "custody", Warn, "1 key may leave wrapped")
		} else {
			want(t, report, "custody", Fail, "1 of Keyhold's are not proven")
			want(t, report, "custody", Fail, "CKA_EXTRACTABLE is true")
		}
	}
	must(t, token.Close(t.Context()))
	must(t, s.Close())
}

func TestRegionNotServed(t *testing.T) {
	i := install(t, false)
	i.addKey(hsm.AES256, hsm.PurposeSeal, symmetric, encrypt)
	i.configure(func(c *server.Config) { c.Regions[0].Name = "eu-west-1" })
	want(t, i.run(), "regions", Warn, "us-east-1")
}

func TestCertificates(t *testing.T) {
	i := withoutToken(t)
	day := 24 * time.Hour
	for _, c := range []struct {
		name   string
		leaf   func(c *x509.Certificate)
		do     func(t *testing.T, p pki)
		check  string
		status Status
		words  string
	}{
		{name: "well", check: "certificate", status: OK, words: "the key fits"},
		{name: "expired", leaf: func(c *x509.Certificate) { c.NotAfter = i.now.Add(-time.Minute) }, check: "certificate", status: Fail, words: "expired"},
		{name: "expires in 29 days", leaf: func(c *x509.Certificate) { c.NotAfter = i.now.Add(30*day - time.Minute) }, check: "certificate", status: Warn, words: "in 29 days"},
		{name: "expires in 30 days", leaf: func(c *x509.Certificate) { c.NotAfter = i.now.Add(30*day + time.Minute) }, check: "certificate", status: OK},
		{name: "not yet valid", leaf: func(c *x509.Certificate) { c.NotBefore = i.now.Add(time.Hour) }, check: "certificate", status: Fail, words: "not valid before"},
		{name: "no SAN", leaf: func(c *x509.Certificate) { c.DNSNames, c.IPAddresses = nil, nil }, check: "certificate", status: Fail, words: "no DNS name"},
		{name: "another name", leaf: func(c *x509.Certificate) { c.DNSNames, c.IPAddresses = []string{"kms.example"}, nil }, check: "certificate", status: Warn, words: "not of 127.0.0.1"},
		{name: "another address", leaf: func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(10, 0, 0, 1)} }, check: "certificate", status: Warn, words: "not of 127.0.0.1"},
		{name: "of a client", leaf: func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }, check: "certificate", status: Fail, words: "not for servers"},
		{name: "missing", do: func(t *testing.T, p pki) { must(t, os.Remove(p.cert)) }, check: "certificate", status: Fail, words: "no such file"},
		{name: "another key", do: func(t *testing.T, p pki) { copyFile(t, makePKI(t, t.TempDir(), i.now).key, p.key) }, check: "certificate", status: Fail, words: "private key does not match"},
		{name: "chain in order", do: func(t *testing.T, p pki) { appendFile(t, p.cert, p.ca) }, check: "certificate", status: OK, words: "2 certificates"},
		{name: "a stranger in the chain", do: func(t *testing.T, p pki) { appendFile(t, p.cert, makePKI(t, t.TempDir(), i.now).ca) }, check: "certificate", status: Fail, words: "did not issue"},
		{name: "no client CA", do: func(t *testing.T, p pki) { must(t, os.Remove(p.ca)) }, check: "client-ca", status: Fail, words: "no such file"},
		{name: "empty client CA", do: func(t *testing.T, p pki) { must(t, os.WriteFile(p.ca, nil, 0o600)) }, check: "client-ca", status: Fail, words: "nobody can call"},
		{name: "a leaf as client CA", do: func(t *testing.T, p pki) { copyFile(t, p.cert, p.ca) }, check: "client-ca", status: Fail, words: "nobody can call"},
		{name: "a key in the client CA", do: func(t *testing.T, p pki) { appendFile(t, p.ca, p.key) }, check: "client-ca", status: Fail, words: "private key"},
	} {
		t.Run(c.name, func(t *testing.T) {
			i.t = t
			var change []func(*x509.Certificate)
			if c.leaf != nil {
				change = append(change, c.leaf)
			}
			p := makePKI(t, i.dir, i.now, change...)
			if c.do != nil {
				c.do(t, p)
			}
			want(t, i.run(), c.check, c.status, c.words)
		})
	}
}

// TestAWSCertificate: the AWS door's certificate is looked at as the gRPC door's is,
// and what both have is reported once.
func TestAWSCertificate(t *testing.T) {
	i := withoutToken(t)
	other := t.TempDir()
	p := makePKI(t, other, i.now, func(c *x509.Certificate) { c.NotAfter = i.now.Add(-time.Minute) })
	count := func(status Status, words string) (n int) {
		for _, c := range i.run().Checks {
			if c.Name == "certificate" && c.Status == status && strings.Contains(c.Subject+c.Fact, words) {
				n++
			}
		}
		return n
	}
	if n := count(OK, ""); n != 1 {
		t.Errorf("without an AWS door %d certificates are well", n)
	}
	i.configure(func(c *server.Config) { c.AWS = server.AWSConfig{Listen: "127.0.0.1:8443", Cert: p.cert, Key: p.key} })
	want(t, i.run(), "certificate", Fail, "expired")
	if n := count(OK, ""); n != 1 {
		t.Errorf("%d certificates are well, want that of gRPC", n)
	}
	makePKI(t, other, i.now, func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(10, 0, 0, 1)} })
	want(t, i.run(), "certificate", Warn, "where aws.listen is")
	makePKI(t, other, i.now)
	if n := count(OK, "the key fits"); n != 2 {
		t.Errorf("%d certificates are well, want 2", n)
	}
	must(t, os.Chmod(p.key, 0o644))
	want(t, i.run(), "file-modes", Fail, "everybody")
	must(t, os.Remove(p.key))
	want(t, i.run(), "certificate", Fail, "no such file")
	// The same files for both doors.
	i.configure(func(c *server.Config) {
		c.AWS = server.AWSConfig{Listen: "kms.example:8443", Cert: c.GRPC.Cert, Key: c.GRPC.Key}
	})
	if ok, warned := count(OK, ""), count(Warn, "where aws.listen is"); ok != 1 || warned != 1 {
		t.Errorf("%d well, %d warned of", ok, warned)
	}
	must(t, os.Remove(i.cfg.GRPC.Cert))
	if n := count(Fail, "no such file"); n != 1 {
		t.Errorf("a file that is missing is reported %d times", n)
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	must(t, err)
	must(t, os.WriteFile(to, b, 0o600))
}

func appendFile(t *testing.T, to, from string) {
	t.Helper()
	a, err := os.ReadFile(to)
	must(t, err)
	b, err := os.ReadFile(from)
	must(t, err)
	must(t, os.WriteFile(to, append(a, b...), 0o600))
}

// TestClock is about the last time that the daemon stored.
func TestClock(t *testing.T) {
	i := withoutToken(t)
	i.now = i.now.Truncate(time.Second)
	for _, c := range []struct {
		name   string
		last   time.Duration // before now
		trust  bool
		status Status
		words  string
	}{
		{name: "just now", last: time.Minute, status: OK},
		{name: "an hour ago", last: time.Hour, status: OK},
		{name: "more than an hour ago", last: time.Hour + time.Second, status: Warn, words: "will hold deletions"},
		{name: "more than an hour ago, trusted", last: time.Hour + time.Second, trust: true, status: OK, words: "trust_clock"},
		{name: "an hour ahead", last: -time.Hour, status: OK},
		{name: "more than an hour ahead", last: -time.Hour - time.Second, status: Fail, words: "in the future"},
		{name: "more than an hour ahead, trusted", last: -time.Hour - time.Second, trust: true, status: Fail, words: "in the future"},
	} {
		t.Run(c.name, func(t *testing.T) {
			i.t = t
			i.configure(func(s *server.Config) { s.TrustClock = c.trust })
			s, err := sqlite.Open(t.Context(), i.cfg.DataDir, sqlite.Options{})
			must(t, err)
			must(t, s.Tick(t.Context(), i.now.Add(-c.last)))
			must(t, s.Close())
			want(t, i.run(), "clock", c.status, c.words)
		})
	}
}

func TestFileModes(t *testing.T) {
	i := withoutToken(t)
	for _, c := range []struct {
		name   string
		path   string
		mode   os.FileMode
		status Status
		words  string
	}{
		{"key readable by its group", i.cfg.GRPC.Key, 0o640, Warn, "its group may read it"},
		{"key readable by all", i.cfg.GRPC.Key, 0o644, Fail, "everybody"},
		{"key that its group may change", i.cfg.GRPC.Key, 0o660, Fail, "others may change it"},
		{"audit log readable by its group", i.auditDir(), 0o750, Warn, "its group may read it"},
		{"audit log readable by all", i.auditDir(), 0o755, Fail, "everybody"},
		{"certificate readable by all", i.cfg.GRPC.Cert, 0o644, OK, ""},
		{"certificate that others may change", i.cfg.GRPC.Cert, 0o666, Fail, "others may change it"},
		{"authority that others may change", i.cfg.GRPC.ClientCA, 0o664, Fail, "others may change it"},
		{"configuration that others may change", i.file, 0o622, Fail, "others may change it"},
	} {
		t.Run(c.name, func(t *testing.T) {
			i.t = t
			info, err := os.Stat(c.path)
			must(t, err)
			must(t, os.Chmod(c.path, c.mode))
			defer func() { must(t, os.Chmod(c.path, info.Mode().Perm())) }()
			want(t, i.run(), "file-modes", c.status, c.words)
		})
	}
}

func TestSettings(t *testing.T) {
	i := withoutToken(t)
	i.configure(func(c *server.Config) {
		c.TrustClock, c.Audit.Durability = true, "written"
		c.Admin = server.AdminConfig{Listen: "0.0.0.0:9090", AllowRemote: true}
	})
	r := i.run()
	want(t, r, "settings", Warn, "no authentication")
	want(t, r, "settings", Warn, "when the power fails")
	want(t, r, "settings", Warn, "destroy keys")
}
