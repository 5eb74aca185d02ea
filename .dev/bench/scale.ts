// `bun .dev/bench/scale.ts [small|large]`: what the operator's binary (`bun run build`) needs beside a real control
// plane without a node, which this starts and takes down: in /tmp/cluster-bench or BENCH_DIR, on ports of its own.
//   small  20 Jobs: first call, memory, calls while idle
//   large  10,000 Jobs and 10,000 finished pods, in a memory cgroup of 128 MiB, the Deployment's limit: first look,
//          memory, and how long until 1,000 Jobs that fail at once are all back with RESTART_DELAY=0, at how many
//          calls each
// The Jobs of the finished pods have a foreign managedBy, so that no controller cleans them up. Ends with 1 where a
// goal is missed. Needs what up.sh needs, and root for the cgroup. BENCH_JOBS, BENCH_FAILING and BENCH_LIMIT_MIB change
// the sizes.
import { existsSync, mkdirSync, rmdirSync } from "node:fs"
import { readFile, writeFile } from "node:fs/promises"
import { join } from "node:path"
import type { Call, Json, Manifest, Namespace, Operator, Thing } from "../e2e/kit.ts"

const CONTROLLERS = "--kube-api-qps=2000 --kube-api-burst=4000 --concurrent-job-syncs=50 --concurrent-gc-syncs=50"
const JOBS = Number(process.env.BENCH_JOBS ?? 10_000)
const FAILING = Number(process.env.BENCH_FAILING ?? 1_000)
const LIMIT_MIB = Number(process.env.BENCH_LIMIT_MIB ?? 128)
const PARALLEL = 40
const folder = process.env.BENCH_DIR ?? "/tmp/cluster-bench"
const script = (name: string) => join(import.meta.dir, "../cluster", name)

async function shell(command: string[], env: Record<string, string> = {}): Promise<void> {
  const child = Bun.spawn(command, { env: { ...process.env, ...env }, stdout: "ignore", stderr: "inherit" })
  if ((await child.exited) !== 0) throw new Error(`${command.join(" ")} failed`)
}

const ports = { KUBE_PORT: "7543", ETCD_PORT: "24790", KUBE_CONTROLLER_MANAGER_PORT: "11257" }
await shell([script("up.sh"), folder], { ...ports, KUBE_CONTROLLER_MANAGER_FLAGS: CONTROLLERS })
process.env.KUBECONFIG = join(folder, "admin.kubeconfig")
process.env.E2E_AUDIT_LOG = join(folder, "audit.log")
// It reads both when it is loaded.
const kit = await import("../e2e/kit.ts")
const { binary, calls, close, group, must, until } = kit
const need: typeof kit.need = kit.need
const now = () => performance.timeOrigin + performance.now()
const seconds = (ms: number) => `${(ms / 1_000).toFixed(1)} s`
let missed = 0

/** Prints a figure beside its goal. */
function report(what: string, figure: number, most: number, unit: string): void {
  const bad = !(figure <= most)
  if (bad) missed++
  console.log(`        ${what}: ${figure.toFixed(2)} ${unit}, goal at most ${most}${bad ? ": MISSED" : ""}`)
}

/** Works through a list, some at a time. */
async function inParallel<T>(items: T[], work: (item: T) => Promise<unknown>): Promise<void> {
  let next = 0
  const worker = async () => {
    while (next < items.length) await work(items[next++] as T)
  }
  await Promise.all(Array.from({ length: PARALLEL }, worker))
}

const names = (stem: string, count: number) => Array.from({ length: count }, (_, i) => `${stem}-${i}`)
const labels = { app: "load" }
/** With about 2 KB of environment, as Jobs of real programs have. */
const podSpec: { [key: string]: Json } = {
  restartPolicy: "Never",
  containers: [
    { name: "main", image: "busybox", env: names("VARIABLE", 20).map((name) => ({ name, value: name.repeat(8) })) },
  ],
}
const jobOf = (name: string, spec: { [key: string]: Json } = {}): Manifest => ({
  apiVersion: "batch/v1",
  kind: "Job",
  metadata: { name, labels },
  spec: { backoffLimit: 0, ...spec, template: { metadata: { labels }, spec: podSpec } },
})
const ended = (phase: string, exitCode: number): { [key: string]: Json } => {
  const at = new Date().toISOString()
  const terminated = { exitCode, reason: exitCode ? "Error" : "Completed", startedAt: at, finishedAt: at }
  const containerStatuses = [
    { name: "main", image: "busybox", imageID: "x", ready: false, restartCount: 0, state: { terminated } },
  ]
  return { phase, startTime: at, containerStatuses }
}

