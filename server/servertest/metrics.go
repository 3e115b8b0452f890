package servertest

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// get asks the admin listener.
func (d *Daemon) get(path string) (code int, body string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+d.Settings.Admin.Listen+path, nil)
	if err != nil {
		return 0, "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// Metrics are the values of /metrics at one moment, by name and labels as they
// are written there.
type Metrics map[string]float64

// Metrics reads /metrics.
func (d *Daemon) Metrics() (Metrics, error) {
	code, body, err := d.get("/metrics")
	if err != nil {
		return nil, err
	}
	if code != http.StatusOK {
		return nil, fmt.Errorf("/metrics says %d", code)
	}
	m := make(Metrics)
	for line := range strings.Lines(body) {
		name, value, ok := cutLast(strings.TrimSpace(line), " ")
		if !ok || strings.HasPrefix(line, "#") {
			continue
		}
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return nil, fmt.Errorf("/metrics: %q: %w", line, err)
		}
		m[name] = v
	}
	return m, nil
}

// Sessions returns the gauge of the daemon's sessions: open, in use, waiting,
// stuck.
func (m Metrics) Sessions(token, what string) int {
	return int(m[fmt.Sprintf("keyhold_token_sessions{token=%q,what=%q}", token, what)])
}

// Goroutines is go_goroutines.
func (m Metrics) Goroutines() int { return int(m["go_goroutines"]) }

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}
