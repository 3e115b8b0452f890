package hsm

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// killedEnv makes the test binary the child of TestKilled: its value is the token's URI.
const killedEnv = "KEYHOLD_TEST_KILLED"

// killedChild creates and destroys keys until it is killed, and prints each as soon as it was acknowledged.
func killedChild(uri string) {
	fail := func(err error) {
		if err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
	}
	ctx := context.Background()
	cfg, err := ParseURI(uri)
	fail(err)
	tok, err := Open(cfg, Options{})
	fail(err)
	fail(tok.WaitReady(ctx))
	for i := 0; ; i++ {
		id := fmt.Sprintf("%d-%d", os.Getpid(), i)
		_, err := tok.Generate(ctx, GenerateRequest{Spec: AES256, Purpose: PurposeSeal, ID: []byte(id), Label: id})
		fail(err)
		fmt.Println("made", id)
		if i%3 == 2 {
			fmt.Println("destroying", id)
			fail(tok.Destroy(ctx, []byte(id), id))
			fmt.Println("destroyed", id)
		}
	}
}

// TestKilled: whatever moment the process is killed at, no acknowledged key is lost, no destroyed one comes back, and the token can be opened.
func TestKilled(t *testing.T) {
	w := newWorld(t, false)
	cfg := w.token("alpha")
	want := map[string]bool{} // acknowledged keys; false: destroyed
	for round := range 6 {
		killRound(t, cfg, 5+7*round, want)
		tok := w.ready(cfg)
		for id, there := range want {
			k := tok.Key(AES256, PurposeSeal, []byte(id))
			if there {
				works(t, k)
				continue
			}
			_, _, err := seal(ctx(t), k)
			wantErr(t, "seal with destroyed key "+id, err, ErrKeyNotFound)
		}
		check(t, tok.Close(ctx(t)))
	}
	if len(want) < 30 {
		t.Errorf("only %d keys were made", len(want))
	}
}

// killRound lets a child work until it has said so many lines, kills it, and notes what it had acknowledged.
func killRound(t *testing.T, cfg Config, lines int, want map[string]bool) {
	t.Helper()
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), killedEnv+"="+cfg.URI())
	out, err := child.StdoutPipe()
	check(t, err)
	check(t, child.Start())
	n := 0
	scanner := bufio.NewScanner(out)
	for scanner.Scan() {
		what, id, _ := strings.Cut(scanner.Text(), " ")
		switch what {
		case "made":
			want[id] = true
		case "destroying":
			delete(want, id) // neither answer is wrong until it is acknowledged
		case "destroyed":
			want[id] = false
		default:
			t.Errorf("child: %s", scanner.Text())
		}
		// Kill while it works on the next; what it says until it is dead counts too.
		if n++; n == lines {
			check(t, child.Process.Kill())
		}
	}
	_ = child.Wait() // killed
	if n < lines {
		t.Fatalf("the child ended after %d lines", n)
	}
}
