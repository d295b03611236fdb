#!/usr/bin/env bash
# One real node: etcd, kube-apiserver, controller-manager, scheduler, kubelet + containerd, kube-proxy, kube-router for NetworkPolicies, CoreDNS.
# usage: up.sh RUN_DIR [BIN_DIR]   ->   RUN_DIR/admin.conf is the kubeconfig. Needs root, and what build.sh installs.
# If it runs already, nothing is done. If parts have died, only these are started again.
set -euo pipefail
fail() { echo "up.sh: $1" >&2; exit 1; }
[ "$(id -u)" = 0 ] || fail "a node needs root. Name a cluster of yours with LORALINE_KUBECONFIG instead."
[ -x "${2:-${LORALINE_CLUSTER_BIN:-$HOME/.cache/loraline/cluster-bin}}/kube" ] || fail "Kubernetes is not built yet: run infra/cluster/build.sh (make cluster-up does)."
here=$(cd "$(dirname "$0")" && pwd); B=$(cd "${2:-${LORALINE_CLUSTER_BIN:-$HOME/.cache/loraline/cluster-bin}}" && pwd); mkdir -p "$1"; R=$(cd "$1" && pwd); K=$B/kube; IP=10.88.0.1
# The address and the socket are fixed, so there is one such node on a machine.
owner=/run/test-cluster
other=$(cat $owner 2>/dev/null || true)
for pid in $(cat "$other"/*.pid 2>/dev/null); do
  [ "$other" = "$R" ] || [ "$(readlink "/proc/$pid/cwd")" != "$other" ] ||
    fail "a cluster runs already, in $other: stop it with infra/cluster/down.sh $other."
done
echo "$R" >$owner
mkdir -p "$R/pki" "$R/cni" "$R/kubelet" "$R/img"
# What kubelet, kube-proxy and this script change on this machine; down.sh takes it back.
modprobe -q br_netfilter 2>/dev/null || true
settings="net.ipv4.ip_forward net.ipv4.conf.all.route_localnet net.bridge.bridge-nf-call-iptables net.bridge.bridge-nf-call-ip6tables
  net.netfilter.nf_conntrack_tcp_be_liberal net.netfilter.nf_conntrack_max net.netfilter.nf_conntrack_buckets
  net.netfilter.nf_conntrack_tcp_timeout_established net.netfilter.nf_conntrack_tcp_timeout_close_wait
  vm.overcommit_memory vm.panic_on_oom kernel.panic kernel.panic_on_oops kernel.keys.root_maxkeys kernel.keys.root_maxbytes"
# shellcheck disable=SC2086
[ -e "$R/sysctl.before" ] || sysctl -e $settings >"$R/sysctl.before" 2>/dev/null || true
grep -q bridge-nf-call-iptables "$R/sysctl.before" ||
  { rm "$R/sysctl.before"; fail "this kernel does not show a bridge's traffic to iptables (br_netfilter), so that NetworkPolicies would mean nothing."; }
[ -e "$R/folders.before" ] || ls -d /var/lib/kubelet /var/lib/cni /var/log/pods /var/log/containers /sys/fs/cgroup/{*/,}kubepods >"$R/folders.before" 2>/dev/null || true
ip link add cni0 type bridge 2>/dev/null || true
ip addr add $IP/16 dev cni0 2>/dev/null || true; ip link set cni0 up
# What pods of one node say to each other passes the bridge; without the second setting NetworkPolicies would not see it.
sysctl -qw net.ipv4.ip_forward=1 net.bridge.bridge-nf-call-iptables=1
# Docker on this machine blocks all forwarding except its own.
for side in -i -o; do iptables -C FORWARD $side cni0 -j ACCEPT 2>/dev/null || iptables -I FORWARD $side cni0 -j ACCEPT; done
cd "$R/pki"
if [ ! -f complete ] || ! openssl x509 -checkend 86400 -noout -in ca.crt >/dev/null 2>&1; then
  openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -days 30 -subj /CN=test-ca 2>/dev/null
  cert() { # name subject san
    openssl req -newkey rsa:2048 -nodes -keyout $1.key -out $1.csr -subj "$2" 2>/dev/null
    openssl x509 -req -in $1.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -out $1.crt \
      -extfile <(printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth,clientAuth' "$3") 2>/dev/null
  }
  cert apiserver /CN=kube-apiserver "IP:127.0.0.1,IP:$IP,IP:10.0.0.1,DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc"
  cert admin /O=system:masters/CN=admin DNS:none
  cert kubelet /O=system:nodes/CN=system:node:node1 "DNS:node1,IP:$IP"
  openssl genrsa -out sa.key 2048 2>/dev/null; openssl rsa -in sa.key -pubout -out sa.pub 2>/dev/null
  touch complete
fi
cd "$R"
conf() { cat > $1.conf <<C
apiVersion: v1
kind: Config
clusters: [{name: t, cluster: {server: "https://$IP:6443", certificate-authority: $R/pki/ca.crt}}]
users: [{name: u, user: {client-certificate: $R/pki/$1.crt, client-key: $R/pki/$1.key}}]
contexts: [{name: c, context: {cluster: t, user: u}}]
current-context: c
C
}
conf admin; conf kubelet
cat > containerd.toml <<C
version = 2
root = "$R/containerd"
state = "/run/test-containerd"
[grpc]
  address = "/run/test-containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.k8s.io/pause:3.10"
  restrict_oom_score_adj = true  # without CAP_SYS_RESOURCE runc fails with "can't get final child's PID from pipe"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$R/cni"
C
cat > cni/10-bridge.conflist <<C
{"cniVersion":"0.4.0","name":"test","plugins":[{"type":"bridge","bridge":"cni0","isGateway":true,"ipMasq":true,"hairpinMode":true,
 "ipam":{"type":"host-local","ranges":[[{"subnet":"10.88.0.0/16"}]],"routes":[{"dst":"0.0.0.0/0"}]}},{"type":"portmap","capabilities":{"portMappings":true}}]}
C
cat > kubelet.yaml <<C
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $R/pki/ca.crt}}
authorization: {mode: Webhook}
cgroupDriver: cgroupfs
failSwapOn: false
failCgroupV1: false
clusterDNS: [$IP]
clusterDomain: cluster.local
tlsCertFile: $R/pki/kubelet.crt
tlsPrivateKeyFile: $R/pki/kubelet.key
containerRuntimeEndpoint: unix:///run/test-containerd/containerd.sock
evictionHard: {nodefs.available: "1%", imagefs.available: "1%"}
imageGCHighThresholdPercent: 100  # an image that is collected cannot be pulled again
imageGCLowThresholdPercent: 99
C
cat > Corefile <<C
cluster.local:53 in-addr.arpa:53 {
  bind $IP
  errors
  kubernetes cluster.local in-addr.arpa {
    kubeconfig $R/admin.conf
  }
  cache 5
}
# In a block of its own: the plugin answers before the one above would.
.:53 {
  bind $IP
  template ANY ANY {
    rcode NXDOMAIN
  }
}
C
export PATH=$B:$PATH
alive() { [ -f "$1.pid" ] && [ "$(readlink "/proc/$(cat "$1.pid")/cwd" 2>/dev/null)" = "$R" ]; }
start() { n=$1; shift; alive "$n" && return; nohup setsid "$@" >>"$n.log" 2>&1 </dev/null 9>&- & echo $! >"$n.pid"; }
# wait_for SECONDS WHAT LOG COMMAND...
wait_for() {
  local seconds=$1 what=$2 log=$3; shift 3
  for _ in $(seq $((seconds * 5))); do "$@" >/dev/null 2>&1 && return; sleep .2; done
  tail -5 "$log.log" >&2
  fail "$what (after $seconds s). More in $R/$log.log"
}
export KUBECONFIG=$R/admin.conf
start etcd etcd --data-dir $R/etcd --listen-client-urls http://127.0.0.1:23790 --advertise-client-urls http://127.0.0.1:23790 --listen-peer-urls http://127.0.0.1:23800 --initial-advertise-peer-urls http://127.0.0.1:23800 --initial-cluster default=http://127.0.0.1:23800 --unsafe-no-fsync
# Tried repeatedly, because a process that was just stopped takes some time to end.
apiserver() {
  start apiserver $K kube-apiserver --etcd-servers=http://127.0.0.1:23790 --advertise-address=$IP --secure-port=6443 \
  --tls-cert-file=pki/apiserver.crt --tls-private-key-file=pki/apiserver.key --client-ca-file=pki/ca.crt \
  --kubelet-client-certificate=pki/admin.crt --kubelet-client-key=pki/admin.key --kubelet-preferred-address-types=InternalIP \
  --service-account-key-file=pki/sa.pub --service-account-signing-key-file=pki/sa.key --service-account-issuer=https://kubernetes.default.svc \
  --authorization-mode=Node,RBAC --service-cluster-ip-range=10.0.0.0/24 --allow-privileged=true
  kubectl get --raw /readyz
}
start containerd containerd -c containerd.toml
wait_for 120 "the API server does not get ready" apiserver apiserver
start controllers $K kube-controller-manager --kubeconfig=admin.conf --service-account-private-key-file=pki/sa.key --root-ca-file=pki/ca.crt --use-service-account-credentials=true --bind-address=127.0.0.1 --leader-elect=false
start scheduler $K kube-scheduler --kubeconfig=admin.conf --bind-address=127.0.0.1 --leader-elect=false
ctr() { command ctr -a /run/test-containerd/containerd.sock -n k8s.io "$@"; }
wait_for 30 "containerd does not answer" containerd ctr version
if ! ctr images ls -q | grep -qx registry.k8s.io/pause:3.10; then
  layer=$(python3 "$here/mkimage.py" layer img "$B/pause=/pause")
  echo '[{"name": "registry.k8s.io/pause:3.10", "layers": ["'"$layer"'"], "config": {"User": "65535:65535", "Entrypoint": ["/pause"]}}]' |
    python3 "$here/mkimage.py" archive img img/pause.tar
  ctr images import img/pause.tar >/dev/null
