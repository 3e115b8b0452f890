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
	return strings.HasPrefix(label, kms.LabelPrefix) || strings.HasPrefix(label, kms.SealLabelPrefix) || label == hsm.CanaryLabel
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
	custodies := e.custodies(p)
	var ours, unknown, foreign []string
	report := make([]ObjectReport, 0, len(p.custody))
	mine, exportable := 0, 0
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
		custody := custodies[objectPlace{string(c.ID), c.Label}]
		if custody == keyholdv1.KeyCustodyType_KEY_CUSTODY_TYPE_EXPORTABLE {
			exportable++
		}
		if err := provenAs(custody, c); err != nil {
			r.Problem = cause(err)
			line := fmt.Sprintf("%s %q, CKA_ID %s: %s", r.Class, r.Label, r.ID, r.Problem)
			switch {
			case cameFromOutside(custody):
				// Its record says so.
			case r.Keyhold && !e.records.read && provenAs(keyholdv1.KeyCustodyType_KEY_CUSTODY_TYPE_EXPORTABLE, c) == nil:
				unknown = append(unknown, line)
			case r.Keyhold:
				ours = append(ours, line)
			default:
				foreign = append(foreign, line)
			}
		}
		report = append(report, r)
	}
	e.report.Tokens[len(e.report.Tokens)-1].Objects = report
	e.reportCustody(p.name, len(report), mine, exportable, ours, unknown, foreign)
}

func (e *exam) reportCustody(name string, total, mine, exportable int, ours, unknown, foreign []string) {
	c := Check{Name: "custody", Subject: name, Status: OK, Details: slices.Concat(ours, unknown, foreign)}
	c.Fact = fmt.Sprintf("%s, %d of Keyhold", count(total, "private or secret object"), mine)
	switch {
	case len(ours) > 0:
		c.Status = Fail
		c.Fact += fmt.Sprintf("; %d of Keyhold's are not proven to have been generated in the token and never to leave it", len(ours))
		c.Remedy = "find out who made or changed these objects; do not trust keys that may have left the token, make new ones and encrypt anew"
	case len(unknown) > 0:
		c.Status = Warn
		c.Fact += fmt.Sprintf("; %s may leave wrapped", count(len(unknown), "key"))
		c.Remedy = "whether they were created EXPORTABLE is in the records: give --config"
	case len(foreign) > 0:
		c.Status = Warn
		c.Fact += fmt.Sprintf("; %d that Keyhold did not make may leave the token, or came from outside", len(foreign))
		c.Remedy = "give Keyhold a token of its own"
	case exportable > 0:
		c.Fact += fmt.Sprintf(": all sensitive, always sensitive, local and private, and never extractable but for %s that may leave wrapped, as created", count(exportable, "key"))
	default:
		c.Fact += ": all sensitive, always sensitive, never extractable, local and private"
	}
	e.add(c)
}

// objectPlace is where an object is in its token.
type objectPlace struct{ id, label string }

// custodies returns what records say about the custody of objects.
func (e *exam) custodies(p *patient) map[objectPlace]keyholdv1.KeyCustodyType {
	found := make(map[objectPlace]keyholdv1.KeyCustodyType)
	for _, r := range e.records.before {
		if e.tokenOf(r) != p.name {
			continue
		}
		for _, v := range r.Versions {
			found[objectPlace{string(v.Locator.ID), v.Locator.Label}] = v.Custody
		}
	}
	return found
}

// provenAs tells whether the token says of an object what its record does: an
// exportable one may leave, and was made in the token all the same.
func provenAs(custody keyholdv1.KeyCustodyType, c *hsm.ObjectCustody) error {
	if custody == keyholdv1.KeyCustodyType_KEY_CUSTODY_TYPE_EXPORTABLE {
		return c.ProvenExportable()
	}
	return c.Proven()
}

// cameFromOutside tells whether a record says that the object was not generated
// in the token: the attributes of custody say so too then, rightly.
func cameFromOutside(custody keyholdv1.KeyCustodyType) bool {
	switch custody {
	case keyholdv1.KeyCustodyType_KEY_CUSTODY_TYPE_UNSPECIFIED, keyholdv1.KeyCustodyType_KEY_CUSTODY_TYPE_GENERATED,
		keyholdv1.KeyCustodyType_KEY_CUSTODY_TYPE_EXPORTABLE:
		return false
	}
	return true
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
