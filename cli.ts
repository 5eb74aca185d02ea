/**
 * The commands of an admin's shell: `status`, `history`, `explain`, `restart`, `dashboard`. operator.ts loads this file
 * only if it is given arguments. The commands need no running operator, and are safe beside one.
 *
 * 1 Jobs, intents and records · 2 Commands that read · 3 Restart · 4 Dashboard · 5 Command line
 */
import { timingSafeEqual } from "node:crypto"
import { createInterface } from "node:readline/promises"
import { parseArgs, styleText } from "node:util"
import dashboardPage from "./dashboard.html" with { type: "text" }
import type { Config, Env, Evidence, Failure, Intent, Job, JobName, JobView, PastFailure, World } from "./operator.ts"
import * as operator from "./operator.ts"
import { ApiError, decideOnRequest, messageOf, nowOf, PREFIX, SettingsError, UNKNOWN, viewJob } from "./operator.ts"
import project from "./package.json" with { type: "json" }

// ───────────────────────────────────── 1 Jobs, intents and records ────────────────────────────────────

/** What a command works with; the namespaces it looks at are those of `world.config`. */
export interface CommandContext {
  world: World
  /** Where the settings come from, in words. */
  from: string
  readSettings(signal: AbortSignal): Promise<{ config: Config; from: string }>
  names: string[]
  options: { namespace?: string; context?: string; output?: string; port?: string; [flag: string]: unknown }
}

/** The result of a command as JSON and as rows; where these have the state of a Job; and the exit code if not 0. */
type Result = { json: unknown; rows: string[][]; stateColumn?: number; code?: number }

/** Something that is not there, or was rejected: exit code 3. Usage errors are SettingsErrors: exit code 2. */
class CommandError extends Error {}

/** Of all Jobs, and of the records of failures. */
const SELECTORS = { jobs: "", configmaps: `${operator.RECORD}=failure` }

type Resource = keyof typeof SELECTORS

/** What is kept of an object, by the Job that it tells of. */
type Sighting = { key: string; id: string; job?: Job; intent?: Intent; past?: PastFailure }

function seeJob(job: Job): Sighting {
  const { namespace, name } = job.metadata ?? {}
  const intent = operator.readIntent(job)
  if (intent) return seeIntent(intent)
  const sighting = { key: `${namespace}/${name}`, id: `jobs/${name}` }
  if (operator.isIntent(job)) return sighting
  return { ...sighting, job: { ...job, metadata: { ...job.metadata, managedFields: [] } } }
}

function seeIntent(intent: Intent): Sighting {
  return { key: `${intent.namespace}/${intent.jobName}`, id: `jobs/${intent.name}`, intent }
}

function seeRecord(metadata: operator.Metadata): Sighting {
  const past = operator.readPast(metadata)
  return { key: `${past.namespace}/${past.job}`, id: `configmaps/${past.name}`, past }
}

/** What is known of one Job: itself, its intents, and the records of its failures. */
class Entry {
  readonly seen = new Map<string, Sighting>()
  /** What a look at a Job's failure has told, where no record's metadata does. */
  looked: { uid: string; failure: Failure } | undefined

  private all = <K extends "job" | "intent" | "past">(kind: K) =>
    [...this.seen.values()].flatMap((sighting) => sighting[kind] ?? [])

  job = () => this.all("job")[0]
  intents = () => operator.newestFirst(this.all("intent"))
  records = () => this.all("past").sort(byTime)

  /** Whether the Job is going or gone: then its restart is under way if there is an intent. */
  isGone = () => operator.isTerminatingOrGone(this.job())

  /** The intent that holds. Of others the operator takes no notice: it decides again. */
  intent = () => this.intents().find((intent) => this.isGone() || operator.mayDelete(intent, this.job() ?? {}))

  /** The one of its last failure, if that is recorded. */
  recordOf = ({ uid }: JobView) => this.records().findLast((past) => past.uid === uid)
}

const byTime = (a: PastFailure, b: PastFailure) => a.failedAt - b.failedAt

/** Jobs with their intents and records, as lists or watches report them. */
class Inventory {
  readonly entries = new Map<string, Entry>()
  /** The Jobs that may have to be reported differently now. */
  readonly changed = new Set<string>()
  /** What the cluster answered to restarts that are overdue, as the operator's Events quote it, by uid. */
  private readonly rejections = new Map<string, string>()

  /** `isNamed`: its Jobs are shown whatever is selected. */
  constructor(
    protected readonly world: World,
    private readonly isNamed = false,
  ) {}

  /** Lists a namespace, in place of what was known of it; returns the version to watch from. */
  async list(namespace: string, resource: Resource, selector = SELECTORS[resource]): Promise<string> {
    const { cluster, stop } = this.world
    const { items, resourceVersion } = await (resource === "jobs"
      ? cluster.listJobs(namespace, selector, seeJob, stop)
      : cluster.listConfigMaps(namespace, selector, seeRecord, stop))
    for (const item of items) this.take("ADDED", item)
    const listed = new Set(items)
    for (const [key, { seen }] of this.entries)
      for (const sighting of seen.values())
        if (key.startsWith(`${namespace}/`) && sighting.id.startsWith(resource) && !listed.has(sighting))
          this.take("DELETED", sighting)
    return resourceVersion
  }

  async listAll(...resources: Resource[]): Promise<void> {
    const { namespaces } = this.world.config
    await Promise.all(namespaces.flatMap((namespace) => resources.map((one) => this.list(namespace, one))))
  }

