package main

import (
	"encoding/json"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// TestBench: every operation can be measured, alone and in batches; keys are
// made once; and they can be discarded.
func TestBench(t *testing.T) {
	t.Parallel()
	d := start(t, filepath.Join(t.TempDir(), "dev"))
	members := []string{
		"batch", "concurrency", "door", "errors", "op", "ops", "ops_per_second", "p50_ms", "p999_ms", "p99_ms", "payload_bytes", "seconds", "server_cpu_us_per_op",
	}
	door := "grpc"
	run := func(ops string, args ...string) {
		t.Helper()
		args = append([]string{"bench", "--op", ops, "--duration", "300ms", "--warmup", "50ms", "--concurrency", "4", "--output", "json"}, args...)
		out, err := d.keyhold(t.Context(), nil, args...)
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
		names := strings.Split(ops, ",")
		if len(lines) != len(names) {
			t.Fatalf("%d operations, %d lines:\n%s", len(names), len(lines), out)
		}
		for i, line := range lines {
			var got map[string]any
			if err := json.Unmarshal([]byte(line), &got); err != nil {
				t.Fatal(err)
			}
			number := func(name string) float64 {
				f, _ := got[name].(float64)
				return f
			}
			if keys := slices.Sorted(maps.Keys(got)); !slices.Equal(keys, members) {
				t.Errorf("%s has the members %q", names[i], keys)
			}
			if got["op"] != names[i] || got["door"] != door || got["errors"] != 0.0 || number("ops") < 1 || number("seconds") < 0.25 ||
				number("p50_ms") <= 0 || number("p50_ms") > number("p99_ms") || number("p99_ms") > number("p999_ms") {
				t.Errorf("%s: %s", names[i], line)
			}
			if rate := number("ops") / number("seconds"); rate/number("ops_per_second") < 0.99 || rate/number("ops_per_second") > 1.01 {
				t.Errorf("%s: ops_per_second is not ops/seconds: %s", names[i], line)
			}
			// The clock of CPU time ticks each 10 ms: short runs may see none.
			if _, ok := got["server_cpu_us_per_op"].(float64); !ok {
				t.Errorf("%s: no CPU time: %s", names[i], line)
			}
		}
	}
	c := d.dial(t)
	keys := func() int {
		t.Helper()
		resp, err := c.Keys.ListKeys(t.Context(), &keyholdv1.ListKeysRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return len(resp.GetKeys())
	}
	run("ping,encrypt,decrypt,reencrypt,datakey,sign,verify,mac,verify-mac,describe,random", "--keys", "2", "--connections", "2")
	made := keys()
	run("encrypt,decrypt,reencrypt,datakey,sign,verify,mac,verify-mac", "--keys", "2", "--batch", "5")
	run("encrypt,decrypt,reencrypt,datakey,sign,verify,mac,verify-mac", "--keys", "2", "--coalesce")
	if now := keys(); made != 6 || now != made {
		t.Errorf("%d keys, then %d; want 6 each time", made, now)
	}
	door = "aws"
	run("ping,encrypt,decrypt,reencrypt,datakey,sign,verify,mac,verify-mac,describe,random", "--keys", "2", "--door", "aws")
	if now := keys(); now != made {
		t.Errorf("%d keys after the AWS door was measured, want %d", now, made)
	}
	door = "grpc"
	run("encrypt,decrypt,reencrypt", "--spec", "RSA_2048")
	run("sign,verify", "--spec", "RSA_2048")
	run("sign", "--spec", "ECC_NIST_EDWARDS25519")
	run("encrypt,encrypt:coalesce,encrypt:batch=10,verify-mac:batch=2")
	if _, err := d.keyhold(t.Context(), nil, "bench", "--op", "random", "--payload", "1025"); err == nil || !strings.Contains(err.Error(), "ValidationException") {
		t.Errorf("what the server refuses: %v", err)
	}
	if _, err := d.keyhold(t.Context(), nil, "bench", "--cleanup", "--yes"); err != nil {
		t.Fatal(err)
	}
	resp, err := c.Keys.ListAliases(t.Context(), &keyholdv1.ListAliasesRequest{})
	if err != nil || len(resp.GetAliases()) > 0 {
		t.Errorf("aliases that are left: %v, %v", resp.GetAliases(), err)
	}
	list, err := c.Keys.ListKeys(t.Context(), &keyholdv1.ListKeysRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range list.GetKeys() {
		meta, err := c.Keys.DescribeKey(t.Context(), &keyholdv1.DescribeKeyRequest{KeyId: k.GetKeyId()})
		if err != nil || meta.GetKeyMetadata().GetKeyState() != keyholdv1.KeyState_KEY_STATE_PENDING_DELETION {
			t.Errorf("%s is %s, %v", k.GetKeyId(), meta.GetKeyMetadata().GetKeyState(), err)
		}
	}
	d.stop(t)
	verifyAudit(t, d.dir)
}
