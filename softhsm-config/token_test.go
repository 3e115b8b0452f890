package softhsmconfig_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyhold/keyhold/hsm"
	softhsmconfig "github.com/keyhold/keyhold/softhsm-config"
)

// module finds SoftHSM; without it the test is skipped on a laptop and fails in
// CI.
func module(t *testing.T) string {
	t.Helper()
	path, err := softhsmconfig.Locate()
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	return path
}

func initToken(t *testing.T, dir, label string) softhsmconfig.Token {
	t.Helper()
	token, err := softhsmconfig.Init(t.Context(), softhsmconfig.Options{Dir: dir, Label: label, Module: module(t)})
	if err != nil {
		t.Fatalf("Init: %v", err)
	}
	return token
}

// login opens the token with the PIN file, which proves both.
func login(t *testing.T, token softhsmconfig.Token) {
	t.Helper()
	t.Setenv(softhsmconfig.EnvConf, token.Conf)
	opened, err := hsm.Open(hsm.Config{Module: token.Module, TokenLabel: token.Label, PIN: hsm.PINFile(token.PINFile)}, hsm.Options{})
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	defer func() {
		if err := opened.Close(t.Context()); err != nil {
			t.Errorf("Close: %v", err)
		}
	}()
	if _, err := opened.EnsureCanary(t.Context()); err != nil {
		// The token may still be connecting.
		if !errors.Is(err, hsm.ErrUnavailable) {
			t.Fatalf("EnsureCanary: %v", err)
		}
	}
	if err := opened.WaitReady(t.Context()); err != nil {
		t.Fatalf("WaitReady: %v", err)
	}
}

func TestInit(t *testing.T) {
	user := filepath.Join(t.TempDir(), "users-own.conf")
	t.Setenv(softhsmconfig.EnvConf, user)
	dir := filepath.Join(t.TempDir(), "new", "dir")
	token := initToken(t, dir, "keyhold")
	if !token.Created {
		t.Error("Created is false")
	}
	if got := os.Getenv(softhsmconfig.EnvConf); got != user {
		t.Errorf("SOFTHSM2_CONF is %q afterwards, want %q", got, user)
	}
	if _, err := os.Stat(user); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the user's own configuration was touched: %v", err)
	}
	pins := map[string][]byte{}
	for _, path := range []string{token.PINFile, token.SOPINFile} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != 0o600 {
			t.Errorf("%s has mode %v, want 0600", path, info.Mode())
		}
		pin, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if len(pin) != 32 {
			t.Errorf("PIN of %d characters, want 32", len(pin))
		}
		pins[path] = pin
	}
	if bytes.Equal(pins[token.PINFile], pins[token.SOPINFile]) {
		t.Error("both PINs are the same")
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if got, want := strings.Join(names, " "), "keyhold.pin keyhold.so-pin softhsm2.conf tokens"; got != want {
		t.Errorf("directory holds %q, want %q", got, want)
	}
	login(t, token)

	again := initToken(t, dir, "keyhold")
	if again.Created {
		t.Error("the second Init made a token")
	}
	pin, err := os.ReadFile(token.PINFile)
	if err != nil || !bytes.Equal(pin, pins[token.PINFile]) {
		t.Errorf("the second Init changed the PIN (%v)", err)
	}
	if n := countTokens(t, token); n != 1 {
		t.Errorf("%d token folders, want 1", n)
	}
}

func countTokens(t *testing.T, token softhsmconfig.Token) int {
	t.Helper()
	entries, err := os.ReadDir(token.TokenDir)
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestInitSeveralTokens(t *testing.T) {
	dir := t.TempDir()
	one, two := initToken(t, dir, "us-east-1"), initToken(t, dir, "eu-west-1")
	if n := countTokens(t, one); n != 2 {
		t.Errorf("%d token folders, want 2", n)
	}
	login(t, one)
	login(t, two)
}

// A crash is simulated by what it leaves behind, at each step of the way.
func TestInitAfterCrash(t *testing.T) {
	// ready makes the state between the commit and the end of finish, from a
	// whole token, moving back what had not been moved yet.
	ready := func(t *testing.T, token softhsmconfig.Token, pin, soPIN, folder bool) {
		dir := filepath.Join(filepath.Dir(token.PINFile), token.Label+".ready")
		if err := os.MkdirAll(filepath.Join(dir, "tokens"), 0o700); err != nil {
			t.Fatal(err)
		}
		entries, err := os.ReadDir(token.TokenDir)
		if err != nil {
			t.Fatal(err)
		}
		name := entries[0].Name()
		for _, move := range []struct {
			back     bool
			from, to string
		}{
			{pin, token.PINFile, filepath.Join(dir, "pin")},
			{soPIN, token.SOPINFile, filepath.Join(dir, "so-pin")},
			{folder, filepath.Join(token.TokenDir, name), filepath.Join(dir, "tokens", name)},
		} {
			if move.back {
				if err := os.Rename(move.from, move.to); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for name, tc := range map[string]struct{ pin, soPIN, folder bool }{
		"before the first move": {true, true, true},
		"after the token":       {true, true, false},
		"after the SO PIN":      {true, false, false},
		"after the user PIN":    {false, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			token := initToken(t, dir, "keyhold")
			ready(t, token, tc.pin, tc.soPIN, tc.folder)
			token = initToken(t, dir, "keyhold")
			if n := countTokens(t, token); n != 1 {
				t.Errorf("%d token folders, want 1", n)
			}
			if _, err := os.Stat(filepath.Join(dir, "keyhold.ready")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the staging folder is still there: %v", err)
			}
			login(t, token)
		})
	}
	t.Run("while staging", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.MkdirAll(filepath.Join(dir, "tokens.new", "tokens", "half-a-token"), 0o700); err != nil {
			t.Fatal(err)
		}
		token := initToken(t, dir, "keyhold")
		if n := countTokens(t, token); n != 1 {
			t.Errorf("%d token folders, want 1", n)
		}
		login(t, token)
	})
}

func TestInitRefuses(t *testing.T) {
	t.Run("a second token beside one without PIN file", func(t *testing.T) {
		dir := t.TempDir()
		token := initToken(t, dir, "keyhold")
		if err := os.Remove(token.PINFile); err != nil {
			t.Fatal(err)
		}
		_, err := softhsmconfig.Init(t.Context(), softhsmconfig.Options{Dir: dir, Label: "keyhold", Module: token.Module})
		if err == nil || !strings.Contains(err.Error(), "restore") {
			t.Errorf("Init = %v, want an error that names the remedy", err)
		}
		if n := countTokens(t, token); n != 1 {
			t.Errorf("%d token folders, want 1", n)
		}
	})
	t.Run("a bad label", func(t *testing.T) {
		if _, err := softhsmconfig.Init(t.Context(), softhsmconfig.Options{Dir: t.TempDir(), Label: "../x"}); err == nil {
			t.Error("accepted")
		}
	})
	t.Run("a module that is none", func(t *testing.T) {
		dir := t.TempDir()
		bad := filepath.Join(dir, "lib.so")
		if err := os.WriteFile(bad, []byte("no library"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := softhsmconfig.Init(t.Context(), softhsmconfig.Options{Dir: dir, Label: "keyhold", Module: bad}); err == nil {
			t.Error("accepted")
		}
		for _, left := range []string{"keyhold.pin", "keyhold.ready", "tokens.new"} {
			if _, err := os.Stat(filepath.Join(dir, left)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s was left behind (%v)", left, err)
			}
		}
	})
}