  async read({ namespace, name, key }: JobName): Promise<Entry> {
    const { cluster, stop } = this.world
    const label = operator.labelValueFor(name)
    const [job] = await Promise.all([
      cluster.getJob(namespace, name, stop),
      this.list(namespace, "jobs", `${operator.INTENT}=${label}`),
      this.list(namespace, "configmaps", `${SELECTORS.configmaps},${operator.RECORD_JOB}=${label}`),
    ])
    if (job) this.take("ADDED", seeJob(job))
    return this.entryOf(key)
  }

  take(type: string, sighting: Sighting): void {
    const { key, id } = sighting
    const entry = this.entryOf(key)
    if (type === "DELETED") entry.seen.delete(id)
    else entry.seen.set(id, sighting)
    // A record knows more than the pods that were left.
    if (sighting.past) entry.looked = undefined
    if (entry.seen.size > 0) this.entries.set(key, entry)
    else this.entries.delete(key)
    this.changed.add(key)
  }

  entryOf = (key: string) => this.entries.get(key) ?? new Entry()

  statuses() {
    return [...this.entries.keys()].sort().flatMap((key) => this.statusOf(key) ?? [])
  }

  statusOf(key: string) {
    const entry = this.entryOf(key)
    const job = this.shownJob(entry)
    return job && this.judge(job, entry)
  }

  /** One that is absent during its restart is shown from its intent. */
  private shownJob(entry: Entry): Job | undefined {
    const intent = entry.intent()
    const job = entry.job() ?? (intent && operator.replacementOf(intent))
    return job && (this.isNamed || intent || operator.isSelected(viewJob(job), this.world.config)) ? job : undefined
  }

  /** A Job as the commands report it, and everything that led to the decision on it. */
  private judge(job: Job, entry: Entry) {
    const { config } = this.world
    const now = nowOf(this.world)
    const view = viewJob(job)
    const { uid, phase, startedAt, completedAt, failedAt, reason } = view
    const records = entry.records()
    const past = records.at(-1)
    const failure = this.failureOf(view, entry) ?? UNKNOWN
    const intent = entry.intent()
    const known = { ...failure, seenAt: now, changed: operator.isChanged(job) }
    const decision = intent ? decisionOf(intent, now) : operator.decide(view, known, config, now)
    const isRestarting = intent !== undefined && decision.do === "restart"
    const nextRestartAt = "dueAt" in decision && !isRestarting ? decision.dueAt : undefined
    const rejection = nextRestartAt !== undefined && nextRestartAt <= now ? this.rejections.get(uid) : undefined
    const restarts = phase === "succeeded" ? 0 : operator.restartsInRow(view, known)
    const unrecorded = { name: "", startedAt, failedAt, cause: failure.cause, restarts, summary: reason }
    const { problems, paused } = operator.overridesOf(view, config)
    const manual = decideOnRequest(view)
    return {
      job: view.key,
      uid,
      phase,
      startedAt,
      completedAt,
      state: isRestarting ? "restarting" : operator.stateOf(view, decision, rejection ? 1 : 0),
      nextRestartAt,
      cause: phase === "failed" ? failure.cause : (past?.cause ?? operator.annotationOf(view, "last-cause")),
      failuresInRow: restarts + (phase === "failed" ? 1 : 0),
      failures: failedAt === undefined || past?.uid === uid ? records : [...records, unrecorded],
      lastFailureAt: failedAt ?? past?.failedAt ?? operator.instant(operator.annotationOf(view, "last-failure")),
      why: rejection ?? decision.because,
      decision: isRestarting ? `its restart is under way, ${decision.because}` : operator.decisionText(decision),
      rules: operator.judgedRules(view, failure, config),
      annotations: Object.entries(view.annotations).map(([name, value]) => `${name.slice(PREFIX.length)}=${value}`),
      problems,
      isPaused: paused,
      notRestartable: manual.do === "restart" || (intent && entry.isGone()) ? undefined : manual.because,
    }
  }

  /** Undefined until explain() has looked at what no record's metadata tells. */
  private failureOf(view: JobView, entry: Entry): Failure | undefined {
    if (view.phase !== "failed") return UNKNOWN
    const past = entry.recordOf(view)
    const needsLog = operator.overridesOf(view, this.world.config).rules.some(({ cause }) => cause.kind === "log")
    if (past && !needsLog) return { ...UNKNOWN, cause: past.cause }
    return entry.looked?.uid === view.uid ? entry.looked.failure : undefined
  }

  /** Looks at a failure that is unknown: whose record, or pods, nobody has read yet. Throws if a record cannot be. */
  async explain(key: string): Promise<void> {
    const entry = this.entryOf(key)
    const job = this.shownJob(entry)
    const view = job && viewJob(job)
    if (!view || this.failureOf(view, entry)) return
    const { failure } = await lookAt(this.world, view, entry)
    entry.looked = { uid: view.uid, failure }
    this.changed.add(key)
  }

  /** Where Events cannot be read, what was known stays. */
  async loadRejections(): Promise<void> {
    const { cluster, stop } = this.world
    const due = this.statuses().filter(({ nextRestartAt = Infinity }) => nextRestartAt <= nowOf(this.world))
    for (const namespace of new Set(due.map(({ job }) => job.slice(0, job.indexOf("/")))))
      for (const { uid, text } of await cluster.listEvents(namespace, "CannotRestart", stop).catch(() => []))
        this.rejections.set(uid, text)
    for (const { job } of due) this.changed.add(job)
  }
}

