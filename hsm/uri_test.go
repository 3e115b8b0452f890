package hsm

import (
	"strings"
	"testing"
)

func TestParseURI(t *testing.T) {
	for _, c := range []struct {
		uri  string
		want Config
	}{
		{"pkcs11:token=keyhold", Config{TokenLabel: "keyhold"}},
		{"PKCS11:token=keyhold", Config{TokenLabel: "keyhold"}}, // RFC 3986: schemes know no case
		{"pkcs11:", Config{}},
		{"pkcs11:?module-path=/lib/x.so", Config{Module: "/lib/x.so"}},
		{"pkcs11:token=my%20token;serial=0123?module-path=/lib/x.so&pin-source=file:/etc/pin", Config{TokenLabel: "my token", TokenSerial: "0123", Module: "/lib/x.so", PIN: PINFile("/etc/pin")}},
		{"pkcs11:token=a?pin-source=/etc/pin", Config{TokenLabel: "a", PIN: PINFile("/etc/pin")}},
		{"pkcs11:token=a?pin-source=file:///etc/pin", Config{TokenLabel: "a", PIN: PINFile("/etc/pin")}},
		{"pkcs11:token=a?pin-source=env:KEYHOLD_PIN", Config{TokenLabel: "a", PIN: PINEnv("KEYHOLD_PIN")}},
		{"pkcs11:token=a?pin-source=credential:hsm.pin", Config{TokenLabel: "a", PIN: PINCredential("hsm.pin")}},
		{"pkcs11:token=%C3%A4%3B%3F%25", Config{TokenLabel: "ä;?%"}},
		{"pkcs11:token=a=b&c", Config{TokenLabel: "a=b&c"}}, // pk11-pchar has both
	} {
		got, err := ParseURI(c.uri)
		if err != nil || got != c.want {
			t.Errorf("%s: got %+v, %v", c.uri, got, err)
			continue
		}
		again, err := ParseURI(got.URI())
		if err != nil || again != got {
			t.Errorf("%s: written as %s, read as %+v, %v", c.uri, got.URI(), again, err)
		}
	}
}

func TestParseURIRefuses(t *testing.T) {
	for uri, want := range map[string]string{
		"":                                                 "starts with",
		"token=a":                                          "starts with",
		"http://token=a":                                   "starts with",
		"pkcs11:token=a?pin-value=s3cret":                  "pin-source=file:",
		"pkcs11:pin-value=s3cret":                          "pin-source=file:",
		"pkcs11:token=a?pin-value=s3%cret":                 "pin-source=file:",
		"pkcs11:slot-id=3":                                 "slots change",
		"pkcs11:slot-description=x":                        "slots change",
		"pkcs11:token=a;object=key":                        "a token is wanted",
		"pkcs11:token=a;id=%01":                            "a token is wanted",
		"pkcs11:token=a;type=private":                      "a token is wanted",
		"pkcs11:manufacturer=x":                            "not supported",
		"pkcs11:library-version=3":                         "not supported",
		"pkcs11:token=a?module-name=softhsm2":              "module-path=",
		"pkcs11:token=a;module-path=x.so":                  "behind",
		"pkcs11:token=a?x-vendor=1":                        "unknown attribute",
		"pkcs11:x-vendor=1":                                "unknown attribute",
		"pkcs11:token=a;token=b":                           "twice",
		"pkcs11:token=":                                    "is empty",
		"pkcs11:token":                                     "name=value",
		"pkcs11:=a":                                        "name=value",
		"pkcs11:token=a;":                                  "name=value",
		"pkcs11:tok en=a":                                  "character that names",
		"pkcs11:token=a b":                                 "%20",
		"pkcs11:token=a/b":                                 "%2F",
		"pkcs11:token=%4":                                  "two hex digits",
		"pkcs11:token=%zz":                                 "two hex digits",
		"pkcs11:token=%00":                                 "zero byte",
		"pkcs11:token=\xff":                                "must be written",
		"pkcs11:token=a?pin-source=s3cret":                 "PIN source: write",
		"pkcs11:token=a?pin-source=file:pin":               "absolute path",
		"pkcs11:token=a?pin-source=|/bin/ask":              "PIN source: write",
		"pkcs11:token=a?pin-source=http://x/pin":           "PIN source: write",
		"pkcs11:token=" + strings.Repeat("a", maxURIBytes): "longer than",
	} {
		c, err := ParseURI(uri)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60q: got error %v, want one with %q", uri, err, want)
			continue
		}
		if strings.Contains(err.Error(), "s3") {
			t.Errorf("%s: the error tells the PIN: %v", uri, err)
		}
		if c != (Config{}) {
			t.Errorf("%s: refused, but returned %+v", uri, c)
		}
	}
	if _, err := ParseURI("pkcs11:token=" + strings.Repeat("a", maxURIBytes-len("pkcs11:token="))); err != nil {
		t.Errorf("longest URI: %v", err)
	}
}

// FuzzParseURI: what is accepted can be written, and reads as the same.
func FuzzParseURI(f *testing.F) {
	for _, s := range []string{
		"pkcs11:token=keyhold;serial=01?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/etc/pin", "pkcs11:", "pkcs11:?", "pkcs11:token=%41%3b",
		"pkcs11:token=a?pin-source=env:A%3DB", "pkcs11:token=a?pin-source=credential:x&module-path=%2Flib", "pkcs11:slot-id=1", "pkcs11:token=a?pin-value=1",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, uri string) {
		c, err := ParseURI(uri)
		if err != nil {
			return
		}
		again, err := ParseURI(c.URI())
		if err != nil || again != c {
			t.Fatalf("%q reads as %+v, is written as %q, which reads as %+v, %v", uri, c, c.URI(), again, err)
		}
	})
}
