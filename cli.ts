/**
 * The commands of an admin's shell: `status`, `history`, `restart`, `explain`, `dashboard`. operator.ts loads this file only if it is
 * given arguments. The commands need no running operator, and are safe beside one.
 *
 * 1 Reading the cluster · 2 Commands · 3 Restart · 4 Dashboard: what it knows · 5 Dashboard: the server · 6 Command line
 */
import { timingSafeEqual } from "node:crypto"
import { networkInterfaces } from "node:os"
import { createInterface } from "node:readline/promises"
import { parseArgs } from "node:util"
import dashboardPage from "./dashboard.html" with { type: "text" }
import {
  ApiError,
  alignedRows,
  backoffMs,
  type Cluster,
  ConfigError,
  connect,
  count,
  createRecord,
  type Decision,
  decide,
  decideOnWish,
  durationText,
  type Env,
  emitTo,
  eventFor,
  evidenceLines,
  type Failure,
  failureOf,
  findSource,
  gatherEvidence,
  INTENT,
  type Intent,
  instant,
  instantText,
  isChanged,
  isIntent,
  isSelected,
  JOB_NAME,
  type Job,
  type JobName,
  type JobView,
  jsonText,
  judgedRules,
  type Listed,
  labelValueFor,
  messageOf,
  newestFirst,
  nowOf,
  type Outcome,
  overridesOf,
  own,
  type PastFailure,
  PREFIX,
  printable,
  quote,
  RECORD,
  RECORD_JOB,
  type RestartCache,
  readIntent,
  readPast,
  readRecord,
  readSettings,
  reconcileRestart,
  recordFor,
  type Say,
  SERVICE_ACCOUNT,
  SETTINGS,
  SETTINGS_MAP,
  SettingsError,
  safe,
  sayDecision,
  stateOf,
  systemClock,
  UNKNOWN,
  variablesOf,
  viewJob,
  type World,
  wishFor,
  written,
} from "./operator.ts"
import project from "./package.json" with { type: "json" }

// ──────────────────────────────────────── 1 Reading the cluster ───────────────────────────────────────

/** What a command works with. */
export interface CommandContext {
  world: World
  namespaces: string[]
  /** Where the settings come from, in words. */
  settings: string
  names: string[]
  options: Partial<Record<string, string>>
  env: Env
  /** Prints the result, as JSON or as rows in columns. */
  print(json: unknown, rows: string[][]): Promise<void>
  /** Asks on the terminal; undefined with --yes. */
  confirm: ((question: string) => Promise<boolean>) | undefined
}

/** A usage error (2), or something not found or rejected (3); the code is the exit code. */
export class CommandError extends Error {
  override name = "CommandError"
  constructor(
    readonly code: 2 | 3,
    ...mistakes: string[]
  ) {
    super(mistakes.join("\n"))
  }
}

/** The settings as the operator wrote them in a namespace, else those of the environment. Throws a CommandError. */
export async function settingsFor(cluster: Cluster, namespace: string, env: Env, signal: AbortSignal) {
  const map = await cluster.getConfigMap(namespace, SETTINGS_MAP, signal)
  if (map) {
    const writtenAt = map.metadata?.annotations?.[`${PREFIX}written-at`]
    const from = `as the operator wrote them in ${namespace} at ${writtenAt}`
    return { config: readSettings(map.data ?? {}).config, from }
  }
  try {
    const { config } = readSettings({ ...env, NAMESPACE: namespace })
    return { config, from: "of the environment; no operator has written any" }
  } catch (error) {
    if (!(error instanceof SettingsError)) throw error
    const missing = `no operator has written its settings in namespace ${namespace}`
    throw new CommandError(2, `${missing}: name another with -n, or set them in the environment`, ...error.mistakes)
  }
}

/** A Job as the commands report it. `past`: its last recorded failure. */
interface JobStatus {
  view: JobView
  past: PastFailure | undefined
  failure: Failure
  decision: Decision
  isRestarting: boolean
}

/** What an intent has decided already. */
function decisionOf({ name, dueAt }: Intent, now: number): Decision {
  if (dueAt !== undefined && now < dueAt) return { do: "wait", dueAt, because: `recorded in intent ${name}` }
  return { do: "restart", dueAt: dueAt ?? 0, because: `intent ${name}` }
}

function statusOf(
  world: World,
  { job, view, intent }: Found,
  past: PastFailure | undefined,
  failure: Failure,
): JobStatus {
  const now = nowOf(world)
  const decision = intent
    ? decisionOf(intent, now)
    : decide(view, { ...failure, changed: isChanged(job) }, world.config, now)
  return { view, past, failure, decision, isRestarting: intent !== undefined && decision.do === "restart" }
}

/** A selected Job, and the intent that stands for it; `job` is from the intent if the Job is absent in the middle of a restart. */
type Found = { job: Job; view: JobView; intent: Intent | undefined }

/** The selected Jobs among these Jobs and intents. */
function selectJobs(items: Job[], isWanted: (view: JobView) => boolean): Found[] {
  const standing = items.filter(isIntent).flatMap((item) => readIntent(item) ?? [])
  const intents = new Map(
    [...Map.groupBy(standing, ({ namespace, jobName }) => `${namespace}/${jobName}`)].map(
      ([key, all]) => [key, newestFirst(all)[0]] as const,
    ),
  )
  const jobs = new Map<string, Job>()
  for (const [key, intent] of intents) if (intent) jobs.set(key, originalOf(intent))
  for (const item of items) if (!isIntent(item) && isWanted(viewJob(item))) jobs.set(viewJob(item).key, item)
  return [...jobs].map(([key, job]) => ({ job, view: viewJob(job), intent: intents.get(key) }))
}

const originalOf = ({ namespace, replacement }: Intent): Job => ({
  ...replacement,
  metadata: { ...replacement.metadata, namespace },
})

/** The status of every selected Job of a namespace, or of one Job. */
async function loadStatuses(world: World, namespace: string, name?: string): Promise<JobStatus[]> {
  const { cluster, config, kill } = world
  const list = async (selector: string) => (await cluster.listJobs(namespace, selector, (job) => job, kill)).items
  const one = async (job: string) => [
    ...[(await cluster.getJob(namespace, job, kill)) ?? []].flat(),
    ...(await list(`${INTENT}=${labelValueFor(job)}`)),
  ]
  const [items, records] = await Promise.all([
    name === undefined ? list("") : one(name),
    loadRecords(world, namespace, name),
  ])
  const past = new Map(records.map((record) => [record.job, record]))
  const load = async (found: Found) => {
    const last = past.get(found.view.name)
    const { failure } =
      found.view.phase === "failed" ? await findFailure(world, found.view, last) : { failure: UNKNOWN }
    return statusOf(world, found, last, failure)
  }
  return Promise.all(selectJobs(items, (view) => name !== undefined || isSelected(view, config)).map(load))
}

