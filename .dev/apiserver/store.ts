// The storage of the embedded API server: objects, resourceVersions, the history that watches and continued lists read,
// and the agenda of everything that happens later. It has no HTTP, no timers and no clock of its own.
import { type Change, groupVersion, type Job, KINDS, keyOf, type Meta, type Obj, type Pod } from "./resources.ts"

/** Every delay of the control plane and of the node. */
export interface Timing {
  /** The Job controller answers a change of a Job after this... */
  syncMs: number
  /** ...and a change of its pods after this. */
  batchMs: number
  /** From a pod's creation to its running containers. */
  startMs: number
  /** From SIGTERM to the end of the containers, where the script has no graceMs. */
  deletionDelayMs: number
  /** From the end of the containers to the pod's disappearance. */
  removeMs: number
  /** Before the first retry; doubles each time up to 36 fold. */
  backoffMs: number
  /** The garbage collector's delay. */
  gcMs: number
  /** How long a controller waits at most before it repeats what admission has rejected. */
  retryMs: number
}
/** As measured with a 1.35.1 control plane and kubelet. */
export const REAL: Timing = {
  syncMs: 5,
  batchMs: 1000,
  startMs: 600,
  deletionDelayMs: 100,
  removeMs: 800,
  backoffMs: 10_000,
  gcMs: 15,
  retryMs: 1_000_000,
}
/** For tests in real time. */
export const FAST: Timing = {
  syncMs: 1,
  batchMs: 10,
  startMs: 10,
  deletionDelayMs: 20,
  removeMs: 10,
  backoffMs: 20,
  gcMs: 2,
  retryMs: 100,
}
export interface StoreOptions extends Partial<Timing> {
  /** Epoch milliseconds. */
  now(): number
  random?(): number
  /** Changes kept for watches and for continued lists. */
  historyLimit?: number
  /** Called when something new is due. */
  onDue?(): void
  /** Monotonic milliseconds, by which delays are counted where now() may jump. Without it, now(). */
  elapsed?(): number
  /** The clock of the controller manager, where it is not the API server's. */
  controllerNow?(): number
  /** Called at each write, when it is done and before any watch sees it. */
  onChange?(change: Change): void
}

/** Something that happens later. */
export interface Due {
  at: number
  run?: (() => void) | undefined
}
/** An open watch. */
export interface Watcher {
  resource: string
  /** Index of the next change to look at, counted from the store's beginning. */
  next: number
  see(change: Change): void
  expire(): void
}

export class Store {
  readonly objects: Record<string, Map<string, Obj>> = Object.fromEntries(Object.keys(KINDS).map((r) => [r, new Map()]))
  readonly timing: Timing
  readonly byUid = new Map<string, Obj>()
  readonly random: () => number
  rv = 100
  /** Who acts on changes: the controllers and the node, in this order. */
  readonly listeners: ((change: Change) => void)[] = []
  private changes: Change[] = []
  private forgotten = 0
  private compacted = 100
  private readonly watchers = new Set<Watcher>()
  private flushing = false
  /** What is due, the next last. */
  private readonly agenda: Due[] = []
  private readonly pending = new Map<string, Due>()

  constructor(private readonly options: StoreOptions) {
    this.random = options.random ?? pseudoRandom()
    const given = Object.entries(options).filter(([key, value]) => key in FAST && value !== undefined)
    this.timing = { ...FAST, ...Object.fromEntries(given) }
  }

  // ---- Time

  /** Does what is due by now; answers when the next thing is. */
  tick(): number | undefined {
    for (let next = this.agenda.at(-1); next && (!next.run || next.at <= this.elapsed()); next = this.agenda.at(-1)) {
      this.agenda.pop()
      next.run?.()
    }
    this.flush()
    return this.agenda.at(-1)?.at
  }
  now(): number {
    return this.options.now()
  }
  controllerNow(): number {
    return (this.options.controllerNow ?? this.options.now)()
  }
  elapsed(): number {
    return (this.options.elapsed ?? this.options.now)()
  }
  after(ms: number, run: () => void): Due {
    const due: Due = { at: this.elapsed() + ms, run }
    let low = 0
    let high = this.agenda.length
    while (low < high) {
      const middle = (low + high) >> 1
      if (this.agenda[middle]!.at > due.at) low = middle + 1
      else high = middle
    }
    this.agenda.splice(low, 0, due)
    if (low === this.agenda.length - 1) this.options.onDue?.()
    return due
  }
  /** As a rate-limited workqueue: of each key at most one waits, the earliest. */
  enqueue(key: string, ms: number, run: () => void): void {
    const waiting = this.pending.get(key)
    if (waiting && waiting.at <= this.elapsed() + ms) return
    if (waiting) waiting.run = undefined
    const due = this.after(ms, () => {
      this.pending.delete(key)
      run()
    })
    this.pending.set(key, due)
  }
  newUid(): string {
    const hex = (n: number) =>
      Array.from({ length: n }, () => "0123456789abcdef"[Math.floor(this.random() * 16)]).join("")
    return `${hex(8)}-${hex(4)}-4${hex(3)}-a${hex(3)}-${hex(12)}`
  }
  /** What is appended to a generateName. */
  suffix(): string {
    const letters = "bcdfghjklmnpqrstvwxz2456789"
    return Array.from({ length: 5 }, () => letters[Math.floor(this.random() * letters.length)]).join("")
  }

