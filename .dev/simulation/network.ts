// How operators reach the simulated API server: their processes, and calls that are slow, lost, applied twice, or
// answered by an error.
import * as operator from "../../operator.ts"
import { type Answer, failure, type Model, type Obj, type Request } from "../apiserver/model.ts"
import { type Action, type CallKind, NAMES, type Version } from "./histories.ts"
import type { Program, Running } from "./programs.ts"

export const NAMESPACE = "default"
export const START = Date.UTC(2026, 0, 1)
export const CALL_LIMIT_MS = 30_000
const MOST_CALLS_A_MINUTE = 900
const CALL_ACTIONS = ["fail", "lose", "slow", "late", "twice"]
/** Whether an action happens to one call. */
export const isOfCall = (action: Action) => CALL_ACTIONS.includes(action.do)

export interface Due {
  at: number
  run: (() => void) | undefined
}
/** The last proof that a process asked for, as the server answered it. */
export interface Proof {
  replacement: unknown
  isAdmitted: boolean
  answeredAt: number
}
/** One process of an operator. */
export interface Process {
  id: number
  version: Version
  program: Program
  running: Running
  dryRun: boolean
  /** How far its clock is ahead, and how far it thinks the server's is ahead of its own. */
  aheadMs: number
  skewMs: number
  /** Killed: nothing it does has an effect any more. */
  isDead: boolean
  /** Its run() has returned. */
  isOver: boolean
  stop: AbortController
  kill: AbortController
  streams: Set<Stream>
  /** The newest version of each Job that it was shown. */
  seen: Map<string, number>
  /** The uids of the Jobs that it was shown before they were told to go... */
  stood: Set<string>
  /** Uids of Jobs of which it has sent a delete, whatever became of that. */
  triedToDelete: Set<string>
  /** ...and of those that its watch showed as deleted without a deletionTimestamp, as by a plain `kubectl delete`. */
  plainlyDeleted: Set<string>
  /** When it last read a Job or its intents, in steps. */
  looked: Map<string, number>
  proofs: Map<string, Proof>
  /** The failures that it has reported: Job and instant. */
  reported: string[]
  rates: Map<string, number>
}
export const isAlive = ({ isDead, isOver }: Process) => !isDead && !isOver
export const isStopping = ({ stop }: Process) => stop.signal.aborted

/**
 * One call of an operator. The steps at which it had last read the Job and its intents: what has happened since then it
 * cannot know.
 */
export interface Call {
  process: Process
  kind: CallKind
  request: Request
  /** The name of the Job that it is about. */
  name: string
  /** By the server's clock. */
  sentAt: number
  sawJobAt: number
  sawIntentsAt: number
  /** The newest version of the Job that its process had been shown then. */
  seenVersion: number
  /** The last proof for this Job that its process had then. */
  proof: Proof | undefined
}
/** The actions that happen to a call: before and after the server has applied it. */
export interface CallActions {
  before: Action[]
  after: Action[]
}

/** What calls need of the simulation. */
export interface World {
  readonly now: number
  step: number
  readonly model: Model
  readonly outageUntil: number
  readonly lagMs: number
  random(): number
  after(ms: number, run: () => void): Due
  serverNow(): number
  /** The actions that wait for this call. */
  actionsFor(call: Call): CallActions
  perform(action: Action, by: Call): void
  /** Faults may explain a delay until then. */
  extendBadTime(ms: number): void
  noteRecordTrouble(): void
  callsInTrouble: number
  note(text: string): void
  count(what: string): void
  limitRate(process: Process, what: string, perMs: number, most: number): void
  /** Sends a request as this call. */
  requestAs(call: Call, request: Request): Answer
  onFailureReported(process: Process, job: string, failedAt: string): void
  onRejected(name: string): void
}