function decisionOf({ name, dueAt }: Intent, now: number): operator.Decision {
  if (dueAt !== undefined && now < dueAt) return { do: "wait", dueAt, because: `recorded in intent ${name}` }
  return { do: "restart", dueAt: dueAt ?? 0, because: `intent ${name}` }
}

/** What a record holds; undefined if it is gone. */
const loadRecord = async ({ cluster, kill }: World, { namespace, name }: PastFailure) =>
  operator.readRecord((await cluster.getConfigMap(namespace, name, kill)) ?? {})

/** What was observed of a failure, and what that comes to: from its record, else from the pods that are left. */
async function lookAt(world: World, view: JobView, entry: Entry): Promise<{ evidence: Evidence; failure: Failure }> {
  const past = entry.recordOf(view)
  // The operator's own account may list records, but not read them.
  const record = past && (await loadRecord(world, past).catch((error) => operator.rethrowUnless(error, "Forbidden")))
  const evidence = record?.evidence ?? (await operator.gatherEvidence(world, view, []))
  const failure = operator.failureOf(view, evidence)
  return { evidence, failure: past ? { ...failure, cause: past.cause } : failure }
}

/** The status of every selected Job, or of one, whatever is selected; failures explained, and rejections read. */
async function loadStatuses(world: World, only?: JobName) {
  const inventory = new Inventory(world, only !== undefined)
  await (only ? inventory.read(only) : inventory.listAll("jobs", "configmaps"))
  for (const key of inventory.entries.keys()) await inventory.explain(key)
  await inventory.loadRejections()
  world.stop.throwIfAborted()
  return inventory.statuses()
}

// ───────────────────────────────────────── 2 Commands that read ───────────────────────────────────────

const shortName = ({ config }: World, key: string) =>
  config.namespaces.length > 1 ? key : key.slice(key.indexOf("/") + 1)

const spanText = (ms: number) => operator.durationText(Math.max(0, Math.round(ms / 1_000)) * 1_000)
const dueText = (dueAt: number | undefined, now: number) =>
  dueAt === undefined ? "" : dueAt > now ? `in ${spanText(dueAt - now)}` : "now"

async function status({ world, from }: CommandContext): Promise<Result> {
  const jobs = await loadStatuses(world)
  const now = nowOf(world)
  const rows = jobs.map(({ job, state, nextRestartAt, cause = "", failuresInRow, lastFailureAt, why }) => [
    shortName(world, job),
    state,
    dueText(nextRestartAt, now),
    cause,
    String(failuresInRow),
    lastFailureAt === undefined ? "" : `${spanText(now - lastFailureAt)} ago`,
    why,
  ])
  const head = ["JOB", "STATE", "NEXT RESTART", "CAUSE", "IN A ROW", "LAST FAILURE", "WHY"]
  reportToStderr("info", `settings ${from}`)
  return { json: { settings: from, now: operator.instantText(now), jobs }, rows: [head, ...rows], stateColumn: 1 }
}

async function history({ world, names }: CommandContext): Promise<Result> {
  if (names[0] !== undefined) return historyOf(world, jobOf(world, names[0]))
  const inventory = new Inventory(world)
  await inventory.listAll("configmaps")
  const records = [...inventory.entries.values()].flatMap((entry) => entry.records()).sort(byTime)
  const rows = records.map(({ namespace, job, cause, failedAt, restarts, summary, decided }) => {
    const name = shortName(world, `${namespace}/${job}`)
    return [operator.instantText(failedAt), name, cause, String(restarts + 1), summary, decided]
  })
  return { json: records, rows: [["FAILED", "JOB", "CAUSE", "IN A ROW", "HOW IT ENDED", "THEN"], ...rows] }
}

async function historyOf(world: World, job: JobName): Promise<Result> {
  const entry = await new Inventory(world).read(job)
  if (entry.seen.size === 0) throw new CommandError(`there is no Job ${job.key}, and no record of a failure of it`)
  const records = await Promise.all(entry.records().map((past) => loadRecord(world, past)))
  const whole = records.flatMap((record) => record ?? [])
  const json = whole.map(({ past, reason, evidence: { logs, ...evidence } }) => {
    return { ...past, reason, ...evidence, logs: Object.fromEntries(logs) }
  })
  const lines = whole.length > 0 ? whole.flatMap(operator.recordLines) : [`no failure of ${job.key} is recorded`]
  return { json, rows: lines.map((line) => [line]) }
}

function jobOf({ config: { namespaces } }: World, text: string): JobName {
  const [name = "", wanted = namespaces.join()] = text.split("/").reverse()
  const namespace = operator.JOB_NAME.test(text) && namespaces.find((one) => one === wanted)
  if (namespace) return { key: `${namespace}/${name}`, namespace, name, uid: "" }
  throw new SettingsError([`${operator.quote(text)} names no Job in ${namespaces}; with several write namespace/name`])
}

async function explain({ world, names, from }: CommandContext): Promise<Result> {
  const job = jobOf(world, names[0] as string)
  const [facts] = await loadStatuses(world, job)
  if (!facts) throw new CommandError(`there is no Job ${job.key}`)
  const failure = facts.lastFailureAt
    ? `${facts.cause ?? "unknown"} at ${operator.instantText(facts.lastFailureAt)}, ${facts.failuresInRow} in a row`
    : "none is known"
  const due = dueText(facts.nextRestartAt, nowOf(world))
  const blocks = {
    job: [`${job.key}, ${facts.state}${due && `, next restart ${due}`}`],
    decision: [facts.decision],
    failure: [failure],
    rules: facts.rules.map(({ rule, verdict }) => `${rule} ${verdict}`),
    annotations: facts.annotations,
    problems: facts.problems,
    settings: [from, ...operator.settingsLines(world.config)],
  }
  const rows = Object.entries(blocks).flatMap(([label, lines]) => lines.map((line, i) => [i === 0 ? label : "", line]))
  return { json: { ...facts, settings: { from, ...operator.variablesOf(world.config) } }, rows }
}

