// What the API server makes of the objects it is given: their defaults, and whether they are valid.
import type { V1JobSpec, V1PodSpec } from "@kubernetes/client-node"
import { type Cause, forbiddenField, invalid, invalidValue, required, tooLong } from "./requests.ts"
import {
  CONTROLLER_UID,
  type Container,
  isSameJson,
  JOB_NAME,
  type Job,
  type Labels,
  type Meta,
  type Obj,
  type Wire,
} from "./resources.ts"
import { selects } from "./selectors.ts"

// ---- Defaults

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
/** Fills in what the server adds to a pod. */
export function defaultPodSpec(s: Wire<V1PodSpec>): Wire<V1PodSpec> {
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
/** Fills in what the server adds to a Job: defaults, the selector and the generated labels. */
export function defaultJob(job: Obj): Job {
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
const NOT_A_SUBDOMAIN =
  "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', " +
  "and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is " +
  "'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
const LABEL_VALUE = /^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$/
const NOT_A_LABEL =
  "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', " +
  "and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', " +
  "regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"

const MOST_ANNOTATION_BYTES = 262_144
const MOST_CONFIGMAP_BYTES = 1_048_576

function validateMeta(m: Meta, labels = m.labels): Cause[] {
  // ---- Validation

  if (!m.name) return [required("metadata.name", "name or generateName is required")]
  const causes: Cause[] = []
  const annotations = Object.entries(m.annotations ?? {})
  const bytes = annotations.reduce((sum, entry) => sum + Buffer.byteLength(entry.join("")), 0)
  if (bytes > MOST_ANNOTATION_BYTES) causes.push(tooLong("metadata.annotations", MOST_ANNOTATION_BYTES))
  if (m.name.length > 253) causes.push(invalidValue("metadata.name", m.name, "must be no more than 253 characters"))
  if (!SUBDOMAIN.test(m.name)) causes.push(invalidValue("metadata.name", m.name, NOT_A_SUBDOMAIN))
  return [...causes, ...validateLabels("metadata.labels", labels)]
}
function validateLabels(field: string, labels: Labels = {}): Cause[] {
  return Object.values(labels).flatMap((value) => [
    ...(value.length > 63 ? [invalidValue(field, value, "must be no more than 63 bytes")] : []),
    ...(LABEL_VALUE.test(value) ? [] : [invalidValue(field, value, NOT_A_LABEL)]),
  ])
}
function validateManagedBy(managedBy: string): Cause[] {
  const [domain = "", ...path] = managedBy.split("/")
  const isDomainPrefixed = SUBDOMAIN.test(domain) && path.join("/") !== ""
  const why = 'must be a domain-prefixed path (such as "acme.io/foo")'
  return [
    ...(isDomainPrefixed ? [] : [invalidValue("spec.managedBy", managedBy, why)]),
    ...(managedBy.length > 63 ? [tooLong("spec.managedBy", 63)] : []),
  ]
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
  if (spec.managedBy !== undefined) causes.push(...validateManagedBy(spec.managedBy))
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
    return isSameJson(was, is) ? [] : [invalidValue(`spec.${field}`, next.spec[field], "field is immutable")]
  })
}

/** Throws what is wrong with an object. */
export function validate(resource: string, o: Obj): void {
  // Labels that are there by default, being the template's, are judged with the template.
  const template = resource === "jobs" ? (o as Job).spec.template.metadata?.labels : undefined
  const causes = validateMeta(o.metadata, o.metadata.labels === template ? {} : o.metadata.labels)
  if (resource === "jobs" && o.metadata.name) causes.push(...validateJob(o as Job))
  if (resource === "configmaps" && JSON.stringify([o.data, o.binaryData]).length > MOST_CONFIGMAP_BYTES)
    causes.push(tooLong("[]", MOST_CONFIGMAP_BYTES))
  const about = (o as { involvedObject?: { namespace?: string } }).involvedObject?.namespace ?? ""
  if (resource === "events" && about !== o.metadata.namespace)
    causes.push(invalidValue("involvedObject.namespace", about, "does not match event.namespace"))
  if (causes.length) throw invalid(resource, o.metadata.name, causes)
}

/** Throws what is wrong with an object, or with what was changed of it. */
export function validateUpdate(resource: string, next: Obj, prev: Obj): void {
  validate(resource, next)
  const causes = resource === "jobs" ? validateJobUpdate(next as Job, prev as Job) : []
  const added = (next.metadata.finalizers ?? []).filter((f) => !prev.metadata.finalizers?.includes(f))
  if (prev.metadata.deletionTimestamp && added.length) {
    const list = `[]string{${added.map((f) => `"${f}"`).join(", ")}}`
    const why = `no new finalizers can be added if the object is being deleted, found new finalizers ${list}`
    causes.push(forbiddenField("metadata.finalizers", why))
  }
  if (resource === "configmaps" && prev.immutable)
    for (const field of ["immutable", "data", "binaryData"])
      if (!isSameJson(next[field], prev[field]))
        causes.push(forbiddenField(field, "field is immutable when `immutable` is set"))
  if (causes.length) throw invalid(resource, prev.metadata.name, causes)
}
