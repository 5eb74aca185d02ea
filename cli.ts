/**
 * What an admin asks for from a shell: `status`, `history`, `restart`, `explain`. operator.ts loads this file only when it is
 * given arguments; it works with what operator.ts exports, and needs no running operator.
 */
import { createInterface } from "node:readline/promises"
import { parseArgs } from "node:util"
import {
  alignedRows,
  type Cluster,
  ConfigError,
  carryOut,
  connect,
  count,
  type Decision,
  decide,
  decideOnWish,
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
  isSelected,
  JOB_NAME,
  type Job,
  type JobName,
  type JobView,
  jsonText,
  judgedRules,
  keepRecord,
  listIntents,
  messageOf,
  newest,
  nowOf,
  type Outcome,
  overridesOf,
  own,
  type PastFailure,
  PREFIX,
  quote,
  RECORD,
  RECORD_JOB,
  readIntent,
  readPast,
  readRecord,
  readSettings,
  recordFor,
  restartJob,
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
  written,
} from "./operator.ts"
import project from "./package.json" with { type: "json" }

/** What a command works with. */
export interface Desk {
  world: World
  namespaces: string[]
  /** Where the settings are from, in words. */
  settings: string
  names: string[]
  /** Writes the answer: as JSON, or as rows in columns; `whole` is never cut to the width of a terminal. */
  answer(json: unknown, rows: string[][], whole?: boolean): Promise<void>
  /** Undefined where it need not be asked. Throws a CommandError where nobody can be. */
  ask: ((question: string) => Promise<boolean>) | undefined
}

/** What the person has to do otherwise (2), or what is not there or may not be (3); the code is the exit code. */
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
  const writtenAt = map?.metadata?.annotations?.[`${PREFIX}written-at`]
  if (map)
    return {
      config: readSettings(map.data ?? {}).config,
      from: `as the operator wrote them in ${namespace} at ${writtenAt}`,
    }
  try {
    return {
      config: readSettings({ ...env, NAMESPACE: namespace }).config,
      from: "of the environment; no operator has written any",
    }
  } catch (error) {
    const missing = `no operator has written its settings in namespace ${namespace}: name another with -n, or set them in the environment`
    throw error instanceof SettingsError ? new CommandError(2, missing, ...error.mistakes) : error
  }
}

/** A Job, its last failure that is known, what is decided of it, and whether its restart is under way. */
type Sight = { view: JobView; past: PastFailure | undefined; failure: Failure; decision: Decision; isUnderWay: boolean }

/** What an intent has decided already. */
function decisionOf({ name, plan: { notBefore = 0 } }: Intent, now: number): Decision {
  if (now < notBefore)
    return { do: "wait", dueAt: notBefore, because: `its TTL removed it, intent ${name} stands for it` }
  return { do: "restart", dueAt: notBefore, because: `intent ${name}` }
}

/** All that is selected in a namespace, or one Job; those too that are away, for their restart is under way. */
async function look(world: World, namespace: string, name?: string): Promise<Sight[]> {
  const { cluster, config, kill } = world
  const list = async (selector: string) => (await cluster.listJobs(namespace, selector, (job) => job, kill)).items
  const one = async (job: string) => [await cluster.getJob(namespace, job, kill), ...(await list(`${INTENT}=${job}`))]
  const [items, records] = await Promise.all([
    name === undefined ? list("") : one(name),
    recordsOf(world, namespace, name),
  ])
  const intents = Map.groupBy(
    items.flatMap((item) => (item && readIntent(item)) ?? []),
    ({ jobName }) => jobName,
  )
  const jobs = new Map([...intents].map(([job, [intent]]) => [job, intent?.original as Job]))
  for (const item of items)
    if (
      item &&
      item.metadata?.labels?.[INTENT] === undefined &&
      (name !== undefined || isSelected(viewJob(item), config))
    )
      jobs.set(item.metadata?.name ?? "", item)
  const past = Map.groupBy(records, ({ job }) => job)
  const sightOf = async ([name, job]: [string, Job]): Promise<Sight> => {
    const view = viewJob({ ...job, metadata: { ...job.metadata, namespace } })
    const last = past.get(name)?.at(-1)
    const { failure } = view.phase === "failed" ? await whatFailed(world, view, last) : { failure: UNKNOWN }
    const [now, intent] = [nowOf(world), newest(intents.get(name) ?? [])]
    const decision = intent
      ? decisionOf(intent, now)
      : decide(view, { ...failure, changed: isChanged(job) }, config, now)
    return { view, past: last, failure, decision, isUnderWay: intent !== undefined && decision.do === "restart" }
  }
  return Promise.all([...jobs].map(sightOf))
}

