package kms

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/audit"
)

// batchable is one operation that a batch can carry.
type batchable struct {
	op *operation
	// result is the field of BatchResult that its answers have.
	result protoreflect.FieldDescriptor
}

// batchItem is one item of a batch: a call of its own, and what came of it.
type batchItem struct {
	call
	resp    proto.Message
	failure *Error
	// result is where the answer goes; nil for an item without a request.
	result protoreflect.FieldDescriptor
	// place is the fact that says which item it is; there may be one more.
	place [2]audit.Member
}

// joinBatches finds, for operations that carry others, which ones: the request
// and the answer of each have fields of the same number.
func joinBatches(ops map[string]*operation) error {
	byInput := make(map[protoreflect.FullName]*operation)
	for _, op := range ops {
		byInput[op.input.FullName()] = op
	}
	requests := (*keyholdv1.BatchItem)(nil).ProtoReflect().Descriptor().Oneofs().ByName("request").Fields()
	results := (*keyholdv1.BatchResult)(nil).ProtoReflect().Descriptor().Fields()
	items := make(map[protoreflect.FieldNumber]*batchable)
	for i := range requests.Len() {
		fd := requests.Get(i)
		op, result := byInput[fd.Message().FullName()], results.ByNumber(fd.Number())
		// What a batch carries has no intents on the record, and no batches.
		if op == nil || op.mutates() || op.spec.GetBatch() || result == nil || result.Name() != fd.Name() || string(result.Message().Name()) != op.name+"Response" {
			return fmt.Errorf("kms: %s cannot be an item of a batch", fd.FullName())
		}
		items[fd.Number()] = &batchable{op, result}
	}
	for _, op := range ops {
		if op.spec.GetBatch() {
			op.items = items
		}
	}
	return nil
}

// batch is step 11 of a batch: steps 2 to 10 of each item, one after the other,
// and step 11 in lanes. A lane waits for a place among those of all batches, first
// come, first served, and gives it back after a turn: a batch cannot keep a later
// one waiting until it has ended, nor single requests at all.
func (s *Service) batch(ctx context.Context, c *call, r *keyholdv1.BatchRequest) (*keyholdv1.BatchResponse, error) {
	ctx, cancel := leaveTime(ctx)
	defer cancel()
	b := newBatchRun(s, c, r.GetItems())
	b.prepare(ctx)
	b.lanes.Add(1)
	b.lane(ctx)
	b.group.Wait()
	c.items = make([]*batchItem, len(b.items))
	for i := range c.items {
		c.items[i] = b.result(ctx, i)
	}
	return nil, nil //nolint:nilnil // finishBatch makes the answer, once it is recorded
}

// newItem makes the i-th item's call.
func (c *call) newItem(i int, item *keyholdv1.BatchItem) *batchItem {
	it := &batchItem{call: call{op: c.op, caller: c.caller, region: c.region, start: c.start}}
	it.place[0] = audit.Member{Key: "batchItem", Value: strconv.Itoa(i)}
	it.facts = it.place[:1]
	m := item.ProtoReflect()
	fd := m.WhichOneof(m.Descriptor().Oneofs().ByName("request"))
	if fd == nil {
		it.malformed = "must have one of the requests that this version of the service knows"
		return it
	}
	b := c.op.items[fd.Number()]
	it.op, it.result, it.req = b.op, b.result, m.Get(fd).Message().Interface()
	if len(m.GetUnknown()) > 0 {
		it.malformed = "must have one request and nothing else"
	}
	return it
}

// prepareItem runs steps 2 to 10 of an item, and tells whether step 11 is left.
func (s *Service) prepareItem(ctx context.Context, it *batchItem) bool {
	if err := s.prepare(ctx, &it.call); err != nil {
		it.failure = asError(it.op, err)
	}
	// The batch itself is under way until its records are durable.
	if it.entered {
		s.throttle.leave()
	}
	return it.failure == nil
}

// actItem runs step 11 of an item, which may be in vain. The error is that of the
// step.
func (s *Service) actItem(ctx context.Context, it *batchItem) (err error) {
	if err = ctx.Err(); err == nil {
		it.resp, err = s.act(withTiming(ctx, &it.timing), &it.call)
	}
	it.failure = nil
	if err != nil {
		it.failure, it.resp = asError(it.op, err), nil
	}
	return err
}