/** The records of a namespace, or of one Job, oldest first. */
async function loadRecords({ cluster, kill }: World, namespace: string, job?: string): Promise<PastFailure[]> {
  const selector = `${RECORD}=failure${job === undefined ? "" : `,${RECORD_JOB}=${job}`}`
  const { items } = await cluster.listConfigMaps(namespace, selector, kill)
  return items.map(readPast).sort((a, b) => a.failedAt - b.failedAt)
}

const needsLog = (view: JobView, { config }: World) =>
  overridesOf(view, config).rules.some(({ cause }) => cause.kind === "log")

/** Why a Job failed: from its record, whose metadata is enough unless a rule reads the log; else from the pods that are left. */
async function findFailure(world: World, view: JobView, past: PastFailure | undefined, whole = false) {
  const recorded = past?.uid === view.uid ? past : undefined
  if (recorded && !whole && !needsLog(view, world)) return { failure: { ...UNKNOWN, cause: recorded.cause } }
  const record = recorded && (await world.cluster.getConfigMap(recorded.namespace, recorded.name, world.kill))
  const evidence = (record && readRecord(record)?.evidence) ?? (await gatherEvidence(world, view, []))
  return { failure: failureOf(view, evidence), evidence, isRecorded: recorded !== undefined }
}

function factsOf({ view, past, failure, decision, isRestarting }: JobStatus) {
  const isFailed = view.phase === "failed"
  const restarts = view.phase === "succeeded" ? 0 : count(own(view, "restarts"))
  return {
    job: view.key,
    state: isRestarting ? "restarting" : stateOf(view, decision, 0),
    nextRestartAt: !isRestarting && "dueAt" in decision ? decision.dueAt : undefined,
    cause: isFailed ? failure.cause : (past?.cause ?? own(view, "last-cause")),
    failuresInRow: restarts + (isFailed ? 1 : 0),
    lastFailureAt: view.failedAt ?? past?.failedAt ?? instant(own(view, "last-failure")),
    why: decision.because,
  }
}

/** A Job's facts, and everything that led to the decision on it. */
function explanationOf(status: JobStatus, world: World) {
  const { view, failure, decision, isRestarting } = status
  const annotations = Object.entries(view.annotations).filter(([key]) => key.startsWith(PREFIX))
  return {
    ...factsOf(status),
    decision: isRestarting ? `its restart is under way, ${decision.because}` : sayDecision(decision, nowOf(world)).text,
    rules: judgedRules(view, failure, world.config),
    annotations: annotations.map(([key, value]) => `${key.slice(PREFIX.length)}=${value}`),
    problems: overridesOf(view, world.config).problems,
  }
}

// ──────────────────────────────────────────── 2 Commands ──────────────────────────────────────────────

/** A Job's name, with its namespace if there are several. */
const shortName = ({ namespaces }: CommandContext, key: string) =>
  namespaces.length > 1 ? key : key.slice(key.indexOf("/") + 1)

async function status(context: CommandContext): Promise<number> {
  const { world, namespaces, settings } = context
  const statuses = await Promise.all(namespaces.map((namespace) => loadStatuses(world, namespace)))
  const jobs = await withRejections(
    world,
    statuses.flat().map((status) => ({ ...factsOf(status), uid: status.view.uid })),
  )
  const now = nowOf(world)
  const span = (ms: number) => durationText(Math.max(0, Math.round(ms / 1_000)) * 1_000)
  const rows = jobs.map(({ job, state, nextRestartAt, cause = "", failuresInRow, lastFailureAt, why }) => [
    shortName(context, job),
    state,
    nextRestartAt === undefined ? "" : nextRestartAt > now ? `in ${span(nextRestartAt - now)}` : "now",
    cause,
    String(failuresInRow),
    lastFailureAt === undefined ? "" : `${span(now - lastFailureAt)} ago`,
    why,
  ])
  const head = ["JOB", "STATE", "NEXT RESTART", "CAUSE", "IN A ROW", "LAST FAILURE", "WHY"]
  await context.print({ settings, now: instantText(now), jobs }, [head, ...rows])
  reportToStderr("info", `settings ${settings}`)
  return 0
}

/** What the cluster answered to restarts that are overdue, as the operator's Events quote it. */
async function withRejections<T extends { job: string; uid: string; nextRestartAt: number | undefined; why: string }>(
  world: World,
  jobs: T[],
): Promise<T[]> {
  const isOverdue = ({ nextRestartAt }: T) => nextRestartAt !== undefined && nextRestartAt <= nowOf(world)
  const namespaces = new Set(jobs.filter(isOverdue).map(({ job }) => job.slice(0, job.indexOf("/"))))
  const events = await Promise.all(
    [...namespaces].map((namespace) =>
      world.cluster.listEvents(namespace, "CannotRestart", world.kill).catch(() => []),
    ),
  )
  const texts = new Map(events.flat().map(({ uid, text }) => [uid, text]))
  return jobs.map((job) => {
    const text = isOverdue(job) ? texts.get(job.uid) : undefined
    return text === undefined ? job : { ...job, state: "rejected", why: text }
  })
}

async function history(context: CommandContext): Promise<number> {
  const { world, namespaces, print } = context
  if (context.names.length > 0) return historyOfJob(context)
  const records = (await Promise.all(namespaces.map((namespace) => loadRecords(world, namespace)))).flat()
  const rows = records
    .sort((a, b) => a.failedAt - b.failedAt)
    .map(({ namespace, job, cause, failedAt, restarts, summary, decided }) => {
      const name = shortName(context, `${namespace}/${job}`)
      return [instantText(failedAt), name, cause, String(restarts + 1), summary, decided]
    })
  await print(records, [["FAILED", "JOB", "CAUSE", "IN A ROW", "HOW IT ENDED", "THEN"], ...rows])
  return 0
}

