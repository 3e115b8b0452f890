package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server"
	"github.com/keyhold/keyhold/server/servertest"
)

// ready asks /readyz.
func (d *daemon) ready(t *testing.T) (bool, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, d.env["KEYHOLD_ADMIN_URL"]+"/readyz", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode == http.StatusOK, string(b)
}

// eventually waits until f returns nil.
func eventually(t *testing.T, what string, f func() error) time.Duration {
	t.Helper()
	began := time.Now()
	poll := time.NewTicker(50 * time.Millisecond)
	defer poll.Stop()
	for {
		err := f()
		if err == nil {
			return time.Since(began)
		}
		if time.Since(began) > startTimeout {
			t.Fatalf("%s: %v", what, err)
		}
		<-poll.C
	}
}

func (d *daemon) untilReady(t *testing.T, want bool, says string) time.Duration {
	t.Helper()
	return eventually(t, fmt.Sprintf("ready=%t", want), func() error {
		if ok, text := d.ready(t); ok != want || !strings.Contains(text, says) {
			return fmt.Errorf("/readyz says %q, want %q in it", text, says)
		}
		return nil
	})
}

// tokenFolders are the folders of the tokens of a dev installation.
func tokenFolders(t *testing.T, dir string) []string {
	t.Helper()
	folders, err := filepath.Glob(filepath.Join(dir, "softhsm", "tokens", "*-*-*"))
	if err != nil || len(folders) == 0 {
		t.Fatalf("no token in %s: %v", dir, err)
	}
	return folders
}

// TestTokenGoesAndComesBack moves the token's folder away: operations fail
// fast, readiness turns red, and everything heals by itself.
func TestTokenGoesAndComesBack(t *testing.T) {
	t.Parallel()
	d := start(t, filepath.Join(t.TempDir(), "dev"))
	c := d.dial(t)
	resp, err := c.Keys.CreateKey(t.Context(), &keyholdv1.CreateKeyRequest{})
	if err != nil {
		t.Fatal(err)
	}
	encrypt := func() error {
		_, err := c.Crypto.Encrypt(t.Context(), &keyholdv1.EncryptRequest{KeyId: resp.GetKeyMetadata().GetKeyId(), Plaintext: []byte("x")})
		return err
	}
	if err := encrypt(); err != nil {
		t.Fatal(err)
	}
	folder := tokenFolders(t, d.dir)[0]
	away := filepath.Join(d.dir, "away")
	if err := os.Rename(folder, away); err != nil {
		t.Fatal(err)
	}
	red := d.untilReady(t, false, "not found in module")
	began := time.Now()
	if err := encrypt(); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "not available") {
		t.Errorf("encrypt without a token: %v", err)
	}
	if _, err := c.Keys.CreateKey(t.Context(), &keyholdv1.CreateKeyRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("create without a token: %v", err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("failing took %s", took)
	}
	if _, err := c.Keys.DescribeKey(t.Context(), &keyholdv1.DescribeKeyRequest{KeyId: resp.GetKeyMetadata().GetKeyId()}); err != nil {
		t.Errorf("describe without a token: %v", err)
	}
	if err := os.Rename(away, folder); err != nil {
		t.Fatal(err)
	}
	green := d.untilReady(t, true, "ready")
	if err := encrypt(); err != nil {
		t.Errorf("encrypt after the token came back: %v", err)
	}
	t.Logf("red after %s, green %s after the token's return", red.Round(time.Millisecond), green.Round(time.Millisecond))
	d.stop(t)
	verifyAudit(t, d.dir)
}

