// What an API server, a Job controller, a garbage collector and a kubelet do, as far as Jobs need it: in memory, without
// HTTP, timers or a clock of its own. Behind HTTPS it is the embedded server; driven directly, the world of a simulation.
//
// Invariant: a stored object is never changed in place, each write stores a new one. So answers and events need no copies,
// and whoever gets or hands over an object must not change it afterwards.
import type {
  V1JobCondition,
  V1JobSpec,
  V1JobStatus,
  V1ObjectMeta,
  V1PodSpec,
  V1PodStatus,
} from "@kubernetes/client-node"

/** The client's types as they travel: instants are strings. */
export type Wire<T> = T extends Date
  ? string
  : T extends (infer U)[]
    ? Wire<U>[]
    : T extends object
      ? { [K in keyof T]: Wire<T[K]> }
      : T
type Meta = Wire<V1ObjectMeta> & { name: string; namespace: string; uid: string; resourceVersion: string }
export type Obj = { apiVersion: string; kind: string; metadata: Meta; spec?: unknown; status?: unknown } & Json
export type Job = Obj & { spec: Wire<V1JobSpec>; status: Wire<V1JobStatus> }
export type Pod = Obj & { spec: Wire<V1PodSpec>; status: Wire<V1PodStatus> }
type Json = Record<string, unknown>
type Labels = Record<string, string>
type Container = Wire<V1PodSpec>["containers"][number]
type ContainerStatus = NonNullable<Wire<V1PodStatus>["containerStatuses"]>[number]

/** One attempt of a pod, or of a container restarted in place. Without runMs a container runs for ever. */
export interface Attempt {
  runMs?: number
  containers?: Record<string, { exitCode?: number; reason?: string; log?: string; runMs?: number; logLost?: boolean }>
  evicted?: boolean
  imagePull?: string
  /** From SIGTERM to the end of the containers; never longer than the grace period. */
  graceMs?: number
}
export const SCRIPT = "test/script"

export interface Rule {
  verbs: string[]
  apiGroups?: string[]
  resources?: string[]
  resourceNames?: string[]
}
/** Rules hold in every namespace, or in the named ones only, as a Role's do. */
export interface User {
  rules: Rule[]
  namespaces?: string[]
  incomplete?: boolean
}

export interface Request {
  verb: "get" | "list" | "create" | "update" | "patch" | "delete" | "deletecollection" | "watch"
  resource: string
  group?: string
  namespace?: string
  name?: string
  subresource?: string
  query?: Record<string, string>
  body?: unknown
  contentType?: string
  /** Without one, or with one that the model does not know, everything is allowed. */
  user?: string
}
export interface Answer {
  status: number
  body: unknown
  warning?: string
}
export interface WatchEvent {
  type: "ADDED" | "MODIFIED" | "DELETED" | "BOOKMARK" | "ERROR"
  object: Obj
}
export interface Watching extends Answer {
  close(): void
}

export interface Timing {
  /** The Job controller answers a change of a Job after this... */
  syncMs: number
  /** ...and a change of its pods after this. */
  batchMs: number
  /** From a pod's creation to its running containers. */
  startMs: number
  /** From SIGTERM to the end of the containers, where the script has no graceMs. */
  deletionDelayMs: number
  /** From the end of the containers to the pod's disappearance. */
  removeMs: number
  /** Before the first retry; doubles each time up to 36 fold. */
  backoffMs: number
  /** The garbage collector's delay. */
  gcMs: number
}
/** As measured with a 1.35.1 control plane and kubelet. */
export const REAL: Timing = {
  syncMs: 5,
  batchMs: 1000,
  startMs: 600,
  deletionDelayMs: 100,
  removeMs: 800,
  backoffMs: 10_000,
  gcMs: 15,
}
export const FAST: Timing = {
  syncMs: 1,
  batchMs: 10,
  startMs: 10,
  deletionDelayMs: 20,
  removeMs: 10,
  backoffMs: 20,
  gcMs: 2,
}
export interface ModelOptions extends Partial<Timing> {
  /** Epoch milliseconds. */
  now(): number
  random?(): number
  /** What a script's attempts are counted by: the Job's name, across restarts, or its uid. */
  attemptsPer?: "name" | "uid"
  /** Events kept for watches and for continued lists. */
  historyLimit?: number
  /** Called when something new is due. */
  onDue?(): void
  /** Milliseconds that no one sets: what delays are counted by, where now() may jump. Without it, now(). */
  elapsed?(): number
  /** Called at each write, when it is done and before anyone is told. */
  onChange?(change: Change): void
}

const KINDS: Record<string, { group: string; version: string; kind: string; cluster?: boolean; fields?: string[] }> = {
  jobs: { group: "batch", version: "v1", kind: "Job", fields: ["status.successful"] },
  cronjobs: { group: "batch", version: "v1", kind: "CronJob" },
  pods: { group: "", version: "v1", kind: "Pod", fields: ["status.phase", "spec.nodeName", "spec.restartPolicy"] },
  configmaps: { group: "", version: "v1", kind: "ConfigMap" },
  resourcequotas: { group: "", version: "v1", kind: "ResourceQuota" },
  namespaces: { group: "", version: "v1", kind: "Namespace", cluster: true, fields: ["status.phase"] },
  events: {
    group: "",
    version: "v1",
    kind: "Event",
    fields: ["reason", "type", "involvedObject.name", "involvedObject.uid"],
  },
}
const TRACKING = "batch.kubernetes.io/job-tracking"
const INDEX = "batch.kubernetes.io/job-completion-index"
const CONTROLLER_UID = "batch.kubernetes.io/controller-uid"
const JOB_NAME = "batch.kubernetes.io/job-name"

// ---- Refusals

class Refused {
  constructor(readonly answer: Answer) {}
}
interface Cause {
  reason: string
  message: string
  field: string
}
export function failure(code: number, reason: string | undefined, message: string, details?: Json): Json {
  const extra = { ...(reason && { reason }), ...(details && { details }), code }
  return { kind: "Status", apiVersion: "v1", metadata: {}, status: "Failure", message, ...extra }
}
const refuse = (code: number, reason: string | undefined, message: string, details?: Json) =>
  new Refused({ status: code, body: failure(code, reason, message, details) })

const qualified = (name: string, resource: string) =>
  KINDS[resource]?.group ? `${name}.${KINDS[resource].group}` : name
const detailsOf = (resource: string, name: string | undefined, kind = resource): Json => ({
  ...(name && { name }),
  ...(KINDS[resource]?.group && { group: KINDS[resource].group }),
  kind,
})
const notFound = (resource: string, name: string) =>
  refuse(404, "NotFound", `${qualified(resource, resource)} "${name}" not found`, detailsOf(resource, name))
function invalid(resource: string, name: string, causes: Cause[]): Refused {
  const { kind } = KINDS[resource]!
  const all = [...new Set(causes.map((c) => `${c.field}: ${c.message}`))]
  const message = `${qualified(kind, resource)} "${name}" is invalid: ${all.length > 1 ? `[${all.join(", ")}]` : all[0]}`
  return refuse(422, "Invalid", message, { ...detailsOf(resource, name, kind), causes })
}
const invalidValue = (field: string, value: unknown, why: string): Cause => ({
  reason: "FieldValueInvalid",
  message: `Invalid value: ${JSON.stringify(value ?? null)}: ${why}`,
  field,
})
const required = (field: string, why?: string): Cause => ({
  reason: "FieldValueRequired",
  message: `Required value${why ? `: ${why}` : ""}`,
  field,
})
const forbiddenField = (field: string, why: string): Cause => ({
  reason: "FieldValueForbidden",
  message: `Forbidden: ${why}`,
  field,
})
const forbidden = (resource: string, name: string | undefined, why: string, causes?: Cause[]) =>
  refuse(403, "Forbidden", `${qualified(resource, resource)}${name ? ` "${name}"` : ""} is forbidden: ${why}`, {
    ...detailsOf(resource, name),
    ...(causes && { causes }),
  })
const conflict = (kind: string, resource: string, name: string, why: string) =>
  refuse(409, "Conflict", `Operation cannot be fulfilled on ${qualified(kind, resource)} "${name}": ${why}`, {
    ...detailsOf(resource, name, kind),
  })
const badRequest = (message: string) => refuse(400, "BadRequest", message)

// ---- Authorization

export function allows(rules: Rule[], r: Request): boolean {
  const resource = r.subresource ? `${r.resource}/${r.subresource}` : r.resource
  const group = r.group ?? KINDS[r.resource]?.group ?? ""
  const name = r.name ?? /^metadata\.name==?([^,]+)$/.exec(r.query?.fieldSelector ?? "")?.[1]
  const has = (list: string[] | undefined, ...wanted: string[]) =>
    list?.some((x) => x === "*" || wanted.includes(x)) ?? false
  return rules.some(
    (rule) =>
      has(rule.verbs, r.verb) &&
      has(rule.apiGroups, group) &&
      has(rule.resources, resource, r.subresource ? `*/${r.subresource}` : "*") &&
      (!rule.resourceNames?.length || (name !== undefined && rule.resourceNames.includes(name))),
  )
}

// ---- Selectors

type Matcher = (o: Obj) => boolean
const selectors = new Map<string, (labels: Labels) => boolean>()

export function labelSelector(text: string): (labels: Labels) => boolean {
  const known = selectors.get(text)
  if (known) return known
  const tests = text.split(/,(?![^(]*\))/).map((part): ((l: Labels) => boolean) => {
    const m = /^\s*(!?)\s*([\w./-]+)\s*(?:(==?|!=)\s*([\w.-]*)|\s(in|notin)\s*\(([^)]*)\))?\s*$/.exec(part)
    if (!m || (m[1] && (m[3] || m[5])))
      throw badRequest(`unable to parse requirement: found '${part}', expected: identifier`)
    const [, not, key = "", equality, value = "", set, list = ""] = m
    if (equality) return equality === "!=" ? (l) => l[key] !== value : (l) => l[key] === value
    const values = list.split(",").map((v) => v.trim())
    if (set === "in") return (l) => key in l && values.includes(l[key]!)
    if (set === "notin") return (l) => !(key in l) || !values.includes(l[key]!)
    return not ? (l) => !(key in l) : (l) => key in l
  })
  const all = (labels: Labels) => tests.every((test) => test(labels))
  if (selectors.size > 1000) selectors.clear()
  selectors.set(text, all)
  return all
}

