// Loaded before every test file: takes away what this machine's environment would tell the operator, so that the tests
// behave the same in a pod, behind a proxy, and on a machine that has a cluster.
const FOREIGN =
  /^((https?|all|no)_proxy|KUBECONFIG|KUBERNETES_.*|NO_COLOR|FORCE_COLOR|NODE_EXTRA_CA_CERTS|BUN_OPTIONS)$/i

for (const name of Object.keys(process.env)) if (FOREIGN.test(name)) delete process.env[name]
