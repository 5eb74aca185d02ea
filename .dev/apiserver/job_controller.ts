// The Job controller: makes pods, counts them, and writes the status of Jobs.
import type { V1JobCondition, V1JobStatus } from "@kubernetes/client-node"
import { deletePod, untrack } from "./deletion.ts"
import {
  type Change,
  type ContainerStatus,
  condition,
  finishedCondition,
  hasEnded,
  INDEX,
  isOwnedBy,
  isSameJson,
  isTerminating,
  type Job,
  keyOf,
  type Meta,
  type Pod,
  TRACKING,
  timestamp,
  type Wire,
} from "./resources.ts"
import type { Store } from "./store.ts"

type Status = Partial<Wire<V1JobStatus>>
type Conditions = Wire<V1JobCondition>[]
/** Why a Job is to end. */
interface Verdict {
  type: "FailureTarget" | "SuccessCriteriaMet"
  reason: string
  message: string
}
/** What one look at a Job's pods gives. */
interface Pods {
  all: Pod[]
  active: Pod[]
  /** Ended, and not yet in the Job's status. */
  succeeded: Pod[]
  failed: Pod[]
  /** Those of `failed` that no podFailurePolicy ignores. */
  counted: Pod[]
  failures: number
  successes: number
  /** Of `failed`: "Ignore", or the message of a FailJob rule. */
  policies: (string | undefined)[]
}

const JOB_CONTROLLER = "kubernetes.io/job-controller"

export class JobController {
  /** Failures in a row of a Job, ignored ones too, and when its next pod may come. */
  private readonly retries = new Map<string, { count: number; at: number }>()
  /** The names whose next Job is overlooked, and the uids of the Jobs that are. */
  private readonly stalled = new Set<string>()
  private readonly overlooked = new Set<string>()

  constructor(private readonly store: Store) {
    store.listeners.push((change) => this.onChange(change))
  }
  /** The next Job of this name gets no pod until it is edited. */
  stall(namespace: string, name: string): void {
    this.stalled.add(`${namespace}/${name}`)
  }

  private onChange({ type, object, resource, prev }: Change): void {
    const { syncMs, batchMs } = this.store.timing
    const { uid } = object.metadata
    if (type === "DELETED") this.retries.delete(uid)
    if (resource === "jobs") {
      if (type === "ADDED" && this.stalled.delete(keyOf(object))) this.overlooked.add(uid)
      else this.overlooked.delete(uid)
      this.enqueue(keyOf(object), syncMs)
    }
    if (resource !== "pods") return
    const owners = [...(object.metadata.ownerReferences ?? []), ...(prev?.metadata.ownerReferences ?? [])]
    const job = owners.find((o) => o.kind === "Job")
    if (job) this.enqueue(`${object.metadata.namespace}/${job.name}`, batchMs)
  }
  private enqueue(key: string, ms: number): void {
    this.store.enqueue(`job ${key}`, ms, () => {
      const job = this.store.objects.jobs!.get(key) as Job | undefined
      if (!job || this.overlooked.has(job.metadata.uid)) return
      if ((job.spec.managedBy ?? JOB_CONTROLLER) === JOB_CONTROLLER) this.sync(job)
    })
  }
  private podsOf({ metadata: { uid, namespace } }: Job): Pod[] {
    return this.store.pods(namespace).filter((pod) => isOwnedBy(pod, uid))
  }
  private counts(job: Job): Status {
    const pods = this.podsOf(job)
    const active = pods.filter((p) => !hasEnded(p) && !isTerminating(p))
    const isReady = (p: Pod) => p.status.conditions?.some((c) => c.type === "Ready" && c.status === "True")
    return {
      active: active.length,
      terminating: pods.filter(isTerminating).length,
      ready: active.filter(isReady).length,
    }
  }