function matcher(resource: string, query: Record<string, string> = {}): Matcher {
  const tests: Matcher[] = []
  if (query.labelSelector) {
    const select = labelSelector(query.labelSelector)
    tests.push((o) => select(o.metadata.labels ?? {}))
  }
  for (const part of query.fieldSelector?.split(",") ?? []) {
    const [, path = "", op, value] = /^([^!=]+)(==?|!=)(.*)$/.exec(part) ?? []
    const { kind, fields = [] } = KINDS[resource]!
    if (!op || !["metadata.name", "metadata.namespace", ...fields].includes(path))
      throw badRequest(
        resource === "pods" ? `field label not supported: ${path}` : `field label "${path}" not supported for ${kind}`,
      )
    const steps = (path === "status.successful" ? "status.succeeded" : path).split(".")
    const absent = path === "status.successful" ? 0 : ""
    const read = (o: Obj) => String(steps.reduce<unknown>((at, step) => (at as Json | undefined)?.[step], o) ?? absent)
    tests.push((o) => (read(o) === value) === (op !== "!="))
  }
  return tests.length ? (o) => tests.every((test) => test(o)) : () => true
}
function selects(selector: Wire<V1JobSpec>["selector"], labels: Labels): boolean {
  const one = (e: { key: string; operator: string; values?: string[] }) => {
    const has = e.key in labels
    if (e.operator === "Exists" || e.operator === "DoesNotExist") return has === (e.operator === "Exists")
    return (has && (e.values ?? []).includes(labels[e.key]!)) === (e.operator === "In")
  }
  const equal = Object.entries(selector?.matchLabels ?? {}).every(([k, v]) => labels[k] === v)
  return equal && (selector?.matchExpressions ?? []).every(one)
}

// ---- Defaults and validation

const defaultMode = <T extends { defaultMode?: number }>(source: T | undefined) =>
  source && { defaultMode: 420, ...source }

function defaultContainer(c: Container): Container {
  const tag = /:([^:/@]+)(@.*)?$/.exec(c.image ?? "")?.[1]
  const latest = !c.image?.includes("@") && (tag ?? "latest") === "latest"
  return {
    ...c,
    ...(c.ports && { ports: c.ports.map((p) => ({ protocol: "TCP", ...p })) }),
    ...(c.env && {
      env: c.env.map((e) =>
        e.valueFrom?.fieldRef
          ? { ...e, valueFrom: { ...e.valueFrom, fieldRef: { apiVersion: "v1", ...e.valueFrom.fieldRef } } }
          : e,
      ),
    }),
    resources: c.resources ?? {},
    terminationMessagePath: c.terminationMessagePath ?? "/dev/termination-log",
    terminationMessagePolicy: c.terminationMessagePolicy ?? "File",
    imagePullPolicy: c.imagePullPolicy ?? (latest ? "Always" : "IfNotPresent"),
  }
}
function defaultPodSpec(s: Wire<V1PodSpec>): Wire<V1PodSpec> {
  return {
    ...s,
    ...(s.volumes && {
      volumes: s.volumes.map((v) => ({
        ...(Object.keys(v).length === 1 && { emptyDir: {} }),
        ...v,
        ...(v.secret && { secret: defaultMode(v.secret)! }),
        ...(v.configMap && { configMap: defaultMode(v.configMap)! }),
        ...(v.projected && { projected: defaultMode(v.projected)! }),
        ...(v.downwardAPI && { downwardAPI: defaultMode(v.downwardAPI)! }),
        ...(v.hostPath && { hostPath: { type: "", ...v.hostPath } }),
      })),
    }),
    ...(s.initContainers && { initContainers: s.initContainers.map(defaultContainer) }),
    containers: (s.containers ?? []).map(defaultContainer),
    ...(s.serviceAccountName && { serviceAccount: s.serviceAccountName }),
    restartPolicy: s.restartPolicy ?? "Always",
    terminationGracePeriodSeconds: s.terminationGracePeriodSeconds ?? 30,
    dnsPolicy: s.dnsPolicy ?? "ClusterFirst",
    securityContext: s.securityContext ?? {},
    schedulerName: s.schedulerName ?? "default-scheduler",
  }
}
function defaultJob(job: Obj): Job {
  const given = (job.spec ?? {}) as Wire<V1JobSpec>
  const { uid, name } = job.metadata
  const meta = given.template?.metadata
  let labels = meta?.labels
  let selector = given.selector
  if (given.manualSelector !== true) {
    labels = { [CONTROLLER_UID]: uid, [JOB_NAME]: name, "controller-uid": uid, "job-name": name, ...labels }
    selector = { ...selector, matchLabels: { [CONTROLLER_UID]: uid, ...selector?.matchLabels } }
  }
  const own = Object.keys(job.metadata.labels ?? {}).length ? job.metadata.labels : labels
  const spec: Wire<V1JobSpec> = {
    ...given,
    parallelism: given.parallelism ?? 1,
    ...(given.parallelism === undefined && given.completions === undefined && { completions: 1 }),
    backoffLimit: given.backoffLimit ?? (given.backoffLimitPerIndex === undefined ? 6 : 2147483647),
    ...(selector && { selector }),
    manualSelector: given.manualSelector ?? false,
    template: {
      metadata: { ...meta, ...(labels && { labels }) },
      spec: defaultPodSpec(given.template?.spec ?? { containers: [] }),
    },
    completionMode: given.completionMode ?? "NonIndexed",
    suspend: given.suspend ?? false,
    podReplacementPolicy: given.podReplacementPolicy ?? (given.podFailurePolicy ? "Failed" : "TerminatingOrFailed"),
  }
  return { ...job, metadata: { ...job.metadata, ...(own && { labels: own }) }, spec, status: job.status ?? {} }
}

const SUBDOMAIN = /^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$/
const LABEL_VALUE = /^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$/

function validateMeta(m: Meta, labels = m.labels): Cause[] {
  const why =
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
  if (!m.name) return [required("metadata.name", "name or generateName is required")]
  const causes: Cause[] = []
  if (m.name.length > 253) causes.push(invalidValue("metadata.name", m.name, "must be no more than 253 characters"))
  if (!SUBDOMAIN.test(m.name)) causes.push(invalidValue("metadata.name", m.name, why))
  return [...causes, ...validateLabels("metadata.labels", labels)]
}
function validateLabels(field: string, labels: Labels = {}): Cause[] {
  const why =
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
  return Object.values(labels).flatMap((value) => [
    ...(value.length > 63 ? [invalidValue(field, value, "must be no more than 63 bytes")] : []),
    ...(LABEL_VALUE.test(value) ? [] : [invalidValue(field, value, why)]),
  ])
}
function validateJob({ metadata: { name, uid }, spec }: Job): Cause[] {
  const causes: Cause[] = []
  const labels = spec.template.metadata?.labels ?? {}
  const generated: Labels = { "controller-uid": uid, "job-name": name, [CONTROLLER_UID]: uid, [JOB_NAME]: name }
  if (spec.manualSelector !== true) {
    for (const [key, value] of Object.entries(generated))
      if (labels[key] !== value)
        causes.push(invalidValue(`spec.template.metadata.labels[${key}]`, labels, `must be '${value}'`))
    if (!selects(spec.selector, generated))
      causes.push(invalidValue("spec.selector", spec.selector, "`selector` not auto-generated"))
  }
  for (const field of [
    "parallelism",
    "completions",
    "backoffLimit",
    "activeDeadlineSeconds",
    "ttlSecondsAfterFinished",
  ] as const)
    if ((spec[field] ?? 0) < 0)
      causes.push(invalidValue(`spec.${field}`, spec[field], "must be greater than or equal to 0"))
  if (!spec.selector) causes.push(required("spec.selector"))
  if (!spec.selector || !selects(spec.selector, labels))
    causes.push(
      invalidValue(
        "spec.template.metadata.labels",
        spec.template.metadata?.labels,
        "`selector` does not match template `labels`",
      ),
    )
  causes.push(...validateLabels("spec.template.labels", labels))
  const pod = spec.template.spec!
  if (!pod.containers.length) causes.push(required("spec.template.spec.containers"))
  for (const [i, c] of pod.containers.entries()) {
    if (!c.name) causes.push(required(`spec.template.spec.containers[${i}].name`))
    if (!c.image) causes.push(required(`spec.template.spec.containers[${i}].image`))
  }
  if (spec.podFailurePolicy && pod.restartPolicy === "OnFailure") {
    const why = 'only "Never" is supported when podFailurePolicy is specified'
    causes.push(invalidValue("spec.template.spec.restartPolicy", "OnFailure", why))
  }
  if (pod.restartPolicy === "Always")
    causes.push(required("spec.template.spec.restartPolicy", 'valid values: "OnFailure", "Never"'))
  return causes
}
/** Everything but scheduling directives of a Job that never ran, parallelism, suspend and the limits is fixed. */
function validateJobUpdate(next: Job, prev: Job): Cause[] {
  const fixed = ["completions", "selector", "template", "completionMode", "podFailurePolicy", "managedBy"] as const
  const loose = prev.spec.suspend && !prev.status.startTime
  const plain = ({ metadata: _, spec: s }: Job["spec"]["template"]) => {
    const { nodeSelector: _n, tolerations: _t, affinity: _a, schedulingGates: _g, ...rest } = s!
    return rest
  }
  return fixed.flatMap((field) => {
    const was = loose && field === "template" ? plain(prev.spec.template) : prev.spec[field]
    const is = loose && field === "template" ? plain(next.spec.template) : next.spec[field]
    return same(was, is) ? [] : [invalidValue(`spec.${field}`, next.spec[field], "field is immutable")]
  })
}

// ---- Small things

