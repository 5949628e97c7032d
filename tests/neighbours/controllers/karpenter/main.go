// Karpenter's own controllers and its kwok provider, whose machines are Nodes alone. Its released program for kwok repairs
// for no condition of ours, and serves metrics on all addresses of the machine; this one its readiness, on loopback.
package main

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	kwok "sigs.k8s.io/karpenter/kwok/cloudprovider"
	"sigs.k8s.io/karpenter/pkg/cloudprovider"
	"sigs.k8s.io/karpenter/pkg/cloudprovider/overlay"
	"sigs.k8s.io/karpenter/pkg/controllers"
	"sigs.k8s.io/karpenter/pkg/controllers/node/health"
	"sigs.k8s.io/karpenter/pkg/controllers/state"
	"sigs.k8s.io/karpenter/pkg/operator"
)

// provider repairs for the conditions that the provider for AWS (1.15.2) goes by, within seconds rather than minutes.
type provider struct{ *kwok.CloudProvider }

func (provider) RepairPolicies() []cloudprovider.RepairPolicy {
	grace := 10 * time.Minute
	bad := cloudprovider.RepairPolicy{
		ConditionType:          "AcceleratedHardwareReady",
		ConditionStatus:        corev1.ConditionFalse,
		TolerationDuration:     5 * time.Second,
		TerminationGracePeriod: &grace,
		Action:                 cloudprovider.ReplaceNode,
	}
	rebooted := bad
	rebooted.ReasonRegex, rebooted.Action = ".*XID(48|95).*", cloudprovider.RebootNode
	return []cloudprovider.RepairPolicy{bad, rebooted}
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func main() {
	made := ctrl.NewManager
	ctrl.NewManager = func(config *rest.Config, options manager.Options) (manager.Manager, error) {
		options.Metrics.BindAddress = "0"
		options.HealthProbeBindAddress = "127.0.0.1" + options.HealthProbeBindAddress
		return made(config, options)
	}
	ctx, op := operator.NewOperator()
	plain := provider{kwok.NewCloudProvider(ctx, op.GetClient(), must(kwok.ConstructInstanceTypes(ctx)))}
	decorated := overlay.Decorate(plain, op.GetClient(), op.InstanceTypeStore)
	matcher := must(health.NewRepairPolicyMatcher(ctx, decorated))
	cluster := state.NewCluster(op.Clock, op.GetClient(), decorated, state.WithRepairPolicyMatcher(matcher))
	op.WithControllers(ctx, controllers.NewControllers(
		ctx, op.Manager, op.Clock, op.GetClient(), op.EventRecorder, decorated, plain, cluster,
		op.InstanceTypeStore, op.PredictionStore,
	)...).Start(ctx)
}
