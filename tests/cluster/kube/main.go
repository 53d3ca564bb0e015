// Command kube is a whole Kubernetes in one binary, so that it is linked once: its first argument says which part.
package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/component-base/cli"
	"k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

var parts = map[string]func() *cobra.Command{
	"apiserver":          apiserver.NewAPIServerCommand,
	"controller-manager": controllermanager.NewControllerManagerCommand,
	"scheduler":          func() *cobra.Command { return scheduler.NewSchedulerCommand() },
	"kubelet":            func() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) },
	"kubectl":            cmd.NewDefaultKubectlCommand,
}

func main() {
	if len(os.Args) > 1 && parts[os.Args[1]] != nil {
		command := parts[os.Args[1]]()
		os.Args = os.Args[1:]
		os.Exit(cli.Run(command))
	}
	fmt.Fprintf(os.Stderr, "usage: kube %s ...\n", strings.Join(slices.Sorted(maps.Keys(parts)), "|"))
	os.Exit(2)
}