/** Equal as JSON whatever the order of keys, which clients do not keep. */
function same(a: unknown, b: unknown): boolean {
  if (a === b) return true
  if (typeof a !== "object" || typeof b !== "object" || !a || !b) return false
  if (Array.isArray(a) !== Array.isArray(b)) return false
  const [x, y] = [a as Json, b as Json]
  const keys = new Set([...Object.keys(x), ...Object.keys(y)])
  for (const key of keys) if (!same(x[key], y[key])) return false
  return true
}
function mergePatch(target: unknown, patch: unknown): unknown {
  if (typeof patch !== "object" || patch === null || Array.isArray(patch)) return patch
  const out: Json =
    typeof target === "object" && target !== null && !Array.isArray(target) ? { ...(target as Json) } : {}
  for (const [key, value] of Object.entries(patch)) {
    if (value === null) delete out[key]
    else out[key] = mergePatch(out[key], value)
  }
  return out
}
function jsonPatch(target: Obj, ops: { op: string; path: string; value?: unknown }[]): unknown {
  const out = JSON.parse(JSON.stringify(target)) as Json
  const rejected = () => refuse(422, "Invalid", "the server rejected our request due to an error in our request", {})
  for (const { op, path, value } of ops) {
    const steps = path
      .split("/")
      .slice(1)
      .map((s) => s.replaceAll("~1", "/").replaceAll("~0", "~"))
    const last = steps.pop()!
    const at = steps.reduce<unknown>((o, step) => (o as Json | undefined)?.[step], out) as Json | undefined
    if (!at || (op !== "add" && !(last in at))) throw rejected()
    if (op === "test" && !same(at[last], value)) throw rejected()
    if (op === "remove") Array.isArray(at) ? at.splice(Number(last), 1) : delete at[last]
    if (op === "add" && Array.isArray(at)) at.splice(last === "-" ? at.length : Number(last), 0, value)
    else if (op === "add" || op === "replace") at[last] = value
  }
  return out
}
/** Events are stored as core/v1 has them; events.k8s.io has other names for the same fields. */
const EVENT_NAMES = [
  ["message", "note"],
  ["involvedObject", "regarding"],
  ["reportingComponent", "reportingController"],
  ["source", "deprecatedSource"],
  ["firstTimestamp", "deprecatedFirstTimestamp"],
  ["lastTimestamp", "deprecatedLastTimestamp"],
  ["count", "deprecatedCount"],
] as const
function renameEvent(event: Json, from: 0 | 1): Json {
  const out: Json = { ...event, apiVersion: from ? "v1" : "events.k8s.io/v1" }
  for (const names of EVENT_NAMES) {
    delete out[names[from]]
    if (event[names[from]] !== undefined) out[names[1 - from]!] = event[names[from]]
  }
  return out
}
const untyped = ({ kind: _, apiVersion: __, ...rest }: Obj) => rest
const encodeToken = (rv: number, start: string) =>
  btoa(JSON.stringify({ v: "meta.k8s.io/v1", rv, start })).replace(/=+$/, "")
const seconds = (ms: number) => `${new Date(ms).toISOString().slice(0, 19)}Z`
const keyOf = (o: { metadata: { namespace?: string; name?: string } }) =>
  `${o.metadata.namespace ?? ""}/${o.metadata.name}`
const ended = (pod: Pod) => pod.status.phase === "Failed" || pod.status.phase === "Succeeded"
const condition = (job: Job, type: string) => job.status.conditions?.find((c) => c.type === type && c.status === "True")
const finished = (job: Job) => condition(job, "Failed") ?? condition(job, "Complete")
function withFinalizers<T extends Obj>(o: T, finalizers: string[]): T {
  const { finalizers: _, ...metadata } = o.metadata
  return { ...o, metadata: { ...metadata, ...(finalizers.length && { finalizers }) } as Meta }
}
const without = <T extends Obj>(o: T, finalizer: string): T =>
  withFinalizers(
    o,
    (o.metadata.finalizers ?? []).filter((f) => f !== finalizer),
  )
function pseudoRandom(): () => number {
  let a = 1
  return () => {
    a = (a + 0x6d2b79f5) | 0
    let t = Math.imul(a ^ (a >>> 15), 1 | a)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296
  }
}

interface Due {
  at: number
  run?: (() => void) | undefined
}
export interface Change {
  rv: number
  resource: string
  type: "ADDED" | "MODIFIED" | "DELETED"
  object: Obj
  prev?: Obj | undefined
}
interface Watcher {
  resource: string
  /** Index of the next change to look at, counted from the model's beginning. */
  next: number
  see(change: Change): void
  expire(): void
}
/** A container as its kubelet knows it. */
interface Running {
  name: string
  init: boolean
  status: ContainerStatus
  log?: string
  previousLog?: string
  lost?: boolean | undefined
}
interface Run {
  attempt: Attempt
  containers: Running[]
  evicted?: boolean
  killed?: boolean
}

export class Model {
  readonly objects: Record<string, Map<string, Obj>> = Object.fromEntries(Object.keys(KINDS).map((r) => [r, new Map()]))
  /** Users with limited rights; everyone else may do everything. */
  readonly users = new Map<string, User>()
  readonly timing: Timing
  readonly options: ModelOptions
  rv = 100
  private readonly random: () => number
  private readonly uids = new Map<string, Obj>()
  private history: Change[] = []
  private forgotten = 0
  private compacted = 100
  private readonly watchers = new Set<Watcher>()
  private flushing = false
  /** What is due, the next last. */
  private readonly agenda: Due[] = []
  private readonly pending = new Map<string, Due>()
  private readonly runs = new Map<string, Run>()
  private readonly attempts = new Map<string, number>()
  /** Failures in a row of a Job, ignored ones too, and when its next pod may come. */
  private readonly retries = new Map<string, { n: number; at: number }>()
  private readonly stalled = new Set<string>()
  private nodeUp = true
  private parked: (() => void)[] = []

  constructor(options: ModelOptions) {
    this.options = options
    this.random = options.random ?? pseudoRandom()
    const given = Object.entries(options).filter(([k, v]) => k in FAST && v !== undefined)
    this.timing = { ...FAST, ...Object.fromEntries(given) }
    this.put({ kind: "Namespace", metadata: { name: "default" } })
  }

  // ---- Time

  /** Does what is due by now; says when the next thing is. */
  tick(): number | undefined {
    for (let next = this.agenda.at(-1); next && (!next.run || next.at <= this.elapsed()); next = this.agenda.at(-1)) {
      this.agenda.pop()
      next.run?.()
    }
    this.flush()
    return this.agenda.at(-1)?.at
  }
  private elapsed(): number {
    return (this.options.elapsed ?? this.options.now)()
  }
  private after(ms: number, run: () => void): Due {
    const due: Due = { at: this.elapsed() + ms, run }
    let [low, high] = [0, this.agenda.length]
    while (low < high) {
      const middle = (low + high) >> 1
      if (this.agenda[middle]!.at > due.at) low = middle + 1
      else high = middle
    }
    this.agenda.splice(low, 0, due)
    if (low === this.agenda.length - 1) this.options.onDue?.()
    return due
  }
  /** At most one of an id waits: the earliest. */
  private wake(id: string, ms: number, run: () => void): void {
    const waiting = this.pending.get(id)
    if (waiting && waiting.at <= this.elapsed() + ms) return
    if (waiting) waiting.run = undefined
    const due = this.after(ms, () => {
      this.pending.delete(id)
      run()
    })
    this.pending.set(id, due)
  }
  private id(): string {
    const hex = (n: number) =>
      Array.from({ length: n }, () => "0123456789abcdef"[Math.floor(this.random() * 16)]).join("")
    return `${hex(8)}-${hex(4)}-4${hex(3)}-a${hex(3)}-${hex(12)}`
  }
  private suffix(): string {
    const letters = "bcdfghjklmnpqrstvwxz2456789"
    return Array.from({ length: 5 }, () => letters[Math.floor(this.random() * letters.length)]).join("")
  }

  // ---- Storage

  private record(change: Change): void {
    this.history.push(change)
    this.options.onChange?.(change)
    const limit = this.options.historyLimit ?? 10_000
    if (this.history.length > 2 * limit) this.compact(limit)
    const { resource, object, type, prev } = change
    const { ownerReferences = [], namespace } = object.metadata
    const orphaned = () => ownerReferences.some((o) => !this.uids.has(o.uid))
    if (type === "DELETED" || object.metadata.deletionTimestamp || (ownerReferences.length && orphaned()))
      this.collect()
    if (resource === "jobs") {
      if (type === "ADDED" && this.stalled.delete(keyOf(object))) return
      this.syncLater(keyOf(object), this.timing.syncMs)
    }
    if (resource !== "pods") return
    const job = [...ownerReferences, ...(prev?.metadata.ownerReferences ?? [])].find((o) => o.kind === "Job")
    if (job) this.syncLater(`${namespace}/${job.name}`, this.timing.batchMs)
  }
  private write<T extends Obj>(resource: string, next: T, prev?: Obj): T {
    const object = { ...next, metadata: { ...next.metadata, resourceVersion: String(++this.rv) } }
    this.objects[resource]!.set(keyOf(object), object)
    this.uids.set(object.metadata.uid, object)
    this.record({ rv: this.rv, resource, type: prev ? "MODIFIED" : "ADDED", object, prev })
    return object
  }
  private remove(resource: string, prev: Obj): void {
    this.objects[resource]!.delete(keyOf(prev))
    this.uids.delete(prev.metadata.uid)
    this.runs.delete(prev.metadata.uid)
    this.retries.delete(prev.metadata.uid)
    const object = { ...prev, metadata: { ...prev.metadata, resourceVersion: String(++this.rv) } }
    this.record({ rv: this.rv, resource, type: "DELETED", object, prev })
  }
  /** Writes a change, unless it takes the last finalizer of a dying object: that removes it. */
  private save<T extends Obj>(resource: string, next: T, prev: Obj): T {
    const { deletionTimestamp, finalizers, deletionGracePeriodSeconds: grace } = next.metadata
    if (!deletionTimestamp || finalizers?.length || (resource === "pods" && grace !== 0))
      return this.write(resource, next, prev)
    this.remove(resource, prev)
    return next
  }
  private find(resource: string, namespace: string, name: string): Obj | undefined {
    return this.objects[resource]!.get(`${namespace}/${name}`)
  }
  job(namespace: string, name: string): Job | undefined {
    return this.find("jobs", namespace, name) as Job | undefined
  }
  pods(namespace?: string): Pod[] {
    const all = [...this.objects.pods!.values()] as Pod[]
    return namespace === undefined ? all : all.filter((p) => p.metadata.namespace === namespace)
  }

  // ---- For tests

