// What the end-to-end checks stand on: the cluster as the user of KUBECONFIG sees it, namespaces with their
// ServiceAccounts, Jobs as adjectives, the operator's built binary as a child process, the audit log, the checks'
// books.
import { existsSync, readFileSync } from "node:fs"
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises"
import type { RequestOptions } from "node:https"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { KubeConfig } from "@kubernetes/client-node"
import { OLD_ROLE, OPERATOR_ROLE } from "../apiserver/roles.ts"

export const prefix = "flickr-immich-k8s-sync-operator/"
export const root = join(import.meta.dir, "../..")
/** The operator under test. */
export const binary =
  process.env.E2E_BINARY ||
  join(root, `dist/flickr-immich-k8s-sync-operator-linux-${process.arch === "arm64" ? "arm64" : "x64"}`)
const image = process.env.E2E_IMAGE || "busybox:1.37"
const auditLog = process.env.E2E_AUDIT_LOG
export const counted = auditLog !== undefined && auditLog !== ""
export const work = await mkdtemp(join(tmpdir(), "e2e-"))

// ---------------------------------------------------------------- books

const books = { passed: 0, failed: 0, skipped: 0 }
/** The lines of what failed, printed again at the end: of CI's output often only the end is kept. */
const failures: string[] = []
const only = new RegExp(process.argv[2]?.startsWith("--") ? "" : (process.argv[2] ?? ""))
const begunAt = performance.now()
const stamp = () => `${((performance.now() - begunAt) / 1000).toFixed(0).padStart(4)} s`

export class Skip extends Error {}

/** Fails the check with this reason. */
export function need(condition: unknown, reason: string): asserts condition {
  if (!condition) throw new Error(reason)
}

/** Those that are run whatever groups are chosen. */
const always = ["e2e", "end"]

/** One claim. What `prove` returns is printed beside it: the figures that were measured. */
export async function check(
  group: string,
  claim: string,
  prove: () => Promise<unknown>,
  tally: typeof books = books,
  isLastTry = true,
): Promise<boolean> {
  if (!only.test(group) && !always.includes(group)) return true
  const say = (word: string, note: unknown) => {
    const line = `${stamp()}  ${word}  ${group}: ${claim}${note ? ` – ${note}` : ""}`
    console.log(line)
    if (word === "FAILED") failures.push(line)
  }
  try {
    const figures = await prove()
    tally.passed++
    say("ok    ", figures)
    return true
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error)
    if (error instanceof Skip) {
      tally.skipped++
      say("skip  ", reason)
      return true
    }
    tally.failed++
    say(isLastTry ? "FAILED" : "again ", reason.replaceAll("\n", "\n          "))
    return false
  }
}

export type Check = (claim: string, prove: () => Promise<unknown>) => Promise<void>

/**
 * Checks that share a namespace. When one fails, the end of what its operators said is printed, and the group runs once
 * more in a namespace of its own: a node that had no time for a pod is no fault of the operator. What fails twice has
 * failed.
 */
export async function group(name: string, body: (ns: Namespace, check: Check) => Promise<void>): Promise<void> {
  if (!only.test(name)) return
  for (const isLastTry of [false, true]) {
    const tally = { ...books, passed: 0, failed: 0, skipped: 0 }
    await runGroup(name, body, (claim, prove) => check(name, claim, prove, tally, isLastTry))
    if (tally.failed > 0 && !isLastTry) continue
    books.passed += tally.passed
    books.failed += tally.failed
    books.skipped += tally.skipped
    return
  }
}

type Proof = (claim: string, prove: () => Promise<unknown>) => Promise<boolean>

