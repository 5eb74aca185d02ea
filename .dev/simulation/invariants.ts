// What has been promised, checked after every write of the model. What no protocol can promise has a name here, is
// counted, and is no wider than its reason.
import { INTENT, PREFIX, RECORD, RECORD_JOB } from "../../operator.ts"
import type { Change, Job, Model, Obj, Pod } from "../apiserver/model.ts"
import type { History } from "./histories.ts"
import { NAMES } from "./histories.ts"
import { readStored, type StoredIntent } from "./intents.ts"
import { type Call, isAlive, isStopping, isUserJob, NAMESPACE, type Process } from "./network.ts"

/**
 * What may happen although nobody wants it, and why no protocol with these rights can prevent it: a delete cannot be
 * bound to an intent, nor a create to anything.
 */
export const EXCEPTIONS = {
  cancelled: "a person removed the intent: that cancels the restart",
  cancelRaced: "a person removed the intent between the operator's last look at it and the call that relied on it",
  prunedWide:
    "a policy wanted the user's labels on the intent, and a person deletes everything that carries one of them",
  cameBack: "a person deleted the failed Job when its intent stood already: their delete cannot be told from ours",
  cameBackLate: "a person deleted the failed Job between the operator's look at it and its intent",
  // A person or the TTL removed the later Job, or a person cancelled its restart.
  cameBackOlder:
    "an intent of an earlier Job outlived a later one: nobody could remove it in time, it was a late copy, a create " +
    "from it was under way, or its writer had not been shown the later Job",
  lateCreate:
    "a create that was under way all the while another generation came and went: a create knows no preconditions",
  editUnseen:
    "an edit of the Job's last moment that this process was never shown: it polls, was down, or its watch was late; " +
    "or finalizers that their controllers had taken off a Job when it was shown first",
  editRejected:
    "an edit of the Job's last moment, whose replacement the cluster rejected when the Job was terminating or gone",
  besidePods:
    "beside old pods a Job was made by a person, by a create that was under way, from an intent older than the last " +
    "Job, or because a look at the pods was answered 403",
  ttlFirst: "the TTL took the failed Job before any operator could write its intent, or one for its last edit",
  // The Job comes back from memory unless its operator dies.
  withdrawRaced:
    "another operator, whose proof was rejected, removed the intent between this one's last look at it and the first " +
    "one after its delete",
  lostToTtl:
    "...and it never came back: who had seen it fail was gone, or took it for a person's delete, for a clock had " +
    "moved or its TTL was edited while it went",
  namespaceGone: "the namespace was deleted with its Jobs",
  ranWithoutManagedBy:
    "on a server without the feature JobManagedBy a person resumed and scaled an intent, or gave it deadline and TTL",
  unreadable:
    "a webhook made an intent unsafe that could not be removed at once: it protects nothing, and stays, named in the " +
    "log, until the next list or a person removes it",
  version100: "an intent of 1.0.0 can be pruned, resumed and edited, and 1.0.0 deletes without a proof",
} as const

/**
 * Who changes something: an operator, a person, a tool that prunes what is its own, a person who sweeps by one label.
 */
export type Actor = Call | "person" | "tool" | "sweeper" | "controller"

interface Generation {
  uid: string
  step: number
  excused: boolean
}
/** What is remembered of all Jobs of one name. */
interface Past {
  generations: Generation[]
  /** What a person wrote last, and its version. */
  wanted: unknown
  finalizers: string[] | undefined
  editedAt: number
  /** The version of an edit that the cluster rejected to create, when the Job was terminating or gone. */
  rejectedEditAt: number
  /** Uids whose intent was written by a process that never saw them stand. */
  unseen: Set<string>
  /** Who began the deletion of each generation. */
  deletedBy: Map<string, Actor | "ttl">
  deletedAt: number
  deletedVersion: string
  /** Its TTL then: a person may edit it while the Job is going. */
  deletedTtlMs: number
  remover: Actor | "ttl" | undefined
  /** The last failed Job, as it was when it went. */
  lastFailed: Job | undefined
  /** When it went, in steps. */
  goneAt: number
  /** The same in virtual time. */
  goneNow: number
  /** The uid of a failed Job that is gone and must come back. */
  owed: string | undefined
  /**
   * The processes that had seen the failure of a Job that its TTL took without an intent: one that lives on must bring
   * it back.
   */
  ttlTook: Process[] | undefined
  failedVersion: number
  /** When the last one failed, in virtual time. */
  failedAt: number
  /** When each generation failed, to the second. */
  failures: string[]
  /** Uids whose intent a person removed, and when that was last, in steps. */
  cancelled: Set<string>
  cancelledAt: number
  /** When an operator removed an intent last, in steps. */
  endedAt: number
  /** Which process removed an intent for a uid last. */
  withdrewIntent: Map<string, Process>
  /** An operator deleted the Job after another one had removed the intent. */
  withdrawn: { uid: string; from: Process } | undefined
}

