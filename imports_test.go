package keyhold_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/keyhold/keyhold/"

// reasons maps an allowed import to why it is allowed.
type reasons map[string]string

// internalImports is a statement of policy: which packages of ours each
// package of ours may import, in code that is not a test. Imports point one
// way: cmd, server, doors, kms, then {policy, audit, identity, hsm}; leaves
// import nothing of ours. The generated proto package may be imported by all.
//
// It is not edited to make a build pass. A new line is a decision about the
// architecture and says its reason; ARCHITECTURE.md shows the picture.
var internalImports = map[string]reasons{
	"proto/keyhold/v1": {},
	"proto/awsjson":    {},
	"proto/wirebuf":    {}, // it encodes whatever message it is given

	"hsm/pubkey": {},
	"hsm": {
		"hsm/pubkey": "public keys leave as SPKI, and pairwise tests are made with host code",
	},
	"hsm/witness": {
		"hsm":        "the parent process makes keys with it, and looks at what the child made",
		"hsm/pubkey": "it checks what one library made with the other, by the public key",
	},
	"hsm/hsmtest": {
		"hsm":                 "the suite that every token must pass",
		"hsm/hsmtest/vectors": "the vectors that the suite uses",
		"hsm/pubkey":          "host code that must agree with the token",
		"softhsm-config":      "its fixture is a SoftHSM token",
	},
	"hsm/hsmtest/fault":   {},
	"hsm/hsmtest/vectors": {},
	"softhsm-config": {
		"hsm": "it initialises tokens through the sole importer of PKCS#11",
	},

	"server/policy":     {},
	"server/identity":   {},
	"server/audit":      {},
	"server/sigv4":      {}, // two doors use it, with other services and other keys
	"server/sigv4/sign": {}, // nor does it share code with the verifier: each is a test of the other

	"server/identity/credentials": {
		"server/identity": "the access keys",
		"server/sigv4":    "which neither knows nor is known by them",
	},

	"server/kms": {
		"server/policy":      "the decision of step 6",
		"server/identity":    "who calls",
		"server/audit":       "steps 10 and 12: the records",
		"server/kms/keypair": "data key pairs, which are made on the host",
		"hsm/pubkey":         "public-key operations are done on the host",
		"proto/awsjson":      "audit events show requests as AWS's JSON",
	},
	"server/kms/keypair": {
		"hsm/pubkey": "the public half is written as every other public key is",
	},
	"server/kms/tokenstore": {
		"server/kms":    "it implements kms.KeyStore",
		"hsm":           "over a token; the core itself knows no PKCS#11",
		"proto/awsjson": "its errors name algorithms as AWS spells them",
	},

	"server/store/sqlite": {
		"server/kms":      "it implements kms.Store",
		"server/identity": "it implements identity.AccessKeyStore",
	},
	"server/store/storetest": {
		"server/kms":      "the promises of kms.Store, as subtests",
		"server/identity": "the promises of identity.AccessKeyStore, as subtests",
	},

	"server/door": {},
	"server/grpcapi": {
		"server/door":     "what all doors have in common",
		"server/kms":      "a door calls the core",
		"server/identity": "a door authenticates",
		"proto/wirebuf":   "answers are encoded in buffers that are wiped",
	},
	"server/awsapi/violations": {
		"server/kms":    "the core's violations, said in AWS's words",
		"proto/awsjson": "AWS's names of members and values",
	},
	"server/awsapi": {
		"server/door":              "what all doors have in common",
		"server/kms":               "a door calls the core",
		"server/identity":          "a door authenticates",
		"server/sigv4":             "by the signature",
		"server/awsapi/violations": "what is wrong with a request, in AWS's words",
		"proto/awsjson":            "it decodes requests and encodes answers",
	},
	"server/adminapi": {
		"server/kms":   "metrics and readiness of the core",
		"server/audit": "metrics of the journal",
		"hsm":          "metrics of tokens",
	},
	"server": {
		"server/kms":                  "wiring",
		"server/kms/tokenstore":       "wiring",
		"server/store/sqlite":         "wiring",
		"server/audit":                "wiring",
		"server/identity":             "wiring",
		"server/identity/credentials": "wiring",
		"server/door":                 "wiring",
		"server/grpcapi":              "wiring",
		"server/awsapi":               "wiring",
		"server/sigv4":                "wiring",
		"server/adminapi":             "wiring",
		"hsm":                         "wiring",
	},

	"server/servertest": {
		"client":              "it sees the daemon as its clients do",
		"server":              "it writes the daemon's configuration",
		"server/audit":        "it verifies the journal",
		"server/kms":          "what records and tokens must agree on",
		"server/store/sqlite": "it looks at the store beside the daemon",
		"hsm":                 "it looks at the token beside the daemon",
		"hsm/hsmtest/fault":   "the library that the daemon loads",
	},

	"server/dev": {
		"server":          "it makes the world that server.Run runs in",
		"server/identity": "the first principal",
		"softhsm-config":  "it makes the token",
	},

	"server/backup": {
		"server":              "the configuration, and the mark that keeps the daemon from starting",
		"server/kms":          "what records and tokens must agree on",
		"server/store/sqlite": "it copies the store, and counts seals in advance",
		"server/audit":        "it copies the journal, and records the restore",
		"hsm":                 "it lists what tokens hold, and finds SoftHSM's folders",
		"softhsm-config":      "a configuration of SoftHSM for tokens that are staged",
	},

	"server/tokenbench": {
		"hsm":            "the token that it measures",
		"hsm/pubkey":     "names of signature algorithms",
		"internal/bench": "the form of its results",
		"softhsm-config": "a token of its own, where none is named",
	},

	"server/doctor": {
		"server":              "it reads the same configuration",
		"server/kms":          "what records and tokens must agree on",
		"server/store/sqlite": "it looks at the store",
		"server/audit":        "it looks at the journal",
		"server/identity":     "it looks at access keys, and whose they are",
		"hsm":                 "it looks at tokens without a server",

		"server/kms/tokenstore": "it opens the secrets of access keys as the server does",
		"hsm/witness":           "it runs the witness",
		"proto/awsjson":         "it names key types as AWS spells them",
	},

	"internal/bench": {},
	"internal/benchrun": {
		"internal/bench":      "it reads the results of all benchmarks",
		"client":              "it times the pages of lists",
		"server/kms":          "the records that it fills a database with",
		"server/store/sqlite": "it fills the database of a server that is stopped",
	},

	"client": {
		"proto/wirebuf": "requests are encoded in buffers that are wiped",
	},
	"client/tinkaead": {
		"client": "errors and options of the client",
	},
	"client/internal/daemontest": {
		"client": "it makes the keys that tests and examples use",
	},
	"client/filecrypt": {}, // it takes the client as two interfaces
	"cmd/keyhold": {
		"client":           "the tool is a client",
		"client/filecrypt": "keyhold file",
		"proto/awsjson":    "--output json has AWS's member names",
		"server/audit":     "keyhold audit verify, offline",
		"internal/bench":   "keyhold bench prints what all benchmarks do",

		"server/sigv4/sign": "keyhold bench signs requests for the AWS door; pure Go, no part of the server",
	},
	"cmd/keyholdd": {
		"server":              "the daemon",
		"server/audit":        "an anchor on restore's command line",
		"server/backup":       "keyholdd backup and restore",
		"server/dev":          "keyholdd dev",
		"server/doctor":       "keyholdd doctor",
		"server/kms":          "keyholdd orphans shows what the core found",
		"server/tokenbench":   "keyholdd bench-token",
		"server/store/sqlite": "bench-token keeps the daemon from starting meanwhile",
		"internal/bench":      "bench-token prints what all benchmarks do",
		"hsm":                 "doctor's --token is a pkcs11: URI",
		"hsm/witness":         "keyholdd witness, the child process",
	},
}

