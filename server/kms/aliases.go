package kms

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/protobuf/types/known/timestamppb"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

func validCreateAlias(r *keyholdv1.CreateAliasRequest) error {
	if wrong := checkAliasName(r.GetAliasName()); wrong != "" {
		return errorf(CodeInvalidAliasName, "%s", wrong)
	}
	return nil
}

func validUpdateAlias(r *keyholdv1.UpdateAliasRequest) error { return validAlias(r.GetAliasName()) }
func validDeleteAlias(r *keyholdv1.DeleteAliasRequest) error { return validAlias(r.GetAliasName()) }

// validAlias serves the operations that do not declare an exception of their
// own for names.
func validAlias(name string) error {
	if wrong := checkAliasName(name); wrong != "" {
		return invalidField("alias_name", "%s", wrong)
	}
	return nil
}

func (s *Service) createAlias(ctx context.Context, c *call, r *keyholdv1.CreateAliasRequest) (*keyholdv1.CreateAliasResponse, error) {
	name, target := c.key(0), c.key(1)
	release, err := s.takeAliasTurn(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	if s.keys.alias(name.account, c.region, r.GetAliasName()) != nil {
		return nil, aliasExists(name.arn)
	}
	if err := s.aliasRoom(c, target.rec.ID); err != nil {
		return nil, err
	}
	now := s.timestamp()
	a := &AliasRecord{Account: name.account, Region: c.region, Name: r.GetAliasName(), KeyID: target.rec.ID, Created: now, Updated: now}
	err = s.store.InsertAlias(ctx, a)
	switch {
	case err == nil:
		s.keys.putAlias(a)
		return &keyholdv1.CreateAliasResponse{}, nil
	case errors.Is(err, ErrNotBegun):
		return nil, fmt.Errorf("create %s: %w", name.arn, err)
	}
	stored, readErr := s.rereadAlias(ctx, a)
	switch {
	case errors.Is(err, ErrExists):
		return nil, aliasExists(name.arn)
	case errors.Is(err, ErrNotFound):
		return nil, errorf(CodeNotFound, "Key '%s' does not exist", target.arn)
	case stored == nil || stored.KeyID != a.KeyID:
		return nil, fmt.Errorf("create %s: %w", name.arn, errors.Join(err, readErr))
	}
	return &keyholdv1.CreateAliasResponse{}, nil // it is there after all
}

func aliasExists(arn string) *Error {
	return errorf(CodeAlreadyExists, "An alias with the name %s already exists", arn)
}

// aliasRoom keeps a key within its aliases. The caller has the turn of aliasWrites.
func (s *Service) aliasRoom(c *call, id KeyID) error {
	if _, n := s.keys.counts(c.caller.Principal.Account, c.region, id); n >= s.limits.AliasesPerKey {
		return errorf(CodeLimitExceeded, "The key has %d aliases, the most it may have.", n)
	}
	return nil
}

func (s *Service) updateAlias(ctx context.Context, c *call, r *keyholdv1.UpdateAliasRequest) (*keyholdv1.UpdateAliasResponse, error) {
	name, target := c.key(0), c.key(1)
	release, err := s.takeAliasTurn(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	a := s.keys.alias(name.account, c.region, r.GetAliasName())
	switch {
	case a == nil:
		return nil, errorf(CodeNotFound, "Alias %s is not found.", name.arn)
	case a.KeyID == target.rec.ID:
		return &keyholdv1.UpdateAliasResponse{}, nil
	}
	if old := s.keys.key(a.KeyID); old != nil {
		was := factsOf(old.rec.Load().Spec)
		is := factsOf(target.rec.Spec)
		if was.kind != is.kind || old.rec.Load().Usage != target.rec.Usage {
			return nil, errorf(CodeValidation, "Alias %s cannot be changed from key %s to key %s: both must be symmetric, asymmetric or HMAC keys and have the same usage.", name.arn, old.arn, target.arn)
		}
	}
	if err := s.aliasRoom(c, target.rec.ID); err != nil {
		return nil, err
	}
	next := *a
	next.KeyID, next.Updated = target.rec.ID, s.timestamp()
	err = s.store.UpdateAlias(ctx, &next)
	switch {
	case err == nil:
		s.keys.putAlias(&next)
		return &keyholdv1.UpdateAliasResponse{}, nil
	case errors.Is(err, ErrNotBegun):
		return nil, fmt.Errorf("update %s: %w", name.arn, err)
	}
	stored, readErr := s.rereadAlias(ctx, a)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil, errorf(CodeNotFound, "Alias %s or key %s is not found.", name.arn, target.arn)
	case stored == nil || stored.KeyID != next.KeyID:
		return nil, fmt.Errorf("update %s: %w", name.arn, errors.Join(err, readErr))
	}
	return &keyholdv1.UpdateAliasResponse{}, nil // it was changed after all
}

func (s *Service) deleteAlias(ctx context.Context, c *call, r *keyholdv1.DeleteAliasRequest) (*keyholdv1.DeleteAliasResponse, error) {
	name := c.key(0)
	release, err := s.takeAliasTurn(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	a := s.keys.alias(name.account, c.region, r.GetAliasName())
	if a == nil {
		return nil, errorf(CodeNotFound, "Alias %s is not found.", name.arn)
	}
	err = s.store.DeleteAlias(ctx, a)
	switch {
	case err == nil:
		s.keys.removeAlias(a)
		return &keyholdv1.DeleteAliasResponse{}, nil
	case errors.Is(err, ErrNotBegun):
		return nil, fmt.Errorf("delete %s: %w", name.arn, err)
	}
	stored, readErr := s.rereadAlias(ctx, a)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil, errorf(CodeNotFound, "Alias %s is not found.", name.arn)
	case stored != nil || readErr != nil:
		return nil, fmt.Errorf("delete %s: %w", name.arn, errors.Join(err, readErr))
	}
	return &keyholdv1.DeleteAliasResponse{}, nil // it is gone after all
}

// rereadAlias brings what the store holds of an alias into memory and returns
// it, or nil where there is none. After a failed write its effect is not known;
// memory that went on as before would resolve an alias to a key that it does
// not name any more, until the next start. Also where ctx has ended. The caller has
// the turn of aliasWrites.
func (s *Service) rereadAlias(ctx context.Context, of *AliasRecord) (*AliasRecord, error) {
	snapshot, err := s.store.Snapshot(context.WithoutCancel(ctx))
	if err != nil {
		return nil, fmt.Errorf("read the aliases again: %w", err)
	}
	for _, a := range snapshot.Aliases {
		if a.Account != of.Account || a.Region != of.Region || a.Name != of.Name {
			continue
		}
		if old := s.keys.alias(a.Account, a.Region, a.Name); old != nil && old.Revision >= a.Revision && old.KeyID != a.KeyID {
			s.keys.removeAlias(old) // another one of that name
		}
		s.keys.putAlias(a)
		return a, nil
	}
	s.keys.removeAlias(of)
	return nil, nil
}

func (s *Service) listAliases(_ context.Context, c *call, r *keyholdv1.ListAliasesRequest) (*keyholdv1.ListAliasesResponse, error) {
	after, err := parseMarker(r.Marker, aliasesMarker)
	if err != nil {
		return nil, err
	}
	// Permissions of ListAliases name no key, so its filter is resolved here.
	var id KeyID
	if r.KeyId != nil {
		var sub subject
		if err := s.resolveKey(c, &sub, r.GetKeyId()); err != nil {
			return nil, err
		}
		if err := s.allowed(c, c.op.spec.GetPermissions()[0].GetAction(), &sub); err != nil {
			return nil, err
		}
		id = sub.rec.ID
	}
	limit := 50
	if r.Limit != nil {
		limit = int(r.GetLimit())
	}
	aliases, more := s.keys.listAliases(c.caller.Principal.Account, c.region, id, after, limit)
	resp := &keyholdv1.ListAliasesResponse{Truncated: &more}
	for _, a := range aliases {
		resp.Aliases = append(resp.Aliases, &keyholdv1.AliasListEntry{
			AliasName: a.Name, AliasArn: aliasARN(a.Region, a.Account, a.Name), TargetKeyId: string(a.KeyID),
			CreationDate: timestamppb.New(a.Created), LastUpdatedDate: timestamppb.New(a.Updated),
		})
	}
	if more {
		resp.NextMarker = formatMarker(aliasesMarker, aliases[len(aliases)-1].Name)
	}
	return resp, nil
}