/** All evidence of a Job's failures, the last one at the end. */
async function historyOfJob(context: CommandContext): Promise<number> {
  const { cluster, kill } = context.world
  const [{ namespace, name, key }] = jobsOf(context)
  const records = await loadRecords(context.world, namespace, name)
  if (records.length === 0 && !(await cluster.getJob(namespace, name, kill)))
    throw new CommandError(3, `there is no Job ${key}, and no record of a failure of it`)
  const maps = await Promise.all(records.map((past) => cluster.getConfigMap(namespace, past.name, kill)))
  const whole = maps.flatMap((map) => (map && readRecord(map)) ?? [])
  const json = whole.map(({ past, reason, evidence }) => ({
    ...past,
    reason,
    ...evidence,
    logs: Object.fromEntries(evidence.logs),
  }))
  const lines = whole.flatMap(({ past: { cause, failedAt, restarts, decided }, reason, evidence }) => [
    `${instantText(failedAt)} ${[cause, reason].filter(Boolean).join(", ")}; failure ${restarts + 1} in a row; ${decided}`,
    ...evidenceLines(evidence).map((line) => `    ${line}`),
  ])
  await context.print(json, lines.length > 0 ? lines.map((line) => [line]) : [[`no failure of ${key} is recorded`]])
  return 0
}

/** The Jobs that are named; at least one is. */
function jobsOf({ names, namespaces }: Pick<CommandContext, "names" | "namespaces">): [JobName, ...JobName[]] {
  const wrong = names.filter((name) => !JOB_NAME.test(name) || (namespaces.length > 1 && !name.includes("/")))
  if (wrong.length > 0)
    throw new CommandError(
      2,
      ...wrong.map((name) => `${quote(name)} names no Job; where there are several namespaces write namespace/name`),
    )
  return [...new Set(names)].map((text) => {
    const [namespace = "", name = ""] = text.includes("/") ? text.split("/") : [namespaces[0], text]
    return { key: `${namespace}/${name}`, namespace, name, uid: "" }
  }) as [JobName, ...JobName[]]
}

/** The settings that a decision depends on. */
const DECISIVE =
  "RESTART_DELAY SKIP_DELAY_ON_OOM RESTART_RULES MAX_RESTARTS RESTART_SPACING JOB_NAMES JOB_SELECTOR".split(" ")
const decisiveSettings = ({ config }: World) =>
  DECISIVE.flatMap((variable) => {
    const value = variablesOf(config)[variable]
    return value ? [`${variable}=${value}`] : []
  })

async function explain(context: CommandContext): Promise<number> {
  const { world, settings } = context
  const [{ namespace, name, key }] = jobsOf(context)
  const [status] = await loadStatuses(world, namespace, name)
  if (!status) throw new CommandError(3, `there is no Job ${key}`)
  const facts = explanationOf(status, world)
  const failure = facts.lastFailureAt
    ? `${facts.cause} at ${instantText(facts.lastFailureAt)}, ${facts.failuresInRow} in a row`
    : "none is known"
  const blocks: [string, ...string[]][] = [
    ["job", `${key}, ${facts.state}`],
    ["decision", facts.decision],
    ["failure", failure],
    ["rules", ...facts.rules.map(({ rule, verdict }) => `${rule} ${verdict}`)],
    ["annotations", ...facts.annotations],
    ["problems", ...facts.problems],
    ["settings", settings, ...decisiveSettings(world)],
  ]
  const rows = blocks.flatMap(([label, ...lines]) => lines.map((line, i) => [i === 0 ? label : "", line]))
  await context.print({ ...facts, settings: { from: settings, ...variablesOf(world.config) } }, rows)
  return 0
}

// ───────────────────────────────────────────── 3 Restart ──────────────────────────────────────────────

async function restart(context: CommandContext): Promise<number> {
  const { world, confirm } = context
  const plans = await Promise.all(jobsOf(context).map((job) => planRestart(world, job)))
  const rejections = plans.flatMap((plan) => ("rejection" in plan ? [plan.rejection] : []))
  if (rejections.length > 0) throw new CommandError(3, ...rejections)
  const ready = plans.filter((plan) => "run" in plan)
  if (confirm && !(await confirm(`restart ${ready.map(({ what }) => what).join(", ")}?`)))
    throw new CommandError(3, "nothing was done")
  const facts = await Promise.all(ready.map((plan) => runRestart(world, plan)))
  const rows = facts.map(({ job, result, details }) => [job, result, details])
  await context.print(facts, [["JOB", "RESULT", "DETAILS"], ...rows])
  const has = (...results: string[]) => facts.some(({ result }) => results.includes(result))
  return has("fault", "interrupted", "namespace gone", "cancelled") ? 1 : has("rejected", "changed") ? 3 : 0
}

type RestartPlan = { job: JobName; what: string; run: () => Promise<Outcome> }

/** What a manual restart comes to: a restart, the end of one that was left unfinished, or why not. */
async function planRestart(world: World, job: JobName): Promise<RestartPlan | { rejection: string }> {
  const { namespace, name, key } = job
  if (world.config.dryRun) throw new CommandError(2, "DRY_RUN is set: nothing is restarted")
  const live = await world.cluster.getJob(namespace, name, world.kill)
  const cache = await localCache(world, job)
  const [unfinished] = newestFirst(cache.intentsOf(key))
  if (unfinished && (!live || live.metadata?.deletionTimestamp)) {
    const run = () => reconcileRestart(world, cache, { job, atOnce: true })
    return { job, what: `${key} (continuing ${unfinished.name})`, run }
  }
  if (!live) return { rejection: `there is no Job ${key}` }
  const view = viewJob(live)
  const decision = decideOnWish(view)
  if (decision.do !== "restart") return { rejection: `${key} is not restarted: ${decision.because}` }
  const run = async () => {
    const failure = view.phase === "failed" ? await keepEvidence(world, view) : UNKNOWN
    const known = { ...failure, changed: true }
    const wish = (latest: Job) => wishFor(latest, known, world.config, nowOf(world), decideOnWish)
    return reconcileRestart(world, cache, { job: view, wishFor: wish, atOnce: true })
  }
  return { job, what: `${key} (${view.phase})`, run }
}