/** An open watch, as its client reads it. */
export class Stream {
  private readonly queue: (() => { type: string; object: Obj })[] = []
  private wake = () => {}
  private over: (() => void) | undefined
  /** Its connection is dead, and nobody knows. */
  isDeaf = false
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

/** The Job that an intent stands for, by the intent's name; undefined for what is no intent. */
export const jobOfIntent = (name: string | undefined) => /^(.+)-restart-[0-9a-f]{8,}$/.exec(name ?? "")?.[1]

/** The answer to a dry run that admits the Job: AlreadyExists in the server's own sentence. */
export const isOwnAlreadyExists = ({ status, body }: Answer) =>
  status === 409 && /^(object is being deleted: )?jobs\.batch "/.test((body as { message?: string }).message ?? "")

type Send = <T>(kind: CallKind, request: Omit<Request, "namespace">, name: string, signal: AbortSignal) => Promise<T>

/** The cluster as one process reaches it. */
export class Network {
  private readonly send: Send

  constructor(
    private readonly world: World,
    private readonly process: Process,
  ) {
    this.send = <T>(kind: CallKind, request: Omit<Request, "namespace">, name: string, signal: AbortSignal) =>
      this.call(kind, { namespace: NAMESPACE, ...request }, name, signal) as Promise<T>
  }

  cluster(): operator.Cluster {
    const { process, send } = this
    return {
      address: "https://server",
      isVerified: true,
      proxy: undefined,
      skewMs: () => process.skewMs,
      version: async (signal) => {
        await send("other", { verb: "get", resource: "namespaces", name: NAMESPACE }, "", signal)
        return "v1.35.1"
      },
      rules: async (namespace, signal) => {
        const request = { verb: "create", resource: "selfsubjectrulesreviews", body: { spec: { namespace } } } as const
        return (await send<{ status: operator.Rules }>("other", request, "", signal)).status
      },
      ...this.jobVerbs(),
      listPods: (_, selector, keep, signal) => this.list("listPods", "pods", selector, keep, "", signal),
      findPod: async (_, name, signal) => {
        const request = { verb: "list", resource: "pods", query: { fieldSelector: `metadata.name=${name}` } } as const
        return (await send<{ items: operator.Pod[] }>("listPods", request, "", signal)).items[0]
      },
      readLog: async (_, pod, container, { lines, previous }, signal) => {
        const query: Record<string, string> = { container, ...(previous && { previous: "true" }) }
        const request = { verb: "get", resource: "pods", name: pod, subresource: "log", query } as const
        return operator.tailOf(await send("log", request, "", signal), lines)
      },
      ...this.recordVerbs(),
      // Only the commands do these.
      annotateJob: () => Promise.reject(new Error("the operator does not annotate Jobs")),
      listEvents: () => Promise.reject(new Error("the operator does not read Events")),
      createEvent: (_, body, signal) => send("other", { verb: "create", resource: "events", body }, "", signal),
      watch: this.watch.bind(this) as operator.Cluster["watch"],
    }
  }
  private jobVerbs(): Pick<operator.Cluster, "listJobs" | "getJob" | "createJob" | "deleteJob"> {
    const { send } = this
    return {
      listJobs: (_, selector, keep, signal) => {
        const kind = selector ? "listIntents" : "listJobs"
        return this.list(kind, "jobs", selector, keep, selector.split("=")[1] ?? "", signal)
      },
      getJob: (_, name, signal) => {
        const of = jobOfIntent(name)
        const request = { verb: "get", resource: "jobs", name } as const
        return orUndefined(send<operator.Job>(of ? "getIntent" : "getJob", request, of ?? name, signal))
      },
      createJob: (_, body, { dryRun = false, strict = false }, signal) => {
        const { name = "" } = body.metadata ?? {}
        const of = jobOfIntent(name)
        const kind = of ? "createIntent" : dryRun ? "proof" : "createJob"
        const query = { ...(dryRun && { dryRun: "All" }), ...(strict && { fieldValidation: "Strict" }) }
        return send(kind, { verb: "create", resource: "jobs", body, query }, of ?? name, signal)
      },
      deleteJob: (_, name, { propagationPolicy, ...preconditions }, signal) => {
        const of = jobOfIntent(name)
        const body = { propagationPolicy, preconditions }
        const request = { verb: "delete", resource: "jobs", name, body } as const
        this.process.triedToDelete.add(body.preconditions.uid)
        return send(of ? "deleteIntent" : "deleteJob", request, of ?? name, signal)
      },
    }
  }
  private recordVerbs(): Pick<
    operator.Cluster,
    "createConfigMap" | "patchConfigMap" | "deleteConfigMap" | "getConfigMap" | "listConfigMaps"
  > {
    const resource = "configmaps"
    const { send } = this
    return {
      createConfigMap: (_, body, signal) => send("record", { verb: "create", resource, body }, "", signal),
      patchConfigMap: (_, name, body, signal) => send("record", { verb: "patch", resource, name, body }, "", signal),
      deleteConfigMap: (_, name, signal) => send("record", { verb: "delete", resource, name }, "", signal),
      getConfigMap: (_, name, signal) =>
        orUndefined(send<operator.ConfigMap>("record", { verb: "get", resource, name }, "", signal)),
      listConfigMaps: (_, selector, keep, signal) => {
        const keepMetadata = ({ metadata }: operator.ConfigMap) => keep(metadata ?? {})
        return this.list("record", resource, selector, keepMetadata, "", signal)
      },
    }
  }
  patchJob = (name: string, body: object, signal: AbortSignal) =>
    this.send("touch", { verb: "patch", resource: "jobs", name, body }, name, signal)

