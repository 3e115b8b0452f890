package servertest

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/keyhold/keyhold/hsm/hsmtest/fault"
)

// class is a fault that each kind of operation meets.
type class struct {
	name  string
	fault fault.Fault
	want  []codes.Code
	// odd are the operations of which something else is wanted.
	odd map[string][]codes.Code
}

func classes() []class {
	ckr := func(name string, rv uint) class {
		return class{name: name, fault: fault.Fault{RV: rv}, want: []codes.Code{codes.Unavailable}}
	}
	// What these say of a ciphertext SoftHSM says, too: until the canary has looked
	// the token's trouble is not told from a bad ciphertext (hsm: session.authFail).
	ambiguous := func(c class) class {
		c.odd = map[string][]codes.Code{"decrypt": {codes.Unavailable, codes.InvalidArgument}, "unwrap": {codes.Unavailable, codes.InvalidArgument}}
		return c
	}
	// A handle that is stale, of a call that was given none, is nothing that anybody
	// could name.
	senseless := func(c class) class {
		c.odd = map[string][]codes.Code{}
		for _, op := range []string{"generate key", "generate pair", "random"} {
			c.odd[op] = []codes.Code{codes.Internal}
		}
		return c
	}
	return []class{
		ambiguous(ckr("CKR_GENERAL_ERROR", 0x05)),
		ambiguous(ckr("CKR_FUNCTION_FAILED", 0x06)),
		ckr("CKR_HOST_MEMORY", 0x02),
		ckr("CKR_DEVICE_ERROR", 0x30),
		ckr("CKR_DEVICE_REMOVED", 0x32),
		ckr("CKR_TOKEN_NOT_PRESENT", 0xE0),
		ckr("CKR_SESSION_HANDLE_INVALID", 0xB3),
		ckr("CKR_SESSION_CLOSED", 0xB0),
		ckr("CKR_SESSION_COUNT", 0xB1),
		ckr("CKR_USER_NOT_LOGGED_IN", 0x101),
		senseless(ckr("CKR_KEY_HANDLE_INVALID", 0x60)),
		senseless(ckr("CKR_OBJECT_HANDLE_INVALID", 0x82)),
		ckr("CKR_PIN_INCORRECT", 0xA0),
		ckr("CKR_PIN_LOCKED", 0xA4),
		// The work is done, and the caller is told that it is not.
		{name: "CKR_DEVICE_ERROR-after", fault: fault.Fault{RV: ckrDeviceError, After: true}, want: []codes.Code{codes.Unavailable}},
		{name: "hang", fault: fault.Fault{Hang: true}, want: []codes.Code{codes.DeadlineExceeded, codes.Unavailable}},
		{name: "length-too-long", fault: fault.Fault{Len: fault.Long}, want: []codes.Code{codes.Unavailable, codes.Internal}},
		{name: "length-too-short", fault: fault.Fault{Len: fault.Short}, want: []codes.Code{codes.Unavailable, codes.Internal}},
		{name: "length-zero", fault: fault.Fault{Len: fault.Zero}, want: []codes.Code{codes.Unavailable, codes.Internal}},
	}
}

// meets says which call of an operation the fault is on, "" for none.
func (c class) meets(op operation) string {
	if c.fault.Len == fault.Right {
		return op.call
	}
	switch op.name {
	case "mac":
		return "C_Sign"
	case "derive", "unwrap", "generate key", "generate pair": // what came out is read by it
		return "C_GetAttributeValue"
	case "random":
		return "" // random bytes have no length
	}
	return op.call
}

// row is a fault with a course of its own.
type row struct {
	name string
	// allowed is what clients may be told meanwhile.
	allowed []codes.Code
	run     func(t *testing.T, f *fixture, r row)
}

// TestFaults is the matrix of docs/faults.md: one daemon under load goes through
// it, row by row. Each row breaks something, sees what callers are told, ends the
// fault, waits until all is served again, and checks everything.
func TestFaults(t *testing.T) {
	t.Parallel()
	f := newFixture(t, nil)
	defer f.end(t)
	for _, c := range classes() {
		t.Run(c.name, func(t *testing.T) { f.class(t, c) })
	}
	f.rows(t, slices.Concat(tokenRows(), intruderRows(), storeRows()))
}

// TestLong is TestFaults with faults that last for many seconds, on a daemon of
// its own, so that nobody waits for it.
func TestLong(t *testing.T) {
	t.Parallel()
	f := newFixture(t, nil)
	defer f.end(t)
	f.rows(t, longRows())
}

// rows goes through rows.
func (f *fixture) rows(t *testing.T, rows []row) {
	t.Helper()
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			f.load.Allow(r.allowed...)
			r.run(t, f, r)
			f.over(t)
		})
	}
}

// class lets each kind of operation meet the fault.
func (f *fixture) class(t *testing.T, c class) {
	allowed := []codes.Code{codes.Unavailable, codes.DeadlineExceeded}
	allowed = append(allowed, c.want...)
	for _, odd := range c.odd {
		allowed = append(allowed, odd...)
	}
	f.load.Allow(allowed...)
	for _, op := range operations() {
		call, want := c.meets(op), c.want
		if odd, ok := c.odd[op.name]; ok {
			want = odd
		}
		if call == "" {
			continue
		}
		t.Run(strings.ReplaceAll(op.name, " ", "-"), func(t *testing.T) {
			within := callDeadline
			if c.fault.Hang {
				within = hurry
			}
			f.d.Module.Set(t, call, c.fault)
			f.refused(t, op, within, want...)
			f.d.Module.ClearAll()
			f.serves(t, c.name, op)
		})
	}
	f.over(t)
}
