package kms

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// specAndUsage gives what a CreateKey request means, defaults filled in.
func specAndUsage(r *keyholdv1.CreateKeyRequest) (keyholdv1.KeySpec, keyholdv1.KeyUsageType) {
	spec, usage := r.GetKeySpec(), r.GetKeyUsage()
	if spec == keyholdv1.KeySpec_KEY_SPEC_UNSPECIFIED {
		spec = youngSpec(r.GetCustomerMasterKeySpec()) //nolint:staticcheck // AWS's clients still send it
	}
	if spec == keyholdv1.KeySpec_KEY_SPEC_UNSPECIFIED {
		spec = keyholdv1.KeySpec_KEY_SPEC_SYMMETRIC_DEFAULT
	}
	if usage == keyholdv1.KeyUsageType_KEY_USAGE_TYPE_UNSPECIFIED && spec == keyholdv1.KeySpec_KEY_SPEC_SYMMETRIC_DEFAULT {
		usage = keyholdv1.KeyUsageType_KEY_USAGE_TYPE_ENCRYPT_DECRYPT
	}
	return spec, usage
}

func validCreateKey(r *keyholdv1.CreateKeyRequest) error {
	spec, usage := specAndUsage(r)
	f := factsOf(spec)
	switch {
	case r.GetKeySpec() != 0 && r.GetCustomerMasterKeySpec() != 0: //nolint:staticcheck // AWS's clients still send it
		return errorf(CodeValidation, "You cannot specify KeySpec and CustomerMasterKeySpec in the same request. CustomerMasterKeySpec is deprecated.")
	case usage == keyholdv1.KeyUsageType_KEY_USAGE_TYPE_UNSPECIFIED:
		return invalidField("key_usage", "must be given for key spec %s", awsName(spec))
	case !slices.Contains(f.usages, usage):
		return errorf(CodeValidation, "KeyUsage %s is not compatible with KeySpec %s.", awsName(usage), awsName(spec))
	case custodyOf(r) == keyholdv1.KeyCustodyType_KEY_CUSTODY_TYPE_EXPORTABLE && !mayLeave(spec, usage):
		return invalidField("key_custody", "EXPORTABLE is for SYMMETRIC_DEFAULT keys of usage ENCRYPT_DECRYPT and for HMAC keys")
	}
	return checkTags(r.GetTags())
}

// custodyOf returns the custody that a CreateKey request asks for.
func custodyOf(r *keyholdv1.CreateKeyRequest) keyholdv1.KeyCustodyType {
	if r.GetKeyCustody() == keyholdv1.KeyCustodyType_KEY_CUSTODY_TYPE_UNSPECIFIED {
		return keyholdv1.KeyCustodyType_KEY_CUSTODY_TYPE_GENERATED
	}
	return r.GetKeyCustody()
}

// mayLeave tells whether a key can be EXPORTABLE. One that wraps others cannot:
// what it wrapped would be as safe as the key that wraps it.
func mayLeave(spec keyholdv1.KeySpec, usage keyholdv1.KeyUsageType) bool {
	return factsOf(spec).kind != kindAsymmetric && usage != keyholdv1.KeyUsageType_KEY_USAGE_TYPE_WRAP_UNWRAP
}

// checkCreateKey is step 8: what the token cannot do is refused here, never
// done on the host in its stead.
func (s *Service) checkCreateKey(c *call, r *keyholdv1.CreateKeyRequest) error {
	if keys, _ := s.keys.counts(c.caller.Principal.Account, c.region, ""); keys >= s.limits.KeysPerAccount {
		return tooManyKeys(keys)
	}
	spec, usage := specAndUsage(r)
	ks := s.regions[c.region]
	if err := ks.Supports(spec, usage); err != nil || custodyOf(r) != keyholdv1.KeyCustodyType_KEY_CUSTODY_TYPE_EXPORTABLE {
		return err
	}
	return canEverLeave(ks, factsOf(spec).secretBytes)
}