  /** Stores an object as it is, past admission and validation; a new one gets what is missing in its metadata. */
  put(given: { kind: string; metadata: Partial<Meta>; [field: string]: unknown }): Obj {
    const [resource, { group, version, cluster }] = Object.entries(KINDS).find(([, k]) => k.kind === given.kind)!
    const metadata = { uid: this.id(), creationTimestamp: seconds(this.options.now()), ...given.metadata } as Meta
    if (!cluster) metadata.namespace ??= "default"
    const bare = { ...given, apiVersion: group ? `${group}/${version}` : version, metadata } as Obj
    const object = resource === "jobs" ? defaultJob(bare) : resource === "pods" ? { status: {}, ...bare } : bare
    const stored = this.write(resource, object, this.find(resource, metadata.namespace ?? "", metadata.name))
    this.flush()
    return stored
  }
  setStatus(resource: string, namespace: string, name: string, status: Json): void {
    const prev = this.find(resource, namespace, name)!
    this.save(resource, { ...prev, status: { ...(prev.status as Json), ...status } }, prev)
    this.flush()
  }
  setPodStatus(namespace: string, name: string, status: Partial<Wire<V1PodStatus>>): void {
    this.setStatus("pods", namespace, name, status)
  }
  /** The containers of a pod are gone with their logs: the log endpoint answers 200 with an error sentence. */
  loseLogs(namespace: string, pod: string): void {
    for (const c of this.runs.get(this.find("pods", namespace, pod)?.metadata.uid ?? "")?.containers ?? [])
      c.lost = true
  }
  /** A dead node starts, ends and removes nothing until it is back. */
  node(up: boolean): void {
    this.nodeUp = up
    if (up) for (const step of this.parked.splice(0)) step()
    this.flush()
  }
  /** The next Job of this name gets no pod until it is edited. */
  stall(namespace: string, name: string): void {
    this.stalled.add(`${namespace}/${name}`)
  }
  /** Forgets changes: older resourceVersions and continue tokens answer 410. */
  compact(keep = 0): void {
    const drop = Math.max(0, this.history.length - keep)
    this.compacted = this.history[drop - 1]?.rv ?? this.compacted
    this.history = this.history.slice(drop)
    this.forgotten += drop
  }

  // ---- Requests

  request(r: Request): Answer {
    try {
      this.authorize(r)
      return this.serve(r)
    } catch (e) {
      if (e instanceof Refused) return e.answer
      throw e
    } finally {
      this.flush()
    }
  }
  private authorize(r: Request): void {
    const user = this.users.get(r.user ?? "")
    if (!user || ["selfsubjectrulesreviews", "version"].includes(r.resource)) return
    if ((!user.namespaces || user.namespaces.includes(r.namespace ?? "")) && allows(user.rules, r)) return
    const what = r.subresource ? `${r.resource}/${r.subresource}` : r.resource
    const group = r.group ?? KINDS[r.resource]?.group ?? ""
    const where = r.namespace ? `in the namespace "${r.namespace}"` : "at the cluster scope"
    throw forbidden(
      r.resource,
      r.name,
      `User "${r.user}" cannot ${r.verb} resource "${what}" in API group "${group}" ${where}`,
    )
  }
  private serve(r: Request): Answer {
    if (r.resource === "version") return { status: 200, body: { major: "1", minor: "35", gitVersion: "v1.35.1" } }
    if (r.resource === "selfsubjectrulesreviews") return this.review(r)
    if (!KINDS[r.resource]) throw refuse(404, "NotFound", "the server could not find the requested resource", {})
    const alien = r.resource === "events" && r.group === "events.k8s.io"
    if (alien && r.body) r = { ...r, body: renameEvent(r.body as Json, 1) }
    const answer = this.perform(r)
    const shown = alien && (answer.body as Json).kind === "Event" ? renameEvent(answer.body as Json, 0) : answer.body
    return { ...answer, body: shown }
  }
  private perform(r: Request): Answer {
    if (r.verb === "list") return { status: 200, body: this.list(r) }
    if (r.verb === "create") return this.create(r)
    if (r.verb === "deletecollection") return this.deleteAll(r)
    const found = this.find(r.resource, KINDS[r.resource]!.cluster ? "" : (r.namespace ?? ""), r.name ?? "")
    if (!found) throw notFound(r.resource, r.name ?? "")
    if (r.subresource === "log") return { status: 200, body: this.log(found as Pod, r.query ?? {}) }
    if (r.verb === "get") return { status: 200, body: found }
    if (r.verb === "delete") return this.delete(r, found)
    return { status: 200, body: this.change(r, found) }
  }
  private review(r: Request): Answer {
    const namespace = (r.body as { spec?: { namespace?: string } } | undefined)?.spec?.namespace
    if (!namespace) throw badRequest("no namespace on request")
    const user = this.users.get(r.user ?? "")
    const everything = [{ verbs: ["*"], apiGroups: ["*"], resources: ["*"] }]
    const here = !user?.namespaces || user.namespaces.includes(namespace)
    const basic = [
      {
        verbs: ["create"],
        apiGroups: ["authorization.k8s.io"],
        resources: ["selfsubjectaccessreviews", "selfsubjectrulesreviews"],
      },
      { verbs: ["create"], apiGroups: ["authentication.k8s.io"], resources: ["selfsubjectreviews"] },
    ]
    const status = {
      resourceRules: [...basic, ...(here ? (user?.rules ?? everything) : [])],
      nonResourceRules: [
        { verbs: ["get"], nonResourceURLs: ["/healthz", "/livez", "/readyz", "/version", "/version/"] },
      ],
      incomplete: user?.incomplete ?? false,
    }
    const kind = { kind: "SelfSubjectRulesReview", apiVersion: "authorization.k8s.io/v1" }
    return { status: 201, body: { ...kind, metadata: {}, spec: {}, status } }
  }

  private list(r: Request): Json {
    const { limit, continue: token, resourceVersion, labelSelector: labels, fieldSelector: fields } = r.query ?? {}
    for (const n of [limit, resourceVersion])
      if (n && !/^\d+$/.test(n)) throw badRequest(`strconv.ParseInt: parsing "${n}": invalid syntax`)
    if (Number(resourceVersion ?? 0) > this.rv) throw tooLarge(Number(resourceVersion), this.rv)
    let [rv, start] = [this.rv, ""]
    if (token) ({ rv, start } = this.resume(token))
    const matches = matcher(r.resource, r.query)
    const keys = [...this.snapshot(r.resource, rv)]
      .filter(([key, o]) => key > start && (!r.namespace || o.metadata.namespace === r.namespace) && matches(o))
      .sort(([a], [b]) => (a < b ? -1 : 1))
    // A list "from the cache" ignores its limit.
    const page = limit && resourceVersion !== "0" ? keys.slice(0, Number(limit)) : keys
    const left = keys.length - page.length
    const metadata = {
      resourceVersion: String(rv),
      ...(left > 0 && { continue: encodeToken(rv, page.at(-1)![0]) }),
      ...(left > 0 && !labels && !fields && { remainingItemCount: left }),
    }
    const { kind, group, version } = KINDS[r.resource]!
    const apiVersion = group ? `${group}/${version}` : version
    return { kind: `${kind}List`, apiVersion, metadata, items: page.map(([, o]) => untyped(o)) }
  }
  private resume(token: string): { rv: number; start: string } {
    let read: { rv: number; start: string }
    try {
      read = JSON.parse(atob(token))
    } catch {
      throw badRequest("invalid continue token: continue key is not valid")
    }
    if (read.rv < 0) return { rv: this.rv, start: read.start }
    if (read.rv >= this.compacted) return read
    const message =
      "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list."
    const body = { ...failure(410, "Expired", message), metadata: { continue: encodeToken(-1, read.start) } }
    throw new Refused({ status: 410, body })
  }
  /** The objects as they were at a resourceVersion: the changes since then undone. */
  private snapshot(resource: string, rv: number): Map<string, Obj> {
    if (rv >= this.rv) return this.objects[resource]!
    const then = new Map(this.objects[resource])
    for (let i = this.history.length - 1; i >= 0 && this.history[i]!.rv > rv; i--) {
      const { resource: of, object, prev } = this.history[i]!
      if (of === resource) prev ? then.set(keyOf(object), prev) : then.delete(keyOf(object))
    }
    return then
  }

  private create(r: Request): Answer {
    const { kind, group, version, cluster } = KINDS[r.resource]!
    const given = (r.body ?? {}) as Obj
    const {
      resourceVersion,
      selfLink: _,
      deletionTimestamp: _d,
      deletionGracePeriodSeconds: _g,
      ...meta
    } = given.metadata ?? {}
    const namespace = cluster ? "" : (r.namespace ?? "")
    if (meta.namespace && meta.namespace !== namespace)
      throw badRequest("the namespace of the provided object does not match the namespace sent on the request")
    const name = meta.name || (meta.generateName ? `${meta.generateName.slice(0, 58)}${this.suffix()}` : "")
    if (!cluster) this.admitNamespace(r.resource, namespace, name)
    if (resourceVersion) throw refuse(500, undefined, "resourceVersion should not be set on objects to be created")
    const generation = r.resource === "jobs" || r.resource === "pods" ? { generation: 1 } : {}
    const uid = this.id()
    const own = { ...meta, name, uid, ...generation, creationTimestamp: seconds(this.options.now()) }
    let object = { ...given, kind, apiVersion: group ? `${group}/${version}` : version, metadata: own } as Obj
    if (!cluster) object.metadata.namespace = namespace
    if (r.resource === "jobs") object = defaultJob({ ...object, status: {} })
    if (r.resource === "pods")
      object = {
        ...object,
        spec: defaultPodSpec(object.spec as Wire<V1PodSpec>),
        status: { phase: "Pending", qosClass: "BestEffort" },
      }
    if (r.resource === "namespaces")
      object = { ...object, spec: { finalizers: ["kubernetes"] }, status: { phase: "Active" } }
    this.validate(r.resource, object)
    if (r.resource === "jobs") this.admitQuota(object)
    const there = this.find(r.resource, namespace, name)
    if (there) {
      const message = `${qualified(r.resource, r.resource)} "${name}" already exists`
      const dying = there.metadata.deletionTimestamp ? "object is being deleted: " : ""
      throw refuse(409, "AlreadyExists", dying + message, detailsOf(r.resource, name))
    }
    if (r.query?.dryRun) return { status: 201, body: object }
    const stored = this.write(r.resource, object)
    if (r.resource === "pods") this.startPod(stored as Pod)
    return { status: 201, body: stored }
  }
  private admitNamespace(resource: string, namespace: string, name: string): void {
    const found = this.find("namespaces", "", namespace)
    if (!found) throw notFound("namespaces", namespace)
    if (!found.metadata.deletionTimestamp) return
    const cause = {
      reason: "NamespaceTerminating",
      message: `namespace ${namespace} is being terminated`,
      field: "metadata.namespace",
    }
    const why = `unable to create new content in namespace ${namespace} because it is being terminated`
    throw forbidden(resource, name, why, [cause])
  }
  private admitQuota(job: Obj): void {
    const { namespace, name } = job.metadata
    for (const quota of this.objects.resourcequotas!.values()) {
      const hard = (quota.spec as { hard?: Labels } | undefined)?.hard?.["count/jobs.batch"]
      if (quota.metadata.namespace !== namespace || hard === undefined) continue
      const used = [...this.objects.jobs!.values()].filter((j) => j.metadata.namespace === namespace).length
      const numbers = `requested: count/jobs.batch=1, used: count/jobs.batch=${used}, limited: count/jobs.batch=${hard}`
      if (used >= Number(hard)) throw forbidden("jobs", name, `exceeded quota: ${quota.metadata.name}, ${numbers}`)
    }
  }
  private validate(resource: string, o: Obj): void {
    // Labels that are there by default, being the template's, are judged with the template.
    const template = resource === "jobs" ? (o as Job).spec.template.metadata?.labels : undefined
    const causes = validateMeta(o.metadata, o.metadata.labels === template ? {} : o.metadata.labels)
    if (resource === "jobs" && o.metadata.name) causes.push(...validateJob(o as Job))
    if (resource === "configmaps" && JSON.stringify([o.data, o.binaryData]).length > 1048576) {
      const cause = {
        reason: "FieldValueTooLong",
        message: "Too long: may not be more than 1048576 bytes",
        field: "[]",
      }
      causes.push(cause)
    }
    const about = (o as { involvedObject?: { namespace?: string } }).involvedObject?.namespace ?? ""
    if (resource === "events" && about !== o.metadata.namespace)
      causes.push(invalidValue("involvedObject.namespace", about, "does not match event.namespace"))
    if (causes.length) throw invalid(resource, o.metadata.name, causes)
  }

