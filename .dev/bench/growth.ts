// `bun .dev/bench/growth.ts`: how the operator's CPU time grows with the number of Jobs. In memory: the real Operator
// against a small fake of the API server whose every call costs the same, so that the operator's own work dominates.
// Prints the CPU time of
//   - 1,000, 2,000, 4,000 and 8,000 Jobs that fail at once, until all are restarted (RESTART_DELAY=0)
//   - 200 failures, one after the other, among 100 and among 10,000 Jobs
// and the ratios; ends with 1 where one is above its goal. Each figure is the best of three, each in a process of its
// own, after a warm-up. `growth.ts burst 8000` or `growth.ts single 10000` measures one figure, for a profiler.
import {
  ApiError,
  type Cluster,
  INTENT,
  type Job,
  Operator,
  type Pod,
  readSettings,
  systemClock,
  type World,
} from "../../operator.ts"

const NAMESPACE = "demo"
const RUNS = 3
const EVENTS = 200
type Wait = (job: string) => Promise<void>
type Metadata = { name: string; uid: string; resourceVersion: string; labels?: Record<string, string> }
type Stored = { metadata: Metadata }
type Watcher = { events: { type: string; object: unknown }[]; wake: () => void }

/** The API server and the Job controller, as far as a restart needs them. All lookups are by key. */
class Fake {
  private version = 1
  private readonly jobs = new Map<string, Job & Stored>()
  private readonly intents = new Map<string, Map<string, Job & Stored>>()
  private readonly pods = new Map<string, Pod>()
  private readonly watchers = { jobs: new Set<Watcher>(), pods: new Set<Watcher>() }
  /** Who waits for a Job to be restarted. */
  private readonly restarted = new Map<string, () => void>()
  left = 0

  put(name: string, fails: boolean, job: Job): void {
    const uid = `uid-${name}-${this.version}`
    const owner = { apiVersion: "batch/v1", kind: "Job", name, uid, controller: true }
    const pod = {
      metadata: { name: `${name}-0`, namespace: NAMESPACE, uid: `pod-${uid}`, ownerReferences: [owner] },
      status: fails ? FAILED_POD : { phase: "Running" },
    } as Pod
    const status = fails ? failedNow() : { active: 1 }
    this.store("jobs", "ADDED", { ...job, metadata: { ...job.metadata, uid }, status } as Job)
    this.pods.set(uid, pod)
    this.tell("pods", "ADDED", pod)
  }

  /** The pod of a Job fails, and then the Job. */
  fail(name: string): void {
    const job = this.jobs.get(name) as Job & Stored
    const pod = { ...this.pods.get(job.metadata.uid), status: FAILED_POD } as Pod
    this.pods.set(job.metadata.uid, pod)
    this.tell("pods", "MODIFIED", pod)
    this.store("jobs", "MODIFIED", { ...job, status: failedNow() } as Job)
  }

  until: Wait = (name) => new Promise((done) => this.restarted.set(name, done))

  private store(_resource: "jobs", type: string, job: Job): Job {
    const { metadata } = job
    const name = metadata?.name ?? ""
    const stored = {
      ...job,
      metadata: { ...metadata, namespace: NAMESPACE, resourceVersion: String(++this.version) },
    } as Job & Stored
    this.jobs.set(name, stored)
    const of = metadata?.labels?.[INTENT]
    if (of !== undefined) this.intents.set(of, (this.intents.get(of) ?? new Map()).set(name, stored))
    this.tell("jobs", type, stored)
    return stored
  }

  private tell(resource: "jobs" | "pods", type: string, object: unknown): void {
    for (const watcher of this.watchers[resource]) {
      watcher.events.push({ type, object })
      watcher.wake()
    }
  }

  private create(job: Job, dryRun: boolean): Job {
    const name = job.metadata?.name ?? ""
    if (this.jobs.has(name)) throw new ApiError(409, "AlreadyExists", `jobs.batch "${name}" already exists`)
    if (dryRun) return job
    const isIntent = job.metadata?.labels?.[INTENT] !== undefined
    const metadata = { ...job.metadata, uid: `uid-${name}-${this.version}`, creationTimestamp: nowText() }
    if (isIntent) return this.store("jobs", "ADDED", { ...job, metadata } as Job)
    this.put(name, false, { ...job, metadata } as Job)
    return this.jobs.get(name) as Job
  }

