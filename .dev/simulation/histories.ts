// What a history of the simulation is made of, and how random ones are generated.
import fc from "fast-check"
import { PREFIX } from "../../operator.ts"
import { REAL } from "../apiserver/model.ts"

/** The calls of an operator at which something may happen. */
export const CALLS = [
  "getJob",
  "getIntent",
  "createIntent",
  "proof",
  "deleteJob",
  "createJob",
  "deleteIntent",
  "listPods",
  "listJobs",
  "log",
  "watch",
  "record",
] as const
/** The calls that only version 1.0.0 makes come last. */
export type CallKind = (typeof CALLS)[number] | "listIntents" | "touch" | "other"
export const NAMES = ["a", "b"] as const
export type Name = (typeof NAMES)[number]

/**
 * When something happens: so many ms after the event before, or at the nth call of a kind from then on, before or after
 * the server has applied it. `same`: together with the event before.
 */
export type Moment = { ms: number } | { on: CallKind | "same"; nth: number; after: boolean }
export type Version = "current" | "1.0.0"

/** What can happen. */
export type Action =
  // To one call.
  | { do: "fail"; status: number }
  | { do: "lose" }
  | { do: "slow" | "late" | "twice"; ms: number }
  // To an operator. It is back after so many ms; where that is before its end, there are two.
  | { do: "crash" | "term"; ms: number; version: Version }
  | { do: "start"; dryRun: boolean; version: Version }
  // To the server, the network, the node and the clocks.
  | { do: "outage" | "lag" | "node"; ms: number }
  | { do: "deafen" | "expire" | "namespace" }
  | { do: "clock"; whose: "server" | "operator"; byMs: number }
  | { do: "admission"; rule: AdmissionRule; ms: number }
  | { do: "quota"; free: number; ms: number }
  | { do: "role"; old: boolean }
  // To Jobs, by people and their tools.
  | { do: "delete"; name: Name; policy: "Background" | "Foreground" | "Orphan" }
  | { do: "edit"; name: Name; what: keyof typeof EDITS }
  | { do: "recreate" | "apply" | "break"; name: Name }
  | { do: "fill"; ms: number }
  // To intents, by people and their tools.
  | { do: "cancel"; name: Name }
  | { do: "prune"; by: PruneTool }
  | { do: "editIntent"; name: Name; what: keyof typeof INTENT_EDITS }
  | { do: "holdIntent"; name: Name; ms: number }
export type HistoryEvent = { at: Moment; action: Action }

/** Policies and webhooks, by what they do. */
export const ADMISSION_RULES = [
  "reject all",
  "reject running Jobs",
  "reject running Jobs, but not in a dry run",
  "reject managed Jobs",
  "require the label app",
  "require the annotation note",
  "reject updates",
  "reject deletes of Jobs",
  "reject deletes of intents",
  "webhook is down",
  "webhook answers AlreadyExists",
  "webhook drops annotations of suspended Jobs",
  "webhook drops labels of suspended Jobs",
  "webhook adds an owner to suspended Jobs",
  "webhook adds a finalizer to suspended Jobs",
  "webhook adds a label to all Jobs",
] as const
export type AdmissionRule = (typeof ADMISSION_RULES)[number]

/** Tools that delete what carries their marks and is not in their manifests. */
export const PRUNE_TOOLS = ["kubectl apply --prune", "ApplySet", "Argo CD", "label app", "annotation note"] as const
export type PruneTool = (typeof PRUNE_TOOLS)[number]

/** What the Jobs are like, and the settings. */
export interface Flavour {
  jobs: {
    ends: ("fail" | "oom" | "run" | "succeed")[]
    restartPolicy: "Never" | "OnFailure"
    ttlSeconds: number | undefined
    manual: boolean
    /** How long the controller of a finalizer of the user takes; 0: there is no finalizer. */
    holdMs: number
  }[]
  delayMs: number
  spacingMs: number
  bySelector: boolean
  oldRole: boolean
  /** How slow the garbage collector is. */
  gcMs: number
  /** Whether the server has the feature JobManagedBy. */
  hasManagedBy: boolean
  /** How far the controller manager's clock is ahead of the API server's. */
  controllerAheadMs: number
}
/** `seed` is for everything that happens by chance while it runs. */
export type History = { seed: number; flavour: Flavour; events: HistoryEvent[] }