async function runGroup(
  name: string,
  body: (ns: Namespace, check: Check) => Promise<void>,
  proof: Proof,
): Promise<void> {
  let bad = false
  let ns: Namespace | undefined
  try {
    ns = await namespace()
    await body(ns, async (claim, prove) => {
      if (!(await proof(claim, prove))) bad = true
    })
  } catch (error) {
    bad = true
    await proof("the group runs to its end", () => Promise.reject(error))
  } finally {
    for (const [i, operator] of ns?.operators.entries() ?? []) {
      await operator.stop("SIGKILL")
      if (bad)
        console.log(
          `          ${name}, operator ${i + 1}:\n            ${operator.lines.slice(-40).join("\n            ")}`,
        )
    }
    // The kill checks end while others kill the API server.
    const removed = () =>
      ns?.remove().then(
        () => true,
        () => false,
      )
    if (ns) await until("the namespace is removed", removed, 120_000)
  }
}

/** Prints the closing line; true if nothing failed and something passed. */
export async function close(): Promise<boolean> {
  await rm(work, { recursive: true, force: true })
  if (failures.length > 0) console.log(failures.join("\n"))
  console.log(`${books.passed} passed, ${books.failed} failed${books.skipped ? `, ${books.skipped} skipped` : ""}`)
  return books.failed === 0 && books.passed > 0
}

// ---------------------------------------------------------------- waiting

export const seconds = (ms: number) => `${(ms / 1000).toFixed(2)} s`

/** Waits until `look` answers with something, and hands it on. */
export async function until<T>(
  what: string,
  look: () => T | undefined | false | Promise<T | undefined | false>,
  ms = 90_000,
): Promise<T> {
  const end = performance.now() + ms
  for (;;) {
    const found = await look()
    if (found !== undefined && found !== false) return found
    need(performance.now() < end, `not within ${seconds(ms)}: ${what}`)
    await Bun.sleep(50)
  }
}

// ---------------------------------------------------------------- the cluster

export type Json = string | number | boolean | null | Json[] | { [key: string]: Json }
export type Condition = { type: string; status: string; reason?: string; lastTransitionTime: string }
export type Thing = {
  metadata: {
    name: string
    uid: string
    resourceVersion: string
    creationTimestamp: string
    deletionTimestamp?: string
    labels?: Record<string, string>
    annotations?: Record<string, string>
    finalizers?: string[]
    ownerReferences?: { kind: string; uid: string }[]
  }
  spec?: { [key: string]: Json }
  status?: { conditions?: Condition[]; phase?: string; token?: string; hard?: Json; used?: Json }
}
export type Manifest = { apiVersion?: string; kind?: string; metadata: { [key: string]: Json }; [key: string]: Json }
type Answer = { status: number; body: Thing & { items?: Thing[]; message?: string } }

const config = new KubeConfig()
config.loadFromDefault()
const cluster = config.getCurrentCluster()
need(cluster, "KUBECONFIG names no cluster")
const https: RequestOptions = {}
await config.applyToHTTPSOptions(https)
const tls = { ca: https.ca, cert: https.cert, key: https.key, rejectUnauthorized: !cluster.skipTLSVerify }
const authority = cluster.caData ?? (cluster.caFile ? readFileSync(cluster.caFile, "base64") : undefined)
/** Where the API server is, and the certificate authority that has signed for it. */
export const apiServer = { url: cluster.server, ca: Buffer.from(authority ?? "", "base64").toString() }

export function request(
  method: string,
  path: string,
  body?: unknown,
  signal?: AbortSignal,
  more: RequestInit = {},
): Promise<Response> {
  const type = method === "PATCH" ? "application/merge-patch+json" : "application/json"
  const headers = { ...(https.headers as Record<string, string>), "content-type": type }
  const init = {
    method,
    headers,
    tls,
    timeout: false,
    ...(body ? { body: JSON.stringify(body) } : {}),
    signal: signal ?? AbortSignal.timeout(30_000),
    ...more,
  }
  return fetch(cluster!.server + path, init as RequestInit)
}