// ───────────────────────────────────────────── 3 Restart ──────────────────────────────────────────────

async function restart({ world, names, options }: CommandContext): Promise<Result> {
  const jobs = new Map(names.map((name) => jobOf(world, name)).map((job) => [job.key, job]))
  const plans = await Promise.all([...jobs.values()].map((job) => planRestart(world, job)))
  const rejections = plans.flatMap((plan) => ("rejection" in plan ? [plan.rejection] : []))
  if (rejections.length > 0) throw new CommandError(rejections.join("\n"))
  const ready = plans.filter((plan) => "run" in plan)
  if (!options.yes && !(await confirm(`restart ${ready.map(({ what }) => what).join(", ")}?`, world.stop)))
    throw new CommandError("nothing was done")
  const facts = await Promise.all(ready.map((plan) => runRestart(world, plan)))
  const has = (...results: string[]) => facts.some(({ result }) => results.includes(result))
  const unfinished = has("interrupted") ? 130 : has("rejected", "changed") ? 3 : 0
  const code = has("fault", "namespace gone", "cancelled") ? 1 : unfinished
  return { json: facts, rows: [["JOB", "RESULT", "DETAILS"], ...facts.map((fact) => Object.values(fact))], code }
}

type RestartPlan = { job: JobName; what: string; run: () => Promise<operator.Outcome> }

/** What a restart knows without watches: what it has read itself. */
const restartCacheOf = (inventory: Inventory, { emit }: World, key: string): operator.RestartCache => ({
  intents: () => inventory.entryOf(key).intents(),
  latest: () => inventory.entryOf(key).job(),
  onJobRead: (job) => inventory.take("READ", seeJob(job)),
  onIntentRead: (intent) => inventory.take("READ", seeIntent(intent)),
  onIntentGone: (intent) => inventory.take("DELETED", seeIntent(intent as Intent)),
  emit,
})

/** What a manual restart comes to: a restart, the end of one that was left unfinished, or why not. */
async function planRestart(world: World, job: JobName): Promise<RestartPlan | { rejection: string }> {
  if (world.config.dryRun) throw new SettingsError(["DRY_RUN is set: nothing is restarted"])
  const inventory = new Inventory(world)
  const cache = restartCacheOf(inventory, world, job.key)
  const entry = await inventory.read(job)
  const live = entry.job()
  const intent = entry.intent()
  if (intent && entry.isGone()) {
    const run = () => operator.reconcileRestart(world, cache, { job, atOnce: true })
    return { job, what: `${job.key} (continuing ${intent.name})`, run }
  }
  if (!live) return { rejection: `there is no Job ${job.key}` }
  const view = viewJob(live)
  const decision = decideOnRequest(view)
  if (decision.do !== "restart") return { rejection: `${job.key} is not restarted: ${decision.because}` }
  const run = async () => {
    const failure = view.phase === "failed" ? await keepEvidence(world, view, entry) : UNKNOWN
    const known = { ...failure, changed: true }
    const desiredFor = (latest: Job) => operator.desiredFor(latest, known, world.config, nowOf(world), decideOnRequest)
    const reconcile = () => operator.reconcileRestart(world, cache, { job: view, desiredFor, atOnce: true })
    const outcome = await reconcile()
    // What has ended may be the restart of an earlier Job, which this one has replaced.
    return "uid" in outcome && outcome.uid === view.uid ? reconcile() : outcome
  }
  return { job, what: `${job.key} (${view.phase})`, run }
}

async function runRestart(world: World, { job, run }: RestartPlan) {
  const outcome = await run().catch((error: unknown) => ({ result: "fault" as const, error }))
  if (outcome.result === "restarted") {
    const text = "restarted, for a person asked for it"
    const event = operator.eventFor({ ...job, uid: outcome.uid }, "info", "Restarted", text, nowOf(world))
    await world.cluster.createEvent(job.namespace, event, world.kill).catch(() => {})
  }
  const hint = outcome.result === "interrupted" ? "its intent stays: an operator goes on, or this command" : ""
  const details = "uid" in outcome ? `new uid ${outcome.uid}` : "error" in outcome ? messageOf(outcome.error) : hint
  return { job: job.key, result: outcome.result, details }
}

/** The failure, recorded if no operator has done so: the Job's pods go with it. */
async function keepEvidence(world: World, view: JobView, entry: Entry): Promise<Failure> {
  const { evidence, failure } = await lookAt(world, view, entry)
  if (entry.recordOf(view) || world.config.historyLimit === 0) return failure
  const known = { ...failure, changed: operator.isChanged(entry.job() ?? {}) }
  const record = operator.recordFor(view, evidence, known, decideOnRequest(view))
  await operator.createRecord(world, record).catch((error: unknown) => {
    reportToStderr("warning", `[${view.key}] its failure is not recorded: ${messageOf(error)}`)
  })
  return failure
}

// ──────────────────────────────────────────── 4 Dashboard ─────────────────────────────────────────────

const BEAT_MS = 10_000
const RETRY_MS = 1_500
/** A watch notices a server that hangs only after minutes. */
const ANSWER_MS = 5_000

/** For JSON.stringify: secrets are masked, control and bidi characters visible. Instants stay numbers. */
const masked = (_: string, value: unknown) => (typeof value === "string" ? operator.safe(value) : value)

