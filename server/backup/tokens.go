package backup

import (
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/keyhold/keyhold/hsm"
	"github.com/keyhold/keyhold/server"
	"github.com/keyhold/keyhold/server/kms"
	softhsmconfig "github.com/keyhold/keyhold/softhsm-config"
)

const (
	// tokenWait bounds the opening and listing of one token.
	tokenWait = 2 * time.Minute
	// closeWait bounds the closing of tokens.
	closeWait = 10 * time.Second

	// softhsmMaker is what SoftHSM says in CK_TOKEN_INFO.manufacturerID.
	softhsmMaker = "SoftHSM project"
)

// token is a token of the configuration.
type token struct {
	name string
	cfg  hsm.Config
	slot hsm.SlotInfo
}

// softhsm tells whether the token's files are in the backup.
func (t *token) softhsm() bool { return t.slot.Manufacturer == softhsmMaker }

// setEnvironment sets what the configuration wants for tokens, as serve does.
func setEnvironment(cfg *server.Config) error {
	for _, t := range cfg.Tokens {
		for name, value := range t.Environment {
			if err := os.Setenv(name, value); err != nil {
				return fmt.Errorf("set %s for the token %s: %w", name, t.Name, err)
			}
		}
	}
	return nil
}

// modules looks at each PKCS#11 library once.
type modules map[string]hsm.ModuleInfo

func (m modules) inspect(ctx context.Context, path string) (hsm.ModuleInfo, error) {
	if info, ok := m[path]; ok {
		return info, nil
	}
	ctx, cancel := context.WithTimeout(ctx, tokenWait)
	defer cancel()
	info, err := hsm.InspectModule(ctx, path)
	if err == nil {
		m[path] = info
	}
	return info, err
}

// findTokens finds the configuration's tokens where they are now. It logs in
// nowhere.
func findTokens(ctx context.Context, cfg *server.Config) ([]*token, error) {
	var found []*token
	libraries := make(modules)
	for _, c := range cfg.Tokens {
		t := &token{name: c.Name}
		var err error
		if t.cfg, err = c.HSM(); err != nil {
			return nil, fmt.Errorf("token %s: %w", c.Name, err)
		}
		info, err := libraries.inspect(ctx, t.cfg.Module)
		if err != nil {
			return nil, fmt.Errorf("token %s: %w", c.Name, err)
		}
		slots := slices.DeleteFunc(slices.Clone(info.Slots), func(s hsm.SlotInfo) bool { return !names(t.cfg, s) })
		if len(slots) != 1 {
			return nil, fmt.Errorf("token %s: there are %d tokens with label %q and serial number %q in %s; hint: `keyholdd doctor` lists them", c.Name, len(slots), t.cfg.TokenLabel, t.cfg.TokenSerial, t.cfg.Module)
		}
		t.slot = slots[0]
		found = append(found, t)
	}
	return found, nil
}

// names tells whether the configuration names the token in a slot.
func names(c hsm.Config, s hsm.SlotInfo) bool {
	return s.Initialized && (c.TokenLabel == "" || c.TokenLabel == s.Label) && (c.TokenSerial == "" || c.TokenSerial == s.Serial)
}

// stageConfig makes SoftHSM read the tokens below stage/tokens, in this process,
// and returns what puts its configuration back.
func stageConfig(stage string) (restore func(), err error) {
	conf, err := softhsmconfig.WriteConfig(stage)
	if err != nil {
		return nil, err
	}
	old, had := os.LookupEnv(softhsmconfig.EnvConf)
	if err := os.Setenv(softhsmconfig.EnvConf, conf); err != nil {
		return nil, err
	}
	return func() {
		if had {
			os.Setenv(softhsmconfig.EnvConf, old) // it was a good value before
		} else {
			os.Unsetenv(softhsmconfig.EnvConf)
		}
	}, nil
}

// compare opens the tokens and compares what is in them with records. A PIN is tried
// once, and not where that might be the last try: this may run each night.
func compare(ctx context.Context, cfg *server.Config, instance string, records []*kms.KeyRecord) ([]kms.Orphan, error) {
	tokens, err := findTokens(ctx, cfg)
	if err != nil {
		return nil, err
	}
	objects := make(map[string][]kms.StoredObject)
	for _, t := range tokens {
		if t.slot.PIN.Locked || t.slot.PIN.FinalTry {
			return nil, fmt.Errorf("token %s: its PIN is locked, or has one try left: no login is tried", t.name)
		}
		if objects[t.name], err = list(ctx, t.cfg); err != nil {
			return nil, fmt.Errorf("token %s: %w", t.name, err)
		}
	}
	var orphans []kms.Orphan
	seen := make(map[string]bool)
	for _, r := range cfg.Regions {
		// Nobody is at work: each unfinished creation is one.
		found := kms.FindOrphans(kms.Comparison{
			Instance: instance, Region: kms.Region(r.Name), Before: records, After: records, Objects: objects[r.Token], Begun: time.Now().AddDate(100, 0, 0),
		})
		for _, o := range found {
			place := fmt.Sprintf("%s %s %x %s", r.Token, o.Kind, o.ObjectID, o.Label)
			if !seen[place] { // regions may share a token
				seen[place] = true
				orphans = append(orphans, o)
			}
		}
	}
	return orphans, nil
}

// list opens a token, tries its PIN once, and lists its objects.
func list(ctx context.Context, cfg hsm.Config) ([]kms.StoredObject, error) {
	ctx, cancel := context.WithTimeout(ctx, tokenWait)
	defer cancel()
	t, err := hsm.OpenOnce(ctx, cfg, hsm.Options{})
	if err != nil {
		return nil, err
	}
	defer func() {
		wait, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeWait)
		defer cancel()
		_ = t.Close(wait) // what hangs ends with the process
	}()
	objects, err := t.Objects(ctx)
	if err != nil {
		return nil, err
	}
	stored := make([]kms.StoredObject, 0, len(objects))
	for _, o := range objects {
		stored = append(stored, kms.StoredObject{ID: o.ID, Label: o.Label, Public: o.Class != hsm.ClassSecretKey && o.Class != hsm.ClassPrivateKey})
	}
	return stored, nil
}
