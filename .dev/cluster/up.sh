#!/usr/bin/env bash
# Starts a throw-away Kubernetes cluster on 127.0.0.1 and waits until it answers; always a fresh one.
#   up.sh DIR [--node] [--kine]
# DIR gets admin.kubeconfig, ca.crt, audit.log (one JSON line a request: user, verb, resource), log/, pid/NAME
#   of each part and start/NAME, which starts that part again after it was killed. `down.sh DIR` takes all of it down.
# Without --node: etcd, kube-apiserver, kube-controller-manager, in about 6 s. Jobs get pods, no pod is run; set a pod's
#   status yourself through pods/status to make it fail.
# With --node: also kube-scheduler, containerd, kubelet, in about 11 s. Pods run for real, get killed for memory for
#   real, and have real logs. The node knows one image, docker.io/local/busybox:1 (a static busybox). There is no
#   cluster DNS and no kube-proxy.
# With --kine: kine and SQLite, the datastore of k3s, in place of etcd (see kine.sh).
# KUBE_VERSION (1.35.1), KUBE_APISERVER_FLAGS and KUBE_CONTROLLER_MANAGER_FLAGS change it.
# Several clusters can run side by side, one of them with --node, if each has ports of its own: KUBE_PORT (6443),
#   ETCD_PORT (23790, and the next one), KUBE_CONTROLLER_MANAGER_PORT (10257). A cluster that an earlier up.sh has left
#   running in DIR or on one of these ports is taken down first.
# Needs: the packages of packages.sh; what build.sh needs; root with --node.
set -euo pipefail
usage="up.sh DIR [--node] [--kine]"
dir=$(realpath -m "${1:?$usage}"); shift
node=; kine=
for option in "$@"; do
  case $option in
    --node) node=yes ;;
    --kine) kine=yes ;;
    *) echo "unknown option $option: $usage" >&2; exit 1 ;;
  esac
done
here=$(cd "$(dirname "$0")" && pwd)
bin=$("$here/build.sh" "${KUBE_VERSION:-1.35.1}")
[[ -z $kine ]] || kine=$("$here/kine.sh")
port=${KUBE_PORT:-6443}; etcd_port=${ETCD_PORT:-23790}; controller_manager_port=${KUBE_CONTROLLER_MANAGER_PORT:-10257}
ports=("$port" "$etcd_port" $((etcd_port + 1)) "$controller_manager_port" ${node:+10250 10248 10259})

"$here/down.sh" "$dir"; "$here/down.sh" --ports "${ports[@]}"
for p in "${ports[@]}"; do
  if (exec 3<>"/dev/tcp/127.0.0.1/$p") 2>/dev/null; then echo "port $p is in use by another program" >&2; exit 1; fi
done
mkdir -p "$dir"; cd "$dir"
rm -rf --one-file-system etcd kine containerd kubelet podlogs cni log pid start audit.log
mkdir -p pki log pid start
trap '(($? == 0)) || "$here/down.sh" "$dir"' EXIT

