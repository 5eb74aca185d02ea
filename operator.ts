/**
 * flickr-immich-k8s-sync-operator: brings failed Kubernetes Jobs back, and never loses one.
 *
 * It watches chosen Jobs. When one fails, it keeps the evidence, waits as long as the cause deserves, deletes the Job and
 * creates it anew. Between the delete and the create the Job stands only in its *intent*: a suspended Job under another
 * name, written before the delete, from which any later life of this program, or a person, finishes the restart.
 *
 * To be read from top to bottom; a chapter uses only those above it:
 *   1 Settings · 2 What we see · 3 What to do · 4 How we say it · 5 The cluster · 6 Acting · 7 The loop · 8 Health · 9 Commands ·
 *   10 Main
 * Chapters 1 to 4 have no effects and never read the clock: `now` is handed down. Instants are epoch milliseconds (`…At`).
 */
import { createHash } from "node:crypto"
import { existsSync, readdirSync, readFileSync } from "node:fs"
import type { RequestOptions } from "node:https"
import { isIPv6 } from "node:net"
import { dirname, join, resolve } from "node:path"
import {
  KubeConfig,
  type V1ConfigMap,
  type V1Job,
  type V1LabelSelector,
  type V1ObjectMeta,
  type V1Pod,
} from "@kubernetes/client-node"
import { configureSync, getLogger, type LogRecord } from "@logtape/logtape"
import { Counter, Gauge, Histogram, Registry } from "prom-client"
import project from "./package.json" with { type: "json" }

/** The prefix of every label and annotation that the operator writes or reads. */
export const PREFIX = "flickr-immich-k8s-sync-operator/"

// ───────────────────────────────────────────── 1 Settings ─────────────────────────────────────────────

/** The settings as understood. */
export interface Config {
  logLevel: Level
  logFormat: "text" | "json"
  namespaces: string[]
  /** `namespace/name` of each Job; undefined where names do not matter. */
  jobNames: string[] | undefined
  jobSelector: Selector | undefined
  checkIntervalMs: number
  restartDelayMs: number
  skipDelayOnOom: boolean
  /** First match wins; none: RESTART_DELAY. */
  restartRules: Rule[] | undefined
  maxRestarts: number | undefined
  restartSpacingMs: number
  logLines: number
  /** Records kept of each Job's failures; 0: none are written. */
  historyLimit: number
  dryRun: boolean
  /** 0: none. */
  healthPort: number
  notifyUrl: string | undefined
}
export type Level = "trace" | "debug" | "info" | "warning" | "error" | "fatal"

/**
 * One setting: its default as a user would write it, empty for none; what reads it, and throws an Error that says what is allowed;
 * the Python operator's name for it, read where `variable` is not set; and whether it is never to be shown whole.
 */
function setting<K extends keyof Config>(
  variable: string,
  key: K,
  fallback: string,
  parse: (text: string) => Config[K],
  help: string,
  olderName?: string,
  secret = false,
) {
  return {
    variable,
    key: key as keyof Config,
    default: fallback,
    parse: parse as (text: string) => unknown,
    help,
    olderName,
    secret,
  }
}

// Kubernetes allows a Job 253 characters, but its pods carry its name in a label, which holds 63.
const NAMESPACE_NAME = /^[a-z0-9]([-a-z0-9]*[a-z0-9])?$/
export const JOB_NAME =
  /^([a-z0-9]([-a-z0-9]*[a-z0-9])?\/)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$/
const BOOLEANS = { true: true, false: false, yes: true, no: false, on: true, off: false, 1: true, 0: false }
const LEVELS = {
  trace: "trace",
  debug: "debug",
  info: "info",
  success: "info",
  warning: "warning",
  error: "error",
  critical: "fatal",
  fatal: "fatal",
} as const
const FORMATS = { text: "text", json: "json" } as const

/** Every setting there is: makes the reader, `--help`, and the tables at start and in the README (a test compares them). */
export const SETTINGS = [
  setting(
    "LOG_LEVEL",
    "logLevel",
    "DEBUG",
    oneOf(LEVELS),
    "TRACE, DEBUG, INFO, SUCCESS, WARNING, ERROR or CRITICAL",
    "LOGURU_LEVEL",
  ),
  setting(
    "LOG_FORMAT",
    "logFormat",
    "text",
    oneOf(FORMATS),
    "`text` for people, `json` (one object per line) for log collectors",
  ),
  setting(
    "NAMESPACE",
    "namespaces",
    "flickr-downloader",
    namespaceNames,
    "the Jobs' namespace, or at most 100 separated by commas",
  ),
  setting(
    "JOB_NAMES",
    "jobNames",
    "",
    names(JOB_NAME),
    "Job names separated by commas; `namespace/name` if there are several namespaces",
  ),
  setting(
    "JOB_SELECTOR",
    "jobSelector",
    "",
    parseSelector,
    "label selector; at least one of the two is required, and if both are set, both must match",
  ),
  setting(
    "CHECK_INTERVAL",
    "checkIntervalMs",
    "60",
    duration(1_000),
    "polling interval if watching is not allowed; a watch silent for twice this is reopened",
  ),
  setting(
    "RESTART_DELAY",
    "restartDelayMs",
    "3600",
    duration(0),
    "from the failure (lastTransitionTime of its Failed condition) to the restart",
  ),
  setting(
    "SKIP_DELAY_ON_OOM",
    "skipDelayOnOom",
    "false",
    oneOf(BOOLEANS),
    "after an OOM kill restart at once, then after 10 s, 20 s, 40 s and so on",
  ),
  setting(
    "RESTART_RULES",
    "restartRules",
    "",
    parseRules,
    "delays by cause, `CAUSE=WAIT` separated by commas; the first match wins",
  ),
  setting(
    "MAX_RESTARTS",
    "maxRestarts",
    "",
    wholeNumber(0, 1_000_000),
    "stop retrying after this many consecutive restarts",
  ),
  setting("RESTART_SPACING", "restartSpacingMs", "0", duration(0), "minimum interval between two restarts in a group"),
  setting("LOG_LINES", "logLines", "20", wholeNumber(0, 10_000), "last log lines kept of each container"),
  setting(
    "HISTORY_LIMIT",
    "historyLimit",
    "10",
    wholeNumber(0, 1_000),
    "failures kept per Job, as ConfigMaps; 0 keeps none",
  ),
  setting("DRY_RUN", "dryRun", "false", oneOf(BOOLEANS), "log what would be done and change nothing"),
  setting(
    "HEALTH_PORT",
    "healthPort",
    "8080",
    wholeNumber(0, 65_535),
    "port of /livez, /readyz and /metrics; 0 turns it off; outside a pod it is off unless set",
  ),
  setting(
    "NOTIFY_URL",
    "notifyUrl",
    "",
    httpUrl,
    "webhook called when a Job needs attention and when it recovers; a secret",
    undefined,
    true,
  ),
]

/** All that is wrong with the settings, one line each. */
export class SettingsError extends Error {
  override name = "SettingsError"
  constructor(readonly mistakes: string[]) {
    super(mistakes.join("\n"))
  }
}

export type SettingRow = { variable: string; value: string; from: string }

/** Reads all settings. Throws a SettingsError with every mistake at once. */
export function readSettings(env: Record<string, string | undefined>): {
  config: Config
  rows: SettingRow[]
  warnings: string[]
} {
  const values: { [K in keyof Config]?: unknown } = {}
  const [rows, warnings, mistakes]: [SettingRow[], string[], string[]] = [[], [], []]
  for (const { variable, olderName, key, default: fallback, parse, secret } of SETTINGS) {
    const from = olderName && !written(env[variable]) && written(env[olderName]) ? olderName : variable
    const text = written(env[from])
    try {
      const value = text || fallback ? parse(text || fallback) : undefined
      values[key] = value
      rows.push({ variable, value: showSetting(key, value), from: text ? from : "default" })
      // The Python operator took only the word true for true, and quotes as a part of the word.
      const pythonRead = env[from]?.trim().toLowerCase() === "true"
      if (key === "skipDelayOnOom" && text && pythonRead !== value)
        warnings.push(`${from}=${quote(text)} is read as ${value}; the Python operator read it as ${pythonRead}`)
    } catch (error) {
      mistakes.push(`${from} cannot be ${quote(secret ? "***" : (env[from] ?? ""))}: ${messageOf(error)}`)
    }
  }
  mistakes.push(...contradictions(values as Partial<Config>))
  const logRule = (values as Partial<Config>).restartRules?.find(({ cause }) => cause.kind === "log")
  if (logRule && values.logLines === 0)
    warnings.push(`RESTART_RULES has ${logRule.text}, but LOG_LINES=0 keeps no log to match`)
  if (mistakes.length > 0) throw new SettingsError(mistakes)
  return { config: values as Config, rows, warnings }
}

/** The settings as variables, as readSettings() takes them; without secrets. */
export function variablesOf(config: Config): Record<string, string> {
  const open = SETTINGS.filter(({ secret }) => !secret)
  return Object.fromEntries(
    open.map(({ variable, key }) => [variable, config[key] === undefined ? "" : showSetting(key, config[key])]),
  )
}

/** What no single value shows: the selection as a whole. Turns plain Job names into `namespace/name`. */
function contradictions(values: Partial<Config>): string[] {
  const { namespaces, jobNames } = values
  const nothing = "jobNames" in values && "jobSelector" in values && !jobNames && !values.jobSelector
  if (nothing) return ["JOB_NAMES and JOB_SELECTOR are both empty: set one, so that it is known which Jobs to restart"]
  if (!namespaces || !jobNames) return []
  values.jobNames = jobNames.map((name) => (name.includes("/") ? name : `${namespaces[0]}/${name}`))
  return jobNames.flatMap((name) => {
    const [namespace, rest] = name.split("/") as [string, string?]
    if (rest === undefined)
      return namespaces.length > 1
        ? [`JOB_NAMES cannot have ${quote(name)}: with several namespaces write namespace/name`]
        : []
    return namespaces.includes(namespace)
      ? []
      : [`JOB_NAMES cannot have ${quote(name)}: NAMESPACE does not name ${namespace}`]
  })
}

