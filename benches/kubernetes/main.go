// All parts of a Kubernetes control plane that the lab needs in one binary, selected by the first argument or by the name
// of the binary. It only dispatches to the packages of Kubernetes.
package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
)

// Constructors, so that only the selected command registers its flags.
var commands = map[string]func() *cobra.Command{
	"kube-apiserver":          apiserver.NewAPIServerCommand,
	"kube-controller-manager": controllers.NewControllerManagerCommand,
	"kube-proxy":              proxy.NewProxyCommand,
	"kubectl":                 kubectl.NewDefaultKubectlCommand,
	"service-account-key":     newKeyCommand,
}

func main() {
	name := filepath.Base(os.Args[0])
	if _, known := commands[name]; !known && len(os.Args) > 1 {
		// The commands read os.Args themselves, kubectl for its plugins.
		os.Args = os.Args[1:]
		name = os.Args[0]
	}
	build, known := commands[name]
	if !known {
		fmt.Fprintf(os.Stderr, "%s: the first argument must be kube-apiserver, kube-controller-manager, kube-proxy, kubectl or service-account-key\n", name)
		os.Exit(2)
	}
	os.Exit(cli.Run(build()))
}

// The key with which the API server signs service account tokens; it generates all other keys itself.
func newKeyCommand() *cobra.Command {
	return &cobra.Command{
		Use:           "service-account-key FILE",
		Short:         "Writes a new private key",
		Args:          cobra.ExactArgs(1),
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(_ *cobra.Command, arguments []string) error {
			key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				return fmt.Errorf("make a private key: %w", err)
			}
			der, err := x509.MarshalECPrivateKey(key)
			if err != nil {
				return fmt.Errorf("encode the private key: %w", err)
			}
			block := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
			return os.WriteFile(arguments[0], block, 0o600)
		},
	}
}
