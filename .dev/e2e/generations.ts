// What the kill checks and the soak share: parts of the cluster that are killed and started again, and a witness of
// every generation of every Job, which talks to the API server directly and outlives its restarts.
import { readFile } from "node:fs/promises"
import { call, type Namespace, need, prefix, request, Skip, type Thing, until } from "./kit.ts"

// ---------------------------------------------------------------- parts of the cluster

export const clusterDir = process.env.E2E_CLUSTER_DIR || undefined
export type Part = "kube-apiserver" | "kube-controller-manager"

/** Kills a part of the cluster that up.sh has started. */
export async function killPart(part: Part): Promise<void> {
  if (!clusterDir) throw new Skip("E2E_CLUSTER_DIR names no cluster of .dev/cluster/up.sh")
  process.kill(Number(await readFile(`${clusterDir}/pid/${part}`, "utf8")), "SIGKILL")
}

export async function startPart(part: Part): Promise<void> {
  Bun.spawnSync(["setsid", "-f", `${clusterDir}/start/${part}`])
  if (part === "kube-apiserver") await until("the API server is ready", isReady, 120_000)
}
const isReady = async () => (await request("GET", "/readyz").catch(() => undefined))?.ok

// ---------------------------------------------------------------- generations

/** Follows a resource through everything: what a list lacks after a gap is seen as deleted. */
async function follow(
  ns: Namespace,
  resource: string,
  see: (type: string, thing: Thing) => void,
  signal: AbortSignal,
): Promise<void> {
  const known = new Map<string, Thing>()
  const note = (type: string, thing: Thing) => {
    if (type === "DELETED") known.delete(thing.metadata.uid)
    else known.set(thing.metadata.uid, thing)
    see(type, thing)
  }
  while (!signal.aborted) {
    try {
      const { status, body } = await call("GET", ns.path(resource))
      need(status === 200, `list: ${status}`)
      const there = new Set(body.items!.map(({ metadata }) => metadata.uid))
      for (const [uid, thing] of known) if (!there.has(uid)) note("DELETED", thing)
      for (const thing of body.items!) if (!known.has(thing.metadata.uid)) note("ADDED", thing)
      const response = await request(
        "GET",
        `${ns.path(resource)}?watch=1&resourceVersion=${body.metadata.resourceVersion}`,
        undefined,
        signal,
      )
      need(response.ok, `watch: ${response.status}`)
      let rest = ""
      const text = new TextDecoder()
      for await (const chunk of response.body!) {
        const lines = (rest + text.decode(chunk, { stream: true })).split("\n")
        rest = lines.pop()!
        for (const line of lines) {
          const event: { type: string; object: Thing } = JSON.parse(line)
          need(event.type !== "ERROR", "the watch has expired")
          note(event.type, event.object)
        }
      }
    } catch {
      await Bun.sleep(100)
    }
  }
}

const isIntent = ({ metadata }: Thing) => metadata.labels?.[`${prefix}intent`] !== undefined

/** Every generation of every Job in a namespace, and whether two of one Job ever had pods at once. */
export class Generations {
  /** By Job name, in their order: uid, and when it was first seen. */
  readonly of = new Map<string, { uid: string; seenAt: number }[]>()
  /** Pods of two generations at once, in words. */
  readonly doubled: string[] = []
  /** By Job name: the longest time between the end of one generation and the next. */
  longestGapMs = 0
  /** The Jobs and intents that there are, by name. */
  readonly live = new Map<string, Thing>()
  private readonly podUids = new Map<string, Set<string>>()
  private readonly goneAt = new Map<string, number>()
  private readonly pods = new Map<string, { name: string; job: string; owner: string }>()
  private readonly stop = new AbortController()

  constructor(ns: Namespace) {
    follow(ns, "jobs", this.seeJob, this.stop.signal)
    follow(ns, "pods", this.seePod, this.stop.signal)
  }
  end(): void {
    this.stop.abort()
  }
  /** When the Job's n-th generation was first seen. */
  seenAt(job: string, n: number): number | undefined {
    return this.of.get(job)?.[n - 1]?.seenAt
  }
  get intents(): string[] {
    return [...this.live.values()].filter(isIntent).map(({ metadata }) => metadata.name)
  }
  /** The names of a Job's pods. */
  podsOf(job: string): string[] {
    return [...this.pods.values()].filter((pod) => pod.job === job).map(({ name }) => name)
  }
  /** How many pods the Job with this uid has ever had. */
  podsEver(uid: string): number {
    return this.podUids.get(uid)?.size ?? 0
  }
  private seeJob = (type: string, job: Thing) => {
    const { name, uid } = job.metadata
    if (type !== "DELETED") this.live.set(name, job)
    else if (this.live.get(name)?.metadata.uid === uid) this.live.delete(name)
    if (isIntent(job)) return
    const all = this.of.get(name) ?? []
    this.of.set(name, all)
    if (type === "DELETED") this.goneAt.set(name, performance.now())
    if (type === "DELETED" || all.some((known) => known.uid === uid)) return
    all.push({ uid, seenAt: performance.now() })
    this.longestGapMs = Math.max(
      this.longestGapMs,
      performance.now() - (this.goneAt.get(name) ?? Number.POSITIVE_INFINITY),
    )
  }
  private seePod = (type: string, { metadata: { name, uid, labels, ownerReferences } }: Thing) => {
    const job = labels?.["batch.kubernetes.io/job-name"] ?? ""
    const owner = ownerReferences?.[0]?.uid ?? ""
    this.podUids.set(owner, (this.podUids.get(owner) ?? new Set()).add(uid))
    if (type === "DELETED") return void this.pods.delete(uid)
    if (!this.pods.has(uid))
      for (const other of this.pods.values())
        if (other.job === job && other.owner !== owner)
          this.doubled.push(`${name} beside a pod of ${job} ${other.owner}`)
    this.pods.set(uid, { name, job, owner })
  }
}

// ---------------------------------------------------------------- many at a time

/** Where all who have joined wait for the last, who does what is done once for all. */
export class Meeting {
  private joined = 0
  private waiting: { act: () => Promise<void>; done: () => void; fail: (error: unknown) => void }[] = []
  join(): void {
    this.joined++
  }
  leave(): void {
    this.joined--
    this.meet()
  }
  arrive(act: () => Promise<void>): Promise<void> {
    return new Promise((done, fail) => {
      this.waiting.push({ act, done, fail })
      this.meet()
    })
  }
  private meet(): void {
    if (this.waiting.length === 0 || this.waiting.length < this.joined) return
    const all = this.waiting.splice(0)
    all[0]!.act().then(
      () => all.forEach(({ done }) => void done()),
      (error) => all.forEach(({ fail }) => void fail(error)),
    )
  }
}

/** Lets so many work at once, as a small machine bears. */
export class Slots {
  private readonly waiting: (() => void)[] = []
  constructor(private free: number) {}
  async run<T>(work: () => Promise<T>): Promise<T> {
    if (this.free-- <= 0) await new Promise<void>((go) => this.waiting.push(go))
    try {
      return await work()
    } finally {
      this.free++
      this.waiting.shift()?.()
    }
  }
}
