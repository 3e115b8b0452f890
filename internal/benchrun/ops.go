package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Servers of figures.
const (
	serverSynced  = "synced"
	serverWritten = "written"
	serverToken   = "token"
)

// opRSA is how the figures call keyhold bench's sign with --spec RSA_2048.
const opRSA = "sign-rsa2048"

const (
	fewCallers  = 16
	manyCallers = 64
	payload     = "1024"
	// tokenTurns is how many turns the token alone gets in the end, at most.
	tokenTurns = 3
)

// warmup is how long each operation runs before its turn.
func (s *settings) warmup() string { return (s.turn / 10).String() }

// opsOf are the operations of a turn at each server.
func opsOf(server string) []string {
	if server == serverWritten {
		return []string{"ping", "encrypt", "mac"}
	}
	return []string{"ping", "encrypt", "decrypt", "reencrypt", "datakey", "mac", "sign", "random", "encrypt:coalesce", "encrypt:batch=100"}
}

// measureOps measures single operations.
func (s *settings) measureOps(ctx context.Context, m machine) (text string, err error) {
	synced := s.newDaemon(serverSynced, "--audit-durability", "synced")
	written := s.newDaemon(serverWritten, "--audit-durability", "written")
	defer func() { err = errors.Join(err, synced.stop(), written.stop()) }()
	if err := synced.start(ctx); err != nil {
		return "", err
	}
	rss, err := synced.idleMemory(ctx)
	if err != nil {
		return "", err
	}
	if err := written.start(ctx); err != nil {
		return "", err
	}
	servers := map[string]*daemon{serverSynced: synced, serverWritten: written}
	f := figures{}
	for turn := range s.turns {
		s.say("turn %d of %d", turn+1, s.turns)
		if err := s.opsTurn(ctx, f, servers); err != nil {
			return "", err
		}
	}
	s.say("the token alone, and the disk")
	token, err := s.benchToken(ctx, "--concurrency", "1,16", "--payload", payload, "--duration", (time.Duration(min(s.turns, tokenTurns)) * s.turn).String())
	if err != nil {
		return "", err
	}
	alone := figures{}
	alone.add(serverToken, token)
	return f.opsText(alone, rss, m.text(fmt.Sprintf("make bench BENCHTIME=%d", s.turns))), nil
}

// opsTurn measures everything once.
func (s *settings) opsTurn(ctx context.Context, f figures, servers map[string]*daemon) error {
	for _, concurrency := range []int{fewCallers, manyCallers} {
		for _, server := range []string{serverSynced, serverWritten} {
			got, err := servers[server].bench(ctx, "--op", strings.Join(opsOf(server), ","),
				"--concurrency", strconv.Itoa(concurrency), "--payload", payload, "--duration", s.turn.String(), "--warmup", s.warmup())
			if err != nil {
				return err
			}
			f.add(server, got)
		}
	}
	callers := strconv.Itoa(fewCallers)
	got, err := servers[serverSynced].bench(ctx, "--op", "sign", "--spec", "RSA_2048", "--concurrency", callers,
		"--payload", payload, "--duration", s.turn.String(), "--warmup", s.warmup())
	if err != nil {
		return err
	}
	for i := range got {
		got[i].Op = opRSA
	}
	f.add(serverSynced, got)
	if got, err = s.benchToken(ctx, "--op", opRSA, "--concurrency", callers, "--payload", payload, "--duration", s.turn.String()); err != nil {
		return err
	}
	f.add(serverToken, got)
	return nil
}

// idleMemory returns the resident bytes of a server that has had nothing to do
// for three turns.
func (d *daemon) idleMemory(ctx context.Context) (float64, error) {
	timer := time.NewTimer(3 * d.s.turn)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	return d.metric(ctx, "process_resident_memory_bytes")
}

// opsText is the generated part of the page.
func (f figures) opsText(alone figures, idleRSS float64, machine string) string {
	var rows, raw []row
	names := map[string]string{"ping": "ping (health check)", "mac": "GenerateMac HMAC-256", "sign": "Sign P-256", opRSA: "Sign RSA-2048"}
	name := func(op string) string {
		if n := names[op]; n != "" {
			return n
		}
		return op
	}
	for _, server := range []string{serverSynced, serverWritten} {
		for _, concurrency := range []int{fewCallers, manyCallers} {
			for _, op := range append(opsOf(server), opRSA) {
				rows = append(rows, row{name(op), figureKey{server, op, concurrency}})
			}
		}
	}
	for _, concurrency := range []int{1, fewCallers} {
		for _, op := range []string{
			"encrypt", "encrypt:uncopied", "decrypt", "decrypt:uncopied", "mac", "mac:uncopied",
			"sign-p256", "sign-p256:uncopied", "sign-rsa2048", "random", "fdatasync", "fdatasync:reserved",
		} {
			raw = append(raw, row{op, figureKey{serverToken, op, concurrency}})
		}
	}
	return machine + "\n### Goals\n\n" + targetTable(f.opsTargets(idleRSS)) +
		"\n### Operations\n\nOver mTLS and loopback, 1 KiB, one connection; medians of all turns. Batches count items.\n\n" + f.opsTable(rows, true) +
		"\n### The token and the disk alone\n\nThrough the daemon's pool of sessions, without a server; `:uncopied` without session copies.\n" +
		"fdatasync writes and syncs 1 KiB, to blocks written before or only reserved.\n\n" + alone.opsTable(raw, false)
}
