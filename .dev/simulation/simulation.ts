// The whole operator in virtual time: the real class Operator against the model of the API server, driven by a history of
// crashes, faults, weather and people. After every write a witness checks what has been promised. Everything is synchronous and
// repeats exactly: one history and its number of luck give one run.
//
//   bun .dev/simulation/simulation.ts --histories 1000000 [--seed N] [--path P]
import { drainMicrotasks } from "bun:jsc"
import { parseArgs } from "node:util"
import fc from "fast-check"
import * as operator from "../../operator.ts"
import {
  type Answer,
  type Change,
  failure,
  type Job,
  Model,
  type Obj,
  REAL,
  type Request,
  SCRIPT,
} from "../apiserver/model.ts"
import { OLD_ROLE, OPERATOR_ROLE } from "../apiserver/roles.ts"
import { EXCEPTIONS, Witness } from "./witness.ts"

/** All that is copied here is plain data, and structuredClone would take a third of the time. */
function copy<T>(value: T): T {
  if (typeof value !== "object" || value === null) return value
  if (Array.isArray(value)) return value.map(copy) as T
  const made: Record<string, unknown> = {}
  for (const key in value) made[key] = copy(value[key])
  return made as T
}
globalThis.structuredClone = copy

/** operator.ts, or a mutant of it. */
export type Program = Pick<typeof operator, "Operator" | "ApiError" | "skewFrom" | "tailOf">

// ---- Histories

const CALLS = [
  "getJob",
  "listIntents",
  "createIntent",
  "deleteJob",
  "createJob",
  "deleteIntent",
  "listPods",
  "listJobs",
  "log",
  "watch",
  "touch",
  "record",
] as const
type CallKind = (typeof CALLS)[number] | "other"
const NAMES = ["a", "b"] as const
type Name = (typeof NAMES)[number]

/** So many ms after the event before, or at the nth call of a kind from then on, before or after it is applied. `same`: with the event before. */
export type Moment = { ms: number } | { on: CallKind | "same"; nth: number; after: boolean }
export type Deed =
  // What happens to one call.
  | { do: "fail"; status: number }
  | { do: "lose" }
  | { do: "slow" | "late" | "twice"; ms: number }
  // What happens to an operator. It is back after so many ms; where that is before its end, there are two.
  | { do: "crash" | "term"; ms: number }
  | { do: "start"; dryRun: boolean }
  // The weather.
  | { do: "outage" | "lag" | "node"; ms: number }
  | { do: "deafen" | "expire" | "namespace" }
  | { do: "clock"; whose: "server" | "operator"; byMs: number }
  | { do: "refuse"; why: "quota" | "webhook" | "policy"; ms: number }
  | { do: "role"; old: boolean }
  // People.
  | { do: "delete"; name: Name; policy: "Background" | "Foreground" | "Orphan" }
  | { do: "edit"; name: Name; what: keyof typeof EDITS }
  | { do: "recreate" | "apply" | "cancel" | "break"; name: Name }
export type HistoryEvent = { at: Moment; deed: Deed }
/** What the Jobs are like, and the settings. */
export interface Flavour {
  jobs: {
    ends: ("fail" | "oom" | "run" | "succeed")[]
    restartPolicy: "Never" | "OnFailure"
    ttl: boolean
    manual: boolean
    holdMs: number
  }[]
  delayMs: number
  bySelector: boolean
  oldRole: boolean
  /** How slow the garbage collector is. */
  gcMs: number
}
export type History = { luck: number; flavour: Flavour; events: HistoryEvent[] }

const EDITS = {
  label: (n: number) => ({ metadata: { labels: { edit: `${n}` } } }),
  annotation: (n: number) => ({ metadata: { annotations: { edit: `${n}` } } }),
  deadline: (n: number) => ({ spec: { activeDeadlineSeconds: 1_000_000 + n } }),
  parallelism: (n: number) => ({ spec: { parallelism: 1 + (n % 2) } }),
  suspend: () => ({ spec: { suspend: true } }),
  resume: () => ({ spec: { suspend: false } }),
  deselect: () => ({ metadata: { labels: { app: "no" } } }),
  select: () => ({ metadata: { labels: { app: "yes" } } }),
  pause: () => ({ metadata: { annotations: { [`${operator.PREFIX}paused`]: "true" } } }),
  unpause: () => ({ metadata: { annotations: { [`${operator.PREFIX}paused`]: null } } }),
  restartNow: (n: number) => ({ metadata: { annotations: { [`${operator.PREFIX}restart-now`]: `${n}` } } }),
}

const pick = <const T>(...values: T[]) => fc.constantFrom(...values)
const name = fc.oneof(
  { weight: 4, arbitrary: fc.constant("a" as const) },
  { weight: 1, arbitrary: fc.constant("b" as const) },
)
const shortMs = pick(50, 1_000, 10_000, 40_000, 90_000)
const longMs = pick(1_000, 20_000, 120_000, 600_000, 3_600_000)
const of = (what: Deed["do"], rest: Record<string, fc.Arbitrary<unknown>>) =>
  fc.record(rest).map((more) => ({ do: what, ...more }) as unknown as Deed)