/** On kine an empty list can fail beside writes, with 504 ResourceVersionTooLarge: then it is asked for again. */
export async function call(method: string, path: string, body?: unknown, tries = 20): Promise<Answer> {
  const response = await request(method, path, body)
  const answer = (await response.json()) as Answer["body"]
  if (method === "GET" && response.status === 504 && tries > 1) return call(method, path, body, tries - 1)
  return { status: response.status, body: answer }
}

/** A call that must succeed. */
export async function must(method: string, path: string, body?: unknown): Promise<Answer["body"]> {
  const { status, body: answer } = await call(method, path, body)
  need(status < 300, `${method} ${path}: ${status} ${answer.message}`)
  return answer
}

/** Whether pods run here: a control plane without a node has Jobs whose pods only exist. */
export const hasNode = () => {
  nodes ??= must("GET", "/api/v1/nodes")
  return nodes.then(({ items }) => items!.length > 0)
}
let nodes: ReturnType<typeof must> | undefined

const apiOf = (resource: string) =>
  ({
    jobs: "/apis/batch/v1",
    cronjobs: "/apis/batch/v1",
    roles: "/apis/rbac.authorization.k8s.io/v1",
    rolebindings: "/apis/rbac.authorization.k8s.io/v1",
  })[resource] ?? "/api/v1"

/** The Role that is shipped, and the one that the Python operator had. */
const roles = { operator: OPERATOR_ROLE, old: OLD_ROLE }
export type Role = keyof typeof roles

export class Namespace {
  readonly operators: Operator[] = []
  /** What has to be done before the namespace is removed. */
  readonly tidyUps: (() => unknown)[] = []
  private readonly watches = new AbortController()
  constructor(readonly name: string) {}

  path(resource: string, name = "") {
    return `${apiOf(resource)}/namespaces/${this.name}/${resource}${name && `/${name}`}`
  }
  async list(resource: string): Promise<Thing[]> {
    return (await must("GET", this.path(resource))).items!
  }
  async find(resource: string, name: string): Promise<Thing | undefined> {
    const { status, body } = await call("GET", this.path(resource, name))
    need(status === 200 || status === 404, `GET ${name}: ${status} ${body.message}`)
    return status === 200 ? body : undefined
  }
  job(name: string) {
    return this.find("jobs", name)
  }
  create(resource: string, manifest: Manifest): Promise<Thing> {
    return must("POST", this.path(resource), manifest)
  }
  patch(resource: string, name: string, patch: Json): Promise<Thing> {
    return must("PATCH", this.path(resource, name), patch)
  }
  async podsOf(job: Thing): Promise<Thing[]> {
    return (await this.list("pods")).filter((pod) =>
      pod.metadata.ownerReferences?.some((o) => o.uid === job.metadata.uid),
    )
  }
  async failed(name: string, ms = 120_000): Promise<Thing> {
    return until(
      `Job ${name} is Failed`,
      async () => {
        const job = await this.job(name)
        return job && failedAt(job) !== undefined ? job : undefined
      },
      ms,
    )
  }
  /** Lets the pod of a Job of `idleJob` fail as the kubelet would report it; the Job fails with it. */
  async failByHand(job: Thing, exitCode = 3, reason = "Error"): Promise<void> {
    const pod = await until(`Job ${job.metadata.name} has a pod`, async () => (await this.podsOf(job))[0])
    await this.failPod(pod.metadata.name, exitCode, reason)
  }
  async failPod(name: string, exitCode = 3, reason = "Error"): Promise<void> {
    const terminated = {
      exitCode,
      reason,
      startedAt: "2026-01-01T00:00:00Z",
      finishedAt: "2026-01-01T00:00:01Z",
    }
    const main = { name: "main", image: "none", imageID: "none", ready: false, restartCount: 0, state: { terminated } }
    await must("PATCH", `${this.path("pods", name)}/status`, {
      status: { phase: "Failed", containerStatuses: [main] },
    })
  }
  /** The Job of that name, once it is another one than `old`. */
  async another(old: Thing, ms = 60_000): Promise<Thing> {
    return until(
      `Job ${old.metadata.name} is there with a new uid`,
      async () => {
        const job = await this.job(old.metadata.name)
        return job && job.metadata.uid !== old.metadata.uid ? job : undefined
      },
      ms,
    )
  }
  async intents(): Promise<Thing[]> {
    return (await this.list("jobs")).filter((job) => job.metadata.labels?.[`${prefix}intent`] !== undefined)
  }
  noIntent(ms = 10_000) {
    return until("no intent is left", async () => (await this.intents()).length === 0, ms)
  }

