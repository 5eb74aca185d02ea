// The versions of the operator that run in the simulation, behind one interface.
import * as current from "../../operator.ts"
import type { Version } from "./histories.ts"

/** What an operator of any version needs from outside. */
export interface Surroundings {
  cluster: current.Cluster
  /** For version 1.0.0, which wrote annotations. */
  patchJob(name: string, body: object, signal: AbortSignal): Promise<unknown>
  clock: current.Clock
  config: current.Config
  stop: AbortSignal
  kill: AbortSignal
  /** The failure of this instant was reported, in the API's format. */
  onFailureReported(job: string, failedAt: string): void
  /** The line is put into words only where somebody reads it: that takes a tenth of a history's time. */
  onLogLine(line: () => string): void
}
/** A running operator. */
export interface Running {
  run(): Promise<void>
  /** How many of each kind of thing it remembers. */
  sizes(): Record<"schedules" | "jobs" | "restarts" | "intents", number>
}
/** A version of the operator, or a wrong one. */
export interface Program {
  version: Version
  start(surroundings: Surroundings): Running
  apiError(status: number, reason: string, message: string, causes: string[]): Error
}

const countOf = (map: unknown) => (map as Map<string, unknown>).size
const timestamp = (at: number) => `${new Date(at).toISOString().slice(0, 19)}Z`
const jobOf = (key: string) => key.split("/")[1] ?? ""

/** The operator of this folder. `change` makes a wrong one of it. */
export function currentProgram(
  change: {
    rules?: Partial<typeof current.RULES>
    cluster?: (cluster: current.Cluster) => current.Cluster
    config?: Partial<current.Config>
    operator?: (operator: current.Operator) => void
  } = {},
): Program {
  return {
    version: "current",
    apiError: (...fields) => new current.ApiError(...fields),
    start({ onFailureReported, onLogLine, cluster, config, clock, stop, kill }) {
      const emit = (fact: current.Fact) => {
        onLogLine(() => {
          const { level, text } = current.logLineOf(fact)
          return `${level}: ${text}`
        })
        // Here nobody forges anything: it is a fault of the operator, which ends it.
        if (fact.kind === "NotUnderstood") throw new Error(fact.why)
        if (fact.kind === "FailureSeen") onFailureReported(jobOf(fact.job.key), timestamp(fact.failedAt))
      }
      const operator = new current.Operator({
        cluster: change.cluster?.(cluster) ?? cluster,
        config: { ...config, ...change.config },
        rules: { ...current.RULES, ...change.rules },
        ...{ clock, emit, stop, kill },
      })
      change.operator?.(operator)
      const { restarts } = operator as unknown as { restarts: unknown }
      return {
        run: () => operator.run(),
        sizes: () => ({
          schedules: operator.workqueue.schedules.size,
          jobs: operator.cache.jobs.size,
          restarts: countOf(restarts),
          intents: operator.cache.keysWithIntents(config.namespaces[0] ?? "").length,
        }),
      }
    },
  }
}

/** As far as it differs from today's. */
interface OperatorV1 {
  run(): Promise<void>
  schedules: Map<string, unknown>
  jobs: unknown
  restarting: unknown
  intents: unknown
}
interface ModuleV1 {
  Operator: new (world: object) => OperatorV1
  ApiError: typeof current.ApiError
}

const RELEASE = "515d6da"
/** Version 1.0.0, from the history of this repository; undefined where that is not there. */
export async function releasedProgram(): Promise<Program | undefined> {
  const shown = Bun.spawnSync(["git", "show", `${RELEASE}:operator.ts`], { cwd: import.meta.dir, stderr: "ignore" })
  if (shown.exitCode !== 0) return undefined
  const file = new URL(`../../node_modules/.cache/operator-${RELEASE}.ts`, import.meta.url).pathname
  await Bun.write(file, shown.stdout.toString().replace("./package.json", "../../package.json"))
  const { Operator, ApiError } = (await import(file)) as ModuleV1
  return {
    version: "1.0.0",
    apiError: (...fields) => new ApiError(...fields),
    start({ cluster, patchJob, onFailureReported, onLogLine, ...rest }) {
      const say = (level: string, text: string) => {
        onLogLine(() => `${level}: ${text}`)
        const [, key, failedAt] = /^\[(\S+)\] failed at (\S+):/.exec(text) ?? []
        if (key && failedAt) onFailureReported(jobOf(key), failedAt)
      }
      const operator = new Operator({
        ...rest,
        cluster: clusterOfV1(cluster, patchJob),
        say,
        random: rest.clock.random,
      })
      const { jobs, restarting: restarts, intents } = operator
      return {
        run: () => operator.run(),
        sizes: () => ({
          schedules: operator.schedules.size,
          jobs: countOf(jobs),
          restarts: countOf(restarts),
          intents: countOf(intents),
        }),
      }
    },
  }
}

/** The verbs of Cluster as 1.0.0 called them. */
function clusterOfV1(cluster: current.Cluster, patchJob: Surroundings["patchJob"]) {
  return {
    ...cluster,
    listJobs: (namespace: string, selector: string, signal: AbortSignal) =>
      cluster.listJobs(namespace, selector, (job) => job, signal),
    listPods: (namespace: string, selector: string, signal: AbortSignal) =>
      cluster.listPods(namespace, selector, (pod) => pod, signal),
    createJob: (namespace: string, job: current.Job, signal: AbortSignal) =>
      cluster.createJob(namespace, job, {}, signal),
    touchJob: ({ name, uid }: { name: string; uid: string }, annotation: string, value: string, signal: AbortSignal) =>
      patchJob(name, { metadata: { uid, annotations: { [annotation]: value } } }, signal),
  }
}
