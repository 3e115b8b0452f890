package adminapi

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/keyhold/keyhold/hsm"
	"github.com/keyhold/keyhold/server/audit"
	"github.com/keyhold/keyhold/server/kms"
)

// Metrics collects what /metrics shows. Its methods may be called
// concurrently and are quick.
type Metrics struct {
	registry *prometheus.Registry

	operations series[operationLabels, operationSeries]
	tokenCalls series[callLabels, callSeries]

	requests    *prometheus.CounterVec
	latency     *prometheus.HistogramVec
	parts       *prometheus.HistogramVec
	refused     prometheus.Counter
	throttled   prometheus.Counter
	calls       *prometheus.CounterVec
	callTime    *prometheus.HistogramVec
	evicted     *prometheus.CounterVec
	initialized *prometheus.CounterVec
	commitTime  prometheus.Histogram
	commitSize  prometheus.Histogram
	auditBytes  prometheus.Counter
	auditFailed prometheus.Counter
}

var (
	_ kms.Observer = (*Metrics)(nil)
	_ hsm.Observer = tokenObserver{}
)

// latencyBuckets are in seconds, from 20 µs to 10 s.
func latencyBuckets() []float64 {
	return []float64{20e-6, 50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 20e-3, 50e-3, 100e-3, 250e-3, 500e-3, 1, 2.5, 10}
}

// NewMetrics makes an empty set.
func NewMetrics() *Metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	histogram := func(name, help string, labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: latencyBuckets()}, labels)
	}
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		requests: counter("keyhold_requests_total", "Requests by operation and by the exception that they ended with; an empty code is success.", "operation", "code"),
		latency:  histogram("keyhold_request_seconds", "Time of requests in the core.", "operation"),
		parts:    histogram("keyhold_request_part_seconds", "Time of requests by part: queue (waiting for a session), token, audit.", "operation", "part"),
		refused:  prometheus.NewCounter(prometheus.CounterOpts{Name: "keyhold_unauthenticated_total", Help: "Requests of nobody known: the certificate is bound to no principal, or the signature is refused; and TLS handshakes of gRPC clients that failed."}),
		throttled: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "keyhold_unauthenticated_throttled_total",
			Help: "Of keyhold_unauthenticated_total, those that were told to come again later instead of why: too many failed from their address, or in all.",
		}),
		calls:    counter("keyhold_token_calls_total", "Uses of a session by call and PKCS#11 return code; an empty code is an error outside the library.", "token", "call", "ckr"),
		callTime: histogram("keyhold_token_call_seconds", "Time that sessions were held, by call.", "token", "call"),
		evicted:  counter("keyhold_token_sessions_evicted_total", "Sessions closed because of an error.", "token", "ckr"),
		initialized: counter("keyhold_token_reinitialized_total",
			"Modules initialised again in order to heal a token, by result.", "token", "result"),
		commitTime: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "keyhold_audit_commit_seconds", Help: "Time of audit commits in the operating system: write and sync.", Buckets: latencyBuckets(),
		}),
		commitSize: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "keyhold_audit_commit_records", Help: "Records that shared one audit commit.", Buckets: prometheus.ExponentialBuckets(1, 2, 11),
		}),
		auditBytes:  prometheus.NewCounter(prometheus.CounterOpts{Name: "keyhold_audit_bytes_total", Help: "Bytes written to the audit log."}),
		auditFailed: prometheus.NewCounter(prometheus.CounterOpts{Name: "keyhold_audit_failures_total", Help: "Audit commits that failed."}),
	}
	m.registry.MustRegister(
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		m.requests, m.latency, m.parts, m.refused, m.throttled, m.calls, m.callTime, m.evicted, m.initialized,
		m.commitTime, m.commitSize, m.auditBytes, m.auditFailed,
	)
	return m
}

// operationLabels and operationSeries are what a request counts in.
type (
	operationLabels struct {
		name string
		code kms.Code
	}
	operationSeries struct {
		count                        prometheus.Counter
		latency, queue, token, audit prometheus.Observer
	}
)

// Operation is kms.Observer's.
func (m *Metrics) Operation(name string, code kms.Code, total time.Duration, t kms.Timing) {
	s := m.operations.get(operationLabels{name, code}, func() *operationSeries {
		return &operationSeries{
			count: m.requests.WithLabelValues(name, string(code)), latency: m.latency.WithLabelValues(name),
			queue: m.parts.WithLabelValues(name, "queue"), token: m.parts.WithLabelValues(name, "token"), audit: m.parts.WithLabelValues(name, "audit"),
		}
	})
	s.count.Inc()
	s.latency.Observe(total.Seconds())
	s.queue.Observe(t.Queue.Seconds())
	s.token.Observe(t.Token.Seconds())
	s.audit.Observe(t.Audit.Seconds())
}

// Refused counts a caller that was not authenticated.
func (m *Metrics) Refused() { m.refused.Inc() }

// Throttled counts a caller that was not authenticated, which Refused counts too, and
// that was not told why.
func (m *Metrics) Throttled() { m.throttled.Inc() }

// Commit is the audit journal's observer.
func (m *Metrics) Commit(c audit.Commit) {
	if c.Err != nil {
		m.auditFailed.Inc()
		return
	}
	m.commitTime.Observe(c.Elapsed.Seconds())
	if c.Records > 0 {
		m.commitSize.Observe(float64(c.Records))
	}
	m.auditBytes.Add(float64(c.Bytes))
}

