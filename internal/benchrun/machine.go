package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// machine is where and what was measured.
type machine struct {
	cpu, kernel, disk, memory, loadBefore, commit string
	began                                         time.Time
}

// lookAtMachine describes the machine; dir is on the disk that is measured.
func lookAtMachine(ctx context.Context, dir string) machine {
	m := machine{
		cpu: "unknown", kernel: firstLine("/proc/sys/kernel/osrelease"), disk: "unknown", memory: "unknown",
		loadBefore: load(), commit: "unknown", began: time.Now(),
	}
	if name := field("/proc/cpuinfo", "model name"); name != "" {
		m.cpu = name
	}
	if kib, err := strconv.Atoi(strings.TrimSuffix(field("/proc/meminfo", "MemTotal"), " kB")); err == nil {
		m.memory = fmt.Sprintf("%.1f GiB", float64(kib)/(1<<20))
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err == nil {
		if real, err := filepath.EvalSymlinks(dir); err == nil {
			m.disk = fileSystem(mounts, real)
		}
	}
	if out, err := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty", "--abbrev=12").Output(); err == nil {
		m.commit = strings.TrimSpace(string(out))
	}
	return m
}

// text describes the machine and the run.
func (m machine) text(command string) string {
	return fmt.Sprintf("Measured on %s in %s by `%s`, at commit %s. CPU: %s, %d of them for client and server; memory %s; "+
		"%s %s; file system %s; %s. Load average before: %s, after (with the benchmark's own): %s.\n",
		m.began.UTC().Format(time.DateOnly), time.Since(m.began).Round(time.Second), command, m.commit, m.cpu, runtime.NumCPU(), m.memory,
		runtime.GOOS, m.kernel, m.disk, runtime.Version(), m.loadBefore, load())
}

// fileSystem finds the type of the file system that path is on, in the form of
// /proc/self/mountinfo (proc(5)).
func fileSystem(mounts []byte, path string) string {
	best, kind := "", "unknown"
	for s := bufio.NewScanner(bytes.NewReader(mounts)); s.Scan(); {
		before, after, ok := strings.Cut(s.Text(), " - ")
		fields, types := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(types) < 1 {
			continue
		}
		at := fields[4]
		within := at == "/" || path == at || strings.HasPrefix(path, at+"/")
		if within && len(at) >= len(best) {
			best, kind = at, types[0]
		}
	}
	return kind
}

func firstLine(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return "unknown"
	}
	line, _, _ := strings.Cut(string(b), "\n")
	return line
}

// field reads what stands behind a name and a colon.
func field(path, name string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		key, value, ok := strings.Cut(line, ":")
		if ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// load is the load average of the last minute.
func load() string {
	one, _, _ := strings.Cut(firstLine("/proc/loadavg"), " ")
	return one
}
