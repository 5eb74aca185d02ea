// What the operator costs, and how fast it is: calls are counted, times are printed and compared with what the same
// cluster does for the same work at the same time, so that a loaded machine changes nothing.
import {
  type Call,
  type Check,
  call,
  calls,
  counted,
  failedAt,
  failingJob,
  group,
  type Manifest,
  must,
  type Namespace,
  need,
  Operator,
  prefix,
  type Role,
  request,
  runningJob,
  Skip,
  type Thing,
  until,
} from "./kit.ts"

const now = () => performance.now()
const labels = { e2e: "yes" }
const chosen = { JOB_SELECTOR: "e2e=yes" }
export const roleName = (role: Role) => (role === "old" ? "the old Role" : "the Role")
const median = (numbers: number[]) => numbers.toSorted((a, b) => a - b)[Math.floor(numbers.length / 2)]!
const many = (count: number, make: (name: string) => Manifest) =>
  Array.from({ length: count }, (_, i) => make(`job-${String(i).padStart(2, "0")}`))
const milliseconds = (ms: number) => `${ms.toFixed(0)} ms`

const summary = (list: Call[]) => {
  const counts = Map.groupBy(list, (c) => `${c.verb} ${c.what}`)
  return [...counts].map(([what, of]) => `${of.length} ${what}`).join(", ")
}

/** Runs beside all others: what it counts is its own ServiceAccount's. */
export const quiet = () =>
  group("quiet", async (ns, check) => {
    for (const manifest of many(18, (name) => runningJob({ name, labels }))) await ns.create("jobs", manifest)
    const running = async () => (await ns.list("pods")).filter((pod) => pod.status?.phase === "Running").length
    await until("18 pods run", async () => (await running()) === 18, 90_000)
    // As in a pod, where Prometheus asks.
    const operator = await ns.operator({ ...chosen, HEALTH_PORT: "18090" })
    const scrapes = setInterval(() => void fetch("http://127.0.0.1:18090/metrics").catch(() => {}), 30_000)
    for (const name of ["failing-1", "failing-2"]) await ns.create("jobs", failingJob({ name, labels }))
    await until("200 s", () => performance.timeOrigin + now() > operator.spawnedAt + 200_000, 210_000)
    clearInterval(scrapes)
    const { anonymous, resident, cpu } = await operator.usage()
    await check("20 Jobs of which 2 fail, default settings, 200 s: the operator is still there", async () => {
      need(operator.running, "it has ended")
      for (const name of ["failing-1", "failing-2"]) await operator.says("the failure", [name, /fail/i], 100)
      const memory = `${anonymous.toFixed(1)} MiB anonymous, ${resident.toFixed(1)} MiB resident`
      return `${memory}, ${cpu.toFixed(2)} s CPU, ${operator.lines.length} log lines`
    })
    const mine = async (fromMs: number, toMs: number) => {
      if (!counted) throw new Skip("not counted")
      return (await calls(ns)).filter((c) => c.at >= operator.spawnedAt + fromMs && c.at < operator.spawnedAt + toMs)
    }
    await check("these 200 s take at most 25 calls", async () => {
      const list = await mine(0, 200_000)
      need(list.length > 0 && list.length <= 25, `${list.length} calls: ${summary(list)}`)
      return `${list.length} calls: ${summary(list)}`
    })
    await check("once quiet, at most 2 calls a minute", async () => {
      const list = await mine(80_000, 200_000)
      need(list.length <= 4, `${list.length} calls in 2 minutes: ${summary(list)}`)
      return `${list.length / 2} a minute ${summary(list)}`
    })
  })

/** How often the operator may take what the reference took. */
const allowance = 5
function compare(what: string, tookMs: number, referenceMs: number): string {
  const said = `${what} ${milliseconds(tookMs)}, reference ${milliseconds(referenceMs)}`
  need(tookMs <= allowance * referenceMs, `${said}: more than ${allowance} times as much`)
  return said
}

export const firstCall = () =>
  group("first call", async (ns, check) => {
    await check("the first call comes soon: compared with a bare start and one call on a new connection", async () => {
      if (!counted) throw new Skip("not counted")
      const taken: number[] = []
      const reference: number[] = []
      for (let i = 0; i < 7; i++) {
        const begun = now()
        await new Operator({}, ["--version"]).exited
        await request("GET", "/version", undefined, undefined, { keepalive: false })
        reference.push(now() - begun)
        const operator = await ns.operator(chosen)
        const first = await until("the first call", async () =>
          (await calls(ns)).find((c) => c.at >= operator.spawnedAt),
        )
        await operator.stop("SIGKILL")
        taken.push(first.at - operator.spawnedAt)
      }
      return compare("median of 7", median(taken), median(reference))
    })
  })

/** The least that a restart takes: delete, wait until the Job is absent, create. */
async function restartByHand(ns: Namespace, old: Thing, manifest: Manifest): Promise<void> {
  const path = ns.path("jobs", old.metadata.name)
  await must("DELETE", path, { propagationPolicy: "Foreground", preconditions: { uid: old.metadata.uid } })
  while ((await call("GET", path)).status !== 404) await Bun.sleep(2)
  await ns.create("jobs", manifest)
}

/**
 * From each Failed=True to the next pod: of the Job that the operator restarts, and of one that is restarted by hand.
 */