/** An inventory that watches keep current; it tells every open page what changes. */
export class Dashboard extends Inventory {
  /** What cannot be read right now, and why. */
  private readonly problems = new Map<string, string>()
  private readonly pages = new Set<ReadableStreamDefaultController<string>>()
  private looking: Promise<unknown> = Promise.resolve()
  /** The Jobs whose look has not begun. */
  private readonly toLookAt = new Set<string>()

  constructor(private readonly context: Pick<CommandContext, "world" | "from" | "readSettings">) {
    super(context.world)
  }

  /** Resolves once everything was listed, or could not be. */
  async start(): Promise<void> {
    const { namespaces } = this.world.config
    const start = (namespace: string, resource: Resource) =>
      new Promise<void>((ready) => void this.listAndWatch(namespace, resource, ready))
    await Promise.all(namespaces.flatMap((one) => [start(one, "jobs"), start(one, "configmaps")]))
    // A burst of changes is sent as one.
    setInterval(() => this.changed.size > 0 && this.send(), 100).unref()
    void this.beat()
  }

  /** What an open page reads: everything at first, then every change. */
  events(): ReadableStream<string> {
    let page: ReadableStreamDefaultController<string>
    const start = (controller: ReadableStreamDefaultController<string>) => {
      page = controller
      this.pages.add(page)
      page.enqueue(this.eventOf([...this.entries.keys()], true))
      this.look(this.entries.keys())
    }
    return new ReadableStream({ start, cancel: () => void this.pages.delete(page) })
  }

  private send(): void {
    const keys = [...this.changed]
    this.changed.clear()
    if (this.pages.size === 0) return
    const event = this.eventOf(keys, false)
    // One that leaves a hundred unread, as under an open question, is cut off; it comes back by itself.
    for (const page of this.pages)
      if ((page.desiredSize ?? 0) > -100) page.enqueue(event)
      else if (this.pages.delete(page)) page.error(new Error("the page does not read"))
    this.look(keys)
  }

  private eventOf(keys: string[], areAll: boolean): string {
    const { cluster, config } = this.world
    const facts = {
      now: nowOf(this.world),
      address: cluster.address,
      namespaces: config.namespaces,
      settings: [this.context.from, ...operator.settingsLines(config)],
      problems: Object.fromEntries(this.problems),
      areAll,
      lanes: Object.fromEntries(keys.map((key) => [key, this.statusOf(key) ?? null])),
    }
    return `data: ${JSON.stringify(facts, masked)}\n\n`
  }

  /** One by one: many lists of pods at once would load the API server. What fails is tried at the next beat. */
  private look(keys: Iterable<string>): void {
    for (const key of new Set(keys).difference(this.toLookAt)) {
      this.toLookAt.add(key)
      const look = () => this.toLookAt.delete(key) && this.explain(key)
      this.looking = this.looking.then<unknown>(look).catch(() => {})
    }
  }

  /** Lists once, then watches, one watch after the other; after an error lists again. */
  private async listAndWatch(namespace: string, resource: Resource, ready: () => void): Promise<void> {
    const { clock, cluster, stop } = this.world
    const what = `${resource} in ${namespace}`
    const options = { silenceMs: 150_000, resourceVersion: "", selector: SELECTORS[resource] }
    do {
      let stopTimer = () => {}
      try {
        options.resourceVersion ||= await this.list(namespace, resource).finally(ready)
        // Not at once: where only the watch is forbidden, the error would come and go.
        stopTimer = operator.systemClock.after(RETRY_MS, () => this.report(what))
        for await (const { type, object } of cluster.watch(namespace, resource, options, stop)) {
          options.resourceVersion = object.metadata?.resourceVersion ?? options.resourceVersion
          if (type === "BOOKMARK") continue
          this.take(type, resource === "jobs" ? seeJob(object) : seeRecord(object.metadata ?? {}))
        }
      } catch (error) {
        stopTimer()
        options.resourceVersion = ""
        this.report(what, error)
      }
      await clock.sleep(RETRY_MS, stop)
    } while (!stop.aborted)
  }

  /** Without an error: it can be read again. */
  private report(what: string, error?: unknown): void {
    if (error === undefined) this.problems.delete(what)
    else this.problems.set(what, messageOf(error))
    this.send()
  }

  /** While a page is open: reads the settings, which also shows whether the API server answers, and rejections. */
  private async beat(): Promise<void> {
    const { clock, stop } = this.world
    for (; !stop.aborted; await clock.sleep(BEAT_MS, stop)) {
      if (this.pages.size === 0) continue
      const error = await this.readSettings().catch((reason: unknown) => reason)
      const isAnswer = error instanceof SettingsError || error instanceof ApiError
      this.report("settings", isAnswer ? error : undefined)
      this.report("API server", isAnswer ? undefined : error)
      if (!error) void this.loadRejections()
      this.look(this.entries.keys())
    }
  }

  /** By changed settings every Job is judged anew. The namespaces stay those that are watched. */
  private async readSettings(): Promise<void> {
    const { config, from } = await this.context.readSettings(AbortSignal.timeout(ANSWER_MS))
    if (from === this.context.from) return
    this.context.from = from
    this.world.config = { ...config, namespaces: this.world.config.namespaces }
    for (const key of this.entries.keys()) this.changed.add(key)
  }