const DEEDS: Record<Deed["do"], [weight: number, deed: fc.Arbitrary<Deed>]> = {
  fail: [3, of("fail", { status: pick(0, 500, 503, 429, 409, 403) })],
  lose: [4, of("lose", {})],
  slow: [3, of("slow", { ms: shortMs })],
  late: [2, of("late", { ms: shortMs })],
  twice: [2, of("twice", { ms: pick(1, 50, 1_000, 5_000) })],
  crash: [7, of("crash", { ms: longMs })],
  term: [3, of("term", { ms: longMs })],
  start: [3, of("start", { dryRun: pick(false, false, false, true) })],
  outage: [2, of("outage", { ms: pick(1_000, 20_000, 120_000) })],
  lag: [1, of("lag", { ms: shortMs })],
  deafen: [1, of("deafen", {})],
  node: [2, of("node", { ms: pick(1_000, 20_000, 120_000) })],
  expire: [2, of("expire", {})],
  namespace: [0.1, of("namespace", {})],
  clock: [
    2,
    of("clock", {
      whose: pick("server", "operator"),
      byMs: pick(-3_600_000, -120_000, -7_000, 7_000, 120_000, 3_600_000),
    }),
  ],
  refuse: [2, of("refuse", { why: pick("quota", "webhook", "policy"), ms: longMs })],
  role: [1, of("role", { old: fc.boolean() })],
  delete: [3, of("delete", { name, policy: pick("Background", "Background", "Foreground", "Orphan") })],
  edit: [6, of("edit", { name, what: fc.constantFrom(...(Object.keys(EDITS) as (keyof typeof EDITS)[])) })],
  recreate: [2, of("recreate", { name })],
  apply: [2, of("apply", { name })],
  cancel: [2, of("cancel", { name })],
  break: [5, of("break", { name })],
}
const moments: fc.Arbitrary<Moment> = fc.oneof(
  { weight: 3, arbitrary: fc.record({ ms: pick(0, 20, 300, 2_000, 15_000, 70_000, 200_000) }) },
  { weight: 6, arbitrary: fc.record({ on: fc.constantFrom(...CALLS), nth: pick(0, 0, 0, 1, 2), after: fc.boolean() }) },
  { weight: 1, arbitrary: fc.record({ on: fc.constant("same" as const), nth: fc.constant(0), after: fc.boolean() }) },
)
const end = pick("fail", "fail", "fail", "fail", "oom", "run", "succeed")
const aJob = fc.record({
  ends: fc.array(end, { minLength: 2, maxLength: 7 }).map((ends) => ["fail" as const, ...ends]),
  restartPolicy: pick("Never", "OnFailure"),
  ttl: pick(false, false, true),
  manual: pick(false, false, false, true),
  holdMs: pick(0, 0, 0, 0, 0, 0, 2_000, 40_000),
})
/** Random histories; of these deeds only, where some are named. */
export function histories(deeds = Object.keys(DEEDS) as Deed["do"][]): fc.Arbitrary<History> {
  const deed = fc.oneof(...deeds.map((what) => ({ weight: Math.ceil(10 * DEEDS[what][0]), arbitrary: DEEDS[what][1] })))
  const flavour = {
    jobs: fc.array(aJob, { minLength: 1, maxLength: 2 }),
    delayMs: pick(0, 0, 90_000, 200_000),
    bySelector: fc.boolean(),
    oldRole: fc.boolean(),
    gcMs: pick(REAL.gcMs, REAL.gcMs, 2_000),
  }
  const events = fc.array(fc.record({ at: moments, deed }), { minLength: 3, maxLength: 24 })
  return fc.record({ luck: fc.nat(), flavour: fc.record(flavour), events })
}

// ---- The world

const NAMESPACE = "default"
const START = Date.UTC(2026, 0, 1)
const [CHECK_MS, GRACE_MS, CALL_LIMIT_MS, TTL_MS] = [60_000, 20_000, 30_000, 150_000]
/** After bad weather: the longest backoff, a refused restart's wait (5 min), a dead watch's silence, a server's clock not heard of (5 min). */
const BOUND_MS = 8 * 60_000
/** In fair weather, from due to the delete: with watching, and by polling. */
const [WATCH_LATE_MS, POLL_LATE_MS] = [2_000, CHECK_MS + 3_000]
export const HISTORY_LIMIT = 2
const [MOST_LINES_AN_HOUR, MOST_CALLS_A_MINUTE] = [1_500, 900]

export class Violation extends Error {
  override name = "Violation"
}

interface Due {
  at: number
  run: (() => void) | undefined
}
/** One life of an operator's process. */
export interface Life {
  id: number
  dryRun: boolean
  aheadMs: number
  skewMs: number
  /** Killed: nothing it does has an effect any more. */
  dead: boolean
  /** Its run() has returned. */
  over: boolean
  stop: AbortController
  kill: AbortController
  operator: operator.Operator
  streams: Set<Stream>
  /** The newest version of each Job that it was shown. */
  seen: Map<string, number>
  /** The uids of the Jobs that it was shown before they were told to go. */
  stood: Set<string>
  /** When it last read a Job or its intents, in steps. */
  looked: Map<string, number>
  /** The failures that it has told. */
  said: string[]
  rates: Map<string, number>
}
/** One call of an operator. The steps at which it had last read the Job and its intents: what has come since it cannot know. */
export interface Call {
  life: Life
  kind: CallKind
  request: Request
  name: string
  /** By the server's clock. */
  sentAt: number
  sawJobAt: number
  sawIntentsAt: number
}
export type Actor = Call | "person" | "controller"

/** An open watch, as its client reads it. */
class Stream {
  queue: (() => { type: string; object: Obj })[] = []
  private wake = () => {}
  private over: (() => void) | undefined
  /** Its connection is dead, and nobody knows. */
  deaf = false
  close = () => {}
  push(item: () => { type: string; object: Obj }) {
    this.queue.push(item)
    this.wake()
  }
  /** `how` may throw what the client sees. */
  end(how = () => {}) {
    this.over ??= how
    this.wake()
    this.close()
  }
  async *read() {
    for (;;) {
      for (let item = this.queue.shift(); item; item = this.queue.shift()) yield item()
      if (this.over) return this.over()
      await new Promise<void>((resolve) => {
        this.wake = resolve
      })
    }
  }
}

