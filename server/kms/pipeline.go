package kms

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/audit"
	"github.com/keyhold/keyhold/server/identity"
)

// call is one request on its way through the pipeline.
type call struct {
	op     *operation
	caller *identity.Caller
	region Region
	req    proto.Message
	start  time.Time

	// blob is the parsed ciphertext, of operations that take one (step 4).
	blob *blob
	// subjects are what the request is about, one per permission of the
	// operation (step 5).
	subjects []subject
	// room is for most operations' subjects.
	room [2]subject
	// malformed is what a door found wrong with a request that it could not
	// decode; there is no req then.
	malformed string
	// entered is set in step 3: the request counts as under way.
	entered bool
	// validated is set after step 2: parameters may be recorded.
	validated bool
	// accessKeyID is the id of an access key that is being made.
	accessKeyID string
	// facts go to the audit record beside the parameters.
	facts []audit.Member
	// items are the calls that a batch carried, once they have been carried out.
	items []*batchItem

	timing Timing
}

// subject is one resource of a request.
type subject struct {
	arn     string
	account AccountID
	entry   *entry     // nil for aliases, principals and for the account as a whole
	rec     *KeyRecord // the record as of step 5
	alias   *AliasRecord
}

// key returns the key of the i-th permission.
func (c *call) key(i int) *subject { return &c.subjects[i] }

// Do carries out one operation. It is the only way in, for every door.
//
// caller was authenticated by the door (step 1) and is not changed. operation
// is the name of an RPC, req its request, which is not kept; secrets in it are
// the caller's to wipe. The error is always an *Error. ctx bounds the work; an
// operation that was begun is recorded even when ctx ends.
func (s *Service) Do(ctx context.Context, caller *identity.Caller, operation string, req proto.Message) (proto.Message, error) {
	op := s.ops[operation]
	if op == nil {
		return nil, errorf(CodeUnknownOperation, "The operation %q is not known.", clip(operation))
	}
	if caller == nil || caller.Principal == nil || req == nil {
		return nil, internalError(fmt.Errorf("operation %s was called by nobody, or with nothing", op.name))
	}
	c := &call{op: op, caller: caller, region: Region(caller.Region), req: req, start: s.now()}
	if req.ProtoReflect().Descriptor() != op.input {
		return nil, internalError(fmt.Errorf("operation %s was given a %s", op.name, req.ProtoReflect().Descriptor().FullName()))
	}
	return s.run(ctx, c)
}

// Malformed records that a door could not decode a request, and returns what
// the door answers with. A refusal is a refusal: without this a caller could
// try what it likes and leave no trace. why is the door's own words, with
// nothing of the request in them. The error is always an *Error.
func (s *Service) Malformed(ctx context.Context, caller *identity.Caller, operation, why string) error {
	op := s.ops[operation]
	if op == nil || caller == nil || caller.Principal == nil {
		return internalError(fmt.Errorf("a malformed request for %q by nobody, or for nothing", clip(operation)))
	}
	_, err := s.run(ctx, &call{op: op, caller: caller, region: Region(caller.Region), start: s.now(), malformed: why})
	return err
}

// run carries a call out, with its record and its metrics.
func (s *Service) run(ctx context.Context, c *call) (proto.Message, error) {
	resp, err := s.handle(withTiming(ctx, &c.timing), c)
	if s.observer != nil {
		var code Code
		if err != nil {
			code = err.Code
		}
		s.observer.Operation(c.op.name, code, s.now().Sub(c.start), c.timing)
	}
	if err != nil {
		return nil, err // a typed nil must not become an error
	}
	return resp, nil
}

// handle runs the steps and records the outcome.
func (s *Service) handle(ctx context.Context, c *call) (proto.Message, *Error) {
	defer func() {
		if c.entered {
			s.throttle.leave()
		}
	}()
	resp, err := s.perform(ctx, c)
	if err == nil && c.items != nil {
		return s.finishBatch(ctx, c), nil
	}
	failure := asError(c.op, err)

	// Step 12: record the outcome. No answer leaves before it is durable.
	if auditErr := s.recordOutcome(ctx, c, resp, failure); auditErr != nil {
		Wipe(resp)
		return nil, &Error{Code: CodeInternal, Message: internalMessage, Unavailable: true, cause: fmt.Errorf("audit: %w", auditErr)}
	}
	// Step 13: return.
	if failure != nil {
		return nil, failure
	}
	return resp, nil
}

// perform runs steps 2 to 11.
func (s *Service) perform(ctx context.Context, c *call) (proto.Message, error) {
	if err := s.prepare(ctx, c); err != nil {
		return nil, err
	}
	return s.act(ctx, c)
}

// calm makes a panic one request's internal error: it must not take the others
// down. It is deferred.
func calm(op *operation, err *error) {
	if p := recover(); p != nil {
		*err = internalError(fmt.Errorf("panic in %s: %v\n%s", op.name, p, debug.Stack()))
	}
}

// act is step 11. An answer beside an error counts for nothing.
func (s *Service) act(ctx context.Context, c *call) (resp proto.Message, err error) {
	defer calm(c.op, &err)
	// An item of a batch may have waited long for its turn since step 7: once
	// DisableKey is answered, no use begins.
	if err := c.checkUses(); err != nil {
		return nil, err
	}
	resp, err = c.op.act(ctx, s, c)
	// A use that had begun may have made the key store keep ready again what
	// DisableKey had it drop.
	if c.checkUses() != nil {
		for i := range c.subjects {
			if e := c.subjects[i].entry; e != nil {
				s.retire(e.rec.Load())
			}
		}
	}
	return resp, err
}

