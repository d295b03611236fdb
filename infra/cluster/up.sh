#!/usr/bin/env bash
# One real node: etcd, kube-apiserver, controller-manager, scheduler, kubelet + containerd, kube-proxy, CoreDNS.
# usage: up.sh RUN_DIR [BIN_DIR]   ->   RUN_DIR/admin.conf is the kubeconfig. Needs root, and what build.sh installs.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd); B=$(cd "${2:-${LORALINE_CLUSTER_BIN:-$HOME/.cache/loraline/cluster-bin}}" && pwd); mkdir -p "$1"; R=$(cd "$1" && pwd); K=$B/kube; IP=10.88.0.1
mkdir -p "$R/pki" "$R/cni" "$R/kubelet" "$R/img"
ip link add cni0 type bridge 2>/dev/null || true
ip addr add $IP/16 dev cni0 2>/dev/null || true; ip link set cni0 up; sysctl -qw net.ipv4.ip_forward=1
cd "$R/pki"
if [ ! -f ca.crt ]; then
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
C
cat > Corefile <<C
.:53 {
  bind $IP
  errors
  kubernetes cluster.local in-addr.arpa {
    kubeconfig $R/admin.conf
  }
  template ANY ANY {
    rcode NXDOMAIN
  }
  cache 5
}
C
export PATH=$B:$PATH
start() { n=$1; shift; nohup "$@" > $n.log 2>&1 & echo $! > $n.pid; }
export KUBECONFIG=$R/admin.conf
start etcd etcd --data-dir $R/etcd --listen-client-urls http://127.0.0.1:23790 --advertise-client-urls http://127.0.0.1:23790 --listen-peer-urls http://127.0.0.1:23800 --initial-advertise-peer-urls http://127.0.0.1:23800 --initial-cluster default=http://127.0.0.1:23800 --unsafe-no-fsync
start apiserver $K kube-apiserver --etcd-servers=http://127.0.0.1:23790 --advertise-address=$IP --secure-port=6443 \
  --tls-cert-file=pki/apiserver.crt --tls-private-key-file=pki/apiserver.key --client-ca-file=pki/ca.crt \
  --kubelet-client-certificate=pki/admin.crt --kubelet-client-key=pki/admin.key --kubelet-preferred-address-types=InternalIP \
  --service-account-key-file=pki/sa.pub --service-account-signing-key-file=pki/sa.key --service-account-issuer=https://kubernetes.default.svc \
  --authorization-mode=Node,RBAC --service-cluster-ip-range=10.0.0.0/24 --allow-privileged=true
start containerd containerd -c containerd.toml
for _ in $(seq 120); do kubectl get --raw /readyz >/dev/null 2>&1 && break; sleep .5; done; kubectl get --raw /readyz >/dev/null
start controllers $K kube-controller-manager --kubeconfig=admin.conf --service-account-private-key-file=pki/sa.key --root-ca-file=pki/ca.crt --use-service-account-credentials=true --bind-address=127.0.0.1 --leader-elect=false
start scheduler $K kube-scheduler --kubeconfig=admin.conf --bind-address=127.0.0.1 --leader-elect=false
mkdir -p img/pause && cp $B/pause img/pause/ && python3 $here/mkimage.py registry.k8s.io/pause:3.10 img/pause.tar '["/pause"]' img/pause
ctr -a /run/test-containerd/containerd.sock -n k8s.io images import img/pause.tar >/dev/null
start kubelet $K kubelet --kubeconfig=kubelet.conf --config=kubelet.yaml --hostname-override=node1 --root-dir=$R/kubelet --node-ip=$IP
start proxy $K kube-proxy --kubeconfig=admin.conf --proxy-mode=iptables --cluster-cidr=10.88.0.0/16 --hostname-override=node1
start coredns $B/coredns -conf Corefile
kubectl wait --for=condition=Ready node/node1 --timeout=60s >/dev/null 2>&1 || { for _ in $(seq 60); do kubectl get node node1 2>/dev/null | grep -q ' Ready' && break; sleep 1; done; }
# Two pretended GPUs, so that GPU requests schedule: the scheduler and kubelet count them, nothing provides them.
kubectl patch node node1 --subresource=status --type=json -p '[{"op":"add","path":"/status/capacity/nvidia.com~1gpu","value":"2"}]' >/dev/null
for _ in $(seq 60); do kubectl get serviceaccount default >/dev/null 2>&1 && break; sleep .5; done  # pods are refused before it exists
kubectl get node
