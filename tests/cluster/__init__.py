"""A real Kubernetes control plane for the tests: etcd, API server, controllers and scheduler, with kwok nodes."""
