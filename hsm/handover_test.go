package hsm

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"testing"

	"github.com/keyhold/keyhold/hsm/pubkey"
)

// TestHandover: what nobody takes is wiped.
func TestHandover(t *testing.T) {
	first, second, third := []byte{1}, []byte{2}, []byte{3}
	var x handover
	x.give(first)
	x.give(second) // a second attempt
	got, err := x.take(nil)
	if err != nil || !bytes.Equal(got, []byte{2}) || first[0] != 0 {
		t.Errorf("take = %x, %v; the first attempt's is %x", got, err, first)
	}
	x = handover{}
	x.give(third)
	if got, err := x.take(context.Canceled); got != nil || !errors.Is(err, context.Canceled) || third[0] != 0 {
		t.Errorf("after an error: take = %x, %v, and %x is left", got, err, third)
	}
	late := []byte{4}
	if x.give(late); late[0] != 0 {
		t.Error("what came after the caller had gone is not wiped")
	}
}

// secretCall is a call whose answer is a secret, and the function of the library that writes it.
type secretCall struct {
	name, in string
	do       func(context.Context) ([]byte, error)
}

// secretCalls returns one of each kind, ready to be made.
func secretCalls(t *testing.T, tok *Token) []secretCall {
	t.Helper()
	gen := func(spec KeySpec, p Purpose, id string) *Key {
		t.Helper()
		_, err := tok.Generate(ctx(t), GenerateRequest{Spec: spec, Purpose: p, ID: []byte(id), Label: id})
		check(t, err)
		return tok.Key(spec, p, []byte(id))
	}
	aead, rsa, ec := gen(AES256, PurposeSeal, "aead"), gen(RSA2048, PurposeDecrypt, "rsa"), gen(P256, PurposeDerive, "ec")
	kek, mac := gen(AES256, PurposeWrap, "kek"), gen(HMAC256, PurposeMAC, "mac")
	iv, sealed, err := seal(ctx(t), aead)
	check(t, err)
	spki, err := rsa.PublicKey(ctx(t))
	check(t, err)
	public, err := pubkey.Parse(spki)
	check(t, err)
	encrypted, err := public.EncryptOAEP(crypto.SHA1, []byte("plaintext"))
	check(t, err)
	peer, err := ec.PublicKey(ctx(t))
	check(t, err)
	wrapped, err := kek.WrapBytes(ctx(t), AESKWP, []byte("16 bytes of plain"[:16]))
	check(t, err)
	return []secretCall{
		{"Open", "C_Decrypt", func(c context.Context) ([]byte, error) { return aead.Open(c, iv, testAAD, sealed) }},
		{"DecryptOAEP", "C_Decrypt", func(c context.Context) ([]byte, error) { return rsa.DecryptOAEP(c, crypto.SHA1, encrypted) }},
		{"ECDH", "C_GetAttributeValue", func(c context.Context) ([]byte, error) { return ec.ECDH(c, peer) }},
		{"UnwrapBytes", "C_GetAttributeValue", func(c context.Context) ([]byte, error) { return kek.UnwrapBytes(c, AESKWP, wrapped) }},
		{"MAC", "C_Sign", func(c context.Context) ([]byte, error) { return mac.MAC(c, []byte("message")) }},
		{"Random", "C_GenerateRandom", func(c context.Context) ([]byte, error) { return tok.Random(c, 32) }},
	}
}

// TestLateSecrets: a secret that the token hands out when its caller has gone, or has left the loan that the call was made under, is wiped. The
// fault library tells where the token writes it.
func TestLateSecrets(t *testing.T) {
	w := newWorld(t, true)
	cfg := quiet(w.token("alpha"))
	cfg.MaxSessions, cfg.MaxCopies = 1, -1 // what makes copies reads attributes too
	tok := w.ready(cfg)
	type answer struct {
		secret []byte
		err    error
	}
	zero := func(b []byte) bool { return bytes.Equal(b, make([]byte, len(b))) }
	for _, c := range secretCalls(t, tok) {
		t.Run(c.name, func(t *testing.T) {
			answers := make(chan answer, 1)
			call := func(c context.Context, do func(context.Context) ([]byte, error)) {
				secret, err := do(c)
				answers <- answer{secret, err}
			}
			// hangs returns where the call that hangs will write.
			hangs := func() []byte {
				t.Helper()
				until(t, "it hangs", func() bool { return w.fault.Hanging(t, c.in) == 1 })
				return w.fault.Output(t, c.in)
			}

			// Its caller waits: what is looked at is what the caller gets.
			w.fault.Hang(t, c.in)
			go call(ctx(t), c.do)
			out := hangs()
			w.fault.Clear(t, c.in)
			got := <-answers
			check(t, got.err)
			if len(got.secret) == 0 || &got.secret[0] != &out[0] || zero(out) {
				t.Fatalf("the caller got %x, the token wrote %x", got.secret, out)
			}

			// Its caller goes.
			going, leave := context.WithCancel(ctx(t))
			w.fault.Hang(t, c.in)
			go call(going, c.do)
			out = hangs()
			leave()
			wantErr(t, "a call whose caller goes", (<-answers).err, context.Canceled)
			w.fault.Clear(t, c.in)
			until(t, "it has returned", func() bool { return tok.Status().InUse == 0 && tok.Status().Stuck == 0 })
			if !zero(out) {
				t.Errorf("when its caller had gone %x was left", out)
			}

			// The loan is left.
			going, leave = context.WithCancel(ctx(t))
			defer leave()
			w.fault.Hang(t, c.in)
			lent := make(chan bool, 1)
			go func() { lent <- tok.Lend(going, func(under context.Context) { call(under, c.do) }) }()
			out = hangs()
			leave()
			if !<-lent {
				t.Fatal("nothing was lent")
			}
			w.fault.Clear(t, c.in)
			wantErr(t, "a call under a loan that was left", (<-answers).err, context.Canceled)
			if !zero(out) {
				t.Errorf("when its loan had been left %x was left", out)
			}
			until(t, "the session is back", func() bool { return tok.Status().InUse == 0 && tok.Status().Stuck == 0 })
		})
	}
}
