/**
 * The commands of an admin's shell: `status`, `history`, `restart`, `explain`, `dashboard`. operator.ts loads this file
 * only if it is given arguments. The commands need no running operator, and are safe beside one.
 *
 * 1 Jobs, intents and records · 2 Commands that read · 3 Restart · 4 Command line
 */
import { createInterface } from "node:readline/promises"
import { parseArgs } from "node:util"
import {
  alignedRows,
  ConfigError,
  connect,
  countFrom,
  createRecord,
  type Decision,
  decide,
  decideOnWish,
  decisionText,
  durationText,
  type Env,
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
  labelValueFor,
  logSink,
  type Metadata,
  messageOf,
  newestFirst,
  nowOf,
  type Outcome,
  overridesOf,
  own,
  type PastFailure,
  PREFIX,
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

// ───────────────────────────────────── 1 Jobs, intents and records ────────────────────────────────────

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

type Reader = Pick<World, "cluster" | "stop">

/**
 * The settings as the operator wrote them in a namespace, else those of the environment. Without either throws a
 * CommandError, or with `isLenient` returns the defaults, for every Job.
 */
export async function settingsFor({ cluster, stop }: Reader, namespace: string, env: Env, isLenient = false) {
  const map = await cluster.getConfigMap(namespace, SETTINGS_MAP, stop)
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
    const { config } = readSettings({ NAMESPACE: namespace, JOB_SELECTOR: `!${INTENT}` })
    if (isLenient) return { config, from: `are the defaults, for every Job: ${missing}` }
    throw new CommandError(2, `${missing}: name another with -n, or set them in the environment`, ...error.mistakes)
  }
}

/** What is known of one Job: its intents and the records of its failures by name. */
interface Entry {
  job: Job | undefined
  intents: Map<string, Intent>
  records: Map<string, PastFailure>
}

/** A Job as the commands report it. */
export interface JobStatus {
  view: JobView
  /** Its last recorded failure. */
  past: PastFailure | undefined
  failure: Failure
  /** What Inventory.look() has to look at before `failure` is known. */
  unexplained: string | undefined
  decision: Decision
  isRestarting: boolean
}

export type Resource = "jobs" | "configmaps"

/** Jobs with their intents and records, as lists or watches report them. */
export class Inventory {
  readonly entries = new Map<string, Entry>()
  /** Failures that the metadata of a record does not explain, by Job and record. */
  private readonly failures = new Map<string, Failure>()

  constructor(readonly world: World) {}

  /** Takes in an object, and returns the key of the Job that it is about. */
  take(resource: Resource, type: string, object: Pick<Job, "metadata">): string {
    const { managedFields: _, ...metadata } = object.metadata ?? {}
    const { name = "", namespace = "" } = metadata
    const put = <T>(map: Map<string, T>, value: T) =>
      void (type === "DELETED" ? map.delete(name) : map.set(name, value))
    const past = resource === "configmaps" ? readPast(metadata) : undefined
    const intent = past ? undefined : readIntent(object)
    const key = `${namespace}/${past?.job ?? intent?.jobName ?? name}`
    const entry = this.entries.get(key) ?? { job: undefined, intents: new Map(), records: new Map() }
    if (past) put(entry.records, past)
    else if (intent) put(entry.intents, intent)
    else if (!isIntent(object)) entry.job = type === "DELETED" ? undefined : { ...object, metadata }
    if (entry.job || entry.intents.size > 0 || entry.records.size > 0) this.entries.set(key, entry)
    else this.entries.delete(key)
    return key
  }

  /** The records of a Job's failures, oldest first. */
  recordsOf(key: string): PastFailure[] {
    return [...(this.entries.get(key)?.records.values() ?? [])].sort((a, b) => a.failedAt - b.failedAt)
  }

  /** Undefined for a Job that is not selected. One that is absent during its restart is shown from its intent. */
  statusOf(key: string, isNamed = false): JobStatus | undefined {
    const { config } = this.world
    const entry = this.entries.get(key)
    const [intent] = newestFirst([...(entry?.intents.values() ?? [])])
    const job = entry?.job ?? (intent && inNamespace(intent.replacement, intent.namespace))
    if (!job || !(isNamed || intent || isSelected(viewJob(job), config))) return undefined
    const now = nowOf(this.world)
    const view = viewJob(job)
    const past = this.recordsOf(key).at(-1)
    const moment = `${view.uid} ${past?.name}`
    const known = this.knownFailure(view, past) ?? this.failures.get(moment)
    const failure = known ?? UNKNOWN
    const decision = intent
      ? decisionOf(intent, now)
      : decide(view, { ...failure, seenAt: now, changed: isChanged(job) }, config, now)
    const isRestarting = intent !== undefined && decision.do === "restart"
    return { view, past, failure, unexplained: known ? undefined : moment, decision, isRestarting }
  }