  /** Calls `see` for each event from now on, until the namespace is removed. */
  async watch(resource: string, see: (type: string, thing: Thing) => void): Promise<void> {
    const from = (await must("GET", this.path(resource))).metadata.resourceVersion
    const response = await request(
      "GET",
      `${this.path(resource)}?watch=1&resourceVersion=${from}`,
      undefined,
      this.watches.signal,
    )
    const read = async () => {
      let rest = ""
      const text = new TextDecoder()
      for await (const chunk of response.body!) {
        const lines = (rest + text.decode(chunk, { stream: true })).split("\n")
        rest = lines.pop()!
        for (const line of lines) {
          const event: { type: string; object: Thing } = JSON.parse(line)
          see(event.type, event.object)
        }
      }
    }
    read().catch((error: unknown) => {
      if (!this.watches.signal.aborted) console.log(`          watch of ${resource} in ${this.name}: ${error}`)
    })
  }

  /** A kubeconfig file for the ServiceAccount that is bound to this Role. */
  async kubeconfig(role: Role): Promise<string> {
    const answer = await must("POST", `${this.path("serviceaccounts", role)}/token`, {
      spec: { expirationSeconds: 3600 },
    })
    const file = join(work, `${this.name}-${role}`)
    const content = {
      apiVersion: "v1",
      kind: "Config",
      "current-context": "e2e",
      clusters: [{ name: "e2e", cluster: { server: cluster!.server, "certificate-authority-data": authority } }],
      users: [{ name: "e2e", user: { token: answer.status!.token } }],
      contexts: [{ name: "e2e", context: { cluster: "e2e", user: "e2e", namespace: this.name } }],
    }
    await writeFile(file, JSON.stringify(content), { mode: 0o600 })
    return file
  }
  /** Starts the operator's binary with these settings and nothing else in its environment. */
  async operator(env: Record<string, string>, role: Role = "operator", program = binary): Promise<Operator> {
    const all = { KUBECONFIG: await this.kubeconfig(role), NAMESPACE: this.name, HOME: work, ...env }
    const operator = new Operator(all, [], program)
    this.operators.push(operator)
    return operator
  }
  /** Asks for the removal of all that was made. */
  async remove(): Promise<void> {
    this.watches.abort()
    for (const tidyUp of this.tidyUps) await tidyUp()
    for (const resource of ["jobs", "pods"])
      for (const thing of await this.list(resource))
        if (thing.metadata.finalizers?.includes(hold)) await this.release(resource, thing)
    await call("DELETE", `/api/v1/namespaces/${this.name}`)
  }
  /** Keeps a thing from going away before it is released. */
  hold(resource: string, thing: Thing) {
    return this.patch(resource, thing.metadata.name, {
      metadata: { finalizers: [...(thing.metadata.finalizers ?? []), hold] },
    })
  }
  async release(resource: string, thing: Thing): Promise<void> {
    const now = await this.find(resource, thing.metadata.name)
    if (now)
      await this.patch(resource, thing.metadata.name, {
        metadata: { finalizers: now.metadata.finalizers?.filter((f) => f !== hold) ?? [] },
      })
  }
}
/** The finalizer with which a thing is held. */
export const hold = "e2e.example.com/hold"
const run = crypto.randomUUID().slice(0, 6)
const namespaces: Namespace[] = []