// canEverLeave tells whether the store can wrap so many bytes: a key that is less
// well kept, and cannot be exported all the same, is of no use.
func canEverLeave(ks KeyStore, n int) error {
	w, ok := ks.(Wrapper)
	if !ok {
		return fmt.Errorf("%w: key wrapping", ErrUnsupported)
	}
	err := w.CanWrap(keyholdv1.WrappingAlgorithmSpec_WRAPPING_ALGORITHM_SPEC_AES_KWP, n)
	if err != nil && n%semiblockBytes == 0 && w.CanWrap(keyholdv1.WrappingAlgorithmSpec_WRAPPING_ALGORITHM_SPEC_AES_KW, n) == nil {
		return nil
	}
	return err
}

func tooManyKeys(n int) *Error {
	return errorf(CodeLimitExceeded, "The account has %d keys in this region, the most it may have.", n)
}

// createKey: record the intent in the store, generate in the token, commit. A
// crash in between leaves an intent, and possibly an object, that start-up
// reports; it never leaves a key that was acknowledged and is not there.
func (s *Service) createKey(ctx context.Context, c *call, r *keyholdv1.CreateKeyRequest) (*keyholdv1.CreateKeyResponse, error) {
	gen, ok := s.regions[c.region].(Generator)
	if !ok {
		return nil, fmt.Errorf("%w: key generation", ErrUnsupported)
	}
	// Step 8 looked at the keys that are there; this counts those that are being
	// made as well.
	account := c.caller.Principal.Account
	if !s.keys.reserve(account, c.region, s.limits.KeysPerAccount) {
		return nil, tooManyKeys(s.limits.KeysPerAccount)
	}
	defer s.keys.unreserve(account, c.region)
	rec, err := s.newRecord(c, r)
	if err != nil {
		return nil, err
	}
	if err := s.store.InsertKey(ctx, rec); err != nil {
		return nil, fmt.Errorf("record the intent to create %s: %w", rec.ID, err)
	}
	s.keys.put(rec) // its id, before there is an object that reconciliation may see
	// From here on the work is finished, one way or the other, even when the
	// caller goes.
	v := &rec.Versions[0]
	asked := v.Custody
	made, err := gen.Generate(ctx, v.Locator, asked == keyholdv1.KeyCustodyType_KEY_CUSTODY_TYPE_EXPORTABLE)
	v.Custody, v.PublicKey = made.Custody, made.PublicKey
	if err == nil && made.Custody != asked {
		// A store that makes another key than was asked for has a fault, and the
		// key is nobody's.
		err = errors.Join(fmt.Errorf("the key store made a key of custody %s, not %s", awsName(made.Custody), awsName(asked)), gen.Destroy(context.WithoutCancel(ctx), v.Locator))
	}
	detached := context.WithoutCancel(ctx)
	if err != nil {
		if undo := s.store.DeleteKey(detached, rec.ID, rec.Revision); undo != nil {
			s.log.ErrorContext(ctx, "intent of a key that was not made stays behind", "key", rec.ID, "err", undo)
		} else {
			s.keys.remove(rec)
		}
		return nil, fmt.Errorf("generate %s: %w", rec.ID, err)
	}
	rec.State = keyholdv1.KeyState_KEY_STATE_ENABLED
	if err := s.store.UpdateKey(detached, rec); err != nil {
		if rec, err = s.settleCreate(detached, gen, rec, err); err != nil {
			return nil, err
		}
	}
	s.keys.put(rec)
	e := s.keys.key(rec.ID)
	// The outcome's record names the new key.
	c.subjects[0] = subject{arn: e.arn, account: rec.Account, entry: e, rec: rec}
	return &keyholdv1.CreateKeyResponse{KeyMetadata: s.metadata(e)}, nil
}

// settleCreate finds out what became of a commit that failed. Where the record
// was stored after all, the key is as good as any other and is returned:
// otherwise it would appear after a restart, and nobody would know why. Where
// it was not, the material is removed. Where the store does not say what it
// holds, everything is left for the operator: better an orphan than a record
// without its key.
func (s *Service) settleCreate(ctx context.Context, gen Generator, rec *KeyRecord, cause error) (*KeyRecord, error) {
	stored, err := s.store.Key(ctx, rec.ID)
	switch {
	case err == nil && stored.State == keyholdv1.KeyState_KEY_STATE_ENABLED:
		return stored, nil
	case err != nil || stored.State != keyholdv1.KeyState_KEY_STATE_CREATING:
		return nil, fmt.Errorf("commit %s, its material stays in the token: %w", rec.ID, errors.Join(cause, err))
	}
	if err := gen.Destroy(ctx, rec.Versions[0].Locator); err != nil && !errors.Is(err, ErrKeyMissing) {
		return nil, fmt.Errorf("commit %s, its material stays in the token: %w", rec.ID, errors.Join(cause, err))
	}
	if err := s.store.DeleteKey(ctx, stored.ID, stored.Revision); err != nil {
		return nil, fmt.Errorf("commit %s, its intent stays in the store: %w", rec.ID, errors.Join(cause, err))
	}
	s.keys.remove(stored)
	return nil, fmt.Errorf("commit %s, undone: %w", rec.ID, cause)
}

