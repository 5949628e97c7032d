#!/bin/bash
# Process 1 of one node, in network, mount, PID and UTS namespaces of its own: gives the node its own /var and /run,
# then keeps the node's programs running. Its argument is the node's folder.
set -eu
node=$1
. "$node/conf/env" # NAME ADDRESS BIN PYTHON ROOT GPUS IMAGES LABELS
read -r pid _ < /proc/self/stat # still of the outer /proc: the pid outside
echo "$pid" > "$node/init.pid"
mount --make-rshared / # of this namespace alone; pods may ask for propagation
mkdir -p "$node"/{run/lock,log,sys,var/{lib,log,tmp,cache}}
ln -sfn /run "$node/var/run"
mount --rbind "$node/var" /var
mount --rbind "$node/run" /run
mount -t proc proc /proc
# The kubelet sets these for the whole machine unless it finds them set: it finds these files.
for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
  kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
  file="$node/sys/${setting//[\/=]/-}"
  echo "${setting#*=}" > "$file"
  mount --bind "$file" "/proc/sys/${setting%=*}"
done
hostname "$NAME"
export PATH="$BIN:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
export PYTHONDONTWRITEBYTECODE=1

keep() { # a program's name and its command: run it, and again when it ends
  local name=$1
  shift
  while :; do
    "$@" >> "$node/log/$name.log" 2>&1 &
    echo $! > "/run/$name.pid"
    wait $! || true
    sleep .5
  done
}

keep containerd containerd -c "$node/conf/containerd.toml" &
until ctr version > /dev/null 2>&1; do sleep .1; done
if [ ! -e "$node/imported" ]; then
  for image in $IMAGES; do ctr -n k8s.io images import "$image"; done
  touch "$node/imported"
fi
until [ -e "$node/conf/kubelet.kubeconfig" ]; do sleep .1; done # the API server is there
keep kubelet kubelet --config="$node/conf/kubelet.yaml" --kubeconfig="$node/conf/kubelet.kubeconfig" \
  --hostname-override="$NAME" --node-ip="$ADDRESS" --node-labels="$LABELS" &
keep kube-proxy kube-proxy --config="$node/conf/kube-proxy.yaml" &
if [ "$GPUS" != 0 ]; then
  cd "$ROOT"
  keep gpu-plugin "$PYTHON" -m tests.nodes.gpu_plugin "$GPUS" &
fi
while :; do # also reaps what containerd's shims leave behind
  wait || true
  sleep 1
done
