package doctor

import (
	"context"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/keyhold/keyhold/hsm"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/kms"
)

// madeByKeyhold tells what the label says: anybody with the PIN can write one.
func madeByKeyhold(label string) bool {
	return strings.HasPrefix(label, kms.LabelPrefix) || label == hsm.CanaryLabel
}

// objects lists what is in the token, and checks that what Keyhold generated
// can never leave it.
func (e *exam) objects(ctx context.Context, p *patient) {
	ctx, cancel := context.WithTimeout(ctx, e.opts.Timeout)
	defer cancel()
	objects, err := p.token.Objects(ctx)
	if err == nil {
		p.custody, err = p.token.Custody(ctx)
	}
	if err != nil {
		e.fail("custody", p.name, "list the token's objects: "+cause(err), "look at the token's own logs")
		return
	}
	if objects == nil {
		objects = []hsm.Object{}
	}
	p.objects = objects
	imported := e.imported(p)
	var ours, foreign []string
	report := make([]ObjectReport, 0, len(p.custody))
	mine := 0
	for i := range p.custody {
		c := &p.custody[i]
		r := ObjectReport{
			Class: c.Class.String(), KeyType: c.KeyTypeName(), Label: c.Label, ID: hex.EncodeToString(c.ID),
			Sensitive: c.Sensitive, AlwaysSensitive: c.AlwaysSensitive, NeverExtractable: c.NeverExtractable, Local: c.Local, Private: c.Private,
			Keyhold: madeByKeyhold(c.Label),
		}
		if r.Keyhold {
			mine++
		}
		if err := c.Proven(); err != nil {
			r.Problem = cause(err)
			line := fmt.Sprintf("%s %q, CKA_ID %s: %s", r.Class, r.Label, r.ID, r.Problem)
			switch {
			case imported[objectPlace{string(c.ID), c.Label}]:
				// Its record says that it came from outside.
			case r.Keyhold:
				ours = append(ours, line)
			default:
				foreign = append(foreign, line)
			}
		}
		report = append(report, r)
	}
	e.report.Tokens[len(e.report.Tokens)-1].Objects = report
	e.reportCustody(p.name, len(report), mine, ours, foreign)
}

func (e *exam) reportCustody(name string, total, mine int, ours, foreign []string) {
	c := Check{Name: "custody", Subject: name, Status: OK, Details: append(slices.Clone(ours), foreign...)}
	c.Fact = fmt.Sprintf("%s, %d of Keyhold", count(total, "private or secret object"), mine)
	switch {
	case len(ours) > 0:
		c.Status = Fail
		c.Fact += fmt.Sprintf("; %d of Keyhold's are not proven to have been generated in the token and never to leave it", len(ours))
		c.Remedy = "find out who made or changed these objects; do not trust keys that may have left the token, make new ones and encrypt anew"
	case len(foreign) > 0:
		c.Status = Warn
		c.Fact += fmt.Sprintf("; %d that Keyhold did not make may leave the token, or came from outside", len(foreign))
		c.Remedy = "give Keyhold a token of its own"
	default:
		c.Fact += ": all sensitive, always sensitive, never extractable, local and private"
	}
	e.add(c)
}

// objectPlace is where an object is in its token.
type objectPlace struct{ id, label string }

// imported returns the objects whose records say that they were not generated
// in the token: for them the attributes of custody say so too, rightly.
func (e *exam) imported(p *patient) map[objectPlace]bool {
	found := make(map[objectPlace]bool)
	for _, r := range e.records.before {
		if e.tokenOf(r) != p.name {
			continue
		}
		for _, v := range r.Versions {
			if v.Custody != keyholdv1.KeyCustodyType_KEY_CUSTODY_TYPE_GENERATED {
				found[objectPlace{string(v.Locator.ID), v.Locator.Label}] = true
			}
		}
	}
	return found
}

// tokenOf returns the name of the token that a record's region uses, "" for
// other key stores.
func (e *exam) tokenOf(r *kms.KeyRecord) string {
	if r.KeyStore != "" {
		return ""
	}
	for _, region := range e.cfg.Regions {
		if region.Name == string(r.Region) {
			return region.Token
		}
	}
	return ""
}

// secret tells whether an object is a key that must not be known.
func secret(o hsm.Object) bool {
	return o.Class == hsm.ClassSecretKey || o.Class == hsm.ClassPrivateKey
}