/** The records of a namespace, or of one Job, the oldest first. */
async function recordsOf({ cluster, kill }: World, namespace: string, job?: string): Promise<PastFailure[]> {
  const records = await cluster.listConfigMaps(
    namespace,
    `${RECORD}=failure${job === undefined ? "" : `,${RECORD_JOB}=${job}`}`,
    kill,
  )
  return records.map(readPast).sort((a, b) => a.failedAt - b.failedAt)
}

/** What failed: from the record, of which metadata is enough where no log matters; without one from what is left of the pods. */
async function whatFailed(world: World, view: JobView, past: PastFailure | undefined, whole = false) {
  const own = past?.uid === view.uid ? past : undefined
  const isEnough = !whole && !overridesOf(view, world.config).rules.some(({ cause }) => cause.kind === "log")
  if (own && isEnough) return { failure: { ...UNKNOWN, cause: own.cause } }
  const record = own && (await world.cluster.getConfigMap(own.namespace, own.name, world.kill))
  const evidence = (record && readRecord(record)?.evidence) ?? (await gatherEvidence(world, view, []))
  return { failure: failureOf(view, evidence), evidence, isRecorded: own !== undefined }
}

function factsOf({ view, past, failure, decision, isUnderWay }: Sight) {
  const isFailed = view.phase === "failed"
  const restarts = view.phase === "succeeded" ? 0 : count(own(view, "restarts"))
  return {
    job: view.key,
    state: isUnderWay ? "restarting" : stateOf(view, decision, 0),
    nextRestartAt: !isUnderWay && "dueAt" in decision ? decision.dueAt : undefined,
    cause: isFailed ? failure.cause : (past?.cause ?? own(view, "last-cause")),
    failuresInRow: restarts + (isFailed ? 1 : 0),
    lastFailureAt: view.failedAt ?? past?.failedAt ?? instant(own(view, "last-failure")),
    why: decision.because,
  }
}

/** A Job's name, with its namespace where there are several. */
const shown = ({ namespaces }: Desk, key: string) => (namespaces.length > 1 ? key : key.slice(key.indexOf("/") + 1))

async function status(desk: Desk): Promise<number> {
  const { world, namespaces, settings } = desk
  const jobs = (await Promise.all(namespaces.map((namespace) => look(world, namespace)))).flat().map(factsOf)
  const now = nowOf(world)
  const span = (ms: number) => durationText(Math.max(0, Math.round(ms / 1_000)) * 1_000)
  const rows = jobs.map(({ job, state, nextRestartAt, cause = "", failuresInRow, lastFailureAt, why }) => [
    ...[shown(desk, job), state],
    nextRestartAt === undefined ? "" : nextRestartAt > now ? `in ${span(nextRestartAt - now)}` : "now",
    ...[cause, String(failuresInRow), lastFailureAt === undefined ? "" : `${span(now - lastFailureAt)} ago`, why],
  ])
  const head = ["JOB", "STATE", "NEXT RESTART", "CAUSE", "IN A ROW", "LAST FAILURE", "WHY"]
  await desk.answer({ settings, now: instantText(now), jobs }, [head, ...rows])
  world.say("info", `settings ${settings}`)
  return 0
}

async function history(desk: Desk): Promise<number> {
  const { world, namespaces, answer } = desk
  if (desk.names.length > 0) return oneHistory(desk)
  const records = (await Promise.all(namespaces.map((namespace) => recordsOf(world, namespace)))).flat()
  const rows = records
    .sort((a, b) => a.failedAt - b.failedAt)
    .map(({ namespace, job, cause, failedAt, restarts, summary, decided }) => {
      return [instantText(failedAt), shown(desk, `${namespace}/${job}`), cause, String(restarts + 1), summary, decided]
    })
  await answer(records, [["FAILED", "JOB", "CAUSE", "IN A ROW", "HOW IT ENDED", "THEN"], ...rows])
  return 0
}

/** All that was seen of a Job's failures, the last one at the end. */
async function oneHistory(desk: Desk): Promise<number> {
  const { cluster, kill } = desk.world
  const [{ namespace, name, key }] = jobsOf(desk)
  const records = await recordsOf(desk.world, namespace, name)
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
  await desk.answer(json, lines.length > 0 ? lines.map((line) => [line]) : [[`no failure of ${key} is recorded`]], true)
  return 0
}