export class Simulation {
  /** Virtual ms since the start. */
  now = 0
  /** Grows with every call and write. */
  step = 0
  readonly model: Model
  readonly lives: Life[] = []
  actor: Actor = "controller"
  broken: string | undefined
  /** Until when the weather and everybody's deeds may explain a delay. */
  badUntil = 0
  namespaceGone = false
  clocksMoved = false
  /** What may leave more records than there should be. */
  recordTroubles = 0
  private isOldRole = false
  private readonly agenda: Due[] = []
  private readonly random: () => number
  private readonly witness: Witness
  private serverAheadMs = 0
  private jump = { untilAt: 0, ms: 0 }
  private outageUntil = 0
  private nodeUntil = 0
  private lag = { untilAt: 0, ms: 0 }
  private refusal = { untilAt: 0, why: "quota" }
  private awaited: { event: HistoryEvent; left: number; timeout: Due } | undefined
  private forNext: Deed[] = []
  private nextEvent = 0
  private edits = 0
  /** Calls under way to which something is to happen. */
  private fates = 0

  constructor(
    readonly program: Program,
    readonly history: History,
    readonly tally: Map<string, number>,
    readonly trace?: string[],
  ) {
    let a = history.luck | 0
    this.random = () => {
      a = (a + 0x6d2b79f5) | 0
      let x = Math.imul(a ^ (a >>> 15), 1 | a)
      x = (x + Math.imul(x ^ (x >>> 7), 61 | x)) ^ x
      return ((x ^ (x >>> 14)) >>> 0) / 4294967296
    }
    this.witness = new Witness(this)
    const onChange = (change: Change) => this.witness.see(change, this.actor)
    this.model = new Model({
      ...REAL,
      gcMs: history.flavour.gcMs,
      now: this.serverNow,
      elapsed: () => this.now,
      random: this.random,
      onChange,
    })
    this.setRole(history.flavour.oldRole)
  }

  serverNow = () => START + this.now + this.serverAheadMs
  /** How much earlier than due something may look, for clocks have just moved or differ by too little to be corrected. */
  toleranceMs = () => 6_000 + (this.now < this.jump.untilAt ? this.jump.ms : 0)
  /** Whether the weather has been fair since `ms` ago, and for long enough before, so that only the operator can be slow. */
  isFair = (ms: number) => this.badUntil === 0 || this.now - ms > this.badUntil + BOUND_MS
  latestMs = () => (this.isOldRole ? POLL_LATE_MS : WATCH_LATE_MS)
  isSelected = ({ metadata: { labels, annotations } }: Job) =>
    (!this.history.flavour.bySelector || labels?.app === "yes") && annotations?.[`${operator.PREFIX}paused`] !== "true"
  count = (what: string) => void this.tally.set(what, (this.tally.get(what) ?? 0) + 1)
  note(text: string) {
    this.trace?.push(`${(this.now / 1_000).toFixed(3).padStart(10)} ${text}`)
  }
  violate(text: string) {
    this.broken ??= text
    this.note(`VIOLATION: ${text}`)
  }

  // Time: one thing after the other; between two, every promise that can go on has gone on.

  after(ms: number, run: () => void): Due {
    const due: Due = { at: this.now + Math.max(0, ms), run }
    let [low, high] = [0, this.agenda.length]
    while (low < high) {
      const middle = (low + high) >> 1
      if (this.agenda[middle]!.at > due.at) low = middle + 1
      else high = middle
    }
    this.agenda.splice(low, 0, due)
    return due
  }
  private runUntil(isOver: () => boolean) {
    for (;;) {
      drainMicrotasks()
      const modelAt = this.model.tick() ?? Number.POSITIVE_INFINITY
      drainMicrotasks()
      if (this.broken !== undefined) throw new Violation(this.broken)
      if (isOver()) return
      const next = this.agenda.at(-1)
      if (next && next.at <= modelAt) {
        this.agenda.pop()
        this.now = Math.max(this.now, next.at)
        next.run?.()
      } else this.now = Math.max(this.now, modelAt)
    }
  }

  /** Plays the whole history, and then fair weather until all must be well. */
  run() {
    for (const i of this.history.flavour.jobs.keys()) this.asPerson(() => this.model.request(this.apply(NAMES[i]!)))
    this.start(false)
    this.arm()
    this.runUntil(() => this.nextEvent > this.history.events.length && this.fates === 0)
    this.calm()
    this.badUntil = this.now + 1
    const mostMs = BOUND_MS + this.history.flavour.delayMs
    for (let [ms, quietMs] = [0, 0]; ms < mostMs && quietMs < 120_000; ms += 30_000) {
      this.runFor(30_000)
      // The new Job waits, rightly, for the pods that a person has orphaned, until a person removes them.
      for (const { metadata } of this.model.pods())
        if (!metadata.ownerReferences)
          this.model.request({ verb: "delete", resource: "pods", namespace: NAMESPACE, name: metadata.name })
      quietMs = this.witness.isQuiet() ? quietMs + 30_000 : 0
    }
    // What a late watch told last is forgotten after a while.
    if (this.witness.excess()) this.runFor(200_000)
    this.witness.atTheEnd(BOUND_MS)
    if (this.broken !== undefined) throw new Violation(this.broken)
  }
  /** Lets go of everything. */
  end() {
    for (const life of this.lives) this.bury(life)
    drainMicrotasks()
  }
  private runFor(ms: number) {
    const untilAt = this.now + ms
    this.after(ms, () => {})
    this.runUntil(() => this.now >= untilAt)
  }
  private calm() {
    this.outageUntil = this.lag.untilAt = this.refusal.untilAt = this.nodeUntil = 0
    this.model.node(true)
    this.forNext = []
    this.note("the weather is fair from now on")
    if (!this.lives.some((life) => !life.dryRun && !life.dead && !life.over && !life.stop.signal.aborted))
      this.start(false)
  }