/** What the invariants need of the simulation. */
export interface Observed {
  readonly history: History
  readonly model: Model
  readonly now: number
  readonly processes: Process[]
  readonly isNamespaceGone: boolean
  readonly haveClocksMoved: boolean
  readonly serverForwardMs: number
  readonly recordTroubles: number
  readonly historyLimit: number
  readonly tally: Map<string, number>
  readonly trace?: string[] | undefined
  step: number
  serverNow(): number
  toleranceMs(): number
  isFair(ms: number): boolean
  latestMs(): number
  isSelected(job: Job): boolean
  count(what: string): void
  note(text: string): void
  violate(text: string): void
  releaseFinalizer(job: Obj): void
}

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
/** Repeated kills for memory wait up to this long, whatever the delay is. */
const OOM_MOST_MS = 300_000
const GENERATED = ["controller-uid", "job-name", "batch.kubernetes.io/controller-uid", "batch.kubernetes.io/job-name"]
/** What policies judge of a replacement: all but our bookkeeping. */
function judged(replacement: unknown): unknown {
  const { metadata, spec } = replacement as Job
  const annotations = Object.entries(metadata.annotations ?? {}).filter(([key]) => !BOOKKEEPING.includes(key))
  return { spec, metadata: { ...metadata, annotations: Object.fromEntries(annotations) } }
}
const annotationsOf = (body: unknown) => (body as Job | undefined)?.metadata.annotations ?? {}
const isCall = (actor: Actor | "ttl" | undefined): actor is Call => typeof actor === "object"
const isV1 = (actor: Actor | "ttl" | undefined) => isCall(actor) && actor.process.version === "1.0.0"
const condition = (job: Job, type: string) => job.status.conditions?.find((c) => c.type === type && c.status === "True")
const failedAt = (job: Job) => Date.parse(condition(job, "Failed")?.lastTransitionTime ?? "")
const ttlMsOf = ({ spec }: Job) => (spec.ttlSecondsAfterFinished ?? Number.POSITIVE_INFINITY) * 1_000
const short = (uid: string) => uid.slice(0, 4)

/**
 * All that a person wrote, independent of the operator's idea of it; finalizers apart, which their controllers take
 * off.
 */
function userPart({ metadata, spec }: Job): unknown {
  const plain = (map: Record<string, string> = {}, drop: (key: string) => boolean) =>
    Object.fromEntries(Object.entries(map).filter(([key]) => !drop(key)))
  const { selector, template, ...rest } = spec
  const isGenerated = (key: string) => GENERATED.includes(key) || key === "webhook"
  const inner = plain(template.metadata?.labels, isGenerated)
  const labels = plain(metadata.labels, isGenerated)
  const annotations = plain(metadata.annotations, (key) => BOOKKEEPING.includes(key))
  return [
    labels,
    annotations,
    metadata.ownerReferences,
    spec.manualSelector && selector,
    rest,
    inner,
    template.metadata?.annotations,
    template.spec,
  ]
}
/** A webhook has changed an intent: whoever wrote it must not rely on it. */
const hasFlaw = ({ metadata: { labels = {}, annotations = {}, ownerReferences, finalizers } }: Job) => {
  const data = annotations[`${PREFIX}replacement`] ?? annotations[`${PREFIX}intent`]
  return !data || labels[`${PREFIX}intent`] === undefined || Boolean(ownerReferences?.length || finalizers?.length)
}
const finalizersOf = ({ metadata }: Job) =>
  metadata.finalizers?.filter((f) => f !== "foregroundDeletion" && f !== "orphan")

export class Invariants {
  private readonly pasts = new Map<string, Past>()
  /** Pods, with the Job that they were made for. */
  private readonly live = new Map<string, { name: string; job: string }>()
  private readonly bornAt = new Map<string, number>()

  constructor(private readonly sim: Observed) {}

  private except(exception: keyof typeof EXCEPTIONS): void {
    this.sim.count(`exception ${exception}`)
    this.sim.note(`    (${exception})`)
  }
  private longest(what: string, ms: number): void {
    this.sim.tally.set(what, Math.max(this.sim.tally.get(what) ?? 0, ms))
  }
  private pastOf(name: string): Past {
    const known = this.pasts.get(name)
    if (known) return known
    const past: Past = {
      generations: [],
      wanted: undefined,
      finalizers: undefined,
      editedAt: 0,
      rejectedEditAt: 0,
      unseen: new Set(),
      deletedBy: new Map(),
      deletedAt: 0,
      deletedVersion: "",
      deletedTtlMs: 0,
      remover: undefined,
      lastFailed: undefined,
      goneAt: 0,
      goneNow: 0,
      owed: undefined,
      ttlTook: undefined,
      failedVersion: 0,
      failedAt: 0,
      failures: [],
      cancelled: new Set(),
      cancelledAt: 0,
      endedAt: 0,
      withdrewIntent: new Map(),
      withdrawn: undefined,
    }
    this.pasts.set(name, past)
    return past
  }
  /** The intents of a Job in the store, those that are being deleted too. */
  intentsOf(name: string): StoredIntent[] {
    const all: StoredIntent[] = []
    for (const object of this.sim.model.objects.jobs!.values()) {
      const intent = readStored(object)
      if (intent?.jobName === name) all.push(intent)
    }
    return all
  }
  private standing(name: string): StoredIntent[] {
    return this.intentsOf(name).filter(({ isTerminating }) => !isTerminating)
  }

