// Package identity knows who is calling: accounts, their principals, and what is
// bound to principals: certificate subjects, and access keys that sign requests.
//
// It authenticates nobody by itself: a door verifies a certificate (chain,
// validity, proof of possession) or a signature and asks the Directory, or the
// AccessKeys, whose it is. What a principal may do is decided elsewhere (package
// policy).
//
// A Directory is immutable and may be used concurrently; a reload makes a new
// one.
package identity

import (
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
)

// AccountID is an account: 12 decimal digits.
type AccountID string

// Valid reports whether a is 12 decimal digits.
func (a AccountID) Valid() bool {
	if len(a) != 12 {
		return false
	}
	for _, c := range []byte(a) {
		if c < '0' || c > '9' {
			return false
		}
	}
	return true
}

// Principal is someone who calls: a user, a role, or an account's root.
type Principal struct {
	// ARN is `arn:aws:iam::<account>:user/<path and name>`, `…:role/…` or
	// `…:root`.
	ARN string
	// Account is the account of the ARN.
	Account AccountID
	// Type is CloudTrail's word for it: Root, IAMUser or Role.
	Type string
	// Name is the last part of the ARN's resource, empty for root.
	Name string
}

// typeRoot is the Type of an account's root.
const typeRoot = "Root"

// IsRoot reports whether the principal is its account's root.
func (p *Principal) IsRoot() bool { return p.Type == typeRoot }

// maxARNBytes is the longest principal ARN: AWS's limit for ARNs.
const maxARNBytes = 2048

// ParsePrincipal parses a principal's ARN.
func ParsePrincipal(arn string) (*Principal, error) {
	if len(arn) > maxARNBytes {
		return nil, fmt.Errorf("principal ARN is longer than %d bytes", maxARNBytes)
	}
	rest, ok := strings.CutPrefix(arn, "arn:aws:iam::")
	account, resource, ok2 := strings.Cut(rest, ":")
	if !ok || !ok2 || !AccountID(account).Valid() {
		return nil, fmt.Errorf("principal %q is not of the form arn:aws:iam::<12 digits>:user/<name>, :role/<name> or :root", arn)
	}
	p := &Principal{ARN: arn, Account: AccountID(account)}
	kind, name, _ := strings.Cut(resource, "/")
	switch {
	case resource == "root":
		p.Type = typeRoot
		return p, nil
	case kind == "user":
		p.Type = "IAMUser"
	case kind == "role":
		p.Type = "Role"
	default:
		return nil, fmt.Errorf("principal %q: %q is neither user/<name>, role/<name> nor root", arn, resource)
	}
	if err := checkName(name); err != nil {
		return nil, fmt.Errorf("principal %q: %w", arn, err)
	}
	p.Name = name[strings.LastIndexByte(name, '/')+1:]
	return p, nil
}

// checkName accepts IAM's characters for paths and names.
func checkName(name string) error {
	if name == "" || strings.HasSuffix(name, "/") {
		return errors.New("the name is empty")
	}
	for _, c := range name {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.ContainsRune("+=,.@_-/", c):
		default:
			return fmt.Errorf("the name holds %q; letters, digits and +=,.@_-/ are allowed", c)
		}
	}
	return nil
}

// Caller is one authenticated request's origin. Doors make it; everything
// behind them takes it as given. It is read-only once made.
type Caller struct {
	Principal *Principal
	// Subject is what authenticated the principal, such as
	// `spiffe://example.org/app`.
	Subject string
	// AccessKeyID is the access key that signed the request; empty where none did.
	AccessKeyID string
	// Region is the region that the request is for.
	Region string
	// Door is the way in: grpc, aws, or keyhold for the service's own work.
	Door string
	// RequestID is unique to the request and is shown to the client.
	RequestID string
	// SourceIP is the peer's address without its port.
	SourceIP string
	// UserAgent is what the client calls itself; untrusted.
	UserAgent string
	// TLSVersion and CipherSuite describe the connection, by the standard's
	// names; empty where there is none.
	TLSVersion, CipherSuite string
	// Host is what the client calls the server, where the door is HTTP over TLS;
	// untrusted.
	Host string
}