  // Events.

  /** Makes the next event wait for its moment. */
  private arm() {
    const event = this.history.events[this.nextEvent++]
    if (!event) return
    const { at } = event
    if ("ms" in at || at.on === "same") return void this.after("ms" in at ? at.ms : 0, () => this.fire(event))
    const timeout = this.after(150_000, () => {
      this.awaited = undefined
      this.fire(event)
    })
    this.awaited = { event, left: at.nth, timeout }
  }
  private fire({ deed }: HistoryEvent) {
    if (["fail", "lose", "slow", "late", "twice"].includes(deed.do)) this.forNext.push(deed)
    else this.perform(deed)
    this.arm()
  }
  /** What happens to a call: of the events that wait for it, and of those that wait for any. */
  private fateOf(call: Call): { before: Deed[]; after: Deed[] } {
    const fate = { before: this.forNext.splice(0), after: [] as Deed[] }
    const { awaited } = this
    if (!awaited || (awaited.event.at as { on: string }).on !== call.kind || awaited.left-- > 0) return fate
    awaited.timeout.run = this.awaited = undefined
    for (let event: HistoryEvent | undefined = awaited.event; event; ) {
      fate[(event.at as { after?: boolean }).after ? "after" : "before"].push(event.deed)
      const next: HistoryEvent | undefined = this.history.events[this.nextEvent]
      event = next && "on" in next.at && next.at.on === "same" ? next : undefined
      if (event) this.nextEvent++
    }
    this.arm()
    return fate
  }
  private asPerson(act: () => unknown) {
    const before = this.actor
    this.actor = "person"
    act()
    this.actor = before
  }
  private perform(deed: Deed, by?: Call) {
    this.note(`--- ${JSON.stringify(deed)}`)
    this.count(deed.do)
    if (deed.do === "outage" || deed.do === "role") this.recordTroubles++
    this.badUntil = Math.max(this.badUntil, this.now + ("ms" in deed ? deed.ms : 0))
    const until = "ms" in deed ? this.now + deed.ms : 0
    if (deed.do === "crash" || deed.do === "term") {
      const life = by?.life ?? this.lives.findLast(({ dead, over }) => !dead && !over)
      if (life && deed.do === "crash") this.bury(life)
      else if (life) this.terminate(life)
      this.after(deed.ms, () => this.start(false))
    } else if (deed.do === "start") this.start(deed.dryRun)
    else if (deed.do === "outage") {
      this.outageUntil = Math.max(this.outageUntil, until)
      for (const { streams } of this.lives) for (const stream of [...streams]) stream.end(this.cut)
    } else if (deed.do === "expire") {
      this.model.compact()
      for (const { streams } of this.lives) for (const stream of [...streams]) stream.end(this.expired)
    } else if (deed.do === "deafen") {
      for (const { streams } of this.lives) for (const stream of streams) stream.deaf = true
    } else if (deed.do === "lag") this.lag = { untilAt: this.now + 600_000, ms: deed.ms }
    else if (deed.do === "node") {
      this.nodeUntil = Math.max(this.nodeUntil, until)
      this.model.node(false)
      this.after(deed.ms, () => this.now >= this.nodeUntil && this.model.node(true))
    } else if (deed.do === "refuse") this.refusal = { untilAt: until, why: deed.why }
    else if (deed.do === "role") this.setRole(deed.old)
    else if (deed.do === "clock") this.moveClock(deed.whose, deed.byMs)
    else this.asPerson(() => this.actOf(deed))
  }
  private actOf(deed: Deed) {
    const { model } = this
    if (deed.do === "namespace") model.request({ verb: "delete", resource: "namespaces", name: NAMESPACE })
    if (!("name" in deed)) return
    const job = { resource: "jobs", namespace: NAMESPACE, name: deed.name } as const
    const body = { propagationPolicy: "policy" in deed ? deed.policy : "Background" }
    if (deed.do === "delete" || deed.do === "recreate") model.request({ ...job, verb: "delete", body })
    if (deed.do === "recreate") model.request(this.apply(deed.name))
    if (deed.do === "edit") model.request({ ...job, verb: "patch", body: EDITS[deed.what](++this.edits) })
    if (deed.do === "apply") {
      const exists = model.job(NAMESPACE, deed.name)
      model.request(exists ? { ...job, verb: "patch", body: EDITS.label(++this.edits) } : this.apply(deed.name))
    }
    if (deed.do === "cancel")
      for (const intent of this.witness.intentsOf(deed.name))
        model.request({ ...job, name: intent.job.metadata.name, verb: "delete", body })
    if (deed.do === "break")
      for (const { metadata } of model.pods())
        if (metadata.name.startsWith(`${deed.name}-`))
          model.request({ ...job, resource: "pods", name: metadata.name, verb: "delete" })
  }
  /** The request of a `kubectl create`. */
  private apply(jobName: Name): Request {
    const flavour = this.history.flavour.jobs[NAMES.indexOf(jobName)] ?? this.history.flavour.jobs[0]!
    const { restartPolicy, ttl, manual, holdMs } = flavour
    const ends = { fail: { exitCode: 1 }, oom: { exitCode: 137, reason: "OOMKilled" }, succeed: { exitCode: 0 } }
    const script = [...flavour.ends, "run" as const].map((end) =>
      end === "run" ? {} : { containers: { main: { runMs: 2_000, log: "line\n", ...ends[end] } } },
    )
    const metadata = {
      labels: { app: "yes", edit: `${++this.edits}` },
      ...(holdMs > 0 && { finalizers: ["example.com/hold"] }),
    }
    const labels = manual ? { run: jobName } : {}
    const spec = { restartPolicy, containers: [{ name: "main", image: "image:1" }] }
    const template = { metadata: { labels, annotations: { [SCRIPT]: JSON.stringify(script) } }, spec }
    const selector = { manualSelector: true, selector: { matchLabels: labels } }
    const body = {
      metadata: { ...metadata, name: jobName },
      spec: {
        backoffLimit: 0,
        ...(ttl && { ttlSecondsAfterFinished: TTL_MS / 1_000 }),
        ...(manual && selector),
        template,
      },
    }
    return { verb: "create", resource: "jobs", namespace: NAMESPACE, body }
  }
  /** The controller of a user's finalizer does its work and takes it off. */
  release(job: Obj) {
    const { holdMs } = this.history.flavour.jobs[NAMES.indexOf(job.metadata.name as Name)] ?? { holdMs: 0 }
    if (!job.metadata.finalizers?.includes("example.com/hold")) return
    this.after(holdMs, () => {
      const live = this.model.job(NAMESPACE, job.metadata.name)
      if (live?.metadata.uid !== job.metadata.uid) return
      const finalizers = live.metadata.finalizers?.filter((f) => f !== "example.com/hold") ?? []
      this.model.request({
        verb: "patch",
        resource: "jobs",
        namespace: NAMESPACE,
        name: job.metadata.name,
        body: { metadata: { finalizers } },
      })
    })
  }
  private setRole(old: boolean) {
    this.isOldRole = old
    this.model.users.set("operator", { rules: old ? OLD_ROLE : OPERATOR_ROLE })
    if (old) for (const { streams } of this.lives) for (const stream of [...streams]) stream.end(this.cut)
  }
  private moveClock(whose: "server" | "operator", byMs: number) {
    if (whose === "operator") for (const life of this.lives) life.aheadMs += byMs
    else this.serverAheadMs += byMs
    this.clocksMoved = true
    this.jump = { untilAt: this.now + 2 * CALL_LIMIT_MS, ms: this.toleranceMs() + Math.abs(byMs) }
  }
  private cut = () => {
    throw new Error("the connection was reset")
  }
  private expired = () => {
    throw new this.program.ApiError(410, "Expired", "too old resource version")
  }

