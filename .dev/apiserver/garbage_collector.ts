// The garbage collector, the namespace controller and the TTL-after-finished controller.
import type { Admission, Review } from "./admission.ts"
import { deleteObject, untrack } from "./deletion.ts"
import {
  type Change,
  finishedCondition,
  isOwnedBy,
  type Job,
  keyOf,
  type Meta,
  type Obj,
  type Pod,
  withoutFinalizer,
} from "./resources.ts"
import type { Store } from "./store.ts"

/** Deletes what has lost its owners, and takes foregroundDeletion and orphan off what waits for its dependents. */
export class GarbageCollector {
  /** How often in a row admission has rejected an update of an object. */
  private readonly rejections = new Map<string, number>()

  constructor(
    private readonly store: Store,
    private readonly admission: Admission,
  ) {
    store.listeners.push((change) => this.onChange(change))
  }
  private onChange({ type, object, resource, prev }: Change): void {
    const { ownerReferences = [], deletionTimestamp } = object.metadata
    const isOrphaned = ownerReferences.some((o) => !this.store.byUid.has(o.uid))
    if (type === "DELETED") this.rejections.delete(object.metadata.uid)
    if (type === "DELETED" || deletionTimestamp || isOrphaned) this.enqueue(this.store.timing.gcMs)
    if (resource === "namespaces" && deletionTimestamp && type !== "DELETED" && !prev?.metadata.deletionTimestamp)
      this.store.after(this.store.timing.gcMs, () => this.emptyNamespace(object))
  }
  private enqueue(ms: number): void {
    this.store.enqueue("gc", ms, () => {
      for (const [resource, objects] of Object.entries(this.store.objects))
        for (const o of [...objects.values()]) if (objects.get(keyOf(o)) === o) this.collect(resource, o)
    })
  }
  private collect(resource: string, o: Obj): void {
    const { ownerReferences, deletionTimestamp, finalizers = [] } = o.metadata
    if (ownerReferences?.length && ownerReferences.every((r) => !this.store.byUid.has(r.uid))) {
      const orphan = resource === "pods" ? untrack(this.store, o as Pod) : o
      if (!deletionTimestamp) this.delete(resource, orphan)
      return
    }
    if (!deletionTimestamp) return
    if (finalizers.includes("foregroundDeletion")) this.deleteInForeground(resource, o)
    else if (finalizers.includes("orphan")) this.orphanDependents(resource, o)
  }
  private dependentsOf(uid: string): [resource: string, dependent: Obj][] {
    const found: [string, Obj][] = []
    for (const [resource, objects] of Object.entries(this.store.objects))
      for (const o of objects.values()) if (isOwnedBy(o, uid)) found.push([resource, o])
    return found
  }
  private deleteInForeground(resource: string, owner: Obj): void {
    const { uid, finalizers } = owner.metadata
    for (const [of, dependent] of this.dependentsOf(uid)) {
      const current = of === "pods" ? untrack(this.store, dependent as Pod) : dependent
      if (finalizers?.includes("orphan")) this.disown(of, current, uid)
      else if (!current.metadata.deletionTimestamp) this.delete(of, current)
    }
    if (this.dependentsOf(uid).length === 0) this.takeFinalizer(resource, owner, "foregroundDeletion")
  }
  private orphanDependents(resource: string, owner: Obj): void {
    const { uid } = owner.metadata
    for (const [of, dependent] of this.dependentsOf(uid))
      this.disown(of, of === "pods" ? untrack(this.store, dependent as Pod) : dependent, uid)
    this.takeFinalizer(resource, owner, "orphan")
  }
  private disown(resource: string, dependent: Obj, uid: string): void {
    const { ownerReferences, ...metadata } = dependent.metadata
    const others = ownerReferences!.filter((r) => r.uid !== uid)
    const kept = { ...metadata, ...(others.length && { ownerReferences: others }) } as Meta
    this.update(resource, { ...dependent, metadata: kept }, dependent)
  }
  private takeFinalizer(resource: string, o: Obj, finalizer: string): void {
    const current = this.store.objects[resource]!.get(keyOf(o))
    if (current) this.update(resource, withoutFinalizer(current, finalizer), current)
  }
  private delete(resource: string, object: Obj): void {
    if (this.isAdmitted({ operation: "DELETE", resource, object, isDryRun: false }))
      deleteObject(this.store, resource, object, { policy: "Background" })
  }
  private update(resource: string, object: Obj, prev: Obj): void {
    if (this.isAdmitted({ operation: "UPDATE", resource, object, prev, isDryRun: false }))
      this.store.save(resource, object, prev)
  }
  /** Admission judges the garbage collector like everybody else. What it rejects is tried again with backoff. */
  private isAdmitted(review: Review): boolean {
    const { uid } = review.object.metadata
    if (this.admission.admits(review)) {
      this.rejections.delete(uid)
      return true
    }
    const rejections = this.rejections.get(uid) ?? 0
    this.rejections.set(uid, rejections + 1)
    this.store.after(Math.min(5 * 2 ** rejections, this.store.timing.retryMs), () => this.enqueue(0))
    return false
  }
  /** The namespace controller: deletes everything in it, again and again until nothing is left. */
  private emptyNamespace(namespace: Obj): void {
    let left = 0
    for (const [resource, objects] of Object.entries(this.store.objects))
      for (const o of [...objects.values()])
        if (o.metadata.namespace === namespace.metadata.name) {
          if (!o.metadata.deletionTimestamp) deleteObject(this.store, resource, o, { policy: "Background" })
          if (objects.has(keyOf(o))) left++
        }
    if (left) this.store.after(200, () => this.emptyNamespace(namespace))
    else this.store.remove("namespaces", namespace)
  }
}

/** Deletes a Job its ttlSecondsAfterFinished after it has finished. */
export class TtlController {
  constructor(
    private readonly store: Store,
    private readonly admission: Admission,
  ) {
    store.listeners.push((change) => this.onChange(change))
  }
  private onChange({ type, object, resource }: Change): void {
    if (resource === "jobs" && type !== "DELETED") this.enqueue(object as Job)
  }
  private enqueue(job: Job): void {
    const { uid } = job.metadata
    const leftMs = this.leftMs(job)
    if (leftMs !== undefined) this.store.enqueue(`ttl ${uid}`, Math.max(0, leftMs), () => this.expire(uid))
  }
  /** Until the Job expires, by the controller manager's clock; undefined where it does not. */
  private leftMs(job: Job): number | undefined {
    const finished = finishedCondition(job)
    const ttl = job.spec.ttlSecondsAfterFinished
    if (!finished || ttl === undefined || job.metadata.deletionTimestamp) return undefined
    return Date.parse(finished.lastTransitionTime!) + ttl * 1000 - this.store.controllerNow()
  }
  private expire(uid: string): void {
    const job = this.store.byUid.get(uid) as Job | undefined
    const leftMs = job && this.leftMs(job)
    if (leftMs === undefined) return
    if (leftMs > 0) return this.enqueue(job!)
    const isAdmitted = this.admission.admits({ operation: "DELETE", resource: "jobs", object: job!, isDryRun: false })
    if (isAdmitted) deleteObject(this.store, "jobs", job!, { policy: "Foreground" })
    else this.store.enqueue(`ttl ${uid}`, Math.min(10_000, this.store.timing.retryMs), () => this.expire(uid))
  }
}
