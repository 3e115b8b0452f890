package doctor

import (
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// user says as whom we look: what root can read says nothing about what the
// daemon can.
func (e *exam) user(dataDir string) {
	uid := os.Geteuid()
	if uid == 0 {
		e.warn("user", "root", "this runs as root; no part of Keyhold needs root", "run the daemon, and doctor, as a user of its own")
		return
	}
	if info, err := os.Stat(dataDir); dataDir != "" && err == nil {
		if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != uid {
			e.warn("user", fmt.Sprint(uid), fmt.Sprintf("the data folder belongs to user %d, not to the one who runs this", st.Uid), "run doctor as the daemon's user: what follows may differ for it")
			return
		}
	}
	e.ok("user", fmt.Sprint(uid), "not root")
}

// coreDumps looks at what the program has done to itself before it started
// this, as the daemon does.
func (e *exam) coreDumps() {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &limit); err != nil {
		e.skip("core-dumps", "", "getrlimit: "+err.Error())
		return
	}
	if limit.Cur == 0 {
		e.ok("core-dumps", "", "forbidden, as keyholdd does for itself when it starts")
		return
	}
	e.warn("core-dumps", "", "allowed: a core file would hold the PIN and plaintexts", "set LimitCORE=0 in the systemd unit, or ulimit -c 0")
}

// writable tells whether this user may write into a folder.
func writable(dir string) bool { return unix.Access(dir, unix.W_OK) == nil }

// fileModes looks at what others may read or change. The PIN's file is looked
// at by pin-source, SoftHSM's by softhsm, the data folder by store.
func (e *exam) fileModes() {
	c, before := e.cfg, len(e.report.Checks)
	for _, f := range []struct {
		path    string
		private bool // others must not even read it
	}{
		{c.Audit.Dir, true},
		{e.opts.ConfigFile, false},
		{c.GRPC.Key, true},
		{c.GRPC.Cert, false},
		{c.GRPC.ClientCA, false},
		{c.AWS.Key, true},
		{c.AWS.Cert, false},
	} {
		if f.path == "" {
			continue // the AWS door need not have any
		}
		info, err := os.Stat(f.path)
		if err != nil {
			continue // the check that needs it says so
		}
		e.fileMode(f.path, info, f.private)
	}
	if len(e.report.Checks) == before {
		e.ok("file-modes", "", "others cannot read keys, records or the audit log, nor change anything that is configured")
	}
}

// fileMode checks one file. A group may be one that the operator trusts, so
// that reading by it is a warning.
func (e *exam) fileMode(path string, info fs.FileInfo, private bool) {
	mode := info.Mode().Perm()
	want := fs.FileMode(0o644)
	switch {
	case private && info.IsDir():
		want = 0o700
	case private:
		want = 0o600
	case info.IsDir():
		want = 0o755
	}
	fact, remedy := fmt.Sprintf("its mode is %04o", mode), fmt.Sprintf("chmod %04o %s", want, path)
	switch {
	case mode&0o022 != 0:
		e.fail("file-modes", path, fact+": others may change it", remedy)
	case private && mode&0o007 != 0:
		e.fail("file-modes", path, fact+": everybody on this host may read it", remedy+"; what others may have read is not secret any more")
	case private && mode&0o070 != 0:
		e.warn("file-modes", path, fact+": its group may read it", remedy)
	}
}