// TestOneTokenOfTwoFails: the other one of the same library serves on.
func TestOneTokenOfTwoFails(t *testing.T) {
	t.Parallel()
	d := start(t, filepath.Join(t.TempDir(), "dev"), "--region", "us-east-1", "--region", "us-west-2")
	c := d.dial(t)
	regions := map[string]context.Context{}
	keys := map[string]string{}
	for _, region := range []string{"us-east-1", "us-west-2"} {
		regions[region] = metadata.AppendToOutgoingContext(t.Context(), "keyhold-region", region)
		resp, err := c.Keys.CreateKey(regions[region], &keyholdv1.CreateKeyRequest{})
		if err != nil {
			t.Fatal(err)
		}
		keys[region] = resp.GetKeyMetadata().GetKeyId()
	}
	encrypt := func(region string) error {
		_, err := c.Crypto.Encrypt(regions[region], &keyholdv1.EncryptRequest{KeyId: keys[region], Plaintext: []byte("x")})
		return err
	}
	// Which folder is whose: the one after whose removal the west fails.
	folders := tokenFolders(t, d.dir)
	away := filepath.Join(d.dir, "away")
	if err := os.Rename(folders[0], away); err != nil {
		t.Fatal(err)
	}
	var failed, healthy string
	eventually(t, "one token fails", func() error {
		for _, region := range []string{"us-east-1", "us-west-2"} {
			if encrypt(region) != nil {
				failed = region
			} else {
				healthy = region
			}
		}
		if failed == "" {
			return errors.New("both work")
		}
		return nil
	})
	if healthy == "" {
		t.Fatal("both fail")
	}
	// Through several attempts to heal the failed one.
	refused := 0
	for end := time.Now().Add(4 * time.Second); time.Now().Before(end); {
		if err := encrypt(healthy); err != nil {
			refused++
			t.Errorf("the healthy token in %s: %v", healthy, err)
			break
		}
	}
	if err := encrypt(failed); err == nil {
		t.Errorf("the token of %s is away and works", failed)
	}
	if err := os.Rename(away, folders[0]); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(d.log)
		}
	})
	took := eventually(t, "the failed token heals", func() error { return encrypt(failed) })
	if err := encrypt(healthy); err != nil {
		t.Errorf("the healthy token after the heal: %v", err)
	}
	t.Logf("healed %s after the token's return, %d refusals by the healthy one", took.Round(time.Millisecond), refused)
	d.stop(t)
}

// TestWrongPIN: the daemon stays up, is not ready, says why, tries once, and
// goes on when the PIN is right again and it is told to look.
func TestWrongPIN(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "dev")
	d := start(t, dir)
	pinFile := d.env["KEYHOLD_TOKEN_PIN_FILE"]
	d.stop(t)
	right, err := os.ReadFile(pinFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(pinFile, []byte("123456"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := startServe(t, writeConfig(t, filepath.Join(dir, "keyholdd.yaml"), nil), d.env)
	s.untilReady(t, false, "not tried again")
	if _, err := s.dial(t).Keys.CreateKey(t.Context(), &keyholdv1.CreateKeyRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("create with a wrong PIN: %v", err)
	}
	if strings.Contains(s.log.String(), "123456") {
		t.Error("the log shows a PIN")
	}
	if err := os.WriteFile(pinFile, right, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	s.untilReady(t, true, "ready")
	s.stop(t)
}

// writeConfig writes a configuration with free ports, changed as told.
func writeConfig(t *testing.T, from string, change func(*server.Config)) string {
	t.Helper()
	cfg, err := server.LoadConfig(from)
	if err != nil {
		t.Fatal(err)
	}
	ports := freePorts(t, 2)
	cfg.GRPC.Listen, cfg.Admin.Listen = ports[0], ports[1]
	if change != nil {
		change(cfg)
	}
	b, err := yaml.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "keyholdd.yaml")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(binaries.keyholdd, "serve", "--check", "--config", path).CombinedOutput(); err != nil {
		t.Fatalf("serve --check: %v\n%s", err, out)
	}
	return path
}

// startServe runs `keyholdd serve` on a configuration until it answers; env is
// that of the clients.
func startServe(t *testing.T, config string, env map[string]string) *daemon {
	t.Helper()
	cfg, err := server.LoadConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{dir: filepath.Dir(config), log: &logBuffer{}, exited: make(chan struct{}), env: maps.Clone(env)}
	d.env["KEYHOLD_ADDR"], d.env["KEYHOLD_ADMIN_URL"] = cfg.GRPC.Listen, "http://"+cfg.Admin.Listen
	d.run(t, "serve", "--config", config)
	eventually(t, "serve answers", func() error {
		select {
		case <-d.exited:
			t.Fatalf("keyholdd serve ended: %v\n%s", d.err, d.log)
		default:
		}
		resp, err := http.Get(d.env["KEYHOLD_ADMIN_URL"] + "/healthz")
		if err != nil {
			return err
		}
		return resp.Body.Close()
	})
	return d
}

// freePorts returns addresses that were free a moment ago.
func freePorts(t *testing.T, n int) []string {
	t.Helper()
	var out []string
	var held []net.Listener // until all are chosen, so that none is chosen twice
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, l)
		out = append(out, l.Addr().String())
	}
	for _, l := range held {
		l.Close()
	}
	return out
}

