package kms

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/protobuf/types/known/timestamppb"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/audit"
	"github.com/keyhold/keyhold/server/identity"
)

// neverUsed is what IAM says of an access key that was not used.
const neverUsed = "N/A"

// resolvePrincipal is step 5 for a principal, by ARN; absent, it is the caller. It
// need not be in the configuration: its keys may outlive it there.
func (s *Service) resolvePrincipal(c *call, sub *subject, arn string) error {
	if arn == "" {
		arn = c.caller.Principal.ARN
	}
	p, err := identity.ParsePrincipal(arn)
	if err != nil {
		return invalidField("principal_arn", "must be arn:aws:iam::<12 digits>:user/<name>, :role/<name> or :root")
	}
	// Step 6 refuses another account's, whether it exists or not.
	*sub = subject{arn: p.ARN, account: p.Account}
	return nil
}

// resolveAccessKey is step 5 for an access key: the subject is whose it is. A
// foreign key is one that does not exist.
func (s *Service) resolveAccessKey(c *call, sub *subject, id string) error {
	if err := s.hasAccessKeys(); err != nil {
		return err
	}
	r, err := s.accessKeys.Record(id)
	if err != nil {
		return noAccessKey(id)
	}
	p, err := identity.ParsePrincipal(r.Principal)
	if err != nil {
		return internalError(fmt.Errorf("access key %s: %w", id, err))
	}
	if p.Account != c.caller.Principal.Account {
		return noAccessKey(id)
	}
	*sub = subject{arn: p.ARN, account: p.Account}
	return nil
}

func noAccessKey(id string) *Error {
	return errorf(CodeNotFound, "The Access Key with id %s cannot be found.", clip(id))
}

func (s *Service) hasAccessKeys() error {
	if s.accessKeys == nil {
		return internalError(errors.New("this service was made without access keys"))
	}
	return nil
}

// noteAccessKey puts into every record whose key it is about, and which.
func (c *call) noteAccessKey(id string) {
	c.facts = append(c.facts, audit.Member{Key: "accessKeyId", Value: id}, audit.Member{Key: "principalArn", Value: c.key(0).arn})
}

// checkCreateAccessKey chooses the id, so that the intent names the key: if the
// process dies before the outcome is recorded, it is known what may be there.
func (s *Service) checkCreateAccessKey(c *call, _ *keyholdv1.CreateAccessKeyRequest) error {
	if err := s.hasAccessKeys(); err != nil {
		return err
	}
	if s.accessKeys.Principal(c.key(0).arn) == nil {
		return errorf(CodeNotFound, "The principal %s cannot be found.", clip(c.key(0).arn))
	}
	if n := len(s.accessKeys.List(c.key(0).arn)); n >= s.limits.AccessKeysPerPrincipal {
		return s.tooManyAccessKeys()
	}
	if err := s.sealRate.enter(c.key(0).account, s.now()); err != nil {
		return err
	}
	c.accessKeyID = identity.NewAccessKeyID()
	c.noteAccessKey(c.accessKeyID)
	return nil
}

func (s *Service) tooManyAccessKeys() *Error {
	return errorf(CodeLimitExceeded, "Cannot exceed quota for AccessKeysPerUser: %d", s.limits.AccessKeysPerPrincipal)
}

func (s *Service) createAccessKey(ctx context.Context, c *call, _ *keyholdv1.CreateAccessKeyRequest) (*keyholdv1.CreateAccessKeyResponse, error) {
	p := s.accessKeys.Principal(c.key(0).arn)
	if p == nil { // gone since step 8
		return nil, errorf(CodeNotFound, "The principal %s cannot be found.", clip(c.key(0).arn))
	}
	r, secret, err := s.accessKeys.Create(ctx, p, c.accessKeyID, s.limits.AccessKeysPerPrincipal)
	switch {
	case errors.Is(err, identity.ErrTooManyAccessKeys):
		return nil, s.tooManyAccessKeys()
	case errors.Is(err, ErrKeyMissing):
		return nil, &Error{
			Code: CodeUnsupportedOperation, cause: err,
			Message: "The token has no seal key, which seals secrets of access keys. An operator makes it: keyholdd init --config FILE",
		}
	case err != nil:
		return nil, err
	}
	// The secret goes into the message as it is, and is wiped with it.
	return &keyholdv1.CreateAccessKeyResponse{AccessKey: &keyholdv1.AccessKey{
		PrincipalArn: r.Principal, AccessKeyId: r.ID, Status: accessKeyStatus(r), SecretAccessKey: secret, CreateDate: timestamppb.New(r.Created),
	}}, nil
}

func accessKeyStatus(r *identity.AccessKeyRecord) keyholdv1.AccessKeyStatus {
	if r.Active {
		return keyholdv1.AccessKeyStatus_ACCESS_KEY_STATUS_ACTIVE
	}
	return keyholdv1.AccessKeyStatus_ACCESS_KEY_STATUS_INACTIVE
}

// checkListAccessKeys refuses principals that nobody knows: neither the
// configuration nor a key.
func (s *Service) checkListAccessKeys(c *call, _ *keyholdv1.ListAccessKeysRequest) error {
	if err := s.hasAccessKeys(); err != nil {
		return err
	}
	if arn := c.key(0).arn; s.accessKeys.Principal(arn) == nil && len(s.accessKeys.List(arn)) == 0 {
		return errorf(CodeNotFound, "The principal %s cannot be found.", clip(arn))
	}
	return nil
}

