package audit

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// crashDirEnv makes the test binary the victim of TestKill.
const crashDirEnv = "AUDIT_TEST_CRASH_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDirEnv); dir != "" {
		appendForEver(dir)
	}
	os.Exit(m.Run())
}

// appendForEver prints the number and payload of each acknowledged record.
func appendForEver(dir string) {
	j, err := Open(dir, small())
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := 0; ; i++ {
				p := fmt.Sprintf("%d-%d-%d-%s", os.Getpid(), w, i, strings.Repeat("x", i%700))
				seq, err := j.Append(context.Background(), Normal, Durability(1+i%2), []byte(p))
				if err != nil {
					fmt.Println("error", err)
					os.Exit(1)
				}
				mu.Lock()
				fmt.Println(seq, p)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
}

// kill -9 at any moment loses no record that was acknowledged, written or synced,
// and leaves nothing that Open does not understand.
func TestKill(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	acked := map[uint64]string{}
	for round := range 12 {
		cmd := exec.Command(os.Args[0], "-test.run=^$")
		cmd.Env = append(os.Environ(), crashDirEnv+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			number, p, _ := strings.Cut(lines.Text(), " ")
			seq, err := strconv.ParseUint(number, 10, 64)
			if err != nil {
				t.Fatalf("child: %s", lines.Text())
			}
			acked[seq] = p
			if n == 37*round+round*round*round { // until rotations come into it
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := cmd.Wait(); err == nil {
			t.Fatal("the child ended by itself")
		}
		closeJournal(t, open(t, dir, small()), false)
		mustVerify(t, dir)
		found := 0
		for rec, err := range Read(dir, 0) {
			if err != nil {
				t.Fatal(err)
			}
			if p, ok := acked[rec.Seq]; ok {
				found++
				if p != string(rec.Payload) {
					t.Fatalf("round %d: record %d is %.40q, acknowledged %.40q", round, rec.Seq, rec.Payload, p)
				}
			}
		}
		if found != len(acked) {
			t.Fatalf("round %d: %d of %d acknowledged records", round, found, len(acked))
		}
	}
}