  private change(r: Request, prev: Obj): Obj {
    const { resource } = r
    const { metadata: was } = prev
    if (
      r.verb === "patch" &&
      !/(merge-patch|json-patch|merge)\+json$/.test(r.contentType ?? "application/merge-patch+json")
    )
      throw refuse(415, "UnsupportedMediaType", "415: Unsupported Media Type", {})
    const patched = () => (Array.isArray(r.body) ? jsonPatch(prev, r.body) : mergePatch(prev, r.body))
    const next = (r.verb === "update" ? r.body : patched()) as Obj
    const { uid = was.uid, resourceVersion: rv = was.resourceVersion, name = was.name } = next.metadata ?? {}
    if (name !== was.name)
      throw badRequest(`the name of the object (${name}) does not match the name on the URL (${was.name})`)
    if (uid !== was.uid)
      throw conflict(
        resource,
        resource,
        was.name,
        `StorageError: invalid object, Code: 4, Key: /registry/${resource}/${was.namespace}/${was.name}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: ${uid}, UID in object meta: ${was.uid}`,
      )
    if (rv !== was.resourceVersion) {
      const why = "the object has been modified; please apply your changes to the latest version and try again"
      throw conflict(resource, resource, was.name, why)
    }
    let result: Obj
    if (r.subresource === "status") result = { ...prev, status: next.status }
    else {
      const { creationTimestamp, deletionTimestamp, deletionGracePeriodSeconds, generation } = was
      const fixed = {
        creationTimestamp,
        deletionTimestamp,
        deletionGracePeriodSeconds,
        generation,
        resourceVersion: rv,
      }
      const present = Object.fromEntries(Object.entries(fixed).filter(([, v]) => v !== undefined))
      const metadata = { ...next.metadata, uid, name, namespace: was.namespace, ...present } as Meta
      result = {
        ...next,
        kind: prev.kind,
        apiVersion: prev.apiVersion,
        metadata,
        ...("status" in prev && { status: prev.status }),
      }
      if (resource === "jobs") result = defaultJob(result)
      if (!metadata.finalizers?.length) result = withFinalizers(result, [])
    }
    this.validateChange(resource, result, prev)
    if (same(result, prev)) return prev
    if (!same(result.spec, prev.spec) && was.generation)
      result = { ...result, metadata: { ...result.metadata, generation: was.generation + 1 } }
    return r.query?.dryRun ? result : this.save(resource, result, prev)
  }
  private validateChange(resource: string, next: Obj, prev: Obj): void {
    this.validate(resource, next)
    const causes = resource === "jobs" ? validateJobUpdate(next as Job, prev as Job) : []
    const added = (next.metadata.finalizers ?? []).filter((f) => !prev.metadata.finalizers?.includes(f))
    if (prev.metadata.deletionTimestamp && added.length) {
      const list = `[]string{${added.map((f) => `"${f}"`).join(", ")}}`
      const why = `no new finalizers can be added if the object is being deleted, found new finalizers ${list}`
      causes.push(forbiddenField("metadata.finalizers", why))
    }
    if (resource === "configmaps" && prev.immutable)
      for (const field of ["immutable", "data", "binaryData"])
        if (!same(next[field], prev[field]))
          causes.push(forbiddenField(field, "field is immutable when `immutable` is set"))
    if (causes.length) throw invalid(resource, prev.metadata.name, causes)
  }

  // ---- Deletion

  private delete(r: Request, prev: Obj): Answer {
    const { resource } = r
    // A body makes the server ignore the options in the query, dryRun among them.
    const { gracePeriodSeconds: inQuery, ...query } = r.query ?? {}
    const options = (r.body ?? { ...query, ...(inQuery && { gracePeriodSeconds: Number(inQuery) }) }) as {
      propagationPolicy?: string
      gracePeriodSeconds?: number
      dryRun?: string | string[]
      preconditions?: { uid?: string; resourceVersion?: string }
    }
    const { kind } = KINDS[resource]!
    const { uid, resourceVersion, name } = prev.metadata
    const wanted = options.preconditions ?? {}
    if (wanted.uid && wanted.uid !== uid) {
      const why = `the UID in the precondition (${wanted.uid}) does not match the UID in record (${uid}). The object might have been deleted and then recreated`
      throw conflict(kind, resource, name, why)
    }
    if (wanted.resourceVersion && wanted.resourceVersion !== resourceVersion) {
      const why = `the ResourceVersion in the precondition (${wanted.resourceVersion}) does not match the ResourceVersion in record (${resourceVersion}). The object might have been modified`
      throw conflict(kind, resource, name, why)
    }
    const policy = options.propagationPolicy
    if (policy && !["Foreground", "Background", "Orphan"].includes(policy)) {
      const message = `Unsupported value: "${policy}": supported values: "Foreground", "Background", "Orphan", "nil"`
      const causes = [{ reason: "FieldValueNotSupported", message, field: "propagationPolicy" }]
      const details = { group: "meta.k8s.io", kind: "DeleteOptions", causes }
      throw refuse(422, "Invalid", `DeleteOptions.meta.k8s.io "" is invalid: propagationPolicy: ${message}`, details)
    }
    const warning = !policy && resource === "jobs" && !r.query?.propagationPolicy ? ORPHAN_WARNING : undefined
    const answer = this.doom(resource, prev, policy, options.gracePeriodSeconds, Boolean(options.dryRun?.length))
    const success = {
      kind: "Status",
      apiVersion: "v1",
      metadata: {},
      status: "Success",
      details: { ...detailsOf(resource, name), uid },
    }
    return { status: 200, body: answer ?? success, ...(warning && { warning }) }
  }
  /** Deletes, or marks for deletion. Answers the object where something still holds it (and always for a pod). */
  private doom(resource: string, prev: Obj, policy?: string, grace?: number, dryRun = false): Obj | undefined {
    if (resource === "namespaces") return this.doomNamespace(prev)
    if (resource === "pods") return this.doomPod(prev as Pod, grace, dryRun)
    const { finalizers = [], deletionTimestamp, generation } = prev.metadata
    const [fg, orphan] = [finalizers.includes("foregroundDeletion"), finalizers.includes("orphan")]
    const orphaning = policy === "Orphan" || (!policy && (orphan || (resource === "jobs" && !fg)))
    const foreground = policy === "Foreground" || (!policy && fg)
    const kept = finalizers.filter((f) => f !== "foregroundDeletion" && f !== "orphan")
    if (orphaning) kept.push("orphan")
    if (foreground) kept.push("foregroundDeletion")
    if (!kept.length) {
      if (!dryRun) this.remove(resource, prev)
      return undefined
    }
    let next = withFinalizers(prev, kept)
    if (!deletionTimestamp) {
      const doomed = { deletionTimestamp: seconds(this.options.now()), deletionGracePeriodSeconds: 0 }
      next = { ...next, metadata: { ...next.metadata, ...doomed, ...(generation && { generation: generation + 1 }) } }
    }
    if (dryRun) return next
    return same(next, prev) ? prev : this.write(resource, next, prev)
  }
  private doomPod(prev: Pod, wanted: number | undefined, dryRun = false): Pod {
    const { deletionGracePeriodSeconds: now, deletionTimestamp, generation = 1 } = prev.metadata
    const unstarted = !prev.spec.nodeName
    const grace = ended(prev) || unstarted ? 0 : (wanted ?? prev.spec.terminationGracePeriodSeconds ?? 30)
    if (deletionTimestamp && grace >= (now ?? 0)) return prev
    const doomed = { deletionTimestamp: seconds(this.options.now() + grace * 1000), deletionGracePeriodSeconds: grace }
    const gen = deletionTimestamp ? {} : { generation: generation + 1 }
    const next = { ...prev, metadata: { ...prev.metadata, ...doomed, ...gen } }
    if (dryRun) return next
    const marked = this.write("pods", next, prev)
    if (grace === 0 && !marked.metadata.finalizers?.length) this.remove("pods", marked)
    else if (!ended(prev)) this.terminate(marked)
    return marked
  }
  private doomNamespace(prev: Obj): Obj {
    if (prev.metadata.deletionTimestamp) return prev
    const metadata = { ...prev.metadata, deletionTimestamp: seconds(this.options.now()) }
    const marked = this.write("namespaces", { ...prev, metadata, status: { phase: "Terminating" } }, prev)
    this.after(this.timing.gcMs, () => this.drain(marked))
    return marked
  }
  private drain(namespace: Obj): void {
    const { name } = namespace.metadata
    let left = 0
    for (const [resource, objects] of Object.entries(this.objects))
      for (const o of [...objects.values()])
        if (o.metadata.namespace === name) {
          if (!o.metadata.deletionTimestamp) this.doom(resource, o, "Background")
          if (objects.has(keyOf(o))) left++
        }
    if (left) this.after(200, () => this.drain(namespace))
    else this.remove("namespaces", namespace)
  }
  private deleteAll(r: Request): Answer {
    const list = this.list({ ...r, verb: "list" }) as { items: Obj[] }
    for (const { metadata } of list.items) {
      const found = this.find(r.resource, metadata.namespace ?? "", metadata.name)
      if (found) this.delete({ ...r, verb: "delete" }, found)
    }
    return { status: 200, body: list }
  }

