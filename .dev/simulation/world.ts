// One history in virtual time: the real class Operator against the model of the API server, with crashes, faults and
// people. Everything is synchronous and repeats exactly: one history gives one run.
import { drainMicrotasks } from "bun:jsc"
import * as operator from "../../operator.ts"
import { type Answer, type Change, type Job, Model, type Obj, REAL, type Request } from "../apiserver/model.ts"
import { OLD_ROLE, OPERATOR_ROLE } from "../apiserver/roles.ts"
import { admissionOf } from "./admission_rules.ts"
import { type Action, type AdmissionRule, type History, type HistoryEvent, NAMES, type Version } from "./histories.ts"
import { type Actor, Invariants, type Observed } from "./invariants.ts"
import {
  type Call,
  type CallActions,
  type Due,
  isAlive,
  isOfCall,
  isOwnAlreadyExists,
  isStopping,
  NAMESPACE,
  Network,
  type Process,
  START,
  type World,
} from "./network.ts"
import { isSweep, People } from "./people.ts"
import type { Program } from "./programs.ts"

/** All that is copied here is plain data, and structuredClone would take a third of the time. */
function copy<T>(value: T): T {
  if (typeof value !== "object" || value === null) return value
  if (Array.isArray(value)) return value.map(copy) as T
  const made: Record<string, unknown> = {}
  for (const key in value) made[key] = copy(value[key])
  return made as T
}
globalThis.structuredClone = copy

const CHECK_MS = 60_000
const GRACE_MS = 20_000
const CALL_LIMIT_MS = 30_000
/**
 * After the faults: the longest backoff, a rejected restart's wait (5 min), a dead watch's silence, an unheard clock.
 */
const BOUND_MS = 8 * 60_000
/** In fair weather, from due to the delete: with watching, and by polling. */
const WATCH_LATE_MS = 2_000
const POLL_LATE_MS = CHECK_MS + 3_000
const HISTORY_LIMIT = 2
const MOST_LINES_AN_HOUR = 1_500

/** A promise was broken. */
export class Violation extends Error {
  override name = "Violation"
}

export class Simulation implements World, Observed {
  /** Virtual ms since the start. */
  now = 0
  /** Grows with every call and write. */
  step = 0
  readonly model: Model
  readonly processes: Process[] = []
  readonly historyLimit = HISTORY_LIMIT
  isNamespaceGone = false
  haveClocksMoved = false
  /** How far the server's clock was set forward, in all. */
  serverForwardMs = 0
  /** What may leave more records than there should be. */
  recordTroubles = 0
  callsInTrouble = 0
  outageUntil = 0
  private actor: Actor = "controller"
  private broken: string | undefined
  /** Until when faults and everybody's actions may explain a delay. */
  private badUntil = 0
  private isOldRole = false
  private readonly agenda: Due[] = []
  private readonly invariants: Invariants
  private readonly people: People
  private serverAheadMs = 0
  private jump = { untilAt: 0, ms: 0 }
  private nodeUntil = 0
  private lag = { untilAt: 0, ms: 0 }
  private awaited: { event: HistoryEvent; left: number; timeout: Due } | undefined
  private forNext: Action[] = []
  private nextEvent = 0
  private quotas = 0
  private randomState: number

  constructor(
    readonly programs: Record<Version, Program>,
    readonly history: History,
    readonly tally: Map<string, number>,
    readonly trace?: string[],
  ) {
    this.randomState = history.seed | 0
    this.invariants = new Invariants(this)
    const { gcMs, hasManagedBy, controllerAheadMs } = history.flavour
    this.model = new Model({
      ...REAL,
      gcMs,
      retryMs: 60_000,
      hasManagedBy,
      now: this.serverNow,
      controllerNow: () => this.serverNow() + controllerAheadMs,
      elapsed: () => this.now,
      random: this.random,
      onChange: (change: Change) => this.onChange(change),
    })
    this.people = new People(this.model, history.flavour, (ms, run) => this.after(ms, () => this.as("person", run)))
    this.setRole(history.flavour.oldRole)
  }