  // ---- Objects

  private record(change: Change): void {
    this.changes.push(change)
    this.options.onChange?.(change)
    const limit = this.options.historyLimit ?? 10_000
    if (this.changes.length > 2 * limit) this.compact(limit)
    for (const listener of this.listeners) listener(change)
  }
  write<T extends Obj>(resource: string, next: T, prev?: Obj): T {
    const object = { ...next, metadata: { ...next.metadata, resourceVersion: String(++this.rv) } }
    this.objects[resource]!.set(keyOf(object), object)
    this.byUid.set(object.metadata.uid, object)
    this.record({ rv: this.rv, resource, type: prev ? "MODIFIED" : "ADDED", object, prev })
    return object
  }
  remove(resource: string, prev: Obj): void {
    this.objects[resource]!.delete(keyOf(prev))
    this.byUid.delete(prev.metadata.uid)
    const object = { ...prev, metadata: { ...prev.metadata, resourceVersion: String(++this.rv) } }
    this.record({ rv: this.rv, resource, type: "DELETED", object, prev })
  }
  /** Writes a change, unless it takes the last finalizer of an object that is being deleted: that removes it. */
  save<T extends Obj>(resource: string, next: T, prev: Obj): T {
    const { deletionTimestamp, finalizers, deletionGracePeriodSeconds: grace } = next.metadata
    if (!deletionTimestamp || finalizers?.length || (resource === "pods" && grace !== 0))
      return this.write(resource, next, prev)
    this.remove(resource, prev)
    return next
  }
  find(resource: string, namespace: string, name: string): Obj | undefined {
    return this.objects[resource]!.get(`${namespace}/${name}`)
  }
  job(namespace: string, name: string): Job | undefined {
    return this.find("jobs", namespace, name) as Job | undefined
  }
  pods(namespace?: string): Pod[] {
    const all = [...this.objects.pods!.values()] as Pod[]
    return namespace === undefined ? all : all.filter((p) => p.metadata.namespace === namespace)
  }

  // ---- History

  /** Forgets changes: older resourceVersions and continue tokens answer 410. */
  compact(keep = 0): void {
    const drop = Math.max(0, this.changes.length - keep)
    this.compacted = this.changes[drop - 1]?.rv ?? this.compacted
    this.changes = this.changes.slice(drop)
    this.forgotten += drop
  }
  isKept(rv: number): boolean {
    return rv >= this.compacted
  }
  /** The error of a watch that asks for what is forgotten. */
  tooOldMessage(since: number): string {
    return `too old resource version: ${since} (${this.compacted + 1})`
  }
  /** The objects as they were at a resourceVersion: the changes since then undone. */
  snapshot(resource: string, rv: number): Map<string, Obj> {
    if (rv >= this.rv) return this.objects[resource]!
    const then = new Map(this.objects[resource])
    for (let i = this.changes.length - 1; i >= 0 && this.changes[i]!.rv > rv; i--) {
      const { resource: of, object, prev } = this.changes[i]!
      if (of === resource) prev ? then.set(keyOf(object), prev) : then.delete(keyOf(object))
    }
    return then
  }
  /** Opens a watch of what comes after `since`; 0 is from now on. */
  subscribe(watcher: Watcher, since: number): void {
    watcher.next = this.forgotten + this.changes.length
    if (since)
      while (watcher.next > this.forgotten && this.changes[watcher.next - 1 - this.forgotten]!.rv > since)
        watcher.next--
    this.watchers.add(watcher)
    if (since && !this.isKept(since)) watcher.expire()
  }
  unsubscribe(watcher: Watcher): void {
    this.watchers.delete(watcher)
  }
  isSubscribed(watcher: Watcher): boolean {
    return this.watchers.has(watcher)
  }
  /** Tells the watches what has changed. */
  flush(): void {
    // Whoever sees an event may make a request at once: the loop outside then goes on.
    if (this.flushing) return
    this.flushing = true
    for (let isDone = false; !isDone; ) {
      isDone = true
      for (const watcher of this.watchers) if (this.feed(watcher)) isDone = false
    }
    this.flushing = false
  }
  private feed(watcher: Watcher): boolean {
    let hasSeen = false
    while (this.watchers.has(watcher) && watcher.next < this.forgotten + this.changes.length) {
      hasSeen = true
      if (watcher.next < this.forgotten) watcher.expire()
      else {
        const change = this.changes[watcher.next++ - this.forgotten]!
        if (change.resource === watcher.resource) watcher.see(change)
      }
    }
    return hasSeen
  }
}
/** The bookmark of a resource. */
export function bookmarkAt(resource: string, rv: number): Obj {
  const kind = KINDS[resource]!
  return { kind: kind.kind, apiVersion: groupVersion(kind), metadata: { resourceVersion: String(rv) } as Meta }
}

function pseudoRandom(): () => number {
  let a = 1
  return () => {
    a = (a + 0x6d2b79f5) | 0
    let t = Math.imul(a ^ (a >>> 15), 1 | a)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296
  }
}