  see(change: Change, actor: Actor): void {
    const { type, object, resource } = change
    this.sim.step++
    if (this.sim.trace && (resource === "jobs" || type !== "MODIFIED")) this.describe(change, actor)
    if (resource === "pods") this.onPod(change)
    if (resource === "configmaps" && type === "ADDED") this.onRecord(object, actor)
    if (resource !== "jobs") return
    const intent = readStored(object)
    if (intent) this.onIntent(change, actor, intent)
    else if (isUserJob(object.metadata.name)) this.onJob(change, actor)
    for (const [name, past] of this.pasts) if (past.owed) this.checkOwed(name, past)
  }
  private describe({ type, object, resource }: Change, actor: Actor): void {
    const by = isCall(actor) ? `operator ${actor.process.id}` : actor
    const { name, uid, resourceVersion, deletionTimestamp } = object.metadata
    const state = (object.status as Job["status"])?.conditions?.filter((c) => c.status === "True").map((c) => c.type)
    const text = `${resource} ${name} ${type} ${short(uid)}@${resourceVersion}`
    this.sim.note(`    ${by}: ${text}${deletionTimestamp ? ", terminating" : ""} ${state ?? ""}`)
  }

  // Promise 1: no Job is lost.

  /** A failed Job that no person deleted exists, or its intent does. */
  private checkOwed(name: string, past: Past): void {
    const { owed = "" } = past
    if (this.standing(name).some(({ uid }) => uid === owed)) return
    past.owed = undefined
    if (this.sim.isNamespaceGone) this.except("namespaceGone")
    else if (past.cancelled.has(owed)) this.except("cancelled")
    else
      this.sim.violate(`Job ${name} (${short(owed)}) is lost: it is gone, no person deleted it, and it has no intent`)
  }

  private onJob({ type, object, prev }: Change, actor: Actor): void {
    const job = object as Job
    const before = prev as Job | undefined
    const past = this.pastOf(job.metadata.name)
    if (type === "ADDED" || !before) return this.onCreated(job, actor, past)
    const isDeleted = !before.metadata.deletionTimestamp && (type === "DELETED" || job.metadata.deletionTimestamp)
    if (isDeleted) this.onDeletion(before, actor, past, type)
    else if (isCall(actor) && type !== "DELETED" && !this.isTouch(job, before, actor))
      this.sim.violate(`operator ${actor.process.id} wrote to Job ${job.metadata.name}`)
    const failed = condition(job, "Failed")
    if (failed && !condition(before, "Failed")) {
      past.failedVersion = Number(job.metadata.resourceVersion)
      past.failedAt = this.sim.now
      past.failures.push(failed.lastTransitionTime ?? "")
    }
    if (type === "DELETED") return this.onGone(before, actor, past)
    if (actor === "person" && !Bun.deepEquals(userPart(job), userPart(before))) this.onEdit(job, past)
  }
  /** Version 1.0.0 touches a Job without pods. */
  private isTouch(job: Job, before: Job, { kind }: Call): boolean {
    return kind === "touch" && Bun.deepEquals(userPart(job), userPart(before))
  }
  private onEdit(job: Job, past: Past): void {
    past.wanted = userPart(job)
    past.editedAt = Number(job.metadata.resourceVersion)
  }

  private onCreated(job: Job, actor: Actor, past: Past): void {
    const last = past.generations.at(-1)
    const isOlder = isCall(actor) && annotationsOf(actor.request.body)[`${PREFIX}restarted-from`] !== last?.uid
    if (isCall(actor)) this.onRestarted(job, actor, past, last)
    past.wanted = userPart(job)
    past.finalizers = finalizersOf(job)
    past.editedAt = 0
    const isBlind = isCall(actor) && (actor.process.looked.get("pods refused") ?? 0) > actor.sawJobAt
    const excused = !isCall(actor) || isOlder || isBlind || (last !== undefined && actor.sawJobAt < last.step)
    past.generations.push({ uid: job.metadata.uid, step: this.sim.step, excused })
    past.owed = past.remover = past.ttlTook = undefined
  }