// outsideImports says who may import what from other modules; tests count. A
// module's path covers the packages below it. A new dependency is argued in
// its commit.
var outsideImports = map[string]struct {
	reason   string
	users    []string // packages of ours, as patterns of the go command
	testers  []string // packages of ours whose tests may as well
	testOnly bool     // may be imported by tests, and by hsmtest, only
}{
	"github.com/miekg/pkcs11": {
		reason: "PKCS#11 is spoken in one place",
		users:  []string{"hsm", "hsm/hsmtest"},
	},
	"github.com/ThalesIgnite/crypto11": {
		reason: "the independent witness; it wants to own C_Initialize, so nobody else may load it",
		users:  []string{"hsm/witness"},
	},
	"github.com/mattn/go-sqlite3": {
		reason:  "the embedded store",
		users:   []string{"server/store/sqlite"},
		testers: []string{"cmd/keyholdd", "server/servertest"}, // they change and lock records behind the daemon's back
	},
	"google.golang.org/grpc": {
		reason: "the wire; the core does not know it",
		users:  []string{"proto/keyhold/v1", "proto/wirebuf", "server/grpcapi", "client/...", "server", "server/servertest", "cmd/..."},
	},
	"google.golang.org/genproto/googleapis/rpc": {
		reason:  "ErrorInfo in a gRPC status",
		users:   []string{"server/grpcapi", "client"},
		testers: []string{"client/tinkaead"}, // they make a refusal
	},
	"google.golang.org/protobuf": {
		reason: "the API's messages and descriptors",
		users:  []string{"proto/...", "server/kms", "server/grpcapi", "server/awsapi/...", "client/...", "cmd/..."},
	},
	"buf.build/gen/go/bufbuild/protovalidate": {
		reason: "options of the fields, imported by generated code",
		users:  []string{"proto/...", "server/kms", "server/awsapi/violations"},
	},
	"buf.build/go/protovalidate": {
		reason: "step 2, for every door; what it finds is said in AWS's words",
		users:  []string{"server/kms", "server/awsapi/violations"},
	},
	"github.com/prometheus/client_golang": {
		reason: "/metrics",
		users:  []string{"server", "server/adminapi"},
	},
	"github.com/prometheus/client_model": {
		reason:   "tests read metrics",
		users:    []string{"server", "server/adminapi"},
		testOnly: true,
	},
	"github.com/spf13/cobra": {
		reason: "commands, flags and shell completion",
		users:  []string{"cmd/..."},
	},
	"go.yaml.in/yaml/v3": {
		reason:  "configuration",
		users:   []string{"server", "server/dev", "server/servertest", "cmd/..."},
		testers: []string{"server/doctor"}, // they write configurations
	},
	"github.com/tink-crypto/tink-go/v2": {
		reason: "its interfaces, and its streaming AEAD instead of a construction of our own; who uses neither does not get it",
		users:  []string{"client/tinkaead", "client/filecrypt"},
	},
	"github.com/google/uuid": {
		reason: "ids of keys, events and requests",
		users:  []string{"server/kms", "server/audit", "server/grpcapi", "server/awsapi", "server/backup"},
	},
	"github.com/decred/dcrd/dcrec/secp256k1/v4": {
		reason: "the curve that the standard library lacks; host side only",
		users:  []string{"hsm/pubkey", "server/kms/keypair"},
	},
	"golang.org/x/sys": {
		reason: "fallocate, fdatasync, locks, resource limits, disk space",
		users:  []string{"hsm", "server/audit", "server/store/sqlite", "server", "server/backup", "server/doctor", "server/tokenbench", "cmd/..."},
	},
	"golang.org/x/time": {
		reason: "rate limits",
		users:  []string{"server/kms", "server/door"},
	},
	"golang.org/x/sync": {
		reason: "groups of goroutines",
		users:  []string{"..."},
	},
	"golang.org/x/crypto": {
		reason: "what the standard library lacks; no second implementation of what the token does",
		users:  []string{"hsm/...", "server/...", "cmd/..."},
	},
	"github.com/c2sp/wycheproof": {
		reason:   "vectors",
		users:    []string{"hsm/..."},
		testOnly: true,
	},
	"github.com/google/go-cmp":        {reason: "differences in tests", users: []string{"..."}, testOnly: true},
	"github.com/rogpeppe/go-internal": {reason: "testscript, end to end", users: []string{"cmd/..."}, testOnly: true},
	"go.uber.org/goleak":              {reason: "no goroutine is left behind", users: []string{"..."}, testOnly: true},
}