// TestAuditDiskFull: without room for audit records nothing is answered, a
// key can still be disabled, and all heals when there is room again.
func TestAuditDiskFull(t *testing.T) {
	t.Parallel()
	disk := servertest.SmallDisk(t, "1m")
	dir := filepath.Join(t.TempDir(), "dev")
	d := start(t, dir)
	d.stop(t)
	path := writeConfig(t, filepath.Join(dir, "keyholdd.yaml"), func(c *server.Config) {
		c.Audit.Dir, c.Audit.SegmentBytes = filepath.Join(disk, "audit"), 256<<10
	})
	if out, err := exec.Command(binaries.keyholdd, "init", "--config", path).CombinedOutput(); err != nil {
		t.Fatalf("init: %v\n%s", err, out)
	}
	s := startServe(t, path, d.env)
	s.untilReady(t, true, "ready")
	c := s.dial(t)
	resp, err := c.Keys.CreateKey(t.Context(), &keyholdv1.CreateKeyRequest{})
	if err != nil {
		t.Fatal(err)
	}
	id := resp.GetKeyMetadata().GetKeyId()
	filler := filepath.Join(disk, "filler")
	f, err := os.Create(filler)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(f, rand.Reader); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("filling the disk: %v", err)
	}
	f.Close()
	encrypt := func() error {
		_, err := c.Crypto.Encrypt(t.Context(), &keyholdv1.EncryptRequest{KeyId: id, Plaintext: []byte("x")})
		return err
	}
	answered := 0
	for encrypt() == nil {
		if answered++; answered > 10_000 {
			t.Fatal("the disk is full, and operations are answered without end")
		}
	}
	if err := encrypt(); status.Code(err) != codes.Unavailable {
		t.Errorf("encrypt without audit: %v", err)
	}
	s.untilReady(t, false, "audit")
	if _, err := c.Keys.DisableKey(t.Context(), &keyholdv1.DisableKeyRequest{KeyId: id}); err != nil {
		t.Errorf("a key cannot be disabled while the disk is full: %v", err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	took := s.untilReady(t, true, "ready")
	if _, err := c.Keys.EnableKey(t.Context(), &keyholdv1.EnableKeyRequest{KeyId: id}); err != nil {
		t.Errorf("enable after the disk has room: %v", err)
	}
	if err := encrypt(); err != nil {
		t.Errorf("encrypt after the disk has room: %v", err)
	}
	t.Logf("%d answered on the preallocated rest, ready %s after there was room", answered, took.Round(time.Millisecond))
	s.stop(t)
	if out, err := exec.Command(binaries.keyhold, "audit", "verify", filepath.Join(disk, "audit")).CombinedOutput(); err != nil {
		t.Errorf("audit verify: %v\n%s", err, out)
	}
}

// TestHostileClients: 64 clients that send garbage, say nothing, or vanish do
// not keep the 65th from working, and leave nothing behind.
func TestHostileClients(t *testing.T) {
	t.Parallel()
	d := start(t, filepath.Join(t.TempDir(), "dev"))
	c := d.dial(t)
	resp, err := c.Keys.CreateKey(t.Context(), &keyholdv1.CreateKeyRequest{})
	if err != nil {
		t.Fatal(err)
	}
	id := resp.GetKeyMetadata().GetKeyId()
	pair, err := tls.LoadX509KeyPair(d.env["KEYHOLD_CERT"], d.env["KEYHOLD_KEY"])
	if err != nil {
		t.Fatal(err)
	}
	var conns []net.Conn
	for i := range 64 {
		var conn net.Conn
		if i%4 == 3 {
			// A known client that sends what is no HTTP/2.
			conn, err = tls.Dial("tcp", d.env["KEYHOLD_ADDR"], &tls.Config{Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true, NextProtos: []string{"h2"}})
		} else {
			conn, err = net.Dial("tcp", d.env["KEYHOLD_ADDR"])
		}
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
		switch i % 4 {
		case 0: // says nothing
		case 1, 3:
			junk := make([]byte, 4096)
			if _, err := rand.Read(junk); err != nil {
				t.Fatal(err)
			}
			_, _ = conn.Write(junk) // the server may have hung up already
		case 2:
			conn.Close()
		}
	}
	for range 100 {
		if _, err := c.Crypto.Encrypt(t.Context(), &keyholdv1.EncryptRequest{KeyId: id, Plaintext: []byte("x")}); err != nil {
			t.Fatalf("encrypt beside hostile clients: %v", err)
		}
		// Requests that are given up at once.
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, _ = c.Crypto.Encrypt(ctx, &keyholdv1.EncryptRequest{KeyId: id, Plaintext: []byte("x")})
	}
	for _, conn := range conns {
		conn.Close()
	}
	if ok, text := d.ready(t); !ok {
		t.Errorf("not ready after hostile clients: %s", text)
	}
	d.stop(t)
	if strings.Contains(d.log.String(), "panic") {
		t.Errorf("a panic:\n%s", d.log)
	}
	verifyAudit(t, d.dir)
}
