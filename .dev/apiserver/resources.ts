// The objects of the embedded API server: their types, the resources it serves, and predicates on them.
//
// Invariant of the whole model: a stored object is never changed in place; each write stores a new one. So answers and
// events need no copies, and whoever gets or hands over an object must not change it afterwards.
import type {
  V1JobCondition,
  V1JobSpec,
  V1JobStatus,
  V1ObjectMeta,
  V1PodSpec,
  V1PodStatus,
} from "@kubernetes/client-node"

/** The client's types as they travel: timestamps are strings. */
export type Wire<T> = T extends Date
  ? string
  : T extends (infer U)[]
    ? Wire<U>[]
    : T extends object
      ? { [K in keyof T]: Wire<T[K]> }
      : T
export type Meta = Wire<V1ObjectMeta> & { name: string; namespace: string; uid: string; resourceVersion: string }
export type Json = Record<string, unknown>
export type Labels = Record<string, string>
export type Obj = { apiVersion: string; kind: string; metadata: Meta; spec?: unknown; status?: unknown } & Json
export type Job = Obj & { spec: Wire<V1JobSpec>; status: Wire<V1JobStatus> }
export type Pod = Obj & { spec: Wire<V1PodSpec>; status: Wire<V1PodStatus> }
export type Container = Wire<V1PodSpec>["containers"][number]
export type ContainerStatus = NonNullable<Wire<V1PodStatus>["containerStatuses"]>[number]

/** A write, as the watch cache keeps it. */
export interface Change {
  rv: number
  resource: string
  type: "ADDED" | "MODIFIED" | "DELETED"
  object: Obj
  prev?: Obj | undefined
}

interface Kind {
  group: string
  version: string
  kind: string
  cluster?: boolean
  /** What a fieldSelector may name besides metadata. */
  fields?: string[]
}
const EVENT_FIELDS = ["reason", "type", "involvedObject.kind", "involvedObject.name", "involvedObject.uid"]
export const KINDS: Record<string, Kind> = {
  jobs: { group: "batch", version: "v1", kind: "Job", fields: ["status.successful"] },
  cronjobs: { group: "batch", version: "v1", kind: "CronJob" },
  pods: { group: "", version: "v1", kind: "Pod", fields: ["status.phase", "spec.nodeName", "spec.restartPolicy"] },
  configmaps: { group: "", version: "v1", kind: "ConfigMap" },
  resourcequotas: { group: "", version: "v1", kind: "ResourceQuota" },
  namespaces: { group: "", version: "v1", kind: "Namespace", cluster: true, fields: ["status.phase"] },
  events: { group: "", version: "v1", kind: "Event", fields: EVENT_FIELDS },
}
/** As apiVersion has it. */
export const groupVersion = ({ group, version }: Kind) => (group ? `${group}/${version}` : version)

/** The finalizer that keeps a pod until the Job controller has counted it. */
export const TRACKING = "batch.kubernetes.io/job-tracking"
export const INDEX = "batch.kubernetes.io/job-completion-index"
export const CONTROLLER_UID = "batch.kubernetes.io/controller-uid"
export const JOB_NAME = "batch.kubernetes.io/job-name"

/** The key of an object in its resource: namespace and name. */
export const keyOf = (o: { metadata: { namespace?: string; name?: string } }) =>
  `${o.metadata.namespace ?? ""}/${o.metadata.name}`
/** A timestamp of the API: whole seconds. */
export const timestamp = (ms: number) => `${new Date(ms).toISOString().slice(0, 19)}Z`
export const hasEnded = (pod: Pod) => pod.status.phase === "Failed" || pod.status.phase === "Succeeded"
export const isTerminating = (pod: Pod) => Boolean(pod.metadata.deletionTimestamp) && !hasEnded(pod)
/** The condition of this type, if it is true. */
export const condition = (job: Job, type: string): Wire<V1JobCondition> | undefined =>
  job.status.conditions?.find((c) => c.type === type && c.status === "True")
/** The condition with which the Job ended, if it has. */
export const finishedCondition = (job: Job) => condition(job, "Failed") ?? condition(job, "Complete")
export const isOwnedBy = (o: Obj, uid: string) => o.metadata.ownerReferences?.some((r) => r.uid === uid) ?? false

export function withFinalizers<T extends Obj>(o: T, finalizers: string[]): T {
  const { finalizers: _, ...metadata } = o.metadata
  return { ...o, metadata: { ...metadata, ...(finalizers.length && { finalizers }) } as Meta }
}
export const withoutFinalizer = <T extends Obj>(o: T, finalizer: string): T =>
  withFinalizers(
    o,
    (o.metadata.finalizers ?? []).filter((f) => f !== finalizer),
  )

/** Equal as JSON whatever the order of keys, which clients do not keep. */
export function isSameJson(a: unknown, b: unknown): boolean {
  if (a === b) return true
  if (typeof a !== "object" || typeof b !== "object" || !a || !b) return false
  if (Array.isArray(a) !== Array.isArray(b)) return false
  const x = a as Json
  const y = b as Json
  for (const key in x) if (!isSameJson(x[key], y[key])) return false
  for (const key in y) if (!(key in x) && y[key] !== undefined) return false
  return true
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
/** Converts an Event: from core/v1 (0) to events.k8s.io, or back (1). */
export function renameEvent(event: Json, from: 0 | 1): Json {
  const out: Json = { ...event, apiVersion: from ? "v1" : "events.k8s.io/v1" }
  for (const names of EVENT_NAMES) {
    delete out[names[from]]
    if (event[names[from]] !== undefined) out[names[1 - from]!] = event[names[from]]
  }
  return out
}
