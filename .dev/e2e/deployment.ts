// The operator as users deploy it: deploy/ with some settings, its pods, what they say, and what they ask the API
// server.
import { chmod, cp, mkdir, readFile, rm, writeFile } from "node:fs/promises"
import { join } from "node:path"
import project from "../../package.json" with { type: "json" }
import {
  type Check,
  call,
  failingJob,
  group,
  type Manifest,
  must,
  type Namespace,
  need,
  prefix,
  root,
  type Thing,
  until,
  work,
} from "./kit.ts"
import { kubectl, kubectlProgram, tryCommand } from "./programs.ts"

export const nodeDir = process.env.E2E_NODE_DIR
export const name = project.name
export const chosen = { [`${prefix}restart`]: "true" }
export const deployNamespace = "flickr-downloader"
export const ofOperator = `app.kubernetes.io/name=${name}`

export const reference = async () => {
  const { images } = Bun.YAML.parse(await readFile(join(root, "deploy/kustomization.yaml"), "utf8")) as {
    images: { newName: string; newTag: string }[]
  }
  return `docker.io/${images[0]!.newName}:${images[0]!.newTag}`
}

export type Changes = {
  /** As a user would write them into config.env. */
  settings?: Record<string, string>
  /** False: on the pods' network, on which no API server answers. */
  host?: boolean
  binding?: boolean
}
let overlays = 0
/** On the host's network each operator needs a port of its own. */
export const healthPorts = new Map<string, number>()
export const healthPortOf = ({ name }: Namespace) => {
  if (!healthPorts.has(name)) healthPorts.set(name, 18_100 + healthPorts.size)
  return healthPorts.get(name)!
}

/** A kustomization on a copy of deploy/: the namespace, some settings, and what clusters of .dev/cluster lack. */
export async function overlay(
  ns: Namespace,
  { settings = {}, host = true, binding = true }: Changes = {},
): Promise<string> {
  const folder = join(work, `overlay-${++overlays}`)
  await cp(join(root, "deploy"), join(folder, "deploy"), { recursive: true })
  const file = join(folder, "deploy/config.env")
  let text = await readFile(file, "utf8")
  const elsewhere: Record<string, string> = ns.name === deployNamespace ? {} : { NAMESPACE: ns.name }
  if (host) elsewhere.HEALTH_PORT = String(healthPortOf(ns))
  for (const [variable, value] of Object.entries({ ...elsewhere, ...settings })) {
    const line = new RegExp(`^#?${variable}=.*$`, "m")
    need(line.test(text), `config.env has no ${variable}`)
    text = text.replace(line, `${variable}=${value}`)
  }
  await writeFile(file, text)
  const server = new URL(await kubectl("config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}"))
  const env = [
    { name: "KUBERNETES_SERVICE_HOST", value: server.hostname },
    { name: "KUBERNETES_SERVICE_PORT", value: server.port },
  ]
  const onHost = [
    { op: "add", path: "/spec/template/spec/hostNetwork", value: true },
    { op: "add", path: "/spec/template/spec/containers/0/env", value: env },
    { op: "replace", path: "/spec/template/spec/containers/0/ports/0/containerPort", value: healthPortOf(ns) },
  ]
  const drop = { $patch: "delete", apiVersion: "rbac.authorization.k8s.io/v1", kind: "RoleBinding", metadata: { name } }
  const patches = [
    ...(host ? [{ target: { kind: "Deployment" }, patch: JSON.stringify(onHost) }] : []),
    ...(binding ? [] : [{ patch: JSON.stringify(drop) }]),
  ]
  const kustomization = { resources: ["deploy"], namespace: ns.name, patches }
  await writeFile(join(folder, "kustomization.yaml"), JSON.stringify(kustomization))
  return folder
}

export const deploy = async (ns: Namespace, changes: Changes = {}) => kubectl("apply", "-k", await overlay(ns, changes))

export type Rule = { apiGroups: string[]; resources: string[]; verbs: string[] }
/** The documents of rbac.yaml. */
export const rbac = async () =>
  Bun.YAML.parse(await readFile(join(root, "deploy/rbac.yaml"), "utf8")) as (Manifest & { rules: Rule[] })[]
export const rightsOf = (rules: Rule[]) =>
  rules.flatMap(({ apiGroups, resources, verbs }) =>
    apiGroups.flatMap((group) => resources.flatMap((resource) => verbs.map((verb) => `${verb} ${group}/${resource}`))),
  )
export const rulesOf = async () => (await rbac()).find(({ kind }) => kind === "Role")!.rules

