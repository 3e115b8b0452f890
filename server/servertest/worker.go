package servertest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// ownKeys bounds the keys that one client makes.
//
//nolint:gochecknoglobals // a soak, which lasts longer, changes it before it begins
var ownKeys = 12

// worker is one client of a load. It has a key and an alias of its own, whose
// life it drives on by one change now and then.
type worker struct {
	*Load
	number, n int

	own   *Key
	made  int
	stage int
}

func (w *worker) run() {
	for {
		w.gate.RLock()
		select {
		case <-w.stop:
			w.gate.RUnlock()
			return
		default:
		}
		w.step(context.Background())
		w.gate.RUnlock()
		select {
		case <-w.stop:
			return
		case <-time.After(pace):
		}
	}
}

// step does one thing after the other, each client beginning elsewhere.
func (w *worker) step(ctx context.Context) {
	w.n++
	plain := fmt.Appendf(nil, "%s %d-%d", w.Ledger.Marker, w.number, w.n)
	switch (w.n + 3*w.number) % 12 {
	case 0, 4, 8:
		w.encrypt(ctx, w.Base.AES, plain)
	case 1:
		w.encrypt(ctx, w.Base.Other, plain)
	case 2, 7:
		w.mac(ctx)
	case 3:
		w.sign(ctx, w.Base.P256, keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_ECDSA_SHA_256, plain)
	case 5:
		w.batch(ctx, plain)
	case 6:
		w.dataKey(ctx)
	case 9:
		w.sign(ctx, w.Base.RSA, keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_RSASSA_PKCS1_V1_5_SHA_256, plain)
	case 10:
		w.random(ctx)
	case 11:
		if w.n%24 < 12 {
			w.live(ctx)
		}
	}
}

// encrypt makes a ciphertext and opens it again.
func (w *worker) encrypt(ctx context.Context, k *Key, plain []byte) {
	ec := map[string]string{"client": fmt.Sprint(w.number)}
	var blob []byte
	err := w.call(ctx, "Encrypt", func(ctx context.Context) error {
		resp, err := w.c.Crypto.Encrypt(ctx, &keyholdv1.EncryptRequest{KeyId: k.ID, Plaintext: bytes.Clone(plain), EncryptionContext: ec})
		blob = resp.GetCiphertextBlob()
		return err
	})
	if err != nil {
		return
	}
	w.Ledger.Encrypted(Blob{Key: k.ID, Ciphertext: blob, Plain: plain, Context: ec})
	var got []byte
	err = w.call(ctx, "Decrypt", func(ctx context.Context) error {
		resp, err := w.c.Crypto.Decrypt(ctx, &keyholdv1.DecryptRequest{CiphertextBlob: blob, EncryptionContext: ec})
		got = resp.GetPlaintext()
		return err
	})
	if err == nil && !bytes.Equal(got, plain) {
		w.finding("Decrypt gives %q for %q", got, plain)
	}
}

// mac makes a code of the marker, which is the same each time.
func (w *worker) mac(ctx context.Context) {
	var got []byte
	err := w.call(ctx, "GenerateMac", func(ctx context.Context) error {
		resp, err := w.c.Crypto.GenerateMac(ctx, &keyholdv1.GenerateMacRequest{
			KeyId: w.Base.HMAC.ID, Message: []byte(w.Ledger.Marker), MacAlgorithm: keyholdv1.MacAlgorithmSpec_MAC_ALGORITHM_SPEC_HMAC_SHA_256,
		})
		got = resp.GetMac()
		return err
	})
	if err == nil && !w.Ledger.sameMAC(w.Base.HMAC, got) {
		w.finding("GenerateMac gives %x, which is not what it gave before", got)
	}
}

// sameMAC compares a code with the key's first.
func (l *Ledger) sameMAC(k *Key, mac []byte) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if k.mac == nil && len(mac) == sha256.Size {
		k.mac = mac
	}
	return bytes.Equal(k.mac, mac)
}