  private async list<Item, Kept>(
    kind: CallKind,
    resource: string,
    labelSelector: string,
    keep: operator.Keep<Item, Kept>,
    name: string,
    signal: AbortSignal,
  ): Promise<operator.Listed<Kept>> {
    const query: Record<string, string> = labelSelector ? { labelSelector } : {}
    type Page = { items: Item[]; metadata: { resourceVersion: string } }
    const page = await this.send<Page>(kind, { verb: "list", resource, query }, name, signal)
    const items = page.items.map(keep).filter((item) => item !== undefined)
    return { items, resourceVersion: page.metadata.resourceVersion }
  }

  private async *watch(namespace: string, resource: string, options: operator.WatchOptions, signal: AbortSignal) {
    const { world, process } = this
    const query: Record<string, string> = { resourceVersion: options.resourceVersion, allowWatchBookmarks: "true" }
    query.timeoutSeconds = String(240 + Math.floor(world.random() * 60))
    if (options.selector) query.labelSelector = options.selector
    const request: Request = { verb: "watch", resource, namespace, query }
    const stream = (await this.call("watch", request, "", signal)) as Stream
    let heardAt = world.now
    const listen = () => {
      if (!process.streams.has(stream)) return
      const left = heardAt + options.silenceMs - world.now
      if (left > 0) return void world.after(left, listen)
      stream.end(() => {
        throw new Error(`no data received for ${options.silenceMs / 1_000}s`)
      })
    }
    listen()
    const stop = () => stream.end()
    signal.addEventListener("abort", stop)
    try {
      for await (const event of stream.read()) {
        heardAt = world.now
        yield event
      }
    } finally {
      signal.removeEventListener("abort", stop)
      stream.close()
    }
  }
  private open(request: Request): Answer {
    const { world, process } = this
    const stream = new Stream()
    let lastAt = 0
    const watching = world.model.watch(
      { ...request, user: "operator" },
      ({ type, object }) => {
        lastAt = Math.max(lastAt, world.now + 2 + world.lagMs)
        if (stream.isDeaf) return
        world.after(lastAt - world.now, () => {
          if (!process.streams.has(stream) || stream.isDeaf) return
          stream.push(() => {
            if (type === "ERROR") throw this.apiError(object, 500)
            if (object.kind === "Job") this.show(object, type === "DELETED")
            return { type, object }
          })
        })
      },
      () => world.after(2, () => stream.end()),
    )
    stream.close = () => {
      watching.close()
      process.streams.delete(stream)
    }
    if (watching.status >= 400) return { status: watching.status, body: watching.body }
    process.streams.add(stream)
    return { status: watching.status, body: stream }
  }
  private show({ metadata }: Obj, isDeleted = false) {
    const { seen, stood, plainlyDeleted } = this.process
    seen.set(metadata.name, Math.max(seen.get(metadata.name) ?? 0, Number(metadata.resourceVersion)))
    if (!metadata.deletionTimestamp) (isDeleted ? plainlyDeleted : stood).add(metadata.uid)
  }
  private apiError(body: unknown, status: number): Error {
    type Status = { code?: number; reason?: string; message?: string; details?: { causes?: { reason: string }[] } }
    const { code = status, reason = "", message = "", details } = body as Status
    return this.process.program.apiError(code, reason, message, details?.causes?.map((cause) => cause.reason) ?? [])
  }