// guardedStandard says who may import these packages of the standard library,
// in code that is not a test. All others are free.
var guardedStandard = map[string]reasons{
	"C": {
		"hsm": "calls that carry secrets go past the binding, which leaves copies in freed memory",
	},
	"unsafe": {
		"hsm":               "buffers handed to C",
		"hsm/hsmtest/fault": "memory shared with the library that misbehaves",
		"proto/keyhold/v1":  "generated code",
	},
	"database/sql": {
		"server/store/sqlite": "SQL stays behind kms.Store",
	},
	"os/exec": {
		"cmd/keyholdd":      "the witness runs in a child process",
		"cmd/keyhold":       "keyhold aws finds the AWS CLI",
		"hsm/witness":       "the witness runs in a child process",
		"hsm/hsmtest/fault": "it compiles its library",
		"server/servertest": "it builds and runs the daemon",

		"client/internal/daemontest": "it builds and runs the daemon",
		"internal/benchrun":          "it runs the programs that it measures",
	},
	"net/http": {
		"server":          "it runs the admin listener",
		"server/adminapi": "the admin listener is HTTP",
		"server/awsapi":   "the AWS door is HTTP",
		"server/sigv4":    "it verifies requests as net/http's server reads them",
		"cmd/keyhold":     "keyhold status asks the admin listener",

		"server/sigv4/sign": "it signs net/http's requests",
		"internal/benchrun": "it reads the memory of the server that it measures",
		"server/servertest": "it asks the admin listener",
	},
	"log":            {}, // a *slog.Logger is passed in
	"math/rand":      {}, // what is random here decides about secrets
	"math/rand/v2":   {}, // the same
	"net/http/pprof": {}, // it registers itself, and a heap profile is a copy of secrets' whereabouts
	"plugin":         {},
}

