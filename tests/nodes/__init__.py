"""Real nodes on this machine: containerd, kubelet, kube-proxy and a GPU device plugin in namespaces of their own."""