  // One call: it travels, the server applies it, and its answer travels back.

  private call(kind: CallKind, request: Request, name: string, signal: AbortSignal): Promise<unknown> {
    const { world, process } = this
    if (process.isDead) return new Promise(() => {})
    if (signal.aborted) return Promise.reject(signal.reason)
    world.limitRate(process, "calls", 60_000, MOST_CALLS_A_MINUTE)
    const lookedAt = (what: string) => process.looked.get(`${what} ${name}`) ?? 0
    const proof = process.proofs.get(name)
    const looks = { sawJobAt: lookedAt("job"), sawIntentsAt: lookedAt("intents") }
    const seenVersion = process.seen.get(name) ?? 0
    const call: Call = { process, kind, request, name, sentAt: world.serverNow(), ...looks, seenVersion, proof }
    return new Promise((resolve, reject) => new Journey(world, call, signal, resolve, reject, this).start())
  }
  /** The server's part of a call; undefined where nobody answers. What a copy is answered the operator never sees. */
  serve(call: Call, failWith: number | undefined, isCopy = false): Answer | undefined {
    const { world, process } = this
    const { kind, request, name } = call
    world.step++
    if (failWith === 403 && kind === "listPods") process.looked.set("pods refused", world.step)
    if (failWith === 0 || world.now < world.outageUntil) return undefined
    if (failWith === 403 && (kind === "proof" || kind === "createIntent")) world.onRejected(name)
    if (failWith) return { status: failWith, body: failure(failWith, REASONS[failWith] ?? "InternalError", "injected") }
    if (request.verb === "watch") return this.open(request)
    const answer = world.requestAs(call, { ...request, user: "operator" })
    if (!isCopy && kind === "getJob") process.looked.set(`job ${name}`, world.step)
    const showsIntents = kind === "listIntents" || kind === "getIntent" || kind === "createIntent"
    if (!isCopy && showsIntents && answer.status < 300) process.looked.set(`intents ${name}`, world.step)
    const { reason } = answer.body as { reason?: string }
    if (kind === "proof" && !isCopy)
      process.proofs.set(name, {
        replacement: request.body,
        isAdmitted: isOwnAlreadyExists(answer),
        answeredAt: world.now,
      })
    const what = request.name && request.name !== name ? `${kind} ${request.name}` : `${kind} ${name}`
    world.note(`operator ${process.id} ${what}: ${answer.status} ${answer.status < 300 ? "" : reason}`)
    return answer
  }
  /** What the process learns from an answer. */
  learn({ kind }: Call, answer: Answer, sentAt: number, serverAt: number): void {
    const { world, process } = this
    const date = new Date(serverAt).toUTCString()
    const receivedAt = START + world.now + process.aheadMs
    process.skewMs = operator.skewFrom(date, sentAt, receivedAt, process.skewMs) ?? process.skewMs
    if (answer.status >= 400) throw this.apiError(answer.body, answer.status)
    if (kind === "getJob") this.show(answer.body as Obj)
    if (kind === "listJobs") for (const item of (answer.body as { items: Obj[] }).items) this.show(item)
  }
}
const REASONS: Record<number, string> = { 403: "Forbidden", 409: "Conflict", 429: "TooManyRequests" }

const orUndefined = <T>(answer: Promise<T>): Promise<T | undefined> =>
  answer.catch((error) => {
    if ((error as { reason?: string }).reason !== "NotFound") throw error
    return undefined
  })

/** One call on its way, and everything that happens to it. */
class Journey {
  private isSettled = false
  private readonly actions: CallActions
  private readonly all: Action[]
  /** By the operator's own clock. */
  private readonly sentAt: number
  private readonly abort = () => this.settle(() => this.reject(this.signal.reason))