/** The Jobs that are named; at least one is. */
function jobsOf({ names, namespaces }: Desk): [JobName, ...JobName[]] {
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

const DECISIVE = [
  "RESTART_DELAY",
  "SKIP_DELAY_ON_OOM",
  "RESTART_RULES",
  "MAX_RESTARTS",
  "RESTART_SPACING",
  "JOB_NAMES",
  "JOB_SELECTOR",
]

async function explain(desk: Desk): Promise<number> {
  const { world, settings } = desk
  const [{ namespace, name, key }] = jobsOf(desk)
  const [sight] = await look(world, namespace, name)
  if (!sight) throw new CommandError(3, `there is no Job ${key}`)
  const { view, failure, decision } = sight
  const rules = judgedRules(view, failure, world.config)
  const marks = Object.entries(view.annotations).filter(([mark]) => mark.startsWith(PREFIX))
  const annotations = marks.map(([mark, value]) => `${mark.slice(PREFIX.length)}=${value}`)
  const { problems } = overridesOf(view, world.config)
  const facts = { ...factsOf(sight), decision: sayDecision(decision, nowOf(world)).text, rules, annotations, problems }
  const variables = variablesOf(world.config)
  const blocks: [string, ...string[]][] = [
    ["job", `${key}, ${facts.state}`],
    ["decision", sight.isUnderWay ? `its restart is under way, ${facts.why}` : facts.decision],
    [
      "failure",
      facts.lastFailureAt
        ? `${facts.cause} at ${instantText(facts.lastFailureAt)}, ${facts.failuresInRow} in a row`
        : "none is known",
    ],
    ["rules", ...rules.map(({ rule, verdict }) => `${rule} ${verdict}`)],
    ["annotations", ...annotations],
    ["problems", ...problems],
    [
      "settings",
      settings,
      ...DECISIVE.filter((variable) => variables[variable]).map((variable) => `${variable}=${variables[variable]}`),
    ],
  ]
  const rows = blocks.flatMap(([label, ...lines]) => lines.map((line, i) => [i === 0 ? label : "", line]))
  await desk.answer({ ...facts, settings: { from: settings, ...variables } }, rows, true)
  return 0
}

async function restart(desk: Desk): Promise<number> {
  const { world, ask } = desk
  if (world.config.dryRun) throw new CommandError(2, "DRY_RUN is set: nothing is restarted")
  const plans = await Promise.all(jobsOf(desk).map((job) => planRestart(world, job)))
  const refusals = plans.flatMap((plan) => ("refusal" in plan ? [plan.refusal] : []))
  if (refusals.length > 0) throw new CommandError(3, ...refusals)
  const ready = plans.filter((plan) => "run" in plan)
  if (ask && !(await ask(`restart ${ready.map(({ what }) => what).join(", ")}?`)))
    throw new CommandError(3, "nothing was done")
  const facts = await Promise.all(
    ready.map(async ({ job, run }) => {
      const outcome: Outcome | { result: "fault"; error: unknown } = await run().catch((error) => ({
        result: "fault",
        error,
      }))
      const details = "uid" in outcome ? `new uid ${outcome.uid}` : "error" in outcome ? messageOf(outcome.error) : ""
      const left = "its intent stays: an operator goes on, or this command"
      if (outcome.result === "restarted") await tellRestart(world, { ...job, uid: outcome.uid })
      return { job: job.key, result: outcome.result, details: outcome.result === "interrupted" ? left : details }
    }),
  )
  await desk.answer(
    facts,
    [["JOB", "RESULT", "DETAILS"], ...facts.map(({ job, result, details }) => [job, result, details])],
    true,
  )
  const has = (...results: string[]) => facts.some(({ result }) => results.includes(result))
  return has("fault", "interrupted", "namespace gone", "cancelled") ? 1 : has("refused", "changed") ? 3 : 0
}

/** An Event, as the operator's; one that may not be written is none. */
async function tellRestart(world: World, job: JobName): Promise<void> {
  const event = eventFor(job, "info", "Restarted", "restarted, for a person asked for it", nowOf(world), world.random())
  await world.cluster.createEvent(job.namespace, event, world.kill).catch(() => {})
}

type RestartPlan = { refusal: string } | { job: JobName; what: string; run: () => Promise<Outcome> }

/** What a person's wish comes to: a restart, the end of one that was left unfinished, or why not. */
async function planRestart(world: World, job: JobName): Promise<RestartPlan> {
  const { namespace, name, key } = job
  let last: Job | undefined
  const lastSeen = (read?: Job) => {
    last = read ?? last
    return last
  }
  const live = await world.cluster.getJob(namespace, name, world.kill)
  const unfinished = newest(await listIntents(world, namespace, name))
  if (unfinished && (!live || live.metadata?.deletionTimestamp))
    return {
      job,
      what: `${key} (going on with ${unfinished.name})`,
      run: () => carryOut(world, namespace, name, lastSeen, true),
    }
  if (!live) return { refusal: `there is no Job ${key}` }
  const view = viewJob(live)
  const decision = decideOnWish(view)
  if (decision.do !== "restart") return { refusal: `${key} is not restarted: ${decision.because}` }
  const run = async () => {
    const failure = view.phase === "failed" ? await keepEvidence(world, view) : UNKNOWN
    return restartJob(world, view, { ...failure, changed: true }, lastSeen, decideOnWish)
  }
  return { job, what: `${key} (${view.phase})`, run }
}

/** What failed. It is recorded, where no operator has done so: with the Job its pods go too. */
async function keepEvidence(world: World, view: JobView): Promise<Failure> {
  const past = (await recordsOf(world, view.namespace, view.name)).at(-1)
  const { failure, evidence, isRecorded } = await whatFailed(world, view, past, true)
  if (!evidence || isRecorded || world.config.historyLimit === 0) return failure
  const record = recordFor(view, evidence, failure.cause, decideOnWish(view))
  await keepRecord(world, record).catch((error) =>
    world.say("warning", `[${view.key}] its failure is not recorded: ${messageOf(error)}`),
  )
  return failure
}

/** What an admin may ask for beside the operator, or without one. `run` returns the exit code. */
export const COMMANDS = {
  status: { jobs: "", run: status, help: "what the Jobs are at, and when they are restarted" },
  history: { jobs: "[JOB]", run: history, help: "past failures; of one JOB with all that was seen" },
  restart: {
    jobs: "JOB...",
    run: restart,
    help: "restarts failed and finished Jobs now, as safely as the operator does",
  },
  explain: { jobs: "JOB", run: explain, help: "what is decided of a Job, from what, by which rule" },
}

const OPTIONS = {
  help: { type: "boolean", short: "h" },
  version: { type: "boolean", short: "v" },
  namespace: { type: "string", short: "n" },
  context: { type: "string" },
  output: { type: "string", short: "o" },
  "no-color": { type: "boolean" },
  yes: { type: "boolean", short: "y" },
} as const

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
  const values: Partial<Record<string, string>> = {}
  const mistakes = tokens.flatMap((token) => {
    if (token.kind !== "option") return []
    if (!Object.hasOwn(OPTIONS, token.name)) return [`there is no option ${token.rawName}`]
    const wantsValue = OPTIONS[token.name as keyof typeof OPTIONS].type === "string"
    values[token.name] = token.value ?? ""
    return wantsValue === Boolean(token.value)
      ? []
      : [`${token.rawName} ${wantsValue ? "needs a value" : "takes no value"}`]
  })
  if (name !== undefined && !command)
    mistakes.push(`there is no command ${name}; there are ${Object.keys(COMMANDS).join(", ")}`)
  if (name === undefined)
    mistakes.push(
      ...Object.keys(values).flatMap((key) => (/help|version/.test(key) ? [] : [`--${key} goes with a command`])),
    )
  const jobs = command && COMMANDS[command].jobs
  const most = { "": 0, "[JOB]": 1, JOB: 1 }[jobs ?? ""] ?? Number.POSITIVE_INFINITY
  if (command && (names.length > most || (jobs?.startsWith("JOB") && names.length === 0)))
    mistakes.push(`write ${`${command} ${jobs}`.trim()}`)
  if (values.output && !["table", "json"].includes(values.output))
    mistakes.push(`-o cannot be ${quote(values.output)}: write table or json`)
  if (values.yes !== undefined && command && command !== "restart") mistakes.push("--yes goes with restart")
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

  -n, --namespace NAMESPACE, --context CONTEXT   where to look; else NAMESPACE, else the namespace of the kubeconfig's context
  -o, --output table|json, --no-color (or NO_COLOR), --yes (restart without asking)

The commands go by the settings that the operator has written into the ConfigMap ${SETTINGS_MAP}, else by the
environment's. They need no running operator, and do no harm beside one.

The operator is set by environment variables; a duration is a whole number of seconds or like 90s, 15m, 1h30m:
${rows.join("\n")}

It connects by KUBECONFIG if set, else the pod's ServiceAccount, else ~/.kube/config.
Exit codes: 0 done, or stopped by a signal; 1 a fault; 2 a wrong setting, option or configuration; 3 no such Job, or a restart
that was refused.
`
}

/** What a command says beside its answer. */
const sayPlainly: Say = (level, text, { lines = [] } = {}) => {
  const whole = [level === "fatal" ? `error: ${text}` : text, ...lines.map((line) => `    ${line}`)]
  process.stderr.write(whole.map((line) => `${safe(line)}\n`).join(""))
}

/** Asks on the terminal. Throws a CommandError where there is none. */
async function ask(question: string, signal: AbortSignal): Promise<boolean> {
  if (!process.stdin.isTTY)
    throw new CommandError(2, "nobody can be asked here: with --yes it is done without a question")
  const reader = createInterface({ input: process.stdin, output: process.stderr })
  try {
    return /^y(es)?$/i.test((await reader.question(`${safe(question)} [y/N] `, { signal })).trim())
  } finally {
    reader.close()
  }
}

const COLORS: Record<string, number> = { given_up: 31, waiting: 33, restarting: 36, succeeded: 32 }

/** Writes an answer: on a terminal in colours by state, and not wider than it is. */
function answerTo({ output, "no-color": noColor }: Partial<Record<string, string>>, env: Env): Desk["answer"] {
  const { isTTY, columns } = process.stdout
  const isColored = isTTY && !env.NO_COLOR && noColor === undefined && env.TERM !== "dumb"
  const paint = (line: string, color: number | undefined) =>
    isColored && color ? `\u001b[${color}m${line}\u001b[0m` : line
  return async (json, rows, whole = false) => {
    const lines = alignedRows(rows, isTTY && !whole ? columns : undefined).map((line, i) =>
      paint(line, COLORS[rows[i]?.[1] ?? ""]),
    )
    const text = output === "json" ? jsonText(json) : lines.join("\n")
    // Who reads no further, as head does, has enough.
    await Bun.write(Bun.stdout, `${text}\n`).catch((error) => (error.code === "EPIPE" ? 0 : Promise.reject(error)))
  }
}

/** Runs a command with a kubeconfig, or in the operator's pod. Returns its exit code. */
async function runCommand(
  { command, names, values }: ReturnType<typeof readCommandLine>,
  env: Env,
  world: Omit<World, "cluster" | "config">,
) {
  const source = findSource(env, SERVICE_ACCOUNT, values.context)
  const [cluster, kubeconfig] = [connect(source, env), source.load()]
  const near =
    written(env.NAMESPACE) || kubeconfig.getContextObject(kubeconfig.currentContext)?.namespace || "flickr-downloader"
  const { config, from } = await settingsFor(
    cluster,
    values.namespace ?? (near.split(/[,\s]/)[0] as string),
    env,
    world.stop,
  )
  // Only a restart has something to end well.
  const kill = command === "restart" ? world.kill : world.stop
  return COMMANDS[command as keyof typeof COMMANDS].run({
    ...{ world: { ...world, kill, cluster, config }, names, settings: from },
    namespaces: values.namespace === undefined ? config.namespaces : [values.namespace],
    answer: answerTo(values, env),
    ask: values.yes === undefined ? (question) => ask(question, world.stop) : undefined,
  })
}

/** Runs what the command line asks for; returns the exit code. */
export async function runCommandLine(args: string[], env: Env, signals: Pick<World, "stop" | "kill">): Promise<number> {
  try {
    const line = readCommandLine(args)
    const { help, version } = line.values
    if (help !== undefined || version !== undefined)
      return await print(help !== undefined ? helpText() : `${project.version}\n`)
    return await runCommand(line, env, { clock: systemClock, random: Math.random, say: sayPlainly, ...signals })
  } catch (error) {
    for (const mistake of messageOf(error).split("\n")) sayPlainly("fatal", mistake)
    if (error instanceof CommandError) return error.code
    return error instanceof SettingsError || error instanceof ConfigError ? 2 : 1
  }
}

async function print(text: string): Promise<number> {
  await Bun.write(Bun.stdout, text)
  return 0
}