// Errors of Directory.Authenticate.
var (
	// ErrUnknownSubject: no subject of the certificate is bound to anyone.
	ErrUnknownSubject = errors.New("certificate subject is not bound to a principal")
	// ErrAmbiguousSubject: it has several SPIFFE ids, or its DNS names are bound
	// to different principals.
	ErrAmbiguousSubject = errors.New("certificate names more than one principal")
)

// Binding binds certificate subjects to a principal.
type Binding struct {
	// Principal is the principal's ARN.
	Principal string
	// Subjects are `spiffe://<trust domain>/<path>`, `dns:<name>` or
	// `cn:<common name>`. Compared exactly, DNS names without regard to case.
	Subjects []string
}

// Directory finds principals by certificate subject, and by ARN. Each principal is
// there once: the pointers of one are the same.
type Directory struct {
	bySubject map[string]*Principal
	byARN     map[string]*Principal
}

// NewDirectory checks the bindings. A malformed or doubly bound subject is an
// error: who calls must never depend on order. Several bindings of one ARN are one
// principal with the subjects of all.
func NewDirectory(bindings []Binding) (*Directory, error) {
	d := &Directory{bySubject: make(map[string]*Principal), byARN: make(map[string]*Principal)}
	for _, b := range bindings {
		p := d.byARN[b.Principal]
		if p == nil {
			var err error
			if p, err = ParsePrincipal(b.Principal); err != nil {
				return nil, err
			}
			d.byARN[p.ARN] = p
		}
		for _, s := range b.Subjects {
			key, err := canonicalSubject(s)
			if err != nil {
				return nil, fmt.Errorf("principal %q: %w", b.Principal, err)
			}
			if other, taken := d.bySubject[key]; taken {
				return nil, fmt.Errorf("subject %q is bound twice: to %s and to %s", s, other.ARN, p.ARN)
			}
			d.bySubject[key] = p
		}
	}
	return d, nil
}

// Principal returns the principal of an ARN, or nil where there is none.
func (d *Directory) Principal(arn string) *Principal { return d.byARN[arn] }

func canonicalSubject(s string) (string, error) {
	switch {
	case strings.HasPrefix(s, "spiffe://") && len(s) > len("spiffe://"):
		return s, nil
	case strings.HasPrefix(s, "dns:") && len(s) > len("dns:"):
		return strings.ToLower(s), nil
	case strings.HasPrefix(s, "cn:") && len(s) > len("cn:"):
		return s, nil
	}
	return "", fmt.Errorf("subject %q is none of spiffe://<trust domain>/<path>, dns:<name>, cn:<common name>", s)
}

// Authenticate returns the principal that the verified certificate is bound
// to and the subject that said so. SPIFFE ids are looked at first, then DNS
// names, and the common name only where the certificate has neither, since a
// common name beside them is decoration (RFC 9525, 2). All that are bound must
// agree.
func (d *Directory) Authenticate(cert *x509.Certificate) (*Principal, string, error) {
	var subjects []string
	for _, u := range cert.URIs {
		if u.Scheme == "spiffe" {
			subjects = append(subjects, u.String())
		}
	}
	if len(subjects) > 1 {
		return nil, "", ErrAmbiguousSubject // X.509-SVID, 2: exactly one SPIFFE ID
	}
	if len(subjects) == 0 {
		for _, n := range cert.DNSNames {
			subjects = append(subjects, "dns:"+strings.ToLower(n))
		}
	}
	if len(subjects) == 0 && cert.Subject.CommonName != "" {
		subjects = append(subjects, "cn:"+cert.Subject.CommonName)
	}
	var found *Principal
	var by string
	for _, s := range subjects {
		p, ok := d.bySubject[s]
		if !ok {
			continue
		}
		if found != nil && found != p {
			return nil, "", ErrAmbiguousSubject
		}
		found, by = p, s
	}
	if found == nil {
		return nil, "", ErrUnknownSubject
	}
	return found, by, nil
}