// checkUses is the part of steps 7 and 8 that changes with time, as it is now, for
// operations that use keys.
func (c *call) checkUses() error {
	if c.op.needs != needsEnabled {
		return nil
	}
	for i := range c.subjects {
		sub := &c.subjects[i]
		if sub.entry == nil {
			continue
		}
		if err := c.op.needs.checkState(sub.arn, sub.entry.rec.Load().State); err != nil {
			return err
		}
	}
	return nil
}

// prepare runs steps 2 to 10, which do not wait for a key store.
func (s *Service) prepare(ctx context.Context, c *call) (err error) {
	defer calm(c.op, &err)
	// Step 2: validate. What a door could not decode ends here.
	if c.malformed != "" {
		return invalidField("request", "%s", c.malformed)
	}
	if err := s.validate(c); err != nil {
		return err
	}
	// Step 3: throttle. Left by handle: a request is under way until its record
	// is durable. The rate is that of a batch's items.
	c.entered = true
	if err := s.throttle.enter(c.caller.Principal.Account, c.op.spec.GetPlane(), c.op.spec.GetBatch()); err != nil {
		return err
	}
	if s.regions[c.region] == nil {
		return errorf(CodeAccessDenied, "The region %q is not served here.", clip(string(c.region)))
	}
	// What is declared and not built ends here, for everybody alike: before
	// anything is said of keys.
	if c.op.spec.GetUnbuilt() {
		return errUnbuilt(c.op)
	}
	// Steps 4 and 5: parse the blob, resolve keys and aliases.
	if err := s.resolve(c); err != nil {
		return err
	}
	// Step 6: authorise each (action, resource).
	if err := s.authorise(c); err != nil {
		return err
	}
	// Steps 7 and 8: key state, usage.
	if err := s.checkKeys(c); err != nil {
		return err
	}
	// Step 9: a dry run ends here.
	if d, ok := c.req.(interface{ GetDryRun() bool }); ok && d.GetDryRun() {
		return errorf(CodeDryRun, "The request would have succeeded, but the DryRun option is set.")
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	// Step 10: record the intent of what changes keys.
	return s.recordIntent(ctx, c)
}

// resolve is steps 4 and 5: every resource that the operation's permissions
// name, in their order.
func (s *Service) resolve(c *call) error {
	if n := len(c.op.fields); n <= len(c.room) {
		c.subjects = c.room[:n]
	} else {
		c.subjects = make([]subject, n)
	}
	m := c.req.ProtoReflect()
	for i, fd := range c.op.fields {
		var err error
		switch {
		case fd == nil:
			account := c.caller.Principal.Account
			c.subjects[i] = subject{arn: "*", account: account}
		case fd == c.op.blob:
			err = s.resolveCiphertext(c, &c.subjects[i])
		case fd.Name() == "alias_name":
			err = s.resolveAlias(c, &c.subjects[i], m.Get(fd).String())
		case fd.Name() == "principal_arn":
			err = s.resolvePrincipal(c, &c.subjects[i], m.Get(fd).String())
		case fd.Name() == "access_key_id":
			err = s.resolveAccessKey(c, &c.subjects[i], m.Get(fd).String())
		default:
			err = s.resolveKey(c, &c.subjects[i], m.Get(fd).String())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// authorise is step 6.
func (s *Service) authorise(c *call) error {
	for i, p := range c.op.spec.GetPermissions() {
		if err := s.allowed(c, p.GetAction(), &c.subjects[i]); err != nil {
			return err
		}
	}
	return nil
}

// checkKeys is steps 7 and 8.
func (s *Service) checkKeys(c *call) error {
	for i := range c.subjects {
		sub := &c.subjects[i]
		if sub.rec == nil {
			continue
		}
		if err := c.op.needs.checkState(sub.arn, sub.rec.State); err != nil {
			return err
		}
		// The token is not always asked: nothing could ever decrypt what is
		// encrypted for a key pair whose private half is lost.
		if c.op.needs == needsEnabled && sub.entry.missing.Load() {
			return fmt.Errorf("%s: %w", sub.arn, ErrKeyMissing)
		}
		if c.op.usage != keyholdv1.KeyUsageType_KEY_USAGE_TYPE_UNSPECIFIED && sub.rec.Usage != c.op.usage {
			return errorf(CodeInvalidKeyUsage, "%s key usage is %s which is not valid for %s.", sub.arn, awsName(sub.rec.Usage), c.op.name)
		}
	}
	if c.op.check != nil {
		return c.op.check(s, c)
	}
	return nil
}

// Wipe zeroes every bytes field of a message whose secrets are not needed any
// more, and of the messages in it: an answer that is not given, or a request
// that a door is done with.
func Wipe(m proto.Message) {
	if m == nil || !m.ProtoReflect().IsValid() {
		return
	}
	wipe(m.ProtoReflect())
}

func wipe(m protoreflect.Message) {
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsMap():
		case fd.Kind() == protoreflect.BytesKind && fd.IsList():
			for i := range v.List().Len() {
				clear(v.List().Get(i).Bytes())
			}
		case fd.Kind() == protoreflect.BytesKind:
			clear(v.Bytes())
		case fd.Message() != nil && fd.IsList():
			for i := range v.List().Len() {
				wipe(v.List().Get(i).Message())
			}
		case fd.Message() != nil:
			wipe(v.Message())
		}
		return true
	})
}

// errNoRecord is what audit failures before an act are wrapped in.
var errNoRecord = errors.New("intent not recorded")