func TestImports(t *testing.T) {
	files := goFiles(t)
	seen := map[string]bool{}
	used := map[[2]string]bool{}
	for _, f := range files {
		if !f.test {
			seen[f.pkg] = true
		}
		for _, imp := range f.imports {
			if own, ok := strings.CutPrefix(imp, module); ok && !f.test {
				used[[2]string{f.pkg, own}] = true
			}
			if err := checkImport(f, imp); err != nil {
				t.Errorf("%s: %v", f.path, err)
			}
		}
	}
	for pkg := range seen {
		if _, ok := internalImports[pkg]; !ok {
			t.Errorf("package %s has no row in internalImports: decide what it may import, and say why", pkg)
		}
	}
	for pkg, allowed := range internalImports {
		if !seen[pkg] {
			t.Errorf("internalImports has a row for %s, which is not there", pkg)
		}
		for imp, reason := range allowed {
			if !used[[2]string{pkg, imp}] {
				t.Errorf("%s may import %s and does not: the table says no more than is true", pkg, imp)
			}
			if reason == "" {
				t.Errorf("%s may import %s: no reason", pkg, imp)
			}
		}
	}
}

// checkImport says what is wrong with an import, or nil.
func checkImport(f goFile, imp string) error {
	if own, ok := strings.CutPrefix(imp, module); ok {
		if f.test || own == "proto/keyhold/v1" || internalImports[f.pkg][own] != "" {
			return nil
		}
		return fmt.Errorf("%s may not import %s: imports point one way (internalImports)", f.pkg, own)
	}
	if first, _, _ := strings.Cut(imp, "/"); strings.Contains(first, ".") {
		return checkOutside(f, imp)
	}
	if who, guarded := guardedStandard[imp]; guarded && !f.test && who[f.pkg] == "" {
		return fmt.Errorf("%s may not import %q; those who may: %v (guardedStandard)", f.pkg, imp, slices.Sorted(maps.Keys(who)))
	}
	return nil
}

