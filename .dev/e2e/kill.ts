// No Job is lost or doubled, whatever is killed at whatever step of a restart. A proxy between operator and API server
// holds the call that is the step, before it arrives or after it was applied; then the operator or the API server is
// killed and started again.
import { writeFile } from "node:fs/promises"
import { clusterDir, Generations, killPart, Meeting, Slots, startPart } from "./generations.ts"
import {
  apiServer,
  type Check,
  content,
  differences,
  failedAt,
  failingJob,
  group,
  hasNode,
  idleJob,
  must,
  type Namespace,
  need,
  type Operator,
  prefix,
  type Role,
  Skip,
  seconds,
  type Thing,
  until,
} from "./kit.ts"
import { podless } from "./podless.ts"
import { type Call, Gate, type Trap } from "./proxy.ts"

const intentLabel = `${prefix}intent`
const changes = ["POST intent", "DELETE Job", "POST Job", "DELETE intent"]
const steps = [
  "GET Job",
  "POST intent",
  "POST dry run",
  "DELETE Job",
  "GET until absent",
  "GET intent",
  "LIST pods",
  "POST Job",
  "DELETE intent",
]
type When = "before it arrives" | "applied, answer lost" | "arrives after the death"
const conditions = ["SIGKILL", "SIGTERM", "SIGKILL, two operators", "API server killed"] as const
type Condition = (typeof conditions)[number]
const patienceMs = 120_000

const intentName = /-restart-[0-9a-f]{12}$/

/**
 * The step that a call is, and the Job it is for, whose name is known by `uids`; `past` tells the two GETs of a Job
 * apart.
 */
function stepOf(
  { verb, resource, name, selector, labels, dryRun }: Call,
  uids: Map<string, string>,
  past: Set<string>,
): string | undefined {
  const isIntent = labels[intentLabel] !== undefined || intentName.test(name)
  const owner = [...uids].find(([uid]) => selector.includes(uid))?.[1]
  const job = labels[intentLabel] ?? owner ?? name.replace(intentName, "")
  const find = () => {
    if (resource === "pods") return verb === "list" && owner ? "LIST pods" : undefined
    if (resource !== "jobs") return undefined
    if (verb === "create" && dryRun) return "POST dry run"
    if (verb === "create") return `POST ${isIntent ? "intent" : "Job"}`
    if (verb === "delete") return `DELETE ${isIntent ? "intent" : "Job"}`
    if (verb !== "get") return undefined
    if (isIntent) return "GET intent"
    return past.has(`DELETE Job ${job}`) ? "GET until absent" : "GET Job"
  }
  const step = find()
  past.add(`${step} ${job}`)
  return step
}

// ---------------------------------------------------------------- Jobs that have failed

/**
 * One fails in a container. Many fail by hand: a small machine runs no ten pods a second, and one without a node none.
 */
async function failedJobs({ ns, seen }: Place, id: string, count: number): Promise<Thing[]> {
  const names = Array.from({ length: count }, (_, i) => `${id}-${i}`)
  const byHand = count > 1 || !(await hasNode())
  const make = byHand ? idleJob : failingJob
  for (const name of names) await ns.create("jobs", make({ name, labels: { e2e: id }, annotations: { note: "kept" } }))
  const pods = () => names.flatMap((name) => seen.podsOf(name))
  if (byHand) await until("all Jobs have pods", () => pods().length === count, patienceMs)
  for (const pod of byHand ? pods() : []) await ns.failPod(pod)
  const jobs = () => names.flatMap((name) => seen.live.get(name) ?? []).filter((job) => failedAt(job) !== undefined)
  return until("all Jobs have failed", () => jobs().length === count && jobs(), patienceMs)
}

// ---------------------------------------------------------------- a kill at a step

/** Where a kill is tried: a namespace, the proxy, and the step. */
interface Place {
  ns: Namespace
  gate: Gate
  seen: Generations
  step: string
  when: When
}
/** `caught`: the Jobs whose restart was at the step when it was killed. */
type Tally = { kills: number; caught: number; lost: number; doubled: number; longestMs: number; notes: string[] }

/** Pods are listed only where they cannot be watched, or were not in time. */
const roleFor = (step: string): Role => (step === "LIST pods" ? "old" : "operator")

async function startOperator({ ns, gate, step }: Place, caller: string, id: string): Promise<Operator> {
  const role = roleFor(step)
  const original = await ns.kubeconfig(role)
  const config = JSON.parse(await Bun.file(original).text())
  const file = `${original}-${caller}`
  config.clusters[0].cluster = {
    server: gate.urlFor(`${ns.name}-${caller}`),
    "certificate-authority-data": Buffer.from(gate.ca).toString("base64"),
  }
  await writeFile(file, JSON.stringify(config), { mode: 0o600 })
  const env = {
    KUBECONFIG: file,
    JOB_SELECTOR: `e2e=${id}`,
    RESTART_DELAY: "0",
    MAX_RESTARTS: "1",
    CHECK_INTERVAL: "30",
  }
  return ns.operator(env, role)
}

