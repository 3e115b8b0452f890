package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Servers of figures of -part keys.
const (
	serverFew  = "few keys"
	serverMany = "many keys"
)

// fewKeys is how many keys are few.
const fewKeys = 10

// starts is how often a start is measured.
const starts = 5

// copiedAfter is how often a key is used until it has a session copy, and once more.
const copiedAfter = 4

// keysData is what -part keys measures.
type keysData struct {
	keys     int
	figures  figures   // of serverFew and serverMany, where manyInUse is the op that uses all keys
	starts   []float64 // seconds
	rss      float64   // bytes, of a server with many keys that has just started
	used     float64   // the same, when all were used
	filled   float64   // keys made per second
	memories []memory
}

// manyInUse is what the figures call encrypt with all of many keys in turn.
const manyInUse = "encrypt:all"

// memory is a server's after so many operations.
type memory struct {
	ops, heap, rss float64
}

// measureKeys measures many keys, start-up and memory.
func (s *settings) measureKeys(ctx context.Context, m machine) (text string, err error) {
	few, many := s.newDaemon("few"), s.newDaemon("many")
	defer func() { err = errors.Join(err, few.stop(), many.stop()) }()
	if err := errors.Join(few.start(ctx), many.start(ctx)); err != nil {
		return "", err
	}
	data := keysData{keys: s.keys, figures: figures{}}
	if data.filled, err = s.fill(ctx, few, many); err != nil {
		return "", err
	}
	for range starts {
		if err := many.stop(); err != nil {
			return "", err
		}
		if err := many.start(ctx); err != nil {
			return "", err
		}
		data.starts = append(data.starts, many.started.Seconds())
		s.say("started with %d keys in %.2f s", s.keys, many.started.Seconds())
	}
	if data.rss, err = many.idleMemory(ctx); err != nil {
		return "", err
	}
	if err := s.useAll(ctx, many, s.keys, copiedAfter); err != nil {
		return "", err
	}
	if data.used, err = many.metric(ctx, "process_resident_memory_bytes"); err != nil {
		return "", err
	}
	for turn := range s.turns {
		s.say("turn %d of %d", turn+1, s.turns)
		if err := s.keysTurn(ctx, data.figures, few, many); err != nil {
			return "", err
		}
	}
	if data.memories, err = s.watchMemory(ctx, few); err != nil {
		return "", err
	}
	return data.text(m.text(fmt.Sprintf("make bench-keys BENCHTIME=%d", s.turns))), nil
}

// fill makes the keys, and returns how many a second.
func (s *settings) fill(ctx context.Context, few, many *daemon) (float64, error) {
	if _, err := few.bench(ctx, "--op", "encrypt", "--keys", strconv.Itoa(fewKeys), "--duration", "100ms"); err != nil {
		return 0, err
	}
	s.say("making %d keys: some minutes", s.keys)
	began := time.Now()
	_, err := many.bench(ctx, "--op", "encrypt", "--keys", strconv.Itoa(s.keys), "--duration", "100ms", "--timeout", "5m")
	return float64(s.keys) / time.Since(began).Seconds(), err
}

// keysTurn measures each once.
func (s *settings) keysTurn(ctx context.Context, f figures, few, many *daemon) error {
	args := []string{"--concurrency", strconv.Itoa(fewCallers), "--payload", payload, "--duration", (2 * s.turn).String(), "--warmup", s.warmup()}
	for _, part := range []struct {
		d          *daemon
		server, op string
		keys       int
	}{{few, serverFew, "encrypt", fewKeys}, {many, serverMany, "encrypt", fewKeys}, {many, serverMany, manyInUse, s.keys}} {
		got, err := part.d.bench(ctx, append([]string{"--op", "encrypt", "--keys", strconv.Itoa(part.keys)}, args...)...)
		if err != nil {
			return err
		}
		for i := range got {
			got[i].Op = part.op
		}
		f.add(part.server, got)
	}
	return nil
}

// memorySteps is how often memory is looked at.
const memorySteps = 10

