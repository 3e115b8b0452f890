package doctor

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keyhold/keyhold/hsm"
	"github.com/keyhold/keyhold/hsm/hsmtest"
)

// custodyWords is how pkcs11-tool calls what doctor checks.
var custodyWords = []string{"sensitive", "always sensitive", "never extractable", "local"} // never changed

// listed is what both say about one object.
type listed struct {
	Class, Label, ID string
	Words            []string
}

func (l listed) key() string { return l.Class + " " + l.ID + " " + l.Label }

// TestAgreesWithPKCS11Tool has a token as `keyholdd dev` makes it, with a key
// of every kind, and wants doctor and pkcs11-tool (OpenSC) to say the same of
// each private and secret object.
func TestAgreesWithPKCS11Tool(t *testing.T) {
	tool := pkcs11Tool(t)
	f := hsmtest.New(t)
	token := f.Open(t)
	total := 1 // the canary
	for _, spec := range hsm.KeySpecs() {
		for _, purpose := range spec.Purposes() {
			name := fmt.Sprintf("%s %s", spec, purpose)
			_, err := token.Generate(t.Context(), hsm.GenerateRequest{Spec: spec, Purpose: purpose, ID: hsmtest.ID(name), Label: "keyhold:0a1b2c3d:" + name})
			if err != nil {
				t.Fatalf("generate %s: %v", name, err)
			}
			total++
		}
	}
	hsmtest.Close(t, token)

	r := Run(t.Context(), Options{Token: f.Config()})
	want(t, r, "custody", OK, fmt.Sprintf("%d private or secret objects, %d of Keyhold: all sensitive, always sensitive, never extractable, local and private", total, total))
	theirs := listObjects(t, tool, f)
	if d := cmp.Diff(ofReport(r), theirs); d != "" {
		t.Errorf("doctor and pkcs11-tool do not agree (-doctor +pkcs11-tool):\n%s", d)
	}
	if len(theirs) != total {
		t.Errorf("pkcs11-tool lists %d private and secret objects, want %d", len(theirs), total)
	}
	for _, o := range theirs {
		if d := cmp.Diff(custodyWords, o.Words); d != "" {
			t.Errorf("pkcs11-tool says of %s (-want +got):\n%s", o.key(), d)
		}
	}
}

// TestFindsWhatMayLeave has keys that pkcs11-tool made without care: both say
// so, and doctor fails where one bears a label of Keyhold.
func TestFindsWhatMayLeave(t *testing.T) {
	tool := pkcs11Tool(t)
	f := hsmtest.New(t)
	keygen := func(label, id string) {
		t.Helper()
		runTool(t, tool, f, "--keygen", "--key-type", "AES:32", "--label", label, "--id", id, "--extractable")
	}
	keygen("mine", "01")
	r := Run(t.Context(), Options{Token: f.Config()})
	want(t, r, "custody", Warn, "1 that Keyhold did not make")

	keygen("keyhold:0a1b2c3d:forged", "02")
	r = Run(t.Context(), Options{Token: f.Config()})
	want(t, r, "custody", Fail, `secret key "keyhold:0a1b2c3d:forged", CKA_ID 02`)
	want(t, r, "custody", Fail, "CKA_NEVER_EXTRACTABLE is false")
	if d := cmp.Diff(ofReport(r), listObjects(t, tool, f)); d != "" {
		t.Errorf("doctor and pkcs11-tool do not agree (-doctor +pkcs11-tool):\n%s", d)
	}
}

// pkcs11Tool finds the program. It is not installed by the tests.
func pkcs11Tool(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("pkcs11-tool")
	if err != nil {
		const remedy = "pkcs11-tool is missing, with which doctor is compared: install the package opensc"
		if os.Getenv("CI") != "" {
			t.Fatal(remedy)
		}
		t.Skip(remedy)
	}
	return path
}

// runTool runs pkcs11-tool, logged in to the fixture's token. The PIN goes
// through the environment: arguments can be seen by everybody.
func runTool(t *testing.T, tool string, f *hsmtest.Fixture, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), tool, append([]string{"--module", f.Module, "--token-label", f.Label, "--login", "--pin", "env:KEYHOLD_TEST_PIN"}, args...)...)
	cmd.Env = append(os.Environ(), "SOFTHSM2_CONF="+f.Conf, "KEYHOLD_TEST_PIN="+readFile(t, f.PINFile))
	var complaints bytes.Buffer // also where all is well: it tries to read the values of keys
	cmd.Stderr = &complaints
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("pkcs11-tool %v: %v\n%s", args, err, complaints.String())
	}
	return string(out)
}

// listObjects reads what `pkcs11-tool --list-objects` prints: a line per
// object, and indented lines with its attributes.
func listObjects(t *testing.T, tool string, f *hsmtest.Fixture) []listed {
	t.Helper()
	var all []listed
	inside := false
	lines := bufio.NewScanner(strings.NewReader(runTool(t, tool, f, "--list-objects")))
	for lines.Scan() {
		line := lines.Text()
		if !strings.HasPrefix(line, " ") {
			class, _, isObject := strings.Cut(line, " Key Object")
			inside = isObject && class != "Public"
			if inside {
				all = append(all, listed{Class: strings.ToLower(class) + " key"})
			}
			continue
		}
		name, value, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !inside || !ok {
			continue
		}
		o, value := &all[len(all)-1], strings.TrimSpace(value)
		switch name {
		case "label":
			o.Label = value
		case "ID":
			o.ID = value
		case "Access":
			for _, word := range strings.Split(value, ", ") {
				if slices.Contains(custodyWords, word) {
					o.Words = append(o.Words, word)
				}
			}
		}
	}
	return sorted(all)
}

// ofReport says what doctor found in the words of pkcs11-tool.
func ofReport(r *Report) []listed {
	var all []listed
	for _, o := range r.Tokens[0].Objects {
		l := listed{Class: o.Class, Label: o.Label, ID: o.ID}
		for i, has := range []bool{o.Sensitive, o.AlwaysSensitive, o.NeverExtractable, o.Local} {
			if has {
				l.Words = append(l.Words, custodyWords[i])
			}
		}
		all = append(all, l)
	}
	return sorted(all)
}

func sorted(all []listed) []listed {
	for i := range all {
		slices.SortFunc(all[i].Words, func(a, b string) int { return slices.Index(custodyWords, a) - slices.Index(custodyWords, b) })
	}
	slices.SortFunc(all, func(a, b listed) int { return strings.Compare(a.key(), b.key()) })
	return all
}
