package sigv4_test

import (
	"encoding/json"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// botocoreCase is what testdata/botocore_send.py reads.
type botocoreCase struct {
	Method  string            `json:"method"`
	URL     string            `json:"url"`
	Headers map[string]string `json:"headers"`
	Body    string            `json:"body"`
	Presign int               `json:"presign"`
}

type botocoreJob struct {
	AccessKey string         `json:"access_key"`
	Secret    string         `json:"secret"`
	Token     string         `json:"token"`
	Region    string         `json:"region"`
	Service   string         `json:"service"`
	Cases     []botocoreCase `json:"cases"`
}

// TestBotocore: the signer and the HTTP client of boto3 and the AWS CLI, with
// long-term and temporary credentials, in both forms.
func TestBotocore(t *testing.T) {
	t.Parallel()
	interpreter := python(t)
	door := startDoor(t, false)
	for id, token := range map[string]string{accessKeyID: "", sessionID: session} {
		job := botocoreJob{AccessKey: id, Secret: secret, Token: token, Region: region, Service: "kms"}
		var names []string
		for _, c := range requests {
			if slices.Contains(c.notFor, "botocore") {
				continue
			}
			for _, presign := range []int{0, 60} {
				if presign != 0 && c.body != "" {
					continue // botocore puts a body into the query, and signs none
				}
				headers := c.headers
				if headers == nil {
					headers = map[string]string{}
				}
				job.Cases = append(job.Cases, botocoreCase{c.method, door.URL + c.target, headers, c.body, presign})
				names = append(names, c.name+", presigned for "+strconv.Itoa(presign)+" s")
			}
		}
		var results []struct {
			Status int
			Body   string
			Signed string
		}
		if err := json.Unmarshal(run(t, job, interpreter, "testdata/botocore_send.py"), &results); err != nil {
			t.Fatal(err)
		}
		if len(results) != len(names) {
			t.Fatalf("%d results for %d cases", len(results), len(names))
		}
		for i, r := range results {
			if r.Status != 200 || !strings.HasPrefix(r.Body, "HTTP/1.1 "+id) {
				t.Errorf("%s, %s: %d\n%s\nsent: %s", id, names[i], r.Status, r.Body, r.Signed)
			}
		}
		job.Secret, job.Cases = "another secret", job.Cases[:2]
		if err := json.Unmarshal(run(t, job, interpreter, "testdata/botocore_send.py"), &results); err != nil {
			t.Fatal(err)
		}
		for i, r := range results {
			if r.Status != 403 || !strings.HasPrefix(r.Body, "signature mismatch") {
				t.Errorf("another secret, %s, %s: %d\n%s", id, names[i], r.Status, r.Body)
			}
		}
	}
}

// TestCurl: curl --aws-sigv4, as operators test an XKS proxy.
func TestCurl(t *testing.T) {
	t.Parallel()
	curl, err := exec.LookPath("curl")
	if err != nil {
		missing(t, "curl")
	}
	door := startDoor(t, false)
	for _, c := range requests {
		if slices.Contains(c.notFor, "curl") {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			args := []string{
				"--silent", "--show-error", "--max-time", "30", "--path-as-is", "--noproxy", "*", "--write-out", " %{http_code}",
				"--aws-sigv4", "aws:amz:" + region + ":kms", "--user", accessKeyID + ":" + secret,
				"--request", c.method,
			}
			for name, value := range c.headers {
				args = append(args, "--header", name+": "+value)
			}
			if c.body != "" {
				args = append(args, "--data-binary", "@-")
			}
			cmd := exec.CommandContext(t.Context(), curl, append(args, door.URL+c.target)...)
			cmd.Stdin = strings.NewReader(c.body)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if !strings.HasSuffix(string(out), " 200") {
				t.Errorf("%s", out)
			}
		})
	}
}