  random = () => {
    this.randomState = (this.randomState + 0x6d2b79f5) | 0
    let x = Math.imul(this.randomState ^ (this.randomState >>> 15), 1 | this.randomState)
    x = (x + Math.imul(x ^ (x >>> 7), 61 | x)) ^ x
    return ((x ^ (x >>> 14)) >>> 0) / 4294967296
  }
  serverNow = () => START + this.now + this.serverAheadMs
  get lagMs(): number {
    return this.now < this.lag.untilAt ? this.lag.ms : 0
  }
  /**
   * How much earlier than due something may look, for clocks have just moved or differ by too little to be corrected.
   */
  toleranceMs(): number {
    return 6_000 + (this.now < this.jump.untilAt ? this.jump.ms : 0)
  }
  /**
   * Whether nothing has gone wrong since `ms` ago, and for long enough before, so that only the operator can be slow.
   */
  isFair(ms: number): boolean {
    return this.badUntil === 0 || this.now - ms > this.badUntil + BOUND_MS
  }
  latestMs(): number {
    return this.isOldRole ? POLL_LATE_MS : WATCH_LATE_MS
  }
  isSelected({ metadata: { labels, annotations } }: Job): boolean {
    const isChosen = !this.history.flavour.bySelector || labels?.app === "yes"
    return isChosen && annotations?.[`${operator.PREFIX}paused`] !== "true"
  }
  count(what: string): void {
    this.tally.set(what, (this.tally.get(what) ?? 0) + 1)
  }
  note(text: string): void {
    this.trace?.push(`${(this.now / 1_000).toFixed(3).padStart(10)} ${text}`)
  }
  violate(text: string): void {
    this.broken ??= text
    this.note(`VIOLATION: ${text}`)
  }
  extendBadTime(ms: number): void {
    this.badUntil = Math.max(this.badUntil, this.now + ms)
  }
  noteRecordTrouble(): void {
    this.recordTroubles++
  }
  releaseFinalizer(job: Obj): void {
    this.people.releaseFinalizer(job)
  }
  private onChange(change: Change): void {
    if (change.resource === "namespaces")
      this.isNamespaceGone ||= change.object.metadata.deletionTimestamp !== undefined
    this.invariants.see(change, this.actor)
  }

  // Time: one thing after the other; between two, every promise that can go on has gone on.