  /** An operator has created a Job. */
  private onRestarted(created: Job, call: Call, past: Past, last: Generation | undefined): void {
    const { sim } = this
    // A webhook may change what is created.
    const { annotations: sentAnnotations, ownerReferences, finalizers } = (call.request.body as Job).metadata
    const sentMetadata = { annotations: sentAnnotations, ownerReferences, finalizers }
    const job = { ...created, metadata: { ...created.metadata, ...sentMetadata } } as Job
    const { process, sawJobAt } = call
    const { name, annotations } = job.metadata
    sim.count("restarts")
    if (sim.isFair(0)) this.longest("longest from delete to create in fair weather, ms", sim.now - past.deletedAt)
    if (process.dryRun) sim.violate("a dry run has created a Job")
    if (!last) return sim.violate(`operator ${process.id} created ${name}, which nobody has ever made`)
    const isLate = sawJobAt < last.step
    const isOlder = annotations?.[`${PREFIX}restarted-from`] !== last.uid
    this.checkHasIntent(name, call, past, isLate, isOlder)
    if (isOlder) {
      if (isLate) this.except("lateCreate")
      else if (isV1(call)) this.except("version100")
      else if (!process.stood.has(last.uid)) this.except("cameBackOlder")
      else if (past.remover === "person" || past.remover === "ttl" || past.cancelled.has(last.uid))
        this.except("cameBackOlder")
      else sim.violate(`${name} was created from an older Job than its last one`)
      return
    }
    if (past.remover === "person") this.checkCameBack(name, call, last.uid)
    this.checkAsWritten(job, call, past, last)
    this.checkNotEarly(call, past)
  }
  /** What is created is what an intent holds, byte for byte. */
  private checkHasIntent(name: string, call: Call, past: Past, isLate: boolean, isOlder: boolean): void {
    const { process, sawJobAt, sawIntentsAt } = call
    const intents = this.intentsOf(name)
    const isHeld = ({ replacement, isV1 }: StoredIntent) => isV1 || Bun.deepEquals(replacement, call.request.body)
    if (intents.some(isHeld) || isV1(call)) return
    // Another operator knew of the later Job, and has removed the intent.
    const wasEnded = isOlder && past.endedAt > sawIntentsAt
    if (wasEnded || isLate) return
    if (past.cancelledAt > sawIntentsAt && sawIntentsAt > sawJobAt) this.except("cancelRaced")
    else if (past.endedAt <= sawIntentsAt)
      this.sim.violate(`operator ${process.id} created ${name}, which no intent holds like that`)
  }
  /** If this process watched a person delete a Job that was to wait, it knows better, unless a restart had begun. */
  private checkCameBack(name: string, { process }: Call, uid: string): void {
    const intents = this.standing(name).filter((intent) => intent.uid === uid)
    const waited = intents.length > 0 && intents.every(({ dueAt }) => !Number.isNaN(dueAt))
    if (waited && process.plainlyDeleted.has(uid) && process.version === "current" && !this.sim.haveClocksMoved)
      this.sim.violate(`operator ${process.id} watched a person delete ${name} while it waited, and created it again`)
    else this.except("cameBack")
  }
  private checkAsWritten(job: Job, { seenVersion }: Call, past: Past, last: Generation): void {
    const { name } = job.metadata
    const isWritten = Bun.deepEquals(userPart(job), past.wanted)
    if (isWritten && Bun.deepEquals(finalizersOf(job), past.finalizers)) return
    if ((isWritten && past.unseen.has(last.uid)) || past.editedAt > seenVersion) return this.except("editUnseen")
    if (past.editedAt > 0 && past.rejectedEditAt === past.editedAt) return this.except("editRejected")
    if (this.intentsOf(name).some((intent) => intent.isV1 && intent.uid === last.uid)) return this.except("version100")
    const texts = [userPart(job), finalizersOf(job), past.wanted, past.finalizers].map((part) => JSON.stringify(part))
    this.sim.violate(`${name} was rolled back: created as ${texts[0]} ${texts[1]}, wanted ${texts[2]} ${texts[3]}`)
  }
  private checkNotEarly(call: Call, { lastFailed, remover }: Past): void {
    if (!lastFailed || isV1(call) || isV1(remover)) return
    // An intent without a due time is for now, whatever the clock says; that was checked when it was written.
    const { name, uid } = lastFailed.metadata
    const standing = this.standing(name)
    if (!standing.every((intent) => intent.uid === uid && !Number.isNaN(intent.dueAt))) return
    // Version 1.0.0 does not wait where a TTL ends before the wait does.
    if (standing.some((intent) => intent.isV1)) return this.except("version100")
    // It may have been under way while the clock was set back.
    const earlyMs = this.dueOf(lastFailed)[0] - Math.max(this.sim.serverNow(), call.sentAt)
    if (earlyMs > this.sim.toleranceMs())
      this.sim.violate(`${lastFailed.metadata.name} was created ${earlyMs} ms before it was due`)
  }

