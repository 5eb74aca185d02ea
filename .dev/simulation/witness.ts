// What has been promised, checked after every write of the model. Whatever no protocol can promise has a name here, is counted,
// and is no wider than its reason.
import { INTENT, PREFIX, RECORD, RECORD_JOB } from "../../operator.ts"
import type { Change, Job, Obj, Pod } from "../apiserver/model.ts"
import { type Actor, type Call, HISTORY_LIMIT, type Life, type Simulation } from "./simulation.ts"

/** What may happen although it is not wished for, and why no protocol with these rights can close it. */
export const EXCEPTIONS = {
  cancelled: "a person removed the intent: that cancels the restart",
  cancelRaced:
    "a person removed the intent between the operator's last look at it and the call that relied on it: no call can be bound to an intent",
  cameBack:
    "a person deleted the failed Job when its intent stood already: ours or theirs cannot be told apart, so it comes back",
  cameBackLate:
    "a person deleted the failed Job between the operator's look at it and its intent: a create cannot be bound to another object",
  cameBackOlder:
    "an intent that nobody could remove in time, or a late copy of one, or a create from one that another operator has just removed, outlived a later Job, which a person or the TTL removed, or whose restart a person cancelled",
  lateCreate:
    "a create that was under way all the while another generation came and went: a create knows no preconditions",
  editUnseen:
    "an edit of the Job's last moment that this life was never shown: it polls, was down, or its watch was late; or finalizers that their controllers had taken off a Job when it was shown first",
  besidePods:
    "beside old pods a Job was made by a person, by a create that was under way, from an intent older than the last Job, or because a look at the pods was answered 403",
  ttlFirst: "the TTL took the failed Job before any operator could write its intent, or one for its last edit",
  lostToTtl:
    "...and it never came back: who had seen it fail was gone, or took it for a person's delete, for a clock had moved",
  waitsByMovedClock:
    "after a refusal, the time of the next try was set by a clock that was then corrected: the Job is scheduled, but late",
  namespaceGone: "the namespace was deleted with its Jobs",
} as const

interface Generation {
  uid: string
  step: number
  excused: boolean
}
/** What is remembered of all Jobs of one name. */
interface Ghost {
  generations: Generation[]
  /** What a person wrote last, and its version. */
  wanted: unknown
  finalizers: string[] | undefined
  /** Uids whose intent was written by a life that never saw them stand. */
  unseen: Set<string>
  editedAt: number
  /** Who began the deletion of each generation. */
  doomedBy: Map<string, Actor | "ttl">
  doomedAt: number
  doomedVersion: string
  remover: Actor | "ttl" | undefined
  /** The uid of a failed Job that is gone and must come back. */
  owed: string | undefined
  /** The lives that had seen the failure of a Job that its TTL took without an intent: one of them that lives on must bring it back. */
  ttlTook: Life[] | undefined
  failedVersion: number
  /** When each generation failed, to the second. */
  failures: string[]
  /** Uids whose intent a person removed, and when that was last, in steps. */
  cancelled: Set<string>
  cancelledAt: number
  /** When an operator removed an intent last, in steps. */
  endedAt: number
}
export interface IntentSeen {
  job: Obj
  uid: string
  version: string
  /** NaN where it is due. */
  notBefore: number
}

const MARKS = [
  "restarts",
  "restarts-of-cause",
  "restarted-from",
  "last-cause",
  "last-failure",
  "restart-now-done",
  "created",
  "touched",
].map((mark) => PREFIX + mark)
const GENERATED = ["controller-uid", "job-name", "batch.kubernetes.io/controller-uid", "batch.kubernetes.io/job-name"]
const isCall = (actor: Actor | "ttl" | undefined): actor is Call => typeof actor === "object"
const condition = (job: Job, type: string) => job.status.conditions?.find((c) => c.type === type && c.status === "True")
const failedAt = (job: Job) => Date.parse(condition(job, "Failed")?.lastTransitionTime ?? "")