  // Operators.

  private start(dryRun: boolean) {
    const others = this.lives.filter(
      (life) => !life.dead && !life.over && !life.stop.signal.aborted && life.dryRun === dryRun,
    )
    if (others.length > (dryRun ? 0 : 1)) return
    const [stop, kill] = [new AbortController(), new AbortController()]
    const { delayMs, bySelector } = this.history.flavour
    const life = {
      id: this.lives.length + 1,
      dryRun,
      aheadMs: 0,
      skewMs: 0,
      dead: false,
      over: false,
      stop,
      kill,
    } as Life
    Object.assign(life, {
      streams: new Set(),
      seen: new Map(),
      stood: new Set(),
      looked: new Map(),
      said: [],
      rates: new Map(),
    })
    life.operator = new this.program.Operator({
      cluster: this.clusterOf(life),
      clock: { now: () => START + this.now + life.aheadMs, sleep: (ms, ...signals) => this.sleep(life, ms, signals) },
      random: this.random,
      say: (level, text) => this.hear(life, level, text),
      config: {
        ...{
          logLevel: "info",
          logFormat: "text",
          namespaces: [NAMESPACE],
          checkIntervalMs: CHECK_MS,
          restartDelayMs: delayMs,
        },
        ...{
          skipDelayOnOom: true,
          logLines: 5,
          historyLimit: HISTORY_LIMIT,
          dryRun,
          jobNames: bySelector ? undefined : NAMES.map((n) => `${NAMESPACE}/${n}`),
        },
        jobSelector: bySelector ? operator.parseSelector("app=yes") : undefined,
        ...{
          restartRules: undefined,
          maxRestarts: undefined,
          restartSpacingMs: 0,
          healthPort: 0,
          notifyUrl: undefined,
        },
      },
      stop: stop.signal,
      kill: kill.signal,
    })
    this.lives.push(life)
    this.note(`operator ${life.id} starts${dryRun ? ", dry" : ""}`)
    life.operator.run().then(
      () => {
        life.over = true
        if (!life.dead) this.note(`operator ${life.id} has stopped`)
        if (!life.dead && !stop.signal.aborted) this.violate(`operator ${life.id} has stopped by itself`)
      },
      (error) => life.dead || this.violate(`operator ${life.id} died of ${error.stack}`),
    )
  }
  /** SIGKILL: what it has sent arrives, all else ends here. The abort only clears real timers that it holds. */
  private bury(life: Life) {
    life.dead = true
    for (const stream of life.streams) stream.close()
    life.kill.abort(new Error("dead"))
  }
  private terminate(life: Life) {
    life.stop.abort(new Error("stopped"))
    this.after(GRACE_MS, () => life.kill.abort(new Error("stopped")))
    this.after(
      GRACE_MS + 1_000,
      () => life.dead || life.over || this.violate(`operator ${life.id} did not stop within its grace period`),
    )
  }
  private hear(life: Life, level: string, text: string) {
    if (life.dead) return
    this.note(`operator ${life.id} ${level}: ${text}`)
    this.rate(life, "lines", 3_600_000, MOST_LINES_AN_HOUR)
    const key = /^\[(\S+)\] failed at /.exec(text)?.[1]
    if (!key) return
    life.said.push(text)
    this.witness.saidFailure(life, key, text)
  }
  private rate(life: Life, what: string, perMs: number, most: number) {
    const key = `${what} ${Math.floor(this.now / perMs)}`
    const rate = (life.rates.get(key) ?? 0) + 1
    life.rates.set(key, rate)
    if (rate > most) this.violate(`operator ${life.id}: more than ${most} ${what} in ${perMs / 1_000} s`)
  }
  private sleep(life: Life, ms: number, signals: AbortSignal[]): Promise<void> {
    if (life.dead) return new Promise(() => {})
    this.rate(life, "sleeps", 60_000, 4_000)
    if (this.broken !== undefined) return new Promise(() => {})
    if (!(ms > 0) || signals.some(({ aborted }) => aborted)) return Promise.resolve()
    return new Promise((resolve) => {
      const wake = () => {
        due.run = undefined
        for (const signal of signals) signal.removeEventListener("abort", wake)
        if (!life.dead) resolve()
      }
      const due = this.after(ms, wake)
      for (const signal of signals) signal.addEventListener("abort", wake)
    })
  }