// sign makes a signature and verifies it here.
func (w *worker) sign(ctx context.Context, k *Key, alg keyholdv1.SigningAlgorithmSpec, message []byte) {
	var sig []byte
	err := w.call(ctx, "Sign", func(ctx context.Context) error {
		resp, err := w.c.Crypto.Sign(ctx, &keyholdv1.SignRequest{KeyId: k.ID, Message: bytes.Clone(message), SigningAlgorithm: alg})
		sig = resp.GetSignature()
		return err
	})
	if err == nil && !w.Ledger.verifies(k, message, sig) {
		w.finding("Sign with %s gives a signature that does not verify", k.Spec)
	}
}

// verifies checks a signature with SHA-256 by the pinned public key.
func (l *Ledger) verifies(k *Key, message, sig []byte) bool {
	l.mu.Lock()
	public := k.public
	l.mu.Unlock()
	digest := sha256.Sum256(message)
	switch p := public.(type) {
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(p, digest[:], sig)
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(p, crypto.SHA256, digest[:], sig) == nil
	}
	return false
}

// batch sends items of several kinds at once.
func (w *worker) batch(ctx context.Context, plain []byte) {
	req := &keyholdv1.BatchRequest{}
	for range 6 {
		req.Items = append(req.Items, &keyholdv1.BatchItem{Request: &keyholdv1.BatchItem_Encrypt{Encrypt: &keyholdv1.EncryptRequest{KeyId: w.Base.AES.ID, Plaintext: bytes.Clone(plain)}}})
	}
	req.Items = append(req.Items, &keyholdv1.BatchItem{Request: &keyholdv1.BatchItem_Sign{Sign: &keyholdv1.SignRequest{
		KeyId: w.Base.P256.ID, Message: bytes.Clone(plain), SigningAlgorithm: keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_ECDSA_SHA_256,
	}}})
	var resp *keyholdv1.BatchResponse
	err := w.call(ctx, "Batch", func(ctx context.Context) (err error) {
		resp, err = w.c.Crypto.Batch(ctx, req)
		return err
	})
	if err != nil {
		return
	}
	if len(resp.GetResults()) != len(req.GetItems()) {
		w.finding("Batch of %d items has %d results", len(req.GetItems()), len(resp.GetResults()))
	}
	for _, r := range resp.GetResults() {
		switch {
		case r.GetError() != nil:
			e := r.GetError()
			_ = w.call(ctx, "(item of a batch)", func(context.Context) error {
				return status.Error(codes.Code(e.GetGrpcStatus()), e.GetException()+": "+e.GetMessage())
			})
		case r.GetEncrypt() != nil:
			w.Ledger.Encrypted(Blob{Key: w.Base.AES.ID, Ciphertext: r.GetEncrypt().GetCiphertextBlob(), Plain: plain})
		case r.GetSign() != nil:
			if !w.Ledger.verifies(w.Base.P256, plain, r.GetSign().GetSignature()) {
				w.finding("Batch gives a signature that does not verify")
			}
		default:
			w.finding("Batch gives a result of nothing")
		}
	}
}

// dataKey makes a data key: the token's random bytes, and a ciphertext of them.
func (w *worker) dataKey(ctx context.Context) {
	var resp *keyholdv1.GenerateDataKeyResponse
	err := w.call(ctx, "GenerateDataKey", func(ctx context.Context) (err error) {
		resp, err = w.c.Crypto.GenerateDataKey(ctx, &keyholdv1.GenerateDataKeyRequest{KeyId: w.Base.AES.ID, KeySpec: keyholdv1.DataKeySpec_DATA_KEY_SPEC_AES_256})
		return err
	})
	if err != nil {
		return
	}
	if len(resp.GetPlaintext()) != 32 || bytes.Count(resp.GetPlaintext(), []byte{0}) > 16 {
		w.finding("GenerateDataKey gives a key of %d bytes, or of zeros", len(resp.GetPlaintext()))
	}
	w.Ledger.Encrypted(Blob{Key: w.Base.AES.ID, Ciphertext: resp.GetCiphertextBlob(), Plain: resp.GetPlaintext()})
}