  private delete(name: string): void {
    const job = this.jobs.get(name)
    if (!job) throw new ApiError(404, "NotFound", `jobs.batch "${name}" not found`)
    this.jobs.delete(name)
    const pod = this.pods.get(job.metadata.uid)
    if (pod) this.tell("pods", "DELETED", pod)
    this.pods.delete(job.metadata.uid)
    const gone = { ...job, metadata: { ...job.metadata, deletionTimestamp: nowText() } }
    const resourceVersion = String(++this.version)
    this.tell("jobs", "DELETED", { ...gone, metadata: { ...gone.metadata, resourceVersion } })
    const of = job.metadata.labels?.[INTENT]
    if (of === undefined) return
    this.intents.get(of)?.delete(name)
    if (this.jobs.has(of)) this.wasRestarted(of)
  }

  private wasRestarted(name: string): void {
    this.left--
    this.restarted.get(name)?.()
    this.restarted.delete(name)
  }

  private async *watch(resource: "jobs" | "pods", signal: AbortSignal) {
    const watcher: Watcher = { events: [], wake: () => {} }
    this.watchers[resource].add(watcher)
    signal.addEventListener("abort", () => watcher.wake())
    while (!signal.aborted) {
      yield* watcher.events.splice(0)
      if (watcher.events.length === 0) await new Promise<void>((wake) => Object.assign(watcher, { wake }))
    }
  }

  private podsOf(selector: string): Pod[] {
    const uid = /controller-uid=([^,]+)/.exec(selector)?.[1]
    const name = /job-name=([^,]+)/.exec(selector)?.[1]
    const owner = uid ?? (name && this.jobs.get(name)?.metadata.uid)
    if (owner === undefined) return [...this.pods.values()]
    return [this.pods.get(owner)].filter((pod) => pod !== undefined)
  }

  private jobsOf(selector: string): Job[] {
    const of = selector.startsWith(`${INTENT}=`) ? selector.slice(INTENT.length + 1) : undefined
    return [...(of === undefined ? this.jobs : (this.intents.get(of) ?? new Map<string, Job & Stored>())).values()]
  }

  /**
   * Arguments are told apart by what they are, and other verbs answer nothing, so that this outlives changes of
   * Cluster.
   */
  get cluster(): Cluster {
    type Keep = (item: unknown) => unknown
    const listed = (items: unknown[], keep: Keep) => ({
      items: items.map(keep).filter((item) => item !== undefined),
      resourceVersion: String(this.version),
    })
    const signalOf = (all: unknown[]) => all.find((one) => one instanceof AbortSignal) as AbortSignal
    const verbs: Record<string, unknown> = {
      address: "https://fake",
      isVerified: true,
      skewMs: () => 0,
      version: async () => "v1.35.1",
      rules: async () => ({
        incomplete: false,
        resourceRules: [{ verbs: ["*"], apiGroups: ["*"], resources: ["*"] }],
      }),
      listJobs: async (_: string, selector: string, keep: Keep) => listed(this.jobsOf(selector), keep),
      listPods: async (_: string, selector: string, keep: Keep) => listed(this.podsOf(selector), keep),
      listConfigMaps: async (_: string, __: string, keep: Keep) => listed([], keep),
      getJob: async (_: string, name: string) => this.jobs.get(name),
      createJob: async (_: string, job: Job, options: { dryRun?: boolean }) =>
        this.create(job, options.dryRun === true),
      deleteJob: async (_: string, name: string) => this.delete(name),
      readLog: async () => ({ lines: ["the last line"] }),
      watch: (_: string, resource: "jobs" | "pods", ...more: unknown[]) => this.watch(resource, signalOf(more)),
    }
    return new Proxy(verbs, { get: (all, verb: string) => all[verb] ?? (async () => undefined) }) as unknown as Cluster
  }
}