  /** Undefined if the metadata of a record does not tell. */
  private knownFailure(view: JobView, past: PastFailure | undefined): Failure | undefined {
    if (view.phase !== "failed") return UNKNOWN
    return past?.uid === view.uid && !needsLog(view, this.world) ? { ...UNKNOWN, cause: past.cause } : undefined
  }

  /** Looks at the record or the pods of an unexplained failure. */
  async look({ view, past, unexplained = "" }: JobStatus): Promise<void> {
    const { failure } = await findFailure(this.world, view, past)
    this.failures.set(unexplained, failure)
  }
}

const inNamespace = (job: Job, namespace: string): Job => ({ ...job, metadata: { ...job.metadata, namespace } })

/** What an intent has decided already. */
function decisionOf({ name, dueAt }: Intent, now: number): Decision {
  if (dueAt !== undefined && now < dueAt) return { do: "wait", dueAt, because: `recorded in intent ${name}` }
  return { do: "restart", dueAt: dueAt ?? 0, because: `intent ${name}` }
}

/** The status of every selected Job of a namespace, or of one Job. */
async function loadStatuses(world: World, namespace: string, name?: string): Promise<JobStatus[]> {
  const { cluster, kill } = world
  const inventory = new Inventory(world)
  const keep = (job: Job) => void inventory.take("jobs", "LISTED", job)
  const loadJobs = async () => {
    await cluster.listJobs(namespace, name === undefined ? "" : `${INTENT}=${labelValueFor(name)}`, keep, kill)
    const job = name === undefined ? undefined : await cluster.getJob(namespace, name, kill)
    if (job) keep(job)
  }
  const [records] = await Promise.all([listRecords(world, namespace, name), loadJobs()])
  for (const metadata of records) inventory.take("configmaps", "LISTED", { metadata })
  const statuses = () =>
    [...inventory.entries.keys()].flatMap((key) => inventory.statusOf(key, name !== undefined) ?? [])
  await Promise.all(statuses().map((status) => status.unexplained && inventory.look(status)))
  return statuses()
}

/** The metadata of the records of a namespace, or of one Job. */
async function listRecords({ cluster, kill }: World, namespace: string, job?: string): Promise<Metadata[]> {
  const selector = `${RECORD}=failure${job === undefined ? "" : `,${RECORD_JOB}=${job}`}`
  return (await cluster.listConfigMaps(namespace, selector, kill)).items
}

/** The same as failures, oldest first. */
const loadRecords = async (world: World, namespace: string, job?: string) =>
  (await listRecords(world, namespace, job)).map(readPast).sort((a, b) => a.failedAt - b.failedAt)

const needsLog = (view: JobView, { config }: World) =>
  overridesOf(view, config).rules.some(({ cause }) => cause.kind === "log")

/** Why a Job failed: from its record, whose metadata is enough unless a rule reads the log; else from its pods. */
async function findFailure(world: World, view: JobView, past: PastFailure | undefined, whole = false) {
  const recorded = past?.uid === view.uid ? past : undefined
  if (recorded && !whole && !needsLog(view, world)) return { failure: { ...UNKNOWN, cause: recorded.cause } }
  const record = recorded && (await world.cluster.getConfigMap(recorded.namespace, recorded.name, world.kill))
  const evidence = (record && readRecord(record)?.evidence) ?? (await gatherEvidence(world, view, []))
  return { failure: failureOf(view, evidence), evidence, isRecorded: recorded !== undefined }
}

export function factsOf({ view, past, failure, decision, isRestarting }: JobStatus, rejection?: string) {
  const isFailed = view.phase === "failed"
  const restarts = view.phase === "succeeded" ? 0 : countFrom(own(view, "restarts"))
  return {
    job: view.key,
    uid: view.uid,
    state: isRestarting ? "restarting" : rejection ? "rejected" : stateOf(view, decision, 0),
    nextRestartAt: !isRestarting && "dueAt" in decision ? decision.dueAt : undefined,
    cause: isFailed ? failure.cause : (past?.cause ?? own(view, "last-cause")),
    failuresInRow: restarts + (isFailed ? 1 : 0),
    lastFailureAt: view.failedAt ?? past?.failedAt ?? instant(own(view, "last-failure")),
    why: rejection ?? decision.because,
  }
}