/** A Job of which nothing special is known. */
export const PLAIN_JOB: Flavour["jobs"][number] = {
  ends: ["fail", "fail"],
  restartPolicy: "Never",
  ttlSeconds: undefined,
  manual: false,
  holdMs: 0,
}
/** Settings of which nothing special is known. */
export const PLAIN: Flavour = {
  jobs: [PLAIN_JOB],
  delayMs: 0,
  spacingMs: 0,
  bySelector: false,
  oldRole: false,
  gcMs: REAL.gcMs,
  hasManagedBy: true,
  controllerAheadMs: 0,
}

export const EDITS = {
  label: (n: number) => ({ metadata: { labels: { edit: `${n}` } } }),
  annotation: (n: number) => ({ metadata: { annotations: { edit: `${n}` } } }),
  deadline: (n: number) => ({ spec: { activeDeadlineSeconds: 1_000_000 + n } }),
  parallelism: (n: number) => ({ spec: { parallelism: 1 + (n % 2) } }),
  suspend: () => ({ spec: { suspend: true } }),
  resume: () => ({ spec: { suspend: false } }),
  deselect: () => ({ metadata: { labels: { app: "no" } } }),
  select: () => ({ metadata: { labels: { app: "yes" } } }),
  pause: () => ({ metadata: { annotations: { [`${PREFIX}paused`]: "true" } } }),
  unpause: () => ({ metadata: { annotations: { [`${PREFIX}paused`]: null } } }),
  restartNow: (n: number) => ({ metadata: { annotations: { [`${PREFIX}restart-now`]: `${n}` } } }),
  ttl: (n: number) => ({ spec: { ttlSecondsAfterFinished: 10 + (n % 3) * 60 } }),
}
/** What people and tools do to an intent that they take for a Job of their own. */
export const INTENT_EDITS = {
  resume: { spec: { suspend: false } },
  scale: { spec: { parallelism: 3 } },
  resumeAndScale: { spec: { suspend: false, parallelism: 3 } },
  label: { metadata: { labels: { edit: "intent" } } },
  annotate: { metadata: { annotations: { note: "intent" } } },
  unlabel: { metadata: { labels: { [`${PREFIX}intent`]: null } } },
  schedule: { spec: { template: { spec: { nodeSelector: { zone: "x" } } } } },
  ttl: { spec: { ttlSecondsAfterFinished: 0, activeDeadlineSeconds: 1 } },
}

// ---- Random histories

const pick = <const T>(...values: T[]) => fc.constantFrom(...values)
const keysOf = <T extends object>(object: T) => fc.constantFrom(...(Object.keys(object) as (keyof T)[]))
const name = fc.oneof(
  { weight: 4, arbitrary: fc.constant("a" as const) },
  { weight: 1, arbitrary: fc.constant("b" as const) },
)
const version = fc.oneof(
  { weight: 12, arbitrary: fc.constant("current" as const) },
  { weight: 1, arbitrary: fc.constant("1.0.0" as const) },
)
const shortMs = pick(50, 1_000, 10_000, 40_000, 90_000)
const longMs = pick(1_000, 20_000, 120_000, 600_000, 3_600_000)
const byMs = pick(-3_600_000, -120_000, -7_000, 7_000, 120_000, 3_600_000)
const of = (what: Action["do"], rest: Record<string, fc.Arbitrary<unknown>>) =>
  fc.record(rest).map((more) => ({ do: what, ...more }) as unknown as Action)