const nowText = () => `${new Date().toISOString().slice(0, 19)}Z`
const failedNow = () => ({
  failed: 1,
  conditions: [
    { type: "Failed", status: "True", reason: "BackoffLimitExceeded", message: "", lastTransitionTime: nowText() },
  ],
})
const FAILED_POD = {
  phase: "Failed",
  containerStatuses: [{ name: "main", restartCount: 0, state: { terminated: { exitCode: 3, reason: "Error" } } }],
}
const spec = { template: { spec: { restartPolicy: "Never", containers: [{ name: "main", image: "busybox" }] } } }
const nameOf = (i: number) => `load-${i}`

/** An operator at rest among so many running Jobs. */
async function start(jobs: number) {
  const fake = new Fake()
  for (let i = 0; i < jobs; i++) {
    const metadata = { name: nameOf(i), labels: { app: "load" }, creationTimestamp: nowText() }
    fake.put(nameOf(i), false, { apiVersion: "batch/v1", kind: "Job", metadata, spec } as Job)
  }
  const { config } = readSettings({ NAMESPACE, JOB_SELECTOR: "app=load", RESTART_DELAY: "0" })
  const stop = new AbortController()
  const world = {
    cluster: fake.cluster,
    clock: systemClock,
    emit: () => {},
    config,
    stop: stop.signal,
    kill: stop.signal,
  } satisfies World
  const operator = new Operator(world)
  const done = operator.run()
  while (operator.states().length < jobs) await Bun.sleep(20)
  const end = () => {
    stop.abort(new Error("stopped"))
    return done
  }
  return { fake, end }
}

/** CPU time of `work` in ms. */
async function cpuOf(work: () => Promise<unknown>): Promise<number> {
  Bun.gc(true)
  const before = process.cpuUsage()
  await work()
  const { user, system } = process.cpuUsage(before)
  return (user + system) / 1_000
}

const benches: Record<string, (jobs: number) => Promise<number>> = {
  async burst(jobs) {
    const { fake, end } = await start(jobs)
    const cpuMs = await cpuOf(async () => {
      fake.left = jobs
      for (let i = 0; i < jobs; i++) fake.fail(nameOf(i))
      while (fake.left > 0) await Bun.sleep(20)
    })
    await end()
    return cpuMs
  },
  async single(jobs) {
    const { fake, end } = await start(jobs)
    const cpuMs = await cpuOf(async () => {
      for (let i = 0; i < EVENTS; i++) {
        const back = fake.until(nameOf(i % jobs))
        fake.fail(nameOf(i % jobs))
        await back
        await Bun.sleep(1)
      }
    })
    await end()
    return cpuMs
  },
}

/** The best of some runs, each in a process of its own. */
async function best(bench: string, jobs: number): Promise<number> {
  const figures: number[] = []
  for (let run = 0; run < RUNS; run++) {
    const child = Bun.spawn([process.execPath, import.meta.path, bench, String(jobs)], { stderr: "inherit" })
    figures.push(Number(await child.stdout.text()))
    if ((await child.exited) !== 0) throw new Error(`${bench} ${jobs} failed`)
  }
  return Math.min(...figures)
}

/** Prints a row of figures, and whether the last is at most `most` times the first. */
async function compare(what: string, bench: string, sizes: number[], most: number): Promise<boolean> {
  const figures: number[] = []
  for (const jobs of sizes) {
    figures.push(await best(bench, jobs))
    console.log(`${what} ${jobs.toLocaleString("en")} Jobs: ${figures.at(-1)?.toFixed(0)} ms of CPU`)
  }
  const ratio = figures.at(-1)! / figures[0]!
  console.log(`ratio ${ratio.toFixed(1)}, goal at most ${most}${ratio > most ? ": MISSED" : ""}`)
  return ratio <= most
}

const bench = process.argv[2]
if (bench !== undefined) {
  await benches.burst?.(300)
  await benches.single?.(100)
  console.log(await benches[bench]?.(Number(process.argv[3] ?? 1_000)))
  process.exit(0)
}
const burst = await compare("at once,", "burst", [1_000, 2_000, 4_000, 8_000], 10)
const single = await compare(`${EVENTS} failures one by one among`, "single", [100, 10_000], 2)
process.exit(burst && single ? 0 : 1)
