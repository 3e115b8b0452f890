package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keyhold/keyhold/hsm/hsmtest/fault"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server"
)

// TestTokenMisbehaves puts a library between the daemon and SoftHSM that
// hangs and fails on request. Callers get their answer by their deadline,
// readiness turns red, and all heals by itself.
func TestTokenMisbehaves(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "dev")
	d := start(t, dir)
	module := fault.New(t, d.env["KEYHOLD_TOKEN_MODULE"])
	d.stop(t)
	config := writeConfig(t, filepath.Join(dir, "keyholdd.yaml"), func(c *server.Config) { c.Tokens[0].Module = module.Path })
	s := startServe(t, config, d.env)
	s.untilReady(t, true, "ready")
	c := s.dial(t)
	resp, err := c.Keys.CreateKey(t.Context(), &keyholdv1.CreateKeyRequest{})
	if err != nil {
		t.Fatal(err)
	}
	encrypt := func(within time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), within)
		defer cancel()
		_, err := c.Crypto.Encrypt(ctx, &keyholdv1.EncryptRequest{KeyId: resp.GetKeyMetadata().GetKeyId(), Plaintext: []byte("x")})
		return err
	}

	t.Run("hangs", func(t *testing.T) {
		module.Hang(t, "C_Encrypt")
		const deadline = 500 * time.Millisecond
		var wg sync.WaitGroup
		began := time.Now()
		for range 8 {
			wg.Go(func() {
				if code := status.Code(encrypt(deadline)); code != codes.DeadlineExceeded && code != codes.Unavailable {
					t.Errorf("encrypt in a hanging library: %s", code)
				}
			})
		}
		wg.Wait()
		if took := time.Since(began); took > 20*deadline {
			t.Errorf("callers with %s waited %s", deadline, took)
		}
		red := s.untilReady(t, false, "token")
		// The rest of the service lives.
		if _, err := c.Keys.ListKeys(t.Context(), &keyholdv1.ListKeysRequest{}); err != nil {
			t.Errorf("list while the token hangs: %v", err)
		}
		module.Clear(t, "C_Encrypt")
		green := s.untilReady(t, true, "ready")
		eventually(t, "encrypt works again", func() error { return encrypt(5 * time.Second) })
		t.Logf("red after %s, green %s after the hang's end", red.Round(time.Millisecond), green.Round(time.Millisecond))
	})
	for _, code := range []struct {
		name string
		rv   uint
	}{
		{"CKR_DEVICE_ERROR", 0x30},
		{"CKR_DEVICE_REMOVED", 0x32},
		{"CKR_SESSION_HANDLE_INVALID", 0xB3},
		{"CKR_USER_NOT_LOGGED_IN", 0x101},
		{"CKR_HOST_MEMORY", 0x02},
		{"CKR_FUNCTION_FAILED", 0x06},
	} {
		t.Run(code.name, func(t *testing.T) {
			module.Fail(t, "C_EncryptInit", code.rv, 0)
			if err := encrypt(5 * time.Second); err == nil {
				t.Error("encrypt succeeds in a failing library")
			}
			s.untilReady(t, false, "token")
			module.Clear(t, "C_EncryptInit")
			green := s.untilReady(t, true, "ready")
			eventually(t, "encrypt works again", func() error { return encrypt(5 * time.Second) })
			t.Logf("green %s after the fault's end", green.Round(time.Millisecond))
		})
	}
	s.stop(t)
	if v := module.Violations(); len(v) > 0 {
		t.Errorf("the library was misused: %s", strings.Join(v, "; "))
	}
	if strings.Contains(s.log.String(), "panic") {
		t.Error(fmt.Errorf("a panic:\n%s", s.log))
	}
}