func checkOutside(f goFile, imp string) error {
	for path, rule := range outsideImports {
		if !within(imp, path) {
			continue
		}
		if rule.testOnly && !f.test && !within(f.pkg, "hsm/hsmtest") {
			return fmt.Errorf("%s is for tests only", path)
		}
		allowed := func(pattern string) bool { return matches(pattern, f.pkg) }
		if slices.ContainsFunc(rule.users, allowed) || f.test && slices.ContainsFunc(rule.testers, allowed) {
			return nil
		}
		return fmt.Errorf("%s may not import %s: %s (outsideImports)", f.pkg, imp, rule.reason)
	}
	return fmt.Errorf("%s imports %s, a module without a row in outsideImports: say who may use it, and why", f.pkg, imp)
}

// within reports whether path is dir or below it.
func within(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

// matches reports whether pkg is pattern, or below a pattern that ends in "...".
func matches(pattern, pkg string) bool {
	if pattern == "..." {
		return true
	}
	if dir, ok := strings.CutSuffix(pattern, "/..."); ok {
		return within(pkg, dir)
	}
	return pkg == pattern
}

// TestImportPolicyRefuses shows that the check above can fail.
func TestImportPolicyRefuses(t *testing.T) {
	for _, c := range []struct {
		name, pkg, imp string
		test, ok       bool
	}{
		{name: "a door may call the core", pkg: "server/grpcapi", imp: module + "server/kms", ok: true},
		{name: "the core may not call a door", pkg: "server/kms", imp: module + "server/grpcapi"},
		{name: "the core may not know PKCS#11", pkg: "server/kms", imp: module + "hsm"},
		{name: "its test may", pkg: "server/kms", imp: module + "hsm/hsmtest", test: true, ok: true},
		{name: "a leaf imports the proto", pkg: "server/policy", imp: module + "proto/keyhold/v1", ok: true},
		{name: "hsm speaks PKCS#11", pkg: "hsm", imp: "github.com/miekg/pkcs11", ok: true},
		{name: "its fixture does", pkg: "hsm/hsmtest", imp: "github.com/miekg/pkcs11", ok: true},
		{name: "below it nobody else does", pkg: "hsm/pubkey", imp: "github.com/miekg/pkcs11"},
		{name: "not even a test", pkg: "server/kms", imp: "github.com/miekg/pkcs11", test: true},
		{name: "the witness does not", pkg: "hsm/witness", imp: "github.com/miekg/pkcs11"},
		{name: "crypto11 is the witness's", pkg: "hsm/witness", imp: "github.com/ThalesIgnite/crypto11", ok: true},
		{name: "and only its", pkg: "hsm", imp: "github.com/ThalesIgnite/crypto11"},
		{name: "the core does not know gRPC", pkg: "server/kms", imp: "google.golang.org/grpc/codes"},
		{name: "the door does", pkg: "server/grpcapi", imp: "google.golang.org/grpc/codes", ok: true},
		{name: "an unknown module", pkg: "server", imp: "example.com/left-pad"},
		{name: "a test library in a test", pkg: "client", imp: "github.com/google/go-cmp/cmp", test: true, ok: true},
		{name: "a test library elsewhere", pkg: "client", imp: "github.com/google/go-cmp/cmp"},
		{name: "Tink in its package", pkg: "client/tinkaead", imp: "github.com/tink-crypto/tink-go/v2/tink", ok: true},
		{name: "Tink in the client", pkg: "client", imp: "github.com/tink-crypto/tink-go/v2/tink"},
		{name: "SQL in the daemon", pkg: "cmd/keyholdd", imp: "github.com/mattn/go-sqlite3"},
		{name: "SQL in its test", pkg: "cmd/keyholdd", imp: "github.com/mattn/go-sqlite3", test: true, ok: true},
		{name: "the global logger", pkg: "server", imp: "log"},
		{name: "the passed one", pkg: "server", imp: "log/slog", ok: true},
		{name: "cgo in the tool", pkg: "cmd/keyhold", imp: "C"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := checkImport(goFile{pkg: c.pkg, test: c.test}, c.imp)
			if (err == nil) != c.ok {
				t.Errorf("checkImport(%s, %s) = %v, want allowed %t", c.pkg, c.imp, err, c.ok)
			}
		})
	}
}