/** A Job that its foreign manager has run, and its finished pod. */
async function createFinished(ns: Namespace, name: string): Promise<void> {
  const job = await ns.create("jobs", jobOf(name, { managedBy: "bench.example.com/manager" }))
  const owner = { apiVersion: "batch/v1", kind: "Job", name, uid: job.metadata.uid, controller: true }
  const podLabels = { ...labels, "batch.kubernetes.io/job-name": name, "batch.kubernetes.io/controller-uid": owner.uid }
  const metadata = { name: `${name}-pod`, labels: podLabels, ownerReferences: [owner] }
  await ns.create("pods", { metadata, spec: podSpec })
  await must("PATCH", `${ns.path("pods", metadata.name)}/status`, { status: ended("Succeeded", 0) })
}

/** In kB, from the kernel's own sum of the mappings. */
async function memoryOf(pid: number): Promise<{ anonymousMib: number; residentMib: number }> {
  const text = await readFile(`/proc/${pid}/smaps_rollup`, "utf8")
  const mib = (name: string) => Number(new RegExp(`^${name}:\\s+(\\d+) kB`, "m").exec(text)?.[1]) / 1_024
  return { anonymousMib: mib("Anonymous"), residentMib: mib("Rss") }
}

/** A memory cgroup with this limit, version 1 or 2. */
function cgroup(limitMib: number) {
  const v1 = existsSync("/sys/fs/cgroup/memory")
  const path = join(v1 ? "/sys/fs/cgroup/memory" : "/sys/fs/cgroup", `bench-${process.pid}`)
  mkdirSync(path)
  return {
    limit: () => writeFile(join(path, v1 ? "memory.limit_in_bytes" : "memory.max"), String(limitMib * 2 ** 20)),
    mostMib: async () =>
      Number(await readFile(join(path, v1 ? "memory.max_usage_in_bytes" : "memory.peak"), "utf8")) / 2 ** 20,
    run: (program: string) => ["-c", `echo $$ > ${path}/cgroup.procs && exec ${program}`],
    remove: () => rmdirSync(path),
  }
}

/** All but what issue reports count apart: logs, Events and records. */
const isCounted = ({ what }: Call) => !["pods/log", "events", "configmaps"].includes(what)
const tally = (made: Call[]) => {
  const groups = Map.groupBy(made, ({ verb, what, code }) => `${verb} ${what} ${code}`)
  return [...groups].map(([what, all]) => `${what}: ${all.length}`).sort()
}

async function firstLook(ns: Namespace, operator: Operator): Promise<number> {
  const watches = async () => {
    need(operator.running, `it has ended: ${operator.lines.slice(-5).join(" ")}`)
    await Bun.sleep(1_000) // the audit log is long
    const begun = (await calls(ns)).filter(({ verb, code }) => verb === "watch" && code === 200)
    return ["jobs", "pods"].every((resource) => begun.some(({ what }) => what === resource)) && begun
  }
  const begun = await until("Jobs and pods are watched", watches, 120_000)
  return (
    Math.max(...["jobs", "pods"].map((resource) => begun.find(({ what }) => what === resource)!.at)) -
    operator.spawnedAt
  )
}

async function small(ns: Namespace): Promise<void> {
  await inParallel(names("quiet", 20), (name) => ns.create("jobs", jobOf(name)))
  await Bun.sleep(3_000)
  const operator = await ns.operator({ JOB_SELECTOR: "app=load", HEALTH_PORT: "0" })
  await Bun.sleep(90_000)
  need(operator.running, `it has ended: ${operator.lines.slice(-5).join(" ")}`)
  const { anonymousMib, residentMib } = await memoryOf(operator.pid)
  const made = await calls(ns)
  const idle = made.filter(({ at }) => at > operator.spawnedAt + 30_000)
  report("20 Jobs, anonymous memory", anonymousMib, 15, "MiB")
  report("20 Jobs, resident memory", (residentMib * 2 ** 20) / 1e6, 60, "MB")
  report("start to the first call", ((made[0]?.at ?? Number.NaN) - operator.spawnedAt) / 1_000, 0.1, "s")
  report("calls in the second half minute and the one after it", idle.length, 0, "calls")
  console.log(`        all calls: ${tally(made).join(", ")}; CPU ${(await operator.usage()).cpu.toFixed(2)} s`)
}