/** All that a person wrote, independent of the operator's idea of it; finalizers apart, which their controllers take off. */
function userPart({ metadata, spec }: Job): unknown {
  const plain = (map: Record<string, string> = {}, drop: (key: string) => boolean) =>
    Object.fromEntries(Object.entries(map).filter(([key]) => !drop(key)))
  const { selector, template, ...rest } = spec
  const inner = plain(template.metadata?.labels, (key) => GENERATED.includes(key))
  const labels = plain(metadata.labels, (key) => GENERATED.includes(key))
  const annotations = plain(metadata.annotations, (key) => MARKS.includes(key))
  const { annotations: notes } = template.metadata ?? {}
  return [
    labels,
    annotations,
    metadata.ownerReferences,
    spec.manualSelector && selector,
    rest,
    inner,
    notes,
    template.spec,
  ]
}
const finalizersOf = ({ metadata }: Job) =>
  metadata.finalizers?.filter((f) => f !== "foregroundDeletion" && f !== "orphan")

export class Witness {
  private readonly ghosts = new Map<string, Ghost>()
  /** Pods, with the Job that they were made for. */
  private readonly live = new Map<string, { name: string; job: string }>()
  private readonly bornAt = new Map<string, number>()

  constructor(private readonly sim: Simulation) {}

  private except(exception: keyof typeof EXCEPTIONS): void {
    this.sim.count(`exception ${exception}`)
    this.sim.note(`    (${exception})`)
  }
  private longest(what: string, ms: number): void {
    this.sim.tally.set(what, Math.max(this.sim.tally.get(what) ?? 0, ms))
  }
  private ghostOf(name: string): Ghost {
    let ghost = this.ghosts.get(name)
    if (!ghost) {
      ghost = {
        generations: [],
        wanted: undefined,
        finalizers: undefined,
        editedAt: 0,
        doomedBy: new Map(),
        doomedAt: 0,
      } as unknown as Ghost
      Object.assign(ghost, { cancelled: new Set(), cancelledAt: 0, endedAt: 0, failures: [], unseen: new Set() })
      this.ghosts.set(name, ghost)
    }
    return ghost
  }
  intentsOf(name: string): IntentSeen[] {
    const all: IntentSeen[] = []
    for (const job of this.sim.model.objects.jobs!.values()) {
      if (job.metadata.labels?.[INTENT] !== name) continue
      const { uid = "", resourceVersion = "", notBefore = "" } = JSON.parse(job.metadata.annotations?.[INTENT] ?? "{}")
      all.push({ job, uid, version: resourceVersion, notBefore: Date.parse(notBefore) })
    }
    return all
  }

  see(change: Change, actor: Actor): void {
    const { type, object, resource } = change
    this.sim.step++
    if (this.sim.trace && (resource === "jobs" || type !== "MODIFIED")) {
      const by = isCall(actor) ? `operator ${actor.life.id}` : actor
      const dying = object.metadata.deletionTimestamp ? ", terminating" : ""
      const state = (object.status as Job["status"])?.conditions?.filter((c) => c.status === "True").map((c) => c.type)
      this.sim.note(
        `    ${by}: ${resource} ${object.metadata.name} ${type} ${object.metadata.uid.slice(0, 4)}@${object.metadata.resourceVersion}${dying} ${state ?? ""}`,
      )
    }
    if (resource === "pods") this.seePod(change)
    if (resource === "configmaps" && type === "ADDED") this.seeRecord(object, actor)
    if (resource === "namespaces") this.sim.namespaceGone ||= object.metadata.deletionTimestamp !== undefined
    if (resource !== "jobs") return
    const name = object.metadata.labels?.[INTENT]
    if (name === undefined) this.seeJob(change, actor)
    else this.seeIntent(change, actor, name)
    for (const [jobName, ghost] of this.ghosts) if (ghost.owed) this.checkOwed(jobName, ghost)
  }

  /** A failed Job that no person deleted exists, or its intent does. */
  private checkOwed(name: string, ghost: Ghost): void {
    const { owed = "" } = ghost
    if (this.intentsOf(name).some(({ uid, job }) => uid === owed && !job.metadata.deletionTimestamp)) return
    ghost.owed = undefined
    if (this.sim.namespaceGone) this.except("namespaceGone")
    else if (ghost.cancelled.has(owed)) this.except("cancelled")
    else
      this.sim.violate(
        `Job ${name} (${owed.slice(0, 4)}) is lost: it is gone, no person deleted it, and it has no intent`,
      )
  }

