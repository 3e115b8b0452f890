//go:build unix

package main

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

// ownedByCaller refuses a file that someone else owns or may write.
func ownedByCaller(info fs.FileInfo) error {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return errors.New("its owner cannot be told")
	}
	if int64(st.Uid) != int64(os.Geteuid()) {
		return errors.New("it belongs to another user")
	}
	if info.Mode().Perm()&0o022 != 0 {
		return errors.New("others may write it; chmod 600 it if you trust it")
	}
	return nil
}
