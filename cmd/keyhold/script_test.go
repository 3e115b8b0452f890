package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/keyhold/keyhold/server/audit"
)

// goRace is the environment's GORACE of each process that tests start. With -race
// a process would sleep for a second before it exits.
const goRace = "atexit_sleep_ms=0"

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"keyhold": main})
}

// TestScripts runs testdata/*.txtar. Each script has a fake server of its own,
// to which its environment leads; $WORK/requests holds a line for each request
// that came in. A program of the test's own process is the server's admin
// listener.
func TestScripts(t *testing.T) {
	p := newPKI(t)
	serverCert, serverKey := p.issue(t, "server", "keyhold.test")
	cert, key := p.issue(t, "client", "client.test")
	strangerCert, strangerKey := newPKI(t).issue(t, "stranger", "stranger.test")
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireUniqueNames:  true,
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			s, err := startFake(p, serverCert, serverKey, filepath.Join(env.WorkDir, "requests"))
			if err != nil {
				return err
			}
			env.Defer(s.stop)
			var cpu atomic.Int64 // of the server, in milliseconds
			admin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/metrics" {
					fmt.Fprintf(w, "# TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total %.2f\n", float64(cpu.Add(10))/1000)
					return
				}
				if _, err := os.Stat(filepath.Join(env.WorkDir, "unready")); err == nil || r.URL.Path != "/readyz" {
					http.Error(w, "token: \x1b[31mno token", http.StatusServiceUnavailable)
				}
			}))
			env.Defer(admin.Close)
			program, err := exec.LookPath("keyhold") // where testscript put it
			if err != nil {
				return err
			}
			env.Setenv("KEYHOLD", program)
			env.Setenv("GORACE", goRace)
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("ADDR", s.addr)
			env.Setenv("KEYHOLD_ADDR", s.addr)
			env.Setenv("KEYHOLD_CA", p.caFile)
			env.Setenv("KEYHOLD_CERT", cert)
			env.Setenv("KEYHOLD_KEY", key)
			env.Setenv("ADMIN", admin.URL)
			env.Setenv("STRANGER_CERT", strangerCert)
			env.Setenv("STRANGER_KEY", strangerKey)
			env.Values["fake"] = s
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"health":  setHealth,
			"journal": makeJournal,
			"fill":    fill,
			"status":  exitStatus,
			"text":    writeText,
		},
	})
}

// setHealth makes the fake's health service say that it is not serving.
func setHealth(ts *testscript.TestScript, _ bool, args []string) {
	s, ok := ts.Value("fake").(*fakeServer)
	if !ok || len(args) != 1 {
		ts.Fatalf("usage: health STATUS")
	}
	s.health.SetServingStatus("", grpc_health_v1.HealthCheckResponse_ServingStatus(grpc_health_v1.HealthCheckResponse_ServingStatus_value[args[0]]))
}

// makeJournal writes an audit log with the records that are given.
func makeJournal(ts *testscript.TestScript, _ bool, args []string) {
	dir := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(dir, 0o700))
	j, err := audit.Open(dir, audit.Options{Create: true, SegmentBytes: 64 << 10})
	ts.Check(err)
	for _, record := range args[1:] {
		_, err := j.Append(context.Background(), 0, audit.Synced, []byte(record))
		ts.Check(err)
	}
	ts.Check(j.Close(context.Background()))
}

// fill writes a file of so many letters x.
func fill(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: fill FILE BYTES")
	}
	n, err := parseCount(args[1])
	ts.Check(err)
	b := make([]byte, n)
	for i := range b {
		b[i] = 'x'
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b, 0o600))
}

// writeText puts text behind a file, which it makes: without a line feed, which
// files of a script end in.
func writeText(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: text FILE TEXT")
	}
	f, err := os.OpenFile(ts.MkAbs(args[0]), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	ts.Check(err)
	_, err = f.WriteString(args[1])
	ts.Check(errors.Join(err, f.Close()))
}

// exitStatus runs a command and checks its exit code.
func exitStatus(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: status CODE COMMAND...")
	}
	got := 0
	var exit *exec.ExitError
	if err := ts.Exec(args[1], args[2:]...); errors.As(err, &exit) {
		got = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if want := args[0]; strconv.Itoa(got) != want {
		ts.Fatalf("exit code %d, want %s", got, want)
	}
}