func (w *worker) random(ctx context.Context) {
	n := int32(32)
	var got []byte
	err := w.call(ctx, "GenerateRandom", func(ctx context.Context) error {
		resp, err := w.c.Crypto.GenerateRandom(ctx, &keyholdv1.GenerateRandomRequest{NumberOfBytes: &n})
		got = resp.GetPlaintext()
		return err
	})
	if err == nil && (len(got) != int(n) || bytes.Count(got, []byte{0}) > int(n)/2) {
		w.finding("GenerateRandom gives %d bytes, or zeros", len(got))
	}
}

// live drives the life of the client's own key on by one change.
func (w *worker) live(ctx context.Context) {
	alias := fmt.Sprintf("alias/load-%d", w.number)
	if w.own == nil {
		if w.made >= ownKeys {
			return
		}
		_ = w.call(ctx, "CreateKey", func(ctx context.Context) (err error) {
			w.own, err = w.CreateKey(ctx, &keyholdv1.CreateKeyRequest{})
			return err
		})
		if w.own != nil {
			w.made, w.stage = w.made+1, 0
		}
		return
	}
	w.stage++
	switch w.stage {
	case 1:
		w.encrypt(ctx, w.own, []byte(w.Ledger.Marker))
	case 2:
		w.alias(ctx, "CreateAlias", alias, w.own.ID, func(ctx context.Context) error {
			_, err := w.c.Keys.CreateAlias(ctx, &keyholdv1.CreateAliasRequest{AliasName: alias, TargetKeyId: w.own.ID})
			return err
		})
	case 3:
		w.change(ctx, "DisableKey", keyholdv1.KeyState_KEY_STATE_DISABLED, func(ctx context.Context) error {
			_, err := w.c.Keys.DisableKey(ctx, &keyholdv1.DisableKeyRequest{KeyId: w.own.ID})
			return err
		})
	case 4:
		w.alias(ctx, "UpdateAlias", alias, w.Base.Other.ID, func(ctx context.Context) error {
			_, err := w.c.Keys.UpdateAlias(ctx, &keyholdv1.UpdateAliasRequest{AliasName: alias, TargetKeyId: w.Base.Other.ID})
			return err
		})
	case 5:
		if w.number%2 == 0 {
			w.change(ctx, "EnableKey", keyholdv1.KeyState_KEY_STATE_ENABLED, func(ctx context.Context) error {
				_, err := w.c.Keys.EnableKey(ctx, &keyholdv1.EnableKeyRequest{KeyId: w.own.ID})
				return err
			})
		}
	case 6:
		w.alias(ctx, "DeleteAlias", alias, "", func(ctx context.Context) error {
			_, err := w.c.Keys.DeleteAlias(ctx, &keyholdv1.DeleteAliasRequest{AliasName: alias})
			return err
		})
	case 7:
		w.change(ctx, "ScheduleKeyDeletion", keyholdv1.KeyState_KEY_STATE_PENDING_DELETION, func(ctx context.Context) error {
			_, err := w.c.Keys.ScheduleKeyDeletion(ctx, &keyholdv1.ScheduleKeyDeletionRequest{KeyId: w.own.ID})
			return err
		})
		w.own = nil
	}
}

// change changes the state of the client's own key.
func (w *worker) change(ctx context.Context, name string, to keyholdv1.KeyState, fn func(context.Context) error) {
	k := w.own
	w.Ledger.Changing(k, to)
	if w.call(ctx, name, fn) == nil {
		w.Ledger.Changed(k, to)
	}
}

// alias changes the client's alias. Where an earlier change of it came to
// nothing, or may have, so may this one: that the alias is not there, or there
// already, is an answer then and no fault.
func (w *worker) alias(ctx context.Context, name, alias, target string, fn func(context.Context) error) {
	before, known := w.Ledger.Aliases()[alias]
	if !known {
		before = []string{""}
	}
	absent := slices.Contains(before, "")
	present := slices.ContainsFunc(before, func(target string) bool { return target != "" })
	w.Ledger.AliasChanging(alias, target)
	_ = w.call(ctx, name, func(ctx context.Context) error {
		err := fn(ctx)
		switch code := status.Code(err); {
		case err == nil:
			w.Ledger.AliasChanged(alias, target)
		case code == codes.NotFound && absent, code == codes.AlreadyExists && present:
			return nil // where it points the checker finds out
		}
		return err
	})
}