  /** A Job has got its deletionTimestamp, or went without. */
  private onDeletion(job: Job, actor: Actor, past: Past, type: string): void {
    const { sim } = this
    const { uid, resourceVersion } = job.metadata
    const isFinished = condition(job, "Failed") ?? condition(job, "Complete")
    past.deletedBy.set(uid, actor === "controller" && isFinished && !sim.isNamespaceGone ? "ttl" : actor)
    past.deletedAt = sim.now
    past.deletedVersion = resourceVersion
    past.deletedTtlMs = ttlMsOf(job)
    sim.releaseFinalizer(job)
    if (isCall(actor)) this.onDeletedByOperator(job, actor, past, type)
  }
  private onDeletedByOperator(job: Job, call: Call, past: Past, type: string): void {
    const { sim } = this
    const { process } = call
    const { name, uid, resourceVersion } = job.metadata
    const who = `operator ${process.id} deleted ${name}`
    if (process.dryRun) sim.violate(`${who} in a dry run`)
    if (type === "DELETED") sim.violate(`${who}, not in the foreground`)
    if (!condition(job, "Failed")) return sim.violate(`${who}, which had not failed`)
    const intents = this.standing(name).filter((i) => i.uid === uid && i.version === resourceVersion)
    // Version 1.0.0 may write an intent for what it has not seen deselected.
    const mayBeUnselected = process.version === "1.0.0" || intents.some(({ isV1 }) => isV1)
    if (!sim.isSelected(job) && !mayBeUnselected) sim.violate(`${who}, which was not selected or paused`)
    if (process.version === "1.0.0") {
      this.except("version100")
      if (intents.length === 0) past.cancelled.add(uid)
      return
    }
    if (intents.length === 0) {
      if (past.cancelled.has(uid)) this.except("cancelRaced")
      else if (past.endedAt > call.sawIntentsAt) {
        this.except("withdrawRaced")
        past.withdrawn = { uid, from: process }
      } else sim.violate(`${who} in a version that has no intent`)
    }
    this.checkProven(who, call, intents)
    this.checkDeletedInTime(who, job, call, intents)
    this.checkInTime(job)
  }
  private checkDeletedInTime(who: string, job: Job, call: Call, intents: StoredIntent[]): void {
    // An intent without a due time is for now, whatever the clock says; that was checked when it was written.
    if (intents.some(({ dueAt }) => Number.isNaN(dueAt))) return
    const earlyMs = this.dueOf(job)[0] - Math.max(this.sim.serverNow(), call.sentAt)
    if (earlyMs <= this.sim.toleranceMs()) return
    // Version 1.0.0 does not wait where a TTL ends before the wait does.
    if (intents.some(({ isV1 }) => isV1)) this.except("version100")
    else this.sim.violate(`${who} ${earlyMs} ms before it was due`)
  }
  /** Promise 2: in the breath before the delete the cluster has agreed to exactly what the intent holds. */
  private checkProven(who: string, { proof }: Call, intents: StoredIntent[]): void {
    if (!proof?.isAdmitted) return this.sim.violate(`${who} without a proof that it can be created again`)
    // The answer, the delete itself, and a slow server.
    const oldMs = this.sim.now - proof.answeredAt
    if (oldMs > 130_000) this.sim.violate(`${who} with a proof that is ${oldMs} ms old`)
    // Two operators may see another cause, and say so in an annotation of ours.
    const isHeld = (i: StoredIntent) => i.isV1 || Bun.deepEquals(judged(i.replacement), judged(proof.replacement))
    if (intents.length > 0 && !intents.some(isHeld))
      this.sim.violate(`${who} with a proof of something else than its intent holds`)
  }

  /** The earliest and the latest time at which a failed Job may be restarted, by the server's clock. */
  private dueOf(job: Job): [earliest: number, latest: number] {
    const { delayMs, controllerAheadMs, jobs } = this.sim.history.flavour
    const maybeOom = jobs.some(({ ends }) => ends.includes("oom"))
    const longestMs = maybeOom ? Math.max(delayMs, OOM_MOST_MS) : delayMs
    const latest = failedAt(job) + longestMs + this.spacedMs() + Math.max(0, -controllerAheadMs)
    if (job.metadata.annotations?.[`${PREFIX}restart-now`] !== undefined) return [Number.NEGATIVE_INFINITY, latest]
    // Where the clock was set back, a failure in the future counts as one of now.
    const sinceMs = this.sim.now - this.pastOf(job.metadata.name).failedAt
    const present = this.sim.serverNow() - sinceMs
    // It was seen before the clock was set forward again.
    const from = present < failedAt(job) - 2_000 ? present - this.sim.serverForwardMs : Math.min(failedAt(job), present)
    return [maybeOom ? from : from + delayMs, latest]
  }
  /** For how long a Job may wait for others: the other Job may come first, and a finalizer hold its restart up. */
  private spacedMs(): number {
    const { spacingMs, jobs } = this.sim.history.flavour
    return spacingMs > 0 ? 2 * (spacingMs + Math.max(...jobs.map(({ holdMs }) => holdMs))) : 0
  }
  private checkInTime(job: Job): void {
    const lateMs = this.sim.serverNow() - this.dueOf(job)[1]
    // One that was rejected in bad weather has lost its turn among those that keep a distance.
    if (!this.sim.isFair(lateMs + this.spacedMs())) return
    const bound = this.sim.latestMs()
    this.longest(`longest from due to delete in fair weather, ${bound > 10_000 ? "polling" : "watching"}, ms`, lateMs)
    if (lateMs > bound) this.sim.violate(`${job.metadata.name} was deleted ${lateMs} ms late in fair weather`)
  }