/** What a restart knows without watches: what it has read itself. */
async function localCache({ cluster, emit, kill }: World, { namespace, name }: JobName): Promise<RestartCache> {
  const selector = `${INTENT}=${labelValueFor(name)}`
  let intents = (await cluster.listJobs(namespace, selector, readIntent, kill)).items
  let latest: Job | undefined
  const without = (intent: Intent) => intents.filter((one) => one.name !== intent.name)
  return {
    intentsOf: () => intents,
    latest: () => latest,
    podsOf: () => undefined,
    deletedByPerson: () => false,
    onJobRead: (job) => {
      latest = job
    },
    onIntentRead: (intent) => {
      intents = [...without(intent), intent]
    },
    onIntentGone: (intent) => {
      intents = without(intent)
    },
    whenGone: () => undefined,
    emit,
  }
}

async function runRestart(world: World, { job, run }: RestartPlan) {
  type Result = Outcome | { result: "fault"; error: unknown }
  const outcome = await run().catch((error): Result => ({ result: "fault", error }))
  if (outcome.result === "restarted") await reportRestart(world, { ...job, uid: outcome.uid })
  return { job: job.key, result: outcome.result, details: detailsOf(outcome) }
}

function detailsOf(outcome: Outcome | { result: "fault"; error: unknown }): string {
  if ("uid" in outcome) return `new uid ${outcome.uid}`
  if ("error" in outcome) return messageOf(outcome.error)
  return outcome.result === "interrupted" ? "its intent stays: an operator goes on, or this command" : ""
}

/** Writes the Event that the operator would write; best effort. */
async function reportRestart(world: World, job: JobName): Promise<void> {
  const event = eventFor(
    job,
    "info",
    "Restarted",
    "restarted, for a person asked for it",
    nowOf(world),
    world.clock.random(),
  )
  await world.cluster.createEvent(job.namespace, event, world.kill).catch(() => {})
}

/** The failure, recorded if no operator has done so: the Job's pods go with it. */
async function keepEvidence(world: World, view: JobView): Promise<Failure> {
  const past = (await loadRecords(world, view.namespace, view.name)).at(-1)
  const { failure, evidence, isRecorded } = await findFailure(world, view, past, true)
  if (!evidence || isRecorded || world.config.historyLimit === 0) return failure
  const record = recordFor(view, evidence, failure.cause, decideOnWish(view))
  await createRecord(world, record).catch((error) =>
    reportToStderr("warning", `[${view.key}] its failure is not recorded: ${messageOf(error)}`),
  )
  return failure
}

// ─────────────────────────────────── 4 Dashboard: what the page shows ────────────────────────────────

/** For JSON.stringify: control and bidi characters become visible. */
const visible = (_: string, value: unknown) => (typeof value === "string" ? printable(value) : value)

type Resource = "jobs" | "configmaps"
const HISTORY_MS = 30 * 86_400_000
const POLL_MS = 10_000

/** A live picture of the cluster: lists once, then watches, and sends what changes to every open page. */
class Picture {
  /** Intents included. */
  private readonly jobs = new Map<string, Job>()
  private readonly records = new Map<string, PastFailure>()
  /** Failures that the metadata of a record does not explain, by uid and record; undefined until looked at. */
  private readonly failures = new Map<string, Failure | undefined>()
  /** The lane of each Job, as sent last. */
  private lanes = new Map<string, string>()
  /** What cannot be read right now. `isOutage`: there is no answer at all. */
  private readonly problems = new Map<string, { text: string; isOutage: boolean; sinceAt: number }>()
  private readonly pages = new Set<(message: string) => void>()
  private looking = Promise.resolve()
  private timer: Timer | undefined

  constructor(
    private readonly world: World,
    private readonly env: Env,
    private settings: string,
  ) {}

  /** Resolves once everything was listed, or could not be. */
  async start(): Promise<void> {
    const resources: Resource[] = ["jobs", "configmaps"]
    const first = this.world.config.namespaces.flatMap((namespace) =>
      resources.map((resource) => new Promise<void>((ready) => void this.follow(namespace, resource, ready))),
    )
    await Promise.all(first)
    this.update()
    void this.checkServer()
  }

  /** Sends everything now and every change later, until the returned function is called. */
  open(page: (message: string) => void): () => void {
    this.pages.add(page)
    page(this.messageOf(this.facts(), this.lanes.values()))
    return () => void this.pages.delete(page)
  }

  private facts(): object {
    const { namespaces, jobNames, jobSelector } = this.world.config
    const selection = { jobNames, jobSelector: jobSelector?.text, settings: this.settings }
    const problems = Object.fromEntries(this.problems)
    return { isAll: true, address: this.world.cluster.address, namespaces, ...selection, problems }
  }

  private messageOf(facts: object, lanes: Iterable<string> = []): string {
    const head = JSON.stringify({ ...facts, now: nowOf(this.world) }, visible)
    return `${head.slice(0, -1)},"lanes":[${[...lanes].join()}]}`
  }

  private send(facts: object, lanes?: Iterable<string>): void {
    const message = this.pages.size > 0 ? this.messageOf(facts, lanes) : ""
    for (const page of this.pages) page(message)
  }

  /** Lists once, then watches from there; after an outage, or where watching is forbidden, lists again. */
  private async follow(namespace: string, resource: Resource, ready: () => void): Promise<void> {
    const { clock, stop } = this.world
    for (let attempt = 0; !stop.aborted; attempt++) {
      try {
        const { items, resourceVersion } = await this.list(namespace, resource)
        this.replaceAll(namespace, resource, items)
        this.report(`${resource} in ${namespace}`)
        ready()
        attempt = 0
        await this.watch(namespace, resource, resourceVersion)
      } catch (error) {
        this.report(`${resource} in ${namespace}`, error)
        ready()
        await clock.sleep(Math.min(5_000, backoffMs(attempt, clock.random(), error)), stop)
      }
    }
  }

  private async list(namespace: string, resource: Resource): Promise<Listed<Pick<Job, "metadata">>> {
    const { cluster, stop } = this.world
    if (resource === "jobs") return cluster.listJobs(namespace, "", (job) => job, stop)
    const { items, resourceVersion } = await cluster.listConfigMaps(namespace, RECORD, stop)
    return { items: items.map((metadata) => ({ metadata })), resourceVersion }
  }