/** Makes a namespace with a ServiceAccount for each Role. */
async function namespace(): Promise<Namespace> {
  // No words in the name: what the log says of a Job is searched for words.
  const name = `e2e-${run}-${String(namespaces.length + 1).padStart(2, "0")}`
  const ns = new Namespace(name)
  namespaces.push(ns)
  await must("POST", "/api/v1/namespaces", { metadata: { name } })
  for (const [role, rules] of Object.entries(roles)) {
    await ns.create("serviceaccounts", { metadata: { name: role } })
    await ns.create("roles", { metadata: { name: role }, rules })
    await ns.create("rolebindings", {
      metadata: { name: role },
      roleRef: { apiGroup: "rbac.authorization.k8s.io", kind: "Role", name: role },
      subjects: [{ kind: "ServiceAccount", name: role, namespace: name }],
    })
  }
  await until("the namespace has its default ServiceAccount", () => ns.find("serviceaccounts", "default"))
  return ns
}

/** Waits until all that was made is gone. */
export async function allGone(): Promise<void> {
  for (const ns of namespaces) {
    await until(
      `namespace ${ns.name} is gone`,
      async () => (await call("GET", `/api/v1/namespaces/${ns.name}`)).status === 404,
      300_000,
    )
  }
}

/** After an interrupt: asks for the removal of all that was made, without waiting for it. */
export async function abandon(): Promise<void> {
  await Promise.allSettled(namespaces.flatMap((ns) => [...ns.operators.map((o) => o.stop("SIGKILL")), ns.remove()]))
  await rm(work, { recursive: true, force: true })
}

// ---------------------------------------------------------------- Jobs, as adjectives

export type Options = {
  name: string
  labels?: Record<string, string>
  annotations?: Record<string, string>
  spec?: { [key: string]: Json } // of the Job
  pod?: { [key: string]: Json } // the pod's spec
  container?: { [key: string]: Json }
}
export const container = (
  name: string,
  script: string,
  more: { [key: string]: Json } = {},
): { [key: string]: Json } => ({
  name,
  image,
  imagePullPolicy: "IfNotPresent",
  command: ["/bin/sh", "-c", script],
  ...more,
})

/** A Job with one container, `main`, that runs this script. */
export const jobThat = (
  script: string,
  { name, labels, annotations, spec, pod, container: more }: Options,
): Manifest => ({
  apiVersion: "batch/v1",
  kind: "Job",
  metadata: { name, ...(labels && { labels }), ...(annotations && { annotations }) },
  spec: {
    backoffLimit: 0,
    ...spec,
    template: {
      spec: {
        restartPolicy: "Never",
        terminationGracePeriodSeconds: 1,
        containers: [container("main", script, more)],
        ...pod,
      },
    },
  },
})
export const failingJob = ({ exitCode = 3, ...options }: Options & { exitCode?: number }) =>
  jobThat(`echo it fails; exit ${exitCode}`, options)
/** A Job whose pod no node takes: `failByHand` makes it fail, at a known time and without work for the node. */
export const idleJob = (options: Options) =>
  failingJob({ ...options, pod: { schedulerName: "nobody", ...options.pod } })
export const succeedingJob = (options: Options) => jobThat("exit 0", options)
export const runningJob = (options: Options) => jobThat("exec sleep 3600", options)
export const suspendedJob = (options: Options) => runningJob({ ...options, spec: { ...options.spec, suspend: true } })
export const oomJob = (options: Options) =>
  jobThat("echo before the end; exec tail /dev/zero", {
    ...options,
    pod: { restartPolicy: "OnFailure", terminationGracePeriodSeconds: 30 },
    container: { resources: { requests: { memory: "32Mi" }, limits: { memory: "32Mi" } } },
  })

type Container = { state?: Terminated; lastState?: Terminated }
type Terminated = { terminated?: { exitCode: number; reason: string } }