  private onGone(job: Job, actor: Actor, past: Past): void {
    const { name, uid } = job.metadata
    past.remover = past.deletedBy.get(uid) ?? actor
    past.goneAt = this.sim.step
    past.goneNow = this.sim.now
    past.lastFailed = condition(job, "Failed") ? job : undefined
    if (!past.lastFailed || this.sim.isNamespaceGone) return
    const isWithdrawn = past.withdrawn?.uid === uid && !this.standing(name).some((i) => i.uid === uid)
    if (isWithdrawn) past.ttlTook = [past.withdrawn!.from]
    else if (isCall(past.remover)) past.owed = uid
    if (past.remover !== "ttl") return
    // An intent for an older version is void, and may be about to be removed.
    const protects = (i: StoredIntent) => i.uid === uid && i.version === past.deletedVersion && !hasFlaw(i.object)
    // Without the TTL that it had, its end looks like a person's delete.
    const wasTtlEdited = ttlMsOf(job) !== past.deletedTtlMs
    if (this.standing(name).some(protects) && !wasTtlEdited) past.owed = uid
    else this.onTakenByTtl(job, past)
  }
  private onTakenByTtl(job: Job, past: Past): void {
    const { sim } = this
    const { name, uid } = job.metadata
    const knew = (process: Process) =>
      !process.isDead &&
      !isStopping(process) &&
      !process.dryRun &&
      process.version === "current" &&
      (process.seen.get(name) ?? 0) >= Math.max(past.failedVersion, past.editedAt)
    const mayGo = !sim.isSelected(job) || sim.haveClocksMoved || past.cancelled.has(uid)
    // Without the TTL that it had, its end looks like a person's delete to whoever has not seen it before.
    const wasTtlEdited = ttlMsOf(job) !== past.deletedTtlMs
    const hadSeen = (process: Process) => !wasTtlEdited || process.stood.has(uid)
    past.ttlTook = mayGo ? [] : sim.processes.filter((process) => knew(process) && hadSeen(process))
    this.except("ttlFirst")
    const isLongEnough = ttlMsOf(job) > sim.latestMs() + 3_000
    if (isLongEnough && sim.isFair(600_000) && sim.isSelected(job))
      sim.violate(`the TTL took ${name} in fair weather, without an intent`)
  }

  // Intents.

  private onIntent({ type, object, prev }: Change, actor: Actor, intent: StoredIntent): void {
    const past = this.pastOf(intent.jobName)
    const isDeleted = !prev?.metadata.deletionTimestamp && (type === "DELETED" || intent.isTerminating)
    if (type !== "ADDED" && isDeleted) this.onIntentDeleted(actor, intent, past)
    if (type === "DELETED" && isCall(actor)) past.endedAt = this.sim.step
    if (type === "ADDED") this.onIntentWritten(object as Job, actor, intent, past)
  }
  private onIntentDeleted(actor: Actor, intent: StoredIntent, past: Past): void {
    const { sim } = this
    if (isCall(actor)) {
      past.endedAt = sim.step
      past.withdrewIntent.set(intent.uid, actor.process)
      this.onWithdrawn(actor, intent, past)
      return
    }
    const { object, uid, isWide, isV1 } = intent
    // The garbage collector removes what a webhook gave an owner.
    if (actor === "controller" && !sim.isNamespaceGone && !object.metadata.ownerReferences) {
      if (isV1) this.except("version100")
      else if (!sim.history.flavour.hasManagedBy) this.except("ranWithoutManagedBy")
      else sim.violate(`a controller removed the intent ${object.metadata.name}`)
    }
    if (actor === "controller" && object.metadata.ownerReferences) {
      if (isV1) past.cancelled.add(uid)
      return
    }
    if (actor === "tool" || actor === "sweeper") {
      if (isV1) this.except("version100")
      else if (isWide && actor === "sweeper") this.except("prunedWide")
      else sim.violate(`a tool pruned the intent ${object.metadata.name}`)
    }
    past.ttlTook = past.withdrawn = undefined
    past.cancelled.add(uid)
    past.cancelledAt = sim.step
  }
  /** An operator removed the intent just after another one had deleted the Job, which the latter brings back. */
  private onWithdrawn({ process }: Call, { jobName, uid }: StoredIntent, past: Past): void {
    const deleter = past.deletedBy.get(uid)
    const isLast = past.generations.at(-1)?.uid === uid
    if (!isLast || !isCall(deleter) || deleter.process === process) return
    if (this.standing(jobName).some((other) => other.uid === uid)) return
    this.except("withdrawRaced")
    past.withdrawn = { uid, from: deleter.process }
    if (past.owed !== uid) return
    past.owed = undefined
    past.ttlTook = [deleter.process]
  }
  private onIntentWritten(object: Job, actor: Actor, intent: StoredIntent, past: Past): void {
    const { sim } = this
    const { jobName: name, uid, version } = intent
    this.bornAt.set(object.metadata.uid, sim.now)
    if (hasFlaw(object)) this.onRejected(name)
    else past.cancelled.delete(uid)
    this.longest("most intents of one Job", this.intentsOf(name).length)
    if (!isCall(actor)) return
    if (actor.process.dryRun) sim.violate("a dry run has written an intent")
    if (!actor.process.stood.has(uid)) past.unseen.add(uid)
    const live = sim.model.job(object.metadata.namespace, name)
    if (!live && past.generations.at(-1)?.uid === uid) {
      if (past.remover === "person" && !past.cancelled.has(uid) && this.intentsOf(name).length === 1) {
        // One by which the Job may have been deleted is written again, where this operator had just withdrawn it, or
        // has sent a delete without an answer: that a person removed it cannot be told from another operator's removal.
        const stood = past.withdrewIntent.get(uid) === actor.process || actor.process.triedToDelete.has(uid)
        const knew =
          !stood && actor.sawJobAt > past.goneAt && past.lastFailed?.spec.ttlSecondsAfterFinished === undefined
        if (!knew) this.except("cameBackLate")
        else sim.violate(`operator ${actor.process.id} knew that a person deleted ${name}, and wrote an intent for it`)
      } else if (past.remover === "ttl" && !hasFlaw(object)) past.owed = uid
    }
    const isOfLive = live?.metadata.uid === uid && live.metadata.resourceVersion === version
    if (!live || !isOfLive || live.metadata.deletionTimestamp || intent.isV1) return
    if (!condition(live, "Failed")) return sim.violate(`an intent was written for ${name}, which has not failed`)
    // One without a due time is for now. It may have been under way while the clock was set back.
    const at = Number.isNaN(intent.dueAt) ? Math.max(sim.serverNow(), actor.sentAt) : intent.dueAt + 1_000
    const earlyMs = this.dueOf(live)[0] - at
    if (earlyMs > sim.toleranceMs()) sim.violate(`an intent was written for ${name} ${earlyMs} ms before it was due`)
  }
  /** The server has rejected a replacement, or the intent for it. */
  onRejected(name: string): void {
    const past = this.pastOf(name)
    const live = this.sim.model.job(NAMESPACE, name)
    if (!live || live.metadata.deletionTimestamp) past.rejectedEditAt = past.editedAt
  }

