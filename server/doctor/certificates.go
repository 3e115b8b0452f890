package doctor

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"time"
)

// expiryWarning is how long before its end a certificate is warned of.
const expiryWarning = 30 * 24 * time.Hour

// tlsDoor is what a door is served with.
type tlsDoor struct{ cert, key, listen, setting string }

// certificates looks at the files of the doors. Those that the AWS door shares with
// the gRPC door are looked at once, but for its names.
func (e *exam) certificates() {
	grpc := tlsDoor{e.cfg.GRPC.Cert, e.cfg.GRPC.Key, e.cfg.GRPC.Listen, "grpc.listen"}
	e.serverCertificate(grpc, false)
	e.clientCA()
	if aws := e.cfg.AWS; aws.Listen != "" && aws.Cert != "" {
		e.serverCertificate(tlsDoor{aws.Cert, aws.Key, aws.Listen, "aws.listen"}, aws.Cert == grpc.cert && aws.Key == grpc.key)
	}
}

// serverCertificate checks what clients will check, and that the key fits. Of what
// was seen before only the names are looked at.
func (e *exam) serverCertificate(d tlsDoor, seen bool) {
	const name = "certificate"
	file, keyFile := d.cert, d.key
	pair, err := tls.LoadX509KeyPair(file, keyFile)
	if err != nil && seen {
		return
	}
	if err != nil {
		e.fail(name, file, err.Error(), "give the chain, leaf first, in "+file+" and the leaf's private key in "+keyFile+", both PEM")
		return
	}
	chain := make([]*x509.Certificate, 0, len(pair.Certificate))
	for _, der := range pair.Certificate {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			e.fail(name, file, err.Error(), "issue the certificate anew")
			return
		}
		chain = append(chain, c)
	}
	before := len(e.report.Checks)
	if seen {
		e.names(d, chain[0])
		return
	}
	e.chain(file, chain)
	e.names(d, chain[0])
	if len(e.report.Checks) == before {
		leaf := chain[0]
		e.ok(name, file, fmt.Sprintf("of %s, issued by %s, valid until %s, %s in the chain; the key fits",
			list(subjectNames(leaf)), nameOf(leaf.Issuer.String()), leaf.NotAfter.UTC().Format(time.DateOnly), count(len(chain), "certificate")))
	}
}

// chain checks each certificate, and that the next one issued it. The root is
// the clients' affair.
func (e *exam) chain(file string, chain []*x509.Certificate) {
	const name = "certificate"
	for i, c := range chain {
		who := nameOf(c.Subject.String())
		e.validity(name, file, who, c)
		switch {
		case i == 0 && c.IsCA:
			e.fail(name, file, "the first certificate, of "+who+", is an authority's", "put the server's own certificate first")
		case i > 0:
			if err := chain[i-1].CheckSignatureFrom(c); err != nil {
				e.fail(name, file, fmt.Sprintf("%s did not issue %s: %v", who, nameOf(chain[i-1].Subject.String()), err), "put the chain in order: leaf first, each followed by the one that issued it")
			}
		}
	}
	leaf := chain[0]
	if len(leaf.ExtKeyUsage) > 0 && !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth) && !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageAny) {
		e.fail(name, file, "the certificate is not for servers (extended key usage), so that clients refuse it", "issue it with serverAuth")
	}
}

// validity checks the time against the clock.
func (e *exam) validity(name, file, who string, c *x509.Certificate) {
	now := e.opts.Now()
	switch left := c.NotAfter.Sub(now); {
	case now.Before(c.NotBefore):
		e.fail(name, file, fmt.Sprintf("the certificate of %s is not valid before %s", who, c.NotBefore.UTC().Format(time.RFC3339)), "check the clock, or wait")
	case left < 0:
		e.fail(name, file, fmt.Sprintf("the certificate of %s expired on %s", who, c.NotAfter.UTC().Format(time.RFC3339)), "renew it; the daemon reads the file again by itself")
	case left < expiryWarning:
		e.warn(name, file, fmt.Sprintf("the certificate of %s expires on %s, in %s", who, c.NotAfter.UTC().Format(time.RFC3339), count(int(left.Hours()/24), "day")), "renew it; the daemon reads the file again by itself")
	}
}

// names checks that the certificate names what clients may call the server:
// the subject's common name does not count (RFC 9110, 4.3.4).
func (e *exam) names(d tlsDoor, leaf *x509.Certificate) {
	const name = "certificate"
	file := d.cert
	if len(leaf.DNSNames) == 0 && len(leaf.IPAddresses) == 0 {
		if d.setting == "aws.listen" && d.cert == e.cfg.GRPC.Cert {
			return // said of the gRPC door
		}
		e.fail(name, file, "the certificate has no DNS name and no IP address (subject alternative name), so that clients refuse it", "issue it with the names that clients use")
		return
	}
	host, _, err := net.SplitHostPort(d.listen)
	ip := net.ParseIP(host)
	if err != nil || host == "" || ip != nil && ip.IsUnspecified() {
		return // clients come by names that only they know
	}
	if err := leaf.VerifyHostname(host); err != nil {
		e.warn(name, file, fmt.Sprintf("the certificate is of %s, not of %s, where %s is", list(subjectNames(leaf)), host, d.setting), "clients must use one of its names; or issue it with this one too")
	}
}

func subjectNames(c *x509.Certificate) []string {
	names := slices.Clone(c.DNSNames)
	for _, ip := range c.IPAddresses {
		names = append(names, ip.String())
	}
	return names
}

// clientCA looks at who may issue client certificates.
func (e *exam) clientCA() {
	const name = "client-ca"
	file := e.cfg.GRPC.ClientCA
	b, err := os.ReadFile(file)
	if err != nil {
		e.fail(name, file, err.Error(), "name the PEM file of the authority that issues client certificates")
		return
	}
	var usable []string
	before := len(e.report.Checks)
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			if strings.Contains(block.Type, "PRIVATE KEY") {
				e.fail(name, file, "there is a private key in it", "keep the authority's key off this host: who has it can make clients")
			}
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		switch {
		case err != nil:
			e.fail(name, file, err.Error(), "export the authority's certificate anew")
			continue
		case !c.IsCA:
			e.warn(name, file, nameOf(c.Subject.String())+" is no authority: nothing that it issued is accepted", "put authorities only into the file")
			continue
		}
		e.validity(name, file, nameOf(c.Subject.String()), c)
		usable = append(usable, c.Subject.String())
	}
	switch {
	case len(usable) == 0:
		e.fail(name, file, "there is no authority's certificate in it, so that nobody can call", "name the PEM file of the authority that issues client certificates")
	case len(e.report.Checks) == before:
		e.ok(name, file, "client certificates are issued by "+list(usable))
	}
}

// nameOf quotes a distinguished name: it may hold anything.
func nameOf(dn string) string { return fmt.Sprintf("%q", dn) }

func list(names []string) string {
	quoted := make([]string, 0, len(names))
	for _, n := range names {
		quoted = append(quoted, fmt.Sprintf("%q", n))
	}
	return strings.Join(quoted, ", ")
}
