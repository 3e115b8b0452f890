package main

import (
	"fmt"
	"strings"
)

// target is a goal, and how far it was reached.
type target struct {
	name   string
	goal   float64
	atMost bool // the goal is an upper limit
	none   bool // there is no goal: the figure is only shown
	unit   string
	got    float64
	known  bool
}

// met tells whether the goal was reached, in words.
func (t target) met() string {
	switch {
	case !t.known:
		return "not measured"
	case t.none:
		return ""
	case t.atMost && t.got <= t.goal, !t.atMost && t.got >= t.goal:
		return "met"
	}
	return "**not met**"
}

// targetTable shows targets.
func targetTable(targets []target) string {
	var b strings.Builder
	b.WriteString("| what | goal | measured | |\n| --- | --- | --- | --- |\n")
	for _, t := range targets {
		goal := "at least " + number(t.goal) + t.unit
		if t.atMost {
			goal = "at most " + number(t.goal) + t.unit
		}
		if t.none {
			goal = "-"
		}
		got := "-"
		if t.known {
			got = number(t.got) + t.unit
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", t.name, goal, got, t.met())
	}
	return b.String()
}

// number writes a number with as many digits as mean something.
func number(f float64) string {
	switch {
	case f >= 100:
		return fmt.Sprintf("%.0f", f)
	case f >= 10:
		return fmt.Sprintf("%.1f", f)
	}
	return fmt.Sprintf("%.2f", f)
}

// ratioTarget is a target of a ratio of rates.
func (f figures) ratioTarget(name string, goal float64, a, b figureKey) target {
	t := target{name: name, goal: goal}
	t.got, t.known = f.ratio(a, b)
	return t
}

// opsTargets are the goals for single operations.
func (f figures) opsTargets(idleRSS float64) []target {
	key := func(server, op string, concurrency int) figureKey { return figureKey{server, op, concurrency} }
	toPing := func(name string, goal float64, server, op string, concurrency int) target {
		return f.ratioTarget(fmt.Sprintf("%s / ping, audit %s, %d callers", name, server, concurrency), goal, key(server, op, concurrency), key(server, "ping", concurrency))
	}
	all := []target{
		toPing("Encrypt", 0.40, serverSynced, "encrypt", fewCallers),
		toPing("Encrypt", 0.55, serverSynced, "encrypt", manyCallers),
		toPing("Encrypt", 0.60, serverWritten, "encrypt", fewCallers),
		toPing("Encrypt", 0.60, serverWritten, "encrypt", manyCallers),
		toPing("GenerateMac", 0.40, serverSynced, "mac", fewCallers),
		toPing("GenerateMac", 0.55, serverSynced, "mac", manyCallers),
		toPing("GenerateMac", 0.60, serverWritten, "mac", fewCallers),
		toPing("GenerateMac", 0.60, serverWritten, "mac", manyCallers),
		toPing("Sign P-256", 0.25, serverSynced, "sign", fewCallers),
		toPing("Sign P-256", 0.25, serverSynced, "sign", manyCallers),
		f.ratioTarget(fmt.Sprintf("Sign RSA-2048 / the token alone, audit synced, %d callers", fewCallers), 0.7,
			key(serverSynced, opRSA, fewCallers), key(serverToken, "sign-rsa2048", fewCallers)),
	}
	latency := target{name: fmt.Sprintf("Encrypt, 99th percentile, audit synced, %d callers", fewCallers), goal: 10, atMost: true, unit: " ms"}
	latency.got, latency.known = f.median(key(serverSynced, "encrypt", fewCallers), p99)
	batch := target{name: fmt.Sprintf("Encrypt in batches of 100, server CPU per item, %d callers", fewCallers), goal: 22, atMost: true, unit: " µs"}
	batch.got, batch.known = f.median(key(serverSynced, "encrypt:batch=100", fewCallers), cpu)
	coalesced := f.ratioTarget(fmt.Sprintf("Encrypt coalesced by the client / single, audit synced, %d callers", manyCallers), 0,
		key(serverSynced, "encrypt:coalesce", manyCallers), key(serverSynced, "encrypt", manyCallers))
	coalesced.none = true
	idle := target{name: "memory (RSS) of an idle server", goal: 60, atMost: true, unit: " MB", got: idleRSS / 1e6, known: idleRSS > 0}
	return append(all, latency, batch, coalesced, idle)
}

// row is a line of a table of operations.
type row struct {
	name string
	key  figureKey
}

// opsTable shows the medians of all turns. With ping the rates are compared with
// the ping of the same server and concurrency.
func (f figures) opsTable(rows []row, ping bool) string {
	var b strings.Builder
	if ping {
		b.WriteString("| audit | operation | callers | ops/s | of ping | p50 ms | p99 ms | p99.9 ms | server CPU µs/op |\n")
		b.WriteString("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n")
	} else {
		b.WriteString("| operation | callers | ops/s | p50 ms | p99 ms | p99.9 ms | CPU µs/op |\n")
		b.WriteString("| --- | ---: | ---: | ---: | ---: | ---: | ---: |\n")
	}
	for _, r := range rows {
		ops, known := f.median(r.key, rate)
		if !known {
			continue
		}
		var values [4]float64
		values[0], _ = f.median(r.key, p50)
		values[1], _ = f.median(r.key, p99)
		values[2], _ = f.median(r.key, p999)
		values[3], _ = f.median(r.key, cpu)
		if ping {
			ratio := "-"
			if v, ok := f.ratio(r.key, figureKey{r.key.server, "ping", r.key.concurrency}); ok {
				ratio = fmt.Sprintf("%.2f", v)
			}
			fmt.Fprintf(&b, "| %s | %s | %d | %.0f | %s |", r.key.server, r.name, r.key.concurrency, ops, ratio)
		} else {
			fmt.Fprintf(&b, "| %s | %d | %.0f |", r.name, r.key.concurrency, ops)
		}
		fmt.Fprintf(&b, " %.3f | %.3f | %.3f | %.1f |\n", values[0], values[1], values[2], values[3])
	}
	return b.String()
}