// watchMemory looks at a server's memory while it does many operations.
func (s *settings) watchMemory(ctx context.Context, d *daemon) ([]memory, error) {
	var all []memory
	var done float64
	for step := 0; done < float64(s.ops) || len(all) < 2; {
		got, err := d.bench(ctx, "--op", "encrypt", "--concurrency", strconv.Itoa(manyCallers), "--payload", payload,
			"--keys", strconv.Itoa(fewKeys), "--duration", (3 * s.turn).String(), "--warmup", "0s")
		if err != nil {
			return nil, err
		}
		for _, r := range got {
			done += float64(r.Ops)
		}
		if done < float64(step)*float64(s.ops)/memorySteps {
			continue
		}
		step++
		m := memory{ops: done}
		// What was in use at the last collection, times a constant.
		if m.heap, err = d.metric(ctx, "go_memstats_next_gc_bytes"); err != nil {
			return nil, err
		}
		if m.rss, err = d.metric(ctx, "process_resident_memory_bytes"); err != nil {
			return nil, err
		}
		all = append(all, m)
		s.say("%.0f operations: next collection at %.1f MB, RSS %.1f MB", done, m.heap/1e6, m.rss/1e6)
	}
	return all, nil
}

// heapGrowth compares the halves, by their medians: how much is in use at one
// collection depends on what is under way.
func heapGrowth(all []memory) (float64, bool) {
	var halves [2][]float64
	for i, m := range all {
		half := min(2*i/len(all), 1)
		halves[half] = append(halves[half], m.heap)
	}
	first, ok := median(halves[0])
	second, both := median(halves[1])
	return second / first, ok && both && first > 0
}

// text is the generated part of the page.
func (k keysData) text(machine string) string {
	f := k.figures
	few := figureKey{serverFew, "encrypt", fewCallers}
	some, all := figureKey{serverMany, "encrypt", fewCallers}, figureKey{serverMany, manyInUse, fewCallers}
	start := target{name: fmt.Sprintf("start-up with %d keys, until all doors answer", k.keys), goal: 5, atMost: true, unit: " s"}
	start.got, start.known = median(k.starts)
	heap := target{name: "heap in the second half of the operations below / in the first", goal: 1.1, atMost: true}
	heap.got, heap.known = heapGrowth(k.memories)
	targets := []target{
		f.ratioTarget(fmt.Sprintf("Encrypt with %d of %d keys / %d of %d, %d callers", fewKeys, k.keys, fewKeys, fewKeys, fewCallers), 0.9, some, few),
		f.ratioTarget(fmt.Sprintf("Encrypt with all of %d keys in turn / %d of %d, %d callers", k.keys, fewKeys, fewKeys, fewCallers), 0.9, all, few),
		start, heap,
		{name: fmt.Sprintf("memory (RSS) of a server with %d keys that has just started", k.keys), none: true, unit: " MB", got: k.rss / 1e6, known: k.rss > 0},
		{name: fmt.Sprintf("the same when all %d were used, a session copy each", k.keys), none: true, unit: " MB", got: k.used / 1e6, known: k.used > 0},
		{name: "CreateKey with CreateAlias, of a token that fills up", none: true, unit: "/s", got: k.filled, known: k.filled > 0},
	}
	var b strings.Builder
	b.WriteString(machine + "\n" + targetTable(targets) + "\n")
	b.WriteString(f.opsTable([]row{
		{fmt.Sprintf("encrypt, %d of %d keys", fewKeys, fewKeys), few},
		{fmt.Sprintf("encrypt, %d of %d keys", fewKeys, k.keys), some},
		{fmt.Sprintf("encrypt, all of %d keys in turn", k.keys), all},
	}, false))
	b.WriteString("\nMemory of a server under Encrypt with 64 callers:\n\n| operations | heap at which the next collection begins, MB | RSS, MB |\n| ---: | ---: | ---: |\n")
	for _, m := range k.memories {
		fmt.Fprintf(&b, "| %.0f | %.1f | %.1f |\n", m.ops, m.heap/1e6, m.rss/1e6)
	}
	return b.String()
}