  private seeJob({ type, object, prev }: Change, actor: Actor): void {
    const [job, before] = [object as Job, prev as Job | undefined]
    const ghost = this.ghostOf(job.metadata.name)
    if (type === "ADDED" || !before) return this.appeared(job, actor, ghost)
    const isDoomed = !before.metadata.deletionTimestamp && (type === "DELETED" || job.metadata.deletionTimestamp)
    if (isDoomed) this.doomed(before, actor, ghost, type)
    else if (isCall(actor) && (actor.kind !== "touch" || !Bun.deepEquals(userPart(job), userPart(before))))
      this.sim.violate(`operator ${actor.life.id} wrote to Job ${job.metadata.name}`)
    const failed = condition(job, "Failed")
    if (failed && !condition(before, "Failed")) {
      ghost.failedVersion = Number(job.metadata.resourceVersion)
      ghost.failures.push(failed.lastTransitionTime ?? "")
    }
    if (type === "DELETED") return this.vanished(before, actor, ghost)
    if (actor !== "person" || Bun.deepEquals(userPart(job), userPart(before))) return
    ghost.wanted = userPart(job)
    ghost.editedAt = Number(job.metadata.resourceVersion)
  }

  private appeared(job: Job, actor: Actor, ghost: Ghost): void {
    const last = ghost.generations.at(-1)
    const isOlder = isCall(actor) && job.metadata.annotations?.[`${PREFIX}restarted-from`] !== last?.uid
    if (isCall(actor)) this.restored(job, actor, ghost, last)
    ghost.wanted = userPart(job)
    ghost.finalizers = finalizersOf(job)
    ghost.editedAt = 0
    const isBlind = isCall(actor) && (actor.life.looked.get("pods refused") ?? 0) > actor.sawJobAt
    const excused = !isCall(actor) || isOlder || isBlind || (last !== undefined && actor.sawJobAt < last.step)
    ghost.generations.push({ uid: job.metadata.uid, step: this.sim.step, excused })
    ghost.owed = ghost.remover = ghost.ttlTook = undefined
  }

  /** An operator has created a Job. */
  private restored(job: Job, { life, sawJobAt, sawIntentsAt }: Call, ghost: Ghost, last: Generation | undefined): void {
    const { sim } = this
    const { name, annotations } = job.metadata
    sim.count("restarts")
    if (sim.isFair(0)) this.longest("longest from delete to create in fair weather, ms", sim.now - ghost.doomedAt)
    if (life.dryRun) sim.violate("a dry run has created a Job")
    if (!last) return sim.violate(`operator ${life.id} created ${name}, which nobody has ever made`)
    const isLate = sawJobAt < last.step
    const isOlder = annotations?.[`${PREFIX}restarted-from`] !== last.uid
    // Another operator knew of the later Job, and has removed the intent.
    const wasEnded = isOlder && ghost.endedAt > sawIntentsAt
    if (this.intentsOf(name).length === 0 && !wasEnded) {
      if (ghost.cancelledAt > sawIntentsAt && sawIntentsAt > sawJobAt) this.except("cancelRaced")
      else if (!isLate) sim.violate(`operator ${life.id} created ${name} without an intent`)
    }
    if (isOlder) {
      if (isLate) this.except("lateCreate")
      else if (ghost.remover === "person" || ghost.remover === "ttl" || ghost.cancelled.has(last.uid))
        this.except("cameBackOlder")
      else sim.violate(`${name} was created from an older Job than its last one`)
      return
    }
    if (ghost.remover === "person") this.except("cameBack")
    const isWritten = Bun.deepEquals(userPart(job), ghost.wanted)
    if (isWritten && Bun.deepEquals(finalizersOf(job), ghost.finalizers)) return
    if ((isWritten && ghost.unseen.has(last.uid)) || ghost.editedAt > (life.seen.get(name) ?? 0))
      this.except("editUnseen")
    else
      sim.violate(
        `${name} was rolled back: created as ${JSON.stringify([userPart(job), finalizersOf(job)])}, wanted ${JSON.stringify([ghost.wanted, ghost.finalizers])}`,
      )
  }