/** Holds the step of every Job of whichever operator comes to it first. Answers the trap, and who was caught. */
async function holdAt(place: Place, old: Thing[], isAlone: boolean): Promise<{ trap: Trap; caller: string }> {
  const uids = new Map(old.map(({ metadata }) => [metadata.uid, metadata.name]))
  const past = new Set<string>()
  let caller: string | undefined
  const trap = place.gate.trap(place.when === "applied, answer lost" ? "after" : "before", (call) => {
    if (call.namespace !== place.ns.name || stepOf(call, uids, past) !== place.step) return false
    if (call.caller !== (caller ?? call.caller)) return false
    caller = call.caller
    return true
  })
  const reached = () => new Set(trap.held.map(({ call }) => call.name || call.selector)).size
  await until(`the operator comes to ${place.step}`, () => reached() > 0, 60_000)
  // Of two operators the other may have taken some of the Jobs past this step; one alone may have to wait for a busy
  // garbage collector.
  const quietMs = isAlone ? 20_000 : 4_000
  let [most, quietAt] = [0, 0]
  await until(
    "all Jobs come to it",
    () => {
      if (reached() > most) [most, quietAt] = [reached(), performance.now() + quietMs]
      return most === old.length || performance.now() > quietAt
    },
    patienceMs,
  )
  trap.open()
  return { trap, caller: caller! }
}

/**
 * Keeps the old Job's pod for a while after the Job is told to go: who does not wait for it is seen to double the Job.
 */
async function holdPod({ ns, seen }: Place, old: Thing, holdMs: number): Promise<() => Promise<unknown>> {
  const pod = (await ns.podsOf(old))[0]!
  await ns.hold("pods", pod)
  const isGoing = () => {
    const job = seen.live.get(old.metadata.name)
    return job?.metadata.uid !== old.metadata.uid || job.metadata.deletionTimestamp !== undefined
  }
  const release = () =>
    ns.release("pods", pod).then(
      () => true,
      () => false, // the API server is away
    )
  const released = until("the Job is going", isGoing, patienceMs)
    .then(() => Bun.sleep(holdMs))
    .then(() => until("its pod may go", release, patienceMs))
    .catch(() => {})
  return () => released
}

/**
 * Kills at the step, starts again, and waits until the Jobs are back. `together` is for the API server, which dies for
 * all at once.
 */
async function killAt(place: Place, condition: Condition, count: number, together: Meeting): Promise<Tally> {
  const { ns, gate, seen, when } = place
  const id = `${condition.replace(/[^a-zA-Z]/g, "").toLowerCase()}-${count}`
  const old = await failedJobs(place, id, count)
  const names = old.map(({ metadata }) => metadata.name)
  const doubledBefore = seen.doubled.length
  if (condition === "API server killed") await together.arrive(async () => {})
  // An intent is read again once its restart has waited for more than one look.
  const holdMs = place.step === "GET intent" ? 2_500 : 1_000
  const held = count === 1 || place.step === "GET intent" ? old : []
  const released = await Promise.all(held.map((job) => holdPod(place, job, holdMs)))
  const holding = holdAt(place, old, condition !== "SIGKILL, two operators")
  holding.catch(() => {})
  const operators = [await startOperator(place, "a", id)]
  if (condition === "SIGKILL, two operators") operators.push(await startOperator(place, "b", id))
  const { trap, caller } = await holding
  const caught = trap.held.length
  const fate = when === "before it arrives" ? "go on" : "cut"
  const isBack = () => names.every((name) => seen.seenAt(name, 2))
  let killedAt = performance.now()
  if (condition === "API server killed") {
    await together.arrive(() => killPart("kube-apiserver"))
    killedAt = performance.now()
    trap.end(fate)
    await Bun.sleep(500)
    await together.arrive(() => startPart("kube-apiserver"))
  } else {
    const victim = operators[caller.endsWith("-b") ? 1 : 0]!
    victim.kill(condition === "SIGTERM" ? "SIGTERM" : "SIGKILL")
    if (condition === "SIGTERM") trap.end(fate)
    const code = await victim.ended()
    need(condition !== "SIGTERM" || code === 0, `exit code ${code}`)
    operators.push(await startOperator(place, "c", id))
    // Late, while the next life begins, or when all is over.
    if (when === "arrives after the death") {
      if (count > 1) await until("all Jobs are back", isBack, patienceMs)
      trap.end("go on")
      await Bun.sleep(500)
    }
  }
  gate.remove(trap)
  const isOver = await until(
    "all Jobs are back, no intent is left",
    () => isBack() && seen.intents.length === 0,
    patienceMs,
  ).catch(() => false)
  // Who asks right after the API server's start is told 403, and is not to take that for its Role.
  const eyes = () => gate.watchedBy(caller).toSorted().join()
  const sees =
    condition !== "API server killed" ||
    roleFor(place.step) === "old" ||
    (await until("it watches", () => eyes() === "jobs,pods", 70_000).catch(() => false))
  for (const operator of operators) if (operator.running) await operator.stop("SIGKILL")
  for (const wait of released) await wait()
  const live = await Promise.all(names.map((name) => ns.job(name)))
  const notes = seen.doubled.slice(doubledBefore)
  if (!sees) notes.push(`70 s later the operator watches only ${eyes() || "nothing"}`)
  if (!isOver) notes.push(`after ${seconds(patienceMs)} intents left: ${seen.intents.join(", ") || "none"}`)
  for (const [i, job] of live.entries()) {
    const changed = job ? differences(content(old[i]!), content(job)) : []
    const generations = seen.of.get(names[i]!)!.length
    if (changed.length > 0 || generations > 2)
      notes.push(`${names[i]}: ${generations} generations; changed: ${changed.join("; ") || "nothing"}`)
    await must("DELETE", ns.path("jobs", names[i]), { propagationPolicy: "Background" }).catch(() => {})
  }
  return {
    kills: 1,
    caught,
    notes,
    doubled: seen.doubled.length - doubledBefore,
    lost: live.filter((job, i) => !job || job.metadata.uid === old[i]!.metadata.uid).length,
    longestMs: Math.max(0, ...names.map((name) => (seen.seenAt(name, 2) ?? Number.POSITIVE_INFINITY) - killedAt)),
  }
}

