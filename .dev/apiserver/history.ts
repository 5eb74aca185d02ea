// Past failures of Jobs, as records that an operator has left, for pictures and measurements.
import { type Cause, type Job, recordFor, UNKNOWN, viewJob, viewPod } from "../../operator.ts"
import type { Model } from "./model.ts"

export interface PastRun {
  startedAt: number
  failedAt: number
  cause: Cause
  log?: string[]
  /** What was decided then. */
  because?: string
  /** In a row before this one. */
  restarts?: number
}

const iso = (at: number) => `${new Date(at).toISOString().slice(0, 19)}Z`
const OOM = { exitCode: 137, reason: "OOMKilled" }

/** The status of a Job that failed; `reason` as the Job controller writes it. */
export const failedStatus = (startedAt: number, failedAt: number, reason = "BackoffLimitExceeded") => ({
  startTime: iso(startedAt),
  failed: 1,
  conditions: [{ type: "Failed", status: "True", reason, lastTransitionTime: iso(failedAt) }],
})

/** Writes the record of a failure of the Job `name`; with `uid`, of the Job that stands. */
export function putRecord(model: Model, namespace: string, name: string, past: PastRun, uid?: string): void {
  const { startedAt, failedAt, cause, log = [], because = "RESTART_DELAY 1h", restarts = 0 } = past
  const [kind, code] = cause.split(":")
  const podUid = `${name}-${failedAt}`
  const terminated = {
    ...(kind === "oom" ? OOM : { exitCode: kind === "exit" ? Number(code) : 143, reason: "Error" }),
    startedAt: iso(startedAt),
    finishedAt: iso(failedAt),
  }
  const pod = {
    metadata: { name: `${name}-x7k2p`, uid: podUid, creationTimestamp: iso(startedAt) },
    status: {
      phase: "Failed",
      ...(kind === "evicted" && { reason: "Evicted", message: "The node was low on resource: memory." }),
      containerStatuses: [{ name: "download", restartCount: 0, state: { terminated } }],
    },
  }
  const job = {
    metadata: {
      namespace,
      name,
      uid: uid ?? `${name}-${failedAt}`,
      creationTimestamp: iso(startedAt),
      annotations: { "flickr-immich-k8s-sync-operator/restarts": String(restarts) },
    },
    status: failedStatus(startedAt, failedAt, kind === "deadline" ? "DeadlineExceeded" : undefined),
  } as unknown as Job
  const view = viewPod(pod as unknown as Parameters<typeof viewPod>[0])
  const evidence = { pods: [view], logs: new Map([[`${podUid}/download`, { lines: log }]]), morePods: 0 }
  const decision = { do: "wait", dueAt: failedAt + 3_600_000, because } as const
  model.put(recordFor(viewJob(job), evidence, { ...UNKNOWN, cause }, decision) as Parameters<Model["put"]>[0])
}