const ACTIONS: Record<Action["do"], [weight: number, arbitrary: fc.Arbitrary<Action>]> = {
  fail: [3, of("fail", { status: pick(0, 500, 503, 429, 409, 403) })],
  lose: [4, of("lose", {})],
  slow: [3, of("slow", { ms: shortMs })],
  late: [2, of("late", { ms: shortMs })],
  twice: [2, of("twice", { ms: pick(1, 50, 1_000, 5_000) })],
  crash: [7, of("crash", { ms: longMs, version })],
  term: [3, of("term", { ms: longMs, version })],
  start: [3, of("start", { dryRun: pick(false, false, false, true), version })],
  outage: [2, of("outage", { ms: pick(1_000, 20_000, 120_000) })],
  lag: [1, of("lag", { ms: shortMs })],
  deafen: [1, of("deafen", {})],
  node: [2, of("node", { ms: pick(1_000, 20_000, 120_000) })],
  expire: [2, of("expire", {})],
  namespace: [0.1, of("namespace", {})],
  clock: [2, of("clock", { whose: pick("server", "operator"), byMs })],
  admission: [5, of("admission", { rule: pick(...ADMISSION_RULES), ms: longMs })],
  quota: [2, of("quota", { free: pick(0, 1, 1, 2), ms: longMs })],
  fill: [2, of("fill", { ms: longMs })],
  role: [1, of("role", { old: fc.boolean() })],
  delete: [3, of("delete", { name, policy: pick("Background", "Background", "Foreground", "Orphan") })],
  edit: [6, of("edit", { name, what: keysOf(EDITS) })],
  recreate: [2, of("recreate", { name })],
  apply: [2, of("apply", { name })],
  break: [5, of("break", { name })],
  cancel: [2, of("cancel", { name })],
  prune: [3, of("prune", { by: pick(...PRUNE_TOOLS) })],
  editIntent: [3, of("editIntent", { name, what: keysOf(INTENT_EDITS) })],
  holdIntent: [1, of("holdIntent", { name, ms: longMs })],
}
const call = fc.record({ on: fc.constantFrom(...CALLS), nth: pick(0, 0, 0, 1, 2), after: fc.boolean() })
const moments: fc.Arbitrary<Moment> = fc.oneof(
  { weight: 3, arbitrary: fc.record({ ms: pick(0, 20, 300, 2_000, 15_000, 70_000, 200_000) }) },
  { weight: 6, arbitrary: call },
  { weight: 1, arbitrary: fc.record({ on: fc.constant("same" as const), nth: fc.constant(0), after: fc.boolean() }) },
)
const end = pick("fail", "fail", "fail", "fail", "oom", "run", "succeed")
const job = fc.record({
  ends: fc.array(end, { minLength: 2, maxLength: 7 }).map((ends) => ["fail" as const, ...ends]),
  restartPolicy: pick("Never", "OnFailure"),
  ttlSeconds: pick(undefined, undefined, undefined, 0, 5, 30, 150),
  manual: pick(false, false, false, true),
  holdMs: pick(0, 0, 0, 0, 0, 0, 2_000, 40_000),
})
const flavour = fc.record({
  jobs: fc.array(job, { minLength: 1, maxLength: 2 }),
  delayMs: pick(0, 0, 90_000, 200_000, 600_000),
  spacingMs: pick(0, 0, 0, 40_000, 200_000),
  bySelector: fc.boolean(),
  oldRole: fc.boolean(),
  gcMs: pick(REAL.gcMs, REAL.gcMs, 2_000),
  hasManagedBy: pick(true, true, true, false),
  controllerAheadMs: pick(0, 0, 0, -2_000, 2_000),
})
/** Random histories; only of these actions, where some are named. */
export function histories(actions = Object.keys(ACTIONS) as Action["do"][]): fc.Arbitrary<History> {
  const weighted = actions.map((what) => ({ weight: Math.ceil(10 * ACTIONS[what][0]), arbitrary: ACTIONS[what][1] }))
  const events = fc.array(fc.record({ at: moments, action: fc.oneof(...weighted) }), { minLength: 3, maxLength: 24 })
  return fc.record({ seed: fc.nat(), flavour, events })
}