  // Promise 3: nothing runs twice.

  private onPod({ type, object }: Change): void {
    const pod = object as Pod
    const { uid, ownerReferences } = pod.metadata
    const hasEnded = pod.status.phase === "Failed" || pod.status.phase === "Succeeded"
    // One that has ended does no harm when it has been orphaned; as long as it is owned it is awaited.
    if (type === "DELETED" || (hasEnded && !ownerReferences)) this.live.delete(uid)
    if (type !== "ADDED") return
    const owner = ownerReferences?.[0]
    if (!owner || !isUserJob(owner.name)) return this.onPodOfOther(owner?.name ?? "")
    this.live.set(uid, { name: owner.name, job: owner.uid })
    const { generations } = this.pastOf(owner.name)
    const position = (job: string) => generations.findIndex((g) => g.uid === job)
    for (const other of this.live.values()) {
      if (other.name !== owner.name || other.job === owner.uid) continue
      const from = Math.min(position(other.job), position(owner.uid))
      const to = Math.max(position(other.job), position(owner.uid))
      if (generations.slice(from + 1, to + 1).some(({ excused }) => excused)) this.except("besidePods")
      else this.sim.violate(`two generations of ${owner.name} have pods at once`)
    }
  }
  private onPodOfOther(ownerName: string): void {
    const owner = this.sim.model.job(NAMESPACE, ownerName)
    const intent = owner && readStored(owner)
    if (intent?.isV1) this.except("version100")
    else if (intent && !this.sim.history.flavour.hasManagedBy && (owner.spec.parallelism ?? 1) > 0)
      this.except("ranWithoutManagedBy")
    else this.sim.violate(`a pod was made for ${ownerName}, which is no Job of a person`)
  }

  // Records.

  private recordsOf(job: string | undefined): Obj[] {
    const all = [...this.sim.model.objects.configmaps!.values()]
    return all.filter(
      ({ metadata: { labels } }) => labels?.[RECORD] === "failure" && (!job || labels[RECORD_JOB] === job),
    )
  }
  /** No evidence is recorded twice. */
  private onRecord({ metadata: { name, labels, annotations } }: Obj, actor: Actor): void {
    if (isCall(actor) && actor.process.dryRun) this.sim.violate(`a dry run has written ConfigMap ${name}`)
    if (labels?.[RECORD] !== "failure") return
    this.sim.count("records")
    const facts = (of: Record<string, string> = {}) => `${of[`${PREFIX}uid`]} ${of[`${PREFIX}failed-at`]}`
    const same = this.recordsOf(labels[RECORD_JOB]).filter(
      ({ metadata }) => facts(metadata.annotations) === facts(annotations),
    )
    if (same.length > 1) this.sim.violate(`a failure of ${labels[RECORD_JOB]} is recorded twice, in ${name} too`)
  }
  /** A crash, a lost answer or a lost right may come between a record and the look that removes what is too much. */
  private checkRecords(): void {
    // A process removes what is too much of the records that it knows; those of others go with its daily look.
    const most = this.sim.historyLimit * this.sim.processes.length + this.sim.recordTroubles
    // What was written a moment ago is followed by the removal of another one.
    const isNew = (at = "") => Math.abs(this.sim.serverNow() - Date.parse(at)) < 2_000
    const old = this.recordsOf(undefined).filter(({ metadata }) => !isNew(metadata.creationTimestamp))
    for (const [job, all] of Map.groupBy(old, ({ metadata }) => metadata.labels?.[RECORD_JOB]))
      if (all.length <= most) continue
      // It writes a record again that another operator has removed.
      else if (this.sim.processes.some(({ version }) => version === "1.0.0")) this.except("version100")
      else this.sim.violate(`${all.length} failures of ${job} are recorded, ${most} are the most`)
  }
  /** Two generations may have failed in the same second. */
  onFailureReported(process: Process, job: string, failedAt: string): void {
    const past = this.pasts.get(job)
    // It takes an intent that somebody has resumed for a Job of its own.
    if (!past && process.version === "1.0.0") return this.except("version100")
    const failures = past?.failures.filter((at) => at === failedAt) ?? []
    if (process.reported.filter((reported) => reported === `${job} ${failedAt}`).length > failures.length)
      this.sim.violate(`operator ${process.id} has reported the same failure of ${job} twice`)
  }