  /** A Job has got its deletionTimestamp, or went without. */
  private doomed(job: Job, actor: Actor, ghost: Ghost, type: string): void {
    const { sim } = this
    const { name, uid, resourceVersion } = job.metadata
    const isFinished = condition(job, "Failed") ?? condition(job, "Complete")
    ghost.doomedBy.set(uid, actor === "controller" && isFinished && !sim.namespaceGone ? "ttl" : actor)
    ghost.doomedAt = sim.now
    ghost.doomedVersion = resourceVersion
    sim.release(job)
    if (!isCall(actor)) return
    const who = `operator ${actor.life.id} deleted ${name}`
    if (actor.life.dryRun) sim.violate(`${who} in a dry run`)
    if (type === "DELETED") sim.violate(`${who}, not in the foreground`)
    if (!condition(job, "Failed")) sim.violate(`${who}, which had not failed`)
    if (!sim.isSelected(job)) sim.violate(`${who}, which was not selected or paused`)
    if (!this.intentsOf(name).some((intent) => intent.uid === uid && intent.version === resourceVersion)) {
      if (ghost.cancelled.has(uid)) this.except("cancelRaced")
      else sim.violate(`${who} in a version that has no intent`)
    }
    this.checkInTime(job)
  }

  /** The earliest and the latest instant at which a failed Job may be restarted. */
  private dueOf(job: Job): [number, number] {
    const { delayMs } = this.sim.history.flavour
    const ttlMs =
      job.spec.ttlSecondsAfterFinished === undefined
        ? Number.POSITIVE_INFINITY
        : job.spec.ttlSecondsAfterFinished * 1_000 - 5_000
    const latest = failedAt(job) + Math.min(delayMs, ttlMs)
    if (job.metadata.annotations?.[`${PREFIX}restart-now`] !== undefined) return [Number.NEGATIVE_INFINITY, latest]
    const maybeOom = this.sim.history.flavour.jobs.some(({ ends }) => ends.includes("oom"))
    return [maybeOom ? failedAt(job) : latest, latest]
  }
  private checkInTime(job: Job): void {
    const lateMs = this.sim.serverNow() - this.dueOf(job)[1]
    if (!this.sim.isFair(lateMs)) return
    const bound = this.sim.latestMs()
    this.longest(`longest from due to delete in fair weather, ${bound > 10_000 ? "polling" : "watching"}, ms`, lateMs)
    if (lateMs > bound) this.sim.violate(`${job.metadata.name} was deleted ${lateMs} ms late in fair weather`)
  }

  private vanished(job: Job, actor: Actor, ghost: Ghost): void {
    const { name, uid } = job.metadata
    ghost.remover = ghost.doomedBy.get(uid) ?? actor
    if (!condition(job, "Failed") || this.sim.namespaceGone) return
    if (isCall(ghost.remover)) ghost.owed = uid
    if (ghost.remover !== "ttl") return
    // An intent for an older version is void, and may be about to be discarded.
    if (this.intentsOf(name).some((intent) => intent.uid === uid && intent.version === ghost.doomedVersion))
      ghost.owed = uid
    else {
      const knew = ({ dead, stop, dryRun, seen }: Life) =>
        !dead &&
        !stop.signal.aborted &&
        !dryRun &&
        (seen.get(name) ?? 0) >= Math.max(ghost.failedVersion, ghost.editedAt)
      const mayGo = !this.sim.isSelected(job) || this.sim.clocksMoved || ghost.cancelled.has(uid)
      ghost.ttlTook = mayGo ? [] : this.sim.lives.filter(knew)
      this.except("ttlFirst")
      if (this.sim.isFair(600_000) && this.sim.isSelected(job))
        this.sim.violate(`the TTL took ${name} in fair weather, without an intent`)
    }
  }