// Token returns the observer of one token, by its name in the configuration.
func (m *Metrics) Token(name string) hsm.Observer { return tokenObserver{m, name} }

type tokenObserver struct {
	m    *Metrics
	name string
}

// callLabels and callSeries are what a use of a session counts in.
type (
	callLabels struct{ token, call, code string }
	callSeries struct {
		count prometheus.Counter
		held  prometheus.Observer
	}
)

// Call is hsm.Observer's.
func (o tokenObserver) Call(_, call, code string, _, held time.Duration) {
	s := o.m.tokenCalls.get(callLabels{o.name, call, code}, func() *callSeries {
		return &callSeries{count: o.m.calls.WithLabelValues(o.name, call, code), held: o.m.callTime.WithLabelValues(o.name, call)}
	})
	s.count.Inc()
	s.held.Observe(held.Seconds())
}

// Evicted is hsm.Observer's.
func (o tokenObserver) Evicted(_, code string) { o.m.evicted.WithLabelValues(o.name, code).Inc() }

// Stuck is hsm.Observer's; the gauge of Watch shows it.
func (o tokenObserver) Stuck(string, int) {}

// State is hsm.Observer's; the gauge of Watch shows it.
func (o tokenObserver) State(string, hsm.State, string) {}

// Initialized is hsm.Observer's.
func (o tokenObserver) Initialized(_ string, err error) {
	result := "ok"
	if err != nil {
		result = "failed"
	}
	o.m.initialized.WithLabelValues(o.name, result).Inc()
}

// Core is what Watch reads of the core.
type Core interface {
	Ready() error
	KeyCounts() map[string]int
	Orphans() []kms.Orphan
	ClockHeld() bool
}

// Journal is what Watch reads of the audit log.
type Journal interface {
	Status() audit.Status
	Healthy() error
}

// Watch shows the state of the core, of the tokens and of the audit log, read at
// each scrape. It must be called once.
func (m *Metrics) Watch(core Core, tokens map[string]*hsm.Token, journal Journal) {
	m.registry.MustRegister(&watcher{core: core, tokens: tokens, journal: journal})
}

type watcher struct {
	core    Core
	tokens  map[string]*hsm.Token
	journal Journal
}

// gauge descriptions. They are never changed.
var (
	descReady    = prometheus.NewDesc("keyhold_ready", "1 while requests can be served.", nil, nil)
	descKeys     = prometheus.NewDesc("keyhold_keys", "Keys by state.", []string{"state"}, nil)
	descOrphans  = prometheus.NewDesc("keyhold_orphans", "Orphans that the last reconciliation found, by kind.", []string{"kind"}, nil)
	descClock    = prometheus.NewDesc("keyhold_clock_held", "1 while deletions wait for an operator to confirm the clock.", nil, nil)
	descToken    = prometheus.NewDesc("keyhold_token_ready", "1 while the token works.", []string{"token"}, nil)
	descSessions = prometheus.NewDesc("keyhold_token_sessions", "Sessions by what they are: open, in use, max, waiting (calls that wait for one), stuck (calls that hang in the library).", []string{"token", "what"}, nil)
	descCopies   = prometheus.NewDesc("keyhold_token_session_copies", "Keys that are kept as session copies.", []string{"token"}, nil)
	descAudit    = prometheus.NewDesc("keyhold_audit_healthy", "1 while audit records can be written.", nil, nil)
	descRoom     = prometheus.NewDesc("keyhold_audit_segment_left_bytes", "Bytes left in the current segment of the audit log, its reserve included.", nil, nil)
	descNoSpare  = prometheus.NewDesc("keyhold_audit_no_next_segment", "1 while the next segment of the audit log could not be allocated: when the current one is full, requests are refused.", nil, nil)
	descObjects  = prometheus.NewDesc("keyhold_token_objects", "Token objects whose handles are known.", []string{"token"}, nil)
)

// Describe is prometheus.Collector's.
func (w *watcher) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descReady, descKeys, descOrphans, descClock, descToken, descSessions, descCopies, descObjects, descAudit, descRoom, descNoSpare} {
		ch <- d
	}
}

// Collect is prometheus.Collector's.
func (w *watcher) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	gauge(descReady, truth(w.core.Ready() == nil))
	gauge(descClock, truth(w.core.ClockHeld()))
	room := w.journal.Status()
	gauge(descAudit, truth(w.journal.Healthy() == nil))
	gauge(descRoom, float64(room.SegmentLeft))
	gauge(descNoSpare, truth(room.SpareFailed))
	for state, n := range w.core.KeyCounts() {
		gauge(descKeys, float64(n), state)
	}
	orphans := map[kms.OrphanKind]int{kms.OrphanIntent: 0, kms.OrphanObject: 0, kms.OrphanRecord: 0}
	for _, o := range w.core.Orphans() {
		orphans[o.Kind]++
	}
	for kind, n := range orphans {
		gauge(descOrphans, float64(n), string(kind))
	}
	for name, t := range w.tokens {
		s := t.Status()
		gauge(descToken, truth(t.Ready() == nil), name)
		for what, n := range map[string]int{"open": s.Open, "in use": s.InUse, "max": s.MaxSessions, "waiting": s.Waiting, "stuck": s.Stuck} {
			gauge(descSessions, float64(n), name, what)
		}
		gauge(descCopies, float64(s.Copies), name)
		gauge(descObjects, float64(s.Objects), name)
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