func (s *Service) newRecord(c *call, r *keyholdv1.CreateKeyRequest) (*KeyRecord, error) {
	id, err := newKeyID(s.rand)
	if err != nil {
		return nil, err
	}
	ref, err := newRef(s.rand)
	if err != nil {
		return nil, err
	}
	spec, usage := specAndUsage(r)
	created := s.timestamp()
	rec := &KeyRecord{
		ID: id, Account: c.caller.Principal.Account, Region: c.region, Spec: spec, Usage: usage,
		State: keyholdv1.KeyState_KEY_STATE_CREATING, Description: r.GetDescription(), Created: created,
		Versions: []KeyVersion{{
			MaterialID: generatedMaterialID(id, ref), Ref: ref, Created: created,
			Custody: custodyOf(r),
			Locator: Locator{ID: slices.Clone(ref[:]), Label: objectLabel(s.store.Instance(), id), Spec: spec, Usage: usage},
		}},
	}
	for _, t := range r.GetTags() {
		rec.Tags = append(rec.Tags, Tag{Key: t.GetTagKey(), Value: t.GetTagValue()})
	}
	return rec, nil
}

// recordTime is the precision of times in records, as AWS's API shows them.
const recordTime = time.Millisecond

// timestamp is now as records hold it: in UTC.
func (s *Service) timestamp() time.Time { return s.now().UTC().Truncate(recordTime) }