  // The cluster as an operator reaches it.

  private clusterOf(life: Life): operator.Cluster {
    const { program } = this
    const send = <T>(kind: CallKind, request: Omit<Request, "namespace">, name: string, signal: AbortSignal) =>
      this.call(life, kind, { namespace: NAMESPACE, ...request }, name, signal) as Promise<T>
    const list = async <T, K>(
      kind: CallKind,
      resource: string,
      labelSelector: string,
      name: string,
      keep: operator.Keep<T, K>,
      signal: AbortSignal,
    ) => {
      const query: Record<string, string> = labelSelector ? { labelSelector } : {}
      type Page = { items: T[]; metadata: { resourceVersion: string } }
      const { items, metadata } = await send<Page>(kind, { verb: "list", resource, query }, name, signal)
      const kept = items.map(keep).filter((item) => item !== undefined)
      return { items: kept, resourceVersion: metadata.resourceVersion }
    }
    const watch = this.watchOf(life)
    const noneIfNotFound = (error: unknown) => {
      if (!(error instanceof program.ApiError) || error.reason !== "NotFound") throw error
      return undefined
    }
    return {
      ...{ address: "https://server", isVerified: true, proxy: undefined },
      skewMs: () => life.skewMs,
      version: async () => "v1.35.1",
      rules: async (namespace, signal) => {
        const request = { verb: "create", resource: "selfsubjectrulesreviews", body: { spec: { namespace } } } as const
        return (await send<{ status: operator.Rules }>("other", request, "", signal)).status
      },
      namespaceExists: async () => true,
      listJobs: (_, selector, keep, signal) =>
        list(selector ? "listIntents" : "listJobs", "jobs", selector, selector.split("=")[1] ?? "", keep, signal),
      getJob: (_, jobName, signal) =>
        send<operator.Job>("getJob", { verb: "get", resource: "jobs", name: jobName }, jobName, signal).catch(
          noneIfNotFound,
        ),
      createJob: (_, body, signal) => {
        const of = body.metadata?.labels?.[operator.INTENT]
        return send(
          of ? "createIntent" : "createJob",
          { verb: "create", resource: "jobs", body },
          of ?? body.metadata?.name ?? "",
          signal,
        )
      },
      deleteJob: (_, jobName, { propagationPolicy, ...preconditions }, signal) => {
        const kind = preconditions.resourceVersion ? "deleteJob" : "deleteIntent"
        return send(
          kind,
          { verb: "delete", resource: "jobs", name: jobName, body: { propagationPolicy, preconditions } },
          jobName,
          signal,
        )
      },
      listPods: (_, selector, keep, signal) => list("listPods", "pods", selector, "", keep, signal),
      readLog: async (_, pod, container, { lines, previous }, signal) => {
        const query: Record<string, string> = { container, ...(previous && { previous: "true" }) }
        return program.tailOf(
          await send("log", { verb: "get", resource: "pods", name: pod, subresource: "log", query }, "", signal),
          lines,
        )
      },
      touchJob: ({ name: jobName, uid }, annotation, value, signal) => {
        const body = { metadata: { uid, annotations: { [annotation]: value } } }
        return send("touch", { verb: "patch", resource: "jobs", name: jobName, body }, jobName, signal)
      },
      annotateJob: ({ name: jobName, uid, resourceVersion }, annotations, signal) => {
        const body = { metadata: { uid, resourceVersion, annotations } }
        return send("other", { verb: "patch", resource: "jobs", name: jobName, body }, jobName, signal)
      },
      createConfigMap: (_, body, signal) =>
        send("record", { verb: "create", resource: "configmaps", body }, "", signal),
      patchConfigMap: (_, map, body, signal) =>
        send("record", { verb: "patch", resource: "configmaps", name: map, body }, "", signal),
      deleteConfigMap: (_, map, signal) =>
        send("record", { verb: "delete", resource: "configmaps", name: map }, "", signal),
      getConfigMap: (_, map, signal) =>
        send<operator.ConfigMap>("record", { verb: "get", resource: "configmaps", name: map }, "", signal).catch(
          noneIfNotFound,
        ),
      listConfigMaps: (_, selector, signal) => {
        const keep = ({ metadata }: operator.ConfigMap) => metadata ?? {}
        return list("record", "configmaps", selector, "", keep, signal)
      },
      createEvent: (_, body, signal) => send("other", { verb: "create", resource: "events", body }, "", signal),
      watch: watch as operator.Cluster["watch"],
    }
  }
  private watchOf(life: Life) {
    const sim = this
    return async function* (namespace: string, resource: string, options: operator.WatchOptions, signal: AbortSignal) {
      const query: Record<string, string> = { resourceVersion: options.resourceVersion, allowWatchBookmarks: "true" }
      query.timeoutSeconds = String(240 + Math.floor(sim.random() * 60))
      if (options.selector) query.labelSelector = options.selector
      const stream = (await sim.call(
        life,
        "watch",
        { verb: "watch", resource, namespace, query },
        "",
        signal,
      )) as Stream
      let heardAt = sim.now
      const listen = () => {
        if (!life.streams.has(stream)) return
        const left = heardAt + options.silenceMs - sim.now
        if (left > 0) return void sim.after(left, listen)
        stream.end(() => {
          throw new Error(`no word for ${options.silenceMs / 1_000}s`)
        })
      }
      listen()
      const stop = () => stream.end()
      signal.addEventListener("abort", stop)
      try {
        for await (const event of stream.read()) {
          heardAt = sim.now
          yield event
        }
      } finally {
        signal.removeEventListener("abort", stop)
        stream.close()
      }
    }
  }
  private open(life: Life, request: Request): Answer {
    const stream = new Stream()
    const latest: Record<string, number> = {}
    let lastAt = 0
    const watching = this.model.watch(
      { ...request, user: "operator" },
      ({ type, object }) => {
        lastAt = Math.max(lastAt, this.now + 2 + (this.now < this.lag.untilAt ? this.lag.ms : 0))
        if (stream.deaf) return
        this.after(lastAt - this.now, () => {
          if (!life.streams.has(stream) || stream.deaf) return
          stream.push(() => {
            if (type === "ERROR") throw this.apiError(object as unknown as Answer["body"], 500)
            if (object.kind === "Job") this.show(life, object)
            return { type, object }
          })
        })
      },
      () => this.after(2, () => stream.end()),
    )
    stream.close = () => {
      watching.close()
      life.streams.delete(stream)
    }
    if (watching.status < 400) life.streams.add(stream)
    return { status: watching.status, body: watching.status < 400 ? stream : watching.body, ...latest }
  }
  private show(life: Life, { metadata }: Obj) {
    life.seen.set(metadata.name, Math.max(life.seen.get(metadata.name) ?? 0, Number(metadata.resourceVersion)))
    if (!metadata.deletionTimestamp) life.stood.add(metadata.uid)
  }
  private apiError(body: unknown, status: number) {
    const {
      code = status,
      reason = "",
      message = "",
      details,
    } = body as {
      code?: number
      reason?: string
      message?: string
      details?: { causes?: { reason: string }[] }
    }
    return new this.program.ApiError(code, reason, message, details?.causes?.map((cause) => cause.reason) ?? [])
  }
  private latencyMs = () => 1 + Math.floor(this.random() * 20)