  // ---- Watches

  watch(r: Omit<Request, "verb">, onEvent: (e: WatchEvent) => void, onEnd?: () => void): Watching {
    const request: Request = { ...r, verb: "watch" }
    try {
      this.authorize(request)
      return this.open(request, onEvent, onEnd)
    } catch (e) {
      if (e instanceof Refused) return { ...e.answer, close() {} }
      throw e
    }
  }
  private open(r: Request, onEvent: (e: WatchEvent) => void, onEnd?: () => void): Watching {
    const { resource, namespace, query = {} } = r
    const { kind, group, version } = KINDS[resource]!
    const alien = resource === "events" && r.group === "events.k8s.io"
    const matches = matcher(resource, query)
    const dues: Due[] = []
    const close = () => {
      this.watchers.delete(watcher)
      for (const due of dues) due.run = undefined
    }
    const end = () => {
      close()
      onEnd?.()
    }
    const send = (type: WatchEvent["type"], object: Obj) =>
      onEvent({ type, object: alien ? (renameEvent(object, 0) as Obj) : object })
    const fail = (code: number, reason: string, message: string, details?: Json) => {
      onEvent({ type: "ERROR", object: failure(code, reason, message, details) as Obj })
      end()
    }
    const watcher: Watcher = {
      resource,
      next: this.forgotten + this.history.length,
      expire: () => fail(410, "Expired", `too old resource version: ${since} (${this.compacted + 1})`),
      see: ({ type, object, prev, rv }) => {
        if (namespace && object.metadata.namespace !== namespace) return
        const now = type !== "DELETED" && matches(object)
        const before = prev !== undefined && matches(prev)
        if (now) send(before ? "MODIFIED" : "ADDED", object)
        // Who leaves the selection is shown as it was, under the resourceVersion of the change.
        else if (before) send("DELETED", { ...prev!, metadata: { ...prev!.metadata, resourceVersion: String(rv) } })
      },
    }
    const since = query.resourceVersion ? Number(query.resourceVersion) : 0
    if (Number.isNaN(since))
      throw refuse(
        500,
        undefined,
        `resourceVersion: Invalid value: "${query.resourceVersion}": strconv.ParseUint: parsing "${query.resourceVersion}": invalid syntax`,
      )
    if (!since)
      for (const [, o] of [...this.objects[resource]!].sort(([a], [b]) => (a < b ? -1 : 1)))
        if ((!namespace || o.metadata.namespace === namespace) && matches(o)) send("ADDED", o)
    if (since)
      while (watcher.next > this.forgotten && this.history[watcher.next - 1 - this.forgotten]!.rv > since)
        watcher.next--
    this.watchers.add(watcher)
    if (since && since < this.compacted) watcher.expire()
    else {
      const lifeMs = query.timeoutSeconds ? Number(query.timeoutSeconds) * 1000 : (1800 + 1800 * this.random()) * 1000
      dues.push(this.after(lifeMs, end))
      const bookmark = () => {
        this.flush()
        const metadata = { resourceVersion: String(this.rv) } as Meta
        send("BOOKMARK", { kind, apiVersion: group ? `${group}/${version}` : version, metadata })
      }
      if (query.allowWatchBookmarks === "true") {
        for (let at = 60_000; at < lifeMs - 2000; at += 60_000) dues.push(this.after(at, bookmark))
        if (lifeMs > 2000) dues.push(this.after(lifeMs - 2000, bookmark))
      }
      this.flush()
    }
    return { status: 200, body: undefined, close }
  }
  private flush(): void {
    // Whoever sees an event may make a request at once: the loop outside then goes on.
    if (this.flushing) return
    this.flushing = true
    const end = () => this.forgotten + this.history.length
    for (let again = true; again; ) {
      again = false
      for (const w of this.watchers)
        while (this.watchers.has(w) && w.next < end()) {
          again = true
          if (w.next < this.forgotten) w.expire()
          else {
            const change = this.history[w.next++ - this.forgotten]!
            if (change.resource === w.resource) w.see(change)
          }
        }
    }
    this.flushing = false
  }

  // ---- Garbage collector

  private collect(): void {
    this.wake("gc", this.timing.gcMs, () => {
      for (const [resource, objects] of Object.entries(this.objects))
        for (const o of [...objects.values()]) if (objects.get(keyOf(o)) === o) this.collectOne(resource, o)
    })
  }
  private collectOne(resource: string, o: Obj): void {
    const { ownerReferences, deletionTimestamp, finalizers = [], uid } = o.metadata
    if (ownerReferences?.length && ownerReferences.every((r) => !this.uids.has(r.uid))) {
      const pod = resource === "pods" ? this.untrack(o as Pod) : o
      if (!deletionTimestamp) this.doom(resource, pod, "Background")
      return
    }
    if (!deletionTimestamp) return
    const [fg, orphan] = [finalizers.includes("foregroundDeletion"), finalizers.includes("orphan")]
    if (!fg && !orphan) return
    const dependents = Object.entries(this.objects).flatMap(([of, all]) =>
      [...all.values()]
        .filter((d) => d.metadata.ownerReferences?.some((r) => r.uid === uid))
        .map((d) => [of, d] as const),
    )
    for (const [of, d] of dependents) {
      const current = of === "pods" ? this.untrack(d as Pod) : d
      if (orphan) {
        const { ownerReferences: refs, ...metadata } = current.metadata
        const others = refs!.filter((r) => r.uid !== uid)
        this.save(
          of,
          { ...current, metadata: { ...metadata, ...(others.length && { ownerReferences: others }) } as Meta },
          current,
        )
      } else if (!current.metadata.deletionTimestamp) this.doom(of, current, "Background")
    }
    const waiting =
      fg &&
      Object.values(this.objects).some((all) =>
        [...all.values()].some((d) => d.metadata.ownerReferences?.some((r) => r.uid === uid)),
      )
    const current = this.objects[resource]!.get(keyOf(o))
    if (!waiting && current) this.save(resource, without(current, fg ? "foregroundDeletion" : "orphan"), current)
  }
  private untrack(pod: Pod): Pod {
    const now = (this.objects.pods!.get(keyOf(pod)) ?? pod) as Pod
    return now.metadata.finalizers?.includes(TRACKING) ? this.save("pods", without(now, TRACKING), now) : now
  }

  // ---- Job controller