/**
 * Proves a claim on a Job that is killed for its memory, each time with a Job of another name: a busy node may end a
 * container before the kubelet is told of the kill. Then it reports 137 and Error, nobody can know, and another Job is
 * taken.
 */
export async function withOomKills<T>(ns: Namespace, name: string, prove: (name: string) => Promise<T>): Promise<T> {
  const unreported = new Set<string>()
  await ns.watch("pods", (_, { metadata, status }) => {
    const containers = (status as { containerStatuses?: Container[] } | undefined)?.containerStatuses ?? []
    const isKill = ({ terminated }: Terminated = {}) => terminated?.exitCode === 137 && terminated.reason === "Error"
    if (containers.some(({ state, lastState }) => isKill(state) || isKill(lastState))) unreported.add(metadata.name)
  })
  for (const another of ["", "-b", "-c", "-d"].map((ending) => name + ending)) {
    const isUnreported = () => [...unreported].some((pod) => pod.startsWith(`${another}-`))
    const over = new AbortController()
    const lookout = until("", () => over.signal.aborted || isUnreported(), 600_000).then(() => undefined)
    const proof = prove(another).then((result) => ({ result }))
    const first = await Promise.race([proof, lookout]).finally(() => over.abort())
    if (first) return first.result
    proof.catch(() => {})
  }
  throw new Error("four times the kubelet did not say OOMKilled")
}

/** When the Job failed: epoch milliseconds, whole seconds as the cluster writes them. */
export const failedAt = (job: Thing) => {
  const condition = job.status?.conditions?.find((c) => c.type === "Failed" && c.status === "True")
  return condition && Date.parse(condition.lastTransitionTime)
}

const generated = ["controller-uid", "job-name", "batch.kubernetes.io/controller-uid", "batch.kubernetes.io/job-name"]

/** What the user wrote of a Job, with the server's defaults, without what the server makes anew for each Job. */
export function content(job: Thing): Json {
  const { name, labels, annotations, finalizers, ownerReferences } = job.metadata
  const without = (map: Record<string, string> | undefined, gone: (key: string) => boolean) =>
    Object.fromEntries(Object.entries(map ?? {}).filter(([key]) => !gone(key)))
  const {
    selector: _,
    template,
    ...spec
  } = job.spec as { [key: string]: Json } & { template: { metadata: { labels: Record<string, string> } } }
  const podLabels = without(template.metadata.labels, (key) => generated.includes(key))
  return {
    name,
    labels: without(labels, (key) => generated.includes(key)),
    annotations: without(annotations, (key) => key.startsWith(prefix)),
    finalizers: finalizers?.filter((f) => f !== "foregroundDeletion" && f !== "orphan") ?? [],
    owners: (ownerReferences ?? []).map((o) => o.uid),
    spec: { ...spec, template: { ...template, metadata: { ...template.metadata, labels: podLabels } } },
  }
}

/** The paths at which two values differ. */
export function differences(a: Json | undefined, b: Json | undefined, path = ""): string[] {
  if (Bun.deepEquals(a, b, true)) return []
  if (!a || !b || typeof a !== "object" || typeof b !== "object")
    return [`${path}: ${JSON.stringify(a)} became ${JSON.stringify(b)}`]
  const [x, y] = [a, b] as { [key: string]: Json }[]
  return [...new Set([...Object.keys(x!), ...Object.keys(y!)])].flatMap((key) =>
    differences(x![key], y![key], `${path}/${key}`),
  )
}

// ---------------------------------------------------------------- the operator

export class Operator {
  readonly lines: string[] = []
  readonly spawnedAt = performance.timeOrigin + performance.now()
  private readonly child: Bun.Subprocess<"ignore", "pipe", "pipe">