  /** The evidence of one failure: from its record or, without a name, from the pods that are left. */
  async evidenceOf(query: URLSearchParams): Promise<{ lines: string[] }> {
    const entry = this.entryOf(query.get("job") ?? "")
    const name = query.get("record")
    const job = name ? undefined : entry.job()
    if (job) return { lines: operator.evidenceLines((await lookAt(this.world, viewJob(job), entry)).evidence) }
    const past = entry.records().find((one) => one.name === name)
    const record = past && (await loadRecord(this.world, past))
    if (!record) throw new CommandError("it is not there any more")
    return { lines: operator.recordLines(record) }
  }

  /** Does what a person has confirmed on the page. Throws an error whose words the page shows. */
  async act({ action, job: key, uid }: Record<string, unknown>): Promise<{ text: string }> {
    const { cluster, kill } = this.world
    const job = jobOf(this.world, String(key))
    const live = await cluster.getJob(job.namespace, job.name, kill)
    if ((live?.metadata?.uid ?? "") !== uid) throw new CommandError(`${key} was replaced in the meantime: look again`)
    if (action === "restart") {
      const plan = await planRestart(this.world, job)
      if ("rejection" in plan) throw new CommandError(plan.rejection)
      const { result, details } = await runRestart(this.world, plan)
      if (!/^re(started|placed)$/.test(result)) throw new CommandError([result, details].filter(Boolean).join(": "))
      return { text: `${key} is ${result}, ${details}` }
    }
    if (!live || !/^(pause|resume)$/.test(String(action))) throw new CommandError(`${key} cannot be ${action}d`)
    await cluster.annotateJob(viewJob(live), { [`${PREFIX}paused`]: action === "pause" ? "true" : null }, kill)
    return { text: `${key} is ${action}d` }
  }
}

const newSecret = () => Buffer.from(crypto.getRandomValues(new Uint8Array(32))).toString("base64url")
const sha256 = (text: string) => new Bun.CryptoHasher("sha256").update(text).digest()
const isSame = (a: string, b: string) => timingSafeEqual(sha256(a), sha256(b))

/** TypeScript takes an import of HTML for a bundle. */
const page = dashboardPage as unknown as string

function sourceOf(tag: "script" | "style"): string {
  const [, text = ""] = new RegExp(`<${tag}>([^]*?)</${tag}>`).exec(page) ?? []
  return `${tag}-src 'sha256-${sha256(text).toString("base64")}'`
}

/** On every answer: nothing is kept, nothing leaks, and the page runs nothing but its own style and script. */
const HEADERS = {
  "Cache-Control": "no-store",
  "Content-Security-Policy": [
    `default-src 'none'; ${sourceOf("script")}; ${sourceOf("style")}; connect-src 'self'; img-src data:`,
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "require-trusted-types-for 'script'; trusted-types 'none'",
  ].join("; "),
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Resource-Policy": "same-origin",
  "Referrer-Policy": "no-referrer",
  "X-Content-Type-Options": "nosniff",
}

function reply(body: string | ReadableStream, headers: Record<string, string>, status = 200): Response {
  return new Response(body, { status, headers: { ...HEADERS, ...headers } })
}

/** What comes of some work as JSON: with `failed` as its status and the error's words if it fails. */
async function replyJson(work: Promise<object>, failed: 404 | 409): Promise<Response> {
  const body = await work.catch((error: unknown) => ({ error: messageOf(error) }))
  return reply(operator.jsonText(body), { "Content-Type": "application/json" }, "error" in body ? failed : 200)
}

/** The page, its events and its actions, for the one who was given the address: on 127.0.0.1 and, if it exists, ::1. */
class Site {
  readonly token = newSecret()
  /** Valid once: the command line of a browser can be read by every user of the machine. */
  tokenForBrowser = newSecret()
  /** The actions under way: a stop lets them end. */
  acting: Promise<unknown> = Promise.resolve()
  port = 0

  constructor(private readonly dashboard: Dashboard) {}

  open(port: number): void {
    const options = {
      development: false,
      // Without this, Bun 1.4.5 shares the port with every other process if development is off.
      reusePort: false,
      idleTimeout: 0,
      fetch: (request: Request) => this.answer(request),
    }
    this.port = Bun.serve({ ...options, hostname: "127.0.0.1", port }).port ?? 0
    operator.tryOrUndefined(() => Bun.serve({ ...options, hostname: "::1", port: this.port }))
  }

  private answer(request: Request): Response | Promise<Response> {
    const { pathname, searchParams } = URL.parse(request.url) ?? new URL("none:")
    const route = `${request.method} ${pathname}`
    const token = route === "GET /" ? searchParams.get("token") : null
    // Cookies know no ports: without the port in its name, a second dashboard would log the first one out.
    const cookie = `dashboard-${this.port}`
    const secret = token ?? new Bun.CookieMap(request.headers.get("cookie") ?? "").get(cookie) ?? ""
    // Strangers must not hold connections: the system allows only so many.
    if (!this.isFromHere(request) || !this.isKnown(secret)) return reply("", { Connection: "close" }, 403)
    if (token !== null) {
      const attributes = "HttpOnly; SameSite=Strict; Path=/"
      // Not a 3xx: after a click in another site, browsers send no Strict cookie along a redirect.
      return reply("", { "Set-Cookie": `${cookie}=${this.token}; ${attributes}`, Refresh: "0; url=/" })
    }
    if (route === "GET /") return reply(page, { "Content-Type": "text/html; charset=utf-8" })
    if (route === "GET /events") return reply(this.dashboard.events(), { "Content-Type": "text/event-stream" })
    if (route === "GET /failure") return replyJson(this.dashboard.evidenceOf(searchParams), 404)
    if (route === "POST /action") return this.act(request)
    return reply("", {}, ["/", "/events", "/failure", "/action"].includes(pathname) ? 405 : 404)
  }

