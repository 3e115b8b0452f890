package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server"
)

// TestHangupWhileDraining: SIGHUP after SIGTERM, as systemd and closing
// terminals send it, does not cut what is allowed to finish.
func TestHangupWhileDraining(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "dev")
	d := start(t, dir)
	d.stop(t)
	s := startServe(t, writeConfig(t, filepath.Join(dir, "keyholdd.yaml"), func(c *server.Config) { c.ShutdownGrace = time.Minute }), d.env)
	s.untilReady(t, true, "ready")

	conn := s.hold(t)
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the daemon stops", s.logged("stopping"))
	if err := s.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "SIGHUP is taken", s.logged("reloading"))
	conn.Close() // the call ends
	<-s.exited
	if s.err != nil {
		t.Errorf("keyholdd ended with %v\n%s", s.err, s.log)
	}
}

// TestSecondSignalEnds: who cannot wait for the drain says so twice.
func TestSecondSignalEnds(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "dev")
	d := start(t, dir)
	d.stop(t)
	s := startServe(t, writeConfig(t, filepath.Join(dir, "keyholdd.yaml"), func(c *server.Config) { c.ShutdownGrace = time.Hour }), d.env)
	s.untilReady(t, true, "ready")
	s.hold(t)
	if err := s.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the daemon stops", s.logged("stopping"))
	if err := s.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	<-s.exited
	if s.err == nil {
		t.Error("keyholdd ended well, though it was interrupted")
	}
}

// hold opens a call that keeps the daemon draining until the connection is
// closed.
func (d *daemon) hold(t *testing.T) *grpc.ClientConn {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(d.env["KEYHOLD_CERT"], d.env["KEYHOLD_KEY"])
	if err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(d.env["KEYHOLD_CA"])
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	conn, err := grpc.NewClient(d.env["KEYHOLD_ADDR"], grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
		RootCAs: roots, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13,
	})))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	// A call whose request does not come. Streams begin in the order of their
	// ids: when a later one is answered, the server has this one.
	if _, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ClientStreams: true}, keyholdv1.KeyManagementService_ListKeys_FullMethodName); err != nil {
		t.Fatal(err)
	}
	if _, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{}); err != nil {
		t.Fatal(err)
	}
	return conn
}

// logged fails while the log lacks the word.
func (d *daemon) logged(word string) func() error {
	return func() error {
		if !strings.Contains(d.log.String(), word) {
			return errors.New("the log does not say " + word)
		}
		return nil
	}
}
