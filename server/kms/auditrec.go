package kms

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	"github.com/keyhold/keyhold/proto/awsjson"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/audit"
)

// recordIntent is step 10. A change of keys is announced before it is made,
// so that a crash between act and outcome leaves a trace, and so that nothing
// is changed while the audit log does not write.
func (s *Service) recordIntent(ctx context.Context, c *call) error {
	if !c.op.mutates() {
		return nil
	}
	if err := s.record(ctx, c, audit.PhaseIntent, nil, nil); err != nil {
		return &Error{Code: CodeInternal, Message: internalMessage, Unavailable: true, cause: fmt.Errorf("%w: %w", errNoRecord, err)}
	}
	return nil
}

// recordOutcome is step 12. The record is made even when the caller has gone:
// what was done was done.
func (s *Service) recordOutcome(ctx context.Context, c *call, resp proto.Message, failure *Error) error {
	phase := audit.PhaseNone
	if c.op.mutates() {
		phase = audit.PhaseOutcome
	}
	return s.record(context.WithoutCancel(ctx), c, phase, resp, failure)
}

// recordBuffers are reused: a record is copied by the journal before Append
// returns.
var recordBuffers = sync.Pool{New: func() any { return new(recordBuffer) }}

type recordBuffer struct {
	event, params, elements []byte

	e         audit.Event
	members   []audit.Member
	resources []audit.Resource
}

// batchBuffers are those of batches, whose records are side by side in one.
var batchBuffers = sync.Pool{New: func() any { return new(recordBuffer) }}

// Giant records and batches do not stay in memory for ever.
const (
	maxPooledBytes      = 64 << 10
	maxPooledBatchBytes = 512 << 10
)

func takeBuffer(from *sync.Pool) *recordBuffer {
	return from.Get().(*recordBuffer) //nolint:forcetypeassert // the only type stored
}

func (b *recordBuffer) giveBack(to *sync.Pool, most int) {
	if cap(b.event)+cap(b.params)+cap(b.elements) <= most {
		b.event = b.event[:0]
		to.Put(b)
	}
}

// recovered turns a panic while something is recorded into an error: who cannot
// be recorded is not answered, and the others go on. It is to be deferred.
func recovered(operation string, err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("panic while recording %s: %v\n%s", operation, p, debug.Stack())
	}
}

// record makes one record of a call.
func (s *Service) record(ctx context.Context, c *call, phase audit.Phase, resp proto.Message, failure *Error) (err error) {
	defer recovered(c.op.name, &err)
	buf := takeBuffer(&recordBuffers)
	defer buf.giveBack(&recordBuffers, maxPooledBytes)
	if err := s.encodeRecord(buf, c, phase, resp, failure); err != nil {
		return err
	}
	class, durability := audit.Normal, audit.Synced
	// What was begun with an intent on the record must not lose its outcome to a
	// disk that filled up in between.
	if failure != nil || c.op.protected || phase == audit.PhaseOutcome {
		class = audit.Protected
	}
	if c.op.spec.GetPlane() == keyholdv1.Plane_PLANE_DATA && failure == nil {
		durability = s.durability
	}
	start := s.now()
	_, err = s.journal.Append(ctx, class, durability, buf.event)
	c.timing.Audit += s.now().Sub(start)
	return err
}

// encodeRecord appends the record of a call to buf.event; nothing, on an error.
func (s *Service) encodeRecord(buf *recordBuffer, c *call, phase audit.Phase, resp proto.Message, failure *Error) (err error) {
	defer recovered(c.op.name, &err)
	e := s.event(buf, c, phase, failure)
	defer buf.forget()
	buf.params, buf.elements = buf.params[:0], buf.elements[:0]
	if c.validated {
		buf.params = appendBounded(buf.params, s.params, c.req)
		e.RequestParameters = buf.params
	}
	if c.op.mutates() && resp != nil {
		buf.elements = appendBounded(buf.elements, s.params, resp)
		e.ResponseElements = buf.elements
	}
	buf.event = e.AppendJSON(buf.event)
	return nil
}

// maxElementBytes is where CloudTrail leaves out parameters or elements. No
// request that is carried out comes near it but by its grant tokens.
const maxElementBytes = 100 << 10

// appendBounded appends a message, or, where it is too large for a record, that
// it was left out: what a caller may send must not keep the record from being
// written.
func appendBounded(dst []byte, enc *awsjson.Encoder, m proto.Message) []byte {
	start := len(dst)
	dst = enc.AppendMessage(dst, m)
	size := len(dst) - start
	if size <= maxElementBytes {
		return dst
	}
	return fmt.Appendf(dst[:start], `{"omitted":true,"originalSize":%d,"reason":"larger than %d bytes"}`, size, maxElementBytes)
}

// forget drops what is of one call.
func (b *recordBuffer) forget() {
	b.e = audit.Event{}
	clear(b.members)
	clear(b.resources)
}

// event fills in what every record has. The result is the buffer's.
func (s *Service) event(buf *recordBuffer, c *call, phase audit.Phase, failure *Error) *audit.Event {
	p := c.caller.Principal
	buf.members = append(append(buf.members[:0], audit.Member{Key: "door", Value: c.caller.Door}, audit.Member{Key: "subject", Value: c.caller.Subject}), c.facts...)
	buf.resources = buf.resources[:0]
	for i := range c.subjects {
		if sub := &c.subjects[i]; sub.rec != nil {
			buf.resources = append(buf.resources, audit.Resource{ARN: sub.arn, AccountID: string(sub.account)})
		}
	}
	e := &buf.e
	*e = audit.Event{
		UserIdentity: audit.UserIdentity{
			Type: p.Type, ARN: p.ARN, PrincipalID: p.ARN, AccountID: string(p.Account), AccessKeyID: c.caller.AccessKeyID, UserName: p.Name,
		},
		EventTime: c.start, EventSource: c.op.eventSource(), EventName: c.op.name, AWSRegion: string(c.region),
		SourceIPAddress: c.caller.SourceIP, UserAgent: c.caller.UserAgent,
		Phase: phase, Additional: buf.members, Resources: buf.resources,
		RequestID: c.caller.RequestID, EventID: newEventID(), ReadOnly: !c.op.mutates(),
		RecipientAccountID: string(p.Account),
		TLS:                audit.TLSDetails{Version: c.caller.TLSVersion, CipherSuite: c.caller.CipherSuite, ClientProvidedHostHeader: c.caller.Host},
	}
	if failure != nil {
		e.ErrorCode, e.ErrorMessage = string(failure.Code), failure.Message
	}
	return e
}

func newEventID() string { return uuid.NewString() }
