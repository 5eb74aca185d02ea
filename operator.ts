/**
 * flickr-immich-k8s-sync-operator: restarts failed Kubernetes Jobs, and never loses one.
 *
 * It watches the selected Jobs. When one fails, it captures the evidence, waits as long as the cause deserves, deletes
 * the Job and creates it again. Before the delete it writes an *intent*: a Job that nobody runs and that holds the
 * complete new Job. From it the restart is completed by this process, a later one, or a person.
 *
 * Read it from top to bottom; a chapter uses only earlier ones (a test checks that):
 *   1 Text · 2 Settings · 3 Observed state · 4 Policy · 5 Replacement and intent · 6 Records · 7 Facts ·
 *   8 Kubeconfig · 9 API client · 10 Restart · 11 Controller · 12 Operator ·
 *   13 Log, health and notifications · 14 Main
 * An event goes from Watcher to EventHandler, which keeps it in the Cache and adds its Job to the Workqueue; from there
 * Reconciler decides on the Job, and Restarts runs a RestartRun for it. The rules are two pure functions: `decide` says
 * whether and when a Job is restarted, `nextStep` what its restart does next.
 * Chapters 2 to 7 are pure: `now` is handed down, and only `systemClock` reads the time. `…At` and `…Since` are
 * instants: epoch ms, or ms of the monotonic clock where their type is Monotonic. `…Ms` are durations.
 */
import { createHash, X509Certificate } from "node:crypto"
import { existsSync } from "node:fs"
import { readFile, stat } from "node:fs/promises"
import { isIPv4, isIPv6 } from "node:net"
import { basename, delimiter, dirname, join, resolve } from "node:path"
import { createSecureContext, getCACertificates, type SecureContextOptions } from "node:tls"
import { gunzipSync } from "node:zlib"
import type { V1ConfigMap, V1Job, V1LabelSelector, V1ObjectMeta, V1Pod } from "@kubernetes/client-node"
import { configureSync, getLogger, type LogLevel, type LogRecord } from "@logtape/logtape"
import { Counter, Gauge, Histogram, type MetricConfiguration, Registry } from "prom-client"
import TinyQueue from "tinyqueue"
import project from "./package.json" with { type: "json" }

/** The prefix of every label and annotation that the operator writes or reads. */
export const PREFIX = "flickr-immich-k8s-sync-operator/"

// ──────────────────────────────────────────────── 1 Text ────────────────────────────────────────────────

/** An instant of the monotonic clock in ms, for durations. The type keeps it apart from epoch ms. */
export type Monotonic = number & { readonly clock: "monotonic" }

/** Adds ms to an instant of the monotonic clock. */
const later = (at: Monotonic, ms: number) => (at + ms) as Monotonic

/** Time and randomness, which tests replace. `sleep` ends early, without an error, when a signal fires. */
export interface Clock {
  /** Wall-clock time in epoch ms. */
  now(): number
  monotonic(): Monotonic
  sleep(ms: number, ...signals: AbortSignal[]): Promise<void>
  /** From 0 to 1. */
  random(): number
}

/** JavaScriptCore lets the heap double before it collects: with 10,000 Jobs the peak would be 15 MiB higher. */
const collectGarbage = () => Bun.gc(true)

const abortListeners = new WeakMap<AbortSignal, Set<() => void>>()

/** Calls `run` on abort; returns how to cancel that. addEventListener() compares each listener with all others. */
export function onAbort(signal: AbortSignal, run: () => void): () => void {
  const known = abortListeners.get(signal)
  const listeners = known ?? new Set()
  if (!known) {
    abortListeners.set(signal, listeners)
    signal.addEventListener("abort", () => listeners.forEach((listener) => void listener()), { once: true })
  }
  listeners.add(run)
  return () => void listeners.delete(run)
}

/** The only place that uses clocks, timers and random numbers. Bun fires a timer above 2^31-1 ms at once. */
export const systemClock: Clock & { after(ms: number, run: () => void): () => void } = {
  now: Date.now,
  monotonic: () => performance.now() as Monotonic,
  random: Math.random,
  /** Calls `run` later; returns how to cancel that. */
  after(ms, run) {
    const timer = setTimeout(run, Math.min(ms, 2 ** 31 - 1))
    return () => clearTimeout(timer)
  },
  async sleep(ms, ...signals) {
    const until = performance.now() + ms
    for (let left = ms; left > 0 && !signals.some(({ aborted }) => aborted); left = until - performance.now()) {
      const { promise, resolve: wake } = Promise.withResolvers<void>()
      const stopTimer = systemClock.after(left, () => wake())
      const cancels = signals.map((signal) => onAbort(signal, () => wake()))
      await promise
      stopTimer()
      for (const cancel of cancels) cancel()
    }
  },
}

/** Removes what ConfigMaps and Secrets often add: a byte order mark, blanks, a last newline, quotes around it. */
export function normalizeInput(text: string | undefined): string {
  const bare = (text ?? "").trim()
  return bare.length > 1 && /^(["']).*\1$/s.test(bare) ? bare.slice(1, -1).trim() : bare
}

/** The result of `work`; undefined if it throws. */
export function tryOrUndefined<T>(work: () => T): T | undefined {
  try {
    return work()
  } catch {
    return undefined
  }
}

/** Parses an instant from the API, where null and the year 1 mean that it is unknown. */
export function instant(text: string | null | undefined): number | undefined {
  const at = Date.parse(text ?? "")
  return at > 0 ? at : undefined
}

/** resourceVersions are whole numbers that grow (KEP-5504). */
const compareVersions = (a: string, b: string) => a.length - b.length || (a < b ? -1 : a > b ? 1 : 0)

const UNPRINTABLE = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]/gu

/** Escapes characters that could break a line, forge a log record or control a terminal. */
export function printable(text: string): string {
  return text.replaceAll("\t", " ").replace(UNPRINTABLE, (c) => `\\u{${(c.codePointAt(0) as number).toString(16)}}`)
}

const SECRET_WORD = `(?:${[
  "(?:api|access|account|encryption|private|signing)[_ -]?key|secret|token|credentials?|signature|verifier|cookie",
  "passw(?:or)?d|passphrase|pwd|(?<=[-_?&])pass(?![a-z])|(?<=[?&])sig(?==)",
].join("|")})`

// A value is on the same line, or on the next one if that is indented or the value is quoted.
const GAP = `(?:\\s*(?=\\\\*["'])|[^\\S\\n]*(?:\\n[^\\S\\n]+)?)`
const IS = `(?:\\\\*["']|%2[27])?[^\\S\\n]*(?:[:=]+>?|%3[ad])${GAP}`

// Quotes may be escaped (JSON in JSON) and follow a word (b'...'); unclosed, they reach to the end of the line. Each
// repeat of a group takes stack: beyond 100,000 JavaScriptCore slows down, then fails to match.
const IN_QUOTES = `"[^"\\\\]*(?:\\\\[^][^"\\\\]*){0,20000}"|'[^'\\\\]*(?:\\\\[^][^'\\\\]*){0,20000}'|["'][^\\n]*`
const QUOTED = `(?:[bfru]{1,2}|\\w{0,20}[([{])?(?:${IN_QUOTES}|(\\\\+)["'].*?(?:(?<!\\\\)\\2["']|$))`

const SECRET_VALUE = `(?:${QUOTED}|[^\\s"'&,;<>]+)`
const SOURCE_FILE = "(?![\\w-]{0,40}\\.(?:[cm]?[jt]sx?|py|go|rb|rs|java|kt|php|cs|cc?|cpp|h):\\d)"
const HEADER_VALUE = `(?:[^"'\\n]+|(?<==\\\\*)["'][^"'\\n]*["']?){1,20000}`

/** What to mask. The first group of a pattern is kept: `password: ` of `password: hunter2`. */
const SECRETS = [
  // A private key, also one whose beginning is above the lines that were read.
  /()-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)/g,
  /()^[\w+/=\s\\]*-----END [A-Z ]*PRIVATE KEY-----/g,
  // Authorization: Token a1b2c3
  new RegExp(`((?:authorization|cookie)${IS})(?:${QUOTED}|${HEADER_VALUE})`, "gim"),
  // sent Bearer a1b2c3d4e5, but not: the bearer certificate
  new RegExp(
    `\\b((?:[Bb]earer|[Bb]asic|BEARER|BASIC)(?=\\s)${GAP})(?=[A-Z]?[a-z.-]*[A-Z\\d+/=_~])[\\w+/=.~-]{8,}`,
    "g",
  ),
  // password=hunter2, "apiKey": "a1b2c3", but not: token.go:12
  new RegExp(`(${SECRET_WORD}${SOURCE_FILE}[\\w.-]{0,40}${IS})${SECRET_VALUE}`, "gim"),
  // <password>hunter2</password>
  new RegExp(`(<[\\w:-]{0,40}${SECRET_WORD}[\\w-]{0,40}>)[^<]+`, "gi"),
  // --db-password hunter2
  new RegExp(
    `((?<![\\w-])--?(?:[\\w.-]{0,40}[-_.])?${SECRET_WORD}[\\w-]{0,40}(?=\\s)${GAP})(?!-)${SECRET_VALUE}`,
    "gim",
  ),
  // core.EnvVar{Name:"KEY", Value:"a1b2c3"}, {"name": "KEY", "value": "a1b2c3"}
  new RegExp(`(\\bValue:|"value":\\s*)${QUOTED}`, "g"),
  // https://ada:hunter2@example.com
  /(\w:\/\/)[^\s/?#"'<>]+(?=@)/g,
  // A JSON Web Token.
  /()(?<![\w-])eyJ[\w-]{8,}\.[\w-]+\.[\w-]*/g,
]

/** Text with what looks like a secret replaced by `***`. */
export function maskSecrets(text: string): string {
  return SECRETS.reduce((masked, pattern) => masked.replace(pattern, "$1***"), text)
}

export const safe = (text: string) => printable(maskSecrets(text))
/** At most 1,000 characters, well formed: receivers reject JSON with a half of an emoji. */
const bounded = (text: string) => safe(text).slice(0, 1_000).toWellFormed()
export const quote = (text: string) => JSON.stringify(text.length > 200 ? `${text.slice(0, 200)}…` : text)

/** `1h30m`, `45s`, `250ms`. */
export function durationText(ms: number): string {
  if (ms !== 0 && Math.abs(ms) < 1_000) return `${Math.round(ms)}ms`
  const s = Math.round(Math.abs(ms) / 1_000)
  const text = `${Math.floor(s / 86_400)}d${Math.floor(s / 3_600) % 24}h${Math.floor(s / 60) % 60}m${s % 60}s`
  return (ms < 0 ? "-" : "") + (text.replace(/(?<!\d)0[dhms]/g, "") || "0s")
}

const UNIT_MS: Record<string, number> = { ms: 1, millisecond: 1, s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 }
const UNIT = "(ms|millisecond|s|sec|second|m|min|minute|h|hr|hour|d|day)s?(?![a-z])"
const SPAN = new RegExp(String.raw`(\d+(?:\.\d+)?)\s*${UNIT}[\s,]*(?:and\s+)?`, "gi")

/** SPAN takes time that grows with the square of a text's length, which anybody may choose. */
const SPAN_CHARACTERS = 100

/** The sum of a text such as `1h30m` or `2 minutes, 5 seconds`, in ms; undefined for any other text. */
function readSpan(text: string): number | undefined {
  if (text === "" || text.length > SPAN_CHARACTERS || text.replace(SPAN, "") !== "") return undefined
  const parts = [...text.toLowerCase().matchAll(SPAN)]
  return parts.reduce((ms, [, number, unit = ""]) => ms + Number(number) * (UNIT_MS[unit] ?? UNIT_MS[unit[0]!]!), 0)
}

/** An instant in UTC with Z, to the second. */
export const instantText = (at: number) => new Date(at).toISOString().replace(/\.\d+Z$/, "Z")

/** The message of an error and of its causes, without stacks. */
export function messageOf(error: unknown): string {
  const { message, code, cause } = (error ?? {}) as { message?: string; code?: unknown; cause?: unknown }
  return (message || String(code ?? error)).replace(ADVICE, "") + (cause ? `: ${messageOf(cause)}` : "")
}

/** Advice to programmers that Bun adds to the message of a failed fetch. */
const ADVICE = /:? ?(?:Is the computer able|Was there a typo|For more information, pass).*$/s

/** A log record for people: one line, with details indented below. */
export function textRecord(at: number, level: string, text: string, { lines = [] }: { lines?: string[] } = {}): string {
  const head = `${new Date(at).toISOString().replace("T", " ")} | ${level.toUpperCase().padEnd(8)} | ${safe(text)}\n`
  return head + lines.map((line) => `    ${safe(line)}\n`).join("")
}

/** A log record for log collectors: one line of JSON. */
export function jsonRecord(at: number, level: string, text: string, details: object = {}): string {
  return `${JSON.stringify({ time: new Date(at).toISOString(), level, message: text, ...details }, safeReplacer)}\n`
}

/** JSON for people. */
export const jsonText = (value: unknown) => JSON.stringify(value, safeReplacer, 1)

/** For JSON.stringify(): masks and escapes texts and keys, and writes instants (`…At`) as text. */
function safeReplacer(key: string, value: unknown): unknown {
  if (typeof value === "string") return safe(value)
  if (typeof value === "number" && key.endsWith("At")) return instantText(value)
  if (value === null || typeof value !== "object" || Array.isArray(value)) return value
  return Object.fromEntries(Object.entries(value).map(([name, part]) => [safe(name), part]))
}

/** Rows in columns, two spaces apart. */
export function alignedRows(rows: string[][]): string[] {
  const cells = rows.map((row) => row.map(safe))
  const widthOf = (column: number) => Math.max(...cells.map((row) => Bun.stringWidth(row[column] ?? "")))
  const widths = (cells[0] ?? []).map((_, column) => widthOf(column))
  const padded = (text: string, i: number) => text + " ".repeat((widths[i] ?? 0) - Bun.stringWidth(text) + 2)
  return cells.map((row) => row.map(padded).join("").trimEnd())
}

const ESCAPE = "\u001b"

/** A carriage return, or a sequence that moves the cursor to the first column. */
const LINE_START = new RegExp(`\\r|${ESCAPE}\\[[01]?G`)

/** A line as a terminal would show it in the end: without colours, and of a progress bar its last state. */
export function renderLine(line: string): string {
  const drawn = line.split(LINE_START).map((part) => Bun.stripANSI(part))
  return drawn.findLast((part) => part.trim() !== "") ?? ""
}

/** A longer line is cut in its middle: the error may be at its end. */
const LINE_CHARACTERS = 1_000

function shortLine(line: string): string {
  if (line.length <= LINE_CHARACTERS) return line
  const head = line.slice(0, LINE_CHARACTERS / 2).toWellFormed()
  const tail = line.slice(-LINE_CHARACTERS / 2).toWellFormed()
  return `${head} … ${line.length - head.length - tail.length} characters left out … ${tail}`
}

type Work<T> = (signal: AbortSignal) => Promise<T>

/** Runs `work` with a signal that fires after `limitMs`, or when the caller stops; rejects then, whatever it does. */
export async function withTimeout<T>(limitMs: number, signal: AbortSignal, what: string, work: Work<T>): Promise<T> {
  const limit = new AbortController()
  const stop = () => limit.abort(signal.reason)
  const tooLate = () => limit.abort(new Error(`${what} got no answer in ${durationText(limitMs)}`))
  const stopTimer = systemClock.after(limitMs, tooLate)
  const aborted = Promise.withResolvers<never>()
  limit.signal.addEventListener("abort", () => aborted.reject(limit.signal.reason))
  const cancel = onAbort(signal, stop)
  if (signal.aborted) stop()
  try {
    return await Promise.race([work(limit.signal), aborted.promise])
  } finally {
    stopTimer()
    cancel()
  }
}

/** Runs works in the order of their coming, at most so many at once. */
function inTurns(most: number) {
  const waiting: (() => void)[] = []
  let running = 0
  return async <T>(work: () => Promise<T>): Promise<T> => {
    if (++running > most) await new Promise<void>((start) => waiting.push(start))
    return work().finally(() => {
      running--
      waiting.shift()?.()
    })
  }
}

/** Follows Go: padding is required, line breaks are allowed, other blanks are not. */
function fromBase64(text: string): Buffer {
  const line = text.replace(/[\r\n]/g, "")
  if (line.length % 4 > 0 || !/^[A-Za-z\d+/]*={0,2}$/.test(line)) throw new Error("it is no base64")
  return Buffer.from(line, "base64")
}

/** Follows Go: URL.parse() alone repairs blanks, backslashes, escapes in a host, and parts of an IP address. */
function webUrl(text: string): URL | null {
  const isClean = !/[\s\\\p{Cc}]|%(?![\da-f]{2})/iu.test(text)
  const url = isClean && /^https?:\/\/(?:[^/?#@]*@)?[^/?#@%]+(?:[/?#]|$)/i.test(text) ? URL.parse(text) : null
  return url && (!isIPv4(url.hostname) || text.includes(url.hostname)) ? url : null
}

const isLoopback = ({ hostname }: URL) => /^(localhost|\[::1\]|127(\.\d+){3})$/.test(hostname)

// ────────────────────────────────────────────── 2 Settings ──────────────────────────────────────────────

/** Environment variables. */
export type Env = Record<string, string | undefined>

/** `fallback`: "" for none. `parse`: throws what is allowed. `olderName`: the variable of the Python operator. */
function setting<K extends string, T>(
  variable: string,
  key: K,
  fallback: string,
  parse: (text: string) => T,
  about: { help: string; olderName?: string; secret?: boolean },
) {
  return { variable, key, default: fallback, parse, ...about }
}

/** Makes a parser of `read`; it throws the rule where `read` returns undefined. */
const parser =
  <T>(rule: string, read: (text: string) => T | undefined) =>
  (text: string): T => {
    const value = read(text)
    if (value === undefined) throw new Error(`write ${rule}`)
    return value
  }

/** Parses durations to ms: whole seconds, or like 90s, 1h30m, 7d; at most ten years, so that dates do not overflow. */
export const duration = (leastMs: number) =>
  parser(`whole seconds or a duration like 90s, 15m, 1h30m, from ${durationText(leastMs)} to 3650d`, (text) => {
    const ms = Math.round(/^\d+$/.test(text) ? Number(text) * 1_000 : (readSpan(text) ?? Number.NaN))
    return ms % 1_000 === 0 && ms >= leastMs && ms <= 3650 * 86_400_000 ? ms : undefined
  })

const wholeNumber = (least: number, most: number) =>
  parser(`a whole number from ${least} to ${most}`, (text) =>
    /^\d+$/.test(text) && Number(text) >= least && Number(text) <= most ? Number(text) : undefined,
  )

const oneOf = <T>(words: Record<string, T>) =>
  parser(`one of ${Object.keys(words).join(", ")}`, (text) => new Map(Object.entries(words)).get(text.toLowerCase()))

const httpUrl = parser("a URL with http or https", (text) => (webUrl(text) ? text : undefined))

const orNone =
  <T>(parse: (text: string) => T) =>
  (text: string) =>
    text === "" ? undefined : parse(text)

/** The name of a namespace: a DNS label of RFC 1123. */
export const NAMESPACE_NAME = /^[a-z0-9]([-a-z0-9]*[a-z0-9])?$/

/** A Job, with or without its namespace. Its name may have 253 characters, more than a label value's 63. */
export const JOB_NAME =
  /^([a-z0-9]([-a-z0-9]*[a-z0-9])?\/)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$/

const isJobName = (text: string) => text.length <= 253 && JOB_NAME.test(text) && !text.includes("/")

/** Each namespace keeps two watches open, and fetch sends at most 256 requests at once. */
const MOST_NAMESPACES = 100

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

/** All settings: the source of readSettings(), `--help`, and the tables in the log and in the README. */
export const SETTINGS = [
  setting("LOG_LEVEL", "logLevel", "DEBUG", oneOf(LEVELS), {
    help: "TRACE, DEBUG, INFO, SUCCESS, WARNING, ERROR or CRITICAL",
    olderName: "LOGURU_LEVEL",
  }),
  setting("LOG_FORMAT", "logFormat", "text", oneOf({ text: "text", json: "json" } as const), {
    help: "`text` for people, `json` (one object per line) for log collectors",
  }),
  setting("NAMESPACE", "namespaces", "flickr-downloader", nameList(NAMESPACE_NAME, MOST_NAMESPACES), {
    help: "the Jobs' namespace, or at most 100 separated by commas",
  }),
  setting("JOB_NAMES", "jobNames", "", orNone(nameList(JOB_NAME)), {
    help: "Job names separated by commas; `namespace/name` if there are several namespaces",
  }),
  setting("JOB_SELECTOR", "jobSelector", "", orNone(parseSelector), {
    help: "label selector; either this or JOB_NAMES is required, and a Job must match both if both are set",
  }),
  setting("CHECK_INTERVAL", "checkIntervalMs", "60", duration(1_000), {
    help: "polling interval if watching is not allowed",
  }),
  setting("RESTART_DELAY", "restartDelayMs", "3600", duration(0), {
    help: "from the failure (lastTransitionTime of its Failed condition) to the restart",
  }),
  setting("SKIP_DELAY_ON_OOM", "skipDelayOnOom", "false", oneOf(BOOLEANS), {
    help: "after an OOM kill restart at once, then after 10 s, 20 s, 40 s and so on",
  }),
  setting("RESTART_RULES", "restartRules", "", orNone(parseRules), {
    help: "delays by cause, `CAUSE=WAIT` separated by commas; the first match wins",
  }),
  setting("MAX_RESTARTS", "maxRestarts", "", orNone(wholeNumber(0, 1_000_000)), {
    help: "stop retrying after this many consecutive restarts",
  }),
  setting("RESTART_SPACING", "restartSpacingMs", "0", duration(0), {
    help: "minimum interval between two restarts in a group",
  }),
  setting("LOG_LINES", "logLines", "20", wholeNumber(0, 10_000), { help: "last log lines kept of each container" }),
  setting("HISTORY_LIMIT", "historyLimit", "10", wholeNumber(0, 1_000), {
    help: "failures kept per Job, as ConfigMaps; 0 writes none",
  }),
  setting("DRY_RUN", "dryRun", "false", oneOf(BOOLEANS), { help: "log what would be done and change nothing" }),
  setting("HEALTH_PORT", "healthPort", "8080", wholeNumber(0, 65_535), {
    help: "port of /livez, /readyz and /metrics; 0 turns it off, which is the default outside a pod",
  }),
  setting("NOTIFY_URL", "notifyUrl", "", orNone(httpUrl), {
    help: "webhook called when a Job needs attention and when it recovers; a secret",
    secret: true,
  }),
]

/** The parsed settings. */
export type Config = { [S in (typeof SETTINGS)[number] as S["key"]]: ReturnType<S["parse"]> }

/** All mistakes in the settings, one line each. */
export class SettingsError extends Error {
  override name = "SettingsError"
  constructor(readonly mistakes: string[]) {
    super(mistakes.join("\n"))
  }
}

type SettingRow = { variable: string; value: string; from: string }

/** Reads all settings. Throws a SettingsError with every mistake at once. */
export function readSettings(env: Env) {
  const values: { [K in keyof Config]?: unknown } = {}
  const rows: SettingRow[] = []
  const mistakes: string[] = []
  for (const { variable, olderName, key, default: fallback, parse, secret } of SETTINGS) {
    const from = olderName && !normalizeInput(env[variable]) && normalizeInput(env[olderName]) ? olderName : variable
    const text = normalizeInput(env[from])
    try {
      const value = parse(text || fallback)
      values[key] = value
      rows.push({ variable, value: showSetting(key, value), from: text ? from : "default" })
    } catch (error) {
      mistakes.push(`${from} cannot be ${quote(secret ? "***" : (env[from] ?? ""))}: ${messageOf(error)}`)
    }
  }
  mistakes.push(...selectionMistakes(values as Partial<Config>))
  if (mistakes.length > 0) throw new SettingsError(mistakes)
  const config = values as Config
  config.jobNames &&= fullNames(config.jobNames, config.namespaces)
  const logRule = config.restartRules?.find(({ cause }) => cause.kind === "log")
  const isInVain = logRule && config.logLines === 0
  const warnings = isInVain ? [`RESTART_RULES has ${logRule.text}, but LOG_LINES=0 keeps no log to match`] : []
  return { config, rows, warnings: [...warnings, ...unreachedRules(config)] }
}

/** The rules before which one stands that matches the same failures. */
function unreachedRules({ restartRules = [], skipDelayOnOom }: Config): string[] {
  const skip = { text: "SKIP_DELAY_ON_OOM", cause: { kind: "oom" } } as const
  const before = (at: number) => [...(skipDelayOnOom ? [skip] : []), ...restartRules.slice(0, at)]
  return restartRules.flatMap(({ text, cause }, at) => {
    const first = before(at).find((rule) => coversAll(rule.cause, cause))
    return first ? [`RESTART_RULES: ${text} is never reached, for ${first.text} comes before it`] : []
  })
}

function coversAll(rule: RuleCause, other: RuleCause): boolean {
  if (rule.kind === "exit" && other.kind === "exit") return rule.least <= other.least && other.most <= rule.most
  return rule.kind === "any" || Bun.deepEquals(rule, other)
}

/** Job names as `namespace/name`: a plain one is of the only namespace. */
function fullNames(jobNames: string[], namespaces: string[]): string[] {
  const isPlain = (name: string) => namespaces.length === 1 && !name.includes("/")
  return [...new Set(jobNames.map((name) => (isPlain(name) ? `${namespaces[0]}/${name}` : name)))]
}

/** The settings as the variables that readSettings() reads, without secrets. */
export function variablesOf(config: Config): Record<string, string> {
  const open = SETTINGS.filter(({ secret }) => !secret)
  const text = (key: keyof Config) => (config[key] === undefined ? "" : showSetting(key, config[key]))
  return Object.fromEntries(open.map(({ variable, key }) => [variable, text(key)]))
}

/** The settings that are not empty, as NAME=VALUE. */
export const settingsLines = (config: Config) =>
  Object.entries(variablesOf(config)).flatMap(([variable, value]) => (value ? [`${variable}=${value}`] : []))

/** What is wrong with the selection of Jobs, though each value by itself may be right. */
function selectionMistakes(values: Partial<Config>): string[] {
  const { namespaces, jobNames } = values
  const nothing = "jobNames" in values && "jobSelector" in values && !jobNames && !values.jobSelector
  if (nothing) return ["JOB_NAMES and JOB_SELECTOR are both empty: set one, so that it is known which Jobs to restart"]
  if (!namespaces || !jobNames) return []
  const isKnown = (name: string) => namespaces.some((namespace) => name.startsWith(`${namespace}/`))
  const advice = `write namespace/name, with a namespace of NAMESPACE (${namespaces.join(", ")})`
  const unknown = fullNames(jobNames, namespaces).filter((name) => !isKnown(name))
  return unknown.map((name) => `JOB_NAMES cannot have ${quote(name)}: ${advice}`)
}

function showSetting(key: keyof Config, value: unknown): string {
  if (value === undefined) return "none"
  if (key === "notifyUrl") return `${new URL(value as string).origin}/***`
  if (key.endsWith("Ms")) return durationText(value as number)
  const texts = [value].flat() as (Rule | Selector | string)[]
  return texts.map((one) => (typeof one === "object" ? one.text : one)).join(", ")
}

/** Makes a parser of lists of names. */
export function nameList(pattern: RegExp, most = Number.POSITIVE_INFINITY) {
  return (text: string): string[] => {
    const all = [...new Set(text.split(/[,\s]+/).filter((name) => name !== ""))]
    const wrong = all.filter((name) => !pattern.test(name) || name.split("/").some((part) => part.length > 63))
    if (wrong.length > 0)
      throw new Error(`${wrong.map(quote).join(", ")} is no name: write at most 63 of a-z, 0-9 and -, between commas`)
    if (all.length === 0) throw new Error("write at least one name")
    if (all.length > most)
      throw new Error(`it has ${all.length} names, and at most ${most} can be watched: run another for the others`)
    return all
  }
}

/** A label selector: its text and its requirements. Without `values`, any value satisfies. */
type Selector = { text: string; requirements: Requirement[] }
type Requirement = { key: string; values: string[] | undefined; isNegated: boolean }

const LABEL = "[A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?"
const PREFIX_PART = "[a-z0-9](?:[-a-z0-9]*[a-z0-9])?"
const LABEL_KEY = `(?:${PREFIX_PART}(?:\\.${PREFIX_PART})*/)?${LABEL}`
const EQUALITY = `\\s*(?<equal>==?|!=)\\s*(?<value>(?:${LABEL})?)`
const SET = `\\s+(?<set>in|notin)\\s*\\((?<values>\\s*(?:${LABEL})?\\s*(?:,\\s*(?:${LABEL})?\\s*)*)\\)`
const CONDITION = `!\\s*(?<absent>${LABEL_KEY})|(?<present>${LABEL_KEY})(?:${EQUALITY}|${SET})?`
const REQUIREMENT = new RegExp(`\\s*(?:${CONDITION})\\s*(?:,(?=[^])|$)`, "y")

/** A label selector as kubectl takes it, without > and < (k8s.io/apimachinery/pkg/labels). */
export function parseSelector(text: string): Selector {
  const requirements: Selector["requirements"] = []
  for (let at = 0; at < text.length; at = REQUIREMENT.lastIndex) {
    REQUIREMENT.lastIndex = at
    const { absent, present, equal, value, set, values = value } = REQUIREMENT.exec(text)?.groups ?? {}
    const key = absent ?? present
    if (key === undefined)
      throw new Error(`at character ${at + 1} write a condition: key=value, key!=value, key in (a,b), key or !key`)
    const isNegated = absent !== undefined || equal === "!=" || set === "notin"
    const requirement = { key, values: values?.split(",").map((one) => one.trim()), isNegated }
    // No label can be longer.
    if (key.indexOf("/") > 253 || [basename(key), ...(requirement.values ?? [])].some(({ length }) => length > 63))
      throw new Error(`at character ${at + 1} write keys and values of at most 63 characters`)
    requirements.push(requirement)
  }
  return { text, requirements }
}

/** Whether labels satisfy a selector; `!=` and `notin` hold for an absent key too (k8s.io/apimachinery/pkg/labels). */
export function matches({ requirements }: Selector, labels: Record<string, string>): boolean {
  return requirements.every(({ key, values, isNegated }) => {
    const holds = Object.hasOwn(labels, key) && (!values || values.includes(labels[key] ?? ""))
    return holds !== isNegated
  })
}

/** A rule: how long failures of a cause wait for their restart. */
export type Rule = { text: string; cause: RuleCause; wait: Wait }

type RuleCause =
  | { kind: "oom" | "evicted" | "deadline" | "unknown" | "any" }
  | { kind: "exit"; least: number; most: number }
  | { kind: "log"; pattern: RegExp }

/** Exponential from `fromMs` to `toMs`, or what the program itself asks for, up to `toMs`; or no restart at all. */
export type Wait = "never" | { fromMs: number; toMs: number; isAsked: boolean }

const EXIT_CODES = String.raw`exit:(?<least>\d{1,9})(?:-(?<most>\d{1,9}))?`
/** A regular expression literal: a slash may be in brackets, or after a backslash. */
const LOG_PATTERN = /log:\/(?<pattern>(?:[^/\\[\n]|\\.|\[(?:[^\]\\\n]|\\.)*\])+)\/(?<flags>i?)/.source
const RULE_CAUSE = `(?<kind>oom|evicted|deadline|unknown|any)|${EXIT_CODES}|${LOG_PATTERN}`
const RULE_WAIT = String.raw`(?<from>\w+(?:\.\w+)?)(?:\.\.(?<to>\w+(?:\.\w+)?))?`
const RULE = new RegExp(String.raw`(?<rule>(?:${RULE_CAUSE})\s*=\s*${RULE_WAIT})[^\S\n]*(?:[,\n]\s*|$)`, "y")

/** Parses RESTART_RULES. A pattern may contain commas. Throws the position of the first wrong rule. */
export function parseRules(text: string, logAllowed = true): Rule[] {
  const rules: Rule[] = []
  let at = 0
  try {
    for (; at < text.length; at = RULE.lastIndex) {
      RULE.lastIndex = at
      const { rule, ...parts } = RULE.exec(text)?.groups ?? {}
      if (rule === undefined)
        throw new Error(
          `write CAUSE=WAIT, not ${quote(text.slice(at, at + 40))}: a cause is oom, evicted, deadline, exit:3, ` +
            "exit:1-9, log:/RE/, unknown or any, a wait is a duration, 10s..1h, asked..6h or never",
        )
      const cause = ruleCause(parts)
      if (cause.kind === "log" && !logAllowed) throw new Error("a log pattern may only stand in RESTART_RULES")
      rules.push({ text: rule, cause, wait: ruleWait(parts, cause) })
    }
  } catch (error) {
    throw new Error(`at character ${at + 1} ${messageOf(error)}`)
  }
  return rules
}

function ruleCause({ kind, least, most = least, pattern, flags }: Record<string, string>): RuleCause {
  if (kind) return { kind } as RuleCause
  if (pattern !== undefined) return { kind: "log", pattern: new RegExp(pattern, flags) }
  if (Number(most) < Number(least)) throw new Error("write the smaller exit code first")
  return { kind: "exit", least: Number(least), most: Number(most) }
}

function ruleWait({ from = "", to }: Record<string, string>, cause: RuleCause): Wait {
  if (from === "never" && to === undefined) return "never"
  const isAsked = from === "asked"
  if (isAsked && to === undefined) throw new Error("write the longest wait too, such as asked..6h")
  if (isAsked && !(cause.kind === "log" && cause.pattern.source.includes("(?<wait>")))
    throw new Error("write asked.. only after a pattern with a group wait: log:/retry after (?<wait>.+)/=asked..6h")
  const wait = { fromMs: isAsked ? 0 : duration(0)(from), toMs: duration(0)(to ?? from), isAsked }
  if (wait.fromMs > wait.toMs) throw new Error("write the shorter wait first")
  return wait
}

const QUANTITY = /^(\d+(?:\.\d*)?|\.\d+)(?:([KMGTPE]i)|([numkMGTPE])|[eE]([+-]?\d{1,3}))?$/

/** A positive quantity in its base unit: `1.5Gi`, `512M`, `1e9`, `500m` (k8s.io/apimachinery/pkg/api/resource). */
export function quantity(text: string): number {
  const [, number, binary, decimal, exponent] = QUANTITY.exec(text) ?? []
  let factor = 10 ** Number(exponent ?? 0)
  if (binary) factor = 1024 ** ("KMGTPE".indexOf(binary[0] as string) + 1)
  if (decimal) factor = 10 ** (3 * ("num kMGTPE".indexOf(decimal) - 3))
  if (number === undefined || Number(number) * factor <= 0)
    throw new Error("write a quantity like 1.5Gi, 512M, 1e9 or 128974848")
  return Number(number) * factor
}

// ─────────────────────────────────────────── 3 Observed state ───────────────────────────────────────────

/** client-node's types with timestamps as strings: its classes have Dates, which JSON has not. */
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
  const { spec, status } = job
  const metadata = job.metadata ?? {}
  const { namespace = "", name = "", uid = "", resourceVersion = "", labels } = metadata
  const ownAnnotations = Object.entries(metadata.annotations ?? {}).filter(([key]) => key.startsWith(PREFIX))
  const condition = (type: string) => status?.conditions?.find((c) => c.type === type && c.status === "True")
  const failed = condition("Failed")
  const failing = failed ?? condition("FailureTarget")
  const succeeded = condition("Complete") ?? condition("SuccessCriteriaMet")
  let phase: Phase = spec?.suspend ? "suspended" : "running"
  if (failing) phase = failed ? "failed" : "failing"
  if (succeeded) phase = "succeeded"
  return {
    key: `${namespace}/${name}`,
    namespace,
    name,
    uid,
    resourceVersion,
    labels: labels ?? {},
    /** Only ours: last-applied-configuration can be as large as the Job. */
    annotations: Object.fromEntries(ownAnnotations),
    phase,
    deleting: metadata.deletionTimestamp != null,
    failedAt:
      failed &&
      (instant(failed.lastTransitionTime) ?? instant(failed.lastProbeTime) ?? instant(metadata.creationTimestamp) ?? 0),
    /** Reason and message of the condition that failed the Job. */
    reason: failing?.reason ?? "",
    message: failing?.message ?? "",
    /** Who else manages this Job, in words. */
    manager: managerOf(job),
    createdAt: instant(metadata.creationTimestamp) ?? 0,
    /** When its pods were first allowed to run, and when it completed. */
    startedAt: instant(status?.startTime),
    completedAt: instant(status?.completionTime),
    /** Whether it has or had a pod. */
    hasPods: [status?.active, status?.failed, status?.succeeded, status?.terminating].some(Boolean),
    endedPods: (status?.failed ?? 0) + (status?.succeeded ?? 0),
    ttlMs: spec?.ttlSecondsAfterFinished == null ? undefined : spec.ttlSecondsAfterFinished * 1_000,
    /** Set if the user selects the pods: then these have no label of the Job controller. */
    ownSelector: spec?.manualSelector && spec.selector ? selectorText(spec.selector) : undefined,
  }
}

function selectorText({ matchLabels, matchExpressions }: V1LabelSelector): string {
  const operators: Record<string, string> = { Exists: "", DoesNotExist: "!", In: " in ", NotIn: " notin " }
  const expressions = (matchExpressions ?? []).map(({ key, operator, values }) =>
    values?.length ? `${key}${operators[operator]}(${values.join(",")})` : `${operators[operator]}${key}`,
  )
  return [...Object.entries(matchLabels ?? {}).map(([key, value]) => `${key}=${value}`), ...expressions].join(",")
}

/** The CronJob controller prunes its Jobs by owner, whatever `controller` says; `managedBy` is KEP-4368. */
function managerOf({ metadata, spec }: Job): string | undefined {
  const owner = metadata?.ownerReferences?.find(({ kind, controller }) => kind === "CronJob" || controller)
  if (owner) return `it is owned by ${owner.kind} ${owner.name}`
  return spec?.managedBy && spec.managedBy !== "kubernetes.io/job-controller"
    ? `it is managed by ${spec.managedBy}`
    : undefined
}

/** A pod of a Job, reduced to what tells why it failed. */
export type PodView = ReturnType<typeof viewPod>

/** Reads a pod as the API server sends it; never throws. */
export function viewPod(pod: Pod) {
  const { spec } = pod
  const metadata = pod.metadata ?? {}
  const status = pod.status ?? {}
  const owner = metadata.ownerReferences?.find(({ kind }) => kind === "Job")
  const disruption = status.conditions?.find((c) => c.type === "DisruptionTarget" && c.status === "True")
  const sidecars = (spec?.initContainers ?? []).filter(({ restartPolicy }) => restartPolicy === "Always")
  const stop = stopOf(metadata)
  const view = (init: boolean) => (container: ContainerStatus) => {
    const isSidecar = init && sidecars.some(({ name }) => name === container.name)
    return viewContainer(container, isSidecar ? "sidecar" : init ? "init" : "main", stop)
  }
  return {
    name: metadata.name ?? "",
    uid: metadata.uid ?? "",
    jobUid: owner?.uid ?? "",
    jobName: owner?.name ?? "",
    createdAt: instant(metadata.creationTimestamp) ?? 0,
    phase: status.phase ?? "Unknown",
    reason: status.reason || disruption?.reason || "",
    message: status.message || disruption?.message || "",
    /** Completion index of an Indexed Job's pod. */
    index: metadata.annotations?.["batch.kubernetes.io/job-completion-index"],
    evicted: EVICTIONS.test(status.reason ?? "") || disruption !== undefined,
    /** Whether its containers run once each, so that the first failure is final. */
    runsOnce: spec?.restartPolicy === "Never",
    deleting: metadata.deletionTimestamp != null,
    /** Without a controller that answers for it: its Job was deleted with --cascade=orphan. */
    orphaned: !metadata.ownerReferences?.some(({ controller }) => controller),
    finalizers: metadata.finalizers ?? [],
    node: spec?.nodeName,
    gone: false,
    containers: [
      ...(status.initContainerStatuses ?? []).map(view(true)),
      ...(status.containerStatuses ?? []).map(view(false)),
    ],
  }
}

/**
 * The reasons of pods that their node evicted or rejected, for example after a reboot, when devices and labels are
 * still missing (pkg/kubelet: eviction, nodeshutdown, preemption, volumemanager, lifecycle/predicate.go;
 * pkg/controller/nodelifecycle).
 */
const EVICTIONS = new RegExp(
  `^(${[
    "Evicted|NodeLost|NodeShutdown|Shutdown|Terminated|Preempting",
    "NodeAffinity|NodeName|NodePorts|OutOf[a-z].*|Unexpected\\w+|UnknownReason",
    "TopologyAffinityError|SMTAlignmentError|InvalidNodeInfo|TaintToleration|VolumeAttachmentLimitExceeded",
  ].join("|")})$`,
)

/** When a pod was told to stop, and when what has not obeyed by then is killed; never, if it was not told. */
type Stop = { toldAt: number; killAt: number }

/**
 * A pod's deletionTimestamp is the end of its grace period. Undefined if the times are no longer known: with its last
 * delete, once all containers have ended, the kubelet moves the timestamp to the present and the period to 0.
 */
function stopOf({ deletionTimestamp, deletionGracePeriodSeconds }: Metadata): Stop | undefined {
  if (!deletionTimestamp) return { toldAt: Number.POSITIVE_INFINITY, killAt: Number.POSITIVE_INFINITY }
  const killAt = instant(deletionTimestamp) ?? 0
  return deletionGracePeriodSeconds ? { toldAt: killAt - deletionGracePeriodSeconds * 1_000, killAt } : undefined
}

/** Names a pod in a fact that is about a Job. */
function podName(namespace: string, { metadata }: Pod): JobName {
  const { name = "", uid = "" } = metadata ?? {}
  return { key: `${namespace}/pod ${name}`, namespace, name, uid }
}

type ContainerStatus = NonNullable<NonNullable<Pod["status"]>["containerStatuses"]>[number]
type Terminated = NonNullable<ContainerStatus["state"]>["terminated"]

/** How one container of a pod ended, now or in its last run, or what it is doing. */
type ContainerView = ReturnType<typeof viewContainer>

/** An `init` container ends before the others start, a `sidecar` (restartPolicy Always) is stopped after them. */
type Role = "init" | "sidecar" | "main"

/** Reasons for which the kubelet or containerd invents an exit code: 137, 255 and 128. */
const INVENTED = ["ContainerStatusUnknown", "Unknown", "StartError", "ContainerCannotRun"]

/** How far a node's clock may be behind the API server's. Both tell whole seconds. */
const NODE_CLOCK_LAG_MS = 5_000

/** Whether a container ended because its pod was told to stop: by the time, and by the code of the signal. */
function isStop(end: Terminated, stop: Stop | undefined): boolean {
  const { exitCode = 0, reason, finishedAt } = end ?? {}
  const isBySignal = [143, 137].includes(exitCode) && reason !== "OOMKilled"
  if (!stop) return isBySignal
  const endedAt = instant(finishedAt) ?? 0
  const signalAt = exitCode === 143 ? stop.toldAt : stop.killAt
  return endedAt > stop.toldAt || (isBySignal && endedAt >= signalAt - NODE_CLOCK_LAG_MS)
}

function viewContainer(container: ContainerStatus, role: Role, stop: Stop | undefined) {
  const { name, state, lastState, restartCount } = container
  // A container that waits or runs again, or was stopped in its next run, tells its failure in lastState only.
  const isNextRun = isStop(state?.terminated, stop) && (lastState?.terminated?.exitCode ?? 0) !== 0
  const end = isNextRun ? lastState?.terminated : (state?.terminated ?? lastState?.terminated)
  const reason = end ? end.reason : state?.waiting?.reason
  const isInvented = INVENTED.includes(end?.reason ?? "")
  return {
    name,
    role,
    state: (["terminated", "running"] as const).find((one) => state?.[one]) ?? ("waiting" as const),
    restarts: restartCount ?? 0,
    ended: end != null,
    /** Undefined if nothing has ended, or if the code is invented. */
    exitCode: isInvented ? undefined : end?.exitCode,
    signal: isInvented ? undefined : end?.signal || undefined,
    reason: reason ?? "",
    /** Once it has ended, the termination message. */
    message: ((end ? end.message : state?.waiting?.message) ?? "").trimEnd(),
    /** Whether it ended because its pod was told to stop. */
    stopped: isStop(end, stop),
    startedAt: instant(end?.startedAt),
    finishedAt: instant(end?.finishedAt),
  }
}

/** The last lines of a container's log, or why there are none; `final`: read whole, after the container's end. */
type Tail = { lines: string[]; note?: string; final?: boolean }

/** All that was seen of a failure. Logs are keyed by pod uid and container; `morePods` are beyond the few kept. */
export type Evidence = { pods: PodView[]; logs: Map<string, Tail>; morePods: number }

/** Why a Job failed. */
export type Cause = "oom" | "evicted" | "deadline" | `exit:${number}` | "unknown"

/**
 * The cause of a failure, from the container that made the last attempt fail. Reason before code: 137 alone does not
 * prove an out-of-memory kill, and a kill of a child process may end with code 0 and phase Succeeded
 * (kubernetes/kubernetes#104454).
 */
export function causeOf(job: JobView, pods: PodView[]): Cause {
  const last = decisivePod(job, pods)
  const failed = last && failedContainer(last)
  if (failed && isOomKilled(failed)) return "oom"
  if (last?.evicted) return "evicted"
  if (job.reason === "DeadlineExceeded" || last?.reason === "DeadlineExceeded") return "deadline"
  return failed?.exitCode ? `exit:${failed.exitCode}` : "unknown"
}

const isOomKilled = ({ ended, reason }: ContainerView) => ended && reason === "OOMKilled"
const hasFailed = (c: ContainerView) => c.ended && (c.exitCode !== 0 || isOomKilled(c))

/**
 * The container whose failure made its pod fail: the highest by these criteria, the first one counting most.
 *  1. It is no sidecar: sidecars are stopped after the others.
 *  2. It failed by itself, not because the pod was told to stop.
 *  3. It was killed for want of memory.
 *  4. Its exit code is known, not invented by the runtime.
 * Of several equal ones it is the first that ended where each runs once, and the last where they run again.
 */
function failedContainer({ containers, runsOnce }: PodView): ContainerView | undefined {
  const isKnown = (c: ContainerView) => c.exitCode !== undefined
  const criteria = (c: ContainerView) => [c.role !== "sidecar", !c.stopped, isOomKilled(c), isKnown(c)]
  const rank = (c: ContainerView) => criteria(c).reduce((sum, holds) => sum * 2 + Number(holds), 0)
  const endedAt = (c: ContainerView) => c.finishedAt ?? 0
  const byEnd = (a: ContainerView, b: ContainerView) => endedAt(a) - endedAt(b)
  const [best] = containers
    .filter(hasFailed)
    .toSorted((a, b) => rank(b) - rank(a) || (runsOnce ? byEnd(a, b) : byEnd(b, a)))
  return best
}

/** Whether a pod is a failed attempt. In one that succeeded, only an OOM kill counts: sidecars end as they like. */
function isFailedPod(pod: PodView): boolean {
  const isWorker = ({ role }: ContainerView) => role !== "sidecar"
  if (pod.phase === "Succeeded") return pod.containers.filter(isWorker).some(isOomKilled)
  return pod.phase === "Failed" || pod.evicted || pod.containers.some(hasFailed)
}

/** Whether a pod had failed when it was told to stop: what it shows after that is the stopping. */
const isStoppedAfterFailure = ({ deleting, containers }: PodView) => deleting && containers.some(hasFailed)

/** Whether nothing more is to be learned of a pod. */
const isOverPod = (pod: PodView) =>
  pod.gone || pod.phase === "Failed" || pod.phase === "Succeeded" || isStoppedAfterFailure(pod)

/** The pod of the last failed attempt; one that is being deleted only if there is no other, for its Job had failed. */
function lastFailedPod(pods: PodView[]): PodView | undefined {
  const sortable = pods.filter(isFailedPod).map((pod) => {
    return { pod, rank: blameOf(pod), failedAt: failedContainer(pod)?.finishedAt ?? pod.createdAt }
  })
  return sortable.sort((a, b) => a.rank - b.rank || a.failedAt - b.failedAt).at(-1)?.pod
}

/** How likely a failed pod is to blame: 0 if it was only stopped, 1 if it was told to stop when it had failed. */
function blameOf(pod: PodView): number {
  return pod.deleting && !pod.evicted ? Number(failedContainer(pod)?.stopped === false) : 2
}

/** The pod whose end made its Job fail: the last that failed, or a newer one that the Job's deadline stopped. */
function decisivePod({ reason }: JobView, pods: PodView[]): PodView | undefined {
  const last = lastFailedPod(pods)
  if (reason !== "DeadlineExceeded") return last
  const isStopped = (pod: PodView) => pod.deleting && pod.phase !== "Succeeded" && blameOf(pod) === 0
  const newer = pods.filter((pod) => isStopped(pod) && pod.createdAt > (last?.createdAt ?? 0))
  return newer.toSorted((a, b) => a.createdAt - b.createdAt).at(-1) ?? last
}

const EVIDENCE_PODS = 5

/** The few pods that are kept as evidence: of all pods the last that failed by itself, if any did, and the newest. */
function evidencePods(pods: PodView[]): Pick<Evidence, "pods" | "morePods"> {
  const failed = pods
    .filter((pod) => pod.phase !== "Succeeded" || isFailedPod(pod))
    .sort((a, b) => a.createdAt - b.createdAt || (a.name < b.name ? -1 : 1))
  const last = lastFailedPod(failed.filter((pod) => blameOf(pod) > 0))
  const kept = [...failed.filter((pod) => pod !== last), ...(last ? [last] : [])].slice(-EVIDENCE_PODS)
  return { pods: failed.filter((pod) => kept.includes(pod)), morePods: failed.length - kept.length }
}

/** What failed. */
export interface Failure {
  cause: Cause
  /** The last lines of the logs, then the termination messages; those of the container that failed come last. */
  lines: string[]
  /** Containers that were killed for memory. */
  killed: string[]
  /** Whether the owner has changed the Job since it was created. */
  changed?: boolean
  /** When the failure was first seen, if its own time lies in the future: it cannot be later than this. */
  seenAt?: number | undefined
}

export const UNKNOWN: Failure = { cause: "unknown", lines: [], killed: [] }

/** What failed, from the last failed attempt. */
export function failureOf(job: JobView, { pods, logs }: Evidence): Failure {
  const last = decisivePod(job, pods)
  const containers = last?.containers ?? []
  const failed = last && failedContainer(last)
  const inOrder = containers.toSorted((a, b) => Number(a === failed) - Number(b === failed))
  const logLines = ({ name }: ContainerView) => logs.get(`${last?.uid}/${name}`)?.lines ?? []
  const lines = inOrder.flatMap((container) => [...logLines(container), ...messageLines(container)])
  return { cause: causeOf(job, pods), lines, killed: containers.filter(isOomKilled).map(({ name }) => name) }
}

/** The lines that a program wrote to /dev/termination-log. A runtime that failed writes there, too. */
function messageLines({ ended, exitCode, message }: ContainerView): string[] {
  return ended && exitCode !== undefined && message !== "" ? tailOf(message, Number.POSITIVE_INFINITY).lines : []
}

/** One of our annotations on a Job. */
export const annotationOf = ({ annotations }: JobView, name: string): string | undefined => annotations[PREFIX + name]

/** A count from an annotation; text that is none is 0. */
const countFrom = (text: string | undefined) => (/^\d{1,9}$/.test(text ?? "") ? Number(text) : 0)

/**
 * What the kubelet answers with status 200, and without a newline, if it cannot read a log: after the lines that it
 * could read, if any (k8s.io/cri-client/pkg/logs, pkg/kubelet/kubelet_pods.go and kuberuntime_container.go, 1.32 to
 * 1.36; what it only says to those who follow a log is left out).
 */
const KUBELET_MESSAGES = [
  "unable to retrieve container logs for \\S+",
  "container status is nil",
  'failed to (?:try resolving symlinks in path|(?:open|seek \\d+ in|read|tail -?\\d+ lines of) log file) "[^"]*": .*',
  "failed to get parse function: .*",
  'pod "[^"]*" (?:cannot be found - no logs available|does not exist)',
  'container "[^"]*" in pod "[^"]*" (?:is not available|is terminated|is waiting to start\\b.*)',
  '(?:previous terminated )?container "[^"]*" (?:not found )?in pod "[^"]*"(?: not found)?',
]

const KUBELET_MESSAGE = new RegExp(`^(?:${KUBELET_MESSAGES.join("|")})$`)

/** The last lines of a log as a terminal shows them, long ones shortened. `cut`: the text is only a part of the log. */
export function tailOf(text: string, lines: number, cut = false): Tail {
  const lastLine = text.slice(text.lastIndexOf("\n") + 1)
  const isKubelets = KUBELET_MESSAGE.test(lastLine)
  const log = isKubelets ? text.slice(0, -lastLine.length) : text
  const message = printable(shortLine(maskSecrets(lastLine)))
  const lack: Partial<Tail> = isKubelets ? { note: `log not available: ${message}`, final: false } : {}
  if (log === "") return { lines: [], note: "log empty, it may have been rotated", ...lack }
  const shown = log.replace(/\n$/, "").split("\n").map(renderLine)
  const all = maskSecrets(shown.join("\n")).split("\n")
  const kept = lines > 0 ? all.slice(-lines).map((line) => printable(shortLine(line))) : []
  const note = cut ? "log too long to read whole, cut" : kept.length === lines ? `last ${lines} lines` : ""
  const notes = [note, lack.note].filter(Boolean).join("; ")
  return { lines: kept, ...lack, ...(notes && { note: notes }) }
}

/** The evidence of a failure as lines of text. */
export function evidenceLines({ pods, logs, morePods }: Evidence): string[] {
  const lines = pods.flatMap((pod) => [
    podLine(pod),
    ...(pod.containers.length === 0 ? ["  no container known; exit code unknown"] : []),
    ...pod.containers.flatMap((container) => [
      `  ${containerLine(container)}`,
      ...tailLines(logs.get(`${pod.uid}/${container.name}`)),
    ]),
  ])
  if (pods.length === 0) lines.push("no pods left")
  if (morePods > 0) lines.push(`and ${morePods} more pods`)
  return lines
}

function podLine({ name, index, phase, reason, message }: PodView): string {
  const facts = [phase, reason, message].filter(Boolean).join(", ")
  return `pod ${name}${index === undefined ? "" : ` (index ${index})`} (${facts})`
}

const tailLines = (tail: Tail | undefined) => [
  ...(tail?.note ? [`    (${tail.note})`] : []),
  ...(tail?.lines ?? []).map((line) => `    | ${line}`),
]

function containerLine(c: ContainerView): string {
  const facts = [
    exitText(c),
    c.signal && `signal ${c.signal}`,
    killText(c),
    c.reason,
    c.message,
    c.startedAt && c.finishedAt && `ran ${durationText(c.finishedAt - c.startedAt)}`,
    c.finishedAt && `ended ${instantText(c.finishedAt)}`,
    c.restarts > 0 && `${c.restarts} restarts`,
  ]
  const kind = c.role === "init" ? "init container" : c.role === "sidecar" ? "sidecar" : "container"
  return `${kind} ${c.name} (${facts.filter(Boolean).join(", ")})`
}

function exitText({ ended, exitCode, state }: ContainerView): string {
  if (ended) return `exit code ${exitCode ?? "not known"}`
  return state === "running" ? "still running, exit code not known" : "never started"
}

/** What SIGKILL means: an out-of-memory kill of a child process is not reported as one. */
function killText(c: ContainerView): string {
  if (c.exitCode !== 137 || c.reason === "OOMKilled") return c.stopped ? "stopped with its pod" : ""
  return c.stopped
    ? "SIGKILL when its pod was stopped"
    : "killed by SIGKILL: out of memory is possible but not confirmed"
}

/** The identity of a Job. */
export type JobName = Pick<JobView, "key" | "namespace" | "name" | "uid">

// ─────────────────────────────────────────────── 4 Policy ───────────────────────────────────────────────

/** What to do with a Job now. `healthy`: no action needed. `give up`: no restart until someone intervenes. */
export type Decision =
  | { do: "leave"; because: string; healthy: boolean }
  | { do: "give up"; because: string }
  | { do: "wait" | "restart"; dueAt: number; because: string }

/** Annotations that carry counts from one Job to the next. `touched` is of version 1.0.0. */
const BOOKKEEPING = [
  "restarts",
  "restarts-of-cause",
  "restarted-from",
  "last-cause",
  "last-failure",
  "restart-now-done",
  "created",
  "touched",
].map((name) => PREFIX + name)

/** What to do with a Job that failed like this. Pure: after a crash, the same input gives the same answer. */
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
  const failedAt = Math.min(job.failedAt, failure.seenAt ?? job.failedAt)
  if (isWantedNow(job))
    return { do: "restart", dueAt: failedAt, because: `its annotation ${PREFIX}restart-now asks for it` }
  if (maxRestarts !== undefined && restartsInRow(job, failure) >= maxRestarts)
    return { do: "give up", because: `it was restarted ${maxRestarts} times in a row without a success` }
  const rule = rules.find((r) => covers(r.cause, failure))
  if (rule?.wait === "never") return { do: "give up", because: `rule ${rule.text}` }
  const { waitMs, because } = rule
    ? waitUnder(rule as WaitingRule, restartsUnder(job, rule.cause, failure), failure, failedAt)
    : { waitMs: delayMs, because: `RESTART_DELAY ${durationText(delayMs)}` }
  const dueAt = failedAt + waitMs
  return { do: now >= dueAt ? "restart" : "wait", dueAt, because }
}

/** The decision if a person asks for a restart now: rules and limits do not count. */
export function decideOnRequest(job: JobView): Decision {
  const leave = (because: string): Decision => ({ do: "leave", because, healthy: true })
  if (job.deleting) return leave("it is being deleted")
  if (job.manager) return leave(job.manager)
  if (job.phase === "suspended") return leave("it is suspended; set its spec.suspend to false instead")
  if (job.phase !== "failed" && job.phase !== "succeeded") return leave(`it is ${job.phase}`)
  return { do: "restart", dueAt: job.failedAt ?? 0, because: "a person asked for it" }
}

/** The rules for a Job, in order, and the verdict on each. */
export function judgedRules(job: JobView, failure: Failure, config: Config): { rule: string; verdict: string }[] {
  const { rules } = overridesOf(job, config)
  const first = rules.findIndex(({ cause }) => covers(cause, failure))
  const verdict = (i: number) => {
    if (job.phase !== "failed") return "counts when it fails"
    if (i === first) return "matches"
    return first >= 0 && i > first ? "is not reached" : "does not match"
  }
  return rules.map(({ text }, i) => ({ rule: text, verdict: verdict(i) }))
}

/** The group of a Job, whose restarts are RESTART_SPACING apart. */
export function groupOf(job: JobView): string {
  const group = annotationOf(job, "group")
  return group === undefined ? `namespace ${job.namespace}` : `group ${group}`
}

/** Whether the settings choose this Job. */
export function isSelected(job: JobView, { jobNames, jobSelector }: Config): boolean {
  return (!jobNames || jobNames.includes(job.key)) && (!jobSelector || matches(jobSelector, job.labels))
}

/** Whether a person asks for a restart now; each value counts once, so that one kept in Git does not fire again. */
const isWantedNow = (job: JobView) =>
  annotationOf(job, "restart-now") !== undefined &&
  annotationOf(job, "restart-now") !== annotationOf(job, "restart-now-done")

/** An annotation may have 256 KiB. They are parsed at each event of the Job, and anybody may write them. */
const ANNOTATION_CHARACTERS = 10_000

/** What a Job's own annotations set in place of the settings. A wrong value changes nothing and is a problem. */
export function overridesOf(job: JobView, config: Config) {
  const problems: string[] = []
  const read = <T>(name: string, parse: (text: string) => T): T | undefined => {
    const text = annotationOf(job, name)
    try {
      if (text && text.length > ANNOTATION_CHARACTERS)
        throw new Error(`write at most ${ANNOTATION_CHARACTERS} characters`)
      return text === undefined ? undefined : parse(normalizeInput(text))
    } catch (error) {
      const wrong = `annotation ${PREFIX}${name} cannot be ${quote(text ?? "")}`
      problems.push(`${wrong}, so the operator's setting holds: ${messageOf(error)}`)
    }
  }
  const paused = read("paused", oneOf({ true: true, false: false })) ?? false
  read("oom-memory-max", quantity)
  const delayMs = read("restart-delay", duration(0)) ?? config.restartDelayMs
  const oomMaxMs = Math.max(delayMs, OOM_BACKOFF_MS)
  const oomFirst = config.skipDelayOnOom ? parseRules(`oom=0s..${durationText(oomMaxMs)}`) : []
  const rulesOfAll = [...oomFirst, ...(config.restartRules ?? [])]
  const rules = read("restart-rules", (text) => parseRules(text, false)) ?? rulesOfAll
  const maxRestarts = read("max-restarts", wholeNumber(0, 1_000_000)) ?? config.maxRestarts
  return { delayMs, rules, maxRestarts, paused, problems }
}

function covers(rule: RuleCause, { cause, lines }: Pick<Failure, "cause" | "lines">): boolean {
  if (rule.kind === "log") return lines.some((line) => rule.pattern.test(line))
  if (rule.kind !== "exit") return rule.kind === "any" || rule.kind === cause
  const code = cause.startsWith("exit:") ? Number(cause.slice(5)) : Number.NaN
  return code >= rule.least && code <= rule.most
}

/** The lines that a rule matches: no others are needed to decide. A Job's own rules have no pattern. */
const matchedLines = (lines: string[], { restartRules = [] }: Config) =>
  lines.filter((line) => restartRules.some(({ cause }) => cause.kind === "log" && cause.pattern.test(line)))

/** Under SKIP_DELAY_ON_OOM the wait grows to at least this, however short RESTART_DELAY is. */
const OOM_BACKOFF_MS = 300_000

type WaitingRule = Rule & { wait: Exclude<Wait, "never"> }

/** How long a rule makes a failure wait after so many restarts in a row, and why. */
function waitUnder({ text, cause, wait }: WaitingRule, restarts: number, { lines }: Failure, failedAt: number) {
  if (wait.isAsked) {
    const { waitMs, because } = askedOf(lines, cause, wait.toMs, failedAt, exponentialBackoffMs(wait, restarts))
    return { waitMs, because: `rule ${text}: ${because}` }
  }
  const because = `rule ${text}${restarts > 0 ? `, failure ${restarts + 1} in a row` : ""}`
  return { waitMs: exponentialBackoffMs(wait, restarts), because }
}

/** Exponential backoff from fromMs, doubling up to toMs. From 0: at once, then 10 s, 20 s, ... */
function exponentialBackoffMs({ fromMs, toMs }: { fromMs: number; toMs: number }, restarts: number): number {
  if (fromMs === 0) return restarts === 0 ? 0 : exponentialBackoffMs({ fromMs: 10_000, toMs }, restarts - 1)
  // The exponent is bounded, so that no count overflows.
  return Math.min(toMs, fromMs * 2 ** Math.min(restarts, 40))
}

/** The wait that the last matching line asks for, at most maxMs; at least shortMs if under 1 s, maxMs if it is none. */
function askedOf(lines: string[], cause: RuleCause, maxMs: number, failedAt: number, shortMs: number) {
  const most = durationText(maxMs)
  const text = cause.kind === "log" ? lastWaitAskedFor(lines, cause.pattern) : ""
  const askedMs = readAskedWait(text, failedAt)
  if (askedMs === undefined)
    return { waitMs: maxMs, because: `asked for ${quote(text)}, which is not a time: waiting the maximum of ${most}` }
  const waitMs = Math.min(maxMs, askedMs < 1_000 ? Math.max(askedMs, shortMs) : askedMs)
  const asked = `asked for ${quote(text)}: ${durationText(waitMs)} after the failure`
  return { waitMs, because: askedMs > maxMs ? `${asked}, the maximum` : asked }
}

/** What the group `wait` captured in the last line that matches. */
function lastWaitAskedFor(lines: string[], pattern: RegExp): string {
  const line = lines.findLast((one) => pattern.test(one)) ?? ""
  const match = new RegExp(pattern, `${pattern.flags}d`).exec(line)
  const text = match?.groups?.wait ?? ""
  // A pattern that ends at a comma cuts an HTTP date after the name of its day.
  const [from = 0] = match?.indices?.groups?.wait ?? []
  return text === "" ? "" : (HTTP_DATE.exec(line.slice(from))?.[0] ?? text)
}

/** `Sun, 06 Nov 1994 08:49:37 GMT` or `Sunday, 06-Nov-94 08:49:37 GMT` (RFC 9110). */
const HTTP_DATE = /^\s*[A-Z][a-z]{2,8}, \d{2}[ -][A-Z][a-z]{2}[ -]\d{2,4} \d{2}:\d{2}:\d{2} GMT/

/** Numbers from here on are epoch seconds: as a wait it would be 31 years. */
const LEAST_EPOCH_SECONDS = 1e9

/**
 * The wait that a program asks for, in ms from the failure: seconds, a duration such as 1m30s or 5 minutes, an HTTP
 * or ISO date (UTC unless it says otherwise) or epoch seconds. Undefined for any other text.
 */
export function readAskedWait(text: string, failedAt: number): number | undefined {
  const bare = text.replace(/^[\s"'([{<]+|[\s"')\]}>.!]+$/g, "")
  if (/^\d+(?:\.\d+)?$/.test(bare)) {
    const seconds = Number(bare)
    return seconds * 1_000 - (seconds >= LEAST_EPOCH_SECONDS ? failedAt : 0)
  }
  const at = instantFrom(bare)
  return at === undefined ? readSpan(bare) : at - failedAt
}

/** The words that an instant may contain. Another one may be a time zone, which Date.parse() would ignore. */
const INSTANT_WORD = new RegExp(
  `^(?:${[
    "(?:mon|tues?|wed(?:nes)?|thu(?:rs)?|fri|sat(?:ur)?|sun)(?:day)?",
    "jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?",
    "sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?",
    "[ap]m|t|z|utc|gmt",
  ].join("|")})$`,
  "i",
)

/** An instant as programs write it. Date.parse() takes one without a zone for local time, without a year for 2001. */
function instantFrom(text: string): number | undefined {
  if (text.length > 50 || !/\d:\d\d/.test(text)) return undefined
  const words = text.match(/\p{L}+/gu) ?? []
  if (!words.every((word) => INSTANT_WORD.test(word))) return undefined
  const [offset] = /[+-].*/.exec(text.slice(text.search(/\d:\d\d/))) ?? []
  if (offset !== undefined && !/^[+-]\d\d(?::?\d\d)?$/.test(offset)) return undefined
  const hasZone = offset !== undefined || /(?:Z|UTC|GMT)$/i.test(text)
  const withMinutes = offset?.length === 3 ? `${text}:00` : text
  const at = Date.parse(`${withMinutes.replace(/^([\d-]+)T/i, "$1 ")}${hasZone ? "" : " UTC"}`)
  return at > Date.UTC(2002) ? at : undefined
}

/** Restarts in a row. A change by the owner resets the count, and so does a restart that a person asks for. */
export function restartsInRow(job: JobView, { changed }: Failure): number {
  return changed || isWantedNow(job) ? 0 : countFrom(annotationOf(job, "restarts"))
}

/** Restarts in a row whose cause a rule covers; for a pattern, those of the same cause. */
function restartsUnder(job: JobView, rule: RuleCause | undefined, failure: Failure): number {
  const last = annotationOf(job, "last-cause") as Cause | undefined
  const same =
    last && (!rule || rule.kind === "log" ? last === failure.cause : covers(rule, { cause: last, lines: [] }))
  return same && restartsInRow(job, failure) > 0 ? countFrom(annotationOf(job, "restarts-of-cause")) : 0
}

/** The longest that a Job may have to wait for its restart. */
export function longestWaitMs(job: JobView, config: Config): number {
  const { delayMs, rules } = overridesOf(job, config)
  const any = rules.findIndex(({ cause }) => cause.kind === "any")
  const reached = rules.slice(0, any < 0 ? rules.length : any + 1)
  const waits = reached.map(({ wait }) => (wait === "never" ? 0 : wait.toMs))
  return Math.max(...waits, any < 0 ? delayMs : 0)
}

/** The bookkeeping annotations of the new Job. If a person restarts a succeeded Job, the counts start from zero. */
export function bookkeepingFor(job: JobView, failure: Failure, config: Config): Record<string, string> {
  const rule = overridesOf(job, config).rules.find(({ cause }) => covers(cause, failure))
  const hasSucceeded = job.phase === "succeeded"
  const values = {
    restarts: hasSucceeded ? 0 : restartsInRow(job, failure) + 1,
    "restarts-of-cause": hasSucceeded ? 0 : restartsUnder(job, rule?.cause, failure) + 1,
    "restarted-from": job.uid,
    "last-cause": hasSucceeded ? undefined : failure.cause,
    "last-failure": hasSucceeded ? undefined : instantText(job.failedAt ?? 0),
    "restart-now-done": annotationOf(job, "restart-now"),
  }
  const known = Object.entries(values).filter(([, value]) => value !== undefined)
  return Object.fromEntries(known.map(([name, value]) => [PREFIX + name, String(value)]))
}

/** How a person makes the operator go on. */
const gaveUpText = (because: string) =>
  `given up: ${because}; to go on, set a new ${PREFIX}restart-now on it, or delete it and apply it again`

/** A decision in words, for a person who can do something about it. */
export function decisionText(decision: Decision): string {
  return decision.do === "give up" ? gaveUpText(decision.because) : decidedText(decision)
}

/** A decision in words, for later readers. */
function decidedText(decision: Decision): string {
  if ("dueAt" in decision) return `to be restarted at ${instantText(decision.dueAt)}: ${decision.because}`
  return `${decision.do === "leave" ? "left alone" : "given up"}: ${decision.because}`
}

/** The states of Jobs in metrics, alerts and `status`. */
export type ShownState = Phase | "waiting" | "restarting" | "rejected" | "given_up" | "left_alone" | "deleting"

/** The state of a Job in one word. `rejected`: its restart was due, but the cluster rejects the new Job. */
export function stateOf(view: JobView, decision: Decision | undefined, rejections: number): ShownState {
  if (decision?.do === "give up") return "given_up"
  if (decision && "dueAt" in decision) return rejections > 0 ? "rejected" : "waiting"
  if (decision && !decision.healthy) return "left_alone"
  return view.deleting ? "deleting" : view.phase
}

// ─────────────────────────────────────── 5 Replacement and intent ───────────────────────────────────────

/** What to do about a Job with this failure, decided on the Job as it is now. */
export function desiredFor(job: Job, failure: Failure, config: Config, now: number, judge = decide): Desired {
  const view = viewJob(job)
  const known = { ...failure, changed: failure.changed || isChanged(job) }
  const decision = judge({ ...view, deleting: false }, known, config, now)
  return { decision, additions: { annotations: bookkeepingFor(view, known, config), memory: moreMemory(job, known) } }
}

/** Metadata that the API server fills in (pkg/registry/batch/job/strategy.go, apimachinery's ObjectMeta). */
const SERVER_METADATA = [
  "uid",
  "resourceVersion",
  "generation",
  "creationTimestamp",
  "deletionTimestamp",
  "deletionGracePeriodSeconds",
  "selfLink",
  "managedFields",
  // Without it, `kubectl create -f -` takes the replacement in whatever namespace it is restored to.
  "namespace",
]

const SERVER_FINALIZERS = ["foregroundDeletion", "orphan"]
const UID_LABELS = ["controller-uid", "batch.kubernetes.io/controller-uid"]
const SERVER_LABELS = [...UID_LABELS, "job-name", "batch.kubernetes.io/job-name"]

/** What Kueue writes into the pod template when it admits a Job; a copy of them makes the next admission fail. */
const KUEUE_TEMPLATE_KEYS = ["workload", "podset", "local-queue-name", "cluster-queue-name"].map(
  (name) => `kueue.x-k8s.io/${name}`,
)

/**
 * The Job as its owner wrote it: the live Job without what the server and queues have added. Unknown fields stay: an
 * allow list would lose the fields that a newer Kubernetes adds.
 */
export function replacementFor(live: Job): Job {
  const { status: _, metadata: m = {}, ...job } = { ...live, apiVersion: "batch/v1", kind: "Job" }
  const isGenerated = UID_LABELS.some((label) => m.uid !== undefined && m.labels?.[label] === m.uid)
  const metadata = {
    ...withoutKeys(m, SERVER_METADATA),
    labels: isGenerated ? withoutKeys(m.labels, SERVER_LABELS) : { ...m.labels },
    annotations: withoutKeys(m.annotations, ["batch.kubernetes.io/job-tracking"]),
    finalizers: (m.finalizers ?? []).filter((name) => !SERVER_FINALIZERS.includes(name)),
  }
  const spec = cleanSpec(job.spec as JobSpec)
  // The server gives a Job without labels those of its template, generated ones included
  // (pkg/apis/batch/v1/defaults.go); it will do so again.
  if (isGenerated && Bun.deepEquals(metadata.labels, spec.template?.metadata?.labels ?? {})) metadata.labels = {}
  return withoutEmpty({ ...job, metadata, spec })
}

type JobSpec = NonNullable<Job["spec"]>

/** A spec without the generated selector and labels, and without what Kueue added to its pod template. */
function cleanSpec({ selector, template, ...rest }: JobSpec): JobSpec {
  const spec = { ...rest, ...(rest.manualSelector && { selector }), template } as JobSpec
  if (!template?.metadata) return spec
  const { creationTimestamp, ...metadata } = template.metadata
  const serverLabels = rest.manualSelector ? [] : SERVER_LABELS
  const cleaned = {
    ...metadata,
    ...(creationTimestamp != null && { creationTimestamp }),
    labels: withoutKeys(metadata.labels, [...KUEUE_TEMPLATE_KEYS, ...serverLabels]),
    annotations: withoutKeys(metadata.annotations, KUEUE_TEMPLATE_KEYS),
  }
  return { ...spec, template: { ...template, metadata: cleaned } }
}

function withoutKeys<T extends object>(map: T | undefined, keys: string[]): T {
  return Object.fromEntries(Object.entries(map ?? {}).filter(([key]) => !keys.includes(key))) as T
}

/** Removes empty labels, annotations and finalizers. */
function withoutEmpty(job: Job): Job {
  for (const metadata of [job.metadata, job.spec?.template?.metadata]) {
    for (const field of ["labels", "annotations", "finalizers"] as const) {
      if (metadata && Object.keys(metadata[field] ?? {}).length === 0) delete metadata[field]
    }
  }
  return job
}

/** What we add to a new Job: annotations, and memory limits by the name of the container. */
export type Additions = { annotations: Record<string, string>; memory: Record<string, string> }

/** The complete Job to create in place of `live`: what its owner wrote, and our additions. */
export function buildReplacement(live: Job, { annotations, memory }: Additions): Job {
  const job = withMemory(replacementFor(live), memory)
  // The cause of an earlier failure must not stand for that of this one, which may not be known yet.
  const earlier = withoutKeys(job.metadata?.annotations, [LAST_CAUSE])
  job.metadata = { ...job.metadata, annotations: { ...earlier, ...annotations } }
  const created = contentOf(job)
  job.metadata.annotations = { ...job.metadata.annotations, [`${PREFIX}created`]: created }
  return job
}

/**
 * Finds an integer that JavaScript cannot represent exactly; returns its path and value. The new Job would get another
 * one: Kubernetes allows 64 bits, for example in activeDeadlineSeconds, and JSON.parse keeps 53.
 */
export function inexactNumber(value: unknown, path = ""): string | undefined {
  if (typeof value === "number") return Number.isSafeInteger(Math.trunc(value)) ? undefined : `${path}=${value}`
  if (typeof value !== "object" || value === null) return undefined
  for (const [key, part] of Object.entries(value)) {
    const found = inexactNumber(part, path ? `${path}.${key}` : key)
    if (found) return found
  }
  return undefined
}

/** What the owner wrote, without finalizers: controllers remove theirs from a terminating Job, which is no edit. */
function userPart(job: Job): Job {
  const { metadata: { finalizers: _, ...metadata } = {}, ...rest } = replacementFor(job)
  return withoutEmpty({
    ...rest,
    metadata: { ...metadata, annotations: withoutKeys(metadata?.annotations, BOOKKEEPING) },
  })
}

/** A fingerprint of what the owner wrote. It shows whether a terminating Job has been edited. */
export function fingerprintOf(job: Job): string {
  return hashOf(canonicalJson(userPart(job)))
}

/** JSON with sorted keys, and with memory in bytes: the server normalizes quantities (1024Mi comes back as 1Gi). */
function canonicalJson(value: unknown): string {
  const canonical = (key: string, part: unknown) => {
    if (key === "memory" && typeof part === "string") return Math.round(bytesOf(part)) || part
    if (typeof part !== "object" || part === null || Array.isArray(part)) return part
    return Object.fromEntries(Object.entries(part).sort(([a], [b]) => (a < b ? -1 : 1)))
  }
  return JSON.stringify(value, canonical)
}

/** A fingerprint of the spec, the labels and our annotations: if the owner changes one, counts start from zero. */
export function contentOf(job: Job): string {
  const { metadata, spec } = userPart(job)
  const annotations = Object.entries(metadata?.annotations ?? {}).filter(([key]) => key.startsWith(PREFIX))
  const text = canonicalJson({ spec, labels: metadata?.labels, annotations: Object.fromEntries(annotations) })
  return createHash("sha256").update(text).digest("hex").slice(0, 16)
}

/** Whether the owner has changed a Job since we created it. */
export function isChanged(job: Job): boolean {
  const created = job.metadata?.annotations?.[`${PREFIX}created`]
  return created !== undefined && created !== contentOf(job)
}

/** The label of an intent; its value is the Job's name. Also its `managedBy`, for which no controller creates pods. */
export const INTENT = `${PREFIX}intent`

/** The annotation of an intent with the complete new Job: JSON or, above 200 KiB, the base64 of its gzip. */
export const REPLACEMENT = `${PREFIX}replacement`

/** The annotation of an intent that says what it replaces, as JSON: see Replaces. */
export const REPLACES = `${PREFIX}replaces`

/** Which Job an intent replaces. `dueAt`: when to create the new Job, unless at once. */
interface Replaces {
  uid: string
  resourceVersion: string
  dueAt?: string
  /** fingerprintOf() the Job as it was. */
  fingerprint: string
  memory?: Record<string, string>
}

/** An intent, as read from the cluster. */
export interface Intent {
  namespace: string
  name: string
  uid: string
  version: string
  deleting: boolean
  /**
   * A webhook has removed its label, or added a finalizer or an owner, with which the garbage collector may remove it;
   * or it may run. No Job may be deleted by it. Its writer removes it, and that cancels no restart.
   */
  unsafe: boolean
  jobName: string
  jobUid: string
  jobVersion: string
  /** When to create the Job; undefined: at once. */
  dueAt: number | undefined
  /** The new Job, exactly as the dry run proves it and as it is created. */
  replacement: Job
  fingerprint: string
  additions: Additions
}

const ANNOTATION_BYTES = 200 << 10

/** What an intent is drafted from. */
type IntentPlan = { live: Job; additions: Additions; dueAt: number | undefined }

/** An intent before it is written. */
type Draft = { replacement: Job; replaces: Replaces }

/** The draft of an intent for a restart of `live`. */
export function draftOf({ live, additions, dueAt }: IntentPlan): Draft {
  const { uid = "", resourceVersion = "" } = live.metadata ?? {}
  const replaces: Replaces = { uid, resourceVersion, fingerprint: fingerprintOf(live) }
  if (dueAt !== undefined) replaces.dueAt = instantText(dueAt)
  if (Object.keys(additions.memory).length > 0) replaces.memory = additions.memory
  return { replacement: buildReplacement(live, additions), replaces }
}

/** The draft for writing an intent again that was read before. */
export function draftFrom({ jobUid: uid, jobVersion: resourceVersion, dueAt, ...intent }: Intent): Draft {
  const { replacement, fingerprint, additions } = intent
  const replaces: Replaces = { uid, resourceVersion, fingerprint, memory: additions.memory }
  if (dueAt !== undefined) replaces.dueAt = instantText(dueAt)
  return { replacement, replaces }
}

/**
 * An intent: data in the form of a Job that nobody runs (suspended, parallelism 0, managed by us), prunes (none of
 * the user's labels or annotations) or adopts (no owner). The pod template is the user's, so that policies check it.
 * `wide` is for policies that reject a Job without labels, annotations or fields that they require.
 */
export function intentFor({ replacement, replaces }: Draft, wide = false): Job {
  const name = replacement.metadata?.name ?? ""
  const { metadata, spec } = wide ? wideShape(replacement) : { metadata: {} as Metadata, spec: {} }
  const template = structuredClone(replacement.spec?.template) as Template
  if (template.metadata) template.metadata.labels = withoutKeys(template.metadata.labels, SERVER_LABELS)
  return {
    apiVersion: "batch/v1",
    kind: "Job",
    metadata: {
      name: intentName(name, replaces),
      labels: { ...metadata.labels, [INTENT]: labelValueFor(name) },
      annotations: {
        ...metadata.annotations,
        [REPLACEMENT]: packed(JSON.stringify(replacement)),
        [REPLACES]: JSON.stringify(replaces),
      },
    },
    spec: { ...spec, suspend: true, parallelism: 0, managedBy: INTENT, template },
  }
}

type Template = NonNullable<Job["spec"]>["template"]

/** Keys by which known tools find, prune or adopt what they applied. */
const PRUNING_KEY = new RegExp(
  [
    String.raw`^(kubectl|applyset)\.kubernetes\.io/`,
    String.raw`^(kapp|kbld)\.k14s\.io/`,
    String.raw`\.(cattle|fluxcd)\.io/`,
    String.raw`^argocd\.argoproj\.io/`,
    String.raw`^app\.kubernetes\.io/(instance|managed-by)$`,
    String.raw`^meta\.helm\.sh/`,
    String.raw`^kueue\.x-k8s\.io/(?!queue-name$)`,
    "^downscaler/",
  ].join("|"),
)

/** The user's metadata and spec as far as an intent may carry them: nothing that others prune by, and no selector. */
function wideShape({ metadata, spec }: Job): { metadata: Metadata; spec: object } {
  const bare = (map: Record<string, string> | undefined) =>
    Object.fromEntries(Object.entries(map ?? {}).filter(([key]) => !PRUNING_KEY.test(key)))
  return {
    metadata: { labels: bare(metadata?.labels), annotations: bare(metadata?.annotations) },
    spec: withoutKeys(spec, ["selector", "manualSelector"]),
  }
}

const packed = (text: string) =>
  Buffer.byteLength(text) <= ANNOTATION_BYTES ? text : Buffer.from(Bun.gzipSync(Buffer.from(text))).toString("base64")

/** The API server takes no larger request. Anybody may write an intent, and gzip packs a thousand times as much. */
const REPLACEMENT_BYTES = 3 << 20

const unpacked = (text: string) =>
  text.startsWith("{")
    ? text
    : gunzipSync(Buffer.from(text, "base64"), { maxOutputLength: REPLACEMENT_BYTES }).toString()

/**
 * At most 51 characters: an Indexed Job's name needs room for the index in its pods' host names
 * (pkg/apis/batch/validation). An intent with a due time has another name than one without, so that both can exist.
 */
function intentName(name: string, { uid, resourceVersion, dueAt }: Replaces): string {
  return `${shortened(name)}-restart-${hashOf([name, uid, resourceVersion, dueAt ?? []].flat().join("/"))}`
}

const shortened = (name: string) => name.slice(0, 30).replace(/[^a-z0-9]+$/, "")
const hashOf = (text: string) => createHash("sha256").update(text).digest("hex").slice(0, 12)

/** The label value for a Job's name, which may be longer than a label value's 63 characters. */
export const labelValueFor = (name: string) => (name.length <= 63 ? name : hashOf(name))

/** Whether a Job is an intent, even one that has lost its label. Those of 1.0.0 have an annotation INTENT. */
export const isIntent = ({ metadata }: Job) =>
  metadata?.labels?.[INTENT] !== undefined ||
  [REPLACEMENT, INTENT].some((key) => metadata?.annotations?.[key] !== undefined)

const isUnsafe = ({ metadata: { labels, ownerReferences = [], finalizers = [] } = {}, spec }: Job) =>
  labels?.[INTENT] === undefined ||
  ownerReferences.length > 0 ||
  finalizers.some((name) => !SERVER_FINALIZERS.includes(name)) ||
  (spec?.managedBy !== INTENT && spec?.suspend !== true && spec?.parallelism !== 0)

/** Reads an intent; undefined if the Job is none, or if somebody has made it unreadable. */
export function readIntent(job: Job): Intent | undefined {
  if (!isIntent(job)) return undefined
  const { namespace = "", name = "", uid = "", annotations, deletionTimestamp } = job.metadata ?? {}
  const status = { deleting: deletionTimestamp != null, unsafe: isUnsafe(job) }
  const identity = { namespace, name, uid, version: versionOf(job), ...status }
  const read = (): Intent | undefined => {
    if (annotations?.[REPLACEMENT] === undefined) return readIntentOfV1(job, identity)
    const replacement = JSON.parse(unpacked(annotations[REPLACEMENT])) as Job
    const replaces = JSON.parse(annotations[REPLACES] ?? "") as Replaces
    const jobName = replacement.metadata?.name ?? ""
    const { uid: jobUid, resourceVersion: jobVersion, dueAt, fingerprint, memory = {} } = replaces
    if (intentName(jobName, replaces) !== name || !jobUid || !jobVersion) return undefined
    const additions = { annotations: bookkeepingOf(replacement), memory }
    return { ...identity, jobName, jobUid, jobVersion, dueAt: instant(dueAt), replacement, fingerprint, additions }
  }
  return tryOrUndefined(() => {
    const intent = read()
    if (!intent) return undefined
    const { jobName, jobUid, jobVersion, replacement } = intent
    const { labels = {}, annotations: own = {} } = replacement.metadata ?? {}
    const texts = [jobUid, jobVersion, ...Object.values(labels), ...Object.values(own)]
    // Anybody who may create Jobs can write one. The last two throw if its replacement is no Job.
    const isJob = isJobName(jobName) && texts.every((text) => typeof text === "string")
    return isJob && viewJob(replacement) && contentOf(replacement) ? intent : undefined
  })
}

/** The new Job of an intent, with its namespace, which the replacement does not name. */
export const replacementOf = ({ namespace, replacement }: Intent): Job => ({
  ...replacement,
  metadata: { ...replacement.metadata, namespace },
})

const bookkeepingOf = ({ metadata }: Job) =>
  Object.fromEntries(Object.entries(metadata?.annotations ?? {}).filter(([key]) => BOOKKEEPING.includes(key)))

/** What version 1.0.0 kept in the annotation INTENT: the parts of the Job that the intent itself could not have. */
interface HiddenOfV1 {
  name: string
  uid: string
  resourceVersion: string
  notBefore?: string
  metadata: Pick<NonNullable<Job["metadata"]>, "labels" | "ownerReferences" | "finalizers">
  spec: Pick<NonNullable<Job["spec"]>, "suspend" | "manualSelector" | "selector">
  templateLabels?: Record<string, string>
  memory?: Record<string, string>
}

/** Reads an intent of version 1.0.0: a suspended copy of the Job, and the rest of it in an annotation. */
function readIntentOfV1(
  job: Job,
  identity: Pick<Intent, "namespace" | "name" | "uid" | "version" | "deleting" | "unsafe">,
): Intent | undefined {
  const hidden = JSON.parse(job.metadata?.annotations?.[INTENT] ?? "") as HiddenOfV1
  const { name: jobName, uid: jobUid, resourceVersion: jobVersion, memory = {} } = hidden
  if (![jobName, jobUid, jobVersion].every((part) => typeof part === "string" && part !== "")) return undefined
  const { metadata: m = {}, spec: s, ...rest } = replacementFor(job)
  const { suspend: _, template, ...spec } = s as NonNullable<Job["spec"]>
  const labels = hidden.templateLabels ?? template.metadata?.labels ?? {}
  const metadata = {
    ...m,
    name: jobName,
    labels: {},
    ...hidden.metadata,
    annotations: withoutKeys(m.annotations, [INTENT]),
  }
  const original = withoutEmpty({
    ...rest,
    metadata,
    spec: { ...spec, ...hidden.spec, template: { ...template, metadata: { ...template.metadata, labels } } },
  })
  const additions = { annotations: bookkeepingOf(job), memory }
  const replacement = buildReplacement(original, additions)
  const fingerprint = fingerprintOf(original)
  return {
    ...identity,
    jobName,
    jobUid,
    jobVersion,
    dueAt: instant(hidden.notBefore),
    replacement,
    fingerprint,
    additions,
  }
}

/** How the intent that the server made differs from the one that was sent; undefined if it protects the Job. */
export function flawOf(sent: Job, made: Job): string | undefined {
  const { labels, annotations, ownerReferences = [], finalizers = [], deletionTimestamp } = made.metadata ?? {}
  const lost = [REPLACEMENT, REPLACES].filter((key) => annotations?.[key] !== sent.metadata?.annotations?.[key])
  const { suspend, parallelism, managedBy = INTENT } = made.spec ?? {}
  const flaws = [
    labels?.[INTENT] !== sent.metadata?.labels?.[INTENT] && `its label ${INTENT} was removed or changed`,
    lost.length > 0 && `its annotation ${lost.join(" and ")} was removed or changed`,
    ownerReferences.length > 0 &&
      `it got the owner ${ownerReferences.map(({ kind, name }) => `${kind} ${name}`).join(", ")}`,
    finalizers.length > 0 && `it got the finalizer ${finalizers.join(", ")}`,
    deletionTimestamp && "it is being deleted",
    // A server without the feature JobManagedBy drops managedBy; then parallelism 0 alone keeps pods away.
    (suspend !== true || parallelism !== 0 || managedBy !== INTENT) &&
      "it could run: suspend, parallelism or managedBy was changed",
  ]
  return flaws.filter(Boolean).join("; ") || undefined
}

/**
 * After an out-of-memory kill: double the memory of the killed containers, up to the Job's annotation
 * `oom-memory-max`. Empty without that annotation, without a limit, or if the maximum is reached.
 */
export function moreMemory(job: Job, { killed }: Failure): Record<string, string> {
  const most = normalizeInput(job.metadata?.annotations?.[`${PREFIX}oom-memory-max`])
  return Object.fromEntries(
    containersOf(job).flatMap(({ name, resources }) => {
      const limit = String(resources?.limits?.memory ?? "")
      if (!killed.includes(name) || bytesOf(limit) === 0 || bytesOf(limit) >= bytesOf(most)) return []
      const doubled = limit.replace(/^[\d.]+/, (number) => String(Number(number) * 2))
      return [[name, bytesOf(limit) * 2 > bytesOf(most) ? most : doubled]]
    }),
  )
}

/** The value of a quantity; 0 if it is none. A limit of 0 limits nothing. */
const bytesOf = (text: string) => tryOrUndefined(() => quantity(text)) ?? 0

const containersOf = ({ spec }: Job) => [
  ...(spec?.template.spec?.initContainers ?? []),
  ...(spec?.template.spec?.containers ?? []),
]

/** Sets memory limits, and requests that were equal to them. An annotation keeps the first limits. */
function withMemory(original: Job, memory: Record<string, string>): Job {
  if (Object.keys(memory).length === 0) return original
  const job = structuredClone(original)
  const first = (job.metadata?.annotations?.[`${PREFIX}oom-memory-first`] ?? "").split(",").filter(Boolean)
  for (const { name, resources } of containersOf(job)) {
    const { limits, requests } = resources ?? {}
    const limit = Object.hasOwn(memory, name) ? memory[name] : undefined
    if (!limits || limit === undefined) continue
    if (!first.some((entry) => entry.startsWith(`${name}=`))) first.push(`${name}=${limits.memory}`)
    if (requests?.memory === limits.memory) Object.assign(requests ?? {}, { memory: limit })
    limits.memory = limit
  }
  if (first.length > 0)
    job.metadata = {
      ...job.metadata,
      annotations: { ...job.metadata?.annotations, [`${PREFIX}oom-memory-first`]: first.join() },
    }
  return job
}

/**
 * The intents that are not being deleted, the one that counts first: that of the newest version; of two, the one that
 * is due earlier. The order must not depend on the reader: else each of two operators would remove the other's intent.
 */
export function newestFirst<I extends Intent>(intents: I[]): I[] {
  const due = ({ dueAt }: Intent) => dueAt ?? 0
  return intents
    .filter(({ deleting }) => !deleting)
    .sort((a, b) => compareVersions(b.jobVersion, a.jobVersion) || due(a) - due(b) || (a.name < b.name ? -1 : 1))
}

/**
 * How a run ended. `replaced`: someone else created the new Job. `changed`: the Job has changed, nothing was done.
 * `waiting`: nothing to do before `dueAt`. `rejected`: the cluster rejects the new Job or its intent; nothing was
 * deleted.
 */
export type Outcome =
  | { result: "restarted" | "replaced"; uid: string }
  | { result: "rejected"; error: Error }
  | { result: "waiting"; dueAt: number }
  | { result: "changed" | "cancelled" | "namespace gone" | "interrupted" }

/** What keeps a deleted Job, or a pod of it, from being gone. */
type Blocker = { pod?: string; phase?: string; node?: string | undefined; finalizers: string[] }

/** The decision on a Job, and what its new Job gets. */
export type Desired = { decision: Decision; additions: Additions }

/** All that nextStep() decides on. */
export interface Observation {
  /** newestFirst(). All of them were known before the Job was read. */
  intents: Intent[]
  /** Intents were known, but none of them exists any more. */
  intentWasRemoved: boolean
  /** How the restart has ended: by our clean up, whose answer was lost, or by another operator that was faster. */
  ended: Outcome | undefined
  live: Job | undefined
  /** The newest version of the Job that anyone has seen. */
  latest: Job | undefined
  /** Neither the TTL controller nor we have deleted the Job. Known only if this process has watched it. */
  deletedByPerson: boolean
  /** Whether a TTL may have taken the Job. */
  hadTtl: boolean
  desired: Desired | undefined
  /** Read only if the Job is terminating or gone. */
  blockers: Blocker[]
  /** For how long the terminating Job has had no blocker but the finalizer of a Foreground delete. */
  unblockedForMs: number
  /** The version of an edited Job for which the cluster rejects the new Job or the intent. */
  rejectedEdit: string | undefined
  /** A delete got no answer, and may still be applied. */
  mayBeDeleted: boolean
  /** The cluster has rejected this restart before: the dry run comes before the intent. */
  wasRejected: boolean
  /** A person asked for the restart now: due times do not count. */
  atOnce: boolean
  /** RESTART_SPACING: no restart that waits starts before. */
  heldUntil: number
}

export type Step =
  | { do: "write intent"; plan: IntentPlan; prove: boolean }
  | { do: "prove and delete"; intent: Intent; ttl: boolean }
  | { do: "delete in background"; intent: Intent }
  | { do: "wait"; for: string; blockers: Blocker[] }
  | { do: "create"; intent: Intent }
  /**
   * `withdraw`: the Job still stands, and another operator may be deleting it. Without an outcome the restart goes
   * on.
   */
  | { do: "clean up"; intents: Intent[]; outcome: Outcome | undefined; withdraw: boolean }
  | { do: "done"; outcome: Outcome }

const done = (outcome: Outcome): Step => ({ do: "done", outcome })

const BACKGROUND_AFTER_MS = 60_000

/** A Job whose TTL ends this soon after its due time is protected too: the operator may be away at that moment. */
const TTL_MARGIN_MS = 60_000

/**
 * Whether a failed Job's TTL may remove it before, or just after, it is due. Then its intent is written when it fails,
 * with the due time; where the TTL is shorter than a look at its pods, even before its cause is known. Once the TTL
 * has taken the Job, it is created from the intent when it is due, unless wasDeletedByPerson().
 */
export const isThreatenedByTtl = ({ ttlMs, failedAt }: JobView, dueAt: number) =>
  ttlMs !== undefined && failedAt !== undefined && failedAt + ttlMs <= dueAt + TTL_MARGIN_MS

/**
 * Whether a Job that is gone was deleted by a person, from its last state as a watch told it. The TTL controller and
 * we delete Foreground, so that state carries a deletionTimestamp; a plain `kubectl delete` leaves none. Both times
 * are the API server's; ten seconds are for control planes with two clocks. `knownTtlMs`: the shortest that was
 * seen, for the TTL may be edited while it takes the Job. An intent that was written later proves that it was the TTL.
 */
export function wasDeletedByPerson(
  last: Job,
  intent: Pick<Intent, "dueAt" | "version"> | undefined,
  knownTtlMs = viewJob(last).ttlMs,
): boolean {
  const deletedAt = instant(last.metadata?.deletionTimestamp)
  if (deletedAt === undefined) return true
  if (intent && compareVersions(intent.version, versionOf(last)) > 0) return false
  const { failedAt = 0 } = viewJob(last)
  const expiresAt = failedAt + (knownTtlMs ?? Number.POSITIVE_INFINITY)
  return deletedAt < Math.min(expiresAt, intent?.dueAt ?? Number.POSITIVE_INFINITY) - 10_000
}

/**
 * The rule of a restart, the same for this process, the next one, and two operators at once. They elect no leader: an
 * intent is named after the version that it replaces, a delete is bound to that version, a create needs a free name,
 * and an operator leaves another's intent to its writer for a minute. Once an intent exists and the Job is gone, the
 * Job is created: whether we deleted it, an earlier process, its TTL or a person cannot always be told, and never to
 * lose a Job matters more than never to resurrect one.
 */
export function nextStep(seen: Observation, now: number): Step {
  const { intents, live, latest } = seen
  const [newest, ...older] = intents
  if (!newest) return stepWithoutIntent(seen, now)
  const isBegun = wasBegun(seen, newest, older)
  const intent = isBegun ? { ...newest, dueAt: undefined } : newest
  const back = [live, latest].find((job) => job && wasRecreated(job, intent))
  if (back) return { do: "clean up", intents, outcome: outcomeOf(intents, back), withdraw: false }
  // Beside an unsafe intent, an older one is all that protects the Job.
  if (older.length > 0 && !isBegun && !newest.unsafe)
    return { do: "clean up", intents: older, outcome: undefined, withdraw: false }
  if (!live) return stepWhileAbsent(seen, intent, now)
  return isTerminating(live) ? stepWhileTerminating(seen, intent, live) : stepBeforeDelete(seen, intent, live, now)
}

const isTerminating = ({ metadata }: Job) => metadata?.deletionTimestamp != null
const hasEnded = (job: Job) => ["failed", "succeeded"].includes(viewJob(job).phase)
/** Whether a Job that is there may be deleted by an intent, which whoever may create Jobs can forge. */
export const mayDelete = ({ jobVersion }: Intent, job: Job) => hasEnded(job) && versionOf(job) === jobVersion
/** Whether a Job is being deleted, or does not exist. */
export const isTerminatingOrGone = (job: Job | undefined) => !job || isTerminating(job)
const uidOf = ({ metadata }: Job) => metadata?.uid
const versionOf = ({ metadata }: Job) => metadata?.resourceVersion ?? ""
const isNewer = (job: Job, { jobVersion }: Intent) => compareVersions(versionOf(job), jobVersion) > 0

/** A Job of another uid took the place of the one that the intent replaces; it may even be gone again. */
const wasRecreated = (job: Job, intent: Intent) => uidOf(job) !== intent.jobUid && isNewer(job, intent)

function outcomeOf(intents: Intent[], back: Job): Outcome {
  const from = back.metadata?.annotations?.[`${PREFIX}restarted-from`]
  const isOurs = intents.some(({ jobUid }) => jobUid === from)
  return { result: isOurs ? "restarted" : "replaced", uid: uidOf(back) ?? "" }
}

function stepWithoutIntent(seen: Observation, now: number): Step {
  const { live, latest, desired, intentWasRemoved, deletedByPerson, wasRejected } = seen
  const isGone = isTerminatingOrGone(live)
  if (seen.ended) return done(seen.ended)
  if (!isGone && seen.mayBeDeleted)
    return { do: "wait", for: "a delete without an answer, which may still be applied", blockers: [] }
  if (intentWasRemoved) return done({ result: isGone ? "cancelled" : "changed" })
  const source = live ?? latest
  if (!source || !desired || deletedByPerson || !("dueAt" in desired.decision)) return done({ result: "changed" })
  const { dueAt } = desired.decision
  const startsAt = Math.max(dueAt, seen.heldUntil)
  const isDue = seen.atOnce || (live !== undefined && now >= startsAt)
  if (live && isTerminating(live)) return done({ result: "changed" })
  // Without a TTL it was deleted by a person.
  if (!live && !seen.hadTtl) return done({ result: "changed" })
  if (live && !isDue && !isThreatenedByTtl(viewJob(live), startsAt)) return done({ result: "waiting", dueAt: startsAt })
  return writeStep({ live: source, additions: desired.additions, dueAt: isDue ? undefined : dueAt }, wasRejected)
}

function writeStep(plan: IntentPlan, prove: boolean): Step {
  const inexact = inexactNumber({ metadata: plan.live.metadata?.ownerReferences, spec: plan.live.spec })
  if (!inexact) return { do: "write intent", plan, prove }
  return done({
    result: "rejected",
    error: new Error(`${inexact} is above 2^53 and would be changed; write a smaller number`),
  })
}

/**
 * Whether an intent without a due time, by which the Job was deleted, exists beside a newer one with a due time, which
 * was written for an edit. The newer one alone would make that delete look like a person's: both stay, neither waits.
 */
function wasBegun({ live }: Observation, newest: Intent, older: Intent[]): boolean {
  const isByOlder = older.some(({ jobUid, dueAt }) => jobUid === newest.jobUid && dueAt === undefined)
  return isTerminatingOrGone(live) && isByOlder && newest.dueAt !== undefined
}

/** The Job exists, as it was when the intent was written or edited since. */
function stepBeforeDelete(seen: Observation, intent: Intent, live: Job, now: number): Step {
  const { desired, intents } = seen
  // Whoever may create Jobs can forge an intent.
  if (!hasEnded(live)) return { do: "clean up", intents, outcome: { result: "changed" }, withdraw: false }
  // A delete with an older version as its precondition can never succeed: this intent is void, and safe to remove.
  // Where it waits, the next one is written first: a TTL may take the Job.
  if (versionOf(live) !== intent.jobVersion) {
    const renewal = stepWithoutIntent(seen, now)
    const isRejected = versionOf(live) === seen.rejectedEdit
    if (intent.dueAt !== undefined && renewal.do === "write intent" && !isRejected) return renewal
    return { do: "clean up", intents, outcome: { result: "changed" }, withdraw: false }
  }
  // Its writer was stopped before it could remove it. Another one is written, and checked.
  if (intent.unsafe) return { do: "clean up", intents: [intent], outcome: undefined, withdraw: true }
  // It was written before the cause was known, or by other settings. One that does not wait is a restart under way.
  if (desired && !("dueAt" in desired.decision) && intent.dueAt !== undefined && !knewCause(intent, desired))
    return { do: "clean up", intents, outcome: { result: "changed" }, withdraw: true }
  const earlier = earlierIntent(seen, intent, live, now)
  if (earlier) return earlier
  const startsAt = startOf(seen, intent)
  if (now < startsAt) return done({ result: "waiting", dueAt: startsAt })
  // An operator whose clock is behind would take our delete for a person's; an intent without a due time tells it
  // otherwise.
  if (intent.dueAt !== undefined)
    return writeStep({ live, additions: desired?.additions ?? intent.additions, dueAt: undefined }, false)
  return { do: "prove and delete", intent, ttl: viewJob(live).ttlMs !== undefined }
}

const LAST_CAUSE = `${PREFIX}last-cause`

/** Whether an intent was written before its cause was known, because a TTL threatened the Job. */
const isPremature = ({ additions }: Intent) => additions.annotations[LAST_CAUSE] === undefined

/** Whether we give up a Job only because its cause is unknown to us, while the writer of its intent knew the cause. */
function knewCause({ additions }: Intent, desired: Desired): boolean {
  const isKnown = ({ annotations }: Additions) => (annotations[LAST_CAUSE] ?? "unknown") !== "unknown"
  return desired.decision.do === "give up" && isKnown(additions) && !isKnown(desired.additions)
}

/** Replaces an intent that waits too long: it was written before the cause was known, or before a person asked. */
function earlierIntent(
  { desired, atOnce }: Observation,
  { dueAt, additions }: Intent,
  job: Job,
  now: number,
): Step | undefined {
  if (dueAt === undefined) return undefined
  if (atOnce) return writeStep({ live: job, additions: desired?.additions ?? additions, dueAt: undefined }, false)
  if (!desired || !("dueAt" in desired.decision)) return undefined
  const wantedAt = Math.max(desired.decision.dueAt, now)
  if (inSeconds(wantedAt) >= inSeconds(dueAt)) return undefined
  // It keeps its due time, so that a person can still cancel it by deleting the Job.
  return writeStep({ live: job, additions: desired.additions, dueAt: wantedAt }, false)
}

/** Until when an intent waits; one without a due time is a restart under way. */
const startOf = ({ heldUntil }: Observation, { dueAt }: Intent) =>
  dueAt === undefined ? 0 : Math.max(dueAt, heldUntil)

const inSeconds = (ms: number) => Math.floor(ms / 1_000)

function stepWhileTerminating(seen: Observation, intent: Intent, live: Job): Step {
  const edit = editOf(seen, intent, live)
  if (edit) return edit
  if (seen.unblockedForMs >= BACKGROUND_AFTER_MS) return { do: "delete in background", intent }
  return { do: "wait", for: "the old Job to go", blockers: seen.blockers }
}

function stepWhileAbsent(seen: Observation, intent: Intent, now: number): Step {
  const { intents, latest, deletedByPerson, blockers, atOnce, desired } = seen
  if (deletedByPerson && intent.dueAt !== undefined && !atOnce)
    return { do: "clean up", intents, outcome: { result: "cancelled" }, withdraw: false }
  // The cause, which is known by now, forbids the restart.
  if (desired?.decision.do === "give up" && intent.dueAt !== undefined && !atOnce && isPremature(intent))
    return { do: "clean up", intents, outcome: { result: "changed" }, withdraw: false }
  const edit = latest && editOf(seen, intent, latest)
  if (edit) return edit
  const earlier = !atOnce && latest && uidOf(latest) === intent.jobUid && earlierIntent(seen, intent, latest, now)
  if (earlier) return earlier
  const startsAt = startOf(seen, intent)
  if (!atOnce && now < startsAt) return done({ result: "waiting", dueAt: startsAt })
  if (blockers.length > 0) return { do: "wait", for: "the pods of the old Job to go", blockers }
  return { do: "create", intent }
}

/** An edit of the terminating Job gets an intent of its own, once a dry run has proved it. */
function editOf({ rejectedEdit }: Observation, intent: Intent, job: Job): Step | undefined {
  if (!isNewer(job, intent) || versionOf(job) === rejectedEdit || fingerprintOf(job) === intent.fingerprint)
    return undefined
  // Controllers remove their finalizers from a terminating Job.
  const finalizers = intent.replacement.metadata?.finalizers ?? []
  const live = { ...job, metadata: { ...job.metadata, finalizers } }
  // If a person asks for a restart meanwhile, this is it.
  const asked = annotationOf(viewJob(job), "restart-now")
  const annotations = {
    ...intent.additions.annotations,
    ...(asked !== undefined && { [`${PREFIX}restart-now-done`]: asked }),
  }
  const additions = { ...intent.additions, annotations }
  return writeStep({ live, additions, dueAt: intent.dueAt }, true)
}

/**
 * Whether the new Job has to wait for a pod of the old one. An orphaned pod that has ended does no harm, unless the
 * new Job would adopt it.
 */
export function blocksReplacement(pod: PodView, { jobUid, replacement }: Intent): boolean {
  if (pod.gone) return false
  if (!pod.orphaned) return pod.jobUid === jobUid
  return replacement.spec?.manualSelector === true || !["Succeeded", "Failed"].includes(pod.phase)
}

/** What holds a restart up, in words. */
export function blockersText(blockers: Blocker[]): string {
  const texts = blockers.map(({ pod, phase, node, finalizers }) => {
    const facts = [phase, node && `node ${node}`, finalizers.length > 0 && `finalizers ${finalizers.join(", ")}`]
    const text = facts.filter(Boolean).join(", ")
    return pod === undefined ? text : `pod ${pod} (${text})`
  })
  return texts.join("; ")
}

/** The label selector that finds the pods of an intent's old Job. */
export function podSelector({ jobUid, replacement }: Intent): string {
  const { manualSelector, selector } = replacement.spec ?? {}
  if (!manualSelector || !selector) return `batch.kubernetes.io/controller-uid=${jobUid}`
  return selectorText(selector as V1LabelSelector)
}

// ────────────────────────────────────────────── 6 Records ───────────────────────────────────────────────

/** A past failure, from the metadata of its record; `restarts`: consecutive ones before it. */
export type PastFailure = ReturnType<typeof readPast>

const HISTORY_OF_GONE_MS = 30 * 86_400_000

/** The label of the operator's ConfigMaps: `failure` or `settings`. */
export const RECORD = `${PREFIX}record`

/** The label with the name of a record's Job. If it is too long, this is a hash, and an annotation has the name. */
export const RECORD_JOB = `${PREFIX}job`

/** The name of the ConfigMap from which the commands learn the operator's settings. */
export const SETTINGS_MAP = `${project.name}-settings`

/** Reads the metadata of a record; never throws. */
export function readPast({ name = "", namespace = "", labels, annotations, creationTimestamp }: Metadata) {
  const fact = (key: string) => annotations?.[PREFIX + key] ?? ""
  return {
    name,
    namespace,
    job: fact("job") || (labels?.[RECORD_JOB] ?? ""),
    uid: fact("uid"),
    cause: (fact("cause") || "unknown") as Cause,
    startedAt: instant(fact("started-at")),
    failedAt: instant(fact("failed-at")) ?? instant(creationTimestamp) ?? 0,
    restarts: countFrom(fact("restarts")),
    summary: fact("summary"),
    decided: fact("decided"),
  }
}

/** What decides whether a record is kept. */
type RecordKey = Pick<PastFailure, "name" | "job" | "failedAt" | "restarts">

const recordKey = (metadata: Metadata): RecordKey => {
  const { name, job, failedAt, restarts } = readPast(metadata)
  return { name, job, failedAt, restarts }
}

/** The records to remove: all but the newest `limit` of each Job, and after 30 days those of a Job that is gone. */
export function staleRecords(records: RecordKey[], limit: number, isThere: (job: string) => boolean, now: number) {
  return [...Map.groupBy(records, ({ job }) => job)].flatMap(([job, all]) => {
    const byName = (a: RecordKey, b: RecordKey) => (a.name < b.name ? -1 : 1)
    const newestFirst = all.sort((a, b) => b.failedAt - a.failedAt || b.restarts - a.restarts || byName(a, b))
    const isOld = !isThere(job) && now - (newestFirst[0]?.failedAt ?? 0) > HISTORY_OF_GONE_MS
    return newestFirst.slice(isOld ? 0 : limit)
  })
}

const RECORD_BYTES = 256 << 10

/**
 * The record of a failure: an immutable ConfigMap. Its name comes from the Job's uid and the time of the failure, so
 * that two operators write it once. Its metadata is all that a table of failures needs. Its data has at most 256 KiB
 * (an object may have 1 MiB), shared equally by the logs; a longer log loses its beginning.
 */
export function recordFor(job: JobView, evidence: Evidence, failure: Failure, decision: Decision): ConfigMap {
  const { namespace, name, uid, startedAt = job.createdAt, failedAt = 0, reason, message } = job
  const { cause } = failure
  const { pods, morePods } = evidence
  const restarts = restartsInRow(job, failure)
  const decided = decidedText(decision)
  const whole = { namespace, job: name, uid, failedAt, cause, reason, message, restarts, decided, morePods, pods }
  const share = (RECORD_BYTES - Buffer.byteLength(jsonText(whole))) / evidence.logs.size
  const logs = [...evidence.logs].map(([container, tail]) => [container, shortTail(tail, share)])
  const label = labelValueFor(name)
  const facts = {
    cause,
    "started-at": instantText(startedAt),
    "failed-at": instantText(failedAt),
    uid,
    restarts: String(restarts),
    summary: summaryOf(job, pods),
    decided,
    ...(label === name ? {} : { job: name }),
  }
  return {
    apiVersion: "v1",
    kind: "ConfigMap",
    metadata: {
      namespace,
      name: `${shortened(name)}-failure-${hashOf(`${uid}/${failedAt}`)}`,
      labels: { [RECORD]: "failure", [RECORD_JOB]: label, [`${PREFIX}cause`]: cause.replace(":", "-") },
      annotations: Object.fromEntries(Object.entries(facts).map(([key, text]) => [PREFIX + key, bounded(text)])),
    },
    immutable: true,
    data: { "failure.json": jsonText({ ...whole, logs: Object.fromEntries(logs) }) },
  }
}

/** How the failed container of the last attempt ended; the reason of the pod or the Job if none did. */
function summaryOf(job: JobView, pods: PodView[]): string {
  const last = decisivePod(job, pods)
  const failed = last && failedContainer(last)
  if (!failed) return last?.reason || job.reason
  const facts = [`${failed.name}: exit code ${failed.exitCode ?? "not known"}`, killText(failed), failed.reason]
  return facts.filter(Boolean).join(", ")
}

/** The last lines of a log that fit into so many bytes of JSON. */
function shortTail({ lines, note }: Tail, mostBytes: number) {
  let bytes = 1_000
  const last = lines.findLastIndex((line) => {
    bytes += Buffer.byteLength(JSON.stringify(line)) + 10
    return bytes > mostBytes
  })
  if (last < 0) return { lines, note }
  return { lines: lines.slice(last + 1), note: `the first ${last + 1} of ${lines.length} lines are cut off` }
}

/** Reads a record; undefined if it is none. Anybody may have written it, so it is escaped when printed. */
export function readRecord({ metadata = {}, data = {} }: ConfigMap) {
  try {
    const revive = (key: string, value: unknown) => (key.endsWith("At") ? (instant(String(value)) ?? 0) : value)
    const { logs = {}, ...whole } = JSON.parse(data["failure.json"] ?? "", revive)
    const { pods, morePods, reason, message } = whole as Evidence & JobView
    const evidence = { pods, logs: new Map(Object.entries<Tail>(logs)), morePods }
    evidenceLines(evidence) // Throws if it lacks anything.
    return { past: readPast(metadata), reason: [reason, message].filter(Boolean).join(", "), evidence }
  } catch {
    return undefined
  }
}

/** A record as lines of text: the failure and what followed, then, indented, its evidence. */
export function recordLines({ past, reason, evidence }: NonNullable<ReturnType<typeof readRecord>>): string[] {
  const ended = `${instantText(past.failedAt)} ${[past.cause, reason].filter(Boolean).join(", ")}`
  const lines = evidenceLines(evidence).map((line) => `    ${line}`)
  return [`${ended}; failure ${past.restarts + 1} in a row; ${past.decided}`, ...lines]
}

// ─────────────────────────────────────────────── 7 Facts ────────────────────────────────────────────────

/** Writes a line of the log. */
export type Log = (level: LogLevel, text: string, details?: Details) => void

/** `lines` are printed indented below the text; the rest are fields for log collectors. */
type Details = { lines?: string[] | undefined; [field: string]: unknown }

/** An Event of a Job, for `kubectl describe`. Core v1, which every Kubernetes shows. */
export function eventFor(
  { namespace, name, uid }: JobName,
  level: LogLevel,
  reason: string,
  text: string,
  now: number,
) {
  const at = instantText(now)
  return {
    apiVersion: "v1",
    kind: "Event",
    metadata: { namespace, generateName: `${name}.` },
    involvedObject: { apiVersion: "batch/v1", kind: "Job", namespace, name, uid },
    type: level === "info" || level === "debug" ? "Normal" : "Warning",
    reason,
    message: bounded(text),
    source: { component: project.name },
    firstTimestamp: at,
    lastTimestamp: at,
    count: 1,
  }
}

/** What happened. Four sinks switch on `kind`: the log, Events, metrics and notifications. Durations are in ms. */
export type Fact =
  | { kind: "FailureSeen"; job: JobName; failedAt: number; cause: Cause; reason: string; evidence: Evidence }
  | { kind: "LeftAlone"; job: JobName; because: string; healthy: boolean; phase: string }
  | { kind: "RestartScheduled"; job: JobName; dueAt: number; inMs: number; because: string; cause: Cause }
  | { kind: "GaveUp"; job: JobName; because: string; cause: Cause }
  | { kind: "RestartStarted"; job: JobName; cause: Cause; isDryRun: boolean }
  | { kind: "IntentWritten"; job: JobName; intent: string; dueAt: number | undefined }
  | { kind: "IntentAdopted"; job: JobName; intent: string }
  | { kind: "IntentUnreadable"; job: JobName }
  | { kind: "RestartFinished"; job: JobName; outcome: FinalOutcome; tookMs: number; lateMs: number }
  | { kind: "RestartRejected"; job: JobName; why: string; retryMs: number }
  | { kind: "HeldUp"; job: JobName; waitsFor: string; blockers: string; forMs: number; isAlarm: boolean }
  | { kind: "EditTaken"; job: JobName }
  | { kind: "EditRejected"; job: JobName; why: string }
  | { kind: "DeletedByOthers"; job: JobName; isRestart: boolean }
  | { kind: "RemovedByTtl"; job: JobName; because: string }
  | { kind: "WrongAnnotation"; job: JobName; problem: string }
  | { kind: "Queued"; job: JobName; queue: string }
  | { kind: "NoPod"; job: JobName; forMs: number }
  | { kind: "CannotStart"; job: JobName; pod: string; reason: string }
  | { kind: "EvidenceUnavailable"; job: JobName; why: string }
  | { kind: "NotUnderstood"; job: JobName; why: string }
  | { kind: "JobMissing"; job: JobName }
  | { kind: "NamespaceEmpty"; namespace: string }
  | { kind: "PermissionsReviewed"; namespace: string; missing: string[]; isEssential: boolean }
  | { kind: "WriteFailed"; namespace: string; what: string; why: string }
  | { kind: "Retrying"; what: string; job: JobName | undefined; why: string; retryMs: number; isAlarm: boolean }
  | { kind: "Recovered"; what: string; job: JobName | undefined; afterMs: number }
  | { kind: "ClockSkew"; skewMs: number }
  | { kind: "ClockSet"; byMs: number }
  | { kind: "Stopping"; restarts: number }

/** The outcomes with which a restart ends. */
type FinalOutcome = Exclude<Outcome, { result: "rejected" | "waiting" }>

/** A sink of facts. Never throws. */
type Emit = (fact: Fact) => void

/** A fact in words. */
type Report = { level: LogLevel; text: string; lines?: string[] | undefined }

const report = (level: LogLevel, text: string, lines?: string[]): Report => ({ level, text, lines })

/** Each fact in words, without the name of its Job. */
const REPORTS: { [K in Fact["kind"]]: (fact: Extract<Fact, { kind: K }>) => Report } = {
  FailureSeen: ({ failedAt, cause, reason, evidence }) => {
    const why = [cause, reason].filter(Boolean).join(", ")
    return report("warning", `failed at ${instantText(failedAt)}: ${why}`, evidenceLines(evidence))
  },
  LeftAlone: ({ because, healthy }) => report(healthy ? "debug" : "info", `left alone: ${because}`),
  RestartScheduled: ({ dueAt, inMs, because }) => {
    const left = durationText(Math.max(0, inMs))
    return report("info", `will be restarted at ${instantText(dueAt)} (in ${left}): ${because}`)
  },
  GaveUp: ({ because, cause }) => report("error", `${gaveUpText(because)} (cause ${cause})`),
  RestartStarted: ({ cause, isDryRun }) =>
    report("info", `${isDryRun ? "would be restarted now (DRY_RUN)" : "restarting"}, cause ${cause}`),
  IntentWritten: ({ job, intent, dueAt }) => {
    const when = dueAt ? ` and will happen at ${instantText(dueAt)}, even if its TTL removes it first` : ""
    // As long as the Job exists, another intent would be written for it.
    const cancel = `kubectl -n ${job.namespace} delete job ${dueAt === undefined ? "" : `${job.name} `}${intent}`
    return report("info", `its restart is recorded in intent ${intent}${when}; to cancel it: ${cancel}`)
  },
  IntentAdopted: ({ intent }) => report("info", `continuing an unfinished restart from its intent ${intent}`),
  IntentUnreadable: () => {
    const advice = "if no restart is under way, delete it"
    return report("error", `is labelled as an intent, but its annotations cannot be read; ${advice}`)
  },
  RestartFinished: ({ outcome, tookMs }) =>
    report(outcome.result === "namespace gone" ? "warning" : "info", finishedText(outcome, tookMs)),
  RestartRejected: ({ why, retryMs }) => {
    const next = `next try in ${durationText(retryMs)}`
    return report("error", `not deleted, because the cluster would not take it back: ${why}; ${next}`)
  },
  HeldUp: ({ waitsFor, blockers, forMs, isAlarm }) => {
    const text = `has waited ${durationText(forMs)} for ${waitsFor}`
    const advice = blockers && `: ${blockers}; remove what holds it, and the restart continues`
    return report(isAlarm ? "error" : "warning", text + advice)
  },
  EditTaken: () => report("info", "was edited while being deleted; the new Job gets the edit"),
  EditRejected: ({ why }) => {
    const what = "was edited while being deleted, but the cluster rejects the edit"
    return report("warning", `${what}; the new Job will lack it: ${why}`)
  },
  DeletedByOthers: ({ isRestart }) =>
    report("info", isRestart ? "is being restarted by someone else" : "was deleted by someone; it is not restarted"),
  RemovedByTtl: ({ because }) => report("warning", `was removed by its TTL and is not restarted: ${because}`),
  WrongAnnotation: ({ problem }) => report("warning", problem),
  Queued: ({ queue }) =>
    report("warning", `waits in queue ${queue}; its suspend field stays as it is for the queue's controller`),
  NoPod: ({ forMs }) => {
    const text = `was restarted, but has had no pod for ${durationText(forMs)}`
    return report("warning", `${text}; kubectl describe job tells of quota and policy`)
  },
  CannotStart: ({ pod, reason }) => {
    const advice = "a Job that never starts fails only with activeDeadlineSeconds"
    return report("warning", `pod ${pod} cannot start: ${reason}; ${advice}`)
  },
  EvidenceUnavailable: ({ why }) => report("warning", `its pods cannot be inspected: ${why}`),
  NotUnderstood: ({ why }) => report("error", `cannot be understood: ${why}`),
  JobMissing: () => report("warning", "there is no such Job yet; it is watched as soon as it appears"),
  NamespaceEmpty: ({ namespace }) =>
    report("warning", `namespace ${namespace} has no Jobs yet, or does not exist; if that is wrong, see NAMESPACE`),
  PermissionsReviewed: ({ namespace, missing, isEssential }) => {
    if (missing.length === 0) return report("debug", `${namespace}: the Role allows everything that is needed`)
    const lack = `the Role lacks ${missing.length} rules, or the namespace is missing`
    return report(isEssential ? "error" : "warning", `${namespace}: ${lack}; see deploy/rbac.yaml:`, missing)
  },
  WriteFailed: ({ namespace, what, why }) => report("warning", `${namespace}: ${what}: ${why}`),
  Retrying: ({ what, why, retryMs, isAlarm }) =>
    report(isAlarm ? "error" : "warning", `${what}, next try in ${durationText(retryMs)}: ${why}`),
  Recovered: ({ what, afterMs }) => report("info", `${what}: over after ${durationText(afterMs)}`),
  ClockSkew: ({ skewMs }) => {
    const skew = `${durationText(Math.abs(skewMs))} ${skewMs > 0 ? "ahead of" : "behind"} this machine's`
    const advice = "due times follow the server's; set the clock that is wrong"
    return report("warning", `the API server's clock is ${skew}; ${advice}`)
  },
  ClockSet: ({ byMs }) =>
    report("info", `this machine's clock was set by ${durationText(byMs)}; the API server's time was read again`),
  Stopping: ({ restarts }) => report("info", `finishing ${restarts} restarts`),
}

/** The outcomes without a new Job, in words. */
const ENDED = {
  cancelled: "its intent was removed, so its restart is cancelled",
  changed: "has changed meanwhile; not restarted",
  "namespace gone": "its namespace is being deleted; it cannot be created again",
  interrupted: "its restart is left for the next start",
}

function finishedText(outcome: FinalOutcome, tookMs: number): string {
  const { result } = outcome
  if (result === "restarted") return `restarted in ${durationText(tookMs)}, new uid ${outcome.uid}`
  if (result !== "replaced") return ENDED[result]
  return `was created again by someone else, uid ${outcome.uid}; that completes its restart`
}

const reportOf = (fact: Fact) => (REPORTS[fact.kind] as (fact: Fact) => Report)(fact)

/** A fact as a line of the log, with its fields for log collectors. */
export function logLineOf(fact: Fact) {
  const { level, text, lines } = reportOf(fact)
  const fields = Object.entries(fact).filter(([name, value]) => name !== "kind" && typeof value !== "object")
  const job = "job" in fact ? fact.job?.key : undefined
  const result = fact.kind === "RestartFinished" ? fact.outcome.result : undefined
  const details: Details = { ...Object.fromEntries(fields), lines, job, result, reason: fact.kind }
  return { level, text: job ? `[${job}] ${text}` : text, details }
}

/** The reason of the Event, for each fact that has one. */
const EVENT_REASONS: Partial<Record<Fact["kind"], string>> = {
  RestartScheduled: "FailureSeen",
  GaveUp: "GivenUp",
  IntentWritten: "RestartRecorded",
  RestartFinished: "Restarted",
  RestartRejected: "CannotRestart",
  HeldUp: "HeldUp",
  WrongAnnotation: "WrongAnnotation",
  Queued: "Queued",
  NoPod: "NoPod",
}

/** A fact as an Event; undefined if it has none. */
export function eventTextOf(fact: Fact): { level: LogLevel; reason: string; text: string } | undefined {
  const reason = EVENT_REASONS[fact.kind]
  const { level, text } = reportOf(fact)
  if (reason === undefined || (fact.kind === "HeldUp" && !fact.isAlarm)) return undefined
  if (fact.kind === "RestartFinished" && fact.outcome.result !== "restarted") return undefined
  if (fact.kind !== "RestartScheduled") return { level, reason, text }
  return { level: "warning", reason, text: `failed, cause ${fact.cause}; ${text}` }
}

// ───────────────────────────────────────────── 8 Kubeconfig ─────────────────────────────────────────────

export const SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"

const NEVER = new AbortController().signal

/** The configuration is wrong; the message says what to do. */
export class ConfigError extends Error {
  override name = "ConfigError"
}

/** Reads KUBECONFIG, else the pod's ServiceAccount, else ~/.kube/config; waits for a FIFO until `stop` fires. */
export async function findSource(env: Env, account = SERVICE_ACCOUNT, context?: string, stop = NEVER): Promise<Source> {
  // Bun has read the variable when the process started: removing it here would be too late.
  if (!/^(|0|false)$/.test(env.BUN_CONFIG_VERBOSE_FETCH ?? ""))
    throw new ConfigError("BUN_CONFIG_VERBOSE_FETCH is set, which prints every request with its credentials: unset it")
  const named = [...new Set(normalizeInput(env.KUBECONFIG).split(delimiter).filter(Boolean))]
  const home = join(env.HOME || env.USERPROFILE || "/", ".kube", "config")
  const inCluster = named.length === 0 && context === undefined && existsSync(join(account, "token"))
  const paths = named.length > 0 ? named : [home]
  const load = async (name?: string) => (inCluster ? readServiceAccount(env, account) : readKubeconfigs(paths, name))
  const config = await withTimeout(2 ** 31 - 1, stop, "the kubeconfig", () => load(context))
  if (!config)
    throw new ConfigError(
      named.length > 0
        ? `cannot read ${named.join(", ")}: there is no such file, or it is empty`
        : `no cluster is configured: KUBECONFIG is not set, and there is neither a ServiceAccount in ` +
            `${account} nor ${home}. Set KUBECONFIG; on a k3s server to /etc/rancher/k3s/k3s.yaml`,
    )
  const from = inCluster ? "the pod's ServiceAccount" : `${named.length > 0 ? "KUBECONFIG " : ""}${paths.join(", ")}`
  await readTls(config).catch((error) => {
    throw new ConfigError(`${from}: ${messageOf(error)}`)
  })
  return new Source(from, inCluster, config, load)
}

/** How to connect to a cluster, and as whom. The context and its server stay those of the start. */
export class Source {
  /** The last answer of the credential plugin. */
  private status: ExecStatus | undefined

  constructor(
    /** Where the configuration comes from. */
    readonly from: string,
    readonly inCluster: boolean,
    public config: Kubeconfig,
    private readonly load: (context?: string) => Promise<Kubeconfig | undefined>,
  ) {}

  /** Headers and TLS for fetch. Reads all files again, for they are renewed; runs a credential plugin if needed. */
  async prepare(): Promise<{ headers: Record<string, string>; tls: Tls }> {
    const tls = await readTls(this.config)
    // Like kubectl, send no credentials without TLS.
    const { authorization, ...identity } = this.config.server.startsWith("https:") ? await this.credentials() : {}
    return { headers: headersOf(this.config, authorization), tls: { ...tls, ...identity } }
  }

  /** Reads the configuration again. Throws ConfigError. */
  async reload(): Promise<void> {
    // A file that is missing or empty may just be being written: the old configuration is kept.
    const { context, server } = this.config
    const now = (await this.load(context)) ?? this.config
    const change = `context ${context} now leads to ${now.server}, at start to ${server}`
    if (now.server !== server)
      throw new ConfigError(`${change}: nothing is sent to either; restart the program to use the new server`)
    this.config = now
    this.status = undefined
  }

  /** Follows kubectl: credentials in the kubeconfig come before a plugin. */
  private async credentials(): Promise<{ authorization?: string; cert?: string; key?: string }> {
    const { token, tokenFile, username, password = "", exec, ...user } = this.config.user
    const provider = user["auth-provider"]
    if (tokenFile) return bearer(await readToken(tokenFile).catch((error) => token ?? Promise.reject(error)))
    if (token) return bearer(token)
    if (username) return { authorization: `Basic ${Buffer.from(`${username}:${password}`).toString("base64")}` }
    if (provider) return bearer(validIdToken(String(provider.config?.["id-token"])))
    if (!exec || user["client-certificate"] || user["client-certificate-data"]) return {}
    const expiresAt = instant(this.status?.expirationTimestamp) ?? Number.POSITIVE_INFINITY
    if (!this.status || systemClock.now() >= expiresAt - RENEW_AHEAD_MS) this.status = await runPlugin(this.config)
    const { token: given, clientCertificateData: cert, clientKeyData: key } = this.status
    return { ...(given && bearer(given)), ...(cert && key && { cert, key }) }
  }
}

/** The checked configuration, with absolute paths, and data decoded to PEM. */
interface Kubeconfig {
  server: string
  cluster: NonNullable<ReturnType<typeof asCluster>>
  user: NonNullable<ReturnType<typeof asUser>>
  context?: string
  namespace?: string | undefined
}

function readServiceAccount(env: Env, folder: string): Kubeconfig {
  const { KUBERNETES_SERVICE_HOST: host, KUBERNETES_SERVICE_PORT: port } = env
  if (!host || !port)
    throw new ConfigError("a ServiceAccount needs KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT beside it")
  return {
    server: `https://${isIPv6(host) ? `[${host}]` : host}:${port}`,
    cluster: { "certificate-authority": join(folder, "ca.crt") },
    user: { tokenFile: join(folder, "token") },
  }
}

/** Follows kubectl: the first file to name an entry wins. Undefined if no file is there, or all are empty. */
async function readKubeconfigs(paths: string[], wanted?: string): Promise<Kubeconfig | undefined> {
  const files = (await allOf(paths.map(readKubeconfig))).filter((file) => file !== undefined)
  if (files.length === 0) return undefined
  const problems: string[] = []
  const check = () => {
    if (problems.length > 0) throw new ConfigError(`${paths.join(", ")}: ${problems.join("; ")}`)
  }
  const current =
    wanted ?? files.map(({ config }) => config["current-context"]).find((name) => name && typeof name === "string")
  if (!current) problems.push("current-context is missing; choose one with kubectl config use-context NAME")
  check()
  const context = readEntry("context", asContext, current, files, problems)
  check()
  const cluster = readEntry("cluster", asCluster, context?.cluster, files, problems) ?? {}
  const user = (context?.user && readEntry("user", asUser, context.user, files, problems)) || {}
  check()
  return { server: cluster.server ?? "", cluster, user, context: String(current), namespace: context?.namespace }
}

function readEntry<T>(kind: string, read: Reader<T>, name: unknown, files: KubeconfigFile[], problems: string[]) {
  const what = `${kind} ${shownName(name)}`
  const entriesOf = ({ config }: KubeconfigFile) => [config[`${kind}s`]].filter(Array.isArray).flat().filter(isMap)
  for (const file of files) {
    const [first, second] = entriesOf(file).filter((entry) => entry.name === name)
    if (second) problems.push(`${file.path} has two entries for ${what}`)
    if (!first) continue
    // For example if the lines below `user:` are not indented.
    const outside = Object.keys(first).filter((field) => !["name", kind].includes(field))
    problems.push(...outside.map((field) => `${what}: the field ${shownValue(field)} is not supported beside ${kind}`))
    return read(first[kind] ?? {}, { what, beside: {}, folder: dirname(file.path), problems })
  }
  const names = new Set(files.flatMap(entriesOf).map((entry) => shownName(entry.name)))
  problems.push(`there is no ${what}; the file has ${[...names].join(", ") || "none"}`)
  return undefined
}

type Yaml = { [key: string]: unknown }

const isMap = (value: unknown): value is Yaml => typeof value === "object" && value !== null && !Array.isArray(value)

/** A value's name in messages, the fields beside it, the folder of its kubeconfig, and where to add its mistakes. */
type Place = { what: string; beside: Yaml; folder: string; problems: string[] }

/** Checks a value; undefined if it is wrong. */
type Reader<T> = (value: unknown, place: Place) => T | undefined
type Fields<T> = { [Name in keyof T]?: T[Name] extends Reader<infer V> ? V : never }

const asWhat =
  <T>(rule: string, read: (value: unknown, folder: string) => T | undefined): Reader<T> =>
  (value, { what, folder, problems }) => {
    const result = read(value, folder)
    if (result === undefined) problems.push(`${what} must be ${rule}`)
    return result
  }

const asTextLike = (rule: string, read: (text: string, folder: string) => string | undefined) =>
  asWhat(rule, (value, folder) => (typeof value === "string" ? read(value, folder) : undefined))

const STRING = "a string, in quotes if it looks like a number"
const asText = asTextLike(STRING, (text) => text)
const asPath = asTextLike(STRING, (text, folder) => resolve(folder, text))
// With a slash it is relative to the kubeconfig; without, it is in PATH.
const asProgram = asTextLike(STRING, (text, folder) => (text.includes("/") ? resolve(folder, text) : text))
const asOneOf = (...texts: string[]) => asTextLike(texts.join(" or "), (text) => texts.find((one) => one === text))
const asFlag = asWhat("true or false", (value) => (typeof value === "boolean" ? value : undefined))
const asMapping = asWhat("a mapping", (value) => (isMap(value) ? value : undefined))

const asList = asWhat("a list", (list) => (Array.isArray(list) ? (list as unknown[]) : undefined))

const asListOf =
  <T>(read: Reader<T>): Reader<T[]> =>
  (value, place) =>
    asList(value, place)?.map((one) => read(one, { ...place, what: `${place.what}: each` }) as T)

// fetch would join the values of a repeated header.
const isOneText = (list: unknown): list is [string] =>
  Array.isArray(list) && list.length === 1 && typeof list[0] === "string"
const asOneText = asWhat("a list of one string", (list) => (isOneText(list) ? list : undefined))
const asOneTextEach = asWhat("a mapping with lists of one string", (map) =>
  isMap(map) && Object.values(map).every(isOneText) ? (map as Record<string, [string]>) : undefined,
)

/** Rules about the fields beside it: `needs this or that`, `excludes that`. */
const asPart =
  <T>(read: Reader<T>, ...rules: string[]): Reader<T> =>
  (value, place) => {
    const isBroken = (rule: string) => {
      const [verb, ...names] = rule.split(/ or | /)
      return names.some((name) => place.beside[name]) === (verb === "excludes")
    }
    place.problems.push(...rules.filter(isBroken).map((rule) => `${place.what} ${rule}`))
    return read(value, place)
  }

/** Unknown fields are mistakes: ignored, they could change the identity. Follows kubectl: an empty field is absent. */
const asFields =
  <T extends Record<string, Reader<unknown>>>(required: string[], readers: T): Reader<Fields<T>> =>
  (value, { what, folder, problems }) => {
    const fields: Yaml = {}
    if (!isMap(value)) problems.push(`${what} must be a mapping`)
    const given = Object.entries(isMap(value) ? value : {}).filter(([, field]) => field !== null && field !== "")
    const beside = Object.fromEntries(given)
    for (const [name, field] of given) {
      const read = Object.hasOwn(readers, name) ? readers[name] : undefined
      if (!read) problems.push(`${what}: the field ${shownValue(name)} is not supported`)
      fields[name] = read?.(field, { what: `${what}: ${name}`, beside, folder, problems })
    }
    problems.push(...required.filter((name) => !(name in beside)).map((name) => `${what}: ${name} is missing`))
    return fields as Fields<T>
  }

const asPemData = asTextLike("the base64 of PEM", (text) => tryOrUndefined(() => pemOf(fromBase64(text))))

const asServer = asTextLike("an https:// URL without user name or query; http:// only for this machine", (text) => {
  const url = /[?#@]/.test(text) ? null : webUrl(text)
  return url && (url.protocol === "https:" || isLoopback(url)) ? url.href.replace(/\/+$/, "") : undefined
})

const asExtensions = asListOf(asMapping)
const asContext = asFields(["cluster"], { cluster: asText, user: asText, namespace: asText, extensions: asExtensions })

const asCluster = asFields(["server"], {
  server: asServer,
  "certificate-authority": asPart(asPath, "excludes insecure-skip-tls-verify"),
  "certificate-authority-data": asPart(asPemData, "excludes certificate-authority or insecure-skip-tls-verify"),
  // Go does not convert it to ASCII.
  "tls-server-name": asTextLike("a name in ASCII", (text) => (/^[!-~]+$/.test(text) ? text : undefined)),
  "insecure-skip-tls-verify": asFlag,
  "proxy-url": asTextLike("a URL that begins with http:// or https://", (text) => (webUrl(text) ? text : undefined)),
  "disable-compression": asFlag,
  extensions: asExtensions,
})

const V1 = "client.authentication.k8s.io/v1"

const asExec = asFields(["command"], {
  apiVersion: asOneOf(V1, `${V1}beta1`),
  command: asProgram,
  args: asListOf(asText),
  env: asListOf(asFields(["name"], { name: asText, value: asText })),
  installHint: asText,
  // A plugin has no terminal.
  interactiveMode: asOneOf("Never", "IfAvailable"),
  provideClusterInfo: asFlag,
})

const asOidc = asWhat("a mapping with idp-issuer-url, client-id and id-token", (map) =>
  isMap(map) && map["idp-issuer-url"] && map["client-id"] && map["id-token"] ? map : undefined,
)

const asUser = asFields([], {
  token: asPart(asText, "excludes username"),
  tokenFile: asPart(asPath, "excludes username"),
  username: asText,
  password: asPart(asText, "needs username"),
  "client-certificate": asPart(asPath, "needs client-key or client-key-data"),
  "client-certificate-data": asPart(asPemData, "excludes client-certificate", "needs client-key or client-key-data"),
  "client-key": asPart(asPath, "needs client-certificate or client-certificate-data"),
  "client-key-data": asPart(asPemData, "excludes client-key", "needs client-certificate or client-certificate-data"),
  as: asText,
  "as-uid": asPart(asText, "needs as"),
  "as-groups": asPart(asOneText, "needs as"),
  "as-user-extra": asPart(asOneTextEach, "needs as"),
  exec: asPart(asExec, "excludes auth-provider"),
  "auth-provider": asFields(["name", "config"], { name: asOneOf("oidc"), config: asOidc }),
  extensions: asExtensions,
})

type KubeconfigFile = { path: string; config: Yaml }

/** Like Promise.all(), but throws all errors, as one ConfigError. */
async function allOf<T>(works: Promise<T>[]): Promise<T[]> {
  const results = await Promise.allSettled(works)
  const mistakes = results.flatMap((result) => (result.status === "rejected" ? [messageOf(result.reason)] : []))
  if (mistakes.length > 0) throw new ConfigError(mistakes.join("; "))
  return Promise.all(works)
}

/** Reads one file. Undefined if there is none, or nothing in it. */
async function readKubeconfig(path: string): Promise<KubeconfigFile | undefined> {
  const bytes = await readBytes(path).catch((error) => {
    if (error.code !== "ENOENT") throw new ConfigError(`cannot read ${path}: ${error.code}`)
  })
  const config = bytes && (await parseYaml(path, bytes))
  if (config === undefined || config === null) return undefined
  if (!isMap(config) || (config.kind ?? "Config") !== "Config" || (config.apiVersion ?? "v1") !== "v1")
    throw new ConfigError(`cannot read ${path} as a kubeconfig: it must be a mapping of apiVersion v1, kind Config`)
  return { path, config }
}

/** Follows kubectl: parses the first document. Errors have the position, and no text, which may be secret. */
async function parseYaml(path: string, bytes: Uint8Array): Promise<unknown> {
  // By the byte order mark; Windows PowerShell writes UTF-16.
  const encoding = { 255: "utf-16le", 254: "utf-16be" }[bytes[0] ?? 0] ?? "utf-8"
  let document = ""
  try {
    document = firstDocument(new TextDecoder(encoding as Bun.Encoding, { fatal: true }).decode(bytes))
    if (document.includes("\u0085")) throw new Error("the character U+0085 is not supported")
    return resolved(Bun.YAML.parse(marked(document)))
  } catch (error) {
    const name = "/kubeconfig.yaml"
    // Bun's bundler reports the position of an error; its parser does not.
    const { logs } = await Bun.build({ entrypoints: [name], files: { [name]: document }, throw: false })
    const { line, column } = logs[0]?.position ?? {}
    const reason = messageOf(error).replace(/^YAML Parse error: /, "")
    throw new ConfigError(`cannot read ${path} as YAML: ${reason}${line ? ` (line ${line}, column ${column})` : ""}`)
  }
}

/** The first document, with the comments, directives and the `---` before it. */
function firstDocument(text: string): string {
  const start = /^(?:[ \t]*(?:[#%].*)?\r?\n)*(?:---(?=\s|$))?/.exec(text)?.[0].length ?? 0
  const length = text.slice(start).search(/^(?:---|\.\.\.)(?=\s|$)/m)
  return length < 0 ? text : text.slice(0, start + length)
}

const BINARY = "\u{e000}"
const MERGE = "\u{e001}"

/** Marks the tag !!binary, which Bun drops, and the key <<, which Bun merges in another order than kubectl. */
function marked(document: string): string {
  const binary = /(?:!!binary|!<tag:yaml.org,2002:binary>)(\s+(?:&\S+\s+)?(?:[|>][-+\d]*[ \t]*\r?\n\s*|["'])?)/g
  return document
    .replace(binary, `$1${BINARY}`)
    .replace(/(^|[\s{,])<<(?=[ \t]*:)/gm, `$1${MERGE}`)
    .replace(/(["'])<<\1(?=[ \t]*:)/g, "$1<< $1") // which is no merge for kubectl
}

/** Decodes !!binary, and merges like kubectl: the later field wins, even over an explicit one. */
function resolved(value: unknown): unknown {
  if (typeof value === "string")
    return value.startsWith(BINARY) ? fromBase64(value.slice(1)).toString() : value.replaceAll(MERGE, "<<")
  if (Array.isArray(value)) return value.map(resolved)
  if (!isMap(value)) return value
  const parts = Object.entries(value).flatMap(([key, inner]) => {
    const field = resolved(inner)
    return key === MERGE ? [field].flat().toReversed() : { [key]: field }
  })
  return Object.fromEntries(parts.flatMap((part) => Object.entries(part ?? {})))
}

const HIDDEN = "(not shown)"

/** The name of an entry, unless it may be a secret in the wrong place. */
const shownName = (name: unknown) => (/^[\w.@:/+-]{1,100}$/.test(String(name)) ? String(name) : HIDDEN)

/** A word of the kubeconfig, unless it may be a part of a secret. */
const shownValue = (word: unknown) =>
  /^(?=.{1,40}$)[a-z]+([A-Z][a-z]+)*([-_.][a-z]+)*$/.test(String(word)) ? String(word) : HIDDEN

const readOnce = new Map<string, Uint8Array>()

/** Reads a file. A FIFO, such as a shell's <(command), can be read only once, so its content is kept. */
async function readBytes(path: string): Promise<Uint8Array> {
  const bytes = readOnce.get(path) ?? (await readFile(path))
  if (!readOnce.has(path) && !(await stat(path)).isFile()) readOnce.set(path, bytes)
  return bytes
}

/** Reads the file of a field. Errors show its folder only: its name may be a secret in the wrong place. */
function readNamed(field: string, path: string): Promise<Uint8Array> {
  return readBytes(path).catch((error) => {
    throw new ConfigError(`${field} names a file in ${dirname(path)} that cannot be read: ${error.code}`)
  })
}

const PEM_FIELDS = ["certificate-authority", "client-certificate", "client-key"] as const

/** A field in PEM form, from its data or its file. */
async function readPem({ cluster, user }: Kubeconfig, field: (typeof PEM_FIELDS)[number]): Promise<string | undefined> {
  const { [field]: file, [`${field}-data` as const]: data } = { ...cluster, ...user }
  const pem = file ? pemOf(await readNamed(field, file)) : data
  if (file && !pem) throw new ConfigError(`${field} must be in PEM form`)
  return pem
}

const PEM =
  /(?<![^\n])-----BEGIN ([A-Z\d ]+)-----[ \t]*\r?\n[\w+/=:, \t\r\n-]*?(?<=\n)-----END \1-----(?=[ \t]*(?:\r?\n|$))/g

/** Follows Go: finds PEM blocks that are on lines of their own. Undefined if there is none. */
const pemOf = (bytes: Uint8Array) => new TextDecoder("latin1").decode(bytes).match(PEM)?.join("\n")

type Tls = BunFetchRequestInitTLS & { allowPartialTrustChain?: boolean }

/** Reads and checks certificates and keys. */
async function readTls(config: Kubeconfig): Promise<Tls> {
  if (config.server.startsWith("http:")) return {}
  const [authorities, cert, key] = await allOf(PEM_FIELDS.map((field) => readPem(config, field)))
  if (cert && key) checkTls("client-certificate and client-key must be a pair, without passphrase", { cert, key })
  const serverName = config.cluster["tls-server-name"]
  return {
    ca: authorities ? certificatesIn(authorities) : trustedRoots(),
    // Like Go, trust an intermediate CA without its root.
    allowPartialTrustChain: true,
    ...(cert && key && { cert, key }),
    ...(serverName && { serverName }),
    // Always set: otherwise NODE_TLS_REJECT_UNAUTHORIZED would decide.
    rejectUnauthorized: !config.cluster["insecure-skip-tls-verify"],
  }
}

/** Follows Go: one valid certificate is enough, other blocks are ignored. */
function certificatesIn(pem: string): string[] {
  const certificates = (pem.match(PEM) ?? []).filter((block) => tryOrUndefined(() => new X509Certificate(block)))
  if (certificates.length > 0) return certificates
  throw new ConfigError("certificate-authority must have a certificate")
}

/** Bun's fetch would report a wrong key as a wrong URL (oven-sh/bun#36149). */
function checkTls(rule: string, options: SecureContextOptions): void {
  try {
    createSecureContext(options)
  } catch (error) {
    throw new ConfigError(`${rule}: ${(error as { code?: string }).code}`)
  }
}

/** The system's trusted roots and Bun's own. */
const trustedRoots = () => [...new Set([...getCACertificates("system"), ...getCACertificates("default")])]

function headersOf({ cluster, user }: Kubeconfig, authorization: string | undefined): Record<string, string> {
  const texts: Record<string, string | undefined> = {
    Accept: "application/json, */*",
    "User-Agent": `${project.name}/${project.version}`,
    "Accept-Encoding": cluster["disable-compression"] ? "identity" : "",
    Authorization: authorization,
    "Impersonate-User": user.as,
    "Impersonate-Uid": user["as-uid"],
    "Impersonate-Group": user["as-groups"]?.[0],
  }
  for (const [key, [text]] of Object.entries(user["as-user-extra"] ?? {}))
    texts[`Impersonate-Extra-${encodeURIComponent(key)}`] = text
  const headers: Record<string, string> = {}
  for (const [name, text = ""] of Object.entries(texts)) {
    if (/\p{Cc}/u.test(text)) throw new Error(`the value for the header ${name} has control characters`)
    // Like Go, send UTF-8.
    if (text) headers[name] = Buffer.from(text).toString("latin1")
  }
  return headers
}

const bearer = (token: string) => ({ authorization: `Bearer ${token}` })

async function readToken(path: string): Promise<string> {
  const token = new TextDecoder().decode(await readNamed("tokenFile", path)).trim()
  if (!token) throw new Error(`tokenFile: ${path} is empty`)
  return token
}

/** It is not refreshed: kubectl would not get the new refresh-token, and would have to log in again. */
function validIdToken(token: string): string {
  const claims = tryOrUndefined(() => JSON.parse(Buffer.from(token.split(".")[1] ?? "", "base64url").toString()))
  if (claims?.exp * 1_000 > systemClock.now() + RENEW_AHEAD_MS) return token
  throw new Error("auth-provider oidc: the id-token has expired; log in again with kubectl, or use exec")
}

const PLUGIN_LIMIT_MS = 25_000

/** A plugin runs again this long before its answer expires. */
const RENEW_AHEAD_MS = 20_000

type ExecStatus = Partial<Record<"token" | "clientCertificateData" | "clientKeyData" | "expirationTimestamp", string>>

/** The cluster, for a plugin with provideClusterInfo. */
async function clusterInfoOf(config: Kubeconfig): Promise<Yaml> {
  const { extensions = [], "certificate-authority": _, ...fields } = config.cluster
  const ca = await readPem(config, "certificate-authority")
  const extension = extensions.find(({ name }) => name === "client.authentication.k8s.io/exec")?.extension
  const data = ca && Buffer.from(ca, "latin1").toString("base64")
  return { ...fields, server: config.server, "certificate-authority-data": data, config: extension }
}

/** Runs a credential plugin in its own process group, which is killed on exit and after PLUGIN_LIMIT_MS. */
async function runPlugin(config: Kubeconfig): Promise<ExecStatus> {
  const { apiVersion = V1, command = "", args = [], installHint = "", ...exec } = config.user.exec ?? {}
  const extra = Object.fromEntries((exec.env ?? []).map(({ name = "", value = "" }) => [name, value]))
  const spec = { interactive: false, cluster: exec.provideClusterInfo ? await clusterInfoOf(config) : undefined }
  const info = JSON.stringify({ apiVersion, kind: "ExecCredential", spec })
  const env = { ...process.env, ...extra, KUBERNETES_EXEC_INFO: info }
  const plugin = `the credential plugin ${shownValue(basename(command))}`
  const program = Bun.which(command)
  if (!program) throw new Error(`${plugin} is not installed or not in PATH. ${installHint}`.trim())
  const child = Bun.spawn([program, ...args], { env, stderr: "pipe", detached: true })
  const end = () => tryOrUndefined(() => child.exitCode === null && process.kill(-child.pid, "SIGKILL"))
  process.on("exit", end)
  let complaint = ""
  const listen = async () => {
    // More than is shown, so that no part of a secret is left at the cut.
    for await (const part of child.stderr.pipeThrough(new TextDecoderStream()))
      complaint = (complaint + part).slice(-65_536)
  }
  try {
    const ended = Promise.all([child.stdout.text(), child.exited, listen()])
    const [output, code] = await withTimeout(PLUGIN_LIMIT_MS, NEVER, "we", () => ended)
    if (code !== 0) throw new Error(`exit code ${code}`)
    return readStatus(output, apiVersion)
  } catch (error) {
    const values = [...args, ...Object.values(extra)].flatMap((value) => [value, value.replace(/^-[\w-]+=/, "")])
    const secrets = values.filter((value) => value.length > 3 && shownValue(value) === HIDDEN)
    const said = secrets.reduce((rest, secret) => rest.replaceAll(secret, "***"), complaint.trim()).slice(-1_000)
    throw new Error(`${plugin} failed: ${messageOf(error)}${said && `; it said: ${said}`}`)
  } finally {
    process.off("exit", end)
    end()
  }
}

function readStatus(output: string, apiVersion: string): ExecStatus {
  // The parser's own message would quote the output, which has secrets.
  const answer = tryOrUndefined(() => JSON.parse(output) as { apiVersion?: string; status?: ExecStatus })
  const { token, clientCertificateData: cert, clientKeyData: key } = answer?.status ?? {}
  const isPem = [cert, key].every((text) => text === undefined || pemOf(Buffer.from(text)))
  if (!answer?.status || !(token || cert) || !cert !== !key || !isPem)
    throw new Error("its output must be an ExecCredential with a token, or a client certificate and its key")
  if ((answer.apiVersion ?? apiVersion) !== apiVersion) throw new Error(`its answer must have apiVersion ${apiVersion}`)
  if (cert && key) checkTls("its client certificate and key must be a pair", { cert, key })
  return answer.status
}

// ───────────────────────────────────────────── 9 API client ─────────────────────────────────────────────

/** The permissions the operator uses, and what is lost without each; `!`: without it nothing is restarted. */
export const RIGHTS: Record<string, string> = {
  "list batch/jobs": "! Jobs cannot be listed, so no failure is found",
  "get batch/jobs": "! Jobs cannot be read again before they are deleted, so none is restarted",
  "create batch/jobs": "! the new Job cannot be created, so none is deleted",
  "delete batch/jobs": "! failed Jobs cannot be deleted, so none is restarted",
  "watch batch/jobs": "failures are found by polling, up to CHECK_INTERVAL late",
  "list /pods": "causes cannot be determined, nor whether old pods are gone",
  "watch /pods": "cause and log of a Job with restartPolicy OnFailure are lost when its pods are removed too soon",
  "get /pods/log": "log lines of failed containers cannot be kept",
  "create /events": "kubectl describe job does not show what was done; the log does",
  "create /configmaps": "failures are not recorded, and the commands do not know the settings",
  "list /configmaps": "records of failures are not kept to HISTORY_LIMIT",
  "delete /configmaps": "records of failures are not kept to HISTORY_LIMIT",
  "get /configmaps": "the commands do not know the settings",
  "patch /configmaps": "the commands do not know of changed settings",
}

/** The status of a SelfSubjectRulesReview. */
export type Rules = { incomplete: boolean; resourceRules: ResourceRule[] }
type ResourceRule = { verbs: string[]; apiGroups?: string[]; resources?: string[]; resourceNames?: string[] }

/** The permissions that a review grants. If it is incomplete or names single objects, only a real 403 tells. */
export function allowed({ incomplete, resourceRules }: Rules): Set<string> {
  const has = (list: string[] = [], value = "") => list.includes(value) || list.includes("*")
  const allows = (right: string) => {
    const [, verb, group, resource] = /^(\w+) (\w*)\/(.*)$/.exec(right) ?? []
    return resourceRules.some((r) => has(r.verbs, verb) && has(r.apiGroups, group) && has(r.resources, resource))
  }
  return new Set(Object.keys(RIGHTS).filter((right) => incomplete || allows(right)))
}

/** An error that the API server answered, a v1 Status. Branch on `status` and `reason`, never on the message. */
export class ApiError extends Error {
  override name = "ApiError"
  constructor(
    readonly status: number,
    readonly reason: string,
    /** The server's own words. */
    readonly text: string,
    readonly causes: string[] = [],
    readonly retryAfterMs = 0,
  ) {
    super(`${status}${reason && ` ${reason}`}: ${text}`)
  }
}

/** Reduces an object of a list to what its reader needs; undefined drops it. */
export type Keep<Item, Kept> = (item: Item) => Kept | undefined

/** What was kept of a list, and its resourceVersion. */
export type Listed<Kept> = { items: Kept[]; resourceVersion: string }

/** What a watch sends; of ConfigMaps only the metadata. */
type Watched = { jobs: Job; pods: Pod; configmaps: Pick<ConfigMap, "metadata"> }

type JobVersion = Pick<JobView, "namespace" | "name" | "uid" | "resourceVersion">
export type Events<T> = AsyncIterable<{ type: string; object: T }>
type RawEvent = { involvedObject?: { uid?: string }; message?: string; lastTimestamp?: string | null }

/** An Event of the Job with this uid. */
type JobEvent = { uid: string; text: string; at: number }

type LogOptions = { lines: number; previous: boolean }
type CreateOptions = { dryRun?: boolean; strict?: boolean }
export type DeleteOptions = { uid: string; resourceVersion?: string; propagationPolicy: "Foreground" | "Background" }
export type WatchOptions = { resourceVersion: string; selector?: string; silenceMs: number }

const CALL_LIMIT_MS = 30_000

const SKEW_STEP_MS = 1_500

/** A difference of the clocks above which a 401 names it as a possible reason. */
const CLOCK_LIMIT_MS = 60_000

const LOG_LIMIT_MS = 10_000
const BODY_BYTES = 128 << 20
/** A runtime stores a long line in pieces of 16 KiB, unless set otherwise; each counts as a line (CRI). */
const LOG_LINE_BYTES = 16 << 10
const MORE_LOG_BYTES = 4 << 20
/** Each takes up to 2 MiB of memory; fetch itself would run 256 at once. */
const MOST_LOG_READS = 24
const TAIL_CHARACTERS = 256 << 10
const EVENT_CHARACTERS = 16 << 20

type Init = RequestInit & BunFetchRequestInit
type Query = Record<string, string | undefined>

type Call<T = unknown> = { query?: Query; body?: object; limitMs?: number; accept?: string; read?: Read<T> }
type Read<T> = (response: Response) => Promise<T>

const METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
const METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"

/** One page of a list; `continue` leads to the next. */
type Page<T> = { items: T[] | null; metadata: { resourceVersion: string; continue?: string } }

const PAGE_ITEMS = "500"

/** Observes each call: its Kubernetes verb and HTTP status, `none` if there was no answer. */
type OnCall = (verb: string, code: string) => void

const VERBS: Record<string, string> = { GET: "get", POST: "create", PATCH: "patch", DELETE: "delete" }

/** All calls of the API server. Each throws an ApiError, or another Error if no answer came in time. */
export type Cluster = Pick<ApiServer, keyof ApiServer>

/** Makes a client; sends nothing yet. Throws ConfigError. */
export const connect = (source: Source, env: Env = process.env, onCall: OnCall = () => {}): Cluster =>
  new ApiServer(source, env, onCall)

/** The client of the API server: the only code that talks to the cluster. */
class ApiServer {
  readonly address: string
  /** Whether the server's certificate is verified. */
  readonly isVerified: boolean
  /** The proxy through which the server is reached. */
  readonly proxy: Proxy | undefined
  private skew = 0
  private isOutdated = false
  private prepared: { at: number; keptMs: number; init: Promise<Init> } | undefined
  private readonly logTurns = inTurns(MOST_LOG_READS)
  private readonly session = new Bun.FetchSession({ keepAlive: { idleTimeout: 60 } })

  constructor(
    private readonly source: Source,
    private readonly env: Env,
    private readonly onCall: OnCall,
  ) {
    const { server, cluster } = source.config
    this.address = server
    this.isVerified = server.startsWith("https:") && !cluster["insecure-skip-tls-verify"]
    this.proxy = proxyFor(source, env)
  }

  /** How far the server's clock is ahead of ours in ms, from the Date header of its last answer; good to a second. */
  skewMs(): number {
    return this.skew
  }

  async version(signal: AbortSignal): Promise<string> {
    return (await this.send<{ gitVersion: string }>("GET", "/version", signal)).gitVersion
  }

  async rules(namespace: string, signal: AbortSignal): Promise<Rules> {
    const body = { apiVersion: "authorization.k8s.io/v1", kind: "SelfSubjectRulesReview", spec: { namespace } }
    const path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
    const { status } = await this.send<{ status: Rules }>("POST", path, signal, { body })
    return { incomplete: status.incomplete, resourceRules: status.resourceRules ?? [] }
  }

  /** Reads from the store, not from a cache, page by page. Only what `keep` returns stays in memory. */
  listJobs<T>(namespace: string, selector: string, keep: Keep<Job, T>, signal: AbortSignal): Promise<Listed<T>> {
    return this.list(pathOf("jobs", namespace), { labelSelector: selector }, keep, signal)
  }

  getJob(namespace: string, name: string, signal: AbortSignal): Promise<Job | undefined> {
    return this.find(pathOf("jobs", namespace, name), signal)
  }

  /** `strict`: unknown fields are an error. */
  createJob(namespace: string, job: Job, options: CreateOptions, signal: AbortSignal): Promise<Job> {
    const query = { dryRun: options.dryRun ? "All" : "", fieldValidation: options.strict ? "Strict" : "" }
    return this.send("POST", pathOf("jobs", namespace), signal, { body: job, query })
  }

  /** Sets annotations, or removes those that are null. Conflict if uid or resourceVersion have changed. */
  annotateJob(job: JobVersion, annotations: Record<string, string | null>, signal: AbortSignal): Promise<Job> {
    const { namespace, name, uid, resourceVersion } = job
    const body = { metadata: { uid, resourceVersion, annotations } }
    return this.send("PATCH", pathOf("jobs", namespace, name), signal, { body })
  }

  deleteJob(namespace: string, name: string, options: DeleteOptions, signal: AbortSignal): Promise<void> {
    const { propagationPolicy, ...preconditions } = options
    const body = { propagationPolicy, preconditions }
    return this.send("DELETE", pathOf("jobs", namespace, name), signal, { body })
  }

  /** Like listJobs(). */
  listPods<T>(namespace: string, selector: string, keep: Keep<Pod, T>, signal: AbortSignal): Promise<Listed<T>> {
    return this.list(pathOf("pods", namespace), { labelSelector: selector }, keep, signal)
  }

  /** A list by name is as cheap as a GET, and needs no other permission than a list. */
  async findPod(namespace: string, name: string, signal: AbortSignal): Promise<Pod | undefined> {
    const fields = { fieldSelector: `metadata.name=${name}` }
    return (await this.list(pathOf("pods", namespace), fields, (pod: Pod) => pod, signal)).items[0]
  }

  async readLog(namespace: string, pod: string, container: string, options: LogOptions, signal: AbortSignal) {
    const { lines, previous } = options
    const query = { container, tailLines: String(lines), previous: previous ? "true" : "" }
    const read = (response: Response) => readTail(response, lines)
    const path = `${pathOf("pods", namespace, pod)}/log`
    return this.logTurns(() => this.send("GET", path, signal, { query, limitMs: LOG_LIMIT_MS, read }))
  }

  createEvent(namespace: string, event: object, signal: AbortSignal): Promise<unknown> {
    return this.send("POST", pathOf("events", namespace), signal, { body: event })
  }

  /** The Events with this reason, oldest first. For commands: the operator's Role does not allow it. */
  async listEvents(namespace: string, reason: string, signal: AbortSignal): Promise<JobEvent[]> {
    const keep = ({ involvedObject, message, lastTimestamp }: RawEvent): JobEvent => ({
      uid: involvedObject?.uid ?? "",
      text: message ?? "",
      at: instant(lastTimestamp) ?? 0,
    })
    const selection = { fieldSelector: `involvedObject.kind=Job,reason=${reason}` }
    // The server sorts by name, which ends in random letters.
    const { items } = await this.list(pathOf("events", namespace), selection, keep, signal)
    return items.sort((a, b) => a.at - b.at)
  }

  /** Like listJobs(), but metadata only: a hundredth of the size, for the data are logs. */
  listConfigMaps<T>(namespace: string, selector: string, keep: Keep<Metadata, T>, signal: AbortSignal) {
    const keepMetadata = ({ metadata }: { metadata: Metadata }) => keep(metadata)
    return this.list(pathOf("configmaps", namespace), { labelSelector: selector }, keepMetadata, signal, METADATA_LIST)
  }

  getConfigMap(namespace: string, name: string, signal: AbortSignal): Promise<ConfigMap | undefined> {
    return this.find(pathOf("configmaps", namespace, name), signal)
  }

  createConfigMap(namespace: string, map: ConfigMap, signal: AbortSignal): Promise<unknown> {
    return this.send("POST", pathOf("configmaps", namespace), signal, { body: map })
  }

  patchConfigMap(namespace: string, name: string, patch: ConfigMap, signal: AbortSignal): Promise<unknown> {
    return this.send("PATCH", pathOf("configmaps", namespace, name), signal, { body: patch })
  }

  deleteConfigMap(namespace: string, name: string, signal: AbortSignal): Promise<unknown> {
    return this.send("DELETE", pathOf("configmaps", namespace, name), signal)
  }

  /** Yields events and bookmarks until the server ends the watch. Throws after silence, and for an ERROR event. */
  async *watch<R extends keyof Watched>(
    namespace: string,
    resource: R,
    { resourceVersion, selector, silenceMs }: WatchOptions,
    signal: AbortSignal,
  ): Events<Watched[R]> {
    const query = {
      watch: "true",
      allowWatchBookmarks: "true",
      timeoutSeconds: String(240 + Math.floor(systemClock.random() * 60)),
      resourceVersion,
      labelSelector: selector,
    }
    const accept = resource === "configmaps" ? METADATA : ""
    const read = async (opened: Response) => opened
    const response = await this.send("GET", pathOf(resource, namespace), signal, { query, accept, read })
    let rest = ""
    for await (const text of textOf(response, { silenceMs, signal })) {
      const lines = text.split("\n")
      lines[0] = `${rest}${lines[0]}`
      rest = lines.pop() ?? ""
      if (rest.length > EVENT_CHARACTERS) throw new Error("the watch sent an event without end")
      for (const line of lines) if (line) yield eventFrom(line)
    }
  }

  /**
   * Reduces each page before it requests the next. The list starts again, once, if the continue token expires, or at a
   * 504 ResourceVersionTooLarge, with which kine, the datastore of k3s, ends an empty list beside writes.
   */
  private async list<T, K>(path: string, selection: Query, keep: Keep<T, K>, signal: AbortSignal, accept = "") {
    const readPages = async (): Promise<Listed<K>> => {
      const items: K[] = []
      for (let token: string | undefined; ; ) {
        const query = { limit: PAGE_ITEMS, ...selection, continue: token }
        const page = await this.send<Page<T>>("GET", path, signal, { query, accept })
        items.push(...(page.items ?? []).map((item) => keep(item)).filter((kept) => kept !== undefined))
        // The connection refers to the answer until its next call: without this, the page would stay in memory.
        page.items = null
        token = page.metadata.continue
        if (!token) return { items, resourceVersion: page.metadata.resourceVersion }
        collectGarbage()
      }
    }
    return readPages().catch((error) => {
      rethrowUnless(error, "Expired", "ResourceVersionTooLarge")
      return readPages()
    })
  }

  /** Undefined if it does not exist. */
  private find<T>(path: string, signal: AbortSignal): Promise<T | undefined> {
    return this.send<T>("GET", path, signal).catch((error) => rethrowUnless(error, "NotFound"))
  }

  private async send<T>(method: string, path: string, signal: AbortSignal, call: Call<T> = {}): Promise<T> {
    const { limitMs = CALL_LIMIT_MS, read = readJson<T> } = call
    for (let again = false; ; again = true) {
      const used = this.credentials()
      try {
        return await withTimeout(limitMs, signal, `${method} ${path}`, async (limit) => {
          const response = await this.fetch(method, path, call, await used, limit)
          if (!response.ok) throw await errorFrom(response)
          return read(response)
        })
      } catch (error) {
        // The idle connections of the pool may be dead too, as after a network change: the next call opens a new one.
        if (!(error instanceof ApiError)) this.session.close()
        if (again || !isOutdated(error)) throw explained(error, this.skew)
        this.forget(used)
      }
    }
  }

  private async fetch(method: string, path: string, call: Call, init: Init, signal: AbortSignal): Promise<Response> {
    const { query = {}, body, accept } = call
    const url = new URL(`${this.address}${path}`)
    for (const [name, value] of Object.entries(query)) if (value) url.searchParams.set(name, value)
    const sentAt = systemClock.now()
    const type = method === "PATCH" ? "application/merge-patch+json" : "application/json"
    const options = {
      ...init,
      headers: { ...init.headers, "Content-Type": type, ...(accept && { Accept: accept }) },
      method,
      signal,
      redirect: "manual",
      // Otherwise Bun ends a body that is silent for 300 s.
      timeout: false,
      body: JSON.stringify(body),
    } as const
    const verb = query.watch ? "watch" : query.limit ? "list" : (VERBS[method] ?? method)
    const response = await fetch(url, options).catch((error) => {
      this.onCall(verb, "none")
      throw error
    })
    this.onCall(verb, String(response.status))
    const skew = skewFrom(response.headers.get("date"), sentAt, systemClock.now(), this.skew) ?? this.skew
    // A Date header has whole seconds, so a difference of one second means nothing.
    if (Math.abs(skew - this.skew) > SKEW_STEP_MS) this.skew = skew
    return response
  }

  /** Read again after 10 s, for files are renewed. Parallel calls share one read, and one run of a plugin. */
  private credentials(): Promise<Init> {
    const { at = 0, keptMs = 0, init } = this.prepared ?? {}
    if (init && Math.abs(systemClock.now() - at) < keptMs) return init
    const fresh = { at: systemClock.now(), keptMs: CALL_LIMIT_MS, init: this.prepare() }
    this.prepared = fresh
    const keepFor = (ms: number) => () => {
      fresh.keptMs = ms
    }
    fresh.init.then(keepFor(10_000), keepFor(0))
    return fresh.init
  }

  private async prepare(): Promise<Init> {
    if (this.isOutdated) await this.source.reload()
    this.isOutdated = false
    return { ...(await this.source.prepare()), proxy: proxyFor(this.source, this.env) ?? false, session: this.session }
  }

  /** The next call reads the kubeconfig again, and runs the plugin again. */
  private forget(used: Promise<Init>): void {
    if (this.prepared?.init !== used) return
    this.prepared = undefined
    this.isOutdated = true
  }
}

/** Says what may be wrong. With a wrong clock, valid credentials and certificates look expired. */
function explained(error: unknown, skewMs: number): unknown {
  if (!(error instanceof Error)) return error
  const { status, code } = error as { status?: number; code?: unknown }
  const offBy = `${durationText(Math.abs(skewMs))} ${skewMs > 0 ? "behind" : "ahead of"} the server's`
  if (status === 401 && Math.abs(skewMs) > CLOCK_LIMIT_MS)
    error.message += `; this machine's clock is ${offBy}, which alone can be the reason: set it`
  if (/EXPIRED|NOT_YET_VALID/.test(String(code)))
    error.message += `; this machine's clock says ${instantText(systemClock.now())}`
  if (code === "ERR_TLS_CERT_ALTNAME_INVALID")
    error.message =
      "the server's certificate is for other names: if it is the right server, set tls-server-name to one of them"
  return error
}

/** A body as a JSON object, of at most BODY_BYTES. */
async function readJson<T>(response: Response): Promise<T> {
  const text = await textUntil(response, BODY_BYTES)
  const object: unknown = tryOrUndefined(() => JSON.parse(text))
  if (isMap(object)) return object as T
  const kind = `${response.status}, ${response.headers.get("content-type")}`
  throw new Error(`the answer (${kind}) is no JSON object: is it of a proxy, or of another server?`)
}

const textUntil = async (response: Response, bytes: number) =>
  (await Array.fromAsync(textOf(response, { bytes }))).join("")

function pathOf(resource: "jobs" | "pods" | "events" | "configmaps", namespace: string, name?: string): string {
  const group = resource === "jobs" ? "/apis/batch/v1" : "/api/v1"
  const path = `${group}/namespaces/${encodeURIComponent(namespace)}/${resource}`
  return name === undefined ? path : `${path}/${encodeURIComponent(name)}`
}

/** Whether credentials or certificates were rejected: there may be newer ones on disk. */
const isOutdated = (error: unknown) =>
  error instanceof ApiError
    ? error.status === 401
    : /CERT|SIGNATURE/.test(String((error as { code?: unknown } | null)?.code))

/** For catch(): undefined for errors with one of these reasons; rethrows others. */
export function rethrowUnless(error: unknown, ...reasons: string[]): undefined {
  if (!reasons.some((reason) => isReason(error, reason))) throw error
}

const isReason = (error: unknown, reason: string) =>
  error instanceof ApiError && (error.reason === reason || error.causes.includes(reason))

/** Whether retrying is pointless: a 4xx other than conflict, throttling or timeout. */
const isRejection = (error: unknown): error is ApiError =>
  error instanceof ApiError && [400, 403, 404, 405, 413, 415, 422].includes(error.status)

export type Proxy = { url: string; from: string; respectNoProxy: boolean }

/** The proxy of the kubeconfig or, like Go, of the environment; none to localhost and in a pod. Bun heeds NO_PROXY. */
function proxyFor({ inCluster, config }: Source, env: Env): Proxy | undefined {
  const proxyUrl = config.cluster["proxy-url"]
  if (proxyUrl) return { url: proxyUrl, from: "the kubeconfig says in proxy-url", respectNoProxy: false }
  const from = ["HTTPS_PROXY", "https_proxy"].find((name) => env[name])
  if (!from || inCluster || isLoopback(new URL(config.server))) return undefined
  const proxy = env[from] ?? ""
  const url = /^[\w+.-]+:\/\//.test(proxy) ? proxy : `http://${proxy}`
  if (webUrl(url)) return { url, from: `${from} says, unless NO_PROXY excludes it`, respectNoProxy: true }
  throw new ConfigError(`${from} must name a proxy with http:// or https://, others are not supported`)
}

/**
 * How far the server's clock is ahead in ms, from the Date header of an answer, which has whole seconds. Assumes that
 * the answer was written at half of the time it took. Undefined if it took too long to tell more than is known, or if
 * our clock was set back. What is known is wrong if it differs by more than the answer took.
 */
export function skewFrom(date: string | null, sentAt: number, receivedAt: number, knownMs = 0): number | undefined {
  const serverAt = instant(date)
  const tookMs = receivedAt - sentAt
  if (serverAt === undefined || tookMs < 0) return undefined
  const skewMs = serverAt + 500 - (sentAt + receivedAt) / 2
  return tookMs < 2_000 || Math.abs(skewMs - knownMs) > tookMs ? skewMs : undefined
}

async function errorFrom(response: Response): Promise<ApiError> {
  const text = await textUntil(response, 64 << 10)
  // A proxy's page is no Status and has no reason: 404 alone does not mean that an object is gone.
  const elsewhere = URL.parse(response.headers.get("location") ?? "")?.origin
  const status = {
    message: text || (elsewhere ? `it redirects to ${elsewhere}` : response.statusText),
    reason: "",
    ...tryOrUndefined(() => JSON.parse(text) as Status),
    code: response.status,
  }
  // Retry-After is a number of seconds, or a date by the clock of the Date header.
  const date = response.headers.get("date")
  const askedMs = readAskedWait(response.headers.get("retry-after") ?? "", instant(date) ?? 0)
  return errorOf(status, askedMs)
}

/** The fields of a v1 Status that are used here. */
type Status = { code?: number; reason?: string; message?: string; details?: StatusDetails }
type StatusDetails = { causes?: { reason?: string }[]; retryAfterSeconds?: number }

function errorOf(status: Status, askedMs?: number): ApiError {
  const { code = 500, reason = "", message, details } = status
  const causes = (details?.causes ?? []).map((cause) => cause.reason ?? "")
  const retryAfterMs = askedMs ?? (details?.retryAfterSeconds ?? 0) * 1_000
  return new ApiError(code, reason, String(message).slice(0, 500), causes, Math.max(0, retryAfterMs))
}

type BodyLimits = { bytes?: number; silenceMs?: number; signal?: AbortSignal }

/**
 * A body as text, until its end, `bytes`, or the signal; throws after silence. The rest is cancelled: an unread body
 * stays in memory (oven-sh/bun#10763), and so does one that is ended by an abort (oven-sh/bun#32659).
 */
async function* textOf(response: Response, limits: BodyLimits): AsyncGenerator<string> {
  const { bytes = Number.POSITIVE_INFINITY, silenceMs = CALL_LIMIT_MS, signal } = limits
  const reader = response.body?.getReader()
  const decoder = new TextDecoder()
  let silent = false
  const cancel = () => void reader?.cancel().catch(() => {})
  const giveUp = () => {
    silent = true
    cancel()
  }
  const forget = signal && onAbort(signal, cancel)
  try {
    for (let read = 0; reader && read < bytes && !signal?.aborted; ) {
      const stopTimer = systemClock.after(silenceMs, giveUp)
      const { done, value } = await reader.read().finally(stopTimer)
      if (silent) throw new Error(`no data received for ${durationText(silenceMs)}`)
      // At the end, the first bytes of a cut character become a replacement character.
      yield decoder.decode(value, { stream: !done })
      if (done) return
      read += value.byteLength
    }
  } finally {
    forget?.()
    cancel()
  }
}

/** The last lines of a log. The server's limitBytes would cut off their end, where the error is. */
async function readTail(response: Response, lines: number): Promise<Tail> {
  let text = ""
  let length = 0
  const bytes = lines * LOG_LINE_BYTES + MORE_LOG_BYTES
  for await (const part of textOf(response, { bytes, silenceMs: LOG_LIMIT_MS })) {
    text += part
    if (text.length > 2 * TAIL_CHARACTERS) text = text.slice(-TAIL_CHARACTERS)
    length += part.length
  }
  return tailOf(text.slice(-TAIL_CHARACTERS), lines, length > TAIL_CHARACTERS)
}

function eventFrom<T>(line: string): { type: string; object: T } {
  type Event = { type: string; object: T & { metadata?: object | null } }
  const event = tryOrUndefined(() => JSON.parse(line) as Partial<Event> | null)
  if (event?.type === "ERROR") throw errorOf({ message: "the watch ended with an error", ...(event.object as Status) })
  const isOfObject = /^(ADDED|MODIFIED|DELETED|BOOKMARK)$/.test(event?.type ?? "")
  if (typeof event?.type === "string" && (event.object?.metadata || !isOfObject)) return event as Event
  throw new Error("the watch sent a line that is not an event about an object with metadata")
}

// ────────────────────────────────────────────── 10 Restart ──────────────────────────────────────────────

/** The context of all that acts. `stop`: start nothing new. `kill`: abandon what is under way; intents remain. */
export interface World {
  cluster: Cluster
  clock: Clock
  /** To the log, metrics and notifications. A Reporter also writes the Job's Events. */
  emit: Emit
  config: Config
  stop: AbortSignal
  kill: AbortSignal
  /** RULES by default; a test replaces one by a wrong one, to prove that the simulation notices. */
  rules?: typeof RULES
}

const SKEW_LIMIT_MS = 5_000
const EVIDENCE_LIMIT_MS = 20_000
/** A restart that is in trouble, or waits for blockers, for this long is an alarm. */
const ALARM_AFTER_MS = 300_000

/** The API server's time, if its clock differs from ours by more than the resolution of its Date header. */
export function nowOf({ clock, cluster }: World): number {
  const skewMs = cluster.skewMs()
  return clock.now() + (Math.abs(skewMs) > SKEW_LIMIT_MS ? skewMs : 0)
}

const LONGEST_RETRY_AFTER_MS = 300_000

/**
 * Exponential from 0.25 s to 30 s, half of it random so that many clients do not retry at once; never less than the
 * server's Retry-After.
 */
export function backoffMs(attempt: number, random: number, error: unknown): number {
  const most = exponentialBackoffMs({ fromMs: 250, toMs: 30_000 }, attempt)
  const askedMs = error instanceof ApiError ? Math.min(error.retryAfterMs, LONGEST_RETRY_AFTER_MS) : 0
  return Math.max(askedMs, most / 2) + (random * most) / 2
}

/**
 * Backoff for something that is retried until it works. Each error is reported once, with the delay of the next try. A
 * restart that is rejected, or in trouble for ALARM_AFTER_MS, is an alarm: a person has to know.
 */
function retryBackoff({ clock, emit }: World, what: string, job?: JobName) {
  let attempt = 0
  let reported = ""
  let since = clock.monotonic()
  return {
    async wait(error: unknown, signal: AbortSignal): Promise<void> {
      if (signal.aborted) return
      if (reported === "") since = clock.monotonic()
      const isLong = job !== undefined && clock.monotonic() - since > ALARM_AFTER_MS
      const isAlarm = isRejection(error) || isLong
      const why = messageOf(error)
      const retryMs = backoffMs(attempt++, clock.random(), error)
      if (`${isAlarm} ${why}` !== reported) emit({ kind: "Retrying", what, job, why, retryMs, isAlarm })
      reported = `${isAlarm} ${why}`
      await clock.sleep(retryMs, signal)
    },
    reset(): void {
      if (reported) emit({ kind: "Recovered", what, job, afterMs: clock.monotonic() - since })
      attempt = 0
      reported = ""
    },
  }
}

/**
 * Reads a failed Job's pods and their logs. `kept`: the pods that a watch has shown; others are listed. What cannot be
 * read becomes a note.
 */
export async function gatherEvidence(
  world: World,
  job: JobView,
  kept: PodView[],
  earlier?: Evidence,
): Promise<Evidence> {
  const evidence: Evidence = { ...evidencePods(kept), logs: new Map(earlier?.logs) }
  const reportError = (error: unknown) => world.emit({ kind: "EvidenceUnavailable", job, why: messageOf(error) })
  try {
    await withTimeout(EVIDENCE_LIMIT_MS, world.kill, "looking at its pods", async (signal) => {
      const tryToList = () => podsOfJob(world, job, signal)
      const list = () => retry(world, LIST_RETRY, signal, tryToList).catch((error) => reportError(error) ?? [])
      // The watch of pods may lag behind that of Jobs: its pods suffice only if they are all, and each has ended.
      const areAll = kept.length >= job.endedPods && kept.every(isOverPod)
      const listed = areAll && lastFailedPod(kept) ? [] : await list()
      const isKept = ({ uid }: PodView) => kept.some((pod) => pod.uid === uid && isOverPod(pod))
      const fresh = listed.filter((pod) => !isKept(pod))
      const others = kept.filter(({ uid }) => !fresh.some((pod) => pod.uid === uid))
      Object.assign(evidence, evidencePods([...others, ...fresh]))
      await readLogs(world, job.namespace, evidence, signal)
    })
  } catch (error) {
    reportError(error)
  }
  const isKept = (key: string) => evidence.pods.some(({ uid }) => key.startsWith(`${uid}/`))
  return { ...evidence, logs: new Map([...evidence.logs].filter(([key]) => isKept(key))) }
}

/** Half of EVIDENCE_LIMIT_MS is left for the logs. */
const LIST_RETRY = { tries: Number.POSITIVE_INFINITY, forMs: EVIDENCE_LIMIT_MS / 2 }
const LOG_RETRY = { tries: 2, forMs: 5_000 }

/** Retries after errors of the network or of a busy server. Throws a rejection at once, else the last error. */
async function retry<T>(
  { clock, stop }: World,
  { tries, forMs }: { tries: number; forMs: number },
  signal: AbortSignal,
  work: () => Promise<T>,
): Promise<T> {
  const untilAt = later(clock.monotonic(), forMs)
  for (let attempt = 0; ; attempt++) {
    try {
      return await work()
    } catch (error) {
      const retryMs = backoffMs(attempt, clock.random(), error)
      const isLast = attempt + 1 >= tries || later(clock.monotonic(), retryMs) > untilAt
      if (isLast || isRejection(error) || stop.aborted || signal.aborted) throw error
      await clock.sleep(retryMs, signal, stop)
    }
  }
}

/** The pods that a Job owns. */
async function podsOfJob({ cluster }: World, job: JobView, signal: AbortSignal): Promise<PodView[]> {
  const selector = job.ownSelector ?? `batch.kubernetes.io/job-name=${job.name}`
  const keep = (pod: Pod) => [viewPod(pod)].find(({ jobUid }) => jobUid === job.uid)
  return (await cluster.listPods(job.namespace, selector, keep, signal)).items
}

/**
 * Reads each container's log, unless it was read after the container's end. An earlier log is kept if the new one is
 * empty.
 */
async function readLogs(world: World, namespace: string, { pods, logs }: Evidence, signal: AbortSignal) {
  const { cluster, config } = world
  const lines = config.logLines
  const read = async (pod: PodView, { name, state, ended }: ContainerView) => {
    const key = `${pod.uid}/${name}`
    if (lines === 0 || (state === "waiting" && !ended) || logs.get(key)?.final) return
    if (pod.gone)
      return void (logs.has(key) || logs.set(key, { lines: [], note: "log not available, the pod is gone" }))
    // Of a restarted container, the previous run is the one that failed; the server answers 400 if its log is gone.
    const runsAgain = state === "running" && ended
    const tail = (previous: boolean) =>
      retry(world, LOG_RETRY, signal, () => cluster.readLog(namespace, pod.name, name, { lines, previous }, signal))
    const found = await tail(runsAgain)
      .catch((error) => (runsAgain ? tail(false) : Promise.reject(error)))
      .catch((error) => ({ lines: [], note: `log not available: ${messageOf(error)}`, final: false }))
    if (found.lines.length > 0 || !logs.get(key)?.lines.length) logs.set(key, { final: state !== "running", ...found })
  }
  await Promise.all(pods.flatMap((pod) => pod.containers.map((container) => read(pod, container))))
}

/**
 * An API server that has just started may answer 403 for up to half a minute, until it knows its Roles. Seven tries,
 * with their backoff, take that long.
 */
const MOST_REJECTIONS = 7

/** Retries without logging, until it works or `stop` fires. Throws a rejection that persists. */
async function retryUntilDone({ clock, stop }: World, work: () => Promise<unknown>): Promise<void> {
  for (let attempt = 1; ; attempt++) {
    try {
      return void (await work())
    } catch (error) {
      if (isRejection(error) && attempt >= MOST_REJECTIONS) throw error
      if (stop.aborted) return
      await clock.sleep(backoffMs(attempt, clock.random(), error), stop)
    }
  }
}

/** Writes the record of a failure, unless another operator or an earlier process has done so. */
export async function createRecord({ cluster, kill }: World, record: ConfigMap): Promise<void> {
  const { namespace = "" } = record.metadata ?? {}
  await cluster.createConfigMap(namespace, record, kill).catch((error) => rethrowUnless(error, "AlreadyExists"))
}

async function removeRecords({ cluster, kill }: World, namespace: string, records: Iterable<RecordKey>): Promise<void> {
  for (const { name } of records)
    await cluster.deleteConfigMap(namespace, name, kill).catch((error) => rethrowUnless(error, "NotFound"))
}

/** Writes the ConfigMap from which the commands read the settings, if it differs. */
async function writeSettings(world: World, namespace: string): Promise<void> {
  const { cluster, config, kill } = world
  const data = variablesOf(config)
  const known = await cluster.getConfigMap(namespace, SETTINGS_MAP, kill)
  if (Bun.deepEquals(known?.data, data)) return
  const annotations = { [`${PREFIX}written-at`]: instantText(nowOf(world)), [`${PREFIX}version`]: project.version }
  const map = { metadata: { name: SETTINGS_MAP, labels: { [RECORD]: "settings" }, annotations }, data }
  if (known) await cluster.patchConfigMap(namespace, SETTINGS_MAP, map, kill)
  else await cluster.createConfigMap(namespace, { apiVersion: "v1", kind: "ConfigMap", ...map }, kill)
}

/** The pure rules of a restart, which mutation tests replace. */
export const RULES = {
  nextStep,
  draftOf,
  intentFor,
  readIntent,
  flawOf,
  verdictOf,
  blocksReplacement,
  wasDeletedByPerson,
  desiredFor,
}

const rulesOf = ({ rules = RULES }: World) => rules

/**
 * What a restart shares with whoever runs it, the loop or a command: what the restart itself reads and writes and,
 * where there are watches, what these have shown of its Job.
 */
export interface RestartCache {
  /** The intents that are known for the Job. */
  intents(): Intent[]
  /** The newest known version of the Job, also after it is gone. */
  latest(): Job | undefined
  /** The pods of a Job; undefined if no watch has shown any, so that they must be listed. */
  podsOf?(uid: string): PodView[] | undefined
  deletedByPerson?(uid: string, intent: Intent | undefined): boolean
  /** The shortest TTL that was seen of a Job that is gone. */
  ttlMsOf?(uid: string): number | undefined
  onJobRead(job: Job): void
  onIntentRead(intent: Intent): void
  onIntentGone(intent: Pick<Intent, "namespace" | "jobName" | "name" | "uid">): void
  /** Fires when a watch shows that the Job or one of its pods is gone, or the Job edited; undefined without a watch. */
  changeSignal?(): AbortSignal | undefined
  emit: Emit
}

/** The Job to restart. `desiredFor` decides on it as it is now; without it, only an existing intent is carried out. */
export interface Restart {
  job: JobName
  desiredFor?: (job: Job) => Desired
  /** The cluster has rejected it before: a dry run comes before any write. */
  wasRejected?: boolean
  /** A person asked for it by a command: due times do not count. */
  atOnce?: boolean
  /** RESTART_SPACING: the restart does not start before this instant. */
  heldUntil?: number
}

type StepTo<D extends Step["do"]> = Extract<Step, { do: D }>

const FIRST_POLL_MS = 120

/** The API server may work on a request for a minute (--request-timeout), after a proxy has held it for as long. */
const REQUEST_MAY_APPLY_MS = 130_000

const POLL_AFTER_STOP_MS = 1_000

/**
 * Also the interval beside a watch, for a watch can stall. A busy control plane takes half a minute to delete a Job,
 * and polling adds load.
 */
const LONGEST_POLL_MS = 30_000
const LIST_PODS_AFTER_MS = 10_000
/**
 * After this, watched pods are read by name. The cost of a list by label grows with all pods of the namespace: with
 * 10,000 pods, 1,000 waiting restarts that listed brought the server to a halt.
 */
const TRUST_WATCH_MS = 60_000
/** Steps between two pauses. A restart takes six; a bound in case the steps never converge. */
const MOST_STEPS = 10
const REPORT_AFTER_MS = 60_000
const ALARM_REPEAT_MS = 3_600_000

/**
 * Takes a restart as far as it can go: observe, nextStep, perform, until the step is `done`. Errors are retried. Ends
 * with `waiting` if there is nothing to do before a due time: call it again at that time, and when the Job changes.
 * Its writes, in this order: create the intent, create the new Job as a dry run, delete the old Job (Foreground, bound
 * to its uid and version), and once that and its pods are gone, create the new Job and delete the intent.
 */
export const reconcileRestart = (world: World, cache: RestartCache, restart: Restart): Promise<Outcome> =>
  new RestartRun(world, cache, restart).run()

/** Whether a create failed because its namespace is being deleted, or is gone. */
const isNamespaceGone = (error: unknown) =>
  isReason(error, "NamespaceTerminating") ||
  (isReason(error, "NotFound") && /^namespaces "\S+" not found$/.test((error as ApiError).text))

const protects = ({ unsafe }: Intent) => !unsafe

/** Slewing moves the wall clock by less than this between two measurements; a smaller jump does no harm. */
const CLOCK_SET_MS = 1_000

/** The wall clock less the monotonic clock: it changes when the wall clock is set. */
const clockOffset = (clock: Clock) => clock.now() - clock.monotonic()

/** Whether the wall clock was set since `offsetBeforeMs`: then an answer in between does not tell the server's time. */
const wasClockSet = (clock: Clock, offsetBeforeMs: number) =>
  Math.abs(clockOffset(clock) - offsetBeforeMs) >= CLOCK_SET_MS

/** Asks the cluster, by a dry run, whether it would admit this Job under its real name. */
async function proveAdmission(world: World, { namespace, name }: JobName, replacement: Job) {
  const { cluster, kill } = world
  try {
    await cluster.createJob(namespace, replacement, { dryRun: true, strict: true }, kill)
    return "name free" as const
  } catch (error) {
    return rulesOf(world).verdictOf(error, name)
  }
}

/**
 * Deletes the Job, or an intent, that has this uid. Returns the server's NotFound or Conflict if somebody else was
 * faster.
 */
async function deleteInBackground(
  { cluster, kill }: World,
  namespace: string,
  name: string,
  uid: string,
): Promise<unknown> {
  try {
    await cluster.deleteJob(namespace, name, { uid, propagationPolicy: "Background" }, kill)
    return undefined
  } catch (error) {
    rethrowUnless(error, "NotFound", "Conflict")
    return error
  }
}

/** For how long a request that was sent then, and got no answer, may still be applied. */
const inFlightMs = (clock: Clock, sentSince: Monotonic | undefined) =>
  sentSince === undefined ? 0 : sentSince + REQUEST_MAY_APPLY_MS - clock.monotonic()

/** In which namespaces an intent could be read: a Role may name the Jobs that may be, and an intent is none of them. */
const readableIntents = new WeakMap<Cluster, Set<string>>()

/**
 * The intents of one Job, for one run of reconcileRestart(). Invariant: what was written, or found new or gone, is in
 * the cache at once; a removal without an answer is remembered.
 */
class Intents {
  /** When a removal without a clear answer was sent, by the intent's uid: it may still be applied. */
  private readonly unansweredRemovals = new Map<string, Monotonic>()
  /** The names of the intents that this run has written. */
  private readonly written = new Set<string>()
  private readonly rules: typeof RULES
  private readonly startedSince: Monotonic

  constructor(
    private readonly world: World,
    private readonly cache: RestartCache,
    private readonly job: JobName,
  ) {
    this.rules = rulesOf(world)
    this.startedSince = world.clock.monotonic()
  }

  /** Those of the known intents that still exist. One that has become unreadable counts as it was known. */
  async read(known: Intent[], justRead?: string): Promise<Intent[]> {
    const read = async (intent: Intent): Promise<Intent[]> => {
      if (intent.name === justRead) return [intent]
      // From an API server that is starting, one 404 is not conclusive.
      const found = (await this.getJob(intent.name)) ?? (await this.getJob(intent.name))
      if (found && uidOf(found) === intent.uid && !isTerminating(found)) return [this.rules.readIntent(found) ?? intent]
      this.cache.onIntentGone(intent)
      return []
    }
    return (await Promise.all(known.map(read))).flat()
  }

  /** The newest intent on the server, if it replaces a later version of the Job than this one. */
  async newerThan({ jobName, jobVersion }: Intent): Promise<Intent | undefined> {
    const { cluster, kill } = this.world
    const selector = `${INTENT}=${labelValueFor(jobName)}`
    const { items } = await cluster.listJobs(this.job.namespace, selector, this.rules.readIntent, kill)
    const [newest] = newestFirst(items)
    if (!newest || compareVersions(newest.jobVersion, jobVersion) <= 0) return undefined
    this.cache.onIntentRead(newest)
    return newest
  }

  /** Writes an intent. Returns undefined if the Job must be observed again, the error if the cluster rejects it. */
  async write(draft: Draft, proveFirst: boolean): Promise<Intent | Error | undefined> {
    if (proveFirst) {
      const verdict = await proveAdmission(this.world, this.job, draft.replacement)
      if (verdict !== "name free" && !verdict.admitted) return verdict.error
    }
    const sent = this.rules.intentFor(draft)
    let rejection: Error | undefined
    for (const intent of [sent, this.rules.intentFor(draft, true)]) {
      try {
        return await this.create(intent)
      } catch (error) {
        if (isNameTaken(error, sent.metadata?.name ?? "")) return this.adopt(sent.metadata?.name ?? "")
        if (!isReason(error, "AlreadyExists") && !isRejection(error)) throw error
        rejection = error as Error
      }
    }
    return rejection
  }

  /** Creates an intent, and removes it if a webhook has changed what protects the Job. */
  private async create(sent: Job): Promise<Intent | Error> {
    const { namespace, name: jobName } = this.job
    const made = await this.world.cluster.createJob(namespace, sent, {}, this.world.kill)
    const flaw = this.rules.flawOf(sent, made)
    const intent = flaw === undefined ? this.rules.readIntent(made) : undefined
    if (intent) {
      this.written.add(intent.name)
      this.cache.onIntentRead(intent)
      return intent
    }
    const { name = "", uid = "" } = made.metadata ?? {}
    // It protects nothing, so the watch event of its removal must not cancel a restart.
    this.cache.onIntentGone({ namespace, jobName, name, uid })
    // Only this call knows of it. After a stop it is left behind, and a later process finds it unsafe.
    await retryUntilDone(this.world, () => deleteInBackground(this.world, namespace, name, uid))
    return new Error(`a webhook changed the intent ${name}: ${flaw ?? "it cannot be read back"}`)
  }

  /** Takes over the intent of another operator or an earlier process that has this name, if it protects the Job. */
  private async adopt(name: string): Promise<Intent | Error | undefined> {
    const found = await this.getJob(name)
    if (!found) return undefined
    const intent = this.rules.readIntent(found)
    if (intent && !intent.deleting) {
      this.cache.onIntentRead(intent)
      return intent
    }
    if (isTerminating(found)) {
      const finalizers = found.metadata?.finalizers?.join(", ")
      return new Error(`the intent ${name} of an earlier try is still being deleted, held by finalizers ${finalizers}`)
    }
    // A webhook made it unsafe, and it could not be removed at once: it protects nothing, but occupies the name.
    try {
      await retryUntilDone(this.world, () =>
        deleteInBackground(this.world, this.job.namespace, name, uidOf(found) ?? ""),
      )
      return undefined
    } catch (error) {
      if (!isRejection(error)) throw error
      return new Error(`the intent ${name} cannot be read, and not be removed: ${error.message}`)
    }
  }

  async remove(intents: Intent[]): Promise<void> {
    const { clock } = this.world
    for (const intent of intents) {
      const sentSince = clock.monotonic()
      const error = await deleteInBackground(this.world, this.job.namespace, intent.name, intent.uid).catch((error) => {
        if (!isRejection(error)) this.unansweredRemovals.set(intent.uid, sentSince)
        throw error
      })
      // From an API server that is starting, a 404 is not conclusive; a Conflict can be a quota's.
      const found = error && (await this.getJob(intent.name))
      if (found && uidOf(found) === intent.uid) throw error
      this.cache.onIntentGone(intent)
    }
  }

  /** An intent that a removal of ours may still take away counts as unsafe, so that no Job is deleted by it. */
  distrustRemoved(intent: Intent): Intent {
    return this.unansweredRemovals.has(intent.uid) ? { ...intent, unsafe: true } : intent
  }

  /** For how long a removal of this intent may still be applied: one of ours, or one of another operator. */
  removalInFlightMs(intent: Intent): number {
    return inFlightMs(this.world.clock, this.unansweredRemovals.get(intent.uid) ?? this.foreignSince([intent]))
  }

  /** From when another operator or an earlier process may have sent requests by these intents; undefined: none has. */
  foreignSince(intents: Intent[]): Monotonic | undefined {
    const isForeign = intents.some(({ name, dueAt }) => dueAt === undefined && !this.written.has(name))
    return isForeign ? this.startedSince : undefined
  }

  /** Throws if intents cannot be read: then no Job may be deleted. Asks once in each namespace. */
  async checkReadable({ name }: Intent): Promise<void> {
    if (!readableIntents.get(this.world.cluster)?.has(this.job.namespace)) await this.getJob(name)
  }

  private async getJob(name: string): Promise<Job | undefined> {
    const { cluster, kill } = this.world
    const found = await cluster.getJob(this.job.namespace, name, kill)
    readableIntents.set(cluster, (readableIntents.get(cluster) ?? new Set()).add(this.job.namespace))
    return found
  }
}

/** Finds what keeps the old Job of one restart, or its pods, from being gone. */
class Blockers {
  private unblockedSince: Monotonic | undefined
  private podDenials = 0

  constructor(
    private readonly world: World,
    private readonly cache: RestartCache,
    private readonly job: JobName,
  ) {}

  /** Pods that no watch has shown are listed, but beside a terminating Job only after a while. */
  async find(intent: Intent, live: Job | undefined, waitedMs: number): Promise<Blocker[]> {
    const watched = intent.replacement.spec?.manualSelector ? undefined : this.cache.podsOf?.(intent.jobUid)
    const isListed = !watched && (!live || waitedMs >= LIST_PODS_AFTER_MS)
    const known = watched ?? (isListed ? await this.readPods(() => this.listPodsOf(intent)) : [])
    let blocking = known.filter((pod) => rulesOf(this.world).blocksReplacement(pod, intent))
    // A watch can stall, or have missed the end of a pod while it was reopened.
    if (watched && waitedMs >= TRUST_WATCH_MS) {
      const found = await this.readPods(() => this.findPods(blocking))
      // The watch ignores a pod that no Job owns: only this read shows that a pod was orphaned.
      blocking = found.filter((pod) => rulesOf(this.world).blocksReplacement(pod, intent))
    }
    const pods = blocking.map(({ name, phase, node, finalizers }) => ({ pod: name, phase, node, finalizers }))
    return live ? [{ finalizers: live.metadata?.finalizers ?? [] }, ...pods] : pods
  }

  /** For how long nothing but the garbage collector's own finalizer has held the terminating Job. */
  measureUnblockedMs(live: Job | undefined, [ofJob, ...ofPods]: Blocker[]): number {
    const { clock } = this.world
    const isUnblocked = live !== undefined && ofPods.length === 0 && ofJob?.finalizers.join() === "foregroundDeletion"
    this.unblockedSince = isUnblocked ? (this.unblockedSince ?? clock.monotonic()) : undefined
    return this.unblockedSince === undefined ? 0 : clock.monotonic() - this.unblockedSince
  }

  /**
   * Without the right to read pods there is nothing to wait for: the Foreground delete has waited for them. A 403 is
   * retried first, for a server that has just started may answer it; one that persists overrides the review.
   */
  private async readPods(read: () => Promise<PodView[]>): Promise<PodView[]> {
    const { cluster, kill } = this.world
    try {
      return await read()
    } catch (error) {
      rethrowUnless(error, "Forbidden")
      if (++this.podDenials >= MOST_REJECTIONS) return []
      if (allowed(await cluster.rules(this.job.namespace, kill)).has("list /pods")) throw error
      return []
    }
  }

  private async listPodsOf(intent: Intent): Promise<PodView[]> {
    const { cluster, kill } = this.world
    return (await cluster.listPods(this.job.namespace, podSelector(intent), viewPod, kill)).items
  }

  /** Reads pods by name; returns those that still exist. */
  private async findPods(pods: PodView[]): Promise<PodView[]> {
    const { cluster, kill } = this.world
    const found = await Promise.all(pods.map(({ name }) => cluster.findPod(this.job.namespace, name, kill)))
    const views = found.flatMap((pod) => (pod ? [viewPod(pod)] : []))
    return views.filter(({ uid }) => pods.some((pod) => pod.uid === uid))
  }
}

/** One run of reconcileRestart(), and what it remembers from step to step. */
class RestartRun {
  private readonly job: JobName
  private readonly rules: typeof RULES
  /** The next observation, where the last step has just read or written all of it. */
  private nextSeen: Observation | undefined
  /** The name of the intent that the last step wrote: the answer is as good as a read. */
  private justWritten: string | undefined
  /**
   * The intent to write again if it is missing once the Job is terminating or gone: the Job was, or may have been,
   * deleted by it, and a request of ours, or another operator, may have removed it. Cleared by the first observation
   * then of an intent that no earlier request can remove any more; from then on, its removal cancels the restart.
   */
  private intentToRestore: Intent | undefined
  /** The uid of the Job that this run has, or may have, deleted. */
  private deletedUid: string | undefined
  /** The outcome of a clean up, while its removals may need retries. */
  private ended: Outcome | undefined
  private changeSignal: AbortSignal | undefined
  /** The Job may exist only in an intent: the run ends by a kill, but not by a stop. */
  private mustFinish = false
  /** When the last delete of the Job without a clear answer was sent: it may still be applied. */
  private unansweredDeleteSince: Monotonic | undefined
  /** clockOffset() when the last observation began; if it changes, the server's time is unknown. */
  private clockOffsetMs = 0
  private stepsSincePause = 0
  /** When this run first paused. */
  private waitingSince: Monotonic | undefined
  /** After which wait the blockers are reported next. */
  private nextReportMs = REPORT_AFTER_MS
  /** The version of an edited Job that the cluster has rejected, and whether the Job was terminating or gone then. */
  private rejectedEdit: { version: string; isDeleted: boolean } | undefined
  private readonly intents: Intents
  private readonly blockers: Blockers

  constructor(
    private readonly world: World,
    private readonly cache: RestartCache,
    private readonly restart: Restart,
  ) {
    this.job = restart.job
    this.rules = rulesOf(world)
    this.intents = new Intents(world, cache, restart.job)
    this.blockers = new Blockers(world, cache, restart.job)
  }

  async run(): Promise<Outcome> {
    const { kill, stop } = this.world
    const backoff = retryBackoff(this.world, "its restart is held up", this.job)
    while (!kill.aborted) {
      try {
        if (this.stepsSincePause++ === MOST_STEPS) await this.pause()
        const seen = this.nextSeen ?? (await this.observe())
        this.nextSeen = undefined
        if (wasClockSet(this.world.clock, this.clockOffsetMs)) continue
        const step = this.rules.nextStep(seen, nowOf(this.world))
        if (step.do !== "done" && stop.aborted && !this.mustFinish) break
        const outcome = step.do === "done" ? step.outcome : await this.perform(step, seen)
        backoff.reset()
        if (outcome) return outcome
      } catch (error) {
        if (isNamespaceGone(error)) return { result: "namespace gone" }
        if (stop.aborted && !this.mustFinish) break
        await backoff.wait(error, this.mustFinish ? kill : stop)
        this.forgetReads()
      }
    }
    return { result: "interrupted" }
  }

  /** After a wait: somebody else may have removed the intent, or edited the Job. */
  private forgetReads(): void {
    this.nextSeen = undefined
    this.justWritten = undefined
  }

  /** Reads the Job, and updates the cache: it may have been edited. */
  private async readJob(): Promise<Job | undefined> {
    const { cluster, kill } = this.world
    const live = await cluster.getJob(this.job.namespace, this.job.name, kill)
    if (live) this.cache.onJobRead(live)
    return live
  }

  /**
   * Reads what nextStep() decides on, in this order: the known intents from the cache, the Job, those intents that a
   * step may rely on, the pods, and last what the watches have shown meanwhile. An intent that is read after the Job
   * existed when the Job was read; one that was not known before the Job may belong to a restart that has ended since.
   */
  private async observe(): Promise<Observation> {
    const { cache, job } = this
    const { desiredFor, wasRejected = false, atOnce = false, heldUntil = 0 } = this.restart
    this.clockOffsetMs = clockOffset(this.world.clock)
    const before = cache.intents()
    this.changeSignal = cache.changeSignal?.()
    // A false 404 of the Job does no harm: the create would be answered 409.
    const live = await this.readJob()
    const isDeleted = isTerminatingOrGone(live)
    // If an intent was relied on, a watch may have dropped it from the cache since.
    const hadToFinish = this.mustFinish
    const { known, confirmed } = await this.restoreIntent(before, live)
    // A step relies on them if the Job is absent, if one of them may delete it, or if an older one may be removed.
    const isReliedOn = !live || known.length > 1 || (!isDeleted && known.some(({ jobUid }) => jobUid === uidOf(live)))
    const justRead = confirmed ?? (live && this.justWritten)
    const existing = newestFirst(isReliedOn ? await this.intents.read(known, justRead) : known)
    const intents = existing.map((one) => this.intents.distrustRemoved(one))
    this.justWritten = undefined
    this.mustFinish = isDeleted && existing.some(protects)
    const [intent] = intents
    const intentWasRemoved = (known.some(protects) || hadToFinish) && !intent
    const uid = intent?.jobUid ?? job.uid
    const blockers = intent && isDeleted ? await this.blockers.find(intent, live, this.waitedMs()) : []
    const ended = this.ended ?? (intentWasRemoved ? await this.completedByOther() : undefined)
    // Last: a watch may have shown an edit of the Job during these reads.
    const latest = cache.latest()
    const source = live ?? latest
    return {
      intents,
      intentWasRemoved,
      ended,
      live,
      latest,
      deletedByPerson: this.deletedUid !== uid && cache.deletedByPerson?.(uid, intent) === true,
      hadTtl: (cache.ttlMsOf?.(uid) ?? (latest && viewJob(latest).ttlMs)) !== undefined,
      desired: source && uidOf(source) === job.uid ? desiredFor?.(source) : undefined,
      blockers,
      unblockedForMs: this.blockers.measureUnblockedMs(live, blockers),
      // What was rejected while the Job existed, as by a full quota, may be accepted once it is gone.
      rejectedEdit: this.rejectedEdit?.isDeleted === isDeleted ? this.rejectedEdit.version : undefined,
      mayBeDeleted: this.deleteInFlightMs() > 0,
      wasRejected,
      atOnce,
      heldUntil,
    }
  }

  /** The outcome if another operator has created the Job since we read it, and has then removed the intent. */
  private async completedByOther(): Promise<Outcome | undefined> {
    const { uid } = (await this.readJob())?.metadata ?? {}
    return uid === undefined || uid === this.job.uid ? undefined : { result: "replaced", uid }
  }

  /**
   * Writes intentToRestore again if it is missing and the Job is terminating or gone, unless another operator has
   * written a newer one. Three things may have removed it: another operator whose proof was rejected just after ours
   * was admitted, a withdrawal of ours before a delete without an answer was applied, and a removal without an answer.
   * Returns the intents known after that; `confirmed` is the name of the one that need not be read again.
   */
  private async restoreIntent(known: Intent[], live: Job | undefined) {
    const intent = this.intentToRestore
    const isReplaced = live !== undefined && uidOf(live) !== intent?.jobUid
    if (isReplaced) this.intentToRestore = undefined
    if (!intent || isReplaced || !isTerminatingOrGone(live)) return { known, confirmed: undefined }
    let [existing] = await this.intents.read([intent])
    existing ??= await this.intents.newerThan(intent)
    if (!existing) {
      const written = await this.intents.write(draftFrom(intent), false)
      // The Job exists only in memory now: this is retried until it works. Another answer may have been lost.
      if (written instanceof Error) throw written
      existing = written ?? this.cache.intents().find(({ name }) => name === intent.name)
      if (!existing) throw new Error(`intent ${intent.name} cannot be read`)
    }
    this.intentToRestore = this.intents.removalInFlightMs(existing) > 0 ? existing : undefined
    const others = known.filter(({ name }) => name !== intent.name && name !== existing.name)
    return { known: [...others, existing], confirmed: existing.name }
  }

  /** Performs one step; returns an outcome where the restart ends with it. */
  private async perform(step: Exclude<Step, { do: "done" }>, seen: Observation): Promise<Outcome | undefined> {
    switch (step.do) {
      case "write intent":
        return this.writeIntent(step, seen)
      case "prove and delete":
        return this.proveAndDelete(step, seen)
      case "delete in background":
        // The garbage collector ends a Foreground delete by an update of the Job, which a policy may deny.
        await deleteInBackground(this.world, this.job.namespace, this.job.name, step.intent.jobUid)
        return this.pause()
      case "wait":
        this.reportBlockers(step)
        return this.pause()
      case "create":
        return this.createReplacement(step, seen)
      case "clean up":
        if (step.withdraw && !(await this.withdrawIntents(step.intents))) return undefined
        this.ended = step.withdraw ? undefined : step.outcome
        await this.intents.remove(step.intents)
        return step.outcome
    }
  }

  private waitedMs(): number {
    const now = this.world.clock.monotonic()
    return now - (this.waitingSince ?? now)
  }

  /** Waits for changeSignal or the next poll; after a stop there is little time, so polls are frequent. */
  private async pause(): Promise<undefined> {
    const { clock, kill, stop } = this.world
    this.stepsSincePause = 0
    this.waitingSince ??= clock.monotonic()
    const longestMs = stop.aborted ? POLL_AFTER_STOP_MS : LONGEST_POLL_MS
    const pollMs = this.changeSignal ? longestMs : Math.min(longestMs, Math.max(FIRST_POLL_MS, this.waitedMs() / 5))
    const signals = [this.changeSignal, stop.aborted ? undefined : stop].filter((signal) => signal !== undefined)
    await clock.sleep(pollMs, kill, ...signals)
    this.forgetReads()
  }

  private reportBlockers({ for: waitsFor, blockers }: StepTo<"wait">): void {
    const forMs = this.waitedMs()
    if (forMs < this.nextReportMs) return
    const isAlarm = forMs >= ALARM_AFTER_MS
    this.nextReportMs = isAlarm ? forMs + ALARM_REPEAT_MS : ALARM_AFTER_MS
    this.cache.emit({ kind: "HeldUp", job: this.job, waitsFor, blockers: blockersText(blockers), forMs, isAlarm })
  }

  private async writeIntent({ plan, prove }: StepTo<"write intent">, seen: Observation): Promise<Outcome | undefined> {
    const { cache, job } = this
    const [newest] = seen.intents
    const isDeleted = isTerminatingOrGone(seen.live)
    // Where an intent exists for a Job that is terminating or gone, only an edit is proved before it is written.
    const isEdit = newest !== undefined && isDeleted && prove
    const written = await this.intents.write(this.rules.draftOf(plan), prove)
    if (written === undefined) return undefined
    if (!(written instanceof Error)) {
      await this.intents.checkReadable(written)
      this.justWritten = written.name
      // If the Job is absent, its pods have not been read yet: it is observed again.
      if (seen.live) this.nextSeen = { ...seen, intents: newestFirst([written, ...seen.intents]) }
      const { name: intent, dueAt } = written
      cache.emit(isEdit ? { kind: "EditTaken", job } : { kind: "IntentWritten", job, intent, dueAt })
      return undefined
    }
    if (isNamespaceGone(written)) throw written
    if (isEdit) {
      this.rejectedEdit = { version: versionOf(plan.live), isDeleted }
      return void cache.emit({ kind: "EditRejected", job, why: written.message })
    }
    // The Job exists only in memory now: this is retried until it works.
    if (!seen.live) throw written
    // A void intent is removed first: it may occupy the last place of a quota.
    const isStale = newest !== undefined && newest.jobVersion !== versionOf(seen.live)
    if (!isStale) return { result: "rejected", error: written }
    this.rejectedEdit = { version: versionOf(seen.live), isDeleted }
    return undefined
  }

  private async proveAndDelete(step: StepTo<"prove and delete">, seen: Observation): Promise<Outcome | undefined> {
    const { intent, ttl } = step
    const { clock, cluster, kill } = this.world
    const reject = async (error: Error): Promise<Outcome | undefined> => {
      // The intent stays where a TTL may remove the Job meanwhile: then it is all that is left of it.
      if (!ttl && !(await this.withdrawIntents(seen.intents))) return undefined
      return { result: "rejected", error }
    }
    const verdict = await proveAdmission(this.world, this.job, intent.replacement)
    // The Job is absent, or the server could not read it: the replacement is not proved.
    if (verdict === "name free") return undefined
    if (!verdict.admitted) return reject(verdict.error)
    this.changeSignal = this.cache.changeSignal?.()
    const sentSince = clock.monotonic()
    const { jobUid: uid, jobVersion: resourceVersion } = intent
    try {
      const options = { uid, resourceVersion, propagationPolicy: "Foreground" } as const
      await cluster.deleteJob(this.job.namespace, this.job.name, options, kill)
    } catch (error) {
      if (isReason(error, "Conflict") || isReason(error, "NotFound")) return undefined
      if (isRejection(error)) return reject(error)
      this.unansweredDeleteSince = sentSince
      this.rememberDelete(intent)
      throw error
    }
    this.mustFinish = true
    this.rememberDelete(intent)
    return this.pause()
  }

  private rememberDelete(intent: Intent): void {
    this.intentToRestore = intent
    this.deletedUid = intent.jobUid
  }

  /**
   * For how long a delete of the Job without an answer may still be applied: ours or, if intents are given, one that
   * another operator or an earlier process may have sent by them just before this run.
   */
  private deleteInFlightMs(intents: Intent[] = []): number {
    return inFlightMs(this.world.clock, this.unansweredDeleteSince ?? this.intents.foreignSince(intents))
  }

  /**
   * Removes intents of a Job that still exists. False if the Job must be observed again: a delete may still be applied,
   * which is waited for, or the Job has changed, or is terminating or gone after all, for another operator may have
   * proved the same intent a moment ago. Then the intent is restored.
   */
  private async withdrawIntents(intents: Intent[]): Promise<boolean> {
    const { clock, kill, stop } = this.world
    const leftMs = this.deleteInFlightMs(intents)
    if (leftMs > 0) {
      await clock.sleep(leftMs, kill, stop, ...(this.changeSignal ? [this.changeSignal] : []))
      this.forgetReads()
      return false
    }
    const before = await this.readJob()
    const [intent] = intents
    const isUnchanged = before && !isTerminating(before) && versionOf(before) === intent?.jobVersion
    if (!isUnchanged) return false
    // From here on the Job may exist only in memory: then the next observation restores the intent, until that works.
    this.intentToRestore = intent
    this.mustFinish = true
    await this.intents.remove(intents)
    const live = await this.readJob()
    if (isTerminatingOrGone(live)) return false
    this.intentToRestore = undefined
    this.mustFinish = false
    return true
  }

  private async createReplacement(step: StepTo<"create">, seen: Observation): Promise<undefined> {
    const { cluster, kill } = this.world
    try {
      const created = await cluster.createJob(this.job.namespace, step.intent.replacement, { strict: true }, kill)
      this.cache.onJobRead(created)
      this.nextSeen = { ...seen, live: created, latest: created }
    } catch (error) {
      if (!isReason(error, "AlreadyExists")) throw error
      // Somebody else created it, or our own answer was lost. If it does not exist, a webhook has answered that.
      if (!(await this.readJob())) throw error
    }
  }
}

/**
 * What the answer to a dry run means, for a Job that exists. The server checks the name last: AlreadyExists in its own
 * words means that all other checks were passed. A webhook can answer 409 too, in other words. Throws an error that a
 * retry may not meet.
 */
export function verdictOf(error: unknown, name: string): { admitted: true } | { admitted: false; error: ApiError } {
  if (!(error instanceof ApiError)) throw error
  if (isNameTaken(error, name)) return { admitted: true }
  if (isReason(error, "AlreadyExists") || isRejection(error)) return { admitted: false, error }
  throw error
}

/** Whether the server itself, and no webhook, answers that a Job's name is taken. */
function isNameTaken(error: unknown, name: string): boolean {
  if (!(error instanceof ApiError) || error.status !== 409 || error.reason !== "AlreadyExists") return false
  const sentence = `jobs.batch ${JSON.stringify(name)} already exists`
  return error.text.replace(/^object is being deleted: /, "").startsWith(sentence)
}

// ──────────────────────────────────────────── 11 Controller ─────────────────────────────────────────────

/**
 * The lifecycle of a watched Job in this operator. `restarting`: a reconcileRestart() is under way. `settled`: its
 * restart has ended, so late watch events of this uid are ignored.
 */
export type JobState =
  | { is: "idle" }
  | { is: "collecting evidence" }
  | { is: "scheduled"; dueAt: number }
  | { is: "restarting"; dueAt: number }
  | { is: "settled" }

/** A state that is not listed here may lead to any. A settled Job stays settled until another uid takes its name. */
const TRANSITIONS: { [From in JobState["is"]]?: JobState["is"][] } = {
  restarting: ["scheduled", "idle", "settled"],
  settled: ["settled"],
}

/**
 * What the cache keeps of one Job, for as long as its uid. `decision` is of the last reconcile; `evidence` and
 * `candidates` are kept until `failure` is known.
 */
class JobEntry {
  view: JobView
  /** The newest whole object; only of a Job that is failing, has failed, or is terminating. */
  job: Job | undefined
  /** As before its deletion: controllers remove theirs from a terminating Job. */
  finalizers: string[]
  state: JobState = { is: "idle" }
  decision: Decision | undefined
  evidence: Evidence | undefined
  /** Known once the evidence of a failure is complete. */
  failure: Failure | undefined
  collection: Collection | undefined
  /** The few of its pods that may become evidence; undefined before the first one terminates. */
  candidates: PodView[] | undefined
  /** The last decision that was reported, as text. */
  reported = ""
  rejections = 0
  /** After a rejection, or if the Job had changed: no restart before this. */
  retryAt: Monotonic | undefined
  /** When it was first found to be gone. */
  goneAt: number | undefined
  /**
   * Set when a restart of a Job that was already gone has ended as waiting. While intent and failure stay the same,
   * there is nothing to do before it is due. If the intent is removed, a person has cancelled the restart.
   */
  waitAfterGone: { intentUid: string | undefined; failure: Failure | undefined; dueAt: number } | undefined

  /** `sequence`: the cache's when this was read; a list does not overwrite what was read after it was requested. */
  constructor(
    { view, job, finalizers }: KeptJob,
    public sequence: number,
  ) {
    this.view = view
    this.job = job
    this.finalizers = finalizers
  }
}

/** How a Job's evidence is collected. `pods`: at the last trigger. `isQueued`: a run is yet to begin. */
type Collection = { triggers: Set<string>; pods: PodView[]; isQueued: boolean; done: Promise<void> }

/** Moves a Job to another state. Throws if the transition is illegal. */
export function moveTo(entry: Pick<JobEntry, "state" | "view">, state: JobState): void {
  const legal = TRANSITIONS[entry.state.is]
  if (legal && !legal.includes(state.is))
    throw new Error(`[${entry.view.key}] cannot go from ${entry.state.is} to ${state.is}`)
  entry.state = state
}

/** The last state of a Job that is gone. `watched`: from a DELETED event, not concluded from a list. */
interface Tombstone {
  job: Job
  watched: boolean
  /** The shortest seen: the TTL may be edited while the TTL controller removes the Job. */
  ttlMs: number | undefined
}

/** `adoptAt`: from when this operator carries it out. `sequence`: the cache's when it was last read. */
type KnownIntent = Intent & { adoptAt: Monotonic; sequence: number }

/** A Map that evicts the entry set longest ago when it is full. */
class BoundedMap<V> extends Map<string, V> {
  constructor(
    public most: number,
    private readonly onEvicted: (key: string) => void = () => {},
  ) {
    super()
  }

  override set(key: string, value: V): this {
    this.delete(key)
    super.set(key, value)
    for (const oldest of this.keys()) {
      if (this.size <= this.most) break
      this.delete(oldest)
      this.onEvicted(oldest)
    }
    return this
  }
}

const withoutPod = (pods: PodView[], { uid }: PodView) => pods.filter((pod) => pod.uid !== uid)
const withPod = (pods: PodView[], pod: PodView) => [...withoutPod(pods, pod), pod]

const MOST_TOMBSTONES = 1_000
const MOST_UNKNOWN_OWNERS = 200

/**
 * What lists, watches and restarts have read.
 *
 * Invariants: an entry holds the newest version seen of its Job; the view of a Job that is gone has `deleting` set.
 * Pods are kept by the uid of their Job: those of at most MOST_UNKNOWN_OWNERS Jobs without an entry and, of pods that
 * are gone, the few that may become evidence. A late watch event does not bring a removed intent back.
 */
export class Cache {
  readonly jobs = new Map<string, JobEntry>()
  private readonly pods = new Map<string, PodView[] | Map<string, PodView>>()
  private readonly gonePods = new Map<string, PodView[]>()
  /** Uids of Jobs that have pods here, but no entry. */
  private readonly unknownOwners = new BoundedMap<true>(MOST_UNKNOWN_OWNERS, (uid) => this.forgetPods(uid))
  private readonly intents = new Map<string, Map<string, KnownIntent>>()
  /** At which sequence an intent was removed, by its uid. */
  private readonly removedIntents = new BoundedMap<number>(MOST_TOMBSTONES)
  private readonly tombstones = new BoundedMap<Tombstone>(MOST_TOMBSTONES)
  /** A logical clock, which counts the updates of Jobs and intents. */
  sequence = 0

  intentsOf(key: string): KnownIntent[] {
    return [...(this.intents.get(key)?.values() ?? [])]
  }

  /** The keys of Jobs that have intents, in one namespace or in all. */
  keysWithIntents(namespace?: string): string[] {
    const keys = [...this.intents.keys()]
    return namespace === undefined ? keys : keys.filter((key) => key.startsWith(`${namespace}/`))
  }

  /**
   * The earliest `adoptAt` counts. `asOf`: the sequence as of which it existed for certain; a removal that was noticed
   * before that was a false 404.
   */
  addIntent(intent: Intent, adoptAt: Monotonic, asOf = Number.NEGATIVE_INFINITY): void {
    if ((this.removedIntents.get(intent.uid) ?? Number.NEGATIVE_INFINITY) > asOf) return
    const key = `${intent.namespace}/${intent.jobName}`
    const known = this.intents.get(key) ?? new Map<string, KnownIntent>()
    const { adoptAt: earlierAt = adoptAt } = known.get(intent.name) ?? {}
    known.set(intent.name, {
      ...intent,
      adoptAt: earlierAt < adoptAt ? earlierAt : adoptAt,
      sequence: ++this.sequence,
    })
    this.intents.set(key, known)
  }

  removeIntent({ namespace, jobName, name, uid }: Pick<Intent, "namespace" | "jobName" | "name" | "uid">): void {
    this.removedIntents.set(uid, ++this.sequence)
    const key = `${namespace}/${jobName}`
    const known = this.intents.get(key)
    if (known?.get(name)?.uid === uid) known.delete(name)
    if (known?.size === 0) this.intents.delete(key)
  }

  podsOf(uid: string): PodView[] {
    return [...(this.gonePods.get(uid) ?? []), ...(this.pods.get(uid)?.values() ?? [])]
  }

  pod({ jobUid, uid }: PodView): PodView | undefined {
    const known = this.pods.get(jobUid)
    const isIt = (pod: PodView) => pod.uid === uid
    return (Array.isArray(known) ? known.find(isIt) : known?.get(uid)) ?? this.gonePods.get(jobUid)?.find(isIt)
  }

  addPod(pod: PodView, hasEntry: boolean): void {
    if (!hasEntry && !this.pods.has(pod.jobUid)) this.unknownOwners.set(pod.jobUid, true)
    const known = this.pods.get(pod.jobUid) ?? []
    if (pod.gone) {
      this.gonePods.set(pod.jobUid, evidencePods(withPod(this.gonePods.get(pod.jobUid) ?? [], pod)).pods)
      if (known instanceof Map) known.delete(pod.uid)
      else this.pods.set(pod.jobUid, withoutPod(known, pod))
    } else if (known instanceof Map) known.set(pod.uid, pod)
    else {
      // Most Jobs have one pod; a Map for each of 10,000 takes 4 MiB.
      const all = withPod(known, pod)
      this.pods.set(pod.jobUid, all.length === 1 ? all : new Map(all.map((one) => [one.uid, one])))
    }
  }

  private forgetPods(jobUid: string): void {
    this.pods.delete(jobUid)
    this.gonePods.delete(jobUid)
  }

  addJob(entry: JobEntry): void {
    this.jobs.set(entry.view.key, entry)
    this.unknownOwners.delete(entry.view.uid)
  }

  forgetJob({ view }: JobEntry): void {
    if (this.jobs.get(view.key)?.view.uid === view.uid) this.jobs.delete(view.key)
    this.forgetPods(view.uid)
  }

  /** The last state from a DELETED event is not overwritten by what a list implies. */
  addTombstone(key: string, tombstone: Tombstone): void {
    const known = this.tombstones.get(key)
    if (known?.watched && !tombstone.watched && uidOf(known.job) === uidOf(tombstone.job)) return
    // Somebody may delete thousands of Jobs at once: each one's restart is yet to ask who did.
    this.tombstones.most = MOST_TOMBSTONES + this.jobs.size + this.intents.size
    this.tombstones.set(key, tombstone)
  }

  tombstone(key: string): Tombstone | undefined {
    return this.tombstones.get(key)
  }

  /** The newest known version of a Job, if its whole object is kept. */
  latest(key: string): Job | undefined {
    const known = [this.jobs.get(key)?.job, this.tombstones.get(key)?.job].filter((job) => job !== undefined)
    return known.sort((a, b) => compareVersions(versionOf(b), versionOf(a)))[0]
  }

  /** After etcd was restored from a backup: nothing that is kept of the namespace is valid any more. */
  clear(namespace: string): void {
    for (const entry of this.jobs.values()) if (entry.view.namespace === namespace) this.forgetJob(entry)
    for (const key of this.keysWithIntents(namespace)) this.intents.delete(key)
    for (const key of this.tombstones.keys()) if (key.startsWith(`${namespace}/`)) this.tombstones.delete(key)
    this.removedIntents.clear()
  }
}

const REVIEW_MS = 10 * 60_000

/**
 * What the Role allows in each namespace. Invariant: a persistent 403 overrides the review, and a new review overrides
 * the 403. A passing 403 is of an API server that has just started and does not know its Roles yet.
 */
export class Permissions {
  private readonly reviews = new Map<string, { allowed: Set<string>; at: number }>()
  private readonly denials = new Map<string, number>()

  may(namespace: string, right: string): boolean {
    return this.reviews.get(namespace)?.allowed.has(right) ?? false
  }

  /** An incomplete Role is reviewed again every REVIEW_MS, for somebody may complete it. */
  needsReview(namespace: string, at: Monotonic): boolean {
    const reviewedAt = this.reviews.get(namespace)?.at ?? Number.NEGATIVE_INFINITY
    const isComplete = Object.keys(RIGHTS).every((right) => this.may(namespace, right))
    return !isComplete && at - reviewedAt >= REVIEW_MS
  }

  /** Stores a review. Returns the missing rights, with what does not work without each. */
  review(namespace: string, rules: Rules, at: Monotonic): { missing: string[]; isEssential: boolean } {
    const rights = allowed(rules)
    this.reviews.set(namespace, { allowed: rights, at })
    const missing = Object.entries(RIGHTS).filter(([right]) => !rights.has(right))
    return {
      missing: missing.map(([right, cost]) => `${right.replace(" /", " ")}: ${cost.replace(/^! /, "")}`),
      isEssential: missing.some(([, cost]) => cost.startsWith("!")),
    }
  }

  /** After MOST_REJECTIONS denials the right counts as missing; at the next one a new review is due. */
  noteDenied(namespace: string, right: string, error: unknown): void {
    if (!(error instanceof ApiError) || error.status !== 403) return
    const denials = (this.denials.get(`${namespace} ${right}`) ?? 0) + 1
    this.denials.set(`${namespace} ${right}`, denials)
    if (!this.may(namespace, right)) this.reviews.delete(namespace)
    else if (denials >= MOST_REJECTIONS) this.reviews.get(namespace)?.allowed.delete(right)
  }

  noteWorking(namespace: string, right: string): void {
    this.denials.delete(`${namespace} ${right}`)
  }
}

/** When to reconcile a key. `since`: from when it is overdue, which orders keys that are due together. */
type QueueItem = { key: string; at: number; since: number }

const earliestFirst = (a: QueueItem, b: QueueItem) => a.at - b.at || (a.key < b.key ? -1 : 1)

/** Stale items of the heap that are tolerated before it is rebuilt. */
const MOST_STALE_ITEMS = 100
const CLOCK_SET_BACK_MS = 5_000

/**
 * Keys with due times. Invariant: the earliest time that was asked for a key since it was last taken counts, and is in
 * `schedules`; other items of the heap are stale.
 */
export class Workqueue {
  readonly schedules = new Map<string, QueueItem>()
  private heap = new TinyQueue<QueueItem>([], earliestFirst)
  private wake = new AbortController()
  private lastTakenAt = Number.NEGATIVE_INFINITY

  /** Fires when a key becomes due before all others. */
  get woken(): AbortSignal {
    return this.wake.signal
  }

  add(key: string, at: number, since = at): void {
    const known = this.schedules.get(key)
    if (known && known.at <= at) return
    const item = { key, at, since: Math.min(since, known?.since ?? since) }
    this.schedules.set(key, item)
    this.heap.push(item)
    if (this.heap.peek() === item) this.wake.abort()
    if (this.heap.length > 2 * this.schedules.size + MOST_STALE_ITEMS)
      this.heap = new TinyQueue([...this.schedules.values()], earliestFirst)
  }

  /** Makes every key due: after a clock was set, the times that were computed before are wrong. */
  makeAllDue(now: number): void {
    for (const [key, { since }] of this.schedules) this.add(key, now, since)
  }

  remove(key: string): void {
    this.schedules.delete(key)
  }

  /** The keys that are due, the longest overdue first; they leave the queue. */
  takeDue(now: number): string[] {
    this.wake = new AbortController()
    if (now < this.lastTakenAt - CLOCK_SET_BACK_MS) this.makeAllDue(now)
    this.lastTakenAt = now
    const due: QueueItem[] = []
    while ((this.nextAt() ?? Number.POSITIVE_INFINITY) <= now) {
      const item = this.heap.pop() as QueueItem
      due.push(item)
      this.schedules.delete(item.key)
    }
    return due.sort((a, b) => a.since - b.since || (a.key < b.key ? -1 : 1)).map(({ key }) => key)
  }

  /** When the next key is due. */
  nextAt(): number | undefined {
    for (let item = this.heap.peek(); item; item = this.heap.peek()) {
      if (this.schedules.get(item.key) === item) return item.at
      this.heap.pop()
    }
    return undefined
  }
}

/** When a restart of a group started, and the one before it. */
type GroupStart = { at: number; before: number | undefined }

/**
 * RESTART_SPACING: restarts of one group are `spacingMs` apart. Invariant: a restart that starts takes its group for
 * that long, and releases it early if it restarts nothing.
 */
export class Spacing {
  private readonly lastRestarts = new Map<string, GroupStart>()
  /** The keys that wait until their group is free. */
  private readonly waiting = new Map<string, Set<string>>()

  constructor(
    private readonly spacingMs: number,
    private readonly queue: Workqueue,
  ) {}

  /** When a restart of a group may start, at the earliest. If the clock was set back, the last one counts as now. */
  freeAt(group: string, now: number): number {
    const last = this.lastRestarts.get(group)
    if (this.spacingMs === 0 || last === undefined) return now
    last.at = Math.min(last.at, now)
    return last.at + this.spacingMs
  }

  /** Takes the group, for a restart of the key, or as of the creation of a Job that an earlier process restarted. */
  take(group: string, at: number, key = ""): GroupStart | undefined {
    if (this.spacingMs === 0) return undefined
    this.waiting.get(group)?.delete(key)
    const before = this.lastRestarts.get(group)?.at
    const start = { at: Math.max(at, before ?? 0), before }
    this.lastRestarts.delete(group)
    this.lastRestarts.set(group, start)
    this.forgetFree(at)
    return start
  }

  /** Forgets groups that are free again, the longest free first, and the keys that waited: they are due anyway. */
  private forgetFree(now: number): void {
    for (const [group, { at }] of this.lastRestarts) {
      if (at + this.spacingMs > now) return
      this.lastRestarts.delete(group)
      this.waiting.delete(group)
    }
  }

  /** Notes that a key waits until its group is free. */
  addWaiting(group: string, key: string): void {
    const keys = (this.waiting.get(group) ?? new Set()).add(key)
    this.waiting.set(group, keys)
    // Removes the keys of Jobs that were deleted meanwhile.
    if (keys.size > 2 * this.queue.schedules.size + MOST_STALE_ITEMS)
      for (const one of keys) if (one !== key && !this.queue.schedules.has(one)) keys.delete(one)
  }

  /** Undoes take(), unless another restart of the group has started since; the longest overdue waiting key is due. */
  release(group: string, start: GroupStart, now: number): void {
    if (this.lastRestarts.get(group) !== start) return
    if (start.before === undefined) this.lastRestarts.delete(group)
    else this.lastRestarts.set(group, { at: start.before, before: start.before })
    const keys = [...(this.waiting.get(group) ?? [])].filter((key) => this.queue.schedules.has(key))
    const sinceOf = (key: string) => this.queue.schedules.get(key)?.since ?? 0
    const [next] = keys.sort((a, b) => sinceOf(a) - sinceOf(b))
    if (next !== undefined) this.queue.add(next, now)
  }
}

/** The longest sleep of the loop. */
const LONGEST_SLEEP_MS = 30_000
const STUCK_MS = 4 * LONGEST_SLEEP_MS

/**
 * Whether the loop runs, and how fresh the cache is. Invariant: all instants are monotonic; the wall clock may jump.
 */
export class Liveness {
  /** Watches started, keyed by namespace and resource. */
  readonly watches = new Map<string, number>()
  private lastTickAt: Monotonic | undefined
  private readonly lastEventAt = new Map<string, Monotonic>()
  /** Namespaces whose Jobs could not be listed or watched since the last event. */
  private readonly broken = new Set<string>()
  /** Namespaces in which a watch of pods has been without a gap since its list. */
  readonly syncedPods = new Set<string>()

  constructor(
    private readonly clock: Pick<Clock, "monotonic">,
    private readonly staleAfterMs: (namespace: string) => number,
  ) {}

  tick(): void {
    this.lastTickAt = this.clock.monotonic()
  }

  /** Whether the loop runs, or has not started. */
  isRunning(): boolean {
    return this.lastTickAt === undefined || this.clock.monotonic() - this.lastTickAt < STUCK_MS
  }

  noteEvent(namespace: string): void {
    this.lastEventAt.set(namespace, this.clock.monotonic())
    this.broken.delete(namespace)
  }

  noteBroken(namespace: string): void {
    this.broken.add(namespace)
  }

  /** For how long no list or event of a namespace's Jobs has come, if that is too long. */
  staleForMs(namespace: string): number | undefined {
    const staleMs = this.clock.monotonic() - (this.lastEventAt.get(namespace) ?? Number.NEGATIVE_INFINITY)
    // A working watch may be silent; a broken one should be back within the time of a call.
    const limitMs = this.broken.has(namespace) ? CALL_LIMIT_MS : this.staleAfterMs(namespace)
    return staleMs > limitMs ? staleMs : undefined
  }

  noteWatch(namespace: string, resource: string): void {
    const key = `${namespace}/${resource}`
    this.watches.set(key, (this.watches.get(key) ?? 0) + 1)
  }
}

/** What is kept of a Job: the whole object only if more than its view will be needed. */
type KeptJob = { view: JobView; job: Job | undefined; finalizers: string[]; intent: Job | undefined }

/** Reduces a Job to what the cache keeps of it. */
export function keepJob(job: Job): KeptJob {
  const view = viewJob(job)
  const intent = isIntent(job) ? job : undefined
  const isWhole = view.failedAt !== undefined || view.phase === "failing" || view.deleting
  return { view, job: isWhole && !intent ? job : undefined, finalizers: job.metadata?.finalizers ?? [], intent }
}

/** A list of Jobs. `asOf`: the cache's sequence when it was requested. */
type ListedJobs = Listed<KeptJob> & { asOf: number }

/** Receives what a Watcher lists and watches. */
interface WatchHandler {
  onJobsListed(namespace: string, list: ListedJobs): void
  onJobEvent(type: WatchEventType, job: Job): void
  onPodsListed(namespace: string, pods: PodView[]): void
  onPodEvent(type: WatchEventType, namespace: string, pod: PodView): void
}

type WatchEventType = "ADDED" | "MODIFIED" | "DELETED"

/**
 * The watch of a namespace's pods. `listed` fires once they are listed. `renew` ends it, so that it is reopened with
 * another selector.
 */
type PodWatch = { ofAll: boolean; listed: AbortController; renew: AbortController }

const RELIST_MS = 30 * 60_000

/** Bookmarks come about once a minute: more than two are missing. */
const WATCH_SILENCE_MS = 150_000

/** How long a collection of evidence waits for the list with which the watch of pods begins. */
const PODS_LISTED_MS = 10_000

const LIST_JOBS = "list batch/jobs"
const WATCH_RIGHTS = { jobs: "watch batch/jobs", pods: "watch /pods" }

/** The pods of all Jobs, except those of Jobs with a selector of their own. */
const POD_SELECTOR = "batch.kubernetes.io/job-name"

/**
 * Lists and watches the Jobs and pods of a namespace, as far as the Role allows, and polls otherwise. Invariant: after
 * an error or a gap, a list comes before the next watch.
 */
class Watcher {
  private readonly podWatches = new Map<string, PodWatch>()
  private readonly refusedReviews = new Map<string, number>()

  constructor(
    private readonly world: World,
    private readonly cache: Pick<Cache, "sequence">,
    private readonly permissions: Permissions,
    private readonly liveness: Liveness,
    private readonly reporter: Reporter,
    private readonly handler: WatchHandler,
  ) {}

  /** Until `stop`: lists, then watches for RELIST_MS, or sleeps for CHECK_INTERVAL if it may not watch. */
  async listAndWatch(namespace: string): Promise<void> {
    const { clock, config, stop } = this.world
    const backoff = retryBackoff(this.world, `Jobs in ${namespace} cannot be watched`)
    const watched = { ofAll: false, listed: new AbortController(), renew: new AbortController() }
    // Before the first list, which may contain a Job with a selector of its own.
    this.podWatches.set(namespace, watched)
    let pods: Promise<void> | undefined
    while (!stop.aborted) {
      let right = LIST_JOBS
      try {
        await this.review(namespace)
        const resourceVersion = await this.listJobs(namespace)
        right = WATCH_RIGHTS.jobs
        pods ??= this.listAndWatchPods(namespace, watched)
        const untilAt = later(clock.monotonic(), RELIST_MS)
        const from = { resourceVersion, untilAt, onWorking: backoff.reset, stop }
        if (this.permissions.may(namespace, WATCH_RIGHTS.jobs)) await this.watch(namespace, "jobs", from)
        else {
          backoff.reset()
          await clock.sleep(config.checkIntervalMs, stop)
        }
      } catch (error) {
        if (!stop.aborted) this.liveness.noteBroken(namespace)
        this.permissions.noteDenied(namespace, right, error)
        await backoff.wait(error, stop)
      }
    }
    await pods
  }

  private async listJobs(namespace: string): Promise<string> {
    const { cluster, stop } = this.world
    const asOf = this.cache.sequence
    const list = await cluster.listJobs(namespace, "", keepJob, stop)
    this.liveness.noteEvent(namespace)
    // The list was allowed after all: the Role was created since the review.
    if (!this.permissions.may(namespace, LIST_JOBS)) await this.review(namespace, true)
    this.permissions.noteWorking(namespace, LIST_JOBS)
    this.handler.onJobsListed(namespace, { ...list, asOf })
    return list.resourceVersion
  }

  /** Pods are watched because they are often gone by the time their Job has failed. */
  private async listAndWatchPods(namespace: string, watched: PodWatch): Promise<void> {
    const { clock, stop } = this.world
    const backoff = retryBackoff(this.world, `pods in ${namespace} cannot be watched`)
    while (!stop.aborted) {
      watched.renew = new AbortController()
      try {
        await this.review(namespace)
        if (this.permissions.may(namespace, WATCH_RIGHTS.pods)) await this.watchPods(namespace, watched, backoff.reset)
        else await clock.sleep(LONGEST_SLEEP_MS, stop)
      } catch (error) {
        this.liveness.syncedPods.delete(namespace)
        if (watched.listed.signal.aborted) watched.listed = new AbortController()
        if (watched.renew.signal.aborted) continue
        this.permissions.noteDenied(namespace, WATCH_RIGHTS.pods, error)
        await backoff.wait(error, stop)
      }
    }
  }

  private async watchPods(namespace: string, { ofAll, listed, renew }: PodWatch, onWorking: () => void): Promise<void> {
    const { cluster, stop } = this.world
    const selector = ofAll ? "" : POD_SELECTOR
    const signal = AbortSignal.any([stop, renew.signal])
    const keep = (pod: Pod) =>
      this.reporter.guard(podName(namespace, pod), () => [viewPod(pod)].find(({ jobUid }) => jobUid))
    const { items, resourceVersion } = await cluster.listPods(namespace, selector, keep, signal)
    this.handler.onPodsListed(namespace, items)
    this.liveness.syncedPods.add(namespace)
    listed.abort()
    await this.watch(namespace, "pods", { resourceVersion, onWorking, selector, stop: signal })
  }

  /** Waits until the pods of a namespace are listed, if they are watched; at most PODS_LISTED_MS. */
  async untilPodsListed(namespace: string): Promise<void> {
    const { clock, stop } = this.world
    const listed = this.podWatches.get(namespace)?.listed.signal
    if (listed && this.permissions.may(namespace, WATCH_RIGHTS.pods)) await clock.sleep(PODS_LISTED_MS, stop, listed)
  }

  /** From the first Job with a selector of its own on, all pods are watched: its pods may lack the common label. */
  watchAllPods({ namespace, ownSelector }: JobView): void {
    const watched = this.podWatches.get(namespace)
    if (ownSelector === undefined || !watched || watched.ofAll) return
    watched.ofAll = true
    watched.renew.abort(new Error("from now on all pods are watched"))
  }

  /** Watches from a resourceVersion on, one watch after the other, until an error or `untilAt`. */
  private async watch(
    namespace: string,
    resource: "jobs" | "pods",
    from: { resourceVersion: string; untilAt?: Monotonic; onWorking: () => void; selector?: string; stop: AbortSignal },
  ): Promise<void> {
    const { clock, cluster } = this.world
    const { untilAt, onWorking, selector, stop } = from
    const options = { silenceMs: WATCH_SILENCE_MS, ...(selector && { selector }) }
    const noteWorking = () => {
      this.permissions.noteWorking(namespace, WATCH_RIGHTS[resource])
      onWorking()
    }
    const isOver = () => stop.aborted || (untilAt !== undefined && clock.monotonic() >= untilAt)
    for (let { resourceVersion } = from; !isOver(); ) {
      const startedAt = clock.monotonic()
      this.liveness.noteWatch(namespace, resource)
      for await (const { type, object } of cluster.watch(namespace, resource, { ...options, resourceVersion }, stop)) {
        if (resource === "jobs") this.liveness.noteEvent(namespace)
        resourceVersion = object.metadata?.resourceVersion ?? resourceVersion
        if (clock.monotonic() - startedAt > 10_000) noteWorking()
        if (type !== "ADDED" && type !== "MODIFIED" && type !== "DELETED") continue
        const note = () => this.handler.onPodEvent(type, namespace, viewPod(object as Pod))
        if (resource === "jobs") this.handler.onJobEvent(type, object as Job)
        else this.reporter.guard(podName(namespace, object as Pod), note)
      }
      if (clock.monotonic() - startedAt < 1_000 && !stop.aborted) throw new Error("the watch ended at once")
      noteWorking()
    }
  }

  /** Asks what the Role allows. */
  private async review(namespace: string, isForced = false): Promise<void> {
    const { clock, cluster, stop } = this.world
    if (!isForced && !this.permissions.needsReview(namespace, clock.monotonic())) return
    const rules = await cluster.rules(namespace, stop).catch((error): Rules => {
      // A hardened cluster may refuse reviews for good: then only the 403 of a call tells.
      const refusals = (this.refusedReviews.get(namespace) ?? 0) + (isRejection(error) ? 1 : 0)
      this.refusedReviews.set(namespace, refusals)
      if (!isRejection(error) || refusals < MOST_REJECTIONS) throw error
      return { incomplete: true, resourceRules: [] }
    })
    const { missing, isEssential } = this.permissions.review(namespace, rules, clock.monotonic())
    if (this.reporter.isFirst(`rights ${namespace} ${missing.join()}`))
      this.reporter.emit({ kind: "PermissionsReviewed", namespace, missing, isEssential })
  }
}

/** Each write may hold a record of 256 KiB. */
const MOST_WRITES = 5
const MOST_WAITING_WRITES = 2_000

/**
 * Best-effort writes of Events, records and settings. Invariant: MOST_WRITES at a time, so that restarts come first on
 * a busy server, and at most MOST_WAITING_WRITES wait.
 */
class BackgroundWrites {
  private readonly running = new Set<Promise<void>>()
  private readonly waiting: (() => Promise<unknown>)[] = []
  /** How many wait for a retry. */
  private postponed = 0

  constructor(
    private readonly world: World,
    private readonly permissions: Permissions,
    private readonly isFirst: (failure: string) => boolean,
  ) {}

  isAllowed(namespace: string, right: string): boolean {
    return !this.world.config.dryRun && this.permissions.may(namespace, right)
  }

  /** Queues a write, if it is allowed; a failure is reported once. */
  add(namespace: string, right: string, what: string, work: () => Promise<unknown>): void {
    if (!this.isAllowed(namespace, right)) return
    const report = (why: string) => {
      // The server names the object in quotes.
      if (this.isFirst(`${namespace} ${what} ${why.replace(/"[^"]*"/, "")}`))
        this.world.emit({ kind: "WriteFailed", namespace, what, why })
    }
    if (this.waiting.length + this.postponed >= MOST_WAITING_WRITES)
      return report(`${MOST_WAITING_WRITES} others wait already`)
    this.waiting.push(() => work().catch((error) => report(messageOf(error))))
    this.start()
  }

  /** Queues a write that is retried until it works or its rejection persists. In backoff it takes nobody's place. */
  addUntilDone(namespace: string, right: string, what: string, work: () => Promise<unknown>, attempt = 1): void {
    const { clock, stop } = this.world
    const tryAgain = async (error: unknown) => {
      this.postponed++
      await clock.sleep(backoffMs(attempt, clock.random(), error), stop)
      this.postponed--
      if (!stop.aborted) this.addUntilDone(namespace, right, what, work, attempt + 1)
    }
    const run = () =>
      work().catch((error) => {
        if (!isRejection(error) || attempt < MOST_REJECTIONS) void tryAgain(error)
        if (attempt >= MOST_REJECTIONS) throw error
      })
    this.add(namespace, right, what, run)
  }

  private start(): void {
    while (this.running.size < MOST_WRITES && this.waiting.length > 0) {
      const write = this.waiting.shift() as () => Promise<unknown>
      const done = write().then(() => {
        this.running.delete(done)
        this.start()
      })
      this.running.add(done)
    }
  }

  /** Resolves when all are done. */
  async drain(): Promise<void> {
    while (this.running.size > 0) await Promise.all(this.running)
  }
}

const MOST_REPORTED = 25_000

/** Passes facts to all sinks, and writes the Events of their Jobs. */
class Reporter {
  /** The facts that are to be reported only once, as text. */
  private readonly reported = new BoundedMap<true>(MOST_REPORTED)

  constructor(
    private readonly world: World,
    private readonly writes: BackgroundWrites,
  ) {}

  emit(fact: Fact): void {
    const { cluster, emit, kill } = this.world
    emit(fact)
    const event = eventTextOf(fact)
    if (!event || !("job" in fact) || !fact.job) return
    const { job } = fact
    // Events live for an hour: a persistent rejection gets one every half an hour.
    const halfHour = Math.floor(nowOf(this.world) / 1_800_000)
    if (fact.kind === "RestartRejected" && !this.isFirst(`rejected ${job.uid} ${halfHour} ${fact.why}`)) return
    const body = eventFor(job, event.level, event.reason, event.text, nowOf(this.world))
    this.writes.add(job.namespace, "create /events", "an Event is not written", () =>
      cluster.createEvent(job.namespace, body, kill),
    )
  }

  /** Whether this is the first report of a fact; from now on it counts as reported. */
  isFirst(fact: string): boolean {
    if (this.reported.has(fact)) return false
    this.reported.set(fact, true)
    return true
  }

  forget(fact: string): void {
    this.reported.delete(fact)
  }

  /** Contains an error that an unexpected object causes, so that it does not hide the other objects. */
  guard<T>(job: JobName, work: () => T): T | undefined {
    try {
      return work()
    } catch (error) {
      if (this.isFirst(`not understood ${job.key} ${error}`))
        this.emit({ kind: "NotUnderstood", job, why: messageOf(error) })
      return undefined
    }
  }
}

const PRUNE_MS = 86_400_000

/** Writes the records of failures, up to HISTORY_LIMIT of each Job, and the settings for the commands. */
class Recorder {
  /** The records of each Job that exists, or has gone since the last pruning. */
  readonly known = new Map<string, RecordKey[]>()
  private readonly prunedAt = new Map<string, Monotonic>()

  constructor(
    private readonly world: World,
    private readonly cache: Cache,
    private readonly writes: BackgroundWrites,
    private readonly reporter: Reporter,
  ) {}

  record({ view, job }: JobEntry, evidence: Evidence, failure: Failure): void {
    const { config } = this.world
    if (config.historyLimit === 0) return
    const judged = { ...failure, changed: job !== undefined && isChanged(job) }
    const decision = decide({ ...view, deleting: false }, judged, config, nowOf(this.world))
    this.writes.addUntilDone(view.namespace, "create /configmaps", "a failure is not recorded", async () => {
      const record = recordFor(view, evidence, judged, decision)
      await createRecord(this.world, record)
      const known = this.remember(view.key, [recordKey(record.metadata ?? {})])
      const stale = new Set(staleRecords(known, config.historyLimit, () => true, nowOf(this.world)))
      const others = known.filter((one) => !stale.has(one))
      this.known.set(view.key, others)
      await removeRecords(this.world, view.namespace, stale)
    })
  }

  /**
   * Once the Role allows it: writes the settings and, once a day, prunes the records of Jobs that are long gone and
   * those that an earlier process has left over.
   */
  tidyUp(namespace: string, items: KeptJob[]): void {
    const { clock, cluster, config, kill } = this.world
    if (!this.writes.isAllowed(namespace, "create /configmaps")) return
    if (this.reporter.isFirst(`settings ${namespace}`))
      this.writes.addUntilDone(namespace, "get /configmaps", "settings are not written for the commands", () =>
        writeSettings(this.world, namespace),
      )
    const prunedAt = this.prunedAt.get(namespace) ?? Number.NEGATIVE_INFINITY
    if (clock.monotonic() - prunedAt < PRUNE_MS || config.historyLimit === 0) return
    this.prunedAt.set(namespace, clock.monotonic())
    const existing = new Set(items.map(({ view }) => view.name))
    const isThere = (key: string) => this.cache.jobs.has(key) || this.cache.intentsOf(key).length > 0
    // In memory they are pruned even if the Role does not allow their removal.
    for (const key of this.known.keys()) if (key.startsWith(`${namespace}/`) && !isThere(key)) this.known.delete(key)
    this.writes.addUntilDone(namespace, "delete /configmaps", "old records of failures are not removed", async () => {
      const { items: records } = await cluster.listConfigMaps(namespace, `${RECORD}=failure`, recordKey, kill)
      const stale = new Set(staleRecords(records, config.historyLimit, (job) => existing.has(job), nowOf(this.world)))
      await removeRecords(this.world, namespace, stale)
      const kept = records.filter((one) => !stale.has(one))
      for (const [key, past] of Map.groupBy(kept, ({ job }) => `${namespace}/${job}`))
        if (isThere(key)) this.remember(key, past)
    })
  }

  /** Adds records of a Job; the known ones stay, for a list may be older than the latest record. */
  private remember(key: string, records: RecordKey[]): RecordKey[] {
    const names = new Set(records.map(({ name }) => name))
    const known = [...(this.known.get(key) ?? []).filter(({ name }) => !names.has(name)), ...records]
    this.known.set(key, known)
    return known
  }
}

const CLOCK_RETRY_MS = 5_000

/** Keeps track of the API server's clock, with which due times are compared. */
class ServerClock {
  /** The wall clock less the monotonic clock, when the skew was measured. */
  private offsetMs: number | undefined

  constructor(
    private readonly world: World,
    private readonly reporter: Reporter,
    private readonly onSet: () => void,
  ) {}

  /**
   * The present, if a failure lies in the future. As our own clock may be wrong, the server's is read first, until it
   * answers. Undefined if the failure lies in the past, or after a stop.
   */
  async nowIfFailedInFuture({ failedAt = 0 }: JobView): Promise<number | undefined> {
    const { clock, stop } = this.world
    while (failedAt > nowOf(this.world) && !stop.aborted) {
      const offsetMs = clockOffset(clock)
      if ((await this.read(stop)) && !wasClockSet(clock, offsetMs)) return nowOf(this.world)
      await clock.sleep(CLOCK_RETRY_MS, stop)
    }
    return undefined
  }

  /** Reads the server's time. Returns whether there was an answer; a rejection has a Date header too. */
  private read(signal: AbortSignal): Promise<boolean> {
    return this.world.cluster.version(signal).then(
      () => true,
      (error: unknown) => error instanceof ApiError,
    )
  }

  /**
   * Reads the server's time again if the wall clock was set, that is if its offset from the monotonic clock changed.
   * Returns whether the time is known: until the API server has answered, no Job counts as due.
   */
  async sync(): Promise<boolean> {
    const { clock, stop } = this.world
    const offsetMs = clockOffset(clock)
    this.offsetMs ??= offsetMs
    const setByMs = offsetMs - this.offsetMs
    if (!wasClockSet(clock, this.offsetMs)) return true
    if (!(await this.read(stop))) return false
    this.offsetMs = offsetMs
    this.reporter.emit({ kind: "ClockSet", byMs: setByMs })
    this.onSet()
    return true
  }

  reportSkew(): void {
    const skewMs = this.world.cluster.skewMs()
    if (Math.abs(skewMs) > SKEW_LIMIT_MS && this.reporter.isFirst(`skew ${Math.round(skewMs / 60_000)}`))
      this.reporter.emit({ kind: "ClockSkew", skewMs })
  }
}

/** The longest that a run under way and a queued one take together. */
const LONGEST_COLLECTION_MS = 2 * (PODS_LISTED_MS + EVIDENCE_LIMIT_MS)

/** After so many triggers of a Job, its first candidate triggers no more runs. */
const MOST_TRIGGERS = 20

/**
 * Collects the evidence of failures while the pods exist. Invariant: of one Job, at most one run is under way and at
 * most one is queued.
 */
class EvidenceCollector {
  constructor(
    private readonly world: World,
    private readonly cache: Cache,
    private readonly workqueue: Workqueue,
    private readonly serverClock: ServerClock,
    private readonly reporter: Reporter,
    private readonly recorder: Recorder,
    private readonly untilPodsListed: (namespace: string) => Promise<void>,
  ) {}

  /**
   * Queues a run for a trigger, each of which counts once. A queued run serves all triggers that come before it begins.
   * After the one for "failed", the cause is known.
   */
  collect(entry: JobEntry, trigger: string): void {
    if (trigger === "failed" && entry.state.is !== "restarting" && entry.state.is !== "settled")
      moveTo(entry, { is: "collecting evidence" })
    entry.collection ??= { triggers: new Set(), pods: [], isQueued: false, done: Promise.resolve() }
    const { collection } = entry
    if (collection.triggers.has(trigger) || collection.triggers.has("failed")) return
    collection.triggers.add(trigger)
    // With a TTL of 0 the Job is forgotten, with its pods, before the run begins.
    collection.pods = this.cache.podsOf(entry.view.uid)
    if (collection.isQueued) return
    collection.isQueued = true
    collection.done = collection.done.then(() => this.run(entry, collection))
  }

  onPodStopping(entry: JobEntry, pod: PodView): void {
    if (entry.collection?.triggers.has("failed")) return
    // With a grace period of 0 the pod is gone a moment after this, before its Job is seen to fail.
    const states = pod.containers.map(({ state }) => state).join()
    entry.candidates ??= evidencePods(this.cache.podsOf(pod.jobUid)).pods
    const at = entry.candidates.findIndex(({ uid }) => uid === pod.uid)
    // The first candidate is the pod to blame so far, and that can be another one with each pod that stops.
    const isTrigger = at > 0 || (at === 0 && (entry.collection?.triggers.size ?? 0) < MOST_TRIGGERS)
    if (isTrigger) this.collect(entry, `${pod.uid} ${states}`)
  }

  private async run(entry: JobEntry, collection: Collection): Promise<void> {
    // Otherwise, after a start or an outage, each of many Jobs would list its pods.
    await this.untilPodsListed(entry.view.namespace)
    collection.isQueued = false
    const hasFailed = collection.triggers.has("failed")
    // Without a watch of pods, those of the previous run are the best.
    const known = [this.cache.podsOf(entry.view.uid), collection.pods, entry.evidence?.pods]
    const pods = known.find((some) => some?.length) ?? []
    const evidence = await gatherEvidence(this.world, entry.view, pods, entry.evidence)
    if (!hasFailed) entry.evidence = evidence
    else {
      // Only the record still needs it, and rules the lines that they match: logs would take most of the memory.
      entry.evidence = undefined
      entry.candidates = undefined
      collection.pods = []
      if (!this.world.kill.aborted) await this.finish(entry, evidence)
    }
  }

  /** Reports and records a failure whose evidence is complete, and enqueues its Job. */
  private async finish(entry: JobEntry, evidence: Evidence): Promise<void> {
    const { view } = entry
    const { failedAt = 0 } = view
    const failure = { ...failureOf(view, evidence), seenAt: await this.serverClock.nowIfFailedInFuture(view) }
    entry.failure = { ...failure, lines: matchedLines(failure.lines, this.world.config) }
    const { cause } = failure
    const reason = [view.reason, view.message].filter(Boolean).join(", ")
    this.reporter.emit({ kind: "FailureSeen", job: view, failedAt, cause, reason, evidence })
    this.recorder.record(entry, evidence, failure)
    this.workqueue.add(view.key, nowOf(this.world))
  }
}

// ───────────────────────────────────────────── 12 Operator ──────────────────────────────────────────────

/** A restarted Job without a pod is reported after this; with LONGEST_SLEEP_MS added, within a minute. */
const PODLESS_MS = 25_000
const isPodless = ({ phase, hasPods, deleting }: JobView) => phase === "running" && !hasPods && !deleting
const isRestarted = (view: JobView) => annotationOf(view, "restarted-from") !== undefined

/** Reports, once each, what an owner should know before a Job fails, and that a restarted Job gets no pod. */
class Warnings {
  constructor(
    private readonly world: World,
    private readonly workqueue: Workqueue,
    private readonly reporter: Reporter,
    private readonly onJobRead: (job: Job) => void,
  ) {}

  reportJob(view: JobView): void {
    const { problems } = overridesOf(view, this.world.config)
    for (const problem of problems)
      if (this.reporter.isFirst(`${view.key} ${problem}`))
        this.reporter.emit({ kind: "WrongAnnotation", job: view, problem })
    const queue = view.labels["kueue.x-k8s.io/queue-name"]
    if (queue && this.reporter.isFirst(`queue ${view.key} ${queue}`))
      this.reporter.emit({ kind: "Queued", job: view, queue })
  }

  reportPod(view: JobView, { containers, name }: PodView): void {
    // Virtual kubelets have further reasons for a container that is on its way.
    const isError = ({ reason }: ContainerView) => /Err|Invalid|Unavailable|Failed|BackOff/.test(reason)
    const why = ({ reason, message }: ContainerView) => [reason, message].filter(Boolean).join(": ")
    const stuck = containers.find((one) => one.state === "waiting" && !one.ended && isError(one))
    if (stuck && this.reporter.isFirst(`start ${view.uid}`))
      this.reporter.emit({ kind: "CannotStart", job: view, pod: name, reason: why(stuck) })
  }

  /** A configured name that does not exist is reported once: a typo would otherwise go unnoticed. */
  reportMissing(namespace: string, existing: Set<string>): void {
    const { config } = this.world
    for (const key of config.jobNames ?? []) {
      if (!key.startsWith(`${namespace}/`) || existing.has(key)) continue
      const name = key.slice(namespace.length + 1)
      this.reporter.emit({ kind: "JobMissing", job: { key, namespace, name, uid: "" } })
    }
    if (existing.size === 0) this.reporter.emit({ kind: "NamespaceEmpty", namespace })
  }

  /**
   * A restarted Job may get no pod because of a quota or policy, or because the controller overlooks it
   * (kubernetes/kubernetes#142142).
   */
  checkPodless(view: JobView, now: number): void {
    if (!isPodless(view) || !isRestarted(view)) return
    const checkAt = view.createdAt + PODLESS_MS
    if (now < checkAt) return this.workqueue.add(view.key, checkAt)
    const fact = `podless ${view.uid}`
    if (!this.reporter.isFirst(fact)) return
    this.reportPodless(view, now).catch(() => {
      this.reporter.forget(fact)
      this.workqueue.add(view.key, nowOf(this.world) + CLOCK_RETRY_MS)
    })
  }

  /** Reads the Job first: where Jobs are polled, the cache is old. */
  private async reportPodless({ namespace, name, uid, createdAt }: JobView, now: number): Promise<void> {
    const live = await this.world.cluster.getJob(namespace, name, this.world.kill)
    if (!live) return
    this.onJobRead(live)
    const view = viewJob(live)
    if (view.uid === uid && isPodless(view)) this.reporter.emit({ kind: "NoPod", job: view, forMs: now - createdAt })
  }
}

/**
 * A restart under way. `failure` and `wasGone`: what was known of the Job at its start. `changed` fires when the Job or
 * one of its pods is gone, or the Job was edited. `requeue`: its key was due meanwhile.
 */
type RunningRestart = {
  done: Promise<void>
  dueAt: number
  startedAt: Monotonic
  failure: Failure | undefined
  wasGone: boolean
  changed: AbortController
  requeue: boolean
}

/** The delay before a key that was due during its restart is reconciled, so that it cannot spin. */
const REQUEUE_AFTER_MS = 200
/** The delay before a watched Job that its restart found changed is decided on anew, so that it cannot spin. */
const CHANGED_RETRY_MS = 5_000

/** The restarts under way. Invariant: at most one for each Job. */
class Restarts {
  private readonly running = new Map<string, RunningRestart>()

  constructor(
    private readonly world: World,
    private readonly cache: Cache,
    private readonly workqueue: Workqueue,
    private readonly spacing: Spacing,
    private readonly permissions: Permissions,
    private readonly liveness: Liveness,
    private readonly reporter: Reporter,
    private readonly onJobRead: (job: Job) => void,
  ) {}

  /** When each is, or was, due, by the key of its Job. */
  dueTimes(): Map<string, number> {
    return new Map([...this.running].map(([key, { dueAt }]) => [key, dueAt]))
  }

  /** Resolves when all have ended. */
  async drain(): Promise<void> {
    if (this.running.size > 0) this.reporter.emit({ kind: "Stopping", restarts: this.running.size })
    await Promise.all([...this.running.values()].map(({ done }) => done))
  }

  /** Wakes the Job's restart: the Job or one of its pods is gone, or the Job was edited. */
  noteChange(key: string): void {
    this.running.get(key)?.changed.abort()
  }

  /** Whether a restart is under way. Then its Job is enqueued again when that ends. */
  requeueIfRunning(key: string): boolean {
    const running = this.running.get(key)
    if (running) running.requeue = true
    return running !== undefined
  }

  /** When the spacing of its group lets a restart start; one that a person asks for does not wait for others. */
  freeAt(view: JobView, now: number): number {
    return isWantedNow(view) ? now : this.spacing.freeAt(groupOf(view), now)
  }

  /** Notes that a Job is due, but waits until its group is free. */
  waitForGroup(view: JobView): void {
    this.spacing.addWaiting(groupOf(view), view.key)
  }

  /** Runs one restart beside all others. `view`: of the Job that is restarted, or of its replacement. */
  start(restart: Restart, dueAt: number, view: JobView): void {
    const { key } = restart.job
    const now = nowOf(this.world)
    const freeAt = this.freeAt(view, now)
    const heldUntil = freeAt > now ? freeAt : 0
    const entry = this.cache.jobs.get(key)
    // If the new Job of the restart exists already, only its intents are cleaned up.
    const isLeftover = entry !== undefined && entry.view.uid !== restart.job.uid
    const isStart = Math.max(dueAt, freeAt) <= now && !isLeftover
    const group = groupOf(view)
    const start = isStart ? this.spacing.take(group, now, key) : undefined
    if (heldUntil > 0) this.spacing.addWaiting(group, key)
    // An intent may belong to an earlier Job than the one that exists.
    if (entry?.view.uid === restart.job.uid && entry.state.is !== "settled") moveTo(entry, { is: "restarting", dueAt })
    if (entry) entry.waitAfterGone = undefined
    this.workqueue.remove(key)
    const running: RunningRestart = {
      done: Promise.resolve(),
      dueAt,
      startedAt: this.world.clock.monotonic(),
      failure: entry?.failure,
      wasGone: entry?.goneAt !== undefined,
      changed: new AbortController(),
      requeue: false,
    }
    // Before it runs: its first observation asks for the change signal.
    this.running.set(key, running)
    const cache = this.cacheOf(restart.job)
    running.done = reconcileRestart(this.world, cache, { ...restart, heldUntil }).then((outcome) => {
      this.running.delete(key)
      if (start && !("uid" in outcome)) this.spacing.release(group, start, nowOf(this.world))
      this.finish(restart.job, running, outcome)
    })
  }

  private cacheOf({ key, namespace }: JobName): RestartCache {
    const { cache, liveness } = this
    const tombstoneOf = (uid: string) => [cache.tombstone(key)].find((known) => known && uidOf(known.job) === uid)
    return {
      intents: () => cache.intentsOf(key),
      latest: () => cache.latest(key),
      podsOf: (uid) => {
        // After a stop there are no watches.
        const pods = liveness.syncedPods.has(namespace) && !this.world.stop.aborted ? cache.podsOf(uid) : []
        return pods.length > 0 ? pods : undefined
      },
      deletedByPerson: (uid, intent) => {
        const { job, watched, ttlMs } = tombstoneOf(uid) ?? {}
        return job !== undefined && watched === true && rulesOf(this.world).wasDeletedByPerson(job, intent, ttlMs)
      },
      ttlMsOf: (uid) => tombstoneOf(uid)?.ttlMs,
      onJobRead: (job) => this.onJobRead(job),
      onIntentRead: (intent) => cache.addIntent(intent, this.world.clock.monotonic(), cache.sequence),
      onIntentGone: (intent) => cache.removeIntent(intent),
      changeSignal: () => this.changeSignal(key, namespace),
      emit: (fact) => this.reporter.emit(fact),
    }
  }

  private changeSignal(key: string, namespace: string): AbortSignal | undefined {
    const restart = this.running.get(key)
    const isWatched = this.permissions.may(namespace, WATCH_RIGHTS.jobs) && !this.world.stop.aborted
    if (!restart || !isWatched) return undefined
    if (restart.changed.signal.aborted) restart.changed = new AbortController()
    return restart.changed.signal
  }

  private finish(job: JobName, running: RunningRestart, outcome: Outcome): void {
    const { clock, config } = this.world
    const entry = this.cache.jobs.get(job.key)
    const current = entry?.view.uid === job.uid && entry.state.is !== "settled" ? entry : undefined
    if (outcome.result === "rejected") return this.finishRejected(job, current, running, outcome.error)
    if (outcome.result === "waiting") return this.finishWaiting(job, current, running, outcome.dueAt)
    const isChanged = outcome.result === "changed"
    const restarted = "uid" in outcome ? { ...job, uid: outcome.uid } : job
    const times = { tookMs: clock.monotonic() - running.startedAt, lateMs: nowOf(this.world) - running.dueAt }
    this.reporter.emit({ kind: "RestartFinished", job: restarted, outcome, ...times })
    const isWatched = this.permissions.may(job.namespace, WATCH_RIGHTS.jobs)
    const retryMs = isWatched ? CHANGED_RETRY_MS : config.checkIntervalMs
    if (current && isChanged) current.retryAt = later(clock.monotonic(), retryMs)
    // The restart may be of an earlier Job, which this one has replaced.
    const isEarlier = "uid" in outcome && outcome.uid === current?.view.uid
    if (current) moveTo(current, { is: isChanged || isEarlier ? "idle" : "settled" })
    if (outcome.result === "namespace gone")
      for (const intent of this.cache.intentsOf(job.key)) this.cache.removeIntent(intent)
    if (current?.goneAt !== undefined && current.state.is === "settled") this.cache.forgetJob(current)
    this.workqueue.add(job.key, nowOf(this.world))
  }

  private finishWaiting({ key }: JobName, entry: JobEntry | undefined, running: RunningRestart, dueAt: number): void {
    const { failure, wasGone, requeue } = running
    const [intent] = newestFirst(this.cache.intentsOf(key))
    if (entry) moveTo(entry, { is: "scheduled", dueAt })
    if (entry && wasGone && !intent?.unsafe) entry.waitAfterGone = { intentUid: intent?.uid, failure, dueAt }
    const isDueNow = requeue || entry?.failure !== failure
    this.workqueue.add(key, isDueNow ? nowOf(this.world) + REQUEUE_AFTER_MS : dueAt, running.dueAt)
  }

  private finishRejected(job: JobName, entry: JobEntry | undefined, { requeue }: RunningRestart, error: Error): void {
    // Half of it is random, so that two restarts that need the same place of a quota pass one after the other.
    const longestMs = exponentialBackoffMs({ fromMs: 30_000, toMs: 300_000 }, entry?.rejections ?? 0)
    const retryMs = longestMs / 2 + (this.world.clock.random() * longestMs) / 2
    const tryAt = nowOf(this.world) + retryMs
    this.reporter.emit({ kind: "RestartRejected", job, why: error.message, retryMs })
    if (entry) {
      entry.rejections++
      entry.retryAt = later(this.world.clock.monotonic(), retryMs)
      moveTo(entry, { is: "scheduled", dueAt: entry.state.is === "restarting" ? entry.state.dueAt : tryAt })
    }
    // A Job that is gone meanwhile no longer occupies its name or its place in a quota.
    this.workqueue.add(job.key, requeue && entry?.goneAt !== undefined ? nowOf(this.world) + REQUEUE_AFTER_MS : tryAt)
  }
}

/** A fresh intent of another operator is left to its writer; one that is still there after this is adopted. */
const ADOPT_AFTER_MS = 60_000

/** The shortest TTL seen: it may be edited while the TTL controller removes the Job. */
function shorterTtlMs(before: JobView, after: JobView): number | undefined {
  const known = [before.ttlMs, after.ttlMs].filter((ttlMs) => ttlMs !== undefined)
  return known.length > 0 ? Math.min(...known) : undefined
}

/**
 * Updates the cache from lists, watches and reads of restarts. Invariant: each update of a Job or its intents enqueues
 * the Job; one of its pods may wake its restart, or trigger the collection of evidence.
 */
class EventHandler implements WatchHandler {
  private readonly listedVersion = new Map<string, string>()
  /** What was created by then, an earlier process has restarted. */
  private firstListedAt = Number.POSITIVE_INFINITY

  constructor(
    private readonly world: World,
    private readonly cache: Cache,
    private readonly workqueue: Workqueue,
    private readonly spacing: Spacing,
    private readonly reporter: Reporter,
    private readonly recorder: Recorder,
    private readonly evidence: EvidenceCollector,
    private readonly warnings: Warnings,
    private readonly restarts: Restarts,
    private readonly watchAllPods: (view: JobView) => void,
  ) {}

  onJobsListed(namespace: string, list: ListedJobs): void {
    const isFirst = !this.listedVersion.has(namespace)
    this.firstListedAt = Math.min(this.firstListedAt, nowOf(this.world))
    this.replaceCache(namespace, list)
    if (isFirst) {
      // A Job that its TTL took exists in its intent.
      const existing = [...list.items.map(({ view }) => view.key), ...this.cache.keysWithIntents(namespace)]
      this.warnings.reportMissing(namespace, new Set(existing))
    }
    this.recorder.tidyUp(namespace, list.items)
  }

  /** Replaces the namespace's part of the cache by a list, except what was read after the list was requested. */
  private replaceCache(namespace: string, { items, resourceVersion: version, asOf }: ListedJobs): void {
    if (compareVersions(version, this.listedVersion.get(namespace) ?? "") < 0) this.cache.clear(namespace)
    this.listedVersion.set(namespace, version)
    const listed = new Set(items.map(({ view }) => view.key))
    for (const entry of [...this.cache.jobs.values()]) {
      const isMissing = entry.view.namespace === namespace && !listed.has(entry.view.key)
      if (isMissing && entry.sequence <= asOf) this.onJobDeleted(entry.view, entry.job, false)
    }
    for (const key of this.cache.keysWithIntents(namespace))
      for (const intent of this.cache.intentsOf(key))
        if (!listed.has(`${namespace}/${intent.name}`) && intent.sequence <= asOf) this.cache.removeIntent(intent)
    // Intents first: a Job that is not selected is kept only if it has one.
    for (const { intent } of items)
      if (intent) this.reporter.guard(viewJob(intent), () => this.onIntentEvent("LISTED", intent, asOf))
    for (const kept of items)
      if (!kept.intent && (this.cache.jobs.get(kept.view.key)?.sequence ?? 0) <= asOf)
        this.reporter.guard(kept.view, () => this.onJobUpdate(kept, true))
  }

  onJobEvent(type: WatchEventType, job: Job): void {
    const kept = keepJob(job)
    this.reporter.guard(kept.view, () => {
      if (kept.intent) this.onIntentEvent(type, job)
      else if (type === "DELETED") this.onJobDeleted(kept.view, job, true)
      else this.onJobUpdate(kept, false)
    })
  }

  /** Updates the cache by what a restart, or a check, has read. */
  onJobRead(job: Job): void {
    const known = this.cache.latest(`${job.metadata?.namespace}/${job.metadata?.name}`)
    // A late answer may be of a Job that is gone by now.
    if (known && compareVersions(versionOf(job), versionOf(known)) <= 0) return
    this.onJobEvent("MODIFIED", job)
  }

  private onIntentEvent(type: string, job: Job, asOf?: number): void {
    const { clock } = this.world
    const intent = rulesOf(this.world).readIntent(job)
    const view = viewJob(job)
    if (!intent) {
      if (type !== "DELETED" && this.reporter.isFirst(`intent ${view.key}`))
        this.reporter.emit({ kind: "IntentUnreadable", job: view })
      return
    }
    const key = `${intent.namespace}/${intent.jobName}`
    const entry = this.cache.jobs.get(key)
    // An unsafe intent protects nothing: its removal, even before the next reconcile, must not cancel the restart.
    if (intent.unsafe && entry?.waitAfterGone?.intentUid === intent.uid) entry.waitAfterGone = undefined
    if (type === "DELETED" || intent.deleting) this.cache.removeIntent(intent)
    // A listed intent was there before the list: it is adopted at once.
    else this.cache.addIntent(intent, later(clock.monotonic(), type === "LISTED" ? 0 : ADOPT_AFTER_MS), asOf)
    const now = nowOf(this.world)
    this.workqueue.add(key, now, Math.min(intent.dueAt ?? now, now))
  }

  private onJobUpdate(kept: KeptJob, isListed: boolean): void {
    const { view } = kept
    const known = this.cache.jobs.get(view.key)
    // A Job with an intent is followed even if it is not selected: whoever completes its restart needs its last edits.
    if (!known && !isSelected(view, this.world.config) && this.cache.intentsOf(view.key).length === 0) return
    this.watchAllPods(view)
    // A late watch event may be older than what a restart has read. A list is believed: etcd may have been restored.
    if (known && !isListed && compareVersions(view.resourceVersion, known.view.resourceVersion) < 0) return
    const sequence = ++this.cache.sequence
    if (known?.view.uid === view.uid) {
      if (view.deleting || known.retryAt !== undefined) this.noteEdit(known, kept.job)
      known.view = view.deleting ? { ...view, ttlMs: shorterTtlMs(known.view, view) } : view
      Object.assign(known, { job: kept.job, sequence }, view.deleting ? {} : { finalizers: kept.finalizers })
    } else {
      if (known) this.cache.forgetJob(known)
      this.cache.addJob(new JobEntry(kept, sequence))
      // Anybody may write a Job that looks restarted, and hold up a group: a later one only counts if it replaces one
      // that is known, as where another operator or a command has restarted it.
      // Creation times have whole seconds, so 999 ms are added, lest the spacing end early.
      const isByOthers = known !== undefined && annotationOf(view, "restarted-from") === known.view.uid
      if (isByOthers || (isRestarted(view) && view.createdAt <= this.firstListedAt))
        this.spacing.take(groupOf(view), Math.min(view.createdAt + 999, nowOf(this.world)))
      for (const pod of this.cache.podsOf(view.uid)) this.warnings.reportPod(view, pod)
    }
    this.warnings.reportJob(view)
    this.workqueue.add(view.key, nowOf(this.world))
  }

  /**
   * An edit of a terminating Job wakes the restart under way, for the Job may be gone a moment later. An edit of a Job
   * whose restart was rejected may resolve that, so the retry comes soon.
   */
  private noteEdit(entry: JobEntry, after: Job | undefined): void {
    const { view, job: before, retryAt } = entry
    if (!before || !after || fingerprintOf(before) === fingerprintOf(after)) return
    this.restarts.noteChange(view.key)
    const soon = later(this.world.clock.monotonic(), CHANGED_RETRY_MS)
    if (retryAt !== undefined && soon < retryAt) entry.retryAt = soon
  }

  private onJobDeleted(view: JobView, job: Job | undefined, isWatched: boolean): void {
    const entry = this.cache.jobs.get(view.key)
    const current = entry?.view.uid === view.uid ? entry : undefined
    const ttlMs = current ? shorterTtlMs(current.view, view) : view.ttlMs
    const last = job && current ? { ...job, metadata: { ...job.metadata, finalizers: current.finalizers } } : job
    const isRelevant = entry !== undefined || this.cache.intentsOf(view.key).length > 0
    if (last && isRelevant) this.cache.addTombstone(view.key, { job: last, watched: isWatched, ttlMs })
    if (current) {
      Object.assign(current, { view: { ...view, ttlMs, deleting: true }, job: last })
      current.goneAt ??= nowOf(this.world)
      this.restarts.noteChange(view.key)
    }
    this.workqueue.add(view.key, nowOf(this.world))
  }

  /** A pod that the list lacks was deleted while there was no watch. */
  onPodsListed(namespace: string, items: PodView[]): void {
    const listed = new Set(items.map(({ uid }) => uid))
    for (const { view } of this.cache.jobs.values()) {
      if (view.namespace !== namespace) continue
      for (const pod of this.cache.podsOf(view.uid))
        if (!pod.gone && !listed.has(pod.uid)) this.onPodEvent("DELETED", namespace, pod)
    }
    for (const pod of items) this.onPodEvent("ADDED", namespace, pod)
  }

  onPodEvent(type: WatchEventType, namespace: string, pod: PodView): void {
    if (!pod.jobUid) return
    const known = this.cache.pod(pod)
    const isGone = type === "DELETED"
    if (isGone && !known) return
    const entry = this.cache.jobs.get(`${namespace}/${pod.jobName}`)
    const isOfEntry = entry?.view.uid === pod.jobUid
    const kept = known && isStoppedAfterFailure(known) ? known : pod
    // Shares the entry's strings, to save memory.
    if (isOfEntry) Object.assign(kept, { jobUid: entry.view.uid, jobName: entry.view.name })
    const now = isGone ? { ...kept, gone: true } : kept
    this.cache.addPod(now, isOfEntry)
    // While the Job still exists, a restart waits for its end only.
    if (isGone && entry?.goneAt !== undefined) this.restarts.noteChange(entry.view.key)
    if (!entry || !isOfEntry) return
    if (entry.candidates) entry.candidates = evidencePods(withPod(entry.candidates, now)).pods
    this.warnings.reportPod(entry.view, pod)
    if (pod.deleting && !isGone && !entry.view.deleting && pod.phase !== "Succeeded")
      this.evidence.onPodStopping(entry, pod)
  }
}

/**
 * Decides on one Job at a time, from the cache: to wait, to start a restart, or to leave the Job alone. Invariant: it
 * has no state; what is kept from one decision to the next is in the JobEntry.
 */
class Reconciler {
  constructor(
    private readonly world: World,
    private readonly cache: Cache,
    private readonly workqueue: Workqueue,
    private readonly reporter: Reporter,
    private readonly recorder: Recorder,
    private readonly evidence: EvidenceCollector,
    private readonly warnings: Warnings,
    private readonly restarts: Restarts,
  ) {}

  /** Decides on one Job. What cannot be understood of it, as in a forged intent, does not end the loop. */
  reconcile(key: string): void {
    const [namespace = "", name = ""] = key.split("/")
    this.reporter.guard({ key, namespace, name, uid: "" }, () => this.reconcileKey(key))
  }

  /** A restart under way enqueues its Job again when it ends. */
  private reconcileKey(key: string): void {
    if (this.restarts.requeueIfRunning(key)) return
    const entry = this.cache.jobs.get(key)
    const [intent] = newestFirst(this.cache.intentsOf(key))
    const isSettled = entry?.state.is === "settled"
    if (isSettled && entry.goneAt !== undefined && !intent) this.cache.forgetJob(entry)
    if (!entry || isSettled) this.reconcileIntent(key, intent)
    else if (entry.goneAt !== undefined) this.reconcileGone(entry, intent)
    else this.reconcileJob(entry, intent)
  }

  /**
   * Carries out an intent that an earlier process or another operator has left, even if its Job is not selected now.
   * Returns true if that is started, or waits: then there is nothing else to do for the Job.
   */
  private reconcileIntent(key: string, intent: KnownIntent | undefined): boolean {
    if (!intent || this.world.config.dryRun || this.postponeAdoption(key, intent)) return false
    const { namespace, jobName: name, jobUid: uid } = intent
    const job = { key, namespace, name, uid }
    const view = viewJob(replacementOf(intent))
    if (this.reporter.isFirst(`adopted ${intent.uid}`))
      this.reporter.emit({ kind: "IntentAdopted", job, intent: intent.name })
    // An intent without a due time is a restart under way, whatever others exist.
    const isWait = this.cache.intentsOf(key).every(({ dueAt }) => dueAt !== undefined)
    const live = this.cache.jobs.get(key)?.view
    const isAsWritten = live?.resourceVersion === intent.jobVersion && !live.deleting && !intent.unsafe
    // If the Job is absent, or as it was, a run before the due time does nothing, and may cost a list of pods.
    if (isWait && (!live || isAsWritten) && this.postponeWait(view, intent)) return true
    this.restarts.start({ job }, intent.dueAt ?? nowOf(this.world), view)
    return true
  }

  /** Whether an intent waits for its due time, or for its group. Then its Job is enqueued for the end of the wait. */
  private postponeWait(view: JobView, { dueAt }: Intent): boolean {
    if (dueAt === undefined) return false
    const now = nowOf(this.world)
    const startsAt = Math.max(dueAt, this.restarts.freeAt(view, now))
    if (startsAt <= now) return false
    if (dueAt <= now) this.restarts.waitForGroup(view)
    this.workqueue.add(view.key, startsAt, dueAt)
    return true
  }

  /** Whether another operator has just written this intent. Then its Job is enqueued for when it is to be adopted. */
  private postponeAdoption(key: string, { adoptAt }: KnownIntent): boolean {
    const leftMs = adoptAt - this.world.clock.monotonic()
    if (leftMs > 0) this.workqueue.add(key, nowOf(this.world) + leftMs)
    return leftMs > 0
  }

  /** The Job is gone without a restart of ours: the TTL controller, a person, or another operator deleted it. */
  private reconcileGone(entry: JobEntry, intent: KnownIntent | undefined): void {
    const { view, job, failure, waitAfterGone } = entry
    const { config } = this.world
    if (intent && !config.dryRun) {
      // Without a due time it is another operator's restart; with one it is a wait that was recorded.
      if (intent.dueAt === undefined && this.postponeAdoption(view.key, intent)) return
      const isNothingNew =
        waitAfterGone?.intentUid === intent.uid && waitAfterGone.failure === failure && !intent.unsafe
      if (isNothingNew && this.postponeWait(view, intent)) return
      // While its cause is unknown, only the intent says when it is due.
      const restart = failure ? this.restartOf(entry) : { job: view }
      return this.restarts.start(restart, intent.dueAt ?? nowOf(this.world), view)
    }
    if (waitAfterGone) return this.finishCancelled(entry, waitAfterGone.dueAt)
    const isOurs = isSelected(view, config) && !view.manager
    if (!job || view.phase !== "failed" || !isOurs) return this.cache.forgetJob(entry)
    if (!this.wasRemovedByTtl(entry)) return this.forgetDeleted(entry, intent !== undefined)
    if (!failure) return this.evidence.collect(entry, "failed")
    const desired = rulesOf(this.world).desiredFor(job, failure, config, nowOf(this.world))
    if ("dueAt" in desired.decision && !config.dryRun)
      return this.restarts.start(this.restartOf(entry), desired.decision.dueAt, view)
    const because = "dueAt" in desired.decision ? "DRY_RUN" : desired.decision.because
    this.reporter.emit({ kind: "RemovedByTtl", job: view, because })
    this.cache.forgetJob(entry)
  }

  private finishCancelled(entry: JobEntry, dueAt: number): void {
    const outcome: Outcome = { result: "cancelled" }
    const lateMs = nowOf(this.world) - dueAt
    this.reporter.emit({ kind: "RestartFinished", job: entry.view, outcome, tookMs: 0, lateMs })
    this.cache.forgetJob(entry)
  }

  /** Somebody deleted the Job: its failure is recorded with the evidence so far, and its pods are not read any more. */
  private forgetDeleted(entry: JobEntry, isRestart: boolean): void {
    const { view, collection } = entry
    const evidence = entry.evidence ?? { ...evidencePods(this.cache.podsOf(view.uid)), logs: new Map() }
    if (!collection?.triggers.has("failed")) this.recorder.record(entry, evidence, failureOf(view, evidence))
    this.reporter.emit({ kind: "DeletedByOthers", job: view, isRestart })
    this.cache.forgetJob(entry)
  }

  /** Without a DELETED event, the instant at which the Job was first missed stands in for its deletionTimestamp. */
  private wasRemovedByTtl({ view, job, goneAt = 0 }: JobEntry): boolean {
    if (view.ttlMs === undefined || !job) return false
    const deletionTimestamp = new Date(goneAt).toISOString()
    const isWatched = this.cache.tombstone(view.key)?.watched
    const last = isWatched ? job : { ...job, metadata: { ...job.metadata, deletionTimestamp } }
    return !rulesOf(this.world).wasDeletedByPerson(last, undefined, view.ttlMs)
  }

  private reconcileJob(entry: JobEntry, intent: KnownIntent | undefined): void {
    const { config } = this.world
    const { view, job, failure } = entry
    const now = nowOf(this.world)
    this.warnings.checkPodless(view, now)
    const known = { ...(failure ?? UNKNOWN), changed: job !== undefined && isChanged(job) }
    const decision = decide(view, known, config, now)
    if (decision.do !== "leave" && !failure) {
      this.protectFromTtl(entry, intent)
      return this.evidence.collect(entry, "failed")
    }
    if (view.phase === "failing" && !view.deleting && !view.manager) this.evidence.collect(entry, "failing")
    // With a TTL of 0 its pods are deleted with it: their logs must be read before.
    const isExpiring = view.deleting && view.ttlMs !== undefined && view.phase === "failed"
    if (isExpiring && !view.manager && isSelected(view, config) && !failure) this.evidence.collect(entry, "failed")
    entry.decision = decision
    this.reportDecision(entry, decision, known.cause, now)
    // An intent left over from the restart that created this Job is cleaned up now.
    const leftover = newestFirst(this.cache.intentsOf(view.key)).find(({ jobUid }) => jobUid !== view.uid)
    if (this.reconcileIntent(view.key, leftover)) return
    if ("dueAt" in decision) return this.schedule(entry, intent, decision.dueAt)
    moveTo(entry, { is: "idle" })
    if (!intent || config.dryRun) return
    // No restart is wanted, but an intent exists. If the Job is left alone, the intent is carried out as it is, unless
    // the TTL controller is removing the Job: then what is known of the failure may forbid the restart, or want it
    // earlier. If the Job was given up, an intent without a due time is carried out: a person has asked for it.
    const isExpired = view.deleting && failure !== undefined
    const isCarriedOut = decision.do === "leave" ? !isExpired : intent.dueAt === undefined
    if (isCarriedOut) return void this.reconcileIntent(view.key, intent)
    if (intent.jobUid === view.uid && this.retryInMs(entry) <= 0 && !this.postponeAdoption(view.key, intent))
      this.restarts.start(this.restartOf(entry), intent.dueAt ?? now, view)
  }

  /** If the TTL may end before the evidence is complete, an intent with the longest possible wait is written first. */
  private protectFromTtl(entry: JobEntry, intent: Intent | undefined): void {
    const { view } = entry
    const { config } = this.world
    const { ttlMs = Number.POSITIVE_INFINITY, failedAt = 0 } = view
    if (intent || config.dryRun || ttlMs >= LONGEST_COLLECTION_MS) return
    const now = nowOf(this.world)
    const protectAt = failedAt + Math.min(1_500, ttlMs / 2)
    if (now < protectAt) return this.workqueue.add(view.key, protectAt)
    // Due only when the cause is known, which may forbid the restart; and later than any cause makes it, so that the
    // intent is replaced by one that tells the cause.
    const dueAt = Math.max(failedAt + longestWaitMs(view, config) + 2_000, now + LONGEST_COLLECTION_MS)
    const decision: Decision = { do: "wait", dueAt, because: "its cause is not known yet" }
    const desiredFor = (job: Job): Desired => {
      const known = rulesOf(this.world).desiredFor(job, UNKNOWN, config, nowOf(this.world))
      const annotations = withoutKeys(known.additions.annotations, [LAST_CAUSE])
      const additions = { ...known.additions, annotations }
      return known.decision.do === "leave" ? known : { decision, additions }
    }
    this.restarts.start({ job: view, desiredFor }, dueAt, view)
  }

  private schedule(entry: JobEntry, intent: KnownIntent | undefined, dueAt: number): void {
    const { view } = entry
    const { dryRun } = this.world.config
    const now = nowOf(this.world)
    const current = intent?.jobUid === view.uid ? intent : undefined
    const intentAt = dryRun ? undefined : this.actOnIntentAt(entry, current, dueAt)
    if (intentAt !== undefined && intentAt <= now) return this.startScheduled(entry, dueAt)
    const wantedAt = Math.min(dueAt, current?.dueAt ?? dueAt)
    const readyAt = Math.max(wantedAt, now + this.retryInMs(entry))
    const startsAt = readyAt > now ? readyAt : this.restarts.freeAt(view, now)
    if (startsAt <= now) return dryRun ? this.reportDryRun(entry) : this.startScheduled(entry, dueAt)
    moveTo(entry, { is: "scheduled", dueAt })
    if (readyAt <= now) this.restarts.waitForGroup(view)
    this.workqueue.add(view.key, Math.min(startsAt, intentAt ?? startsAt), readyAt)
  }

  /** When an intent is to be written, replaced or adopted, whenever its Job is due; undefined: not at all. */
  private actOnIntentAt(entry: JobEntry, intent: KnownIntent | undefined, dueAt: number): number | undefined {
    const { view } = entry
    const now = nowOf(this.world)
    if (intent?.dueAt !== undefined) {
      const isStale = intent.jobVersion !== view.resourceVersion || dueAt < intent.dueAt - 1_000
      return isStale ? now + this.retryInMs(entry) : undefined
    }
    // A restart that an earlier process, or another operator, has begun no longer waits for a due time.
    if (intent) return now + Math.max(this.retryInMs(entry), intent.adoptAt - this.world.clock.monotonic())
    const startsAt = Math.max(dueAt, this.restarts.freeAt(view, now))
    return isThreatenedByTtl(view, startsAt) ? now + this.retryInMs(entry) : undefined
  }

  /** Negative once a retry is overdue, which orders it behind Jobs that were due before; -Infinity without a retry. */
  private retryInMs({ retryAt }: JobEntry): number {
    return retryAt === undefined ? Number.NEGATIVE_INFINITY : retryAt - this.world.clock.monotonic()
  }

  private reportDryRun({ view, failure }: JobEntry): void {
    if (failure && this.reporter.isFirst(`dry run ${view.uid} ${view.resourceVersion}`))
      this.reporter.emit({ kind: "RestartStarted", job: view, cause: failure.cause, isDryRun: true })
  }

  private startScheduled(entry: JobEntry, dueAt: number): void {
    const { view, failure, retryAt } = entry
    const now = nowOf(this.world)
    const isStart = Math.max(dueAt, this.restarts.freeAt(view, now)) <= now
    if (isStart && failure && this.reporter.isFirst(`restarting ${view.uid} ${retryAt}`))
      this.reporter.emit({ kind: "RestartStarted", job: view, cause: failure.cause, isDryRun: false })
    // A restart that a person asks for is due from now on.
    this.restarts.start(this.restartOf(entry), isWantedNow(view) ? now : dueAt, view)
  }

  private restartOf({ view, failure = UNKNOWN, rejections }: JobEntry): Restart {
    const { config } = this.world
    const desiredFor = (job: Job) => rulesOf(this.world).desiredFor(job, failure, config, nowOf(this.world))
    return { job: view, desiredFor, wasRejected: rejections > 0 }
  }

  private reportDecision(entry: JobEntry, decision: Decision, cause: Cause, now: number): void {
    const { view } = entry
    const { because } = decision
    const fact = "dueAt" in decision ? `due ${instantText(decision.dueAt)}` : `${decision.do} ${because}`
    if (entry.reported === fact) return
    entry.reported = fact
    const phase = view.deleting ? "deleting" : view.phase
    if (decision.do === "leave")
      return this.reporter.emit({ kind: "LeftAlone", job: view, because, healthy: decision.healthy, phase })
    if (decision.do === "give up") return this.reporter.emit({ kind: "GaveUp", job: view, because, cause })
    const { dueAt } = decision
    this.reporter.emit({ kind: "RestartScheduled", job: view, dueAt, inMs: dueAt - now, because, cause })
  }
}

/** Reconciles between two garbage collections in one turn of the loop. */
const RECONCILES_PER_GC = 500

/**
 * Wires the objects of chapters 11 and 12: watches fill the cache, updates enqueue their Job, and the loop reconciles
 * the Jobs that are due.
 */
export class Operator {
  readonly cache = new Cache()
  readonly workqueue = new Workqueue()
  readonly permissions = new Permissions()
  readonly liveness: Liveness
  readonly recorder: Recorder
  private readonly writes: BackgroundWrites
  private readonly serverClock: ServerClock
  private readonly watcher: Watcher
  private readonly restarts: Restarts
  readonly reconciler: Reconciler

  constructor(private readonly world: World) {
    const { clock, config } = world
    const { cache, permissions, workqueue } = this
    const silenceMs = (namespace: string) =>
      permissions.may(namespace, WATCH_RIGHTS.jobs) ? WATCH_SILENCE_MS : 2 * config.checkIntervalMs
    const liveness = new Liveness(clock, (namespace) => silenceMs(namespace) + CALL_LIMIT_MS)
    const spacing = new Spacing(config.restartSpacingMs, workqueue)
    const writes = new BackgroundWrites(world, permissions, (failure) => reporter.isFirst(failure))
    const reporter = new Reporter(world, writes)
    const recorder = new Recorder(world, cache, writes, reporter)
    const serverClock = new ServerClock(world, reporter, () => workqueue.makeAllDue(nowOf(world)))
    const untilPodsListed = (namespace: string) => watcher.untilPodsListed(namespace)
    const evidence = new EvidenceCollector(world, cache, workqueue, serverClock, reporter, recorder, untilPodsListed)
    const onJobRead = (job: Job) => handler.onJobRead(job)
    const warnings = new Warnings(world, workqueue, reporter, onJobRead)
    const restarts = new Restarts(world, cache, workqueue, spacing, permissions, liveness, reporter, onJobRead)
    const watchAllPods = (view: JobView) => watcher.watchAllPods(view)
    const handler: EventHandler = new EventHandler(
      world,
      cache,
      workqueue,
      spacing,
      reporter,
      recorder,
      evidence,
      warnings,
      restarts,
      watchAllPods,
    )
    const watcher: Watcher = new Watcher(world, cache, permissions, liveness, reporter, handler)
    this.liveness = liveness
    this.recorder = recorder
    this.writes = writes
    this.serverClock = serverClock
    this.watcher = watcher
    this.restarts = restarts
    this.reconciler = new Reconciler(world, cache, workqueue, reporter, recorder, evidence, warnings, restarts)
  }

  /** Runs until `stop` fires, and until restarts under way have ended or `kill` fires. */
  async run(): Promise<void> {
    const { config } = this.world
    await Promise.all([this.runLoop(), ...config.namespaces.map((namespace) => this.watcher.listAndWatch(namespace))])
    await this.restarts.drain()
    await this.writes.drain()
  }

  /** The state of each selected Job, and when its restart is due or was, while it is not over. */
  states(): { key: string; state: string; dueAt: number | undefined }[] {
    const now = nowOf(this.world)
    const dueTimes = this.restarts.dueTimes()
    const restarting = [...dueTimes].map(([key, dueAt]) => {
      return { key, state: dueAt > now ? "waiting" : "restarting", dueAt }
    })
    const others = [...this.cache.jobs.values()].flatMap(({ view, decision, rejections, state }) => {
      const { key } = view
      if (dueTimes.has(key) || state.is === "settled" || !isSelected(view, this.world.config)) return []
      const dueAt = state.is === "scheduled" ? state.dueAt : undefined
      return { key, state: stateOf(view, decision, rejections), dueAt }
    })
    // Of Jobs that the TTL controller removed before this process started, only the intents are left.
    const gone = this.cache.keysWithIntents().flatMap((key) => {
      const dueAt = newestFirst(this.cache.intentsOf(key))[0]?.dueAt
      const isKnown = this.cache.jobs.has(key) || dueTimes.has(key)
      return isKnown || dueAt === undefined ? [] : [{ key, state: "waiting", dueAt }]
    })
    return [...restarting, ...others, ...gone]
  }

  /** Wakes at each due time, and at least every 30 s, for a wall clock may jump. */
  private async runLoop(): Promise<void> {
    const { clock, stop } = this.world
    while (!stop.aborted) {
      this.liveness.tick()
      if (!(await this.serverClock.sync())) {
        await clock.sleep(CLOCK_RETRY_MS, stop)
        continue
      }
      this.serverClock.reportSkew()
      for (const [i, key] of this.workqueue.takeDue(nowOf(this.world)).entries()) {
        this.reconciler.reconcile(key)
        if (i % RECONCILES_PER_GC === RECONCILES_PER_GC - 1) collectGarbage()
      }
      const nextMs = (this.workqueue.nextAt() ?? Number.POSITIVE_INFINITY) - nowOf(this.world)
      await clock.sleep(Math.min(LONGEST_SLEEP_MS, nextMs), stop, this.workqueue.woken)
    }
  }
}

// ─────────────────────────────────── 13 Log, health and notifications ───────────────────────────────────

const LATE_SECONDS = [0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1_800, 7_200]

/** The counts of a Job that is gone are kept this long: it may be away for a restart. */
const COUNTS_KEPT_MS = 3_600_000

/** Besides those that exist. */
const MOST_COUNTED_JOBS = 10_000

/** The values of the label `cause`. */
const CAUSES = ["oom", "evicted", "deadline", "exit", "unknown"]

/** The values of the label `result`. */
export const RESULTS = ["restarted", "replaced", "rejected", "changed", "cancelled", "namespace_gone", "interrupted"]

type MetricKind<M> = new (metric: MetricConfiguration<string> & { buckets: number[] }) => M

/** The metrics: facts and calls are counted as they happen, the rest is read from the operator at each scrape. */
export class Metrics {
  private readonly registry = new Registry()
  private readonly lateness = this.metric(Histogram, "restart_lateness_seconds", "From the due time to the new Job.")
  private readonly calls = this.metric(Counter, "api_calls_total", "Calls of the API server.", "verb", "code")
  private readonly watches = this.metric(Counter, "watch_restarts_total", "New watches.", "namespace", "resource")
  private readonly ready = this.metric(Gauge, "ready", "Whether what is known of a namespace is fresh.", "namespace")
  private readonly build = this.metric(Gauge, "build_info", "Always 1; the labels tell the version.", "version", "bun")
  /** The counts that are not 0, by the text of their series. */
  private readonly counts = new Map<string, number>()
  /** When each Job that has counts was last seen. */
  private readonly lastSeenAt = new BoundedMap<Monotonic>(MOST_COUNTED_JOBS, (key) => this.forget(key))

  constructor(private readonly clock: Pick<Clock, "monotonic"> = systemClock) {
    this.build.set({ version: project.version, bun: Bun.version }, 1)
  }

  private metric<M>(Kind: MetricKind<M>, name: string, help: string, ...labelNames: string[]): M {
    return new Kind({ name: METRIC + name, help, labelNames, registers: [this.registry], buckets: LATE_SECONDS })
  }

  /** Counts a call of the API server. */
  readonly countCall: OnCall = (verb, code) => this.calls.inc({ verb, code })

  readonly observe: Emit = (fact) => {
    if (fact.kind === "FailureSeen") this.count(fact.job.key, failuresSeries, fact.cause.replace(/:.*/, ""))
    if (fact.kind === "RestartRejected") this.count(fact.job.key, restartsSeries, "rejected")
    if (fact.kind !== "RestartFinished") return
    const { result } = fact.outcome
    this.count(fact.job.key, restartsSeries, result.replaceAll(" ", "_"))
    if (result === "restarted") this.lateness.observe(Math.max(0, fact.lateMs) / 1_000)
  }

  private count(key: string, toSeries: (key: string, value: string) => string, value: string): void {
    this.lastSeenAt.set(key, this.clock.monotonic())
    const series = toSeries(key, value)
    this.counts.set(series, (this.counts.get(series) ?? 0) + 1)
  }

  /**
   * All metrics as text, in Prometheus' exposition format, piece by piece. Each Job has all counts from 0 on, for
   * increase() needs a 0 before the first 1. Kept by prom-client, those of 10,000 Jobs would take 200 MiB.
   */
  async *text(operator: Operator, namespaces: string[]): AsyncGenerator<string> {
    this.watches.reset()
    for (const [key, begun] of operator.liveness.watches) {
      const [namespace = "", resource = ""] = key.split("/")
      this.watches.inc({ namespace, resource }, begun - 1)
    }
    for (const namespace of namespaces)
      this.ready.set({ namespace }, operator.liveness.staleForMs(namespace) === undefined ? 1 : 0)
    yield await this.registry.metrics()
    const states = operator.states()
    const keys = this.countedJobs(states)
    const count = (series: string) => `${series} ${this.counts.get(series) ?? 0}\n`
    const failures = (key: string) => CAUSES.map((cause) => count(failuresSeries(key, cause))).join("")
    const restarts = (key: string) => RESULTS.map((result) => count(restartsSeries(key, result))).join("")
    const due = states.filter(({ dueAt }) => dueAt !== undefined)
    yield* metricLines("failures_total", "counter", "Failures seen.", keys, failures)
    yield* metricLines("restarts_total", "counter", "Restarts ended.", keys, restarts)
    yield* metricLines("job_state", "gauge", "1 for a Job's current state.", states, stateLine)
    yield* metricLines("job_due_timestamp_seconds", "gauge", "When a restart is or was due.", due, dueLine)
  }

  /** The Jobs that are there, or were lately. */
  private countedJobs(there: { key: string }[]): string[] {
    const now = this.clock.monotonic()
    this.lastSeenAt.most = there.length + MOST_COUNTED_JOBS
    for (const { key } of there) this.lastSeenAt.set(key, now)
    for (const [key, lastSeenAt] of this.lastSeenAt) if (now - lastSeenAt > COUNTS_KEPT_MS) this.forget(key)
    return [...this.lastSeenAt.keys()]
  }

  private forget(key: string): void {
    this.lastSeenAt.delete(key)
    for (const cause of CAUSES) this.counts.delete(failuresSeries(key, cause))
    for (const result of RESULTS) this.counts.delete(restartsSeries(key, result))
  }
}

const METRIC = "flickr_operator_"

/** The name and labels of a Job's series. Names in Kubernetes need no escapes. */
function seriesOf(metric: string, key: string, more = ""): string {
  const [namespace, name] = key.split("/")
  return `${METRIC}${metric}{namespace="${namespace}",job_name="${name}"${more}}`
}

const failuresSeries = (key: string, cause: string) => seriesOf("failures_total", key, `,cause="${cause}"`)
const restartsSeries = (key: string, result: string) => seriesOf("restarts_total", key, `,result="${result}"`)
type Shown = { key: string; state: string; dueAt: number | undefined }
const stateLine = ({ key, state }: Shown) => `${seriesOf("job_state", key, `,state="${state}"`)} 1\n`
const dueLine = ({ key, dueAt = 0 }: Shown) => `${seriesOf("job_due_timestamp_seconds", key)} ${dueAt / 1_000}\n`

/** A metric in pieces of 500 Jobs. */
function* metricLines<T>(name: string, type: string, help: string, jobs: T[], linesOf: (job: T) => string) {
  yield `# HELP ${METRIC}${name} ${help}\n# TYPE ${METRIC}${name} ${type}\n`
  for (let at = 0; at < jobs.length; at += 500)
    yield jobs
      .slice(at, at + 500)
      .map(linesOf)
      .join("")
}

/** Answers a probe or a scrape; without secrets, for anyone who reaches the port may read it. */
export async function answerHealth(request: Request, operator: Operator, metrics: Metrics, { namespaces }: Config) {
  const answer = (status: number, text: string, headers = {}) => new Response(`${text}\n`, { status, headers })
  if (request.method !== "GET" && request.method !== "HEAD")
    return answer(405, "GET or HEAD only", { Allow: "GET, HEAD" })
  // With an invalid Host header it is no URL.
  const pathname = URL.parse(request.url)?.pathname
  const stuck = `the loop has not turned for ${durationText(STUCK_MS)}`
  if (pathname === "/livez") return operator.liveness.isRunning() ? answer(200, "ok") : answer(503, stuck)
  if (pathname === "/metrics")
    return new Response(metrics.text(operator, namespaces), {
      headers: { "Content-Type": Registry.PROMETHEUS_CONTENT_TYPE },
    })
  if (pathname !== "/readyz") return answer(404, "/livez, /readyz, /metrics")
  const blind = namespaces.flatMap((namespace) => {
    const silentMs = operator.liveness.staleForMs(namespace)
    if (silentMs === undefined) return []
    const isListed = silentMs !== Number.POSITIVE_INFINITY
    const why = isListed ? `nothing heard of its Jobs for ${durationText(silentMs)}` : "not listed yet"
    return `namespace ${namespace}: ${why}; the log says why`
  })
  return blind.length === 0 ? answer(200, "ok") : answer(503, blind.join("\n"))
}

/** Serves the health endpoints on IPv6 and IPv4. If the port is taken, the operator runs without them. */
export function serveHealth(port: number, operator: Operator, metrics: Metrics, config: Config, log: Log): void {
  let problem: unknown
  // The second is for kernels without IPv6.
  for (const hostname of ["::", "0.0.0.0"]) {
    try {
      const answer = (request: Request) => answerHealth(request, operator, metrics, config)
      // Without reusePort, Bun 1.4.5 shares the port with other processes if development is off.
      Bun.serve({ hostname, port, development: false, reusePort: false, fetch: answer })
      return log("debug", `health on port ${port}: /livez, /readyz, /metrics`)
    } catch (error) {
      problem = error
    }
  }
  log("warning", `health endpoints are disabled: cannot listen on HEALTH_PORT ${port}: ${messageOf(problem)}`)
}

const NOTIFY_LIMIT_MS = 10_000
const NOTIFY_BACKOFF = { fromMs: 5_000, toMs: 15 * 60_000 }

/** How long a rejected message is retried. */
const NOTIFY_FOR_MS = 86_400_000

/** Waiting messages, of at most 1,000 characters each. */
const MOST_MESSAGES = 500

const MOST_ALARMS = 10_000

/** Sends each alarm of a Job once, and its recovery; in order per Job, and retried for up to a day. */
export function notifier(url: string, world: Pick<World, "clock" | "kill">, log: Log): Emit {
  /** The alarms of each Job that has not recovered. */
  const alarms = new BoundedMap<Set<string>>(MOST_ALARMS)
  const send = outbox(url, world, log)
  return (fact) => {
    if (!("job" in fact) || !fact.job) return
    const { key, uid } = fact.job
    const alarm = `${fact.kind} ${uid}`
    const { text } = logLineOf(fact)
    const told = alarms.get(key) ?? new Set()
    if (isAlarmFact(fact) && !told.has(alarm)) {
      alarms.set(key, told.add(alarm))
      send(key, text)
    } else if (isRecovery(fact) && alarms.delete(key)) send(key, `back after an alarm: ${text}`)
  }
}

/** Whether a Job needs attention. */
function isAlarmFact(fact: Fact): boolean {
  if (fact.kind === "HeldUp" || fact.kind === "Retrying") return fact.isAlarm
  return fact.kind === "GaveUp" || fact.kind === "RestartRejected"
}

/** Whether a Job that needed attention has recovered. */
function isRecovery(fact: Fact): boolean {
  if (fact.kind === "LeftAlone") return ["running", "succeeded"].includes(fact.phase)
  return fact.kind === "RestartFinished" && ["restarted", "replaced"].includes(fact.outcome.result)
}

/** A bounded queue of messages to the receiver. */
function outbox(url: string, { clock, kill }: Pick<World, "clock" | "kill">, log: Log) {
  const last = new Map<string, Promise<void>>()
  let waiting = 0
  let turn = Promise.resolve()
  /** One message at a time, and none until a Retry-After is over. */
  const postInTurn = (text: string) => {
    const posted = turn.then(() => (kill.aborted ? undefined : post(url, text, clock.now(), kill)))
    turn = posted.then((rejection) => clock.sleep(rejection?.retryAfterMs ?? 0, kill))
    return posted
  }
  const deliver = async (text: string, since: Monotonic) => {
    for (let tries = 0; !kill.aborted; tries++) {
      const rejection = await postInTurn(text)
      if (!rejection || kill.aborted) return
      const isTooOld = clock.monotonic() - since > NOTIFY_FOR_MS
      const next = isTooOld ? "given up after a day" : "trying again for up to a day"
      if (tries === 0 || isTooOld)
        log("warning", `a notification was not taken by NOTIFY_URL, ${next}: ${rejection.why}`)
      if (isTooOld) return
      await clock.sleep(exponentialBackoffMs(NOTIFY_BACKOFF, tries), kill)
    }
  }
  return (job: string, text: string): void => {
    if (waiting >= MOST_MESSAGES)
      return log("warning", `a notification is dropped: ${MOST_MESSAGES} wait for NOTIFY_URL already`)
    waiting++
    const since = clock.monotonic()
    const delivered = (last.get(job) ?? Promise.resolve())
      .then(() => deliver(text, since))
      .finally(() => {
        waiting--
        if (last.get(job) === delivered) last.delete(job)
      })
    last.set(job, delivered)
  }
}

/** Why a message was rejected; never with the URL, which is secret. */
type Rejection = { why: string; retryAfterMs: number }

/** For `text`: Slack links by <...>, Mattermost by @name and [name](url), which an invisible space breaks. */
function chatText(text: string): string {
  const escaped = text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;")
  return escaped.replace(/@(?=\w)|\](?=\()/g, "$&\u200b")
}

/** Sends a message; returns why it was rejected. */
async function post(url: string, text: string, now: number, signal: AbortSignal): Promise<Rejection | undefined> {
  const message = bounded(text)
  const body = JSON.stringify({ title: project.name, message, text: chatText(message) })
  const limit = AbortSignal.any([signal, AbortSignal.timeout(NOTIFY_LIMIT_MS)])
  try {
    // Following a redirect would turn the POST into a GET.
    const response = await fetch(url, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body,
      redirect: "manual",
      signal: limit,
      // Always set: otherwise NODE_TLS_REJECT_UNAUTHORIZED would decide.
      tls: { ca: trustedRoots(), rejectUnauthorized: true },
    })
    await response.body?.cancel()
    if (response.ok) return undefined
    const askedMs = readAskedWait(response.headers.get("retry-after") ?? "", now) ?? 0
    const retryAfterMs = Math.min(NOTIFY_FOR_MS, Math.max(0, askedMs))
    const asked = retryAfterMs > 0 ? `, asks for the next try in ${durationText(retryAfterMs)}` : ""
    return { why: `answer ${response.status}${asked}`, retryAfterMs }
  } catch (error) {
    const { code, name } = error as { code?: unknown; name?: string }
    return { why: String(typeof code === "string" ? code : name), retryAfterMs: 0 }
  }
}

/** Logs to stderr. The text is a property, because LogTape replaces braces in a message. */
function configureLog({ logLevel, logFormat }: Pick<Config, "logLevel" | "logFormat">): Log {
  const sink = ({ level, timestamp, properties }: LogRecord) => {
    const { text, ...details } = properties as { text: string; lines?: string[] }
    const record = logFormat === "json" ? jsonRecord : textRecord
    process.stderr.write(record(timestamp, level, text, details))
  }
  const all = { category: [], sinks: ["stderr"], lowestLevel: logLevel }
  const own = { category: ["logtape", "meta"], sinks: ["stderr"], lowestLevel: "error" as const }
  configureSync({ reset: true, sinks: { stderr: sink }, loggers: [all, own] })
  const logger = getLogger(project.name)
  return (level, text, details) => logger[level]("{text}", { ...details, text })
}

/** The sink that logs each fact. */
export const logSink =
  (log: Log): Emit =>
  (fact) => {
    const { level, text, details } = logLineOf(fact)
    log(level, text, details)
  }

// ─────────────────────────────────────────────── 14 Main ────────────────────────────────────────────────

const GRACE_MS = 20_000

/** `stop` fires at the first signal, `kill` after the grace period or at the second; process 1 has no handlers. */
function stopSignals(log: Log): { stop: AbortSignal; kill: AbortSignal } {
  const stop = new AbortController()
  const kill = new AbortController()
  const onSignal = (name: string) => {
    if (stop.signal.aborted) return kill.abort(new Error("stopped"))
    log("info", `${name}: stopping`)
    stop.abort(new Error("stopped"))
    systemClock.after(GRACE_MS, () => kill.abort(new Error("stopped")))
  }
  for (const name of ["SIGTERM", "SIGINT"]) process.on(name, () => onSignal(name))
  return { stop: stop.signal, kill: kill.signal }
}

function announce(log: Log, rows: SettingRow[], warnings: string[], source: Source, env: Env): void {
  const table = [["setting", "value", "from"], ...rows.map(({ variable, value, from }) => [variable, value, from])]
  log("info", "settings", { lines: alignedRows(table) })
  for (const warning of warnings) log("warning", warning)
  const { context } = source.config
  log("info", `connecting with ${source.from}${context ? `, context ${context}` : ""}`)
  if (env.BUN_OPTIONS) log("warning", "the environment has BUN_OPTIONS, which changes how this program runs")
}

/** Logs what is unusual about the connection to the API server. */
function announceConnection(log: Log, { address, isVerified, proxy }: Cluster, env: Env): void {
  const isOpen = address.startsWith("http:")
  if (isOpen) log("warning", `INSECURE: the connection to ${address} is not encrypted; no credentials are sent`)
  const risk = `anyone could answer in place of ${address} and get the credentials`
  if (!isOpen && !isVerified) log("warning", `INSECURE: insecure-skip-tls-verify is set: ${risk}`)
  const unused = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"].filter((name) => env[name])
  if (proxy) log("info", `connecting through ${proxy.url}, as ${proxy.from}`)
  else if (unused.length > 0) log("info", `${unused.join(", ")}: not used for the API server of this cluster`)
}

/** Runs the program; returns its exit code. */
export async function main(args: string[], env: Env): Promise<number> {
  let log = configureLog({ logLevel: "info", logFormat: "text" })
  const signals = stopSignals((...line) => log(...line))
  if (args.length > 0) return (await import("./cli.ts")).runCommandLine(args, env, signals)
  try {
    const { config, rows, warnings } = readSettings(env)
    log = configureLog(config)
    const source = await findSource(env, SERVICE_ACCOUNT, undefined, signals.stop)
    announce(log, rows, warnings, source, env)
    const metrics = new Metrics()
    const cluster = connect(source, env, metrics.countCall)
    const sinks = [logSink(log), metrics.observe]
    if (config.notifyUrl && !config.dryRun)
      sinks.push(notifier(config.notifyUrl, { clock: systemClock, kill: signals.kill }, log))
    const emit: Emit = (fact) => sinks.forEach((sink) => void sink(fact))
    const world: World = { cluster, clock: systemClock, emit, config, ...signals }
    const operator = new Operator(world)
    const isPortSet = rows.some(({ variable, from }) => variable === "HEALTH_PORT" && from !== "default")
    if (config.healthPort > 0 && (source.inCluster || isPortSet))
      serveHealth(config.healthPort, operator, metrics, config, log)
    else if (config.healthPort > 0) log("info", "outside a pod there are no health endpoints unless HEALTH_PORT is set")
    announceConnection(log, world.cluster, env)
    // The server may not be up yet, as after a power cut: the operator waits for it when it lists Jobs.
    const version = await cluster.version(signals.stop).catch(() => "")
    const facts = [
      ["name", project.name],
      ["version", project.version],
      ["runtime", `Bun ${Bun.version}, ${process.platform} ${process.arch}`],
      ["cluster", `Kubernetes ${version || "of unknown version"} at ${cluster.address}`],
    ]
    log("info", `starting${config.dryRun ? "; DRY_RUN: nothing will be changed" : ""}`, { lines: alignedRows(facts) })
    await operator.run()
    log("info", "stopped cleanly")
    return 0
  } catch (error) {
    if (error instanceof SettingsError)
      log("fatal", "the settings are wrong; nothing was done", { lines: error.mistakes })
    else log("fatal", messageOf(error))
    return error instanceof SettingsError || error instanceof ConfigError ? 2 : 1
  }
}

if (import.meta.main) main(process.argv.slice(2), process.env).then((code) => process.exit(code))