/** A Job's facts, and everything that led to the decision on it. */
export function explanationOf(status: JobStatus, world: World) {
  const { view, failure, decision, isRestarting } = status
  const annotations = Object.entries(view.annotations).filter(([key]) => key.startsWith(PREFIX))
  return {
    ...factsOf(status),
    decision: isRestarting ? `its restart is under way, ${decision.because}` : decisionText(decision, nowOf(world)),
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
  const jobs = (await Promise.all(namespaces.map((namespace) => loadFacts(world, namespace)))).flat()
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

/** What the cluster answered to restarts in a namespace that are overdue, as the operator's Events quote it, by uid. */
export async function rejectionsIn({ cluster, kill }: World, namespace: string): Promise<Map<string, string>> {
  const events = await cluster.listEvents(namespace, "CannotRestart", kill).catch(() => [])
  return new Map(events.map(({ uid, text }) => [uid, text]))
}

/** Facts about the selected Jobs of a namespace; those whose restart is overdue with the cluster's answer to it. */
async function loadFacts(world: World, namespace: string) {
  const statuses = await loadStatuses(world, namespace)
  const isLate = (status: JobStatus) => isOverdue(status, nowOf(world))
  const rejections = statuses.some(isLate) ? await rejectionsIn(world, namespace) : new Map<string, string>()
  return statuses.map((status) => factsOf(status, isLate(status) ? rejections.get(status.view.uid) : undefined))
}

export const isOverdue = ({ decision, isRestarting }: JobStatus, now: number) =>
  !isRestarting && "dueAt" in decision && decision.dueAt <= now

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
  const json = whole.map(({ past, reason, evidence: { logs, ...evidence } }) => {
    return { ...past, reason, ...evidence, logs: Object.fromEntries(logs) }
  })
  const lines = whole.flatMap(({ past: { cause, failedAt: at, restarts, decided }, reason, evidence }) => [
    `${instantText(at)} ${[cause, reason].filter(Boolean).join(", ")}; failure ${restarts + 1} in a row; ${decided}`,
    ...evidenceLines(evidence).map((line) => `    ${line}`),
  ])
  await context.print(json, lines.length > 0 ? lines.map((line) => [line]) : [[`no failure of ${key} is recorded`]])
  return 0
}

/** The Jobs that are named; at least one is. */
export function jobsOf({ names, namespaces }: Pick<CommandContext, "names" | "namespaces">): [JobName, ...JobName[]] {
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
export const decisiveSettings = ({ config }: World) =>
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
export async function planRestart(world: World, job: JobName): Promise<RestartPlan | { rejection: string }> {
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
  const without = (intent: Pick<Intent, "name">) => intents.filter((one) => one.name !== intent.name)
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

export async function runRestart(world: World, { job, run }: RestartPlan) {
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
  const text = "restarted, for a person asked for it"
  const event = eventFor(job, "info", "Restarted", text, nowOf(world), world.clock.random())
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

// ─────────────────────────────────────────── 4 Command line ───────────────────────────────────────────

const serveDashboard = async (context: CommandContext) => (await import("./dashboard.ts")).dashboard(context)

/** What an admin may ask for, beside a running operator or without one. `run` returns the exit code. */
export const COMMANDS = {
  status: { jobs: "", run: status, help: "show each Job's state, next restart and why" },
  history: { jobs: "[JOB]", run: history, help: "list past failures; of one JOB with all evidence" },
  restart: { jobs: "JOB...", run: restart, help: "restart failed or finished Jobs now" },
  explain: { jobs: "JOB", run: explain, help: "explain the decision on a Job: inputs, rules, settings" },
  dashboard: { jobs: "", run: serveDashboard, help: "serve a page for your browser, on this machine alone" },
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
  const parsing = { args, options: OPTIONS, allowPositionals: true, strict: false, tokens: true } as const
  const { tokens, positionals } = parseArgs(parsing)
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
export const reportToStderr: Say = (level, text, { lines = [] } = {}) => {
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
export async function print(text: string): Promise<void> {
  await Bun.write(Bun.stdout, text).catch((error) => (error.code === "EPIPE" ? 0 : Promise.reject(error)))
}

/** Runs a command with a kubeconfig, or in the operator's pod. Returns its exit code. */
async function runCommand(
  { command, names, values }: ReturnType<typeof readCommandLine>,
  env: Env,
  world: Omit<World, "cluster" | "config">,
) {
  const source = await findSource(env, SERVICE_ACCOUNT, values.context, world.stop)
  const cluster = connect(source, env)
  const nearest = written(env.NAMESPACE) || source.config.namespace || "flickr-downloader"
  const namespace = values.namespace ?? (nearest.split(/[,\s]/)[0] as string)
  const isDashboard = command === "dashboard"
  const { config, from } = await settingsFor({ cluster, stop: world.stop }, namespace, env, isDashboard)
  // Only a restart must not be cut off in the middle.
  const kill = command === "restart" || isDashboard ? world.kill : world.stop
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
  try {
    const line = readCommandLine(args)
    const { help, version } = line.values
    if (help === undefined && version === undefined)
      return await runCommand(line, env, { clock: systemClock, emit: logSink(reportToStderr), ...signals })
    await print(help !== undefined ? helpText() : `${project.version}\n`)
    return 0
  } catch (error) {
    for (const mistake of messageOf(error).split("\n")) reportToStderr("fatal", mistake)
    if (error instanceof CommandError) return error.code
    return error instanceof SettingsError || error instanceof ConfigError ? 2 : 1
  }
}
