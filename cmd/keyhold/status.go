package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/keyhold/keyhold/client"
)

// maxReadyBytes is how much of the answer of /readyz is shown.
const maxReadyBytes = 4096

// statusReport is what status prints.
type statusReport struct {
	Address string
	// Health is the gRPC health service's word, SERVING if all is well, or the
	// error of asking it.
	Health string
	// AdminURL and Ready are left out if no admin URL is set.
	AdminURL string `json:",omitempty"`
	// Ready is "ready", or why the server is not.
	Ready string `json:",omitempty"`
}

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Ask the server whether it is well",
		Long: `Ask the gRPC health service and, if KEYHOLD_ADMIN_URL is set, /readyz of the
admin listener. The exit code is 0 only if both say that all is well.`,
		Example: `  keyhold status
  until keyhold status --timeout 2s; do sleep 1; done`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			conf, err := a.loadConfig()
			if err != nil {
				return err
			}
			var report statusReport
			report.Address, report.AdminURL = conf.text(setAddr), conf.text(setAdminURL)
			healthErr := a.withClient(func(c *client.Client) error {
				resp, err := c.Health.Check(cmd.Context(), &grpc_health_v1.HealthCheckRequest{})
				if err != nil {
					return rpcError(err)
				}
				report.Health = resp.GetStatus().String()
				if resp.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
					return fmt.Errorf("the server says that it is %s", report.Health)
				}
				return nil
			})
			if report.Health == "" && healthErr != nil {
				report.Health = healthErr.Error()
			}
			var readyErr error
			if report.AdminURL != "" {
				report.Ready, readyErr = askReady(cmd.Context(), conf)
			}
			if err := a.printStatus(&report); err != nil {
				return err
			}
			if healthErr != nil {
				return healthErr
			}
			return readyErr
		},
	}
}

func (a *app) printStatus(r *statusReport) error {
	if a.output == outputJSON {
		b, err := json.Marshal(r)
		if err != nil {
			return err
		}
		return a.printJSON(b)
	}
	rows := [][]string{{"Address", r.Address}, {"Health", r.Health}}
	if r.AdminURL != "" {
		rows = append(rows, []string{"Admin URL", r.AdminURL}, []string{"Ready", r.Ready})
	}
	return a.printRows(nil, rows)
}

// askReady asks /readyz. It returns what to show and, unless the server is
// ready, an error.
func askReady(ctx context.Context, conf *config) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, conf.timeout())
	defer cancel()
	ready, err := getReady(ctx, conf)
	if err != nil {
		err = fmt.Errorf("ask %s: %w", conf.text(setAdminURL), err)
		return err.Error(), withHint(err, "KEYHOLD_ADMIN_URL is %s (%s)", conf.text(setAdminURL), conf.source(setAdminURL))
	}
	if ready != "" {
		return ready, fmt.Errorf("the server is not ready: %s", ready)
	}
	return "ready", nil
}

// getReady returns why the server is not ready, or nothing if it is.
func getReady(ctx context.Context, conf *config) (string, error) {
	resp, err := adminGet(ctx, conf, "readyz")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		return "", nil
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxReadyBytes))
	if err != nil {
		return "", err
	}
	return printable(strings.TrimSpace(resp.Status + " " + string(body))), nil
}

// adminGet gets a path of the admin listener. The caller closes the body.
func adminGet(ctx context.Context, conf *config, path string) (*http.Response, error) {
	target, err := url.Parse(conf.text(setAdminURL))
	if err != nil || target.Scheme != "http" && target.Scheme != "https" || target.Host == "" {
		return nil, errors.New("it is not an http or https URL")
	}
	transport := &http.Transport{DisableKeepAlives: true} // and no proxy, as for gRPC
	if target.Scheme == "https" {
		clientConf, err := conf.client()
		if err != nil {
			return nil, err
		}
		if transport.TLSClientConfig, err = client.TLSConfig(clientConf); err != nil {
			return nil, err
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target.JoinPath(path).String(), nil)
	if err != nil {
		return nil, err
	}
	return (&http.Client{Transport: transport}).Do(req)
}