// finishBatch is steps 12 and 13 of a batch: it records each item and makes the
// answer of those that are recorded.
func (s *Service) finishBatch(ctx context.Context, c *call) *keyholdv1.BatchResponse {
	s.recordItems(context.WithoutCancel(ctx), c)
	out := &keyholdv1.BatchResponse{Results: make([]*keyholdv1.BatchResult, len(c.items))}
	internal, first := 0, error(nil)
	for i, it := range c.items {
		out.Results[i] = it.answer()
		if it.failure != nil && it.failure.cause != nil && (it.failure.Code == CodeInternal || it.failure.Unavailable) {
			internal++
			if first == nil {
				first = fmt.Errorf("%s: %w", it.op.name, it.failure.cause)
			}
		}
		if s.observer != nil {
			var code Code
			if it.failure != nil {
				code = it.failure.Code
			}
			s.observer.Operation(it.op.name, code, s.now().Sub(it.start), it.timing)
		}
	}
	// The door sees no cause of an item's failure, so it is logged here.
	if internal > 0 && !errors.Is(first, context.Canceled) && s.batchFaults.Allow() {
		s.log.WarnContext(ctx, "items of a batch failed", "request_id", c.caller.RequestID, "items", internal, "first", first)
	}
	return out
}

// answer makes an item's result.
func (it *batchItem) answer() *keyholdv1.BatchResult {
	res := new(keyholdv1.BatchResult)
	if it.failure == nil {
		res.ProtoReflect().Set(it.result, protoreflect.ValueOfMessage(it.resp.ProtoReflect()))
		return res
	}
	e := &keyholdv1.BatchError{Exception: string(it.failure.Code), Message: it.failure.Message, Temporary: it.failure.Unavailable, TimedOut: errors.Is(it.failure, context.DeadlineExceeded)}
	for _, v := range it.failure.Violations {
		e.Violations = append(e.Violations, &keyholdv1.BatchFieldViolation{Field: v.Field, Description: v.Description})
	}
	res.Result = &keyholdv1.BatchResult_Error{Error: e}
	return res
}

// recordItems is step 12 for the items of a batch: one record each, one sync for
// all. An item that cannot be recorded is not answered.
func (s *Service) recordItems(ctx context.Context, c *call) {
	buf := takeBuffer(&batchBuffers)
	defer buf.giveBack(&batchBuffers, maxPooledBatchBytes)
	ends := make([]int, len(c.items))
	for i, it := range c.items {
		if err := s.encodeRecord(buf, &it.call, audit.PhaseNone, it.resp, it.failure); err != nil {
			it.unrecorded(err)
		}
		ends[i] = len(buf.event)
	}
	var all, refusals [][]byte
	start := 0
	for i, end := range ends {
		if end > start {
			all = append(all, buf.event[start:end])
			if c.items[i].failure != nil {
				refusals = append(refusals, buf.event[start:end])
			}
		}
		start = end
	}
	if len(all) == 0 {
		return
	}
	class, durability := audit.Normal, s.durability
	if len(refusals) > 0 {
		durability = audit.Synced
	}
	if len(refusals) == len(all) {
		class = audit.Protected
	}
	began := s.now()
	err := s.appendAll(ctx, class, durability, all)
	lost := func(*batchItem) bool { return err != nil }
	// Where there is no room for answers there may be room for refusals: they have
	// a reserve.
	if err != nil && class == audit.Normal && len(refusals) > 0 && s.appendAll(ctx, audit.Protected, audit.Synced, refusals) == nil {
		lost = func(it *batchItem) bool { return it.failure == nil }
	}
	took := s.now().Sub(began)
	for _, it := range c.items {
		it.timing.Audit += took
		if lost(it) {
			it.unrecorded(err)
		}
	}
}

// unrecorded takes an item's answer back.
func (it *batchItem) unrecorded(err error) {
	Wipe(it.resp)
	it.resp = nil
	it.failure = &Error{Code: CodeInternal, Message: internalMessage, Unavailable: true, cause: fmt.Errorf("audit: %w", err)}
}

// appendAll appends the payloads next to each other or, where the journal is
// set up with segments too small for that, in halves.
func (s *Service) appendAll(ctx context.Context, class audit.Class, durability audit.Durability, payloads [][]byte) (err error) {
	defer recovered("a batch", &err)
	_, err = s.journal.Append(ctx, class, durability, payloads...)
	if half := len(payloads) / 2; errors.Is(err, audit.ErrRecordSize) && half > 0 {
		err = s.appendAll(ctx, class, durability, payloads[:half])
		if err == nil {
			err = s.appendAll(ctx, class, durability, payloads[half:])
		}
	}
	return err
}