  private call(life: Life, kind: CallKind, request: Request, name: string, signal: AbortSignal): Promise<unknown> {
    if (life.dead) return new Promise(() => {})
    if (signal.aborted) return Promise.reject(signal.reason)
    this.rate(life, "calls", 60_000, MOST_CALLS_A_MINUTE)
    const lookedAt = (what: string) => life.looked.get(`${what} ${name}`) ?? 0
    const sent = { sentAt: this.serverNow(), sawJobAt: lookedAt("getJob"), sawIntentsAt: lookedAt("listIntents") }
    const call: Call = { life, kind, request, name, ...sent }
    const fate = this.fateOf(call)
    const isFated = fate.before.length + fate.after.length > 0
    if (isFated) this.badUntil = Math.max(this.badUntil, this.now + CALL_LIMIT_MS)
    if (isFated) this.fates++
    if (isFated && kind === "record") this.recordTroubles++
    const msOf = (what: string) =>
      [...fate.before, ...fate.after].reduce((ms, d) => (d.do === what && "ms" in d ? ms + d.ms : ms), 0)
    const [slowMs, lateMs, twiceMs] = [msOf("slow"), msOf("late"), msOf("twice")]
    const sentAt = START + this.now + life.aheadMs
    // Nothing waits for a record: its calls leave all else to its luck.
    const latencyMs = kind === "record" ? () => 10 : this.latencyMs
    return new Promise((resolve, reject) => {
      let settled = false
      const settle = (act: () => void) => {
        if (settled || life.dead) return false
        settled = true
        signal.removeEventListener("abort", abort)
        act()
        return true
      }
      const abort = () => settle(() => reject(signal.reason))
      signal.addEventListener("abort", abort)
      const arrive = () => {
        if (isFated) this.fates--
        for (const deed of fate.before) this.suffer(deed, call)
        // What was ended before it was sent does not arrive.
        if ((settled || life.dead) && (slowMs === 0 || this.random() < 0.5)) return
        const fail = [...fate.before, ...fate.after].find((d): d is Deed & { do: "fail" } => d.do === "fail")
        const answer = this.serve(call, fail?.status)
        const serverAt = this.serverNow()
        for (const deed of fate.after) this.suffer(deed, call)
        if (twiceMs > 0) this.after(twiceMs, () => this.serve(call, undefined, true))
        if ([...fate.before, ...fate.after].some((d) => d.do === "lose"))
          return void this.after(1, () => settle(() => reject(new Error("socket closed"))))
        this.after(latencyMs() + lateMs, () => this.answer(call, answer, { sentAt, serverAt }, settle, resolve, reject))
      }
      this.after(latencyMs() + slowMs, arrive)
      if (slowMs + lateMs >= CALL_LIMIT_MS)
        this.after(CALL_LIMIT_MS, () =>
          settle(() => reject(new Error(`${request.verb} ${request.resource} got no answer in 30s`))),
        )
    })
  }
  private suffer(deed: Deed, call: Call) {
    if (["fail", "lose", "slow", "late", "twice"].includes(deed.do)) {
      this.note(`--- ${JSON.stringify(deed)} to ${call.kind} ${call.name} of operator ${call.life.id}`)
      this.badUntil = Math.max(this.badUntil, this.now)
      this.count(deed.do)
    } else this.perform(deed, call)
  }
  /** The server's part of a call; undefined where nobody answers. What a copy is answered the operator never sees. */
  private serve(call: Call, fail?: number, isCopy = false): Answer | undefined {
    const { life, kind, request, name } = call
    this.step++
    if (fail === 403 && kind === "listPods") life.looked.set("pods refused", this.step)
    if (fail === 0 || this.now < this.outageUntil) return undefined
    if (fail)
      return {
        status: fail,
        body: failure(fail, fail === 403 ? "Forbidden" : fail === 409 ? "Conflict" : "InternalError", "on demand"),
      }
    if (this.now < this.refusal.untilAt && (kind === "createIntent" || kind === "createJob")) {
      const { why } = this.refusal
      if (why === "webhook") return { status: 500, body: failure(500, "InternalError", "failed calling webhook") }
      if (why === "quota" || kind === "createJob")
        return { status: 403, body: failure(403, "Forbidden", `refused by ${why}`) }
    }
    if (request.verb === "watch") return this.open(life, request)
    if (!isCopy && (kind === "listIntents" || kind === "getJob")) life.looked.set(`${kind} ${name}`, this.step)
    this.actor = call
    const answer = this.model.request({ ...request, user: "operator" })
    this.actor = "controller"
    this.note(
      `operator ${life.id} ${kind} ${name}: ${answer.status} ${answer.status < 300 ? "" : (answer.body as { reason: string }).reason}`,
    )
    return answer
  }
  private answer(
    { life, kind }: Call,
    answer: Answer | undefined,
    { sentAt, serverAt }: { sentAt: number; serverAt: number },
    settle: (act: () => void) => boolean,
    resolve: (body: unknown) => void,
    reject: (error: Error) => void,
  ) {
    const done = settle(() => {
      if (!answer) return reject(new Error("connection refused"))
      const date = new Date(serverAt).toUTCString()
      life.skewMs = this.program.skewFrom(date, sentAt, START + this.now + life.aheadMs) ?? life.skewMs
      if (answer.status >= 400) return reject(this.apiError(answer.body, answer.status))
      if (kind === "getJob") this.show(life, answer.body as Obj)
      if (kind === "listJobs") for (const item of (answer.body as { items: Obj[] }).items) this.show(life, item)
      resolve(answer.body)
    })
    if (!done && answer?.body instanceof Stream) answer.body.close()
  }
}