  private async watch(namespace: string, resource: Resource, since: string): Promise<void> {
    const { cluster, clock, stop } = this.world
    const options = {
      silenceMs: 150_000,
      resourceVersion: since,
      ...(resource === "configmaps" && { selector: RECORD }),
    }
    try {
      while (!stop.aborted) {
        const beganAt = clock.now()
        for await (const { type, object } of cluster.watch(namespace, resource, options, stop)) {
          options.resourceVersion = object.metadata?.resourceVersion ?? options.resourceVersion
          if (type !== "BOOKMARK") this.onEvent(resource, type, object)
        }
        if (clock.now() - beganAt < 1_000 && !stop.aborted) throw new Error("the watch ended at once")
      }
    } catch (error) {
      if (!(error instanceof ApiError && error.status === 403)) throw error
      await clock.sleep(POLL_MS, stop)
    }
  }

  private replaceAll(namespace: string, resource: Resource, items: Pick<Job, "metadata">[]): void {
    const cache: Map<string, unknown> = resource === "jobs" ? this.jobs : this.records
    for (const key of cache.keys()) if (key.startsWith(`${namespace}/`)) cache.delete(key)
    for (const item of items) this.onEvent(resource, "LISTED", item)
    this.updateSoon()
  }

  private onEvent(resource: Resource, type: string, object: Pick<Job, "metadata">): void {
    const { managedFields: _, ...metadata } = object.metadata ?? {}
    const key = `${metadata.namespace}/${metadata.name}`
    if (metadata.labels?.[RECORD] === "settings") {
      if (type !== "LISTED") this.readSettings().catch((error) => this.report("settings", error))
    } else if (resource === "jobs") {
      if (type === "DELETED") this.jobs.delete(key)
      else this.jobs.set(key, { ...object, metadata })
    } else if (type === "DELETED") this.records.delete(key)
    else this.records.set(key, readPast(metadata))
    this.updateSoon()
  }

  private async readSettings(): Promise<void> {
    const { cluster, config, stop } = this.world
    const fresh = await settingsFor(cluster, config.namespaces[0] ?? "", this.env, stop)
    this.world.config = { ...fresh.config, namespaces: config.namespaces }
    this.settings = fresh.from
    this.update()
    this.send(this.facts(), this.lanes.values())
  }

  private updateSoon(): void {
    this.timer ??= setTimeout(() => this.update(), 150)
  }

  /** Computes every lane anew, and sends those that have changed. */
  private update(): void {
    clearTimeout(this.timer)
    this.timer = undefined
    const before = this.lanes
    const records = this.recordsByJob()
    const lanes = this.selected().map((found) => this.laneOf(found, records.get(found.view.key) ?? []))
    this.lanes = new Map(lanes.map((lane) => [lane.job, JSON.stringify(lane, visible)]))
    const changed = [...this.lanes].flatMap(([job, lane]) => (before.get(job) === lane ? [] : [lane]))
    const gone = [...before.keys()].filter((job) => !this.lanes.has(job))
    if (changed.length > 0 || gone.length > 0) this.send({ gone }, changed)
  }

  private selected = () => selectJobs([...this.jobs.values()], (view) => isSelected(view, this.world.config))

  private recordsByJob(): Map<string, PastFailure[]> {
    const sorted = [...this.records.values()].sort((a, b) => a.failedAt - b.failedAt)
    return Map.groupBy(sorted, ({ namespace, job }) => `${namespace}/${job}`)
  }

  private statusOf(found: Found, past: PastFailure | undefined): JobStatus {
    const { uid, phase } = found.view
    const recorded = past?.uid === uid ? past : undefined
    const moment = `${uid} ${recorded?.name}`
    const isExplained = phase !== "failed" || (recorded && !needsLog(found.view, this.world))
    if (!isExplained && !this.failures.has(moment)) this.lookAt(found.view, past, moment)
    const failure = this.failures.get(moment) ?? { ...UNKNOWN, cause: recorded?.cause ?? UNKNOWN.cause }
    return statusOf(this.world, found, past, failure)
  }

  /** One at a time: with many failures and no records, parallel lists of pods would load the API server. */
  private lookAt(view: JobView, past: PastFailure | undefined, moment: string): void {
    this.failures.set(moment, undefined)
    this.looking = this.looking
      .then(async () => {
        this.failures.set(moment, (await findFailure(this.world, view, past)).failure)
        this.updateSoon()
      })
      .catch(() => {})
  }

  /** What the page draws of a Job. */
  private laneOf(found: Found, records: PastFailure[]) {
    const status = this.statusOf(found, records.at(-1))
    const { view } = status
    const recent = records.filter(({ failedAt }) => failedAt > nowOf(this.world) - HISTORY_MS)
    const failures = recent.map(({ name, startedAt, failedAt, cause, restarts, summary }) => {
      return { name, startedAt, failedAt, cause, inRow: restarts + 1, summary }
    })
    const { uid, phase, startedAt, completedAt, failedAt, reason } = view
    const facts = factsOf(status)
    if (failedAt !== undefined && !records.some((record) => record.uid === uid))
      failures.push({
        name: "",
        startedAt,
        failedAt,
        cause: status.failure.cause,
        inRow: facts.failuresInRow,
        summary: reason,
      })
    const wish = decideOnWish(view)
    return {
      ...facts,
      uid,
      phase,
      startedAt,
      completedAt,
      failures,
      isPaused: overridesOf(view, this.world.config).paused,
      notRestartable: wish.do === "restart" ? undefined : wish.because,
    }
  }

  /** Everything about one Job: its decision, the rules and the settings behind it. */
  detailOf(key: string): object | undefined {
    const found = this.selected().find(({ view }) => view.key === key)
    if (!found) return undefined
    const status = this.statusOf(found, this.recordsByJob().get(key)?.at(-1))
    return { ...explanationOf(status, this.world), settings: [this.settings, ...decisiveSettings(this.world)] }
  }

  /** What was observed of one failure: from its record, or, without a name, from the pods that are left. */
  async evidenceOf(key: string, name: string): Promise<object | undefined> {
    const { cluster, stop } = this.world
    const past = this.records.get(`${key.split("/")[0]}/${name}`)
    const map = past && (await cluster.getConfigMap(past.namespace, past.name, stop))
    const record = map && readRecord(map)
    const job = this.jobs.get(key)
    if (record) return { decided: record.past.decided, reason: record.reason, lines: evidenceLines(record.evidence) }
    if (name || !job) return undefined
    return { decided: "", reason: "", lines: evidenceLines(await gatherEvidence(this.world, viewJob(job), [])) }
  }

