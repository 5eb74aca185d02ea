// This operator beside the Python operator 0.0.6: the same cluster, the same minutes, the same Jobs and settings, each
// with its own Role in its own namespace. Prints a table, claims nothing.
//   python3 -m venv /tmp/python && /tmp/python/bin/pip install kubernetes loguru tabulate
//   /tmp/python/bin/pip install --no-deps --ignore-requires-python flickr-immich-k8s-sync-operator==0.0.6
//   PYTHON=/tmp/python/bin/python bun .dev/bench/compare.ts
// KUBECONFIG, E2E_IMAGE and E2E_AUDIT_LOG as for e2e.ts. About 8 minutes.
import {
  abandon,
  allGone,
  calls,
  close,
  failedAt,
  failingJob,
  group,
  type Namespace,
  need,
  Operator,
  type Role,
  runningJob,
  until,
} from "../e2e/kit.ts"

const python = process.env.PYTHON
need(python, "PYTHON is not set: see the head of this file")
// It connects from inside a pod only: here a kubeconfig takes that place, and nothing else is changed.
const asModule = `from kubernetes import config
config.load_incluster_config = config.load_kube_config
import runpy
runpy.run_module("flickr_immich_k8s_sync_operator", run_name="__main__")`
const now = () => performance.timeOrigin + performance.now()
const both = ["Python", "ours"] as const
type Who = (typeof both)[number]
const roleOf = { Python: "old", ours: "operator" } as const satisfies Record<Who, Role>

async function start(who: Who, ns: Namespace, env: Record<string, string>): Promise<Operator> {
  if (who === "ours") return ns.operator(env)
  const all = { KUBECONFIG: await ns.kubeconfig("old"), NAMESPACE: ns.name, ...env }
  const operator = new Operator(all, ["-c", asModule], python)
  ns.operators.push(operator)
  return operator
}

const rows: [what: string, figures: Record<Who, string>][] = []
/** Measures both at the same time, each in a namespace of its own. */
async function measure(name: string, of: (who: Who, ns: Namespace) => Promise<Record<string, string>>): Promise<void> {
  const found = { Python: {}, ours: {} } as Record<Who, Record<string, string>>
  const one = (who: Who) =>
    group(`${name}, ${who}`, async (ns, check) => {
      await check("measured", async () => {
        found[who] = await of(who, ns)
      })
    })
  await Promise.all(both.map(one))
  for (const what of Object.keys(found.ours))
    rows.push([what, { Python: found.Python[what] ?? "?", ours: found.ours[what] ?? "?" }])
}

const names = (count: number, stem: string) => Array.from({ length: count }, (_, i) => `${stem}-${i}`)

const quiet = async (who: Who, ns: Namespace) => {
  const [running, failing] = [names(18, "running"), names(2, "failing")]
  for (const name of running) await ns.create("jobs", runningJob({ name }))
  await until(
    "18 pods run",
    async () => (await ns.list("pods")).filter((pod) => pod.status?.phase === "Running").length === 18,
    180_000,
  )
  const operator = await start(who, ns, { JOB_NAMES: [...running, ...failing].join() })
  for (const name of failing) await ns.create("jobs", failingJob({ name }))
  await until("200 s", () => now() > operator.spawnedAt + 200_000, 210_000)
  const { anonymous, resident, cpu } = await operator.usage()
  need(operator.running, `it has ended: ${operator.lines.slice(-5).join(" ")}`)
  const made = (await calls(ns, roleOf[who])).filter(({ at }) => at < operator.spawnedAt + 200_000)
  return {
    "start to the first API call, ms": String(Math.round((made[0]?.at ?? Number.NaN) - operator.spawnedAt)),
    "API calls in 200 s, 20 Jobs of which 2 fail": String(made.length),
    "log lines in these 200 s": String(operator.lines.length),
    "CPU in these 200 s, s": cpu.toFixed(2),
    "anonymous memory, MiB": anonymous.toFixed(1),
    "resident memory, MiB": resident.toFixed(1),
  }
}

const late = async (who: Who, ns: Namespace) => {
  await start(who, ns, { JOB_NAMES: "late", RESTART_DELAY: "0" })
  await Bun.sleep(20_000) // after its first look
  await ns.create("jobs", failingJob({ name: "late" }))
  const old = await ns.failed("late")
  const young = await ns.another(old, 150_000)
  return {
    "Failed to the new Job, RESTART_DELAY=0, s": String(
      (Date.parse(young.metadata.creationTimestamp) - failedAt(old)!) / 1_000,
    ),
  }
}

const ten = async (who: Who, ns: Namespace) => {
  const all = names(10, "due")
  for (const name of all) await ns.create("jobs", failingJob({ name }))
  const old = await Promise.all(all.map((name) => ns.failed(name)))
  const operator = await start(who, ns, { JOB_NAMES: all.join(), RESTART_DELAY: "0" })
  await Promise.all(old.map((job) => ns.another(job, 300_000)))
  return { "ten Jobs due at once: start to the last one back, s": ((now() - operator.spawnedAt) / 1_000).toFixed(1) }
}

for (const signal of ["SIGINT", "SIGTERM"] as const)
  process.once(signal, () => {
    abandon().finally(() => process.exit(1))
  })
await measure("quiet", quiet)
await measure("late", late)
await measure("ten", ten)
await allGone()
const width = Math.max(...rows.map(([what]) => what.length))
for (const [what, { Python, ours }] of [["", { Python: "Python 0.0.6", ours: "ours" }] as const, ...rows])
  console.log(`${what.padEnd(width)}  ${Python.padStart(12)}  ${ours.padStart(8)}`)
process.exit((await close()) ? 0 : 1)