// ---------------------------------------------------------------- the checks

type Row = { step: string; when: When; condition: Condition } & Tally
const figures = ({ kills, caught, lost, doubled, longestMs }: Tally) =>
  `${kills} kills, ${caught} Jobs at this step, lost ${lost}, doubled ${doubled}, ` +
  `back after at most ${seconds(longestMs)}`

const killsAt = (step: string, when: When, rows: Row[], slots: Slots, together: Meeting, gate: Gate) =>
  group(`kill: ${step}, ${when}`, async (ns, check) => {
    const place = { ns, gate, seen: new Generations(ns), step, when }
    const late = when === "arrives after the death"
    if (!late) together.join()
    const prove = (condition: Condition, check: Check) =>
      check(`${condition}: every Job is back once, as it was`, async () => {
        const runs: Tally[] = []
        for (const count of [1, 10]) {
          const run = () => killAt(place, condition, count, together)
          if (condition === "API server killed" && !clusterDir) throw new Skip("E2E_CLUSTER_DIR is not set")
          runs.push(await (condition === "API server killed" ? run() : slots.run(run)))
        }
        const sum = (pick: (t: Tally) => number) => runs.reduce((total, run) => total + pick(run), 0)
        const total = {
          kills: runs.length,
          caught: sum((t) => t.caught),
          lost: sum((t) => t.lost),
          doubled: sum((t) => t.doubled),
          longestMs: Math.max(...runs.map((t) => t.longestMs)),
          notes: runs.flatMap((t) => t.notes),
        }
        rows.push({ step, when, condition, ...total })
        need(total.lost + total.doubled + total.notes.length === 0, `${figures(total)}\n${total.notes.join("\n")}`)
        return figures(total)
      })
    try {
      for (const condition of late ? conditions.slice(0, 1) : conditions) await prove(condition, check)
    } finally {
      if (!late) together.leave()
      place.seen.end()
    }
  })

function printTable(rows: Row[]): void {
  const wide = (cells: unknown[]) => {
    const [step, when, condition, ...numbers] = cells.map(String) as [string, string, string, ...string[]]
    const where = `${step.padEnd(17)} ${when.padEnd(24)} ${condition.padEnd(23)}`
    return `${where} ${numbers.map((n) => n.padStart(7)).join(" ")}`
  }
  console.log(`\n${wide(["step", "call", "killed", "kills", "Jobs", "lost", "doubled", "longest"])}`)
  const order = (row: Row) => steps.indexOf(row.step) * 100 + conditions.indexOf(row.condition)
  for (const row of rows.toSorted((a, b) => order(a) - order(b) || (a.when < b.when ? 1 : -1)))
    console.log(
      wide([row.step, row.when, row.condition, row.kills, row.caught, row.lost, row.doubled, seconds(row.longestMs)]),
    )
  const sum = (pick: (row: Row) => number) => rows.reduce((total, row) => total + pick(row), 0)
  const longest = seconds(Math.max(0, ...rows.map((row) => row.longestMs)))
  console.log(
    wide([
      "sum",
      "",
      "",
      sum((r) => r.kills),
      sum((r) => r.caught),
      sum((r) => r.lost),
      sum((r) => r.doubled),
      longest,
    ]),
  )
  console.log("Jobs: those whose restart was at this step. A kill of the API server counts in all of its rows.\n")
}

/** All of them. The API server is killed: nothing else may run meanwhile. Prints a table at the end. */
export async function killGroups(): Promise<void> {
  const places = steps.flatMap((step) => {
    const late: When[] = changes.includes(step) ? ["arrives after the death"] : []
    return (["before it arrives", "applied, answer lost", ...late] as When[]).map((when) => ({ step, when }))
  })
  const rows: Row[] = []
  const slots = new Slots(6)
  const together = new Meeting()
  const gate = await Gate.start(apiServer.url, apiServer.ca)
  await Promise.all([
    podless(together),
    ...places.map(({ step, when }) => killsAt(step, when, rows, slots, together, gate)),
  ])
  gate.close()
  if (rows.length > 0) printTable(rows)
}