  private syncLater(key: string, ms: number): void {
    this.wake(`job ${key}`, ms, () => {
      const job = this.objects.jobs!.get(key) as Job | undefined
      const { managedBy } = job?.spec ?? {}
      if (job && (!managedBy || managedBy === "kubernetes.io/job-controller")) this.sync(job)
    })
  }
  private sync(job: Job): void {
    const { uid, deletionTimestamp, namespace } = job.metadata
    const { spec, status } = job
    const now = seconds(this.options.now())
    const pods = this.pods(namespace).filter((p) =>
      p.metadata.ownerReferences?.some((r) => r.uid === uid && r.controller),
    )
    const dying = (p: Pod) => Boolean(p.metadata.deletionTimestamp) && !ended(p)
    const counts = (): Partial<Wire<V1JobStatus>> => {
      const alive = this.pods(namespace).filter((p) => p.metadata.ownerReferences?.some((r) => r.uid === uid))
      const active = alive.filter((p) => !ended(p) && !dying(p))
      const ready = active.filter((p) =>
        p.status.conditions?.some((c) => c.type === "Ready" && c.status === "True"),
      ).length
      return { active: active.length, terminating: alive.filter(dying).length, ready }
    }
    if (finished(job)) {
      for (const pod of pods) if (ended(pod)) this.untrack(pod)
      return
    }
    if (deletionTimestamp) {
      this.setJobStatus(job, counts())
      for (const pod of pods) this.untrack(pod)
      return
    }
    if (spec.suspend) {
      for (const pod of pods) if (!ended(pod) && !dying(pod)) this.doomPod(this.untrack(pod), undefined)
      this.setJobStatus(job, {
        ...counts(),
        conditions: conditionSet(status.conditions, "Suspended", "True", now, "JobSuspended", "Job suspended"),
      })
      return
    }
    let { conditions = [], startTime } = status
    if (condition(job, "Suspended")) {
      conditions = conditionSet(conditions, "Suspended", "False", now, "JobResumed", "Job resumed")
      startTime = now
    }
    startTime ??= now

    const onlyEnded = spec.podReplacementPolicy === "Failed"
    const tracked = pods.filter((p) => p.metadata.finalizers?.includes(TRACKING))
    const succeeded = tracked.filter((p) => p.status.phase === "Succeeded")
    const failed = tracked.filter((p) => p.status.phase === "Failed" || (dying(p) && !onlyEnded))
    const verdicts = failed.map((p) => this.podFailurePolicy(job, p))
    const counted = failed.filter((_, i) => verdicts[i] !== "Ignore")
    const failures = (status.failed ?? 0) + counted.length
    const successes = (status.succeeded ?? 0) + succeeded.length
    const active = pods.filter((p) => !ended(p) && !dying(p))

    const verdict = this.verdict(job, startTime, failures, successes, active, verdicts)
    if (verdict && !condition(job, verdict.type))
      conditions = conditionSet(conditions, verdict.type, "True", now, verdict.reason, verdict.message)
    if (verdict)
      for (const pod of active) {
        const doomed = this.doomPod(pod, undefined)
        if (!onlyEnded) counted.push(doomed)
        if (!onlyEnded) failed.push(doomed)
      }
    let latest = job
    const uids = (list: Pod[]) => list.map((p) => p.metadata.uid)
    if (failed.length || succeeded.length || (verdict && !condition(job, verdict.type))) {
      const uncounted = {
        ...(counted.length && { failed: uids(counted) }),
        ...(succeeded.length && { succeeded: uids(succeeded) }),
      }
      latest = this.setJobStatus(job, { ...counts(), conditions, startTime, uncountedTerminatedPods: uncounted })
      for (const pod of [...failed, ...succeeded]) this.untrack(pod)
    }
    if (failed.length && !verdict) {
      const n = (this.retries.get(uid)?.n ?? 0) + failed.length
      this.retries.set(uid, { n, at: this.elapsed() + this.timing.backoffMs * Math.min(2 ** (n - 1), 36) })
    }
    if (!verdict) this.fill(job, successes, active, onlyEnded ? pods.filter(dying) : [])
    const totals = {
      ...counts(),
      conditions,
      startTime,
      failed: (status.failed ?? 0) + counted.length,
      succeeded: successes,
      uncountedTerminatedPods: {},
      ...(spec.completionMode === "Indexed" && { completedIndexes: this.completedIndexes(job, succeeded) }),
    }
    const before = (latest.status.terminating ?? 0) > 0
    if (verdict && !totals.terminating) {
      if (before) latest = this.setJobStatus(latest, totals)
      const final = verdict.type === "FailureTarget" ? "Failed" : "Complete"
      const end = conditionSet(conditions, final, "True", now, verdict.reason, verdict.message)
      this.setJobStatus(latest, { ...totals, conditions: end, ...(final === "Complete" && { completionTime: now }) })
      const ttl = spec.ttlSecondsAfterFinished
      if (ttl !== undefined) this.after(ttl * 1000, () => this.expire(uid))
    } else this.setJobStatus(latest, totals)
    const deadline = spec.activeDeadlineSeconds
    if (deadline !== undefined && !verdict)
      this.wake(`deadline ${uid}`, Math.max(1, Date.parse(startTime) + deadline * 1000 - this.options.now()), () => {
        const current = this.uids.get(uid)
        if (current) this.sync(current as Job)
      })
  }
  private verdict(
    job: Job,
    startTime: string,
    failures: number,
    successes: number,
    active: Pod[],
    verdicts: (string | undefined)[],
  ) {
    const target = condition(job, "FailureTarget") ?? condition(job, "SuccessCriteriaMet")
    if (target) return { type: target.type, reason: target.reason!, message: target.message! }
    const { spec } = job
    const fail = (reason: string, message: string) => ({ type: "FailureTarget", reason, message })
    const policy = verdicts.find((v) => v && v !== "Ignore")
    if (policy) return fail("PodFailurePolicy", policy)
    const restarts = active
      .flatMap((p) => [...(p.status.initContainerStatuses ?? []), ...(p.status.containerStatuses ?? [])])
      .reduce((sum, c) => sum + c.restartCount, 0)
    const limit = spec.backoffLimit!
    const past = spec.template.spec!.restartPolicy === "OnFailure" && (limit ? restarts >= limit : restarts > 0)
    if (failures > limit || past) return fail("BackoffLimitExceeded", "Job has reached the specified backoff limit")
    if (
      spec.activeDeadlineSeconds !== undefined &&
      this.options.now() >= Date.parse(startTime) + spec.activeDeadlineSeconds * 1000
    )
      return fail("DeadlineExceeded", "Job was active longer than specified deadline")
    const enough = spec.completions === undefined ? successes > 0 && !active.length : successes >= spec.completions
    if (!enough) return undefined
    return {
      type: "SuccessCriteriaMet",
      reason: "CompletionsReached",
      message: "Reached expected number of succeeded pods",
    }
  }
  /** "Ignore", or the message of a FailJob rule. */
  private podFailurePolicy(job: Job, pod: Pod): string | undefined {
    const { namespace, name } = pod.metadata
    for (const [index, rule] of (job.spec.podFailurePolicy?.rules ?? []).entries()) {
      const { containerName, operator, values = [] } = rule.onExitCodes ?? {}
      const code = (s: ContainerStatus) => s.state?.terminated?.exitCode ?? 0
      const all = [...(pod.status.initContainerStatuses ?? []), ...(pod.status.containerStatuses ?? [])]
      const one = all.find(
        (s) =>
          code(s) !== 0 &&
          (!containerName || containerName === s.name) &&
          values.includes(code(s)) === (operator === "In"),
      )
      const about = rule.onPodConditions?.find((p) =>
        pod.status.conditions?.some((c) => c.type === p.type && c.status === (p.status ?? "True")),
      )
      if (!(rule.onExitCodes && one) && !about) continue
      if (rule.action === "Ignore") return "Ignore"
      if (rule.action !== "FailJob") return undefined
      return about
        ? `Pod ${namespace}/${name} has condition ${about.type} matching FailJob rule at index ${index}`
        : `Container ${one!.name} for pod ${namespace}/${name} failed with exit code ${code(one!)} matching FailJob rule at index ${index}`
    }
    return undefined
  }
  private fill(job: Job, successes: number, active: Pod[], leaving: Pod[]): void {
    const { spec } = job
    const { uid, namespace, name } = job.metadata
    const left =
      spec.completions === undefined ? (successes ? 0 : Number.POSITIVE_INFINITY) : spec.completions - successes
    const missing = Math.min(spec.parallelism ?? 1, left) - active.length - leaving.length
    if (missing <= 0) return
    const waitMs = (this.retries.get(uid)?.at ?? 0) - this.elapsed()
    if (waitMs > 0) return this.syncLater(keyOf(job), waitMs)
    const taken = new Set(active.map((p) => p.metadata.labels?.[INDEX]))
    const done = new Set(job.status.completedIndexes?.split(",") ?? [])
    const { metadata = {}, spec: podSpec } = spec.template
    for (let made = 0, index = 0; made < missing; made++) {
      while (taken.has(String(index)) || done.has(String(index))) index++
      const indexed = spec.completionMode === "Indexed" ? { [INDEX]: String(index++) } : undefined
      const prefix = `${name}-${indexed ? `${indexed[INDEX]}-` : ""}`
      const meta = {
        ...metadata,
        name: prefix.slice(0, 58) + this.suffix(),
        generateName: prefix,
        namespace,
        uid: this.id(),
        generation: 1,
        creationTimestamp: seconds(this.options.now()),
        labels: { ...metadata.labels, ...indexed },
        ...(indexed && { annotations: { ...metadata.annotations, ...indexed } }),
        ownerReferences: [
          { apiVersion: "batch/v1", kind: "Job", name, uid, controller: true, blockOwnerDeletion: true },
        ],
        finalizers: [TRACKING],
      } as unknown as Meta
      const whole = {
        ...podSpec!,
        serviceAccountName: podSpec!.serviceAccountName ?? "default",
        enableServiceLinks: true,
      }
      const pod = {
        kind: "Pod",
        apiVersion: "v1",
        metadata: meta,
        spec: whole,
        status: { phase: "Pending", qosClass: "BestEffort" },
      }
      this.startPod(this.write("pods", pod as Pod))
    }
  }
  private completedIndexes(job: Job, succeeded: Pod[]): string {
    const before = job.status.completedIndexes?.split(",").filter(Boolean) ?? []
    return [...before, ...succeeded.map((p) => p.metadata.labels?.[INDEX] ?? "")]
      .sort((a, b) => Number(a) - Number(b))
      .join(",")
  }
  private setJobStatus(job: Job, change: Partial<Wire<V1JobStatus>>): Job {
    const prev = this.objects.jobs!.get(keyOf(job)) as Job
    const { active, failed, succeeded, ready, terminating, completedIndexes, ...rest } = { ...prev.status, ...change }
    const shown = { ...(active && { active }), ...(failed && { failed }), ...(succeeded && { succeeded }) }
    const status = {
      ...rest,
      ...shown,
      ...(completedIndexes && { completedIndexes }),
      terminating: terminating ?? 0,
      uncountedTerminatedPods: change.uncountedTerminatedPods ?? prev.status.uncountedTerminatedPods ?? {},
      ready: ready ?? 0,
    } as Wire<V1JobStatus>
    if (!status.conditions?.length) delete status.conditions
    return same(status, prev.status) ? prev : this.write("jobs", { ...prev, status }, prev)
  }
  private expire(uid: string): void {
    const job = this.uids.get(uid)
    if (job && !job.metadata.deletionTimestamp) this.doom("jobs", job, "Foreground")
  }

  // ---- Kubelet

