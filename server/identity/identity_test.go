package identity_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keyhold/keyhold/server/identity"
)

const account = "111122223333"

func TestAccountID(t *testing.T) {
	t.Parallel()
	for id, want := range map[identity.AccountID]bool{
		account: true, "000000000000": true, "": false, "11112222333": false, "1111222233334": false, "11112222333a": false, "11112222333\t": false,
		"１１１１２２２２３３３３": false, "-11112222333": false, "+11112222333": false,
	} {
		if id.Valid() != want {
			t.Errorf("%q valid: %v, want %v", id, id.Valid(), want)
		}
	}
}

func TestParsePrincipal(t *testing.T) {
	t.Parallel()
	const prefix = "arn:aws:iam::" + account + ":"
	for resource, want := range map[string]identity.Principal{
		"root":             {Type: "Root"},
		"user/alice":       {Type: "IAMUser", Name: "alice"},
		"user/a/b/alice":   {Type: "IAMUser", Name: "alice"},
		"role/app":         {Type: "Role", Name: "app"},
		"role/x+=,.@_-9/Z": {Type: "Role", Name: "Z"},
	} {
		want.ARN, want.Account = prefix+resource, account
		got, err := identity.ParsePrincipal(want.ARN)
		if err != nil {
			t.Errorf("%s: %v", resource, err)
			continue
		}
		if d := cmp.Diff(&want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", resource, d)
		}
	}
	for _, arn := range []string{
		"", "alice", "arn:aws:iam::", prefix, prefix + "user", prefix + "user/", prefix + "user/a/", prefix + "role/", prefix + "root/", prefix + "root/x", prefix + "Root", prefix + "group/x",
		prefix + "user/a b", prefix + "user/é", prefix + "user/a\x00", prefix + "user/a:b", prefix + "user/*", "arn:aws:iam::11112222333:root", "arn:aws:iam:us-east-1:" + account + ":root",
		"arn:aws:sts::" + account + ":assumed-role/a/b", "arn:aws-cn:iam::" + account + ":root", "ARN:aws:iam::" + account + ":root", " " + prefix + "root", prefix + "root ",
	} {
		if p, err := identity.ParsePrincipal(arn); err == nil {
			t.Errorf("%q was understood as %+v", arn, p)
		}
	}
	longest := prefix + "user/" + strings.Repeat("a", 2048-len(prefix)-len("user/"))
	if _, err := identity.ParsePrincipal(longest); err != nil {
		t.Errorf("2,048 bytes: %v", err)
	}
	if _, err := identity.ParsePrincipal(longest + "a"); err == nil {
		t.Error("2,049 bytes are accepted")
	}
}

func FuzzParsePrincipal(f *testing.F) {
	for _, s := range []string{"arn:aws:iam::" + account + ":root", "arn:aws:iam::" + account + ":user/a/b", "arn:aws:iam::" + account + ":role/x", "arn:aws:iam::x:user/", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := identity.ParsePrincipal(s)
		if err != nil {
			if p != nil {
				t.Error("an error and a principal")
			}
			return
		}
		kinds := map[string]string{"Root": "root", "IAMUser": "user/", "Role": "role/"}
		if p.ARN != s || !p.Account.Valid() || !strings.HasPrefix(s, "arn:aws:iam::"+string(p.Account)+":"+kinds[p.Type]) || !strings.HasSuffix(s, p.Name) || (p.Name == "") != (p.Type == "Root") || len(s) > 2048 {
			t.Errorf("%q was understood as %+v", s, p)
		}
	})
}

// arn names a principal of the test.
func arn(name string) string { return "arn:aws:iam::" + account + ":user/" + name }