  constructor(env: Record<string, string>, args: string[] = [], program = binary) {
    this.child = Bun.spawn([program, ...args], { env, stdin: "ignore", stdout: "pipe", stderr: "pipe" })
    for (const stream of [this.child.stdout, this.child.stderr]) this.read(stream)
  }
  private async read(stream: ReadableStream<Uint8Array>): Promise<void> {
    let rest = ""
    const text = new TextDecoder()
    for await (const chunk of stream) {
      const lines = (rest + text.decode(chunk, { stream: true })).split("\n")
      rest = lines.pop()!
      this.lines.push(...lines)
    }
    if (rest) this.lines.push(rest)
  }
  get pid() {
    return this.child.pid
  }
  get exited() {
    return this.child.exited
  }
  get running() {
    return this.child.exitCode === null && this.child.signalCode === null
  }
  kill(signal: NodeJS.Signals) {
    this.child.kill(signal)
  }
  /** Waits for the exit code. */
  async ended(ms = 40_000): Promise<number> {
    const code = await Promise.race([this.exited, Bun.sleep(ms)])
    need(code !== undefined, `still running after ${seconds(ms)}`)
    return code
  }
  stop(signal: NodeJS.Signals = "SIGTERM"): Promise<number> {
    this.kill(signal)
    return this.ended()
  }
  /** The lines in which all of these occur. */
  saying(...patterns: (RegExp | string)[]): string[] {
    return this.lines.filter((line) => patterns.every((p) => (typeof p === "string" ? line.includes(p) : p.test(line))))
  }
  says(what: string, patterns: (RegExp | string)[], ms = 60_000): Promise<string> {
    return until(`the operator says ${what} (${patterns.join(" and ")})`, () => this.saying(...patterns)[0], ms)
  }
  /** Memory that no file backs, in MiB, and the seconds of processor time so far. */
  async usage(): Promise<{ anonymous: number; resident: number; cpu: number }> {
    const status = await readFile(`/proc/${this.pid}/status`, "utf8")
    const mib = (name: string) => Number(new RegExp(`^${name}:\\s+(\\d+) kB`, "m").exec(status)?.[1]) / 1024
    const stat = (await readFile(`/proc/${this.pid}/stat`, "utf8")).split(") ")[1]!.split(" ")
    return { anonymous: mib("RssAnon"), resident: mib("VmRSS"), cpu: (Number(stat[11]) + Number(stat[12])) / 100 }
  }
}

// ---------------------------------------------------------------- the audit log

export type Call = { id: string; at: number; verb: string; what: string; name: string; code: number; uri: string }

/** The calls of a ServiceAccount, in their order, each once: a watch is two lines of the log. */
export async function calls(ns: Namespace, role: Role = "operator"): Promise<Call[]> {
  need(auditLog && existsSync(auditLog), `there is no file ${auditLog}`)
  const user = `system:serviceaccount:${ns.name}:${role}`
  const found = new Map<string, Call>()
  for (const line of (await readFile(auditLog, "utf8")).split("\n")) {
    if (!line.includes(`"${user}"`)) continue
    const event: AuditEvent = JSON.parse(line)
    if (event.user.username !== user) continue
    const { resource = event.requestURI, subresource, name = "" } = event.objectRef ?? {}
    const code = event.responseStatus?.code ?? 0
    const what = subresource ? `${resource}/${subresource}` : resource
    const received = event.requestReceivedTimestamp // with microseconds
    const at = Date.parse(`${received.slice(0, 23)}Z`) + Number(received.slice(23, 26)) / 1000
    found.set(event.auditID, { id: event.auditID, at, verb: event.verb, what, name, code, uri: event.requestURI })
  }
  return [...found.values()].sort((a, b) => a.at - b.at)
}
type AuditEvent = {
  auditID: string
  verb: string
  requestURI: string
  requestReceivedTimestamp: string
  user: { username: string }
  objectRef?: { resource?: string; subresource?: string; name?: string }
  responseStatus?: { code?: number }
}