async function large(ns: Namespace): Promise<void> {
  console.log(`        controller manager: ${CONTROLLERS}; memory limit ${LIMIT_MIB} MiB`)
  const failing = names("load", FAILING)
  const preparedAt = now()
  await inParallel(names("done", JOBS), (name) => createFinished(ns, name))
  await inParallel(failing, (name) => ns.create("jobs", jobOf(name)))
  const pods = await until(
    "the Jobs have pods",
    async () => {
      const of = (pod: Thing) => pod.metadata.ownerReferences?.[0] as { name?: string } | undefined
      const all = await ns.list("pods")
      const live = all.filter((pod) => of(pod)?.name?.startsWith("load-"))
      return live.length === FAILING && live
    },
    300_000,
  )
  console.log(`        ${JOBS} finished and ${FAILING} waiting Jobs after ${seconds(now() - preparedAt)}`)

  const group = cgroup(LIMIT_MIB)
  await group.limit()
  const env = {
    KUBECONFIG: await ns.kubeconfig("operator"),
    NAMESPACE: ns.name,
    HOME: folder,
    JOB_SELECTOR: "app=load",
    RESTART_DELAY: "0",
    LOG_LEVEL: "INFO",
    HEALTH_PORT: "0",
  }
  const operator = new kit.Operator(env, group.run(binary), "/bin/sh")
  ns.operators.push(operator)
  try {
    report("first look", (await firstLook(ns, operator)) / 1_000, 5, "s")
    await Bun.sleep(30_000)
    need(operator.running, `it has ended: ${operator.lines.slice(-5).join(" ")}`)
    const rest = await memoryOf(operator.pid)
    report("at rest, anonymous memory", rest.anonymousMib, 48, "MiB")
    const start = await operator.usage()
    console.log(
      `        resident ${rest.residentMib.toFixed(0)} MiB, most so far in the cgroup ` +
        `${(await group.mostMib()).toFixed(0)} MiB, CPU ${start.cpu.toFixed(2)} s`,
    )

    const uids = new Map(pods.map((pod) => [pod.metadata.ownerReferences![0]!.uid, pod.metadata.name]))
    const back = new Set<string>()
    await ns.watch("jobs", (type, { metadata }) => {
      if (type === "ADDED" && metadata.name.match(/^load-\d+$/) && !uids.has(metadata.uid)) back.add(metadata.name)
    })
    const failedAt = now()
    await inParallel(pods, (pod) =>
      must("PATCH", `${ns.path("pods", pod.metadata.name)}/status`, { status: ended("Failed", 3) }),
    )
    console.log(`        all pods failed within ${seconds(now() - failedAt)}`)
    for (const end = now() + 300_000; back.size < FAILING && now() < end && operator.running; ) await Bun.sleep(100)
    const tookMs = now() - failedAt
    if (back.size < FAILING)
      console.log(`        only ${back.size} of ${FAILING} are back; operator ${operator.running}`)
    report(`${FAILING} failures until all are back`, back.size < FAILING ? Infinity : tookMs / 1_000, 60, "s")
    await Bun.sleep(10_000)
    need(operator.running, `it has ended: ${operator.lines.slice(-5).join(" ")}`)
    report("intents left after 10 s", (await ns.intents()).length, 0, "intents")
    const made = (await calls(ns)).filter(({ at }) => at >= failedAt)
    report("calls for each restart", made.filter(isCounted).length / FAILING, 8, "calls")
    report("answers 429", made.filter(({ code }) => code === 429).length, 0, "answers")
    const usage = await operator.usage()
    const after = await memoryOf(operator.pid)
    console.log(
      `        CPU ${(usage.cpu - start.cpu).toFixed(2)} s; anonymous ${after.anonymousMib.toFixed(0)} MiB, ` +
        `most so far in the cgroup ${(await group.mostMib()).toFixed(0)} MiB`,
    )
    console.log(`        ${tally(made).join("\n        ")}`)
  } finally {
    if (operator.running) await operator.stop("SIGKILL")
    group.remove()
  }
}

const benches: Record<string, (ns: Namespace) => Promise<void>> = { small, large }
const chosen = process.argv[2] ? [process.argv[2]] : Object.keys(benches)
let passed = false
try {
  for (const name of chosen) {
    const bench: ((ns: Namespace) => Promise<void>) | undefined = benches[name]
    if (!bench) throw new Error(`there is no bench ${name}, only ${Object.keys(benches).join(" and ")}`)
    await group(name, (ns, check) => check("is measured", () => bench(ns)))
  }
  passed = await close()
} finally {
  await shell([script("down.sh"), folder])
}
process.exit(passed && missed === 0 ? 0 : 1)
