package audit

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

func fullEvent() Event {
	return Event{
		UserIdentity: UserIdentity{
			Type: "IAMUser", PrincipalID: "AIDAEXAMPLE", ARN: "arn:aws:iam::111122223333:user/alice",
			AccountID: "111122223333", AccessKeyID: "AKIAEXAMPLE", UserName: "alice", InvokedBy: "AWS Internal",
		},
		EventTime:          time.Date(2026, 3, 1, 13, 4, 5, 999, time.FixedZone("x", 3600)),
		EventName:          "ScheduleKeyDeletion",
		AWSRegion:          "eu-central-1",
		SourceIPAddress:    "192.0.2.7",
		UserAgent:          `aws-cli/2 "quoted" \ and	tab`,
		ErrorCode:          "AccessDenied",
		ErrorMessage:       "no\nline breaks \x00\x1f\x7f <&> \u2028 é 😀",
		RequestParameters:  []byte(`{"keyId":"k","pendingWindowInDays":7}`),
		ResponseElements:   []byte(`{"keyState":"PendingDeletion"}`),
		Phase:              PhaseIntent,
		Additional:         []Member{{"keyMaterialId", "abc"}, {"phase", "dropped"}},
		RequestID:          "req-1",
		EventID:            "11111111-2222-4333-8444-555555555555",
		Resources:          []Resource{{ARN: "arn:aws:kms:eu-central-1:111122223333:key/k", AccountID: "111122223333"}, {ARN: "other", Type: "AWS::KMS::Alias"}},
		RecipientAccountID: "111122223333",
		TLS:                TLSDetails{Version: "TLSv1.3", CipherSuite: "TLS_AES_128_GCM_SHA256", ClientProvidedHostHeader: "kms.example"},
	}
}

func TestEventJSON(t *testing.T) {
	e := fullEvent()
	want := `{"eventVersion":"1.11",
	"userIdentity":{"type":"IAMUser","principalId":"AIDAEXAMPLE","arn":"arn:aws:iam::111122223333:user/alice",
	  "accountId":"111122223333","accessKeyId":"AKIAEXAMPLE","userName":"alice","invokedBy":"AWS Internal"},
	"eventTime":"2026-03-01T12:04:05Z","eventSource":"kms.amazonaws.com","eventName":"ScheduleKeyDeletion",
	"awsRegion":"eu-central-1","sourceIPAddress":"192.0.2.7","userAgent":"aws-cli/2 \"quoted\" \\ and\ttab",
	"errorCode":"AccessDenied","errorMessage":"no\nline breaks \u0000\u001f\u007f <&> \u2028 é 😀",
	"requestParameters":{"keyId":"k","pendingWindowInDays":7},"responseElements":{"keyState":"PendingDeletion"},
	"additionalEventData":{"phase":"intent","keyMaterialId":"abc"},
	"requestID":"req-1","eventID":"11111111-2222-4333-8444-555555555555","readOnly":false,
	"resources":[{"accountId":"111122223333","type":"AWS::KMS::Key","ARN":"arn:aws:kms:eu-central-1:111122223333:key/k"},
	  {"type":"AWS::KMS::Alias","ARN":"other"}],
	"eventType":"AwsApiCall","managementEvent":true,"recipientAccountId":"111122223333","eventCategory":"Management",
	"tlsDetails":{"tlsVersion":"TLSv1.3","cipherSuite":"TLS_AES_128_GCM_SHA256","clientProvidedHostHeader":"kms.example"}}`
	if diff := cmp.Diff(decode(t, []byte(want)), decode(t, e.AppendJSON(nil))); diff != "" {
		t.Error(diff)
	}
}

func TestEventJSONEmpty(t *testing.T) {
	e := Event{EventTime: time.Unix(0, 0), EventName: "Encrypt", ReadOnly: true, TLS: TLSDetails{CipherSuite: "x"}}
	got := string(e.AppendJSON([]byte("before ")))
	want := `before {"eventVersion":"1.11","userIdentity":{"type":""},"eventTime":"1970-01-01T00:00:00Z",` +
		`"eventSource":"kms.amazonaws.com","eventName":"Encrypt","awsRegion":"","sourceIPAddress":"","userAgent":"",` +
		`"requestParameters":null,"responseElements":null,"eventID":"","readOnly":true,"eventType":"AwsApiCall",` +
		`"managementEvent":true,"eventCategory":"Management","tlsDetails":{"cipherSuite":"x"}}`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// Client text is cut at CloudTrail's limit, at n and n+1, and not inside a
// character.
func TestEventJSONCutsClientText(t *testing.T) {
	for _, tc := range []struct{ name, in, want string }{
		{"at the limit", strings.Repeat("a", 1024), strings.Repeat("a", 1024)},
		{"one over", strings.Repeat("a", 1025), strings.Repeat("a", 1024)},
		{"character over the edge", strings.Repeat("a", 1022) + "😀", strings.Repeat("a", 1022)},
		{"character up to the edge", strings.Repeat("a", 1020) + "😀b", strings.Repeat("a", 1020) + "😀"},
		{"not a character", strings.Repeat("\x80", 2000), strings.Repeat("\ufffd", 1021)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := Event{UserAgent: tc.in, ErrorMessage: tc.in}
			m := decode(t, e.AppendJSON(nil))
			if m["userAgent"] != tc.want || m["errorMessage"] != tc.want {
				t.Errorf("got %q, want %q", m["userAgent"], tc.want)
			}
		})
	}
}

func TestEventJSONDoesNotAllocate(t *testing.T) {
	e := fullEvent()
	buf := make([]byte, 0, 4096)
	if n := testing.AllocsPerRun(100, func() { buf = e.AppendJSON(buf[:0]) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func decode(t *testing.T, b []byte) map[string]any {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatalf("%v in %s", err, b)
	}
	return m
}

// Whatever bytes are in the strings, the result is valid and holds what encoding/json
// would have put there.
func FuzzEventJSON(f *testing.F) {
	f.Add("plain", `q"\/`, "k")
	f.Add("\x00\x1f\x7f\b\f\n\r\t", "\xff\xfe é \xed\xa0\x80", "phase")
	f.Add("\u2028\ufffd😀", "\xf0\x9f\x98", "")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		e := Event{
			UserIdentity: UserIdentity{Type: a, ARN: b}, EventName: c, AWSRegion: a, SourceIPAddress: b, UserAgent: c,
			ErrorCode: a, ErrorMessage: b, Phase: Phase(c), Additional: []Member{{"k" + a, b}}, RequestID: b, EventID: a,
			Resources: []Resource{{ARN: a, AccountID: b, Type: c}}, EventType: a, EventCategory: b, RecipientAccountID: c,
			TLS: TLSDetails{Version: a, CipherSuite: b, ClientProvidedHostHeader: c},
		}
		out := e.AppendJSON(nil)
		if !utf8.Valid(out) || !json.Valid(out) {
			t.Fatalf("invalid: %q", out)
		}
		for _, s := range []string{a, b, c} {
			ref, err := json.Marshal(s)
			if err != nil {
				t.Fatal(err)
			}
			var want, got string
			if err := json.Unmarshal(ref, &want); err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(appendString(nil, s), &got); err != nil || got != want {
				t.Fatalf("%q: got %q, want %q (%v)", s, got, want, err)
			}
		}
	})
}

func BenchmarkEventJSON(b *testing.B) {
	e := fullEvent()
	buf := make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		buf = e.AppendJSON(buf[:0])
	}
	b.SetBytes(int64(len(buf)))
}