func (s *Service) listAccessKeys(_ context.Context, c *call, _ *keyholdv1.ListAccessKeysRequest) (*keyholdv1.ListAccessKeysResponse, error) {
	resp := &keyholdv1.ListAccessKeysResponse{}
	for _, r := range s.accessKeys.List(c.key(0).arn) {
		resp.AccessKeyMetadata = append(resp.AccessKeyMetadata, &keyholdv1.AccessKeyMetadata{
			PrincipalArn: r.Principal, AccessKeyId: r.ID, Status: accessKeyStatus(r), CreateDate: timestamppb.New(r.Created),
		})
	}
	return resp, nil
}

func (s *Service) checkUpdateAccessKey(c *call, r *keyholdv1.UpdateAccessKeyRequest) error {
	c.noteAccessKey(r.GetAccessKeyId())
	return nil
}

func (s *Service) updateAccessKey(ctx context.Context, _ *call, r *keyholdv1.UpdateAccessKeyRequest) (*keyholdv1.UpdateAccessKeyResponse, error) {
	active := r.GetStatus() == keyholdv1.AccessKeyStatus_ACCESS_KEY_STATUS_ACTIVE
	if err := s.accessKeys.SetActive(ctx, r.GetAccessKeyId(), active); err != nil {
		return nil, accessKeyError(r.GetAccessKeyId(), err)
	}
	return &keyholdv1.UpdateAccessKeyResponse{}, nil
}

func (s *Service) checkDeleteAccessKey(c *call, r *keyholdv1.DeleteAccessKeyRequest) error {
	c.noteAccessKey(r.GetAccessKeyId())
	return nil
}

func (s *Service) deleteAccessKey(ctx context.Context, _ *call, r *keyholdv1.DeleteAccessKeyRequest) (*keyholdv1.DeleteAccessKeyResponse, error) {
	if err := s.accessKeys.Delete(ctx, r.GetAccessKeyId()); err != nil {
		return nil, accessKeyError(r.GetAccessKeyId(), err)
	}
	return &keyholdv1.DeleteAccessKeyResponse{}, nil
}

func (s *Service) checkGetAccessKeyLastUsed(c *call, r *keyholdv1.GetAccessKeyLastUsedRequest) error {
	c.noteAccessKey(r.GetAccessKeyId())
	return nil
}

func (s *Service) getAccessKeyLastUsed(_ context.Context, _ *call, r *keyholdv1.GetAccessKeyLastUsedRequest) (*keyholdv1.GetAccessKeyLastUsedResponse, error) {
	rec, err := s.accessKeys.Record(r.GetAccessKeyId())
	if err != nil {
		return nil, accessKeyError(r.GetAccessKeyId(), err)
	}
	use := &keyholdv1.AccessKeyLastUsed{ServiceName: neverUsed, Region: neverUsed}
	if !rec.LastUse.At.IsZero() {
		use.LastUsedDate, use.ServiceName, use.Region = timestamppb.New(rec.LastUse.At), rec.LastUse.Service, rec.LastUse.Region
	}
	return &keyholdv1.GetAccessKeyLastUsedResponse{PrincipalArn: rec.Principal, AccessKeyLastUsed: use}, nil
}

func accessKeyError(id string, err error) error {
	if errors.Is(err, identity.ErrNoAccessKey) { // gone since step 5
		return noAccessKey(id)
	}
	return err
}

// ImportAccessKey gives a principal an access key with an id and a secret of
// somebody's choice, for development, in place of the one of the id replaces, if
// any; see identity.AccessKeys.Import. Where something changes it is recorded as the
// service's own work. The secret stays the caller's.
func (s *Service) ImportAccessKey(ctx context.Context, principal, id string, secret identity.Secret, replaces string) error {
	if err := s.hasAccessKeys(); err != nil {
		return err
	}
	p := s.accessKeys.Principal(principal)
	if p == nil {
		return fmt.Errorf("import an access key: there is no principal %s", principal)
	}
	if replaces == "" && s.accessKeys.Has(ctx, p, id, secret) {
		return nil
	}
	facts := []audit.Member{{Key: "accessKeyId", Value: id}, {Key: "principalArn", Value: p.ARN}}
	if replaces != "" {
		facts = append(facts, audit.Member{Key: "replacesAccessKeyId", Value: replaces})
	}
	region := s.anyRegion()
	if err := s.recordOwn(ctx, "ImportAccessKey", p.ARN, p.Account, region, audit.PhaseIntent, nil, facts...); err != nil {
		return fmt.Errorf("%w: %w", errNoRecord, err)
	}
	err := s.accessKeys.Import(ctx, p, id, secret, replaces)
	return errors.Join(err, s.recordOwn(context.WithoutCancel(ctx), "ImportAccessKey", p.ARN, p.Account, region, audit.PhaseOutcome, err, facts...))
}

// anyRegion is a region for records of what is of no region.
func (s *Service) anyRegion() Region {
	var least Region
	for r := range s.regions {
		if least == "" || r < least {
			least = r
		}
	}
	return least
}

// eventSource is CloudTrail's name of the service whose operation it is.
func (op *operation) eventSource() string {
	if p := op.spec.GetPermissions(); len(p) > 0 {
		switch service, _, _ := strings.Cut(p[0].GetAction(), ":"); service {
		case "iam":
			return audit.EventSourceIAM
		case "sts":
			return audit.EventSourceSTS
		}
	}
	return audit.EventSourceKMS
}