/** What people write in ConfigMaps and Secrets: a byte order mark, blanks, a last newline, quotes around it. */
export function written(text: string | undefined): string {
  const bare = (text ?? "").trim()
  return bare.length > 1 && /^(["']).*\1$/s.test(bare) ? bare.slice(1, -1).trim() : bare
}

function showSetting(key: keyof Config, value: unknown): string {
  if (value === undefined) return "none"
  if (key === "notifyUrl") return `${new URL(value as string).origin}/***`
  if (key.endsWith("Ms")) return durationText(value as number)
  const texts = [value].flat() as (Rule | Selector | string)[]
  return texts.map((one) => (typeof one === "object" ? one.text : one)).join(", ")
}

/** A reader of durations in ms: whole seconds, or like 90s, 15m, 1h30m, 7d; at most ten years, which every date can hold. */
export function duration(leastMs: number) {
  return (text: string): number => {
    const match = /^(?:(\d+)|(?=\d)(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?)$/.exec(text.toLowerCase())
    const [plain = 0, days = 0, hours = 0, minutes = 0, seconds = 0] = (match ?? [])
      .slice(1)
      .map((digits) => Number(digits ?? 0))
    const ms = (plain + days * 86_400 + hours * 3_600 + minutes * 60 + seconds) * 1_000
    if (match && ms >= leastMs && ms <= 3650 * 86_400_000) return ms
    throw new Error(`write whole seconds or a duration like 90s, 15m, 1h30m, from ${durationText(leastMs)} to 3650d`)
  }
}

function wholeNumber(least: number, most: number) {
  return (text: string): number => {
    if (/^\d+$/.test(text) && Number(text) >= least && Number(text) <= most) return Number(text)
    throw new Error(`write a whole number from ${least} to ${most}`)
  }
}

function oneOf<T>(words: Record<string, T>) {
  return (text: string): T => {
    if (Object.hasOwn(words, text.toLowerCase())) return words[text.toLowerCase()] as T
    throw new Error(`write one of ${Object.keys(words).join(", ")}`)
  }
}

function httpUrl(text: string): string {
  if (URL.canParse(text) && /^https?:$/.test(new URL(text).protocol)) return text
  throw new Error("write a URL with http or https")
}

export function names(pattern: RegExp) {
  return (text: string): string[] => {
    const all = [...new Set(text.split(/[,\s]+/).filter((name) => name !== ""))]
    const wrong = all.filter((name) => !pattern.test(name) || name.split("/").some((part) => part.length > 63))
    if (wrong.length > 0)
      throw new Error(
        `${wrong.map(quote).join(", ")} is no name: write at most 63 of a-z, 0-9 and -, with commas between names`,
      )
    if (all.length === 0) throw new Error("write at least one name")
    return all
  }
}

/** Each namespace holds two watches open, and fetch sends at most 256 requests at once: beyond that no other call gets through. */
const MOST_NAMESPACES = 100

function namespaceNames(text: string): string[] {
  const all = names(NAMESPACE_NAME)(text)
  if (all.length <= MOST_NAMESPACES) return all
  const reason = "each holds two connections open, and only 256 requests run at once"
  throw new Error(
    `it names ${all.length} namespaces, at most ${MOST_NAMESPACES} can be watched (${reason}): ` +
      "run a second operator for the others",
  )
}

/** A label selector: its text and its conditions. */
export type Selector = {
  text: string
  requirements: { key: string; operator: "in" | "notin" | "exists" | "absent"; values: string[] }[]
}

const LABEL = "[A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?"
const LABEL_KEY = `(?:[a-z0-9.-]+/)?${LABEL}`
const SET = `\\s+(?<set>in|notin)\\s*\\((?<values>\\s*(?:${LABEL})?\\s*(?:,\\s*(?:${LABEL})?\\s*)*)\\)`
const REQUIREMENT = new RegExp(
  `\\s*(?:!\\s*(?<absent>${LABEL_KEY})|(?<key>${LABEL_KEY})(?:\\s*(?<equal>==?|!=)\\s*(?<value>(?:${LABEL})?)|${SET})?)\\s*(?:,(?=[^])|$)`,
  "y",
)

/** A label selector as kubectl takes it (k8s.io/apimachinery/pkg/labels, without > and <). Throws with the place of a mistake. */
export function parseSelector(text: string): Selector {
  const requirements: Selector["requirements"] = []
  for (let at = 0; at < text.length; at = REQUIREMENT.lastIndex) {
    REQUIREMENT.lastIndex = at
    const { absent, key = "", equal, value = "", set, values } = REQUIREMENT.exec(text)?.groups ?? {}
    if (absent === undefined && key === "")
      throw new Error(
        `at character ${at + 1} write a condition such as key=value, key!=value, key in (a,b), key or !key`,
      )
    const operator = absent ? "absent" : set || equal ? (set === "notin" || equal === "!=" ? "notin" : "in") : "exists"
    requirements.push({
      key: absent ?? key,
      operator,
      values: set ? (values ?? "").split(",").map((v) => v.trim()) : [value],
    })
  }
  return { text, requirements }
}

/** Whether labels satisfy a selector; `!=` and `notin` hold for an absent key too (k8s.io/apimachinery/pkg/labels). */
export function matches({ requirements }: Selector, labels: Record<string, string>): boolean {
  return requirements.every(({ key, operator, values }) => {
    const value = Object.hasOwn(labels, key) ? labels[key] : undefined
    if (operator === "exists" || operator === "absent") return (value !== undefined) === (operator === "exists")
    return (value !== undefined && values.includes(value)) === (operator === "in")
  })
}

/** One rule: failures of this cause wait so long. */
export type Rule = { text: string; cause: RuleCause; wait: Wait }
type RuleCause =
  | { kind: "oom" | "evicted" | "deadline" | "unknown" | "any" }
  | { kind: "exit"; least: number; most: number }
  | { kind: "log"; pattern: RegExp }
/** From the first wait to the longest; `never`: a person has to come. */
export type Wait = "never" | { fromMs: number; toMs: number }

const RULE_CAUSE =
  /(?<kind>oom|evicted|deadline|unknown|any)|exit:(?<least>\d{1,9})(?:-(?<most>\d{1,9}))?|log:\/(?<pattern>(?:[^/\\[\n]|\\.|\[(?:[^\]\\\n]|\\.)*\])+)\/(?<flags>i?)/y
const RULE_WAIT = /(?<never>never)|(?<from>\w+)(?:\.\.(?<to>\w+))?/y

/** Rules as RESTART_RULES has them. Read by a scanner: a comma may stand in a pattern. Throws with the place of a mistake. */
export function parseRules(text: string, logAllowed = true): Rule[] {
  let at = 0
  const next = <T>(pattern: RegExp, expected: string, read: (groups: Record<string, string>) => T): T => {
    const beganAt = at
    pattern.lastIndex = at
    const match = pattern.exec(text)
    at = pattern.lastIndex
    try {
      if (!match) throw new Error(`write ${expected}, not ${quote(text.slice(beganAt, beganAt + 20))}`)
      return read(match.groups ?? {})
    } catch (error) {
      throw new Error(`at character ${beganAt + 1} ${messageOf(error)}`)
    }
  }
  const rules: Rule[] = []
  while (at < text.length) {
    const beganAt = at
    const cause = next(
      RULE_CAUSE,
      "a cause: oom, evicted, deadline, exit:3, exit:1-9, log:/RE/, unknown or any",
      ruleCause,
    )
    if (cause.kind === "log" && !logAllowed)
      throw new Error(`at character ${beganAt + 1} a log pattern may only stand in RESTART_RULES`)
    next(/\s*=\s*/y, "= and a wait", Boolean)
    const wait = next(RULE_WAIT, "a wait: a duration, 10s..1h or never", ruleWait)
    rules.push({ text: text.slice(beganAt, at), cause, wait })
    next(/[^\S\n]*(?:[,\n]\s*|$)/y, "a comma or the end", Boolean)
  }
  return rules
}

function ruleCause({ kind, least, most = least, pattern, flags }: Record<string, string>): RuleCause {
  if (kind) return { kind } as RuleCause
  if (pattern !== undefined) return { kind: "log", pattern: new RegExp(pattern, flags) }
  if (Number(most) < Number(least)) throw new Error("write the smaller exit code first")
  return { kind: "exit", least: Number(least), most: Number(most) }
}

function ruleWait({ never, from = "", to = from }: Record<string, string>): Wait {
  if (never) return "never"
  const wait = { fromMs: duration(0)(from), toMs: duration(0)(to) }
  if (wait.fromMs > wait.toMs) throw new Error("write the shorter wait first")
  return wait
}

const QUANTITY = /^(\d+(?:\.\d*)?|\.\d+)(?:([KMGTPE]i)|([numkMGTPE])|[eE]([+-]?\d{1,3}))?$/

/** A positive quantity in its base unit: `1.5Gi`, `512M`, `1e9`, `500m` (k8s.io/apimachinery/pkg/api/resource). */
export function quantity(text: string): number {
  const [, number, binary, decimal, exponent] = QUANTITY.exec(text) ?? []
  const factor = binary
    ? 1024 ** ("KMGTPE".indexOf(binary[0] as string) + 1)
    : decimal
      ? 10 ** (3 * ("num kMGTPE".indexOf(decimal) - 3))
      : 10 ** Number(exponent ?? 0)
  if (number === undefined || Number(number) * factor <= 0)
    throw new Error("write a quantity like 1.5Gi, 512M, 1e9 or 128974848")
  return Number(number) * factor
}

/** What `work` returns; undefined where it throws. */
function attempt<T>(work: () => T): T | undefined {
  try {
    return work()
  } catch {
    return undefined
  }
}

// ──────────────────────────────────────────── 2 What we see ───────────────────────────────────────────

/** client-node's types with instants as the text that travels: its classes hold Dates, JSON does not. */
type Wire<T> = T extends Date
  ? string
  : T extends (infer U)[]
    ? Wire<U>[]
    : T extends object
      ? { [K in keyof T]: Wire<T[K]> }
      : T
/** Objects as the API server sends them. */
export type Job = Wire<V1Job>
export type Pod = Wire<V1Pod>
export type ConfigMap = Wire<V1ConfigMap>
export type Metadata = Wire<V1ObjectMeta>

/** `failing`: FailureTarget is set and pods are being stopped; only `failed` may be restarted. */
type Phase = "running" | "suspended" | "failing" | "failed" | "succeeded"

/** A Job, reduced to what decisions need. */
export type JobView = ReturnType<typeof viewJob>

/** Reads a Job as the API server sends it; never throws, whatever is missing in it. */
export function viewJob(job: Job) {
  const { metadata = {}, spec, status } = job
  const { namespace = "", name = "", uid = "", resourceVersion = "", labels, annotations } = metadata
  const condition = (type: string) => status?.conditions?.find((c) => c.type === type && c.status === "True")
  const failed = condition("Failed")
  const failing = failed ?? condition("FailureTarget")
  const succeeded = condition("Complete") ?? condition("SuccessCriteriaMet")
  const phase: Phase = succeeded
    ? "succeeded"
    : failed
      ? "failed"
      : failing
        ? "failing"
        : spec?.suspend
          ? "suspended"
          : "running"
  return {
    key: `${namespace}/${name}`,
    ...{ namespace, name, uid, resourceVersion, labels: labels ?? {}, annotations: annotations ?? {}, phase },
    deleting: metadata.deletionTimestamp != null,
    /** When the Failed condition became true. */
    failedAt:
      failed &&
      (instant(failed.lastTransitionTime) ?? instant(failed.lastProbeTime) ?? instant(metadata.creationTimestamp) ?? 0),
    /** Reason and message of the condition that failed the Job. */
    reason: failing?.reason ?? "",
    message: failing?.message ?? "",
    /** Who else answers for this Job, in words. */
    manager: managerOf(job),
    createdAt: instant(metadata.creationTimestamp) ?? 0,
    /** When its pods were first allowed to run, and when it completed. */
    startedAt: instant(status?.startTime),
    completedAt: instant(status?.completionTime),
    /** Whether it has or had a pod. */
    hasPods: [status?.active, status?.failed, status?.succeeded, status?.terminating].some(Boolean),
    ttlMs: spec?.ttlSecondsAfterFinished == null ? undefined : spec.ttlSecondsAfterFinished * 1_000,
  }
}

/** The CronJob controller prunes its Jobs by owner, whatever `controller` says; `managedBy` is KEP-4368. */
function managerOf({ metadata, spec }: Job): string | undefined {
  const owner = metadata?.ownerReferences?.find(({ kind, controller }) => kind === "CronJob" || controller)
  if (owner) return `it is owned by ${owner.kind} ${owner.name}`
  return spec?.managedBy && spec.managedBy !== "kubernetes.io/job-controller"
    ? `it is managed by ${spec.managedBy}`
    : undefined
}

/** An instant from the API; year 1 and null stand for "not known". */
export function instant(text: string | null | undefined): number | undefined {
  const at = Date.parse(text ?? "")
  return at > 0 ? at : undefined
}

/** A pod of a Job, reduced to what tells why it failed. */
export type PodView = ReturnType<typeof viewPod>

/** Reads a pod as the API server sends it; never throws. */
export function viewPod({ metadata = {}, status = {} }: Pod) {
  const owner = metadata.ownerReferences?.find(({ kind }) => kind === "Job")
  const disruption = status.conditions?.find((c) => c.type === "DisruptionTarget" && c.status === "True")
  const view = (init: boolean) => (container: ContainerStatus) => viewContainer(container, init)
  return {
    ...{ name: metadata.name ?? "", uid: metadata.uid ?? "", jobUid: owner?.uid ?? "", jobName: owner?.name ?? "" },
    createdAt: instant(metadata.creationTimestamp) ?? 0,
    phase: status.phase ?? "Unknown",
    reason: status.reason || disruption?.reason || "",
    message: status.message || disruption?.message || "",
    /** Completion index of an Indexed Job's pod. */
    index: metadata.annotations?.["batch.kubernetes.io/job-completion-index"],
    evicted: status.reason === "Evicted" || status.reason === "NodeLost" || disruption !== undefined,
    deleting: metadata.deletionTimestamp != null,
    /** No longer in the cluster. */
    gone: false,
    containers: [
      ...(status.initContainerStatuses ?? []).map(view(true)),
      ...(status.containerStatuses ?? []).map(view(false)),
    ],
  }
}

/** The view of a pod that a Job owns; undefined for any other pod. */
function viewOfJobPod(pod: Pod): PodView | undefined {
  const view = viewPod(pod)
  return view.jobUid ? view : undefined
}

type ContainerStatus = NonNullable<NonNullable<Pod["status"]>["containerStatuses"]>[number]
/** How one container of a pod ended, now or in its last run, or what it is doing. */
export type ContainerView = ReturnType<typeof viewContainer>

function viewContainer({ name, state, lastState, restartCount }: ContainerStatus, init: boolean) {
  // A container that waits or runs again tells its failure in lastState only.
  const end = state?.terminated ?? lastState?.terminated
  const now: "terminated" | "running" | "waiting" = state?.terminated
    ? "terminated"
    : state?.running
      ? "running"
      : "waiting"
  return {
    ...{ name, init, state: now, restarts: restartCount ?? 0, ended: end != null },
    /** Undefined where nothing has ended, or where the kubelet made the code up. */
    exitCode: end?.reason === "ContainerStatusUnknown" ? undefined : end?.exitCode,
    signal: end?.signal || undefined,
    reason: end?.reason ?? state?.waiting?.reason ?? "",
    message: end?.message ?? state?.waiting?.message ?? "",
    startedAt: instant(end?.startedAt),
    finishedAt: instant(end?.finishedAt),
  }
}

/** The last lines of a container's log, or why there are none; `final`: read after its end. */
export type Tail = { lines: string[]; note?: string; final?: boolean }

/** All that was seen of a failure. Logs are keyed by pod uid and container; `morePods` are beyond the newest few. */
export type Evidence = { pods: PodView[]; logs: Map<string, Tail>; morePods: number }

/** Why a Job failed. */
export type Cause = "oom" | "evicted" | "deadline" | `exit:${number}` | "unknown"

/**
 * The cause of a failure; the last failed attempt decides. Reason before code: 137 alone does not tell an out-of-memory
 * kill, and a kill of a child process may end with code 0 and phase Succeeded (kubernetes/kubernetes#104454).
 */
export function causeOf(job: JobView, pods: PodView[]): Cause {
  const last = lastFailedPod(pods)
  if (last?.containers.some(isOomKilled)) return "oom"
  if (last?.evicted) return "evicted"
  if (job.reason === "DeadlineExceeded" || last?.reason === "DeadlineExceeded") return "deadline"
  const failed = latest(last?.containers.filter(({ exitCode }) => exitCode))
  return failed ? `exit:${failed.exitCode as number}` : "unknown"
}

const isOomKilled = ({ ended, reason }: ContainerView) => ended && reason === "OOMKilled"
const hasFailed = (c: ContainerView) => c.ended && (c.exitCode !== 0 || isOomKilled(c))
const latest = (ended: ContainerView[] = []) =>
  ended.toSorted((a, b) => (a.finishedAt ?? 0) - (b.finishedAt ?? 0)).at(-1)

/** The pod of the last failed attempt; one that was stopped because its Job had failed already says less than the others. */
function lastFailedPod(pods: PodView[]): PodView | undefined {
  const failedAt = (pod: PodView) => latest(pod.containers.filter(hasFailed))?.finishedAt ?? pod.createdAt
  const stopped = (pod: PodView) => Number(pod.deleting && !pod.evicted)
  const failed = pods.filter((pod) => pod.phase === "Failed" || pod.evicted || pod.containers.some(hasFailed))
  return failed.sort((a, b) => stopped(b) - stopped(a) || failedAt(a) - failedAt(b)).at(-1)
}

// ──────────────────────────────────────────── 3 What to do ────────────────────────────────────────────

/** What to do with a Job now, and why. `healthy`: nobody needs to care. `give up`: a person has to come. */
export type Decision =
  | { do: "leave"; because: string; healthy: boolean }
  | { do: "give up"; because: string }
  | { do: "wait" | "restart"; dueAt: number; because: string }

/** Annotations that the new Job carries, so that counts survive everything. */
const MARKS = "restarts restarts-of-cause restarted-from last-cause last-failure restart-now-done created touched"
  .split(" ")
  .map((mark) => PREFIX + mark)
const TTL_MARGIN_MS = 5_000

/** What failed: its cause, the last lines of its logs, the containers that were killed for memory, and whether its owner changed the Job. */
export type Failure = { cause: Cause; lines: string[]; killed: string[]; changed?: boolean }

export const UNKNOWN: Failure = { cause: "unknown", lines: [], killed: [] }

/** What failed, from the last failed attempt. */
export function failureOf(job: JobView, { pods, logs }: Evidence): Failure {
  const last = lastFailedPod(pods)
  const containers = last?.containers ?? []
  const lines = containers.flatMap(({ name }) => logs.get(`${last?.uid}/${name}`)?.lines ?? [])
  return { cause: causeOf(job, pods), lines, killed: containers.filter(isOomKilled).map(({ name }) => name) }
}

/** What to do with a Job that failed like this, if it failed. Pure: the same input gives the same answer after a crash. */
export function decide(job: JobView, failure: Failure, config: Config, now: number): Decision {
  const leave = (because: string, healthy = true): Decision => ({ do: "leave", because, healthy })
  if (!isSelected(job, config)) return leave("it is not selected")
  if (job.deleting) return leave("it is being deleted")
  if (job.phase === "succeeded") return leave("it has succeeded")
  if (job.manager) return leave(job.manager, false)
  const { maxRestarts, rules, delayMs, paused } = overridesOf(job, config)
  if (paused) return leave(`its annotation ${PREFIX}paused is true`, false)
  if (job.phase === "failing") return leave("it is failing: its pods are being stopped")
  if (job.failedAt === undefined) return leave(job.phase === "suspended" ? "it is suspended" : "it is running")
  if (isWantedNow(job))
    return { do: "restart", dueAt: job.failedAt, because: `its annotation ${PREFIX}restart-now asks for it` }
  if (maxRestarts !== undefined && restartsInRow(job, failure) >= maxRestarts)
    return { do: "give up", because: `it was restarted ${maxRestarts} times in a row without a success` }
  const rule = rules.find((r) => covers(r.cause, failure))
  if (rule?.wait === "never") return { do: "give up", because: `rule ${rule.text}` }
  const again = rule ? restartsUnder(job, rule.cause, failure) : 0
  const because = rule
    ? `rule ${rule.text}${again > 0 ? `, failure ${again + 1} in a row` : ""}`
    : `RESTART_DELAY ${durationText(delayMs)}`
  const wantedAt = job.failedAt + (rule ? growing(rule.wait as { fromMs: number; toMs: number }, again) : delayMs)
  const dueAt = beforeTtl(job, wantedAt)
  return {
    do: now >= dueAt ? "restart" : "wait",
    dueAt,
    because: dueAt < wantedAt ? `${because}, but its TTL comes before` : because,
  }
}

/** What a person's wish to restart a Job now comes to, whatever rules and limits say: only what has ended is restarted. */
export function decideOnWish(job: JobView): Decision {
  const leave = (because: string): Decision => ({ do: "leave", because, healthy: true })
  if (job.deleting) return leave("it is being deleted")
  if (job.manager) return leave(job.manager)
  if (job.phase === "suspended") return leave("it is suspended; resume it instead")
  if (job.phase !== "failed" && job.phase !== "succeeded") return leave(`it is ${job.phase}`)
  return { do: "restart", dueAt: job.failedAt ?? 0, because: "a person asked for it" }
}

/** The rules that hold for a Job, in order, and what came of each. */
export function judgedRules(job: JobView, failure: Failure, config: Config): { rule: string; verdict: string }[] {
  const { rules } = overridesOf(job, config)
  const first = job.phase === "failed" ? rules.findIndex(({ cause }) => covers(cause, failure)) : -1
  const verdict = (i: number) =>
    i === first ? "matches" : first >= 0 && i > first ? "is not reached" : "does not match"
  return rules.map(({ text }, i) => ({
    rule: text,
    verdict: job.phase === "failed" ? verdict(i) : "counts when it fails",
  }))
}

/** When a failed Job is to be restarted, and with which others it keeps its distance. */
export type Schedule = { uid: string; dueAt: number; group: string }

/** The group of a Job; a restart that a person asks for waits for no other. */
export function groupOf(job: JobView): string {
  const group = own(job, "group")
  return isWantedNow(job) ? `now ${job.uid}` : group === undefined ? `namespace ${job.namespace}` : `group ${group}`
}

/**
 * Which restarts may begin, the longest overdue first and in no group two closer than the spacing, when the next may, and the
 * last of each group from now on.
 */
export function admit(schedules: Map<string, Schedule>, lastAt: Map<string, number>, spacingMs: number, now: number) {
  // A last restart in the future is a clock that was moved back: taken for one of now, and kept so, or it would block until then.
  const past = [...lastAt].map(([group, at]) => [group, Math.min(at, now)] as const)
  const last = new Map(past.filter(([, at]) => at + spacingMs > now))
  const begin: string[] = []
  let nextAt = Number.POSITIVE_INFINITY
  for (const [key, { dueAt, group }] of [...schedules].sort(
    ([a, { dueAt: x }], [b, { dueAt: y }]) => x - y || (a < b ? -1 : 1),
  )) {
    const freeAt = Math.max(dueAt, (last.get(group) ?? Number.NEGATIVE_INFINITY) + spacingMs)
    if (freeAt > now) nextAt = Math.min(nextAt, freeAt)
    else {
      begin.push(key)
      last.set(group, now)
    }
  }
  return { begin, nextAt, lastAt: last }
}

/** Whether the settings choose this Job. */
export function isSelected(job: JobView, { jobNames, jobSelector }: Config): boolean {
  return (!jobNames || jobNames.includes(job.key)) && (!jobSelector || matches(jobSelector, job.labels))
}

/** One of our annotations on a Job. */
export const own = ({ annotations }: JobView, name: string): string | undefined => annotations[PREFIX + name]

/** Whether a person asks for a restart now; each value counts once, so that one kept in Git does not fire again. */
const isWantedNow = (job: JobView) =>
  own(job, "restart-now") !== undefined && own(job, "restart-now") !== own(job, "restart-now-done")

/** What a Job's own annotations set in place of the operator's settings; a wrong value changes nothing and is a problem. */
export function overridesOf(job: JobView, config: Config) {
  const problems: string[] = []
  const read = <T>(name: string, parse: (text: string) => T): T | undefined => {
    const text = own(job, name)
    try {
      return text === undefined ? undefined : parse(written(text))
    } catch (error) {
      problems.push(
        `annotation ${PREFIX}${name} cannot be ${quote(text ?? "")}, so the operator's setting holds: ${messageOf(error)}`,
      )
    }
  }
  const paused = read("paused", oneOf({ true: true, false: false })) ?? false
  read("oom-memory-max", quantity)
  const delayMs = read("restart-delay", duration(0)) ?? config.restartDelayMs
  const oomFirst = config.skipDelayOnOom ? parseRules(`oom=0s..${durationText(delayMs)}`) : []
  const rules = read("restart-rules", (text) => parseRules(text, false)) ?? [
    ...oomFirst,
    ...(config.restartRules ?? []),
  ]
  return {
    delayMs,
    rules,
    maxRestarts: read("max-restarts", wholeNumber(0, 1_000_000)) ?? config.maxRestarts,
    paused,
    problems,
  }
}

/** Whether a rule's cause is that of a failure. */
function covers(rule: RuleCause, { cause, lines }: Pick<Failure, "cause" | "lines">): boolean {
  if (rule.kind === "log") return lines.some((line) => rule.pattern.test(line))
  if (rule.kind !== "exit") return rule.kind === "any" || rule.kind === cause
  const code = cause.startsWith("exit:") ? Number(cause.slice(5)) : Number.NaN
  return code >= rule.least && code <= rule.most
}

/** How long the failure rests after so many in a row: from the first wait, doubled each time, to the longest; from 0 by 10 s. */
function growing({ fromMs, toMs }: { fromMs: number; toMs: number }, again: number): number {
  // The exponent is bounded, so that no count overflows.
  const doubled = 2 ** Math.min(fromMs > 0 ? again : again - 1, 40)
  return Math.min(toMs, fromMs > 0 ? fromMs * doubled : again === 0 ? 0 : 10_000 * doubled)
}

/** Restarts in a row; a change of the Job by its owner begins anew, and so does a person who asks for a restart. */
function restartsInRow(job: JobView, { changed }: Failure): number {
  return changed || isWantedNow(job) ? 0 : count(own(job, "restarts"))
}

/** Restarts in a row whose cause a rule covers; for a pattern, those of the same cause. */
function restartsUnder(job: JobView, rule: RuleCause | undefined, failure: Failure): number {
  const last = own(job, "last-cause") as Cause | undefined
  const same =
    last && (!rule || rule.kind === "log" ? last === failure.cause : covers(rule, { cause: last, lines: [] }))
  return same && restartsInRow(job, failure) > 0 ? count(own(job, "restarts-of-cause")) : 0
}

/** A count from an annotation; text that is none is 0. */
export const count = (text: string | undefined) => (/^\d{1,9}$/.test(text ?? "") ? Number(text) : 0)

/** A TTL would remove the failed Job before it is due: it is restarted just before. */
function beforeTtl({ ttlMs, failedAt = 0 }: JobView, dueAt: number): number {
  return ttlMs === undefined ? dueAt : Math.min(dueAt, failedAt + Math.max(0, ttlMs - TTL_MARGIN_MS))
}

/** The longest that a Job may have to wait, and what says so; `never` is no wait. */
export function longestWait(job: JobView, config: Config): { ms: number; from: string } {
  const { delayMs, rules } = overridesOf(job, config)
  const any = rules.findIndex(({ cause }) => cause.kind === "any")
  const waits = rules.slice(0, any < 0 ? rules.length : any + 1).flatMap(({ text, wait }) => {
    return wait === "never" ? [] : [{ ms: wait.toMs, from: `the longest wait of rule ${text}` }]
  })
  if (any < 0) waits.unshift({ ms: delayMs, from: "the restart delay" })
  return waits.reduce((a, b) => (b.ms > a.ms ? b : a), { ms: -1, from: "" })
}

/** Whether a failed Job that is gone was removed by its own TTL, not by a person; a second for clocks. */
export function wasRemovedByTtl({ ttlMs, failedAt }: JobView, goneAt: number): boolean {
  return ttlMs !== undefined && failedAt !== undefined && goneAt >= failedAt + ttlMs - 1_000
}

/** The annotations for the Job that comes after this one; one that has succeeded, and is restarted on a wish, ends the row. */
export function marksFor(job: JobView, failure: Failure, config: Config): Record<string, string> {
  const rule = overridesOf(job, config).rules.find(({ cause }) => covers(cause, failure))
  const again = restartsUnder(job, rule?.cause, failure)
  const { uid, failedAt = 0, phase } = job
  const [counts, last] =
    phase === "succeeded"
      ? [[0, 0], []]
      : [
          [restartsInRow(job, failure) + 1, again + 1],
          [failure.cause, instantText(failedAt)],
        ]
  const values = [...counts, uid, last[0], last[1], own(job, "restart-now")]
  return Object.fromEntries(MARKS.flatMap((mark, i) => (values[i] === undefined ? [] : [[mark, String(values[i])]])))
}

const SERVER_METADATA =
  "uid resourceVersion generation creationTimestamp deletionTimestamp deletionGracePeriodSeconds selfLink managedFields".split(
    " ",
  )
const SERVER_FINALIZERS = ["foregroundDeletion", "orphan"]
const SERVER_LABELS = [
  "controller-uid",
  "job-name",
  "batch.kubernetes.io/controller-uid",
  "batch.kubernetes.io/job-name",
]

/**
 * The Job to create anew: the live one without exactly what the server made (pkg/registry/batch/job/strategy.go). All else
 * stays, unknown fields too: a list of fields to keep would lose those that a newer Kubernetes adds.
 */
export function replacementFor(live: Job): Job {
  const { status: _, metadata: m = {}, ...job } = structuredClone({ ...live, apiVersion: "batch/v1", kind: "Job" })
  const metadata = {
    ...without(m, SERVER_METADATA),
    labels: without(m.labels, SERVER_LABELS),
    annotations: without(m.annotations, ["batch.kubernetes.io/job-tracking"]),
    finalizers: (m.finalizers ?? []).filter((name) => !SERVER_FINALIZERS.includes(name)),
  }
  const spec = job.spec as NonNullable<Job["spec"]>
  if (spec.template?.metadata?.creationTimestamp === null) delete spec.template.metadata.creationTimestamp
  if (!spec.manualSelector) {
    delete (spec as Partial<typeof spec>).selector
    if (spec.template?.metadata) spec.template.metadata.labels = without(spec.template.metadata.labels, SERVER_LABELS)
  }
  // A Job without labels was given its template's, generated ones included (pkg/apis/batch/v1/defaults.go): it gets them again.
  const defaulted = Object.keys(m.labels ?? {}).length > Object.keys(metadata.labels).length
  if (defaulted && Bun.deepEquals(metadata.labels, spec.template?.metadata?.labels ?? {})) metadata.labels = {}
  return withoutEmpty({ ...job, metadata, spec })
}

function without<T extends object>(map: T | undefined, keys: string[]): T {
  return Object.fromEntries(Object.entries(map ?? {}).filter(([key]) => !keys.includes(key))) as T
}

/** Drops the maps and lists that cleaning has emptied. */
function withoutEmpty(job: Job): Job {
  for (const metadata of [job.metadata, job.spec?.template?.metadata]) {
    for (const field of ["labels", "annotations", "finalizers"] as const) {
      if (metadata && Object.keys(metadata[field] ?? {}).length === 0) delete metadata[field]
    }
  }
  return job
}

/** Whether two versions of a Job differ in something that a person wrote. */
export function isEdited(a: Job, b: Job): boolean {
  return !Bun.deepEquals(userPart(a), userPart(b))
}

/** Without the finalizers: from a Job that is going, their controllers take them off, and that is no edit. */
function userPart(job: Job): Job {
  const { metadata: { finalizers: _, ...metadata } = {}, ...rest } = replacementFor(job)
  return withoutEmpty({ ...rest, metadata: { ...metadata, annotations: without(metadata?.annotations, MARKS) } })
}

/** A fingerprint of what an owner changes in a Job: its spec, its labels, and the annotations that speak to us. */
export function contentOf(job: Job): string {
  const { metadata, spec } = userPart(job)
  const annotations = Object.entries(metadata?.annotations ?? {}).filter(([key]) => key.startsWith(PREFIX))
  // The server writes quantities in a form of its own: 1024Mi comes back as 1Gi.
  const sorted = (key: string, value: unknown) =>
    value && typeof value === "object" && !Array.isArray(value)
      ? Object.fromEntries(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1)))
      : key === "memory" && typeof value === "string"
        ? Math.round(bytesOf(value)) || value
        : value
  const text = JSON.stringify({ spec, labels: metadata?.labels, annotations: Object.fromEntries(annotations) }, sorted)
  return createHash("sha256").update(text).digest("hex").slice(0, 16)
}

/** Whether the owner has changed a Job since we created it. */
export function isChanged(job: Job): boolean {
  const created = job.metadata?.annotations?.[`${PREFIX}created`]
  return created !== undefined && created !== contentOf(job)
}

/** The label of an intent, with the Job's name, and the annotation with what no queue, collector, finalizer or selector may see. */
export const INTENT = `${PREFIX}intent`

/** Labels by which others would act on an intent: Kueue's queues, and what Argo CD prunes by. */
const MANAGERS_LABEL = /^kueue\.x-k8s\.io\/|^app\.kubernetes\.io\/instance$/

interface Hidden {
  name: string
  uid: string
  resourceVersion: string
  /** Where the TTL took the Job early: the instant before which it is not created again. */
  notBefore?: string
  metadata: Pick<NonNullable<Job["metadata"]>, "labels" | "ownerReferences" | "finalizers">
  spec: Pick<NonNullable<Job["spec"]>, "suspend" | "manualSelector" | "selector">
  templateLabels?: Record<string, string>
  /** New memory limits by container. */
  memory: Record<string, string> | undefined
}

/** What the new Job gets beside what the user wrote: our annotations, and memory. `notBefore`: see Hidden. */
export interface Plan {
  marks: Record<string, string>
  memory?: Record<string, string>
  notBefore?: number
}

/**
 * The intent for a restart of `live`: its replacement as a suspended Job, which gets no pods, passes the real admission, and
 * can be cleaned up or restored with kubectl alone.
 */
export function intentFor(live: Job, { marks, memory, notBefore }: Plan): Job {
  const { metadata: m = {}, spec: s, ...job } = replacementFor(live)
  const { labels, ownerReferences, finalizers, ...metadata } = m
  const { suspend, manualSelector, selector, template, ...spec } = s as NonNullable<Job["spec"]>
  const { name = "", uid = "", resourceVersion = "" } = live.metadata ?? {}
  const hidden: Hidden = {
    ...{ name, uid, resourceVersion, ...(notBefore === undefined ? {} : { notBefore: instantText(notBefore) }) },
    metadata: { labels, ownerReferences, finalizers } as Hidden["metadata"],
    spec: { suspend, manualSelector, selector } as Hidden["spec"],
    templateLabels: template.metadata?.labels as Record<string, string>,
    memory,
  }
  const managers = Object.keys(labels ?? {}).filter((key) => MANAGERS_LABEL.test(key))
  const templateLabels = without(template.metadata?.labels, SERVER_LABELS)
  return {
    ...job,
    metadata: {
      ...metadata,
      name: intentName(name, uid, resourceVersion),
      labels: { ...without(labels, managers), [INTENT]: name },
      annotations: { ...metadata.annotations, ...marks, [INTENT]: JSON.stringify(hidden) },
    },
    spec: { ...spec, suspend: true, template: labelled(template, templateLabels) },
  }
}

/** At most 51 characters: an Indexed Job's name needs room for the index in its pods' host names (pkg/apis/batch/validation). */
function intentName(name: string, uid: string, resourceVersion: string): string {
  return `${shortened(name)}-restart-${hashOf(`${name}/${uid}/${resourceVersion}`)}`
}
const shortened = (name: string) => name.slice(0, 30).replace(/[^a-z0-9]+$/, "")
const hashOf = (text: string) => createHash("sha256").update(text).digest("hex").slice(0, 12)

/** The record of a restart that is under way, as read back from the cluster. */
export type Intent = NonNullable<ReturnType<typeof readIntent>>

/** Reads an intent back; undefined for a Job that is none, or that somebody made unreadable. */
export function readIntent(job: Job) {
  const { namespace = "", name = "", uid = "", labels, annotations, deletionTimestamp } = job.metadata ?? {}
  if (labels?.[INTENT] === undefined) return undefined
  return attempt(() => {
    const hidden = JSON.parse(annotations?.[INTENT] ?? "") as Hidden
    const { name: jobName, uid: jobUid, resourceVersion: jobVersion } = hidden
    if (![jobName, jobUid, jobVersion].every((part) => typeof part === "string" && part !== "")) return undefined
    const marks = Object.fromEntries(Object.entries(annotations ?? {}).filter(([key]) => MARKS.includes(key)))
    const plan: Plan = { marks, memory: hidden.memory ?? {}, notBefore: instant(hidden.notBefore) ?? 0 }
    // `original`: the Job as it was, to see edits of it.
    const original = restored(job, hidden)
    const replacement = withMemory(original, plan.memory ?? {})
    return {
      namespace,
      name,
      uid,
      deleting: deletionTimestamp != null,
      jobName,
      jobUid,
      jobVersion,
      plan,
      original,
      replacement,
    }
  })
}

function restored(intent: Job, hidden: Hidden): Job {
  const { metadata: m = {}, spec: s, ...job } = replacementFor(intent)
  const { suspend: _, template, ...spec } = s as NonNullable<Job["spec"]>
  const metadata = {
    ...m,
    name: hidden.name,
    labels: {},
    ...hidden.metadata,
    annotations: without(m.annotations, [INTENT]),
  }
  const labels = hidden.templateLabels ?? template.metadata?.labels ?? {}
  return withoutEmpty({ ...job, metadata, spec: { ...spec, ...hidden.spec, template: labelled(template, labels) } })
}

const labelled = (template: Template, labels: Record<string, string>) => ({
  ...template,
  metadata: { ...template.metadata, labels },
})
type Template = NonNullable<Job["spec"]>["template"]

/**
 * After an out-of-memory kill: twice the memory for the containers that were killed, up to the Job's annotation
 * `oom-memory-max`. Empty where there is no such annotation, no limit, or the most is reached.
 */
export function moreMemory(job: Job, { killed }: Failure): Record<string, string> {
  const most = written(job.metadata?.annotations?.[`${PREFIX}oom-memory-max`])
  return Object.fromEntries(
    containersOf(job).flatMap(({ name, resources }) => {
      const limit = String(resources?.limits?.memory ?? "")
      if (!killed.includes(name) || bytesOf(limit) === 0 || bytesOf(limit) >= bytesOf(most)) return []
      const doubled = limit.replace(/^[\d.]+/, (number) => String(Number(number) * 2))
      return [[name, bytesOf(limit) * 2 > bytesOf(most) ? most : doubled]]
    }),
  )
}

/** A quantity's value; 0 for text that is none, and for a limit of 0, which limits nothing. */
const bytesOf = (text: string) => attempt(() => quantity(text)) ?? 0

const containersOf = ({ spec }: Job) => [
  ...(spec?.template.spec?.initContainers ?? []),
  ...(spec?.template.spec?.containers ?? []),
]

/** A Job with new memory limits; the request follows where it was equal. The first value stays in an annotation. */
function withMemory(original: Job, memory: Record<string, string>): Job {
  const job = structuredClone(original)
  const first = (job.metadata?.annotations?.[`${PREFIX}oom-memory-first`] ?? "").split(",").filter(Boolean)
  for (const { name, resources } of containersOf(job)) {
    const [limits, requests, limit] = [resources?.limits, resources?.requests, memory[name]]
    if (!limits || limit === undefined) continue
    if (!first.some((entry) => entry.startsWith(`${name}=`))) first.push(`${name}=${limits.memory}`)
    if (requests?.memory === limits.memory) Object.assign(requests ?? {}, { memory: limit })
    limits.memory = limit
  }
  if (Object.keys(memory).length > 0 && first.length > 0)
    job.metadata = {
      ...job.metadata,
      annotations: { ...job.metadata?.annotations, [`${PREFIX}oom-memory-first`]: first.join() },
    }
  return job
}

/** The intent that counts where several stand for one Job: the one of the newest version, whatever uid. */
export function newest(intents: Intent[]): Intent | undefined {
  const standing = intents.filter(({ deleting }) => !deleting)
  return standing.sort((a, b) => compareVersions(a.jobVersion, b.jobVersion)).at(-1)
}

/** resourceVersions are whole numbers that grow (KEP-5504). */
const compareVersions = (a: string, b: string) => a.length - b.length || (a < b ? -1 : a > b ? 1 : 0)

export type Step = "delete" | "await absence" | "rewrite" | "await due time" | "create" | "finish" | "discard"

/**
 * How a restart goes on, from the intent and the live Job alone: the same rules for this life, the next one, and two
 * operators at once. Once the intent stands and the Job is absent, it is created: whether our delete, an earlier life's or
 * a person's removed it cannot be told apart, and never losing a Job beats never resurrecting one.
 */
export function nextStep(intent: Intent, live: Job | undefined, now: number): Step {
  if (!live) return now < (intent.plan.notBefore ?? 0) ? "await due time" : "create"
  const { uid, resourceVersion, deletionTimestamp } = live.metadata ?? {}
  if (uid !== intent.jobUid) return "finish"
  if (deletionTimestamp) return isEdited(live, intent.original) ? "rewrite" : "await absence"
  // A delete with an older version as its precondition can never succeed: this intent is void, and safe to remove.
  return resourceVersion === intent.jobVersion ? "delete" : "discard"
}

/** Whether a pod of the old Job keeps the new one waiting. An orphaned one that has ended does no harm, unless it would be adopted. */
export function isInTheWay(pod: Pod, { jobUid, replacement }: Intent): boolean {
  const owners = pod.metadata?.ownerReferences ?? []
  if (owners.some(({ uid }) => uid === jobUid)) return true
  if (owners.some(({ controller }) => controller)) return false
  return replacement.spec?.manualSelector === true || !["Succeeded", "Failed"].includes(pod.status?.phase ?? "")
}

/** A past failure, as the metadata of its record tells it; `restarts` in a row before it. */
export type PastFailure = ReturnType<typeof readPast>
const HISTORY_OF_GONE_MS = 30 * 86_400_000

/** The label of what the operator keeps in ConfigMaps, `failure` or `settings`; and that of a record with its Job's name. */
export const RECORD = `${PREFIX}record`
export const RECORD_JOB = `${PREFIX}job`

/** The ConfigMap with the operator's settings, for the commands. */
export const SETTINGS_MAP = `${project.name}-settings`

/** Reads the metadata of a record, of its own `name`; never throws. */
export function readPast({ name = "", namespace = "", labels, annotations, creationTimestamp }: Metadata) {
  const fact = (key: string) => annotations?.[PREFIX + key] ?? ""
  const failedAt = instant(fact("failed-at")) ?? instant(creationTimestamp) ?? 0
  const startedAt = instant(fact("started-at"))
  const [job, cause] = [labels?.[RECORD_JOB] ?? "", (fact("cause") || "unknown") as Cause]
  const restarts = count(fact("restarts"))
  return {
    name,
    namespace,
    job,
    uid: fact("uid"),
    cause,
    startedAt,
    failedAt,
    restarts,
    summary: fact("summary"),
    decided: fact("decided"),
  }
}

/** The records to remove: those before the last so many of each Job; all of a Job that is not `there`, after 30 days. */
export function staleRecords(
  records: PastFailure[],
  limit: number,
  isThere: (job: string) => boolean,
  now: number,
): PastFailure[] {
  return [...Map.groupBy(records, ({ job }) => job)].flatMap(([job, all]) => {
    const newestFirst = all.sort(
      (a, b) => b.failedAt - a.failedAt || b.restarts - a.restarts || (a.name < b.name ? -1 : 1),
    )
    const isOld = !isThere(job) && now - (newestFirst[0]?.failedAt ?? 0) > HISTORY_OF_GONE_MS
    return newestFirst.slice(isOld ? 0 : limit)
  })
}

/** The label selector that finds the pods of an intent's old Job. */
export function podSelector({ jobUid, replacement }: Intent): string {
  const { manualSelector, selector } = replacement.spec ?? {}
  if (!manualSelector || !selector) return `batch.kubernetes.io/controller-uid=${jobUid}`
  const { matchLabels = {}, matchExpressions = [] } = selector as V1LabelSelector
  const operators: Record<string, string> = { Exists: "", DoesNotExist: "!", In: " in ", NotIn: " notin " }
  const expressions = matchExpressions.map(({ key, operator, values }) => {
    return values?.length ? `${key}${operators[operator]}(${values.join(",")})` : `${operators[operator]}${key}`
  })
  return [...Object.entries(matchLabels).map(([key, value]) => `${key}=${value}`), ...expressions].join(",")
}

// ─────────────────────────────────────────── 4 How we say it ──────────────────────────────────────────

/**
 * What goes with a fact: `lines` stand indented under the text, the rest are fields for log collectors. `reason` is the word that
 * an Event has; `cause` stands with a failure, `result` and `lateMs` (after it was due) with the end of a restart, `phase` with a Job
 * that is left alone. An ERROR with a `job` is an alarm.
 */
export type Details = {
  lines?: string[]
  job?: string
  reason?: string
  cause?: Cause
  result?: string
  lateMs?: number
  phase?: string
  [field: string]: unknown
}
/** Says one fact, to whoever listens: the log, the metrics, a person's phone. */
export type Say = (level: Level, text: string, details?: Details) => void

const UNPRINTABLE = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]/gu

