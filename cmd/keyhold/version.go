package main

import (
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Example: "  keyhold version --output json",
		Args:    noArguments,
		RunE: func(*cobra.Command, []string) error {
			platform := runtime.GOOS + "/" + runtime.GOARCH
			if a.output == outputJSON {
				b, err := json.Marshal(struct{ Version, Go, Platform string }{a.versionText(), runtime.Version(), platform})
				if err != nil {
					return err
				}
				return a.printJSON(b)
			}
			return a.write(fmt.Appendf(nil, "keyhold %s (%s, %s)\n", a.versionText(), runtime.Version(), platform))
		},
	}
}

// versionText is what the build was told, else what the go command noted,
// which is the version of `go install …@version`.
func (a *app) versionText() string {
	if a.version != "" {
		return a.version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}