  private seeIntent({ type, object }: Change, actor: Actor, name: string): void {
    const { sim } = this
    const ghost = this.ghostOf(name)
    const { uid = "", resourceVersion } = JSON.parse(object.metadata.annotations?.[INTENT] ?? "{}") as Record<
      string,
      string
    >
    if (type === "DELETED" && actor === "person") {
      ghost.ttlTook = undefined
      ghost.cancelled.add(uid)
      ghost.cancelledAt = sim.step
    }
    if (type === "DELETED" && isCall(actor)) ghost.endedAt = sim.step
    if (type !== "ADDED") return
    this.bornAt.set(object.metadata.uid, sim.now)
    ghost.cancelled.delete(uid)
    this.longest("most intents of one Job", this.intentsOf(name).length)
    if (isCall(actor) && actor.life.dryRun) sim.violate("a dry run has written an intent")
    if (isCall(actor) && !actor.life.stood.has(uid)) ghost.unseen.add(uid)
    const live = sim.model.job(object.metadata.namespace, name)
    if (!live && ghost.generations.at(-1)?.uid === uid) {
      if (ghost.remover === "person" && !ghost.cancelled.has(uid) && this.intentsOf(name).length === 1)
        this.except("cameBackLate")
      else if (ghost.remover === "ttl") ghost.owed = uid
    }
    if (
      live?.metadata.uid !== uid ||
      live.metadata.resourceVersion !== resourceVersion ||
      live.metadata.deletionTimestamp
    )
      return
    if (!condition(live, "Failed")) sim.violate(`an intent was written for ${name}, which has not failed`)
    // It may have been under way while the clock was set back.
    const decidedAt = Math.max(sim.serverNow(), isCall(actor) ? actor.sentAt : 0)
    const earlyMs = this.dueOf(live)[0] - decidedAt
    if (earlyMs > sim.toleranceMs()) sim.violate(`an intent was written for ${name} ${earlyMs} ms before it was due`)
  }

  /** Never two generations with pods at once. */
  private seePod({ type, object }: Change): void {
    const pod = object as Pod
    const { uid, ownerReferences } = pod.metadata
    const hasEnded = pod.status.phase === "Failed" || pod.status.phase === "Succeeded"
    // One that has ended does no harm when it has been orphaned; as long as it is owned it is awaited.
    if (type === "DELETED" || (hasEnded && !ownerReferences)) this.live.delete(uid)
    if (type !== "ADDED") return
    const owner = ownerReferences?.[0]
    if (!owner || !this.ghosts.has(owner.name))
      return this.sim.violate(`a pod was made for ${owner?.name}, which is an intent`)
    this.live.set(uid, { name: owner.name, job: owner.uid })
    const { generations } = this.ghostOf(owner.name)
    for (const other of this.live.values()) {
      if (other.name !== owner.name || other.job === owner.uid) continue
      const [from, to] = [other.job, owner.uid]
        .map((job) => generations.findIndex((g) => g.uid === job))
        .sort((a, b) => a - b) as [number, number]
      if (generations.slice(from + 1, to + 1).some(({ excused }) => excused)) this.except("besidePods")
      else this.sim.violate(`two generations of ${owner.name} have pods at once`)
    }
  }

  private recordsOf(job: string | undefined): Obj[] {
    const all = [...this.sim.model.objects.configmaps!.values()]
    return all.filter(
      ({ metadata: { labels } }) => labels?.[RECORD] === "failure" && (!job || labels[RECORD_JOB] === job),
    )
  }
  /** No evidence is recorded twice. */
  private seeRecord({ metadata: { name, labels, annotations } }: Obj, actor: Actor): void {
    if (isCall(actor) && actor.life.dryRun) this.sim.violate(`a dry run has written ConfigMap ${name}`)
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
    const most = HISTORY_LIMIT + this.sim.lives.length - 1 + this.sim.recordTroubles
    for (const [job, all] of Map.groupBy(this.recordsOf(undefined), ({ metadata }) => metadata.labels?.[RECORD_JOB]))
      if (all.length > most) this.sim.violate(`${all.length} failures of ${job} are recorded, ${most} are the most`)
  }