fi
start kubelet $K kubelet --kubeconfig=kubelet.conf --config=kubelet.yaml --hostname-override=node1 --root-dir=$R/kubelet --node-ip=$IP
# be_liberal: what conntrack takes for invalid kube-router drops, and a connection of a new pod once hung so for a minute.
start proxy $K kube-proxy --kubeconfig=admin.conf --proxy-mode=iptables --conntrack-tcp-be-liberal --cluster-cidr=10.88.0.0/16 --hostname-override=node1
start coredns $B/coredns -conf Corefile
ready() { kubectl get node node1 -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}' | grep -qx True; }
wait_for 120 "the node does not get ready" kubelet ready
# It would end at once if the node is not registered yet.
start kube-router kube-router --kubeconfig=admin.conf --hostname-override=node1 --run-firewall=true --run-router=false --run-service-proxy=false --service-cluster-ip-range=10.0.0.0/24 --health-port=0
wait_for 60 "NetworkPolicies are not enforced" kube-router iptables -n -L KUBE-ROUTER-FORWARD
# Two pretended GPUs, so that GPU requests schedule: the scheduler and kubelet count them, nothing provides them. A kubelet that
# starts anew takes them away; then they are given again.
start kubelet.keeper "$here/pretend-gpus.sh" node1 2
gpus() { kubectl get node node1 -o 'jsonpath={.status.allocatable.nvidia\.com/gpu}' | grep -qx 2; }
wait_for 60 "the node does not show its pretended GPUs" kubelet.keeper gpus
wait_for 60 "the default service account is not made, without which pods are refused" controllers kubectl get serviceaccount default
kubectl get node
