package doctor

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/keyhold/keyhold/hsm"
)

// softhsm looks at SoftHSM's own configuration, and where it keeps its tokens.
func (e *exam) softhsm() {
	conf, tokens, err := hsm.SoftHSM()
	const remedy = "set SOFTHSM2_CONF in the token's environment to a file that softhsm-config/softhsm2.conf is the template of"
	if err != nil {
		e.fail("softhsm", conf, cause(err), remedy)
		return
	}
	if mode, ok := writableByOthers(conf); ok {
		e.fail("softhsm", conf, fmt.Sprintf("its mode is %04o: others may point the daemon at other tokens", mode), "chmod go-w "+conf)
		return
	}
	info, err := os.Stat(tokens)
	switch {
	case err != nil:
		e.fail("softhsm", conf, "the folder of tokens: "+err.Error(), remedy)
	case !info.IsDir():
		e.fail("softhsm", conf, tokens+" is no folder", remedy)
	case info.Mode().Perm()&0o022 != 0:
		e.fail("softhsm", tokens, fmt.Sprintf("its mode is %04o: others may put other objects there, or take keys away", info.Mode().Perm()), "chmod 0700 "+tokens)
	case !writable(tokens):
		e.fail("softhsm", tokens, "this user cannot write there, so that keys can neither be made nor destroyed", "run doctor as the daemon's user, and give the folder to it")
	case info.Mode().Perm()&0o077 != 0:
		e.warn("softhsm", tokens, fmt.Sprintf("its mode is %04o: others may copy the token's files, which nothing but the PIN protects", info.Mode().Perm()), "chmod 0700 "+tokens)
	case os.Getenv("SOFTHSM2_CONF") == "":
		e.warn("softhsm", conf, "SOFTHSM2_CONF is not set: which tokens there are depends on who runs the daemon", remedy)
	default:
		e.ok("softhsm", conf, "tokens are in "+filepath.Clean(tokens)+", for this user alone")
	}
}