  private sync(job: Job): void {
    const pods = this.podsOf(job).filter((p) =>
      p.metadata.ownerReferences?.some((r) => r.uid === job.metadata.uid && r.controller),
    )
    if (finishedCondition(job)) for (const pod of pods.filter(hasEnded)) untrack(this.store, pod)
    else if (job.metadata.deletionTimestamp) {
      this.setStatus(job, this.counts(job))
      for (const pod of pods) untrack(this.store, pod)
    } else if (job.spec.suspend) this.suspend(job, pods)
    else this.run(job, pods)
  }
  private suspend(job: Job, pods: Pod[]): void {
    for (const pod of pods) if (!hasEnded(pod) && !isTerminating(pod)) deletePod(this.store, untrack(this.store, pod))
    const now = timestamp(this.store.controllerNow())
    const conditions = withCondition(job.status.conditions, "Suspended", "True", now, "JobSuspended", "Job suspended")
    this.setStatus(job, { ...this.counts(job), conditions })
  }
  private run(job: Job, all: Pod[]): void {
    const now = timestamp(this.store.controllerNow())
    let { conditions = [], startTime } = job.status
    if (condition(job, "Suspended")) {
      conditions = withCondition(conditions, "Suspended", "False", now, "JobResumed", "Job resumed")
      startTime = now
    }
    startTime ??= now
    const pods = this.lookAt(job, all)
    const verdict = this.verdictOf(job, startTime, pods)
    const isNewVerdict = verdict !== undefined && !condition(job, verdict.type)
    if (isNewVerdict) conditions = withCondition(conditions, verdict.type, "True", now, verdict.reason, verdict.message)
    if (verdict) this.stopPods(job, pods)
    let latest = job
    if (pods.failed.length || pods.succeeded.length || isNewVerdict)
      latest = this.countEnded(job, pods, { conditions, startTime })
    if (pods.failed.length && !verdict) this.backOff(job, pods.failed.length)
    if (!verdict) this.createPods(job, pods)
    this.conclude(job, latest, pods, verdict, { conditions, startTime })
    if (!verdict) this.watchDeadline(job, startTime)
  }
  private lookAt(job: Job, all: Pod[]): Pods {
    const { spec, status } = job
    const tracked = all.filter((p) => p.metadata.finalizers?.includes(TRACKING))
    const succeeded = tracked.filter((p) => p.status.phase === "Succeeded")
    const onlyEnded = spec.podReplacementPolicy === "Failed"
    const failed = tracked.filter((p) => p.status.phase === "Failed" || (isTerminating(p) && !onlyEnded))
    const policies = failed.map((p) => podFailurePolicy(job, p))
    const counted = failed.filter((_, i) => policies[i] !== "Ignore")
    return {
      all,
      active: all.filter((p) => !hasEnded(p) && !isTerminating(p)),
      succeeded,
      failed,
      counted,
      failures: (status.failed ?? 0) + counted.length,
      successes: (status.succeeded ?? 0) + succeeded.length,
      policies,
    }
  }
  private verdictOf(job: Job, startTime: string, pods: Pods): Verdict | undefined {
    const target = condition(job, "FailureTarget") ?? condition(job, "SuccessCriteriaMet")
    if (target) return { type: target.type as Verdict["type"], reason: target.reason!, message: target.message! }
    const { spec } = job
    const fail = (reason: string, message: string): Verdict => ({ type: "FailureTarget", reason, message })
    const policy = pods.policies.find((v) => v && v !== "Ignore")
    if (policy) return fail("PodFailurePolicy", policy)
    if (pods.failures > spec.backoffLimit! || hasTooManyRestarts(job, pods.active))
      return fail("BackoffLimitExceeded", "Job has reached the specified backoff limit")
    const deadlineMs = (spec.activeDeadlineSeconds ?? Number.POSITIVE_INFINITY) * 1000
    if (this.store.controllerNow() >= Date.parse(startTime) + deadlineMs)
      return fail("DeadlineExceeded", "Job was active longer than specified deadline")
    const isEnough =
      spec.completions === undefined ? pods.successes > 0 && !pods.active.length : pods.successes >= spec.completions
    if (!isEnough) return undefined
    const message = "Reached expected number of succeeded pods"
    return { type: "SuccessCriteriaMet", reason: "CompletionsReached", message }
  }
  private stopPods(job: Job, pods: Pods): void {
    for (const pod of pods.active) {
      const deleted = deletePod(this.store, pod)
      if (job.spec.podReplacementPolicy === "Failed") continue
      pods.counted.push(deleted)
      pods.failed.push(deleted)
    }
  }
  /** Writes which pods are about to be counted, and lets go of them. */
  private countEnded(job: Job, { counted, failed, succeeded }: Pods, change: Status): Job {
    const uids = (list: Pod[]) => list.map((p) => p.metadata.uid)
    const uncounted = {
      ...(counted.length && { failed: uids(counted) }),
      ...(succeeded.length && { succeeded: uids(succeeded) }),
    }
    const latest = this.setStatus(job, { ...this.counts(job), ...change, uncountedTerminatedPods: uncounted })
    for (const pod of [...failed, ...succeeded]) untrack(this.store, pod)
    return latest
  }
  private backOff(job: Job, more: number): void {
    const count = (this.retries.get(job.metadata.uid)?.count ?? 0) + more
    const waitMs = this.store.timing.backoffMs * Math.min(2 ** (count - 1), 36)
    this.retries.set(job.metadata.uid, { count, at: this.store.elapsed() + waitMs })
  }
  private conclude(job: Job, latest: Job, pods: Pods, verdict: Verdict | undefined, change: Status): void {
    const totals: Status = {
      ...this.counts(job),
      ...change,
      failed: (job.status.failed ?? 0) + pods.counted.length,
      succeeded: pods.successes,
      uncountedTerminatedPods: {},
      ...(job.spec.completionMode === "Indexed" && { completedIndexes: completedIndexes(job, pods.succeeded) }),
    }
    if (!verdict || totals.terminating) return void this.setStatus(latest, totals)
    const before = (latest.status.terminating ?? 0) > 0 ? this.setStatus(latest, totals) : latest
    const now = timestamp(this.store.controllerNow())
    const final = verdict.type === "FailureTarget" ? "Failed" : "Complete"
    const conditions = withCondition(change.conditions, final, "True", now, verdict.reason, verdict.message)
    this.setStatus(before, { ...totals, conditions, ...(final === "Complete" && { completionTime: now }) })
  }
  private watchDeadline({ metadata: { uid }, spec }: Job, startTime: string): void {
    if (spec.activeDeadlineSeconds === undefined) return
    const waitMs = Date.parse(startTime) + spec.activeDeadlineSeconds * 1000 - this.store.controllerNow()
    this.store.enqueue(`deadline ${uid}`, Math.max(1, waitMs), () => {
      const current = this.store.byUid.get(uid)
      if (current) this.sync(current as Job)
    })
  }

