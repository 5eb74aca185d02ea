// What the tests of acting and of the loop share: the embedded API server with a ledger, an Operator's life in a
// hurried time of its own, Jobs as they stand or run, and the steps of a restart at which something befalls it.
import { afterAll, afterEach, beforeAll, expect } from "bun:test"
import { mkdirSync, mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import {
  type Clock,
  type Cluster,
  connect,
  draftOf,
  type Fact,
  INTENT,
  intentFor,
  type Log,
  logSink,
  type Metrics,
  type Monotonic,
  notifier,
  Operator,
  PREFIX,
  readSettings,
} from "../../operator.ts"
import {
  type Action,
  type Call,
  type Match,
  newAuthority,
  type ServerOptions,
  startApiServer,
} from "../apiserver/http.ts"
import { type Attempt, type Job, SCRIPT } from "../apiserver/model.ts"
import { OLD_ROLE, OPERATOR_ROLE } from "../apiserver/roles.ts"

const authority = await newAuthority()
export const folder = mkdtempSync(join(tmpdir(), "acting-"))
export const made: Call[] = []
export const endings: (() => unknown)[] = []
const unscaled = globalThis.setTimeout

/** After each test, all that it began is ended. */
export function tidyUp(): void {
  beforeAll(() => void mkdirSync(folder, { recursive: true }))
  afterEach(async () => {
    for (const end of endings.splice(0).reverse()) await end()
    globalThis.setTimeout = unscaled
  })
  afterAll(() => rmSync(folder, { recursive: true, force: true }))
}

// ── A server, an operator's life, a clock ──

/** A server and its ledger: the uids that each Job has ever had. */
export async function serve(options: ServerOptions = {}) {
  const server = await startApiServer({ authority, ...options })
  server.addUser("operator", OPERATOR_ROLE)
  server.addUser("old", OLD_ROLE)
  const uids = new Map<string, string[]>()
  server.model.watch({ resource: "jobs" }, ({ type, object: { metadata: m } }) => {
    if (type === "ADDED") uids.set(`${m.namespace}/${m.name}`, [...(uids.get(`${m.namespace}/${m.name}`) ?? []), m.uid])
  })
  // Standing pods have no kubelet: they go as soon as they are told to.
  server.model.watch({ resource: "pods", query: { labelSelector: "stands" } }, ({ type, object: { metadata: m } }) => {
    const request = {
      verb: "delete",
      resource: "pods",
      namespace: m.namespace,
      name: m.name,
      body: { gracePeriodSeconds: 0 },
    } as const
    if (type === "MODIFIED" && m.deletionTimestamp) server.model.request(request)
  })
  endings.push(() => {
    made.push(...server.calls)
    return server.close()
  })
  return Object.assign(server, { uids })
}
export type Server = Awaited<ReturnType<typeof serve>>

/**
 * Time that runs faster, by a rate that can change, and can be set forward: then both clocks are, as when hours have
 * passed.
 */
export class Hurried implements Clock {
  private base = Date.now()
  private since = Date.now()
  /** How far the wall clock was set, which the monotonic clock does not follow. */
  private setMs = 0
  readonly random = Math.random
  constructor(private rate: number) {}
  at = (real: number) => this.base + (real - this.since) * this.rate
  now = () => this.at(Date.now())
  monotonic = () => (this.now() - this.setMs) as Monotonic
  go(rate: number): void {
    this.base = this.now()
    this.since = Date.now()
    this.rate = rate
  }
  /** Time passes. */
  jump(ms: number): void {
    this.base += ms
  }
  /** Somebody sets the wall clock. */
  set(ms: number): void {
    this.base += ms
    this.setMs += ms
  }
  async sleep(ms: number, ...signals: AbortSignal[]): Promise<void> {
    const until = this.monotonic() + ms
    while (this.monotonic() < until && !signals.some(({ aborted }) => aborted))
      await Bun.sleep(Math.min(8, (until - this.monotonic()) / this.rate))
  }
}

/** `wrap` changes what the operator sees of the cluster. */
type LifeOptions = {
  rate?: number
  user?: string
  metrics?: Metrics
  wrap?: (cluster: Cluster, clock: Hurried) => Cluster
}

/** An Operator at work, until the test ends. */
export function live(
  server: Server,
  settings: Record<string, string> = {},
  { rate = 50, user = "operator", metrics, wrap = (cluster) => cluster }: LifeOptions = {},
) {
  const { config } = readSettings({
    NAMESPACE: "default",
    JOB_SELECTOR: "!nobody",
    RESTART_DELAY: "0",
    CHECK_INTERVAL: "5",
    ...settings,
  })
  const [stop, kill, clock] = [new AbortController(), new AbortController(), new Hurried(rate)]
  const cluster = wrap(connect(server.sourceFor(user), {}, metrics?.countCall), clock)
  const facts: Fact[] = []
  const said: { level: string; text: string; lines: string[] }[] = []
  const record: Log = (level, text, details) => void said.push({ level, text, lines: details?.lines ?? [] })
  const sinks = [logSink(record), ...(metrics ? [metrics.observe] : [])]
  if (config.notifyUrl) sinks.push(notifier(config.notifyUrl, { clock, kill: kill.signal }, record))
  const emit = (fact: Fact) => {
    facts.push(fact)
    for (const sink of sinks) sink(fact)
  }
  if (process.env.SHOW)
    endings.push(() =>
      console.log(
        said.map(({ level, text, lines }) => [level, text, ...lines].join(" | ")).join("\n"),
        server.calls
          .map((c) => `${c.verb} ${c.resource} ${c.name ?? bodyName(c)} ${c.query.labelSelector ?? ""} ${c.status}`)
          .join("\n"),
      ),
    )
  const operator = new Operator({ cluster, clock, emit, config, stop: stop.signal, kill: kill.signal })
  const done = operator.run()
  const end = (how: AbortController) => how.abort(new Error("stopped"))
  endings.push(() => {
    for (const how of [stop, kill]) end(how)
    return done
  })
  /** The facts of one kind about a Job, or about all. */
  const factsOf = <K extends Fact["kind"]>(kind: K, name?: string) =>
    facts.filter(
      (fact): fact is Extract<Fact, { kind: K }> =>
        fact.kind === kind && (name === undefined || ("job" in fact && fact.job?.name === name)),
    )
  /** The Jobs whose restart has a due time. */
  const scheduled = () => [...operator.cache.jobs.values()].filter(({ state }) => state.is === "scheduled")
  const about = (name: string, words: RegExp) =>
    said.filter(({ text }) => new RegExp(`/${name}(?![\\w-])`).test(text) && words.test(text))
  const evidence = (name: string) =>
    about(name, /failed at/)
      .flatMap(({ lines }) => lines)
      .join("\n")
  return {
    operator,
    config,
    clock,
    facts,
    factsOf,
    scheduled,
    said,
    about,
    evidence,
    done,
    stop: () => end(stop),
    kill: () => [stop, kill].map(end),
  }
}
export type Life = ReturnType<typeof live>

/** The limits of the program that are too long to wait for become so many times shorter. */
export function scaleLimits(by = 40): void {
  const scaled = (run: () => void, ms = 0) => unscaled(run, ms >= 5_000 ? ms / by : ms)
  globalThis.setTimeout = Object.assign(scaled, unscaled) as typeof setTimeout
}

export async function until(what: string | (() => string), is: () => unknown, ms = 20_000): Promise<void> {
  for (const end = performance.now() + ms; !is(); await Bun.sleep(2))
    if (performance.now() > end) throw new Error(`never: ${typeof what === "string" ? what : what()}`)
}

// ── Jobs ──

export type Wanted = { spec?: object; pod?: object; metadata?: object; script?: Attempt[]; namespace?: string }
export const timestamp = (at: number) => `${new Date(at).toISOString().slice(0, 19)}Z`
export const FAILED = {
  type: "Failed",
  status: "True",
  reason: "BackoffLimitExceeded",
  message: "Job has reached the specified backoff limit",
}
export const failedAgo = (agoMs = 5_000, more: object = {}) => ({
  failed: 1,
  conditions: [{ ...FAILED, lastTransitionTime: timestamp(Date.now() - agoMs), ...more }],
})

export const manifest = (name: string, { spec, pod, metadata, script, namespace = "default" }: Wanted = {}) => ({
  apiVersion: "batch/v1",
  kind: "Job",
  metadata: { name, namespace, labels: { app: name }, annotations: { note: 'a < b && "c"' }, ...metadata },
  spec: {
    backoffLimit: 0,
    template: {
      metadata: { labels: { app: name, tier: "load" }, annotations: { [SCRIPT]: JSON.stringify(script ?? []) } },
      spec: {
        restartPolicy: "Never",
        containers: [{ name: "main", image: "load:1", command: ["sh", "-c", 'a < b && "c"'] }],
        ...pod,
      },
    },
    ...spec,
  },
})

/** A Job as it stands in the cluster, failed if not told otherwise. */
export function stand(server: Server, name: string, wanted: Wanted & { status?: object } = {}): Job {
  return server.model.put({ ...manifest(name, wanted), status: wanted.status ?? failedAgo() }) as Job
}
export function person(
  server: Server,
  verb: "create" | "patch" | "delete" | "get",
  name: string,
  body: object = {},
  resource = "jobs",
): Job {
  const answer = server.model.request({ verb, resource, namespace: "default", name, body })
  if (answer.status > 299) throw new Error(JSON.stringify(answer.body))
  return answer.body as Job
}
/** An intent for a restart of a Job as it is, as another life writes it. */
export function standIntent(server: Server, live: Job, dueAt?: number): void {
  const draft = draftOf({ live, additions: { annotations: {}, memory: {} }, dueAt })
  person(server, "create", "", intentFor(draft))
}
/** A Job that the embedded controller runs, attempt by attempt. */
export const run = (server: Server, name: string, script: Attempt[], wanted: Wanted = {}) =>
  person(server, "create", name, manifest(name, { ...wanted, script }))
export const exits = (exitCode: number, log = "", more: object = {}): Attempt => ({
  runMs: 5,
  containers: { main: { exitCode, log, ...more } },
})
/** A pod of a Job as it stands in the cluster. */
export function standPod(
  server: Server,
  { metadata: { name: job, uid } }: Job,
  name: string,
  status: object,
  metadata: object = {},
): void {
  const labels = { stands: "", "batch.kubernetes.io/job-name": job, "batch.kubernetes.io/controller-uid": uid }
  const ownerReferences = [
    { apiVersion: "batch/v1", kind: "Job", name: job, uid, controller: true, blockOwnerDeletion: true },
  ]
  server.model.put({
    kind: "Pod",
    metadata: { name, labels, ownerReferences, ...metadata },
    spec: { nodeName: "node", containers: [] },
    status,
  })
}
export const ended = (name: string, exitCode: number, more: object = {}) => ({
  name,
  state: { terminated: { exitCode, reason: "Error", finishedAt: timestamp(Date.now()), ...more } },
})

export const HELD = { metadata: { labels: { app: "held" }, finalizers: ["example.test/hold"] } }
export const release = (server: Server, name: string) =>
  person(server, "patch", name, { metadata: { finalizers: null } })

/** What the user wrote: all but what the server or the operator has made. */
export function content({ metadata, spec: { selector: _, template, ...spec } }: Job): object {
  const own = (map: Record<string, string> = {}) =>
    Object.fromEntries(Object.entries(map).filter(([k]) => !/controller-uid|job-name/.test(k) && !k.startsWith(PREFIX)))
  const { labels, annotations, ownerReferences, finalizers = [] } = metadata
  const kept = finalizers.filter((name) => name !== "foregroundDeletion")
  return {
    ...{ labels: own(labels), annotations: own(annotations), ownerReferences, kept },
    spec,
    template: { ...template.metadata, ...template.spec, labels: own(template.metadata?.labels) },
  }
}
export const current = (server: Server, { metadata: { namespace, name } }: Job) => server.model.job(namespace, name)
export const intents = (server: Server) =>
  [...server.model.objects.jobs!.values()].filter((job) => job.metadata.labels?.[INTENT])
export const isBack = (server: Server, job: Job) =>
  ![undefined, job.metadata.uid].includes(current(server, job)?.metadata.uid)
const namesOf = (jobs: { metadata: { name: string } }[]) => jobs.map(({ metadata }) => metadata.name)
export const allBack = (server: Server, jobs: Job[]) =>
  until(
    () => `back: ${namesOf(jobs.filter((job) => !isBack(server, job)))}; left: ${namesOf(intents(server))}`,
    () => jobs.every((job) => isBack(server, job)) && intents(server).length === 0,
  )

/** Each Job is back once, as its user wrote it, and its evidence was said once over these lives. */
export function expectOnce(server: Server, lives: Life[], jobs: Job[]): void {
  const states = jobs.map((job) => {
    const { namespace, name } = job.metadata
    const told = lives.flatMap(({ said }) =>
      said.filter(({ text }) => text.includes(`${namespace}/${name}`) && /failed at/.test(text)),
    )
    const same = Bun.deepEquals(content(job), content(current(server, job) as Job))
    return [`${namespace}/${name}`, { lives: server.uids.get(`${namespace}/${name}`)?.length, same, told: told.length }]
  })
  const right = jobs.map(({ metadata: m }) => [`${m.namespace}/${m.name}`, { lives: 2, same: true, told: 1 }])
  expect(Object.fromEntries(states)).toEqual(Object.fromEntries(right))
  expect(intents(server)).toEqual([])
}
export const backOnce = async (server: Server, lives: Life[], jobs: Job[]) => {
  await allBack(server, jobs)
  expectOnce(server, lives, jobs)
}

/** The results of this Job's restarts, as reported. */
export const outcomesOf = (life: Life, name: string) =>
  life.factsOf("RestartFinished", name).map(({ outcome }) => outcome.result)
/** Until the operator has deleted the Job and looked at it twice since: from then on, it relies on its intent. */
export const terminating = (server: Server, { metadata: { name } }: Job) =>
  until("terminating", () => {
    const deletedAt = server.calls.findIndex(
      (call) => call.verb === "delete" && call.name === name && call.status === 200,
    )
    const looks = server.calls
      .slice(deletedAt)
      .filter((call) => call.verb === "get" && call.name === name && call.status > 0)
    return deletedAt >= 0 && looks.length >= 2
  })

/**
 * Waits until nothing that was sent before this can still be applied: for the operator's REQUEST_MAY_APPLY_MS, and a
 * look more.
 */
export async function untilTooLate({ clock }: Life): Promise<void> {
  const since = clock.monotonic()
  await until("too late", () => clock.monotonic() - since > 170_000)
}

let laterJobs = 0
/** Waits until this operator has restarted a Job that failed only now: what was due before has been restarted too. */
export async function afterLaterFailure(server: Server, life: Life): Promise<void> {
  const name = `later-${++laterJobs}`
  const annotations = { [`${PREFIX}restart-delay`]: "0", [`${PREFIX}group`]: name }
  stand(server, name, { metadata: { labels: { app: name }, annotations } })
  await until("a later failure was dealt with", () => life.about(name, /restarted (in|now)/).length > 0)
}
/** Waits until this operator has looked at a Job that is younger than all others, which costs no call to the server. */
export async function afterLaterEvent(server: Server, life: Life): Promise<void> {
  const name = `later-${++laterJobs}`
  stand(server, name, { status: {}, spec: { suspend: true } })
  await until("a later event was seen", () => life.about(name, /suspended/).length > 0)
}

// ── Calls, faults, steps ──

export const callsOf = (
  server: Server,
  verb: Call["verb"],
  resource = "jobs",
  more: (call: Call) => unknown = () => true,
) => server.calls.filter((call) => call.verb === verb && call.resource === resource && more(call))
export const bodyName = ({ body }: Call) => (body as Job | undefined)?.metadata?.name ?? ""
export const isDryRun = ({ query }: Call) => query.dryRun === "All"
export const creations = (server: Server, name: string) =>
  callsOf(server, "create", "jobs", (call) => bodyName(call) === name && !isDryRun(call))
/** The dry runs under a Job's own name. */
export const proofs = (server: Server, name: string) =>
  callsOf(server, "create", "jobs", (call) => bodyName(call) === name && isDryRun(call))
/** The writes of intents for a Job. */
export const intentions = (server: Server, name: string) =>
  callsOf(server, "create", "jobs", (call) => bodyName(call).startsWith(`${name}-restart-`))
export const deletions = (server: Server, name: string) =>
  callsOf(server, "delete", "jobs", (call) => call.name === name)
export const logs = (server: Server) => server.calls.filter(({ subresource }) => subresource === "log")

export const FAULTS: Record<string, Action> = {
  401: { status: 401 },
  403: { status: 403 },
  404: { status: 404 },
  "409 AlreadyExists": { status: 409, reason: "AlreadyExists", message: "already exists" },
  "409 AlreadyExists, being deleted": {
    status: 409,
    reason: "AlreadyExists",
    message: "object is being deleted: already exists",
  },
  "409 Conflict": { status: 409, reason: "Conflict" },
  410: { status: 410 },
  422: { status: 422 },
  "429 with Retry-After": { status: 429, retryAfterSeconds: 1 },
  500: { status: 500 },
  503: { status: 503, retryAfterSeconds: 1 },
  "no answer": { hang: true },
  "a connection cut before the call is applied": { drop: "before" },
  "a connection cut after the call was applied": { drop: "after" },
}
/** The calls of a restart, in order, and how many like it come before. */
export const STEPS: Record<string, (job: Job) => [Match, number]> = {
  look: ({ metadata: { name } }) => [{ verb: "get", resource: "jobs", name }, 0],
  intend: ({ metadata: { name } }) => [
    { verb: "create", resource: "jobs", when: (c) => bodyName(c).startsWith(`${name}-restart-`) },
    0,
  ],
  prove: ({ metadata: { name } }) => [
    { verb: "create", resource: "jobs", when: (c) => bodyName(c) === name && isDryRun(c) },
    0,
  ],
  delete: ({ metadata: { name } }) => [{ verb: "delete", resource: "jobs", name }, 0],
  see: ({ metadata: { name } }) => [{ verb: "get", resource: "jobs", name }, 1],
  read: ({ metadata: { name } }) => [{ verb: "get", resource: "jobs", name: new RegExp(`^${name}-restart-`) }, 0],
  pods: ({ metadata: { uid } }) => [
    { verb: "list", resource: "pods", when: (c) => c.query.labelSelector?.includes(uid) ?? false },
    0,
  ],
  create: ({ metadata: { name } }) => [
    { verb: "create", resource: "jobs", when: (c) => bodyName(c) === name && !isDryRun(c) },
    0,
  ],
  finish: ({ metadata: { name } }) => [{ verb: "delete", resource: "jobs", name: new RegExp(`^${name}-restart-`) }, 0],
}
export const steps = Object.keys(STEPS)
/**
 * A failed Job with the name of a step. An intent is read again only where the old Job does not go at once: there it is
 * held for two looks.
 */
export function standAt(server: Server, step: string, wanted: Wanted = {}): Job {
  if (step !== "read") return stand(server, step, wanted)
  const job = stand(server, step, { ...HELD, ...wanted })
  const { namespace, name } = job.metadata
  let looks = 0
  const when = () => {
    const body = { metadata: { finalizers: null } }
    if (++looks === 3) server.model.request({ verb: "patch", resource: "jobs", namespace, name, body })
    return false
  }
  server.fault({ verb: "get", resource: "jobs", namespace, name, when }, {}, { times: 1 })
  return job
}
/**
 * Calls `run` when a step of this Job's restart has arrived at the server; by its answer, the action follows or the
 * call goes on.
 */
export function atStep(server: Server, step: string, job: Job, run: () => unknown, action?: Action, times = 1): void {
  const [{ when = () => true, ...match }, after] = STEPS[step]!(job)
  const { namespace } = job.metadata
  let seen = 0
  const isIt = (call: Call) => {
    if (!when(call) || seen++ < after || seen > after + times) return false
    run()
    return action !== undefined
  }
  server.fault({ ...match, namespace, when: isIt }, action ?? {}, { times })
}

/** The server is gone for some time. Not waited for its stop: connections that are just being made hold it up. */
export function restartServer(server: Server, downMs: number, reset = false): Promise<void> {
  void server.stop()
  return Bun.sleep(downMs).then(() => server.start({ reset }))
}

export const kubectlDelete = (server: Server, name: string) =>
  person(server, "delete", name, { propagationPolicy: "Background" })
/** As the TTL controller does it. */
export const removedByTtl = (server: Server, name: string) =>
  person(server, "delete", name, { propagationPolicy: "Foreground" })
export function cronOwned(server: Server): object {
  const { uid } = server.model.put({ kind: "CronJob", metadata: { name: "cron" } }).metadata
  return { ownerReferences: [{ apiVersion: "batch/v1", kind: "CronJob", name: "cron", uid, controller: true }] }
}
export const fail = (server: Server, name: string, namespace = "default") =>
  server.model.setStatus("jobs", namespace, name, failedAgo())