start() { # NAME COMMAND...: in the background, log to log/NAME.log
  local name=$1; shift
  cat >"start/$name" <<SH
#!/usr/bin/env bash
export THROW_AWAY_CLUSTER="$dir" THROW_AWAY_PORTS="${ports[*]}"
cd "$dir" && echo \$\$ >pid/$name && exec$(printf ' %q' "$@") >>log/$name.log 2>&1 </dev/null
SH
  chmod +x "start/$name"
  setsid -f "start/$name"
}
until_ok() { # SECONDS COMMAND...
  local end=$((SECONDS + $1)); shift
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < end)) || { echo "gave up waiting for: $*" >&2; tail -n 5 log/*.log >&2; exit 1; }
    sleep 0.2
  done
}
cert() { # NAME CN O SAN
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "pki/$1.key" -out "pki/$1.csr" \
    -subj "/O=$3/CN=$2" 2>/dev/null
  local usage='keyUsage=digitalSignature\nextendedKeyUsage=serverAuth,clientAuth'
  openssl x509 -req -in "pki/$1.csr" -CA ca.crt -CAkey pki/ca.key -CAcreateserial -days 30 -out "pki/$1.crt" \
    -extfile <(printf "$usage\n%s" "${4:+subjectAltName=$4}") 2>/dev/null
}
kubeconfig() { # FILE CERT_NAME
  cat >"$1" <<YAML
apiVersion: v1
kind: Config
current-context: local
clusters:
  - name: local
    cluster: {server: "https://127.0.0.1:$port", certificate-authority-data: $(base64 -w0 ca.crt)}
users:
  - name: $2
    user: {client-certificate-data: $(base64 -w0 "pki/$2.crt"), client-key-data: $(base64 -w0 "pki/$2.key")}
contexts: [{name: local, context: {cluster: local, user: $2}}]
YAML
}

if [[ ! -f ca.crt ]]; then
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout pki/ca.key -out ca.crt -days 30 \
    -subj /CN=local-ca 2>/dev/null
  names=DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc
  cert apiserver kube-apiserver local "IP:127.0.0.1,IP:10.96.0.1,$names"
  cert admin admin system:masters ""
  cert controller-manager system:kube-controller-manager local ""
  cert scheduler system:kube-scheduler local ""
  cert kubelet system:node:127.0.0.1 system:nodes "IP:127.0.0.1"
  openssl genrsa -out pki/sa.key 2048 2>/dev/null
  openssl rsa -in pki/sa.key -pubout -out pki/sa.pub 2>/dev/null
fi
for user in admin controller-manager scheduler kubelet; do kubeconfig "$user.kubeconfig" "$user"; done

if [[ $kine ]]; then
  mkdir -p kine
  start kine "$kine" --listen-address "http://127.0.0.1:$etcd_port" --metrics-bind-address 0 \
    --endpoint "sqlite://$dir/kine/state.db?_journal=WAL&cache=shared&_busy_timeout=30000&_txlock=immediate"
else
  peer=http://127.0.0.1:$((etcd_port + 1))
  start etcd etcd --data-dir etcd --unsafe-no-fsync \
    --listen-client-urls "http://127.0.0.1:$etcd_port" --advertise-client-urls "http://127.0.0.1:$etcd_port" \
    --listen-peer-urls "$peer" --initial-advertise-peer-urls "$peer" --initial-cluster "default=$peer"
fi
cat >audit.yaml <<'YAML'
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules: [{level: Metadata}]
YAML
start kube-apiserver "$bin/kube-apiserver" --etcd-servers "http://127.0.0.1:$etcd_port" \
  --bind-address 127.0.0.1 --secure-port "$port" --advertise-address 127.0.0.1 \
  --endpoint-reconciler-type none --service-cluster-ip-range 10.96.0.0/24 \
  --tls-cert-file pki/apiserver.crt --tls-private-key-file pki/apiserver.key --client-ca-file ca.crt \
  --kubelet-client-certificate pki/admin.crt --kubelet-client-key pki/admin.key --kubelet-certificate-authority ca.crt \
  --kubelet-preferred-address-types InternalIP \
  --service-account-issuer https://kubernetes.default.svc \
  --service-account-key-file pki/sa.pub --service-account-signing-key-file pki/sa.key \
  --audit-policy-file audit.yaml --audit-log-path audit.log --audit-log-maxsize 100000 \
  --authorization-mode Node,RBAC --enable-admission-plugins NodeRestriction ${KUBE_APISERVER_FLAGS:-}
until_ok 120 "$bin/kubectl" --kubeconfig admin.kubeconfig get --raw /readyz
start kube-controller-manager "$bin/kube-controller-manager" --kubeconfig controller-manager.kubeconfig \
  --leader-elect=false --use-service-account-credentials \
  --service-account-private-key-file pki/sa.key --root-ca-file ca.crt \
  --bind-address 127.0.0.1 --secure-port "$controller_manager_port" ${KUBE_CONTROLLER_MANAGER_FLAGS:-}
until_ok 60 "$bin/kubectl" --kubeconfig admin.kubeconfig -n default get serviceaccount default

if [[ $node ]]; then
  mkdir -p cni/conf containerd/state containerd/root
  cat >cni/conf/10-local.conflist <<JSON
{"cniVersion": "0.4.0", "name": "throw-away", "plugins": [
  {"type": "ptp", "ipam": {"type": "host-local", "subnet": "10.244.0.0/24", "dataDir": "$dir/cni/addresses"}}
]}
JSON
  cat >containerd/config.toml <<TOML
version = 2
root = "$dir/containerd/root"
state = "$dir/containerd/state"
oom_score = 0
[grpc]
  address = "$dir/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "docker.io/local/busybox:1"
  restrict_oom_score_adj = true
  disable_apparmor = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$dir/cni/conf"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
TOML
  start containerd containerd --config containerd/config.toml
  until_ok 30 ctr -a containerd/containerd.sock version
  "$here/busybox-image.sh" busybox.tar
  ctr -a containerd/containerd.sock -n k8s.io images import busybox.tar >/dev/null
  cat >kubelet.yaml <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: 127.0.0.1
port: 10250
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $dir/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: $dir/pki/kubelet.crt
tlsPrivateKeyFile: $dir/pki/kubelet.key
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
containerRuntimeEndpoint: unix://$dir/containerd/containerd.sock
registerNode: true
resolvConf: ""
clusterDNS: [127.0.0.1]
localStorageCapacityIsolation: false
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
volumePluginDir: $dir/kubelet/volumeplugins
podLogsDir: $dir/podlogs
YAML
  mkdir -p kubelet podlogs
  start kubelet "$bin/kubelet" --config kubelet.yaml --kubeconfig kubelet.kubeconfig --root-dir "$dir/kubelet" \
    --hostname-override 127.0.0.1 --v=1
  start kube-scheduler "$bin/kube-scheduler" --kubeconfig scheduler.kubeconfig --leader-elect=false \
    --bind-address 127.0.0.1
  until_ok 120 "$bin/kubectl" --kubeconfig admin.kubeconfig wait --for=condition=Ready --timeout=1s node/127.0.0.1
fi
echo "KUBECONFIG=$dir/admin.kubeconfig"
