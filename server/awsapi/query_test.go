package awsapi

import (
	"net/http/httptest"
	"testing"
)

// TestIsQuery: which of the two protocols a request is of.
func TestIsQuery(t *testing.T) {
	t.Parallel()
	const call = "/?Action=GetCallerIdentity&Version=2011-06-15"
	for _, c := range []struct {
		method, target, kind, operation string
		want                            bool
	}{
		{"POST", "/", "application/x-www-form-urlencoded; charset=utf-8", "", true},
		{"POST", "/", "application/x-amz-json-1.1", "TrentService.ListKeys", false},
		{"GET", call, "", "", true},
		{"POST", call, "", "", true}, // botocore's presigned URL
		{"PUT", call, "", "", false},
		{"POST", "/", "application/x-www-form-urlencoded", "TrentService.ListKeys", false}, // curl --data
		{"POST", call, "", "TrentService.ListKeys", false},
		{"POST", "/", "", "", false},
		{"GET", "/", "", "", false},
	} {
		r := httptest.NewRequest(c.method, c.target, nil)
		r.Header.Set("Content-Type", c.kind)
		r.Header.Set("X-Amz-Target", c.operation)
		if got := isQuery(r); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}