export type Pod = Thing & {
  status?: { phase?: string; containerStatuses?: ContainerStatus[] }
}
export const isReady = (pod: Pod | undefined) =>
  pod?.status?.conditions?.some(({ type, status }) => type === "Ready" && status === "True")
export type Ended = { exitCode: number; reason: string }
export type ContainerStatus = { restartCount: number; state: { running?: object; terminated?: Ended } }

/** A group whose operators are pods: when a check fails, what they have said is printed. */
export const podGroup = (name: string, body: (ns: Namespace, check: Check) => Promise<void>, where?: Namespace) =>
  group(name, (own, check) => {
    const ns = where ?? own
    return body(ns, (claim, prove) =>
      check(claim, async () => {
        try {
          return await prove()
        } catch (error) {
          const said = (await logOf(ns)).slice(-40).join("\n            ")
          console.log(`          ${ns.name}, the operator's pods:\n            ${said}`)
          throw error
        }
      }),
    )
  })

export const podsOf = async (ns: Namespace, selector = ofOperator) => {
  const path = `${ns.path("pods")}?labelSelector=${encodeURIComponent(selector)}`
  return (await must("GET", path)).items as Pod[]
}
export const isUp = (pod: Pod) =>
  !pod.metadata.deletionTimestamp && pod.status?.containerStatuses?.[0]?.state.running !== undefined
export const restartsOf = (pod: Pod) => pod.status?.containerStatuses?.[0]?.restartCount ?? 0
/** The operator's pod, once one runs that is none of these. */
export const operatorPod = (ns: Namespace, ...older: Pod[]) =>
  until(
    `a pod of the operator runs in ${ns.name}`,
    async () =>
      (await podsOf(ns)).find((pod) => isUp(pod) && !older.some(({ metadata }) => metadata.uid === pod.metadata.uid)),
    180_000,
  )
/** What all its pods have said so far. */
export const logOf = async (ns: Namespace, ...options: string[]) =>
  (await tryCommand([kubectlProgram, "-n", ns.name, "logs", "-l", ofOperator, "--tail=-1", ...options])).out.split("\n")
export const says = (ns: Namespace, what: string, patterns: (RegExp | string)[], ms = 90_000) =>
  until(
    `kubectl logs shows ${what} (${patterns.join(" and ")})`,
    async () =>
      (await logOf(ns)).find((line) =>
        patterns.every((p) => (typeof p === "string" ? line.includes(p) : p.test(line))),
      ),
    ms,
  )
export const scaleToNothing = async (ns: Namespace) => {
  await kubectl("-n", ns.name, "scale", "deployment", name, "--replicas=0")
  await until("the operator's pod is gone", async () => (await podsOf(ns)).length === 0, 45_000)
}
export const operatorJob = (options: { name: string }) => failingJob({ ...options, labels: chosen })

/** Applies example-job.yaml, with a volume to be found for its claim. */
export async function applyExample(ns: Namespace): Promise<void> {
  const path = join(nodeDir!, "volumes", ns.name)
  await mkdir(path, { recursive: true })
  await chmod(path, 0o777)
  const spec = {
    capacity: { storage: "1Mi" },
    accessModes: ["ReadWriteOnce"],
    hostPath: { path },
    claimRef: { namespace: ns.name, name: "flickr-downloader-alice" },
  }
  await must("POST", "/api/v1/persistentvolumes", { metadata: { name: ns.name }, spec })
  await kubectl("-n", ns.name, "apply", "-f", "deploy/example-job.yaml")
}
export const removeVolume = async (ns: Namespace) => {
  await call("DELETE", `/api/v1/persistentvolumes/${ns.name}`)
  await rm(join(nodeDir!, "volumes", ns.name), { recursive: true, force: true })
}

/** A call by a ServiceAccount, `namespace:name`. */
export type Asked = { user: string; right: string }

export async function audited(): Promise<Asked[]> {
  const lines = (await readFile(process.env.E2E_AUDIT_LOG!, "utf8")).split("\n")
  type Event = {
    verb: string
    requestURI: string
    user: { username: string }
    userAgent?: string
    objectRef?: { apiGroup?: string; resource?: string; subresource?: string }
  }
  const ours = lines
    .filter((line) => line.includes(`"userAgent":"${name}/${project.version}`))
    .map((line) => JSON.parse(line) as Event)
  return ours.map(({ verb, requestURI, user, objectRef: { apiGroup = "", resource, subresource } = {} }) => ({
    user: user.username.replace("system:serviceaccount:", ""),
    right: `${verb} ${resource ? `${apiGroup}/${subresource ? `${resource}/${subresource}` : resource}` : requestURI}`,
  }))
}