func directory(t testing.TB) *identity.Directory {
	t.Helper()
	d, err := identity.NewDirectory([]identity.Binding{
		{Principal: arn("spiffe"), Subjects: []string{"spiffe://example.org/app", "spiffe://example.org/app2"}},
		{Principal: arn("other"), Subjects: []string{"spiffe://example.org/other"}},
		{Principal: arn("dns"), Subjects: []string{"dns:App.Example.org", "dns:*.wild.example.org"}},
		{Principal: arn("dns2"), Subjects: []string{"dns:two.example.org"}},
		{Principal: arn("cn"), Subjects: []string{"cn:app", "cn:App Two"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// certificate makes a real one and reads it back, as a door would see it.
func certificate(t testing.TB, uris, names []string, cn string) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), Subject: pkix.Name{CommonName: cn}, DNSNames: names}
	for _, s := range uris {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		template.URIs = append(template.URIs, u)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// SPIFFE ids come before DNS names, and these before the common name; what
// comes first hides the rest, bound or not.
func TestAuthenticate(t *testing.T) {
	t.Parallel()
	d := directory(t)
	for name, c := range map[string]struct {
		uris, names []string
		cn          string
		want, by    string
		err         error
	}{
		"spiffe":                             {[]string{"spiffe://example.org/app"}, nil, "", "spiffe", "spiffe://example.org/app", nil},
		"spiffe before all":                  {[]string{"spiffe://example.org/app"}, []string{"app.example.org"}, "app", "spiffe", "spiffe://example.org/app", nil},
		"unbound spiffe hides the rest":      {[]string{"spiffe://example.org/none"}, []string{"app.example.org"}, "app", "", "", identity.ErrUnknownSubject},
		"dns":                                {nil, []string{"app.example.org"}, "", "dns", "dns:app.example.org", nil},
		"dns in capitals":                    {nil, []string{"APP.EXAMPLE.ORG"}, "", "dns", "dns:app.example.org", nil},
		"dns before the common name":         {nil, []string{"app.example.org"}, "app", "dns", "dns:app.example.org", nil},
		"unbound dns hides the common name":  {nil, []string{"none.example.org"}, "app", "", "", identity.ErrUnknownSubject},
		"one of several dns names":           {nil, []string{"none.example.org", "app.example.org"}, "", "dns", "dns:app.example.org", nil},
		"a wildcard is its own name":         {nil, []string{"*.wild.example.org"}, "", "dns", "dns:*.wild.example.org", nil},
		"a wildcard binding is no pattern":   {nil, []string{"a.wild.example.org"}, "", "", "", identity.ErrUnknownSubject},
		"a wildcard certificate is none too": {nil, []string{"*.example.org"}, "", "", "", identity.ErrUnknownSubject},
		"trailing dot":                       {nil, []string{"app.example.org."}, "", "", "", identity.ErrUnknownSubject},
		"common name":                        {nil, nil, "app", "cn", "cn:app", nil},
		"common name with a space":           {nil, nil, "App Two", "cn", "cn:App Two", nil},
		"common name in other case":          {nil, nil, "APP", "", "", identity.ErrUnknownSubject},
		"common name that looks like dns":    {nil, nil, "app.example.org", "", "", identity.ErrUnknownSubject},
		"common name with a prefix":          {nil, nil, "cn:app", "", "", identity.ErrUnknownSubject},
		"common name as spiffe":              {nil, nil, "spiffe://example.org/app", "", "", identity.ErrUnknownSubject},
		"dns name as spiffe":                 {nil, []string{"spiffe://example.org/app"}, "", "", "", identity.ErrUnknownSubject},
		"nothing":                            {nil, nil, "", "", "", identity.ErrUnknownSubject},
		"another URI does not hide":          {[]string{"https://example.org/app"}, nil, "app", "cn", "cn:app", nil},
		"another URI is nobody":              {[]string{"https://example.org/app"}, nil, "", "", "", identity.ErrUnknownSubject},
		"two of one principal":               {[]string{"spiffe://example.org/app", "spiffe://example.org/app2"}, nil, "", "", "", identity.ErrAmbiguousSubject},
		"two of two principals":              {[]string{"spiffe://example.org/app", "spiffe://example.org/other"}, nil, "", "", "", identity.ErrAmbiguousSubject},
		"two dns names of two principals":    {nil, []string{"app.example.org", "two.example.org"}, "", "", "", identity.ErrAmbiguousSubject},
		"longer path":                        {[]string{"spiffe://example.org/app/x"}, nil, "", "", "", identity.ErrUnknownSubject},
		"slash at the end":                   {[]string{"spiffe://example.org/app/"}, nil, "", "", "", identity.ErrUnknownSubject},
		"double slash":                       {[]string{"spiffe://example.org//app"}, nil, "", "", "", identity.ErrUnknownSubject},
		"trust domain in capitals":           {[]string{"spiffe://EXAMPLE.org/app"}, nil, "", "", "", identity.ErrUnknownSubject},
		"escaped path":                       {[]string{"spiffe://example.org/%61pp"}, nil, "", "", "", identity.ErrUnknownSubject},
		"port":                               {[]string{"spiffe://example.org:443/app"}, nil, "", "", "", identity.ErrUnknownSubject},
		"user":                               {[]string{"spiffe://x@example.org/app"}, nil, "", "", "", identity.ErrUnknownSubject},
		"query":                              {[]string{"spiffe://example.org/app?x"}, nil, "", "", "", identity.ErrUnknownSubject},
		"empty query":                        {[]string{"spiffe://example.org/app?"}, nil, "", "", "", identity.ErrUnknownSubject},
		"fragment":                           {[]string{"spiffe://example.org/app#x"}, nil, "", "", "", identity.ErrUnknownSubject},
		"dots":                               {[]string{"spiffe://example.org/x/../app"}, nil, "", "", "", identity.ErrUnknownSubject},
	} {
		t.Run(name, func(t *testing.T) {
			p, by, err := d.Authenticate(certificate(t, c.uris, c.names, c.cn))
			if !errors.Is(err, c.err) || (err == nil) != (c.err == nil) {
				t.Fatalf("%v, want %v", err, c.err)
			}
			if err != nil {
				if p != nil || by != "" {
					t.Errorf("an error and %+v by %q", p, by)
				}
				return
			}
			if p.ARN != arn(c.want) || by != c.by {
				t.Errorf("%s by %s, want %s by %s", p.ARN, by, arn(c.want), c.by)
			}
		})
	}
}

// Subjects that only ASN.1 can hold, and fields that are no subject.
func TestOddCertificates(t *testing.T) {
	t.Parallel()
	d := directory(t)
	for name, cert := range map[string]*x509.Certificate{
		"empty":               {},
		"empty URI":           {URIs: []*url.URL{{Scheme: "spiffe"}}, Subject: pkix.Name{CommonName: "app"}},
		"issuer":              {Issuer: pkix.Name{CommonName: "app"}},
		"email and address":   {EmailAddresses: []string{"app"}, IPAddresses: []net.IP{net.ParseIP("192.0.2.1")}},
		"organisational unit": {Subject: pkix.Name{OrganizationalUnit: []string{"app"}, SerialNumber: "app", Organization: []string{"app"}}},
		"NUL in a name":       {DNSNames: []string{"app.example.org\x00.evil.example"}},
		"NUL in a CN":         {Subject: pkix.Name{CommonName: "app\x00"}},
		"empty DNS name":      {DNSNames: []string{""}, Subject: pkix.Name{CommonName: "app"}},
		"blank":               {DNSNames: []string{" app.example.org"}},
		"KELVIN SIGN":         {DNSNames: []string{"\u212Aelvin"}},
		"extra names":         {Subject: pkix.Name{Names: []pkix.AttributeTypeAndValue{{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: "app"}}}},
	} {
		if p, by, err := d.Authenticate(cert); err == nil {
			t.Errorf("%s: is %s by %s", name, p.ARN, by)
		}
	}
}

func TestNewDirectoryRefuses(t *testing.T) {
	t.Parallel()
	bind := func(principal string, subjects ...string) identity.Binding {
		return identity.Binding{Principal: principal, Subjects: subjects}
	}
	for name, b := range map[string][]identity.Binding{
		"bad principal":                     {bind("alice", "cn:alice")},
		"no principal":                      {bind("", "cn:alice")},
		"bare name":                         {bind(arn("a"), "alice")},
		"empty subject":                     {bind(arn("a"), "")},
		"empty spiffe":                      {bind(arn("a"), "spiffe://")},
		"empty dns":                         {bind(arn("a"), "dns:")},
		"empty cn":                          {bind(arn("a"), "cn:")},
		"unknown kind":                      {bind(arn("a"), "email:a@b")},
		"prefix in capitals":                {bind(arn("a"), "DNS:a")},
		"twice in one binding":              {bind(arn("a"), "cn:a", "cn:a")},
		"bound to two":                      {bind(arn("a"), "cn:a"), bind(arn("b"), "cn:a")},
		"bound to one in two":               {bind(arn("a"), "cn:a"), bind(arn("a"), "cn:a")},
		"DNS names that differ by case":     {bind(arn("a"), "dns:a.example"), bind(arn("b"), "dns:A.EXAMPLE")},
		"a good one before does not matter": {bind(arn("a"), "cn:a"), bind(arn("b"), "cn:b", "nothing")},
	} {
		if d, err := identity.NewDirectory(b); err == nil || d != nil {
			t.Errorf("%s: accepted", name)
		} else if len(err.Error()) < 10 {
			t.Errorf("%s: the error says only %q", name, err)
		}
	}
	if d, err := identity.NewDirectory(nil); err != nil || d == nil {
		t.Errorf("an empty directory: %v", err)
	}
	if d, err := identity.NewDirectory([]identity.Binding{bind(arn("a")), bind(arn("a"), "cn:a"), bind(arn("a"), "cn:b")}); err != nil || d == nil {
		t.Errorf("a principal in several bindings: %v", err)
	}
}

// TestPrincipalInSeveralBindings: it is one principal, with the subjects of all of
// them, in whatever order they come. It is still no other.
func TestPrincipalInSeveralBindings(t *testing.T) {
	t.Parallel()
	bindings := []identity.Binding{
		{Principal: arn("a"), Subjects: []string{"dns:one.example"}},
		{Principal: arn("b"), Subjects: []string{"dns:b.example"}},
		{Principal: arn("a")},
		{Principal: arn("a"), Subjects: []string{"dns:two.example", "cn:a"}},
	}
	for range 2 {
		d, err := identity.NewDirectory(bindings)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			names []string
			cn    string
		}{{names: []string{"one.example"}}, {names: []string{"one.example", "two.example"}}, {names: []string{"two.example", "one.example"}}, {cn: "a"}} {
			p, by, err := d.Authenticate(certificate(t, nil, c.names, c.cn))
			if err != nil || p != d.Principal(arn("a")) {
				t.Errorf("%v %s: %+v by %q, %v", c.names, c.cn, p, by, err)
			}
		}
		for _, names := range [][]string{{"one.example", "b.example"}, {"b.example", "two.example"}} {
			if p, _, err := d.Authenticate(certificate(t, nil, names, "")); !errors.Is(err, identity.ErrAmbiguousSubject) {
				t.Errorf("%v: %+v, %v", names, p, err)
			}
		}
		slices.Reverse(bindings)
	}
}

// Whatever a certificate holds, it is nobody or one who is bound to a subject
// that the certificate has.
func FuzzAuthenticate(f *testing.F) {
	f.Add("spiffe://example.org/app", "app.example.org", "app")
	f.Add("spiffe://example.org/other", "", "")
	f.Add("https://x", "APP.example.ORG", "")
	f.Add("", "", "App Two")
	f.Add("spiffe:%2F/example.org/app", "\u212A", "\x00")
	d := directory(f)
	f.Fuzz(func(t *testing.T, uri, dns, cn string) {
		cert := &x509.Certificate{Subject: pkix.Name{CommonName: cn}}
		if u, err := url.Parse(uri); err == nil && uri != "" {
			cert.URIs = []*url.URL{u}
		}
		if dns != "" {
			cert.DNSNames = []string{dns}
		}
		p, by, err := d.Authenticate(cert)
		if err != nil {
			return
		}
		known := map[string]string{
			"spiffe://example.org/app": "spiffe", "spiffe://example.org/app2": "spiffe", "spiffe://example.org/other": "other",
			"dns:app.example.org": "dns", "dns:*.wild.example.org": "dns", "dns:two.example.org": "dns2", "cn:app": "cn", "cn:App Two": "cn",
		}
		has := []string{"cn:" + cn, "dns:" + strings.ToLower(dns)}
		for _, u := range cert.URIs {
			has = append(has, u.String())
		}
		if known[by] == "" || p.ARN != arn(known[by]) || !slices.Contains(has, by) {
			t.Errorf("%q, %q, %q is %s by %q", uri, dns, cn, p.ARN, by)
		}
	})
}