  private createPods(job: Job, { all, active, successes }: Pods): void {
    const { spec } = job
    const leaving = spec.podReplacementPolicy === "Failed" ? all.filter(isTerminating).length : 0
    const openEnd = successes ? 0 : Number.POSITIVE_INFINITY
    const left = spec.completions === undefined ? openEnd : spec.completions - successes
    const missing = Math.min(spec.parallelism ?? 1, left) - active.length - leaving
    if (missing <= 0) return
    const waitMs = (this.retries.get(job.metadata.uid)?.at ?? 0) - this.store.elapsed()
    if (waitMs > 0) return this.enqueue(keyOf(job), waitMs)
    const taken = new Set(active.map((p) => p.metadata.labels?.[INDEX]))
    const done = new Set(job.status.completedIndexes?.split(",") ?? [])
    for (let made = 0, index = 0; made < missing; made++) {
      while (taken.has(String(index)) || done.has(String(index))) index++
      this.store.write("pods", this.newPod(job, spec.completionMode === "Indexed" ? String(index++) : undefined))
    }
  }
  private newPod(job: Job, index: string | undefined): Pod {
    const { uid, namespace, name } = job.metadata
    const { metadata = {}, spec } = job.spec.template
    const indexed = index === undefined ? undefined : { [INDEX]: index }
    const prefix = index === undefined ? `${name}-` : `${name}-${index}-`
    const owner = { apiVersion: "batch/v1", kind: "Job", name, uid, controller: true, blockOwnerDeletion: true }
    const meta = {
      ...metadata,
      name: prefix.slice(0, 58) + this.store.suffix(),
      generateName: prefix,
      namespace,
      uid: this.store.newUid(),
      generation: 1,
      creationTimestamp: timestamp(this.store.now()),
      labels: { ...metadata.labels, ...indexed },
      ...(indexed && { annotations: { ...metadata.annotations, ...indexed } }),
      ownerReferences: [owner],
      finalizers: [TRACKING],
    } as unknown as Meta
    const serviceAccountName = spec!.serviceAccountName ?? "default"
    const full = { ...spec!, serviceAccountName, enableServiceLinks: true }
    const status = { phase: "Pending", qosClass: "BestEffort" }
    return { kind: "Pod", apiVersion: "v1", metadata: meta, spec: full, status }
  }

  private setStatus(job: Job, change: Status): Job {
    const prev = this.store.objects.jobs!.get(keyOf(job)) as Job
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
    return isSameJson(status, prev.status) ? prev : this.store.write("jobs", { ...prev, status }, prev)
  }
}

function hasTooManyRestarts({ spec }: Job, active: Pod[]): boolean {
  if (spec.template.spec!.restartPolicy !== "OnFailure") return false
  const restarts = active
    .flatMap((p) => [...(p.status.initContainerStatuses ?? []), ...(p.status.containerStatuses ?? [])])
    .reduce((sum, c) => sum + c.restartCount, 0)
  return spec.backoffLimit ? restarts >= spec.backoffLimit : restarts > 0
}
/** "Ignore", or the message of a FailJob rule. */
function podFailurePolicy(job: Job, pod: Pod): string | undefined {
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
    const matching = `matching FailJob rule at index ${index}`
    return about
      ? `Pod ${namespace}/${name} has condition ${about.type} ${matching}`
      : `Container ${one!.name} for pod ${namespace}/${name} failed with exit code ${code(one!)} ${matching}`
  }
  return undefined
}
function completedIndexes(job: Job, succeeded: Pod[]): string {
  const before = job.status.completedIndexes?.split(",").filter(Boolean) ?? []
  return [...before, ...succeeded.map((p) => p.metadata.labels?.[INDEX] ?? "")]
    .sort((a, b) => Number(a) - Number(b))
    .join(",")
}
function withCondition(
  list: Conditions | undefined,
  type: string,
  status: string,
  now: string,
  reason: string,
  message: string,
): Conditions {
  const old = list?.find((c) => c.type === type)
  if (old?.status === status) return list!
  const fresh = { type, status, lastProbeTime: now, lastTransitionTime: now, reason, message }
  return old ? list!.map((c) => (c === old ? fresh : c)) : [...(list ?? []), fresh]
}