  /** Not DNS rebinding, nor a form or script of another site. Port 80 is in no Host and no Origin. */
  private isFromHere({ method, headers }: Request): boolean {
    const host = headers.get("host") ?? ""
    const origin = headers.get("origin") ?? (method === "GET" ? `http://${host}` : "")
    const hosts = ["127.0.0.1", "[::1]", "localhost"].map((name) => new URL(`http://${name}:${this.port}`).host)
    return hosts.includes(host) && origin === `http://${host}`
  }

  private isKnown(secret: string): boolean {
    const isForBrowser = isSame(secret, this.tokenForBrowser)
    if (isForBrowser) this.tokenForBrowser = newSecret()
    return isForBrowser || isSame(secret, this.token)
  }

  private async act(request: Request): Promise<Response> {
    // A form of another site cannot send JSON.
    if (request.headers.get("content-type") !== "application/json") return reply("", {}, 403)
    const action = request.json().then((body) => this.dashboard.act({ ...(body as object) }))
    this.acting = Promise.allSettled([this.acting, action])
    return replyJson(action, 409)
  }
}

async function dashboard(context: CommandContext): Promise<undefined> {
  const { world, options } = context
  const content = new Dashboard(context)
  await content.start()
  world.stop.throwIfAborted()
  const site = new Site(content)
  site.open(Number(options.port ?? 0))
  const opening = `http://127.0.0.1:${site.port}/?token=`
  // Not with printResult(), which masks secrets.
  await print(`Dashboard: ${opening}${site.token}\n`)
  reportToStderr("info", "open this address in a browser; Ctrl-C ends the dashboard")
  if (!options["no-open"]) openBrowser(opening + site.tokenForBrowser)
  await world.clock.sleep(Number.POSITIVE_INFINITY, world.stop)
  await site.acting
}

/** Opens the browser, if there is one; whoever has none has the printed address. */
function openBrowser(address: string): void {
  const isDesktop = process.platform !== "linux" || process.env.DISPLAY || process.env.WAYLAND_DISPLAY
  const opener = { darwin: "open", win32: "explorer" }[process.platform as string] ?? "xdg-open"
  if (isDesktop && Bun.which(opener)) Bun.spawn([opener, address], { stdio: ["ignore", "ignore", "ignore"] }).unref()
}

// ─────────────────────────────────────────── 5 Command line ───────────────────────────────────────────

const OPTIONS = {
  namespace: { type: "string", short: "n" },
  context: { type: "string" },
  output: { type: "string", short: "o" },
  "no-color": { type: "boolean" },
  yes: { type: "boolean", short: "y" },
  port: { type: "string" },
  "no-open": { type: "boolean" },
} as const

/** The options that only one command has. */
const OWN: Record<string, string> = { yes: "restart", port: "dashboard", "no-open": "dashboard" }

const COMMANDS = {
  status: { jobs: "", count: [0, 0], run: status, help: "show each Job's state, next restart and why" },
  history: { jobs: "[JOB]", count: [0, 1], run: history, help: "list past failures; of one JOB with all evidence" },
  restart: { jobs: "JOB...", count: [1, 1e9], run: restart, help: "restart failed or finished Jobs now" },
  explain: { jobs: "JOB", count: [1, 1], run: explain, help: "explain the decision on a Job: inputs, rules, settings" },
  dashboard: { jobs: "", count: [0, 0], run: dashboard, help: "serve a page for your browser, on this machine alone" },
}

/** Throws a SettingsError for what it does not understand. */
function readCommandLine(args: string[]) {
  try {
    const { positionals, values: options } = parseArgs({ args, options: OPTIONS, allowPositionals: true })
    const [name = args.join(" "), ...names] = positionals
    const command = Object.entries(COMMANDS).find(([known]) => known === name)?.[1]
    const [least = 0, most = 0] = command?.count ?? []
    const foreign = Object.keys(options).filter((option) => (OWN[option] ?? name) !== name)
    const mistakes = [
      !command && `there is no command ${name}; there are ${Object.keys(COMMANDS).join(", ")}`,
      ...foreign.map((option) => `--${option} goes with ${OWN[option]}`),
      command && (names.length < least || names.length > most) && `write ${`${name} ${command.jobs}`.trim()}`,
      !operator.NAMESPACE_NAME.test(options.namespace || "any") && "-n is the name of one namespace",
      !/^(table|json)$/.test(options.output ?? "table") && "-o is table or json",
      !(Number(/^\d+$/.exec(options.port ?? "0")?.[0]) <= 65_535) && "--port is a number from 0 (any free) to 65535",
    ].filter(Boolean)
    if (!command || mistakes.length > 0) throw new Error(mistakes.join("\n"))
    return { command, names, options }
  } catch (error) {
    const mistakes = messageOf(error).split("\n")
    throw new SettingsError(mistakes.map((mistake) => `${mistake}; see --help`))
  }
}