  /** Without an error: it can be read again. */
  private report(what: string, error?: unknown): void {
    if (this.world.stop.aborted || (error === undefined && !this.problems.has(what))) return
    const isOutage = !(error instanceof ApiError && error.status < 500)
    const sinceAt = this.problems.get(what)?.sinceAt ?? nowOf(this.world)
    if (error === undefined) this.problems.delete(what)
    else this.problems.set(what, { text: messageOf(error), isOutage, sinceAt })
    this.send({ problems: Object.fromEntries(this.problems) })
  }

  /** A watch notices a server that hangs only after minutes: while a page is open, asks for its version now and then. */
  private async checkServer(): Promise<void> {
    const { cluster, clock, stop } = this.world
    for (; !stop.aborted; await clock.sleep(POLL_MS, stop)) {
      if (this.pages.size === 0) continue
      const limit = AbortSignal.any([stop, AbortSignal.timeout(5_000)])
      const error = await cluster.version(limit).then(
        () => undefined,
        (error: unknown) => error,
      )
      this.report("API server", error instanceof ApiError ? undefined : error)
      this.send({})
    }
  }

  /** Does what a person has confirmed on the page. Throws an error whose words the page shows. */
  async act(action: string, key: string, uid: string): Promise<string> {
    const { cluster, config, kill } = this.world
    const [job] = jobsOf({ names: [key], namespaces: config.namespaces })
    if (!config.namespaces.includes(job.namespace)) throw new CommandError(3, `${job.namespace} is not shown here`)
    const live = await cluster.getJob(job.namespace, job.name, kill)
    if (live && live.metadata?.uid !== uid) throw new CommandError(3, `${key} was replaced in the meantime: look again`)
    if (action === "restart") {
      const plan = await planRestart(this.world, job)
      if ("rejection" in plan) throw new CommandError(3, plan.rejection)
      const { result, details } = await runRestart(this.world, plan)
      if (!/^re(started|placed)$/.test(result)) throw new CommandError(3, [result, details].filter(Boolean).join(": "))
      return `${key} is ${result}, ${details}`
    }
    if (!live) throw new CommandError(3, `there is no Job ${key}`)
    await cluster.annotateJob(viewJob(live), { [`${PREFIX}paused`]: action === "pause" ? "true" : null }, kill)
    return `${key} is ${action}d`
  }
}

// ───────────────────────────────────── 5 Dashboard: the server ────────────────────────────────────────

const ROUTES: Record<string, "GET" | "POST"> = {
  "/": "GET",
  "/events": "GET",
  "/job": "GET",
  "/failure": "GET",
  "/restart": "POST",
  "/pause": "POST",
  "/resume": "POST",
}
/** TypeScript takes an import of HTML for a bundle. */
const page = dashboardPage as unknown as string
const hashes = (tag: string) =>
  [...page.matchAll(new RegExp(`<${tag}>([^]*?)</${tag}>`, "g"))]
    .map(([, text = ""]) => `'sha256-${new Bun.CryptoHasher("sha256").update(text).digest("base64")}'`)
    .join(" ")

/** On every answer: nothing is kept, nothing leaks, and the page runs nothing but its own style and script. */
const securityHeaders = () => ({
  "Cache-Control": "no-store",
  "Content-Security-Policy": `default-src 'none'; script-src ${hashes("script")}; style-src ${hashes("style")}; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'`,
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Resource-Policy": "same-origin",
  "Referrer-Policy": "no-referrer",
  "X-Content-Type-Options": "nosniff",
})

/** Serves the dashboard on loopback until a signal. */
async function dashboard(context: CommandContext): Promise<number> {
  const { world, namespaces, env, options, settings } = context
  const picture = new Picture({ ...world, config: { ...world.config, namespaces } }, env, settings)
  await picture.start()
  const site = new Site(picture)
  const servers = site.listen(Number(options.port ?? 0))
  const address = `http://127.0.0.1:${site.port}/?token=`
  // Not with context.print(), which masks secrets.
  const opening = `${address}${site.token}`
  await print(options.output === "json" ? `${JSON.stringify({ address: opening })}\n` : `Dashboard: ${opening}\n`)
  reportToStderr("info", "open this address in a browser; Ctrl-C ends the dashboard")
  if (options["no-open"] === undefined) openBrowser(`${address}${site.tokenForBrowser}`, env)
  await new Promise((done) => world.stop.addEventListener("abort", done))
  await Promise.all(site.actions)
  await Promise.all(servers.map((server) => server.stop(true)))
  return 0
}

const newSecret = () => Buffer.from(crypto.getRandomValues(new Uint8Array(32))).toString("base64url")
const isSame = (a: string, b: string) => a.length === b.length && timingSafeEqual(Buffer.from(a), Buffer.from(b))

/** The page, its events and its actions, for the one who was given the address. */
class Site {
  port = 0
  readonly token = newSecret()
  /** Valid once: the command line of a browser can be read by every user of the machine. */
  tokenForBrowser = newSecret()
  private readonly session = newSecret()
  /** Actions under way: a stop lets them end. */
  readonly actions = new Set<Promise<unknown>>()

  constructor(private readonly picture: Picture) {}

  /** Listens on 127.0.0.1 and, if the machine has it, ::1. Throws a CommandError if the port is taken. */
  listen(port: number): Bun.Server<undefined>[] {
    const hasIPv6 = Object.values(networkInterfaces()).some((all) => all?.some(({ address }) => address === "::1"))
    const serve = (hostname: string, port: number) =>
      Bun.serve({
        hostname,
        port,
        development: false,
        // Without this, Bun 1.4.5 shares the port with every other process if development is off.
        reusePort: false,
        idleTimeout: 0,
        maxRequestBodySize: 10_000,
        fetch: (request) => this.answer(request),
        error: () => new Response("", { status: 500 }),
      })
    for (let attempt = 1; ; attempt++) {
      const servers: Bun.Server<undefined>[] = []
      try {
        servers.push(serve("127.0.0.1", port))
        this.port = servers[0]?.port ?? 0
        if (hasIPv6) servers.push(serve("::1", this.port))
        return servers
      } catch (error) {
        for (const server of servers) void server.stop(true)
        const advice = `cannot listen on port ${port || this.port} of 127.0.0.1 and ::1, choose another with --port`
        if (port !== 0 || attempt === 5) throw new CommandError(2, `${advice}: ${messageOf(error)}`)
      }
    }
  }