  /** Nothing is under way or due, and no pod is about to end. */
  isQuiet(): boolean {
    const { jobs } = this.sim.model.objects
    for (const job of jobs!.values())
      if (
        job.metadata.labels?.[INTENT] !== undefined ||
        job.metadata.deletionTimestamp ||
        (condition(job as Job, "Failed") && this.sim.isSelected(job as Job))
      )
        return false
    return !this.lostToTtl().some(({ knows }) => knows)
  }
  /** Jobs that their TTL took and that have not come back, each with an operator that saw it fail and should bring it back. */
  private lostToTtl(): { name: string; knows: Life | undefined }[] {
    const { sim } = this
    return [...this.ghosts].flatMap(([name, { ttlTook }]) => {
      if (!ttlTook || sim.model.job("default", name) || sim.namespaceGone || this.intentsOf(name).length > 0) return []
      return [
        { name, knows: sim.clocksMoved ? undefined : ttlTook.find(({ dead, stop }) => !dead && !stop.signal.aborted) },
      ]
    })
  }

  /** Two generations may have failed in the same second. */
  saidFailure(life: Life, key: string, text: string): void {
    const failures =
      this.ghosts.get(key.split("/")[1] ?? "")?.failures.filter((at) => text.includes(`failed at ${at}:`)) ?? []
    if (life.said.filter((said) => said === text).length > failures.length)
      this.sim.violate(`operator ${life.id} has said the same failure of ${key} twice`)
  }

  /** After fair weather for so long that everything due is done. */
  atTheEnd(boundMs: number): void {
    const { sim } = this
    for (const object of sim.model.objects.jobs!.values()) {
      const [job, { name, uid, deletionTimestamp }] = [object as Job, object.metadata]
      if (job.metadata.labels?.[INTENT] !== undefined) {
        // The clock may have been set back: then it is not due for long, and older ones of its Job stay as long.
        const waits = this.intentsOf(job.metadata.labels[INTENT]).some(({ notBefore }) => notBefore > sim.serverNow())
        if (sim.now - (this.bornAt.get(uid) ?? 0) > boundMs && !waits) sim.violate(`intent ${name} is left`)
      } else if (deletionTimestamp && sim.serverNow() - Date.parse(deletionTimestamp) > boundMs)
        sim.violate(`${name} is terminating for ever`)
      else if (sim.isSelected(job) && sim.serverNow() > this.dueOf(job)[1] + boundMs) {
        const isScheduled = sim.lives.some(
          (life) => !life.dead && !life.over && life.operator.schedules.has(`default/${name}`),
        )
        if (sim.clocksMoved && isScheduled) this.except("waitsByMovedClock")
        else sim.violate(`${name} is due and not restarted`)
      }
    }
    for (const { name, knows } of this.lostToTtl()) {
      if (knows)
        sim.violate(
          `operator ${knows.id} saw the failure of ${name}, which its TTL then took, and did not bring it back`,
        )
      this.except("lostToTtl")
    }
    if (!sim.namespaceGone) this.checkRecords()
    const excess = this.excess()
    if (excess) sim.violate(excess)
  }
  /** Which operator remembers more than there is, in words. */
  excess(): string | undefined {
    const all = this.sim.lives.filter(({ dead, over }) => !dead && !over).map((life) => this.excessOf(life))
    return all.find((text) => text !== undefined)
  }
  private excessOf({ id, operator }: Life): string | undefined {
    type Insides = Record<"jobs" | "pods" | "intents" | "restarting", Map<string, unknown>>
    const { jobs, pods, intents, restarting } = operator as unknown as Insides
    const there = this.sim.model.objects.jobs!
    const names = [...there.values()].filter(({ metadata }) => metadata.labels?.[INTENT] === undefined).length
    const facts = {
      schedules: operator.schedules.size,
      jobs: jobs.size,
      restarting: restarting.size,
      intents: intents.size,
      pods: pods.size,
    }
    const most = {
      schedules: names,
      jobs: names,
      restarting: names,
      intents: there.size - names,
      pods: this.sim.model.pods().length,
    }
    // What ended since the last look is still remembered.
    const what = (Object.keys(facts) as (keyof typeof facts)[]).find((key) => facts[key] > most[key] + 3)
    return what && `operator ${id} remembers ${facts[what]} ${what}, and there are ${most[what]}`
  }
}
