package witness

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"time"

	"github.com/keyhold/keyhold/hsm"
	"github.com/keyhold/keyhold/hsm/pubkey"
)

const (
	cleanupTimeout = 30 * time.Second
	// exitGrace is how long a child that was told to end may keep its pipes open.
	exitGrace = 5 * time.Second
	// maxStderrBytes of a child that failed are shown.
	maxStderrBytes = 2 << 10
)

// A Child says how the child process is started.
type Child struct {
	Exe  string   // a program that calls Main when it is given Args
	Args []string // without secrets
	Env  []string // Optional: the parent's. SOFTHSM2_CONF must be as it was when the parent's module was initialised

	Module string        // path of the PKCS#11 library
	PIN    hsm.PINSource // of the token
}

// Run makes keys in the token, lets a child process look at them and make its
// own, looks at those, and destroys them all again. The token must be ready,
// which proves the PIN: the child logs in once, and a wrong PIN would count.
//
// The error tells that nothing could be witnessed; what disagrees is in the
// report.
func Run(ctx context.Context, token *hsm.Token, child Child) (_ Report, err error) {
	began := time.Now()
	if err := token.Ready(); err != nil {
		return Report{}, fmt.Errorf("witness: token is not ready: %w", err)
	}
	w := &run{token: token}
	defer func() { err = errors.Join(err, w.cleanup(context.WithoutCancel(ctx))) }()
	if err := w.prepare(ctx); err != nil {
		return Report{}, fmt.Errorf("witness: %w", err)
	}
	w.request.Module, w.request.Serial = child.Module, token.Status().Serial
	if err := w.ask(ctx, child); err != nil {
		return Report{}, fmt.Errorf("witness: %w", err)
	}
	for i, s := range w.request.Ours {
		w.judgeOurs(ctx, s, w.answer.Ours[i])
	}
	for i, s := range w.request.Theirs {
		w.judgeTheirs(ctx, s, w.answer.Theirs[i])
	}
	w.report.Duration = time.Since(began)
	return w.report, nil
}

type run struct {
	token   *hsm.Token
	request request
	answer  answer
	report  Report
	made    [][]byte // CKA_IDs of all keys that may exist
}

// add notes a check's outcome.
func (w *run) add(name string, err error) {
	c := Check{Name: name}
	if err != nil {
		c.Err = err.Error()
	}
	w.report.Checks = append(w.report.Checks, c)
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // never fails (crypto/rand)
	return b
}

// facts about the kinds of keys, for package hsm.
func (k kind) spec() (hsm.KeySpec, hsm.Purpose, hsm.SignatureAlgorithm) {
	switch k {
	case kindAES:
		return hsm.AES256, hsm.PurposeSeal, 0
	case kindRSA:
		return hsm.RSA2048, hsm.PurposeSign, pubkey.RSAPKCS1SHA256
	}
	return hsm.P256, hsm.PurposeSign, pubkey.ECDSASHA256
}

// prepare makes keyhold's keys and uses them.
func (w *run) prepare(ctx context.Context) error {
	for _, k := range []kind{kindAES, kindRSA, kindP256} {
		spec, purpose, alg := k.spec()
		if err := w.token.Capabilities().CanGenerate(spec, purpose); err != nil {
			w.report.Checks = append(w.report.Checks, Check{Name: string(k) + " keys", Skipped: err.Error()})
			continue
		}
		s := subject{Kind: k, ID: random(16)}
		w.made = append(w.made, s.ID)
		a, err := w.token.Generate(ctx, hsm.GenerateRequest{Spec: spec, Purpose: purpose, ID: s.ID, Label: Label})
		if err != nil {
			return fmt.Errorf("make %s key: %w", k, err)
		}
		key := w.token.Key(spec, purpose, s.ID)
		if k == kindAES {
			s.IV, s.NextIV, s.AAD, s.Plaintext = random(12), random(12), []byte(Label), random(48)
			s.Sealed, err = key.Seal(ctx, s.IV, s.AAD, s.Plaintext)
		} else {
			s.SPKI, s.Digest = a.PublicKey, random(32)
			s.Signature, err = key.Sign(ctx, alg, s.Digest)
		}
		if err != nil {
			return fmt.Errorf("use %s key: %w", k, err)
		}
		w.request.Ours = append(w.request.Ours, s)

		theirs := subject{Kind: k, ID: random(16), AAD: s.AAD, Plaintext: s.Plaintext, NextIV: s.NextIV, Digest: s.Digest}
		w.made = append(w.made, theirs.ID)
		w.request.Theirs = append(w.request.Theirs, theirs)
	}
	if len(w.request.Ours) == 0 {
		return errors.New("the token has no type of key that crypto11 knows")
	}
	return nil
}