  private async answer(request: Request): Promise<Response> {
    const url = new URL(request.url)
    const token = url.pathname === "/" ? url.searchParams.get("token") : null
    const headers = new Headers(securityHeaders())
    const status = this.rejection(request, url.pathname, token)
    if (status) return new Response("", { status, headers })
    if (token !== null) {
      headers.set("Set-Cookie", `${this.cookie()}=${this.session}; HttpOnly; SameSite=Strict; Path=/`)
      // Not a 3xx: after a click in another site, such as a web terminal, browsers send no Strict cookie along a redirect.
      headers.set("Refresh", "0; url=/")
      return new Response("", { headers })
    }
    if (url.pathname === "/events") return this.events(headers)
    headers.set("Content-Type", url.pathname === "/" ? "text/html; charset=utf-8" : "application/json")
    if (url.pathname === "/") return new Response(page, { headers })
    const { code, body } = await this.respond(request, url)
    return new Response(jsonText(body), { status: code, headers })
  }

  /** Cookies know no ports: without the port in its name, a second dashboard would end the first one's session. */
  private cookie = () => `dashboard-${this.port}`

  /** The status for a request that is not from the admin's own page (DNS rebinding, other sites' forms), or is none of ours. */
  private rejection({ method, headers }: Request, path: string, token: string | null): number | undefined {
    const host = headers.get("host") ?? ""
    const isOurs = ["127.0.0.1", "[::1]", "localhost"].some((name) => host === `${name}:${this.port}`)
    const origin = headers.get("origin") ?? (method === "GET" ? `http://${host}` : "")
    if (!isOurs || origin !== `http://${host}` || !(token === null ? this.hasSession(headers) : this.isToken(token)))
      return 403
    if (!Object.hasOwn(ROUTES, path)) return 404
    if (ROUTES[path] !== method) return 405
    return method === "POST" && headers.get("content-type") !== "application/json" ? 403 : undefined
  }

  private hasSession(headers: Headers): boolean {
    const cookies = new Bun.CookieMap(headers.get("cookie") ?? "")
    return isSame(cookies.get(this.cookie()) ?? "", this.session)
  }

  private isToken(token: string): boolean {
    if (isSame(token, this.token)) return true
    const isBrowsers = isSame(token, this.tokenForBrowser)
    if (isBrowsers) this.tokenForBrowser = newSecret()
    return isBrowsers
  }

  private events(headers: Headers): Response {
    headers.set("Content-Type", "text/event-stream")
    let close = () => {}
    const start = (stream: ReadableStreamDefaultController<string>) => {
      close = this.picture.open((message) => {
        // A page that no longer reads, as in a sleeping tab, is cut off: when it connects again, it gets everything anew.
        if ((stream.desiredSize ?? 0) > -100) return stream.enqueue(`data: ${message}\n\n`)
        close()
        stream.close()
      })
    }
    return new Response(new ReadableStream({ start, cancel: () => close() }), { headers })
  }

  private async respond(request: Request, url: URL): Promise<{ code: number; body: object }> {
    try {
      if (request.method === "POST") {
        const { job, uid } = (await request.json()) as { job: unknown; uid: unknown }
        const action = this.picture.act(url.pathname.slice(1), String(job), String(uid))
        const done = action
          .then(() => {})
          .catch(() => {})
          .finally(() => this.actions.delete(done))
        this.actions.add(done)
        return { code: 200, body: { text: await action } }
      }
      const job = url.searchParams.get("job") ?? ""
      const body =
        url.pathname === "/job"
          ? this.picture.detailOf(job)
          : await this.picture.evidenceOf(job, url.searchParams.get("record") ?? "")
      return body ? { code: 200, body } : { code: 404, body: { error: "not there any more" } }
    } catch (error) {
      return { code: 409, body: { error: messageOf(error) } }
    }
  }
}

/** Opens the browser, if there is one; whoever has none has the printed address. */
function openBrowser(address: string, { DISPLAY, WAYLAND_DISPLAY }: Env): void {
  const isDesktop = process.platform !== "linux" || DISPLAY || WAYLAND_DISPLAY
  const opener = { darwin: "open", win32: "explorer" }[process.platform as string] ?? "xdg-open"
  if (isDesktop && Bun.which(opener)) Bun.spawn([opener, address], { stdio: ["ignore", "ignore", "ignore"] }).unref()
}

// ─────────────────────────────────────────── 6 Command line ───────────────────────────────────────────

/** What an admin may ask for, beside a running operator or without one. `run` returns the exit code. */
export const COMMANDS = {
  status: { jobs: "", run: status, help: "show each Job's state, next restart and why" },
  history: { jobs: "[JOB]", run: history, help: "list past failures; of one JOB with all evidence" },
  restart: {
    jobs: "JOB...",
    run: restart,
    help: "restart failed and finished Jobs now, as safely as the operator does",
  },
  explain: { jobs: "JOB", run: explain, help: "explain the decision on a Job: inputs, rules, settings" },
  dashboard: { jobs: "", run: dashboard, help: "serve a page for your browser, on this machine alone" },
}

/** `with`: the only command that takes it. */
const OPTIONS: Record<string, { type: "boolean" | "string"; short?: string; with?: keyof typeof COMMANDS }> = {
  help: { type: "boolean", short: "h" },
  version: { type: "boolean", short: "v" },
  namespace: { type: "string", short: "n" },
  context: { type: "string" },
  output: { type: "string", short: "o" },
  "no-color": { type: "boolean" },
  yes: { type: "boolean", short: "y", with: "restart" },
  port: { type: "string", with: "dashboard" },
  "no-open": { type: "boolean", with: "dashboard" },
}