class Restarts {
  readonly tookMs = new Map<string, number[]>([
    ["operator", []],
    ["by-hand", []],
  ])
  private readonly failures = new Map<string, number>()
  private readonly owners = new Set<string>()
  constructor(
    private readonly ns: Namespace,
    private readonly manifests: Map<string, Manifest>,
  ) {}
  async watch(): Promise<void> {
    await this.ns.watch("jobs", (_, job) => {
      const { name, uid } = job.metadata
      if (failedAt(job) === undefined || this.failures.get(name) !== undefined || this.seen.has(uid)) return
      this.seen.add(uid)
      this.failures.set(name, now())
      if (name === "by-hand") restartByHand(this.ns, job, this.manifests.get(name)!).catch(() => {})
    })
    await this.ns.watch("pods", (_, pod) => {
      const [owner] = pod.metadata.ownerReferences ?? []
      const name = pod.metadata.labels?.["batch.kubernetes.io/job-name"] ?? ""
      const failed = this.failures.get(name)
      if (!owner || this.owners.has(owner.uid)) return
      this.owners.add(owner.uid)
      if (failed === undefined) return
      this.tookMs.get(name)?.push(now() - failed)
      this.failures.delete(name)
    })
  }
  private readonly seen = new Set<string>()
}

const uncounted = /^(pods\/log|events|configmaps|selfsubjectrulesreviews|\/)/

/** The calls of each whole restart, from its first GET of the Job to the removal of its intent. */
async function callsPerRestart(ns: Namespace, role: Role, job: string): Promise<Call[][]> {
  const all = (await calls(ns, role)).filter(({ what, verb }) => !uncounted.test(what) && verb !== "watch")
  const restarts: Call[][] = []
  let current: Call[] | undefined
  for (const one of all) {
    if (one.verb === "get" && one.name === job) current ??= []
    // Without a watch the operator lists Jobs all the time.
    if (role === "old" && one.verb === "list" && one.what === "jobs" && !one.uri.includes("labelSelector")) continue
    current?.push(one)
    if (!current || one.verb !== "delete" || one.name === job) continue
    restarts.push(current)
    current = undefined
  }
  return restarts
}

const newPod = (role: Role, count: number) =>
  group(`new pod ${role}`, async (ns, check) => {
    const manifests = new Map(
      ["operator", "by-hand"].map((name) => [
        name,
        failingJob({ name, labels: name === "operator" ? labels : { e2e: "no" } }),
      ]),
    )
    const restarts = new Restarts(ns, manifests)
    await restarts.watch()
    const operator = await ns.operator({ ...chosen, RESTART_DELAY: "0", CHECK_INTERVAL: "2" }, role)
    for (const manifest of manifests.values()) await ns.create("jobs", manifest)
    const ours = restarts.tookMs.get("operator")!
    const byHand = restarts.tookMs.get("by-hand")!
    await until(`${count} restarts`, () => ours.length >= count && byHand.length >= count, 240_000)
    await operator.stop()
    if (role === "operator")
      await check("from Failed=True to the new pod: compared with a delete and a create by hand", async () =>
        compare(`median of ${count}`, median(ours), median(byHand)),
      )
    await checkCalls(ns, check, role)
  })

async function checkCalls(ns: Namespace, check: Check, role: Role): Promise<void> {
  const most = role === "old" ? 9 : 8
  const ofThem = role === "old" ? "" : ", none of them a LIST"
  const claim = `with ${roleName(role)} a restart takes at most ${most} calls${ofThem}`
  await check(claim, async () => {
    if (!counted) throw new Skip("not counted")
    const all = await callsPerRestart(ns, role, "operator")
    need(all.length > 0, "no restart is in the audit log")
    const counts = all.map((list) => list.length)
    const typical = all.toSorted((a, b) => a.length - b.length)[Math.floor(all.length / 2)]!
    const said = `median ${median(counts)}, most ${Math.max(...counts)} of ${all.length}: ${typical
      .map(({ verb, what, code }) => `${verb} ${what} ${code}`)
      .join(", ")}`
    need(median(counts) <= most, said)
    const lists = all.flat().filter(({ verb }) => verb === "list")
    need(role === "old" || lists.length === 0, `${lists.length} LISTs: ${said}`)
    return said
  })
}

/** Longer than the garbage collector takes to win back its burst of calls. */
const REFILL_MS = 10_000

export const tenAtOnce = (role: Role) =>
  group(`ten ${role}`, async (ns, check) => {
    const manifests = many(10, (name) => failingJob({ name, labels }))
    const byHand = many(10, (name) => failingJob({ name: `by-hand-${name}` }))
    for (const manifest of [...manifests, ...byHand]) await ns.create("jobs", manifest)
    const all = (list: Manifest[]) => Promise.all(list.map((m) => ns.failed(String(m.metadata.name))))
    const old = await all(manifests)
    const references = await all(byHand)
    await check(
      `with ${roleName(role)} ten Jobs that are due at once are all back: compared with by hand`,
      async () => {
        const started = now()
        await Promise.all(references.map((job, i) => restartByHand(ns, job, byHand[i]!)))
        const reference = now() - started
        // The garbage collector may make 40 calls a second (twice kube-api-qps), and needs seven for each Job.
        await Bun.sleep(REFILL_MS)
        const backAt: number[] = []
        const uids = new Set(old.map((job) => job.metadata.uid))
        await ns.watch("jobs", (type, { metadata: { uid, name, labels } }) => {
          if (type !== "ADDED" || uids.has(uid) || name.startsWith("by-hand")) return
          if (labels?.[`${prefix}intent`] === undefined) backAt.push(now())
        })
        const operator = await ns.operator({ ...chosen, RESTART_DELAY: "0" }, role)
        const spawned = operator.spawnedAt - performance.timeOrigin
        await until("all ten are back", () => backAt.length >= 10)
        await ns.noIntent()
        return compare("the last after the operator's start", backAt[9]! - spawned, reference)
      },
    )
  })

/** Those that run alone, one after another. */
export const figures = async () => {
  await firstCall()
  await newPod("operator", 20)
  await newPod("old", 5)
  await tenAtOnce("operator")
}
