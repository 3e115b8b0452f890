package main

import (
	"encoding/json"
	"strings"

	"github.com/spf13/cobra"
)

func (a *app) envCommand() *cobra.Command {
	var shell bool
	cmd := &cobra.Command{
		Use:   "env",
		Short: "Print the settings of the connection, and where they come from",
		Long: `Print the settings of the connection in effect, and where each comes from. The
first place that has a setting counts:

  1. flags, such as --addr
  2. the environment: ` + strings.Join(envNames(), ", ") + `
  3. the file $KEYHOLD_CONFIG, else ~/.config/keyhold/config.yaml:
       addr: kms.example.org:9443
       ca: ca.pem            # relative to the file
       cert: client.pem
       key: client.key
     and server_name, region, timeout, admin_url
  4. if none of them names the server, its CA or your certificate:
     ./` + devEnvFile + `, which ` + "`keyholdd dev`" + ` writes`,
		Example: `  keyhold env
  eval "$(keyhold env --shell)"`,
		Args: noArguments,
		RunE: func(*cobra.Command, []string) error {
			conf, err := a.loadConfig()
			if err != nil {
				return err
			}
			if shell {
				return a.printShellEnv(conf)
			}
			return a.printEnv(conf)
		},
	}
	cmd.Flags().BoolVar(&shell, "shell", false, "as commands for a POSIX shell")
	return cmd
}

func envNames() []string {
	var names []string
	for _, s := range settings() {
		names = append(names, s.env)
	}
	return names
}

func (a *app) printEnv(conf *config) error {
	if a.output == outputJSON {
		values := map[string]string{}
		for _, s := range settings() {
			if text := conf.text(s.flag); text != "" {
				values[s.env] = text
			}
		}
		b, err := json.Marshal(values)
		if err != nil {
			return err
		}
		return a.printJSON(b)
	}
	var rows [][]string
	for _, s := range settings() {
		rows = append(rows, []string{s.env, conf.text(s.flag), orWord(conf.source(s.flag), "not set")})
	}
	if err := a.printRows([]string{"SETTING", "VALUE", "FROM"}, rows); err != nil {
		return err
	}
	if conf.devEnv != nil {
		printError(a.stderr, conf.devEnv)
	}
	return nil
}

func (a *app) printShellEnv(conf *config) error {
	var b strings.Builder
	for _, s := range settings() {
		if text := conf.text(s.flag); text != "" {
			b.WriteString("export " + s.env + "=" + quoteShell(text) + "\n")
		}
	}
	return a.write([]byte(b.String()))
}
