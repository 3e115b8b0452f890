package bench

import (
	"encoding/json"
	"testing"
	"time"
)

// The form is what scripts read: names, order and null.
func TestResultForm(t *testing.T) {
	var h Histogram
	h.Add(2*time.Millisecond, 99)
	h.Add(40*time.Millisecond, 1)
	r := Result{Op: "encrypt", Door: "grpc", Concurrency: 16, PayloadBytes: 1024, Batch: 1}
	r.Set(100, 3, 2*time.Second, &h, 0.0012345)
	got, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"op":"encrypt","door":"grpc","concurrency":16,"payload_bytes":1024,"batch":1,"seconds":2,"ops":100,"errors":3,` +
		`"ops_per_second":50,"p50_ms":2.007,"p99_ms":2.007,"p999_ms":40.108,"server_cpu_us_per_op":12.345}`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	none := Result{Op: "ping"}
	none.Set(0, 1, 0, &Histogram{}, 1)
	if none.ServerCPU != nil || none.OpsPerSecond != 0 {
		t.Errorf("of no operation: %+v", none)
	}
	unknown := Result{}
	unknown.Set(1, 0, time.Second, &h, -1)
	if got, err = json.Marshal(unknown); err != nil || !json.Valid(got) || unknown.ServerCPU != nil {
		t.Errorf("CPU time that is not known: %s, %v", got, err)
	}
}