/** Text with all that could break a line, forge a record or drive a terminal made visible. */
export function printable(text: string): string {
  return text.replaceAll("\t", " ").replace(UNPRINTABLE, (c) => `\\u{${(c.codePointAt(0) as number).toString(16)}}`)
}

const SECRET_WORD =
  "(?:(?:api|access|private)[_ -]?key|secret|token|passw(?:or)?d|passphrase|pwd|credentials?|signature|verifier|cookie)"
const IS = `(?:\\\\*["']|%2[27])?\\s*(?:[:=]+>?|%3[ad])\\s*`
// In quotes, which may be escaped themselves (JSON in JSON) and follow a word (b'...'); where they are not closed, to the end of line.
// Each repeat of a group takes stack: beyond a hundred thousand the engine turns slow, and then finds nothing.
const QUOTED = `(?:[bfru]{1,2}|\\w{0,20}[([{])?(?:"[^"\\\\]*(?:\\\\[^][^"\\\\]*){0,20000}"|'[^'\\\\]*(?:\\\\[^][^'\\\\]*){0,20000}'|["'][^\\n]*|(\\\\+)["'].*?(?:(?<!\\\\)\\2["']|$))`
const SECRET_VALUE = `(?:${QUOTED}|[^\\s"'&,;<>]+)`
const SOURCE_FILE = "(?![\\w-]{0,40}\\.(?:[cm]?[jt]sx?|py|go|rb|rs|java|kt|php|cs|cc?|cpp|h):\\d)"
const SECRETS: [RegExp, string][] = [
  [/-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)/g, "***"],
  // A key whose beginning is above the last lines.
  [/^[\w+/=\s\\]*-----END [A-Z ]*PRIVATE KEY-----/g, "***"],
  [
    new RegExp(
      `((?:authorization|cookie)${IS})(?:${QUOTED}|(?:[^"'\\n]+|(?<==\\\\*)["'][^"'\\n]*["']?){1,20000})`,
      "gim",
    ),
    "$1***",
  ],
  [/\b((?:[Bb]earer|[Bb]asic|BEARER|BASIC)\s+)(?=[A-Z]?[a-z.-]*[A-Z\d+/=_~])[\w+/=.~-]{8,}/g, "$1***"],
  [new RegExp(`(${SECRET_WORD}${SOURCE_FILE}[\\w.-]{0,40}${IS})${SECRET_VALUE}`, "gim"), "$1***"],
  [new RegExp(`(<[\\w:-]{0,40}${SECRET_WORD}[\\w-]{0,40}>)[^<]+`, "gi"), "$1***"],
  [
    new RegExp(`((?<![\\w-])--?(?:[\\w.-]{0,40}[-_.])?${SECRET_WORD}[\\w-]{0,40}\\s+)(?!-)${SECRET_VALUE}`, "gim"),
    "$1***",
  ],
  [new RegExp(`(\\bValue:|"value":\\s*)${QUOTED}`, "g"), '$1"***"'],
  [/(\w:\/\/)[^\s/?#"'<>]+@/g, "$1***@"],
  [/(?<![\w-])eyJ[\w-]{8,}\.[\w-]+\.[\w-]*/g, "***"],
]

/** Text with what looks like a secret replaced by `***`. */
export function maskSecrets(text: string): string {
  return SECRETS.reduce((masked, [pattern, replacement]) => masked.replace(pattern, replacement), text)
}

export const safe = (text: string) => printable(maskSecrets(text))
export const quote = (text: string) => JSON.stringify(text.length > 200 ? `${text.slice(0, 200)}…` : text)

/** `1h30m`, `45s`, `250ms`. */
export function durationText(ms: number): string {
  if (ms !== 0 && Math.abs(ms) < 1_000) return `${Math.round(ms)}ms`
  const s = Math.round(Math.abs(ms) / 1_000)
  const text = `${Math.floor(s / 86_400)}d${Math.floor(s / 3_600) % 24}h${Math.floor(s / 60) % 60}m${s % 60}s`
  return (ms < 0 ? "-" : "") + (text.replace(/(?<!\d)0[dhms]/g, "") || "0s")
}

/** An instant in UTC with Z, to the second. */
export const instantText = (at: number) => new Date(at).toISOString().replace(/\.\d+Z$/, "Z")

/** An error's message, with what caused it; never a stack. */
export function messageOf(error: unknown): string {
  const { message, code, cause } = (error ?? {}) as { message?: string; code?: unknown; cause?: unknown }
  return (message || String(code ?? error)) + (cause ? `: ${messageOf(cause)}` : "")
}

/** One log record for people: one line, and its details indented below. */
export function textRecord(at: number, level: string, text: string, lines: string[] = []): string {
  const head = `${new Date(at).toISOString().replace("T", " ")} | ${level.toUpperCase().padEnd(8)} | ${safe(text)}\n`
  return head + lines.map((line) => `    ${safe(line)}\n`).join("")
}

/** One log record for collectors: one line of JSON. */
export function jsonRecord(at: number, level: string, text: string, details: object = {}): string {
  const clean = (_: string, value: unknown) => (typeof value === "string" ? safe(value) : value)
  return `${JSON.stringify({ time: new Date(at).toISOString(), level, message: text, ...details }, clean)}\n`
}

/** Rows as a table with a frame. */
export function table(rows: string[][]): string[] {
  const widths = (rows[0] ?? []).map((_, column) =>
    Math.max(...rows.map((row) => Bun.stringWidth(safe(row[column] ?? "")))),
  )
  const rule = (ends: string, joint: string) =>
    ends[0] + widths.map((width) => "─".repeat(width + 2)).join(joint) + ends[1]
  const line = (row: string[]) =>
    `│${row.map((cell, column) => ` ${safe(cell)}${" ".repeat((widths[column] ?? 0) - Bun.stringWidth(safe(cell)))} `).join("│")}│`
  return [rule("┌┐", "┬"), ...rows.map(line), rule("└┘", "┴")]
}

/** Rows in columns, two spaces apart. */
export function alignedRows(rows: string[][]): string[] {
  const cells = rows.map((row) => row.map(safe))
  const widths = (cells[0] ?? []).map((_, column) =>
    cells.reduce((most, row) => Math.max(most, Bun.stringWidth(row[column] ?? "")), 0),
  )
  const padded = (text: string, i: number) => text + " ".repeat((widths[i] ?? 0) - Bun.stringWidth(text) + 2)
  return cells.map((row) => row.map(padded).join("").trimEnd())
}

/** JSON for people: instants (`…At`) as text, every string masked, printable and at most so long. */
export function jsonText(value: unknown, most?: number): string {
  const clean = (key: string, part: unknown) =>
    typeof part === "string"
      ? safe(part).slice(0, most)
      : key.endsWith("At") && typeof part === "number"
        ? instantText(part)
        : part
  return JSON.stringify(value, clean, 1)
}

/** A decision in words: the fact, which stays the same, and the text with the time that is left. */
export function sayDecision(decision: Decision, now: number): { fact: string; text: string } {
  if (decision.do === "leave") return { fact: decision.because, text: `left alone, ${decision.because}` }
  if (decision.do === "give up") {
    const text = `given up: ${decision.because}; to go on, set a new ${PREFIX}restart-now on it, or delete it and apply it again`
    return { fact: text, text }
  }
  const fact = `to be restarted at ${instantText(decision.dueAt)}`
  return { fact, text: `${fact} (in ${durationText(Math.max(0, decision.dueAt - now))}): ${decision.because}` }
}

/** A Job's state in one word, for metrics. `refused`: it was due, but could not be created again. */
export function stateOf(view: JobView, decision: Decision | undefined, refusals: number): string {
  if (decision?.do === "give up") return "given_up"
  if (decision && "dueAt" in decision) return refusals > 0 ? "refused" : "waiting"
  return decision && !decision.healthy ? "left_alone" : view.deleting ? "deleting" : view.phase
}

/** A failure's evidence, as lines to stand under its headline. */
export function evidenceLines({ pods, logs, morePods }: Evidence): string[] {
  const lines = pods.flatMap((pod) => [
    `pod ${pod.name}${pod.index === undefined ? "" : ` (index ${pod.index})`} (${[pod.phase, pod.reason, pod.message].filter(Boolean).join(", ")})`,
    ...(pod.containers.length === 0 ? ["  no container known; exit code unknown"] : []),
    ...pod.containers.flatMap((container) => [
      `  ${containerLine(container)}`,
      ...tailLines(logs.get(`${pod.uid}/${container.name}`)),
    ]),
  ])
  return [
    ...lines,
    ...(pods.length === 0 ? ["no pods left"] : []),
    ...(morePods > 0 ? [`and ${morePods} more pods`] : []),
  ]
}

const tailLines = (tail: Tail | undefined) => [
  ...(tail?.note ? [`    (${tail.note})`] : []),
  ...(tail?.lines ?? []).map((line) => `    | ${line}`),
]

function containerLine(c: ContainerView): string {
  const facts = [
    c.ended
      ? `exit code ${c.exitCode ?? "not known"}`
      : c.state === "running"
        ? "still running, exit code not known"
        : "never started",
    c.signal && `signal ${c.signal}`,
    c.reason,
    c.message,
    c.startedAt && c.finishedAt && `ran ${durationText(c.finishedAt - c.startedAt)}`,
    c.finishedAt && `ended ${instantText(c.finishedAt)}`,
    c.restarts > 0 && `${c.restarts} restarts`,
  ]
  return `${c.init ? "init container" : "container"} ${c.name} (${facts.filter(Boolean).join(", ")})`
}

/** A decision for later readers: without the time that is left. */
function decidedText(decision: Decision): string {
  if ("dueAt" in decision) return `to be restarted at ${instantText(decision.dueAt)}: ${decision.because}`
  return `${decision.do === "leave" ? "left alone" : "given up"}: ${decision.because}`
}

const RECORD_BYTES = 256 << 10
const bytesIn = (text: string) => Buffer.byteLength(text) + 1
const bounded = (text: string) => safe(text).slice(0, 1_000)
const logKey = (pod: PodView, { name }: ContainerView) => `${pod.name}.${name}.txt`.slice(-253)

/**
 * The record of a failure: an immutable ConfigMap, named by the Job's uid and the failure's instant, so that it is written once
 * whoever writes it. Its metadata is enough for a table. Its data is at most 256 KiB (an object may have 1 MiB), of which each log
 * has an equal share: what it has more is cut off at its beginning.
 */
export function recordFor(job: JobView, evidence: Evidence, cause: Cause, decision: Decision): ConfigMap {
  const { namespace, name, uid, startedAt = job.createdAt, failedAt = 0, reason, message } = job
  const restarts = count(own(job, "restarts"))
  const decided = decidedText(decision)
  const { pods, morePods } = evidence
  const whole = { namespace, job: name, uid, failedAt, cause, reason, message, restarts, decided }
  const jsonOf = (from: number) => jsonText({ ...whole, morePods: morePods + from, pods: pods.slice(from) }, 1_000)
  let from = 0
  while (bytesIn(jsonOf(from)) > RECORD_BYTES / 2 && from < pods.length) from++
  const texts = logTexts({ ...evidence, pods: pods.slice(from) }, RECORD_BYTES - bytesIn(jsonOf(from)))
  const facts = {
    cause,
    "started-at": instantText(startedAt),
    "failed-at": instantText(failedAt),
    uid,
    restarts: String(restarts),
    summary: summaryOf(job, pods),
    decided,
  }
  return {
    apiVersion: "v1",
    kind: "ConfigMap",
    metadata: {
      ...{ namespace, name: `${shortened(name)}-failure-${hashOf(`${uid}/${failedAt}`)}` },
      labels: { [RECORD]: "failure", [RECORD_JOB]: name, [`${PREFIX}cause`]: cause.replace(":", "-") },
      annotations: Object.fromEntries(Object.entries(facts).map(([key, text]) => [PREFIX + key, bounded(text)])),
    },
    immutable: true,
    data: { "failure.json": jsonOf(from), ...texts },
  }
}

/** How the container that failed last has ended; without one, what the pod or the Job says. */
function summaryOf({ reason }: JobView, pods: PodView[]): string {
  const last = lastFailedPod(pods)
  const failed = latest(last?.containers.filter(hasFailed))
  if (!failed) return last?.reason || reason
  return [`${failed.name}: exit code ${failed.exitCode ?? "not known"}`, failed.reason].filter(Boolean).join(", ")
}

/** A text for each container: what it is, a note, and the last lines of its log, as many as its equal share of the bytes holds. */
function logTexts({ pods, logs }: Evidence, mostBytes: number): Record<string, string> {
  const all = pods.flatMap((pod) => pod.containers.map((container) => ({ pod, container })))
  const texts = all.map(({ pod, container }) => {
    const { lines = [], note = "" } = logs.get(`${pod.uid}/${container.name}`) ?? {}
    const head = [bounded(containerLine(container)), bounded(note)]
    let [from, left] = [lines.length, mostBytes / all.length - bytesIn(head.join()) - 40]
    while (from > 0 && left >= bytesIn(lines[from - 1] ?? "")) left -= bytesIn(lines[--from] ?? "")
    if (from > 0) head[1] = `the first ${from} of ${lines.length} lines are cut off`
    return [logKey(pod, container), `${[...head, ...lines.slice(from)].join("\n")}\n`]
  })
  return Object.fromEntries(texts)
}

/** Reads a record back; undefined for a ConfigMap that is none. What it holds may be anybody's: it is printed with care. */
export function readRecord({
  metadata = {},
  data = {},
}: ConfigMap): { past: PastFailure; reason: string; evidence: Evidence } | undefined {
  try {
    const revive = (key: string, value: unknown) => (key.endsWith("At") ? (instant(String(value)) ?? 0) : value)
    const { pods, morePods, reason, message } = JSON.parse(data["failure.json"] ?? "", revive) as Evidence & JobView
    const logs = pods.flatMap((pod) =>
      pod.containers.map((container): [string, Tail] => {
        const [, note = "", ...lines] = (data[logKey(pod, container)] ?? "").replace(/\n$/, "").split("\n")
        return [`${pod.uid}/${container.name}`, note ? { lines, note } : { lines }]
      }),
    )
    const why = [reason, message].filter(Boolean).join(", ")
    return { past: readPast(metadata), reason: why, evidence: { pods, logs: new Map(logs), morePods } }
  } catch {
    return undefined
  }
}

/** A Job as others name it. */
export type JobName = Pick<JobView, "key" | "namespace" | "name" | "uid">

/** An Event on a Job, for `kubectl describe`. Core v1: every Kubernetes shows it, and no second write is needed to count. */
export function eventFor(
  { namespace, name, uid }: JobName,
  level: Level,
  reason: string,
  text: string,
  now: number,
  random: number,
) {
  const at = instantText(now)
  return {
    apiVersion: "v1",
    kind: "Event",
    metadata: {
      namespace,
      name: `${name.slice(0, 200)}.${Math.floor(now).toString(16)}${Math.floor(random * 2 ** 32).toString(16)}`,
    },
    involvedObject: { apiVersion: "batch/v1", kind: "Job", namespace, name, uid },
    type: level === "info" || level === "debug" ? "Normal" : "Warning",
    reason,
    message: safe(text).slice(0, 1_000),
    source: { component: project.name },
    ...{ firstTimestamp: at, lastTimestamp: at, count: 1 },
  }
}

/** What the operator does in the cluster, `verb group/resource`, and what its lack costs; `!`: without it nothing is restarted. */
export const RIGHTS: Record<string, string> = {
  "list batch/jobs": "! no Job can be seen",
  "get batch/jobs": "! no Job can be looked at again before its delete",
  "create batch/jobs": "! no Job could be created again, so none is deleted",
  "delete batch/jobs": "! no failed Job can make room for its restart",
  "watch batch/jobs": "failures are seen by polling, up to CHECK_INTERVAL late",
  "list /pods": "causes of failures cannot be seen, nor whether old pods are gone",
  "watch /pods": "cause and log of a Job with restartPolicy OnFailure are lost when its pods go before the next look",
  "get /pods/log": "log lines of failed containers cannot be kept",
  "patch batch/jobs": "a new Job that the controller has overlooked is not touched to wake it",
  "create /events": "kubectl describe does not tell what was done; the log does",
  "create /configmaps": "failures are not recorded, and the commands do not know the settings",
  "list /configmaps": "records of failures are not kept to HISTORY_LIMIT",
  "delete /configmaps": "records of failures are not kept to HISTORY_LIMIT",
  "get /configmaps": "the commands do not know the settings",
  "patch /configmaps": "the commands do not know of changed settings",
}

/** Not asked for, but used where it is given: tells a wrong namespace from an empty one. */
export const NAMESPACE_RIGHT = "get /namespaces"

/** The answer of a SelfSubjectRulesReview. */
export type Rules = {
  incomplete: boolean
  resourceRules: { verbs: string[]; apiGroups?: string[]; resources?: string[]; resourceNames?: string[] }[]
}

/** The keys of RIGHTS, and NAMESPACE_RIGHT, that rules allow. Where they are incomplete or name single objects, only a real 403 tells. */
export function allowed({ incomplete, resourceRules }: Rules): Set<string> {
  const has = (list: string[] | undefined, value: string) =>
    list?.some((item) => item === value || item === "*") ?? false
  const allows = (right: string) => {
    const [verb = "", group = "", ...resource] = right.split(/[ /]/)
    return resourceRules.some(
      (r) => has(r.verbs, verb) && has(r.apiGroups, group) && has(r.resources, resource.join("/")),
    )
  }
  return new Set([...Object.keys(RIGHTS), NAMESPACE_RIGHT].filter((right) => incomplete || allows(right)))
}

// ──────────────────────────────────────────── 5 The cluster ───────────────────────────────────────────

/** An answer of the API server that is no success, a v1 Status. Branch on `status` and `reason`, never on the message. */
export class ApiError extends Error {
  override name = "ApiError"
  constructor(
    readonly status: number,
    readonly reason: string,
    message: string,
    readonly causes: string[] = [],
    readonly retryAfterMs = 0,
  ) {
    super(`${status} ${reason}: ${message}`)
  }
}

/** A configuration that cannot connect to any cluster; the message says what to do. */
export class ConfigError extends Error {
  override name = "ConfigError"
}

/** All that the operator does in a cluster. Every verb throws ApiError, or an Error where no answer came in time. */
export interface Cluster {
  readonly address: string
  /** Whether it is made sure that the server is the cluster's own. */
  readonly isVerified: boolean
  /** The proxy that the configuration names for it. */
  readonly proxy: string | undefined
  /** How far the server's clock is ahead of ours in ms, from the Date header of its last answer; good to a second. */
  skewMs(): number
  version(signal: AbortSignal): Promise<string>
  rules(namespace: string, signal: AbortSignal): Promise<Rules>
  /** Undefined where we may not know. */
  namespaceExists(namespace: string, signal: AbortSignal): Promise<boolean | undefined>
  /** Lists all pages, read from the store, not from a cache. Holds what `keep` returns for each Job, never the Jobs of two pages. */
  listJobs<T>(namespace: string, selector: string, keep: Keep<Job, T>, signal: AbortSignal): Promise<Listed<T>>
  getJob(namespace: string, name: string, signal: AbortSignal): Promise<Job | undefined>
  createJob(namespace: string, job: Job, signal: AbortSignal): Promise<Job>
  /** Writes an annotation, so that the Job controller looks at the Job again. */
  touchJob(job: JobName, annotation: string, value: string, signal: AbortSignal): Promise<unknown>
  /** Sets annotations, or removes those that are null. Rejected with Conflict unless uid and resourceVersion still hold. */
  annotateJob(job: JobVersion, annotations: Record<string, string | null>, signal: AbortSignal): Promise<Job>
  createEvent(namespace: string, event: object, signal: AbortSignal): Promise<unknown>
  /** Metadata alone: a hundredth of what logs would be. */
  listConfigMaps(namespace: string, selector: string, signal: AbortSignal): Promise<Listed<Metadata>>
  getConfigMap(namespace: string, name: string, signal: AbortSignal): Promise<ConfigMap | undefined>
  createConfigMap(namespace: string, map: ConfigMap, signal: AbortSignal): Promise<unknown>
  patchConfigMap(namespace: string, name: string, patch: ConfigMap, signal: AbortSignal): Promise<unknown>
  deleteConfigMap(namespace: string, name: string, signal: AbortSignal): Promise<unknown>
  deleteJob(namespace: string, name: string, options: DeleteOptions, signal: AbortSignal): Promise<void>
  /** As listJobs() does. */
  listPods<T>(namespace: string, selector: string, keep: Keep<Pod, T>, signal: AbortSignal): Promise<Listed<T>>
  readLog(namespace: string, pod: string, container: string, options: LogOptions, signal: AbortSignal): Promise<Tail>
  /** Ends when the server ends it; throws after silence and for an ERROR event. Yields bookmarks too. ConfigMaps as metadata. */
  watch<R extends keyof Watched>(
    namespace: string,
    resource: R,
    options: WatchOptions,
    signal: AbortSignal,
  ): Events<Watched[R]>
}
/** Reduces one object of a list to what its reader needs; undefined drops it. */
export type Keep<Item, Kept> = (item: Item) => Kept | undefined
/** What was kept of a list, and the version of the list. */
export type Listed<Kept> = { items: Kept[]; resourceVersion: string }
/** Of ConfigMaps the metadata alone. */
export type Watched = { jobs: Job; pods: Pod; configmaps: Pick<ConfigMap, "metadata"> }
export type JobVersion = Pick<JobView, "namespace" | "name" | "uid" | "resourceVersion">
export type Events<T> = AsyncIterable<{ type: string; object: T }>
export type LogOptions = { lines: number; previous: boolean }
export type DeleteOptions = { uid: string; resourceVersion?: string; propagationPolicy: "Foreground" | "Background" }
export type WatchOptions = { resourceVersion: string; selector?: string; silenceMs: number }

export const SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
const [CALL_LIMIT_MS, LOG_LIMIT_MS, PLUGIN_LIMIT_MS, PLUGIN_AHEAD_MS] = [30_000, 10_000, 25_000, 20_000]
const [BODY_BYTES, LOG_BYTES, TAIL_CHARACTERS, LINE_CHARACTERS, EVENT_CHARACTERS] = [
  128 << 20,
  1 << 20,
  256 << 10,
  1_000,
  16 << 20,
]

/** Where the configuration comes from, and how to read it, and read it again. `load` throws ConfigError. */
export type Source = { from: string; inCluster: boolean; load(): KubeConfig }
export type Env = Record<string, string | undefined>

/** KUBECONFIG if set, else the pod's ServiceAccount, else ~/.kube/config. Throws a ConfigError that names the places looked at. */
export function findSource(env: Env, serviceAccount = SERVICE_ACCOUNT, context?: string): Source {
  const paths = written(env.KUBECONFIG).split(":").filter(Boolean)
  const home = join(env.HOME || "/", ".kube", "config")
  if (paths.length > 0)
    return { from: `KUBECONFIG ${paths.join(", ")}`, inCluster: false, load: () => loadKubeconfig(paths, context) }
  if (context === undefined && existsSync(join(serviceAccount, "token")))
    return { from: "the pod's ServiceAccount", inCluster: true, load: () => loadInCluster(env, serviceAccount) }
  if (existsSync(home)) return { from: home, inCluster: false, load: () => loadKubeconfig([home], context) }
  const looked = `KUBECONFIG is not set, and there is neither a ServiceAccount in ${serviceAccount} nor ${home}`
  throw new ConfigError(
    `no cluster is configured: ${looked}. Set KUBECONFIG; on a k3s server to /etc/rancher/k3s/k3s.yaml`,
  )
}

function loadInCluster(
  { KUBERNETES_SERVICE_HOST: host, KUBERNETES_SERVICE_PORT: port }: Env,
  serviceAccount: string,
): KubeConfig {
  if (!host || !port)
    throw new ConfigError(
      "beside a ServiceAccount, KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT must both be set",
    )
  const config = new KubeConfig()
  const server = `https://${isIPv6(host) ? `[${host}]` : host}:${port}`
  config.loadFromClusterAndUser(
    { name: "in-cluster", server, caFile: join(serviceAccount, "ca.crt"), skipTLSVerify: false },
    { name: "service-account", authProvider: tokenFrom(join(serviceAccount, "token")) },
  )
  return config
}

/** client-node's authenticator for pods, which reads the file again every minute. */
const tokenFrom = (tokenFile: string) => ({ name: "tokenFile", config: { tokenFile } })

/** By kubectl's rules: the first file to name a thing wins, and a broken entry counts only where it is used. */
function loadKubeconfig(paths: string[], context?: string): KubeConfig {
  const files = paths.filter((path) => existsSync(path))
  if (files.length === 0) throw new ConfigError(`cannot read ${paths.join(", ")}: there is no such file`)
  const configs = files.map(readKubeconfig) as [KubeConfig, ...KubeConfig[]]
  const [config] = configs
  const firsts = <T extends { name: string }>(all: T[]) =>
    all.filter(({ name }, i) => all.findIndex((one) => one.name === name) === i)
  config.loadFromOptions({
    clusters: firsts(configs.flatMap(({ clusters }) => clusters)),
    users: firsts(configs.flatMap(({ users }) => users)),
    contexts: firsts(configs.flatMap(({ contexts }) => contexts)),
    currentContext: context ?? configs.map(({ currentContext }) => currentContext).find(Boolean),
  })
  checkKubeconfig(config, files.join(", "))
  return config
}

function readKubeconfig(file: string): KubeConfig {
  const config = new KubeConfig()
  try {
    config.loadFromFile(file, { onInvalidEntry: "filter" })
    const raw = Bun.YAML.parse(readFileSync(file, "utf8")) as {
      users?: { name: string; user?: { tokenFile?: string } }[] | null
    }
    const near = (path: string) => resolve(dirname(file), path)
    // client-node does not know a user's tokenFile, and does not run plugins well enough: see pluginRunner.
    config.users = config.users.map((user) => {
      const { token, exec, ...rest } = user
      const tokenFile = raw.users?.find(({ name }) => name === user.name)?.user?.tokenFile
      if (tokenFile) return { ...rest, authProvider: tokenFrom(near(tokenFile)) }
      const command = exec?.command?.includes("/") ? near(exec.command) : exec?.command
      return exec ? { ...rest, authProvider: { name: PLUGIN, config: { ...exec, command } } } : user
    })
    config.addAuthenticator(pluginRunner())
    return config
  } catch (error) {
    throw new ConfigError(`cannot read ${file} as a kubeconfig: ${messageOf(error)}`)
  }
}

/** A credential plugin as a kubeconfig names it, and what it gives (client.authentication.k8s.io). */
type Plugin = {
  apiVersion?: string
  command?: string
  args?: string[] | null
  env?: { name: string; value: string }[] | null
}
type Credential = {
  token?: string
  clientCertificateData?: string
  clientKeyData?: string
  expirationTimestamp?: string
}
const PLUGIN = "plugin"
/** What plugins inherit: connecting changes our own environment. */
const environmentAtStart = { ...process.env }

/**
 * An authenticator for plugins, in place of client-node's, which renews a credential only when it has expired, and neither
 * ends a plugin that hangs nor tells it what is asked. A fresh configuration runs the plugin again.
 */
function pluginRunner(): Parameters<KubeConfig["addAuthenticator"]>[0] {
  let credential: Credential | undefined
  return {
    isAuthProvider: ({ authProvider }) => authProvider?.name === PLUGIN,
    async applyAuthentication({ authProvider }, options) {
      const expiresAt = instant(credential?.expirationTimestamp) ?? Number.POSITIVE_INFINITY
      if (!credential || Date.now() >= expiresAt - PLUGIN_AHEAD_MS) credential = await runPlugin(authProvider.config)
      const { token, clientCertificateData: cert, clientKeyData: key } = credential
      Object.assign(
        options,
        cert && { cert, key },
        token && { headers: { ...options.headers, Authorization: `Bearer ${token}` } },
      )
    },
  }
}

/** Runs a plugin, in a process group of its own: what it has started ends with it when it takes too long. */
async function runPlugin({ apiVersion, command = "", args, env }: Plugin): Promise<Credential> {
  const asked = JSON.stringify({ apiVersion, kind: "ExecCredential", spec: { interactive: false } })
  const more = Object.fromEntries((env ?? []).map(({ name, value }) => [name, value]))
  const options = {
    env: { ...environmentAtStart, KUBERNETES_EXEC_INFO: asked, ...more },
    stderr: "pipe",
    detached: true,
  } as const
  try {
    const child = Bun.spawn([command, ...(args ?? [])], options)
    const ended = Promise.all([child.stdout.text(), child.stderr.text(), child.exited])
    const [said, complaint, code] = await within(
      PLUGIN_LIMIT_MS,
      new AbortController().signal,
      "we",
      () => ended,
    ).catch((error) => {
      if (child.exitCode === null) process.kill(-child.pid, "SIGKILL")
      throw error
    })
    if (code !== 0) throw new Error(`exit code ${code}: ${complaint.trim().slice(-500)}`)
    return readCredential(said)
  } catch (error) {
    throw new Error(`the credential plugin ${command} failed: ${messageOf(error)}`)
  }
}

function readCredential(text: string): Credential {
  // The parser's own message would show a piece of what may be a secret.
  const status = attempt(() => JSON.parse(text) as { status?: Credential })?.status
  const { token, clientCertificateData: cert, clientKeyData: key } = status ?? {}
  if (!status || (!token && !cert && !key))
    throw new Error("what it printed is no ExecCredential with a token or a client certificate")
  if (!cert !== !key) throw new Error("it needs to give a client certificate and its key, and gave one of them")
  return status
}

/** Says which part that is in use is missing or contradicts another. */
function checkKubeconfig(config: KubeConfig, file: string): void {
  const context = config.getContextObject(config.currentContext)
  const [cluster, user] = [config.getCurrentCluster(), config.getCurrentUser()]
  const [server, proxy] = [cluster?.server ?? "", cluster?.proxyUrl ?? "http://"]
  const [one, other] = [user?.certData || user?.certFile, user?.keyData || user?.keyFile]
  const problems: [unknown, string][] = [
    [!config.currentContext, "current-context is missing; choose one with kubectl config use-context NAME"],
    [!context, `current-context names ${config.currentContext}, of which there is no usable context`],
    [!cluster, `context ${context?.name} names cluster ${context?.cluster}, of which there is none with a server`],
    [context?.user && !user, `context ${context?.name} names user ${context?.user}, of which there is none`],
    [
      cluster?.skipTLSVerify && (cluster.caData || cluster.caFile),
      "insecure-skip-tls-verify cannot stand beside a certificate authority",
    ],
    [!URL.canParse(server) || !/^https?:/.test(server), `server ${safe(server)} is no URL with https`],
    [!/^https?:\/\//.test(proxy), `proxy-url ${safe(proxy)} cannot be used, only http and https proxies can`],
    [!one !== !other, `user ${user?.name} needs a client certificate and its key, and has one of them`],
  ]
  const problem = problems.find(([is]) => is)
  if (problem) throw new ConfigError(`${file}: ${problem[1]}`)
  // client-node forgets the cluster's CA for a context without a user.
  if (cluster && !user) config.loadFromClusterAndUser(cluster, { name: "anonymous" })
}

type Init = RequestInit & BunFetchRequestInit
type Query = Record<string, string | undefined>
type Call<T = unknown> = {
  query?: Query
  body?: object
  limitMs?: number
  accept?: string
  read?: (response: Response) => Promise<T>
}
const METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
const METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
/** One page of a list; `continue` leads to the next. */
type Page<T> = { items: T[] | null; metadata: { resourceVersion: string; continue?: string } }
const PAGE_ITEMS = "500"
/** Hears of each call: its verb as Kubernetes names it, and the status, `none` where no answer came. */
export type OnCall = (verb: string, code: string) => void
const VERBS: Record<string, string> = { GET: "get", POST: "create", PATCH: "patch", DELETE: "delete" }

/** Connects with a configuration; nothing is sent yet. Throws ConfigError. */
export function connect(source: Source, env: Env = process.env, onCall: OnCall = () => {}): Cluster {
  const server = new ApiServer(source, onCall)
  // A proxy from the environment is for the way out; the API server of the pod's own cluster is never beyond it. Bun's fetch
  // heeds no_proxy before NO_PROXY, and either of them before the proxy that it is given, which is the kubeconfig's.
  if (source.inCluster) env.NO_PROXY = env.no_proxy = "*"
  else if (server.proxy) env.NO_PROXY = env.no_proxy = ""
  return verbsOf(server)
}

/** What each verb asks of the API server. */
function verbsOf(server: ApiServer): Cluster {
  const { address, isVerified, proxy } = server
  return {
    ...{ address, isVerified, proxy, skewMs: () => server.skew },
    version: (signal) =>
      server.send<{ gitVersion: string }>("GET", "/version", signal).then(({ gitVersion }) => gitVersion),
    async rules(namespace, signal) {
      const body = { apiVersion: "authorization.k8s.io/v1", kind: "SelfSubjectRulesReview", spec: { namespace } }
      const path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
      const { status } = await server.send<{ status: Rules }>("POST", path, signal, { body })
      return { incomplete: status.incomplete, resourceRules: status.resourceRules ?? [] }
    },
    namespaceExists(namespace, signal) {
      const look = server.send("GET", `/api/v1/namespaces/${encodeURIComponent(namespace)}`, signal)
      return look.then(() => true).catch((error) => (isReason(error, "NotFound") ? false : undefined))
    },
    listJobs: (namespace, selector, keep, signal) => server.list(pathOf("jobs", namespace), selector, keep, signal),
    getJob: (namespace, name, signal) => server.find(pathOf("jobs", namespace, name), signal),
    createJob: (namespace, body, signal) => server.send("POST", pathOf("jobs", namespace), signal, { body }),
    touchJob({ namespace, name, uid }, annotation, value, signal) {
      const body = { metadata: { uid, annotations: { [annotation]: value } } }
      return server.send("PATCH", pathOf("jobs", namespace, name), signal, { body })
    },
    annotateJob({ namespace, name, uid, resourceVersion }, annotations, signal) {
      const body = { metadata: { uid, resourceVersion, annotations } }
      return server.send("PATCH", pathOf("jobs", namespace, name), signal, { body })
    },
    createEvent: (namespace, body, signal) => server.send("POST", pathOf("events", namespace), signal, { body }),
    listConfigMaps(namespace, selector, signal) {
      const keep = ({ metadata }: { metadata: Metadata }) => metadata
      return server.list(pathOf("configmaps", namespace), selector, keep, signal, METADATA_LIST)
    },
    getConfigMap: (namespace, name, signal) => server.find(pathOf("configmaps", namespace, name), signal),
    createConfigMap: (namespace, body, signal) =>
      server.send("POST", pathOf("configmaps", namespace), signal, { body }),
    patchConfigMap: (namespace, name, body, signal) =>
      server.send("PATCH", pathOf("configmaps", namespace, name), signal, { body }),
    deleteConfigMap: (namespace, name, signal) => server.send("DELETE", pathOf("configmaps", namespace, name), signal),
    deleteJob(namespace, name, { propagationPolicy, ...preconditions }, signal) {
      return server.send("DELETE", pathOf("jobs", namespace, name), signal, {
        body: { propagationPolicy, preconditions },
      })
    },
    listPods: (namespace, selector, keep, signal) => server.list(pathOf("pods", namespace), selector, keep, signal),
    readLog(namespace, pod, container, { lines, previous }, signal) {
      const query = {
        container,
        tailLines: String(lines),
        limitBytes: String(LOG_BYTES),
        previous: previous ? "true" : undefined,
      }
      const read = (response: Response) => readTail(response, lines)
      return server.send("GET", `${pathOf("pods", namespace, pod)}/log`, signal, { query, limitMs: LOG_LIMIT_MS, read })
    },
    watch: (namespace, resource, options, signal) =>
      server.watch(pathOf(resource, namespace), options, signal, resource === "configmaps" ? METADATA : ""),
  }
}

/** The API server over HTTPS: the only place that talks to the cluster. */
class ApiServer {
  readonly address: string
  readonly isVerified: boolean
  readonly proxy: string | undefined
  skew = 0
  private config: KubeConfig
  private prepared: { at: number; init: Promise<Init> } | undefined

  constructor(
    private readonly source: Source,
    private readonly onCall: OnCall,
  ) {
    this.config = source.load()
    const { server = "", skipTLSVerify = false, proxyUrl } = this.config.getCurrentCluster() ?? {}
    this.address = server.replace(/\/+$/, "")
    this.isVerified = server.startsWith("https:") && !skipTLSVerify
    this.proxy = proxyUrl
  }

  async *watch<T>(
    path: string,
    { resourceVersion, selector, silenceMs }: WatchOptions,
    signal: AbortSignal,
    accept: string,
  ) {
    const timeoutSeconds = String(240 + Math.floor(Math.random() * 60))
    const query = {
      watch: "true",
      allowWatchBookmarks: "true",
      timeoutSeconds,
      resourceVersion,
      labelSelector: selector,
    }
    const response = await this.send("GET", path, signal, { query, accept, read: async (opened) => opened })
    let rest = ""
    for await (const text of textOf(response, { silenceMs, signal })) {
      const lines = text.split("\n")
      lines[0] = `${rest}${lines[0]}`
      rest = lines.pop() ?? ""
      if (rest.length > EVENT_CHARACTERS) throw new Error("the watch sent an event without end")
      for (const line of lines) if (line) yield eventFrom<T>(line)
    }
  }

  /**
   * Reads a list page by page. Each page is reduced before the next is requested, so that memory holds what is kept and one
   * page, however long the list is. A continue token that expired between two pages starts the list again, once.
   */
  async list<T, K>(
    path: string,
    labelSelector: string,
    keep: Keep<T, K>,
    signal: AbortSignal,
    accept = "",
  ): Promise<Listed<K>> {
    const items: K[] = []
    const readPage = async (token?: string) => {
      const query = { limit: PAGE_ITEMS, labelSelector: labelSelector || undefined, continue: token }
      const page = await this.send<Page<T>>("GET", path, signal, { query, accept })
      for (const item of page.items ?? []) {
        const kept = keep(item)
        if (kept !== undefined) items.push(kept)
      }
      return page.metadata
    }
    for (let token: string | undefined, restarted = false; ; ) {
      try {
        const metadata = await readPage(token)
        token = metadata.continue
        if (!token) return { items, resourceVersion: metadata.resourceVersion }
      } catch (error) {
        if (restarted || !token || !isReason(error, "Expired")) throw error
        restarted = true
        token = undefined
        items.length = 0
      }
    }
  }

  /** Undefined where there is none. */
  find<T>(path: string, signal: AbortSignal): Promise<T | undefined> {
    return this.send<T>("GET", path, signal).catch((error) => exceptFor(error, "NotFound"))
  }

  async send<T>(method: string, path: string, signal: AbortSignal, call: Call<T> = {}): Promise<T> {
    const { limitMs = CALL_LIMIT_MS, read = json<T> } = call
    for (let again = false; ; again = true) {
      const used = this.credentials()
      try {
        return await within(limitMs, signal, `${method} ${path}`, async (limit) => {
          const response = await this.fetch(method, path, call, await used, limit)
          if (!response.ok) throw await errorFrom(response)
          return read(response)
        })
      } catch (error) {
        if (again || !isOutdated(error)) throw error
        this.forget(used)
      }
    }
  }

  private async fetch(method: string, path: string, call: Call, init: Init, signal: AbortSignal): Promise<Response> {
    const { query = {}, body, accept } = call
    const search = new URLSearchParams(defined(query))
    const url = `${this.address}${path}${search.size > 0 ? `?${search}` : ""}`
    const sentAt = Date.now()
    const type = method === "PATCH" ? "application/merge-patch+json" : "application/json"
    const headers = {
      ...(init.headers as Record<string, string>),
      "Content-Type": type,
      ...(accept && { Accept: accept }),
    }
    // Bun ends a body that is silent for 300 s unless its own timeout is off.
    const options = {
      ...init,
      headers,
      method,
      signal,
      redirect: "manual",
      timeout: false,
      body: JSON.stringify(body),
    } as const
    const verb = query.watch ? "watch" : query.limit ? "list" : (VERBS[method] ?? method)
    const response = await fetch(url, options).catch((error) => {
      this.onCall(verb, "none")
      throw error
    })
    this.onCall(verb, String(response.status))
    this.skew = skewFrom(response.headers.get("date"), sentAt, Date.now()) ?? this.skew
    return response
  }

  /** Credentials change on disk and expire: read again after 10 s. Parallel calls share one reading, and one run of a plugin. */
  private credentials(): Promise<Init> {
    if (this.prepared && Math.abs(Date.now() - this.prepared.at) < 10_000) return this.prepared.init
    const fresh = { at: Date.now(), init: prepare(this.config) }
    this.prepared = fresh
    fresh.init.catch(() => {
      if (this.prepared === fresh) this.prepared = undefined
    })
    return fresh.init
  }

  /** Only a fresh configuration sees what has changed in a kubeconfig, and runs a plugin again. */
  private forget(used: Promise<Init>): void {
    if (this.prepared?.init !== used) return
    this.config = this.source.load()
    this.prepared = undefined
  }
}

/** A body as JSON; one beyond all measure is not read on. */
export const json = async <T>(response: Response) => JSON.parse(await textUntil(response, BODY_BYTES)) as T
const textUntil = async (response: Response, bytes: number) =>
  (await Array.fromAsync(textOf(response, { bytes }))).join("")

function pathOf(resource: "jobs" | "pods" | "events" | "configmaps", namespace: string, name?: string): string {
  const group = resource === "jobs" ? "/apis/batch/v1" : "/api/v1"
  return `${group}/namespaces/${encodeURIComponent(namespace)}/${resource}${name === undefined ? "" : `/${encodeURIComponent(name)}`}`
}

/** Whether the server does not take our credentials, or we not its certificate: on disk there may be newer ones. */
const isOutdated = (error: unknown) =>
  error instanceof ApiError
    ? error.status === 401
    : /CERT|SIGNATURE/.test(String((error as { code?: unknown } | null)?.code))

/** Undefined for errors of these reasons; any other goes on. */
function exceptFor(error: unknown, ...reasons: string[]): undefined {
  if (!reasons.some((reason) => isReason(error, reason))) throw error
}

const isReason = (error: unknown, reason: string) =>
  error instanceof ApiError && (error.reason === reason || error.causes.includes(reason))

/** Whether the server will say the same again: no conflict, no weariness, no fault of its own. */
const isRefusal = (error: unknown): error is ApiError =>
  error instanceof ApiError && [400, 403, 404, 405, 413, 415, 422].includes(error.status)

/** Runs `work` with a signal that fires when the limit has passed or the caller stops; it never outlives that. */
async function within<T>(
  limitMs: number,
  signal: AbortSignal,
  what: string,
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const limit = new AbortController()
  const stop = () => limit.abort(signal.reason)
  const timer = setTimeout(() => limit.abort(new Error(`${what} got no answer in ${durationText(limitMs)}`)), limitMs)
  const aborted = new Promise<never>((_, reject) =>
    limit.signal.addEventListener("abort", () => reject(limit.signal.reason)),
  )
  signal.addEventListener("abort", stop)
  if (signal.aborted) stop()
  try {
    return await Promise.race([work(limit.signal), aborted])
  } finally {
    clearTimeout(timer)
    signal.removeEventListener("abort", stop)
  }
}

/** Headers and TLS for Bun's fetch, from client-node. */
async function prepare(config: KubeConfig): Promise<Init> {
  const options: RequestOptions & { headers: Record<string, string> } = { headers: {} }
  await config.applyToHTTPSOptions(options)
  const { headers, auth, ca, cert, key, servername: serverName, rejectUnauthorized = true } = options
  if (auth) headers.Authorization = `Basic ${Buffer.from(auth).toString("base64")}`
  if (headers.Authorization) headers.Authorization = headers.Authorization.trim()
  Object.assign(headers, { Accept: "application/json, */*", "User-Agent": `${project.name}/${project.version}` })
  // rejectUnauthorized is said either way: what is left open, NODE_TLS_REJECT_UNAUTHORIZED decides.
  const tls = { ca: ca?.toString(), cert: cert?.toString(), key: key?.toString(), serverName, rejectUnauthorized }
  return defined({ headers, tls: defined(tls), proxy: config.getCurrentCluster()?.proxyUrl })
}

const defined = (all: object) => Object.fromEntries(Object.entries(all).filter(([, value]) => value !== undefined))

/**
 * How far the server's clock is ahead in ms, by the Date header of an answer: it was written somewhere in the server's second, at
 * about half of the way. Undefined where the answer took so long that this tells less than it hides, or our clock was set back.
 */
export function skewFrom(date: string | null, sentAt: number, receivedAt: number): number | undefined {
  const [serverAt, tookMs] = [instant(date), receivedAt - sentAt]
  if (serverAt === undefined || tookMs < 0) return undefined
  const skewMs = serverAt + 500 - (sentAt + receivedAt) / 2
  return tookMs < 2_000 || Math.abs(skewMs) > tookMs ? skewMs : undefined
}

async function errorFrom(response: Response): Promise<ApiError> {
  const text = await textUntil(response, 64 << 10)
  const plain = { message: text, reason: response.status === 404 ? "NotFound" : "" }
  // A proxy's page, or half an answer, is no Status: the code alone must do.
  const status = { ...plain, ...attempt(() => JSON.parse(text) as Status), code: response.status }
  const header = response.headers.get("retry-after") ?? ""
  return errorOf(status, /^\d{1,6}$/.test(header) ? Number(header) : undefined)
}

/** What the API server calls a Status, as far as it counts here. */
type Status = {
  code?: number
  reason?: string
  message?: string
  details?: { causes?: { reason?: string }[]; retryAfterSeconds?: number }
}

function errorOf(
  { code = 500, reason = "", message, details }: Status,
  retryAfterSeconds = details?.retryAfterSeconds ?? 0,
): ApiError {
  const causes = (details?.causes ?? []).map((cause) => cause.reason ?? "")
  return new ApiError(code, reason, String(message).slice(0, 500), causes, retryAfterSeconds * 1_000)
}

/**
 * A body as text, until so many bytes, the signal, or its end; throws after silence. What is left is cancelled: an unread
 * body stays in memory (oven-sh/bun#10763), and so does one that is ended by an abort (oven-sh/bun#32659).
 */
async function* textOf(
  response: Response,
  {
    bytes = Number.POSITIVE_INFINITY,
    silenceMs = CALL_LIMIT_MS,
    signal,
  }: { bytes?: number; silenceMs?: number; signal?: AbortSignal },
): AsyncGenerator<string> {
  const reader = response.body?.getReader()
  const decoder = new TextDecoder()
  let silent = false
  const cancel = () => void reader?.cancel().catch(() => {})
  const giveUp = () => {
    silent = true
    cancel()
  }
  signal?.addEventListener("abort", cancel)
  try {
    for (let read = 0; reader && read < bytes && !signal?.aborted; ) {
      const timer = setTimeout(giveUp, silenceMs)
      const { done, value } = await reader.read().finally(() => clearTimeout(timer))
      if (silent) throw new Error(`no word for ${durationText(silenceMs)}`)
      if (done) return
      read += value.byteLength
      yield decoder.decode(value, { stream: true })
    }
  } finally {
    signal?.removeEventListener("abort", cancel)
    cancel()
  }
}

/** The last lines of a log. `limitBytes` cuts at the end, so it is far above what the lines need; and a server may ignore it. */
async function readTail(response: Response, lines: number): Promise<Tail> {
  let [text, length] = ["", 0]
  for await (const part of textOf(response, { bytes: LOG_BYTES, silenceMs: LOG_LIMIT_MS })) {
    text = (text + part).slice(-TAIL_CHARACTERS)
    length += part.length
  }
  return tailOf(text, lines, length > text.length || length >= LOG_BYTES)
}

/** The last lines of a log text, each cut to a bearable length. `cut`: the text is itself only a part. */
export function tailOf(text: string, lines: number, cut = false): Tail {
  // The kubelet answers 200 with this sentence when the runtime has removed the container (kubernetes/kubernetes#142258).
  if (/^unable to retrieve container logs for \S+$/.test(text))
    return { lines: [], note: "log not available, the container is removed" }
  const all = maskSecrets(text.replace(/\r?\n$/, "")).split(/\r?\n/)
  if (text === "") return { lines: [], note: "log empty, it may have been rotated" }
  const short = (line: string) =>
    line.length > LINE_CHARACTERS
      ? `${line.slice(0, LINE_CHARACTERS)}… ${line.length - LINE_CHARACTERS} more characters`
      : line
  const kept = lines > 0 ? all.slice(-lines).map((line) => printable(short(line))) : []
  const note = cut ? "log too long to read whole, cut" : kept.length === lines ? `last ${lines} lines` : ""
  return note ? { lines: kept, note } : { lines: kept }
}

function eventFrom<T>(line: string): { type: string; object: T } {
  const event = JSON.parse(line) as { type: string; object: T }
  if (event.type === "ERROR") throw errorOf({ message: "the watch ended with an error", ...(event.object as Status) })
  return event
}

// ────────────────────────────────────────────── 6 Acting ──────────────────────────────────────────────

/** Time, as far as it can be replaced. `sleep` ends early, without an error, when a signal fires. */
export interface Clock {
  now(): number
  sleep(ms: number, ...signals: AbortSignal[]): Promise<void>
}

/** What acting needs from outside. `stop`: begin nothing new. `kill`: give up what is under way; intents stay. */
export interface World {
  cluster: Cluster
  clock: Clock
  /** From 0 to 1. */
  random(): number
  say: Say
  config: Config
  stop: AbortSignal
  kill: AbortSignal
}

const SKEW_LIMIT_MS = 5_000
const EVIDENCE_PODS = 5
const EVIDENCE_LIMIT_MS = 20_000
const LONG_MS = 300_000

/** The instant it is for the API server, where the clocks differ by more than its Date header can tell. */
export function nowOf({ clock, cluster }: World): number {
  const skewMs = cluster.skewMs()
  return clock.now() + (Math.abs(skewMs) > SKEW_LIMIT_MS ? skewMs : 0)
}

/** Exponential from 0.25 s to 30 s, half of it by chance so that many do not come back at once; never less than the server asks. */
export function backoffMs(attempt: number, random: number, error: unknown): number {
  const most = Math.min(30_000, 250 * 2 ** Math.min(attempt, 10))
  return Math.max(error instanceof ApiError ? error.retryAfterMs : 0, most / 2) + (random * most) / 2
}

/**
 * Errors on the way of something that is tried until it works: each is said once, and the next try waits longer. A restart that
 * is refused, or long in trouble, is an ERROR: a person has to know.
 */
function troubles({ clock, random, say }: World, what: string, signal: AbortSignal, job?: string) {
  let [attempt, said, sinceAt] = [0, "", 0]
  return {
    async wait(error: unknown): Promise<void> {
      if (signal.aborted) return
      if (said === "") sinceAt = clock.now()
      const isLong = job !== undefined && clock.now() - sinceAt > LONG_MS
      const [level, text] = [isRefusal(error) || isLong ? "error" : "warning", messageOf(error)] as const
      if (`${level} ${text}` !== said)
        say(level, `${what}, trying again: ${text}`, job ? { job, reason: "HeldUp" } : {})
      said = `${level} ${text}`
      await clock.sleep(backoffMs(attempt++, random(), error), signal)
    },
    over(): void {
      if (said) say("info", `${what}: over after ${durationText(clock.now() - sinceAt)}`)
      ;[attempt, said] = [0, ""]
    },
  }
}

/** Looks at a failed Job's pods: those that the watch has kept, else those that are left. What cannot be read becomes a note. */
export async function gatherEvidence(
  world: World,
  job: JobView,
  kept: PodView[],
  earlier?: Evidence,
): Promise<Evidence> {
  const evidence: Evidence = { pods: [], logs: new Map(earlier?.logs), morePods: 0 }
  try {
    await within(EVIDENCE_LIMIT_MS, world.kill, "looking at its pods", async (signal) => {
      const isNew = (pod: PodView) => pod.jobUid === job.uid && !kept.some(({ uid }) => uid === pod.uid)
      const keepNew = (pod: Pod) => [viewPod(pod)].find(isNew)
      const selector = `batch.kubernetes.io/job-name=${job.name}`
      const list = () => world.cluster.listPods(job.namespace, selector, keepNew, signal)
      const all = lastFailedPod(kept) ? kept : [...kept, ...(await list()).items]
      const failed = all
        .filter(({ phase, containers }) => phase !== "Succeeded" || containers.some(hasFailed))
        .sort((a, b) => a.createdAt - b.createdAt)
      evidence.pods = failed.slice(-EVIDENCE_PODS)
      evidence.morePods = failed.length - evidence.pods.length
      await Promise.all(evidence.pods.map((pod) => readLogs(world, job.namespace, pod, evidence.logs, signal)))
    })
  } catch (error) {
    world.say("warning", `[${job.key}] its pods cannot be looked at: ${messageOf(error)}`)
  }
  return evidence
}

/** Reads each container's log until it was read after its end. What was read earlier stays if there is nothing better. */
async function readLogs(
  { cluster, config }: World,
  namespace: string,
  pod: PodView,
  logs: Map<string, Tail>,
  signal: AbortSignal,
): Promise<void> {
  const lines = config.logLines
  const read = async ({ name, state, ended }: ContainerView) => {
    const key = `${pod.uid}/${name}`
    if (lines === 0 || (state === "waiting" && !ended) || logs.get(key)?.final) return
    if (pod.gone)
      return void (logs.has(key) || logs.set(key, { lines: [], note: "log not available, the pod is gone" }))
    // In a container that runs again, the run that failed is the one before; where that is gone the server answers 400.
    const runsAgain = state === "running" && ended
    const tail = (previous: boolean) => cluster.readLog(namespace, pod.name, name, { lines, previous }, signal)
    const found = await tail(runsAgain)
      .catch((error) => (runsAgain ? tail(false) : Promise.reject(error)))
      .catch((error) => ({ lines: [], note: `log not available: ${messageOf(error)}` }))
    if (found.lines.length > 0 || !logs.has(key)) logs.set(key, { ...found, final: state !== "running" })
  }
  await Promise.all(pod.containers.map(read))
}

/** A refusal may be that of a server which has just started and does not know its Roles yet: it passes within half a minute. */
const REFUSALS = 7

/** Tries until it works or the program ends, in silence: it is nothing that a restart waits for. Throws a refusal that stays. */
export async function persist({ clock, random, stop }: World, work: () => Promise<unknown>): Promise<void> {
  for (let attempt = 1; ; attempt++) {
    try {
      return void (await work())
    } catch (error) {
      if (isRefusal(error) && attempt >= REFUSALS) throw error
      if (stop.aborted) return
      await clock.sleep(backoffMs(attempt, random(), error), stop)
    }
  }
}

/** Writes the record of a failure, if no other operator and no earlier life has, and removes what is too much of its Job's. */
export async function keepRecord(world: World, record: ConfigMap): Promise<void> {
  const { namespace = "", labels } = record.metadata ?? {}
  await world.cluster.createConfigMap(namespace, record, world.kill).catch((error) => exceptFor(error, "AlreadyExists"))
  await pruneRecords(world, namespace, `,${RECORD_JOB}=${labels?.[RECORD_JOB]}`)
}

/** Removes records that are too many or too old, in a namespace or as `more` selects. */
export async function pruneRecords(
  world: World,
  namespace: string,
  more = "",
  isThere = (_job: string) => true,
): Promise<void> {
  const { cluster, config, kill } = world
  const { items } = await cluster.listConfigMaps(namespace, `${RECORD}=failure${more}`, kill)
  const records = items.map(readPast)
  for (const { name } of staleRecords(records, config.historyLimit, isThere, nowOf(world)))
    await cluster.deleteConfigMap(namespace, name, kill).catch((error) => exceptFor(error, "NotFound"))
}

/** Writes the settings for the commands, unless they stand there already. */
export async function writeSettings(world: World, namespace: string): Promise<void> {
  const { cluster, config, kill } = world
  const data = variablesOf(config)
  const known = await cluster.getConfigMap(namespace, SETTINGS_MAP, kill)
  if (Bun.deepEquals(known?.data, data)) return
  const annotations = { [`${PREFIX}written-at`]: instantText(nowOf(world)), [`${PREFIX}version`]: project.version }
  const map = { metadata: { name: SETTINGS_MAP, labels: { [RECORD]: "settings" }, annotations }, data }
  if (known) await cluster.patchConfigMap(namespace, SETTINGS_MAP, map, kill)
  else await cluster.createConfigMap(namespace, { apiVersion: "v1", kind: "ConfigMap", ...map }, kill)
}

/**
 * How a restart ended. `replaced`: someone else has made the new Job. `changed`: the Job is not what it was, nothing was done.
 * `early`: by the server's clock, as the answer just come tells it, it is not due yet. `refused`: nothing was deleted.
 */
export type Outcome =
  | { result: "restarted" | "replaced"; uid: string }
  | { result: "refused"; error: ApiError }
  | { result: "changed" | "early" | "cancelled" | "namespace gone" | "interrupted" }
/** The newest version of a Job that anyone has seen, the watch or a read that is handed in: it knows of edits between two looks. */
export type LastSeen = (read?: Job) => Job | undefined

/** Restarts a Job if it is still due, or still as a person wishes. Until the intent stands, nothing has happened. */
export async function restartJob(
  world: World,
  job: JobView,
  failure: Failure,
  lastSeen: LastSeen,
  judge: typeof decide = decide,
): Promise<Outcome> {
  const live = await world.cluster.getJob(job.namespace, job.name, world.kill)
  lastSeen(live)
  const view = live && viewJob(live)
  if (!live || !view || view.uid !== job.uid) return { result: "changed" }
  const now = { ...failure, changed: failure.changed || isChanged(live) }
  const decision = judge(view, now, world.config, nowOf(world))
  if (decision.do !== "restart") return { result: decision.do === "wait" ? "early" : "changed" }
  const intent = await writeIntent(world, live, {
    marks: marksFor(view, now, world.config),
    memory: moreMemory(live, now),
  })
  if (intent instanceof ApiError) return { result: "refused", error: intent }
  // Only an intent that was just seen to stand allows the delete. The rounds below see what came of it.
  if (intent) await sendDelete(world, intent).catch(() => {})
  const outcome = await carryOut(world, job.namespace, job.name, lastSeen)
  // The intent that stood there was another operator's, which has ended its restart, or given it up while the Job stands.
  return !intent && outcome.result === "cancelled" ? { result: "changed" } : outcome
}

/** A Job that its TTL took before it was due: kept as an intent, and created when due. */
export async function keepExpired(
  world: World,
  gone: Job,
  failure: Failure,
  notBefore: number,
  lastSeen: LastSeen,
): Promise<Outcome> {
  const { namespace, name, ...view } = viewJob(gone)
  const marks = marksFor({ namespace, name, ...view }, failure, world.config)
  const intent = await writeIntent(world, gone, { marks, memory: moreMemory(gone, failure), notBefore })
  if (isReason(intent, "NamespaceTerminating")) return { result: "namespace gone" }
  // It stands nowhere but in our memory: where a Job that stands could be left alone, this one is tried until it works.
  if (intent instanceof ApiError) throw intent
  return carryOut(world, namespace, name, lastSeen)
}

/** Writes an intent; undefined where one stands already, from an earlier life or another operator; the error where it is refused. */
async function writeIntent({ cluster, kill }: World, live: Job, plan: Plan): Promise<Intent | ApiError | undefined> {
  try {
    const made = readIntent(await cluster.createJob(live.metadata?.namespace ?? "", intentFor(live, plan), kill))
    return (
      made ??
      new ApiError(
        422,
        "Invalid",
        `the intent came back without ${INTENT}: a webhook has removed its label or annotation`,
      )
    )
  } catch (error) {
    if (isReason(error, "AlreadyExists")) return undefined
    if (isRefusal(error)) return error
    throw error
  }
}

function sendDelete({ cluster, kill }: World, { namespace, jobName, jobUid, jobVersion }: Intent): Promise<void> {
  return cluster.deleteJob(
    namespace,
    jobName,
    { uid: jobUid, resourceVersion: jobVersion, propagationPolicy: "Foreground" },
    kill,
  )
}

/** `left`: intents that are to be removed, when the outcome is known already and no lost answer can change it any more. */
type Round = Outcome | { outcome: Outcome; left: Intent[] } | { waitFor: string; untilAt?: number; known?: Intent }

/**
 * Carries a restart out to its end from wherever it stands, however long it takes: errors only slow it down. `atOnce`: also where
 * it is not due yet.
 */
export async function carryOut(
  world: World,
  namespace: string,
  name: string,
  lastSeen: LastSeen,
  atOnce = false,
): Promise<Outcome> {
  const { clock, kill, stop, say } = world
  const trouble = troubles(world, `[${namespace}/${name}] its restart is held up`, kill, `${namespace}/${name}`)
  // By what was slept: the clock may jump.
  let [waitedMs, warnAtMs, known] = [0, 60_000, undefined as Intent | undefined]
  let awaited = ""
  const now = () => (atOnce ? Number.POSITIVE_INFINITY : nowOf(world))
  let next = (): Promise<Round> => takeStep(world, { namespace, name }, now(), known, lastSeen)
  while (!kill.aborted) {
    const round = await next().catch((error: unknown) => ({ error }))
    if ("result" in round) return round
    if ("error" in round) {
      await trouble.wait(round.error)
      continue
    }
    trouble.over()
    if ("left" in round) {
      next = () => removeIntents(world, round.left).then(() => round.outcome)
      continue
    }
    known = round.known
    if (round.waitFor !== awaited) say("trace", `[${namespace}/${name}] waiting for ${round.waitFor}`)
    awaited = round.waitFor
    if (round.untilAt !== undefined && stop.aborted) break
    if (round.untilAt === undefined && waitedMs >= warnAtMs) {
      say("warning", `[${namespace}/${name}] still waiting for ${round.waitFor} after ${durationText(waitedMs)}`)
      warnAtMs = waitedMs + Math.min(3_600_000, waitedMs * 2)
    }
    const pauseMs = round.untilAt === undefined ? Math.min(30_000, Math.max(20, waitedMs / 5)) : 0
    await clock.sleep(pauseMs, kill)
    waitedMs += pauseMs
    while (nowOf(world) < (round.untilAt ?? 0) && !stop.aborted && !cameBack(known, lastSeen()))
      await clock.sleep(Math.min(30_000, (round.untilAt ?? 0) - nowOf(world)), stop)
  }
  return { result: "interrupted" }
}

/** One round: look, decide, act once. Intents are read from the store right before anything that relies on them. */
async function takeStep(
  world: World,
  { namespace, name }: Pick<JobName, "namespace" | "name">,
  now: number,
  known: Intent | undefined,
  lastSeen: LastSeen,
): Promise<Round> {
  // The intent first: a Job that was read before an intent was written looks like one that has moved on since.
  const before = known ?? newest(await listIntents(world, namespace, name))
  const live = await world.cluster.getJob(namespace, name, world.kill)
  lastSeen(live)
  if (!before) return withoutIntent(live)
  const step = nextStep(before, live, now)
  if (step === "await absence")
    return { waitFor: `the old Job to go, finalizers ${live?.metadata?.finalizers?.join(", ")}`, known: before }
  if (step === "await due time" && !cameBack(before, lastSeen()))
    return { waitFor: "its due time", untilAt: before.plan.notBefore ?? 0, known: before }
  if (step === "create") {
    const keep = (pod: Pod) => (isInTheWay(pod, before) ? (pod.metadata?.name ?? "") : undefined)
    const inTheWay = await podsOrNone(world, namespace, podSelector(before), keep)
    if (inTheWay.length > 0) return { waitFor: `pods of the old Job to go: ${inTheWay.join(", ")}`, known: before }
  }
  const intents = await listIntents(world, namespace, name)
  const intent = newest(intents)
  if (!intent) return withoutIntent(live)
  if (intent.name !== before.name) return { waitFor: "a newer intent", known: intent }
  return act(world, step, intent, intents, live, lastSeen())
}

/** Who removes the intent cancels the restart; a Job that still stands has lost no more than this try. */
function withoutIntent(live: Job | undefined): Outcome {
  return { result: live && !live.metadata?.deletionTimestamp ? "changed" : "cancelled" }
}

/** Pods that the Role does not let us see cannot be waited for: the Foreground delete has. A 403 that passes is an error like others. */
async function podsOrNone<T>(
  { cluster, kill }: World,
  namespace: string,
  selector: string,
  keep: Keep<Pod, T>,
): Promise<T[]> {
  try {
    return (await cluster.listPods(namespace, selector, keep, kill)).items
  } catch (error) {
    exceptFor(error, "Forbidden")
    if (allowed(await cluster.rules(namespace, kill)).has("list /pods")) throw error
    return []
  }
}

const isSeenAfter = (seen: Job, { jobVersion }: Intent) =>
  compareVersions(viewJob(seen).resourceVersion, jobVersion) > 0

/** Our create whose answer was lost, or somebody else's Job: it has come back, and may even be gone again. */
function cameBack(intent: Intent | undefined, seen: Job | undefined): boolean {
  return intent !== undefined && seen !== undefined && isSeenAfter(seen, intent) && viewJob(seen).uid !== intent.jobUid
}

async function act(
  world: World,
  step: Step,
  intent: Intent,
  intents: Intent[],
  live: Job | undefined,
  seen: Job | undefined,
): Promise<Round> {
  if (step === "finish") return finish(intents, live)
  if (!live && cameBack(intent, seen)) return finish(intents, seen)
  if (step === "create")
    return seen && isSeenAfter(seen, intent) && isEdited(seen, intent.original)
      ? rewrite(world, intent, seen)
      : create(world, intent, intents)
  if (step === "rewrite") return rewrite(world, intent, live as Job)
  if (step === "discard") return { left: intents, outcome: { result: "changed" } }
  // A conflict says that the Job has moved: the next round sees how. Absent is what we want.
  await sendDelete(world, intent).catch((error) => exceptFor(error, "Conflict", "NotFound"))
  return { waitFor: "its deletion", known: intent }
}

/** A person's edit of the terminating Job becomes an intent of its own. The newest wins; the older go when the Job is back. */
async function rewrite(world: World, intent: Intent, edited: Job): Promise<Round> {
  const { finalizers = [] } = intent.original.metadata ?? {}
  const written = await writeIntent(world, { ...edited, metadata: { ...edited.metadata, finalizers } }, intent.plan)
  if (written instanceof ApiError) throw written
  world.say("info", `[${intent.namespace}/${intent.jobName}] was edited while being deleted; the new Job gets the edit`)
  return { waitFor: "its deletion" }
}

async function create(world: World, intent: Intent, intents: Intent[]): Promise<Round> {
  try {
    const { metadata, ...job } = intent.replacement
    const annotations = { ...metadata?.annotations, [`${PREFIX}created`]: contentOf(intent.replacement) }
    const created = await world.cluster.createJob(
      intent.namespace,
      { ...job, metadata: { ...metadata, annotations } },
      world.kill,
    )
    return finish(intents, created)
  } catch (error) {
    if (isReason(error, "AlreadyExists")) return { waitFor: "its name to be free", known: intent }
    // In a namespace that is gone so is the intent: the next round sees it. Of a server that comes up 404 is not the last word.
    if (isReason(error, "NamespaceTerminating")) return { result: "namespace gone" }
    throw error
  }
}

function finish(left: Intent[], back: Job | undefined): Round {
  const { uid = "", annotations } = back?.metadata ?? {}
  const isOurs = left.some(({ jobUid }) => annotations?.[`${PREFIX}restarted-from`] === jobUid)
  return { left, outcome: { result: isOurs ? "restarted" : "replaced", uid } }
}

/** The intents of one Job, from the store. */
export async function listIntents({ cluster, kill }: World, namespace: string, name: string): Promise<Intent[]> {
  return (await cluster.listJobs(namespace, `${INTENT}=${name}`, readIntent, kill)).items
}

async function removeIntents({ cluster, kill }: World, intents: Intent[]): Promise<void> {
  for (const { namespace, name, uid } of intents) {
    await cluster
      .deleteJob(namespace, name, { uid, propagationPolicy: "Background" }, kill)
      .catch((error) => exceptFor(error, "NotFound", "Conflict"))
  }
}

// ───────────────────────────────────────────── 7 The loop ─────────────────────────────────────────────

const RELIST_MS = 30 * 60_000
const REVIEW_MS = 10 * 60_000
const PRUNE_MS = 86_400_000
/** Each may hold a record of 256 KiB. */
const MOST_WRITES = 40
/** With the pauses between them about half a minute. */
const DENIALS = 7
const LONGEST_SLEEP_MS = 30_000
/** With the longest sleep added, below a minute. */
const PODLESS_MS = 25_000
const isPodless = ({ phase, hasPods, deleting }: JobView) => phase === "running" && !hasPods && !deleting
/** Four times the longest sleep. */
const STUCK_MS = 120_000
/** All pods of Jobs. */
const POD_SELECTOR = "batch.kubernetes.io/job-name"
/** A fresh intent of another operator is its own to carry out; one that stays is taken up. */
const ORPHANED_MS = 60_000

interface Tracked {
  view: JobView
  /** As last seen; needed where the Job is gone before it can be read again. */
  job: Job
  /** As it stood: from a Job that is going, their controllers take them off. */
  finalizers: string[]
  /** The number of the sighting that told it. */
  seenAs: number
  /** The last one, which holds. */
  decision: Decision | undefined
  evidence: Evidence | undefined
  /** Known once the evidence of a failure is complete. */
  failure: Failure | undefined
  /** Moments at which its pods were looked at already. */
  looked: Set<string>
  looking: Promise<void>
  said: string
  refusals: number
  /** After a refusal: not before this instant. */
  retryAt: number
  /** Its restart has ended, or it is seen to be gone while one is under way: what a late watch still tells of it is no news. */
  isOver: boolean
  goneAt: number | undefined
}

/** The operator: watches or polls each namespace, keeps the schedules, and restarts what is due. */
export class Operator {
  /** Restarts to come, keyed by Job. */
  readonly schedules = new Map<string, Schedule>()
  private readonly jobs = new Map<string, Tracked>()
  /** Last outcome of each pod of a watched Job, by uid; empty where pods may not be watched. */
  private readonly pods = new Map<string, PodView & { seenAt: number }>()
  private readonly intents = new Map<string, { intent: Intent; seenAt: number }>()
  /** Restarts under way, keyed by Job: never two of the same Job. */
  private readonly restarting = new Map<string, { done: Promise<void>; dueAt: number }>()
  /** Watches begun, keyed by namespace and resource. */
  readonly watches = new Map<string, number>()
  /** By the monotonic clock, for the wall clock may jump: when the loop turned, and when each namespace's Jobs were last heard of. */
  private turnedAt: number | undefined
  private readonly heardAt = new Map<string, number>()
  /** When a restart began last in each group. */
  private groups = new Map<string, number>()
  private readonly rights = new Map<string, { allowed: Set<string>; reviewedAt: number }>()
  /** How often in a row a right was denied that the review had promised. */
  private readonly denials = new Map<string, number>()
  /** The last Jobs that were seen to go, by uid: an intent of one, whose answer was lost, may turn up after it, without its last edit. */
  private readonly gone = new Map<string, Job>()
  private readonly saidOnce = new Set<string>()
  /** What is written beside all else, and when each namespace's records were pruned. */
  private readonly writing = new Set<Promise<void>>()
  private readonly prunedAt = new Map<string, number>()
  /** Counts what was seen of Jobs. */
  private sightings = 0
  private alarm = new AbortController()

  constructor(private readonly world: World) {}

  /** Runs until `stop` fires, and until restarts under way have ended or `kill` fires. */
  async run(): Promise<void> {
    const { config, say } = this.world
    const namespaces = config.namespaces.map((namespace) => this.follow(namespace))
    await Promise.all([this.turn(), ...namespaces])
    if (this.restarting.size > 0) say("info", `finishing ${this.restarting.size} restarts`)
    await Promise.all([...this.restarting.values()].map(({ done }) => done))
    await Promise.all(this.writing)
  }

  /** Whether the loop turns, or has not begun. `at` is one of performance.now(). */
  isTurning(at = performance.now()): boolean {
    return at - (this.turnedAt ?? at) < STUCK_MS
  }

  /** For how long nothing was heard of a namespace's Jobs, where it is too long: longer than a watch may be silent, and a list take. */
  silentMs(namespace: string, at = performance.now()): number | undefined {
    const silentMs = at - (this.heardAt.get(namespace) ?? Number.NEGATIVE_INFINITY)
    return silentMs > 2 * this.world.config.checkIntervalMs + CALL_LIMIT_MS ? silentMs : undefined
  }

  /** The state of each selected Job, and when its restart is due or was, while it is not over. */
  states(): { key: string; state: string; dueAt: number | undefined }[] {
    const now = nowOf(this.world)
    const others = [...this.jobs.values()].filter(({ view, isOver }) => !this.restarting.has(view.key) && !isOver)
    return [
      // One that its TTL took is under way long before it is due.
      ...[...this.restarting].map(([key, { dueAt }]) => ({
        key,
        state: dueAt > now ? "waiting" : "restarting",
        dueAt,
      })),
      ...others
        .filter(({ view }) => isSelected(view, this.world.config))
        .map(({ view, decision, refusals }) => {
          const dueAt = decision && "dueAt" in decision ? decision.dueAt : undefined
          return { key: view.key, state: stateOf(view, decision, refusals), dueAt }
        }),
    ]
  }

  private async follow(namespace: string): Promise<void> {
    const { stop } = this.world
    const trouble = troubles(this.world, `Jobs in ${namespace} cannot be followed`, stop)
    let pods: Promise<void> | undefined
    for (let first = true; !stop.aborted; first = false) {
      try {
        await this.review(namespace)
        pods ??= this.followPods(namespace)
        await this.lookAtJobs(namespace, first, trouble.over)
      } catch (error) {
        this.noteDenied(namespace, "watch batch/jobs", error)
        await trouble.wait(error)
      }
    }
    await pods
  }

  /** Lists once, then watches until it is time to list again; or sleeps, where watching is not allowed. */
  private async lookAtJobs(namespace: string, first: boolean, works: () => void): Promise<void> {
    const { clock, cluster, config, stop } = this.world
    const since = this.sightings
    const { items, resourceVersion } = await cluster.listJobs(namespace, "", (job) => job, stop)
    this.heardAt.set(namespace, performance.now())
    // The Role has come since the review.
    if (!this.may(namespace, "list batch/jobs")) await this.review(namespace, true)
    this.snapshot(namespace, items, since)
    if (first) await this.warnOfMissing(namespace, items)
    this.tidyUp(namespace, items)
    if (this.may(namespace, "watch batch/jobs"))
      return this.watch(namespace, "jobs", resourceVersion, clock.now() + RELIST_MS, works)
    works()
    await clock.sleep(config.checkIntervalMs, stop)
  }

  /** Keeps each pod's last outcome, for pods are often gone when their Job has failed. */
  private async followPods(namespace: string): Promise<void> {
    const { clock, cluster, stop } = this.world
    const trouble = troubles(this.world, `pods in ${namespace} cannot be watched`, stop)
    while (!stop.aborted) {
      try {
        if (!this.may(namespace, "watch /pods")) {
          await clock.sleep(LONGEST_SLEEP_MS, stop)
          continue
        }
        const { items, resourceVersion } = await cluster.listPods(namespace, POD_SELECTOR, viewOfJobPod, stop)
        for (const pod of items) this.seePod("ADDED", namespace, pod)
        await this.watch(namespace, "pods", resourceVersion, Number.POSITIVE_INFINITY, trouble.over)
      } catch (error) {
        this.noteDenied(namespace, "watch /pods", error)
        await trouble.wait(error)
      }
    }
  }

  /** Watches from a version on, one watch after the other, until an error or the given instant. */
  private async watch(
    namespace: string,
    resource: "jobs" | "pods",
    version: string,
    untilAt: number,
    works: () => void,
  ): Promise<void> {
    const { clock, cluster, config, stop } = this.world
    const options = {
      silenceMs: 2 * config.checkIntervalMs,
      ...(resource === "pods" ? { selector: POD_SELECTOR } : {}),
    }
    for (let resourceVersion = version; clock.now() < untilAt && !stop.aborted; ) {
      const beganAt = clock.now()
      this.watches.set(`${namespace}/${resource}`, (this.watches.get(`${namespace}/${resource}`) ?? 0) + 1)
      for await (const { type, object } of cluster.watch(namespace, resource, { ...options, resourceVersion }, stop)) {
        if (resource === "jobs") this.heardAt.set(namespace, performance.now())
        resourceVersion = object.metadata?.resourceVersion ?? resourceVersion
        if (clock.now() - beganAt > 10_000) {
          this.denials.clear()
          works()
        }
        if (type !== "ADDED" && type !== "MODIFIED" && type !== "DELETED") continue
        if (resource === "jobs") this.see(type, object as Job)
        else this.seePod(type, namespace, viewPod(object as Pod))
      }
      if (clock.now() - beganAt < 1_000 && !stop.aborted) throw new Error("the watch ended at once")
      this.denials.clear()
      works()
    }
  }

  /** Asks what the Role allows; where Jobs are polled again after some minutes, for Roles get mended. */
  private async review(namespace: string, again = false): Promise<void> {
    const { clock, cluster, say, stop } = this.world
    const { reviewedAt = Number.NEGATIVE_INFINITY } = this.rights.get(namespace) ?? {}
    if (!again && (this.may(namespace, "watch batch/jobs") || clock.now() - reviewedAt < REVIEW_MS)) return
    const rights = { allowed: allowed(await cluster.rules(namespace, stop)), reviewedAt: clock.now() }
    this.rights.set(namespace, rights)
    const missing = Object.entries(RIGHTS).filter(([right]) => !rights.allowed.has(right))
    const lines = missing.map(([right, without]) => `${right.replace(" /", " ")}: ${without.replace(/^! /, "")}`)
    if (!this.once(`rights ${namespace} ${lines.join()}`)) return
    if (missing.length === 0) say("debug", `${namespace}: the Role allows all that is needed`)
    else
      say(
        missing.some(([, without]) => without.startsWith("!")) ? "error" : "warning",
        `${namespace}: the Role lacks ${missing.length} rules, or the namespace is not there yet; see deploy/rbac.yaml:`,
        { lines },
      )
  }

  private may(namespace: string, right: string): boolean {
    return this.rights.get(namespace)?.allowed.has(right) ?? false
  }

  /**
   * A 403 that stays is the truth, whatever the review said: what was watched is polled from now on; what was polled is reviewed
   * again. One that passes is an API server that has just started and does not know its Roles yet.
   */
  private noteDenied(namespace: string, right: string, error: unknown): void {
    if (!(error instanceof ApiError) || error.status !== 403) return
    const denials = (this.denials.get(`${namespace} ${right}`) ?? 0) + 1
    this.denials.set(`${namespace} ${right}`, denials)
    const mayStay = this.may(namespace, right) && denials < DENIALS
    if (!mayStay && !this.rights.get(namespace)?.allowed.delete(right)) this.rights.delete(namespace)
  }

  /** A list as one moment: what it has was seen, what it lacks is gone; but not where a restart has read more since it was asked for. */
  private snapshot(namespace: string, items: Job[], since: number): void {
    const there = new Set(items.map((item) => viewJob(item).key))
    for (const [key, { view, job, seenAs }] of this.jobs)
      if (view.namespace === namespace && !there.has(key) && seenAs <= since) this.see("DELETED", job)
    for (const [key, { intent }] of this.intents)
      if (intent.namespace === namespace && !there.has(key)) this.intents.delete(key)
    const isIntent = ({ metadata }: Job) => metadata?.labels?.[INTENT] !== undefined
    for (const item of items.toSorted((a, b) => Number(isIntent(b)) - Number(isIntent(a))))
      if ((this.jobs.get(viewJob(item).key)?.seenAs ?? 0) <= since) this.see("LISTED", item)
  }

  /** What nothing waits for is written beside all else, in bounded memory. A refusal that stays is said once. */
  private beside(namespace: string, right: string, what: string, work: () => Promise<unknown>): void {
    const { config, say } = this.world
    if (config.dryRun || !this.may(namespace, right)) return
    const complain = (why: string) =>
      this.once(`${namespace} ${what} ${why}`) && say("warning", `${namespace}: ${what}: ${why}`)
    if (this.writing.size >= MOST_WRITES) return void complain(`${MOST_WRITES} others wait already`)
    const done = persist(this.world, work)
      .catch((error) => void complain(messageOf(error)))
      .then(() => void this.writing.delete(done))
    this.writing.add(done)
  }

  private record(view: JobView, job: Job, evidence: Evidence, failure: Failure): void {
    const { config } = this.world
    if (config.historyLimit === 0) return
    const decision = decide(view, { ...failure, changed: isChanged(job) }, config, nowOf(this.world))
    const record = recordFor(view, evidence, failure.cause, decision)
    this.beside(view.namespace, "create /configmaps", "a failure is not recorded", () => keepRecord(this.world, record))
  }

  /** Once: the settings. Once a day: records of Jobs that are gone for long, and those that a life before us has left over. */
  private tidyUp(namespace: string, items: Job[]): void {
    const { clock, config } = this.world
    if (this.once(`settings ${namespace}`))
      this.beside(namespace, "get /configmaps", "settings are not written for the commands", () =>
        writeSettings(this.world, namespace),
      )
    const isDue = clock.now() - (this.prunedAt.get(namespace) ?? Number.NEGATIVE_INFINITY) >= PRUNE_MS
    if (!isDue || config.historyLimit === 0) return
    this.prunedAt.set(namespace, clock.now())
    const there = new Set(items.map(({ metadata }) => metadata?.name))
    const prune = () => pruneRecords(this.world, namespace, "", (job) => there.has(job))
    this.beside(namespace, "delete /configmaps", "old records of failures are not removed", prune)
  }

  /** A wrong name looks like peace: said once. */
  private async warnOfMissing(namespace: string, items: Job[]): Promise<void> {
    const { cluster, config, say, stop } = this.world
    const there = new Set(items.map((item) => viewJob(item).key))
    const missing = (config.jobNames ?? []).filter((key) => key.startsWith(`${namespace}/`) && !there.has(key))
    for (const key of missing)
      say("warning", `[${key}] there is no such Job yet; it is looked after as soon as it appears`)
    if (items.length > 0) return
    const exists = this.may(namespace, NAMESPACE_RIGHT) ? await cluster.namespaceExists(namespace, stop) : undefined
    say(
      "warning",
      exists === false
        ? `namespace ${namespace} does not exist; see NAMESPACE`
        : `namespace ${namespace} has no Jobs yet; if that is wrong, see NAMESPACE`,
    )
  }

  /** One Job or intent as the API server shows it. One that breaks our understanding must not hide the others. */
  private see(type: "ADDED" | "MODIFIED" | "DELETED" | "LISTED", job: Job): void {
    const view = viewJob(job)
    try {
      if (view.labels[INTENT] !== undefined) this.seeIntent(type, job, view.key)
      else if (type === "DELETED") this.seeGone(job, view)
      else this.seeJob(type, job, view)
    } catch (error) {
      if (this.once(`see ${view.key} ${error}`))
        this.world.say("error", `[${view.key}] cannot be understood: ${messageOf(error)}`)
    }
  }

  private seeIntent(type: string, job: Job, key: string): void {
    const intent = readIntent(job)
    if (!intent && this.once(`intent ${key}`))
      this.world.say("error", `[${key}] is labelled as an intent, but its annotation ${INTENT} cannot be read`)
    // One that a list shows was there before us.
    const seenAt =
      this.intents.get(key)?.seenAt ?? (type === "LISTED" ? Number.NEGATIVE_INFINITY : this.world.clock.now())
    if (type === "DELETED" || !intent) this.intents.delete(key)
    else this.intents.set(key, { intent, seenAt })
    this.alarm.abort()
  }

  private seeJob(type: string, job: Job, view: JobView): void {
    const known = this.jobs.get(view.key)
    // One that is being restarted, whoever began it, is followed too: its last edits count for who finishes it.
    if (!known && !isSelected(view, this.world.config) && !this.isIntended(view)) return
    const isOlder = known && compareVersions(view.resourceVersion, known.view.resourceVersion) < 0
    // A late watch tells what a restart has read past already. A list is believed: etcd may have been restored.
    if (isOlder && type !== "LISTED") return
    const finalizers = job.metadata?.finalizers ?? []
    if (known?.view.uid === view.uid) {
      this.warnOf(Object.assign(known, { view, job, seenAs: ++this.sightings }, view.deleting ? {} : { finalizers }))
      return this.consider(known)
    }
    if (known) this.forget(known)
    const tracked: Tracked = {
      view,
      job,
      finalizers,
      seenAs: ++this.sightings,
      decision: undefined,
      evidence: undefined,
      failure: undefined,
      looked: new Set(),
      looking: Promise.resolve(),
      said: "",
      refusals: 0,
      retryAt: 0,
      isOver: false,
      goneAt: undefined,
    }
    this.jobs.set(view.key, tracked)
    this.warnOf(tracked)
    for (const pod of this.podsOf(view)) this.warnOfStart(view, pod)
    this.consider(tracked)
  }

  /** What an owner should know before the Job fails. */
  private warnOf({ view }: Tracked): void {
    const { problems } = overridesOf(view, this.world.config)
    const { ms: waitMs, from } = longestWait(view, this.world.config)
    const { key, ttlMs, phase, labels } = view
    const queue = labels["kueue.x-k8s.io/queue-name"]
    for (const problem of problems)
      if (this.once(`${key} ${problem}`)) this.tell("warning", view, "WrongAnnotation", problem)
    if (queue && this.once(`queue ${key} ${queue}`))
      this.tell(
        "warning",
        view,
        "Queued",
        `waits in queue ${queue}; its suspend field stays as it is for the queue's controller`,
      )
    if (ttlMs === undefined || ttlMs > waitMs || phase === "succeeded" || !this.once(`ttl ${key} ${ttlMs} ${waitMs}`))
      return
    const numbers = `ttlSecondsAfterFinished (${durationText(ttlMs)}) is not above ${from} (${durationText(waitMs)})`
    this.tell(
      "warning",
      view,
      "TtlTooShort",
      `its ${numbers}: it is restarted just before the TTL removes it; raise the one or lower the other`,
    )
  }

  /** Says a fact of a Job in the log and, where the Role allows, as an Event on it. */
  private tell(level: Level, job: JobName, reason: string, text: string, details?: Details): void {
    this.world.say(level, `[${job.key}] ${text}`, { job: job.key, reason, ...details })
    this.event(level, job, reason, text)
  }

  private event(level: Level, job: JobName, reason: string, text: string): void {
    const { cluster, config, kill, random, say } = this.world
    if (config.dryRun || !this.may(job.namespace, "create /events")) return
    const event = eventFor(job, level, reason, text, nowOf(this.world), random())
    cluster.createEvent(job.namespace, event, kill).catch((error) => {
      if (this.once(`event ${messageOf(error)}`))
        say("debug", `[${job.key}] an Event could not be written: ${messageOf(error)}`)
    })
  }

  private seeGone(job: Job, view: JobView): void {
    const known = this.jobs.get(view.key)
    if (known?.view.uid !== view.uid) return
    Object.assign(known, { view: { ...view, deleting: true }, job })
    known.goneAt ??= nowOf(this.world)
    if (this.restarting.has(view.key)) return
    const pods = this.podsOf(view)
    this.forget(known)
    this.gone.set(view.uid, job)
    for (const uid of this.gone.keys()) if (this.gone.size > 100) this.gone.delete(uid)
    if (known.isOver || view.phase !== "failed" || view.manager) return
    const evidence = known.evidence ?? { pods, logs: new Map(), morePods: 0 }
    const failure = { ...(known.failure ?? failureOf(view, evidence)), changed: isChanged(job) }
    if (!known.looked.has("failed")) this.record(view, job, evidence, failure)
    const what = this.isIntended(view)
      ? "is being restarted by someone else"
      : "was deleted by someone; it is not restarted"
    if (!wasRemovedByTtl(view, known.goneAt)) this.world.say("info", `[${view.key}] ${what}`)
    else if (!this.world.config.dryRun)
      this.keep({ ...job, metadata: { ...job.metadata, finalizers: known.finalizers } }, view, failure)
  }

  /** Its own TTL took the Job: the restart goes on when it is due, from what was last seen. */
  private keep(job: Job, view: JobView, failure: Failure): void {
    const decision = decide({ ...view, deleting: false, ttlMs: undefined }, failure, this.world.config, 0)
    if (!("dueAt" in decision))
      return this.world.say("warning", `[${view.key}] its TTL removed it; it is not restarted: ${decision.because}`)
    this.world.say("info", `[${view.key}] its TTL removed it; it is created again at ${instantText(decision.dueAt)}`)
    this.begin(view, decision.dueAt, () =>
      keepExpired(this.world, job, failure, decision.dueAt, this.lastSeen(view.key)),
    )
  }

  private forget({ view }: Tracked): void {
    for (const { uid } of this.podsOf(view)) this.pods.delete(uid)
    this.jobs.delete(view.key)
    this.schedules.delete(view.key)
  }

  private podsOf = ({ uid }: JobView) => [...this.pods.values()].filter(({ jobUid }) => jobUid === uid)

  private seePod(type: string, namespace: string, pod: PodView): void {
    const known = this.pods.get(pod.uid)
    // What a pod shows after it was told to stop is the stopping: only what was not known yet counts.
    const frozen = known?.deleting && known.containers.some(({ ended }) => ended)
    if (!pod.jobUid || (type === "DELETED" && !known)) return
    const gone = type === "DELETED"
    this.pods.set(pod.uid, { ...(frozen ? known : pod), gone, seenAt: known?.seenAt ?? this.world.clock.now() })
    const tracked = this.jobs.get(`${namespace}/${pod.jobName}`)
    if (tracked?.view.uid !== pod.jobUid) return
    this.warnOfStart(tracked.view, pod)
    // With a grace period of 0 the pod is gone a moment after this, before its Job is seen to fail.
    const states = pod.containers.map(({ state }) => state).join()
    if (pod.deleting && !gone && !tracked.view.deleting && pod.phase !== "Succeeded")
      this.look(tracked, `${pod.uid} ${states}`)
  }

  private warnOfStart({ key, uid }: JobView, { containers, name }: PodView): void {
    const stuck = containers.find(
      ({ state, reason, ended }) => state === "waiting" && !ended && /^(Err|Invalid|Create|RunC)|BackOff/.test(reason),
    )
    if (!stuck || !this.once(`start ${uid}`)) return
    this.world.say(
      "warning",
      `[${key}] pod ${name} cannot start: ${stuck.reason}: ${stuck.message}; a Job that never starts does not fail, unless it has activeDeadlineSeconds`,
    )
  }

  /** Looks at a Job's pods once for each moment, one look after the other; after the one at its failure the cause is known. */
  private look(tracked: Tracked, moment: string): void {
    if (tracked.looked.has(moment)) return
    tracked.looked.add(moment)
    // A TTL of 0 has the Job forgotten, with its pods, before its turn to be looked at.
    const before = this.podsOf(tracked.view)
    tracked.looking = tracked.looking.then(async () => {
      const { view } = tracked
      const kept = this.podsOf(view)
      const evidence = await gatherEvidence(this.world, view, kept.length > 0 ? kept : before, tracked.evidence)
      tracked.evidence = evidence
      if (moment !== "failed" || this.world.kill.aborted) return
      const failure = failureOf(view, evidence)
      tracked.failure = failure
      const { cause } = failure
      const facts = [cause, view.reason, view.message].filter(Boolean).join(", ")
      const details = { job: view.key, reason: "FailureSeen", cause, lines: evidenceLines(evidence) }
      this.world.say("warning", `[${view.key}] failed at ${instantText(view.failedAt ?? 0)}: ${facts}`, details)
      if (this.jobs.get(view.key) === tracked) this.consider(tracked)
      this.record(view, tracked.job, evidence, failure)
    })
  }

  /** Decides on a Job as it is now, and says it if that is new. */
  private consider(tracked: Tracked): void {
    const { config } = this.world
    const { view, job, failure } = tracked
    const [now, known] = [nowOf(this.world), failure ?? UNKNOWN]
    const decision = decide(view, { ...known, changed: view.failedAt !== undefined && isChanged(job) }, config, now)
    if (tracked.isOver || this.restarting.has(view.key)) return
    if (decision.do !== "leave" && !failure) return this.look(tracked, "failed")
    if (view.phase === "failing" && !view.deleting && !view.manager) this.look(tracked, "failing")
    tracked.decision = decision
    if ("dueAt" in decision) {
      this.schedules.set(view.key, {
        uid: view.uid,
        dueAt: Math.max(decision.dueAt, tracked.retryAt),
        group: groupOf(view),
      })
    } else this.schedules.delete(view.key)
    const text = sayDecision(decision, now)
    if (tracked.said !== text.fact) this.sayDecision(view, decision, text, known.cause)
    tracked.said = text.fact
    this.alarm.abort()
  }

  private sayDecision(
    view: JobView,
    decision: Decision,
    { fact, text }: { fact: string; text: string },
    cause: Cause,
  ): void {
    const { say } = this.world
    const phase = view.deleting ? "deleting" : view.phase
    if (decision.do === "leave")
      say(decision.healthy ? "debug" : "info", `[${view.key}] ${text}`, { job: view.key, phase })
    if (decision.do === "give up") this.tell("error", view, "GivenUp", `${text} (cause ${cause})`)
    if (decision.do === "wait") say("info", `[${view.key}] ${text}`)
    if ("dueAt" in decision && this.once(`failure ${view.uid} ${fact}`))
      this.event("warning", view, "FailureSeen", `failed, cause ${cause}; ${text}`)
  }

  /** Turns at each due instant, and at least every 30 s, for a wall clock may jump. */
  private async turn(): Promise<void> {
    const { clock, config, stop } = this.world
    while (!stop.aborted) {
      this.alarm = new AbortController()
      this.turnedAt = performance.now()
      const now = nowOf(this.world)
      this.warnOfSkew()
      const { begin, nextAt, lastAt } = admit(this.schedules, this.lastRestarts(now), config.restartSpacingMs, now)
      this.groups = lastAt
      for (const key of begin) this.restart(key)
      this.takeUpIntents()
      this.wakePodless(now)
      for (const [uid, pod] of this.pods)
        if (clock.now() - pod.seenAt > ORPHANED_MS && !this.isTracked(pod)) this.pods.delete(uid)
      await clock.sleep(Math.min(LONGEST_SLEEP_MS, nextAt - now), stop, this.alarm.signal)
    }
  }

  /** The last restart of each group, also those of an earlier life: told by the Jobs that came of them, to the second. */
  private lastRestarts(now: number): Map<string, number> {
    const last = new Map(this.groups)
    for (const { view } of this.jobs.values()) {
      const group = groupOf(view)
      const isRestart = view.annotations[`${PREFIX}restarted-from`] !== undefined
      // One further in the future than clocks differ is from before the clock was moved back.
      if (isRestart && view.createdAt > (last.get(group) ?? 0) && view.createdAt <= now + SKEW_LIMIT_MS)
        last.set(group, view.createdAt + 999)
    }
    return last
  }

  /** A Job that exists anew but gets no pod: by quota or policy, or overlooked by the controller (kubernetes/kubernetes#142142). */
  private wakePodless(now: number): void {
    for (const { view } of this.jobs.values()) {
      const isNew = isPodless(view) && own(view, "restarted-from") !== undefined
      if (!isNew || now - view.createdAt < PODLESS_MS || !this.once(`podless ${view.uid}`)) continue
      const { say } = this.world
      this.wakeOne(view, now).catch((error) => say("debug", `[${view.key}] cannot be touched: ${messageOf(error)}`))
    }
  }

  private async wakeOne({ key, namespace, name, uid, createdAt }: JobView, now: number): Promise<void> {
    const { cluster, config, kill } = this.world
    // Where it is polled, what we know of it is old.
    const live = await cluster.getJob(namespace, name, kill)
    this.lastSeen(key)(live)
    const view = live && viewJob(live)
    if (view?.uid !== uid || !isPodless(view)) return
    const text = `restarted, but there is no pod of it after ${durationText(now - createdAt)}; kubectl describe job tells of quota and policy`
    this.tell("warning", view, "NoPod", text)
    if (!config.dryRun && this.may(namespace, "patch batch/jobs"))
      await cluster.touchJob(view, `${PREFIX}touched`, instantText(now), kill)
  }

  private isIntended = ({ namespace, name }: JobName) =>
    [...this.intents.values()].some(({ intent }) => intent.namespace === namespace && intent.jobName === name)

  private isTracked = ({ jobUid }: PodView) => [...this.jobs.values()].some(({ view }) => view.uid === jobUid)

  private warnOfSkew(): void {
    const skewMs = this.world.cluster.skewMs()
    if (Math.abs(skewMs) <= SKEW_LIMIT_MS || !this.once(`skew ${Math.round(skewMs / 60_000)}`)) return
    this.world.say(
      "warning",
      `the API server's clock is ${durationText(skewMs)} ahead of this one; due times follow the server's`,
    )
  }

  /** Restarts that an earlier life or another operator left unfinished; whatever the selection is now. */
  private takeUpIntents(): void {
    const { clock, config, say } = this.world
    for (const { intent, seenAt } of this.intents.values()) {
      const { namespace, jobName: name, jobUid: uid, deleting } = intent
      const key = `${namespace}/${name}`
      if (config.dryRun || deleting || this.restarting.has(key) || clock.now() - seenAt < ORPHANED_MS) continue
      say("info", `[${key}] going on with a restart that was left unfinished, intent ${intent.name}`)
      const lastSeen = this.lastSeen(key, this.gone.get(uid))
      const dueAt = intent.plan.notBefore || nowOf(this.world)
      this.begin({ key, namespace, name, uid }, dueAt, () => carryOut(this.world, namespace, name, lastSeen))
    }
  }

  private restart(key: string): void {
    const { config, say } = this.world
    const { view, failure, retryAt, decision } = this.jobs.get(key) ?? {}
    this.schedules.delete(key)
    if (!view || !failure || this.restarting.has(key)) return
    // What a person asks for is due since now.
    const dueAt = decision && "dueAt" in decision && !isWantedNow(view) ? decision.dueAt : nowOf(this.world)
    const text = `[${key}] ${config.dryRun ? "would be restarted now (DRY_RUN)" : "restarting"}, cause ${failure.cause}`
    if (this.once(`${text} ${view.uid} ${retryAt}`)) say("info", text)
    const lastSeen = this.lastSeen(key)
    if (!config.dryRun) this.begin(view, dueAt, () => restartJob(this.world, view, failure, lastSeen))
  }

  /** What a restart reads is news for the loop too, and what either has seen is not forgotten while the restart lasts. */
  private lastSeen(key: string, gone?: Job): LastSeen {
    let newest = gone
    const isNewer = (a: Job, b?: Job) =>
      !b || compareVersions(viewJob(a).resourceVersion, viewJob(b).resourceVersion) > 0
    return (read) => {
      // An answer that comes late tells of a Job that is gone by now.
      const known = this.jobs.get(key)?.job ?? this.gone.get(read?.metadata?.uid ?? "")
      for (const job of [known, read]) if (job && isNewer(job, newest)) newest = job
      if (read && isNewer(read, known)) this.see("MODIFIED", read)
      return newest
    }
  }

  /** Runs one restart beside all others. Before its intent stands it may fail, and is begun again. */
  private begin(job: JobName, dueAt: number, work: () => Promise<Outcome>): void {
    const { clock, stop } = this.world
    const beganAt = clock.now()
    const trouble = troubles(this.world, `[${job.key}] its restart cannot begin`, stop, job.key)
    const run = async () => {
      while (!stop.aborted) {
        const outcome = await work().catch((error: unknown) => ({ error }))
        // A refusal is an outcome too, and has an error.
        if ("result" in outcome) return outcome
        await trouble.wait(outcome.error)
      }
      return { result: "interrupted" } as Outcome
    }
    const done = run().then((outcome) => {
      this.restarting.delete(job.key)
      this.conclude(job, outcome, clock.now() - beganAt, nowOf(this.world) - dueAt)
    })
    this.restarting.set(job.key, { done, dueAt })
  }

  private conclude(job: JobName, outcome: Outcome, tookMs: number, lateMs: number): void {
    const { clock, config, say } = this.world
    const { key, uid } = job
    const tracked = this.jobs.get(key)
    // The end of its intents comes later by the watch, or at the next look: what is left then is taken up again.
    const leaveUntil =
      outcome.result === "namespace gone" ? Number.POSITIVE_INFINITY : clock.now() + config.checkIntervalMs
    for (const known of this.intents.values()) if (known.intent.jobUid === uid) known.seenAt = leaveUntil
    const facts = { job: key, result: outcome.result }
    if (outcome.result === "restarted") {
      const text = `restarted in ${durationText(tookMs)}, new uid ${outcome.uid}`
      this.tell("info", { ...job, uid: outcome.uid }, "Restarted", text, { ...facts, lateMs })
    }
    if (outcome.result === "replaced")
      say("info", `[${key}] someone else has created it anew, uid ${outcome.uid}; that is its restart`, facts)
    if (outcome.result === "cancelled")
      say("info", `[${key}] someone removed the intent; its restart is cancelled`, facts)
    if (outcome.result === "changed") say("info", `[${key}] has changed meanwhile; not restarted`, facts)
    if (outcome.result === "namespace gone")
      say("warning", `[${key}] its namespace is going; it cannot be created again`, facts)
    if (outcome.result === "interrupted") say("info", `[${key}] its restart is left for the next start`, facts)
    if (outcome.result === "changed" && tracked?.view.uid === uid)
      tracked.retryAt = nowOf(this.world) + config.checkIntervalMs
    if (outcome.result === "refused" && tracked) {
      const waitMs = Math.min(300_000, 30_000 * 2 ** Math.min(tracked.refusals++, 4))
      tracked.retryAt = nowOf(this.world) + waitMs
      const text = `not deleted, for it could not be created again: ${outcome.error.message}`
      say("error", `[${key}] ${text}; next try in ${durationText(waitMs)}`, { ...facts, reason: "CannotRestart" })
      if (this.once(`refused ${uid} ${text}`)) this.event("error", job, "CannotRestart", text)
    }
    if (!tracked) return
    // What came meanwhile was not acted on.
    tracked.isOver = tracked.view.uid === uid && !["refused", "changed", "early"].includes(outcome.result)
    if (tracked.isOver) this.schedules.delete(key)
    if (tracked.goneAt !== undefined) this.seeGone(tracked.job, viewJob(tracked.job))
    else this.consider(tracked)
  }

  /** Whether a fact is new; the memory is bounded. */
  private once(fact: string): boolean {
    if (this.saidOnce.size > 10_000) this.saidOnce.clear()
    return this.saidOnce.size !== this.saidOnce.add(fact).size
  }
}

// ────────────────────────────────────────────── 8 Health ──────────────────────────────────────────────

const JOB_LABELS = ["namespace", "job_name"]
const LATE_SECONDS = [0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1_800, 7_200]
/** A Job's counts outlive its restart; one that is gone for longer has none. */
const COUNTS_KEPT_MS = 3_600_000
/** More would be noise: the rest is `exit:other`. */
const EXIT_CODES = 20

/** What Prometheus gets: counts of what was said and of calls; all else is read from the operator when it is asked for. */
export class Metrics {
  private readonly registry = new Registry()
  private readonly failures = this.add(Counter, "failures_total", "Failures of Jobs that were seen.", [
    ...JOB_LABELS,
    "cause",
  ])
  private readonly restarts = this.add(Counter, "restarts_total", "Restarts that have ended, by how.", [
    ...JOB_LABELS,
    "result",
  ])
  private readonly lateness = this.add(Histogram, "restart_lateness_seconds", "From the due time to the new Job.")
  private readonly state = this.add(Gauge, "job_state", "1 for the state that a selected Job is in.", [
    ...JOB_LABELS,
    "state",
  ])
  private readonly due = this.add(
    Gauge,
    "job_due_timestamp_seconds",
    "When a failed Job is or was to be restarted.",
    JOB_LABELS,
  )
  private readonly calls = this.add(Counter, "api_calls_total", "Calls of the API server, by verb and status.", [
    "verb",
    "code",
  ])
  private readonly watches = this.add(Counter, "watch_restarts_total", "Watches begun anew.", ["namespace", "resource"])
  private readonly ready = this.add(Gauge, "ready", "Whether what is known of a namespace is fresh.", ["namespace"])
  private readonly build = this.add(Gauge, "build_info", "Always 1; the labels tell the version.", ["version", "bun"])
  private readonly cpu = this.add(Counter, "process_cpu_seconds_total", "User and system CPU time spent.")
  private readonly memory = this.add(
    Gauge,
    "process_resident_memory_bytes",
    "Resident memory, with the pages of the binary.",
  )
  private readonly start = this.add(Gauge, "process_start_time_seconds", "When the process began.")
  private readonly files = this.add(Gauge, "process_open_fds", "Open file descriptors.")
  private readonly codes = new Set<string>()
  /** When a Job with counts was last there, by the monotonic clock. */
  private readonly thereAt = new Map<string, number>()

  private add<M>(
    Kind: new (metric: {
      name: string
      help: string
      labelNames: string[]
      registers: Registry[]
      buckets?: number[]
    }) => M,
    name: string,
    help: string,
    labelNames: string[] = [],
  ): M {
    const full = name.startsWith("process_") ? name : `flickr_operator_${name}`
    return new Kind({ name: full, help, labelNames, registers: [this.registry], buckets: LATE_SECONDS })
  }

  /** Counts a call of the API server. */
  readonly countCall: OnCall = (verb, code) => this.calls.inc({ verb, code })

  /** Counts what is said of failures and restarts. */
  readonly hear: Say = (_level, _text, { job = "", cause, result, lateMs } = {}) => {
    if (!cause && !result) return
    if (this.thereAt.size > 10_000) {
      this.thereAt.clear()
      for (const counter of [this.failures, this.restarts]) counter.reset()
    }
    this.thereAt.set(job, performance.now())
    if (cause) this.failures.inc({ ...jobLabels(job), cause: this.bounded(cause) })
    if (result) this.restarts.inc({ ...jobLabels(job), result: result.replaceAll(" ", "_") })
    if (lateMs !== undefined) this.lateness.observe(Math.max(0, lateMs) / 1_000)
  }

  private bounded(cause: Cause): string {
    if (cause.startsWith("exit:") && this.codes.size < EXIT_CODES) this.codes.add(cause)
    return !cause.startsWith("exit:") || this.codes.has(cause) ? cause : "exit:other"
  }

  /** All metrics as text, in Prometheus' exposition format. `at` is one of performance.now(). */
  async text(operator: Operator, namespaces: string[], at = performance.now()): Promise<string> {
    for (const metric of [this.state, this.due, this.watches, this.cpu]) metric.reset()
    for (const { key, state, dueAt } of operator.states()) {
      this.state.set({ ...jobLabels(key), state }, 1)
      if (dueAt !== undefined) this.due.set(jobLabels(key), dueAt / 1_000)
      if (this.thereAt.has(key)) this.thereAt.set(key, at)
    }
    for (const [key, begun] of operator.watches) {
      const [namespace = "", resource = ""] = key.split("/")
      this.watches.inc({ namespace, resource }, begun - 1)
    }
    for (const namespace of namespaces)
      this.ready.set({ namespace }, operator.silentMs(namespace, at) === undefined ? 1 : 0)
    this.setProcess()
    await this.forgetGone(at)
    return this.registry.metrics()
  }

  private setProcess(): void {
    const { user, system } = process.cpuUsage()
    this.build.set({ version: project.version, bun: Bun.version }, 1)
    this.cpu.inc((user + system) / 1e6)
    this.memory.set(process.memoryUsage.rss())
    this.start.set(performance.timeOrigin / 1_000)
    if (process.platform === "linux") this.files.set(readdirSync("/proc/self/fd").length)
  }

  private async forgetGone(at: number): Promise<void> {
    const gone = new Set([...this.thereAt].filter(([, thereAt]) => at - thereAt > COUNTS_KEPT_MS).map(([key]) => key))
    for (const key of gone) this.thereAt.delete(key)
    if (gone.size === 0) return
    for (const counter of [this.failures, this.restarts])
      for (const { labels } of (await counter.get()).values)
        if (gone.has(`${labels.namespace}/${labels.job_name}`)) counter.remove(labels)
  }
}

function jobLabels(key: string): { namespace: string; job_name: string } {
  const [namespace = "", job_name = ""] = key.split("/")
  return { namespace, job_name }
}

/** Answers a probe or a scrape. Nothing secret: whoever reaches the port may read it. */
export async function answerHealth(
  request: Request,
  operator: Operator,
  metrics: Metrics,
  { namespaces }: Config,
): Promise<Response> {
  const answer = (status: number, text: string, headers = {}) => new Response(`${text}\n`, { status, headers })
  if (request.method !== "GET" && request.method !== "HEAD")
    return answer(405, "GET or HEAD only", { Allow: "GET, HEAD" })
  const { pathname } = new URL(request.url)
  if (pathname === "/livez")
    return operator.isTurning()
      ? answer(200, "ok")
      : answer(503, `the loop has not turned for ${durationText(STUCK_MS)}`)
  if (pathname === "/metrics")
    return new Response(await metrics.text(operator, namespaces), {
      headers: { "Content-Type": Registry.PROMETHEUS_CONTENT_TYPE },
    })
  if (pathname !== "/readyz") return answer(404, "/livez, /readyz, /metrics")
  const blind = namespaces.flatMap((namespace) => {
    const silentMs = operator.silentMs(namespace)
    const why =
      silentMs === Number.POSITIVE_INFINITY
        ? "not listed yet"
        : `nothing heard of its Jobs for ${durationText(silentMs ?? 0)}`
    return silentMs === undefined ? [] : [`namespace ${namespace}: ${why}; the log says why`]
  })
  return blind.length === 0 ? answer(200, "ok") : answer(503, blind.join("\n"))
}

/** Serves health on all addresses, IPv6 and IPv4. A port that cannot be had is said, and stops nothing. */
export function serveHealth(port: number, operator: Operator, metrics: Metrics, { config, say }: World): void {
  let problem: unknown
  // Where the kernel has no IPv6, the second serves alone.
  for (const hostname of ["::", "0.0.0.0"]) {
    try {
      const answer = (request: Request) => answerHealth(request, operator, metrics, config)
      // Without reusePort, Bun 1.4.5 shares the port with other processes if development is off.
      Bun.serve({ hostname, port, development: false, reusePort: false, fetch: answer })
      return say("debug", `health on port ${port}: /livez, /readyz, /metrics`)
    } catch (error) {
      problem = error
    }
  }
  say("warning", `no health, HEALTH_PORT ${port} cannot be had: ${messageOf(problem)}`)
}

const [NOTIFY_LIMIT_MS, NOTIFY_PAUSE_MS] = [10_000, 5_000]

/** Tells a person of each alarm of a Job, once, and when the Job is back. Nothing waits for it; one message after the other. */
export function notifier(url: string, { clock, say, kill }: Pick<World, "clock" | "say" | "kill">): Say {
  const alarms = new Map<string, string>()
  let last = Promise.resolve()
  const send = async (message: string) => {
    const first = await post(url, message, kill)
    if (first) await clock.sleep(NOTIFY_PAUSE_MS, kill)
    const problem = first && (await post(url, message, kill))
    if (problem) say("warning", `a notification could not be sent to NOTIFY_URL: ${problem}`)
  }
  const queue = (message: string) => {
    last = last.then(() => send(message))
  }
  return (level, text, { job, reason = "", result = "", phase = "" } = {}) => {
    if (!job) return
    const isBack = ["restarted", "replaced"].includes(result) || ["running", "succeeded"].includes(phase)
    if (level === "error" && alarms.get(job) !== reason) {
      alarms.set(job, reason)
      queue(text)
    } else if (isBack && alarms.delete(job)) queue(`back after an alarm: ${text}`)
  }
}

/** What went wrong, in a word, for an error's message may hold the URL. Gotify reads title and message, Slack text, ntfy what its URL says. */
async function post(url: string, text: string, signal: AbortSignal): Promise<string | undefined> {
  const message = safe(text).slice(0, 1_000)
  const body = JSON.stringify({ title: project.name, message, text: message })
  const limit = AbortSignal.any([signal, AbortSignal.timeout(NOTIFY_LIMIT_MS)])
  try {
    // A redirect would turn the POST into a GET.
    const response = await fetch(url, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body,
      redirect: "manual",
      signal: limit,
    })
    await response.body?.cancel()
    return response.ok ? undefined : `answer ${response.status}`
  } catch (error) {
    const { code, name } = error as { code?: unknown; name?: string }
    return String(typeof code === "string" ? code : name)
  }
}

// ─────────────────────────────────────────────── 9 Main─ ──────────────────────────────────────────────

const GRACE_MS = 20_000

/** The system's clock. Bun fires a timer of more than 2^31-1 ms at once: long sleeps are cut in pieces. */
export const systemClock: Clock = {
  now: Date.now,
  async sleep(ms, ...signals) {
    const until = performance.now() + ms
    for (let left = ms; left > 0 && !signals.some(({ aborted }) => aborted); left = until - performance.now()) {
      const { promise, resolve: done } = Promise.withResolvers<void>()
      const timer = setTimeout(done, Math.min(left, 2 ** 31 - 1))
      const wake = () => done()
      for (const signal of signals) signal.addEventListener("abort", wake)
      await promise
      clearTimeout(timer)
      // A signal like `stop` lives as long as the program: it would keep every listener.
      for (const signal of signals) signal.removeEventListener("abort", wake)
    }
  },
}

/** Sends the log to stderr from a level on. The text goes in as a property: as a message its braces would be placeholders. */
function configureLog({ logLevel, logFormat }: Pick<Config, "logLevel" | "logFormat">): Say {
  const sink = ({ level, timestamp, properties }: LogRecord) => {
    const { text, ...details } = properties as { text: string; lines?: string[] }
    process.stderr.write(
      logFormat === "json"
        ? jsonRecord(timestamp, level, text, details)
        : textRecord(timestamp, level, text, details.lines),
    )
  }
  const quiet = { category: ["logtape", "meta"], sinks: ["stderr"], lowestLevel: "error" as const }
  configureSync({
    reset: true,
    sinks: { stderr: sink },
    loggers: [{ category: [], sinks: ["stderr"], lowestLevel: logLevel }, quiet],
  })
  const logger = getLogger(project.name)
  return (level, text, details) => logger[level]("{text}", { ...details, text })
}

/** One voice for several listeners. */
export const toAll =
  (listeners: Say[]): Say =>
  (...fact) => {
    for (const listen of listeners) listen(...fact)
  }

/** `stop` fires at the first signal, `kill` after the grace period or at the second. Process 1 has no handlers of its own. */
function stopSignals(say: Say): { stop: AbortSignal; kill: AbortSignal } {
  const [stop, kill] = [new AbortController(), new AbortController()]
  const onSignal = (name: string) => {
    if (stop.signal.aborted) return kill.abort(new Error("stopped"))
    say("info", `${name}: stopping`)
    stop.abort(new Error("stopped"))
    setTimeout(() => kill.abort(new Error("stopped")), GRACE_MS).unref()
  }
  for (const name of ["SIGTERM", "SIGINT"]) process.on(name, () => onSignal(name))
  return { stop: stop.signal, kill: kill.signal }
}

/** Waits for the API server, for boards come up slowly after a power cut. Returns its version. */
async function waitForServer({ cluster, clock, random, say, stop }: World): Promise<string> {
  for (let attempt = 1; !stop.aborted; attempt++) {
    try {
      return await cluster.version(stop)
    } catch (error) {
      if (error instanceof ApiError && error.status === 403) return "of unknown version"
      if (!stop.aborted) say("warning", `waiting for ${cluster.address}, attempt ${attempt}: ${messageOf(error)}`)
      await clock.sleep(backoffMs(attempt, random(), error), stop)
    }
  }
  return "of unknown version"
}

function announce(say: Say, rows: SettingRow[], warnings: string[], { from }: Source, env: Env): void {
  say("info", "settings", {
    lines: table([["setting", "value", "from"], ...rows.map((row) => [row.variable, row.value, row.from])]),
  })
  for (const warning of warnings) say("warning", warning)
  say("info", `connecting with ${from}`)
  if (env.BUN_OPTIONS) say("warning", "the environment has BUN_OPTIONS, which changes how this program runs")
}

/** What is unusual about the way to the API server. */
function announceWay(say: Say, { address, isVerified, proxy }: Cluster, { inCluster }: Source, env: Env): void {
  const because = address.startsWith("https:") ? "insecure-skip-tls-verify is set" : "the connection is not encrypted"
  if (!isVerified)
    say("warning", `INSECURE: ${because}, so anyone could answer in place of ${address}, and gets the credentials`)
  const proxies = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"].filter((name) => env[name])
  const use = inCluster
    ? "not used for the API server of this cluster"
    : "used for the API server unless NO_PROXY names it"
  if (proxy) say("info", `connecting through ${proxy}, as the kubeconfig says in proxy-url`)
  else if (proxies.length > 0) say("info", `${proxies.join(", ")}: ${use}`)
}

/** Runs the program; returns its exit code. */
export async function main(args: string[], env: Env): Promise<number> {
  let say = configureLog({ logLevel: "info", logFormat: "text" })
  const signals = stopSignals((...fact) => say(...fact))
  if (args.length > 0) return (await import("./cli.ts")).runCommandLine(args, env, signals)
  try {
    const { config, rows, warnings } = readSettings(env)
    say = configureLog(config)
    const source = findSource(env)
    announce(say, rows, warnings, source, env)
    const metrics = new Metrics()
    const cluster = connect(source, env, metrics.countCall)
    const listeners = [say, metrics.hear]
    if (config.notifyUrl && !config.dryRun)
      listeners.push(notifier(config.notifyUrl, { clock: systemClock, say, kill: signals.kill }))
    const world: World = { cluster, clock: systemClock, random: Math.random, say: toAll(listeners), config, ...signals }
    const operator = new Operator(world)
    const isHealthWanted =
      source.inCluster || rows.some(({ variable, from }) => variable === "HEALTH_PORT" && from !== "default")
    if (config.healthPort > 0 && isHealthWanted) serveHealth(config.healthPort, operator, metrics, world)
    announceWay(say, world.cluster, source, env)
    const server = `Kubernetes ${await waitForServer(world)} at ${cluster.address}`
    const facts = [
      ["name", project.name],
      ["version", project.version],
      ["runtime", `Bun ${Bun.version}, ${process.platform} ${process.arch}`],
      ["cluster", server],
    ]
    say("info", `starting${config.dryRun ? "; DRY_RUN: nothing will be changed" : ""}`, { lines: table(facts) })
    await operator.run()
    say("info", "stopped cleanly")
    return 0
  } catch (error) {
    if (error instanceof SettingsError)
      say("fatal", "the settings are wrong; nothing was done", { lines: error.mistakes })
    else say("fatal", messageOf(error))
    return error instanceof SettingsError || error instanceof ConfigError ? 2 : 1
  }
}

if (import.meta.main) main(process.argv.slice(2), process.env).then((code) => process.exit(code))