/** Reads the command line; no command runs the operator. Throws a CommandError with every mistake. */
export function readCommandLine(args: string[]) {
  const { tokens, positionals } = parseArgs({
    args,
    options: OPTIONS,
    allowPositionals: true,
    strict: false,
    tokens: true,
  })
  const [name, ...names] = positionals
  const command = name !== undefined && Object.hasOwn(COMMANDS, name) ? (name as keyof typeof COMMANDS) : undefined
  const mistakes: string[] = []
  const values: CommandContext["options"] = {}
  if (name !== undefined && !command)
    mistakes.push(`there is no command ${name}; there are ${Object.keys(COMMANDS).join(", ")}`)
  for (const token of tokens) {
    if (token.kind !== "option") continue
    const option = Object.hasOwn(OPTIONS, token.name) ? OPTIONS[token.name] : undefined
    values[token.name] = token.value ?? ""
    if (!option) mistakes.push(`there is no option ${token.rawName}`)
    else if (option.type === "string" && !token.value) mistakes.push(`${token.rawName} needs a value`)
    else if (option.type === "boolean" && token.value) mistakes.push(`${token.rawName} takes no value`)
    else if (name === undefined && !/help|version/.test(token.name))
      mistakes.push(`--${token.name} goes with a command`)
    else if (command && option.with && option.with !== command)
      mistakes.push(`--${token.name} goes with ${option.with}`)
  }
  const { jobs = "" } = command ? COMMANDS[command] : {}
  const most = { "": 0, "[JOB]": 1, JOB: 1 }[jobs] ?? Number.POSITIVE_INFINITY
  if (command && (names.length > most || (jobs.startsWith("JOB") && names.length === 0)))
    mistakes.push(`write ${`${command} ${jobs}`.trim()}`)
  if (values.output && !["table", "json"].includes(values.output))
    mistakes.push(`-o cannot be ${quote(values.output)}: write table or json`)
  if (values.port && !(/^\d{1,5}$/.test(values.port) && Number(values.port) <= 65_535))
    mistakes.push(`--port cannot be ${quote(values.port)}: write a number from 0 (any free port) to 65535`)
  if (mistakes.length > 0) throw new CommandError(2, ...mistakes.map((mistake) => `${mistake}; see --help`))
  return { command, names, values }
}

/** The text of `--help`. */
export function helpText(): string {
  const rows = SETTINGS.map(({ variable, default: value, help, olderName }) => {
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

The commands use the settings that the operator wrote into the ConfigMap ${SETTINGS_MAP}, else those of the
environment. They need no running operator, and are safe beside one.

The operator is configured by environment variables; a duration is a whole number of seconds or like 90s, 15m, 1h30m:
${rows.join("\n")}

It connects by KUBECONFIG if set, else the pod's ServiceAccount, else ~/.kube/config.
Exit codes: 0 done, or stopped by a signal; 1 a fault; 2 a wrong setting, option or configuration; 3 no such Job, or a
restart that was rejected.
`
}

/** What a command reports beside its result. */
const reportToStderr: Say = (level, text, { lines = [] } = {}) => {
  const all = [level === "fatal" ? `error: ${text}` : text, ...lines.map((line) => `    ${line}`)]
  process.stderr.write(all.map((line) => `${safe(line)}\n`).join(""))
}

async function confirmOnTerminal(question: string, signal: AbortSignal): Promise<boolean> {
  if (!process.stdin.isTTY) throw new CommandError(2, "stdin is not a terminal; use --yes to skip confirmation")
  const reader = createInterface({ input: process.stdin, output: process.stderr })
  try {
    return /^y(es)?$/i.test((await reader.question(`${safe(question)} [y/N] `, { signal })).trim())
  } finally {
    reader.close()
  }
}

const COLORS: Record<string, number> = { given_up: 31, waiting: 33, restarting: 36, succeeded: 32 }

/** Prints results: on a terminal with a colour for each state. */
function printerFor({ output, "no-color": noColor }: CommandContext["options"], env: Env): CommandContext["print"] {
  const isColored = process.stdout.isTTY && !env.NO_COLOR && noColor === undefined && env.TERM !== "dumb"
  return async (json, rows) => {
    const lines = alignedRows(rows).map((line, i) => {
      const color = isColored && COLORS[rows[i]?.[1] ?? ""]
      return color ? `\u001b[${color}m${line}\u001b[0m` : line
    })
    await print(`${output === "json" ? jsonText(json) : lines.join("\n")}\n`)
  }
}

/** Ignores EPIPE: the reader, such as head, has closed the pipe. */
async function print(text: string): Promise<void> {
  await Bun.write(Bun.stdout, text).catch((error) => (error.code === "EPIPE" ? 0 : Promise.reject(error)))
}

/** Without settings of anybody the dashboard shows every Job, and says what is missing. */
function everyJob(namespace: string, { message }: CommandError) {
  const { config } = readSettings({ NAMESPACE: namespace, JOB_SELECTOR: `!${INTENT}` })
  return { config, from: `are the defaults, for every Job: ${message.split("\n")[0]}` }
}

/** Runs a command with a kubeconfig, or in the operator's pod. Returns its exit code. */
async function runCommand(
  { command, names, values }: ReturnType<typeof readCommandLine>,
  env: Env,
  world: Omit<World, "cluster" | "config">,
) {
  const source = findSource(env, SERVICE_ACCOUNT, values.context)
  const cluster = connect(source, env)
  const kubeconfig = source.load()
  const contextNamespace = kubeconfig.getContextObject(kubeconfig.currentContext)?.namespace
  const nearest = written(env.NAMESPACE) || contextNamespace || "flickr-downloader"
  const namespace = values.namespace ?? (nearest.split(/[,\s]/)[0] as string)
  const { config, from } = await settingsFor(cluster, namespace, env, world.stop).catch((error) => {
    if (command !== "dashboard" || !(error instanceof CommandError)) throw error
    return everyJob(namespace, error)
  })
  // Only a restart must not be cut off in the middle.
  const kill = command === "restart" || command === "dashboard" ? world.kill : world.stop
  return COMMANDS[command as keyof typeof COMMANDS].run({
    world: { ...world, kill, cluster, config },
    names,
    options: values,
    env,
    settings: from,
    namespaces: values.namespace === undefined ? config.namespaces : [values.namespace],
    print: printerFor(values, env),
    confirm: values.yes === undefined ? (question) => confirmOnTerminal(question, world.stop) : undefined,
  })
}

/** Runs what the command line asks for; returns the exit code. */
export async function runCommandLine(args: string[], env: Env, signals: Pick<World, "stop" | "kill">): Promise<number> {
  const say = reportToStderr
  try {
    const line = readCommandLine(args)
    const { help, version } = line.values
    if (help === undefined && version === undefined)
      return await runCommand(line, env, { clock: systemClock, emit: emitTo(say), ...signals })
    await print(help !== undefined ? helpText() : `${project.version}\n`)
    return 0
  } catch (error) {
    for (const mistake of messageOf(error).split("\n")) say("fatal", mistake)
    if (error instanceof CommandError) return error.code
    return error instanceof SettingsError || error instanceof ConfigError ? 2 : 1
  }
}
