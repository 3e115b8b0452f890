package main

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

const (
	// progressMinBytes is how large a file is for which a bar is worth it.
	progressMinBytes = 16 << 20
	progressInterval = 200 * time.Millisecond
	progressWidth    = 24 // characters of the bar
	progressName     = 28 // characters of the name, so that a line has fewer than 80
)

// progress shows on a terminal how much of a file has been read. One that
// shows nothing has no out.
type progress struct {
	out   io.Writer
	src   *source
	total int64
	began time.Time
	now   func() time.Time

	mu      sync.Mutex // guards out: nothing is written to it after stop
	ticker  *time.Ticker
	stopped bool
	ended   chan struct{}
}

// newProgress makes a bar for files that are large, on a terminal.
func (a *app) newProgress(src *source, quiet bool) *progress {
	p := &progress{src: src, now: time.Now, ended: make(chan struct{})}
	if !quiet && src.regular() && src.info.Size() >= progressMinBytes && a.isTerminal(a.stderr) {
		p.out, p.total = a.stderr, src.info.Size()
	}
	return p
}

// start shows the bar until stop.
func (p *progress) start() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.out == nil || p.stopped {
		return
	}
	p.began = p.now()
	p.ticker = time.NewTicker(progressInterval)
	fmt.Fprint(p.out, "\r"+p.line(p.began))
	go func() {
		for {
			select {
			case now := <-p.ticker.C:
				p.show(now)
			case <-p.ended:
				return
			}
		}
	}()
}

func (p *progress) show(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.stopped {
		fmt.Fprint(p.out, "\r"+p.line(now))
	}
}

// stop wipes the bar away. It may be called again.
func (p *progress) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return
	}
	p.stopped = true
	close(p.ended)
	if p.ticker != nil {
		p.ticker.Stop()
		fmt.Fprint(p.out, "\r"+strings.Repeat(" ", 79)+"\r")
	}
}

// line is the bar with a name, a share, a rate and the time that is left.
func (p *progress) line(now time.Time) string {
	read := min(p.src.read.Load(), p.total)
	name := printable(p.src.name)
	if n := utf8.RuneCountInString(name); n > progressName {
		name = "…" + string([]rune(name)[n-progressName+1:])
	}
	done := int(read * progressWidth / p.total)
	bar := strings.Repeat("#", done) + strings.Repeat(".", progressWidth-done)
	text := fmt.Sprintf("%-*s [%s] %3d%%", progressName, name, bar, read*100/p.total)
	if elapsed := now.Sub(p.began); read > 0 && elapsed >= time.Second {
		rate := float64(read) / elapsed.Seconds()
		left := time.Duration(float64(p.total-read) / rate * float64(time.Second)).Round(time.Second)
		text += fmt.Sprintf(" %4.0f MB/s %7s", rate/1e6, left)
	}
	return fmt.Sprintf("%-79s", text)
}