  private onNode(uid: string, ms: number, step: (pod: Pod, run: Run) => void): void {
    const act = () => {
      const [pod, run] = [this.uids.get(uid) as Pod | undefined, this.runs.get(uid)]
      if (!pod || !run) return
      if (this.nodeUp) step(pod, run)
      else this.parked.push(act)
    }
    this.after(ms, act)
  }
  private nextAttempt(pod: Pod): Attempt {
    const script = JSON.parse(pod.metadata.annotations?.[SCRIPT] ?? "[]") as Attempt[]
    const owner = pod.metadata.ownerReferences?.[0]
    const by = owner
      ? this.options.attemptsPer === "uid"
        ? owner.uid
        : `${pod.metadata.namespace}/${owner.name}`
      : pod.metadata.uid
    const n = this.attempts.get(by) ?? 0
    this.attempts.set(by, n + 1)
    return script[Math.min(n, script.length - 1)] ?? {}
  }
  private startPod(pod: Pod): void {
    const { uid } = pod.metadata
    const { initContainers = [], containers } = pod.spec
    const waiting = { waiting: { reason: initContainers.length ? "PodInitializing" : "ContainerCreating" } }
    const idle = (init: boolean) => (c: Container) => ({
      name: c.name,
      init,
      status: {
        name: c.name,
        state: waiting,
        lastState: {},
        ready: false,
        restartCount: 0,
        image: c.image ?? "",
        imageID: "",
        started: false,
      },
    })
    this.runs.set(uid, { attempt: {}, containers: [...initContainers.map(idle(true)), ...containers.map(idle(false))] })
    // No node takes a gated pod: it stays as it is.
    if (pod.spec.schedulingGates?.length) return
    this.onNode(uid, this.timing.startMs / 10, (p, run) => {
      this.write("pods", { ...p, spec: { ...p.spec, nodeName: "node" } }, p)
      this.publish(uid, run)
    })
    this.onNode(uid, this.timing.startMs, (p, run) => {
      if (p.metadata.deletionTimestamp) return
      run.attempt = this.nextAttempt(p)
      const { imagePull, evicted, runMs } = run.attempt
      if (imagePull) {
        for (const c of run.containers) c.status = { ...c.status, state: { waiting: { reason: imagePull } } }
        return this.publish(uid, run)
      }
      if (evicted) this.onNode(uid, runMs ?? 0, (_, r) => this.evict(uid, r))
      this.startNext(uid, run)
    })
  }
  /** Init containers start one after another, then all others at once. */
  private startNext(uid: string, run: Run): void {
    const init = run.containers.find((c) => c.init && c.status.state?.terminated?.exitCode !== 0)
    if (init) this.startContainer(uid, run, init)
    else for (const c of run.containers) if (!c.init) this.startContainer(uid, run, c)
    this.publish(uid, run)
  }
  private startContainer(uid: string, run: Run, c: Running): void {
    const script = run.attempt.containers?.[c.name] ?? {}
    const containerID = `containerd://${(this.id() + this.id()).replaceAll("-", "")}`
    const startedAt = seconds(this.options.now())
    c.status = {
      ...c.status,
      state: { running: { startedAt } },
      ready: !c.init,
      started: true,
      containerID,
      imageID: "sha256:0",
    }
    c.log = script.log ?? ""
    c.lost = script.logLost
    const runMs = script.runMs ?? (c.init ? 0 : run.attempt.runMs)
    if (runMs !== undefined && !run.attempt.evicted)
      this.onNode(uid, runMs, (pod, r) => {
        if (c.status.containerID !== containerID || !c.status.state?.running) return
        this.endContainer(c, script.exitCode ?? 0, script.reason)
        this.proceed(pod, r, c)
      })
  }
  private endContainer(c: Running, exitCode: number, reason = exitCode ? "Error" : "Completed"): void {
    const startedAt = c.status.state?.running?.startedAt
    const { containerID } = c.status
    const terminated = {
      exitCode,
      reason,
      ...(startedAt && { startedAt }),
      finishedAt: seconds(this.options.now()),
      ...(containerID && { containerID }),
    }
    c.status = { ...c.status, state: { terminated }, ready: c.init && exitCode === 0, started: false }
  }
  private proceed(pod: Pod, run: Run, c: Running): void {
    const { uid, deletionTimestamp } = pod.metadata
    const failed = c.status.state?.terminated?.exitCode !== 0
    if (c.init && !failed) return this.startNext(uid, run)
    this.publish(uid, run)
    if (!failed || pod.spec.restartPolicy !== "OnFailure" || deletionTimestamp) return
    // The first restart comes at once, the next ones after a growing delay.
    const n = c.status.restartCount
    const delayMs = n === 0 ? 0 : this.timing.backoffMs * Math.min(2 ** (n - 1), 30)
    const restart = () => {
      if (run.killed || run.evicted) return
      run.attempt = this.nextAttempt(pod)
      const { state } = c.status
      c.status = {
        ...c.status,
        restartCount: n + 1,
        lastState: c.status.lastState?.terminated && !state?.terminated ? c.status.lastState : state!,
      }
      c.previousLog = c.log ?? ""
      this.startContainer(uid, run, c)
      this.publish(uid, run)
    }
    if (n > 0)
      this.onNode(uid, this.timing.backoffMs / 10, () => {
        if (run.killed || run.evicted) return
        const { name, namespace } = pod.metadata
        const message = `back-off ${delayMs / 1000}s restarting failed container=${c.name} pod=${name}_${namespace}(${uid})`
        const waiting = { reason: "CrashLoopBackOff", message }
        c.status = { ...c.status, lastState: c.status.state!, state: { waiting } }
        this.publish(uid, run)
      })
    this.onNode(uid, delayMs, restart)
  }
  private evict(uid: string, run: Run): void {
    run.evicted = true
    for (const c of run.containers) if (c.status.state?.running) this.endContainer(c, 137)
    this.publish(uid, run)
  }
  private terminate(pod: Pod): void {
    const { uid, deletionGracePeriodSeconds = 30 } = pod.metadata
    const run = this.runs.get(uid)
    const running = run?.containers.some((c) => c.status.state?.running)
    const wantedMs = running ? (run?.attempt.graceMs ?? this.timing.deletionDelayMs) : 0
    this.onNode(uid, Math.min(wantedMs, deletionGracePeriodSeconds * 1000), (p, r) => {
      if (!ended(p)) {
        r.killed = true
        for (const c of r.containers) if (c.status.state?.running) this.endContainer(c, 137)
        this.publish(uid, r)
      }
      this.onNode(uid, this.timing.removeMs, (last) => {
        const gone = { ...last, metadata: { ...last.metadata, deletionGracePeriodSeconds: 0 } }
        const marked = last.metadata.deletionGracePeriodSeconds ? this.write("pods", gone, last) : last
        if (!marked.metadata.finalizers?.length) this.remove("pods", marked)
      })
    })
  }
  /** Writes what the kubelet knows into the pod's status. */
  private publish(uid: string, run: Run): void {
    const pod = this.uids.get(uid) as Pod
    const now = seconds(this.options.now())
    const [init, main] = [run.containers.filter((c) => c.init), run.containers.filter((c) => !c.init)]
    const code = (c: Running) => c.status.state?.terminated?.exitCode
    const over = run.killed || run.evicted || pod.spec.restartPolicy !== "OnFailure"
    const initFailed = over && init.some((c) => (code(c) ?? 0) !== 0)
    const allEnded = main.every((c) => c.status.state?.terminated)
    const failing = main.some((c) => code(c) !== 0)
    const started = main.some((c) => !c.status.state?.waiting || c.status.restartCount > 0)
    let phase = started ? "Running" : "Pending"
    if (run.evicted || run.killed || initFailed || (allEnded && failing && over)) phase = "Failed"
    else if (allEnded && !failing) phase = "Succeeded"
    const initialized = init.every((c) => code(c) === 0)
    const ready = phase === "Running" && main.every((c) => c.status.ready)
    const why = phase === "Failed" ? "PodFailed" : phase === "Succeeded" ? "PodCompleted" : "ContainersNotReady"
    const list: [string, boolean, (string | undefined)?][] = [
      ["PodReadyToStartContainers", phase === "Running" || Boolean(init[0]?.status.containerID && phase === "Pending")],
      ["Initialized", initialized, initialized ? undefined : "ContainersNotInitialized"],
      ["Ready", ready, ready ? undefined : why],
      ["ContainersReady", ready, ready ? undefined : why],
      ["PodScheduled", true],
    ]
    if (run.evicted) list.unshift(["DisruptionTarget", true, "TerminationByKubelet"])
    const conditions = list.map(([type, is, reason]) => {
      const status = is ? "True" : "False"
      const before = pod.status.conditions?.find((c) => c.type === type && c.status === status)
      return { type, status, lastTransitionTime: before?.lastTransitionTime ?? now, ...(reason && { reason }) }
    })
    const status = {
      ...pod.status,
      phase,
      conditions,
      startTime: pod.status.startTime ?? now,
      ...(run.evicted && { reason: "Evicted", message: "The node was low on resource: memory." }),
      ...(init.length && { initContainerStatuses: init.map((c) => c.status) }),
      containerStatuses: main.map((c) => c.status),
    }
    this.write("pods", { ...pod, status }, pod)
  }
  private log(pod: Pod, query: Record<string, string>): string {
    const { name } = pod.metadata
    const { containers, initContainers = [] } = pod.spec
    for (const n of [query.tailLines, query.limitBytes])
      if (n && !/^-?\d+$/.test(n)) throw badRequest(`strconv.ParseInt: parsing "${n}": invalid syntax`)
    const wanted = query.container ?? (containers.length === 1 ? containers[0]!.name : undefined)
    if (!wanted) {
      const names = [...initContainers, ...containers].map((c) => c.name).join(" ")
      throw badRequest(`a container name must be specified for pod ${name}, choose one of: [${names}]`)
    }
    if (![...containers, ...initContainers].some((c) => c.name === wanted))
      throw badRequest(`container ${wanted} is not valid for pod ${name}`)
    if (!pod.spec.nodeName) throw new Refused({ status: 204, body: "" })
    const dial = `Get "https://node:10250/containerLogs/${keyOf(pod)}/${wanted}": dial tcp: connect: connection refused`
    if (!this.nodeUp) throw refuse(500, undefined, dial)
    const c = this.runs.get(pod.metadata.uid)?.containers.find((r) => r.name === wanted)
    const [previous, state] = [query.previous === "true", c?.status.state]
    if (previous && c?.previousLog === undefined)
      throw badRequest(`previous terminated container "${wanted}" in pod "${name}" not found`)
    if (!previous && c?.log === undefined)
      throw badRequest(
        `container "${wanted}" in pod "${name}" is waiting to start: ${state?.waiting?.reason ?? "ContainerCreating"}`,
      )
    if (c?.lost) return `unable to retrieve container logs for ${c.status.containerID}`
    let text = (previous ? c?.previousLog : c?.log) ?? ""
    if (query.tailLines) {
      const lines = text.replace(/\n$/, "").split("\n")
      const tail = lines.slice(Math.max(0, lines.length - Number(query.tailLines))).join("\n")
      text = tail && text.endsWith("\n") ? `${tail}\n` : tail
    }
    return query.limitBytes ? Buffer.from(text).subarray(0, Number(query.limitBytes)).toString() : text
  }
}

const ORPHAN_WARNING =
  "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or set propagationPolicy=Orphan to suppress this warning"
function tooLarge(wanted: number, current: number): Refused {
  const causes = [{ reason: "ResourceVersionTooLarge", message: "Too large resource version" }]
  const message = `Timeout: Too large resource version: ${wanted}, current: ${current}`
  return refuse(504, "Timeout", message, { causes, retryAfterSeconds: 1 })
}
function conditionSet(
  list: Wire<V1JobCondition>[] | undefined,
  type: string,
  status: string,
  now: string,
  reason: string,
  message: string,
): Wire<V1JobCondition>[] {
  const old = list?.find((c) => c.type === type)
  if (old?.status === status) return list!
  const fresh = { type, status, lastProbeTime: now, lastTransitionTime: now, reason, message }
  return old ? list!.map((c) => (c === old ? fresh : c)) : [...(list ?? []), fresh]
}