// ---- Running many

/** Runs one history; throws a Violation. */
export function simulate(
  history: History,
  { program = operator as Program, tally = new Map<string, number>(), trace = undefined as string[] | undefined } = {},
): void {
  const simulation = new Simulation(program, history, tally, trace)
  try {
    simulation.run()
  } finally {
    simulation.end()
  }
}

/** A history, step by step, as it ran. */
export function tell(history: History, program?: Program): string {
  const trace: string[] = []
  try {
    simulate(history, { ...(program && { program }), trace })
  } catch (error) {
    if (!(error instanceof Violation)) throw error
  }
  return [JSON.stringify(history), ...trace].join("\n")
}

export type Found = { seed: number; path: string; history: History; message: string; runs: number }
/** Runs so many random histories; answers the first that breaks a promise, made as short as it gets. */
export function search(
  runs: number,
  seed: number,
  options: {
    program?: Program
    tally?: Map<string, number>
    path?: string
    endOnFailure?: boolean
    deeds?: Deed["do"][]
  } = {},
): Found | undefined {
  const property = fc.property(histories(options.deeds), (history) => simulate(history, options))
  const { path, endOnFailure = false } = options
  const details = fc.check(property, { numRuns: runs, seed, endOnFailure, ...(path && { path }) })
  if (!details.failed) return undefined
  const [history] = details.counterexample as [History]
  const message =
    details.errorInstance instanceof Error ? (details.errorInstance.stack ?? "") : String(details.errorInstance)
  return { seed, path: details.counterexamplePath ?? "", history, message, runs: details.numRuns }
}

function main(): number {
  const { values } = parseArgs({
    options: { histories: { type: "string" }, seed: { type: "string" }, path: { type: "string" } },
  })
  const [total, first] = [Number(values.histories ?? 10_000), Number(values.seed ?? Date.now() % 1_000_000_000)]
  const tally = new Map<string, number>()
  const [began, chunk] = [performance.now(), 5_000]
  for (let done = 0, seed = first; done < total; done += chunk, seed++) {
    const found = search(Math.min(chunk, total - done), seed, { tally, ...(values.path && { path: values.path }) })
    const seconds = (performance.now() - began) / 1_000
    if (found) {
      console.log(
        `${found.message}\n${tell(found.history)}\n\nafter ${done + found.runs} histories: --histories 1 --seed ${found.seed} --path ${found.path}`,
      )
      return 1
    }
    const ran = Math.min(total, done + chunk)
    console.log(
      `${ran} histories, ${seconds.toFixed(0)} s, ${(ran / seconds).toFixed(0)}/s, seed ${seed}, ${(process.memoryUsage.rss() / 1e6).toFixed(0)} MB`,
    )
  }
  for (const [what, count] of [...tally].sort()) console.log(`${String(count).padStart(10)} ${what}`)
  for (const [name, why] of Object.entries(EXCEPTIONS)) console.log(`exception ${name}: ${why}`)
  return 0
}

if (import.meta.main) process.exit(main())