  after(ms: number, run: () => void): Due {
    const due: Due = { at: this.now + Math.max(0, ms), run }
    let low = 0
    let high = this.agenda.length
    while (low < high) {
      const middle = (low + high) >> 1
      if (this.agenda[middle]!.at > due.at) low = middle + 1
      else high = middle
    }
    this.agenda.splice(low, 0, due)
    return due
  }
  private runUntil(isOver: () => boolean): void {
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
  private runFor(ms: number): void {
    const untilAt = this.now + ms
    this.after(ms, () => {})
    this.runUntil(() => this.now >= untilAt)
  }

  /** Plays the whole history, and then fair weather until all must be well. */
  run(): void {
    for (const i of this.history.flavour.jobs.keys()) this.as("person", () => this.people.create(NAMES[i]!))
    this.start(false, "current")
    this.arm()
    this.runUntil(() => this.nextEvent > this.history.events.length && this.callsInTrouble === 0)
    this.endFaults()
    this.badUntil = this.now + 1
    const mostMs = BOUND_MS + Math.max(this.history.flavour.delayMs, 300_000)
    let quietMs = 0
    for (let ms = 0; ms < mostMs && quietMs < 120_000; ms += 30_000) {
      this.runFor(30_000)
      // The new Job waits, rightly, for the pods that a person has orphaned, until a person removes them.
      for (const { metadata } of this.model.pods())
        if (!metadata.ownerReferences)
          this.model.request({ verb: "delete", resource: "pods", namespace: NAMESPACE, name: metadata.name })
      quietMs = this.invariants.isQuiet() ? quietMs + 30_000 : 0
    }
    // What a late watch told last is forgotten after a while.
    if (this.invariants.excess()) this.runFor(200_000)
    this.invariants.atTheEnd(BOUND_MS)
    if (this.broken !== undefined) throw new Violation(this.broken)
  }
  /** Lets go of everything. */
  end(): void {
    for (const process of this.processes) {
      this.kill(process)
      // Listeners keep a signal that has not fired, and all that they know.
      process.stop.abort(new Error("dead"))
    }
    drainMicrotasks()
  }
  private endFaults(): void {
    this.outageUntil = this.lag.untilAt = this.nodeUntil = 0
    this.model.node(true)
    this.forNext = []
    this.model.admission.policies.length = this.model.admission.webhooks.length = 0
    for (const { metadata } of [...this.model.objects.resourcequotas!.values()]) this.deleteQuota(metadata.name)
    this.as("person", () => this.people.releaseIntents())
    this.note("no more faults from now on")
    const isOfUse = (process: Process) =>
      isAlive(process) && !process.dryRun && !isStopping(process) && process.version === "current"
    // 1.0.0 does not know what the current version has left.
    for (const process of this.processes) if (process.version === "1.0.0" && isAlive(process)) this.kill(process)
    if (!this.processes.some(isOfUse)) this.start(false, "current")
  }

  // Events.

  /** Makes the next event wait for its moment. */
  private arm(): void {
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
  private fire({ action }: HistoryEvent): void {
    if (isOfCall(action)) this.forNext.push(action)
    else this.perform(action)
    this.arm()
  }
  /** What happens to a call: of the events that wait for it, and of those that wait for any. */
  actionsFor(call: Call): CallActions {
    const actions: CallActions = { before: this.forNext.splice(0), after: [] }
    const { awaited } = this
    if (!awaited || (awaited.event.at as { on: string }).on !== call.kind || awaited.left-- > 0) return actions
    awaited.timeout.run = this.awaited = undefined
    for (let event: HistoryEvent | undefined = awaited.event; event; ) {
      actions[(event.at as { after?: boolean }).after ? "after" : "before"].push(event.action)
      const next: HistoryEvent | undefined = this.history.events[this.nextEvent]
      event = next && "on" in next.at && next.at.on === "same" ? next : undefined
      if (event) this.nextEvent++
    }
    this.arm()
    return actions
  }
  private as<T>(actor: Actor, act: () => T): T {
    const before = this.actor
    this.actor = actor
    try {
      return act()
    } finally {
      this.actor = before
    }
  }
  requestAs(call: Call, request: Request): Answer {
    const answer = this.as(call, () => this.model.request(request))
    const isAdmitted = answer.status < 300 || isOwnAlreadyExists(answer)
    if ((call.kind === "proof" || call.kind === "createIntent") && !isAdmitted) this.onRejected(call.name)
    return answer
  }
  perform(action: Action, by?: Call): void {
    this.note(`--- ${JSON.stringify(action)}`)
    this.count(action.do)
    if (action.do === "outage" || action.do === "role") this.recordTroubles++
    const forMs = "ms" in action ? action.ms : 0
    this.extendBadTime(forMs)
    switch (action.do) {
      case "crash":
      case "term": {
        const process = by?.process ?? this.processes.findLast(isAlive)
        if (process && action.do === "crash") this.kill(process)
        else if (process) this.terminate(process)
        return void this.after(action.ms, () => this.start(false, action.version))
      }
      case "start":
        return this.start(action.dryRun, action.version)
      case "prune":
        return this.as(isSweep(action.by) ? "sweeper" : "tool", () => this.people.prune(action.by))
      case "admission":
        return this.addRule(action.rule, action.ms)
      case "quota":
        return this.addQuota(action.free, action.ms)
      case "role":
        return this.setRole(action.old)
      case "clock":
        return this.moveClock(action.whose, action.byMs)
      default:
        if (!this.performFault(action)) this.as("person", () => this.people.act(action))
    }
  }
  /** Faults of the server, the network and the node; false for everything else. */
  private performFault(action: Action): boolean {
    switch (action.do) {
      case "outage":
        this.outageUntil = Math.max(this.outageUntil, this.now + action.ms)
        this.endStreams(this.cut)
        return true
      case "expire":
        this.model.compact()
        this.endStreams(this.expired)
        return true
      case "deafen":
        for (const { streams } of this.processes) for (const stream of streams) stream.isDeaf = true
        return true
      case "lag":
        this.lag = { untilAt: this.now + 600_000, ms: action.ms }
        return true
      case "node":
        this.nodeUntil = Math.max(this.nodeUntil, this.now + action.ms)
        this.model.node(false)
        this.after(action.ms, () => this.now >= this.nodeUntil && this.model.node(true))
        return true
      default:
        return false
    }
  }
  private endStreams(how: (process: Process) => () => void): void {
    for (const process of this.processes) for (const stream of [...process.streams]) stream.end(how(process))
  }
  private cut = () => () => {
    throw new Error("the connection was reset")
  }
  private expired =
    ({ program }: Process) =>
    () => {
      throw program.apiError(410, "Expired", "too old resource version", [])
    }
  private addRule(rule: AdmissionRule, ms: number): void {
    const { policies, webhooks } = this.model.admission
    const { policy, webhook } = admissionOf(rule)
    this.count(rule)
    if (policy) policies.push(policy)
    if (webhook) webhooks.push(webhook)
    this.after(ms, () => {
      if (policy && policies.includes(policy)) policies.splice(policies.indexOf(policy), 1)
      if (webhook && webhooks.includes(webhook)) webhooks.splice(webhooks.indexOf(webhook), 1)
    })
  }
  private addQuota(free: number, ms: number): void {
    if (this.isNamespaceGone) return
    const name = `quota${++this.quotas}`
    const hard = { "count/jobs.batch": String(this.model.objects.jobs!.size + free) }
    this.model.put({ kind: "ResourceQuota", metadata: { name, namespace: NAMESPACE }, spec: { hard } })
    this.after(ms, () => this.deleteQuota(name))
  }
  private deleteQuota(name: string): void {
    this.model.request({ verb: "delete", resource: "resourcequotas", namespace: NAMESPACE, name })
  }
  private setRole(isOld: boolean): void {
    this.isOldRole = isOld
    this.model.users.set("operator", { rules: isOld ? OLD_ROLE : OPERATOR_ROLE })
    if (isOld) this.endStreams(this.cut)
  }
  private moveClock(whose: "server" | "operator", byMs: number): void {
    if (whose === "operator") for (const process of this.processes) process.aheadMs += byMs
    else {
      this.serverAheadMs += byMs
      this.serverForwardMs += Math.max(0, byMs)
    }
    this.haveClocksMoved = true
    this.jump = { untilAt: this.now + 2 * CALL_LIMIT_MS, ms: this.toleranceMs() + Math.abs(byMs) }
  }

  // Operators.

  private start(dryRun: boolean, version: Version): void {
    const others = this.processes.filter((p) => isAlive(p) && !isStopping(p) && p.dryRun === dryRun)
    if (others.length > (dryRun ? 0 : 1)) return
    const process: Process = {
      id: this.processes.length + 1,
      version,
      program: this.programs[version],
      running: undefined as never,
      dryRun,
      aheadMs: 0,
      skewMs: 0,
      isDead: false,
      isOver: false,
      stop: new AbortController(),
      kill: new AbortController(),
      streams: new Set(),
      seen: new Map(),
      stood: new Set(),
      triedToDelete: new Set(),
      plainlyDeleted: new Set(),
      looked: new Map(),
      proofs: new Map(),
      reported: [],
      rates: new Map(),
    }
    const network = new Network(this, process)
    process.running = process.program.start({
      cluster: network.cluster(),
      patchJob: network.patchJob,
      clock: {
        now: () => START + this.now + process.aheadMs,
        monotonic: () => this.now as operator.Monotonic,
        sleep: (ms, ...signals) => this.sleep(process, ms, signals),
        random: this.random,
      },
      config: this.configOf(dryRun),
      stop: process.stop.signal,
      kill: process.kill.signal,
      onFailureReported: (job, failedAt) => this.onFailureReported(process, job, failedAt),
      onLogLine: (line) => this.onLogLine(process, line),
    })
    this.processes.push(process)
    this.note(`operator ${process.id} starts${dryRun ? ", dry" : ""}${version === "current" ? "" : `, ${version}`}`)
    process.running.run().then(
      () => this.onEnd(process),
      (error) => process.isDead || this.violate(`operator ${process.id} died of ${error.stack}`),
    )
  }
  private configOf(dryRun: boolean): operator.Config {
    const { delayMs, spacingMs, bySelector } = this.history.flavour
    return {
      logLevel: "info",
      logFormat: "text",
      namespaces: [NAMESPACE],
      checkIntervalMs: CHECK_MS,
      restartDelayMs: delayMs,
      skipDelayOnOom: true,
      logLines: 5,
      historyLimit: HISTORY_LIMIT,
      dryRun,
      jobNames: bySelector ? undefined : NAMES.map((name) => `${NAMESPACE}/${name}`),
      jobSelector: bySelector ? operator.parseSelector("app=yes") : undefined,
      restartRules: undefined,
      maxRestarts: undefined,
      restartSpacingMs: spacingMs,
      healthPort: 0,
      notifyUrl: undefined,
    }
  }
  private onEnd(process: Process): void {
    process.isOver = true
    if (process.isDead) return
    this.note(`operator ${process.id} has stopped`)
    if (!isStopping(process)) this.violate(`operator ${process.id} has stopped by itself`)
  }
  /** SIGKILL: what it has sent arrives, all else ends here. The abort only clears real timers that it holds. */
  private kill(process: Process): void {
    process.isDead = true
    for (const stream of process.streams) stream.close()
    process.kill.abort(new Error("dead"))
  }
  private terminate(process: Process): void {
    process.stop.abort(new Error("stopped"))
    this.after(GRACE_MS, () => process.kill.abort(new Error("stopped")))
    this.after(GRACE_MS + 1_000, () => {
      if (isAlive(process)) this.violate(`operator ${process.id} did not stop within its grace period`)
    })
  }
  private onLogLine(process: Process, line: () => string): void {
    if (process.isDead) return
    if (this.trace) this.note(`operator ${process.id} ${line()}`)
    // A Job that fails each second is restarted each second, and that is told.
    const most = MOST_LINES_AN_HOUR + 10 * this.invariants.generations()
    this.limitRate(process, "lines", 3_600_000, most)
  }
  onRejected(name: string): void {
    this.invariants.onRejected(name)
  }
  onFailureReported(process: Process, job: string, failedAt: string): void {
    if (process.isDead) return
    process.reported.push(`${job} ${failedAt}`)
    this.invariants.onFailureReported(process, job, failedAt)
  }
  limitRate(process: Process, what: string, perMs: number, most: number): void {
    const key = `${what} ${Math.floor(this.now / perMs)}`
    const rate = (process.rates.get(key) ?? 0) + 1
    process.rates.set(key, rate)
    if (rate > most) this.violate(`operator ${process.id}: more than ${most} ${what} in ${perMs / 1_000} s`)
  }
  private sleep(process: Process, ms: number, signals: AbortSignal[]): Promise<void> {
    if (process.isDead) return new Promise(() => {})
    this.limitRate(process, "sleeps", 60_000, 4_000)
    if (this.broken !== undefined) return new Promise(() => {})
    if (Number.isNaN(ms) || signals.some(({ aborted }) => aborted)) return Promise.resolve()
    return new Promise((resolve) => {
      const wake = () => {
        due.run = undefined
        for (const signal of signals) signal.removeEventListener("abort", wake)
        if (!process.isDead) resolve()
      }
      // Timers count whole milliseconds.
      const due = this.after(Math.max(1, Math.ceil(ms)), wake)
      for (const signal of signals) signal.addEventListener("abort", wake)
    })
  }
}