export function helpText(): string {
  const rows = operator.SETTINGS.map(({ variable, default: value, help, olderName }) => {
    return `  ${variable.padEnd(18)} ${help} (default ${value || "none"}${olderName ? `; else ${olderName}` : ""})`
  })
  const commands = Object.entries(COMMANDS).map(([name, { jobs, help }]) => `  ${`${name} ${jobs}`.padEnd(18)} ${help}`)
  return `${project.name} ${project.version}: ${project.description}.

Usage: ${project.name} [--help | --version]      runs the operator
       ${project.name} COMMAND [OPTIONS]

${commands.join("\n")}

  -n, --namespace NAMESPACE, --context CONTEXT   where to look (default: NAMESPACE, else the kubeconfig's namespace)
  -o, --output table|json, --no-color (or NO_COLOR)
  -y, --yes                                      restart without asking
  --port PORT, --no-open                         of the dashboard: its port (default: any), do not open a browser

The operator is configured by environment variables; a duration is a whole number of seconds or like 90s, 15m, 1h30m:
${rows.join("\n")}

It connects by KUBECONFIG if set, else the pod's ServiceAccount, else ~/.kube/config.
Exit codes: 0 done, or the operator or dashboard was stopped by a signal; 1 a fault; 2 a wrong setting, option or
configuration; 3 no such Job, or a restart that was rejected; 130 a command that was interrupted.
`
}

const reportToStderr: operator.Log = (level, text, { lines = [] } = {}) => {
  const all = [level === "fatal" ? `error: ${text}` : text, ...lines.map((line) => `    ${line}`)]
  process.stderr.write(all.map((line) => `${operator.safe(line)}\n`).join(""))
}

async function confirm(question: string, signal: AbortSignal): Promise<boolean> {
  if (!process.stdin.isTTY) throw new SettingsError(["stdin is not a terminal; use --yes to skip confirmation"])
  using reader = createInterface({ input: process.stdin, output: process.stderr })
  return /^y(es)?$/i.test((await reader.question(`${operator.safe(question)} [y/N] `, { signal })).trim())
}

const COLORS = { given_up: "red", rejected: "red", waiting: "yellow", restarting: "cyan", succeeded: "green" } as const

/** Prints results: on a terminal with a colour for each state, unless NO_COLOR is set. */
async function printResult({ json, rows, stateColumn = -1 }: Result, options: CommandContext["options"]) {
  const lines = operator.alignedRows(rows).map((line, i) => {
    const color = COLORS[rows[i]?.[stateColumn] as keyof typeof COLORS]
    return color && !options["no-color"] ? styleText(color, line) : line
  })
  await print(`${options.output === "json" ? operator.jsonText(json) : lines.join("\n")}\n`)
}

/** Returns the exit code. Ignores EPIPE: the reader, such as head, has closed the pipe. */
async function print(text: string): Promise<number> {
  await Bun.write(Bun.stdout, text).catch((error) => (error.code === "EPIPE" ? 0 : Promise.reject(error)))
  return 0
}

/** The settings that the operator wrote, else the environment's; where these select no Job, those of every Job. */
async function settingsFor(cluster: operator.Cluster, namespace: string, env: Env, signal: AbortSignal) {
  const map = await cluster.getConfigMap(namespace, operator.SETTINGS_MAP, signal)
  const from = `as the operator wrote them in ${namespace} at ${map?.metadata?.annotations?.[`${PREFIX}written-at`]}`
  if (map) return { config: operator.readSettings(map.data ?? {}).config, from }
  const isSelection = operator.normalizeInput(env.JOB_NAMES) || operator.normalizeInput(env.JOB_SELECTOR)
  const all = operator.normalizeInput(env.NAMESPACE)
  const NAMESPACE = all.split(/[,\s]/).includes(namespace) ? all : namespace
  const JOB_SELECTOR = isSelection ? env.JOB_SELECTOR : `!${operator.INTENT}`
  const { config } = operator.readSettings({ ...env, NAMESPACE, JOB_SELECTOR })
  const whose = isSelection ? "of the environment" : "are the defaults, for every Job"
  return { config, from: `${whose}; no operator has written any in ${namespace}` }
}

/** Runs a command with a kubeconfig, or in the operator's pod. Returns its exit code. */
async function runCommand(args: string[], env: Env, world: Omit<World, "cluster" | "config">): Promise<number> {
  if (args.includes("--help") || args.includes("-h")) return print(helpText())
  if (args[0] === "--version" || args[0] === "-v") return print(`${project.version}\n`)
  const { command, names, options } = readCommandLine(args)
  const source = await operator.findSource(env, operator.SERVICE_ACCOUNT, options.context, world.stop)
  const cluster = operator.connect(source, env)
  const nearest = operator.normalizeInput(env.NAMESPACE) || source.config.namespace || "flickr-downloader"
  const namespace = options.namespace || (nearest.split(/[,\s]/)[0] as string)
  const readSettings = async (signal: AbortSignal) => {
    const { config, from } = await settingsFor(cluster, namespace, env, signal)
    return { from, config: options.namespace ? { ...config, namespaces: [options.namespace] } : config }
  }
  const { config, from } = await readSettings(world.stop)
  // Only a restart must not be cut off in the middle.
  const kill = command.run === restart || command.run === dashboard ? world.kill : world.stop
  const result = await command.run({ world: { ...world, kill, cluster, config }, names, options, from, readSettings })
  if (result) await printResult(result, options)
  return result?.code ?? 0
}

export async function runCommandLine(args: string[], env: Env, signals: Pick<World, "stop" | "kill">): Promise<number> {
  try {
    const world = { clock: operator.systemClock, emit: operator.logSink(reportToStderr), ...signals }
    return await runCommand(args, env, world)
  } catch (error) {
    // An AbortError is what readline makes of Ctrl-C and Ctrl-D at a question.
    if (signals.stop.aborted || (error as Error).name === "AbortError") return 130
    for (const mistake of messageOf(error).split("\n")) reportToStderr("fatal", mistake)
    if (error instanceof CommandError) return 3
    return error instanceof SettingsError || error instanceof operator.ConfigError ? 2 : 1
  }
}