// ask runs the child.
func (w *run) ask(ctx context.Context, child Child) error {
	cmd := exec.CommandContext(ctx, child.Exe, child.Args...) //nolint:gosec // the caller's own program
	cmd.Env, cmd.WaitDelay = child.Env, exitGrace
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	stderr := &tail{}
	cmd.Stderr = stderr
	pin, err := child.PIN.Read()
	if err != nil {
		return err
	}
	defer clear(pin)
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", child.Exe, err)
	}
	err = errors.Join(writeJSON(stdin, w.request), writeFrame(stdin, pin), stdin.Close())
	if err == nil {
		err = readJSON(io.LimitReader(stdout, maxMessageBytes+4), &w.answer)
	}
	werr := cmd.Wait()
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case werr != nil:
		return fmt.Errorf("the child ended: %w: %s", werr, stderr)
	case err != nil:
		return fmt.Errorf("talk to the child: %w: %s", err, stderr)
	case w.answer.Err != "":
		return errors.New(w.answer.Err)
	case len(w.answer.Ours) != len(w.request.Ours) || len(w.answer.Theirs) != len(w.request.Theirs):
		return errors.New("the child did not answer every question")
	}
	return nil
}

// tail keeps the beginning of what a child writes to stderr.
type tail struct{ bytes.Buffer }

// Write keeps what there is room for, and takes everything.
func (t *tail) Write(p []byte) (int, error) {
	if room := maxStderrBytes - t.Len(); room > 0 {
		t.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

// String returns it as one line.
func (t *tail) String() string { return strings.Join(strings.Fields(t.Buffer.String()), " ") }

func (w *run) judgeOurs(ctx context.Context, s subject, f finding) {
	spec, purpose, alg := s.Kind.spec()
	of := string(s.Kind) + " key made by keyhold: "
	if f.Err != "" {
		w.add(of+"crypto11 finds and uses it", errors.New(f.Err))
		return
	}
	w.add(of+"crypto11 finds and uses it", nil)
	if s.Kind == kindAES {
		w.add(of+"crypto11 opens what keyhold sealed", wanted(f.Opened, "it opens to something else"))
		w.add(of+"crypto11 refuses other additional data", wanted(f.Refused, "it opens"))
		w.add(of+"keyhold opens what crypto11 sealed", w.opens(ctx, s, f))
		return
	}
	w.add(of+"crypto11 verifies what keyhold signed, and sees the same public key", wanted(f.Opened, "it does not"))
	w.add(of+"crypto11 refuses it over another digest", wanted(f.Refused, "it verifies"))
	w.add(of+"keyhold verifies what crypto11 signed", w.verifies(ctx, w.token.Key(spec, purpose, s.ID), alg, s, f))
}

func (w *run) judgeTheirs(ctx context.Context, s subject, f finding) {
	spec, purpose, alg := s.Kind.spec()
	of := string(s.Kind) + " key made by crypto11: "
	if f.Err != "" {
		w.add(of+"crypto11 makes and uses it", errors.New(f.Err))
		return
	}
	w.add(of+"crypto11 makes and uses it", nil)
	if s.Kind == kindAES {
		w.add(of+"keyhold finds it and opens what crypto11 sealed", w.opens(ctx, s, f))
		return
	}
	key := w.token.Key(spec, purpose, s.ID)
	w.add(of+"keyhold finds it and verifies what crypto11 signed", w.verifies(ctx, key, alg, s, f))
	w.add(of+"keyhold signs with it", func() error {
		signature, err := key.Sign(ctx, alg, s.Digest)
		if err != nil {
			return err
		}
		public, err := pubkey.Parse(f.SPKI)
		if err != nil {
			return err
		}
		return public.Verify(alg, s.Digest, signature)
	}())
}

// opens: keyhold opens what crypto11 sealed, and seals the same to the same.
func (w *run) opens(ctx context.Context, s subject, f finding) error {
	key := w.token.Key(hsm.AES256, hsm.PurposeSeal, s.ID)
	opened, err := key.Open(ctx, s.NextIV, s.AAD, f.Sealed)
	if err != nil {
		return err
	}
	if !bytes.Equal(opened, s.Plaintext) {
		return errors.New("it opens to something else")
	}
	// The same key, IV and plaintext: nothing is given away by doing it twice.
	sealed, err := key.Seal(ctx, s.NextIV, s.AAD, s.Plaintext)
	if err != nil {
		return err
	}
	return wanted(bytes.Equal(sealed, f.Sealed), "keyhold seals the same to something else")
}

// verifies: keyhold sees the public key that crypto11 sees, and verifies what
// crypto11 signed.
func (w *run) verifies(ctx context.Context, key *hsm.Key, alg hsm.SignatureAlgorithm, s subject, f finding) error {
	spki, err := key.PublicKey(ctx)
	if err != nil {
		return err
	}
	if !bytes.Equal(spki, f.SPKI) {
		return errors.New("the public keys differ")
	}
	public, err := pubkey.Parse(spki)
	if err != nil {
		return err
	}
	return public.Verify(alg, s.Digest, f.Signature)
}

func wanted(ok bool, otherwise string) error {
	if ok {
		return nil
	}
	return errors.New(otherwise)
}

// cleanup destroys all keys that were or may have been made.
func (w *run) cleanup(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, cleanupTimeout)
	defer cancel()
	var errs []error
	for _, id := range w.made {
		if err := w.token.Destroy(ctx, id, Label); err != nil && !errors.Is(err, hsm.ErrKeyNotFound) {
			errs = append(errs, fmt.Errorf("a key of the witness stays in the token (CKA_ID %x, label %q): %w", id, Label, err))
		}
	}
	return errors.Join(errs...)
}