  constructor(
    private readonly world: World,
    private readonly request: Call,
    private readonly signal: AbortSignal,
    private readonly resolve: (body: unknown) => void,
    private readonly reject: (error: unknown) => void,
    private readonly network: Network,
  ) {
    this.actions = world.actionsFor(request)
    this.all = [...this.actions.before, ...this.actions.after]
    this.sentAt = START + world.now + request.process.aheadMs
    signal.addEventListener("abort", this.abort)
  }
  start(): void {
    const { world } = this
    const { kind, request, process } = this.request
    if (this.all.length > 0) {
      world.extendBadTime(CALL_LIMIT_MS)
      world.callsInTrouble++
      if (kind === "record") world.noteRecordTrouble()
    }
    // A proxy and the server each hold a call for a minute, at most.
    const slowMs = Math.min(this.msOf("slow"), 120_000)
    world.after(this.latencyMs() + slowMs, () => this.arrive(slowMs > 0))
    if (slowMs + this.msOf("late") < CALL_LIMIT_MS) return
    const timeout = new Error(`${request.verb} ${request.resource} got no answer in 30s`)
    world.after(CALL_LIMIT_MS, () => process.isDead || this.settle(() => this.reject(timeout)))
  }
  private msOf(what: string): number {
    return this.all.reduce((ms, action) => (action.do === what && "ms" in action ? ms + action.ms : ms), 0)
  }
  /** Nothing waits for a record: its calls do not use up chance. */
  private latencyMs(): number {
    return this.request.kind === "record" ? 10 : 1 + Math.floor(this.world.random() * 20)
  }
  private arrive(wasSlow: boolean): void {
    const { world, request, network } = this
    if (this.all.length > 0) world.callsInTrouble--
    for (const action of this.actions.before) this.happen(action)
    // What was ended before it was sent does not arrive.
    if ((this.isSettled || request.process.isDead) && (!wasSlow || world.random() < 0.5)) return
    const fail = this.all.find((action) => action.do === "fail")
    const answer = network.serve(request, fail?.status)
    const serverAt = world.serverNow()
    for (const action of this.actions.after) this.happen(action)
    const twiceMs = this.msOf("twice")
    // Whoever repeats a call got no answer: what the server has rejected is not sent again.
    const isRejected = fail ? [403, 409].includes(fail.status) : answer !== undefined && answer.status >= 400
    if (twiceMs > 0 && !isRejected) world.after(twiceMs, () => network.serve(request, undefined, true))
    if (this.all.some((action) => action.do === "lose"))
      return void world.after(1, () => this.settle(() => this.reject(new Error("socket closed"))))
    world.after(this.latencyMs() + this.msOf("late"), () => this.deliver(answer, serverAt))
  }
  private happen(action: Action): void {
    const { world, request } = this
    if (!isOfCall(action)) return world.perform(action, request)
    world.note(`--- ${JSON.stringify(action)} to ${request.kind} ${request.name} of operator ${request.process.id}`)
    world.extendBadTime(0)
    world.count(action.do)
  }
  private deliver(answer: Answer | undefined, serverAt: number): void {
    const isDelivered = this.settle(() => {
      if (!answer) return this.reject(new Error("connection refused"))
      try {
        this.network.learn(this.request, answer, this.sentAt, serverAt)
        this.resolve(answer.body)
      } catch (error) {
        this.reject(error)
      }
    })
    if (!isDelivered && answer?.body instanceof Stream) answer.body.close()
  }
  private settle(act: () => void): boolean {
    if (this.isSettled || this.request.process.isDead) return false
    this.isSettled = true
    this.signal.removeEventListener("abort", this.abort)
    act()
    return true
  }
}

/** Whether this is the name of a Job that people made. */
export const isUserJob = (name: string) => (NAMES as readonly string[]).includes(name)