  // The end.

  /** Nothing is under way or due, and no pod is about to end. */
  isQuiet(): boolean {
    for (const object of this.sim.model.objects.jobs!.values()) {
      if (readStored(object) || object.metadata.deletionTimestamp) return false
      const job = object as Job
      if (isUserJob(job.metadata.name) && condition(job, "Failed") && this.sim.isSelected(job)) return false
    }
    return !this.lostToTtl(Number.NEGATIVE_INFINITY).some(({ knows }) => knows)
  }
  /**
   * Jobs that their TTL took and that have not come back, each with an operator that saw it fail and should bring it
   * back.
   */
  private lostToTtl(boundMs: number): { name: string; knows: Process | undefined }[] {
    const { sim } = this
    return [...this.pasts].flatMap(([name, { ttlTook, goneNow }]) => {
      if (!ttlTook || sim.model.job(NAMESPACE, name) || sim.isNamespaceGone || this.standing(name).length > 0) return []
      // It comes back when it is due, unless its operator is gone by then.
      const isOver = sim.now - goneNow > boundMs + sim.history.flavour.delayMs
      const knows = isOver ? ttlTook.find((process) => !process.isDead && !isStopping(process)) : undefined
      return [{ name, knows: sim.haveClocksMoved ? undefined : knows }]
    })
  }

  /** After fair weather for so long that everything due is done. */
  atTheEnd(boundMs: number): void {
    const { sim } = this
    for (const object of sim.model.objects.jobs!.values()) {
      const intent = readStored(object)
      if (intent) this.checkIntentGone(intent, boundMs)
      else if (isUserJob(object.metadata.name)) this.checkRestarted(object as Job, boundMs)
    }
    for (const { name, knows } of this.lostToTtl(boundMs)) {
      if (knows)
        sim.violate(
          `operator ${knows.id} saw the failure of ${name}, which its TTL then took, and did not bring it back`,
        )
      this.except("lostToTtl")
    }
    if (!sim.isNamespaceGone) this.checkRecords()
    const excess = this.excess()
    if (excess) sim.violate(excess)
  }
  private checkIntentGone({ object, dueAt, uid }: StoredIntent, boundMs: number): void {
    const { sim } = this
    const isSpoiled = object.metadata.labels?.[INTENT] === undefined
    if (uid === "" || isSpoiled) return this.except("unreadable")
    // The clock may have been set back: then it is not due for long.
    const waits = dueAt + boundMs > sim.serverNow()
    const ageMs = sim.now - (this.bornAt.get(object.metadata.uid) ?? 0)
    if (ageMs > boundMs + this.spacedMs() && !waits) sim.violate(`intent ${object.metadata.name} is left`)
  }
  private checkRestarted(job: Job, boundMs: number): void {
    const { sim } = this
    const { name, deletionTimestamp } = job.metadata
    if (deletionTimestamp) {
      if (sim.serverNow() - Date.parse(deletionTimestamp) > boundMs) sim.violate(`${name} is terminating for ever`)
      return
    }
    if (!sim.isSelected(job) || !(sim.serverNow() > this.dueOf(job)[1] + boundMs)) return
    sim.violate(`${name} is due and not restarted`)
  }
  /** How many Jobs there have been. */
  generations(): number {
    return this.pasts.values().reduce((count, { generations }) => count + generations.length, 0)
  }
  /** Which operator remembers more than there is, in words. */
  excess(): string | undefined {
    const jobs = NAMES.filter((name) => this.sim.model.job(NAMESPACE, name)).length
    const intents = [...this.sim.model.objects.jobs!.values()].filter((object) => readStored(object)).length
    const most = { schedules: jobs, jobs, restarts: jobs, intents }
    for (const process of this.sim.processes.filter(isAlive)) {
      const sizes = process.running.sizes()
      // What ended since the last look is still remembered.
      const what = (Object.keys(most) as (keyof typeof most)[]).find((key) => sizes[key] > most[key] + 3)
      if (what) return `operator ${process.id} remembers ${sizes[what]} ${what}, and there are ${most[what]}`
    }
    return undefined
  }
}