// mutate changes a key's record: store first, memory after. change is called
// again on a fresh record when another change came first; the state is
// checked again with it. ctx bounds the waiting, for other changes of the key and
// for the store's turn; the store finishes what it has begun, and so does mutate.
func (s *Service) mutate(ctx context.Context, c *call, e *entry, change func(r *KeyRecord) error) (*KeyRecord, error) {
	release, err := e.takeTurn(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	const attempts = 16
	for range attempts {
		next := e.rec.Load().Clone()
		if e.removed {
			return nil, errorf(CodeNotFound, "Key '%s' does not exist", e.arn)
		}
		if err := c.op.needs.checkState(e.arn, next.State); err != nil {
			return nil, err
		}
		if err := change(next); err != nil {
			return nil, err
		}
		err := s.store.UpdateKey(ctx, next)
		switch {
		case err == nil:
			s.keys.put(next)
			return next, nil
		case errors.Is(err, ErrNotFound):
			return nil, errorf(CodeNotFound, "Key '%s' does not exist", e.arn)
		case errors.Is(err, ErrNotBegun):
			return nil, fmt.Errorf("change %s: %w", e.arn, err)
		}
		// A conflict, or a fault after which the effect is not known: what
		// the store holds now is the truth.
		_, readErr := s.reread(ctx, next.ID)
		if !errors.Is(err, ErrConflict) || readErr != nil {
			return nil, fmt.Errorf("change %s: %w", e.arn, errors.Join(err, readErr))
		}
	}
	return nil, fmt.Errorf("change %s: %w %d times in a row", e.arn, ErrConflict, attempts)
}

func (s *Service) describeKey(_ context.Context, c *call, _ *keyholdv1.DescribeKeyRequest) (*keyholdv1.DescribeKeyResponse, error) {
	return &keyholdv1.DescribeKeyResponse{KeyMetadata: s.metadata(c.key(0).entry)}, nil
}

func (s *Service) listKeys(_ context.Context, c *call, r *keyholdv1.ListKeysRequest) (*keyholdv1.ListKeysResponse, error) {
	after, err := parseMarker(r.Marker, keysMarker)
	if err != nil {
		return nil, err
	}
	limit := 100
	if r.Limit != nil {
		limit = int(r.GetLimit())
	}
	account := c.caller.Principal.Account
	ids, more := s.keys.listKeys(account, c.region, KeyID(after), limit)
	resp := &keyholdv1.ListKeysResponse{Truncated: &more}
	for _, id := range ids {
		resp.Keys = append(resp.Keys, &keyholdv1.KeyListEntry{KeyId: string(id), KeyArn: keyARN(c.region, account, id)})
	}
	if more {
		resp.NextMarker = formatMarker(keysMarker, string(ids[len(ids)-1]))
	}
	return resp, nil
}

func (s *Service) enableKey(ctx context.Context, c *call, _ *keyholdv1.EnableKeyRequest) (*keyholdv1.EnableKeyResponse, error) {
	return &keyholdv1.EnableKeyResponse{}, s.setState(ctx, c, keyholdv1.KeyState_KEY_STATE_ENABLED)
}

func (s *Service) disableKey(ctx context.Context, c *call, _ *keyholdv1.DisableKeyRequest) (*keyholdv1.DisableKeyResponse, error) {
	return &keyholdv1.DisableKeyResponse{}, s.setState(ctx, c, keyholdv1.KeyState_KEY_STATE_DISABLED)
}

func (s *Service) setState(ctx context.Context, c *call, state keyholdv1.KeyState) error {
	rec, err := s.mutate(ctx, c, c.key(0).entry, func(r *KeyRecord) error {
		r.State = state
		return nil
	})
	if err == nil {
		s.retire(rec)
	}
	return err
}

// retire drops what the key store keeps ready for a key that may not be used.
func (s *Service) retire(r *KeyRecord) {
	gen, ok := s.regions[r.Region].(Generator)
	if !ok || r.State == keyholdv1.KeyState_KEY_STATE_ENABLED {
		return
	}
	for i := range r.Versions {
		gen.Retire(r.Versions[i].Locator)
	}
}

// defaultPendingDays is the waiting period that absent means.
const defaultPendingDays = 30

func (s *Service) scheduleKeyDeletion(ctx context.Context, c *call, r *keyholdv1.ScheduleKeyDeletionRequest) (*keyholdv1.ScheduleKeyDeletionResponse, error) {
	days := int32(defaultPendingDays)
	if r.PendingWindowInDays != nil {
		days = r.GetPendingWindowInDays()
	}
	rec, err := s.mutate(ctx, c, c.key(0).entry, func(rec *KeyRecord) error {
		rec.State = keyholdv1.KeyState_KEY_STATE_PENDING_DELETION
		rec.PendingWindowDays = int(days)
		rec.DeletionDate = s.timestamp().Add(time.Duration(days) * 24 * time.Hour)
		return nil
	})
	if err != nil {
		return nil, err
	}
	s.retire(rec)
	return &keyholdv1.ScheduleKeyDeletionResponse{
		KeyId: c.key(0).arn, DeletionDate: timestamppb.New(rec.DeletionDate), KeyState: rec.State, PendingWindowInDays: &days,
	}, nil
}

func (s *Service) cancelKeyDeletion(ctx context.Context, c *call, _ *keyholdv1.CancelKeyDeletionRequest) (*keyholdv1.CancelKeyDeletionResponse, error) {
	_, err := s.mutate(ctx, c, c.key(0).entry, func(r *KeyRecord) error {
		if r.Destroying {
			return errorf(CodeInvalidState, "%s is being deleted.", c.key(0).arn)
		}
		r.State = keyholdv1.KeyState_KEY_STATE_DISABLED
		r.DeletionDate, r.PendingWindowDays = time.Time{}, 0
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &keyholdv1.CancelKeyDeletionResponse{KeyId: c.key(0).arn}, nil
}

func (s *Service) updateKeyDescription(ctx context.Context, c *call, r *keyholdv1.UpdateKeyDescriptionRequest) (*keyholdv1.UpdateKeyDescriptionResponse, error) {
	_, err := s.mutate(ctx, c, c.key(0).entry, func(rec *KeyRecord) error {
		rec.Description = r.GetDescription()
		return nil
	})
	return &keyholdv1.UpdateKeyDescriptionResponse{}, err
}
